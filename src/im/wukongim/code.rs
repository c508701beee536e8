//! Maps reason codes and HTTP statuses to classes. We derive the class from the meaning of each
//! code: WuKongIM does not say which errors are worth a retry.

use std::time::Duration;

use super::Version;
use crate::domain::outcome::Class::{Config, Done, Permanent, Throttled, Transient, Uncertain};
use crate::domain::outcome::{Class, RefusalKind, TargetAnswer};
use crate::im::code::{CodeForms, is_status};

/// The reason codes of the wire protocol, in the order of their numbers. Version 3 sends them in
/// `reason`. It reports most of its errors as `system error`, an idempotency conflict among them,
/// so a `Transient` here can be permanent. The worker's limit of attempts ends it then.
const REASONS: [(Class, &str); 30] = [
    (Transient, "unknown"),
    (Done, "success"),
    (Config, "auth fail"),
    (
        Permanent,
        "subscriber missing: the sender is not in the channel",
    ),
    (Permanent, "in blacklist"),
    (Permanent, "channel missing"),
    (Transient, "user not on node"),
    (Transient, "sender offline"),
    (Permanent, "msg key error"),
    (Permanent, "payload decode error"),
    (Transient, "forward failed"),
    (Permanent, "not allowed"),
    (Permanent, "kicked"),
    (Permanent, "not in whitelist"),
    (Transient, "query token error"),
    (Transient, "system error"),
    (Permanent, "channel id error"),
    (Transient, "node match error"),
    (Transient, "node not match"),
    (Permanent, "channel banned"),
    (Permanent, "header unsupported"),
    (Permanent, "client key empty"),
    (Throttled, "rate limit"),
    (Permanent, "channel type unsupported"),
    (Permanent, "disbanded"),
    (Permanent, "send banned"),
    (Transient, "channel deleting"),
    (Permanent, "protocol upgrade"),
    (
        Permanent,
        "idempotency conflict: the same client_msg_no with another payload",
    ),
    (Permanent, "message seq exhausted"),
];

/// The reason `rate limit` comes without a wait.
const RATE_LIMIT_WAIT: Duration = Duration::from_secs(1);

/// The answer for a reason code. A code that is not listed is also a refusal.
pub(super) fn reason(code: i64) -> TargetAnswer {
    let row = usize::try_from(code)
        .ok()
        .and_then(|code| REASONS.get(code));
    let (class, name) = row
        .copied()
        .unwrap_or((Transient, "a reason of a later version"));
    match class {
        Done => TargetAnswer::done(),
        Throttled => named(code, class, name).retry_after(Some(RATE_LIMIT_WAIT)),
        Permanent | Transient | Uncertain | Config => named(code, class, name),
    }
}

fn named(code: i64, class: Class, name: &'static str) -> TargetAnswer {
    TargetAnswer::new(class, format!("reason_{code}"), name)
}

/// HTTP statuses: from, to, class on 1.x and 2.x, class on 3.x. The first row that matches counts.
/// The table has no success: that is read from the body.
const STATUSES: [(u16, u16, Class, Class); 14] = [
    // A redirect: the URL is not that of the API.
    (300, 399, Config, Config),
    // A missing or wrong token. 403, 407 and all of these on 3.x come from a proxy in front of the
    // server.
    (401, 401, Config, Config),
    (403, 403, Config, Config),
    (405, 405, Config, Config),
    (407, 407, Config, Config),
    // On 3.x: cancelled or timed out; the message may be stored.
    (408, 408, Uncertain, Uncertain),
    (425, 425, Throttled, Throttled),
    (429, 429, Throttled, Throttled),
    // Invalid fields. `calls` decides about 404.
    (400, 499, Permanent, Permanent),
    // A handler of 1.x or 2.x that died may have sent before. 3.x uses 500 for every error without
    // a status of its own, back-pressure among them.
    (500, 500, Uncertain, Transient),
    // A gateway lost the server's answer.
    (502, 502, Uncertain, Uncertain),
    // 3.x: not the leader, route not ready, or maintenance. Otherwise: a gateway without a server.
    (503, 503, Transient, Transient),
    (504, 504, Uncertain, Uncertain),
    (500, 599, Uncertain, Uncertain),
];

pub(super) fn status(version: Version, status: u16) -> Class {
    let row = STATUSES
        .into_iter()
        .find(|(from, to, ..)| (*from..=*to).contains(&status));
    match (row, version) {
        (Some((.., released, _)), Version::V1 | Version::V2) => released,
        (Some((.., v3)), Version::V3) => v3,
        (None, _) => Uncertain,
    }
}

/// How the codes are written.
pub(in crate::im) const FORMS: CodeForms = CodeForms {
    prefixes: &["", "reason_"],
    words: &["illegal_uid", "fail_uid"],
    successes: &["reason_1"],
};

/// What a refusal with this code is about.
pub(in crate::im) fn refusal_kind(code: &str) -> RefusalKind {
    match code {
        "403" | "reason_3" | "reason_4" | "reason_11" | "reason_13" | "reason_19" | "reason_24"
        | "reason_25" => RefusalKind::Forbidden,
        _ if is_status(code) => RefusalKind::Call,
        _ => RefusalKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_class() {
        let of = |class| {
            (0..30)
                .filter(|code| reason(*code).class == class)
                .collect::<Vec<i64>>()
        };
        assert_eq!(of(Done), [1]);
        assert_eq!(of(Config), [2]);
        assert_eq!(of(Transient), [0, 6, 7, 10, 14, 15, 17, 18, 26]);
        assert_eq!(of(Throttled), [22]);
        assert_eq!(
            of(Permanent),
            [
                3, 4, 5, 8, 9, 11, 12, 13, 16, 19, 20, 21, 23, 24, 25, 27, 28, 29
            ]
        );
        assert_eq!(reason(15).code, "reason_15");
        assert_eq!(reason(22).retry_after, Some(RATE_LIMIT_WAIT));
        for unlisted in [30, 255, -1, i64::MAX] {
            assert_eq!(reason(unlisted).class, Transient);
        }
    }

    #[test]
    fn every_status_has_its_class() {
        let check = |code, released, v3| {
            assert_eq!(status(Version::V1, code), released, "{code}");
            assert_eq!(status(Version::V2, code), released, "{code}");
            assert_eq!(status(Version::V3, code), v3, "{code}");
        };
        for code in [301, 302, 307, 401, 403, 405, 407] {
            check(code, Config, Config);
        }
        for code in [400, 404, 409, 413, 415, 422] {
            check(code, Permanent, Permanent);
        }
        for code in [425, 429] {
            check(code, Throttled, Throttled);
        }
        for code in [0, 204, 408, 501, 502, 504, 505, 520, 599, 600, 999] {
            check(code, Uncertain, Uncertain);
        }
        check(500, Uncertain, Transient);
        check(503, Transient, Transient);
    }
}
