//! Keeps one connection to Redis, and replaces it when it breaks.
//!
//! The connection manager of the `redis` crate multiplexes all calls over one socket and reconnects
//! when it breaks. This module adds three things. Every call has a deadline, so that no caller
//! hangs in the manager's rounds of retries. A server that answers "I am a replica now" or "I am
//! loading" over a healthy socket, or that does not answer at all, is left for a fresh connection.
//! Errors become those that the ledger's callers know.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, IntoConnectionInfo, Pipeline, RedisError,
    Script, ServerErrorKind, ToRedisArgs, Value,
};
use tokio::time::timeout;

use super::Settings;
use crate::ports::LedgerError;

/// Longest pause between two attempts to connect.
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(1);

pub(super) struct Connection {
    address: String,
    client: Client,
    config: ConnectionManagerConfig,
    deadline: Duration,
    /// For a single connection, outside the manager.
    once: AsyncConnectionConfig,
    /// How long to wait for the answer to one command.
    patience: Duration,
    current: Mutex<Current>,
    /// A time of the server's clock, in ms since 1970, and when it arrived.
    clock: Mutex<Option<(u64, Instant)>>,
}

/// The manager in use. The generation keeps late errors of an old manager from replacing a new one.
#[derive(Clone)]
struct Current {
    generation: u64,
    manager: ConnectionManager,
}

/// The URL of the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the ledger's URL cannot be used")]
pub struct OpenError(#[source] RedisError);

/// No answer arrived in time; the command may have been carried out.
#[derive(Debug, thiserror::Error)]
#[error("{address}: no answer within {patience:?}")]
struct NoAnswer {
    address: String,
    patience: Duration,
}

/// The error of the server at an address, or why it cannot be reached.
#[derive(Debug, thiserror::Error)]
#[error("{address}: {source}{advice}")]
struct Said {
    address: String,
    source: RedisError,
    advice: &'static str,
}

/// A script with the keys and arguments of one call.
pub(super) struct Call<'a> {
    script: &'a Script,
    cmd: Cmd,
}

impl<'a> Call<'a> {
    /// `bytes`: the expected size of keys and arguments.
    pub(super) fn new(script: &'a Script, keys: usize, args: usize, bytes: usize) -> Self {
        let mut cmd = Cmd::with_capacity(3 + keys + args, 64 + bytes);
        cmd.arg("EVALSHA").arg(script.get_hash()).arg(keys);
        Self { script, cmd }
    }

    /// Adds the next key or, after all keys, the next argument.
    pub(super) fn push(&mut self, arg: impl ToRedisArgs) -> &mut Self {
        self.cmd.arg(arg);
        self
    }
}

impl Connection {
    pub(super) fn open(settings: &Settings) -> Result<Self, OpenError> {
        let info = settings
            .url
            .as_str()
            .into_connection_info()
            .map_err(OpenError)?
            // A command is one small packet; waiting to fill it costs up to 40 ms.
            .set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let address = info.addr().to_string();
        let client = Client::open(info).map_err(OpenError)?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(settings.connect_timeout))
            .set_response_timeout(Some(settings.response_timeout))
            .set_max_delay(RECONNECT_DELAY_MAX);
        let once = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(settings.connect_timeout))
            .set_response_timeout(Some(settings.response_timeout));
        let manager = ConnectionManager::new_lazy_with_config(client.clone(), config.clone())
            .map_err(OpenError)?;
        Ok(Self {
            address,
            once,
            client,
            config,
            deadline: settings.deadline,
            patience: settings.response_timeout.min(settings.deadline),
            current: Mutex::new(Current {
                generation: 0,
                manager,
            }),
            clock: Mutex::new(None),
        })
    }

    /// Until when to wait for the answer to a command that is sent now, in ms of the server's
    /// clock; 0 while that clock is not known. It is never too late, since the last known time was
    /// already past when it arrived.
    pub(super) fn answer_due_ms(&self) -> u64 {
        let clock = *self.clock.lock();
        clock.map_or(0, |(ms, heard)| {
            ms + (heard.elapsed() + self.patience).as_millis() as u64
        })
    }

    /// Notes a time that the server has just sent.
    pub(super) fn note_time(&self, ms: u64) {
        let mut clock = self.clock.lock();
        *clock = Some((ms, Instant::now()));
    }

    /// Runs a script, loading it first if the server does not know it.
    pub(super) async fn call(&self, call: &Call<'_>) -> Result<Value, LedgerError> {
        self.run(async |manager| match answer(manager, &call.cmd).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                call.script.load_async(manager).await?;
                answer(manager, &call.cmd).await
            }
            answer => answer,
        })
        .await
    }

    pub(super) async fn command(&self, cmd: &Cmd) -> Result<Value, LedgerError> {
        self.run(async |manager| answer(manager, cmd).await).await
    }

    /// Runs commands in one round trip, not as one step.
    pub(super) async fn pipeline(&self, pipeline: &Pipeline) -> Result<Vec<Value>, LedgerError> {
        self.run(async |manager| pipeline.query_async(manager).await)
            .await
    }

    async fn run<T>(
        &self,
        call: impl AsyncFnOnce(&mut ConnectionManager) -> Result<T, RedisError>,
    ) -> Result<T, LedgerError> {
        let Current {
            generation,
            mut manager,
        } = self.current();
        match timeout(self.deadline, call(&mut manager)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                if outlived(&error) {
                    self.replace(generation);
                }
                Err(self.ledger_error(error))
            }
            // The manager is still connecting, or the server hangs: in both cases it stays in use.
            Err(_) => Err(self.no_answer()),
        }
    }

    fn no_answer(&self) -> LedgerError {
        LedgerError::Unreachable(Box::new(NoAnswer {
            address: self.address.clone(),
            patience: self.deadline,
        }))
    }

    fn ledger_error(&self, error: RedisError) -> LedgerError {
        // A single record makes no sense; that is no fault of the server.
        if error.code() == Some("WRONGTYPE") || error.to_string().contains("user_script") {
            return broken(error);
        }
        let full = error.code() == Some("OOM");
        let said = Box::new(Said {
            address: self.address.clone(),
            advice: advice(&error),
            source: error,
        });
        match full {
            true => LedgerError::Full(said),
            false => LedgerError::Unreachable(said),
        }
    }

    /// Connects once, to get the error: the manager tries again by itself and reports none.
    async fn connect(&self) -> Result<(), LedgerError> {
        let connect = self
            .client
            .get_multiplexed_async_connection_with_config(&self.once);
        match timeout(self.deadline, connect).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.ledger_error(error)),
            Err(_) => Err(self.no_answer()),
        }
    }

    fn current(&self) -> Current {
        self.current.lock().clone()
    }

    /// Starts a fresh connection, unless another caller did already.
    fn replace(&self, generation: u64) {
        let mut current = self.current.lock();
        if current.generation != generation {
            return;
        }
        if let Ok(manager) =
            ConnectionManager::new_lazy_with_config(self.client.clone(), self.config.clone())
        {
            *current = Current {
                generation: generation + 1,
                manager,
            };
        }
    }

    pub(super) async fn check(&self) -> Result<Report, CheckError> {
        self.connect().await?;
        let info = text(self.command(redis::cmd("INFO").arg("default")).await?)?;
        let field = |name: &str| {
            info.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                (key == name).then(|| value.trim().to_owned())
            })
        };
        let number = |name: &str| field(name).and_then(|value| value.parse().ok());
        let version = field("redis_version").unwrap_or_default();
        if !at_least_7(&version) {
            return Err(CheckError::TooOld {
                address: self.address.clone(),
                version,
            });
        }
        if field("cluster_enabled").as_deref() == Some("1") {
            return Err(CheckError::Cluster {
                address: self.address.clone(),
            });
        }
        let policy = match self.setting("maxmemory-policy").await? {
            Some(policy) => policy,
            None => field("maxmemory_policy")
                .ok_or_else(|| LedgerError::Broken("INFO has no maxmemory_policy".to_owned()))?,
        };
        if policy != "noeviction" {
            return Err(CheckError::Evicts {
                address: self.address.clone(),
                policy,
            });
        }
        if field("role").as_deref() == Some("slave") {
            return Err(CheckError::Replica {
                address: self.address.clone(),
            });
        }
        let persistence = if field("aof_enabled").as_deref() == Some("1") {
            Persistence::AppendOnly {
                fsync: self.setting("appendfsync").await?,
            }
        } else {
            match self.setting("save").await?.as_deref() {
                Some("") => Persistence::None,
                Some(_) => Persistence::Snapshots,
                None => Persistence::Unknown,
            }
        };
        Ok(Report {
            address: self.address.clone(),
            version: field("valkey_version").map_or(version, |valkey| format!("Valkey {valkey}")),
            policy,
            persistence,
            used_memory: number("used_memory").unwrap_or(0),
            maxmemory: number("maxmemory").filter(|bytes| *bytes > 0),
        })
    }

    /// One configuration setting; `None` where CONFIG is forbidden, as on managed servers.
    async fn setting(&self, name: &str) -> Result<Option<String>, LedgerError> {
        let mut cmd = redis::cmd("CONFIG");
        cmd.arg("GET").arg(name);
        let asked = self
            .run(async |manager| match answer(manager, &cmd).await {
                Err(error)
                    if matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension) =>
                {
                    if outlived(&error) {
                        Err(error)
                    } else {
                        Ok(None)
                    }
                }
                answer => answer.map(Some),
            })
            .await?;
        Ok(asked
            .and_then(|value| redis::from_redis_value::<Vec<(String, String)>>(value).ok())
            .and_then(|pairs| pairs.into_iter().next())
            .map(|(_, value)| value))
    }
}

/// The result of `check` for a server that is fit.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    pub address: String,
    pub version: String,
    pub policy: String,
    pub persistence: Persistence,
    /// In bytes.
    pub used_memory: u64,
    /// In bytes; `None` means no limit but the machine's.
    pub maxmemory: Option<u64>,
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

/// The server is not fit to hold a ledger.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error(
        "the Redis at {address} may evict the ledger's keys: its maxmemory-policy is {policy}. \
         Run `redis-cli CONFIG SET maxmemory-policy noeviction` and set it in redis.conf"
    )]
    Evicts { address: String, policy: String },
    #[error("the Redis at {address} is version {version}; 7.0 or later is needed")]
    TooOld { address: String, version: String },
    #[error("the Redis at {address} is a read-only replica; give the address of the primary")]
    Replica { address: String },
    #[error(
        "the Redis at {address} is a node of a Redis Cluster, which is not supported: the keys of \
         a ledger would be on several nodes. Give the address of a Redis that is not a cluster"
    )]
    Cluster { address: String },
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl CheckError {
    /// The server answered, and its answer rules it out.
    pub fn is_unfit(&self) -> bool {
        !matches!(self, Self::Ledger(_))
    }
}

/// Sends one command; an error reply of the server becomes an error.
async fn answer(manager: &mut ConnectionManager, cmd: &Cmd) -> Result<Value, RedisError> {
    manager.req_packed_command(cmd).await?.extract_error()
}

/// The socket works but is of no use: another server is the primary now, this one is not ready, or
/// it is gone and the kernel has not noticed.
fn outlived(error: &RedisError) -> bool {
    error.is_timeout()
        || error.code() == Some("UNBLOCKED")
        || matches!(
            error.kind(),
            ErrorKind::Server(
                ServerErrorKind::ReadOnly
                    | ServerErrorKind::BusyLoading
                    | ServerErrorKind::MasterDown
            )
        )
}

/// Advice for an error, where the server's text does not say enough.
fn advice(error: &RedisError) -> &'static str {
    match (error.kind(), error.code()) {
        (ErrorKind::AuthenticationFailed, _) | (_, Some("WRONGPASS" | "NOAUTH")) => {
            ". Check user and password in ledger.url; special characters must be percent-encoded"
        }
        (ErrorKind::InvalidClientConfig, _) => ". Check ledger.url",
        (_, Some("MOVED" | "ASK" | "CLUSTERDOWN" | "CROSSSLOT")) => {
            ". It is a node of a Redis Cluster, which is not supported; give the address of a \
             Redis that is not a cluster"
        }
        (_, Some("READONLY")) => ". It is a read-only replica; give the address of the primary",
        (_, Some("OOM")) => ". Raise maxmemory, or give the machine more memory",
        (_, Some("NOPERM")) => {
            ". Give the user in ledger.url all commands on the keys of ledger.prefix"
        }
        (ErrorKind::Io, _) => ". Check host and port in ledger.url, and whether Redis runs there",
        // This error has no code of its own.
        _ if error.detail().is_some_and(|it| it.contains("DB index")) => {
            ". Check the number of the database in ledger.url"
        }
        _ => "",
    }
}

pub(super) fn broken(error: impl std::fmt::Display) -> LedgerError {
    LedgerError::Broken(error.to_string())
}

pub(super) fn text(value: Value) -> Result<String, LedgerError> {
    redis::from_redis_value(value).map_err(broken)
}

/// A record as it is stored.
pub(super) fn json(record: &impl serde::Serialize) -> Result<String, LedgerError> {
    serde_json::to_string(record).map_err(broken)
}

fn at_least_7(version: &str) -> bool {
    version
        .split('.')
        .next()
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

    #[tokio::test]
    async fn a_bad_url_is_told_without_its_password() {
        let error = Connection::open(&Settings::new("http://u:secret@host"))
            .err()
            .unwrap();
        assert!(!format!("{error:?}").contains("secret"));
        let good = Connection::open(&Settings::new("redis://u:secret@host:7000/1")).unwrap();
        assert_eq!(good.address, "host:7000");
    }
}
