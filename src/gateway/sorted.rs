//! Sorts a list by the fingerprints of its recipients, in a file.
//!
//! The ledger keeps the recipients of a job in buckets by fingerprint. A slice of a sorted list
//! touches two or three of them, whatever the size of the list; a slice of a list in any other order
//! touches nearly as many as it has recipients, and each is read and written as a whole.
//!
//! Memory holds one run of the list, and afterwards a buffer for each run. Entries with the same
//! fingerprint keep their order, so the same list always becomes the same parts.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Read, Write as _};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use serde_json::value::RawValue;

use crate::domain::audience::Member;
use crate::domain::ids::{Fingerprint, Fingerprinter};

/// Bytes of a run, with eight more bytes per entry to sort it.
const RUN_BYTES: usize = 4 * 1024 * 1024;

const BUFFER_BYTES: usize = 16 * 1024;

/// The bytes before an entry's texts: its fingerprint, its line, and the lengths of the texts.
const HEAD_BYTES: usize = 8 + 8 + 4 + 4;

/// The length of values that are not there.
const NO_VARS: u32 = u32::MAX;

/// Takes a list in any order.
pub(super) struct Sorter {
    fingerprinter: Fingerprinter,
    file: BufWriter<File>,
    written: u64,
    runs: Vec<Run>,
    /// The entries of the run that is being filled, and where each begins.
    entries: Vec<u8>,
    starts: Vec<(u64, u32)>,
}

/// Where a run lies in the file.
#[derive(Clone, Copy)]
struct Run {
    start: u64,
    end: u64,
}

impl Sorter {
    pub(super) fn create(folder: &Path, fingerprinter: Fingerprinter) -> io::Result<Self> {
        Ok(Self {
            fingerprinter,
            file: BufWriter::new(tempfile::tempfile_in(folder)?),
            written: 0,
            runs: Vec::new(),
            entries: Vec::new(),
            starts: Vec::new(),
        })
    }

    /// Adds the recipient that was found on this line.
    pub(super) fn push(&mut self, line: u64, member: &Member<'_>) -> io::Result<()> {
        let Fingerprint(fingerprint) = self.fingerprinter.fingerprint(&member.id);
        let vars = member.vars.map(RawValue::get);
        let start = u32::try_from(self.entries.len()).map_err(io::Error::other)?;
        self.starts.push((fingerprint, start));
        self.entries.extend_from_slice(&fingerprint.to_be_bytes());
        self.entries.extend_from_slice(&line.to_be_bytes());
        for length in [Some(member.id.len()), vars.map(str::len)] {
            let length = length.map_or(Ok(NO_VARS), u32::try_from);
            let length = length.map_err(io::Error::other)?;
            self.entries.extend_from_slice(&length.to_be_bytes());
        }
        self.entries.extend_from_slice(member.id.as_bytes());
        self.entries
            .extend_from_slice(vars.unwrap_or_default().as_bytes());
        if self.entries.len() >= RUN_BYTES {
            self.write_run()?;
        }
        Ok(())
    }

    fn write_run(&mut self) -> io::Result<()> {
        if self.starts.is_empty() {
            return Ok(());
        }
        // The position decides between equal fingerprints.
        self.starts.sort_unstable();
        for (_, start) in &self.starts {
            let entry = &self.entries[*start as usize..];
            self.file.write_all(&entry[..entry_bytes(entry)])?;
        }
        let start = self.written;
        self.written += self.entries.len() as u64;
        self.runs.push(Run {
            start,
            end: self.written,
        });
        self.entries.clear();
        self.starts.clear();
        Ok(())
    }

    pub(super) fn finish(mut self) -> io::Result<Sorted> {
        self.write_run()?;
        let file = self
            .file
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        Ok(Sorted {
            file,
            runs: self.runs,
        })
    }
}

/// The length of the entry that begins here.
fn entry_bytes(entry: &[u8]) -> usize {
    let length = |at: usize| match entry[at..at + 4].try_into().map(u32::from_be_bytes) {
        Ok(NO_VARS) | Err(_) => 0,
        Ok(length) => length as usize,
    };
    HEAD_BYTES + length(16) + length(20)
}

/// A list in the order of its fingerprints. It can be read any number of times.
pub(super) struct Sorted {
    file: File,
    runs: Vec<Run>,
}

impl Sorted {
    /// Calls `each` with every entry and its line, until it breaks.
    pub(super) fn for_each(
        &self,
        mut each: impl FnMut(u64, &Member<'_>) -> ControlFlow<()>,
    ) -> io::Result<()> {
        let mut cursors: Vec<_> = self
            .runs
            .iter()
            .map(|run| Cursor::open(&self.file, *run))
            .collect();
        let mut next = BinaryHeap::with_capacity(cursors.len());
        for (number, cursor) in cursors.iter_mut().enumerate() {
            if cursor.advance()? {
                next.push(Reverse((cursor.entry.fingerprint, number)));
            }
        }
        while let Some(Reverse((_, number))) = next.pop() {
            let cursor = &mut cursors[number];
            if each(cursor.entry.line, &cursor.entry.member()?).is_break() {
                break;
            }
            if cursor.advance()? {
                next.push(Reverse((cursor.entry.fingerprint, number)));
            }
        }
        Ok(())
    }
}

/// Reads a run, entry by entry.
struct Cursor<'a> {
    reader: BufReader<RunReader<'a>>,
    entry: Entry,
}

#[derive(Default)]
struct Entry {
    fingerprint: u64,
    line: u64,
    /// The id, then the values.
    texts: Vec<u8>,
    id_bytes: usize,
    has_vars: bool,
}

impl<'a> Cursor<'a> {
    fn open(file: &'a File, run: Run) -> Self {
        Self {
            reader: BufReader::with_capacity(BUFFER_BYTES, RunReader { file, run }),
            entry: Entry::default(),
        }
    }

    /// Reads the next entry; false at the end of the run.
    fn advance(&mut self) -> io::Result<bool> {
        if self.reader.fill_buf()?.is_empty() {
            return Ok(false);
        }
        let mut eight = || -> io::Result<u64> {
            let mut bytes = [0; 8];
            self.reader.read_exact(&mut bytes)?;
            Ok(u64::from_be_bytes(bytes))
        };
        let (fingerprint, line, lengths) = (eight()?, eight()?, eight()?);
        let (id, vars) = ((lengths >> 32) as usize, lengths as u32);
        let entry = &mut self.entry;
        (entry.fingerprint, entry.line) = (fingerprint, line);
        (entry.id_bytes, entry.has_vars) = (id, vars != NO_VARS);
        let vars = if entry.has_vars { vars as usize } else { 0 };
        entry.texts.resize(id + vars, 0);
        self.reader.read_exact(&mut entry.texts)?;
        Ok(true)
    }
}

impl Entry {
    fn member(&self) -> io::Result<Member<'_>> {
        let texts = std::str::from_utf8(&self.texts).map_err(io::Error::other)?;
        let (id, vars) = texts.split_at(self.id_bytes);
        let vars = match self.has_vars {
            true => Some(serde_json::from_str(vars)?),
            false => None,
        };
        let id = id.into();
        Ok(Member { id, vars })
    }
}

/// Reads the bytes of one run, whatever else is read from the file.
struct RunReader<'a> {
    file: &'a File,
    run: Run,
}

impl Read for RunReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.run.end - self.run.start).unwrap_or(usize::MAX);
        let most = buffer.len().min(left);
        let read = self.file.read_at(&mut buffer[..most], self.run.start)?;
        self.run.start += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::JobId;

    /// A list of several runs comes back whole, in order, and the same each time it is read.
    /// Repeats keep the order of their lines.
    #[test]
    fn a_sorted_list_is_the_same_list() {
        let fingerprinter = Fingerprinter::new("secret", JobId::of("shop", "sale"));
        for entries in [0, 1, 100, 101, 100_000] {
            let mut sorter = Sorter::create(&std::env::temp_dir(), fingerprinter).unwrap();
            let vars = serde_json::value::to_raw_value(&"x".repeat(40)).unwrap();
            let mut expected = Vec::new();
            for line in 1..=entries {
                let id = format!("user-{}", line % 70_000);
                let vars = (line % 3 == 0).then_some(&*vars);
                let member = Member {
                    id: id.as_str().into(),
                    vars,
                };
                sorter.push(line, &member).unwrap();
                let Fingerprint(fingerprint) = fingerprinter.fingerprint(&id);
                expected.push((fingerprint, line, id.clone(), vars.is_some()));
            }
            expected.sort();
            let sorted = sorter.finish().unwrap();
            assert_eq!(sorted.runs.len() > 1, entries > 50_000);
            for _ in 0..2 {
                let mut found = Vec::new();
                let each = |line, member: &Member<'_>| {
                    let Fingerprint(fingerprint) = fingerprinter.fingerprint(&member.id);
                    assert!(member.vars.is_none_or(|it| it.get() == vars.get()));
                    found.push((
                        fingerprint,
                        line,
                        member.id.to_string(),
                        member.vars.is_some(),
                    ));
                    ControlFlow::Continue(())
                };
                sorted.for_each(each).unwrap();
                assert!(found == expected, "{entries}");
            }
        }
    }
}
