//! Slices: up to N recipients of one job, the unit on the lanes and of ack.
//!
//! A slice carries everything its delivery needs, the message included: losing the ledger loses the
//! dedup window, never a recipient. Slice ids are derived from the submission, so an intake that dies
//! half-way and runs again publishes the same slices, and the ledger absorbs the repeats.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::ids::{Fingerprint, Fingerprinter, JobId, Owner, SliceId};
use super::lane::{Lane, Priority};
use super::limits::Rate;
use super::message::{Content, MessageDocument, Options};
use super::outcome::{Class, OnUncertain, Outcome, TargetAnswer};
use super::placeholders::as_it_stands;

/// Version of the slice format. A worker that meets a higher one leaves the slice to newer workers.
pub const SLICE_VERSION: u32 = 2;

/// Version of a slice that an older worker may deliver too.
pub const SLICE_VERSION_PLAIN: u32 = 1;

/// What all slices of a job have in common.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Head {
    pub id: JobId,
    pub app: String,
    pub client_msg_no: String,
    pub target: String,
    pub priority: Priority,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
    #[serde(default, skip_serializing_if = "Addressed::is_users")]
    pub addressed: Addressed,
    pub content: Content,
    /// Further fields of the target's own request, an object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub native: Option<Box<RawValue>>,
    /// Values for placeholders, an object; with it every message is rendered for its recipient.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vars: Option<Box<RawValue>>,
    pub options: Options,
    /// Milliseconds since 1970, as all times in slices.
    pub accepted_at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<u64>,
    /// The job's own limit, as it was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_uncertain: Option<OnUncertain>,
    /// Where to POST the accounts when the job completes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback_url: Option<String>,
    /// The AMQP queue to publish them to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
}

/// What the recipients of a job are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Addressed {
    #[default]
    Users,
    /// Groups of this kind, each sent to as a whole.
    Groups(u8),
}

impl Addressed {
    fn is_users(&self) -> bool {
        *self == Self::Users
    }
}

/// How many buckets the ledger of a job has. Chosen by the first submission of a job, or a far larger
/// one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Shape {
    pub buckets: u32,
}

/// Recipients per bucket aimed at. A bucket is read and written whole, so a window should find its
/// recipients in few of them; measured on Redis 7.0 at a million recipients, 320 costs half the CPU
/// of 80, and its key costs half a byte a recipient.
pub const BUCKET_RECIPIENTS: u64 = 320;

/// Most buckets of a job.
pub const BUCKETS_MAX: u32 = 1 << 24;

impl Shape {
    /// Whether [`Shape::of`] can have given it.
    pub fn is_sound(self) -> bool {
        (1..=BUCKETS_MAX).contains(&self.buckets)
    }

    /// The shape for a job whose first submission has `entries` recipients (or `expected`, if its
    /// producer announced more parts).
    pub fn of(entries: u64) -> Self {
        Self {
            buckets: entries
                .div_ceil(BUCKET_RECIPIENTS)
                .clamp(1, u64::from(BUCKETS_MAX)) as u32,
        }
    }

    pub fn bucket(self, fingerprint: Fingerprint) -> u32 {
        (((fingerprint.0 >> 32) * u64::from(self.buckets)) >> 32) as u32
    }
}

/// One slice as it travels.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Slice {
    pub v: u32,
    pub head: Arc<Head>,
    pub id: SliceId,
    /// List entries the slice stands for, repeats included; a remainder keeps the number.
    pub entries: u32,
    pub shape: Shape,
    /// The lane it belongs to and returns to.
    pub lane: Lane,
    /// When the first call of this slice was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_attempt_at_ms: Option<u64>,
    /// Recipients without an outcome.
    pub recipients: Vec<String>,
    /// Not recipients but the way to them: all users of the target are asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enumeration: Option<Enumeration>,
    /// The other parts of its list are waited for first; left out when there are none, or all of them
    /// are there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub together: Option<Together>,
    /// Each one's own values for placeholders; left out while nobody has any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vars: Vec<Option<Box<RawValue>>>,
    /// Attempts already spent on each; left out while there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<u32>,
    /// How many recipients, from the first on, belong to one call each: a call that is repeated has
    /// the same recipients in the same order. Left out while nothing was tried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<u32>,
    /// What earlier deliveries did about the entries that are no recipients here; see
    /// [`Slice::ended`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
    /// Recipients with a call in doubt; left out while there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub doubts: Vec<Doubt>,
    /// What the ledger could not take while it was away. A slice that has it is of version 2: a worker
    /// that does not know it would lose it.
    #[serde(default, skip_serializing_if = "Unrecorded::is_empty")]
    pub unrecorded: Unrecorded,
}

/// What deliveries know that the ledger does not: it is recorded first, without a call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unrecorded {
    /// Recipients with their outcome, which are no recipients of the slice any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outcomes: Vec<(Outcome, Vec<String>)>,
    /// Claims to give up, by their owner, of recipients that were certainly not sent to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub release: Vec<(Owner, Vec<String>)>,
}

impl Unrecorded {
    pub fn is_empty(&self) -> bool {
        self.outcomes.is_empty() && self.release.is_empty()
    }

    /// Entries of the slice that have one of these outcomes.
    pub fn entries(&self) -> u32 {
        let sizes = self.outcomes.iter().map(|(_, names)| names.len() as u32);
        sizes.sum()
    }
}

/// Entries of a slice that have their outcome, as far as its deliveries know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    pub entries: u32,
    /// So many of them are repeats: of others in the list, or of recipients that had their outcome
    /// when they were claimed.
    pub repeats: u32,
}

impl Ended {
    /// Counts further entries that ended. A slice may come from anybody, with any number in it: none is so
    /// large that counting stops the worker.
    pub fn add(&mut self, entries: u32, repeats: u32) {
        self.entries = self.entries.saturating_add(entries);
        self.repeats = self.repeats.saturating_add(repeats);
    }
}

/// Recipients that may have been sent to, and why nobody knows: a mark that stays with them until
/// the target says what became of the call (promise 4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doubt {
    /// By position in the slice.
    pub recipients: Vec<u32>,
    pub code: String,
    pub text: String,
}

impl Doubt {
    pub fn new(recipient: u32, answer: &TargetAnswer) -> Self {
        Self {
            recipients: vec![recipient],
            code: answer.code.clone().into_owned(),
            text: answer.text.clone().into_owned(),
        }
    }

    pub fn says(&self, answer: &TargetAnswer) -> bool {
        self.code == answer.code && self.text == answer.text
    }

    pub fn answer(&self) -> TargetAnswer {
        TargetAnswer::new(Class::Uncertain, self.code.clone(), self.text.clone())
    }
}

/// How far the target was asked for all of its users.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enumeration {
    /// Where to go on; the beginning if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Number of the next part, 1-based.
    pub number: u32,
    /// How often in a row the target did not answer.
    #[serde(default)]
    pub failures: u32,
    /// Users to leave out, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
}

/// A list that travels in parts, nobody of which may be sent to before all parts are accepted: whoever
/// uploads it may die half-way, and then nobody is to be half-notified.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Together {
    /// Names the list within its job.
    pub list: String,
    /// Which part a slice was cut from.
    pub number: u32,
    pub of: u32,
}

impl Slice {
    pub fn attempts_of(&self, index: usize) -> u32 {
        self.attempts.get(index).copied().unwrap_or(0)
    }

    /// A recipient's own values for placeholders.
    pub fn vars_of(&self, index: usize) -> Option<&RawValue> {
        self.vars.get(index)?.as_deref()
    }

    /// The recipients cut into calls, as ranges of positions: as they were called before, or in
    /// calls of `per_call`.
    pub fn call_ranges(&self, per_call: usize) -> Vec<Range<usize>> {
        let mut ranges = Vec::with_capacity(self.recipients.len().div_ceil(per_call.max(1)));
        let mut start = 0;
        for length in &self.calls {
            let end = (start + *length as usize).min(self.recipients.len());
            ranges.extend(
                (start..end)
                    .step_by(per_call.max(1))
                    .map(|at| at..end.min(at + per_call)),
            );
            start = end;
        }
        let end = self.recipients.len();
        ranges.extend(
            (start..end)
                .step_by(per_call.max(1))
                .map(|at| at..end.min(at + per_call)),
        );
        ranges
    }

    /// What is known about the entries that are no recipients here. Where the slice does not say it,
    /// it was just cut, and they are repeats in the list; or an older worker left it, which is
    /// believed.
    pub fn ended(&self) -> Ended {
        let gone = self.entries.saturating_sub(self.recipients.len() as u32);
        self.ended.unwrap_or(Ended {
            entries: gone,
            repeats: gone,
        })
    }
}

/// Recipients that were cut into one slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut<R> {
    pub id: SliceId,
    pub entries: u32,
    pub recipients: Vec<R>,
}

/// Cuts the recipients of one message into slices: runs in the order of their fingerprints, which is
/// that of their buckets, so that a slice touches few of them and a claim is short. They are the same
/// whenever the same list is cut, whatever the shape.
pub struct Cutter<R> {
    fingerprinter: Fingerprinter,
    recipients: Vec<(Fingerprint, R)>,
}

impl<R: AsRef<str>> Cutter<R> {
    /// For a list of so many entries.
    pub fn new(fingerprinter: Fingerprinter, entries: usize) -> Self {
        Self {
            fingerprinter,
            recipients: Vec::with_capacity(entries),
        }
    }

    /// Adds one list entry.
    pub fn push(&mut self, recipient: R) {
        let fingerprint = self.fingerprinter.fingerprint(recipient.as_ref());
        self.recipients.push((fingerprint, recipient));
    }

    /// The slices, each of at most so many entries.
    pub fn finish(self, submission: &str, slice_recipients: u32) -> impl Iterator<Item = Cut<R>> {
        let mut sorted = self.recipients;
        sorted.sort_unstable_by(|a, b| (a.0, a.1.as_ref()).cmp(&(b.0, b.1.as_ref())));
        let mut rest = sorted.into_iter();
        (0..).map_while(move |number| {
            let mut run: Vec<_> = rest
                .by_ref()
                .take(slice_recipients.max(1) as usize)
                .collect();
            let entries = run.len() as u32;
            run.dedup_by(|a, b| a.1.as_ref() == b.1.as_ref());
            (entries > 0).then(|| Cut {
                id: SliceId::new(submission, number),
                entries,
                recipients: run.into_iter().map(|(_, recipient)| recipient).collect(),
            })
        })
    }
}

impl Head {
    /// The message as a job would carry it.
    pub fn message(&self) -> MessageDocument {
        let message = MessageDocument {
            native: self.native.clone(),
            vars: self.vars.clone(),
            ..self.content.document()
        };
        as_it_stands(message, &self.options)
    }

    /// The lane for a submission of this many recipients.
    pub fn lane(&self, entries: usize) -> Lane {
        // The last digits of the job id are as good a hash as any.
        let spread = self
            .id
            .to_string()
            .bytes()
            .fold(0u64, |sum, byte| sum.wrapping_mul(31) + u64::from(byte));
        Lane::of(&self.target, self.priority, entries, spread)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn cut(users: &[String], slice_recipients: u32) -> Vec<Cut<String>> {
        let fingerprinter = Fingerprinter::new("secret", JobId::of("app", "no"));
        let mut cutter = Cutter::new(fingerprinter, users.len());
        for user in users {
            cutter.push(user.clone());
        }
        cutter.finish("sub", slice_recipients).collect()
    }

    proptest! {
        /// Nobody is lost, nobody is invented, and entries count the repeats.
        #[test]
        fn cutting_keeps_everybody(
            users in prop::collection::vec("[a-z]{1,2}", 1..3000), slice_recipients in 1u32..200,
        ) {
            let cuts = cut(&users, slice_recipients);
            let entries: u64 = cuts.iter().map(|cut| u64::from(cut.entries)).sum();
            prop_assert_eq!(entries, users.len() as u64);
            let expected: BTreeSet<_> = users.iter().cloned().collect();
            let found: BTreeSet<_> = cuts.iter().flat_map(|cut| cut.recipients.clone()).collect();
            prop_assert_eq!(expected, found);
            for cut in &cuts {
                prop_assert!(cut.entries <= slice_recipients);
                let unique: BTreeSet<_> = cut.recipients.iter().collect();
                prop_assert_eq!(unique.len(), cut.recipients.len());
            }
        }

        /// Cutting again gives the same slices: promise 5 leans on it.
        #[test]
        fn cutting_is_deterministic(users in prop::collection::vec("[a-z0-9]{1,8}", 1..500)) {
            prop_assert_eq!(cut(&users, 50), cut(&users, 50));
        }

        /// Slices are full, and lie side by side in the order of the buckets.
        #[test]
        fn slices_lie_side_by_side(users in prop::collection::vec("[a-z0-9]{1,8}", 1..500)) {
            let shape = Shape { buckets: 40 };
            let fingerprinter = Fingerprinter::new("secret", JobId::of("app", "no"));
            let mut before = 0;
            let cuts = cut(&users, 20);
            prop_assert_eq!(cuts.len(), users.len().div_ceil(20));
            for cut in cuts {
                for user in cut.recipients {
                    let bucket = shape.bucket(fingerprinter.fingerprint(&user));
                    prop_assert!(bucket >= before);
                    before = bucket;
                }
            }
        }
    }
}
