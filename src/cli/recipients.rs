//! Recipient lists from arguments, files and standard input: lines, CSV or NDJSON. Every bad line is
//! reported with its number, and nothing is sent if there is one. A recipient may bring values for the
//! placeholders of the message: `vars` of an NDJSON object, or the other columns of a CSV.

use std::collections::BTreeMap;
use std::io::{BufRead, Read};
use std::path::Path;

use clap::ValueEnum;
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::domain::fields::{Problem, summary};
use crate::domain::job::{MemberDocument, RECIPIENT_BYTES_MAX, wrong_id};

/// How a list is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ListFormat {
    /// One recipient per line; blank lines and lines that begin with `#` are skipped.
    Lines,
    /// Comma-separated with a heading; the column is `recipient`, `user`, `uid` or `id`, or the first.
    Csv,
    /// One JSON value per line: a text, or an object with `recipient`, `user`, `uid` or `id`, and `vars`.
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

/// How a list is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading<'a> {
    pub(super) format: ListFormat,
    /// The column or field that holds the recipient.
    pub(super) column: Option<&'a str>,
    /// The other columns of a CSV are the recipient's values; an empty cell is none.
    pub(super) vars: bool,
}

/// Reads a whole list, or says what is wrong with which lines.
pub(super) fn read(input: impl Read, how: Reading<'_>) -> Result<Vec<MemberDocument>, String> {
    let mut list = List::default();
    match how.format {
        ListFormat::Lines => list.read_lines(input, |line| Ok((line.to_owned(), None)))?,
        ListFormat::Ndjson => list.read_lines(input, |line| from_json(line, how.column))?,
        ListFormat::Csv => list.read_csv(input, how)?,
    }
    if list.problems.is_empty() {
        Ok(list.recipients)
    } else {
        Err(format!("nothing was sent: {}", summary(&list.problems)))
    }
}

#[derive(Default)]
struct List {
    recipients: Vec<MemberDocument>,
    problems: Vec<Problem>,
}

/// A recipient with its values.
type Entry = (String, Option<Box<RawValue>>);

impl List {
    fn add(&mut self, number: u64, (id, vars): Entry) {
        match wrong_id(&id, RECIPIENT_BYTES_MAX) {
            None => self.recipients.push(match vars {
                None => MemberDocument::Id(id),
                Some(vars) => MemberDocument::WithVars { id, vars },
            }),
            Some(what) => self
                .problems
                .push(Problem::new(format!("line {number}"), what)),
        }
    }

    fn read_lines(
        &mut self,
        input: impl Read,
        parse: impl Fn(&str) -> Result<Entry, String>,
    ) -> Result<(), String> {
        for (number, line) in (1..).zip(std::io::BufReader::new(input).lines()) {
            let line = line.map_err(|error| format!("line {number}: {error}"))?;
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match parse(line) {
                Ok(entry) => self.add(number, entry),
                Err(what) => self
                    .problems
                    .push(Problem::new(format!("line {number}"), what)),
            }
        }
        Ok(())
    }

    fn read_csv(&mut self, input: impl Read, how: Reading<'_>) -> Result<(), String> {
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
        let index = match how.column {
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
            let vars = how.vars.then(|| {
                let cells = headings.iter().zip(&record).enumerate();
                let filled = cells.filter(|(at, (_, cell))| *at != index && !cell.is_empty());
                let values: BTreeMap<&str, &str> = filled.map(|(_, pair)| pair).collect();
                to_raw_value(&values).unwrap_or_default()
            });
            let id = record.get(index).unwrap_or_default().to_owned();
            self.add(number, (id, vars));
        }
        Ok(())
    }
}

fn from_json(line: &str, column: Option<&str>) -> Result<Entry, String> {
    #[derive(Deserialize)]
    struct Personal {
        vars: Option<Box<RawValue>>,
    }
    let value: serde_json::Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let found = match &value {
        serde_json::Value::Object(object) => match column {
            Some(name) => object.get(name),
            None => KEYS.iter().find_map(|key| object.get(*key)),
        },
        other => Some(other),
    };
    let vars = match value.get("vars") {
        None | Some(serde_json::Value::Null) => None,
        // As it is written, so that numbers stay what they are.
        Some(serde_json::Value::Object(_)) => {
            let personal: Personal =
                serde_json::from_str(line).map_err(|error| error.to_string())?;
            personal.vars
        }
        Some(_) => return Err("vars: a JSON object is expected".to_owned()),
    };
    match found {
        Some(serde_json::Value::String(recipient)) => Ok((recipient.clone(), vars)),
        Some(serde_json::Value::Number(number)) => Ok((number.to_string(), vars)),
        _ => Err(format!(
            "no recipient in it; {} are looked for",
            KEYS.join(", ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(format: ListFormat, vars: bool) -> Reading<'static> {
        Reading {
            format,
            column: None,
            vars,
        }
    }

    fn plain(member: MemberDocument) -> String {
        match member {
            MemberDocument::Id(id) => id,
            MemberDocument::WithVars { .. } => panic!("{member:?}"),
        }
    }

    #[test]
    fn values_come_from_columns_and_from_vars() {
        let json = |members: Vec<MemberDocument>| serde_json::to_string(&members).unwrap();
        let csv = "name,uid,city\nAna,u1,Rome\nBo,u2,\n";
        let found = read(csv.as_bytes(), reading(ListFormat::Csv, true)).unwrap();
        assert_eq!(
            json(found),
            r#"[{"id":"u1","vars":{"city":"Rome","name":"Ana"}},{"id":"u2","vars":{"name":"Bo"}}]"#
        );
        let lines = "{\"id\":\"u1\",\"vars\":{\"n\":1.50}}\n\"u2\"\n";
        let found = read(lines.as_bytes(), reading(ListFormat::Ndjson, false)).unwrap();
        assert_eq!(json(found), r#"[{"id":"u1","vars":{"n":1.50}},"u2"]"#);
        check(
            ListFormat::Ndjson,
            "{\"id\":\"u1\",\"vars\":[]}\n",
            Err("line 1: vars: a JSON object is expected"),
        );
    }

    fn check(format: ListFormat, text: &str, expected: Result<&[&str], &str>) {
        let found = read(text.as_bytes(), reading(format, false));
        match expected {
            Ok(list) => assert_eq!(
                found.unwrap().into_iter().map(plain).collect::<Vec<_>>(),
                list
            ),
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
