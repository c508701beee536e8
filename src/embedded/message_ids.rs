//! Implements the port to the ids of messages: one row for each recipient.

use redb::ReadableTable as _;

use super::disk::StorageError;
use super::ledger::job_row;
use super::limiter::{EmbeddedStore, ledger_error};
use super::tables::{IDS, JOBS, JobRow};
use crate::domain::ids::{Fingerprint, JobId};
use crate::domain::message_id::{KeptId, RecallState};
use crate::ports::{JobRecord, KeptPage, LedgerError, MessageIds};

/// Ids in one page.
const PAGE: usize = 1000;

fn read(bytes: &[u8]) -> Result<KeptId, StorageError> {
    KeptId::decode(bytes).ok_or_else(|| StorageError::broken("an id cannot be read"))
}

impl MessageIds for EmbeddedStore {
    async fn kept_ids(
        &self,
        job: &JobRecord,
        recipients: &[Fingerprint],
    ) -> Result<Vec<Option<KeptId>>, LedgerError> {
        let job = job.job.to_string();
        let recipients: Vec<u64> = recipients.iter().map(|it| it.0).collect();
        let read = self.0.0.read(move |transaction| {
            let row = transaction.open_table(JOBS)?.get(job.as_str())?;
            let Some(row) = row.map(|row| JobRow::decode(row.value())).transpose()? else {
                return Ok(vec![None; recipients.len()]);
            };
            let table = transaction.open_table(IDS)?;
            let id = |fingerprint: &u64| {
                let bytes = table.get((row.life, *fingerprint))?;
                bytes.map(|bytes| read(bytes.value())).transpose()
            };
            recipients.iter().map(id).collect()
        });
        read.await.map_err(ledger_error)
    }

    async fn kept_page(&self, job: &JobRecord, from: u64) -> Result<KeptPage, LedgerError> {
        let job = job.job.to_string();
        let read = self.0.0.read(move |transaction| {
            let row = transaction.open_table(JOBS)?.get(job.as_str())?;
            let Some(row) = row.map(|row| JobRow::decode(row.value())).transpose()? else {
                return Ok(KeptPage::default());
            };
            let table = transaction.open_table(IDS)?;
            let mut page = KeptPage::default();
            for entry in table.range((row.life, from)..=(row.life, u64::MAX))? {
                let (key, bytes) = entry?;
                let fingerprint = key.value().1;
                if page.ids.len() == PAGE {
                    page.next = Some(fingerprint);
                    break;
                }
                page.ids
                    .push((Fingerprint(fingerprint), read(bytes.value())?));
            }
            Ok(page)
        });
        read.await.map_err(ledger_error)
    }

    async fn note_recalls(
        &self,
        job: JobId,
        recalls: &[(Fingerprint, RecallState)],
    ) -> Result<(), LedgerError> {
        let job = job.to_string();
        let recalls: Vec<_> = recalls.iter().map(|(it, state)| (it.0, *state)).collect();
        let step = self.0.0.write(recalls.len() * 48, move |work| {
            let Some(JobRow { life, .. }) = job_row(work, &job)? else {
                return Ok(());
            };
            let table = work.tables.ids.open()?;
            for (fingerprint, state) in &recalls {
                let key = (life, *fingerprint);
                let kept = table.get(key)?.map(|bytes| bytes.value().to_vec());
                if let Some(mut bytes) = kept
                    && let Some(first) = bytes.first_mut()
                {
                    *first = state.code();
                    table.insert(key, bytes.as_slice())?;
                }
            }
            Ok(())
        });
        step.await.map_err(ledger_error)
    }
}
