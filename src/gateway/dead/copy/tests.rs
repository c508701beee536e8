//! Pages of a copy are compared with those of a plain list of all letters.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::domain::ids::JobId;
use crate::domain::letters::{DeadFilter, FILTER_FIELDS};

/// A letter as the tests choose it.
#[derive(Clone, Debug)]
struct Chosen {
    job: u8,
    app: &'static str,
    target: &'static str,
    outcome: &'static str,
    code: &'static str,
    second: u32,
    recipients: Vec<u16>,
}

const USUAL: Chosen = Chosen {
    job: 0,
    app: "shop",
    target: "im",
    outcome: "failed",
    code: "410",
    second: 0,
    recipients: Vec::new(),
};

fn name(recipient: u16) -> String {
    format!("user-{recipient:05}")
}

impl Chosen {
    fn job(&self) -> String {
        JobId::of("shop", &self.job.to_string()).to_string()
    }

    fn body(&self) -> Vec<u8> {
        let class = match self.outcome {
            "failed" => "permanent",
            _ => "uncertain",
        };
        let row = |recipient: &u16| {
            json!({"recipient": name(*recipient), "outcome": self.outcome, "class": class,
                "code": self.code, "text": "", "attempts": 1})
        };
        let at = format!("2026-11-29T10:00:{:02}Z", self.second);
        let letter = json!({
            "v": 1, "job": self.job(), "app": self.app, "client_msg_no": "m", "target": self.target,
            "slice": "s", "message": {"type": "text", "text": "hello"}, "options": {},
            "first_attempt_at": at, "last_attempt_at": at,
            "recipients": self.recipients.iter().map(row).collect::<Vec<Value>>(),
        });
        serde_json::to_vec(&letter).unwrap()
    }
}

/// A copy whose runs have about so many bytes of keys.
fn copy(letters: &[Chosen], run_bytes: usize) -> Copy {
    let mut copy = Copy::create(&std::env::temp_dir()).unwrap();
    for letter in letters {
        add(&mut copy, letter, run_bytes);
    }
    copy.flush().unwrap();
    copy
}

fn add(copy: &mut Copy, letter: &Chosen, run_bytes: usize) {
    copy.add(&letter.body()).unwrap();
    if copy.latest_bytes >= run_bytes {
        copy.write_run().unwrap();
    }
}

/// A row: its key, and the code of its letter.
type Shown = (Key, String);

/// All rows, page by page, and the number of pages.
fn all(copy: &Copy, filter: &DeadFilter, most: usize) -> (Vec<Shown>, usize) {
    let wanted = filter.check(0).unwrap();
    let (mut rows, mut from) = (Vec::new(), None);
    for pages in 1.. {
        let window = copy.page(&wanted, from, most, false).unwrap();
        let (page, next) = window.finish();
        rows.extend(page.map(|(key, row)| (key, row.code.into_owned())));
        from = next;
        if from.is_none() {
            return (rows, pages);
        }
    }
    unreachable!()
}

/// What all pages are to show: of each recipient the latest letter that the filter takes as a
/// letter, if the filter takes the recipient too.
fn expected(letters: &[Chosen], filter: &DeadFilter) -> Vec<Shown> {
    let wanted = filter.check(0).unwrap();
    let bodies = letters.iter().map(Chosen::body);
    let mut letters: Vec<_> = bodies.map(|body| read_letter(&body).unwrap()).collect();
    letters.sort_by_key(crate::domain::letters::last_attempt_ms);
    let mut rows = BTreeMap::new();
    for letter in letters.iter().filter(|it| wanted.takes_letter(it)) {
        for dead in &letter.recipients {
            let key = (letter.job.clone(), dead.recipient.clone());
            match wanted.takes_recipient(dead) {
                true => rows.insert(key, dead.code.to_string()),
                false => rows.remove(&key),
            };
        }
    }
    rows.into_iter().collect()
}

fn filter(fields: &[(&str, &str)]) -> DeadFilter {
    let mut filter = DeadFilter::default();
    for (name, value) in fields {
        *filter.field(name).unwrap() = Some((*value).to_owned());
    }
    filter
}

fn letters() -> impl Strategy<Value = Vec<Chosen>> {
    let letter = (
        0..4_u8,
        prop::sample::select(vec!["shop", "bank"]),
        prop::sample::select(vec!["im", "wk"]),
        prop::sample::select(vec!["failed", "uncertain"]),
        prop::sample::select(vec!["410", "403", "timeout"]),
        0..5_u32,
        prop::collection::vec(0..30_u16, 0..4),
    );
    let letter = letter.prop_map(
        |(job, app, target, outcome, code, second, recipients)| Chosen {
            job,
            app,
            target,
            outcome,
            code,
            second,
            recipients,
        },
    );
    prop::collection::vec(letter, 0..40)
}

fn filters() -> impl Strategy<Value = DeadFilter> {
    let of = |values: &[&str]| {
        let values: Vec<_> = values.iter().map(|it| (*it).to_owned()).collect();
        prop::option::weighted(0.2, prop::sample::select(values))
    };
    let job = JobId::of("shop", "1").to_string();
    (
        of(&[&job, "2", "none"]),
        of(&["shop", "bank", "none"]),
        of(&["im", "wk", "none"]),
        of(&["user-00007", "user-00011", "none"]),
        of(&["failed", "uncertain"]),
        of(&["permanent", "uncertain", "transient"]),
        of(&["410", "403", "timeout", "none"]),
        of(&["2026-11-29T10:00:02Z", "2026-11-29T10:00:09Z"]),
        of(&["2026-11-29T10:00:03Z", "2026-11-29T10:00:00Z"]),
    )
        .prop_map(|values| {
            let (job, app, target, recipient, outcome, class, code, since, until) = values;
            DeadFilter {
                job,
                app,
                target,
                recipient,
                outcome,
                class,
                code,
                since,
                until,
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    /// Whatever the filter, the sizes of runs and pages, and what was taken out since.
    #[test]
    fn pages_of_a_copy_are_those_of_all_letters(
        letters in letters(),
        gone in prop::collection::btree_set(0..40_usize, 0..30),
        filter in filters(),
        run_bytes in prop::sample::select(vec![1, 1_000, usize::MAX]),
        most in prop::sample::select(vec![1, 7, 1000]),
    ) {
        let mut copy = copy(&letters, run_bytes);
        prop_assert_eq!(all(&copy, &filter, most).0, expected(&letters, &filter));
        let gone: BTreeSet<Vec<u8>> =
            gone.iter().filter_map(|it| letters.get(*it)).map(Chosen::body).collect();
        for body in &gone {
            copy.remove(body).unwrap();
        }
        let left: Vec<_> = letters.iter().filter(|it| !gone.contains(&it.body())).cloned().collect();
        prop_assert_eq!(all(&copy, &filter, most).0, expected(&left, &filter));
        // What was taken out may come again.
        for letter in &letters {
            add(&mut copy, letter, run_bytes);
        }
        copy.flush().unwrap();
        prop_assert_eq!(all(&copy, &filter, most).0, expected(&letters, &filter));
    }
}

/// Blocks on both sides of their size, and rows of one key on both sides of a block's end.
#[test]
fn blocks_end_anywhere() {
    for count in [255, 256, 257] {
        let mut letters: Vec<_> = (0..count)
            .map(|it| Chosen {
                recipients: vec![it],
                ..USUAL
            })
            .collect();
        // Four more letters about the recipient at the end of the first block.
        letters.extend((1..5).map(|second| Chosen {
            recipients: vec![254],
            code: "403",
            second,
            ..USUAL
        }));
        let copy = copy(&letters, 1_000_000);
        let mut copy = Copy {
            looked_at_max: 2,
            ..copy
        };
        copy.write_run().unwrap();
        copy.flush().unwrap();
        let any = DeadFilter::default();
        assert_eq!(
            all(&copy, &any, 1000).0,
            expected(&letters, &any),
            "{count}"
        );
        for letter in &letters[usize::from(count)..] {
            copy.remove(&letter.body()).unwrap();
        }
        letters.truncate(count.into());
        assert_eq!(
            all(&copy, &any, 1000).0,
            expected(&letters, &any),
            "{count}"
        );
    }
}

/// One page finds what few letters match, and that none does, without a look at the others.
#[test]
fn a_page_finds_a_needle() {
    let mut letters: Vec<_> = (0..8)
        .map(|it| Chosen {
            job: it as u8 % 3,
            recipients: (it * 500..(it + 1) * 500).collect(),
            ..USUAL
        })
        .collect();
    letters.push(Chosen {
        app: "bank",
        target: "wk",
        outcome: "uncertain",
        code: "403",
        second: 30,
        recipients: vec![30_000],
        ..USUAL
    });
    // A page may look at 825 of the 1,370 rows of each run.
    let copy = Copy {
        looked_at_max: 3300,
        ..copy(&letters, 200_000)
    };
    assert!((2..=3).contains(&copy.runs.len()), "{}", copy.runs.len());
    let needle = name(30_000);
    let needles = [
        ("app", "bank"),
        ("target", "wk"),
        ("recipient", &needle),
        ("outcome", "uncertain"),
        ("class", "uncertain"),
        ("code", "403"),
        ("since", "2026-11-29T10:00:20Z"),
    ];
    for needle in needles {
        let (rows, pages) = all(&copy, &filter(&[needle]), 100);
        assert_eq!((rows.len(), pages), (1, 1), "{needle:?}");
    }
    let none = FILTER_FIELDS.iter().filter_map(|field| {
        let value = match *field {
            "outcome" => return None,
            "class" => "transient",
            "since" => "2026-11-30T00:00:00Z",
            "until" => "2026-11-29T00:00:00Z",
            _ => "none",
        };
        Some((*field, value))
    });
    for none in none {
        assert_eq!(
            all(&copy, &filter(&[none]), 100),
            (Vec::new(), 1),
            "{none:?}"
        );
    }
}

/// Where every block may have a row for the filter, a page ends early, and the next one goes on.
#[test]
fn a_page_looks_at_a_bounded_number_of_rows() {
    let letters: Vec<_> = (0..3000)
        .map(|it| match it % 2 {
            0 => Chosen {
                recipients: vec![it],
                ..USUAL
            },
            _ => Chosen {
                recipients: vec![it],
                target: "wk",
                code: "403",
                ..USUAL
            },
        })
        .collect();
    let mut copy = Copy {
        looked_at_max: 1200,
        ..copy(&letters, usize::MAX)
    };
    copy.write_run().unwrap();
    copy.flush().unwrap();
    let none = filter(&[("target", "im"), ("code", "403")]);
    // 600 for the run, and 600 for what is in memory.
    assert_eq!(all(&copy, &none, 100), (Vec::new(), 5));
    let half = filter(&[("code", "403")]);
    assert_eq!(all(&copy, &half, 1000).0, expected(&letters, &half));
    assert_eq!(all(&self::copy(&[], 0), &none, 10), (Vec::new(), 1));
}

#[test]
fn a_copy_knows_when_most_of_it_is_gone() {
    let letters: Vec<_> = (0..30)
        .map(|it| Chosen {
            second: it,
            recipients: vec![it as u16],
            ..USUAL
        })
        .collect();
    let mut copy = copy(&letters, 1_000);
    copy.remove(b"no letter").unwrap();
    for letter in &letters {
        assert!(!copy.is_mostly_gone());
        copy.remove(&letter.body()).unwrap();
    }
    // Most, and yet few.
    assert!(!copy.is_mostly_gone());
    copy.gone = GONE_MIN + 1;
    assert!(copy.is_mostly_gone());
    assert_eq!(all(&copy, &DeadFilter::default(), 100), (Vec::new(), 1));
}
