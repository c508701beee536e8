//! Steers jobs, apps and targets, reports about targets and limits, and finds out why a job does
//! not move.
//!
//! The command line and the HTTP interface both use this module, so there is one set of rules.
//! Directives are in the store, and workers look there twice a second.

mod hindrance;
mod view;

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::hindrance::{Cause, Hindrance, Reader, hindrances, stops};
pub use self::view::{
    DirectiveView, LimitView, ParkView, TargetState, TargetView, limits, targets,
};
use crate::domain::directive::{Action, Board, Directive, Kind, Scope, Subject};
use crate::domain::fields::suggestion;
use crate::domain::ids::JobId;
use crate::domain::job;
use crate::domain::limits::Rate;
use crate::domain::outcome::OnUncertain;
use crate::ports::{Directives, JobState, LedgerError, Park, ParkReason, Store};

/// The text for the configured rate.
pub const CONFIGURED: &str = "default";

/// The configuration of the targets and apps that can be steered.
#[derive(Clone, Debug)]
pub struct Facts {
    pub targets: BTreeMap<String, TargetFacts>,
    /// Apps with their limits.
    pub apps: BTreeMap<String, Option<Rate>>,
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
    pub recipients_per_call: usize,
    pub on_uncertain: OnUncertain,
}

/// One command of an operator.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    Pause(Subject),
    /// Ends a pause.
    Resume(Subject),
    Cancel(JobId),
    /// Sets another rate, or the configured one again.
    Rate(Subject, Option<Rate>),
    Park(String),
    Unpark(String),
}

impl Command {
    pub fn subject(&self) -> Subject {
        match self {
            Self::Pause(subject) | Self::Resume(subject) | Self::Rate(subject, _) => {
                subject.clone()
            }
            Self::Cancel(job) => Subject::new(Scope::Job, job.to_string()),
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
            Self::Park(_) => "park",
            Self::Unpark(_) => "unpark",
        }
    }
}

/// The author of a command, its reason, and its duration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirectiveNote {
    pub reason: Option<String>,
    pub author: Option<String>,
    pub expires_in: Option<Duration>,
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
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

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
    let before = board(store).await?;
    check(store, facts, command, &before, now_ms).await?;
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
        Command::Rate(_, Some(rate)) => {
            let rate = Action::Rate { rate: *rate };
            store.direct(&directive(rate, until_ms)).await?;
            // The operator knows which rate the target takes.
            store.lift(&subject, Kind::Adapt).await?;
            true
        }
        Command::Resume(_) => {
            let paused = store.lift(&subject, Kind::Pause).await?;
            // A job that met a configuration fault is tried again.
            store.lift(&subject, Kind::Park).await? || paused
        }
        Command::Rate(_, None) => {
            let adapted = store.lift(&subject, Kind::Adapt).await?;
            store.lift(&subject, Kind::Rate).await? || adapted
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
    let directives = board(store).await?;
    let directives = directives.about(subject.scope, &subject.name, now_ms);
    Ok(ControlResult {
        changed,
        directives: directives.cloned().map(DirectiveView::from).collect(),
        parked: park_of(store, &subject).await?.map(ParkView::from),
        subject,
    })
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

/// Whether the subject of the command exists, and whether the command is still possible.
async fn check<S: Store>(
    store: &S,
    facts: &Facts,
    command: &Command,
    board: &Board,
    now_ms: u64,
) -> Result<(), ControlError> {
    let Subject { scope, name } = command.subject();
    match scope {
        Scope::Target => known("target", &name, facts.targets.keys()),
        Scope::App => known("app", &name, facts.apps.keys()),
        Scope::Job => {
            let id: Result<JobId, _> = name.parse();
            let id = id.map_err(|error| ControlError::Unknown(error.to_string()))?;
            let record = store.job(id).await?;
            let record =
                record.ok_or_else(|| ControlError::Unknown(job::unknown(&id.to_string())))?;
            if record.state == JobState::Completed {
                return Err(ControlError::TooLate(format!("job {id} is completed")));
            }
            let cancelled = board.find(Scope::Job, &name, Kind::Cancel, now_ms);
            match cancelled.filter(|_| !matches!(command, Command::Cancel(_))) {
                Some(cancelled) => Err(ControlError::TooLate(format!("job {id} was {cancelled}"))),
                None => Ok(()),
            }
        }
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
            limit: Some("100/s".parse().unwrap()),
            recipients_per_call: 1,
            on_uncertain: OnUncertain::Retry,
        };
        Facts {
            targets: [("im".to_owned(), im)].into(),
            apps: [("shop".to_owned(), None)].into(),
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
