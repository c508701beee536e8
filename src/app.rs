//! Builds the process from the configuration: creates the engines and adapters, owns every
//! long-lived task, and runs the phases of start and stop.

mod context;
mod process;
mod traces;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fanwise_client::amqp::{DialSettings, Producer};
use http::Uri;
use rustls::ClientConfig;
use tokio_util::sync::CancellationToken;

pub use self::context::facts;
use self::process::Process;
use crate::amqp::{self, Rabbit};
use crate::config::{AppConfig, Config, EngineKind, NO_BROKER, NO_LEDGER, TargetConfig};
use crate::domain::fields::summary;
use crate::domain::job;
use crate::domain::notice::ReplyRules;
use crate::domain::permissions::Permissions;
use crate::embedded::{self, Engine};
use crate::error::chain;
use crate::exit::{Exit, Failure, OrExit as _};
use crate::gateway::{self, Access, DropInSystem};
use crate::http::client::{Client, ClientSettings, platform_tls};
use crate::ports::{Broker, RetainedQueues, Store, Target};
use crate::runtime::{Role, watch_store};
use crate::secret::Secret;
use crate::service::BeforeAccept;
use crate::service::admission::{Admission, Rules};
use crate::service::api;
use crate::store;
use crate::tls::ClientTls;
use crate::version;

/// RabbitMQ as configured. Does not connect yet.
pub fn broker(config: &Config) -> Result<Rabbit, Failure> {
    let first = address("broker.url", config.broker.url.as_ref(), NO_BROKER)?;
    let settings = amqp::Settings {
        urls: urls(config),
        tls: config.broker.tls.clone(),
        namespace: config.broker.namespace.clone(),
        targets: config.targets.keys().cloned().collect(),
        heartbeat: config.broker.heartbeat,
        confirm_timeout: config.broker.confirm_timeout,
        connection_name: connection_name(),
        declare: config.broker.declare,
        ..amqp::Settings::new(first)
    };
    Rabbit::new(settings).or_exit(Exit::BadConfig)
}

/// Publishes jobs to the broker as configured.
pub fn producer(config: &Config) -> Result<Producer, Failure> {
    address("broker.url", config.broker.url.as_ref(), NO_BROKER)?;
    let settings = DialSettings {
        urls: urls(config),
        tls: config.broker.tls.clone(),
        section: "broker".to_owned(),
        heartbeat: config.broker.heartbeat,
        connect_timeout: amqp::Settings::CONNECT_TIMEOUT,
        connection_name: connection_name(),
    };
    let producer = Producer::with(&settings).or_exit(Exit::BadConfig)?;
    Ok(producer
        .with_namespace(&config.broker.namespace)
        .with_confirm_timeout(config.broker.confirm_timeout))
}

fn urls(config: &Config) -> Vec<String> {
    let urls = config.broker.urls.iter();
    urls.map(|url| url.expose().to_owned()).collect()
}

/// The name of this process in the broker's list of connections.
fn connection_name() -> String {
    format!("fanwise {}", std::process::id())
}

pub fn store_settings(config: &Config) -> Result<store::Settings, Failure> {
    let url = address("ledger.url", config.ledger.url.as_ref(), NO_LEDGER)?;
    let login = config.ledger.sentinel_login.clone();
    Ok(store::Settings {
        prefix: config.ledger.prefix.clone(),
        dedup_window: config.ledger.dedup_window,
        tls: config.ledger.tls.clone(),
        sentinel_login: login.map(|(user, password)| store::Login { user, password }),
        replicas_min: config.ledger.replicas_min,
        ..store::Settings::new(url)
    })
}

/// The address of a server, which the caller needs.
fn address<'a>(key: &str, url: Option<&'a Secret>, missing: &str) -> Result<&'a str, Failure> {
    let missing = || Failure::message(Exit::BadConfig, format!("{key}: {missing}"));
    Ok(url.ok_or_else(missing)?.expose())
}

/// The ledger as configured. The first request connects.
pub fn ledger(config: &Config) -> Result<store::Store, Failure> {
    store::Store::open(&store_settings(config)?).or_exit(Exit::BadConfig)
}

/// The configuration's answers about jobs, for commands that check jobs without sending any.
pub struct Names<'a> {
    config: &'a Config,
    targets: BTreeMap<&'a str, Box<dyn Target>>,
}

impl<'a> Names<'a> {
    pub fn of(config: &'a Config) -> Result<Self, Failure> {
        let targets = config
            .targets
            .iter()
            .map(|(name, target)| Ok((name.as_str(), build(name, target)?)));
        Ok(Self {
            config,
            targets: targets.collect::<Result<_, Failure>>()?,
        })
    }
}

impl job::Context for Names<'_> {
    fn default_target(&self, app: &str) -> Result<String, String> {
        job::default_target(app, &self.config.targets, &self.config.apps, |app| {
            app.target.as_ref()
        })
    }

    fn check_app(&self, app: &str) -> Result<(), String> {
        job::known_app(app, &self.config.apps)
    }

    fn check_target(&self, target: &str) -> Result<(), String> {
        job::known_target(target, &self.config.targets)
    }

    fn folds_case(&self, target: &str) -> bool {
        let target = self.targets.get(target);
        target.is_some_and(|target| target.profile().folds_case)
    }

    fn check_category(&self, app: &str, category: &str) -> Result<(), String> {
        let caps = self.config.apps.get(app).map(|it| &it.frequency_caps);
        job::known_category(app, category, caps)
    }

    fn check_callback(&self, app: &str, url: &str) -> Result<(), String> {
        let apps = &self.config.apps;
        let callbacks = apps.get(app).and_then(|it| it.callbacks.as_ref());
        job::check_callback(app, callbacks.map(|it| &it.rules), url)
    }

    fn check_reply_to(&self, app: &str, queue: &str) -> Result<(), String> {
        let none = ReplyRules::default();
        let rules = self.config.apps.get(app).map_or(&none, |it| &it.replies);
        rules.check(namespace(self.config), app, queue)
    }
}

impl Rules for Names<'_> {
    fn permissions(&self, app: &str) -> Option<&Permissions> {
        Some(&self.config.apps.get(app)?.permissions)
    }

    fn target(&self, name: &str) -> Option<&dyn Target> {
        self.targets.get(name).map(|target| &**target)
    }
}

/// Admits jobs as a gateway would, without a gateway.
pub struct LocalAdmission<'a> {
    names: Names<'a>,
    store: &'a store::Store,
    client: Client,
}

impl<'a> LocalAdmission<'a> {
    pub fn of(config: &'a Config, store: &'a store::Store) -> Result<Self, Failure> {
        Ok(Self {
            names: Names::of(config)?,
            store,
            client: Client::new(ClientSettings::defaults()),
        })
    }
}

impl<'a> Admission for LocalAdmission<'a> {
    type Rules = Names<'a>;
    type Store = store::Store;
    type Transport = Client;

    fn rules(&self) -> &Names<'a> {
        &self.names
    }

    fn store(&self) -> &store::Store {
        self.store
    }

    fn transport(&self) -> &Client {
        &self.client
    }

    fn before_accept(&self, app: &str) -> Option<&BeforeAccept> {
        let app = self.names.config.apps.get(app)?;
        app.access.before_accept.as_ref()
    }
}

/// The prefix of the broker's queue names, where there is a broker.
fn namespace(config: &Config) -> Option<&str> {
    match config.engine() {
        EngineKind::Embedded => None,
        EngineKind::Servers => Some(&config.broker.namespace),
    }
}

/// For a connection to a host that a list comes from.
const LIST_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The certificates that verify `https` servers.
type Trust = Option<Arc<ClientConfig>>;

/// Loads the certificates for `https` servers, if any such server is to be called. So a fault is
/// found at the start, and no call waits for the loading.
fn trust(config: &Config) -> Result<Trust, Failure> {
    let mut targets = config.targets.values();
    let mut apps = config.apps.values();
    let by_system = |target: &TargetConfig| target.settings.is_https() && target.tls.ca.is_none();
    let tracing = &config.tracing;
    let collector = tracing.otlp_url.as_ref().and_then(Uri::scheme_str);
    let is_needed = targets.any(by_system)
        || apps.clone().any(asks_https)
        || (collector == Some("https") && tracing.tls.ca.is_none());
    if !is_needed && !apps.any(calls_out) {
        return Ok(None);
    }
    let what = match platform_tls() {
        Ok(trust) => return Ok(Some(trust)),
        Err(what) => format!(
            "the certificates that https servers are verified with cannot be loaded: {what}. Install \
             ca-certificates, or set SSL_CERT_FILE to a file of them"
        ),
    };
    if is_needed {
        return Err(Failure::message(Exit::Unavailable, what));
    }
    // All callbacks and list sources may be http.
    tracing::warn!("no callback can go to an https URL, and no list can come from one: {what}");
    Ok(None)
}

/// The targets' servers with TLS settings of their own.
pub type OwnTls = Arc<BTreeMap<(String, u16), ClientTls>>;

pub fn own_tls(config: &Config) -> OwnTls {
    let mut own = BTreeMap::new();
    for (name, target) in &config.targets {
        if target.tls.is_default() {
            continue;
        }
        let section = format!("targets.{name}");
        let tls = ClientTls::new(target.tls.clone(), &section, &[b"http/1.1"]);
        for (host, port) in target.settings.addresses() {
            own.insert((host.to_ascii_lowercase(), port), tls.clone());
        }
    }
    Arc::new(own)
}

/// Reads the files of all TLS settings, so that a fault is found at the start.
fn check_tls_files(config: &Config, own: &OwnTls) -> Result<(), Failure> {
    let others = [
        ("broker", &config.broker.tls),
        ("ledger", &config.ledger.tls),
        ("tracing", &config.tracing.tls),
    ]
    .map(|(section, tls)| (!tls.is_default()).then(|| ClientTls::new(tls.clone(), section, &[])));
    let servers = others.iter().flatten().chain(own.values());
    for tls in servers {
        tls.load().or_exit(Exit::BadConfig)?;
    }
    Ok(())
}

/// Whether `before_accept` of the app asks an `https` endpoint.
/// Whether its jobs may name URLs.
fn calls_out(app: &AppConfig) -> bool {
    app.callbacks.is_some() || !app.access.list_sources.is_empty()
}

fn asks_https(app: &AppConfig) -> bool {
    let asked = app.access.before_accept.as_ref();
    asked.is_some_and(|it| it.url.scheme_str() == Some("https"))
}

/// Builds the target of a name that the caller has checked.
pub fn target(config: &Config, name: &str) -> Result<Box<dyn Target>, Failure> {
    let found = config
        .targets
        .get(name)
        .ok_or_else(|| Failure::message(Exit::BadInput, format!("there is no target {name:?}")))?;
    build(name, found)
}

fn build(name: &str, config: &TargetConfig) -> Result<Box<dyn Target>, Failure> {
    crate::im::build(name, &config.settings)
        .map_err(|problems| Failure::message(Exit::BadConfig, summary(&problems)))
}

/// Runs a worker on RabbitMQ and Redis until a signal, then drains.
pub async fn run_worker(config: Config) -> Result<Exit, Failure> {
    announce("worker", &config);
    let drain = crate::shutdown::drain_on_signal().or_exit(Exit::Internal)?;
    let store = ledger(&config)?;
    check_ledger(&store, &drain).await?;
    let mut process = Process::new(&config, store, drain)?;
    let broker = broker(&config)?;
    process.count(broker.clone());
    process.work(broker);
    process.identify_targets(&config);
    process.run(&config).await
}

/// Runs a gateway on RabbitMQ and Redis until a signal, then drains.
pub async fn run_gateway(config: Config) -> Result<Exit, Failure> {
    announce("gateway", &config);
    let drain = crate::shutdown::drain_on_signal().or_exit(Exit::Internal)?;
    let store = ledger(&config)?;
    check_ledger(&store, &drain).await?;
    let mut process = Process::new(&config, store, drain.clone())?;
    let broker = broker(&config)?;
    process.count(broker.clone());
    process.listen(&config, broker).await?;
    // A worker sends heartbeats itself; here the gateway must.
    let context = Arc::clone(&process.context);
    let watching = async move { watch_store(&context, Role::Gateway, &drain).await };
    process.tasks.push(Box::pin(watching));
    process.run(&config).await
}

/// Runs gateway and worker in one process until a signal, then drains: on RabbitMQ and Redis where
/// they are configured, else on the embedded engine.
pub async fn run_serve(config: Config) -> Result<Exit, Failure> {
    announce("serve", &config);
    let drain = crate::shutdown::drain_on_signal().or_exit(Exit::Internal)?;
    if config.engine() == EngineKind::Embedded {
        let engine = embedded(&config)?;
        tracing::info!(dir = %config.embedded.dir.display(), "embedded engine");
        let mut process = Process::new(&config, engine.store(), drain)?;
        process.show_engine(&engine);
        let exit = tokio::select! {
            exit = serve(&config, engine.broker(), process) => exit,
            damage = engine.damaged() => Err(Failure::message(Exit::Unavailable, damage)),
        };
        // Writes everything that was handed over, and releases the folder for the next process.
        engine.close().await;
        return exit;
    }
    let store = ledger(&config)?;
    check_ledger(&store, &drain).await?;
    let process = Process::new(&config, store, drain)?;
    serve(&config, broker(&config)?, process).await
}

async fn serve<B: Broker + RetainedQueues, S: Store>(
    config: &Config,
    broker: B,
    mut process: Process<S>,
) -> Result<Exit, Failure> {
    process.count(broker.clone());
    process.work(broker.clone());
    process.identify_targets(config);
    process.listen(config, broker).await?;
    process.run(config).await
}

/// The clients for lists that jobs name. Their connections serve nothing else.
fn list_clients(trust: &Trust) -> gateway::ListClients {
    let client = |public_only| {
        Client::new(ClientSettings {
            public_only,
            connect_timeout: LIST_CONNECT_TIMEOUT,
            tls: trust.clone(),
            ..ClientSettings::defaults()
        })
    };
    gateway::ListClients {
        public: client(true),
        any: client(false),
    }
}

fn gateway_settings(config: &Config, trust: &Trust) -> Result<gateway::Settings, Failure> {
    let gateway = config.gateway.clone();
    Ok(gateway::Settings {
        engine: match config.broker.url {
            Some(_) => api::Engine::Servers,
            None => api::Engine::Embedded,
        },
        listen: gateway.listen,
        tls: tls(config)?,
        access: access(config),
        requests_max: gateway.requests_max,
        connections_max: gateway.connections_max,
        patience: gateway.patience,
        wait_max: gateway.wait_max,
        upload_bytes_max: gateway.upload_bytes_max,
        upload_dir: gateway.upload_dir,
        list_clients: list_clients(trust),
    })
}

/// The drop-in endpoints of the apps, by system.
fn systems(config: &Config) -> Vec<DropInSystem> {
    let systems: HashMap<_, _> = config
        .targets
        .iter()
        .map(|(name, target)| (name.clone(), target.settings.system()))
        .collect();
    let endpoints_of = |system| {
        let endpoints = config.apps.values().flat_map(|app| &app.endpoints);
        let endpoints = endpoints.filter(move |(name, _)| *name == system);
        endpoints.map(|(_, endpoint)| endpoint.clone()).collect()
    };
    crate::im::ingresses()
        .into_iter()
        .map(|(system, ingress)| {
            DropInSystem::new(system, ingress, endpoints_of(system), systems.clone())
        })
        .collect()
}

fn tls(config: &Config) -> Result<Option<gateway::Tls>, Failure> {
    let files = config.gateway.tls.as_ref();
    let tls = files.map(|(certificate, key)| gateway::Tls::open(certificate, key));
    tls.transpose().or_exit(Exit::BadConfig)
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
        ..embedded::Settings::new(&config.embedded.dir)
    };
    Engine::open(&settings).or_exit(Exit::Unavailable)
}

/// Reads all of a copy of the embedded store; returns the number of its jobs.
pub fn check_backup(file: &Path) -> Result<u64, Failure> {
    embedded::check_copy(file).or_exit(Exit::Unavailable)
}

fn announce(role: &str, config: &Config) {
    tracing::info!(
        version = version::text(),
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

/// Refuses a ledger that would evict entries. A ledger that cannot be reached is waited for.
async fn check_ledger(store: &store::Store, drain: &CancellationToken) -> Result<(), Failure> {
    let check = store.check();
    match drain.run_until_cancelled(check).await {
        Some(Err(error)) if error.is_unfit() => Err(Failure::new(Exit::BadConfig, error)),
        Some(Err(error)) => {
            tracing::warn!(error = %chain(&error), "the ledger cannot be checked yet");
            Ok(())
        }
        Some(Ok(found)) => {
            tracing::info!("the ledger is {found}");
            Ok(())
        }
        None => Ok(()),
    }
}
