//! Maps each status to a class.
//!
//! The defaults answer two questions: may the endpoint have acted, and could a later call or
//! another recipient succeed? If the first is open, the class is `uncertain`, and whether the call
//! is repeated depends on whether the endpoint is idempotent.
//!
//! | status | class | because |
//! |---|---|---|
//! | 2xx | done | |
//! | 3xx | config | redirects are not followed: the URL is not the right one |
//! | 401, 402, 403, 407, 511 | config | the fault is ours, not the recipient's |
//! | 404 | permanent with `{recipient}` in the URL, else config | no such recipient; no such endpoint |
//! | 405, 406, 415, 426, 501, 505 | config | the endpoint refuses such calls for every recipient |
//! | 408 | uncertain | it waited for a request of which it has read an unknown part |
//! | 425, 429 | throttled | |
//! | other 4xx (400, 409, 410, 413, 422…) | permanent | |
//! | 503 | transient | the endpoint says that it does not serve now |
//! | other 5xx (500, 502, 504…) | uncertain | a handler may fail after its effect, a gateway loses answers |

use crate::domain::fields::Problem;
use crate::domain::outcome::{Class, RefusalKind};
use crate::im::code::is_status;

/// The first status of HTTP.
const FIRST: u16 = 100;
const LAST: u16 = 599;

/// A class for every status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statuses(Vec<Class>);

impl Statuses {
    pub(super) fn new(
        changes: &[(String, Class)],
        per_recipient: bool,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let mut classes: Vec<_> = (FIRST..=LAST)
            .map(|status| default(status, per_recipient))
            .collect();
        let mut ranges = Vec::new();
        for (key, class) in changes {
            match range(key) {
                Some((from, to)) => ranges.push((from, to, *class)),
                None => {
                    let what = "a status such as 409, a range such as 500-599 or a hundred such as 5xx \
                                is expected";
                    problems.push(Problem::new(format!("statuses.{key}"), what));
                }
            }
        }
        // The widest first, so that the narrowest is applied last and wins.
        ranges.sort_by_key(|(from, to, _)| std::cmp::Reverse(to - from));
        for (from, to, class) in ranges {
            classes[usize::from(from - FIRST)..=usize::from(to - FIRST)].fill(class);
        }
        Self(classes)
    }

    pub(super) fn class(&self, status: u16) -> Class {
        let index = status.checked_sub(FIRST).map(usize::from);
        let class = index.and_then(|index| self.0.get(index));
        class.copied().unwrap_or(Class::Uncertain)
    }
}

fn default(status: u16, per_recipient: bool) -> Class {
    match status {
        200..=299 => Class::Done,
        300..=399 => Class::Config,
        401..=403 | 405..=407 | 415 | 426 => Class::Config,
        404 if !per_recipient => Class::Config,
        408 => Class::Uncertain,
        425 | 429 => Class::Throttled,
        400..=499 => Class::Permanent,
        501 | 505 | 511 => Class::Config,
        503 => Class::Transient,
        _ => Class::Uncertain,
    }
}

fn range(key: &str) -> Option<(u16, u16)> {
    let number = |text: &str| {
        let digits = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
        let status = text.parse().ok().filter(|_| digits)?;
        (FIRST..=LAST).contains(&status).then_some(status)
    };
    if let Some(hundred) = key.strip_suffix("xx").or_else(|| key.strip_suffix("XX")) {
        let from = number(&format!("{hundred}00"))?;
        return Some((from, from + 99));
    }
    let (from, to) = key.split_once('-').unwrap_or((key, key));
    let (from, to) = (number(from.trim())?, number(to.trim())?);
    (from <= to).then_some((from, to))
}

/// What a refusal with this status is about.
pub(in crate::im) fn refusal_kind(code: &str) -> RefusalKind {
    match code {
        "404" | "410" => RefusalKind::UnknownRecipient,
        _ if is_status(code) => RefusalKind::Call,
        _ => RefusalKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use Class::{Config, Done, Permanent, Throttled, Transient, Uncertain};

    use super::*;

    #[test]
    fn every_status_has_its_class() {
        let mut problems = Vec::new();
        let of = |class, per_recipient| {
            let statuses = Statuses::new(&[], per_recipient, &mut Vec::new());
            (100..600)
                .filter(|status| statuses.class(*status) == class)
                .collect::<Vec<u16>>()
        };
        assert_eq!(of(Done, true), (200..300).collect::<Vec<_>>());
        let ours = [401, 402, 403, 405, 406, 407, 415, 426, 501, 505, 511];
        let redirects = 300..400;
        assert_eq!(
            of(Config, true),
            redirects.clone().chain(ours).collect::<Vec<_>>()
        );
        let mut without = redirects.chain(ours).chain([404]).collect::<Vec<_>>();
        without.sort_unstable();
        assert_eq!(of(Config, false), without);
        assert_eq!(of(Throttled, true), [425, 429]);
        assert_eq!(of(Transient, true), [503]);
        let uncertain = of(Uncertain, true);
        for status in [100, 199, 408, 500, 502, 504, 507, 520, 599] {
            assert!(uncertain.contains(&status), "{status}");
        }
        let permanent = of(Permanent, true);
        for status in [400, 404, 409, 410, 413, 414, 418, 422, 431, 451, 499] {
            assert!(permanent.contains(&status), "{status}");
        }
        let statuses = Statuses::new(&[], true, &mut problems);
        for nonsense in [0, 99, 600, u16::MAX] {
            assert_eq!(statuses.class(nonsense), Uncertain);
        }
        assert!(problems.is_empty());
    }

    #[test]
    fn the_narrowest_change_counts_whatever_the_order() {
        let mut problems = Vec::new();
        let changes = [
            ("409".into(), Done),
            ("500-509".into(), Permanent),
            ("5xx".into(), Transient),
            ("4XX".into(), Throttled),
            ("503".into(), Config),
        ];
        let statuses = Statuses::new(&changes, true, &mut problems);
        let class = |status| statuses.class(status);
        assert_eq!(
            [class(409), class(400), class(499)],
            [Done, Throttled, Throttled]
        );
        assert_eq!(
            [class(500), class(503), class(510)],
            [Permanent, Config, Transient]
        );
        assert_eq!(class(200), Done);
        assert!(problems.is_empty());
    }

    #[test]
    fn a_key_that_is_no_status_is_a_problem() {
        for key in [
            "", "x", "20", "2000", "6xx", "0xx", "599-500", "400-", "+40", "099", "4xxx",
        ] {
            let mut problems = Vec::new();
            Statuses::new(&[(key.into(), Done)], true, &mut problems);
            assert_eq!(problems.len(), 1, "{key}");
            assert_eq!(problems[0].field, format!("statuses.{key}"));
        }
    }
}
