//! Sorted rows in the file, in blocks. Memory has the first key of each block, and its summary.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;

use super::sought::{Facts, Hasher, Sought, Summary};
use crate::domain::letters::Key;

/// Rows of a block.
const BLOCK_ROWS: usize = 256;

/// A recipient of a letter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// Where its letter begins, and its length.
    pub(super) letter: u64,
    pub(super) length: u32,
    /// Its number in the letter.
    pub(super) index: u32,
}

impl Place {
    pub(super) const LAST: Self = Self {
        letter: u64::MAX,
        length: u32::MAX,
        index: u32::MAX,
    };
}

/// A row is a recipient of a job, where its letter is, and what filters ask.
pub(super) type Row = ((Key, Place), Facts);

pub(super) struct Run {
    blocks: Vec<Block>,
    end: u64,
}

struct Block {
    first: Key,
    /// Where its first row begins.
    at: u64,
    /// Rows that are not gone.
    left: usize,
    summary: Summary,
}

/// A row that was found by its key.
pub(super) struct FoundRow {
    pub(super) place: Place,
    pub(super) facts: Facts,
    block: usize,
    /// Where the mark of the row is.
    mark_at: u64,
}

impl Run {
    /// Writes rows, sorted by key, from this place of the file on.
    pub(super) fn write(
        file: &mut impl Write,
        mut at: u64,
        rows: impl Iterator<Item = Row>,
        hasher: &Hasher,
    ) -> io::Result<Self> {
        let mut blocks: Vec<Block> = Vec::new();
        let mut bytes = Vec::new();
        for (number, ((key, place), facts)) in rows.enumerate() {
            bytes.clear();
            write_row(&mut bytes, &key, place, &facts)?;
            file.write_all(&bytes)?;
            let recipient = hasher.text(&key.1);
            if number % BLOCK_ROWS == 0 {
                blocks.push(Block {
                    first: key,
                    at,
                    left: 0,
                    summary: Summary::default(),
                });
            }
            if let Some(block) = blocks.last_mut() {
                block.left += 1;
                block.summary.note(recipient, &facts);
            }
            at += bytes.len() as u64;
        }
        Ok(Self { blocks, end: at })
    }

    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// The block in which rows at or after this key begin.
    fn block_of(&self, key: &Key) -> usize {
        let after = self.blocks.partition_point(|block| block.first < *key);
        after.saturating_sub(1)
    }

    fn read(&self, file: &File, number: usize, bytes: &mut Vec<u8>) -> io::Result<u64> {
        let at = self.blocks.get(number).map_or(self.end, |it| it.at);
        let end = self.blocks.get(number + 1).map_or(self.end, |it| it.at);
        bytes.resize(usize::try_from(end - at).map_err(io::Error::other)?, 0);
        file.read_exact_at(bytes, at)?;
        Ok(at)
    }

    /// The rows of a recipient of a job.
    pub(super) fn rows_of(
        &self,
        file: &File,
        key: &Key,
        recipient: u32,
    ) -> io::Result<Vec<FoundRow>> {
        let mut found = Vec::new();
        let mut bytes = Vec::new();
        let begin = self.block_of(key);
        for (number, block) in self.blocks.iter().enumerate().skip(begin) {
            if block.first > *key {
                break;
            }
            if block.left == 0 || !block.summary.may_have_recipient(recipient) {
                continue;
            }
            let mut at = self.read(file, number, &mut bytes)?;
            let mut rest = &*bytes;
            while let Some((row, length)) = StoredRow::first(&mut rest)? {
                if row.is_after(key) {
                    break;
                }
                if row.kept() && row.is_of(key) {
                    found.push(FoundRow {
                        place: row.place().ok_or_else(torn)?,
                        facts: row.facts().ok_or_else(torn)?,
                        block: number,
                        mark_at: at + LENGTH_BYTES as u64,
                    });
                }
                at += length as u64;
            }
        }
        Ok(found)
    }

    /// Marks a row as gone.
    pub(super) fn remove(&mut self, file: &File, row: &FoundRow) -> io::Result<()> {
        file.write_all_at(&[GONE], row.mark_at)?;
        if let Some(block) = self.blocks.get_mut(row.block) {
            block.left = block.left.saturating_sub(1);
        }
        Ok(())
    }
}

/// What a reader comes to.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// A key with a row that the filter may take.
    Found,
    /// The key at which it has looked at enough rows.
    Paused,
}

/// Reads the rows of a run that a filter may take.
pub(super) struct Reader<'a> {
    file: &'a File,
    run: &'a Run,
    sought: &'a Sought<'a>,
    from: &'a Key,
    /// The only job.
    job: Option<&'a str>,
    /// Rows that it may yet look at.
    left: usize,
    block: usize,
    bytes: Vec<u8>,
    read: usize,
    /// The last key that it may look at.
    last: Option<Key>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        file: &'a File,
        run: &'a Run,
        sought: &'a Sought<'a>,
        (from, job): (&'a Key, Option<&'a str>),
        left: usize,
    ) -> Self {
        Self {
            file,
            run,
            sought,
            from,
            job,
            left,
            block: run.block_of(from),
            bytes: Vec::new(),
            read: 0,
            last: None,
        }
    }

    fn step(&mut self) -> io::Result<Option<(Key, Step)>> {
        loop {
            let mut rest = &self.bytes[self.read..];
            let Some((row, length)) = StoredRow::first(&mut rest)? else {
                if !self.next_block()? {
                    return Ok(None);
                }
                continue;
            };
            if self.job.is_some_and(|job| row.job > job.as_bytes()) {
                return Ok(None);
            }
            let is_before = (row.job, row.recipient) < bytes_of(self.from);
            if is_before {
                self.read += length;
                continue;
            }
            if let Some(last) = &self.last {
                if !row.is_of(last) {
                    return Ok(Some((row.key()?, Step::Paused)));
                }
            } else if self.left <= 1 {
                self.last = Some(row.key()?);
            }
            self.left = self.left.saturating_sub(1);
            self.read += length;
            let facts = row.facts().ok_or_else(torn)?;
            if row.kept() && self.sought.takes(row.recipient, &facts) {
                return Ok(Some((row.key()?, Step::Found)));
            }
        }
    }

    /// Reads the next block that may have a row for the filter.
    fn next_block(&mut self) -> io::Result<bool> {
        while let Some(block) = self.run.blocks.get(self.block) {
            if self.job.is_some_and(|job| &*block.first.0 > job) {
                return Ok(false);
            }
            self.block += 1;
            if block.left > 0 && self.sought.may_be_in(&block.summary) {
                self.run.read(self.file, self.block - 1, &mut self.bytes)?;
                self.read = 0;
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Iterator for Reader<'_> {
    type Item = io::Result<(Key, Step)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

// A row in the file: the length of what follows, a mark, the place, the facts, the length of the
// job's id, both texts.

const LENGTH_BYTES: usize = 4;
const PLACE_BYTES: usize = 8 + 4 + 4;
const FACTS_BYTES: usize = 8 + 4 + 4 + 4;
/// Mark, class and outcome, then place and facts.
const HEAD_BYTES: usize = 3 + PLACE_BYTES + FACTS_BYTES;
const KEPT: u8 = 1;
const GONE: u8 = 0;

struct StoredRow<'b> {
    /// What comes before the texts.
    head: &'b [u8; HEAD_BYTES],
    job: &'b [u8],
    recipient: &'b [u8],
}

impl<'b> StoredRow<'b> {
    /// The first row of these bytes, and its length; none at the end.
    fn first(bytes: &mut &'b [u8]) -> io::Result<Option<(Self, usize)>> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let row = Self::split(bytes).ok_or_else(torn)?;
        Ok(Some(row))
    }

    fn split(bytes: &mut &'b [u8]) -> Option<(Self, usize)> {
        let length = u32::from_be_bytes(*take(bytes)?) as usize;
        let (mut row, rest) = bytes.split_at_checked(length)?;
        *bytes = rest;
        let head = take(&mut row)?;
        let job_bytes = u32::from_be_bytes(*take(&mut row)?) as usize;
        let (job, recipient) = row.split_at_checked(job_bytes)?;
        let row = Self {
            head,
            job,
            recipient,
        };
        Some((row, LENGTH_BYTES + length))
    }

    fn kept(&self) -> bool {
        self.head[0] == KEPT
    }

    fn place(&self) -> Option<Place> {
        let mut head = self.head.get(3..)?;
        Some(Place {
            letter: u64::from_be_bytes(*take(&mut head)?),
            length: u32::from_be_bytes(*take(&mut head)?),
            index: u32::from_be_bytes(*take(&mut head)?),
        })
    }

    fn facts(&self) -> Option<Facts> {
        let [_, class, outcome] = *self.head.first_chunk()?;
        let mut head = self.head.get(3 + PLACE_BYTES..)?;
        Some(Facts {
            at_ms: u64::from_be_bytes(*take(&mut head)?),
            app: u32::from_be_bytes(*take(&mut head)?),
            target: u32::from_be_bytes(*take(&mut head)?),
            code: u32::from_be_bytes(*take(&mut head)?),
            class,
            outcome,
        })
    }

    fn key(&self) -> io::Result<Key> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| torn());
        Ok((text(self.job)?, text(self.recipient)?))
    }

    fn is_of(&self, key: &Key) -> bool {
        (self.job, self.recipient) == bytes_of(key)
    }

    fn is_after(&self, key: &Key) -> bool {
        (self.job, self.recipient) > bytes_of(key)
    }
}

fn bytes_of((job, recipient): &Key) -> (&[u8], &[u8]) {
    (job.as_bytes(), recipient.as_bytes())
}

fn take<'b, const N: usize>(bytes: &mut &'b [u8]) -> Option<&'b [u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(taken)
}

fn write_row(row: &mut Vec<u8>, key: &Key, place: Place, facts: &Facts) -> io::Result<()> {
    let (job, recipient) = key;
    let job_bytes = u32::try_from(job.len()).map_err(io::Error::other)?;
    row.extend_from_slice(&[0; LENGTH_BYTES]);
    row.extend_from_slice(&[KEPT, facts.class, facts.outcome]);
    row.extend_from_slice(&place.letter.to_be_bytes());
    row.extend_from_slice(&place.length.to_be_bytes());
    row.extend_from_slice(&place.index.to_be_bytes());
    row.extend_from_slice(&facts.at_ms.to_be_bytes());
    row.extend_from_slice(&facts.app.to_be_bytes());
    row.extend_from_slice(&facts.target.to_be_bytes());
    row.extend_from_slice(&facts.code.to_be_bytes());
    row.extend_from_slice(&job_bytes.to_be_bytes());
    row.extend_from_slice(job.as_bytes());
    row.extend_from_slice(recipient.as_bytes());
    let length = u32::try_from(row.len() - LENGTH_BYTES).map_err(io::Error::other)?;
    row[..LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

pub(super) fn torn() -> io::Error {
    io::Error::other("a row of the copied dead letters is torn")
}
