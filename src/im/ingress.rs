//! Drop-in endpoints: a caller of an IM system changes its base URL and nothing else.
//!
//! A system's ingress understands a request as its server would, with the server's own paths,
//! credentials, limits, codes and shapes, and turns it into jobs; and it says what became of them in
//! the shape the caller expects. Both are pure functions. Between them the gateway makes the jobs
//! durable and waits for them, for a bounded time.
//!
//! `docs/drop-in.md` says what these answers can and cannot say: within the bound they report true
//! results per recipient; past it, what is known, with ids that will not change.

/// Calls and answers for the tests of all systems.
#[cfg(test)]
pub(super) mod fixture;
/// JSON as callers write it.
pub(super) mod loose;
/// Files, as every system describes them.
pub(super) mod media;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use ring::digest;
use serde_json::value::RawValue;

use crate::domain::accounts::Accounts;
use crate::domain::audience::fold;
use crate::domain::fields::Problem;
use crate::domain::ids::JobId;
use crate::domain::job::{AudienceDocument, CLIENT_MSG_NO_BYTES_MAX, wrong_id};
use crate::domain::limits::Rate;
use crate::domain::message::{MessageDocument, Options};
use crate::domain::outcome::{Class, Outcome};
use crate::secret::Secret;

use std::collections::BTreeMap;
use std::time::Duration;

/// An answer in a system's own manner.
pub type Spoken = Response<Bytes>;

/// A request as it came in.
#[derive(Clone, Copy, Debug)]
pub struct Incoming<'a> {
    pub path: &'a str,
    pub headers: &'a HeaderMap,
    pub body: &'a [u8],
    pub now_ms: u64,
}

impl<'a> Incoming<'a> {
    /// A header, if it is text.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// One app's entrance for the callers of one system: `[apps.NAME.SYSTEM]`.
#[derive(Clone, Debug)]
pub struct DropInEndpoint {
    pub app: String,
    /// Where its jobs go; the app's default target if left out. Any system will do: a request of one
    /// can be delivered by another.
    pub target: Option<String>,
    /// The public half of the credential: AppKey, or the administrator's user id.
    pub key: Option<String>,
    /// Whether the id that a caller gives a request is the key of its job. Where the system's callers may
    /// use it for tracing alone (see [`Ingress::trace_setting`]), the configuration says.
    pub id_is_key: bool,
    /// AppSecret, OpenIM's secret, or WuKongIM's token; nothing where `auth = "none"`.
    pub secret: Option<Secret>,
    /// Longest wait for the jobs of a request to settle.
    pub answer_within: Duration,
    /// An identical request without a key of its own within so long is taken for a repeat.
    pub repeat_window: Duration,
    /// Calls allowed, counted by each gateway; further ones are refused for `block`.
    pub rate: Option<Rate>,
    pub block_for: Duration,
    /// Requests may be for all users.
    pub send_all: bool,
    /// The system's documented limits by the names of its configuration, such as `recipients_max`.
    pub limits: BTreeMap<&'static str, usize>,
}

impl DropInEndpoint {
    /// A limit that the system declares in [`Ingress::limits`].
    pub fn limit(&self, name: &str) -> usize {
        self.limits.get(name).copied().unwrap_or(usize::MAX)
    }
}

/// A limit of a system's API: its name in the configuration, its documented value and what it bounds.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub name: &'static str,
    pub default: usize,
    pub what: &'static str,
}

/// Among the extensions of an answer: the credentials in the body were wrong.
#[derive(Clone, Copy, Debug)]
pub struct WrongCredentials;

/// What callers of one system say, and what they hear.
pub trait Ingress: Send + Sync {
    /// The paths it serves, all of them by POST.
    fn paths(&self) -> &'static [&'static str];

    /// What its API limits.
    fn limits(&self) -> &'static [Limit];

    /// The calls that its API allows, and how long it refuses more.
    fn calls(&self) -> Option<(Rate, Duration)> {
        None
    }

    /// Through which door a request comes in, as its head tells it: before its body is waited for. `None`
    /// where the body has to tell, as that of a login. `body` is empty.
    #[expect(
        clippy::result_large_err,
        reason = "an answer is as usual as a door, and no smaller"
    )]
    fn enter(
        &self,
        head: &Incoming<'_>,
        endpoints: &[DropInEndpoint],
    ) -> Result<Option<usize>, Spoken>;

    /// The setting that says what the id of a request means, in a system that only traces by it: its own
    /// callers may give the same id to every request.
    fn trace_setting(&self) -> Option<&'static str> {
        None
    }

    /// Whether a call names its door by the door's `key`, so that no two may have the same.
    fn is_named_by_key(&self) -> bool {
        false
    }

    /// Who calls and what is asked for; or the answer right away, a login or a refusal. Nothing of a
    /// request is done that is refused.
    #[expect(
        clippy::result_large_err,
        reason = "an answer is as usual as an order, and no smaller"
    )]
    fn read_request(
        &self,
        incoming: &Incoming<'_>,
        endpoints: &[DropInEndpoint],
    ) -> Result<DropInRequest, Spoken>;

    /// Says no for a reason of ours.
    fn refuse(&self, refusal: &Refusal<'_>) -> Spoken;
}

/// Why a request that was understood is not carried out.
#[derive(Debug)]
pub enum Refusal<'a> {
    /// It is no request that could be read: not a POST, or its body is too large, came too slowly or
    /// broke off.
    Unreadable(&'a str),
    /// The jobs are none: a field is out of bounds, or the target cannot honour it.
    Problems(&'a [Problem]),
    /// Its key stands for another message.
    Conflict,
    /// More calls than are allowed.
    TooOften { block: Duration },
    /// The same signed request came before.
    Replayed,
    /// The app may not do this.
    Forbidden(&'a str),
    /// Nothing can be accepted now.
    Unavailable(&'a str),
}

/// What a request asks for.
pub struct DropInRequest {
    /// Index of the door it came through.
    pub endpoint: usize,
    /// Together with the door, accepted once within [`NONCE_LIVES`].
    pub nonce: Option<String>,
    pub jobs: Vec<DropInJob>,
    pub reply: Box<dyn DropInReply>,
}

/// How far the clock of a caller who signs may be from ours, on either side.
pub const SKEW: Duration = Duration::from_secs(300);

/// How long a signed request is remembered. One that is dated ahead of our clock is good until that
/// date is past by the skew as well.
pub const NONCE_LIVES: Duration = Duration::from_secs(2 * SKEW.as_secs());

/// One job that a request asks for.
#[derive(Clone, Debug, Default)]
pub struct DropInJob {
    /// The key that the request brings; without one it is made of the content.
    pub key: Option<String>,
    /// Without a key, what tells this request from others of the same content.
    pub trace: Option<String>,
    pub sender: Option<String>,
    pub audience: AudienceDocument,
    pub message: MessageDocument,
    pub options: Options,
    /// What the request says beyond message and options, in the system's own fields: the message's
    /// `native` where the jobs go to a target of the same system, and dropped elsewhere.
    pub native: Option<Box<RawValue>>,
}

/// Says what became of a request.
pub trait DropInReply: Send + Sync {
    /// One entry per job, in the order of the request.
    fn render(&self, jobs: &[JobReport]) -> Spoken;
}

/// What is known of one job when the answer is due.
#[derive(Clone, Debug)]
pub struct JobReport {
    pub job: JobId,
    pub client_msg_no: String,
    pub accepted_at_ms: u64,
    /// In the order of the request, each as often as it was named.
    pub recipients: Vec<(String, RecipientReport)>,
    /// Whether the target takes ids that differ in case only for one.
    pub folds_case: bool,
    /// The accounts of a job whose request names nobody: it is for all users.
    pub everybody: Option<Everybody>,
}

/// What is known of a job for all users: how many they are is known once all are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Everybody {
    pub is_complete: bool,
    pub accounts: Accounts,
}

/// What is known of a recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecipientReport {
    Sent,
    /// Not settled within the bound: it is on its way.
    Pending,
    /// Ended otherwise. The reason is there unless it was lost.
    Ended {
        outcome: Outcome,
        class: Option<Class>,
        code: String,
        text: String,
    },
}

impl RecipientReport {
    /// Whether the caller is to take it for delivered: it was, or will be.
    pub fn is_good(&self) -> bool {
        matches!(self, Self::Sent | Self::Pending)
    }

    /// Whether it ended because the target knows no such user, by the codes of our adapters: NetEase,
    /// OpenIM, Yunxin, and endpoints that speak HTTP.
    pub fn is_unknown(&self) -> bool {
        const CODES: [&str; 7] = [
            "unregister",
            "err_1004",
            "err_1101",
            "102404",
            "102405",
            "404",
            "410",
        ];
        match self {
            Self::Ended {
                class: Some(Class::Permanent),
                code,
                ..
            } => CODES.contains(&code.as_str()),
            Self::Sent | Self::Pending | Self::Ended { .. } => false,
        }
    }

    /// Why it ended, in words for the caller; nothing for who got the message or will.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Sent | Self::Pending => None,
            Self::Ended { text, .. } if !text.is_empty() => Some(text),
            Self::Ended { outcome, .. } => Some(outcome.as_str()),
        }
    }
}

impl JobReport {
    /// The id of the message to a recipient: the same whenever it is asked for, below 2^53, so that
    /// JavaScript keeps its digits.
    pub fn message_id(&self, recipient: &str) -> i64 {
        let digest = self.digest(recipient);
        let mut first = [0; 8];
        first.copy_from_slice(&digest.as_ref()[..8]);
        // Zero means "no id" to some callers.
        ((u64::from_be_bytes(first) >> 11) | 1).cast_signed()
    }

    /// The same as 32 hexadecimal digits.
    pub fn message_id_hex(&self, recipient: &str) -> String {
        let digest = self.digest(recipient);
        crate::codec::hex(&digest.as_ref()[..16])
    }

    fn digest(&self, recipient: &str) -> digest::Digest {
        let mut recipient = recipient.into();
        fold(&mut recipient, self.folds_case);
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(self.job.to_string().as_bytes());
        context.update(&[0]);
        context.update(recipient.as_bytes());
        context.finish()
    }
}

/// A text of the caller's as the key of a job: one that could not be is replaced by its digest.
pub fn key(text: &str) -> Option<String> {
    if text.is_empty() {
        return None;
    }
    if wrong_id(text, CLIENT_MSG_NO_BYTES_MAX).is_none() {
        return Some(text.to_owned());
    }
    Some(crate::codec::hex(&super::json::digest::<32>(&[text])))
}

/// A text as a JSON value.
pub fn quoted(text: &str) -> Option<Box<RawValue>> {
    Some(crate::json::raw(text))
}

/// An answer of JSON.
pub fn json(status: StatusCode, body: &impl serde::Serialize) -> Spoken {
    let mut spoken = Response::new(Bytes::from(crate::json::bytes(body)));
    *spoken.status_mut() = status;
    let json = HeaderValue::from_static("application/json; charset=utf-8");
    spoken.headers_mut().insert(CONTENT_TYPE, json);
    spoken
}

/// Compares secrets in a time that does not tell how much of a guess was right.
pub fn same(given: &[u8], expected: &[u8]) -> bool {
    let hash = |text| digest::digest(&digest::SHA256, text);
    hash(given).as_ref() == hash(expected).as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_deterministic_and_safe_for_javascript() {
        let job_report = JobReport {
            job: JobId::of("shop", "promo-1"),
            client_msg_no: "promo-1".to_owned(),
            accepted_at_ms: 0,
            recipients: Vec::new(),
            folds_case: false,
            everybody: None,
        };
        let ids: Vec<_> = (0..1000)
            .map(|n| job_report.message_id(&format!("u{n}")))
            .collect();
        for id in &ids {
            assert!((1..1 << 53).contains(id), "{id}");
        }
        let unique: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(unique.len(), ids.len());
        assert_eq!(job_report.message_id("u1"), job_report.message_id("u1"));
        assert_eq!(job_report.message_id_hex("u1").len(), 32);
        // One message has one id, however its recipient is spelt.
        let folding = JobReport {
            folds_case: true,
            ..job_report.clone()
        };
        assert_ne!(job_report.message_id("aaa"), job_report.message_id("AAA"));
        assert_eq!(folding.message_id("aaa"), folding.message_id("AAA"));
        assert_eq!(folding.message_id("aaa"), job_report.message_id("aaa"));
    }
}
