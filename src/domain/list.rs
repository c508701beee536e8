//! Lists of recipients as people have them: lines, CSV or NDJSON, read as a stream, so that a list of
//! any size costs one line of memory. Every bad line is told with its number; what to do about it is
//! the reader's business.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::rc::Rc;

use serde::de::{DeserializeSeed, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::{RawValue, to_raw_value};

use super::audience::{Member, VARS_BYTES_MAX, wrong_vars};
use super::job::{RECIPIENT_BYTES_MAX, wrong_id};
use super::spreadsheet::unguarded;

/// How a list is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One recipient per line; blank lines and lines that begin with `#` are skipped.
    Lines,
    /// Comma-separated with a heading; the column is `recipient`, `user`, `uid` or `id`, or the first.
    Csv,
    /// One JSON value per line: a text, or an object with `recipient`, `user`, `uid` or `id`, and
    /// perhaps with `vars`. Other fields are passed over: a list is often the export of a table.
    Ndjson,
}

/// Names under which a recipient is looked for in CSV and NDJSON, the first one first.
const KEYS: [&str; 4] = ["recipient", "user", "uid", "id"];

/// Longest line: the largest values for placeholders and then some.
const LINE_BYTES_MAX: u64 = 4 * VARS_BYTES_MAX as u64;

/// Bytes read at a time.
const BUFFER_BYTES: usize = 64 * 1024;

/// How a list is read.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    pub format: Format,
    /// The column of a CSV, or field of an NDJSON object, that holds the recipient.
    pub column: Option<&'a str>,
    /// The other columns of a CSV are the recipient's values, as texts; an empty cell is none.
    pub vars: bool,
}

/// Calls `each` with the number of every line and the recipient on it, or what is wrong with it, until
/// it breaks off. The error is the input's own.
pub fn read(
    input: impl Read,
    how: Reading<'_>,
    mut each: impl FnMut(u64, Result<Member<'_>, String>) -> ControlFlow<()>,
) -> std::io::Result<()> {
    let checked = |line: u64, found: Result<Member<'_>, String>| {
        let found = found.and_then(|member| match wrong(&member) {
            Some(what) => Err(what),
            None => Ok(member),
        });
        each(line, found)
    };
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
    wrong_id(&member.id, RECIPIENT_BYTES_MAX).or_else(vars)
}

// --- Lines ---------------------------------------------------------------------------------------

fn read_lines(
    input: impl Read,
    parse: impl Fn(&str) -> Result<Member<'_>, String>,
    mut each: impl FnMut(u64, Result<Member<'_>, String>) -> ControlFlow<()>,
) -> std::io::Result<()> {
    let mut input = BufReader::with_capacity(BUFFER_BYTES, input);
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

fn from_json<'a>(line: &'a str, column: Option<&str>) -> Result<Member<'a>, String> {
    let mut json = serde_json::Deserializer::from_str(line);
    let member = Line { column }.deserialize(&mut json);
    let member = member.and_then(|member| json.end().map(|()| member));
    member.map_err(|error| {
        // The line within the line is always 1.
        error.to_string().replace(" at line 1 column", " at column")
    })
}

/// Reads one line of NDJSON.
struct Line<'c> {
    column: Option<&'c str>,
}

impl Line<'_> {
    /// How much a field is wanted as the recipient; the least counts.
    fn rank(&self, key: &str) -> Option<usize> {
        match self.column {
            Some(column) => (key == column).then_some(0),
            None => KEYS.iter().position(|known| *known == key),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Line<'_> {
    type Value = Member<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Member<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Line<'_> {
    type Value = Member<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a recipient, or an object that holds one")
    }

    fn visit_borrowed_str<E>(self, id: &'de str) -> Result<Member<'de>, E> {
        let id = Cow::Borrowed(id);
        Ok(Member { id, vars: None })
    }

    fn visit_str<E>(self, id: &str) -> Result<Member<'de>, E> {
        let id = Cow::Owned(id.to_owned());
        Ok(Member { id, vars: None })
    }

    fn visit_u64<E>(self, id: u64) -> Result<Member<'de>, E> {
        let id = Cow::Owned(id.to_string());
        Ok(Member { id, vars: None })
    }

    fn visit_i64<E>(self, id: i64) -> Result<Member<'de>, E> {
        let id = Cow::Owned(id.to_string());
        Ok(Member { id, vars: None })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Member<'de>, A::Error> {
        let mut id: Option<(usize, Cow<'de, str>)> = None;
        let mut vars = None;
        while let Some(Key(key)) = map.next_key()? {
            if let Some(rank) = self.rank(&key)
                && id.as_ref().is_none_or(|(standing, _)| rank < *standing)
            {
                id = Some((rank, map.next_value::<Id<'de>>()?.0));
            } else if key == "vars" {
                vars = Some(map.next_value::<&'de RawValue>()?);
            } else {
                map.next_value::<serde::de::IgnoredAny>()?;
            }
        }
        let looked_for = || self.column.map_or_else(|| KEYS.join(", "), str::to_owned);
        let (_, id) = id.ok_or_else(|| {
            let what = format!("no recipient in it; looked for: {}", looked_for());
            serde::de::Error::custom(what)
        })?;
        Ok(Member { id, vars })
    }
}

#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// An id: a text, or a number of a table.
struct Id<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Id<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Id<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a number")
            }
            fn visit_borrowed_str<E>(self, id: &'de str) -> Result<Id<'de>, E> {
                Ok(Id(Cow::Borrowed(id)))
            }
            fn visit_str<E>(self, id: &str) -> Result<Id<'de>, E> {
                Ok(Id(Cow::Owned(id.to_owned())))
            }
            fn visit_u64<E>(self, id: u64) -> Result<Id<'de>, E> {
                Ok(Id(Cow::Owned(id.to_string())))
            }
            fn visit_i64<E>(self, id: i64) -> Result<Id<'de>, E> {
                Ok(Id(Cow::Owned(id.to_string())))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

// --- CSV -----------------------------------------------------------------------------------------

fn read_csv(
    input: impl Read,
    how: Reading<'_>,
    mut each: impl FnMut(u64, Result<Member<'_>, String>) -> ControlFlow<()>,
) -> std::io::Result<()> {
    let room = Rc::new(Cell::new(0));
    let metered = Metered {
        input,
        room: Rc::clone(&room),
    };
    let mut reader = csv::ReaderBuilder::new()
        .flexible(true)
        .trim(csv::Trim::All)
        .buffer_capacity(BUFFER_BYTES)
        .from_reader(metered);
    room.set(LINE_BYTES_MAX);
    let headings = match reader.byte_headers() {
        Ok(headings) => headings.clone(),
        Err(error) => return csv_problem(1, error, each),
    };
    let find = |name: &str| {
        let mut headings = headings.iter();
        headings.position(|heading| heading.eq_ignore_ascii_case(name.as_bytes()))
    };
    let index = match how.column {
        None => KEYS.iter().find_map(|key| find(key)).unwrap_or(0),
        Some(name) => match find(name) {
            Some(index) => index,
            None => {
                let there: Vec<_> = headings.iter().map(String::from_utf8_lossy).collect();
                let there = there.join(", ");
                let what = format!("there is no column {name:?}; there are: {there}");
                let _ = each(1, Err(what));
                return Ok(());
            }
        },
    };
    let mut record = csv::ByteRecord::new();
    loop {
        room.set(LINE_BYTES_MAX);
        let after = reader.position().line();
        match reader.read_byte_record(&mut record) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => return csv_problem(after, error, each),
        }
        let number = record.position().map_or(0, csv::Position::line);
        let mut vars = None;
        let found = match text(record.get(index).unwrap_or_default()) {
            Ok(id) if how.vars => other_cells(&headings, &record, index).map(|values| Member {
                id: Cow::Borrowed(id),
                vars: Some(&**vars.insert(values)),
            }),
            found => found.and_then(plain),
        };
        if each(number, found).is_break() {
            return Ok(());
        }
    }
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| format!("not UTF-8: {error}"))?;
    Ok(unguarded(text))
}

/// The cells beside the recipient's, by their headings.
fn other_cells(
    headings: &csv::ByteRecord,
    record: &csv::ByteRecord,
    index: usize,
) -> Result<Box<RawValue>, String> {
    let mut values = BTreeMap::new();
    for (at, (heading, cell)) in headings.iter().zip(record).enumerate() {
        if at != index && !cell.is_empty() {
            values.insert(text(heading)?, text(cell)?);
        }
    }
    to_raw_value(&values).map_err(|error| error.to_string())
}

/// A record that never ends is a problem of its line; anything else is the input's.
fn csv_problem(
    line: u64,
    error: csv::Error,
    mut each: impl FnMut(u64, Result<Member<'_>, String>) -> ControlFlow<()>,
) -> std::io::Result<()> {
    match error.into_kind() {
        csv::ErrorKind::Io(error) if error.kind() == std::io::ErrorKind::FileTooLarge => {
            let _ = each(line, Err(error.to_string()));
            Ok(())
        }
        csv::ErrorKind::Io(error) => Err(error),
        other => {
            let _ = each(line, Err(format!("not CSV: {other:?}")));
            Ok(())
        }
    }
}

/// Lets one record have only so many bytes: a quote that is not closed would take in the rest of the
/// list.
struct Metered<R> {
    input: R,
    room: Rc<Cell<u64>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.room.get() == 0 {
            let what =
                format!("a record longer than {LINE_BYTES_MAX} bytes; is a quote not closed?");
            return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, what));
        }
        let read = self.input.read(buffer)?;
        self.room.set(self.room.get().saturating_sub(read as u64));
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Found = (Vec<String>, Vec<String>);

    fn all(format: Format, column: Option<&str>, bytes: &[u8]) -> Found {
        let vars = false;
        let how = Reading {
            format,
            column,
            vars,
        };
        all_as(how, bytes)
    }

    fn all_as(how: Reading<'_>, bytes: &[u8]) -> Found {
        let (mut good, mut bad) = Found::default();
        read(bytes, how, |line, found| {
            match found {
                Ok(Member { id, vars: None }) => good.push(id.into_owned()),
                Ok(Member { id, vars }) => good.push(format!("{id} {}", vars.unwrap().get())),
                Err(what) => bad.push(format!("{line}: {what}")),
            }
            ControlFlow::Continue(())
        })
        .unwrap();
        (good, bad)
    }

    fn check(format: Format, text: &str, good: &[&str], bad: &[&str]) {
        let (found, problems) = all(format, None, text.as_bytes());
        assert_eq!(found, good, "{text:?}");
        assert_eq!(problems.len(), bad.len(), "{problems:?}");
        for (problem, part) in problems.iter().zip(bad) {
            assert!(problem.contains(part), "{problem}");
        }
    }

    #[test]
    fn lists_are_read_in_every_format() {
        check(
            Format::Lines,
            "\u{feff}u1\n\n# no\r\n u2 \r\nu3",
            &["u1", "u2", "u3"],
            &[],
        );
        let csv = "name,uid\nAna,u1\n\"B,\nb\",u2\n";
        check(Format::Csv, csv, &["u1", "u2"], &[]);
        check(Format::Csv, "whatever\nu1\n", &["u1"], &[]);
        check(Format::Csv, "", &[], &[]);
        let json = "\"u1\"\n{\"user\":\"u2\",\"age\":[3]}\n\n{\"id\":3}\n4\n";
        check(Format::Ndjson, json, &["u1", "u2", "3", "4"], &[]);
        let json = "{\"id\":\"a\",\"user\":\"b\"}\n{\"vars\":{\"n\": 1},\"id\":\"c\\u0064\"}";
        check(Format::Ndjson, json, &["b", "cd {\"n\": 1}"], &[]);
    }

    #[test]
    fn other_columns_are_values() {
        let how = Reading {
            format: Format::Csv,
            column: None,
            vars: true,
        };
        let csv = b"name,uid,city\nAna,u1,\"Ro\"\"me\"\nBo,u2,\n\xff,u3,\n";
        let (good, bad) = all_as(how, csv);
        assert_eq!(
            good,
            [
                r#"u1 {"city":"Ro\"me","name":"Ana"}"#,
                r#"u2 {"name":"Bo"}"#
            ]
        );
        assert!(bad[0].starts_with("4: not UTF-8"), "{bad:?}");
    }

    #[test]
    fn bad_lines_are_told_with_their_numbers() {
        check(
            Format::Ndjson,
            "\"u1\"\n{\"x\":1}\n{\n{\"id\":\"a\",\"vars\":3}\n{\"id\":null}\n\"\" 1",
            &["u1"],
            &[
                "2: no recipient",
                "3: EOF",
                "4: vars: a JSON object",
                "5: invalid type",
                "6: trailing",
            ],
        );
        let long = format!("u1\n{}\nu2\n{}\nu3\n", "u".repeat(256), "u".repeat(200_000));
        check(
            Format::Lines,
            &long,
            &["u1", "u2", "u3"],
            &["2: 256 bytes", "4: longer"],
        );
        check(Format::Csv, "uid,name\n,x\nu2,y\n", &["u2"], &["2: empty"]);
        let (good, bad) = all(Format::Lines, None, b"a\n\xff\nb\n");
        assert_eq!((good.len(), bad.len()), (2, 1));
    }

    #[test]
    fn a_quote_that_is_not_closed_does_not_swallow_the_list() {
        let mut text = String::from("uid\nu1\n\"u2\n");
        for _ in 0..100_000 {
            text.push_str("u3\n");
        }
        check(Format::Csv, &text, &["u1"], &["3: a record longer"]);
    }

    #[test]
    fn a_column_can_be_named() {
        let found = all(Format::Csv, Some("phone"), b"id,Phone\n1,2\n");
        assert_eq!(found.0, ["2"]);
        let found = all(Format::Csv, Some("fone"), b"id,Phone\n1,2\n");
        assert_eq!(
            found.1,
            ["1: there is no column \"fone\"; there are: id, Phone"]
        );
        let found = all(
            Format::Ndjson,
            Some("n"),
            b"{\"id\":1,\"n\":2}\n{\"id\":1}\n",
        );
        assert_eq!(found.0, ["2"]);
        assert!(found.1[0].starts_with("2: no recipient in it; looked for: n"));
    }

    proptest! {
        /// Whatever a list holds, every line is a recipient, a problem or passed over.
        #[test]
        fn reading_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            for format in [Format::Lines, Format::Csv, Format::Ndjson] {
                let lines = bytes.iter().filter(|byte| **byte == b'\n').count() + 1;
                let (good, bad) = all(format, None, &bytes);
                prop_assert!(format == Format::Csv || good.len() + bad.len() <= lines);
            }
        }

        #[test]
        fn ndjson_comes_back(ids in prop::collection::vec("[^\\p{Cc}]{1,40}", 1..50)) {
            let text: String = ids.iter().map(|id| serde_json::to_string(id).unwrap() + "\n").collect();
            prop_assert_eq!(all(Format::Ndjson, None, text.as_bytes()), (ids, Vec::new()));
        }
    }
}
