//! Simulates `POST /im/v2/conversations/messages`: one message to up to 100 users. Every receiver
//! should be in one of two lists; an empty list is left out.

use serde_json::{Map, Value, json};

use super::message::Request;
use super::{check_sender, refusal, success};
use crate::System;
use crate::netease::{Admitted, PERSON, Rejection};
use crate::reply::Answer;

const RECEIVERS_MAX: usize = 100;

pub(super) fn send(admitted: &Admitted<'_>) -> Result<Answer, Rejection> {
    let request = Request::from_call(admitted)?;
    let sender = request.body["sender_id"].as_str().unwrap_or_default();
    if sender.is_empty() {
        return Err(admitted.invalid("sender_id is missing"));
    }
    let receivers = receivers(admitted, &request.body)?;
    check_sender(admitted, sender)?;
    admitted.taste(&receivers)?;

    let mut origin = admitted.origin(System::Yunxin, sender, request.payload);
    origin.no_persist = request.is_online_only();
    origin.unnumbered = request.client_id().is_none();
    admitted.once(&origin, || {
        let desk = &admitted.state.yunxin;
        let (mut sent, mut failed, mut receipts) = (Vec::new(), Vec::new(), Vec::new());
        for receiver in receivers {
            if let Some((code, text)) = refusal(admitted, &receiver, request.payload) {
                let key = desk.settings.failed_key.at(failed.len());
                failed.push(json!({ key: receiver, "error_code": code, "error_msg": text }));
                continue;
            }
            let receipt = admitted.receipt(receiver, request.client_id());
            if !desk.omits(&receipt.recipient) {
                sent.push(request.shown(sender, PERSON, &receipt));
            }
            receipts.push(receipt);
        }
        let answer = success(&lists(sent, failed));
        admitted.accept(&origin, receipts, answer)
    })
}

fn receivers(admitted: &Admitted<'_>, body: &Value) -> Result<Vec<String>, Rejection> {
    let ids = body["receiver_ids"].as_array().into_iter().flatten();
    let receivers: Option<Vec<String>> = ids
        .map(|id| id.as_str().filter(|id| !id.is_empty()).map(str::to_owned))
        .collect();
    match receivers {
        Some(receivers) if receivers.len() > RECEIVERS_MAX => {
            Err(admitted.invalid("too many receiver_ids"))
        }
        Some(receivers) if !receivers.is_empty() => Ok(receivers),
        _ => Err(admitted.invalid("receiver_ids is empty or holds what is not an id")),
    }
}

/// `success_list` and `failed_list`, each only if it has entries.
pub(super) fn lists(sent: Vec<Value>, failed: Vec<Value>) -> Value {
    let lists = [("success_list", sent), ("failed_list", failed)];
    let filled = lists.into_iter().filter(|(_, list)| !list.is_empty());
    let named = filled.map(|(name, list)| (name.to_owned(), Value::Array(list)));
    Value::Object(named.collect::<Map<_, _>>())
}
