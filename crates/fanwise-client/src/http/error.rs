//! Why a server did not do what it was asked to.

use std::time::Duration;

use fanwise_net::http::{HttpReply, SendError};
use http::header;

use crate::answer::Problem;
use crate::id::JobId;

/// What is wrong with the address of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}; an address such as https://fanwise.example.com or http://127.0.0.1:9700 is expected")]
pub struct BadAddress(pub(super) &'static str);

/// What is wrong with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    #[error("is empty")]
    Empty,
    #[error("has characters that a token cannot have, such as spaces")]
    NotOneWord,
}

/// Why a request did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no answer. The server may have done what it was asked to: the same request again is
    /// safe for jobs.
    #[error("{server}: {source}")]
    NoAnswer { server: String, source: SendError },
    #[error("{server} answers {refused}")]
    Refused {
        server: String,
        refused: Box<Refused>,
    },
    #[error("{server}: the answer is not that of this version")]
    Unreadable {
        server: String,
        source: serde_json::Error,
    },
    /// Nothing was asked: a part of the request has no form in HTTP.
    #[error("{0} cannot be sent")]
    NotARequest(String),
    /// The list of recipients cannot be read.
    #[error("the list of recipients: {0}")]
    List(std::io::Error),
    #[error("there is no job {0}: it was never accepted, or it is older than the dedup window")]
    UnknownJob(JobId),
}

impl Error {
    /// Whether the same request may succeed later, as it is.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::NoAnswer { source, .. } => !source.is_lasting(),
            Self::Refused { refused, .. } => refused.is_temporary(),
            Self::Unreadable { .. }
            | Self::NotARequest(_)
            | Self::List(_)
            | Self::UnknownJob(_) => false,
        }
    }

    /// How long the server asks to wait before the next try.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { refused, .. } => refused.retry_after,
            _ => None,
        }
    }
}

/// An answer that is no success.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {}", self.text())]
pub struct Refused {
    pub status: u16,
    /// `None` if something else than Fanwise answers there.
    pub problem: Option<Problem>,
    /// The beginning of the body, if it is no problem document.
    pub body: String,
    pub retry_after: Option<Duration>,
}

/// Most bytes of a body that an error shows.
const BODY_SHOWN: usize = 400;

impl Refused {
    pub fn of(reply: &HttpReply) -> Self {
        let problem = serde_json::from_slice(&reply.body).ok();
        let body = match &problem {
            Some(_) => String::new(),
            None => {
                let begin = &reply.body[..reply.body.len().min(BODY_SHOWN)];
                String::from_utf8_lossy(begin).trim().to_owned()
            }
        };
        let seconds = reply.headers.get(header::RETRY_AFTER);
        let seconds = seconds.and_then(|value| value.to_str().ok()?.trim().parse().ok());
        Self {
            status: reply.status,
            problem,
            body,
            retry_after: seconds.map(Duration::from_secs),
        }
    }

    /// Whether the same request may succeed later, as it is: 429, and 5xx.
    pub fn is_temporary(&self) -> bool {
        self.status == 429 || self.status >= 500
    }

    fn text(&self) -> &str {
        match &self.problem {
            Some(problem) => &problem.detail,
            None => &self.body,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    fn refused(status: u16, body: &str) -> Refused {
        let headers = HeaderMap::from_iter([(header::RETRY_AFTER, "7".parse().unwrap())]);
        Refused::of(&HttpReply {
            status,
            headers,
            body: body.to_owned().into(),
        })
    }

    #[test]
    fn a_refusal_tells_what_is_wrong_and_whether_to_come_again() {
        let body = r#"{"title": "not a valid job", "detail": "message: missing", "status": 400,
            "problems": [{"field": "message", "what": "missing"}]}"#;
        let bad = refused(400, body);
        assert_eq!(bad.to_string(), "400: message: missing");
        assert_eq!(bad.problem.as_ref().unwrap().problems[0].field, "message");
        for (status, temporary) in [(409, false), (429, true), (500, true), (503, true)] {
            let refused = refused(status, "<html>");
            assert_eq!(refused.is_temporary(), temporary, "{status}");
            assert_eq!(refused.to_string(), format!("{status}: <html>"));
            assert_eq!(refused.retry_after, Some(Duration::from_secs(7)));
        }
    }
}
