//! The command line. Each file holds one command: it parses, calls and prints, without product
//! logic.

mod access;
mod at;
mod backup;
mod config;
mod control;
mod dead;
mod demo;
mod directives;
mod doctor;
mod healthcheck;
mod job;
mod manual;
mod many;
mod mock_im;
mod output;
mod progress;
mod questions;
mod recall;
mod recipients;
mod repair;
mod schema;
mod send;
mod target_test;
mod template;
mod topology;
mod when;
mod worker;

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

use self::at::{At, ThroughServer};
use crate::config::{Config, ConfigProblems, Findings, LoadError, Loaded, load};
use crate::domain::fields::Problem;
use crate::exit::{Exit, Failure, OrExit as _};
use crate::telemetry::{self, LogFormat};
use crate::version;

/// A durable broadcast worker for instant messaging: one message, many recipients, exact accounts.
#[derive(Debug, Parser)]
#[command(
    name = "fanwise",
    version = version::text(),
    max_term_width = 100,
    arg_required_else_help = true
)]
pub struct Cli {
    /// Configuration file [default: ./fanwise.toml if it exists]
    #[arg(
        short,
        long,
        global = true,
        env = "FANWISE_CONFIG",
        value_name = "FILE"
    )]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show a broadcast with nothing installed: embedded engine, mock IM server, accounts at the
    /// end
    Demo(demo::DemoArgs),
    /// Take jobs from RabbitMQ and deliver them, until stopped
    Worker,
    /// Take jobs over HTTP and pass them to workers, until stopped; run any number of gateways
    Gateway,
    /// Run gateway and worker in one process, without RabbitMQ and Redis unless they are configured
    Serve,
    /// Submit a job
    Send(Box<send::SendArgs>),
    /// List and show jobs; pause, resume, cancel and re-rate them
    Job(ThroughServer<job::JobCommand>),
    /// List the apps; pause and resume one
    App(ThroughServer<control::AppCommand>),
    /// List targets; park, unpark, pause and resume them; test one with a message
    Target(ThroughServer<control::TargetCommand>),
    /// List what operators have set: pauses, cancelled jobs, rates
    Directive(ThroughServer<directives::DirectiveCommand>),
    /// Show and set limits while everything runs
    Limits(ThroughServer<control::LimitsCommand>),
    /// List recipients that failed or are uncertain, send to them again, or remove them
    Dead(ThroughServer<dead::DeadCommand>),
    /// Manage stored messages, which jobs name instead of carrying the text
    Template(ThroughServer<template::TemplateCommand>),
    /// Write a copy of the data of a running `fanwise serve` into a file
    Backup(backup::BackupArgs),
    /// Manage the exchanges and queues on the broker
    #[command(subcommand)]
    Topology(topology::TopologyCommand),
    /// Check or show the configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Check the configuration, broker, ledger and targets, and say how to fix what is wrong
    Doctor(doctor::DoctorArgs),
    /// Exit 0 if the worker on this machine is ready (for container health checks)
    Healthcheck,
    // `MockArgs` has the help text; a doc comment here would hide it.
    MockIm(Box<fanwise_mock_im::MockArgs>),
    /// Print the JSON Schemas of jobs, dead letters and events
    Schema(schema::SchemaArgs),
    /// Print the completions of a shell
    Completions(manual::CompletionsArgs),
    /// Write the man pages of all commands into a folder
    Man(manual::ManArgs),
}

impl Cli {
    /// Runs the command. Standard output carries its result and nothing else.
    pub fn run(self) -> Result<Exit, Failure> {
        let file = self.config;
        match self.command {
            Command::Demo(args) => asynchronous(demo::run(args)),
            Command::Worker => worker::run(file.as_deref()),
            Command::Gateway => worker::gateway(file.as_deref()),
            Command::Serve => worker::serve(file.as_deref()),
            Command::Send(args) => {
                let at = At::new(file, args.server.clone());
                asynchronous(send::run(*args, at))
            }
            Command::Job(ThroughServer { command, server }) => {
                asynchronous(job::run(command, At::new(file, server)))
            }
            Command::App(ThroughServer { command, server }) => {
                asynchronous(control::app(command, At::new(file, server)))
            }
            Command::Target(ThroughServer { command, server }) => {
                asynchronous(control::target(command, At::new(file, server)))
            }
            Command::Directive(ThroughServer { command, server }) => {
                asynchronous(directives::run(command, At::new(file, server)))
            }
            Command::Limits(ThroughServer { command, server }) => {
                asynchronous(control::limits(command, At::new(file, server)))
            }
            Command::Dead(ThroughServer { command, server }) => {
                asynchronous(dead::run(command, At::new(file, server)))
            }
            Command::Template(ThroughServer { command, server }) => {
                asynchronous(template::run(command, At::new(file, server)))
            }
            Command::Backup(args) => {
                let at = At::new(file, args.server.clone());
                asynchronous(backup::run(args, at))
            }
            Command::Topology(command) => asynchronous(topology::run(command, file)),
            Command::Config(command) => config::run(&command, file.as_deref()),
            Command::Doctor(args) => asynchronous(doctor::run(args, file)),
            Command::Healthcheck => asynchronous(healthcheck::run(file)),
            Command::MockIm(args) => asynchronous(mock_im::run(*args)),
            Command::Schema(args) => schema::run(&args),
            Command::Completions(args) => manual::completions(&args),
            Command::Man(args) => manual::man(&args),
        }
    }
}

/// Runs a command on a small runtime.
fn asynchronous<F>(command: F) -> Result<Exit, Failure>
where
    F: Future<Output = Result<Exit, Failure>>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .or_exit(Exit::Internal)?;
    runtime.block_on(Box::pin(command))
}

/// Reads the configuration and collects its problems without failing on them.
fn load_config(file: Option<&Path>) -> Result<Loaded, Failure> {
    load(file, std::env::vars()).map_err(|error: LoadError| Failure::new(Exit::BadConfig, error))
}

/// The configuration of a process that runs until it is stopped.
fn daemon_config(
    file: Option<&Path>,
    concerns: impl Fn(&Problem) -> bool,
    require: impl Fn(&Config, &mut Findings),
) -> Result<Config, Failure> {
    configured(file, LogFormat::Auto, concerns, require)
}

/// The configuration of a command that ends by itself. It logs as text unless told otherwise, and
/// shows no warnings: those are for `config check`, `doctor` and the processes themselves.
fn checked_config(
    file: Option<&Path>,
    require: impl Fn(&Config, &mut Findings),
) -> Result<Config, Failure> {
    configured(file, LogFormat::Text, |_| false, require)
}

/// Hides warnings about the gateway from processes that run none.
fn not_of_the_gateway(warning: &Problem) -> bool {
    !warning.field.starts_with("gateway.")
}

/// Reads the configuration, checks it with what the command requires, and starts logging. `auto` is
/// the log format if the configuration chooses none.
fn configured(
    file: Option<&Path>,
    auto: LogFormat,
    concerns: impl Fn(&Problem) -> bool,
    require: impl Fn(&Config, &mut Findings),
) -> Result<Config, Failure> {
    let mut loaded = load_config(file)?;
    require(&loaded.config, &mut loaded.findings);
    let format = match loaded.config.log.format {
        LogFormat::Auto => auto,
        chosen => chosen,
    };
    telemetry::start(&loaded.config.log.filter, format);
    for warning in loaded.findings.warnings.iter().filter(|it| concerns(it)) {
        let place = loaded.lines.place(&warning.field);
        tracing::warn!("configuration: {place}{warning}");
    }
    loaded
        .check()
        .map_err(|problems: ConfigProblems| Failure::new(Exit::BadConfig, problems))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
