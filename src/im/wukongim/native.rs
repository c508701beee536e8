//! Reads and checks the fields that a job adds to the request: `message.native`.
//!
//! They are sent to `/message/send` unchanged and override the message, including `payload` and
//! `expire`. They cannot set what Fanwise is responsible for: recipients, sender and flags. They
//! cannot set the key either, but `client_msg_no` may choose its form, with the values of the
//! target's setting; it is then not sent as a field. WuKongIM matches names without regard to case,
//! so this module does too.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::value::RawValue;

use super::ClientMsgNo;
use crate::domain::fields::Problem;
use crate::domain::slice::Head;

/// Fields that Fanwise sets, and the part of a job that decides them.
const OURS: [(&str, &str); 9] = [
    ("CHANNEL_ID", "the audience"),
    ("CHANNEL_TYPE", "the audience"),
    ("SUBSCRIBERS", "the audience"),
    // A set of subscribers stored on the server.
    ("TAG_KEY", "the audience"),
    ("FROM_UID", "`sender`"),
    ("SENDER_UID", "`sender`"),
    ("HEADER", "`options`"),
    // Names that 3.x accepts for flags of the header.
    ("NO_PERSIST", "`options.online_only`"),
    ("SYNC_ONCE", "`options.sync_once`"),
];

/// Fields that Fanwise writes unless the job does.
pub(super) const PAYLOAD: &str = "payload";
pub(super) const EXPIRE: &str = "expire";

/// Chooses the form of each recipient's message number.
pub(super) const NUMBER: &str = "client_msg_no";

/// Its values: the job's number unchanged, or with digits of the recipient.
const AS_GIVEN: &str = r#""job""#;
const PER_RECIPIENT: &str = r#""per_recipient""#;

/// The form of the number that the job asks for.
pub(super) fn number(native: &Native<'_>) -> Option<ClientMsgNo> {
    match native.get(NUMBER)?.get() {
        AS_GIVEN => Some(ClientMsgNo::Job),
        PER_RECIPIENT => Some(ClientMsgNo::PerRecipient),
        _ => None,
    }
}

/// The native fields of a job, by name.
pub(super) type Native<'a> = BTreeMap<String, &'a RawValue>;

/// The native fields of a job; empty if it has none.
pub(super) fn of(head: &Head) -> Native<'_> {
    let json = head.native.as_ref().map_or("{}", |native| native.get());
    // Accepting the job checked that this is an object.
    crate::json::again(json)
}

/// Reports problems of the native fields. `most`: bytes of a payload.
pub(super) fn check(native: &Native<'_>, most: usize, problems: &mut Vec<Problem>) {
    for (name, value) in native {
        let folded = folded(name);
        let what = match OURS.iter().find(|(ours, _)| *ours == folded) {
            Some((_, set_by)) => Some(format!("is set by {set_by}, not by native fields")),
            None if name == PAYLOAD => payload_problem(value, most),
            None if name == NUMBER => {
                let words = "\"job\" or \"per_recipient\" is expected: it is the job's number";
                number(native).is_none().then(|| words.to_owned())
            }
            None => [PAYLOAD, EXPIRE, NUMBER]
                .into_iter()
                .find(|known| name != known && folded == self::folded(known))
                .map(|known| format!("is taken for `{known}`; write it so")),
        };
        let field = || format!("message.native.{name}");
        problems.extend(what.map(|what| Problem::new(field(), what)));
    }
}

/// A name folded as Go compares it: two letters outside ASCII equal ASCII letters.
fn folded(name: &str) -> String {
    name.to_lowercase().to_uppercase()
}

fn payload_problem(value: &RawValue, most: usize) -> Option<String> {
    let text: Option<String> = serde_json::from_str(value.get()).ok();
    match text.and_then(|text| STANDARD.decode(text).ok()) {
        None => Some("base64 is expected".to_owned()),
        Some(bytes) if bytes.is_empty() => Some("is empty".to_owned()),
        Some(bytes) => size_problem(bytes.len(), most),
    }
}

/// The problem of a payload that is too long.
pub(super) fn size_problem(size: usize, most: usize) -> Option<String> {
    (size > most).then(|| format!("{size} bytes, WuKongIM clients take at most {most}"))
}
