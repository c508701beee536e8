//! Recalls messages: `POST /msg/recall.action`, one message a call.
//!
//! The vendor documents that 100 calls a second are taken, and that further ones block the
//! application for ten seconds. A message that does not exist counts as recalled there: the call
//! succeeds. A message that moderation kept back cannot be recalled (414).

use std::sync::Arc;
use std::time::Duration;

use http::Uri;

use super::account::{Account, request_id};
use super::form::Form;
use super::refusal::check_reply;
use super::target::REQUEST_ID;
use super::{Settings, code};
use crate::domain::limits::{Cost, Rate};
use crate::domain::outcome::{Class, TargetAnswer};
use crate::domain::slice::Addressed;
use crate::ports::{HttpReply, Recall, Recalled, Request};

/// The types of a recall: to a user, in a team.
const PERSON: &str = "7";
const TEAM: &str = "8";

/// Recalls messages of one application.
pub(super) struct Recalls {
    account: Arc<Account>,
    uri: Uri,
    sender: Option<String>,
    block: Duration,
}

impl Recalls {
    /// A tenth below the 100 calls a second after which an application is blocked.
    pub(super) const LIMIT: Rate = Rate {
        units: 90,
        period: Duration::from_secs(1),
        burst: 10,
        cost: Some(Cost::PerCall),
    };

    pub(super) fn new(account: Arc<Account>, settings: &Settings) -> Self {
        Self {
            uri: account.uri("/msg/recall.action"),
            account,
            sender: settings.sender.clone(),
            block: settings.single_block,
        }
    }
}

impl Recall for Recalls {
    fn limit(&self) -> Rate {
        Self::LIMIT
    }

    fn request(&self, recalled: &Recalled<'_>) -> Option<Request> {
        let Recalled {
            job,
            recipient,
            message,
            ..
        } = recalled;
        // The API finds a message by its id and its time.
        let at_ms = message.at_ms?.to_string();
        let sender = recalled.sender.or(self.sender.as_deref())?;
        let mut form = Form::default();
        form.set("deleteMsgid", &message.id);
        form.set("timetag", at_ms);
        form.set(
            "type",
            match recalled.addressed {
                Addressed::Users => PERSON,
                Addressed::Groups(_) => TEAM,
            },
        );
        form.set("from", sender);
        // Otherwise only messages of the last minutes are recalled, two by default.
        form.set("ignoreTime", "1");
        let mut body = form.encode_up_to("to");
        crate::codec::push_percent(&mut body, recipient.as_bytes());
        let id = request_id(&format!("{job}-recall"), &[recipient, &message.id]);
        Some(
            self.account
                .request(self.uri.clone(), &REQUEST_ID, &id, body),
        )
    }

    fn read_reply(&self, reply: &HttpReply) -> TargetAnswer {
        let refused = |number, said: Option<String>| {
            let not_allowed = said.as_deref().is_some_and(|it| it.contains("not allow"));
            let mut answer = code::answer(number, said, self.block);
            // The sender has left the team: this is about the message, not about the application.
            if number == 403 && not_allowed {
                answer.class = Class::Permanent;
            }
            answer
        };
        match check_reply(reply, refused) {
            Ok(()) => TargetAnswer::done(),
            Err(answer) => answer,
        }
    }
}
