//! Fetches the administrator's token. Every call needs one; it lasts for 90 days by the server's
//! default.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Uri};
use serde::Deserialize;
use serde_json::json;

use super::{Auth, OPERATION_ID, Settings, TOKEN, exposed, reply};
use crate::domain::outcome::{Class, TargetAnswer};
use crate::im::reading::BAD_REPLY;
use crate::ports::{Credential, HttpReply, Login, Request};
use crate::secret::Secret;

/// The platform of administrators. A token for it does not log out another session.
const ADMIN_PLATFORM: u8 = 10;

/// Longest lifetime that is accepted for a token.
const LIVES_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Lifetime of a token whose reply contains none.
const LIVES: Duration = Duration::from_secs(60 * 60);

/// A token as the value of a header, if it can be one.
pub(super) fn header(token: &str) -> Option<HeaderValue> {
    let mut token = HeaderValue::from_str(token)
        .ok()
        .filter(|token| !token.is_empty())?;
    token.set_sensitive(true);
    Some(token)
}

/// `POST /auth/get_admin_token`, or the call of earlier versions.
pub(super) struct TokenLogin {
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
}

impl TokenLogin {
    pub(super) fn new(settings: &Settings, uri: Uri, headers: &HeaderMap) -> Self {
        let secret = exposed(&settings.secret);
        let mut body = json!({"secret": secret, "userID": settings.admin_user});
        if settings.auth == Auth::UserToken {
            body["platformID"] = ADMIN_PLATFORM.into();
        }
        let mut headers = headers.clone();
        headers.insert(OPERATION_ID, HeaderValue::from_static("fanwise-login"));
        Self {
            uri,
            headers,
            body: body.to_string().into(),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Token {
    token: String,
    expire_time_seconds: Option<u64>,
}

impl Login for TokenLogin {
    fn request(&self) -> Request {
        Request {
            method: Method::POST,
            uri: self.uri.clone(),
            headers: self.headers.clone(),
            body: self.body.clone(),
        }
    }

    fn read_credential(&self, reply: &HttpReply) -> Result<Credential, TargetAnswer> {
        // A reply of another shape is not shown: it may contain the token.
        let no_token = || {
            let text = "the reply to the login holds no token";
            TargetAnswer::new(Class::Transient, BAD_REPLY, text)
        };
        let token =
            reply::data::<Token>(reply).map_err(|refusal| match reply::harmless(refusal) {
                answer if answer.code == BAD_REPLY => no_token(),
                answer => answer,
            })?;
        header(&token.token).ok_or_else(no_token)?;
        let lives = token.expire_time_seconds.filter(|seconds| *seconds > 0);
        Ok(Credential {
            secret: Secret::new(token.token),
            lives: lives.map_or(LIVES, |seconds| Duration::from_secs(seconds).min(LIVES_MAX)),
        })
    }

    fn apply(&self, request: &mut Request, credential: &str) {
        if let Some(token) = header(credential) {
            request.headers.insert(TOKEN, token);
        }
    }
}
