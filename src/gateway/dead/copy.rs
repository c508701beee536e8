//! A copy of all dead letters in files without a name, sorted by job and recipient, so that a page
//! reads only its own rows.
//!
//! One file has the letters as they are. The other has a row for each recipient, in sorted runs of
//! blocks; a page merges the runs, and the run in memory, from its first row on. Memory holds that
//! run, and for every 256 rows of the others the first key and a summary: a page skips the blocks
//! that have nothing for its filter. A letter that is removed marks its rows in the file. Nothing of
//! this is durable: the retained queue is the truth, and a copy that is lost or out of date is made
//! again.

mod run;
mod sought;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use self::run::{Place, Reader, Row, Run, Step, torn};
use self::sought::{Facts, Hasher, Sought};
use crate::domain::announce::DeadLetter;
use crate::domain::letters::{DeadRow, Key, LetterFilter, Window, read_letter};
use crate::service::dead_letters::put;

/// Bytes of a run while it is in memory.
const RUN_BYTES: usize = 4 * 1024 * 1024;

/// Most rows that a page looks at, however few of them match: about a tenth of a second.
const LOOKED_AT_MAX: usize = 1_000_000;

/// Rows of which more than half may be gone before the copy is worth making anew.
const GONE_MIN: u64 = 100_000;

/// All dead letters of one moment. Takes further ones in any order.
pub(super) struct Copy {
    letters: BufWriter<File>,
    letters_end: u64,
    rows: BufWriter<File>,
    runs: Vec<Run>,
    /// Rows that are in no run of the file yet.
    latest: BTreeMap<(Key, Place), Facts>,
    latest_bytes: usize,
    hasher: Hasher,
    /// Rows that were added, and those of them that are gone.
    added: u64,
    gone: u64,
    looked_at_max: usize,
}

impl Copy {
    pub(super) fn create(folder: &Path) -> io::Result<Self> {
        Ok(Self {
            letters: BufWriter::new(tempfile::tempfile_in(folder)?),
            letters_end: 0,
            rows: BufWriter::new(tempfile::tempfile_in(folder)?),
            runs: Vec::new(),
            latest: BTreeMap::new(),
            latest_bytes: 0,
            hasher: Hasher::default(),
            added: 0,
            gone: 0,
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
        for (index, dead) in letter.recipients.iter().enumerate() {
            let place = Place {
                letter: self.letters_end,
                length,
                index: u32::try_from(index).map_err(io::Error::other)?,
            };
            self.latest_bytes += letter.job.len() + dead.recipient.len() + size_of::<Row>();
            let key = (letter.job.clone(), dead.recipient.clone());
            let facts = self.hasher.facts(&letter, dead);
            self.latest.insert((key, place), facts);
            self.added += 1;
        }
        self.letters.write_all(body)?;
        self.letters_end += u64::from(length);
        match self.latest_bytes {
            RUN_BYTES.. => self.write_run(),
            _ => Ok(()),
        }
    }

    fn write_run(&mut self) -> io::Result<()> {
        let rows = std::mem::take(&mut self.latest).into_iter();
        self.latest_bytes = 0;
        let at = self.runs.last().map_or(0, Run::end);
        let run = Run::write(&mut self.rows, at, rows, &self.hasher)?;
        self.runs.push(run);
        Ok(())
    }

    /// Writes what pages are to read.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.letters.flush()?;
        self.rows.flush()
    }

    /// Takes out a letter with this body, as often as it is there.
    pub(super) fn remove(&mut self, body: &[u8]) -> io::Result<()> {
        let Some(letter) = read_letter(body) else {
            return Ok(());
        };
        self.flush()?;
        // Whether the letter that begins there is this one.
        let mut compared = BTreeMap::new();
        for (index, dead) in letter.recipients.into_iter().enumerate() {
            let key = (letter.job.clone(), dead.recipient);
            self.remove_row(&key, index, body, &mut compared)?;
        }
        Ok(())
    }

    fn remove_row(
        &mut self,
        key: &Key,
        index: usize,
        body: &[u8],
        compared: &mut BTreeMap<u64, bool>,
    ) -> io::Result<()> {
        let letters = self.letters.get_ref();
        let mut is_meant = |place: Place| -> io::Result<bool> {
            if place.length as usize != body.len() || place.index as usize != index {
                return Ok(false);
            }
            if let Some(known) = compared.get(&place.letter) {
                return Ok(*known);
            }
            let is_same = read_body(letters, place)? == body;
            compared.insert(place.letter, is_same);
            Ok(is_same)
        };
        let mut going = Vec::new();
        for (place, _) in latest_of(&self.latest, key) {
            if is_meant(place)? {
                going.push(place);
            }
        }
        for place in going {
            self.latest.remove(&(key.clone(), place));
            self.gone += 1;
        }
        let (file, recipient) = (self.rows.get_ref(), self.hasher.text(&key.1));
        for run in &mut self.runs {
            for row in run.rows_of(file, key, recipient)? {
                if is_meant(row.place)? {
                    run.remove(file, &row)?;
                    self.gone += 1;
                }
            }
        }
        Ok(())
    }

    /// Whether a new copy would be much smaller.
    pub(super) fn is_mostly_gone(&self) -> bool {
        self.gone > GONE_MIN && self.gone > self.added / 2
    }

    /// The rows at or after a place, at most `most`, as [`crate::service::dead_letters::page`] has
    /// them before it asks the ledger. A page ends early where it has looked at very many rows that
    /// do not match.
    pub(super) fn page(
        &self,
        wanted: &LetterFilter,
        from: Option<Key>,
        most: usize,
        with_content: bool,
    ) -> io::Result<Window<DeadRow>> {
        let first = from.clone().unwrap_or_default();
        let mut window = Window::new(from, most);
        let sought = Sought::new(wanted, &self.hasher);
        let mut held = None;
        // A job can be meant by two ids; without one, all rows are looked at.
        let mut jobs: Vec<Option<&str>> = match wanted.job() {
            Some(names) => names.iter().map(|name| Some(name.as_str())).collect(),
            None => vec![None],
        };
        jobs.sort_unstable();
        jobs.dedup();
        for job in jobs {
            let start = (job.unwrap_or_default().to_owned(), String::new());
            let start = first.clone().max(start);
            let mut before = None;
            for step in self.steps(&sought, &start, job)? {
                let (key, step) = step?;
                if step == Step::Paused {
                    window.end_at(key);
                    return Ok(window);
                }
                if before.as_ref() == Some(&key) {
                    continue;
                }
                if !window.takes(&key) {
                    return Ok(window);
                }
                for place in self.letters_of(&key)? {
                    let letter = self.letter(place, &mut held)?;
                    let dead = letter.recipients.get(place.index as usize);
                    let dead = dead.ok_or_else(torn)?;
                    put(&mut window, letter, dead, wanted, with_content);
                }
                before = Some(key);
            }
        }
        Ok(window)
    }

    /// All letters about a recipient of a job, the latest last.
    fn letters_of(&self, key: &Key) -> io::Result<Vec<Place>> {
        let of_latest = latest_of(&self.latest, key);
        let mut all: Vec<_> = of_latest.map(|(place, it)| (it.at_ms, place)).collect();
        let (file, recipient) = (self.rows.get_ref(), self.hasher.text(&key.1));
        for run in &self.runs {
            let rows = run.rows_of(file, key, recipient)?.into_iter();
            all.extend(rows.map(|row| (row.facts.at_ms, row.place)));
        }
        all.sort_unstable();
        Ok(all.into_iter().map(|(_, place)| place).collect())
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
            let body = read_body(self.letters.get_ref(), place)?;
            *held = Some((place.letter, read_letter(&body).ok_or_else(torn)?));
        }
        held.as_ref().map(|(_, letter)| letter).ok_or_else(torn)
    }

    /// The keys at or after this one, in order, with a row that the filter may take.
    fn steps<'a>(
        &'a self,
        sought: &'a Sought<'_>,
        from: &'a Key,
        job: Option<&'a str>,
    ) -> io::Result<Steps<'a>> {
        let left = self.looked_at_max / (self.runs.len() + 1);
        let mut sources: Vec<Source<'a>> = Vec::new();
        for run in &self.runs {
            let reader = Reader::new(self.rows.get_ref(), run, sought, (from, job), left);
            sources.push(Box::new(reader));
        }
        let latest = self.latest.range((from.clone(), Place::default())..);
        let latest = latest
            .take_while(move |(((of, _), _), _)| job.is_none_or(|job| of == job))
            .filter(|(((_, recipient), _), facts)| sought.takes(recipient.as_bytes(), facts))
            .map(|((key, _), _)| Ok((key.clone(), Step::Found)));
        sources.push(Box::new(latest));
        let mut next = BinaryHeap::new();
        for (number, source) in sources.iter_mut().enumerate() {
            if let Some(step) = source.next() {
                let (key, step) = step?;
                next.push(Reverse((key, step, number)));
            }
        }
        Ok(Steps { sources, next })
    }
}

fn latest_of<'a>(
    latest: &'a BTreeMap<(Key, Place), Facts>,
    key: &Key,
) -> impl Iterator<Item = (Place, Facts)> + use<'a> {
    let rows = (key.clone(), Place::default())..=(key.clone(), Place::LAST);
    latest
        .range(rows)
        .map(|((_, place), facts)| (*place, *facts))
}

fn read_body(letters: &File, place: Place) -> io::Result<Vec<u8>> {
    let mut body = vec![0; place.length as usize];
    letters.read_exact_at(&mut body, place.letter)?;
    Ok(body)
}

type Source<'a> = Box<dyn Iterator<Item = io::Result<(Key, Step)>> + 'a>;

/// The steps of all runs, in order.
struct Steps<'a> {
    sources: Vec<Source<'a>>,
    /// The next step of each source.
    next: BinaryHeap<Reverse<(Key, Step, usize)>>,
}

impl Iterator for Steps<'_> {
    type Item = io::Result<(Key, Step)>;

    fn next(&mut self) -> Option<Self::Item> {
        let Reverse((key, step, number)) = self.next.pop()?;
        match self.sources.get_mut(number).and_then(Iterator::next) {
            Some(Ok((key, step))) => self.next.push(Reverse((key, step, number))),
            Some(Err(error)) => return Some(Err(error)),
            None => {}
        }
        Some(Ok((key, step)))
    }
}

#[cfg(test)]
mod tests;
