//! Defines what the worker and the services need from a broker, a ledger, a limiter and a target.
//!
//! Each contract says what `Ok` means, what is durable on return, and what the caller must do after
//! an error. The engines (`amqp` with `store`, or `embedded`) implement the contracts of broker and
//! ledger, the adapters in `im` implement [`Target`]. Nothing in this module depends on one of
//! them.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::domain::accounts::{Accounts, Audit};
use crate::domain::announce::DeadRecipient;
pub use crate::domain::delivery::ClaimState;
pub use crate::domain::directive::Scope;
use crate::domain::directive::{Directive, Kind, Subject};
use crate::domain::fields::Problem;
use crate::domain::ids::{Fingerprint, JobId, Owner, SliceId};
use crate::domain::lane::{Lane, Priority};
use crate::domain::limits::{Cost, Grant, Rate};
use crate::domain::mapping::{self, Feature, Fit, Mapping, Strictness};
use crate::domain::outcome::{Class, Outcome, TargetAnswer, Verdict};
use crate::domain::pace::{Mark, Pace};
use crate::domain::permissions::{Asked, Permissions, Used};
use crate::domain::slice::{Head, Shape, Together};
use crate::secret::Secret;

// ---------------------------------------------------------------------------------------------
// Broker
// ---------------------------------------------------------------------------------------------

/// Stores jobs, slices, dead letters and events durably and hands them out.
pub trait Broker: Clone + Send + Sync + 'static {
    type Session: Session;

    /// Counts the messages that can be handed out now. Unacked deliveries and messages on the retry
    /// ladder do not count.
    fn backlog(&self) -> impl Future<Output = Result<Backlog, BrokerError>> + Send;

    /// Opens one session and declares what it needs. After an error the caller backs off and tries
    /// again.
    fn connect(&self) -> impl Future<Output = Result<Self::Session, BrokerError>> + Send;
}

/// One generation of connections. When one of them is lost, the whole session is lost: its
/// deliveries are never acked, and the broker hands them out again.
pub trait Session: Send + Sync + 'static {
    type Consumer: Consumer;
    type Publisher: Publisher;

    fn publisher(&self) -> Self::Publisher;

    /// Starts to consume from a source, with at most `prefetch` unacked deliveries.
    fn consume(
        &self,
        source: Source,
        prefetch: u16,
    ) -> impl Future<Output = Result<Self::Consumer, BrokerError>> + Send;

    /// Cancelled when the session is lost, for any reason.
    fn lost(&self) -> CancellationToken;

    /// Follows whether the broker refuses publishes for a while because it is short of memory or
    /// disk. Consuming and acks go on meanwhile.
    fn blocked(&self) -> watch::Receiver<bool>;

    /// Counts the messages that the broker itself moved to the rejected messages. Each message
    /// counts in one session only. An engine that never moves messages counts nothing.
    fn moved(&self) -> impl Future<Output = Result<watch::Receiver<Moved>, BrokerError>> + Send {
        async { Ok(watch::channel(Moved::default()).1) }
    }

    /// Reads the number of the ledger's sequence that the broker keeps, see [`Route::Sequence`]; 0
    /// if there is none, or if another session reads it at this moment.
    fn sequence(&self) -> impl Future<Output = Result<u64, BrokerError>> + Send {
        async { Ok(0) }
    }

    /// Ends the session in order. Unacked deliveries return to their queues.
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// Messages that wait to be handed out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    pub jobs: u64,
    /// By target, for each configured target.
    pub lanes: BTreeMap<String, u64>,
}

/// Messages that the broker itself moved to the rejected messages: they expired, or every consumer
/// that received them ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    pub jobs: u64,
    pub slices: u64,
}

/// Where deliveries come from: a job queue or a lane.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    Jobs(Priority),
    Lane(Lane),
}

/// The deliveries of one source.
pub trait Consumer: Send + 'static {
    /// The next delivery. `None` when the consumer ended: by [`Consumer::cancel`], because its
    /// queue was deleted, or because the session is lost. Cancel safe: a dropped future loses no
    /// delivery.
    fn next(&mut self) -> impl Future<Output = Option<Delivery>> + Send;

    /// Asks for no further deliveries. Deliveries that were already received still come out of
    /// `next`.
    fn cancel(&mut self) -> impl Future<Output = ()> + Send;
}

/// One message that its holder must end exactly once, with [`Delivery::ack`], [`Delivery::requeue`]
/// or [`Delivery::reject`]. A dropped delivery stays unacked until its session ends.
pub struct Delivery {
    pub body: Bytes,
    /// The W3C trace context of the message.
    pub traceparent: Option<String>,
    /// The broker has handed it out before.
    pub redelivered: bool,
    pub end: Box<dyn EndDelivery>,
}

/// A boxed future, for the one trait that is called through a box: once per slice, not per
/// recipient.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// How an engine ends a delivery.
pub trait EndDelivery: Send {
    /// `Ok`: the ack was sent, and the broker forgets the message.
    fn ack(self: Box<Self>) -> BoxFuture<Result<(), Lost>>;
    /// `Ok`: the requeue was sent, and the broker hands the message out again.
    fn requeue(self: Box<Self>) -> BoxFuture<Result<(), Lost>>;
    /// `Ok`: the unchanged message is durable in the retained queue of rejected messages, with the
    /// reason, and the delivery is acked.
    fn reject(self: Box<Self>, reason: String) -> BoxFuture<Result<(), PublishError>>;
}

impl Delivery {
    pub async fn ack(self) -> Result<(), Lost> {
        self.end.ack().await
    }

    pub async fn requeue(self) -> Result<(), Lost> {
        self.end.requeue().await
    }

    pub async fn reject(self, reason: String) -> Result<(), PublishError> {
        self.end.reject(reason).await
    }
}

/// The session of a delivery is lost: the delivery can no longer be ended, and the broker hands it
/// out again. This is no failure, and there is nothing to retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session of this delivery is lost")]
pub struct Lost;

/// Publishes durably. Cheap to clone; calls from many tasks share confirms.
pub trait Publisher: Clone + Send + Sync + 'static {
    /// `Ok`: every message is in a queue, the broker has confirmed it, and it survives a crash of
    /// the broker. After an error, each message may or may not be in its queue. Publishing all of
    /// them again is always right, because every reader handles our messages idempotently.
    fn publish(
        &self,
        messages: Vec<Outgoing>,
    ) -> impl Future<Output = Result<(), PublishError>> + Send;
}

/// A message to publish, and its route.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub route: Route,
    pub body: Bytes,
    /// Identifies the message in logs, and lets readers drop repeats.
    pub message_id: String,
    pub traceparent: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// A job, as a producer publishes it.
    Job(Priority),
    /// A slice for a lane.
    Lane(Lane),
    /// A slice that returns to its lane after a rung of `domain::schedule::RUNGS`.
    Wait { lane: Lane, rung: Duration },
    /// A dead letter; the routing key is `<app>.<target>`.
    Dead { app: String, target: String },
    /// A job event, `<app>.<event>`. The only route that may lead to no queue: events need no
    /// consumer.
    Event { app: String, event: &'static str },
    /// A number of the ledger's sequence, as digits. The broker keeps only the last one.
    Sequence,
    /// The accounts of a job, for the queue that the job named. It is an error like any other if
    /// that queue does not exist, is full or does not confirm. Such an error never delays other
    /// publishes.
    Reply {
        queue: String,
        correlation_id: String,
    },
}

/// A queue that keeps messages until an operator looks at them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetainedQueue {
    /// Dead letters: recipients that ended failed or uncertain.
    Dead,
    /// Messages that are not valid jobs or slices.
    Rejected,
}

/// A message in a retained queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetainedMessage {
    pub body: Bytes,
    pub routing_key: String,
    pub message_id: Option<String>,
    /// Unix seconds, as the publisher set them.
    pub published_at: Option<u64>,
    /// The headers that are texts, numbers, times or booleans. A rejected message has
    /// `fanwise-reason`, `fanwise-source` and, where it is known, `fanwise-rejected-at`, whether the
    /// broker or Fanwise rejected it.
    pub headers: BTreeMap<String, String>,
}

/// What to do with a message of a retained queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RetainedEdit {
    Keep,
    Remove,
    /// Keep another body in its place.
    Replace(Bytes),
    /// Keep it, and end the walk.
    Stop,
}

/// What a walk over a retained queue did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EditSummary {
    pub shown: u64,
    pub removed: u64,
    pub replaced: u64,
}

/// Reads and edits the retained queues.
pub trait RetainedQueues: Send + Sync {
    /// Shows every message of a retained queue to `visit`, the oldest first, until `visit` breaks
    /// off, and removes none of them. Returns how many messages it showed. Messages that arrive
    /// meanwhile are not shown.
    ///
    /// A reader sees the whole queue or gets an error. Where an engine allows only one reader at a
    /// time, the others wait some seconds for their turn. `visit` must not block.
    fn read(
        &self,
        retained: RetainedQueue,
        visit: impl FnMut(RetainedMessage) -> ControlFlow<()> + Send,
    ) -> impl Future<Output = Result<u64, BrokerError>> + Send;

    /// Works like [`RetainedQueues::read`], and does with every message what `decide` returns. It
    /// handles one message at a time, which is slower than reading.
    ///
    /// A new body is durable before the old one is removed. A walk that is killed or fails half-way
    /// may therefore leave a message twice, with both bodies, and loses none. Messages that it
    /// removed before then stay removed.
    fn edit(
        &self,
        retained: RetainedQueue,
        decide: impl FnMut(RetainedMessage) -> RetainedEdit + Send,
    ) -> impl Future<Output = Result<EditSummary, BrokerError>> + Send;
}

#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error("cannot reach the broker at {address}")]
    Connect {
        address: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the broker refused to {what}")]
    Refused {
        what: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error(transparent)]
    Lost(#[from] Lost),
}

/// Why a publish is not known to be durable. Every cause is temporary: publish again, in a new
/// session if the old one is lost.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error(transparent)]
    Lost(#[from] Lost),
    #[error("the broker refused the message: a queue is full or its leader is away")]
    Refused,
    /// The engine could not store the message, for the reason in the source.
    #[error("the message cannot be stored")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("no queue is bound for {0}; run `fanwise topology apply`")]
    Unroutable(String),
    #[error("the broker did not confirm within {0:?}")]
    Timeout(Duration),
}

// ---------------------------------------------------------------------------------------------
// Ledger
// ---------------------------------------------------------------------------------------------

/// Records who is claimed and who is settled, per job and recipient, and keeps the counters of each
/// job.
///
/// The ledger knows a job while it runs, however long parts of it wait, and for the dedup window
/// after its completion.
///
/// Every method is one atomic step. The caller may repeat it after an error: a repeated step counts
/// once.
pub trait Ledger: Clone + Send + Sync + 'static {
    /// Registers a submission of a job before any of its slices is published.
    fn accept(
        &self,
        submission: &Submission,
    ) -> impl Future<Output = Result<Accepted, LedgerError>> + Send;

    /// Records a job that is durable with the broker, so that queries find it before a worker
    /// registers it. Changes nothing if the ledger knows the job already.
    fn enter(&self, entry: &Entry) -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// Forgets a job that was entered and that no worker will register. Changes nothing if a worker
    /// has registered it.
    fn withdraw(&self, job: JobId) -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// Records that all slices of a submission are published.
    fn mark_expanded(
        &self,
        job: JobId,
        submission: &str,
    ) -> impl Future<Output = Result<JobProgress, LedgerError>> + Send;

    /// Records that this part of a list is accepted, and returns whether all parts are. With
    /// `give_up`, a list that is incomplete stays so: its job waits for no further part of it.
    ///
    /// A ledger that has lost the job answers that all parts are accepted: it cannot know, and no
    /// recipient may be lost because of that.
    fn gather(
        &self,
        job: JobId,
        part: &Together,
        give_up: bool,
    ) -> impl Future<Output = Result<Gathered, LedgerError>> + Send;

    /// Returns whether all these submissions of a job are expanded.
    fn knows(
        &self,
        job: JobId,
        submissions: &[String],
    ) -> impl Future<Output = Result<bool, LedgerError>> + Send;

    /// Claims recipients for one owner. Only this owner may send to a granted recipient until the
    /// lease ends.
    fn claim(&self, claim: Claim<'_>) -> impl Future<Output = Result<Claimed, LedgerError>> + Send;

    /// Extends these claims as far as this owner still holds them; it may extend the owner's other
    /// claims too. `Ok(false)`: the owner has lost some of them.
    fn renew(
        &self,
        slice: SliceRef<'_>,
        owner: Owner,
        lease: Duration,
        held: &[Fingerprint],
    ) -> impl Future<Output = Result<bool, LedgerError>> + Send;

    /// Settles outcomes, releases claims and counts, in one step. The first outcome of a recipient
    /// counts and is never changed. `Ok`: the step is as durable as the store's settings make it.
    fn settle(
        &self,
        settle: Settle<'_>,
    ) -> impl Future<Output = Result<Recorded, LedgerError>> + Send;

    /// Marks a job as completed; `Ok(true)` for the first caller. Refused while recipients are
    /// pending or parts are missing.
    fn complete(&self, job: JobId) -> impl Future<Output = Result<bool, LedgerError>> + Send;

    /// The record of a job; `None` if the ledger does not know the job.
    fn job(
        &self,
        job: JobId,
    ) -> impl Future<Output = Result<Option<JobRecord>, LedgerError>> + Send;

    /// Lists jobs by the time of their acceptance, newest first: those that run, and those that
    /// completed within the dedup window. A page may hold fewer jobs than requested, even none, and
    /// still have a next page: one query looks at a bounded number of jobs.
    fn jobs(&self, query: &JobQuery) -> impl Future<Output = Result<JobPage, LedgerError>> + Send;

    /// The answers that a claim by a new owner would get now, in the order asked, without claiming.
    fn peek(
        &self,
        job: &JobRecord,
        recipients: &[Fingerprint],
    ) -> impl Future<Output = Result<Vec<ClaimState>, LedgerError>> + Send;

    /// Keeps why recipients ended as they did: the first [`REASONS_MAX`] of a job, for as long as
    /// the ledger knows the job.
    fn record_reasons(
        &self,
        job: JobId,
        reasons: &[(Fingerprint, Reason)],
    ) -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// The recorded reasons of these recipients, in the order asked; `None` where there is none.
    fn reasons(
        &self,
        job: JobId,
        recipients: &[Fingerprint],
    ) -> impl Future<Output = Result<Vec<Option<Reason>>, LedgerError>> + Send;

    /// Reads every recipient of a job and counts their states.
    fn audit(&self, job: &JobRecord) -> impl Future<Output = Result<Audit, LedgerError>> + Send;
}

/// Finds jobs that no worker works on any more, and ends them.
pub trait Upkeep: Clone + Send + Sync + 'static {
    /// Records that a part of a job waits and that a worker will look at it again.
    fn waits(&self, job: JobId) -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// Jobs that are not completed and that were quiet for this long: no outcome was recorded, and
    /// no part was reported as waiting. Returns a bounded number of jobs. A returned job is not
    /// returned again for a part of that time.
    fn quiet(
        &self,
        quiet: Duration,
    ) -> impl Future<Output = Result<Vec<JobRecord>, LedgerError>> + Send;

    /// Ends a job that was quiet for this long and of which nothing is left to deliver. Its pending
    /// recipients count as uncertain and [lost](JobRecord::lost), and the job is finished. `None`:
    /// the job is completed or unknown, or a worker works on it. An outcome that is recorded later
    /// takes the place of a lost one.
    fn abandon(
        &self,
        job: JobId,
        quiet: Duration,
    ) -> impl Future<Output = Result<Option<JobProgress>, LedgerError>> + Send;
}

/// The most reasons that the ledger keeps of a job; the dead letters have all of them.
pub const REASONS_MAX: u32 = 10_000;

/// Why a recipient ended failed or uncertain: the last answer, as in its dead letter.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Reason {
    pub outcome: Outcome,
    pub class: Class,
    pub code: String,
    pub text: String,
    pub attempts: u32,
}

impl From<&DeadRecipient> for Reason {
    fn from(dead: &DeadRecipient) -> Self {
        Self {
            outcome: dead.outcome,
            class: dead.class,
            code: dead.code.clone().into_owned(),
            text: dead.text.clone().into_owned(),
            attempts: dead.attempts,
        }
    }
}

/// A job that is durable with the broker.
#[derive(Clone, Debug)]
pub struct Entry {
    pub job: JobId,
    pub app: String,
    pub client_msg_no: String,
    pub target: String,
    pub content_digest: String,
    /// The number of list entries, as far as it is known.
    pub entries: u64,
    pub not_before_ms: Option<u64>,
    pub now_ms: u64,
}

/// One list of recipients of one job, before it is expanded.
#[derive(Clone, Debug)]
pub struct Submission {
    pub job: JobId,
    pub app: String,
    pub client_msg_no: String,
    pub target: String,
    /// A different digest under the same job is a conflict.
    pub content_digest: String,
    pub submission: String,
    pub entries: u64,
    /// The number of parts of the job. It completes when this many submissions are expanded.
    pub parts: u32,
    /// The shape that this submission prefers. The first submission of a job decides, until a far
    /// larger one arrives. The ledger answers with the shape in force.
    pub shape: Shape,
    /// The job's own limit and start time, from its first submission.
    pub rate: Option<String>,
    pub not_before_ms: Option<u64>,
    /// Where to send the notice of completion. The first submission that names a destination
    /// decides.
    pub callback_url: Option<String>,
    pub reply_to: Option<String>,
    pub now_ms: u64,
    /// The features that the job goes on without; kept from its first submission.
    pub warnings: Vec<String>,
    /// The version of the stored message with which a new job would start.
    pub template: Option<u32>,
}

/// The ledger's answer to a submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It has new recipients: expand it in this shape. `template` is the version of the stored
    /// message with which the job started.
    Expand {
        shape: Shape,
        first: bool,
        template: Option<u32>,
    },
    /// The submission is known, and some of its recipients are pending. Expanding it again does no
    /// harm and replaces slices that may have been lost.
    Again { shape: Shape, template: Option<u32> },
    /// The submission is known, and all of its recipients are settled.
    Settled,
    /// The key belongs to a job with another message.
    Conflict { job: JobId },
}

/// Whether all parts of a list are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gathered {
    Complete,
    /// Some parts are missing.
    Waiting,
    /// The missing parts did not arrive in time. No recipient of the list is sent to, even if they
    /// arrive later.
    GivenUp,
}

/// Identifies a slice of a job, with the values that locate its recipients in the ledger.
#[derive(Clone, Copy, Debug)]
pub struct SliceRef<'a> {
    pub head: &'a Head,
    pub id: &'a SliceId,
    pub entries: u32,
    pub shape: Shape,
}

#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    pub slice: SliceRef<'a>,
    pub owner: Owner,
    pub lease: Duration,
    pub recipients: &'a [Fingerprint],
}

/// The answer to a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// Every entry of the slice has its outcome already: the caller acks the slice.
    SliceDone,
    Each(Vec<ClaimState>),
}

#[derive(Clone, Copy, Debug)]
pub struct Settle<'a> {
    pub slice: SliceRef<'a>,
    pub owner: Owner,
    /// The outcomes to record. A recipient may be settled without a claim.
    pub outcomes: &'a [(Fingerprint, Outcome)],
    /// Our claims to release without an outcome, of recipients that were certainly not sent to.
    pub release: &'a [Fingerprint],
    /// Our claims to release of recipients that may have been sent to. The next owner that claims
    /// them learns of the doubt.
    pub doubted: &'a [Fingerprint],
    /// Our claims that no call used. Each returns to the state in which it was claimed: a claim
    /// that was found with a doubt keeps it, the others are free.
    pub unused: &'a [Fingerprint],
    /// Set in the last step of a slice, when its deliveries have an outcome for every recipient:
    /// the number of repeats that they saw. Entries that the slice has not counted itself then
    /// count as duplicates, if there are no more of them than repeats. If there are more, none of
    /// them counts, and all stay pending. In a job that was rebuilt they always count.
    pub last: Option<u32>,
}

impl<'a> Settle<'a> {
    /// A step without any records.
    pub fn of(slice: SliceRef<'a>, owner: Owner) -> Self {
        Self {
            slice,
            owner,
            outcomes: &[],
            release: &[],
            doubted: &[],
            unused: &[],
            last: None,
        }
    }
}

/// The result of a settle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    pub progress: JobProgress,
    /// How many of the given outcomes were for recipients that already had one.
    pub stood: u32,
    /// After the last step of a slice: the number of its entries that have no outcome and were not
    /// seen as repeats.
    pub missing: u32,
}

/// The progress of a job after a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobProgress {
    pub accounts: Accounts,
    /// All parts are accepted and expanded, and no recipient is pending: the job can be audited and
    /// completed.
    pub finished: bool,
    /// It was completed before.
    pub completed: bool,
}

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct JobRecord {
    /// 24 hexadecimal digits.
    #[schemars(with = "String")]
    pub job: JobId,
    pub app: String,
    pub client_msg_no: String,
    pub target: String,
    pub state: JobState,
    pub accounts: Accounts,
    pub pending: u64,
    pub accepted_at_ms: u64,
    /// Digest of what the job says; another digest under the same key is a conflict.
    pub content_digest: Option<String>,
    /// Last time an outcome was recorded.
    pub progress_at_ms: Option<u64>,
    pub completed_at_ms: Option<u64>,
    /// The ledger lost this record, and it was rebuilt from slices: the accounts lack the outcomes
    /// that were recorded before.
    pub rebuilt: bool,
    /// When the ledger was found to have returned to older data while the job ran: the outcomes
    /// recorded just before that time may be missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub went_back_at_ms: Option<u64>,
    /// Recipients whose outcome the ledger does not know, although nothing is left to deliver to
    /// them. They count as uncertain.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lost: u64,
    pub submissions: u64,
    pub shape: Shape,
    /// Features that the target does not support and that the job goes on without.
    pub warnings: Vec<String>,
    /// The job's own limit, as it was written; unknown once the record was rebuilt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<String>,
    /// Nothing is sent before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before_ms: Option<u64>,
    /// The URL that gets the accounts when the job completes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback_url: Option<String>,
    /// The queue that gets the accounts when the job completes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
    /// How fast the job went lately.
    #[serde(skip)]
    pub pace: Pace,
    /// The last time that a part of the job was reported as waiting.
    #[serde(skip)]
    pub waited_at_ms: Option<u64>,
    /// The version of the stored message with which the job started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<u32>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl JobRecord {
    /// Sets `went_back_at_ms` to the latest of these times at which the job had been accepted and
    /// was not yet completed.
    pub fn marked(mut self, went_back_at_ms: &[u64]) -> Self {
        let concerns = |at: &u64| {
            self.accepted_at_ms <= *at && self.completed_at_ms.is_none_or(|done| done > *at)
        };
        let times = went_back_at_ms.iter().copied();
        self.went_back_at_ms = times.filter(|at| concerns(at)).max();
        self
    }

    /// The differences between the counters and the ledger, in words.
    pub fn differences(&self, audit: &Audit) -> Vec<String> {
        // The ledger does not know which recipients lost their outcomes.
        audit.differences(&Accounts {
            uncertain: self.accounts.uncertain.saturating_sub(self.lost),
            ..self.accounts
        })
    }

    /// The doubts about the job's accounts, in words. The accounts are exact only if there are
    /// none.
    pub fn unknown(&self) -> Vec<String> {
        let mut unknown = Vec::new();
        if self.rebuilt {
            let what = "the ledger was lost and rebuilt: outcomes recorded before are not counted";
            unknown.push(what.to_owned());
        }
        if let Some(at) = self.went_back_at_ms {
            let at = jiff::Timestamp::from_millisecond(at.cast_signed()).unwrap_or_default();
            unknown.push(format!(
                "the ledger was found at {at} to have gone back to older data: outcomes recorded just \
                 before that may be missing, and their recipients may have been sent to again"
            ));
        }
        if self.lost > 0 {
            unknown.push(format!(
                "{} recipients count as uncertain because the ledger lost their outcomes and nothing \
                 is left to deliver; it does not know their names",
                self.lost
            ));
        }
        unknown
    }

    /// The last time that the job was accepted, made progress or was reported as waiting.
    pub fn heard_at_ms(&self) -> u64 {
        let later = self.progress_at_ms.max(self.waited_at_ms);
        later.unwrap_or(0).max(self.accepted_at_ms)
    }

    /// Recipients per second over the last seconds; `None` if the job does not run, or if too few
    /// outcomes are recorded to tell.
    pub fn per_second(&self, now_ms: u64) -> Option<f64> {
        if self.state != JobState::Running {
            return None;
        }
        let progress = Mark {
            at_ms: self.progress_at_ms?,
            settled: self.accounts.settled(),
        };
        self.pace.per_second(progress, now_ms)
    }
}

#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
    strum::IntoStaticStr,
    strum::VariantArray,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum JobState {
    /// Durable with the broker; no worker has registered it yet.
    Accepted,
    Running,
    Completed,
}

impl JobState {
    pub const ALL: &'static [Self] = <Self as strum::VariantArray>::VARIANTS;

    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Selects jobs, and the place where a page of them begins.
#[derive(Clone, Debug, Default)]
pub struct JobQuery {
    pub filter: JobFilter,
    /// The page begins after this place.
    pub after: Option<JobPlace>,
    pub most: usize,
}

/// A job must match every field that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobFilter {
    pub app: Option<String>,
    pub target: Option<String>,
    pub client_msg_no: Option<String>,
    pub state: Option<JobState>,
    /// Accepted at or after this time.
    pub since_ms: Option<u64>,
    /// Accepted before this time.
    pub until_ms: Option<u64>,
}

impl JobFilter {
    /// Whether the record matches. The caller compares the times, with the job's place in the list.
    pub fn takes(&self, record: &JobRecord) -> bool {
        let is = |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|it| it == is);
        is(&self.app, &record.app)
            && is(&self.target, &record.target)
            && is(&self.client_msg_no, &record.client_msg_no)
            && self.state.is_none_or(|state| state == record.state)
    }
}

/// A place in the list of jobs, which is ordered by time, then by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobPlace {
    pub at_ms: u64,
    pub job: JobId,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct JobPage {
    pub jobs: Vec<JobRecord>,
    /// Where the next page begins, if there may be one.
    pub next: Option<JobPlace>,
}

/// The ledger cannot take the step now; nothing may be sent until it can (promise 6).
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("the ledger is not reachable")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the ledger is full")]
    Full(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the ledger answered with nonsense: {0}")]
    Broken(String),
}

// ---------------------------------------------------------------------------------------------
// Heartbeats
// ---------------------------------------------------------------------------------------------

/// Heartbeats: they show whether the store takes writes now, whether it lost earlier writes, and
/// which processes are alive.
pub trait Pulse: Clone + Send + Sync + 'static {
    /// Writes a heartbeat, as a claim would write: an error means that no claim can succeed now.
    fn beat(&self, beat: &Beat) -> impl Future<Output = Result<Beaten, LedgerError>> + Send;

    /// Raises the sequence of the ledger above its last number and above `seen`, the highest number
    /// that was found outside of the ledger.
    fn raise(&self, seen: u64) -> impl Future<Output = Result<Raised, LedgerError>> + Send;

    /// The last heartbeats of the processes that are alive.
    fn beats(&self) -> impl Future<Output = Result<Vec<Beat>, LedgerError>> + Send;
}

/// A process without a heartbeat for this long is not alive.
pub const ALIVE: Duration = Duration::from_secs(5);

/// The state that a process reports with its heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Beat {
    #[serde(skip)]
    pub process: u64,
    /// The number of its last heartbeat that was answered; 0 before the first one. A store whose
    /// number is lower has returned to older data.
    #[serde(skip)]
    pub number: u64,
    /// The process delivers slices.
    pub works: bool,
    /// Its calls under way, by target.
    #[serde(default)]
    pub calls: BTreeMap<String, UnderWay>,
}

/// Calls that have no answer yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct UnderWay {
    pub calls: u64,
    /// When the oldest one began.
    pub oldest_ms: u64,
}

/// The answer to a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beaten {
    /// The number of this heartbeat.
    pub number: u64,
    /// The store no longer has the previous heartbeat: it returned to older data, or lost its data.
    /// It has recorded when.
    pub went_back: bool,
}

/// The answer to a raise of the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raised {
    /// The new number; 0 where the ledger and the messages are in one store and therefore always
    /// have the same age.
    pub number: u64,
    /// The ledger's number was lower than `seen`: the store returned to older data, or lost its
    /// data. It has recorded when.
    pub went_back: bool,
}

// ---------------------------------------------------------------------------------------------
// Quotas
// ---------------------------------------------------------------------------------------------

/// Counts what apps with a quota have used, for all gateways and workers together.
///
/// A list counts once, on the UTC day when it is charged first. The store remembers it until the
/// end of the next day. A gateway charges a list before it accepts it, a worker charges it again
/// before it cuts it, and both together count once. A list that waits longer than that for a
/// worker, or that is published again later, counts again.
pub trait Quotas: Clone + Send + Sync + 'static {
    /// Counts all lists of these jobs that were not counted before, or none of them if the app may
    /// not send that many. All jobs belong to one app, and they are counted together or not at all.
    /// `day` is the number of the UTC day since 1970.
    fn charge(
        &self,
        asked: &[Asked],
        permissions: &Permissions,
        day: u64,
    ) -> impl Future<Output = Result<Charged, LedgerError>> + Send;
}

/// Answer to a charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charged {
    /// The lists are counted, now or before.
    Counted,
    /// Nothing was counted: together with the earlier use, it is too much.
    Over {
        /// The first of the jobs that is too much by itself, else the first job.
        job: JobId,
        used: Used,
    },
}

// ---------------------------------------------------------------------------------------------
// Nonces
// ---------------------------------------------------------------------------------------------

/// Remembers the nonces of signed requests, for all gateways.
pub trait Nonces: Clone + Send + Sync + 'static {
    /// Returns whether a nonce is new, and remembers it for `lives`. After an error it may be
    /// remembered.
    fn is_new(
        &self,
        nonce: &str,
        lives: Duration,
    ) -> impl Future<Output = Result<bool, LedgerError>> + Send;

    /// Forgets a nonce whose request was not carried out, so that the same request may be sent
    /// again.
    fn release(&self, nonce: &str) -> impl Future<Output = Result<(), LedgerError>> + Send;
}

// ---------------------------------------------------------------------------------------------
// Templates
// ---------------------------------------------------------------------------------------------

/// Stores the messages of each app, by name and version.
///
/// The versions of a name count up; no number is used twice, even after a deletion. A version that
/// is no longer the newest, or whose name was deleted, can be read by its number for at least the
/// dedup window, because jobs that started with it keep it.
pub trait Templates: Clone + Send + Sync + 'static {
    /// Stores a message. Jobs that start from now on take this version. Repeated after an error, it
    /// may create another version with the same message.
    fn put_template(
        &self,
        app: &str,
        name: &str,
        message: &str,
    ) -> impl Future<Output = Result<StoredTemplate, LedgerError>> + Send;

    /// Reads a version; without a number, the newest version of a name that is not deleted.
    fn template(
        &self,
        app: &str,
        name: &str,
        version: Option<u32>,
    ) -> impl Future<Output = Result<Option<StoredTemplate>, LedgerError>> + Send;

    /// Lists the names of an app with their newest versions, in order, without deleted names.
    fn templates(
        &self,
        app: &str,
    ) -> impl Future<Output = Result<Vec<(String, u32)>, LedgerError>> + Send;

    /// Deletes a name. `Ok(false)`: there was no such name.
    fn delete_template(
        &self,
        app: &str,
        name: &str,
    ) -> impl Future<Output = Result<bool, LedgerError>> + Send;
}

/// One version of a stored message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTemplate {
    pub version: u32,
    pub put_at_ms: u64,
    /// The document as JSON, exactly as it was stored.
    pub message: String,
}

// ---------------------------------------------------------------------------------------------
// Limiter
// ---------------------------------------------------------------------------------------------

/// Token buckets and parked targets, shared by all workers.
pub trait Limiter: Clone + Send + Sync + 'static {
    /// Books units on all limits together, or on none. The grant starts after the wait that it
    /// names.
    fn lease(&self, lease: &Lease<'_>) -> impl Future<Output = Result<Leased, LedgerError>> + Send;

    /// Returns recipients and calls that were booked and not used.
    fn refund(
        &self,
        limits: &[Limit<'_>],
        recipients: u32,
        calls: u32,
    ) -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// Parks a target for all workers. If it is parked already, the later end wins.
    fn park(
        &self,
        target: &str,
        park: &Park,
    ) -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// Ends the parking of a target.
    fn unpark(&self, target: &str) -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// The share of its burst that each limit has booked now: 0 when it is idle, 1 and more when
    /// the next unit has to wait. Books nothing.
    fn booked(
        &self,
        limits: &[Limit<'_>],
    ) -> impl Future<Output = Result<Vec<f64>, LedgerError>> + Send;

    /// The targets that are parked now.
    fn parked(
        &self,
        targets: &[String],
    ) -> impl Future<Output = Result<Vec<(String, Park)>, LedgerError>> + Send;
}

/// One limit that a call must respect.
#[derive(Clone, Copy, Debug)]
pub struct Limit<'a> {
    pub scope: Scope,
    /// Name of the target, app or job.
    pub name: &'a str,
    pub rate: Rate,
    pub cost: Cost,
}

/// A request for `recipients`, in calls of `per_call` recipients.
#[derive(Clone, Copy, Debug)]
pub struct Lease<'a> {
    pub limits: &'a [Limit<'a>],
    pub recipients: u32,
    pub per_call: u32,
    pub wait_max: Duration,
}

/// The grant of all limits together: the smallest of them, after the longest of their waits. Units
/// are recipients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leased {
    pub grant: Grant,
    /// The limit that reduced or delayed the grant most, if one did.
    pub binding: Option<Scope>,
}

/// A parked target, and why it is parked.
#[derive(
    Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
pub struct Park {
    pub since_ms: u64,
    pub until_ms: u64,
    pub reason: ParkReason,
    /// The code of the answer that caused it; empty if an operator parked it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub code: String,
    /// The backend's text, or the operator's name and reason.
    pub text: String,
}

/// Why a target is parked. The set is closed, so it can be the label of a metric.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
    strum::IntoStaticStr,
    strum::VariantArray,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum ParkReason {
    /// The target throttled us: we were too fast, or it asked us to wait.
    Throttled,
    /// No request reached the target.
    Unreachable,
    /// Signature, token, certificate or permission is wrong (promise 10).
    Config,
    /// Many calls in a row failed.
    Breaker,
    /// An operator parked it.
    Operator,
}

impl ParkReason {
    pub const ALL: &'static [Self] = <Self as strum::VariantArray>::VARIANTS;

    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// `config 401: token is wrong`
impl fmt::Display for Park {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason.as_str())?;
        if !self.code.is_empty() {
            write!(f, " {}", self.code)?;
        }
        if !self.text.is_empty() {
            write!(f, ": {}", self.text)?;
        }
        Ok(())
    }
}

// ---------------------------------------------------------------------------------------------
// Directives
// ---------------------------------------------------------------------------------------------

/// The directives in force, shared by all workers. Workers read them often; they change seldom.
pub trait Directives: Clone + Send + Sync + 'static {
    /// Puts a directive in force. It replaces a directive of the same kind about the same subject.
    fn direct(&self, directive: &Directive)
    -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// Ends a directive before its time. `Ok(false)`: there was none.
    fn lift(
        &self,
        subject: &Subject,
        kind: Kind,
    ) -> impl Future<Output = Result<bool, LedgerError>> + Send;

    /// Returns all directives, or `None` if their version is still `known`; then the call costs
    /// next to nothing. A version is above 0 once there was a directive, and is never used again,
    /// not even after the store lost its data.
    fn directives(
        &self,
        known: u64,
    ) -> impl Future<Output = Result<Option<Directed>, LedgerError>> + Send;
}

/// The directives of one version. Some may have expired.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Directed {
    pub version: u64,
    pub all: Vec<Directive>,
}

// ---------------------------------------------------------------------------------------------
// Store and target
// ---------------------------------------------------------------------------------------------

/// Everything that one engine stores besides messages: the ledger, the limiter, the directives, the
/// stored messages, the quotas, the nonces and the heartbeats.
pub trait Store:
    Ledger + Upkeep + Limiter + Directives + Templates + Quotas + Nonces + Pulse
{
}
impl<S: Ledger + Upkeep + Limiter + Directives + Templates + Quotas + Nonces + Pulse> Store for S {}

/// One backend account, as pure functions that build requests and read replies. The sending itself
/// is the same for all targets and lives in `http::client`.
pub trait Target: Send + Sync + 'static {
    fn profile(&self) -> &Profile;

    /// The most recipients in one call of this job: at most the number in the profile, and 1 where
    /// the backend takes such messages for one recipient at a time.
    fn recipients_per_call(&self, _head: &Head) -> usize {
        self.profile().recipients_per_call
    }

    /// How the target maps a feature.
    fn maps(&self, feature: Feature) -> Mapping;

    /// The parts of this job that the target cannot carry, beyond unmapped features: sizes, a
    /// missing sender, fields that exclude each other.
    fn check(&self, head: &Head) -> Vec<Problem>;

    /// Prepares the calls of a job, and renders what they have in common once per slice.
    fn open(&self, head: &Arc<Head>) -> Box<dyn Calls>;

    /// How to fetch the credential that requests carry, where one must be fetched.
    fn login(&self) -> Option<&dyn Login> {
        None
    }

    /// Signs a request, anew on every attempt. Most targets need no signature.
    fn sign(&self, _request: &mut Request, _signing: Signing) {}

    /// How to list all users, where the target can list them.
    fn directory(&self) -> Option<&dyn Directory> {
        None
    }

    /// A request that changes nothing and whose reply identifies the account, where there is one.
    fn identify(&self) -> Option<Request> {
        None
    }

    /// The system and version that answered, or what is wrong: another system or version, or a
    /// refused credential.
    fn read_identity(&self, _reply: &HttpReply) -> Result<String, String> {
        Ok(String::new())
    }
}

/// Compares a job with a target. `all`: the job's audience is all users.
pub fn fit(target: &dyn Target, head: &Head, all: bool, strictness: Strictness) -> Fit {
    let asked = Feature::of(head)
        .into_iter()
        .chain(all.then_some(Feature::All));
    let mut fit = mapping::fit(
        asked,
        |feature| target.maps(feature),
        strictness,
        &head.target,
    );
    fit.problems.extend(target.check(head));
    fit
}

/// The calls of one job to one target.
pub trait Calls: Send + Sync {
    /// The request for these recipients. It has the same bytes every time, except for what
    /// [`Target::sign`] and [`Login::apply`] add.
    fn request(&self, recipients: &[&str]) -> Request;

    /// Reads the reply to that request.
    fn read_reply(&self, recipients: &[&str], reply: &HttpReply) -> Verdict;

    /// The request that asks whether a call in doubt was carried out, where the target can answer
    /// that.
    fn probe(&self, _recipients: &[&str]) -> Option<Request> {
        None
    }

    /// Reads the reply to a probe.
    fn read_probe(&self, _recipients: &[&str], _reply: &HttpReply) -> Probed {
        Probed::Unknown
    }
}

/// The result of a probe for a call in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probed {
    Sent,
    /// Not sent, as far as the target knows now. The worker believes it after two such answers,
    /// with a pause between them.
    NotSent,
    Unknown,
}

/// Fetches the credential that requests carry. The worker keeps the credential and fetches a new
/// one shortly before it expires, or when an answer says that it is [stale](TargetAnswer::stale).
pub trait Login: Send + Sync {
    fn request(&self) -> Request;

    /// The credential, or the meaning of the refusal.
    fn read_credential(&self, reply: &HttpReply) -> Result<Credential, TargetAnswer>;

    /// Puts the credential into a request.
    fn apply(&self, request: &mut Request, credential: &str);
}

#[derive(Clone, Debug)]
pub struct Credential {
    pub secret: Secret,
    /// How long it is valid.
    pub lives: Duration,
}

/// The parts of a signature that differ every time.
#[derive(Clone, Copy, Debug)]
pub struct Signing {
    pub now_ms: u64,
    pub nonce: u128,
}

/// Lists all users of a target, page by page.
pub trait Directory: Send + Sync {
    /// The request for the page at a cursor; without a cursor, for the first page.
    fn page(&self, cursor: Option<&str>) -> Request;

    fn read_page(&self, cursor: Option<&str>, reply: &HttpReply) -> Result<Page, TargetAnswer>;

    /// The directory's own credential, if it differs from that of the calls.
    fn login(&self) -> Option<&dyn Login>;
}

/// A page of users.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub users: Vec<String>,
    /// The number of users on all pages together, where the target reports a credible one.
    pub total: Option<u64>,
    /// Where the next page begins; `None` after the last page.
    pub next: Option<String>,
}

/// The properties of a target.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// The most recipients in one call; see also [`Target::recipients_per_call`].
    pub recipients_per_call: usize,
    /// A repeated call with the same key does no harm, so uncertain calls may be retried.
    pub idempotent: bool,
    /// How long to wait after a call in doubt before a probe.
    pub probe_after: Duration,
    /// A limit slightly below the one that the backend documents; in force unless one is
    /// configured.
    pub limit: Option<Rate>,
    /// `Ana` and `ana` are the same user.
    pub folds_case: bool,
    /// Accounts that an audience of all users leaves out, besides the sender: administrators,
    /// notification accounts.
    pub left_out: Vec<String>,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            recipients_per_call: 1,
            idempotent: false,
            probe_after: Duration::from_secs(1),
            limit: None,
            folds_case: false,
            left_out: Vec::new(),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Request {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
}

#[derive(Clone, Debug)]
pub struct HttpReply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Carries requests to backends: one request, one answer, no retries, no redirects.
pub trait Transport: Send + Sync + 'static {
    /// `Ok`: a whole reply was read. The transport never repeats a request: only the worker knows
    /// whether that is safe.
    fn send(
        &self,
        request: Request,
        timeout: Duration,
    ) -> impl Future<Output = Result<HttpReply, SendError>> + Send;

    /// Closes connections that were idle for too long. Called now and then.
    fn tidy(&self) {}
}

/// Why there is no reply. `code` is one token, so it can be used in a filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Certainly not sent: no byte of the request left.
    #[error("not sent: {what}")]
    NotSent { what: String, code: &'static str },
    /// Possibly sent: the request left, wholly or in part, and no complete reply came back.
    #[error("perhaps sent: {what}")]
    Unknown { what: String, code: &'static str },
}

/// The code for a server whose certificate cannot be trusted.
pub const CERTIFICATE: &str = "certificate";
/// The code for a server in a private network that may not be called.
pub const PRIVATE_ADDRESS: &str = "private_address";
/// The code for a URL that names no server.
pub const BAD_URL: &str = "bad_url";

impl SendError {
    /// The meaning of the error for the recipients of the call.
    pub fn answer(&self) -> TargetAnswer {
        let (class, code, what) = match self {
            // No later attempt helps, and the recipients are not at fault.
            Self::NotSent { what, code }
                if [CERTIFICATE, BAD_URL, PRIVATE_ADDRESS].contains(code) =>
            {
                (Class::Config, code, what)
            }
            Self::NotSent { what, code } => (Class::Transient, code, what),
            Self::Unknown { what, code } => (Class::Uncertain, code, what),
        };
        let answer = TargetAnswer::new(class, *code, what.clone());
        match self {
            Self::NotSent { .. } => answer.unreached(),
            Self::Unknown { .. } => answer,
        }
    }
}
