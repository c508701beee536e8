//! Settings that are wrong by themselves or together, and settings that are probably a mistake.

use super::{LEAST, assert_one_problem, loaded, problems, warnings};
use crate::config::*;

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
    let warnings = warnings(&format!("{LEAST}\n{more}"), &[]);
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
fn list_sources_need_hosts() {
    let more = "[apps.default.list_sources.crm]\nhosts = [\"https://a\"]\ntimeout = \"2h\"";
    let problems = problems(&format!("{LEAST}\n{more}"), &[]);
    let expected = [
        "apps.default.list_sources.crm.hosts: \"https://a\" is neither a host",
        "apps.default.list_sources.crm.timeout: ",
        "apps.default.list_sources.crm.hosts: empty",
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

/// A problem names its line, or that of the section that lacks something; a variable has none.
#[test]
fn problems_name_their_lines() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = "# Ours\n[targets.im]\ntype = \"webhook\"\nlimit = \"fast\"\n[log]\nlevel = \"x\"\n";
    std::fs::write(file.path(), text).unwrap();
    let variable = ("FANWISE_LOG__LEVEL".to_owned(), "y".to_owned());
    let loaded = load(Some(file.path()), std::iter::once(variable)).unwrap();
    let told = loaded.check().unwrap_err().to_string();
    let lines: Vec<_> = told.lines().skip(1).map(str::trim_start).collect();
    let starts = |start: &str| lines.iter().any(|line| line.starts_with(start));
    assert!(starts("line 4: targets.im.limit: a rate"), "{told}");
    assert!(starts("line 2: targets.im.url: missing"), "{told}");
    assert!(starts("log.level: "), "{told}");
}
