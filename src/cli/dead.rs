//! `fanwise dead list`, `show`, `export`, `redrive`, `purge` and `rejected`: what went wrong for whom,
//! and what to do with it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::access::{Access, checked};
use super::output::grouped;
use super::{checked_config, output};
use crate::domain::lane::Priority;
use crate::domain::letters::{DeadFilter, DeadRow, Key};
use crate::exit::{Exit, Failure, OrExit as _};
use crate::gateway::{PurgeRequest, RedriveRequest, Redriven};
use crate::ports::KeptMessage;

#[derive(Debug, Subcommand)]
pub(super) enum DeadCommand {
    /// Recipients that ended failed or uncertain, one line each
    List {
        #[command(flatten)]
        filter: Filter,
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Everything about dead letters, the message included
    Show {
        #[command(flatten)]
        filter: Filter,
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// The same for other programs, as NDJSON or CSV
    Export {
        #[command(flatten)]
        filter: Filter,
        #[arg(long, value_enum, default_value = "ndjson")]
        format: ExportFormat,
    },
    /// Send to failed recipients again, as a new job; doing it twice is doing it once
    Redrive(RedriveArgs),
    /// Remove dead letters for good
    Purge {
        #[command(flatten)]
        filter: Filter,
        /// Really do it
        #[arg(long)]
        yes: bool,
        /// Only count
        #[arg(long, conflicts_with = "yes")]
        dry_run: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Messages that were no jobs, with the reason
    Rejected {
        /// Print a JSON array, bodies included
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct RedriveArgs {
    #[command(flatten)]
    filter: Filter,
    /// Uncertain recipients too, who perhaps got it: they may get it twice
    #[arg(long)]
    uncertain: bool,
    /// Only count
    #[arg(long)]
    dry_run: bool,
    /// Remove the letters once the new job is durable
    #[arg(long)]
    purge: bool,
    /// Priority of the new job
    #[arg(long, value_parser = ["high", "normal", "bulk"], default_value = "normal")]
    priority: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum ExportFormat {
    Ndjson,
    Csv,
}

/// Which recipients are meant; all by default.
#[derive(Debug, Default, Args)]
pub(super) struct Filter {
    /// Only of this job: its id, or its client_msg_no with --app
    #[arg(long)]
    job: Option<String>,
    /// Only of this app
    #[arg(long)]
    app: Option<String>,
    /// Only of this target
    #[arg(long)]
    target: Option<String>,
    /// Only this recipient
    #[arg(long)]
    recipient: Option<String>,
    /// Only with this outcome
    #[arg(long, value_parser = ["failed", "uncertain"])]
    outcome: Option<String>,
    /// Only with this class of answer: permanent, transient or uncertain
    #[arg(long)]
    class: Option<String>,
    /// Only with this code of the backend
    #[arg(long)]
    code: Option<String>,
    /// Last attempt at or after: a time, or a time ago such as 2h
    #[arg(long)]
    since: Option<String>,
    /// Last attempt before
    #[arg(long)]
    until: Option<String>,
}

impl Filter {
    fn document(self) -> Result<DeadFilter, Failure> {
        let Self {
            job,
            app,
            target,
            recipient,
            outcome,
            class,
            code,
            since,
            until,
        } = self;
        let filter = DeadFilter {
            job,
            app,
            target,
            recipient,
            outcome,
            class,
            code,
            since,
            until,
        };
        checked(&filter)?;
        Ok(filter)
    }
}

pub(super) async fn run(command: DeadCommand, file: Option<PathBuf>) -> Result<Exit, Failure> {
    let config = checked_config(file.as_deref(), |_, _| {})?;
    let access = Access::of(&config)?;
    match command {
        DeadCommand::List { filter, json } => {
            list(&read(&access, &filter.document()?, false).await?, json)
        }
        DeadCommand::Show { filter, json } => {
            show(&read(&access, &filter.document()?, true).await?, json)
        }
        DeadCommand::Export { filter, format } => {
            export(&read(&access, &filter.document()?, false).await?, format)
        }
        DeadCommand::Redrive(args) => redrive(&access, args).await,
        DeadCommand::Purge {
            filter,
            yes,
            dry_run,
            json,
        } => {
            let request = PurgeRequest {
                filter: filter.document()?,
                confirm: yes,
                dry_run: dry_run || !yes,
            };
            purge(&access, &request, dry_run, json).await
        }
        DeadCommand::Rejected { json } => rejected(&access, json).await,
    }
}

/// Everybody who ended failed or uncertain.
pub(super) async fn all(access: &Access) -> Result<Vec<DeadRow>, Failure> {
    read(access, &DeadFilter::default(), false).await
}

/// Dead letters are published at least once: of several for one recipient of a job the last counts.
async fn read(
    access: &Access,
    filter: &DeadFilter,
    with_content: bool,
) -> Result<Vec<DeadRow>, Failure> {
    let wanted = checked(filter)?;
    // What a letter says of its recipients and its time is compared afterwards, with the last ones.
    let of_these = DeadFilter {
        job: filter.job.clone(),
        app: filter.app.clone(),
        target: filter.target.clone(),
        recipient: filter.recipient.clone(),
        ..DeadFilter::default()
    };
    let mut rows: BTreeMap<Key, DeadRow> = BTreeMap::new();
    let add = |row: DeadRow| {
        rows.insert(row.key(), row);
    };
    access.dead(&of_these, with_content, add).await?;
    rows.retain(|_, row| wanted.takes_row(row));
    Ok(rows.into_values().collect())
}

fn list(rows: &[DeadRow], as_json: bool) -> Result<Exit, Failure> {
    if as_json {
        output::json(&rows)?;
        return Ok(Exit::Ok);
    }
    for of_one_job in rows.chunk_by(|a, b| a.job == b.job) {
        let job = &of_one_job[0];
        output::line(format!("job {}", job.job))?;
        output::line(format!(
            "  {} of app {} to target {}, {} recipient(s)",
            job.client_msg_no,
            job.app,
            job.target,
            grouped(of_one_job.len() as u64)
        ))?;
        let cells = of_one_job.iter().map(|row| {
            vec![
                output::cut(&row.dead.recipient, 24),
                row.dead.outcome.as_str().to_owned(),
                row.dead.class.as_str().to_owned(),
                row.dead.attempts.to_string(),
                output::cut(&row.dead.code, 12),
                row.dead.text.to_string(),
            ]
        });
        let headings = ["RECIPIENT", "OUTCOME", "CLASS", "TRIES", "CODE", "TEXT"];
        output::narrow_table(&headings, cells.collect())?;
    }
    Ok(Exit::Ok)
}

fn show(rows: &[DeadRow], as_json: bool) -> Result<Exit, Failure> {
    if as_json {
        output::json(&rows)?;
        return Ok(Exit::Ok);
    }
    for row in rows {
        let dead = &row.dead;
        output::line(format!("recipient      {}", dead.recipient))?;
        output::line(format!("job            {}", row.job))?;
        output::line(format!("app            {}", row.app))?;
        output::line(format!("client_msg_no  {}", row.client_msg_no))?;
        output::line(format!("target         {}", row.target))?;
        output::line(format!("outcome        {}", dead.outcome.as_str()))?;
        output::line(format!("class          {}", dead.class.as_str()))?;
        output::line(format!("code           {}", dead.code))?;
        output::line(format!("text           {}", dead.text))?;
        output::line(format!("attempts       {}", dead.attempts))?;
        output::line(format!("first attempt  {}", row.first_attempt_at))?;
        output::line(format!("last attempt   {}", row.last_attempt_at))?;
        if let Some(content) = &row.content {
            if let Some(sender) = &content.sender {
                output::line(format!("sender         {sender}"))?;
            }
            output::line(format!("message        {}", content.message))?;
            output::line(format!("options        {}", content.options))?;
        }
        output::line("")?;
    }
    Ok(Exit::Ok)
}

async fn redrive(access: &Access, args: RedriveArgs) -> Result<Exit, Failure> {
    let request = RedriveRequest {
        filter: args.filter.document()?,
        uncertain: args.uncertain,
        dry_run: args.dry_run,
        purge: args.purge,
        priority: Priority::ALL
            .into_iter()
            .find(|priority| priority.as_str() == args.priority)
            .unwrap_or_default(),
    };
    let done = access.redrive(&request).await?;
    if args.json {
        output::json(&done)?;
    } else {
        tell_redriven(&done)?;
    }
    Ok(match done.refused.is_empty() {
        true => Exit::Ok,
        false => Exit::BadInput,
    })
}

fn tell_redriven(done: &Redriven) -> Result<(), Failure> {
    let verb = if done.dry_run { "would be" } else { "are" };
    output::line(format!(
        "{} recipient(s) {verb} sent to again, in {} new job(s)",
        grouped(done.recipients),
        grouped(done.jobs_total)
    ))?;
    if !done.jobs.is_empty() {
        let rows = done.jobs.iter().map(|job| {
            vec![
                job.job.clone(),
                job.of.clone(),
                grouped(job.recipients),
                job.client_msg_no.clone(),
            ]
        });
        let headings = ["NEW JOB", "OF", "RECIPIENTS", "KEY"];
        output::narrow_table(&headings, rows.collect())?;
    }
    if done.uncertain_left_out > 0 {
        output::line(format!(
            "{} uncertain one(s) left out: --uncertain takes them, they may get it twice",
            grouped(done.uncertain_left_out)
        ))?;
    }
    if done.purged > 0 {
        output::line(format!("{} purged", grouped(done.purged)))?;
    } else if !done.dry_run && done.recipients > 0 {
        output::line("the letters stay until `fanwise dead purge` removes them")?;
    }
    for refused in &done.refused {
        output::line(format!("job {} is refused: {}", refused.of, refused.reason))?;
    }
    Ok(())
}

/// Without a confirmation it counts, and says so as an error.
async fn purge(
    access: &Access,
    request: &PurgeRequest,
    dry_run: bool,
    as_json: bool,
) -> Result<Exit, Failure> {
    let done = access.purge(request).await?;
    let count = grouped(done.recipients);
    if !request.confirm && !dry_run {
        let what = format!("{count} dead recipient(s) would be gone for good: add --yes to do it");
        return Err(Failure::message(Exit::Usage, what));
    }
    if as_json {
        output::json(&done)?;
    } else {
        let verb = if dry_run { "would be" } else { "are" };
        output::line(format!("{count} dead recipient(s) {verb} gone for good"))?;
    }
    Ok(Exit::Ok)
}

fn export(rows: &[DeadRow], format: ExportFormat) -> Result<Exit, Failure> {
    match format {
        ExportFormat::Ndjson => {
            for row in rows {
                output::line(serde_json::to_string(row).or_exit(Exit::Internal)?)?;
            }
        }
        ExportFormat::Csv => {
            let mut writer = csv::Writer::from_writer(Vec::new());
            let headings = [
                "recipient",
                "outcome",
                "class",
                "code",
                "text",
                "attempts",
                "job",
                "app",
                "client_msg_no",
                "target",
                "first_attempt_at",
                "last_attempt_at",
                "vars",
            ];
            writer.write_record(headings).or_exit(Exit::Internal)?;
            for row in rows {
                let dead = &row.dead;
                let attempts = dead.attempts.to_string();
                let cells = [
                    dead.recipient.as_str(),
                    dead.outcome.as_str(),
                    dead.class.as_str(),
                    &dead.code,
                    &dead.text,
                    &attempts,
                    &row.job,
                    &row.app,
                    &row.client_msg_no,
                    &row.target,
                    &row.first_attempt_at,
                    &row.last_attempt_at,
                    dead.vars.as_ref().map_or("", |vars| vars.get()),
                ];
                writer.write_record(cells).or_exit(Exit::Internal)?;
            }
            let bytes = writer
                .into_inner()
                .map_err(|error| error.into_error())
                .or_exit(Exit::Internal)?;
            output::line(String::from_utf8_lossy(&bytes).trim_end())?;
        }
    }
    Ok(Exit::Ok)
}

async fn rejected(access: &Access, as_json: bool) -> Result<Exit, Failure> {
    let mut messages = Vec::new();
    let visit = |message: KeptMessage| {
        messages.push(message);
    };
    access.rejected(visit).await?;
    let header =
        |message: &KeptMessage, name: &str| message.headers.get(name).cloned().unwrap_or_default();
    if as_json {
        let rows: Vec<_> = messages
            .iter()
            .map(|message| {
                json!({
                    "reason": header(message, "fanwise-reason"),
                    "source": header(message, "fanwise-source"),
                    "rejected_at": header(message, "fanwise-rejected-at"),
                    "routing_key": message.routing_key,
                    "message_id": message.message_id,
                    "bytes": message.body.len(),
                    "body": String::from_utf8_lossy(&message.body),
                })
            })
            .collect();
        output::json(&rows)?;
        return Ok(Exit::Ok);
    }
    let rows: Vec<_> = messages
        .iter()
        .map(|message| {
            vec![
                header(message, "fanwise-rejected-at"),
                header(message, "fanwise-source"),
                message.body.len().to_string(),
                header(message, "fanwise-reason"),
            ]
        })
        .collect();
    output::table(&["REJECTED AT", "FROM", "BYTES", "REASON"], &rows)?;
    Ok(Exit::Ok)
}
