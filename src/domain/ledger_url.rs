//! Reads the address of the ledger: one Redis, Redis behind Sentinels, or a Redis Cluster.
//!
//! | address | means |
//! |---|---|
//! | `redis://user:password@host:6379/0` | one server; the number is the database |
//! | `redis+sentinel://user:password@host:26379,host2:26379/NAME/0` | the server that these Sentinels call the primary of NAME |
//! | `redis+cluster://user:password@host:6379,host2:6379` | the cluster that these nodes belong to |
//!
//! With `rediss` instead of `redis`, every connection uses TLS. User and password are those of the
//! Redis servers.

use std::fmt;

use percent_encoding::percent_decode_str;

/// The port of a server, and of a Sentinel, if the address names none.
const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// Where the ledger is.
#[derive(Clone, PartialEq, Eq)]
pub struct LedgerUrl {
    pub deployment: Deployment,
    pub tls: bool,
    pub user: Option<String>,
    pub password: Option<String>,
    /// The server, the Sentinels, or some nodes of the cluster; at least one.
    pub servers: Vec<Server>,
    pub database: u32,
}

/// How the servers of the ledger work together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deployment {
    One,
    /// Sentinels know the primary by this name.
    Sentinel {
        primary: String,
    },
    Cluster,
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Server {
    pub host: String,
    pub port: u16,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// Without user and password.
impl fmt::Display for LedgerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers: Vec<_> = self.servers.iter().map(ToString::to_string).collect();
        f.write_str(&servers.join(","))
    }
}

/// Without the password.
impl fmt::Debug for LedgerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LedgerUrl")
            .field("deployment", &self.deployment)
            .field("servers", &self.to_string())
            .finish_non_exhaustive()
    }
}

/// What is wrong with an address. It does not repeat the address, which may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadLedgerUrl(String);

fn bad<T>(what: impl Into<String>) -> Result<T, BadLedgerUrl> {
    Err(BadLedgerUrl(what.into()))
}

/// The schemes that begin an address.
const SCHEMES: [(&str, Kind, bool); 6] = [
    ("redis", Kind::One, false),
    ("rediss", Kind::One, true),
    ("redis+sentinel", Kind::Sentinel, false),
    ("rediss+sentinel", Kind::Sentinel, true),
    ("redis+cluster", Kind::Cluster, false),
    ("rediss+cluster", Kind::Cluster, true),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    One,
    Sentinel,
    Cluster,
}

impl std::str::FromStr for LedgerUrl {
    type Err = BadLedgerUrl;

    fn from_str(url: &str) -> Result<Self, BadLedgerUrl> {
        let named = url
            .split_once("://")
            .and_then(|(scheme, rest)| Some((SCHEMES.iter().find(|it| it.0 == scheme)?, rest)));
        let Some(((_, kind, tls), rest)) = named else {
            return bad(
                "an address that begins with redis://, redis+sentinel:// or redis+cluster:// is \
                 expected, or with rediss for TLS",
            );
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        // Earlier versions took a protocol here; there is one that fits.
        if !query.is_empty() && !query.starts_with("protocol=") {
            return bad("nothing is expected after a ?");
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if path.contains('@') {
            return bad("special characters in user and password must be percent-encoded");
        }
        let (login, hosts) = match authority.rsplit_once('@') {
            Some((login, hosts)) => (login, hosts),
            None => ("", authority),
        };
        let (user, password) = match login.split_once(':') {
            Some((user, password)) => (text(user)?, text(password)?),
            None => (text(login)?, None),
        };
        if user.is_some() && password.is_none() {
            return bad("a user needs a password: USER:PASSWORD@HOST, or :PASSWORD@HOST");
        }
        let (deployment, database) = read_path(*kind, path)?;
        Ok(Self {
            deployment,
            tls: *tls,
            user,
            password,
            servers: read_servers(*kind, hosts)?,
            database,
        })
    }
}

/// A part of an address in plain text; none if it is empty.
fn text(part: &str) -> Result<Option<String>, BadLedgerUrl> {
    if part.is_empty() {
        return Ok(None);
    }
    match percent_decode_str(part).decode_utf8() {
        Ok(text) => Ok(Some(text.into_owned())),
        Err(_) => bad("user and password are not UTF-8 once they are percent-decoded"),
    }
}

fn read_servers(kind: Kind, hosts: &str) -> Result<Vec<Server>, BadLedgerUrl> {
    if kind == Kind::One && hosts.contains(',') {
        return bad(format!(
            "{hosts:?} names several servers, and redis:// is for one server, as HOST or HOST:PORT. \
             For several, redis+sentinel://HOST,HOST/NAME is for Sentinels, and \
             redis+cluster://HOST,HOST for a cluster"
        ));
    }
    let port = match kind {
        Kind::Sentinel => SENTINEL_PORT,
        Kind::One | Kind::Cluster => PORT,
    };
    hosts
        .split(',')
        .map(|host| read_server(host, port))
        .collect()
}

fn read_server(server: &str, default: u16) -> Result<Server, BadLedgerUrl> {
    let (host, port) = match server.strip_prefix('[').and_then(|it| it.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => match server.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (server, None),
        },
    };
    if host.is_empty() || host.contains(char::is_whitespace) {
        return bad(format!(
            "{host:?} is not the name of a host; HOST or HOST:PORT is expected"
        ));
    }
    match port.map(str::parse) {
        None => Ok(default),
        Some(Ok(port)) => Ok(port),
        Some(Err(_)) => bad(format!(
            "{:?} is not a port; HOST or HOST:PORT is expected",
            port.unwrap_or_default()
        )),
    }
    .map(|port| Server {
        host: host.to_owned(),
        port,
    })
}

/// The path: the name of the primary, where there are Sentinels, and the database.
fn read_path(kind: Kind, path: &str) -> Result<(Deployment, u32), BadLedgerUrl> {
    let path = path.trim_end_matches('/');
    let (deployment, database) = match kind {
        Kind::One => (Deployment::One, path),
        Kind::Cluster => (Deployment::Cluster, path),
        Kind::Sentinel => {
            let (primary, database) = path.split_once('/').unwrap_or((path, ""));
            if primary.is_empty() {
                return bad(
                    "the name by which the Sentinels know the primary is missing: \
                     redis+sentinel://HOST,HOST/NAME/0",
                );
            }
            let primary = text(primary)?.unwrap_or_default();
            (Deployment::Sentinel { primary }, database)
        }
    };
    let database = match database {
        "" => 0,
        digits => match digits.parse() {
            Ok(database) => database,
            Err(_) => return bad(format!("{digits:?} is not the number of a database")),
        },
    };
    if deployment == Deployment::Cluster && database != 0 {
        return bad("a Redis Cluster has database 0 and no other");
    }
    Ok((deployment, database))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(host: &str, port: u16) -> Server {
        Server {
            host: host.to_owned(),
            port,
        }
    }

    #[test]
    fn addresses_name_servers_credentials_and_database() {
        let url: LedgerUrl = "rediss://ann:p%40ss@redis.internal:7000/3".parse().unwrap();
        assert_eq!(url.deployment, Deployment::One);
        assert!(url.tls);
        assert_eq!(url.user.as_deref(), Some("ann"));
        assert_eq!(url.password.as_deref(), Some("p@ss"));
        assert_eq!(url.servers, [server("redis.internal", 7000)]);
        assert_eq!(url.database, 3);
        assert!(!format!("{url:?} {url}").contains("p@ss"));

        let url: LedgerUrl = "redis+sentinel://:pw@a,b:1/my%20primary/2".parse().unwrap();
        let primary = "my primary".to_owned();
        assert_eq!(url.deployment, Deployment::Sentinel { primary });
        assert_eq!(url.servers, [server("a", SENTINEL_PORT), server("b", 1)]);
        assert_eq!((url.user, url.database), (None, 2));

        let url: LedgerUrl = "redis+cluster://[2001:db8::1]:7001,b/".parse().unwrap();
        assert_eq!(url.deployment, Deployment::Cluster);
        assert_eq!(url.to_string(), "[2001:db8::1]:7001,b:6379");
        for plain in [
            "redis://h",
            "redis://h/",
            "redis://h/0",
            "redis://h/?protocol=resp3",
        ] {
            let url: LedgerUrl = plain.parse().unwrap();
            assert_eq!((url.database, url.tls), (0, false), "{plain}");
        }
    }

    #[test]
    fn a_bad_address_is_told_without_its_password() {
        for (url, said) in [
            ("http://u:secret@h", "begins with redis://"),
            ("redis:u:secret@h", "begins with redis://"),
            ("redis://u:secret@a,b/0", "redis+sentinel://"),
            ("redis://u:secret@h:x/0", "not a port"),
            ("redis://u:secret@h/x", "number of a database"),
            ("redis://u:secret@/0", "not the name of a host"),
            ("redis://u:sec/ret@h", "percent-encoded"),
            ("redis://u@h", "a user needs a password"),
            ("redis://u:secret@h/0?timeout=5", "after a ?"),
            (
                "redis+sentinel://u:secret@a,b",
                "name by which the Sentinels",
            ),
            ("redis+cluster://u:secret@a,b/1", "database 0"),
        ] {
            let error = url.parse::<LedgerUrl>().unwrap_err().to_string();
            assert!(error.contains(said), "{url}: {error}");
            assert!(!error.contains("secret"), "{url}: {error}");
        }
    }
}
