//! The bodies of calls to a webhook target, and of their answers.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use strum::{EnumString, IntoStaticStr, VariantArray};

use crate::message::{Message, Options};

/// The body of a call to a webhook target.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(deny_unknown_fields))]
#[cfg_attr(feature = "schema", schemars(rename = "CallDocument"))]
pub struct Call {
    /// The id of the job.
    pub job: String,
    pub app: String,
    /// The key of the job within its app.
    pub client_msg_no: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
    /// The kind of group, if the recipients are groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_type: Option<u8>,
    /// The message as the producer wrote it; a personal message is rendered for the recipient.
    pub message: Message,
    /// The options of the job.
    pub options: Options,
    /// The recipient, if `recipients_per_call` is 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    /// The recipients, if `recipients_per_call` is above 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 1000)))]
    pub recipients: Option<Vec<String>>,
}

/// The body of an answer with a status that means success. An empty body and a plain text mean that
/// all recipients of the call got the message.
#[derive(Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "AnswerDocument"))]
pub struct Answer {
    /// The recipients that did not get the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<Vec<Failed>>,
}

/// A recipient that did not get the message.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "FailedDocument"))]
pub struct Failed {
    pub recipient: String,
    /// A text or a number that appears in the dead letter; `failed` if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<Value>,
    /// Appears in the dead letter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What follows; `permanent` if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<Class>,
}

/// The meaning of a target's answer for its recipients.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    EnumString,
    IntoStaticStr,
    VariantArray,
)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Class {
    /// Accepted.
    Done,
    /// Refused permanently: no later attempt can succeed.
    Permanent,
    /// Not accepted, may be accepted later; costs an attempt.
    Transient,
    /// Not accepted because we are too fast: the lane waits, no attempt is spent.
    Throttled,
    /// Possibly accepted: the reply was lost, or says so. The policy decides (promise 4).
    Uncertain,
    /// Our configuration is wrong (signature, token, permission): the job is parked, and with a
    /// second job the target. No recipient is dead-lettered (promise 10).
    Config,
}

impl Class {
    pub const ALL: &'static [Self] = Self::VARIANTS;

    pub fn as_str(self) -> &'static str {
        self.into()
    }
}
