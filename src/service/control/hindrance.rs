//! Finds out why a job does not move, or not faster: what stops it, else the limits that it has
//! reached, else that no limit of ours slows it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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

/// One thing that stops a job or slows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hindrance {
    pub cause: Cause,
    /// The subject, the author and the reason.
    pub what: String,
    /// RFC 3339 time of its end, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
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
        let what = format!("the ledger takes no writes: {}", chain(&error));
        return Ok(vec![hindrance(Cause::Ledger, what, None)]);
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
    let stops = situation.stops();
    if !stops.is_empty() {
        return Ok(stops);
    }
    let limits = situation.limits();
    let plain: Vec<_> = limits.iter().map(InForce::limit).collect();
    let booked = store.booked(&plain).await?;
    let reached = situation.reached(&limits, &booked);
    if !reached.is_empty() {
        return Ok(reached);
    }
    Ok(situation.unlimited().into_iter().collect())
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
    fn subjects(&self) -> impl Iterator<Item = (Scope, &'a str)> + use<'a> {
        let names = [&*self.record.target, &*self.record.app, self.job];
        Scope::ALL.iter().copied().zip(names)
    }

    /// The hindrances that stop the job.
    fn stops(&self) -> Vec<Hindrance> {
        if let Some(cancel) = self.find(Scope::Job, self.job, Kind::Cancel) {
            let what = format!("job {cancel}; its calls under way still finish");
            return vec![hindrance(Cause::Cancelled, what, None)];
        }
        let mut found = Vec::new();
        for (scope, name) in self.subjects() {
            if let Some(pause) = self.find(scope, name, Kind::Pause) {
                let what = format!("{} {pause}{}", about(scope, name), until(pause.until_ms));
                found.push(hindrance(Cause::Paused, what, pause.until_ms));
            }
        }
        if let Some(park) = self.find(Scope::Job, self.job, Kind::Park) {
            let reason = park.reason.as_deref().unwrap_or_default();
            let what = format!("job is parked{}: {reason}", until(park.until_ms));
            found.push(hindrance(Cause::Parked, what, park.until_ms));
        }
        if let Some(park) = self.park.filter(|park| park.until_ms > self.now_ms) {
            let end = Some(park.until_ms);
            let target = &self.record.target;
            let what = format!("target {target} is parked{}: {park}", until(end));
            found.push(hindrance(Cause::Parked, what, end));
        }
        if self.target().is_none() {
            let what = format!(
                "target {} is not configured here; its slices wait until workers have it again, also \
                 to be cancelled",
                self.record.target
            );
            found.push(hindrance(Cause::NoTarget, what, None));
        }
        if let Some(at) = self.record.not_before_ms.filter(|at| *at > self.now_ms) {
            let what = format!("not to be sent before {}", rfc3339(at));
            found.push(hindrance(Cause::Scheduled, what, Some(at)));
        }
        found.extend(self.closed());
        found
    }

    /// The sending hours of the job and its app, with whose they are.
    fn windows(&self) -> impl Iterator<Item = (String, Window)> {
        let of_job = self.record.window.as_deref().and_then(|it| it.parse().ok());
        let of_app = self.facts.windows.get(&self.record.app).cloned();
        let app = format!("app {}", self.record.app);
        let windows = [("job".to_owned(), of_job), (app, of_app)].into_iter();
        windows.filter_map(|(of, window)| Some((of, window?)))
    }

    /// The sending hours that are over or have not begun. Not those that each recipient has in its own
    /// zone.
    fn closed(&self) -> Vec<Hindrance> {
        let of_all = |(_, window): &(String, Window)| window.zone_var().is_none();
        let closed = self.windows().filter(of_all).filter_map(|(of, window)| {
            let opens = window.opens_ms(self.now_ms)?;
            let what = format!(
                "sending hours of the {of} ({window}): opens at {}",
                rfc3339(opens)
            );
            Some(hindrance(Cause::SendingHours, what, Some(opens)))
        });
        closed.collect()
    }

    /// The own sending hours of its recipients, if nothing of the job is at a worker: those that are
    /// left may all be outside of them.
    fn own_hours(&self, work: &Work<'_>) -> Option<Hindrance> {
        let mut windows = self.windows().map(|(_, window)| window);
        let window = windows.find(|window| window.zone_var().is_some())?;
        (work.places + work.waiting == 0).then(|| {
            let what = format!(
                "recipients wait for their own sending hours ({window}), or for the next attempt"
            );
            hindrance(Cause::SendingHours, what, None)
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
        let (about, rate, full) = (limit.about(&self.record.target), limit.rate, limit.full);
        let cause = Cause::limit_of(limit.of);
        if let Some(climb) = limit.climb {
            let ends = Some(climb.ends_ms());
            let (part, whole) = (rate.short(), full.short());
            let what = format!(
                "{about} has its limit adapted: {part} of {whole}; it climbs{}",
                until(ends)
            );
            return hindrance(cause, what, ends);
        }
        match (limit.set, limit.of) {
            (Some(set), _) => {
                let what = format!("{about} {set}{}", until(set.until_ms));
                hindrance(cause, what, set.until_ms)
            }
            (None, LimitOf::Shared) => hindrance(cause, format!("{about}: {}", rate.short()), None),
            (None, LimitOf::Target | LimitOf::App | LimitOf::Job) => {
                hindrance(cause, format!("{about} has the limit {rate}"), None)
            }
            (None, LimitOf::TargetDaily | LimitOf::AppDaily | LimitOf::Sender) => hindrance(
                cause,
                format!("{about} has the limit {}", rate.short()),
                None,
            ),
        }
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
            let what = format!(
                "spread evenly until {}: {} recipient(s) are left, {}",
                rfc3339(until),
                self.record.pending,
                speed(per_second)
            );
            hindrance(Cause::Pace, what, Some(until))
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
            let (noun, seconds) = (
                if calls == 1 {
                    "call waits"
                } else {
                    "calls wait"
                },
                oldest_ms / 1000,
            );
            let what = format!("{calls} {noun} for {target}, the oldest for {seconds} s");
            hindrance(Cause::Target, what, None)
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
            let what = "accepted, and no worker has taken it yet: other jobs are before it";
            return Some(hindrance(Cause::Waiting, what.to_owned(), None));
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
            let what = format!("no outcome for {} s: {}", silent / 1000, work.why_none());
            let cause = match work.waiting > 0 && work.has_others() {
                true => Cause::OtherJobs,
                false => Cause::Waiting,
            };
            return (silent >= PATIENCE_MS).then(|| hindrance(cause, what, None));
        }
        if work.waiting > 0 && work.has_others() {
            let what = format!(
                "it shares the target with other jobs and has {} of {} places; {}",
                work.places,
                work.all,
                work.whose()
            );
            return Some(hindrance(Cause::OtherJobs, what, None));
        }
        let what = "only the time of the target's answers limits it: more calls in flight or more \
                    workers may help";
        Some(hindrance(Cause::Target, what.to_owned(), None))
    }

    /// Nothing was seen of the job for longer than any wait takes until its next look, or an operator
    /// has workers look for it.
    fn gone(&self, work: &Work<'_>) -> Option<Hindrance> {
        if work.places + work.waiting > 0 {
            return None;
        }
        if let Some(repair) = self.find(Scope::Job, self.job, Kind::Repair) {
            let what = format!(
                "{repair}; workers look for what is left of it and end it if they find nothing"
            );
            return Some(hindrance(Cause::Waiting, what, repair.until_ms));
        }
        let silent = self.now_ms.saturating_sub(self.record.heard_at_ms());
        (silent > LOST_MS).then(|| {
            let what = format!(
                "no sign of its slices for {} min: they may be lost. `fanwise job repair` looks for \
                 them now; without it workers look after ledger.abandoned_after",
                silent / 60_000
            );
            hindrance(Cause::Waiting, what, None)
        })
    }

    /// No process that could work on the job.
    fn no_session(&self) -> Option<Hindrance> {
        let mut workers = self.beats.iter().filter(|beat| beat.works).peekable();
        if workers.peek().is_none() {
            let what = "no worker is running: start `fanwise worker` or `fanwise serve`";
            return Some(hindrance(Cause::NoWorker, what.to_owned(), None));
        }
        let all_away = workers.all(|beat| beat.at_broker == Some(false));
        all_away.then(|| {
            let what = "no worker has a session with the broker: see their logs, or run \
                        `fanwise doctor`";
            hindrance(Cause::Broker, what.to_owned(), None)
        })
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

    /// Why no recipient gets an outcome.
    fn why_none(&self) -> String {
        match (self.places, self.waiting, self.has_others()) {
            (1.., ..) => "its slices have places, and no call is answered".to_owned(),
            (0, 1.., true) => format!("its slices wait for a place; {}", self.whose()),
            (0, _, false) => "retries wait for their time".to_owned(),
            (0, 0, true) => format!(
                "retries wait for their time, or other jobs are before it on its lane; {}",
                self.whose()
            ),
        }
    }

    /// Which other jobs have places.
    fn whose(&self) -> String {
        let named = self.others.iter().take(JOBS_NAMED_MAX);
        let count = |places: u64| {
            let noun = if places == 1 { "place" } else { "places" };
            format!("{places} {noun}")
        };
        let mut told: Vec<_> = named
            .map(|(job, app, places)| format!("job {job} of app {app} has {}", count(*places)))
            .collect();
        let rest = self.others.iter().skip(JOBS_NAMED_MAX);
        match rest.map(|(.., places)| places).sum() {
            0 => {}
            more => told.push(format!("further jobs have {}", count(more))),
        }
        match self.unnamed {
            0 => {}
            unnamed => told.push(format!("jobs of other apps have {}", count(unnamed))),
        }
        told.join(", ")
    }
}

fn hindrance(cause: Cause, what: String, until_ms: Option<u64>) -> Hindrance {
    let until = until_ms.map(rfc3339);
    Hindrance { cause, what, until }
}

/// `4.2/s`, `0.5/min`
fn speed(per_second: f64) -> String {
    match per_second {
        1.0.. => format!("{per_second:.1}/s"),
        per_second if per_second * 60.0 >= 1.0 => format!("{:.1}/min", per_second * 60.0),
        per_second => format!("{:.2}/h", per_second * 3600.0),
    }
}

/// The report names the job already.
fn about(scope: Scope, name: &str) -> String {
    match scope {
        Scope::Job => "job".to_owned(),
        Scope::Target | Scope::App | Scope::Shared => format!("{} {name}", scope.as_str()),
    }
}

fn until(ms: Option<u64>) -> String {
    ms.map(|ms| format!(" until {}", rfc3339(ms)))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::accounts::Accounts;
    use crate::domain::directive::{Action, Subject};
    use crate::domain::job_limits::LimitKind;
    use crate::domain::pace::{Mark, Pace};
    use crate::domain::slice::Shape;
    use crate::ports::{JobAtWork, ParkReason, UnderWay};
    use crate::service::control::SharedLimit;
    use crate::service::control::tests::facts;

    const NOW: u64 = 1_000_000;

    fn record() -> JobRecord {
        JobRecord {
            job: JobId::of("shop", "k"),
            app: "shop".to_owned(),
            client_msg_no: "k".to_owned(),
            target: "im".to_owned(),
            state: JobState::Running,
            accounts: Accounts::default(),
            pending: 1,
            accepted_at_ms: NOW,
            content_digest: None,
            progress_at_ms: None,
            completed_at_ms: None,
            rebuilt: false,
            went_back_at_ms: None,
            lost: 0,
            reopened: 0,
            waited_at_ms: None,
            submissions: 1,
            warnings: Vec::new(),
            sender: None,
            window: None,
            pace_until_ms: None,
            category: None,
            rate: None,
            priority: None,
            not_before_ms: None,
            expires_at_ms: None,
            tags: Vec::new(),
            fetched: None,
            keep_ids: false,
            keeps_ids: None,
            callback_url: None,
            reply_to: None,
            fallback: None,
            sent_by_fallback: 0,
            pace: Pace::default(),
            template: None,
            shape: Shape { buckets: 1 },
        }
    }

    #[test]
    fn a_job_of_a_target_that_was_removed_says_so() {
        let gone = JobRecord {
            target: "gone".to_owned(),
            ..record()
        };
        let found = note(&gone, Vec::new(), None, &[]);
        let [(cause, what)] = found.as_slice() else {
            panic!("{found:?}");
        };
        assert_eq!(*cause, Cause::NoTarget);
        assert!(
            what.starts_with("target gone is not configured here"),
            "{what}"
        );
    }

    fn directive(subject: Subject, action: Action) -> Directive {
        Directive {
            subject,
            action,
            reason: Some("wrong picture".to_owned()),
            author: Some("ana".to_owned()),
            since_ms: NOW,
            until_ms: None,
        }
    }

    /// A worker, with calls to the target under way.
    fn working(calls: &[(u64, u64)]) -> Vec<Beat> {
        let of = |(calls, oldest_ms): &(u64, u64)| Beat {
            works: true,
            calls: [(
                "im".to_owned(),
                UnderWay {
                    calls: *calls,
                    oldest_ms: *oldest_ms,
                },
            )]
            .into(),
            ..QUESTION
        };
        calls.iter().map(of).collect()
    }

    /// The hindrances when this share of each limit is booked and a worker runs.
    fn note(
        record: &JobRecord,
        directives: Vec<Directive>,
        park: Option<&Park>,
        booked: &[f64],
    ) -> Vec<(Cause, String)> {
        told_with(&working(&[(0, 0)]), record, directives, park, booked)
    }

    fn told_with(
        beats: &[Beat],
        record: &JobRecord,
        directives: Vec<Directive>,
        park: Option<&Park>,
        booked: &[f64],
    ) -> Vec<(Cause, String)> {
        let situation = Situation {
            board: &Board::new(directives),
            park,
            beats,
            facts: &facts(),
            record,
            reader: Reader::Administrator,
            job: &record.job.to_string(),
            now_ms: NOW,
        };
        let mut found = situation.stops();
        if found.is_empty() {
            found = situation.reached(&situation.limits(), booked);
        }
        if found.is_empty() {
            found.extend(situation.unlimited());
        }
        found.into_iter().map(|it| (it.cause, it.what)).collect()
    }

    fn as_told<const N: usize>(expected: [(Cause, &str); N]) -> Vec<(Cause, String)> {
        expected
            .map(|(cause, what)| (cause, what.to_owned()))
            .into()
    }

    #[test]
    fn a_job_says_all_that_stops_it() {
        let record = JobRecord {
            not_before_ms: Some(NOW + 60_000),
            rate: Some("5/s".to_owned()),
            ..record()
        };
        let park = Park {
            since_ms: NOW,
            until_ms: NOW + 1000,
            reason: ParkReason::Config,
            code: "401".to_owned(),
            text: "token is wrong".to_owned(),
        };
        let app = directive(Subject::new(Scope::App, "shop"), Action::Pause);
        assert_eq!(
            note(&record, vec![app], Some(&park), &[1.0, 1.0]),
            as_told([
                (Cause::Paused, "app shop paused by ana: wrong picture"),
                (
                    Cause::Parked,
                    "target im is parked until 1970-01-01T00:16:41Z: config 401: token is wrong",
                ),
                (
                    Cause::Scheduled,
                    "not to be sent before 1970-01-01T00:17:40Z",
                ),
            ])
        );
    }

    #[test]
    fn a_job_that_moves_says_which_limits_it_has_reached() {
        let record = JobRecord {
            not_before_ms: Some(NOW),
            rate: Some("5/s".to_owned()),
            ..record()
        };
        let target = (Cause::TargetLimit, "target im has the limit 100/s burst 20");
        let job = (Cause::JobLimit, "job has the limit 5/s burst 1");
        let reached = |booked: &[f64]| note(&record, Vec::new(), None, booked);
        assert_eq!(reached(&[0.5, 1.0]), as_told([target, job]));
        assert_eq!(reached(&[0.4, 1.0]), as_told([job]));
        // A rate that was set replaces the configured one.
        let rate = Action::Rate {
            rate: "7/s".parse().unwrap(),
        };
        let set = directive(Subject::new(Scope::Job, record.job.to_string()), rate);
        let what = "job rate set to 7/s burst 1 by ana: wrong picture";
        let found = note(&record, vec![set], None, &[0.0, 1.0]);
        assert_eq!(found, as_told([(Cause::JobLimit, what)]));
    }

    #[test]
    fn a_job_that_goes_at_its_limit_has_reached_it_whatever_is_booked() {
        let mark = |at_ms, settled| Some(Mark { at_ms, settled });
        let going = |settled: u64| JobRecord {
            rate: Some("100/s".to_owned()),
            progress_at_ms: Some(NOW),
            accounts: Accounts {
                total: 1000,
                sent: settled,
                ..Accounts::default()
            },
            pace: Pace {
                last: mark(NOW - 5_000, 0),
                before: None,
            },
            ..record()
        };
        let causes = |record: &JobRecord| -> Vec<_> {
            let found = note(record, Vec::new(), None, &[0.0, 0.0]).into_iter();
            found.map(|(cause, _)| cause).collect()
        };
        // 90 in a second is nine tenths of both limits.
        assert_eq!(causes(&going(450)), [Cause::TargetLimit, Cause::JobLimit]);
        assert_eq!(causes(&going(440)), [Cause::Target]);
        assert_eq!(causes(&record()), [], "nothing is said at once");
        let waiting = JobRecord {
            accepted_at_ms: NOW - PATIENCE_MS,
            ..record()
        };
        assert_eq!(causes(&waiting), [Cause::Waiting]);
    }

    #[test]
    fn a_job_that_stands_still_says_what_is_known_of_workers_and_calls() {
        let note =
            |beats: &[Beat], record: &JobRecord| told_with(beats, record, Vec::new(), None, &[0.0]);
        let none = (
            Cause::NoWorker,
            "no worker is running: start `fanwise worker` or `fanwise serve`",
        );
        assert_eq!(note(&[], &record()), as_told([none]));
        // A gateway delivers nothing.
        assert_eq!(note(&[QUESTION], &record()), as_told([none]));
        let hangs = (Cause::Target, "256 calls wait for im, the oldest for 6 s");
        let working = working(&[(200, 6100), (56, 2000)]);
        assert_eq!(note(&working, &record()), as_told([hangs]));
        let accepted = JobRecord {
            state: JobState::Accepted,
            ..record()
        };
        let waits = "accepted, and no worker has taken it yet: other jobs are before it";
        assert_eq!(
            note(&working, &accepted),
            as_told([(Cause::Waiting, waits)])
        );
    }

    /// A worker with these jobs: app, key, places and waiting slices.
    fn at_work(jobs: &[(&str, &str, u64, u64)]) -> Beat {
        let of = |(app, key, places, waiting): &(&str, &str, u64, u64)| JobAtWork {
            job: JobId::of(app, key),
            app: (*app).to_owned(),
            places: *places,
            waiting: *waiting,
        };
        Beat {
            works: true,
            at_broker: Some(true),
            jobs: [("im".to_owned(), jobs.iter().map(of).collect())].into(),
            ..QUESTION
        }
    }

    #[test]
    fn a_job_that_others_hold_up_says_whose_they_are() {
        let silent = JobRecord {
            accepted_at_ms: NOW - 9_000,
            ..record()
        };
        let note = |beats: &[Beat]| told_with(beats, &silent, Vec::new(), None, &[0.0]);
        let [one, other] = [JobId::of("shop", "one"), JobId::of("news", "other")];
        let beats = [
            at_work(&[
                ("news", "other", 3, 0),
                ("shop", "one", 1, 5),
                ("shop", "k", 0, 2),
            ]),
            at_work(&[("news", "other", 4, 9)]),
        ];
        let what = format!(
            "no outcome for 9 s: its slices wait for a place; job {other} of app news has 7 places, \
             job {one} of app shop has 1 place"
        );
        assert_eq!(note(&beats), as_told([(Cause::OtherJobs, what.as_str())]));
        // Its slices are at no worker.
        let elsewhere = [at_work(&[("news", "other", 4, 0)])];
        let what = format!(
            "no outcome for 9 s: retries wait for their time, or other jobs are before it on its \
             lane; job {other} of app news has 4 places"
        );
        assert_eq!(note(&elsewhere), as_told([(Cause::Waiting, what.as_str())]));
        let what = "no outcome for 9 s: retries wait for their time";
        assert_eq!(note(&[at_work(&[])]), as_told([(Cause::Waiting, what)]));
        let away = Beat {
            at_broker: Some(false),
            ..at_work(&[])
        };
        let what =
            "no worker has a session with the broker: see their logs, or run `fanwise doctor`";
        assert_eq!(
            note(std::slice::from_ref(&away)),
            as_told([(Cause::Broker, what)])
        );
        let what = "no outcome for 9 s: retries wait for their time";
        let one_of_two = [away, at_work(&[])];
        assert_eq!(note(&one_of_two), as_told([(Cause::Waiting, what)]));
    }

    /// An app does not learn which jobs others have.
    #[test]
    fn an_app_learns_only_of_its_own_jobs() {
        let beats = [at_work(&[
            ("news", "other", 7, 0),
            ("shop", "one", 1, 5),
            ("shop", "k", 0, 2),
        ])];
        let (record, board) = (record(), Board::new(Vec::new()));
        let situation = Situation {
            board: &board,
            park: None,
            beats: &beats,
            facts: &facts(),
            record: &record,
            reader: Reader::App,
            job: "",
            now_ms: NOW,
        };
        let told = Work::of(&situation).whose();
        let one = JobId::of("shop", "one");
        assert_eq!(
            told,
            format!("job {one} of app shop has 1 place, jobs of other apps have 7 places")
        );
    }

    #[test]
    fn a_job_that_shares_the_target_says_with_whom() {
        let mark = |at_ms, settled| Some(Mark { at_ms, settled });
        let going = JobRecord {
            progress_at_ms: Some(NOW),
            accounts: Accounts {
                total: 1000,
                sent: 100,
                ..Accounts::default()
            },
            pace: Pace {
                last: mark(NOW - 5_000, 0),
                before: None,
            },
            ..record()
        };
        let note = |beats: &[Beat]| told_with(beats, &going, Vec::new(), None, &[0.0]);
        let one = JobId::of("shop", "one");
        let beats = [at_work(&[("shop", "one", 2, 5), ("shop", "k", 2, 3)])];
        let what = format!(
            "it shares the target with other jobs and has 2 of 4 places; job {one} of app shop has 2 \
             places"
        );
        assert_eq!(note(&beats), as_told([(Cause::OtherJobs, what.as_str())]));
        // All its slices have places: others take nothing from it.
        let beats = [at_work(&[("shop", "one", 2, 5), ("shop", "k", 2, 0)])];
        assert_eq!(note(&beats)[0].0, Cause::Target);
    }

    #[test]
    fn limits_of_senders_days_and_accounts_are_told_apart() {
        let rate = |text: &str| Some(text.parse().unwrap());
        let mut facts = facts();
        let im = facts.targets.get_mut("im").unwrap();
        (im.limit, im.daily_limit) = (None, rate("9/day"));
        (im.sender_limit, im.sender) = (rate("5/h"), Some("news".to_owned()));
        im.shared_limit = Some(SharedLimit {
            name: "cloud".to_owned(),
            rate: "7/s".parse().unwrap(),
        });
        let told = |record: &JobRecord, directives: Vec<Directive>| {
            let situation = Situation {
                board: &Board::new(directives),
                park: None,
                beats: &working(&[(0, 0)]),
                facts: &facts,
                record,
                reader: Reader::Administrator,
                job: "",
                now_ms: NOW,
            };
            let limits = situation.limits();
            let names: Vec<_> = limits.iter().map(|it| it.limiter.to_string()).collect();
            let told = situation.reached(&limits, &vec![1.0; limits.len()]);
            let told: Vec<_> = told.into_iter().map(|it| (it.cause, it.what)).collect();
            (names, told)
        };
        let (names, found) = told(&record(), Vec::new());
        let shared = "all targets that share the limit cloud";
        assert_eq!(
            found,
            as_told([
                (Cause::TargetLimit, "target im has the limit 9/day"),
                (
                    Cause::SenderLimit,
                    "sender news at target im has the limit 5/h"
                ),
                (Cause::SharedLimit, &format!("{shared}: 7/s")),
            ])
        );
        // The limiter is that of the sender, whether the job names it or the target does.
        let named = |sender: &str| JobRecord {
            sender: Some(sender.to_owned()),
            ..record()
        };
        assert_eq!(told(&named("news"), Vec::new()).0, names);
        let (others, found) = told(&named("alerts"), Vec::new());
        assert_ne!(others[1], names[1]);
        assert!(found[1].1.starts_with("sender alerts at "), "{found:?}");
        let set = |scope, name, kind| {
            let rate = "3/day".parse().unwrap();
            directive(Subject::new(scope, name), Action::limit(kind, rate))
        };
        let (_, found) = told(
            &record(),
            vec![
                set(Scope::Shared, "cloud", LimitKind::Main),
                set(Scope::Target, "im", LimitKind::Sender),
                set(Scope::App, "shop", LimitKind::Daily),
            ],
        );
        let set = "set to 3/day burst 1 by ana: wrong picture";
        assert_eq!(
            found[1..],
            as_told([
                (Cause::AppLimit, &*format!("app shop daily limit {set}")),
                (
                    Cause::SenderLimit,
                    &format!("sender news at target im limit of each sender {set}")
                ),
                (Cause::SharedLimit, &format!("{shared} rate {set}")),
            ])
        );
    }

    /// A limit with a small burst holds the next unit up as soon as any is booked.
    #[test]
    fn a_slow_limit_is_reached_between_two_units() {
        let slow = JobRecord {
            rate: Some("6/h".to_owned()),
            ..record()
        };
        let what = (Cause::JobLimit, "job has the limit 6/h burst 1");
        assert_eq!(note(&slow, Vec::new(), None, &[0.0, 0.1]), as_told([what]));
        assert_eq!(note(&slow, Vec::new(), None, &[0.0, 0.0]), []);
    }

    #[test]
    fn a_job_that_is_spread_over_a_time_says_so() {
        let paced = JobRecord {
            pace_until_ms: Some(NOW + 600_000),
            pending: 10,
            progress_at_ms: Some(NOW - 50_000),
            accounts: Accounts {
                total: 20,
                sent: 10,
                ..Accounts::default()
            },
            ..record()
        };
        let what = "spread evenly until 1970-01-01T00:26:40Z: 10 recipient(s) are left, 1.0/min";
        let found = |record: &JobRecord, directives| note(record, directives, None, &[0.0, 0.0]);
        assert_eq!(found(&paced, vec![]), as_told([(Cause::Pace, what)]));
        // Two more are due and did not come, so something else holds it up.
        let late = JobRecord {
            progress_at_ms: Some(NOW - 130_000),
            ..paced.clone()
        };
        assert_eq!(found(&late, vec![])[0].0, Cause::Waiting);
        let past = JobRecord {
            pace_until_ms: Some(NOW),
            ..paced.clone()
        };
        assert_eq!(found(&past, vec![])[0].0, Cause::Waiting);
        // A rate that was set applies instead.
        let subject = Subject::new(Scope::Job, paced.job.to_string());
        let rate = Action::Rate {
            rate: "7/s".parse().unwrap(),
        };
        let set = directive(subject, rate);
        assert_eq!(found(&paced, vec![set])[0].0, Cause::Waiting);
    }

    #[test]
    fn a_job_of_recipients_with_hours_of_their_own_is_not_outside_of_its_hours() {
        let own = JobRecord {
            window: Some("01:00-02:00 vars.tz or UTC".to_owned()),
            accepted_at_ms: NOW - 9_000,
            ..record()
        };
        let what = "recipients wait for their own sending hours (01:00-02:00 vars.tz or UTC), or for \
                    the next attempt";
        let found = note(&own, Vec::new(), None, &[0.0]);
        assert_eq!(found, as_told([(Cause::SendingHours, what)]));
        let beats = [at_work(&[("shop", "k", 1, 0)])];
        let found = told_with(&beats, &own, Vec::new(), None, &[0.0]);
        assert_eq!(found[0].0, Cause::Waiting, "it has a place: {found:?}");
    }

    #[test]
    fn a_job_outside_its_hours_says_when_they_begin() {
        // It is 00:16:40.
        let closed = JobRecord {
            window: Some("01:00-02:00 UTC".to_owned()),
            ..record()
        };
        let what = "sending hours of the job (01:00-02:00 UTC): opens at 1970-01-01T01:00:00Z";
        let found = note(&closed, Vec::new(), None, &[]);
        assert_eq!(found, as_told([(Cause::SendingHours, what)]));
        let open = JobRecord {
            app: "night".to_owned(),
            ..record()
        };
        assert_eq!(note(&open, Vec::new(), None, &[0.0]), []);
    }

    #[test]
    fn a_cancelled_job_says_only_that() {
        let record = record();
        let job = Subject::new(Scope::Job, record.job.to_string());
        let directives = vec![
            directive(job.clone(), Action::Cancel),
            directive(job, Action::Pause),
        ];
        let found = note(&record, directives, None, &[1.0]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, Cause::Cancelled);
    }
}
