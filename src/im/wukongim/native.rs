//! Fields that a job adds to the request: `message.native`.
//!
//! They go to `/message/send` as they are and win over what the message says, `payload` and `expire`
//! among them. What Fanwise answers for is not theirs: to whom, from whom, with which flags. The key is not
//! either, but `client_msg_no` may say which form it has, in the words of the target's setting: then it is
//! no field of the request. WuKongIM matches names without regard to case, so neither does this.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::value::RawValue;

use super::ClientMsgNo;
use crate::domain::fields::Problem;
use crate::domain::slice::Head;

/// Fields of ours, and what sets them.
const OURS: [(&str, &str); 9] = [
    ("CHANNEL_ID", "the audience"),
    ("CHANNEL_TYPE", "the audience"),
    ("SUBSCRIBERS", "the audience"),
    // A set of subscribers at the server.
    ("TAG_KEY", "the audience"),
    ("FROM_UID", "`sender`"),
    ("SENDER_UID", "`sender`"),
    ("HEADER", "`options`"),
    // Other names of 3.x for flags of the header.
    ("NO_PERSIST", "`options.online_only`"),
    ("SYNC_ONCE", "`options.sync_once`"),
];

/// Fields that we write unless a job does.
pub(super) const PAYLOAD: &str = "payload";
pub(super) const EXPIRE: &str = "expire";

/// Which number each recipient's message has.
pub(super) const NUMBER: &str = "client_msg_no";

/// The words for it: the job's number as it is, or with digits of the recipient.
const AS_GIVEN: &str = r#""job""#;
const PER_RECIPIENT: &str = r#""per_recipient""#;

/// The form of the number that a job asks for.
pub(super) fn number(native: &Native<'_>) -> Option<ClientMsgNo> {
    match native.get(NUMBER)?.get() {
        AS_GIVEN => Some(ClientMsgNo::Job),
        PER_RECIPIENT => Some(ClientMsgNo::PerRecipient),
        _ => None,
    }
}

/// The native fields of a job by their names.
pub(super) type Native<'a> = BTreeMap<String, &'a RawValue>;

/// The native fields of a job; none if it has none.
pub(super) fn of(head: &Head) -> Native<'_> {
    let json = head.native.as_ref().map_or("{}", |native| native.get());
    // An object was read when the job was accepted.
    crate::json::again(json)
}

/// What is wrong with the native fields. `most`: bytes of a payload.
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

/// A name as Go compares it: two letters beyond ASCII count as letters in it.
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

/// What is wrong with a payload of so many bytes.
pub(super) fn size_problem(size: usize, most: usize) -> Option<String> {
    (size > most).then(|| format!("{size} bytes, WuKongIM clients take at most {most}"))
}
