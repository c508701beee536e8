//! Prints the results of commands on standard output: one JSON value, or plain text. All output
//! passes through here, so that no text from a backend or a producer controls the terminal.

use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

use crate::domain::printable::{on_one_line, printable, printable_json};
use crate::exit::{Exit, Failure};

/// Writes a line to standard output.
pub(super) fn line(text: impl AsRef<str>) -> Result<(), Failure> {
    write(&printable(text.as_ref()))
}

/// The first rows of a listing. Says how many `--limit` leaves out.
pub(super) fn limited<T>(rows: &[T], limit: Option<usize>) -> &[T] {
    let (shown, left) = rows.split_at(rows.len().min(limit.unwrap_or(usize::MAX)));
    if !left.is_empty() {
        tracing::info!(
            "{} more are left out by --limit",
            grouped(left.len() as u64)
        );
    }
    shown
}

/// Writes data for other programs, byte for byte unless standard output is a terminal.
pub(super) fn data(text: &str) -> Result<(), Failure> {
    match io::stdout().is_terminal() {
        true => line(text),
        false => write(text),
    }
}

/// A reader that closes the pipe early (`| head`) ends the command quietly.
fn write(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure {
            exit: Exit::Ok,
            error: anyhow::Error::new(error),
        }),
        written => written.map_err(|error| Failure::new(Exit::Internal, error)),
    }
}

/// Writes one JSON value: indented on a terminal, otherwise on one line.
pub(super) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = if io::stdout().is_terminal() {
        serde_json::to_string_pretty(value)
    } else {
        serde_json::to_string(value)
    };
    let text = text.map_err(|error| Failure::new(Exit::Internal, error))?;
    write(&printable_json(&text))
}

/// Writes one JSON value on one line.
pub(super) fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value);
    let text = text.map_err(|error| Failure::new(Exit::Internal, error))?;
    write(&printable_json(&text))
}

/// Asks for a confirmation on the terminal; true if the answer is yes.
pub(super) fn is_meant(what: &str) -> Result<bool, Failure> {
    let (first, rest) = what.split_at(1);
    let mut stderr = io::stderr();
    // Errors do not matter: a prompt that is not shown gets no yes.
    let question = format!("{}{rest}. Go on? [y/N] ", first.to_uppercase());
    let _ = write!(stderr, "{}", on_one_line(&question));
    let _ = stderr.flush();
    let mut typed = String::new();
    io::stdin()
        .read_line(&mut typed)
        .map_err(|error| Failure::new(Exit::Usage, error))?;
    let typed = typed.trim().to_lowercase();
    Ok(typed == "y" || typed == "yes")
}

/// Writes rows under headings. Columns are as wide as their widest cell; the last one is not
/// padded.
pub(super) fn table(headings: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
    let shown = |row: &Vec<String>| {
        row.iter()
            .map(|cell| on_one_line(cell).into_owned())
            .collect()
    };
    let rows: Vec<Vec<String>> = rows.iter().map(shown).collect();
    let mut widths: Vec<usize> = headings
        .iter()
        .map(|heading| heading.chars().count())
        .collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let headings = headings.iter().map(|heading| heading.to_string()).collect();
    for (number, row) in std::iter::once(&headings).chain(&rows).enumerate() {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        let text = cells.collect::<Vec<_>>().join("  ");
        match number {
            0 => heading(text.trim_end())?,
            _ => line(text.trim_end())?,
        }
    }
    Ok(())
}

/// Writes the headings of a table: bold on a terminal, unless NO_COLOR is set.
fn heading(text: &str) -> Result<(), Failure> {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|it| !it.is_empty());
    match io::stdout().is_terminal() && !plain {
        true => write(&format!("\u{1b}[1m{text}\u{1b}[0m")),
        false => write(text),
    }
}

/// Width of a line that fits any terminal.
const COLUMNS: usize = 80;

/// Like [`table`], in at most 80 columns: cuts the last column, but leaves it at least 8.
pub(super) fn narrow_table(headings: &[&str], mut rows: Vec<Vec<String>>) -> Result<(), Failure> {
    let last = headings.len().saturating_sub(1);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let widest = cells.map(|cell| cell.chars().count()).max();
        widest.unwrap_or(0).max(headings[column].chars().count())
    };
    let before: usize = (0..last).map(|column| width(column) + 2).sum();
    let room = COLUMNS.saturating_sub(before).max(8);
    for row in &mut rows {
        if let Some(cell) = row.get_mut(last) {
            *cell = cut(cell, room);
        }
    }
    table(headings, &rows)
}

/// Cuts a text to one line of any terminal.
pub(super) fn narrow(text: &str) -> String {
    cut(&on_one_line(text), COLUMNS)
}

/// Cuts a text to at most `most` characters; an ellipsis marks the cut.
pub(super) fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let start = text.chars().take(most.saturating_sub(1));
    start.chain(['…']).collect()
}

/// `12,345,678`
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_to_characters() {
        for (text, most, shown) in [("abc", 3, "abc"), ("äbcd", 3, "äb…"), ("", 0, "")] {
            assert_eq!(cut(text, most), shown);
        }
    }

    #[test]
    fn thousands_are_grouped() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (12_345_678, "12,345,678"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
