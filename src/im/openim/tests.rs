//! Checks requests byte for byte, and the meaning of every form of reply. The replies are those of
//! the sources of 3.8, of its documentation, and of gateways in front of it.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::domain::mapping::{Feature, Mapping};
use crate::domain::message::{Content, File, Push};
use crate::domain::outcome::{Class, TargetAnswer, Verdict};
use crate::domain::slice::{Addressed, Head};
use crate::im::fixture::{AWKWARD, head, raw, reply, request, text, with_header};
use crate::im::{TargetSettings, build};
use crate::ports::{Credential, HttpReply, Login, Page, Probed, Target};

/// An account with default settings except for the sender.
fn settings() -> Settings {
    Settings {
        secret: Some(Secret::new("openIM123")),
        sender: Some("news".into()),
        ..Settings::new("http://im:10002")
    }
}

fn build_it(settings: Settings) -> Box<dyn Target> {
    build("im", &TargetSettings::Openim(settings)).unwrap()
}

fn single() -> Box<dyn Target> {
    build_it(settings())
}

fn packed() -> Box<dyn Target> {
    build_it(Settings {
        packed: true,
        ..settings()
    })
}

fn notification() -> Box<dyn Target> {
    build_it(Settings {
        session: Session::Notification,
        ..settings()
    })
}

fn golden(target: &dyn Target, head: Head, recipients: &[&str]) -> String {
    text(&request(
        |head| target.open(head),
        &Arc::new(head),
        recipients,
    ))
}

/// The `operationID` of the fixture's job for `u1`: the job's id, and the first half of the SHA-256
/// of the recipient with an end mark. Both were computed elsewhere.
const OPERATION: &str = "103700ae6eb43776dac4c71a-998e35fcd6a1c77024225678b118d396";

/// The `ex` of the fixture's job.
const EX: &str = r#""ex":"{\"app\":\"shop\",\"client_msg_no\":\"promo-1\"}""#;

#[test]
fn a_single_call() {
    let expected = format!(
        "POST http://im:10002/msg/send_msg\n\
         content-type: application/json\noperationid: {OPERATION}\n\n\
         {{\"sendID\":\"news\",\"sessionType\":1,\"contentType\":101,\
         \"content\":{{\"content\":\"Hello \\\"you\\\"\"}},{EX},\"recvID\":\"u1\"}}"
    );
    assert_eq!(golden(&*single(), head(), &["u1"]), expected);
    // A single recipient gets a single send, which returns a reason, in packed mode too.
    assert_eq!(golden(&*packed(), head(), &["u1"]), expected);
    assert_eq!(
        golden(&*notification(), head(), &["u1"]),
        expected.replace("\"sessionType\":1", "\"sessionType\":4")
    );
}

#[test]
fn a_packed_call() {
    assert_eq!(
        golden(&*packed(), head(), &["u1", "a\"b", "ü"]),
        format!(
            "POST http://im:10002/msg/batch_send_msg\n\
             content-type: application/json\n\
             operationid: 103700ae6eb43776dac4c71a-588fc6e7af61d3a4633ab8e1f403ce96\n\n\
             {{\"sendID\":\"news\",\"sessionType\":1,\"contentType\":101,\
             \"content\":{{\"content\":\"Hello \\\"you\\\"\"}},{EX},\
             \"recvIDs\":[\"u1\",\"a\\\"b\",\"ü\"]}}"
        )
    );
}

#[test]
fn a_call_to_a_group() {
    let mut head = head();
    head.addressed = Addressed::Groups(2);
    let expected = format!(
        "POST http://im:10002/msg/send_msg\n\
         content-type: application/json\n\
         operationid: 103700ae6eb43776dac4c71a-de4735249e1abd7577dbbcb332d9bde0\n\n\
         {{\"sendID\":\"news\",\"sessionType\":3,\"contentType\":101,\
         \"content\":{{\"content\":\"Hello \\\"you\\\"\"}},{EX},\"groupID\":\"g1\"}}"
    );
    // The session setting applies only to messages to users.
    assert_eq!(golden(&*single(), head.clone(), &["g1"]), expected);
    assert_eq!(golden(&*notification(), head, &["g1"]), expected);
}

#[test]
fn a_call_with_a_token_that_is_given() {
    let target = build_it(Settings {
        url: "https://im.example/api/".into(),
        auth: Auth::Token,
        token: Some(Secret::new("t0ken")),
        ..settings()
    });
    let got = golden(&*target, head(), &["u1"]);
    let start = format!(
        "POST https://im.example/api/msg/send_msg\n\
         content-type: application/json\ntoken: t0ken\noperationid: {OPERATION}\n\n"
    );
    assert!(got.starts_with(&start), "{got}");
    assert!(target.login().is_none());
    assert!(target.directory().unwrap().login().is_none());
    let listing = text(&target.directory().unwrap().page(None));
    assert!(listing.contains("\ntoken: t0ken\n"), "{listing}");
}

/// The JSON of the body of a call to `u1`.
fn body(target: &dyn Target, head: Head) -> serde_json::Value {
    let calls = target.open(&Arc::new(head));
    serde_json::from_slice(&calls.request(&["u1"]).body).unwrap()
}

/// The bytes of a call to `u1` from `contentType` to `ex`.
fn said(target: &dyn Target, content: Content) -> String {
    let mut head = head();
    head.content = content;
    let got = golden(target, head, &["u1"]);
    let (_, said) = got.split_once("\"contentType\":").unwrap();
    let (said, _) = said.split_once(",\"ex\":\"{").unwrap();
    said.to_owned()
}

fn file() -> File {
    File {
        url: "https://cdn/x".into(),
        name: Some("x.png".into()),
        size: Some(1000),
        format: Some("png".into()),
        md5: Some("0cc175b9c0f1b6a831c399e269772661".into()),
        width: Some(640),
        height: Some(480),
        duration_ms: Some(2500),
        cover: Some("https://cdn/x-small".into()),
    }
}

#[test]
fn every_type_of_message() {
    let target = single();
    let check = |content, expected: &str| assert_eq!(said(&*target, content), expected);
    let picture = r#"{"height":480,"size":1000,"type":"png","url":"https://cdn/x","uuid":"0cc175b9c0f1b6a831c399e269772661","width":640}"#;
    let small = picture.replace("1000", "0").replace("cdn/x", "cdn/x-small");
    let mut plain = file();
    (plain.md5, plain.cover) = (None, None);
    check(
        Content::Image(file()),
        &format!(
            r#"102,"content":{{"bigPicture":{picture},"snapshotPicture":{small},"sourcePicture":{picture}}}"#
        ),
    );
    let picture = picture.replace("0cc175b9c0f1b6a831c399e269772661", "");
    check(
        Content::Image(plain.clone()),
        &format!(
            r#"102,"content":{{"bigPicture":{picture},"snapshotPicture":{picture},"sourcePicture":{picture}}}"#
        ),
    );
    check(
        Content::Audio(file()),
        r#"103,"content":{"dataSize":1000,"duration":3,"soundType":"png","sourceUrl":"https://cdn/x","uuid":"0cc175b9c0f1b6a831c399e269772661"}"#,
    );
    check(
        Content::Video(file()),
        r#"104,"content":{"duration":3,"snapshotHeight":480,"snapshotUrl":"https://cdn/x-small","snapshotWidth":640,"videoSize":1000,"videoType":"png","videoUUID":"0cc175b9c0f1b6a831c399e269772661","videoUrl":"https://cdn/x"}"#,
    );
    check(
        Content::File(plain),
        r#"105,"content":{"fileName":"x.png","fileSize":1000,"fileType":"png","sourceUrl":"https://cdn/x","uuid":""}"#,
    );
    let mention = |everybody| Content::Mention {
        text: "@u2 look".into(),
        users: vec!["u2".into(), "a\"b".into()],
        everybody,
    };
    check(
        mention(false),
        r#"106,"content":{"atUserList":["u2","a\"b"],"isAtSelf":false,"text":"@u2 look"}"#,
    );
    check(
        mention(true),
        r#"106,"content":{"atUserList":["u2","a\"b","AtAllTag"],"isAtSelf":false,"text":"@u2 look"}"#,
    );
    check(
        Content::Custom(raw(r#"{ "n":1.0 }"#)),
        r#"110,"content":{"data":"{ \"n\":1.0 }","description":"","extension":""}"#,
    );
    check(
        Content::Custom(raw(r#""plain""#)),
        r#"110,"content":{"data":"plain","description":"","extension":""}"#,
    );
    // Byte for byte, whatever a parser would make of the numbers.
    check(
        Content::Raw(raw(
            r#"{"content":{ "content":"*hi*","n":12345678901234567890.10 },"contentType":118}"#,
        )),
        r#"118,"content":{ "content":"*hi*","n":12345678901234567890.10 }"#,
    );
}

#[test]
fn a_notice_goes_to_the_notifications_of_its_sender() {
    let notice = || Content::Notice("Closed on Monday".into());
    let expected = |name: &str| {
        format!(
            r#"1400,"content":{{"ex":"","mixType":0,"notificationFaceURL":"","notificationName":"{name}","notificationType":1,"text":"Closed on Monday","url":""}}"#
        )
    };
    assert_eq!(said(&*notification(), notice()), expected("news"));
    let named = build_it(Settings {
        session: Session::Notification,
        notice_name: Some("House news".into()),
        ..settings()
    });
    assert_eq!(said(&*named, notice()), expected("House news"));
    // A notice in OpenIM's own format belongs to the notification session too.
    let mut head = head();
    let content = r#"{"notificationName":"n","notificationType":1,"text":"t"}"#;
    head.content = Content::Raw(raw(&format!(
        r#"{{"contentType":1400,"content":{content}}}"#
    )));
    assert_eq!(body(&*single(), head)["sessionType"], 4);
}

#[test]
fn every_option() {
    let target = single();
    let check = |change: fn(&mut Head), expected: &str| {
        let mut head = head();
        change(&mut head);
        let got = golden(&*target, head, &["u1"]);
        let (_, rest) = got.split_once(r#"{"content":"Hello \"you\""},"#).unwrap();
        assert_eq!(rest.strip_suffix(r#","recvID":"u1"}"#), Some(expected));
    };
    check(|_| {}, EX);
    check(
        |head| head.options.online_only = Some(true),
        &format!(r#""isOnlineOnly":true,{EX}"#),
    );
    check(|head| head.options.online_only = Some(false), EX);
    let no_push = |head: &mut Head| {
        head.options.push = Some(Push {
            enabled: Some(false),
            ..Push::default()
        });
    };
    check(no_push, &format!(r#""notOfflinePush":true,{EX}"#));
    let push = |head: &mut Head| {
        head.options.push = Some(Push {
            enabled: Some(true),
            title: Some("Hi".into()),
            text: Some("there".into()),
            payload: Some(raw(r#"{"a":1}"#)),
            sound: Some("ding".into()),
            badge: Some(true),
            forced: None,
        });
    };
    check(
        push,
        &format!(
            r#""offlinePushInfo":{{"desc":"there","ex":"{{\"a\":1}}","iOSBadgeCount":true,"iOSPushSound":"ding","title":"Hi"}},{EX}"#
        ),
    );
    let badge = |head: &mut Head| {
        head.options.push = Some(Push {
            badge: Some(false),
            ..Push::default()
        });
    };
    check(
        badge,
        &format!(r#""offlinePushInfo":{{"iOSBadgeCount":false}},{EX}"#),
    );
    check(
        |head| head.options.extension = Some(raw(r#""mine""#)),
        r#""ex":"mine""#,
    );
    check(
        |head| head.options.extension = Some(raw(r#"{"k": [1]}"#)),
        r#""ex":"{\"k\": [1]}""#,
    );
    // Options that are the default anyway.
    check(|head| head.options.unread = Some(true), EX);
    check(|head| head.options.sender_no_sense = Some(false), EX);
}

#[test]
fn the_sender_of_the_job_wins() {
    let mut head = head();
    assert_eq!(body(&*single(), head.clone())["sendID"], "news");
    head.sender = Some("boss".into());
    assert_eq!(body(&*single(), head)["sendID"], "boss");
}

#[test]
fn native_fields_win_and_arrive_untouched() {
    let mut job = head();
    job.native = Some(raw(
        r#"{"senderNickname":"N","SENDERPLATFORMID":2, "ex":"mine","later":{ "x": 1.0 },"isOnlineOnly":null}"#,
    ));
    job.options.online_only = Some(true);
    let got = golden(&*single(), job, &["u1"]);
    let (_, got) = got.split_once("\n\n").unwrap();
    assert_eq!(
        got,
        "{\"sendID\":\"news\",\"sessionType\":1,\"contentType\":101,\
         \"content\":{\"content\":\"Hello \\\"you\\\"\"},\"isOnlineOnly\":true,\"ex\":\"mine\",\
         \"later\":{ \"x\": 1.0 },\"senderNickname\":\"N\",\"senderPlatformID\":2,\"recvID\":\"u1\"}"
    );
    // Alone, they are the whole content; beside a message they replace a part of it.
    let mut job = head();
    job.native = Some(raw(r#"{"contentType":118,"content":{ "content": "*"}}"#));
    job.content = Content::Native;
    let got = golden(&*single(), job, &["u1"]);
    assert!(
        got.contains(r#""contentType":118,"content":{ "content": "*"},"#),
        "{got}"
    );
    let mut job = head();
    job.native = Some(raw(r#"{"contentType":118}"#));
    let body = body(&*single(), job);
    assert_eq!(body["contentType"], 118);
    assert_eq!(body["content"]["content"], "Hello \"you\"");
}

#[test]
fn awkward_recipients_arrive_as_they_are() {
    let head = Arc::new(head());
    let calls = packed().open(&head);
    for recipient in AWKWARD {
        let one = calls.request(&[recipient]);
        let json: serde_json::Value = serde_json::from_slice(&one.body).unwrap();
        assert_eq!(json["recvID"], recipient);
        let two = calls.request(&[recipient, "u2"]);
        let json: serde_json::Value = serde_json::from_slice(&two.body).unwrap();
        assert_eq!(json["recvIDs"][0], recipient);
        for request in [one, two] {
            let operation = request.headers["operationid"].to_str().unwrap();
            assert_eq!(operation.len(), 24 + 1 + 32);
        }
    }
}

proptest! {
    /// A repeated call is identical byte for byte, and no two recipients share an `operationID`.
    #[test]
    fn calls_are_the_same_every_time(one in ".{1,40}", other in ".{1,40}") {
        let (target, head) = (single(), Arc::new(head()));
        let of = |recipient: &str| {
            let request = request(|head| target.open(head), &head, &[recipient]);
            let probe = target.open(&head).probe(&[recipient]).unwrap();
            assert_eq!(probe.headers["operationid"], request.headers["operationid"]);
            request.headers["operationid"].clone()
        };
        prop_assert_eq!(of(&one) == of(&other), one == other);
    }
}

#[test]
fn what_an_account_declares() {
    let profile = single().profile().clone();
    assert_eq!(
        (profile.recipients_per_call, profile.idempotent),
        (1, false)
    );
    assert_eq!(profile.left_out, ["imAdmin", "news"]);
    assert_eq!((profile.limit, profile.folds_case), (None, false));
    assert_eq!(packed().profile().recipients_per_call, 100);
    let of = |target: &dyn Target, feature| match target.maps(feature) {
        Mapping::Exact(_) | Mapping::Approximate(_) => true,
        Mapping::Refused(_) => false,
    };
    for (feature, on_single, on_packed, on_notification) in [
        (Feature::Text, true, true, true),
        (Feature::Groups, true, false, true),
        (Feature::Notice, false, false, true),
        (Feature::All, true, true, true),
        (Feature::Location, false, false, false),
        (Feature::NotUnread, false, false, false),
        (Feature::SyncOnce, false, false, false),
        (Feature::Expire, false, false, false),
    ] {
        assert_eq!(of(&*single(), feature), on_single, "{feature:?}");
        assert_eq!(of(&*packed(), feature), on_packed, "{feature:?}");
        assert_eq!(
            of(&*notification(), feature),
            on_notification,
            "{feature:?}"
        );
    }
}

fn refused(target: &dyn Target, change: impl FnOnce(&mut Head)) -> Vec<String> {
    let mut head = head();
    change(&mut head);
    let problems = target.check(&head);
    problems.into_iter().map(|problem| problem.field).collect()
}

#[test]
fn contents_that_the_server_would_refuse_are_refused_at_acceptance() {
    let check = |content: Content, fields: &[&str]| {
        let found = refused(&*single(), |head| head.content = content);
        let expected: Vec<_> = fields
            .iter()
            .map(|field| format!("message.{field}"))
            .collect();
        assert_eq!(found, expected);
    };
    let bare = || File {
        url: "https://cdn/x".into(),
        ..File::default()
    };
    check(Content::Text("x".into()), &[]);
    check(Content::Image(file()), &[]);
    check(Content::Image(bare()), &["format", "width", "height"]);
    check(Content::Audio(file()), &[]);
    check(Content::Audio(bare()), &["duration_ms"]);
    check(Content::Video(file()), &[]);
    check(
        Content::Video(bare()),
        &["format", "size", "duration_ms", "cover", "width", "height"],
    );
    check(Content::File(file()), &[]);
    check(Content::File(bare()), &["name", "size"]);
    check(Content::Custom(raw("{}")), &[]);
    check(Content::Custom(raw("\"\"")), &["data"]);
    let mention = |users: usize, everybody| Content::Mention {
        text: "x".into(),
        users: vec!["u".into(); users],
        everybody,
    };
    check(mention(0, true), &[]);
    check(mention(999, true), &[]);
    check(mention(1000, false), &[]);
    check(mention(1000, true), &["users"]);
}

#[test]
fn raw_and_native_contents_are_checked_like_any_other() {
    let target = single();
    let check_raw = |json: &str, fields: &[&str]| {
        let found = refused(&*target, |head| head.content = Content::Raw(raw(json)));
        let expected: Vec<_> = fields
            .iter()
            .map(|it| format!("message.data{it}"))
            .collect();
        assert_eq!(found, expected, "{json}");
    };
    check_raw("[1]", &[""]);
    check_raw("{}", &[".contentType", ".content"]);
    check_raw(
        r#"{"contentType":"x","content":"y"}"#,
        &[".contentType", ".content"],
    );
    check_raw(
        r#"{"contentType":101,"content":{},"ex":"x"}"#,
        &[".ex", ".content.content"],
    );
    check_raw(
        r#"{"contentType":101,"content":{"content":{}}}"#,
        &[".content.content"],
    );
    check_raw(
        r#"{"contentType":102,"content":{"sourcePicture":{"type":"png","width":"1","height":1,"url":"u","size":"x"},"bigPicture":{"type":"png","width":0,"height":1,"url":"u"}}}"#,
        &[
            ".content.sourcePicture.size",
            ".content.bigPicture.width",
            ".content.snapshotPicture.type",
            ".content.snapshotPicture.width",
            ".content.snapshotPicture.height",
            ".content.snapshotPicture.url",
        ],
    );
    check_raw(
        r#"{"contentType":103,"content":{"sourceUrl":"u","duration":0.9}}"#,
        &[".content.duration"],
    );
    check_raw(
        r#"{"contentType":103,"content":{"sourceUrl":"u","duration":-1}}"#,
        &[".content.duration"],
    );
    check_raw(
        r#"{"contentType":106,"content":{"atUserList":[1]}}"#,
        &[".content.atUserList"],
    );
    check_raw(r#"{"contentType":106,"content":{"atUserList":[]}}"#, &[]);
    check_raw(
        r#"{"contentType":110,"content":{"data":{}}}"#,
        &[".content.data"],
    );
    check_raw(
        r#"{"contentType":118,"content":{"content":""}}"#,
        &[".content.content"],
    );
    check_raw(
        r#"{"contentType":1400,"content":{"notificationName":"n","notificationType":0,"text":"t","mixType":6}}"#,
        &[".content.notificationType", ".content.mixType"],
    );
    // A quote, and a type of a later version: both are left to the server.
    check_raw(r#"{"contentType":114,"content":{}}"#, &[]);
    check_raw(r#"{"contentType":4711,"content":{}}"#, &[]);

    let check_native = |json: &str, alone: bool, fields: &[&str]| {
        let found = refused(&*target, |head| {
            head.native = Some(raw(json));
            if alone {
                head.content = Content::Native;
            }
        });
        let expected: Vec<_> = fields
            .iter()
            .map(|it| format!("message.native{it}"))
            .collect();
        assert_eq!(found, expected, "{json}");
    };
    check_native(
        r#"{"isSendAll":true,"recvid":"x","ex":1}"#,
        false,
        &[".ex", ".isSendAll", ".recvid"],
    );
    check_native(r#"{"ex":"x"}"#, true, &[""]);
    check_native(r#"{"contentType":101}"#, true, &[""]);
    check_native(r#"{"contentType":101,"content":null}"#, true, &[""]);
    check_native(
        r#"{"content":{"content":""}}"#,
        false,
        &[".content.content"],
    );
    check_native(r#"{"contentType":110}"#, false, &[".content.data"]);
    check_native(
        r#"{"contentType":101,"content":{"content":"x"}}"#,
        true,
        &[],
    );
}

#[test]
fn senders_groups_and_notices_must_fit() {
    let nobody = build_it(Settings {
        sender: None,
        ..settings()
    });
    assert_eq!(refused(&*nobody, |_| {}), ["sender"]);
    assert!(refused(&*nobody, |head| head.sender = Some("news".into())).is_empty());
    assert_eq!(
        refused(&*single(), |head| head.sender = Some(" ".into())),
        ["sender"]
    );
    let group = |kind: u8| move |head: &mut Head| head.addressed = Addressed::Groups(kind);
    assert!(refused(&*single(), group(2)).is_empty());
    assert_eq!(refused(&*single(), group(4)), ["audience.group_type"]);
    let notice = |head: &mut Head| {
        head.addressed = Addressed::Groups(2);
        head.content = Content::Notice("x".into());
    };
    assert_eq!(refused(&*notification(), notice), ["message.type"]);
}

#[test]
fn wrong_settings_are_all_reported() {
    let fields = |settings: Settings| -> Vec<String> {
        let problems = build("im", &TargetSettings::Openim(settings))
            .err()
            .unwrap_or_default();
        let strip = |field: String| field.strip_prefix("targets.im.").unwrap().to_owned();
        problems.into_iter().map(|it| strip(it.field)).collect()
    };
    let wrong = Settings {
        admin_user: String::new(),
        sender: Some(" ".into()),
        notice_name: Some(String::new()),
        packed: true,
        recipients_per_call: 1001,
        ..Settings::new("im:10002")
    };
    assert_eq!(
        fields(wrong),
        [
            "recipients_per_call",
            "admin_user",
            "sender",
            "notice_name",
            "secret",
            "url"
        ]
    );
    for token in [None, Some(""), Some("a\nb")] {
        let wrong = Settings {
            auth: Auth::Token,
            token: token.map(Secret::new),
            ..settings()
        };
        assert_eq!(fields(wrong), ["token"]);
    }
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
        let wrong = Settings {
            url: url.into(),
            ..settings()
        };
        assert_eq!(fields(wrong), ["url"], "{url}");
    }
    for (url, uri) in [
        ("http://im", "http://im/msg/send_msg"),
        ("https://im:1/", "https://im:1/msg/send_msg"),
        ("http://[::1]:2/a/b", "http://[::1]:2/a/b/msg/send_msg"),
    ] {
        let target = build_it(Settings {
            url: url.into(),
            ..settings()
        });
        assert_eq!(target.open(&Arc::new(head())).request(&["u"]).uri, uri);
    }
}

// --- Replies -------------------------------------------------------------------------------------

fn read_single(reply: &HttpReply) -> TargetAnswer {
    match single().open(&Arc::new(head())).read_reply(&["u1"], reply) {
        Verdict::All(answer) => answer,
        each @ Verdict::Each(_) => panic!("{each:?}"),
    }
}

#[test]
fn replies_to_single_calls() {
    use Class::{Config, Done, Permanent, Throttled, Transient, Uncertain};
    let check = |status: u16, body: &str, class| {
        let answer = read_single(&reply(status, body.to_owned()));
        assert_eq!(answer.class, class, "{status} {body}: {answer:?}");
        assert_eq!(class == Done, answer == TargetAnswer::done());
        assert!(!answer.split, "{status} {body}");
    };
    for sent in [
        r#"{"errCode":0,"errMsg":"","errDlt":"","data":{"serverMsgID":"a","clientMsgID":"b","sendTime":1}}"#,
        r#"{"errCode":0,"errMsg":"","errDlt":"","data":{"sendTime":1,"modify":{"content":"x"}}}"#,
        r#"{"data":null,"errCode":0}"#,
        r#" {"errCode":0}"#,
    ] {
        check(200, sent, Done);
    }
    // Errors of the application come as 200, unreadable fields as 400.
    check(
        200,
        r#"{"errCode":1004,"errMsg":"RecordNotFoundError","errDlt":": [1004]RecordNotFoundError"}"#,
        Permanent,
    );
    check(
        200,
        r#"{"errCode":1302,"errMsg":"BlockedByPeer"}"#,
        Permanent,
    );
    check(200, r#"{"errCode":1002}"#, Config);
    check(
        200,
        r#"{"errCode":1501,"errMsg":"TokenExpiredError"}"#,
        Config,
    );
    check(200, r#"{"errCode":80000}"#, Transient);
    check(
        200,
        r#"{"errCode":500,"errMsg":"ServerInternalError","errDlt":"redis: timeout"}"#,
        Uncertain,
    );
    check(
        200,
        r#"{"errCode":500,"errMsg":"ServerInternalError","errDlt":"validation error"}"#,
        Permanent,
    );
    check(
        200,
        r#"{"errCode":1001,"errMsg":"ArgsError","errDlt":"header must have token"}"#,
        Config,
    );
    check(200, r#"{"errCode":8}"#, Throttled);
    check(
        400,
        r#"{"errCode":1001,"errMsg":"ArgsError","errDlt":"EOF"}"#,
        Permanent,
    );
    check(400, r#"{"errCode":1502}"#, Config);
    check(400, "", Permanent);
    // A 200 with an unknown body: the message may have been sent.
    for odd in [
        "",
        "ok",
        "null",
        "[]",
        "{}",
        "<html>",
        r#"{"errCode":null}"#,
        r#"{"errCode":"0"}"#,
        r#"{"errCode":0,"data":{"#,
        r#"{"errcode":0}"#,
        r#"{"status":200}"#,
        "\u{feff}{}",
    ] {
        check(200, odd, Uncertain);
        check(204, odd, Uncertain);
    }
    // Replies of a proxy in front, and of a server that died.
    check(301, "", Config);
    check(401, "", Config);
    check(403, "<html>", Config);
    check(404, "404 page not found", Config);
    check(404, r#"{"errCode":1004}"#, Config);
    check(405, "", Config);
    check(408, "", Uncertain);
    check(429, "", Throttled);
    check(
        429,
        r#"{"errCode":429,"errMsg":"too many requests"}"#,
        Throttled,
    );
    check(500, "", Uncertain);
    check(500, r#"{"errCode":1001}"#, Uncertain);
    check(502, "<html>bad gateway</html>", Uncertain);
    check(503, "", Uncertain);
    check(504, "", Uncertain);
    assert_eq!(read_single(&reply(413, "")).class, Permanent);
}

#[test]
fn a_refused_token_is_stale_and_nothing_else_is() {
    for code in 1500..=1508 {
        let answer = read_single(&reply(200, format!(r#"{{"errCode":{code}}}"#)));
        assert_eq!(answer.stale, (1501..=1507).contains(&code), "{code}");
    }
    assert!(!read_single(&reply(401, "")).stale);
}

/// After an internal error the server has made no note, whether the message was sent or not.
#[test]
fn only_lost_replies_are_asked_after() {
    let internal = reply(200, r#"{"errCode":500,"errDlt":"redis: timeout"}"#);
    assert!(read_single(&internal).unprovable);
    for lost in [reply(502, ""), reply(500, ""), reply(200, "")] {
        assert!(!read_single(&lost).unprovable);
    }
    let verdict = read_packed(&["u1", "u2"], &internal);
    assert_eq!(
        (verdict.of(0).class, verdict.of(0).unprovable),
        (Class::Transient, false)
    );
}

#[test]
fn answers_keep_the_words_of_the_server() {
    let check = |reply: HttpReply, code: &str, words: &str| {
        let answer = read_single(&reply);
        assert_eq!((&*answer.code, &*answer.text), (code, words));
    };
    check(
        reply(
            200,
            r#"{"errCode":1004,"errMsg":"RecordNotFoundError","errDlt":": [1004]RecordNotFoundError"}"#,
        ),
        "err_1004",
        "RecordNotFoundError: [1004]RecordNotFoundError",
    );
    check(
        reply(
            200,
            r#"{"errCode":1001,"errMsg":"ArgsError","errDlt":"ArgsError: message is not sent"}"#,
        ),
        "err_1001",
        "ArgsError: message is not sent",
    );
    check(
        reply(200, r#"{"errCode":1302}"#),
        "err_1302",
        "BlockedByPeer",
    );
    check(
        reply(502, "<h1>\n  Bad Gateway</h1>"),
        "502",
        "<h1> Bad Gateway</h1>",
    );
    check(reply(200, ""), "bad_reply", "the reply is empty");
    let long = format!(r#"{{"errCode":1001,"errMsg":"{}"}}"#, "é".repeat(1 << 19));
    assert!(read_single(&reply(200, long)).text.len() <= 300);
}

#[test]
fn a_throttled_account_waits_as_it_was_asked_to_and_a_second_at_least() {
    let wait = |reply: HttpReply| read_single(&reply).retry_after;
    assert_eq!(wait(reply(429, "")), Some(Duration::from_secs(1)));
    let asked = |value| with_header(reply(429, ""), "retry-after", value);
    assert_eq!(wait(asked("0")), Some(Duration::from_secs(1)));
    assert_eq!(wait(asked("5")), Some(Duration::from_secs(5)));
    let away = with_header(reply(503, ""), "retry-after", "7");
    assert_eq!(wait(away), Some(Duration::from_secs(7)));
}

#[test]
fn a_notice_whose_sender_is_unknown_blames_nobody_else() {
    let unknown = reply(200, r#"{"errCode":1101,"errMsg":"UserIDNotFoundError"}"#);
    assert_eq!(read_single(&unknown).class, Class::Permanent);
    let mut head = head();
    head.content = Content::Notice("x".into());
    let verdict = notification()
        .open(&Arc::new(head))
        .read_reply(&["u1"], &unknown);
    assert_eq!(verdict.of(0).class, Class::Config);
}

fn read_packed(recipients: &[&str], reply: &HttpReply) -> Verdict {
    packed()
        .open(&Arc::new(head()))
        .read_reply(recipients, reply)
}

#[test]
fn replies_to_packed_calls() {
    use Class::{Config, Done, Permanent, Throttled, Transient, Uncertain};
    let recipients = ["a", "b\"", "c"];
    let check = |status: u16, body: &str, expected: [(Class, bool); 3]| {
        let verdict = read_packed(&recipients, &reply(status, body.to_owned()));
        let found = [0, 1, 2].map(|index| (verdict.of(index).class, verdict.of(index).split));
        assert_eq!(found, expected, "{status} {body}");
    };
    let (done, split) = ((Done, false), (Transient, true));
    let all = |class| [(class, false); 3];
    let data = |results: &str, failed: &str| {
        format!(
            r#"{{"errCode":0,"errMsg":"","errDlt":"","data":{{"results":{results},"failedUserIDs":{failed}}}}}"#
        )
    };
    let to = |recipients: &[&str]| {
        let of = |it: &&str| {
            format!(r#"{{"serverMsgID":"s","clientMsgID":"c","sendTime":1,"recvID":{it:?}}}"#)
        };
        format!(
            "[{}]",
            recipients.iter().map(of).collect::<Vec<_>>().join(",")
        )
    };
    check(200, &data(&to(&recipients), "null"), [done; 3]);
    check(200, &data(&to(&["c", "b\"", "a"]), "[]"), [done; 3]);
    check(
        200,
        &data(&to(&["a", "c"]), r#"["b\""]"#),
        [done, split, done],
    );
    check(
        200,
        &data(&to(&["a", "c"]), r#"["\u0062\u0022"]"#),
        [done, split, done],
    );
    // `errCode` 0, and all recipients failed.
    check(200, &data("null", r#"["a","b\"","c"]"#), [split; 3]);
    check(200, &data("[]", r#"["c","a","b\""]"#), [split; 3]);
    // A recipient in neither list, or in both, is in doubt.
    let doubt = (Uncertain, false);
    check(200, &data("null", "null"), [doubt; 3]);
    check(200, &data(&to(&["a"]), r#"["c"]"#), [done, doubt, split]);
    check(200, &data(&to(&["a", "x"]), r#"["a","y"]"#), [doubt; 3]);
    check(200, r#"{"errCode":0,"data":{}}"#, [doubt; 3]);
    for odd in [
        "",
        "{}",
        "null",
        "ok",
        r#"{"errCode":0}"#,
        r#"{"errCode":0,"data":null}"#,
        r#"{"errCode":0,"data":{"results":{},"failedUserIDs":[]}}"#,
        r#"{"errCode":0,"data":{"failedUserIDs":[1]}}"#,
    ] {
        check(200, odd, all(Uncertain));
    }
    // The server's own errors come before the first send.
    check(
        200,
        r#"{"errCode":500,"errDlt":"mongo is away"}"#,
        all(Transient),
    );
    check(200, r#"{"errCode":90002}"#, all(Transient));
    check(
        200,
        r#"{"errCode":500,"errDlt":"validation error"}"#,
        all(Permanent),
    );
    check(200, r#"{"errCode":1001}"#, all(Permanent));
    check(200, r#"{"errCode":1002}"#, all(Config));
    check(200, r#"{"errCode":1506}"#, all(Config));
    check(
        400,
        r#"{"errCode":1001,"errMsg":"ArgsError"}"#,
        all(Permanent),
    );
    check(404, "404 page not found", all(Config));
    // A smaller call may pass where a large one does not.
    check(413, "", [(Permanent, true); 3]);
    check(429, "", all(Throttled));
    // Errors of a proxy can come at any time.
    check(500, "", all(Uncertain));
    check(502, "", all(Uncertain));
    check(503, "", all(Uncertain));
    check(504, "", all(Uncertain));

    let verdict = read_packed(&recipients, &reply(200, data(&to(&recipients), "null")));
    assert_eq!(verdict, Verdict::All(TargetAnswer::done()));
    let verdict = read_packed(&recipients, &reply(200, r#"{"errCode":1507}"#));
    assert!(verdict.whole().unwrap().stale);
}

#[test]
fn the_example_of_the_documentation_is_understood() {
    let example = r#"{"errCode": 0, "errMsg": "", "errDlt": "", "data": {"results": [
        {"serverMsgID": "b30cb040685c1ff3e92b32d25826a06e",
         "clientMsgID": "ec5792358392cf9168eff64adfa4ac6a",
         "sendTime": 1340619319058, "recvID": "imAdmin"},
        {"serverMsgID": "5f0987ef1bbdcd565c85befb1a084035",
         "clientMsgID": "ec5792358392cf9168eff64adfa4ac6a",
         "sendTime": 1340619319058, "recvID": "3473643418"}],
        "failedUserIDs": null}}"#;
    let verdict = read_packed(&["imAdmin", "3473643418"], &reply(200, example));
    assert_eq!(verdict, Verdict::All(TargetAnswer::done()));
}

// --- Probe ---------------------------------------------------------------------------------------

#[test]
fn a_call_in_doubt_is_asked_after_under_its_own_operation() {
    let calls = single().open(&Arc::new(head()));
    assert_eq!(
        text(&calls.probe(&["u1"]).unwrap()),
        format!(
            "POST http://im:10002/msg/check_msg_is_send_success\n\
             content-type: application/json\noperationid: {OPERATION}\n\n{{}}"
        )
    );
    let check = |status: u16, body: &str, expected| {
        let probed = calls.read_probe(&["u1"], &reply(status, body.to_owned()));
        assert_eq!(probed, expected, "{status} {body}");
    };
    let said = |status: i64| format!(r#"{{"errCode":0,"data":{{"status":{status}}}}}"#);
    check(200, &said(2), Probed::Sent(None));
    check(200, &said(0), Probed::NotSent);
    check(200, r#"{"errCode":0,"data":{}}"#, Probed::NotSent);
    for unknown in [1, 3, 4, -1] {
        check(200, &said(unknown), Probed::Unknown);
    }
    for body in [
        "",
        "{}",
        r#"{"errCode":0}"#,
        r#"{"errCode":0,"data":null}"#,
        r#"{"errCode":500}"#,
        r#"{"errCode":1501}"#,
        r#"{"errCode":0,"data":{"status":"2"}}"#,
    ] {
        check(200, body, Probed::Unknown);
    }
    check(500, &said(2), Probed::Unknown);
    check(502, "", Probed::Unknown);
}

/// A batch leaves no note, and a single send may follow a batch that reached the recipient.
#[test]
fn packed_accounts_have_no_probe() {
    let calls = packed().open(&Arc::new(head()));
    assert!(calls.probe(&["u1", "u2"]).is_none());
    assert!(calls.probe(&["u1"]).is_none());
}

// --- Login ---------------------------------------------------------------------------------------

fn login_of(target: &dyn Target) -> &dyn Login {
    target.login().unwrap()
}

#[test]
fn the_token_is_fetched_with_the_secret() {
    let target = single();
    assert_eq!(
        text(&login_of(&*target).request()),
        "POST http://im:10002/auth/get_admin_token\n\
         content-type: application/json\noperationid: fanwise-login\n\n\
         {\"secret\":\"openIM123\",\"userID\":\"imAdmin\"}"
    );
    let earlier = build_it(Settings {
        auth: Auth::UserToken,
        admin_user: "openIM123456".into(),
        ..settings()
    });
    assert_eq!(
        text(&login_of(&*earlier).request()),
        "POST http://im:10002/auth/user_token\n\
         content-type: application/json\noperationid: fanwise-login\n\n\
         {\"platformID\":10,\"secret\":\"openIM123\",\"userID\":\"openIM123456\"}"
    );
    let mut request = target.open(&Arc::new(head())).request(&["u1"]);
    login_of(&*target).apply(&mut request, "t0ken");
    assert_eq!(request.headers["token"], "t0ken");
    assert!(request.headers["token"].is_sensitive());
    login_of(&*target).apply(&mut request, "newer");
    assert_eq!(request.headers.get_all("token").iter().count(), 1);
}

#[test]
fn replies_to_the_login() {
    let target = single();
    let read = |status: u16, body: &str| {
        login_of(&*target).read_credential(&reply(status, body.to_owned()))
    };
    let lives = |body: &str| {
        let Credential { secret, lives } = read(200, body).unwrap();
        assert_eq!(secret.expose(), "eyJ");
        lives.as_secs()
    };
    let good = |rest: &str| format!(r#"{{"errCode":0,"data":{{"token":"eyJ"{rest}}}}}"#);
    assert_eq!(lives(&good(r#","expireTimeSeconds":7776000"#)), 7_776_000);
    assert_eq!(lives(&good("")), 3600);
    assert_eq!(lives(&good(r#","expireTimeSeconds":0"#)), 3600);
    let absurd = format!(r#","expireTimeSeconds":{}"#, u64::MAX);
    assert_eq!(lives(&good(&absurd)), 366 * 24 * 60 * 60);

    let class = |status, body: &str| read(status, body).unwrap_err().class;
    let invalid = r#"{"errCode":1002,"errMsg":"NoPermissionError","errDlt":"secret invalid"}"#;
    assert_eq!(class(200, invalid), Class::Config);
    assert_eq!(
        read(200, invalid).unwrap_err().text,
        "NoPermissionError: secret invalid"
    );
    assert_eq!(class(200, r#"{"errCode":1001}"#), Class::Permanent);
    assert_eq!(class(200, r#"{"errCode":500}"#), Class::Transient);
    assert_eq!(class(404, "404 page not found"), Class::Config);
    assert_eq!(class(429, ""), Class::Throttled);
    assert_eq!(class(502, ""), Class::Transient);
    // A reply of another form is not shown, since it may contain the token.
    for odd in [
        r#"{"errCode":0,"data":{"Token":"hunter2"}}"#,
        r#"{"errCode":0,"data":{"token":""},"x":"hunter2"}"#,
        r#"{"errCode":0,"data":{"token":"hunter2\n"}}"#,
        r#"{"token":"hunter2"}"#,
        "",
    ] {
        let answer = read(200, odd).unwrap_err();
        assert_eq!(answer.class, Class::Transient, "{odd}");
        assert_eq!(answer.text, "the reply to the login holds no token");
    }
}

// --- Directory -----------------------------------------------------------------------------------

#[test]
fn all_users_are_listed_page_by_page() {
    let target = single();
    let directory = target.directory().unwrap();
    assert!(directory.login().is_some());
    assert_eq!(
        text(&directory.page(None)),
        "POST http://im:10002/user/get_users\n\
         content-type: application/json\noperationid: fanwise-users-1\n\n\
         {\"pagination\":{\"pageNumber\":1,\"showNumber\":500}}"
    );
    assert_eq!(
        text(&directory.page(Some("7"))),
        "POST http://im:10002/user/get_users\n\
         content-type: application/json\noperationid: fanwise-users-7\n\n\
         {\"pagination\":{\"pageNumber\":7,\"showNumber\":500}}"
    );
    let read = |cursor, body: &str| directory.read_page(cursor, &reply(200, body.to_owned()));
    let users = r#"{"errCode":0,"data":{"total":2,"users":[{"userID":"u1","nickname":"x"},{"userID":"ü\""}]}}"#;
    let page = |next: Option<&str>, users: &[&str]| Page {
        users: users.iter().map(|it| (*it).to_owned()).collect(),
        total: Some(2),
        next: next.map(str::to_owned),
    };
    assert_eq!(read(None, users).unwrap(), page(Some("2"), &["u1", "ü\""]));
    assert_eq!(
        read(Some("2"), users).unwrap(),
        page(Some("3"), &["u1", "ü\""])
    );
    // The list ends at an empty page.
    for end in ["null", "[]"] {
        let end = format!(r#"{{"errCode":0,"data":{{"total":2,"users":{end}}}}}"#);
        assert_eq!(read(Some("3"), &end).unwrap(), page(None, &[]));
    }
    let class = |status, body: &'static str| {
        directory
            .read_page(None, &reply(status, body))
            .unwrap_err()
            .class
    };
    assert_eq!(class(200, r#"{"errCode":1002}"#), Class::Config);
    assert_eq!(class(200, r#"{"errCode":500}"#), Class::Transient);
    assert_eq!(
        class(200, r#"{"errCode":0,"data":{"users":[{"id":"u1"}]}}"#),
        Class::Transient
    );
    assert_eq!(class(200, ""), Class::Transient);
    assert_eq!(class(503, ""), Class::Transient);
    assert_eq!(class(404, ""), Class::Config);
    let stale = directory.read_page(None, &reply(200, r#"{"errCode":1501}"#));
    assert!(stale.unwrap_err().stale);
}
