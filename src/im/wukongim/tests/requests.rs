//! Checks requests byte for byte.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;

use super::{Version, build_it, commands, packed, settings, single};
use crate::domain::message::{Content, File};
use crate::domain::slice::{Addressed, Head};
use crate::im::fixture::{AWKWARD, head, raw, request, text};
use crate::im::wukongim::{ClientMsgNo, Settings};
use crate::ports::Target;
use crate::secret::Secret;

fn golden(target: &dyn Target, head: Head, recipients: &[&str]) -> String {
    text(&request(
        |head| target.open(head),
        &Arc::new(head),
        recipients,
    ))
}

#[test]
fn a_single_call_on_the_released_versions() {
    let expected = "POST http://im:5001/message/send\n\
        content-type: application/json\n\n\
        {\"header\":{\"no_persist\":0,\"red_dot\":1,\"sync_once\":0},\"from_uid\":\"____system\",\
        \"payload\":\"eyJ0eXBlIjoxLCJjb250ZW50IjoiSGVsbG8gXCJ5b3VcIiJ9\",\"channel_type\":1,\
        \"client_msg_no\":\"promo-1-06a31537d691b7d9\",\"channel_id\":\"u1\"}";
    assert_eq!(golden(&*single(Version::V1), head(), &["u1"]), expected);
    assert_eq!(golden(&*single(Version::V2), head(), &["u1"]), expected);
    let payload = STANDARD
        .decode("eyJ0eXBlIjoxLCJjb250ZW50IjoiSGVsbG8gXCJ5b3VcIiJ9")
        .unwrap();
    assert_eq!(payload, br#"{"type":1,"content":"Hello \"you\""}"#);
}

#[test]
fn a_single_call_with_everything_set() {
    let target = build_it(Settings {
        url: "https://im.example/wk/".into(),
        token: Some(Secret::new("s3cret")),
        sender: Some("news".into()),
        client_msg_no: ClientMsgNo::Job,
        ..settings(Version::V2)
    });
    let mut head = head();
    head.content = Content::Custom(raw(r#"{ "type": 77, "n":1.0 }"#));
    head.options.online_only = Some(true);
    head.options.unread = Some(false);
    head.options.sync_once = Some(true);
    head.options.expire_seconds = Some(60);
    head.client_msg_no = "a\"b".into();
    assert_eq!(
        golden(&*target, head.clone(), &["u1"]),
        "POST https://im.example/wk/message/send\n\
         content-type: application/json\ntoken: s3cret\n\n\
         {\"header\":{\"no_persist\":1,\"red_dot\":0,\"sync_once\":1},\"from_uid\":\"news\",\
         \"expire\":60,\"payload\":\"eyAidHlwZSI6IDc3LCAibiI6MS4wIH0=\",\"channel_type\":1,\
         \"client_msg_no\":\"a\\\"b\",\"channel_id\":\"u1\"}"
    );
    assert_eq!(
        STANDARD.decode("eyAidHlwZSI6IDc3LCAibiI6MS4wIH0=").unwrap(),
        br#"{ "type": 77, "n":1.0 }"#
    );
    // The job's own sender wins; a raw message is the payload unchanged.
    head.sender = Some("boss".into());
    head.content = Content::Raw(raw("[1, 2]"));
    let got = golden(&*target, head, &["u1"]);
    assert!(got.contains(r#""from_uid":"boss""#), "{got}");
    assert!(
        got.contains(&format!(r#""payload":"{}""#, STANDARD.encode("[1, 2]"))),
        "{got}"
    );
}

#[test]
fn a_single_call_on_version_3() {
    let mut head = head();
    head.sender = Some("news".into());
    head.options.expire_seconds = Some(9);
    assert_eq!(
        golden(&*single(Version::V3), head, &["u1"]),
        "POST http://im:5001/message/send\n\
         content-type: application/json\n\n\
         {\"header\":{\"no_persist\":0,\"sync_once\":0},\"from_uid\":\"news\",\"expire\":9,\
         \"payload\":\"eyJ0eXBlIjoxLCJjb250ZW50IjoiSGVsbG8gXCJ5b3VcIiJ9\",\"channel_type\":1,\
         \"client_msg_no\":\"promo-1-06a31537d691b7d9\",\"channel_id\":\"u1\"}"
    );
}

#[test]
fn a_packed_call() {
    assert_eq!(
        golden(&*packed(), head(), &["u1", "a\"b", "ü"]),
        "POST http://im:5001/message/sendbatch\n\
         content-type: application/json\n\n\
         {\"header\":{\"no_persist\":0,\"red_dot\":1,\"sync_once\":0},\"from_uid\":\"____system\",\
         \"payload\":\"eyJ0eXBlIjoxLCJjb250ZW50IjoiSGVsbG8gXCJ5b3VcIiJ9\",\
         \"subscribers\":[\"u1\",\"a\\\"b\",\"ü\"]}"
    );
}

#[test]
fn awkward_recipients_arrive_as_they_are() {
    let head = Arc::new(head());
    for target in [single(Version::V2), packed()] {
        let calls = target.open(&head);
        for recipient in AWKWARD {
            let body = calls.request(&[recipient]).body;
            let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let at = json
                .get("channel_id")
                .unwrap_or_else(|| &json["subscribers"][0]);
            assert_eq!(at, recipient);
        }
    }
}

proptest! {
    /// A repeated call is identical byte for byte, and no two recipients share a `client_msg_no`.
    #[test]
    fn calls_are_the_same_every_time(one in ".{1,40}", other in ".{1,40}") {
        let (target, head) = (single(Version::V3), Arc::new(head()));
        let of = |recipient: &str| {
            let body = request(|head| target.open(head), &head, &[recipient]).body;
            let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
            json["client_msg_no"].as_str().unwrap().to_owned()
        };
        prop_assert_eq!(of(&one) == of(&other), one == other);
    }
}

/// The payload of a message, decoded.
fn payload_of(content: Content) -> String {
    let mut head = head();
    head.content = content;
    let body = request(
        |head| single(Version::V2).open(head),
        &Arc::new(head),
        &["u1"],
    )
    .body;
    let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let payload = STANDARD.decode(json["payload"].as_str().unwrap()).unwrap();
    String::from_utf8(payload).unwrap()
}

#[test]
fn payloads_of_all_types() {
    let file = || File {
        url: "http://x/a".into(),
        ..File::default()
    };
    let check = |content, expected: &str| assert_eq!(payload_of(content), expected);
    check(
        Content::Text("a \"b\" ü".into()),
        r#"{"type":1,"content":"a \"b\" ü"}"#,
    );
    check(
        Content::Image(File {
            width: Some(640),
            height: Some(480),
            size: Some(9),
            format: Some("png".into()),
            ..file()
        }),
        r#"{"type":2,"url":"http://x/a","size":9,"extension":"png","width":640,"height":480}"#,
    );
    check(
        Content::Audio(File {
            duration_ms: Some(1001),
            ..file()
        }),
        r#"{"type":4,"url":"http://x/a","timeTrad":2}"#,
    );
    check(
        Content::Video(File {
            duration_ms: Some(3000),
            width: Some(1),
            height: Some(2),
            size: Some(3),
            cover: Some("http://x/c".into()),
            ..file()
        }),
        r#"{"type":5,"url":"http://x/a","size":3,"width":1,"height":2,"second":3,"cover":"http://x/c"}"#,
    );
    let md5 = "d41d8cd98f00b204e9800998ecf8427e";
    check(
        Content::File(File {
            name: Some("a.pdf".into()),
            size: Some(0),
            md5: Some(md5.into()),
            ..file()
        }),
        &format!(r#"{{"type":8,"url":"http://x/a","name":"a.pdf","size":0,"md5":"{md5}"}}"#),
    );
    check(Content::Image(file()), r#"{"type":2,"url":"http://x/a"}"#);
    check(
        Content::Location {
            latitude: 31.25,
            longitude: -121.5,
            title: "here".into(),
        },
        r#"{"type":6,"lat":31.25,"lng":-121.5,"title":"here"}"#,
    );
    check(
        Content::Notice("you are friends now".into()),
        r#"{"type":2000,"content":"you are friends now"}"#,
    );
    let mention = |users: &[&str], everybody| Content::Mention {
        text: "hi".into(),
        users: users.iter().map(|user| (*user).to_owned()).collect(),
        everybody,
    };
    check(
        mention(&["u1", "u2"], false),
        r#"{"type":1,"content":"hi","mention":{"uids":["u1","u2"]}}"#,
    );
    check(
        mention(&[], true),
        r#"{"type":1,"content":"hi","mention":{"all":1}}"#,
    );
    check(
        mention(&["u1"], true),
        r#"{"type":1,"content":"hi","mention":{"uids":["u1"],"all":1}}"#,
    );
    check(Content::Custom(raw(r#"{ "n": 1.0 }"#)), r#"{ "n": 1.0 }"#);
    check(Content::Raw(raw("[1, 2]")), "[1, 2]");
}

#[test]
fn a_call_to_a_group() {
    let mut head = head();
    head.addressed = Addressed::Groups(2);
    let expected = "POST http://im:5001/message/send\n\
        content-type: application/json\n\n\
        {\"header\":{\"no_persist\":0,\"red_dot\":1,\"sync_once\":0},\"from_uid\":\"____system\",\
        \"payload\":\"eyJ0eXBlIjoxLCJjb250ZW50IjoiSGVsbG8gXCJ5b3VcIiJ9\",\"channel_type\":2,\
        \"client_msg_no\":\"promo-1-06a31537d691b7d9\",\"channel_id\":\"u1\"}";
    // A group has a call of its own, even on a target that packs users.
    for target in [single(Version::V1), single(Version::V2), packed()] {
        assert_eq!(golden(&*target, head.clone(), &["u1"]), expected);
    }
    head.addressed = Addressed::Groups(5);
    head.sender = Some("news".into());
    let got = golden(&*single(Version::V3), head, &["g1"]);
    assert!(got.contains(r#""channel_type":5,"#), "{got}");
}

#[test]
fn flags_are_integers() {
    let header = |version, change: fn(&mut Head)| {
        let mut head = head();
        head.sender = Some("news".into());
        change(&mut head);
        let got = golden(&*single(version), head, &["u1"]);
        let (_, header) = got.split_once(r#""header":"#).unwrap();
        header.split_once('}').unwrap().0.to_owned()
    };
    let check = |change: fn(&mut Head), released: &str, v3: &str| {
        assert_eq!(header(Version::V1, change), released);
        assert_eq!(header(Version::V2, change), released);
        assert_eq!(header(Version::V3, change), v3);
    };
    check(
        |_| {},
        r#"{"no_persist":0,"red_dot":1,"sync_once":0"#,
        r#"{"no_persist":0,"sync_once":0"#,
    );
    check(
        |head| head.options.unread = Some(true),
        r#"{"no_persist":0,"red_dot":1,"sync_once":0"#,
        r#"{"no_persist":0,"sync_once":0"#,
    );
    check(
        |head| head.options.unread = Some(false),
        r#"{"no_persist":0,"red_dot":0,"sync_once":0"#,
        r#"{"no_persist":0,"sync_once":0"#,
    );
    check(
        |head| head.options.online_only = Some(true),
        r#"{"no_persist":1,"red_dot":1,"sync_once":0"#,
        r#"{"no_persist":1,"sync_once":0"#,
    );
    check(
        |head| head.options.sync_once = Some(true),
        r#"{"no_persist":0,"red_dot":1,"sync_once":1"#,
        r#"{"no_persist":0,"sync_once":1"#,
    );
}

#[test]
fn a_command_to_many_users() {
    let mut head = head();
    head.options.sync_once = Some(true);
    head.options.expire_seconds = Some(5);
    head.content = Content::Raw(raw("{}"));
    assert_eq!(
        golden(&*commands(Version::V2), head.clone(), &["u1", "a\"b"]),
        "POST http://im:5001/message/send\n\
         content-type: application/json\n\n\
         {\"header\":{\"no_persist\":0,\"red_dot\":1,\"sync_once\":1},\"from_uid\":\"____system\",\
         \"expire\":5,\"payload\":\"e30=\",\"client_msg_no\":\"promo-1\",\
         \"subscribers\":[\"u1\",\"a\\\"b\"]}"
    );
    head.sender = Some("news".into());
    assert_eq!(
        golden(&*commands(Version::V3), head.clone(), &["u1"]),
        "POST http://im:5001/message/send\n\
         content-type: application/json\n\n\
         {\"header\":{\"no_persist\":0,\"sync_once\":1},\"from_uid\":\"news\",\
         \"expire\":5,\"payload\":\"e30=\",\"client_msg_no\":\"promo-1\",\
         \"subscribers\":[\"u1\"]}"
    );
    // Without `sync_once` the server would refuse `subscribers`.
    head.options.sync_once = None;
    let got = golden(&*commands(Version::V2), head, &["u1"]);
    assert!(got.contains(r#""channel_id":"u1"}"#), "{got}");
}

/// A job may choose the form of its messages' numbers, with the values of the target's setting.
#[test]
fn a_job_may_choose_the_form_of_its_number() {
    let number = |target: &dyn Target, native: &str| {
        let mut head = head();
        head.native = Some(raw(native));
        assert_eq!(target.check(&head), []);
        let sent = golden(target, head, &["u1"]);
        let (_, number) = sent.split_once("\"client_msg_no\":\"").unwrap();
        number.split('"').next().unwrap().to_owned()
    };
    let one_for_all = build_it(Settings {
        client_msg_no: ClientMsgNo::Job,
        sender: Some("news".into()),
        ..settings(Version::V3)
    });
    for target in [&*single(Version::V2), &*one_for_all] {
        assert_eq!(number(target, r#"{"client_msg_no":"job"}"#), "promo-1");
        assert_eq!(
            number(target, r#"{"client_msg_no":"per_recipient"}"#),
            "promo-1-06a31537d691b7d9"
        );
    }
    for wrong in [
        r#"{"client_msg_no":"promo-1"}"#,
        r#"{"Client_Msg_No":"job"}"#,
        r#"{"client_msg_no":1}"#,
    ] {
        let mut head = head();
        head.native = Some(raw(wrong));
        assert_eq!(single(Version::V2).check(&head).len(), 1, "{wrong}");
    }
}

#[test]
fn native_fields_join_the_request_and_win() {
    let mut head = head();
    head.options.expire_seconds = Some(60);
    head.native = Some(raw(
        r#"{"topic":"t","setting": 32,"expire":7,"payload":"e30="}"#,
    ));
    assert_eq!(
        golden(&*single(Version::V2), head.clone(), &["u1"]),
        "POST http://im:5001/message/send\n\
         content-type: application/json\n\n\
         {\"header\":{\"no_persist\":0,\"red_dot\":1,\"sync_once\":0},\"from_uid\":\"____system\",\
         \"expire\":7,\"payload\":\"e30=\",\"setting\":32,\"topic\":\"t\",\"channel_type\":1,\
         \"client_msg_no\":\"promo-1-06a31537d691b7d9\",\"channel_id\":\"u1\"}"
    );
    head.content = Content::Native;
    let got = golden(&*single(Version::V2), head.clone(), &["u1"]);
    assert_eq!(got.matches("payload").count(), 1);
    // A lenient job is sent without the parts that a packed call cannot carry.
    head.content = Content::Raw(raw("1"));
    assert_eq!(
        golden(&*packed(), head, &["u1"]),
        "POST http://im:5001/message/sendbatch\n\
         content-type: application/json\n\n\
         {\"header\":{\"no_persist\":0,\"red_dot\":1,\"sync_once\":0},\"from_uid\":\"____system\",\
         \"payload\":\"MQ==\",\"subscribers\":[\"u1\"]}"
    );
}

#[test]
fn a_message_in_doubt_is_looked_up() {
    let probing = |change: fn(&mut Settings)| {
        let mut settings = Settings {
            probe: true,
            token: Some(Secret::new("s3cret")),
            ..settings(Version::V2)
        };
        change(&mut settings);
        build_it(settings)
    };
    let check = |target: &dyn Target, change: fn(&mut Head), recipient: &str, expected: &str| {
        let mut head = head();
        change(&mut head);
        let request = target.open(&Arc::new(head)).probe(&[recipient]).unwrap();
        let expected =
            format!("GET http://im:5001/message/byclientmsgno?{expected}\ntoken: s3cret\n\n");
        assert_eq!(text(&request), expected);
    };
    let target = probing(|_| {});
    // The larger checksum comes first: u1 before ____system, ü before news.
    check(
        &*target,
        |_| {},
        "u1",
        "channel_id=u1%40____system&channel_type=1&client_msg_no=promo-1-06a31537d691b7d9",
    );
    check(
        &*target,
        |head| {
            head.sender = Some("ü".into());
            head.options.sync_once = Some(true);
        },
        "u1",
        "channel_id=%C3%BC%40u1____cmd&channel_type=1&client_msg_no=promo-1-06a31537d691b7d9",
    );
    check(
        &*target,
        |head| head.addressed = Addressed::Groups(2),
        "u1",
        "channel_id=u1&channel_type=2&client_msg_no=promo-1-06a31537d691b7d9",
    );
    check(
        &*probing(|settings| settings.client_msg_no = ClientMsgNo::Job),
        |head| head.client_msg_no = "a&b=c".into(),
        "u1",
        "channel_id=u1%40____system&channel_type=1&client_msg_no=a%26b%3Dc",
    );
    // A message that is not stored cannot be found, and a call for many has no number per
    // recipient.
    let none = |target: &dyn Target, change: fn(&mut Head), recipients: &[&str]| {
        let mut head = head();
        change(&mut head);
        target.open(&Arc::new(head)).probe(recipients).is_none()
    };
    assert!(none(
        &*target,
        |head| head.options.online_only = Some(true),
        &["u1"]
    ));
    assert!(none(&*single(Version::V2), |_| {}, &["u1"]));
    assert!(none(
        &*probing(|settings| settings.subscribers = true),
        |head| head.options.sync_once = Some(true),
        &["u1"]
    ));
}
