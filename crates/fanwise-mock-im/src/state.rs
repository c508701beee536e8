//! Holds the state that all connections share: settings, faults, the log and the counters.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::directory::Directory;
use super::faults::{CallPlan, Chooser, FaultKind, Faults, FaultsError};
use super::log::{Book, Entry, LogFile, Shards};
use super::webhook::KnownKey;
use super::wukongim::{Login, Stored, Version};
use super::{MockError, Settings, netease, openim, yunxin};

/// Counters since the mock started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Messages accepted as new, one for each recipient.
    pub accepted: u64,
    /// Recipients whose request got an earlier answer again.
    pub replays: u64,
    /// New messages whose client_msg_no and recipient had been accepted before; 0 means that the
    /// sender sent each message once. Without a client_msg_no (WuKongIM sendbatch, NetEase,
    /// Yunxin's batch) sender and payload identify a message. At OpenIM sender, `ex` and content
    /// do; without `ex`, the operationID of a single send does.
    pub duplicates: u64,
    /// Recipients refused, by the protocol because of their uid or by the refuse settings.
    pub refused: u64,
    /// Requests that broke a rule of the protocol.
    pub invalid: u64,
    /// Requests answered 416 because an app had used up its quota (NetEase and Yunxin).
    pub limited: u64,
    /// Requests to an IM path, including those with a fault; not those to `/_mock` and `/livez`.
    pub requests: u64,
    /// Requests in progress, including late ones whose client has given up.
    pub in_play: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Requests that could not be logged; they were answered 500.
    pub log_errors: u64,
    /// Requests that got a fault, by fault.
    pub faults: BTreeMap<String, u64>,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) accepted: AtomicU64,
    pub(super) replays: AtomicU64,
    pub(super) duplicates: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) invalid: AtomicU64,
    pub(super) limited: AtomicU64,
    pub(super) requests: AtomicU64,
    pub(super) played: AtomicU64,
    pub(super) connections: AtomicU64,
    pub(super) log_errors: AtomicU64,
    faults: [AtomicU64; FaultKind::ALL.len()],
}

pub(super) fn count(counter: &AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Ordering::Relaxed);
}

/// The parts that all recipients of one request have in common.
pub(super) struct Origin {
    pub(super) system: &'static str,
    pub(super) from: String,
    pub(super) payload: Arc<str>,
    pub(super) traceparent: Option<Arc<str>>,
    pub(super) channel_type: u8,
    pub(super) no_persist: bool,
    pub(super) sync_once: bool,
    /// Whether the protocol has no client_msg_no, so that sender and payload identify a message.
    pub(super) unnumbered: bool,
}

/// One accepted recipient of a request.
#[derive(Clone)]
pub(super) struct Receipt {
    pub(super) recipient: String,
    pub(super) client_msg_no: String,
    pub(super) message_id: i64,
    pub(super) message_seq: u64,
    pub(super) replay: bool,
}

/// A message that was recalled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recalled {
    /// Microseconds since 1970.
    pub at_us: u64,
    pub system: &'static str,
    pub recipient: String,
    pub message_id: i64,
}

/// The state that all connections share.
pub(super) struct State {
    pub(super) version: Version,
    pub(super) token: Option<String>,
    pub(super) webhook_idempotent: bool,
    pub(super) directory: Directory,
    /// WuKongIM v3: the login of the manager; without one it requires none.
    pub(super) manager: Option<Login>,
    pub(super) openim: openim::OpenimState,
    pub(super) counters: Counters,
    pub(super) book: Book,
    /// Messages that their senders recalled.
    pub(super) recalled: Mutex<Vec<Recalled>>,
    /// WuKongIM v3: the answers, by channel, from_uid and client_msg_no.
    pub(super) stored: Shards<HashMap<u128, Stored>>,
    /// Webhook: the answers, by idempotency key.
    pub(super) known_keys: Shards<HashMap<u128, Arc<KnownKey>>>,
    pub(super) netease: netease::NeteaseState,
    pub(super) yunxin: yunxin::YunxinState,
    /// Cancelled when the server stops; ends everything that would wait forever.
    pub(super) stop: CancellationToken,
    /// Requests handled after the latency, even if the client has given up.
    pub(super) late: TaskTracker,
    chooser: Mutex<Chooser>,
    log: Option<LogFile>,
    message_id_base: i64,
    message_seq: AtomicU64,
}

impl State {
    pub(super) fn new(settings: Settings) -> Result<State, MockError> {
        let log = match &settings.log {
            Some(path) => Some(LogFile::open(path).map_err(|source| MockError::OpenLog {
                path: path.clone(),
                source,
            })?),
            None => None,
        };
        Ok(State {
            version: settings.wukongim,
            token: settings.token,
            webhook_idempotent: settings.webhook_idempotent,
            directory: Directory::new(settings.users),
            manager: settings.wukongim_manager,
            openim: openim::OpenimState::new(settings.openim),
            counters: Counters::default(),
            book: Book::new(settings.keep),
            recalled: Mutex::default(),
            stored: Shards::new(),
            known_keys: Shards::new(),
            netease: netease::NeteaseState::new(settings.netease),
            yunxin: yunxin::YunxinState::new(settings.yunxin, settings.seed),
            stop: CancellationToken::new(),
            late: TaskTracker::new(),
            chooser: Mutex::new(Chooser::new(settings.faults, settings.seed)),
            log,
            // Like a snowflake: the upper bits are milliseconds, so no two runs share an id, and
            // every id is above 2^53, where JavaScript would lose digits.
            message_id_base: ((micros_now() / 1000) << 20) as i64,
            message_seq: AtomicU64::new(0),
        })
    }

    pub(super) fn chooser(&self) -> MutexGuard<'_, Chooser> {
        self.chooser.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn accepted(&self) -> u64 {
        self.counters.accepted.load(Ordering::Relaxed)
    }

    pub(super) fn patch_faults(&self, patch: &serde_json::Value) -> Result<Faults, FaultsError> {
        let accepted = self.accepted();
        self.chooser().patch(patch, accepted).cloned()
    }

    /// Counts the request and decides its faults.
    pub(super) fn next_plan(&self) -> CallPlan {
        let number = self.counters.requests.fetch_add(1, Ordering::Relaxed);
        let accepted = self.accepted();
        let plan = self.chooser().draw(number, accepted, Instant::now());
        if let Some(kind) = plan.fault {
            count(&self.counters.faults[kind as usize], 1);
        }
        plan
    }

    /// A new message id and sequence number.
    pub(super) fn next_message(&self) -> (i64, u64) {
        let seq = 1 + self.message_seq.fetch_add(1, Ordering::Relaxed);
        (self.message_id_base + seq as i64, seq)
    }

    /// Finds a message by its id, in the conversation of its sender with a recipient.
    pub(super) fn message(&self, from: &str, to: &str, id: i64) -> Option<Entry> {
        let same = |entry: &Entry| entry.message_id == id && &*entry.from == from;
        self.book.of(to).into_iter().find(same)
    }

    /// Notes that a message was recalled.
    pub(super) fn recall(&self, system: &'static str, message: &Entry) {
        let recalled = Recalled {
            at_us: micros_now(),
            system,
            recipient: message.recipient.clone(),
            message_id: message.message_id,
        };
        self.recalled().push(recalled);
    }

    pub(super) fn recalled(&self) -> MutexGuard<'_, Vec<Recalled>> {
        self.recalled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the user is refused; counts the refusal.
    pub(super) fn refuses(&self, plan: &CallPlan, uid: &str) -> bool {
        let refused = plan.refusal.applies_to(uid);
        if refused {
            count(&self.counters.refused, 1);
        }
        refused
    }

    /// Accepts the receipts: on return they are in the log file, the book and the counters. With
    /// the fault "lost after 200" it leaves no trace. An error means that nothing was accepted.
    pub(super) fn record(
        &self,
        origin: &Origin,
        plan: &CallPlan,
        receipts: Vec<Receipt>,
    ) -> io::Result<()> {
        self.record_as(origin, plan, receipts, None)
    }

    /// The same, but `message` and the recipient identify a message that was accepted before.
    pub(super) fn record_as(
        &self,
        origin: &Origin,
        plan: &CallPlan,
        receipts: Vec<Receipt>,
        message: Option<&str>,
    ) -> io::Result<()> {
        if plan.fault == Some(FaultKind::LostAfter200) || receipts.is_empty() {
            return Ok(());
        }
        let entries = entries(origin, receipts);
        if let Some(log) = &self.log {
            log.append(&entries).inspect_err(|error| {
                count(&self.counters.log_errors, 1);
                tracing::error!(%error, "accepted message cannot be logged");
            })?;
        }
        for entry in entries {
            self.enter(origin, entry, message);
        }
        Ok(())
    }

    fn enter(&self, origin: &Origin, entry: Entry, message: Option<&str>) {
        let counter = match entry.replay {
            true => &self.counters.replays,
            false => &self.counters.accepted,
        };
        let message = match message {
            Some(message) => message.to_owned(),
            None if origin.unnumbered => format!("{}\0{}", origin.from, origin.payload),
            None => entry.client_msg_no.clone(),
        };
        let repeated = self.book.enter(entry, message.as_bytes());
        count(&self.counters.duplicates, usize::from(repeated));
        // Last, so that a caller that waits for this count finds the entry.
        count(counter, 1);
    }

    pub(super) fn stats(&self) -> Stats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        // Reads `played` before `requests`, so that the difference is never negative.
        let played = load(&self.counters.played);
        let faults = FaultKind::ALL.map(|kind| {
            let struck = load(&self.counters.faults[kind as usize]);
            (kind.name().to_owned(), struck)
        });
        Stats {
            accepted: load(&self.counters.accepted),
            replays: load(&self.counters.replays),
            duplicates: load(&self.counters.duplicates),
            refused: load(&self.counters.refused),
            invalid: load(&self.counters.invalid),
            limited: load(&self.counters.limited),
            requests: load(&self.counters.requests),
            in_play: load(&self.counters.requests).saturating_sub(played),
            connections: load(&self.counters.connections),
            log_errors: load(&self.counters.log_errors),
            faults: BTreeMap::from(faults),
        }
    }
}

fn entries(origin: &Origin, receipts: Vec<Receipt>) -> Vec<Entry> {
    let at_us = micros_now();
    let (system, from): (Arc<str>, Arc<str>) = (origin.system.into(), origin.from.as_str().into());
    let entry = |receipt: Receipt| Entry {
        at_us,
        system: Arc::clone(&system),
        recipient: receipt.recipient,
        from: Arc::clone(&from),
        client_msg_no: receipt.client_msg_no,
        message_id: receipt.message_id,
        message_seq: receipt.message_seq,
        replay: receipt.replay,
        channel_type: origin.channel_type,
        no_persist: origin.no_persist,
        sync_once: origin.sync_once,
        payload: Arc::clone(&origin.payload),
        traceparent: origin.traceparent.clone(),
    };
    receipts.into_iter().map(entry).collect()
}

pub(super) fn micros_now() -> u64 {
    // A clock before 1970 gives 0: the log stays readable, with wrong times.
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as u64)
}
