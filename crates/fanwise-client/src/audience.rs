//! Who gets a message.

use serde::Serialize;
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
