//! Secrets: where they come from, that they are shown nowhere, and that nothing works without them.

use super::{LEAST, TemporaryFile, loaded, problems};
use crate::config::*;

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
        ("[apps.default.list_sources.a]\nhosts = [\"a\"]", "token"),
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
fn a_value_that_nobody_replaced_is_named() {
    let folder = std::env::temp_dir().join(format!("fanwise-placeholder-{}", fastrand::u64(..)));
    let file = |text: &str| {
        std::fs::write(&folder, text).unwrap();
        folder.to_str().unwrap().to_owned()
    };
    let target = "[targets.n]\ntype = \"netease\"\nurl = \"http://im\"\napp_key = \"REPLACE-WITH-THE-APP-KEY\"";
    let named = |more: &str, environment: &[(&str, &str)]| {
        let loaded = loaded(&format!("{LEAST}\n{target}\n{more}"), environment);
        let findings = loaded.findings;
        let warnings = findings.warnings.iter().map(|it| it.field.clone());
        warnings
            .filter(|key| findings.is_placeholder(key))
            .collect::<Vec<_>>()
    };
    let (key, secret) = ("targets.n.app_key", "targets.n.app_secret");
    let direct = "app_secret = \"REPLACE-WITH-THE-APP-SECRET\"";
    assert_eq!(named(direct, &[]), [key, secret]);
    assert_eq!(named("app_secret = \"s3cret\"", &[]), [key]);
    // What a variable replaces is not in force.
    let (path, real) = (file("s3cret\n"), ("FANWISE_TARGETS__N__APP_KEY", "k"));
    let by_file = ("FANWISE_TARGETS__N__APP_SECRET_FILE", path.as_str());
    assert!(named(direct, &[real, by_file]).is_empty());
    let given = ("FANWISE_TARGETS__N__APP_SECRET", "change-me");
    assert_eq!(named("", &[real, given]), [secret]);
    // Nor is a file real because it is a file.
    file("REPLACE-WITH-THE-APP-SECRET\n");
    assert_eq!(
        named(direct, &[real, by_file]),
        ["targets.n.app_secret_file"]
    );
    std::fs::remove_file(&folder).unwrap();
}
