//! Simulates Yunxin's newer server API (v2): signed JSON to `/im/v2/…`; every answer is an HTTP 200
//! with a `code`.
//!
//! It was written from the vendor's documents and SDKs, not from our adapter. The signature, the
//! quotas and repeated requests (`X-custom-traceid`) are as in `netease`, whose settings for apps,
//! senders, poison and moderation apply here too. The quotas are counted separately. Ids keep their
//! case.

mod accounts;
mod batch;
mod message;
mod recall;
mod settings;
mod single;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::Call;
use super::faults::CallPlan;
use super::netease::{self, Action, Admitted, Gate, Rejection, Repeats, Standing};
use super::reply::Answer;
use super::state::{State, count};

pub use settings::{FailedKey, YunxinSettings};

/// The account does not exist.
const UNKNOWN: u32 = 102_404;
const CHAT_BANNED: u32 = 102_421;
const BANNED: u32 = 102_422;
const MODERATED: u32 = 107_451;

/// Makes the choice of omitted receivers independent of the choice of refused users.
const PURPOSE_OMIT: u64 = 1;

/// The state of v2 while the mock runs.
pub(super) struct YunxinState {
    settings: YunxinSettings,
    seed: u64,
    batches: Gate,
    singles: Gate,
    /// Has no quota.
    accounts: Gate,
    /// Single sends, by their message_client_id.
    messages: Repeats,
}

impl YunxinState {
    pub(super) fn new(settings: YunxinSettings, seed: u64) -> YunxinState {
        YunxinState {
            batches: Gate::new(settings.batch_quota),
            singles: Gate::new(settings.single_quota),
            accounts: Gate::new(None),
            messages: Repeats::new(),
            settings,
            seed,
        }
    }

    /// Whether the answer of a batch omits this receiver.
    fn omits(&self, receiver: &str) -> bool {
        let named = self.settings.omit_users.iter();
        self.settings.omit.takes(receiver, self.seed, PURPOSE_OMIT)
            || named.into_iter().any(|user| user == receiver)
    }
}

/// Answers a request below `/im/v2`.
pub(super) fn answer(state: &State, call: &Call, plan: &CallPlan) -> Answer {
    let desk = &state.yunxin;
    let (gate, run): (_, Action) = match (&call.parts.method, call.parts.uri.path()) {
        (&Method::POST, "/im/v2/conversations/messages") => (&desk.batches, batch::send),
        (&Method::POST, path) if single::is_path(path) => (&desk.singles, single::send),
        (&Method::GET, "/im/v2/accounts") => (&desk.accounts, accounts::find),
        (&Method::DELETE, path) if recall::is_path(path) => (&desk.singles, recall::recall),
        _ => return Answer::text(StatusCode::NOT_FOUND, "no such path"),
    };
    let trace_id = call.header("x-custom-traceid");
    Admitted::admit(state, call, plan, gate, trace_id)
        .and_then(|admitted| run(&admitted))
        .unwrap_or_else(|rejection| rejected(&rejection))
}

/// A failure that a fault produces, in the format of v2.
pub(super) fn failure(status: StatusCode, text: &str) -> Answer {
    rejected(&Rejection::new(netease::code_of(status), text.to_owned()))
}

pub(super) fn unauthorised() -> Answer {
    rejected(&netease::unsigned())
}

fn rejected(rejection: &Rejection) -> Answer {
    let body = json!({ "code": rejection.code, "msg": rejection.text });
    Answer::json(StatusCode::OK, &body)
}

fn success(data: &Value) -> Answer {
    let body = json!({ "code": netease::OK, "msg": "success", "data": data });
    Answer::json(StatusCode::OK, &body)
}

/// Refuses the whole call for its sender.
fn check_sender(admitted: &Admitted<'_>, sender: &str) -> Result<(), Rejection> {
    match admitted.standing(sender) {
        None => Ok(()),
        Some(Standing::Unknown) => Err(Rejection::new(UNKNOWN, "sender not exist")),
        Some(Standing::Disabled) => Err(Rejection::new(BANNED, "sender banned")),
        Some(Standing::Muted) => Err(Rejection::new(CHAT_BANNED, "sender chat banned")),
    }
}

/// The code of a refused receiver; counts the refusal.
fn refusal(admitted: &Admitted<'_>, receiver: &str, payload: &str) -> Option<(u32, &'static str)> {
    let (state, settings) = (admitted.state, &admitted.state.yunxin.settings);
    if let Some((_, code)) = settings.refuse_as.iter().find(|(id, _)| id == receiver) {
        count(&state.counters.refused, 1);
        return Some((*code, "receiver refused"));
    }
    if state.refuses(admitted.plan, receiver) {
        return Some((settings.refuse_code, "receiver refused"));
    }
    if admitted.moderated(payload) {
        count(&state.counters.refused, 1);
        return Some((MODERATED, "stopped by moderation"));
    }
    None
}
