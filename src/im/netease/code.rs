//! Maps codes to classes. We derive the class from the meaning of each code: the vendor does not
//! say which errors are worth a retry.

use std::time::Duration;

use super::refusal::blames_signature;
use crate::domain::outcome::Class::{Config, Done, Permanent, Throttled, Transient, Uncertain};
use crate::domain::outcome::{Class, RefusalKind, TargetAnswer};
use crate::im::code::{CodeForms, is_status};

/// The documented codes, with their meaning for the recipients of the call.
const CODES: [(i64, Class, &str); 24] = [
    (200, Done, "done"),
    (301, Permanent, "the account is banned"),
    (302, Config, "wrong app key or secret"),
    (315, Config, "this address is not allowed"),
    (
        403,
        Config,
        "forbidden: not enabled for the application, or the sender may not",
    ),
    (404, Permanent, "no such sender"),
    (405, Permanent, "a parameter is too long"),
    (408, Uncertain, "timed out on the server"),
    (413, Config, "verification failed"),
    (414, Permanent, "a parameter is wrong"),
    (416, Throttled, "too many calls"),
    (417, Done, "repeated operation"),
    (419, Permanent, "too many recipients in one call"),
    (422, Permanent, "the sender is disabled"),
    (423, Permanent, "the sender is muted"),
    (431, Done, "repeated request"),
    (500, Transient, "server error"),
    (503, Transient, "server busy"),
    (508, Config, "this protocol is no longer served"),
    (509, Permanent, "invalid"),
    (514, Transient, "service unavailable"),
    (997, Permanent, "protocol error"),
    (998, Permanent, "packet error"),
    (999, Permanent, "packet error"),
];

/// Refusals of a whole call that a single recipient, or too many of them, can cause. All other
/// lengths of a job are checked when it is accepted, so `405` can only be about an accid.
const SPLIT: [i64; 3] = [405, 414, 419];

/// The answer for a code. `block` is how long an application that exceeded its rate is blocked.
pub(super) fn answer(code: i64, said: Option<String>, block: Duration) -> TargetAnswer {
    let row = CODES.iter().find(|(known, ..)| *known == code);
    let (class, meaning) = match row {
        Some((_, class, meaning)) => (*class, *meaning),
        None => (by_range(code), "a code that is not documented"),
    };
    let text = said.filter(|said| !said.is_empty());
    let class = match (code, text.as_deref()) {
        (414, Some(text)) if blames_signature(text) => Config,
        _ => class,
    };
    if class == Done {
        if code != 200 {
            // The request id is derived from this job and these recipients, so the earlier request
            // was for the same messages.
            tracing::warn!(
                code,
                "NetEase knows this request, which is taken for accepted"
            );
        }
        return TargetAnswer::done();
    }
    let code_text = code.to_string();
    let answer = match text {
        Some(text) => TargetAnswer::new(class, code_text, text),
        None => TargetAnswer::new(class, code_text, meaning),
    };
    match class {
        Throttled => answer.retry_after(Some(block)),
        Permanent if SPLIT.contains(&code) => answer.split(),
        _ => answer,
    }
}

fn by_range(code: i64) -> Class {
    match code {
        300..=499 => Permanent,
        500..=599 => Transient,
        _ => Uncertain,
    }
}

/// The code for what the application is not enabled for, and for what its sender may not do. Only
/// other senders tell which of them it is.
pub(super) const FORBIDDEN: &str = "403";

/// How the codes are written.
pub(in crate::im) const FORMS: CodeForms = CodeForms {
    prefixes: &[""],
    words: &["unregister", "antispam"],
    successes: &["200", "417", "431"],
};

/// What a refusal with this code is about. Numbers are about the call; 404 is about its sender.
pub(in crate::im) fn refusal_kind(code: &str) -> RefusalKind {
    match code {
        "unregister" => RefusalKind::UnknownRecipient,
        _ if is_status(code) => RefusalKind::Call,
        _ => RefusalKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(code: i64) -> Class {
        answer(code, None, Duration::ZERO).class
    }

    #[test]
    fn a_sender_that_is_not_there_is_no_unknown_recipient() {
        assert_eq!(refusal_kind("404"), RefusalKind::Call);
        assert_eq!(refusal_kind("unregister"), RefusalKind::UnknownRecipient);
    }

    #[test]
    fn every_code_has_its_class() {
        for (expected, codes) in [
            (Done, &[200, 417, 431][..]),
            (Config, &[302, 315, 403, 413, 508]),
            (
                Permanent,
                &[301, 404, 405, 414, 419, 422, 423, 509, 997, 998, 999],
            ),
            (Throttled, &[416]),
            (Transient, &[500, 503, 514]),
            (Uncertain, &[408]),
        ] {
            for code in codes {
                assert_eq!(class(*code), expected, "{code}");
            }
        }
    }

    #[test]
    fn unknown_codes_go_by_their_range() {
        for code in [300, 398, 420, 499] {
            assert_eq!(class(code), Permanent, "{code}");
        }
        for code in [501, 511, 599] {
            assert_eq!(class(code), Transient, "{code}");
        }
        for code in [-1, 0, 100, 201, 600, 1000, i64::MAX] {
            assert_eq!(class(code), Uncertain, "{code}");
        }
    }

    #[test]
    fn a_parameter_error_is_read_by_its_words() {
        let of = |said: &str| answer(414, Some(said.into()), Duration::ZERO);
        assert_eq!(of("checksum").class, Config);
        assert!(!of("checksum").split);
        assert_eq!(of("CurTime is expired").class, Config);
        assert_eq!(of("too many members.").class, Permanent);
        assert!(of("too many members.").split && of("").split);
        assert_eq!(of("toAccids").text, "toAccids");
        assert_eq!(of("").text, "a parameter is wrong");
    }

    #[test]
    fn only_what_a_recipient_can_cause_is_split() {
        let split: Vec<_> = (300..1000)
            .filter(|code| answer(*code, None, Duration::ZERO).split)
            .collect();
        assert_eq!(split, [405, 414, 419]);
    }

    #[test]
    fn a_block_is_waited_out() {
        let block = Duration::from_secs(60);
        assert_eq!(answer(416, None, block).retry_after, Some(block));
        assert_eq!(answer(500, None, block).retry_after, None);
    }
}
