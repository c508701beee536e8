//! The rates of jobs that are spread over a time, as this process derived them last.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::context::Context;
use crate::clock::now_ms;
use crate::domain::ids::JobId;
use crate::domain::limits::Rate;
use crate::domain::spread;
use crate::domain::window::Window;
use crate::metrics::LedgerStep;
use crate::ports::Store;

/// How long a rate is used before it is derived again. Until then it stays right: while recipients
/// go out at this rate, their number falls as the time does.
const KEPT: Duration = Duration::from_secs(2);

/// Above this number of jobs, those that were not asked about for a while are forgotten.
const JOBS_KEPT: usize = 1000;
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
struct Derived {
    rate: Option<Rate>,
    until_ms: u64,
    at: Instant,
}

/// By job.
#[derive(Debug, Default)]
pub(crate) struct Paces(Mutex<HashMap<JobId, Derived>>);

impl Paces {
    /// The rate that is still used. Otherwise the caller derives it, and others use the old one until
    /// it has.
    fn known(&self, job: JobId, until_ms: u64, now: Instant) -> Option<Option<Rate>> {
        let mut all = self.0.lock();
        let known = all.get_mut(&job).filter(|it| it.until_ms == until_ms)?;
        if now.duration_since(known.at) < KEPT {
            return Some(known.rate);
        }
        known.at = now;
        None
    }

    fn note(&self, job: JobId, derived: Derived) {
        let mut all = self.0.lock();
        if all.len() >= JOBS_KEPT {
            all.retain(|_, it| derived.at.duration_since(it.at) < FORGOTTEN_AFTER);
        }
        all.insert(job, derived);
    }
}

impl<S: Store, T> Context<S, T> {
    /// The rate that spreads the pending recipients of a job over the time until `until_ms` in which
    /// it may be sent; `None` if there is nothing left to spread. `here`: the recipients that the
    /// caller knows to be pending, for a ledger that does not answer or does not know the job.
    pub(crate) async fn pace<'a>(
        &self,
        job: JobId,
        until_ms: u64,
        windows: &(impl Iterator<Item = &'a Window> + Clone),
        here: usize,
    ) -> Option<Rate> {
        if let Some(known) = self.paces.known(job, until_ms, Instant::now()) {
            return known;
        }
        let record = self.try_step(LedgerStep::Look, self.store.job(job)).await;
        let pending = match record.ok().flatten() {
            Some(record) if !record.rebuilt => record.pending.max(1),
            // Those of slices that no worker has seen again are missing.
            Some(record) => record.pending.max(here as u64),
            None => here as u64,
        };
        let left = spread::left(windows, now_ms(), until_ms);
        let rate = spread::rate(pending, left);
        let at = Instant::now();
        self.paces.note(job, Derived { rate, until_ms, at });
        rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_at_a_time_derives_a_rate_again() {
        let (paces, job, at) = (Paces::default(), JobId::of("shop", "k"), Instant::now());
        assert_eq!(paces.known(job, 5, at), None);
        let rate = "10/s".parse().ok();
        let until_ms = 5;
        paces.note(job, Derived { rate, until_ms, at });
        assert_eq!(paces.known(job, 5, at), Some(rate));
        assert_eq!(paces.known(job, 6, at), None, "its deadline was moved");
        let later = at + KEPT;
        assert_eq!(paces.known(job, 5, later), None);
        assert_eq!(paces.known(job, 5, later), Some(rate));
    }

    #[test]
    fn jobs_that_ended_are_forgotten() {
        let (paces, at) = (Paces::default(), Instant::now());
        let derived = |at| Derived {
            rate: None,
            until_ms: 5,
            at,
        };
        for number in 0..JOBS_KEPT {
            paces.note(JobId::of("shop", &number.to_string()), derived(at));
        }
        let last = JobId::of("shop", "last");
        paces.note(last, derived(at + FORGOTTEN_AFTER));
        assert_eq!(paces.0.lock().len(), 1);
    }
}
