//! Simulates `sendBatchMsg.action`: one message to up to 500 users, or to 100 with message ids.
//!
//! The answer lists unregistered accids; all others count as sent. The messages have no number of
//! the caller's, so only the `RequestId` of the call prevents that a repeated call sends them
//! again.

use http::StatusCode;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::form::Form;
use super::message::Message;
use super::{Admitted, OK, Rejection, is_accid, millis_now, sender};
use crate::System;
use crate::reply::Answer;
use crate::state::Receipt;

const MEMBERS_MAX: usize = 500;
const MEMBERS_WITH_IDS_MAX: usize = 100;

pub(super) fn send(admitted: &Admitted<'_>) -> Result<Answer, Rejection> {
    let form = Form::from_call(admitted.call);
    let from = sender(admitted, form.get("fromAccid"))?;
    let with_ids = match form.get("returnMsgid") {
        Some("true") => true,
        None | Some("false") => false,
        Some(_) => return Err(admitted.invalid("returnMsgid is not a boolean")),
    };
    let members = members(admitted, &form, with_ids)?;
    let message = Message::from_form(&form).map_err(|text| admitted.invalid(text))?;
    admitted.taste(&members)?;

    let mut origin = admitted.origin(System::Netease, &from, message.body);
    origin.no_persist = message.online_only;
    admitted.once(&origin, || {
        let (unregistered, registered): (Vec<String>, Vec<String>) = members
            .into_iter()
            .partition(|accid| admitted.state.refuses(admitted.plan, accid));
        let receipts: Vec<Receipt> = registered
            .into_iter()
            .map(|accid| admitted.receipt(accid, None))
            .collect();
        let answer = sent(admitted, &unregistered, with_ids.then_some(&receipts));
        admitted.accept(&origin, receipts, answer)
    })
}

fn members(admitted: &Admitted<'_>, form: &Form, with_ids: bool) -> Result<Vec<String>, Rejection> {
    let parsed = form.get("toAccids").map(serde_json::from_str);
    let Some(Ok(members)): Option<Result<Vec<String>, _>> = parsed else {
        return Err(admitted.invalid("toAccids is not an array of accids"));
    };
    let max = if with_ids {
        MEMBERS_WITH_IDS_MAX
    } else {
        MEMBERS_MAX
    };
    if members.len() > max {
        return Err(admitted.invalid("too many members."));
    }
    if members.is_empty() || !members.iter().all(|accid| is_accid(accid)) {
        return Err(admitted.invalid("toAccids is empty or holds what is not an accid"));
    }
    Ok(members.iter().map(|accid| accid.to_lowercase()).collect())
}

fn sent(admitted: &Admitted<'_>, unregistered: &[String], ids: Option<&Vec<Receipt>>) -> Answer {
    let mut body = json!({
        "code": OK,
        "unregister": list(admitted, &unregistered),
        "timetag": millis_now(),
    });
    if let Some(receipts) = ids {
        let id = |receipt: &Receipt| (receipt.recipient.clone(), json!(receipt.message_id));
        let ids: Map<String, Value> = receipts.iter().map(id).collect();
        body["msgids"] = list(admitted, &ids);
    }
    Answer::json(StatusCode::OK, &body)
}

/// JSON, or a text that contains it.
fn list(admitted: &Admitted<'_>, list: &impl Serialize) -> Value {
    let list = json!(list);
    if admitted.state.netease.settings.text_lists {
        json!(list.to_string())
    } else {
        list
    }
}
