//! The values that labels can have where nothing else in the code names them.

use strum::{IntoStaticStr, VariantArray};

/// The result of a message from the job queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum JobResult {
    Accepted,
    Extended,
    Repeated,
    Conflict,
    Rejected,
}

impl JobResult {
    pub(super) const ALL: &'static [Self] = Self::VARIANTS;

    pub(super) fn as_str(self) -> &'static str {
        self.into()
    }
}

/// How the delivery of a slice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum SliceResult {
    /// Every recipient has its outcome.
    Done,
    /// A remainder waits on the ladder, or at the end of its lane.
    Deferred,
    /// Requeued because of a drain or a panic.
    Requeued,
    /// The session was lost; the broker hands the slice out again.
    Lost,
    /// Not a slice; it is among the rejected messages.
    Rejected,
}

impl SliceResult {
    pub(super) const ALL: &'static [Self] = Self::VARIANTS;

    pub(super) fn as_str(self) -> &'static str {
        self.into()
    }
}

/// What became of a span of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum SpanResult {
    Exported,
    /// The collector did not take it.
    Refused,
    /// The queue was full, or the process ended.
    Dropped,
}

impl SpanResult {
    pub(super) const ALL: &'static [Self] = Self::VARIANTS;

    pub(super) fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The channel of a notice that a job completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum NoticeKind {
    Callback,
    Reply,
}

impl NoticeKind {
    pub(super) const ALL: &'static [Self] = Self::VARIANTS;

    pub(super) fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The result of one attempt to deliver a notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum NoticeResult {
    Delivered,
    /// It waits on the ladder for the next attempt.
    Retried,
    /// No further attempt follows.
    Abandoned,
}

impl NoticeResult {
    pub(super) const ALL: &'static [Self] = Self::VARIANTS;

    pub(super) fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The answer of `before_accept` about a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum AskedResult {
    Allow,
    Deny,
    Change,
    /// No decision: no answer in time, or an invalid one. `on_failure` decides.
    Failed,
}

impl AskedResult {
    pub(super) const ALL: &'static [Self] = Self::VARIANTS;

    pub(super) fn as_str(self) -> &'static str {
        self.into()
    }
}

/// What became of a list that a job names by its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum ListResult {
    Fetched,
    Refused,
    /// Its server did not answer, or broke off.
    Failed,
}

impl ListResult {
    pub(super) const ALL: &'static [Self] = Self::VARIANTS;

    pub(super) fn as_str(self) -> &'static str {
        self.into()
    }
}

/// A step of the ledger or limiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum LedgerStep {
    Accept,
    Expanded,
    Gather,
    Claim,
    Renew,
    Settle,
    Complete,
    Look,
    Audit,
    Lease,
    Park,
    Template,
    Direct,
    Charge,
    Cap,
    Nonce,
    Beat,
    Sweep,
    Count,
}

impl LedgerStep {
    pub const ALL: &'static [Self] = Self::VARIANTS;

    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The part of a process that has a session with the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum BrokerUser {
    Worker,
    Gateway,
}

impl BrokerUser {
    pub(super) fn as_str(self) -> &'static str {
        self.into()
    }
}

/// A bound of the HTTP interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Bound {
    /// Requests at a time.
    Places,
    /// Bytes of bodies in memory.
    Bodies,
    /// Uploads at a time.
    Uploads,
    /// Streams of events.
    Streams,
    /// Bytes of answers that clients have not taken.
    Answers,
    /// Logins at a time.
    Logins,
    /// Readers of dead letters at a time.
    Readers,
    /// Requests per second of an app.
    Rate,
    /// Recipients that wait for a target.
    Pending,
}

impl Bound {
    pub(super) const ALL: &'static [Self] = Self::VARIANTS;

    pub(super) fn as_str(self) -> &'static str {
        self.into()
    }
}
