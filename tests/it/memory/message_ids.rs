//! Implements the port to the ids of messages in memory.

use fanwise::domain::ids::{Fingerprint, JobId};
use fanwise::domain::message_id::{KeptId, RecallState};
use fanwise::ports::{JobRecord, KeptPage, LedgerError, MessageIds};

use super::MemoryStore;
use super::store::State;

impl MessageIds for MemoryStore {
    async fn kept_ids(
        &self,
        job: &JobRecord,
        recipients: &[Fingerprint],
    ) -> Result<Vec<Option<KeptId>>, LedgerError> {
        let look = |state: &mut State| {
            let job = state.jobs.get(&job.job);
            let id = |it: &Fingerprint| job.and_then(|job| job.ids.get(it).cloned());
            recipients.iter().map(id).collect()
        };
        self.step("kept_ids", look).await
    }

    async fn kept_page(&self, job: &JobRecord, from: u64) -> Result<KeptPage, LedgerError> {
        let look = |state: &mut State| {
            let job = state.jobs.get(&job.job);
            let ids = job
                .into_iter()
                .flat_map(|job| job.ids.range(Fingerprint(from)..));
            KeptPage {
                ids: ids.map(|(it, id)| (*it, id.clone())).collect(),
                next: None,
            }
        };
        self.step("kept_page", look).await
    }

    async fn note_recalls(
        &self,
        job: JobId,
        recalls: &[(Fingerprint, RecallState)],
    ) -> Result<(), LedgerError> {
        let note = |state: &mut State| {
            for (recipient, recall) in recalls {
                let job = state.jobs.get_mut(&job);
                if let Some(id) = job.and_then(|job| job.ids.get_mut(recipient)) {
                    id.recall = *recall;
                }
            }
        };
        self.step("note_recalls", note).await
    }
}
