//! Finds jobs without any activity, and ends those that are abandoned.

use std::collections::HashMap;
use std::collections::hash_map::Entry::{Occupied, Vacant};
use std::ops::Bound;
use std::time::Duration;

use parking_lot::Mutex;
use redb::ReadTransaction;

use super::disk::StorageError;
use super::ledger::{accounts, job_row, keep_row, progress, record};
use super::limiter::{EmbeddedStore, ledger_error};
use super::listing;
use super::tables::{JOBS, JobRow};
use crate::clock::now_ms;
use crate::domain::ids::JobId;
use crate::ports::{JobProgress, JobRecord, JobState, LedgerError, Upkeep};

/// Most jobs that are shown as quiet at a time, and most that one look goes through.
const SHOWN_MAX: usize = 100;
const LOOKED_AT_MAX: usize = 10_000;

/// The position of the walk over all jobs, and when jobs that were shown may be shown again.
#[derive(Debug, Default)]
pub(super) struct Walk {
    after: String,
    shown: HashMap<String, u64>,
}

impl Upkeep for EmbeddedStore {
    async fn waits(&self, job: JobId) -> Result<(), LedgerError> {
        let job = job.to_string();
        let step = self.0.0.write(0, move |work| {
            let Some(mut row) = job_row(work, &job)? else {
                return Ok(());
            };
            if row.entered || row.completed_at_ms.is_some() {
                return Ok(());
            }
            row.waited_at_ms = Some(work.now_ms);
            keep_row(work, &job, &row)
        });
        step.await.map_err(ledger_error)
    }

    async fn quiet(&self, quiet: Duration) -> Result<Vec<JobRecord>, LedgerError> {
        let walk: &Mutex<Walk> = &self.0.0.walk;
        let now = now_ms();
        let after = {
            let mut walk = walk.lock();
            walk.shown.retain(|_, until| *until > now);
            walk.after.clone()
        };
        let read = self.0.0.read(move |it| page(it, &after, quiet, now));
        let (after, quiet_ones) = read.await.map_err(ledger_error)?;
        let mut walk = walk.lock();
        walk.after = after;
        let again = now + (quiet / 4).as_millis() as u64;
        // A job that was shown keeps its time, so frequent queries do not delay when it is shown
        // again.
        let is_new = |record: &JobRecord| match walk.shown.entry(record.job.to_string()) {
            Occupied(_) => false,
            Vacant(new) => {
                new.insert(again);
                true
            }
        };
        Ok(quiet_ones.into_iter().filter(is_new).collect())
    }

    async fn each_open(&self, mut visit: impl FnMut(&JobRecord) + Send) -> Result<(), LedgerError> {
        let mut after = None;
        loop {
            let places = self
                .0
                .0
                .read(move |it| listing::open_places(it, after, SHOWN_MAX))
                .await;
            let places = places.map_err(ledger_error)?;
            let Some(last) = places.last() else {
                return Ok(());
            };
            after = Some(*last);
            let records = self.records_at(places).await.map_err(ledger_error)?;
            let open = |it: &&JobRecord| it.state != JobState::Completed;
            records.iter().flatten().filter(open).for_each(&mut visit);
        }
    }

    async fn abandon(
        &self,
        job: JobId,
        quiet: Duration,
    ) -> Result<Option<JobProgress>, LedgerError> {
        let id = job.to_string();
        let step = self.0.0.write(0, move |work| {
            let Some(mut row) = job_row(work, &id)? else {
                return Ok(None);
            };
            if !is_quiet(&row, quiet, work.now_ms) || work.claims.any_held(row.life, work.now) {
                return Ok(None);
            }
            row.lost += accounts(&row)?.pending();
            // No worker is expanding its submissions either.
            row.expanded = row.submissions.max(row.parts.into());
            row.progress_at_ms = Some(work.now_ms);
            keep_row(work, &id, &row)?;
            progress(&row).map(Some)
        });
        step.await.map_err(ledger_error)
    }
}

fn is_quiet(row: &JobRow, quiet: Duration, now_ms: u64) -> bool {
    let heard = row.progress_at_ms.max(row.waited_at_ms).unwrap_or(0);
    let silent = now_ms.saturating_sub(heard.max(row.accepted_at_ms));
    row.completed_at_ms.is_none() && u128::from(silent) >= quiet.as_millis()
}

/// The quiet jobs among the next ones, and the position to continue from.
fn page(
    transaction: &ReadTransaction,
    after: &str,
    quiet: Duration,
    now_ms: u64,
) -> Result<(String, Vec<JobRecord>), StorageError> {
    let jobs = transaction.open_table(JOBS)?;
    let bounds = (Bound::Excluded(after), Bound::Unbounded);
    let mut found = Vec::new();
    for (looked_at, entry) in jobs.range::<&str>(bounds)?.enumerate() {
        let (id, row) = entry?;
        let row = JobRow::decode(row.value())?;
        if is_quiet(&row, quiet, now_ms) {
            found.push(record(
                id.value().parse().map_err(StorageError::broken)?,
                row,
            )?);
        }
        if found.len() >= SHOWN_MAX || looked_at >= LOOKED_AT_MAX {
            return Ok((id.value().to_owned(), found));
        }
    }
    Ok((String::new(), found))
}
