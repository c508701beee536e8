//! `fanwise job list`, `show`, `watch` and `verify`; `pause`, `resume`, `cancel` and `rate`.

use std::path::PathBuf;

use clap::Subcommand;
use serde::Serialize;
use serde_json::json;

use super::access::Access;
use super::output::grouped;
use super::steer::{Expiry, Words, parse_rate, tell};
use super::{checked_config, output, progress};
use crate::domain::directive::{Scope, Subject};
use crate::domain::ids::JobId;
use crate::exit::{Exit, Failure};
use crate::gateway::Verification;
use crate::ports::{JobRecord, JobState};
use crate::steer::{Command, Hindrance};
use crate::worker::rfc3339;

#[derive(Debug, Subcommand)]
pub(super) enum JobCommand {
    /// The newest jobs
    List {
        /// How many
        #[arg(long, default_value_t = 20)]
        most: usize,
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// One job with its accounts
    Show(JobArgs),
    /// Follow a job until it is completed
    Watch(JobArgs),
    /// Send nothing of this job until it is resumed
    Pause {
        #[command(flatten)]
        name: JobName,
        #[command(flatten)]
        expiry: Expiry,
        #[command(flatten)]
        words: Words,
    },
    /// Go on with this job
    Resume {
        #[command(flatten)]
        name: JobName,
        #[command(flatten)]
        words: Words,
    },
    /// End this job: whoever was not sent to ends as cancelled. There is no way back
    Cancel {
        #[command(flatten)]
        name: JobName,
        #[command(flatten)]
        words: Words,
    },
    /// Set the rate of this job, within a second
    Rate {
        #[command(flatten)]
        name: JobName,
        /// Such as 200/s; `default` is the job's own again
        rate: String,
        #[command(flatten)]
        expiry: Expiry,
        #[command(flatten)]
        words: Words,
    },
    /// Compare the counters of a job with its ledger, recipient by recipient; exit 70 if they differ
    Verify(JobArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct JobArgs {
    #[command(flatten)]
    name: JobName,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct JobName {
    /// Job id, as `send` and `job list` print it; or its client_msg_no, with --app
    job: String,
    /// The app, when the job is named by its client_msg_no
    #[arg(long, default_value = "default")]
    app: String,
}

impl JobName {
    fn subject(&self) -> Subject {
        Subject::new(Scope::Job, self.id().to_string())
    }

    fn id(&self) -> JobId {
        self.job
            .parse()
            .unwrap_or_else(|_| JobId::of(&self.app, &self.job))
    }
}

pub(super) async fn run(command: JobCommand, file: Option<PathBuf>) -> Result<Exit, Failure> {
    let config = checked_config(file.as_deref(), |config, findings| {
        if !config.broker.url.expose().is_empty() {
            config.require_ledger(findings);
        }
    })?;
    let access = Access::of(&config)?;
    match command {
        JobCommand::List { most, json } => list(&access, most, json).await,
        JobCommand::Show(args) => {
            let record = find(&access, &args.name).await?;
            show(&access, &args, &record).await
        }
        JobCommand::Watch(args) => {
            find(&access, &args.name).await?;
            let record = progress::follow(&access, args.name.id()).await?;
            show(&access, &args, &record).await
        }
        JobCommand::Pause {
            name,
            expiry,
            words,
        } => {
            let command = Command::Pause(name.subject());
            tell(&access, command, &words, expiry.expires_in).await
        }
        JobCommand::Resume { name, words } => {
            tell(&access, Command::Resume(name.subject()), &words, None).await
        }
        JobCommand::Cancel { name, words } => {
            tell(&access, Command::Cancel(name.id()), &words, None).await
        }
        JobCommand::Rate {
            name,
            rate,
            expiry,
            words,
        } => {
            let command = Command::Rate(name.subject(), parse_rate(&rate)?);
            tell(&access, command, &words, expiry.expires_in).await
        }
        JobCommand::Verify(args) => verify(&access, &args).await,
    }
}

async fn find(access: &Access, name: &JobName) -> Result<JobRecord, Failure> {
    access.job(name.id()).await?.ok_or_else(|| unknown(name))
}

fn unknown(name: &JobName) -> Failure {
    let what = format!(
        "there is no job {:?} (looked for id {}); it may be older than the dedup window, not accepted \
         yet, or rejected",
        name.job,
        name.id()
    );
    Failure::message(Exit::Unavailable, what)
}

async fn list(access: &Access, most: usize, as_json: bool) -> Result<Exit, Failure> {
    let jobs = access.jobs(most).await?;
    if as_json {
        output::json(&jobs)?;
        return Ok(Exit::Ok);
    }
    let rows: Vec<_> = jobs
        .iter()
        .map(|job| {
            vec![
                job.job.to_string(),
                job.app.clone(),
                state(job).to_owned(),
                grouped(job.accounts.total),
                grouped(job.accounts.sent),
                grouped(job.accounts.failed + job.accounts.uncertain),
                grouped(job.pending),
                job.client_msg_no.clone(),
            ]
        })
        .collect();
    output::table(
        &[
            "JOB",
            "APP",
            "STATE",
            "TOTAL",
            "SENT",
            "DEAD",
            "PENDING",
            "CLIENT_MSG_NO",
        ],
        &rows,
    )?;
    Ok(Exit::Ok)
}

fn state(job: &JobRecord) -> &'static str {
    match job.state {
        JobState::Running => "running",
        JobState::Completed => "completed",
    }
}

/// A job with what stops it or slows it down.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    record: &'a JobRecord,
    hindrances: &'a [Hindrance],
}

async fn show(access: &Access, args: &JobArgs, job: &JobRecord) -> Result<Exit, Failure> {
    let hindrances = match job.state {
        JobState::Running => access.hindrances(job).await?,
        JobState::Completed => Vec::new(),
    };
    if args.json {
        output::json(&Shown {
            record: job,
            hindrances: &hindrances,
        })?;
        return Ok(Exit::Ok);
    }
    output::line(format!("job            {}", job.job))?;
    output::line(format!("app            {}", job.app))?;
    output::line(format!("client_msg_no  {}", job.client_msg_no))?;
    output::line(format!("target         {}", job.target))?;
    output::line(format!("state          {}", state(job)))?;
    for hindrance in &hindrances {
        output::line(format!("hindered by    {}", hindrance.what))?;
    }
    output::line(format!("accepted       {}", rfc3339(job.accepted_at_ms)))?;
    if let Some(at) = job.progress_at_ms {
        output::line(format!("last progress  {}", rfc3339(at)))?;
    }
    if let Some(at) = job.completed_at_ms {
        output::line(format!("completed      {}", rfc3339(at)))?;
    }
    for warning in &job.warnings {
        output::line(format!("warning        {warning}"))?;
    }
    if job.rebuilt {
        output::line(
            "note           the ledger was lost and rebuilt: earlier outcomes are not counted",
        )?;
    }
    output::line(format!("total          {}", grouped(job.accounts.total)))?;
    for outcome in crate::domain::outcome::Outcome::ALL {
        output::line(format!(
            "  {:<13}{}",
            outcome.as_str(),
            grouped(job.accounts.of(outcome))
        ))?;
    }
    output::line(format!("  {:<13}{}", "pending", grouped(job.pending)))?;
    Ok(Exit::Ok)
}

async fn verify(access: &Access, args: &JobArgs) -> Result<Exit, Failure> {
    let found = access
        .verify(args.name.id())
        .await?
        .ok_or_else(|| unknown(&args.name))?;
    let Verification {
        record: job,
        ledger: audit,
        differences,
    } = found;
    let exact = differences.is_empty();
    let running = job.state == JobState::Running;
    if args.json {
        output::json(&json!({
            "job": job.job, "exact": exact, "running": running, "accounts": job.accounts,
            "pending": job.pending, "ledger": audit, "differences": differences,
        }))?;
    } else if exact {
        output::line(format!("exact: {}", progress::summary(&job.accounts)))?;
        output::line(format!(
            "the ledger holds {} recipients with an outcome and {} open claims",
            grouped(audit.sent + audit.failed + audit.uncertain + audit.expired + audit.cancelled),
            grouped(audit.claimed)
        ))?;
    } else {
        for difference in &differences {
            output::line(format!("differs: {difference}"))?;
        }
        if running {
            output::line("the job is running: verify again when it is completed")?;
        }
    }
    Ok(if exact { Exit::Ok } else { Exit::Internal })
}
