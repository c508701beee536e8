//! The port to the frequency caps of apps.

use std::future::Future;

use super::LedgerError;
use crate::domain::frequency_cap::FrequencyCap;
use crate::domain::ids::{Fingerprint, JobId};

/// Counts the messages of each category that an app's recipients got lately, for all workers
/// together. `domain::frequency_cap` has the rules.
///
/// Every method is one atomic step for each recipient, and the caller may repeat it after an error:
/// a job has one unit of a recipient, however often it takes one.
pub trait FrequencyCaps: Clone + Send + Sync + 'static {
    /// Takes a unit of each recipient for a job. Returns, in the order asked, whether the recipient
    /// has one now: `false` means that the message would be one too many.
    fn take_units(
        &self,
        units: CapUnits<'_>,
    ) -> impl Future<Output = Result<Vec<bool>, LedgerError>> + Send;

    /// Gives the units of a job back: these recipients got no message, and get none from this job.
    fn give_back_units(
        &self,
        units: CapUnits<'_>,
    ) -> impl Future<Output = Result<(), LedgerError>> + Send;
}

/// The units of some recipients under one cap, for one job.
#[derive(Clone, Copy, Debug)]
pub struct CapUnits<'a> {
    pub app: &'a str,
    pub category: &'a str,
    /// With another period, the count begins anew; with another `max`, it goes on.
    pub cap: FrequencyCap,
    pub job: JobId,
    /// The same in all jobs of the app.
    pub recipients: &'a [Fingerprint],
}
