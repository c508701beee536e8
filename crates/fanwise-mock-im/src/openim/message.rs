//! Simulates `POST /msg/send_msg`, `POST /msg/batch_send_msg` and
//! `POST /msg/check_msg_is_send_success`.
//!
//! Nothing is deduplicated: every call makes a new message. A single send writes a status under its
//! operationID after the send. The status is all that a caller can learn later; the real server
//! forgets it after a day, the mock never. A batch is one message, with one clientMsgID, sent to
//! one recipient after another. A recipient that cannot get it is listed without a reason, and the
//! call succeeds.
//!
//! In the log a group is the recipient of its message, whatever recipients the call names; the
//! serverMsgID is the log's message_id in hexadecimal. Sender, `ex` and content identify a message
//! that was sent before. Without an `ex`, the operationID identifies a single send, and sender and
//! content identify a batch.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::refused::{
    ARGS, NO_PERMISSION, RECORD_NOT_FOUND, Refused, SERVER_INTERNAL, USER_ID_NOT_FOUND, success,
};
use super::users::nil_if_empty;
use super::{Caller, bind, content, failure};
use crate::System;
use crate::faults::FaultKind;
use crate::go::null_is_default;
use crate::log::{fingerprint, shown_payload};
use crate::reply::Answer;
use crate::state::{Origin, Receipt, count};

const SINGLE: i32 = 1;
const SUPERSEDED_GROUP: i32 = 2;
const GROUP: i32 = 3;
const NOTIFICATION: i32 = 4;

/// The channel types of users and groups in log entries.
const LOGGED_PERSON: u8 = 1;
const LOGGED_GROUP: u8 = 2;

const STATUS_UNKNOWN: i32 = 0;
const STATUS_SENT: i32 = 2;

/// The fields of both requests: a single send ignores those of a batch, and the other way round.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SendRequest {
    #[serde(deserialize_with = "null_is_default", rename = "recvID")]
    recv_id: String,
    #[serde(rename = "recvIDs")]
    recv_ids: Option<Vec<String>>,
    #[serde(deserialize_with = "null_is_default")]
    is_send_all: bool,
    #[serde(deserialize_with = "null_is_default", rename = "sendID")]
    send_id: String,
    #[serde(deserialize_with = "null_is_default", rename = "groupID")]
    group_id: String,
    #[serde(deserialize_with = "null_is_default", rename = "senderNickname")]
    _sender_nickname: String,
    #[serde(deserialize_with = "null_is_default", rename = "senderFaceURL")]
    _sender_face_url: String,
    #[serde(deserialize_with = "null_is_default", rename = "senderPlatformID")]
    _sender_platform_id: i32,
    content: Option<Box<RawValue>>,
    #[serde(deserialize_with = "null_is_default")]
    content_type: i32,
    #[serde(deserialize_with = "null_is_default")]
    session_type: i32,
    #[serde(deserialize_with = "null_is_default")]
    is_online_only: bool,
    #[serde(deserialize_with = "null_is_default", rename = "notOfflinePush")]
    _not_offline_push: bool,
    #[serde(deserialize_with = "null_is_default")]
    send_time: i64,
    #[serde(rename = "offlinePushInfo")]
    _offline_push_info: Option<OfflinePushInfo>,
    #[serde(deserialize_with = "null_is_default")]
    ex: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct OfflinePushInfo {
    #[serde(deserialize_with = "null_is_default", rename = "title")]
    _title: String,
    #[serde(deserialize_with = "null_is_default", rename = "desc")]
    _desc: String,
    #[serde(deserialize_with = "null_is_default", rename = "ex")]
    _ex: String,
    #[serde(deserialize_with = "null_is_default", rename = "iOSPushSound")]
    _ios_push_sound: String,
    #[serde(deserialize_with = "null_is_default", rename = "iOSBadgeCount")]
    _ios_badge_count: bool,
    #[serde(deserialize_with = "null_is_default", rename = "signalInfo")]
    _signal_info: String,
}

/// The message that a valid request asks for, before it goes to its recipients.
struct Message {
    send_id: String,
    group_id: String,
    ex: String,
    content: String,
    session_type: i32,
    is_online_only: bool,
    client_msg_id: String,
    send_time: i64,
}

#[derive(Serialize)]
struct Sent {
    #[serde(rename = "serverMsgID")]
    server_msg_id: String,
    #[serde(rename = "clientMsgID")]
    client_msg_id: String,
    #[serde(rename = "sendTime")]
    send_time: i64,
    #[serde(rename = "recvID", skip_serializing_if = "Option::is_none")]
    recv_id: Option<String>,
}

pub(super) fn send(caller: &Caller<'_>) -> Result<Answer, Refused> {
    let request: SendRequest = bind(caller.call)?;
    let to_user = matches!(request.session_type, SINGLE | NOTIFICATION);
    if to_user && request.recv_id.is_empty() {
        return Err(unset("RecvID"));
    }
    let recv_id = request.recv_id.clone();
    let message = checked(caller, request)?;
    let receipt = receipt(caller, &message, &recv_id)?;
    let sent = sent(&message, &receipt, None);
    accept(caller, &message, Some(caller.operation), vec![receipt])?;
    if caller.plan.fault == Some(FaultKind::ErrorAfter) {
        // The message was sent, and its status cannot be written.
        return Err(Refused::new(SERVER_INTERNAL, "status cannot be written"));
    }
    if caller.plan.fault != Some(FaultKind::LostAfter200) {
        note_sent(caller);
    }
    Ok(success(sent))
}

pub(super) fn send_batch(caller: &Caller<'_>) -> Result<Answer, Refused> {
    let mut request: SendRequest = bind(caller.call)?;
    let named = request.recv_ids.take().ok_or_else(|| unset("RecvIDs"))?;
    let to_all = request.is_send_all;
    let message = checked(caller, request)?;
    let recipients = if to_all { everybody(caller) } else { named };

    let (mut results, mut failed, mut receipts) = (Vec::new(), Vec::new(), Vec::new());
    for uid in recipients {
        match receipt(caller, &message, &uid) {
            Ok(receipt) => {
                results.push(sent(&message, &receipt, Some(uid)));
                receipts.push(receipt);
            }
            Err(_) => failed.push(uid),
        }
    }
    accept(caller, &message, None, receipts)?;
    if caller.plan.fault == Some(FaultKind::ErrorAfter) {
        // A batch writes no status: after the last send only the handler itself can fail.
        return Ok(failure(StatusCode::INTERNAL_SERVER_ERROR));
    }
    Ok(success(json!({
        "results": nil_if_empty(&results),
        "failedUserIDs": nil_if_empty(&failed),
    })))
}

pub(super) fn status(caller: &Caller<'_>) -> Answer {
    let key = fingerprint(&[caller.operation.as_bytes()]);
    let is_sent = caller.state.openim.sent.lock(key).contains(&key);
    let status = if is_sent { STATUS_SENT } else { STATUS_UNKNOWN };
    success(json!({ "status": status }))
}

fn note_sent(caller: &Caller<'_>) {
    let key = fingerprint(&[caller.operation.as_bytes()]);
    caller.state.openim.sent.lock(key).insert(key);
}

/// All users with an account, including the admin, and the sender if it has one.
fn everybody(caller: &Caller<'_>) -> Vec<String> {
    let directory = caller.state.directory;
    let staff = caller.rules.staff().cloned();
    staff.chain(directory.page(0, directory.count())).collect()
}

/// Checks the body, the caller's role and the content, in the order of the server.
fn checked(caller: &Caller<'_>, request: SendRequest) -> Result<Message, Refused> {
    let to_group = matches!(request.session_type, SUPERSEDED_GROUP | GROUP);
    let required = [
        ("SendID", request.send_id.is_empty()),
        ("GroupID", to_group && request.group_id.is_empty()),
        ("Content", request.content.is_none()),
        ("ContentType", request.content_type == 0),
        ("SessionType", request.session_type == 0),
    ];
    if let Some((field, _)) = required.into_iter().find(|(_, is_unset)| *is_unset) {
        return Err(unset(field));
    }
    let content = request.content.as_deref().map_or("", RawValue::get);
    let fields: Map<String, Value> =
        serde_json::from_str(content).map_err(|error| Refused::unbound(error.to_string()))?;
    if !caller.is_admin() {
        let detail = "only app manager can send message";
        return Err(Refused::invalid(NO_PERMISSION, detail));
    }
    let is_oa = request.content_type == content::OA_NOTIFICATION;
    if is_oa {
        check_notification_account(caller, &request.send_id)?;
    }
    content::check(request.content_type, &fields)?;
    Ok(Message {
        content: content.to_owned(),
        session_type: if is_oa {
            NOTIFICATION
        } else {
            request.session_type
        },
        is_online_only: request.is_online_only,
        client_msg_id: format!("{:032x}", fastrand::u128(..)),
        send_time: match request.send_time {
            0 => now_ms(),
            given => given,
        },
        send_id: request.send_id,
        group_id: request.group_id,
        ex: request.ex,
    })
}

fn unset(field: &str) -> Refused {
    Refused::unbound(format!(
        "Key: '{field}' Error:Field validation for '{field}' failed on the 'required' tag"
    ))
}

fn check_notification_account(caller: &Caller<'_>, send_id: &str) -> Result<(), Refused> {
    if caller.rules.is_staff(send_id) {
        return Ok(());
    }
    match caller.knows(send_id) {
        true => Err(Refused::invalid(NO_PERMISSION, "no notification account")),
        false => Err(Refused::invalid(USER_ID_NOT_FOUND, "")),
    }
}

/// The message for one recipient, or the reason why it cannot be sent.
fn receipt(caller: &Caller<'_>, message: &Message, recv_id: &str) -> Result<Receipt, Refused> {
    let recipient = match message.session_type {
        SINGLE | NOTIFICATION => recv_id,
        GROUP => message.group_id.as_str(),
        _ => return Err(Refused::invalid(ARGS, "unknown sessionType")),
    };
    if let Some(code) = code_for(caller, message, recipient) {
        count(&caller.state.counters.refused, 1);
        return Err(Refused::new(code, ""));
    }
    let (message_id, message_seq) = caller.state.next_message();
    Ok(Receipt {
        recipient: recipient.to_owned(),
        client_msg_no: message.ex.clone(),
        message_id,
        message_seq,
        replay: false,
    })
}

fn code_for(caller: &Caller<'_>, message: &Message, recipient: &str) -> Option<i32> {
    let rules = caller.rules;
    let is_notification = message.session_type == NOTIFICATION;
    let ignores_relations = is_notification || message.send_id == rules.admin;
    let set = rules.code_of(recipient);
    if let Some(code) = set.filter(|code| !(ignores_relations && is_relation(*code))) {
        return Some(code);
    }
    let to_stranger = message.session_type == SINGLE && !caller.knows(recipient);
    if to_stranger || (!is_notification && !caller.knows(&message.send_id)) {
        return Some(RECORD_NOT_FOUND);
    }
    let refusal = &caller.plan.refusal;
    refusal.applies_to(recipient).then_some(rules.refuse_code)
}

fn is_relation(code: i32) -> bool {
    (1301..=1305).contains(&code)
}

/// Accepts the receipts: on return they are in the log.
fn accept(
    caller: &Caller<'_>,
    message: &Message,
    operation: Option<&str>,
    mut receipts: Vec<Receipt>,
) -> Result<(), Refused> {
    for receipt in &mut receipts {
        if receipt.client_msg_no.is_empty() {
            let number = operation.unwrap_or(&message.client_msg_id);
            number.clone_into(&mut receipt.client_msg_no);
        }
    }
    let content = fingerprint(&[message.content.as_bytes()]);
    let identity = match operation {
        Some(operation) if message.ex.is_empty() => operation.to_owned(),
        _ => format!("{}\0{}\0{content:x}", message.send_id, message.ex),
    };
    let origin = origin(caller, message);
    let recorded = caller
        .state
        .record_as(&origin, caller.plan, receipts, Some(&identity));
    recorded.map_err(|_| Refused::new(SERVER_INTERNAL, "log cannot be written"))
}

fn origin(caller: &Caller<'_>, message: &Message) -> Origin {
    Origin {
        system: System::Openim.name(),
        from: message.send_id.clone(),
        payload: shown_payload(message.content.as_bytes()),
        traceparent: caller.call.traceparent().map(Arc::from),
        channel_type: match message.session_type {
            GROUP => LOGGED_GROUP,
            _ => LOGGED_PERSON,
        },
        no_persist: message.is_online_only,
        sync_once: false,
        unnumbered: false,
    }
}

fn sent(message: &Message, receipt: &Receipt, recv_id: Option<String>) -> Sent {
    Sent {
        server_msg_id: format!("{:032x}", receipt.message_id),
        client_msg_id: message.client_msg_id.clone(),
        send_time: message.send_time,
        recv_id,
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as i64)
}
