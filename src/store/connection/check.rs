//! Looks at the servers of the ledger: of what kind they are, whether the address fits it, and
//! whether they are fit to hold a ledger.

use std::collections::BTreeSet;
use std::time::Instant;

use redis::{ErrorKind, RedisError, Value};

use super::dial::Dialer;
use super::fault::{Fault, ledger_error, unreachable};
use super::link::Wire;
use super::sentinel;
use crate::clock::now_ms;
use crate::domain::ledger_url::{Deployment, LedgerUrl, Server};
use crate::ports::LedgerError;

/// Servers that are fit to hold a ledger.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    pub kind: Kind,
    /// The server, the primary, or every primary of the cluster.
    pub servers: Vec<ServerReport>,
    /// Where the primary can move: `ledger.replicas_min`.
    pub replicas_min: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    One,
    /// The primary that Sentinels know by this name.
    Sentinel {
        primary: String,
    },
    Cluster,
}

/// In one line, for logs and the doctor.
impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.kind {
            Kind::One => f.write_str("one Redis")?,
            Kind::Sentinel { primary } => write!(f, "the primary of {primary} behind Sentinels")?,
            Kind::Cluster => write!(f, "a Redis Cluster of {} primaries", self.servers.len())?,
        }
        for (index, server) in self.servers.iter().enumerate() {
            write!(f, "{} {server}", if index == 0 { ":" } else { ";" })?;
        }
        Ok(())
    }
}

impl std::fmt::Display for ServerReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kept = match &self.persistence {
            Persistence::AppendOnly { fsync: Some(fsync) } => {
                format!("append-only file with fsync {fsync}")
            }
            Persistence::AppendOnly { fsync: None } => "append-only file".to_owned(),
            Persistence::Snapshots => "snapshots".to_owned(),
            Persistence::None => "nothing on disk".to_owned(),
            Persistence::Unknown => "no append-only file".to_owned(),
        };
        write!(
            f,
            "{}, version {}, {}, {kept}, {} replicas, {} MB used, clock {:+} ms",
            self.address,
            self.version,
            self.policy,
            self.replicas,
            self.used_memory / 1_000_000,
            self.clock_ahead_ms
        )
    }
}

/// One server that takes writes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ServerReport {
    pub address: String,
    pub version: String,
    pub policy: String,
    pub persistence: Persistence,
    /// In bytes.
    pub used_memory: u64,
    /// In bytes; `None` means no limit but the machine's.
    pub maxmemory: Option<u64>,
    /// Replicas that have a whole copy.
    pub replicas: u32,
    /// How many replicas it needs to take writes; `None` where CONFIG is forbidden.
    pub min_replicas_to_write: Option<u32>,
    /// By how much its clock is ahead of this machine's, in ms.
    pub clock_ahead_ms: i64,
}

/// How much of the ledger survives a restart of the server.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Persistence {
    /// All but the last second or so, depending on `appendfsync`.
    AppendOnly { fsync: Option<String> },
    /// The content of the last snapshot.
    Snapshots,
    /// Nothing.
    None,
    /// No append-only file; whether the server takes snapshots is not known.
    Unknown,
}

/// The servers are not fit to hold a ledger.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error(
        "the Redis at {address} may evict the ledger's keys: its maxmemory-policy is {policy}. \
         Run `redis-cli CONFIG SET maxmemory-policy noeviction` and set it in redis.conf"
    )]
    Evicts { address: String, policy: String },
    #[error("the Redis at {address} is version {version}; 7.0 or later is needed")]
    TooOld { address: String, version: String },
    #[error("the Redis at {address} is a read-only replica. Set ledger.url = \"{url}\"")]
    Replica { address: String, url: String },
    #[error("the Redis at {address} is a node of a Redis Cluster. Set ledger.url = \"{url}\"")]
    ClusterNode { address: String, url: String },
    #[error("the Redis at {address} is a Sentinel. Set ledger.url = \"{url}\"")]
    Sentinel { address: String, url: String },
    #[error("the Redis at {address} is not a node of a Redis Cluster. Set ledger.url = \"{url}\"")]
    NoCluster { address: String, url: String },
    #[error(
        "ledger.replicas_min is {wanted}, and the Redis at {address} has {has} replicas: no outcome \
         could be recorded. Connect replicas, or lower ledger.replicas_min"
    )]
    TooFewReplicas {
        address: String,
        has: u32,
        wanted: u32,
    },
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl CheckError {
    /// The server answered, and its answer rules it out until somebody changes a setting.
    pub fn is_unfit(&self) -> bool {
        !matches!(self, Self::Ledger(_) | Self::TooFewReplicas { .. })
    }
}

/// Looks at every server that takes writes.
pub(super) async fn look(dialer: &Dialer, replicas_min: u32) -> Result<Report, CheckError> {
    let kind = match &dialer.url.deployment {
        Deployment::One => Kind::One,
        Deployment::Cluster => Kind::Cluster,
        Deployment::Sentinel { primary } => Kind::Sentinel {
            primary: primary.clone(),
        },
    };
    let mut servers = Vec::new();
    for (server, wire) in primaries(dialer).await? {
        let asked = Asked::new(&server, wire, dialer);
        servers.push(asked.look(replicas_min).await?);
    }
    Ok(Report {
        kind,
        servers,
        replicas_min,
    })
}

/// Connections to the servers that take writes.
async fn primaries(dialer: &Dialer) -> Result<Vec<(Server, Wire)>, CheckError> {
    match (dialer.sentinels(), &dialer.url.deployment) {
        (Some(sentinels), _) => {
            let primary = sentinels.primary(dialer).await.map_err(unreachable)?;
            Ok(vec![primary])
        }
        (None, Deployment::Cluster) => cluster_primaries(dialer).await,
        (None, _) => {
            let server = &dialer.url.servers[0];
            let wire = dialer.server(server).await.map_err(unreachable)?;
            Ok(vec![(server.clone(), wire)])
        }
    }
}

/// Asks the first node that answers for the primaries of its cluster.
async fn cluster_primaries(dialer: &Dialer) -> Result<Vec<(Server, Wire)>, CheckError> {
    let mut last = None;
    for server in &dialer.url.servers {
        let wire = match dialer.server(server).await {
            Ok(wire) => wire,
            Err(fault) => {
                last = Some(fault);
                continue;
            }
        };
        let mut asked = Asked::new(server, wire, dialer);
        let info = asked.info().await?;
        if info.get("cluster_enabled") != Some("1") {
            return Err(CheckError::NoCluster {
                address: server.to_string(),
                url: address_like(&dialer.url, "", &server.to_string(), ""),
            });
        }
        let mut primaries = Vec::new();
        for primary in asked.cluster_primaries().await? {
            let wire = dialer.server(&primary).await.map_err(unreachable)?;
            primaries.push((primary, wire));
        }
        return Ok(primaries);
    }
    Err(unreachable(last.unwrap_or(Fault::GivenUp)).into())
}

/// The address that fits these servers, with the credentials left out.
fn address_like(url: &LedgerUrl, kind: &str, servers: &str, path: &str) -> String {
    let scheme = if url.tls { "rediss" } else { "redis" };
    let login = match (&url.user, &url.password) {
        (Some(_), _) => "USER:PASSWORD@",
        (None, Some(_)) => ":PASSWORD@",
        (None, None) => "",
    };
    format!("{scheme}{kind}://{login}{servers}{path}")
}

/// The lines of INFO.
struct Info(String);

impl Info {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key == name).then(|| value.trim())
        })
    }

    /// The replicas that have a whole copy, from lines such as
    /// `slave0:ip=10.0.0.2,port=6379,state=online,offset=14,lag=1`.
    fn online_replicas(&self) -> u32 {
        let replicas = self.0.lines().filter(|line| line.starts_with("slave"));
        replicas
            .filter(|line| line.contains(",state=online"))
            .count() as u32
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.get(name)?.parse().ok()
    }
}

/// A server that is asked about itself.
struct Asked<'a> {
    address: String,
    wire: Wire,
    dialer: &'a Dialer,
}

impl<'a> Asked<'a> {
    fn new(server: &Server, wire: Wire, dialer: &'a Dialer) -> Self {
        Self {
            address: server.to_string(),
            wire,
            dialer,
        }
    }

    async fn look(mut self, replicas_min: u32) -> Result<ServerReport, CheckError> {
        let info = self.info().await?;
        self.check_kind(&info).await?;
        let version = info.get("redis_version").unwrap_or_default().to_owned();
        let address = self.address.clone();
        if !at_least_7(&version) {
            return Err(CheckError::TooOld { address, version });
        }
        let policy = match self.setting("maxmemory-policy").await? {
            Some(policy) => policy,
            None => info
                .get("maxmemory_policy")
                .ok_or_else(|| LedgerError::Broken("INFO has no maxmemory_policy".to_owned()))?
                .to_owned(),
        };
        if policy != "noeviction" {
            return Err(CheckError::Evicts { address, policy });
        }
        if info.get("role") == Some("slave") {
            let primary = Server {
                host: info.get("master_host").unwrap_or("PRIMARY").to_owned(),
                port: info.number("master_port").unwrap_or(6379),
            };
            let url = &self.dialer.url;
            let path = match url.database {
                0 => String::new(),
                database => format!("/{database}"),
            };
            let url = address_like(url, "", &primary.to_string(), &path);
            return Err(CheckError::Replica { address, url });
        }
        let replicas = info.online_replicas();
        if replicas < replicas_min {
            return Err(CheckError::TooFewReplicas {
                address,
                has: replicas,
                wanted: replicas_min,
            });
        }
        let min_replicas = self.setting("min-replicas-to-write").await?;
        Ok(ServerReport {
            address,
            persistence: self.persistence(&info).await?,
            clock_ahead_ms: self.clock_ahead_ms().await?,
            version: match info.get("valkey_version") {
                Some(valkey) => format!("Valkey {valkey}"),
                None => version,
            },
            policy,
            used_memory: info.number("used_memory").unwrap_or(0),
            maxmemory: info.number("maxmemory").filter(|bytes| *bytes > 0),
            replicas,
            min_replicas_to_write: min_replicas.and_then(|value| value.parse().ok()),
        })
    }

    /// Refuses a server of another kind than the address says, with the address that fits.
    async fn check_kind(&mut self, info: &Info) -> Result<(), CheckError> {
        let url = &self.dialer.url;
        let address = self.address.clone();
        if info.get("redis_mode") == Some("sentinel") {
            let names = sentinel::names(&mut self.wire).await;
            let name = names.first().map_or("NAME", String::as_str);
            let path = format!("/{name}/{}", url.database);
            let url = address_like(url, "+sentinel", &address, &path);
            return Err(CheckError::Sentinel { address, url });
        }
        let is_node = info.get("cluster_enabled") == Some("1");
        if is_node && url.deployment != Deployment::Cluster {
            let nodes = self.cluster_primaries().await.unwrap_or_default();
            let mut nodes: Vec<_> = nodes.iter().map(ToString::to_string).collect();
            if nodes.is_empty() {
                nodes.push(address.clone());
            }
            let url = address_like(url, "+cluster", &nodes.join(","), "");
            return Err(CheckError::ClusterNode { address, url });
        }
        Ok(())
    }

    async fn info(&mut self) -> Result<Info, LedgerError> {
        let mut cmd = redis::cmd("INFO");
        cmd.arg("default");
        let text = self.wire.command(&cmd).await;
        let text = text.map_err(|error| ledger_error(&self.address, error))?;
        super::text(text).map(Info)
    }

    /// The primaries of the cluster that this node belongs to.
    async fn cluster_primaries(&mut self) -> Result<BTreeSet<Server>, LedgerError> {
        let mut cmd = redis::cmd("CLUSTER");
        cmd.arg("SLOTS");
        let reply = self.wire.command(&cmd).await;
        let reply = reply.map_err(|error| ledger_error(&self.address, error))?;
        let Value::Array(ranges) = reply else {
            return Err(super::broken("CLUSTER SLOTS gives no list"));
        };
        // A range is its first slot, its last slot, its primary, and its replicas.
        let primary = |range: &Value| match range {
            Value::Array(range) => range.get(2).and_then(node),
            _ => None,
        };
        Ok(ranges.iter().filter_map(primary).collect())
    }

    async fn persistence(&mut self, info: &Info) -> Result<Persistence, LedgerError> {
        if info.get("aof_enabled") == Some("1") {
            let fsync = self.setting("appendfsync").await?;
            return Ok(Persistence::AppendOnly { fsync });
        }
        Ok(match self.setting("save").await?.as_deref() {
            Some("") => Persistence::None,
            Some(_) => Persistence::Snapshots,
            None => Persistence::Unknown,
        })
    }

    async fn clock_ahead_ms(&mut self) -> Result<i64, LedgerError> {
        let (asked, started) = (now_ms(), Instant::now());
        let reply = self.wire.command(&redis::cmd("TIME")).await;
        let reply = reply.map_err(|error| ledger_error(&self.address, error))?;
        let (seconds, micros): (u64, u64) =
            redis::from_redis_value(reply).map_err(super::broken)?;
        let theirs = seconds * 1000 + micros / 1000;
        let ours = asked + started.elapsed().as_millis() as u64 / 2;
        Ok(theirs.cast_signed() - ours.cast_signed())
    }

    /// One configuration setting; `None` where CONFIG is forbidden, as on managed servers.
    async fn setting(&mut self, name: &str) -> Result<Option<String>, LedgerError> {
        let mut cmd = redis::cmd("CONFIG");
        cmd.arg("GET").arg(name);
        let value = match self.wire.command(&cmd).await {
            Ok(value) => value,
            Err(error) if is_refusal(&error) => return Ok(None),
            Err(error) => return Err(ledger_error(&self.address, error)),
        };
        let pairs: Option<Vec<(String, String)>> = redis::from_redis_value(value).ok();
        let first = pairs.and_then(|pairs| pairs.into_iter().next());
        Ok(first.map(|(_, value)| value))
    }
}

/// A node in the reply to CLUSTER SLOTS: its address, its port, its id.
fn node(value: &Value) -> Option<Server> {
    let Value::Array(parts) = value else {
        return None;
    };
    let host: String = redis::from_redis_value(parts.first()?.clone()).ok()?;
    let port = redis::from_redis_value(parts.get(1)?.clone()).ok()?;
    (!host.is_empty()).then_some(Server { host, port })
}

fn is_refusal(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension) && !super::outlived(error)
}

fn at_least_7(version: &str) -> bool {
    let major = version.split('.').next();
    major
        .and_then(|major| major.parse::<u32>().ok())
        .is_some_and(|major| major >= 7)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(at_least_7("7.0.15"));
        assert!(at_least_7("10.1"));
        assert!(!at_least_7("6.2.14"));
        assert!(!at_least_7(""));
    }

    #[test]
    fn only_replicas_with_a_whole_copy_count() {
        let info = Info(
            "role:master\r\nconnected_slaves:2\r\n\
             slave0:ip=127.0.0.1,port=1,state=online,offset=14,lag=1\r\n\
             slave1:ip=127.0.0.1,port=2,state=wait_bgsave,offset=0,lag=0\r\n"
                .to_owned(),
        );
        assert_eq!(info.online_replicas(), 1);
        assert_eq!(info.get("role"), Some("master"));
    }

    #[test]
    fn the_address_that_fits_has_no_password() {
        let url: LedgerUrl = "rediss://ann:secret@a:1/0".parse().unwrap();
        let fits = address_like(&url, "+cluster", "a:1,b:2", "");
        assert_eq!(fits, "rediss+cluster://USER:PASSWORD@a:1,b:2");
        let url: LedgerUrl = "redis://a:1/3".parse().unwrap();
        let fits = address_like(&url, "+sentinel", "a:1", "/main/3");
        assert_eq!(fits, "redis+sentinel://a:1/main/3");
    }
}
