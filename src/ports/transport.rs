//! The port that carries requests to targets.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};

use crate::domain::outcome::{Class, TargetAnswer};

#[derive(Clone, Debug)]
pub struct Request {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
}

#[derive(Clone, Debug)]
pub struct HttpReply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Carries requests to backends: one request, one answer, no retries, no redirects.
pub trait Transport: Send + Sync + 'static {
    /// `Ok`: a whole reply was read. The transport never repeats a request: only the worker knows
    /// whether that is safe.
    fn send(
        &self,
        request: Request,
        timeout: Duration,
    ) -> impl Future<Output = Result<HttpReply, SendError>> + Send;

    /// Closes connections that were idle for too long. Called now and then.
    fn tidy(&self) {}
}

/// Why there is no reply. `code` is one token, so it can be used in a filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Certainly not sent: no byte of the request left.
    #[error("not sent: {what}")]
    NotSent { what: String, code: &'static str },
    /// Possibly sent: the request left, wholly or in part, and no complete reply came back.
    #[error("perhaps sent: {what}")]
    Unknown { what: String, code: &'static str },
}

/// The code for a server whose certificate cannot be trusted.
pub const CERTIFICATE: &str = "certificate";

/// The code for a server in a private network that may not be called.
pub const PRIVATE_ADDRESS: &str = "private_address";

/// The code for a URL that names no server.
pub const BAD_URL: &str = "bad_url";

impl SendError {
    /// The meaning of the error for the recipients of the call.
    pub fn answer(&self) -> TargetAnswer {
        let (class, code, what) = match self {
            // No later attempt helps, and the recipients are not at fault.
            Self::NotSent { what, code }
                if [CERTIFICATE, BAD_URL, PRIVATE_ADDRESS].contains(code) =>
            {
                (Class::Config, code, what)
            }
            Self::NotSent { what, code } => (Class::Transient, code, what),
            Self::Unknown { what, code } => (Class::Uncertain, code, what),
        };
        let answer = TargetAnswer::new(class, *code, what.clone());
        match self {
            Self::NotSent { .. } => answer.unreached(),
            Self::Unknown { .. } => answer,
        }
    }
}
