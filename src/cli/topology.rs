//! `fanwise topology apply`, `show` and `delete`.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use super::{checked_config, output};
use crate::app;
use crate::exit::{Exit, Failure, OrExit as _};

#[derive(Debug, Subcommand)]
pub(super) enum TopologyCommand {
    /// Declare every exchange and queue; harmless to repeat
    Apply {
        /// Print one JSON object
        #[arg(short, long)]
        json: bool,
    },
    /// Show every exchange and queue and, from the broker, how full the queues are
    Show {
        /// Do not ask the broker
        #[arg(long)]
        offline: bool,
        /// Print one JSON object that includes every argument
        #[arg(short, long)]
        json: bool,
    },
    /// Delete every exchange and queue of the namespace with all messages in them
    Delete {
        /// Confirm that all messages are deleted
        #[arg(long, required = true)]
        yes: bool,
    },
}

pub(super) async fn run(command: TopologyCommand, file: Option<PathBuf>) -> Result<Exit, Failure> {
    let config = checked_config(file.as_deref(), |config, findings| {
        config.require_broker(findings)
    })?;
    let broker = app::broker(&config)?;
    match command {
        TopologyCommand::Apply { json } => {
            let applied = broker.apply().await.or_exit(Exit::Unavailable)?;
            if json {
                output::json(&json!({"created": applied.created}))?;
            } else if applied.created.is_empty() {
                output::line("everything was there already")?;
            } else {
                applied
                    .created
                    .iter()
                    .try_for_each(|queue| output::line(format!("created {queue}")))?;
            }
        }
        TopologyCommand::Show {
            offline: true,
            json,
        } => {
            if json {
                output::json(&broker.topology())?;
            } else {
                output::line(broker.topology().to_string().trim_end())?;
            }
        }
        TopologyCommand::Show {
            offline: false,
            json,
        } => {
            let depths = broker.depths().await.or_exit(Exit::Unavailable)?;
            if json {
                output::json(&json!({"topology": broker.topology(), "depths": depths}))?;
            } else {
                let rows: Vec<_> = depths
                    .iter()
                    .map(|depth| match depth.counts {
                        Some(counts) => vec![
                            depth.queue.clone(),
                            counts.ready.to_string(),
                            counts.consumers.to_string(),
                        ],
                        None => vec![depth.queue.clone(), "missing".to_owned(), String::new()],
                    })
                    .collect();
                output::table(&["QUEUE", "READY", "CONSUMERS"], &rows)?;
            }
        }
        TopologyCommand::Delete { .. } => {
            broker.delete_all().await.or_exit(Exit::Unavailable)?;
            output::line("deleted")?;
        }
    }
    Ok(Exit::Ok)
}
