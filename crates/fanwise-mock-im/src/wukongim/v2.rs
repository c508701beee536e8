//! Simulates v1 and v2: `POST /message/send`, `POST /message/sendbatch`,
//! `GET /message/byclientmsgno`.
//!
//! Nothing is deduplicated: a repeated client_msg_no makes a new message. The error texts are the
//! server's own.

use axum::extract::Query;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    PERSON, Version, decode_payload, failure, is_illegal, made_client_msg_no, origin,
    person_channel,
};
use crate::Call;
use crate::faults::CallPlan;
use crate::go::{self, null_is_default};
use crate::log::Entry;
use crate::reply::Answer;
use crate::state::{Origin, Receipt, State, count};

/// The sender of a message that names none.
const SYSTEM_UID: &str = "____system";
/// The suffix of the id of the channel that holds a channel's commands (sync_once).
const COMMAND_SUFFIX: &str = "____cmd";
const UNPROCESSABLE: &str = "无法处理发送消息请求！";
const ILLEGAL_CHANNEL: &str = "频道ID不合法！";
const PAYLOAD_EMPTY: &str = "payload不能为空！";
const REFUSED: &str = "recipient refused";

/// Integers in Go: a boolean is a decode error.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct Header {
    #[serde(deserialize_with = "null_is_default")]
    no_persist: i64,
    #[serde(deserialize_with = "null_is_default", rename = "red_dot")]
    _red_dot: i64,
    #[serde(deserialize_with = "null_is_default")]
    sync_once: i64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SendRequest {
    #[serde(deserialize_with = "null_is_default")]
    header: Header,
    #[serde(deserialize_with = "null_is_default")]
    client_msg_no: String,
    #[serde(deserialize_with = "null_is_default")]
    from_uid: String,
    #[serde(deserialize_with = "null_is_default")]
    channel_id: String,
    #[serde(deserialize_with = "null_is_default")]
    channel_type: u8,
    #[serde(deserialize_with = "null_is_default", rename = "expire")]
    _expire: u32,
    #[serde(deserialize_with = "null_is_default")]
    subscribers: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    payload: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct BatchRequest {
    #[serde(deserialize_with = "null_is_default")]
    header: Header,
    #[serde(deserialize_with = "null_is_default")]
    from_uid: String,
    #[serde(deserialize_with = "null_is_default")]
    subscribers: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    payload: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct FindRequest {
    channel_id: String,
    channel_type: u8,
    client_msg_no: String,
}

pub(super) fn send(state: &State, call: &Call, plan: &CallPlan) -> Answer {
    try_send(state, call, plan).unwrap_or_else(|refusal| refusal)
}

fn try_send(state: &State, call: &Call, plan: &CallPlan) -> Result<Answer, Answer> {
    let mut request: SendRequest = bind(state, call)?;
    let payload = bound_payload(state, &request.payload)?;
    if payload.is_empty() {
        return Err(invalid(state, PAYLOAD_EMPTY));
    }
    if request.from_uid.trim().is_empty() {
        request.from_uid = SYSTEM_UID.to_owned();
    }
    let to_channel = !request.channel_id.trim().is_empty();
    let to_subscribers = !request.subscribers.is_empty();
    if to_channel == to_subscribers || (to_subscribers && request.header.sync_once != 1) {
        return Err(invalid(state, UNPROCESSABLE));
    }
    let mut origin = origin(call, request.from_uid, &payload, request.channel_type);
    set_header(&mut origin, request.header);
    if to_subscribers {
        return command_subscribers(state, plan, origin, request.subscribers);
    }
    let client_msg_no = match request.client_msg_no.trim() {
        "" => made_client_msg_no(),
        _ => request.client_msg_no,
    };
    send_to_channel(state, plan, &origin, request.channel_id, client_msg_no)
}

fn send_to_channel(
    state: &State,
    plan: &CallPlan,
    origin: &Origin,
    channel_id: String,
    client_msg_no: String,
) -> Result<Answer, Answer> {
    if is_illegal(&channel_id) {
        count(&state.counters.refused, 1);
        return Err(invalid(state, ILLEGAL_CHANNEL));
    }
    if state.refuses(plan, &channel_id) {
        return Err(failure(state.version, StatusCode::BAD_REQUEST, REFUSED));
    }
    let receipt = receipt(state, channel_id, client_msg_no);
    let mut data = json!({
        "message_id": receipt.message_id,
        "client_msg_no": receipt.client_msg_no,
    });
    if state.version == Version::V1 {
        data["message_seq"] = json!(receipt.message_seq);
    }
    record(state, plan, origin, vec![receipt])?;
    let body = json!({ "status": 200, "data": data });
    Ok(Answer::json(StatusCode::OK, &body))
}

/// A command to named users through a temporary channel. The client_msg_no of the request is
/// ignored, and the answer contains no message id.
fn command_subscribers(
    state: &State,
    plan: &CallPlan,
    mut origin: Origin,
    subscribers: Vec<String>,
) -> Result<Answer, Answer> {
    origin.unnumbered = true;
    origin.channel_type = PERSON;
    let client_msg_no = made_client_msg_no();
    let receipts = subscribers
        .into_iter()
        .filter(|uid| !state.refuses(plan, uid))
        .map(|uid| receipt(state, uid, client_msg_no.clone()))
        .collect();
    record(state, plan, &origin, receipts)?;
    Ok(Answer::json(StatusCode::OK, &json!({ "status": 200 })))
}

pub(super) fn send_batch(state: &State, call: &Call, plan: &CallPlan) -> Answer {
    try_send_batch(state, call, plan).unwrap_or_else(|refusal| refusal)
}

fn try_send_batch(state: &State, call: &Call, plan: &CallPlan) -> Result<Answer, Answer> {
    let request: BatchRequest = bind(state, call)?;
    let payload = bound_payload(state, &request.payload)?;
    if request.from_uid.trim().is_empty() {
        return Err(invalid(state, "from_uid不能为空！"));
    }
    if request.subscribers.is_empty() {
        return Err(invalid(state, "subscribers不能为空！"));
    }
    if payload.is_empty() {
        return Err(invalid(state, PAYLOAD_EMPTY));
    }
    let mut origin = origin(call, request.from_uid, &payload, PERSON);
    set_header(&mut origin, request.header);
    origin.unnumbered = true;

    let (mut fail_uids, mut reasons, mut receipts) = (Vec::new(), Vec::new(), Vec::new());
    for uid in request.subscribers {
        match batch_refusal(state, plan, &uid) {
            Some(reason) => {
                fail_uids.push(uid);
                reasons.push(reason);
            }
            None => receipts.push(receipt(state, uid, made_client_msg_no())),
        }
    }
    record(state, plan, &origin, receipts)?;
    let body = json!({ "fail_uids": fail_uids, "reason": reasons });
    Ok(Answer::json(StatusCode::OK, &body))
}

fn batch_refusal(state: &State, plan: &CallPlan, uid: &str) -> Option<&'static str> {
    if is_illegal(uid) {
        count(&state.counters.refused, 1);
        return Some(ILLEGAL_CHANNEL);
    }
    state.refuses(plan, uid).then_some(REFUSED)
}

/// Finds a stored message. The channel of a user has its internal id (`A@B`), a command the id with
/// its suffix. A message sent with no_persist is not found.
pub(super) fn find(state: &State, call: &Call) -> Answer {
    let query: Query<FindRequest> = match Query::try_from_uri(&call.parts.uri) {
        Ok(query) => query,
        Err(_) => return invalid(state, "channel_type不能为0"),
    };
    if query.channel_id.trim().is_empty() {
        return invalid(state, "channel_id不能为空");
    }
    if query.channel_type == 0 {
        return invalid(state, "channel_type不能为0");
    }
    if query.client_msg_no.trim().is_empty() {
        return invalid(state, "client_msg_no不能为空");
    }
    match find_entry(state, &query) {
        Some(entry) => Answer::json(StatusCode::OK, &found(&entry, &query)),
        None => Answer::json(StatusCode::OK, &json!({ "status": 404 })),
    }
}

fn find_entry(state: &State, query: &FindRequest) -> Option<Entry> {
    let plain = query.channel_id.strip_suffix(COMMAND_SUFFIX);
    let sync_once = plain.is_some();
    let channel_id = plain.unwrap_or(&query.channel_id);
    let recipients: Vec<&str> = match query.channel_type {
        PERSON => channel_id.split('@').collect(),
        _ => vec![channel_id],
    };
    let entries = recipients.iter().flat_map(|uid| state.book.of(uid));
    let mut stored = entries.filter(|entry| !entry.no_persist && entry.sync_once == sync_once);
    stored.find(|entry| {
        entry.client_msg_no == query.client_msg_no
            && entry.channel_type == query.channel_type
            && (query.channel_type != PERSON
                || person_channel(&entry.from, &entry.recipient) == channel_id)
    })
}

fn found(entry: &Entry, query: &FindRequest) -> Value {
    json!({
        "header": {
            "no_persist": 0,
            "red_dot": 0,
            "sync_once": i64::from(entry.sync_once),
        },
        "setting": 0,
        "message_id": entry.message_id,
        "message_idstr": entry.message_id.to_string(),
        "client_msg_no": entry.client_msg_no,
        "message_seq": entry.message_seq,
        "from_uid": &*entry.from,
        "channel_id": query.channel_id,
        "channel_type": entry.channel_type,
        "timestamp": entry.at_us / 1_000_000,
        "payload": STANDARD.encode(entry.payload.as_bytes()),
    })
}

/// Decodes the body as Go does. Gin announces a failure as plain text, although the body is JSON.
fn bind<T: DeserializeOwned>(state: &State, call: &Call) -> Result<T, Answer> {
    go::object(&call.body).map_err(|text| invalid(state, &text).announced_as_text())
}

/// The payload is a byte slice in Go, so bad base64 is a decode error of the whole body.
fn bound_payload(state: &State, text: &str) -> Result<Vec<u8>, Answer> {
    decode_payload(text)
        .ok_or_else(|| invalid(state, "illegal base64 data at input byte 0").announced_as_text())
}

fn set_header(origin: &mut Origin, header: Header) {
    origin.no_persist = header.no_persist != 0;
    origin.sync_once = header.sync_once == 1;
}

fn receipt(state: &State, recipient: String, client_msg_no: String) -> Receipt {
    let (message_id, message_seq) = state.next_message();
    Receipt {
        recipient,
        client_msg_no,
        message_id,
        message_seq,
        replay: false,
    }
}

fn record(
    state: &State,
    plan: &CallPlan,
    origin: &Origin,
    receipts: Vec<Receipt>,
) -> Result<(), Answer> {
    let failed = |_| {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        failure(state.version, status, "log cannot be written")
    };
    state.record(origin, plan, receipts).map_err(failed)
}

fn invalid(state: &State, text: &str) -> Answer {
    count(&state.counters.invalid, 1);
    failure(state.version, StatusCode::BAD_REQUEST, text)
}
