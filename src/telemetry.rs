//! Logs: text on a terminal, JSON elsewhere, always on standard error so that standard output belongs
//! to the command's result.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    Text,
    Json,
}

/// Starts logging; the second call in a process has no effect.
pub fn start(level: &str, format: LogFormat) {
    // The AMQP client logs the bodies of returned messages and calls every queue that is not there
    // yet an error; what matters of it is logged by `amqp`. A filter can still ask for it.
    let filter = EnvFilter::try_new(format!("lapin=off,{level}"));
    let filter = filter.unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::stderr().is_terminal();
    let json = match format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour);
    let _ = if json {
        logs.json().flatten_event(true).try_init()
    } else {
        logs.with_target(false).try_init()
    };
}
