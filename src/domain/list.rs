//! Reads lists of recipients: lines, CSV or NDJSON, as a stream, so that a list of any size needs
//! the memory of one line. Every bad line is reported with its number; the caller decides what
//! follows. A list that can be read in several ways is refused, or read in the way that loses no
//! recipient.

mod csv;
mod heading;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;

use serde::de::{DeserializeSeed, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::{RawValue, to_raw_value};

use self::csv::{Record, Records};
use self::heading::{Columns, KEYS, rank};
use super::audience::{Member, VARS_BYTES_MAX, wrong_vars};
use super::fields::{TWICE, shorten};
use super::job::{RECIPIENT_BYTES_MAX, wrong_id};
use super::text;

/// The format of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

// --- Lines ---------------------------------------------------------------------------------------

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

fn from_json<'a>(line: &'a str, column: Option<&str>) -> Result<Member<'a>, String> {
    let mut json = serde_json::Deserializer::from_str(line);
    let member = Line { column }.deserialize(&mut json);
    let member = member.and_then(|member| json.end().map(|()| member));
    member.map_err(|error| {
        // serde counts lines within this line, so its line number is always 1.
        let what = error.to_string().replace(" at line 1 column", " at column");
        shorten(&what, WHAT_SHOWN).into_owned()
    })
}

/// The longest text about one line; it may repeat kilobytes of the line.
const WHAT_SHOWN: usize = 300;

/// Reads one line of NDJSON.
struct Line<'c> {
    column: Option<&'c str>,
}

impl Line<'_> {
    /// The rank of a field as the recipient's field; the lowest one counts.
    fn rank(&self, key: &str) -> Option<usize> {
        match self.column {
            Some(column) => (key == column).then_some(0),
            None => rank(key),
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
        let twice = |key: &str| {
            let what = format!("`{}` {TWICE}", shorten(key, 40));
            serde::de::Error::custom(what)
        };
        while let Some(Key(key)) = map.next_key()? {
            match (self.rank(&key), &id) {
                (Some(rank), Some((found, _))) if rank == *found => return Err(twice(&key)),
                (Some(rank), Some((found, _))) if rank > *found => {
                    map.next_value::<serde::de::IgnoredAny>()?;
                }
                (Some(rank), _) => id = Some((rank, map.next_value::<Id<'de>>()?.0)),
                (None, _) if key == "vars" => {
                    if vars.replace(map.next_value::<&'de RawValue>()?).is_some() {
                        return Err(twice(&key));
                    }
                }
                (None, _) => {
                    map.next_value::<serde::de::IgnoredAny>()?;
                }
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

/// An id: a text, or the number of a table row.
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
        check(Format::Csv, "uid\nu1\n", &["u1"], &[]);
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

    /// Every recipient of a file is sent to, or the file is refused.
    #[test]
    fn a_quote_that_swallows_people_is_told_with_its_line() {
        check(
            Format::Csv,
            "id,name\nu1,\"Ana\nu2,Bob\nu3,Carl\n",
            &[],
            &["2: the quote that opens on line 2 is never closed"],
        );
        check(
            Format::Csv,
            "id,name\nu0,Zoe\nu1,\"Ana\nu2,\"Bob\"\nu3,Carl\n",
            &["u0"],
            &["3: the quote that opens on line 3 is closed before the end of its cell"],
        );
        // In the middle of a cell it is an ordinary character.
        check(
            Format::Csv,
            "id,screen\nu1,5\" wide\nu2, \"a \"\"b\"\", c\" \r\nu3,\"\"\n",
            &["u1", "u2", "u3"],
            &[],
        );
    }

    #[test]
    fn a_list_without_a_heading_loses_nobody() {
        check(Format::Csv, "u1\nu2\nu3\n", &["u1", "u2", "u3"], &[]);
        check(Format::Csv, "\u{feff}u1\r\n\r\nu2", &["u1", "u2"], &[]);
        check(Format::Csv, "u1\ru2\r", &["u1", "u2"], &[]);
        check(
            Format::Csv,
            "100001,Ana\n100002,Bob\n",
            &[],
            &["1: no column is called recipient"],
        );
        let found = all(Format::Csv, Some("1"), b"100001,Ana\n100002,Bob\n");
        assert_eq!(found.0, ["100001", "100002"]);
        let found = all(Format::Csv, Some("3"), b"a,b\n1,2\n");
        assert!(found.1[0].contains("there is no column \"3\""), "{found:?}");
    }

    #[test]
    fn cells_are_separated_by_what_the_first_line_says() {
        for (text, good) in [
            ("id;name\r\nu1;Ana\r\nu2;Bob\r\n", ["u1", "u2"]),
            ("name;id\r\n\"Ana, Dr.\";u1\r\nBob;u2\r\n", ["u1", "u2"]),
            ("name\tuser\nAna, Dr.\tu1\nBob\tu2\n", ["u1", "u2"]),
            ("name|uid\nAna|u1\nBob|u2\n", ["u1", "u2"]),
            ("id,\"last; first\"\nu1,\"A; B\"\nu2,x\n", ["u1", "u2"]),
        ] {
            check(Format::Csv, text, &good, &[]);
        }
    }

    #[test]
    fn the_systems_own_names_are_known_and_names_are_never_ids() {
        for heading in [
            "user_id",
            "userID",
            "accid",
            "recvID",
            "User Id",
            "account_id",
            "toAccid",
        ] {
            check(
                Format::Csv,
                &format!("name,{heading}\nAna,u1\n"),
                &["u1"],
                &[],
            );
            let json = format!("{{\"name\":\"Ana\",\"{heading}\":\"u1\"}}\n");
            check(Format::Ndjson, &json, &["u1"], &[]);
        }
        check(
            Format::Csv,
            "name,UserName\nAna,u1\n",
            &[],
            &["1: no column is called"],
        );
        check(
            Format::Csv,
            "id,userID\n1,u1\n",
            &[],
            &["1: the recipients may be column 1 \"id\" or 2 \"userID\""],
        );
        check(
            Format::Csv,
            "uid,x,uid\n1,2,u1\n",
            &[],
            &["1: the recipients may be column 1"],
        );
        check(
            Format::Csv,
            "name,id\nAna, Dr.,u1\nBo,u2,,\n",
            &["u2"],
            &["2: 3 cells, and the first line has 2"],
        );
    }

    #[test]
    fn numbers_that_a_spreadsheet_has_rounded_are_refused() {
        check(
            Format::Csv,
            "id\r\n1.23457E+17\r\n=\"000123\"\r\n9007199254740993\r\n",
            &["000123", "9007199254740993"],
            &["2: \"1.23457E+17\" looks like a long number that a spreadsheet has rounded"],
        );
        check(Format::Lines, "1E+15\n", &[], &["1: \"1E+15\" looks like"]);
    }

    #[test]
    fn what_cannot_be_seen_is_cut_off_or_refused() {
        check(
            Format::Csv,
            "id\nu2\u{a0}\n\u{3000}u3\n",
            &["u2", "u3"],
            &[],
        );
        for id in [
            "\u{200b}u2",
            "u1\u{2028}u2",
            "\u{202e}u2",
            "u2\u{feff}",
            "u\u{ad}2",
        ] {
            check(Format::Csv, &format!("id\n{id}\n"), &[], &["2: contains"]);
            check(
                Format::Ndjson,
                &format!("\"{id}\"\n"),
                &[],
                &["1: contains"],
            );
        }
    }

    #[test]
    fn a_file_of_another_encoding_is_named() {
        for text in ["id,name\r\nu1,Ana\r\n", "\u{feff}u1\n"] {
            for to_bytes in [u16::to_le_bytes, u16::to_be_bytes] {
                let bytes: Vec<u8> = text.encode_utf16().flat_map(to_bytes).collect();
                for format in [Format::Lines, Format::Csv, Format::Ndjson] {
                    let (good, bad) = all(format, None, &bytes);
                    assert!(good.is_empty() && bad[0].contains("UTF-16"), "{bad:?}");
                }
            }
        }
    }

    #[test]
    fn a_key_that_stands_twice_is_refused() {
        check(
            Format::Ndjson,
            "{\"id\":\"u6\",\"id\":\"u7\"}\n",
            &[],
            &["1: `id` appears twice"],
        );
        check(
            Format::Ndjson,
            "{\"id\":\"a\",\"vars\":{\"n\":1,\"n\":2}}\n",
            &[],
            &["vars: \"n\" appears twice"],
        );
        check(
            Format::Ndjson,
            "{\"id\":\"a\",\"vars\":{},\"vars\":{}}\n",
            &[],
            &["1: `vars` appears twice"],
        );
        check(
            Format::Ndjson,
            "{\"id\":\"a\",\"x\":1,\"x\":2}\n",
            &["a"],
            &[],
        );
        let how = Reading {
            format: Format::Csv,
            column: None,
            vars: true,
        };
        let (good, bad) = all_as(how, b"uid,n,n\nu1,1,2\n");
        assert!(
            good.is_empty() && bad[0].contains("more than one column is called \"n\""),
            "{bad:?}"
        );
    }

    proptest! {
        /// For any list, every line is a recipient, a problem or skipped.
        #[test]
        fn reading_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            for format in [Format::Lines, Format::Csv, Format::Ndjson] {
                let lines = bytes.iter().filter(|byte| **byte == b'\n').count() + 1;
                let (good, bad) = all(format, None, &bytes);
                prop_assert!(format == Format::Csv || good.len() + bad.len() <= lines);
            }
        }

        /// For any quoting and separator, all recipients of a table are read.
        #[test]
        fn csv_comes_back(
            rows in prop::collection::vec(("[a-z0-9@._-]{1,12}", "[a-z \"',;|\t\né]{0,12}"), 1..30),
            separator in prop::sample::select(vec![',', ';', '\t', '|']), end in prop::sample::select(vec!["\n", "\r\n"]),
        ) {
            let mut text = format!("name{separator}uid{end}");
            for (id, name) in &rows {
                text.push_str(&format!("\"{}\"{separator}{id}{end}", name.replace('"', "\"\"")));
            }
            let ids: Vec<_> = rows.into_iter().map(|(id, _)| id).collect();
            prop_assert_eq!(all(Format::Csv, None, text.as_bytes()), (ids, Vec::new()));
        }

        #[test]
        fn ndjson_comes_back(ids in prop::collection::vec("[^\\p{Cc}\\p{Cf}\\p{Zl}\\p{Zp}\u{fffd}]{1,40}", 1..50)) {
            let text: String = ids.iter().map(|id| serde_json::to_string(id).unwrap() + "\n").collect();
            prop_assert_eq!(all(Format::Ndjson, None, text.as_bytes()), (ids, Vec::new()));
        }
    }
}
