//! The port to the ledger: who was claimed, what came of it, and the accounts of each job.

use std::future::Future;
use std::time::Duration;

use super::{JobPage, JobQuery, JobRecord};
use crate::domain::accounts::{Accounts, Audit};
use crate::domain::announce::DeadRecipient;
use crate::domain::delivery::ClaimState;
use crate::domain::ids::{Fingerprint, JobId, Owner, SliceId};
use crate::domain::lane::Priority;
use crate::domain::list_reference::FetchedList;
use crate::domain::message_id::{KeepsIds, KeptId};
use crate::domain::outcome::{Class, Outcome};
use crate::domain::slice::{Head, Shape, Together};

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

    /// Returns whether all these submissions of a job are accepted. One without entries, the request
    /// for all users, must be expanded too.
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

    /// Settles, then claims for the same slice and owner: what was released first can be claimed
    /// again. An engine may take both in one step. After an error the caller may repeat both.
    fn settle_and_claim(
        &self,
        settle: Settle<'_>,
        claim: Claim<'_>,
    ) -> impl Future<Output = Result<(Recorded, Claimed), LedgerError>> + Send {
        async move {
            let recorded = self.settle(settle).await?;
            Ok((recorded, self.claim(claim).await?))
        }
    }

    /// The record of a job that is finished, and its audit. An engine may read both together.
    fn close(
        &self,
        job: JobId,
    ) -> impl Future<Output = Result<Option<(JobRecord, Audit)>, LedgerError>> + Send {
        async move {
            let Some(record) = self.job(job).await? else {
                return Ok(None);
            };
            let audit = self.audit(&record).await?;
            Ok(Some((record, audit)))
        }
    }

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

    /// Shows every job that is not completed to `visit`, once, in no order. It may miss a job that
    /// is accepted meanwhile, and show one that completes meanwhile.
    fn each_open(
        &self,
        visit: impl FnMut(&JobRecord) + Send,
    ) -> impl Future<Output = Result<(), LedgerError>> + Send;

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
    pub priority: Priority,
    pub not_before_ms: Option<u64>,
    pub expires_at_ms: Option<u64>,
    pub tags: Vec<String>,
    pub fetched: Option<FetchedList>,
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
    /// The recipients per slice that this worker prefers. The first acceptance of the submission
    /// decides, so that a list that is cut again is cut into the same slices.
    pub slice_recipients: u32,
    /// From the first submission of the job, as its sender, its sending hours, its own limit and its
    /// times.
    pub priority: Priority,
    pub sender: Option<String>,
    pub window: Option<String>,
    pub pace_until_ms: Option<u64>,
    pub category: Option<String>,
    pub rate: Option<String>,
    pub not_before_ms: Option<u64>,
    pub expires_at_ms: Option<u64>,
    pub tags: Vec<String>,
    /// The version of the list, if the gateway fetched it. That of the last submission counts.
    pub fetched: Option<FetchedList>,
    /// Where to send the notice of completion. The first submission that names a destination
    /// decides.
    pub callback_url: Option<String>,
    pub reply_to: Option<String>,
    /// The second target, from the first submission of the job.
    pub fallback: Option<String>,
    /// Set if the job keeps ids; also from its first submission.
    pub keeps_ids: Option<KeepsIds>,
    pub now_ms: u64,
    /// The features that the job goes on without; kept from its first submission.
    pub warnings: Vec<String>,
    /// The version of the stored message with which a new job would start.
    pub template: Option<u32>,
    /// It counts as expanded at once. A submission with entries may: its job is not finished before
    /// each entry has its outcome, and the broker has the job until all slices are published.
    pub expanded: bool,
}

/// The ledger's answer to a submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It has new recipients: expand it in this shape. `template` is the version of the stored
    /// message with which the job started, `slice_recipients` how the list is cut; an earlier
    /// version did not record that.
    Expand {
        shape: Shape,
        first: bool,
        template: Option<u32>,
        slice_recipients: Option<u32>,
    },
    /// The submission is known, and some of its recipients are pending. Expanding it again does no
    /// harm and replaces slices that may have been lost.
    Again {
        shape: Shape,
        template: Option<u32>,
        slice_recipients: Option<u32>,
    },
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
    /// The ids of messages among them, to keep beside the outcomes: only where the outcome is the
    /// recipient's first.
    pub ids: &'a [(Fingerprint, KeptId)],
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
            ids: &[],
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
    /// `None` only if the same step granted a claim: the job is not finished then, and a later step
    /// of the slice tells.
    pub progress: Option<JobProgress>,
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
