//! `fanwise dead list`, `export` and `rejected`: what went wrong for whom, without taking it away.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::json;

use super::access::Access;
use super::{checked_config, output};
use crate::domain::announce::{DeadLetter, DeadRecipient};
use crate::domain::ids::JobId;
use crate::exit::{Exit, Failure, OrExit as _};
use crate::ports::{KeptMessage, Shelf};

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
    /// The same for other programs, as NDJSON or CSV
    Export {
        #[command(flatten)]
        filter: Filter,
        #[arg(long, value_enum, default_value = "ndjson")]
        format: ExportFormat,
    },
    /// Messages that were no jobs, with the reason
    Rejected {
        /// Print a JSON array, bodies included
        #[arg(long)]
        json: bool,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum ExportFormat {
    Ndjson,
    Csv,
}

/// Which recipients to show; all by default.
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
    /// Only with this outcome
    #[arg(long, value_parser = ["failed", "uncertain"])]
    outcome: Option<String>,
    /// Only with this class of answer: permanent, transient or uncertain
    #[arg(long)]
    class: Option<String>,
    /// Only with this code of the backend
    #[arg(long)]
    code: Option<String>,
}

impl Filter {
    fn takes_letter(&self, letter: &DeadLetter) -> bool {
        let job = self.job.as_ref().is_none_or(|job| {
            let app = self.app.as_deref().unwrap_or("default");
            *job == letter.job || JobId::of(app, job).to_string() == letter.job
        });
        let is =
            |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|it| it == found);
        job && is(&self.app, &letter.app) && is(&self.target, &letter.target)
    }

    fn takes_recipient(&self, dead: &DeadRecipient) -> bool {
        let is =
            |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|it| it == found);
        is(&self.outcome, dead.outcome.as_str())
            && is(&self.class, dead.class.as_str())
            && is(&self.code, &dead.code)
    }
}

/// One recipient with what it was meant to get.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    job: String,
    app: String,
    client_msg_no: String,
    target: String,
    #[serde(flatten)]
    pub(super) dead: DeadRecipient,
    first_attempt_at: String,
    last_attempt_at: String,
}

pub(super) async fn run(command: DeadCommand, file: Option<PathBuf>) -> Result<Exit, Failure> {
    let config = checked_config(file.as_deref(), |_, _| {})?;
    let access = Access::of(&config)?;
    match command {
        DeadCommand::List { filter, json } => list(&read(&access, &filter).await?, json),
        DeadCommand::Export { filter, format } => export(&read(&access, &filter).await?, format),
        DeadCommand::Rejected { json } => rejected(&access, json).await,
    }
}

/// Everybody who ended failed or uncertain.
pub(super) async fn all(access: &Access) -> Result<Vec<Row>, Failure> {
    read(access, &Filter::default()).await
}

/// Dead letters are published at least once: of several for one recipient of a job the last counts.
async fn read(access: &Access, filter: &Filter) -> Result<Vec<Row>, Failure> {
    let mut rows: BTreeMap<(String, String), Row> = BTreeMap::new();
    let mut unreadable = 0;
    let visit = |message: KeptMessage| match serde_json::from_slice::<DeadLetter>(&message.body) {
        Ok(letter) if filter.takes_letter(&letter) => add(&mut rows, letter, filter),
        Ok(_) => {}
        Err(_) => unreadable += 1,
    };
    access.read(Shelf::Dead, visit).await?;
    if unreadable > 0 {
        tracing::warn!("{unreadable} message(s) in the dead-letter queue are not dead letters");
    }
    Ok(rows.into_values().collect())
}

fn add(rows: &mut BTreeMap<(String, String), Row>, letter: DeadLetter, filter: &Filter) {
    for dead in letter.recipients {
        let key = (letter.job.clone(), dead.recipient.clone());
        if !filter.takes_recipient(&dead) {
            rows.remove(&key);
            continue;
        }
        let row = Row {
            job: letter.job.clone(),
            app: letter.app.clone(),
            client_msg_no: letter.client_msg_no.clone(),
            target: letter.target.clone(),
            dead,
            first_attempt_at: letter.first_attempt_at.clone(),
            last_attempt_at: letter.last_attempt_at.clone(),
        };
        rows.insert(key, row);
    }
}

fn list(rows: &[Row], as_json: bool) -> Result<Exit, Failure> {
    if as_json {
        output::json(&rows)?;
        return Ok(Exit::Ok);
    }
    let cells: Vec<_> = rows
        .iter()
        .map(|row| {
            vec![
                row.job.clone(),
                row.dead.recipient.clone(),
                row.dead.outcome.as_str().to_owned(),
                row.dead.class.as_str().to_owned(),
                row.dead.attempts.to_string(),
                row.dead.code.to_string(),
                row.dead.text.to_string(),
            ]
        })
        .collect();
    output::table(
        &[
            "JOB",
            "RECIPIENT",
            "OUTCOME",
            "CLASS",
            "ATTEMPTS",
            "CODE",
            "TEXT",
        ],
        &cells,
    )?;
    Ok(Exit::Ok)
}

fn export(rows: &[Row], format: ExportFormat) -> Result<Exit, Failure> {
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
    access.read(Shelf::Rejected, visit).await?;
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
