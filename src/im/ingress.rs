//! Defines drop-in endpoints: a caller of an IM system changes its base URL and nothing else.
//!
//! The ingress of a system reads a request as the system's server would, with the same paths,
//! credentials, limits, codes and formats, and turns it into jobs. It renders the results of the
//! jobs in the format that the caller expects. Both are pure functions. Between them the gateway
//! makes the jobs durable and waits for them, for a bounded time.
//!
//! `docs/drop-in.md` says what these answers can report: within the time limit, the true result of
//! each recipient; after it, the results so far, with ids that do not change.

/// Provides calls and answers for the tests of all systems.
#[cfg(test)]
pub(super) mod fixture;
/// Reads JSON with the variations that callers write.
pub(super) mod loose;
/// Reads files and places, which all systems describe alike.
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
use crate::domain::outcome::{Class, Outcome, RefusalKind};
use crate::secret::Secret;

use std::collections::BTreeMap;
use std::time::Duration;

/// An answer in the format of a system.
pub type Spoken = Response<Bytes>;

/// A request as received.
#[derive(Clone, Copy, Debug)]
pub struct Incoming<'a> {
    pub path: &'a str,
    pub headers: &'a HeaderMap,
    pub body: &'a [u8],
    pub now_ms: u64,
}

impl<'a> Incoming<'a> {
    /// The value of a header, if it is text.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// The drop-in endpoint of one app for the callers of one system: `[apps.NAME.SYSTEM]`.
#[derive(Clone, Debug)]
pub struct DropInEndpoint {
    pub app: String,
    /// The target of its jobs; the app's default target if `None`. It may be an account of another
    /// system than the callers'.
    pub target: Option<String>,
    /// The public half of the credential: AppKey, or the administrator's user id.
    pub key: Option<String>,
    /// Whether the id of a request is the key of its job. In a system whose callers may use the id
    /// for tracing alone, a setting decides (see [`Ingress::trace_setting`]).
    pub id_is_key: bool,
    /// AppSecret, OpenIM's secret, or WuKongIM's token; `None` with `auth = "none"`.
    pub secret: Option<Secret>,
    /// Longest wait until the jobs of a request are settled.
    pub answer_within: Duration,
    /// Within this time, an identical request without a key of its own counts as a repeat.
    pub repeat_window: Duration,
    /// Calls allowed, counted by each gateway. Further ones are refused for `block_for`.
    pub rate: Option<Rate>,
    pub block_for: Duration,
    /// Whether requests may be for all users.
    pub send_all: bool,
    /// The system's documented limits, by their names in the configuration, such as
    /// `recipients_max`.
    pub limits: BTreeMap<&'static str, usize>,
}

impl DropInEndpoint {
    /// A limit that the system declares in [`Ingress::limits`].
    pub fn limit(&self, name: &str) -> usize {
        self.limits.get(name).copied().unwrap_or(usize::MAX)
    }
}

/// A limit of a system's API.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub name: &'static str,
    pub default: usize,
    pub what: &'static str,
}

/// Marks an answer, as one of its extensions: the credentials in the body were wrong.
#[derive(Clone, Copy, Debug)]
pub struct WrongCredentials;

/// Reads the requests of one system's callers and writes the answers.
pub trait Ingress: Send + Sync {
    /// The paths it serves, all of them with POST.
    fn paths(&self) -> &'static [&'static str];

    /// The limits of its API.
    fn limits(&self) -> &'static [Limit];

    /// The rate of calls that its API allows, and how long it refuses calls above it.
    fn calls(&self) -> Option<(Rate, Duration)> {
        None
    }

    /// The endpoint that a request belongs to, found from its head before the body has arrived.
    /// `head.body` is empty. `None` if only the body can tell, as for a login.
    #[expect(
        clippy::result_large_err,
        reason = "an answer is as usual as a door, and no smaller"
    )]
    fn enter(
        &self,
        head: &Incoming<'_>,
        endpoints: &[DropInEndpoint],
    ) -> Result<Option<usize>, Spoken>;

    /// The setting that decides whether the id of a request is a key, in a system that uses the id
    /// only for tracing. Callers of such a system may give the same id to every request.
    fn trace_setting(&self) -> Option<&'static str> {
        None
    }

    /// Whether a call names its endpoint by the endpoint's `key`. Then no two endpoints may have
    /// the same key.
    fn is_named_by_key(&self) -> bool {
        false
    }

    /// Reads who calls and what the request asks for. `Err` is the immediate answer: a login or a
    /// refusal. A refused request has no effect at all.
    #[expect(
        clippy::result_large_err,
        reason = "an answer is as usual as an order, and no smaller"
    )]
    fn read_request(
        &self,
        incoming: &Incoming<'_>,
        endpoints: &[DropInEndpoint],
    ) -> Result<DropInRequest, Spoken>;

    /// Writes a refusal for a reason that the gateway found.
    fn refuse(&self, refusal: &Refusal<'_>) -> Spoken;
}

/// The reason why the gateway does not carry out a request that was understood.
#[derive(Debug)]
pub enum Refusal<'a> {
    /// The request could not be read: it is not a POST, or its body is too large, arrived too
    /// slowly or broke off.
    Unreadable(&'a str),
    /// The jobs are invalid: a field is out of bounds, or the target cannot honour it.
    Problems(&'a [Problem]),
    /// The key already belongs to another message.
    Conflict,
    /// More calls than the rate allows.
    TooOften { block: Duration },
    /// The same signed request came before.
    Replayed,
    /// The app is not allowed to do this.
    Forbidden(&'a str),
    /// Jobs cannot be accepted now.
    Unavailable(&'a str),
}

/// A request that was understood.
pub struct DropInRequest {
    /// Index of the endpoint that it belongs to.
    pub endpoint: usize,
    /// An endpoint accepts the same nonce once within [`NONCE_LIVES`].
    pub nonce: Option<String>,
    pub jobs: Vec<DropInJob>,
    pub reply: Box<dyn DropInReply>,
}

/// Largest difference, in either direction, between our clock and that of a caller who signs.
pub const SKEW: Duration = Duration::from_secs(300);

/// How long a nonce is remembered. A request dated ahead of our clock stays valid until that date
/// is past by the skew as well.
pub const NONCE_LIVES: Duration = Duration::from_secs(2 * SKEW.as_secs());

/// One job of a request.
#[derive(Clone, Debug, Default)]
pub struct DropInJob {
    /// The key that the request contains. If it has none, the key is derived from the content.
    pub key: Option<String>,
    /// Without a key, the text that distinguishes this request from others of the same content.
    pub trace: Option<String>,
    pub sender: Option<String>,
    pub audience: AudienceDocument,
    pub message: MessageDocument,
    pub options: Options,
    /// Parts of the request that message and options cannot express, in the system's own fields.
    /// They become the message's `native` if the target is of the same system, and are dropped
    /// otherwise.
    pub native: Option<Box<RawValue>>,
}

/// Renders the answer to a request.
pub trait DropInReply: Send + Sync {
    /// `jobs` has one entry per job, in the order of the request.
    fn render(&self, jobs: &[JobReport]) -> Spoken;
}

/// The state of one job when the answer is due.
#[derive(Clone, Debug)]
pub struct JobReport {
    pub job: JobId,
    pub client_msg_no: String,
    pub accepted_at_ms: u64,
    /// In the order of the request. A recipient that the request names twice is listed twice.
    pub recipients: Vec<(String, RecipientReport)>,
    /// Whether the target treats ids that differ only in case as one.
    pub folds_case: bool,
    /// The accounts of a job for all users, whose request names no recipients.
    pub everybody: Option<AllUsersReport>,
}

/// The state of a job for all users. Their number is known once all are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllUsersReport {
    pub is_complete: bool,
    pub accounts: Accounts,
}

/// The state of a recipient when the answer is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecipientReport {
    Sent,
    /// Not settled within the time limit; delivery goes on.
    Pending,
    /// Ended without success. The reason is empty if it was lost.
    Ended {
        outcome: Outcome,
        class: Option<Class>,
        /// What the code is about, according to the target.
        kind: RefusalKind,
        code: String,
        text: String,
    },
}

impl RecipientReport {
    /// Whether the answer reports the recipient as delivered: it got the message, or its delivery
    /// goes on.
    pub fn is_good(&self) -> bool {
        matches!(self, Self::Sent | Self::Pending)
    }

    /// Whether it ended because the target has no such recipient.
    pub fn is_unknown(&self) -> bool {
        self.refusal() == Some(RefusalKind::UnknownRecipient)
    }

    /// Whether it ended because of the call or its sender, so that other recipients do too.
    pub fn is_about_call(&self) -> bool {
        let call = RefusalKind::Call;
        matches!(self, Self::Ended { kind, .. } if *kind == call)
    }

    /// What the refusal is about, if the recipient was refused permanently.
    pub fn refusal(&self) -> Option<RefusalKind> {
        match self {
            Self::Ended {
                class: Some(Class::Permanent),
                kind,
                ..
            } => Some(*kind),
            Self::Sent | Self::Pending | Self::Ended { .. } => None,
        }
    }

    /// The reason in words for the caller; `None` if the recipient got the message or its delivery
    /// goes on.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Sent | Self::Pending => None,
            Self::Ended { text, .. } if !text.is_empty() => Some(text),
            Self::Ended { outcome, .. } => Some(outcome.as_str()),
        }
    }
}

impl JobReport {
    /// The id of the message to a recipient. It is the same on every call, and below 2^53 so that
    /// JavaScript keeps its digits.
    pub fn message_id(&self, recipient: &str) -> i64 {
        let digest = self.digest(recipient);
        let mut first = [0; 8];
        first.copy_from_slice(&digest.as_ref()[..8]);
        // Zero means "no id" to some callers.
        ((u64::from_be_bytes(first) >> 11) | 1).cast_signed()
    }

    /// The same id as 32 hexadecimal digits.
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

/// A caller's text as the key of a job. A text that cannot be a key is replaced by its digest.
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

/// An answer with a JSON body.
pub fn json(status: StatusCode, body: &impl serde::Serialize) -> Spoken {
    let mut spoken = Response::new(Bytes::from(crate::json::bytes(body)));
    *spoken.status_mut() = status;
    let json = HeaderValue::from_static("application/json; charset=utf-8");
    spoken.headers_mut().insert(CONTENT_TYPE, json);
    spoken
}

/// Compares secrets in a time that does not reveal how much of a guess was right.
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
        // One message has one id, in whatever case its recipient is written.
        let folding = JobReport {
            folds_case: true,
            ..job_report.clone()
        };
        assert_ne!(job_report.message_id("aaa"), job_report.message_id("AAA"));
        assert_eq!(folding.message_id("aaa"), folding.message_id("AAA"));
        assert_eq!(folding.message_id("aaa"), job_report.message_id("aaa"));
    }
}
