//! Simulates the user lists of the manager APIs.
//!
//! v2: `GET /cluster/users`, newest first; the next page begins below the created_at of the last
//! user. v3: `GET /manager/users`, with an opaque cursor, and with a JWT from `POST /manager/login`
//! if a login is configured. v2 requires the same `token` header as its product API.

use std::str::FromStr;

use axum::extract::Query;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Call;
use crate::directory::uid;
use crate::go::{self, null_is_default};
use crate::log::fingerprint;
use crate::reply::Answer;
use crate::state::{State, count};

/// Users per page of v2 if the request sets no limit.
const CLUSTER_LIMIT_DEFAULT: i64 = 20;
/// Users per page of v3 if the request sets no limit, and the highest limit.
const MANAGER_LIMIT_DEFAULT: u64 = 50;
const MANAGER_LIMIT_MAX: u64 = 200;

/// The registration time of the first user in nanoseconds. Each further user registered a second
/// later.
const FIRST_CREATED_AT: i64 = 1_700_000_000_000_000_000;
const CREATED_AT_STEP: i64 = 1_000_000_000;

/// One day, as the manager answers; the token of the mock never expires.
const LOGIN_SECONDS: u64 = 86_400;

/// A login of the manager of v3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    pub user: String,
    pub password: String,
}

/// A text that is not a login.
#[derive(Debug, thiserror::Error)]
#[error("not a login: give USER:PASSWORD")]
pub struct LoginError;

impl FromStr for Login {
    type Err = LoginError;

    fn from_str(text: &str) -> Result<Login, LoginError> {
        let (user, password) = text.split_once(':').ok_or(LoginError)?;
        Ok(Login {
            user: user.to_owned(),
            password: password.to_owned(),
        })
    }
}

impl Login {
    /// The JWT of this login, which is always the same and differs between logins.
    fn token(&self) -> String {
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
        let claims = URL_SAFE_NO_PAD.encode(json!({ "username": self.user }).to_string());
        let signed = fingerprint(&[self.user.as_bytes(), self.password.as_bytes()]);
        let signature = URL_SAFE_NO_PAD.encode(signed.to_be_bytes());
        format!("{header}.{claims}.{signature}")
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ClusterQuery {
    limit: Option<String>,
    offset_created_at: Option<String>,
    pre: Option<String>,
    uid: Option<String>,
}

/// A page of v2, or one user by uid. Numbers that cannot be read count as 0.
pub(super) fn cluster_users(state: &State, call: &Call) -> Answer {
    let Ok(Query(query)) = Query::<ClusterQuery>::try_from_uri(&call.parts.uri) else {
        return Answer::text(StatusCode::BAD_REQUEST, "");
    };
    let number = |text: &Option<String>| {
        let text = text.as_deref().unwrap_or_default();
        text.parse::<i64>().unwrap_or_default()
    };
    let limit = match number(&query.limit) {
        limit if limit > 0 => limit,
        _ => CLUSTER_LIMIT_DEFAULT,
    };
    let (numbers, more) = match query.uid.as_deref().map(str::trim) {
        None | Some("") => {
            let is_backward = number(&query.pre) == 1;
            cluster_page(state, limit, number(&query.offset_created_at), is_backward)
        }
        Some(uid) => (state.directory.number(uid).into_iter().collect(), false),
    };
    let data: Vec<Value> = numbers.into_iter().map(cluster_user).collect();
    let body = json!({
        "total": state.directory.count(),
        "more": i32::from(more),
        "data": data,
    });
    Answer::json(StatusCode::OK, &body)
}

/// The numbers of the users on a page, newest first, and whether there are more.
fn cluster_page(state: &State, limit: i64, offset: i64, is_backward: bool) -> (Vec<u64>, bool) {
    let count = i64::try_from(state.directory.count()).unwrap_or(i64::MAX);
    // How many users were created before the offset, and how many up to and including it.
    let older = older_than(offset).min(count);
    let not_newer = older_than(offset.saturating_add(1)).min(count);
    let (first, end, more) = match (offset > 0, is_backward) {
        (false, false) => (count.saturating_sub(limit).max(0), count, count > limit),
        (false, true) => (0, limit.min(count), count > limit),
        (true, false) => (older.saturating_sub(limit).max(0), older, older > limit),
        (true, true) => {
            let newer = count - not_newer;
            (not_newer, not_newer + newer.min(limit), newer > limit)
        }
    };
    let numbers = (first..end).rev().map(|index| index as u64 + 1).collect();
    (numbers, more)
}

/// How many users were created before this time, if their number had no limit.
fn older_than(created_at: i64) -> i64 {
    let since_first = created_at.saturating_sub(FIRST_CREATED_AT);
    match since_first {
        ..=0 => 0,
        since => (since - 1) / CREATED_AT_STEP + 1,
    }
}

fn cluster_user(number: u64) -> Value {
    let created_at = (number as i64 - 1)
        .saturating_mul(CREATED_AT_STEP)
        .saturating_add(FIRST_CREATED_AT);
    json!({
        "id": number,
        "uid": uid(number),
        "device_count": 0,
        "online_device_count": 0,
        "created_at": created_at,
        "updated_at": created_at,
    })
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct LoginRequest {
    #[serde(deserialize_with = "null_is_default")]
    username: String,
    #[serde(deserialize_with = "null_is_default")]
    password: String,
}

/// The token of v3. Without a configured login there is no login call.
pub(super) fn login(state: &State, call: &Call) -> Answer {
    let Some(login) = &state.manager else {
        return super::not_found();
    };
    let Ok(request) = go::object::<LoginRequest>(&call.body) else {
        return bad_request(state, "invalid_request", "invalid request");
    };
    if request.username != login.user || request.password != login.password {
        let status = StatusCode::UNAUTHORIZED;
        return problem(status, "invalid_credentials", "invalid credentials");
    }
    let body = json!({
        "username": login.user,
        "token_type": "Bearer",
        "access_token": login.token(),
        "expires_in": LOGIN_SECONDS,
        "permissions": [{ "resource": "*", "actions": ["*"] }],
    });
    Answer::json(StatusCode::OK, &body)
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct UsersQuery {
    limit: Option<String>,
    cursor: Option<String>,
}

/// A page of v3.
pub(super) fn users(state: &State, call: &Call) -> Answer {
    if !logged_in(state, call) {
        return problem(StatusCode::UNAUTHORIZED, "unauthorized", "unauthorized");
    }
    let query = Query::<UsersQuery>::try_from_uri(&call.parts.uri);
    let query = query.map(|Query(query)| query).unwrap_or_default();
    let limit = match query.limit.as_deref() {
        None | Some("") => Some(MANAGER_LIMIT_DEFAULT),
        Some(text) => text.parse().ok(),
    };
    let Some(limit @ 1..=MANAGER_LIMIT_MAX) = limit else {
        return bad_request(state, "bad_request", "invalid limit");
    };
    let Some(skip) = skip(query.cursor.as_deref().unwrap_or_default()) else {
        return bad_request(state, "bad_request", "invalid cursor");
    };
    let user = |uid: String| json!({ "uid": uid, "online": false, "device_count": 0 });
    let items: Vec<Value> = state.directory.page(skip, limit).map(user).collect();
    let next = skip.saturating_add(limit);
    let has_more = next < state.directory.count();
    let mut body = json!({ "items": items, "has_more": has_more });
    if has_more {
        body["next_cursor"] = json!(cursor(next));
    }
    Answer::json(StatusCode::OK, &body)
}

fn logged_in(state: &State, call: &Call) -> bool {
    let Some(login) = &state.manager else {
        return true;
    };
    let given = call.header("authorization").and_then(bearer);
    given.is_some_and(|given| given == login.token())
}

fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The cursor of the next page, in a form that callers cannot compute with.
fn cursor(skip: u64) -> String {
    URL_SAFE_NO_PAD.encode(format!("after:{skip}"))
}

fn skip(cursor: &str) -> Option<u64> {
    if cursor.is_empty() {
        return Some(0);
    }
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?;
    text.strip_prefix("after:")?.parse().ok()
}

fn bad_request(state: &State, code: &str, message: &str) -> Answer {
    count(&state.counters.invalid, 1);
    problem(StatusCode::BAD_REQUEST, code, message)
}

/// A failure, in the format of the manager of v3.
fn problem(status: StatusCode, code: &str, message: &str) -> Answer {
    Answer::json(status, &json!({ "error": code, "message": message }))
}
