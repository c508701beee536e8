//! The types of content: which fields each of them requires and allows, and its two forms, the
//! document and the checked content.

use super::{Content, File, LINE_BYTES_MAX, MENTIONS_MAX, MessageDocument, TEXT_BYTES_MAX};
use crate::domain::fields::{Problem, summary};

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

/// The names of all types of content, in documents and in prices.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    KINDS.iter().map(|(kind, ..)| *kind).chain([NATIVE])
}

/// The type of a message that has only native fields.
const NATIVE: &str = "native";

/// What the rules say about a document.
pub(super) trait Rules {
    /// The problems of the document: fields that do not belong, missing fields, values out of
    /// bounds.
    fn problems(&self) -> Vec<Problem>;

    /// The content of a document that has no problems.
    fn into_content(self) -> Content;
}

impl Rules for MessageDocument {
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
        let set: Vec<_> = set(self).collect();
        for name in needs.iter().filter(|name| !set.contains(name)) {
            problem(name, format!("missing; {of} needs it"));
        }
        for name in &set {
            if !needs.contains(name) && !may.contains(name) {
                problem(name, format!("has no meaning in {of}"));
            }
        }
        check_values(self, &mut problem);
        problems
    }

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

/// The names of the type's fields that are set.
fn set(document: &MessageDocument) -> impl Iterator<Item = &'static str> {
    [
        ("text", document.text.is_some()),
        ("url", document.url.is_some()),
        ("name", document.name.is_some()),
        ("size", document.size.is_some()),
        ("format", document.format.is_some()),
        ("md5", document.md5.is_some()),
        ("width", document.width.is_some()),
        ("height", document.height.is_some()),
        ("duration_ms", document.duration_ms.is_some()),
        ("cover", document.cover.is_some()),
        ("latitude", document.latitude.is_some()),
        ("longitude", document.longitude.is_some()),
        ("title", document.title.is_some()),
        ("users", document.users.is_some()),
        ("everybody", document.everybody.is_some()),
        ("data", document.data.is_some()),
    ]
    .into_iter()
    .filter_map(|(name, set)| set.then_some(name))
}

fn check_values(document: &MessageDocument, problem: &mut impl FnMut(&str, String)) {
    let mut length = |name: &str, text: &Option<String>, most: usize| {
        let size = text.as_ref().map_or(1, String::len);
        if size == 0 || size > most {
            problem(name, format!("{size} bytes, 1 to {most} are allowed"));
        }
    };
    length("text", &document.text, TEXT_BYTES_MAX);
    for (name, text) in [
        ("url", &document.url),
        ("name", &document.name),
        ("format", &document.format),
        ("cover", &document.cover),
        ("title", &document.title),
        ("template", &document.template),
    ] {
        length(name, text, LINE_BYTES_MAX);
    }
    if let Some(md5) = &document.md5
        && (md5.len() != 32 || !md5.bytes().all(|digit| digit.is_ascii_hexdigit()))
    {
        problem("md5", format!("{md5:?} is not 32 hexadecimal digits"));
    }
    for (name, degrees, most) in [
        ("latitude", document.latitude, 90.0),
        ("longitude", document.longitude, 180.0),
    ] {
        if degrees.is_some_and(|degrees| !(-most..=most).contains(&degrees)) {
            problem(name, format!("is not -{most} to {most} degrees"));
        }
    }
    if document
        .users
        .as_ref()
        .is_some_and(|users| users.len() > MENTIONS_MAX)
    {
        problem("users", format!("more than {MENTIONS_MAX} mentions"));
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
#[error("not a message: {}", summary(.0))]
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
