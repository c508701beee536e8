//! The seams: what the worker needs of a broker, a ledger, a limiter and a target.
//!
//! Each contract says what `Ok` means, what is durable on return and what an error obliges the caller
//! to do. RabbitMQ and Redis implement them in `amqp` and `store`; the adapters of `im` implement
//! [`Target`]. Nothing here names an outside system.

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

/// A place where jobs, slices, dead letters and events wait durably.
pub trait Broker: Clone + Send + Sync + 'static {
    type Session: Session;

    /// How much waits to be handed out now. What was handed out and is not acked, and what waits on
    /// the ladder, is not counted.
    fn backlog(&self) -> impl Future<Output = Result<Backlog, BrokerError>> + Send;

    /// Opens one session and declares what it needs. The caller backs off and calls again on error.
    fn connect(&self) -> impl Future<Output = Result<Self::Session, BrokerError>> + Send;
}

/// One generation of connections. When any part of it is lost, all of it is: deliveries of a lost
/// session are never acked, the broker hands them out again.
pub trait Session: Send + Sync + 'static {
    type Consumer: Consumer;
    type Publisher: Publisher;

    fn publisher(&self) -> Self::Publisher;

    /// Starts to receive from a source, at most `prefetch` deliveries unacked.
    fn consume(
        &self,
        source: Source,
        prefetch: u16,
    ) -> impl Future<Output = Result<Self::Consumer, BrokerError>> + Send;

    /// Cancelled when the session is lost, for whatever reason.
    fn lost(&self) -> CancellationToken;

    /// Follows whether the broker takes no publishes for a while, being short of memory or disk.
    /// Consuming and acks go on meanwhile.
    fn blocked(&self) -> watch::Receiver<bool>;

    /// Follows what the broker moved to the rejected messages by itself, as far as this session counts
    /// it: each message is counted in one session. An engine that never does so counts nothing.
    fn moved(&self) -> impl Future<Output = Result<watch::Receiver<Moved>, BrokerError>> + Send {
        async { Ok(watch::channel(Moved::default()).1) }
    }

    /// The number of the ledger's sequence that the broker keeps, see [`Route::Sequence`]; 0 if there is
    /// none, or another session reads it at this moment.
    fn sequence(&self) -> impl Future<Output = Result<u64, BrokerError>> + Send {
        async { Ok(0) }
    }

    /// Ends the session in order. Deliveries not acked go back to their queues.
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// Messages that wait to be handed out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    pub jobs: u64,
    /// Of the lanes of each target that is configured.
    pub lanes: BTreeMap<String, u64>,
}

/// Messages that the broker moved to the rejected ones by itself: they expired, or every reader of them
/// ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    pub jobs: u64,
    pub slices: u64,
}

/// Where deliveries come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    Jobs(Priority),
    Lane(Lane),
}

/// Deliveries of one source.
pub trait Consumer: Send + 'static {
    /// The next delivery; `None` when the consumer ended, by [`Consumer::cancel`], because its queue
    /// went away or because the session is lost. Cancel safe: no delivery is dropped with the future.
    fn next(&mut self) -> impl Future<Output = Option<Delivery>> + Send;

    /// Asks for no further deliveries. What was received already still comes out of `next`.
    fn cancel(&mut self) -> impl Future<Output = ()> + Send;
}

/// One message with the duty to end it exactly once: [`Delivery::ack`], [`Delivery::requeue`] or
/// [`Delivery::reject`]. One that is dropped stays unacked until its session ends.
pub struct Delivery {
    pub body: Bytes,
    /// W3C trace context that came with the message.
    pub traceparent: Option<String>,
    /// The broker handed it out before.
    pub redelivered: bool,
    pub end: Box<dyn EndDelivery>,
}

/// A boxed future, for the one seam that is called through a box: once per slice, not per recipient.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// How an engine ends a delivery.
pub trait EndDelivery: Send {
    /// `Ok`: the broker was told to forget the message.
    fn ack(self: Box<Self>) -> BoxFuture<Result<(), Lost>>;
    /// `Ok`: the broker was told to hand the message out again.
    fn requeue(self: Box<Self>) -> BoxFuture<Result<(), Lost>>;
    /// `Ok`: the message lies unharmed in `fanwise.rejected` with the reason, durably, and was acked.
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

/// The session of a delivery is gone: nothing can be said about it any more, and somebody else will
/// get it. Not a failure, and nothing to retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session of this delivery is lost")]
pub struct Lost;

/// Publishes durably. Cheap to clone; calls from many tasks share confirms.
pub trait Publisher: Clone + Send + Sync + 'static {
    /// `Ok`: every message is in a queue, confirmed by the broker, and survives its crash. On error
    /// any of them may or may not be; publishing them again is always right, since everything we
    /// publish is idempotent for its reader.
    fn publish(
        &self,
        messages: Vec<Outgoing>,
    ) -> impl Future<Output = Result<(), PublishError>> + Send;
}

/// What is published, and where it goes.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub route: Route,
    pub body: Bytes,
    /// Names the message for logs and for readers that want to drop repeats.
    pub message_id: String,
    pub traceparent: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// A job, as a producer publishes it.
    Job(Priority),
    /// A slice for a lane.
    Lane(Lane),
    /// A slice that comes back to its lane after a rung of `domain::schedule::RUNGS`.
    Wait { lane: Lane, rung: Duration },
    /// A dead letter; the routing key is `<app>.<target>`.
    Dead { app: String, target: String },
    /// A job event, `<app>.<event>`. The only route that may lead nowhere: nobody need listen.
    Event { app: String, event: &'static str },
    /// A number of the ledger's sequence, as digits. Only the last one is kept.
    Sequence,
    /// The accounts of a job for the queue it named. A queue that is not there, is full or does not
    /// confirm is an error like any other, and never holds up what else is published.
    Reply {
        queue: String,
        correlation_id: String,
    },
}

/// A queue that keeps messages for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetainedQueue {
    /// Recipients that ended failed or uncertain.
    Dead,
    /// Messages that are no jobs or slices.
    Rejected,
}

/// A message on a retained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetainedMessage {
    pub body: Bytes,
    pub routing_key: String,
    pub message_id: Option<String>,
    /// Unix seconds, as the publisher said.
    pub published_at: Option<u64>,
    /// Headers that are text, numbers, times or booleans: `fanwise-reason`, `fanwise-source`,
    /// `fanwise-rejected-at` of a rejected message, whoever rejected it.
    pub headers: BTreeMap<String, String>,
}

/// What becomes of a message on a retained that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RetainedEdit {
    Keep,
    Remove,
    /// Keeps another body in its place.
    Replace(Bytes),
    /// Keeps it and looks at no further ones.
    Stop,
}

/// What a walk over a retained did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EditSummary {
    pub shown: u64,
    pub removed: u64,
    pub replaced: u64,
}

/// Looks at what is kept for people.
pub trait RetainedQueues: Send + Sync {
    /// Shows every message on a retained to `visit`, the oldest first, until it breaks off, and leaves
    /// all of them there. Returns how many were shown. Messages that arrive meanwhile are not shown.
    /// A reader sees all of a retained or is refused: where there can be only one at a time, the others
    /// wait for their turn for some seconds. `visit` must not wait for anybody.
    fn read(
        &self,
        retained: RetainedQueue,
        visit: impl FnMut(RetainedMessage) -> ControlFlow<()> + Send,
    ) -> impl Future<Output = Result<u64, BrokerError>> + Send;

    /// Like [`RetainedQueues::read`], and does with every message what `decide` says; slower, and one at a
    /// time. A body that
    /// takes the place of another is durable before that goes, so a walk that is killed or fails
    /// half-way may leave a message twice, with both bodies, and loses none; what was removed until
    /// then is gone.
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

/// Why a publish is not known to be durable. All of them pass: publish again, in a new session if
/// the old one is lost.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error(transparent)]
    Lost(#[from] Lost),
    #[error("the broker refused the message: a queue is full or its leader is away")]
    Refused,
    /// What keeps the messages of this machine cannot, for the reason it gives.
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

/// Who is claimed and who is settled, per job and recipient, with the job's counters.
///
/// A job is known while it runs, however long something of it waits, and for the dedup window after it
/// has completed.
///
/// Every method is one atomic step and may be repeated after an error: doing it twice counts once.
pub trait Ledger: Clone + Send + Sync + 'static {
    /// Registers a submission of a job before any of its slices is published.
    fn accept(
        &self,
        submission: &Submission,
    ) -> impl Future<Output = Result<Accepted, LedgerError>> + Send;

    /// Notes a job that is durable with the broker, so that it is found before a worker registers it.
    /// Changes nothing of a job that is known.
    fn enter(&self, entry: &Entry) -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// Forgets a job that was entered and that no worker will register. Changes nothing of one that is
    /// registered.
    fn withdraw(&self, job: JobId) -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// Records that all slices of a submission are published.
    fn mark_expanded(
        &self,
        job: JobId,
        submission: &str,
    ) -> impl Future<Output = Result<JobProgress, LedgerError>> + Send;

    /// Notes that this part of a list is accepted, and says whether all parts are. With `give_up`, a
    /// list that is not complete never will be: its job waits for no further part of it.
    ///
    /// A ledger that has lost the job says that all are there: it cannot know, and nobody is to be
    /// lost with it.
    fn gather(
        &self,
        job: JobId,
        part: &Together,
        give_up: bool,
    ) -> impl Future<Output = Result<Gathered, LedgerError>> + Send;

    /// Whether all these submissions of a job are expanded.
    fn knows(
        &self,
        job: JobId,
        submissions: &[String],
    ) -> impl Future<Output = Result<bool, LedgerError>> + Send;

    /// Claims recipients for one owner: whoever is granted may be sent to until the lease ends, by
    /// this owner alone.
    fn claim(&self, claim: Claim<'_>) -> impl Future<Output = Result<Claimed, LedgerError>> + Send;

    /// Lengthens these claims, as far as this owner still holds them, and perhaps its others too.
    /// `Ok(false)`: some are no longer its own.
    fn renew(
        &self,
        slice: SliceRef<'_>,
        owner: Owner,
        lease: Duration,
        held: &[Fingerprint],
    ) -> impl Future<Output = Result<bool, LedgerError>> + Send;

    /// Settles outcomes, releases claims and counts, in one step. An outcome that stands already is
    /// never changed: the first one counts. `Ok` with RabbitMQ + Redis: in Redis's memory and log.
    fn settle(
        &self,
        settle: Settle<'_>,
    ) -> impl Future<Output = Result<Recorded, LedgerError>> + Send;

    /// Marks a job completed; `Ok(true)` for whoever did it first. Refused while recipients are
    /// pending or parts are missing.
    fn complete(&self, job: JobId) -> impl Future<Output = Result<bool, LedgerError>> + Send;

    /// What is known of a job.
    fn job(
        &self,
        job: JobId,
    ) -> impl Future<Output = Result<Option<JobRecord>, LedgerError>> + Send;

    /// Jobs by the time of their acceptance, newest first: those that run, and those that completed
    /// within the dedup window. A page may
    /// hold fewer than were asked for, even none, while there is a next one: one question looks at a
    /// bounded number of jobs.
    fn jobs(&self, query: &JobQuery) -> impl Future<Output = Result<JobPage, LedgerError>> + Send;

    /// How a claim by somebody new would be answered now, in the order asked, without claiming.
    fn peek(
        &self,
        job: &JobRecord,
        recipients: &[Fingerprint],
    ) -> impl Future<Output = Result<Vec<ClaimState>, LedgerError>> + Send;

    /// Keeps why recipients ended as they did, for those who ask: the first [`REASONS_MAX`] of a job,
    /// for as long as the job is known.
    fn record_reasons(
        &self,
        job: JobId,
        reasons: &[(Fingerprint, Reason)],
    ) -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// Why these recipients ended as they did, in the order asked, where it was kept.
    fn reasons(
        &self,
        job: JobId,
        recipients: &[Fingerprint],
    ) -> impl Future<Output = Result<Vec<Option<Reason>>, LedgerError>> + Send;

    /// Walks over every recipient of a job and counts what stands there.
    fn audit(&self, job: &JobRecord) -> impl Future<Output = Result<Audit, LedgerError>> + Send;
}

/// What keeps the ledger of jobs in order that nobody works on any more.
pub trait Upkeep: Clone + Send + Sync + 'static {
    /// Notes that something of a job waits and will be looked at again.
    fn waits(&self, job: JobId) -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// Jobs that are not completed and of which nothing was heard for so long: no outcome and nothing
    /// that waits. A bounded number; a job that was shown is not shown again for a part of that time.
    fn quiet(
        &self,
        quiet: Duration,
    ) -> impl Future<Output = Result<Vec<JobRecord>, LedgerError>> + Send;

    /// Ends a job of which nothing was heard for so long, when nothing of it is left to deliver: its
    /// pending recipients count as uncertain and [lost](JobRecord::lost), and it is finished. `None`:
    /// the job is completed, not known, or somebody is at it. An outcome that comes later all the same
    /// takes the place of a lost one.
    fn abandon(
        &self,
        job: JobId,
        quiet: Duration,
    ) -> impl Future<Output = Result<Option<JobProgress>, LedgerError>> + Send;
}

/// Most reasons that are kept of a job; the dead letters have all of them.
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
    /// List entries, as far as they are known.
    pub entries: u64,
    pub not_before_ms: Option<u64>,
    pub now_ms: u64,
}

/// One list of recipients of one job, about to be expanded.
#[derive(Clone, Debug)]
pub struct Submission {
    pub job: JobId,
    pub app: String,
    pub client_msg_no: String,
    pub target: String,
    /// Another digest under the same job is a conflict.
    pub content_digest: String,
    pub submission: String,
    pub entries: u64,
    /// Parts the job is made of; it completes when so many submissions are expanded.
    pub parts: u32,
    /// The shape this submission would choose. The first one of a job decides, until a far larger one
    /// comes; the ledger answers with the shape that rules.
    pub shape: Shape,
    /// The job's own limit and start, as its first submission has them.
    pub rate: Option<String>,
    pub not_before_ms: Option<u64>,
    /// Whom to tell when the job completes; its first submission that names anybody decides.
    pub callback_url: Option<String>,
    pub reply_to: Option<String>,
    pub now_ms: u64,
    /// What the job goes on without; kept from its first submission.
    pub warnings: Vec<String>,
    /// The version of the stored message that a new job would start with.
    pub template: Option<u32>,
}

/// What became of a submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// New recipients: expand them in this shape. `template` is the version of the stored message
    /// that the job started with.
    Expand {
        shape: Shape,
        first: bool,
        template: Option<u32>,
    },
    /// Known, and not all of its recipients are settled: expanding it again is harmless and heals
    /// what may have been lost.
    Again { shape: Shape, template: Option<u32> },
    /// Known and done with.
    Settled,
    /// The key stands for another message.
    Conflict { job: JobId },
}

/// Whether the parts of a list are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gathered {
    Complete,
    /// Some are still to come.
    Waiting,
    /// They did not come in time: nobody on the list is sent to, whatever comes later.
    GivenUp,
}

/// Which slice of which job; everything that finds its place in the ledger.
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

/// The answer to a claim, recipient by recipient in the order asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// Every entry of the slice has its outcome already: ack it, nothing is left to do.
    SliceDone,
    Each(Vec<ClaimState>),
}

#[derive(Clone, Copy, Debug)]
pub struct Settle<'a> {
    pub slice: SliceRef<'a>,
    pub owner: Owner,
    /// Outcomes to record. An unclaimed recipient may be settled too.
    pub outcomes: &'a [(Fingerprint, Outcome)],
    /// Claims of ours to give up without an outcome, of recipients that were certainly not sent to.
    pub release: &'a [Fingerprint],
    /// Claims of ours to give up of recipients that may have been sent to: whoever claims them next
    /// hears of it.
    pub doubted: &'a [Fingerprint],
    /// Claims of ours to give up as they were found, since nobody used them: a doubt that was found
    /// with one stays, and the others are free.
    pub unused: &'a [Fingerprint],
    /// Every recipient of the slice has an outcome now, as far as its deliveries know, and they saw
    /// so many repeats. Entries that the slice has not counted itself are counted as duplicates if
    /// there are no more of them than that; otherwise none is, and all stay pending. Of a job that was
    /// rebuilt they always are.
    pub last: Option<u32>,
}

impl<'a> Settle<'a> {
    /// A step that records nothing yet.
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

/// What a settle found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    pub progress: JobProgress,
    /// Of the outcomes given, those of recipients that had one.
    pub stood: u32,
    /// After the last step of a slice: its entries that have no outcome and were not seen to be
    /// repeats.
    pub missing: u32,
}

/// Where a job stands after a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobProgress {
    pub accounts: Accounts,
    /// All parts are there and expanded, and nobody is pending: time to audit and complete.
    pub finished: bool,
    /// It was completed already.
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
    /// What the job says; another message under its key is a conflict. Unknown once the record was
    /// rebuilt, until the job is submitted again.
    pub content_digest: Option<String>,
    /// Last time an outcome was recorded.
    pub progress_at_ms: Option<u64>,
    pub completed_at_ms: Option<u64>,
    /// The record was rebuilt from slices after the ledger had lost it: what was settled before is
    /// not in the accounts.
    pub rebuilt: bool,
    /// When the ledger was found to have gone back, to an older state of its data, while the job ran:
    /// what was recorded last before that may be missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub went_back_at_ms: Option<u64>,
    /// Recipients whose outcome the ledger does not know although nothing of them is left to deliver.
    /// They count as uncertain.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lost: u64,
    pub submissions: u64,
    pub shape: Shape,
    /// What the job goes on without, since its target cannot honour it.
    pub warnings: Vec<String>,
    /// The job's own limit, as it was written; unknown once the record was rebuilt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<String>,
    /// Nothing is sent before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before_ms: Option<u64>,
    /// Where its accounts are sent when it completes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback_url: Option<String>,
    /// The AMQP queue that they are published to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
    /// How fast it went lately.
    #[serde(skip)]
    pub pace: Pace,
    /// When something of it was seen to wait last.
    #[serde(skip)]
    pub waited_at_ms: Option<u64>,
    /// The version of the stored message that the job started with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<u32>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl JobRecord {
    /// The latest of the times at which the ledger went back that concerns this job.
    pub fn marked(mut self, went_back_at_ms: &[u64]) -> Self {
        let concerns = |at: &u64| {
            self.accepted_at_ms <= *at && self.completed_at_ms.is_none_or(|done| done > *at)
        };
        let times = went_back_at_ms.iter().copied();
        self.went_back_at_ms = times.filter(|at| concerns(at)).max();
        self
    }

    /// Differences between the counters and the ledger, in words.
    pub fn differences(&self, audit: &Audit) -> Vec<String> {
        // The ledger has no names for those whose outcome is lost.
        audit.differences(&Accounts {
            uncertain: self.accounts.uncertain.saturating_sub(self.lost),
            ..self.accounts
        })
    }

    /// What is not known of the job, in words: with any of it, the accounts are not exact.
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

    /// When anything was heard of it last.
    pub fn heard_at_ms(&self) -> u64 {
        let later = self.progress_at_ms.max(self.waited_at_ms);
        later.unwrap_or(0).max(self.accepted_at_ms)
    }

    /// Recipients per second over the last seconds; nothing while too little is known or nothing is
    /// to be done.
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
    /// Durable with the broker; no worker has taken it yet.
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

/// Which jobs to list, and from where on.
#[derive(Clone, Debug, Default)]
pub struct JobQuery {
    pub filter: JobFilter,
    /// The place after which the page begins.
    pub after: Option<JobPlace>,
    pub most: usize,
}

/// All that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobFilter {
    pub app: Option<String>,
    pub target: Option<String>,
    pub client_msg_no: Option<String>,
    pub state: Option<JobState>,
    /// Accepted at or after.
    pub since_ms: Option<u64>,
    /// Accepted before.
    pub until_ms: Option<u64>,
}

impl JobFilter {
    /// Whether a job is meant, as far as its record tells: the times are those of its place.
    pub fn takes(&self, record: &JobRecord) -> bool {
        let is = |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|it| it == is);
        is(&self.app, &record.app)
            && is(&self.target, &record.target)
            && is(&self.client_msg_no, &record.client_msg_no)
            && self.state.is_none_or(|state| state == record.state)
    }
}

/// A place in the list of jobs: ordered by time, then by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobPlace {
    pub at_ms: u64,
    pub job: JobId,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct JobPage {
    pub jobs: Vec<JobRecord>,
    /// Where to go on, if there may be more.
    pub next: Option<JobPlace>,
}

/// The ledger cannot do it now; nothing may be sent until it can (promise 6).
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

/// Heartbeats: whether the store takes writes now, whether it lost what it had taken, and who is alive.
pub trait Pulse: Clone + Send + Sync + 'static {
    /// Writes, as a claim would: an error means that nothing can be claimed now.
    fn beat(&self, beat: &Beat) -> impl Future<Output = Result<Beaten, LedgerError>> + Send;

    /// Raises the sequence of the ledger above its last number and above the highest one that was `seen`
    /// outside of it.
    fn raise(&self, seen: u64) -> impl Future<Output = Result<Raised, LedgerError>> + Send;

    /// The last heartbeats of the processes that are alive.
    fn beats(&self) -> impl Future<Output = Result<Vec<Beat>, LedgerError>> + Send;
}

/// Whoever gave no heartbeat for so long is not alive.
pub const ALIVE: Duration = Duration::from_secs(5);

/// What a process tells with its heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Beat {
    #[serde(skip)]
    pub process: u64,
    /// Of its last heartbeat that was answered; 0 before the first one. A store that has a lower one
    /// went back to older data.
    #[serde(skip)]
    pub number: u64,
    /// It delivers.
    pub works: bool,
    /// Its calls under way, by target.
    #[serde(default)]
    pub calls: BTreeMap<String, UnderWay>,
}

/// Calls whose answer has not come yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct UnderWay {
    pub calls: u64,
    /// Since when the oldest one is under way.
    pub oldest_ms: u64,
}

/// The answer to a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beaten {
    /// The number of this one.
    pub number: u64,
    /// The last one is not there any more: the store went back to older data, or lost it. It has noted
    /// when.
    pub went_back: bool,
}

/// The answer to a raise of the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raised {
    /// The number it has now; 0 where the ledger and the messages lie together and so cannot be of
    /// different ages.
    pub number: u64,
    /// It was lower than the number that was seen: the store went back to older data, or lost it. It has
    /// noted when.
    pub went_back: bool,
}

// ---------------------------------------------------------------------------------------------
// Quotas
// ---------------------------------------------------------------------------------------------

/// What apps with a quota have used up, for all gateways and workers.
///
/// A list is counted once, whoever asks and however often, on the UTC day when it came first; it is
/// remembered until the end of the next day. So a gateway counts before it accepts and a worker before
/// it cuts, and together they count once. A list that waits for a worker longer than that, or that is
/// published again later, counts again.
pub trait Quotas: Clone + Send + Sync + 'static {
    /// Counts all lists of these jobs that were not counted before, or none of them when that would be
    /// more than the app may. They are of one app, and what one of them is too much for, all are. `day`
    /// is the number of the UTC day since 1970.
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
    /// Counted now or before.
    Counted,
    /// Nothing was counted: with what was used before, it is too much.
    Over {
        /// The first of the jobs that is too much by itself, else the first.
        job: JobId,
        used: Used,
    },
}

// ---------------------------------------------------------------------------------------------
// Nonces
// ---------------------------------------------------------------------------------------------

/// Which signed requests have come before, at whatever gateway.
pub trait Nonces: Clone + Send + Sync + 'static {
    /// Whether a nonce comes for the first time; from now on, and for as long as it lives, it has come.
    /// After an error it may have.
    fn is_new(
        &self,
        nonce: &str,
        lives: Duration,
    ) -> impl Future<Output = Result<bool, LedgerError>> + Send;

    /// Forgets a nonce whose request was not carried out: the same request may come again.
    fn release(&self, nonce: &str) -> impl Future<Output = Result<(), LedgerError>> + Send;
}

// ---------------------------------------------------------------------------------------------
// Templates
// ---------------------------------------------------------------------------------------------

/// Stored messages of each app, by name and version.
///
/// The versions of a name count up and are never given twice, whatever is deleted. A version that is
/// no longer the newest, or whose name was deleted, can still be had by its number for at least the
/// dedup window: jobs that started with it go on with it.
pub trait Templates: Clone + Send + Sync + 'static {
    /// Stores a message; jobs that come from now on take this version. Repeated after an error it may
    /// give another version of the same message.
    fn put_template(
        &self,
        app: &str,
        name: &str,
        message: &str,
    ) -> impl Future<Output = Result<StoredTemplate, LedgerError>> + Send;

    /// A version, or the newest one of a name that is not deleted.
    fn template(
        &self,
        app: &str,
        name: &str,
        version: Option<u32>,
    ) -> impl Future<Output = Result<Option<StoredTemplate>, LedgerError>> + Send;

    /// The names of an app with their newest versions, in order; deleted ones are left out.
    fn templates(
        &self,
        app: &str,
    ) -> impl Future<Output = Result<Vec<(String, u32)>, LedgerError>> + Send;

    /// `Ok(false)`: there was no such name.
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
    /// The document as JSON, as it was given.
    pub message: String,
}

// ---------------------------------------------------------------------------------------------
// Limiter
// ---------------------------------------------------------------------------------------------

/// Token buckets and parked targets, shared by all workers.
pub trait Limiter: Clone + Send + Sync + 'static {
    /// Books units on all limits together, or on none. What is granted starts after the wait it names.
    fn lease(&self, lease: &Lease<'_>) -> impl Future<Output = Result<Leased, LedgerError>> + Send;

    /// Gives back recipients (and calls) that were booked and not used.
    fn refund(
        &self,
        limits: &[Limit<'_>],
        recipients: u32,
        calls: u32,
    ) -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// Parks a target for all workers; a later end than the one that stands wins.
    fn park(
        &self,
        target: &str,
        park: &Park,
    ) -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// Ends the parking of a target.
    fn unpark(&self, target: &str) -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// How much of its burst each limit has booked now: 0 when it is idle, 1 and more when the next
    /// unit has to wait. Books nothing.
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

/// Wants `recipients`, packed `per_call` to a call.
#[derive(Clone, Copy, Debug)]
pub struct Lease<'a> {
    pub limits: &'a [Limit<'a>],
    pub recipients: u32,
    pub per_call: u32,
    pub wait_max: Duration,
}

/// What all limits together grant: the least of them, after the longest of their waits. Units are
/// recipients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leased {
    pub grant: Grant,
    /// The limit that decided, if one did.
    pub binding: Option<Scope>,
}

/// A target that waits, and why.
#[derive(
    Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
pub struct Park {
    pub since_ms: u64,
    pub until_ms: u64,
    pub reason: ParkReason,
    /// The code of the answer that led to it; empty when an operator did.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub code: String,
    /// What the backend said, or who parked it and why.
    pub text: String,
}

/// Why a target is parked: a closed set, fit for a label.
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
    /// It said that we are too fast, or asked us to wait.
    Throttled,
    /// Nothing reached it.
    Unreachable,
    /// Signature, token, certificate or permission are wrong (promise 10).
    Config,
    /// Call after call did not succeed.
    Breaker,
    /// Somebody parked it.
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

/// What operators tell running work, shared by all workers. They are asked for often and changed
/// seldom.
pub trait Directives: Clone + Send + Sync + 'static {
    /// Puts a directive in force, in the place of one of its kind about the same subject.
    fn direct(&self, directive: &Directive)
    -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// Ends a directive before its time. `Ok(false)`: there was none.
    fn lift(
        &self,
        subject: &Subject,
        kind: Kind,
    ) -> impl Future<Output = Result<bool, LedgerError>> + Send;

    /// All directives, unless they are still those of the version that the caller knows: then `None`,
    /// and next to nothing was done. Versions are above 0 once there was a directive, and never come
    /// again, not even after the store was lost.
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
// Target
// ---------------------------------------------------------------------------------------------

/// The ledger, the limiter, the directives, the stored messages, the quotas, the nonces and the
/// heartbeats of one engine.
pub trait Store:
    Ledger + Upkeep + Limiter + Directives + Templates + Quotas + Nonces + Pulse
{
}
impl<S: Ledger + Upkeep + Limiter + Directives + Templates + Quotas + Nonces + Pulse> Store for S {}

/// One backend account, as pure functions: what to ask and how to read the answer. The sending itself
/// is the same for all targets and lives in `http::client`.
pub trait Target: Send + Sync + 'static {
    fn profile(&self) -> &Profile;

    /// Most recipients in one call of this job: not more than the profile says, and one where calls
    /// of its kind cannot be packed.
    fn recipients_per_call(&self, _head: &Head) -> usize {
        self.profile().recipients_per_call
    }

    /// What the target makes of a feature.
    fn maps(&self, feature: Feature) -> Mapping;

    /// What of this job the target cannot carry, besides what it does not map: sizes, a missing
    /// sender, fields that exclude each other.
    fn check(&self, head: &Head) -> Vec<Problem>;

    /// Prepares the calls of a job: what they have in common is rendered once per slice.
    fn open(&self, head: &Arc<Head>) -> Box<dyn Calls>;

    /// How to get the credential that requests carry, where one has to be fetched.
    fn login(&self) -> Option<&dyn Login> {
        None
    }

    /// Signs a request, afresh on every attempt; nothing to do for most.
    fn sign(&self, _request: &mut Request, _signing: Signing) {}

    /// How to list all users, where the target can.
    fn directory(&self) -> Option<&dyn Directory> {
        None
    }

    /// A request that changes nothing, by whose reply the account can be told, where there is one.
    fn identify(&self) -> Option<Request> {
        None
    }

    /// What answers there, or what is wrong with it: another system or version, a refused credential.
    fn read_identity(&self, _reply: &HttpReply) -> Result<String, String> {
        Ok(String::new())
    }
}

/// Compares a job with a target. `all`: the audience is all users.
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
    /// The request for these recipients: the same bytes whenever it is asked for again, but for what
    /// [`Target::sign`] and [`Login::apply`] add.
    fn request(&self, recipients: &[&str]) -> Request;

    /// What the reply to that request means.
    fn read_reply(&self, recipients: &[&str], reply: &HttpReply) -> Verdict;

    /// Asks whether a call in doubt was carried out, where the target can tell.
    fn probe(&self, _recipients: &[&str]) -> Option<Request> {
        None
    }

    /// What the reply to a probe means.
    fn read_probe(&self, _recipients: &[&str], _reply: &HttpReply) -> Probed {
        Probed::Unknown
    }
}

/// What a probe found out about a call in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probed {
    Sent,
    /// Not sent, as far as the target knows now. Believed when it says so twice, with a pause between.
    NotSent,
    Unknown,
}

/// How a credential is fetched that requests carry. The worker keeps it and fetches a new one when it
/// nears its end, or when an answer says that it is [stale](Answer::stale).
pub trait Login: Send + Sync {
    fn request(&self) -> Request;

    /// The credential, or what the refusal means.
    fn read_credential(&self, reply: &HttpReply) -> Result<Credential, TargetAnswer>;

    /// Puts the credential into a request.
    fn apply(&self, request: &mut Request, credential: &str);
}

#[derive(Clone, Debug)]
pub struct Credential {
    pub secret: Secret,
    /// How long it is good for.
    pub lives: Duration,
}

/// What a signature is made of that is never the same twice.
#[derive(Clone, Copy, Debug)]
pub struct Signing {
    pub now_ms: u64,
    pub nonce: u128,
}

/// How all users of a target are listed, page by page.
pub trait Directory: Send + Sync {
    /// The page that begins at a cursor; the first one without.
    fn page(&self, cursor: Option<&str>) -> Request;

    fn read_page(&self, cursor: Option<&str>, reply: &HttpReply) -> Result<Page, TargetAnswer>;

    /// The directory's own credential, where it is not that of the calls.
    fn login(&self) -> Option<&dyn Login>;
}

/// A page of users.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub users: Vec<String>,
    /// How many users all pages together have, where the target says so and can be believed.
    pub total: Option<u64>,
    /// Where the next page begins; nothing after the last one.
    pub next: Option<String>,
}

/// What a target declares about itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Most recipients in one call; see also [`Target::recipients_per_call`].
    pub recipients_per_call: usize,
    /// A repeated call with the same key does no harm: uncertain calls may be retried.
    pub idempotent: bool,
    /// How long after a call in doubt a probe is worth asking.
    pub probe_after: Duration,
    /// The limit that the backend documents, kept below a little; in force unless one is configured.
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

/// Carries requests to backends. One request, one answer: no retries, no redirects.
pub trait Transport: Send + Sync + 'static {
    /// `Ok`: a whole reply was read. The caller never tries again by itself: whether that is safe is
    /// the worker's decision.
    fn send(
        &self,
        request: Request,
        timeout: Duration,
    ) -> impl Future<Output = Result<HttpReply, SendError>> + Send;

    /// Gives up what is kept for later requests and has been kept for too long. Called now and then.
    fn tidy(&self) {}
}

/// Why there is no reply. `code` is one token, fit for a filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Certainly not sent: not one byte of the request left.
    #[error("not sent: {what}")]
    NotSent { what: String, code: &'static str },
    /// Perhaps sent: the request left, wholly or in part, and no reply came back in one piece.
    #[error("perhaps sent: {what}")]
    Unknown { what: String, code: &'static str },
}

/// The code of a server whose certificate is not to be trusted.
pub const CERTIFICATE: &str = "certificate";
/// The code of a server inside a network that is not to be reached.
pub const PRIVATE_ADDRESS: &str = "private_address";
/// The code of a URL that names no server.
pub const BAD_URL: &str = "bad_url";

impl SendError {
    /// What the error means for the recipients of the call.
    pub fn answer(&self) -> TargetAnswer {
        let (class, code, what) = match self {
            // No later attempt helps, and no recipient is at fault.
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
