//! Slices: up to N recipients of one job, the unit on the lanes and of ack.
//!
//! A slice carries everything that its delivery needs, including the message, so losing the ledger
//! loses the dedup window but no recipient. Slice ids are derived from the submission. An intake
//! that dies half-way and runs again therefore publishes the same slices, and the ledger absorbs
//! the repeats.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::fallback::{Fallback, ForFallback};
use super::ids::{Fingerprint, Fingerprinter, JobId, Owner, SliceId};
use super::lane::{EXPRESS_RECIPIENTS_MAX, Lane, Priority};
use super::limits::Rate;
use super::message::{Content, MessageDocument, Options};
use super::message_id::MessageId;
use super::outcome::{Class, OnUncertain, Outcome, TargetAnswer};
use super::parts::{self, Bounds};
use super::placeholders::as_it_stands;
use super::window::Window;

/// Version of the slice format. A worker that meets a higher one leaves the slice to newer workers.
pub const SLICE_VERSION: u32 = 4;

/// Version of a slice whose recipients have sending hours of their own, or whose job is spread over a
/// time: an older worker would send to them at once.
pub(super) const SLICE_VERSION_TIMES: u32 = 4;

/// Version of a slice whose job has a category: an older worker would not heed its frequency cap.
const SLICE_VERSION_CATEGORY: u32 = 3;

/// Version of a slice with recipients for the second target of its job, which an older worker would
/// lose or not count.
pub(super) const SLICE_VERSION_FALLBACK: u32 = 3;

/// Version of a slice with unrecorded outcomes, which an older worker would lose.
const SLICE_VERSION_UNRECORDED: u32 = 2;

/// Version of a slice that every worker can deliver.
pub const SLICE_VERSION_PLAIN: u32 = 1;

/// The fields that all slices of a job share.
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
    /// Values for placeholders, an object; with it, every message is rendered for its recipient.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vars: Option<Box<RawValue>>,
    pub options: Options,
    /// Milliseconds since 1970, as all times in slices.
    pub accepted_at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<u64>,
    /// The sending hours of the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// Its recipients are spread evenly over the time until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pace_until_ms: Option<u64>,
    /// The category of the message, whose frequency cap applies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// The job's own limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_uncertain: Option<OnUncertain>,
    /// Where to POST the accounts when the job completes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback_url: Option<String>,
    /// The queue to which they are published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
    /// The second target, for recipients that this one refuses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
    /// The ledger keeps the ids of the messages.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_ids: bool,
    /// The target that refused the recipients of a slice for the second target. Not in the head of a
    /// job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fell_from: Option<String>,
}

/// The kind of recipients of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Addressed {
    #[default]
    Users,
    /// Groups of this kind; each is sent to as a whole.
    Groups(u8),
}

impl Addressed {
    /// Keeps apart the fingerprints of users and groups.
    pub fn kind(self) -> String {
        match self {
            Self::Users => "user".to_owned(),
            Self::Groups(kind) => format!("group {kind}"),
        }
    }

    fn is_users(&self) -> bool {
        *self == Self::Users
    }
}

/// The number of buckets in the ledger of a job. The first submission of a job chooses it, or a far
/// larger one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Shape {
    pub buckets: u32,
}

/// The intended number of recipients per bucket. A bucket is read and written whole, so the
/// recipients of a window should be in few buckets. Measured on Redis 7.0 at a million recipients,
/// 320 costs half the CPU of 80, and its key costs half a byte per recipient.
pub const BUCKET_RECIPIENTS: u64 = 320;

/// The most buckets of a job.
pub const BUCKETS_MAX: u32 = 1 << 24;

impl Shape {
    /// Whether [`Shape::of`] can return it.
    pub fn is_sound(self) -> bool {
        (1..=BUCKETS_MAX).contains(&self.buckets)
    }

    /// The shape for a job of `entries` recipients. If its producer announced more parts, the
    /// caller passes the number that it expects.
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

/// One slice, as it is published.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Slice {
    pub v: u32,
    pub head: Arc<Head>,
    pub id: SliceId,
    /// The list entries of the slice, with repeats; a remainder keeps the number.
    pub entries: u32,
    pub shape: Shape,
    /// The lane to which it belongs and returns.
    pub lane: Lane,
    /// When the first call of this slice was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_attempt_at_ms: Option<u64>,
    /// The slice waits for its next attempt until this time, even if it comes back early because a
    /// directive changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_at_ms: Option<u64>,
    /// Recipients that wait longer than the slice, which comes back when the sending hours of others
    /// begin; left out while there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub due_later: Vec<DueLater>,
    /// Recipients without an outcome.
    pub recipients: Vec<String>,
    /// The request to list all users of the target, in place of recipients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enumeration: Option<Enumeration>,
    /// The slice waits until the other parts of its list are accepted; left out if there are none,
    /// or if all of them are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub together: Option<Together>,
    /// The values of each recipient for placeholders; left out while no recipient has any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vars: Vec<Option<Box<RawValue>>>,
    /// The attempts spent on each recipient; left out while there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<u32>,
    /// The number of recipients of each call, from the first recipient on: a repeated call has the
    /// same recipients in the same order. Left out while nothing was tried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<u32>,
    /// The retries that earlier deliveries of the slice decided on.
    #[serde(default, skip_serializing_if = "crate::json::is_zero")]
    pub retries: u32,
    /// The entries that earlier deliveries finished and that are no longer recipients here; see
    /// [`Slice::ended`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
    /// Recipients with a call in doubt; left out while there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub doubts: Vec<Remark>,
    /// Recipients that wait for the second target.
    #[serde(default, skip_serializing_if = "ForFallback::is_empty")]
    pub for_fallback: ForFallback,
    /// At the second target: what the first one said about the recipients.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<Remark>,
    /// Outcomes and releases that the ledger could not take while it was away.
    #[serde(default, skip_serializing_if = "Unrecorded::is_empty")]
    pub unrecorded: Unrecorded,
}

/// Recipients whose next attempt is due at a time of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DueLater {
    pub at_ms: u64,
    /// By position in the slice.
    pub recipients: Vec<u32>,
}

/// Outcomes and releases that deliveries know and the ledger lacks. They are recorded first,
/// without a call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unrecorded {
    /// Outcomes with their recipients, which are no longer recipients of the slice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outcomes: Vec<(Outcome, Vec<String>)>,
    /// The ids of messages to some of these recipients.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<(String, MessageId)>,
    /// Claims to release, by their owner, of recipients that were certainly not sent to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub release: Vec<(Owner, Vec<String>)>,
}

impl Unrecorded {
    pub fn is_empty(&self) -> bool {
        self.outcomes.is_empty() && self.release.is_empty()
    }

    /// The number of entries that have one of these outcomes.
    pub fn entries(&self) -> u32 {
        let sizes = self.outcomes.iter().map(|(_, names)| names.len() as u32);
        sizes.sum()
    }
}

/// The entries of a slice that have their outcome, as far as its deliveries know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    pub entries: u32,
    /// How many of them are repeats: of other entries in the list, or of recipients that had their
    /// outcome when they were claimed.
    pub repeats: u32,
}

impl Ended {
    /// Counts further entries that ended. A slice may come from any publisher with any number in
    /// it, so the sum saturates.
    pub fn add(&mut self, entries: u32, repeats: u32) {
        self.entries = self.entries.saturating_add(entries);
        self.repeats = self.repeats.saturating_add(repeats);
    }
}

/// Recipients about which a target said the same. As a doubt: they may have been sent to, and the
/// mark stays until the target answers what became of the call (promise 4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remark {
    /// By position in the slice.
    pub recipients: Vec<u32>,
    pub code: String,
    pub text: String,
}

impl Remark {
    /// Adds what was said about a recipient; equal remarks are merged.
    pub fn add(remarks: &mut Vec<Self>, recipient: u32, answer: &TargetAnswer) {
        let same = |it: &&mut Self| it.code == answer.code && it.text == answer.text;
        match remarks.iter_mut().find(same) {
            Some(remark) => remark.recipients.push(recipient),
            None => remarks.push(Self {
                recipients: vec![recipient],
                code: answer.code.clone().into_owned(),
                text: answer.text.clone().into_owned(),
            }),
        }
    }

    /// The remarks by position, each as an answer of this class. Positions that no recipient has are
    /// left out.
    pub fn by_position(
        remarks: &[Self],
        recipients: usize,
        class: Class,
    ) -> BTreeMap<usize, TargetAnswer> {
        let of = |remark: &Self| {
            let answer = TargetAnswer::new(class, remark.code.clone(), remark.text.clone());
            let positions = remark.recipients.clone().into_iter();
            positions.map(move |position| (position as usize, answer.clone()))
        };
        let all = remarks.iter().flat_map(of);
        all.filter(|(position, _)| *position < recipients).collect()
    }
}

/// The progress of listing all users of a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enumeration {
    /// Where to continue; from the beginning if it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// The number of the next part, 1-based.
    pub number: u32,
    /// How often in a row the target did not answer.
    #[serde(default)]
    pub failures: u32,
    /// Users to leave out, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
}

/// A list that arrives in parts and of which nothing is sent before all parts are accepted: its
/// producer may die half-way, and then no part of the list may be sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Together {
    /// The name of the list within its job.
    pub list: String,
    /// The part from which a slice was cut.
    pub number: u32,
    pub of: u32,
}

impl Slice {
    /// A slice without recipients, which nobody has worked on.
    pub fn new(head: Arc<Head>, id: SliceId, shape: Shape, lane: Lane) -> Self {
        Self {
            v: Self::version(&head, &Unrecorded::default()),
            head,
            id,
            entries: 0,
            shape,
            lane,
            first_attempt_at_ms: None,
            due_at_ms: None,
            due_later: Vec::new(),
            recipients: Vec::new(),
            enumeration: None,
            together: None,
            vars: Vec::new(),
            attempts: Vec::new(),
            calls: Vec::new(),
            retries: 0,
            ended: None,
            doubts: Vec::new(),
            for_fallback: ForFallback::default(),
            remarks: Vec::new(),
            unrecorded: Unrecorded::default(),
        }
    }

    /// The lowest version whose workers can deliver such a slice.
    pub fn version(head: &Head, unrecorded: &Unrecorded) -> u32 {
        if head.has_own_times() {
            SLICE_VERSION_TIMES
        } else if head.fell_from.is_some() {
            SLICE_VERSION_FALLBACK
        } else if head.category.is_some() {
            SLICE_VERSION_CATEGORY
        } else if unrecorded.is_empty() {
            SLICE_VERSION_PLAIN
        } else {
            SLICE_VERSION_UNRECORDED
        }
    }

    pub fn attempts_of(&self, index: usize) -> u32 {
        self.attempts.get(index).copied().unwrap_or(0)
    }

    /// The values of a recipient for placeholders.
    pub fn vars_of(&self, index: usize) -> Option<&RawValue> {
        self.vars.get(index)?.as_deref()
    }

    /// The calls of the slice, as ranges of positions: as they were made before, or with `per_call`
    /// recipients each.
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

    /// The entries that are no recipients here. If the slice does not carry their number, it was
    /// just cut and they are repeats in the list, or an older worker left it, which is treated the
    /// same.
    pub fn ended(&self) -> Ended {
        let gone = self.entries.saturating_sub(self.recipients.len() as u32);
        self.ended.unwrap_or(Ended {
            entries: gone,
            repeats: gone,
        })
    }
}

/// The recipients of one slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut<R> {
    pub id: SliceId,
    pub entries: u32,
    pub recipients: Vec<R>,
}

/// Cuts the recipients of one message into slices. A slice is a run in the order of the
/// fingerprints, which is the order of the buckets, so it touches few buckets and its claim is
/// short. The same list is always cut into the same slices, whatever the shape.
pub struct Cutter<R> {
    fingerprinter: Fingerprinter,
    recipients: Vec<(Fingerprint, R)>,
}

impl<R: AsRef<str>> Cutter<R> {
    /// For a list of `entries` entries.
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

    /// The slices, with at most `slice_recipients` entries each.
    pub fn finish(self, submission: &str, slice_recipients: u32) -> impl Iterator<Item = Cut<R>> {
        let mut sorted = self.recipients;
        sorted.sort_unstable_by(|a, b| (a.0, a.1.as_ref()).cmp(&(b.0, b.1.as_ref())));
        let runs = parts::cut(sorted, Bounds::of_slice(slice_recipients), |_| 0);
        (0..).zip(runs).map(move |(number, mut run)| {
            let entries = run.len() as u32;
            run.dedup_by(|a, b| a.1.as_ref() == b.1.as_ref());
            Cut {
                id: SliceId::new(submission, number),
                entries,
                recipients: run.into_iter().map(|(_, recipient)| recipient).collect(),
            }
        })
    }
}

impl Head {
    /// Whether it has times that an older worker does not know.
    pub(super) fn has_own_times(&self) -> bool {
        let own_zones = |window: &Window| window.zone_var().is_some();
        self.pace_until_ms.is_some() || self.window.as_ref().is_some_and(own_zones)
    }

    /// The message in the form in which a job carries it.
    pub fn message(&self) -> MessageDocument {
        let message = MessageDocument {
            native: self.native.clone(),
            vars: self.vars.clone(),
            ..self.content.document()
        };
        as_it_stands(message, &self.options)
    }
}

/// A list is cut into this many slices, if each then has `SLICE_RECIPIENTS_MIN`: a job of some
/// hundred recipients is to have its share at several workers, and at several places of each.
const SLICES_WANTED: usize = 8;
const SLICE_RECIPIENTS_MIN: usize = 64;

/// The most recipients of a slice, whatever its message.
pub const SLICE_RECIPIENTS_MAX: u32 = 5000;

/// Bytes of a recipient in a slice, roughly.
const RECIPIENT_BYTES: usize = 16;

/// The recipients per slice for a list of `entries`, at most `most`. Calls of `per_call` recipients
/// stay full.
///
/// Every slice carries the head of its job. If that head, of `head_bytes`, is longer than `most`
/// recipients, a slice takes as many recipients as are as long as the head: so the message of a
/// job makes up at most half of what travels, or a slice has the most recipients there may be.
pub fn slice_recipients(entries: usize, per_call: usize, most: u32, head_bytes: usize) -> u32 {
    let most = most.max(1);
    if entries <= EXPRESS_RECIPIENTS_MAX {
        return most;
    }
    let number = |recipients: usize| u32::try_from(recipients).unwrap_or(u32::MAX);
    let per_call = per_call.max(1);
    let as_long = (head_bytes / RECIPIENT_BYTES).next_multiple_of(per_call);
    let most = most.max(number(as_long).min(SLICE_RECIPIENTS_MAX));
    let wanted = entries.div_ceil(SLICES_WANTED).max(SLICE_RECIPIENTS_MIN);
    number(wanted.next_multiple_of(per_call)).min(most)
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

    #[test]
    fn a_job_of_hundreds_has_slices_for_several_places() {
        let slices = |entries: usize, per_call| {
            entries.div_ceil(slice_recipients(entries, per_call, 500, 400) as usize)
        };
        assert_eq!(
            [1, 100, 101, 500, 1600].map(|it| slices(it, 1)),
            [1, 1, 2, 8, 8]
        );
        assert_eq!(slices(4_000, 1), 8);
        assert_eq!(slices(8_000, 1), 16);
        assert_eq!(slices(100_000, 1), 200);
        // Calls are not torn apart for it.
        assert_eq!(slice_recipients(500, 100, 500, 300), 100);
        assert_eq!(slice_recipients(500, 500, 500, 300), 500);
        assert_eq!(slice_recipients(2_000, 500, 500, 300), 500);
        assert_eq!(slice_recipients(500, 1, 20, 300), 20);
    }

    #[test]
    fn a_long_message_travels_with_many_recipients() {
        let of = |entries, head_bytes| slice_recipients(entries, 1, 500, head_bytes);
        assert_eq!(of(1_000_000, 8_000), 500);
        assert_eq!(of(1_000_000, 16_000), 1_000);
        assert_eq!(of(1_000_000, 1_000_000), SLICE_RECIPIENTS_MAX);
        // Workers share a smaller list as ever.
        assert_eq!(of(8_000, 1_000_000), 1_000);
        assert_eq!(of(100, 1_000_000), 500);
        // Calls stay full.
        assert_eq!(slice_recipients(1_000_000, 500, 500, 60_000), 4_000);
    }

    proptest! {
        /// No recipient is lost or invented, and entries include the repeats.
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

        /// Cutting again gives the same slices; promise 5 relies on it.
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
