//! The message of a job and the options of its delivery.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::fields::{Fields, Problem};

/// Largest `text` of a message, in bytes. The tightest documented limit among the targets is 5,000
/// characters (NetEase); a target's own limit is checked when the job is accepted.
pub const TEXT_BYTES_MAX: usize = 20_000;

/// Largest `data` or `native` of a message, in bytes of JSON.
pub const DATA_BYTES_MAX: usize = 64 * 1024;

/// What is said to every recipient.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// Plain text.
    Text(String),
    /// Application data: any JSON value, passed through byte for byte.
    Custom(Box<RawValue>),
    /// The target's own message body, passed through untouched.
    Native(Box<RawValue>),
}

/// How the message is to be delivered; what a target cannot honour it refuses at acceptance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Options {
    /// Only to recipients that are online; not stored.
    pub online_only: bool,
    /// Counts as unread (the red dot).
    pub unread: bool,
    /// A command message that each recipient's devices see once, outside of conversations.
    pub sync_once: bool,
    /// Seconds after which the backend may drop the message; 0 is never.
    pub expire_seconds: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            online_only: false,
            unread: true,
            sync_once: false,
            expire_seconds: 0,
        }
    }
}

impl Content {
    /// Reads `message`: `{"type":"text","text":…}`, `{"type":"custom","data":…}` or `{"native":…}`.
    pub(super) fn read(mut fields: Fields<'_>, problems: &mut Vec<Problem>) -> Option<Self> {
        let kind: Option<String> = fields.get("type", "a text", problems);
        let text: Option<String> = fields.get("text", "a text", problems);
        let data = fields.raw("data");
        let native = fields.raw("native");
        for (name, value) in [("data", data), ("native", native)] {
            if let Some(value) = value
                && value.get().len() > DATA_BYTES_MAX
            {
                let size = value.get().len();
                fields.problem(
                    name,
                    format!("{size} bytes, at most {DATA_BYTES_MAX} are taken"),
                    problems,
                );
            }
        }
        let content = match (kind.as_deref(), text, data, native) {
            (Some("text"), Some(text), None, None) => {
                if text.is_empty() || text.len() > TEXT_BYTES_MAX {
                    let what = format!("{} bytes, 1 to {TEXT_BYTES_MAX} are taken", text.len());
                    fields.problem("text", what, problems);
                }
                Some(Self::Text(text))
            }
            (Some("custom"), None, Some(data), None) => Some(Self::Custom(data.to_owned())),
            (None, None, None, Some(native)) => Some(Self::Native(native.to_owned())),
            (Some(other), ..) if !["text", "custom"].contains(&other) => {
                fields.problem(
                    "type",
                    format!("{other:?} is not one of text, custom"),
                    problems,
                );
                None
            }
            _ => {
                let what = "one of these is expected: {\"type\":\"text\",\"text\":…}, \
                            {\"type\":\"custom\",\"data\":…}, {\"native\":…}";
                fields.problem("type", what, problems);
                None
            }
        };
        fields.finish(problems);
        content
    }
}

impl Options {
    pub(super) fn read(mut fields: Fields<'_>, problems: &mut Vec<Problem>) -> Self {
        let yes_no = "true or false";
        let default = Self::default();
        let options = Self {
            online_only: fields
                .get("online_only", yes_no, problems)
                .unwrap_or(default.online_only),
            unread: fields
                .get("unread", yes_no, problems)
                .unwrap_or(default.unread),
            sync_once: fields
                .get("sync_once", yes_no, problems)
                .unwrap_or(default.sync_once),
            expire_seconds: fields
                .get(
                    "expire_seconds",
                    "a number of seconds, 0 to 4294967295,",
                    problems,
                )
                .unwrap_or(default.expire_seconds),
        };
        fields.finish(problems);
        options
    }
}
