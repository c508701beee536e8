//! `fanwise job cancel`, `pause`, `resume` and `priority` for one job, or for all jobs of an app, a
//! target or a tag.

use std::io::IsTerminal as _;
use std::time::Duration;

use clap::Args;

use super::access::Access;
use super::control::{Words, tell};
use super::job::JobName;
use super::output::{self, grouped};
use crate::exit::{Exit, Failure};
use crate::service::control::{Command, ManyCommand, ManyResult, Selection};

/// One job, or a selection of jobs.
#[derive(Debug, Args)]
pub(super) struct JobsName {
    /// Job id, as `send` and `job list` print it, or the job's client_msg_no (see --app); without
    /// it, all jobs that match --app, --target and --tag and are not completed
    job: Option<String>,
    /// Jobs of this app; with a client_msg_no, the job's app [default: default]
    #[arg(short, long)]
    app: Option<String>,
    /// Jobs to this target
    #[arg(short, long, conflicts_with = "job")]
    target: Option<String>,
    /// Jobs with this tag
    #[arg(long, conflicts_with = "job")]
    tag: Option<String>,
    /// Do not ask before many jobs are changed
    #[arg(short, long, conflicts_with = "job")]
    yes: bool,
    /// Only count the jobs
    #[arg(short = 'n', long, conflicts_with_all = ["job", "yes"])]
    dry_run: bool,
}

/// Carries out a command for the job or the jobs that are named.
pub(super) async fn steer(
    access: &Access,
    name: JobsName,
    command: ManyCommand,
    words: &Words,
    expires_in: Option<Duration>,
) -> Result<Exit, Failure> {
    if let Some(job) = name.job {
        let id = JobName { job, app: name.app }.id(access).await?;
        return tell(access, Command::of(command, id), words, expires_in).await;
    }
    let selection = Selection {
        app: name.app,
        target: name.target,
        tag: name.tag,
    };
    if selection.is_empty() {
        let what = "name a job, or select jobs with --app, --target or --tag";
        return Err(Failure::message(Exit::Usage, what));
    }
    let note = words.note(expires_in);
    let dry_run = name.dry_run || !name.yes;
    let mut result = access
        .steer_many(command, &selection, &note, dry_run)
        .await?;
    if dry_run && !name.dry_run && result.changed > 0 {
        confirm(command, &selection, &result)?;
        result = access.steer_many(command, &selection, &note, false).await?;
    }
    match words.json {
        true => output::json(&result)?,
        false => output::line(line(command, &selection, &result, name.dry_run))?,
    }
    Ok(Exit::Ok)
}

fn confirm(command: ManyCommand, selection: &Selection, found: &ManyResult) -> Result<(), Failure> {
    let what = format!(
        "{} {} job(s) of {selection}, with {} recipient(s) to come",
        command.verb(),
        grouped(found.changed),
        grouped(found.pending)
    );
    let refused = |what| Err(Failure::message(Exit::Usage, what));
    if !std::io::stdin().is_terminal() {
        return refused(format!(
            "nothing was changed: this would {what}; confirm it with --yes"
        ));
    }
    match output::is_meant(&format!("this will {what}"))? {
        true => Ok(()),
        false => refused("nothing was changed: not confirmed".to_owned()),
    }
}

fn line(command: ManyCommand, selection: &Selection, result: &ManyResult, dry_run: bool) -> String {
    let done = match (command, dry_run) {
        (_, true) => "would change",
        (ManyCommand::Cancel, false) => "cancelled",
        (ManyCommand::Pause, false) => "paused",
        (ManyCommand::Resume, false) => "resumed",
        (ManyCommand::Priority(_), false) => "moved",
    };
    format!(
        "{done} {} of {} job(s) of {selection}, with {} recipient(s) to come",
        grouped(result.changed),
        grouped(result.matched),
        grouped(result.pending)
    )
}
