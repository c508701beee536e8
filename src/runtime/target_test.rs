//! Sends one message to one user through a target, and tells the request and the answer.
//!
//! The call is made as a worker makes it, but at once: no limit, pause or parking holds it back, and
//! no accounts are written. What may be secret is left out of what is told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use serde_json::json;
use tokio::time::Instant;

use super::call::authorised;
use super::credential::Keyring;
use crate::clock::{now, now_ms};
use crate::domain::codes::ClassByCode;
use crate::domain::fields::{Problem, shorten};
use crate::domain::job::Job;
use crate::domain::outcome::{Class, TargetAnswer, Verdict};
use crate::ports::{HttpReply, Request, Target, Transport, fit};
use crate::secret::without_credentials;
use crate::service::admission::Rules;
use crate::service::target_test::{TestRequest, Tested, ToldReply, ToldRequest};

/// The text of a test message that has none.
const TEXT: &str = "A test message of Fanwise";

/// Longest part of a body that is told.
const BODY_TOLD: usize = 4096;

/// Headers whose values are no secrets; all others are hidden.
const TOLD: [&str; 9] = [
    "content-type",
    "content-length",
    "accept",
    "date",
    "server",
    "idempotency-key",
    "operationid",
    "retry-after",
    "webhook-id",
];

/// What a call to a target needs.
pub struct Through<'a, T> {
    pub target: &'a dyn Target,
    pub transport: &'a T,
    pub keyring: &'a Keyring,
    pub timeout: Duration,
    pub classes: &'a ClassByCode,
}

/// Sends the message. The error says why the target cannot get such a message.
pub async fn test<T: Transport>(
    rules: &impl Rules,
    through: &Through<'_, T>,
    app: &str,
    target: &str,
    message: &TestRequest,
) -> Result<Tested, Vec<Problem>> {
    let body = document(app, target, message);
    let job = Job::parse(body.as_bytes(), None, rules, now())?;
    let fit = fit(through.target, &job.head, false, job.strictness);
    if !fit.problems.is_empty() {
        return Err(fit.problems);
    }
    let head = Arc::new(job.head.clone());
    let calls = through.target.open(&head);
    let to = [message.to.as_str()];
    let mut told = None;
    // A target that refuses a credential has carried nothing out: once more with a new one.
    let mut refused = false;
    loop {
        let mut started = Instant::now();
        let sign = |request: &mut Request, signing| {
            through.target.sign(request, signing);
            told = Some(tell_request(request));
            started = Instant::now();
        };
        let made = authorised(
            through.transport,
            through.target.login(),
            through.keyring,
            through.timeout,
            sign,
            || calls.request(&to),
        );
        let (sent, held) = match made.await {
            Ok(made) => made,
            Err(answer) => return Ok(tested(None, None, &answer)),
        };
        let milliseconds = started.elapsed().as_millis() as u64;
        let verdict = through.classes.apply(match &sent {
            Ok(reply) => calls.read_reply(&to, reply),
            Err(error) => Verdict::All(error.into()),
        });
        match held {
            Some(held) if !refused && verdict.whole().is_some_and(|it| it.stale) => {
                through.keyring.refuse(&held);
                refused = true;
            }
            _ => {
                let reply = sent.ok().map(|reply| tell_reply(&reply, milliseconds));
                return Ok(tested(told, reply, verdict.of(0)));
            }
        }
    }
}

fn document(app: &str, target: &str, message: &TestRequest) -> String {
    let mut document = json!({
        "v": 1,
        "app": app,
        "target": target,
        "client_msg_no": format!("fanwise-target-test-{}", now_ms()),
        "message": {
            "type": "text", "text": message.text.as_deref().unwrap_or(TEXT), "literal": true,
        },
        "audience": {"users": [message.to]},
    });
    if let Some(sender) = &message.sender {
        document["sender"] = sender.clone().into();
    }
    document.to_string()
}

fn tested(request: Option<ToldRequest>, reply: Option<ToldReply>, answer: &TargetAnswer) -> Tested {
    Tested {
        sent: answer.class == Class::Done,
        request,
        reply,
        class: answer.class,
        code: answer.code.to_string(),
        text: answer.text.to_string(),
    }
}

fn tell_request(request: &Request) -> ToldRequest {
    ToldRequest {
        method: request.method.to_string(),
        url: without_credentials(&request.uri.to_string()),
        headers: tell_headers(&request.headers),
        body: tell_body(&request.body),
    }
}

fn tell_reply(reply: &HttpReply, milliseconds: u64) -> ToldReply {
    ToldReply {
        status: reply.status,
        headers: tell_headers(&reply.headers),
        body: tell_body(&reply.body),
        milliseconds,
    }
}

fn tell_headers(headers: &HeaderMap) -> BTreeMap<String, String> {
    let told = headers.iter().map(|(name, value)| {
        let value = match TOLD.contains(&name.as_str()) {
            true => String::from_utf8_lossy(value.as_bytes()).into_owned(),
            false => "(hidden)".to_owned(),
        };
        (name.to_string(), value)
    });
    told.collect()
}

fn tell_body(bytes: &[u8]) -> String {
    shorten(&String::from_utf8_lossy(bytes), BODY_TOLD).into_owned()
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, header};

    use super::*;

    #[test]
    fn what_may_be_secret_is_left_out() {
        let mut headers = HeaderMap::new();
        for name in ["token", "appkey", "checksum", "webhook-signature", "cookie"] {
            headers.insert(name, HeaderValue::from_static("s3cret"));
        }
        headers.insert(
            header::AUTHORIZATION,
            HeaderValue::from_static("Bearer s3cret"),
        );
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        let request = Request {
            method: http::Method::POST,
            uri: "http://im.example.com/send?secret=s3cret".parse().unwrap(),
            headers,
            body: "hello".into(),
        };
        let told = serde_json::to_string(&tell_request(&request)).unwrap();
        assert!(!told.contains("s3cret"), "{told}");
        assert!(
            told.contains("application/json") && told.contains("hello"),
            "{told}"
        );
    }

    #[test]
    fn a_long_body_is_cut() {
        let told = tell_body(&[b'x'; 3 * BODY_TOLD]);
        assert!(told.len() <= BODY_TOLD + 3, "{}", told.len());
    }
}
