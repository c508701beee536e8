//! What OpenIM remembers of its messages: whether they were sent, which were repeated.

use std::time::Instant;

use serde_json::{Value, json};

use super::{BATCH, SEND, batch, openim, single, without};
use crate::tests::{BOUND, with};

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
