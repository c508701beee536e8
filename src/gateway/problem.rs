//! Writes refusals as `application/problem+json` (RFC 9457).

use std::time::Duration;

use axum::body::to_bytes;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use strum::{IntoStaticStr, VariantNames};

use crate::domain::fields::{Problem, shorten, summary};
use crate::domain::ids::JobId;
use crate::domain::limits::Rate;
use crate::error::chain;
use crate::ports::{BrokerError, LedgerError, PublishError};

/// When to repeat a request that is not possible now.
pub(super) const RETRY_AFTER_SECONDS: u64 = 1;

const PROBLEM: &str = "application/problem+json";

/// The bad lines of an uploaded list: the first ones, and how many there are.
#[derive(Debug, Default)]
pub(super) struct BadLines {
    first: Vec<Problem>,
    count: u64,
}

/// Most bad lines that are listed.
const LINES_TOLD: usize = 20;

impl BadLines {
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn add(&mut self, line: u64, what: String) {
        self.count += 1;
        if self.first.len() < LINES_TOLD {
            self.first.push(Problem::new(format!("line {line}"), what));
        }
    }
}

/// Why a request is refused.
#[derive(Debug, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub(super) enum Refusal {
    /// The job is not valid, for all these reasons.
    BadJob(Vec<Problem>),
    /// The query is wrong, for all these reasons.
    BadQuery(Vec<Problem>),
    /// The request in the body is wrong, for all these reasons.
    BadRequest(Vec<Problem>),
    /// An uploaded list has bad lines.
    BadLines(BadLines),
    /// The body is too large or cannot be read.
    BadBody(StatusCode, String),
    /// The key belongs to another message.
    Conflict(JobId),
    /// Only a part of the list came before, and the list was given up.
    GivenUp(JobId),
    NotFound(String),
    /// It exists, but it is too late for this.
    TooLate(String),
    BadMethod(String),
    Unauthorized,
    /// The head of the request is not valid HTTP.
    BadHead(String),
    /// A web page sent it, where no credentials are required.
    FromBrowser,
    /// It names another host, where no credentials are required.
    OtherHost(String),
    /// The caller or the app may not do it, for all these reasons.
    Forbidden(Vec<Problem>),
    /// `before_accept` refused it.
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

impl Refusal {
    /// Status, title, and details with what to do.
    fn told(&self) -> (StatusCode, &'static str, String) {
        match self {
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
            Self::BadLines(bad) => (
                StatusCode::BAD_REQUEST,
                "bad lines, nothing was accepted",
                format!(
                    "{} bad line(s), the first: {}",
                    bad.count,
                    summary(&bad.first)
                ),
            ),
            Self::BadBody(status, what) => (*status, "the body is not accepted", what.clone()),
            Self::Conflict(job) => (
                StatusCode::CONFLICT,
                "client_msg_no belongs to another message",
                format!(
                    "it was first used by job {job}; use a new client_msg_no for a new message"
                ),
            ),
            Self::TooLate(what) => (StatusCode::CONFLICT, "too late", what.clone()),
            Self::GivenUp(job) => (
                StatusCode::CONFLICT,
                "the list was given up",
                format!(
                    "some of its parts did not come within an hour after the first, so the recipients of \
                     the others were cancelled, see job {job}; use a new client_msg_no"
                ),
            ),
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
                format!("the app may send {rate} (apps.NAME.request_rate)"),
            ),
            Self::FromBrowser => (
                StatusCode::FORBIDDEN,
                "not for web pages",
                "a request that a web page of another site makes needs credentials; set gateway.token"
                    .to_owned(),
            ),
            Self::OtherHost(host) => (
                StatusCode::FORBIDDEN,
                "not for other hosts",
                format!(
                    "{:?} is not this machine; without credentials, use localhost or 127.0.0.1, or set \
                     gateway.token",
                    shorten(host, SHOWN)
                ),
            ),
            Self::BadHead(what) => (StatusCode::BAD_REQUEST, "not a valid request", what.clone()),
            Self::Unavailable(what) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "not possible now, try again",
                what.clone(),
            ),
        }
    }

    /// Title, and details with what to do.
    pub(super) fn words(&self) -> (&'static str, String) {
        let (_, title, detail) = self.told();
        (title, detail)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, title, detail) = self.told();
        let detail = shorten(&detail, DETAIL_BYTES_MAX);
        let kind: &str = (&self).into();
        let mut body = json!({"type": "about:blank", "status": status.as_u16(), "kind": kind, "title": title, "detail": detail});
        match &self {
            Self::BadJob(problems)
            | Self::BadQuery(problems)
            | Self::BadRequest(problems)
            | Self::Forbidden(problems) => {
                let shown = &problems[..problems.len().min(PROBLEMS_MAX)];
                body["problems"] = json!(shown);
            }
            Self::BadLines(bad) => {
                body["problems"] = json!(bad.first);
                body["bad_lines"] = json!(bad.count);
            }
            Self::Conflict(job) | Self::GivenUp(job) => body["job"] = json!(job),
            Self::Denied { code, .. } => body["code"] = json!(code),
            _ => {}
        }
        let mut response = (status, body.to_string()).into_response();
        let json = HeaderValue::from_static(PROBLEM);
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        let retry_after = match self {
            Self::Unavailable(_) => Some(RETRY_AFTER_SECONDS),
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

/// Longest text of the details: twenty problems of the longest kind.
const DETAIL_BYTES_MAX: usize = 16 * 1024;

/// Most problems that are listed. Each text has a bound of its own.
const PROBLEMS_MAX: usize = 100;

/// Most bytes of a caller's own text that are quoted.
const SHOWN: usize = 100;

/// Puts all other refusals, such as for an unknown route, into the same form.
pub(super) async fn uniform(response: Response) -> Response {
    let status = response.status();
    let is_problem = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind == PROBLEM);
    if is_problem || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let (mut head, body) = response.into_parts();
    let text = to_bytes(body, DETAIL_BYTES_MAX).await.unwrap_or_default();
    let title = status.canonical_reason().unwrap_or("refused");
    let detail = String::from_utf8_lossy(&text);
    let body = json!({"type": "about:blank", "status": status.as_u16(), "title": title, "detail": detail.trim()});
    let kind = HeaderValue::from_static(PROBLEM);
    head.headers.insert(header::CONTENT_TYPE, kind);
    head.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(head, body.to_string().into())
}
