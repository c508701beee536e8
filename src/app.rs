//! The composition root: builds adapters from the configuration, owns every long-lived task of the
//! process and runs the phases of its start and stop.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::admin::{Admin, Status};
use crate::amqp::{self, Rabbit};
use crate::config::{Config, TargetConfig};
use crate::domain::fields::summary;
use crate::domain::job;
use crate::domain::outcome::OnUncertain;
use crate::embedded::{self, Engine};
use crate::exit::{Exit, Failure, OrExit as _};
use crate::gateway::{self, Access, Server, keep_publisher};
use crate::im::http::{Client, ClientSettings};
use crate::metrics::Metrics;
use crate::ports::{Broker, Shelves, Target};
use crate::steer::{Facts, TargetFacts};
use crate::store::{self, Store};
use crate::worker::{self, AppRuntime, Context, Keyring, Settings, TargetRuntime, Worker};

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

    fn folds_case(&self, target: &str) -> bool {
        let target = self.0.targets.get(target);
        let built = target.and_then(|config| crate::im::build("", &config.settings).ok());
        built.is_some_and(|target| target.profile().folds_case)
    }
}

/// What can be steered, and what is told about it.
pub fn facts(config: &Config) -> Result<Facts, Failure> {
    let targets = config.targets.iter().map(|(name, config)| {
        let target = build(name, config)?;
        let address = config.settings.address();
        let facts = TargetFacts {
            system: config.settings.system().to_owned(),
            address: address.map(|(host, port)| format!("{host}:{port}")),
            limit: config.limit.or(target.profile().limit),
            recipients_per_call: target.profile().recipients_per_call,
            on_uncertain: on_uncertain(config, &*target),
        };
        Ok((name.clone(), facts))
    });
    let apps = config.apps.iter();
    Ok(Facts {
        targets: targets.collect::<Result<_, Failure>>()?,
        apps: apps.map(|(name, app)| (name.clone(), app.limit)).collect(),
        dedup_window: config.ledger.dedup_window,
    })
}

fn build(name: &str, config: &TargetConfig) -> Result<Box<dyn Target>, Failure> {
    crate::im::build(name, &config.settings)
        .map_err(|problems| Failure::message(Exit::BadConfig, summary(&problems)))
}

/// The policy for calls in doubt: the configured one, or what the target's idempotence allows.
fn on_uncertain(config: &TargetConfig, target: &dyn Target) -> OnUncertain {
    let policy = if target.profile().idempotent {
        OnUncertain::Retry
    } else {
        OnUncertain::Hold
    };
    config.on_uncertain.unwrap_or(policy)
}

fn target_runtime(
    name: &str,
    config: &TargetConfig,
    slices_in_work: usize,
    metrics: &Metrics,
) -> Result<TargetRuntime, Failure> {
    let target = build(name, config)?;
    Ok(TargetRuntime {
        name: name.to_owned(),
        call_timeout: config.call_timeout,
        calls: Arc::new(Semaphore::new(config.calls_in_flight)),
        window_calls: config.calls_in_flight.div_ceil(slices_in_work),
        limit: config.limit.or(target.profile().limit),
        on_uncertain: on_uncertain(config, &*target),
        config_park: config.config_park,
        breaker_failures: config.breaker_failures,
        metrics: metrics.target(name),
        failures: AtomicU32::new(0),
        keyring: Keyring::default(),
        directory_keyring: Keyring::default(),
        target,
    })
}

fn context<S: worker::Store>(
    config: &Config,
    store: S,
    client: Client,
    metrics: Arc<Metrics>,
) -> Result<Context<S, Client>, Failure> {
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
                permissions: app.permissions.clone(),
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

/// Runs a worker on RabbitMQ and Redis until a signal, then drains.
pub async fn run_worker(config: Config) -> Result<Exit, Failure> {
    announce("worker", &config);
    let drain = crate::shutdown::drain_on_signal().or_exit(Exit::Internal)?;
    let store = ledger(&config)?;
    check_ledger(&store, &drain).await?;
    let process = Process::start(&config, broker(&config)?, store)?;
    process.run(&config, drain, None).await
}

/// Runs gateway and worker in one process until a signal, then drains: on RabbitMQ and Redis where
/// they are configured, else on the embedded engine.
pub async fn run_serve(config: Config) -> Result<Exit, Failure> {
    announce("serve", &config);
    let drain = crate::shutdown::drain_on_signal().or_exit(Exit::Internal)?;
    if config.is_embedded() {
        let engine = embedded(&config)?;
        tracing::info!(folder = %config.embedded.folder.display(), "embedded engine");
        let exit = serve(&config, engine.broker(), engine.store(), drain).await;
        // What was handed over is written, and the next process finds the folder free.
        engine.close().await;
        return exit;
    }
    let store = ledger(&config)?;
    check_ledger(&store, &drain).await?;
    serve(&config, broker(&config)?, store, drain).await
}

async fn serve<B: Broker + Shelves, S: worker::Store>(
    config: &Config,
    broker: B,
    store: S,
    drain: CancellationToken,
) -> Result<Exit, Failure> {
    let process = Process::start(config, broker.clone(), store)?;
    let (publisher, published) = watch::channel(None);
    let listen = config.gateway.listen;
    let context = Arc::clone(&process.context);
    let facts = facts(config)?;
    let server = Server::bind(
        listen,
        tls(config)?,
        access(config),
        broker.clone(),
        context,
        published,
        facts,
    )
    .await
    .map_err(|error| cannot_listen("gateway.listen", listen, &error))?;
    let address = server.address().or_exit(Exit::Internal)?;
    tracing::info!(%address, "gateway listens");
    let gateway = Gateway {
        server,
        keep: Box::pin(keep_publisher(broker, publisher, drain.clone())),
    };
    process.run(config, drain, Some(gateway)).await
}

fn tls(config: &Config) -> Result<Option<TlsAcceptor>, Failure> {
    let files = config.gateway.tls.as_ref();
    let acceptor = files.map(|(certificate, key)| gateway::acceptor(certificate, key));
    acceptor.transpose().or_exit(Exit::BadConfig)
}

/// Who may use the gateway.
fn access(config: &Config) -> Access {
    let apps = config.apps.iter();
    Access {
        open: config.gateway_is_open(),
        token: config.gateway.token.clone(),
        apps: apps
            .map(|(name, app)| (name.clone(), app.access.clone()))
            .collect(),
    }
}

/// The embedded engine in its folder.
fn embedded(config: &Config) -> Result<Engine, Failure> {
    let settings = embedded::Settings {
        targets: config.targets.keys().cloned().collect(),
        dedup_window: config.ledger.dedup_window,
        ..embedded::Settings::new(&config.embedded.folder)
    };
    Engine::open(&settings).or_exit(Exit::Unavailable)
}

fn announce(role: &str, config: &Config) {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        targets = config.targets.len(),
        apps = config.apps.len(),
        "fanwise {role} starts"
    );
}

fn cannot_listen(key: &str, listen: SocketAddr, error: &std::io::Error) -> Failure {
    Failure::message(
        Exit::Unavailable,
        format!("cannot listen on {key} = {listen}: {error}"),
    )
}

/// A process that delivers: the worker with its admin port.
struct Process<B, S> {
    worker: Worker<B, S, Client>,
    context: Arc<Context<S, Client>>,
    admin: Admin,
    metrics: Arc<Metrics>,
}

/// A gateway in the same process.
struct Gateway {
    server: Server,
    keep: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl<B: Broker, S: worker::Store> Process<B, S> {
    fn start(config: &Config, broker: B, store: S) -> Result<Self, Failure> {
        let metrics = Arc::new(Metrics::new());
        let client = Client::new(ClientSettings::defaults());
        let calls = client.clone();
        let context = Arc::new(context(config, store, client, Arc::clone(&metrics))?);
        let worker = Worker::new(broker, Arc::clone(&context));
        let refreshed = Arc::clone(&metrics);
        let status = Status {
            metrics: Arc::clone(&metrics),
            refresh: Arc::new(move || {
                let counts = calls.counts();
                refreshed.connections(counts.opened.load(Relaxed), counts.reused.load(Relaxed));
            }),
            ready: worker.ready(),
        };
        let listen = config.admin.listen;
        let admin = Admin::start(listen, status)
            .map_err(|error| cannot_listen("admin.listen", listen, &error))?;
        tracing::info!(address = %admin.address, "admin port listens");
        Ok(Self {
            worker,
            context,
            admin,
            metrics,
        })
    }

    /// Works until the signal, then for at most the drain deadline. The gateway takes no requests
    /// from the signal on, and the admin port ends last.
    async fn run(
        self,
        config: &Config,
        drain: CancellationToken,
        gateway: Option<Gateway>,
    ) -> Result<Exit, Failure> {
        let Self {
            worker,
            metrics,
            admin,
            ..
        } = self;
        let mut tasks = JoinSet::new();
        tasks.spawn(worker.run(drain.clone()));
        if let Some(Gateway { server, keep }) = gateway {
            tasks.spawn(keep);
            let stop = drain.clone();
            tasks.spawn(server.run(stop));
        }
        tokio::select! {
            // First, since at the signal tasks end too.
            biased;
            () = drain.cancelled() => metrics.draining(),
            ended = tasks.join_next() => {
                let panicked = ended.is_some_and(|ended| ended.is_err());
                tracing::error!(panicked, "a task ended without being asked");
                return Ok(Exit::Internal);
            }
        }
        let all_ended = async {
            let mut exit = Exit::Ok;
            while let Some(ended) = tasks.join_next().await {
                if ended.is_err() {
                    exit = Exit::Internal;
                }
            }
            exit
        };
        let exit = match tokio::time::timeout(config.worker.drain_deadline, all_ended).await {
            Ok(exit) => {
                tracing::info!("drained: nothing is in work any more");
                exit
            }
            Err(_) => {
                tracing::warn!(
                    "the drain deadline passed: what is in work goes back to the broker"
                );
                Exit::Temporary
            }
        };
        drop(admin);
        Ok(exit)
    }
}

/// A ledger that would evict entries is refused at start; one that is away is waited for.
async fn check_ledger(store: &Store, drain: &CancellationToken) -> Result<(), Failure> {
    let check = store.check();
    match drain.run_until_cancelled(check).await {
        Some(Err(error)) if error.is_unfit() => Err(Failure::new(Exit::BadConfig, error)),
        Some(Err(error)) => {
            tracing::warn!(error = %worker::chain(&error), "the ledger cannot be checked yet");
            Ok(())
        }
        Some(Ok(_)) | None => Ok(()),
    }
}
