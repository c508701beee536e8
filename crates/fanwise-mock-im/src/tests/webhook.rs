//! Tests the plain webhook receiver.

use serde_json::json;

use super::super::Settings;
use super::{Mock, Sent, start};

async fn idempotent() -> Mock {
    start(Settings {
        webhook_idempotent: true,
        ..Settings::default()
    })
    .await
}

/// Goal: the recipient comes from the body or from the path.
#[tokio::test]
async fn webhook_learns_the_recipient() {
    let mock = start(Settings::default()).await;
    let body = json!({ "recipient": "u1", "client_msg_no": "m1", "from": "news" });
    let reply = mock.post("/hook", &body).await;
    assert_eq!((reply.status, reply.json()), (200, json!({ "ok": true })));
    let entry = &mock.accepted_by("u1")[0];
    assert_eq!((&*entry.system, &*entry.from), ("webhook", "news"));
    assert_eq!(entry.client_msg_no, "m1");

    let request = Sent::post("/hook/u%202", "any text").with("idempotency-key", "m1/u2");
    assert_eq!(mock.send(&request).await.status, 200);
    assert_eq!(mock.accepted_by("u 2")[0].client_msg_no, "m1/u2");
    assert_eq!(&*mock.accepted_by("u 2")[0].payload, "any text");

    assert_eq!(mock.post("/hook", &json!({})).await.status, 400);
    assert_eq!(mock.get("/hook/u1").await.status, 405);
}

/// Goal: a single refused recipient is answered 410; in a packed answer refused recipients are
/// listed.
#[tokio::test]
async fn webhook_refuses_users() {
    let mock = start(Settings::default()).await;
    mock.set(json!({ "refuse_prefix": "bad-" })).await;
    let reply = mock.post("/hook", &json!({ "recipient": "bad-1" })).await;
    assert_eq!(
        (reply.status, reply.json()["code"].clone()),
        (410, json!("gone"))
    );

    let packed = json!({ "recipients": ["u1", "bad-2", "u3"], "client_msg_no": "m1" });
    let failed = json!([{ "recipient": "bad-2", "code": "refused", "message": "user refused" }]);
    let reply = mock.post("/hook", &packed).await;
    assert_eq!(reply.json(), json!({ "ok": true, "failed": failed }));
    let stats = mock.handle.stats();
    assert_eq!((stats.accepted, stats.refused), (2, 2));
}

/// Goal: a repeated key gets the same answer, for the same request only.
#[tokio::test]
async fn webhook_honours_the_idempotency_key() {
    let mock = idempotent().await;
    let body = json!({ "recipients": ["u1", "u2"], "client_msg_no": "m1" }).to_string();
    let request = || Sent::post("/hook", &body).with("idempotency-key", "k1");
    let first = mock.send(&request()).await;
    let again = mock.send(&request()).await;
    assert_eq!(first.body, again.body);
    let stats = mock.handle.stats();
    assert_eq!((stats.accepted, stats.replays, stats.duplicates), (2, 2, 0));

    let repacked = json!({ "recipients": ["u2", "u1"], "client_msg_no": "m1" }).to_string();
    let request = Sent::post("/hook", &repacked).with("idempotency-key", "k1");
    assert_eq!(mock.send(&request).await.status, 422);
}

/// Goal: without the setting the key has no effect, and the repeated call counts as a duplicate.
#[tokio::test]
async fn webhook_ignores_the_key_unless_told() {
    let mock = start(Settings::default()).await;
    let request = || Sent::post("/hook/u1", "x").with("idempotency-key", "k1");
    mock.send(&request()).await;
    mock.send(&request()).await;
    let stats = mock.handle.stats();
    assert_eq!((stats.accepted, stats.duplicates), (2, 1));
}
