//! Tests the rules of WuKongIM v1, v2 and v3.

use serde_json::{Value, json};

use super::super::{Settings, Version};
use super::{Mock, Reply, Sent, message, start, with};

const SEND: &str = "/message/send";
const BATCH: &str = "/message/sendbatch";

async fn release(wukongim: Version) -> Mock {
    start(Settings {
        wukongim,
        ..Settings::default()
    })
    .await
}

/// Checks the status for a body, and that nothing was accepted unless it is 200.
async fn check(mock: &Mock, path: &str, body: Value, status: u16, text: &str) {
    let before = mock.handle.stats().accepted;
    let reply = mock.post(path, &body).await;
    assert_eq!(reply.status, status, "{body} got {}", reply.body);
    assert!(reply.body.contains(text), "{body} got {}", reply.body);
    let accepted = mock.handle.stats().accepted - before;
    assert_eq!(accepted > 0, status == 200, "{body}");
}

/// Goal: v2 answers as its releases do and does not deduplicate. Method: the same message twice.
#[tokio::test]
async fn v2_accepts_a_repetition_as_a_new_message() {
    let mock = release(Version::V2).await;
    let first = mock.post(SEND, &message("u1", "m1")).await.json();
    let second = mock.post(SEND, &message("u1", "m1")).await.json();

    assert_eq!(first["status"], 200);
    assert_eq!(first["data"]["client_msg_no"], "m1");
    assert!(first["data"].get("message_seq").is_none());
    assert!(first["data"]["message_id"].as_i64().unwrap() > 1 << 53);
    assert_ne!(first["data"]["message_id"], second["data"]["message_id"]);

    let entries = mock.accepted_by("u1");
    assert_eq!(entries.len(), 2);
    assert_eq!(json!(entries[0].message_id), first["data"]["message_id"]);
    assert_eq!(&*entries[0].payload, "hello");
    assert_eq!(&*entries[0].from, "news");
    let stats = mock.handle.stats();
    assert_eq!((stats.accepted, stats.duplicates, stats.replays), (2, 1, 0));
}

/// Goal: the fields are as strict as the Go structs. Method: a table of bodies.
#[tokio::test]
async fn v2_checks_its_fields() {
    let mock = release(Version::V2).await;
    let ok = || message("u1", "m1");
    let subscribers = with(
        with(ok(), "channel_id", json!("")),
        "subscribers",
        json!(["a", "b"]),
    );
    let command = json!({ "sync_once": 1 });

    check(&mock, SEND, ok(), 200, "").await;
    check(&mock, SEND, with(ok(), "unknown", json!([1])), 200, "").await;
    check(&mock, SEND, with(ok(), "header", Value::Null), 200, "").await;
    check(
        &mock,
        SEND,
        with(ok(), "header", json!({"red_dot": true})),
        400,
        "invalid type",
    )
    .await;
    check(
        &mock,
        SEND,
        with(ok(), "header", json!({"red_dot": 1.0})),
        400,
        "invalid type",
    )
    .await;
    check(
        &mock,
        SEND,
        with(ok(), "channel_type", json!(256)),
        400,
        "u8",
    )
    .await;
    check(&mock, SEND, with(ok(), "expire", json!(-1)), 400, "u32").await;
    check(
        &mock,
        SEND,
        with(ok(), "payload", json!("not base64")),
        400,
        "base64",
    )
    .await;
    check(
        &mock,
        SEND,
        with(ok(), "payload", json!("")),
        400,
        "payload",
    )
    .await;
    check(
        &mock,
        SEND,
        with(ok(), "channel_id", json!("")),
        400,
        "无法处理",
    )
    .await;
    check(
        &mock,
        SEND,
        with(ok(), "subscribers", json!(["a"])),
        400,
        "无法处理",
    )
    .await;
    for uid in ["a@b", "a#b", "a&b"] {
        check(
            &mock,
            SEND,
            with(ok(), "channel_id", json!(uid)),
            400,
            "不合法",
        )
        .await;
    }
    check(&mock, SEND, subscribers.clone(), 400, "无法处理").await;
    check(
        &mock,
        SEND,
        with(subscribers, "header", command),
        200,
        r#"{"status":200}"#,
    )
    .await;
    check(&mock, SEND, json!([ok()]), 400, "unmarshal").await;

    let broken = mock.send(&Sent::post(SEND, "{\"from_uid\":")).await;
    assert_eq!(
        (broken.status, broken.json()["status"].clone()),
        (400, json!(400))
    );
    assert!(broken.has("content-type: text/plain; charset=utf-8"));
    assert_eq!(mock.get(SEND).await.status, 404);
}

/// Goal: missing fields of a message are filled in as the server does it.
#[tokio::test]
async fn v2_fills_in_sender_and_number() {
    let mock = release(Version::V2).await;
    let anonymous = with(message("u1", " "), "from_uid", json!(""));
    let reply = mock.post(SEND, &anonymous).await.json();
    let entries = mock.accepted_by("u1");
    assert_eq!(&*entries[0].from, "____system");
    assert_eq!(reply["data"]["client_msg_no"], entries[0].client_msg_no);
    assert!(entries[0].client_msg_no.ends_with('0'));
}

/// Goal: a group is one recipient with its channel type.
#[tokio::test]
async fn v2_logs_a_group_under_its_channel() {
    let mock = release(Version::V2).await;
    mock.post(SEND, &with(message("g1", "m1"), "channel_type", json!(2)))
        .await;
    assert_eq!(mock.accepted_by("g1")[0].channel_type, 2);
}

/// Goal: sendbatch takes the object of the releases and not the array of the documentation.
#[tokio::test]
async fn v2_sendbatch_reports_failures_by_uid() {
    let mock = release(Version::V2).await;
    let batch = json!({
        "header": { "red_dot": 1 }, "from_uid": "news", "payload": "aGVsbG8=",
        "subscribers": ["u1", "bad@uid", "u2"],
    });
    let reply = mock.post(BATCH, &batch).await;
    assert_eq!(reply.json()["fail_uids"], json!(["bad@uid"]));
    assert_eq!(reply.json()["reason"], json!(["频道ID不合法！"]));
    let (first, second) = (&mock.accepted_by("u1")[0], &mock.accepted_by("u2")[0]);
    assert_ne!(first.client_msg_no, second.client_msg_no);
    assert_eq!(mock.handle.stats().refused, 1);

    let good = with(batch.clone(), "subscribers", json!(["u3"]));
    let reply = mock.post(BATCH, &good).await;
    assert_eq!(reply.json(), json!({ "fail_uids": [], "reason": [] }));
    mock.post(BATCH, &good).await;
    assert_eq!(mock.handle.stats().duplicates, 1);

    check(&mock, BATCH, json!([message("u1", "m1")]), 400, "unmarshal").await;
    check(
        &mock,
        BATCH,
        with(good.clone(), "from_uid", json!(" ")),
        400,
        "from_uid",
    )
    .await;
    check(
        &mock,
        BATCH,
        with(good.clone(), "subscribers", json!([])),
        400,
        "subscribers",
    )
    .await;
    check(
        &mock,
        BATCH,
        with(good, "payload", json!("")),
        400,
        "payload",
    )
    .await;
}

/// Goal: a call without the token gets a 401 without a body.
#[tokio::test]
async fn v2_token_is_required_when_set() {
    let mock = start(Settings {
        token: Some("s3cret".to_owned()),
        ..Settings::default()
    })
    .await;
    let body = message("u1", "m1").to_string();
    for request in [
        Sent::post(SEND, &body),
        Sent::post(SEND, &body).with("token", "no"),
    ] {
        let reply = mock.send(&request).await;
        assert_eq!((reply.status, reply.body.as_str()), (401, ""));
    }
    let reply = mock
        .send(&Sent::post(SEND, &body).with("token", "s3cret"))
        .await;
    assert_eq!(reply.status, 200);
}

/// Goal: a stored message is found under its internal channel id, and only if it is stored.
#[tokio::test]
async fn v2_finds_a_message_by_client_msg_no() {
    let mock = release(Version::V2).await;
    let find = |channel: &str, number: &str| {
        format!("/message/byclientmsgno?channel_id={channel}&channel_type=1&client_msg_no={number}")
    };
    let sent = mock.post(SEND, &message("u1", "m1")).await.json();
    let online = with(message("u1", "m2"), "header", json!({ "no_persist": 1 }));
    mock.post(SEND, &online).await;
    let command = with(message("u1", "m3"), "header", json!({ "sync_once": 1 }));
    mock.post(SEND, &command).await;

    let ids = ["u1%40news", "news%40u1"];
    let mut found = Vec::new();
    for id in ids {
        found.push(mock.get(&find(id, "m1")).await.json());
    }
    let hit = found.iter().find(|reply| reply["status"] != 404).unwrap();
    assert_eq!(hit["message_id"], sent["data"]["message_id"]);
    assert_eq!(
        found.iter().filter(|reply| reply["status"] == 404).count(),
        1
    );

    let id = hit["channel_id"].as_str().unwrap().to_owned();
    let status = |reply: Reply| (reply.status, reply.json()["status"].clone());
    assert_eq!(status(mock.get(&find(&id, "m2")).await), (200, json!(404)));
    assert_eq!(status(mock.get(&find(&id, "m3")).await), (200, json!(404)));
    let twin = format!("{id}____cmd");
    assert_eq!(
        mock.get(&find(&twin, "m3")).await.json()["client_msg_no"],
        "m3"
    );
    assert_eq!(status(mock.get(&find(&id, "")).await), (400, json!(400)));
}

/// Goal: v1 differs in message_seq and has no look-up.
#[tokio::test]
async fn v1_answers_a_message_seq() {
    let mock = release(Version::V1).await;
    let reply = mock.post(SEND, &message("u1", "m1")).await.json();
    assert!(reply["data"]["message_seq"].as_u64().unwrap() > 0);
    assert_eq!(
        mock.get("/message/byclientmsgno?channel_id=a").await.status,
        404
    );
}

/// Goal: the same key with the same payload gets the first answer, with another payload a conflict.
#[tokio::test]
async fn v3_is_idempotent() {
    let mock = release(Version::V3).await;
    let first = mock.post(SEND, &message("u1", "m1")).await.json();
    assert_eq!(first["reason"], 1);
    let again = mock.post(SEND, &message("u1", "m1")).await.json();
    assert_eq!(first, again);
    let other = with(message("u1", "m1"), "payload", json!("b3RoZXI="));
    let conflict = mock.post(SEND, &other).await;
    assert_eq!(
        (conflict.status, conflict.json()["reason"].clone()),
        (200, json!(15))
    );
    let elsewhere = mock.post(SEND, &message("u2", "m1")).await.json();
    assert_ne!(first["message_id"], elsewhere["message_id"]);

    let entries = mock.accepted_by("u1");
    let replays: Vec<bool> = entries.iter().map(|entry| entry.replay).collect();
    assert_eq!(replays, [false, true]);
    let stats = mock.handle.stats();
    assert_eq!((stats.accepted, stats.replays, stats.duplicates), (2, 1, 0));
}

/// Goal: v3 has its own rules and error format. Method: a table of bodies.
#[tokio::test]
async fn v3_checks_its_fields() {
    let mock = release(Version::V3).await;
    let ok = || message("u1", "m1");
    let invalid = r#"{"error":"invalid request"}"#;
    let named = with(
        with(ok(), "from_uid", json!("")),
        "sender_uid",
        json!("legacy"),
    );
    let group = with(
        with(ok(), "channel_id", json!("")),
        "subscribers",
        json!(["a", "b"]),
    );

    check(&mock, SEND, named, 200, "").await;
    assert_eq!(&*mock.accepted_by("u1")[0].from, "legacy");
    check(&mock, SEND, with(ok(), "from_uid", json!("")), 400, invalid).await;
    check(
        &mock,
        SEND,
        with(ok(), "channel_type", json!(0)),
        400,
        invalid,
    )
    .await;
    check(&mock, SEND, with(ok(), "payload", json!("")), 400, invalid).await;
    check(
        &mock,
        SEND,
        with(ok(), "payload", json!("*")),
        400,
        "invalid payload",
    )
    .await;
    check(
        &mock,
        SEND,
        with(ok(), "channel_id", json!("a@b")),
        400,
        "invalid channel id",
    )
    .await;
    check(
        &mock,
        SEND,
        with(ok(), "no_persist", json!(true)),
        400,
        invalid,
    )
    .await;
    check(
        &mock,
        SEND,
        with(ok(), "subscribers", json!(["a"])),
        400,
        invalid,
    )
    .await;
    check(&mock, SEND, group.clone(), 400, "require sync_once").await;
    check(&mock, SEND, with(group, "sync_once", json!(1)), 200, "").await;
    assert_eq!(mock.accepted_by("b").len(), 1);
    assert_eq!(mock.post(BATCH, &json!({})).await.status, 404);
}

/// Goal: a group of any type is one recipient and is found by its own id.
#[tokio::test]
async fn v2_finds_a_group_message() {
    let mock = release(Version::V2).await;
    let group = with(message("g1", "m1"), "channel_type", json!(2));
    let sent = mock.post(SEND, &group).await.json();
    let find = "/message/byclientmsgno?channel_id=g1&client_msg_no=m1&channel_type=";
    let hit = mock.get(&format!("{find}2")).await.json();
    assert_eq!(hit["message_id"], sent["data"]["message_id"]);
    assert_eq!(mock.get(&format!("{find}3")).await.json()["status"], 404);
}

/// Goal: a command to named users makes an entry for each of them, as in each release: v2 makes a
/// new number, v3 keeps the number and recognises it.
#[tokio::test]
async fn subscribers_are_entries_of_their_own() {
    for (wukongim, duplicates, replays) in [(Version::V2, 2, 0), (Version::V3, 0, 2)] {
        let mock = release(wukongim).await;
        let command = with(message("", "m1"), "subscribers", json!(["a", "b"]));
        let command = with(command, "header", json!({ "sync_once": 1 }));
        for _ in 0..2 {
            assert_eq!(mock.post(SEND, &command).await.status, 200);
        }
        for uid in ["a", "b"] {
            let entries = mock.accepted_by(uid);
            assert_eq!((entries.len(), entries[0].channel_type), (2, 1));
            assert!(entries[0].sync_once);
            assert_eq!(entries[0].client_msg_no == "m1", wukongim == Version::V3);
        }
        let stats = mock.handle.stats();
        assert_eq!((stats.duplicates, stats.replays), (duplicates, replays));
    }
}

async fn with_users(wukongim: Version, users: u64) -> Mock {
    start(Settings {
        wukongim,
        users,
        ..Settings::default()
    })
    .await
}

fn uids(list: &Value) -> Vec<&str> {
    let users = list.as_array().unwrap().iter();
    users.map(|user| user["uid"].as_str().unwrap()).collect()
}

/// Goal: v2 lists users newest first, and the created_at of the last one leads to the next page.
#[tokio::test]
async fn v2_manager_pages_by_created_at() {
    let mock = with_users(Version::V2, 5).await;
    let page = async |query: String| mock.get(&format!("/cluster/users?{query}")).await.json();
    let edge = |page: &Value, index: usize| page["data"][index]["created_at"].as_i64().unwrap();

    let first = page("limit=2".to_owned()).await;
    assert_eq!((&first["total"], &first["more"]), (&json!(5), &json!(1)));
    assert_eq!(uids(&first["data"]), ["u5", "u4"]);
    let second = page(format!("limit=2&offset_created_at={}", edge(&first, 1))).await;
    assert_eq!(uids(&second["data"]), ["u3", "u2"]);
    let last = page(format!("limit=2&offset_created_at={}", edge(&second, 1))).await;
    assert_eq!(
        (uids(&last["data"]), &last["more"]),
        (vec!["u1"], &json!(0))
    );
    let end = page(format!("limit=2&offset_created_at={}", edge(&last, 0))).await;
    assert_eq!((&end["data"], &end["more"]), (&json!([]), &json!(0)));

    let back = page(format!(
        "limit=2&pre=1&offset_created_at={}",
        edge(&last, 0)
    ))
    .await;
    assert_eq!(
        (uids(&back["data"]), &back["more"]),
        (vec!["u3", "u2"], &json!(1))
    );
    let back = page(format!(
        "limit=2&pre=1&offset_created_at={}",
        edge(&first, 1)
    ))
    .await;
    assert_eq!(
        (uids(&back["data"]), &back["more"]),
        (vec!["u5"], &json!(0))
    );

    assert_eq!(uids(&page("uid=u4".to_owned()).await["data"]), ["u4"]);
    assert_eq!(page("uid=u9".to_owned()).await["data"], json!([]));
    let all = with_users(Version::V2, 30)
        .await
        .get("/cluster/users")
        .await;
    assert_eq!(uids(&all.json()["data"]).len(), 20);
}

/// Goal: the manager of v2 requires the same token as its product API.
#[tokio::test]
async fn v2_manager_takes_the_token() {
    let mock = start(Settings {
        token: Some("s3cret".to_owned()),
        ..Settings::default()
    })
    .await;
    assert_eq!(mock.get("/cluster/users").await.status, 401);
    let request = Sent::get("/cluster/users").with("token", "s3cret");
    assert_eq!(mock.send(&request).await.status, 200);
    assert_eq!(
        release(Version::V3)
            .await
            .get("/cluster/users")
            .await
            .status,
        404
    );
}

/// Goal: v3 lists users with a cursor, up to 200 per page.
#[tokio::test]
async fn v3_manager_pages_by_cursor() {
    let mock = with_users(Version::V3, 450).await;
    let (mut found, mut query) = (Vec::new(), "limit=200".to_owned());
    loop {
        let page = mock.get(&format!("/manager/users?{query}")).await.json();
        found.extend(uids(&page["items"]).into_iter().map(str::to_owned));
        let Some(cursor) = page["next_cursor"].as_str() else {
            assert_eq!(page["has_more"], false);
            break;
        };
        assert_eq!(page["has_more"], true);
        query = format!("limit=200&cursor={cursor}");
    }
    let wanted: Vec<String> = (1..=450).map(|number| format!("u{number}")).collect();
    assert_eq!(found, wanted);

    let default = mock.get("/manager/users").await.json();
    assert_eq!(uids(&default["items"]).len(), 50);
    for wrong in ["limit=201", "limit=0", "limit=x", "cursor=x", "cursor=%21"] {
        let reply = mock.get(&format!("/manager/users?{wrong}")).await;
        assert_eq!(
            (reply.status, reply.json()["error"].clone()),
            (400, json!("bad_request"))
        );
    }
    assert_eq!(mock.post("/manager/login", &json!({})).await.status, 404);
    assert_eq!(
        release(Version::V2)
            .await
            .get("/manager/users")
            .await
            .status,
        404
    );
}

/// Goal: with a configured login the manager of v3 requires its JWT.
#[tokio::test]
async fn v3_manager_needs_its_login() {
    let mock = start(Settings {
        wukongim: Version::V3,
        wukongim_manager: Some("admin:pass:word".parse().unwrap()),
        ..Settings::default()
    })
    .await;
    let login = async |password: &str| {
        let body = json!({ "username": "admin", "password": password });
        mock.post("/manager/login", &body).await
    };
    assert_eq!(login("pass").await.status, 401);
    let reply = login("pass:word").await.json();
    assert_eq!(reply["token_type"], "Bearer");
    let token = format!("Bearer {}", reply["access_token"].as_str().unwrap());

    for (token, status) in [(token.as_str(), 200), ("Bearer x", 401)] {
        let request = Sent::get("/manager/users").with("authorization", token);
        assert_eq!(mock.send(&request).await.status, status);
    }
    assert_eq!(mock.get("/manager/users").await.status, 401);
    // The product API of v3 requires no credential.
    assert_eq!(mock.post(SEND, &message("u1", "m1")).await.status, 200);
}
