//! Holds `docs/reference` to the code: commands, configuration keys and metrics.
//!
//! `FANWISE_WRITE_REFERENCE=1 cargo test --test it reference` writes the pages anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;
use std::{env, fs};

use clap::{Arg, Command, CommandFactory as _};
use fanwise::cli::Cli;
use fanwise::domain::lane::Priority;
use fanwise::metrics::{BrokerUser, ClusterFigures, LedgerStep, Metrics, Waiting};
use fanwise::ports::Scope;

const EXAMPLE: &str = include_str!("../../deploy/fanwise.example.toml");

/// Compares a page with what the code says, or writes it.
fn check(name: &str, page: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference");
    let path = path.join(name);
    if env::var_os("FANWISE_WRITE_REFERENCE").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        return fs::write(&path, page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    let different = written
        .lines()
        .zip(page.lines())
        .find(|(old, new)| old != new);
    assert!(
        written == page,
        "docs/reference/{name} is not what the code says ({different:?}); \
         FANWISE_WRITE_REFERENCE=1 cargo test --test it reference writes it"
    );
}

/// A text as a cell of a table.
fn cell(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    text.replace('|', "\\|").replace('<', "&lt;")
}

// --- commands ------------------------------------------------------------------------------------

fn usage(arg: &Arg) -> String {
    let values: Vec<_> = arg.get_value_names().unwrap_or_default().iter().collect();
    let takes = arg.get_action().takes_values();
    let value = values.first().map_or("VALUE", |it| it.as_str());
    match (arg.get_long(), arg.get_short()) {
        (Some(long), _) if takes => format!("--{long} {value}"),
        (Some(long), _) => format!("--{long}"),
        (None, Some(short)) => format!("-{short}"),
        (None, None) => value.to_owned(),
    }
}

fn meaning(arg: &Arg) -> String {
    let help = arg.get_long_help().or(arg.get_help());
    let mut text = help.map(ToString::to_string).unwrap_or_default();
    let possible: Vec<_> = arg.get_possible_values();
    let possible: Vec<_> = possible
        .iter()
        .filter(|it| !it.is_hide_set())
        .map(|it| format!("`{}`", it.get_name()))
        .collect();
    if !possible.is_empty() && arg.get_action().takes_values() {
        let _ = write!(text, " ({})", possible.join(", "));
    }
    let defaults: Vec<_> = arg.get_default_values().iter().collect();
    if !defaults.is_empty() && arg.get_action().takes_values() {
        let defaults: Vec<_> = defaults.iter().map(|it| it.to_string_lossy()).collect();
        let _ = write!(text, "; `{}` unless given", defaults.join(" "));
    }
    text
}

fn describe(command: &Command, name: &str, page: &mut String) {
    let about = command.get_long_about().or(command.get_about());
    let about = about.map(ToString::to_string).unwrap_or_default();
    let _ = write!(page, "\n## {name}\n\n{}\n", about.trim());
    let arguments: Vec<_> = command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set() && !arg.is_global_set())
        .filter(|arg| !["help", "version"].contains(&arg.get_id().as_str()))
        .collect();
    if !arguments.is_empty() {
        page.push_str("\n| argument | meaning |\n|---|---|\n");
        for arg in arguments {
            let _ = writeln!(page, "| `{}` | {} |", usage(arg), cell(&meaning(arg)));
        }
    }
    for inner in command.get_subcommands().filter(|it| !it.is_hide_set()) {
        describe(inner, &format!("{name} {}", inner.get_name()), page);
    }
}

#[test]
fn the_reference_of_commands_is_that_of_the_code() {
    let command = Cli::command();
    let mut page = String::from(
        "# Commands\n\nEvery command takes `--config FILE` (or `FANWISE_CONFIG`) and `--help`. \
         [operating.md](../operating.md#exit-codes) lists the exit codes.\n\n\
         These options choose the server of `send`, `job`, `app`, `target`, `limits`, `dead` and \
         `template`; without them, the configuration says where the command works, see \
         [operating.md](../operating.md#from-another-machine):\n\n| argument | meaning |\n|---|---|\n",
    );
    let send = command.find_subcommand("send").unwrap();
    for arg in send.get_arguments().filter(|arg| arg.is_global_set()) {
        let _ = writeln!(page, "| `{}` | {} |", usage(arg), cell(&meaning(arg)));
    }
    describe(&command, "fanwise", &mut page);
    check("commands.md", &page);
}

// --- configuration -------------------------------------------------------------------------------

#[test]
fn the_reference_of_keys_is_that_of_the_example() {
    let mut page = String::from(
        "# Configuration keys\n\nThese are the keys of \
         [deploy/fanwise.example.toml](../../deploy/fanwise.example.toml), which a test compares with \
         the code. [configuration.md](../configuration.md) gives the overview.\n",
    );
    let mut text = String::new();
    let mut in_table = false;
    for line in EXAMPLE.lines() {
        if let Some(comment) = line.strip_prefix("# ").filter(|it| !it.starts_with("---")) {
            text.push_str(comment);
            text.push('\n');
            continue;
        }
        let code = line.strip_prefix('#').unwrap_or(line);
        if let Some(section) = code.strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
            let _ = write!(page, "\n## {section}\n");
            if !text.is_empty() {
                let _ = write!(page, "\n{text}");
            }
            in_table = false;
        } else if let Some((key, value)) = code.split_once(" = ") {
            if !in_table {
                page.push_str("\n| key | default | meaning |\n|---|---|---|\n");
                in_table = true;
            }
            // What the example shows for these is an example.
            let none = key.ends_with("_file")
                || ["No default", "Required"]
                    .iter()
                    .any(|it| text.contains(it));
            let value = match none {
                true => String::new(),
                false => format!("`{value}`"),
            };
            let _ = writeln!(page, "| `{key}` | {value} | {} |", cell(&text));
        }
        text.clear();
    }
    check("configuration.md", &page);
}

// --- metrics -------------------------------------------------------------------------------------

/// The label names and values of each family, as a new process shows them.
fn labels(text: &str) -> BTreeMap<String, BTreeMap<String, BTreeSet<String>>> {
    let mut found = BTreeMap::<_, BTreeMap<_, BTreeSet<_>>>::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, rest)) = line.split_once('{') else {
            continue;
        };
        let Some((labels, _)) = rest.split_once('}') else {
            continue;
        };
        let name = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end))
            .unwrap_or(name);
        for label in labels.split(',') {
            let Some((label, value)) = label.split_once('=') else {
                continue;
            };
            if label != "le" {
                let values = found
                    .entry(name.to_owned())
                    .or_default()
                    .entry(label.to_owned());
                values
                    .or_default()
                    .insert(value.trim_matches('"').to_owned());
            }
        }
    }
    found
}

/// Gives every metric a value that has none at the start.
fn fill(metrics: &Metrics) {
    let im = || "im".to_owned();
    let _ = (metrics.target("im"), metrics.apps(["shop"].into_iter()));
    let pending = Priority::ALL
        .iter()
        .map(|it| ((im(), *it), Default::default()));
    let slices = BTreeMap::from([(im(), 0)]);
    metrics.cluster(Some(&ClusterFigures {
        pending: pending.collect(),
        standstill_ms: BTreeMap::from([(im(), 0)]),
        waiting: Some(Waiting {
            slices,
            ..Waiting::default()
        }),
        ..ClusterFigures::default()
    }));
    let limits = [Scope::Target, Scope::App].map(|scope| (scope, "im", 0.0));
    metrics.limits(&limits);
    for user in [BrokerUser::Worker, BrokerUser::Gateway] {
        metrics.uses_broker(user);
    }
    for status in [100, 200, 300, 400, 500] {
        metrics.request("POST /v1/jobs", status, Duration::ZERO);
    }
    for step in LedgerStep::ALL {
        metrics.ledger(*step, Duration::ZERO, true);
    }
    metrics.connections(0, 0);
    metrics.certificate_expires(0);
    metrics.store(0, 0, 0);
    metrics.commit(Duration::ZERO);
}

#[test]
fn the_reference_of_metrics_is_that_of_the_code() {
    let metrics = Metrics::new();
    fill(&metrics);
    let text = metrics.text();
    let labels = labels(&text);
    let kinds: BTreeMap<_, _> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .collect();
    let mut page = String::from(
        "# Metrics\n\nThe admin port serves these at `/metrics`, beside the usual `process_…` metrics. \
         A label whose values are not listed has the names of targets, apps or the like.\n\n\
         | metric | kind | labels | meaning |\n|---|---|---|---|\n",
    );
    for line in text.lines() {
        let Some((name, help)) = line
            .strip_prefix("# HELP ")
            .and_then(|it| it.split_once(' '))
        else {
            continue;
        };
        if !name.starts_with("fanwise_") {
            continue;
        }
        let described = labels
            .get(name)
            .into_iter()
            .flatten()
            .map(|(label, values)| {
                let open = ["target", "app", "name", "version", "commit", "route"]
                    .contains(&label.as_str());
                let values: Vec<_> = values.iter().map(String::as_str).collect();
                match open {
                    true => format!("`{label}`"),
                    false => format!("`{label}`: {}", values.join(", ")),
                }
            });
        let described: Vec<_> = described.collect();
        let kind = kinds.get(name).copied().unwrap_or_default();
        let _ = writeln!(
            page,
            "| `{name}` | {kind} | {} | {} |",
            described.join("; "),
            cell(help)
        );
    }
    for metric in Metrics::ALL {
        let row = format!("| `{}` |", metric.name);
        assert!(page.contains(&row), "{} has no value here", metric.name);
    }
    check("metrics.md", &page);
}
