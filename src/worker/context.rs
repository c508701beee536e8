//! What all tasks of a worker share: the ports, the targets and apps, and what is known of their
//! health.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Semaphore, watch};

use super::credential::Keyring;
use super::together::Complete;
use crate::domain::ids::JobId;
use crate::domain::job;
use crate::domain::limits::Rate;
use crate::domain::outcome::OnUncertain;
use crate::domain::schedule::Schedule;
use crate::metrics::{LedgerStep, Metrics, TargetMetrics};
use crate::ports::{Ledger, LedgerError, Limiter, Park, Target};

/// The ledger and the limiter of one engine.
pub trait Store: Ledger + Limiter {}
impl<S: Ledger + Limiter> Store for S {}

/// How a worker works; the defaults and bounds are in `config`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Recipients per slice.
    pub slice_recipients: u32,
    /// Slices in delivery at a time, per target, besides those of the express lane.
    pub slices_in_work: usize,
    /// Slices of the express lane in delivery at a time, per target.
    pub express_in_work: usize,
    /// How long a claim lasts unless it is renewed: longer than any call.
    pub lease: Duration,
    /// How long one delivery may work on a slice before the rest goes to the end of its lane.
    pub slice_budget: Duration,
    /// Attempts per recipient, the first included.
    pub attempts_max: u32,
    pub retry: Schedule,
    /// Keys the fingerprints; the same on every worker.
    pub fingerprint_secret: String,
    /// Shortest time between two progress events of a job.
    pub progress_interval: Duration,
}

/// A target as the worker uses it.
pub struct TargetRuntime {
    pub name: String,
    pub target: Box<dyn Target>,
    pub call_timeout: Duration,
    /// One permit per call in flight.
    pub calls: Arc<Semaphore>,
    /// Most calls one slice starts at a time.
    pub window_calls: usize,
    pub limit: Option<Rate>,
    pub on_uncertain: OnUncertain,
    /// How long a configuration fault parks it before it is tried again.
    pub config_park: Duration,
    /// Calls in a row without success after which it is parked.
    pub breaker_failures: u32,
    pub metrics: TargetMetrics,
    /// Calls in a row that did not succeed.
    pub failures: AtomicU32,
    /// The credential of its calls, where one has to be fetched.
    pub keyring: Keyring,
    /// The credential of its directory, which may be another one.
    pub directory_keyring: Keyring,
}

impl TargetRuntime {
    pub fn recipients_per_call(&self) -> usize {
        self.target.profile().recipients_per_call.max(1)
    }
}

/// A tenant as the worker uses it.
#[derive(Clone, Debug, Default)]
pub struct AppRuntime {
    pub default_target: Option<String>,
    pub limit: Option<Rate>,
    /// Send without a claim while the ledger is down.
    pub fail_open: bool,
}

pub struct Context<S, T> {
    pub store: S,
    pub transport: T,
    pub targets: BTreeMap<String, Arc<TargetRuntime>>,
    pub apps: BTreeMap<String, AppRuntime>,
    pub settings: Settings,
    pub metrics: Arc<Metrics>,
    ledger_up: watch::Sender<bool>,
    parked: watch::Sender<HashMap<String, Park>>,
    progress: Mutex<HashMap<JobId, Instant>>,
    pub(super) complete: Complete,
}

/// The work was told to stop before the step succeeded.
#[derive(Debug)]
pub struct Halted;

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
            store,
            transport,
            targets,
            apps,
            settings,
            metrics,
            ledger_up: watch::Sender::new(false),
            parked: watch::Sender::new(HashMap::new()),
            progress: Mutex::new(HashMap::new()),
            complete: Complete::default(),
        }
    }

    /// Repeats a step of the ledger until it succeeds or `stop` resolves. Nothing is sent meanwhile,
    /// which is promise 6.
    pub async fn step<V, F>(
        &self,
        step: LedgerStep,
        stop: impl Future<Output = ()>,
        mut act: impl FnMut() -> F,
    ) -> Result<V, Halted>
    where
        F: Future<Output = Result<V, LedgerError>>,
    {
        let mut stop = std::pin::pin!(stop);
        let mut delays = RECONNECT.delays();
        loop {
            match self.try_step(step, act()).await {
                Ok(value) => return Ok(value),
                Err(_) => tokio::select! {
                    biased;
                    () = &mut stop => return Err(Halted),
                    () = tokio::time::sleep(delays.next_delay()) => {}
                },
            }
        }
    }

    /// One step of the ledger, measured; its result tells whether the ledger is up.
    pub async fn try_step<V>(
        &self,
        step: LedgerStep,
        act: impl Future<Output = Result<V, LedgerError>>,
    ) -> Result<V, LedgerError> {
        let started = Instant::now();
        let result = act.await;
        self.metrics.ledger(step, started.elapsed(), result.is_ok());
        self.note_ledger(result.as_ref().err());
        result
    }

    /// Logs only when the state changes, so that an outage is two lines, not one per slice.
    fn note_ledger(&self, error: Option<&LedgerError>) {
        let up = error.is_none();
        self.ledger_up.send_if_modified(|state| {
            if *state == up {
                return false;
            }
            *state = up;
            self.metrics.ledger_up(up);
            match error {
                None => tracing::info!("the ledger answers"),
                Some(error) => tracing::error!(
                    error = %chain(error),
                    "the ledger is down: lanes stop until it answers, nothing is lost"
                ),
            }
            true
        });
    }

    /// Follows whether the ledger answers.
    pub fn ledger_up(&self) -> watch::Receiver<bool> {
        self.ledger_up.subscribe()
    }

    /// Whether any app sends while the ledger is down.
    pub fn fails_open(&self) -> bool {
        self.apps.values().any(|app| app.fail_open)
    }

    /// Follows which targets are parked.
    pub fn parked(&self) -> watch::Receiver<HashMap<String, Park>> {
        self.parked.subscribe()
    }

    /// How long a target is still parked.
    pub fn parked_for(&self, target: &str) -> Option<Duration> {
        let until = self.parked.borrow().get(target)?.until_ms;
        until
            .checked_sub(now_ms())
            .filter(|left| *left > 0)
            .map(Duration::from_millis)
    }

    /// Parks a target for every worker. Here it takes effect at once, elsewhere within a second.
    pub async fn park(&self, target: &TargetRuntime, wait: Duration, reason: &str) {
        let park = Park {
            until_ms: now_ms() + wait.as_millis() as u64,
            reason: reason.to_owned(),
        };
        self.parked.send_if_modified(|parked| {
            let standing = parked.get(&target.name).map_or(0, |park| park.until_ms);
            let longer = park.until_ms > standing;
            if longer {
                parked.insert(target.name.clone(), park.clone());
            }
            longer
        });
        self.metrics.parked(&target.name, true);
        // Not repeated: this worker waits anyway, and the others will learn it from the target.
        let _ = self
            .try_step(LedgerStep::Park, self.store.park(&target.name, &park))
            .await;
    }

    /// Takes over what the store says about parked targets; what ended is forgotten.
    pub fn note_parked(&self, found: Vec<(String, Park)>) {
        let now = now_ms();
        self.parked.send_if_modified(|parked| {
            let before = parked.clone();
            parked.retain(|_, park| park.until_ms > now);
            for (target, park) in found {
                let standing = parked.get(&target).map_or(0, |park| park.until_ms);
                if park.until_ms > now.max(standing) {
                    parked.insert(target, park);
                }
            }
            *parked != before
        });
        for target in self.targets.keys() {
            self.metrics
                .parked(target, self.parked_for(target).is_some());
        }
    }

    /// Whether it is time for another progress event of this job.
    pub fn progress_due(&self, job: JobId) -> bool {
        let mut last = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let interval = self.settings.progress_interval;
        if last.len() > PROGRESS_JOBS_MAX {
            last.retain(|_, at| now.duration_since(*at) < interval);
        }
        match last.get(&job) {
            Some(at) if now.duration_since(*at) < interval => false,
            _ => last.insert(job, now).is_some(),
        }
    }
}

/// Jobs whose last progress event is remembered before old ones are swept.
const PROGRESS_JOBS_MAX: usize = 1000;

/// Between attempts to reach a broker, a ledger, or to publish again.
pub const RECONNECT: Schedule = Schedule {
    min: Duration::from_millis(100),
    max: Duration::from_secs(5),
    jitter: 0.3,
};

impl TargetRuntime {
    /// Notes a call's success or failure; returns how long to park after too many failures in a row.
    pub fn note_call(&self, success: bool) -> Option<Duration> {
        if success {
            // A plain load first: the line is shared by all calls and nearly always 0 already.
            if self.failures.load(Ordering::Relaxed) != 0 {
                self.failures.store(0, Ordering::Relaxed);
            }
            return None;
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let limit = self.breaker_failures;
        (failures >= limit).then(|| BREAKER.delay(failures / limit))
    }
}

/// How long a target that fails every call is left alone.
const BREAKER: Schedule = Schedule {
    min: Duration::from_secs(1),
    max: Duration::from_secs(30),
    jitter: 0.1,
};

impl<S, T> job::Context for Context<S, T> {
    fn default_target(&self, app: &str) -> Result<String, String> {
        job::default_target(app, &self.targets, &self.apps, |app| {
            app.default_target.as_ref()
        })
    }

    fn check_target(&self, target: &str) -> Result<(), String> {
        job::known_target(target, &self.targets)
    }

    fn folds_case(&self, target: &str) -> bool {
        let target = self.targets.get(target);
        target.is_some_and(|target| target.target.profile().folds_case)
    }
}

/// Milliseconds since 1970 by this machine's clock.
pub fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis() as u64
}

/// RFC 3339 of a time in milliseconds since 1970.
pub fn rfc3339(ms: u64) -> String {
    jiff::Timestamp::from_millisecond(ms.cast_signed())
        .unwrap_or_default()
        .to_string()
}

/// An error with its causes, as one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !line.ends_with(&cause_text) {
            line.push_str(": ");
            line.push_str(&cause_text);
        }
        source = cause.source();
    }
    line
}
