//! The calls and the reading of their replies.
//!
//! The bytes of a call depend on the job and the recipients alone, never on the time or the attempt:
//! version 3 compares the payload of a repeated `client_msg_no` and refuses another one.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};
use serde::{Deserialize, Deserializer};

use super::probe::{self, LookUp};
use super::{Version, code};
use crate::codec::push_hex;
use crate::domain::outcome::{Class, TargetAnswer, Verdict};
use crate::im::json;
use crate::im::reading::{all_but, excerpt, retry_after, unreadable};
use crate::ports::{Calls, HttpReply, Probed, Request};

/// No server has a channel for a uid with one of these.
const ILLEGAL_IN_UID: [char; 3] = ['@', '#', '&'];

/// What all calls of a job have in common.
pub(super) struct Base {
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) version: Version,
    /// The body up to what differs.
    pub(super) before: Vec<u8>,
}

impl Base {
    fn request(&self, body: Vec<u8>) -> Request {
        Request {
            method: Method::POST,
            uri: self.uri.clone(),
            headers: self.headers.clone(),
            body: Bytes::from(body),
        }
    }

    /// A reply that is not a success, by its status and its words.
    fn refusal(&self, status: u16, said: Option<String>, reply: &HttpReply) -> TargetAnswer {
        let class = match status {
            // Without words of WuKongIM's own nobody there has looked for anything.
            404 if said.is_none() => Class::Config,
            status => code::status(self.version, status),
        };
        let text = said.unwrap_or_else(|| excerpt(&reply.body));
        TargetAnswer::new(class, status.to_string(), text).retry_after(retry_after(&reply.headers))
    }
}

// ---------------------------------------------------------------------------------------------
// `/message/send`
// ---------------------------------------------------------------------------------------------

/// A call for each user or group. The body lacks the digits of the recipient, or begins its end
/// after the `client_msg_no`.
pub(super) struct Single {
    pub(super) base: Base,
    /// The job's own number; with the digits of the recipient it is the message's.
    pub(super) client_msg_no: String,
    pub(super) per_recipient: bool,
    pub(super) look_up: Option<LookUp>,
}

impl Single {
    /// The number of the message to a recipient.
    fn client_msg_no(&self, recipient: &str) -> String {
        let mut number = self.client_msg_no.clone().into_bytes();
        if self.per_recipient {
            number.push(b'-');
            push_hex(&mut number, &json::short_hash(recipient));
        }
        String::from_utf8_lossy(&number).into_owned()
    }
}

impl Calls for Single {
    fn request(&self, recipients: &[&str]) -> Request {
        debug_assert_eq!(recipients.len(), 1, "one recipient a call is declared");
        let recipient = recipients.first().copied().unwrap_or_default();
        const KEY: &[u8] = br#","channel_id":"#;
        let before = &self.base.before;
        // Exact for all but recipients that need escapes; then nothing is moved.
        let digits = if self.per_recipient { 17 } else { 0 };
        let length = before.len() + digits + KEY.len() + recipient.len() + 3;
        let mut body = Vec::with_capacity(length);
        body.extend_from_slice(before);
        if self.per_recipient {
            // The channel tells recipients apart on the server; this is for the sender's devices.
            push_hex(&mut body, &json::short_hash(recipient));
            body.push(b'"');
        }
        body.extend_from_slice(KEY);
        json::push_string(&mut body, recipient);
        body.push(b'}');
        self.base.request(body)
    }

    fn read_reply(&self, _recipients: &[&str], reply: &HttpReply) -> Verdict {
        Verdict::All(self.base.read_sent(reply))
    }

    fn probe(&self, recipients: &[&str]) -> Option<Request> {
        let [recipient] = recipients else { return None };
        let look_up = self.look_up.as_ref()?;
        look_up.request(recipient, &self.client_msg_no(recipient))
    }

    fn read_probe(&self, recipients: &[&str], reply: &HttpReply) -> Probed {
        match recipients {
            [recipient] => probe::read(&self.client_msg_no(recipient), reply),
            _ => Probed::Unknown,
        }
    }
}

/// What `/message/send` answers in all versions: `{"status":200,"data":{…}}`, a flat `reason`,
/// `{"msg":…,"status":400}`, `{"error":…}`. The content type is not looked at: 2.x sets it wrongly
/// on some errors.
#[derive(Deserialize)]
struct SendReply {
    status: Option<u16>,
    reason: Option<i64>,
    msg: Option<String>,
    error: Option<String>,
}

impl Base {
    fn read_sent(&self, reply: &HttpReply) -> TargetAnswer {
        let sent = serde_json::from_slice::<SendReply>(&reply.body).ok();
        if !(200..300).contains(&reply.status) {
            let said = sent.and_then(|sent| sent.error.or(sent.msg));
            return self.refusal(reply.status, said, reply);
        }
        match sent {
            Some(SendReply {
                reason: Some(code), ..
            }) => code::reason(code),
            // "Not found" comes as 200 with another status inside.
            Some(SendReply {
                status: Some(status),
                msg,
                error,
                ..
            }) => match status {
                200 => TargetAnswer::done(),
                // It is a success by its own words, if an odd one.
                201..300 => unreadable(&reply.body),
                status => self.refusal(status, Some(error.or(msg).unwrap_or_default()), reply),
            },
            _ => unreadable(&reply.body),
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Many users in a call
// ---------------------------------------------------------------------------------------------

/// The body of a call for many, whose list of recipients comes last.
fn body_for_many(before: &[u8], recipients: &[&str]) -> Vec<u8> {
    let length: usize = recipients.iter().map(|recipient| recipient.len() + 3).sum();
    let mut body = Vec::with_capacity(before.len() + length + 1);
    body.extend_from_slice(before);
    for (index, recipient) in recipients.iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        json::push_string(&mut body, recipient);
    }
    body.extend_from_slice(b"]}");
    body
}

/// A refusal for good of a whole call may be for one of its recipients, or for its size: then smaller
/// calls fare better.
fn whole(answer: TargetAnswer) -> Verdict {
    Verdict::All(match answer.class {
        Class::Permanent => answer.split(),
        _ => answer,
    })
}

/// `subscribers` of `/message/send`: one command that each of these users gets once.
///
/// The server names nobody in its answer: that it took the call is what is known of each of them.
pub(super) struct Command(pub(super) Base);

impl Calls for Command {
    fn request(&self, recipients: &[&str]) -> Request {
        self.0.request(body_for_many(&self.0.before, recipients))
    }

    fn read_reply(&self, _recipients: &[&str], reply: &HttpReply) -> Verdict {
        whole(self.0.read_sent(reply))
    }
}

/// `/message/sendbatch`: one payload, a message to each of these users.
pub(super) struct Packed(pub(super) Base);

impl Calls for Packed {
    fn request(&self, recipients: &[&str]) -> Request {
        self.0.request(body_for_many(&self.0.before, recipients))
    }

    fn read_reply(&self, recipients: &[&str], reply: &HttpReply) -> Verdict {
        let sent = serde_json::from_slice::<SentBatch<'_>>(&reply.body).ok();
        if !(200..300).contains(&reply.status) {
            // There is nothing to be found or not found in a batch: 404 means there is no such call.
            let said = sent.and_then(|sent| sent.error.or(sent.msg));
            let said = said.filter(|_| reply.status != 404);
            return whole(self.0.refusal(reply.status, said, reply));
        }
        match sent {
            Some(SentBatch {
                fail_uids: Some(failed),
                reason,
                ..
            }) => {
                let failed = failed.unwrap_or_default();
                let mut reasons = reason.unwrap_or_default().into_iter();
                all_but(
                    recipients,
                    failed.into_iter().map(|Text(uid)| {
                        let reason = reasons.next().unwrap_or_default();
                        let answer = failure(&uid, reason);
                        (uid, answer)
                    }),
                )
            }
            Some(SentBatch {
                status: Some(status),
                msg,
                error,
                ..
            }) if status >= 300 => {
                let said = Some(error.or(msg).unwrap_or_default());
                whole(self.0.refusal(status, said, reply))
            }
            _ => Verdict::All(unreadable(&reply.body)),
        }
    }
}

/// What it means that a batch names a uid. 2.x names only those that no server takes; 1.x stores at
/// once and names also those it could not store now.
fn failure(uid: &str, reason: String) -> TargetAnswer {
    if uid.contains(ILLEGAL_IN_UID) {
        TargetAnswer::new(Class::Permanent, "illegal_uid", reason)
    } else {
        TargetAnswer::new(Class::Transient, "fail_uid", reason)
    }
}

/// What `/message/sendbatch` answers. A list may be `null`, but must be there.
#[derive(Deserialize)]
struct SentBatch<'a> {
    #[serde(default, borrow, deserialize_with = "present")]
    fail_uids: Option<Option<Vec<Text<'a>>>>,
    reason: Option<Vec<String>>,
    status: Option<u16>,
    msg: Option<String>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}
