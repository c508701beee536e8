//! What a server answers about jobs.

use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr, VariantArray, VariantNames};

use crate::audience::FetchedList;
use crate::id::JobId;
use crate::message::Message;

/// The answer to a submitted job.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Submitted {
    /// 24 hexadecimal digits.
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub job: JobId,
    pub target: String,
    /// List entries of this submission, repeats included.
    pub recipients: u64,
    /// Number of messages that carry it.
    pub messages: u32,
    /// Nothing was accepted: the request was a dry run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// The version of the list, if the gateway fetched it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched: Option<FetchedList>,
    /// Features that the target does not support and that the job goes on without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// In a dry run, the message as the first recipients would get it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preview: Vec<Preview>,
    /// In a dry run, what sending the job would take; null for all users of a target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<Estimate>,
    /// Progress of the job, if it was known before or if the request waited for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standing: Option<JobStanding>,
}

/// The message as one recipient would get it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Preview {
    pub recipient: String,
    /// With the placeholders filled in; null if that is not possible.
    #[serde(default)]
    pub message: Option<Message>,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What sending a job would take. Retries and other jobs are not in it, nor are the sending hours of
/// recipients in zones of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Estimate {
    /// Recipients for whom a personal message was rendered, at most 100,000.
    pub rendered: u64,
    /// Those of them who would fail: they lack a value, or the message does not fit the target.
    pub would_fail: u64,
    /// Calls to the target.
    pub calls: u64,
    /// Bytes of their requests, about.
    pub bytes: u64,
    /// The time until the last recipient can be sent to, at least: with the limits in force, the pace,
    /// the start time and the sending hours of the job. Null if there are none.
    #[serde(default)]
    pub seconds: Option<u64>,
    /// What takes this time.
    #[serde(default)]
    pub limit: Option<String>,
    /// The same for programs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<TimeLimit>,
}

/// What makes a job take time: a code, and values. Rates and sending hours are written as in the
/// configuration, times as RFC 3339.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, VariantNames)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "code", content = "values", rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum TimeLimit {
    /// A limit: `target`, `target_daily`, `app`, `app_daily`, `job`, `sender` or `shared`.
    Limit {
        limit: String,
        /// The target, the app, the sender or the shared limit.
        name: String,
        target: String,
        rate: String,
    },
    /// The job is spread evenly until this time.
    Spread { pace_until: String },
    /// It starts at this time.
    NotBefore { at: String },
    /// It is sent within these hours only.
    Hours { window: String },
}

/// Progress of a job.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct JobStanding {
    pub state: JobState,
    pub accounts: Accounts,
    pub pending: u64,
}

#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    serde::Serialize,
    serde::Deserialize,
    EnumString,
    IntoStaticStr,
    VariantArray,
)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum JobState {
    /// Durable with the broker; no worker has registered it yet.
    Accepted,
    Running,
    Completed,
}

impl JobState {
    pub const ALL: &'static [Self] = Self::VARIANTS;

    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Counts the recipients of a job by outcome. `total` counts list entries: a user that is listed
/// twice counts twice, once as sent and once as duplicate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Accounts {
    pub total: u64,
    pub sent: u64,
    pub duplicate: u64,
    pub failed: u64,
    pub uncertain: u64,
    pub expired: u64,
    pub cancelled: u64,
    /// Recipients that had reached the frequency cap of the job's category.
    #[serde(default)]
    pub capped: u64,
}

impl Accounts {
    /// Recipients that have an outcome.
    pub fn settled(&self) -> u64 {
        let Self {
            total: _,
            sent,
            duplicate,
            failed,
            uncertain,
            expired,
            cancelled,
            capped,
        } = self;
        [
            sent, duplicate, failed, uncertain, expired, cancelled, capped,
        ]
        .into_iter()
        .sum()
    }

    /// Recipients that have none yet.
    pub fn pending(&self) -> u64 {
        self.total.saturating_sub(self.settled())
    }
}

/// A job, as far as its producer needs to know it. A server tells more.
#[derive(Clone, Debug, Deserialize)]
pub struct JobView {
    pub job: JobId,
    pub app: String,
    pub client_msg_no: String,
    pub target: String,
    pub state: JobState,
    pub accounts: Accounts,
    /// Recipients without an outcome.
    pub pending: u64,
    /// Lists of the job that workers have taken.
    #[serde(default)]
    pub submissions: u64,
    /// RFC 3339 times in UTC.
    pub accepted_at: String,
    #[serde(default)]
    pub completed_at: Option<String>,
    /// Recipients whose outcome is not known any more; they count as uncertain.
    #[serde(default)]
    pub lost: u64,
    /// Features that the target does not support and that the job goes on without.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Over the last seconds; `None` while too little is known and when the job is completed.
    #[serde(default)]
    pub recipients_per_second: Option<f64>,
    #[serde(default)]
    pub eta_seconds: Option<u64>,
}

/// Why a server refused a request: an `application/problem+json` (RFC 9457).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Problem {
    /// What it is about.
    #[serde(default)]
    pub title: String,
    /// What is wrong, where, and what to do.
    pub detail: String,
    /// Each problem with its field, if the job or the request has several.
    #[serde(default)]
    pub problems: Vec<FieldProblem>,
    /// The job that the key belongs to, after a conflict.
    #[serde(default)]
    pub job: Option<JobId>,
}

/// A problem of one field.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct FieldProblem {
    /// Its path, such as `audience.users[3]`; empty for the whole document.
    pub field: String,
    pub what: String,
}
