//! Recipient lists from arguments, files and standard input: lines, CSV or NDJSON. Every bad line is
//! reported with its number, and nothing is sent if there is one.

use std::io::{BufRead, Read};
use std::path::Path;

use clap::ValueEnum;

use crate::domain::fields::{Problem, summary};
use crate::domain::job::{RECIPIENT_BYTES_MAX, wrong_id};

/// How a list is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ListFormat {
    /// One recipient per line; blank lines and lines that begin with `#` are skipped.
    Lines,
    /// Comma-separated with a heading; the column is `recipient`, `user`, `uid` or `id`, or the first.
    Csv,
    /// One JSON value per line: a text, or an object with `recipient`, `user`, `uid` or `id`.
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

/// Names under which a recipient is looked for in CSV and NDJSON.
const KEYS: [&str; 4] = ["recipient", "user", "uid", "id"];

/// Reads a whole list, or says what is wrong with which lines.
pub(super) fn read(
    input: impl Read,
    format: ListFormat,
    column: Option<&str>,
) -> Result<Vec<String>, String> {
    let mut list = List::default();
    match format {
        ListFormat::Lines => list.read_lines(input, |line| Ok(Some(line.to_owned())))?,
        ListFormat::Ndjson => list.read_lines(input, |line| from_json(line, column).map(Some))?,
        ListFormat::Csv => list.read_csv(input, column)?,
    }
    if list.problems.is_empty() {
        Ok(list.recipients)
    } else {
        Err(format!("nothing was sent: {}", summary(&list.problems)))
    }
}

#[derive(Default)]
struct List {
    recipients: Vec<String>,
    problems: Vec<Problem>,
}

impl List {
    fn add(&mut self, number: u64, recipient: String) {
        match wrong_id(&recipient, RECIPIENT_BYTES_MAX) {
            None => self.recipients.push(recipient),
            Some(what) => self
                .problems
                .push(Problem::new(format!("line {number}"), what)),
        }
    }

    fn read_lines(
        &mut self,
        input: impl Read,
        parse: impl Fn(&str) -> Result<Option<String>, String>,
    ) -> Result<(), String> {
        for (number, line) in (1..).zip(std::io::BufReader::new(input).lines()) {
            let line = line.map_err(|error| format!("line {number}: {error}"))?;
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match parse(line) {
                Ok(Some(recipient)) => self.add(number, recipient),
                Ok(None) => {}
                Err(what) => self
                    .problems
                    .push(Problem::new(format!("line {number}"), what)),
            }
        }
        Ok(())
    }

    fn read_csv(&mut self, input: impl Read, column: Option<&str>) -> Result<(), String> {
        let mut reader = csv::ReaderBuilder::new()
            .flexible(true)
            .trim(csv::Trim::All)
            .from_reader(input);
        let headings = reader.headers().map_err(|error| error.to_string())?.clone();
        let find = |name: &str| {
            headings
                .iter()
                .position(|heading| heading.eq_ignore_ascii_case(name))
        };
        let index = match column {
            Some(name) => find(name).ok_or_else(|| {
                let there: Vec<_> = headings.iter().collect();
                format!(
                    "there is no column {name:?}; there are: {}",
                    there.join(", ")
                )
            })?,
            None => KEYS.iter().find_map(|key| find(key)).unwrap_or(0),
        };
        for record in reader.records() {
            let record = record.map_err(|error| error.to_string())?;
            let number = record.position().map_or(0, csv::Position::line);
            self.add(number, record.get(index).unwrap_or_default().to_owned());
        }
        Ok(())
    }
}

fn from_json(line: &str, column: Option<&str>) -> Result<String, String> {
    let value: serde_json::Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let found = match &value {
        serde_json::Value::Object(object) => match column {
            Some(name) => object.get(name),
            None => KEYS.iter().find_map(|key| object.get(*key)),
        },
        other => Some(other),
    };
    match found {
        Some(serde_json::Value::String(recipient)) => Ok(recipient.clone()),
        Some(serde_json::Value::Number(number)) => Ok(number.to_string()),
        _ => Err(format!(
            "no recipient in it; {} are looked for",
            KEYS.join(", ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(format: ListFormat, text: &str, expected: Result<&[&str], &str>) {
        let found = read(text.as_bytes(), format, None);
        match expected {
            Ok(list) => assert_eq!(found.unwrap(), list),
            Err(part) => {
                let error = found.unwrap_err();
                assert!(error.contains(part), "{error}");
            }
        }
    }

    #[test]
    fn lists_are_read_in_every_format() {
        check(
            ListFormat::Lines,
            "u1\n\n# no\r\n u2 \r\n",
            Ok(&["u1", "u2"]),
        );
        check(
            ListFormat::Csv,
            "name,uid\nAna,u1\n\"B, b\",u2\n",
            Ok(&["u1", "u2"]),
        );
        check(ListFormat::Csv, "whatever\nu1\n", Ok(&["u1"]));
        check(
            ListFormat::Ndjson,
            "\"u1\"\n{\"user\":\"u2\"}\n{\"id\":3}\n",
            Ok(&["u1", "u2", "3"]),
        );
    }

    #[test]
    fn bad_lines_are_named_and_nothing_is_taken() {
        check(
            ListFormat::Ndjson,
            "\"u1\"\n{\"x\":1}\n{",
            Err("line 2: no recipient"),
        );
        check(
            ListFormat::Lines,
            &format!("u1\n{}\n", "u".repeat(256)),
            Err("line 2: 256 bytes"),
        );
        check(ListFormat::Csv, "uid,name\n,x\n", Err("line 2: empty"));
    }
}
