//! Recipient lists of files and standard input. Every bad line is reported with its number, and nothing
//! is sent if there is one.

use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;

use clap::ValueEnum;

use crate::domain::fields::{Problem, Problems, summary};
use crate::domain::job::MemberDocument;
use crate::domain::list::{self, Format, Reading};

/// How a list is written, see [`Format`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ListFormat {
    /// One recipient per line; blank lines and lines that begin with `#` are skipped.
    Lines,
    /// Cells between commas, semicolons, tabs or bars. A heading calls the recipients' column `recipient`,
    /// `user`, `uid`, `id` or as a system does (`userID`, `accid`), or as --column says; a list of one
    /// column needs none.
    Csv,
    /// One JSON value per line: a text, or an object with such a name, and `vars`.
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
