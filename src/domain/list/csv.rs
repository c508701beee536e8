//! Records of a CSV. Whatever would make a record take in another is a problem of its line: a quote that
//! is never closed, or one that another row's quote closes.

use std::io::{BufRead, BufReader, Chain, Cursor, Read};

use super::{BUFFER_BYTES, LINE_BYTES_MAX};
use crate::domain::spreadsheet::unguarded;

/// What separates cells, the likelier first. Spreadsheets write semicolons where a comma is the decimal
/// mark.
const SEPARATORS: [u8; 4] = [b',', b';', b'\t', b'|'];

/// One row.
#[derive(Debug, Default)]
pub(super) struct Record {
    text: Vec<u8>,
    /// Where each cell ends.
    ends: Vec<usize>,
    /// The line it begins on.
    pub(super) line: u64,
    /// There was none before.
    pub(super) first: bool,
}

impl Record {
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// A cell without the white space around it, and as text; one that is not there is empty.
    pub(super) fn cell(&self, index: usize) -> Result<&str, String> {
        let Some(end) = self.ends.get(index) else {
            return Ok("");
        };
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        std::str::from_utf8(&self.text[start..*end])
            .map(|cell| unguarded(cell.trim()))
            .map_err(|error| format!("not UTF-8: {error}"))
    }

    pub(super) fn cells(&self) -> impl Iterator<Item = Result<&str, String>> {
        (0..self.len()).map(|index| self.cell(index))
    }

    fn clear(&mut self, line: u64) {
        self.first = self.line == 0;
        self.text.clear();
        self.ends.clear();
        self.line = line;
    }
}

/// The records of a list, one after the other.
pub(super) struct Records<R> {
    input: Chain<Cursor<Vec<u8>>, BufReader<R>>,
    separator: u8,
    line: u64,
}

/// Where a cell stands while it is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Before,
    Bare,
    /// Within quotes that open on this line.
    Quoted(u64),
    /// Behind a quote that may be the first of two.
    Closed(u64),
}

/// What comes behind a cell.
enum Behind {
    Cell,
    Record,
}

impl<R: Read> Records<R> {
    /// Looks at the first line for what separates the cells; `likely` knows headings.
    pub(super) fn of(
        mut input: BufReader<R>,
        likely: impl Fn(&str) -> bool,
    ) -> std::io::Result<Self> {
        let mut first = Vec::with_capacity(BUFFER_BYTES);
        let mut head = input.by_ref().take(LINE_BYTES_MAX);
        head.read_until(b'\n', &mut first)?;
        if first.starts_with("\u{feff}".as_bytes()) {
            first.drain(..3);
        }
        Ok(Self {
            separator: separator(&first, likely),
            input: Cursor::new(first).chain(input),
            line: 1,
        })
    }

    /// The next record; blank lines are none. After an error nothing that follows can be trusted.
    pub(super) fn next(
        &mut self,
        record: &mut Record,
    ) -> std::io::Result<Option<Result<(), String>>> {
        while let Some(b'\n' | b'\r') = self.peek()? {
            self.take()?;
        }
        if self.peek()?.is_none() {
            return Ok(None);
        }
        record.clear(self.line);
        loop {
            match self.cell(record)? {
                Ok(Behind::Cell) => {}
                Ok(Behind::Record) => return Ok(Some(Ok(()))),
                Err(what) => return Ok(Some(Err(what))),
            }
        }
    }

    fn cell(&mut self, record: &mut Record) -> std::io::Result<Result<Behind, String>> {
        let mut state = State::Before;
        loop {
            if record.text.len() as u64 > LINE_BYTES_MAX {
                let what = "is a quote not closed?";
                return Ok(Err(format!(
                    "a record longer than {LINE_BYTES_MAX} bytes; {what}"
                )));
            }
            let byte = self.take()?;
            state = match (state, byte) {
                (State::Quoted(line), None) => {
                    let what = "is never closed; it would take in all that follows";
                    return Ok(Err(format!("the quote that opens on line {line} {what}")));
                }
                (State::Quoted(line), Some(b'"')) => State::Closed(line),
                (State::Closed(line), Some(b'"')) => {
                    record.text.push(b'"');
                    State::Quoted(line)
                }
                (State::Quoted(_), Some(byte)) => {
                    record.text.push(byte);
                    state
                }
                (_, None | Some(b'\n' | b'\r')) => {
                    record.ends.push(record.text.len());
                    return Ok(Ok(Behind::Record));
                }
                (_, Some(byte)) if byte == self.separator => {
                    record.ends.push(record.text.len());
                    return Ok(Ok(Behind::Cell));
                }
                (State::Before | State::Closed(_), Some(b' ' | b'\t')) => state,
                (State::Before, Some(b'"')) => State::Quoted(self.line),
                (State::Closed(line), Some(_)) => {
                    let what = "is closed before the end of its cell; a quote within a quoted cell is \
                                written twice";
                    return Ok(Err(format!("the quote that opens on line {line} {what}")));
                }
                (State::Before | State::Bare, Some(byte)) => {
                    record.text.push(byte);
                    State::Bare
                }
            };
        }
    }

    fn peek(&mut self) -> std::io::Result<Option<u8>> {
        Ok(self.input.fill_buf()?.first().copied())
    }

    /// The next byte; a line ends with `\n`, `\r\n` or `\r`.
    fn take(&mut self) -> std::io::Result<Option<u8>> {
        let Some(byte) = self.peek()? else {
            return Ok(None);
        };
        self.input.consume(1);
        if byte == b'\n' || byte == b'\r' && self.peek()? != Some(b'\n') {
            self.line += 1;
        }
        Ok(Some(byte))
    }
}

/// What separates the cells of a first line: with which a heading is known, or else what it holds most of.
fn separator(line: &[u8], likely: impl Fn(&str) -> bool) -> u8 {
    let mut quoted = false;
    let mut outside = |byte: &u8| {
        quoted ^= *byte == b'"';
        !quoted
    };
    let bare: Vec<u8> = line.iter().copied().filter(|byte| outside(byte)).collect();
    let count = |separator: u8| bare.iter().filter(|byte| **byte == separator).count();
    let known = |separator: u8| {
        let text = String::from_utf8_lossy(line);
        let mut cells = text.split(char::from(separator));
        count(separator) > 0 && cells.any(|cell| likely(cell.trim().trim_matches('"')))
    };
    let found = SEPARATORS.into_iter().find(|it| known(*it));
    // The last of equals is the greatest.
    let most = SEPARATORS.into_iter().rev().max_by_key(|it| count(*it));
    found.or(most).unwrap_or(b',')
}
