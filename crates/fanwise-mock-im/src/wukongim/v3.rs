//! Simulates v3: `POST /message/send`, idempotent per (channel, from_uid, client_msg_no).
//!
//! A repeated message with the same payload gets the first message_id and message_seq again, with
//! reason 1. With another payload it is a conflict, which the server reports as reason 15.

use http::StatusCode;
use serde::Deserialize;
use serde_json::json;

use super::{
    PERSON, decode_payload, failure, is_illegal, is_lost, made_client_msg_no, origin,
    person_channel,
};
use crate::Call;
use crate::faults::CallPlan;
use crate::go::null_is_default;
use crate::log::fingerprint;
use crate::reply::Answer;
use crate::state::{Receipt, State, count};

const REASON_SUCCESS: u8 = 1;
const REASON_SYSTEM_ERROR: u8 = 15;

/// The stored part of a message: enough to answer a repeated call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    payload: u128,
    message_id: i64,
    message_seq: u64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Header {
    #[serde(deserialize_with = "null_is_default")]
    no_persist: i64,
    #[serde(deserialize_with = "null_is_default")]
    sync_once: i64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SendRequest {
    #[serde(deserialize_with = "null_is_default")]
    from_uid: String,
    #[serde(deserialize_with = "null_is_default")]
    sender_uid: String,
    #[serde(deserialize_with = "null_is_default", rename = "device_id")]
    _device_id: String,
    #[serde(deserialize_with = "null_is_default")]
    channel_id: String,
    #[serde(deserialize_with = "null_is_default")]
    channel_type: u8,
    #[serde(deserialize_with = "null_is_default")]
    client_msg_no: String,
    #[serde(deserialize_with = "null_is_default", rename = "setting")]
    _setting: u8,
    #[serde(deserialize_with = "null_is_default", rename = "topic")]
    _topic: String,
    #[serde(deserialize_with = "null_is_default", rename = "expire")]
    _expire: u32,
    #[serde(deserialize_with = "null_is_default")]
    payload: String,
    #[serde(deserialize_with = "null_is_default")]
    subscribers: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    header: Header,
    #[serde(deserialize_with = "null_is_default")]
    no_persist: i64,
    #[serde(deserialize_with = "null_is_default")]
    sync_once: i64,
}

impl SendRequest {
    fn is_command(&self) -> bool {
        self.header.sync_once != 0 || self.sync_once != 0
    }

    /// The channel as part of the idempotency key.
    fn channel(&self) -> String {
        match self.channel_type {
            _ if !self.subscribers.is_empty() => self.subscribers.join(","),
            PERSON => person_channel(&self.from_uid, &self.channel_id),
            _ => self.channel_id.clone(),
        }
    }

    fn key(&self) -> u128 {
        fingerprint(&[
            &[self.channel_type, u8::from(self.is_command())],
            self.channel().as_bytes(),
            self.from_uid.as_bytes(),
            self.client_msg_no.as_bytes(),
        ])
    }
}

/// The result of looking a message up among the stored ones.
enum Fresh {
    New(i64, u64),
    Replay(i64, u64),
    Conflict,
}

pub(super) fn send(state: &State, call: &Call, plan: &CallPlan) -> Answer {
    try_send(state, call, plan).unwrap_or_else(|refusal| refusal)
}

fn try_send(state: &State, call: &Call, plan: &CallPlan) -> Result<Answer, Answer> {
    let (request, payload) = validated(state, call)?;
    let addressees: &[String] = match request.subscribers.as_slice() {
        [] => std::slice::from_ref(&request.channel_id),
        subscribers => subscribers,
    };
    let one = addressees.len() == 1;
    if one && state.refuses(plan, &addressees[0]) {
        return Ok(result(0, 0, plan.refusal.reason));
    }
    let (message_id, message_seq, replay) = match stand(state, plan, &request, &payload) {
        Fresh::New(id, seq) => (id, seq, false),
        Fresh::Replay(id, seq) => (id, seq, true),
        Fresh::Conflict => return Ok(result(0, 0, REASON_SYSTEM_ERROR)),
    };
    let client_msg_no = match request.client_msg_no.as_str() {
        "" => made_client_msg_no(),
        given => given.to_owned(),
    };
    let receipts = addressees
        .iter()
        .filter(|uid| one || !state.refuses(plan, uid))
        .map(|uid| Receipt {
            recipient: uid.clone(),
            client_msg_no: client_msg_no.clone(),
            message_id,
            message_seq,
            replay,
        })
        .collect();
    let channel_type = match request.subscribers.as_slice() {
        [] => request.channel_type,
        _ => PERSON,
    };
    let mut origin = origin(call, request.from_uid.clone(), &payload, channel_type);
    origin.no_persist = request.header.no_persist != 0 || request.no_persist != 0;
    origin.sync_once = request.is_command();
    if state.record(&origin, plan, receipts).is_err() {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        return Err(failure(state.version, status, "log cannot be written"));
    }
    Ok(result(message_id, message_seq, REASON_SUCCESS))
}

fn validated(state: &State, call: &Call) -> Result<(SendRequest, Vec<u8>), Answer> {
    let request = "invalid request";
    if !call.body.trim_ascii_start().starts_with(b"{") {
        return Err(invalid(state, request));
    }
    let Ok(mut send) = serde_json::from_slice::<SendRequest>(&call.body) else {
        return Err(invalid(state, request));
    };
    if send.from_uid.is_empty() {
        send.from_uid = std::mem::take(&mut send.sender_uid);
    }
    let to_subscribers = !send.subscribers.is_empty();
    let addressed = match to_subscribers {
        true => send.channel_id.is_empty(),
        false => !send.channel_id.is_empty() && send.channel_type != 0,
    };
    if send.from_uid.is_empty() || send.payload.is_empty() || !addressed {
        return Err(invalid(state, request));
    }
    let Some(payload) = decode_payload(&send.payload) else {
        return Err(invalid(state, "invalid payload"));
    };
    if to_subscribers && !send.is_command() {
        return Err(invalid(state, "request subscribers require sync_once"));
    }
    if is_illegal(&send.channel_id) {
        count(&state.counters.refused, 1);
        return Err(invalid(state, "invalid channel id"));
    }
    Ok((send, payload))
}

/// Looks the message up and, if it is new, stores it, in one atomic step.
fn stand(state: &State, plan: &CallPlan, request: &SendRequest, payload: &[u8]) -> Fresh {
    let (message_id, message_seq) = state.next_message();
    if request.client_msg_no.is_empty() {
        return Fresh::New(message_id, message_seq);
    }
    let (key, payload) = (request.key(), fingerprint(&[payload]));
    let mut stored = state.stored.lock(key);
    match stored.get(&key) {
        Some(first) if first.payload == payload => {
            Fresh::Replay(first.message_id, first.message_seq)
        }
        Some(_) => Fresh::Conflict,
        None if is_lost(plan) => Fresh::New(message_id, message_seq),
        None => {
            let new = Stored {
                payload,
                message_id,
                message_seq,
            };
            stored.insert(key, new);
            Fresh::New(message_id, message_seq)
        }
    }
}

fn result(message_id: i64, message_seq: u64, reason: u8) -> Answer {
    let body = json!({
        "message_id": message_id,
        "message_seq": message_seq,
        "reason": reason,
    });
    Answer::json(StatusCode::OK, &body)
}

fn invalid(state: &State, text: &str) -> Answer {
    count(&state.counters.invalid, 1);
    failure(state.version, StatusCode::BAD_REQUEST, text)
}
