//! Tests Yunxin v2.

use serde_json::{Value, json};

use super::super::{FailedKey, NeteaseSettings, OnRepeat, Settings, Standing, YunxinSettings};
use super::netease::Signature;
use super::{Mock, Reply, Sent, start, with};

const BATCH: &str = "/im/v2/conversations/messages";

async fn cloud(yunxin: YunxinSettings) -> Mock {
    start(Settings {
        yunxin,
        ..Settings::default()
    })
    .await
}

async fn quiet() -> Mock {
    cloud(YunxinSettings::default()).await
}

fn batch(receivers: &[&str]) -> Value {
    json!({
        "sender_id": "News",
        "receiver_ids": receivers,
        "message": { "message_type": 0, "text": "hello" },
    })
}

/// The path of a single send.
fn to(receiver: &str) -> String {
    format!("/im/v2/conversations/news%7C1%7C{receiver}/messages")
}

fn single(client_id: &str) -> Value {
    json!({ "message": { "message_type": 0, "text": "hello", "message_client_id": client_id } })
}

async fn post(mock: &Mock, path: &str, body: &Value, trace_id: &str) -> Reply {
    let signature = Signature::new();
    let sent = Sent::post(path, &body.to_string())
        .with("content-type", "application/json")
        .with("X-custom-traceid", trace_id);
    mock.send(&signature.on(sent)).await
}

/// The answer to a call without a trace id, which is always an HTTP 200.
async fn call(mock: &Mock, path: &str, body: &Value) -> Value {
    let reply = post(mock, path, body, "").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()
}

/// Checks that a call gets this code and, unless it is 200, reaches no recipient.
async fn check(mock: &Mock, path: &str, body: &Value, code: u32) {
    let before = mock.handle.stats().accepted;
    let reply = call(mock, path, body).await;
    assert_eq!(reply["code"], code, "{body} got {reply}");
    assert!(reply["msg"].is_string(), "{reply}");
    let accepted = mock.handle.stats().accepted - before;
    assert_eq!(accepted > 0, code == 200, "{body}");
}

/// Goal: every receiver is in one of the lists, and an empty list is left out.
#[tokio::test]
async fn batch_reports_by_receiver() {
    let mock = cloud(YunxinSettings {
        refuse_as: vec![("blocked".to_owned(), 102_426)],
        ..YunxinSettings::default()
    })
    .await;
    mock.set(json!({ "refuse_users": ["gone"] })).await;
    let body = batch(&["U1", "gone", "blocked"]);
    let body = with(body, "message_config", json!({ "offline_enabled": false }));
    let reply = call(&mock, BATCH, &body).await;
    assert_eq!(
        (&reply["code"], &reply["msg"]),
        (&json!(200), &json!("success"))
    );
    let entry = &mock.accepted_by("U1")[0];
    let sent = &reply["data"]["success_list"];
    assert_eq!(sent.as_array().unwrap().len(), 1);
    assert_eq!(sent[0]["message_server_id"], entry.message_id);
    assert!(sent[0]["create_time"].as_u64().unwrap() > 1_600_000_000_000);
    let shown = ["sender_id", "receiver_id", "text"].map(|key| sent[0][key].clone());
    assert_eq!(shown, ["News", "U1", "hello"].map(Value::from));
    let failed = reply["data"]["failed_list"].as_array().unwrap();
    let reasons = failed
        .iter()
        .map(|entry| (&entry["account_id"], &entry["error_code"]));
    let expected = [
        (&json!("gone"), &json!(102_404)),
        (&json!("blocked"), &json!(102_426)),
    ];
    assert_eq!(reasons.collect::<Vec<_>>(), expected);

    assert_eq!((&*entry.system, &*entry.from), ("yunxin", "News"));
    assert_eq!(&*entry.payload, body["message"].to_string());
    assert!(entry.no_persist);
    let stats = mock.handle.stats();
    assert_eq!((stats.accepted, stats.refused), (1, 2));

    let reply = call(&mock, BATCH, &batch(&["gone"])).await;
    assert!(reply["data"].get("success_list").is_none());
    let reply = call(&mock, BATCH, &batch(&["u2"])).await;
    assert!(reply["data"].get("failed_list").is_none());
}

/// Goal: the id of a failed receiver has either name, or both in turn.
#[tokio::test]
async fn failed_list_names_receivers_by_either_key() {
    for (failed_key, keys) in [
        (FailedKey::AccountId, ["account_id", "account_id"]),
        (FailedKey::ReceiverId, ["receiver_id", "receiver_id"]),
        (FailedKey::Alternating, ["account_id", "receiver_id"]),
    ] {
        let mock = cloud(YunxinSettings {
            failed_key,
            ..YunxinSettings::default()
        })
        .await;
        mock.set(json!({ "refuse": 1 })).await;
        let reply = call(&mock, BATCH, &batch(&["u1", "u2"])).await;
        let failed = &reply["data"]["failed_list"];
        assert_eq!(failed[0][keys[0]], "u1");
        assert_eq!(failed[1][keys[1]], "u2");
        assert_eq!(failed[0].as_object().unwrap().len(), 3);
    }
}

/// Goal: a receiver in neither list got the message. Method: one by name, some by share.
#[tokio::test]
async fn receivers_can_be_in_neither_list() {
    let mock = cloud(YunxinSettings {
        omit_users: vec!["u1".to_owned()],
        ..YunxinSettings::default()
    })
    .await;
    let reply = call(&mock, BATCH, &batch(&["u1"])).await;
    assert_eq!((&reply["code"], &reply["data"]), (&json!(200), &json!({})));
    assert_eq!(mock.accepted_by("u1").len(), 1);

    let mock = cloud(YunxinSettings {
        omit: "50%".parse().unwrap(),
        ..YunxinSettings::default()
    })
    .await;
    let ids: Vec<String> = (0..100).map(|n| format!("u{n}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let reply = call(&mock, BATCH, &batch(&ids)).await;
    let listed = reply["data"]["success_list"].as_array().unwrap().len();
    assert!((25..75).contains(&listed), "{listed}");
    assert_eq!(mock.handle.stats().accepted, 100);
}

/// Goal: the fields are as documented. Method: a table of bodies.
#[tokio::test]
async fn fields_are_checked() {
    let mock = quiet().await;
    let ok = || batch(&["u1"]);
    let ids: Vec<String> = (0..101).map(|n| format!("u{n}")).collect();
    let receivers = |count: usize| with(ok(), "receiver_ids", json!(ids[..count]));
    let message = |message: Value| with(ok(), "message", message);
    let text = |type_: u32, length: usize| {
        message(json!({ "message_type": type_, "text": "文".repeat(length) }))
    };
    let push = |key: &str, value: Value| with(ok(), "push_config", json!({ key: value }));
    let cases = [
        (receivers(100), 200),
        (receivers(101), 414),
        (receivers(0), 414),
        (with(ok(), "receiver_ids", json!("u1")), 414),
        (with(ok(), "receiver_ids", json!([1])), 414),
        (with(ok(), "receiver_ids", json!(["u1", ""])), 414),
        (with(ok(), "sender_id", json!("")), 414),
        (with(ok(), "unknown", json!([1])), 200),
        (with(ok(), "route_config", Value::Null), 200),
        (with(ok(), "route_config", json!([])), 414),
        (with(ok(), "sender_no_sense", json!(true)), 200),
        (with(ok(), "sender_no_sense", json!(1)), 414),
        (with(ok(), "extension", json!({})), 414),
        (
            with(
                with(ok(), "sender_no_sense", json!(true)),
                "receiver_no_sense",
                json!(true),
            ),
            107_330,
        ),
        (message(json!({ "text": "hello" })), 414),
        (message(json!({ "message_type": 5, "text": "hello" })), 414),
        (message(json!({ "message_type": 0 })), 414),
        (
            message(json!({ "message_type": 0, "text": "x", "sub_type": 0 })),
            414,
        ),
        (
            message(json!({ "message_type": 0, "text": "x", "attachment": { "size": 89 } })),
            200,
        ),
        (
            message(json!({ "message_type": 1, "attachment": "{}" })),
            414,
        ),
        (
            message(json!({ "message_type": 1, "attachment": { "url": "u" } })),
            200,
        ),
        (message(json!("hello")), 414),
        (message(Value::Null), 414),
        (text(0, 5000), 200),
        (text(0, 5001), 414),
        (text(10, 5000), 200),
        (text(100, 500), 200),
        (text(100, 501), 414),
        (push("push_content", json!("x".repeat(500))), 200),
        (push("push_content", json!("x".repeat(501))), 414),
        (push("push_payload", json!("x".repeat(2048))), 200),
        (push("push_payload", json!("x".repeat(2049))), 414),
        (push("push_payload", json!({})), 414),
        (push("push_payload", Value::Null), 200),
        (push("push_forcepush_ids", json!(["u1"])), 200),
        (push("push_forcepush_ids", json!("u1")), 414),
        (push("push_enabled", json!("true")), 414),
        (
            with(ok(), "antispam_config", json!({ "antispam_cheating": 1 })),
            414,
        ),
    ];
    for (body, code) in cases {
        check(&mock, BATCH, &body, code).await;
    }
    let signature = Signature::new();
    for body in ["", "[]", "{", "fromAccid=news"] {
        let reply = mock.send(&signature.on(Sent::post(BATCH, body))).await;
        assert_eq!(reply.json()["code"], 414, "{body}");
    }
    let unsigned = mock.send(&Sent::post(BATCH, &ok().to_string())).await;
    let expected = json!({ "code": 414, "msg": "bad http header" });
    assert_eq!((unsigned.status, unsigned.json()), (200, expected));
    assert_eq!(mock.get("/im/v2/teams").await.status, 404);
}

/// Goal: the app's settings for senders, poison and moderation apply, with the codes of v2.
#[tokio::test]
async fn whole_calls_are_refused() {
    let standings = [Standing::Unknown, Standing::Disabled, Standing::Muted];
    let names = ["unknown", "disabled", "muted"].map(str::to_owned);
    let mock = start(Settings {
        netease: NeteaseSettings {
            senders: names.into_iter().zip(standings).collect(),
            poison: vec![("bad".to_owned(), 414)],
            moderate: Some("casino".to_owned()),
            ..NeteaseSettings::default()
        },
        ..Settings::default()
    })
    .await;
    for (sender, code) in [
        ("unknown", 102_404),
        ("disabled", 102_422),
        ("muted", 102_421),
    ] {
        check(
            &mock,
            BATCH,
            &with(batch(&["u1"]), "sender_id", json!(sender)),
            code,
        )
        .await;
        let path = format!("/im/v2/conversations/{sender}%7C1%7Cu1/messages");
        check(&mock, &path, &single("m1"), code).await;
    }
    check(&mock, BATCH, &batch(&["u1", "bad"]), 414).await;
    check(&mock, &to("bad"), &single("m1"), 414).await;

    let bet = json!({ "message_type": 0, "text": "casino" });
    check(&mock, &to("u1"), &json!({ "message": bet }), 107_451).await;
    let reply = call(&mock, BATCH, &with(batch(&["u1"]), "message", bet)).await;
    assert_eq!(reply["data"]["failed_list"][0]["error_code"], 107_451);
    assert_eq!(mock.handle.stats().accepted, 0);
}

/// Goal: batch and single sends have quotas of their own; a look-up has none.
#[tokio::test]
async fn quota_blocks_the_app() {
    let mock = cloud(YunxinSettings {
        batch_quota: Some("1/1h/1h".parse().unwrap()),
        single_quota: Some("2/1h/1h".parse().unwrap()),
        ..YunxinSettings::default()
    })
    .await;
    check(&mock, BATCH, &batch(&["u1"]), 200).await;
    check(&mock, BATCH, &batch(&["u1"]), 416).await;
    check(&mock, &to("u1"), &single("m1"), 200).await;
    check(&mock, &to("u1"), &single("m2"), 200).await;
    check(&mock, &to("u1"), &single("m3"), 416).await;
    assert_eq!(mock.handle.stats().limited, 2);
}

/// Goal: a repeated X-custom-traceid delivers once.
#[tokio::test]
async fn repeated_trace_id_is_not_delivered_again() {
    for (on_repeat, code) in [(OnRepeat::Same, 200), (OnRepeat::Code431, 431)] {
        let mock = start(Settings {
            netease: NeteaseSettings {
                on_repeat,
                ..NeteaseSettings::default()
            },
            ..Settings::default()
        })
        .await;
        let body = batch(&["u1", "u2"]);
        let first = post(&mock, BATCH, &body, "t1").await;
        let again = post(&mock, BATCH, &body, "t1").await;
        assert_eq!(again.json()["code"], code);
        assert_eq!(again.body == first.body, code == 200);
        let stats = mock.handle.stats();
        assert_eq!((stats.accepted, stats.replays, stats.duplicates), (2, 2, 0));
        post(&mock, BATCH, &body, "t2").await;
        assert_eq!(mock.handle.stats().duplicates, 2);
    }
}

/// Goal: a single send reaches the user or team of its path, and other paths are refused.
#[tokio::test]
async fn single_reaches_the_receiver_of_its_path() {
    let mock = quiet().await;
    mock.set(json!({ "refuse_users": ["gone"] })).await;
    let reply = call(&mock, &to("a%20b"), &single("m1")).await;
    let entry = &mock.accepted_by("a b")[0];
    assert_eq!((&*entry.from, &*entry.client_msg_no), ("news", "m1"));
    assert_eq!(reply["data"]["message_server_id"], entry.message_id);
    assert_eq!(reply["data"]["message_client_id"], "m1");
    assert_eq!(reply["data"]["conversation_type"], 1);

    let team = "/im/v2/conversations/news%7C2%7C1234/messages";
    assert_eq!(call(&mock, team, &single("m1")).await["code"], 200);
    assert_eq!(mock.accepted_by("1234")[0].channel_type, 2);
    check(&mock, &to("gone"), &single("m1"), 102_404).await;
    for id in [
        "news%7C3%7Cu1",
        "news%7C1",
        "news%7C1%7C",
        "%7C1%7Cu1",
        "u1",
        "news%7C1%7C%F",
    ] {
        let path = format!("/im/v2/conversations/{id}/messages");
        check(&mock, &path, &single("m1"), 414).await;
    }
    let deeper = post(&mock, "/im/v2/conversations/a/b/messages", &single("m"), "").await;
    assert_eq!(deeper.status, 404);
}

/// Goal: a message_client_id is accepted once in a conversation, unless its first send was refused.
#[tokio::test]
async fn message_client_id_is_sent_once() {
    let mock = quiet().await;
    mock.set(json!({ "refuse_users": ["u1"] })).await;
    check(&mock, &to("u1"), &single("m1"), 102_404).await;
    mock.set(json!({ "refuse_users": null, "lost_after_200": "x1" }))
        .await;
    assert_eq!(call(&mock, &to("u1"), &single("m1")).await["code"], 200);
    check(&mock, &to("u1"), &single("m1"), 200).await;
    check(&mock, &to("u1"), &single("m1"), 107_306).await;
    check(&mock, &to("u2"), &single("m1"), 200).await;
    check(&mock, &to("u1"), &single("m2"), 200).await;
    let stats = mock.handle.stats();
    assert_eq!((stats.accepted, stats.replays, stats.duplicates), (3, 1, 0));

    let other = with(single("m1"), "extension", json!("other"));
    check(&mock, &to("u1"), &other, 107_306).await;
    assert_eq!(mock.handle.stats().invalid, 1);
}

/// Goal: accounts can be looked up; only unknown ones are missing.
#[tokio::test]
async fn accounts_tell_who_is_registered() {
    let mock = cloud(YunxinSettings {
        refuse_as: vec![("blocked".to_owned(), 102_426)],
        ..YunxinSettings::default()
    })
    .await;
    mock.set(json!({ "refuse_users": ["gone"] })).await;
    let signature = Signature::new();
    let look = Sent::get("/im/v2/accounts?account_ids=u1,gone,blocked");
    let reply = mock.send(&signature.on(look)).await.json();
    let known = json!([{ "account_id": "u1" }, { "account_id": "blocked" }]);
    assert_eq!(reply["data"]["success_list"], known);
    assert_eq!(reply["data"]["failed_list"][0]["account_id"], "gone");
    assert_eq!(reply["data"]["failed_list"][0]["error_code"], 102_404);
    let nobody = mock.send(&signature.on(Sent::get("/im/v2/accounts"))).await;
    assert_eq!(nobody.json()["code"], 414);
    assert_eq!(mock.handle.stats().refused, 0);
}

#[tokio::test]
async fn a_message_is_recalled_by_its_id() {
    let mock = quiet().await;
    let sent = call(&mock, &to("ann"), &single("c1")).await;
    let id = &sent["data"]["message_server_id"];
    for (path, code, recalled) in [
        (format!("{}/{id}?type=2", to("ann")), 200, 1),
        (
            format!("{}/{id}?type=2&ignore_revoke_time=1", to("ann")),
            200,
            2,
        ),
        (format!("{}/{id}?type=2", to("bob")), 107_404, 2),
        (format!("{}/1?type=1", to("ann")), 107_404, 2),
        (format!("{}/{id}?type=4", to("ann")), 414, 2),
        (format!("{}/x?type=2", to("ann")), 414, 2),
    ] {
        let signature = Signature::new();
        let sent = Sent {
            method: "DELETE",
            ..Sent::post(&path, "")
        };
        let reply = mock.send(&signature.on(sent)).await;
        assert_eq!(reply.json()["code"], code, "{path}");
        assert_eq!(mock.handle.recalled().len(), recalled, "{path}");
    }
}
