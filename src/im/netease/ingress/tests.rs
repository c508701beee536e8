//! Checks the requests that the documentation shows, every limit, and the answers.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::signature::tests::{KEY, SECRET, signed};
use super::*;
use crate::domain::fields::Problem;
use crate::domain::ids::JobId;
use crate::domain::message::Content;
use crate::domain::outcome::RefusalKind;
use crate::im::ingress::fixture::{
    Call as Request, NOW_MS, answer, body, endpoint, failed, failed_at_webhook, head, job_report,
    open_endpoint, recipients,
};
use crate::im::netease::Settings;
use crate::ports::Target;
use crate::secret::Secret;

/// The body of the documentation's `curl -d`, as printed.
const PRINTED: &str = r#"fromAccid=zhangsan&toAccids=["aaa","bbb"]&type=0&body={"msg":"hello"}"#;

fn request(body: impl Into<Vec<u8>>) -> Request {
    signed(Request::new(PATHS[0], body))
}

fn endpoints() -> [DropInEndpoint; 1] {
    [endpoint(&NetEaseIngress, KEY, SECRET)]
}

fn asked(body: impl Into<Vec<u8>>) -> DropInRequest {
    request(body).asked(&NetEaseIngress, &endpoints())
}

/// Code and text of a refusal; checks its format too.
fn refusal(body: impl Into<Vec<u8>>) -> (u64, String) {
    let (status, said) = request(body).refusal(&NetEaseIngress, &endpoints());
    assert_eq!(status, 200);
    assert_eq!(said.as_object().unwrap().len(), 2, "{said}");
    let desc = said["desc"].as_str().unwrap();
    (said["code"].as_u64().unwrap(), desc.to_owned())
}

/// A body with the documentation's fields, with these changed.
fn with(changes: &[(&str, &str)]) -> String {
    let mut fields = vec![
        ("fromAccid", "zhangsan"),
        ("toAccids", r#"["aaa","bbb"]"#),
        ("type", "0"),
        ("body", r#"{"msg":"hello"}"#),
    ];
    for (name, value) in changes {
        fields.retain(|(known, _)| known != name);
        fields.push((name, value));
    }
    let encoded = |value: &str| -> String {
        let bytes = value.bytes();
        bytes.map(|byte| format!("%{byte:02x}")).collect()
    };
    let fields = fields
        .iter()
        .map(|(name, value)| format!("{name}={}", encoded(value)));
    fields.collect::<Vec<_>>().join("&")
}

fn accids(count: usize) -> String {
    json!((0..count).map(|n| format!("u{n}")).collect::<Vec<_>>()).to_string()
}

#[test]
fn the_documented_request_is_understood_as_printed() {
    let asked = asked(PRINTED);
    assert_eq!(asked.endpoint, 0);
    assert_eq!(
        asked.nonce.as_deref(),
        Some("1700000000 4tgggergigwow323t23t")
    );
    let [wanted] = &asked.jobs[..] else {
        panic!("one job is expected");
    };
    assert_eq!(wanted.key, None);
    assert_eq!(wanted.sender.as_deref(), Some("zhangsan"));
    assert_eq!(recipients(wanted), ["aaa", "bbb"]);
    let head = head(wanted).unwrap();
    assert!(matches!(head.content, Content::Text(text) if text == "hello"));
    assert!(head.native.is_none());
    assert_eq!(head.options.sender_no_sense, Some(false));
}

#[test]
fn encoded_forms_and_json_say_the_same() {
    let printed = format!("{:?}", asked(PRINTED).jobs);
    assert_eq!(format!("{:?}", asked(with(&[])).jobs), printed);
    let objects = json!({
        "fromAccid": "zhangsan", "toAccids": ["aaa", "bbb"], "type": 0, "body": {"msg": "hello"},
    });
    assert_eq!(format!("{:?}", asked(objects.to_string()).jobs), printed);
}

#[test]
fn the_documented_answers_are_given() {
    let asked = asked(with(&[
        ("toAccids", r#"["12345","55213","123123","111422"]"#),
        ("returnMsgid", "true"),
    ]));
    let gone = failed("unregister", "the accid is not registered");
    let but = [("123123", gone.clone()), ("111422", gone)];
    let spoken = answer(&asked, &RecipientReport::Sent, &but);
    assert_eq!(spoken.status(), 200);
    assert_eq!(
        spoken.headers()["content-type"],
        "application/json; charset=utf-8"
    );
    // The sample, with Fanwise's time and ids in place of its own.
    let job_report = job_report(&asked.jobs[0], &RecipientReport::Sent, &[]);
    let expected = format!(
        r#"{{"code":200,"unregister":["123123","111422"],"timetag":{NOW_MS},"msgids":{{"12345":{},"55213":{}}}}}"#,
        job_report.message_id("12345"),
        job_report.message_id("55213"),
    );
    assert_eq!(spoken.body(), expected.as_bytes());
}

#[test]
fn ids_are_told_to_who_asks_for_them() {
    for word in ["true", "1", "True"] {
        let asked = asked(with(&[("returnMsgid", word)]));
        assert_eq!(
            body(&answer(&asked, &RecipientReport::Pending, &[]))["msgids"]
                .as_object()
                .unwrap()
                .len(),
            2
        );
    }
    for word in ["false", "0", ""] {
        let asked = asked(with(&[("returnMsgid", word)]));
        let said = body(&answer(&asked, &RecipientReport::Pending, &[]));
        assert_eq!(
            said,
            json!({"code": 200, "unregister": [], "timetag": NOW_MS})
        );
    }
    assert_eq!(refusal(with(&[("returnMsgid", "yes")])).0, 414);
}

#[test]
fn failures_of_the_sender_are_failures_of_the_call() {
    let asked = asked(PRINTED);
    let said = |report: RecipientReport| body(&answer(&asked, &report, &[]));
    assert_eq!(
        said(failed("423", "account 'mute'.")),
        json!({"code": 423, "desc": "account 'mute'."})
    );
    for code in ["403", "404", "414", "422"] {
        assert_eq!(said(failed(code, "x"))["code"].to_string(), code);
    }
    // Codes of other systems: a message that no recipient got must not be answered as a success.
    assert_eq!(said(failed("err_1302", "blocked"))["code"], 403);
    assert_eq!(said(failed("reason_15", "error"))["code"], 403);
    assert_eq!(said(failed_at_webhook("400", "bad request"))["code"], 403);
    let ended = |outcome, class| RecipientReport::Ended {
        outcome,
        class,
        kind: RefusalKind::Other,
        code: String::new(),
        text: String::new(),
    };
    assert_eq!(
        said(ended(Outcome::Cancelled, None)),
        json!({"code": 403, "desc": "cancelled"})
    );
    assert_eq!(
        said(ended(Outcome::Uncertain, Some(Class::Uncertain)))["code"],
        408
    );
    assert_eq!(
        said(ended(Outcome::Failed, Some(Class::Transient)))["code"],
        500
    );
    assert_eq!(said(ended(Outcome::Failed, None))["code"], 500);
}

#[test]
fn unknown_users_are_unregistered_whatever_the_target_calls_them() {
    let asked = asked(with(&[("returnMsgid", "1")]));
    let codes = ["unregister", "err_1004", "102404"];
    let reports = codes.map(|code| failed(code, ""));
    let statuses = ["404", "410"].map(|status| failed_at_webhook(status, ""));
    for report in reports.into_iter().chain(statuses) {
        let sent = RecipientReport::Sent;
        let said = body(&answer(&asked, &sent, &[("bbb", report.clone())]));
        assert_eq!(said["unregister"], json!(["bbb"]), "{report:?}");
        assert_eq!(said["msgids"].as_object().unwrap().len(), 1);
        let said = body(&answer(&asked, &report, &[]));
        assert_eq!(said["unregister"], json!(["aaa", "bbb"]), "{report:?}");
    }
    let said = body(&answer(&asked, &failed("unregister", ""), &[]));
    assert_eq!(said["code"], 200);
    assert_eq!(said["unregister"], json!(["aaa", "bbb"]));
    assert_eq!(said["msgids"], json!({}));
    // A recipient that failed for another reason has no id.
    let said = body(&answer(
        &asked,
        &RecipientReport::Sent,
        &[("bbb", failed("reason_4", ""))],
    ));
    assert_eq!(said["unregister"], json!([]));
    assert_eq!(said["msgids"].as_object().unwrap().len(), 1);
}

#[test]
fn too_many_recipients_are_refused_in_the_documented_words() {
    let too_many = (414, "too many members.".to_owned());
    for (ids, most) in [("false", 500), ("true", 500)] {
        let of = |count| with(&[("toAccids", &accids(count)), ("returnMsgid", ids)]);
        assert_eq!(recipients(&asked(of(most)).jobs[0]).len(), most);
        assert_eq!(refusal(of(most + 1)), too_many);
    }
    let mut endpoints = endpoints();
    endpoints[0].limits.insert("recipients_max", 1);
    let (_, said) = request(PRINTED).refusal(&NetEaseIngress, &endpoints);
    assert_eq!(said, json!({"code": 414, "desc": "too many members."}));
}

/// One message has one id, in whatever case its recipient is written.
#[test]
fn two_spellings_of_one_accid_have_the_id_of_one_message() {
    let asked = asked(with(&[
        ("returnMsgid", "true"),
        ("toAccids", r#"["aaa","aaa","AAA"]"#),
    ]));
    let ids = |folds_case| {
        let job_report = JobReport {
            folds_case,
            ..job_report(&asked.jobs[0], &RecipientReport::Sent, &[])
        };
        let said = body(&asked.reply.render(&[job_report]));
        let ids = said["msgids"].as_object().unwrap().clone();
        assert_eq!(ids.len(), 2, "a caller looks for what it wrote");
        (ids["aaa"].clone(), ids["AAA"].clone())
    };
    let (one, other) = ids(true);
    assert_eq!(one, other);
    // On other targets they are two users, with one message each.
    let (one, other) = ids(false);
    assert_ne!(one, other);
}

#[test]
fn every_length_is_checked_at_its_edge() {
    let object = |length: usize| format!(r#"{{"m":"{}"}}"#, "x".repeat(length - 8));
    let text = |length: usize| "x".repeat(length);
    let msg = |length: usize| format!(r#"{{"msg":"{}"}}"#, "x".repeat(length - 10));
    type Make<'a> = &'a dyn Fn(usize) -> String;
    type Case<'a> = (&'a str, usize, Make<'a>, &'a [(&'a str, &'a str)]);
    let image = ("type", "1");
    let url = ("body", r#"{"url":"http://x/1.png"}"#);
    let cases: [Case<'_>; 11] = [
        ("fromAccid", 32, &text, &[]),
        ("body", 5000, &msg, &[]),
        ("body", 5000, &object, &[("type", "100")]),
        ("msgDesc", 500, &text, &[image, url]),
        ("pushcontent", 500, &text, &[]),
        ("pushContent", 500, &text, &[]),
        ("payload", 2048, &object, &[]),
        ("ext", 1024, &object, &[]),
        ("yidunAntiCheating", 1024, &object, &[]),
        ("yidunAntiSpamExt", 1024, &object, &[]),
        ("env", 32, &text, &[]),
    ];
    for (name, most, make, also) in cases {
        let of = |length| {
            let value = make(length);
            with(&[also, &[(name, value.as_str())]].concat())
        };
        asked(of(most));
        let (code, desc) = refusal(of(most + 1));
        assert_eq!(
            (code, desc),
            (414, format!("{name} is longer than {most} characters"))
        );
    }
    // Counted in UTF-16 units, as the vendor does.
    asked(with(&[("pushcontent", &"😀".repeat(250))]));
    assert_eq!(refusal(with(&[("pushcontent", &"😀".repeat(251))])).0, 414);
    let list = |length| json!([text(length)]).to_string();
    asked(with(&[("toAccids", &list(32))]));
    assert_eq!(refusal(with(&[("toAccids", &list(33))])).0, 414);
}

#[test]
fn wrong_parameters_are_refused() {
    for (name, value) in [
        ("fromAccid", ""),
        ("toAccids", ""),
        ("toAccids", "[]"),
        ("toAccids", "aaa"),
        ("toAccids", r#"["aaa""#),
        ("toAccids", r#"[""]"#),
        ("toAccids", r#"[{}]"#),
        ("type", ""),
        ("type", "5"),
        ("type", "text"),
        ("body", ""),
        ("body", "hello"),
        ("body", "{}"),
        ("body", r#"["msg"]"#),
        ("option", "push"),
        ("option", r#"{"push":"maybe"}"#),
        ("payload", "text"),
        ("ext", "{"),
        ("yidunAntiCheating", "x"),
        ("msgSenderNoSense", "2"),
    ] {
        let (code, _) = refusal(with(&[(name, value)]));
        assert_eq!(code, 414, "{name}={value}");
    }
    for kind in ["1", "2", "3", "4", "6"] {
        assert_eq!(refusal(with(&[("type", kind), ("body", "{}")])).0, 414);
    }
    assert_eq!(refusal(&b"fromAccid=\xff"[..]).0, 414);
    assert_eq!(refusal("").0, 414);
}

#[test]
fn every_type_of_message_is_understood() {
    let content = |kind: &str, body: &str| {
        let asked = asked(with(&[("type", kind), ("body", body)]));
        let head = head(&asked.jobs[0]).unwrap();
        let native: Value = head.native.map_or(Value::Null, |native| {
            serde_json::from_str(native.get()).unwrap()
        });
        (head.content, native)
    };
    // The bodies of the vendor's "examples of message formats".
    let image = r#"{"name":"a.png","md5":"9894907e4ad9de4678091277509361f7","url":"http://x/a","ext":"png","w":6814,"h":2332,"size":388245}"#;
    let (Content::Image(file), native) = content("1", image) else {
        panic!("an image is expected");
    };
    assert_eq!(file.width, Some(6814));
    assert_eq!(file.height, Some(2332));
    assert_eq!(file.size, Some(388_245));
    assert_eq!(
        file.md5.as_deref(),
        Some("9894907e4ad9de4678091277509361f7")
    );
    assert_eq!(file.format.as_deref(), Some("png"));
    // A NetEase target gets it unchanged.
    assert_eq!(native, json!({"type": "1", "body": image}));

    let audio = r#"{"dur":4551,"md5":"x","url":"http://x/b","ext":"aac","size":9420}"#;
    let (Content::Audio(file), _) = content("2", audio) else {
        panic!("a sound is expected");
    };
    assert_eq!((file.duration_ms, file.md5), (Some(4551), None));
    let video = r#"{"dur":"8003","url":"http://x/c","w":360,"h":480,"ext":"mp4","size":16420}"#;
    let (Content::Video(file), _) = content("3", video) else {
        panic!("a video is expected");
    };
    assert_eq!((file.duration_ms, file.width), (Some(8003), Some(360)));
    let place = r#"{"title":"中国 浙江省","lng":120.1908686708565,"lat":30.18704515647036}"#;
    let (
        Content::Location {
            latitude, title, ..
        },
        _,
    ) = content("4", place)
    else {
        panic!("a place is expected");
    };
    assert_eq!(
        (latitude, title.as_str()),
        (30.187_045_156_470_36, "中国 浙江省")
    );
    assert!(matches!(
        content("6", r#"{"url":"http://x/d"}"#).0,
        Content::File(_)
    ));
    assert!(matches!(
        content("10", r#"{"msg":"tip"}"#).0,
        Content::Notice(_)
    ));
    let (Content::Custom(data), native) = content("100", r#"{"b": 1, "a":"x"}"#) else {
        panic!("data is expected");
    };
    assert_eq!((data.get(), native), (r#"{"b": 1, "a":"x"}"#, Value::Null));
    // A body with more than a text is kept whole if it can arrive whole.
    let more = r#"{"msg":"x","extra":1}"#;
    assert_eq!(content("0", more).1, json!({"type": "0", "body": more}));
}

#[test]
fn options_are_understood() {
    let option = r#"{"push":false,"roam":true,"history":false,"sendersync":true,"route":false,"badge":false,"needPushNick":true}"#;
    let asked = asked(with(&[
        ("option", option),
        ("pushcontent", "Look"),
        ("payload", r#"{"apns":1}"#),
        ("ext", r#"{"k":"v"}"#),
        ("useYidun", "0"),
        ("bid", "rules"),
        ("env", "test"),
        ("msgSenderNoSense", "1"),
        ("yidunAntiCheating", "{}"),
        ("msgDesc", "for other types only"),
    ]));
    let head = head(&asked.jobs[0]).unwrap();
    assert_eq!(
        serde_json::to_value(&head.options).unwrap(),
        json!({
            "unread": false,
            "sender_no_sense": true,
            "push": {"enabled": false, "text": "Look", "payload": {"apns": 1}},
            "route": {"enabled": false, "environment": "test"},
            "moderation": {"enabled": false, "business_id": "rules"},
            "extension": {"k": "v"},
        })
    );
    let native: Value = serde_json::from_str(head.native.unwrap().get()).unwrap();
    assert_eq!(native, json!({"option": option, "yidunAntiCheating": "{}"}));

    let of = |changes: &[(&str, &str)]| self::asked(with(changes)).jobs.remove(0);
    let quiet = of(&[
        ("option", r#"{"push":"true","badge":1}"#),
        ("useYidun", "1"),
    ]);
    assert!(quiet.native.is_none());
    assert_eq!(quiet.options.unread, Some(true));
    assert!(quiet.options.moderation.is_none());
    let unstored = of(&[("option", r#"{"persistent":false}"#)]);
    assert_eq!(unstored.options.online_only, Some(true));
    // JSON that is a text stays JSON for the vendor.
    let text = of(&[("ext", r#""plain""#)]);
    let extension = text.options.extension.unwrap();
    assert_eq!(crate::domain::message::plain_text(&extension), r#""plain""#);
    let both = of(&[("pushContent", "B")]);
    assert_eq!(both.options.push.unwrap().text.as_deref(), Some("B"));
}

#[test]
fn a_target_of_the_same_system_sends_what_was_written() {
    let target = crate::im::netease::target(
        &Settings::new("http://localhost", "key", Secret::new("secret")),
        &mut Vec::new(),
    );
    let target = target.unwrap();
    let image = r#"{"url":"http://x/1.png","md5":"no digest","sen":"nim","w":"10"}"#;
    let written = [
        ("type", "1"),
        ("body", image),
        ("msgDesc", "a picture"),
        ("option", r#"{"roam":false,"push":true,"sendersync":false}"#),
        ("pushcontent", "Look"),
        ("payload", r#"{"a": 1}"#),
        ("ext", r#""text""#),
        ("useYidun", "0"),
        ("bid", "rules"),
        ("yidunAntiSpamExt", r#"{"b":2}"#),
        ("env", "test"),
        ("msgSenderNoSense", "0"),
        ("fromAccid", "zhangsan"),
    ];
    let head = Arc::new(head(&asked(with(&written)).jobs[0]).unwrap());
    assert_eq!(target.check(&head), []);
    let sent = target.open(&head).request(&["aaa"]);
    let sent = Form::parse(&sent.body).unwrap();
    for (name, value) in written {
        assert_eq!(sent.get(name), Some(value), "{name}");
    }
    // A text needs no native fields for that.
    let head = Arc::new(self::head(&asked(PRINTED).jobs[0]).unwrap());
    let sent = target.open(&head).request(&["aaa", "bbb"]);
    let sent = Form::parse(&sent.body).unwrap();
    assert_eq!(sent.get("body"), Some(r#"{"msg":"hello"}"#));
    assert_eq!(sent.get("toAccids"), Some(r#"["aaa","bbb"]"#));
}

#[test]
fn a_request_id_is_the_key_of_the_job() {
    let key = |id: &str| {
        let request = request(PRINTED).header("requestid", id);
        request
            .asked(&NetEaseIngress, &endpoints())
            .jobs
            .remove(0)
            .key
    };
    assert_eq!(key("abc"), Some("abc".to_owned()));
    assert_eq!(key(""), None);
    assert_eq!(key(&"x".repeat(128)).unwrap(), "x".repeat(128));
    // Too long for a key, so its digest is used, the same each time.
    let long = key(&"x".repeat(129)).unwrap();
    assert_eq!((long.len(), key(&"x".repeat(129)).unwrap()), (64, long));
}

#[test]
fn a_wrong_signature_is_a_wrong_parameter() {
    let refused = |request: &Request| request.refusal(&NetEaseIngress, &endpoints());
    let wrong = request(PRINTED).header("checksum", "00");
    let expected = (200, json!({"code": 414, "desc": "checksum error"}));
    assert_eq!(refused(&wrong), expected);
    let late = Request {
        now_ms: NOW_MS + 301_000,
        ..request(PRINTED)
    };
    assert_eq!(refused(&late).1["desc"], "CurTime is expired");
    let open = open_endpoint(&NetEaseIngress);
    let asked = Request::new(PATHS[0], PRINTED).asked(&NetEaseIngress, &[open]);
    assert_eq!(asked.nonce, None);
}

#[test]
fn refusals_of_ours_are_in_the_systems_codes() {
    let said = |refusal: Refusal<'_>| {
        let spoken = NetEaseIngress.refuse(&refusal);
        assert_eq!(spoken.status(), 200);
        body(&spoken)
    };
    let block = Duration::from_secs(60);
    let problems = [
        Problem::new("message.text", "too long"),
        Problem::new("x", "y"),
    ];
    assert_eq!(
        said(Refusal::Problems(&problems)),
        json!({"code": 414, "desc": "message.text: too long; x: y"})
    );
    assert_eq!(said(Refusal::TooOften { block })["code"], 416);
    assert_eq!(said(Refusal::Replayed)["code"], 414);
    assert_eq!(said(Refusal::Conflict)["code"], 414);
    assert_eq!(said(Refusal::Forbidden("no"))["code"], 403);
    assert_eq!(said(Refusal::Unavailable("no"))["code"], 503);
    let (rate, blocked) = NetEaseIngress.calls().unwrap();
    assert_eq!(rate.to_string(), "120/min burst 120 per call");
    assert_eq!(blocked, block);
}

/// Every request can be answered, whatever the results.
fn tell(asked: &DropInRequest, reports: &[RecipientReport]) -> Value {
    let job_report = JobReport {
        job: JobId::of("shop", "k"),
        client_msg_no: "k".to_owned(),
        accepted_at_ms: NOW_MS,
        folds_case: false,
        everybody: None,
        recipients: reports
            .iter()
            .enumerate()
            .map(|(index, report)| (format!("u{index}"), report.clone()))
            .collect(),
    };
    body(&asked.reply.render(&[job_report]))
}

proptest! {
    #[test]
    fn any_body_is_answered_in_the_systems_manner(
        bytes in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            "(fromAccid|toAccids|type|body|option|ext|&|=|%|[+]|[{]|[}]|\\[|\\]|\"|0|msg|:|,){0,40}"
                .prop_map(String::into_bytes),
        ],
    ) {
        let mut endpoints = endpoints();
        endpoints[0].secret = Some(Secret::new(SECRET));
        match request(bytes).read_request(&NetEaseIngress, &endpoints) {
            Err(spoken) => {
                prop_assert_eq!(spoken.status(), 200);
                prop_assert_eq!(&body(&spoken)["code"], &json!(414));
            }
            Ok(asked) => prop_assert_eq!(&tell(&asked, &[RecipientReport::Sent])["code"], &json!(200)),
        }
    }

    #[test]
    fn any_field_may_hold_anything(
        name in "fromAccid|toAccids|type|body|option|pushcontent|payload|ext|useYidun|returnMsgid|env",
        value in ".{0,60}",
    ) {
        match request(with(&[(&name, &value)])).read_request(&NetEaseIngress, &endpoints()) {
            Err(spoken) => prop_assert_eq!(&body(&spoken)["code"], &json!(414)),
            Ok(asked) => {
                let said = tell(&asked, &[failed("x", "y")]);
                prop_assert_eq!(&said["code"], &json!(403));
                prop_assert_eq!(&tell(&asked, &[])["code"], &json!(200));
            }
        }
    }
}
