//! The answers of the HTTP interface, for its server and for our own client.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
pub use fanwise_client::{Estimate, JobStanding, Preview, Submitted, TimeLimit};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use strum::{IntoStaticStr, VariantNames};

use crate::domain::accounts::Audit;
use crate::domain::ids::JobId;
use crate::domain::lane::Priority;
use crate::domain::letters::{DeadFilter, DeadRow};
use crate::domain::limits::Rate;
use crate::domain::message_id::{KeptId, RecallState};
use crate::domain::moment;
use crate::domain::outcome::{Class, TargetAnswer};
use crate::domain::trail::TrailEntry;
use crate::ports::{JobRecord, LedgerError, RetainedMessage, StoredTemplate};
use crate::service::control::Hindrance;
use crate::service::dead_letters::ResolveAs;

/// The process that answers, and what the caller may do with it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct About {
    pub version: String,
    pub engine: Engine,
    /// The time of this process.
    pub now: String,
    pub role: Role,
    /// The apps that the caller may submit jobs of.
    pub apps: Vec<AppAbout>,
    /// The names of all targets, for the administrator.
    pub targets: Vec<String>,
    /// The parts that must work so that jobs are accepted and sent.
    pub parts: Vec<PartAbout>,
    /// Largest uploaded list, in bytes.
    pub upload_bytes_max: u64,
}

/// Where jobs, accounts and limits are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// In one file of this machine.
    Embedded,
    /// In RabbitMQ and Redis.
    Servers,
}

/// What the caller may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything.
    Administrator,
    /// Submit, read and steer the jobs of one app.
    App,
    /// Submit and read the jobs of the apps that need no token.
    Anonymous,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AppAbout {
    pub name: String,
    /// The target of jobs that name none.
    pub default_target: Option<String>,
    /// The configured limit.
    pub limit: Option<Rate>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PartAbout {
    pub name: String,
    pub works: bool,
    /// Why not, or what is known of it.
    pub what: String,
    /// Number of workers that are running; only of the part `workers`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<u64>,
}

impl From<&JobRecord> for JobStanding {
    fn from(record: &JobRecord) -> Self {
        Self {
            state: record.state,
            accounts: record.accounts,
            pending: record.pending,
        }
    }
}

/// A job compared with its ledger.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Verification {
    pub record: JobRecord,
    pub ledger: Audit,
    pub differences: Vec<String>,
}

/// A page of jobs, newest first.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct JobList {
    /// Their `hindrances` say only what stops them; one job tells which limits it has reached.
    pub jobs: Vec<JobDetail>,
    /// `cursor` of the next page; null on the last one. A page with a next one may hold fewer jobs
    /// than requested.
    pub next: Option<String>,
}

/// A job with its speed, and the reasons why it is not faster.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct JobDetail {
    #[serde(flatten)]
    pub record: JobRecord,
    /// Over the last 5 to 10 seconds; 0 when the job does not move, null while too little is known
    /// and when it is completed.
    pub recipients_per_second: Option<f64>,
    /// Time until every recipient has an outcome, at this speed.
    pub eta_seconds: Option<u64>,
    /// Empty when the job is completed, and while too little is known.
    pub hindrances: Vec<Hindrance>,
    /// Who changed the job, how, when, why and from where, oldest first: the last 100 changes. Only
    /// with one job, not in lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub audit_trail: Vec<TrailEntry>,
}

impl JobDetail {
    pub(crate) fn of(record: JobRecord, hindrances: Vec<Hindrance>, now_ms: u64) -> Self {
        let recipients_per_second = record.per_second(now_ms);
        let eta_seconds = recipients_per_second
            .filter(|rate| *rate > 0.0)
            .map(|rate| (record.pending as f64 / rate).ceil() as u64);
        Self {
            record,
            recipients_per_second,
            eta_seconds,
            hindrances,
            audit_trail: Vec::new(),
        }
    }
}

/// The state of one recipient of a job.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RecipientFate {
    /// 24 hexadecimal digits.
    #[schemars(with = "String")]
    pub job: JobId,
    pub app: String,
    pub client_msg_no: String,
    pub target: String,
    pub recipient: String,
    pub state: RecipientState,
    /// An explanation of the state.
    pub explanation: String,
    /// The same for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<FateCode>,
    /// Its dead letter, if it failed or is uncertain and the letter still exists.
    pub dead_letter: Option<DeadRow>,
    /// Its message, if the job keeps ids and the target named one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<MessageView>,
}

/// Why a recipient is in its state.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    JsonSchema,
    IntoStaticStr,
    VariantNames,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum FateCode {
    /// It was not on the list of the job.
    NotOnTheList,
    /// It was not on the list, or its outcome was lost and it was not sent to.
    NotOnTheListOrLost,
    /// It was not on the list, or its outcome was lost and perhaps it has the message.
    NotOnTheListOrPerhapsSent,
    /// It waits for its turn or its next attempt, or is not on the list.
    Waits,
    /// A worker has claimed it.
    Claimed,
    /// A call for it was not answered; it waits for its next attempt.
    NotAnswered,
    /// A worker that had claimed it stopped without an answer; the next delivery decides.
    WorkerStopped,
    /// A call for it may have been made, and nothing is left to deliver.
    NothingLeft,
    /// The target accepted the message.
    Accepted,
    /// The second target accepted the message.
    AcceptedBySecond,
    /// The target did not accept the message; the dead letter, if there is one, has its last answer.
    Refused,
    /// Perhaps sent; the dead letter, if there is one, has the last answer.
    PerhapsSent,
    JobExpired,
    JobCancelled,
    /// It had reached the frequency cap of the job's category.
    CapReached,
}

impl FateCode {
    pub fn state(self) -> RecipientState {
        match self {
            Self::NotOnTheList
            | Self::NotOnTheListOrLost
            | Self::NotOnTheListOrPerhapsSent
            | Self::Waits => RecipientState::Unseen,
            Self::Claimed => RecipientState::Claimed,
            Self::NotAnswered | Self::WorkerStopped | Self::NothingLeft => RecipientState::InDoubt,
            Self::Accepted | Self::AcceptedBySecond => RecipientState::Sent,
            Self::Refused => RecipientState::Failed,
            Self::PerhapsSent => RecipientState::Uncertain,
            Self::JobExpired => RecipientState::Expired,
            Self::JobCancelled => RecipientState::Cancelled,
            Self::CapReached => RecipientState::Capped,
        }
    }

    pub fn explanation(self) -> &'static str {
        match self {
            Self::NotOnTheList => "was not on the list of this job",
            Self::NotOnTheListOrLost => {
                "has no outcome: it was not on the list of this job, or is one of those whose outcome was \
                 lost; submit the job again to send to these"
            }
            Self::NotOnTheListOrPerhapsSent => {
                "has no outcome: it was not on the list of this job, or is one of those whose outcome was \
                 lost, and perhaps has the message"
            }
            Self::Waits => {
                "has no outcome and no claim: it waits for its turn or its next attempt, or is not on \
                 the list"
            }
            Self::Claimed => "a worker has claimed it",
            Self::NotAnswered => {
                "a call for it was not answered: perhaps sent; it waits for its next attempt"
            }
            Self::WorkerStopped => {
                "a worker that had claimed it stopped without an answer: perhaps sent; the next delivery \
                 decides"
            }
            Self::NothingLeft => {
                "a call for it may have been made, and nothing is left to deliver: perhaps sent"
            }
            Self::Accepted => "the target accepted the message",
            Self::AcceptedBySecond => "the second target accepted the message",
            Self::Refused => "the target did not accept the message",
            Self::PerhapsSent => "perhaps sent, perhaps not",
            Self::JobExpired => "the job expired first",
            Self::JobCancelled => "the job was cancelled first",
            Self::CapReached => "it had reached the frequency cap of the job's category",
        }
    }
}

/// A message as its target names it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "MessageId")]
pub struct MessageView {
    pub id: String,
    /// When the target took it, if the target says so.
    #[serde(
        rename = "at",
        with = "moment::optional",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub at_ms: Option<u64>,
    /// The second target of the job has it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_fallback: bool,
    /// Whether it was recalled.
    pub recall: RecallState,
}

impl From<KeptId> for MessageView {
    fn from(kept: KeptId) -> Self {
        Self {
            id: kept.message.id,
            at_ms: kept.message.at_ms,
            by_fallback: kept.by_fallback,
            recall: kept.recall,
        }
    }
}

/// The state of one of many recipients, as one line of NDJSON.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RecipientRow {
    pub recipient: String,
    pub state: RecipientState,
    /// An explanation of the state.
    pub explanation: String,
    /// Why it failed or is uncertain: the last answer. The ledger keeps this of the first 10,000
    /// recipients of a job; the dead letters have all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<Class>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// Its message, if the job keeps ids and the target named one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<MessageView>,
}

/// Recalls the messages of a job.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct RecallRequest {
    /// Must be true: a recall cannot be undone.
    #[serde(default)]
    pub confirm: bool,
    /// Only count.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
}

/// What became of the messages of a job.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RecallResult {
    /// 24 hexadecimal digits.
    #[schemars(with = "String")]
    pub job: JobId,
    /// Messages whose id the ledger keeps.
    pub messages: u64,
    /// Messages that are recalled, by this request or before.
    pub recalled: u64,
    /// Messages that the target says cannot be recalled.
    pub refused: u64,
    /// Messages at a target that recalls none.
    pub elsewhere: u64,
    /// Messages to be recalled: repeat the request until it is 0.
    pub left: u64,
    /// Recipients that count as sent and whose messages have no id.
    pub without_id: u64,
    /// Calls of this request that failed; their messages are among those that are left.
    pub failed: u64,
    /// Why the request ended early: the answer of the target, or what holds the target up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
    /// When to repeat the request, if it is to wait: for the target, or for its limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u64>,
}

impl RecallResult {
    /// Nothing is counted yet.
    pub fn of(record: &JobRecord) -> Self {
        Self {
            job: record.job,
            messages: 0,
            recalled: 0,
            refused: 0,
            elsewhere: 0,
            left: 0,
            without_id: 0,
            failed: 0,
            stopped: None,
            retry_after_seconds: None,
        }
    }

    /// Counts the answer to one recall. Returns whether the message has its result.
    pub fn add(&mut self, answer: &TargetAnswer) -> bool {
        let counter = match answer.class {
            Class::Done => &mut self.recalled,
            Class::Permanent => &mut self.refused,
            _ => {
                self.failed += 1;
                return false;
            }
        };
        *counter += 1;
        self.left = self.left.saturating_sub(1);
        true
    }

    /// The request ends because the target is held up, for so many seconds.
    pub fn stop_because(&mut self, (why, seconds): (String, Option<u64>)) {
        self.stopped = Some(why);
        self.retry_after_seconds = seconds;
    }

    /// The request ends with this answer.
    pub fn stop(&mut self, answer: &TargetAnswer) {
        let (class, code, text) = (answer.class.as_str(), &answer.code, &answer.text);
        self.stopped = Some(format!("the target answers {class} {code}: {text}"));
        let wait = answer
            .retry_after
            .filter(|_| answer.class == Class::Throttled);
        self.retry_after_seconds = wait.map(|wait| wait.as_millis().div_ceil(1000) as u64);
    }
}

/// Resolves uncertain recipients of a job.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct ResolveRequest {
    pub to: ResolveAs,
    /// The recipients, at most 20,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipients: Option<BTreeSet<String>>,
    /// Must be true to resolve all uncertain recipients that have a dead letter, if `recipients` is
    /// left out.
    #[serde(default)]
    pub all: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum RecipientState {
    /// No outcome and no claim: its turn has not come, or it is not on the list.
    Unseen,
    /// A worker has claimed it.
    Claimed,
    /// A worker that had claimed it stopped without an answer.
    InDoubt,
    Sent,
    Failed,
    Uncertain,
    Expired,
    Cancelled,
    /// It had reached the frequency cap of the job's category.
    Capped,
}

impl RecipientState {
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// A page of dead letters, one row per recipient, ordered by job and recipient.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DeadList {
    pub letters: Vec<DeadRow>,
    /// `cursor` of the next page; null on the last one.
    pub next: Option<String>,
}

/// Selects the dead letters to send again, and how.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct RedriveRequest {
    #[serde(flatten)]
    pub filter: DeadFilter,
    /// Must be true to redrive all letters, that is, if no other field selects some. Not needed
    /// with `dry_run`.
    #[serde(default)]
    pub confirm: bool,
    /// Redrive uncertain recipients too. They may have got the message, and may get it twice.
    /// `outcome` = `uncertain` selects them alone.
    #[serde(default)]
    pub uncertain: bool,
    /// Only counts the recipients.
    #[serde(default)]
    pub dry_run: bool,
    /// Purges the letters once a worker has accepted the new job.
    #[serde(default)]
    pub purge: bool,
    /// Priority of the new job.
    #[serde(default)]
    pub priority: Priority,
}

/// Selects the dead letters to remove permanently.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct PurgeRequest {
    #[serde(flatten)]
    pub filter: DeadFilter,
    /// Must be true, unless `dry_run` is: a purge cannot be undone.
    #[serde(default)]
    pub confirm: bool,
    /// Only counts the recipients.
    #[serde(default)]
    pub dry_run: bool,
}

/// A stored message.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TemplateView {
    pub app: String,
    pub name: String,
    pub version: u32,
    #[serde(rename = "put_at", alias = "put_at_ms", with = "moment")]
    #[schemars(with = "String")]
    pub put_at_ms: u64,
    #[schemars(with = "serde_json::Value")]
    pub message: Box<RawValue>,
}

impl TemplateView {
    pub fn of(app: &str, name: &str, stored: StoredTemplate) -> Result<Self, LedgerError> {
        // It was checked to be JSON when it was stored.
        let message = RawValue::from_string(stored.message).map_err(|error| {
            LedgerError::Broken(format!("stored message {name:?} of app {app:?}: {error}"))
        })?;
        Ok(Self {
            app: app.to_owned(),
            name: name.to_owned(),
            version: stored.version,
            put_at_ms: stored.put_at_ms,
            message,
        })
    }
}

/// A stored message in a list.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TemplateRow {
    pub app: String,
    pub name: String,
    /// The newest version.
    pub version: u32,
}

impl TemplateRow {
    pub fn all(app: &str, stored: Vec<(String, u32)>) -> Vec<Self> {
        let row = |(name, version)| Self {
            app: app.to_owned(),
            name,
            version,
        };
        stored.into_iter().map(row).collect()
    }
}

/// A message of a retained queue, as one line of NDJSON.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct KeptLine {
    /// Base64, because a rejected message need not be text.
    pub body: String,
    pub routing_key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    #[serde(
        rename = "published_at",
        with = "moment::optional",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub published_at_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}

impl From<RetainedMessage> for KeptLine {
    fn from(message: RetainedMessage) -> Self {
        Self {
            body: STANDARD.encode(&message.body),
            routing_key: message.routing_key,
            message_id: message.message_id,
            published_at_ms: message.published_at.map(|seconds| seconds * 1000),
            headers: message.headers,
        }
    }
}

impl TryFrom<KeptLine> for RetainedMessage {
    type Error = base64::DecodeError;

    fn try_from(line: KeptLine) -> Result<Self, base64::DecodeError> {
        Ok(Self {
            body: Bytes::from(STANDARD.decode(line.body)?),
            routing_key: line.routing_key,
            message_id: line.message_id,
            published_at: line.published_at_ms.map(|ms| ms / 1000),
            headers: line.headers,
        })
    }
}
