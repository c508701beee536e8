//! Why a request of a drop-in endpoint is not carried out, and the refusal in the system's terms.

use std::time::Duration;

use axum::http::{HeaderValue, Method, header};
use axum::response::Response;

use super::out;
use crate::domain::fields::{Problem, summary};
use crate::error::chain;
use crate::gateway::problem::{RETRY_AFTER_SECONDS, Refusal as Native};
use crate::im::ingress::{Ingress, Refusal, Spoken};
use crate::ports::LedgerError;
use crate::service::admission::Refused;

/// Why a request is not carried out, with details.
pub(super) enum Failure {
    WrongMethod(Method),
    Unreadable(String),
    Problems(Vec<Problem>),
    Conflict,
    TooOften(Duration),
    Replayed,
    Forbidden(String),
    Unavailable(String),
    /// Accepted, but its jobs do not move; the time says for how long it is no use to ask again.
    StandsStill(String, Duration),
}

impl Failure {
    /// Whether the same request may succeed later. If not, its nonce stays used, so that a third
    /// party that overheard the request cannot have it counted again.
    pub(super) fn will_pass(&self) -> bool {
        matches!(self, Self::TooOften(_) | Self::Unavailable(_))
    }

    pub(super) fn response(&self, ingress: &dyn Ingress) -> Response {
        let mut response = out(self.refuse(ingress));
        let headers = response.headers_mut();
        match self {
            Self::WrongMethod(_) => {
                headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
            }
            Self::Unavailable(_) => {
                let seconds = HeaderValue::from(RETRY_AFTER_SECONDS);
                headers.insert(header::RETRY_AFTER, seconds);
            }
            Self::StandsStill(_, after) => {
                let seconds = HeaderValue::from(after.as_secs());
                headers.insert(header::RETRY_AFTER, seconds);
            }
            _ => {}
        }
        response
    }

    fn refuse(&self, ingress: &dyn Ingress) -> Spoken {
        ingress.refuse(&match self {
            Self::WrongMethod(method) => {
                let what = format!("{method} is not supported here, use POST");
                return ingress.refuse(&Refusal::Unreadable(&what));
            }
            Self::Unreadable(what) => Refusal::Unreadable(what),
            Self::Problems(problems) => Refusal::Problems(problems),
            Self::Conflict => Refusal::Conflict,
            Self::TooOften(block) => Refusal::TooOften { block: *block },
            Self::Replayed => Refusal::Replayed,
            Self::Forbidden(what) => Refusal::Forbidden(what),
            Self::Unavailable(what) | Self::StandsStill(what, _) => Refusal::Unavailable(what),
        })
    }
}

impl From<LedgerError> for Failure {
    fn from(error: LedgerError) -> Self {
        Self::Unavailable(chain(&error))
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Problems(problems) => Self::Problems(problems),
            Refused::Conflict(_) => Self::Conflict,
            other => Native::from(other).into(),
        }
    }
}

impl From<Native> for Failure {
    fn from(refusal: Native) -> Self {
        match refusal {
            Native::BadBody(_, what) => Self::Unreadable(what),
            Native::FromBrowser | Native::OtherHost(_) => Self::Forbidden(refusal.words().1),
            Native::Forbidden(problems) => Self::Forbidden(summary(&problems)),
            Native::Denied { text, .. } => Self::Forbidden(text),
            Native::TooOften { after, .. } => Self::TooOften(after),
            Native::Unavailable(what) => Self::Unavailable(what),
            other => {
                let (title, detail) = other.words();
                Self::Unavailable(format!("{title}: {detail}"))
            }
        }
    }
}
