//! The steps of slices: claims their recipients, and records what became of them.

use std::collections::BTreeMap;
use std::time::Duration;

use redb::ReadableTable as _;

use super::{HEARD_OF, accounts, begun, job_row, keep_row, progress, shape};
use crate::domain::accounts::Remaining;
use crate::domain::ids::{Fingerprint, SliceId};
use crate::domain::outcome::Outcome;
use crate::domain::pace::Mark;
use crate::domain::slice::Shape;
use crate::embedded::claims::Asker;
use crate::embedded::disk::StorageError;
use crate::embedded::listing;
use crate::embedded::tables::{Bucket, JobRow};
use crate::embedded::writer::WriteContext;
use crate::ports::{Claim, ClaimState, Claimed, Recorded, Settle, SliceRef};

/// Codes for releasing a claim, besides those of `Outcome::ledger_code`: released for certain,
/// released in doubt, and given up unused, in the state in which it was found.
const RELEASE: u8 = b'r';
const DOUBT: u8 = b'd';
const UNUSED: u8 = b'k';
/// Sent by the second target of the job.
const SENT_BY_FALLBACK: u8 = b'b';

/// The facts about its slice that a step needs.
struct Slice {
    job: String,
    app: String,
    client_msg_no: String,
    target: String,
    accepted_at_ms: u64,
    id: SliceId,
    entries: u32,
    shape: Shape,
}

/// A slice as the ledger has it.
struct Located {
    row: JobRow,
    /// Entries that are counted.
    counted: u32,
    /// The job's row was changed.
    changed: bool,
}

impl Slice {
    fn of(slice: SliceRef<'_>) -> Self {
        let head = slice.head;
        Self {
            job: head.id.to_string(),
            app: head.app.clone(),
            client_msg_no: head.client_msg_no.clone(),
            target: head.first_target().to_owned(),
            accepted_at_ms: head.accepted_at_ms,
            id: slice.id.clone(),
            entries: slice.entries,
            shape: slice.shape,
        }
    }

    /// Finds the slice's record. Creates it if the ledger has forgotten the job or does not know
    /// the submission: the slice itself then says what it belongs to, and the total grows by its
    /// entries.
    fn locate(&self, work: &mut WriteContext<'_>) -> Result<Located, StorageError> {
        let (entered, found) = match job_row(work, &self.job)? {
            Some(row) if row.entered => (Some(row), None),
            found => (None, found),
        };
        let (mut row, mut changed) = match found {
            Some(row) => (row, false),
            None => {
                let row = JobRow {
                    app: self.app.clone(),
                    client_msg_no: self.client_msg_no.clone(),
                    target: self.target.clone(),
                    buckets: self.shape.buckets,
                    ..begun(work, entered.as_ref(), self.accepted_at_ms)
                };
                listing::add(work, &self.job, &row)?;
                (row, true)
            }
        };
        let slices = work.tables.slices.open()?;
        let key = (row.life, self.id.0.as_str());
        let counted = slices.get(key)?.map(|counted| counted.value());
        if counted.is_none() {
            slices.insert(key, 0)?;
            let submissions = work.tables.submissions.open()?;
            let key = (row.life, self.id.submission());
            let known = submissions.get(key)?.map(|row| row.value());
            if matches!(known, None | Some((_, HEARD_OF))) {
                let seen = known.map_or(0, |(seen, _)| seen);
                submissions.insert(key, (seen + u64::from(self.entries), HEARD_OF))?;
                row.total += u64::from(self.entries);
                row.rebuilt = true;
                row.completed_at_ms = None;
                listing::reopen(work, &self.job, &row)?;
                changed = true;
            }
        }
        Ok(Located {
            row,
            counted: counted.unwrap_or(0),
            changed,
        })
    }
}

/// The answer to a claim; without states the slice is done.
pub(super) fn claimed(order: Vec<u32>, states: Option<Vec<ClaimState>>) -> Claimed {
    let Some(states) = states else {
        return Claimed::SliceDone;
    };
    let mut each = vec![ClaimState::Granted; order.len()];
    for (at, state) in order.into_iter().zip(states) {
        each[at as usize] = state;
    }
    Claimed::Each(each)
}

pub(super) struct ClaimStep {
    slice: Slice,
    owner: u64,
    lease: Duration,
    /// Sorted.
    asked: Vec<u64>,
}

impl ClaimStep {
    /// The step, and the order in which it has the recipients.
    pub(super) fn of(claim: Claim<'_>) -> (Vec<u32>, Self) {
        let order = sorted(claim.recipients);
        let asked = order.iter().map(|at| claim.recipients[*at as usize].0);
        let step = Self {
            slice: Slice::of(claim.slice),
            owner: claim.owner.0,
            lease: claim.lease,
            asked: asked.collect(),
        };
        (order, step)
    }

    /// The bytes that it writes, nearly.
    pub(super) fn bytes(&self) -> usize {
        self.asked.len() * 8
    }

    /// None: the slice is done.
    pub(super) fn run(
        &self,
        work: &mut WriteContext<'_>,
    ) -> Result<Option<Vec<ClaimState>>, StorageError> {
        let Located {
            row,
            counted,
            changed,
        } = self.slice.locate(work)?;
        if changed {
            keep_row(work, &self.slice.job, &row)?;
        }
        if counted >= self.slice.entries {
            return Ok(None);
        }
        let asker = Asker {
            life: row.life,
            owner: self.owner,
        };
        let mut states = Vec::with_capacity(self.asked.len());
        let mut granted = Vec::with_capacity(self.asked.len());
        let buckets = work.tables.buckets.open()?;
        for group in groups(&self.asked, |it| *it, shape(&row)) {
            let stored = buckets.get((row.life, group.bucket))?;
            let bucket = match &stored {
                Some(stored) => Bucket::decode(stored.value())?,
                None => Bucket::default(),
            };
            for fingerprint in group.members {
                let state = match bucket.get(*fingerprint) {
                    Some(code) => ClaimState::Settled(outcome(code)?),
                    None => work
                        .claims
                        .state(Some(asker), row.life, *fingerprint, work.now),
                };
                if !matches!(state, ClaimState::Settled(_) | ClaimState::Held { .. }) {
                    granted.push(*fingerprint);
                }
                states.push(state);
            }
        }
        let claims = &mut work.tables.claims;
        work.claims
            .grant(claims, asker, &granted, self.lease, work.now)?;
        Ok(Some(states))
    }
}

pub(super) fn outcome(code: u8) -> Result<Outcome, StorageError> {
    Outcome::from_ledger_code(code).ok_or_else(|| StorageError::broken(format!("outcome {code}")))
}

pub(super) struct SettleStep {
    slice: Slice,
    owner: u64,
    /// Sorted, each recipient once.
    entries: Vec<(u64, u8)>,
    /// The ids to keep, as they are kept, sorted.
    ids: Vec<(u64, Vec<u8>)>,
    /// If the slice ends: the repeats that its deliveries saw.
    last: Option<u32>,
}

impl SettleStep {
    pub(super) fn of(settle: Settle<'_>) -> Self {
        Self {
            slice: Slice::of(settle.slice),
            owner: settle.owner.0,
            entries: settlements(&settle),
            ids: ids(&settle),
            last: settle.last,
        }
    }

    /// The bytes that it writes, nearly.
    pub(super) fn bytes(&self) -> usize {
        let ids = self.ids.iter().map(|(_, id)| 16 + id.len());
        self.entries.len() * 9 + ids.sum::<usize>()
    }

    pub(super) fn run(&self, work: &mut WriteContext<'_>) -> Result<Recorded, StorageError> {
        let Located {
            mut row,
            counted,
            mut changed,
        } = self.slice.locate(work)?;
        let asker = Asker {
            life: row.life,
            owner: self.owner,
        };
        let mut tally: BTreeMap<u8, u64> = BTreeMap::new();
        let (mut settled, mut stood) = (Vec::new(), 0);
        let (mut released, mut doubted) = (Vec::new(), Vec::new());
        let buckets = work.tables.buckets.open()?;
        for group in groups(&self.entries, |it| it.0, shape(&row)) {
            let key = (row.life, group.bucket);
            let stored = buckets.get(key)?;
            let bucket = match &stored {
                Some(stored) => Bucket::decode(stored.value())?,
                None => Bucket::default(),
            };
            let mut added = Vec::with_capacity(group.members.len());
            for (fingerprint, code) in group.members {
                let unused_in_doubt =
                    || *code == UNUSED && work.claims.holds_in_doubt(asker, *fingerprint);
                if *code == DOUBT || unused_in_doubt() {
                    doubted.push(*fingerprint);
                } else if matches!(*code, RELEASE | UNUSED) {
                    released.push(*fingerprint);
                } else if bucket.get(*fingerprint).is_none() {
                    // An outcome that comes late replaces a claim, whoever holds it: the send has
                    // happened.
                    let state = match *code {
                        SENT_BY_FALLBACK => b's',
                        code => code,
                    };
                    added.push((*fingerprint, state));
                    settled.push(*fingerprint);
                    *tally.entry(*code).or_default() += 1;
                } else {
                    stood += 1;
                }
            }
            if added.is_empty() {
                continue;
            }
            let written = bucket.with(&added);
            drop(stored);
            buckets.insert(key, written.as_slice())?;
        }
        row.has_ids |= self.keep_ids(work, row.life, &settled)?;
        let table = &mut work.tables.claims;
        work.claims.drop(table, row.life, &settled)?;
        work.claims.release(table, asker, &released)?;
        work.claims.doubt(table, asker, &doubted)?;

        let outcomes = counted.saturating_add(settled.len() as u32);
        let remaining = Remaining::of(self.slice.entries, outcomes, self.last, row.rebuilt);
        if !settled.is_empty() || remaining.duplicate != 0 {
            for (code, count) in tally {
                let outcome = match code {
                    SENT_BY_FALLBACK => {
                        row.sent_by_fallback += count;
                        Outcome::Sent
                    }
                    code => outcome(code)?,
                };
                if let Some(counter) = row.counter(outcome) {
                    *counter += count;
                }
            }
            row.duplicate += remaining.duplicate;
            let now = accounts(&row)?;
            // Recipients that were counted as lost too early are not lost.
            let over = now.settled().saturating_sub(now.total);
            row.lost -= row.lost.min(over);
            row.progress_at_ms = Some(work.now_ms);
            row.pace.note(Mark {
                at_ms: work.now_ms,
                settled: accounts(&row)?.settled(),
            });
            let key = (row.life, self.slice.id.0.as_str());
            let slices = &mut work.tables.slices;
            slices.open()?.insert(key, remaining.counted)?;
            changed = true;
        }
        if changed {
            keep_row(work, &self.slice.job, &row)?;
        }
        Ok(Recorded {
            progress: Some(progress(&row)?),
            stood,
            missing: remaining.missing,
        })
    }
}

impl SettleStep {
    /// Keeps the ids of messages to these recipients, which have just got their first outcome.
    /// Returns whether there are any.
    fn keep_ids(
        &self,
        work: &mut WriteContext<'_>,
        life: u64,
        settled: &[u64],
    ) -> Result<bool, StorageError> {
        if self.ids.is_empty() {
            return Ok(false);
        }
        let mut any = false;
        let table = work.tables.ids.open()?;
        for fingerprint in settled {
            let at = self.ids.binary_search_by_key(fingerprint, |(it, _)| *it);
            if let Ok(at) = at {
                table.insert((life, *fingerprint), self.ids[at].1.as_slice())?;
                any = true;
            }
        }
        Ok(any)
    }
}

/// Neighbours in the order of fingerprints that share a bucket.
struct Group<'a, T> {
    bucket: u32,
    members: &'a [T],
}

fn groups<T>(
    sorted: &[T],
    fingerprint: impl Fn(&T) -> u64 + Copy,
    shape: Shape,
) -> impl Iterator<Item = Group<'_, T>> {
    let bucket = move |it: &T| shape.bucket(Fingerprint(fingerprint(it)));
    sorted
        .chunk_by(move |a, b| bucket(a) == bucket(b))
        .map(move |members| Group {
            bucket: bucket(&members[0]),
            members,
        })
}

/// The positions in the order of their fingerprints. Slices are cut sorted, so the order is mostly
/// unchanged.
fn sorted(fingerprints: &[Fingerprint]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..).take(fingerprints.len()).collect();
    if !fingerprints.is_sorted() {
        order.sort_by_key(|at| fingerprints[*at as usize]);
    }
    order
}

/// The ids to keep, sorted.
fn ids(settle: &Settle<'_>) -> Vec<(u64, Vec<u8>)> {
    let ids = settle.ids.iter();
    let mut ids: Vec<_> = ids.map(|(it, id)| (it.0, id.encode())).collect();
    ids.sort_by_key(|(fingerprint, _)| *fingerprint);
    ids
}

/// The codes to write for the recipients, sorted, each recipient once. The first outcome given
/// counts; an outcome takes precedence over a release, and a release that keeps a doubt over one
/// that does not. Nothing is written for duplicates: they are the rest of the entries when the
/// slice ends.
fn settlements(settle: &Settle<'_>) -> Vec<(u64, u8)> {
    let by_fallback = settle.slice.head.fell_from.is_some();
    let code = |outcome: Outcome| match outcome {
        Outcome::Sent if by_fallback => Some(SENT_BY_FALLBACK),
        outcome => outcome.ledger_code(),
    };
    let outcomes = settle
        .outcomes
        .iter()
        .filter_map(|(fingerprint, outcome)| Some((fingerprint.0, code(*outcome)?)));
    let doubts = settle.doubted.iter().map(|it| (it.0, DOUBT));
    let unused = settle.unused.iter().map(|it| (it.0, UNUSED));
    let releases = settle.release.iter().map(|it| (it.0, RELEASE));
    let releases = doubts.chain(unused).chain(releases);
    let mut entries: Vec<_> = outcomes.chain(releases).collect();
    entries.sort_by_key(|(fingerprint, _)| *fingerprint);
    entries.dedup_by_key(|(fingerprint, _)| *fingerprint);
    entries
}
