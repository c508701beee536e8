//! `fanwise app list` and `fanwise directive list`: what there is to steer, and what is in force.

use clap::Subcommand;

use super::at::At;
use super::{output, when};
use crate::clock::now_ms;
use crate::domain::directive::{Action, Scope};
use crate::exit::{Exit, Failure};
use crate::service::control::DirectiveView;

#[derive(Debug, Subcommand)]
pub(super) enum DirectiveCommand {
    /// List what operators have set: pauses, cancelled jobs, rates, and jobs that met a
    /// configuration fault
    List {
        /// Print a JSON array
        #[arg(short, long)]
        json: bool,
    },
}

pub(super) async fn run(command: DirectiveCommand, at: At) -> Result<Exit, Failure> {
    let DirectiveCommand::List { json } = command;
    let access = at.open_with_ledger()?;
    let directives = access.directives().await?;
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
                action(&it.action),
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

fn action(action: &Action) -> String {
    match action {
        Action::Pause => "paused".to_owned(),
        Action::Cancel => "cancelled".to_owned(),
        Action::Rate { rate } => format!("rate {}", rate.short()),
        Action::Park { .. } => "parked".to_owned(),
    }
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
