//! Calls NetEase Yunxin, version 2 of its server API: up to 100 users a call, or one.
//!
//! | | batch (default) | `single = true` |
//! |---|---|---|
//! | call | `POST /im/v2/conversations/messages` | `POST /im/v2/conversations/{sender\|1\|receiver}/messages` |
//! | recipients of a call | 100 | 1 |
//! | key of a message | none | `message_client_id`; a repeat answers 107306, which is done |
//! | so a call in doubt is | held, unless `trust_request_id` | sent again |
//! | default limit | 108 calls a minute | 90 calls a second |
//!
//! Groups are conversations of their own, one call each in both modes: type 2 are teams, type 3
//! large teams. `X-custom-traceid` identifies a call by its job and recipients. The vendor's SDKs
//! say that the server drops repeats by it, but not for how long nor with which answer. The rate of
//! batch calls is not documented: the default limit is that of version 1.
//!
//! In the answer to a batch, recipients in `success_list` count as sent, recipients in
//! `failed_list` do not, and recipients in neither are in doubt. The members of `attachment` follow
//! the published example (`width`, `height`) and, where it shows none, the client SDK (`duration`,
//! `longitude`, `latitude`); a `raw` message contains its own.
//!
//! Everything but the format of calls is as in version 1 ([`super::netease`]): the signature,
//! accids in lower case, and no entry in the sender's own conversations.

/// Maps codes to classes.
pub(in crate::im) mod code;
/// Reads requests of existing callers and answers them.
pub(in crate::im) mod ingress;
/// Recalls messages.
mod recall;
/// Reads replies.
mod reply;
/// Builds calls and reports parts of a job that they cannot carry.
mod target;
#[cfg(test)]
mod tests;

pub use target::Yunxin;

use std::time::Duration;

use super::netease::account::Account;
use super::netease::{self, check_sender};
use crate::domain::fields::Problem;
use crate::domain::limits::{Cost, Rate};
use crate::secret::Secret;

/// Settings of one application, version 2.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Base URL of the API, such as `https://open.yunxinapi.com`.
    pub url: String,
    pub app_key: String,
    pub app_secret: Secret,
    /// The account that sends messages whose job names no sender.
    pub sender: Option<String>,
    /// One call for each user. Default: no.
    pub single: bool,
    /// Recipients of a batch. Default [`Self::RECIPIENTS_PER_CALL`]; at most
    /// [`Self::RECIPIENTS_PER_CALL_MAX`].
    pub recipients_per_call: usize,
    /// Longest text of a message, in UTF-16 units. Default [`Self::TEXT_LENGTH_MAX`].
    pub text_length_max: usize,
    /// Longest text of a push (`push_content`), in UTF-16 units. Default
    /// [`Self::PUSH_TEXT_LENGTH_MAX`].
    pub push_text_length_max: usize,
    /// Longest payload of a push (`push_payload`), in UTF-16 units. Default
    /// [`Self::PUSH_PAYLOAD_LENGTH_MAX`].
    pub push_payload_length_max: usize,
    /// How long the target is parked after too many batches (codes 416 and 107323). Default
    /// [`Self::BLOCK`].
    pub block: Duration,
    /// The same after too many single calls, which include those for groups. Default
    /// [`Self::SINGLE_BLOCK`].
    pub single_block: Duration,
    /// Whether a batch in doubt may be repeated because the server recognises its
    /// `X-custom-traceid`. Default: no.
    pub trust_request_id: bool,
}

impl Settings {
    pub const RECIPIENTS_PER_CALL: usize = 100;
    /// For clouds that accept more than is documented.
    pub const RECIPIENTS_PER_CALL_MAX: usize = 1000;
    pub const TEXT_LENGTH_MAX: usize = 5000;
    pub const PUSH_TEXT_LENGTH_MAX: usize = netease::Settings::PUSH_TEXT_LENGTH_MAX;
    pub const PUSH_PAYLOAD_LENGTH_MAX: usize = netease::Settings::PUSH_PAYLOAD_LENGTH_MAX;
    /// The block of version 2 depends on the plan and is not documented, so this is that of version
    /// 1.
    pub const BLOCK: Duration = netease::Settings::BLOCK;
    pub const SINGLE_BLOCK: Duration = netease::Settings::SINGLE_BLOCK;
    /// A tenth below the 120 batch calls a minute of version 1.
    pub const BATCH_LIMIT: Rate = netease::Settings::LIMIT;
    /// A tenth below the 100 single calls a second of the smaller plans.
    pub const SINGLE_LIMIT: Rate = Rate {
        units: 90,
        period: Duration::from_secs(1),
        burst: 10,
        cost: Some(Cost::PerCall),
    };

    pub fn new(url: impl Into<String>, app_key: impl Into<String>, app_secret: Secret) -> Self {
        Self {
            url: url.into(),
            app_key: app_key.into(),
            app_secret,
            sender: None,
            single: false,
            recipients_per_call: Self::RECIPIENTS_PER_CALL,
            text_length_max: Self::TEXT_LENGTH_MAX,
            push_text_length_max: Self::PUSH_TEXT_LENGTH_MAX,
            push_payload_length_max: Self::PUSH_PAYLOAD_LENGTH_MAX,
            block: Self::BLOCK,
            single_block: Self::SINGLE_BLOCK,
            trust_request_id: false,
        }
    }

    /// Both modes honour the same features.
    pub(super) fn samples() -> Vec<(&'static str, Self)> {
        vec![(
            "yunxin",
            Self::new("http://localhost", "key", Secret::new("secret")),
        )]
    }
}

pub(super) fn target(settings: &Settings, problems: &mut Vec<Problem>) -> Option<Yunxin> {
    let account = Account::new(
        &settings.url,
        &settings.app_key,
        &settings.app_secret,
        "application/json",
        "https://open.yunxinapi.com",
        problems,
    );
    check_sender(settings.sender.as_deref(), problems);
    let most = Settings::RECIPIENTS_PER_CALL_MAX;
    if !settings.single && !(1..=most).contains(&settings.recipients_per_call) {
        let what = format!("{} is not 1 to {most}", settings.recipients_per_call);
        problems.push(Problem::new("recipients_per_call", what));
    }
    Some(Yunxin::new(settings.clone(), account?))
}
