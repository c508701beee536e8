//! Simulates `recall.action`: takes one message back, for both sides.
//!
//! As the vendor documents: a message that does not exist counts as recalled, and nothing happens.
//! Without `ignoreTime`, only messages of the last two minutes are recalled; the code of the refusal
//! of an older one is a guess.

use http::StatusCode;
use serde_json::json;

use super::form::Form;
use super::{Admitted, OK, Rejection, is_accid, millis_now};
use crate::System;
use crate::reply::Answer;

const RECALL_MS_MAX: u64 = 2 * 60 * 1000;

pub(super) fn recall(admitted: &Admitted<'_>) -> Result<Answer, Rejection> {
    let form = Form::from_call(admitted.call);
    let number = |name: &str| form.get(name).and_then(|text| text.parse::<i64>().ok());
    let Some(id) = number("deleteMsgid") else {
        return Err(admitted.invalid("deleteMsgid is not a number"));
    };
    let Some(at_ms) = number("timetag").filter(|at| *at > 0) else {
        return Err(admitted.invalid("timetag is not a time"));
    };
    let (from, to) = (form.get("from"), form.get("to"));
    let (Some(from), Some(to)) = (from.filter(|it| is_accid(it)), to.filter(|it| is_accid(it)))
    else {
        return Err(admitted.invalid("from or to is missing or too long"));
    };
    let to = match form.get("type") {
        Some("7") => to.to_lowercase(),
        Some("8") => to.to_owned(),
        _ => return Err(admitted.invalid("type is not 7 or 8")),
    };
    let ignores_time = match form.get("ignoreTime") {
        None => false,
        Some("1") => true,
        Some(_) => return Err(admitted.invalid("ignoreTime is not 1")),
    };
    if !ignores_time && millis_now().saturating_sub(at_ms.unsigned_abs()) > RECALL_MS_MAX {
        return Err(Rejection::new(414, "the message is too old"));
    }
    admitted.taste(std::slice::from_ref(&to))?;
    if !admitted.is_lost()
        && let Some(message) = admitted.state.message(&from.to_lowercase(), &to, id)
    {
        admitted.state.recall(System::Netease.name(), &message);
    }
    Ok(Answer::json(StatusCode::OK, &json!({ "code": OK })))
}
