//! Checks the requests that the documentation and the releases show, and the answers to them.

use std::sync::Arc;

use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::domain::fields::Problem;
use crate::domain::ids::JobId;
use crate::domain::message::Content;
use crate::domain::outcome::{Class, RefusalKind};
use crate::domain::slice::Addressed;
use crate::im::ingress::fixture::{
    Call as Request, NOW_MS, answer, any_json, body, endpoint, failed, head, job_report,
    open_endpoint, recipients,
};

use crate::im::wukongim::{ClientMsgNo, Settings, Version};
use crate::ports::Target;

/// The body of the documentation's `curl -d`, as printed.
const PRINTED: &str = r#"[
    {
      "header": {
        "no_persist": 0,
        "red_dot": 1,
        "sync_once": 0
      },
      "client_msg_no": "batch_msg_1",
      "from_uid": "system",
      "channel_id": "group123",
      "channel_type": 2,
      "expire": 0,
      "payload": "SGVsbG8gR3JvdXAgMQ==",
      "tag_key": "notification"
    },
    {
      "header": {
        "no_persist": 0,
        "red_dot": 1,
        "sync_once": 0
      },
      "client_msg_no": "batch_msg_2",
      "from_uid": "system",
      "channel_id": "group456",
      "channel_type": 2,
      "expire": 0,
      "payload": "SGVsbG8gR3JvdXAgMg==",
      "tag_key": "notification"
    }
  ]"#;

const TOKEN: &str = "manager-token";

fn endpoints() -> [DropInEndpoint; 1] {
    [endpoint(&WukongImIngress, "", TOKEN)]
}

fn call(path: &'static str, body: impl Into<Vec<u8>>) -> Request {
    Request::new(path, body).header("token", TOKEN)
}

fn asked(path: &'static str, body: &Value) -> DropInRequest {
    call(path, body.to_string()).asked(&WukongImIngress, &endpoints())
}

/// The text of the refusal of a bad request.
fn refusal(path: &'static str, body: &Value) -> String {
    refused(&call(path, body.to_string()))
}

fn refused(call: &Request) -> String {
    let (status, said) = call.refusal(&WukongImIngress, &endpoints());
    assert_eq!((status, &said["status"]), (400, &json!(400)), "{said}");
    assert_eq!(said.as_object().unwrap().len(), 2);
    said["msg"].as_str().unwrap().to_owned()
}

/// A message to a channel with these fields changed.
fn message_with(changes: &[(&str, Value)]) -> Value {
    let mut message = json!({
        "from_uid": "system",
        "channel_id": "g1",
        "channel_type": 2,
        "payload": "SGVsbG8=",
    });
    for (name, value) in changes {
        message[*name] = value.clone();
    }
    message
}

/// The object of the releases, with these fields changed.
fn object_with(changes: &[(&str, Value)]) -> Value {
    let mut object = json!({
        "header": {"red_dot": 1},
        "from_uid": "system",
        "subscribers": ["u1", "u2"],
        "payload": STANDARD.encode(r#"{"type":1,"content":"hello"}"#),
    });
    for (name, value) in changes {
        object[*name] = value.clone();
    }
    object
}

#[test]
fn the_documented_request_is_understood_as_printed() {
    // The documentation shows no token, and servers without one require none.
    let open = [open_endpoint(&WukongImIngress)];
    let asked = Request::new(BATCH, PRINTED).asked(&WukongImIngress, &open);
    let [first, second] = &asked.jobs[..] else {
        panic!("two jobs are expected");
    };
    assert_eq!(first.key.as_deref(), Some("batch_msg_1"));
    assert_eq!(second.key.as_deref(), Some("batch_msg_2"));
    assert_eq!(recipients(second), ["group456"]);
    let head = head(first).unwrap();
    assert_eq!(head.addressed, Addressed::Groups(2));
    assert_eq!(head.sender.as_deref(), Some("system"));
    assert!(matches!(head.content, Content::Text(text) if text == "Hello Group 1"));
    // It is not JSON, so WuKongIM gets it unchanged.
    assert_eq!(
        head.native.unwrap().get(),
        r#"{"payload":"SGVsbG8gR3JvdXAgMQ==","client_msg_no":"job"}"#
    );
    let options = serde_json::to_value(&head.options).unwrap();
    assert_eq!(options, json!({"unread": true}));
}

#[test]
fn the_documented_answer_is_given() {
    let asked = call(BATCH, PRINTED).asked(&WukongImIngress, &endpoints());
    let spoken = answer(&asked, &RecipientReport::Sent, &[]);
    assert_eq!(spoken.status(), 200);
    let ids: Vec<_> = asked
        .jobs
        .iter()
        .map(|job| job_report(job, &RecipientReport::Sent, &[]).message_id(&recipients(job)[0]))
        .collect();
    // The sample, with Fanwise's ids in place of its own.
    let expected = format!(
        r#"[{{"message_id":{},"message_seq":0,"client_msg_no":"batch_msg_1"}},{{"message_id":{},"message_seq":0,"client_msg_no":"batch_msg_2"}}]"#,
        ids[0], ids[1],
    );
    assert_eq!(spoken.body(), expected.as_bytes());
}

/// An application must find a message under the number that it gave.
#[test]
fn the_number_of_a_message_to_a_channel_goes_out_as_given() {
    let mut settings = Settings::new("http://localhost", Version::V2);
    let mut number = |wanted: &DropInJob, client_msg_no| {
        settings.client_msg_no = client_msg_no;
        let target = crate::im::wukongim::target(&settings, &mut Vec::new()).unwrap();
        let mut head = head(wanted).unwrap();
        head.client_msg_no = wanted.key.clone().unwrap();
        let head = Arc::new(head);
        assert_eq!(target.check(&head), []);
        let to = recipients(wanted).remove(0);
        let sent: Value = serde_json::from_slice(&target.open(&head).request(&[&to]).body).unwrap();
        assert_eq!(sent["channel_id"], *to);
        sent["client_msg_no"].as_str().unwrap().to_owned()
    };
    let both = [ClientMsgNo::PerRecipient, ClientMsgNo::Job];
    let [first, second] = &call(BATCH, PRINTED)
        .asked(&WukongImIngress, &endpoints())
        .jobs[..]
    else {
        panic!("two jobs are expected");
    };
    let numbered = message_with(&[("client_msg_no", json!("n1"))]);
    let single = &asked(SINGLE, &numbered).jobs[0];
    for form in both {
        assert_eq!(number(first, form), "batch_msg_1");
        assert_eq!(number(second, form), "batch_msg_2");
        assert_eq!(number(single, form), "n1");
    }
    // Messages to several users need different numbers, or some devices would hide all but one.
    let object = object_with(&[("client_msg_no", json!("n2"))]);
    let to_users = &asked(BATCH, &object).jobs[0];
    assert!(number(to_users, ClientMsgNo::PerRecipient).starts_with("n2-"));
    // A number that cannot be a key does not become the job's key.
    let long = message_with(&[("client_msg_no", json!("n".repeat(300)))]);
    let long = &asked(SINGLE, &long).jobs[0];
    assert_ne!(number(long, ClientMsgNo::Job), "n".repeat(300));
    assert!(long.native.is_none() || !long.native.as_ref().unwrap().get().contains("job"));
}

#[test]
fn the_object_of_the_releases_is_answered_in_its_own_shape() {
    let asked = asked(BATCH, &object_with(&[]));
    let [wanted] = &asked.jobs[..] else {
        panic!("one job is expected");
    };
    assert_eq!(recipients(wanted), ["u1", "u2"]);
    assert_eq!(wanted.key, None);
    let head = head(wanted).unwrap();
    assert!(matches!(head.content, Content::Text(text) if text == "hello"));
    assert!(head.native.is_none());
    let said = answer(&asked, &RecipientReport::Pending, &[]);
    assert_eq!(said.body(), r#"{"fail_uids":[],"reason":[]}"#);
    let said = answer(
        &asked,
        &RecipientReport::Sent,
        &[("u2", failed("reason_4", "in blacklist"))],
    );
    assert_eq!(said.status(), 200);
    assert_eq!(
        said.body(),
        r#"{"fail_uids":["u2"],"reason":["in blacklist"]}"#
    );
}

#[test]
fn a_single_send_is_answered_as_by_releases() {
    let asked = asked(SINGLE, &message_with(&[("client_msg_no", json!("n1"))]));
    let id = job_report(&asked.jobs[0], &RecipientReport::Sent, &[]).message_id("g1");
    let expected = format!(r#"{{"status":200,"data":{{"message_id":{id},"client_msg_no":"n1"}}}}"#);
    assert_eq!(
        answer(&asked, &RecipientReport::Sent, &[]).body(),
        expected.as_bytes()
    );
    let said = |report| {
        let spoken = answer(&asked, &report, &[]);
        let said = body(&spoken);
        assert_eq!(said["status"], spoken.status().as_u16());
        (
            spoken.status().as_u16(),
            said["msg"].as_str().unwrap().to_owned(),
        )
    };
    assert_eq!(
        said(failed("reason_3", "not in")),
        (403, "not in".to_owned())
    );
    assert_eq!(said(failed("400", "")), (400, "failed".to_owned()));
    let lost = RecipientReport::Ended {
        outcome: Outcome::Uncertain,
        class: Some(Class::Uncertain),
        kind: RefusalKind::Other,
        code: String::new(),
        text: String::new(),
    };
    assert_eq!(said(lost), (500, "uncertain".to_owned()));
}

#[test]
fn without_a_number_of_its_own_a_message_has_the_jobs() {
    let asked = asked(BATCH, &json!([message_with(&[])]));
    let said = body(&answer(&asked, &RecipientReport::Sent, &[]));
    assert_eq!(asked.jobs[0].key, None);
    assert_eq!(said[0]["client_msg_no"], "made-of-content");
}

#[test]
fn a_message_of_many_that_failed_has_no_id() {
    let asked = call(BATCH, PRINTED).asked(&WukongImIngress, &endpoints());
    let spoken = answer(
        &asked,
        &RecipientReport::Sent,
        &[("group456", failed("reason_5", ""))],
    );
    let said = body(&spoken);
    assert_eq!(spoken.status(), 200);
    assert!(said[0]["message_id"].as_i64().unwrap() > 0);
    assert_eq!(said[1]["message_id"], 0);
    let spoken = answer(&asked, &failed("reason_25", "banned"), &[]);
    assert_eq!(spoken.status(), 403);
    assert_eq!(body(&spoken), json!({"msg": "banned", "status": 403}));
}

#[test]
fn the_token_is_asked_for_where_there_is_one() {
    for call in [
        Request::new(BATCH, PRINTED),
        Request::new(BATCH, PRINTED).header("token", "manager-toke"),
        Request::new(BATCH, "no JSON").header("token", ""),
    ] {
        let spoken = call
            .read_request(&WukongImIngress, &endpoints())
            .err()
            .unwrap();
        assert_eq!(spoken.status(), 401);
        assert!(spoken.body().is_empty());
    }
    let endpoints = [
        open_endpoint(&WukongImIngress),
        endpoint(&WukongImIngress, "", TOKEN),
    ];
    let through = |call: Request| call.asked(&WukongImIngress, &endpoints).endpoint;
    assert_eq!(through(call(BATCH, PRINTED)), 1);
    assert_eq!(
        through(Request::new(BATCH, PRINTED).header("token", "x")),
        0
    );
}

#[test]
fn an_array_is_taken_as_a_whole_or_not_at_all() {
    let bad = json!([
        message_with(&[]),
        message_with(&[("payload", json!("%"))]),
        message_with(&[("channel_id", json!(""))]),
        7,
    ]);
    assert_eq!(
        refusal(BATCH, &bad),
        "[1].payload is not base64; [2].channel_id is missing; [3]: a JSON object is expected"
    );
    assert_eq!(
        refusal(BATCH, &json!([])),
        "0 messages, 1 to 1000 are taken"
    );
    let many = |count| json!(vec![message_with(&[]); count]);
    assert_eq!(asked(BATCH, &many(1000)).jobs.len(), 1000);
    refusal(BATCH, &many(1001));
    assert_eq!(refused(&call(BATCH, "[{]")), "a JSON array is expected");
}

#[test]
fn flags_are_flags_however_they_are_written() {
    for (word, on) in [
        (json!(1), true),
        (json!(true), true),
        (json!("1"), true),
        (json!("true"), true),
        (json!(0), false),
        (json!(false), false),
        (json!("0"), false),
        (json!(null), false),
    ] {
        let header = json!({"no_persist": word, "red_dot": word, "sync_once": word});
        for (path, body) in [
            (BATCH, json!([message_with(&[("header", header.clone())])])),
            (SINGLE, message_with(&[("header", header.clone())])),
            (BATCH, object_with(&[("header", header.clone())])),
        ] {
            let options = asked(path, &body).jobs.remove(0).options;
            assert_eq!(options.unread, Some(on), "{word}");
            assert_eq!(options.online_only, on.then_some(true));
            assert_eq!(options.sync_once, on.then_some(true));
        }
    }
    let wrong = message_with(&[("header", json!({"red_dot": 2}))]);
    assert_eq!(
        refusal(SINGLE, &wrong),
        "header.red_dot: true or false is expected"
    );
    // The form that 3.x accepts.
    let flat = message_with(&[("no_persist", json!(true)), ("sync_once", json!(1))]);
    let options = asked(SINGLE, &flat).jobs.remove(0).options;
    assert_eq!(
        (options.online_only, options.sync_once),
        (Some(true), Some(true))
    );
}

#[test]
fn subscribers_are_for_commands_only() {
    let to = |once: Value| {
        json!([message_with(&[
            ("subscribers", json!(["u1", "u2"])),
            ("header", json!({"sync_once": once})),
        ])])
    };
    assert_eq!(
        recipients(&asked(BATCH, &to(json!(1))).jobs[0]),
        ["u1", "u2"]
    );
    refusal(BATCH, &to(json!(0)));
    refusal(
        BATCH,
        &json!([message_with(&[("subscribers", json!(["u1"]))])]),
    );
    let command = |once: i32| {
        message_with(&[
            ("channel_id", json!(null)),
            ("subscribers", json!(["u1"])),
            ("header", json!({"sync_once": once})),
        ])
    };
    let asked = asked(SINGLE, &command(1));
    assert_eq!(
        answer(&asked, &RecipientReport::Sent, &[]).body(),
        r#"{"status":200}"#
    );
    refusal(SINGLE, &command(0));
    let both = message_with(&[
        ("subscribers", json!(["u1"])),
        ("header", json!({"sync_once": 1})),
    ]);
    refusal(SINGLE, &both);
    // An empty list counts as no list.
    self::asked(SINGLE, &message_with(&[("subscribers", json!([]))]));
}

#[test]
fn channels_are_of_users_or_groups() {
    let of = |kind: u8| {
        let message = message_with(&[("channel_type", json!(kind))]);
        head(&asked(SINGLE, &message).jobs[0]).unwrap().addressed
    };
    assert_eq!(of(1), Addressed::Users);
    for kind in [2, 3, 9, 255] {
        assert_eq!(of(kind), Addressed::Groups(kind));
    }
    for (name, value) in [
        ("channel_type", json!(0)),
        ("channel_type", json!(null)),
        ("channel_type", json!(256)),
        ("channel_type", json!("group")),
        ("channel_id", json!(" ")),
        ("channel_id", json!({})),
    ] {
        refusal(SINGLE, &message_with(&[(name, value)]));
    }
    for uid in ["a@b", "a#b", "a&b"] {
        let message = message_with(&[("channel_type", json!(1)), ("channel_id", json!(uid))]);
        refusal(SINGLE, &message);
    }
}

#[test]
fn what_is_missing_is_refused() {
    for (name, value) in [
        ("payload", json!(null)),
        ("payload", json!("")),
        ("payload", json!("\n")),
        ("payload", json!("SGVsbG8=x")),
        ("payload", json!([])),
        ("from_uid", json!({})),
        ("expire", json!(-1)),
        ("expire", json!(4_294_967_296_i64)),
        ("is_stream", json!(1)),
        ("header", json!([])),
    ] {
        let field = [(name, value)];
        refusal(SINGLE, &message_with(&field));
        refusal(BATCH, &object_with(&field));
        refusal(BATCH, &json!([message_with(&field)]));
    }
    for sender in [json!(null), json!("  ")] {
        let field = [("from_uid", sender)];
        refusal(BATCH, &object_with(&field));
        refusal(BATCH, &json!([message_with(&field)]));
        // A single message without a sender is from the system's user, which the target knows.
        assert_eq!(asked(SINGLE, &message_with(&field)).jobs[0].sender, None);
    }
    for subscribers in [json!(null), json!([]), json!([""]), json!("u1")] {
        refusal(BATCH, &object_with(&[("subscribers", subscribers)]));
    }
    for body in ["", "{", "null", "7"] {
        refused(&call(BATCH, body));
        refused(&call(SINGLE, body));
    }
    // An array is not a single message.
    refused(&call(SINGLE, PRINTED));
}

#[test]
fn payloads_are_bounded_and_understood() {
    let of = |payload: &[u8]| {
        let message = message_with(&[("payload", json!(STANDARD.encode(payload)))]);
        let head = head(&asked(SINGLE, &message).jobs[0]).unwrap();
        (head.content, head.native.is_some())
    };
    let check = |payload: &str, kind: &str, native: bool| {
        let (content, given) = of(payload.as_bytes());
        assert_eq!((content.kind(), given), (kind, native), "{payload}");
    };
    check(r#"{"type":1,"content":"hi"}"#, "text", false);
    check(r#"{ "content": "hi", "type": 1 }"#, "text", false);
    check(" [1]\n", "custom", true);
    check("plain", "text", true);
    check("{not json", "text", true);
    check("123", "text", true);
    for other in [
        r#"{"type":2,"url":"http://x"}"#,
        r#"{"type":1,"content":"hi","mention":{"all":1}}"#,
        r#"{"type":1,"content":7}"#,
        r#"{"type":1,"content":""}"#,
        r#"{"type":1}"#,
        "{}",
        "[1]",
    ] {
        check(other, "custom", false);
        assert!(matches!(of(other.as_bytes()).0, Content::Custom(data) if data.get() == other));
    }
    let (content, native) = of(&[0xff, 0]);
    assert!(matches!(content, Content::Custom(data) if data.get() == r#""/wA=""#));
    assert!(native);

    let edge = vec![b'x'; 32_767];
    assert!(matches!(of(&edge), (Content::Custom(_), true)));
    let over = message_with(&[("payload", json!(STANDARD.encode(vec![b'x'; 32_768])))]);
    assert_eq!(refusal(SINGLE, &over), "payload is longer than 32767 bytes");
    // Line breaks in base64 are ignored, and padding may be missing, as some callers write it.
    for encoded in ["SGVs\nbG8=", "SGVsbG8"] {
        let message = message_with(&[("payload", json!(encoded))]);
        let head = head(&asked(SINGLE, &message).jobs[0]).unwrap();
        assert!(matches!(head.content, Content::Text(text) if text == "Hello"));
    }
}

#[test]
fn a_target_of_the_same_system_sends_what_was_written() {
    let settings = Settings::new("http://localhost", Version::V2);
    let target = crate::im::wukongim::target(&settings, &mut Vec::new()).unwrap();
    let asked = call(BATCH, PRINTED).asked(&WukongImIngress, &endpoints());
    let written: Value = serde_json::from_str(PRINTED).unwrap();
    for (index, wanted) in asked.jobs.iter().enumerate() {
        let head = Arc::new(head(wanted).unwrap());
        assert_eq!(target.check(&head), []);
        let channel = recipients(wanted).remove(0);
        let sent = target.open(&head).request(&[&channel]);
        let sent: Value = serde_json::from_slice(&sent.body).unwrap();
        for name in [
            "header",
            "from_uid",
            "channel_id",
            "channel_type",
            "payload",
        ] {
            assert_eq!(sent[name], written[index][name], "{name}");
        }
    }
}

#[test]
fn fields_that_mean_nothing_are_taken() {
    let message = message_with(&[
        ("stream_no", json!("s1")),
        ("tag_key", json!("t1")),
        ("expire", json!(60)),
        ("is_stream", json!(0)),
        ("unknown", json!([1])),
    ]);
    let wanted = asked(BATCH, &json!([message])).jobs.remove(0);
    assert_eq!(wanted.options.expire_seconds, Some(60));
    let alias = message_with(&[("from_uid", json!(null)), ("sender_uid", json!("s"))]);
    assert_eq!(asked(SINGLE, &alias).jobs[0].sender.as_deref(), Some("s"));
}

#[test]
fn refusals_of_ours_are_in_the_systems_shape() {
    let said = |refusal: Refusal<'_>| {
        let spoken = WukongImIngress.refuse(&refusal);
        assert_eq!(body(&spoken)["status"], spoken.status().as_u16());
        spoken.status().as_u16()
    };
    let problems = [Problem::new("message.text", "too long")];
    assert_eq!(said(Refusal::Problems(&problems)), 400);
    assert_eq!(said(Refusal::Conflict), 400);
    assert_eq!(said(Refusal::Replayed), 400);
    assert_eq!(said(Refusal::Forbidden("no")), 403);
    assert_eq!(said(Refusal::Unavailable("no")), 503);
    let block = std::time::Duration::from_millis(1);
    assert_eq!(said(Refusal::TooOften { block }), 429);
    let spoken = WukongImIngress.refuse(&Refusal::TooOften { block });
    assert_eq!(spoken.headers()["retry-after"], "1");
}

proptest! {
    #[test]
    fn any_body_is_answered_in_the_systems_manner(
        path in prop::sample::select(vec![BATCH, SINGLE]),
        bytes in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            "[\\[\\]{}\",:0-9a-z]{0,60}".prop_map(String::into_bytes),
        ],
    ) {
        let spoken = call(path, bytes).read_request(&WukongImIngress, &endpoints()).err().unwrap();
        prop_assert_eq!(spoken.status(), 400);
        prop_assert_eq!(&body(&spoken)["status"], &json!(400));
    }

    #[test]
    fn any_field_may_hold_anything(
        shape in 0..3,
        name in prop::sample::select(vec![
            "header", "client_msg_no", "from_uid", "channel_id", "channel_type", "expire",
            "payload", "subscribers", "stream_no", "tag_key",
        ]),
        value in any_json(),
    ) {
        let field = [(name, value)];
        let (path, body) = match shape {
            0 => (BATCH, json!([message_with(&field)])),
            1 => (BATCH, object_with(&field)),
            _ => (SINGLE, message_with(&field)),
        };
        match call(path, body.to_string()).read_request(&WukongImIngress, &endpoints()) {
            Err(spoken) => prop_assert_eq!(spoken.status(), 400),
            Ok(asked) => {
                let job_report = JobReport {
                    job: JobId::of("shop", "k"),
                    client_msg_no: "k".to_owned(),
                    accepted_at_ms: NOW_MS,
                    folds_case: false,
                    everybody: None,
                    recipients: vec![("a".to_owned(), RecipientReport::Sent)],
                };
                prop_assert_eq!(asked.reply.render(&[job_report]).status(), 200);
            }
        }
    }

    #[test]
    fn any_payload_arrives(
        payload in prop_oneof![
            prop::collection::vec(any::<u8>(), 1..100),
            "[ \n{}\\[\\]\",:0-9]{1,12}".prop_map(String::into_bytes),
        ],
    ) {
        let message = message_with(&[("payload", json!(STANDARD.encode(&payload)))]);
        let wanted = asked(SINGLE, &message).jobs.remove(0);
        let head = head(&wanted).unwrap();
        // The payload that a WuKongIM target would put into its call.
        let sent = match (&head.native, &head.content) {
            (Some(native), _) => {
                let native: Value = serde_json::from_str(native.get()).unwrap();
                STANDARD.decode(native["payload"].as_str().unwrap()).unwrap()
            }
            (None, Content::Custom(data)) => data.get().as_bytes().to_vec(),
            (None, content) => panic!("{content:?}"),
        };
        prop_assert_eq!(sent, payload);
    }
}
