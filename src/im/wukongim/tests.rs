//! Requests to the byte, and what every shape of reply means. The replies are those of the sources
//! of 1.2, 2.2 and 3.0, and what gateways in front of them say.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;

use super::*;
use crate::domain::message::Content;
use crate::domain::outcome::{Answer, Class, Verdict};
use crate::domain::slice::Head;
use crate::im::fixture::{AWKWARD, head, raw, reply, request, text, with_header};
use crate::im::{TargetSettings, build};
use crate::ports::{Reply, Target};

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
    // The job's own sender wins; a native message is the payload as it stands.
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
    /// A call asked for again is the same to the byte, and no two recipients share a client_msg_no.
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

#[test]
fn only_single_calls_of_version_3_may_be_repeated() {
    for version in [Version::V1, Version::V2, Version::V3] {
        let profile = single(version).profile().clone();
        assert_eq!(profile.recipients_per_call, 1);
        assert_eq!(profile.idempotent, version == Version::V3);
    }
    let profile = packed().profile().clone();
    assert_eq!(
        (profile.recipients_per_call, profile.idempotent),
        (100, false)
    );
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
    let long = |head: &mut Head| head.content = Content::Custom(raw(&format!("{:32768}", 1)));
    check(&*v2, long, &[]);
    let long = |head: &mut Head| {
        head.content = Content::Raw(raw(&format!("\"{}\"", "x".repeat(32_766))));
    };
    check(&*v2, long, &["message"]);
    check(&*v2, |head| head.sender = Some(" ".into()), &["sender"]);
    check(&*v3, |_| {}, &["sender"]);
    check(&*v3, |head| head.sender = Some("news".into()), &[]);
    check(
        &*packed,
        |head| head.options.expire_seconds = Some(1),
        &["options.expire_seconds"],
    );
    let online = |head: &mut Head| {
        head.sender = Some("news".into());
        head.options.online_only = Some(true);
    };
    check(&*v3, online, &["options.online_only"]);
    check(&*v2, online, &[]);
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

fn read_single(version: Version, reply: &Reply) -> Answer {
    match single(version).open(&Arc::new(head())).read(&["u1"], reply) {
        Verdict::All(answer) => answer,
        each @ Verdict::Each(_) => panic!("{each:?}"),
    }
}

#[test]
fn replies_to_single_calls() {
    use Class::{Config, Done, Permanent, Throttled, Transient, Uncertain};
    let check = |status: u16, body: &str, released: Class, v3: Class| {
        for (version, class) in [
            (Version::V1, released),
            (Version::V2, released),
            (Version::V3, v3),
        ] {
            let answer = read_single(version, &reply(status, body.to_owned()));
            assert_eq!(
                answer.class, class,
                "{version:?} {status} {body}: {answer:?}"
            );
            assert_eq!(class == Done, answer == Answer::done());
        }
    };
    let both = |status, body: &str, class| check(status, body, class, class);
    // Success in the words of every version, whatever version is set.
    both(
        200,
        r#"{"status":200,"data":{"message_id":1234567890123456789,"client_msg_no":"x"}}"#,
        Done,
    );
    both(
        200,
        r#"{"status":200,"data":{"message_id":1,"message_seq":2,"client_msg_no":"x"}}"#,
        Done,
    );
    both(200, r#"{"data":{},"status":200}"#, Done);
    both(200, r#"{"status":200}"#, Done);
    both(200, r#"{"message_id":1,"message_seq":2,"reason":1}"#, Done);
    both(200, " {\"reason\":1}\n", Done);
    // Refusals inside a 200.
    both(
        200,
        r#"{"message_id":0,"message_seq":0,"reason":4}"#,
        Permanent,
    );
    both(200, r#"{"reason":2}"#, Config);
    both(200, r#"{"reason":15}"#, Transient);
    both(200, r#"{"reason":22}"#, Throttled);
    both(200, r#"{"reason":99}"#, Transient);
    both(200, r#"{"status":404}"#, Permanent);
    both(200, r#"{"status":400,"msg":"no"}"#, Permanent);
    check(200, r#"{"status":500,"msg":"oops"}"#, Uncertain, Transient);
    // A 200 that says nothing we know: perhaps it was sent.
    for odd in [
        "",
        "ok",
        "null",
        "[]",
        "{}",
        "<html>",
        "{\"status\":null}",
        "{\"status\":\"ok\"}",
        "{\"status\":200",
        "{\"status\":201}",
        "{\"reason\":\"1\"}",
        "{\"error\":\"x\"}",
        "{\"status\":99999999}",
        "\u{feff}{}",
    ] {
        both(200, odd, Uncertain);
        both(204, odd, Uncertain);
    }
    // Refusals by status.
    both(400, r#"{"msg":"payload is empty","status":400}"#, Permanent);
    both(400, r#"{"error":"invalid request"}"#, Permanent);
    both(400, "", Permanent);
    both(401, "", Config);
    both(403, "<html>", Config);
    both(404, r#"{"error":"channel not found"}"#, Permanent);
    both(404, "404 page not found", Config);
    both(404, "", Config);
    both(404, r#"{"message":"no Route matched"}"#, Config);
    both(405, "", Config);
    both(301, "", Config);
    both(408, r#"{"error":"request timeout"}"#, Uncertain);
    both(413, "", Permanent);
    both(429, "", Throttled);
    check(
        500,
        r#"{"error":"append backpressure"}"#,
        Uncertain,
        Transient,
    );
    check(500, "", Uncertain, Transient);
    both(502, "<html>bad gateway</html>", Uncertain);
    both(503, r#"{"error":"retry required"}"#, Transient);
    both(503, r#"{"error":"maintenance","until":"later"}"#, Transient);
    both(504, "", Uncertain);
    both(520, "", Uncertain);
}

#[test]
fn answers_keep_the_words_of_the_server() {
    let check = |reply: Reply, code: &str, words: &str| {
        let answer = read_single(Version::V2, &reply);
        assert_eq!((&*answer.code, &*answer.text), (code, words));
    };
    check(
        reply(400, r#"{"msg":"no payload","status":400}"#),
        "400",
        "no payload",
    );
    check(
        reply(400, r#"{"error":"invalid payload"}"#),
        "400",
        "invalid payload",
    );
    check(reply(200, r#"{"status":404,"msg":"gone"}"#), "404", "gone");
    check(
        reply(200, r#"{"reason":13}"#),
        "reason_13",
        "not in whitelist",
    );
    check(
        reply(502, "<h1>\n  Bad Gateway</h1>"),
        "502",
        "<h1> Bad Gateway</h1>",
    );
    check(reply(200, ""), "bad_reply", "the reply is empty");
    check(
        reply(200, "hm"),
        "bad_reply",
        "a reply of another shape: hm",
    );
    for body in [
        "x".repeat(1 << 20),
        format!(r#"{{"msg":"{}"}}"#, "é".repeat(1 << 19)),
    ] {
        let answer = read_single(Version::V2, &reply(400, body));
        assert!(answer.text.len() <= 300 && !answer.text.is_empty());
    }
    let answer = read_single(Version::V2, &reply(200, r#"{"reason":22}"#));
    assert_eq!(answer.retry_after, Some(Duration::from_secs(1)));
    let wait = with_header(reply(503, ""), "retry-after", "7");
    assert_eq!(
        read_single(Version::V3, &wait).retry_after,
        Some(Duration::from_secs(7))
    );
}

fn read_packed(recipients: &[&str], reply: &Reply) -> Verdict {
    packed().open(&Arc::new(head())).read(recipients, reply)
}

#[test]
fn replies_to_packed_calls() {
    use Class::{Config, Done, Permanent, Throttled, Transient, Uncertain};
    let recipients = ["a", "b@x", "c"];
    let check = |status: u16, body: &str, classes: [Class; 3]| {
        let verdict = read_packed(&recipients, &reply(status, body.to_owned()));
        let found = [0, 1, 2].map(|index| verdict.of(index).class);
        assert_eq!(found, classes, "{status} {body}");
    };
    check(200, r#"{"fail_uids":[],"reason":[]}"#, [Done; 3]);
    check(200, r#"{"fail_uids":null,"reason":null}"#, [Done; 3]);
    check(200, r#"{"fail_uids":null}"#, [Done; 3]);
    check(
        200,
        r#"{"fail_uids":["b@x"],"reason":["illegal"]}"#,
        [Done, Permanent, Done],
    );
    check(
        200,
        r#"{"reason":["x","y"],"fail_uids":["c","a"]}"#,
        [Transient, Done, Transient],
    );
    check(200, r#"{"fail_uids":["c"]}"#, [Done, Done, Transient]);
    check(
        200,
        r#"{"fail_uids":["c"],"reason":[]}"#,
        [Done, Done, Transient],
    );
    check(
        200,
        r#"{"fail_uids":["\u0063"],"reason":["x"]}"#,
        [Done, Done, Transient],
    );
    // A name that was not asked for.
    check(
        200,
        r#"{"fail_uids":["c","z"],"reason":["x","y"]}"#,
        [Uncertain, Uncertain, Transient],
    );
    for odd in [
        "",
        "{}",
        "[]",
        "null",
        "ok",
        "{\"reason\":[]}",
        "{\"fail_uids\":[1]}",
        "{\"fail_uids\":\"a\"}",
        "{\"status\":200}",
        "{\"fail_uids\":[",
        "[{\"message_id\":1,\"message_seq\":0}]",
    ] {
        check(200, odd, [Uncertain; 3]);
    }
    check(200, r#"{"status":400,"msg":"x"}"#, [Permanent; 3]);
    check(
        400,
        r#"{"msg":"json: cannot unmarshal array","status":400}"#,
        [Permanent; 3],
    );
    check(401, "", [Config; 3]);
    check(404, "404 page not found", [Config; 3]);
    check(404, r#"{"error":"not found"}"#, [Config; 3]);
    check(408, "", [Uncertain; 3]);
    check(429, "", [Throttled; 3]);
    check(500, "", [Uncertain; 3]);
    check(502, "", [Uncertain; 3]);
    check(503, "", [Transient; 3]);
    check(504, "", [Uncertain; 3]);

    let verdict = read_packed(
        &recipients,
        &reply(200, r#"{"fail_uids":["b@x"],"reason":["bad id"]}"#),
    );
    assert_eq!(
        (&*verdict.of(1).code, &*verdict.of(1).text),
        ("illegal_uid", "bad id")
    );
    assert_eq!(
        read_packed(&recipients, &reply(200, r#"{"fail_uids":[]}"#)),
        Verdict::All(Answer::done())
    );
}
