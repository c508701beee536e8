//! Counts what is open in the whole cluster, for the metrics.
//!
//! One process counts for all: of the processes with a fresh heartbeat the worker with the lowest
//! number, or a gateway if there is no worker. No lock is needed. Two processes may count for some
//! seconds after the lowest one ended; both show the same figures, so readers take the maximum.
//!
//! A round reads the header of every job that is not completed, a page at a time. Then it rests for
//! [`REST_TIMES`] times as long as it took, so however many jobs are open, it takes a few percent
//! of one connection and of one core.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::context::{AppRuntime, Context, Parking};
use crate::clock::now_ms;
use crate::domain::directive::{Board, Kind};
use crate::domain::lane::Priority;
use crate::domain::window::Window;
use crate::error::chain;
use crate::metrics::{ClusterFigures, LedgerStep, OpenState, Waiting};
use crate::ports::{Beat, Broker, JobRecord, JobState, LedgerError, Scope, Store};

/// Shortest pause between two rounds.
const PAUSE: Duration = Duration::from_secs(5);

/// A round rests this many times as long as it took.
const REST_TIMES: u32 = 20;

/// Shortest time between two questions to the broker, each of which may open a connection.
const ASK_BROKER: Duration = Duration::from_secs(15);

/// Counts until `stop`, while this process is the one that counts.
pub async fn count_cluster<B: Broker, S: Store, T>(
    context: Arc<Context<S, T>>,
    broker: B,
    stop: CancellationToken,
) {
    let mut waiting = WaitingWithBroker::new(broker);
    let rounds = async {
        let mut up = context.ledger_up();
        loop {
            // The sender lives in the context, so the wait cannot fail.
            let _ = up.wait_for(|up| *up).await;
            let started = Instant::now();
            let mut figures = context.count_open().await.unwrap_or_default();
            let took = started.elapsed();
            if let Some(figures) = &mut figures {
                figures.waiting = waiting.now().await;
            }
            context.metrics.cluster(figures.as_ref());
            context.note_counted(figures.as_ref());
            let rest = PAUSE.max(took * REST_TIMES);
            // A ledger that goes down takes the figures with it.
            if tokio::time::timeout(rest, up.wait_for(|up| !*up))
                .await
                .is_ok()
            {
                context.metrics.cluster(None);
            }
        }
    };
    let _: Option<()> = stop.run_until_cancelled(rounds).await;
    context.metrics.cluster(None);
}

impl<S: Store, T> Context<S, T> {
    /// The figures of the ledger; none if another process counts.
    async fn count_open(&self) -> Result<Option<ClusterFigures>, LedgerError> {
        let beats = self.try_step(LedgerStep::Count, self.store.beats()).await?;
        if !counts(&beats, self.process) {
            return Ok(None);
        }
        let parked = self.parked().borrow().clone();
        let board = self.directives().borrow().clone();
        let mut census = Census {
            board: &board,
            parked: &parked,
            apps: &self.apps,
            now_ms: now_ms(),
            figures: self.zeros(&beats),
        };
        let count = self.store.each_open(|record| census.add(record));
        self.try_step(LedgerStep::Count, count).await?;
        Ok(Some(census.figures))
    }

    /// Figures with every target and priority, so that they are 0 and not missing.
    fn zeros(&self, beats: &[Beat]) -> ClusterFigures {
        let alive = || beats.iter().filter(|beat| beat.process != 0);
        let workers = alive().filter(|beat| beat.works).count();
        let mut figures = ClusterFigures {
            workers: workers as u64,
            gateways: (alive().count() - workers) as u64,
            ..ClusterFigures::default()
        };
        for target in self.targets.keys() {
            figures.standstill_ms.insert(target.clone(), 0);
            for &priority in Priority::ALL {
                let key = (target.clone(), priority);
                figures.pending.insert(key, Default::default());
            }
        }
        figures
    }
}

/// Whether this process counts for all.
fn counts(beats: &[Beat], process: u64) -> bool {
    // Heartbeat 0 is a question of an operator, not a process.
    let alive = beats.iter().filter(|beat| beat.process != 0);
    let chosen = alive.min_by_key(|beat| (!beat.works, beat.process));
    chosen.is_some_and(|beat| beat.process == process)
}

/// Adds up open jobs.
struct Census<'a> {
    board: &'a Board,
    parked: &'a HashMap<String, Parking>,
    apps: &'a BTreeMap<String, AppRuntime>,
    now_ms: u64,
    figures: ClusterFigures,
}

impl Census<'_> {
    fn add(&mut self, record: &JobRecord) {
        let state = self.state(record);
        self.figures.jobs[state as usize] += 1;
        let key = (record.target.clone(), record.priority.unwrap_or_default());
        let pending = self.figures.pending.entry(key).or_default();
        pending.recipients += record.pending;
        let waits = matches!(state, OpenState::Accepted | OpenState::Running);
        if record.pending == 0 || !waits {
            return;
        }
        let age = self.now_ms.saturating_sub(record.due_at_ms());
        pending.oldest_ms = pending.oldest_ms.max(age);
        if state == OpenState::Running && !self.is_parked(record) {
            let moved_at = record.due_at_ms().max(record.progress_at_ms.unwrap_or(0));
            let still = match self.may_rest(record) {
                true => 0,
                false => self.now_ms.saturating_sub(moved_at),
            };
            let longest = self.figures.standstill_ms.entry(record.target.clone());
            let longest = longest.or_default();
            *longest = (*longest).max(still);
        }
    }

    fn state(&self, record: &JobRecord) -> OpenState {
        let is_paused = |(scope, name): (Scope, &str)| {
            let pause = self.board.find(scope, name, Kind::Pause, self.now_ms);
            pause.is_some()
        };
        let job = record.job.to_string();
        let subjects = [
            (Scope::Target, &*record.target),
            (Scope::App, &*record.app),
            (Scope::Job, &*job),
        ];
        if subjects.into_iter().any(is_paused) {
            OpenState::Paused
        } else if record.not_before_ms.is_some_and(|at| at > self.now_ms) || self.is_closed(record)
        {
            OpenState::Scheduled
        } else if record.state == JobState::Accepted {
            OpenState::Accepted
        } else {
            OpenState::Running
        }
    }

    /// Whether it may send nothing for long by intention: its recipients have sending hours of their
    /// own, or it is spread over a time.
    fn may_rest(&self, record: &JobRecord) -> bool {
        let window: Option<Window> = record.window.as_deref().and_then(|it| it.parse().ok());
        let own_hours = window.is_some_and(|window| window.zone_var().is_some());
        own_hours
            || record
                .pace_until_ms
                .is_some_and(|until| until > self.now_ms)
    }

    /// Whether it is outside the sending hours of the job or its app. Those of its recipients may be
    /// others.
    fn is_closed(&self, record: &JobRecord) -> bool {
        let of_job = record.window.as_deref().and_then(|it| it.parse().ok());
        let of_app = self
            .apps
            .get(&record.app)
            .and_then(|app| app.window.clone());
        let windows: [Option<Window>; 2] = [of_job, of_app];
        let of_all = |window: &&Window| window.zone_var().is_none();
        let mut windows = windows.iter().flatten().filter(of_all);
        windows.any(|window| window.opens_ms(self.now_ms).is_some())
    }

    fn is_parked(&self, record: &JobRecord) -> bool {
        let job = record.job.to_string();
        let of_job = self.board.find(Scope::Job, &job, Kind::Park, self.now_ms);
        let of_target = self.parked.get(&record.target);
        of_job.is_some() || of_target.is_some_and(|it| it.park.until_ms > self.now_ms)
    }
}

/// The messages that wait with the broker, asked now and then.
struct WaitingWithBroker<B> {
    broker: B,
    asked: Option<Instant>,
    known: Option<Waiting>,
}

impl<B: Broker> WaitingWithBroker<B> {
    fn new(broker: B) -> Self {
        Self {
            broker,
            asked: None,
            known: None,
        }
    }

    /// None if the broker did not answer.
    async fn now(&mut self) -> Option<Waiting> {
        if self.asked.is_some_and(|at| at.elapsed() < ASK_BROKER) {
            return self.known.clone();
        }
        self.asked = Some(Instant::now());
        self.known = match self.broker.backlog().await {
            Ok(backlog) => Some(Waiting {
                jobs: backlog.jobs,
                slices: backlog.lanes,
                dead: backlog.dead,
                rejected: backlog.rejected,
            }),
            Err(error) => {
                tracing::debug!(error = %chain(&error), "the waiting messages could not be counted");
                None
            }
        };
        self.known.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::directive::{Action, Directive, Subject};
    use crate::domain::ids::JobId;
    use crate::metrics::Pending;
    use crate::ports::{Park, ParkReason};
    use crate::runtime::context::parking;

    const NOW: u64 = 1_000_000;

    fn record(key: &str, pending: u64, accepted_at_ms: u64) -> JobRecord {
        let json = serde_json::json!({
            "job": JobId::of("shop", key), "app": "shop", "client_msg_no": key, "target": "im",
            "state": "running",
            "accounts": {"total": pending, "sent": 0, "duplicate": 0, "failed": 0, "uncertain": 0,
                "expired": 0, "cancelled": 0},
            "pending": pending, "accepted_at_ms": accepted_at_ms, "content_digest": null,
            "progress_at_ms": null, "completed_at_ms": null, "rebuilt": false, "submissions": 1,
            "shape": {"buckets": 1}, "warnings": [], "priority": "high",
        });
        serde_json::from_value(json).unwrap()
    }

    fn counted(
        board: &Board,
        parked: &HashMap<String, Parking>,
        all: &[JobRecord],
    ) -> ClusterFigures {
        let mut census = Census {
            board,
            parked,
            apps: &BTreeMap::new(),
            now_ms: NOW,
            figures: ClusterFigures::default(),
        };
        all.iter().for_each(|record| census.add(record));
        census.figures
    }

    #[test]
    fn the_oldest_age_is_that_of_a_job_that_is_due_and_not_paused() {
        let paused = record("paused", 5, NOW - 90_000);
        let pause = Directive {
            subject: Subject::new(Scope::Job, paused.job.to_string()),
            action: Action::Pause,
            since_ms: NOW - 1,
            until_ms: None,
            author: None,
            reason: None,
        };
        let scheduled = JobRecord {
            not_before_ms: Some(NOW + 1),
            ..record("scheduled", 7, NOW - 80_000)
        };
        let begun = JobRecord {
            not_before_ms: Some(NOW - 10_000),
            progress_at_ms: Some(NOW - 4_000),
            ..record("begun", 11, NOW - 70_000)
        };
        let done = record("done", 0, NOW - 60_000);
        let board = Board::new([pause]);
        let all = [paused, scheduled, begun, done];
        let figures = counted(&board, &HashMap::new(), &all);
        let pending = Pending {
            recipients: 23,
            oldest_ms: 10_000,
        };
        let im = ("im".to_owned(), Priority::High);
        assert_eq!(figures.pending[&im], pending);
        assert_eq!(figures.standstill_ms["im"], 4_000);
        assert_eq!(figures.jobs, [0, 2, 1, 1]);
    }

    #[test]
    fn a_job_of_a_parked_target_ages_and_does_not_count_as_standing_still() {
        let park = Park {
            since_ms: NOW - 1,
            until_ms: NOW + 1,
            reason: ParkReason::Throttled,
            code: String::new(),
            text: String::new(),
        };
        let parked = HashMap::from([("im".to_owned(), parking(park))]);
        let waits = record("waits", 3, NOW - 50_000);
        let figures = counted(&Board::default(), &parked, &[waits]);
        let im = ("im".to_owned(), Priority::High);
        assert_eq!(figures.pending[&im].oldest_ms, 50_000);
        assert!(figures.standstill_ms.is_empty());
    }

    #[test]
    fn the_lowest_worker_counts_and_a_gateway_only_without_one() {
        let beat = |process, works| Beat {
            process,
            number: 1,
            works,
            calls: Default::default(),
            at_broker: None,
            jobs: Default::default(),
            pending: Default::default(),
        };
        let beats = [beat(0, false), beat(3, false), beat(9, true), beat(7, true)];
        let chosen = |beats: &[Beat]| {
            let all = [0, 3, 7, 9].into_iter();
            all.filter(|it| counts(beats, *it)).collect::<Vec<_>>()
        };
        assert_eq!(chosen(&beats), [7]);
        assert_eq!(chosen(&beats[..2]), [3]);
        assert_eq!(chosen(&beats[..1]), [0; 0]);
    }
}
