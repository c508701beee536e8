//! Lists jobs, newest first: all of them, and those that are not completed.
//!
//! A table for each of the two has the outlines of its jobs. A listing goes through the outlines, and
//! reads the records of those jobs only that may match. The steps that change jobs change these tables
//! too, so they are right after every crash. An earlier version does not know them: when it has had the
//! store, they are written anew.

use std::iter::Rev;
use std::ops::Bound;

use redb::{AccessGuard, Range, ReadTransaction, ReadableTable as _};

use super::disk::StorageError;
use super::ledger::record;
use super::tables::{JOBS, JobRow, ListedKey, OPEN, OUTLINES, Tables};
use super::writer::WriteContext;
use crate::ports::{JobPage, JobPlace, JobQuery, JobState, Sieve, outline};

/// Most outlines and most records that one query looks at, however few of them match.
const OUTLINES_MAX: usize = 200_000;
const RECORDS_MAX: usize = 2_000;

fn outline_of(row: &JobRow) -> String {
    outline(&row.app, &row.target, &row.tags)
}

/// Puts a job on both lists.
pub(super) fn add(
    work: &mut WriteContext<'_>,
    job: &str,
    row: &JobRow,
) -> Result<(), StorageError> {
    let (key, outline) = ((row.listed_at_ms, job), outline_of(row));
    work.tables.listed.open()?.insert(key, ())?;
    work.tables.outlines.open()?.insert(key, outline.as_str())?;
    work.tables.open.open()?.insert(key, outline.as_str())?;
    Ok(())
}

/// The job runs again.
pub(super) fn reopen(
    work: &mut WriteContext<'_>,
    job: &str,
    row: &JobRow,
) -> Result<(), StorageError> {
    let outline = outline_of(row);
    let open = work.tables.open.open()?;
    open.insert((row.listed_at_ms, job), outline.as_str())?;
    Ok(())
}

/// The job is completed.
pub(super) fn close(
    work: &mut WriteContext<'_>,
    job: &str,
    row: &JobRow,
) -> Result<(), StorageError> {
    work.tables.open.open()?.remove((row.listed_at_ms, job))?;
    Ok(())
}

/// The job is forgotten.
pub(super) fn remove(
    work: &mut WriteContext<'_>,
    job: &str,
    row: &JobRow,
) -> Result<(), StorageError> {
    let key = (row.listed_at_ms, job);
    work.tables.listed.open()?.remove(key)?;
    work.tables.outlines.open()?.remove(key)?;
    work.tables.open.open()?.remove(key)?;
    Ok(())
}

/// Writes the outlines of all jobs anew.
pub(super) fn rebuild(tables: &mut Tables<'_>) -> Result<(), StorageError> {
    let (outlines, open) = (tables.outlines.open()?, tables.open.open()?);
    outlines.retain(|_, _| false)?;
    open.retain(|_, _| false)?;
    let mut jobs = 0_u64;
    for entry in tables.jobs.open()?.iter()? {
        let (job, row) = entry?;
        let row = JobRow::decode(row.value())?;
        let (key, outline) = ((row.listed_at_ms, job.value()), outline_of(&row));
        outlines.insert(key, outline.as_str())?;
        if row.completed_at_ms.is_none() {
            open.insert(key, outline.as_str())?;
        }
        jobs += 1;
    }
    if jobs > 0 {
        tracing::info!(
            jobs,
            "listed the jobs of an earlier version by their outlines"
        );
    }
    Ok(())
}

/// The places of open jobs after a place, newest first.
pub(super) fn open_places(
    transaction: &ReadTransaction,
    after: Option<JobPlace>,
    most: usize,
) -> Result<Vec<JobPlace>, StorageError> {
    let open = transaction.open_table(OPEN)?;
    let after = after.map(|after| (after.at_ms, after.job.to_string()));
    let end = match &after {
        Some((at_ms, job)) => Bound::Excluded((*at_ms, job.as_str())),
        None => Bound::Unbounded,
    };
    let rows = open.range::<(u64, &str)>((Bound::Unbounded, end))?;
    let places = rows.rev().take(most);
    places.map(|row| place_of(row?.0.value())).collect()
}

fn place_of((at_ms, job): (u64, &str)) -> Result<JobPlace, StorageError> {
    let job = job.parse().map_err(StorageError::broken)?;
    Ok(JobPlace { at_ms, job })
}

pub(super) fn page(
    transaction: &ReadTransaction,
    query: &JobQuery,
) -> Result<JobPage, StorageError> {
    let filter = &query.filter;
    let jobs = transaction.open_table(JOBS)?;
    let open = transaction.open_table(OPEN)?;
    let outlines = transaction.open_table(OUTLINES)?;
    let after = query
        .after
        .map(|after| (after.at_ms, after.job.to_string()));
    let oldest = (filter.since_ms.unwrap_or(0), "");
    let end = match &after {
        Some((at_ms, job)) => Bound::Excluded((*at_ms, job.as_str())),
        None => match filter.until_ms {
            Some(until_ms) => Bound::Excluded((until_ms, "")),
            None => Bound::Unbounded,
        },
    };
    let bounds = (Bound::Included(oldest), end);
    let rows = match filter.is_for_open_jobs() {
        true => open.range::<(u64, &str)>(bounds)?,
        false => outlines.range::<(u64, &str)>(bounds)?,
    };
    let mut not_wanted = match filter.state {
        Some(JobState::Completed) => Some(Along::new(open.range::<(u64, &str)>(bounds)?)?),
        _ => None,
    };
    let mut sieve = Sieve::new(filter);
    let mut page = JobPage::default();
    let (mut last, mut records) = (query.after, 0);
    for (looked_at, entry) in rows.rev().enumerate() {
        let full = page.jobs.len() >= query.most;
        if full || looked_at >= OUTLINES_MAX || records >= RECORDS_MAX {
            page.next = last;
            break;
        }
        let (key, outline) = entry?;
        let place = place_of(key.value())?;
        last = Some(place);
        let is_open = match &mut not_wanted {
            Some(open) => open.has(key.value())?,
            None => false,
        };
        if is_open || !sieve.takes(place.job, outline.value()) {
            continue;
        }
        records += 1;
        if let Some(row) = jobs.get(key.value().1)? {
            let found = record(place.job, JobRow::decode(row.value())?)?;
            page.jobs.extend(Some(found).filter(|it| filter.takes(it)));
        }
    }
    Ok(page)
}

/// Goes through a list beside another one in the same order.
struct Along<'a> {
    rows: Rev<Range<'a, ListedKey, &'static str>>,
    next: Option<AccessGuard<'a, ListedKey>>,
}

impl<'a> Along<'a> {
    fn new(rows: Range<'a, ListedKey, &'static str>) -> Result<Self, StorageError> {
        let mut along = Self {
            rows: rows.rev(),
            next: None,
        };
        along.advance()?;
        Ok(along)
    }

    fn advance(&mut self) -> Result<(), StorageError> {
        let next = self.rows.next().transpose()?;
        self.next = next.map(|(key, _)| key);
        Ok(())
    }

    /// Whether the list has this key; keys come in falling order.
    fn has(&mut self, key: (u64, &str)) -> Result<bool, StorageError> {
        while self.next.as_ref().is_some_and(|next| next.value() > key) {
            self.advance()?;
        }
        Ok(self.next.as_ref().is_some_and(|next| next.value() == key))
    }
}
