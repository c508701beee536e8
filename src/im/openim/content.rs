//! Builds messages as OpenIM's content types, and checks the fields that each type requires.
//!
//! The server validates a content by its type, and reports a fault as an internal error that looks
//! transient. So this module finds the fault when the job is accepted.

use std::borrow::Cow;

use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::native::Native;
use crate::domain::fields::{Fields, Problem, shorten};
use crate::domain::message::{self, Content, MENTIONS_MAX, plain_text};
use crate::domain::slice::Head;

const TEXT: i64 = 101;
const PICTURE: i64 = 102;
const VOICE: i64 = 103;
const VIDEO: i64 = 104;
const FILE: i64 = 105;
const AT: i64 = 106;
const CUSTOM: i64 = 110;
const MARKDOWN: i64 = 118;
/// A notice of a notification account. The server puts it into the notification session, whatever
/// the session of the request.
pub(super) const NOTICE: i64 = 1400;

/// The id that mentions all users.
const EVERYBODY: &str = "AtAllTag";

/// A content as the request contains it.
#[derive(Debug)]
pub(super) struct Said<'a> {
    pub(super) content_type: i64,
    /// A JSON object.
    pub(super) content: Cow<'a, str>,
    place: Place,
}

/// The part of a job that a content comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Message,
    Raw,
    Native,
}

impl<'a> Said<'a> {
    /// The content of a job; `None` if the job does not contain all parts of one.
    pub(super) fn of(
        head: &'a Head,
        native: &Native<'a>,
        notice_name: &str,
        problems: &mut Vec<Problem>,
    ) -> Option<Self> {
        let said = match &head.content {
            Content::Raw(data) => Self::raw(data, problems),
            content => of_message(content, notice_name).map(|(content_type, content)| Self {
                content_type,
                content: content.to_string().into(),
                place: Place::Message,
            }),
        };
        let given = |name: &str| native.get(name).map(|value| value.get());
        let (content_type, content) = (given("contentType"), given("content"));
        if content_type.is_none() && content.is_none() {
            if matches!(head.content, Content::Native) {
                let what = "`contentType` and `content` are missing, or a message beside it";
                problems.push(Problem::new("message.native", what));
            }
            return said;
        }
        let content_type = match content_type {
            Some(number) => number.parse().ok(),
            None => said.as_ref().map(|said| said.content_type),
        };
        let content = content.map(Cow::Borrowed).or(said.map(|said| said.content));
        if content_type.is_none() || content.is_none() {
            let what = "`contentType` and `content` are needed both";
            problems.push(Problem::new("message.native", what));
        }
        Some(Self {
            content_type: content_type?,
            content: content?,
            place: Place::Native,
        })
    }

    /// `{"contentType":101,"content":{…}}`.
    fn raw(data: &'a RawValue, problems: &mut Vec<Problem>) -> Option<Self> {
        let mut fields = Fields::open("message.data", data.get(), problems)?;
        let before = problems.len();
        let content_type = fields.get("contentType", "a number such as 101", problems);
        if content_type.is_none() && problems.len() == before {
            fields.problem("contentType", "missing", problems);
        }
        let content = fields.raw("content").map(RawValue::get);
        let content = content.filter(|content| content.starts_with('{'));
        if content.is_none() {
            fields.problem("content", "an object is expected", problems);
        }
        fields.finish(problems);
        Some(Self {
            content_type: content_type?,
            content: Cow::Borrowed(content?),
            place: Place::Raw,
        })
    }

    /// Problems that the server's validation would find. Types that are not listed here are left to
    /// the server.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let content: Value = serde_json::from_str(&self.content).unwrap_or_default();
        let mut problems: Vec<Problem> = Vec::new();
        for (part, needs) in needs(self.content_type) {
            for need in *needs {
                let value = match *part {
                    "" => &content[need.name],
                    part => &content[part][need.name],
                };
                let Some(what) = need.problem(value) else {
                    continue;
                };
                let field = self.field(part, need);
                // The three pictures of a content come from one picture of the message, so its
                // problem is reported once.
                if problems.iter().all(|known| known.field != field) {
                    problems.push(Problem::new(field, what));
                }
            }
        }
        problems
    }

    fn field(&self, part: &str, need: &Need) -> String {
        let dot = if part.is_empty() { "" } else { "." };
        let name = need.name;
        match self.place {
            Place::Message => format!("message.{}", need.ours),
            Place::Raw => format!("message.data.content.{part}{dot}{name}"),
            Place::Native => format!("message.native.content.{part}{dot}{name}"),
        }
    }
}

/// Type and content of a message. `None` if OpenIM has no such type, which the mapping refuses, and
/// for contents from native fields or from a stored message.
fn of_message(content: &Content, notice_name: &str) -> Option<(i64, Value)> {
    Some(match content {
        Content::Text(text) => (TEXT, json!({"content": text})),
        Content::Image(file) => (PICTURE, picture(file)),
        Content::Audio(file) => (VOICE, voice(file)),
        Content::Video(file) => (VIDEO, video(file)),
        Content::File(file) => (
            FILE,
            json!({
                "uuid": id(file),
                "sourceUrl": file.url,
                "fileName": file.name.as_deref().unwrap_or_default(),
                "fileSize": file.size.unwrap_or_default(),
                "fileType": file.format.as_deref().unwrap_or_default(),
            }),
        ),
        Content::Mention {
            text,
            users,
            everybody,
        } => {
            let everybody = everybody.then_some(EVERYBODY);
            let users: Vec<_> = users.iter().map(String::as_str).chain(everybody).collect();
            (
                AT,
                json!({"text": text, "atUserList": users, "isAtSelf": false}),
            )
        }
        Content::Custom(data) => (
            CUSTOM,
            json!({"data": plain_text(data), "description": "", "extension": ""}),
        ),
        Content::Notice(text) => (
            NOTICE,
            json!({
                "notificationName": notice_name,
                "notificationFaceURL": "",
                "notificationType": 1,
                "text": text,
                "url": "",
                "mixType": 0,
                "ex": "",
            }),
        ),
        Content::Location { .. } | Content::Raw(_) | Content::Native | Content::Template(_) => {
            return None;
        }
    })
}

/// The identity of a file.
fn id(file: &message::File) -> &str {
    file.md5.as_deref().unwrap_or_default()
}

/// Whole seconds, as clients show them; rounded up, so that a short file does not have the length
/// 0.
fn seconds(file: &message::File) -> u64 {
    file.duration_ms.unwrap_or_default().div_ceil(1000)
}

fn picture(file: &message::File) -> Value {
    let of = |url: &str, size: u64| {
        json!({
            "uuid": id(file),
            "type": file.format.as_deref().unwrap_or_default(),
            "size": size,
            "width": file.width.unwrap_or_default(),
            "height": file.height.unwrap_or_default(),
            "url": url,
        })
    };
    let whole = of(&file.url, file.size.unwrap_or_default());
    // Clients reserve space by the thumbnail's size, so it has the proportions of its picture.
    let small = match &file.cover {
        Some(cover) => of(cover, 0),
        None => whole.clone(),
    };
    json!({"sourcePicture": whole, "bigPicture": whole, "snapshotPicture": small})
}

fn voice(file: &message::File) -> Value {
    json!({
        "uuid": id(file),
        "sourceUrl": file.url,
        "dataSize": file.size.unwrap_or_default(),
        "duration": seconds(file),
        "soundType": file.format.as_deref().unwrap_or_default(),
    })
}

fn video(file: &message::File) -> Value {
    json!({
        "videoUUID": id(file),
        "videoUrl": file.url,
        "videoType": file.format.as_deref().unwrap_or_default(),
        "videoSize": file.size.unwrap_or_default(),
        "duration": seconds(file),
        "snapshotUrl": file.cover.as_deref().unwrap_or_default(),
        "snapshotWidth": file.width.unwrap_or_default(),
        "snapshotHeight": file.height.unwrap_or_default(),
    })
}

/// A field that the server's validation requires of a content, or whose value it checks.
struct Need {
    name: &'static str,
    takes: Takes,
    needed: bool,
    /// The field of a message that the value comes from.
    ours: &'static str,
}

#[derive(Clone, Copy)]
enum Takes {
    Text,
    /// The server accepts a number written as text.
    Number,
    /// The mentioned users.
    Users,
    /// The kind of a notice, which says what it contains beside its text.
    MixType,
}

const fn need(name: &'static str, takes: Takes, ours: &'static str) -> Need {
    Need {
        name,
        takes,
        needed: true,
        ours,
    }
}

const fn may(name: &'static str, takes: Takes, ours: &'static str) -> Need {
    Need {
        name,
        takes,
        needed: false,
        ours,
    }
}

const OF_TEXT: &[Need] = &[need("content", Takes::Text, "text")];
const OF_PICTURE: &[Need] = &[
    may("uuid", Takes::Text, "md5"),
    need("type", Takes::Text, "format"),
    may("size", Takes::Number, "size"),
    need("width", Takes::Number, "width"),
    need("height", Takes::Number, "height"),
    need("url", Takes::Text, "url"),
];
const OF_VOICE: &[Need] = &[
    may("uuid", Takes::Text, "md5"),
    need("sourceUrl", Takes::Text, "url"),
    may("dataSize", Takes::Number, "size"),
    need("duration", Takes::Number, "duration_ms"),
];
const OF_VIDEO: &[Need] = &[
    may("videoUUID", Takes::Text, "md5"),
    need("videoUrl", Takes::Text, "url"),
    need("videoType", Takes::Text, "format"),
    need("videoSize", Takes::Number, "size"),
    need("duration", Takes::Number, "duration_ms"),
    need("snapshotUrl", Takes::Text, "cover"),
    need("snapshotWidth", Takes::Number, "width"),
    need("snapshotHeight", Takes::Number, "height"),
];
const OF_FILE: &[Need] = &[
    may("uuid", Takes::Text, "md5"),
    need("sourceUrl", Takes::Text, "url"),
    need("fileName", Takes::Text, "name"),
    need("fileSize", Takes::Number, "size"),
];
const OF_AT: &[Need] = &[
    may("text", Takes::Text, "text"),
    need("atUserList", Takes::Users, "users"),
];
const OF_CUSTOM: &[Need] = &[
    need("data", Takes::Text, "data"),
    may("description", Takes::Text, "data"),
    may("extension", Takes::Text, "data"),
];
const OF_NOTICE: &[Need] = &[
    need("notificationName", Takes::Text, "text"),
    may("notificationFaceURL", Takes::Text, "text"),
    need("notificationType", Takes::Number, "text"),
    need("text", Takes::Text, "text"),
    may("url", Takes::Text, "text"),
    may("mixType", Takes::MixType, "text"),
    may("ex", Takes::Text, "text"),
];

/// The fields required of a content type, grouped by the object that contains them.
fn needs(content_type: i64) -> &'static [(&'static str, &'static [Need])] {
    match content_type {
        TEXT | MARKDOWN => &[("", OF_TEXT)],
        PICTURE => &[
            ("sourcePicture", OF_PICTURE),
            ("bigPicture", OF_PICTURE),
            ("snapshotPicture", OF_PICTURE),
        ],
        VOICE => &[("", OF_VOICE)],
        VIDEO => &[("", OF_VIDEO)],
        FILE => &[("", OF_FILE)],
        AT => &[("", OF_AT)],
        CUSTOM => &[("", OF_CUSTOM)],
        NOTICE => &[("", OF_NOTICE)],
        _ => &[],
    }
}

impl Need {
    fn problem(&self, value: &Value) -> Option<String> {
        if value.is_null() || (self.needed && is_nothing(value, self.takes)) {
            let what = "missing; OpenIM refuses a message of this type without it";
            return self.needed.then(|| what.to_owned());
        }
        let expected = match self.takes {
            Takes::Text if value.is_string() || value.is_number() => return None,
            Takes::Text => "a text",
            Takes::Number if number(value).is_some_and(|number| number >= 0) => return None,
            Takes::Number => "a number, 0 or more,",
            Takes::Users => {
                let users = value.as_array();
                if users.is_some_and(|users| users.len() > MENTIONS_MAX) {
                    let what = format!("more than {MENTIONS_MAX} mentions, everybody being one");
                    return Some(what);
                }
                if users.is_some_and(|users| users.iter().all(Value::is_string)) {
                    return None;
                }
                "a list of user ids"
            }
            Takes::MixType if number(value).is_some_and(|kind| (0..=5).contains(&kind)) => {
                return None;
            }
            Takes::MixType => "0 to 5",
        };
        let value = value.to_string();
        Some(format!(
            "{expected} is expected, not {}",
            shorten(&value, 40)
        ))
    }
}

/// A whole number as the server reads it.
fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number
            .as_i64()
            .or_else(|| number.as_f64().map(|number| number as i64)),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

/// Whether the server treats this value as missing.
fn is_nothing(value: &Value, takes: Takes) -> bool {
    match takes {
        Takes::Number => number(value) == Some(0) || value == "",
        Takes::Text | Takes::Users | Takes::MixType => value == "",
    }
}
