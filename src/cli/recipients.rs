//! Recipient lists from files and standard input. Every bad line is reported with its number, and
//! nothing is sent if there is one.

use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;

use clap::ValueEnum;

use crate::domain::audience::MemberDocument;
use crate::domain::fields::{Problem, summary};
use crate::domain::list::{self, Format};

/// How a list is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ListFormat {
    /// One recipient per line; blank lines and lines that begin with `#` are skipped.
    Lines,
    /// Comma-separated with a heading; the column is `recipient`, `user`, `uid` or `id`, or the first.
    Csv,
    /// One JSON value per line: a text, or an object with `recipient`, `user`, `uid` or `id`, and
    /// perhaps with `vars`.
    Ndjson,
}

impl ListFormat {
    /// By the ending of the file name.
    pub(super) fn of(path: &Path) -> Self {
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("csv") => Self::Csv,
            Some("ndjson" | "jsonl") => Self::Ndjson,
            _ => Self::Lines,
        }
    }
}

impl From<ListFormat> for Format {
    fn from(format: ListFormat) -> Self {
        match format {
            ListFormat::Lines => Self::Lines,
            ListFormat::Csv => Self::Csv,
            ListFormat::Ndjson => Self::Ndjson,
        }
    }
}

/// Reads a whole list, or says what is wrong with which lines.
pub(super) fn read(
    input: impl Read,
    format: ListFormat,
    column: Option<&str>,
) -> Result<Vec<MemberDocument>, String> {
    let (mut members, mut problems) = (Vec::new(), Vec::new());
    list::read(input, format.into(), column, |line, found| {
        match found {
            Ok(member) => members.push(MemberDocument::from(member)),
            Err(what) => problems.push(Problem::new(format!("line {line}"), what)),
        }
        ControlFlow::Continue(())
    })
    .map_err(|error| error.to_string())?;
    if problems.is_empty() {
        Ok(members)
    } else {
        Err(format!("nothing was sent: {}", summary(&problems)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bad_line_and_nothing_is_taken() {
        let found = read("\"u1\"\n{\"x\":1}\n{".as_bytes(), ListFormat::Ndjson, None);
        let error = found.unwrap_err();
        assert!(
            error.starts_with("nothing was sent: line 2: no recipient"),
            "{error}"
        );
        let found = read("u1\n".as_bytes(), ListFormat::of(Path::new("a.txt")), None);
        assert!(matches!(&found.unwrap()[..], [MemberDocument::Id(id)] if id == "u1"));
    }
}
