//! Builds calls to an endpoint and reads their replies.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use fanwise_client::webhook::Signer;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::template::{Opened, OpenedUrl, Template, Url};
use super::{IDEMPOTENCY_KEY, Statuses};
use crate::codec::push_hex;
use crate::domain::fields::Problem;
use crate::domain::mapping::{Feature, Mapping};
use crate::domain::outcome::{Class, RefusalKind, TargetAnswer, Verdict};
use crate::domain::slice::{Addressed, Head};
use crate::im::json;
use crate::im::reading::{all_but, excerpt, retry_after, token, unreadable};
use crate::ports::{Calls, HttpReply, Profile, Request, Signing, Target};

/// One endpoint as a target.
pub struct Webhook {
    profile: Profile,
    url: Url,
    /// Further headers, as configured.
    headers: Vec<(HeaderName, Template)>,
    base: Arc<Base>,
}

/// The parts that all calls to an endpoint have in common.
pub(super) struct Base {
    pub(super) headers: HeaderMap,
    pub(super) signer: Option<Signer>,
    pub(super) statuses: Statuses,
}

impl Webhook {
    pub(super) fn new(
        profile: Profile,
        url: Url,
        headers: Vec<(HeaderName, Template)>,
        base: Base,
    ) -> Self {
        Self {
            profile,
            url,
            headers,
            base: Arc::new(base),
        }
    }
}

impl Target for Webhook {
    fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Everything is passed on; the endpoint decides what to do with it.
    fn maps(&self, feature: Feature) -> Mapping {
        match feature {
            Feature::All => Mapping::Refused("an endpoint cannot list users; give a list"),
            Feature::KeepIds => Mapping::Refused("an endpoint returns no ids of messages"),
            _ => Mapping::Exact("as in the job"),
        }
    }

    fn check(&self, _head: &Head) -> Vec<Problem> {
        Vec::new()
    }

    fn refusal_kind(&self, code: &str) -> RefusalKind {
        super::statuses::refusal_kind(code)
    }

    fn sign(&self, request: &mut Request, signing: Signing) {
        if let Some(signer) = &self.base.signer
            && let Some(id) = request.headers.get(IDEMPOTENCY_KEY).cloned()
        {
            signer.sign(&mut request.headers, &id, signing.now_ms, &request.body);
        }
    }

    fn open(&self, head: &Arc<Head>) -> Box<dyn Calls> {
        let packed = self.profile.recipients_per_call > 1;
        let mut headers = self.base.headers.clone();
        let mut per_recipient = Vec::new();
        for (name, template) in &self.headers {
            let opened = template.open(head);
            match opened.whole() {
                Some(whole) => drop(headers.insert(name, header_value(whole.to_owned()))),
                None => per_recipient.push((name.clone(), opened)),
            }
        }
        // Adds a placeholder entry for each header that a call fills in, so that a copy of the map
        // need not grow.
        let empty = HeaderValue::from_static("");
        let signed = self.base.signer.iter().flat_map(Signer::headers);
        let filled = per_recipient.iter().map(|(name, _)| name.clone());
        for name in filled.chain(signed) {
            headers.insert(name, empty.clone());
        }
        headers.insert(IDEMPOTENCY_KEY, empty);
        let mut before = common(head);
        before.extend_from_slice(match packed {
            true => br#","recipients":["#,
            false => br#","recipient":"#,
        });
        Box::new(WebhookCalls {
            base: Arc::clone(&self.base),
            packed,
            url: self.url.open(head),
            headers,
            per_recipient,
            job: head.id.to_string(),
            before,
        })
    }
}

/// The members that all calls of a job share.
fn common(head: &Head) -> Vec<u8> {
    let mut body = format!(r#"{{"job":"{}","app":"#, head.id).into_bytes();
    json::push_string(&mut body, &head.app);
    body.extend_from_slice(br#","client_msg_no":"#);
    json::push_string(&mut body, &head.client_msg_no);
    if let Some(sender) = &head.sender {
        body.extend_from_slice(br#","sender":"#);
        json::push_string(&mut body, sender);
    }
    if let Addressed::Groups(kind) = head.addressed {
        body.extend_from_slice(format!(r#","group_type":{kind}"#).as_bytes());
    }
    body.extend_from_slice(br#","message":"#);
    json::push(&mut body, &head.message());
    body.extend_from_slice(br#","options":"#);
    json::push(&mut body, &head.options);
    body
}

/// The calls of one job.
struct WebhookCalls {
    base: Arc<Base>,
    packed: bool,
    url: OpenedUrl,
    headers: HeaderMap,
    per_recipient: Vec<(HeaderName, Opened)>,
    job: String,
    /// The body up to the first recipient.
    before: Vec<u8>,
}

impl Calls for WebhookCalls {
    fn request(&self, recipients: &[&str]) -> Request {
        let recipient = recipients.first().copied().unwrap_or_default();
        let body = self.body(recipients);
        let mut headers = self.headers.clone();
        for (name, value) in &self.per_recipient {
            headers.insert(name, header_value(value.fill(recipient)));
        }
        let mut key = Vec::with_capacity(self.job.len() + 33);
        key.extend_from_slice(self.job.as_bytes());
        key.push(b'-');
        push_hex(&mut key, &json::digest::<16>(recipients));
        headers.insert(IDEMPOTENCY_KEY, header_value(key));
        Request {
            method: Method::POST,
            uri: self.url.fill(recipient),
            headers,
            body: Bytes::from(body),
        }
    }

    fn read_reply(&self, recipients: &[&str], reply: &HttpReply) -> Verdict {
        match self.base.statuses.class(reply.status) {
            Class::Done if self.packed => read_packed(recipients, reply),
            Class::Done => Verdict::All(TargetAnswer::done()),
            class => Verdict::All(
                TargetAnswer::new(class, reply.status.to_string(), excerpt(&reply.body))
                    .retry_after(retry_after(&reply.headers)),
            ),
        }
    }
}

impl WebhookCalls {
    fn body(&self, recipients: &[&str]) -> Vec<u8> {
        // Exact unless a recipient needs escapes.
        let length: usize = recipients.iter().map(|recipient| recipient.len() + 3).sum();
        let mut body = Vec::with_capacity(self.before.len() + length + 1);
        body.extend_from_slice(&self.before);
        for (index, recipient) in recipients.iter().enumerate() {
            if index > 0 {
                body.push(b',');
            }
            json::push_string(&mut body, recipient);
        }
        body.extend_from_slice(if self.packed { b"]}" } else { b"}" });
        body
    }
}

#[expect(
    clippy::expect_used,
    reason = "digits, a job id, or a template that was tried, filled with encoded texts"
)]
fn header_value(value: impl Into<Bytes>) -> HeaderValue {
    HeaderValue::from_maybe_shared(value.into()).expect("a header value")
}

/// Reads a success, which may name failed recipients in a JSON object. An empty body, a plain text,
/// a single JSON value or an empty list names none. A body that may be such an object and cannot be
/// read leaves all recipients in doubt, so that no recipient counts as sent that the endpoint may
/// have named.
fn read_packed(recipients: &[&str], reply: &HttpReply) -> Verdict {
    #[derive(Deserialize)]
    struct Accepted<'a> {
        #[serde(borrow)]
        failed: Option<Vec<Failed<'a>>>,
    }
    let body = reply.body.trim_ascii();
    let is_coded = says(reply, CONTENT_ENCODING).is_some_and(|coding| coding != "identity");
    let is_json = says(reply, CONTENT_TYPE).is_some_and(|kind| kind.contains("json"));
    if body.is_empty() {
        return Verdict::All(TargetAnswer::done());
    }
    if is_coded {
        return Verdict::All(unreadable(b"compressed, though we ask for no coding"));
    }
    match serde_json::from_slice::<Accepted<'_>>(body) {
        Ok(accepted) if body.starts_with(b"{") => {
            let failed = accepted.failed.unwrap_or_default();
            all_but(recipients, failed.into_iter().map(Failed::answer))
        }
        Ok(_) | Err(_) if names_nobody(body, is_json) => Verdict::All(TargetAnswer::done()),
        Ok(_) | Err(_) => Verdict::All(unreadable(body)),
    }
}

/// The value of a header in lower case.
fn says(reply: &HttpReply, name: HeaderName) -> Option<String> {
    let value = reply.headers.get(name)?;
    Some(
        String::from_utf8_lossy(value.as_bytes())
            .trim()
            .to_ascii_lowercase(),
    )
}

/// Whether a body that is not an object cannot name recipients: it is a text, an empty list, or a
/// single JSON value.
fn names_nobody(body: &[u8], is_json: bool) -> bool {
    use serde_json::Value::{Array, Object};
    match serde_json::from_slice(body) {
        Ok(Object(_)) => false,
        Ok(Array(entries)) => entries.is_empty(),
        Ok(_) => true,
        // A text, but not UTF-16, which contains zero bytes.
        Err(_) => {
            let is_text = str::from_utf8(body).is_ok() && !body.contains(&0);
            is_text && !is_json && !body.starts_with(b"{") && !body.starts_with(b"[")
        }
    }
}

/// A recipient that the endpoint reports as failed.
#[derive(Deserialize)]
struct Failed<'a> {
    #[serde(borrow)]
    recipient: Cow<'a, str>,
    /// A text or a number.
    #[serde(borrow)]
    code: Option<&'a RawValue>,
    message: Option<String>,
    class: Option<Class>,
}

impl<'a> Failed<'a> {
    fn answer(self) -> (Cow<'a, str>, TargetAnswer) {
        let code = self.code.map_or(Cow::Borrowed("failed"), |code| {
            Cow::Owned(token(code.get().trim_matches('"')))
        });
        let class = self.class.unwrap_or(Class::Permanent);
        let answer = match class {
            Class::Done => TargetAnswer::done(),
            class => TargetAnswer::new(class, code, self.message.unwrap_or_default()),
        };
        (self.recipient, answer)
    }
}
