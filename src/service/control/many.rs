//! Steers many jobs with one command: all that match an app, a target or a tag.
//!
//! The command reaches the jobs that are accepted when it is carried out, not later ones. Each of
//! them gets a directive and an entry in its audit trail of its own, so that afterwards it is steered
//! and shown like any other job.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ControlError, DirectiveNote, Facts, board, known};
use crate::domain::directive::{Action, Board, Directive, Kind, Scope, Subject};
use crate::domain::fields::Problem;
use crate::domain::ids::JobId;
use crate::domain::lane::Priority;
use crate::ports::{JobRecord, Store};

/// Jobs that one step changes.
const AT_ONCE: usize = 100;

/// Jobs that an answer names.
const NAMED_MAX: usize = 100;

/// Selects jobs that are not completed. A job must match every field that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    pub app: Option<String>,
    pub target: Option<String>,
    pub tag: Option<String>,
}

impl Selection {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn takes(&self, record: &JobRecord) -> bool {
        let is = |wanted: &Option<String>, is: &String| wanted.as_ref().is_none_or(|it| it == is);
        is(&self.app, &record.app)
            && is(&self.target, &record.target)
            && (self.tag.as_ref()).is_none_or(|tag| record.tags.contains(tag))
    }
}

/// `app shop, tag spring`
impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = [
            ("app", &self.app),
            ("target", &self.target),
            ("tag", &self.tag),
        ];
        let named = fields
            .iter()
            .filter_map(|(name, value)| Some(format!("{name} {}", value.as_ref()?)));
        f.write_str(&named.collect::<Vec<_>>().join(", "))
    }
}

/// What to do with the selected jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManyCommand {
    Cancel,
    Pause,
    Resume,
    Priority(Priority),
}

impl ManyCommand {
    pub fn verb(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Priority(_) => "priority",
        }
    }

    fn action(self) -> Option<Action> {
        match self {
            Self::Cancel => Some(Action::Cancel),
            Self::Pause => Some(Action::Pause),
            Self::Resume => None,
            Self::Priority(priority) => Some(Action::Priority { priority }),
        }
    }

    /// Whether the command changes a job. A cancelled job cannot be changed any more.
    fn changes(self, record: &JobRecord, board: &Board, now_ms: u64) -> bool {
        let job = record.job.to_string();
        let has = |kind| board.find(Scope::Job, &job, kind, now_ms).is_some();
        !has(Kind::Cancel)
            && match self {
                Self::Cancel => true,
                Self::Pause => !has(Kind::Pause),
                Self::Resume => has(Kind::Pause) || has(Kind::Park),
                Self::Priority(priority) => record.priority != Some(priority),
            }
    }
}

/// What a command did, or would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ManyResult {
    /// Nothing was changed: the request was a dry run.
    pub dry_run: bool,
    /// The selected jobs that are not completed.
    pub matched: u64,
    /// Those that the command changed. The others were cancelled or paused before, or had nothing to
    /// resume.
    pub changed: u64,
    /// The recipients without an outcome of the changed jobs.
    pub pending: u64,
    /// The first 100 of the changed jobs.
    #[schemars(with = "Vec<String>")]
    pub jobs: Vec<JobId>,
}

/// Carries out a command for every selected job. If it fails half-way, repeating it is right.
pub async fn carry_out_many<S: Store>(
    store: &S,
    facts: &Facts,
    command: ManyCommand,
    selection: &Selection,
    note: &DirectiveNote,
    dry_run: bool,
    now_ms: u64,
) -> Result<ManyResult, ControlError> {
    if selection.is_empty() {
        let what = "an app, a target or a tag is expected";
        return Err(ControlError::Wrong(Problem::new("", what)));
    }
    if let Some(app) = &selection.app {
        known("app", app, facts.apps.keys())?;
    }
    if let Some(target) = &selection.target {
        known("target", target, facts.targets.keys())?;
    }
    let board = board(store).await?;
    let mut result = ManyResult {
        dry_run,
        matched: 0,
        changed: 0,
        pending: 0,
        jobs: Vec::new(),
    };
    let mut found = Vec::new();
    let visit = |record: &JobRecord| {
        if selection.takes(record) {
            result.matched += 1;
            if command.changes(record, &board, now_ms) {
                result.changed += 1;
                result.pending += record.pending;
                found.push(record.job);
            }
        }
    };
    store.each_open(visit).await?;
    result.jobs = found.iter().take(NAMED_MAX).copied().collect();
    if !dry_run {
        let note = note.bounded();
        for jobs in found.chunks(AT_ONCE) {
            change(store, command, selection, &note, jobs, now_ms).await?;
        }
    }
    Ok(result)
}

async fn change<S: Store>(
    store: &S,
    command: ManyCommand,
    selection: &Selection,
    note: &DirectiveNote,
    jobs: &[JobId],
    now_ms: u64,
) -> Result<(), ControlError> {
    let subjects = jobs
        .iter()
        .map(|job| Subject::new(Scope::Job, job.to_string()));
    let Some(action) = command.action() else {
        let kinds = [Kind::Pause, Kind::Park];
        let all = subjects.flat_map(|it| kinds.map(|kind| (it.clone(), kind)));
        store.lift_all(&all.collect::<Vec<_>>()).await?;
        return told(store, command, selection, note, jobs, now_ms).await;
    };
    if let Action::Priority { .. } = action {
        for job in jobs {
            store.amend(*job, &action).await?;
        }
    }
    // A cancelled job stays cancelled: a worker lifts it when the ledger has forgotten the job.
    let lasts = note.expires_in.filter(|_| action == Action::Pause);
    let until_ms = lasts.map(|it| now_ms.saturating_add(it.as_millis() as u64));
    let directives = subjects.map(|subject| Directive {
        subject,
        action: action.clone(),
        reason: note.reason.clone(),
        author: note.author.clone(),
        since_ms: now_ms,
        until_ms,
    });
    store.direct_all(&directives.collect::<Vec<_>>()).await?;
    told(store, command, selection, note, jobs, now_ms).await
}

/// Notes the command in the audit trail of each job.
async fn told<S: Store>(
    store: &S,
    command: ManyCommand,
    selection: &Selection,
    note: &DirectiveNote,
    jobs: &[JobId],
    now_ms: u64,
) -> Result<(), ControlError> {
    let mut detail = format!("all of {selection}");
    if let ManyCommand::Priority(priority) = command {
        detail = format!("{} for {detail}", priority.as_str());
    }
    let entry = note.entry(command.verb(), Some(detail), now_ms);
    Ok(store.note(jobs, &entry).await?)
}
