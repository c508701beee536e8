//! The HTTP interface: submit jobs and look at them, without a broker client.
//!
//! It accepts a job exactly as AMQP does: the answer 202 comes after the broker has confirmed the job,
//! and everything else happens in the workers. Nothing is half accepted: while there is no session
//! with the broker, the answer is 503.
//!
//! - `routes`: every path, and submitting; `query`: looking at jobs; `events`: following one;
//!   `dead`: dead letters, over the walks of `shelf`.
//! - `access`: who calls and what they may look at; `permit`: whether a job may be accepted, with
//!   `before_accept`, an endpoint that is asked about it.
//! - `params`, `problem`, `wire`: what comes in, what is wrong with it, and what is answered.
//!
//! Every answer that is not a success is `application/problem+json` with all problems of the request.

mod access;
mod before_accept;
mod dead;
mod events;
mod params;
mod permit;
mod problem;
mod query;
mod routes;
mod shelf;
mod socket;
mod steer;
mod templates;
mod tls;
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use self::access::Requests;
pub use self::access::{Access, AppAccess};
pub use self::before_accept::BeforeAccept;
use self::events::Hub;
pub use self::query::{Around, LIST_MAX, detail, fate, ids_of, jobs, read_cursor};
pub use self::shelf::{Redrive, RedriveError, page, purge, redrive};
use self::socket::Manners;
pub use self::steer::CONFIGURED;
pub use self::tls::{TlsError, acceptor, pinned};
pub use self::wire::{
    DeadList, JobDetail, JobList, KeptLine, LimitedBy, Limiting, PurgeRequest, Purged,
    RecipientFate, RecipientState, RedriveRefused, RedriveRequest, Redriven, RedrivenJob,
    Submitted, TemplateRow, TemplateView, Verification,
};
use crate::ports::{Broker, Session, Shelves, Transport};
use crate::steer::Facts;
use crate::worker::{Context, RECONNECT, Store, chain};

type PublisherOf<B> = <<B as Broker>::Session as Session>::Publisher;

/// What the routes need.
struct Gateway<B: Broker, S, T> {
    broker: B,
    context: Arc<Context<S, T>>,
    access: Access,
    requests: Requests,
    /// The publisher of the session that is open, if one is.
    publisher: watch::Receiver<Option<PublisherOf<B>>>,
    /// What can be steered.
    facts: Facts,
    hub: Hub,
}

/// What connections may take up.
const MANNERS: Manners = Manners {
    connections_max: 1024,
    patience: Duration::from_secs(10),
};

/// The gateway, bound to its address.
pub struct Server {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    routes: Router,
    /// Ends the streams, which have no end of their own while their jobs run.
    closing: CancellationToken,
}

impl Server {
    /// Binds; jobs are accepted once `run` has a session with the broker.
    pub async fn bind<B, S, T>(
        listen: SocketAddr,
        tls: Option<TlsAcceptor>,
        access: Access,
        broker: B,
        context: Arc<Context<S, T>>,
        publisher: watch::Receiver<Option<PublisherOf<B>>>,
        facts: Facts,
    ) -> std::io::Result<Self>
    where
        B: Broker + Shelves,
        S: Store,
        T: Transport,
    {
        let listener = TcpListener::bind(listen).await?;
        let gateway = Arc::new(Gateway {
            broker,
            context,
            access,
            requests: Requests::new(),
            publisher,
            facts,
            hub: Hub::new(),
        });
        Ok(Self {
            listener,
            tls,
            closing: gateway.hub.closing.clone(),
            routes: routes::routes(gateway),
        })
    }

    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop`; requests under way are answered, streams end.
    pub async fn run(self, stop: CancellationToken) {
        let closing = self.closing;
        let told = async {
            stop.cancelled().await;
            closing.cancel();
        };
        let served = socket::serve(self.listener, self.tls, self.routes, MANNERS, stop.clone());
        tokio::join!(told, served);
    }
}

/// Keeps one session open for publishing, and a new one when it is lost, until `stop`.
pub async fn keep_publisher<B: Broker>(
    broker: B,
    publisher: watch::Sender<Option<PublisherOf<B>>>,
    stop: CancellationToken,
) {
    let mut delays = RECONNECT.delays();
    while !stop.is_cancelled() {
        match stop.run_until_cancelled(broker.connect()).await {
            None => return,
            Some(Ok(session)) => {
                delays.reset();
                publisher.send_replace(Some(session.publisher()));
                let lost = session.lost();
                stop.run_until_cancelled(lost.cancelled()).await;
                publisher.send_replace(None);
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
