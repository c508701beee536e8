//! Reads `[broker]` and `[ledger]`: the servers of the engine, and TLS to any server.

use std::time::Duration;

use super::reader::{Findings, Section};
use super::sections::check_name;
use super::{HOUR, MINUTE, SECOND};
use crate::domain::ledger_url::{Deployment, LedgerUrl};
use crate::secret::Secret;
use crate::tls::TlsSettings;

/// `[broker]`: RabbitMQ 3.10 or newer.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// `url` or `url_file`: `amqp://user:password@host:5672/vhost`, or `amqps://`. Without user and
    /// with a certificate: the user of the certificate. Without it, the first of `urls`.
    pub url: Option<Secret>,
    /// `urls`: further nodes of the same cluster; with `url` among them. Each connection tries all
    /// of them in random order.
    pub urls: Vec<Secret>,
    /// `ca_file`, `certificate`, `key`, `server_name`: TLS, if the address asks for it.
    pub tls: TlsSettings,
    /// `namespace`: prefix of every exchange and queue. Default `fanwise`.
    pub namespace: String,
    /// `declare`: declare exchanges and queues at start. Set it to false where only an operator may
    /// do so, with `fanwise topology apply`. Default true.
    pub declare: bool,
    /// `heartbeat`: Fanwise gives up a connection that is silent for twice this. Default 10s; 1s to
    /// 60s.
    pub heartbeat: Duration,
    /// `confirm_timeout`: longest wait for the broker's confirm of a publish. Default 10s; 1s to
    /// 2m.
    pub confirm_timeout: Duration,
    /// `consumer_timeout`: how long the broker waits for the ack of a delivery, which is its own
    /// setting of this name. No delivery comes near it. Default 30m; 1m to 24h.
    pub consumer_timeout: Duration,
}

/// `[ledger]`: Redis 7.0 or newer, or Valkey, with `maxmemory-policy noeviction`.
#[derive(Clone, Debug)]
pub struct LedgerConfig {
    /// `url` or `url_file`: one server, Sentinels or a cluster, as [`crate::domain::ledger_url`]
    /// says.
    pub url: Option<Secret>,
    /// `ca_file`, `certificate`, `key`, `server_name`: TLS, if the address asks for it. A cluster
    /// has a name for each node, so `server_name` is not for it.
    pub tls: TlsSettings,
    /// `sentinel_user`, `sentinel_password` or `sentinel_password_file`: the login at the
    /// Sentinels. Default none.
    pub sentinel_login: Option<(Option<String>, Secret)>,
    /// `replicas_min`: how many replicas must have an outcome before it counts as recorded. Default
    /// 0; 0 to 10.
    pub replicas_min: u32,
    /// `prefix`: first part of every key. Default `fanwise`.
    pub prefix: String,
    /// `dedup_window`: how long a job knows its recipients after it has completed. While it runs or
    /// waits, it knows them in any case. Default 168h (7 days); 1h to 2160h.
    pub dedup_window: Duration,
    /// `abandoned_after`: a running job that shows no activity for this long and has nothing on its
    /// lanes is ended. Recipients without a known outcome count as uncertain. Less than the longest
    /// wait of a retry (30m) or the lease, plus 5m, gives a warning. Default 45m; 2s to 24h.
    pub abandoned_after: Duration,
    /// `lease`: how long a claim lasts unless it is renewed. At least 3s longer than every target's
    /// call timeout. After a crash, recipients in flight wait this long. Default 20s; 2s to 10m.
    pub lease: Duration,
    /// `fingerprint_secret` or `fingerprint_secret_file`: the key for the fingerprints of
    /// recipients. The same on all workers; do not change it while jobs run. Default: a constant.
    pub fingerprint_secret: Secret,
}

pub(super) fn read_broker(mut section: Section, findings: &mut Findings) -> BrokerConfig {
    let urls = read_broker_urls(&mut section, findings);
    let broker = BrokerConfig {
        url: urls.first().cloned(),
        tls: read_tls(&mut section, findings),
        namespace: section.text("namespace", "fanwise", findings),
        declare: section.boolean("declare", true, findings),
        heartbeat: section.duration("heartbeat", 10 * SECOND, SECOND..=MINUTE, findings),
        confirm_timeout: section.duration(
            "confirm_timeout",
            10 * SECOND,
            SECOND..=2 * MINUTE,
            findings,
        ),
        consumer_timeout: section.duration(
            "consumer_timeout",
            30 * MINUTE,
            MINUTE..=24 * HOUR,
            findings,
        ),
        urls,
    };
    check_name("broker.namespace", &broker.namespace, findings);
    let encrypted = |url: &Secret| url.expose().starts_with("amqps://");
    if let Some(first) = &broker.url {
        if broker
            .urls
            .iter()
            .any(|url| encrypted(url) != encrypted(first))
        {
            findings.problem(section.key("urls"), "amqp:// and amqps:// are mixed");
        }
        check_tls(&broker.tls, encrypted(first), "amqps", &section, findings);
    }
    section.finish(findings);
    broker
}

/// The addresses in `url` or `url_file` and in `urls`.
fn read_broker_urls(section: &mut Section, findings: &mut Findings) -> Vec<Secret> {
    let url = section.secret("url", "url_file", findings);
    let urls = section.secrets("urls", findings);
    let named = url.iter().map(|url| ("url", url));
    for (name, url) in named.chain(urls.iter().map(|url| ("urls", url))) {
        let address = url.expose();
        if !address.starts_with("amqp://") && !address.starts_with("amqps://") {
            let what = "an address that begins with amqp:// or amqps:// is expected";
            findings.problem(section.key(name), what);
        }
        if let Some(what) = wrong_server(address) {
            findings.problem(section.key(name), what);
        }
    }
    url.into_iter().chain(urls).collect()
}

/// Why a URL does not name one host and perhaps a port. Never quotes the part before the host,
/// which may hold a password.
pub(super) fn wrong_server(url: &str) -> Option<String> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let server = authority.rsplit('@').next().unwrap_or_default();
    let (host, port) = match server.strip_prefix('[').and_then(|it| it.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => match server.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (server, None),
        },
    };
    let one = "one server is expected, as HOST or HOST:PORT; give several addresses as broker.urls";
    if server.contains(',') {
        return Some(format!("{server:?} names several servers: {one}"));
    }
    if host.contains(char::is_whitespace) {
        return Some(format!("{host:?} is not the name of a host: {one}"));
    }
    match port {
        Some(port) if port.parse::<u16>().is_err() => {
            Some(format!("{port:?} is not a port: {one}"))
        }
        _ => None,
    }
}

pub(super) fn read_ledger(mut section: Section, findings: &mut Findings) -> LedgerConfig {
    let (url, read) = read_ledger_url(&mut section, findings);
    let secret = section.secret("fingerprint_secret", "fingerprint_secret_file", findings);
    let ledger = LedgerConfig {
        url,
        tls: read_tls(&mut section, findings),
        sentinel_login: read_sentinel_login(&mut section, findings),
        replicas_min: section.integer("replicas_min", 0, 0..=10, findings) as u32,
        prefix: section.text("prefix", "fanwise", findings),
        dedup_window: section.duration("dedup_window", 168 * HOUR, HOUR..=2160 * HOUR, findings),
        abandoned_after: section.duration(
            "abandoned_after",
            45 * MINUTE,
            2 * SECOND..=24 * HOUR,
            findings,
        ),
        lease: section.duration("lease", 20 * SECOND, 2 * SECOND..=10 * MINUTE, findings),
        fingerprint_secret: secret.unwrap_or_else(|| Secret::new("fanwise")),
    };
    check_name("ledger.prefix", &ledger.prefix, findings);
    if let Some(url) = read {
        check_fit(&ledger, &url, &section, findings);
    }
    section.finish(findings);
    ledger
}

/// The address of the ledger, and what it says, if it can be read.
fn read_ledger_url(
    section: &mut Section,
    findings: &mut Findings,
) -> (Option<Secret>, Option<LedgerUrl>) {
    let Some(url) = section.secret("url", "url_file", findings) else {
        return (None, None);
    };
    match url.expose().parse() {
        Ok(read) => (Some(url), Some(read)),
        Err(what) => {
            findings.problem(section.key("url"), what.to_string());
            (Some(url), None)
        }
    }
}

fn read_sentinel_login(
    section: &mut Section,
    findings: &mut Findings,
) -> Option<(Option<String>, Secret)> {
    let user = section.optional_text("sentinel_user", findings);
    let password = section.secret("sentinel_password", "sentinel_password_file", findings);
    if user.is_some() && password.is_none() {
        let what = "missing; sentinel_user needs its password";
        findings.problem(section.key("sentinel_password"), what);
    }
    password.map(|password| (user, password))
}

/// Finds settings that do not fit the address.
fn check_fit(ledger: &LedgerConfig, url: &LedgerUrl, section: &Section, findings: &mut Findings) {
    check_tls(&ledger.tls, url.tls, "rediss", section, findings);
    let is_sentinel = matches!(url.deployment, Deployment::Sentinel { .. });
    if ledger.sentinel_login.is_some() && !is_sentinel {
        let what = "has no effect: ledger.url names no Sentinels";
        findings.warning(section.key("sentinel_password"), what);
    }
    if url.deployment == Deployment::Cluster && ledger.tls.server_name.is_some() {
        let what = "is one name for all nodes of a cluster, which have a name each; let the nodes \
                    announce the names in their certificates (cluster-announce-hostname)";
        findings.problem(section.key("server_name"), what);
    }
}

/// Warns of certificates that an address without TLS does not use.
pub(super) fn check_tls(
    tls: &TlsSettings,
    used: bool,
    scheme: &str,
    section: &Section,
    findings: &mut Findings,
) {
    let keys = [
        ("ca_file", tls.ca.is_some()),
        ("certificate", tls.identity.is_some()),
        ("server_name", tls.server_name.is_some()),
    ];
    for (key, _) in keys.into_iter().filter(|(_, given)| *given && !used) {
        let what = format!("has no effect: the address does not begin with {scheme}");
        findings.warning(section.key(key), what);
    }
}

/// `ca_file`, `certificate`, `key`, `server_name`.
pub(super) fn read_tls(section: &mut Section, findings: &mut Findings) -> TlsSettings {
    let ca = section.optional_text("ca_file", findings);
    let certificate = section.optional_text("certificate", findings);
    let key = section.optional_text("key", findings);
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
        (None, None) => None,
        (Some(_), None) => {
            findings.problem(section.key("key"), "missing; the certificate needs its key");
            None
        }
        (None, Some(_)) => {
            let what = "missing; the key needs its certificate";
            findings.problem(section.key("certificate"), what);
            None
        }
    };
    TlsSettings {
        ca: ca.map(Into::into),
        identity,
        server_name: section.optional_text("server_name", findings),
    }
}
