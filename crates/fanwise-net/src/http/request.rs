//! A request, its reply, and the two ways in which there is none.

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};

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
    /// Whether no later attempt helps, because the address or the trust in its server is wrong.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::NotSent { code, .. } => [CERTIFICATE, BAD_URL, PRIVATE_ADDRESS].contains(code),
            Self::Unknown { .. } => false,
        }
    }
}
