//! Checks requests byte for byte, and the meaning of every form of reply. The encoded bodies and
//! the request ids were computed with Python's urllib and hashlib. The replies are those of the
//! vendor's documents, old and new, and of gateways in front of it.

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
        ..Settings::new("http://im/nimserver", "key", Secret::new("secret"))
    }
}

fn build_it(settings: Settings) -> Box<dyn Target> {
    build("im", &TargetSettings::Netease(settings)).unwrap()
}

fn target() -> Box<dyn Target> {
    build_it(settings())
}

fn with_ids() -> Box<dyn Target> {
    build_it(Settings {
        message_ids: true,
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

/// The fields of a body, decoded as the strictest reader would: `+` stays a plus.
fn fields(body: &[u8]) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let mut bytes = Vec::new();
        let mut rest = text.as_bytes();
        while let [first, more @ ..] = rest {
            rest = more;
            match first {
                b'%' => {
                    let digits = str::from_utf8(&more[..2]).unwrap();
                    bytes.push(u8::from_str_radix(digits, 16).unwrap());
                    rest = &more[2..];
                }
                other => bytes.push(*other),
            }
        }
        String::from_utf8(bytes).unwrap()
    };
    let pairs = str::from_utf8(body).unwrap().split('&');
    pairs
        .map(|pair| pair.split_once('=').unwrap())
        .map(|(name, value)| (decode(name), decode(value)))
        .collect()
}

/// A field of the call for a job.
fn field(target: &dyn Target, head: Head, name: &str) -> Option<String> {
    let body = target.open(&Arc::new(head)).request(&["u1"]).body;
    let mut found = fields(&body).into_iter().filter(|(it, _)| it == name);
    let value = found.next().map(|(_, value)| value);
    assert_eq!(found.next(), None, "{name} stands twice");
    value
}

#[test]
fn a_batch() {
    assert_eq!(
        golden(&*target(), head(), &["u1", "a\"b"]),
        "POST http://im/nimserver/msg/sendBatchMsg.action\n\
         content-type: application/x-www-form-urlencoded;charset=utf-8\n\
         appkey: key\n\
         requestid: c44741c211a2c3c6a13d33d784e9656b\n\n\
         fromAccid=news&type=0&body=%7B%22msg%22%3A%22Hello%20%5C%22you%5C%22%22%7D&\
         msgSenderNoSense=1&toAccids=%5B%22u1%22%2C%22a%5C%22b%22%5D"
    );
}

#[test]
fn a_batch_with_everything_set() {
    let target = with_ids();
    let mut head = head();
    head.sender = Some("boss".into());
    head.content = Content::Text("1 + 1 = 2 & 100%".into());
    head.options = Options {
        online_only: Some(true),
        unread: Some(false),
        sender_no_sense: Some(false),
        push: Some(Push {
            enabled: Some(true),
            text: Some("Neu!".into()),
            payload: Some(raw(r#"{"k":1}"#)),
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
        extension: Some(raw(r#""{\"e\":true}""#)),
        ..Options::default()
    };
    head.native = Some(raw(r#"{"yidunAntiCheating":{"ip":"1.1.1.1"},"bid":"b2"}"#));
    assert!(target.check(&head).is_empty(), "{:?}", target.check(&head));
    assert_eq!(
        golden(&*target, head, &["u1"]),
        "POST http://im/nimserver/msg/sendBatchMsg.action\n\
         content-type: application/x-www-form-urlencoded;charset=utf-8\n\
         appkey: key\n\
         requestid: 32b30cca2e043dd6ed53729e9813f1bb\n\n\
         fromAccid=boss&type=0&\
         body=%7B%22msg%22%3A%221%20%2B%201%20%3D%202%20%26%20100%25%22%7D&\
         option=%7B%22roam%22%3Afalse%2C%22history%22%3Afalse%2C%22persistent%22%3Afalse%2C\
         %22push%22%3Atrue%2C%22route%22%3Afalse%2C%22badge%22%3Afalse%7D&\
         pushcontent=Neu%21&payload=%7B%22k%22%3A1%7D&ext=%7B%22e%22%3Atrue%7D&\
         useYidun=0&bid=b2&returnMsgid=true&env=test&msgSenderNoSense=0&\
         yidunAntiCheating=%7B%22ip%22%3A%221.1.1.1%22%7D&toAccids=%5B%22u1%22%5D"
    );
}

#[test]
fn a_team() {
    let target = with_ids();
    let mut head = head();
    head.addressed = Addressed::Groups(2);
    assert_eq!(target.recipients_per_call(&head), 1);
    assert_eq!(
        golden(&*target, head, &["2000"]),
        "POST http://im/nimserver/msg/sendMsg.action\n\
         content-type: application/x-www-form-urlencoded;charset=utf-8\n\
         appkey: key\n\
         requestid: 8d630cf09fb8c999398c01e18d45aff1\n\n\
         from=news&ope=1&type=0&body=%7B%22msg%22%3A%22Hello%20%5C%22you%5C%22%22%7D&\
         msgSenderNoSense=1&to=2000"
    );
}

#[test]
fn every_attempt_has_a_signature_of_its_own() {
    let target = target();
    let mut request = target.open(&Arc::new(head())).request(&["u1"]);
    let mut sums = Vec::new();
    for (now_ms, nonce) in [
        (1_443_592_222_000, 1),
        (1_443_592_223_000, 1),
        (1_443_592_223_000, 2),
    ] {
        target.sign(&mut request, Signing { now_ms, nonce });
        sums.push(request.headers["checksum"].clone());
        assert_eq!(request.headers.get_all("nonce").iter().count(), 1);
    }
    assert!(sums[0] != sums[1] && sums[1] != sums[2]);
    // Python: hashlib.sha1(b"secret" + b"%032x" % 2 + b"1443592223").hexdigest()
    assert_eq!(sums[2], "744d0abc628208db491094cb8c655ac3689e6d08");
}

#[test]
fn every_content_has_its_type_and_body() {
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
    let whole = r#"{"url":"http://f/1","name":"a.png","md5":"0123456789abcdef0123456789abcdef","size":9,"ext":"png","w":3,"h":4,"dur":5}"#;
    let place = Content::Location {
        latitude: 30.18704515647036,
        longitude: -120.19,
        title: "Lake \"West\"".into(),
    };
    let mention = Content::Mention {
        text: "@all hi".into(),
        users: vec!["u1".into()],
        everybody: true,
    };
    for (content, number, body) in [
        (Content::Text("中 +".into()), "0", r#"{"msg":"中 +"}"#),
        (Content::Image(file.clone()), "1", whole),
        (Content::Audio(bare.clone()), "2", r#"{"url":"http://f/1"}"#),
        (Content::Video(file), "3", whole),
        (
            place,
            "4",
            r#"{"title":"Lake \"West\"","lng":-120.19,"lat":30.18704515647036}"#,
        ),
        (Content::File(bare), "6", r#"{"url":"http://f/1"}"#),
        (Content::Notice("n".into()), "10", r#"{"msg":"n"}"#),
        (mention, "0", r#"{"msg":"@all hi"}"#),
        (
            Content::Custom(raw(r#"{ "a": 1.0 }"#)),
            "100",
            r#"{ "a": 1.0 }"#,
        ),
        (
            Content::Raw(raw(r#"{"type":7,"body":{"x": 1}}"#)),
            "7",
            r#"{"x": 1}"#,
        ),
        (
            Content::Raw(raw(r#"{"type":0,"body":"{\"msg\":1}"}"#)),
            "0",
            r#"{"msg":1}"#,
        ),
    ] {
        let mut head = head();
        head.content = content;
        let target = target();
        assert_eq!(target.check(&head), []);
        assert_eq!(field(&*target, head.clone(), "type").unwrap(), number);
        assert_eq!(field(&*target, head, "body").unwrap(), body);
    }
}

#[test]
fn every_option_has_its_place() {
    let of = |options: Options, name: &str| {
        let mut head = head();
        head.options = options;
        field(&*target(), head, name)
    };
    let push = |push: Push| Options {
        push: Some(push),
        ..Options::default()
    };
    assert_eq!(of(Options::default(), "option"), None);
    let unread = |unread| Options {
        unread: Some(unread),
        ..Options::default()
    };
    assert_eq!(of(unread(true), "option").unwrap(), r#"{"badge":true}"#);
    assert_eq!(of(unread(false), "option").unwrap(), r#"{"badge":false}"#);
    let silent = push(Push {
        enabled: Some(false),
        badge: Some(false),
        ..Push::default()
    });
    assert_eq!(
        of(silent, "option").unwrap(),
        r#"{"push":false,"badge":false}"#
    );
    let extension = Options {
        extension: Some(raw("[1, 2]")),
        ..Options::default()
    };
    assert_eq!(of(extension, "ext").unwrap(), "[1, 2]");
    let text = push(Push {
        payload: Some(raw(r#""{\"a\":1}""#)),
        ..Push::default()
    });
    assert_eq!(of(text, "payload").unwrap(), r#"{"a":1}"#);
}

#[test]
fn native_fields_win_and_may_stand_alone() {
    let mut head = head();
    head.native = Some(raw(
        r#"{"body":{"msg":"other"},"type":10,"msgSenderNoSense":0}"#,
    ));
    assert_eq!(target().check(&head), []);
    let of = |head: &Head, name| field(&*target(), head.clone(), name).unwrap();
    assert_eq!(of(&head, "type"), "10");
    assert_eq!(of(&head, "body"), r#"{"msg":"other"}"#);
    assert_eq!(of(&head, "msgSenderNoSense"), "0");
    head.content = Content::Native;
    assert_eq!(target().check(&head), []);
    assert_eq!(of(&head, "type"), "10");
}

#[test]
fn awkward_texts_arrive_as_they_are() {
    for awkward in AWKWARD {
        let mut head = head();
        head.content = Content::Text(awkward.into());
        head.sender = Some(awkward.into());
        let body = target()
            .open(&Arc::new(head))
            .request(&[awkward, "u2"])
            .body;
        assert!(body.iter().all(|byte| byte.is_ascii_graphic()));
        let fields = fields(&body);
        let of = |name: &str| &fields.iter().find(|(it, _)| it == name).unwrap().1;
        assert_eq!(of("fromAccid"), awkward);
        let list: Vec<String> = serde_json::from_str(of("toAccids")).unwrap();
        assert_eq!(list, [awkward, "u2"]);
        let message: serde_json::Value = serde_json::from_str(of("body")).unwrap();
        assert_eq!(message["msg"], awkward);
    }
}

proptest! {
    /// A repeated call is identical byte for byte, and other recipients get another `RequestId`.
    #[test]
    fn calls_are_the_same_every_time(
        one in prop::collection::vec(".{1,10}", 1..5), other in prop::collection::vec(".{1,10}", 1..5),
    ) {
        let (target, head) = (target(), Arc::new(head()));
        let of = |recipients: &[String]| {
            let recipients: Vec<_> = recipients.iter().map(String::as_str).collect();
            let request = request(|head| target.open(head), &head, &recipients);
            request.headers["requestid"].clone()
        };
        prop_assert_eq!(of(&one) == of(&other), one == other);
    }
}

#[test]
fn an_account_says_what_it_can() {
    let profile = target().profile().clone();
    assert_eq!(profile.recipients_per_call, 500);
    assert!(profile.folds_case && !profile.idempotent);
    let limit = profile.limit.unwrap();
    assert_eq!(limit.to_string(), "108/min burst 1 per call");
    assert_eq!(limit.to_string().parse(), Ok(limit));
    assert_eq!(with_ids().profile().recipients_per_call, 100);
    let trusting = build_it(Settings {
        trust_request_id: true,
        recipients_per_call: Some(7),
        ..settings()
    });
    assert!(trusting.profile().idempotent);
    assert_eq!(trusting.recipients_per_call(&head()), 7);
    assert_eq!(
        target().maps(Feature::All),
        Mapping::Refused("NetEase cannot list accounts; give a list")
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
    check(|head| head.sender = Some("x".repeat(32)), &[]);
    check(|head| head.sender = Some("x".repeat(33)), &["sender"]);
    check(|head| head.sender = Some(" ".into()), &["sender"]);
    // `{"msg":""}` takes ten of the 5000 units.
    check(|head| head.content = Content::Text("中".repeat(4990)), &[]);
    check(
        |head| head.content = Content::Text("中".repeat(4991)),
        &["message"],
    );
    check(
        |head| head.content = Content::Text("😀".repeat(2496)),
        &["message"],
    );
    check(|head| head.addressed = Addressed::Groups(2), &[]);
    check(
        |head| head.addressed = Addressed::Groups(3),
        &["audience.group_type"],
    );
    check(
        |head| head.content = Content::Raw(raw(r#"{"type":"x","body":{}}"#)),
        &["message.data"],
    );
    check(
        |head| head.content = Content::Raw(raw(r#"{"type":1}"#)),
        &["message.data"],
    );
    check(
        |head| {
            let fields = r#"{"toAccids":[],"from":"x","returnMsgid":true,"ext":"no JSON"}"#;
            head.native = Some(raw(fields));
        },
        &[
            "message.native.from",
            "message.native.returnMsgid",
            "message.native.toAccids",
            "message.native.ext",
        ],
    );
    check(
        |head| {
            head.content = Content::Native;
            head.native = Some(raw(r#"{"type":0}"#));
        },
        &["message.native"],
    );
    check(
        |head| {
            head.options = Options {
                extension: Some(raw(&format!("\"{}\"", "1".repeat(1025)))),
                push: Some(Push {
                    text: Some("x".repeat(501)),
                    payload: Some(raw(&format!("\"{}\"", "1".repeat(2049)))),
                    ..Push::default()
                }),
                route: Some(Route {
                    environment: Some("x".repeat(33)),
                    ..Route::default()
                }),
                ..Options::default()
            };
        },
        &[
            "options.extension",
            "options.push.payload",
            "options.push.text",
            "options.route.environment",
        ],
    );
    check(
        |head| {
            head.options.extension = Some(raw(r#""free text""#));
            head.options.push = Some(Push {
                payload: Some(raw(r#""free text""#)),
                ..Push::default()
            });
        },
        &["options.extension", "options.push.payload"],
    );
    check(
        |head| {
            head.options.unread = Some(true);
            head.options.push = Some(Push {
                badge: Some(false),
                ..Push::default()
            });
        },
        &["options.push.badge"],
    );
    let nobody = build_it(Settings {
        sender: None,
        body_length_max: 20,
        ..settings()
    });
    let fields: Vec<_> = nobody
        .check(&head())
        .into_iter()
        .map(|it| it.field)
        .collect();
    assert_eq!(fields, ["sender", "message"]);
}

#[test]
fn what_no_field_carries_is_refused_or_dropped() {
    let mut head = head();
    head.options.receiver_no_sense = Some(true);
    head.options.expire_seconds = Some(9);
    let target = target();
    let strict = fit(&*target, &head, true, Strictness::Strict);
    let fields: Vec<_> = strict.problems.iter().map(|it| it.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "options.expire_seconds",
            "options.receiver_no_sense",
            "audience.all"
        ]
    );
    let lenient = fit(&*target, &head, false, Strictness::Lenient);
    assert_eq!((lenient.problems.len(), lenient.warnings.len()), (0, 2));
    let plain = target.open(&Arc::new(crate::im::fixture::head()));
    let with = target.open(&Arc::new(head));
    assert_eq!(plain.request(&["u1"]).body, with.request(&["u1"]).body);
}

#[test]
fn wrong_settings_are_all_reported() {
    let fields = |settings: Settings| -> Vec<String> {
        let problems = build("im", &TargetSettings::Netease(settings))
            .err()
            .unwrap_or_default();
        problems.into_iter().map(|problem| problem.field).collect()
    };
    let wrong = Settings {
        sender: Some("x".repeat(33)),
        message_ids: true,
        recipients_per_call: Some(1001),
        ..Settings::new("api.netease.im", "a\nb", Secret::new(""))
    };
    let all = [
        "url",
        "app_key",
        "app_secret",
        "sender",
        "recipients_per_call",
    ];
    assert_eq!(fields(wrong), all.map(|key| format!("targets.im.{key}")));
    let count = |count| Settings {
        recipients_per_call: Some(count),
        ..settings()
    };
    for wrong in [0, 1001] {
        assert_eq!(fields(count(wrong)), ["targets.im.recipients_per_call"]);
    }
    assert!(fields(count(1000)).is_empty());
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
        assert_eq!(fields(wrong), ["targets.im.url"], "{url}");
    }
    for (url, uri) in [
        ("http://im", "http://im/msg/sendBatchMsg.action"),
        ("HTTPS://im:1/a/", "https://im:1/a/msg/sendBatchMsg.action"),
        (
            "http://[::1]/a/b",
            "http://[::1]/a/b/msg/sendBatchMsg.action",
        ),
    ] {
        let target = build_it(Settings {
            url: url.into(),
            ..settings()
        });
        assert_eq!(target.open(&Arc::new(head())).request(&["u"]).uri, uri);
    }
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
    for fine in [
        r#"{"code":200}"#,
        r#"{"code":200,"unregister":[],"timetag":123124124124}"#,
        r#"{"code":200,"unregister":null}"#,
        r#"{"code":200,"unregister":"[]"}"#,
        r#"{"code":200,"unregister":""}"#,
        r#"{"code":200,"msgids":{"ANA":1,"bob":2,"7":3},"unregister":[]}"#,
        r#"{"code":200,"msgids":"{\"ana\":1,\"bob\":2,\"7\":3}"}"#,
        r#"{"code":417,"desc":"repeated"}"#,
        r#"{"code":431}"#,
    ] {
        check(200, fine, [Done; 3]);
    }
    // Accids that are not registered, in every known format.
    for named in [
        r#"{"code":200,"unregister":["bob"]}"#,
        r#"{"code":200,"unregister":["BOB"],"timetag":1}"#,
        r#"{"code":200,"unregister":"[\"bob\"]"}"#,
        r#"{"unregister":["\u0062ob"],"code":200}"#,
        r#"{"code":200,"unregister":["bob"],"msgids":{"ana":1,"7":1200510468189}}"#,
    ] {
        check(200, named, [Done, Permanent, Done]);
    }
    check(
        200,
        r#"{"code":200,"unregister":["ana","bob",7]}"#,
        [Permanent; 3],
    );
    // An accid that was not in the call.
    check(
        200,
        r#"{"code":200,"unregister":["bob","zoe"]}"#,
        [Uncertain, Permanent, Uncertain],
    );
    // An accid without an id.
    check(
        200,
        r#"{"code":200,"unregister":["bob"],"msgids":{"ana":1}}"#,
        [Done, Permanent, Uncertain],
    );
    // A success with an unknown body: the message may have been sent.
    for odd in [
        "",
        "ok",
        "null",
        "[]",
        "{}",
        r#"{"code":"200"}"#,
        r#"{"code":200"#,
        r#"{"code":200,"unregister":{"bob":1}}"#,
        r#"{"code":200,"unregister":"bob"}"#,
        r#"{"code":200,"unregister":["bob",null]}"#,
        r#"{"code":200,"unregister":"["a","b"]"}"#,
        r#"{"code":200,"msgids":[1]}"#,
        r#"{"code":200,"msgids":"x"}"#,
        r#"{"code":0}"#,
        "\u{feff}{}",
    ] {
        check(200, odd, [Uncertain; 3]);
    }
    check(
        200,
        r#"{"code":414,"desc":"too many members."}"#,
        [Permanent; 3],
    );
    check(200, r#"{"code":414,"desc":"checksum"}"#, [Config; 3]);
    check(200, r#"{"code":414,"desc":"appkey","data":7}"#, [Config; 3]);
    check(
        200,
        r#"{"code":423,"desc":"account 'mute'."}"#,
        [Permanent; 3],
    );
    check(200, r#"{"code":403}"#, [Config; 3]);
    check(200, r#"{"code":408}"#, [Uncertain; 3]);
    check(200, r#"{"code":416}"#, [Throttled; 3]);
    check(200, r#"{"code":500}"#, [Transient; 3]);
    check(302, "", [Config; 3]);
    check(404, "<html>", [Config; 3]);
    check(429, "", [Throttled; 3]);
    check(502, r#"{"code":200}"#, [Uncertain; 3]);
    check(503, "", [Transient; 3]);
}

#[test]
fn a_refused_batch_says_what_to_do_next() {
    let recipients = ["a", "b"];
    let whole = |body: &'static str| match read(&*target(), &recipients, &reply(200, body)) {
        Verdict::All(answer) => answer,
        each @ Verdict::Each(_) => panic!("{each:?}"),
    };
    let many = whole(r#"{"code":414,"desc":"too many members."}"#);
    assert!(many.split);
    assert_eq!((&*many.code, &*many.text), ("414", "too many members."));
    assert!(whole(r#"{"code":419}"#).split);
    assert!(!whole(r#"{"code":414,"desc":"checksum"}"#).split);
    let blocked = whole(r#"{"code":416,"desc":"limit"}"#);
    assert_eq!(blocked.retry_after, Some(Duration::from_secs(60)));
    let later = with_header(reply(429, ""), "retry-after", "7");
    let verdict = read(&*target(), &recipients, &later);
    assert_eq!(verdict.of(0).retry_after, Some(Duration::from_secs(7)));
    assert_eq!(whole(r#"{"code":200}"#), TargetAnswer::done());
    assert_eq!(whole(r#"{"code":431}"#), TargetAnswer::done());
    let unknown = read(
        &*target(),
        &recipients,
        &reply(200, r#"{"code":200,"unregister":["b"]}"#),
    );
    assert_eq!(
        (&*unknown.of(1).code, &*unknown.of(1).text),
        ("unregister", "the accid is not registered")
    );
}

#[test]
fn replies_to_single_sends() {
    let target = target();
    let mut head = head();
    head.addressed = Addressed::Groups(2);
    let calls = target.open(&Arc::new(head));
    let read = |status, body: &'static str| match calls.read_reply(&["1"], &reply(status, body)) {
        Verdict::All(answer) => answer,
        each @ Verdict::Each(_) => panic!("{each:?}"),
    };
    for fine in [
        r#"{"code":200,"data":{"msgid":1200510468189,"timetag":1545635366312,"antispam":false}}"#,
        r#"{"code":200,"data":{}}"#,
        r#"{"code":200}"#,
        r#"{"code":417}"#,
        r#"{"code":431}"#,
    ] {
        assert_eq!(read(200, fine), TargetAnswer::done(), "{fine}");
    }
    let kept = read(200, r#"{"code":200,"data":{"msgid":1,"antispam":true}}"#);
    assert_eq!((kept.class, &*kept.code), (Class::Permanent, "antispam"));
    let blocked = read(200, r#"{"code":416}"#);
    assert_eq!(blocked.retry_after, Some(Duration::from_secs(10)));
    assert_eq!(read(200, r#"{"code":404}"#).class, Class::Permanent);
    assert_eq!(read(200, "").class, Class::Uncertain);
    assert_eq!(read(504, "").class, Class::Uncertain);
}

#[test]
fn blocks_last_as_long_as_the_settings_say() {
    let target = build_it(Settings {
        block: Duration::from_secs(3),
        single_block: Duration::from_secs(2),
        ..settings()
    });
    for (addressed, block) in [(Addressed::Users, 3), (Addressed::Groups(2), 2)] {
        let mut head = head();
        head.addressed = addressed;
        let calls = target.open(&Arc::new(head));
        let verdict = calls.read_reply(&["1"], &reply(200, r#"{"code":416}"#));
        let expected = Some(Duration::from_secs(block));
        assert_eq!(verdict.of(0).retry_after, expected);
    }
}

#[test]
fn lengths_are_those_of_the_settings() {
    let mut head = head();
    head.content = Content::Text("x".repeat(4000));
    head.options = Options {
        extension: Some(raw(&format!("\"{}\"", "1".repeat(1000)))),
        push: Some(Push {
            text: Some("x".repeat(400)),
            payload: Some(raw(&format!("\"{}\"", "1".repeat(2000)))),
            ..Push::default()
        }),
        ..Options::default()
    };
    let found = |settings| -> Vec<String> {
        let problems = build_it(settings).check(&head).into_iter();
        problems.map(|problem| problem.field).collect()
    };
    assert!(found(settings()).is_empty());
    let short = Settings {
        body_length_max: 3999,
        extension_length_max: 999,
        push_text_length_max: 399,
        push_payload_length_max: 1999,
        ..settings()
    };
    let fields = [
        "message",
        "options.extension",
        "options.push.payload",
        "options.push.text",
    ];
    assert_eq!(found(short), fields);
}

/// The ids of a job that keeps them, in each form in which the server writes them.
#[test]
fn ids_are_kept_where_the_job_wants_them() {
    let keeping = Head {
        keep_ids: true,
        ..head()
    };
    let target = target();
    assert_eq!(target.recipients_per_call(&keeping), 100);
    assert_eq!(target.recipients_per_call(&head()), 500);
    assert_eq!(
        field(&*target, keeping.clone(), "returnMsgid").as_deref(),
        Some("true")
    );
    let ids_of = |head: Head, recipients: &[&str], body: &str| -> Vec<_> {
        let verdict = target
            .open(&Arc::new(head))
            .read_reply(recipients, &reply(200, body.to_owned()));
        let id = |index| verdict.of(index).message.as_deref().cloned();
        (0..recipients.len()).map(id).collect()
    };
    let id = |id: &str| crate::domain::message_id::MessageId::new(id, Some(17));
    for body in [
        r#"{"code":200,"unregister":["c"],"timetag":17,"msgids":{"A":9223372036854775807,"b":5}}"#,
        r#"{"code":200,"unregister":"[\"c\"]","timetag":17,"msgids":"{\"a\":9223372036854775807,\"b\":\"5\"}"}"#,
    ] {
        let found = ids_of(keeping.clone(), &["a", "b", "c"], body);
        assert_eq!(found, [id("9223372036854775807"), id("5"), None], "{body}");
        assert_eq!(ids_of(head(), &["a", "b", "c"], body), [None, None, None]);
    }
    let team = Head {
        addressed: Addressed::Groups(2),
        ..keeping
    };
    let body = r#"{"code":200,"data":{"msgid":5,"timetag":17,"antispam":false}}"#;
    assert_eq!(ids_of(team, &["t"], body), [id("5")]);
}

#[test]
fn a_recall_names_the_message_and_both_sides() {
    use crate::domain::message_id::MessageId;
    use crate::ports::Recalled;
    let target = target();
    let recall = target.recall().unwrap();
    let message = MessageId::new("9897543190303", Some(1_707_017_423_142)).unwrap();
    let recalled = Recalled {
        job: head().id,
        sender: None,
        addressed: Addressed::Users,
        recipient: "a b",
        message: &message,
    };
    let request = recall.request(&recalled).unwrap();
    assert_eq!(request.uri, "http://im/nimserver/msg/recall.action");
    let expected = [
        ("deleteMsgid", "9897543190303"),
        ("timetag", "1707017423142"),
        ("type", "7"),
        ("from", "news"),
        ("ignoreTime", "1"),
        ("to", "a b"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(fields(&request.body), expected);
    let timeless = MessageId::new("1", None).unwrap();
    let unknown = Recalled {
        message: &timeless,
        ..recalled
    };
    assert!(recall.request(&unknown).is_none());
    for (body, class) in [
        (r#"{"code":200}"#, Class::Done),
        (r#"{"code":414,"desc":"parameter error"}"#, Class::Permanent),
        (r#"{"code":414,"desc":"checksum"}"#, Class::Config),
        (r#"{"code":403,"desc":"not allow!"}"#, Class::Permanent),
        (r#"{"code":403,"desc":"app disabled"}"#, Class::Config),
        (r#"{"code":416,"desc":"too many"}"#, Class::Throttled),
        (r#"{"code":503,"desc":"busy"}"#, Class::Transient),
    ] {
        let answer = recall.read_reply(&reply(200, body));
        assert_eq!(answer.class, class, "{body}");
    }
}
