//! Asks Sentinels which server is the primary, and notices when that changes.

use parking_lot::Mutex;
use redis::{RedisConnectionInfo, RedisError, Value};

use super::dial::Dialer;
use super::fault::Fault;
use super::link::Wire;
use crate::domain::ledger_url::Server;
use crate::error::chain;
use crate::store::Login;

/// The Sentinels of one primary.
pub(super) struct Sentinels {
    pub(super) primary: String,
    /// The one that answered last comes first.
    servers: Mutex<Vec<Server>>,
    login: RedisConnectionInfo,
}

impl Sentinels {
    pub(super) fn new(primary: &str, servers: &[Server], login: Option<&Login>) -> Self {
        let mut info = RedisConnectionInfo::default();
        if let Some(login) = login {
            if let Some(user) = &login.user {
                info = info.set_username(user);
            }
            info = info.set_password(login.password.expose());
        }
        Self {
            primary: primary.to_owned(),
            servers: Mutex::new(servers.to_vec()),
            login: info,
        }
    }

    /// Connects to the primary. A server that the Sentinels name is used only if it says itself
    /// that it is a primary: one that was demoted may still answer.
    pub(super) async fn primary(&self, dialer: &Dialer) -> Result<(Server, Wire), Fault> {
        let (server, _) = self.ask(dialer).await?;
        let mut wire = dialer.server(&server).await?;
        let role = wire.command(&redis::cmd("ROLE")).await;
        let role = role.map_err(|error| Fault::said(&server.to_string(), error))?;
        match first_word(&role) {
            Some("master") => Ok((server, wire)),
            role => Err(Fault::NotPrimary {
                address: server.to_string(),
                primary: self.primary.clone(),
                role: match role {
                    Some("slave") => "replica".to_owned(),
                    role => role.unwrap_or("server of an unknown kind").to_owned(),
                },
            }),
        }
    }

    /// The address of the primary, and the connection to the Sentinel that named it.
    pub(super) async fn ask(&self, dialer: &Dialer) -> Result<(Server, Wire), Fault> {
        let servers = self.servers.lock().clone();
        let mut tried = Vec::new();
        let mut unknown = None;
        for sentinel in &servers {
            let answer = match dialer.connect(sentinel, &self.login).await {
                Ok(wire) => self.ask_one(sentinel, wire).await,
                Err(fault) => Err(fault),
            };
            match answer {
                Ok(answer) => {
                    self.prefer(sentinel);
                    return Ok(answer);
                }
                // Another Sentinel may know the name.
                Err(fault @ Fault::UnknownPrimary { .. }) => unknown = Some(fault),
                Err(fault) => tried.push(chain(&fault)),
            }
        }
        Err(unknown.unwrap_or_else(|| Fault::NoSentinel {
            tried: tried.join("; "),
        }))
    }

    async fn ask_one(&self, sentinel: &Server, mut wire: Wire) -> Result<(Server, Wire), Fault> {
        let address = sentinel.to_string();
        match self.look_up(&mut wire).await {
            Ok(Some(server)) => Ok((server, wire)),
            Ok(None) => Err(Fault::UnknownPrimary {
                known: known(&mut wire).await,
                primary: self.primary.clone(),
                address,
            }),
            Err(error) if is_unknown_command(&error) => Err(Fault::Tls {
                address,
                what:
                    "this server is no Sentinel. Give the addresses of the Sentinels (port 26379), \
                       or for one Redis without Sentinels an address that begins with redis://"
                        .to_owned(),
            }),
            Err(error) => Err(Fault::said(&address, error)),
        }
    }

    /// The address of the primary as a Sentinel knows it; none if it does not know the name.
    pub(super) async fn look_up(&self, wire: &mut Wire) -> Result<Option<Server>, RedisError> {
        let mut cmd = redis::cmd("SENTINEL");
        cmd.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.primary);
        let reply = wire.command(&cmd).await?;
        let found: Option<(String, u16)> = redis::from_redis_value(reply)?;
        Ok(found.map(|(host, port)| Server { host, port }))
    }

    fn prefer(&self, sentinel: &Server) {
        let mut servers = self.servers.lock();
        if let Some(at) = servers.iter().position(|it| it == sentinel) {
            servers[..=at].rotate_right(1);
        }
    }
}

fn is_unknown_command(error: &RedisError) -> bool {
    error.to_string().contains("unknown command")
}

/// The names that a Sentinel knows, as a part of a sentence.
async fn known(wire: &mut Wire) -> String {
    match names(wire).await {
        names if names.is_empty() => String::new(),
        names => format!("; it knows {}", names.join(", ")),
    }
}

/// The names of the primaries that a Sentinel watches.
pub(super) async fn names(wire: &mut Wire) -> Vec<String> {
    let mut cmd = redis::cmd("SENTINEL");
    cmd.arg("MASTERS");
    let Ok(Value::Array(primaries)) = wire.command(&cmd).await else {
        return Vec::new();
    };
    let name = |fields: Value| {
        let fields: Vec<(String, String)> = redis::from_redis_value(fields).ok()?;
        let name = fields.into_iter().find(|(field, _)| field == "name");
        name.map(|(_, name)| name)
    };
    primaries.into_iter().filter_map(name).collect()
}

fn first_word(reply: &Value) -> Option<&str> {
    let Value::Array(parts) = reply else {
        return None;
    };
    match parts.first()? {
        Value::BulkString(word) => std::str::from_utf8(word).ok(),
        Value::SimpleString(word) => Some(word),
        _ => None,
    }
}
