//! The reading of replies.

use std::collections::HashMap;

use serde::Deserialize;

use super::code;
use crate::domain::outcome::{Answer, Class, Verdict};
use crate::im::netease::refusal::{BATCH_BLOCK, SINGLE_BLOCK, read};
use crate::im::reading::unreadable;
use crate::ports::Reply;

/// The data of a success.
#[derive(Deserialize)]
struct Sent {
    data: Option<Lists>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Lists {
    success_list: Option<Vec<Entry>>,
    failed_list: Option<Vec<Entry>>,
}

/// One recipient. The vendor's own SDKs disagree on the name of the id.
#[derive(Deserialize)]
struct Entry {
    account_id: Option<Number>,
    receiver_id: Option<Number>,
    error_code: Option<Number>,
    error_msg: Option<String>,
}

/// An id of digits may come as a number, a number as a text.
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

    fn failure(self) -> Answer {
        match self.error_code.as_ref().map(Number::code) {
            Some(Some(code)) => code::recipient(code, self.error_msg),
            // It was not sent to, whatever the reason.
            _ => Answer::new(
                Class::Permanent,
                "failed",
                self.error_msg.unwrap_or_default(),
            ),
        }
    }
}

/// A reply to a batch.
pub(super) fn batch(recipients: &[&str], reply: &Reply) -> Verdict {
    let refused = |code, said| code::call(code, said, BATCH_BLOCK);
    if let Err(answer) = read(reply, refused) {
        return Verdict::All(answer);
    }
    let Ok(Sent { data }) = serde_json::from_slice(&reply.body) else {
        return Verdict::All(unreadable(&reply.body));
    };
    let lists = data.unwrap_or_default();
    let mut answers = HashMap::new();
    for entry in lists.failed_list.unwrap_or_default() {
        if let Some(id) = entry.id() {
            answers.insert(id, entry.failure());
        }
    }
    // Who is in both lists was sent to: that is what must not be done again.
    for entry in lists.success_list.unwrap_or_default() {
        if let Some(id) = entry.id() {
            answers.insert(id, Answer::done());
        }
    }
    let of = |recipient: &&str| {
        answers.get(*recipient).cloned().unwrap_or_else(|| {
            let text = "the reply lists this recipient neither as sent to nor as failed";
            Answer::new(Class::Uncertain, "not_listed", text)
        })
    };
    let answers: Vec<_> = recipients.iter().map(of).collect();
    if answers.iter().all(|answer| answer.class == Class::Done) {
        Verdict::All(Answer::done())
    } else {
        Verdict::Each(answers)
    }
}

/// A reply to a single message.
pub(super) fn single(reply: &Reply) -> Verdict {
    Verdict::All(
        match read(reply, |code, said| code::call(code, said, SINGLE_BLOCK)) {
            Ok(()) => Answer::done(),
            Err(answer) => answer,
        },
    )
}
