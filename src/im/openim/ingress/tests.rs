//! Checks the requests that the documentation shows, who may send them, and the answers.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::domain::accounts::Accounts;
use crate::domain::fields::Problem;
use crate::domain::ids::JobId;
use crate::domain::message::Content;
use crate::domain::outcome::{Outcome, RefusalKind};
use crate::im::ingress::fixture::{
    Call as Request, NOW_MS, answer, any_json, body, endpoint, failed, head, job_report,
    open_endpoint, recipients,
};

use crate::im::openim::Session;
use crate::ports::Target;
use crate::secret::Secret;

/// The documentation's example, as printed.
const PRINTED: &str = r#"{
"recvIDs": [
"9948077346",
"9371245179"
],
"sendID": "3473643418",
"senderNickname": "Alice",
"senderFaceURL": "http://nvpydodr.ae/ylyqu",
"senderPlatformID": 2,
"content": {
"content": "hello!!"
},
"contentType": 101,
"sessionType": 1,
"isOnlineOnly": false,
"notOfflinePush": false,
"sendTime": 1340619319058,
"offlinePushInfo": {
"title": "1213",
"desc": "in eiusmod magna",
"ex": "ex",
"iOSPushSound": "in Duis ut sunt nostrud",
"iOSBadgeCount": true
},
"ex": "ex",
"isSendAll": true
}"#;

const ALL_ADMINS: &str = "imAdmin";
const SECRET: &str = "openIM123";

fn endpoints() -> [DropInEndpoint; 1] {
    [endpoint(&OpenImIngress, ALL_ADMINS, SECRET)]
}

fn call(path: &'static str, body: impl Into<Vec<u8>>) -> Request {
    let token = token::issue(&endpoints()[0], ALL_ADMINS, 10, NOW_MS);
    Request::new(path, body)
        .header("operationid", "1646445464564")
        .header("token", &token)
}

fn asked(path: &'static str, body: &Value) -> DropInRequest {
    call(path, body.to_string()).asked(&OpenImIngress, &endpoints())
}

/// A refusal; checks its format too.
fn refused(call: &Request) -> (u16, u64, String) {
    let (status, said) = call.refusal(&OpenImIngress, &endpoints());
    let names: Vec<_> = said.as_object().unwrap().keys().collect();
    assert_eq!(names, ["errCode", "errDlt", "errMsg"]);
    let (code, name) = (said["errCode"].as_u64().unwrap(), &said["errMsg"]);
    let end = format!(": [{code}]{}", name.as_str().unwrap());
    let detail = said["errDlt"].as_str().unwrap();
    assert!(detail.ends_with(&end), "{said}");
    (status, code, detail.trim_end_matches(&end).to_owned())
}

fn refusal(path: &'static str, body: &Value) -> (u16, u64) {
    let (status, code, _) = refused(&call(path, body.to_string()));
    (status, code)
}

/// A small body with some fields set, at JSON pointers.
fn with(changes: &[(&str, Value)]) -> Value {
    let mut body = json!({
        "recvIDs": ["a", "b"],
        "recvID": "a",
        "sendID": "s",
        "content": {"content": "hello"},
        "contentType": 101,
        "sessionType": 1,
    });
    for (pointer, value) in changes {
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        body.pointer_mut(parent).unwrap()[name] = value.clone();
    }
    body
}

#[test]
fn the_documented_request_is_understood_as_printed() {
    let mut endpoints = endpoints();
    let call = call(BATCH, PRINTED);
    // It is for all users, even with a list of recipients.
    let (status, said) = call.refusal(&OpenImIngress, &endpoints);
    assert_eq!((status, &said["errCode"]), (200, &json!(1002)));
    endpoints[0].send_all = true;
    let asked = call.asked(&OpenImIngress, &endpoints);
    let [wanted] = &asked.jobs[..] else {
        panic!("one job is expected");
    };
    assert!(wanted.audience.all && wanted.audience.users.is_none());
    // The `operationID` is only for tracing.
    assert_eq!(wanted.key, None);
    assert_eq!(wanted.trace.as_deref(), Some("1646445464564"));
    assert_eq!(wanted.sender.as_deref(), Some("3473643418"));
    let head = head(wanted).unwrap();
    assert!(matches!(head.content, Content::Text(text) if text == "hello!!"));
    assert_eq!(
        serde_json::to_value(&head.options).unwrap(),
        json!({
            "push": {
                "title": "1213", "text": "in eiusmod magna", "payload": "ex",
                "sound": "in Duis ut sunt nostrud", "badge": true,
            },
            "extension": "ex",
        })
    );
    let native: Value = serde_json::from_str(head.native.unwrap().get()).unwrap();
    assert_eq!(
        native,
        json!({
            "senderNickname": "Alice",
            "senderFaceURL": "http://nvpydodr.ae/ylyqu",
            "senderPlatformID": 2,
            "sessionType": 1,
        })
    );
}

/// An answer about all users names none; it has their number and their results.
#[test]
fn a_call_for_all_users_is_answered_with_their_accounts() {
    let mut endpoints = endpoints();
    endpoints[0].send_all = true;
    let asked = call(BATCH, PRINTED).asked(&OpenImIngress, &endpoints);
    let said = |is_complete, sent, failed| {
        let accounts = Accounts {
            total: 1000,
            sent,
            failed,
            ..Accounts::default()
        };
        let job_report = JobReport {
            everybody: Some(AllUsersReport {
                is_complete,
                accounts,
            }),
            ..job_report(&asked.jobs[0], &RecipientReport::Pending, &[])
        };
        body(&asked.reply.render(&[job_report]))
    };
    let data = |sent, failed, pending| {
        json!({"results": null, "failedUserIDs": null, "accounts":
            {"total": 1000, "sent": sent, "failed": failed, "pending": pending}})
    };
    for (is_complete, sent, failed) in [(true, 1000, 0), (true, 990, 10), (false, 5, 20)] {
        let said = said(is_complete, sent, failed);
        assert_eq!(said["errCode"], 0);
        assert_eq!(said["data"], data(sent, failed, 1000 - sent - failed));
    }
    // No recipient got it, and none is pending.
    let none = said(true, 0, 1000);
    assert_eq!(none["errCode"], 500);
    assert_eq!(
        none["errDlt"],
        "none of 1000 users got the message: [500]ServerInternalError"
    );
}

#[test]
fn the_operation_id_is_the_key_where_the_app_says_so() {
    let mut endpoints = endpoints();
    endpoints[0].id_is_key = true;
    let asked = call(BATCH, with(&[]).to_string()).asked(&OpenImIngress, &endpoints);
    assert_eq!(asked.jobs[0].key.as_deref(), Some("1646445464564"));
}

#[test]
fn the_documented_answer_is_given() {
    let listed = PRINTED.replace(r#""isSendAll": true"#, r#""isSendAll": false"#);
    let asked = call(BATCH, listed).asked(&OpenImIngress, &endpoints());
    assert_eq!(recipients(&asked.jobs[0]), ["9948077346", "9371245179"]);
    let spoken = answer(&asked, &RecipientReport::Sent, &[]);
    assert_eq!(spoken.status(), 200);
    let job_report = job_report(&asked.jobs[0], &RecipientReport::Sent, &[]);
    let client = job_report.message_id_hex("");
    // The sample, with Fanwise's time and ids in place of its own.
    let expected = format!(
        r#"{{"errCode":0,"errMsg":"","errDlt":"","data":{{"results":[{{"serverMsgID":"{}","clientMsgID":"{client}","sendTime":{NOW_MS},"recvID":"9948077346"}},{{"serverMsgID":"{}","clientMsgID":"{client}","sendTime":{NOW_MS},"recvID":"9371245179"}}],"failedUserIDs":null}}}}"#,
        job_report.message_id_hex("9948077346"),
        job_report.message_id_hex("9371245179"),
    );
    assert_eq!(spoken.body(), expected.as_bytes());
    assert_eq!(client.len(), 32);
}

#[test]
fn the_documented_failure_is_given() {
    let asked = asked(SINGLE, &with(&[]));
    let spoken = answer(&asked, &failed("err_1004", ""), &[]);
    let said = body(&spoken);
    assert_eq!(said["errCode"], 1004);
    assert_eq!(said["errMsg"], "RecordNotFoundError");
    assert_eq!(said["errDlt"], "failed: [1004]RecordNotFoundError");
    assert_eq!(said.as_object().unwrap().len(), 3);
    // The sample has no text before the code, and neither has a backend's error that says the same.
    let name = "RecordNotFoundError";
    for said in [
        "",
        name,
        &format!("{name}: [1004]{name}"),
        &format!(": [1004]{name}"),
    ] {
        let spoken = answer(&asked, &failed("err_1004", said), &[]);
        let bare = Refused::new(1004, said).spoken();
        assert_eq!(
            bare.body(),
            r#"{"errCode":1004,"errMsg":"RecordNotFoundError","errDlt":": [1004]RecordNotFoundError"}"#,
            "{said}"
        );
        assert!(said.is_empty() || spoken.body() == bare.body(), "{said}");
    }
}

#[test]
fn a_batch_names_who_failed_and_succeeds() {
    let asked = asked(BATCH, &with(&[]));
    let said = body(&answer(
        &asked,
        &RecipientReport::Pending,
        &[("b", failed("err_1302", "blocked"))],
    ));
    assert_eq!(said["errCode"], 0);
    assert_eq!(said["data"]["results"].as_array().unwrap().len(), 1);
    assert_eq!(said["data"]["failedUserIDs"], json!(["b"]));
    let said = body(&answer(&asked, &failed("err_1302", ""), &[]));
    assert_eq!(said["errCode"], 0);
    assert_eq!(
        said["data"],
        json!({"results": null, "failedUserIDs": ["a", "b"]})
    );
}

#[test]
fn a_single_send_says_why_it_failed() {
    let asked = asked(SINGLE, &with(&[]));
    assert_eq!(recipients(&asked.jobs[0]), ["a"]);
    let said = body(&answer(&asked, &RecipientReport::Sent, &[]));
    let mut names: Vec<_> = said["data"].as_object().unwrap().keys().collect();
    names.sort();
    assert_eq!(names, ["clientMsgID", "sendTime", "serverMsgID"]);
    let code = |report| {
        body(&answer(&asked, &report, &[]))["errCode"]
            .as_u64()
            .unwrap()
    };
    assert_eq!(code(failed("err_1302", "blocked")), 1302);
    assert_eq!(code(failed("unregister", "")), 1004);
    assert_eq!(code(failed("reason_4", "")), 1001);
    let lost = RecipientReport::Ended {
        outcome: Outcome::Uncertain,
        class: Some(Class::Uncertain),
        kind: RefusalKind::Other,
        code: "timeout".to_owned(),
        text: String::new(),
    };
    assert_eq!(code(lost), 500);
}

#[test]
fn nobody_calls_without_an_operation_id_or_a_token() {
    let whole = call(BATCH, with(&[]).to_string());
    let of = |call: Request| {
        let (status, code, detail) = refused(&call);
        assert_eq!(status, 200);
        (code, detail)
    };
    let missing = of(whole.clone().without("operationid"));
    assert_eq!(missing, (1001, "header must have operationID".to_owned()));
    let missing = of(whole.clone().without("token"));
    assert_eq!(missing, (1001, "header must have token".to_owned()));
    for path in [ADMIN_TOKEN, USER_TOKEN] {
        assert_eq!(of(Request::new(path, "{}")).0, 1001);
    }
    assert_eq!(of(whole.clone().header("token", "x")).0, 1503);
    assert_eq!(of(whole.clone().header("token", "e30.e30.x")).0, 1503);
    let foreign = endpoint(&OpenImIngress, ALL_ADMINS, "another");
    let foreign = token::issue(&foreign, ALL_ADMINS, 10, NOW_MS);
    assert_eq!(of(whole.clone().header("token", &foreign)).0, 1505);
    let late = Request {
        now_ms: NOW_MS + token::LIFETIME_SECONDS * 1000,
        ..whole.clone()
    };
    assert_eq!(of(late).0, 1501);
    let early = Request {
        now_ms: NOW_MS - 1000,
        ..whole.clone()
    };
    assert_eq!(of(early).0, 1504);
    let user = token::issue(&endpoints()[0], "ana", 1, NOW_MS);
    assert_eq!(of(whole.clone().header("token", &user)).0, 1002);
    // A body that cannot be read is refused before the permission is checked.
    let unbound = call(BATCH, "{}").header("token", &user);
    assert_eq!(refused(&unbound).0, 400);
    let open = [open_endpoint(&OpenImIngress)];
    let asked = whole.without("token").asked(&OpenImIngress, &open);
    assert_eq!(asked.endpoint, 0);
}

#[test]
fn tokens_are_given_to_who_knows_the_secret() {
    let login = |path, body: Value| {
        let spoken = call(path, body.to_string())
            .without("token")
            .read_request(&OpenImIngress, &endpoints())
            .err()
            .unwrap();
        assert_eq!(spoken.status(), 200);
        self::body(&spoken)
    };
    for (path, user) in [
        (ADMIN_TOKEN, json!({"secret": SECRET, "userID": "imAdmin"})),
        (
            USER_TOKEN,
            json!({"secret": SECRET, "platformID": 1, "userID": "imAdmin"}),
        ),
    ] {
        let said = login(path, user);
        assert_eq!(said["errCode"], 0);
        assert_eq!(said["data"]["expireTimeSeconds"], 7_776_000);
        let token = said["data"]["token"].as_str().unwrap();
        let send = call(SINGLE, with(&[]).to_string()).header("token", token);
        send.asked(&OpenImIngress, &endpoints());
    }
    let said = login(
        USER_TOKEN,
        json!({"secret": SECRET, "platformID": 1, "userID": "ana"}),
    );
    let token = said["data"]["token"].as_str().unwrap();
    let send = call(SINGLE, with(&[]).to_string()).header("token", token);
    assert_eq!(refused(&send).1, 1002);
    for (path, body, code) in [
        (
            ADMIN_TOKEN,
            json!({"secret": "openIM12", "userID": "imAdmin"}),
            1002,
        ),
        (ADMIN_TOKEN, json!({"userID": "imAdmin"}), 1002),
        (
            ADMIN_TOKEN,
            json!({"secret": SECRET, "userID": "ana"}),
            1001,
        ),
        (USER_TOKEN, json!({"secret": SECRET}), 1001),
        (USER_TOKEN, json!({"secret": "", "userID": "imAdmin"}), 1002),
    ] {
        assert_eq!(login(path, body)["errCode"], code);
    }
    assert_eq!(refused(&call(ADMIN_TOKEN, "[]")).0, 400);
}

#[test]
fn a_token_is_for_the_app_whose_secret_it_came_by() {
    let shop = endpoint(&OpenImIngress, ALL_ADMINS, SECRET);
    let news = DropInEndpoint {
        app: "news".to_owned(),
        key: Some("newsAdmin".to_owned()),
        ..shop.clone()
    };
    let endpoints = [shop, news];
    let login = json!({"secret": SECRET, "userID": "newsAdmin"});
    let call = call(ADMIN_TOKEN, login.to_string());
    let spoken = call.read_request(&OpenImIngress, &endpoints).err().unwrap();
    let token = body(&spoken)["data"]["token"].as_str().unwrap().to_owned();
    let send = Request::new(SINGLE, with(&[]).to_string())
        .header("operationid", "1")
        .header("token", &token);
    assert_eq!(send.asked(&OpenImIngress, &endpoints).endpoint, 1);
}

#[test]
fn what_cannot_be_bound_is_a_bad_request() {
    for (path, pointer, value) in [
        (BATCH, "/sendID", json!(null)),
        (BATCH, "/sendID", json!("")),
        (BATCH, "/sendID", json!([])),
        (BATCH, "/recvIDs", json!(null)),
        (BATCH, "/recvIDs", json!("a")),
        (BATCH, "/recvIDs", json!([{}])),
        (BATCH, "/content", json!(null)),
        (BATCH, "/content", json!("hello")),
        (BATCH, "/content", json!([])),
        (BATCH, "/contentType", json!(0)),
        (BATCH, "/contentType", json!("text")),
        (BATCH, "/sessionType", json!(null)),
        (BATCH, "/sessionType", json!(3)),
        (BATCH, "/sessionType", json!(2)),
        (BATCH, "/isSendAll", json!("perhaps")),
        (BATCH, "/notOfflinePush", json!(3)),
        (BATCH, "/offlinePushInfo", json!([])),
        (BATCH, "/sendTime", json!("now")),
        (BATCH, "/ex", json!({})),
        (SINGLE, "/recvID", json!(null)),
    ] {
        let body = with(&[(pointer, value.clone())]);
        assert_eq!(refusal(path, &body), (400, 1001), "{pointer} {value}");
    }
    for body in ["", "[]", "{", "\"x\""] {
        let (status, code, _) = refused(&call(BATCH, body));
        assert_eq!((status, code), (400, 1001));
    }
}

#[test]
fn wrong_arguments_are_refused() {
    for changes in [
        &[("/contentType", json!(999))][..],
        &[("/content", json!({}))],
        &[("/content", json!({"content": []}))],
        &[("/sessionType", json!(7))],
        &[("/sessionType", json!(2)), ("/groupID", json!("g"))],
        &[("/contentType", json!(110))],
        &[
            ("/contentType", json!(102)),
            ("/content", json!({"sourcePicture": {}})),
        ],
    ] {
        assert_eq!(refusal(BATCH, &with(changes)), (200, 1001), "{changes:?}");
    }
}

#[test]
fn flags_are_flags_however_they_are_written() {
    for (word, silent) in [
        (json!(true), true),
        (json!("true"), true),
        (json!(1), true),
        (json!("1"), true),
        (json!(false), false),
        (json!("false"), false),
        (json!(0), false),
        (json!(null), false),
    ] {
        let asked = asked(
            BATCH,
            &with(&[
                ("/notOfflinePush", word.clone()),
                ("/isOnlineOnly", word.clone()),
                (
                    "/offlinePushInfo",
                    json!({"title": "t", "iOSBadgeCount": word}),
                ),
            ]),
        );
        let options = serde_json::to_value(&asked.jobs[0].options).unwrap();
        let badge = word.as_bool().or(Some(false)).filter(|_| !word.is_null());
        let expected = match (silent, badge) {
            // The other fields are then ignored.
            (true, _) => json!({"online_only": true, "push": {"enabled": false}}),
            (false, Some(_)) => json!({"push": {"title": "t", "badge": false}}),
            (false, None) => json!({"push": {"title": "t"}}),
        };
        assert_eq!(options, expected, "{word}");
    }
}

#[test]
fn recipients_may_be_left_out_where_they_mean_nothing() {
    let mut endpoints = endpoints();
    endpoints[0].send_all = true;
    for missing in [json!(null), json!([]), json!(["ignored"])] {
        let all = with(&[("/recvIDs", missing.clone()), ("/isSendAll", json!("true"))]);
        let asked = call(BATCH, all.to_string()).asked(&OpenImIngress, &endpoints);
        assert!(asked.jobs[0].audience.all);
        let group = with(&[
            ("/recvIDs", missing),
            ("/sessionType", json!(3)),
            ("/groupID", json!("g1")),
        ]);
        let asked = self::asked(BATCH, &group);
        assert_eq!(recipients(&asked.jobs[0]), ["g1"]);
        assert!(asked.jobs[0].audience.users.is_none());
        let said = body(&answer(&asked, &RecipientReport::Sent, &[]));
        assert_eq!(said["data"]["results"][0]["recvID"], "g1");
    }
    // For a group `isSendAll` has no effect.
    let group = with(&[
        ("/isSendAll", json!(true)),
        ("/sessionType", json!(3)),
        ("/groupID", json!("g1")),
    ]);
    let asked = call(BATCH, group.to_string()).asked(&OpenImIngress, &endpoints);
    assert!(!asked.jobs[0].audience.all);
    // A list without recipients succeeds immediately.
    let nobody = call(BATCH, with(&[("/recvIDs", json!([]))]).to_string());
    let spoken = nobody
        .read_request(&OpenImIngress, &endpoints)
        .err()
        .unwrap();
    assert_eq!(
        body(&spoken),
        json!({"errCode": 0, "errMsg": "", "errDlt": "", "data": {"results": null, "failedUserIDs": null}})
    );
}

#[test]
fn the_number_of_recipients_and_mentions_is_bounded() {
    let mut endpoints = endpoints();
    endpoints[0].limits.insert("recipients_max", 2);
    call(BATCH, with(&[]).to_string()).asked(&OpenImIngress, &endpoints);
    let three = with(&[("/recvIDs", json!(["a", "b", "c"]))]);
    let (status, said) = call(BATCH, three.to_string()).refusal(&OpenImIngress, &endpoints);
    assert_eq!((status, &said["errCode"]), (200, &json!(1001)));
    let mention = |count: usize| {
        let users: Vec<_> = (0..count).map(|n| format!("u{n}")).collect();
        let content = json!({"text": "hi", "atUserList": users});
        with(&[("/contentType", json!(106)), ("/content", content)])
    };
    asked(BATCH, &mention(1000));
    assert_eq!(refusal(BATCH, &mention(1001)), (200, 1001));
}

#[test]
fn every_content_is_understood() {
    let of = |content_type: i32, content: Value| {
        let body = with(&[
            ("/contentType", json!(content_type)),
            ("/content", content.clone()),
            ("/ex", json!("e")),
        ]);
        let head = head(&asked(BATCH, &body).jobs[0]).unwrap();
        let native: Value = head.native.map_or(Value::Null, |native| {
            let mut native: Value = serde_json::from_str(native.get()).unwrap();
            // Whatever the content is, the session is the caller's.
            native.as_object_mut().unwrap().remove("sessionType");
            match native == json!({}) {
                true => Value::Null,
                false => native,
            }
        });
        if !native.is_null() {
            let whole = json!({"contentType": content_type, "content": content});
            assert_eq!(native, whole);
        }
        (head.content, !native.is_null())
    };
    let (content, native) = of(101, json!("{\"content\":\"in a text\"}"));
    assert!(matches!(content, Content::Text(text) if text == "in a text"));
    assert!(!native);
    let part = |url| json!({"uuid": "x", "type": "image/png", "size": 1, "width": 2, "height": 3, "url": url});
    let picture = json!({
        "sourcePicture": part("http://x/1"), "bigPicture": part("http://x/1"),
        "snapshotPicture": part("http://x/small"),
    });
    let (Content::Image(file), true) = of(102, picture) else {
        panic!("an image is expected");
    };
    assert_eq!((file.url.as_str(), file.width), ("http://x/1", Some(2)));
    assert_eq!(file.format.as_deref(), Some("png"));
    assert_eq!(file.cover.as_deref(), Some("http://x/small"));
    let voice =
        json!({"sourceUrl": "http://x/2", "duration": 4, "dataSize": 5, "soundType": "mp3"});
    let (Content::Audio(file), true) = of(103, voice) else {
        panic!("a sound is expected");
    };
    assert_eq!((file.duration_ms, file.size), (Some(4000), Some(5)));
    let video = json!({"videoUrl": "http://x/3", "duration": "4", "snapshotUrl": "http://x/s", "snapshotWidth": 6});
    let (Content::Video(file), true) = of(104, video) else {
        panic!("a video is expected");
    };
    assert_eq!((file.duration_ms, file.width), (Some(4000), Some(6)));
    let (Content::File(file), true) =
        of(105, json!({"sourceUrl": "http://x/4", "fileName": "a.pdf"}))
    else {
        panic!("a file is expected");
    };
    assert_eq!(file.name.as_deref(), Some("a.pdf"));
    let at = json!({"text": "hi", "atUserList": ["a", "AtAllTag"], "isAtSelf": false});
    let (
        Content::Mention {
            users, everybody, ..
        },
        true,
    ) = of(106, at)
    else {
        panic!("a mention is expected");
    };
    assert_eq!((users, everybody), (vec!["a".to_owned()], true));
    let (Content::Custom(data), native) = of(110, json!({"data": "{\"a\":1}", "description": ""}))
    else {
        panic!("data is expected");
    };
    assert_eq!((data.get(), native), (r#"{"a":1}"#, false));
    let (Content::Custom(data), true) = of(110, json!({"data": "plain", "extension": "e"})) else {
        panic!("data is expected");
    };
    assert_eq!(data.get(), r#""plain""#);
    assert_eq!(
        of(114, json!({"text": "re", "quoteMessage": {}})).0.kind(),
        "text"
    );
    assert_eq!(of(118, json!({"content": "# md"})).0.kind(), "text");
}

/// Clients that read `ex` must not find a value there that the caller did not write.
#[test]
fn a_message_without_ex_goes_out_without_one() {
    let target = target(Session::Single);
    for (given, sent) in [(json!(null), ""), (json!(""), ""), (json!("e"), "e")] {
        let asked = asked(BATCH, &with(&[("/ex", given)]));
        let head = Arc::new(head(&asked.jobs[0]).unwrap());
        assert_eq!(target.check(&head), []);
        let request = target.open(&head).request(&["a"]);
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        assert_eq!(body["ex"], sent);
    }
}

fn target(session: Session) -> impl Target {
    let mut settings = Settings::new("http://localhost");
    settings.secret = Some(Secret::new(SECRET));
    settings.session = session;
    crate::im::openim::target(&settings, &mut Vec::new()).unwrap()
}

/// The caller's session type wins over the target's setting.
#[test]
fn a_message_goes_to_the_session_that_the_caller_names() {
    for session in [Session::Single, Session::Notification] {
        let target = target(session);
        for named in [1, 4] {
            let written = with(&[("/sessionType", json!(named))]);
            let asked = asked(BATCH, &written);
            let head = Arc::new(head(&asked.jobs[0]).unwrap());
            assert_eq!(target.check(&head), []);
            let sent = target.open(&head).request(&["a"]);
            let sent: Value = serde_json::from_slice(&sent.body).unwrap();
            assert_eq!(sent["sessionType"], named, "{session:?}");
        }
        // A group and a notice have a session type of their own.
        let group = with(&[("/sessionType", json!(3)), ("/groupID", json!("g1"))]);
        let head = Arc::new(head(&asked(BATCH, &group).jobs[0]).unwrap());
        assert_eq!(target.check(&head), []);
        let sent = target.open(&head).request(&["g1"]);
        let sent: Value = serde_json::from_slice(&sent.body).unwrap();
        assert_eq!(sent["sessionType"], 3);
    }
    let group = with(&[("/sessionType", json!(3)), ("/groupID", json!("g1"))]);
    let mut head = head(&asked(BATCH, &group).jobs[0]).unwrap();
    head.native = RawValue::from_string(r#"{"sessionType":4}"#.to_owned()).ok();
    let problems = target(Session::Single).check(&head);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].field, "message.native.sessionType");
}

#[test]
fn a_target_of_the_same_system_sends_what_was_written() {
    let target = target(Session::Single);
    let part = json!({"uuid": "x", "type": "image/png", "size": 1, "width": 2, "height": 3, "url": "http://x/1"});
    let written = with(&[
        ("/contentType", json!(102)),
        (
            "/content",
            json!({"sourcePicture": part, "bigPicture": part, "snapshotPicture": part}),
        ),
        ("/senderNickname", json!("Alice")),
        ("/senderFaceURL", json!("http://x/face")),
        ("/senderPlatformID", json!(2)),
        ("/isOnlineOnly", json!(true)),
        (
            "/offlinePushInfo",
            json!({"title": "t", "desc": "d", "ex": "e", "iOSPushSound": "s", "iOSBadgeCount": true}),
        ),
        ("/ex", json!("{\"k\":1}")),
    ]);
    let head = Arc::new(head(&asked(SINGLE, &written).jobs[0]).unwrap());
    assert_eq!(target.check(&head), []);
    let sent = target.open(&head).request(&["a"]);
    let sent: Value = serde_json::from_slice(&sent.body).unwrap();
    let mut written = written;
    written.as_object_mut().unwrap().remove("recvIDs");
    assert_eq!(sent, written);
}

#[test]
fn a_notice_goes_to_users() {
    let notice = with(&[
        ("/contentType", json!(1400)),
        (
            "/content",
            json!({"notificationName": "n", "text": "t", "notificationType": 1}),
        ),
        ("/sessionType", json!(4)),
    ]);
    let asked = asked(BATCH, &notice);
    assert_eq!(recipients(&asked.jobs[0]), ["a", "b"]);
    assert!(matches!(head(&asked.jobs[0]).unwrap().content, Content::Notice(text) if text == "t"));
}

#[test]
fn refusals_of_ours_are_in_the_systems_codes() {
    let said = |refusal: Refusal<'_>| {
        let spoken = OpenImIngress.refuse(&refusal);
        let code = body(&spoken)["errCode"].as_u64().unwrap();
        (spoken.status().as_u16(), code)
    };
    let problems = [Problem::new("message.text", "too long")];
    assert_eq!(said(Refusal::Problems(&problems)), (200, 1001));
    assert_eq!(said(Refusal::Conflict), (200, 1003));
    assert_eq!(said(Refusal::Replayed), (200, 1001));
    assert_eq!(said(Refusal::Forbidden("no")), (200, 1002));
    assert_eq!(said(Refusal::Unavailable("no")), (503, 500));
    let block = std::time::Duration::from_secs(7);
    assert_eq!(said(Refusal::TooOften { block }), (429, 429));
    let spoken = OpenImIngress.refuse(&Refusal::TooOften { block });
    assert_eq!(spoken.headers()["retry-after"], "7");
}

proptest! {
    #[test]
    fn any_body_is_answered_in_the_systems_manner(
        path in prop::sample::select(vec![BATCH, SINGLE, ADMIN_TOKEN, USER_TOKEN]),
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        token in "[ -~]{0,40}",
    ) {
        let spoken = call(path, bytes).header("token", &token).read_request(&OpenImIngress, &endpoints());
        let said = body(&spoken.err().unwrap());
        prop_assert!(said["errCode"].as_u64().unwrap() > 1000);
    }

    #[test]
    fn any_field_may_hold_anything(
        path in prop::sample::select(vec![BATCH, SINGLE]),
        pointer in prop::sample::select(vec![
            "/recvIDs", "/recvID", "/sendID", "/content", "/content/content", "/contentType",
            "/sessionType", "/groupID", "/offlinePushInfo", "/ex", "/isSendAll", "/sendTime",
            "/senderPlatformID",
        ]),
        content_type in prop::sample::select(vec![101, 102, 103, 104, 105, 106, 110, 114, 118, 1400]),
        value in any_json(),
    ) {
        let body = with(&[("/contentType", json!(content_type)), (pointer, value)]);
        match call(path, body.to_string()).read_request(&OpenImIngress, &endpoints()) {
            Err(spoken) => {
                let code = self::body(&spoken)["errCode"].as_u64().unwrap();
                prop_assert!(code == 0 || code == 1001 || code == 1002);
            }
            Ok(asked) => {
                let job_report = JobReport {
                    job: JobId::of("shop", "k"),
                    client_msg_no: "k".to_owned(),
                    accepted_at_ms: NOW_MS,
                    folds_case: false,
                    everybody: None,
                    recipients: vec![("a".to_owned(), RecipientReport::Sent)],
                };
                let said = self::body(&asked.reply.render(&[job_report]));
                prop_assert_eq!(&said["errCode"], &json!(0));
            }
        }
    }
}
