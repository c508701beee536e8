//! Reads replies.
//!
//! A success of a batch lists the accids that are not registered; all other recipients got the
//! message. The list is JSON or, from older servers, a text that contains JSON; the same holds for
//! the ids.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::code;
use super::refusal::check_reply;
use crate::domain::message_id::MessageId;
use crate::domain::outcome::{Class, TargetAnswer, Verdict};
use crate::im::reading::{all_but, unreadable};
use crate::ports::HttpReply;

/// A success of a batch.
#[derive(Deserialize)]
struct Sent<'a> {
    #[serde(borrow)]
    unregister: Option<&'a RawValue>,
    #[serde(borrow)]
    msgids: Option<&'a RawValue>,
    timetag: Option<u64>,
}

/// A reply of `sendBatchMsg.action`; `block` as in [`code::answer`]. With `keep_ids`, the answers
/// have the ids of the messages.
pub(super) fn batch(
    recipients: &[&str],
    reply: &HttpReply,
    block: Duration,
    keep_ids: bool,
) -> Verdict {
    let refused = |code, said| code::answer(code, said, block);
    if let Err(answer) = check_reply(reply, refused) {
        return Verdict::All(answer);
    }
    // A list that cannot be read could name any recipient.
    let Some(Lists {
        unregistered,
        ids,
        at_ms,
    }) = lists(&reply.body)
    else {
        return Verdict::All(unreadable(&reply.body));
    };
    let refused = unregistered.into_iter().map(|accid| {
        let answer = TargetAnswer::new(
            Class::Permanent,
            "unregister",
            "the accid is not registered",
        );
        (Cow::Owned(accid), answer)
    });
    let verdict = all_but(recipients, refused);
    match ids {
        Some(ids) => {
            let verdict = with_ids(recipients, verdict, &ids);
            match keep_ids {
                true => kept(recipients, &verdict, &ids, at_ms),
                false => verdict,
            }
        }
        None => verdict,
    }
}

/// What a success says.
struct Lists {
    /// The accids that are not registered.
    unregistered: Vec<String>,
    /// The id of the message to each accid, if the reply contains ids. An id that cannot be read is
    /// empty.
    ids: Option<HashMap<String, String>>,
    at_ms: Option<u64>,
}

/// The verdict with the ids of the messages.
fn kept(
    recipients: &[&str],
    verdict: &Verdict,
    ids: &HashMap<String, String>,
    at_ms: Option<u64>,
) -> Verdict {
    let answers = recipients.iter().enumerate().map(|(index, recipient)| {
        let answer = verdict.of(index);
        match ids.get(*recipient) {
            Some(id) if answer.class == Class::Done => {
                TargetAnswer::done_as(MessageId::new(id, at_ms))
            }
            _ => answer.clone(),
        }
    });
    Verdict::Each(answers.collect())
}

fn lists(body: &[u8]) -> Option<Lists> {
    let sent: Sent<'_> = serde_json::from_slice(body).ok()?;
    let unregistered = sent.unregister.map_or(Some(Vec::new()), names)?;
    let ids = match sent.msgids {
        Some(ids) => Some(ids_of(ids)?),
        None => None,
    };
    Some(Lists {
        unregistered,
        ids,
        at_ms: sent.timetag,
    })
}

/// If the reply contains ids, an accid without one is in doubt.
fn with_ids(recipients: &[&str], verdict: Verdict, ids: &HashMap<String, String>) -> Verdict {
    let lacks = |index: usize| {
        verdict.of(index).class == Class::Done && !ids.contains_key(recipients[index])
    };
    if !(0..recipients.len()).any(lacks) {
        return verdict;
    }
    let answers = (0..recipients.len()).map(|index| match lacks(index) {
        true => {
            let text = "neither an id nor a refusal came for this accid";
            TargetAnswer::new(Class::Uncertain, "no_msgid", text)
        }
        false => verdict.of(index).clone(),
    });
    Verdict::Each(answers.collect())
}

/// A reply of `sendMsg.action`; `block` as in [`code::answer`]. A success can report that
/// moderation kept the message back.
pub(super) fn single(reply: &HttpReply, block: Duration, keep_ids: bool) -> Verdict {
    #[derive(Deserialize)]
    struct Sent {
        data: Data,
    }
    #[derive(Deserialize)]
    struct Data {
        #[serde(default)]
        antispam: bool,
        msgid: Option<Number>,
        timetag: Option<u64>,
    }
    let refused = |code, said| code::answer(code, said, block);
    if let Err(answer) = check_reply(reply, refused) {
        return Verdict::All(answer);
    }
    let sent = serde_json::from_slice(&reply.body);
    Verdict::All(match sent {
        Ok(Sent {
            data: Data { antispam: true, .. },
        }) => {
            let text = "moderation kept the message back";
            TargetAnswer::new(Class::Permanent, "antispam", text)
        }
        Ok(Sent { data }) if keep_ids => {
            let id = data.msgid.map(Number::text);
            TargetAnswer::done_as(id.and_then(|id| MessageId::new(id, data.timetag)))
        }
        _ => TargetAnswer::done(),
    })
}

/// A list, or a text that contains one.
#[derive(Deserialize)]
#[serde(untagged)]
enum Packed<T> {
    Plain(T),
    Text(String),
}

impl<T: for<'de> Deserialize<'de> + Default> Packed<T> {
    fn parse(json: &RawValue) -> Option<T> {
        match serde_json::from_str(json.get()).ok()? {
            Self::Plain(value) => Some(value),
            Self::Text(text) if text.trim().is_empty() => Some(T::default()),
            Self::Text(text) => serde_json::from_str(&text).ok(),
        }
    }
}

/// An accid or an id. One of digits may be written as a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Text(String),
    Number(i64),
}

impl Number {
    fn text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Number(number) => number.to_string(),
        }
    }
}

fn names(json: &RawValue) -> Option<Vec<String>> {
    let accids: Vec<Number> = Packed::parse(json)?;
    let lower = |accid: Number| accid.text().to_lowercase();
    Some(accids.into_iter().map(lower).collect())
}

fn ids_of(json: &RawValue) -> Option<HashMap<String, String>> {
    let ids: BTreeMap<String, serde_json::Value> = Packed::parse(json)?;
    let ids = ids.into_iter().map(|(accid, id)| {
        let id: Option<Number> = serde_json::from_value(id).ok();
        (accid.to_lowercase(), id.map_or(String::new(), Number::text))
    });
    Some(ids.collect())
}
