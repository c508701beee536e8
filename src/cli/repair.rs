//! `fanwise job repair`: has workers look for what is left of a job.

use clap::Args;
use serde_json::json;

use super::access::Access;
use super::control::{Words, tell};
use super::job::{JobName, unknown};
use super::output::{self, grouped};
use super::when;
use crate::exit::{Exit, Failure};
use crate::ports::JobState;
use crate::service::control::Command;

#[derive(Debug, Args)]
pub(super) struct RepairArgs {
    #[command(flatten)]
    name: JobName,
    /// Show what is known of the job, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    words: Words,
}

pub(super) async fn run(access: &Access, args: &RepairArgs) -> Result<Exit, Failure> {
    let id = args.name.id(access).await?;
    if !args.dry_run {
        return tell(access, Command::Repair(id), &args.words, None).await;
    }
    let detail = access.detail(id).await?;
    let verified = access.verify(id).await?;
    let (Some(detail), Some(verified)) = (detail, verified) else {
        return Err(unknown(&args.name, id));
    };
    let (job, claimed) = (&detail.record, verified.ledger.claimed);
    let open = job.state != JobState::Completed;
    if args.words.json {
        output::json(&json!({
            "dry_run": true, "job": job.job, "state": job.state, "pending": job.pending,
            "claimed": claimed, "hindrances": detail.hindrances, "possible": open,
        }))?;
        return Ok(Exit::Ok);
    }
    output::line(format!("job            {}", job.job))?;
    output::line(format!("state          {}", job.state.as_str()))?;
    output::line(format!(
        "pending        {} of {}, {} of them claimed",
        grouped(job.pending),
        grouped(job.accounts.total),
        grouped(claimed)
    ))?;
    if let Some(at) = job.progress_at_ms {
        output::line(format!("last progress  {}", when::both(at)))?;
    }
    for hindrance in &detail.hindrances {
        output::line(format!("hindered by    {}", hindrance.what))?;
    }
    output::line(match open {
        true => {
            "a repair would bring back what waits for a retry, and end the job if no slice of it is found"
        }
        false => "the job is completed: there is nothing to repair",
    })?;
    Ok(Exit::Ok)
}
