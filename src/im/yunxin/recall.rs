//! Recalls messages: `DELETE /im/v2/conversations/{conversation}/messages/{message}`, one message a
//! call. Type 2 is the recall that both sides see.

use std::sync::Arc;
use std::time::Duration;

use http::Method;

use super::target::{TRACE_ID, USER};
use super::{Settings, code};
use crate::codec::push_percent;
use crate::domain::limits::Rate;
use crate::domain::outcome::TargetAnswer;
use crate::domain::slice::Addressed;
use crate::im::netease::account::{Account, request_id};
use crate::im::netease::refusal::check_reply;
use crate::ports::{HttpReply, Recall, Recalled, Request};

/// Recalls messages of one application.
pub(super) struct Recalls {
    account: Arc<Account>,
    sender: Option<String>,
    block: Duration,
}

impl Recalls {
    pub(super) fn new(account: Arc<Account>, settings: &Settings) -> Self {
        Self {
            account,
            sender: settings.sender.clone(),
            block: settings.single_block,
        }
    }
}

impl Recall for Recalls {
    fn limit(&self) -> Rate {
        Settings::SINGLE_LIMIT
    }

    fn request(&self, recalled: &Recalled<'_>) -> Option<Request> {
        let Recalled {
            job,
            recipient,
            message,
            ..
        } = recalled;
        let sender = recalled.sender.or(self.sender.as_deref())?;
        let kind = match recalled.addressed {
            Addressed::Users => USER,
            Addressed::Groups(kind) => kind,
        };
        let mut path = b"/im/v2/conversations/".to_vec();
        push_percent(&mut path, format!("{sender}|{kind}|{recipient}").as_bytes());
        path.extend_from_slice(b"/messages/");
        push_percent(&mut path, message.id.as_bytes());
        // Otherwise only messages of the last minutes are recalled, two by default.
        path.extend_from_slice(b"?type=2&ignore_revoke_time=1");
        if let Some(at_ms) = message.at_ms {
            path.extend_from_slice(format!("&message_time={at_ms}").as_bytes());
        }
        let uri = self.account.uri(&String::from_utf8_lossy(&path));
        let id = request_id(&format!("{job}-recall"), &[recipient, &message.id]);
        let mut request = self.account.request(uri, &TRACE_ID, &id, Vec::new());
        request.method = Method::DELETE;
        Some(request)
    }

    fn read_reply(&self, reply: &HttpReply) -> TargetAnswer {
        match check_reply(reply, |number, said| code::call(number, said, self.block)) {
            Ok(()) => TargetAnswer::done(),
            Err(answer) => answer,
        }
    }
}
