//! Checks every call to NetEase's cloud, through either API: signature and quota first, then the
//! sender, poison, and whether it repeats an earlier call.

use std::borrow::Cow;
use std::time::Instant;

use super::{First, Gate, OnRepeat, PARAMETER, PERSON, RATE, Standing, millis_now, sign};
use crate::faults::{CallPlan, FaultKind};
use crate::log::{fingerprint, shown_payload};
use crate::reply::Answer;
use crate::state::{Origin, Receipt, State, count};
use crate::{Call, System};

const REPEATED_OPERATION: u32 = 417;
const REPEATED_REQUEST: u32 = 431;
const INTERNAL: u32 = 500;

/// The refusal of a whole call, before either API formats it.
#[derive(Debug)]
pub(crate) struct Rejection {
    pub(crate) code: u32,
    pub(crate) text: Cow<'static, str>,
}

impl Rejection {
    pub(crate) fn new(code: u32, text: impl Into<Cow<'static, str>>) -> Rejection {
        Rejection {
            code,
            text: text.into(),
        }
    }

    /// The call breaks a rule of the protocol; counts it.
    fn invalid(state: &State, text: impl Into<Cow<'static, str>>) -> Rejection {
        count(&state.counters.invalid, 1);
        Rejection::new(PARAMETER, text)
    }
}

/// Answers one kind of call.
pub(crate) type Action = fn(&Admitted<'_>) -> Result<Answer, Rejection>;

/// A call that is signed and within its quota.
pub(crate) struct Admitted<'a> {
    pub(crate) state: &'a State,
    pub(crate) call: &'a Call,
    pub(crate) plan: &'a CallPlan,
    pub(crate) app: &'a str,
    request_id: Option<&'a str>,
}

impl<'a> Admitted<'a> {
    /// Checks signature and quota, before the call is read.
    pub(crate) fn admit(
        state: &'a State,
        call: &'a Call,
        plan: &'a CallPlan,
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
            plan,
            app,
            request_id: request_id.filter(|id| !id.is_empty()),
        })
    }

    pub(crate) fn invalid(&self, text: impl Into<Cow<'static, str>>) -> Rejection {
        Rejection::invalid(self.state, text)
    }

    /// The standing configured for a sender, if any.
    pub(crate) fn standing(&self, sender: &str) -> Option<Standing> {
        let senders = &self.state.netease.settings.senders;
        let mut named = senders.iter().filter(|(id, _)| id == sender);
        named.next().map(|(_, standing)| *standing)
    }

    /// Refuses the whole call if one of the recipients is poison.
    pub(crate) fn taste(&self, recipients: &[String]) -> Result<(), Rejection> {
        let poison = &self.state.netease.settings.poison;
        match poison.iter().find(|(id, _)| recipients.contains(id)) {
            Some((id, code)) => {
                count(&self.state.counters.refused, 1);
                Err(Rejection::new(*code, format!("{id} is not allowed")))
            }
            None => Ok(()),
        }
    }

    pub(crate) fn moderated(&self, payload: &str) -> bool {
        let moderate = self.state.netease.settings.moderate.as_deref();
        moderate.is_some_and(|text| payload.contains(text))
    }

    pub(crate) fn origin(&self, system: System, from: &str, payload: &str) -> Origin {
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

    /// A new message. Without a number of the caller's, its number is its own id.
    pub(crate) fn receipt(&self, recipient: String, number: Option<&str>) -> Receipt {
        let (message_id, message_seq) = self.state.next_message();
        Receipt {
            recipient,
            client_msg_no: number.map_or_else(|| message_id.to_string(), str::to_owned),
            message_id,
            message_seq,
            replay: false,
        }
    }

    /// Writes the receipts to the log, and keeps the answer for repeated calls.
    pub(crate) fn accept(
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

    /// Accepts, unless the request id was used by an accepted call before.
    pub(crate) fn once(
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
                OnRepeat::Code417 => Err(Rejection::new(REPEATED_OPERATION, "repeated operation")),
                OnRepeat::Code431 => Err(Rejection::new(REPEATED_REQUEST, "repeated request")),
            }
        };
        self.state.netease.repeats.once(key, accept, repeat)
    }

    /// Logs the recipients of an accepted call again, as replays. A different body with the same
    /// key is the caller's mistake and counts as invalid.
    pub(crate) fn replay(&self, origin: &Origin, first: &First) -> Result<(), Rejection> {
        if first.content == self.content() {
            return self.record(origin, first.replayed());
        }
        count(&self.state.counters.invalid, 1);
        Ok(())
    }

    /// Whether the answer says "accepted" but nothing may be stored.
    pub(crate) fn is_lost(&self) -> bool {
        self.plan.fault == Some(FaultKind::LostAfter200)
    }

    fn record(&self, origin: &Origin, receipts: Vec<Receipt>) -> Result<(), Rejection> {
        let recorded = self.state.record(origin, self.plan, receipts);
        recorded.map_err(|_| Rejection::new(INTERNAL, "log cannot be written"))
    }

    fn content(&self) -> u128 {
        let path = self.call.parts.uri.path();
        fingerprint(&[path.as_bytes(), &self.call.body])
    }
}
