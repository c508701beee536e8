//! The port through which workers agree on the sub-lane of each job.

use std::future::Future;

use super::LedgerError;
use crate::domain::ids::JobId;
use crate::domain::lane::Priority;

/// Assigns the open jobs of a target and priority to its sub-lanes (`domain::lane`).
///
/// The choice decides how fairly jobs share, and nothing else: slices are delivered from whatever
/// lane they are on. A job that is completed or unknown takes no room; the next assignment forgets
/// it.
pub trait SubLanes: Clone + Send + Sync + 'static {
    /// Returns the sub-lane with the least open work, and assigns the job to it. A job that is
    /// assigned already stays where it is, so the step may be repeated, and all submissions of a job
    /// share its sub-lane while it is open.
    fn assign(&self, job: &Unassigned<'_>)
    -> impl Future<Output = Result<u32, LedgerError>> + Send;
}

/// A job that the ledger has accepted.
#[derive(Clone, Copy, Debug)]
pub struct Unassigned<'a> {
    pub job: JobId,
    pub app: &'a str,
    pub target: &'a str,
    pub priority: Priority,
    /// As far as the number is known.
    pub recipients: u64,
}
