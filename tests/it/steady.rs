//! Targets that throttle or fail: the adapted limit, the breaker, and calls that wait meanwhile.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, Worker, World, users};

async fn listed(world: &World) -> Value {
    world.json(&["target", "list"]).await[0].clone()
}

async fn metric(worker: &Worker, name: &str) -> f64 {
    worker.metrics().await.get(name).copied().unwrap_or(0.0)
}

/// After a 429 the limit halves for every worker, climbs back, and shows how far it is. An operator
/// who sets a limit ends that.
#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_target_gets_half_of_its_limit_and_more_over_time() {
    let Some(mut plan) = Plan::shared() else {
        return;
    };
    plan.target
        .push_str("\nlimit = \"200/s burst 20\"\nadapt_interval = \"1h\"");
    let world = plan.start("adapted").await;
    let burst = json!({ "burst": { "after": 100, "for": "1s", "retry_after": 1 } });
    world.mock.patch_faults(&burst).unwrap();
    let workers = [world.worker().await, world.worker().await];
    let recipients = users(700);
    let job = world.send("adapted", &recipients, &[]).await;
    let target = until("the adapted limit", BOUND, async || {
        let target = listed(&world).await;
        target["adapted_limit"].is_string().then_some(target)
    })
    .await;
    assert_eq!(target["adapted_limit"], "100/s burst 10", "{target}");
    assert_eq!(target["limit"], "200/s burst 20");
    let shown = world.run(&["target", "list"]).await.stdout;
    assert!(
        shown.contains("adapted: 100/s burst 10 of 200/s burst 20"),
        "{shown}"
    );
    // Both workers know, and together they send at half the limit.
    for worker in &workers {
        until("the limit in the metrics", BOUND, async || {
            let name = "fanwise_limit_recipients_per_second{name=\"im\",scope=\"target\"}";
            (metric(worker, name).await == 100.0).then_some(())
        })
        .await;
    }
    let mut cause = None;
    until("the end of the job", BOUND, async || {
        let record = world.job(&job).await?;
        let why = record["hindrances"][0]["what"].as_str().unwrap_or_default();
        if why.contains("has its limit adapted: 100/s burst 10 of 200/s burst 20; it climbs until")
        {
            cause = Some(why.to_owned());
        }
        (record["state"] == "completed").then_some(())
    })
    .await;
    assert!(cause.is_some(), "the job never said why it is slow");
    world.assert_once_each(&recipients);
    // The calls after the block: 100 units a second, one burst, and one block of each worker.
    let mut times: Vec<_> = world.mock.accepted().iter().map(|it| it.at_us).collect();
    times.sort_unstable();
    let after = &times[150..];
    let calls = after
        .iter()
        .filter(|at| **at < after[0] + 2_000_000)
        .count();
    assert!(calls <= 200 + 10 + 2 * 5, "{calls} calls in two seconds");
    let set = world
        .run(&["limits", "set", "target", "im", "default"])
        .await;
    assert_eq!(set.code, Some(0), "{}", set.stderr);
    assert!(listed(&world).await["adapted_limit"].is_null());
    for worker in workers {
        worker.drain().await;
    }
    world.end().await;
}

/// A target that fails gets the calls in flight when the breaker opens, and then one call at a time
/// until it answers. Calls that waited for a place are not made.
#[tokio::test(flavor = "multi_thread")]
async fn a_failing_target_is_tried_with_single_calls() {
    let Some(mut plan) = Plan::shared() else {
        return;
    };
    plan.target
        .push_str("\ncalls_in_flight = 16\nbreaker_failures = 20");
    plan.more = "[apps.default]\nretry.attempts_max = 50".to_owned();
    let world = plan.start("breaker").await;
    let failing = json!({ "error_503": 1.0, "latency": "20ms" });
    world.mock.patch_faults(&failing).unwrap();
    let worker = world.worker().await;
    let recipients = users(1500);
    let job = world.send("breaker", &recipients, &[]).await;
    let parks = "fanwise_target_parks_total{reason=\"breaker\",target=\"im\"}";
    let in_flight = "fanwise_calls_in_flight{target=\"im\"}";
    until("the breaker", BOUND, async || {
        let metrics = worker.metrics().await;
        (metrics[parks] >= 1.0 && metrics[in_flight] == 0.0).then_some(())
    })
    .await;
    let first = world.mock.stats().requests;
    let opened = metric(&worker, parks).await;
    assert!(
        first <= 20 + 16 + opened as u64,
        "{first} calls, opened {opened} times"
    );
    // Each further call opens it again, for longer.
    until("two tries", BOUND, async || {
        (metric(&worker, parks).await >= 3.0).then_some(())
    })
    .await;
    let (requests, opened) = (world.mock.stats().requests, metric(&worker, parks).await);
    assert!(
        requests <= 20 + 16 + opened as u64,
        "{requests} calls, opened {opened} times"
    );
    world
        .mock
        .patch_faults(&json!({ "error_503": null, "latency": null }))
        .unwrap();
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 1500, "{record}");
    world.assert_once_each(&recipients);
    worker.drain().await;
    world.end().await;
}

/// A target that answers half of its calls with an error never fails often enough in a row. The
/// share of failures opens the breaker.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_fails_most_calls_opens_the_breaker() {
    let Some(mut plan) = Plan::shared() else {
        return;
    };
    plan.target
        .push_str("\nbreaker_failures = 40\nbreaker_ratio = 0.6\nbreaker_window = \"10m\"");
    plan.more = "[apps.default]\nretry.attempts_max = 50".to_owned();
    let world = plan.start("ratio").await;
    world
        .mock
        .patch_faults(&json!({ "error_503": 0.8 }))
        .unwrap();
    let worker = world.worker().await;
    let recipients = users(500);
    let job = world.send("ratio", &recipients, &[]).await;
    let parks = "fanwise_target_parks_total{reason=\"breaker\",target=\"im\"}";
    until("the breaker", Duration::from_secs(60), async || {
        (metric(&worker, parks).await >= 1.0).then_some(())
    })
    .await;
    world
        .mock
        .patch_faults(&json!({ "error_503": null }))
        .unwrap();
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 500, "{record}");
    world.assert_once_each(&recipients);
    worker.drain().await;
    world.end().await;
}
