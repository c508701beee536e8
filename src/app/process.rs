//! One process with its worker, its gateway and its admin port, from the start to the drain.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::context::context;
use super::traces;
use super::{
    Trust, cannot_listen, check_tls_files, facts, gateway_settings, own_tls, systems, trust,
};
use crate::admin::{Admin, Part, Status};
use crate::config::Config;
use crate::embedded::Engine;
use crate::exit::{Exit, Failure, OrExit as _};
use crate::gateway::{Server, check_publishing, keep_publisher};
use crate::http::client::{Client, ClientSettings};
use crate::metrics::Metrics;
use crate::ports::{Broker, RetainedQueues, Store};
use crate::runtime::traces::Exporter;
use crate::runtime::{Context, count_cluster, identify_all};
use crate::worker::Worker;

/// A process that runs until a signal: its tasks, which end with the drain, and the parts that must
/// be ready.
pub(super) struct Process<S> {
    pub(super) context: Arc<Context<S, Client>>,
    drain: CancellationToken,
    pub(super) tasks: Vec<Task>,
    ready: Vec<Part>,
    trust: Trust,
    /// Bring metrics up to date that are kept elsewhere.
    refresh: Vec<Box<dyn Fn() + Send + Sync>>,
    /// Hands over the spans, until all tasks have ended.
    exporter: Option<Exporter<Client>>,
}

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

impl<S: Store> Process<S> {
    pub(super) fn new(
        config: &Config,
        store: S,
        drain: CancellationToken,
    ) -> Result<Self, Failure> {
        let trust = trust(config)?;
        let own = own_tls(config);
        check_tls_files(config, &own)?;
        let client = Client::new(ClientSettings {
            tls: trust.clone(),
            tls_of: own,
            ..ClientSettings::defaults()
        });
        let metrics = Arc::new(Metrics::new());
        let (tracer, exporter) = traces::exporter(config, &trust, &metrics).unzip();
        let context = context(config, store, client.clone(), &trust, metrics)?;
        let context = Arc::new(context.with_tracer(tracer.unwrap_or_default()));
        let draining = {
            let drain = drain.clone();
            Part::new("process", move || match drain.is_cancelled() {
                true => Err("draining".to_owned()),
                false => Ok(()),
            })
        };
        let ledger = {
            let context = Arc::clone(&context);
            Part::new("ledger", move || context.check_ledger())
        };
        let (shown, counts) = (Arc::clone(&context), client.clone());
        let refresh = move || {
            shown.show_ledger();
            shown.show_limits();
            let counts = counts.counts();
            let (opened, reused) = (counts.opened.load(Relaxed), counts.reused.load(Relaxed));
            shown.metrics.connections(opened, reused);
        };
        Ok(Self {
            context,
            drain,
            tasks: Vec::new(),
            ready: vec![draining, ledger],
            trust,
            refresh: vec![Box::new(refresh)],
            exporter,
        })
    }

    /// Shows the files and the commits of the embedded engine in the metrics.
    pub(super) fn show_engine(&mut self, engine: &Engine) {
        let metrics = Arc::clone(&self.context.metrics);
        engine.on_commit(move |took| metrics.commit(took));
        let (metrics, engine) = (Arc::clone(&self.context.metrics), engine.clone());
        self.refresh.push(Box::new(move || {
            // Without the folder nothing else works either, and the log says so.
            if let Ok(usage) = engine.usage() {
                metrics.store(usage.bytes, usage.free, usage.written);
            }
        }));
    }

    /// Counts for the whole cluster, while this process is the one that counts.
    pub(super) fn count<B: Broker>(&mut self, broker: B) {
        let context = Arc::clone(&self.context);
        let counting = count_cluster(context, broker, self.drain.clone());
        self.tasks.push(Box::pin(counting));
    }

    /// Adds a worker, which takes jobs and delivers them.
    pub(super) fn work<B: Broker>(&mut self, broker: B) {
        let worker = Worker::new(broker, Arc::clone(&self.context));
        let session = worker.ready();
        self.ready
            .push(Part::new("worker", move || match *session.borrow() {
                true => Ok(()),
                false => Err("no session with the broker".to_owned()),
            }));
        self.tasks.push(Box::pin(worker.run(self.drain.clone())));
    }

    /// Logs what each target answers, unless the configuration says otherwise.
    pub(super) fn identify_targets(&mut self, config: &Config) {
        if !config.worker.identify_targets {
            return;
        }
        let (context, drain) = (Arc::clone(&self.context), self.drain.clone());
        self.tasks.push(Box::pin(async move {
            identify_all(&context, &drain).await;
            // A task that ends by itself ends the process.
            drain.cancelled().await;
        }));
    }

    /// Adds a gateway, which accepts jobs over HTTP; after the signal it accepts no requests.
    pub(super) async fn listen<B: Broker + RetainedQueues>(
        &mut self,
        config: &Config,
        broker: B,
    ) -> Result<(), Failure> {
        let (context, drain) = (&self.context, &self.drain);
        let (publishing, published) = watch::channel(None);
        let settings = gateway_settings(config, &self.trust)?;
        let listen = settings.listen;
        let server = Server::bind(
            settings,
            broker.clone(),
            Arc::clone(context),
            published.clone(),
            facts(config)?,
            systems(config),
        );
        let server = server
            .await
            .map_err(|error| cannot_listen("gateway.listen", listen, &error))?;
        let address = server.address().or_exit(Exit::Internal)?;
        tracing::info!(%address, "gateway listens");
        self.ready
            .push(Part::new("gateway", move || check_publishing(&published)));
        self.tasks.push(Box::pin(keep_publisher(
            broker,
            publishing,
            Arc::clone(&context.metrics),
            drain.clone(),
        )));
        self.tasks.push(Box::pin(server.run(drain.clone())));
        Ok(())
    }

    /// Works until the signal, then drains for at most the drain deadline. The admin port ends
    /// last.
    pub(super) async fn run(self, config: &Config) -> Result<Exit, Failure> {
        let metrics = Arc::clone(&self.context.metrics);
        let refresh = self.refresh;
        let status = Status {
            metrics: Arc::clone(&metrics),
            refresh: Arc::new(move || refresh.iter().for_each(|refresh| refresh())),
            ready: self.ready,
        };
        let listen = config.admin.listen;
        let admin = Admin::start(listen, status)
            .map_err(|error| cannot_listen("admin.listen", listen, &error))?;
        tracing::info!(address = %admin.address, "admin port listens");
        let drain = self.drain;
        let ended = CancellationToken::new();
        let mut exporting = JoinSet::new();
        if let Some(exporter) = self.exporter {
            exporting.spawn(exporter.run(ended.clone()));
        }
        let mut tasks: JoinSet<()> = self.tasks.into_iter().collect();
        tokio::select! {
            // Checked first, since the tasks end at the signal too.
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
        ended.cancel();
        while exporting.join_next().await.is_some() {}
        drop(admin);
        Ok(exit)
    }
}
