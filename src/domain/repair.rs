//! Decides whether anything of a job is left to deliver.
//!
//! No broker tells whose its messages are. But every slice that a worker looks at shows a sign of
//! life: the worker records outcomes, or notes in the ledger that the slice waits. So a slice of a
//! silent job can only be where no worker has looked at it: on the retry ladder, in the queue of a
//! lane, not cut from its list yet, or at a worker that has just taken it. A [`Search`] rules these
//! out, one after the other:
//!
//! 1. The caller takes the slices of the job off the ladder before the search begins.
//! 2. The queues of the jobs and each lane of the target must be seen empty once. They need not be
//!    empty at the same moment, so a busy target does not prevent it.
//! 3. From then on the job must stay silent for as long as a worker may take to show a sign of a
//!    slice that it holds.
//!
//! A sign of life ends the search: the job has a living slice.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::ids::JobId;
use super::lane::LaneClass;

/// What one look found about a job.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The last sign of the job.
    pub heard_ms: u64,
    /// A worker holds a slice of it.
    pub held: bool,
    /// Messages wait in the queues of the jobs.
    pub jobs_wait: bool,
    /// The lanes of its target in which slices wait.
    pub busy: &'a BTreeSet<LaneClass>,
}

/// What a search has found so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Not known yet.
    Open,
    /// The job showed a sign of life. The search is over.
    Alive,
    /// Nothing of the job is left to deliver.
    Nothing,
}

/// The jobs that are looked for.
#[derive(Debug)]
pub struct Search {
    /// How long a job must stay silent after its lanes were seen empty.
    silence: Duration,
    jobs: HashMap<JobId, Sought>,
}

#[derive(Debug)]
struct Sought {
    heard_ms: u64,
    began: Duration,
    /// The places that were not seen empty yet.
    lanes: BTreeSet<LaneClass>,
    jobs: bool,
    /// When the last of them was seen empty.
    empty_since: Option<Duration>,
    /// The search was reported as long.
    told: bool,
}

impl Search {
    pub fn new(silence: Duration) -> Self {
        Self {
            silence,
            jobs: HashMap::new(),
        }
    }

    /// Begins the search for what is left of a job, unless it is under way. `now`: by a clock that
    /// never goes back.
    pub fn begin(&mut self, job: JobId, heard_ms: u64, now: Duration) {
        let lanes = LaneClass::all().filter(|class| *class != LaneClass::Notices);
        self.jobs.entry(job).or_insert_with(|| Sought {
            heard_ms,
            began: now,
            lanes: lanes.collect(),
            jobs: true,
            empty_since: None,
            told: false,
        });
    }

    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    pub fn seeks(&self, job: JobId) -> bool {
        self.jobs.contains_key(&job)
    }

    pub fn jobs(&self) -> Vec<JobId> {
        self.jobs.keys().copied().collect()
    }

    pub fn end(&mut self, job: JobId) {
        self.jobs.remove(&job);
    }

    /// Takes in what a look found. A job that is not looked for is alive.
    pub fn look(&mut self, job: JobId, seen: Seen<'_>, now: Duration) -> Finding {
        let Some(it) = self.jobs.get_mut(&job) else {
            return Finding::Alive;
        };
        if seen.held || seen.heard_ms != it.heard_ms {
            self.jobs.remove(&job);
            return Finding::Alive;
        }
        it.jobs &= seen.jobs_wait;
        it.lanes.retain(|lane| seen.busy.contains(lane));
        if it.jobs || !it.lanes.is_empty() {
            return Finding::Open;
        }
        let since = *it.empty_since.get_or_insert(now);
        match now.saturating_sub(since) >= self.silence {
            true => Finding::Nothing,
            false => Finding::Open,
        }
    }

    /// The jobs that have been looked for longer than `patience`, each once, with the lanes that
    /// were never seen empty.
    pub fn long(&mut self, patience: Duration, now: Duration) -> Vec<(JobId, Vec<LaneClass>)> {
        let is_long = |it: &&mut (&JobId, &mut Sought)| {
            !it.1.told && now.saturating_sub(it.1.began) > patience
        };
        let mut jobs: Vec<_> = self.jobs.iter_mut().collect();
        let long = jobs.iter_mut().filter(is_long).map(|(job, it)| {
            it.told = true;
            (**job, it.lanes.iter().copied().collect())
        });
        long.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::lane::Priority;

    const SILENCE: Duration = Duration::from_secs(60);
    const BULK: LaneClass = LaneClass::Of(Priority::Bulk, 3);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn sought() -> (Search, JobId) {
        let (mut search, job) = (Search::new(SILENCE), JobId::of("shop", "lost"));
        search.begin(job, 7, at(0));
        (search, job)
    }

    fn seen(busy: &BTreeSet<LaneClass>) -> Seen<'_> {
        Seen {
            heard_ms: 7,
            held: false,
            jobs_wait: false,
            busy,
        }
    }

    #[test]
    fn a_job_that_stays_silent_after_everything_was_empty_has_nothing_left() {
        let (mut search, job) = sought();
        let none = BTreeSet::new();
        assert_eq!(search.look(job, seen(&none), at(10)), Finding::Open);
        assert_eq!(search.look(job, seen(&none), at(69)), Finding::Open);
        assert_eq!(search.look(job, seen(&none), at(70)), Finding::Nothing);
    }

    #[test]
    fn lanes_need_not_be_empty_at_the_same_moment() {
        let (mut search, job) = sought();
        let bulk = BTreeSet::from([BULK]);
        let express = BTreeSet::from([LaneClass::Express(0)]);
        assert_eq!(search.look(job, seen(&bulk), at(100)), Finding::Open);
        // The silence begins when the last lane was seen empty.
        assert_eq!(search.look(job, seen(&express), at(200)), Finding::Open);
        assert_eq!(search.look(job, seen(&bulk), at(259)), Finding::Open);
        assert_eq!(search.look(job, seen(&bulk), at(260)), Finding::Nothing);
    }

    #[test]
    fn a_lane_or_a_job_queue_that_is_never_empty_proves_nothing() {
        let (mut search, job) = sought();
        let bulk = BTreeSet::from([BULK]);
        let none = BTreeSet::new();
        for second in 0..10_000 {
            assert_eq!(search.look(job, seen(&bulk), at(second)), Finding::Open);
        }
        assert_eq!(search.long(at(900), at(900)), []);
        assert_eq!(search.long(at(900), at(901)), [(job, vec![BULK])]);
        assert_eq!(search.long(at(900), at(902)), []);
        let waits = Seen {
            jobs_wait: true,
            ..seen(&none)
        };
        search.begin(JobId::of("shop", "other"), 7, at(0));
        let other = JobId::of("shop", "other");
        for second in 0..10_000 {
            assert_eq!(search.look(other, waits, at(second)), Finding::Open);
        }
    }

    #[test]
    fn a_sign_of_life_ends_the_search() {
        let none = BTreeSet::new();
        let signs = [
            Seen {
                heard_ms: 8,
                ..seen(&none)
            },
            Seen {
                held: true,
                ..seen(&none)
            },
        ];
        for sign in signs {
            let (mut search, job) = sought();
            search.look(job, seen(&none), at(0));
            assert_eq!(search.look(job, sign, at(3600)), Finding::Alive);
            assert!(search.is_empty());
            // What was seen before counts no more.
            search.begin(job, sign.heard_ms, at(3600));
            let again = Seen {
                held: false,
                ..sign
            };
            assert_eq!(search.look(job, again, at(3601)), Finding::Open);
        }
    }

    #[test]
    fn a_search_under_way_goes_on() {
        let (mut search, job) = sought();
        let none = BTreeSet::new();
        search.look(job, seen(&none), at(0));
        search.begin(job, 7, at(59));
        assert_eq!(search.look(job, seen(&none), at(60)), Finding::Nothing);
    }
}
