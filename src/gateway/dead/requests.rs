//! Parses the bodies of requests to redrive or to purge, with all their problems.

use crate::clock::now_ms;
use crate::domain::fields::{Fields, Problem};
use crate::domain::letters::{DeadFilter, FILTER_FIELDS, LetterFilter};
use crate::gateway::problem::Refusal;
use crate::service::api::{PurgeRequest, RedriveRequest};

pub(super) fn parse_redrive(body: &[u8]) -> Result<(RedriveRequest, LetterFilter), Refusal> {
    parse_filter(body, |fields, filter, problems| {
        let yes_no = "true or false";
        let flag = |fields: &mut Fields<'_>, name, problems: &mut Vec<Problem>| {
            fields.get(name, yes_no, problems).unwrap_or(false)
        };
        let priorities = "one of \"high\", \"normal\", \"bulk\"";
        let all = filter.is_empty();
        let request = RedriveRequest {
            filter,
            confirm: flag(fields, "confirm", problems),
            uncertain: flag(fields, "uncertain", problems),
            dry_run: flag(fields, "dry_run", problems),
            purge: flag(fields, "purge", problems),
            priority: fields
                .get("priority", priorities, problems)
                .unwrap_or_default(),
        };
        if all && !request.confirm && !request.dry_run && problems.is_empty() {
            let what = "must be true: there is no filter, so this sends again to the recipients of all \
                        dead letters; \"dry_run\": true only counts";
            fields.problem("confirm", what, problems);
        }
        request
    })
}

pub(super) fn parse_purge(body: &[u8]) -> Result<(PurgeRequest, LetterFilter), Refusal> {
    parse_filter(body, |fields, filter, problems| {
        let mut flag = |name| {
            let given = fields.get(name, "true or false", problems);
            given.unwrap_or(false)
        };
        let request = PurgeRequest {
            filter,
            confirm: flag("confirm"),
            dry_run: flag("dry_run"),
        };
        if !request.confirm && !request.dry_run {
            let what =
                "must be true: purged letters cannot be restored; \"dry_run\": true only counts";
            fields.problem("confirm", what, problems);
        }
        request
    })
}

/// Reads a filter, and with `rest` the other fields of the body.
fn parse_filter<R>(
    body: &[u8],
    rest: impl FnOnce(&mut Fields<'_>, DeadFilter, &mut Vec<Problem>) -> R,
) -> Result<(R, LetterFilter), Refusal> {
    let mut problems = Vec::new();
    let text = String::from_utf8_lossy(body);
    let Some(mut fields) = Fields::open("", &text, &mut problems) else {
        return Err(Refusal::BadRequest(problems));
    };
    let mut filter = DeadFilter::default();
    for name in FILTER_FIELDS {
        let value = fields.get(name, "a text", &mut problems);
        if let Some(field) = filter.field(name) {
            *field = value;
        }
    }
    let checked = filter.check(now_ms());
    let request = rest(&mut fields, filter, &mut problems);
    fields.finish(&mut problems);
    match checked {
        Ok(wanted) if problems.is_empty() => Ok((request, wanted)),
        Ok(_) => Err(Refusal::BadRequest(problems)),
        Err(more) => Err(Refusal::BadRequest([problems, more].concat())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems<R>(read: Result<R, Refusal>) -> Vec<String> {
        match read {
            Err(Refusal::BadRequest(problems)) => problems.into_iter().map(|it| it.field).collect(),
            Err(other) => panic!("{other:?}"),
            Ok(_) => Vec::new(),
        }
    }

    #[test]
    fn requests_are_read_with_all_their_problems() {
        let (request, _) = parse_redrive(br#"{"job": "a", "dry_run": true}"#).unwrap();
        assert_eq!(request.filter.job.as_deref(), Some("a"));
        assert!(request.dry_run && !request.uncertain && !request.purge);
        let wrong = br#"{"jop": "a", "purge": 1, "class": "x", "priority": "low"}"#;
        assert_eq!(
            problems(parse_redrive(wrong)),
            ["purge", "priority", "jop", "class"]
        );
        assert_eq!(problems(parse_redrive(b"")), [""]);
        // Sending to all recipients again needs a confirmation.
        assert_eq!(problems(parse_redrive(b"{}")), ["confirm"]);
        assert_eq!(
            problems(parse_redrive(br#"{"uncertain": true}"#)),
            ["confirm"]
        );
        for all in [
            r#"{"confirm": true}"#,
            r#"{"dry_run": true}"#,
            r#"{"app": "shop"}"#,
        ] {
            assert!(problems(parse_redrive(all.as_bytes())).is_empty(), "{all}");
        }
    }

    #[test]
    fn a_purge_must_be_confirmed() {
        assert_eq!(problems(parse_purge(b"{}")), ["confirm"]);
        assert_eq!(problems(parse_purge(br#"{"confirm": false}"#)), ["confirm"]);
        assert!(problems(parse_purge(br#"{"confirm": true}"#)).is_empty());
        assert!(problems(parse_purge(br#"{"dry_run": true}"#)).is_empty());
    }
}
