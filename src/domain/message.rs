//! The message of a job and its delivery options, in one model for all targets.
//!
//! A producer writes a `MessageDocument`; slices, dead letters and webhooks carry the same form.
//! `Content` is the checked form, in which every field belongs to its type. Each target maps it
//! (`domain::mapping`).

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::audience::wrong_values;
use super::fields::{Fields, Problem, Problems, TWICE, name_twice};
use super::job::{RECIPIENT_BYTES_MAX, half_character, wrong_id};
use super::text;

/// Largest `text` of a message, in bytes. The tightest documented limit among the targets is 5,000
/// characters (NetEase); a target's own limit is checked when the job is accepted.
pub const TEXT_BYTES_MAX: usize = 20_000;

/// Largest `data`, `native` or `extension`, in bytes of JSON.
pub const DATA_BYTES_MAX: usize = 64 * 1024;

/// Longest URL, file name, title or template name, in bytes.
pub const LINE_BYTES_MAX: usize = 2048;

/// Longest name of a sound, an environment or a set of rules, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// Most users one message can mention.
pub const MENTIONS_MAX: usize = 1000;

/// The message. `type` decides which other fields are allowed: `text` and `notice` take `text`;
/// `image`, `audio`, `video` and `file` take `url` and the properties of the file; `location` takes
/// `latitude`, `longitude` and `title`; `mention` takes `text` with `users` or `everybody`;
/// `custom` and `raw` take `data`. `template` names a stored message instead. `native` fields may
/// be added to any of them, or be alone.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Message", deny_unknown_fields)]
#[serde(default)]
pub struct MessageDocument {
    /// `text`, `image`, `audio`, `video`, `file`, `location`, `notice`, `mention`, `custom` or `raw`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The text, 1 to 20,000 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// URL of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Name of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Size of the file in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Extension of the file's name without the dot, such as `png`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// MD5 of the file, 32 hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub md5: Option<String>,
    /// Pixels; images and videos.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<u32>,
    /// Pixels; images and videos.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<u32>,
    /// Milliseconds; audio and videos.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// URL of a still picture; images (a thumbnail) and videos.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cover: Option<String>,
    /// Degrees, -90 to 90.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -90, max = 90))]
    pub latitude: Option<f64>,
    /// Degrees, -180 to 180.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -180, max = 180))]
    pub longitude: Option<f64>,
    /// Name of the place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Ids of the users that are mentioned, at most 1,000 of 1 to 255 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1000), inner(length(min = 1, max = 255)))]
    pub users: Option<Vec<String>>,
    /// All users are mentioned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub everybody: Option<bool>,
    /// Application data (`custom`) or the target's own message body (`raw`): any JSON of at most
    /// 64 KiB, passed through byte for byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Value>")]
    pub data: Option<Box<RawValue>>,
    /// Further fields of the target's own request, an object of at most 64 KiB, passed through
    /// unchanged. They override the fields that the message sets. They cannot set recipients, keys
    /// or credentials.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub native: Option<Box<RawValue>>,
    /// Name of a stored message that is sent instead, see `fanwise template`. The job uses the
    /// version that is newest when it starts, or the one after an `@`, as in `welcome@3`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Values for the placeholders, for all recipients; the `vars` of a recipient override them.
    /// With these, or with any recipient's `vars`, `{{ name }}` is a placeholder in `text`,
    /// `title`, the `name` of a file, the texts within `data` of a custom message,
    /// `options.push.title`, `options.push.text` and an `options.extension` that is a text. In a
    /// stored message it always is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub vars: Option<Box<RawValue>>,
    /// Texts are sent unchanged, with their braces. Without it, and without any `vars`, a message
    /// with a `{{ placeholder }}` is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub literal: Option<bool>,
}

/// The content that every recipient gets.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(into = "MessageDocument", try_from = "MessageDocument")]
pub enum Content {
    /// Plain text.
    Text(String),
    Image(File),
    Audio(File),
    Video(File),
    File(File),
    Location {
        latitude: f64,
        longitude: f64,
        title: String,
    },
    /// A notice in grey, such as "you are friends now". Some systems call it a tip.
    Notice(String),
    /// A text that mentions users, or all users.
    Mention {
        text: String,
        users: Vec<String>,
        everybody: bool,
    },
    /// Application data: any JSON value, passed through byte for byte.
    Custom(Box<RawValue>),
    /// The target's own message body, passed through untouched.
    Raw(Box<RawValue>),
    /// No content of ours: the native fields are the whole message.
    Native,
    /// The name of a stored message, optionally with a version; the intake inserts that message.
    Template(String),
}

/// A file at a URL, with its known properties.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct File {
    pub url: String,
    pub name: Option<String>,
    pub size: Option<u64>,
    pub format: Option<String>,
    pub md5: Option<String>,
    pub width: Option<u32>,
    pub height: Option<u32>,
    pub duration_ms: Option<u64>,
    pub cover: Option<String>,
}

/// A message: its content and the fields beside it.
#[derive(Clone, Debug)]
pub struct Message {
    pub content: Content,
    pub native: Option<Box<RawValue>>,
    pub vars: Option<Box<RawValue>>,
    /// Texts are sent unchanged.
    pub literal: bool,
}

/// Delivery options. An option that is left out takes the target's default. An option that the
/// target does not support refuses the job at acceptance, or is dropped with a warning (`"mapping":
/// "lenient"`).
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[serde(default)]
pub struct Options {
    /// Only to recipients that are online; not stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub online_only: Option<bool>,
    /// Counts as unread (the red dot).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unread: Option<bool>,
    /// A command message that each recipient's devices see once, outside of conversations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sync_once: Option<bool>,
    /// Seconds after which the backend may drop the message; 0 means never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expire_seconds: Option<u32>,
    /// The sender's own devices do not get the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender_no_sense: Option<bool>,
    /// The recipients' devices take it silently: no roaming, no history.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receiver_no_sense: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub push: Option<Push>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<Route>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moderation: Option<Moderation>,
    /// The backend's free extension field: a text as it is, anything else as JSON; at most 64 KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Value>")]
    pub extension: Option<Box<RawValue>>,
}

/// The push notification that offline devices show.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[serde(default)]
pub struct Push {
    /// Default: yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// At most 2,048 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub title: Option<String>,
    /// At most 20,000 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20_000))]
    pub text: Option<String>,
    /// For the push service: a text as it is, anything else as JSON; at most 64 KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Value>")]
    pub payload: Option<Box<RawValue>>,
    /// Name of a sound, at most 255 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    pub sound: Option<String>,
    /// Raises the badge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub badge: Option<bool>,
    /// Shown even to users who turned notifications off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forced: Option<bool>,
}

/// The copy of each message that the backend sends to the application's callback.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[serde(default)]
pub struct Route {
    /// Default: yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Name of the environment that gets the copy, at most 255 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    pub environment: Option<String>,
}

/// The backend's own moderation of content.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[serde(default)]
pub struct Moderation {
    /// Default: yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Name of the rules to apply, at most 255 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    pub business_id: Option<String>,
}

/// The value of a text field: a JSON string as its text, anything else as JSON.
pub fn plain_text(value: &RawValue) -> String {
    serde_json::from_str(value.get()).unwrap_or_else(|_| value.get().to_owned())
}

// ---------------------------------------------------------------------------------------------
// Reading
// ---------------------------------------------------------------------------------------------

/// The types, with the fields that each requires and the further fields that it allows.
const KINDS: [(&str, &[&str], &[&str]); 10] = [
    ("text", &["text"], &[]),
    (
        "image",
        &["url"],
        &["name", "size", "format", "md5", "width", "height", "cover"],
    ),
    (
        "audio",
        &["url"],
        &["name", "size", "format", "md5", "duration_ms"],
    ),
    (
        "video",
        &["url"],
        &[
            "name",
            "size",
            "format",
            "md5",
            "width",
            "height",
            "duration_ms",
            "cover",
        ],
    ),
    ("file", &["url"], &["name", "size", "format", "md5"]),
    ("location", &["latitude", "longitude"], &["title"]),
    ("notice", &["text"], &[]),
    ("mention", &["text"], &["users", "everybody"]),
    ("custom", &["data"], &[]),
    ("raw", &["data"], &[]),
];

impl MessageDocument {
    fn read(fields: &mut Fields<'_>, problems: &mut Problems) -> Self {
        let object = "a JSON object";
        Self {
            kind: fields.get("type", "a text", problems),
            text: fields.get("text", "a text", problems),
            url: fields.get("url", "a text", problems),
            name: fields.get("name", "a text", problems),
            size: fields.get("size", "a number of bytes", problems),
            format: fields.get("format", "a text", problems),
            md5: fields.get("md5", "a text", problems),
            width: fields.get("width", "a number of pixels", problems),
            height: fields.get("height", "a number of pixels", problems),
            duration_ms: fields.get("duration_ms", "a number of milliseconds", problems),
            cover: fields.get("cover", "a text", problems),
            latitude: fields.get("latitude", "a number of degrees", problems),
            longitude: fields.get("longitude", "a number of degrees", problems),
            title: fields.get("title", "a text", problems),
            users: read_mentions(fields, problems),
            everybody: fields.get("everybody", "true or false", problems),
            data: read_raw(fields, "data", problems),
            native: read_object(fields, "native", object, problems),
            template: fields.get("template", "a text", problems),
            vars: read_values(fields, object, problems),
            literal: fields.get("literal", "true or false", problems),
        }
    }

    /// The names of the type's fields that are set.
    fn set(&self) -> impl Iterator<Item = &'static str> {
        [
            ("text", self.text.is_some()),
            ("url", self.url.is_some()),
            ("name", self.name.is_some()),
            ("size", self.size.is_some()),
            ("format", self.format.is_some()),
            ("md5", self.md5.is_some()),
            ("width", self.width.is_some()),
            ("height", self.height.is_some()),
            ("duration_ms", self.duration_ms.is_some()),
            ("cover", self.cover.is_some()),
            ("latitude", self.latitude.is_some()),
            ("longitude", self.longitude.is_some()),
            ("title", self.title.is_some()),
            ("users", self.users.is_some()),
            ("everybody", self.everybody.is_some()),
            ("data", self.data.is_some()),
        ]
        .into_iter()
        .filter_map(|(name, set)| set.then_some(name))
    }

    /// The problems of the document: fields that do not belong, missing fields, values out of
    /// bounds.
    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut problem = |field: &str, what: String| problems.push(Problem::new(field, what));
        let (needs, may): (&[&str], &[&str]) = match (self.kind.as_deref(), &self.template) {
            (Some(_), Some(_)) => {
                let what = "a stored message has a type of its own; leave `type` out";
                problem("template", what.into());
                (&[], &[])
            }
            (Some(kind), None) => match KINDS.iter().find(|(name, ..)| *name == kind) {
                Some((_, needs, may)) => (needs, may),
                None => {
                    let kinds = KINDS.map(|(name, ..)| name).join(", ");
                    problem("type", format!("{kind:?} is not one of {kinds}"));
                    return problems;
                }
            },
            (None, Some(_)) => (&[], &[]),
            (None, None) if self.native.is_some() => (&[], &[]),
            (None, None) => {
                let kinds = KINDS.map(|(name, ..)| name).join(", ");
                let what =
                    format!("missing; one of {kinds} is expected, or `template` or `native`");
                problem("type", what);
                return problems;
            }
        };
        let of = match (&self.kind, &self.template) {
            (Some(kind), _) => format!("a message of type {kind}"),
            (None, Some(_)) => "a stored message".to_owned(),
            (None, None) => "a message of native fields alone".to_owned(),
        };
        let set: Vec<_> = self.set().collect();
        for name in needs.iter().filter(|name| !set.contains(name)) {
            problem(name, format!("missing; {of} needs it"));
        }
        for name in &set {
            if !needs.contains(name) && !may.contains(name) {
                problem(name, format!("has no meaning in {of}"));
            }
        }
        self.check_values(&mut problem);
        problems
    }

    fn check_values(&self, problem: &mut impl FnMut(&str, String)) {
        let mut length = |name: &str, text: &Option<String>, most: usize| {
            let size = text.as_ref().map_or(1, String::len);
            if size == 0 || size > most {
                problem(name, format!("{size} bytes, 1 to {most} are allowed"));
            }
        };
        length("text", &self.text, TEXT_BYTES_MAX);
        for (name, text) in [
            ("url", &self.url),
            ("name", &self.name),
            ("format", &self.format),
            ("cover", &self.cover),
            ("title", &self.title),
            ("template", &self.template),
        ] {
            length(name, text, LINE_BYTES_MAX);
        }
        if let Some(md5) = &self.md5
            && (md5.len() != 32 || !md5.bytes().all(|digit| digit.is_ascii_hexdigit()))
        {
            problem("md5", format!("{md5:?} is not 32 hexadecimal digits"));
        }
        for (name, degrees, most) in [
            ("latitude", self.latitude, 90.0),
            ("longitude", self.longitude, 180.0),
        ] {
            if degrees.is_some_and(|degrees| !(-most..=most).contains(&degrees)) {
                problem(name, format!("is not -{most} to {most} degrees"));
            }
        }
        if self
            .users
            .as_ref()
            .is_some_and(|users| users.len() > MENTIONS_MAX)
        {
            problem("users", format!("more than {MENTIONS_MAX} mentions"));
        }
    }

    /// The content of a document that has no problems.
    fn into_content(self) -> Content {
        let text = self.text.unwrap_or_default();
        let data = self.data.unwrap_or_default();
        let file = File {
            url: self.url.unwrap_or_default(),
            name: self.name,
            size: self.size,
            format: self.format,
            md5: self.md5,
            width: self.width,
            height: self.height,
            duration_ms: self.duration_ms,
            cover: self.cover,
        };
        match (self.kind.as_deref(), self.template) {
            (None, Some(name)) => Content::Template(name),
            (Some("text"), _) => Content::Text(text),
            (Some("notice"), _) => Content::Notice(text),
            (Some("image"), _) => Content::Image(file),
            (Some("audio"), _) => Content::Audio(file),
            (Some("video"), _) => Content::Video(file),
            (Some("file"), _) => Content::File(file),
            (Some("location"), _) => Content::Location {
                latitude: self.latitude.unwrap_or_default(),
                longitude: self.longitude.unwrap_or_default(),
                title: self.title.unwrap_or_default(),
            },
            (Some("mention"), _) => Content::Mention {
                text,
                users: self.users.unwrap_or_default(),
                everybody: self.everybody.unwrap_or_default(),
            },
            (Some("custom"), _) => Content::Custom(data),
            (Some("raw"), _) => Content::Raw(data),
            _ => Content::Native,
        }
    }
}

impl Message {
    /// Reads `message` of a job, or a stored message.
    pub(super) fn read(mut fields: Fields<'_>, problems: &mut Problems) -> Option<Self> {
        let before = problems.found();
        let mut document = MessageDocument::read(&mut fields, problems);
        if problems.found() == before {
            for Problem { field, what } in document.problems() {
                problems.push(Problem::new(fields.path_of(&field), what));
            }
        }
        fields.finish(problems);
        let (native, vars) = (document.native.take(), document.vars.take());
        let literal = document.literal.unwrap_or_default();
        (problems.found() == before).then(|| Self {
            literal,
            content: document.into_content(),
            native,
            vars,
        })
    }

    /// Reads a stored message from its JSON.
    pub fn from_json(json: &str) -> Result<Self, Vec<Problem>> {
        let json = text::unmarked(json);
        let mut problems = Problems::default();
        problems.extend(half_character(json));
        let message = Fields::open("message", json, &mut problems)
            .and_then(|fields| Self::read(fields, &mut problems));
        let message = message.filter(|_| problems.is_empty());
        message.ok_or_else(|| problems.into())
    }
}

impl Content {
    /// The name of its type.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Image(_) => "image",
            Self::Audio(_) => "audio",
            Self::Video(_) => "video",
            Self::File(_) => "file",
            Self::Location { .. } => "location",
            Self::Notice(_) => "notice",
            Self::Mention { .. } => "mention",
            Self::Custom(_) => "custom",
            Self::Raw(_) => "raw",
            Self::Native => "native",
            Self::Template(_) => "template",
        }
    }

    /// The document of this content.
    pub fn document(&self) -> MessageDocument {
        let kind = match self {
            Self::Native | Self::Template(_) => None,
            content => Some(content.kind().to_owned()),
        };
        let empty = MessageDocument {
            kind,
            ..MessageDocument::default()
        };
        match self.clone() {
            Self::Text(text) | Self::Notice(text) => MessageDocument {
                text: Some(text),
                ..empty
            },
            Self::Image(file) | Self::Audio(file) | Self::Video(file) | Self::File(file) => {
                MessageDocument {
                    url: Some(file.url),
                    name: file.name,
                    size: file.size,
                    format: file.format,
                    md5: file.md5,
                    width: file.width,
                    height: file.height,
                    duration_ms: file.duration_ms,
                    cover: file.cover,
                    ..empty
                }
            }
            Self::Location {
                latitude,
                longitude,
                title,
            } => MessageDocument {
                latitude: Some(latitude),
                longitude: Some(longitude),
                title: (!title.is_empty()).then_some(title),
                ..empty
            },
            Self::Mention {
                text,
                users,
                everybody,
            } => MessageDocument {
                text: Some(text),
                users: (!users.is_empty()).then_some(users),
                everybody: everybody.then_some(true),
                ..empty
            },
            Self::Custom(data) | Self::Raw(data) => MessageDocument {
                data: Some(data),
                ..empty
            },
            Self::Native => empty,
            Self::Template(name) => MessageDocument {
                template: Some(name),
                ..empty
            },
        }
    }
}

impl From<Content> for MessageDocument {
    fn from(content: Content) -> Self {
        content.document()
    }
}

/// A document from a slice or a dead letter that is not a valid message.
#[derive(Debug, thiserror::Error)]
#[error("not a message: {}", super::fields::summary(.0))]
pub struct NotAMessage(Vec<Problem>);

impl TryFrom<MessageDocument> for Content {
    type Error = NotAMessage;

    fn try_from(document: MessageDocument) -> Result<Self, NotAMessage> {
        let native_alone = document.kind.is_none() && document.template.is_none();
        match document.problems() {
            problems if problems.is_empty() || native_alone => Ok(document.into_content()),
            problems => Err(NotAMessage(problems)),
        }
    }
}

fn read_raw(
    fields: &mut Fields<'_>,
    name: &'static str,
    problems: &mut Problems,
) -> Option<Box<RawValue>> {
    let value = fields.raw(name)?;
    let size = value.get().len();
    if size > DATA_BYTES_MAX {
        let what = format!("{size} bytes, at most {DATA_BYTES_MAX} are allowed");
        fields.problem(name, what, problems);
    }
    Some(value.to_owned())
}

fn read_object(
    fields: &mut Fields<'_>,
    name: &'static str,
    expected: &str,
    problems: &mut Problems,
) -> Option<Box<RawValue>> {
    let value = read_raw(fields, name, problems)?;
    if !value.get().starts_with('{') {
        fields.problem(name, format!("{expected} is expected"), problems);
    } else if let Some(twice) = name_twice(value.get()) {
        fields.problem(name, format!("{twice:?} {TWICE}"), problems);
    }
    Some(value)
}

fn read_values(
    fields: &mut Fields<'_>,
    expected: &str,
    problems: &mut Problems,
) -> Option<Box<RawValue>> {
    let values = read_object(fields, "vars", expected, problems)?;
    if problems.is_empty()
        && let Some(what) = wrong_values(values.get())
    {
        fields.problem("vars", what, problems);
    }
    Some(values)
}

fn read_mentions(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Vec<String>> {
    let users = fields.texts("users", MENTIONS_MAX, problems)?;
    for (index, user) in users.iter().enumerate() {
        if let Some(what) = wrong_id(user, RECIPIENT_BYTES_MAX) {
            let path = fields.path_of(&format!("users[{index}]"));
            problems.push(Problem::new(path, what));
        }
    }
    Some(users.into_iter().map(Cow::into_owned).collect())
}

impl Options {
    pub(super) fn read(mut fields: Fields<'_>, problems: &mut Problems) -> Self {
        let yes_no = "true or false";
        let options = Self {
            online_only: fields.get("online_only", yes_no, problems),
            unread: fields.get("unread", yes_no, problems),
            sync_once: fields.get("sync_once", yes_no, problems),
            expire_seconds: fields.get(
                "expire_seconds",
                "a number of seconds, 0 to 4294967295,",
                problems,
            ),
            sender_no_sense: fields.get("sender_no_sense", yes_no, problems),
            receiver_no_sense: fields.get("receiver_no_sense", yes_no, problems),
            push: fields
                .object("push", problems)
                .map(|push| Push::read(push, problems)),
            route: fields
                .object("route", problems)
                .map(|route| Route::read(route, problems)),
            moderation: fields
                .object("moderation", problems)
                .map(|moderation| Moderation::read(moderation, problems)),
            extension: read_raw(&mut fields, "extension", problems),
        };
        fields.finish(problems);
        options
    }
}

impl Push {
    fn read(mut fields: Fields<'_>, problems: &mut Problems) -> Self {
        let push = Self {
            enabled: fields.get("enabled", "true or false", problems),
            title: fields.line("title", LINE_BYTES_MAX, problems),
            text: fields.line("text", TEXT_BYTES_MAX, problems),
            payload: read_raw(&mut fields, "payload", problems),
            sound: fields.line("sound", NAME_BYTES_MAX, problems),
            badge: fields.get("badge", "true or false", problems),
            forced: fields.get("forced", "true or false", problems),
        };
        fields.finish(problems);
        push
    }
}

impl Route {
    fn read(mut fields: Fields<'_>, problems: &mut Problems) -> Self {
        let route = Self {
            enabled: fields.get("enabled", "true or false", problems),
            environment: fields.line("environment", NAME_BYTES_MAX, problems),
        };
        fields.finish(problems);
        route
    }
}

impl Moderation {
    fn read(mut fields: Fields<'_>, problems: &mut Problems) -> Self {
        let moderation = Self {
            enabled: fields.get("enabled", "true or false", problems),
            business_id: fields.line("business_id", NAME_BYTES_MAX, problems),
        };
        fields.finish(problems);
        moderation
    }
}

#[cfg(test)]
mod tests;
