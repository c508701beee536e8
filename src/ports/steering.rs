//! The port to what operators change of a job, and to who changed it.

use std::future::Future;

use super::{JobRecord, LedgerError};
use crate::domain::directive::Action;
use crate::domain::ids::{Fingerprint, JobId};
use crate::domain::trail::TrailEntry;

/// Changes the records of jobs. The caller may repeat a step after an error.
pub trait Steering: Clone + Send + Sync + 'static {
    /// Notes another priority, start time, deadline or pace in the record of a job, for queries. Other
    /// actions and unknown jobs change nothing.
    fn amend(
        &self,
        job: JobId,
        change: &Action,
    ) -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// Adds entries to the audit trails of these jobs, which keep the last
    /// [`TRAIL_MAX`](crate::domain::trail::TRAIL_MAX). Unknown jobs have none.
    fn note(
        &self,
        jobs: &[JobId],
        entry: &TrailEntry,
    ) -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// The audit trail of a job, oldest first, as long as the ledger knows the job.
    fn trail(
        &self,
        job: JobId,
    ) -> impl Future<Output = Result<Vec<TrailEntry>, LedgerError>> + Send;

    /// Changes the outcome of recipients from `uncertain` to `sent` or `failed`. Returns in the
    /// order asked whether a recipient was changed: others are not uncertain, or no longer. A
    /// recipient counts once, however often it is resolved.
    fn resolve(
        &self,
        job: &JobRecord,
        recipients: &[Fingerprint],
        to: Resolution,
    ) -> impl Future<Output = Result<Vec<bool>, LedgerError>> + Send;
}

/// What became of an uncertain recipient, as an operator found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    Sent,
    Failed,
}
