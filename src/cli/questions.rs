//! `fanwise job recipients`: what became of each recipient of a list; `fanwise job uncertain`: the
//! uncertain recipients of a job, and what an operator found out about them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::Args;

use super::access::Access;
use super::control::Words;
use super::job::{JobName, unknown};
use super::output::{self, grouped};
use super::recipients::ListFormat;
use super::when;
use crate::clock::now_ms;
use crate::domain::letters::{DeadFilter, milliseconds};
use crate::domain::list::{self, Reading};
use crate::domain::message_id::RecallState;
use crate::domain::printable::on_one_line;
use crate::exit::{Exit, Failure, OrExit as _};
use crate::service::api::RecipientRow;
use crate::service::dead_letters::ResolveAs;
use crate::service::jobs::LOOKUP_AT_ONCE;

#[derive(Debug, Args)]
pub(super) struct RecipientsArgs {
    #[command(flatten)]
    name: JobName,
    /// List of recipients: lines, CSV or NDJSON, by the ending of its name; - reads standard input
    #[arg(long, value_name = "FILE", required = true)]
    file: PathBuf,
    /// Format of the list, if the file name does not tell
    #[arg(long, value_enum)]
    format: Option<ListFormat>,
    /// Column of a CSV, or field of NDJSON, that holds the recipient
    #[arg(long)]
    column: Option<String>,
    /// Print one JSON object per line
    #[arg(short, long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct UncertainArgs {
    #[command(flatten)]
    name: JobName,
    /// What became of them: they got the message, they did not, or they are sent to again
    #[arg(long, value_parser = ["sent", "failed", "resend"])]
    resolve: Option<String>,
    /// Only these recipients, from a list: lines, CSV or NDJSON; - reads standard input
    #[arg(long, value_name = "FILE", requires = "resolve")]
    file: Option<PathBuf>,
    /// All uncertain recipients that have a dead letter
    #[arg(long, requires = "resolve", conflicts_with = "file")]
    all: bool,
    /// Most recipients to list [default: all]
    #[arg(short, long, value_name = "NUMBER", conflicts_with = "resolve")]
    limit: Option<usize>,
    #[command(flatten)]
    words: Words,
}

fn open(path: &Path) -> Result<Box<dyn Read>, Failure> {
    if path == Path::new("-") {
        return Ok(Box::new(std::io::stdin()));
    }
    let file = File::open(path);
    let file = file.map_err(|error| {
        Failure::message(Exit::BadInput, format!("{}: {error}", path.display()))
    })?;
    Ok(Box::new(file))
}

/// Passes the recipients of a list to `each`; a bad line stops it.
fn for_each(
    path: &Path,
    format: Option<ListFormat>,
    column: Option<&str>,
    mut each: impl FnMut(String),
) -> Result<(), Failure> {
    let how = Reading {
        format: format.unwrap_or_else(|| ListFormat::of(path)).into(),
        column,
        vars: false,
    };
    let mut bad = None;
    let read = list::read(open(path)?, how, |line, found| match found {
        Ok(member) => {
            each(member.id.into_owned());
            ControlFlow::Continue(())
        }
        Err(what) => {
            bad = Some(format!("{}: line {line}: {what}", path.display()));
            ControlFlow::Break(())
        }
    });
    read.or_exit(Exit::BadInput)?;
    match bad {
        Some(what) => Err(Failure::message(Exit::BadInput, what)),
        None => Ok(()),
    }
}

/// Asks about every recipient of a list, some at a time, and prints a line for each.
pub(super) async fn recipients(access: &Access, args: &RecipientsArgs) -> Result<Exit, Failure> {
    let id = args.name.id(access).await?;
    access
        .job(id)
        .await?
        .ok_or_else(|| unknown(&args.name, id))?;
    let mut users = Vec::new();
    let column = args.column.as_deref();
    for_each(&args.file, args.format, column, |user| users.push(user))?;
    if !args.json {
        output::line("RECIPIENT\tSTATE\tWHY")?;
    }
    for some in users.chunks(LOOKUP_AT_ONCE) {
        for row in access.lookup(id, some).await? {
            match args.json {
                true => output::json_line(&row)?,
                false => output::line(told(&row))?,
            }
        }
    }
    Ok(Exit::Ok)
}

fn told(row: &RecipientRow) -> String {
    let mut why = row.explanation.clone();
    if let (Some(code), Some(text)) = (&row.code, &row.text) {
        why = format!("{why}: {code} {text}");
    }
    if let Some(message) = &row.message {
        let recalled = match message.recall {
            RecallState::No => "",
            RecallState::Recalled => ", recalled",
            RecallState::Refused => ", cannot be recalled",
        };
        why = format!("{why} (message {}{recalled})", message.id);
    }
    let why = on_one_line(&why);
    format!("{}\t{}\t{why}", row.recipient, row.state.as_str())
}

/// Lists the uncertain recipients of a job, or resolves them.
pub(super) async fn uncertain(access: &Access, args: &UncertainArgs) -> Result<Exit, Failure> {
    let id = args.name.id(access).await?;
    let Some(to) = &args.resolve else {
        let filter = DeadFilter {
            job: Some(id.to_string()),
            outcome: Some("uncertain".to_owned()),
            ..DeadFilter::default()
        };
        let rows = access.dead(&filter, false).await?;
        let (rows, now) = (output::limited(&rows, args.limit), now_ms());
        return match args.words.json {
            true => output::json(&rows).map(|()| Exit::Ok),
            false => {
                let rows = rows.iter().map(|row| {
                    let attempts = row.attempts.to_string();
                    let at = when::relative(milliseconds(&row.last_attempt_at), now);
                    vec![
                        row.recipient.clone(),
                        attempts,
                        at,
                        row.code.to_string(),
                        row.text.to_string(),
                    ]
                });
                let headings = ["RECIPIENT", "ATTEMPTS", "LAST ATTEMPT", "CODE", "TEXT"];
                output::table(&headings, &rows.collect::<Vec<_>>())?;
                Ok(Exit::Ok)
            }
        };
    };
    let to = ResolveAs::ALL.iter().copied().find(|it| it.as_str() == to);
    // The parser takes no others.
    let to = to.ok_or_else(|| Failure::message(Exit::Usage, "unknown resolution"))?;
    let named = match &args.file {
        Some(path) => {
            let mut named = BTreeSet::new();
            for_each(path, None, None, |user| {
                named.insert(user);
            })?;
            Some(named)
        }
        None if args.all => None,
        None => {
            let what = "name the recipients with --file, or say --all";
            return Err(Failure::message(Exit::Usage, what));
        }
    };
    let done = access.resolve(id, to, named, args.words.note(None)).await?;
    if args.words.json {
        output::json(&done)?;
        return Ok(Exit::Ok);
    }
    let (changed, all) = (grouped(done.changed), grouped(done.recipients));
    output::line(match to {
        ResolveAs::Resend => format!("{changed} of {all} recipient(s) are sent to again"),
        _ => format!("{changed} of {all} recipient(s) count as {}", to.as_str()),
    })?;
    for job in done.redriven.iter().flat_map(|it| &it.jobs) {
        output::line(format!("new job {} {}", job.job, job.client_msg_no))?;
    }
    Ok(Exit::Ok)
}
