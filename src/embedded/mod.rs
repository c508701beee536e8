//! The embedded engine: the ports [`Broker`](crate::ports::Broker),
//! [`Ledger`](crate::ports::Ledger), [`Upkeep`](crate::ports::Upkeep),
//! [`Pulse`](crate::ports::Pulse), [`Limiter`](crate::ports::Limiter),
//! [`Directives`](crate::ports::Directives), [`Templates`](crate::ports::Templates),
//! [`Quotas`](crate::ports::Quotas), [`FrequencyCaps`](crate::ports::FrequencyCaps) and
//! [`Nonces`](crate::ports::Nonces) in one folder, for one machine without RabbitMQ and Redis.
//!
//! - `disk`: the data folder, its lock and the store in it; `files`: how they are opened; `log`: the
//!   commits that the store has not written yet, and `changes`: what they changed; `damage`: panics of
//!   the store; `tables`: every table and record; `transaction`: how the writer changes them.
//! - `writer`: the one thread that writes. A caller hands it a step and waits. Steps that wait at
//!   the same time share one commit, which is synced to disk before any of them is answered.
//! - `deliveries`: the messages that are handed out, to which consumer, and those that came back;
//!   in memory, so that after a crash everything unacked is available again. `dispatch`: the one
//!   thread that reads messages for consumers.
//! - `backup`: a copy of everything, made while the engine works.
//! - `edit_logs`: what edits of retained queues did, for those who follow the queues.
//! - `broker`, `retained`, `ledger`, `claims`, `upkeep`, `pulse`, `limiter`, `directives`,
//!   `templates`, `quotas`, `frequency_caps`, `nonces`: the ports. `sweep`: forgets jobs that completed long ago.
//!
//! It promises that `Ok` from a publish or a step of the ledger means synced to disk, and survives
//! a kill or a power failure at any moment. An error means that nothing of the step was done or, if
//! the sync itself failed, perhaps all of it; every step may be repeated. When the disk is full or
//! fails, steps are refused and sessions stay, and work resumes by itself when the disk does. A
//! store that is found damaged is not used any more: [`Engine::damaged`] reports it, and the
//! process ends.
//!
//! It never blocks an async thread on the disk, never holds a queue in memory, and never shares its
//! folder with another process.

mod backup;
mod broker;
mod changes;
mod claims;
mod damage;
mod deliveries;
mod directives;
mod disk;
mod dispatch;
mod edit_logs;
mod files;
mod frequency_caps;
mod ledger;
mod limiter;
mod listing;
mod log;
mod message_ids;
mod nonces;
mod pulse;
mod quotas;
mod retained;
mod steering;
mod sub_lanes;
mod sweep;
mod tables;
mod templates;
mod transaction;
mod upkeep;
mod wake;
mod writer;

#[cfg(test)]
mod disk_tests;
#[cfg(test)]
mod power_tests;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redb::{Database, ReadTransaction};
use serde::Serialize;
use tokio::sync::{broadcast, oneshot};

pub use self::backup::check_copy;
pub use self::broker::{
    EmbeddedBroker, EmbeddedConsumer, EmbeddedPublisher, EmbeddedSession, EngineEvent,
};
pub use self::disk::{OpenError, Usage};
pub use self::limiter::EmbeddedStore;
pub use self::retained::EmbeddedFollower;

use self::deliveries::Deliveries;
use self::disk::{Disk, StorageError};
use self::files::{FileOpener, Opener};
use self::nonces::Seen;
use self::pulse::Beats;
use self::retained::Turns;
use self::tables::Queues;
use self::upkeep::Walk;
use self::writer::{WriteContext, Writer};

/// Where the engine keeps its data, and how it writes.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Created if it is missing. One process at a time uses it.
    pub folder: PathBuf,
    /// The targets that have lanes. Messages in the lanes of other targets stay there unchanged.
    pub targets: Vec<String>,
    /// How long a job and its recipients are remembered after it has completed.
    pub dedup_window: Duration,
    /// How long a commit may wait for others to join it. It only waits for as many as joined each of
    /// the last two commits, so a lone writer never waits.
    pub commit_wait_max: Duration,
    /// Steps in one commit.
    pub commit_ops_max: usize,
}

impl Settings {
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            targets: Vec::new(),
            dedup_window: Duration::from_secs(7 * 24 * 3600),
            commit_wait_max: Duration::from_millis(2),
            commit_ops_max: 256,
        }
    }
}

/// Events that a subscriber may be behind before it misses some.
const EVENTS_KEPT: usize = 1024;

/// An open data folder. Cheap to clone. It closes when its last handle is dropped, or at once with
/// [`Engine::close`].
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

/// The state that all handles share.
struct Inner {
    disk: Arc<Disk>,
    deliveries: Arc<Deliveries>,
    queues: Arc<Queues>,
    writer: writer::Handle,
    events: broadcast::Sender<EngineEvent>,
    turns: Turns,
    limits: crate::limits::Limits,
    nonces: Mutex<Seen>,
    beats: Beats,
    walk: Mutex<Walk>,
}

impl Engine {
    /// Opens the data folder, also after a crash. Blocks for some milliseconds.
    pub fn open(settings: &Settings) -> Result<Self, OpenError> {
        Self::open_on(settings, Box::new(FileOpener))
    }

    fn open_on(settings: &Settings, opener: Box<dyn Opener>) -> Result<Self, OpenError> {
        let (disk, lock) = Disk::open(&settings.folder, opener)?;
        let start = disk.prepare(&settings.targets)?;
        let disk = Arc::new(disk);
        let queues = Arc::new(start.queues);
        let deliveries = Arc::new(Deliveries::new(&queues));
        let dispatcher = dispatch::start(Arc::clone(&deliveries), Arc::clone(&disk))
            .map_err(|error| disk.open_error(error))?;
        let parts = writer::Parts {
            disk: Arc::clone(&disk),
            deliveries: Arc::clone(&deliveries),
            queues: Arc::clone(&queues),
            claims: start.claims,
            next_seq: start.next_seq,
            next_life: start.next_life,
            dedup_window: settings.dedup_window,
            wait_max: settings.commit_wait_max,
            steps_max: settings.commit_ops_max.max(1),
            dispatcher,
            lock,
        };
        let writer = Writer::start(parts).map_err(|error| disk.open_error(error))?;
        Ok(Self(Arc::new(Inner {
            disk,
            deliveries,
            queues,
            writer,
            events: broadcast::Sender::new(EVENTS_KEPT),
            turns: Turns::default(),
            limits: crate::limits::Limits::default(),
            nonces: Mutex::default(),
            beats: Beats::default(),
            walk: Mutex::default(),
        })))
    }

    /// The broker port. The same value also gives access to dead letters and rejected messages
    /// ([`RetainedQueues`](crate::ports::RetainedQueues)).
    pub fn broker(&self) -> EmbeddedBroker {
        EmbeddedBroker(self.clone())
    }

    /// The ledger and the limiter.
    pub fn store(&self) -> EmbeddedStore {
        EmbeddedStore(self.clone())
    }

    /// Follows job events from now on. A subscriber that is too far behind misses some and gets an
    /// error that says so.
    pub fn events(&self) -> broadcast::Receiver<EngineEvent> {
        self.0.events.subscribe()
    }

    /// How full every queue is, including the lanes of targets that are no longer configured.
    pub async fn depths(&self) -> Result<Vec<Depth>, EngineError> {
        let counts = self.0.read(tables::counts).await?;
        let mut depths: Vec<_> = counts
            .into_iter()
            .map(|count| {
                let (unacked, consumers) = self.0.deliveries.usage(&self.0.queues, &count.queue);
                Depth {
                    ready: count.ready.saturating_sub(unacked.ready),
                    waiting: count.waiting.saturating_sub(unacked.waiting),
                    unacked: unacked.ready + unacked.waiting,
                    consumers,
                    queue: count.queue,
                }
            })
            .collect();
        depths.sort_by(|a, b| a.queue.cmp(&b.queue));
        Ok(depths)
    }

    /// The error that keeps the engine from writing at the moment, if there is one.
    pub fn error(&self) -> Option<String> {
        self.0.disk.error()
    }

    /// Calls this with the time of each commit, from now on.
    pub fn on_commit(&self, act: impl Fn(Duration) + Send + Sync + 'static) {
        self.0.disk.on_commit(Box::new(act));
    }

    pub fn usage(&self) -> std::io::Result<Usage> {
        self.0.disk.usage()
    }

    /// Resolves with the error when the store is found damaged; nothing can be done with it any
    /// more.
    pub async fn damaged(&self) -> String {
        self.0.disk.damage().cancelled().await;
        self.error().unwrap_or_default()
    }

    /// Ends all sessions, writes the steps that were handed over, and releases the folder.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        self.0.writer.stop(done);
        // An error means that it was closed before.
        let _ = closed.await;
    }
}

/// How full a queue is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Depth {
    /// `jobs.<priority>`, `send.<lane>`, `dead` or `rejected`.
    pub queue: String,
    /// Messages that can be handed out now.
    pub ready: u64,
    /// Messages that are not due yet, or have just become due.
    pub waiting: u64,
    /// Messages handed out and not ended.
    pub unacked: u64,
    pub consumers: u32,
}

/// The engine cannot carry the request out now.
#[derive(Clone, Debug, thiserror::Error)]
#[error(transparent)]
pub struct EngineError(#[from] StorageError);

impl Inner {
    /// Hands a step to the writer, and waits until it is on disk.
    async fn write<T: Send + 'static>(
        &self,
        bytes: usize,
        act: impl FnMut(&mut WriteContext<'_>) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        self.writer.write(bytes, act).await
    }

    /// Reads a consistent view of the committed data, on a thread that may block. It shows every
    /// step that was answered.
    async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&ReadTransaction) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        self.writer.catch_up().await;
        let disk = Arc::clone(&self.disk);
        tokio::task::spawn_blocking(move || disk.guarded(|| look(&disk.begin_read()?)))
            .await
            .unwrap_or(Err(StorageError::Stopped))
    }
}

/// How much of the store is kept in memory. The system's cache holds the rest while there is room:
/// with four times as much, jobs of a million recipients were no faster. Half of it is for pages that
/// are not written yet. With twice as much, `serve` takes up to 12 MiB more for a job of a million, and
/// writes 4 % less.
const CACHE_BYTES: usize = 4 * 1024 * 1024;

/// The settings of a store. Without a size, the cache of redb takes up to a GiB.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that sets the size"
)]
fn builder(cache_bytes: usize) -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(cache_bytes);
    builder
}
