//! Finds out why a job does not move, or not faster: what stops it, else the limits that it has
//! reached, else that no limit of ours slows it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::VariantNames;

use self::detail::{Because, OtherJob, Others};
pub use self::detail::{Detail, LimitName};
use super::limits::{InForce, LimitedJob, in_force};
use super::{Facts, TargetFacts, board};
use crate::clock::rfc3339;
use crate::domain::directive::{Board, Directive, Kind, Scope};
use crate::domain::ids::JobId;
use crate::domain::job_limits::LimitOf;
use crate::domain::limits::{Cost, Rate};
use crate::domain::schedule::RUNGS;
use crate::domain::spread;
use crate::domain::window::Window;
use crate::error::chain;
use crate::ports::{Beat, JobRecord, JobState, LedgerError, Park, Store};

mod detail;

/// One thing that stops a job or slows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Hindrance {
    pub cause: Cause,
    /// The subject, the author and the reason.
    pub what: String,
    /// The same for programs, which say it in their own words.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<Detail>,
    /// RFC 3339 time of its end, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, VariantNames)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Cause {
    /// The job is cancelled, and some recipients are not settled yet.
    Cancelled,
    /// Its start time has not come.
    Scheduled,
    /// It is outside the sending hours of the job or its app.
    SendingHours,
    /// The job, its app or its target is paused.
    Paused,
    /// Its target, or the job itself, is parked.
    Parked,
    TargetLimit,
    AppLimit,
    /// The job's own limit, or one that was set for it.
    JobLimit,
    /// The limit of its sender at the target.
    SenderLimit,
    /// A limit that its target has together with others.
    SharedLimit,
    /// It is spread evenly over a time.
    Pace,
    /// No limit: the time of the target's answers.
    Target,
    /// Other jobs have places at the target, and it has the rest, or none.
    OtherJobs,
    /// No recipient gets an outcome, and no slice of it is at a worker: retries wait for their time,
    /// or its slices are behind others on their lane.
    Waiting,
    /// Lists of it are not cut into slices yet: its target is parked, paused or far behind.
    NotCut,
    /// The ledger takes no writes, so nothing is sent.
    Ledger,
    /// No worker has a session with the broker.
    Broker,
    /// No worker is running.
    NoWorker,
    /// Its target is not configured any more.
    NoTarget,
}

impl Cause {
    /// Whether it is intended, and not a fault or plain load.
    pub fn is_meant(self) -> bool {
        !matches!(
            self,
            Self::Target
                | Self::OtherJobs
                | Self::Waiting
                | Self::NotCut
                | Self::Ledger
                | Self::Broker
                | Self::NoWorker
                | Self::NoTarget
        )
    }

    fn limit_of(limit: LimitOf) -> Self {
        match limit {
            LimitOf::Target | LimitOf::TargetDaily => Self::TargetLimit,
            LimitOf::App | LimitOf::AppDaily => Self::AppLimit,
            LimitOf::Job => Self::JobLimit,
            LimitOf::Sender => Self::SenderLimit,
            LimitOf::Shared => Self::SharedLimit,
        }
    }
}

/// The job has reached a limit if it runs at this share of it, or if this share of its burst is
/// booked: between two bookings a part of it becomes free.
const NEARLY_ALL: f64 = 0.9;
const MOSTLY_BOOKED: f64 = 0.5;

/// Recipients that may be due at the pace of a job before something else must hold it up.
const DUE_MAX: f64 = 2.0;

/// Who reads the hindrances. Only the administrator learns which jobs other apps have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    Administrator,
    App,
}

/// The hindrances of a job; none when it is completed, and while too little is known.
pub async fn hindrances<S: Store>(
    store: &S,
    facts: &Facts,
    record: &JobRecord,
    reader: Reader,
    now_ms: u64,
) -> Result<Vec<Hindrance>, LedgerError> {
    if record.state == JobState::Completed {
        return Ok(Vec::new());
    }
    if let Err(error) = store.beat(&QUESTION).await {
        let error = chain(&error);
        return Ok(vec![hindrance(Detail::LedgerAway { error }, None)]);
    }
    let board = board(store).await?;
    let parked = store.parked(std::slice::from_ref(&record.target)).await?;
    let beats = store.beats().await?;
    let situation = Situation {
        board: &board,
        park: parked.first().map(|(_, park)| park),
        beats: &beats,
        facts,
        record,
        reader,
        job: &record.job.to_string(),
        now_ms,
    };
    let mut found = situation.held_up(store).await?;
    found.extend(situation.not_cut());
    Ok(found)
}

/// What stops each of these jobs, without the limits that they may have reached: that takes no
/// question for each job.
pub async fn stops<S: Store>(
    store: &S,
    facts: &Facts,
    records: &[JobRecord],
    now_ms: u64,
) -> Result<Vec<Vec<Hindrance>>, LedgerError> {
    let runs = |record: &&JobRecord| record.state != JobState::Completed;
    let mut targets: Vec<_> = records
        .iter()
        .filter(runs)
        .map(|it| it.target.clone())
        .collect();
    if targets.is_empty() {
        return Ok(vec![Vec::new(); records.len()]);
    }
    targets.sort_unstable();
    targets.dedup();
    let board = board(store).await?;
    let parked: BTreeMap<_, _> = store.parked(&targets).await?.into_iter().collect();
    let of_one = |record: &JobRecord| {
        if !runs(&record) {
            return Vec::new();
        }
        let situation = Situation {
            board: &board,
            park: parked.get(&record.target),
            beats: &[],
            facts,
            record,
            reader: Reader::App,
            job: &record.job.to_string(),
            now_ms,
        };
        situation.stops()
    };
    Ok(records.iter().map(of_one).collect())
}

/// A heartbeat of no process, to check whether the ledger takes writes.
const QUESTION: Beat = Beat {
    process: 0,
    number: 0,
    works: false,
    calls: BTreeMap::new(),
    at_broker: None,
    jobs: BTreeMap::new(),
    pending: BTreeMap::new(),
};

/// An oldest call that takes this long is reported.
const SLOW_CALL_MS: u64 = 1000;

/// A job without an outcome for this long is reported as standing still.
const PATIENCE_MS: u64 = 3000;

/// A job of which nothing was seen for this long may have lost its slices: the longest rung of the
/// retry ladder.
const LOST_MS: u64 = RUNGS[RUNGS.len() - 1].as_millis() as u64;

struct Situation<'a> {
    board: &'a Board,
    park: Option<&'a Park>,
    /// The last heartbeats of the processes that are alive.
    beats: &'a [Beat],
    facts: &'a Facts,
    record: &'a JobRecord,
    reader: Reader,
    /// The job's id, as directives name it.
    job: &'a str,
    now_ms: u64,
}

impl<'a> Situation<'a> {
    /// What stops the job, else the limits that it has reached, else that no limit slows it.
    async fn held_up<S: Store>(&self, store: &S) -> Result<Vec<Hindrance>, LedgerError> {
        let stops = self.stops();
        if !stops.is_empty() {
            return Ok(stops);
        }
        let limits = self.limits();
        let plain: Vec<_> = limits.iter().map(InForce::limit).collect();
        let booked = store.booked(&plain).await?;
        let reached = self.reached(&limits, &booked);
        if !reached.is_empty() {
            return Ok(reached);
        }
        Ok(self.unlimited().into_iter().collect())
    }

    /// The lists that wait to be cut.
    fn not_cut(&self) -> Option<Hindrance> {
        let lists = self.record.uncut;
        (lists > 0).then(|| {
            let detail = Detail::NotCut {
                lists,
                submissions: self.record.submissions,
                target: self.record.target.clone(),
            };
            hindrance(detail, None)
        })
    }

    fn subjects(&self) -> impl Iterator<Item = (Scope, &'a str)> + use<'a> {
        let names = [&*self.record.target, &*self.record.app, self.job];
        Scope::ALL.iter().copied().zip(names)
    }

    /// The hindrances that stop the job.
    fn stops(&self) -> Vec<Hindrance> {
        if let Some(cancel) = self.find(Scope::Job, self.job, Kind::Cancel) {
            return vec![hindrance(Detail::Cancelled(cancel.into()), None)];
        }
        let mut found = Vec::new();
        for (scope, name) in self.subjects() {
            if let Some(pause) = self.find(scope, name, Kind::Pause) {
                let (name, note) = (name.to_owned(), pause.into());
                found.push(hindrance(
                    Detail::Paused { scope, name, note },
                    pause.until_ms,
                ));
            }
        }
        if let Some(park) = self.find(Scope::Job, self.job, Kind::Park) {
            found.push(hindrance(Detail::of_parked_job(park), park.until_ms));
        }
        if let Some(park) = self.park.filter(|park| park.until_ms > self.now_ms) {
            let detail = Detail::of_park(&self.record.target, park);
            found.push(hindrance(detail, Some(park.until_ms)));
        }
        if self.target().is_none() {
            let target = self.record.target.clone();
            found.push(hindrance(Detail::NoTarget { target }, None));
        }
        if let Some(at) = self.record.not_before_ms.filter(|at| *at > self.now_ms) {
            let start = rfc3339(at);
            found.push(hindrance(Detail::NotBefore { at: start }, Some(at)));
        }
        found.extend(self.closed());
        found
    }

    /// The sending hours of the job and its app, with whose they are.
    fn windows(&self) -> impl Iterator<Item = (Scope, Window)> {
        let of_job = self.record.window.as_deref().and_then(|it| it.parse().ok());
        let of_app = self.facts.windows.get(&self.record.app).cloned();
        let windows = [(Scope::Job, of_job), (Scope::App, of_app)].into_iter();
        windows.filter_map(|(of, window)| Some((of, window?)))
    }

    /// The sending hours that are over or have not begun. Not those that each recipient has in its own
    /// zone.
    fn closed(&self) -> Vec<Hindrance> {
        let of_all = |(_, window): &(Scope, Window)| window.zone_var().is_none();
        let closed = self.windows().filter(of_all).filter_map(|(of, window)| {
            let opens = window.opens_ms(self.now_ms)?;
            let detail = Detail::OutsideHours {
                scope: of,
                name: match of {
                    Scope::App => self.record.app.clone(),
                    Scope::Job | Scope::Target | Scope::Shared => self.job.to_owned(),
                },
                window: window.to_string(),
                opens_at: rfc3339(opens),
            };
            Some(hindrance(detail, Some(opens)))
        });
        closed.collect()
    }

    /// The own sending hours of its recipients, if nothing of the job is at a worker: those that are
    /// left may all be outside of them.
    fn own_hours(&self, work: &Work<'_>) -> Option<Hindrance> {
        let mut windows = self.windows().map(|(_, window)| window);
        let window = windows.find(|window| window.zone_var().is_some())?;
        (work.places + work.waiting == 0).then(|| {
            let window = window.to_string();
            hindrance(Detail::OwnHours { window }, None)
        })
    }

    /// The limits in force.
    fn limits(&self) -> Vec<InForce<'a>> {
        let record = self.record;
        let job = LimitedJob {
            target: &record.target,
            app: &record.app,
            job: self.job,
            rate: record.rate.as_deref().and_then(|rate| rate.parse().ok()),
            sender: record.sender.as_deref(),
        };
        in_force(job, self.facts, self.board, self.now_ms)
    }

    /// The hindrance to report if a limit is reached.
    fn limited_by(&self, limit: &InForce<'_>) -> Hindrance {
        let (rate, full) = (limit.rate, limit.full);
        let name = limit.named(&self.record.target);
        if let Some(climb) = limit.climb {
            let detail = Detail::LimitAdapted {
                limit: name,
                rate: rate.short(),
                full: full.short(),
            };
            return hindrance(detail, Some(climb.ends_ms()));
        }
        if let Some(set) = limit.set {
            let detail = Detail::LimitSet {
                limit: name,
                rate: full.to_string(),
                note: set.into(),
            };
            return hindrance(detail, set.until_ms);
        }
        let rate = match limit.of {
            LimitOf::Target | LimitOf::App | LimitOf::Job => rate.to_string(),
            LimitOf::Shared | LimitOf::TargetDaily | LimitOf::AppDaily | LimitOf::Sender => {
                rate.short()
            }
        };
        hindrance(Detail::LimitReached { limit: name, rate }, None)
    }

    /// The rate at which the job is spread over the time, if it is.
    fn pace(&self) -> Option<(Rate, u64)> {
        let set = self.board.rate_set(LimitOf::Job, self.job, self.now_ms);
        let expires_at = self.record.expires_at_ms.unwrap_or(u64::MAX);
        let until = self.record.pace_until_ms?.min(expires_at);
        let windows: Vec<Window> = self.windows().map(|(_, window)| window).collect();
        let left = spread::left(&windows.iter(), self.now_ms, until);
        let rate = spread::rate(self.record.pending, left)?;
        set.is_none().then_some((rate, until))
    }

    /// The pace of the job, if nothing else is in its way: it goes at that pace, or the next recipient
    /// is not due yet.
    fn paced(&self) -> Option<Hindrance> {
        let (rate, until) = self.pace()?;
        let per_second = rate.per_second();
        let going = self.record.per_second(self.now_ms).unwrap_or(0.0);
        let since = self
            .record
            .progress_at_ms
            .unwrap_or(self.record.due_at_ms());
        let silent = self.now_ms.saturating_sub(since) as f64 / 1000.0;
        let due = silent * per_second < DUE_MAX || silent * 1000.0 < PATIENCE_MS as f64;
        (going >= NEARLY_ALL * per_second || due).then(|| {
            let detail = Detail::Spread {
                pace_until: rfc3339(until),
                left: self.record.pending,
                per_second,
            };
            hindrance(detail, Some(until))
        })
    }

    fn target(&self) -> Option<&'a TargetFacts> {
        self.facts.targets.get(&self.record.target)
    }

    /// The hindrances of the limits that the job has reached. `booked`: the booked share of each
    /// burst.
    fn reached(&self, limits: &[InForce<'_>], booked: &[f64]) -> Vec<Hindrance> {
        let recipients = self.record.per_second(self.now_ms).unwrap_or(0.0);
        let per_call = self.target().map_or(1, |it| it.recipients_per_call.max(1));
        let is_reached = |limit: &InForce<'_>, booked: f64| {
            let units = match limit.cost() {
                Cost::PerCall => recipients / per_call as f64,
                Cost::PerRecipient => recipients,
            };
            // With a small burst, the next unit has to wait long before most is booked.
            let must_wait = booked * f64::from(limit.rate.burst) > f64::from(limit.rate.burst - 1);
            booked >= MOSTLY_BOOKED || must_wait || units >= NEARLY_ALL * limit.rate.per_second()
        };
        let limits = limits.iter().zip(booked);
        limits
            .filter(|(limit, booked)| is_reached(limit, **booked))
            .map(|(limit, _)| self.limited_by(limit))
            .collect()
    }

    /// The calls to the target that are under way at all workers, if they take long.
    fn slow_calls(&self) -> Option<Hindrance> {
        let target = &self.record.target;
        let under_way = self.beats.iter().filter_map(|beat| beat.calls.get(target));
        let (calls, oldest_ms) = under_way.fold((0, 0), |(calls, oldest), it| {
            (calls + it.calls, oldest.max(it.oldest_ms))
        });
        (oldest_ms >= SLOW_CALL_MS).then(|| {
            let detail = Detail::SlowCalls {
                target: target.clone(),
                calls,
                oldest_seconds: oldest_ms / 1000,
            };
            hindrance(detail, None)
        })
    }

    /// The hindrance of a job that no directive and no limit slows. Right after its start there is
    /// none.
    fn unlimited(&self) -> Option<Hindrance> {
        let record = self.record;
        if let Some(away) = self.no_session() {
            return Some(away);
        }
        if record.state == JobState::Accepted {
            return Some(hindrance(Detail::NotTaken, None));
        }
        let rate = record.per_second(self.now_ms);
        let lately = |at: u64| self.now_ms.saturating_sub(at) < PATIENCE_MS;
        let moves =
            rate.is_some_and(|rate| rate > 0.0) && record.progress_at_ms.is_some_and(lately);
        let work = Work::of(self);
        if let Some(pace) = self.paced() {
            return Some(pace);
        }
        if !moves {
            // Calls that hang hold everybody up, also those that wait for a place.
            if let Some(slow) = self.slow_calls() {
                return Some(slow);
            }
            if let Some(hours) = self.own_hours(&work) {
                return Some(hours);
            }
            if rate.is_none() && record.progress_at_ms.is_some() && work.places > 0 {
                return None;
            }
            let since = record.progress_at_ms.unwrap_or(record.accepted_at_ms);
            let silent = self.now_ms.saturating_sub(since);
            if let Some(gone) = self.gone(&work) {
                return Some(gone);
            }
            return (silent >= PATIENCE_MS)
                .then(|| hindrance(work.no_outcome(silent / 1000), None));
        }
        if work.waiting > 0 && work.has_others() {
            let detail = Detail::SharesTarget {
                places: work.places,
                all: work.all,
                others: work.others(),
            };
            return Some(hindrance(detail, None));
        }
        Some(hindrance(Detail::AnswerTime, None))
    }

    /// Nothing was seen of the job for longer than any wait takes until its next look, or an operator
    /// has workers look for it.
    fn gone(&self, work: &Work<'_>) -> Option<Hindrance> {
        if work.places + work.waiting > 0 {
            return None;
        }
        if let Some(repair) = self.find(Scope::Job, self.job, Kind::Repair) {
            return Some(hindrance(Detail::Repair(repair.into()), repair.until_ms));
        }
        let silent = self.now_ms.saturating_sub(self.record.heard_at_ms());
        let minutes = silent / 60_000;
        (silent > LOST_MS).then(|| hindrance(Detail::NoSign { minutes }, None))
    }

    /// No process that could work on the job.
    fn no_session(&self) -> Option<Hindrance> {
        let mut workers = self.beats.iter().filter(|beat| beat.works).peekable();
        if workers.peek().is_none() {
            return Some(hindrance(Detail::NoWorker, None));
        }
        let all_away = workers.all(|beat| beat.at_broker == Some(false));
        all_away.then(|| hindrance(Detail::NoSession, None))
    }

    fn find(&self, scope: Scope, name: &str, kind: Kind) -> Option<&'a Directive> {
        self.board.find(scope, name, kind, self.now_ms)
    }
}

/// What all workers do at the target of a job.
#[derive(Debug, Default)]
struct Work<'a> {
    /// Slices of the job that have a place.
    places: u64,
    /// Slices of the job that wait for one at a worker.
    waiting: u64,
    /// The places of all jobs.
    all: u64,
    /// The other jobs with places that the reader may know, and how many.
    others: Vec<(JobId, &'a str, u64)>,
    /// The places of jobs that the reader may not know.
    unnamed: u64,
}

/// The most jobs that a hindrance names.
const JOBS_NAMED_MAX: usize = 3;

impl<'a> Work<'a> {
    fn of(situation: &Situation<'a>) -> Self {
        let mut work = Self::default();
        let mut others: BTreeMap<JobId, (&str, u64)> = BTreeMap::new();
        let target = &situation.record.target;
        let at_work = situation
            .beats
            .iter()
            .filter_map(|beat| beat.jobs.get(target));
        for it in at_work.flatten() {
            work.all += it.places;
            if it.job == situation.record.job {
                work.places += it.places;
                work.waiting += it.waiting;
            } else if situation.reader == Reader::App && it.app != situation.record.app {
                work.unnamed += it.places;
            } else if it.places > 0 {
                others.entry(it.job).or_insert((&it.app, 0)).1 += it.places;
            }
        }
        let others = others.into_iter();
        work.others = others
            .map(|(job, (app, places))| (job, app, places))
            .collect();
        work.others
            .sort_by_key(|(.., places)| std::cmp::Reverse(*places));
        work
    }

    /// Whether other jobs have places.
    fn has_others(&self) -> bool {
        self.unnamed > 0 || !self.others.is_empty()
    }

    /// No recipient gets an outcome, for so many seconds.
    fn no_outcome(&self, seconds: u64) -> Detail {
        let (because, others) = match (self.places, self.waiting, self.has_others()) {
            (1.., ..) => (Because::NoAnswer, Others::default()),
            (0, 1.., true) => (Because::NoPlace, self.others()),
            (0, _, false) => (Because::Retries, Others::default()),
            (0, 0, true) => (Because::RetriesOrLane, self.others()),
        };
        Detail::NoOutcome {
            seconds,
            because,
            others,
        }
    }

    /// Which other jobs have places.
    fn others(&self) -> Others {
        let named = self.others.iter().take(JOBS_NAMED_MAX);
        let jobs = named.map(|(job, app, places)| OtherJob {
            job: job.to_string(),
            app: (*app).to_owned(),
            places: *places,
        });
        let rest = self.others.iter().skip(JOBS_NAMED_MAX);
        Others {
            jobs: jobs.collect(),
            further_places: rest.map(|(.., places)| places).sum(),
            unnamed_places: self.unnamed,
        }
    }
}

fn hindrance(detail: Detail, until_ms: Option<u64>) -> Hindrance {
    let until = until_ms.map(rfc3339);
    Hindrance {
        cause: detail.cause(),
        what: detail.sentence(until.as_deref()),
        until,
        detail: Some(detail),
    }
}

#[cfg(test)]
mod tests;
