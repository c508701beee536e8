//! Reads replies.
//!
//! A success of a batch lists the accids that are not registered; all other recipients got the
//! message. The list is JSON or, from older servers, a text that contains JSON; the same holds for
//! the ids.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::code;
use super::refusal::check_reply;
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
}

/// A reply of `sendBatchMsg.action`; `block` as in [`code::answer`].
pub(super) fn batch(recipients: &[&str], reply: &HttpReply, block: Duration) -> Verdict {
    let refused = |code, said| code::answer(code, said, block);
    if let Err(answer) = check_reply(reply, refused) {
        return Verdict::All(answer);
    }
    // A list that cannot be read could name any recipient.
    let Some((unregistered, ids)) = lists(&reply.body) else {
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
        Some(ids) => with_ids(recipients, verdict, &ids),
        None => verdict,
    }
}

/// The accids that are not registered, and those that have an id, if the reply contains ids.
fn lists(body: &[u8]) -> Option<(Vec<String>, Option<HashSet<String>>)> {
    let sent: Sent<'_> = serde_json::from_slice(body).ok()?;
    let unregistered = sent.unregister.map_or(Some(Vec::new()), names)?;
    let ids = match sent.msgids {
        Some(ids) => Some(keys(ids)?),
        None => None,
    };
    Some((unregistered, ids))
}

/// If the reply contains ids, an accid without one is in doubt.
fn with_ids(recipients: &[&str], verdict: Verdict, ids: &HashSet<String>) -> Verdict {
    let lacks =
        |index: usize| verdict.of(index).class == Class::Done && !ids.contains(recipients[index]);
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
pub(super) fn single(reply: &HttpReply, block: Duration) -> Verdict {
    #[derive(Deserialize)]
    struct Sent {
        data: Data,
    }
    #[derive(Deserialize)]
    struct Data {
        antispam: bool,
    }
    let refused = |code, said| code::answer(code, said, block);
    if let Err(answer) = check_reply(reply, refused) {
        return Verdict::All(answer);
    }
    let sent = serde_json::from_slice(&reply.body);
    Verdict::All(match sent {
        Ok(Sent {
            data: Data { antispam: true },
        }) => {
            let text = "moderation kept the message back";
            TargetAnswer::new(Class::Permanent, "antispam", text)
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

/// An accid. An accid of digits may be written as a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Accid {
    Text(String),
    Number(i64),
}

fn names(json: &RawValue) -> Option<Vec<String>> {
    let accids: Vec<Accid> = Packed::parse(json)?;
    let lower = |accid| match accid {
        Accid::Text(text) => text.to_lowercase(),
        Accid::Number(number) => number.to_string(),
    };
    Some(accids.into_iter().map(lower).collect())
}

fn keys(json: &RawValue) -> Option<HashSet<String>> {
    let ids: BTreeMap<String, IgnoredAny> = Packed::parse(json)?;
    Some(ids.into_keys().map(|accid| accid.to_lowercase()).collect())
}
