//! Calls OpenIM 3.x: `POST /msg/send_msg` for each recipient, or `/msg/batch_send_msg` for many.
//!
//! OpenIM does not recognise repeated calls: every call makes a message with an id of its own. The
//! promises follow from what it offers instead:
//!
//! | | `send_msg` | `batch_send_msg` (`packed`) |
//! |---|---|---|
//! | a call in doubt | can be asked about: the server keeps the outcome of a send for a day under its `operationID`, which is the same on every attempt | cannot be asked about, and stays in doubt |
//! | failed recipients | have the server's code | are listed without a reason, and called again alone to learn it |
//! | groups | `sessionType` 3 | none: the server would report success and send nothing |
//!
//! The server notes an outcome only after the send, and only that the message was sent. If a reply
//! is lost, Fanwise therefore asks for the outcome, and "unknown", answered twice, means not sent.
//! That makes a second message only if the server is still sending then, or if it could not make
//! the note. An internal error of the server is different: it can come from a step after the send,
//! and the note is then missing too. While its Redis is away, OpenIM sends every message and
//! answers every call with such an error. Recipients of these calls stay in doubt, and
//! `on_uncertain` decides. Receiving applications can hide a second message: unless
//! `options.extension` says otherwise, `ex` contains the job's key as
//! `{"app":"shop","client_msg_no":"promo-1"}`.
//!
//! If the server lost an internal reply, some of the recipients that a batch reports as failed may
//! have got the message. Leave `packed` off if that risk is not acceptable.
//!
//! Every message appears in the sender's own conversations. To avoid that, send from a notification
//! account with `session = "notification"`.
//!
//! Fanwise never uses `isSendAll`: it handles all users within one request, and a lost reply would
//! leave all of them in doubt. It never uses `sendTime` either, which stamps a message and does not
//! schedule it.

/// Maps error codes and HTTP statuses to classes.
pub(in crate::im) mod code;
/// Builds messages as OpenIM's content types, and checks the fields that each type requires.
mod content;
/// Lists all users.
mod directory;
/// Reads requests of existing callers and answers them.
pub(in crate::im) mod ingress;
/// Fetches the administrator's token.
mod login;
/// Reads and checks the fields that a job adds to the request.
mod native;
/// Reads the envelope of replies.
mod reply;
/// Builds calls and reads their replies.
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

/// Settings of one OpenIM account.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Base URL of the HTTP API, such as `http://openim:10002`.
    pub url: String,
    /// How the administrator's token is obtained. Default: by the call of 3.8.1 and later.
    pub auth: Auth,
    /// The secret in the server's `share.yml`, which fetches a token.
    pub secret: Option<Secret>,
    /// The token itself, with [`Auth::Token`].
    pub token: Option<Secret>,
    /// The user id of the administrator. Default [`Self::ADMIN_USER`].
    pub admin_user: String,
    /// The sender of messages whose job names none.
    pub sender: Option<String>,
    /// The conversation in which users find a message. Default: the one with the sender.
    pub session: Session,
    /// The name shown with notices. Default: the sender's id.
    pub notice_name: Option<String>,
    /// One call for many recipients (`/msg/batch_send_msg`). Default: no.
    pub packed: bool,
    /// Recipients of one packed call. Default [`Self::RECIPIENTS_PER_CALL`].
    pub recipients_per_call: usize,
}

impl Settings {
    /// The server has no limit, and sends to the recipients one after another.
    pub const RECIPIENTS_PER_CALL: usize = 100;
    pub const RECIPIENTS_PER_CALL_MAX: usize = 1000;
    /// The administrator of a new installation.
    pub const ADMIN_USER: &str = "imAdmin";

    /// The kinds that honour different features.
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

/// How the administrator's token is obtained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    /// Fetched from `/auth/get_admin_token`, which 3.8.1 and later have.
    AdminToken,
    /// Fetched from `/auth/user_token`, which 3.0 to 3.8.0 have.
    UserToken,
    /// Configured and never renewed: once it has expired, jobs and the target are parked.
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

/// The conversation that messages to users go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Session {
    /// `sessionType` 1: the conversation with the sender. Blocks and friendships apply, except to
    /// administrators and notification accounts.
    Single,
    /// `sessionType` 4: the notifications of the sender, which is a notification account.
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

/// Identifies a call in the server's logs and in its notes of sent messages.
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
    let api = Base::parse(&settings.url, "http://openim:10002")
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

/// The headers of all calls, including a configured token.
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
