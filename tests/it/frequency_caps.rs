//! Frequency caps over several jobs, on the real servers and on the embedded engine.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::embedded::Place;
use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, accepted_by, users};

/// At most two messages of the category an hour.
const CAP: &str = "[apps.default.frequency_caps.marketing]\nmax = 2\nperiod = \"1h\"";

fn count(record: &Value, outcome: &str) -> u64 {
    record["accounts"][outcome].as_u64().unwrap()
}

/// Three jobs at a time on two workers, one of which is killed, with throttled calls and errors that
/// are retried: each recipient gets two messages, and the accounts of each job are exact.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_more_messages_of_a_category_than_its_cap() {
    let Some(plan) = Plan::shared() else { return };
    let world = Plan {
        more: CAP.to_owned(),
        ..plan
    }
    .start("caps")
    .await;
    let unknown = ["send", "u1", "--client-msg-no", "x", "--text", "x"];
    let unknown = world
        .run(&[&unknown[..], &["--category", "marketting"]].concat())
        .await;
    assert_eq!(unknown.code, Some(65), "{}", unknown.stderr);
    let what = "category: app \"default\" has no category \"marketting\"; its configuration names \
                these in [apps.default.frequency_caps]: marketing";
    assert!(unknown.stderr.contains(what), "{}", unknown.stderr);

    let faults = json!({"latency": "2ms", "error_503": {"count": 20}, "refuse_prefix": "bad-"});
    world.mock.patch_faults(&faults).unwrap();
    let (mut first, second) = (world.worker().await, world.worker().await);
    let recipients = users(900);
    let mut jobs = Vec::new();
    for key in ["a", "b", "c"] {
        // Some are listed twice, which costs them no unit.
        let listed = [&recipients[..], &recipients[..50]].concat();
        jobs.push(world.send(key, &listed, &["--category", "marketing"]).await);
    }
    until("some calls", BOUND, async || {
        (world.mock.stats().accepted >= 300).then_some(())
    })
    .await;
    first.process.kill();
    let mut all = BTreeMap::<&str, u64>::new();
    let mut uncapped = None;
    for job in &jobs {
        let record = world.completed(job).await;
        for outcome in ["sent", "capped", "duplicate", "uncertain", "failed"] {
            *all.entry(outcome).or_default() += count(&record, outcome);
        }
        assert_eq!(record["category"], "marketing", "{record}");
        assert_eq!(
            world.dead(job).await.len() as u64,
            count(&record, "uncertain")
        );
        uncapped = uncapped.or((count(&record, "capped") > 0).then(|| job.clone()));
    }
    // A unit that the killed worker took stays with its job, whose next delivery uses it. A
    // recipient in doubt that finds no unit ends uncertain.
    assert_eq!(
        (all["sent"], all["duplicate"], all["failed"]),
        (1800, 150, 0),
        "{all:?}"
    );
    assert_eq!(all["capped"] + all["uncertain"], 900, "{all:?}");
    assert!(world.accepted().values().all(|count| *count == 2));

    // A capped recipient is named as such, and has no dead letter.
    let job = uncapped.unwrap();
    let list = recipients.join("\n");
    let lookup = ["job", "recipients", &job, "--file", "-", "--json"];
    let found = world.run_with_input(&lookup, list.as_bytes()).await;
    let rows = found
        .stdout
        .lines()
        .map(|row| serde_json::from_str(row).unwrap());
    let capped = rows.filter(|row: &Value| row["state"] == "capped").count() as u64;
    let record = world.job(&job).await.unwrap();
    assert_eq!(capped, count(&record, "capped"), "{record}");

    // Without a category nothing is capped or counted.
    let plain = world.send("plain", &recipients, &[]).await;
    assert_eq!(count(&world.completed(&plain).await, "sent"), 900);
    // Whoever is refused got no message, so a third job still tries.
    let bad: Vec<_> = (0..10).map(|number| format!("bad-{number}")).collect();
    for key in ["bad-a", "bad-b", "bad-c"] {
        let more = ["--category", "marketing", "--wait"];
        let job = world.send(key, &bad, &more).await;
        assert_eq!(count(&world.completed(&job).await, "failed"), 10);
    }
    let metrics = second.metrics().await;
    assert!(metrics["fanwise_recipients_total{outcome=\"capped\",target=\"im\"}"] > 0.0);
    second.drain().await;
    world.end().await;
}

/// On the embedded engine the count outlives the process, a job that is cancelled gives its units
/// back, and the gateway names what it does not know.
#[tokio::test(flavor = "multi_thread")]
async fn serve_remembers_who_has_reached_the_cap() {
    let place = Place::with("serve-caps", CAP).await;
    let submit = async |key: &str, more: Value| {
        let mut job = json!({"v": 1, "client_msg_no": key, "category": "marketing",
            "audience": {"users": users(150)}, "message": {"type": "text", "text": "hello"}});
        job.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let body = job.to_string().into_bytes();
        place.request(place.gateway, "POST /v1/jobs", &body).await
    };
    let process = place.serve().await;
    let (status, answer) = submit("x", json!({"category": "news"})).await;
    assert_eq!(status, 400, "{answer}");
    assert!(
        answer.contains("\"category\"") && answer.contains("marketing"),
        "{answer}"
    );
    assert_eq!(submit("a", json!({})).await.0, 202);
    assert_eq!(count(&place.completed("a").await, "sent"), 150);

    // Its calls are refused as too fast or wait for their limit when it is cancelled.
    assert_eq!(submit("slow", json!({"rate": "1/s burst 1"})).await.0, 202);
    until("a call", BOUND, async || {
        (accepted_by(&place.mock)["u1"] >= 1).then_some(())
    })
    .await;
    let cancelled = place.run(&["job", "cancel", "slow"], b"").await;
    assert_eq!(cancelled.code, Some(0), "{}", cancelled.stderr);
    let slow = place.completed("slow").await;
    assert!(count(&slow, "cancelled") > 100, "{slow}");
    process.terminate();
    let mut process = process;
    assert_eq!(process.wait(Duration::from_secs(30)).await.code(), Some(0));

    let mut process = place.serve().await;
    assert_eq!(submit("b", json!({})).await.0, 202);
    let b = place.completed("b").await;
    assert_eq!(submit("c", json!({})).await.0, 202);
    let c = place.completed("c").await;
    let sent = count(&slow, "sent") + count(&b, "sent");
    assert_eq!((sent, count(&b, "capped")), (150, count(&slow, "sent")));
    assert_eq!((count(&c, "sent"), count(&c, "capped")), (0, 150), "{c}");
    assert!(accepted_by(&place.mock).values().all(|count| *count == 2));
    for key in ["a", "slow", "b", "c"] {
        assert_eq!(place.json(&["job", "verify", key]).await["exact"], true);
    }
    process.terminate();
    assert_eq!(process.wait(Duration::from_secs(30)).await.code(), Some(0));
}
