//! Serves HTTP: accepts connections, bounds them, and ends those that stall. The routes answer the
//! requests; the gateway and the admin port each bring their own.
//!
//! A connection that brings no request in time, or takes no answer, is closed, because it would
//! hold a place for nothing. The first bytes of a connection tell HTTP/1.1 from HTTP/2, with and
//! without TLS.
//!
//! - `peer`: the state of one connection; `connections`: which connection to close if a further one
//!   comes and all places are taken.
//! - `answer`: answers in pieces, and the deadline by which each piece must be taken.
//! - `prompt`: the same deadline for writes to a socket.
//! - `hosts`: requests of web pages without credentials.

mod answer;
mod connections;
mod hosts;
mod peer;
mod prompt;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;

pub(crate) use self::answer::Kept;
use self::answer::{Streams, Taking, watched};
use self::connections::{Connections, Entry};
pub(crate) use self::hosts::{Hosts, Outside};
pub(crate) use self::peer::Peer;
use self::prompt::Prompt;

/// Most requests of one HTTP/2 connection at a time.
const STREAMS_MAX: u32 = 128;

/// Longest head of a request: twice what common servers accept. Every connection may hold one that
/// is unfinished.
pub(crate) const HEAD_BYTES_MAX: usize = 32 * 1024;

/// Pause after an accept that failed, most likely because there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bounds of a server's connections.
#[derive(Clone, Copy)]
pub(crate) struct ConnectionLimits {
    /// Connections at a time; for each further one, an idle one is closed.
    pub(crate) connections_max: usize,
    /// Longest wait for a request to begin, and for the client to take each piece of an answer.
    pub(crate) patience: Duration,
}

/// Serves until `stop`; answers the requests under way first.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    routes: Router,
    limits: ConnectionLimits,
    stop: CancellationToken,
) {
    let connections = Connections::new(limits.connections_max);
    let tasks = TaskTracker::new();
    let served = Served {
        builder: builder(limits.patience),
        routes,
        tls,
        patience: limits.patience,
        stop: stop.clone(),
    };
    loop {
        let next = async {
            match listener.accept().await {
                Ok((stream, address)) => Ok((stream, connections.enter(address.ip()).await)),
                Err(error) => Err(error),
            }
        };
        let Some(accepted) = stop.run_until_cancelled(next).await else {
            break;
        };
        match accepted {
            Ok((stream, entry)) => {
                tasks.spawn(served.clone().connection(stream, entry));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    tasks.close();
    tasks.wait().await;
}

fn builder(patience: Duration) -> Builder<Streams> {
    let mut builder = Builder::new(Streams { patience });
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_buf_size(HEAD_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .keep_alive_interval(patience)
        .keep_alive_timeout(patience);
    builder
}

/// The parts that all connections share.
#[derive(Clone)]
struct Served {
    builder: Builder<Streams>,
    routes: Router,
    tls: Option<TlsAcceptor>,
    patience: Duration,
    stop: CancellationToken,
}

impl Served {
    async fn connection(self, stream: TcpStream, entry: Entry) {
        // Answers are written whole; waiting to fill packets would only delay them.
        let _ = stream.set_nodelay(true);
        let stream = Prompt::new(stream, self.patience);
        let Some(tls) = &self.tls else {
            return self.serve(stream, &entry.peer).await;
        };
        let shaken = async {
            tokio::select! {
                shaken = tokio::time::timeout(self.patience, tls.accept(stream)) => Some(shaken),
                () = entry.peer.told_to_go() => None,
            }
        };
        match shaken.await {
            Some(Ok(Ok(stream))) => self.serve(stream, &entry.peer).await,
            Some(Ok(Err(error))) => tracing::debug!(%error, "a TLS handshake failed"),
            Some(Err(_)) => tracing::debug!("a TLS handshake took too long"),
            None => {}
        }
    }

    async fn serve(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: &Arc<Peer>,
    ) {
        let (routes, asking) = (self.routes.clone(), Arc::clone(peer));
        let service = service_fn(move |request: http::Request<Incoming>| {
            answer(routes.clone(), request, Arc::clone(&asking))
        });
        let connection = self.builder.serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let taking = Taking::default();
        let mut stopped = std::pin::pin!(self.stop.cancelled());
        let (mut is_ending, mut is_spared) = (false, false);
        let served = taking.clone().scope(async {
            loop {
                tokio::select! {
                    ended = &mut connection => {
                        if let Err(error) = ended {
                            tracing::debug!(%error, "a connection ended early");
                        }
                        return;
                    }
                    () = &mut stopped, if !is_ending => {}
                    () = peer.idle_for(self.patience), if !is_ending => {
                        if !peer.has_asked() {
                            return tracing::debug!("a connection brought no request in time");
                        }
                    }
                    () = peer.asked_to_end(), if !is_ending => {}
                    // A connection that was asked to end and has no work left ends by itself,
                    // unless it has answers that the client does not take.
                    () = peer.idle_for(self.patience), if is_ending => {
                        return tracing::debug!("a connection did not end in time");
                    }
                    () = taking.stalled(self.patience) => {
                        return tracing::debug!("a connection took no answer in time");
                    }
                    () = peer.told_to_go(), if !is_spared => {
                        if peer.expendable_since().is_some() {
                            return tracing::debug!("a connection made place for another one");
                        }
                        // A request came in the meantime: answer it.
                        is_spared = true;
                    }
                }
                is_ending = true;
                peer.is_idle_from_now();
                connection.as_mut().graceful_shutdown();
            }
        });
        served.await;
    }
}

/// The answer of the routes, in pieces. It keeps its connection busy until it is taken.
async fn answer(
    mut routes: Router,
    mut request: http::Request<Incoming>,
    peer: Arc<Peer>,
) -> Result<http::Response<Body>, Infallible> {
    let busy = peer.busy();
    let version = request.version();
    request.extensions_mut().insert(peer);
    let answer = routes.call(request).await?;
    Ok(watched(answer, version, busy))
}
