//! Collects what a transaction changes, and writes it down for the log.
//!
//! However often its steps change a row, the log gets the row once. Of a row that was there before
//! it gets only the bytes that differ: a counter of a job, or the recipients that a bucket got.
//!
//! Each row is written as the number of its table, its key (the bytes that it shares with the key
//! before it, and the others), and what became of it: `0` gone, `1` a value, `2` a patch of the
//! value before. Numbers are varints of seven bits a byte, the lowest first.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::disk::StorageError;

/// Most bytes that the log takes of one transaction. More is better in the store at once than first
/// in the log and then there.
pub(super) const WRITTEN_MAX: usize = 256 * 1024;

/// Most bytes of keys and values that are kept of one transaction.
const KEPT_MAX: usize = 8 * WRITTEN_MAX;

const GONE: u8 = 0;
const VALUE: u8 = 1;
const PATCH: u8 = 2;

/// The rows that a transaction has changed, by table and key.
#[derive(Debug, Default)]
pub(super) struct Changes {
    rows: BTreeMap<(u8, Vec<u8>), Row>,
    bytes: usize,
}

#[derive(Debug)]
struct Row {
    before: Option<Vec<u8>>,
    after: Option<Vec<u8>>,
}

impl Changes {
    /// Notes what a row was and what it is now.
    pub(super) fn note(
        &mut self,
        table: u8,
        key: &[u8],
        before: Option<&[u8]>,
        after: Option<&[u8]>,
    ) {
        if after.is_some_and(|after| after.len() > WRITTEN_MAX) {
            self.bytes = usize::MAX;
        }
        if self.is_large() {
            self.rows.clear();
            return;
        }
        let row = match self.rows.entry((table, key.to_vec())) {
            Entry::Occupied(row) => row.into_mut(),
            Entry::Vacant(row) => {
                self.bytes += key.len() + before.map_or(0, <[u8]>::len);
                row.insert(Row {
                    before: before.map(<[u8]>::to_vec),
                    after: None,
                })
            }
        };
        let replaced = row.after.as_ref().map_or(0, Vec::len);
        self.bytes = self.bytes - replaced + after.map_or(0, <[u8]>::len);
        row.after = after.map(<[u8]>::to_vec);
    }

    /// Whether they are too many to be written down.
    pub(super) fn is_large(&self) -> bool {
        self.bytes > KEPT_MAX
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let mut key_before: &[u8] = &[];
        for ((table, key), row) in &self.rows {
            if row.before == row.after {
                continue;
            }
            let shared = shared_start(key_before, key);
            out.push(*table);
            put_number(out, shared);
            put_bytes(out, &key[shared..]);
            key_before = key;
            match (&row.before, &row.after) {
                (_, None) => out.push(GONE),
                (None, Some(after)) => put_value(out, after),
                (Some(before), Some(after)) => {
                    let patch = patch(before, after);
                    if patch.len() < after.len() {
                        out.push(PATCH);
                        put_bytes(out, &patch);
                    } else {
                        put_value(out, after);
                    }
                }
            }
        }
    }
}

/// What became of a row.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change<'a> {
    Gone,
    Value(&'a [u8]),
    Patch(&'a [u8]),
}

impl Change<'_> {
    /// The value after the change; `None` if the row is gone.
    pub(super) fn apply(&self, before: Option<&[u8]>) -> Result<Option<Vec<u8>>, StorageError> {
        match self {
            Self::Gone => Ok(None),
            Self::Value(value) => Ok(Some(value.to_vec())),
            Self::Patch(patch) => before
                .and_then(|before| patched(before, patch))
                .map(Some)
                .ok_or_else(|| StorageError::Damaged("its log does not fit it".to_owned())),
        }
    }
}

/// Reads changes that were written, and hands over each.
pub(super) fn read(
    mut bytes: &[u8],
    mut each: impl FnMut(u8, &[u8], Change<'_>) -> Result<(), StorageError>,
) -> Result<(), StorageError> {
    let cut = || StorageError::Damaged("its log has a record that makes no sense".to_owned());
    let mut key = Vec::new();
    while !bytes.is_empty() {
        let table = take_byte(&mut bytes).ok_or_else(cut)?;
        let shared = take_number(&mut bytes).ok_or_else(cut)?;
        key.truncate(shared);
        key.extend_from_slice(take_bytes(&mut bytes).ok_or_else(cut)?);
        let change = match take_byte(&mut bytes) {
            Some(GONE) => Change::Gone,
            Some(VALUE) => Change::Value(take_bytes(&mut bytes).ok_or_else(cut)?),
            Some(PATCH) => Change::Patch(take_bytes(&mut bytes).ok_or_else(cut)?),
            _ => return Err(cut()),
        };
        each(table, &key, change)?;
    }
    Ok(())
}

fn put_value(out: &mut Vec<u8>, value: &[u8]) {
    out.push(VALUE);
    put_bytes(out, value);
}

// ---------------------------------------------------------------------------------------------
// Patches
// ---------------------------------------------------------------------------------------------

/// Bytes that must agree for two places to be taken for the same one.
const AGREE: usize = 8;

/// How far a place is searched in the value before, and after.
const SEARCH_BEFORE: usize = 32;
const SEARCH_AFTER: usize = 256;

/// The way from one value to another, as pieces: how many bytes stay, how many are left out, and
/// the bytes that take their place. What comes after the last piece stays.
fn patch(before: &[u8], after: &[u8]) -> Vec<u8> {
    let mut patch = Vec::new();
    let (mut before, mut after) = (before, after);
    loop {
        let stays = shared_start(before, after);
        (before, after) = (&before[stays..], &after[stays..]);
        if before.is_empty() && after.is_empty() {
            return patch;
        }
        let (old, new) = meeting(before, after);
        put_number(&mut patch, stays);
        put_number(&mut patch, old);
        put_bytes(&mut patch, &after[..new]);
        (before, after) = (&before[old..], &after[new..]);
    }
}

fn patched(mut before: &[u8], mut patch: &[u8]) -> Option<Vec<u8>> {
    let mut after = Vec::with_capacity(before.len() + patch.len());
    while !patch.is_empty() {
        let (stays, rest) = before.split_at_checked(take_number(&mut patch)?)?;
        after.extend_from_slice(stays);
        before = rest.get(take_number(&mut patch)?..)?;
        after.extend_from_slice(take_bytes(&mut patch)?);
    }
    after.extend_from_slice(before);
    Some(after)
}

/// Where two values that begin differently become the same again.
fn meeting(before: &[u8], after: &[u8]) -> (usize, usize) {
    for (old, wanted) in before.windows(AGREE).take(SEARCH_BEFORE).enumerate() {
        let near = &after[..after.len().min(SEARCH_AFTER)];
        if let Some(new) = near.windows(AGREE).position(|here| here == wanted) {
            return (old, new);
        }
    }
    let ends = before.iter().rev().zip(after.iter().rev());
    let same = ends.take_while(|(old, new)| old == new).count();
    (before.len() - same, after.len() - same)
}

fn shared_start(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

// ---------------------------------------------------------------------------------------------
// Numbers and bytes
// ---------------------------------------------------------------------------------------------

fn put_number(out: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn take_byte(bytes: &mut &[u8]) -> Option<u8> {
    let (byte, rest) = bytes.split_first()?;
    *bytes = rest;
    Some(*byte)
}

fn take_number(bytes: &mut &[u8]) -> Option<usize> {
    let mut number = 0;
    for shift in (0..usize::BITS).step_by(7) {
        let byte = take_byte(bytes)?;
        number |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

fn take_bytes<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = take_number(bytes)?;
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn way(before: &[u8], after: &[u8]) -> usize {
        let patch = patch(before, after);
        assert_eq!(patched(before, &patch).as_deref(), Some(after));
        patch.len()
    }

    /// Settled recipients as a bucket has them.
    fn bucket(recipients: impl Iterator<Item = u64>) -> Vec<u8> {
        let settled = |it: u64| {
            let fingerprint = it.wrapping_mul(0x0001_0000_0001_0001).to_be_bytes();
            fingerprint.into_iter().chain([b's'])
        };
        recipients.flat_map(settled).collect()
    }

    #[test]
    fn a_patch_is_as_long_as_what_changed() {
        assert_eq!(way(b"", b""), 0);
        assert_eq!(way(b"the same", b"the same"), 0);
        let counted = |sent: u32| format!(r#"{{"app":"shop","sent":{sent},"failed":0,"lost":0}}"#);
        assert!(way(counted(99).as_bytes(), counted(100).as_bytes()) <= 6);
        // Twelve recipients more, all over the bucket: some bytes beside the nine of each.
        let before = bucket((0..320).filter(|it| it % 27 != 5));
        let after = bucket(0..320);
        assert!(way(&before, &after) <= 12 * (9 + 5));
        assert!(way(&after, &before) <= 12 * 5);
    }

    #[test]
    fn a_row_is_written_once_and_only_if_it_changed() {
        let mut changes = Changes::default();
        changes.note(
            1,
            b"counted",
            Some(b"a long value 1"),
            Some(b"a long value 2"),
        );
        changes.note(
            1,
            b"counted",
            Some(b"a long value 2"),
            Some(b"a long value 3"),
        );
        changes.note(1, b"as before", Some(b"1"), Some(b"2"));
        changes.note(1, b"as before", Some(b"2"), Some(b"1"));
        changes.note(1, b"came and went", None, Some(b"1"));
        changes.note(1, b"came and went", Some(b"1"), None);
        changes.note(2, b"new", None, Some(b"value"));
        changes.note(2, b"next", Some(b"value"), None);
        let mut written = Vec::new();
        changes.write(&mut written);
        let mut found = Vec::new();
        read(&written, |table, key, change| {
            let before = (table == 1).then_some(&b"a long value 1"[..]);
            found.push((table, key.to_vec(), change.apply(before)?));
            Ok(())
        })
        .unwrap();
        let value = |text: &str| Some(text.as_bytes().to_vec());
        let expected = [
            (1, b"counted".to_vec(), value("a long value 3")),
            (2, b"new".to_vec(), value("value")),
            (2, b"next".to_vec(), None),
        ];
        assert_eq!(found, expected);
        assert!(written.len() < 40, "{}", written.len());
    }

    #[test]
    fn bytes_that_nobody_wrote_are_refused() {
        let read = |bytes: &[u8]| {
            read(bytes, |_, _, change| change.apply(Some(b"value")).map(drop)).unwrap_err()
        };
        // Cut after the table, in the key, before the kind, an unknown kind, a length without an
        // end, and a patch of more than there is.
        let cases: [&[u8]; 6] = [
            &[1],
            &[1, 0, 9, b'k'],
            &[1, 0, 1, b'k'],
            &[1, 0, 1, b'k', 7],
            &[
                1, 0, 1, b'k', VALUE, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
            ],
            &[1, 0, 1, b'k', PATCH, 3, 99, 0, 0],
        ];
        for bytes in cases {
            assert!(matches!(read(bytes), StorageError::Damaged(_)), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn a_patch_leads_from_any_value_to_any_other(
            before in prop::collection::vec(0..3_u8, 0..600),
            after in prop::collection::vec(0..3_u8, 0..600),
        ) {
            way(&before, &after);
        }

        #[test]
        fn a_patch_leads_back_from_any_edit(
            value in prop::collection::vec(any::<u8>(), 0..600),
            edits in prop::collection::vec((any::<prop::sample::Index>(), 0..20_usize, prop::collection::vec(any::<u8>(), 0..20)), 0..8),
        ) {
            let mut after = value.clone();
            for (at, out, new) in edits {
                let from = at.index(after.len() + 1);
                let to = after.len().min(from + out);
                after.splice(from..to, new);
            }
            way(&value, &after);
            way(&after, &value);
        }
    }
}
