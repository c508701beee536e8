//! Checks the requests that the documentation shows, every limit, and the answers.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::domain::fields::Problem;
use crate::domain::ids::JobId;
use crate::domain::message::Content;
use crate::domain::outcome::{Class, Outcome, RefusalKind};
use crate::im::ingress::fixture::{
    Call, NOW_MS, answer, any_json, body, endpoint, failed, failed_at_webhook, head, job_report,
    open_endpoint, recipients,
};
use crate::im::netease::ingress::signature::tests::{KEY, SECRET, signed};
use crate::im::yunxin::Settings;
use crate::ports::Target;
use crate::secret::Secret;

/// The body of the documentation's example, as printed.
const PRINTED: &str = r#"{
  "sender_no_sense": false,
  "extension": "officia labore ex sit ut",
  "message": {
    "message_type": 0,
    "sub_type": 30164486,
    "text": "laborum irure",
    "attachment": {
      "name": "型用四这却认",
      "md5": "amet sit Excepteur officia",
      "url": "http://xkjotf.cq/ckp",
      "ext": "in qui",
      "width": 10,
      "height": 95,
      "size": 89
    }
  },
  "route_config": {
    "route_enabled": false,
    "route_environment": "incididunt eiusmod esse magna"
  },
  "push_config": {
    "push_enabled": true,
    "push_nick_enabled": false,
    "push_content": "proident reprehenderit",
    "push_payload":null,
    "push_forcepush_all": true,
    "push_forcepush_ids": [
      "30"
    ],
    "push_forcepush_content": "irure"
  },
  "antispam_config": {
    "antispam_enabled": false,
    "antispam_business_id": "31",
    "antispam_extension": null,
    "antispam_cheating":null
  },
  "p2p_option": {
    "check_friend": true
  },
  "sender_id": "apifoxtest1",
  "receiver_ids": [
    "apifoxtest2"
  ]
}"#;

fn call(body: impl Into<Vec<u8>>) -> Call {
    signed(Call::new(PATHS[0], body))
}

fn endpoints() -> [DropInEndpoint; 1] {
    [endpoint(&YunxinIngress, KEY, SECRET)]
}

fn asked(body: &Value) -> DropInRequest {
    call(body.to_string()).asked(&YunxinIngress, &endpoints())
}

/// Code and text of a refusal; checks its format too.
fn refusal(body: &Value) -> (u64, String) {
    let (status, said) = call(body.to_string()).refusal(&YunxinIngress, &endpoints());
    assert_eq!(status, 200);
    assert_eq!(said.as_object().unwrap().len(), 2, "{said}");
    let msg = said["msg"].as_str().unwrap();
    (said["code"].as_u64().unwrap(), msg.to_owned())
}

/// A small body with some fields set, at JSON pointers.
fn with(changes: &[(&str, Value)]) -> Value {
    let mut body = json!({
        "sender_id": "s",
        "receiver_ids": ["a", "b"],
        "message": {"message_type": 0, "text": "hello"},
        "push_config": {},
        "message_config": {},
    });
    for (pointer, value) in changes {
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        body.pointer_mut(parent).unwrap()[name] = value.clone();
    }
    body
}

#[test]
fn the_documented_request_is_understood_as_printed() {
    let call = call(PRINTED).header("x-custom-traceid", "{% mock 'uuid' %}");
    let asked = call.asked(&YunxinIngress, &endpoints());
    let [wanted] = &asked.jobs[..] else {
        panic!("one job is expected");
    };
    // The example contains an unfilled template in place of the id.
    assert_eq!(wanted.key, None);
    assert_eq!(wanted.sender.as_deref(), Some("apifoxtest1"));
    assert_eq!(recipients(wanted), ["apifoxtest2"]);
    let head = head(wanted).unwrap();
    assert!(matches!(head.content, Content::Text(text) if text == "laborum irure"));
    assert_eq!(
        serde_json::to_value(&head.options).unwrap(),
        json!({
            "sender_no_sense": false,
            "push": {"enabled": true, "text": "proident reprehenderit", "forced": true},
            "route": {"enabled": false, "environment": "incididunt eiusmod esse magna"},
            "moderation": {"enabled": false, "business_id": "31"},
            "extension": "officia labore ex sit ut",
        })
    );
    let native: Value = serde_json::from_str(head.native.unwrap().get()).unwrap();
    let printed: Value = serde_json::from_str(PRINTED).unwrap();
    assert_eq!(native["message"], printed["message"]);
    assert_eq!(native["p2p_option"], printed["p2p_option"]);
    assert_eq!(native["push_config"]["push_forcepush_ids"], json!(["30"]));
    // Contains neither `null` nor anything that the options express.
    assert_eq!(native["push_config"].get("push_payload"), None);
    assert_eq!(native.get("route_config"), None);
    assert_eq!(native.get("antispam_config"), None);
}

#[test]
fn the_printed_headers_come_in_where_anybody_may() {
    // The documentation's curl command sends empty headers.
    let empty = ["appkey", "nonce", "curtime", "checksum"];
    let call = empty
        .iter()
        .fold(Call::new(PATHS[0], PRINTED), |call, name| {
            call.header(name, "")
        });
    let asked = call.asked(&YunxinIngress, &[open_endpoint(&YunxinIngress)]);
    assert_eq!(asked.nonce, None);
    let (_, said) = call.refusal(&YunxinIngress, &endpoints());
    assert_eq!(said, json!({"code": 414, "msg": "bad http header"}));
}

#[test]
fn the_documented_answer_is_given() {
    let asked = call(PRINTED).asked(&YunxinIngress, &endpoints());
    let spoken = answer(&asked, &RecipientReport::Sent, &[]);
    assert_eq!(spoken.status(), 200);
    let id = job_report(&asked.jobs[0], &RecipientReport::Sent, &[]).message_id("apifoxtest2");
    // The sample, with Fanwise's time and id in place of its own.
    let mut sample = json!({
        "code": 200,
        "msg": "success",
        "data": {
            "success_list": [
                {
                    "text": "laborum irure",
                    "attachment": {
                        "ext": "in qui",
                        "size": 89,
                        "name": "型用四这却认",
                        "width": 10,
                        "url": "http://xkjotf.cq/ckp",
                        "md5": "amet sit Excepteur officia",
                        "height": 95
                    },
                    "message_server_id": 9_897_543_190_303_i64,
                    "sender_id": "apifoxtest1",
                    "conversation_type": 1,
                    "receiver_id": "apifoxtest2",
                    "create_time": 1_707_017_423_142_i64,
                    "message_type": 0,
                    "sub_type": 30_164_486
                }
            ]
        }
    });
    let entry = &mut sample["data"]["success_list"][0];
    entry["message_server_id"] = json!(id);
    entry["create_time"] = json!(NOW_MS);
    assert_eq!(body(&spoken), sample);
}

#[test]
fn failures_are_listed_under_both_names_of_the_id() {
    let asked = asked(&with(&[]));
    let said = body(&answer(
        &asked,
        &RecipientReport::Sent,
        &[("b", failed("102426", "blocked"))],
    ));
    assert_eq!(said["code"], 200);
    assert_eq!(said["data"]["success_list"].as_array().unwrap().len(), 1);
    assert_eq!(
        said["data"]["failed_list"],
        json!([{"account_id": "b", "receiver_id": "b", "error_code": 102_426, "error_msg": "blocked"}])
    );
    let code = |report| {
        let said = body(&answer(&asked, &RecipientReport::Sent, &[("b", report)]));
        said["data"]["failed_list"][0]["error_code"]
            .as_u64()
            .unwrap()
    };
    for unknown in ["unregister", "err_1004", "102404"] {
        assert_eq!(code(failed(unknown, "")), 102_404, "{unknown}");
    }
    assert_eq!(code(failed_at_webhook("404", "")), 102_404);
    assert_eq!(code(failed("reason_4", "")), 403);
    let ended = |outcome, class| RecipientReport::Ended {
        outcome,
        class,
        kind: RefusalKind::Other,
        code: String::new(),
        text: String::new(),
    };
    assert_eq!(code(ended(Outcome::Uncertain, Some(Class::Uncertain))), 408);
    assert_eq!(code(ended(Outcome::Failed, Some(Class::Transient))), 500);
    assert_eq!(code(ended(Outcome::Expired, None)), 403);
    // No recipient got it, and the lists report that. Two recipients with different codes are two
    // failures.
    let said = body(&answer(
        &asked,
        &failed("408", ""),
        &[("b", failed("102426", ""))],
    ));
    assert_eq!(said["data"]["failed_list"].as_array().unwrap().len(), 2);
    let said = body(&answer(&asked, &failed("102404", ""), &[]));
    assert_eq!(said["data"]["success_list"], json!([]));
    assert_eq!(said["data"]["failed_list"].as_array().unwrap().len(), 2);
}

/// If the fault is the sender's or the call's, no recipient is listed as failed or unknown.
#[test]
fn a_call_that_was_refused_as_a_whole_is_refused() {
    let asked = asked(&with(&[]));
    for (code, said) in [
        ("404", "sender not exist"),
        ("423", "account 'mute'."),
        ("301", "banned"),
        ("408", "timeout"),
        ("102422", "banned"),
    ] {
        let refused = body(&answer(&asked, &failed(code, said), &[]));
        let code: u32 = code.parse().unwrap();
        assert_eq!(refused, json!({"code": code, "msg": said}));
    }
    let listed = |report: RecipientReport| {
        let said = body(&answer(&asked, &report, &[]));
        assert_eq!(said["code"], 200, "{report:?}");
        assert_eq!(said["data"]["failed_list"].as_array().unwrap().len(), 2);
    };
    for code in [
        "102404",
        "104404",
        "102426",
        "107410",
        "unregister",
        "reason_4",
        "err_1302",
        "",
    ] {
        listed(failed(code, ""));
    }
    // An HTTP endpoint means the recipient by these; its other statuses are about the call.
    for status in ["404", "410"] {
        listed(failed_at_webhook(status, ""));
    }
    let said = body(&answer(&asked, &failed_at_webhook("422", "no"), &[]));
    assert_eq!(said, json!({"code": 422, "msg": "no"}));
}

#[test]
fn who_is_not_settled_yet_is_on_the_way() {
    let asked = asked(&with(&[]));
    let said = body(&answer(&asked, &RecipientReport::Pending, &[]));
    let listed = &said["data"]["success_list"];
    assert_eq!(listed.as_array().unwrap().len(), 2);
    assert_eq!(said["data"].get("failed_list"), None);
    // A field that the message lacks is missing from the entries too.
    let mut names: Vec<_> = listed[0].as_object().unwrap().keys().collect();
    names.sort();
    assert_eq!(
        names,
        [
            "conversation_type",
            "create_time",
            "message_server_id",
            "message_type",
            "receiver_id",
            "sender_id",
            "text"
        ]
    );
}

#[test]
fn every_limit_is_checked_at_its_edge() {
    let text = |length: usize| json!("x".repeat(length));
    let ids = |count: usize| json!((0..count).map(|n| format!("u{n}")).collect::<Vec<_>>());
    type Make<'a> = &'a dyn Fn(usize) -> Value;
    type Case<'a> = (&'a str, usize, Make<'a>, &'a [(&'a str, Value)]);
    let custom = [
        ("/message/message_type", json!(100)),
        ("/message/attachment", json!({"a": 1})),
    ];
    let cases: [Case<'_>; 7] = [
        ("/receiver_ids", 100, &ids, &[]),
        ("/message/text", 5000, &text, &[]),
        ("/message/text", 500, &text, &custom),
        ("/extension", 1024, &text, &[]),
        ("/push_config/push_content", 500, &text, &[]),
        ("/push_config/push_forcepush_content", 500, &text, &[]),
        ("/push_config/push_payload", 2048, &text, &[]),
    ];
    for (pointer, most, make, also) in cases {
        let of = |length| with(&[also, &[(pointer, make(length))]].concat());
        asked(&of(most));
        assert_eq!(refusal(&of(most + 1)).0, 414, "{pointer}");
    }
    let long = with(&[("/message/text", text(5001))]);
    assert_eq!(
        refusal(&long).1,
        "message.text is longer than 5000 characters"
    );
    // The operator may set another limit.
    let mut endpoints = endpoints();
    endpoints[0].limits.insert("text_max", 6000);
    call(long.to_string()).asked(&YunxinIngress, &endpoints);
}

#[test]
fn wrong_parameters_are_refused() {
    for (pointer, value) in [
        ("/sender_id", json!(null)),
        ("/sender_id", json!("")),
        ("/sender_id", json!({})),
        ("/receiver_ids", json!([])),
        ("/receiver_ids", json!(null)),
        ("/receiver_ids", json!("a")),
        ("/receiver_ids", json!([""])),
        ("/message", json!(null)),
        ("/message", json!([])),
        ("/message/message_type", json!(null)),
        ("/message/message_type", json!(5)),
        ("/message/message_type", json!("text")),
        ("/message/sub_type", json!(0)),
        ("/message/text", json!("")),
        ("/message/attachment", json!([])),
        ("/sender_no_sense", json!("maybe")),
        ("/push_config", json!([])),
        ("/push_config/push_enabled", json!(7)),
        ("/push_config/push_forcepush_ids", json!({})),
        ("/message_config/offline_enabled", json!("x")),
        ("/route_config", json!(1)),
    ] {
        assert_eq!(
            refusal(&with(&[(pointer, value.clone())])).0,
            414,
            "{pointer} {value}"
        );
    }
    for kind in [1, 2, 3, 4, 6, 100] {
        let bare = with(&[("/message/message_type", json!(kind))]);
        assert_eq!(refusal(&bare).0, 414);
    }
    for body in ["", "[]", "{", "null"] {
        let (_, said) = call(body).refusal(&YunxinIngress, &endpoints());
        assert_eq!(said["code"], 414);
    }
    let neither = with(&[
        ("/sender_no_sense", json!(true)),
        ("/receiver_no_sense", json!(1)),
    ]);
    assert_eq!(refusal(&neither).0, 107_330);
}

#[test]
fn null_is_absent() {
    let nulls = with(&[
        ("/extension", json!(null)),
        ("/route_config", json!(null)),
        ("/antispam_config", json!(null)),
        ("/p2p_option", json!(null)),
        ("/message/sub_type", json!(null)),
        ("/message/attachment", json!(null)),
        ("/push_config/push_payload", json!(null)),
        ("/receiver_no_sense", json!(null)),
        ("/need_message_detail", json!(null)),
    ]);
    let wanted = format!("{:?}", asked(&nulls).jobs);
    assert_eq!(wanted, format!("{:?}", asked(&with(&[])).jobs));
    assert!(asked(&nulls).jobs[0].native.is_none());
}

#[test]
fn every_type_of_message_is_understood() {
    let of = |kind: i64, attachment: Value| {
        let body = with(&[
            ("/message/message_type", json!(kind)),
            ("/message/attachment", attachment),
        ]);
        let head = head(&asked(&body).jobs[0]).unwrap();
        (head.content, head.native.is_some())
    };
    let file = json!({"url": "http://x/1", "ext": "png", "width": 1, "height": 2, "duration": 3});
    for (kind, expected) in [(1, "image"), (2, "audio"), (3, "video"), (6, "file")] {
        let (content, native) = of(kind, file.clone());
        assert_eq!((content.kind(), native), (expected, true));
    }
    // The older API took it as a text; a backend gets an object.
    let (content, native) = of(1, json!(file.to_string()));
    assert_eq!((content.kind(), native), ("image", true));
    let in_text = with(&[
        ("/message/message_type", json!(1)),
        ("/message/attachment", json!(file.to_string())),
        ("/message/message_client_id", json!("client-1")),
    ]);
    let in_text = asked(&in_text).jobs.remove(0).native.unwrap();
    let native: Value = serde_json::from_str(in_text.get()).unwrap();
    let expected = json!({"message_type": 1, "text": "hello", "attachment": file});
    assert_eq!(native, json!({"message": expected}));
    let place = json!({"latitude": 1.5, "longitude": "2.5", "title": "Here"});
    assert_eq!(of(4, place).0.kind(), "location");
    let tip = with(&[("/message/message_type", json!(10))]);
    assert_eq!(head(&asked(&tip).jobs[0]).unwrap().content.kind(), "notice");
    let custom = with(&[
        ("/message/message_type", json!(100)),
        ("/message/text", json!(null)),
        ("/message/attachment", json!({"k": [1]})),
    ]);
    let custom = head(&asked(&custom).jobs[0]).unwrap();
    assert!(matches!(custom.content, Content::Custom(data) if data.get() == r#"{"k":[1]}"#));
    assert!(custom.native.is_none());
}

#[test]
fn further_sections_pass_through() {
    let config =
        json!({"offline_enabled": false, "history_enabled": false, "unread_enabled": false});
    let wanted = asked(&with(&[
        ("/message_config", config.clone()),
        ("/need_message_detail", json!(true)),
        ("/receiver_no_sense", json!(true)),
    ]))
    .jobs
    .remove(0);
    assert_eq!(wanted.options.online_only, Some(true));
    assert_eq!(wanted.options.unread, Some(false));
    assert_eq!(wanted.options.receiver_no_sense, Some(true));
    let native: Value = serde_json::from_str(wanted.native.unwrap().get()).unwrap();
    assert_eq!(
        native,
        json!({"message_config": config, "need_message_detail": true})
    );
}

#[test]
fn a_target_of_the_same_system_sends_what_was_written() {
    let settings = Settings::new("http://localhost", "key", Secret::new("secret"));
    let target = crate::im::yunxin::target(&settings, &mut Vec::new()).unwrap();
    let asked = call(PRINTED).asked(&YunxinIngress, &endpoints());
    let head = Arc::new(head(&asked.jobs[0]).unwrap());
    assert_eq!(target.check(&head), []);
    let sent = target.open(&head).request(&["apifoxtest2"]);
    let sent: Value = serde_json::from_slice(&sent.body).unwrap();
    let mut written: Value = serde_json::from_str(PRINTED).unwrap();
    // The options express these fields, so they are not repeated, and no field is `null`.
    for section in ["push_config", "antispam_config"] {
        let section = written[section].as_object_mut().unwrap();
        section.retain(|_, value| !value.is_null());
    }
    assert_eq!(sent, written);
}

#[test]
fn the_trace_id_is_the_key_of_the_job() {
    let named = with(&[("/message/message_client_id", json!("client-1"))]);
    let key = |call: &Call| call.asked(&YunxinIngress, &endpoints()).jobs.remove(0).key;
    let untraced = call(named.to_string());
    assert_eq!(key(&untraced).as_deref(), Some("client-1"));
    let traced = untraced.header("x-custom-traceid", "trace-1");
    assert_eq!(key(&traced).as_deref(), Some("trace-1"));
    assert_eq!(key(&call(with(&[]).to_string())), None);
    // For a backend, the target gives each message an id of its own.
    assert!(asked(&named).jobs[0].native.is_none());
    let said = body(&answer(&asked(&named), &RecipientReport::Sent, &[]));
    assert_eq!(
        said["data"]["success_list"][0]["message_client_id"],
        "client-1"
    );
}

#[test]
fn refusals_of_ours_are_in_the_systems_codes() {
    let said = |refusal: Refusal<'_>| {
        let spoken = YunxinIngress.refuse(&refusal);
        assert_eq!(spoken.status(), 200);
        body(&spoken)
    };
    let problems = [Problem::new("message.text", "too long")];
    assert_eq!(
        said(Refusal::Problems(&problems)),
        json!({"code": 414, "msg": "message.text: too long"})
    );
    let block = std::time::Duration::from_secs(60);
    assert_eq!(said(Refusal::TooOften { block })["code"], 416);
    assert_eq!(said(Refusal::Replayed)["code"], 414);
    assert_eq!(said(Refusal::Conflict)["code"], 107_306);
    assert_eq!(said(Refusal::Forbidden("no"))["code"], 403);
    assert_eq!(said(Refusal::Unavailable("no"))["code"], 503);
}

proptest! {
    #[test]
    fn any_body_is_answered_in_the_systems_manner(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let spoken = call(bytes).read_request(&YunxinIngress, &endpoints()).err().unwrap();
        prop_assert_eq!(&body(&spoken)["code"], &json!(414));
    }

    #[test]
    fn any_field_may_hold_anything(
        pointer in prop::sample::select(vec![
            "/sender_id", "/receiver_ids", "/message", "/message/message_type", "/message/sub_type",
            "/message/text", "/message/attachment", "/route_config", "/push_config",
            "/push_config/push_payload", "/antispam_config", "/p2p_option", "/extension",
        ]),
        value in any_json(),
    ) {
        match call(with(&[(pointer, value)]).to_string()).read_request(&YunxinIngress, &endpoints()) {
            Err(spoken) => prop_assert_eq!(&body(&spoken)["code"], &json!(414)),
            Ok(asked) => {
                let job_report = JobReport {
                    job: JobId::of("shop", "k"),
                    client_msg_no: "k".to_owned(),
                    accepted_at_ms: NOW_MS,
                    folds_case: false,
                    everybody: None,
                    recipients: vec![("a".to_owned(), RecipientReport::Sent), ("b".to_owned(), failed("x", ""))],
                };
                let said = body(&asked.reply.render(&[job_report]));
                prop_assert_eq!(&said["code"], &json!(200));
                prop_assert_eq!(said["data"]["failed_list"].as_array().unwrap().len(), 1);
            }
        }
    }
}
