//! Simulates `POST /im/v2/conversations/{sender|1|receiver}/messages`, or with `|2|` to a team.
//!
//! A `message_client_id` is the key of a message: a second use in the conversation is answered
//! 107306 and sends nothing, whatever the body or the trace id is.

use super::message::Request;
use super::{check_sender, refusal, success};
use crate::System;
use crate::log::fingerprint;
use crate::netease::{Admitted, First, PERSON, Rejection, TEAM};
use crate::reply::Answer;
use crate::webhook::percent_decoded;

const DUPLICATE: u32 = 107_306;

/// A conversation, as the path contains it: `sender|1|receiver`.
pub(super) struct Conversation {
    id: String,
    pub(super) sender: String,
    kind: u8,
    pub(super) receiver: String,
}

pub(super) fn is_path(path: &str) -> bool {
    segment(path).is_some()
}

pub(super) fn send(admitted: &Admitted<'_>) -> Result<Answer, Rejection> {
    let conversation = Conversation::parse(admitted.call.parts.uri.path())
        .ok_or_else(|| admitted.invalid("the conversation is not sender|type|receiver"))?;
    let request = Request::from_call(admitted)?;
    check_sender(admitted, &conversation.sender)?;
    admitted.taste(std::slice::from_ref(&conversation.receiver))?;

    let mut origin = admitted.origin(System::Yunxin, &conversation.sender, request.payload);
    origin.channel_type = conversation.kind;
    origin.no_persist = request.is_online_only();
    origin.unnumbered = request.client_id().is_none();
    let accept = || {
        let receiver = &conversation.receiver;
        if let Some((code, text)) = refusal(admitted, receiver, request.payload) {
            return Err(Rejection::new(code, text));
        }
        let receipt = admitted.receipt(receiver.clone(), request.client_id());
        let shown = request.shown(&conversation.sender, conversation.kind, &receipt);
        admitted.accept(&origin, vec![receipt], success(&shown))
    };
    let Some(client_id) = request.client_id().filter(|_| !admitted.is_lost()) else {
        return admitted.once(&origin, accept);
    };
    let parts = [admitted.app, &conversation.id, client_id];
    let key = fingerprint(&parts.map(str::as_bytes));
    let duplicate = |first: &First| {
        admitted.replay(&origin, first)?;
        Err(Rejection::new(DUPLICATE, "duplicate message_client_id"))
    };
    let messages = &admitted.state.yunxin.messages;
    messages.once(key, accept, duplicate)
}

impl Conversation {
    fn parse(path: &str) -> Option<Conversation> {
        Conversation::named(segment(path)?)
    }

    /// The conversation in a segment of a path.
    pub(super) fn named(segment: &str) -> Option<Conversation> {
        let id = percent_decoded(segment)?;
        let parts: Vec<&str> = id.split('|').collect();
        let [sender, kind, receiver] = parts[..] else {
            return None;
        };
        let kind = match kind {
            "1" => PERSON,
            "2" => TEAM,
            _ => return None,
        };
        if sender.is_empty() || receiver.is_empty() {
            return None;
        }
        Some(Conversation {
            sender: sender.to_owned(),
            kind,
            receiver: receiver.to_owned(),
            id,
        })
    }
}

/// The part of the path that contains the conversation.
fn segment(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/im/v2/conversations/")?;
    let segment = rest.strip_suffix("/messages")?;
    (!segment.contains('/')).then_some(segment)
}
