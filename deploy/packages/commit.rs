//! The build script of the crate: names the commit in `fanwise --version`, where a release is built
//! in a repository and `FANWISE_COMMIT` does not name one.
//!
//! It runs again when the sources change, which compiles the crate anyway, and not with every commit.
//! So it costs no build; a build of sources that are not committed says so. Other builds name no
//! commit, because their unit tests are sources too.

#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "this is how cargo and a build script talk"
)]

use std::env;
use std::path::Path;
use std::process::Command;

/// What the program is made of.
const SOURCES: [&str; 6] = [
    "Cargo.lock",
    "Cargo.toml",
    "crates",
    "deploy/init",
    "deploy/packages/commit.rs",
    "src",
];

fn main() {
    println!("cargo:rerun-if-env-changed=FANWISE_COMMIT");
    println!("cargo:rerun-if-changed=deploy/packages/commit.rs");
    let is_named = env::var("FANWISE_COMMIT").is_ok_and(|it| !it.is_empty());
    let is_release = env::var("PROFILE").is_ok_and(|it| it == "release");
    // A source archive may lie inside another repository.
    if is_named || !is_release || !Path::new(".git").exists() {
        return;
    }
    let sources = SOURCES.into_iter().filter(|it| Path::new(it).exists());
    for source in sources.clone() {
        println!("cargo:rerun-if-changed={source}");
    }
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return;
    };
    let changes: Vec<_> = ["status", "--porcelain", "--"]
        .into_iter()
        .chain(sources)
        .collect();
    let dirty = match git(&changes) {
        Some(changes) if changes.is_empty() => "",
        _ => "-dirty",
    };
    println!("cargo:rustc-env=FANWISE_COMMIT={commit}{dirty}");
}

/// What git says; nothing if there is no git, or it refuses.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
