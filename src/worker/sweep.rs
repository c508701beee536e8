//! Ends jobs that have nothing left to deliver.
//!
//! A slice that is deferred notes it in the ledger, so every running job shows activity at least
//! once in the longest rung of the retry ladder. A job without activity for longer may have nothing
//! left to deliver: the ledger went back to older data, or messages were lost or removed. The sweep
//! then looks for its slices ([`domain::repair`](crate::domain::repair)); a `repair` directive makes
//! it look at once. If it finds none, it ends the job, so that it does not run forever, and reports
//! how many outcomes are not known. If a slice of it arrives nevertheless, it is delivered and
//! counted; if the job is submitted again, the recipients without an outcome are sent to.

use std::collections::HashSet;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::forget::forget_directives;
use super::session::WorkerSession;
use crate::clock::now_ms;
use crate::domain::directive::{Board, Kind, Scope, Subject};
use crate::domain::ids::JobId;
use crate::domain::repair::{Finding, Search, Seen};
use crate::domain::schedule::LOOK_AGAIN_MAX;
use crate::domain::trail::{Origin, TrailEntry, Via};
use crate::domain::waking::Waking;
use crate::error::chain;
use crate::metrics::LedgerStep;
use crate::ports::{Backlog, Broker, JobRecord, JobState, Lost, Publisher, Store};

/// Longest time between two rounds, and between two looks of a search.
const ROUND_MAX: Duration = Duration::from_secs(60);
const LOOK_MAX: Duration = Duration::from_secs(15);

/// Time for a broker to notice that a worker is gone, and for a call that takes long.
const MARGIN: Duration = Duration::from_secs(60);

/// Sweeps until the session ends.
pub(super) async fn sweep<B: Broker, S: Store, T, P: Publisher>(
    session: &WorkerSession<S, T, P>,
    broker: B,
) {
    let mut sweep = Sweep::new(session, broker);
    let mut looked_at = HashSet::new();
    let mut orders = session.context.directives();
    let mut next_round = Instant::now() + sweep.times.round;
    loop {
        let look = match sweep.search.is_empty() {
            true => next_round,
            false => Instant::now() + sweep.times.look,
        };
        if !sweep.sleep(look.min(next_round), &mut orders).await {
            return;
        }
        let due = Instant::now() >= next_round;
        if sweep.pass(due, &orders).await.is_err() {
            return;
        }
        if due {
            forget_directives(session, &mut looked_at).await;
            next_round = Instant::now() + sweep.times.round;
        }
    }
}

/// How long the sweep waits for what.
struct Times {
    /// A job without a sign for this long is looked for.
    quiet: Duration,
    /// A job that is to be repaired is ended after this long without a sign.
    ordered: Duration,
    round: Duration,
    look: Duration,
}

impl Times {
    /// The times, and how long a job must stay silent while it is looked for: a worker keeps what
    /// waits for a place for [`LOOK_AGAIN_MAX`], and works on a slice for `slice_time_max`.
    fn of(quiet: Duration, slice_time_max: Duration) -> (Self, Duration) {
        let silence = (LOOK_AGAIN_MAX + slice_time_max + MARGIN).min(quiet / 4);
        let times = Self {
            quiet,
            // A worker notes at most this often that slices of a job wait.
            ordered: quiet / 8 + silence,
            round: (quiet / 8).min(ROUND_MAX),
            look: (silence / 4).min(LOOK_MAX),
        };
        (times, silence)
    }
}

struct Sweep<'a, B, S, T, P> {
    session: &'a WorkerSession<S, T, P>,
    broker: B,
    search: Search,
    times: Times,
    /// The jobs that are to be repaired.
    ordered: HashSet<JobId>,
    /// The origin of the times that the search gets.
    epoch: Instant,
}

impl<'a, B: Broker, S: Store, T, P: Publisher> Sweep<'a, B, S, T, P> {
    fn new(session: &'a WorkerSession<S, T, P>, broker: B) -> Self {
        let settings = &session.context.settings;
        let (times, silence) = Times::of(settings.abandoned_after, settings.slice_time_max);
        Self {
            session,
            broker,
            search: Search::new(silence),
            times,
            ordered: HashSet::new(),
            epoch: Instant::now(),
        }
    }

    /// Sleeps until a time, or until directives change. False when the session ends.
    async fn sleep(&self, until: Instant, orders: &mut watch::Receiver<Board>) -> bool {
        tokio::select! {
            biased;
            () = self.session.halt.cancelled() => false,
            () = tokio::time::sleep_until(until) => true,
            _ = orders.changed() => true,
        }
    }

    /// Looks once for what is left of jobs. In a round, also for jobs that became quiet.
    async fn pass(&mut self, round: bool, orders: &watch::Receiver<Board>) -> Result<(), Lost> {
        let orders = orders.borrow().repairs(now_ms()).map(str::parse).collect();
        let orders: Vec<Result<JobId, _>> = orders;
        self.ordered = orders.into_iter().flatten().collect();
        for job in self.ordered.clone() {
            self.begin(&[job]).await;
        }
        if round {
            let quiet = self.session.context.store.quiet(self.times.quiet);
            // Not repeated: the next round comes soon.
            let quiet = self.step(quiet).await.unwrap_or_default();
            let quiet: Vec<_> = quiet.into_iter().map(|record| record.job).collect();
            self.begin(&quiet).await;
        }
        if self.search.is_empty() {
            return Ok(());
        }
        let Some(backlog) = self.backlog().await else {
            return Ok(());
        };
        let Ok(beats) = self.step(self.session.context.store.beats()).await else {
            return Ok(());
        };
        let jobs = beats.iter().flat_map(|beat| beat.jobs.values().flatten());
        let held: HashSet<JobId> = jobs.map(|it| it.job).collect();
        for job in self.search.jobs() {
            if self.session.halt.is_cancelled() {
                return Ok(());
            }
            self.look(job, &backlog, held.contains(&job)).await?;
        }
        self.tell_long(&backlog);
        Ok(())
    }

    /// Takes the slices of these jobs off the retry ladder, and begins to look for the jobs if there
    /// are none. Otherwise their delivery shows which of them are alive.
    async fn begin(&mut self, jobs: &[JobId]) {
        let now = self.epoch.elapsed();
        let mut silent = Vec::new();
        for job in jobs.iter().filter(|job| !self.search.seeks(**job)) {
            let record = self.step(self.session.context.store.job(*job)).await;
            let Ok(Some(record)) = record else { continue };
            let is_known = |target| self.session.context.targets.contains_key(target);
            if record.state != JobState::Completed && targets(&record).all(is_known) {
                silent.push(record);
            }
        }
        if silent.is_empty() {
            return;
        }
        match self.wake(silent.iter().map(|record| record.job)).await {
            Some(0) => {
                for record in silent {
                    let (job, heard_ms) = (record.job, record.heard_at_ms());
                    self.search.begin(job, targets(&record), heard_ms, now);
                }
            }
            Some(_) => {
                if let [record] = &silent[..] {
                    self.alive(record).await;
                }
            }
            None => {}
        }
    }

    /// How many slices of these jobs came back from the retry ladder; `None` if it is not known.
    async fn wake(&self, jobs: impl Iterator<Item = JobId>) -> Option<u64> {
        let waking = Waking::of_jobs(jobs);
        let woken = self.broker.wake(&waking).await;
        woken
            .inspect_err(|error| {
                tracing::debug!(error = %chain(error), "the retry ladder could not be read");
            })
            .ok()
    }

    async fn backlog(&self) -> Option<Backlog> {
        let backlog = self.broker.backlog().await;
        backlog
            .inspect_err(|error| {
                tracing::debug!(error = %chain(error), "the waiting messages could not be counted");
            })
            .ok()
    }

    async fn look(&mut self, job: JobId, backlog: &Backlog, held: bool) -> Result<(), Lost> {
        let record = self.step(self.session.context.store.job(job)).await;
        let Ok(record) = record else { return Ok(()) };
        let Some(record) = record.filter(|it| it.state != JobState::Completed) else {
            self.search.end(job);
            return Ok(());
        };
        let seen = Seen {
            heard_ms: record.heard_at_ms(),
            held,
            jobs_wait: backlog.jobs > 0,
            busy: &backlog.busy,
        };
        match self.search.look(job, seen, self.epoch.elapsed()) {
            Finding::Open => {}
            Finding::Alive => self.alive(&record).await,
            Finding::Nothing if !self.is_silent(&record) => {}
            // A delivery may have put a slice on the ladder meanwhile.
            Finding::Nothing => match self.wake([job].into_iter()).await {
                Some(0) => return self.end(&record).await,
                Some(_) => {
                    self.search.end(job);
                    self.alive(&record).await;
                }
                None => {}
            },
        }
        Ok(())
    }

    /// How long a job must have been silent before it is ended.
    fn silence(&self, job: JobId) -> Duration {
        match self.ordered.contains(&job) {
            true => self.times.ordered.min(self.times.quiet),
            false => self.times.quiet,
        }
    }

    fn is_silent(&self, record: &JobRecord) -> bool {
        let silent = now_ms().saturating_sub(record.heard_at_ms());
        u128::from(silent) >= self.silence(record.job).as_millis()
    }

    /// A job that was to be repaired has slices, and goes on.
    async fn alive(&self, record: &JobRecord) {
        if !self.ordered.contains(&record.job) {
            return;
        }
        let subject = Subject::new(Scope::Job, record.job.to_string());
        let lift = self.session.context.store.lift(&subject, Kind::Repair);
        if let Ok(true) = self.step(lift).await {
            tracing::info!(job.id = %record.job, "a job that was to be repaired has slices, and goes on");
            let what = "its slices were found: the job goes on";
            self.note(record, "repair", what.to_owned()).await;
        }
    }

    /// Ends a job of which nothing is left.
    async fn end(&mut self, record: &JobRecord) -> Result<(), Lost> {
        let context = &*self.session.context;
        if record.state == JobState::Accepted {
            if self.step(context.store.withdraw(record.job)).await.is_ok() {
                self.search.end(record.job);
                tracing::warn!(
                    job.id = %record.job, job.app = record.app,
                    "a job that was accepted is not on its queue any more and was never taken: its \
                     message was removed or rejected"
                );
            }
            return Ok(());
        }
        let abandon = context.store.abandon(record.job, self.silence(record.job));
        let Ok(Some(progress)) = self.step(abandon).await else {
            return Ok(());
        };
        self.search.end(record.job);
        context.metrics.job_abandoned();
        tracing::error!(
            job.id = %record.job, job.app = record.app, job.lost = record.pending,
            "a job that has nothing left to deliver is ended: outcomes that the ledger does not know \
             count as uncertain. Submit the job again to send to these recipients"
        );
        let what = format!(
            "nothing was left to deliver: {} recipient(s) count as uncertain",
            record.pending
        );
        self.note(record, "end", what).await;
        match progress.finished && !progress.completed {
            true => self.session.complete(&record.into(), true).await,
            false => Ok(()),
        }
    }

    /// Adds an entry to the audit trail of a job. Not repeated: the log has it too.
    async fn note(&self, record: &JobRecord, action: &str, detail: String) {
        let entry = TrailEntry {
            at_ms: now_ms(),
            action: action.to_owned(),
            detail: Some(detail),
            author: None,
            reason: None,
            origin: Origin {
                via: Via::Worker,
                ..Origin::default()
            },
        };
        let jobs = [record.job];
        let noted = self.session.context.store.note(&jobs, &entry);
        let _ = self.step(noted).await;
    }

    /// Reports jobs that cannot be shown to have nothing left, because slices of others always wait
    /// on some lane.
    fn tell_long(&mut self, backlog: &Backlog) {
        let now = self.epoch.elapsed();
        for (job, lanes) in self.search.long(self.times.quiet, now) {
            let lanes: Vec<_> = lanes.iter().map(ToString::to_string).collect();
            tracing::warn!(
                job.id = %job, lanes = lanes.join(", "), jobs.waiting = backlog.jobs,
                "a job shows no sign of life and is not ended: slices of others always wait on these \
                 lanes of its target, or jobs wait to be taken, and its own may be among them"
            );
        }
    }

    async fn step<V>(
        &self,
        step: impl Future<Output = Result<V, crate::ports::LedgerError>>,
    ) -> Result<V, crate::ports::LedgerError> {
        self.session.context.try_step(LedgerStep::Sweep, step).await
    }
}

/// The targets in whose lanes slices of a job may wait.
fn targets(record: &JobRecord) -> impl Iterator<Item = &str> {
    let second = record.fallback.iter();
    std::iter::once(&record.target)
        .chain(second)
        .map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A repair ends a job sooner than the sweep would by itself, and not before every worker that
    /// holds a slice must have noted it.
    #[test]
    fn a_repair_waits_for_a_sign_and_not_longer() {
        let (times, silence) = Times::of(45 * 60 * SECOND, 60 * SECOND);
        assert_eq!(silence, 180 * SECOND);
        assert_eq!(times.ordered, 337 * SECOND + SECOND / 2 + silence);
        assert_eq!((times.round, times.look), (60 * SECOND, 15 * SECOND));
        for quiet in [2, 60, 2700, 86_400] {
            let (times, silence) = Times::of(quiet * SECOND, 60 * SECOND);
            assert!(times.ordered < times.quiet, "{quiet}");
            assert!(times.ordered > silence, "{quiet}");
        }
    }
}
