//! Builds calls and reads their replies.
//!
//! The bytes of a call depend only on the job and the recipients, never on the time or the attempt:
//! version 3 compares the payload of a repeated `client_msg_no` and refuses a different one.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};
use serde::{Deserialize, Deserializer};

use super::probe::{self, LookUp};
use super::{Version, code};
use crate::codec::push_hex;
use crate::domain::message_id::MessageId;
use crate::domain::outcome::{Class, TargetAnswer, Verdict};
use crate::im::json;
use crate::im::reading::{all_but, excerpt, retry_after, unreadable};
use crate::ports::{Calls, HttpReply, Probed, Request};

/// No server accepts a uid that contains one of these.
const ILLEGAL_IN_UID: [char; 3] = ['@', '#', '&'];

/// The parts that all calls of a job have in common.
pub(super) struct Base {
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) version: Version,
    /// The body up to the first part that differs.
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

    /// Reads a reply that is not a success, by its status and its error text.
    fn refusal(&self, status: u16, said: Option<String>, reply: &HttpReply) -> TargetAnswer {
        let class = match status {
            // Without an error text of WuKongIM's own the request reached something else.
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

/// A call to one user or group. `base.before` ends within the `client_msg_no`, just before the
/// recipient's digits; without digits it ends after the `client_msg_no`.
pub(super) struct Single {
    pub(super) base: Base,
    /// The job's own number. The number of a message may add digits of the recipient.
    pub(super) client_msg_no: String,
    pub(super) per_recipient: bool,
    pub(super) keep_ids: bool,
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
        // Exact unless a recipient needs escapes.
        let digits = if self.per_recipient { 17 } else { 0 };
        let length = before.len() + digits + KEY.len() + recipient.len() + 3;
        let mut body = Vec::with_capacity(length);
        body.extend_from_slice(before);
        if self.per_recipient {
            // The server tells messages apart by channel. The digits are for the sender's devices.
            push_hex(&mut body, &json::short_hash(recipient));
            body.push(b'"');
        }
        body.extend_from_slice(KEY);
        json::push_string(&mut body, recipient);
        body.push(b'}');
        self.base.request(body)
    }

    fn read_reply(&self, _recipients: &[&str], reply: &HttpReply) -> Verdict {
        let answer = self.base.read_sent(reply);
        Verdict::All(match answer.class {
            Class::Done if self.keep_ids => TargetAnswer::done_as(sent_id(reply)),
            _ => answer,
        })
    }

    fn probe(&self, recipients: &[&str]) -> Option<Request> {
        let [recipient] = recipients else { return None };
        let look_up = self.look_up.as_ref()?;
        look_up.request(recipient, &self.client_msg_no(recipient))
    }

    fn read_probe(&self, recipients: &[&str], reply: &HttpReply) -> Probed {
        match recipients {
            [recipient] => match probe::read_reply(&self.client_msg_no(recipient), reply) {
                Probed::Sent(id) => Probed::Sent(id.filter(|_| self.keep_ids)),
                probed => probed,
            },
            _ => Probed::Unknown,
        }
    }
}

/// The reply to `/message/send` in all versions: `{"status":200,"data":{…}}`, a flat `reason`,
/// `{"msg":…,"status":400}`, `{"error":…}`. The content type is ignored: 2.x sets it wrongly on
/// some errors.
#[derive(Deserialize)]
struct SendReply {
    status: Option<u16>,
    reason: Option<i64>,
    msg: Option<String>,
    error: Option<String>,
}

/// The id in a reply that is a success: flat in 3.x, in `data` before.
fn sent_id(reply: &HttpReply) -> Option<MessageId> {
    #[derive(Default, Deserialize)]
    struct Sent {
        message_id: Option<i64>,
    }
    #[derive(Deserialize)]
    struct Reply {
        #[serde(flatten)]
        flat: Sent,
        data: Option<Sent>,
    }
    let Reply { flat, data } = serde_json::from_slice(&reply.body).ok()?;
    let id = flat.message_id.or(data.unwrap_or_default().message_id)?;
    MessageId::new(id.to_string(), None)
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
            // "Not found" comes as 200 with another status in the body.
            Some(SendReply {
                status: Some(status),
                msg,
                error,
                ..
            }) => match status {
                200 => TargetAnswer::done(),
                // The body calls it a success, but with an unexpected status.
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

/// The body of a call for many users, with the list of recipients at the end.
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

/// A permanent refusal of a whole call may be caused by one of its recipients, or by its size. Then
/// smaller calls may succeed.
fn whole(answer: TargetAnswer) -> Verdict {
    Verdict::All(match answer.class {
        Class::Permanent => answer.split(),
        _ => answer,
    })
}

/// `subscribers` of `/message/send`: one command that each of these users gets once.
///
/// The reply names no users, so the answer to the call counts for each of them.
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
            // A batch looks nothing up, so 404 means that the API has no such call.
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

/// The answer for a uid that a batch reports as failed. 2.x reports only uids that no server
/// accepts. 1.x stores at once, and also reports uids that it could not store now.
fn failure(uid: &str, reason: String) -> TargetAnswer {
    if uid.contains(ILLEGAL_IN_UID) {
        TargetAnswer::new(Class::Permanent, "illegal_uid", reason)
    } else {
        TargetAnswer::new(Class::Transient, "fail_uid", reason)
    }
}

/// The reply to `/message/sendbatch`. `fail_uids` may be `null`, but must be present.
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
