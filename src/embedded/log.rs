//! The log: what was committed since the store was last written.
//!
//! A commit of the store writes whole pages, some of them twice, and syncs twice. The log takes the
//! changed bytes instead, with one write and one sync, and the store keeps the pages in memory. A
//! commit that finds no room in the log goes into the store, with everything before it, and the log
//! begins again at its start.
//!
//! The file has one length, and is written over again and again, so that a sync need not change its
//! length. It begins with a head: eight bytes that name the format, and a *salt* of eight. Behind it
//! come the records: the salt, a number (8 bytes), a length (4 bytes), a checksum (8 bytes), and the
//! changes. Numbers go up by one. A record of an earlier round has a lower number than the record
//! before it, so reading ends there. Nobody outside knows the salt, so nothing that a message holds
//! is taken for a record.
//!
//! Each record is synced before the next is written. So a crash cuts the last one at most, and a
//! record that cannot be read before others that can means that the file is damaged.

use redb::StorageBackend as _;
use ring::digest;
use ring::rand::{SecureRandom as _, SystemRandom};

use super::changes::{Changes, WRITTEN_MAX};
use super::disk::StorageError;
use super::files::Counted;
use super::tables::number;

/// The name of the format, and the salt.
const HEAD: usize = 16;
const FORMAT: &[u8; 8] = b"fanwlog1";

/// Salt, number, length and checksum of a record.
const RECORD_HEAD: usize = 28;

pub(super) struct Log {
    file: Counted,
    /// Its length.
    bytes: u64,
    salt: [u8; 8],
    /// Where the next record goes; `None` if the log takes none before it begins again.
    at: Option<u64>,
    /// The number of the next record.
    next: u64,
    /// The last record, kept for its memory.
    record: Vec<u8>,
}

impl Log {
    /// Begins a log with a salt of its own. Its first record has the number `next`.
    pub(super) fn create(file: Counted, bytes: u64, next: u64) -> Result<Self, StorageError> {
        let mut salt = [0; 8];
        SystemRandom::new()
            .fill(&mut salt)
            .map_err(|_| StorageError::broken("the system has no random numbers"))?;
        // Written, so that no later write needs room on the disk.
        let missing = bytes.saturating_sub(file.len().map_err(failed)?);
        if missing > 0 {
            file.set_len(bytes).map_err(failed)?;
            file.write(bytes - missing, &vec![0; missing as usize])
                .map_err(failed)?;
        }
        let mut head = [0; HEAD];
        head[..8].copy_from_slice(FORMAT);
        head[8..].copy_from_slice(&salt);
        file.write(0, &head).map_err(failed)?;
        file.sync_data().map_err(failed)?;
        let bytes = file.len().map_err(failed)?;
        Ok(Self::with(file, bytes, salt, next))
    }

    fn with(file: Counted, bytes: u64, salt: [u8; 8], next: u64) -> Self {
        Self {
            file,
            bytes,
            salt,
            at: None,
            next,
            record: Vec::new(),
        }
    }

    /// Opens the log with this salt, and hands over the changes of each record after `last`, the
    /// last one that the store has. Returns the log and the number of its last record. `None`: the
    /// file is the log of another store, or of none.
    pub(super) fn open(
        file: Counted,
        salt: u64,
        last: u64,
        mut redo: impl FnMut(&[u8]) -> Result<(), StorageError>,
    ) -> Result<Option<(Self, u64)>, StorageError> {
        let mut bytes = vec![0; file.len().map_err(failed)? as usize];
        file.read(0, &mut bytes).map_err(failed)?;
        let salt = salt.to_be_bytes();
        let Some(mut rest) = bytes
            .strip_prefix(FORMAT)
            .and_then(|rest| rest.strip_prefix(&salt))
        else {
            return Ok(None);
        };
        let (mut last, mut expected) = (last, None);
        while let Some((record, behind)) = Record::parse(rest, &salt) {
            if expected.is_some_and(|expected| record.number != expected) {
                break;
            }
            if record.number > last {
                if record.number != last + 1 {
                    let missing =
                        format!("its log begins with {}, not {}", record.number, last + 1);
                    return Err(StorageError::Damaged(missing));
                }
                redo(record.changes)?;
                last = record.number;
            }
            expected = Some(record.number + 1);
            rest = behind;
        }
        if Record::all(rest, &salt).any(|record| record.number > last) {
            let damaged = "its log has a record that cannot be read, and others after it";
            return Err(StorageError::Damaged(damaged.to_owned()));
        }
        let log = Self::with(file, bytes.len() as u64, salt, last + 1);
        Ok(Some((log, last)))
    }

    pub(super) fn salt(&self) -> u64 {
        number(&self.salt)
    }

    /// Writes and syncs a record. Returns its number, or `None` if the log has no room for it.
    pub(super) fn append(&mut self, changes: &Changes) -> Result<Option<u64>, StorageError> {
        let Some(at) = self.at.filter(|_| !changes.is_large()) else {
            return Ok(None);
        };
        self.record.clear();
        self.record.resize(RECORD_HEAD, 0);
        changes.write(&mut self.record);
        let end = at + self.record.len() as u64;
        if end > self.bytes || self.record.len() > WRITTEN_MAX {
            return Ok(None);
        }
        let (head, changes) = self.record.split_at_mut(RECORD_HEAD);
        head[..8].copy_from_slice(&self.salt);
        head[8..16].copy_from_slice(&self.next.to_be_bytes());
        head[16..20].copy_from_slice(&(changes.len() as u32).to_be_bytes());
        let checksum = checksum(&head[..20], changes);
        head[20..].copy_from_slice(&checksum);
        // Unless all of it is written, the log is opened again before it is used.
        self.at = None;
        self.file.write(at, &self.record).map_err(failed)?;
        self.file.sync_data().map_err(failed)?;
        self.at = Some(end);
        self.next += 1;
        Ok(Some(self.next - 1))
    }

    /// Begins again at the start of the file: the store has all that the records say.
    pub(super) fn restart(&mut self) {
        self.at = Some(HEAD as u64);
    }
}

fn failed(error: std::io::Error) -> StorageError {
    redb::StorageError::Io(error).into()
}

fn checksum(head: &[u8], changes: &[u8]) -> [u8; 8] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(head);
    context.update(changes);
    let mut checksum = [0; 8];
    checksum.copy_from_slice(&context.finish().as_ref()[..8]);
    checksum
}

struct Record<'a> {
    number: u64,
    changes: &'a [u8],
}

impl<'a> Record<'a> {
    /// The record at the start of these bytes, and the bytes behind it.
    fn parse(bytes: &'a [u8], salt: &[u8; 8]) -> Option<(Self, &'a [u8])> {
        let (head, rest) = bytes.split_at_checked(RECORD_HEAD)?;
        if &head[..8] != salt {
            return None;
        }
        let (changes, behind) = rest.split_at_checked(number(&head[16..20]) as usize)?;
        let record = Self {
            number: number(&head[8..16]),
            changes,
        };
        (checksum(&head[..20], changes) == head[20..]).then_some((record, behind))
    }

    /// The records anywhere in these bytes.
    fn all(bytes: &'a [u8], salt: &'a [u8; 8]) -> impl Iterator<Item = Self> {
        let places = bytes.windows(salt.len()).enumerate();
        places
            .filter(move |(_, here)| here == salt)
            .filter_map(move |(at, _)| Some(Self::parse(&bytes[at..], salt)?.0))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::PathBuf;
    use std::sync::Arc;

    use redb::backends::FileBackend;
    use tempfile::TempDir;

    use super::*;

    /// A log of 4 KB, and what its records said.
    struct Place {
        folder: TempDir,
        log: Log,
    }

    fn path(folder: &TempDir) -> PathBuf {
        folder.path().join("log")
    }

    fn file(folder: &TempDir) -> Counted {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path(folder)).unwrap();
        Counted {
            file: Box::new(FileBackend::new(file).unwrap()),
            written: Arc::default(),
        }
    }

    fn changes(text: &str) -> Changes {
        let mut changes = Changes::default();
        changes.note(1, text.as_bytes(), None, Some(b"there"));
        changes
    }

    fn written(text: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        changes(text).write(&mut bytes);
        bytes
    }

    impl Place {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let log = Log::create(file(&folder), 4096, 1).unwrap();
            Self { folder, log }
        }

        fn with(records: &[&str]) -> Self {
            let mut place = Self::new();
            place.log.restart();
            for record in records {
                place.log.append(&changes(record)).unwrap().unwrap();
            }
            place
        }

        /// What an opening does again after the record `last`.
        fn found(&self, last: u64) -> Result<Vec<Vec<u8>>, StorageError> {
            let mut found = Vec::new();
            let redo = |record: &[u8]| {
                found.push(record.to_vec());
                Ok(())
            };
            let opened = Log::open(file(&self.folder), self.log.salt(), last, redo)?;
            let (log, number) = opened.expect("the log of this store");
            assert_eq!(number, last + found.len() as u64);
            assert_eq!(log.next, number + 1);
            Ok(found)
        }

        fn bytes(&self) -> Vec<u8> {
            fs::read(path(&self.folder)).unwrap()
        }

        fn set(&self, bytes: &[u8]) {
            fs::write(path(&self.folder), bytes).unwrap();
        }
    }

    #[test]
    fn an_opening_does_again_what_the_store_lacks() {
        let place = Place::with(&["one", "two", "three"]);
        let all = ["one", "two", "three"].map(written);
        for last in 0..=3 {
            assert_eq!(place.found(last).unwrap(), all[last as usize..]);
        }
        // The store is ahead of its log: it was closed by a process that could not tell it so.
        assert_eq!(place.found(4).unwrap(), [] as [Vec<u8>; 0]);
    }

    /// The first commit of an opening, and one that is large, go into the store.
    #[test]
    fn a_log_takes_no_record_before_it_begins() {
        let mut place = Place::new();
        assert_eq!(place.log.append(&changes("one")).unwrap(), None);
        place.log.restart();
        assert_eq!(place.log.append(&changes("one")).unwrap(), Some(1));
        let mut large = Changes::default();
        large.note(1, b"key", None, Some(&vec![0; WRITTEN_MAX]));
        assert_eq!(place.log.append(&large).unwrap(), None);
        let mut larger = Changes::default();
        larger.note(1, b"key", None, Some(&vec![0; WRITTEN_MAX + 1]));
        larger.note(1, b"other", None, Some(b"there"));
        assert_eq!(place.log.append(&larger).unwrap(), None);
        assert_eq!(place.log.append(&changes(&"x".repeat(4096))).unwrap(), None);
        assert_eq!(place.log.append(&changes("two")).unwrap(), Some(2));
    }

    /// Whatever part of the last record reached the disk, the ones before it are there.
    #[test]
    fn a_record_that_a_crash_has_cut_is_none() {
        let before = Place::with(&["one", "two"]);
        let end = before.log.at.unwrap() as usize;
        let mut place = before;
        place.log.append(&changes("three")).unwrap();
        let whole = place.bytes();
        let last = place.log.at.unwrap() as usize;
        for cut in end..last {
            let mut bytes = whole.clone();
            bytes[cut..last].fill(0xee);
            place.set(&bytes);
            assert_eq!(
                place.found(0).unwrap(),
                ["one", "two"].map(written),
                "{cut}"
            );
        }
    }

    #[test]
    fn a_damaged_record_before_others_is_found() {
        let place = Place::with(&["one", "two", "three"]);
        let (whole, one) = (place.bytes(), RECORD_HEAD + written("one").len());
        for at in HEAD..HEAD + one {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            place.set(&bytes);
            let error = place.found(0).unwrap_err();
            assert!(matches!(error, StorageError::Damaged(_)), "{at}: {error:?}");
        }
        // A store that is older than its log.
        let place = Place::with(&["one"]);
        let mut later = Log::create(file(&place.folder), 4096, 5).unwrap();
        later.restart();
        later.append(&changes("five")).unwrap();
        let later = Place {
            log: later,
            ..place
        };
        assert!(matches!(later.found(2), Err(StorageError::Damaged(_))));
        assert_eq!(later.found(4).unwrap(), [written("five")]);
    }

    #[test]
    fn the_log_of_another_store_is_none() {
        let place = Place::with(&["one"]);
        let other = Log::open(file(&place.folder), 7, 0, |_| Ok(())).unwrap();
        assert!(other.is_none());
        for bytes in [&b""[..], b"short", b"something else, and long enough"] {
            place.set(bytes);
            let opened = Log::open(file(&place.folder), place.log.salt(), 0, |_| Ok(()));
            assert!(opened.unwrap().is_none());
        }
    }

    /// The log is written over many times, by records of all lengths; at any moment an opening finds
    /// those that the store does not have, and no other.
    #[test]
    fn a_log_that_begins_again_says_nothing_of_before() {
        let mut place = Place::new();
        let mut random = fastrand::Rng::with_seed(5);
        let (mut last, mut since, mut rounds) = (0, Vec::new(), 0);
        for number in 0..2_000 {
            let text = format!("{number}{}", "x".repeat(random.usize(..600)));
            match place.log.append(&changes(&text)).unwrap() {
                Some(_) => since.push(written(&text)),
                None => {
                    last += since.len() as u64;
                    since.clear();
                    place.log.restart();
                    rounds += 1;
                }
            }
            if number % 7 == 0 {
                assert_eq!(place.found(last).unwrap(), since, "{number}");
            }
        }
        assert!(rounds > 100, "{rounds}");
    }
}
