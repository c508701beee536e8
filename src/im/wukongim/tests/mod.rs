//! Checks the account as a target: promises, refusals and settings.

mod directory;
mod replies;
mod requests;
mod server;

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::domain::mapping::{Feature, Mapping, Strictness};
use crate::domain::message::Content;
use crate::domain::slice::{Addressed, Head};
use crate::im::fixture::{head, raw, reply, text};
use crate::im::{TargetSettings, build};
use crate::ports::{Target, fit};

fn settings(version: Version) -> Settings {
    Settings::new("http://im:5001", version)
}

fn build_it(settings: Settings) -> Box<dyn Target> {
    build("im", &TargetSettings::Wukongim(settings)).unwrap()
}

fn single(version: Version) -> Box<dyn Target> {
    build_it(settings(version))
}

fn packed() -> Box<dyn Target> {
    build_it(Settings {
        packed: true,
        ..settings(Version::V2)
    })
}

/// A target that sends commands to many users in one call.
fn commands(version: Version) -> Box<dyn Target> {
    build_it(Settings {
        subscribers: true,
        ..settings(version)
    })
}

#[test]
fn only_single_calls_of_version_3_may_be_repeated() {
    for version in [Version::V1, Version::V2, Version::V3] {
        let profile = single(version).profile().clone();
        assert_eq!(profile.recipients_per_call, 1);
        assert_eq!(profile.idempotent, version == Version::V3);
    }
    for target in [packed(), commands(Version::V2), commands(Version::V3)] {
        let profile = target.profile();
        assert_eq!(
            (profile.recipients_per_call, profile.idempotent),
            (100, false)
        );
    }
}

#[test]
fn only_users_are_packed_and_commands_only_with_subscribers() {
    let plain = head();
    let mut command = head();
    command.options.sync_once = Some(true);
    let mut group = command.clone();
    group.addressed = Addressed::Groups(2);
    let per_call = |target: &dyn Target| {
        [&plain, &command, &group].map(|head| target.recipients_per_call(head))
    };
    assert_eq!(per_call(&*single(Version::V2)), [1, 1, 1]);
    assert_eq!(per_call(&*packed()), [100, 100, 1]);
    assert_eq!(per_call(&*commands(Version::V2)), [1, 100, 1]);
}

#[test]
fn all_users_do_not_include_the_sender_and_those_of_the_system() {
    let profile = build_it(Settings {
        sender: Some("news".into()),
        ..settings(Version::V2)
    });
    let profile = profile.profile();
    assert_eq!(profile.left_out, ["____system", "____manager", "news"]);
    assert_eq!(profile.limit, None);
}

#[test]
fn what_the_version_does_not_have_is_refused_by_its_name() {
    let check = |target: &dyn Target, change: fn(&mut Head), refused: &[&str]| {
        let mut head = head();
        head.sender = Some("news".into());
        change(&mut head);
        let found = fit(target, &head, false, Strictness::Strict).problems;
        let found: Vec<_> = found.iter().map(|problem| &*problem.field).collect();
        assert_eq!(found, refused);
    };
    let (v2, v3, packed) = (single(Version::V2), single(Version::V3), packed());
    let unread: fn(&mut Head) = |head| head.options.unread = Some(true);
    check(&*v2, unread, &[]);
    check(&*v3, unread, &["options.unread"]);
    check(&*v3, |head| head.options.unread = Some(false), &[]);
    let expire: fn(&mut Head) = |head| head.options.expire_seconds = Some(1);
    check(&*v3, expire, &[]);
    check(&*packed, expire, &["options.expire_seconds"]);
    let native: fn(&mut Head) = |head| head.native = Some(raw(r#"{"setting":1}"#));
    check(&*v2, native, &[]);
    check(&*packed, native, &["message.native"]);
    let pushed: fn(&mut Head) = |head| {
        head.options.extension = Some(raw("1"));
        head.options.push = Some(crate::domain::message::Push {
            title: Some("t".into()),
            ..Default::default()
        });
    };
    check(&*v2, pushed, &["options.push.title", "options.extension"]);
    let group: fn(&mut Head) = |head| head.addressed = Addressed::Groups(5);
    for target in [&v2, &v3, &packed] {
        check(&**target, group, &[]);
    }
}

#[test]
fn all_users_need_a_manager_to_list_them() {
    let all = |version, manager_url: Option<&str>| {
        let target = build_it(Settings {
            manager_url: manager_url.map(Into::into),
            ..settings(version)
        });
        let listed = target.directory().is_some();
        let honoured = !matches!(target.maps(Feature::All), Mapping::Refused(_));
        assert_eq!(listed, honoured);
        listed
    };
    assert!(!all(Version::V1, None));
    for version in [Version::V2, Version::V3] {
        assert!(!all(version, None));
        assert!(all(version, Some("http://im:5300")));
    }
}

#[test]
fn what_an_account_cannot_carry_is_refused_at_acceptance() {
    let check = |target: &dyn Target, change: fn(&mut Head), fields: &[&str]| {
        let mut head = head();
        change(&mut head);
        let problems = target.check(&head);
        let found: Vec<_> = problems
            .iter()
            .map(|problem| problem.field.as_str())
            .collect();
        assert_eq!(found, fields);
    };
    let (v2, v3, packed) = (single(Version::V2), single(Version::V3), packed());
    let fits = 32_767 - r#"{"type":1,"content":""}"#.len();
    assert_eq!(fits, 32_744);
    check(&*v2, |_| {}, &[]);
    check(
        &*v2,
        |head| head.content = Content::Text("x".repeat(32_744)),
        &[],
    );
    check(
        &*v2,
        |head| head.content = Content::Text("x".repeat(32_745)),
        &["message"],
    );
    let roomy = build_it(Settings {
        payload_bytes_max: 32_768,
        ..settings(Version::V2)
    });
    check(
        &*roomy,
        |head| head.content = Content::Text("x".repeat(32_745)),
        &[],
    );
    let long = |head: &mut Head| head.content = Content::Custom(raw(&format!("{:32768}", 1)));
    check(&*v2, long, &[]);
    let long = |head: &mut Head| {
        head.content = Content::Raw(raw(&format!("\"{}\"", "x".repeat(32_766))));
    };
    check(&*v2, long, &["message"]);
    check(&*v2, |head| head.sender = Some(" ".into()), &["sender"]);
    check(&*v3, |_| {}, &["sender"]);
    check(&*v3, |head| head.sender = Some("news".into()), &[]);
    // A payload that is too long is checked by itself: each case starts from a new head.
    let mention = |head: &mut Head| {
        head.content = Content::Mention {
            text: "x".into(),
            users: vec!["u".repeat(255); 200],
            everybody: false,
        };
    };
    check(&*packed, mention, &["message"]);
    let online = |head: &mut Head| {
        head.sender = Some("news".into());
        head.options.online_only = Some(true);
    };
    check(&*v3, online, &["options.online_only"]);
    check(&*v2, online, &[]);
}

#[test]
fn native_fields_may_not_touch_what_fanwise_answers_for() {
    let check = |content: Content, native: &str, fields: &[&str]| {
        let mut head = head();
        head.content = content;
        head.native = Some(raw(native));
        let problems = single(Version::V2).check(&head);
        let found: Vec<_> = problems.iter().map(|problem| &*problem.field).collect();
        assert_eq!(found, fields, "{native}");
    };
    let hello = || Content::Text("hi".into());
    check(hello(), r#"{"setting":32,"topic":"t","is_stream":1}"#, &[]);
    for ours in [
        "channel_id",
        "channel_type",
        "subscribers",
        "tag_key",
        "from_uid",
        "sender_uid",
        "client_msg_no",
        "header",
        "no_persist",
        "sync_once",
        // Go takes these for the same names.
        "Channel_ID",
        "\\u0063hannel_id",
        "\u{17f}ubscriber\u{17f}",
        "tag_\u{212a}ey",
        "Payload",
        "EXPIRE",
    ] {
        let native = format!(r#"{{"{ours}":1}}"#);
        let name: String = serde_json::from_str(&format!("\"{ours}\"")).unwrap();
        check(hello(), &native, &[&*format!("message.native.{name}")]);
    }
    let payload = ["message.native.payload"];
    check(Content::Native, r#"{"payload":"e30="}"#, &[]);
    check(Content::Native, r#"{"setting":1}"#, &payload);
    for odd in ["1", "\"\"", "\"e30\"", "\"{}\"", "null"] {
        check(hello(), &format!(r#"{{"payload":{odd}}}"#), &payload);
    }
    let long = STANDARD.encode([0; 32_768]);
    check(hello(), &format!(r#"{{"payload":"{long}"}}"#), &payload);
    // The limit applies to the payload that is sent.
    let long = Content::Text("x".repeat(40_000));
    check(long, r#"{"payload":"e30="}"#, &[]);
}

#[test]
fn wrong_settings_are_all_reported() {
    let fields = |settings: Settings| -> Vec<String> {
        let problems = build("im", &TargetSettings::Wukongim(settings))
            .err()
            .unwrap_or_default();
        problems.into_iter().map(|problem| problem.field).collect()
    };
    let wrong = Settings {
        token: Some(Secret::new("a\nb")),
        sender: Some(" ".into()),
        packed: true,
        recipients_per_call: 0,
        ..Settings::new("im:5001", Version::V3)
    };
    let all = ["packed", "recipients_per_call", "sender", "token", "url"];
    assert_eq!(fields(wrong), all.map(|key| format!("targets.im.{key}")));
    let manager = |user: &str, password: &str| {
        Some(Manager {
            user: user.into(),
            password: Secret::new(password),
        })
    };
    let wrong = Settings {
        packed: true,
        subscribers: true,
        probe: true,
        manager_url: Some("im:5300".into()),
        manager: manager("admin", ""),
        ..settings(Version::V1)
    };
    let all = [
        "subscribers",
        "probe",
        "probe",
        "manager_url",
        "manager_user",
        "manager_url",
    ];
    assert_eq!(fields(wrong), all.map(|key| format!("targets.im.{key}")));
    for version in [Version::V1, Version::V3] {
        let wrong = Settings {
            probe: true,
            ..settings(version)
        };
        assert_eq!(fields(wrong), ["targets.im.probe"]);
    }
    let wrong = Settings {
        manager: manager("admin", "x"),
        ..settings(Version::V3)
    };
    assert_eq!(fields(wrong), ["targets.im.manager_url"]);
    for url in [
        "",
        "im",
        "http://",
        "/x",
        "ftp://im",
        "http://im/?a",
        "http://im/#a",
        "http://a b",
    ] {
        let wrong = Settings::new(url, Version::V2);
        assert_eq!(fields(wrong), ["targets.im.url"], "{url}");
    }
    for (url, uri) in [
        ("http://im", "http://im/message/send"),
        ("https://im:1/", "https://im:1/message/send"),
        (
            "http://[::1]:5001/a/b",
            "http://[::1]:5001/a/b/message/send",
        ),
    ] {
        let target = build_it(Settings::new(url, Version::V2));
        assert_eq!(target.open(&Arc::new(head())).request(&["u"]).uri, uri);
    }
}

#[test]
fn the_server_tells_which_version_it_is() {
    let check = |version, status, body: &'static str, right: bool| {
        let target = single(version);
        let found = target.read_identity(&reply(status, body));
        assert_eq!(
            found.is_ok(),
            right,
            "{version:?} {status} {body}: {found:?}"
        );
    };
    let released = r#"{"msg":"payload不能为空","status":400}"#;
    let v3 = r#"{"error":"invalid request"}"#;
    for version in [Version::V1, Version::V2] {
        check(version, 400, released, true);
        check(version, 400, v3, false);
    }
    check(Version::V3, 400, v3, true);
    check(Version::V3, 400, released, false);
    for (status, body) in [
        (401, ""),
        (404, "404 page not found"),
        (200, "{}"),
        (400, ""),
    ] {
        check(Version::V2, status, body, false);
        check(Version::V3, status, body, false);
    }
    let request = single(Version::V2).identify().unwrap();
    assert_eq!(
        text(&request),
        "POST http://im:5001/message/send\ncontent-type: application/json\n\n{}"
    );
}
