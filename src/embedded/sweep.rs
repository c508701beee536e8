//! Forgets jobs that completed longer ago than the dedup window, some rows at a time, so that no
//! commit is held up for long. It never forgets a running job, however long its slices wait.
//!
//! A job is forgotten in one step, which removes its record and marks its life as ended. No reader
//! finds the rows of that life any more, and they are removed in batches.

use std::ops::Bound;
use std::time::Duration;

use redb::{ReadTransaction, ReadableTable as _, Value};

use super::disk::StorageError;
use super::listing;
use super::tables::{ENDED, JOBS, JobRow};
use super::transaction::LoggedTable;
use super::writer::WriteContext;

/// Rows removed in one commit.
const ROWS_MAX: usize = 2000;

/// Jobs that one look goes through.
const JOBS_MAX: usize = 500;

/// The pause between two commits of a sweep.
pub(super) const BREATH: Duration = Duration::from_millis(20);

/// The pause between two looks for something to sweep.
pub(super) fn pause(window: Duration) -> Duration {
    (window / 16).clamp(Duration::from_millis(50), Duration::from_secs(30))
}

/// The position of the walk over all jobs.
#[derive(Debug, Default)]
pub(super) struct Round {
    after: String,
}

/// Something to sweep.
#[derive(Clone, Debug)]
pub(super) enum Task {
    /// Jobs whose dedup window seemed to be over.
    Forget(Vec<String>),
    /// A life whose rows are to be removed.
    Remove(u64),
}

impl Round {
    pub(super) fn look(
        &mut self,
        transaction: &ReadTransaction,
        window: Duration,
        now_ms: u64,
    ) -> Result<Option<Task>, StorageError> {
        if let Some((life, _)) = transaction.open_table(ENDED)?.first()? {
            return Ok(Some(Task::Remove(life.value())));
        }
        let jobs = transaction.open_table(JOBS)?;
        let mut over = Vec::new();
        let mut looked = 0;
        let bounds = (Bound::Excluded(self.after.as_str()), Bound::Unbounded);
        let mut last = String::new();
        for entry in jobs.range::<&str>(bounds)?.take(JOBS_MAX) {
            let (job, row) = entry?;
            looked += 1;
            job.value().clone_into(&mut last);
            if is_over(&JobRow::decode(row.value())?, window, now_ms) {
                over.push(last.clone());
            }
        }
        self.after = if looked < JOBS_MAX {
            String::new()
        } else {
            last
        };
        Ok((!over.is_empty()).then_some(Task::Forget(over)))
    }
}

fn is_over(row: &JobRow, window: Duration, now_ms: u64) -> bool {
    let over = |at: u64| u128::from(now_ms.saturating_sub(at)) > window.as_millis();
    row.completed_at_ms.is_some_and(over)
}

pub(super) fn sweep(work: &mut WriteContext<'_>, task: &Task) -> Result<(), StorageError> {
    match task {
        Task::Forget(jobs) => jobs.iter().try_for_each(|job| forget(work, job)),
        Task::Remove(life) => remove(work, *life),
    }
}

fn forget(work: &mut WriteContext<'_>, job: &str) -> Result<(), StorageError> {
    let row = match work.tables.jobs.open()?.get(job)? {
        Some(row) => JobRow::decode(row.value())?,
        None => return Ok(()),
    };
    // It may run again since it was looked at.
    if !is_over(&row, work.window, work.now_ms) {
        return Ok(());
    }
    work.tables.jobs.open()?.remove(job)?;
    listing::remove(work, job, &row)?;
    work.tables.ended.open()?.insert(row.life, ())?;
    work.claims.drop_life(&mut work.tables.claims, row.life)
}

fn remove(work: &mut WriteContext<'_>, life: u64) -> Result<(), StorageError> {
    let tables = &mut work.tables;
    let mut room = ROWS_MAX;
    let buckets = tables.buckets.open()?;
    let keys: Vec<u32> = buckets
        .range((life, 0)..=(life, u32::MAX))?
        .take(room)
        .map(|row| Ok(row?.0.value().1))
        .collect::<Result<_, StorageError>>()?;
    room -= keys.len();
    for bucket in keys {
        buckets.remove((life, bucket))?;
    }
    remove_numbered(tables.reasons.open()?, life, &mut room)?;
    remove_numbered(tables.ids.open()?, life, &mut room)?;
    remove_numbered(tables.trails.open()?, life, &mut room)?;
    remove_named(tables.slices.open()?, life, &mut room)?;
    remove_named(tables.submissions.open()?, life, &mut room)?;
    if room > 0 {
        tables.ended.open()?.remove(life)?;
    }
    Ok(())
}

fn remove_numbered<V: Value + 'static>(
    table: &mut LoggedTable<'_, (u64, u64), V>,
    life: u64,
    room: &mut usize,
) -> Result<(), StorageError> {
    let keys: Vec<u64> = table
        .range((life, 0)..=(life, u64::MAX))?
        .take(*room)
        .map(|row| Ok(row?.0.value().1))
        .collect::<Result<_, StorageError>>()?;
    *room -= keys.len();
    for key in keys {
        table.remove((life, key))?;
    }
    Ok(())
}

fn remove_named<V: Value + 'static>(
    table: &mut LoggedTable<'_, (u64, &'static str), V>,
    life: u64,
    room: &mut usize,
) -> Result<(), StorageError> {
    let keys: Vec<String> = table
        .range((life, "")..(life + 1, ""))?
        .take(*room)
        .map(|row| Ok(row?.0.value().1.to_owned()))
        .collect::<Result<_, StorageError>>()?;
    *room -= keys.len();
    for key in keys {
        table.remove((life, key.as_str()))?;
    }
    Ok(())
}
