//! Calls and the reading of their replies.
//!
//! The bytes of a call depend on the job and the recipients alone, never on the time or the attempt:
//! version 3 compares the payload of a repeated `client_msg_no` and refuses another one.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Method, Uri};
use serde::{Deserialize, Deserializer};

use super::{ClientMsgNo, Settings, Version, code};
use crate::domain::fields::Problem;
use crate::domain::mapping::{Feature, Mapping};
use crate::domain::message::Content;
use crate::domain::outcome::{Answer, Class, Verdict};
use crate::domain::slice::Head;
use crate::im::json;
use crate::im::reading::{all_but, excerpt, retry_after, unreadable};
use crate::ports::{Calls, Profile, Reply, Request, Target};

/// Longest payload, decoded. The HTTP API takes more, but clients speak a protocol that ends here
/// and could not read the message.
const PAYLOAD_BYTES_MAX: usize = 32_767;

/// A person's channel; its id is the recipient.
const PERSON: &str = r#""channel_type":1"#;

/// No server has a channel for a uid with one of these.
const ILLEGAL_IN_UID: [char; 3] = ['@', '#', '&'];

/// One WuKongIM account as a target.
pub struct WukongIm {
    settings: Settings,
    profile: Profile,
    base: Base,
}

/// What all calls to an account have in common.
#[derive(Clone)]
struct Base {
    uri: Uri,
    headers: HeaderMap,
    version: Version,
}

impl WukongIm {
    pub(super) fn new(settings: Settings, uri: Uri, headers: HeaderMap) -> Self {
        let version = settings.version;
        Self {
            profile: Profile {
                recipients_per_call: if settings.packed {
                    settings.recipients_per_call
                } else {
                    1
                },
                idempotent: version == Version::V3 && !settings.packed,
                ..Profile::default()
            },
            base: Base {
                uri,
                headers,
                version,
            },
            settings,
        }
    }

    fn sender<'a>(&'a self, head: &'a Head) -> Option<&'a str> {
        let default = match self.base.version {
            Version::V1 | Version::V2 => Some(Settings::SYSTEM_SENDER),
            Version::V3 => None,
        };
        let ours = self.settings.sender.as_deref().or(default);
        head.sender.as_deref().or(ours)
    }

    /// The members that all calls of a job share, up to the first one that differs.
    fn common(&self, head: &Head) -> Vec<u8> {
        let options = &head.options;
        let flag = |on: Option<bool>| u8::from(on.unwrap_or_default());
        let (no_persist, sync_once) = (flag(options.online_only), flag(options.sync_once));
        // Integers: a boolean would be refused. Version 3 has no `red_dot`.
        let header = match self.base.version {
            Version::V1 | Version::V2 => format!(
                r#"{{"no_persist":{no_persist},"red_dot":{},"sync_once":{sync_once}}}"#,
                flag(options.unread.or(Some(true)))
            ),
            Version::V3 => format!(r#"{{"no_persist":{no_persist},"sync_once":{sync_once}}}"#),
        };
        let mut body = format!(r#"{{"header":{header},"from_uid":"#).into_bytes();
        json::push_string(&mut body, self.sender(head).unwrap_or_default());
        if let Some(expire) = options.expire_seconds.filter(|expire| *expire > 0) {
            let expire = format!(r#","expire":{expire}"#);
            body.extend_from_slice(expire.as_bytes());
        }
        let payload = STANDARD.encode(payload(&head.content));
        body.extend_from_slice(format!(r#","payload":"{payload}","#).as_bytes());
        body
    }
}

impl Target for WukongIm {
    fn profile(&self) -> &Profile {
        &self.profile
    }

    fn maps(&self, feature: Feature) -> Mapping {
        match feature {
            Feature::Text => Mapping::Exact("type 1"),
            Feature::Custom | Feature::Raw => Mapping::Exact("the payload"),
            Feature::Users
            | Feature::Sender
            | Feature::OnlineOnly
            | Feature::Unread
            | Feature::NotUnread
            | Feature::SyncOnce
            | Feature::Expire => Mapping::Exact("as named"),
            _ => Mapping::Refused("WuKongIM has no such field"),
        }
    }

    fn check(&self, head: &Head) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut problem = |field: &str, what: String| problems.push(Problem::new(field, what));
        let size = payload(&head.content).len();
        if size > PAYLOAD_BYTES_MAX {
            let what = format!("{size} bytes, WuKongIM clients take at most {PAYLOAD_BYTES_MAX}");
            problem("message", what);
        }
        if self
            .sender(head)
            .is_none_or(|sender| sender.trim().is_empty())
        {
            let what = "WuKongIM needs a sender; name one in the job or in the target's settings";
            problem("sender", what.into());
        }
        if self.settings.packed && head.options.expire_seconds.is_some_and(|expire| expire > 0) {
            let what = "a packed call cannot carry it; use a target with `packed` off";
            problem("options.expire_seconds", what.into());
        }
        let options = &head.options;
        if self.base.version == Version::V3
            && options.online_only == Some(true)
            && options.sync_once != Some(true)
        {
            let what = "WuKongIM 3 delivers such a message to nobody unless `sync_once` is set too";
            problem("options.online_only", what.into());
        }
        problems
    }

    fn open(&self, head: &Arc<Head>) -> Box<dyn Calls> {
        let mut before = self.common(head);
        if self.settings.packed {
            before.extend_from_slice(br#""subscribers":["#);
            return Box::new(Packed {
                base: self.base.clone(),
                before,
            });
        }
        before.extend_from_slice(PERSON.as_bytes());
        before.extend_from_slice(br#","client_msg_no":"#);
        json::push_string(&mut before, &head.client_msg_no);
        let per_recipient = self.settings.client_msg_no == ClientMsgNo::PerRecipient;
        if per_recipient {
            // The digits go inside the quotes.
            before.pop();
            before.push(b'-');
        }
        Box::new(Single {
            base: self.base.clone(),
            before,
            per_recipient,
        })
    }
}

/// The payload before base64.
fn payload(content: &Content) -> Cow<'_, [u8]> {
    match content {
        Content::Text(text) => {
            let mut payload = br#"{"type":1,"content":"#.to_vec();
            json::push_string(&mut payload, text);
            payload.push(b'}');
            payload.into()
        }
        Content::Custom(data) | Content::Raw(data) => data.get().as_bytes().into(),
        content => serde_json::to_vec(&content.document())
            .unwrap_or_default()
            .into(),
    }
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
    fn refusal(&self, status: u16, said: Option<String>, reply: &Reply) -> Answer {
        let class = match status {
            // Without words of WuKongIM's own nobody there has looked for anything.
            404 if said.is_none() => Class::Config,
            status => code::status(self.version, status),
        };
        let text = said.unwrap_or_else(|| excerpt(&reply.body));
        Answer::new(class, status.to_string(), text).retry_after(retry_after(&reply.headers))
    }
}

/// `/message/send`: one recipient a call.
struct Single {
    base: Base,
    /// The body up to the digits of the recipient, or up to the end of the `client_msg_no`.
    before: Vec<u8>,
    per_recipient: bool,
}

impl Calls for Single {
    fn request(&self, recipients: &[&str]) -> Request {
        debug_assert_eq!(recipients.len(), 1, "one recipient a call is declared");
        let recipient = recipients.first().copied().unwrap_or_default();
        const KEY: &[u8] = br#","channel_id":"#;
        // Exact for all but recipients that need escapes; then nothing is moved.
        let digits = if self.per_recipient { 17 } else { 0 };
        let length = self.before.len() + digits + KEY.len() + recipient.len() + 3;
        let mut body = Vec::with_capacity(length);
        body.extend_from_slice(&self.before);
        if self.per_recipient {
            // The channel tells recipients apart on the server; this is for the sender's devices.
            json::push_hex(&mut body, &json::short_hash(recipient));
            body.push(b'"');
        }
        body.extend_from_slice(KEY);
        json::push_string(&mut body, recipient);
        body.push(b'}');
        self.base.request(body)
    }

    fn read(&self, _recipients: &[&str], reply: &Reply) -> Verdict {
        Verdict::All(self.base.read_single(reply))
    }
}

/// What `/message/send` answers in all versions: `{"status":200,"data":{…}}`, a flat `reason`,
/// `{"msg":…,"status":400}`, `{"error":…}`. The content type is not looked at: 2.x sets it wrongly
/// on some errors.
#[derive(Deserialize)]
struct Sent {
    status: Option<u16>,
    reason: Option<i64>,
    msg: Option<String>,
    error: Option<String>,
}

impl Base {
    fn read_single(&self, reply: &Reply) -> Answer {
        let sent = serde_json::from_slice::<Sent>(&reply.body).ok();
        if !(200..300).contains(&reply.status) {
            let said = sent.and_then(|sent| sent.error.or(sent.msg));
            return self.refusal(reply.status, said, reply);
        }
        match sent {
            Some(Sent {
                reason: Some(code), ..
            }) => code::reason(code),
            // "Not found" comes as 200 with another status inside.
            Some(Sent {
                status: Some(status),
                msg,
                error,
                ..
            }) => match status {
                200 => Answer::done(),
                // It is a success by its own words, if an odd one.
                201..300 => unreadable(&reply.body),
                status => self.refusal(status, Some(error.or(msg).unwrap_or_default()), reply),
            },
            _ => unreadable(&reply.body),
        }
    }
}

/// `/message/sendbatch`: many recipients a call.
struct Packed {
    base: Base,
    /// The body up to the first recipient.
    before: Vec<u8>,
}

impl Calls for Packed {
    fn request(&self, recipients: &[&str]) -> Request {
        let length: usize = recipients.iter().map(|recipient| recipient.len() + 3).sum();
        let mut body = Vec::with_capacity(self.before.len() + length + 1);
        body.extend_from_slice(&self.before);
        for (index, recipient) in recipients.iter().enumerate() {
            if index > 0 {
                body.push(b',');
            }
            json::push_string(&mut body, recipient);
        }
        body.extend_from_slice(b"]}");
        self.base.request(body)
    }

    fn read(&self, recipients: &[&str], reply: &Reply) -> Verdict {
        let sent = serde_json::from_slice::<SentBatch<'_>>(&reply.body).ok();
        if !(200..300).contains(&reply.status) {
            // There is nothing to be found or not found in a batch: 404 means there is no such call.
            let said = sent.and_then(|sent| sent.error.or(sent.msg));
            let said = said.filter(|_| reply.status != 404);
            return Verdict::All(self.base.refusal(reply.status, said, reply));
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
                Verdict::All(self.base.refusal(status, said, reply))
            }
            _ => Verdict::All(unreadable(&reply.body)),
        }
    }
}

/// What it means that a batch names a uid. 2.x names only those that no server takes; 1.x stores at
/// once and names also those it could not store now.
fn failure(uid: &str, reason: String) -> Answer {
    if uid.contains(ILLEGAL_IN_UID) {
        Answer::new(Class::Permanent, "illegal_uid", reason)
    } else {
        Answer::new(Class::Transient, "fail_uid", reason)
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
