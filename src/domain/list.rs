//! Reads lists of recipients: lines, CSV or NDJSON, as a stream, so that a list of any size needs
//! the memory of one line. Every bad line is reported with its number; the caller decides what
//! follows. A list that can be read in several ways is refused, or read in the way that loses no
//! recipient.
//!
//! `csv` and `heading` read tables, `ndjson` reads lines of JSON.

mod csv;
mod heading;
mod ndjson;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;

use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};

use self::csv::{Record, Records};
use self::heading::{Columns, rank};
use self::ndjson::from_json;
use super::audience::{Member, VARS_BYTES_MAX, wrong_vars};
use super::job::{RECIPIENT_BYTES_MAX, wrong_id};
use super::text;

/// The format of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One recipient per line; blank lines and lines that begin with `#` are skipped.
    Lines,
    /// Cells separated by commas, semicolons, tabs or bars. A heading names the column of the
    /// recipients `recipient`, `user`, `uid`, `id` or as one of the systems does (`userID`, `accid`
    /// …). A list of one column needs no heading.
    Csv,
    /// One JSON value per line: a text, or an object with such a name and optionally `vars`. Other
    /// fields are ignored, because a list is often the export of a table.
    Ndjson,
}

/// The longest line: four times the largest values for placeholders.
const LINE_BYTES_MAX: u64 = 4 * VARS_BYTES_MAX as u64;

/// The bytes that are read at a time.
const BUFFER_BYTES: usize = 64 * 1024;

/// The settings for reading a list.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    pub format: Format,
    /// The column of a CSV or the field of an NDJSON object that holds the recipient. A number
    /// means the column of a CSV without a heading.
    pub column: Option<&'a str>,
    /// The other columns of a CSV are the recipient's values, as texts; an empty cell is no value.
    pub vars: bool,
}

/// Calls `each` with the number of every line and its recipient, or with what is wrong with the
/// line, until `each` breaks off. An error is an error of the input.
pub fn read(
    input: impl Read,
    how: Reading<'_>,
    mut each: impl FnMut(u64, Result<Member<'_>, String>) -> ControlFlow<()>,
) -> std::io::Result<()> {
    let mut checked = |line: u64, found: Result<Member<'_>, String>| {
        let found = found.and_then(|member| match wrong(&member) {
            Some(what) => Err(what),
            None => Ok(member),
        });
        each(line, found)
    };
    let mut input = BufReader::with_capacity(BUFFER_BYTES, input);
    if let Some(what) = text::foreign(input.fill_buf()?) {
        let _ = checked(1, Err(what.to_owned()));
        return Ok(());
    }
    match how.format {
        Format::Lines => read_lines(input, plain, checked),
        Format::Ndjson => read_lines(input, |line| from_json(line, how.column), checked),
        Format::Csv => read_csv(input, how, checked),
    }
}

fn wrong(member: &Member<'_>) -> Option<String> {
    let vars = || {
        let what = wrong_vars(member.vars?)?;
        Some(format!("vars: {what}"))
    };
    let rounded = || {
        let what = "looks like a long number that a spreadsheet has rounded, so it is no longer \
                    anyone's id: format the column as text before saving the list";
        text::is_rounded(&member.id).then(|| format!("{:?} {what}", member.id))
    };
    let wrong = wrong_id(&member.id, RECIPIENT_BYTES_MAX);
    wrong.or_else(rounded).or_else(vars)
}

fn read_lines(
    mut input: impl BufRead,
    parse: impl Fn(&str) -> Result<Member<'_>, String>,
    mut each: impl FnMut(u64, Result<Member<'_>, String>) -> ControlFlow<()>,
) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    for number in 1.. {
        buffer.clear();
        let read = input
            .by_ref()
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut buffer)?;
        if read == 0 {
            break;
        }
        let went_on = if read as u64 == LINE_BYTES_MAX && !buffer.ends_with(b"\n") {
            input.skip_until(b'\n')?;
            each(number, Err(format!("longer than {LINE_BYTES_MAX} bytes")))
        } else {
            match std::str::from_utf8(&buffer) {
                Err(error) => each(number, Err(format!("not UTF-8: {error}"))),
                Ok(line) => match line.trim_start_matches('\u{feff}').trim() {
                    "" => ControlFlow::Continue(()),
                    comment if comment.starts_with('#') => ControlFlow::Continue(()),
                    line => each(number, parse(line)),
                },
            }
        };
        if went_on.is_break() {
            break;
        }
    }
    Ok(())
}

fn plain(line: &str) -> Result<Member<'_>, String> {
    let id = Cow::Borrowed(line);
    Ok(Member { id, vars: None })
}

fn read_csv(
    input: BufReader<impl Read>,
    how: Reading<'_>,
    mut each: impl FnMut(u64, Result<Member<'_>, String>) -> ControlFlow<()>,
) -> std::io::Result<()> {
    let likely = |cell: &str| match how.column {
        Some(column) => cell.eq_ignore_ascii_case(column.trim()),
        None => rank(cell).is_some(),
    };
    let mut records = Records::of(input, likely)?;
    let mut record = Record::default();
    let mut columns: Option<Columns> = None;
    while let Some(read) = records.next(&mut record)? {
        let found = read.and_then(|()| match &columns {
            Some(_) => Ok(()),
            None => {
                let first = Columns::of(&record, how)?;
                columns = Some(first);
                Ok(())
            }
        });
        if let Err(what) = found {
            let _ = each(record.line, Err(what));
            return Ok(());
        }
        let Some(columns) = &columns else { continue };
        if record.first && columns.names.is_some() {
            continue;
        }
        let mut vars = None;
        let found = cells(&record, columns).and_then(|id| {
            if how.vars {
                vars = Some(other_cells(columns, &record)?);
            }
            Ok(id)
        });
        let found = found.map(|id| Member {
            id: Cow::Borrowed(id),
            vars: vars.as_deref(),
        });
        if each(record.line, found).is_break() {
            return Ok(());
        }
    }
    Ok(())
}

/// The recipient of a row.
fn cells<'r>(record: &'r Record, columns: &Columns) -> Result<&'r str, String> {
    for index in columns.count..record.len() {
        if !record.cell(index)?.is_empty() {
            return Err(format!(
                "{} cells, and the first line has {}: a separator within a cell needs quotes around it",
                record.len(),
                columns.count
            ));
        }
    }
    record.cell(columns.index)
}

/// The cells of the other columns, by their headings.
fn other_cells(columns: &Columns, record: &Record) -> Result<Box<RawValue>, String> {
    let mut values = BTreeMap::new();
    let names = columns.names.iter().flatten().enumerate();
    for (at, name) in names.filter(|(at, _)| *at != columns.index) {
        let cell = record.cell(at)?;
        if !cell.is_empty() {
            values.insert(name, cell);
        }
    }
    to_raw_value(&values).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
