use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const NOW: u64 = 1_800_000_000_000;

fn letter(recipients: &Value) -> Vec<u8> {
    let letter = json!({
        "v": 1, "job": JobId::of("shop", "promo"), "app": "shop", "client_msg_no": "promo",
        "target": "im", "slice": "s.0.0", "message": {"text": "hello"}, "options": {"unread": true},
        "first_attempt_at": "2027-01-01T10:00:00Z", "last_attempt_at": "2027-01-01T10:00:05Z",
        "added_later": [1, 2], "recipients": recipients,
    });
    letter.to_string().into_bytes()
}

fn dead(recipient: &str, outcome: &str, code: &str) -> Value {
    let class = if outcome == "failed" {
        "permanent"
    } else {
        "uncertain"
    };
    json!({
        "recipient": recipient, "outcome": outcome, "class": class, "code": code, "text": "no",
        "attempts": 2, "also_later": null,
    })
}

fn filter(fields: &[(&str, &str)]) -> DeadFilter {
    let mut filter = DeadFilter::default();
    for (name, value) in fields {
        *filter.field(name).unwrap() = Some((*value).to_owned());
    }
    filter
}

/// The matching recipients, of two.
fn check(fields: &[(&str, &str)], expected: &[&str]) {
    let body = letter(&json!([
        dead("ann", "failed", "410"),
        dead("bob", "uncertain", "timeout"),
    ]));
    let letter = read_letter(&body).unwrap();
    let wanted = filter(fields).check(NOW).unwrap();
    let taken: Vec<_> = letter
        .recipients
        .iter()
        .filter(|dead| wanted.takes_letter(&letter) && wanted.takes_recipient(dead))
        .map(|dead| dead.recipient.as_str())
        .collect();
    assert_eq!(taken, expected, "{fields:?}");
}

#[test]
fn all_that_a_filter_says_must_hold() {
    let id = JobId::of("shop", "promo").to_string();
    check(&[], &["ann", "bob"]);
    check(&[("job", &id)], &["ann", "bob"]);
    check(&[("job", "promo"), ("app", "shop")], &["ann", "bob"]);
    check(&[("job", "promo")], &[]);
    check(&[("target", "im"), ("outcome", "failed")], &["ann"]);
    check(&[("target", "other")], &[]);
    check(&[("class", "uncertain")], &["bob"]);
    check(&[("code", "410"), ("recipient", "bob")], &[]);
    check(&[("since", "2027-01-01T10:00:05Z")], &["ann", "bob"]);
    check(&[("until", "2027-01-01T10:00:05Z")], &[]);
    check(&[("since", "1h"), ("until", "0s")], &[]);
}

#[test]
fn every_problem_of_a_filter_is_told() {
    let wrong = filter(&[
        ("since", "yesterday"),
        ("outcome", "faild"),
        ("class", "cow"),
    ]);
    let problems = wrong.check(NOW).unwrap_err();
    let fields: Vec<_> = problems.iter().map(|it| it.field.as_str()).collect();
    assert_eq!(fields, ["since", "outcome", "class"]);
    assert!(problems[1].what.contains("did you mean `failed`"));
}

#[test]
fn the_names_of_the_fields_are_those_of_the_document() {
    let all: Vec<_> = FILTER_FIELDS.iter().map(|name| (*name, "x")).collect();
    let document = serde_json::to_value(filter(&all)).unwrap();
    let names: BTreeSet<_> = document.as_object().unwrap().keys().cloned().collect();
    assert_eq!(
        names,
        FILTER_FIELDS.iter().map(|it| (*it).to_owned()).collect()
    );
}

#[test]
fn a_letter_loses_who_goes_and_nothing_else() {
    let three = json!([
        dead("ann", "failed", "410"),
        dead("bob", "uncertain", "timeout"),
        dead("cat", "failed", "410"),
    ]);
    let body = letter(&three);
    let read = read_letter(&body).unwrap();
    assert_eq!(without(&body, &read, |_| false), Left::All);
    assert_eq!(without(&body, &read, |_| true), Left::Nothing);
    let Left::Some(left) = without(&body, &read, |dead| dead.recipient == "bob") else {
        panic!("somebody is left");
    };
    let left: Value = serde_json::from_slice(&left).unwrap();
    let mut expected: Value = serde_json::from_slice(&body).unwrap();
    expected["recipients"] = json!([three[0], three[2]]);
    assert_eq!(left, expected);
}

#[test]
fn letters_of_another_version_are_left_alone() {
    let mut body: Value = serde_json::from_slice(&letter(&json!([]))).unwrap();
    assert!(read_letter(body.to_string().as_bytes()).is_some());
    body["v"] = json!(2);
    assert!(read_letter(body.to_string().as_bytes()).is_none());
}

fn key(number: u8) -> Key {
    ("job".to_owned(), format!("{number:03}"))
}

proptest! {
    /// Page after page shows every key once, in order, with its latest entry, for any order and any
    /// repeats.
    #[test]
    fn pages_show_everybody_once(
        entries in prop::collection::vec((any::<u8>(), 0u64..5), 0..300), most in 1usize..40,
    ) {
        let mut expected: BTreeMap<Key, u64> = BTreeMap::new();
        for (number, at) in &entries {
            let latest = expected.entry(key(*number)).or_default();
            *latest = (*latest).max(*at);
        }
        let (mut shown, mut from) = (Vec::new(), None);
        loop {
            let mut window = Window::new(from, most);
            for (number, at) in &entries {
                window.put(key(*number), *at, *at);
            }
            let (page, next) = window.finish();
            let before = shown.len();
            shown.extend(page);
            prop_assert!(shown.len() - before <= most);
            let Some(next) = next else { break };
            from = Some(next);
        }
        prop_assert_eq!(shown, expected.into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn a_window_may_end_early() {
    let mut window = Window::new(None, 10);
    for number in 1..6 {
        window.put(key(number), 0, ());
    }
    window.end_at(key(3));
    window.end_at(key(4));
    window.put(key(4), 0, ());
    let (page, next) = window.finish();
    let keys: Vec<_> = page.map(|(key, ())| key).collect();
    assert_eq!((keys, next), (vec![key(1), key(2)], Some(key(3))));
}

#[test]
fn what_came_later_overrules() {
    let mut window = Window::new(None, 1);
    window.put(key(1), 10, "failed");
    window.put(key(2), 10, "failed");
    window.overrule(&key(1), 9);
    window.overrule(&key(1), 10);
    window.put(key(3), 10, "failed");
    let (page, next) = window.finish();
    assert_eq!(page.count(), 0);
    assert_eq!(next, Some(key(2)));
}

/// A reader of rows, such as our own command line, gets the values of a personal job back.
#[test]
fn a_row_with_values_can_be_read() {
    let mut ann = dead("ann", "failed", "410");
    ann["vars"] = json!({"name": "Ann", "big": 12345678901234567890_u64, "deep": [{"x": null}]});
    let body = letter(&json!([ann, dead("bob", "failed", "410")]));
    let letter = read_letter(&body).unwrap();
    for recipient in &letter.recipients {
        let row = DeadRow::new(&letter, recipient, true);
        let json = serde_json::to_string(&row).unwrap();
        let back: DeadRow = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::to_string(&back).unwrap(), json);
        let vars = |vars: &Option<Box<RawValue>>| vars.as_ref().map(|it| it.get().to_owned());
        assert_eq!(vars(&back.vars), vars(&recipient.vars));
    }
}
