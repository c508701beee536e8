//! The port to a target: its requests, and what its answers mean.

use std::sync::Arc;
use std::time::Duration;

use super::{HttpReply, Request};
use crate::domain::fields::Problem;
use crate::domain::ids::JobId;
use crate::domain::limits::Rate;
use crate::domain::mapping;
use crate::domain::mapping::{Feature, Fit, Mapping, Strictness};
use crate::domain::message_id::MessageId;
use crate::domain::outcome::{RefusalKind, TargetAnswer, Verdict};
use crate::domain::slice::{Addressed, Head};
use crate::secret::Secret;

/// One backend account, as pure functions that build requests and read replies. The sending itself
/// is the same for all targets and lives in `http::client`.
pub trait Target: Send + Sync + 'static {
    fn profile(&self) -> &Profile;

    /// The most recipients in one call of this job: at most the number in the profile, and 1 where
    /// the backend takes such messages for one recipient at a time.
    fn recipients_per_call(&self, _head: &Head) -> usize {
        self.profile().recipients_per_call
    }

    /// How the target maps a feature.
    fn maps(&self, feature: Feature) -> Mapping;

    /// The parts of this job that the target cannot carry, beyond unmapped features: sizes, a
    /// missing sender, fields that exclude each other.
    fn check(&self, head: &Head) -> Vec<Problem>;

    /// What a refusal with this code is about.
    fn refusal_kind(&self, _code: &str) -> RefusalKind {
        RefusalKind::Other
    }

    /// The sender of jobs that name none, where there is one.
    fn own_sender(&self) -> Option<&str> {
        None
    }

    /// The sender of a job, the target's own if the job names none; empty where there is none.
    fn sender<'a>(&'a self, head: &'a Head) -> &'a str {
        let named = head.sender.as_deref();
        named.or(self.own_sender()).unwrap_or_default()
    }

    /// The sender of a job, where a configuration fault with this code may be its fault alone.
    /// `None`: the fault is that of the account.
    fn sender_at_fault<'a>(&'a self, _head: &'a Head, _code: &str) -> Option<&'a str> {
        None
    }

    /// Prepares the calls of a job, and renders what they have in common once per slice.
    fn open(&self, head: &Arc<Head>) -> Box<dyn Calls>;

    /// How to fetch the credential that requests carry, where one must be fetched.
    fn login(&self) -> Option<&dyn Login> {
        None
    }

    /// Signs a request, anew on every attempt. Most targets need no signature.
    fn sign(&self, _request: &mut Request, _signing: Signing) {}

    /// How to list all users, where the target can list them.
    fn directory(&self) -> Option<&dyn Directory> {
        None
    }

    /// How to recall messages; where the target cannot, why.
    fn recall(&self) -> Result<&dyn Recall, &'static str> {
        Err("this system has no call that recalls a message")
    }

    /// A request that changes nothing and whose reply identifies the account, where there is one.
    fn identify(&self) -> Option<Request> {
        None
    }

    /// The system and version that answered, or what is wrong: another system or version, or a
    /// refused credential.
    fn read_identity(&self, _reply: &HttpReply) -> Result<String, String> {
        Ok(String::new())
    }
}

/// Compares a job with a target. `all`: the job's audience is all users.
pub fn fit(target: &dyn Target, head: &Head, all: bool, strictness: Strictness) -> Fit {
    let asked = Feature::of(head)
        .into_iter()
        .chain(all.then_some(Feature::All));
    let mut fit = mapping::fit(
        asked,
        |feature| target.maps(feature),
        strictness,
        &head.target,
    );
    fit.problems.extend(target.check(head));
    fit
}

/// The calls of one job to one target.
pub trait Calls: Send + Sync {
    /// The request for these recipients. It has the same bytes every time, except for what
    /// [`Target::sign`] and [`Login::apply`] add.
    fn request(&self, recipients: &[&str]) -> Request;

    /// Reads the reply to that request.
    fn read_reply(&self, recipients: &[&str], reply: &HttpReply) -> Verdict;

    /// The request that asks whether a call in doubt was carried out, where the target can answer
    /// that.
    fn probe(&self, _recipients: &[&str]) -> Option<Request> {
        None
    }

    /// Reads the reply to a probe.
    fn read_probe(&self, _recipients: &[&str], _reply: &HttpReply) -> Probed {
        Probed::Unknown
    }
}

/// The result of a probe for a call in doubt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probed {
    /// Sent, with the id of the message if the job keeps it and the target says one.
    Sent(Option<MessageId>),
    /// Not sent, as far as the target knows now. The worker believes it after two such answers,
    /// with a pause between them.
    NotSent,
    Unknown,
}

/// Recalls messages, one a call.
pub trait Recall: Send + Sync {
    /// A limit slightly below the one that the backend documents for these calls.
    fn limit(&self) -> Rate;

    /// The request, to be [signed](Target::sign); `None` if it must name something that is not known.
    fn request(&self, recalled: &Recalled<'_>) -> Option<Request>;

    /// Reads the reply: done if the message is recalled, permanent if it cannot be.
    fn read_reply(&self, reply: &HttpReply) -> TargetAnswer;
}

/// A message to recall.
#[derive(Clone, Copy, Debug)]
pub struct Recalled<'a> {
    pub job: JobId,
    /// The sender that the job names.
    pub sender: Option<&'a str>,
    pub addressed: Addressed,
    pub recipient: &'a str,
    pub message: &'a MessageId,
}

/// Fetches the credential that requests carry. The worker keeps the credential and fetches a new
/// one shortly before it expires, or when an answer says that it is [stale](TargetAnswer::stale).
pub trait Login: Send + Sync {
    fn request(&self) -> Request;

    /// The credential, or the meaning of the refusal.
    fn read_credential(&self, reply: &HttpReply) -> Result<Credential, TargetAnswer>;

    /// Puts the credential into a request.
    fn apply(&self, request: &mut Request, credential: &str);
}

#[derive(Clone, Debug)]
pub struct Credential {
    pub secret: Secret,
    /// How long it is valid.
    pub lives: Duration,
}

/// The parts of a signature that differ every time.
#[derive(Clone, Copy, Debug)]
pub struct Signing {
    pub now_ms: u64,
    pub nonce: u128,
}

/// Lists all users of a target, page by page.
pub trait Directory: Send + Sync {
    /// The request for the page at a cursor; without a cursor, for the first page.
    fn page(&self, cursor: Option<&str>) -> Request;

    fn read_page(&self, cursor: Option<&str>, reply: &HttpReply) -> Result<Page, TargetAnswer>;

    /// The directory's own credential, if it differs from that of the calls.
    fn login(&self) -> Option<&dyn Login>;
}

/// A page of users.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub users: Vec<String>,
    /// The number of users on all pages together, where the target reports a credible one.
    pub total: Option<u64>,
    /// Where the next page begins; `None` after the last page.
    pub next: Option<String>,
}

/// The properties of a target.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// The most recipients in one call; see also [`Target::recipients_per_call`].
    pub recipients_per_call: usize,
    /// A repeated call with the same key does no harm, so uncertain calls may be retried.
    pub idempotent: bool,
    /// How long to wait after a call in doubt before a probe.
    pub probe_after: Duration,
    /// A limit slightly below the one that the backend documents; in force unless one is
    /// configured.
    pub limit: Option<Rate>,
    /// `Ana` and `ana` are the same user.
    pub folds_case: bool,
    /// Accounts that an audience of all users leaves out, besides the sender: administrators,
    /// notification accounts.
    pub left_out: Vec<String>,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            recipients_per_call: 1,
            idempotent: false,
            probe_after: Duration::from_secs(1),
            limit: None,
            folds_case: false,
            left_out: Vec::new(),
        }
    }
}
