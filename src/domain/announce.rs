//! The messages on `fanwise.dead` and `fanwise.events` for other services. Both are public
//! contracts with a JSON Schema in `schemas/`.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use strum::IntoStaticStr;

use super::accounts::Accounts;
use super::outcome::{Class, Outcome};

/// Recipients of one job that ended `failed` or `uncertain`, with everything needed to redrive them.
///
/// Dead letters are published at least once. After a crash the same recipient can appear again; the
/// later letter is the valid one.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DeadLetter {
    /// Version of this format: 1.
    pub v: u32,
    /// Job id, 24 hexadecimal digits.
    pub job: String,
    pub app: String,
    pub client_msg_no: String,
    pub target: String,
    /// The slice to which the recipients belong; unique within the job.
    pub slice: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
    /// The category of the message, whose frequency cap applies to a redrive too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// The recipients are groups of this kind, not users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_type: Option<u8>,
    /// The job keeps the ids of its messages, and so does a redrive.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_ids: bool,
    /// The message as the job carried it.
    #[schemars(with = "serde_json::Value")]
    pub message: Box<RawValue>,
    #[schemars(with = "serde_json::Value")]
    pub options: Box<RawValue>,
    /// RFC 3339 time of the first attempt for this slice.
    pub first_attempt_at: String,
    /// RFC 3339 time of the last attempt.
    pub last_attempt_at: String,
    pub recipients: Vec<DeadRecipient>,
}

/// One recipient in a dead letter.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DeadRecipient {
    pub recipient: String,
    /// The recipient's values for the placeholders of the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub vars: Option<Box<RawValue>>,
    /// `failed` or `uncertain`.
    pub outcome: Outcome,
    /// Class of the last answer.
    pub class: Class,
    /// The backend's code, such as `410`, `reason 4` or `timeout`.
    pub code: Cow<'static, str>,
    /// The backend's text.
    pub text: Cow<'static, str>,
    /// Attempts made, including the last one.
    pub attempts: u32,
}

/// An event of a job.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct JobEvent {
    /// Version of this format: 1.
    pub v: u32,
    pub event: EventKind,
    /// Job id, 24 hexadecimal digits.
    pub job: String,
    pub app: String,
    pub client_msg_no: String,
    pub target: String,
    /// RFC 3339 time.
    pub at: String,
    pub accounts: Accounts,
    pub pending: u64,
    /// Of a job with a second target, once it is completed: how many of those that count as `sent`
    /// that target reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Reached>,
    /// Only in a notice to `callback_url` or `reply_to`: repeats of it have the same id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

/// The recipients that the second target of a job reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Reached {
    pub target: String,
    pub sent: u64,
}

/// The routing key of an event is `<app>.<kind>`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum EventKind {
    /// A new job, or a job that further recipients extended.
    Accepted,
    /// Some recipients have their outcome. Each worker publishes at most one every few seconds per
    /// job.
    Progress,
    /// Every recipient has its outcome and the ledger agrees.
    Completed,
}

impl EventKind {
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}
