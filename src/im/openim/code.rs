//! Maps error codes and HTTP statuses to classes. We derive the class from the meaning of each
//! code: OpenIM does not say which errors are worth a retry.

use std::time::Duration;

use crate::domain::outcome::Class::{Config, Permanent, Throttled, Transient, Uncertain};
use crate::domain::outcome::{Class, RefusalKind, TargetAnswer};
use crate::im::code::{CodeForms, is_status};

/// Error codes of the server: from, to, class, name. The first row that matches counts.
///
/// A code is `Uncertain` if it can come from a step after the send: storing the message, or noting
/// that it was sent. The server makes that note only if all went well. After an error it is missing
/// in any case, so a probe proves nothing. For calls that send nothing these errors are transient.
const CODES: [(i64, i64, Class, &str); 47] = [
    // Statuses of gRPC, which releases up to 3.8 pass on.
    (1, 1, Uncertain, "canceled"),
    (2, 2, Uncertain, "unknown"),
    (3, 3, Permanent, "invalid argument"),
    (4, 4, Uncertain, "deadline exceeded"),
    (5, 5, Permanent, "not found"),
    (6, 6, Transient, "already exists"),
    (7, 7, Permanent, "permission denied"),
    (8, 8, Throttled, "resource exhausted"),
    (9, 12, Transient, "not done"),
    (13, 13, Uncertain, "internal"),
    // Refined by `of`.
    (14, 14, Uncertain, "unavailable"),
    (15, 15, Uncertain, "data loss"),
    (16, 16, Transient, "unauthenticated"),
    (429, 429, Throttled, "too many requests"),
    // Refined by `of`.
    (500, 500, Uncertain, "ServerInternalError"),
    (1001, 1001, Permanent, "ArgsError"),
    (1002, 1002, Config, "NoPermissionError"),
    (1003, 1003, Permanent, "DuplicateKeyError"),
    (1004, 1004, Permanent, "RecordNotFoundError"),
    (1050, 1050, Config, "SecretNotChangedError"),
    (1101, 1101, Permanent, "UserIDNotFoundError"),
    (1102, 1102, Permanent, "RegisteredAlreadyError"),
    (1201, 1201, Permanent, "GroupIDNotFoundError"),
    (1202, 1202, Permanent, "GroupIDExisted"),
    (1203, 1203, Permanent, "NotInGroupYetError"),
    (1204, 1204, Permanent, "DismissedAlreadyError"),
    (1205, 1205, Permanent, "GroupTypeNotSupport"),
    (1206, 1206, Permanent, "GroupRequestHandled"),
    (1301, 1301, Permanent, "CanNotAddYourselfError"),
    (1302, 1302, Permanent, "BlockedByPeer"),
    (1303, 1303, Permanent, "NotPeersFriend"),
    (1304, 1304, Permanent, "RelationshipAlreadyError"),
    (1305, 1305, Permanent, "FriendRequestHandled"),
    (1401, 1401, Permanent, "MessageHasReadDisable"),
    (1402, 1402, Permanent, "MutedInGroup"),
    (1403, 1403, Permanent, "MutedGroup"),
    (1404, 1404, Permanent, "MsgAlreadyRevoke"),
    // Expired, invalid, malformed, not yet valid, unknown, kicked, or absent: the server did
    // nothing.
    (1501, 1507, Config, "the token is refused"),
    (1601, 1604, Permanent, "a connection's error"),
    (1701, 1701, Permanent, "FileUploadedExpiredError"),
    // Codes of later versions, and of the chat server that may be in front.
    (1000, 1999, Permanent, "refused"),
    (10_000, 19_999, Permanent, "refused"),
    (20_001, 29_999, Permanent, "refused by a webhook"),
    (80_000, 89_999, Transient, "CallbackError"),
    // 90002 database, 90004 network, 90007 data.
    (90_000, 99_999, Uncertain, "a storage error"),
    (i64::MIN, -1, Uncertain, "a code of a later version"),
    (0, i64::MAX, Uncertain, "a code of a later version"),
];

/// The body of a throttled call contains no wait.
const THROTTLED_WAIT: Duration = Duration::from_secs(1);

/// Codes after which a new token may help.
const STALE: std::ops::RangeInclusive<i64> = 1501..=1507;

/// Error texts for a content that fails the validation of its type, which has no code of its own.
const BAD_CONTENT: [&str; 5] = [
    "validation error",
    "Field validation",
    "failed to decode message content",
    "error(s) decoding",
    "decoding failed",
];

/// Error texts of gRPC when it could not reach the next service.
const NOT_REACHED: [&str; 2] = ["dialing", "resolver"];

/// The error text when one of our headers is missing: a proxy must have removed it.
const NO_HEADER: &str = "header must have";

/// The answer for an error code of the server, with the server's text.
pub(super) fn of(code: i64, said: String) -> TargetAnswer {
    let (mut class, name) = CODES
        .into_iter()
        .find(|(from, to, ..)| (*from..=*to).contains(&code))
        .map_or((Uncertain, ""), |(_, _, class, name)| (class, name));
    let says = |words: &[&str]| words.iter().any(|words| said.contains(words));
    class = match code {
        500 if says(&BAD_CONTENT) => Permanent,
        14 if says(&NOT_REACHED) => Transient,
        1001 if says(&[NO_HEADER]) => Config,
        _ => class,
    };
    let text = if said.is_empty() {
        name.to_owned()
    } else {
        said
    };
    let answer = TargetAnswer::new(class, format!("err_{code}"), text);
    match class {
        Config if STALE.contains(&code) => answer.stale(),
        Uncertain => answer.unprovable(),
        _ => throttled(answer),
    }
}

/// Makes a throttled target wait at least one second.
pub(super) fn throttled(answer: TargetAnswer) -> TargetAnswer {
    let asked = answer.retry_after.unwrap_or_default();
    match answer.class {
        Throttled => answer.retry_after(Some(asked.max(THROTTLED_WAIT))),
        _ => answer,
    }
}

/// HTTP statuses: from, to, class. The first row that matches counts. The table has no success:
/// that is read from the body.
const STATUSES: [(u16, u16, Class); 9] = [
    // A redirect: the URL is not that of the API.
    (300, 399, Config),
    (401, 401, Config),
    (403, 405, Config),
    (407, 407, Config),
    (408, 408, Uncertain),
    (425, 425, Throttled),
    (429, 429, Throttled),
    // 400 for fields that could not be read, 413 for a body that is too large.
    (400, 499, Permanent),
    // A handler that died, or a gateway that lost the server's answer.
    (500, 599, Uncertain),
];

pub(super) fn status(status: u16) -> Class {
    STATUSES
        .into_iter()
        .find(|(from, to, _)| (*from..=*to).contains(&status))
        .map_or(Uncertain, |(.., class)| class)
}

/// How the codes are written.
pub(in crate::im) const FORMS: CodeForms = CodeForms {
    prefixes: &["", "err_"],
    words: &["failed"],
    successes: &["err_0"],
};

/// What a refusal with this code is about.
pub(in crate::im) fn refusal_kind(code: &str) -> RefusalKind {
    match code {
        "err_1004" | "err_1101" => RefusalKind::UnknownRecipient,
        _ if is_status(code) => RefusalKind::Call,
        _ => RefusalKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_class() {
        let check = |codes: &[i64], class: Class| {
            for code in codes {
                let answer = of(*code, String::new());
                assert_eq!(answer.class, class, "{code}");
                assert_eq!(answer.code, format!("err_{code}"));
                assert_eq!(answer.stale, (1501..=1507).contains(code), "{code}");
                assert_eq!(answer.unprovable, class == Uncertain, "{code}");
                assert!(!answer.text.is_empty(), "{code}");
            }
        };
        check(&[1, 2, 4, 13, 14, 15], Uncertain);
        check(&[3, 5, 7], Permanent);
        check(&[6, 9, 10, 11, 12, 16], Transient);
        check(&[8, 429], Throttled);
        check(&[500], Uncertain);
        check(&[1001, 1003, 1004], Permanent);
        check(&[1002, 1050], Config);
        check(&[1101, 1102], Permanent);
        check(&[1201, 1202, 1203, 1204, 1205, 1206], Permanent);
        check(&[1301, 1302, 1303, 1304, 1305], Permanent);
        check(&[1401, 1402, 1403, 1404], Permanent);
        check(&[1501, 1502, 1503, 1504, 1505, 1506, 1507], Config);
        check(&[1601, 1602, 1603, 1604, 1701], Permanent);
        check(&[20_001, 29_999], Permanent);
        check(&[80_000], Transient);
        check(&[90_002, 90_004, 90_007], Uncertain);
        // Codes that only a range covers.
        check(&[1000, 1099, 1500, 1508, 1999], Permanent);
        check(&[10_001, 10_014, 19_999], Permanent);
        check(&[80_001, 89_999], Transient);
        check(&[90_000, 99_999], Uncertain);
        check(
            &[
                -1,
                17,
                499,
                2000,
                20_000,
                30_000,
                100_000,
                i64::MAX,
                i64::MIN,
            ],
            Uncertain,
        );
    }

    #[test]
    fn words_refine_a_code() {
        let class = |code, said: &str| of(code, said.to_owned()).class;
        for said in [
            "validation error",
            "Key: 'PictureElem.SourcePicture.Type' Error:Field validation for 'Type' failed",
            "failed to decode message content: 1 error(s) decoding",
            "decoding failed due to the following error(s)",
        ] {
            assert_eq!(class(500, said), Permanent, "{said}");
        }
        assert_eq!(class(500, "redis: connection pool timeout"), Uncertain);
        let dialing = "connection error: desc = \"transport: Error while dialing: dial tcp\"";
        assert_eq!(class(14, dialing), Transient);
        assert_eq!(class(14, "name resolver error: zero addresses"), Transient);
        assert_eq!(class(14, "error reading from server: EOF"), Uncertain);
        assert_eq!(class(1001, "header must have token"), Config);
        assert_eq!(class(1001, "message is not sent"), Permanent);
    }

    #[test]
    fn throttled_targets_wait_a_second_at_least() {
        let wait = |asked: Option<u64>| {
            let asked = asked.map(Duration::from_secs);
            let answer = TargetAnswer::new(Throttled, "429", "").retry_after(asked);
            throttled(answer).retry_after.unwrap().as_secs()
        };
        assert_eq!([wait(None), wait(Some(0)), wait(Some(5))], [1, 1, 5]);
        assert_eq!(of(8, String::new()).retry_after, Some(THROTTLED_WAIT));
        assert_eq!(of(1001, String::new()).retry_after, None);
    }

    #[test]
    fn every_status_has_its_class() {
        let check = |codes: &[u16], class| {
            for code in codes {
                assert_eq!(status(*code), class, "{code}");
            }
        };
        check(&[301, 302, 307, 401, 403, 404, 405, 407], Config);
        check(&[400, 402, 406, 409, 413, 415, 422], Permanent);
        check(&[425, 429], Throttled);
        check(
            &[0, 199, 408, 500, 501, 502, 503, 504, 520, 599, 600],
            Uncertain,
        );
    }
}
