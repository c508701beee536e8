//! Reads jobs as producers publish them, and reports every problem of an invalid one.
//!
//! `parse` reads the fields; `context` is what it needs to know of the configuration.

mod context;
mod parse;

use std::borrow::Cow;

pub use fanwise_client::{
    Audience as AudienceDocument, CLIENT_MSG_NO_BYTES_MAX, DEFAULT_APP, JOB_BYTES_MAX,
    JOB_RECIPIENTS_MAX, JOB_VERSION, Job as JobDocument, ListPart, Message as MessageDocument,
    NAME_BYTES_MAX, PARTS_MAX, RECIPIENT_BYTES_MAX, Recipient as MemberDocument, TAG_BYTES_MAX,
    TAGS_MAX,
};
use jiff::Timestamp;
use serde::Deserialize;

pub use self::context::{
    Context, check_callback, default_target, known_app, known_category, known_target,
};
use self::parse::read_job;
use super::audience::{Audience, Member};
use super::fields::{Fields, Problem, Problems};
use super::ids::JobId;
use super::lane::Priority;
use super::list_reference::FetchedList;
use super::mapping::Strictness;
use super::own_hours::UnknownZones;
use super::slice::{Head, Together};
use super::text;

/// Longest name of the value that holds the time zone of a recipient, in bytes.
const TIMEZONE_VAR_BYTES_MAX: usize = 64;
/// The longest time over which a job may be spread.
pub(crate) const PACE_DAYS_MAX: u64 = 366;

/// Whether a message that no recipient of this part can have is wrong for the whole job: the part is
/// the whole list, or the first part of a list that is sent to together or not at all.
fn speaks_for_all(part: &ListPart) -> bool {
    part.of == 1 || part.number == 1 && part.together.is_some()
}

/// The facts about the other parts that the slices carry.
pub fn together(part: &ListPart) -> Option<Together> {
    let list = part.together.clone().filter(|_| part.of > 1)?;
    Some(Together {
        list,
        number: part.number,
        of: part.of,
    })
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

    /// Returns a problem if the job has expired, so that no recipient would get it, or if there is no
    /// time left to spread its recipients over. The check is for new jobs: of one that was accepted
    /// in time, the rest ends as expired, or is sent without a pace.
    pub fn too_late(&self, now_ms: u64) -> Option<Problem> {
        let passed = |at: Option<u64>| at.filter(|at| *at <= now_ms);
        let time = |at: u64| Timestamp::from_millisecond(at.cast_signed()).unwrap_or_default();
        if let Some(at) = passed(self.head.expires_at_ms) {
            let what = format!(
                "{} has passed: no recipient would get the message",
                time(at)
            );
            return Some(Problem::new("expires_at", what));
        }
        let at = passed(self.head.pace_until_ms)?;
        let what = format!(
            "{} has passed: there is no time left to spread the recipients over; leave it out",
            time(at)
        );
        Some(Problem::new("pace_until", what))
    }

    /// The recipients that bring a time zone which is not known, for a job with the hours of its
    /// recipients.
    pub fn unknown_zones(&self) -> UnknownZones<'_> {
        let mut unknown = UnknownZones::new(self.head.window.as_ref());
        if unknown.may_be() {
            self.for_each_recipient(|recipient| unknown.note(recipient.vars));
        }
        unknown
    }

    /// Whether the audience is all users of the target instead of a list.
    pub fn is_for_all(&self) -> bool {
        self.audience.is_all()
    }

    /// The version of the list, if the gateway fetched it.
    pub fn fetched(&self) -> Option<&FetchedList> {
        self.audience.fetched()
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
