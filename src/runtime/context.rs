//! The state that all tasks of a worker share: the ports, the targets and apps, and their health as
//! this worker knows it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::at_work::AtWork;
use super::backlog::Backlog;
use super::call_log::CallLog;
use super::call_places::CallPlaces;
use super::callbacks::Callbacks;
use super::complete_lists::CompleteLists;
use super::credential::Keyring;
use super::health::{Admission, Health};
use super::known_directives::KnownDirectives;
use super::ledger_health::LedgerHealth;
use super::paces::Paces;
use super::pending::PendingRecipients;
use super::standstills::TargetStandstills;
use super::traces::Tracer;
use super::under_way::CallsUnderWay;
use crate::clock::now_ms;
use crate::domain::codes::ClassByCode;
use crate::domain::cost::Prices;
use crate::domain::directive::{Board, Directive, Kind, Subject};
use crate::domain::fairness::AppRules;
use crate::domain::frequency_cap::FrequencyCap;
use crate::domain::ids::JobId;
use crate::domain::job;
use crate::domain::limits::Rate;
use crate::domain::notice::ReplyRules;
use crate::domain::outcome::OnUncertain;
use crate::domain::permissions::Permissions;
use crate::domain::retry::{RetryChanges, RetryPolicy};
use crate::domain::schedule::{LOOK_AGAIN_MAX, Schedule, look_again};
use crate::domain::slice::Head;
use crate::domain::window::Window;
use crate::error::chain;
use crate::limits::Limits;
use crate::metrics::{AppMetrics, LedgerStep, Metrics, TargetMetrics};
use crate::ports::{Directed, LedgerError, Park, ParkReason, Scope, Store, Target, Transport};
use crate::service::admission::Rules;
use crate::service::control::SharedLimit;

/// The settings of a worker. `config` holds their defaults and bounds.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Recipients per slice.
    pub slice_recipients: u32,
    /// Most slices that make calls at a time, per target, without those of the express lane.
    pub slice_concurrency: usize,
    /// Slices of the express lane in delivery at a time, per target.
    pub small_job_concurrency: usize,
    /// Slices that wait on a lane before no further list is cut for it.
    pub lane_slices_max: u64,
    /// How long a claim lasts without a renewal. It is longer than any call.
    pub lease: Duration,
    /// How long one delivery may work on a slice. The rest then goes to the end of its lane.
    pub slice_time_max: Duration,
    /// Attempts per recipient, the first included.
    pub attempts_max: u32,
    pub retry: Schedule,
    /// The key of the fingerprints; the same on every worker.
    pub fingerprint_secret: String,
    /// A job without any activity for this long has nothing left to deliver, unless one of its
    /// slices is on a lane.
    pub abandoned_after: Duration,
    /// Shortest time between two progress events of a job.
    pub progress_interval: Duration,
    /// The prefix of the names of the broker's own queues; none where there is no AMQP.
    pub namespace: Option<String>,
}

/// A target as the worker uses it.
pub struct TargetRuntime {
    pub name: String,
    pub target: Box<dyn Target>,
    pub call_timeout: Duration,
    pub calls: CallPlaces,
    /// Most calls one slice starts at a time.
    pub window_calls: usize,
    /// Slices that make calls at a time, without those of the express lane.
    pub slices: usize,
    pub limit: Option<Rate>,
    /// A second limit, a day; see [`Rate`].
    pub daily_limit: Option<Rate>,
    /// The limit of each of its senders.
    pub sender_limit: Option<Rate>,
    /// The limit that it has together with other targets.
    pub shared_limit: Option<SharedLimit>,
    /// What a message costs in units of these limits.
    pub prices: Prices,
    pub on_uncertain: OnUncertain,
    /// How its recipients are retried, unless the app says otherwise.
    pub retry: RetryPolicy,
    /// Classes that replace those of its system.
    pub classes: ClassByCode,
    /// How long a configuration fault parks the target, or the job that met it, before it is tried
    /// again.
    pub config_fault_pause: Duration,
    /// The time in which an adapted limit climbs by a tenth.
    pub adapt_interval: Duration,
    /// The time in which the limit climbs back after the target was parked for failures.
    pub warm_up: Option<Duration>,
    /// If so many recipients wait for it, the HTTP interface accepts no job for it.
    pub pending_max: Option<u64>,
    pub health: Health,
    pub metrics: TargetMetrics,
    /// Calls under way.
    pub under_way: CallsUnderWay,
    /// The jobs with slices at this worker.
    pub at_work: AtWork,
    /// Its calls that were logged lately.
    pub call_log: CallLog,
    /// The credential of its calls, where one must be fetched.
    pub keyring: Keyring,
    /// The credential of its directory, which may differ.
    pub directory_keyring: Keyring,
}

impl TargetRuntime {
    pub fn recipients_per_call(&self, head: &Head) -> usize {
        self.target.recipients_per_call(head).max(1)
    }

    /// Whether a call may be made after failures of the target.
    pub(crate) fn admit(&self, now: Instant) -> Admission {
        self.health.admit(now, self.call_timeout)
    }
}

/// A tenant as the worker uses it.
#[derive(Clone, Debug, Default)]
pub struct AppRuntime {
    pub default_target: Option<String>,
    pub limit: Option<Rate>,
    /// A second limit, a day.
    pub daily_limit: Option<Rate>,
    /// The sending hours of all its jobs.
    pub window: Option<Window>,
    /// By category of message.
    pub frequency_caps: BTreeMap<String, FrequencyCap>,
    /// What differs from the retry policy of the target.
    pub retry: RetryChanges,
    pub share: AppRules,
    /// Sends without a claim while the ledger is down.
    pub fail_open: bool,
    pub permissions: Permissions,
    /// The queues that its jobs may name.
    pub replies: ReplyRules,
}

pub struct Context<S, T> {
    pub store: S,
    pub transport: T,
    pub targets: BTreeMap<String, Arc<TargetRuntime>>,
    pub apps: BTreeMap<String, AppRuntime>,
    /// By app; only apps whose jobs may name a callback.
    pub callbacks: BTreeMap<String, Callbacks<T>>,
    pub settings: Settings,
    pub metrics: Arc<Metrics>,
    pub(crate) tracer: Tracer,
    pub(crate) app_metrics: AppMetrics,
    /// Names this process in its heartbeats.
    pub(crate) process: u64,
    pub(crate) ledger_health: LedgerHealth,
    /// A worker has a session with the broker.
    pub(crate) at_broker: AtomicBool,
    parked: watch::Sender<HashMap<String, Parking>>,
    standstills: TargetStandstills,
    directives: watch::Sender<Board>,
    pub(super) known_directives: KnownDirectives,
    progress: Seldom,
    waiting: Seldom,
    pub(crate) complete: CompleteLists,
    pub(crate) backlog: Backlog,
    pub(crate) pending: PendingRecipients,
    pub(crate) paces: Paces,
    /// The limits as this process alone keeps them, for an app that sends while the ledger is down.
    pub(crate) limits_here: Limits,
}

/// A parked target, as far as this worker knows.
#[derive(Clone, Debug)]
pub struct Parking {
    pub park: Park,
    /// When the store was last known to have the park. If the store no longer has it, an operator
    /// has ended it.
    stored: Option<Instant>,
}

#[cfg(test)]
pub(super) fn parking(park: Park) -> Parking {
    Parking { park, stored: None }
}

/// The cause of a configuration fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Met {
    /// The job that met it, as far as is known. `moved`: the job was not parked before.
    Job { moved: bool },
    /// The target as a whole.
    Target,
}

/// The work was stopped before the step succeeded.
#[derive(Debug)]
pub struct Halted;

/// Why a step of one slice is not repeated any more.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum GivenUp {
    Halted,
    /// The ledger's records of the slice make no sense.
    Broken,
}

/// Attempts at a step for which the ledger reports records that make no sense. Repeating does not
/// mend them, and other slices wait for the place.
const BROKEN_MAX: u32 = 4;

impl<S: Store, T: Transport> Rules for Context<S, T> {
    fn permissions(&self, app: &str) -> Option<&Permissions> {
        Some(&self.apps.get(app)?.permissions)
    }

    fn target(&self, name: &str) -> Option<&dyn Target> {
        Some(&*self.targets.get(name)?.target)
    }
}

impl<S: Store, T> Context<S, T> {
    pub fn new(
        store: S,
        transport: T,
        targets: Vec<TargetRuntime>,
        apps: BTreeMap<String, AppRuntime>,
        settings: Settings,
        metrics: Arc<Metrics>,
    ) -> Self {
        let targets = targets
            .into_iter()
            .map(|target| (target.name.clone(), Arc::new(target)))
            .collect();
        Self {
            app_metrics: metrics.apps(apps.keys().map(String::as_str)),
            process: fastrand::u64(1..),
            store,
            transport,
            targets,
            apps,
            callbacks: BTreeMap::new(),
            settings,
            metrics,
            tracer: Tracer::default(),
            ledger_health: LedgerHealth::default(),
            at_broker: AtomicBool::new(false),
            parked: watch::Sender::new(HashMap::new()),
            standstills: TargetStandstills::default(),
            directives: watch::Sender::new(Board::default()),
            known_directives: KnownDirectives::default(),
            progress: Seldom::default(),
            waiting: Seldom::default(),
            complete: CompleteLists::default(),
            backlog: Backlog::default(),
            pending: PendingRecipients::default(),
            paces: Paces::default(),
            limits_here: Limits::default(),
        }
    }

    pub fn with_callbacks(mut self, callbacks: BTreeMap<String, Callbacks<T>>) -> Self {
        self.callbacks = callbacks;
        self
    }

    pub fn with_tracer(mut self, tracer: Tracer) -> Self {
        self.tracer = tracer;
        self
    }

    /// Repeats a step of the ledger until it succeeds or `stop` resolves. The caller sends nothing
    /// meanwhile, which is promise 6.
    pub async fn step<V, F>(
        &self,
        step: LedgerStep,
        stop: impl Future<Output = ()>,
        mut act: impl FnMut() -> F,
    ) -> Result<V, Halted>
    where
        F: Future<Output = Result<V, LedgerError>>,
    {
        let done = self.repeat(step, stop, u32::MAX, &mut act).await;
        done.map_err(|_| Halted)
    }

    /// Repeats a step of one slice, but not endlessly: a slice whose records make no sense gives up
    /// its place.
    pub(crate) async fn step_of_slice<V, F>(
        &self,
        step: LedgerStep,
        stop: impl Future<Output = ()>,
        mut act: impl FnMut() -> F,
    ) -> Result<V, GivenUp>
    where
        F: Future<Output = Result<V, LedgerError>>,
    {
        self.repeat(step, stop, BROKEN_MAX, &mut act).await
    }

    async fn repeat<V, F>(
        &self,
        step: LedgerStep,
        stop: impl Future<Output = ()>,
        broken_max: u32,
        act: &mut impl FnMut() -> F,
    ) -> Result<V, GivenUp>
    where
        F: Future<Output = Result<V, LedgerError>>,
    {
        let mut stop = std::pin::pin!(stop);
        let mut delays = RECONNECT.delays();
        let mut broken = 0;
        loop {
            match self.try_step(step, act()).await {
                Ok(value) => return Ok(value),
                Err(error @ LedgerError::Broken(_)) => {
                    broken += 1;
                    if broken == broken_max {
                        tracing::error!(
                            error = %chain(&error), ?step,
                            "the ledger has records that make no sense"
                        );
                        return Err(GivenUp::Broken);
                    }
                }
                Err(_) => {}
            }
            tokio::select! {
                biased;
                () = &mut stop => return Err(GivenUp::Halted),
                () = tokio::time::sleep(delays.next_delay()) => {}
            }
        }
    }

    /// Takes one step of the ledger and measures it. An error says that the ledger is down.
    pub async fn try_step<V>(
        &self,
        step: LedgerStep,
        act: impl Future<Output = Result<V, LedgerError>>,
    ) -> Result<V, LedgerError> {
        let started = Instant::now();
        let result = act.await;
        self.metrics.ledger(step, started.elapsed(), result.is_ok());
        match &result {
            Ok(_) => self.ledger_health.note_recorded(step),
            Err(error) => self.note_fault(error),
        }
        result
    }

    /// Follows whether the ledger takes writes, as far as this worker knows.
    pub fn ledger_up(&self) -> watch::Receiver<bool> {
        self.ledger_health.up()
    }

    /// Whether the ledger took the last write.
    pub fn ledger_is_up(&self) -> bool {
        self.ledger_health.is_up()
    }

    /// Whether any app sends while the ledger is down.
    pub fn fails_open(&self) -> bool {
        self.apps.values().any(|app| app.fail_open)
    }

    /// Follows which targets are parked.
    pub fn parked(&self) -> watch::Receiver<HashMap<String, Parking>> {
        self.parked.subscribe()
    }

    /// How a target is parked, if it is.
    pub fn park_of(&self, target: &str) -> Option<Park> {
        let parked = self.parked.borrow();
        let park = &parked.get(target)?.park;
        (park.until_ms > now_ms()).then(|| park.clone())
    }

    /// How long a delivery that finds its target parked waits before it looks again: until the park
    /// ends or less, since the target may be unparked early.
    pub fn parked_for(&self, target: &str) -> Option<Duration> {
        let park = self.park_of(target)?;
        let now = now_ms();
        let left = Duration::from_millis(park.until_ms.saturating_sub(now));
        let lasted = Duration::from_millis(now.saturating_sub(park.since_ms));
        Some(left.min(look_again(lasted)))
    }

    /// Parks a target for every worker: here at once, elsewhere within a second. When many calls
    /// meet the same fault, only one of them writes the park.
    /// Whether the target was not parked before, as far as this worker knew.
    pub async fn park(&self, target: &TargetRuntime, park: Park) -> bool {
        let mut moved = false;
        let changed = self.parked.send_if_modified(|parked| {
            let current = parked.get(&target.name).map(|it| &it.park);
            moved = current.is_none_or(|it| it.until_ms <= now_ms());
            let longer = current.is_none_or(|it| lasts_longer(&park, it));
            if longer {
                let (park, stored) = (park.clone(), None);
                parked.insert(target.name.clone(), Parking { park, stored });
            }
            longer
        });
        if moved {
            self.metrics.target_parked(&target.name, park.reason);
        }
        if !changed {
            return moved;
        }
        self.show_parked(&target.name);
        // Not repeated: this worker waits anyway, and the others will meet the same fault at the
        // target.
        let stored = self
            .try_step(LedgerStep::Park, self.store.park(&target.name, &park))
            .await;
        if stored.is_ok() {
            self.parked.send_if_modified(|parked| {
                let here = parked.get_mut(&target.name).filter(|it| it.park == park);
                if let Some(here) = here {
                    here.stored = Some(Instant::now());
                }
                false
            });
        }
        moved
    }

    /// Takes over the parked targets that the store listed when it was asked at `asked`. Parks that
    /// the store had before and no longer lists are dropped: an operator may have unparked the
    /// target.
    pub fn note_parked(&self, found: Vec<(String, Park)>, asked: Instant) {
        let now = now_ms();
        let mut unparked = Vec::new();
        self.parked.send_if_modified(|parked| {
            let before = parked.clone();
            parked.retain(|_, it| it.park.until_ms > now && it.stored.is_none_or(|at| at >= asked));
            for (target, park) in found {
                let current = parked.get(&target).map_or(0, |it| it.park.until_ms);
                let stored = Some(asked);
                if park.until_ms > now.max(current) {
                    let failed =
                        matches!(park.reason, ParkReason::Breaker | ParkReason::Unreachable);
                    if let Some(here) = self.targets.get(&target).filter(|_| failed) {
                        here.health.failed_elsewhere();
                    }
                    parked.insert(target, Parking { park, stored });
                }
            }
            let stands = |name: &String| parked.contains_key(name);
            let early = before
                .iter()
                .filter(|(name, it)| !stands(name) && it.park.until_ms > now);
            unparked.extend(early.map(|(name, _)| name.clone()));
            let stood = |(target, it): (&String, &Parking)| {
                before.get(target).is_some_and(|was| was.park == it.park)
            };
            parked.len() != before.len() || !parked.iter().all(stood)
        });
        for target in unparked {
            self.standstills.unparked(&target);
        }
        for target in self.targets.keys() {
            self.show_parked(target);
        }
    }

    fn show_parked(&self, target: &str) {
        let park = self.park_of(target);
        let reason = park.as_ref().map(|park| park.reason);
        self.metrics.parked(target, reason);
        let health = self.targets.get(target).map(|it| &it.health);
        let answered_ms = health.map_or(0, Health::answered_ms);
        self.standstills
            .note(target, park.as_ref(), answered_ms, now_ms());
    }

    /// Follows the directives in force.
    pub fn directives(&self) -> watch::Receiver<Board> {
        self.directives.subscribe()
    }

    /// Parks a job for every worker, as [`Self::park`] parks a target, unless the fault is
    /// `believed` to be the target's. Calls that meet a fault at the same time are decided one after
    /// the other.
    pub(crate) async fn park_job(
        &self,
        park: &Directive,
        believed: impl FnOnce(&Board) -> bool,
    ) -> Met {
        let Subject { scope, name } = &park.subject;
        let mut met = Met::Job { moved: false };
        let mut others = 0;
        let mut telling = None;
        self.directives.send_if_modified(|board| {
            let now = now_ms();
            if believed(board) {
                met = Met::Target;
            } else if board.find(*scope, name, Kind::Park, now).is_none() {
                met = Met::Job { moved: true };
                let parks = |it: &&Directive| it.action.kind() == Kind::Park;
                others = board.all(now).filter(parks).count();
                telling = Some(self.known_directives.telling(park));
                board.put(park.clone());
            }
            met == Met::Job { moved: true }
        });
        // What all workers read stays small, however many jobs are wrong. Each worker finds further
        // ones by itself.
        if met == (Met::Job { moved: true }) && others < JOB_PARKS_MAX {
            // Not repeated, for the same reason as in `park`.
            let _ = self
                .try_step(LedgerStep::Direct, self.store.direct(park))
                .await;
        }
        drop(telling);
        met
    }

    /// Puts a directive for every worker: here at once, elsewhere within a second.
    pub(crate) async fn put_directive(&self, directive: &Directive) {
        let mut telling = None;
        self.directives.send_modify(|board| {
            telling = Some(self.known_directives.telling(directive));
            board.put(directive.clone());
        });
        // Not repeated, for the same reason as in `park`.
        let _ = self
            .try_step(LedgerStep::Direct, self.store.direct(directive))
            .await;
        drop(telling);
    }

    /// Takes over all directives of a version, which the store had when it was asked at `asked`, and
    /// logs those that are new or ended. Returns whether that is all: if one of this process was
    /// missing, only another reading tells whether it was not there yet or has ended.
    pub fn note_directives(&self, directed: Directed, asked: Instant) -> bool {
        let now = now_ms();
        let mut next = Board::new(directed.all);
        let mut news = Vec::new();
        let mut is_all = true;
        self.directives.send_modify(|board| {
            is_all = !self.known_directives.add_own(&mut next, asked, now);
            let mut tell = |board: &Board, other: &Board, ended: &str| {
                for it in board.all(now) {
                    let Subject { scope, name } = &it.subject;
                    if !other.about(*scope, name, now).any(|there| there == it) {
                        news.push(format!("directive{ended}: {} {it}", it.subject));
                    }
                }
            };
            tell(board, &next, " ended");
            tell(&next, board, "");
            // The metrics show them before the first delivery follows them.
            self.show_board(&next);
            *board = next;
        });
        for it in news {
            tracing::info!("{it}");
        }
        is_all
    }

    /// Shows the directives in force in the metrics. Called every round, since directives expire.
    pub fn show_directives(&self) {
        self.show_board(&self.directives.borrow());
    }

    fn show_board(&self, board: &Board) {
        let now = now_ms();
        let mut counts = [[0; Kind::ALL.len()]; Scope::ALL.len()];
        for directive in board.all(now) {
            counts[directive.subject.scope as usize][directive.action.kind() as usize] += 1;
        }
        self.metrics.directives(counts);
        for target in self.targets.keys() {
            let pause = board.find(Scope::Target, target, Kind::Pause, now);
            self.metrics.paused(target, pause.is_some());
        }
    }

    /// How long deliveries for a parked or paused target are kept waiting in this process.
    /// Deliveries that would wait longer go on the retry ladder, so that none comes near the
    /// broker's ack limit. For a while after a job was cancelled or reached a new deadline none is kept: the deliveries of
    /// that job are to end, wherever they wait.
    pub fn kept_for(&self, target: &str) -> Option<Duration> {
        let now = now_ms();
        let (ended, ends) = {
            let board = self.directives.borrow();
            (board.last_end(now), board.next_deadline(now))
        };
        if ended.is_some_and(|ago| ago < KEEP_MAX) {
            return None;
        }
        let ms = Duration::from_millis;
        let keep = |since: u64, left: Duration| {
            let rest = KEEP_MAX.saturating_sub(ms(now.saturating_sub(since)));
            let keep = if left <= KEEP_MAX { left } else { rest };
            (!keep.is_zero()).then_some(keep)
        };
        let parked = self.parked.borrow().get(target).and_then(|it| {
            let left = it.park.until_ms.saturating_sub(now);
            keep(it.park.since_ms, ms(left))
        });
        let board = self.directives.borrow();
        let pause = board.find(Scope::Target, target, Kind::Pause, now);
        let paused = pause.and_then(|pause| {
            let left = pause.until_ms.map_or(u64::MAX, |until| until - now);
            keep(pause.since_ms, ms(left))
        });
        let kept = parked.max(paused)?;
        Some(ends.map_or(kept, |left| left.min(kept)))
    }

    /// Drops the directives that have no meaning once a job is completed.
    pub async fn forget_directives(&self, job: JobId) {
        let name = job.to_string();
        for kind in Kind::OF_RUNNING {
            let stands = {
                let board = self.directives.borrow();
                board.find(Scope::Job, &name, kind, now_ms()).is_some()
            };
            if stands {
                let subject = Subject::new(Scope::Job, name.clone());
                // Not repeated: a directive that stays changes nothing.
                let lift = self.store.lift(&subject, kind);
                let _ = self.try_step(LedgerStep::Direct, lift).await;
            }
        }
    }

    /// Whether another progress event of this job is due; never on the first call.
    pub fn progress_due(&self, job: JobId) -> bool {
        let interval = self.settings.progress_interval;
        self.progress.due(job, interval) == Due::Again
    }

    /// Tells the ledger from time to time that slices of a job wait. Not repeated: the next slice
    /// that is deferred does it again.
    pub(crate) async fn note_waiting(&self, job: JobId) {
        if self.waiting.due(job, self.settings.abandoned_after / 8) != Due::No {
            let waits = self.store.waits(job);
            let _ = self.try_step(LedgerStep::Sweep, waits).await;
        }
    }
}

/// When something was last done for each of some jobs.
#[derive(Default)]
struct Seldom(Mutex<HashMap<JobId, Instant>>);

#[derive(Debug, PartialEq, Eq)]
enum Due {
    First,
    Again,
    No,
}

impl Seldom {
    fn due(&self, job: JobId, interval: Duration) -> Due {
        let mut last = self.0.lock();
        let now = Instant::now();
        if last.len() > SELDOM_JOBS_MAX {
            last.retain(|_, at| now.duration_since(*at) < interval);
        }
        match last.get(&job) {
            Some(at) if now.duration_since(*at) < interval => return Due::No,
            _ => {}
        }
        match last.insert(job, now) {
            Some(_) => Due::Again,
            None => Due::First,
        }
    }
}

/// Most parked jobs that workers share with each other.
const JOB_PARKS_MAX: usize = 200;

/// Whether a park ends so much later than the current one that it is worth a write to the store.
fn lasts_longer(park: &Park, current: &Park) -> bool {
    let left = current.until_ms.saturating_sub(park.since_ms);
    let lasts = park.until_ms.saturating_sub(park.since_ms);
    lasts > left + left / 8
}

/// Longest time that the scheduler keeps deliveries of a parked or paused target.
pub(crate) const KEEP_MAX: Duration = LOOK_AGAIN_MAX;

impl<S, T: Transport> Context<S, T> {
    /// Closes connections that are no longer needed.
    pub(crate) fn tidy(&self) {
        self.transport.tidy();
        for callbacks in self.callbacks.values() {
            callbacks.transport.tidy();
        }
    }
}

/// Jobs that are remembered before the entries whose interval is over are removed.
const SELDOM_JOBS_MAX: usize = 1000;

/// The pause between attempts to reach a broker or a ledger, or to repeat a publish.
pub const RECONNECT: Schedule = Schedule {
    min: Duration::from_millis(100),
    max: Duration::from_secs(5),
    jitter: 0.3,
};

impl<S, T> job::Context for Context<S, T> {
    fn default_target(&self, app: &str) -> Result<String, String> {
        job::default_target(app, &self.targets, &self.apps, |app| {
            app.default_target.as_ref()
        })
    }

    fn check_app(&self, app: &str) -> Result<(), String> {
        job::known_app(app, &self.apps)
    }

    fn check_target(&self, target: &str) -> Result<(), String> {
        job::known_target(target, &self.targets)
    }

    fn folds_case(&self, target: &str) -> bool {
        let target = self.targets.get(target);
        target.is_some_and(|target| target.target.profile().folds_case)
    }

    fn check_category(&self, app: &str, category: &str) -> Result<(), String> {
        let caps = self.apps.get(app).map(|it| &it.frequency_caps);
        job::known_category(app, category, caps)
    }

    fn check_callback(&self, app: &str, url: &str) -> Result<(), String> {
        let rules = self.callbacks.get(app).map(|it| &it.rules);
        job::check_callback(app, rules, url)
    }

    fn check_reply_to(&self, app: &str, queue: &str) -> Result<(), String> {
        let none = ReplyRules::default();
        let rules = self.apps.get(app).map_or(&none, |it| &it.replies);
        rules.check(self.settings.namespace.as_deref(), app, queue)
    }
}
