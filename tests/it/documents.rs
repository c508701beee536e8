//! Checks README and `docs`: links, anchors, quoted commands, and names of metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser as _;
use clap::error::ErrorKind;
use fanwise::cli::Cli;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The table of all metrics. A new process does not show those that have no values yet.
const METRICS: &str = include_str!("../../src/metrics.rs");

/// Every Markdown file that users read.
fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<_> = [
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "schemas/mapping.md",
    ]
    .map(|name| Path::new(ROOT).join(name))
    .into();
    for folder in ["docs", "docs/reference"] {
        let entries = fs::read_dir(Path::new(ROOT).join(folder)).unwrap();
        let found = entries.map(|entry| entry.unwrap().path());
        pages.extend(found.filter(|path| path.extension().is_some_and(|it| it == "md")));
    }
    pages.sort();
    pages
}

/// The lines of a page: each with the language of the code block that it is in.
fn lines(text: &str) -> Vec<(Option<String>, &str)> {
    let mut block: Option<String> = None;
    let mut found = Vec::new();
    for line in text.lines() {
        match (line.trim_start().strip_prefix("```"), &block) {
            (Some(language), None) => block = Some(language.to_owned()),
            (Some(_), Some(_)) => block = None,
            (None, _) => found.push((block.clone(), line)),
        }
    }
    found
}

/// The anchor of a heading, as the usual hosts and mdBook make it.
fn anchor(heading: &str) -> String {
    let heading = heading.replace('`', "");
    let kept = heading.trim().to_lowercase();
    let kept = kept
        .chars()
        .filter(|it| it.is_alphanumeric() || " -_".contains(*it));
    kept.map(|it| if it == ' ' { '-' } else { it }).collect()
}

fn anchors(path: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(path).unwrap();
    let headings = lines(&text)
        .into_iter()
        .filter(|(block, _)| block.is_none());
    let headings =
        headings.filter_map(|(_, line)| Some(line.strip_prefix('#')?.trim_start_matches('#')));
    headings.map(anchor).collect()
}

/// The targets of the links outside of code.
fn links(text: &str) -> Vec<String> {
    let prose = lines(text).into_iter().filter(|(block, _)| block.is_none());
    let prose: Vec<_> = prose.map(|(_, line)| line).collect();
    let prose = prose.join("\n");
    let mut parts = prose.split("](");
    parts.next();
    parts
        .filter_map(|part| Some(part.split_once(')')?.0.replace('\n', "")))
        .collect()
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let mut broken = Vec::new();
    let mut count = 0;
    for page in pages() {
        for link in links(&fs::read_to_string(&page).unwrap()) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            count += 1;
            let (file, heading) = link.split_once('#').unwrap_or((&link, ""));
            let target = match file {
                "" => page.clone(),
                file => page.parent().unwrap().join(file),
            };
            let there =
                target.exists() && (heading.is_empty() || anchors(&target).contains(heading));
            if !there {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(count > 100, "only {count} links were found");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn the_book_has_every_page() {
    let docs = Path::new(ROOT).join("docs");
    let summary = fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
    let listed: BTreeSet<_> = links(&summary)
        .into_iter()
        .map(|link| docs.join(link))
        .collect();
    let there: BTreeSet<_> = pages()
        .into_iter()
        .filter(|page| page.starts_with(&docs) && !page.ends_with("SUMMARY.md"))
        .collect();
    assert_eq!(listed, there);
}

// --- commands ------------------------------------------------------------------------------------

/// Splits a command as a shell does, without expansions.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for letter in text.chars() {
        match (letter, quote) {
            (it, Some(open)) if it == open => quote = None,
            (it, Some(_)) => word.get_or_insert_default().push(it),
            ('\'' | '"', None) => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            ('#', None) if word.is_none() => break,
            ('|' | '>' | '<' | ';' | '&', None) => break,
            (it, None) if it.is_whitespace() => words.extend(word.take()),
            (it, None) => word.get_or_insert_default().push(it),
        }
    }
    words.extend(word);
    words
}

/// The commands of Fanwise in a page, and whether each is complete: those in blocks are, those
/// within a sentence can be only a name.
fn commands(text: &str) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    let mut continued = String::new();
    let mut prose = String::new();
    for (block, line) in lines(text) {
        match block.as_deref() {
            Some("sh") => {
                continued.push_str(line.trim_end_matches('\\'));
                if line.ends_with('\\') {
                    continue;
                }
                let line = std::mem::take(&mut continued);
                let start = ["fanwise ", "-- fanwise ", "sudo fanwise "]
                    .iter()
                    .find_map(|it| line.starts_with(it).then(|| it.len() - "fanwise ".len()));
                if let Some(start) = start {
                    found.push((line[start..].to_owned(), true));
                }
            }
            Some(_) => {}
            None => {
                prose.push_str(line);
                prose.push('\n');
            }
        }
    }
    let quoted = prose.split('`').skip(1).step_by(2);
    let quoted = quoted.filter(|code| code.starts_with("fanwise ") && !code.contains('…'));
    found.extend(quoted.map(|code| (code.replace('\n', " "), false)));
    found
}

#[test]
fn every_quoted_command_exists() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for page in pages() {
        for (command, complete) in commands(&fs::read_to_string(&page).unwrap()) {
            count += 1;
            let Err(error) = Cli::try_parse_from(words(&command)) else {
                continue;
            };
            let only_a_name = matches!(
                error.kind(),
                ErrorKind::MissingRequiredArgument
                    | ErrorKind::MissingSubcommand
                    | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
                    | ErrorKind::DisplayHelp
                    | ErrorKind::DisplayVersion
            );
            if complete || !only_a_name {
                wrong.push(format!("{}: {command}\n  {error}", page.display()));
            }
        }
    }
    assert!(count > 100, "only {count} commands were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_named_metric_exists() {
    let known: BTreeSet<_> = METRICS
        .split("(\"fanwise_")
        .skip(1)
        .filter_map(|rest| Some(format!("fanwise_{}", rest.split_once('"')?.0)))
        .collect();
    assert!(known.len() > 30, "only {} metrics were found", known.len());
    let mut unknown = BTreeMap::new();
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        let codes = text.split('`').skip(1).step_by(2);
        let names = codes.map(|code| code.split('{').next().unwrap_or(code));
        for name in names.filter(|name| {
            name.starts_with("fanwise_") && !name.contains('.') && !name.ends_with('_')
        }) {
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end));
            if !known.contains(name) && !family.is_some_and(|it| known.contains(it)) {
                unknown.insert(name.to_owned(), page.clone());
            }
        }
    }
    assert!(unknown.is_empty(), "{unknown:?}");
}

// --- the runbook ---------------------------------------------------------------------------------

/// The names of the alerts in the rules for Prometheus.
fn alerts(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            alerts(&path, found);
        } else if path.extension().is_some_and(|it| it == "yml") {
            let text = fs::read_to_string(&path).unwrap();
            let names = text
                .lines()
                .filter_map(|line| line.trim().strip_prefix("- alert: "));
            found.extend(names.map(|name| name.trim_start_matches("Fanwise").to_owned()));
        }
    }
}

#[test]
fn the_runbook_has_a_whole_entry_for_each_alert() {
    let text = fs::read_to_string(Path::new(ROOT).join("docs/runbook.md")).unwrap();
    let entries: BTreeMap<_, _> = text
        .split("\n## ")
        .skip(1)
        .filter_map(|entry| entry.split_once('\n'))
        .collect();
    for (name, entry) in &entries {
        for part in ["**Users.**", "**Cause.**", "**Do", "**Over** when"] {
            assert!(entry.contains(part), "{name} lacks {part}");
        }
        let line = format!("| [{name}](#{}) |", anchor(name));
        assert!(text.contains(&line), "the table at the top lacks {name}");
    }
    let mut alerts_of_rules = Vec::new();
    alerts(
        &Path::new(ROOT).join("deploy/prometheus"),
        &mut alerts_of_rules,
    );
    for alert in alerts_of_rules {
        assert!(
            entries.contains_key(alert.as_str()),
            "the runbook lacks {alert}"
        );
    }
}
