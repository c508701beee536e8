//! A copy of all dead letters in files without a name, sorted by job and recipient, so that a page
//! reads only its own rows.
//!
//! One file has the letters as they are. The other has a row for each recipient, in sorted runs; a
//! page merges the runs, and the run in memory, from its first row on. Memory holds that run, and
//! every 256th key of the others. Nothing of this is durable: the retained queue is the truth, and a
//! copy that is lost or out of date is made again.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, btree_set};
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::domain::announce::DeadLetter;
use crate::domain::letters::{DeadRow, Key, LetterFilter, Window, read_letter};
use crate::service::dead_letters::put;

/// Bytes of the keys of a run.
const RUN_BYTES: usize = 4 * 1024 * 1024;

/// Rows of a run from one known key to the next.
const STRIDE: usize = 256;

/// Bytes that are read of a run at a time.
const READ_BYTES: usize = 16 * 1024;

/// Most rows that a page looks at, however few of them match.
const LOOKED_AT_MAX: usize = 20_000;

/// A recipient of a letter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// Where its letter begins, and its length.
    letter: u64,
    length: u32,
    /// Its number in the letter.
    index: u32,
}

/// A row: a recipient of a job, and where its letter is.
type Row = (Key, Place);

/// Sorted rows in the file.
struct Run {
    /// Every [`STRIDE`]th key, and where its row begins in the file.
    marks: Vec<(Key, u64)>,
    end: u64,
}

/// All dead letters of one moment. Takes further ones in any order.
pub(super) struct Copy {
    letters: BufWriter<File>,
    letters_end: u64,
    rows: BufWriter<File>,
    rows_end: u64,
    runs: Vec<Run>,
    /// Rows that are in no run of the file yet.
    latest: BTreeSet<Row>,
    latest_bytes: usize,
    looked_at_max: usize,
}

impl Copy {
    pub(super) fn create(folder: &Path) -> io::Result<Self> {
        Ok(Self {
            letters: BufWriter::new(tempfile::tempfile_in(folder)?),
            letters_end: 0,
            rows: BufWriter::new(tempfile::tempfile_in(folder)?),
            rows_end: 0,
            runs: Vec::new(),
            latest: BTreeSet::new(),
            latest_bytes: 0,
            looked_at_max: LOOKED_AT_MAX,
        })
    }

    /// Adds a letter, to be seen after [`Copy::flush`]; leaves out what is none. A letter may be
    /// added twice.
    pub(super) fn add(&mut self, body: &[u8]) -> io::Result<()> {
        let Some(letter) = read_letter(body) else {
            return Ok(());
        };
        let length = u32::try_from(body.len()).map_err(io::Error::other)?;
        for (index, dead) in letter.recipients.into_iter().enumerate() {
            let place = Place {
                letter: self.letters_end,
                length,
                index: u32::try_from(index).map_err(io::Error::other)?,
            };
            self.latest_bytes += letter.job.len() + dead.recipient.len() + size_of::<Row>();
            self.latest
                .insert(((letter.job.clone(), dead.recipient), place));
        }
        self.letters.write_all(body)?;
        self.letters_end += u64::from(length);
        match self.latest_bytes {
            RUN_BYTES.. => self.write_run(),
            _ => Ok(()),
        }
    }

    fn write_run(&mut self) -> io::Result<()> {
        let mut marks = Vec::with_capacity(self.latest.len().div_ceil(STRIDE));
        let mut row = Vec::new();
        for (number, (key, place)) in std::mem::take(&mut self.latest).into_iter().enumerate() {
            row.clear();
            write_row(&mut row, &key, place)?;
            self.rows.write_all(&row)?;
            if number % STRIDE == 0 {
                marks.push((key, self.rows_end));
            }
            self.rows_end += row.len() as u64;
        }
        self.latest_bytes = 0;
        let end = self.rows_end;
        self.runs.push(Run { marks, end });
        Ok(())
    }

    /// Writes what pages are to read.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.letters.flush()?;
        self.rows.flush()
    }

    /// The rows at or after a place, at most `most`, as [`crate::service::dead_letters::page`] has
    /// them before it asks the ledger. A page ends early where it has looked at many rows that do
    /// not match.
    pub(super) fn page(
        &self,
        wanted: &LetterFilter,
        from: Option<Key>,
        most: usize,
        with_content: bool,
    ) -> io::Result<Window<DeadRow>> {
        let first = from.clone().unwrap_or_default();
        let mut window = Window::new(from, most);
        let mut looked_at = 0;
        let mut held = None;
        // A job can be meant by two ids; without one, all rows are looked at.
        let mut jobs: Vec<Option<&str>> = match wanted.job() {
            Some(names) => names.iter().map(|name| Some(name.as_str())).collect(),
            None => vec![None],
        };
        jobs.sort_unstable();
        jobs.dedup();
        let mut before = None;
        for job in jobs {
            let start = (job.unwrap_or_default().to_owned(), String::new());
            for row in self.rows_from(&first.clone().max(start))? {
                let (key, place) = row?;
                if job.is_some_and(|job| job != key.0) {
                    break;
                }
                if looked_at >= self.looked_at_max && before.as_ref() != Some(&key) {
                    window.end_at(key.clone());
                }
                if !window.takes(&key) {
                    return Ok(window);
                }
                looked_at += 1;
                let letter = self.letter(place, &mut held)?;
                let dead = letter.recipients.get(place.index as usize);
                put(
                    &mut window,
                    letter,
                    dead.ok_or_else(torn)?,
                    wanted,
                    with_content,
                );
                before = Some(key);
            }
        }
        Ok(window)
    }

    /// The letter of a row. Rows that follow each other are often of one letter.
    fn letter<'a>(
        &self,
        place: Place,
        held: &'a mut Option<(u64, DeadLetter)>,
    ) -> io::Result<&'a DeadLetter> {
        if held
            .as_ref()
            .is_none_or(|(letter, _)| *letter != place.letter)
        {
            let mut body = vec![0; place.length as usize];
            self.letters
                .get_ref()
                .read_exact_at(&mut body, place.letter)?;
            *held = Some((place.letter, read_letter(&body).ok_or_else(torn)?));
        }
        held.as_ref().map(|(_, letter)| letter).ok_or_else(torn)
    }

    fn rows_from(&self, first: &Key) -> io::Result<Rows<'_>> {
        let mut readers: Vec<_> = self
            .runs
            .iter()
            .map(|run| Reader::at(self, run, first))
            .collect();
        let mut next = BinaryHeap::new();
        for (number, reader) in readers.iter_mut().enumerate() {
            while let Some(row) = reader.next()? {
                if row.0 >= *first {
                    next.push(Reverse((row, number)));
                    break;
                }
            }
        }
        let mut latest = self.latest.range((first.clone(), Place::default())..);
        if let Some(row) = latest.next() {
            next.push(Reverse((row.clone(), readers.len())));
        }
        Ok(Rows {
            readers,
            latest,
            next,
        })
    }
}

/// The rows of all runs, in order.
struct Rows<'a> {
    readers: Vec<Reader<'a>>,
    latest: btree_set::Range<'a, Row>,
    /// The next row of each reader; with the number after theirs, that of `latest`.
    next: BinaryHeap<Reverse<(Row, usize)>>,
}

impl Iterator for Rows<'_> {
    type Item = io::Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        let Reverse((row, number)) = self.next.pop()?;
        let next = match self.readers.get_mut(number) {
            Some(reader) => reader.next(),
            None => Ok(self.latest.next().cloned()),
        };
        match next {
            Ok(Some(next)) => self.next.push(Reverse((next, number))),
            Ok(None) => {}
            Err(error) => return Some(Err(error)),
        }
        Some(Ok(row))
    }
}

/// Reads a run.
struct Reader<'a> {
    file: &'a File,
    at: u64,
    end: u64,
    buffer: Vec<u8>,
    read: usize,
}

impl<'a> Reader<'a> {
    /// Begins at the last known key before this one.
    fn at(copy: &'a Copy, run: &Run, first: &Key) -> Self {
        let after = run.marks.partition_point(|(key, _)| key < first);
        let mark = run.marks.get(after.saturating_sub(1));
        Self {
            file: copy.rows.get_ref(),
            at: mark.map_or(run.end, |(_, at)| *at),
            end: run.end,
            buffer: Vec::new(),
            read: 0,
        }
    }

    fn next(&mut self) -> io::Result<Option<Row>> {
        if self.read == self.buffer.len() && self.at == self.end {
            return Ok(None);
        }
        let length = self.take(4)?.try_into().map_err(|_| torn())?;
        let row = self.take(u32::from_be_bytes(length) as usize)?;
        parse_row(row).map(Some).ok_or_else(torn)
    }

    /// The next bytes.
    fn take(&mut self, count: usize) -> io::Result<&[u8]> {
        if self.buffer.len() - self.read < count {
            self.buffer.drain(..self.read);
            self.read = 0;
            let held = self.buffer.len();
            let left = usize::try_from(self.end - self.at).map_err(io::Error::other)?;
            let more = READ_BYTES.max(count - held).min(left);
            if held + more < count {
                return Err(torn());
            }
            self.buffer.resize(held + more, 0);
            self.file.read_exact_at(&mut self.buffer[held..], self.at)?;
            self.at += more as u64;
        }
        let bytes = &self.buffer[self.read..self.read + count];
        self.read += count;
        Ok(bytes)
    }
}

/// The length of a row, then the row: the place, the length of the job's id, both texts.
fn write_row(row: &mut Vec<u8>, key: &Key, place: Place) -> io::Result<()> {
    let (job, recipient) = key;
    let job_bytes = u32::try_from(job.len()).map_err(io::Error::other)?;
    let bytes = 8 + 4 + 4 + 4 + job.len() + recipient.len();
    let bytes = u32::try_from(bytes).map_err(io::Error::other)?;
    row.extend_from_slice(&bytes.to_be_bytes());
    row.extend_from_slice(&place.letter.to_be_bytes());
    row.extend_from_slice(&place.length.to_be_bytes());
    row.extend_from_slice(&place.index.to_be_bytes());
    row.extend_from_slice(&job_bytes.to_be_bytes());
    row.extend_from_slice(job.as_bytes());
    row.extend_from_slice(recipient.as_bytes());
    Ok(())
}

/// Reads what [`write_row`] wrote, without the length.
fn parse_row(row: &[u8]) -> Option<Row> {
    let (letter, row) = row.split_first_chunk()?;
    let (length, row) = row.split_first_chunk()?;
    let (index, row) = row.split_first_chunk()?;
    let (job_bytes, row) = row.split_first_chunk()?;
    let place = Place {
        letter: u64::from_be_bytes(*letter),
        length: u32::from_be_bytes(*length),
        index: u32::from_be_bytes(*index),
    };
    let (job, recipient) = row.split_at_checked(u32::from_be_bytes(*job_bytes) as usize)?;
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(ToOwned::to_owned);
    Some(((text(job)?, text(recipient)?), place))
}

fn torn() -> io::Error {
    io::Error::other("a row of the copied dead letters is torn")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::*;
    use crate::domain::ids::JobId;
    use crate::domain::letters::DeadFilter;

    fn letter(job: JobId, recipients: &[String], code: &str, second: u32) -> Vec<u8> {
        let row = |recipient: &String| {
            json!({"recipient": recipient, "outcome": "failed", "class": "permanent", "code": code,
                "text": "", "attempts": 1})
        };
        let at = format!("2026-11-29T10:00:{second:02}Z");
        let letter = json!({
            "v": 1, "job": job.to_string(), "app": "shop", "client_msg_no": "m", "target": "im",
            "slice": "s", "message": {"type": "text", "text": "hello"}, "options": {},
            "first_attempt_at": at, "last_attempt_at": at,
            "recipients": recipients.iter().map(row).collect::<Vec<Value>>(),
        });
        serde_json::to_vec(&letter).unwrap()
    }

    fn copy(letters: &[Vec<u8>], run_bytes: usize) -> Copy {
        let mut copy = Copy::create(&std::env::temp_dir()).unwrap();
        for letter in letters {
            copy.add(letter).unwrap();
            if copy.latest_bytes >= run_bytes {
                copy.write_run().unwrap();
            }
        }
        copy.flush().unwrap();
        copy
    }

    /// All rows, page by page.
    fn all(copy: &Copy, filter: &DeadFilter, most: usize) -> Vec<(Key, String)> {
        let wanted = filter.check(0).unwrap();
        let (mut rows, mut from) = (Vec::new(), None);
        loop {
            let window = copy.page(&wanted, from, most, false).unwrap();
            let (page, next) = window.finish();
            rows.extend(page.map(|(key, row)| (key, row.code.into_owned())));
            from = next;
            if from.is_none() {
                return rows;
            }
        }
    }

    #[test]
    fn pages_of_a_copy_are_those_of_all_letters() {
        let jobs: Vec<_> = (0..5)
            .map(|it| JobId::of("shop", &it.to_string()))
            .collect();
        let (mut letters, mut expected) = (Vec::new(), BTreeMap::new());
        for number in 0..150_usize {
            // Some recipients have several letters; the later one counts.
            let names: Vec<_> = (0..number % 7)
                .map(|it| format!("user-{}", (number * 31 + it * 17) % 90))
                .collect();
            let (job, code) = (jobs[number % 5], format!("code-{number}"));
            letters.push(letter(job, &names, &code, (number / 10) as u32));
            expected.extend(
                names
                    .into_iter()
                    .map(|it| ((job.to_string(), it), code.clone())),
            );
        }
        letters.push(b"no letter".to_vec());
        let expected: Vec<_> = expected.into_iter().collect();
        // One run, and many.
        for run_bytes in [usize::MAX, 10_000] {
            let copy = copy(&letters, run_bytes);
            for most in [3, 100, 101, 5000] {
                assert_eq!(all(&copy, &DeadFilter::default(), most), expected, "{most}");
            }
            let job = DeadFilter {
                job: Some(jobs[3].to_string()),
                ..DeadFilter::default()
            };
            let of_job: Vec<_> = expected
                .iter()
                .filter(|((job, _), _)| *job == jobs[3].to_string())
                .cloned()
                .collect();
            assert_eq!(all(&copy, &job, 7), of_job);
            let by_name = DeadFilter {
                job: Some("3".to_owned()),
                app: Some("shop".to_owned()),
                ..DeadFilter::default()
            };
            assert_eq!(all(&copy, &by_name, 7), of_job);
        }
    }

    /// A filter that matches nothing costs a page no more than another one.
    #[test]
    fn a_page_looks_at_a_bounded_number_of_rows() {
        let job = JobId::of("shop", "1");
        let names: Vec<_> = (0..1500).map(|it| format!("{it:04}")).collect();
        let letters: Vec<_> = names
            .chunks(500)
            .map(|it| letter(job, it, "410", 1))
            .collect();
        let copy = Copy {
            looked_at_max: 600,
            ..copy(&letters, usize::MAX)
        };
        let none = DeadFilter {
            code: Some("500".to_owned()),
            ..DeadFilter::default()
        };
        let wanted = none.check(0).unwrap();
        let (rows, next) = copy.page(&wanted, None, 100, false).unwrap().finish();
        assert_eq!(rows.count(), 0);
        assert_eq!(next, Some((job.to_string(), "0600".to_owned())));
        assert_eq!(all(&copy, &none, 100), []);
        assert_eq!(all(&copy, &DeadFilter::default(), 1000).len(), names.len());
        assert!(all(&self::copy(&[], 0), &none, 10).is_empty());
    }
}
