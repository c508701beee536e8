//! Opens connections: to one server, to the primary that Sentinels name, or to a cluster.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::cluster::ClusterClientBuilder;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, ClientTlsConfig, ConnectionAddr, IntoConnectionInfo as _,
    RedisConnectionInfo, TlsCertificates,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::fault::Fault;
use super::link::{Link, Wire};
use super::sentinel::Sentinels;
use crate::domain::ledger_url::{Deployment, LedgerUrl, Server};
use crate::store::Settings;
use crate::tls::ClientTls;

/// How often the cluster client sends one command again: to a node that another one names, or over
/// a new connection. Every script can be repeated.
const CLUSTER_TRIES: u32 = 8;

/// The shortest and the longest of its waits between two of them, in ms.
const CLUSTER_WAITS_MS: (u64, u64) = (20, 400);

/// How to reach the ledger.
pub(super) struct Dialer {
    pub(super) url: LedgerUrl,
    tls: Option<ClientTls>,
    sentinels: Option<Sentinels>,
    connect_timeout: Duration,
    response_timeout: Duration,
    deadline: Duration,
}

impl Dialer {
    pub(super) fn new(settings: &Settings, url: LedgerUrl) -> Self {
        let tls = url
            .tls
            .then(|| ClientTls::new(settings.tls.clone(), "ledger", &[]));
        let sentinels = match &url.deployment {
            Deployment::Sentinel { primary } => Some(Sentinels::new(
                primary,
                &url.servers,
                settings.sentinel_login.as_ref(),
            )),
            Deployment::One | Deployment::Cluster => None,
        };
        Self {
            url,
            tls,
            sentinels,
            connect_timeout: settings.connect_timeout,
            response_timeout: settings.response_timeout,
            deadline: settings.deadline,
        }
    }

    pub(super) fn is_cluster(&self) -> bool {
        self.url.deployment == Deployment::Cluster
    }

    pub(super) fn sentinels(&self) -> Option<&Sentinels> {
        self.sentinels.as_ref()
    }

    /// Opens the connection over which the ledger is used.
    pub(super) async fn open(&self) -> Result<Link, Fault> {
        match (&self.sentinels, &self.url.deployment) {
            (Some(sentinels), _) => {
                let (server, wire) = sentinels.primary(self).await?;
                Ok(Link::one(&server, wire))
            }
            (None, Deployment::Cluster) => self.cluster().await,
            (None, _) => {
                let server = &self.url.servers[0];
                let wire = self.server(server).await?;
                Ok(Link::one(server, wire))
            }
        }
    }

    /// Connects to one Redis server, as the user of the ledger.
    pub(super) async fn server(&self, server: &Server) -> Result<Wire, Fault> {
        let mut login = RedisConnectionInfo::default().set_db(self.url.database.into());
        if let Some(user) = &self.url.user {
            login = login.set_username(user);
        }
        if let Some(password) = &self.url.password {
            login = login.set_password(password);
        }
        self.connect(server, &login).await
    }

    /// Connects to one server with this login. Name, network, TLS and login each have an error of
    /// their own.
    pub(super) async fn connect(
        &self,
        server: &Server,
        login: &RedisConnectionInfo,
    ) -> Result<Wire, Fault> {
        let address = server.to_string();
        let connecting = timeout(self.connect_timeout, reach(server));
        let stream = connecting.await.map_err(|_| Fault::NoConnection {
            address: address.clone(),
            patience: self.connect_timeout,
        })??;
        match &self.tls {
            None => self.log_in(&address, stream, login).await,
            Some(tls) => {
                let shaking = timeout(self.response_timeout, tls.connect(&server.host, stream));
                let shaken = shaking.await.map_err(|_| Fault::Tls {
                    address: address.clone(),
                    what: format!(
                        "no TLS handshake within {:?}. Check that the port is the one for TLS",
                        self.response_timeout
                    ),
                })?;
                let stream = shaken.map_err(|error| self.tls_fault(server, error))?;
                self.log_in(&address, stream, login).await
            }
        }
    }

    async fn log_in(
        &self,
        address: &str,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        login: &RedisConnectionInfo,
    ) -> Result<Wire, Fault> {
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(self.response_timeout));
        let opening = MultiplexedConnection::new_with_config(login, stream, config);
        let opened = timeout(self.response_timeout, opening).await;
        let opened = opened.map_err(|_| Fault::NoAnswer {
            address: address.to_owned(),
            patience: self.response_timeout,
        })?;
        let (connection, driver) = opened.map_err(|error| self.login_fault(address, error))?;
        #[expect(
            clippy::disallowed_methods,
            reason = "the connection ends its task, whose end every caller sees as an error"
        )]
        let driver = AbortOnDropHandle::new(tokio::spawn(driver));
        Ok(Wire::new(connection, driver))
    }

    /// A server may refuse a certificate only once the first command is sent.
    fn login_fault(&self, address: &str, error: redis::RedisError) -> Fault {
        let explained = match (&self.tls, io_cause(&error)) {
            (Some(tls), Some(cause)) => tls.explain(cause, address, "redis://"),
            _ => None,
        };
        match explained {
            Some(what) => Fault::Tls {
                address: address.to_owned(),
                what,
            },
            None if self.tls.is_none() && error.is_connection_dropped() => Fault::Closed {
                address: address.to_owned(),
                error,
            },
            None => Fault::said(address, error),
        }
    }

    fn tls_fault(&self, server: &Server, error: io::Error) -> Fault {
        let address = server.to_string();
        let tls = self.tls.as_ref();
        match tls.and_then(|tls| tls.explain(&error, &server.host, "redis://")) {
            Some(what) => Fault::Tls { address, what },
            None if error.kind() == io::ErrorKind::UnexpectedEof => Fault::Tls {
                address,
                what: "it closed the connection during the TLS handshake. Check that the port is \
                       the one for TLS"
                    .to_owned(),
            },
            None => Fault::NotReached { address, error },
        }
    }

    /// The client of the whole cluster. It learns the nodes from any that answers, follows slots
    /// that move, and connects again to nodes that come back.
    async fn cluster(&self) -> Result<Link, Fault> {
        let address = format!("cluster {}", self.url);
        let nodes = self.url.servers.iter().map(|server| {
            let (host, port) = (server.host.clone(), server.port);
            match self.url.tls {
                false => ConnectionAddr::Tcp(host, port),
                true => ConnectionAddr::TcpTls {
                    host,
                    port,
                    insecure: false,
                    tls_params: None,
                },
            }
        });
        let said = |error| Fault::said(&address, error);
        let nodes: Result<Vec<_>, _> = nodes.map(|node| node.into_connection_info()).collect();
        let mut builder = ClusterClientBuilder::new(nodes.map_err(said)?)
            .connection_timeout(self.connect_timeout)
            .response_timeout(self.response_timeout)
            // Its error must come before the caller gives up: it says that a node hangs.
            .overall_response_timeout(Some(self.deadline.mul_f64(0.9)))
            .retries(CLUSTER_TRIES)
            .min_retry_wait(CLUSTER_WAITS_MS.0)
            .max_retry_wait(CLUSTER_WAITS_MS.1)
            // A command is one small packet; waiting to fill it costs up to 40 ms.
            .tcp_settings(TcpSettings::default().set_nodelay(true));
        if let Some(user) = &self.url.user {
            builder = builder.username(user);
        }
        if let Some(password) = &self.url.password {
            builder = builder.password(password);
        }
        if let Some(tls) = &self.tls {
            let pem = tls.pem().map_err(Fault::TlsFiles)?;
            let client_tls = pem
                .identity
                .map(|(client_cert, client_key)| ClientTlsConfig {
                    client_cert,
                    client_key,
                });
            builder = builder.certs(TlsCertificates {
                client_tls,
                root_cert: pem.ca,
            });
        }
        let client = builder.build().map_err(said)?;
        match client.get_async_connection().await {
            Ok(cluster) => Ok(Link::cluster(address, cluster)),
            Err(error) => Err(self.cluster_fault(&address, error).await),
        }
    }

    /// The cluster client hides which node failed and how; one that is asked alone says it.
    async fn cluster_fault(&self, address: &str, error: redis::RedisError) -> Fault {
        let mut last = None;
        for server in &self.url.servers {
            match self.server(server).await {
                Ok(_) => return Fault::said(address, error),
                Err(fault) => last = Some(fault),
            }
        }
        last.unwrap_or_else(|| Fault::said(address, error))
    }
}

/// The error of the socket behind an error of the client.
fn io_cause(error: &redis::RedisError) -> Option<&io::Error> {
    type Shared = Arc<dyn std::error::Error + Send + Sync>;
    let cause = std::error::Error::source(error)?;
    match cause.downcast_ref::<Shared>() {
        Some(shared) => shared.downcast_ref(),
        None => cause.downcast_ref(),
    }
}

/// Resolves the host and connects to the first of its addresses that answers.
async fn reach(server: &Server) -> Result<TcpStream, Fault> {
    let address = || server.to_string();
    let found = tokio::net::lookup_host((server.host.as_str(), server.port)).await;
    let found = found.map_err(|error| Fault::UnknownHost {
        address: address(),
        error,
    })?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for at in found {
        match TcpStream::connect(at).await {
            Ok(stream) => {
                // A command is one small packet; waiting to fill it costs up to 40 ms.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(Fault::NotReached {
        address: address(),
        error: last,
    })
}
