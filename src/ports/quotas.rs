//! The port to the daily quotas of apps.

use std::future::Future;

use super::LedgerError;
use crate::domain::ids::JobId;
use crate::domain::permissions::{Asked, Permissions, Used};

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
