use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use fanwise_net::http::{BAD_URL, CERTIFICATE, PRIVATE_ADDRESS};
use strum::{VariantArray as _, VariantNames as _};

use super::*;
use crate::domain::delivery::RETRY_BUDGET;
use crate::domain::lane::Priority;
use crate::domain::outcome::{Class, OnUncertain};
use crate::domain::trail::Via;
use crate::gateway::problem::Refusal;
use crate::ports::ParkReason;
use crate::service::api::{FateCode, TimeLimit};
use crate::service::control::{Cause, Detail};

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

/// The Chinese sentences of one kind, as the script has them.
fn sentences(kind: &str) -> &'static str {
    let script = include_str!("chinese_sentences.js");
    let begin = format!("export const {kind} = {{");
    let section = script.split_once(&begin).expect(kind).1;
    section.split_once("\n};").expect(kind).0
}

/// Whatever the server can say by a code, the pages say in Chinese too.
#[test]
fn every_code_of_the_server_has_a_chinese_sentence() {
    fn texts<T: Copy + Into<&'static str>>(all: &[T]) -> Vec<&'static str> {
        all.iter().map(|it| (*it).into()).collect()
    }
    let verbs = [
        "pause", "resume", "cancel", "rate", "priority", "schedule", "deadline", "pace", "repair",
        "park", "unpark", "resolve", "recall", "end",
    ];
    let vias = [Via::Cli, Via::Http, Via::Console, Via::Worker].map(Via::as_str);
    for (kind, codes) in [
        ("HINDRANCES", Detail::VARIANTS.to_vec()),
        ("FATES", FateCode::VARIANTS.to_vec()),
        ("LIMITS", TimeLimit::VARIANTS.to_vec()),
        ("PROBLEMS", Refusal::VARIANTS.to_vec()),
        ("PARTS", vec!["gateway", "ledger", "workers"]),
        ("CODES", Cause::VARIANTS.to_vec()),
        ("CODES", texts(ParkReason::ALL)),
        ("CODES", texts(Class::VARIANTS)),
        ("CODES", texts(OnUncertain::VARIANTS)),
        ("CODES", texts(Priority::ALL)),
        ("CODES", verbs.to_vec()),
        ("CODES", vias.to_vec()),
    ] {
        let section = sentences(kind);
        for code in codes {
            let told = [" ", "\n"].map(|before| format!("{before}{code}: "));
            assert!(
                told.iter().any(|told| section.contains(told)),
                "{code:?} has no Chinese in {kind}"
            );
        }
    }
}

/// The codes that a lost or impossible connection gets have a name in Chinese.
#[test]
fn every_code_of_a_broken_connection_has_a_chinese_name() {
    let mut sources = Vec::new();
    let net = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/fanwise-net/src/http");
    files(&net, &mut sources);
    let mut codes = BTreeSet::from([RETRY_BUDGET.to_owned(), CERTIFICATE.to_owned()]);
    codes.extend([PRIVATE_ADDRESS.to_owned(), BAD_URL.to_owned()]);
    for path in sources {
        let source = fs::read_to_string(path).unwrap();
        let begins = source.split("Broken::new(\"").skip(1);
        codes.extend(begins.map(|it| it.split('"').next().unwrap().to_owned()));
    }
    assert!(codes.len() > 6, "{codes:?}");
    let section = sentences("ANSWERS");
    for code in codes {
        assert!(
            section.contains(&format!(" {code}: ")),
            "{code} has no Chinese"
        );
    }
}

/// The forms of sentences without a code are those that the server writes.
#[test]
fn every_known_form_of_a_sentence_is_still_written() {
    let mut sources = Vec::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    files(&source, &mut sources);
    let is_rust = |path: &&PathBuf| path.extension().is_some_and(|it| it == "rs");
    let sources: String = sources
        .iter()
        .filter(is_rust)
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let script = include_str!("chinese_sentences.js");
    let patterns = script.split_once("export const PATTERNS = [").unwrap().1;
    let mut forms = 0;
    for form in patterns.split("[/^").skip(1) {
        let form = form.split("/,").next().unwrap();
        // The longest piece of text between two values.
        let plain = form.replace("\\(", "(").replace("\\)", ")");
        let values = ["(.+?)", "(.+)", "(.*)", "(\\d+)", "(\\w+)", "(\\S+)", "$"];
        let pieces = values
            .iter()
            .fold(plain, |text, value| text.replace(value, "\n"));
        let longest = pieces.lines().max_by_key(|it| it.len()).unwrap();
        // A source may break a long text, or write its quotes with backslashes.
        let words = longest.split('"').max_by_key(|it| it.len()).unwrap();
        let words = words.get(..words.len().min(30)).unwrap_or(words);
        assert!(
            sources.contains(words.trim()),
            "nobody writes {words:?} of {form}"
        );
        forms += 1;
    }
    assert!(forms > 15, "{forms}");
}
