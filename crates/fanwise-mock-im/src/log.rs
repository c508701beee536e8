//! Records every accepted recipient as one [`Entry`].
//!
//! A line of the log file is in the kernel (`write(2)` returned) before the answer to its request
//! is sent. So if the mock or the client is killed, the file still contains everything that was
//! answered. One call writes all lines of a request, on a descriptor opened for appending. The
//! kernel puts such writes one after the other, so the write needs no lock. Nothing is flushed to
//! the disk: the log survives the process, not the machine.
//!
//! The `Book` keeps the same entries in memory, up to a bound, and counts duplicates without a
//! bound.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::hash::Hasher;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use siphasher::sip128::{Hasher128, SipHasher13};

/// Payloads up to this many bytes are written unchanged, longer ones as their SHA-256.
const PAYLOAD_SHOWN_MAX: usize = 256;

/// Enough that two cores seldom wait for the same lock.
const SHARDS: usize = 64;

/// An accepted message to one recipient: a line of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Microseconds since 1970.
    pub at_us: u64,
    /// `wukongim`, `openim`, `netease`, `yunxin` or `webhook`.
    pub system: Arc<str>,
    /// The user; or the channel or team, if `channel_type` is not 1.
    pub recipient: String,
    pub from: Arc<str>,
    /// As the caller set it, or made by the server if the protocol has none.
    pub client_msg_no: String,
    pub message_id: i64,
    pub message_seq: u64,
    /// Whether the caller got an earlier answer again: not a new message.
    pub replay: bool,
    /// WuKongIM channel type: 1 user, 2 group; the other systems use the same values.
    pub channel_type: u8,
    #[serde(default)]
    pub no_persist: bool,
    #[serde(default)]
    pub sync_once: bool,
    /// The decoded payload as text, or `sha256:` and its digest if it is long or not text.
    pub payload: Arc<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<Arc<str>>,
}

/// The payload in the form of an entry.
pub(super) fn shown_payload(payload: &[u8]) -> Arc<str> {
    match std::str::from_utf8(payload) {
        Ok(text) if payload.len() <= PAYLOAD_SHOWN_MAX => text.into(),
        _ => sha256(payload).into(),
    }
}

fn sha256(payload: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, payload);
    let mut text = String::from("sha256:");
    for byte in digest.as_ref() {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// The log file.
#[derive(Debug)]
pub(super) struct LogFile(File);

impl LogFile {
    pub(super) fn open(path: &Path) -> io::Result<LogFile> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(LogFile(file))
    }

    /// Returns when the lines are in the kernel. It blocks the thread for a few microseconds, less
    /// than it would cost to hand the write to another thread and back.
    pub(super) fn append(&self, entries: &[Entry]) -> io::Result<()> {
        let mut lines = Vec::with_capacity(entries.len() * 320);
        for entry in entries {
            serde_json::to_writer(&mut lines, entry)?;
            lines.push(b'\n');
        }
        (&self.0).write_all(&lines)
    }
}

/// A 128-bit fingerprint of some texts. It includes their lengths, so their boundaries matter.
pub(super) fn fingerprint(parts: &[&[u8]]) -> u128 {
    let mut hasher = SipHasher13::new();
    for part in parts {
        hasher.write_usize(part.len());
        hasher.write(part);
    }
    hasher.finish128().as_u128()
}

/// A map split over many locks, each held for one look-up or insertion.
#[derive(Debug)]
pub(super) struct Shards<T>(Vec<Mutex<T>>);

impl<T: Default> Shards<T> {
    pub(super) fn new() -> Shards<T> {
        Shards((0..SHARDS).map(|_| Mutex::default()).collect())
    }

    pub(super) fn lock(&self, fingerprint: u128) -> MutexGuard<'_, T> {
        let index = fingerprint as usize % SHARDS;
        self.0[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn each(&self) -> impl Iterator<Item = MutexGuard<'_, T>> {
        let locks = self.0.iter();
        locks.map(|lock| lock.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[derive(Debug, Default)]
struct Page {
    /// How often a message was accepted as new, by message and recipient.
    times: HashMap<u128, u32>,
    entries: HashMap<String, Vec<Entry>>,
}

/// The accepted messages, in memory.
#[derive(Debug)]
pub(super) struct Book {
    pages: Shards<Page>,
    keep_max: usize,
    kept: AtomicUsize,
    left_out: AtomicU64,
}

impl Book {
    pub(super) fn new(keep_max: usize) -> Book {
        Book {
            pages: Shards::new(),
            keep_max,
            kept: AtomicUsize::new(0),
            left_out: AtomicU64::new(0),
        }
    }

    /// Stores the entry. Returns true if it is a new message, but one with the same `message` and
    /// recipient was accepted before.
    pub(super) fn enter(&self, entry: Entry, message: &[u8]) -> bool {
        let recipient = fingerprint(&[entry.recipient.as_bytes()]);
        let identity = fingerprint(&[message, entry.recipient.as_bytes()]);
        let keep = self.may_keep();
        let mut page = self.pages.lock(recipient);
        let times = page.times.entry(identity).or_default();
        let repeated = !entry.replay && *times > 0;
        *times += u32::from(!entry.replay);
        if keep {
            let entries = &mut page.entries;
            match entries.get_mut(&entry.recipient) {
                Some(kept) => kept.push(entry),
                None => drop(entries.insert(entry.recipient.clone(), vec![entry])),
            }
        }
        repeated
    }

    fn may_keep(&self) -> bool {
        let keep = self.keep_max > 0 && self.kept.fetch_add(1, Ordering::Relaxed) < self.keep_max;
        if !keep {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
        keep
    }

    /// Whether no entry was dropped because the book was full.
    pub(super) fn is_complete(&self) -> bool {
        self.left_out.load(Ordering::Relaxed) == 0
    }

    /// The entries of one recipient, oldest first.
    pub(super) fn of(&self, recipient: &str) -> Vec<Entry> {
        let page = self.pages.lock(fingerprint(&[recipient.as_bytes()]));
        page.entries.get(recipient).cloned().unwrap_or_default()
    }

    /// All entries, those of one recipient together and oldest first.
    pub(super) fn all(&self) -> Vec<Entry> {
        let pages = self.pages.each();
        pages
            .flat_map(|page| page.entries.values().flatten().cloned().collect::<Vec<_>>())
            .collect()
    }
}
