//! Writes logs: text on a terminal, JSON elsewhere, always to standard error, because standard
//! output belongs to the result of the command.

use std::io::IsTerminal as _;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;

use crate::domain::fields::suggestion;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    Text,
    Json,
}

/// Selects the lines that are logged: a level, or levels by module. A text without a level is
/// refused, because it would silence everything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(String);

/// From the quietest to the loudest.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

impl Default for LogFilter {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl LogFilter {
    /// Modules that the filter does not name log at `info`. The AMQP client logs nothing unless the
    /// filter names it: it logs the bodies of returned messages, and reports every missing queue as
    /// an error. The `amqp` module logs what matters.
    fn layer(&self) -> EnvFilter {
        EnvFilter::new(format!("info,lapin=off,{}", self.0))
    }
}

impl FromStr for LogFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let directives: Result<Vec<_>, _> = text.split(',').map(directive).collect();
        let filter = directives?.join(",");
        match EnvFilter::try_new(&filter) {
            Ok(_) => Ok(Self(filter)),
            Err(error) => Err(format!("{text:?} is not a log filter: {error}")),
        }
    }
}

/// A directive, with its level as the filter library spells it.
fn directive(text: &str) -> Result<String, String> {
    // A field may have a value too, so the level is behind the last `=` and behind the span.
    let (module, level) = match text.trim().rsplit_once('=') {
        Some((module, level)) if !level.contains([']', '}']) => (Some(module), level),
        _ => (None, text),
    };
    let lower = level.trim().to_ascii_lowercase();
    // Syslog, Python and nginx use this name.
    let lower = if lower == "warning" { "warn" } else { &lower };
    if !LEVELS.contains(&lower) {
        let hint = suggestion(lower, LEVELS)
            .map(|known| format!("; did you mean `{known}`?"))
            .unwrap_or_default();
        return Err(format!(
            "{level:?} is not one of {}{hint}; for a part of the program write, for example, \
             `info,fanwise::worker=debug`",
            LEVELS.join(", ")
        ));
    }
    Ok(match module {
        Some(module) => format!("{module}={lower}"),
        None => lower.to_owned(),
    })
}

/// Starts logging; the second call in a process has no effect.
pub fn start(filter: &LogFilter, format: LogFormat) {
    let terminal = std::io::stderr().is_terminal();
    let json = match format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter.layer())
        .with_writer(std::io::stderr)
        // Such errors would go to standard error as well, and panic if it is closed.
        .log_internal_errors(false)
        .with_ansi(colour);
    let _ = if json {
        logs.json().flatten_event(true).try_init()
    } else {
        logs.with_target(false).try_init()
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_one_of_a_few_words_and_nothing_else() {
        let read = |text: &str| text.parse::<LogFilter>();
        for (text, filter) in [
            ("info", "info"),
            ("WARN", "warn"),
            ("warning", "warn"),
            ("off", "off"),
            (
                "Warning,fanwise::worker=Debug",
                "warn,fanwise::worker=debug",
            ),
            ("info, fanwise=trace", "info,fanwise=trace"),
            ("[job{app=a}]=Debug", "[job{app=a}]=debug"),
        ] {
            assert_eq!(read(text), Ok(LogFilter(filter.to_owned())), "{text}");
        }
        for (text, hint) in [
            (
                "verbose",
                "\"verbose\" is not one of off, error, warn, info",
            ),
            ("inf", "did you mean `info`?"),
            ("debgu", "did you mean `debug`?"),
            ("info,fanwise=loud", "\"loud\" is not one of"),
            ("fanwise::worker", "`info,fanwise::worker=debug`"),
            ("", "is not one of"),
            ("info,", "is not one of"),
            ("[job{app=a}]", "is not one of"),
            ("[job{=debug", ""),
        ] {
            let what = read(text).unwrap_err();
            assert!(what.contains(hint), "{text}: {what}");
        }
    }

    #[test]
    fn a_filter_silences_only_what_it_names() {
        use tracing_subscriber::layer::SubscriberExt as _;

        let logged = |filter: &str| {
            let filter = filter.parse::<LogFilter>().unwrap();
            let subscriber = tracing_subscriber::registry().with(filter.layer());
            tracing::subscriber::with_default(subscriber, || {
                [
                    tracing::enabled!(target: "fanwise::worker", tracing::Level::DEBUG),
                    tracing::enabled!(target: "fanwise::gateway", tracing::Level::INFO),
                    tracing::enabled!(target: "fanwise::gateway", tracing::Level::ERROR),
                    tracing::enabled!(target: "lapin", tracing::Level::ERROR),
                ]
            })
        };
        assert_eq!(logged("info"), [false, true, true, false]);
        assert_eq!(logged("warning"), [false, false, true, false]);
        assert_eq!(
            logged("fanwise::worker=debug"),
            [true, true, true, false],
            "the rest logs as usual"
        );
        assert_eq!(logged("info,lapin=error"), [false, true, true, true]);
        assert_eq!(logged("off"), [false, false, false, false]);
    }
}
