//! The composition root: builds adapters from the configuration, owns every long-lived task of the
//! process and runs the phases of its start and stop.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::admin::{Admin, Status};
use crate::amqp::{self, Rabbit};
use crate::config::{Config, TargetConfig};
use crate::domain::fields::summary;
use crate::domain::job;
use crate::domain::outcome::OnUncertain;
use crate::exit::{Exit, Failure, OrExit as _};
use crate::im::http::{Client, ClientSettings};
use crate::metrics::Metrics;
use crate::store::{self, Store};
use crate::worker::{AppRuntime, Context, Settings, TargetRuntime, Worker};

/// RabbitMQ as configured; connects to nothing yet.
pub fn broker(config: &Config) -> Result<Rabbit, Failure> {
    let settings = amqp::Settings {
        namespace: config.broker.namespace.clone(),
        targets: config.targets.keys().cloned().collect(),
        heartbeat: config.broker.heartbeat,
        confirm_timeout: config.broker.confirm_timeout,
        connection_name: format!("fanwise {}", std::process::id()),
        declare: config.broker.declare,
        ..amqp::Settings::new(config.broker.url.expose())
    };
    Rabbit::new(settings).or_exit(Exit::BadConfig)
}

pub fn store_settings(config: &Config) -> store::Settings {
    store::Settings {
        prefix: config.ledger.prefix.clone(),
        dedup_window: config.ledger.dedup_window,
        ..store::Settings::new(config.ledger.url.expose())
    }
}

/// The ledger as configured; the first question connects.
pub fn ledger(config: &Config) -> Result<Store, Failure> {
    Store::open(&store_settings(config)).or_exit(Exit::BadConfig)
}

/// The names a job may use, for those who check jobs without sending any.
pub struct Names<'a>(&'a Config);

impl<'a> Names<'a> {
    pub fn of(config: &'a Config) -> Self {
        Self(config)
    }
}

impl job::Context for Names<'_> {
    fn default_target(&self, app: &str) -> Result<String, String> {
        job::default_target(app, &self.0.targets, &self.0.apps, |app| {
            app.target.as_ref()
        })
    }

    fn check_target(&self, target: &str) -> Result<(), String> {
        job::known_target(target, &self.0.targets)
    }
}

fn target_runtime(
    name: &str,
    config: &TargetConfig,
    slices_in_work: usize,
    metrics: &Metrics,
) -> Result<TargetRuntime, Failure> {
    let target = crate::im::build(name, &config.settings)
        .map_err(|problems| Failure::message(Exit::BadConfig, summary(&problems)))?;
    let policy = if target.profile().idempotent {
        OnUncertain::Retry
    } else {
        OnUncertain::Hold
    };
    Ok(TargetRuntime {
        name: name.to_owned(),
        call_timeout: config.call_timeout,
        calls: Arc::new(Semaphore::new(config.calls_in_flight)),
        window_calls: config.calls_in_flight.div_ceil(slices_in_work),
        limit: config.limit,
        on_uncertain: config.on_uncertain.unwrap_or(policy),
        config_park: config.config_park,
        breaker_failures: config.breaker_failures,
        metrics: metrics.target(name),
        failures: AtomicU32::new(0),
        target,
    })
}

fn context(
    config: &Config,
    store: Store,
    client: Client,
    metrics: Arc<Metrics>,
) -> Result<Context<Store, Client>, Failure> {
    let worker = &config.worker;
    let targets: Result<Vec<_>, Failure> = config
        .targets
        .iter()
        .map(|(name, target)| target_runtime(name, target, worker.slices_in_work, &metrics))
        .collect();
    let apps: BTreeMap<_, _> = config
        .apps
        .iter()
        .map(|(name, app)| {
            let app = AppRuntime {
                default_target: app.target.clone(),
                limit: app.limit,
                fail_open: app.fail_open,
            };
            (name.clone(), app)
        })
        .collect();
    let settings = Settings {
        slice_recipients: worker.slice_recipients,
        slices_in_work: worker.slices_in_work,
        express_in_work: worker.express_in_work,
        lease: config.ledger.lease,
        slice_budget: worker.slice_budget,
        attempts_max: config.retry.attempts_max,
        retry: config.retry.schedule,
        fingerprint_secret: config.ledger.fingerprint_secret.expose().to_owned(),
        progress_interval: worker.progress_interval,
    };
    Ok(Context::new(
        store, client, targets?, apps, settings, metrics,
    ))
}

/// Runs a worker until a signal, then drains. Start: configuration (done), signals, ledger policy,
/// admin port, sessions. Stop: readiness off, no new work, what is in work, sessions, admin port.
pub async fn run_worker(config: Config) -> Result<Exit, Failure> {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        targets = config.targets.len(),
        apps = config.apps.len(),
        "fanwise worker starts"
    );
    let drain = crate::shutdown::drain_on_signal().or_exit(Exit::Internal)?;
    let metrics = Arc::new(Metrics::new());
    let store = ledger(&config)?;
    check_ledger(&store, &drain).await?;
    let client = Client::new(ClientSettings::defaults());
    let calls = client.clone();
    let worker = Worker::new(
        broker(&config)?,
        Arc::new(context(&config, store, client, Arc::clone(&metrics))?),
    );
    let refreshed = Arc::clone(&metrics);
    let status = Status {
        metrics: Arc::clone(&metrics),
        refresh: Arc::new(move || {
            let counts = calls.counts();
            refreshed.connections(counts.opened.load(Relaxed), counts.reused.load(Relaxed));
        }),
        ready: worker.ready(),
    };
    let admin = Admin::start(config.admin.listen, status).map_err(|error| {
        let what = format!(
            "cannot listen on admin.listen = {}: {error}",
            config.admin.listen
        );
        Failure::message(Exit::Unavailable, what)
    })?;
    tracing::info!(address = %admin.address, "admin port listens");
    let exit = work(worker, &drain, config.worker.drain_deadline, &metrics).await;
    drop(admin);
    Ok(exit)
}

/// Works until the signal, then for at most the drain deadline.
async fn work(
    worker: Worker<Rabbit, Store, Client>,
    drain: &CancellationToken,
    deadline: std::time::Duration,
    metrics: &Metrics,
) -> Exit {
    let mut working = tokio::spawn(worker.run(drain.clone()));
    tokio::select! {
        () = drain.cancelled() => metrics.draining(),
        ended = &mut working => {
            tracing::error!(panicked = ended.is_err(), "the worker ended without being asked");
            return Exit::Internal;
        }
    }
    match tokio::time::timeout(deadline, &mut working).await {
        Ok(Ok(())) => {
            tracing::info!("drained: nothing is in work any more");
            Exit::Ok
        }
        Ok(Err(_)) => Exit::Internal,
        Err(_) => {
            working.abort();
            tracing::warn!("the drain deadline passed: what is in work goes back to the broker");
            Exit::Temporary
        }
    }
}

/// A ledger that would evict entries is refused at start; one that is away is waited for.
async fn check_ledger(store: &Store, drain: &CancellationToken) -> Result<(), Failure> {
    let check = store.check();
    match drain.run_until_cancelled(check).await {
        Some(Err(error)) if error.is_unfit() => Err(Failure::new(Exit::BadConfig, error)),
        Some(Err(error)) => {
            tracing::warn!(error = %crate::worker::chain(&error), "the ledger cannot be checked yet");
            Ok(())
        }
        Some(Ok(_)) | None => Ok(()),
    }
}
