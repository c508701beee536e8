//! Reads refusals, which both versions of the API write alike.

use serde::Deserialize;

use crate::domain::outcome::Class::{Config, Permanent, Throttled, Transient, Uncertain};
use crate::domain::outcome::TargetAnswer;
use crate::im::reading::{excerpt, retry_after, unreadable};
use crate::ports::HttpReply;

/// The members of every reply; version 2 calls the text `msg`.
#[derive(Deserialize)]
struct Said {
    code: i64,
    #[serde(alias = "msg")]
    desc: Option<String>,
}

/// `Ok` if the call as a whole succeeded; otherwise the answer for all recipients, by its code.
pub(in crate::im) fn check_reply(
    reply: &HttpReply,
    by_code: impl FnOnce(i64, Option<String>) -> TargetAnswer,
) -> Result<(), TargetAnswer> {
    if !(200..300).contains(&reply.status) {
        return Err(by_status(reply));
    }
    match serde_json::from_slice(&reply.body) {
        Ok(Said { code: 200, .. }) => Ok(()),
        Ok(Said { code, desc }) => Err(by_code(code, desc)),
        Err(_) => Err(unreadable(&reply.body)),
    }
}

/// The API answers every call with 200, so another status comes from a proxy in front of it, or
/// from another server.
fn by_status(reply: &HttpReply) -> TargetAnswer {
    let class = match reply.status {
        300..=399 | 401 | 403 | 404 | 405 | 407 => Config,
        408 => Uncertain,
        425 | 429 => Throttled,
        400..=499 => Permanent,
        // The gateway found no server for the request.
        503 => Transient,
        _ => Uncertain,
    };
    let text = excerpt(&reply.body);
    let answer = TargetAnswer::new(class, reply.status.to_string(), text)
        .retry_after(retry_after(&reply.headers));
    // The request was too large; smaller ones may fit.
    if reply.status == 413 {
        answer.split()
    } else {
        answer
    }
}

/// Whether a parameter error is about the signature. Only the text tells: `checksum`, `appkey`,
/// `CurTime is expired` and `bad http header` have the same code as a malformed list.
pub(in crate::im) fn blames_signature(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    ["checksum", "appkey", "curtime", "nonce", "http header"]
        .iter()
        .any(|word| text.contains(word))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::im::fixture::{reply, with_header};

    #[test]
    fn every_status_has_its_class() {
        for (class, statuses) in [
            (Config, &[301, 302, 401, 403, 404, 405, 407][..]),
            (Permanent, &[400, 409, 413, 415, 422]),
            (Throttled, &[425, 429]),
            (Transient, &[503]),
            (Uncertain, &[0, 100, 408, 500, 501, 502, 504, 520, 599, 600]),
        ] {
            for status in statuses {
                let answer = by_status(&reply(*status, "<h1>no</h1>"));
                assert_eq!(answer.class, class, "{status}");
                assert_eq!(answer.text, "<h1>no</h1>");
                assert_eq!(answer.split, *status == 413);
            }
        }
        let wait = with_header(reply(429, ""), "retry-after", "7");
        assert_eq!(by_status(&wait).retry_after, Some(Duration::from_secs(7)));
    }

    #[test]
    fn a_bad_signature_is_told_by_its_words() {
        for text in ["checksum", "CheckSum error", "appkey", "CurTime is expired"] {
            assert!(blames_signature(text), "{text}");
        }
        for text in [
            "",
            "too many members.",
            "toAccids is not a list",
            "check body",
        ] {
            assert!(!blames_signature(text), "{text}");
        }
    }
}
