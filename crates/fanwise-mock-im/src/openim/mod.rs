//! Simulates OpenIM's API below `/auth`, `/msg` and `/user`, as v3.8 answers it.
//!
//! It was written from the server's sources, not from our adapter, so that the two can disagree.
//! Every call needs an operationID and, except for the call that fetches it, a token; sending needs
//! the admin's token. Steps that the server takes after its answer (storage, delivery, push) always
//! succeed here, except with the fault `lost_after_200`.
//!
//! The settings can be changed while it runs: `POST /_mock/openim` patches [`Rules`], and
//! `POST /_mock/openim/revoke` revokes all tokens.

mod args;
mod content;
mod message;
mod refused;
mod rules;
mod tokens;
mod users;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::{Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::faults::{CallPlan, FaultsError, patched};
use super::log::Shards;
use super::reply::Answer;
use super::state::{State, count};
use super::{Call, control, go};
use refused::{ARGS, NO_PERMISSION, RECORD_NOT_FOUND, Refused, TOKEN_EXPIRED};
use tokens::Tokens;

pub use args::OpenimArgs;
pub use rules::Rules;

/// The state of OpenIM while the mock runs.
#[derive(Debug)]
pub(super) struct OpenimState {
    rules: Mutex<Arc<Rules>>,
    tokens: Tokens,
    /// The operationIDs of single sends whose status is "sent".
    sent: Shards<HashSet<u128>>,
}

impl OpenimState {
    pub(super) fn new(rules: Rules) -> OpenimState {
        OpenimState {
            rules: Mutex::new(Arc::new(rules)),
            tokens: Tokens::default(),
            sent: Shards::new(),
        }
    }

    fn locked(&self) -> MutexGuard<'_, Arc<Rules>> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.locked())
    }

    pub(super) fn patch(&self, patch: &Value) -> Result<Arc<Rules>, FaultsError> {
        let mut rules = self.locked();
        *rules = Arc::new(patched(&**rules, patch)?);
        Ok(Arc::clone(&rules))
    }

    /// Revokes every token issued so far: the next call with one gets this errCode.
    pub(super) fn revoke_tokens(&self, code: i32) -> usize {
        self.tokens.revoke_all(code)
    }
}

/// A request with an operationID and a valid token.
struct Caller<'a> {
    state: &'a State,
    rules: &'a Rules,
    call: &'a Call,
    plan: &'a CallPlan,
    operation: &'a str,
    user: String,
}

impl Caller<'_> {
    fn is_admin(&self) -> bool {
        self.user == self.rules.admin
    }

    fn knows(&self, uid: &str) -> bool {
        self.rules.knows(self.state.directory, uid)
    }
}

/// Answers a request below one of OpenIM's paths.
pub(super) fn answer(state: &State, call: &Call, plan: &CallPlan) -> Answer {
    if call.parts.method != Method::POST {
        return not_found();
    }
    let rules = state.openim.rules();
    route(state, &rules, call, plan).unwrap_or_else(|refused| {
        count(&state.counters.invalid, usize::from(refused.is_invalid));
        refused.answer()
    })
}

fn route(state: &State, rules: &Rules, call: &Call, plan: &CallPlan) -> Result<Answer, Refused> {
    let operation = call.header("operationid").unwrap_or_default();
    if operation.is_empty() {
        return Err(Refused::invalid(ARGS, "header must have operationID"));
    }
    let path = call.parts.uri.path();
    match path {
        "/auth/get_admin_token" => return tokens::admin(state, rules, call),
        "/auth/user_token" => return tokens::user(state, rules, call),
        _ => {}
    }
    let token = call.header("token").unwrap_or_default();
    let caller = Caller {
        user: state.openim.tokens.spend(token, rules.token_calls)?,
        state,
        rules,
        call,
        plan,
        operation,
    };
    match path {
        "/msg/send_msg" => message::send(&caller),
        "/msg/batch_send_msg" => message::send_batch(&caller),
        "/msg/check_msg_is_send_success" => Ok(message::status(&caller)),
        "/user/get_users" => users::list(state, call),
        "/user/get_all_users_uid" => users::list_all(state, rules, call),
        "/user/account_check" if !caller.is_admin() => {
            Err(Refused::invalid(NO_PERMISSION, "only app manager"))
        }
        "/user/account_check" => users::check(state, rules, call, plan),
        _ => Ok(not_found()),
    }
}

/// A failure of the whole server: the limiter answers in the protocol, a panic has no body, and a
/// proxy has a text of its own.
pub(super) fn failure(status: StatusCode) -> Answer {
    match status {
        StatusCode::TOO_MANY_REQUESTS => Refused::new(429, "").with_status(status).answer(),
        StatusCode::INTERNAL_SERVER_ERROR => Answer::text(status, ""),
        StatusCode::OK => refused::success(Value::Null),
        _ => Answer::text(status, "upstream is not available"),
    }
}

/// The answer to an expired token.
pub(super) fn unauthorised() -> Answer {
    Refused::new(TOKEN_EXPIRED, "").answer()
}

/// Answers a control request below `/_mock/openim`.
pub(super) fn control(state: &State, call: &Call) -> Option<Answer> {
    let shelf = &state.openim;
    let answer = match (&call.parts.method, call.parts.uri.path()) {
        (&Method::GET, "/_mock/openim") => Answer::json(StatusCode::OK, &*shelf.rules()),
        (&Method::POST, "/_mock/openim") => {
            let patch = serde_json::from_slice(&call.body).map_err(FaultsError::Patch);
            let patched = patch.and_then(|patch| shelf.patch(&patch));
            control::settings(patched.as_deref())
        }
        (&Method::POST, "/_mock/openim/revoke") => revoke(shelf, &call.body),
        _ => return None,
    };
    Some(answer)
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Revocation {
    code: i32,
}

impl Default for Revocation {
    fn default() -> Revocation {
        Revocation {
            code: TOKEN_EXPIRED,
        }
    }
}

fn revoke(shelf: &OpenimState, body: &[u8]) -> Answer {
    let revocation = match body {
        [] => Ok(Revocation::default()),
        body => serde_json::from_slice(body),
    };
    match revocation {
        Ok(Revocation { code }) => {
            let body = json!({ "revoked": shelf.revoke_tokens(code) });
            Answer::json(StatusCode::OK, &body)
        }
        Err(error) => control::problem(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

fn not_found() -> Answer {
    Answer::text(StatusCode::NOT_FOUND, "404 page not found")
}

fn bind<T: DeserializeOwned>(call: &Call) -> Result<T, Refused> {
    go::object(&call.body).map_err(Refused::unbound)
}
