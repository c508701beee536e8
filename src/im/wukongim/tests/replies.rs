//! Checks the meaning of every form of reply. The replies are those of the sources of 1.2, 2.2 and
//! 3.0, and those of gateways in front of them.

use std::sync::Arc;
use std::time::Duration;

use super::{Version, build_it, commands, packed, settings, single};
use crate::domain::message_id::MessageId;
use crate::domain::outcome::{Class, TargetAnswer, Verdict};
use crate::domain::slice::Head;
use crate::im::fixture::{head, reply, with_header};
use crate::im::wukongim::Settings;
use crate::ports::{HttpReply, Probed, Target};

fn read_single(version: Version, reply: &HttpReply) -> TargetAnswer {
    match single(version)
        .open(&Arc::new(head()))
        .read_reply(&["u1"], reply)
    {
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
            assert_eq!(class == Done, answer == TargetAnswer::done());
        }
    };
    let both = |status, body: &str, class| check(status, body, class, class);
    // Success in the format of every version, whatever version is configured.
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
    // Refusals with the status 200.
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
    // A 200 with an unknown body: the message may have been sent.
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
    let check = |reply: HttpReply, code: &str, words: &str| {
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

fn read_packed(recipients: &[&str], reply: &HttpReply) -> Verdict {
    packed()
        .open(&Arc::new(head()))
        .read_reply(recipients, reply)
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
    // A uid that was not in the call.
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
        Verdict::All(TargetAnswer::done())
    );
}

#[test]
fn a_refused_call_for_many_is_made_again_in_smaller_ones() {
    let read = |target: &dyn Target, status, body: &'static str| {
        let mut head = head();
        head.options.sync_once = Some(true);
        let calls = target.open(&Arc::new(head));
        calls.read_reply(&["a", "b"], &reply(status, body))
    };
    let (packed, commands, single) = (packed(), commands(Version::V2), single(Version::V2));
    for (status, body) in [
        (400, r#"{"msg":"no","status":400}"#),
        (413, "too large"),
        (422, ""),
        (200, r#"{"status":400,"msg":"no"}"#),
    ] {
        for target in [&packed, &commands] {
            let verdict = read(&**target, status, body);
            let answer = verdict.whole().unwrap();
            assert_eq!((answer.class, answer.split), (Class::Permanent, true));
        }
        assert!(!read(&*single, status, body).of(0).split);
    }
    // A named uid has an answer of its own; a fault of ours is not a recipient's.
    let named = read(&*packed, 200, r#"{"fail_uids":["b"],"reason":["no"]}"#);
    assert!(!named.of(1).split);
    for status in [401, 404, 429, 500, 503] {
        for target in [&packed, &commands] {
            assert!(!read(&**target, status, "").of(0).split, "{status}");
        }
    }
}

#[test]
fn replies_to_commands_for_many() {
    let check = |version, status, body: &'static str, class| {
        let mut head = head();
        head.options.sync_once = Some(true);
        let calls = commands(version).open(&Arc::new(head));
        let verdict = calls.read_reply(&["a", "b"], &reply(status, body));
        assert_eq!(
            verdict.whole().map(|answer| answer.class),
            Some(class),
            "{body}"
        );
    };
    check(Version::V2, 200, r#"{"status":200}"#, Class::Done);
    let numbered = r#"{"status":200,"data":{"message_id":1,"message_seq":2,"client_msg_no":"x"}}"#;
    check(Version::V1, 200, numbered, Class::Done);
    let flat = r#"{"message_id":1,"message_seq":2,"reason":1}"#;
    check(Version::V3, 200, flat, Class::Done);
    check(Version::V2, 200, "", Class::Uncertain);
    check(Version::V2, 500, "", Class::Uncertain);
    check(Version::V3, 500, "", Class::Transient);
    check(Version::V3, 200, r#"{"reason":4}"#, Class::Permanent);
}

#[test]
fn a_look_up_settles_only_what_it_finds() {
    let target = build_it(Settings {
        probe: true,
        ..settings(Version::V2)
    });
    let calls = target.open(&Arc::new(head()));
    let read = |status, body: &str| calls.read_probe(&["u1"], &reply(status, body.to_owned()));
    let message = |id: i64, number: &str| {
        format!(
            r#"{{"header":{{"no_persist":0,"red_dot":1,"sync_once":0}},"setting":0,"message_id":{id},"message_idstr":"{id}","client_msg_no":"{number}","message_seq":3,"from_uid":"","channel_id":"u1@____system","channel_type":1,"timestamp":1,"payload":"e30="}}"#
        )
    };
    let number = "promo-1-06a31537d691b7d9";
    let found = message(1_234_567_890_123_456_789, number);
    assert_eq!(read(200, &found), Probed::Sent(None));
    let keeping = target.open(&Arc::new(Head {
        keep_ids: true,
        ..head()
    }));
    let id = MessageId::new("1234567890123456789", None);
    let told = keeping.read_probe(&["u1"], &reply(200, found.clone()));
    assert_eq!(told, Probed::Sent(id));
    for (status, body) in [
        (200, r#"{"status":404}"#.to_owned()),
        (200, message(1, "promo-1-another")),
        (200, message(0, number)),
        (200, r#"{"status":200}"#.to_owned()),
        (200, String::new()),
        (400, r#"{"msg":"no","status":400}"#.to_owned()),
        (401, String::new()),
        (404, "404 page not found".to_owned()),
        (500, found.clone()),
        (502, String::new()),
    ] {
        assert_eq!(read(status, &body), Probed::Unknown, "{status} {body}");
    }
}
