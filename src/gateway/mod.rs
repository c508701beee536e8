//! The HTTP interface: submit jobs and look at them, without a broker client.
//!
//! It accepts a job exactly as AMQP does: it answers 202 after the broker has confirmed the job,
//! and the workers do everything else. It accepts nothing in part: while there is no session with
//! the broker, while the broker takes nothing, or while the ledger is down, it answers 503 at once;
//! and an uploaded list is sent only once all of it is accepted.
//!
//! - `routes`: every path; `submit`: accepts jobs; `query`: reads jobs; `events`: follows one job;
//!   `feed`: follows all jobs; `about`: the process itself; `control`: controls jobs, apps and targets; `recall`: takes
//!   messages back; `dead`: dead letters; `templates`: stored
//!   messages; `dropin`: existing callers of IM systems.
//! - `openapi`: all of it as a document and as a page; `console`: pages that use it.
//! - `access`: who calls and what they may do; `caller_view`: what callers learn about the
//!   configuration; `permit`: the gateway's side of [`admission`](crate::service::admission).
//! - `params`, `body`, `form`, `problem`: read requests and write refusals; `spec`, `spool`,
//!   `sorted`, `upload`: uploaded lists; `fetch`: lists that jobs name by their address.
//!
//! Every answer that is not a success is `application/problem+json` with all problems of the
//! request, except to existing callers of an IM system, which get answers of that system.
//!
//! - `shares`: the resources that all callers share, in `pool`s: places, bytes of bodies and of
//!   answers, uploads, streams; `observe`: metrics and the access log; `expiry`: when a certificate
//!   ends; `wrong_guesses`: wrong credentials; `browser`: web pages that send
//!   requests without credentials.
//!
//! Everything that a caller may take up has a bound: connections, requests, the bytes of their
//! bodies, the time to send them and to take the answer. The head of a request is checked before
//! the gateway waits for the rest; what the request takes up after that comes out of its app's
//! share.

mod about;
mod access;
mod asker;
mod backup;
mod body;
mod browser;
mod caller_view;
mod console;
mod control;
mod dead;
mod dropin;
mod events;
mod expiry;
mod feed;
mod fetch;
mod form;
mod lookup;
mod observe;
mod openapi;
mod params;
mod permit;
mod pool;
mod problem;
mod query;
mod recall;
mod routes;
mod shares;
mod sorted;
mod spans;
mod spec;
mod spool;
mod submit;
mod target_test;
mod templates;
mod tls;
mod uncertain;
mod upload;
mod wrong_guesses;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::access::Rates;
pub use self::access::{Access, AppAccess};
use self::dead::{Pages, Readers};
pub use self::dropin::DropInSystem;
use self::events::Hub;
use self::feed::Feed;
pub use self::fetch::{ListClients, ListSource};
pub use self::openapi::openapi;
use self::problem::Refusal;
use self::recall::Recalls;
use self::shares::Shares;
pub use self::tls::Tls;
use self::wrong_guesses::Failures;
use crate::error::chain;
use crate::http::server::{self, ConnectionLimits, Hosts};
use crate::metrics::{Bound, BrokerUser, Metrics};
use crate::ports::{
    BoxFuture, Broker, Outgoing, Publisher, RetainedQueues, Session, Store, Transport,
};
use crate::runtime::{Context, RECONNECT};
use crate::service::api::Engine;
use crate::service::control::Facts;

type PublisherOf<B> = <<B as Broker>::Session as Session>::Publisher;

/// The session that is open for publishing, if there is one.
type Publishing<B> = watch::Receiver<Option<Open<PublisherOf<B>>>>;

/// How the gateway serves; the defaults and bounds are in `config`.
#[derive(Clone)]
pub struct Settings {
    /// Shown to callers.
    pub engine: Engine,
    pub listen: SocketAddr,
    /// Without it the gateway speaks plain HTTP.
    pub tls: Option<Tls>,
    pub access: Access,
    /// Requests at a time, including those that wait for a job.
    pub requests_max: usize,
    pub connections_max: usize,
    /// Longest wait for a request, for its next bytes, and for the client to take the answer.
    pub patience: Duration,
    /// Longest wait for a job, even if the caller prefers a longer one.
    pub wait_max: Duration,
    pub upload_bytes_max: u64,
    pub upload_dir: PathBuf,
    pub list_clients: ListClients,
}

/// The state that the routes share.
struct Gateway<B: Broker, S, T> {
    broker: B,
    context: Arc<Context<S, T>>,
    access: Access,
    rates: Rates,
    /// The subjects that can be controlled.
    facts: Facts,
    /// The drop-in endpoints, by system.
    systems: Vec<Arc<DropInSystem>>,
    hub: Hub,
    feed: Feed,
    engine: Engine,
    publishing: Publishing<B>,
    /// Cancelled at the end: no request waits for a job any longer.
    stop: CancellationToken,
    shares: Shares,
    readers: Readers,
    pages: Pages,
    failures: Failures,
    hosts: Hosts,
    patience: Duration,
    wait_max: Duration,
    upload_bytes_max: u64,
    upload_dir: PathBuf,
    list_clients: ListClients,
    recalls: Recalls,
}

/// A session that is open for publishing.
#[derive(Clone)]
pub struct Open<P> {
    publisher: P,
    /// Whether the broker is short of memory or disk.
    blocked: watch::Receiver<bool>,
}

impl<P: Publisher> Open<P> {
    /// Refuses while the broker takes nothing.
    fn check(&self) -> Result<(), Refusal> {
        if *self.blocked.borrow() {
            return Err(takes_nothing());
        }
        Ok(())
    }

    /// Publishes, unless the broker reports in the meantime that it takes nothing. It may still
    /// take the message later, and a caller that repeats the request with the same key does no
    /// harm.
    async fn publish(&self, messages: Vec<Outgoing>) -> Result<(), Refusal> {
        let mut blocked = self.blocked.clone();
        let blocked = async { blocked.wait_for(|blocked| *blocked).await.is_ok() };
        tokio::select! {
            biased;
            published = self.publisher.publish(messages) => Ok(published?),
            true = blocked => Err(takes_nothing()),
        }
    }
}

const NO_SESSION: &str = "no session with the broker";

const TAKES_NOTHING: &str = "nothing can be stored now: the broker is short of memory or disk, or, on the \
                             embedded engine, the disk of the data folder is full";

fn takes_nothing() -> Refusal {
    Refusal::Unavailable(TAKES_NOTHING.to_owned())
}

impl<B: Broker, S, T> Gateway<B, S, T> {
    fn fingerprint_secret(&self) -> String {
        self.context.settings.fingerprint_secret.clone()
    }

    /// Counts a request of an app, or refuses it.
    fn count_request(&self, app: &str) -> Result<(), Refusal> {
        let counted = self.rates.count(app, &self.access);
        if counted.is_err() {
            self.context.metrics.request_refused(Bound::Rate);
        }
        counted
    }

    /// The session that accepts jobs now, or why there is none.
    fn open(&self) -> Result<Open<PublisherOf<B>>, Refusal> {
        self.context.check_ledger().map_err(Refusal::Unavailable)?;
        let open = self.publishing.borrow().clone();
        let open = open.ok_or_else(|| Refusal::Unavailable(NO_SESSION.to_owned()))?;
        open.check()?;
        Ok(open)
    }
}

/// The gateway, bound to its address.
pub struct Server {
    listener: TcpListener,
    tls: Option<Tls>,
    routes: Router,
    /// Ends the streams, which do not end by themselves while their jobs run.
    closing: CancellationToken,
    limits: ConnectionLimits,
    /// Keeps the copy of the dead letters.
    keeping: BoxFuture<()>,
    stop: CancellationToken,
    metrics: Arc<Metrics>,
}

impl Server {
    /// Binds the address. Jobs are accepted once there is a session with the broker, see
    /// [`keep_publisher`].
    pub async fn bind<B, S, T>(
        settings: Settings,
        broker: B,
        context: Arc<Context<S, T>>,
        publishing: Publishing<B>,
        facts: Facts,
        systems: Vec<DropInSystem>,
    ) -> std::io::Result<Self>
    where
        B: Broker + RetainedQueues,
        S: Store,
        T: Transport,
    {
        let listener = TcpListener::bind(settings.listen).await?;
        let stop = CancellationToken::new();
        let metrics = Arc::clone(&context.metrics);
        let (pages, keeper) = dead::pages(settings.upload_dir.clone());
        let keeping = keeper.keep(broker.clone());
        let gateway = Arc::new(Gateway {
            broker,
            context,
            facts,
            systems: systems.into_iter().map(Arc::new).collect(),
            hub: Hub::new(),
            feed: Feed::default(),
            engine: settings.engine,
            access: settings.access,
            rates: Rates::new(),
            publishing,
            stop: stop.clone(),
            shares: Shares::new(
                settings.requests_max,
                settings.connections_max,
                Arc::clone(&metrics),
            ),
            readers: Readers::default(),
            pages,
            failures: Failures::new(settings.patience),
            hosts: Hosts::of(settings.listen),
            patience: settings.patience,
            wait_max: settings.wait_max,
            upload_bytes_max: settings.upload_bytes_max,
            upload_dir: settings.upload_dir,
            list_clients: settings.list_clients,
            recalls: Recalls::default(),
        });
        Ok(Self {
            listener,
            tls: settings.tls,
            closing: gateway.hub.closing.clone(),
            routes: routes::routes(gateway),
            limits: ConnectionLimits {
                connections_max: settings.connections_max,
                patience: settings.patience,
            },
            keeping: Box::pin(keeping),
            stop,
            metrics,
        })
    }

    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop`; then answers the requests under way and ends the streams.
    pub async fn run(self, stop: CancellationToken) {
        let (waiting, closing) = (self.stop, self.closing);
        // A task of its own, so that copying letters does not delay connections. It ends with this one.
        let mut keeping = JoinSet::new();
        keeping.spawn(self.keeping);
        let told = async {
            stop.cancelled().await;
            waiting.cancel();
            closing.cancel();
        };
        let served = server::serve(
            self.listener,
            self.tls.as_ref().map(Tls::acceptor),
            self.routes,
            self.limits,
            stop.clone(),
        );
        let renewed = async {
            if let Some(tls) = &self.tls {
                tls.follow(&self.metrics, &stop).await;
            }
        };
        tokio::join!(told, served, renewed);
    }
}

/// Keeps one session open for publishing, and opens a new one when it is lost, until `stop`.
pub async fn keep_publisher<B: Broker>(
    broker: B,
    publishing: watch::Sender<Option<Open<PublisherOf<B>>>>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    metrics.uses_broker(BrokerUser::Gateway);
    let mut delays = RECONNECT.delays();
    while !stop.is_cancelled() {
        match stop.run_until_cancelled(broker.connect()).await {
            None => return,
            Some(Ok(session)) => {
                delays.reset();
                publishing.send_replace(Some(Open {
                    publisher: session.publisher(),
                    blocked: session.blocked(),
                }));
                metrics.broker_up(BrokerUser::Gateway, true);
                let lost = session.lost();
                let shown = show_blocked(session.blocked(), &metrics);
                let until_lost = async {
                    tokio::select! {
                        () = lost.cancelled() => {}
                        () = shown => {}
                    }
                };
                stop.run_until_cancelled(until_lost).await;
                publishing.send_replace(None);
                metrics.broker_up(BrokerUser::Gateway, false);
                session.close().await;
            }
            Some(Err(error)) => {
                tracing::warn!(error = %chain(&error), "the gateway has no broker session, trying again");
            }
        }
        stop.run_until_cancelled(tokio::time::sleep(delays.next_delay()))
            .await;
    }
}

/// Shows whether the broker takes nothing. Never ends.
async fn show_blocked(mut blocked: watch::Receiver<bool>, metrics: &Metrics) {
    loop {
        let now = *blocked.borrow_and_update();
        metrics.broker_blocked(BrokerUser::Gateway, now);
        if blocked.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Fails, with the reason, if no job can be handed to the broker now.
pub fn check_publishing<P: Publisher>(
    publishing: &watch::Receiver<Option<Open<P>>>,
) -> Result<(), String> {
    match &*publishing.borrow() {
        None => Err(NO_SESSION.to_owned()),
        Some(open) if *open.blocked.borrow() => Err(TAKES_NOTHING.to_owned()),
        Some(_) => Ok(()),
    }
}
