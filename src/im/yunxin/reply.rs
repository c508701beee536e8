//! Reads replies.

use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;

use super::code;
use crate::domain::message_id::MessageId;
use crate::domain::outcome::{Class, TargetAnswer, Verdict};
use crate::im::netease::refusal::check_reply;
use crate::im::reading::unreadable;
use crate::ports::HttpReply;

/// The data of a success.
#[derive(Deserialize)]
struct SendReply {
    data: Option<Lists>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Lists {
    success_list: Option<Vec<Entry>>,
    failed_list: Option<Vec<Entry>>,
}

/// One recipient. The vendor's SDKs disagree on the name of the id.
#[derive(Deserialize)]
struct Entry {
    account_id: Option<Number>,
    receiver_id: Option<Number>,
    error_code: Option<Number>,
    error_msg: Option<String>,
    message_server_id: Option<Number>,
    create_time: Option<u64>,
}

/// What the API calls a single message.
#[derive(Default, Deserialize)]
struct Message {
    message_server_id: Option<Number>,
    create_time: Option<u64>,
}

fn message_id(id: Option<&Number>, at_ms: Option<u64>) -> Option<MessageId> {
    MessageId::new(id?.id(), at_ms)
}

/// An id of digits may be written as a number, and a number as a text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Number(i64),
    Text(String),
}

impl Number {
    fn id(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text.to_lowercase(),
        }
    }

    fn code(&self) -> Option<i64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Text(text) => text.parse().ok(),
        }
    }
}

impl Entry {
    fn id(&self) -> Option<String> {
        let id = self.account_id.as_ref().or(self.receiver_id.as_ref())?;
        Some(id.id())
    }

    fn failure(self) -> TargetAnswer {
        match self.error_code.as_ref().map(Number::code) {
            Some(Some(code)) => code::recipient(code, self.error_msg),
            // Listed as failed, without a code that could be read.
            _ => TargetAnswer::new(
                Class::Permanent,
                "failed",
                self.error_msg.unwrap_or_default(),
            ),
        }
    }
}

/// Whether the application's key and secret are accepted, from the answer to a look-up of accounts.
pub(super) fn identity(reply: &HttpReply) -> Result<String, String> {
    #[derive(Deserialize)]
    struct Coded {
        code: i64,
        msg: Option<String>,
    }
    let Ok(Coded { code, msg }) = serde_json::from_slice(&reply.body) else {
        return Err(format!("answers {}, not as Yunxin does", reply.status));
    };
    let answer = code::call(code, msg, Duration::ZERO);
    match answer.class {
        Class::Config => Err(format!(
            "refuses the call: {} {}. Check app key, secret and the clock of this machine",
            answer.code, answer.text
        )),
        // Any other error is about the account, so the credential was accepted.
        _ => Ok("takes the app key and secret".to_owned()),
    }
}

/// A reply to a batch; `block` as in [`code::call`]. With `keep_ids`, the answers have the ids of the
/// messages.
pub(super) fn batch(
    recipients: &[&str],
    reply: &HttpReply,
    block: Duration,
    keep_ids: bool,
) -> Verdict {
    let refused = |code, said| code::call(code, said, block);
    if let Err(answer) = check_reply(reply, refused) {
        return Verdict::All(answer);
    }
    let Ok(SendReply { data }) = serde_json::from_slice(&reply.body) else {
        return Verdict::All(unreadable(&reply.body));
    };
    let lists = data.unwrap_or_default();
    let mut answers = HashMap::new();
    for entry in lists.failed_list.unwrap_or_default() {
        if let Some(id) = entry.id() {
            answers.insert(id, entry.failure());
        }
    }
    // A recipient in both lists counts as sent, since it must not get the message again.
    for entry in lists.success_list.unwrap_or_default() {
        if let Some(id) = entry.id() {
            let message = message_id(
                entry.message_server_id.as_ref().filter(|_| keep_ids),
                entry.create_time,
            );
            answers.insert(id, TargetAnswer::done_as(message));
        }
    }
    let of = |recipient: &&str| {
        answers.get(*recipient).cloned().unwrap_or_else(|| {
            let text = "the reply lists this recipient neither as sent to nor as failed";
            TargetAnswer::new(Class::Uncertain, "not_listed", text)
        })
    };
    let answers: Vec<_> = recipients.iter().map(of).collect();
    if !keep_ids && answers.iter().all(|answer| answer.class == Class::Done) {
        Verdict::All(TargetAnswer::done())
    } else {
        Verdict::Each(answers)
    }
}

/// A reply to a single message; `block` as in [`code::call`].
pub(super) fn single(reply: &HttpReply, block: Duration, keep_ids: bool) -> Verdict {
    #[derive(Deserialize)]
    struct Sent {
        data: Option<Message>,
    }
    let refused = |code, said| code::call(code, said, block);
    Verdict::All(match check_reply(reply, refused) {
        Ok(()) if keep_ids => {
            let sent: Option<Sent> = serde_json::from_slice(&reply.body).ok();
            let message = sent.and_then(|sent| sent.data).unwrap_or_default();
            let id = message.message_server_id.as_ref();
            TargetAnswer::done_as(message_id(id, message.create_time))
        }
        Ok(()) => TargetAnswer::done(),
        Err(answer) => answer,
    })
}
