//! Builds calls and reports parts of a job that they cannot carry.
//!
//! The bytes of a call depend only on the job and the recipients; only the signature is new on
//! every attempt.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, Method, Uri};
use serde_json::value::RawValue;

use super::recall::Recalls;
use super::{Settings, reply};
use crate::codec::push_percent;
use crate::domain::fields::Problem;
use crate::domain::mapping::{Feature, Mapping};
use crate::domain::message::{Content, plain_text};
use crate::domain::outcome::{RefusalKind, Verdict};
use crate::domain::slice::{Addressed, Head};
use crate::im::json;
use crate::im::netease::account::{Account, length, request_id};
use crate::im::netease::content::{Names, Object, number, text};
use crate::im::netease::job::{badge, check_badge, check_native, check_sender, native};
use crate::ports::{Calls, HttpReply, Profile, Recall, Request, Signing, Target};

pub(super) const TRACE_ID: HeaderName = HeaderName::from_static("x-custom-traceid");

const NAMES: Names = Names {
    width: "width",
    height: "height",
    duration: "duration",
    longitude: "longitude",
    latitude: "latitude",
};

/// The kinds of conversation: with a user, in a team, in a large team.
pub(super) const USER: u8 = 1;
const TEAMS: [u8; 2] = [2, 3];

/// Fields that a job cannot set: sender and recipients.
const OURS: [&str; 3] = ["sender_id", "receiver_ids", "conversation_id"];

/// The id of a message in a single call.
const MESSAGE_ID: &str = "message_client_id";

/// One application as a target.
pub struct Yunxin {
    settings: Settings,
    profile: Profile,
    account: Arc<Account>,
    batch: Uri,
    recalls: Recalls,
}

impl Yunxin {
    pub(super) fn new(settings: Settings, account: Arc<Account>) -> Self {
        let single = settings.single;
        Self {
            profile: Profile {
                recipients_per_call: if single {
                    1
                } else {
                    settings.recipients_per_call
                },
                idempotent: single || settings.trust_request_id,
                limit: Some(if single {
                    Settings::SINGLE_LIMIT
                } else {
                    Settings::BATCH_LIMIT
                }),
                folds_case: true,
                ..Profile::default()
            },
            batch: account.uri("/im/v2/conversations/messages"),
            recalls: Recalls::new(Arc::clone(&account), &settings),
            account,
            settings,
        }
    }

    /// The kind of conversation that single calls of a job go to; `None` for batches.
    fn conversations(&self, head: &Head) -> Option<u8> {
        match head.addressed {
            Addressed::Groups(kind) => Some(kind),
            Addressed::Users => self.settings.single.then_some(USER),
        }
    }
}

impl Target for Yunxin {
    fn profile(&self) -> &Profile {
        &self.profile
    }

    fn maps(&self, feature: Feature) -> Mapping {
        use Mapping::{Approximate, Exact, Refused};
        match feature {
            Feature::Text => Exact("type 0"),
            Feature::Image => Approximate("type 1, without `cover`"),
            Feature::Audio => Exact("type 2"),
            Feature::Video => Approximate("type 3, without `cover`"),
            Feature::Location => Exact("type 4"),
            Feature::File => Exact("type 6"),
            Feature::Notice => Exact("type 10"),
            Feature::Mention => Approximate("type 0, the text; nobody is notified"),
            Feature::Custom => Exact("type 100"),
            Feature::Raw => Exact("the `message` object"),
            Feature::Native => Exact("members of the body"),
            Feature::Users => Exact("batches, or conversations of type 1"),
            Feature::Groups => Exact("conversations of type 2 or 3"),
            Feature::All => Refused("Yunxin cannot list accounts; give a list"),
            Feature::Sender => Exact("`sender_id`"),
            Feature::OnlineOnly => {
                Approximate("`message_config`: not stored, no roaming, no history")
            }
            Feature::Unread | Feature::NotUnread => Exact("`unread_enabled`"),
            Feature::SyncOnce => Refused("Yunxin has no such messages over this call"),
            Feature::Expire => Refused("Yunxin keeps messages for as long as the plan says"),
            Feature::SenderNoSense => Exact("`sender_no_sense`, the default"),
            Feature::SenderSense => Exact("`sender_no_sense` false"),
            Feature::ReceiverNoSense => Exact("`receiver_no_sense`, with `sender_no_sense` false"),
            Feature::NoPush => Exact("`push_enabled`"),
            Feature::PushText => Exact("`push_content`"),
            Feature::PushPayload => Exact("`push_payload`"),
            Feature::PushTitle | Feature::PushSound => {
                Refused("Yunxin takes it in `push.payload`, by the rules of each push service")
            }
            Feature::PushBadge | Feature::NoPushBadge => {
                Approximate("`unread_enabled`, the unread count")
            }
            Feature::PushForced => Approximate("`push_forcepush_all`, meant for teams"),
            Feature::NoRoute => Exact("`route_enabled`"),
            Feature::RouteEnvironment => Exact("`route_environment`"),
            Feature::NoModeration => Exact("`antispam_enabled`"),
            Feature::ModerationRules => Exact("`antispam_business_id`"),
            Feature::Extension => Exact("`extension`"),
            Feature::KeepIds => Exact("`message_server_id`"),
        }
    }

    fn check(&self, head: &Head) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut problem = |field: &str, what: String| problems.push(Problem::new(field, what));
        check_sender(self.sender(head), &mut problem);
        if let Addressed::Groups(kind) = head.addressed
            && !TEAMS.contains(&kind)
        {
            let what =
                format!("{kind} is no kind of group of Yunxin's: 2 is a team, 3 a large one");
            problem("audience.group_type", what);
        }
        check_badge(head, &mut problem);
        let options = &head.options;
        if options.receiver_no_sense == Some(true) && options.sender_no_sense != Some(false) {
            let what = "Yunxin refuses a message that neither side would sense; \
                        set `options.sender_no_sense` to false";
            problem("options.receiver_no_sense", what.to_owned());
        }
        if let Some(push) = &options.push {
            let payload = push.payload.as_deref().map(plain_text);
            for (field, value, most) in [
                (
                    "options.push.text",
                    push.text.as_deref(),
                    self.settings.push_text_length_max,
                ),
                (
                    "options.push.payload",
                    payload.as_deref(),
                    self.settings.push_payload_length_max,
                ),
            ] {
                let long = value.map_or(0, length);
                if long > most {
                    problem(
                        field,
                        format!("{long} characters, Yunxin takes at most {most}"),
                    );
                }
            }
        }
        check_native(head, &OURS, &mut problem);
        self.check_message(head, &mut problem);
        problems
    }

    fn refusal_kind(&self, code: &str) -> RefusalKind {
        super::code::refusal_kind(code)
    }

    fn own_sender(&self) -> Option<&str> {
        self.settings.sender.as_deref()
    }

    fn sender_at_fault<'a>(&'a self, head: &'a Head, code: &str) -> Option<&'a str> {
        (code == super::code::FORBIDDEN).then(|| self.sender(head))
    }

    fn open(&self, head: &Arc<Head>) -> Box<dyn Calls> {
        let account = Arc::clone(&self.account);
        let (job, keep_ids) = (head.id.to_string(), head.keep_ids);
        let message = message(head).unwrap_or(Cow::Borrowed("{}"));
        let mut members = Vec::new();
        for (name, value) in members_of(head) {
            members.push(b',');
            json::push_string(&mut members, &name);
            members.push(b':');
            members.extend_from_slice(value.as_bytes());
        }
        let Some(kind) = self.conversations(head) else {
            let mut before = br#"{"sender_id":"#.to_vec();
            json::push_string(&mut before, self.sender(head));
            before.extend_from_slice(br#","message":"#);
            before.extend_from_slice(message.as_bytes());
            before.extend_from_slice(&members);
            before.extend_from_slice(br#","receiver_ids":"#);
            let uri = self.batch.clone();
            return Box::new(Batch {
                account,
                uri,
                block: self.settings.block,
                job,
                keep_ids,
                before,
            });
        };
        let mut path = b"/im/v2/conversations/".to_vec();
        push_percent(
            &mut path,
            format!("{}|{kind}|", self.sender(head)).as_bytes(),
        );
        Box::new(Single {
            account,
            path,
            block: self.settings.single_block,
            job,
            keep_ids,
            before: up_to_message_id(&message),
            after: members,
        })
    }

    fn recipients_per_call(&self, head: &Head) -> usize {
        match self.conversations(head) {
            Some(_) => 1,
            None => self.profile.recipients_per_call,
        }
    }

    fn recall(&self) -> Result<&dyn Recall, &'static str> {
        Ok(&self.recalls)
    }

    /// Looks up an account that nobody has: the answer shows whether key and secret are accepted.
    fn identify(&self) -> Option<Request> {
        let users = self
            .account
            .uri("/im/v2/accounts?account_ids=fanwise-doctor");
        let id = request_id("fanwise-doctor", &[]);
        let mut request = self.account.request(users, &TRACE_ID, &id, Vec::new());
        request.method = Method::GET;
        Some(request)
    }

    fn read_identity(&self, reply: &HttpReply) -> Result<String, String> {
        reply::identity(reply)
    }

    fn sign(&self, request: &mut Request, signing: Signing) {
        self.account.sign(request, signing);
    }
}

impl Yunxin {
    fn check_message(&self, head: &Head, problem: &mut impl FnMut(&str, String)) {
        let native = native(head).remove("message");
        let field = match (&head.content, &native) {
            (_, Some(_)) => "message.native.message",
            (Content::Native, None) => {
                let what = "without another message, `message` must be among the fields";
                return problem("message.native", what.to_owned());
            }
            (Content::Text(_) | Content::Notice(_) | Content::Mention { .. }, None) => {
                "message.text"
            }
            _ => "message.data",
        };
        let most = self.settings.text_length_max;
        let long = text(&head.content).map_or(0, length);
        if native.is_none() && long > most {
            problem(
                field,
                format!("{long} characters, Yunxin takes at most {most}"),
            );
        }
        let own = native.as_deref().or(match &head.content {
            Content::Raw(data) => Some(&**data),
            _ => None,
        });
        // Only the target sets the ids of messages.
        match own.map(object) {
            Some(None) => problem(field, "a JSON object is expected".to_owned()),
            Some(Some(members)) if members.contains_key(MESSAGE_ID) => {
                let what = format!("`{MESSAGE_ID}` is not for a job to set");
                problem(field, what);
            }
            Some(Some(_)) => {}
            None => {
                if let Content::Custom(data) = &head.content
                    && object(data).is_none()
                {
                    problem(field, "Yunxin takes a JSON object only".to_owned());
                }
            }
        }
    }
}

fn object(json: &RawValue) -> Option<BTreeMap<String, Box<RawValue>>> {
    serde_json::from_str(json.get()).ok()
}

/// The `message` of a call; `None` if the job has none.
fn message(head: &Head) -> Option<Cow<'_, str>> {
    if let Some(message) = native(head).remove("message") {
        return Some(Cow::Owned(message.get().to_owned()));
    }
    if let Content::Raw(data) = &head.content {
        return Some(Cow::Borrowed(data.get()));
    }
    let mut message = Object::new();
    message.member("message_type", number(&head.content)?);
    message.some("text", text(&head.content));
    let mut message = message.close();
    if let Some(attachment) = NAMES.object(&head.content) {
        // The attachment is JSON already.
        message.pop();
        message.push_str(r#","attachment":"#);
        message.push_str(&attachment);
        message.push('}');
    }
    Some(Cow::Owned(message))
}

/// The further members of a body, each as JSON. A native member replaces the whole member.
fn members_of(head: &Head) -> Vec<(String, String)> {
    let options = &head.options;
    let no = |asked: bool| asked.then_some(false);
    let stored = no(options.online_only == Some(true));
    let mut message_config = Object::new();
    message_config.some("unread_enabled", badge(head));
    message_config.some("offline_enabled", stored);
    message_config.some("history_enabled", stored);
    message_config.some("roaming_enabled", stored);
    let mut route_config = Object::new();
    if let Some(route) = &options.route {
        route_config.some("route_enabled", route.enabled);
        route_config.some("route_environment", route.environment.as_ref());
    }
    let mut push_config = Object::new();
    if let Some(push) = &options.push {
        push_config.some("push_enabled", push.enabled);
        push_config.some("push_content", push.text.as_ref());
        push_config.some("push_payload", push.payload.as_deref().map(plain_text));
        push_config.some("push_forcepush_all", push.forced);
    }
    let mut antispam_config = Object::new();
    if let Some(moderation) = &options.moderation {
        antispam_config.some("antispam_enabled", moderation.enabled);
        antispam_config.some("antispam_business_id", moderation.business_id.as_ref());
    }
    let sender_no_sense = options.sender_no_sense.unwrap_or(true).to_string();
    let receiver_no_sense = options.receiver_no_sense.map(|it| it.to_string());
    let extension = options.extension.as_deref();
    let extension = extension.map(|extension| crate::json::text(&plain_text(extension)));
    let ours = [
        ("message_config", message_config.close_some()),
        ("route_config", route_config.close_some()),
        ("push_config", push_config.close_some()),
        ("antispam_config", antispam_config.close_some()),
        ("sender_no_sense", Some(sender_no_sense)),
        ("receiver_no_sense", receiver_no_sense),
        ("extension", extension),
    ];
    let mut native = native(head);
    native.remove("message");
    let mut members = Vec::new();
    for (name, value) in ours {
        let value = native.remove(name).map(|it| it.get().to_owned()).or(value);
        members.extend(value.map(|value| (name.to_owned(), value)));
    }
    let further = native.into_iter();
    members.extend(further.map(|(name, value)| (name, value.get().to_owned())));
    members
}

/// The beginning of the body of a single call, up to the value of the message's id.
fn up_to_message_id(message: &str) -> Vec<u8> {
    let open = message.trim_end().strip_suffix('}').unwrap_or_default();
    let mut before = br#"{"message":"#.to_vec();
    before.extend_from_slice(open.as_bytes());
    if !open.trim_end().ends_with('{') {
        before.push(b',');
    }
    json::push_string(&mut before, MESSAGE_ID);
    before.push(b':');
    before
}

/// Many users in one call.
struct Batch {
    account: Arc<Account>,
    uri: Uri,
    block: Duration,
    job: String,
    keep_ids: bool,
    /// The body up to the list of recipients.
    before: Vec<u8>,
}

impl Calls for Batch {
    fn request(&self, recipients: &[&str]) -> Request {
        let length: usize = recipients.iter().map(|recipient| recipient.len() + 3).sum();
        let mut body = Vec::with_capacity(self.before.len() + length + 3);
        body.extend_from_slice(&self.before);
        json::push(&mut body, &recipients);
        body.push(b'}');
        let id = request_id(&self.job, recipients);
        self.account.request(self.uri.clone(), &TRACE_ID, &id, body)
    }

    fn read_reply(&self, recipients: &[&str], reply: &HttpReply) -> Verdict {
        reply::batch(recipients, reply, self.block, self.keep_ids)
    }
}

/// One user or one group in each call.
struct Single {
    account: Arc<Account>,
    /// The path up to the recipient.
    path: Vec<u8>,
    block: Duration,
    job: String,
    keep_ids: bool,
    /// The body up to the value of the message's id.
    before: Vec<u8>,
    /// The members after the message.
    after: Vec<u8>,
}

impl Calls for Single {
    fn request(&self, recipients: &[&str]) -> Request {
        debug_assert_eq!(recipients.len(), 1, "one recipient a call is declared");
        let recipient = recipients.first().copied().unwrap_or_default();
        let mut path = self.path.clone();
        push_percent(&mut path, recipient.as_bytes());
        path.extend_from_slice(b"/messages");
        let id = request_id(&self.job, recipients);
        let mut body = Vec::with_capacity(self.before.len() + self.after.len() + 36);
        body.extend_from_slice(&self.before);
        json::push_string(&mut body, &id);
        body.push(b'}');
        body.extend_from_slice(&self.after);
        body.push(b'}');
        let uri = self.account.uri(&String::from_utf8_lossy(&path));
        self.account.request(uri, &TRACE_ID, &id, body)
    }

    fn read_reply(&self, _recipients: &[&str], reply: &HttpReply) -> Verdict {
        reply::single(reply, self.block, self.keep_ids)
    }
}
