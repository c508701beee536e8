//! Provides the stream over which the client library talks to the broker: TCP or TLS.
//!
//! Fanwise has its own stream for two reasons. Incoming bytes go through [`Frames`], so that no
//! message can end a connection. And it can be cut: the library's thread and buffers (about 4 MiB)
//! live as long as its socket, so a broker that accepts connections and never answers would make
//! them pile up with every attempt.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_rs::traits::Reactor;
use async_rs::util::{DummyIO, RuntimeParts};
use async_rs::{Runtime, Tokio};
use futures_util::io::{AsyncRead, AsyncWrite};
use lapin::uri::AMQPUri;
use lapin::{AsyncTcpStream, Connection, ConnectionProperties};
use parking_lot::Mutex;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};

use super::frames::Frames;
use crate::tls::ClientTls;

/// Most bytes of one read.
const READ_BYTES: usize = 64 * 1024;

/// A connection. Dropping it ends its socket, its thread and its buffers.
pub struct Link {
    connection: Connection,
    _cut: DropGuard,
}

impl std::ops::Deref for Link {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl Link {
    /// Connects and completes the handshake. Nothing is left if the future is dropped before it is
    /// done.
    pub(super) async fn open(
        uri: &AMQPUri,
        tls: Option<&ClientTls>,
        frame_max: u32,
        properties: ConnectionProperties,
    ) -> lapin::Result<Self> {
        let cut = CancellationToken::new();
        let guard = cut.clone().drop_guard();
        let explain = Explain {
            tls: tls.cloned(),
            host: uri.authority.host.clone(),
        };
        let socket = Socket::connect(uri, tls).await;
        let stream = Stream {
            socket: socket.map_err(|error| explain.what(error))?,
            explain,
            frames: Frames::new(frame_max),
            arrived: vec![0; READ_BYTES].into(),
            readable: Vec::with_capacity(READ_BYTES),
            given: 0,
            cancelled: Box::pin(cut.clone().cancelled_owned()),
            cut,
        };
        // The library asks for a stream; without its own recovery, only once.
        let stream = Arc::new(Mutex::new(Some(stream)));
        let give = async move |_: AMQPUri, _: Runtime<Kit>| {
            let stream = stream.lock().take();
            let stream = stream.ok_or_else(given_up)?;
            lapin::Result::Ok(AsyncTcpStream::Plain(stream))
        };
        let tokio = Tokio::current();
        let kit = Runtime::new(Kit::new(tokio.clone(), Net(tokio)));
        let connection = Connection::connector(uri.clone(), kit, give, properties).await?;
        Ok(Self {
            connection,
            _cut: guard,
        })
    }
}

fn given_up() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "the connection was dropped",
    )
}

/// A connected socket.
enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    async fn connect(uri: &AMQPUri, tls: Option<&ClientTls>) -> io::Result<Self> {
        let host = uri.authority.host.as_str();
        let stream = TcpStream::connect((host, uri.authority.port)).await?;
        stream.set_nodelay(true)?;
        match tls {
            None => Ok(Self::Plain(stream)),
            Some(tls) => Ok(Self::Tls(Box::new(tls.connect(host, stream).await?))),
        }
    }
}

/// Says what a failure of TLS means. A broker refuses a certificate only after the handshake, so
/// the error comes from a read.
struct Explain {
    tls: Option<ClientTls>,
    host: String,
}

impl Explain {
    fn what(&self, error: io::Error) -> io::Error {
        let tls = self.tls.as_ref();
        match tls.and_then(|tls| tls.explain(&error, &self.host, "amqp://")) {
            Some(what) => io::Error::new(error.kind(), what),
            None => error,
        }
    }
}

/// Evaluates the same expression for both kinds of socket.
macro_rules! with_socket {
    ($socket:expr, $pinned:ident => $what:expr) => {
        match $socket {
            Socket::Plain(stream) => {
                let $pinned = Pin::new(stream);
                $what
            }
            Socket::Tls(stream) => {
                let $pinned = Pin::new(stream.as_mut());
                $what
            }
        }
    };
}

/// The stream that the client library reads and writes.
pub(super) struct Stream {
    socket: Socket,
    explain: Explain,
    frames: Frames,
    /// Bytes as they arrive.
    arrived: Box<[u8]>,
    /// Bytes for the library, and how many of them it has read.
    readable: Vec<u8>,
    given: usize,
    cut: CancellationToken,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Stream {
    /// Reads until `readable` has bytes; it stays empty only at the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.readable.clear();
        self.given = 0;
        while self.readable.is_empty() {
            if self.cut.is_cancelled() {
                return Poll::Ready(Err(given_up()));
            }
            let mut arrived = ReadBuf::new(&mut self.arrived);
            let read = with_socket!(&mut self.socket, socket => socket.poll_read(cx, &mut arrived));
            match read {
                Poll::Ready(read) => read.map_err(|error| self.explain.what(error))?,
                Poll::Pending => {
                    // Wakes the reader when the connection is cut.
                    ready!(self.cancelled.as_mut().poll(cx));
                    return Poll::Ready(Err(given_up()));
                }
            }
            if arrived.filled().is_empty() {
                break;
            }
            self.frames.pass(arrived.filled(), &mut self.readable);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let it = self.get_mut();
        if it.given == it.readable.len() {
            ready!(it.poll_fill(cx))?;
        }
        let waiting = &it.readable[it.given..];
        let count = waiting.len().min(out.len());
        out[..count].copy_from_slice(&waiting[..count]);
        it.given += count;
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let it = self.get_mut();
        if it.cut.is_cancelled() {
            return Poll::Ready(Err(given_up()));
        }
        with_socket!(&mut it.socket, socket => socket.poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_socket!(&mut self.get_mut().socket, socket => socket.poll_flush(cx))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_socket!(&mut self.get_mut().socket, socket => socket.poll_shutdown(cx))
    }
}

/// The runtime parts that the client library needs: Tokio's, with [`Stream`] as the stream.
type Kit = RuntimeParts<Tokio, Net>;

#[derive(Clone, Debug)]
struct Net(Tokio);

impl Reactor for Net {
    type TcpStream = Stream;
    type Sleep = <Tokio as Reactor>::Sleep;

    /// The library does not call it.
    fn register<H: Send + 'static>(
        &self,
        _: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<DummyIO, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(
        &self,
        duration: Duration,
    ) -> impl futures_util::Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    /// The library does not call it either: [`Link::open`] connects by itself.
    fn tcp_connect_addr(
        &self,
        _: SocketAddr,
    ) -> impl Future<Output = io::Result<Stream>> + Send + 'static {
        std::future::ready(Err(io::ErrorKind::Unsupported.into()))
    }
}
