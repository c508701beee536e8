//! Builds calls and reports parts of a job that they cannot carry.
//!
//! The bytes of a call depend only on the job and the recipients; only the signature is new on
//! every attempt.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, Uri};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::account::{Account, length, request_id};
use super::content::{Names, Object, number, text};
use super::form::Form;
use super::job::{badge, check_badge, check_native, check_sender, native};
use super::recall::Recalls;
use super::{Settings, code, reply};
use crate::codec::push_percent;
use crate::domain::fields::Problem;
use crate::domain::mapping::{Feature, Mapping};
use crate::domain::message::{Content, plain_text};
use crate::domain::outcome::{Class, RefusalKind, Verdict};
use crate::domain::slice::{Addressed, Head};
use crate::im::json;
use crate::im::reading::excerpt;
use crate::ports::{Calls, HttpReply, Profile, Recall, Request, Signing, Target};

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("requestid");

const NAMES: Names = Names {
    width: "w",
    height: "h",
    duration: "dur",
    longitude: "lng",
    latitude: "lat",
};

/// Longest name of an environment, in UTF-16 units.
const ENV_LENGTH_MAX: usize = 32;

/// The only kind of group that `sendMsg.action` can send to.
const TEAM: u8 = 2;

/// Fields that a job cannot set: sender, recipients, and the field that the size of a call depends
/// on.
const OURS: [&str; 6] = ["fromAccid", "toAccids", "from", "to", "ope", "returnMsgid"];

/// One application as a target.
pub struct NetEase {
    settings: Settings,
    profile: Profile,
    account: Arc<Account>,
    batch: Uri,
    single: Uri,
    users: Uri,
    recalls: Recalls,
}

impl NetEase {
    pub(super) fn new(settings: Settings, per_call: usize, account: Arc<Account>) -> Self {
        Self {
            profile: Profile {
                recipients_per_call: per_call,
                idempotent: settings.trust_request_id,
                limit: Some(Settings::LIMIT),
                folds_case: true,
                ..Profile::default()
            },
            batch: account.uri("/msg/sendBatchMsg.action"),
            single: account.uri("/msg/sendMsg.action"),
            users: account.uri("/user/getUinfos.action"),
            recalls: Recalls::new(Arc::clone(&account), &settings),
            account,
            settings,
        }
    }

    /// The fields that all calls of a job share.
    fn form(&self, head: &Head) -> Form {
        let options = &head.options;
        let mut form = Form::default();
        match head.addressed {
            Addressed::Users => form.set("fromAccid", self.sender(head)),
            Addressed::Groups(_) => {
                form.set("from", self.sender(head));
                form.set("ope", "1");
            }
        }
        if let Some((number, body)) = message(&head.content) {
            form.set("type", number);
            form.set("body", body);
        }
        form.set_some("option", option(head));
        if let Some(push) = &options.push {
            form.set_some("pushcontent", push.text.as_deref());
            form.set_some("payload", push.payload.as_deref().map(plain_text));
        }
        form.set_some("ext", options.extension.as_deref().map(plain_text));
        if let Some(moderation) = &options.moderation {
            form.set_some(
                "useYidun",
                (moderation.enabled == Some(false)).then_some("0"),
            );
            form.set_some("bid", moderation.business_id.as_deref());
        }
        let wants_ids = self.settings.message_ids || head.keep_ids;
        if wants_ids && head.addressed == Addressed::Users {
            form.set("returnMsgid", "true");
        }
        let environment = options
            .route
            .as_ref()
            .and_then(|it| it.environment.as_ref());
        form.set_some("env", environment.map(String::as_str));
        let sensed = options.sender_no_sense == Some(false);
        form.set("msgSenderNoSense", if sensed { "0" } else { "1" });
        for (name, value) in native(head) {
            form.set(&name, plain_text(&value));
        }
        form
    }

    fn check_fields(&self, head: &Head, form: &Form, problem: &mut impl FnMut(&str, String)) {
        let native = native(head);
        let mut problem = |field: &str, name: &str, what: String| match native.contains_key(name) {
            true => problem(&format!("message.native.{name}"), what),
            false => problem(field, what),
        };
        let settings = &self.settings;
        let extension = settings.extension_length_max;
        let (push_text, push_payload) = (
            settings.push_text_length_max,
            settings.push_payload_length_max,
        );
        for (field, name, most) in [
            ("message", "body", settings.body_length_max),
            ("options.extension", "ext", extension),
            ("options.push.payload", "payload", push_payload),
            ("options.push.text", "pushcontent", push_text),
            ("options.route.environment", "env", ENV_LENGTH_MAX),
        ] {
            let long = form.get(name).map_or(0, length);
            if long > most {
                let what = format!("{long} characters of `{name}`, NetEase takes at most {most}");
                problem(field, name, what);
            }
        }
        for (field, name) in [
            ("options.extension", "ext"),
            ("options.push.payload", "payload"),
        ] {
            let json = form.get(name).map(serde_json::from_str::<IgnoredAny>);
            if json.is_some_and(|json| json.is_err()) {
                problem(field, name, format!("NetEase takes `{name}` as JSON only"));
            }
        }
    }
}

/// The members of every reply.
#[derive(Deserialize)]
struct Coded {
    code: i64,
    desc: Option<String>,
}

impl Target for NetEase {
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
            Feature::Raw => Exact("`type` and `body`"),
            Feature::Native => Exact("form fields"),
            Feature::Users => Exact("`sendBatchMsg.action`"),
            Feature::Groups => Exact("teams, `sendMsg.action`"),
            Feature::All => Refused("NetEase cannot list accounts; give a list"),
            Feature::Sender => Exact("`fromAccid`"),
            Feature::OnlineOnly => Approximate("`option`: not stored, no roaming, no history"),
            Feature::Unread | Feature::NotUnread => Exact("`option.badge`"),
            Feature::SyncOnce => Refused("NetEase has no such messages over this call"),
            Feature::Expire => Refused("NetEase keeps messages for as long as the plan says"),
            Feature::SenderNoSense => Exact("`msgSenderNoSense`, the default"),
            Feature::SenderSense => Exact("`msgSenderNoSense` 0"),
            Feature::ReceiverNoSense => Refused("a batch has no such field"),
            Feature::NoPush => Exact("`option.push`"),
            Feature::PushText => Exact("`pushcontent`"),
            Feature::PushPayload => Exact("`payload`"),
            Feature::PushTitle | Feature::PushSound => {
                Refused("NetEase takes it in `push.payload`, by the rules of each push service")
            }
            Feature::PushBadge | Feature::NoPushBadge => {
                Approximate("`option.badge`, which is the unread count")
            }
            Feature::PushForced => Refused("a batch has no such field"),
            Feature::NoRoute => Exact("`option.route`"),
            Feature::RouteEnvironment => Exact("`env`"),
            Feature::NoModeration => Exact("`useYidun` 0"),
            Feature::ModerationRules => Exact("`bid`"),
            Feature::Extension => Exact("`ext`"),
            Feature::KeepIds => Exact("`returnMsgid`, at most 100 recipients a call"),
        }
    }

    fn check(&self, head: &Head) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut problem = |field: &str, what: String| problems.push(Problem::new(field, what));
        check_sender(self.sender(head), &mut problem);
        if let Addressed::Groups(kind) = head.addressed
            && kind != TEAM
        {
            let what = format!("{kind} is no kind of group of NetEase's, which has teams ({TEAM})");
            problem("audience.group_type", what);
        }
        check_badge(head, &mut problem);
        if let Content::Raw(data) = &head.content
            && message(&head.content).is_none()
        {
            let what = format!(
                "an object of `type`, a number, and `body` is expected, not {}",
                excerpt(data.get().as_bytes())
            );
            problem("message.data", what);
        }
        check_native(head, &OURS, &mut problem);
        let form = self.form(head);
        if matches!(head.content, Content::Native)
            && (form.get("type").is_none() || form.get("body").is_none())
        {
            let what = "without another message, `type` and `body` must be among the fields";
            problem("message.native", what.to_owned());
        }
        self.check_fields(head, &form, &mut problem);
        problems
    }

    fn refusal_kind(&self, code: &str) -> RefusalKind {
        code::refusal_kind(code)
    }

    fn own_sender(&self) -> Option<&str> {
        self.settings.sender.as_deref()
    }

    fn sender_at_fault<'a>(&'a self, head: &'a Head, code: &str) -> Option<&'a str> {
        (code == code::FORBIDDEN).then(|| self.sender(head))
    }

    fn open(&self, head: &Arc<Head>) -> Box<dyn Calls> {
        let form = self.form(head);
        let job = head.id.to_string();
        let account = Arc::clone(&self.account);
        match head.addressed {
            Addressed::Users => Box::new(Batch {
                account,
                uri: self.batch.clone(),
                block: self.settings.block,
                job,
                keep_ids: head.keep_ids,
                before: form.encode_up_to("toAccids"),
            }),
            Addressed::Groups(_) => Box::new(Team {
                account,
                uri: self.single.clone(),
                block: self.settings.single_block,
                job,
                keep_ids: head.keep_ids,
                before: form.encode_up_to("to"),
            }),
        }
    }

    fn recipients_per_call(&self, head: &Head) -> usize {
        match head.addressed {
            Addressed::Users if head.keep_ids => {
                let most = Settings::documented_per_call(true);
                self.profile.recipients_per_call.min(most)
            }
            Addressed::Users => self.profile.recipients_per_call,
            Addressed::Groups(_) => 1,
        }
    }

    fn recall(&self) -> Result<&dyn Recall, &'static str> {
        Ok(&self.recalls)
    }

    /// Looks up an empty list of accounts: the answer shows whether key and secret are accepted.
    fn identify(&self) -> Option<Request> {
        let mut body = Form::default().encode_up_to("accids");
        push_percent(&mut body, b"[]");
        let id = request_id("fanwise-doctor", &[]);
        let users = self.users.clone();
        Some(self.account.request(users, &REQUEST_ID, &id, body))
    }

    fn read_identity(&self, reply: &HttpReply) -> Result<String, String> {
        let Ok(Coded { code, desc }) = serde_json::from_slice::<Coded>(&reply.body) else {
            return Err(format!("answers {}, not as NetEase does", reply.status));
        };
        let answer = code::answer(code, desc, Duration::ZERO);
        match answer.class {
            Class::Config => Err(format!(
                "refuses the call: {} {}. Check app key, secret and the clock of this machine",
                answer.code, answer.text
            )),
            // Any other error is about the empty list, so the credential was accepted.
            _ => Ok("takes the app key and secret".to_owned()),
        }
    }

    fn sign(&self, request: &mut Request, signing: Signing) {
        self.account.sign(request, signing);
    }
}

/// `type` and `body`; `None` for contents without a type of their own.
fn message(content: &Content) -> Option<(String, String)> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Raw {
        #[serde(rename = "type")]
        number: u32,
        body: Box<RawValue>,
    }
    if let Content::Raw(data) = content {
        let raw: Raw = serde_json::from_str(data.get()).ok()?;
        return Some((raw.number.to_string(), plain_text(&raw.body)));
    }
    let body = match text(content) {
        Some(text) => {
            let mut body = Object::new();
            body.member("msg", text);
            Some(body.close())
        }
        None => NAMES.object(content),
    };
    Some((number(content)?.to_string(), body?))
}

/// Flags of the message beyond its delivery. A flag that is left out has the vendor's default,
/// which is yes.
fn option(head: &Head) -> Option<String> {
    let options = &head.options;
    let no = |asked: bool| asked.then_some(false);
    let stored = no(options.online_only == Some(true));
    let push = options.push.as_ref().and_then(|push| push.enabled);
    let route = options.route.as_ref().and_then(|route| route.enabled);
    let mut object = Object::new();
    object.some("roam", stored);
    object.some("history", stored);
    object.some("persistent", stored);
    object.some("push", push);
    object.some("route", route);
    object.some("badge", badge(head));
    object.close_some()
}

/// `sendBatchMsg.action`: many users in one call.
struct Batch {
    account: Arc<Account>,
    uri: Uri,
    block: Duration,
    job: String,
    keep_ids: bool,
    /// The body up to the list of accids.
    before: Vec<u8>,
}

impl Calls for Batch {
    fn request(&self, recipients: &[&str]) -> Request {
        let mut list = Vec::new();
        json::push(&mut list, &recipients);
        // Each quote or comma takes three bytes.
        let mut body =
            Vec::with_capacity(self.before.len() + list.len() + 8 * recipients.len() + 8);
        body.extend_from_slice(&self.before);
        push_percent(&mut body, &list);
        let id = request_id(&self.job, recipients);
        self.account
            .request(self.uri.clone(), &REQUEST_ID, &id, body)
    }

    fn read_reply(&self, recipients: &[&str], reply: &HttpReply) -> Verdict {
        reply::batch(recipients, reply, self.block, self.keep_ids)
    }
}

/// `sendMsg.action`: one team in each call.
struct Team {
    account: Arc<Account>,
    uri: Uri,
    block: Duration,
    job: String,
    keep_ids: bool,
    /// The body up to the id of the team.
    before: Vec<u8>,
}

impl Calls for Team {
    fn request(&self, recipients: &[&str]) -> Request {
        debug_assert_eq!(recipients.len(), 1, "one group a call is declared");
        let team = recipients.first().copied().unwrap_or_default();
        let mut body = self.before.clone();
        push_percent(&mut body, team.as_bytes());
        let id = request_id(&self.job, recipients);
        self.account
            .request(self.uri.clone(), &REQUEST_ID, &id, body)
    }

    fn read_reply(&self, _recipients: &[&str], reply: &HttpReply) -> Verdict {
        reply::single(reply, self.block, self.keep_ids)
    }
}
