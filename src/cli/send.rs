//! `fanwise send`: submits a job from the shell and, if asked to, waits until it is completed.
//!
//! [`messages`] writes the job from the flags. [`confirmation`] asks whether all users are meant.
//! [`dry_run()`] shows what would be sent.

mod confirmation;
mod dry_run;
mod messages;

use std::path::PathBuf;

use clap::Args;
use fanwise_client::Retry;
use serde::Serialize;
use serde_json::json;

use self::dry_run::dry_run;
use self::messages::Messages;
use super::access::{Accepted, Access};
use super::at::{At, ServerArgs};
use super::progress::{Awaited, Interrupt};
use super::recipients::ListFormat;
use super::{output, progress, when};
use crate::exit::{Exit, Failure};
use crate::ports::JobRecord;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  fanwise send --client-msg-no promo-1 --text 'Hello' ana bob
  fanwise send --client-msg-no promo-2 --text 'Hello' --file users.csv --wait
  generate-users | fanwise send --client-msg-no promo-3 --data '{\"kind\":\"sale\"}' --file -
  fanwise send --client-msg-no promo-4 --text 'Hello {{ name }}' --file users.csv --vars
  fanwise send --client-msg-no promo-5 --template welcome --var shop=Fan ana bob
  fanwise send --client-msg-no promo-6 --text 'Hello' --audience-url https://lists.example.com/users.csv
  fanwise send --job job.json --target staging --client-msg-no rehearsal-1
  fanwise send --client-msg-no notice-1 --text 'Hello' --all --yes")]
pub(super) struct SendArgs {
    /// Key of the job: sending again with the same key and message sends to no recipient twice
    #[arg(short = 'k', long, value_name = "KEY", required_unless_present = "job")]
    client_msg_no: Option<String>,
    /// Read the job from a JSON file, or from standard input with `-`; flags override its fields
    #[arg(long, value_name = "FILE")]
    job: Option<PathBuf>,
    /// Recipients
    recipients: Vec<String>,
    /// Read recipients from a file, or from standard input with `-`
    #[arg(short, long, value_name = "FILE", group = "list")]
    file: Option<PathBuf>,
    /// Have the server fetch the list of recipients from this address; the app's list sources name
    /// the hosts that are allowed
    #[arg(
        long,
        value_name = "URL",
        group = "list",
        conflicts_with = "recipients"
    )]
    audience_url: Option<String>,
    /// Refuse the list at the address unless it has this SHA-256
    #[arg(long, value_name = "HEX", requires = "audience_url")]
    sha256: Option<String>,
    /// Refuse the list at the address unless it has this entity tag
    #[arg(long, value_name = "TAG", requires = "audience_url")]
    etag: Option<String>,
    /// Format of the list [default: by its ending, .csv, .ndjson, else lines; at an address, by its
    /// content type or ending]
    #[arg(long, value_enum)]
    format: Option<ListFormat>,
    /// Column (CSV) or field (NDJSON) that holds the recipient; for a CSV without a heading, its
    /// number
    #[arg(long, value_name = "NAME")]
    column: Option<String>,
    /// Send to this group, as one group message (can be repeated)
    #[arg(long, value_name = "ID", conflicts_with_all = ["recipients", "list"])]
    group: Vec<String>,
    /// The target's number for the kind of group [default: 2]
    #[arg(long, value_name = "NUMBER", requires = "group")]
    group_type: Option<u8>,
    /// Send to all users of the target
    #[arg(long, conflicts_with_all = ["recipients", "list", "group"])]
    all: bool,
    /// Send to all users without asking
    #[arg(short, long, visible_alias = "confirm-all")]
    yes: bool,
    /// Ask before sending to more users than this, or if the target cannot tell how many there are
    #[arg(long, value_name = "USERS", default_value_t = 100, requires = "all")]
    confirm_above: u64,
    /// Leave this recipient out (can be repeated)
    #[arg(long, value_name = "RECIPIENT")]
    exclude: Vec<String>,
    /// Send this text
    #[arg(short = 'm', long, group = "message")]
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
    #[arg(long, requires = "list")]
    vars: bool,
    /// Send texts as they are: `{{ name }}` is no placeholder
    #[arg(long, conflicts_with_all = ["var", "vars"])]
    literal: bool,
    /// App (tenant) of the job [default: the one that the token belongs to, else default]
    #[arg(short, long)]
    app: Option<String>,
    /// Target to send to [default: the app's]
    #[arg(short, long)]
    target: Option<String>,
    /// Second target, for recipients that the first one fails
    #[arg(long, value_name = "TARGET")]
    fallback: Option<String>,
    /// Which failed recipients the second target gets: refused for good (permanent), or without
    /// further attempts (transient); may be repeated [default: permanent]
    #[arg(long, value_name = "CLASS", requires = "fallback", value_parser = ["permanent", "transient"])]
    fallback_on: Vec<String>,
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
    /// Send nothing before this RFC 3339 time, or for this long, such as 2h
    #[arg(long, value_name = "TIME", value_parser = when::to_come)]
    not_before: Option<String>,
    /// Send nothing after this RFC 3339 time, or after this long, such as 2h
    #[arg(long, value_name = "TIME", value_parser = when::to_come)]
    expires_at: Option<String>,
    /// Send only within these hours of the day, such as 09:00-21:00
    #[arg(long, value_name = "HOURS")]
    window: Option<String>,
    /// Time zone of the hours, such as Asia/Shanghai [default: UTC]
    #[arg(long, value_name = "ZONE", requires = "window")]
    timezone: Option<String>,
    /// Value in the `vars` of the recipients that names the time zone of each; --timezone applies to
    /// those without one
    #[arg(long, value_name = "NAME", requires = "window")]
    timezone_var: Option<String>,
    /// Spread the recipients evenly until this RFC 3339 time, or over this long, such as 2h
    #[arg(long, value_name = "TIME", value_parser = when::to_come)]
    pace_until: Option<String>,
    /// Category of the message, such as marketing, whose frequency cap applies; the app's
    /// configuration names its categories
    #[arg(long)]
    category: Option<String>,
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
    /// Try so often, with growing pauses, while the server or the broker cannot be reached or asks to
    /// come again
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    tries: u32,
    /// Keep the target's id of each message: `job recipients` shows them, and `job recall` can take the
    /// messages back where the target can
    #[arg(long)]
    keep_ids: bool,
    /// Wait until the job is completed, with a progress bar on a terminal; exit code 1 if a
    /// recipient did not get the message or may not have got it
    #[arg(short, long)]
    wait: bool,
    /// With --wait: exit code 1 only for dead letters, that is failed or uncertain recipients, and not
    /// for those that expired or were cancelled or capped
    #[arg(long, requires = "wait")]
    fail_on_dead: bool,
    /// Check everything and print what would be sent, but send nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(short, long)]
    json: bool,
    #[command(flatten)]
    pub(super) server: ServerArgs,
}

pub(super) async fn run(args: SendArgs, at: At) -> Result<Exit, Failure> {
    let access = at.open(|config, findings| {
        if args.wait && config.broker.url.is_some() {
            config.require_ledger(findings);
        }
    })?;
    let own = match args.app {
        None => access.own_app().await,
        Some(_) => None,
    };
    // A dry run shows the first recipients of the list as it is.
    let secret = access.fingerprint_secret().filter(|_| !args.dry_run);
    let job = args.messages(own.as_deref(), secret)?;
    if args.dry_run {
        let tried = dry_run(&args, &access, &job).await;
        return of_known_names(&access, &job, tried).await;
    }
    if args.all && !args.yes {
        let target = access.target_of(&job.submission).await;
        let target = of_known_names(&access, &job, target).await?;
        args.confirm(&target, access.config()).await?;
    }
    let before = match job.id {
        Some(id) if args.wait => access.job_if_known(id).await?,
        _ => None,
    };
    let mut interrupt = Interrupt::watch()?;
    let submit = access.submit(&job.submission, args.retry());
    let accepted = interrupt.or(submit, || unanswered(&job)).await;
    let accepted = of_known_names(&access, &job, accepted).await?;
    let submitted = &accepted.submitted;
    for warning in &submitted.warnings {
        tracing::warn!("{warning}");
    }
    let id = submitted.job;
    let recipients = (!job.submission.for_all).then_some(submitted.recipients);
    let audience = audience(recipients);
    if args.wait {
        tracing::info!("accepted: job {id} for {audience}");
        return wait(&args, &access, &accepted, before.as_ref(), &mut interrupt).await;
    }
    let what = json!({"job": id, "recipients": recipients, "accepted": true});
    report(&args, &what, || {
        format!("accepted: job {id} for {audience}; fanwise job watch {id}")
    })
}

impl SendArgs {
    fn retry(&self) -> Retry {
        Retry {
            tries: self.tries,
            ..Retry::default()
        }
    }
}

/// A job that is refused may name an app or a target that does not exist. Then this is the failure, as
/// it is of every other command.
async fn of_known_names<V>(
    access: &Access,
    job: &Messages,
    done: Result<V, Failure>,
) -> Result<V, Failure> {
    if let Err(refused) = &done
        && refused.exit == Exit::BadInput
    {
        access.knows_app(&job.app).await?;
        if let Some(target) = &job.target {
            access.knows_target(target).await?;
        }
    }
    done
}

fn audience(recipients: Option<u64>) -> String {
    match recipients {
        Some(recipients) => format!("{recipients} recipient(s)"),
        None => "all users".to_owned(),
    }
}

fn name_and_text(argument: &str) -> Result<(String, String), String> {
    match argument.split_once('=') {
        Some((name, text)) if !name.is_empty() => Ok((name.to_owned(), text.to_owned())),
        _ => Err("NAME=TEXT is expected".to_owned()),
    }
}

/// Waits for what was submitted to a job that was like `before`, if it was known.
async fn wait(
    args: &SendArgs,
    access: &Access,
    accepted: &Accepted,
    before: Option<&JobRecord>,
    interrupt: &mut Interrupt,
) -> Result<Exit, Failure> {
    let id = accepted.submitted.job;
    let awaited = Awaited::new(accepted, before);
    let record = progress::follow(access, id, Some(awaited), interrupt).await?;
    report(args, &record, || {
        format!(
            "job {id} completed: {}",
            progress::summary(&record.accounts)
        )
    })?;
    progress::hint(&record);
    Ok(progress::exit(&record.accounts, args.fail_on_dead))
}

/// What to do after Ctrl-C, if it is not known whether the job was accepted.
fn unanswered(job: &Messages) -> String {
    let id = job.id.map_or_else(String::new, |id| format!(" {id}"));
    format!(
        "interrupted before the answer: job{id} may have been accepted. `fanwise job show{id}` says so; \
         the same command again sends to no recipient twice"
    )
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
