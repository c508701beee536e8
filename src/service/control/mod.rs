//! Steers jobs, apps and targets, reports about targets and limits, and finds out why a job does
//! not move.
//!
//! The command line and the HTTP interface both use this module, so there is one set of rules.
//! Directives are in the store, and workers look there twice a second.

mod hindrance;
mod limits;
mod many;
mod times;
mod view;

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::hindrance::{Cause, Detail, Hindrance, LimitName, Reader, hindrances, stops};
pub use self::limits::{InForce, LimitedJob, in_force};
pub use self::many::{ManyCommand, ManyResult, Selection, carry_out_many};
pub use self::times::{end_text, end_time, pace_text, pace_time, start_time};
pub use self::view::{
    DirectiveView, LimitView, ParkView, TargetState, TargetView, limits, targets,
};
use crate::domain::cost::Prices;
use crate::domain::directive::{Action, Board, Directive, Kind, Scope, Subject};
use crate::domain::fields::{Problem, suggestion};
use crate::domain::ids::JobId;
use crate::domain::job;
use crate::domain::job_limits::{LimitKind, LimitOf};
use crate::domain::lane::Priority;
use crate::domain::limits::Rate;
use crate::domain::moment;
use crate::domain::outcome::OnUncertain;
use crate::domain::trail::{AUTHOR_BYTES_MAX, Origin, REASON_BYTES_MAX, TrailEntry, bounded};
use crate::domain::window::Window;
use crate::ports::{Directives, JobRecord, JobState, LedgerError, Park, ParkReason, Store};
use crate::service::dead_letters::{ResolveAs, Resolved};

/// The text for the configured rate.
pub const CONFIGURED: &str = "default";

/// The configuration of the targets and apps that can be steered.
#[derive(Clone, Debug)]
pub struct Facts {
    pub targets: BTreeMap<String, TargetFacts>,
    /// Apps with their limits.
    pub apps: BTreeMap<String, Option<Rate>>,
    /// Apps with a limit a day.
    pub daily_limits: BTreeMap<String, Rate>,
    /// The limits that several targets can have together.
    pub shared_limits: BTreeMap<String, Rate>,
    /// Apps with sending hours.
    pub windows: BTreeMap<String, Window>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TargetFacts {
    /// The IM system.
    #[serde(rename = "type")]
    pub system: String,
    /// `host:port`, if its URL contains them.
    pub address: Option<String>,
    /// The configured limit.
    pub limit: Option<Rate>,
    /// A second limit, a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daily_limit: Option<Rate>,
    /// The limit of each sender.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender_limit: Option<Rate>,
    /// The limit that it has together with other targets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_limit: Option<SharedLimit>,
    /// The sender of jobs that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
    pub recipients_per_call: usize,
    pub on_uncertain: OnUncertain,
    /// What a message costs in units of its limits.
    #[serde(skip)]
    pub prices: Prices,
}

/// A limit that several targets have together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SharedLimit {
    pub name: String,
    pub rate: Rate,
}

/// One command of an operator.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    Pause(Subject),
    /// Ends a pause.
    Resume(Subject),
    Cancel(JobId),
    /// Sets another rate for one of the limits, or the configured one again.
    Rate(Subject, LimitKind, Option<Rate>),
    Priority(JobId, Priority),
    /// Moves the start of a job.
    Schedule(JobId, u64),
    /// Sets another time at which a job expires, or none.
    Deadline(JobId, Option<u64>),
    /// Spreads a job until another time, or not at all. A rate that was set for the job ends with it.
    Pace(JobId, Option<u64>),
    /// Looks for what is left of a job, and ends it if nothing is.
    Repair(JobId),
    Park(String),
    Unpark(String),
}

impl Command {
    /// The command for one job.
    pub fn of(many: ManyCommand, job: JobId) -> Self {
        let subject = Subject::new(Scope::Job, job.to_string());
        match many {
            ManyCommand::Cancel => Self::Cancel(job),
            ManyCommand::Pause => Self::Pause(subject),
            ManyCommand::Resume => Self::Resume(subject),
            ManyCommand::Priority(priority) => Self::Priority(job, priority),
        }
    }

    pub fn subject(&self) -> Subject {
        match self {
            Self::Pause(subject) | Self::Resume(subject) | Self::Rate(subject, ..) => {
                subject.clone()
            }
            Self::Cancel(job)
            | Self::Priority(job, _)
            | Self::Schedule(job, _)
            | Self::Deadline(job, _)
            | Self::Pace(job, _)
            | Self::Repair(job) => Subject::new(Scope::Job, job.to_string()),
            Self::Park(target) | Self::Unpark(target) => Subject::new(Scope::Target, target),
        }
    }

    /// The verb in a path: `POST /v1/jobs/{id}:pause`.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Pause(_) => "pause",
            Self::Resume(_) => "resume",
            Self::Cancel(_) => "cancel",
            Self::Rate(..) => "rate",
            Self::Priority(..) => "priority",
            Self::Schedule(..) => "schedule",
            Self::Deadline(..) => "deadline",
            Self::Pace(..) => "pace",
            Self::Repair(_) => "repair",
            Self::Park(_) => "park",
            Self::Unpark(_) => "unpark",
        }
    }

    /// The new value, for the audit trail.
    fn detail(&self) -> Option<String> {
        match self {
            Self::Rate(_, _, rate) => {
                Some(rate.map_or_else(|| CONFIGURED.to_owned(), |it| it.to_string()))
            }
            Self::Priority(_, priority) => Some(priority.as_str().to_owned()),
            Self::Schedule(_, at) => Some(moment::text(*at)),
            Self::Deadline(_, at) => Some(end_text(*at)),
            Self::Pace(_, at) => Some(pace_text(*at)),
            Self::Pause(_)
            | Self::Resume(_)
            | Self::Cancel(_)
            | Self::Repair(_)
            | Self::Park(_)
            | Self::Unpark(_) => None,
        }
    }

    /// The value that replaces the job's own.
    fn change(&self) -> Option<Action> {
        match self {
            Self::Priority(_, priority) => Some(Action::Priority {
                priority: *priority,
            }),
            Self::Schedule(_, at) => Some(Action::Schedule { not_before_ms: *at }),
            Self::Deadline(_, at) => Some(Action::Deadline { expires_at_ms: *at }),
            Self::Pace(_, at) => Some(Action::Pace { pace_until_ms: *at }),
            _ => None,
        }
    }
}

/// The author of a command, its reason, and its duration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirectiveNote {
    pub reason: Option<String>,
    pub author: Option<String>,
    pub expires_in: Option<Duration>,
    pub origin: Origin,
}

impl DirectiveNote {
    /// The same note, with texts that are bounded and safe to show.
    fn bounded(&self) -> Self {
        let text = |text: &Option<String>, most| text.as_deref().map(|it| bounded(it, most));
        Self {
            reason: text(&self.reason, REASON_BYTES_MAX),
            author: text(&self.author, AUTHOR_BYTES_MAX),
            ..self.clone()
        }
    }

    fn entry(&self, action: &str, detail: Option<String>, now_ms: u64) -> TrailEntry {
        TrailEntry {
            at_ms: now_ms,
            action: action.to_owned(),
            detail,
            author: self.author.clone(),
            reason: self.reason.clone(),
            origin: self.origin.clone(),
        }
    }
}

/// The state after a command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ControlResult {
    #[serde(flatten)]
    pub subject: Subject,
    /// False if there was nothing to change: nothing was paused, parked or set that could be ended.
    pub changed: bool,
    pub directives: Vec<DirectiveView>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parked: Option<ParkView>,
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("{0}")]
    Unknown(String),
    /// The job exists, but it is too late for the command.
    #[error("{0}")]
    TooLate(String),
    /// The command itself makes no sense.
    #[error("{0}")]
    Wrong(Problem),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

const DAY_MS: u64 = 24 * 3600 * 1000;

/// How long workers look for what is left of a job.
const REPAIR_LASTS: Duration = Duration::from_secs(3600);

/// How long a target is parked if the command does not say.
const PARK_DEFAULT: Duration = Duration::from_secs(600);

/// Carries out a command, and returns the state after it.
pub async fn carry_out<S: Store>(
    store: &S,
    facts: &Facts,
    command: &Command,
    note: &DirectiveNote,
    now_ms: u64,
) -> Result<ControlResult, ControlError> {
    let subject = command.subject();
    let note = &note.bounded();
    let before = board(store).await?;
    let job = check(store, facts, command, &before, now_ms).await?;
    let directive = |action, until_ms| Directive {
        subject: subject.clone(),
        action,
        reason: note.reason.clone(),
        author: note.author.clone(),
        since_ms: now_ms,
        until_ms,
    };
    let after = |wait: Duration| now_ms.saturating_add(wait.as_millis() as u64);
    let until_ms = note.expires_in.map(after);
    let changed = match command {
        Command::Pause(_) => {
            store.direct(&directive(Action::Pause, until_ms)).await?;
            true
        }
        Command::Cancel(_) => {
            // Without an end: a worker lifts it when the ledger has forgotten the job.
            store.direct(&directive(Action::Cancel, None)).await?;
            true
        }
        Command::Repair(_) => {
            let until_ms = Some(after(REPAIR_LASTS));
            store.direct(&directive(Action::Repair, until_ms)).await?;
            true
        }
        Command::Rate(_, kind, Some(rate)) => {
            let action = Action::limit(*kind, *rate);
            store.direct(&directive(action, until_ms)).await?;
            if kind.is_main() {
                // The operator knows which rate the target takes.
                store.lift(&subject, Kind::Adapt).await?;
            }
            true
        }
        Command::Priority(..)
        | Command::Schedule(..)
        | Command::Deadline(..)
        | Command::Pace(..) => {
            if let (Some(record), Some(change)) = (&job, command.change()) {
                store.amend(record.job, &change).await?;
                store.direct(&directive(change, None)).await?;
            }
            if let Command::Pace(_, Some(_)) = command {
                // It would apply instead of the pace.
                store.lift(&subject, Kind::Rate).await?;
            }
            true
        }
        Command::Resume(_) => {
            let paused = store.lift(&subject, Kind::Pause).await?;
            // A job that met a configuration fault is tried again.
            store.lift(&subject, Kind::Park).await? || paused
        }
        Command::Rate(_, kind, None) => {
            let adapted = kind.is_main() && store.lift(&subject, Kind::Adapt).await?;
            store.lift(&subject, kind.directive()).await? || adapted
        }
        Command::Park(target) => {
            let park = Park {
                since_ms: now_ms,
                until_ms: after(note.expires_in.unwrap_or(PARK_DEFAULT)),
                reason: ParkReason::Operator,
                code: String::new(),
                text: by(note),
            };
            store.park(target, &park).await?;
            true
        }
        Command::Unpark(target) => {
            let parked = park_of(store, &subject).await?.is_some();
            store.unpark(target).await?;
            unpark_jobs(store, &before, target, now_ms).await? || parked
        }
    };
    if let Some(record) = &job {
        let entry = note.entry(command.verb(), command.detail(), now_ms);
        store.note(&[record.job], &entry).await?;
    }
    let directives = board(store).await?;
    let directives = directives.about(subject.scope, &subject.name, now_ms);
    Ok(ControlResult {
        changed,
        directives: directives.cloned().map(DirectiveView::from).collect(),
        parked: park_of(store, &subject).await?.map(ParkView::from),
        subject,
    })
}

/// Notes in the audit trail of a job that uncertain recipients were resolved.
pub async fn note_resolved<S: Store>(
    store: &S,
    record: &JobRecord,
    to: ResolveAs,
    resolved: &Resolved,
    note: &DirectiveNote,
    now_ms: u64,
) -> Result<(), LedgerError> {
    let detail = format!(
        "{} of {} recipient(s) as {}",
        resolved.changed,
        resolved.recipients,
        to.as_str()
    );
    let entry = note.bounded().entry("resolve", Some(detail), now_ms);
    store.note(&[record.job], &entry).await
}

/// Notes a recall of the messages of a job in its audit trail.
pub async fn note_recall<S: Store>(
    store: &S,
    record: &JobRecord,
    detail: String,
    note: &DirectiveNote,
    now_ms: u64,
) -> Result<(), LedgerError> {
    let entry = note.bounded().entry("recall", Some(detail), now_ms);
    store.note(&[record.job], &entry).await
}

/// The target is to work again, so the jobs that met its configuration fault are tried again too.
async fn unpark_jobs<S: Store>(
    store: &S,
    board: &Board,
    target: &str,
    now_ms: u64,
) -> Result<bool, LedgerError> {
    let mut any = false;
    for (park, ..) in board.parked_jobs(target, now_ms) {
        any |= store.lift(&park.subject, Kind::Park).await?;
    }
    Ok(any)
}

/// `ana: backend is being moved`
fn by(note: &DirectiveNote) -> String {
    let parts = [&note.author, &note.reason].into_iter().flatten();
    parts.cloned().collect::<Vec<_>>().join(": ")
}

/// Whether the subject of the command exists, and whether the command is still possible. Returns the
/// record of a job.
async fn check<S: Store>(
    store: &S,
    facts: &Facts,
    command: &Command,
    board: &Board,
    now_ms: u64,
) -> Result<Option<JobRecord>, ControlError> {
    let Subject { scope, name } = command.subject();
    check_limit(command, scope).map_err(ControlError::Wrong)?;
    match scope {
        Scope::Shared => known("shared limit", &name, facts.shared_limits.keys()).map(|()| None),
        Scope::Target => known("target", &name, facts.targets.keys()).map(|()| None),
        Scope::App => known("app", &name, facts.apps.keys()).map(|()| None),
        Scope::Job => {
            let id: Result<JobId, _> = name.parse();
            let id = id.map_err(|error| ControlError::Unknown(error.to_string()))?;
            let record = store.job(id).await?;
            let record =
                record.ok_or_else(|| ControlError::Unknown(job::unknown(&id.to_string())))?;
            if record.state == JobState::Completed {
                let advice = match record.lost_are_unsent() {
                    true => "; submit it again to send to the recipients that have no outcome",
                    false => "",
                };
                return Err(ControlError::TooLate(format!(
                    "job {id} is completed{advice}"
                )));
            }
            let cancelled = board.find(Scope::Job, &name, Kind::Cancel, now_ms);
            let may_follow = matches!(command, Command::Cancel(_) | Command::Repair(_));
            match cancelled.filter(|_| !may_follow) {
                Some(cancelled) => Err(ControlError::TooLate(format!("job {id} was {cancelled}"))),
                None => {
                    let set = board.rate_set(LimitOf::Job, &name, now_ms);
                    let record = match set {
                        // The rate applies instead of the pace.
                        Some(_) => JobRecord {
                            pace_until_ms: None,
                            ..record
                        },
                        None => record,
                    };
                    check_times(command, &record, now_ms).map_err(ControlError::Wrong)?;
                    Ok(Some(record))
                }
            }
        }
    }
}

/// Whether there is such a limit, and whether it can have this rate.
fn check_limit(command: &Command, scope: Scope) -> Result<(), Problem> {
    let Command::Rate(_, kind, rate) = command else {
        return Ok(());
    };
    if LimitOf::new(scope, *kind).is_none() {
        let what = format!(
            "{:?} is a limit that no {} has: \"daily\" is one of targets and apps, \"sender\" of targets",
            kind.as_str(),
            scope.as_str()
        );
        return Err(Problem::new("kind", what));
    }
    match rate {
        Some(rate) if *kind == LimitKind::Daily && !rate.is_daily() => {
            let what = format!("a rate a day such as \"100000/day\" is expected, not \"{rate}\"");
            Err(Problem::new("rate", what))
        }
        _ => Ok(()),
    }
}

/// Whether the job can still reach a recipient after the command.
fn check_times(command: &Command, record: &JobRecord, now_ms: u64) -> Result<(), Problem> {
    match *command {
        Command::Deadline(_, Some(at)) if at <= now_ms => {
            let what = format!("{} has passed; cancel the job instead", moment::text(at));
            Err(Problem::new("expires_at", what))
        }
        Command::Deadline(_, Some(at)) if record.not_before_ms >= Some(at) => {
            let start = record.not_before_ms.map_or_else(String::new, moment::text);
            let what = format!("{} is not after the start, {start}", moment::text(at));
            Err(Problem::new("expires_at", what))
        }
        Command::Pace(_, Some(at)) if at <= now_ms => {
            let what = format!(
                "{} has passed; \"none\" sends as fast as the limits allow",
                moment::text(at)
            );
            Err(Problem::new("pace_until", what))
        }
        Command::Pace(_, Some(at))
            if at.saturating_sub(now_ms.max(record.not_before_ms.unwrap_or(0)))
                > job::PACE_DAYS_MAX * DAY_MS =>
        {
            let days = job::PACE_DAYS_MAX;
            let what = format!("{} is more than {days} days away", moment::text(at));
            Err(Problem::new("pace_until", what))
        }
        Command::Pace(_, Some(at)) if record.not_before_ms >= Some(at) => {
            let start = record.not_before_ms.map_or_else(String::new, moment::text);
            let what = format!("{} is not after the start, {start}", moment::text(at));
            Err(Problem::new("pace_until", what))
        }
        Command::Pace(_, Some(at)) if record.expires_at_ms.is_some_and(|end| at > end) => {
            let end = record.expires_at_ms.map_or_else(String::new, moment::text);
            let what = format!("{} is after the deadline, {end}", moment::text(at));
            Err(Problem::new("pace_until", what))
        }
        Command::Schedule(_, at) if record.pace_until_ms.is_some_and(|end| at >= end) => {
            let end = record.pace_until_ms.map_or_else(String::new, moment::text);
            let what = format!(
                "{} is not before {end}, until when the recipients are spread; move that first, or set a \
                 rate, which applies instead",
                moment::text(at)
            );
            Err(Problem::new("not_before", what))
        }
        Command::Schedule(_, at) if record.expires_at_ms.is_some_and(|end| at >= end) => {
            let end = record.expires_at_ms.map_or_else(String::new, moment::text);
            let what = format!("{} is not before the deadline, {end}", moment::text(at));
            Err(Problem::new("not_before", what))
        }
        _ => Ok(()),
    }
}

fn known<'a>(
    what: &str,
    name: &str,
    names: impl Iterator<Item = &'a String> + Clone,
) -> Result<(), ControlError> {
    if names.clone().any(|known| known == name) {
        return Ok(());
    }
    let hint = suggestion(name, names.clone().map(String::as_str))
        .map(|close| format!("; did you mean {close:?}?"))
        .unwrap_or_else(|| ".".to_owned());
    let names: Vec<_> = names.map(String::as_str).collect();
    Err(ControlError::Unknown(format!(
        "there is no {what} {name:?}{hint} There are: {}",
        names.join(", ")
    )))
}

/// All directives in force, by their subject.
pub async fn directives(
    store: &impl Directives,
    now_ms: u64,
) -> Result<Vec<DirectiveView>, LedgerError> {
    let board = board(store).await?;
    let mut all: Vec<_> = board
        .all(now_ms)
        .cloned()
        .map(DirectiveView::from)
        .collect();
    all.sort_by(|a, b| a.subject.cmp(&b.subject));
    Ok(all)
}

/// All current directives.
pub async fn board(store: &impl Directives) -> Result<Board, LedgerError> {
    let directed = store.directives(0).await?.unwrap_or_default();
    Ok(Board::new(directed.all))
}

async fn park_of<S: Store>(store: &S, subject: &Subject) -> Result<Option<Park>, LedgerError> {
    if subject.scope != Scope::Target {
        return Ok(None);
    }
    let parked = store.parked(std::slice::from_ref(&subject.name)).await?;
    Ok(parked.into_iter().next().map(|(_, park)| park))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn facts() -> Facts {
        let im = TargetFacts {
            system: "wukongim".to_owned(),
            address: None,
            daily_limit: None,
            sender_limit: None,
            shared_limit: None,
            sender: None,
            limit: Some("100/s".parse().unwrap()),
            recipients_per_call: 1,
            on_uncertain: OnUncertain::Retry,
            prices: Prices::default(),
        };
        Facts {
            targets: [("im".to_owned(), im)].into(),
            apps: [("shop".to_owned(), None)].into(),
            daily_limits: BTreeMap::new(),
            shared_limits: BTreeMap::new(),
            windows: [("night".to_owned(), "00:10-00:20 UTC".parse().unwrap())].into(),
        }
    }

    #[test]
    fn a_name_that_is_not_known_is_refused_with_those_that_are() {
        let error = known("target", "imm", facts().targets.keys()).unwrap_err();
        let text = "there is no target \"imm\"; did you mean \"im\"? There are: im";
        assert_eq!(error.to_string(), text);
        let error = known("app", "q", facts().apps.keys()).unwrap_err();
        assert_eq!(error.to_string(), "there is no app \"q\". There are: shop");
    }
}
