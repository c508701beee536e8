//! Counts, for one target, the slices of each job that this worker holds: those with a place, and
//! those that wait for one. Operators see it when they ask why a job does not move.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use super::context::Context;
use crate::domain::ids::JobId;
use crate::ports::JobAtWork;

/// The most jobs of a target in a heartbeat.
const TOLD_MAX: usize = 16;

/// The slices at one target.
#[derive(Default)]
pub struct AtWork(Mutex<BTreeMap<JobId, JobAtWork>>);

impl AtWork {
    /// A session begins: it holds nothing yet.
    pub(crate) fn clear(&self) {
        self.0.lock().clear();
    }

    /// A slice came, and waits for a place.
    pub(crate) fn arrived(&self, job: JobId, app: &str) {
        let mut jobs = self.0.lock();
        let it = jobs.entry(job).or_insert_with(|| JobAtWork {
            job,
            app: app.to_owned(),
            places: 0,
            waiting: 0,
        });
        it.waiting += 1;
    }

    /// A slice that waited takes a place.
    pub(crate) fn begun(&self, job: JobId) {
        self.change(job, |it| {
            it.waiting = it.waiting.saturating_sub(1);
            it.places += 1;
        });
    }

    /// A slice that waited is gone.
    pub(crate) fn withdrawn(&self, job: JobId) {
        self.change(job, |it| it.waiting = it.waiting.saturating_sub(1));
    }

    /// A slice left its place.
    pub(crate) fn ended(&self, job: JobId) {
        self.change(job, |it| it.places = it.places.saturating_sub(1));
    }

    fn change(&self, job: JobId, change: impl FnOnce(&mut JobAtWork)) {
        let mut jobs = self.0.lock();
        if let Some(it) = jobs.get_mut(&job) {
            change(it);
            if it.places == 0 && it.waiting == 0 {
                jobs.remove(&job);
            }
        }
    }

    /// The jobs with the most places; then those that wait.
    fn now(&self) -> Vec<JobAtWork> {
        let mut jobs: Vec<_> = self.0.lock().values().cloned().collect();
        jobs.sort_by_key(|it| std::cmp::Reverse((it.places, it.waiting)));
        jobs.truncate(TOLD_MAX);
        jobs
    }
}

impl<S, T> Context<S, T> {
    /// The jobs that this process works on, by target.
    pub(crate) fn jobs_at_work(&self) -> BTreeMap<String, Vec<JobAtWork>> {
        let targets = self.targets.iter();
        let jobs = targets.map(|(name, target)| (name.clone(), target.at_work.now()));
        jobs.filter(|(_, jobs)| !jobs.is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_told_while_it_has_slices_here() {
        let at_work = AtWork::default();
        let (one, other) = (JobId::of("a", "one"), JobId::of("b", "other"));
        at_work.arrived(one, "a");
        at_work.arrived(one, "a");
        at_work.begun(one);
        at_work.arrived(other, "b");
        let told = at_work.now();
        let counts: Vec<_> = told
            .iter()
            .map(|it| (it.job, it.places, it.waiting))
            .collect();
        assert_eq!(counts, [(one, 1, 1), (other, 0, 1)]);
        at_work.withdrawn(other);
        at_work.withdrawn(one);
        at_work.ended(one);
        // What was not counted changes nothing.
        at_work.ended(one);
        assert_eq!(at_work.now(), []);
    }

    #[test]
    fn a_heartbeat_has_a_bound() {
        let at_work = AtWork::default();
        let job = |number: usize| JobId::of("a", &number.to_string());
        for number in 0..1000 {
            at_work.arrived(job(number), "a");
        }
        at_work.begun(job(777));
        let told = at_work.now();
        assert_eq!((told.len(), told[0].job), (TOLD_MAX, job(777)));
    }
}
