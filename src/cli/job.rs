//! `fanwise job list`, `show`, `watch`, `verify`, `repair` and `recipient`; `pause`, `resume`, `cancel`,
//! `rate` and other changes.

use clap::Subcommand;
use serde_json::json;

use super::access::Access;
use super::at::At;
use super::control::{Expiry, Words, parse_rate, tell};
use super::many::{self, JobsName};
use super::output::grouped;
use super::progress::Interrupt;
use super::questions::{self, RecipientsArgs, UncertainArgs};
use super::recall::{self, RecallArgs};
use super::repair::{self, RepairArgs};
use super::{output, progress, when};
use crate::clock::now_ms;
use crate::domain::accounts::{Accounts, ByOutcome as _};
use crate::domain::directive::{Scope, Subject};
use crate::domain::ids::JobId;
use crate::domain::job;
use crate::domain::job_limits::LimitKind;
use crate::domain::letters::{moment, not_a_moment};
use crate::domain::outcome::Outcome;
use crate::exit::{Exit, Failure, OrExit as _};
use crate::ports::{JobFilter, JobState};
use crate::service::api::{JobDetail, Verification};
use crate::service::control::{Cause, Command, ManyCommand, end_time, pace_time, start_time};

#[derive(Debug, Subcommand)]
pub(super) enum JobCommand {
    /// List the newest jobs
    List(ListArgs),
    /// Show one job: its accounts, its speed, and what keeps it from going faster
    Show(JobArgs),
    /// Follow a job until it is completed
    Watch(WatchArgs),
    /// Send nothing for this job, or for all jobs of an app, a target or a tag, until it is resumed
    Pause {
        #[command(flatten)]
        name: JobsName,
        #[command(flatten)]
        expiry: Expiry,
        #[command(flatten)]
        words: Words,
    },
    /// Resume this job, or all jobs of an app, a target or a tag
    Resume {
        #[command(flatten)]
        name: JobsName,
        #[command(flatten)]
        words: Words,
    },
    /// Cancel this job, or all jobs of an app, a target or a tag: recipients not sent to yet end as
    /// cancelled. This cannot be undone
    Cancel {
        #[command(flatten)]
        name: JobsName,
        #[command(flatten)]
        words: Words,
    },
    /// Set the priority of this job, or of all jobs of an app, a target or a tag. Jobs of at most 100
    /// recipients have a lane of their own and do not need it
    Priority {
        #[command(flatten)]
        name: JobsName,
        /// The priority
        #[arg(long = "to", value_parser = ["high", "normal", "bulk"])]
        priority: String,
        #[command(flatten)]
        words: Words,
    },
    /// Move the start of this job, earlier or later
    Schedule {
        #[command(flatten)]
        name: JobName,
        /// RFC 3339 time, a time from now such as +2h, or `now`
        start: String,
        #[command(flatten)]
        words: Words,
    },
    /// Set the time from which no recipient of this job is sent to any more
    Deadline {
        #[command(flatten)]
        name: JobName,
        /// RFC 3339 time, a time from now such as +2h, or `never`
        end: String,
        #[command(flatten)]
        words: Words,
    },
    /// Spread this job evenly until a time. A rate that was set for it ends
    Pace {
        #[command(flatten)]
        name: JobName,
        /// RFC 3339 time, a time from now such as +2h, or `none`
        end: String,
        #[command(flatten)]
        words: Words,
    },
    /// Set the rate of this job; it takes effect within a second
    Rate {
        #[command(flatten)]
        name: JobName,
        /// Such as 200/s; `default` restores the job's own rate
        rate: String,
        #[command(flatten)]
        expiry: Expiry,
        #[command(flatten)]
        words: Words,
    },
    /// Compare the counters of a job with its ledger, recipient by recipient; exit 70 if they
    /// differ
    Verify(JobArgs),
    /// Look for the slices of a job that does not move. Workers end the job if nothing is left of it:
    /// its recipients without an outcome then count as uncertain
    Repair(RepairArgs),
    /// Tell whether this user got the message, and if not, why
    Recipient {
        #[command(flatten)]
        job: JobArgs,
        /// User id, as in the job's list
        user: String,
    },
    /// Tell what became of each recipient of a list
    Recipients(RecipientsArgs),
    /// List the uncertain recipients of this job, which may or may not have got the message, or say
    /// what became of them
    Uncertain(UncertainArgs),
    /// Take the messages of a job back, if it kept their ids and its target can recall them. Goes on
    /// where an earlier recall ended; exit code 1 if a message is not recalled
    Recall(RecallArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// Most jobs to list
    #[arg(
        short,
        long,
        alias = "most",
        value_name = "NUMBER",
        default_value_t = 20
    )]
    limit: usize,
    /// Only jobs of this app
    #[arg(short, long)]
    app: Option<String>,
    /// Only jobs to this target
    #[arg(short, long)]
    target: Option<String>,
    /// Only jobs in this state
    #[arg(short, long, value_parser = ["accepted", "running", "completed"])]
    state: Option<String>,
    /// Only jobs with this client_msg_no
    #[arg(long)]
    client_msg_no: Option<String>,
    /// Only jobs with this tag
    #[arg(long)]
    tag: Option<String>,
    /// Only jobs whose start time is to come
    #[arg(long)]
    scheduled: bool,
    /// Accepted at or after this time; a time ago such as 2h is possible too
    #[arg(long, value_parser = time)]
    since: Option<u64>,
    /// Accepted before this time
    #[arg(long, value_parser = time)]
    until: Option<u64>,
    /// Print a JSON array
    #[arg(short, long)]
    json: bool,
}

fn time(text: &str) -> Result<u64, String> {
    moment(text, now_ms()).ok_or_else(|| not_a_moment(text))
}

impl ListArgs {
    fn filter(&self) -> JobFilter {
        let state = self.state.as_deref();
        JobFilter {
            app: self.app.clone(),
            target: self.target.clone(),
            client_msg_no: self.client_msg_no.clone(),
            tag: self.tag.clone(),
            state: state.and_then(|it| it.parse().ok()),
            since_ms: self.since,
            until_ms: self.until,
            starts_after_ms: self.scheduled.then(now_ms),
        }
    }
}

impl ListArgs {
    /// Fails if a filter that finds nothing names something that does not exist.
    async fn names_exist(&self, access: &Access) -> Result<(), Failure> {
        if let Some(app) = &self.app {
            access.knows_app(app).await?;
        }
        if let Some(target) = &self.target {
            access.knows_target(target).await?;
        }
        if let Some(key) = &self.client_msg_no {
            let of_key = JobFilter {
                app: self.app.clone(),
                client_msg_no: Some(key.clone()),
                ..JobFilter::default()
            };
            if access.jobs(&of_key, 1).await?.is_empty() {
                let what = job::unknown(&format!("with client_msg_no {key:?}"));
                return Err(Failure::message(Exit::Unavailable, what));
            }
        }
        Ok(())
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct JobArgs {
    #[command(flatten)]
    name: JobName,
    /// Print one JSON object
    #[arg(short, long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct WatchArgs {
    #[command(flatten)]
    job: JobArgs,
    /// Exit code 1 only for dead letters, that is failed or uncertain recipients, and not for those
    /// that expired or were cancelled or capped
    #[arg(long)]
    fail_on_dead: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct JobName {
    /// Job id, as `send` and `job list` print it, or the job's client_msg_no (see --app)
    pub(super) job: String,
    /// App of the job, if the job is named by its client_msg_no [default: the one that the token belongs to,
    /// else default]
    #[arg(short, long)]
    pub(super) app: Option<String>,
}

fn usage(what: String) -> Failure {
    Failure::message(Exit::Usage, what)
}

impl JobName {
    async fn key(&self, access: &Access) -> JobId {
        JobId::of(&access.app_or_own(self.app.as_deref()).await, &self.job)
    }

    /// Finds the job that is named. A client_msg_no may look like an id, so this looks for both; if
    /// two jobs match, only --app says that the key is meant.
    pub(super) async fn id(&self, access: &Access) -> Result<JobId, Failure> {
        let key = self.key(access).await;
        let Ok(id) = self.job.parse::<JobId>() else {
            return Ok(key);
        };
        // A server looks for keys too, so it may find another job than the one of this id.
        let there = access.job(id).await?.is_some_and(|found| found.job == id);
        let keyed = access.job(key).await?.is_some();
        match (there, keyed) {
            (true, true) if self.app.is_none() && id != key => {
                let what = format!(
                    "{} is the id of one job and the client_msg_no of another, whose id is {key}: name that \
                     one by its id, or give --app",
                    self.job
                );
                Err(Failure::message(Exit::Usage, what))
            }
            (_, true) => Ok(key),
            (_, false) => Ok(id),
        }
    }
}

pub(super) async fn run(command: JobCommand, at: At) -> Result<Exit, Failure> {
    let access = at.open_with_ledger()?;
    let subject = |id: JobId| Subject::new(Scope::Job, id.to_string());
    match command {
        JobCommand::List(args) => list(&access, &args).await,
        JobCommand::Show(args) => show(&access, &args).await,
        JobCommand::Watch(args) => {
            let WatchArgs { job, fail_on_dead } = args;
            let id = job.name.id(&access).await?;
            let found = access.job(id).await?;
            found.ok_or_else(|| unknown(&job.name, id))?;
            let mut interrupt = Interrupt::watch()?;
            let record = progress::follow(&access, id, None, &mut interrupt).await?;
            show(&access, &job).await?;
            progress::hint(&record);
            Ok(progress::exit(&record.accounts, fail_on_dead))
        }
        JobCommand::Pause {
            name,
            expiry,
            words,
        } => many::steer(&access, name, ManyCommand::Pause, &words, expiry.expires_in).await,
        JobCommand::Resume { name, words } => {
            many::steer(&access, name, ManyCommand::Resume, &words, None).await
        }
        JobCommand::Cancel { name, words } => {
            many::steer(&access, name, ManyCommand::Cancel, &words, None).await
        }
        JobCommand::Priority {
            name,
            priority,
            words,
        } => {
            // The parser takes no others.
            let priority = priority.parse().or_exit(Exit::Usage)?;
            many::steer(&access, name, ManyCommand::Priority(priority), &words, None).await
        }
        JobCommand::Schedule { name, start, words } => {
            let at = start_time(&start, now_ms()).map_err(usage)?;
            let command = Command::Schedule(name.id(&access).await?, at);
            tell(&access, command, &words, None).await
        }
        JobCommand::Deadline { name, end, words } => {
            let at = end_time(&end, now_ms()).map_err(usage)?;
            let command = Command::Deadline(name.id(&access).await?, at);
            tell(&access, command, &words, None).await
        }
        JobCommand::Pace { name, end, words } => {
            let at = pace_time(&end, now_ms()).map_err(usage)?;
            let command = Command::Pace(name.id(&access).await?, at);
            tell(&access, command, &words, None).await
        }
        JobCommand::Rate {
            name,
            rate,
            expiry,
            words,
        } => {
            let job = subject(name.id(&access).await?);
            let command = Command::Rate(job, LimitKind::Main, parse_rate(&rate)?);
            tell(&access, command, &words, expiry.expires_in).await
        }
        JobCommand::Verify(args) => verify(&access, &args).await,
        JobCommand::Repair(args) => repair::run(&access, &args).await,
        JobCommand::Recipients(args) => questions::recipients(&access, &args).await,
        JobCommand::Uncertain(args) => questions::uncertain(&access, &args).await,
        JobCommand::Recall(args) => recall::run(&access, &args).await,
        JobCommand::Recipient { job, user } => recipient(&access, &job, &user).await,
    }
}

pub(super) fn unknown(name: &JobName, id: JobId) -> Failure {
    let named = format!("{:?} (looked for id {id})", name.job);
    Failure::message(Exit::Unavailable, job::unknown(&named))
}

async fn list(access: &Access, args: &ListArgs) -> Result<Exit, Failure> {
    let jobs = access.jobs(&args.filter(), args.limit).await?;
    if jobs.is_empty() {
        args.names_exist(access).await?;
    }
    if args.json {
        output::json(&jobs)?;
        return Ok(Exit::Ok);
    }
    let now = now_ms();
    let rows: Vec<_> = jobs
        .iter()
        .map(|detail| {
            let job = &detail.record;
            vec![
                job.job.to_string(),
                job.app.clone(),
                job.target.clone(),
                state_of(detail).to_owned(),
                when::relative(job.accepted_at_ms, now),
                grouped(job.accounts.sent + job.accounts.duplicate),
                grouped(job.accounts.total),
                percent(&job.accounts),
                grouped(job.accounts.failed + job.accounts.uncertain),
                job.client_msg_no.clone(),
            ]
        })
        .collect();
    let headings = [
        "JOB", "APP", "TARGET", "STATE", "ACCEPTED", "SENT", "TOTAL", "DONE", "DEAD", "KEY",
    ];
    output::table(&headings, &rows)?;
    Ok(Exit::Ok)
}

/// The state of a job in one word: what stops it, or how it ended, or else how far it is.
fn state_of(detail: &JobDetail) -> &'static str {
    let job = &detail.record;
    let ended = |outcome| job.accounts.of(outcome) > 0;
    let stop = detail.hindrances.iter().find_map(|it| match it.cause {
        Cause::Cancelled => Some("cancelling"),
        Cause::Scheduled => Some("scheduled"),
        Cause::SendingHours => Some("out of hours"),
        Cause::Paused => Some("paused"),
        Cause::Parked => Some("parked"),
        Cause::Ledger => Some("ledger down"),
        Cause::NoWorker => Some("no worker"),
        Cause::Broker => Some("broker down"),
        Cause::NoTarget => Some("no target"),
        _ => None,
    });
    match job.state {
        JobState::Completed if ended(Outcome::Cancelled) => "cancelled",
        JobState::Completed if ended(Outcome::Expired) => "expired",
        JobState::Completed => "completed",
        running => stop.unwrap_or(running.as_str()),
    }
}

/// Recipients with an outcome; never 100 % before the end.
fn percent(accounts: &Accounts) -> String {
    match accounts.total {
        0 => "-".to_owned(),
        total => format!("{}%", accounts.settled() * 100 / total),
    }
}

async fn show(access: &Access, args: &JobArgs) -> Result<Exit, Failure> {
    let id = args.name.id(access).await?;
    let detail = access.detail(id).await?;
    let detail = detail.ok_or_else(|| unknown(&args.name, id))?;
    if args.json {
        output::json(&detail)?;
        return Ok(Exit::Ok);
    }
    let job = &detail.record;
    output::line(format!("job            {}", job.job))?;
    output::line(format!("app            {}", job.app))?;
    output::line(format!("client_msg_no  {}", job.client_msg_no))?;
    output::line(format!("target         {}", job.target))?;
    output::line(format!("state          {}", job.state.as_str()))?;
    for hindrance in &detail.hindrances {
        output::line(format!("hindered by    {}", hindrance.what))?;
    }
    for warning in &job.warnings {
        output::line(format!("warning        {warning}"))?;
    }
    output::line(format!("accepted       {}", when::both(job.accepted_at_ms)))?;
    if let Some(at) = job.not_before_ms {
        output::line(format!("not before     {}", when::both(at)))?;
    }
    if let Some(at) = job.expires_at_ms {
        output::line(format!("expires        {}", when::both(at)))?;
    }
    if let Some(priority) = job.priority {
        output::line(format!("priority       {}", priority.as_str()))?;
    }
    if !job.tags.is_empty() {
        output::line(format!("tags           {}", job.tags.join(", ")))?;
    }
    if let Some(category) = &job.category {
        output::line(format!("category       {category}"))?;
    }
    if let Some(window) = &job.window {
        output::line(format!("sending hours  {window}"))?;
    }
    if let Some(at) = job.progress_at_ms {
        output::line(format!("last progress  {}", when::both(at)))?;
    }
    if let Some(at) = job.completed_at_ms {
        output::line(format!("completed      {}", when::both(at)))?;
    }
    if let Some(rate) = &job.rate {
        output::line(format!("own limit      {rate}"))?;
    }
    if let Some(at) = job.pace_until_ms {
        output::line(format!("spread until   {}", when::both(at)))?;
    }
    if job.keep_ids {
        output::line("message ids    kept")?;
    }
    if let Some(list) = &job.fetched {
        output::line(format!("list           {list}"))?;
    }
    if let Some(fallback) = &job.fallback {
        let reached = grouped(job.sent_by_fallback);
        output::line(format!("second target  {fallback}, reached {reached}"))?;
    }
    for unknown in job.unknown() {
        output::line(format!("not known      {unknown}"))?;
    }
    output::line(format!("total          {}", grouped(job.accounts.total)))?;
    for &outcome in Outcome::ALL {
        output::line(format!(
            "  {:<13}{}",
            outcome.as_str(),
            grouped(job.accounts.of(outcome))
        ))?;
    }
    output::line(format!("  {:<13}{}", "pending", grouped(job.pending)))?;
    if let Some(rate) = detail.recipients_per_second {
        output::line(format!("speed          {rate:.0} recipients/s"))?;
    }
    if let Some(seconds) = detail.eta_seconds {
        output::line(format!("time left      about {} s", grouped(seconds)))?;
    }
    for entry in &detail.audit_trail {
        output::line(format!(
            "changed        {} {entry}",
            when::both(entry.at_ms)
        ))?;
    }
    Ok(Exit::Ok)
}

async fn recipient(access: &Access, args: &JobArgs, user: &str) -> Result<Exit, Failure> {
    let id = args.name.id(access).await?;
    let fate = access.recipient(id, user).await?;
    let fate = fate.ok_or_else(|| unknown(&args.name, id))?;
    if args.json {
        output::json(&fate)?;
        return Ok(Exit::Ok);
    }
    output::line(format!(
        "{user}: {}, {}",
        fate.state.as_str(),
        fate.explanation
    ))?;
    if let Some(letter) = &fate.dead_letter {
        output::line(format!("  first attempt  {}", letter.first_attempt_at))?;
        output::line(format!("  last attempt   {}", letter.last_attempt_at))?;
    }
    Ok(Exit::Ok)
}

async fn verify(access: &Access, args: &JobArgs) -> Result<Exit, Failure> {
    let id = args.name.id(access).await?;
    let found = access.verify(id).await?;
    let found = found.ok_or_else(|| unknown(&args.name, id))?;
    let Verification {
        record: job,
        ledger: audit,
        differences,
    } = found;
    let exact = differences.is_empty();
    let running = job.state != JobState::Completed;
    if args.json {
        output::json(&json!({
            "job": job.job, "exact": exact, "running": running, "accounts": job.accounts,
            "pending": job.pending, "ledger": audit, "differences": differences,
        }))?;
    } else if exact {
        output::line(format!("exact: {}", progress::summary(&job.accounts)))?;
        output::line(format!(
            "the ledger holds {} recipients with an outcome and {} open claims",
            grouped(audit.settled()),
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
