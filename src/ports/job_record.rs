//! The record of a job, and queries for records.

pub use fanwise_client::JobState;

use crate::domain::accounts::{Accounts, Audit};
use crate::domain::announce::Reached;
use crate::domain::ids::JobId;
use crate::domain::lane::Priority;
use crate::domain::list_reference::FetchedList;
use crate::domain::message_id::KeepsIds;
use crate::domain::moment;
use crate::domain::pace::{Mark, Pace};
use crate::domain::slice::Shape;

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct JobRecord {
    /// 24 hexadecimal digits.
    #[schemars(with = "String")]
    pub job: JobId,
    pub app: String,
    pub client_msg_no: String,
    pub target: String,
    pub state: JobState,
    pub accounts: Accounts,
    pub pending: u64,
    #[serde(rename = "accepted_at", alias = "accepted_at_ms", with = "moment")]
    #[schemars(with = "String")]
    pub accepted_at_ms: u64,
    /// Digest of what the job says; another digest under the same key is a conflict.
    pub content_digest: Option<String>,
    /// Last time an outcome was recorded.
    #[serde(
        rename = "progress_at",
        alias = "progress_at_ms",
        with = "moment::optional",
        default
    )]
    #[schemars(with = "Option<String>")]
    pub progress_at_ms: Option<u64>,
    #[serde(
        rename = "completed_at",
        alias = "completed_at_ms",
        with = "moment::optional",
        default
    )]
    #[schemars(with = "Option<String>")]
    pub completed_at_ms: Option<u64>,
    /// The ledger lost this record, and it was rebuilt from slices: the accounts lack the outcomes
    /// that were recorded before.
    pub rebuilt: bool,
    /// When the ledger was found to have returned to older data while the job ran: the outcomes
    /// recorded just before that time may be missing.
    #[serde(
        rename = "went_back_at",
        alias = "went_back_at_ms",
        with = "moment::optional",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub went_back_at_ms: Option<u64>,
    /// Recipients whose outcome the ledger does not know, although nothing is left to deliver to
    /// them. They count as uncertain.
    #[serde(default, skip_serializing_if = "crate::json::is_zero")]
    pub lost: u64,
    /// How often it was ended with lost recipients and then submitted again.
    #[serde(default, skip_serializing_if = "crate::json::is_zero")]
    pub reopened: u64,
    pub submissions: u64,
    /// Lists of the job that are not cut into slices yet, because its target is parked, paused or far
    /// behind.
    #[serde(default, skip_serializing_if = "crate::json::is_zero")]
    pub uncut: u64,
    pub shape: Shape,
    /// Features that the target does not support and that the job goes on without.
    pub warnings: Vec<String>,
    /// The sender that the job names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
    /// The sending hours of the job with their time zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<String>,
    /// Its recipients are spread evenly over the time until then.
    #[serde(
        rename = "pace_until",
        with = "moment::optional",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub pace_until_ms: Option<u64>,
    /// The category of its message, whose frequency cap applies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// The job's own limit, as it was written; unknown once the record was rebuilt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<String>,
    /// Unknown of a job that an earlier version registered, or whose record was rebuilt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// Nothing is sent before this time.
    #[serde(
        rename = "not_before",
        alias = "not_before_ms",
        with = "moment::optional",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub not_before_ms: Option<u64>,
    /// No recipient is sent to from this time on.
    #[serde(
        rename = "expires_at",
        with = "moment::optional",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub expires_at_ms: Option<u64>,
    /// The tags of its first submission.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The version of the list that the gateway fetched last for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched: Option<FetchedList>,
    /// The URL that gets the accounts when the job completes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback_url: Option<String>,
    /// The queue that gets the accounts when the job completes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
    /// The second target, for recipients that the first one fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
    /// How many of those that count as `sent` the second target reached.
    #[serde(default, skip_serializing_if = "crate::json::is_zero")]
    pub sent_by_fallback: u64,
    /// The ledger keeps the target's ids of its messages.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_ids: bool,
    /// Unknown if the record was rebuilt.
    #[serde(skip)]
    pub keeps_ids: Option<KeepsIds>,
    /// How fast the job went lately.
    #[serde(skip)]
    pub pace: Pace,
    /// The last time that a part of the job was reported as waiting.
    #[serde(skip)]
    pub waited_at_ms: Option<u64>,
    /// The version of the stored message with which the job started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<u32>,
}

impl JobRecord {
    /// Sets `went_back_at_ms` to the latest of these times at which the job had been accepted and
    /// was not yet completed.
    pub fn marked(mut self, went_back_at_ms: &[u64]) -> Self {
        let concerns = |at: &u64| {
            self.accepted_at_ms <= *at && self.completed_at_ms.is_none_or(|done| done > *at)
        };
        let times = went_back_at_ms.iter().copied();
        self.went_back_at_ms = times.filter(|at| concerns(at)).max();
        self
    }

    /// The differences between the counters and the ledger, in words.
    pub fn differences(&self, audit: &Audit) -> Vec<String> {
        // The ledger does not know which recipients lost their outcomes. Some of them may be claimed.
        let audit = Audit {
            claimed: audit.claimed.saturating_sub(self.lost),
            ..*audit
        };
        audit.differences(&Accounts {
            uncertain: self.accounts.uncertain.saturating_sub(self.lost),
            ..self.accounts
        })
    }

    /// The doubts about the job's accounts, in words. The accounts are exact only if there are
    /// none.
    pub fn unknown(&self) -> Vec<String> {
        let mut unknown = Vec::new();
        if self.rebuilt {
            let what = "the ledger was lost and rebuilt: outcomes recorded before are not counted";
            unknown.push(what.to_owned());
        }
        if let Some(at) = self.went_back_at_ms {
            let at = jiff::Timestamp::from_millisecond(at.cast_signed()).unwrap_or_default();
            unknown.push(format!(
                "the ledger was found at {at} to have gone back to older data: outcomes recorded just \
                 before that may be missing, and their recipients may have been sent to again"
            ));
        }
        if self.lost > 0 {
            let advice = match self.lost_are_unsent() {
                true => "; submit the job again to send to them",
                false => "",
            };
            unknown.push(format!(
                "{} recipients count as uncertain because the ledger has no outcome of them and nothing \
                 is left to deliver; it does not know their names{advice}",
                self.lost
            ));
        }
        unknown
    }

    /// The recipients that the second target reached; `None` without a second target.
    pub fn reached(&self) -> Option<Reached> {
        let target = self.fallback.clone()?;
        Some(Reached {
            target,
            sent: self.sent_by_fallback,
        })
    }

    /// Whether recipients are [lost](Self::lost) and have certainly no message, unless they are in
    /// doubt: the ledger has all outcomes that were ever recorded. If the job is submitted again, they
    /// are sent to.
    pub fn lost_are_unsent(&self) -> bool {
        self.lost > 0 && !self.rebuilt && self.went_back_at_ms.is_none()
    }

    /// Whether the job is completed, and has nobody to send to if it is submitted again as it was.
    pub fn is_over(&self) -> bool {
        self.state == JobState::Completed && !self.lost_are_unsent()
    }

    /// Whether the job was submitted again for its lost recipients when it was like `before`, and no
    /// worker has taken it since.
    pub fn waits_to_reopen(&self, before: &Self) -> bool {
        before.state == JobState::Completed
            && before.lost_are_unsent()
            && self.reopened == before.reopened
    }

    /// The last time that the job was accepted, made progress or was reported as waiting.
    pub fn heard_at_ms(&self) -> u64 {
        let later = self.progress_at_ms.max(self.waited_at_ms);
        later.unwrap_or(0).max(self.accepted_at_ms)
    }

    /// Since when the job may be sent.
    pub fn due_at_ms(&self) -> u64 {
        self.accepted_at_ms.max(self.not_before_ms.unwrap_or(0))
    }

    /// Recipients per second over the last seconds; `None` if the job does not run, or if too few
    /// outcomes are recorded to tell.
    pub fn per_second(&self, now_ms: u64) -> Option<f64> {
        if self.state != JobState::Running {
            return None;
        }
        let progress = Mark {
            at_ms: self.progress_at_ms?,
            settled: self.accounts.settled(),
        };
        self.pace.per_second(progress, now_ms)
    }
}

/// Selects jobs, and the place where a page of them begins.
#[derive(Clone, Debug, Default)]
pub struct JobQuery {
    pub filter: JobFilter,
    /// The page begins after this place.
    pub after: Option<JobPlace>,
    pub most: usize,
}

/// A job must match every field that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobFilter {
    pub app: Option<String>,
    pub target: Option<String>,
    pub client_msg_no: Option<String>,
    /// Jobs with this tag.
    pub tag: Option<String>,
    pub state: Option<JobState>,
    /// Accepted at or after this time.
    pub since_ms: Option<u64>,
    /// Accepted before this time.
    pub until_ms: Option<u64>,
    /// Not completed, and not to be sent before a time later than this.
    pub starts_after_ms: Option<u64>,
}

impl JobFilter {
    /// Whether only jobs that are not completed match.
    pub fn is_for_open_jobs(&self) -> bool {
        matches!(self.state, Some(JobState::Accepted | JobState::Running))
            || self.starts_after_ms.is_some()
    }

    /// Whether a job at this place of the list may match, by its time.
    pub fn takes_place(&self, place: JobPlace) -> bool {
        self.since_ms.is_none_or(|since| place.at_ms >= since)
            && self.until_ms.is_none_or(|until| place.at_ms < until)
    }

    /// Whether the record matches. The caller compares the times, with the job's place in the list.
    pub fn takes(&self, record: &JobRecord) -> bool {
        let is = |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|it| it == is);
        is(&self.app, &record.app)
            && is(&self.target, &record.target)
            && is(&self.client_msg_no, &record.client_msg_no)
            && (self.tag.as_ref()).is_none_or(|tag| record.tags.contains(tag))
            && self.state.is_none_or(|state| state == record.state)
            && self.starts_after_ms.is_none_or(|at| {
                record.state != JobState::Completed && record.not_before_ms > Some(at)
            })
    }
}

/// A place in the list of jobs, which is ordered by time, then by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobPlace {
    pub at_ms: u64,
    pub job: JobId,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct JobPage {
    pub jobs: Vec<JobRecord>,
    /// Where the next page begins, if there may be one.
    pub next: Option<JobPlace>,
}
