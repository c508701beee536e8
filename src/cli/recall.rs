//! `fanwise job recall`: takes the messages of a job back, where its target can do so.

use std::io::IsTerminal as _;
use std::time::Duration;

use clap::Args;

use super::access::Access;
use super::control::Words;
use super::job::JobName;
use super::output::{self, grouped};
use super::progress::Interrupt;
use crate::exit::{Exit, Failure};
use crate::service::api::{RecallRequest, RecallResult};

#[derive(Debug, Args)]
pub(super) struct RecallArgs {
    #[command(flatten)]
    name: JobName,
    /// Only count what would be recalled
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Recall without asking
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    words: Words,
}

/// Longest wait between two requests, when the target asks to wait.
const PAUSE_MAX: Duration = Duration::from_secs(60);

pub(super) async fn run(access: &Access, args: &RecallArgs) -> Result<Exit, Failure> {
    let id = args.name.id(access).await?;
    let note = args.words.note(None);
    let request = |dry_run| RecallRequest {
        dry_run,
        confirm: !dry_run,
        reason: note.reason.clone(),
        author: note.author.clone(),
    };
    let mut result = access.recall(id, &request(true)).await?;
    if args.dry_run || result.left == 0 {
        return told(args, &result);
    }
    confirm(args, &result)?;
    let mut interrupt = Interrupt::watch()?;
    let goes_on = || format!("interrupted; fanwise job recall {id} goes on where this ended");
    while result.left > 0 {
        let before = result.left;
        let order = request(false);
        let recalled = access.recall(id, &order);
        result = interrupt.or(recalled, goes_on).await?;
        if result.left == before && result.retry_after_seconds.is_none() {
            break;
        }
        if result.left > 0 {
            tracing::info!("{}", line(&result));
        }
        if let Some(seconds) = result.retry_after_seconds {
            let pause = Duration::from_secs(seconds).min(PAUSE_MAX);
            let pause = async {
                tokio::time::sleep(pause).await;
                Ok(())
            };
            interrupt.or(pause, goes_on).await?;
        }
    }
    told(args, &result)
}

fn confirm(args: &RecallArgs, result: &RecallResult) -> Result<(), Failure> {
    let refused = |what| Err(Failure::message(Exit::Usage, what));
    if args.yes {
        return Ok(());
    }
    let what = format!(
        "this takes {} message(s) of job {} back from their recipients, and cannot be undone",
        grouped(result.left),
        result.job
    );
    if !std::io::stdin().is_terminal() {
        return refused(format!(
            "nothing was recalled: {what}; confirm it with --yes"
        ));
    }
    match output::is_meant(&what)? {
        true => Ok(()),
        false => refused("nothing was recalled: not confirmed".to_owned()),
    }
}

fn told(args: &RecallArgs, result: &RecallResult) -> Result<Exit, Failure> {
    if args.words.json {
        output::json(result)?;
    } else {
        output::line(line(result))?;
    }
    if let Some(stopped) = &result.stopped {
        return Err(Failure::message(Exit::Temporary, stopped.clone()));
    }
    let whole = args.dry_run || result.recalled == result.messages && result.without_id == 0;
    Ok(if whole { Exit::Ok } else { Exit::NotAll })
}

fn line(result: &RecallResult) -> String {
    let mut line = format!(
        "{} of {} message(s) recalled",
        grouped(result.recalled),
        grouped(result.messages)
    );
    for (count, what) in [
        (result.refused, "cannot be recalled"),
        (result.elsewhere, "at a target that recalls none"),
        (result.left, "left"),
        (result.without_id, "without an id, not recalled"),
    ] {
        if count > 0 {
            line.push_str(&format!(", {} {what}", grouped(count)));
        }
    }
    line
}
