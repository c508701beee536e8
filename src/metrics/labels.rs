//! The values that labels can have where nothing else in the code names them.

/// What became of a message on the job queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum JobResult {
    Accepted,
    Extended,
    Repeated,
    Conflict,
    Rejected,
}

impl JobResult {
    pub(super) const ALL: &'static [Self] = <Self as strum::VariantArray>::VARIANTS;

    pub(super) fn as_str(self) -> &'static str {
        self.into()
    }
}

/// How the delivery of a slice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum SliceResult {
    /// Every recipient has its outcome.
    Done,
    /// A remainder waits on the ladder or at the end of its lane.
    Deferred,
    /// Handed back to the broker: drain, or a panic.
    Requeued,
    /// Its session was lost; somebody else gets it.
    Lost,
    /// Not a slice; it lies in `fanwise.rejected`.
    Rejected,
}

impl SliceResult {
    pub(super) const ALL: &'static [Self] = <Self as strum::VariantArray>::VARIANTS;

    pub(super) fn as_str(self) -> &'static str {
        self.into()
    }
}

/// How somebody is told that a job completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum NoticeKind {
    Callback,
    Reply,
}

impl NoticeKind {
    pub(super) const ALL: &'static [Self] = <Self as strum::VariantArray>::VARIANTS;

    pub(super) fn as_str(self) -> &'static str {
        self.into()
    }
}

/// What became of an attempt to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum NoticeResult {
    Delivered,
    /// Waits on the ladder for another attempt.
    Retried,
    /// Not tried any more.
    Abandoned,
}

impl NoticeResult {
    pub(super) const ALL: &'static [Self] = <Self as strum::VariantArray>::VARIANTS;

    pub(super) fn as_str(self) -> &'static str {
        self.into()
    }
}

/// What `before_accept` said of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum AskedResult {
    Allow,
    Deny,
    Change,
    /// No decision: no answer in time, or one that is none. `on_failure` decides.
    Failed,
}

impl AskedResult {
    pub(super) const ALL: &'static [Self] = <Self as strum::VariantArray>::VARIANTS;

    pub(super) fn as_str(self) -> &'static str {
        self.into()
    }
}

/// A step of the ledger or limiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::VariantArray)]
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
    Nonce,
    Beat,
    Sweep,
}

impl LedgerStep {
    pub(super) const ALL: &'static [Self] = <Self as strum::VariantArray>::VARIANTS;

    pub fn as_str(self) -> &'static str {
        self.into()
    }
}
