//! Builds calls and reads their replies.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Uri};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use super::content::{NOTICE, Said};
use super::directory::Users;
use super::login::TokenLogin;
use super::native::{self, Native};
use super::reply::{self, Refusal};
use super::{GROUP_SESSION, NOTIFICATION_SESSION, OPERATION_ID, Session, Settings};
use crate::codec::push_hex;
use crate::domain::fields::Problem;
use crate::domain::mapping::{Feature, Mapping};
use crate::domain::message::{Push, plain_text};
use crate::domain::message_id::MessageId;
use crate::domain::outcome::{Class, RefusalKind, TargetAnswer, Verdict};
use crate::domain::slice::{Addressed, Head};
use crate::im::json;
use crate::im::reading::BAD_REPLY;
use crate::ports::{Calls, Directory, HttpReply, Login, Probed, Profile, Recall, Request, Target};

/// One OpenIM account as a target.
pub struct OpenIm {
    settings: Settings,
    profile: Profile,
    endpoints: Arc<Endpoints>,
    login: Option<Arc<TokenLogin>>,
    users: Users,
}

/// The parts that all calls to an account have in common.
pub(super) struct Endpoints {
    pub(super) send: Uri,
    pub(super) batch: Uri,
    pub(super) check: Uri,
    pub(super) headers: HeaderMap,
}

/// The default group type of a job, which has no special meaning.
const ANY_GROUP: u8 = 2;

impl OpenIm {
    pub(super) fn new(
        settings: Settings,
        endpoints: Endpoints,
        login: Option<TokenLogin>,
        users: Uri,
    ) -> Self {
        let login = login.map(Arc::new);
        let ours = [Some(settings.admin_user.clone()), settings.sender.clone()];
        Self {
            profile: Profile {
                recipients_per_call: if settings.packed {
                    settings.recipients_per_call
                } else {
                    1
                },
                left_out: ours.into_iter().flatten().collect(),
                ..Profile::default()
            },
            users: Users {
                uri: users,
                headers: endpoints.headers.clone(),
                login: login.clone(),
            },
            endpoints: Arc::new(endpoints),
            login,
            settings,
        }
    }

    fn said<'a>(
        &self,
        head: &'a Head,
        native: &Native<'a>,
        problems: &mut Vec<Problem>,
    ) -> Option<Said<'a>> {
        let name = self.settings.notice_name.as_deref();
        Said::of(head, native, name.unwrap_or(self.sender(head)), problems)
    }

    /// The members that all calls of a job share, up to the first that differs.
    fn common(&self, head: &Head, native: &Native<'_>, said: Option<&Said<'_>>) -> Vec<u8> {
        let content_type = said.map_or(0, |said| said.content_type);
        let session = match head.addressed {
            Addressed::Groups(_) => GROUP_SESSION,
            Addressed::Users if content_type == NOTICE => NOTIFICATION_SESSION,
            Addressed::Users => self.settings.session.number(),
        };
        let options = &head.options;
        let push = options.push.as_ref();
        let ex = match &options.extension {
            Some(extension) => plain_text(extension),
            None => json!({"app": head.app, "client_msg_no": head.client_msg_no}).to_string(),
        };
        let mut members: Vec<(&str, Vec<u8>)> = vec![
            ("sendID", bytes(&self.sender(head))),
            ("sessionType", bytes(&session)),
            ("contentType", bytes(&content_type)),
            ("content", said.map_or("{}", |said| &said.content).into()),
        ];
        if options.online_only == Some(true) {
            members.push(("isOnlineOnly", bytes(&true)));
        }
        if push.is_some_and(|push| push.enabled == Some(false)) {
            members.push(("notOfflinePush", bytes(&true)));
        }
        if let Some(info) = push.and_then(push_info) {
            members.push(("offlinePushInfo", bytes(&info)));
        }
        members.push(("ex", bytes(&ex)));
        for (name, value) in native {
            let value = value.get().as_bytes().to_vec();
            match members.iter_mut().find(|(ours, _)| ours == name) {
                // The content already contains these two.
                Some(("content" | "contentType", _)) => {}
                Some((_, ours)) => *ours = value,
                None => members.push((name, value)),
            }
        }
        let mut body = Vec::with_capacity(256);
        for (name, value) in members {
            body.push(if body.is_empty() { b'{' } else { b',' });
            json::push_string(&mut body, name);
            body.push(b':');
            body.extend_from_slice(&value);
        }
        body
    }
}

fn bytes(value: &impl serde::Serialize) -> Vec<u8> {
    let mut bytes = Vec::new();
    json::push(&mut bytes, value);
    bytes
}

/// The push that offline devices show; `None` for the server's default.
fn push_info(push: &Push) -> Option<Map<String, Value>> {
    let text = |text: &Option<String>| text.clone().map(Value::from);
    let payload = push.payload.as_ref().map(|it| plain_text(it).into());
    let info: Map<_, _> = [
        ("title", text(&push.title)),
        ("desc", text(&push.text)),
        ("ex", payload),
        ("iOSPushSound", text(&push.sound)),
        ("iOSBadgeCount", push.badge.map(Value::from)),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name.to_owned(), value?)))
    .collect();
    (!info.is_empty()).then_some(info)
}

impl Target for OpenIm {
    fn profile(&self) -> &Profile {
        &self.profile
    }

    fn own_sender(&self) -> Option<&str> {
        self.settings.sender.as_deref()
    }

    fn maps(&self, feature: Feature) -> Mapping {
        use Mapping::{Approximate, Exact, Refused};
        let packed = self.settings.packed;
        match feature {
            Feature::Text => Exact("101"),
            Feature::Image => Approximate("102 without `name`; `md5` is the `uuid`"),
            Feature::Audio => Approximate("103 without `name`, in seconds; `md5` is the `uuid`"),
            Feature::Video => Approximate("104 without `name`, in seconds; `md5` is the `uuid`"),
            Feature::File => Approximate("105; `md5` is the `uuid`"),
            Feature::Mention => Exact("106"),
            Feature::Custom => Exact("110, `data` as a text"),
            Feature::Raw => Exact("`contentType` and `content`"),
            Feature::Location => Refused("OpenIM takes no location over HTTP; send it as `custom`"),
            Feature::Notice => match self.settings.session {
                Session::Notification => Approximate("1400, a notice of the sender"),
                Session::Single => {
                    Refused("only notification accounts send notices; set `session` of the target")
                }
            },
            Feature::Native => Exact("fields of the request"),
            Feature::Users | Feature::Sender => Exact("as named"),
            Feature::Groups if packed => {
                Refused("a packed call reaches users only; use a target with `packed` off")
            }
            Feature::Groups => Exact("`sessionType` 3"),
            Feature::All => Exact("`/user/get_users`, page by page"),
            Feature::OnlineOnly => Exact("`isOnlineOnly`"),
            Feature::Unread | Feature::SenderSense => Exact("always so"),
            Feature::NotUnread => Refused("OpenIM counts every message as unread"),
            Feature::SenderNoSense => {
                Refused("OpenIM shows every message to its sender; let a notification account send")
            }
            Feature::NoPush => Exact("`notOfflinePush`"),
            Feature::PushTitle
            | Feature::PushText
            | Feature::PushPayload
            | Feature::PushSound
            | Feature::PushBadge
            | Feature::NoPushBadge => Exact("`offlinePushInfo`"),
            Feature::Extension => Exact("`ex`, in the place of `client_msg_no`"),
            Feature::KeepIds => Exact("`clientMsgID`; a batch gives all its messages the same"),
            Feature::SyncOnce
            | Feature::Expire
            | Feature::ReceiverNoSense
            | Feature::PushForced
            | Feature::NoRoute
            | Feature::RouteEnvironment
            | Feature::NoModeration
            | Feature::ModerationRules => Refused("OpenIM has no such field"),
        }
    }

    fn check(&self, head: &Head) -> Vec<Problem> {
        let native = native::parse(head.native.as_deref());
        let mut problems = native::problems(&native);
        if problems.is_empty() {
            let said = self.said(head, &native, &mut problems);
            let groups = head.addressed != Addressed::Users;
            let is_notice = said.as_ref().is_some_and(|it| it.content_type == NOTICE);
            if native.contains_key(native::SESSION_TYPE) && (groups || is_notice) {
                let what =
                    "messages to groups and notices have a session of their own; leave it out";
                problems.push(Problem::new("message.native.sessionType", what));
            }
            if groups && is_notice {
                let what = "OpenIM sends notices to users only";
                problems.push(Problem::new("message.type", what));
            }
            problems.extend(said.iter().flat_map(Said::problems));
        }
        if self.sender(head).trim().is_empty() {
            let what = "OpenIM needs a sender; name one in the job or in the target's settings";
            problems.push(Problem::new("sender", what));
        }
        if let Addressed::Groups(kind) = head.addressed
            && kind != ANY_GROUP
        {
            let what = "OpenIM has one kind of group; leave it out";
            problems.push(Problem::new("audience.group_type", what));
        }
        problems
    }

    fn refusal_kind(&self, code: &str) -> RefusalKind {
        super::code::refusal_kind(code)
    }

    fn open(&self, head: &Arc<Head>) -> Box<dyn Calls> {
        let native = native::parse(head.native.as_deref());
        let said = self.said(head, &native, &mut Vec::new());
        Box::new(OpenImCalls {
            before: self.common(head, &native, said.as_ref()),
            endpoints: Arc::clone(&self.endpoints),
            job: head.id.to_string(),
            to: match head.addressed {
                Addressed::Users => br#","recvID":"#,
                Addressed::Groups(_) => br#","groupID":"#,
            },
            packed: self.settings.packed,
            keep_ids: head.keep_ids,
            notice: said.is_some_and(|said| said.content_type == NOTICE),
        })
    }

    fn recall(&self) -> Result<&dyn Recall, &'static str> {
        Err(
            "OpenIM recalls a message by its number in the conversation (`seq`), which its send calls do not \
             return",
        )
    }

    fn login(&self) -> Option<&dyn Login> {
        self.login.as_deref().map(|login| login as &dyn Login)
    }

    fn directory(&self) -> Option<&dyn Directory> {
        Some(&self.users)
    }
}

/// The calls of one job.
struct OpenImCalls {
    endpoints: Arc<Endpoints>,
    job: String,
    /// The body up to the first recipient.
    before: Vec<u8>,
    /// The field name of a single recipient.
    to: &'static [u8],
    packed: bool,
    keep_ids: bool,
    notice: bool,
}

impl OpenImCalls {
    fn operation(&self, recipients: &[&str]) -> HeaderValue {
        let mut id = Vec::with_capacity(self.job.len() + 33);
        id.extend_from_slice(self.job.as_bytes());
        id.push(b'-');
        push_hex(&mut id, &json::digest::<16>(recipients));
        operation_value(id.into())
    }

    fn call(&self, uri: &Uri, recipients: &[&str], body: impl Into<Bytes>) -> Request {
        let mut headers = self.endpoints.headers.clone();
        headers.insert(OPERATION_ID, self.operation(recipients));
        Request {
            method: Method::POST,
            uri: uri.clone(),
            headers,
            body: body.into(),
        }
    }
}

#[expect(
    clippy::expect_used,
    reason = "a job id, a hyphen and hexadecimal digits"
)]
fn operation_value(id: Bytes) -> HeaderValue {
    HeaderValue::from_maybe_shared(id).expect("a header value")
}

impl Calls for OpenImCalls {
    fn request(&self, recipients: &[&str]) -> Request {
        let length: usize = recipients.iter().map(|recipient| recipient.len() + 3).sum();
        let mut body = Vec::with_capacity(self.before.len() + length + 16);
        body.extend_from_slice(&self.before);
        // A single send returns the reason of a failure.
        if let [recipient] = recipients {
            body.extend_from_slice(self.to);
            json::push_string(&mut body, recipient);
            body.push(b'}');
            return self.call(&self.endpoints.send, recipients, body);
        }
        body.extend_from_slice(br#","recvIDs":["#);
        for (index, recipient) in recipients.iter().enumerate() {
            if index > 0 {
                body.push(b',');
            }
            json::push_string(&mut body, recipient);
        }
        body.extend_from_slice(b"]}");
        self.call(&self.endpoints.batch, recipients, body)
    }

    fn read_reply(&self, recipients: &[&str], reply: &HttpReply) -> Verdict {
        if let [_] = recipients {
            Verdict::All(self.read_single(reply))
        } else {
            self.read_batch(recipients, reply)
        }
    }

    /// A batch leaves no note that could be asked for, and neither do its recipients when they are
    /// called alone later: if the server notes no send to one of them, a batch may still have
    /// reached it.
    fn probe(&self, recipients: &[&str]) -> Option<Request> {
        (!self.packed).then(|| self.call(&self.endpoints.check, recipients, "{}"))
    }

    fn read_probe(&self, _recipients: &[&str], reply: &HttpReply) -> Probed {
        #[derive(Deserialize)]
        struct Status {
            /// Go may omit a zero.
            #[serde(default)]
            status: i64,
        }
        match reply::data::<Status>(reply) {
            Ok(Status { status: 0 }) => Probed::NotSent,
            // It names no message.
            Ok(Status { status: 2 }) => Probed::Sent(None),
            // 1 is sending, 3 failed; current servers return neither.
            Ok(_) | Err(_) => Probed::Unknown,
        }
    }
}

impl OpenImCalls {
    fn read_single(&self, reply: &HttpReply) -> TargetAnswer {
        match reply::data::<IgnoredAny>(reply) {
            Ok(_) if self.keep_ids => TargetAnswer::done_as(Sent::in_reply(reply)),
            Ok(_) => TargetAnswer::done(),
            Err(refusal) => self.blame(refusal.into()),
        }
    }

    /// Before it sends a notice, the server looks up only the sender.
    fn blame(&self, mut answer: TargetAnswer) -> TargetAnswer {
        if self.notice && answer.code == "err_1101" {
            answer.class = Class::Config;
        }
        answer
    }

    fn read_batch(&self, recipients: &[&str], reply: &HttpReply) -> Verdict {
        let sent = match reply::data::<SendReply<'_>>(reply) {
            Ok(sent) => sent,
            // The server's own errors all come before the first send; later errors only list users.
            Err(Refusal::Said(answer)) => {
                return Verdict::All(self.blame(reply::harmless(answer)));
            }
            Err(Refusal::Other(answer)) => return Verdict::All(answer),
        };
        let results = sent.results.unwrap_or_default();
        let done = results.into_iter().map(|it| (it.recipient.clone(), it));
        let done: HashMap<_, _> = done.collect();
        let failed = sent.failed.unwrap_or_default();
        let failed: HashSet<_> = failed.into_iter().map(|Text(it)| it).collect();
        let answer = |recipient: &&str| {
            let sent = done.get(*recipient);
            match (sent, failed.contains(*recipient)) {
                (Some(sent), false) if self.keep_ids => TargetAnswer::done_as(sent.message()),
                (Some(_), false) => TargetAnswer::done(),
                (None, true) => {
                    let text = "OpenIM names it as failed and gives no reason";
                    TargetAnswer::new(Class::Transient, "failed", text).split()
                }
                (None, false) | (Some(_), true) => {
                    let text = "the reply does not say what became of it";
                    TargetAnswer::new(Class::Uncertain, BAD_REPLY, text)
                }
            }
        };
        let answers: Vec<_> = recipients.iter().map(answer).collect();
        if !self.keep_ids && answers.iter().all(|answer| answer.class == Class::Done) {
            Verdict::All(TargetAnswer::done())
        } else {
            Verdict::Each(answers)
        }
    }
}

/// The reply to `/msg/batch_send_msg`. An empty list is `null`.
#[derive(Deserialize)]
struct SendReply<'a> {
    #[serde(borrow)]
    results: Option<Vec<SentTo<'a>>>,
    #[serde(borrow, rename = "failedUserIDs")]
    failed: Option<Vec<Text<'a>>>,
}

#[derive(Deserialize)]
struct SentTo<'a> {
    #[serde(borrow, rename = "recvID")]
    recipient: Cow<'a, str>,
    #[serde(borrow, rename = "clientMsgID")]
    id: Option<Cow<'a, str>>,
    #[serde(rename = "sendTime")]
    at_ms: Option<u64>,
}

impl SentTo<'_> {
    fn message(&self) -> Option<MessageId> {
        MessageId::new(self.id.as_deref()?, self.at_ms)
    }
}

/// The reply to `/msg/send_msg`.
#[derive(Deserialize)]
struct Sent {
    #[serde(rename = "clientMsgID")]
    id: Option<String>,
    #[serde(rename = "sendTime")]
    at_ms: Option<u64>,
}

impl Sent {
    /// The id in a reply that is a success.
    fn in_reply(reply: &HttpReply) -> Option<MessageId> {
        let sent = reply::data::<Self>(reply).ok()?;
        MessageId::new(sent.id?, sent.at_ms)
    }
}

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
