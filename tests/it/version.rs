//! The commit that `fanwise --version` names: the build script, run in repositories.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::scratch::Scratch;
use crate::support::servers::skip;

/// A folder with sources, and the build script, compiled.
struct Build {
    script: PathBuf,
    scratch: Scratch,
}

impl Build {
    /// `None` means skip.
    fn new() -> Option<Self> {
        let scratch = Scratch::new("version");
        let script = scratch.path().join("script");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/packages/commit.rs");
        let compiled = Command::new("rustc")
            .args(["--edition=2024", "-o"])
            .arg(&script)
            .arg(source)
            .output();
        let Ok(compiled) = compiled else {
            skip("there is no rustc");
            return None;
        };
        assert!(compiled.status.success(), "{compiled:?}");
        if Command::new("git").arg("--version").output().is_err() {
            skip("there is no git");
            return None;
        }
        Some(Self { script, scratch })
    }

    fn folder(&self, name: &str) -> PathBuf {
        let folder = self.scratch.path().join(name);
        fs::create_dir_all(folder.join("src")).unwrap();
        fs::write(folder.join("src/lib.rs"), "\n").unwrap();
        folder
    }

    /// What the script says in a folder.
    fn says(&self, folder: &Path, variables: &[(&str, &str)]) -> String {
        let output = Command::new(&self.script)
            .current_dir(folder)
            .env_remove("FANWISE_COMMIT")
            .env_remove("GIT_DIR")
            .env("PROFILE", "release")
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn commit(&self, folder: &Path, variables: &[(&str, &str)]) -> Option<String> {
        let said = self.says(folder, variables);
        let named = said
            .lines()
            .find_map(|line| line.strip_prefix("cargo:rustc-env=FANWISE_COMMIT="));
        named.map(ToOwned::to_owned)
    }
}

fn git(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args(["-c", "user.name=t", "-c", "user.email=t@example.com"])
        .args(arguments)
        .current_dir(folder)
        .env_remove("GIT_DIR")
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_release_names_the_commit_of_its_sources() {
    let Some(build) = Build::new() else { return };
    let archive = build.folder("archive");
    assert_eq!(build.commit(&archive, &[]), None);

    let repository = build.folder("repository");
    git(&repository, &["init", "--quiet"]);
    assert_eq!(
        build.commit(&repository, &[]),
        None,
        "there is no commit yet"
    );
    git(&repository, &["add", "."]);
    git(&repository, &["commit", "--quiet", "--message=first"]);
    let first = git(&repository, &["rev-parse", "--short=12", "HEAD"]);
    assert_eq!(build.commit(&repository, &[]), Some(first.clone()));
    for (name, value) in [("FANWISE_COMMIT", "named"), ("PROFILE", "debug")] {
        assert_eq!(build.commit(&repository, &[(name, value)]), None, "{name}");
    }
    let nobody = [("PATH", "/nonexistent")];
    assert_eq!(build.commit(&repository, &nobody), None, "there is no git");

    // What is no source does not count; a source does.
    fs::write(repository.join("notes"), "x").unwrap();
    assert_eq!(build.commit(&repository, &[]), Some(first.clone()));
    fs::write(repository.join("src/new.rs"), "x").unwrap();
    assert_eq!(
        build.commit(&repository, &[]),
        Some(format!("{first}-dirty"))
    );

    let worktree = build.scratch.path().join("worktree");
    git(
        &repository,
        &["worktree", "add", "--quiet", worktree.to_str().unwrap()],
    );
    assert_eq!(build.commit(&worktree, &[]), Some(first));
    let inside = build.folder("repository/inside");
    assert_eq!(
        build.commit(&inside, &[]),
        None,
        "another repository's commit"
    );
}

/// Cargo runs a script again as often as a file that it names is missing.
#[test]
fn the_commit_is_asked_for_when_sources_change_and_not_more_often() {
    let Some(build) = Build::new() else { return };
    let repository = build.folder("repository");
    git(&repository, &["init", "--quiet"]);
    let said = build.says(&repository, &[]);
    let watched = said
        .lines()
        .filter_map(|line| line.strip_prefix("cargo:rerun-if-changed="));
    let watched: Vec<_> = watched
        .filter(|it| *it != "deploy/packages/commit.rs")
        .collect();
    assert_eq!(watched, ["src"]);
}
