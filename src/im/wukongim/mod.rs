//! WuKongIM: `POST /message/send` for each recipient, or the object form of `/message/sendbatch`.
//!
//! What the versions do differently decides what is promised:
//!
//! | | 1.x, 2.x | 3.x |
//! |---|---|---|
//! | a repeated `client_msg_no` | a second message, which the clients' SDKs may hide | the first one's answer |
//! | so a call in doubt is | held, unless the operator says otherwise | sent again |
//! | 200 means | stored (1.x), queued in memory (2.x) | stored if `reason` is 1 |
//! | sender | optional, `____system` | required |
//! | `options.unread` | `red_dot` | not to be had over HTTP |
//! | `/message/sendbatch` | one payload to many, no `client_msg_no`, no `expire` | none |
//!
//! The array form of `sendbatch` that the documentation shows is implemented by no release. A target
//! set to version 3 that in fact is a 2.x server would be believed to be idempotent: the answers still
//! are read rightly, by content, but calls in doubt would be sent twice.

/// Which reason and which status means what.
mod code;
/// What existing callers say, and what they hear.
pub(in crate::im) mod ingress;
/// Calls and the reading of their replies.
mod target;
#[cfg(test)]
mod tests;

pub use target::WukongIm;

use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Uri};

use crate::domain::fields::Problem;
use crate::secret::Secret;

/// One WuKongIM account.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the HTTP API is, such as `http://wukongim:5001`.
    pub url: String,
    pub version: Version,
    /// The `managerToken` of 1.x and 2.x, if one is set there.
    pub token: Option<Secret>,
    /// Who messages are from when a job does not say; [`Self::SYSTEM_SENDER`] on 1.x and 2.x if left
    /// out. Any other sender finds every recipient in its own conversation list.
    pub sender: Option<String>,
    /// One call for many recipients (`/message/sendbatch`, 1.x and 2.x only). Default: no.
    pub packed: bool,
    /// Recipients of one packed call. Default [`Self::RECIPIENTS_PER_CALL`].
    pub recipients_per_call: usize,
    /// Default: per recipient.
    pub client_msg_no: ClientMsgNo,
}

impl Settings {
    /// What the vendor's documentation advises; the server itself has no limit.
    pub const RECIPIENTS_PER_CALL: usize = 100;
    pub const RECIPIENTS_PER_CALL_MAX: usize = 1000;
    /// The one sender whose own conversation list is left alone.
    pub const SYSTEM_SENDER: &str = "____system";

    /// The kinds that differ in what they honour.
    pub(super) fn samples() -> Vec<(&'static str, Self)> {
        let new = |version| Self::new("http://localhost", version);
        let packed = Self {
            packed: true,
            ..new(Version::V2)
        };
        vec![
            ("wukongim v1, v2", new(Version::V2)),
            ("wukongim v1, v2 packed", packed),
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
            recipients_per_call: Self::RECIPIENTS_PER_CALL,
            client_msg_no: ClientMsgNo::PerRecipient,
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
    /// `<client_msg_no>-<16 hex digits of the recipient>`: told apart on the sender's own devices.
    PerRecipient,
    /// The job's own for all of them. A sender that is logged in sees one message instead of many.
    Job,
}

pub(super) fn target(settings: &Settings, problems: &mut Vec<Problem>) -> Option<WukongIm> {
    let path = if settings.packed {
        "/message/sendbatch"
    } else {
        "/message/send"
    };
    if settings.packed && settings.version == Version::V3 {
        let what = "version 3 has no batch call; leave `packed` out";
        problems.push(Problem::new("packed", what));
    }
    let most = Settings::RECIPIENTS_PER_CALL_MAX;
    if settings.packed && !(1..=most).contains(&settings.recipients_per_call) {
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
    let mut headers = HeaderMap::with_capacity(4);
    let json = HeaderValue::from_static("application/json");
    headers.insert(http::header::CONTENT_TYPE, json);
    if let Some(token) = &settings.token {
        match HeaderValue::from_str(token.expose()) {
            Ok(mut token) => {
                token.set_sensitive(true);
                headers.insert("token", token);
            }
            Err(_) => {
                let what = "the token contains characters that no HTTP header can carry";
                problems.push(Problem::new("token", what));
            }
        }
    }
    let uri = match uri(&settings.url, path) {
        Ok(uri) => uri,
        Err(what) => {
            problems.push(Problem::new("url", what));
            return None;
        }
    };
    Some(WukongIm::new(settings.clone(), uri, headers))
}

/// The address of an API call behind a base URL.
fn uri(base: &str, path: &str) -> Result<Uri, String> {
    let expected = "a URL such as http://wukongim:5001 is expected";
    let uri: Uri = base
        .parse()
        .map_err(|error| format!("{expected}: {error}"))?;
    let mut parts = uri.into_parts();
    let http = [Some(Scheme::HTTP), Some(Scheme::HTTPS)].contains(&parts.scheme);
    let before = parts
        .path_and_query
        .as_ref()
        .map_or("", PathAndQuery::as_str);
    if !http || parts.authority.is_none() || before.contains('?') || base.contains('#') {
        return Err(expected.to_owned());
    }
    let path = format!("{}{path}", before.trim_end_matches('/'));
    parts.path_and_query = Some(path.parse().map_err(|_| expected.to_owned())?);
    Uri::from_parts(parts).map_err(|_| expected.to_owned())
}
