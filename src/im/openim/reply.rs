//! Reads the envelope of all replies: `{"errCode":0,"errMsg":"","errDlt":"","data":{…}}`.
//!
//! The server reports errors as 200 with an `errCode`, and fields that it cannot read as 400 with
//! one. Any other reply comes from a proxy in front of it, or from a server that died.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::code;
use crate::domain::outcome::{Class, TargetAnswer};
use crate::im::reading::{excerpt, retry_after, unreadable};
use crate::ports::HttpReply;

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(rename = "errCode")]
    code: i64,
    #[serde(borrow, rename = "errMsg")]
    message: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "errDlt")]
    detail: Option<Cow<'a, str>>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

impl Envelope<'_> {
    /// The text of an error, for display.
    fn said(&self) -> String {
        let message = self.message.as_deref().unwrap_or_default().trim();
        let detail = self.detail.as_deref().unwrap_or_default();
        // The detail often begins with a colon, left from a prefix.
        match detail.trim_start_matches([':', ' ']).trim_end() {
            "" => message.to_owned(),
            detail if message.is_empty() || detail.starts_with(message) => detail.to_owned(),
            detail => format!("{message}: {detail}"),
        }
    }
}

/// The reason why a reply contains no data.
pub(super) enum Refusal {
    /// The server reports the error.
    Said(TargetAnswer),
    /// A proxy reports an error, or the reply cannot be read.
    Other(TargetAnswer),
}

impl From<Refusal> for TargetAnswer {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Said(answer) | Refusal::Other(answer) => answer,
        }
    }
}

/// The data of a reply to a call.
pub(super) fn data<'a, T: Deserialize<'a>>(reply: &'a HttpReply) -> Result<T, Refusal> {
    let envelope = serde_json::from_slice::<Envelope<'_>>(&reply.body).ok();
    let success = (200..300).contains(&reply.status);
    match envelope {
        Some(Envelope { code: 0, data, .. }) if success => {
            let data = data.map_or("null", RawValue::get);
            serde_json::from_str(data).map_err(|_| Refusal::Other(unreadable(&reply.body)))
        }
        Some(envelope) if envelope.code != 0 && (success || reply.status == 400) => {
            Err(Refusal::Said(code::of(envelope.code, envelope.said())))
        }
        _ if success => Err(Refusal::Other(unreadable(&reply.body))),
        envelope => {
            let said = envelope.map(|envelope| envelope.said());
            let said = said.filter(|said| !said.is_empty());
            Err(Refusal::Other(refusal(reply, said)))
        }
    }
}

/// The answer by the status alone, for a reply that is not the server's.
fn refusal(reply: &HttpReply, said: Option<String>) -> TargetAnswer {
    let text = said.unwrap_or_else(|| excerpt(&reply.body));
    let class = code::status(reply.status);
    let answer = TargetAnswer::new(class, reply.status.to_string(), text);
    let answer = code::throttled(answer.retry_after(retry_after(&reply.headers)));
    match reply.status {
        // The call exceeded some size limit; a smaller one may fit.
        413 => answer.split(),
        _ => answer,
    }
}

/// The answer for a refusal before anything was sent: no recipient is in doubt.
pub(super) fn harmless(refusal: impl Into<TargetAnswer>) -> TargetAnswer {
    let mut answer = refusal.into();
    if answer.class == Class::Uncertain {
        answer.class = Class::Transient;
        answer.unprovable = false;
    }
    answer
}
