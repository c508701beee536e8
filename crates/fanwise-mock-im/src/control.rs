//! Serves `/_mock/…` and `/livez`, which observe and control the mock. Requests here get no faults
//! and are not counted.

use axum::extract::Query;
use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Call;
use super::faults::FaultsError;
use super::openim;
use super::reply::Answer;
use super::state::State;

#[derive(Default, Deserialize)]
#[serde(default)]
struct AcceptedQuery {
    recipient: Option<String>,
}

/// Answers the request if its path belongs to this module.
pub(super) fn answer(state: &State, call: &Call) -> Option<Answer> {
    let answer = match (&call.parts.method, call.parts.uri.path()) {
        (&Method::GET, "/livez") => Answer::text(StatusCode::OK, "ok"),
        (&Method::GET, "/_mock/stats") => Answer::json(StatusCode::OK, &state.stats()),
        (&Method::GET, "/_mock/faults") => Answer::json(StatusCode::OK, state.chooser().faults()),
        (&Method::POST, "/_mock/faults") => patch(state, call),
        (&Method::GET, "/_mock/accepted") => accepted(state, call),
        (_, path) if path.starts_with("/_mock/openim") => {
            openim::control(state, call).unwrap_or_else(no_such_control)
        }
        (_, path) if path.starts_with("/_mock") => no_such_control(),
        _ => return None,
    };
    Some(answer)
}

fn no_such_control() -> Answer {
    let text = "no such control; see fanwise mock-im --help";
    problem(StatusCode::NOT_FOUND, text)
}

fn patch(state: &State, call: &Call) -> Answer {
    let patched = serde_json::from_slice::<Value>(&call.body)
        .map_err(FaultsError::Patch)
        .and_then(|patch| state.patch_faults(&patch));
    settings(patched.as_ref())
}

/// The settings after a patch, or the reason why it was refused.
pub(super) fn settings<T: Serialize>(patched: Result<&T, &FaultsError>) -> Answer {
    match patched {
        Ok(settings) => Answer::json(StatusCode::OK, settings),
        Err(FaultsError::Patch(error)) => problem(StatusCode::BAD_REQUEST, &error.to_string()),
        Err(error) => problem(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

fn accepted(state: &State, call: &Call) -> Answer {
    let query = Query::<AcceptedQuery>::try_from_uri(&call.parts.uri);
    let Ok(Query(query)) = query else {
        return problem(StatusCode::BAD_REQUEST, "the query cannot be read");
    };
    let entries = match &query.recipient {
        Some(recipient) => state.book.of(recipient),
        None => state.book.all(),
    };
    let body = json!({ "complete": state.book.is_complete(), "entries": entries });
    Answer::json(StatusCode::OK, &body)
}

pub(super) fn problem(status: StatusCode, text: &str) -> Answer {
    Answer::json(status, &json!({ "error": text }))
}
