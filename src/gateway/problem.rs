//! Errors as `application/problem+json` (RFC 9457).

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::domain::fields::{Problem, summary};
use crate::domain::ids::JobId;
use crate::domain::limits::Rate;
use crate::ports::{BrokerError, LedgerError, PublishError};
use crate::worker::chain;

/// Why a request is not done.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The job is no job, for all these reasons.
    BadJob(Vec<Problem>),
    /// The query is wrong, for all these reasons.
    BadQuery(Vec<Problem>),
    /// The request in the body is wrong, for all these reasons.
    BadRequest(Vec<Problem>),
    /// The body is too large or cannot be read.
    BadBody(StatusCode, String),
    /// The key stands for another message.
    Conflict(JobId),
    NotFound(String),
    /// It is known, and it is too late for this.
    TooLate(String),
    BadMethod(String),
    Unauthorized,
    /// The caller or the app may not, for all these reasons.
    Forbidden(Vec<Problem>),
    /// `before_accept` says no.
    Denied {
        code: String,
        text: String,
    },
    /// More requests than the app may send.
    TooOften {
        rate: Rate,
        after: Duration,
    },
    /// Neither done nor refused: try again.
    Unavailable(String),
}

impl From<BrokerError> for Refusal {
    fn from(error: BrokerError) -> Self {
        Self::Unavailable(chain(&error))
    }
}

impl From<LedgerError> for Refusal {
    fn from(error: LedgerError) -> Self {
        Self::Unavailable(chain(&error))
    }
}

impl From<PublishError> for Refusal {
    fn from(error: PublishError) -> Self {
        Self::Unavailable(chain(&error))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, title, detail) = match &self {
            Self::BadJob(problems) => (
                StatusCode::BAD_REQUEST,
                "not a valid job",
                summary(problems),
            ),
            Self::BadQuery(problems) => (
                StatusCode::BAD_REQUEST,
                "not a valid query",
                summary(problems),
            ),
            Self::BadRequest(problems) => (
                StatusCode::BAD_REQUEST,
                "not a valid request",
                summary(problems),
            ),
            Self::BadBody(status, what) => (*status, "the body cannot be taken", what.clone()),
            Self::Conflict(job) => (
                StatusCode::CONFLICT,
                "client_msg_no stands for another message",
                format!(
                    "it was first used by job {job}; use a new client_msg_no for a new message"
                ),
            ),
            Self::TooLate(what) => (StatusCode::CONFLICT, "too late", what.clone()),
            Self::NotFound(what) => (StatusCode::NOT_FOUND, "not found", what.clone()),
            Self::BadMethod(what) => (StatusCode::METHOD_NOT_ALLOWED, "wrong method", what.clone()),
            Self::Unauthorized => (
                StatusCode::UNAUTHORIZED,
                "no or wrong token",
                "send the header Authorization: Bearer <gateway.token or apps.NAME.token>"
                    .to_owned(),
            ),
            Self::Forbidden(problems) => (StatusCode::FORBIDDEN, "not allowed", summary(problems)),
            Self::Denied { text, .. } => (
                StatusCode::FORBIDDEN,
                "refused by before_accept",
                text.clone(),
            ),
            Self::TooOften { rate, .. } => (
                StatusCode::TOO_MANY_REQUESTS,
                "too many requests",
                format!("the app may send {rate} (apps.NAME.requests)"),
            ),
            Self::Unavailable(what) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "not possible now, try again",
                what.clone(),
            ),
        };
        let mut body = json!({"type": "about:blank", "status": status.as_u16(), "title": title, "detail": detail});
        match &self {
            Self::BadJob(problems)
            | Self::BadQuery(problems)
            | Self::BadRequest(problems)
            | Self::Forbidden(problems) => {
                body["problems"] = json!(problems);
            }
            Self::Conflict(job) => body["job"] = json!(job),
            Self::Denied { code, .. } => body["code"] = json!(code),
            _ => {}
        }
        let mut response = (status, body.to_string()).into_response();
        let json = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        let retry_after = match self {
            Self::Unavailable(_) => Some(1),
            Self::TooOften { after, .. } => Some(after.as_millis().div_ceil(1000).max(1) as u64),
            _ => None,
        };
        if let Some(seconds) = retry_after {
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
