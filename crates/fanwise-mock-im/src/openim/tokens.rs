//! Issues and checks tokens: `POST /auth/get_admin_token` (v3.8.1 and later) and
//! `POST /auth/user_token` (before it). Both are served, so that callers of either release find
//! their own.
//!
//! A token looks like OpenIM's JWT but is only compared as text. It expires after a number of
//! calls, or when all tokens are revoked.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::json;

use super::refused::{
    ARGS, NO_PERMISSION, RECORD_NOT_FOUND, Refused, TOKEN_EXPIRED, TOKEN_MALFORMED,
    TOKEN_NOT_EXIST, success,
};
use super::{Rules, bind};
use crate::Call;
use crate::go::null_is_default;
use crate::reply::Answer;
use crate::state::State;

/// Ninety days, as OpenIM says by default, whenever the token really expires.
const LIFETIME_SECONDS: u32 = 7_776_000;

#[derive(Debug)]
struct Token {
    user: String,
    calls: u64,
    revoked: Option<i32>,
}

/// Every issued token. A token that is no longer valid stays, with the reason.
#[derive(Debug, Default)]
pub(super) struct Tokens(Mutex<HashMap<String, Token>>);

impl Tokens {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Token>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn issue(&self, user: &str, platform: i32) -> String {
        let claims = json!({ "UserID": user, "PlatformID": platform }).to_string();
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
        let claims = URL_SAFE_NO_PAD.encode(claims);
        let signature = URL_SAFE_NO_PAD.encode(fastrand::u128(..).to_be_bytes());
        let text = format!("{header}.{claims}.{signature}");
        let token = Token {
            user: user.to_owned(),
            calls: 0,
            revoked: None,
        };
        self.lock().insert(text.clone(), token);
        text
    }

    /// Counts a call of the token and returns its user.
    pub(super) fn spend(&self, text: &str, calls_max: Option<u64>) -> Result<String, Refused> {
        if text.is_empty() {
            return Err(Refused::invalid(ARGS, "header must have token"));
        }
        let mut tokens = self.lock();
        let Some(token) = tokens.get_mut(text) else {
            let code = match text.split('.').count() {
                3 => TOKEN_NOT_EXIST,
                _ => TOKEN_MALFORMED,
            };
            return Err(Refused::new(code, ""));
        };
        token.calls += 1;
        match token.revoked {
            Some(code) => Err(Refused::new(code, "")),
            None if calls_max.is_some_and(|max| token.calls > max) => {
                Err(Refused::new(TOKEN_EXPIRED, ""))
            }
            None => Ok(token.user.clone()),
        }
    }

    /// Revokes every token issued so far: calls with it get this code. Returns how many were not
    /// revoked before.
    pub(super) fn revoke_all(&self, code: i32) -> usize {
        let mut tokens = self.lock();
        let alive = tokens.values_mut().filter(|token| token.revoked.is_none());
        alive.map(|token| token.revoked = Some(code)).count()
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TokenRequest {
    #[serde(deserialize_with = "null_is_default")]
    secret: String,
    #[serde(deserialize_with = "null_is_default", rename = "platformID")]
    platform_id: i32,
    #[serde(deserialize_with = "null_is_default", rename = "userID")]
    user_id: String,
}

pub(super) fn admin(state: &State, rules: &Rules, call: &Call) -> Result<Answer, Refused> {
    let request = authentic(rules, call)?;
    if request.user_id != rules.admin {
        return Err(Refused::invalid(ARGS, "userID is error."));
    }
    Ok(issued(state, &request))
}

pub(super) fn user(state: &State, rules: &Rules, call: &Call) -> Result<Answer, Refused> {
    let request = authentic(rules, call)?;
    if !rules.knows(state.directory, &request.user_id) {
        return Err(Refused::new(RECORD_NOT_FOUND, ""));
    }
    Ok(issued(state, &request))
}

fn authentic(rules: &Rules, call: &Call) -> Result<TokenRequest, Refused> {
    let request: TokenRequest = bind(call)?;
    if request.secret != rules.secret {
        return Err(Refused::new(NO_PERMISSION, "secret invalid"));
    }
    Ok(request)
}

fn issued(state: &State, request: &TokenRequest) -> Answer {
    let tokens = &state.openim.tokens;
    success(json!({
        "token": tokens.issue(&request.user_id, request.platform_id),
        "expireTimeSeconds": LIFETIME_SECONDS,
    }))
}
