//! Who gets a message.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The recipients of the message: one of `users`, `groups` and `all`.
#[derive(Clone, Debug, Default, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "Audience", deny_unknown_fields))]
pub struct Audience {
    /// Recipients, at most 100,000 in one message.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(max = 100_000)))]
    pub users: Option<Vec<Recipient>>,
    /// Ids of groups; the message is sent once to each, as a group.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "schema",
        schemars(length(max = 100_000), inner(length(min = 1, max = 255)))
    )]
    pub groups: Option<Vec<String>>,
    /// The target's number for the kind of group; 2 if left out. WuKongIM has others.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 2, max = 255)))]
    pub group_type: Option<u8>,
    /// All users of the target; the job must set `"confirm_all": true` too.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[cfg_attr(feature = "schema", schemars(default))]
    pub all: bool,
    /// Recipients to leave out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(default, length(max = 100_000)))]
    pub exclude: Vec<String>,
    /// The address of a list of users, instead of `users`. Only over HTTP: the gateway fetches the
    /// list before it accepts the job. The app's configuration names the hosts that are allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 2048)))]
    pub url: Option<String>,
    /// The format of the list at `url`; by its content type or the ending of its path if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<ListFormat>,
    /// The column (CSV) or field (NDJSON) of the list at `url` that holds the recipient.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 256)))]
    pub column: Option<String>,
    /// The other columns of the CSV at `url` are the recipient's values for placeholders.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[cfg_attr(feature = "schema", schemars(default))]
    pub vars: bool,
    /// The SHA-256 that the list at `url` must have, 64 hexadecimal digits; another list is
    /// refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(min = 64, max = 64)))]
    pub sha256: Option<String>,
    /// The entity tag that the list at `url` must have; another version is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(max = 256)))]
    pub etag: Option<String>,
    /// The version of the list that `users` came from. The gateway sets it when it has fetched the
    /// list; the record of the job shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fetched: Option<FetchedList>,
}

/// How a list at an address is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum ListFormat {
    /// One recipient a line; blank lines and lines that begin with `#` are skipped.
    Lines,
    /// With a heading that names the column of the recipients, or with one column.
    Csv,
    /// One JSON value a line: a text, or an object with `id` and `vars`.
    Ndjson,
}

/// The version of a list that the recipients of a job came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct FetchedList {
    /// Its address, without the query, which may contain credentials.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 2048)))]
    pub url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(max = 256)))]
    pub etag: Option<String>,
    /// 64 hexadecimal digits.
    #[cfg_attr(feature = "schema", schemars(length(min = 64, max = 64)))]
    pub sha256: String,
    pub bytes: u64,
}

/// `https://a/users.csv, etag "7", sha256 9f86…, 1024 bytes`
impl fmt::Display for FetchedList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)?;
        if let Some(etag) = &self.etag {
            write!(f, ", etag {etag:?}")?;
        }
        write!(f, ", sha256 {}, {} bytes", self.sha256, self.bytes)
    }
}

impl Audience {
    /// These users.
    pub fn users(users: impl IntoIterator<Item = impl Into<Recipient>>) -> Self {
        Self {
            users: Some(users.into_iter().map(Into::into).collect()),
            ..Self::default()
        }
    }

    /// All users of the target. The job must set `confirm_all` too.
    pub fn everybody() -> Self {
        Self {
            all: true,
            ..Self::default()
        }
    }
}

/// A recipient: its id alone, or with values for the placeholders in the message.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "Member"))]
#[serde(untagged)]
pub enum Recipient {
    /// 1 to 255 bytes.
    Id(String),
    WithVars {
        /// 1 to 255 bytes.
        #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 255)))]
        id: String,
        /// At most 16 KiB.
        #[cfg_attr(
            feature = "schema",
            schemars(with = "serde_json::Map<String, serde_json::Value>")
        )]
        vars: Box<RawValue>,
    },
}

impl Recipient {
    /// A recipient with or without its own values.
    pub fn new(id: String, vars: Option<Box<RawValue>>) -> Self {
        match vars {
            Some(vars) => Self::WithVars { id, vars },
            None => Self::Id(id),
        }
    }

    pub fn id(&self) -> &str {
        match self {
            Self::Id(id) | Self::WithVars { id, .. } => id,
        }
    }

    pub fn vars(&self) -> Option<&RawValue> {
        match self {
            Self::Id(_) => None,
            Self::WithVars { vars, .. } => Some(vars),
        }
    }
}

impl From<String> for Recipient {
    fn from(id: String) -> Self {
        Self::Id(id)
    }
}

impl From<&str> for Recipient {
    fn from(id: &str) -> Self {
        Self::Id(id.to_owned())
    }
}
