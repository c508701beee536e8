//! Recipients as the scripts read them: sorted by fingerprint, packed, and grouped by bucket.

use std::time::Duration;

use crate::domain::ids::Fingerprint;
use crate::domain::outcome::Outcome;
use crate::domain::slice::Shape;
use crate::ports::{ClaimState, LedgerError};
use crate::store::connection::{Call, Script, broken};
use crate::store::keys::JobKeys;

/// Sorted fingerprints, packed, and grouped by bucket.
pub(in crate::store) struct Groups {
    packed: Vec<u8>,
    pub(in crate::store) groups: Vec<Group>,
}

pub(in crate::store) struct Group {
    bucket: u32,
    pub(in crate::store) start: usize,
    pub(in crate::store) end: usize,
}

impl Group {
    pub(in crate::store) fn bucket(&self) -> u32 {
        self.bucket
    }
}

impl Groups {
    pub(in crate::store) fn of(shape: Shape, sorted: &[Fingerprint]) -> Self {
        let mut packed = Vec::with_capacity(sorted.len() * 8);
        let mut groups: Vec<Group> = Vec::new();
        for (at, fingerprint) in sorted.iter().enumerate() {
            // Fingerprints of one bucket share their first bytes. In reverse order their first byte
            // differs, so a search finds them by it.
            packed.extend_from_slice(&fingerprint.0.to_le_bytes());
            let bucket = shape.bucket(*fingerprint);
            match groups.last_mut() {
                Some(group) if group.bucket == bucket => group.end = at + 1,
                _ => groups.push(Group {
                    bucket,
                    start: at,
                    end: at + 1,
                }),
            }
        }
        Self { packed, groups }
    }

    pub(in crate::store) fn packed(&self, group: &Group) -> &[u8] {
        &self.packed[group.start * 8..group.end * 8]
    }

    pub(in crate::store) fn count(&self) -> usize {
        self.groups.len()
    }

    /// The expected size of the keys and of what is packed.
    pub(in crate::store) fn bytes(&self) -> usize {
        self.groups.len() * 56 + self.packed.len() * 2
    }

    /// The packed fingerprints of each group.
    pub(in crate::store) fn each(&self) -> impl Iterator<Item = &[u8]> {
        self.groups.iter().map(|group| self.packed(group))
    }

    /// A call on the keys that every job has and on these buckets.
    pub(in crate::store) fn call<'a>(
        &self,
        script: &'a Script,
        keys: &JobKeys,
        args: usize,
    ) -> Call<'a> {
        let count = self.count();
        let mut call = Call::new(script, 4 + count, args + 2 * count, 640 + self.bytes());
        call.push(&keys.header)
            .push(keys.slices())
            .push(keys.submissions())
            .push(keys.owners());
        self.push_keys(keys, &mut call);
        call
    }

    pub(in crate::store) fn push_keys(&self, keys: &JobKeys, call: &mut Call<'_>) {
        let mut key = String::with_capacity(keys.header.len() + 12);
        for group in &self.groups {
            keys.write_bucket(group.bucket, &mut key);
            call.push(&key);
        }
    }
}

/// The positions in the order of their fingerprints. Slices are cut sorted, so the order is mostly
/// unchanged.
pub(in crate::store) fn sorted(fingerprints: &[Fingerprint]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..).take(fingerprints.len()).collect();
    if !fingerprints.is_sorted() {
        order.sort_by_key(|at| fingerprints[*at as usize]);
    }
    order
}

/// The sorted fingerprints, each once. Two recipients with one fingerprint are one to the ledger.
pub(in crate::store) fn distinct(order: &[u32], fingerprints: &[Fingerprint]) -> Vec<Fingerprint> {
    let mut distinct: Vec<_> = order.iter().map(|at| fingerprints[*at as usize]).collect();
    distinct.dedup();
    distinct
}

/// The states that a claim returns, of sorted and distinct recipients.
pub(in crate::store) fn read_states(
    states: &[u8],
    lefts: &[u8],
) -> Result<Vec<ClaimState>, LedgerError> {
    let mut lefts = lefts.as_chunks::<4>().0.iter();
    let read = |code: &u8| match code {
        b'g' => Ok(ClaimState::Granted),
        b'd' => Ok(ClaimState::InDoubt),
        b't' => Ok(ClaimState::TakenOver),
        b'h' => {
            let left = lefts.next().ok_or_else(|| broken("a wait is missing"))?;
            let left = Duration::from_millis(u32::from_be_bytes(*left).into());
            Ok(ClaimState::Held { left })
        }
        code => Outcome::from_ledger_code(*code)
            .map(ClaimState::Settled)
            .ok_or_else(|| broken(format!("outcome {code:#x}"))),
    };
    states.iter().map(read).collect()
}

/// The states in the order in which the recipients were asked for.
pub(in crate::store) fn in_order(
    order: &[u32],
    recipients: &[Fingerprint],
    states: &[ClaimState],
) -> Result<Vec<ClaimState>, LedgerError> {
    let mut claimed = vec![ClaimState::Granted; order.len()];
    let mut states = states.iter();
    let mut before = None;
    for at in order {
        let fingerprint = recipients[*at as usize];
        let state = match before {
            Some((same, state)) if same == fingerprint => state,
            _ => *states.next().ok_or_else(|| broken("a state is missing"))?,
        };
        claimed[*at as usize] = state;
        before = Some((fingerprint, state));
    }
    Ok(claimed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_cover_everybody_in_order() {
        let shape = Shape { buckets: 3 };
        let fingerprints: Vec<_> = (0..5000u64)
            .map(|n| Fingerprint(n * (u64::MAX / 5000)))
            .collect();
        let groups = Groups::of(shape, &fingerprints);
        let mut next = 0;
        for group in &groups.groups {
            assert_eq!(group.start, next);
            for fingerprint in &fingerprints[group.start..group.end] {
                assert_eq!(shape.bucket(*fingerprint), group.bucket);
            }
            next = group.end;
        }
        assert_eq!((next, groups.groups.len()), (5000, 3));
    }
}
