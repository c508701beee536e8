//! Simulates `sendMsg.action`: one message to a user or a team.

use http::StatusCode;
use serde_json::json;

use super::form::Form;
use super::message::Message;
use super::{Admitted, OK, PERSON, Rejection, TEAM, is_accid, millis_now, sender};
use crate::System;
use crate::reply::Answer;
use crate::state::count;

pub(super) fn send(admitted: &Admitted<'_>) -> Result<Answer, Rejection> {
    let form = Form::from_call(admitted.call);
    let from = sender(admitted, form.get("from"))?;
    let (channel_type, to) = addressee(admitted, &form)?;
    let message = Message::from_form(&form).map_err(|text| admitted.invalid(text))?;
    admitted.taste(std::slice::from_ref(&to))?;

    let mut origin = admitted.origin(System::Netease, &from, message.body);
    origin.channel_type = channel_type;
    origin.no_persist = message.online_only;
    admitted.once(&origin, || {
        if admitted.state.refuses(admitted.plan, &to) {
            return Err(Rejection::new(404, format!("{to} not exist")));
        }
        let receipt = admitted.receipt(to, None);
        if admitted.moderated(message.body) {
            count(&admitted.state.counters.refused, 1);
            let answer = sent(receipt.message_id, true);
            return admitted.accept(&origin, Vec::new(), answer);
        }
        let answer = sent(receipt.message_id, false);
        admitted.accept(&origin, vec![receipt], answer)
    })
}

/// The channel type and the id: an accid in lower case, or a team's number.
fn addressee(admitted: &Admitted<'_>, form: &Form) -> Result<(u8, String), Rejection> {
    let to = form.get("to");
    let Some(to) = to.filter(|to| is_accid(to)) else {
        return Err(admitted.invalid("to is missing or too long"));
    };
    match form.get("ope") {
        Some("0") => Ok((PERSON, to.to_lowercase())),
        Some("1") => Ok((TEAM, to.to_owned())),
        _ => Err(admitted.invalid("ope is not 0 or 1")),
    }
}

fn sent(message_id: i64, antispam: bool) -> Answer {
    let timetag = millis_now();
    let data = json!({ "msgid": message_id, "timetag": timetag, "antispam": antispam });
    Answer::json(StatusCode::OK, &json!({ "code": OK, "data": data }))
}
