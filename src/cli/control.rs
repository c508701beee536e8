//! `fanwise job pause`, `resume`, `cancel`, `rate`; `fanwise app`; `fanwise target`; `fanwise
//! limits`: control running work, and show the directives in force.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::access::Access;
use super::at::At;
use super::target_test::TestArgs;
use super::{directives, output, target_test};
use crate::clock::rfc3339;
use crate::domain::directive::{Action, Scope, Subject};
use crate::domain::job_limits::LimitKind;
use crate::domain::limits::Rate;
use crate::domain::schedule::parse_duration;
use crate::domain::trail::Origin;
use crate::exit::{Exit, Failure};
use crate::service::control::{
    CONFIGURED, Command, ControlResult, DirectiveNote, LimitView, TargetView,
};

/// The note of a directive, and how to print the result.
#[derive(Debug, Args)]
pub(super) struct Words {
    /// Reason, shown wherever the directive is shown
    #[arg(long)]
    reason: Option<String>,
    /// Author, shown with the reason
    #[arg(long, env = "USER", hide_env_values = true)]
    author: Option<String>,
    /// Print one JSON object
    #[arg(short, long)]
    pub(super) json: bool,
}

impl Words {
    pub(super) fn note(&self, expires_in: Option<Duration>) -> DirectiveNote {
        DirectiveNote {
            reason: self.reason.clone(),
            author: self.author.clone(),
            expires_in,
            origin: Origin::default(),
        }
    }
}

/// When a directive ends by itself.
#[derive(Debug, Args)]
pub(super) struct Expiry {
    /// End it after this time, such as 30m; without this, it lasts until it is ended
    #[arg(long, visible_alias = "for", value_name = "TIME", value_parser = parse_duration)]
    pub(super) expires_in: Option<Duration>,
}

#[derive(Debug, Subcommand)]
pub(super) enum AppCommand {
    /// List the apps: their targets and limits, and whether they send
    List {
        /// Print a JSON array
        #[arg(short, long)]
        json: bool,
    },
    /// Send nothing for this app until it is resumed
    Pause {
        /// Name of the app in the configuration
        app: String,
        #[command(flatten)]
        expiry: Expiry,
        #[command(flatten)]
        words: Words,
    },
    /// Resume sending for this app
    Resume {
        /// Name of the app in the configuration
        app: String,
        #[command(flatten)]
        words: Words,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum TargetCommand {
    /// List all targets: whether they send, and if not, why
    List {
        /// Print a JSON array
        #[arg(short, long)]
        json: bool,
    },
    /// Send one message to one user through this target; show the request and the answer
    Test(TestArgs),
    /// Send nothing to this target for a while
    Park {
        /// Name of the target in the configuration
        target: String,
        /// How long to park it
        #[arg(long = "for", value_name = "TIME", default_value = "10m", value_parser = parse_duration)]
        lasts: Duration,
        #[command(flatten)]
        words: Words,
    },
    /// Try a parked target again at once, for example after you have fixed its configuration
    Unpark {
        /// Name of the target in the configuration
        target: String,
        #[command(flatten)]
        words: Words,
    },
    /// Send nothing to this target until it is resumed
    Pause {
        /// Name of the target in the configuration
        target: String,
        #[command(flatten)]
        expiry: Expiry,
        #[command(flatten)]
        words: Words,
    },
    /// Resume sending to this target
    Resume {
        /// Name of the target in the configuration
        target: String,
        #[command(flatten)]
        words: Words,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum LimitsCommand {
    /// Show the limits of all targets and apps, those that targets share, and those of jobs whose rate
    /// was set
    #[command(visible_alias = "list")]
    Show {
        /// Print a JSON array
        #[arg(short, long)]
        json: bool,
    },
    /// Set a limit for all workers; it takes effect within a second
    Set {
        /// What to limit
        #[arg(value_enum)]
        scope: LimitScope,
        /// Name of the target, the app or the shared limit
        name: String,
        /// Set the second limit of a target or an app, a day
        #[arg(long)]
        daily: bool,
        /// Set the limit of each sender of a target
        #[arg(long, conflicts_with = "daily")]
        sender: bool,
        /// Such as 2000/s, "500/s burst 50" or "120/min per call"; `default` restores the
        /// configured one
        rate: String,
        #[command(flatten)]
        expiry: Expiry,
        #[command(flatten)]
        words: Words,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum LimitScope {
    Target,
    App,
    /// A limit that several targets have together
    Shared,
}

pub(super) async fn app(command: AppCommand, at: At) -> Result<Exit, Failure> {
    let access = at.open_with_ledger()?;
    let subject = |app| Subject::new(Scope::App, app);
    match command {
        AppCommand::List { json } => list_apps(&access, json).await,
        AppCommand::Pause { app, expiry, words } => {
            tell(
                &access,
                Command::Pause(subject(app)),
                &words,
                expiry.expires_in,
            )
            .await
        }
        AppCommand::Resume { app, words } => {
            tell(&access, Command::Resume(subject(app)), &words, None).await
        }
    }
}

pub(super) async fn target(command: TargetCommand, at: At) -> Result<Exit, Failure> {
    let subject = |target| Subject::new(Scope::Target, target);
    match command {
        TargetCommand::Test(args) => target_test::run(args, at).await,
        TargetCommand::List { json } => list(&at.open_with_ledger()?.targets().await?, json),
        TargetCommand::Park {
            target,
            lasts,
            words,
        } => {
            tell(
                &at.open_with_ledger()?,
                Command::Park(target),
                &words,
                Some(lasts),
            )
            .await
        }
        TargetCommand::Unpark { target, words } => {
            tell(
                &at.open_with_ledger()?,
                Command::Unpark(target),
                &words,
                None,
            )
            .await
        }
        TargetCommand::Pause {
            target,
            expiry,
            words,
        } => {
            let command = Command::Pause(subject(target));
            tell(&at.open_with_ledger()?, command, &words, expiry.expires_in).await
        }
        TargetCommand::Resume { target, words } => {
            tell(
                &at.open_with_ledger()?,
                Command::Resume(subject(target)),
                &words,
                None,
            )
            .await
        }
    }
}

pub(super) async fn limits(command: LimitsCommand, at: At) -> Result<Exit, Failure> {
    let access = at.open_with_ledger()?;
    match command {
        LimitsCommand::Show { json } => show_limits(&access.limits().await?, json),
        LimitsCommand::Set {
            scope,
            name,
            daily,
            sender,
            rate,
            expiry,
            words,
        } => {
            let scope = match scope {
                LimitScope::Target => Scope::Target,
                LimitScope::App => Scope::App,
                LimitScope::Shared => Scope::Shared,
            };
            let kind = match (daily, sender) {
                (true, _) => LimitKind::Daily,
                (false, true) => LimitKind::Sender,
                (false, false) => LimitKind::Main,
            };
            let command = Command::Rate(Subject::new(scope, name), kind, parse_rate(&rate)?);
            tell(&access, command, &words, expiry.expires_in).await
        }
    }
}

/// Parses a rate; `None` is the configured one.
pub(super) fn parse_rate(text: &str) -> Result<Option<Rate>, Failure> {
    if text == CONFIGURED {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|error| {
        let hint = match text.starts_with('0') {
            true => "; to stop sending, pause the target, the app or the job",
            false => "",
        };
        Failure::message(Exit::Usage, format!("{error}{hint}"))
    })
}

/// Carries out a command and prints the state that results.
pub(super) async fn tell(
    access: &Access,
    command: Command,
    words: &Words,
    expires_in: Option<Duration>,
) -> Result<Exit, Failure> {
    let result = access.steer(&command, &words.note(expires_in)).await?;
    if words.json {
        output::json(&result)?;
    } else {
        for line in lines(&command, &result) {
            output::line(line)?;
        }
    }
    Ok(Exit::Ok)
}

fn lines(command: &Command, result: &ControlResult) -> Vec<String> {
    let subject = &result.subject;
    let mut lines = Vec::new();
    if !result.changed {
        let was = match command {
            Command::Resume(_) => "was not paused",
            Command::Unpark(_) => "was not parked",
            Command::Rate(..) => "had its configured limit",
            _ => "stays as it was",
        };
        lines.push(format!("{subject} {was}"));
    }
    let until =
        |ms: Option<u64>| ms.map_or_else(String::new, |ms| format!(" (until {})", rfc3339(ms)));
    for directive in &result.directives {
        // A cancelled job stays cancelled: the directive's end does not matter.
        let end = match directive.action {
            Action::Cancel => String::new(),
            _ => until(directive.until_ms),
        };
        lines.push(format!("{subject} {directive}{end}"));
    }
    if let Some(park) = &result.parked {
        lines.push(format!(
            "{subject} is parked, {park}{}",
            until(Some(park.until_ms))
        ));
    }
    if lines.is_empty() {
        lines.push(match command {
            Command::Rate(..) => format!("{subject} has its configured limit again"),
            _ => format!("{subject} goes on"),
        });
    }
    lines
}

async fn list_apps(access: &Access, as_json: bool) -> Result<Exit, Failure> {
    let apps = access.apps().await?;
    if as_json {
        output::json(&apps)?;
        return Ok(Exit::Ok);
    }
    let directives = access.directives_if_permitted().await?;
    let rows: Vec<_> = apps
        .iter()
        .map(|app| {
            let (state, why) = match &directives {
                None => ("not shown to an app".to_owned(), String::new()),
                Some(all) => match directives::pause_of(all, &app.name) {
                    Some(pause) => ("paused".to_owned(), pause.to_string()),
                    None => ("moving".to_owned(), String::new()),
                },
            };
            let target = app.default_target.clone();
            vec![
                app.name.clone(),
                target.unwrap_or_else(|| "(each job names one)".to_owned()),
                rate_text(app.limit, false),
                state,
                why,
            ]
        })
        .collect();
    output::table(&["APP", "TARGET", "LIMIT", "STATE", "WHY"], &rows)?;
    Ok(Exit::Ok)
}

fn list(targets: &[TargetView], as_json: bool) -> Result<Exit, Failure> {
    if as_json {
        output::json(&targets)?;
        return Ok(Exit::Ok);
    }
    let rows: Vec<_> = targets
        .iter()
        .map(|target| {
            vec![
                target.name.clone(),
                target.facts.system.clone(),
                target.facts.address.clone().unwrap_or_default(),
                target.limit_text(),
                target.facts.recipients_per_call.to_string(),
                target.facts.on_uncertain.as_str().to_owned(),
                target.state_text(),
                target.why(),
            ]
        })
        .collect();
    let headings = [
        "TARGET", "TYPE", "ADDRESS", "LIMIT", "PER CALL", "IN DOUBT", "STATE", "WHY",
    ];
    output::table(&headings, &rows)?;
    Ok(Exit::Ok)
}

fn show_limits(limits: &[LimitView], as_json: bool) -> Result<Exit, Failure> {
    if as_json {
        output::json(&limits)?;
        return Ok(Exit::Ok);
    }
    let rows: Vec<_> = limits
        .iter()
        .map(|limit| {
            let configured = rate_text(limit.configured, false);
            let live = limit.live.as_ref();
            let until = live.and_then(|live| live.until_ms).map(rfc3339);
            let rate = rate_text(limit.limit(), live.is_some());
            vec![
                limit.subject.scope.as_str().to_owned(),
                limit.subject.name.clone(),
                match limit.kind {
                    LimitKind::Main => String::new(),
                    LimitKind::Daily => "a day".to_owned(),
                    LimitKind::Sender => "each sender".to_owned(),
                },
                match limit.adapted {
                    Some(adapted) => format!("adapted: {} of {rate}", adapted.short()),
                    None => rate,
                },
                limit.booked.map(share).unwrap_or_default(),
                configured,
                until.unwrap_or_default(),
                live.map(ToString::to_string).unwrap_or_default(),
            ]
        })
        .collect();
    let headings = [
        "SCOPE",
        "NAME",
        "KIND",
        "LIMIT",
        "BOOKED",
        "CONFIGURED",
        "UNTIL",
        "WHY",
    ];
    output::table(&headings, &rows)?;
    Ok(Exit::Ok)
}

/// The booked share of a burst: `0 %` is idle, `100 %` and more has calls waiting.
fn share(booked: f64) -> String {
    format!("{:.0} %", (booked * 100.0).max(0.0))
}

fn rate_text(rate: Option<Rate>, live: bool) -> String {
    let rate = rate.map_or_else(|| "none".to_owned(), |rate| rate.to_string());
    if live { format!("{rate} (live)") } else { rate }
}
