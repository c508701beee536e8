//! `fanwise directive list`: what operators and workers have set, and how long it lasts.

use clap::Subcommand;

use super::at::At;
use super::{output, when};
use crate::clock::now_ms;
use crate::domain::directive::{Action, Scope};
use crate::exit::{Exit, Failure};
use crate::service::control::DirectiveView;

#[derive(Debug, Subcommand)]
pub(super) enum DirectiveCommand {
    /// List what is in force: pauses, cancelled jobs, rates, priorities, times, and jobs that are
    /// parked
    List {
        /// Most directives to list [default: all]
        #[arg(short, long, value_name = "NUMBER")]
        limit: Option<usize>,
        /// Print a JSON array
        #[arg(short, long)]
        json: bool,
    },
}

pub(super) async fn run(command: DirectiveCommand, at: At) -> Result<Exit, Failure> {
    let DirectiveCommand::List { limit, json } = command;
    let access = at.open_with_ledger()?;
    let directives = access.directives().await?;
    let directives = output::limited(&directives, limit);
    if json {
        output::json(&directives)?;
        return Ok(Exit::Ok);
    }
    let now = now_ms();
    let rows: Vec<_> = directives
        .iter()
        .map(|it| {
            vec![
                it.subject.scope.as_str().to_owned(),
                it.subject.name.clone(),
                it.action.to_string(),
                when::relative(it.since_ms, now),
                it.until_ms
                    .map(|until| when::relative(until, now))
                    .unwrap_or_default(),
                it.author.clone().unwrap_or_default(),
                it.reason.clone().unwrap_or_default(),
            ]
        })
        .collect();
    let headings = ["SCOPE", "NAME", "ACTION", "SINCE", "ENDS", "BY", "REASON"];
    output::table(&headings, &rows)?;
    Ok(Exit::Ok)
}

/// The directive that pauses this app, if there is one.
pub(super) fn pause_of<'a>(
    directives: &'a [DirectiveView],
    app: &str,
) -> Option<&'a DirectiveView> {
    directives.iter().find(|it| {
        it.subject.scope == Scope::App
            && it.subject.name == app
            && matches!(it.action, Action::Pause)
    })
}
