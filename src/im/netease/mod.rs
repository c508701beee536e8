//! Calls NetEase Yunxin, version 1 of its server API: `sendBatchMsg.action` for users, up to 500 a
//! call, and `sendMsg.action` for teams, one a call.
//!
//! - *Signature.* Each attempt is signed again (`CheckSum`), since a signature is valid for five
//!   minutes. A wrong signature is a configuration fault: no recipient fails because of it.
//! - *Repeats.* A message of a batch has no key of its own. A request has one, `RequestId`, which
//!   is the same on every attempt with the same recipients. The vendor's SDKs say that the server
//!   drops repeats by it, but neither for how long nor with which answer, so a call in doubt is
//!   held unless `trust_request_id` is set. Codes 417 and 431, "repeated", count as accepted, with
//!   a warning in the log: they do not list unregistered recipients, which therefore count as sent.
//! - *Accids* do not differ by case, and are compared in lower case.
//! - *The sender* gets no entry in its own conversations (`msgSenderNoSense`), unless the job asks
//!   for one or the sender is also a recipient.
//! - *Rate.* 120 batch calls a minute for the whole application; more block it for a minute. The
//!   default limit is below that, and code 416 parks the target for the block.
//!
//! Lengths are counted in UTF-16 units. This target cannot list accounts.

/// Holds one application: address, signature, and ids of requests.
pub(super) mod account;
/// Maps codes to classes.
pub(in crate::im) mod code;
/// Builds types of messages and their bodies.
pub(super) mod content;
/// Encodes form bodies.
pub(super) mod form;
/// Reads requests of existing callers and answers them.
pub(in crate::im) mod ingress;
/// Reads the parts of a job that both versions of the API handle alike.
pub(super) mod job;
/// Recalls messages.
mod recall;
/// Reads refusals, which both versions of the API write alike.
pub(super) mod refusal;
/// Reads replies.
mod reply;
/// Builds calls and reports parts of a job that they cannot carry.
mod target;
#[cfg(test)]
mod tests;

pub use target::NetEase;

use std::time::Duration;

use self::account::{Account, length};
use crate::domain::fields::Problem;
use crate::domain::limits::{Cost, Rate};
use crate::secret::Secret;

/// Settings of one application, version 1.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Base URL of the API, such as `https://api.netease.im/nimserver`.
    pub url: String,
    pub app_key: String,
    pub app_secret: Secret,
    /// The accid that sends messages whose job names no sender.
    pub sender: Option<String>,
    /// Asks for the id of every message. An accid without an id is then in doubt, and a call takes
    /// 100 recipients. Default: no.
    pub message_ids: bool,
    /// Recipients of one call. Default [`Self::RECIPIENTS_PER_CALL`], or
    /// [`Self::RECIPIENTS_WITH_IDS`] with `message_ids`; at most [`Self::RECIPIENTS_PER_CALL_MAX`].
    pub recipients_per_call: Option<usize>,
    /// Longest body of a message, in UTF-16 units; some plans allow a longer one. Default
    /// [`Self::BODY_LENGTH_MAX`].
    pub body_length_max: usize,
    /// Longest extension (`ext`), in UTF-16 units. Default [`Self::EXTENSION_LENGTH_MAX`].
    pub extension_length_max: usize,
    /// Longest text of a push (`pushcontent`), in UTF-16 units. Default
    /// [`Self::PUSH_TEXT_LENGTH_MAX`].
    pub push_text_length_max: usize,
    /// Longest payload of a push (`payload`), in UTF-16 units. Default
    /// [`Self::PUSH_PAYLOAD_LENGTH_MAX`].
    pub push_payload_length_max: usize,
    /// How long the cloud blocks an application after too many batch calls (code 416); the target
    /// is parked for that time. Default [`Self::BLOCK`].
    pub block: Duration,
    /// The same for single calls, which go to teams. Default [`Self::SINGLE_BLOCK`].
    pub single_block: Duration,
    /// Whether a call in doubt may be repeated because the server recognises its `RequestId`.
    /// Default: no.
    pub trust_request_id: bool,
}

impl Settings {
    pub const RECIPIENTS_PER_CALL: usize = 500;
    pub const RECIPIENTS_WITH_IDS: usize = 100;
    /// For clouds that accept more than is documented.
    pub const RECIPIENTS_PER_CALL_MAX: usize = 1000;
    pub const BODY_LENGTH_MAX: usize = 5000;
    pub const EXTENSION_LENGTH_MAX: usize = 1024;
    pub const PUSH_TEXT_LENGTH_MAX: usize = 500;
    pub const PUSH_PAYLOAD_LENGTH_MAX: usize = 2048;
    /// The block starts at the call that exceeded the limit, and calls during it are refused too.
    pub const BLOCK: Duration = Duration::from_secs(60);
    pub const SINGLE_BLOCK: Duration = Duration::from_secs(10);
    /// Longest accid.
    pub const ACCID_LENGTH_MAX: usize = 32;
    /// A tenth below the 120 batch calls a minute after which an application is blocked.
    pub const LIMIT: Rate = Rate {
        units: 108,
        period: Duration::from_secs(60),
        burst: 1,
        cost: Some(Cost::PerCall),
    };

    pub fn new(url: impl Into<String>, app_key: impl Into<String>, app_secret: Secret) -> Self {
        Self {
            url: url.into(),
            app_key: app_key.into(),
            app_secret,
            sender: None,
            message_ids: false,
            recipients_per_call: None,
            body_length_max: Self::BODY_LENGTH_MAX,
            extension_length_max: Self::EXTENSION_LENGTH_MAX,
            push_text_length_max: Self::PUSH_TEXT_LENGTH_MAX,
            push_payload_length_max: Self::PUSH_PAYLOAD_LENGTH_MAX,
            block: Self::BLOCK,
            single_block: Self::SINGLE_BLOCK,
            trust_request_id: false,
        }
    }

    /// Recipients of one call, as the vendor documents.
    pub(crate) fn documented_per_call(message_ids: bool) -> usize {
        if message_ids {
            Self::RECIPIENTS_WITH_IDS
        } else {
            Self::RECIPIENTS_PER_CALL
        }
    }

    /// All kinds honour the same features.
    pub(super) fn samples() -> Vec<(&'static str, Self)> {
        vec![(
            "netease",
            Self::new("http://localhost", "key", Secret::new("secret")),
        )]
    }
}

pub(super) fn target(settings: &Settings, problems: &mut Vec<Problem>) -> Option<NetEase> {
    let account = Account::new(
        &settings.url,
        &settings.app_key,
        &settings.app_secret,
        "application/x-www-form-urlencoded;charset=utf-8",
        "https://api.netease.im/nimserver",
        problems,
    );
    check_sender(settings.sender.as_deref(), problems);
    let documented = Settings::documented_per_call(settings.message_ids);
    let per_call = settings.recipients_per_call.unwrap_or(documented);
    let most = Settings::RECIPIENTS_PER_CALL_MAX;
    if !(1..=most).contains(&per_call) {
        let what = format!("{per_call} is not 1 to {most}");
        problems.push(Problem::new("recipients_per_call", what));
    }
    Some(NetEase::new(settings.clone(), per_call, account?))
}

/// Checks the sender of the settings of either version.
pub(super) fn check_sender(sender: Option<&str>, problems: &mut Vec<Problem>) {
    let Some(sender) = sender else {
        return;
    };
    let most = Settings::ACCID_LENGTH_MAX;
    if sender.trim().is_empty() {
        let what = "an accid is expected, or nothing at all";
        problems.push(Problem::new("sender", what));
    } else if length(sender) > most {
        let what = format!("{} characters, an accid has at most {most}", length(sender));
        problems.push(Problem::new("sender", what));
    }
}
