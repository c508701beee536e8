//! Checks the dependencies between the folders of `src`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// For each folder or file of `src`, the parts of the crate that its code outside tests may use. A
/// name that is missing here may use none.
const MAY_USE: &[(&str, &[&str])] = &[
    // Values and contracts.
    ("domain", &["codec", "json"]),
    ("ports", &["domain", "json", "secret"]),
    // Engines: they use neither the worker nor each other.
    ("amqp", &["clock", "domain", "error", "ports", "tls"]),
    (
        "store",
        &["clock", "domain", "error", "json", "ports", "secret", "tls"],
    ),
    ("embedded", &["clock", "domain", "json", "limits", "ports"]),
    // Calls to backends.
    ("http", &["ports"]),
    (
        "im",
        &["clock", "codec", "domain", "json", "ports", "secret"],
    ),
    // Work on jobs.
    ("limits", &["domain", "ports"]),
    ("metrics", &["domain", "ports", "version"]),
    (
        "service",
        &["clock", "domain", "error", "im", "json", "metrics", "ports"],
    ),
    (
        "runtime",
        &[
            "clock", "domain", "error", "json", "limits", "metrics", "ports", "secret", "service",
        ],
    ),
    (
        "worker",
        &[
            "clock", "domain", "error", "json", "metrics", "ports", "runtime", "service",
        ],
    ),
    (
        "gateway",
        &[
            "clock", "domain", "error", "http", "im", "json", "metrics", "ports", "runtime",
            "secret", "service",
        ],
    ),
    // Supporting parts.
    ("admin", &["http", "metrics"]),
    ("telemetry", &["domain"]),
    ("shutdown", &["exit"]),
    ("schema", &["domain", "gateway", "im"]),
    (
        "config",
        &[
            "domain",
            "gateway",
            "im",
            "secret",
            "service",
            "telemetry",
            "tls",
        ],
    ),
    (
        "app",
        &[
            "admin", "amqp", "config", "domain", "embedded", "error", "exit", "gateway", "http",
            "im", "metrics", "ports", "runtime", "secret", "service", "shutdown", "store", "tls",
            "version", "worker",
        ],
    ),
    // The command line uses the service layer, never the gateway.
    (
        "cli",
        &[
            "admin",
            "amqp",
            "app",
            "clock",
            "config",
            "domain",
            "error",
            "exit",
            "http",
            "im",
            "ports",
            "runtime",
            "schema",
            "secret",
            "service",
            "shutdown",
            "store",
            "telemetry",
            "tls",
            "version",
        ],
    ),
];

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name == "tests" || name == "tests.rs" {
            continue;
        }
        if path.is_dir() {
            files(&path, found);
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
}

/// The names directly after `crate::` in code outside tests.
fn used(text: &str) -> BTreeSet<String> {
    let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap();
    let code = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let mut names = BTreeSet::new();
    for line in code {
        for rest in line.split("crate::").skip(1) {
            assert!(
                !rest.starts_with('{'),
                "name one module of the crate a line: {line}"
            );
            let end = rest.find(|it: char| !it.is_alphanumeric() && it != '_');
            names.insert(rest[..end.unwrap_or(rest.len())].to_owned());
        }
    }
    names
}

#[test]
fn no_folder_uses_what_it_may_not() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let table: BTreeMap<_, _> = MAY_USE.iter().copied().collect();
    let mut found = Vec::new();
    files(&root, &mut found);
    assert!(found.len() > 200, "{} files", found.len());
    let mut wrong = Vec::new();
    let mut seen: BTreeSet<(String, String)> = BTreeSet::new();
    for path in found {
        let place = path.strip_prefix(&root).unwrap();
        let module = place
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_str()
            .unwrap();
        let module = module.trim_end_matches(".rs");
        if module == "main" || module == "lib" {
            continue;
        }
        let may = table.get(module).copied().unwrap_or_default();
        for name in used(&fs::read_to_string(&path).unwrap()) {
            if name == module {
                continue;
            }
            if !may.contains(&name.as_str()) {
                wrong.push(format!("{}: crate::{name}", place.display()));
            }
            seen.insert((module.to_owned(), name));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // A dependency that is no longer used must be removed from the table.
    for (module, names) in MAY_USE {
        for name in *names {
            let pair = ((*module).to_owned(), (*name).to_owned());
            assert!(seen.contains(&pair), "{module} does not use {name}");
        }
    }
}

/// The crates that clients use do not depend on the rest, so that they stay small.
#[test]
fn the_crates_of_clients_use_nothing_of_the_rest() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates");
    for (name, others) in [("fanwise-net", 0), ("fanwise-client", 1)] {
        let manifest = fs::read_to_string(crates.join(name).join("Cargo.toml")).unwrap();
        let paths = manifest.lines().filter(|line| line.contains("path ="));
        let paths: Vec<_> = paths.collect();
        assert_eq!(paths.len(), others, "{name}: {paths:?}");
        assert!(paths.iter().all(|line| line.starts_with("fanwise-net =")));
    }
}
