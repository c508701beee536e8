use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::*;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gateway/console")
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files(&path, found),
            false => found.push(path),
        }
    }
}

/// Our own scripts.
fn scripts() -> impl Iterator<Item = (&'static str, &'static str)> {
    let own = |(kind, path, _): &&(&str, &str, &str)| *kind == SCRIPT && !path.contains("/vendor/");
    FILES
        .iter()
        .filter(own)
        .map(|(_, path, text)| (*path, *text))
}

#[test]
fn every_file_of_the_console_is_served() {
    let mut found = Vec::new();
    files(&folder(), &mut found);
    let there: BTreeSet<_> = found
        .iter()
        .filter(|path| !path.ends_with("tests.rs"))
        .map(|path| path.strip_prefix(folder()).unwrap().to_str().unwrap())
        .filter(|path| !path.contains("README") && !path.contains("LICENSE"))
        .map(str::to_owned)
        .collect();
    let served = FILES.iter().map(|(_, path, _)| match *path {
        "/" => "index.html".to_owned(),
        path => path.strip_prefix("/console/").unwrap().to_owned(),
    });
    assert_eq!(served.collect::<BTreeSet<_>>(), there);
}

/// The pages load nothing from elsewhere, and have no script or style that their rules forbid.
#[test]
fn the_console_needs_nothing_from_elsewhere() {
    for (_, path, text) in FILES {
        if path.contains("/vendor/") {
            continue;
        }
        for outside in [
            "https://",
            "@import",
            "url(",
            "innerHTML",
            "eval(",
            " style=\"",
        ] {
            assert!(!text.contains(outside), "{outside} in {path}");
        }
    }
    let page = include_str!("index.html");
    for script in page.split("<script").skip(1) {
        assert!(
            script.contains("src=\"console/") && script.contains("></script>"),
            "{script}"
        );
    }
}

/// Every word that the pages show has a Chinese one.
#[test]
fn every_word_is_there_in_both_languages() {
    let chinese = include_str!("chinese.js");
    let mut words = BTreeSet::new();
    for (path, script) in scripts() {
        for piece in script.split("t('").skip(1) {
            let word = piece.split('\'').next().unwrap();
            // `t(` also ends other names, such as `split('`.
            let before = &script[..piece.as_ptr() as usize - script.as_ptr() as usize - 3];
            if before.ends_with(|it: char| it.is_alphanumeric() || it == '.' || it == '_') {
                continue;
            }
            assert!(
                chinese.contains(&format!("'{word}': ")),
                "{word:?} of {path} has no Chinese"
            );
            words.insert(word);
        }
    }
    assert!(words.len() > 100, "{}", words.len());
}
