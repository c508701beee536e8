//! Directives tell running work what to do. An operator can pause, cancel or re-rate a job, and
//! pause or re-rate an app or a target. Workers use one more kind among themselves: a job is parked
//! because its target reported a configuration fault.
//!
//! A subject has at most one directive of each kind. A new one replaces it, and it ends when it is
//! lifted or expires. `Board` holds all directives and derives one `SliceControl` for a slice. A
//! worker reads it before each window of calls, which costs three look-ups.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantArray};

use super::adapt::Climb;
use super::job_limits::{LimitKind, LimitOf, Rates};
use super::lane::Priority;
use super::limits::Rate;
use super::moment;
use super::slice::Head;

mod board;
#[cfg(test)]
mod tests;

pub use board::Board;

/// The kind of object that a limit or directive applies to.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
    IntoStaticStr,
    VariantArray,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Scope {
    Target,
    App,
    Job,
    /// A limit that several targets have together. It has directives about its rate alone.
    Shared,
}

impl Scope {
    pub const ALL: &'static [Self] = Self::VARIANTS;

    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// One target, app, job or shared limit. A job is named by its id.
#[derive(
    Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct Subject {
    pub scope: Scope,
    pub name: String,
}

impl Subject {
    pub fn new(scope: Scope, name: impl Into<String>) -> Self {
        Self {
            scope,
            name: name.into(),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.scope.as_str(), self.name)
    }
}

/// The action of a directive.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// Nothing is sent until the directive ends.
    Pause,
    /// Recipients without an outcome end `cancelled`. For jobs only.
    Cancel,
    /// This rate replaces the configured one.
    Rate { rate: Rate },
    /// It replaces the second limit of a target or an app, a day.
    DailyRate { rate: Rate },
    /// It replaces the limit of each sender of a target.
    SenderRate { rate: Rate },
    /// The target of the job answered with a configuration fault. Nothing is sent until the
    /// directive ends, and no recipient fails because of the fault. For jobs only, and set by
    /// workers.
    Park {
        target: String,
        code: String,
        /// The sender of the job, if the fault may be that of the sender alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sender: Option<String>,
    },
    /// The limit applies in part and climbs back, because the target throttled us or was parked.
    /// For targets only, and set by workers.
    Adapt {
        #[serde(flatten)]
        climb: Climb,
    },
    /// This priority replaces the job's own. For jobs only.
    Priority { priority: Priority },
    /// The job starts at this time instead of its own. For jobs only.
    Schedule {
        #[serde(rename = "not_before", with = "moment")]
        #[schemars(with = "String")]
        not_before_ms: u64,
    },
    /// The job expires at this time instead of its own; never if there is none. For jobs only.
    Deadline {
        #[serde(
            rename = "expires_at",
            with = "moment::optional",
            default,
            skip_serializing_if = "Option::is_none"
        )]
        #[schemars(with = "Option<String>")]
        expires_at_ms: Option<u64>,
    },
    /// The job is spread evenly until this time instead of its own; not at all if there is none. For
    /// jobs only.
    Pace {
        #[serde(
            rename = "pace_until",
            with = "moment::optional",
            default,
            skip_serializing_if = "Option::is_none"
        )]
        #[schemars(with = "Option<String>")]
        pace_until_ms: Option<u64>,
    },
    /// Workers look for what is left of the job, and end it if they find nothing. For jobs only.
    Repair,
}

impl Action {
    /// The action that sets a limit.
    pub fn limit(kind: LimitKind, rate: Rate) -> Self {
        match kind {
            LimitKind::Main => Self::Rate { rate },
            LimitKind::Daily => Self::DailyRate { rate },
            LimitKind::Sender => Self::SenderRate { rate },
        }
    }

    /// The rate that it sets.
    pub fn rate(&self) -> Option<Rate> {
        match self {
            Self::Rate { rate } | Self::DailyRate { rate } | Self::SenderRate { rate } => {
                Some(*rate)
            }
            _ => None,
        }
    }

    pub fn kind(&self) -> Kind {
        match self {
            Self::Pause => Kind::Pause,
            Self::Cancel => Kind::Cancel,
            Self::Rate { .. } => Kind::Rate,
            Self::DailyRate { .. } => Kind::DailyRate,
            Self::SenderRate { .. } => Kind::SenderRate,
            Self::Park { .. } => Kind::Park,
            Self::Adapt { .. } => Kind::Adapt,
            Self::Priority { .. } => Kind::Priority,
            Self::Schedule { .. } => Kind::Schedule,
            Self::Deadline { .. } => Kind::Deadline,
            Self::Pace { .. } => Kind::Pace,
            Self::Repair => Kind::Repair,
        }
    }
}

/// An action without its value. A subject has at most one directive of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Kind {
    Pause,
    Cancel,
    Rate,
    DailyRate,
    SenderRate,
    Park,
    Adapt,
    Priority,
    Schedule,
    Deadline,
    Pace,
    Repair,
}

impl Kind {
    pub const ALL: &'static [Self] = Self::VARIANTS;

    /// The kinds without a meaning once their job is completed. A cancel stays: recipients added
    /// to the job later are not sent to either.
    pub const OF_RUNNING: [Self; 8] = [
        Self::Pause,
        Self::Rate,
        Self::Park,
        Self::Priority,
        Self::Schedule,
        Self::Deadline,
        Self::Pace,
        Self::Repair,
    ];

    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// One directive of an operator or a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Directive {
    #[serde(flatten)]
    pub subject: Subject,
    #[serde(flatten)]
    pub action: Action,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// Milliseconds since 1970.
    pub since_ms: u64,
    /// When it expires, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<u64>,
}

impl Directive {
    pub fn in_force(&self, now_ms: u64) -> bool {
        self.until_ms.is_none_or(|until| until > now_ms)
    }
}

/// Shows author and reason: `paused by ana: wrong picture`.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pause => f.write_str("paused"),
            Self::Cancel => f.write_str("cancelled"),
            Self::Rate { rate } => write!(f, "rate set to {rate}"),
            Self::DailyRate { rate } => write!(f, "daily limit set to {rate}"),
            Self::SenderRate { rate } => write!(f, "limit of each sender set to {rate}"),
            Self::Park { .. } => f.write_str("parked"),
            Self::Adapt { .. } => f.write_str("limit adapted"),
            Self::Priority { priority } => write!(f, "priority set to {}", priority.as_str()),
            Self::Schedule { not_before_ms } => {
                write!(f, "start set to {}", moment::text(*not_before_ms))
            }
            Self::Deadline {
                expires_at_ms: Some(at),
            } => write!(f, "deadline set to {}", moment::text(*at)),
            Self::Deadline {
                expires_at_ms: None,
            } => f.write_str("deadline removed"),
            Self::Pace {
                pace_until_ms: Some(at),
            } => write!(f, "spread until {}", moment::text(*at)),
            Self::Pace {
                pace_until_ms: None,
            } => f.write_str("pace removed"),
            Self::Repair => f.write_str("repair ordered"),
        }
    }
}

impl fmt::Display for Directive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.action)?;
        if let Some(author) = &self.author {
            write!(f, " by {author}")?;
        }
        if let Some(reason) = &self.reason {
            write!(f, ": {reason}")?;
        }
        Ok(())
    }
}

/// What a slice must do now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SliceControl {
    pub go: Go,
    /// Rates that replace the configured ones.
    pub rates: Rates,
    /// The part of the target's limit that applies, if not all of it does.
    pub adapted: Option<Climb>,
    /// Replaces the priority of the job.
    pub priority: Option<Priority>,
    /// Replaces the start time of the job.
    pub not_before_ms: Option<u64>,
    /// Replaces the time at which the job expires.
    pub expires_at_ms: Option<Option<u64>>,
    /// Replaces the time until which the job is spread.
    pub pace_until_ms: Option<Option<u64>>,
}

impl SliceControl {
    fn set(&mut self, scope: Scope, kind: LimitKind, rate: Rate) {
        if let Some(limit) = LimitOf::new(scope, kind) {
            self.rates[limit] = Some(rate);
        }
    }

    /// When the job of a slice starts, and when it expires.
    pub fn times(&self, head: &Head) -> (Option<u64>, Option<u64>) {
        (
            self.not_before_ms.or(head.not_before_ms),
            self.expires_at_ms.unwrap_or(head.expires_at_ms),
        )
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Go {
    #[default]
    On,
    /// Send nothing, and look again after this time.
    Wait(Duration),
    /// Settle all recipients without an outcome as cancelled.
    Cancelled,
}
