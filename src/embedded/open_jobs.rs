//! Knows which jobs are not completed, so that a list of them need not go through all jobs.
//!
//! The index is in memory only: it costs nothing on disk, and stores of every version have it. The
//! first question reads it from the jobs on disk. From then on the writer reports each change after
//! the commit that holds it.

use std::collections::BTreeSet;
use std::ops::Bound;

use parking_lot::Mutex;
use redb::{ReadTransaction, ReadableTable as _};

use super::disk::{Disk, StorageError};
use super::tables::{JOBS, JobRow};
use crate::ports::{JobFilter, JobPlace};

/// A job that is open now, or is no longer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turned {
    pub(super) job: JobPlace,
    pub(super) open: bool,
}

#[derive(Default)]
pub(super) struct OpenJobs {
    index: Mutex<Index>,
    /// Held by the one that reads the index from disk.
    reading: Mutex<()>,
}

#[derive(Default)]
enum Index {
    /// Nobody has asked yet.
    #[default]
    Unknown,
    /// What changed since the jobs on disk began to be read.
    Reading {
        opened: BTreeSet<JobPlace>,
        closed: BTreeSet<JobPlace>,
    },
    Known(BTreeSet<JobPlace>),
}

impl Index {
    fn note(&mut self, Turned { job, open }: Turned) {
        match (self, open) {
            (Self::Unknown, _) => {}
            (Self::Known(jobs), true) => {
                jobs.insert(job);
            }
            (Self::Known(jobs), false) => {
                jobs.remove(&job);
            }
            (Self::Reading { opened, closed }, true) => {
                closed.remove(&job);
                opened.insert(job);
            }
            (Self::Reading { opened, closed }, false) => {
                opened.remove(&job);
                closed.insert(job);
            }
        }
    }

    /// With the jobs that were open on disk when the reading began, or a little later.
    fn complete(&mut self, found: BTreeSet<JobPlace>) {
        if let Self::Reading { opened, closed } = self {
            let mut jobs = std::mem::take(opened);
            jobs.extend(found.into_iter().filter(|job| !closed.contains(job)));
            *self = Self::Known(jobs);
        }
    }
}

impl OpenJobs {
    /// Takes over what a commit changed.
    pub(super) fn committed(&self, turned: &[Turned]) {
        if turned.is_empty() {
            return;
        }
        let mut index = self.index.lock();
        turned.iter().for_each(|it| index.note(*it));
    }

    /// After an error of the disk it is not known what the last commit changed.
    pub(super) fn forget(&self) {
        *self.index.lock() = Index::Unknown;
    }

    /// The places of open jobs that the filter takes by their time, after a place of the list, newest
    /// first, at most `most`.
    pub(super) fn next(
        &self,
        disk: &Disk,
        filter: &JobFilter,
        after: Option<JobPlace>,
        most: usize,
    ) -> Result<Vec<JobPlace>, StorageError> {
        loop {
            if let Some(places) = self.known(filter, after, most) {
                return Ok(places);
            }
            let _reading = self.reading.lock();
            if self.known(filter, after, 0).is_none() {
                self.read(disk)?;
            }
        }
    }

    fn known(
        &self,
        filter: &JobFilter,
        after: Option<JobPlace>,
        most: usize,
    ) -> Option<Vec<JobPlace>> {
        let index = self.index.lock();
        let Index::Known(jobs) = &*index else {
            return None;
        };
        let end = after.map_or(Bound::Unbounded, Bound::Excluded);
        let places = jobs.range((Bound::Unbounded, end)).rev().copied();
        let since = filter.since_ms.unwrap_or(0);
        let places = places.take_while(|place| place.at_ms >= since);
        Some(
            places
                .filter(|it| filter.takes_place(*it))
                .take(most)
                .collect(),
        )
    }

    fn read(&self, disk: &Disk) -> Result<(), StorageError> {
        *self.index.lock() = Index::Reading {
            opened: BTreeSet::new(),
            closed: BTreeSet::new(),
        };
        let found = disk.begin_read().and_then(|it| open_on_disk(&it));
        match found {
            Ok(found) => self.index.lock().complete(found),
            Err(error) => {
                self.forget();
                return Err(error);
            }
        }
        Ok(())
    }
}

fn open_on_disk(transaction: &ReadTransaction) -> Result<BTreeSet<JobPlace>, StorageError> {
    let mut open = BTreeSet::new();
    for entry in transaction.open_table(JOBS)?.iter()? {
        let (id, row) = entry?;
        if let Some(at_ms) = JobRow::listed_if_open(row.value())? {
            let job = id.value().parse().map_err(StorageError::broken)?;
            open.insert(JobPlace { at_ms, job });
        }
    }
    Ok(open)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::JobId;

    fn job(number: u64) -> JobPlace {
        JobPlace {
            at_ms: number,
            job: JobId::of("a", &number.to_string()),
        }
    }

    fn numbers(jobs: &OpenJobs, filter: &JobFilter, after: Option<u64>, most: usize) -> Vec<u64> {
        let places = jobs.known(filter, after.map(job), most).unwrap();
        places.iter().map(|place| place.at_ms).collect()
    }

    fn turn(jobs: &OpenJobs, number: u64, open: bool) {
        jobs.committed(&[Turned {
            job: job(number),
            open,
        }]);
    }

    /// The jobs on disk are read while others are opened and closed: none of these is lost, and none
    /// stays that is closed.
    #[test]
    fn what_happens_while_the_jobs_are_read_counts() {
        let jobs = OpenJobs::default();
        turn(&jobs, 1, true);
        assert!(jobs.known(&JobFilter::default(), None, 9).is_none());
        *jobs.index.lock() = Index::Reading {
            opened: BTreeSet::new(),
            closed: BTreeSet::new(),
        };
        // 1 to 4 are on disk as it was then.
        let found = BTreeSet::from([1, 2, 3, 4].map(job));
        turn(&jobs, 5, true);
        turn(&jobs, 2, false);
        turn(&jobs, 3, false);
        turn(&jobs, 3, true);
        turn(&jobs, 6, true);
        turn(&jobs, 6, false);
        assert!(jobs.known(&JobFilter::default(), None, 9).is_none());
        jobs.index.lock().complete(found);
        let all = |jobs: &OpenJobs| numbers(jobs, &JobFilter::default(), None, 9);
        assert_eq!(all(&jobs), [5, 4, 3, 1]);
        turn(&jobs, 4, false);
        turn(&jobs, 7, true);
        assert_eq!(all(&jobs), [7, 5, 3, 1]);
        jobs.forget();
        assert!(jobs.known(&JobFilter::default(), None, 9).is_none());
    }

    #[test]
    fn places_go_on_after_a_place_and_keep_to_the_times() {
        let jobs = OpenJobs::default();
        *jobs.index.lock() = Index::Known((1..=9).map(job).collect());
        let any = JobFilter::default();
        assert_eq!(numbers(&jobs, &any, None, 3), [9, 8, 7]);
        assert_eq!(numbers(&jobs, &any, Some(7), 3), [6, 5, 4]);
        assert_eq!(numbers(&jobs, &any, Some(1), 3), [0; 0]);
        let some = JobFilter {
            since_ms: Some(3),
            until_ms: Some(6),
            ..JobFilter::default()
        };
        assert_eq!(numbers(&jobs, &some, None, 9), [5, 4, 3]);
        assert_eq!(numbers(&jobs, &some, Some(4), 9), [3]);
    }
}
