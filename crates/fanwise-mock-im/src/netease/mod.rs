//! Simulates NetEase's older server API (v1): signed forms to `/nimserver/msg/…`; every answer is
//! an HTTP 200 with a `code`.
//!
//! It was written from the vendor's documents and SDKs, not from our adapter. Where they leave
//! something open, the mock does this: A refused call reaches no recipient. A repeated `RequestId`
//! of an app is recognised as long as the mock runs, if its first call was accepted; a setting
//! chooses the answer. An id that `toAccids` contains twice gets two messages, so that the caller's
//! mistake shows. The texts of signature faults are guesses; `too many members.` and
//! `account 'mute'.` are the vendor's own.
//!
//! The parts that the vendor's newer API shares are here too, for `yunxin`: the checks of every
//! call (`admitted`), the signature (`sign`), the quotas and their block (`quota`), and repeated
//! requests (`repeats`).

mod admitted;
mod batch;
mod form;
mod message;
mod quota;
mod recall;
mod repeats;
mod settings;
mod sign;
mod single;

use http::{Method, StatusCode};
use serde_json::json;

use super::Call;
use super::faults::CallPlan;
use super::reply::Answer;
use super::state::{State, micros_now};

pub(super) use admitted::{Action, Admitted, Rejection};
pub(super) use message::TYPES;
pub(super) use quota::Gate;
pub use quota::{Quota, QuotaError};
pub(super) use repeats::{First, Repeats};
pub(super) use settings::pair;
pub use settings::{NeteaseSettings, OnRepeat, PairError, Standing};

pub(super) const PERSON: u8 = 1;
pub(super) const TEAM: u8 = 2;

pub(super) const OK: u32 = 200;
/// The code for a wrong parameter or a wrong signature.
const PARAMETER: u32 = 414;
const RATE: u32 = 416;
const ACCID_CHARS_MAX: usize = 32;

/// The state of v1 while the mock runs.
pub(super) struct NeteaseState {
    settings: NeteaseSettings,
    batches: Gate,
    singles: Gate,
    recalls: Gate,
    repeats: Repeats,
}

impl NeteaseState {
    pub(super) fn new(settings: NeteaseSettings) -> NeteaseState {
        NeteaseState {
            batches: Gate::new(settings.batch_quota),
            singles: Gate::new(settings.single_quota),
            recalls: Gate::new(settings.single_quota),
            repeats: Repeats::new(),
            settings,
        }
    }
}

/// Answers a request below `/nimserver`.
pub(super) fn answer(state: &State, call: &Call, plan: &CallPlan) -> Answer {
    let desk = &state.netease;
    if call.parts.uri.path() == "/nimserver/user/getUinfos.action" {
        let signed = sign::signed_by(&desk.settings.apps, call, millis_now() / 1000);
        return match signed {
            Ok(_) => Answer::json(StatusCode::OK, &json!({ "code": 200, "uinfos": [] })),
            Err(text) => rejected(&Rejection::new(PARAMETER, text)),
        };
    }
    let (gate, send): (_, Action) = match (&call.parts.method, call.parts.uri.path()) {
        (&Method::POST, "/nimserver/msg/sendBatchMsg.action") => (&desk.batches, batch::send),
        (&Method::POST, "/nimserver/msg/sendMsg.action") => (&desk.singles, single::send),
        (&Method::POST, "/nimserver/msg/recall.action") => (&desk.recalls, recall::recall),
        _ => return Answer::text(StatusCode::NOT_FOUND, "no such action"),
    };
    let request_id = call.header("requestid");
    Admitted::admit(state, call, plan, gate, request_id)
        .and_then(|admitted| send(&admitted))
        .unwrap_or_else(|rejection| rejected(&rejection))
}

/// A failure that a fault produces, in the format of v1.
pub(super) fn failure(status: StatusCode, text: &str) -> Answer {
    rejected(&Rejection::new(code_of(status), text.to_owned()))
}

pub(super) fn unauthorised() -> Answer {
    rejected(&unsigned())
}

/// The answer to a wrong signature.
pub(super) fn unsigned() -> Rejection {
    Rejection::new(PARAMETER, sign::CHECKSUM_WRONG)
}

fn rejected(rejection: &Rejection) -> Answer {
    let body = json!({ "code": rejection.code, "desc": rejection.text });
    Answer::json(StatusCode::OK, &body)
}

/// The code that both APIs put into an HTTP 200 in place of a status.
pub(super) fn code_of(status: StatusCode) -> u32 {
    match status {
        StatusCode::TOO_MANY_REQUESTS => RATE,
        StatusCode::UNAUTHORIZED => PARAMETER,
        status => u32::from(status.as_u16()),
    }
}

/// The sender of a call, if it is allowed to send.
fn sender(admitted: &Admitted<'_>, given: Option<&str>) -> Result<String, Rejection> {
    let Some(accid) = given.filter(|accid| is_accid(accid)) else {
        return Err(admitted.invalid("the sender is missing or too long"));
    };
    let accid = accid.to_lowercase();
    match admitted.standing(&accid) {
        None => Ok(accid),
        Some(Standing::Unknown) => Err(Rejection::new(404, "account not exist")),
        Some(Standing::Disabled) => Err(Rejection::new(422, "account disabled")),
        Some(Standing::Muted) => Err(Rejection::new(423, "account 'mute'.")),
    }
}

pub(super) fn millis_now() -> u64 {
    micros_now() / 1000
}

fn is_accid(text: &str) -> bool {
    (1..=ACCID_CHARS_MAX).contains(&text.chars().count())
}
