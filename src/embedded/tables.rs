//! Defines every table: what it holds, and how its records are written.
//!
//! | table | key | holds |
//! |---|---|---|
//! | `queues` | name | number of the queue: `jobs.<priority>`, `send.<lane>` |
//! | `counts` | queue | messages ready, messages waiting, and the number below which they were handed out |
//! | `ready` | queue, number | messages in the order of their commits |
//! | `waiting` | queue, due in ms, number | messages on the retry ladder |
//! | `kept` | retained queue, number | dead letters and rejected messages |
//! | `jobs` | job id | [`JobRow`] |
//! | `listed` | time of acceptance, job id | the order of `jobs` |
//! | `outlines` | as `listed` | the [`outline`](crate::ports::outline()) of the job |
//! | `open` | as `listed` | the outline of a job that is not completed |
//! | `submissions` | life, submission | entries, and 0 known only from its slices, 1 accepted, 2 expanded; under `list 0 <list>` how many parts of a list have arrived, and 3, or 4 when the list was given up; `list <part> <list>` for each part; `cut <submission>` with the recipients per slice, and 5 |
//! | `slices` | life, slice | entries of it that are counted |
//! | `buckets` | life, bucket | settled recipients: 8 bytes of fingerprint and 1 of outcome each, sorted |
//! | `claims` | number | `ClaimRow`, one per claim that is open |
//! | `ended` | life | lives of jobs whose rows are to be swept |
//! | `parks` | target | until, and the parking as JSON |
//! | `reasons` | life of the job, fingerprint | why the recipient ended failed or uncertain, as JSON |
//! | `trails` | life of the job, number | an entry of its audit trail, as JSON |
//! | `ids` | life of a job that keeps ids, fingerprint | the recipient with the id of its message, see [`KeptId::encode`](crate::domain::message_id::KeptId::encode) |
//! | `directives` | scope, kind, name | the directive as JSON |
//! | `template_names` | app, name | last version of a stored message, and when it was deleted, in ms, or 0 |
//! | `templates` | app, name, version | when it was put, in ms, and the message as JSON |
//! | `quotas` | app, UTC day, what | list entries: `used`, those of the day; `j<job>`, those of one job; `s<job>/<submission>`, those of a list that is counted |
//! | `cap_units` | end of the next period in ms, cap, fingerprint | the units of a frequency cap that count for a recipient, 12 bytes each |
//! | `sub_lanes` | target and priority, job id | sub-lane of an open job |
//! | `meta` | name | `format`, `opening`, and the next free numbers: `seq` of a message, `life` of a job; `outlined`, the last opening that kept `outlines` and `open`; `directed`, how often directives changed; `log`, the salt of the [log](super::log) that goes with the store, or 0; `logged`, the last record of it that the store has; `beat`, written to test whether the disk takes writes |
//!
//! A *life* is the number of a job from its acceptance until a dedup window after its completion. A
//! job that is accepted again finds nothing of an earlier life.

use std::collections::HashMap;

use bytes::Bytes;
use redb::{ReadTransaction, ReadableTable as _, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::backup::Copy;
use super::changes::Change;
use super::claims::Claims;
use super::disk::StorageError;
use super::listing;
use super::transaction::{self, Lazy, LoggedTable, Transaction};
use crate::domain::lane::{Lane, Priority};
use crate::domain::list_reference::FetchedList;
use crate::domain::message_id::KeepsIds;
use crate::domain::outcome::Outcome;
use crate::domain::pace::Pace;
use crate::json;
use crate::ports::Source;

/// Version of the layout. A store with a higher version is not opened.
pub(super) const FORMAT: u64 = 2;

/// The version of a store that needs no log. Versions of Fanwise that know no log read it too.
const FORMAT_WITHOUT_LOG: u64 = 1;

pub(super) type ListedKey = (u64, &'static str);
/// The use of an app on a day.
pub(super) type QuotaKey = (&'static str, u64, &'static str);
/// When the units stop counting, the cap, and the recipient.
pub(super) type CapUnitKey = (u64, &'static str, u64);
/// The directive of a kind about a subject.
pub(super) type DirectiveKey = (&'static str, &'static str, &'static str);

/// The table, key and value of a row.
#[cfg(test)]
pub(super) type Row = (String, Vec<u8>, Vec<u8>);

/// Defines the tables, and what is done with each of them.
macro_rules! tables {
    ($($number:literal $field:ident $name:ident: $key:ty => $value:ty;)*) => {
        $(pub(super) const $name: TableDefinition<'static, $key, $value> =
            TableDefinition::new(stringify!($field));)*

        /// The tables of one write transaction.
        pub(super) struct Tables<'t> {
            $(pub(super) $field: Lazy<'t, $key, $value>,)*
        }

        impl<'t> Tables<'t> {
            pub(super) fn new(transaction: &'t Transaction) -> Self {
                Self { $($field: Lazy::new(transaction, $name, $number),)* }
            }

            /// Creates those that are missing: a reader does not.
            fn create(&mut self) -> Result<(), StorageError> {
                $(self.$field.open()?;)*
                Ok(())
            }
        }

        /// Copies every table.
        pub(super) fn copy_each(copy: &Copy<'_>) -> Result<(), StorageError> {
            $(copy.table($name)?;)*
            Ok(())
        }

        /// Every row of every table.
        #[cfg(test)]
        pub(super) fn rows(transaction: &ReadTransaction) -> Result<Vec<Row>, StorageError> {
            let mut rows = Vec::new();
            $(transaction::rows(transaction, $name, &mut rows)?;)*
            Ok(rows)
        }

        /// Changes a row of the table with this number, as the log says.
        pub(super) fn redo(
            store: &WriteTransaction,
            table: u8,
            key: &[u8],
            change: &Change<'_>,
        ) -> Result<(), StorageError> {
            match table {
                $($number => transaction::redo(store, $name, key, change),)*
                _ => Err(StorageError::Damaged(format!("its log has a table {table}"))),
            }
        }
    };
}

// The log knows a table by its number, which stays the same for ever.
tables! {
    1 queues QUEUES: &'static str => u32;
    2 counts COUNTS: u32 => (u64, u64, u64);
    3 ready READY: (u32, u64) => &'static [u8];
    4 waiting WAITING: (u32, u64, u64) => &'static [u8];
    5 kept KEPT: (u8, u64) => &'static [u8];
    6 jobs JOBS: &'static str => &'static [u8];
    7 listed LISTED: ListedKey => ();
    8 outlines OUTLINES: ListedKey => &'static str;
    9 open OPEN: ListedKey => &'static str;
    10 submissions SUBMISSIONS: (u64, &'static str) => (u64, u8);
    11 slices SLICES: (u64, &'static str) => u32;
    12 buckets BUCKETS: (u64, u32) => &'static [u8];
    13 reasons REASONS: (u64, u64) => &'static [u8];
    14 trails TRAILS: (u64, u64) => &'static [u8];
    15 ids IDS: (u64, u64) => &'static [u8];
    16 claims CLAIMS: u64 => &'static [u8];
    17 ended ENDED: u64 => ();
    18 parks PARKS: &'static str => (u64, &'static str);
    19 template_names TEMPLATE_NAMES: (&'static str, &'static str) => (u32, u64);
    20 templates TEMPLATES: (&'static str, &'static str, u32) => (u64, &'static str);
    21 quotas QUOTAS: QuotaKey => u64;
    22 cap_units CAP_UNITS: CapUnitKey => &'static [u8];
    23 directives DIRECTIVES: DirectiveKey => &'static [u8];
    24 sub_lanes SUB_LANES: (&'static str, &'static str) => u32;
    25 meta META: &'static str => u64;
}

impl Tables<'_> {
    /// Counts an opening, as an earlier version does.
    #[cfg(test)]
    pub(super) fn open_once_more(&mut self) -> Result<(), StorageError> {
        let meta = self.meta.open()?;
        let before = meta.get("opening")?.map_or(0, |count| count.value());
        meta.insert("opening", before + 1)?;
        Ok(())
    }

    /// Counts a change of the directives.
    pub(super) fn count_directed(&mut self) -> Result<(), StorageError> {
        let meta = self.meta.open()?;
        let before = meta.get("directed")?.map_or(0, |count| count.value());
        meta.insert("directed", before + 1)?;
        Ok(())
    }

    /// Writes a value, to test whether the disk takes writes.
    pub(super) fn beat(&mut self, now_ms: u64) -> Result<(), StorageError> {
        self.meta.open()?.insert("beat", now_ms)?;
        Ok(())
    }

    /// Stores the next free numbers of a message and of a life.
    pub(super) fn keep_next(&mut self, seq: u64, life: u64) -> Result<(), StorageError> {
        let meta = self.meta.open()?;
        meta.insert("seq", seq)?;
        meta.insert("life", life)?;
        Ok(())
    }
}

/// The queues; fixed while the engine is open.
#[derive(Debug, Default)]
pub(super) struct Queues {
    numbers: HashMap<String, u32>,
    /// By number, including the lanes of targets that are no longer configured.
    pub(super) names: Vec<String>,
    /// Messages with lower numbers were handed out before the engine was opened.
    pub(super) handed: Vec<u64>,
}

impl Queues {
    /// The number of a queue that takes messages.
    pub(super) fn number(&self, name: &str) -> Option<u32> {
        self.numbers.get(name).copied()
    }
}

pub(super) fn jobs_queue(priority: Priority) -> String {
    format!("jobs.{}", priority.as_str())
}

pub(super) fn lane_queue(lane: impl std::fmt::Display) -> String {
    format!("send.{lane}")
}

pub(super) fn source_queue(source: &Source) -> String {
    match source {
        Source::Jobs(priority) => jobs_queue(*priority),
        Source::Lane(lane) => lane_queue(lane),
    }
}

/// The routing key under which a message of this queue was published.
pub(super) fn routing_key(queue: &str) -> &str {
    queue.split_once('.').map_or(queue, |(_, key)| key)
}

/// The state that an engine starts with.
pub(super) struct Start {
    pub(super) queues: Queues,
    pub(super) claims: Claims,
    /// The next number of a message.
    pub(super) next_seq: u64,
    pub(super) next_life: u64,
}

/// What an opening needs to know before anything else.
#[derive(Default)]
pub(super) struct Opening {
    /// The format in which the store was written; 0 for an empty one.
    pub(super) format: u64,
    /// The salt of the log that goes with the store; 0 if it needs none.
    pub(super) log: u64,
    /// The last record of the log that the store has.
    pub(super) logged: u64,
}

pub(super) fn opening(transaction: &ReadTransaction) -> Result<Opening, StorageError> {
    let meta = match transaction.open_table(META) {
        Ok(meta) => meta,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Opening::default()),
        Err(error) => return Err(error.into()),
    };
    let number = |name| -> Result<u64, StorageError> {
        Ok(meta.get(name)?.map_or(0, |number| number.value()))
    };
    Ok(Opening {
        format: number("format")?,
        log: number("log")?,
        logged: number("logged")?,
    })
}

/// Notes which log goes with the store; 0 for none.
pub(super) fn set_log(store: &WriteTransaction, salt: u64) -> Result<(), StorageError> {
    let format = match salt {
        0 => FORMAT_WITHOUT_LOG,
        _ => FORMAT,
    };
    let mut meta = store.open_table(META)?;
    meta.insert("log", salt)?;
    meta.insert("format", format)?;
    Ok(())
}

/// Notes the last record of the log that the store has.
pub(super) fn set_logged(store: &WriteTransaction, record: u64) -> Result<(), StorageError> {
    store.open_table(META)?.insert("logged", record)?;
    Ok(())
}

/// How often directives changed.
pub(super) fn directed(transaction: &ReadTransaction) -> Result<u64, StorageError> {
    let meta = transaction.open_table(META)?;
    Ok(meta.get("directed")?.map_or(0, |count| count.value()))
}

/// Creates what is missing and reads the state that the engine starts with. It reads no bodies, so
/// it takes the same time however full the queues are. Only an opening after an earlier version reads all jobs.
pub(super) fn prepare(
    transaction: &Transaction,
    targets: &[String],
) -> Result<Start, StorageError> {
    let mut tables = Tables::new(transaction);
    tables.create()?;
    let meta = tables.meta.open()?;
    let number =
        |meta: &LoggedTable<'_, &'static str, u64>, name: &str| -> Result<u64, StorageError> {
            Ok(meta.get(name)?.map_or(0, |value| value.value()))
        };
    let opening = number(meta, "opening")? + 1;
    let next_life = number(meta, "life")?;
    let next_seq = number(meta, "seq")?;
    let outlined = number(meta, "outlined")?;
    meta.insert("opening", opening)?;
    meta.insert("outlined", opening)?;
    if outlined + 1 != opening {
        listing::rebuild(&mut tables)?;
    }

    let queues = prepare_queues(&mut tables, targets)?;
    let claims = Claims::load(&**tables.claims.open()?, opening)?;
    Ok(Start {
        queues,
        claims,
        next_seq,
        next_life,
    })
}

fn prepare_queues(tables: &mut Tables<'_>, targets: &[String]) -> Result<Queues, StorageError> {
    let wanted = Priority::ALL
        .iter()
        .copied()
        .map(jobs_queue)
        .chain(targets.iter().flat_map(|it| Lane::all(it)).map(lane_queue));
    let known = tables.queues.open()?;
    let mut queues = Queues::default();
    let mut next = 0;
    for row in known.iter()? {
        next = next.max(row?.1.value() + 1);
    }
    for name in wanted {
        let found = known.get(name.as_str())?.map(|number| number.value());
        let number = match found {
            Some(number) => number,
            None => {
                known.insert(name.as_str(), next)?;
                next += 1;
                next - 1
            }
        };
        queues.numbers.insert(name, number);
    }
    queues.names = vec![String::new(); next as usize];
    queues.handed = vec![0; next as usize];
    let counts = tables.counts.open()?;
    for row in known.iter()? {
        let (name, number) = row?;
        let number = number.value();
        queues.names[number as usize] = name.value().to_owned();
        if let Some(counts) = counts.get(number)? {
            queues.handed[number as usize] = counts.value().2;
        }
    }
    Ok(queues)
}

/// Messages in a queue, including those handed out.
pub(super) struct Count {
    pub(super) queue: String,
    pub(super) ready: u64,
    pub(super) waiting: u64,
}

pub(super) fn counts(transaction: &ReadTransaction) -> Result<Vec<Count>, StorageError> {
    let counts = transaction.open_table(COUNTS)?;
    let mut all = Vec::new();
    for row in transaction.open_table(QUEUES)?.iter()? {
        let (name, number) = row?;
        let (ready, waiting) = match counts.get(number.value())? {
            Some(counts) => (counts.value().0, counts.value().1),
            None => (0, 0),
        };
        all.push(Count {
            queue: name.value().to_owned(),
            ready,
            waiting,
        });
    }
    for (name, number) in super::retained::COUNTED {
        let ready = counts.get(number)?.map_or(0, |counts| counts.value().0);
        all.push(Count {
            queue: name.to_owned(),
            ready,
            waiting: 0,
        });
    }
    Ok(all)
}

// ---------------------------------------------------------------------------------------------
// Messages
// ---------------------------------------------------------------------------------------------

/// A message as it is stored: a version byte, when it was published (8 bytes), the length of its
/// properties (4 bytes), the properties as JSON, and the unchanged body.
pub(super) struct Message<'a> {
    pub(super) published_ms: u64,
    with: &'a [u8],
    pub(super) body: &'a [u8],
}

/// The properties of a message.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct With {
    #[serde(rename = "id")]
    pub(super) message_id: String,
    #[serde(rename = "trace", default, skip_serializing_if = "Option::is_none")]
    pub(super) traceparent: Option<String>,
    /// Only for retained messages; for others it follows from the queue.
    #[serde(rename = "key", default, skip_serializing_if = "Option::is_none")]
    pub(super) routing_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) rejected: Option<Rejected>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Rejected {
    pub(super) reason: String,
    pub(super) source: String,
    pub(super) at_ms: u64,
}

const MESSAGE_VERSION: u8 = 1;
const MESSAGE_HEAD: usize = 13;

impl<'a> Message<'a> {
    pub(super) fn write(published_ms: u64, with: &With, body: &[u8]) -> Vec<u8> {
        let with = json::bytes(with);
        let mut bytes = Vec::with_capacity(MESSAGE_HEAD + with.len() + body.len());
        bytes.push(MESSAGE_VERSION);
        bytes.extend_from_slice(&published_ms.to_be_bytes());
        bytes.extend_from_slice(&(with.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&with);
        bytes.extend_from_slice(body);
        bytes
    }

    pub(super) fn decode(bytes: &'a [u8]) -> Result<Self, StorageError> {
        let broken = || StorageError::broken("a message is cut short");
        let (head, rest) = bytes.split_at_checked(MESSAGE_HEAD).ok_or_else(broken)?;
        let (with, body) = rest
            .split_at_checked(number(&head[9..13]) as usize)
            .ok_or_else(broken)?;
        Ok(Self {
            published_ms: number(&head[1..9]),
            with,
            body,
        })
    }

    pub(super) fn with(&self) -> Result<With, StorageError> {
        serde_json::from_slice(self.with).map_err(StorageError::broken)
    }

    pub(super) fn body(&self) -> Bytes {
        Bytes::copy_from_slice(self.body)
    }
}

/// A number of up to 8 bytes.
pub(super) fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

// ---------------------------------------------------------------------------------------------
// Jobs
// ---------------------------------------------------------------------------------------------

/// A job in the ledger.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct JobRow {
    pub(super) life: u64,
    pub(super) app: String,
    pub(super) client_msg_no: String,
    pub(super) target: String,
    /// Empty while the job is known only from its slices.
    pub(super) digest: String,
    pub(super) buckets: u32,
    pub(super) parts: u32,
    pub(super) submissions: u64,
    pub(super) expanded: u64,
    pub(super) total: u64,
    pub(super) sent: u64,
    /// Decreases if a slice was counted as done too early.
    pub(super) duplicate: i64,
    pub(super) failed: u64,
    pub(super) uncertain: u64,
    pub(super) expired: u64,
    pub(super) cancelled: u64,
    #[serde(default)]
    pub(super) capped: u64,
    pub(super) rebuilt: bool,
    /// Parts of the request that the job runs without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) warnings: Vec<String>,
    /// The version of the stored message that it started with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) template: Option<u32>,
    pub(super) accepted_at_ms: u64,
    /// Its position in the list of jobs.
    pub(super) listed_at_ms: u64,
    pub(super) progress_at_ms: Option<u64>,
    pub(super) completed_at_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sender: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) window: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pace_until_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) category: Option<String>,
    #[serde(default)]
    pub(super) rate: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) priority: Option<Priority>,
    #[serde(default)]
    pub(super) not_before_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) expires_at_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) tags: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) fetched: Option<FetchedList>,
    /// What an operator changed.
    #[serde(default, skip_serializing_if = "Amended::is_empty")]
    pub(super) amended: Amended,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) callback_url: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reply_to: Option<String>,
    /// The second target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) fallback: Option<String>,
    #[serde(default, skip_serializing_if = "crate::json::is_zero")]
    pub(super) sent_by_fallback: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) keeps_ids: Option<KeepsIds>,
    /// The ledger has ids of messages, whatever it knows of the job.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) has_ids: bool,
    #[serde(default)]
    pub(super) pace: Pace,
    /// Known to be durable in a queue, and not registered yet; `total` is then the announced
    /// number.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) entered: bool,
    /// When a slice of it was last noted to wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) waited_at_ms: Option<u64>,
    /// Recipients that count as uncertain because their outcome is not known.
    #[serde(default)]
    pub(super) lost: u64,
    /// How often it was ended with lost recipients and then submitted again.
    #[serde(default, skip_serializing_if = "crate::json::is_zero")]
    pub(super) reopened: u64,
}

/// Values that replace those with which a job was accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Amended {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) priority: Option<Priority>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) not_before_ms: Option<u64>,
    /// 0 for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) expires_at_ms: Option<u64>,
    /// 0 for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pace_until_ms: Option<u64>,
}

impl Amended {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl JobRow {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StorageError> {
        serde_json::from_slice(bytes).map_err(StorageError::broken)
    }

    /// The counter of the recipients with this outcome. Duplicates are counted as list entries.
    pub(super) fn counter(&mut self, outcome: Outcome) -> Option<&mut u64> {
        match outcome {
            Outcome::Sent => Some(&mut self.sent),
            Outcome::Duplicate => None,
            Outcome::Failed => Some(&mut self.failed),
            Outcome::Uncertain => Some(&mut self.uncertain),
            Outcome::Expired => Some(&mut self.expired),
            Outcome::Cancelled => Some(&mut self.cancelled),
            Outcome::Capped => Some(&mut self.capped),
        }
    }

    pub(super) fn write(&self) -> Vec<u8> {
        // Strings and numbers can always be written as JSON.
        json::bytes(self)
    }
}

/// Bytes of a settled recipient in its bucket.
pub(super) const SETTLED_BYTES: usize = 9;

/// The settled recipients of a bucket, sorted by fingerprint.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bucket<'a>(&'a [[u8; SETTLED_BYTES]]);

impl<'a> Bucket<'a> {
    pub(super) fn decode(bytes: &'a [u8]) -> Result<Self, StorageError> {
        match bytes.as_chunks() {
            (settled, []) => Ok(Self(settled)),
            _ => Err(StorageError::broken("a bucket is cut short")),
        }
    }

    /// The code of the outcome of a recipient.
    pub(super) fn get(self, fingerprint: u64) -> Option<u8> {
        let at = self
            .0
            .binary_search_by_key(&fingerprint, |settled| number(&settled[..8]))
            .ok()?;
        Some(self.0[at][8])
    }

    /// The bucket in which this recipient has another outcome; `None` if it has not this one now.
    pub(super) fn changed(self, fingerprint: u64, from: u8, to: u8) -> Option<Vec<u8>> {
        let at = self
            .0
            .binary_search_by_key(&fingerprint, |settled| number(&settled[..8]))
            .ok()?;
        if self.0[at][8] != from {
            return None;
        }
        let mut changed = self.0.concat();
        changed[at * SETTLED_BYTES + 8] = to;
        Some(changed)
    }

    pub(super) fn codes(self) -> impl Iterator<Item = u8> + 'a {
        self.0.iter().map(|settled| settled[8])
    }

    /// The bucket with further recipients, which are sorted and not in it yet.
    pub(super) fn with(self, added: &[(u64, u8)]) -> Vec<u8> {
        let mut merged = Vec::with_capacity((self.0.len() + added.len()) * SETTLED_BYTES);
        let mut added = added.iter().peekable();
        for settled in self.0 {
            let here = number(&settled[..8]);
            while let Some(new) = added.next_if(|new| new.0 < here) {
                push(&mut merged, *new);
            }
            merged.extend_from_slice(settled);
        }
        added.for_each(|new| push(&mut merged, *new));
        merged
    }
}

fn push(bytes: &mut Vec<u8>, (fingerprint, code): (u64, u8)) {
    bytes.extend_from_slice(&fingerprint.to_be_bytes());
    bytes.push(code);
}
