//! `fanwise template put`, `get`, `list` and `delete`: stored messages that jobs name.

use std::io::{IsTerminal as _, Read as _};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::at::At;
use super::output;
use crate::domain::fields::summary;
use crate::domain::message::MessageDocument;
use crate::domain::template::{read_template, wrong_template_name};
use crate::exit::{Exit, Failure, OrExit as _};
use crate::service::api::TemplateRow;

#[derive(Debug, Subcommand)]
pub(super) enum TemplateCommand {
    /// Store a message from a file, a text, or standard input
    ///
    /// The file holds the `message` of a job, as JSON. Running jobs keep the version they started
    /// with.
    Put {
        /// Name that jobs refer to it by
        name: String,
        /// Read the message from a file, as JSON
        #[arg(long, value_name = "FILE", conflicts_with = "text")]
        file: Option<PathBuf>,
        /// Store a message of type text
        #[arg(long)]
        text: Option<String>,
        #[command(flatten)]
        of: Of,
    },
    /// Print a stored message
    Get {
        /// Name that jobs refer to it by
        name: String,
        /// Print an older version, as long as it is kept [default: the newest]
        #[arg(long)]
        version: Option<u32>,
        #[command(flatten)]
        of: Of,
    },
    /// List the stored messages of an app with their newest versions
    List {
        /// Most messages to list [default: all]
        #[arg(long, value_name = "NUMBER")]
        limit: Option<usize>,
        #[command(flatten)]
        of: Of,
    },
    /// Delete a stored message for new jobs; running jobs keep it
    Delete {
        /// Name that jobs refer to it by
        name: String,
        #[command(flatten)]
        of: Of,
    },
}

impl TemplateCommand {
    /// The app that it names.
    fn app(&self) -> Option<&str> {
        let (Self::Put { of, .. }
        | Self::Get { of, .. }
        | Self::List { of, .. }
        | Self::Delete { of, .. }) = self;
        of.app.as_deref()
    }

    /// Checks names before any request: they become parts of paths and keys.
    fn check_names(&self) -> Result<(), Failure> {
        let wrong = match self {
            Self::Put { name, of, .. } | Self::Get { name, of, .. } | Self::Delete { name, of } => {
                wrong_template_name(name).or_else(|| of.wrong_app())
            }
            Self::List { of, .. } => of.wrong_app(),
        };
        wrong.map_or(Ok(()), |what| Err(Failure::message(Exit::BadInput, what)))
    }
}

#[derive(Debug, Args)]
pub(super) struct Of {
    /// App (tenant) that the message belongs to [default: the one that the token belongs to, else
    /// default]
    #[arg(long)]
    app: Option<String>,
    /// Print JSON
    #[arg(short, long)]
    json: bool,
}

impl Of {
    fn wrong_app(&self) -> Option<String> {
        wrong_template_name(self.app.as_deref()?)
    }
}

pub(super) async fn run(command: TemplateCommand, at: At) -> Result<Exit, Failure> {
    let access = at.open(|_, _| {})?;
    command.check_names()?;
    let app = access.app_or_own(command.app()).await;
    match command {
        TemplateCommand::Put {
            name,
            file,
            text,
            of,
        } => {
            let message = message(file, text)?;
            access.knows_app(&app).await?;
            check(&message)?;
            let stored = access.put_template(&app, &name, message).await?;
            if of.json {
                output::json(&stored)?;
            } else {
                output::line(format!("stored {name}, version {}", stored.version))?;
            }
        }
        TemplateCommand::Get { name, version, of } => {
            let stored = access.template(&app, &name, version).await?;
            let Some(stored) = stored else {
                access.knows_app(&app).await?;
                return Err(missing(&app, &name));
            };
            if of.json {
                output::json(&stored)?;
            } else {
                output::json(&stored.message)?;
            }
        }
        TemplateCommand::List { limit, of } => {
            let stored = access.templates(&app).await?;
            if stored.is_empty() {
                access.knows_app(&app).await?;
            }
            let stored = output::limited(&stored, limit);
            if of.json {
                output::json(&stored)?;
            } else {
                let row = |it: &TemplateRow| vec![it.name.clone(), it.version.to_string()];
                let rows: Vec<_> = stored.iter().map(row).collect();
                output::table(&["NAME", "VERSION"], &rows)?;
            }
        }
        TemplateCommand::Delete { name, of } => {
            if !access.delete_template(&app, &name).await? {
                access.knows_app(&app).await?;
                return Err(missing(&app, &name));
            }
            if of.json {
                output::json(&json!({"app": app, "name": name, "deleted": true}))?;
            } else {
                output::line(format!("deleted {name}; jobs that started with it keep it"))?;
            }
        }
    }
    Ok(Exit::Ok)
}

fn message(file: Option<PathBuf>, text: Option<String>) -> Result<String, Failure> {
    match (file, text) {
        (_, Some(text)) => {
            let document = MessageDocument {
                kind: Some("text".to_owned()),
                text: Some(text),
                ..MessageDocument::default()
            };
            serde_json::to_string(&document).or_exit(Exit::Internal)
        }
        (Some(path), None) => std::fs::read_to_string(&path).map_err(|error| {
            let what = format!("cannot read {}: {error}", path.display());
            Failure::message(Exit::BadInput, what)
        }),
        (None, None) => {
            let how = "give --text or --file, or pass its JSON on standard input";
            let mut stdin = std::io::stdin();
            if stdin.is_terminal() {
                let what = format!("the message is missing: {how}");
                return Err(Failure::message(Exit::Usage, what));
            }
            let mut message = String::new();
            stdin.read_to_string(&mut message).or_exit(Exit::BadInput)?;
            if message.trim().is_empty() {
                let what = format!("standard input is empty: {how}");
                return Err(Failure::message(Exit::BadInput, what));
            }
            Ok(message)
        }
    }
}

/// Checks the message before it is stored.
fn check(message: &str) -> Result<(), Failure> {
    read_template(message)
        .map(drop)
        .map_err(|problems| Failure::message(Exit::BadInput, summary(&problems)))
}

fn missing(app: &str, name: &str) -> Failure {
    let what = format!("app {app:?} has no stored message {name:?}; fanwise template list");
    Failure::message(Exit::Unavailable, what)
}
