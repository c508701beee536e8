//! Tests the rules of OpenIM.

use std::time::Instant;

use serde_json::{Value, json};

use super::super::{OpenimRules, Settings};
use super::{BOUND, Mock, Reply, Sent, start, with};

const SEND: &str = "/msg/send_msg";
const BATCH: &str = "/msg/batch_send_msg";
const PROBE: &str = "/msg/check_msg_is_send_success";

/// A mock with these settings, and the admin's token.
struct Im {
    mock: Mock,
    token: String,
}

async fn openim(rules: Value) -> Im {
    openim_with(rules, Settings::default()).await
}

async fn openim_with(rules: Value, settings: Settings) -> Im {
    let openim: OpenimRules = serde_json::from_value(rules).unwrap();
    let mock = start(Settings { openim, ..settings }).await;
    let token = admin_token(&mock).await;
    Im { mock, token }
}

async fn admin_token(mock: &Mock) -> String {
    let login = json!({ "secret": "openIM123", "userID": "imAdmin" }).to_string();
    let request = Sent::post("/auth/get_admin_token", &login).with("operationID", "login");
    token_of(&mock.send(&request).await)
}

fn token_of(reply: &Reply) -> String {
    reply.json()["data"]["token"].as_str().unwrap().to_owned()
}

impl Im {
    async fn call(&self, path: &str, operation: &str, body: &Value) -> Reply {
        let body = body.to_string();
        self.mock.send(&self.request(path, operation, &body)).await
    }

    fn request<'a>(&'a self, path: &'a str, operation: &'a str, body: &str) -> Sent<'a> {
        Sent::post(path, body)
            .with("operationID", operation)
            .with("token", &self.token)
    }

    /// The errCode and HTTP status of a call. Checks that it accepts a message exactly if the code
    /// is 0.
    async fn code(&self, path: &str, body: &Value) -> (i64, u16) {
        let before = self.mock.handle.stats().accepted;
        let reply = self.call(path, "op", body).await;
        let code = reply.json()["errCode"].as_i64().unwrap();
        let accepted = self.mock.handle.stats().accepted - before;
        assert_eq!(accepted > 0, code == 0, "{body} got {}", reply.body);
        (code, reply.status)
    }

    async fn status(&self, operation: &str) -> Value {
        let reply = self.call(PROBE, operation, &json!({})).await;
        reply.json()["data"]["status"].clone()
    }
}

fn single(uid: &str) -> Value {
    json!({
        "recvID": uid, "sendID": "news", "content": { "content": "hello" },
        "contentType": 101, "sessionType": 1,
    })
}

fn batch(uids: &[&str]) -> Value {
    json!({
        "recvIDs": uids, "sendID": "news", "content": { "content": "hello" },
        "contentType": 101, "sessionType": 1, "ex": "m1",
    })
}

fn without(mut body: Value, key: &str) -> Value {
    body.as_object_mut().unwrap().remove(key);
    body
}

/// Goal: a message of each session type is accepted and answered in OpenIM's envelope.
#[tokio::test]
async fn send_msg_answers_ids_and_a_time() {
    let im = openim(json!({})).await;
    let reply = im.call(SEND, "op-1", &single("u1")).await;
    let body = reply.json();
    assert_eq!((reply.status, &body["errCode"]), (200, &json!(0)));
    assert_eq!((&body["errMsg"], &body["errDlt"]), (&json!(""), &json!("")));
    let data = &body["data"];
    assert_eq!(data["clientMsgID"].as_str().unwrap().len(), 32);
    assert!(data["sendTime"].as_i64().unwrap() > 1_700_000_000_000);
    assert_eq!(data.get("recvID"), None);

    let entry = &im.mock.accepted_by("u1")[0];
    assert_eq!((&*entry.system, &*entry.from), ("openim", "news"));
    assert_eq!(entry.client_msg_no, "op-1");
    assert_eq!(&*entry.payload, r#"{"content":"hello"}"#);
    assert_eq!(data["serverMsgID"], format!("{:032x}", entry.message_id));

    let timed = with(single("u2"), "sendTime", json!(1_340_619_319_058_i64));
    let reply = im.call(SEND, "op-2", &timed).await.json();
    assert_eq!(reply["data"]["sendTime"], 1_340_619_319_058_i64);

    let notice = with(
        with(single("u3"), "sessionType", json!(4)),
        "isOnlineOnly",
        json!(true),
    );
    im.call(SEND, "op-3", &notice).await;
    let entry = &im.mock.accepted_by("u3")[0];
    assert_eq!((entry.channel_type, entry.no_persist), (1, true));

    let group = with(
        with(single(""), "sessionType", json!(3)),
        "groupID",
        json!("g1"),
    );
    im.call(SEND, "op-4", &group).await;
    assert_eq!(im.mock.accepted_by("g1")[0].channel_type, 2);
}

/// Goal: bodies are bound as strictly as in Go, and checked only after that. Method: a table of
/// bodies with errCode and HTTP status.
#[tokio::test]
async fn send_msg_checks_its_fields() {
    let im = openim(json!({})).await;
    let ok = || single("u1");
    let push = |info: Value| with(ok(), "offlinePushInfo", info);
    let unbound = [
        without(ok(), "sendID"),
        without(ok(), "recvID"),
        without(ok(), "content"),
        without(ok(), "contentType"),
        without(ok(), "sessionType"),
        with(ok(), "sessionType", json!(3)),
        with(ok(), "sessionType", json!("1")),
        with(ok(), "content", json!("{\"content\":\"hello\"}")),
        with(ok(), "content", Value::Null),
        with(ok(), "notOfflinePush", json!("true")),
        with(ok(), "isOnlineOnly", json!(1)),
        with(ok(), "sendTime", json!("0")),
        push(json!({ "iOSBadgeCount": "true" })),
        json!([ok()]),
    ];
    for body in unbound {
        assert_eq!(im.code(SEND, &body).await, (1001, 400), "{body}");
    }
    let broken = im.mock.send(&im.request(SEND, "op", "{\"sendID\":")).await;
    assert_eq!(
        (broken.status, broken.json()["errCode"].clone()),
        (400, json!(1001))
    );
    assert!(broken.has("content-type: text/plain; charset=utf-8"));

    let refused = [
        (with(ok(), "contentType", json!(999)), 1001),
        (
            with(with(ok(), "sessionType", json!(2)), "groupID", json!("g1")),
            1001,
        ),
        (with(ok(), "sessionType", json!(9)), 1001),
        (with(ok(), "content", json!({})), 500),
        (with(ok(), "content", json!({ "content": "" })), 500),
        (with(ok(), "contentType", json!(110)), 500),
        (with(ok(), "contentType", json!(102)), 500),
    ];
    for (body, code) in refused {
        assert_eq!(im.code(SEND, &body).await, (code, 200), "{body}");
    }
    let taken = [
        with(ok(), "unknown", json!([1])),
        with(ok(), "ex", Value::Null),
        with(ok(), "content", json!({ "CONTENT": 5 })),
        push(json!({ "title": "t", "iOSBadgeCount": true })),
    ];
    for body in taken {
        assert_eq!(im.code(SEND, &body).await, (0, 200), "{body}");
    }
    assert_eq!(im.mock.handle.stats().invalid, 22);
}

/// Goal: each content type requires its own fields. Method: a complete content of each, and the
/// same without one field.
#[tokio::test]
async fn contents_are_validated_by_type() {
    let im = openim(json!({ "notification_accounts": ["notice"] })).await;
    let picture = json!({ "type": "png", "width": 1, "height": 1, "url": "http://x/a.png" });
    let contents = [
        (101, json!({ "content": "hello" }), "content"),
        (
            102,
            json!({ "sourcePicture": picture, "bigPicture": picture, "snapshotPicture": picture }),
            "bigPicture",
        ),
        (
            103,
            json!({ "sourceUrl": "http://x/a.mp3", "duration": 1 }),
            "duration",
        ),
        (
            104,
            json!({
                "videoUrl": "http://x/a.mp4", "videoType": "mp4", "videoSize": 1, "duration": 1,
                "snapshotUrl": "http://x/a.png", "snapshotWidth": 1, "snapshotHeight": 1,
            }),
            "snapshotUrl",
        ),
        (
            105,
            json!({ "sourceUrl": "http://x/a", "fileName": "a", "fileSize": "1" }),
            "fileName",
        ),
        (106, json!({ "text": "hi", "atUserList": [] }), "atUserList"),
        (110, json!({ "data": "{}" }), "data"),
        (118, json!({ "content": "*hello*" }), "content"),
        (
            1400,
            json!({ "notificationName": "n", "notificationType": 1, "text": "t" }),
            "text",
        ),
    ];
    for (content_type, content, field) in contents {
        let body = |content: Value| {
            let body = with(single("u1"), "contentType", json!(content_type));
            with(with(body, "sendID", json!("notice")), "content", content)
        };
        assert_eq!(
            im.code(SEND, &body(content.clone())).await,
            (0, 200),
            "{content}"
        );
        let lacking = body(without(content, field));
        assert_eq!(im.code(SEND, &lacking).await, (500, 200), "{lacking}");
    }
    let wrong = [
        (101, json!({ "content": { "text": "hello" } })),
        (106, json!({ "atUserList": null })),
        (
            1400,
            json!({ "notificationName": "n", "notificationType": 1, "text": "t", "mixType": 6 }),
        ),
    ];
    for (content_type, content) in wrong {
        let body = with(single("u1"), "contentType", json!(content_type));
        let body = with(with(body, "sendID", json!("notice")), "content", content);
        assert_eq!(im.code(SEND, &body).await, (500, 200), "{body}");
    }
    let crowd = json!({ "text": "hi", "atUserList": vec!["u"; 1001] });
    let at = with(
        with(single("u1"), "contentType", json!(106)),
        "content",
        crowd,
    );
    assert_eq!(im.code(SEND, &at).await, (500, 200));
}

/// Goal: an OA notification comes from the admin or a notification account.
#[tokio::test]
async fn notifications_need_an_account() {
    let im = openim(json!({ "listed_only": true, "notification_accounts": ["notice"] })).await;
    let content = json!({ "notificationName": "n", "notificationType": 1, "text": "t" });
    let from = |sender: &str| {
        let body = with(single("stranger"), "contentType", json!(1400));
        with(
            with(body, "content", content.clone()),
            "sendID",
            json!(sender),
        )
    };
    assert_eq!(im.code(SEND, &from("notice")).await.0, 0);
    assert_eq!(im.code(SEND, &from("imAdmin")).await.0, 0);
    assert_eq!(im.code(SEND, &from("u7")).await.0, 1002);
    assert_eq!(im.code(SEND, &from("nobody")).await.0, 1101);
}

/// Goal: users fail with their own codes, and relations matter only where they do at OpenIM.
#[tokio::test]
async fn users_fail_by_code() {
    let rules = json!({ "codes": { "u1": 1302, "u2": 1004, "g1": 1201 }, "listed_only": true });
    let im = openim(rules).await;
    let from = |uid: &str, sender: &str| with(single(uid), "sendID", json!(sender));
    assert_eq!(im.code(SEND, &from("u1", "u9")).await, (1302, 200));
    assert_eq!(im.code(SEND, &from("u1", "imAdmin")).await, (0, 200));
    assert_eq!(im.code(SEND, &from("u2", "imAdmin")).await, (1004, 200));
    assert_eq!(im.code(SEND, &from("u1001", "u9")).await, (1004, 200));
    assert_eq!(im.code(SEND, &from("u3", "u1001")).await, (1004, 200));
    let notice = |uid: &str| with(from(uid, "u9"), "sessionType", json!(4));
    assert_eq!(im.code(SEND, &notice("u1")).await, (0, 200));
    assert_eq!(im.code(SEND, &notice("u1001")).await, (0, 200));
    let group = with(
        with(from("", "u9"), "sessionType", json!(3)),
        "groupID",
        json!("g1"),
    );
    assert_eq!(im.code(SEND, &group).await, (1201, 200));

    im.mock.set(json!({ "refuse_users": ["u5"] })).await;
    let reply = im.call(SEND, "op", &from("u5", "imAdmin")).await.json();
    assert_eq!(reply["errMsg"], "RecordNotFoundError");
    assert_eq!(reply["errDlt"], ": [1004]RecordNotFoundError");
    assert_eq!(reply.get("data"), None);
    im.mock
        .handle
        .patch_openim(&json!({ "refuse_code": 20007 }))
        .unwrap();
    assert_eq!(im.code(SEND, &from("u5", "imAdmin")).await, (20007, 200));
    assert_eq!(im.mock.handle.stats().refused, 7);
}

/// Goal: every call needs an operationID and a token. Method: each kind of wrong call.
#[tokio::test]
async fn callers_need_an_operation_and_a_token() {
    let im = openim(json!({})).await;
    let body = single("u1").to_string();
    let token = im.token.as_str();
    let foreign = format!("{token}x");
    let wrong = [
        (Sent::post(SEND, &body).with("token", token), 1001),
        (Sent::post(SEND, &body).with("operationID", "op"), 1001),
        (
            Sent::post(SEND, &body)
                .with("operationID", "op")
                .with("token", "abc"),
            1503,
        ),
        (
            Sent::post(SEND, &body)
                .with("operationID", "op")
                .with("token", &foreign),
            1507,
        ),
    ];
    for (request, code) in wrong {
        let reply = im.mock.send(&request).await;
        assert_eq!(
            (reply.status, reply.json()["errCode"].clone()),
            (200, json!(code))
        );
    }
    assert_eq!(im.mock.handle.stats().accepted, 0);
    assert_eq!(im.mock.get(SEND).await.status, 404);
    assert_eq!(im.call("/msg/none", "op", &json!({})).await.status, 404);
    assert_eq!(im.call("/group/none", "op", &json!({})).await.status, 404);
}

/// Goal: the secret gives tokens, to the admin by one path and to any user by the other; only the
/// admin's is accepted for sending.
#[tokio::test]
async fn only_the_admin_may_send() {
    let im = openim(json!({})).await;
    let ask = async |path: &str, body: Value| {
        let body = body.to_string();
        im.mock
            .send(&Sent::post(path, &body).with("operationID", "op"))
            .await
    };
    let admin = "/auth/get_admin_token";
    let reply = ask(admin, json!({ "secret": "openIM123", "userID": "imAdmin" })).await;
    assert_eq!(reply.json()["data"]["expireTimeSeconds"], 7_776_000);
    let reply = ask(admin, json!({ "secret": "wrong", "userID": "imAdmin" })).await;
    assert_eq!(reply.json()["errCode"], 1002);
    let reply = ask(admin, json!({ "secret": "openIM123", "userID": "u1" })).await;
    assert_eq!(reply.json()["errCode"], 1001);
    let nameless = im.mock.post(admin, &json!({})).await;
    assert_eq!(nameless.json()["errCode"], 1001);

    let old = |user: &str| json!({ "secret": "openIM123", "platformID": 1, "userID": user });
    for (user, code) in [("imAdmin", 0), ("u1", 1002)] {
        let token = token_of(&ask("/auth/user_token", old(user)).await);
        for path in [SEND, BATCH] {
            let body = with(single("u1"), "recvIDs", json!(["u1"])).to_string();
            let request = Sent::post(path, &body)
                .with("operationID", "op")
                .with("token", &token);
            assert_eq!(
                im.mock.send(&request).await.json()["errCode"],
                code,
                "{user} {path}"
            );
        }
    }
}

/// Goal: a token expires or is revoked, and a new one works.
#[tokio::test]
async fn tokens_die() {
    let mut im = openim(json!({ "token_calls": 2 })).await;
    assert_eq!(im.code(SEND, &single("u1")).await.0, 0);
    assert_eq!(im.code(SEND, &single("u1")).await.0, 0);
    assert_eq!(im.code(SEND, &single("u1")).await, (1501, 200));
    assert_eq!(im.code(SEND, &single("u1")).await, (1501, 200));

    im.mock
        .post("/_mock/openim", &json!({ "token_calls": null }))
        .await;
    assert_eq!(im.code(SEND, &single("u1")).await.0, 0);
    // The first token has expired, but was not revoked.
    let mut alive = 2;
    for (body, code) in [(json!({}), 1501), (json!({ "code": 1506 }), 1506)] {
        im.token = admin_token(&im.mock).await;
        assert_eq!(im.code(SEND, &single("u1")).await.0, 0);
        let reply = im.mock.post("/_mock/openim/revoke", &body).await;
        assert_eq!(reply.json()["revoked"], alive, "{}", reply.body);
        assert_eq!(im.code(SEND, &single("u1")).await, (code, 200));
        alive = 1;
    }
}

/// Goal: the settings can be read and patched over HTTP, and invalid ones change nothing.
#[tokio::test]
async fn settings_are_patched_key_by_key() {
    let im = openim(json!({ "codes": { "u1": 1302 } })).await;
    let shown = im.mock.get("/_mock/openim").await.json();
    assert_eq!(shown["codes"], json!({ "u1": 1302 }));
    let patched = im
        .mock
        .post("/_mock/openim", &json!({ "admin": "root", "codes": null }))
        .await;
    assert_eq!(patched.json()["admin"], "root");
    assert_eq!(patched.json()["codes"], json!({}));
    for wrong in [
        json!({ "admins": "x" }),
        json!({ "token_calls": -1 }),
        json!([]),
    ] {
        assert_eq!(
            im.mock.post("/_mock/openim", &wrong).await.status,
            400,
            "{wrong}"
        );
    }
    assert_eq!(im.mock.get("/_mock/openim").await.json(), patched.json());
    assert_eq!(
        im.mock
            .post("/_mock/openim/revoke", &json!({ "x": 1 }))
            .await
            .status,
        400
    );
    assert_eq!(im.mock.get("/_mock/openim/none").await.status, 404);
}

/// Goal: the status reports a message that was sent, and nothing else.
#[tokio::test]
async fn status_is_written_once_sent() {
    let im = openim(json!({})).await;
    let faults = [
        ("lost_after_200", 0, 0),
        ("error_503", 0, 0),
        ("reset_before", 0, 0),
        ("reset_after", 1, 2),
        ("reply_closed", 1, 2),
        ("error_after", 1, 0),
    ];
    for (fault, accepted, status) in faults {
        let before = im.mock.handle.stats().accepted;
        im.mock.set(json!({ fault: "x1" })).await;
        let body = single("u1").to_string();
        // The caller may not get the answer, so the result is ignored.
        let _lost = im.mock.raw(&im.request(SEND, fault, &body)).await;
        assert_eq!(
            im.mock.handle.stats().accepted - before,
            accepted,
            "{fault}"
        );
        assert_eq!(im.status(fault).await, status, "{fault}");
    }
    assert_eq!(im.code(SEND, &single("u9")).await.0, 0);
    assert_eq!(im.status("op").await, 2);
    assert_eq!(im.status("never").await, 0);
}

/// Goal: a status that cannot be written is an error, although the message was sent. A batch has no
/// status; a handler that panics returns no JSON.
#[tokio::test]
async fn error_after_comes_with_the_message_sent() {
    let im = openim(json!({})).await;
    im.mock.set(json!({ "error_after": "x2" })).await;
    let reply = im.call(SEND, "op", &single("u1")).await;
    let found = (reply.status, reply.json()["errCode"].clone());
    assert_eq!(found, (200, json!(500)));
    let reply = im.call(BATCH, "op", &batch(&["u2"])).await;
    assert_eq!((reply.status, reply.body.as_str()), (500, ""));
    assert_eq!(im.mock.handle.stats().accepted, 2);
}

/// Goal: while a message is being sent its status is 0; after a client gave up the status becomes
/// "sent".
#[tokio::test]
async fn status_is_unknown_while_in_flight() {
    let im = openim(json!({})).await;
    im.mock.set(json!({ "latency": "150ms" })).await;
    let body = single("u1").to_string();
    let stream = im.mock.open(&im.request(SEND, "slow", &body)).await;
    im.mock
        .until("second request", |stats| stats.requests == 2)
        .await;
    drop(stream);
    im.mock.set(json!({ "latency": null })).await;
    let status = im.status("slow").await;
    let is_sent = im.mock.handle.stats().accepted == 1;
    assert!(status == 0 || is_sent, "{status}");
    im.mock
        .until("acceptance", |stats| stats.accepted == 1)
        .await;
    let begun = Instant::now();
    // The log contains the message shortly before the status does.
    while im.status("slow").await != 2 {
        assert!(begun.elapsed() < BOUND);
    }
}

/// Goal: a batch is one message for each recipient, with one clientMsgID.
#[tokio::test]
async fn batch_reports_results_and_failures() {
    let im = openim(json!({ "codes": { "u2": 1302 } })).await;
    let reply = im
        .call(BATCH, "op", &batch(&["u1", "u2", "u3"]))
        .await
        .json();
    assert_eq!(reply["errCode"], 0);
    assert_eq!(reply["data"]["failedUserIDs"], json!(["u2"]));
    let results = reply["data"]["results"].as_array().unwrap();
    let ids: Vec<&Value> = results.iter().map(|result| &result["recvID"]).collect();
    assert_eq!(ids, ["u1", "u3"]);
    assert_eq!(results[0]["clientMsgID"], results[1]["clientMsgID"]);
    assert_ne!(results[0]["serverMsgID"], results[1]["serverMsgID"]);
    assert_eq!(im.mock.accepted_by("u3")[0].client_msg_no, "m1");
    assert_eq!(im.status("op").await, 0);
}

/// Goal: lists are null where Go's are nil, and a batch that reaches no recipient is a success.
#[tokio::test]
async fn batch_answers_null_lists() {
    let im = openim(json!({ "codes": { "u2": 1004 } })).await;
    let data = async |body: Value| im.call(BATCH, "op", &body).await.json()["data"].clone();
    let all_failed = json!({ "results": null, "failedUserIDs": ["u2"] });
    assert_eq!(data(batch(&["u2"])).await, all_failed);
    assert_eq!(data(batch(&["u1"])).await["failedUserIDs"], Value::Null);
    assert_eq!(
        data(batch(&[])).await,
        json!({ "results": null, "failedUserIDs": null })
    );
    let old_group = with(
        with(batch(&["u1"]), "sessionType", json!(2)),
        "groupID",
        json!("g"),
    );
    assert_eq!(data(old_group).await["failedUserIDs"], json!(["u1"]));

    for body in [
        without(batch(&[]), "recvIDs"),
        with(batch(&[]), "recvIDs", Value::Null),
    ] {
        assert_eq!(im.code(BATCH, &body).await, (1001, 400));
    }
    let to_all = with(without(batch(&[]), "recvIDs"), "isSendAll", json!(true));
    assert_eq!(im.code(BATCH, &to_all).await, (1001, 400));
}

/// Goal: a batch to a group posts one copy for each named recipient, and none without recipients.
#[tokio::test]
async fn batch_to_a_group_counts_copies() {
    let im = openim(json!({})).await;
    let group = |uids: &[&str]| {
        with(
            with(batch(uids), "sessionType", json!(3)),
            "groupID",
            json!("g1"),
        )
    };
    let reply = im.call(BATCH, "op", &group(&[])).await.json();
    assert_eq!(
        (&reply["errCode"], &reply["data"]["results"]),
        (&json!(0), &Value::Null)
    );
    assert_eq!(im.mock.accepted_by("g1").len(), 0);
    let reply = im.call(BATCH, "op", &group(&["u1", "u2"])).await.json();
    assert_eq!(reply["data"]["results"][1]["recvID"], "u2");
    assert_eq!(im.mock.accepted_by("g1").len(), 2);
    assert_eq!(im.mock.handle.stats().duplicates, 1);
}

/// Goal: isSendAll reaches all users, the admin and the sender included, whatever recipients are
/// named.
#[tokio::test]
async fn batch_to_all_is_unfiltered() {
    let settings = Settings {
        users: 1200,
        ..Settings::default()
    };
    let im = openim_with(json!({ "notification_accounts": ["news"] }), settings).await;
    let to_all = with(batch(&["u5000"]), "isSendAll", json!(true));
    let reply = im.call(BATCH, "op", &to_all).await.json();
    assert_eq!(reply["data"]["results"].as_array().unwrap().len(), 1202);
    for uid in ["imAdmin", "news", "u1", "u1200"] {
        assert_eq!(im.mock.accepted_by(uid).len(), 1, "{uid}");
    }
    assert_eq!(im.mock.accepted_by("u5000").len(), 0);
}

/// Goal: a message sent twice counts as a duplicate, by each key that a caller may use.
#[tokio::test]
async fn repetitions_are_counted() {
    let duplicates = async |requests: [(&str, &str, Value); 2]| {
        let im = openim(json!({})).await;
        for (path, operation, body) in &requests {
            im.call(path, operation, body).await;
        }
        im.mock.handle.stats().duplicates
    };
    let other = |body: Value| with(body, "content", json!({ "content": "other" }));
    let numbered = |uid: &str| with(single(uid), "ex", json!("m1"));
    let plain = |uids: &[&str]| without(batch(uids), "ex");
    let cases = [
        ((SEND, "a", single("u1")), (SEND, "a", single("u1")), 1),
        ((SEND, "a", single("u1")), (SEND, "b", single("u1")), 0),
        ((SEND, "a", single("u1")), (SEND, "a", single("u2")), 0),
        ((SEND, "a", numbered("u1")), (SEND, "b", numbered("u1")), 1),
        (
            (SEND, "a", numbered("u1")),
            (SEND, "b", other(numbered("u1"))),
            0,
        ),
        ((BATCH, "a", batch(&["u1"])), (SEND, "b", numbered("u1")), 1),
        (
            (BATCH, "a", plain(&["u1", "u2"])),
            (BATCH, "b", plain(&["u2", "u3"])),
            1,
        ),
        (
            (BATCH, "a", plain(&["u1"])),
            (BATCH, "b", other(plain(&["u1"]))),
            0,
        ),
    ];
    for (first, second, expected) in cases {
        let shown = format!("{first:?} {second:?}");
        assert_eq!(duplicates([first, second]).await, expected, "{shown}");
    }
}

/// Goal: failures of the whole server look as they do at OpenIM.
#[tokio::test]
async fn faults_speak_openim() {
    let im = openim(json!({})).await;
    let struck = async |fault: &str| {
        im.mock.set(json!({ fault: "x1", "retry_after": 3 })).await;
        im.call(SEND, "op", &single("u1")).await
    };
    let reply = struck("error_429").await;
    assert_eq!(
        (reply.status, reply.json()["errCode"].clone()),
        (429, json!(429))
    );
    assert!(reply.has("retry-after: 3"));
    let reply = struck("unauthorised").await;
    assert_eq!(
        (reply.status, reply.json()["errCode"].clone()),
        (200, json!(1501))
    );
    let reply = struck("error_500").await;
    assert_eq!((reply.status, reply.body.as_str()), (500, ""));
    assert_eq!(struck("error_503").await.status, 503);
    assert!(serde_json::from_str::<Value>(&struck("bad_json_unaccepted").await.body).is_err());
    assert_eq!(im.mock.handle.stats().accepted, 0);
}

/// Goal: pages list ordinary users, or all accounts, each once and completely.
#[tokio::test]
async fn users_are_listed_in_pages() {
    let settings = Settings {
        users: 5,
        ..Settings::default()
    };
    let im = openim_with(json!({ "notification_accounts": ["notice"] }), settings).await;
    let page = async |path: &str, number: i64, size: i64| {
        let body = json!({ "pagination": { "pageNumber": number, "showNumber": size } });
        im.call(path, "op", &body).await.json()
    };
    let users = "/user/get_users";
    let first = page(users, 1, 3).await;
    assert_eq!(first["data"]["total"], 5);
    assert_eq!(first["data"]["users"][2]["userID"], "u3");
    let last = page(users, 2, 3).await["data"]["users"].clone();
    assert_eq!(last.as_array().unwrap().len(), 2);
    assert_eq!(
        page(users, 3, 3).await["data"],
        json!({ "total": 5, "users": null })
    );

    let all = "/user/get_all_users_uid";
    let mut ids = Vec::new();
    for number in 1..=3 {
        let data = page(all, number, 3).await["data"].clone();
        assert_eq!(data["total"], 7);
        ids.extend(data["userIDs"].as_array().unwrap().clone());
    }
    assert_eq!(ids, ["imAdmin", "notice", "u1", "u2", "u3", "u4", "u5"]);

    for path in [users, all] {
        assert_eq!(page(path, 0, 3).await["errCode"], 1001);
        assert_eq!(page(path, 1, 0).await["errCode"], 1001);
        assert_eq!(
            im.call(path, "op", &json!({})).await.json()["errCode"],
            1001
        );
    }
}

/// Goal: an account check agrees with the result of a send.
#[tokio::test]
async fn accounts_are_checked() {
    let im = openim(json!({ "codes": { "u1": 1004, "u2": 1302 }, "listed_only": true })).await;
    im.mock.set(json!({ "refuse_users": ["u4"] })).await;
    let check = async |ids: Value| {
        let body = json!({ "checkUserIDs": ids });
        im.call("/user/account_check", "op", &body).await.json()
    };
    let results = check(json!(["u1", "u2", "u3", "u4", "nobody"])).await["data"]["results"].clone();
    let statuses: Vec<&Value> = results
        .as_array()
        .unwrap()
        .iter()
        .map(|result| &result["accountStatus"])
        .collect();
    assert_eq!(statuses, [0, 1, 1, 0, 0]);
    assert_eq!(check(json!(["u1", "u1"])).await["errCode"], 1001);
}
