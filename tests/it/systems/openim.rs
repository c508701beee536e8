//! Tests OpenIM: a token that expires while a job runs, probes after lost replies, errors after the
//! send that no probe can clear up, and packed calls that give no reasons.

use std::collections::BTreeMap;

use fanwise_mock_im::Settings;
use serde_json::json;

use super::until_accepted;
use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, World, users};

/// One server as the target `im`.
async fn start(name: &str, more: &str) -> Option<World> {
    let mut plan = Plan::shared()?;
    plan.mock = Settings::default();
    plan.target = format!("type = \"openim\"\nsecret = \"openIM123\"\nsender = \"news\"\n{more}");
    Some(plan.start(name).await)
}

/// All tokens are revoked twice while messages are sent: a new one is fetched, and no recipient is
/// affected.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_revoked_in_mid_run_is_renewed() {
    let Some(world) = start("token", "").await else {
        return;
    };
    world
        .mock
        .patch_faults(&json!({ "latency": "5ms" }))
        .unwrap();
    let worker = world
        .worker_with(&[("FANWISE_RETRY__ATTEMPTS_MAX", "1")])
        .await;
    let recipients = users(3000);
    let job = world.send("token", &recipients, &[]).await;
    for (accepted, code) in [(300, 1501), (1500, 1506)] {
        until_accepted(&world.mock, accepted).await;
        assert!(world.mock.stats().accepted < 3000, "too late for this test");
        assert_eq!(
            world.mock.revoke_openim_tokens(code),
            1,
            "one token at a time"
        );
    }
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 3000, "{record}");
    world.assert_once_each(&recipients);
    assert!(world.dead(&job).await.is_empty());
    let log = worker.process.stderr();
    assert!(!log.contains("configuration fault"), "{log}");
    worker.drain().await;
    world.end().await;
}

/// Messages whose replies are lost were sent, and a probe confirms it.
#[tokio::test(flavor = "multi_thread")]
async fn a_probe_after_a_lost_reply_finds_what_was_sent() {
    let Some(world) = start("probe", "").await else {
        return;
    };
    let faults = json!({ "reply_closed": "x40", "reset_after": "x40", "half_body": "x40" });
    world.mock.patch_faults(&faults).unwrap();
    let worker = world
        .worker_with(&[("FANWISE_RETRY__ATTEMPTS_MAX", "1")])
        .await;
    // The login is a call too and can get a fault: it is done before the first message.
    let recipients = users(400);
    let job = world.send("probe", &recipients, &[]).await;
    let record = world.completed(&job).await;
    let dead = world.dead(&job).await;
    world.assert_once_each(&recipients);
    let stats = world.mock.stats();
    for kind in ["reply_closed", "reset_after", "half_body"] {
        assert_eq!(stats.faults[kind], 40, "{stats:?}");
    }
    // A probe can get a fault as well. Then the recipient stays in doubt, and nothing is sent
    // again.
    assert_eq!(record["accounts"]["failed"], 0, "{record}");
    assert!(dead.len() <= 60, "{} of 120 could not be found", dead.len());
    assert_eq!(record["accounts"]["sent"], 400 - dead.len(), "{record}");
    worker.drain().await;
    world.end().await;
}

/// An error after the send leaves no note: a probe would answer "not sent" for a message that was
/// sent. So there is no probe and no second send.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_after_the_send_is_never_sent_again() {
    let Some(world) = start("after", "").await else {
        return;
    };
    let worker = world.worker().await;
    // The token is fetched before the errors begin.
    let first = world.send("first", &users(1), &[]).await;
    world.completed(&first).await;
    let faults = json!({ "error_after": "x25" });
    world.mock.patch_faults(&faults).unwrap();
    let recipients: Vec<_> = (0..200).map(|number| format!("v{number}")).collect();
    let job = world.send("after", &recipients, &[]).await;
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 175, "{record}");
    assert_eq!(record["accounts"]["uncertain"], 25, "{record}");
    let dead = world.dead(&job).await;
    let expected = ("uncertain".to_owned(), "err_500".to_owned());
    assert!(dead.values().all(|it| *it == expected), "{dead:?}");
    world.assert_once_each(users(1).iter().chain(&recipients));
    assert_eq!(world.mock.stats().requests, 202, "a token, and a call each");
    worker.drain().await;
    world.end().await;
}

/// A packed call lists failed recipients without a reason. Each of them is called alone, which
/// returns it.
#[tokio::test(flavor = "multi_thread")]
async fn a_packed_call_learns_the_reasons_one_by_one() {
    let Some(world) = start("packed", "packed = true").await else {
        return;
    };
    let codes = json!({ "codes": { "u3": 1302, "u77": 1004, "u150": 1001 } });
    world.mock.patch_openim(&codes).unwrap();
    let worker = world
        .worker_with(&[("FANWISE_RETRY__ATTEMPTS_MAX", "1")])
        .await;
    let mut recipients = users(400);
    let job = world.send("packed", &recipients, &[]).await;
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 397, "{record}");
    let failed = |code: &str| ("failed".to_owned(), code.to_owned());
    let expected = BTreeMap::from([
        ("u3".to_owned(), failed("err_1302")),
        ("u77".to_owned(), failed("err_1004")),
        ("u150".to_owned(), failed("err_1001")),
    ]);
    assert_eq!(world.dead(&job).await, expected);
    recipients.retain(|it| !expected.contains_key(it));
    world.assert_once_each(&recipients);
    let requests = world.mock.stats().requests;
    assert!(requests < 40, "{requests} calls for 400 recipients");

    // The effect of a packed call that ends in an error is unknown.
    let faults = json!({ "error_after": "x1" });
    world.mock.patch_faults(&faults).unwrap();
    let more: Vec<_> = (0..50).map(|number| format!("v{number}")).collect();
    let job = world.send("doubt", &more, &[]).await;
    let record = world.completed(&job).await;
    assert!(
        record["accounts"]["uncertain"].as_u64() > Some(0),
        "{record}"
    );
    assert_eq!(record["accounts"]["failed"], 0, "{record}");
    recipients.extend(more);
    until("the log", BOUND, async || {
        (world.accepted().len() == recipients.len()).then_some(())
    })
    .await;
    world.assert_once_each(&recipients);
    worker.drain().await;
    world.end().await;
}
