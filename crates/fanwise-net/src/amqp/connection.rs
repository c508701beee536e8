//! Opens connections to a broker, and defines why a request to it fails.
//!
//! The automatic recovery of the client is off: with it, a consumer does not learn that another
//! consumer may now hold its deliveries. A lost connection ends the session, and the next session
//! starts from nothing.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::types::ShortString;
use lapin::uri::{AMQPScheme, AMQPUri, SASLMechanism};
use lapin::{ConnectionProperties, ConnectionState, ErrorKind};
use tokio::time::timeout;
use tracing::debug;

use super::fault::Fault;
use super::frames::FRAME_MAX;
use super::stream::Link;
use crate::error::chain;
use crate::tls::{ClientTls, TlsSettings};

/// Why a request to the broker failed.
#[derive(Debug, thiserror::Error)]
pub enum AmqpError {
    #[error("no connection to {address}")]
    Connect { address: String, source: Box<Fault> },
    #[error("the broker refused to {what}")]
    Refused { what: String, source: Box<Fault> },
    #[error("{address} did not {what} within {after:?}")]
    Slow {
        address: String,
        what: String,
        after: Duration,
    },
    #[error(
        "no connection within {after:?}. Check that {section}.url has the port of AMQP, and the \
         network between here and there"
    )]
    Silent {
        address: String,
        section: Arc<str>,
        after: Duration,
    },
    #[error("none of the nodes takes a connection: {tried}")]
    Nowhere { address: String, tried: String },
    #[error("the broker did not {what}: the queue is full or its leader is away")]
    NotTaken { what: String },
    #[error("`{0}` is too long for a name or routing key (255 bytes)")]
    Name(String),
}

impl AmqpError {
    /// Whether the broker gave this as its reason.
    pub fn is(&self, reason: &AMQPSoftError) -> bool {
        match self {
            Self::Refused { source, .. } => matches!(
                source.kind(),
                ErrorKind::ProtocolError(error) if *error.kind() == AMQPErrorKind::Soft(reason.clone())
            ),
            Self::Connect { .. }
            | Self::Slow { .. }
            | Self::Silent { .. }
            | Self::Nowhere { .. }
            | Self::NotTaken { .. }
            | Self::Name(_) => false,
        }
    }

    /// Adds advice if the broker gave this reason.
    pub fn explain(self, reason: &AMQPSoftError, advice: &str) -> Self {
        if !self.is(reason) {
            return self;
        }
        match self {
            Self::Refused { what, source } => Self::Refused {
                what: format!("{what}: {advice}"),
                source,
            },
            other @ (Self::Connect { .. }
            | Self::Slow { .. }
            | Self::Silent { .. }
            | Self::Nowhere { .. }
            | Self::NotTaken { .. }
            | Self::Name(_)) => other,
        }
    }
}

/// How long one node of several may take to accept a connection, at least.
const NODE_PATIENCE_MIN: Duration = Duration::from_secs(2);

/// How long an orderly close may take; a blocked connection cannot close in order at all.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How to connect to a broker.
#[derive(Clone)]
pub struct DialSettings {
    /// `amqp://user:password@host:port/vhost`, or `amqps://`, for each node; at least one. An address
    /// without a user means the user of the certificate in `tls`, if there is one.
    pub urls: Vec<String>,
    /// Used for `amqps://`.
    pub tls: TlsSettings,
    /// The section of the configuration with the settings, for what errors advise.
    pub section: String,
    /// The connection is dropped after two of these without a sign of life. Whole seconds, at least
    /// 1; overrides the one in the URL.
    pub heartbeat: Duration,
    /// How long connecting may take, and each request to the broker.
    pub connect_timeout: Duration,
    /// Shown in the broker's list of connections.
    pub connection_name: String,
}

/// Settings that cannot work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    #[error(
        "the broker URL is not of the form amqp://user:password@host:port/vhost (or amqps://); \
         special characters in user, password and vhost must be percent-encoded"
    )]
    Url,
}

/// How to reach the broker and how long to wait for its answers.
#[derive(Clone)]
pub struct Dial {
    nodes: Arc<[Node]>,
    /// The addresses of all nodes.
    address: Arc<str>,
    tls: Option<ClientTls>,
    /// The section of the configuration, for advice.
    section: Arc<str>,
    connection_name: Arc<str>,
    answer_timeout: Duration,
}

/// One node of the broker.
struct Node {
    uri: AMQPUri,
    address: String,
    /// The largest frame that is agreed to.
    frame_max: u32,
}

impl Node {
    fn new(url: &str, settings: &DialSettings) -> Result<Self, DialError> {
        let mut uri = parse(url)?;
        // A half-open connection is noticed after two heartbeats; the broker would suggest 60 s.
        let heartbeat = settings.heartbeat.as_secs().max(1);
        uri.query.heartbeat = Some(u16::try_from(heartbeat).unwrap_or(u16::MAX));
        // The client allocates buffers of this size, and a broker may offer frames without a limit.
        let frame_max = uri.query.frame_max.unwrap_or(FRAME_MAX).min(FRAME_MAX);
        uri.query.frame_max = Some(frame_max);
        if settings.tls.identity.is_some() && uri.scheme == AMQPScheme::AMQPS && !names_user(url) {
            uri.query.auth_mechanism = Some(SASLMechanism::External);
        }
        Ok(Self {
            address: address(&uri),
            uri,
            frame_max,
        })
    }
}

/// Without the credentials of the URI.
impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Dial").field(&self.address).finish()
    }
}

impl Dial {
    pub fn new(settings: &DialSettings) -> Result<Self, DialError> {
        let nodes = settings.urls.iter().map(|url| Node::new(url, settings));
        let nodes: Vec<_> = nodes.collect::<Result<_, _>>()?;
        let first = nodes.first().ok_or(DialError::Url)?;
        let is_encrypted = first.uri.scheme == AMQPScheme::AMQPS;
        let addresses: Vec<_> = nodes.iter().map(|node| node.address.as_str()).collect();
        Ok(Self {
            address: addresses.join(", ").into(),
            tls: is_encrypted.then(|| ClientTls::new(settings.tls.clone(), &settings.section, &[])),
            nodes: nodes.into(),
            section: settings.section.as_str().into(),
            connection_name: settings.connection_name.as_str().into(),
            answer_timeout: settings.connect_timeout,
        })
    }

    /// Scheme, host, port and virtual host.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Opens a connection to the first node that takes it, in random order, so that the
    /// connections of many processes spread; its role is shown in the broker's list of connections.
    pub async fn open(&self, role: &str) -> Result<Link, AmqpError> {
        let mut order: Vec<_> = self.nodes.iter().collect();
        fastrand::shuffle(&mut order);
        let patience = match order.len() {
            1 => self.answer_timeout,
            count => (self.answer_timeout / count as u32).max(NODE_PATIENCE_MIN),
        };
        let mut tried = Vec::new();
        for node in order {
            match self.open_at(node, role, patience).await {
                Ok(link) => return Ok(link),
                Err(error) if self.nodes.len() == 1 => return Err(error),
                Err(error) => {
                    debug!(error = chain(&error), "a node of the broker is passed over");
                    tried.push(chain(&error));
                }
            }
        }
        Err(AmqpError::Nowhere {
            address: self.address.to_string(),
            tried: tried.join("; "),
        })
    }

    async fn open_at(
        &self,
        node: &Node,
        role: &str,
        patience: Duration,
    ) -> Result<Link, AmqpError> {
        let properties = ConnectionProperties::default()
            .with_connection_name(format!("{} ({role})", self.connection_name).into());
        let connecting = Link::open(&node.uri, self.tls.as_ref(), node.frame_max, properties);
        match timeout(patience, Box::pin(connecting)).await {
            Ok(Ok(link)) => Ok(link),
            Ok(Err(error)) => {
                let what = format!("open a connection to {}", node.address);
                let fault = Fault::of_opening(error, &node.uri, &self.section);
                Err(failed(&node.address, what, fault))
            }
            Err(_) => Err(AmqpError::Silent {
                address: node.address.clone(),
                section: Arc::clone(&self.section),
                after: patience,
            }),
        }
    }

    /// Closes a connection in order, if the broker still answers.
    pub async fn close(&self, connection: &Link) {
        let closed = connection.close(200, ShortString::default());
        if !matches!(timeout(CLOSE_TIMEOUT, closed).await, Ok(Ok(()))) {
            debug!("a broker connection was dropped without an orderly close");
        }
    }

    /// The next delivery of a consumer that should not have ended yet.
    pub fn delivered<T>(&self, item: Option<lapin::Result<T>>) -> Result<T, AmqpError> {
        let ended = || ErrorKind::InvalidConnectionState(ConnectionState::Closed).into();
        item.unwrap_or_else(|| Err(ended()))
            .map_err(|error| AmqpError::Connect {
                address: self.address.to_string(),
                source: Box::new(Fault::new(error)),
            })
    }

    /// Waits for an answer of the broker, up to the answer timeout.
    pub async fn ask<T>(
        &self,
        what: String,
        answer: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, AmqpError> {
        ask_at(&self.address, what, self.answer_timeout, answer).await
    }

    /// The same, up to another time.
    pub async fn ask_within<T>(
        &self,
        what: String,
        patience: Duration,
        answer: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, AmqpError> {
        ask_at(&self.address, what, patience, answer).await
    }

    /// A name in its wire form.
    pub fn name(&self, name: &str) -> Result<ShortString, AmqpError> {
        ShortString::try_new(name).map_err(|_| AmqpError::Name(name.to_owned()))
    }
}

/// Waits for an answer of the broker at this address, up to a time.
async fn ask_at<T>(
    address: &str,
    what: String,
    patience: Duration,
    answer: impl Future<Output = lapin::Result<T>>,
) -> Result<T, AmqpError> {
    match timeout(patience, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(failed(address, what, Fault::new(error))),
        Err(_) => Err(AmqpError::Slow {
            address: address.to_owned(),
            what,
            after: patience,
        }),
    }
}

fn failed(address: &str, what: String, fault: Fault) -> AmqpError {
    let source = Box::new(fault);
    match is_refusal(&source) {
        true => AmqpError::Refused { what, source },
        false => AmqpError::Connect {
            address: address.to_owned(),
            source,
        },
    }
}

/// The broker refused, and would refuse again: a wrong password, virtual host, permission or
/// argument. All other errors are faults of the connection.
fn is_refusal(fault: &Fault) -> bool {
    let ErrorKind::ProtocolError(error) = fault.kind() else {
        return false;
    };
    match error.kind() {
        AMQPErrorKind::Soft(_) => true,
        AMQPErrorKind::Hard(hard) => !matches!(
            hard,
            AMQPHardError::CONNECTIONFORCED | AMQPHardError::INTERNALERROR
        ),
    }
}

fn parse(url: &str) -> Result<AMQPUri, DialError> {
    // The parser's own error repeats the URL with its password, so it is not passed on.
    let mut uri: AMQPUri = url.parse().map_err(|_| DialError::Url)?;
    // The parser falls back to localhost for an IPv6 address.
    if let Some(address) = bracketed_host(url) {
        uri.authority.host = address.to_owned();
    }
    // Strictly by the specification, `amqp://host/` means the virtual host with the empty name,
    // which does not exist in practice; a user who writes it means the default.
    if uri.vhost.is_empty() {
        uri.vhost = "/".to_owned();
    }
    Ok(uri)
}

/// Whether the URL names a user; the parser supplies one where it does not.
fn names_user(url: &str) -> bool {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
    authority.contains('@')
}

fn bracketed_host(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit('@').next()?.strip_prefix('[')?;
    host.split_once(']').map(|(host, _)| host)
}

fn address(uri: &AMQPUri) -> String {
    let host = &uri.authority.host;
    let host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.clone()
    };
    let vhost = if uri.vhost == "/" { "" } else { &uri.vhost };
    let slash = if vhost.is_empty() { "" } else { "/" };
    format!(
        "{}://{host}:{}{slash}{vhost}",
        uri.scheme, uri.authority.port
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> DialSettings {
        DialSettings {
            urls: vec![url.to_owned()],
            tls: TlsSettings::default(),
            section: "broker".to_owned(),
            heartbeat: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            connection_name: "test".to_owned(),
        }
    }

    fn check(url: &str, expected: &str) {
        assert_eq!(address(&parse(url).unwrap()), expected, "{url}");
    }

    #[test]
    fn addresses_carry_no_credentials() {
        check("amqp://127.0.0.1", "amqp://127.0.0.1:5672");
        check("amqp://u:p%40ss@rabbit:5673/%2f", "amqp://rabbit:5673");
        check("amqps://u:p@rabbit/", "amqps://rabbit:5671");
        check(
            "amqp://u:p@rabbit/fan?heartbeat=5",
            "amqp://rabbit:5672/fan",
        );
        check(
            "amqp://u:p@[2001:db8::1]:5680/x",
            "amqp://[2001:db8::1]:5680/x",
        );
    }

    /// Without a user in the address the certificate is the login, and never without TLS.
    #[test]
    fn a_certificate_is_the_login_of_an_address_without_a_user() {
        let mut settings = settings("amqps://rabbit1/%2f");
        settings.tls.identity = Some(("mine.pem".into(), "mine.key".into()));
        let mechanism = |url: &str| {
            let node = Node::new(url, &settings).unwrap();
            node.uri.query.auth_mechanism
        };
        let external = Some(SASLMechanism::External);
        assert_eq!(mechanism("amqps://rabbit1/%2f"), external);
        assert_eq!(mechanism("amqps://ann:pw@rabbit1/%2f"), None);
        assert_eq!(mechanism("amqp://rabbit1/%2f"), None);
    }

    #[test]
    fn all_nodes_are_named() {
        let mut settings = settings("amqp://u:secret@rabbit1");
        settings
            .urls
            .push("amqp://u:secret@rabbit2:5673/x".to_owned());
        let dial = Dial::new(&settings).unwrap();
        assert_eq!(dial.address(), "amqp://rabbit1:5672, amqp://rabbit2:5673/x");
        settings.urls.clear();
        assert_eq!(Dial::new(&settings).unwrap_err(), DialError::Url);
    }

    #[test]
    fn a_bad_url_is_refused_without_repeating_it() {
        for url in ["http://u:secret@rabbit", "u:secret@rabbit", "amqp:u:secret"] {
            let error = parse(url).unwrap_err();
            assert!(!format!("{error:?} {error}").contains("secret"), "{url}");
        }
    }
}
