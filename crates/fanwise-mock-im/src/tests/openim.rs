//! Tests the rules of OpenIM.

mod batches;
mod callers;
mod results;

use serde_json::{Value, json};

use super::super::{OpenimRules, Settings};
use super::{Mock, Reply, Sent, start, with};

const SEND: &str = "/msg/send_msg";
const PROBE: &str = "/msg/check_msg_is_send_success";
const BATCH: &str = "/msg/batch_send_msg";

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
