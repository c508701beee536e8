//! Checks requests byte for byte, and the meaning of every form of reply.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use fanwise_client::webhook::Failed;
use proptest::prelude::*;
use ring::hmac;
use serde_json::Value;

use super::*;
use crate::domain::message::Content;
use crate::domain::outcome::{TargetAnswer, Verdict};
use crate::domain::slice::Head;
use crate::im::fixture::{AWKWARD, head, raw, reply, request, text, with_header};
use crate::im::{TargetSettings, build};
use crate::ports::{Request, Signing, Target};

fn build_it(settings: Settings) -> Box<dyn Target> {
    build("hook", &TargetSettings::Webhook(settings)).unwrap()
}

fn single() -> Box<dyn Target> {
    build_it(Settings::new("https://x.example/hook/{recipient}"))
}

fn packed() -> Box<dyn Target> {
    build_it(Settings {
        recipients_per_call: 1000,
        ..Settings::new("https://x.example/hook")
    })
}

const NOW_MS: u64 = 1_700_000_000_123;

fn signed(target: &dyn Target, head: Head, recipients: &[&str], now_ms: u64) -> Request {
    let open = |head: &_| target.open(head);
    let mut request = request(open, &Arc::new(head), recipients);
    target.sign(&mut request, Signing { now_ms, nonce: 0 });
    request
}

fn golden(target: &dyn Target, head: Head, recipients: &[&str]) -> String {
    text(&signed(target, head, recipients, NOW_MS))
}

#[test]
fn a_single_call() {
    assert_eq!(
        golden(&*single(), head(), &["u1"]),
        "POST https://x.example/hook/u1\n\
         content-type: application/json\n\
         idempotency-key: 103700ae6eb43776dac4c71a-998e35fcd6a1c77024225678b118d396\n\n\
         {\"job\":\"103700ae6eb43776dac4c71a\",\"app\":\"shop\",\"client_msg_no\":\"promo-1\",\
         \"message\":{\"type\":\"text\",\"text\":\"Hello \\\"you\\\"\"},\
         \"options\":{},\
         \"recipient\":\"u1\"}"
    );
}

#[test]
fn a_packed_call_with_everything_set() {
    let target = build_it(Settings {
        headers: vec![
            ("X-Key".into(), "k1".into()),
            ("x-job".into(), "{app}/{client_msg_no}/{job}".into()),
            ("content-type".into(), "application/vnd.hook+json".into()),
        ],
        recipients_per_call: 2,
        signature: Some(Signature {
            scheme: Scheme::Fanwise,
            ..Signature::new(Secret::new("key"))
        }),
        idempotent: true,
        ..Settings::new("http://x:8080?app={app}&no={client_msg_no}&job={job}")
    });
    assert!(target.profile().idempotent);
    let mut head = head();
    head.sender = Some("ne\"ws".into());
    head.client_msg_no = "a b".into();
    head.content = Content::Custom(raw("{ \"n\":1.0 }"));
    head.options.online_only = Some(true);
    assert_eq!(
        golden(&*target, head, &["u1", "a\"b"]),
        "POST http://x:8080/?app=shop&no=a%20b&job=103700ae6eb43776dac4c71a\n\
         content-type: application/vnd.hook+json\n\
         x-key: k1\n\
         x-job: shop/a%20b/103700ae6eb43776dac4c71a\n\
         fanwise-signature: v1=f8a81b85e15c758158cb35dae69d8c85845b34ca1ad76398ff9a8df74a62f110\n\
         idempotency-key: 103700ae6eb43776dac4c71a-149b4731a2f5f01c21cfea85c4a3ada1\n\n\
         {\"job\":\"103700ae6eb43776dac4c71a\",\"app\":\"shop\",\"client_msg_no\":\"a b\",\"sender\":\"ne\\\"ws\",\
         \"message\":{\"type\":\"custom\",\"data\":{ \"n\":1.0 }},\
         \"options\":{\"online_only\":true},\
         \"recipients\":[\"u1\",\"a\\\"b\"]}"
    );
}

#[test]
fn a_raw_message_is_passed_on_as_it_is() {
    let mut head = head();
    head.content = Content::Raw(raw("[1, {\"a\" : null}]"));
    let got = golden(&*single(), head, &["u1"]);
    assert!(
        got.contains(r#""message":{"type":"raw","data":[1, {"a" : null}]},"#),
        "{got}"
    );
}

#[test]
fn a_signature_is_over_the_key_and_the_body() {
    let target = build_it(Settings {
        signature: Some(Signature {
            scheme: Scheme::Fanwise,
            header: "X-Sig".into(),
            ..Signature::new(Secret::new("key"))
        }),
        ..Settings::new("https://x.example/hook")
    });
    let request = signed(&*target, head(), &["u1"], NOW_MS);
    let signed = [
        request.headers["idempotency-key"].as_bytes(),
        b".",
        &request.body,
    ]
    .concat();
    let signature = request.headers["x-sig"]
        .to_str()
        .unwrap()
        .strip_prefix("v1=")
        .unwrap();
    let bytes: Vec<u8> = (0..signature.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&signature[at..at + 2], 16).unwrap())
        .collect();
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"key");
    hmac::verify(&key, &signed, &bytes).unwrap();
}

/// Each attempt has the same id and its own time, as receivers of Standard Webhooks expect.
#[test]
fn a_repeat_is_signed_anew() {
    let target = build_it(Settings {
        signature: Some(Signature::new(Secret::new("whsec_a2V5"))),
        ..Settings::new("https://x.example/hook")
    });
    let attempts = [NOW_MS, NOW_MS + 600_000].map(|now| signed(&*target, head(), &["u1"], now));
    let [first, second] = &attempts;
    assert_eq!(first.body, second.body);
    for request in &attempts {
        assert_eq!(
            request.headers["webhook-id"],
            request.headers["idempotency-key"]
        );
        let value = |name: &str| request.headers[name].to_str().unwrap();
        let content = format!("{}.{}.", value("webhook-id"), value("webhook-timestamp"));
        let content = [content.as_bytes(), &request.body].concat();
        let signature = value("webhook-signature").strip_prefix("v1,").unwrap();
        let signature = BASE64.decode(signature).unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"key");
        hmac::verify(&key, &content, &signature).unwrap();
    }
    assert_eq!(first.headers["webhook-id"], second.headers["webhook-id"]);
    assert_eq!(first.headers["webhook-timestamp"], "1700000000");
    assert_eq!(second.headers["webhook-timestamp"], "1700000600");
}

#[test]
fn awkward_recipients_change_nothing_but_their_place() {
    let target = build_it(Settings {
        headers: vec![("x-user".into(), "<{recipient}>".into())],
        ..Settings::new("https://x.example/a/{recipient}/b?u={recipient}&z=1")
    });
    let head = Arc::new(head());
    let calls = target.open(&head);
    for recipient in AWKWARD {
        let request = calls.request(&[recipient]);
        let json: Value = serde_json::from_slice(&request.body).unwrap();
        assert_eq!(json["recipient"], recipient);
        let path: Vec<_> = request.uri.path().split('/').collect();
        let [_, "a", place, "b"] = path[..] else {
            panic!("{:?}", request.uri);
        };
        assert_eq!(request.uri.query(), Some(&*format!("u={place}&z=1")));
        assert_eq!(request.headers["x-user"], format!("<{place}>"));
        let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte);
        assert!(place.bytes().all(harmless) && place != "..", "{place}");
    }
    let place = |recipient: &str| calls.request(&[recipient]).uri.path().to_owned();
    assert_eq!(place("ü/é"), "/a/%C3%BC%2F%C3%A9/b");
    assert_eq!(place(".."), "/a/%2E%2E/b");
    assert_eq!(place("a.b"), "/a/a.b/b");
}

#[test]
fn the_longest_ids_fit_in_a_url() {
    let target = build_it(Settings::new(format!(
        "http://x/{}",
        "{recipient}/{client_msg_no}".repeat(13)
    )));
    let mut head = head();
    head.client_msg_no = "é".repeat(64);
    let uri = target
        .open(&Arc::new(head))
        .request(&[&"é".repeat(127)])
        .uri;
    assert!(uri.path().len() > 10_000);
}

proptest! {
    /// A repeated call is identical byte for byte, and other recipients have another key.
    #[test]
    fn calls_are_the_same_every_time(
        one in prop::collection::vec(".{1,10}", 1..5), other in prop::collection::vec(".{1,10}", 1..5),
    ) {
        let (target, head) = (packed(), Arc::new(head()));
        let of = |recipients: &[String]| {
            let recipients: Vec<_> = recipients.iter().map(String::as_str).collect();
            let request = request(|head| target.open(head), &head, &recipients);
            request.headers["idempotency-key"].clone()
        };
        prop_assert_eq!(of(&one) == of(&other), one == other);
    }
}

#[test]
fn keys_differ_between_jobs_and_between_cuts() {
    let target = packed();
    let key = |head: Head, recipients: &[&str]| {
        target.open(&Arc::new(head)).request(recipients).headers["idempotency-key"].clone()
    };
    let mut other = head();
    other.id = crate::domain::ids::JobId::of("shop", "promo-2");
    assert_ne!(key(head(), &["a"]), key(other, &["a"]));
    assert_ne!(key(head(), &["ab", "c"]), key(head(), &["a", "bc"]));
    assert_ne!(key(head(), &["a", "b"]), key(head(), &["b", "a"]));
}

#[test]
fn wrong_settings_are_all_reported() {
    let fields = |settings: Settings| -> Vec<String> {
        let problems = build("hook", &TargetSettings::Webhook(settings))
            .err()
            .unwrap_or_default();
        problems.into_iter().map(|problem| problem.field).collect()
    };
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let wrong = Settings {
        url: "https://x/{recipient}".into(),
        headers: vec![
            header("a b", "x"),
            header("Content-Length", "1"),
            header("traceparent", "1"),
            header("webhook-signature", "1"),
            header("x-a", "{nobody}"),
            header("x-b", "line\nline"),
            header("x-c", "{recipient}"),
            header("x-d", "fine {app}"),
        ],
        recipients_per_call: 1001,
        signature: Some(Signature::new(Secret::new(""))),
        idempotent: false,
        statuses: vec![("abc".into(), Class::Done)],
    };
    assert_eq!(
        fields(wrong),
        [
            "recipients_per_call",
            "url",
            "signature_secret",
            "headers.a b",
            "headers.Content-Length",
            "headers.traceparent",
            "headers.webhook-signature",
            "headers.x-a",
            "headers.x-b",
            "headers.x-c",
            "statuses.abc",
        ]
        .map(|key| format!("targets.hook.{key}"))
    );
    for url in [
        "",
        "x",
        "/x",
        "ftp://x/",
        "http://",
        "http:///x",
        "https://{app}.x/",
        "http://x/{user}",
        "http://x/{recipient",
        "http://x/#a",
        "http://x/a b",
        "http://a b/",
    ] {
        assert_eq!(fields(Settings::new(url)), ["targets.hook.url"], "{url}");
    }
    let long = format!("http://x/{}", "{recipient}".repeat(22));
    assert_eq!(fields(Settings::new(long)), ["targets.hook.url"]);
    for (url, uri) in [
        ("http://x", "http://x/"),
        ("HTTPS://x?a", "https://x/?a"),
        ("http://[::1]:1/{app}", "http://[::1]:1/shop"),
    ] {
        let target = build_it(Settings::new(url));
        assert_eq!(target.open(&Arc::new(head())).request(&["u"]).uri, uri);
    }
}

#[test]
fn replies_to_single_calls() {
    let target = build_it(Settings {
        statuses: vec![
            ("409".into(), Class::Done),
            ("5xx".into(), Class::Transient),
        ],
        ..Settings::new("https://x/{recipient}")
    });
    let calls = target.open(&Arc::new(head()));
    let read = |status, body: &'static str| match calls.read_reply(&["u1"], &reply(status, body)) {
        Verdict::All(answer) => answer,
        each @ Verdict::Each(_) => panic!("{each:?}"),
    };
    for body in ["", "ok", "{\"failed\":[{\"recipient\":\"u1\"}]}", "<html>"] {
        assert_eq!(read(200, body), TargetAnswer::done());
        assert_eq!(read(202, body), TargetAnswer::done());
        assert_eq!(read(409, body), TargetAnswer::done());
    }
    assert_eq!(
        read(400, " no\nsuch\tthing"),
        TargetAnswer::new(Class::Permanent, "400", "no such thing")
    );
    assert_eq!(read(404, "").class, Class::Permanent);
    assert_eq!(read(500, "").class, Class::Transient);
    let wait = with_header(reply(429, ""), "retry-after", "3");
    let verdict = calls.read_reply(&["u1"], &wait);
    assert_eq!(verdict.of(0).class, Class::Throttled);
    assert_eq!(verdict.of(0).retry_after, Some(Duration::from_secs(3)));
    let huge = calls.read_reply(&["u1"], &reply(400, vec![0xff; 1 << 20]));
    assert!(huge.of(0).text.len() <= 300);
    // If every recipient has the same URL, a 404 is about the URL.
    let calls = packed().open(&Arc::new(head()));
    assert_eq!(
        calls.read_reply(&["u1"], &reply(404, "")).of(0).class,
        Class::Config
    );
}

#[test]
fn replies_to_packed_calls() {
    use Class::{Config, Done, Permanent, Throttled, Transient, Uncertain};
    let calls = packed().open(&Arc::new(head()));
    let recipients = ["a", "b\"", "c"];
    let check = |status: u16, body: &str, classes: [Class; 3]| {
        let verdict = calls.read_reply(&recipients, &reply(status, body.to_owned()));
        let found = [0, 1, 2].map(|index| verdict.of(index).class);
        assert_eq!(found, classes, "{status} {body}");
    };
    for fine in [
        "",
        "ok",
        "<html>",
        "[]",
        "true",
        "{}",
        "{\"failed\":null}",
        "{\"failed\":[]}",
        "{\"a\":1}",
    ] {
        check(200, fine, [Done; 3]);
    }
    check(
        200,
        r#" {"failed":[{"recipient":"b\""}]}"#,
        [Done, Permanent, Done],
    );
    let classes = r#"{"failed":[{"recipient":"a","class":"transient"},
        {"recipient":"b\"","class":"throttled"},{"recipient":"c","class":"uncertain"}]}"#;
    check(200, classes, [Transient, Throttled, Uncertain]);
    let classes =
        r#"{"failed":[{"recipient":"a","class":"config"},{"recipient":"c","class":"done"}]}"#;
    check(200, classes, [Config, Done, Done]);
    check(
        200,
        r#"{"failed":[{"recipient":"a"},{"recipient":"A"}]}"#,
        [Permanent, Uncertain, Uncertain],
    );
    for odd in [
        "{",
        "[{\"recipient\":\"a\"}]",
        "{\0\"\0f\0a\0i\0l\0e\0d\0\"\0",
        "\0{\0\"\0f\0",
        "{\"failed\":{}}",
        "{\"failed\":[\"a\"]}",
        "{\"failed\":[{}]}",
        "{\"failed\":[{\"recipient\":\"a\",\"class\":\"odd\"}]}",
        "{\"failed\":[{\"recipient\":null}]}",
    ] {
        check(200, odd, [Uncertain; 3]);
    }
    check(400, r#"{"failed":[]}"#, [Permanent; 3]);
    check(503, "", [Transient; 3]);
    // An answer that claims to be readable and is not: promise 2 requires doubt.
    let told = |name, value, body: &'static [u8]| {
        let reply = with_header(reply(200, body), name, value);
        calls.read_reply(&recipients, &reply).of(0).class
    };
    let gzip = b"\x1f\x8b\x08\0\0\0\0\0";
    assert_eq!(told("content-encoding", "gzip", gzip), Uncertain);
    assert_eq!(told("content-encoding", "br", b"ok"), Uncertain);
    assert_eq!(told("content-encoding", "identity", b"ok"), Done);
    assert_eq!(told("content-encoding", "gzip", b""), Done);
    assert_eq!(told("content-type", "application/json", b"ok"), Uncertain);
    assert_eq!(told("content-type", "application/json", b"\"ok\""), Done);
    assert_eq!(
        told("content-type", "application/json; charset=utf-8", b"{}"),
        Done
    );
    assert_eq!(
        told("content-type", "text/plain", b"{\"failed\":[{"),
        Uncertain
    );
    assert_eq!(told("content-type", "text/plain", gzip), Uncertain);

    let body = r#"{"failed":[{"recipient":"a","code":"no such user","message":"gone"},
        {"recipient":"c","code":17}]}"#;
    let verdict = calls.read_reply(&recipients, &reply(200, body));
    assert_eq!(
        *verdict.of(0),
        TargetAnswer::new(Permanent, "no_such_user", "gone")
    );
    assert_eq!(*verdict.of(2), TargetAnswer::new(Permanent, "17", ""));
    assert_eq!(
        calls.read_reply(&recipients, &reply(200, "ok")),
        Verdict::All(TargetAnswer::done())
    );
}

/// The documents are apart from the code that writes calls and reads answers, for speed, so this
/// holds them together.
#[test]
fn calls_and_answers_are_as_documented() {
    for per_call in [1, 2] {
        let settings = Settings {
            recipients_per_call: per_call,
            ..Settings::new("http://x/hook")
        };
        let target = build("hook", &TargetSettings::Webhook(settings)).unwrap();
        let mut head = head();
        head.sender = Some("news".into());
        let request = target.open(&Arc::new(head)).request(&["ann"]);
        let call: CallDocument = serde_json::from_slice(&request.body).unwrap();
        assert_eq!(call.recipient.is_some(), per_call == 1);
        assert_eq!(call.recipients.is_some(), per_call == 2);
        let written: Value = serde_json::from_slice(&request.body).unwrap();
        assert_eq!(serde_json::to_value(call).unwrap(), written);
    }
    let answer = AnswerDocument {
        failed: Some(vec![Failed {
            recipient: "bob".into(),
            code: Some(Value::from(7)),
            message: Some("no such user".into()),
            class: Some(Class::Transient),
        }]),
    };
    let settings = Settings {
        recipients_per_call: 2,
        ..Settings::new("http://x/hook")
    };
    let target = build("hook", &TargetSettings::Webhook(settings)).unwrap();
    let calls = target.open(&Arc::new(head()));
    let text = serde_json::to_string(&answer).unwrap();
    let verdict = calls.read_reply(&["ann", "bob"], &reply(200, text));
    let Verdict::Each(each) = verdict else {
        panic!("{verdict:?}");
    };
    assert_eq!(each[0].class, Class::Done);
    assert_eq!((each[1].class, &*each[1].code), (Class::Transient, "7"));
}
