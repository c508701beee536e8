//! `fanwise config check` and `fanwise config show`.

mod init;

use std::path::Path;

use clap::Subcommand;
use serde::Serialize;
use serde_json::json;

use self::init::System;
use super::{load_config, output};
use crate::config::Origin;
use crate::domain::fields::Problem;
use crate::exit::{Exit, Failure};

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Write a small configuration to begin with, ./fanwise.toml unless --config names another file
    Init {
        /// System that it is for
        #[arg(value_enum, default_value = "webhook")]
        system: System,
        /// Print it and write no file
        #[arg(short, long)]
        print: bool,
    },
    /// Report every problem with its key and its line; exit 78 if there is one
    Check {
        /// Print one JSON object
        #[arg(short, long)]
        json: bool,
    },
    /// Show every setting in force and where it comes from; secrets stay hidden
    Show {
        /// Print one JSON object
        #[arg(short, long)]
        json: bool,
    },
}

pub(super) fn run(command: &ConfigCommand, file: Option<&Path>) -> Result<Exit, Failure> {
    match command {
        ConfigCommand::Init { system, print } => init::init(*system, *print, file),
        ConfigCommand::Check { json } => check(file, *json),
        ConfigCommand::Show { json } => show(file, *json),
    }
}

/// A problem with its line in the file.
#[derive(Serialize)]
struct Located {
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(flatten)]
    problem: Problem,
}

fn check(file: Option<&Path>, as_json: bool) -> Result<Exit, Failure> {
    let mut loaded = load_config(file)?;
    loaded.config.require_process(&mut loaded.findings);
    let place = loaded
        .file
        .as_ref()
        .map_or("the environment".into(), |file| file.display().to_string());
    let findings = &loaded.findings;
    let located = |found: &[Problem]| {
        let located = found.iter().map(|problem| Located {
            line: loaded.lines.find(&problem.field),
            problem: problem.clone(),
        });
        located.collect::<Vec<_>>()
    };
    if as_json {
        output::json(&json!({
            "ok": findings.problems.is_empty(),
            "file": loaded.file,
            "problems": located(&findings.problems),
            "warnings": located(&findings.warnings),
        }))?;
        return Ok(if findings.problems.is_empty() {
            Exit::Ok
        } else {
            Exit::BadConfig
        });
    }
    for warning in &findings.warnings {
        let place = loaded.lines.place(&warning.field);
        output::line(format!("warning: {place}{warning}"))?;
    }
    if !findings.problems.is_empty() {
        return loaded
            .check()
            .map(|_| Exit::Ok)
            .map_err(|problems| Failure::new(Exit::BadConfig, problems));
    }
    output::line(format!(
        "ok: {} settings, {} target(s), {} app(s), from {place}",
        findings.shown.len(),
        loaded.config.targets.len(),
        loaded.config.apps.len()
    ))?;
    Ok(Exit::Ok)
}

fn show(file: Option<&Path>, as_json: bool) -> Result<Exit, Failure> {
    let loaded = load_config(file)?;
    let origin = |origin| match origin {
        Origin::Default => "default",
        Origin::File => "file",
        Origin::Environment => "environment",
    };
    let shown = &loaded.findings.shown;
    if as_json {
        let settings: serde_json::Map<_, _> = shown
            .iter()
            .map(|(key, shown)| {
                (
                    key.clone(),
                    json!({"value": shown.value, "origin": origin(shown.origin)}),
                )
            })
            .collect();
        output::json(&settings)?;
    } else {
        let rows: Vec<_> = shown
            .iter()
            .map(|(key, shown)| {
                vec![
                    key.clone(),
                    shown.value.clone(),
                    origin(shown.origin).to_owned(),
                ]
            })
            .collect();
        output::table(&["KEY", "VALUE", "FROM"], &rows)?;
    }
    Ok(Exit::Ok)
}
