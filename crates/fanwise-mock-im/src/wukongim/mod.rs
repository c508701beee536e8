//! Simulates WuKongIM's product API, as its releases answer it, and the user list of its manager
//! API.
//!
//! It was written from the server's sources, not from our adapter, so that the two can disagree. v1
//! and v2 share their requests (`v2`); v3 is another API on the same path (`v3`). The manager has a
//! port of its own at the real server; here it is found by its paths (`manager`). Steps that v2
//! takes after its answer (storage, delivery) always succeed here, except with the fault
//! `lost_after_200`.

mod manager;
mod v2;
mod v3;

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Method, StatusCode};
use serde_json::json;

use super::faults::{CallPlan, FaultKind};
use super::log::shown_payload;
use super::reply::Answer;
use super::state::{Origin, State};
use super::{Call, System};

pub use manager::Login;
pub(super) use v3::Stored;

/// The release to simulate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Version {
    /// Like v2, with message_seq in the answer and without the look-up by client_msg_no.
    V1,
    /// Accepts every repeated message as a new one.
    V2,
    /// Recognises repeated messages by (channel, from_uid, client_msg_no); has no sendbatch.
    V3,
}

const PERSON: u8 = 1;

/// Answers a request to any path that belongs to no other system.
pub(super) fn answer(state: &State, call: &Call, plan: &CallPlan) -> Answer {
    if state.version != Version::V3 && !authorised(state, call) {
        return unauthorised();
    }
    let (method, path) = (&call.parts.method, call.parts.uri.path());
    match (state.version, path) {
        (Version::V3, "/message/send") if method == Method::POST => v3::send(state, call, plan),
        (Version::V3, "/manager/login") if method == Method::POST => manager::login(state, call),
        (Version::V3, "/manager/users") if method == Method::GET => manager::users(state, call),
        (Version::V3, _) => not_found(),
        (_, "/message/send") if method == Method::POST => v2::send(state, call, plan),
        (_, "/message/sendbatch") if method == Method::POST => v2::send_batch(state, call, plan),
        (Version::V2, "/message/byclientmsgno") if method == Method::GET => v2::find(state, call),
        (Version::V2, "/cluster/users") if method == Method::GET => {
            manager::cluster_users(state, call)
        }
        _ => not_found(),
    }
}

/// A failure, in the format of this release.
pub(super) fn failure(version: Version, status: StatusCode, text: &str) -> Answer {
    match version {
        Version::V3 => Answer::json(status, &json!({ "error": text })),
        Version::V1 | Version::V2 => {
            Answer::json(status, &json!({ "msg": text, "status": status.as_u16() }))
        }
    }
}

/// The answer to a missing or wrong token, which has no body.
pub(super) fn unauthorised() -> Answer {
    Answer::text(StatusCode::UNAUTHORIZED, "")
}

fn not_found() -> Answer {
    Answer::text(StatusCode::NOT_FOUND, "404 page not found")
}

fn authorised(state: &State, call: &Call) -> bool {
    let Some(token) = &state.token else {
        return true;
    };
    let given = call.parts.headers.get("token");
    given.is_some_and(|given| given.as_bytes() == token.as_bytes())
}

fn decode_payload(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// Whether a channel id contains characters that are reserved for internal ids.
fn is_illegal(channel_id: &str) -> bool {
    channel_id.contains(['@', '#', '&'])
}

/// The internal id of the channel between two users: the uid with the larger CRC-32 comes first.
fn person_channel(from_uid: &str, to_uid: &str) -> String {
    if crc32(from_uid.as_bytes()) > crc32(to_uid.as_bytes()) {
        format!("{from_uid}@{to_uid}")
    } else {
        format!("{to_uid}@{from_uid}")
    }
}

/// CRC-32 as in IEEE 802.3. It works bit by bit, since only look-ups and v3 keys of short ids need
/// it.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
    let byte = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), step);
    !bytes.iter().fold(u32::MAX, byte)
}

/// The client_msg_no that the server gives a message without one: a random id and "0".
fn made_client_msg_no() -> String {
    format!("{:032x}0", fastrand::u128(..))
}

fn origin(call: &Call, from: String, payload: &[u8], channel_type: u8) -> Origin {
    Origin {
        system: System::Wukongim.name(),
        from,
        payload: shown_payload(payload),
        traceparent: call.traceparent().map(Arc::from),
        channel_type,
        no_persist: false,
        sync_once: false,
        unnumbered: false,
    }
}

/// Whether the answer says "accepted" but nothing may be stored.
fn is_lost(plan: &CallPlan) -> bool {
    plan.fault == Some(FaultKind::LostAfter200)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the CRC agrees with Go's hash/crc32. Method: the check value of the CRC catalogue, and
    /// the order of a pair from either side.
    #[test]
    fn person_channel_is_the_same_from_both_sides() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(person_channel("a", "b"), person_channel("b", "a"));
    }
}
