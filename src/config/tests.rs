//! Tests configurations as a user writes them: files, environment, names of keys.

mod checks;
mod documents;
mod secrets;

use super::sections::from_root;
use super::servers::wrong_server;
use super::*;

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
    let root = Section::root(table, environment);
    root.find_placeholders(&mut findings);
    let config = from_root(root, &mut findings);
    cross_check(&config, &mut findings);
    Loaded {
        config,
        findings,
        file: None,
        lines: Lines::default(),
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

/// The warnings of a configuration without problems.
fn warnings(toml: &str, environment: &[(&str, &str)]) -> Vec<String> {
    let findings = loaded(toml, environment).findings;
    assert!(findings.problems.is_empty(), "{:#?}", findings.problems);
    findings.warnings.iter().map(ToString::to_string).collect()
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
            format!("{target}\nshared_limit = \"clod\"\n[shared_limits]\ncloud = \"5/s\""),
            "targets.im.shared_limit: [shared_limits] has no \"clod\"; did you mean `cloud`?",
        ),
        (
            format!("{target}\ndaily_limit = \"5/h\""),
            "targets.im.daily_limit: a rate a day such as \"100000/day\" is expected, not \"5/h burst 1\"",
        ),
        (
            format!("{target}\ncost = {{ image = 0 }}"),
            "targets.im.cost.image: a whole number, 1 to 1000, is expected, not \"0\"",
        ),
        (
            "[apps.shop.frequency_caps.news]\nmax = 3".to_owned(),
            "apps.shop.frequency_caps.news.period: missing",
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
    // A value that is wrong for every type is wrong, and one that is right for some may be right.
    let values =
        "[targets.im]\nlimit = \"fast\"\ncall_timeout = \"1h\"\nversion = \"v9\"\ntoken = \"\"";
    let found = problems(values, &[]);
    let all = [
        "type: missing",
        "url: missing",
        "call_timeout: ",
        "limit: a rate ",
    ];
    let all = all.map(|it| format!("targets.im.{it}"));
    let missing = |it: &String| !found.iter().any(|problem| problem.starts_with(it));
    assert_eq!(all.iter().find(|it| missing(it)), None, "{found:#?}");
    assert_eq!(found.len(), all.len(), "{found:#?}");
    // The adapter's problems are reported beside a misspelt key.
    let braces =
        "[targets.im]\ntype = \"webhook\"\nurl = \"http://im/{recipent}\"\nidempotnt = true";
    let found = problems(braces, &[]);
    assert_eq!(found.len(), 2, "{found:#?}");
    // And those of the address beside a missing value.
    let address = "[targets.im]\ntype = \"wukongim\"\nurl = \"ftp://im\"";
    let found = problems(address, &[]);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].starts_with("targets.im.version: missing"));
    assert!(found[1].starts_with("targets.im.url: a URL such as "));
    let nowhere = "[targets.im]\ntype = \"wukongim\"";
    assert_eq!(problems(nowhere, &[]).len(), 2);
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
    let warnings = warnings(
        LEAST,
        &[("FANWISE_BROKER__PORT", "5672"), ("FANWISE_WOKER__X", "1")],
    );
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
