use std::collections::BTreeSet;

use super::sections::read;
use super::servers::wrong_server;
use super::*;

const EXAMPLE: &str = include_str!("../../deploy/fanwise.example.toml");

/// The settings that are always needed, so that each test shows one thing.
const LEAST: &str = r#"
    broker.url = "amqp://guest:s3cret@mq/%2f"
    ledger.url = "redis://:s3cret@store/0"
    gateway.token = "s3cret"
    targets.im = { type = "wukongim", url = "http://im:5001", version = "v2" }
"#;

fn loaded(toml: &str, environment: &[(&str, &str)]) -> Loaded {
    let environment = environment
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let table = toml
        .parse()
        .unwrap_or_else(|error| panic!("{error}: {toml}"));
    let mut findings = Findings::default();
    let config = read(Section::root(table, environment), &mut findings);
    cross_check(&config, &mut findings);
    Loaded {
        config,
        findings,
        file: None,
    }
}

fn problems(toml: &str, environment: &[(&str, &str)]) -> Vec<String> {
    loaded(toml, environment)
        .findings
        .problems
        .iter()
        .map(ToString::to_string)
        .collect()
}

/// Asserts that these lines, added to the settings always needed, cause exactly one problem, which
/// contains this text.
fn assert_one_problem(more: &str, expected: &str) {
    let problems = problems(&format!("{LEAST}\n{more}"), &[]);
    assert!(
        problems.len() == 1 && problems[0].contains(expected),
        "{expected:?} in {problems:#?}"
    );
}

/// The check finds an address that cannot be parsed later, and does not quote its password.
#[test]
fn an_address_names_one_server() {
    for (url, what) in [
        ("redis://:s3cret@a,b/0", "several servers"),
        ("redis://a:x/0", "not a port"),
        ("redis://[::1]:70000/0", "not a port"),
        ("amqp://u:s3cret@a:1,b:2/%2f", "broker.urls"),
    ] {
        let found = wrong_server(url).unwrap();
        assert!(found.contains(what), "{url}: {found}");
        assert!(!found.contains("s3cret"), "{found}");
    }
    for url in [
        "redis://u:p%40ss@host:6379/1",
        "redis://host",
        "rediss://[::1]:6379/0",
        "amqp://guest:guest@mq/%2f",
        "amqps://u:p@mq:5671/a,b",
    ] {
        assert_eq!(wrong_server(url), None, "{url}");
    }
    let two = [("FANWISE_LEDGER__URL", "redis://a,b/0")];
    let found = problems(LEAST, &two);
    assert!(found[0].contains("ledger.url"), "{found:?}");
}

/// Certificates, Sentinels, replicas and further nodes are read, and a warning names what has no
/// effect.
#[test]
fn servers_have_certificates_and_company() {
    let more = r#"
        [broker]
        url = "amqps://rabbit1/%2f"
        urls = ["amqps://rabbit2/%2f", "amqps://rabbit3/%2f"]
        ca_file = "/ca.pem"
        certificate = "/mine.pem"
        key = "/mine.key"
        server_name = "rabbit"
        [ledger]
        url = "rediss+sentinel://:pw@a,b/main/0"
        sentinel_user = "ann"
        sentinel_password = "s3cret"
        replicas_min = 1
        ca_file = "/ca.pem"
        [targets.im]
        type = "webhook"
        url = "https://im/{recipient}"
        ca_file = "/ca.pem"
    "#;
    let loaded = loaded(more, &[]);
    assert_eq!(loaded.findings.problems, []);
    let warned = loaded.findings.warnings.iter().map(|it| &it.field);
    assert_eq!(warned.collect::<Vec<_>>(), ["gateway.token"]);
    let broker = &loaded.config.broker;
    let urls: Vec<_> = broker.urls.iter().map(Secret::expose).collect();
    assert_eq!(urls.len(), 3);
    assert_eq!(urls[0], broker.url.as_ref().unwrap().expose());
    let identity = ("/mine.pem".into(), "/mine.key".into());
    assert_eq!(broker.tls.identity, Some(identity));
    assert_eq!(broker.tls.server_name.as_deref(), Some("rabbit"));
    let ledger = &loaded.config.ledger;
    assert_eq!(ledger.replicas_min, 1);
    let (user, password) = ledger.sentinel_login.as_ref().unwrap();
    assert_eq!(
        (user.as_deref(), password.expose()),
        (Some("ann"), "s3cret")
    );
    assert!(!loaded.config.targets["im"].tls.is_default());
    for (key, shown) in &loaded.findings.shown {
        assert!(
            !shown.value.contains("s3cret") && !shown.value.contains("rabbit2"),
            "{key}"
        );
    }
    let plain = "ledger.url = \"redis://a/0\"\nledger.ca_file = \"/ca.pem\"";
    let warnings = self::loaded(plain, &[]).findings.warnings;
    assert!(
        warnings.iter().any(|it| it.field == "ledger.ca_file"),
        "{warnings:?}"
    );
    for (wrong, said) in [
        ("broker.certificate = \"/mine.pem\"", "broker.key: missing"),
        ("broker.key = \"/mine.key\"", "broker.certificate: missing"),
        (
            "broker.urls = [\"amqps://rabbit2\"]",
            "broker.urls: amqp:// and amqps:// are mixed",
        ),
        (
            "ledger.sentinel_user = \"ann\"",
            "ledger.sentinel_password: missing",
        ),
        (
            "broker.consumer_timeout = \"5m\"",
            "broker.consumer_timeout: 5m is less than twice",
        ),
    ] {
        assert_one_problem(wrong, said);
    }
    let cluster = [("FANWISE_LEDGER__URL", "rediss+cluster://a,b")];
    let found = problems(
        &format!("{LEAST}\nledger.server_name = \"redis\""),
        &cluster,
    );
    assert!(found[0].contains("one name for all nodes"), "{found:?}");
}

/// Two targets at one server share its connections, so they must agree about its certificate.
#[test]
fn one_server_has_one_set_of_certificates() {
    let targets = r#"
        [targets.im]
        type = "webhook"
        url = "https://im/{recipient}"
        ca_file = "/ca.pem"
        [targets.other]
        type = "webhook"
        url = "https://im:443/other/{recipient}"
    "#;
    let found = problems(targets, &[]);
    assert!(found[0].contains("differs from targets.im"), "{found:?}");
}

/// A file that is removed with the test.
struct TemporaryFile(PathBuf);

impl TemporaryFile {
    fn new(name: &str, content: &str) -> Self {
        let name = format!("fanwise-config-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, content).unwrap();
        Self(path)
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

// --- deploy/fanwise.example.toml -----------------------------------------------------------------

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

// --- README.md and docs ---------------------------------------------------------------------------

/// The first configuration in them that names a broker is complete for a worker.
const DOCUMENTS: [&str; 6] = [
    include_str!("../../docs/quickstart.md"),
    include_str!("../../docs/jobs.md"),
    include_str!("../../docs/targets.md"),
    include_str!("../../docs/drop-in.md"),
    include_str!("../../docs/permissions.md"),
    include_str!("../../docs/operating.md"),
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
        let job = Job::read(block.as_bytes(), None, &names, jiff::Timestamp::UNIX_EPOCH);
        let job = job.unwrap_or_else(|problems| panic!("{problems:?}"));
        assert!(job.entries > 0, "{block}");
    }
}

// --- Files and the environment -------------------------------------------------------------------

#[test]
fn a_file_that_cannot_be_used_is_named() {
    let missing = load(
        Some(Path::new("/nonexistent/fanwise.toml")),
        std::iter::empty(),
    );
    let error = missing.err().unwrap().to_string();
    assert_eq!(error, "cannot read /nonexistent/fanwise.toml");
    let file = TemporaryFile::new("broken.toml", "[broker\nurl = 3");
    let broken = load(Some(&file.0), std::iter::empty());
    assert!(
        broken
            .err()
            .unwrap()
            .to_string()
            .ends_with("broken.toml is not TOML")
    );
}

#[test]
fn every_kind_of_setting_can_come_from_the_environment() {
    let environment = [
        ("FANWISE_BROKER__URL", "amqps://elsewhere/"),
        ("FANWISE_BROKER__DECLARE", "false"),
        ("FANWISE_LEDGER__LEASE", "45s"),
        ("FANWISE_WORKER__SLICE_RECIPIENTS", "250"),
        ("FANWISE_RETRY__JITTER", "0.5"),
        ("FANWISE_TARGETS__IM__LIMIT", "100/s burst 10"),
        ("FANWISE_APPS__SHOP__ON_LEDGER_DOWN", "fail_open"),
        ("FANWISE_LOG__FORMAT", "json"),
        ("FANWISE_CONFIG", "/not/a/setting"),
    ];
    let loaded = loaded(LEAST, &environment);
    assert!(
        loaded.findings.problems.is_empty(),
        "{:#?}",
        loaded.findings.problems
    );
    assert!(
        loaded.findings.warnings.is_empty(),
        "{:#?}",
        loaded.findings.warnings
    );
    let config = &loaded.config;
    assert_eq!(
        config.broker.url.as_ref().unwrap().expose(),
        "amqps://elsewhere/"
    );
    assert!(!config.broker.declare);
    assert_eq!(config.ledger.lease, Duration::from_secs(45));
    assert_eq!(config.worker.slice_recipients, 250);
    assert_eq!(config.retry.schedule.jitter, 0.5);
    assert_eq!(
        config.targets["im"].limit.unwrap().to_string(),
        "100/s burst 10"
    );
    assert!(config.apps["shop"].fail_open && config.apps.len() == 1);
    assert_eq!(config.log.format, LogFormat::Json);
    let origin = |key: &str| loaded.findings.shown[key].origin;
    assert_eq!(origin("broker.declare"), Origin::Environment);
    assert_eq!(origin("broker.url"), Origin::Environment);
    assert_eq!(origin("ledger.url"), Origin::File);
    assert_eq!(origin("log.level"), Origin::Default);
}

#[test]
fn a_worker_needs_a_broker_a_ledger_and_a_target() {
    let mut nothing = loaded("", &[]);
    assert!(nothing.findings.problems.is_empty());
    nothing.config.require_worker(&mut nothing.findings);
    let keys: Vec<_> = nothing
        .findings
        .problems
        .iter()
        .map(|problem| problem.to_string())
        .collect();
    assert_eq!(keys.len(), 3, "{keys:?}");
    assert!(keys[0].starts_with("broker.url: missing"), "{keys:?}");
    assert!(keys[1].starts_with("ledger.url: missing"), "{keys:?}");
    assert!(keys[2].starts_with("targets: missing"), "{keys:?}");
    let problems = nothing.check().unwrap_err().to_string();
    assert!(
        problems.starts_with("3 problem(s) in the environment; there is no ./fanwise.toml, and"),
        "{problems}"
    );
}

#[test]
fn without_apps_there_is_the_default_one() {
    let config = loaded(LEAST, &[]).config;
    assert_eq!(config.apps.keys().collect::<Vec<_>>(), ["default"]);
}

// --- Secrets -------------------------------------------------------------------------------------

#[test]
fn secrets_come_from_files_too() {
    let file = TemporaryFile::new("url", "amqp://user:from-a-file@mq/\n");
    let toml = format!("broker.url_file = {:?}", file.0.display().to_string());
    let loaded = loaded(&toml, &[]);
    assert_eq!(
        loaded.config.broker.url.as_ref().unwrap().expose(),
        "amqp://user:from-a-file@mq/"
    );
    let variable = [("FANWISE_BROKER__URL_FILE", file.0.to_str().unwrap())];
    assert_eq!(
        self::loaded("", &variable)
            .config
            .broker
            .url
            .as_ref()
            .unwrap()
            .expose(),
        "amqp://user:from-a-file@mq/"
    );

    let both = problems(&format!("{toml}\nbroker.url = \"amqp://mq/\""), &[]);
    assert_eq!(both, ["broker.url: and url_file are both given"]);
    let missing = problems("ledger.url_file = \"/nonexistent/secret\"", &[]);
    assert!(
        missing.len() == 1 && missing[0].starts_with("ledger.url_file: cannot read"),
        "{missing:?}"
    );
}

#[test]
fn secrets_are_shown_nowhere() {
    let loaded = loaded(
        &format!("{LEAST}\nledger.fingerprint_secret = \"s3cret\""),
        &[],
    );
    for key in ["broker.url", "ledger.url", "ledger.fingerprint_secret"] {
        assert_eq!(loaded.findings.shown[key].value, "(secret)", "{key}");
    }
    let shown = format!("{:?} {:?}", loaded.findings.shown, loaded.config);
    assert!(!shown.contains("s3cret"), "{shown}");
    // The problem does not quote the wrong address either.
    let problems = problems("broker.url = \"http://user:s3cret@mq/\"", &[]);
    assert!(
        problems.len() == 1 && !problems[0].contains("s3cret"),
        "{problems:?}"
    );
}

/// No caller gets in with an empty secret, and no call is signed with one.
#[test]
fn an_empty_secret_is_refused_wherever_it_stands() {
    let netease = "type = \"netease\"\nurl = \"http://im\"\napp_key = \"k\"";
    let openim = "type = \"openim\"\nurl = \"http://im\"";
    let secrets = [
        ("[broker]", "url"),
        ("[ledger]", "url"),
        ("[ledger]", "fingerprint_secret"),
        ("[gateway]", "token"),
        ("[apps.default]", "token"),
        ("[apps.default.wukongim]", "secret"),
        ("[apps.default.openim]", "secret"),
        ("[apps.default.netease]\nkey = \"k\"", "secret"),
        ("[apps.default.yunxin]\nkey = \"k\"", "secret"),
        ("[apps.default.wukongim]\nauth = \"none\"", "secret"),
        ("[apps.default.callbacks]\nhosts = [\"a\"]", "secret"),
        ("[apps.default.before_accept]\nurl = \"http://a\"", "secret"),
        (
            "[targets.im]\ntype = \"webhook\"\nurl = \"http://a\"",
            "signature_secret",
        ),
        (&format!("[targets.im]\n{netease}"), "app_secret"),
        (&format!("[targets.im]\n{openim}"), "secret"),
        (
            &format!("[targets.im]\n{openim}\nauth = \"token\""),
            "token",
        ),
        (
            "[targets.im]\ntype = \"wukongim\"\nurl = \"http://a\"\nversion = \"v2\"",
            "token",
        ),
    ];
    let file = TemporaryFile::new("empty-secret", " \t\n");
    let path = file.0.display().to_string();
    for (table, key) in secrets {
        for (key, value) in [
            (key.to_owned(), ""),
            (key.to_owned(), " \t "),
            (format!("{key}_file"), &path),
        ] {
            let toml = format!("{table}\n{key} = {value:?}");
            let expected = format!(".{key}: is empty; set a value, or leave the key out");
            let problems = problems(&toml, &[]);
            let [problem] = problems.as_slice() else {
                panic!("{toml}: {problems:#?}");
            };
            assert!(problem.ends_with(&expected), "{toml}: {problem}");
        }
    }
    let variable = [("FANWISE_APPS__DEFAULT__WUKONGIM__SECRET", "")];
    let problems = problems("", &variable);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with("apps.default.wukongim.secret: is empty"));
}

/// A call must not count for another app because two apps have the same credentials.
#[test]
fn endpoints_of_one_system_are_told_apart() {
    let two = |system: &str, bank: &str, shop: &str| {
        let endpoint = |app: &str, keys: &str| format!("apps.{app}.{system} = {{ {keys} }}\n");
        let more = [endpoint("bank", bank), endpoint("shop", shop)].concat();
        problems(&format!("{LEAST}\n{more}"), &[])
    };
    let same = |system: &str, name: &str| {
        vec![format!(
            "apps.shop.{system}.{name}: is the same as apps.bank.{system}.{name}: calls of both would \
             count for one app"
        )]
    };
    let (one, other) = ("secret = \"1\"", "secret = \"2\"");
    let (key, key_2) = ("key = \"a\", ", "key = \"b\", ");
    let open = "auth = \"none\"";
    let keyed = |key: &str, rest: &str| format!("{key}{rest}");
    for system in ["wukongim", "openim"] {
        assert_eq!(two(system, one, one), same(system, "secret"));
        assert_eq!(two(system, open, open), same(system, "auth"));
        assert!(two(system, one, other).is_empty(), "{system}");
        assert!(two(system, one, open).is_empty(), "{system}");
        // The administrator of OpenIM has the same name everywhere.
        let (a, b) = (keyed(key, one), keyed(key, other));
        assert!(two(system, &a, &b).is_empty(), "{system}");
    }
    for system in ["netease", "yunxin"] {
        let a1 = keyed(key, one);
        assert_eq!(two(system, &a1, &keyed(key_2, one)), same(system, "secret"));
        assert_eq!(two(system, &a1, &keyed(key, other)), same(system, "key"));
        assert_eq!(
            two(system, &keyed(key, open), &keyed(key, open)),
            same(system, "key")
        );
        assert!(two(system, &a1, &keyed(key_2, other)).is_empty());
        assert!(two(system, &keyed(key, open), open).is_empty());
    }
    // One application of the vendor has both versions.
    let more = "apps.bank.netease = { key = \"a\", secret = \"1\" }\n\
                apps.bank.yunxin = { key = \"a\", secret = \"1\" }";
    assert!(problems(&format!("{LEAST}\n{more}"), &[]).is_empty());
}

/// Addresses of backends are shown, but not the parts that may be credentials.
#[test]
fn credentials_in_addresses_are_shown_nowhere() {
    let loaded = loaded(
        r#"
        broker.url = "amqp://user:s3cret@mq/"
        ledger.url = "redis://:s3cret@store/0"
        targets.hook = { type = "webhook", url = "https://user:s3cret@push/send?key=s3cret&to={recipient}" }
        targets.im = { type = "wukongim", url = "http://u:s3cret@im", version = "v2", manager_url = "http://u:s3cret@im:5300" }
        apps.default.target = "im"
        apps.default.before_accept.url = "https://user:s3cret@moderation/check?token=s3cret"
        "#,
        &[],
    );
    let shown = format!("{:?}", loaded.findings.shown);
    assert!(!shown.contains("s3cret"), "{shown}");
    assert_eq!(
        loaded.findings.shown["targets.hook.url"].value,
        "\"https://(secret)@push/send?key=(secret)&to={recipient}\""
    );
}

// --- Problems ------------------------------------------------------------------------------------

#[test]
fn misspelt_keys_are_refused_with_a_suggestion() {
    let target = "[targets.im]\ntype = \"wukongim\"\nurl = \"http://im\"\nversion = \"v2\"";
    let cases = [
        (
            "[brokr]".to_owned(),
            "brokr: unknown key; did you mean `broker`?",
        ),
        (
            "[worker]\nslice_concurency = 4".to_owned(),
            "worker.slice_concurency: unknown key; did you mean `slice_concurrency`?",
        ),
        (
            format!("{target}\ncall_timout = \"3s\""),
            "targets.im.call_timout: unknown key; did you mean `call_timeout`?",
        ),
        (format!("{target}\nzzz = 1"), "targets.im.zzz: unknown key"),
        (
            "apps.shop.target = \"imm\"\n".to_owned() + target,
            "apps.shop.target: there is no [targets.imm]; did you mean `im`?",
        ),
        (
            "[apps.shop]\nlimits = \"3/s\"".to_owned(),
            "apps.shop.limits: unknown key; did you mean `limit`?",
        ),
    ];
    for (toml, expected) in cases {
        assert_eq!(problems(&toml, &[]), [expected], "{toml}");
    }
}

/// One mistake does not hide another.
#[test]
fn keys_are_checked_although_the_type_is_missing() {
    let target =
        "[targets.im]\ntyp = \"wukongim\"\nverison = \"v2\"\nlimt = \"5/s\"\nurl = \"http://im\"";
    assert_eq!(
        problems(target, &[]),
        [
            "targets.im.type: missing; one of \"webhook\", \"wukongim\", \"openim\", \"netease\", \
             \"yunxin\" is expected",
            "targets.im.limt: unknown key; did you mean `limit`?",
            "targets.im.typ: unknown key; did you mean `type`?",
            "targets.im.verison: unknown key; did you mean `version`?",
        ]
    );
    let slack =
        "[targets.im]\ntype = \"slack\"\nurl = \"http://im\"\nstatuses.404 = \"permanent\"\nul = 1";
    let found = problems(slack, &[]);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[1].starts_with("targets.im.ul: unknown key"));
    // The adapter's problems are reported beside a misspelt key.
    let braces =
        "[targets.im]\ntype = \"webhook\"\nurl = \"http://im/{recipent}\"\nidempotnt = true";
    let found = problems(braces, &[]);
    assert_eq!(found.len(), 2, "{found:#?}");
}

#[test]
fn a_level_that_is_none_is_refused() {
    assert_one_problem(
        "log.level = \"verbose\"",
        "log.level: \"verbose\" is not one of off, error, warn, info, debug, trace",
    );
    let warning = loaded(&format!("{LEAST}\nlog.level = \"warning\""), &[]);
    assert_eq!(warning.findings.problems, []);
    assert_eq!(warning.config.log.filter, "warn".parse().unwrap());
}

/// A cluster injects variables of its own, so an unknown variable must not prevent the start.
#[test]
fn unknown_variables_are_warned_about() {
    let loaded = loaded(
        LEAST,
        &[("FANWISE_BROKER__PORT", "5672"), ("FANWISE_WOKER__X", "1")],
    );
    assert!(
        loaded.findings.problems.is_empty(),
        "{:#?}",
        loaded.findings.problems
    );
    let warnings: Vec<_> = loaded
        .findings
        .warnings
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(
        warnings
            .iter()
            .all(|warning| warning.ends_with("(from the environment)")),
        "{warnings:?}"
    );
}

#[test]
fn all_problems_are_reported_at_once() {
    let problems = problems(
        r#"
        broker = { url = "http://mq", heartbeat = "2m", declare = "maybe" }
        worker = { slice_recipients = 0, drain_deadline = 25 }
        retry = { jitter = 1.0 }
        admin = { listen = "everywhere" }
        log = { level = "info,=,", format = "xml" }
        targets.im = { url = "http://im" }
        "#,
        &[],
    );
    for key in [
        "broker.url:",
        "broker.heartbeat:",
        "broker.declare:",
        "worker.slice_recipients:",
        "worker.drain_deadline:",
        "retry.jitter:",
        "admin.listen:",
        "log.level:",
        "log.format:",
        "targets.im.type:",
    ] {
        assert!(
            problems.iter().any(|problem| problem.starts_with(key)),
            "{key} in {problems:#?}"
        );
    }
    assert_eq!(problems.len(), 10, "{problems:#?}");
}

#[test]
fn an_application_of_netease_needs_an_address_a_key_and_a_secret() {
    for (kind, url) in [("netease", "http://im/nimserver"), ("yunxin", "http://im")] {
        let found = problems(&format!("targets.im = {{ type = \"{kind}\" }}"), &[]);
        assert_eq!(
            found,
            [
                "targets.im.url: missing",
                "targets.im.app_key: missing",
                "targets.im.app_secret: missing; `app_secret` or `app_secret_file` is needed",
            ]
        );
        let whole = format!(
            "targets.im = {{ type = \"{kind}\", url = \"{url}\", app_key = \"k\", app_secret = \"s\" }}"
        );
        assert!(problems(&whole, &[]).is_empty());
    }
    let more = r#"targets.n = { type = "netease", url = "http://im", app_key = "k", app_secret = "s",
        message_ids = true, recipients_per_call = 1001 }"#;
    assert_one_problem(
        more,
        "targets.n.recipients_per_call: a whole number, 1 to 1000,",
    );
}

#[test]
fn limits_of_netease_can_be_set_within_bounds() {
    for (kind, per_call) in [("netease", 500), ("yunxin", 100)] {
        let target = |more: &str| {
            format!(
                "targets.n = {{ type = \"{kind}\", url = \"http://im\", app_key = \"k\", \
                 app_secret = \"s\", {more} }}"
            )
        };
        for (more, expected) in [
            ("block = \"500ms\"", "targets.n.block: a duration such as"),
            ("single_block = 10", "targets.n.single_block: a duration"),
            (
                "push_text_length_max = 0",
                "targets.n.push_text_length_max: a whole",
            ),
        ] {
            assert_one_problem(&target(more), expected);
        }
        let shown = |more: &str, key: &str| {
            let findings = loaded(&target(more), &[]).findings;
            findings.shown[&format!("targets.n.{key}")].value.clone()
        };
        assert_eq!(shown("sender = \"a\"", "block"), "\"1m\"");
        assert_eq!(shown("sender = \"a\"", "single_block"), "\"10s\"");
        assert_eq!(shown("block = \"90s\"", "block"), "\"90s\"");
        let warned = |count: u32| {
            let findings = loaded(&target(&format!("recipients_per_call = {count}")), &[]).findings;
            let fields = findings.warnings.into_iter().map(|it| it.field);
            fields
                .filter(|it| it.starts_with("targets."))
                .collect::<Vec<_>>()
        };
        assert!(warned(per_call).is_empty());
        assert_eq!(warned(per_call + 1), ["targets.n.recipients_per_call"]);
    }
}

#[test]
fn two_targets_of_one_application_are_warned_about() {
    let warnings = |kinds: [&str; 2], more: &str| {
        let targets = ["a", "b"].into_iter().zip(kinds).map(|(name, kind)| {
            format!("targets.{name} = {{ {kind}, url = \"http://im\", app_key = \"k\", app_secret = \"s\"{more} }}")
        });
        let loaded = loaded(&targets.collect::<Vec<_>>().join("\n"), &[]);
        assert_eq!(loaded.findings.problems, []);
        let warnings = loaded.findings.warnings.into_iter();
        let fields = warnings.map(|warning| warning.field);
        fields
            .filter(|field| field.ends_with("app_key"))
            .collect::<Vec<_>>()
    };
    let (v1, v2) = ("type = \"netease\"", "type = \"yunxin\"");
    let single = "type = \"yunxin\", single = true";
    for kinds in [[v1, v1], [v2, v2], [single, single]] {
        assert_eq!(warnings(kinds, ""), ["targets.b.app_key"]);
        assert!(warnings(kinds, ", limit = \"50/min\"").is_empty());
    }
    for kinds in [[v1, v2], [v2, single]] {
        assert!(warnings(kinds, "").is_empty());
    }
}

#[test]
fn settings_that_are_wrong_together_are_refused() {
    assert_one_problem(
        "ledger.lease = \"12s\"",
        "ledger.lease: 12s is shorter than targets.im.call_timeout plus 3s, 13s",
    );
    assert_one_problem(
        "retry = { delay_min = \"10s\", delay_max = \"2s\" }",
        "retry.delay_max: is less",
    );
    assert_one_problem(
        "ledger.dedup_window = \"1h\"\nretry = { attempts_max = 20, delay_max = \"10m\" }",
        "ledger.dedup_window: is shorter than all retries together",
    );
    for admin in ["127.0.0.1:9700", "0.0.0.0:9700", "[::]:9700"] {
        assert_one_problem(
            &format!("admin.listen = \"{admin}\""),
            "admin.listen: has the port of gateway.listen, 9700",
        );
    }
    for apart in [
        "admin.listen = \"127.0.0.2:9700\"",
        "admin.listen = \"127.0.0.1:0\"\ngateway.listen = \"127.0.0.1:0\"",
    ] {
        let problems = problems(&format!("{LEAST}\n{apart}"), &[]);
        assert!(problems.is_empty(), "{problems:?}");
    }
    assert_one_problem(
        "apps.shop.target = \"nowhere\"",
        "apps.shop.target: there is no [targets.nowhere]",
    );
}

#[test]
fn an_app_without_a_target_is_warned_about_when_there_are_several() {
    let more = "targets.other = { type = \"wukongim\", url = \"http://other\", version = \"v2\" }";
    let loaded = loaded(&format!("{LEAST}\n{more}"), &[]);
    assert!(
        loaded.findings.problems.is_empty(),
        "{:#?}",
        loaded.findings.problems
    );
    let warnings: Vec<_> = loaded
        .findings
        .warnings
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        warnings,
        ["apps.default.target: no default target: its jobs must name one"]
    );
}

/// A waiting job shows activity at least once in the longest rung of the ladder. If it counts as
/// abandoned earlier, it may still have recipients to send to.
#[test]
fn a_job_that_may_count_as_abandoned_while_it_waits_is_warned_about() {
    let warnings = |ledger: &str| {
        let loaded = loaded(LEAST, &[("FANWISE_LEDGER__ABANDONED_AFTER", ledger)]);
        assert_eq!(loaded.findings.problems, []);
        let warnings = loaded.findings.warnings.iter();
        warnings.map(ToString::to_string).collect::<Vec<_>>()
    };
    assert!(warnings("35m").is_empty());
    let [warning] = &warnings("34m")[..] else {
        panic!("no warning, or several");
    };
    assert!(
        warning.starts_with("ledger.abandoned_after: 34m") && warning.contains("35m or more"),
        "{warning}"
    );
}

#[test]
fn a_retry_that_can_deliver_twice_is_warned_about() {
    let warned = |target: &str| {
        let target =
            format!("targets.x = {{ {target}, url = \"http://x\", on_uncertain = \"retry\" }}");
        let loaded = loaded(&target, &[]);
        assert_eq!(loaded.findings.problems, []);
        let mut warnings = loaded.findings.warnings.into_iter();
        warnings.any(|it| it.field == "targets.x.on_uncertain")
    };
    assert!(warned("type = \"webhook\""));
    assert!(!warned("type = \"webhook\", idempotent = true"));
    assert!(warned("type = \"wukongim\", version = \"v2\""));
    assert!(!warned(
        "type = \"wukongim\", version = \"v3\", sender = \"s\""
    ));
}

#[test]
fn a_door_for_all_users_of_an_app_that_may_not_is_warned_about() {
    let warnings = |more: &str| {
        let endpoint = "[apps.default.openim]\nsecret = \"s\"";
        let more = format!("{LEAST}\napps.default.{more}\n{endpoint}\nsend_all = true");
        let warnings = loaded(&more, &[]).findings.warnings.into_iter();
        warnings.map(|it| it.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(
        warnings("audiences = [\"users\"]"),
        [
            "apps.default.openim.send_all: has no effect: apps.default.audiences does not list \"all\", \
             so requests for all users are refused; list it there, or leave send_all out"
        ]
    );
    assert_eq!(warnings("audiences = [\"users\", \"all\"]"), [""; 0]);
}

#[test]
fn names_are_fit_for_queues_and_labels() {
    assert_one_problem(
        "broker.namespace = \"My Company\"",
        "broker.namespace: only a-z, 0-9, - and _",
    );
    assert_one_problem("[apps.\"a.b\"]", "apps.a.b: only a-z, 0-9, - and _");
    assert_one_problem("ledger.prefix = \"\"", "ledger.prefix: empty");
}

#[test]
fn callbacks_need_hosts_and_a_secret() {
    let more = "[apps.default.callbacks]\nhosts = [\"https://a\"]";
    let problems = problems(&format!("{LEAST}\n{more}"), &[]);
    let expected = [
        "apps.default.callbacks.hosts: \"https://a\" is neither a host",
        "apps.default.callbacks.hosts: empty",
        "apps.default.callbacks.secret: missing",
    ];
    for (problem, expected) in problems.iter().zip(expected) {
        assert!(problem.starts_with(expected), "{problem}");
    }
    assert_eq!(problems.len(), expected.len(), "{problems:?}");
}

#[test]
fn queues_of_replies_are_named() {
    let more = "[apps.default]\nreply_to = [\"done\", \"orders.*\", \"*\", \"a*b\"]";
    let problems = problems(&format!("{LEAST}\n{more}"), &[]);
    let field = "apps.default.reply_to: ";
    assert!(
        problems.iter().all(|it| it.starts_with(field)),
        "{problems:?}"
    );
    assert_eq!(problems.len(), 2, "{problems:?}");
}

// --- who may use the gateway, and what apps may send ---------------------------------------------

/// The fields of problems and of warnings, and whether the gateway asks no caller for credentials.
fn credentials(more: &str) -> (Vec<String>, Vec<String>, bool) {
    let least = LEAST.replace("gateway.token = \"s3cret\"", "");
    let loaded = loaded(&format!("{least}\n{more}"), &[]);
    let fields = |problems: &[Problem]| problems.iter().map(|it| it.field.clone()).collect();
    (
        fields(&loaded.findings.problems),
        fields(&loaded.findings.warnings),
        loaded.config.gateway_is_open(),
    )
}

#[test]
fn nothing_works_without_credentials_unless_it_is_said() {
    let check = |more: &str, problems: &[&str], warnings: &[&str], open: bool| {
        let (found, warned, is_open) = credentials(more);
        assert_eq!(found, problems, "{more}");
        assert_eq!(warned, warnings, "{more}");
        assert_eq!(is_open, open, "{more}");
    };
    let token = "gateway.token";
    check("", &[], &[token], true);
    check("gateway.auth = \"token\"", &[token], &[], false);
    check("gateway.auth = \"none\"", &[], &["gateway.auth"], true);
    check("gateway.token = \"t\"", &[], &[], false);
    check("apps.shop.token = \"s\"", &[], &[token], false);
    check(
        "apps.shop.auth = \"none\"",
        &[],
        &["apps.shop.auth", token],
        false,
    );
    let outside = "gateway.listen = \"0.0.0.0:9700\"\n";
    let outside = |more: &str| format!("{outside}{more}");
    check(&outside(""), &[token], &[], false);
    check(&outside("gateway.auth = \"token\""), &[token], &[], false);
    check(
        &outside("gateway.auth = \"none\""),
        &[],
        &["gateway.auth"],
        true,
    );
    check(&outside("gateway.token = \"t\""), &[], &[], false);
    check(&outside("apps.shop.token = \"s\""), &[], &[token], false);
}

#[test]
fn permissions_of_apps_are_checked() {
    assert_one_problem("apps.shop.targets = [\"sms\"]", "[targets.sms]");
    assert_one_problem("apps.shop.audiences = [\"al\"]", "\"al\" is not one of");
    assert_one_problem("apps.shop.recipients_max = 0", "apps.shop.recipients_max");
    assert_one_problem("apps.shop.senders = 3.5", "a list of texts is expected");
    assert_one_problem(
        "apps.shop.token = \"t\"\napps.bank.token = \"t\"",
        "is the same as apps.bank.token",
    );
    assert_one_problem(
        "apps.shop.audiences = [\"all\"]\napps.shop.daily_recipients = 5",
        "apps.shop.audiences: lists \"all\"",
    );
    assert_one_problem(
        "apps.shop.before_accept.url = \"ftp://x\"",
        "apps.shop.before_accept.url",
    );
    assert_one_problem("apps.shop.before_accept.timeout = \"3s\"", "url: missing");
    assert_one_problem(
        "gateway.tls_key = \"k\"",
        "gateway.tls_certificate: missing",
    );
    let more = format!("{LEAST}\napps.shop = {{}}");
    let environment = [("FANWISE_APPS__SHOP__SENDERS", "news, offers")];
    let loaded = loaded(&more, &environment);
    let permissions = &loaded.config.apps["shop"].permissions;
    assert_eq!(permissions.senders, ["news", "offers"]);
    assert_eq!(permissions.audiences, Permissions::default().audiences);
}
