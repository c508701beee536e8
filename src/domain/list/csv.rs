//! Reads the records of a CSV. A quote that would make a record swallow another one is a problem of
//! its line: a quote that is never closed, or that a quote of another row closes.

use std::io::{BufRead, BufReader, Chain, Cursor, Read};

use super::{BUFFER_BYTES, LINE_BYTES_MAX};
use crate::domain::spreadsheet::unguarded;

/// The separators of cells, the likeliest first. Spreadsheets write semicolons where a comma is the
/// decimal mark.
const SEPARATORS: [u8; 4] = [b',', b';', b'\t', b'|'];

/// One row.
#[derive(Debug, Default)]
pub(super) struct Record {
    text: Vec<u8>,
    /// The end of each cell.
    ends: Vec<usize>,
    /// The line on which it begins.
    pub(super) line: u64,
    /// It is the first record.
    pub(super) first: bool,
}

impl Record {
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The text of a cell, without surrounding white space; a missing cell is empty.
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

/// The records of a list, in order.
pub(super) struct Records<R> {
    input: Chain<Cursor<Vec<u8>>, BufReader<R>>,
    separator: u8,
    line: u64,
}

/// The state of the cell that is being read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Before,
    Bare,
    /// Within quotes, which opened on this line.
    Quoted(u64),
    /// After a quote that may be the first of two.
    Closed(u64),
}

/// What follows a cell.
enum Behind {
    Cell,
    Record,
}

impl<R: Read> Records<R> {
    /// Finds the separator from the first line; `likely` recognises headings.
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

    /// The next record; blank lines are skipped. After an error the rest cannot be trusted.
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
                    let what = "is never closed, so it would include all that follows";
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

    /// The next byte. A line ends with `\n`, `\r\n` or `\r`.
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

/// The separator of a first line: the one with which a heading is recognised, else the most
/// frequent one.
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
    // Of equal counts, `max_by_key` returns the last, so the order is reversed.
    let most = SEPARATORS.into_iter().rev().max_by_key(|it| count(*it));
    found.or(most).unwrap_or(b',')
}
