//! `fanwise send`: submits a job from the shell and, if asked to, waits until it is completed.
//!
//! [`messages`] writes the job from the flags. [`confirmation`] asks whether all users are meant.

mod confirmation;
mod messages;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use serde_json::json;

use self::messages::Messages;
use super::access::Access;
use super::recipients::ListFormat;
use super::{checked_config, output, progress};
use crate::app;
use crate::config::Config;
use crate::domain::fields::Problem;
use crate::domain::ids::JobId;
use crate::domain::lane::Priority;
use crate::domain::permissions::Asked;
use crate::exit::{Exit, Failure};
use crate::ports::{Entry, JobRecord, JobState};
use crate::service::admission::{Refused, conflicts, examine, keeps_rules};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  fanwise send --client-msg-no promo-1 --text 'Hello' ana bob
  fanwise send --client-msg-no promo-2 --text 'Hello' --file users.csv --wait
  generate-users | fanwise send --client-msg-no promo-3 --data '{\"kind\":\"sale\"}' --file -
  fanwise send --client-msg-no promo-4 --text 'Hello {{ name }}' --file users.csv --vars
  fanwise send --client-msg-no promo-5 --template welcome --var shop=Fan ana bob
  fanwise send --job job.json --target staging --client-msg-no rehearsal-1
  fanwise send --client-msg-no notice-1 --text 'Hello' --all --yes")]
pub(super) struct SendArgs {
    /// Key of the job: sending again with the same key and message sends to no recipient twice
    #[arg(long, value_name = "KEY", required_unless_present = "job")]
    client_msg_no: Option<String>,
    /// Read the job from a JSON file, or from standard input with `-`; flags override its fields
    #[arg(long, value_name = "FILE")]
    job: Option<PathBuf>,
    /// Recipients
    recipients: Vec<String>,
    /// Read recipients from a file, or from standard input with `-`
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Format of the file [default: by its ending, .csv, .ndjson, else lines]
    #[arg(long, value_enum)]
    format: Option<ListFormat>,
    /// Column (CSV) or field (NDJSON) that holds the recipient; for a CSV without a heading, its
    /// number
    #[arg(long, value_name = "NAME")]
    column: Option<String>,
    /// Send to this group, as one group message (can be repeated)
    #[arg(long, value_name = "ID", conflicts_with_all = ["recipients", "file"])]
    group: Vec<String>,
    /// The target's number for the kind of group [default: 2]
    #[arg(long, value_name = "NUMBER", requires = "group")]
    group_type: Option<u8>,
    /// Send to all users of the target
    #[arg(long, conflicts_with_all = ["recipients", "file", "group"])]
    all: bool,
    /// Send to all users without asking
    #[arg(long, visible_alias = "confirm-all")]
    yes: bool,
    /// Ask before sending to more users than this, or if the target cannot tell how many there are
    #[arg(long, value_name = "USERS", default_value_t = 100, requires = "all")]
    confirm_above: u64,
    /// Leave this recipient out (can be repeated)
    #[arg(long, value_name = "RECIPIENT")]
    exclude: Vec<String>,
    /// Send this text
    #[arg(long, group = "message")]
    text: Option<String>,
    /// Send this JSON as application data
    #[arg(long, group = "message", value_name = "JSON")]
    data: Option<String>,
    /// Send this JSON as the target's own message body
    #[arg(long, group = "message", value_name = "JSON")]
    native: Option<String>,
    /// Send this stored message (see `fanwise template`)
    #[arg(long, group = "message", value_name = "NAME")]
    template: Option<String>,
    /// Value for a placeholder, for all recipients (can be repeated)
    #[arg(long, value_name = "NAME=TEXT", value_parser = name_and_text)]
    var: Vec<(String, String)>,
    /// Take values for placeholders from the other columns of the CSV, for each recipient
    #[arg(long, requires = "file")]
    vars: bool,
    /// Send texts as they are: `{{ name }}` is no placeholder
    #[arg(long, conflicts_with_all = ["var", "vars"])]
    literal: bool,
    /// App (tenant) of the job
    #[arg(long)]
    app: Option<String>,
    /// Target to send to [default: the app's]
    #[arg(long)]
    target: Option<String>,
    /// Sender of the message [default: the target's default sender]
    #[arg(long)]
    sender: Option<String>,
    /// Priority [default: normal]
    #[arg(long, value_parser = ["high", "normal", "bulk"])]
    priority: Option<String>,
    /// Send only to recipients that are online
    #[arg(long)]
    online_only: bool,
    /// Do not count the message as unread
    #[arg(long)]
    no_unread: bool,
    /// Name of the job, such as a campaign, by which jobs are listed, cancelled, paused and resumed;
    /// may be repeated
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Send nothing before this RFC 3339 time
    #[arg(long, value_name = "TIME")]
    not_before: Option<String>,
    /// Send nothing after this RFC 3339 time
    #[arg(long, value_name = "TIME")]
    expires_at: Option<String>,
    /// Rate limit of this job alone, such as 500/s
    #[arg(long)]
    rate: Option<String>,
    /// What to do about recipients in doubt after a lost reply [default: the target's policy]
    #[arg(long, value_parser = ["retry", "hold", "drop"])]
    on_uncertain: Option<String>,
    /// What to do about fields that the target cannot honour [default: strict, which refuses the
    /// job]
    #[arg(long, value_parser = ["strict", "lenient"])]
    mapping: Option<String>,
    /// Send the accounts to this address when the job is completed; the app's callback settings
    /// name the hosts that are allowed
    #[arg(long, value_name = "URL")]
    callback_url: Option<String>,
    /// Publish the accounts to this RabbitMQ queue when the job is completed
    #[arg(long, value_name = "QUEUE")]
    reply_to: Option<String>,
    /// Wait until the job is completed, with a progress bar on a terminal; exit code 1 if a
    /// recipient did not get the message or may not have got it
    #[arg(long)]
    wait: bool,
    /// Check everything and print what would be sent, but send nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: SendArgs, file: Option<PathBuf>) -> Result<Exit, Failure> {
    let config = checked_config(file.as_deref(), |config, findings| {
        if args.wait && config.broker.url.is_some() {
            config.require_ledger(findings);
        }
    })?;
    let Messages { bodies, form } = args.messages()?;
    let job = check(&bodies, &config)?;
    for warning in &job.warnings {
        tracing::warn!("{warning}");
    }
    let late = job.too_late.as_ref().map(ToString::to_string);
    if args.dry_run {
        if let Some(late) = late {
            return Err(Failure::message(Exit::BadInput, late));
        }
        let messages = bodies.len();
        Access::of(&config)?.consider(job.priority, bodies).await?;
        let what = json!({"job": job.id, "recipients": job.entries, "messages": messages, "target": job.target});
        return report(&args, &what, || {
            format!(
                "would send job {} to {} of {} in {} message(s); nothing was sent",
                job.id,
                job.audience(),
                job.target,
                messages
            )
        });
    }
    if args.all && !args.yes {
        args.confirm(&job.target, &config).await?;
    }
    let access = Access::of(&config)?;
    let before = match args.wait || job.too_late.is_some() {
        true => access.job_if_known(job.id).await?,
        false => None,
    };
    if let Some(late) = late.filter(|_| before.is_none()) {
        return Err(Failure::message(Exit::BadInput, late));
    }
    let whole = match form {
        Some(form) => access.upload(job.priority, form).await?,
        None => false,
    };
    if !whole {
        access.submit(job.id, job.priority, bodies).await?;
        access.enter(&job.entry).await;
    }
    if !args.wait {
        let what = json!({"job": job.id, "recipients": job.entries, "accepted": true});
        return report(&args, &what, || {
            format!(
                "accepted: job {} for {}; fanwise job watch {}",
                job.id,
                job.audience(),
                job.id
            )
        });
    }
    wait(&args, &access, &job, before).await
}

fn name_and_text(argument: &str) -> Result<(String, String), String> {
    match argument.split_once('=') {
        Some((name, text)) if !name.is_empty() => Ok((name.to_owned(), text.to_owned())),
        _ => Err("NAME=TEXT is expected".to_owned()),
    }
}

/// What the check of a job found.
struct Checked {
    id: JobId,
    client_msg_no: String,
    target: String,
    priority: Priority,
    content_digest: String,
    /// The job's entry in the ledger.
    entry: Entry,
    /// Set if it is too late to send the job.
    too_late: Option<Problem>,
    /// List entries of all messages; `None` for all users, whom only the target can count.
    entries: Option<usize>,
    /// What the job goes on without.
    warnings: Vec<String>,
    /// What the app needs permission for.
    asked: Asked,
}

impl Checked {
    fn audience(&self) -> String {
        match self.entries {
            Some(entries) => format!("{entries} recipient(s)"),
            None => "all users".to_owned(),
        }
    }
}

/// Reads every message as the worker will, to find mistakes before anything is sent.
fn check(bodies: &[Vec<u8>], config: &Config) -> Result<Checked, Failure> {
    let refused = |refused: Refused| Failure::message(Exit::BadInput, refused.to_string());
    let names = app::Names::of(config)?;
    let mut checked: Option<Checked> = None;
    for body in bodies {
        let job = examine(&names, body, None).map_err(refused)?;
        let entries = (!job.for_all).then_some(job.recipients as usize);
        match &mut checked {
            Some(checked) => {
                checked.entries = checked.entries.zip(entries).map(|(sum, more)| sum + more);
                checked.asked.lists.extend(job.asked.lists);
            }
            None => {
                checked = Some(Checked {
                    entry: job.entry(0),
                    too_late: job.too_late,
                    id: job.id,
                    client_msg_no: job.asked.client_msg_no.clone(),
                    target: job.target,
                    priority: job.priority,
                    content_digest: job.content_digest,
                    entries,
                    warnings: job.warnings,
                    asked: job.asked,
                });
            }
        }
    }
    let mut checked = checked.ok_or_else(|| Failure::message(Exit::BadInput, "no recipients"))?;
    checked.entry.entries = checked.entries.unwrap_or(0) as u64;
    keeps_rules(&names, &checked.asked).map_err(refused)?;
    Ok(checked)
}

/// How long a job that was completed before may still look completed after it was sent again.
const EXTENSION_PATIENCE: Duration = Duration::from_secs(3);

async fn wait(
    args: &SendArgs,
    access: &Access,
    job: &Checked,
    before: Option<JobRecord>,
) -> Result<Exit, Failure> {
    if let Some(before) = before.filter(|before| before.state == JobState::Completed) {
        // With further recipients, it soon runs again; without, it stays completed.
        let deadline = Instant::now() + EXTENSION_PATIENCE;
        while Instant::now() < deadline
            && access
                .job(job.id)
                .await?
                .is_some_and(|now| now.submissions == before.submissions)
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let record = progress::follow(access, job.id).await?;
    if conflicts(&record, &job.content_digest) {
        return Err(Failure::message(
            Exit::BadInput,
            format!(
                "conflict: {:?} is the key of another message, job {}; your message was rejected and \
                 is in fanwise.rejected",
                job.client_msg_no, job.id
            ),
        ));
    }
    report(args, &record, || {
        format!(
            "job {} completed: {}",
            job.id,
            progress::summary(&record.accounts)
        )
    })?;
    Ok(progress::exit(&record.accounts))
}

fn report(
    args: &SendArgs,
    value: &impl Serialize,
    text: impl Fn() -> String,
) -> Result<Exit, Failure> {
    if args.json {
        output::json(value)?
    } else {
        output::line(text())?
    }
    Ok(Exit::Ok)
}
