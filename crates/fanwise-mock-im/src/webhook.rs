//! Simulates a plain webhook receiver: `POST` to any path below `/hook`.
//!
//! The recipients are `recipient` or `recipients` of a JSON body, or else the rest of the path
//! (`/hook/u1`), whatever the body is. A single refused recipient makes the answer a 410; of
//! several, the refused ones are listed and the others accepted. The client_msg_no comes from the
//! body, or else from `Idempotency-Key`.
//!
//! With `--webhook-idempotent` a repeated `Idempotency-Key` gets the first answer again. The same
//! key with other recipients or another client_msg_no is answered 422: a retry must have the same
//! recipients.

use std::sync::{Arc, OnceLock};

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::faults::{CallPlan, FaultKind};
use super::log::{fingerprint, shown_payload};
use super::reply::Answer;
use super::state::{Origin, Receipt, State, count};
use super::{Call, System};

/// The first use of an idempotency key. Later requests wait for its answer.
#[derive(Debug, Default)]
pub(super) struct KnownKey(OnceLock<First>);

#[derive(Debug)]
struct First {
    content: u128,
    answer: Answer,
    accepted: Vec<(String, i64, u64)>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Body {
    recipient: Option<String>,
    recipients: Option<Vec<String>>,
    client_msg_no: Option<String>,
    #[serde(alias = "sender", alias = "from_uid")]
    from: Option<String>,
}

/// The content of a request.
struct Post {
    recipients: Vec<String>,
    packed: bool,
    client_msg_no: String,
    from: String,
}

impl Post {
    fn content(&self) -> u128 {
        let recipients = self.recipients.iter().map(String::as_bytes);
        let parts: Vec<&[u8]> = std::iter::once(self.client_msg_no.as_bytes())
            .chain(recipients)
            .collect();
        fingerprint(&parts)
    }
}

/// Answers a request to `/hook` or below it.
pub(super) fn answer(state: &State, call: &Call, plan: &CallPlan) -> Answer {
    if call.parts.method != Method::POST {
        return failure(StatusCode::METHOD_NOT_ALLOWED, "method", "POST only");
    }
    let Some(post) = parse(call) else {
        count(&state.counters.invalid, 1);
        return failure(StatusCode::BAD_REQUEST, "invalid", "no recipient");
    };
    let origin = Origin {
        system: System::Webhook.name(),
        from: post.from.clone(),
        payload: shown_payload(&call.body),
        traceparent: call.traceparent().map(Arc::from),
        channel_type: 1,
        no_persist: false,
        sync_once: false,
        unnumbered: post.client_msg_no.is_empty(),
    };
    let lost = plan.fault == Some(FaultKind::LostAfter200);
    match call.header("idempotency-key") {
        Some(key) if state.webhook_idempotent && !lost => once(state, plan, &origin, &post, key),
        _ => accept(state, plan, &origin, &post).answer,
    }
}

/// A failure, in the format of this receiver.
pub(super) fn failure(status: StatusCode, code: &str, message: &str) -> Answer {
    Answer::json(status, &json!({ "code": code, "message": message }))
}

fn once(state: &State, plan: &CallPlan, origin: &Origin, post: &Post, key: &str) -> Answer {
    let fingerprint = fingerprint(&[key.as_bytes()]);
    let known = {
        let mut keys = state.known_keys.lock(fingerprint);
        Arc::clone(keys.entry(fingerprint).or_default())
    };
    let mut is_first = false;
    let first = known.0.get_or_init(|| {
        is_first = true;
        accept(state, plan, origin, post)
    });
    if is_first {
        return first.answer.clone();
    }
    if first.content != post.content() {
        count(&state.counters.invalid, 1);
        let message = "the key was used for another request";
        return failure(StatusCode::UNPROCESSABLE_ENTITY, "key_reused", message);
    }
    replay(state, plan, origin, post, first)
}

fn replay(state: &State, plan: &CallPlan, origin: &Origin, post: &Post, first: &First) -> Answer {
    let again = |(recipient, message_id, message_seq): &(String, i64, u64)| Receipt {
        recipient: recipient.clone(),
        client_msg_no: post.client_msg_no.clone(),
        message_id: *message_id,
        message_seq: *message_seq,
        replay: true,
    };
    let receipts = first.accepted.iter().map(again).collect();
    match state.record(origin, plan, receipts) {
        Ok(()) => first.answer.clone(),
        Err(_) => unlogged(),
    }
}

fn accept(state: &State, plan: &CallPlan, origin: &Origin, post: &Post) -> First {
    let (refused, taken): (Vec<&String>, Vec<&String>) = post
        .recipients
        .iter()
        .partition(|uid| state.refuses(plan, uid));
    let accepted: Vec<_> = taken
        .into_iter()
        .map(|uid| {
            let (message_id, message_seq) = state.next_message();
            (uid.clone(), message_id, message_seq)
        })
        .collect();
    let receipt = |(recipient, message_id, message_seq): &(String, i64, u64)| Receipt {
        recipient: recipient.clone(),
        client_msg_no: post.client_msg_no.clone(),
        message_id: *message_id,
        message_seq: *message_seq,
        replay: false,
    };
    let receipts = accepted.iter().map(receipt).collect();
    let answer = match state.record(origin, plan, receipts) {
        Ok(()) if post.packed => packed(&refused),
        Ok(()) if refused.is_empty() => Answer::json(StatusCode::OK, &json!({ "ok": true })),
        Ok(()) => failure(StatusCode::GONE, "gone", "user refused"),
        Err(_) => unlogged(),
    };
    First {
        content: post.content(),
        answer,
        accepted,
    }
}

fn packed(refused: &[&String]) -> Answer {
    let failed =
        |uid: &&String| json!({ "recipient": uid, "code": "refused", "message": "user refused" });
    let failed: Vec<_> = refused.iter().map(failed).collect();
    Answer::json(StatusCode::OK, &json!({ "ok": true, "failed": failed }))
}

fn unlogged() -> Answer {
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    failure(status, "internal", "log cannot be written")
}

fn parse(call: &Call) -> Option<Post> {
    let body: Body = serde_json::from_slice(&call.body).unwrap_or_default();
    let packed = body.recipients.is_some();
    let recipients = match (body.recipients, body.recipient) {
        (Some(recipients), _) => recipients,
        (None, Some(recipient)) => vec![recipient],
        (None, None) => recipient_in_path(call.parts.uri.path())
            .into_iter()
            .collect(),
    };
    if recipients.is_empty() || recipients.iter().any(String::is_empty) {
        return None;
    }
    let key = call.header("idempotency-key").unwrap_or_default();
    Some(Post {
        recipients,
        packed,
        client_msg_no: body.client_msg_no.unwrap_or_else(|| key.to_owned()),
        from: body.from.unwrap_or_default(),
    })
}

fn recipient_in_path(path: &str) -> Option<String> {
    let segment = path.strip_prefix("/hook/")?;
    percent_decoded(segment.trim_end_matches('/'))
}

/// `None` if the text is not percent-encoded UTF-8.
pub(super) fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        if *first != b'%' {
            bytes.push(*first);
            rest = tail;
            continue;
        }
        let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).ok()
}
