//! The example file and the configurations in the documents are valid and complete.

use std::collections::BTreeSet;

use super::{LEAST, TemporaryFile, loaded, problems};
use crate::config::*;

const EXAMPLE: &str = include_str!("../../../deploy/fanwise.example.toml");

/// In the example, `#key = …` is a setting that is switched off, and `# Words` are a comment.
fn switched_on(line: &str) -> &str {
    match line.strip_prefix('#') {
        Some(setting) if setting.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => {
            setting
        }
        _ => line,
    }
}

/// The example with every setting switched on. A secret is either given or read from a file: with
/// `files`, it is read from a file.
fn example(files: Option<&Path>) -> String {
    let mut example = String::new();
    let lines: Vec<_> = EXAMPLE.lines().map(switched_on).collect();
    let from_file: BTreeSet<_> = lines
        .iter()
        .filter_map(|line| line.split_once("_file = ").map(|(key, _)| key.to_owned()))
        .collect();
    for line in lines {
        let key = line.split_once(" = ").map_or("", |(key, _)| key);
        // Certificates are no secret.
        let of_secret = key.strip_suffix("_file").filter(|key| *key != "ca");
        match (of_secret, files) {
            (Some(_), None) => {}
            (Some(_), Some(file)) => {
                example += &format!("{key} = {:?}", file.display().to_string())
            }
            // `url` is a secret only of the broker and the ledger; a target's has no file.
            (None, Some(_)) if from_file.contains(key) && !line.contains("\"http") => {}
            (None, _) => example += line,
        }
        example.push('\n');
    }
    example
}

#[test]
fn the_example_is_a_working_configuration() {
    let file = TemporaryFile::new("example.toml", EXAMPLE);
    let mut loaded = load(Some(&file.0), std::iter::empty()).unwrap();
    loaded.config.require_worker(&mut loaded.findings);
    assert!(
        loaded.findings.problems.is_empty(),
        "{:#?}",
        loaded.findings.problems
    );
    // It listens on this machine only, where it works without a token.
    let warned: Vec<_> = loaded
        .findings
        .warnings
        .iter()
        .map(|it| &it.field)
        .collect();
    assert_eq!(warned, ["gateway.token"]);
}

#[test]
fn the_example_names_every_key_and_no_other() {
    let loaded = loaded(&example(None), &[]);
    assert!(
        loaded.findings.problems.is_empty(),
        "{:#?}",
        loaded.findings.problems
    );
    // Settings for TLS and for Sentinels are shown beside an address without them.
    let warnings = loaded.findings.warnings.iter();
    let warnings: Vec<_> = warnings
        .filter(|it| {
            !it.what
                .starts_with("has no effect: the address does not begin with")
        })
        .filter(|it| {
            !it.what
                .starts_with("has no effect: ledger.url names no Sentinels")
        })
        .filter(|it| !loaded.findings.is_placeholder(&it.field))
        .collect();
    assert!(warnings.is_empty(), "{warnings:#?}");
    let missing: Vec<_> = loaded
        .findings
        .shown
        .iter()
        .filter(|(_, shown)| shown.origin == Origin::Default || shown.value == "0 entries")
        .map(|(key, _)| key)
        .collect();
    assert!(
        missing.is_empty(),
        "the example does not mention {missing:?}"
    );

    // And the keys that name a file with a secret.
    let secret = TemporaryFile::new("secret", "amqp://from-a-file\n");
    let from_files = self::loaded(&example(Some(&secret.0)), &[]);
    let problems: Vec<_> = from_files
        .findings
        .problems
        .iter()
        .map(ToString::to_string)
        .collect();
    // The one file is used for all secrets, so an address of another kind is wrong, and so are
    // tokens that must differ.
    assert_eq!(
        problems,
        [
            "ledger.url: an address that begins with redis://, redis+sentinel:// or redis+cluster:// is \
             expected, or with rediss for TLS",
            "apps.default.token: is the same as gateway.token",
        ]
    );
    assert_eq!(
        from_files.config.broker.url.as_ref().unwrap().expose(),
        "amqp://from-a-file"
    );
    for (key, shown) in &from_files.findings.shown {
        let hidden = loaded.findings.shown[key].value == "(secret)";
        assert_eq!(
            shown.value == "(secret)",
            hidden,
            "{key} has no `{key}_file` in the example"
        );
    }
}

/// A setting that is switched off in the example shows the default.
#[test]
fn the_example_shows_the_defaults() {
    // Further targets and the drop-in endpoints are switched off as a whole; here they get the keys
    // that they require.
    let required = [
        "#[targets.",
        "#[apps.default.",
        "#hosts = ",
        "#type = ",
        "#url = \"https",
        "#secret = ",
        "#app_key = ",
        "#app_secret = ",
    ];
    let lines = EXAMPLE.lines().map(
        |line| match required.iter().any(|it| line.starts_with(it)) {
            true => switched_on(line),
            false => line,
        },
    );
    let as_it_is = loaded(&lines.collect::<Vec<_>>().join("\n"), &[]);
    assert_eq!(as_it_is.findings.problems, []);
    for target in ["hook", "openim", "netease", "yunxin"] {
        assert!(as_it_is.config.targets.contains_key(target));
    }
    let all = loaded(&example(None), &[]);
    for (key, shown) in &as_it_is.findings.shown {
        if shown.origin == Origin::Default && shown.value != "(none)" && shown.value != "0 entries"
        {
            assert_eq!(
                shown.value, all.findings.shown[key].value,
                "{key}: not its default in the example"
            );
        }
    }
}

/// A comment above each setting of the example explains it.
#[test]
fn the_example_explains_every_key() {
    let mut above = "";
    for line in EXAMPLE.lines() {
        let setting = switched_on(line);
        let is_setting = setting.contains(" = ") && !setting.starts_with("# ");
        if is_setting {
            assert!(above.starts_with("# "), "no comment above {line:?}");
        }
        above = line;
    }
}

/// The first configuration in them that names a broker is complete for a worker.
const DOCUMENTS: [&str; 6] = [
    include_str!("../../../docs/quickstart.md"),
    include_str!("../../../docs/jobs.md"),
    include_str!("../../../docs/targets.md"),
    include_str!("../../../docs/drop-in.md"),
    include_str!("../../../docs/permissions.md"),
    include_str!("../../../docs/operating.md"),
];

/// The code blocks of the documents in a language.
fn blocks(language: &str) -> Vec<&'static str> {
    let opening = format!("```{language}\n");
    let opening = opening.as_str();
    let blocks = DOCUMENTS
        .into_iter()
        .flat_map(|document| document.split(opening).skip(1));
    blocks
        .map(|block| block.split("```").next().unwrap())
        .collect()
}

#[test]
fn the_configurations_in_the_documents_work() {
    let blocks = blocks("toml");
    assert!(blocks.len() >= 9, "{blocks:?}");
    for block in &blocks {
        let problems = problems(block, &[]);
        assert!(problems.is_empty(), "{problems:#?} in {block}");
    }
    let worker = blocks.iter().find(|block| block.starts_with("[broker]"));
    let mut whole = loaded(worker.unwrap(), &[]);
    whole.config.require_worker(&mut whole.findings);
    assert!(
        whole.findings.problems.is_empty(),
        "{:#?}",
        whole.findings.problems
    );
}

#[test]
fn the_jobs_in_the_documents_are_jobs() {
    use crate::domain::job::Job;
    let config = loaded(LEAST, &[]).config;
    let names = crate::app::Names::of(&config).unwrap();
    for block in blocks("json") {
        let job = Job::parse(block.as_bytes(), None, &names, jiff::Timestamp::UNIX_EPOCH);
        let job = job.unwrap_or_else(|problems| panic!("{problems:?}"));
        assert!(job.entries > 0, "{block}");
    }
}
