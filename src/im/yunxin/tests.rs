//! Checks requests byte for byte, and the meaning of every form of reply. The replies are those of
//! the vendor's documents and SDKs, and of gateways in front of it.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::domain::mapping::{Feature, Mapping, Strictness};
use crate::domain::message::{Content, File, Moderation, Options, Push, Route};
use crate::domain::outcome::{Class, TargetAnswer, Verdict};
use crate::domain::slice::{Addressed, Head};
use crate::im::fixture::{AWKWARD, head, raw, reply, request, text, with_header};
use crate::im::{TargetSettings, build};
use crate::ports::{HttpReply, Signing, Target, fit};

fn settings() -> Settings {
    Settings {
        sender: Some("news".into()),
        ..Settings::new("https://im", "key", Secret::new("secret"))
    }
}

fn build_it(settings: Settings) -> Box<dyn Target> {
    build("im", &TargetSettings::Yunxin(settings)).unwrap()
}

fn target() -> Box<dyn Target> {
    build_it(settings())
}

fn single() -> Box<dyn Target> {
    build_it(Settings {
        single: true,
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

fn body(target: &dyn Target, head: Head) -> serde_json::Value {
    let body = target.open(&Arc::new(head)).request(&["u1"]).body;
    serde_json::from_slice(&body).unwrap()
}

#[test]
fn a_look_up_of_accounts_tells_whether_the_credentials_are_accepted() {
    let target = target();
    let asked = text(&target.identify().unwrap());
    let begin = "GET https://im/im/v2/accounts?account_ids=fanwise-doctor\n";
    assert!(
        asked.starts_with(begin) && asked.contains("appkey: key\n"),
        "{asked}"
    );
    for (status, body, expected) in [
        (
            200,
            r#"{"code":200,"data":{"success_list":[]}}"#,
            Ok("takes the app key"),
        ),
        (
            200,
            r#"{"code":414,"msg":"parameter error"}"#,
            Ok("takes the app key"),
        ),
        (
            200,
            r#"{"code":414,"msg":"checksum error"}"#,
            Err("refuses the call: 414"),
        ),
        (
            200,
            r#"{"code":101302,"msg":"bad app"}"#,
            Err("refuses the call: 101302"),
        ),
        (502, "<html>", Err("answers 502, not as Yunxin does")),
    ] {
        let found = target.read_identity(&reply(status, body));
        let begins = |text: &String, begin: &str| text.starts_with(begin);
        let is_so = match (&found, expected) {
            (Ok(found), Ok(expected)) => begins(found, expected),
            (Err(found), Err(expected)) => begins(found, expected),
            _ => false,
        };
        assert!(is_so, "{body}: {found:?}");
    }
}

#[test]
fn a_batch() {
    assert_eq!(
        golden(&*target(), head(), &["u1", "a\"b"]),
        "POST https://im/im/v2/conversations/messages\n\
         content-type: application/json\n\
         appkey: key\n\
         x-custom-traceid: c44741c211a2c3c6a13d33d784e9656b\n\n\
         {\"sender_id\":\"news\",\
         \"message\":{\"message_type\":0,\"text\":\"Hello \\\"you\\\"\"},\
         \"sender_no_sense\":true,\
         \"receiver_ids\":[\"u1\",\"a\\\"b\"]}"
    );
}

#[test]
fn a_batch_with_everything_set() {
    let target = target();
    let mut head = everything();
    head.native = Some(raw(
        r#"{"p2p_option":{"check_friend": true},"route_config":{"route_enabled":true}}"#,
    ));
    assert_eq!(target.check(&head), []);
    assert_eq!(
        golden(&*target, head, &["u1"]),
        "POST https://im/im/v2/conversations/messages\n\
         content-type: application/json\n\
         appkey: key\n\
         x-custom-traceid: 32b30cca2e043dd6ed53729e9813f1bb\n\n\
         {\"sender_id\":\"boss\",\
         \"message\":{\"message_type\":100,\"attachment\":{ \"a\": 1.0 }},\
         \"message_config\":{\"unread_enabled\":false,\"offline_enabled\":false,\
         \"history_enabled\":false,\"roaming_enabled\":false},\
         \"route_config\":{\"route_enabled\":true},\
         \"push_config\":{\"push_enabled\":true,\"push_content\":\"Neu!\",\
         \"push_payload\":\"{\\\"k\\\":1}\",\"push_forcepush_all\":true},\
         \"antispam_config\":{\"antispam_enabled\":false,\"antispam_business_id\":\"b1\"},\
         \"sender_no_sense\":false,\"receiver_no_sense\":true,\"extension\":\"[1, 2]\",\
         \"p2p_option\":{\"check_friend\": true},\
         \"receiver_ids\":[\"u1\"]}"
    );
}

fn everything() -> Head {
    let mut head = head();
    head.sender = Some("boss".into());
    head.content = Content::Custom(raw(r#"{ "a": 1.0 }"#));
    head.options = Options {
        online_only: Some(true),
        unread: Some(false),
        sender_no_sense: Some(false),
        receiver_no_sense: Some(true),
        push: Some(Push {
            enabled: Some(true),
            text: Some("Neu!".into()),
            payload: Some(raw(r#"{"k":1}"#)),
            forced: Some(true),
            ..Push::default()
        }),
        route: Some(Route {
            enabled: Some(false),
            environment: Some("test".into()),
        }),
        moderation: Some(Moderation {
            enabled: Some(false),
            business_id: Some("b1".into()),
        }),
        extension: Some(raw("[1, 2]")),
        ..Options::default()
    };
    head
}

#[test]
fn a_single_message() {
    let target = single();
    assert_eq!(target.recipients_per_call(&head()), 1);
    assert_eq!(
        golden(&*target, head(), &["u1"]),
        "POST https://im/im/v2/conversations/news%7C1%7Cu1/messages\n\
         content-type: application/json\n\
         appkey: key\n\
         x-custom-traceid: 32b30cca2e043dd6ed53729e9813f1bb\n\n\
         {\"message\":{\"message_type\":0,\"text\":\"Hello \\\"you\\\"\",\
         \"message_client_id\":\"32b30cca2e043dd6ed53729e9813f1bb\"},\
         \"sender_no_sense\":true}"
    );
    let got = golden(&*target, everything(), &["u1"]);
    assert!(
        got.contains(
            "{\"message\":{\"message_type\":100,\"attachment\":{ \"a\": 1.0 },\
             \"message_client_id\":\"32b30cca2e043dd6ed53729e9813f1bb\"},\
             \"message_config\":{\"unread_enabled\":false,"
        ),
        "{got}"
    );
    assert!(got.contains("\"route_environment\":\"test\""), "{got}");
}

#[test]
fn groups_are_conversations_of_their_own() {
    for target in [target(), single()] {
        for kind in [2, 3] {
            let mut head = head();
            head.addressed = Addressed::Groups(kind);
            assert_eq!(target.check(&head), []);
            assert_eq!(target.recipients_per_call(&head), 1);
            let got = golden(&*target, head, &["2000"]);
            let expected = format!(
                "POST https://im/im/v2/conversations/news%7C{kind}%7C2000/messages\n\
                 content-type: application/json\n\
                 appkey: key\n\
                 x-custom-traceid: 8d630cf09fb8c999398c01e18d45aff1\n\n\
                 {{\"message\":{{\"message_type\":0,\"text\":\"Hello \\\"you\\\"\",\
                 \"message_client_id\":\"8d630cf09fb8c999398c01e18d45aff1\"}},\
                 \"sender_no_sense\":true}}"
            );
            assert_eq!(got, expected);
        }
    }
}

#[test]
fn every_attempt_is_signed() {
    let target = target();
    let mut request = target.open(&Arc::new(head())).request(&["u1"]);
    let signing = Signing {
        now_ms: 1_443_592_223_000,
        nonce: 2,
    };
    target.sign(&mut request, signing);
    // As in version 1.
    assert_eq!(
        request.headers["checksum"],
        "744d0abc628208db491094cb8c655ac3689e6d08"
    );
    assert_eq!(request.headers["curtime"], "1443592223");
    assert_eq!(request.headers["nonce"], "00000000000000000000000000000002");
}

#[test]
fn every_content_has_its_message() {
    let file = File {
        url: "http://f/1".into(),
        name: Some("a.png".into()),
        size: Some(9),
        format: Some("png".into()),
        md5: Some("0123456789abcdef0123456789abcdef".into()),
        width: Some(3),
        height: Some(4),
        duration_ms: Some(5),
        cover: Some("http://f/2".into()),
    };
    let bare = File {
        url: "http://f/1".into(),
        ..File::default()
    };
    let whole = r#"{"url":"http://f/1","name":"a.png","md5":"0123456789abcdef0123456789abcdef","size":9,"ext":"png","width":3,"height":4,"duration":5}"#;
    let with = |kind: u8, attachment: &str| {
        format!(r#"{{"message_type":{kind},"attachment":{attachment}}}"#)
    };
    let place = Content::Location {
        latitude: 30.5,
        longitude: -120.19,
        title: "Lake".into(),
    };
    let mention = Content::Mention {
        text: "@all hi".into(),
        users: vec!["u1".into()],
        everybody: true,
    };
    for (content, message) in [
        (
            Content::Text("中".into()),
            r#"{"message_type":0,"text":"中"}"#.to_owned(),
        ),
        (Content::Image(file.clone()), with(1, whole)),
        (
            Content::Audio(bare.clone()),
            with(2, r#"{"url":"http://f/1"}"#),
        ),
        (Content::Video(file), with(3, whole)),
        (
            place,
            with(4, r#"{"title":"Lake","longitude":-120.19,"latitude":30.5}"#),
        ),
        (Content::File(bare), with(6, r#"{"url":"http://f/1"}"#)),
        (
            Content::Notice("n".into()),
            r#"{"message_type":10,"text":"n"}"#.into(),
        ),
        (mention, r#"{"message_type":0,"text":"@all hi"}"#.into()),
        (
            Content::Custom(raw(r#"{ "a":1 }"#)),
            with(100, r#"{ "a":1 }"#),
        ),
        (
            Content::Raw(raw(r#"{"message_type":7, "sub_type":2}"#)),
            r#"{"message_type":7, "sub_type":2}"#.into(),
        ),
    ] {
        let mut head = head();
        head.content = content;
        let target = target();
        assert_eq!(target.check(&head), []);
        let got = golden(&*target, head.clone(), &["u1"]);
        assert!(got.contains(&format!(r#""message":{message},"#)), "{got}");
        // The same message, with its id.
        let mut expected: serde_json::Value = serde_json::from_str(&message).unwrap();
        expected["message_client_id"] = "32b30cca2e043dd6ed53729e9813f1bb".into();
        assert_eq!(body(&*single(), head)["message"], expected);
    }
}

#[test]
fn native_members_win_and_may_stand_alone() {
    let mut head = head();
    head.native = Some(raw(r#"{"message":{ },"extension":"mine","x":null}"#));
    for target in [target(), single()] {
        assert_eq!(target.check(&head), []);
        let got = body(&*target, head.clone());
        assert_eq!(got["extension"], "mine");
        assert!(got["x"].is_null() && got.as_object().unwrap().contains_key("x"));
        assert_eq!(got["message"].get("text"), None);
    }
    let id = &body(&*single(), head.clone())["message"]["message_client_id"];
    assert_eq!(*id, "32b30cca2e043dd6ed53729e9813f1bb");
    head.content = Content::Native;
    assert_eq!(target().check(&head), []);
}

#[test]
fn awkward_recipients_arrive_as_they_are() {
    for awkward in AWKWARD {
        let mut head = head();
        head.sender = Some(awkward.into());
        let got = body(&*target(), head.clone());
        assert_eq!(got["sender_id"], awkward);
        let calls = target();
        let request = calls.open(&Arc::new(head.clone())).request(&[awkward]);
        let got: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        assert_eq!(got["receiver_ids"], serde_json::json!([awkward]));
        let request = single().open(&Arc::new(head)).request(&[awkward]);
        let path: Vec<_> = request.uri.path().split('/').collect();
        let ["", "im", "v2", "conversations", conversation, "messages"] = path[..] else {
            panic!("{:?}", request.uri);
        };
        let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte);
        assert!(conversation.bytes().all(harmless), "{conversation}");
        assert_eq!(conversation.matches("%7C1%7C").count(), 1);
        assert_eq!(request.uri.query(), None);
    }
    let longest = "é".repeat(127);
    let request = single().open(&Arc::new(head())).request(&[&longest]);
    assert!(request.uri.path().len() > 750);
}

proptest! {
    /// A repeated call is identical byte for byte, and no two recipients share a message id.
    #[test]
    fn calls_are_the_same_every_time(one in ".{1,40}", other in ".{1,40}") {
        let (target, head) = (single(), Arc::new(head()));
        let of = |recipient: &str| {
            let body = request(|head| target.open(head), &head, &[recipient]).body;
            let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
            json["message"]["message_client_id"].as_str().unwrap().to_owned()
        };
        prop_assert_eq!(of(&one) == of(&other), one == other);
    }
}

#[test]
fn an_account_says_what_it_can() {
    let profile = target().profile().clone();
    assert_eq!(profile.recipients_per_call, 100);
    assert!(profile.folds_case && !profile.idempotent);
    let limit = profile.limit.unwrap();
    assert_eq!(limit.to_string(), "108/min burst 1 per call");
    let profile = single().profile().clone();
    assert_eq!((profile.recipients_per_call, profile.idempotent), (1, true));
    assert_eq!(profile.limit.unwrap().to_string(), "90/s burst 10 per call");
    let trusting = build_it(Settings {
        trust_request_id: true,
        ..settings()
    });
    assert!(trusting.profile().idempotent);
    assert_eq!(
        target().maps(Feature::All),
        Mapping::Refused("Yunxin cannot list accounts; give a list")
    );
}

#[test]
fn what_a_call_cannot_carry_is_refused_at_acceptance() {
    let check = |change: fn(&mut Head), expected: &[&str]| {
        let mut head = head();
        change(&mut head);
        let problems = target().check(&head);
        let found: Vec<_> = problems.iter().map(|it| it.field.as_str()).collect();
        assert_eq!(found, expected, "{problems:?}");
    };
    check(|_| {}, &[]);
    check(|head| head.sender = Some("x".repeat(33)), &["sender"]);
    check(|head| head.content = Content::Text("中".repeat(5000)), &[]);
    check(
        |head| head.content = Content::Text("中".repeat(5001)),
        &["message.text"],
    );
    check(
        |head| head.content = Content::Notice("😀".repeat(2501)),
        &["message.text"],
    );
    check(
        |head| head.addressed = Addressed::Groups(4),
        &["audience.group_type"],
    );
    check(
        |head| head.content = Content::Custom(raw("[1]")),
        &["message.data"],
    );
    check(
        |head| head.content = Content::Raw(raw("\"x\"")),
        &["message.data"],
    );
    check(
        |head| head.content = Content::Raw(raw(r#"{"message_client_id":"x"}"#)),
        &["message.data"],
    );
    check(
        |head| {
            head.native = Some(raw(
                r#"{"sender_id":"x","receiver_ids":[],"message":{"message_client_id":"x"}}"#,
            ));
        },
        &[
            "message.native.receiver_ids",
            "message.native.sender_id",
            "message.native.message",
        ],
    );
    check(
        |head| {
            head.content = Content::Native;
            head.native = Some(raw(r#"{"extension":"x"}"#));
        },
        &["message.native"],
    );
    // 107330: `sender_no_sense` is on unless the job turns it off.
    check(
        |head| head.options.receiver_no_sense = Some(true),
        &["options.receiver_no_sense"],
    );
    check(
        |head| {
            head.options.receiver_no_sense = Some(true);
            head.options.sender_no_sense = Some(true);
        },
        &["options.receiver_no_sense"],
    );
    check(
        |head| {
            head.options.receiver_no_sense = Some(true);
            head.options.sender_no_sense = Some(false);
        },
        &[],
    );
    check(
        |head| {
            head.options.unread = Some(false);
            head.options.push = Some(Push {
                text: Some("x".repeat(501)),
                payload: Some(raw(&format!("\"{}\"", "1".repeat(2049)))),
                badge: Some(true),
                ..Push::default()
            });
        },
        &[
            "options.push.badge",
            "options.push.text",
            "options.push.payload",
        ],
    );
    let roomy = build_it(Settings {
        push_text_length_max: 501,
        push_payload_length_max: 2051,
        ..settings()
    });
    let mut head_of_long = head();
    head_of_long.options.push = Some(Push {
        text: Some("x".repeat(501)),
        payload: Some(raw(&format!("\"{}\"", "1".repeat(2049)))),
        ..Push::default()
    });
    assert_eq!(roomy.check(&head_of_long), []);
    let nobody = build_it(Settings {
        sender: None,
        text_length_max: 5,
        ..settings()
    });
    let fields: Vec<_> = nobody
        .check(&head())
        .into_iter()
        .map(|it| it.field)
        .collect();
    assert_eq!(fields, ["sender", "message.text"]);
}

#[test]
fn what_no_member_carries_is_refused_or_dropped() {
    let mut head = head();
    head.options.sync_once = Some(true);
    head.options.push = Some(Push {
        title: Some("t".into()),
        sound: Some("s".into()),
        ..Push::default()
    });
    let target = target();
    let strict = fit(&*target, &head, true, Strictness::Strict);
    let fields: Vec<_> = strict.problems.iter().map(|it| it.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "options.sync_once",
            "options.push.title",
            "options.push.sound",
            "audience.all"
        ]
    );
    let lenient = fit(&*target, &head, false, Strictness::Lenient);
    assert_eq!((lenient.problems.len(), lenient.warnings.len()), (0, 3));
    let plain = target.open(&Arc::new(crate::im::fixture::head()));
    let with = target.open(&Arc::new(head));
    assert_eq!(plain.request(&["u1"]).body, with.request(&["u1"]).body);
}

#[test]
fn wrong_settings_are_all_reported() {
    let fields = |settings: Settings| -> Vec<String> {
        let problems = build("im", &TargetSettings::Yunxin(settings))
            .err()
            .unwrap_or_default();
        problems.into_iter().map(|problem| problem.field).collect()
    };
    let wrong = Settings {
        sender: Some(" ".into()),
        recipients_per_call: 1001,
        ..Settings::new("open.yunxinapi.com", "", Secret::new(""))
    };
    let all = [
        "url",
        "app_key",
        "app_secret",
        "sender",
        "recipients_per_call",
    ];
    assert_eq!(fields(wrong), all.map(|key| format!("targets.im.{key}")));
    assert!(fields(settings()).is_empty());
}

fn read(target: &dyn Target, recipients: &[&str], reply: &HttpReply) -> Verdict {
    target.open(&Arc::new(head())).read_reply(recipients, reply)
}

#[test]
fn replies_to_batches() {
    use Class::{Config, Done, Permanent, Throttled, Transient, Uncertain};
    let recipients = ["ana", "bob", "7"];
    let check = |status: u16, body: &str, classes: [Class; 3]| {
        let verdict = read(&*target(), &recipients, &reply(status, body.to_owned()));
        let found = [0, 1, 2].map(|index| verdict.of(index).class);
        assert_eq!(found, classes, "{status} {body}");
    };
    let sent = |data: &str| format!(r#"{{"code":200,"msg":"success","data":{data}}}"#);
    let all = r#"{"message_server_id":9897543190303,"sender_id":"news","conversation_type":1,
        "receiver_id":"ana","create_time":1707017423142},{"receiver_id":"BOB"},{"receiver_id":7}"#;
    check(
        200,
        &sent(&format!(r#"{{"success_list":[{all}]}}"#)),
        [Done; 3],
    );
    check(
        200,
        &sent(&format!(r#"{{"success_list":[{all}],"failed_list":null}}"#)),
        [Done; 3],
    );
    check(
        200,
        &sent(&format!(r#"{{"failed_list":[],"success_list":[{all}]}}"#)),
        [Done; 3],
    );
    // Failed recipients, under either name of the id, with the code as a number or a text.
    check(
        200,
        &sent(
            r#"{"success_list":[{"receiver_id":"ana"}],"failed_list":[
            {"account_id":"bob","error_code":102404,"error_msg":"account not exist"},
            {"receiver_id":"7","error_code":"107306"}]}"#,
        ),
        [Done, Permanent, Done],
    );
    check(
        200,
        &sent(
            r#"{"failed_list":[{"receiver_id":"ana","error_code":102426},
            {"account_id":"BOB","error_code":500},{"account_id":7}]}"#,
        ),
        [Permanent, Transient, Permanent],
    );
    // A failure of one recipient does not park the target.
    check(
        200,
        &sent(
            r#"{"success_list":[{"account_id":"7"}],"failed_list":[
            {"account_id":"ana","error_code":403},{"account_id":"bob","error_code":416}]}"#,
        ),
        [Permanent, Transient, Done],
    );
    // A recipient in neither list is in doubt; a recipient in both counts as sent.
    check(
        200,
        &sent(
            r#"{"success_list":[{"receiver_id":"ana"},{"receiver_id":"zoe"},{}],
            "failed_list":[{"account_id":"ana","error_code":404}]}"#,
        ),
        [Done, Uncertain, Uncertain],
    );
    for nobody in [
        r#"{"code":200}"#,
        r#"{"code":200,"data":null}"#,
        r#"{"code":200,"data":{}}"#,
    ] {
        check(200, nobody, [Uncertain; 3]);
    }
    for odd in [
        "",
        "ok",
        "null",
        "{}",
        "[]",
        r#"{"code":"200"}"#,
        r#"{"code":200,"data":[]}"#,
        r#"{"code":200,"data":{"success_list":{}}}"#,
        r#"{"code":200,"data":{"success_list":[{"receiver_id":null,"account_id":[]}]}}"#,
        r#"{"code":200,"data":{"failed_list":["bob"]}}"#,
        r#"{"code":200,"#,
        r#"{"code":1}"#,
    ] {
        check(200, odd, [Uncertain; 3]);
    }
    // The whole call is refused.
    check(200, r#"{"code":414,"msg":"receiver_ids"}"#, [Permanent; 3]);
    check(200, r#"{"code":414,"msg":"checksum"}"#, [Config; 3]);
    check(200, r#"{"code":403,"msg":"x","data":[]}"#, [Config; 3]);
    check(200, r#"{"code":101302}"#, [Config; 3]);
    check(200, r#"{"code":107330}"#, [Permanent; 3]);
    check(200, r#"{"code":107306}"#, [Done; 3]);
    check(200, r#"{"code":408}"#, [Uncertain; 3]);
    check(200, r#"{"code":416}"#, [Throttled; 3]);
    check(200, r#"{"code":500}"#, [Transient; 3]);
    check(404, "", [Config; 3]);
    check(502, r#"{"code":200}"#, [Uncertain; 3]);
    check(503, "", [Transient; 3]);

    let verdict = read(
        &*target(),
        &recipients,
        &reply(
            200,
            r#"{"code":200,"data":{"failed_list":[{"account_id":"bob","error_code":102404,"error_msg":"gone"}]}}"#,
        ),
    );
    assert_eq!(
        *verdict.of(1),
        TargetAnswer::new(Permanent, "102404", "gone")
    );
    assert_eq!(&*verdict.of(0).code, "not_listed");
    let many = read(
        &*target(),
        &recipients,
        &reply(200, r#"{"code":414,"msg":"too many"}"#),
    );
    assert!(many.of(0).split);
    let blocked = read(&*target(), &recipients, &reply(200, r#"{"code":416}"#));
    assert_eq!(blocked.of(0).retry_after, Some(Duration::from_secs(60)));
    let later = with_header(reply(429, ""), "retry-after", "7");
    let later = read(&*target(), &recipients, &later);
    assert_eq!(later.of(0).retry_after, Some(Duration::from_secs(7)));
}

#[test]
fn replies_to_single_messages() {
    let answer = |status, body: &'static str| match read(&*single(), &["u1"], &reply(status, body))
    {
        Verdict::All(answer) => answer,
        each @ Verdict::Each(_) => panic!("{each:?}"),
    };
    for fine in [
        r#"{"code":200,"msg":"success","data":{"message_server_id":1,"receiver_id":"u1"}}"#,
        r#"{"code":200}"#,
        r#"{"code":107306,"msg":"duplicate client message id"}"#,
    ] {
        assert_eq!(answer(200, fine), TargetAnswer::done(), "{fine}");
    }
    let gone = answer(200, r#"{"code":102404,"msg":"account not exist"}"#);
    assert_eq!(
        gone,
        TargetAnswer::new(Class::Permanent, "102404", "account not exist")
    );
    let blocked = answer(200, r#"{"code":416}"#);
    assert_eq!(blocked.class, Class::Throttled);
    assert_eq!(blocked.retry_after, Some(Duration::from_secs(10)));
    assert_eq!(answer(200, "").class, Class::Uncertain);
    assert_eq!(answer(500, "").class, Class::Uncertain);
}

#[test]
fn blocks_last_as_long_as_the_settings_say() {
    let blocks = |single| {
        build_it(Settings {
            single,
            block: Duration::from_secs(3),
            single_block: Duration::from_secs(2),
            ..settings()
        })
    };
    for (single, addressed, block) in [
        (false, Addressed::Users, 3),
        (true, Addressed::Users, 2),
        (false, Addressed::Groups(2), 2),
    ] {
        let mut head = head();
        head.addressed = addressed;
        let calls = blocks(single).open(&Arc::new(head));
        for body in [r#"{"code":416}"#, r#"{"code":107323}"#] {
            let verdict = calls.read_reply(&["1"], &reply(200, body));
            let expected = Some(Duration::from_secs(block));
            assert_eq!(verdict.of(0).retry_after, expected, "{body}");
        }
    }
}

#[test]
fn ids_are_kept_where_the_job_wants_them() {
    use crate::domain::message_id::MessageId;
    let keeping = Arc::new(Head {
        keep_ids: true,
        ..head()
    });
    let entry = r#"{"receiver_id":"A","message_server_id":9897543190303,"create_time":17}"#;
    let batch = format!(
        r#"{{"code":200,"data":{{"success_list":[{entry}],"failed_list":[{{"account_id":"b","error_code":102404}}]}}}}"#
    );
    let recipients = ["a", "b"];
    let id = MessageId::new("9897543190303", Some(17));
    let ids = |head: &Arc<Head>| {
        let calls = target().open(head);
        let verdict = calls.read_reply(&recipients, &reply(200, batch.clone()));
        [0, 1].map(|index| verdict.of(index).message.as_deref().cloned())
    };
    assert_eq!(ids(&keeping), [id.clone(), None]);
    assert_eq!(ids(&Arc::new(head())), [None, None]);
    let one = format!(r#"{{"code":200,"data":{entry}}}"#);
    let verdict = single().open(&keeping).read_reply(&["a"], &reply(200, one));
    assert_eq!(verdict.of(0).message.as_deref().cloned(), id);
}

#[test]
fn a_recall_names_the_conversation_and_the_message() {
    use crate::domain::message_id::MessageId;
    use crate::ports::Recalled;
    let target = target();
    let recall = target.recall().unwrap();
    let message = MessageId::new("9897543190303", Some(17)).unwrap();
    let recalled = Recalled {
        job: head().id,
        sender: Some("Shop"),
        addressed: Addressed::Groups(2),
        recipient: "t/1",
        message: &message,
    };
    let request = recall.request(&recalled).unwrap();
    assert_eq!(request.method, "DELETE");
    assert_eq!(
        request.uri,
        "https://im/im/v2/conversations/Shop%7C2%7Ct%2F1/messages/9897543190303?type=2\
         &ignore_revoke_time=1&message_time=17"
    );
    for (code, class) in [
        (200, Class::Done),
        (107_404, Class::Permanent),
        (403, Class::Config),
        (416, Class::Throttled),
        (503, Class::Transient),
    ] {
        let body = format!("{{\"code\":{code},\"msg\":\"x\"}}");
        assert_eq!(recall.read_reply(&reply(200, body)).class, class, "{code}");
    }
}
