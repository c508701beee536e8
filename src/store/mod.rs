//! Redis as the ledger, the limiter and the store of messages: the ports
//! [`Ledger`](crate::ports::Ledger), [`Upkeep`](crate::ports::Upkeep),
//! [`Pulse`](crate::ports::Pulse), [`Limiter`](crate::ports::Limiter),
//! [`Directives`](crate::ports::Directives), [`Templates`](crate::ports::Templates),
//! [`Quotas`](crate::ports::Quotas), [`FrequencyCaps`](crate::ports::FrequencyCaps) and
//! [`Nonces`](crate::ports::Nonces).
//!
//! A [`Store`] is a connection and a set of scripts. Each change that must happen in
//! one step is one script, so no lock is ever taken, and a worker that dies leaves nothing half
//! done. A request that may be repeated because its answer was lost is idempotent. No call takes
//! longer than [`Settings::deadline`], whatever the server does.
//!
//! The store never evicts, never scans the key space and never trusts a worker's clock: leases and
//! rates use the server's. Losing all of Redis loses the dedup window and the accounts up to then,
//! but no recipients: the slices say what they belong to, and the job is marked as rebuilt.
//! Directives are lost too, so paused work resumes. If a server comes back with older data, the
//! heartbeats that it has lost reveal it, and the running jobs are marked.
//!
//! It needs Redis 7.0 or later, or Valkey: one server, a primary that Sentinels know, or a Redis
//! Cluster. The keys of one job share a hash tag, and so do those of the limits and of each other
//! step, so each script runs on one node. What concerns several jobs, such as the list of them, is
//! several commands on several nodes and not one step.
//!
//! Read `keys` for the layout, `scripts/*.lua` for the steps, `ledger`, `upkeep`, `pulse`,
//! `limiter`, `directives`, `templates`, `quotas`, `frequency_caps` and `nonces` for how they are called, and
//! `connection` for what happens when the server is down.

mod connection;
mod directives;
mod frequency_caps;
mod keys;
mod ledger;
mod limiter;
mod message_ids;
mod nonces;
mod pulse;
mod quotas;
mod steering;
mod sub_lanes;
mod templates;
mod turn;
mod upkeep;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

pub use connection::{CheckError, Kind, OpenError, Persistence, Report, ServerReport};

use connection::Connection;
use keys::Keys;

use crate::secret::Secret;
use crate::tls::TlsSettings;

/// The ledger and the limiter on Redis. Cheap to clone; all clones share a connection.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    connection: Connection,
    keys: Keys,
    open_jobs: sub_lanes::OpenJobs,
    /// How long a completed job is remembered, in seconds.
    window_s: u64,
    /// New jobs that this process put on the list.
    listed: AtomicUsize,
}

/// Where the ledger is and how long it remembers.
#[derive(Clone, Debug)]
pub struct Settings {
    /// As [`crate::domain::ledger_url`] says.
    pub url: String,
    /// Used if the URL asks for TLS.
    pub tls: TlsSettings,
    /// The login at the Sentinels, if there are any and they need one.
    pub sentinel_login: Option<Login>,
    /// How many replicas must have an outcome before it counts as recorded.
    pub replicas_min: u32,
    /// Comes before every key. Deployments that share a server need different prefixes.
    pub prefix: String,
    /// How long a job is remembered after it has completed.
    pub dedup_window: Duration,
    pub connect_timeout: Duration,
    /// A reply that takes longer is an error, and the connection is replaced.
    pub response_timeout: Duration,
    /// No call takes longer, including the time to reconnect.
    pub deadline: Duration,
}

/// User and password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    pub user: Option<String>,
    pub password: Secret,
}

impl Settings {
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            tls: TlsSettings::default(),
            sentinel_login: None,
            replicas_min: 0,
            prefix: "fanwise".to_owned(),
            dedup_window: Duration::from_secs(7 * 24 * 3600),
            connect_timeout: Duration::from_secs(1),
            response_timeout: Duration::from_secs(2),
            deadline: Duration::from_secs(3),
        }
    }
}

impl Store {
    /// Prepares a connection; the first call opens it. Calls need a Tokio runtime, and
    /// `rediss+cluster://` an installed crypto provider.
    pub fn open(settings: &Settings) -> Result<Self, OpenError> {
        Ok(Self(Arc::new(Inner {
            connection: Connection::open(settings)?,
            keys: Keys::new(&settings.prefix),
            open_jobs: sub_lanes::OpenJobs::default(),
            window_s: settings.dedup_window.as_secs().max(1),
            listed: AtomicUsize::new(0),
        })))
    }

    /// Checks whether the server is fit to hold a ledger; used at start and by `fanwise doctor`.
    pub async fn check(&self) -> Result<Report, CheckError> {
        self.0.connection.check().await
    }
}
