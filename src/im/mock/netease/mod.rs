//! NetEase's older server API (v1): signed forms to `/nimserver/msg/…`, every answer an HTTP 200 with
//! a `code`.
//!
//! Written from the vendor's documents and SDKs, not from our adapter. What they leave open is played
//! as follows. A refused call reaches nobody. A repeated `RequestId` of an app is known for as long as
//! the mock runs, if its first call was accepted; the answer that it gets is a setting. An id that
//! `toAccids` holds twice is sent to twice, so that the caller's mistake shows. The texts of signature
//! faults are guesses; `too many members.` and `account 'mute'.` are the vendor's own.
//!
//! What the vendor's newer API has in common with this one is here too, for `yunxin`: the signature
//! (`sign`), the quotas and the block that follows (`quota`), and repeated requests (`repeats`).

mod batch;
mod form;
mod message;
mod quota;
mod repeats;
mod settings;
mod sign;
mod single;

use std::borrow::Cow;
use std::time::Instant;

use http::{Method, StatusCode};
use serde_json::json;

use super::faults::{Fate, FaultKind};
use super::log::{fingerprint, shown_payload};
use super::reply::Answer;
use super::state::{Origin, Receipt, State, count, micros_now};
use super::{Call, System};

pub(super) use message::TYPES;
pub(super) use quota::Gate;
pub use quota::{Quota, QuotaError};
pub(super) use repeats::{First, Repeats};
pub(super) use settings::pair;
pub use settings::{NeteaseSettings, OnRepeat, PairError, Standing};

pub(super) const PERSON: u8 = 1;
pub(super) const TEAM: u8 = 2;

pub(super) const OK: u32 = 200;
/// A parameter is wrong, or the signature.
const PARAMETER: u32 = 414;
const RATE: u32 = 416;
const INTERNAL: u32 = 500;
const ACCID_CHARS_MAX: usize = 32;

/// What v1 keeps while the mock runs.
pub(super) struct Desk {
    pub(super) settings: NeteaseSettings,
    batches: Gate,
    singles: Gate,
    repeats: Repeats,
}

impl Desk {
    pub(super) fn new(settings: NeteaseSettings) -> Desk {
        Desk {
            batches: Gate::new(settings.batch_quota),
            singles: Gate::new(settings.single_quota),
            repeats: Repeats::new(),
            settings,
        }
    }
}

/// A whole call refused, before either API gives it its shape.
#[derive(Debug)]
pub(super) struct Rejection {
    pub(super) code: u32,
    pub(super) text: Cow<'static, str>,
}

impl Rejection {
    pub(super) fn new(code: u32, text: impl Into<Cow<'static, str>>) -> Rejection {
        Rejection {
            code,
            text: text.into(),
        }
    }

    /// A rule of the protocol is broken; counted.
    pub(super) fn invalid(state: &State, text: impl Into<Cow<'static, str>>) -> Rejection {
        count(&state.counters.invalid, 1);
        Rejection::new(PARAMETER, text)
    }
}

/// Answers a request below `/nimserver`.
pub(super) fn answer(state: &State, call: &Call, fate: &Fate) -> Answer {
    let desk = &state.netease;
    let (gate, send): (_, fn(&Admitted<'_>) -> Result<Answer, Rejection>) =
        match (&call.parts.method, call.parts.uri.path()) {
            (&Method::POST, "/nimserver/msg/sendBatchMsg.action") => (&desk.batches, batch::send),
            (&Method::POST, "/nimserver/msg/sendMsg.action") => (&desk.singles, single::send),
            _ => return Answer::text(StatusCode::NOT_FOUND, "no such action"),
        };
    let request_id = call.header("requestid");
    Admitted::admit(state, call, fate, gate, request_id)
        .and_then(|admitted| send(&admitted))
        .unwrap_or_else(|rejection| rejected(&rejection))
}

/// The shape in which v1 reports a failure that the mock makes up.
pub(super) fn failure(status: StatusCode, text: &str) -> Answer {
    rejected(&Rejection::new(code_of(status), text.to_owned()))
}

pub(super) fn unauthorised() -> Answer {
    rejected(&unsigned())
}

/// What a wrong signature gets.
pub(super) fn unsigned() -> Rejection {
    Rejection::new(PARAMETER, sign::CHECKSUM_WRONG)
}

fn rejected(rejection: &Rejection) -> Answer {
    let body = json!({ "code": rejection.code, "desc": rejection.text });
    Answer::json(StatusCode::OK, &body)
}

/// The code that either API puts into an HTTP 200 where others answer with a status.
pub(super) fn code_of(status: StatusCode) -> u32 {
    match status {
        StatusCode::TOO_MANY_REQUESTS => RATE,
        StatusCode::UNAUTHORIZED => PARAMETER,
        status => u32::from(status.as_u16()),
    }
}

/// A call that is signed and within its quota.
pub(super) struct Admitted<'a> {
    pub(super) state: &'a State,
    pub(super) call: &'a Call,
    pub(super) fate: &'a Fate,
    pub(super) app: &'a str,
    request_id: Option<&'a str>,
}

impl<'a> Admitted<'a> {
    /// Checks what every call must pass before it is read.
    pub(super) fn admit(
        state: &'a State,
        call: &'a Call,
        fate: &'a Fate,
        gate: &Gate,
        request_id: Option<&'a str>,
    ) -> Result<Admitted<'a>, Rejection> {
        let app = sign::signed_by(&state.netease.settings.apps, call, millis_now() / 1000)
            .map_err(|text| Rejection::invalid(state, text))?;
        if !gate.admits(app, Instant::now()) {
            count(&state.counters.limited, 1);
            return Err(Rejection::new(RATE, "too many requests"));
        }
        Ok(Admitted {
            state,
            call,
            fate,
            app,
            request_id: request_id.filter(|id| !id.is_empty()),
        })
    }

    pub(super) fn invalid(&self, text: impl Into<Cow<'static, str>>) -> Rejection {
        Rejection::invalid(self.state, text)
    }

    /// The standing of a sender that has one.
    pub(super) fn standing(&self, sender: &str) -> Option<Standing> {
        let senders = &self.state.netease.settings.senders;
        let mut named = senders.iter().filter(|(id, _)| id == sender);
        named.next().map(|(_, standing)| *standing)
    }

    /// Refuses the whole call if one of the recipients is poison.
    pub(super) fn taste(&self, recipients: &[String]) -> Result<(), Rejection> {
        let poison = &self.state.netease.settings.poison;
        match poison.iter().find(|(id, _)| recipients.contains(id)) {
            Some((id, code)) => {
                count(&self.state.counters.refused, 1);
                Err(Rejection::new(*code, format!("{id} is not allowed")))
            }
            None => Ok(()),
        }
    }

    pub(super) fn moderated(&self, payload: &str) -> bool {
        let moderate = self.state.netease.settings.moderate.as_deref();
        moderate.is_some_and(|text| payload.contains(text))
    }

    pub(super) fn origin(&self, system: System, from: &str, payload: &str) -> Origin {
        Origin {
            system: system.name(),
            from: from.to_owned(),
            payload: shown_payload(payload.as_bytes()),
            traceparent: self.call.traceparent().map(Into::into),
            channel_type: PERSON,
            no_persist: false,
            sync_once: false,
            unnumbered: true,
        }
    }

    /// A new message; without a number of the caller's it bears its own id.
    pub(super) fn receipt(&self, recipient: String, number: Option<&str>) -> Receipt {
        let (message_id, message_seq) = self.state.next_message();
        Receipt {
            recipient,
            client_msg_no: number.map_or_else(|| message_id.to_string(), str::to_owned),
            message_id,
            message_seq,
            replay: false,
        }
    }

    /// Puts the receipts into the log, and the answer into the hands of repetitions.
    pub(super) fn accept(
        &self,
        origin: &Origin,
        receipts: Vec<Receipt>,
        answer: Answer,
    ) -> Result<First, Rejection> {
        self.record(origin, receipts.clone())?;
        Ok(First {
            content: self.content(),
            answer,
            receipts,
        })
    }

    /// Accepts, unless the request id was used for an accepted call before.
    pub(super) fn once(
        &self,
        origin: &Origin,
        accept: impl FnOnce() -> Result<First, Rejection>,
    ) -> Result<Answer, Rejection> {
        let Some(id) = self.request_id.filter(|_| !self.is_lost()) else {
            return accept().map(|first| first.answer);
        };
        let key = fingerprint(&[origin.system.as_bytes(), self.app.as_bytes(), id.as_bytes()]);
        let repeat = |first: &First| {
            self.replay(origin, first)?;
            match self.state.netease.settings.on_repeat {
                OnRepeat::Same => Ok(first.answer.clone()),
                OnRepeat::Code417 => Err(Rejection::new(417, "repeated operation")),
                OnRepeat::Code431 => Err(Rejection::new(431, "repeated request")),
            }
        };
        self.state.netease.repeats.once(key, accept, repeat)
    }

    /// Logs the recipients of an accepted call again, as replays; but another body under the same key
    /// is the caller's mistake.
    pub(super) fn replay(&self, origin: &Origin, first: &First) -> Result<(), Rejection> {
        if first.content == self.content() {
            return self.record(origin, first.replayed());
        }
        count(&self.state.counters.invalid, 1);
        Ok(())
    }

    /// True when the answer says "accepted" and nothing must be remembered.
    pub(super) fn is_lost(&self) -> bool {
        self.fate.fault == Some(FaultKind::LostAfter200)
    }

    fn record(&self, origin: &Origin, receipts: Vec<Receipt>) -> Result<(), Rejection> {
        let recorded = self.state.record(origin, self.fate, receipts);
        recorded.map_err(|_| Rejection::new(INTERNAL, "log cannot be written"))
    }

    fn content(&self) -> u128 {
        let path = self.call.parts.uri.path();
        fingerprint(&[path.as_bytes(), &self.call.body])
    }
}

/// The sender of a call, if it may send.
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
