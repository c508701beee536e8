//! Implements the account as a target.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method, Uri};
use serde::Deserialize;

use super::calls::{Base, Command, Packed, Single};
use super::directory::Users;
use super::mapping::maps;
use super::native::{self, EXPIRE, PAYLOAD};
use super::payload::payload;
use super::probe::{LookUp, PERSON};
use super::{ClientMsgNo, Settings, Version};
use crate::domain::fields::Problem;
use crate::domain::mapping::{Feature, Mapping};
use crate::domain::message::Content;
use crate::domain::outcome::RefusalKind;
use crate::domain::slice::{Addressed, Head};
use crate::im::json;
use crate::ports::{Calls, Directory, HttpReply, Profile, Recall, Request, Target};

/// The manager of 2.x, which is not a user.
const MANAGER: &str = "____manager";

/// One WuKongIM account as a target.
pub struct WukongIm {
    settings: Settings,
    profile: Profile,
    uris: Uris,
    headers: HeaderMap,
    directory: Option<Users>,
}

/// The addresses of an account.
pub(super) struct Uris {
    pub(super) send: Uri,
    /// The URL of calls for many users.
    pub(super) many: Uri,
    pub(super) look_up: Uri,
}

/// The form of the calls of a job.
#[derive(Clone, Copy)]
enum Form {
    /// One call for each channel, of this type.
    Single(u8),
    /// `subscribers`.
    Command,
    /// `/message/sendbatch`.
    Packed,
}

impl WukongIm {
    pub(super) fn new(
        settings: Settings,
        uris: Uris,
        headers: HeaderMap,
        directory: Option<Users>,
    ) -> Self {
        let packs = settings.packed || settings.subscribers;
        let system = [Settings::SYSTEM_SENDER, MANAGER].map(ToOwned::to_owned);
        Self {
            profile: Profile {
                recipients_per_call: if packs {
                    settings.recipients_per_call
                } else {
                    1
                },
                idempotent: settings.version == Version::V3 && !packs,
                left_out: system.into_iter().chain(settings.sender.clone()).collect(),
                ..Profile::default()
            },
            settings,
            uris,
            headers,
            directory,
        }
    }

    fn form(&self, head: &Head) -> Form {
        match head.addressed {
            Addressed::Groups(kind) => Form::Single(kind),
            Addressed::Users if self.settings.packed => Form::Packed,
            Addressed::Users
                if self.settings.subscribers && head.options.sync_once == Some(true) =>
            {
                Form::Command
            }
            Addressed::Users => Form::Single(PERSON),
        }
    }

    fn named_sender<'a>(&'a self, head: &'a Head) -> Option<&'a str> {
        head.sender.as_deref().or(self.own_sender())
    }

    /// The members that all calls of a job share, up to the first that differs.
    fn common(&self, head: &Head) -> Vec<u8> {
        let options = &head.options;
        let flag = |on: Option<bool>| u8::from(on.unwrap_or_default());
        let (no_persist, sync_once) = (flag(options.online_only), flag(options.sync_once));
        // Flags are integers: the server refuses booleans. Version 3 has no `red_dot`.
        let header = match self.settings.version {
            Version::V1 | Version::V2 => format!(
                r#"{{"no_persist":{no_persist},"red_dot":{},"sync_once":{sync_once}}}"#,
                flag(options.unread.or(Some(true)))
            ),
            Version::V3 => format!(r#"{{"no_persist":{no_persist},"sync_once":{sync_once}}}"#),
        };
        let mut body = format!(r#"{{"header":{header},"from_uid":"#).into_bytes();
        json::push_string(&mut body, self.named_sender(head).unwrap_or_default());
        // A packed target refuses both, so a lenient job is sent without them.
        let (expire, native) = match self.settings.packed {
            true => (None, native::Native::new()),
            false => (options.expire_seconds, native::of(head)),
        };
        let expire = expire.filter(|expire| *expire > 0 && !native.contains_key(EXPIRE));
        if let Some(expire) = expire {
            let expire = format!(r#","expire":{expire}"#);
            body.extend_from_slice(expire.as_bytes());
        }
        if !native.contains_key(PAYLOAD) {
            let payload = STANDARD.encode(payload(&head.content));
            body.extend_from_slice(format!(r#","payload":"{payload}""#).as_bytes());
        }
        for (name, value) in native
            .into_iter()
            .filter(|(name, _)| name != native::NUMBER)
        {
            body.push(b',');
            json::push_string(&mut body, &name);
            body.push(b':');
            body.extend_from_slice(value.get().as_bytes());
        }
        body.push(b',');
        body
    }

    fn base(&self, uri: &Uri, before: Vec<u8>) -> Base {
        Base {
            uri: uri.clone(),
            headers: self.headers.clone(),
            version: self.settings.version,
            before,
        }
    }

    /// Single calls to channels of one type.
    fn single(&self, head: &Head, channel_type: u8) -> Single {
        let mut before = self.common(head);
        let channel = format!(r#""channel_type":{channel_type},"client_msg_no":"#);
        before.extend_from_slice(channel.as_bytes());
        json::push_string(&mut before, &head.client_msg_no);
        let form = native::number(&native::of(head)).unwrap_or(self.settings.client_msg_no);
        let per_recipient = form == ClientMsgNo::PerRecipient;
        if per_recipient {
            // Removes the closing quote: the digits belong inside the quotes.
            before.pop();
            before.push(b'-');
        }
        Single {
            base: self.base(&self.uris.send, before),
            client_msg_no: head.client_msg_no.clone(),
            per_recipient,
            keep_ids: head.keep_ids,
            look_up: self.look_up(head, channel_type),
        }
    }

    /// The look-up for messages of the job, if they are stored.
    fn look_up(&self, head: &Head, channel_type: u8) -> Option<LookUp> {
        let options = &head.options;
        if !self.settings.probe || options.online_only == Some(true) {
            return None;
        }
        let mut headers = self.headers.clone();
        headers.remove(CONTENT_TYPE);
        Some(LookUp {
            uri: self.uris.look_up.clone(),
            headers,
            sender: self.named_sender(head).unwrap_or_default().to_owned(),
            channel_type,
            sync_once: options.sync_once == Some(true),
        })
    }
}

impl Target for WukongIm {
    fn profile(&self) -> &Profile {
        &self.profile
    }

    fn own_sender(&self) -> Option<&str> {
        let default = match self.settings.version {
            Version::V1 | Version::V2 => Some(Settings::SYSTEM_SENDER),
            Version::V3 => None,
        };
        self.settings.sender.as_deref().or(default)
    }

    fn recipients_per_call(&self, head: &Head) -> usize {
        match self.form(head) {
            Form::Single(_) => 1,
            Form::Command | Form::Packed => self.profile.recipients_per_call,
        }
    }

    fn maps(&self, feature: Feature) -> Mapping {
        maps(&self.settings, feature)
    }

    fn check(&self, head: &Head) -> Vec<Problem> {
        let mut problems = Vec::new();
        let native = native::of(head);
        let most = self.settings.payload_bytes_max;
        native::check(&native, most, &mut problems);
        let mut problem = |field: &str, what: String| problems.push(Problem::new(field, what));
        if !native.contains_key(PAYLOAD) {
            if matches!(head.content, Content::Native) {
                let what = "missing; a message of native fields alone brings its `payload`";
                problem("message.native.payload", what.into());
            }
            if let Some(what) = native::size_problem(payload(&head.content).len(), most) {
                problem("message", what);
            }
        }
        if self
            .named_sender(head)
            .is_none_or(|sender| sender.trim().is_empty())
        {
            let what = "WuKongIM needs a sender; name one in the job or in the target's settings";
            problem("sender", what.into());
        }
        let options = &head.options;
        if self.settings.version == Version::V3
            && options.online_only == Some(true)
            && options.sync_once != Some(true)
        {
            let what = "WuKongIM 3 delivers such a message to nobody unless `sync_once` is set too";
            problem("options.online_only", what.into());
        }
        problems
    }

    fn refusal_kind(&self, code: &str) -> RefusalKind {
        super::code::refusal_kind(code)
    }

    fn open(&self, head: &Arc<Head>) -> Box<dyn Calls> {
        let for_many = |mut before: Vec<u8>| {
            before.extend_from_slice(br#""subscribers":["#);
            self.base(&self.uris.many, before)
        };
        match self.form(head) {
            Form::Single(channel_type) => Box::new(self.single(head, channel_type)),
            Form::Command => {
                // 2.x ignores it and makes a number of its own; for the others it is the key of the
                // call.
                let mut before = self.common(head);
                before.extend_from_slice(br#""client_msg_no":"#);
                json::push_string(&mut before, &head.client_msg_no);
                before.push(b',');
                Box::new(Command(for_many(before)))
            }
            Form::Packed => Box::new(Packed(for_many(self.common(head)))),
        }
    }

    fn recall(&self) -> Result<&dyn Recall, &'static str> {
        Err(
            "WuKongIM has no call that recalls a message; your application tells its clients to hide it, with \
             a command (`sync_once`)",
        )
    }

    fn directory(&self) -> Option<&dyn Directory> {
        let users = self.directory.as_ref()?;
        Some(users)
    }

    /// A message without a payload. Every version refuses it, with a different text each.
    fn identify(&self) -> Option<Request> {
        Some(Request {
            method: Method::POST,
            uri: self.uris.send.clone(),
            headers: self.headers.clone(),
            body: Bytes::from_static(b"{}"),
        })
    }

    fn read_identity(&self, reply: &HttpReply) -> Result<String, String> {
        #[derive(Deserialize)]
        struct Refusal {
            msg: Option<String>,
            error: Option<String>,
        }
        let refusal = serde_json::from_slice::<Refusal>(&reply.body).ok();
        let (is_v3, found) = match (reply.status, refusal) {
            (400, Some(Refusal { msg: Some(_), .. })) => (false, "1.x or 2.x"),
            (400, Some(Refusal { error: Some(_), .. })) => (true, "3.x"),
            (401 | 403, _) => return Err(format!("refuses the token ({})", reply.status)),
            (status, _) => return Err(format!("answers {status}, not as WuKongIM does")),
        };
        match self.settings.version == Version::V3 {
            v3 if v3 == is_v3 => Ok(format!("WuKongIM {found}")),
            _ => Err(format!(
                "answers as WuKongIM {found} does; set `version` to it"
            )),
        }
    }
}
