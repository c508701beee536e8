//! Provides jobs and replies for the tests of all systems.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::value::RawValue;

use crate::domain::ids::JobId;
use crate::domain::lane::Priority;
use crate::domain::message::{Content, Options};
use crate::domain::slice::{Addressed, Head};
use crate::ports::{Calls, HttpReply, Request};

/// Texts that need escapes in JSON, a URL or a header.
pub(super) const AWKWARD: [&str; 12] = [
    "u1",
    "a\"b",
    "a\\b",
    "tab\tnew\nline\0",
    "ü/é?x=1&y=2#z",
    "..",
    "a b+c%20",
    "{recipient}",
    "\r\nx-injected: 1",
    "\u{2028}😀",
    "'; DROP",
    "\u{7f}\u{80}",
];

pub(super) fn head() -> Head {
    Head {
        id: JobId::of("shop", "promo-1"),
        app: "shop".into(),
        client_msg_no: "promo-1".into(),
        target: "im".into(),
        priority: Priority::Normal,
        sender: None,
        addressed: Addressed::Users,
        content: Content::Text("Hello \"you\"".into()),
        native: None,
        vars: None,
        options: Options::default(),
        accepted_at_ms: 1,
        not_before_ms: None,
        expires_at_ms: None,
        rate: None,
        window: None,
        pace_until_ms: None,
        category: None,
        on_uncertain: None,
        callback_url: None,
        reply_to: None,
        fallback: None,
        keep_ids: false,
        fell_from: None,
    }
}

pub(super) fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned()).unwrap()
}

pub(super) fn reply(status: u16, body: impl Into<Bytes>) -> HttpReply {
    HttpReply {
        status,
        headers: HeaderMap::new(),
        body: body.into(),
    }
}

pub(super) fn with_header(
    mut reply: HttpReply,
    name: &'static str,
    value: &'static str,
) -> HttpReply {
    let name = HeaderName::from_static(name);
    reply.headers.insert(name, HeaderValue::from_static(value));
    reply
}

/// A request as text, with its headers in their order.
pub(super) fn text(request: &Request) -> String {
    let mut text = format!("{} {}\n", request.method, request.uri);
    for (name, value) in &request.headers {
        text.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
    }
    text + "\n" + str::from_utf8(&request.body).unwrap()
}

/// The request. Checks first that it is the same each time, and the same for other calls of the
/// job.
pub(super) fn request(
    open: impl Fn(&Arc<Head>) -> Box<dyn Calls>,
    head: &Arc<Head>,
    recipients: &[&str],
) -> Request {
    let calls = open(head);
    let request = calls.request(recipients);
    assert_eq!(text(&request), text(&calls.request(recipients)));
    assert_eq!(text(&request), text(&open(head).request(recipients)));
    request
}
