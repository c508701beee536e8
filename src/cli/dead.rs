//! `fanwise dead list`, `show`, `export`, `redrive`, `purge` and `rejected`: which recipients
//! failed and why, and how to send to them again.

use std::io::IsTerminal as _;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::access::{Access, checked};
use super::at::At;
use super::output::{self, grouped, limited};
use super::when;
use crate::clock::{now_ms, rfc3339};
use crate::domain::letters::{DeadFilter, DeadRow};
use crate::domain::printable::on_one_line;
use crate::domain::spreadsheet::guarded;
use crate::exit::{Exit, Failure, OrExit as _};
use crate::ports::RetainedMessage;
use crate::service::api::{PurgeRequest, RedriveRequest};
use crate::service::dead_letters::Redriven;

#[derive(Debug, Subcommand)]
pub(super) enum DeadCommand {
    /// List recipients that ended failed or uncertain, one line each
    List {
        #[command(flatten)]
        filter: Filter,
        /// Most recipients to list [default: all]
        #[arg(short, long, value_name = "NUMBER")]
        limit: Option<usize>,
        /// Print a JSON array
        #[arg(short, long)]
        json: bool,
    },
    /// Show everything about dead letters, including the message
    Show {
        #[command(flatten)]
        filter: Filter,
        /// Most recipients to show [default: all]
        #[arg(short, long, value_name = "NUMBER")]
        limit: Option<usize>,
        /// Print a JSON array
        #[arg(short, long)]
        json: bool,
    },
    /// Export dead letters for other programs, as NDJSON or CSV
    Export {
        #[command(flatten)]
        filter: Filter,
        #[arg(long, value_enum, default_value = "ndjson")]
        format: ExportFormat,
    },
    /// Send to failed recipients again, as a new job; repeating the command sends nothing twice
    Redrive(RedriveArgs),
    /// Remove dead letters permanently
    Purge {
        #[command(flatten)]
        filter: Filter,
        /// Confirm the removal
        #[arg(short, long)]
        yes: bool,
        /// Only count, and remove nothing
        #[arg(short = 'n', long, conflicts_with = "yes")]
        dry_run: bool,
        /// Print one JSON object
        #[arg(short, long)]
        json: bool,
    },
    /// List rejected messages, which were no valid jobs, with the reason
    Rejected {
        /// Most messages to list [default: all]
        #[arg(short, long, value_name = "NUMBER")]
        limit: Option<usize>,
        /// Print a JSON array that includes the bodies
        #[arg(short, long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct RedriveArgs {
    #[command(flatten)]
    filter: Filter,
    /// Include uncertain recipients, which may have got the message: they may get it twice
    #[arg(long)]
    uncertain: bool,
    /// Redrive without asking
    #[arg(short, long, visible_alias = "all")]
    yes: bool,
    /// Ask before sending again to more recipients than this
    #[arg(long, value_name = "RECIPIENTS", default_value_t = 1000)]
    confirm_above: u64,
    /// Only count, and send nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Remove the dead letters once a worker has accepted the new job
    #[arg(long)]
    purge: bool,
    /// Priority of the new job
    #[arg(long, value_parser = ["high", "normal", "bulk"], default_value = "normal")]
    priority: String,
    /// Print one JSON object
    #[arg(short, long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum ExportFormat {
    Ndjson,
    Csv,
}

/// Selects recipients of dead letters; all of them if no field is given.
#[derive(Debug, Default, Args)]
pub(super) struct Filter {
    /// Only this job: its id, or its client_msg_no with --app
    #[arg(long)]
    job: Option<String>,
    /// Only this app
    #[arg(short, long)]
    app: Option<String>,
    /// Only this target
    #[arg(short, long)]
    target: Option<String>,
    /// Only this recipient
    #[arg(long)]
    recipient: Option<String>,
    /// Only this outcome
    #[arg(long, value_parser = ["failed", "uncertain"])]
    outcome: Option<String>,
    /// Only this class of answer: permanent, transient or uncertain
    #[arg(long)]
    class: Option<String>,
    /// Only this code of the backend
    #[arg(long)]
    code: Option<String>,
    /// Last attempt at or after this time; a time ago such as 2h is possible too
    #[arg(long)]
    since: Option<String>,
    /// Last attempt before this time
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

pub(super) async fn run(command: DeadCommand, at: At) -> Result<Exit, Failure> {
    let access = at.open(|_, _| {})?;
    match command {
        DeadCommand::List {
            filter,
            limit,
            json,
        } => {
            let rows = load(&access, &filter.document()?, false).await?;
            list(limited(&rows, limit), json)
        }
        DeadCommand::Show {
            filter,
            limit,
            json,
        } => {
            let rows = load(&access, &filter.document()?, true).await?;
            show(limited(&rows, limit), json)
        }
        DeadCommand::Export { filter, format } => {
            export(&load(&access, &filter.document()?, false).await?, format)
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
        DeadCommand::Rejected { limit, json } => rejected(&access, limit, json).await,
    }
}

/// All recipients that ended failed or uncertain.
pub(super) async fn all(access: &Access) -> Result<Vec<DeadRow>, Failure> {
    load(access, &DeadFilter::default(), false).await
}

async fn load(
    access: &Access,
    filter: &DeadFilter,
    with_content: bool,
) -> Result<Vec<DeadRow>, Failure> {
    let wanted = checked(filter)?;
    // The other fields are compared afterwards, with the latest letter of each recipient.
    let of_these = DeadFilter {
        job: filter.job.clone(),
        app: filter.app.clone(),
        target: filter.target.clone(),
        recipient: filter.recipient.clone(),
        ..DeadFilter::default()
    };
    let mut rows = access.dead(&of_these, with_content).await?;
    rows.retain(|row| wanted.takes_row(row));
    Ok(rows)
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
                output::cut(&row.recipient, 24),
                row.outcome.as_str().to_owned(),
                row.class.as_str().to_owned(),
                row.attempts.to_string(),
                output::cut(&row.code, 12),
                row.text.to_string(),
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
        let dead = row;
        output::line(format!("recipient      {}", dead.recipient))?;
        output::line(format!("job            {}", row.job))?;
        output::line(format!("app            {}", row.app))?;
        output::line(format!("client_msg_no  {}", row.client_msg_no))?;
        output::line(format!("target         {}", row.target))?;
        output::line(format!("outcome        {}", dead.outcome.as_str()))?;
        output::line(format!("class          {}", dead.class.as_str()))?;
        output::line(format!("code           {}", on_one_line(&dead.code)))?;
        output::line(format!("text           {}", on_one_line(&dead.text)))?;
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
    let filter = args.filter.document()?;
    let request = RedriveRequest {
        confirm: args.yes,
        uncertain: args.uncertain,
        dry_run: args.dry_run,
        purge: args.purge,
        priority: args.priority.parse().unwrap_or_default(),
        filter,
    };
    let done = match confirmed(access, request, args.confirm_above).await? {
        Confirmed::Redrive(request) => access.redrive(&request).await?,
        Confirmed::Nothing(found) => found,
    };
    if args.json {
        output::json(&done)?;
    } else {
        tell_redriven(&done)?;
    }
    Ok(match (done.refused.is_empty(), done.not_purged) {
        (false, _) => Exit::BadInput,
        // Repeat the command once a worker has accepted the new job.
        (true, 1..) => Exit::Temporary,
        (true, 0) => Exit::Ok,
    })
}

/// What remains to be done once it is known how many it concerns.
enum Confirmed {
    Redrive(RedriveRequest),
    /// Nothing is selected, and there is nothing.
    Nothing(Redriven),
}

/// Asks for a confirmation if there is no filter, because the command then sends again to every
/// failed recipient in every job of every app, and if it would send to more than `above`.
async fn confirmed(
    access: &Access,
    request: RedriveRequest,
    above: u64,
) -> Result<Confirmed, Failure> {
    if request.confirm || request.dry_run {
        return Ok(Confirmed::Redrive(request));
    }
    let counting = RedriveRequest {
        dry_run: true,
        purge: false,
        ..request.clone()
    };
    let found = access.redrive(&counting).await?;
    let selects = !request.filter.is_empty();
    if selects && found.recipients <= above {
        return Ok(Confirmed::Redrive(request));
    }
    if found.recipients == 0 {
        return Ok(Confirmed::Nothing(Redriven {
            dry_run: false,
            ..found
        }));
    }
    let all = match selects {
        true => "",
        false => ", all those with dead letters",
    };
    let what = format!(
        "this sends again to {} recipient(s){all} of {} job(s)",
        grouped(found.recipients),
        grouped(found.jobs_total)
    );
    let refused = |what| Err(Failure::message(Exit::Usage, what));
    if !std::io::stdin().is_terminal() {
        return refused(format!(
            "nothing was sent: {what}; select fewer, such as with --job, or confirm it with --yes"
        ));
    }
    match output::is_meant(&what)? {
        true => Ok(Confirmed::Redrive(RedriveRequest {
            confirm: true,
            ..request
        })),
        false => refused("nothing was sent: not confirmed".to_owned()),
    }
}

fn tell_redriven(done: &Redriven) -> Result<(), Failure> {
    let verb = if done.dry_run { "would be" } else { "are" };
    if done.recipients == 0 {
        output::line(match done.dry_run {
            true => "nothing would be sent again",
            false => "nothing is sent again",
        })?;
    } else {
        let jobs = done.jobs.iter().filter(|job| job.recipients > 0).count() as u64;
        // Jobs that the answer does not list count too.
        let jobs = jobs + done.jobs_total.saturating_sub(done.jobs.len() as u64);
        output::line(format!(
            "{} recipient(s) {verb} sent to again, in {} new job(s)",
            grouped(done.recipients),
            grouped(jobs)
        ))?;
    }
    if !done.jobs.is_empty() {
        let rows = done.jobs.iter().map(|job| {
            vec![
                job.job.clone(),
                job.of.clone(),
                grouped(job.recipients),
                grouped(job.redriven_before),
                job.client_msg_no.clone(),
            ]
        });
        let headings = ["NEW JOB", "OF", "AGAIN", "BEFORE", "KEY"];
        output::narrow_table(&headings, rows.collect())?;
    }
    for (count, what) in [
        (
            done.redriven_before,
            "were redriven before, in the same new jobs: see `fanwise job show`",
        ),
        (
            done.uncertain_left_out,
            "uncertain, left out: --uncertain includes them, but they may get it twice",
        ),
        (
            done.contradicted,
            "left out: the ledger says that they got it, or that their job ended before",
        ),
        (
            done.under_way,
            "left out: their own job has not finished with them yet",
        ),
        (done.purged, "purged"),
        (
            done.not_purged,
            "not purged: no worker has accepted their new job yet; redrive again with --purge then",
        ),
    ] {
        if count > 0 {
            output::line(format!("{} {what}", grouped(count)))?;
        }
    }
    if done.purged + done.not_purged == 0 && !done.dry_run && done.recipients > 0 {
        output::line("the letters stay until `fanwise dead purge` removes them")?;
    }
    for refused in &done.refused {
        output::line(format!("job {} is refused: {}", refused.of, refused.reason))?;
    }
    Ok(())
}

/// Without `--yes`, only counts, and fails with the count.
async fn purge(
    access: &Access,
    request: &PurgeRequest,
    dry_run: bool,
    as_json: bool,
) -> Result<Exit, Failure> {
    let done = access.purge(request).await?;
    let count = grouped(done.recipients);
    if !request.confirm && !dry_run {
        let what = format!(
            "the dead letters of {count} recipient(s) would be removed permanently: add --yes to do it"
        );
        return Err(Failure::message(Exit::Usage, what));
    }
    if as_json {
        output::json(&done)?;
    } else {
        let verb = if dry_run { "would be" } else { "are" };
        output::line(format!(
            "the dead letters of {count} recipient(s) {verb} removed permanently"
        ))?;
    }
    Ok(Exit::Ok)
}

fn export(rows: &[DeadRow], format: ExportFormat) -> Result<Exit, Failure> {
    match format {
        ExportFormat::Ndjson => {
            for row in rows {
                output::json_line(row)?;
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
                let dead = row;
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
                let cells = cells.map(guarded);
                let cells = cells.iter().map(|cell| cell.as_bytes());
                writer.write_record(cells).or_exit(Exit::Internal)?;
            }
            let bytes = writer
                .into_inner()
                .map_err(|error| error.into_error())
                .or_exit(Exit::Internal)?;
            output::data(String::from_utf8_lossy(&bytes).trim_end())?;
        }
    }
    Ok(Exit::Ok)
}

async fn rejected(access: &Access, limit: Option<usize>, as_json: bool) -> Result<Exit, Failure> {
    let mut messages = Vec::new();
    let visit = |message: RetainedMessage| {
        messages.push(message);
    };
    access.rejected(visit).await?;
    let messages = limited(&messages, limit);
    let header = |message: &RetainedMessage, name: &str| {
        message.headers.get(name).cloned().unwrap_or_default()
    };
    let rejected_at = |message: &RetainedMessage| {
        let seconds: Option<u64> = header(message, "fanwise-rejected-at").parse().ok();
        seconds.map(|seconds| seconds * 1000)
    };
    if as_json {
        let rows: Vec<_> = messages
            .iter()
            .map(|message| {
                json!({
                    "reason": header(message, "fanwise-reason"),
                    "source": header(message, "fanwise-source"),
                    "rejected_at": rejected_at(message).map(rfc3339),
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
    let now = now_ms();
    let rows: Vec<_> = messages
        .iter()
        .map(|message| {
            vec![
                rejected_at(message)
                    .map(|at| when::relative(at, now))
                    .unwrap_or_default(),
                header(message, "fanwise-source"),
                message.body.len().to_string(),
                header(message, "fanwise-reason"),
            ]
        })
        .collect();
    output::table(&["REJECTED", "FROM", "BYTES", "REASON"], &rows)?;
    Ok(Exit::Ok)
}
