//! Reads jobs as producers publish them, and reports every problem of an invalid one.
//!
//! `parse` reads the fields; `context` is what it needs to know of the configuration.

mod context;
mod parse;

use std::borrow::Cow;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::context::{
    Context, check_callback, default_target, known_app, known_category, known_target,
};
use self::parse::read_job;
use super::audience::{Audience, Member};
pub use super::audience::{AudienceDocument, MemberDocument};
use super::fallback::Fallback;
use super::fields::{Fields, Problem, Problems};
use super::ids::JobId;
use super::lane::Priority;
use super::mapping::Strictness;
pub use super::message::MessageDocument;
use super::message::Options;
use super::outcome::OnUncertain;
use super::slice::{Head, Together};
use super::text;

/// Version of the job contract.
pub const JOB_VERSION: u32 = 1;
/// The app of a job that has none.
pub const DEFAULT_APP: &str = "default";
/// Largest inline job, in bytes of JSON. RabbitMQ 4.x refuses messages above 16 MiB.
pub const JOB_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most recipients in one inline job; a longer list travels as parts of one job.
pub const JOB_RECIPIENTS_MAX: usize = 100_000;
/// Longest `client_msg_no`, in bytes.
pub const CLIENT_MSG_NO_BYTES_MAX: usize = 128;
/// Longest recipient or sender id, in bytes.
pub const RECIPIENT_BYTES_MAX: usize = 255;
/// Longest app or target name, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// The most tags of a job, and the most bytes of one.
pub const TAGS_MAX: usize = 8;
pub const TAG_BYTES_MAX: usize = 64;
/// Most parts of one job.
pub const PARTS_MAX: u32 = 10_000;

/// A job as JSON, for producers. The schema in `schemas/job.schema.json` is generated from this type.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Job", deny_unknown_fields)]
pub struct JobDocument {
    /// Version of this contract: 1.
    #[schemars(range(min = 1, max = 1))]
    pub v: u32,
    /// The key of the job within its app, 1 to 128 bytes. The same key with the same message is the
    /// same job; further recipients extend it; another message is refused.
    #[schemars(length(min = 1, max = 128))]
    pub client_msg_no: String,
    /// The tenant; `default` if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// Where to send; the app's default target if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The sender of the message, as the target names it; the target's default sender if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub sender: Option<String>,
    pub audience: AudienceDocument,
    pub message: MessageDocument,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<Options>,
    /// `high`, `normal` or `bulk`; the routing key of the AMQP message if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// RFC 3339 time before which nothing is sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<String>,
    /// RFC 3339 time after which nothing is sent; the remaining recipients end as `expired`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// Hours of the day in which it is sent, such as `09:00-21:00`, or `21:00-06:00` over midnight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<String>,
    /// The IANA time zone of `window`, such as `Asia/Shanghai`; UTC if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// The category of the message, such as `marketing`. The app's configuration lists the
    /// categories with the frequency cap of each; recipients that have reached it end as `capped`.
    /// Without a category, no cap applies.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub category: Option<String>,
    /// A limit of this job alone, such as `500/s` or `500/s burst 50`, in recipients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<String>,
    /// What to do when a reply is lost; the target's own rule if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_uncertain: Option<OnUncertain>,
    /// What to do about fields that the target does not support; `strict` if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mapping: Option<Strictness>,
    /// URL that gets the job's accounts in a signed POST when the job completes. The app's
    /// configuration lists the hosts that are allowed. If the submissions of a job name several
    /// URLs, the first one counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub callback_url: Option<String>,
    /// AMQP queue to which the job's accounts are published when it completes, through the default
    /// exchange, with the `client_msg_no` as correlation id. The app's configuration lists the
    /// queues that are allowed. If the submissions of a job name several queues, the first one
    /// counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub reply_to: Option<String>,
    /// A second target for the recipients that the first one fails. They are sent to once more,
    /// there, and end with what that target answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
    /// Must be `true` for an audience of all users.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirm_all: Option<bool>,
    /// Set when one audience travels as several messages: the job completes only when all parts
    /// have arrived.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<ListPart>,
    /// Names for the job, such as a campaign, by which operators list, cancel, pause and resume
    /// jobs. If the submissions of a job differ, the first one counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 64)))]
    pub tags: Vec<String>,
}

impl JobDocument {
    /// A job with only the fields that every job has.
    pub fn new(
        client_msg_no: impl Into<String>,
        audience: AudienceDocument,
        message: MessageDocument,
    ) -> Self {
        Self {
            v: JOB_VERSION,
            client_msg_no: client_msg_no.into(),
            app: None,
            target: None,
            sender: None,
            audience,
            message,
            options: None,
            priority: None,
            not_before: None,
            expires_at: None,
            window: None,
            timezone: None,
            category: None,
            rate: None,
            on_uncertain: None,
            mapping: None,
            callback_url: None,
            reply_to: None,
            fallback: None,
            confirm_all: None,
            part: None,
            tags: Vec::new(),
        }
    }
}

/// The part of a job that a message carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListPart {
    /// 1 to `of`.
    #[schemars(range(min = 1, max = 10_000))]
    pub number: u32,
    #[schemars(range(min = 1, max = 10_000))]
    pub of: u32,
    /// Name of the whole list, 1 to 64 bytes. Nothing is sent to the list before all its parts are
    /// accepted. If some of them do not arrive within an hour, all its recipients end as
    /// `cancelled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub together: Option<String>,
}

impl ListPart {
    /// Whether a message that no recipient of this part can have is wrong for the whole job: the
    /// part is the whole list, or the first part of a list that is sent to together or not at all.
    fn speaks_for_all(&self) -> bool {
        self.of == 1 || self.number == 1 && self.together.is_some()
    }

    pub const WHOLE: Self = Self {
        number: 1,
        of: 1,
        together: None,
    };

    /// The facts about the other parts that the slices carry.
    pub fn together(&self) -> Option<Together> {
        let list = self.together.clone().filter(|_| self.of > 1)?;
        Some(Together {
            list,
            number: self.number,
            of: self.of,
        })
    }
}

/// The error text for a job that the ledger does not know.
pub fn unknown(name: &str) -> String {
    format!(
        "there is no job {name}: not accepted yet, rejected (`fanwise dead rejected` shows why), or older \
         than the dedup window"
    )
}

/// A valid job. Its recipients stay in the message and are read from there one at a time, so no
/// audience needs a second copy.
#[derive(Debug)]
pub struct Job<'a> {
    pub head: Head,
    /// Digest of everything that is sent or decides how; a different digest under the same key is a
    /// conflict.
    pub content_digest: String,
    /// Identifies this list within the job; a repeat of the same message has the same value.
    pub submission: String,
    /// List entries, with repeats and without excluded ones.
    pub entries: usize,
    pub part: ListPart,
    pub strictness: Strictness,
    /// Names for the job, by which operators find and steer it.
    pub tags: Vec<String>,
    audience: Audience<'a>,
}

impl<'a> Job<'a> {
    /// Reads a job published with this routing key.
    pub fn parse(
        body: &'a [u8],
        routing_key: Option<Priority>,
        context: &impl Context,
        now: Timestamp,
    ) -> Result<Self, Vec<Problem>> {
        if body.len() > JOB_BYTES_MAX {
            let what = format!(
                "{} bytes, at most {JOB_BYTES_MAX} are allowed in one message; send longer lists as parts",
                body.len()
            );
            return Err(vec![Problem::new("", what)]);
        }
        let text = text::decode(body).map_err(|what| vec![Problem::new("", what)])?;
        let mut problems = Problems::default();
        problems.extend(half_character(text));
        let job = Fields::open("", text, &mut problems)
            .and_then(|fields| read_job(fields, routing_key, context, now, &mut problems));
        match job {
            Some(job) if problems.is_empty() => Ok(job),
            _ => Err(problems.into()),
        }
    }

    /// The id of the job in a message, even if the job is invalid.
    pub fn named(body: &[u8]) -> Option<JobId> {
        #[derive(Deserialize)]
        struct Name {
            client_msg_no: String,
            app: Option<String>,
        }
        let name: Name = serde_json::from_str(text::decode(body).ok()?).ok()?;
        let app = name.app.as_deref().unwrap_or(DEFAULT_APP);
        Some(JobId::of(app, &name.client_msg_no))
    }

    /// Calls `each` with every recipient, in the order of the list.
    pub fn for_each_recipient(&self, each: impl FnMut(Member<'a>)) {
        self.audience.for_each(each);
    }

    /// Returns a problem if the job has expired: no recipient would get it. The check is for new
    /// jobs; a job that was accepted in time ends as expired.
    pub fn too_late(&self, now_ms: u64) -> Option<Problem> {
        let at = self.head.expires_at_ms.filter(|at| *at <= now_ms)?;
        let at = Timestamp::from_millisecond(at.cast_signed()).unwrap_or_default();
        let what = format!("{at} has passed: no recipient would get the message");
        Some(Problem::new("expires_at", what))
    }

    /// Whether the audience is all users of the target instead of a list.
    pub fn is_for_all(&self) -> bool {
        self.audience.is_all()
    }

    /// The recipients that the job leaves out, sorted.
    pub fn excluded(&self) -> &[Cow<'a, str>] {
        self.audience.excluded()
    }
}

/// Why a text cannot be an id; `None` if it can.
pub fn wrong_id(id: &str, bytes_max: usize) -> Option<String> {
    if id.is_empty() {
        Some("empty".to_owned())
    } else if id.len() > bytes_max {
        Some(format!(
            "{} bytes, at most {bytes_max} are allowed",
            id.len()
        ))
    } else if id.chars().any(char::is_control) {
        Some("contains a control character".to_owned())
    } else {
        let what = text::invisible(id)?;
        Some(format!(
            "contains {what}, so it is not the id that it looks like"
        ))
    }
}

/// A problem if a document contains half of a character, which later readers could not handle.
pub(super) fn half_character(json: &str) -> Option<Problem> {
    let half = text::half_character(json)?;
    let what = format!("half of a character, as when an emoji is cut, in {half:?}");
    Some(Problem::new("", what))
}

#[cfg(test)]
mod tests;
