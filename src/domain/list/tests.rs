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
