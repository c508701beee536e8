//! Decides whether anything of a job is left to deliver.
//!
//! No broker tells whose its messages are. But every slice that a worker looks at shows a sign of
//! life: the worker records outcomes, or notes in the ledger that the slice waits. So a slice of a
//! silent job can only be where no worker has looked at it: on the retry ladder, in the queue of a
//! lane, not cut from its list yet, or at a worker that has just taken it. A `Search` rules these
//! out, one after the other:
//!
//! 1. The caller takes the slices of the job off the ladder before the search begins.
//! 2. The queues of the jobs and each lane of its targets must be seen empty once. They need not be
//!    empty at the same moment, so a busy target does not prevent it.
//! 3. From then on the job must stay silent for as long as a worker may take to show a sign of a
//!    slice that it holds.
//!
//! A sign of life ends the search: the job has a living slice.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::ids::JobId;
use super::lane::{Lane, LaneClass};

/// What one look found about a job.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The last sign of the job.
    pub heard_ms: u64,
    /// A worker holds a slice of it.
    pub held: bool,
    /// Messages wait in the queues of the jobs.
    pub jobs_wait: bool,
    /// The lanes in which slices wait, by target.
    pub busy: &'a BTreeMap<String, BTreeSet<LaneClass>>,
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
    lanes: BTreeSet<Lane>,
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

    /// Begins the search for what is left of a job, unless it is under way. `targets`: those to which
    /// it is sent. `now`: by a clock that never goes back.
    pub fn begin<'a>(
        &mut self,
        job: JobId,
        targets: impl IntoIterator<Item = &'a str>,
        heard_ms: u64,
        now: Duration,
    ) {
        let lanes = targets.into_iter().flat_map(Lane::all);
        let lanes = lanes.filter(|lane| lane.class != LaneClass::Notices);
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
        let is_busy = |lane: &Lane| {
            let busy = seen.busy.get(&lane.target);
            busy.is_some_and(|it| it.contains(&lane.class))
        };
        it.lanes.retain(is_busy);
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
    pub fn long(&mut self, patience: Duration, now: Duration) -> Vec<(JobId, Vec<Lane>)> {
        let is_long = |it: &&mut (&JobId, &mut Sought)| {
            !it.1.told && now.saturating_sub(it.1.began) > patience
        };
        let mut jobs: Vec<_> = self.jobs.iter_mut().collect();
        let long = jobs.iter_mut().filter(is_long).map(|(job, it)| {
            it.told = true;
            (**job, it.lanes.iter().cloned().collect())
        });
        long.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::lane::Priority;

    const SILENCE: Duration = Duration::from_secs(60);

    type Busy = BTreeMap<String, BTreeSet<LaneClass>>;

    /// Slices wait in one lane of a target.
    fn busy(target: &str, class: LaneClass) -> Busy {
        BTreeMap::from([(target.to_owned(), BTreeSet::from([class]))])
    }

    fn bulk() -> Busy {
        busy("im", LaneClass::Of(Priority::Bulk, 3))
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn sought() -> (Search, JobId) {
        let (mut search, job) = (Search::new(SILENCE), JobId::of("shop", "lost"));
        search.begin(job, ["im"], 7, at(0));
        (search, job)
    }

    fn seen(busy: &Busy) -> Seen<'_> {
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
        let none = Busy::new();
        assert_eq!(search.look(job, seen(&none), at(10)), Finding::Open);
        assert_eq!(search.look(job, seen(&none), at(69)), Finding::Open);
        assert_eq!(search.look(job, seen(&none), at(70)), Finding::Nothing);
    }

    #[test]
    fn lanes_need_not_be_empty_at_the_same_moment() {
        let (mut search, job) = sought();
        let bulk = bulk();
        let express = busy("im", LaneClass::Express(0));
        assert_eq!(search.look(job, seen(&bulk), at(100)), Finding::Open);
        // The silence begins when the last lane was seen empty.
        assert_eq!(search.look(job, seen(&express), at(200)), Finding::Open);
        assert_eq!(search.look(job, seen(&bulk), at(259)), Finding::Open);
        assert_eq!(search.look(job, seen(&bulk), at(260)), Finding::Nothing);
    }

    #[test]
    fn a_lane_or_a_job_queue_that_is_never_empty_proves_nothing() {
        let (mut search, job) = sought();
        let bulk = bulk();
        let none = Busy::new();
        for second in 0..10_000 {
            assert_eq!(search.look(job, seen(&bulk), at(second)), Finding::Open);
        }
        assert_eq!(search.long(at(900), at(900)), []);
        let lanes: Vec<Lane> = vec!["im.bulk.3".parse().unwrap()];
        assert_eq!(search.long(at(900), at(901)), [(job, lanes)]);
        assert_eq!(search.long(at(900), at(902)), []);
        let waits = Seen {
            jobs_wait: true,
            ..seen(&none)
        };
        let other = JobId::of("shop", "other");
        search.begin(other, ["im"], 7, at(0));
        for second in 0..10_000 {
            assert_eq!(search.look(other, waits, at(second)), Finding::Open);
        }
    }

    #[test]
    fn the_lanes_of_a_second_target_count_and_those_of_others_do_not() {
        let (mut search, job) = (Search::new(SILENCE), JobId::of("shop", "lost"));
        search.begin(job, ["im", "sms"], 7, at(0));
        let sms = busy("sms", LaneClass::Express(1));
        assert_eq!(search.look(job, seen(&sms), at(0)), Finding::Open);
        assert_eq!(search.look(job, seen(&sms), at(100)), Finding::Open);
        let other = busy("mail", LaneClass::Express(1));
        assert_eq!(search.look(job, seen(&other), at(200)), Finding::Open);
        assert_eq!(search.look(job, seen(&other), at(260)), Finding::Nothing);
    }

    #[test]
    fn a_sign_of_life_ends_the_search() {
        let none = Busy::new();
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
            search.begin(job, ["im"], sign.heard_ms, at(3600));
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
        let none = Busy::new();
        search.look(job, seen(&none), at(0));
        search.begin(job, ["im"], 7, at(59));
        assert_eq!(search.look(job, seen(&none), at(60)), Finding::Nothing);
    }
}
