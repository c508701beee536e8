//! Redis as the ledger, the throttle and the place of stored messages: the ports
//! [`Ledger`](crate::ports::Ledger), [`Upkeep`](crate::ports::Upkeep),
//! [`Pulse`](crate::ports::Pulse), [`Limiter`](crate::ports::Limiter),
//! [`Directives`](crate::ports::Directives), [`Templates`](crate::ports::Templates),
//! [`Quotas`](crate::ports::Quotas) and [`Nonces`](crate::ports::Nonces).
//!
//! A [`Store`] is one multiplexed connection and a set of scripts. Whatever must happen in one step is
//! one script, so no lock is ever taken and a worker that dies leaves nothing half done; whatever may
//! be asked twice because an answer got lost is idempotent. No call takes longer than
//! [`Settings::deadline`], whatever the server does.
//!
//! It never evicts, never scans the key space and never trusts a worker's clock: leases and rates go
//! by the server's. Losing all of Redis loses the dedup window and the accounts up to then, not
//! recipients: the slices say again what they are part of, and the job is marked as rebuilt. Directives
//! are lost with it: what was paused goes on. A server that comes back with older data is noticed by the
//! heartbeats that it has lost, and the jobs that ran are marked.
//!
//! Redis 7.0 or later, or Valkey. The keys of one job share a hash tag and so do those of the throttle,
//! so that the scripts are fit for Redis Cluster; the connection speaks to one server, which may be a
//! proxy or whatever a failover leaves behind one address.
//!
//! Read `keys` for the layout, `scripts/*.lua` for the steps, `ledger`, `upkeep`, `pulse`, `limiter`,
//! `directives`, `templates`, `quotas` and `nonces` for how they are called, `connection` for what
//! happens when the server is away.

mod connection;
mod directives;
mod keys;
mod ledger;
mod limiter;
mod nonces;
mod pulse;
mod quotas;
mod templates;
mod upkeep;

use std::sync::Arc;
use std::time::Duration;

pub use connection::{CheckError, OpenError, Persistence, Report};

use connection::Connection;
use keys::Keys;

/// The ledger and the limiter on one Redis server. Cheap to clone; all clones share a connection.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    connection: Connection,
    keys: Keys,
    /// Seconds for which a completed job is known.
    window_s: u64,
}

/// Where the ledger is and how long it remembers.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `redis://` or `rediss://` with user, password and database as usual.
    pub url: String,
    /// Stands before every key; deployments that share a server differ in it.
    pub prefix: String,
    /// How long a job is remembered after it has completed.
    pub dedup_window: Duration,
    pub connect_timeout: Duration,
    /// A reply that takes longer is an error, and the connection is replaced.
    pub response_timeout: Duration,
    /// No call takes longer, reconnecting included.
    pub deadline: Duration,
}

impl Settings {
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            prefix: "fanwise".to_owned(),
            dedup_window: Duration::from_secs(7 * 24 * 3600),
            connect_timeout: Duration::from_secs(1),
            response_timeout: Duration::from_secs(2),
            deadline: Duration::from_secs(3),
        }
    }
}

impl Store {
    /// Prepares a connection; the first call makes it. Needs a Tokio runtime, and for `rediss://` a
    /// crypto provider that is installed.
    pub fn open(settings: &Settings) -> Result<Self, OpenError> {
        Ok(Self(Arc::new(Inner {
            connection: Connection::open(settings)?,
            keys: Keys::new(&settings.prefix),
            window_s: settings.dedup_window.as_secs().max(1),
        })))
    }

    /// Looks whether the server is fit to hold a ledger; asked at start and by `fanwise doctor`.
    pub async fn check(&self) -> Result<Report, CheckError> {
        self.0.connection.check().await
    }
}
