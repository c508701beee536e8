//! What a hindrance is, for programs: a code and values. Its sentence is made from them.

use std::fmt::{self, Write as _};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantNames};

use super::Cause;
use crate::domain::directive::{Action, Directive, Scope};
use crate::domain::job_limits::LimitOf;
use crate::ports::{Park, ParkReason};

/// The code of a hindrance, with the values that its sentence names. Rates and sending hours are
/// written as in the configuration, times as RFC 3339.
#[derive(
    Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, IntoStaticStr, VariantNames,
)]
#[serde(tag = "code", content = "values", rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
#[schemars(rename = "HindranceDetail")]
pub enum Detail {
    /// The ledger takes no writes.
    LedgerAway {
        error: String,
    },
    Cancelled(Note),
    Paused {
        scope: Scope,
        name: String,
        #[serde(flatten)]
        note: Note,
    },
    /// The job alone is parked, because of this answer of its target.
    JobParked {
        #[serde(default, skip_serializing_if = "String::is_empty")]
        answer_code: String,
        text: String,
    },
    TargetParked {
        target: String,
        reason: ParkReason,
        /// The code and the text of the answer that caused it, or the operator's name and reason.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        answer_code: String,
        text: String,
    },
    /// The target is not configured any more.
    NoTarget {
        target: String,
    },
    /// The start time of the job is still to come.
    NotBefore {
        at: String,
    },
    /// It is outside these sending hours, of the job or of its app.
    OutsideHours {
        scope: Scope,
        name: String,
        window: String,
        opens_at: String,
    },
    /// Recipients wait for the sending hours in their own zones.
    OwnHours {
        window: String,
    },
    /// A part of a limit applies, and climbs back.
    LimitAdapted {
        #[serde(flatten)]
        limit: LimitName,
        rate: String,
        full: String,
    },
    /// A limit that was set while it ran.
    LimitSet {
        #[serde(flatten)]
        limit: LimitName,
        rate: String,
        #[serde(flatten)]
        note: Note,
    },
    /// A configured limit, or the job's own.
    LimitReached {
        #[serde(flatten)]
        limit: LimitName,
        rate: String,
    },
    /// The job is spread evenly until a time.
    Spread {
        pace_until: String,
        left: u64,
        per_second: f64,
    },
    /// Calls to the target take long.
    SlowCalls {
        target: String,
        calls: u64,
        oldest_seconds: u64,
    },
    /// No worker has taken the job yet.
    NotTaken,
    /// No recipient gets an outcome, for this reason.
    NoOutcome {
        seconds: u64,
        because: Because,
        #[serde(flatten)]
        others: Others,
    },
    /// Other jobs have places at the target as well.
    SharesTarget {
        places: u64,
        all: u64,
        #[serde(flatten)]
        others: Others,
    },
    /// Only the time of the target's answers limits the job.
    AnswerTime,
    /// An operator has workers look for what is left of the job.
    Repair(Note),
    /// Nothing was seen of the job's slices.
    NoSign {
        minutes: u64,
    },
    NoWorker,
    /// No worker has a session with the broker.
    NoSession,
    /// Lists of the job are not cut into slices yet.
    NotCut {
        lists: u64,
        submissions: u64,
        target: String,
    },
}

/// Who did it, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Note {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl From<&Directive> for Note {
    fn from(it: &Directive) -> Self {
        Self {
            author: it.author.clone(),
            reason: it.reason.clone(),
        }
    }
}

/// ` by ana: wrong picture`
impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(author) = &self.author {
            write!(f, " by {author}")?;
        }
        match &self.reason {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

/// Which limit it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LimitName {
    pub limit: LimitOf,
    /// The target, the app, the sender or the shared limit; the sender is empty if it is the one of
    /// the target.
    pub name: String,
    pub target: String,
}

/// `target im`, `sender news at target im`
impl fmt::Display for LimitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            limit,
            name,
            target,
        } = self;
        match limit {
            LimitOf::Target | LimitOf::TargetDaily => write!(f, "target {target}"),
            LimitOf::App | LimitOf::AppDaily => write!(f, "app {name}"),
            LimitOf::Job => f.write_str("job"),
            LimitOf::Sender if name.is_empty() => write!(f, "the sender at target {target}"),
            LimitOf::Sender => write!(f, "sender {name} at target {target}"),
            LimitOf::Shared => write!(f, "all targets that share the limit {name}"),
        }
    }
}

/// Why no recipient gets an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Because {
    /// Slices of the job have places, and no call is answered.
    NoAnswer,
    /// They wait for a place.
    NoPlace,
    /// Retries wait for their time.
    Retries,
    /// That, or other jobs are before it on its lane.
    RetriesOrLane,
}

/// The jobs that have the other places at a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Others {
    /// Those with the most places.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub jobs: Vec<OtherJob>,
    /// The places of further jobs.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub further_places: u64,
    /// The places of jobs of other apps, for a reader who must not know them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unnamed_places: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Another job with places.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OtherJob {
    pub job: String,
    pub app: String,
    pub places: u64,
}

/// `job 5f… of app shop has 3 places, jobs of other apps have 1 place`
impl fmt::Display for Others {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |places: u64| {
            let noun = if places == 1 { "place" } else { "places" };
            format!("{places} {noun}")
        };
        let named = self.jobs.iter();
        let mut told: Vec<_> = named
            .map(|it| format!("job {} of app {} has {}", it.job, it.app, count(it.places)))
            .collect();
        if self.further_places > 0 {
            told.push(format!("further jobs have {}", count(self.further_places)));
        }
        if self.unnamed_places > 0 {
            told.push(format!(
                "jobs of other apps have {}",
                count(self.unnamed_places)
            ));
        }
        f.write_str(&told.join(", "))
    }
}

impl Detail {
    pub(super) fn of_park(target: &str, park: &Park) -> Self {
        Self::TargetParked {
            target: target.to_owned(),
            reason: park.reason,
            answer_code: park.code.clone(),
            text: park.text.clone(),
        }
    }

    /// A directive of workers has the answer as its reason.
    pub(super) fn of_parked_job(park: &Directive) -> Self {
        let reason = park.reason.as_deref().unwrap_or_default();
        let code = match &park.action {
            Action::Park { code, .. } => code.as_str(),
            _ => "",
        };
        let text = reason.strip_prefix(&config_fault());
        let text = text.and_then(|it| it.strip_prefix(code)?.strip_prefix(": "));
        let (code, text) = text.map_or(("", reason), |text| (code, text));
        Self::JobParked {
            answer_code: code.to_owned(),
            text: text.to_owned(),
        }
    }

    /// The group that it belongs to.
    pub(super) fn cause(&self) -> Cause {
        match self {
            Self::LedgerAway { .. } => Cause::Ledger,
            Self::Cancelled(_) => Cause::Cancelled,
            Self::Paused { .. } => Cause::Paused,
            Self::JobParked { .. } | Self::TargetParked { .. } => Cause::Parked,
            Self::NoTarget { .. } => Cause::NoTarget,
            Self::NotBefore { .. } => Cause::Scheduled,
            Self::OutsideHours { .. } | Self::OwnHours { .. } => Cause::SendingHours,
            Self::LimitAdapted { limit, .. }
            | Self::LimitSet { limit, .. }
            | Self::LimitReached { limit, .. } => Cause::limit_of(limit.limit),
            Self::Spread { .. } => Cause::Pace,
            Self::SlowCalls { .. } | Self::AnswerTime => Cause::Target,
            Self::NoOutcome {
                because: Because::NoPlace,
                ..
            }
            | Self::SharesTarget { .. } => Cause::OtherJobs,
            Self::NoOutcome { .. } | Self::NotTaken | Self::Repair(_) | Self::NoSign { .. } => {
                Cause::Waiting
            }
            Self::NoWorker => Cause::NoWorker,
            Self::NoSession => Cause::Broker,
            Self::NotCut { .. } => Cause::NotCut,
        }
    }

    /// The sentence. `until` is the end of the hindrance, if it is known.
    pub(super) fn sentence(&self, until: Option<&str>) -> String {
        let until = until.map(|at| format!(" until {at}")).unwrap_or_default();
        match self {
            Self::LedgerAway { error } => format!("the ledger takes no writes: {error}"),
            Self::Cancelled(note) => {
                format!("job cancelled{note}; its calls under way still finish")
            }
            Self::Paused { scope, name, note } => {
                format!("{} paused{note}{until}", subject(*scope, name))
            }
            Self::JobParked { answer_code, text } if answer_code.is_empty() => {
                format!("job is parked{until}: {text}")
            }
            Self::JobParked { answer_code, text } => format!(
                "job is parked{until}: {}{answer_code}: {text}",
                config_fault()
            ),
            Self::TargetParked {
                target,
                reason,
                answer_code,
                text,
            } => {
                let mut what = format!("target {target} is parked{until}: {}", reason.as_str());
                for (joint, part) in [(" ", answer_code), (": ", text)] {
                    if !part.is_empty() {
                        let _ = write!(what, "{joint}{part}");
                    }
                }
                what
            }
            Self::NoTarget { target } => format!(
                "target {target} is not configured here; its slices wait until workers have it again, \
                 also to be cancelled"
            ),
            Self::NotBefore { at } => format!("not to be sent before {at}"),
            Self::OutsideHours {
                scope,
                name,
                window,
                opens_at,
            } => format!(
                "sending hours of the {} ({window}): opens at {opens_at}",
                subject(*scope, name)
            ),
            Self::OwnHours { window } => format!(
                "recipients wait for their own sending hours ({window}), or for the next attempt"
            ),
            Self::LimitAdapted { limit, rate, full } => {
                format!("{limit} has its limit adapted: {rate} of {full}; it climbs{until}")
            }
            Self::LimitSet { limit, rate, note } => {
                let set = match limit.limit {
                    LimitOf::TargetDaily | LimitOf::AppDaily => "daily limit set to",
                    LimitOf::Sender => "limit of each sender set to",
                    LimitOf::Target | LimitOf::App | LimitOf::Job | LimitOf::Shared => {
                        "rate set to"
                    }
                };
                format!("{limit} {set} {rate}{note}{until}")
            }
            Self::LimitReached { limit, rate } => match limit.limit {
                LimitOf::Shared => format!("{limit}: {rate}"),
                _ => format!("{limit} has the limit {rate}"),
            },
            Self::Spread {
                pace_until,
                left,
                per_second,
            } => format!(
                "spread evenly until {pace_until}: {left} recipient(s) are left, {}",
                speed(*per_second)
            ),
            Self::SlowCalls {
                target,
                calls,
                oldest_seconds,
            } => {
                let wait = if *calls == 1 {
                    "call waits"
                } else {
                    "calls wait"
                };
                format!("{calls} {wait} for {target}, the oldest for {oldest_seconds} s")
            }
            Self::NotTaken => {
                "accepted, and no worker has taken it yet: other jobs are before it".to_owned()
            }
            Self::NoOutcome {
                seconds,
                because,
                others,
            } => {
                let why = match because {
                    Because::NoAnswer => {
                        "its slices have places, and no call is answered".to_owned()
                    }
                    Because::NoPlace => format!("its slices wait for a place; {others}"),
                    Because::Retries => "retries wait for their time".to_owned(),
                    Because::RetriesOrLane => format!(
                        "retries wait for their time, or other jobs are before it on its lane; {others}"
                    ),
                };
                format!("no outcome for {seconds} s: {why}")
            }
            Self::SharesTarget {
                places,
                all,
                others,
            } => format!(
                "it shares the target with other jobs and has {places} of {all} places; {others}"
            ),
            Self::AnswerTime => {
                "only the time of the target's answers limits it: more calls in flight or more \
                 workers may help"
                    .to_owned()
            }
            Self::Repair(note) => format!(
                "repair ordered{note}; workers look for what is left of it and end it if they find \
                 nothing"
            ),
            Self::NoSign { minutes } => format!(
                "no sign of its slices for {minutes} min: they may be lost. `fanwise job repair` looks \
                 for them now; without it workers look after ledger.abandoned_after"
            ),
            Self::NoWorker => {
                "no worker is running: start `fanwise worker` or `fanwise serve`".to_owned()
            }
            Self::NoSession => "no worker has a session with the broker: see their logs, or run \
                                `fanwise doctor`"
                .to_owned(),
            Self::NotCut {
                lists,
                submissions,
                target,
            } => format!(
                "{lists} of its {submissions} list(s) are not cut into slices yet: they wait until \
                 target {target} is not parked or paused, and has room on its lanes"
            ),
        }
    }
}

/// How the reason of a job's park begins.
fn config_fault() -> String {
    format!("{} ", ParkReason::Config.as_str())
}

/// The report names the job already.
fn subject(scope: Scope, name: &str) -> String {
    match scope {
        Scope::Job => "job".to_owned(),
        Scope::Target | Scope::App | Scope::Shared => format!("{} {name}", scope.as_str()),
    }
}

/// `4.2/s`, `0.5/min`
fn speed(per_second: f64) -> String {
    match per_second {
        1.0.. => format!("{per_second:.1}/s"),
        per_second if per_second * 60.0 >= 1.0 => format!("{:.1}/min", per_second * 60.0),
        per_second => format!("{:.2}/h", per_second * 3600.0),
    }
}
