//! Maps codes to classes. We derive the class from the meaning of each code. The codes are those of
//! the vendor's client SDK; we assume that the server uses the same numbers.

use std::time::Duration;

use crate::domain::outcome::Class::{Config, Done, Permanent, Throttled, Transient, Uncertain};
use crate::domain::outcome::{Class, RefusalKind, TargetAnswer};
use crate::im::code::{CodeForms, is_status};
use crate::im::netease::refusal::blames_signature;

/// The documented codes, with their meaning.
const CODES: [(i64, Class, &str); 36] = [
    (200, Done, "done"),
    (398, Transient, "server error"),
    (399, Transient, "server error"),
    (403, Config, "forbidden"),
    (404, Permanent, "not found"),
    (408, Uncertain, "timed out on the server"),
    (414, Permanent, "a parameter is wrong"),
    (416, Throttled, "too many calls"),
    (417, Permanent, "refused by the application's callback"),
    (449, Transient, "to be tried again"),
    (463, Permanent, "refused by the application's callback"),
    (500, Transient, "server error"),
    (503, Transient, "server busy"),
    (511, Transient, "server error"),
    (514, Transient, "service unavailable"),
    (997, Permanent, "protocol error"),
    (998, Permanent, "packet error"),
    (999, Permanent, "packet error"),
    (101_301, Config, "the application is not allowed to"),
    (101_302, Config, "wrong credentials"),
    (101_303, Config, "wrong credentials"),
    (101_304, Config, "wrong credentials"),
    (101_305, Config, "wrong credentials"),
    (102_404, Permanent, "no such account"),
    (102_405, Permanent, "the account is deleted"),
    (102_421, Permanent, "the account may not chat"),
    (102_422, Permanent, "the account is banned"),
    (102_426, Permanent, "on the recipient's block list"),
    (102_449, Transient, "to be tried again"),
    (104_404, Permanent, "not a friend of the sender"),
    (107_306, Done, "the same message was sent before"),
    (107_316, Permanent, "the message is refused"),
    (107_323, Throttled, "too many messages"),
    (
        107_330,
        Permanent,
        "neither sender nor receiver would sense it",
    ),
    (107_410, Permanent, "messaging is off"),
    (107_451, Permanent, "moderation kept the message back"),
];

/// The answer for the code of a whole call. `block` is how long an application that exceeded its
/// rate waits.
pub(super) fn call(code: i64, said: Option<String>, block: Duration) -> TargetAnswer {
    let answer = answer(code, said);
    match answer.class {
        Throttled => answer.retry_after(Some(block)),
        // The list may be too long, or may contain an invalid account.
        Permanent if code == 414 => answer.split(),
        _ => answer,
    }
}

/// The answer for a code in `failed_list`. It is about one recipient: if others of the call can get
/// the message, neither the configuration nor the application as a whole is at fault.
pub(super) fn recipient(code: i64, said: Option<String>) -> TargetAnswer {
    let mut answer = answer(code, said);
    answer.class = match answer.class {
        Config => Permanent,
        Throttled => Transient,
        class @ (Done | Permanent | Transient | Uncertain) => class,
    };
    answer
}

fn answer(code: i64, said: Option<String>) -> TargetAnswer {
    let row = CODES.iter().find(|(known, ..)| *known == code);
    let (class, meaning) = match row {
        Some((_, class, meaning)) => (*class, *meaning),
        None => (by_range(code), "a code that is not documented"),
    };
    let text = said.filter(|said| !said.is_empty());
    match (class, text) {
        (Done, _) => TargetAnswer::done(),
        (_, Some(text)) if code == 414 && blames_signature(&text) => {
            TargetAnswer::new(Config, code.to_string(), text)
        }
        (_, Some(text)) => TargetAnswer::new(class, code.to_string(), text),
        (_, None) => TargetAnswer::new(class, code.to_string(), meaning),
    }
}

fn by_range(code: i64) -> Class {
    match code {
        300..=499 => Permanent,
        500..=599 => Transient,
        // Codes of six digits are refusals, including 189xxx to 192xxx of the client SDKs.
        100_000..=199_999 => Permanent,
        _ => Uncertain,
    }
}

/// The code for what the application is not enabled for, and for what its sender may not do. Only
/// other senders tell which of them it is.
pub(super) const FORBIDDEN: &str = "403";

/// How the codes are written.
pub(in crate::im) const FORMS: CodeForms = CodeForms {
    prefixes: &[""],
    words: &["failed"],
    successes: &["200", "107306"],
};

/// What a refusal with this code is about.
pub(in crate::im) fn refusal_kind(code: &str) -> RefusalKind {
    match code {
        "102404" | "102405" => RefusalKind::UnknownRecipient,
        // The sender may not chat, or is banned.
        "102421" | "102422" => RefusalKind::Call,
        // The codes of `failed_list` have six digits.
        _ if is_status(code) => RefusalKind::Call,
        _ => RefusalKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: Duration = Duration::from_secs(60);

    #[test]
    fn every_code_has_its_class() {
        for (class, codes) in [
            (Done, &[200, 107_306][..]),
            (Transient, &[398, 399, 449, 500, 503, 511, 514, 102_449]),
            (Uncertain, &[408]),
            (Throttled, &[416, 107_323]),
            (Config, &[403, 101_301, 101_302, 101_303, 101_304, 101_305]),
            (
                Permanent,
                &[
                    404, 414, 417, 463, 997, 998, 999, 102_404, 102_405, 102_421, 102_422, 102_426,
                    104_404, 107_316, 107_330, 107_410, 107_451, 189_001, 190_999, 191_003,
                    192_001,
                ],
            ),
        ] {
            for code in codes {
                assert_eq!(call(*code, None, BLOCK).class, class, "{code}");
            }
        }
    }

    #[test]
    fn unknown_codes_go_by_their_range() {
        for code in [300, 499, 100_404, 108_404, 199_999] {
            assert_eq!(call(code, None, BLOCK).class, Permanent, "{code}");
        }
        for code in [501, 599] {
            assert_eq!(call(code, None, BLOCK).class, Transient, "{code}");
        }
        for code in [-1, 0, 201, 600, 5000, 200_000] {
            assert_eq!(call(code, None, BLOCK).class, Uncertain, "{code}");
        }
    }

    #[test]
    fn a_parameter_error_is_read_by_its_words() {
        let of = |said: &str| call(414, Some(said.into()), BLOCK);
        assert_eq!(of("checksum").class, Config);
        assert!(!of("checksum").split);
        assert!(of("receiver_ids is too long").split);
        assert_eq!(of("").text, "a parameter is wrong");
        assert!(!call(404, None, BLOCK).split);
        assert!(!recipient(414, None).split);
    }

    #[test]
    fn what_befalls_one_recipient_stops_nobody_else() {
        for (code, class) in [
            (403, Permanent),
            (101_302, Permanent),
            (416, Transient),
            (107_323, Transient),
            (107_306, Done),
            (102_404, Permanent),
            (500, Transient),
            (408, Uncertain),
        ] {
            let answer = recipient(code, None);
            assert_eq!((answer.class, answer.retry_after), (class, None), "{code}");
        }
        assert_eq!(call(416, None, BLOCK).retry_after, Some(BLOCK));
    }
}
