//! Reads recipient lists from files and standard input. Reports every bad line with its number; a
//! single bad line stops the whole job before anything is sent.

use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;

use clap::ValueEnum;

use crate::domain::fields::{Problem, Problems, summary};
use crate::domain::job::MemberDocument;
use crate::domain::list::{self, Format, Reading};

/// The format of a list, see [`Format`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ListFormat {
    /// One recipient per line; blank lines and lines that begin with `#` are skipped.
    Lines,
    /// Columns separated by commas, semicolons, tabs or bars. A heading names the recipients'
    /// column `recipient`, `user`, `uid` or `id`, or as an IM system does (`userID`, `accid`), or
    /// as --column says; a list of one column needs no heading.
    Csv,
    /// One JSON value per line: a string, or an object with a field of such a name, and `vars`.
    Ndjson,
}

impl ListFormat {
    /// Chooses a format by the ending of the file name.
    pub(super) fn of(path: &Path) -> Self {
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("csv") => Self::Csv,
            Some("ndjson" | "jsonl") => Self::Ndjson,
            _ => Self::Lines,
        }
    }
}

impl From<ListFormat> for fanwise_client::ListFormat {
    fn from(format: ListFormat) -> Self {
        match format {
            ListFormat::Lines => Self::Lines,
            ListFormat::Csv => Self::Csv,
            ListFormat::Ndjson => Self::Ndjson,
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

/// Reads a whole list, or reports every bad line.
pub(super) fn read(input: impl Read, how: Reading<'_>) -> Result<Vec<MemberDocument>, String> {
    let (mut members, mut problems) = (Vec::new(), Problems::default());
    let read = list::read(input, how, |number, found| {
        match found {
            Ok(member) => members.push(member.into()),
            Err(what) => problems.push(Problem::new(format!("line {number}"), what)),
        }
        ControlFlow::Continue(())
    });
    read.map_err(|error| error.to_string())?;
    if problems.is_empty() {
        Ok(members)
    } else {
        let problems = Vec::from(problems);
        Err(format!("nothing was sent: {}", summary(&problems)))
    }
}
