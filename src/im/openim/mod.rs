//! OpenIM 3.x: `POST /msg/send_msg` for each recipient, or `/msg/batch_send_msg` for many.
//!
//! OpenIM absorbs no repeats: every call makes a message with an id of its own. What it offers instead
//! decides what is promised:
//!
//! | | `send_msg` | `batch_send_msg` (`packed`) |
//! |---|---|---|
//! | a call in doubt | is asked after: the server keeps the outcome of a send for a day under its `operationID`, which is the same on every attempt | cannot be asked after, and stays in doubt |
//! | who failed | with the server's code | named without a reason, and sent to again alone to learn it |
//! | groups | `sessionType` 3 | none: the server would report success and send nothing |
//!
//! The server notes an outcome only after the send, and only that it was sent. A reply that is lost is
//! therefore asked after, and "unknown", said twice, means not sent; only a server that is still at it
//! then, or whose note failed, makes that a second message. An error of the server's own is different: it
//! can come from behind the send, and then no note is made either. While its Redis is away OpenIM sends
//! every message and answers every call with such an error. Recipients of these calls stay in doubt, and
//! `on_uncertain` decides. Receiving applications can hide a second message: unless `options.extension`
//! says otherwise, `ex` carries the job's key as `{"app":"shop","client_msg_no":"promo-1"}`.
//!
//! Of the recipients that a batch names as failed some may have got the message as well, where the
//! server lost an answer of its own. Whoever must not risk it leaves `packed` off.
//!
//! Every message appears in the sender's own conversations. Let a notification account send, with
//! `session = "notification"`.
//!
//! `isSendAll` is never used: it goes through all users within one request, and a lost reply would leave
//! everybody in doubt. Neither is `sendTime`: it stamps a message, it does not schedule one.

/// Which code and which status means what.
mod code;
/// What is said, as OpenIM's content types, and what each of them needs.
mod content;
/// How all users are listed.
mod directory;
/// What existing callers say, and what they hear.
pub(in crate::im) mod ingress;
/// How the administrator's token is fetched.
mod login;
/// Fields that a job gives for the request as they are.
mod native;
/// The envelope of all replies.
mod reply;
/// Calls and the reading of their replies.
mod target;
#[cfg(test)]
mod tests;

pub use target::OpenIm;

use http::{HeaderMap, HeaderName, HeaderValue, header};

use self::login::TokenLogin;
use self::target::Endpoints;
use super::address::Base;
use crate::domain::fields::Problem;
use crate::secret::Secret;

/// One OpenIM account.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the HTTP API is, such as `http://openim:10002`.
    pub url: String,
    /// How the administrator's token is come by. Default: by the call of 3.8.1 and later.
    pub auth: Auth,
    /// The secret of the server's `share.yml`, to fetch a token with.
    pub secret: Option<Secret>,
    /// The token itself, for [`Auth::Token`].
    pub token: Option<Secret>,
    /// The administrator. Default [`Self::ADMIN_USER`].
    pub admin_user: String,
    /// Who messages are from when a job does not say.
    pub sender: Option<String>,
    /// Which conversation users find a message in. Default: one with the sender.
    pub session: Session,
    /// The name that notices bear. Default: the sender's id.
    pub notice_name: Option<String>,
    /// One call for many recipients (`/msg/batch_send_msg`). Default: no.
    pub packed: bool,
    /// Recipients of one packed call. Default [`Self::RECIPIENTS_PER_CALL`].
    pub recipients_per_call: usize,
}

impl Settings {
    /// The server itself has no limit, and calls its recipients one after another.
    pub const RECIPIENTS_PER_CALL: usize = 100;
    pub const RECIPIENTS_PER_CALL_MAX: usize = 1000;
    /// The administrator of an installation as it comes.
    pub const ADMIN_USER: &str = "imAdmin";

    /// The kinds that differ in what they honour.
    pub(super) fn samples() -> Vec<(&'static str, Self)> {
        let new = || Self {
            secret: Some(Secret::new("secret")),
            ..Self::new("http://localhost")
        };
        let packed = Self {
            packed: true,
            ..new()
        };
        let notification = Self {
            session: Session::Notification,
            ..new()
        };
        vec![
            ("openim", new()),
            ("openim packed", packed),
            ("openim notification", notification),
        ]
    }

    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            auth: Auth::AdminToken,
            secret: None,
            token: None,
            admin_user: Self::ADMIN_USER.to_owned(),
            sender: None,
            session: Session::Single,
            notice_name: None,
            packed: false,
            recipients_per_call: Self::RECIPIENTS_PER_CALL,
        }
    }
}

/// How the administrator's token is come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    /// Fetched from `/auth/get_admin_token`, which 3.8.1 and later have.
    AdminToken,
    /// Fetched from `/auth/user_token`, which 3.0 to 3.8.0 have.
    UserToken,
    /// Given. Nobody renews it: once it has expired jobs are parked, and so is the target.
    Token,
}

impl Auth {
    /// The call that fetches a token.
    fn path(self) -> Option<&'static str> {
        match self {
            Self::AdminToken => Some("/auth/get_admin_token"),
            Self::UserToken => Some("/auth/user_token"),
            Self::Token => None,
        }
    }
}

/// The conversation of messages to users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Session {
    /// `sessionType` 1: the one with the sender. Blocks and friendships count for senders that are
    /// neither administrators nor notification accounts.
    Single,
    /// `sessionType` 4: the notifications of the sender, a notification account.
    Notification,
}

impl Session {
    fn number(self) -> i64 {
        match self {
            Self::Single => 1,
            Self::Notification => NOTIFICATION_SESSION,
        }
    }
}

const NOTIFICATION_SESSION: i64 = 4;
const GROUP_SESSION: i64 = 3;

/// Names a call in the server's logs, and in its memory of what was sent.
const OPERATION_ID: HeaderName = HeaderName::from_static("operationid");
const TOKEN: HeaderName = HeaderName::from_static("token");

pub(super) fn target(settings: &Settings, problems: &mut Vec<Problem>) -> Option<OpenIm> {
    let most = Settings::RECIPIENTS_PER_CALL_MAX;
    if settings.packed && !(1..=most).contains(&settings.recipients_per_call) {
        let what = format!("{} is not 1 to {most}", settings.recipients_per_call);
        problems.push(Problem::new("recipients_per_call", what));
    }
    for (field, text) in [
        ("admin_user", Some(&settings.admin_user)),
        ("sender", settings.sender.as_ref()),
        ("notice_name", settings.notice_name.as_ref()),
    ] {
        if text.is_some_and(|text| text.trim().is_empty()) {
            let what = "a text is expected, or nothing at all";
            problems.push(Problem::new(field, what));
        }
    }
    let mut headers = HeaderMap::with_capacity(8);
    let json = HeaderValue::from_static("application/json");
    headers.insert(header::CONTENT_TYPE, json);
    let calls = headers_of_calls(settings, &headers, problems);
    let api = Base::read(&settings.url, "http://openim:10002")
        .map_err(|what| problems.push(Problem::new("url", what)))
        .ok()?;
    let login = settings
        .auth
        .path()
        .map(|path| TokenLogin::new(settings, api.join(path), &headers));
    let endpoints = Endpoints {
        send: api.join("/msg/send_msg"),
        batch: api.join("/msg/batch_send_msg"),
        check: api.join("/msg/check_msg_is_send_success"),
        headers: calls,
    };
    let users = api.join(directory::PATH);
    Some(OpenIm::new(settings.clone(), endpoints, login, users))
}

/// The headers of all calls; a token among them that need not be fetched.
fn headers_of_calls(
    settings: &Settings,
    headers: &HeaderMap,
    problems: &mut Vec<Problem>,
) -> HeaderMap {
    let mut headers = headers.clone();
    match settings.auth {
        Auth::AdminToken | Auth::UserToken => {
            if exposed(&settings.secret).is_empty() {
                let what = "missing; the secret of share.yml is expected, or `auth = \"token\"`";
                problems.push(Problem::new("secret", what));
            }
        }
        Auth::Token => match login::header(exposed(&settings.token)) {
            Some(token) => drop(headers.insert(TOKEN, token)),
            None => {
                let what = "a token is expected, without characters that no HTTP header can carry";
                problems.push(Problem::new("token", what));
            }
        },
    }
    headers
}

fn exposed(secret: &Option<Secret>) -> &str {
    secret.as_ref().map_or("", Secret::expose)
}
