//! Simulates `DELETE /im/v2/conversations/{conversation}/messages/{message_server_id}`: takes one
//! message back. `type` 1 is a recall that only the receiver sees, 2 one that both sides see, 3 a
//! deletion.
//!
//! Without `ignore_revoke_time`, type 2 takes messages of the last two minutes. The codes for an
//! unknown message and for an old one are guesses.

use serde_json::json;

use super::single::Conversation;
use super::success;
use crate::System;
use crate::netease::{Admitted, Rejection, millis_now};
use crate::reply::Answer;

const NO_MESSAGE: u32 = 107_404;
const TOO_OLD: u32 = 107_314;
const RECALL_MS_MAX: u64 = 2 * 60 * 1000;

pub(super) fn is_path(path: &str) -> bool {
    parts(path).is_some()
}

pub(super) fn recall(admitted: &Admitted<'_>) -> Result<Answer, Rejection> {
    let uri = &admitted.call.parts.uri;
    let (conversation, id) = parts(uri.path())
        .and_then(|(conversation, id)| Some((Conversation::named(conversation)?, id)))
        .ok_or_else(|| admitted.invalid("the conversation is not sender|type|receiver"))?;
    let query: Vec<(&str, &str)> = uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .collect();
    let get = |name: &str| {
        query
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, it)| *it)
    };
    let Some(kind @ ("1" | "2" | "3")) = get("type") else {
        return Err(admitted.invalid("type is not 1, 2 or 3"));
    };
    let Ok(id) = id.parse() else {
        return Err(admitted.invalid("message_server_id is not a number"));
    };
    admitted.taste(std::slice::from_ref(&conversation.receiver))?;
    let found = admitted
        .state
        .message(&conversation.sender, &conversation.receiver, id);
    let Some(message) = found else {
        return Err(Rejection::new(NO_MESSAGE, "message not exist"));
    };
    let age = millis_now().saturating_sub(message.at_us / 1000);
    if kind == "2" && get("ignore_revoke_time") != Some("1") && age > RECALL_MS_MAX {
        return Err(Rejection::new(TOO_OLD, "the message is too old"));
    }
    if !admitted.is_lost() {
        admitted.state.recall(System::Yunxin.name(), &message);
    }
    Ok(success(&json!({})))
}

/// The conversation and the message in a path.
fn parts(path: &str) -> Option<(&str, &str)> {
    let rest = path.strip_prefix("/im/v2/conversations/")?;
    let (conversation, id) = rest.split_once("/messages/")?;
    (!conversation.contains('/') && !id.contains('/')).then_some((conversation, id))
}
