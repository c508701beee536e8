//! The server below the routes: connections, their number and their manners.
//!
//! A connection that brings no request in time, or takes no answer, is closed: it would hold its place
//! for nothing. HTTP/1.1 and HTTP/2 are told apart by their first bytes, with TLS and without.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower_service::Service as _;

/// Requests of one HTTP/2 connection at a time.
const STREAMS_MAX: u32 = 128;

/// Pause after an accept that failed: most likely there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What connections may take up.
#[derive(Clone, Copy)]
pub(super) struct Manners {
    /// Connections at a time; further ones wait in the kernel's queue.
    pub(super) connections_max: usize,
    /// Longest wait for a request to begin, and for an answer to be taken.
    pub(super) patience: Duration,
}

/// Serves until `stop`; requests under way are answered.
pub(super) async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    routes: Router,
    manners: Manners,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(manners.connections_max));
    let graceful = GracefulShutdown::new();
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(manners.patience);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(manners.patience)
        .keep_alive_timeout(manners.patience);
    loop {
        let next = async {
            // Closed never.
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let Some((place, accepted)) = stop.run_until_cancelled(next).await else {
            break;
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Answers are written whole; waiting to fill packets would only delay them.
        let _ = stream.set_nodelay(true);
        let served = Served {
            builder: builder.clone(),
            watcher: graceful.watcher(),
            routes: routes.clone(),
            patience: manners.patience,
        };
        let stream = Prompt::new(stream, manners.patience);
        let tls = tls.clone();
        tokio::spawn(async move {
            let _place = place;
            match tls {
                None => served.serve(stream).await,
                Some(tls) => {
                    let shaken = tokio::time::timeout(served.patience, tls.accept(stream));
                    match shaken.await {
                        Ok(Ok(stream)) => served.serve(stream).await,
                        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                        Err(_) => tracing::debug!("a TLS handshake took too long"),
                    }
                }
            }
        });
    }
    graceful.shutdown().await;
}

/// How one connection is served.
struct Served {
    builder: Builder<TokioExecutor>,
    watcher: Watcher,
    routes: Router,
    patience: Duration,
}

impl Served {
    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let asked = Arc::new(AtomicBool::new(false));
        let service = {
            let (routes, asked) = (self.routes, Arc::clone(&asked));
            service_fn(move |request: http::Request<Incoming>| {
                asked.store(true, Ordering::Relaxed);
                routes.clone().call(request)
            })
        };
        let connection = self.builder.serve_connection(TokioIo::new(stream), service);
        let connection = self.watcher.watch(connection.into_owned());
        let mut connection = std::pin::pin!(connection);
        // Also while it is not even known which HTTP this is.
        let unasked = async {
            tokio::time::sleep(self.patience).await;
            if asked.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended early");
                }
            }
            () = unasked => tracing::debug!("a connection brought no request in time"),
        }
    }
}

/// A stream whose peer must take what is written.
struct Prompt {
    stream: TcpStream,
    patience: Duration,
    /// Runs while a write waits.
    deadline: Pin<Box<Sleep>>,
    waits: bool,
}

impl Prompt {
    fn new(stream: TcpStream, patience: Duration) -> Self {
        Self {
            stream,
            patience,
            deadline: Box::pin(tokio::time::sleep(patience)),
            waits: false,
        }
    }

    fn in_time<V>(
        &mut self,
        written: Poll<io::Result<V>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<V>> {
        if written.is_ready() {
            self.waits = false;
            return written;
        }
        if !self.waits {
            self.waits = true;
            self.deadline.as_mut().reset(Instant::now() + self.patience);
        }
        ready!(self.deadline.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Prompt {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Prompt {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.in_time(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.in_time(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
