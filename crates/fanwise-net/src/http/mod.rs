//! The HTTP/1.1 client. It sends a [`Request`] to a server and reports exactly what is known about
//! it.
//!
//! It makes one promise: [`SendError::NotSent`] means that the kernel took not one byte of the
//! request. Any later failure is [`SendError::Unknown`], because the server may have acted on the
//! request. The client counts the bytes at the socket, below TLS, so this is a fact and does not
//! depend on kinds of errors. It sends nothing twice: it has no retries and no redirects, and also
//! no proxies and no cookies.
//!
//! A call is one write and, as a rule, one read on a socket that the calling task owns: there is no
//! task per connection and no channel in between. This is why the client is written here and not
//! taken from a library. Measured over loopback with 64 calls in flight beside other load, in
//! microseconds of CPU per call, kernel included (the kernel alone takes 6 to 8), least and median
//! of 12 runs each:
//!
//! | client | one thread | two threads |
//! |---|---|---|
//! | `hyper_util::client::legacy`, its own pool | 13.1, 16.7 | 13.1, 16.9 |
//! | `hyper::client::conn::http1`, a task per connection, a stack of idle ones | 13.3, 14.3 | 10.2, 13.3 |
//! | the same, driven by the calling task | 10.1, 14.8 | 9.8, 14.0 |
//! | this one, with its deadline, which the others ran without | 8.9, 10.8 | 8.5, 10.6 |
//!
//! The client notices that the server closed an idle connection when it takes the connection from
//! the pool. It does not use a connection again that idled for [`ClientSettings::idle_timeout`]:
//! [`Client::tidy`] closes it, or the next use of its pool does. If a close crosses the request on
//! the wire, the client cannot tell whether the server read the request, so the call stays
//! `Unknown`.
//!
//! Dropping the future of [`Client::send`] closes its connection and leaves the call in doubt. The
//! client bounds its idle connections, per origin and in total; it has as many in use as the caller
//! has calls in flight.

mod address;
mod connection;
mod reply;
mod request;
#[cfg(test)]
mod tests;
mod url;

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::Uri;
use http::uri::{Authority, Scheme};
use parking_lot::{Mutex, MutexGuard};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::io::AsyncRead;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

pub use self::address::is_public;
use self::connection::{Connection, Left};
pub use self::request::{BAD_URL, CERTIFICATE, HttpReply, PRIVATE_ADDRESS, Request, SendError};
pub use self::url::{push_percent, push_segment};

use crate::tls::ClientTls;

/// The settings of a [`Client`].
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// For name resolution, TCP and TLS together. Default [`Self::CONNECT_TIMEOUT`].
    pub connect_timeout: Duration,
    /// A connection that idled this long is closed instead of used. If a server announces a shorter
    /// `Keep-Alive: timeout`, that applies. Default [`Self::IDLE_TIMEOUT`].
    pub idle_timeout: Duration,
    /// Most idle connections kept to one authority. Default [`Self::IDLE_MAX`].
    pub idle_max: usize,
    /// Most idle connections in total. Default [`Self::IDLE_TOTAL_MAX`].
    pub idle_total_max: usize,
    /// Longest body of a reply. Default [`Self::REPLY_BYTES_MAX`].
    pub reply_bytes_max: usize,
    /// How `https` servers are verified; by default as [`platform_tls`] says, loaded at the first
    /// call.
    pub tls: Option<Arc<ClientConfig>>,
    /// The servers with TLS settings of their own, by host and port.
    pub tls_of: Arc<BTreeMap<(String, u16), ClientTls>>,
    /// Connect to public addresses only. The check is on the address of the connection itself, so a
    /// name that resolves differently later gains nothing. Default false: the configuration names
    /// the targets, not the producers.
    pub public_only: bool,
}

impl ClientSettings {
    pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
    /// Node, Apache and uvicorn close connections that idled for 5 seconds. A busy pool never comes
    /// near it, since it takes the connection used last.
    pub const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
    pub const IDLE_MAX: usize = 256;
    pub const IDLE_TOTAL_MAX: usize = 1024;
    pub const REPLY_BYTES_MAX: usize = 1024 * 1024;

    pub fn defaults() -> Self {
        Self {
            connect_timeout: Self::CONNECT_TIMEOUT,
            idle_timeout: Self::IDLE_TIMEOUT,
            idle_max: Self::IDLE_MAX,
            idle_total_max: Self::IDLE_TOTAL_MAX,
            reply_bytes_max: Self::REPLY_BYTES_MAX,
            tls: None,
            tls_of: Arc::default(),
            public_only: false,
        }
    }
}

/// A failure of a connection. The byte count tells whether the request left.
#[derive(Debug)]
struct Broken {
    code: &'static str,
    what: Cow<'static, str>,
}

impl Broken {
    fn new(code: &'static str, what: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            what: what.into(),
        }
    }

    fn not_sent(self) -> SendError {
        SendError::NotSent {
            what: self.what.into_owned(),
            code: self.code,
        }
    }

    fn unknown(self) -> SendError {
        SendError::Unknown {
            what: self.what.into_owned(),
            code: self.code,
        }
    }
}

/// Counters of a client's connections.
#[derive(Debug, Default)]
pub struct Counts {
    /// Connections opened.
    pub opened: AtomicU64,
    /// Calls on a connection that had served another call.
    pub reused: AtomicU64,
    /// Idle connections that were given up because they idled too long or the server closed them.
    pub stale: AtomicU64,
}

/// Sends requests. Cheap to clone; all clones share their connections.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    settings: ClientSettings,
    counts: Counts,
    idle: Idle,
    tls: OnceLock<Result<TlsConnector, String>>,
}

impl Client {
    pub fn new(settings: ClientSettings) -> Self {
        Self {
            shared: Arc::new(Shared {
                settings,
                counts: Counts::default(),
                idle: Idle::default(),
                tls: OnceLock::new(),
            }),
        }
    }

    /// Closes connections that have idled for too long, and forgets origins without connections: a
    /// server that is not called again keeps no socket of ours.
    pub fn tidy(&self) {
        let stale = self.shared.idle.tidy(Instant::now());
        self.shared.close(stale.into_iter());
    }

    pub fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    /// Sends a request once and waits for the whole reply. Any reply is `Ok`, whatever its status.
    ///
    /// Adds `host`, `user-agent` and `content-length`; the request may set the first two itself.
    pub async fn send(&self, request: Request, timeout: Duration) -> Result<HttpReply, SendError> {
        let shared = &*self.shared;
        let started = Instant::now();
        let deadline = started + timeout;
        let origin = Origin::of(&request.uri).map_err(Broken::not_sent)?;
        let mut connection = match shared.reuse(origin).await {
            Some(connection) => connection,
            None => shared
                .open(origin, deadline)
                .await
                .map_err(Broken::not_sent)?,
        };
        let patience = timeout.min(shared.settings.connect_timeout);
        if started.elapsed() > patience {
            // The process was stopped meanwhile: what the caller knew may be wrong by now.
            let what = format!("no connection within {patience:?}");
            return Err(Broken::new("connect_timeout", what).not_sent());
        }
        let written = connection.written();
        let exchange = connection.exchange(&request, shared.settings.reply_bytes_max);
        let broken = match timeout_at(deadline, exchange).await {
            Ok(Ok(exchanged)) => {
                if let Some(idle_max) = exchanged.reuse {
                    let idle_max = idle_max.min(shared.settings.idle_timeout);
                    connection.rest(Instant::now(), idle_max);
                    shared.keep(origin, connection);
                }
                return Ok(exchanged.reply);
            }
            Ok(Err(broken)) => broken,
            Err(_) => Broken::new("timeout", format!("no reply within {timeout:?}")),
        };
        if connection.written() == written {
            Err(broken.not_sent())
        } else {
            Err(broken.unknown())
        }
    }
}

impl Client {
    /// Sends a request once, and passes the body of a 200 on in pieces, however long it is, until
    /// `each` breaks it off. Any other reply is returned whole. The head of the reply must come
    /// within `timeout`.
    pub async fn download(
        &self,
        request: Request,
        timeout: Duration,
        mut each: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<HttpReply, SendError> {
        let mut download = self.start_download(request, timeout).await?;
        loop {
            let piece = download.piece().await?;
            if piece.is_empty() {
                return Ok(download.reply);
            }
            if each(piece).is_break() {
                let what = "the reply was not read to its end";
                return Err(Broken::new("not_wanted", what).unknown());
            }
        }
    }

    /// Sends a request once, on a connection of its own, and waits for the head of the reply. The
    /// body of a 200 or a 206 is then read piece by piece; any other reply comes whole.
    pub async fn start_download(
        &self,
        request: Request,
        timeout: Duration,
    ) -> Result<Download, SendError> {
        let origin = Origin::of(&request.uri).map_err(Broken::not_sent)?;
        let connection = self.shared.open(origin, Instant::now() + timeout).await;
        let mut connection = connection.map_err(Broken::not_sent)?;
        let answered = connection.ask(&request, timeout).await;
        let (reply, left) = answered.map_err(Broken::unknown)?;
        Ok(Download {
            reply,
            connection,
            left,
        })
    }
}

/// A reply whose body is still on its way.
pub struct Download {
    /// Its body is empty if the status is 200 or 206.
    pub reply: HttpReply,
    connection: Box<Connection>,
    left: Left,
}

impl Download {
    /// The next piece of the body of a 200 or a 206; empty at its end, and only there.
    pub async fn piece(&mut self) -> Result<&[u8], SendError> {
        let piece = self.connection.piece(&mut self.left).await;
        piece.map_err(Broken::unknown)
    }
}

impl Client {
    /// Sends a request once, with a body that is read from `body` to its end, however long it is;
    /// the body in the request is not used. Each piece of it, and the reply after the last one, must
    /// come on within `patience`.
    pub async fn upload(
        &self,
        request: Request,
        body: impl AsyncRead + Unpin,
        patience: Duration,
    ) -> Result<HttpReply, SendError> {
        let origin = Origin::of(&request.uri).map_err(Broken::not_sent)?;
        let connection = self.shared.open(origin, Instant::now() + patience).await;
        let mut connection = connection.map_err(Broken::not_sent)?;
        let most = self.shared.settings.reply_bytes_max;
        let reply = connection.upload(&request, body, patience, most).await;
        reply.map_err(Broken::unknown)
    }
}

impl Shared {
    /// Takes an idle connection that is still usable.
    async fn reuse(&self, origin: Origin<'_>) -> Option<Box<Connection>> {
        let now = Instant::now();
        loop {
            let mut connection = self.idle.take(origin)?;
            if connection.usable_until() > now && connection.is_quiet().await {
                self.counts.reused.fetch_add(1, Ordering::Relaxed);
                return Some(connection);
            }
            self.counts.stale.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn open(&self, origin: Origin<'_>, deadline: Instant) -> Result<Box<Connection>, Broken> {
        let tls = match origin.tls {
            true => Some(self.secure(origin).await?),
            false => None,
        };
        let deadline = deadline.min(Instant::now() + self.settings.connect_timeout);
        let connection = timeout_at(
            deadline,
            connection::open(origin, tls, self.settings.public_only, deadline),
        )
        .await
        .unwrap_or_else(|_| {
            let what = format!("no connection to {} in time", origin.host_and_port());
            Err(Broken::new("connect_timeout", what))
        })?;
        self.counts.opened.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(connection))
    }

    fn keep(&self, origin: Origin<'_>, connection: Box<Connection>) {
        let bounds = (self.settings.idle_max, self.settings.idle_total_max);
        let stale = self.idle.put(origin, connection, bounds);
        self.close(stale.into_iter().flatten());
    }

    /// Closes connections; called without holding a lock.
    fn close(&self, stale: impl Iterator<Item = Box<Connection>>) {
        let count = stale.count() as u64;
        if count > 0 {
            self.counts.stale.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// TLS to this server: its own settings, or those for all servers.
    async fn secure(&self, origin: Origin<'_>) -> Result<Secure, Broken> {
        let server = (origin.host().to_ascii_lowercase(), origin.port());
        let Some(own) = self.settings.tls_of.get(&server) else {
            let connector = self
                .tls()
                .map_err(|what| Broken::new("tls", what.clone()))?;
            return Ok(Secure {
                connector: connector.clone(),
                name: ServerName::try_from(origin.host().to_owned())
                    .map_err(|error| Broken::new("tls", format!("{}: {error}", origin.host())))?,
                own: None,
            });
        };
        let broken = |error: std::io::Error| {
            let what = own.explain(&error, origin.host(), "http://");
            Broken::new("tls", what.unwrap_or_else(|| error.to_string()))
        };
        Ok(Secure {
            connector: TlsConnector::from(own.config().await.map_err(broken)?),
            name: own.name(origin.host()).map_err(broken)?,
            own: Some(own.clone()),
        })
    }

    fn tls(&self) -> Result<&TlsConnector, &String> {
        self.tls
            .get_or_init(|| match &self.settings.tls {
                Some(config) => Ok(TlsConnector::from(Arc::clone(config))),
                None => platform_tls().map(TlsConnector::from),
            })
            .as_ref()
    }
}

/// Trusts the certificates that the platform trusts. Returns a text if they cannot be loaded.
pub fn platform_tls() -> Result<Arc<ClientConfig>, String> {
    let config = || -> Result<ClientConfig, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_platform_verifier()?
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    };
    config().map(Arc::new).map_err(|error| error.to_string())
}

/// How to make a TLS connection to one server.
struct Secure {
    connector: TlsConnector,
    name: ServerName<'static>,
    /// The server's own settings, which explain a failure.
    own: Option<ClientTls>,
}

/// The server that a connection leads to.
#[derive(Clone, Copy)]
struct Origin<'a> {
    tls: bool,
    authority: &'a Authority,
}

impl<'a> Origin<'a> {
    fn of(uri: &'a Uri) -> Result<Self, Broken> {
        let tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            _ => return Err(Broken::new(BAD_URL, "the URL is neither http nor https")),
        };
        match uri.authority() {
            Some(authority) => Ok(Self { tls, authority }),
            None => Err(Broken::new(BAD_URL, "the URL names no host")),
        }
    }

    /// The host, without the brackets of an IPv6 address.
    fn host(self) -> &'a str {
        let host = self.authority.host();
        host.strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host)
    }

    fn port(self) -> u16 {
        let default = if self.tls { 443 } else { 80 };
        self.authority.port_u16().unwrap_or(default)
    }

    /// Host and port as in a `Host` header, without credentials, so that they can be logged.
    fn host_and_port(self) -> &'a str {
        let authority = self.authority.as_str();
        authority
            .rsplit_once('@')
            .map_or(authority, |(_, host)| host)
    }
}

/// Idle connections, a stack per origin, with the one used last on top.
///
/// A linear search finds an origin: there is one per target, and the placeholders of a URL are
/// never in its authority. Callbacks have as many origins as producers name, within the bound.
#[derive(Default)]
struct Idle {
    origins: Mutex<Vec<Stack>>,
}

struct Stack {
    tls: bool,
    authority: Authority,
    connections: VecDeque<Box<Connection>>,
}

impl Idle {
    fn take(&self, origin: Origin<'_>) -> Option<Box<Connection>> {
        let mut origins = self.lock();
        find(&mut origins, origin)?.connections.pop_back()
    }

    /// Keeps a connection. Returns the connections to close: those above the bounds, and up to two
    /// that idled too long, so that a shrinking pool closes its connections while it is in use.
    fn put(
        &self,
        origin: Origin<'_>,
        connection: Box<Connection>,
        (idle_max, idle_total_max): (usize, usize),
    ) -> [Option<Box<Connection>>; 3] {
        let now = connection.idle_since();
        let mut stale = [None, None, None];
        let mut origins = self.lock();
        if find(&mut origins, origin).is_none() {
            origins.retain(|stack| !stack.connections.is_empty());
            origins.push(Stack {
                tls: origin.tls,
                authority: origin.authority.clone(),
                connections: VecDeque::new(),
            });
        }
        if let Some(stack) = find(&mut origins, origin) {
            stack.connections.push_back(connection);
            for stale in &mut stale[..2] {
                let oldest = stack.connections.front();
                if oldest.is_some_and(|oldest| {
                    oldest.usable_until() <= now || stack.connections.len() > idle_max
                }) {
                    *stale = stack.connections.pop_front();
                }
            }
        }
        let total: usize = origins.iter().map(|stack| stack.connections.len()).sum();
        if total > idle_total_max {
            stale[2] = pop_oldest(&mut origins);
        }
        stale
    }

    /// Takes out all connections that have idled for too long.
    #[expect(clippy::vec_box, reason = "they are boxed where they come from")]
    fn tidy(&self, now: Instant) -> Vec<Box<Connection>> {
        let mut stale = Vec::new();
        let mut origins = self.lock();
        for stack in origins.iter_mut() {
            // A server may have asked for a shorter time than other servers of its origin.
            let (old, fit): (VecDeque<_>, _) = std::mem::take(&mut stack.connections)
                .into_iter()
                .partition(|it| it.usable_until() <= now);
            stack.connections = fit;
            stale.extend(old);
        }
        origins.retain(|stack| !stack.connections.is_empty());
        stale
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Stack>> {
        // A panic cannot leave a stack in an inconsistent state.
        self.origins.lock()
    }
}

/// Takes out the connection that has idled for longest, of all origins.
fn pop_oldest(origins: &mut [Stack]) -> Option<Box<Connection>> {
    let oldest = |stack: &Stack| stack.connections.front().map(|it| it.idle_since());
    let stacks = origins.iter_mut();
    let stack = stacks.filter_map(|stack| Some((oldest(stack)?, stack)));
    stack
        .min_by_key(|(since, _)| *since)?
        .1
        .connections
        .pop_front()
}

fn find<'s>(origins: &'s mut [Stack], origin: Origin<'_>) -> Option<&'s mut Stack> {
    origins
        .iter_mut()
        .find(|stack| stack.tls == origin.tls && stack.authority == *origin.authority)
}
