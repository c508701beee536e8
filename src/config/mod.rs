//! Reads and checks all settings: key, meaning, default, unit, bounds and cross-checks. The process
//! reads them once, before it binds or connects anything, and reports all problems together.
//!
//! The file is TOML (`--config`, else `FANWISE_CONFIG`, else `./fanwise.toml` if it exists). The
//! environment can set every key: `FANWISE_BROKER__URL` is `broker.url`.
//! `deploy/fanwise.example.toml` documents every key and is tested against this module.

mod apps;
mod callbacks;
mod endpoints;
mod list_sources;
mod placeholders;
mod reader;
mod retry;
mod sections;
mod servers;
mod signatures;
mod targets;
mod traces;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::callbacks::CallbackConfig;
use self::reader::Section;
pub use self::reader::{ENV_PREFIX, Findings, Lines, Origin, Shown};
pub use self::servers::{BrokerConfig, LedgerConfig};
pub use self::targets::TargetConfig;
pub use self::traces::TracingConfig;
use crate::domain::fairness::AppRules;
use crate::domain::fields::Problem;
use crate::domain::frequency_cap::FrequencyCap;
use crate::domain::limits::Rate;
use crate::domain::notice::ReplyRules;
use crate::domain::permissions::Permissions;
use crate::domain::retry::{RetryChanges, RetryPolicy};
use crate::domain::schedule::{RUNGS, duration_text};
use crate::domain::window::Window;
use crate::gateway::AppAccess;
use crate::im::ingress::DropInEndpoint;
use crate::secret::Secret;
use crate::telemetry::{LogFilter, LogFormat};

/// The file to read if none is named.
pub const DEFAULT_FILE: &str = "fanwise.toml";

#[derive(Clone, Debug)]
pub struct Config {
    pub broker: BrokerConfig,
    pub ledger: LedgerConfig,
    pub embedded: EmbeddedConfig,
    pub gateway: GatewayConfig,
    pub admin: AdminConfig,
    pub worker: WorkerConfig,
    /// `[retry]`
    pub retry: RetryPolicy,
    pub targets: BTreeMap<String, TargetConfig>,
    /// `[shared_limits]`: limits that several targets have together, by name, in calls unless they
    /// say `per recipient`.
    pub shared_limits: BTreeMap<String, Rate>,
    pub apps: BTreeMap<String, AppConfig>,
    pub log: LogConfig,
    pub tracing: TracingConfig,
}

/// What is wrong without `broker.url`, and without `ledger.url`, where they are needed.
pub const NO_BROKER: &str = "missing: give it, broker.url_file, or FANWISE_BROKER__URL";
pub const NO_LEDGER: &str = "missing: give it, ledger.url_file, or FANWISE_LEDGER__URL";

/// What keeps jobs, accounts and limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// One file in the data folder: neither RabbitMQ nor Redis is configured.
    Embedded,
    /// RabbitMQ and Redis.
    Servers,
}

/// `[embedded]`: the engine of `fanwise serve` without a broker URL.
#[derive(Clone, Debug)]
pub struct EmbeddedConfig {
    /// `dir`: the folder of jobs, slices and the ledger. One process at a time. Default
    /// `fanwise-data`.
    pub dir: PathBuf,
}

/// `[gateway]`: the HTTP interface of `fanwise serve` and `fanwise gateway`.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// `listen`: its address. Default 127.0.0.1:9700; any address other than a loopback address
    /// needs credentials.
    pub listen: SocketAddr,
    /// `token` or `token_file`: callers that send it as `Authorization: Bearer …` may do
    /// everything. Default none.
    pub token: Option<Secret>,
    /// `requests_max`: requests at a time, including those that wait for a job. The gateway asks
    /// further callers to try again later. No app gets all of them, see [`crate::gateway`]. Default
    /// 256; 1 to 100000.
    pub requests_max: usize,
    /// `connections_max`: connections at a time. For each further one, the gateway closes an idle
    /// one. Default 1024; 1 to 100000.
    pub connections_max: usize,
    /// `patience`: longest wait for a request to begin, for its next bytes, and for the client to
    /// take the answer. Default 10s; 1s to 10m.
    pub patience: Duration,
    /// `wait_max`: longest wait for a job, even if the caller prefers a longer one. Default 30s; 1s
    /// to 10m.
    pub wait_max: Duration,
    /// `upload_bytes_max`: largest uploaded list. Default 268435456 (256 MiB); 1 MiB to 1 TiB.
    pub upload_bytes_max: u64,
    /// `upload_dir`: the folder for lists during their upload and dead letters during their
    /// download. Default the system's folder for temporary files.
    pub upload_dir: PathBuf,
    /// `auth`: `auto` (default) asks for credentials, except on a loopback address if none are
    /// configured; `token` always asks; `none` never asks.
    pub auth: GatewayAuth,
    /// `tls_certificate` and `tls_key`: PEM files of the certificate with its chain, and of its
    /// key. Default none: plain HTTP.
    pub tls: Option<(PathBuf, PathBuf)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatewayAuth {
    Auto,
    Token,
    None,
}

/// `[admin]`
#[derive(Clone, Debug)]
pub struct AdminConfig {
    /// `listen`: address of /livez, /readyz and /metrics. Default 127.0.0.1:9600.
    pub listen: SocketAddr,
}

/// `[worker]`
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// `slice_recipients`: recipients per slice. Default 500; 1 to 5000.
    pub slice_recipients: u32,
    /// `slice_concurrency`: most slices that make calls at a time, per target. Default 8; 1 to 256.
    /// Fewer do where each would have less than 64 calls in flight, but at least four.
    pub slice_concurrency: usize,
    /// `small_job_concurrency`: additional places for small jobs, per target. Default 4; 1 to 256.
    pub small_job_concurrency: usize,
    /// `lane_slices_max`: if so many slices wait on a lane, further lists for it are not cut; their
    /// jobs wait as they came. Default 20000; 1 to 1000000.
    pub lane_slices_max: u64,
    /// `slice_time_max`: how long a delivery works on one slice before the rest goes to the end of
    /// its lane. Default 1m; 1s to 10m.
    pub slice_time_max: Duration,
    /// `drain_deadline`: how long a stopping process may take to finish its work. Keep it shorter
    /// than the platform's grace period. Default 25s; 1s to 10m.
    pub drain_deadline: Duration,
    /// `progress_interval`: shortest time between two progress events of a job. Default 2s; 100ms
    /// to 1h.
    pub progress_interval: Duration,
    /// `identify_targets`: at the start, ask each target which system it is and whether it takes the
    /// credentials, and log the answer. It takes one call. Default true.
    pub identify_targets: bool,
}

/// `[apps.NAME]`: a tenant. Without any section, there is one app, `default`.
#[derive(Clone, Debug, Default)]
pub struct AppConfig {
    /// `target`: the target of jobs that name none; optional with a single target.
    pub target: Option<String>,
    /// `limit`: such as `"500/s"`, in recipients unless it says `per call`. Default none.
    pub limit: Option<Rate>,
    /// `daily_limit`: a second limit, such as `"100000/day"`, whose units are spread over the day.
    /// Default none.
    pub daily_limit: Option<Rate>,
    /// `window`, `timezone`: the hours of the day in which its jobs are sent, such as
    /// `"09:00-21:00"` in `"Asia/Shanghai"` (UTC). Default none: always.
    pub window: Option<Window>,
    /// `[apps.NAME.frequency_caps.CATEGORY]`: `max` (required; 1 to 100) and `period` (required;
    /// 1m to 31d), at most so many messages of the category to a recipient within a period. Default
    /// none: jobs may name no category.
    pub frequency_caps: BTreeMap<String, FrequencyCap>,
    /// `[apps.NAME.retry]`: what differs from the retry policy of the target.
    pub retry: RetryChanges,
    /// `weight`: its share of the places of a target beside other apps. Default 1; 1 to 1000.
    /// `concurrency_max`: the most that it may have of the places of a target, in percent. Default
    /// 100; 1 to 100.
    pub share: AppRules,
    /// `on_ledger_down`: `fail_closed` (default) stops, `fail_open` sends without dedup and counts.
    pub fail_open: bool,
    /// `[apps.NAME.callbacks]`: where its jobs may send their accounts. Default nowhere.
    pub callbacks: Option<CallbackConfig>,
    /// `reply_to`: queues that its jobs may publish their accounts to, such as `"orders.*"`.
    /// Default none.
    pub replies: ReplyRules,
    /// `[apps.NAME.SYSTEM]`: drop-in endpoints for existing callers of IM systems, with the
    /// system's name.
    pub endpoints: Vec<(&'static str, DropInEndpoint)>,
    /// `senders`, `targets`, `audiences`, `recipients_max`, `daily_recipients`.
    pub permissions: Permissions,
    /// `token`, `auth`, `request_rate`, `[apps.NAME.before_accept]`, `[apps.NAME.list_sources.SOURCE]`.
    pub access: AppAccess,
}

/// `[log]`
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// `level`: `error`, `warn`, `info` (default), `debug`, `trace` or `off`, or a filter such as
    /// `warn,fanwise::worker=debug`.
    pub filter: LogFilter,
    /// `format`: `auto` (text on a terminal, JSON elsewhere), `text` or `json`.
    pub format: LogFormat,
}

/// A configuration with all findings about it.
pub struct Loaded {
    pub config: Config,
    pub findings: Findings,
    pub file: Option<PathBuf>,
    pub lines: Lines,
}

/// The file cannot be read or is not TOML.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot read {path}")]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path} is not TOML")]
    NotToml {
        path: PathBuf,
        source: Box<toml::de::Error>,
    },
}

impl Loaded {
    /// Returns the configuration, or an error that lists all its problems.
    pub fn check(self) -> Result<Config, ConfigProblems> {
        if self.findings.problems.is_empty() {
            Ok(self.config)
        } else {
            Err(ConfigProblems {
                file: self.file,
                problems: self.findings.problems,
                lines: self.lines,
            })
        }
    }
}

/// All problems of a configuration.
#[derive(Debug)]
pub struct ConfigProblems {
    pub file: Option<PathBuf>,
    pub problems: Vec<Problem>,
    pub lines: Lines,
}

impl std::fmt::Display for ConfigProblems {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = match &self.file {
            Some(file) => file.display().to_string(),
            None => format!(
                "the environment; there is no ./{DEFAULT_FILE}, and neither --config nor FANWISE_CONFIG \
                 names a file"
            ),
        };
        write!(f, "{} problem(s) in {place}:", self.problems.len())?;
        self.problems.iter().try_for_each(|problem| {
            let place = self.lines.place(&problem.field);
            write!(f, "\n  {place}{problem}")
        })
    }
}

impl std::error::Error for ConfigProblems {}

/// Reads the named file, or the default file if it exists; environment variables override it.
pub fn load(
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Loaded, LoadError> {
    let default = Path::new(DEFAULT_FILE);
    let file = file.or_else(|| default.exists().then_some(default));
    let (text, table) = match file {
        None => Default::default(),
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|source| LoadError::Unreadable {
                path: path.to_owned(),
                source,
            })?;
            let table = text.parse().map_err(|source| LoadError::NotToml {
                path: path.to_owned(),
                source: Box::new(source),
            })?;
            (text, table)
        }
    };
    let environment: BTreeMap<_, _> = environment.collect();
    let lines = Lines::of(&text, environment.keys());
    let mut findings = Findings::default();
    let root = Section::root(table, environment.into_iter());
    root.find_placeholders(&mut findings);
    let config = sections::from_root(root, &mut findings);
    cross_check(&config, &mut findings);
    Ok(Loaded {
        config,
        findings,
        file: file.map(Path::to_owned),
        lines,
    })
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const MIB: u64 = 1024 * 1024;

/// A claim lasts at least this much longer than any call, so that a late answer still finds it.
const LEASE_MARGIN: Duration = Duration::from_secs(3);

/// A job is abandoned only after a silence this much longer than any wait.
const ABANDONED_MARGIN: Duration = Duration::from_secs(5 * 60);

/// How long a delivery may wait for a place, and then for a ledger that is down.
const DELIVERY_WAITS: Duration = Duration::from_secs(60 + 60);

/// Refuses settings with which a delivery could come near the broker's ack limit: at most half of
/// it may pass.
fn check_ack_limit(config: &Config, findings: &mut Findings) {
    let calls = config.targets.values().map(|target| target.call_timeout);
    let longest = DELIVERY_WAITS + config.worker.slice_time_max + calls.max().unwrap_or_default();
    if config.engine() == EngineKind::Servers && longest * 2 > config.broker.consumer_timeout {
        let what = format!(
            "{} is less than twice the {} that a delivery may take (a minute for its place, a minute \
             for the ledger, worker.slice_time_max and the longest call_timeout). Raise \
             consumer_timeout, at the broker too, or lower worker.slice_time_max",
            duration_text(config.broker.consumer_timeout),
            duration_text(longest)
        );
        findings.problem("broker.consumer_timeout", what);
    }
}

/// Finds settings that are valid alone and wrong together.
fn cross_check(config: &Config, findings: &mut Findings) {
    for (name, target) in &config.targets {
        let least = target.call_timeout + LEASE_MARGIN;
        if config.ledger.lease < least {
            let what = format!(
                "{} is shorter than targets.{name}.call_timeout plus 3s, {}: a slow call would outlive its claim",
                duration_text(config.ledger.lease),
                duration_text(least)
            );
            findings.problem("ledger.lease", what);
        }
    }
    check_ack_limit(config, findings);
    retry::check(config, findings);
    let waits = ABANDONED_MARGIN + RUNGS[RUNGS.len() - 1].max(config.ledger.lease);
    if config.ledger.abandoned_after < waits {
        let what = format!(
            "{} is shorter than the longest time between two signs of activity of a job: Fanwise may end \
             a job that still has recipients to send to, which count as uncertain until it sends to \
             them; set it to {} or more",
            duration_text(config.ledger.abandoned_after),
            duration_text(waits)
        );
        findings.warning("ledger.abandoned_after", what);
    }
    let (gateway, admin) = (config.gateway.listen, config.admin.listen);
    // An unspecified address includes all others. Port 0 is a different port each time.
    let overlap =
        gateway.ip() == admin.ip() || gateway.ip().is_unspecified() || admin.ip().is_unspecified();
    if gateway.port() == admin.port() && gateway.port() != 0 && overlap {
        let what = format!("has the port of gateway.listen, {}", gateway.port());
        findings.problem("admin.listen", what);
    }
    apps::check_credentials(config, findings);
    endpoints::check_distinct(&config.apps, findings);
    for (name, app) in &config.apps {
        if app.target.is_none() && config.targets.len() > 1 {
            let what = "no default target: its jobs must name one";
            findings.warning(format!("apps.{name}.target"), what);
        }
        apps::check_endpoints(name, app, findings);
    }
}

impl Config {
    /// Reports settings that a worker needs and that are missing.
    pub fn require_worker(&self, findings: &mut Findings) {
        self.require_broker(findings);
        self.require_ledger(findings);
        self.require_targets(findings);
    }

    /// Reports missing settings of a process that sends: targets, and RabbitMQ and Redis unless
    /// neither is configured.
    pub fn require_process(&self, findings: &mut Findings) {
        self.require_targets(findings);
        match self.engine() {
            EngineKind::Embedded => {}
            EngineKind::Servers => {
                self.require_broker(findings);
                self.require_ledger(findings);
            }
        }
    }

    pub fn engine(&self) -> EngineKind {
        match (&self.broker.url, &self.ledger.url) {
            (None, None) => EngineKind::Embedded,
            _ => EngineKind::Servers,
        }
    }

    pub fn require_targets(&self, findings: &mut Findings) {
        if self.targets.is_empty() && !findings.mention("targets.") {
            let what = "missing: at least one [targets.NAME] is needed";
            findings.problem("targets", what);
        }
    }

    pub fn require_broker(&self, findings: &mut Findings) {
        if self.broker.url.is_none() && !findings.mention("broker.url") {
            findings.problem("broker.url", NO_BROKER);
        }
    }

    pub fn require_ledger(&self, findings: &mut Findings) {
        if self.ledger.url.is_none() && !findings.mention("ledger.url") {
            findings.problem("ledger.url", NO_LEDGER);
        }
    }
}

#[cfg(test)]
mod tests;
