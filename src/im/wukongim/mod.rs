//! Calls WuKongIM: `POST /message/send` for each user or group, or one call for many users.
//!
//! The versions differ, and so do the promises:
//!
//! | | 1.x, 2.x | 3.x |
//! |---|---|---|
//! | a repeated `client_msg_no` | a second message, which the clients' SDKs may hide | the first one's answer |
//! | so a call in doubt is | looked up (`probe`, from 2.2.2 on), else held, unless the operator says otherwise | sent again |
//! | 200 means | stored (1.x), queued in memory (2.x) | stored if `reason` is 1 |
//! | sender | optional, `____system` | required |
//! | `options.unread` | `red_dot` | not available over HTTP |
//! | `/message/sendbatch` (`packed`) | one payload to many, no `client_msg_no`, no `expire` | none |
//! | `subscribers` of a command | a `client_msg_no` is ignored (2.x) | one key for the whole call |
//! | all users | `GET /cluster/users` (2.x) | `GET /manager/users` |
//!
//! Neither form of packing has a key per recipient, and neither can be looked up. So a target that
//! packs is never idempotent, and a call in doubt is in doubt as a whole. Groups are always called
//! one by one.
//!
//! No release implements the array form of `sendbatch` that the documentation shows. If a target is
//! set to version 3 but the server is 2.x, Fanwise takes it for idempotent: it reads the replies
//! correctly, since it reads them by content, but sends calls in doubt twice. `fanwise doctor` asks
//! the server for its version. Workers do not detect the version: a worker must start while its
//! backend is away, and the promise about repeated calls must not depend on the moment.

/// Builds calls and reads their replies.
mod calls;
/// Maps reason codes and HTTP statuses to classes.
pub(in crate::im) mod code;
/// Lists all users.
mod directory;
/// Reads requests of existing callers and answers them.
pub(in crate::im) mod ingress;
/// Defines the mapping of each feature of a job.
mod mapping;
/// Reads and checks the fields that a job adds to the request.
mod native;
/// Builds the payload of a message, before base64.
mod payload;
/// Looks up a message in doubt.
mod probe;
/// Implements the account as a target.
mod target;
#[cfg(test)]
mod tests;

pub use target::WukongIm;

use directory::Users;
use target::Uris;

use http::{HeaderMap, HeaderValue};

use super::address::Base;
use crate::domain::fields::Problem;
use crate::secret::Secret;

/// Settings of one WuKongIM account.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Base URL of the HTTP API, such as `http://wukongim:5001`.
    pub url: String,
    pub version: Version,
    /// The `managerToken` of 1.x and 2.x, if the server has one.
    pub token: Option<Secret>,
    /// The sender of messages whose job names none. Default on 1.x and 2.x:
    /// [`Self::SYSTEM_SENDER`]. Any other sender gets every recipient into its own conversation
    /// list.
    pub sender: Option<String>,
    /// One call for many users (`/message/sendbatch`, 1.x and 2.x only). Default: no.
    pub packed: bool,
    /// One call for many users if the job sets `sync_once` (`subscribers` of `/message/send`);
    /// other jobs are sent one by one. Default: no.
    pub subscribers: bool,
    /// Users in one call for many. Default [`Self::RECIPIENTS_PER_CALL`].
    pub recipients_per_call: usize,
    /// Longest payload in bytes, before base64. Default [`Self::PAYLOAD_BYTES_MAX`].
    pub payload_bytes_max: usize,
    /// Default: [`ClientMsgNo::PerRecipient`].
    pub client_msg_no: ClientMsgNo,
    /// Whether calls in doubt are looked up, which needs 2.2.2 or a later 2.x. Default: no.
    pub probe: bool,
    /// Base URL of the manager API, which lists users (2.x, 3.x), such as `http://wukongim:5300`.
    pub manager_url: Option<String>,
    /// The account that logs in there. Without it, 2.x gets the `token` and 3.x no credential.
    pub manager: Option<Manager>,
}

/// An account of the manager API.
#[derive(Clone, Debug)]
pub struct Manager {
    pub user: String,
    pub password: Secret,
}

impl Settings {
    /// As the vendor's documentation advises; the server has no limit.
    pub const RECIPIENTS_PER_CALL: usize = 100;
    pub const RECIPIENTS_PER_CALL_MAX: usize = 1000;
    /// The HTTP API accepts more, but this is the limit of the clients' protocol: they could not
    /// read a longer message.
    pub const PAYLOAD_BYTES_MAX: usize = 32_767;
    /// The only sender whose own conversation list stays unchanged.
    pub const SYSTEM_SENDER: &str = "____system";

    /// The kinds that honour different features.
    pub(super) fn samples() -> Vec<(&'static str, Self)> {
        let new = |version| Self {
            manager_url: (version != Version::V1).then(|| "http://localhost".to_owned()),
            ..Self::new("http://localhost", version)
        };
        let packed = Self {
            packed: true,
            ..new(Version::V2)
        };
        vec![
            ("wukongim v1", new(Version::V1)),
            ("wukongim v2", new(Version::V2)),
            ("wukongim v2 packed", packed),
            ("wukongim v3", new(Version::V3)),
        ]
    }

    pub fn new(url: impl Into<String>, version: Version) -> Self {
        Self {
            url: url.into(),
            version,
            token: None,
            sender: None,
            packed: false,
            subscribers: false,
            recipients_per_call: Self::RECIPIENTS_PER_CALL,
            payload_bytes_max: Self::PAYLOAD_BYTES_MAX,
            client_msg_no: ClientMsgNo::PerRecipient,
            probe: false,
            manager_url: None,
            manager: None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
    V3,
}

/// The `client_msg_no` of the messages of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientMsgNo {
    /// `<client_msg_no>-<16 hex digits of the recipient>`, so that the sender's own devices tell
    /// the messages apart.
    PerRecipient,
    /// The job's own number for all messages. A sender that is logged in sees one message instead
    /// of many.
    Job,
}

pub(super) fn target(settings: &Settings, problems: &mut Vec<Problem>) -> Option<WukongIm> {
    check_combinations(settings, problems);
    let most = Settings::RECIPIENTS_PER_CALL_MAX;
    let packs = settings.packed || settings.subscribers;
    if packs && !(1..=most).contains(&settings.recipients_per_call) {
        let what = format!("{} is not 1 to {most}", settings.recipients_per_call);
        problems.push(Problem::new("recipients_per_call", what));
    }
    if settings
        .sender
        .as_ref()
        .is_some_and(|sender| sender.trim().is_empty())
    {
        let what = "a sender is expected, or nothing at all";
        problems.push(Problem::new("sender", what));
    }
    let headers = headers(settings, problems);
    let mut base = |key: &str, url: &str| {
        Base::parse(url, "http://wukongim:5001")
            .map_err(|what| problems.push(Problem::new(key, what)))
            .ok()
    };
    let api = base("url", &settings.url);
    let manager = settings.manager_url.as_deref();
    let manager = manager.and_then(|url| base("manager_url", url));
    let api = api?;
    let many = match settings.packed {
        true => "/message/sendbatch",
        false => "/message/send",
    };
    let uris = Uris {
        send: api.join("/message/send"),
        many: api.join(many),
        look_up: api.join("/message/byclientmsgno"),
    };
    let directory = manager.map(|manager| {
        let users = match settings.version {
            Version::V1 | Version::V2 => "/cluster/users",
            Version::V3 => "/manager/users",
        };
        Users::new(
            settings,
            manager.join(users),
            manager.join("/manager/login"),
        )
    });
    Some(WukongIm::new(settings.clone(), uris, headers, directory))
}

/// Checks for settings that the version does not support, and for settings that exclude each other.
fn check_combinations(settings: &Settings, problems: &mut Vec<Problem>) {
    let version = settings.version;
    let mut wrong = |wrong: bool, key: &str, what: &str| {
        if wrong {
            problems.push(Problem::new(key, what));
        }
    };
    wrong(
        settings.packed && version == Version::V3,
        "packed",
        "version 3 has no batch call; leave `packed` out",
    );
    wrong(
        settings.packed && settings.subscribers,
        "subscribers",
        "excludes `packed`, which takes commands too; leave one of them out",
    );
    wrong(
        settings.probe && version != Version::V2,
        "probe",
        "only 2.2.2 and later 2.x can look a message up; leave `probe` out",
    );
    wrong(
        settings.probe && settings.packed,
        "probe",
        "a packed call has no client_msg_no to look up; leave one of them out",
    );
    wrong(
        settings.manager_url.is_some() && version == Version::V1,
        "manager_url",
        "version 1 cannot list users; leave `manager_url` out",
    );
    wrong(
        settings.manager.is_some() && settings.manager_url.is_none(),
        "manager_url",
        "missing; `manager_user` logs in there",
    );
    let nobody =
        |manager: &Manager| manager.user.is_empty() || manager.password.expose().is_empty();
    wrong(
        settings.manager.as_ref().is_some_and(nobody),
        "manager_user",
        "`manager_user` and `manager_password` go together",
    );
}

fn headers(settings: &Settings, problems: &mut Vec<Problem>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(4);
    let json = HeaderValue::from_static("application/json");
    headers.insert(http::header::CONTENT_TYPE, json);
    match settings.token.as_ref().map(header_value) {
        Some(Some(token)) => drop(headers.insert("token", token)),
        Some(None) => {
            let what = "the token contains characters that no HTTP header can carry";
            problems.push(Problem::new("token", what));
        }
        None => {}
    }
    headers
}

/// A secret as the value of a header, if it can be one.
fn header_value(secret: &Secret) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(secret.expose()).ok()?;
    value.set_sensitive(true);
    Some(value)
}
