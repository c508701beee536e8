//! The message of a job and its delivery options, in one model for all targets.
//!
//! A producer writes a `MessageDocument`; slices, dead letters and webhooks carry the same form.
//! `Content` is the checked form, in which every field belongs to its type. Each target maps it
//! (`domain::mapping`).
//!
//! `kinds` has the rules of each type, `parse` the reading of both from a job.

mod kinds;
mod parse;

pub use fanwise_client::{Message as MessageDocument, Moderation, Options, Push, Route};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

pub use self::kinds::{NotAMessage, kinds};
pub(in crate::domain) use self::parse::options_from_fields;

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

/// The value of a text field: a JSON string as its text, anything else as JSON.
pub fn plain_text(value: &RawValue) -> String {
    serde_json::from_str(value.get()).unwrap_or_else(|_| value.get().to_owned())
}

#[cfg(test)]
mod tests;
