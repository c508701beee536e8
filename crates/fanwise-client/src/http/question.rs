//! One request to a server.

use std::time::Duration;

use bytes::Bytes;
use fanwise_net::http::push_segment;
use http::Method;

pub const JSON: &str = "application/json";
pub const NDJSON: &str = "application/x-ndjson";

/// A request to the server, for what [`Server`](super::Server) has no function for.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    pub method: Method,
    /// With its query, such as `/v1/jobs?state=running`.
    pub path: &'a str,
    /// The type of the body.
    pub kind: Option<&'a str>,
    pub body: Bytes,
    /// W3C trace context that goes with every send.
    pub traceparent: Option<&'a str>,
    /// The `client_msg_no` of a job that has none.
    pub idempotency_key: Option<&'a str>,
    /// The type of the answer.
    pub accept: &'a str,
    /// Longest wait for the answer, if it is not the usual one.
    pub patience: Option<Duration>,
}

impl<'a> Question<'a> {
    /// Without a body; the answer is JSON.
    pub fn new(method: Method, path: &'a str) -> Self {
        Self {
            method,
            path,
            kind: None,
            body: Bytes::new(),
            traceparent: None,
            idempotency_key: None,
            accept: JSON,
            patience: None,
        }
    }

    /// With a body of this type.
    #[must_use]
    pub fn with(self, kind: &'a str, body: impl Into<Bytes>) -> Self {
        Self {
            kind: Some(kind),
            body: body.into(),
            ..self
        }
    }
}

/// A text as a segment of a path or a value of a query.
pub fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    push_segment(&mut encoded, text);
    encoded
}

/// Parameters as the query of a path, with its question mark; empty without any.
pub fn query<'p>(parameters: impl IntoIterator<Item = (&'p str, &'p str)>) -> String {
    let pairs = parameters.into_iter();
    let pairs: Vec<_> = pairs
        .map(|(name, value)| format!("{name}={}", encoded(value)))
        .collect();
    match pairs.is_empty() {
        true => String::new(),
        false => format!("?{}", pairs.join("&")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_has_its_question_mark() {
        assert_eq!(query([]), "");
        assert_eq!(query([("a", "1 2"), ("b", "&")]), "?a=1%202&b=%26");
    }
}
