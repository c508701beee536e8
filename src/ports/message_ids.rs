//! The port to the ids of messages that the ledger keeps for some jobs.

use std::future::Future;

use super::{JobRecord, LedgerError};
use crate::domain::ids::{Fingerprint, JobId};
use crate::domain::message_id::{KeptId, RecallState};

/// A page of kept ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeptPage {
    /// Each id with the fingerprint of its recipient.
    pub ids: Vec<(Fingerprint, KeptId)>,
    /// Where the next page begins; `None` after the last page.
    pub next: Option<u64>,
}

/// The ids that [`Ledger::settle`](super::Ledger::settle) kept. They are there as long as the ledger
/// knows the job.
pub trait MessageIds: Clone + Send + Sync + 'static {
    /// The ids of the messages to these recipients, in the order asked; `None` where there is none.
    fn kept_ids(
        &self,
        job: &JobRecord,
        recipients: &[Fingerprint],
    ) -> impl Future<Output = Result<Vec<Option<KeptId>>, LedgerError>> + Send;

    /// The page of a job's ids that begins here; the first page begins at 0. A page has some
    /// hundred ids, or fewer.
    fn kept_page(
        &self,
        job: &JobRecord,
        from: u64,
    ) -> impl Future<Output = Result<KeptPage, LedgerError>> + Send;

    /// Notes what became of the recalls of these messages. Changes nothing where there is no id.
    fn note_recalls(
        &self,
        job: JobId,
        recalls: &[(Fingerprint, RecallState)],
    ) -> impl Future<Output = Result<(), LedgerError>> + Send;
}
