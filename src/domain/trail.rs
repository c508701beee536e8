//! The audit trail of a job: who changed it, how, when, why and from where.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::fields::shorten;
use super::moment;
use super::printable::on_one_line;

/// The most entries that a job keeps. When there are more, the oldest go.
pub const TRAIL_MAX: usize = 100;

/// The most bytes of a reason, and of an author.
pub const REASON_BYTES_MAX: usize = 500;
pub const AUTHOR_BYTES_MAX: usize = 100;

/// How a change was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// The command line, with access to the store.
    #[default]
    Cli,
    Http,
    /// The console in the browser.
    Console,
    /// A worker, by itself.
    Worker,
}

impl Via {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cli => "cli",
            Self::Http => "http",
            Self::Console => "console",
            Self::Worker => "worker",
        }
    }
}

/// Where a change came from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Origin {
    pub via: Via,
    /// Whose token was used: `administrator`, or an app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// The network address of the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// One change of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TrailEntry {
    #[serde(rename = "at", with = "moment")]
    #[schemars(with = "String")]
    pub at_ms: u64,
    /// Such as `cancel`, `pause` or `rate`.
    pub action: String,
    /// The new value, or how the job was selected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// As the command names it; the caller is what Fanwise knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(flatten)]
    pub origin: Origin,
}

/// A text from outside, bounded and without control characters.
pub fn bounded(text: &str, bytes_max: usize) -> String {
    shorten(&on_one_line(text), bytes_max).into_owned()
}

/// `cancel by ana: wrong picture (cli)`
impl fmt::Display for TrailEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.action)?;
        if let Some(detail) = &self.detail {
            write!(f, " {detail}")?;
        }
        if let Some(author) = &self.author {
            write!(f, " by {author}")?;
        }
        if let Some(reason) = &self.reason {
            write!(f, ": {reason}")?;
        }
        let Origin {
            via,
            caller,
            address,
        } = &self.origin;
        write!(f, " ({}", via.as_str())?;
        for part in [caller, address].into_iter().flatten() {
            write!(f, ", {part}")?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_reads_as_a_line() {
        let mut entry = TrailEntry {
            at_ms: 1000,
            action: "rate".to_owned(),
            detail: Some("5/s".to_owned()),
            author: Some("ana".to_owned()),
            reason: Some("slow".to_owned()),
            origin: Origin {
                via: Via::Http,
                caller: Some("administrator".to_owned()),
                address: Some("10.0.0.1".to_owned()),
            },
        };
        let line = "rate 5/s by ana: slow (http, administrator, 10.0.0.1)";
        assert_eq!(entry.to_string(), line);
        let json = serde_json::to_string(&entry).unwrap();
        assert_eq!(serde_json::from_str::<TrailEntry>(&json).unwrap(), entry);
        entry.detail = None;
        entry.author = None;
        entry.reason = None;
        entry.origin = Origin::default();
        assert_eq!(entry.to_string(), "rate (cli)");
    }

    #[test]
    fn texts_from_outside_are_bounded_and_harmless() {
        let text = bounded("a\u{1b}[31m\nb", 100);
        assert!(!text.chars().any(char::is_control), "{text:?}");
        assert!(bounded(&"x".repeat(1000), 10).chars().count() <= 11);
    }
}
