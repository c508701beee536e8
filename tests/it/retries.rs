//! Retry policies of targets and apps, and the retry budget of a job.

use serde_json::json;

use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, users};

/// The app's keys come before the target's, and the target's before those of `[retry]`. With a
/// budget, a backend that fails every call gets the first calls and the share of retries, exactly.
#[tokio::test(flavor = "multi_thread")]
async fn retries_follow_the_app_then_the_target_and_stop_at_the_budget() {
    let Some(mut plan) = Plan::shared() else {
        return;
    };
    plan.target
        .push_str("\nretry.attempts_max = 5\nretry.budget = 0.1\nbreaker_failures = 100000");
    plan.more = "[apps.once]\nretry.attempts_max = 1\n[apps.default]".to_owned();
    let world = plan.start("retries").await;
    let failing = json!({ "error_503": 1.0 });
    world.mock.patch_faults(&failing).unwrap();
    let worker = world.worker().await;
    let recipients = users(200);

    // One attempt each.
    let once = world.send("once", &recipients, &["--app", "once"]).await;
    let record = world.completed(&once).await;
    assert_eq!(record["accounts"]["failed"], 200, "{record}");
    let dead = world.dead(&once).await;
    assert!(dead.values().all(|(_, code)| code == "503"), "{dead:?}");
    assert_eq!(world.mock.stats().requests, 200);

    // A job of 200 has 20 retries, and one more for the rounding of each of its four slices.
    let job = world.send("budget", &recipients, &[]).await;
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["failed"], 200, "{record}");
    let dead = world.dead(&job).await;
    assert!(
        dead.values().all(|(_, code)| code == "retry_budget"),
        "{dead:?}"
    );
    let retries = world.mock.stats().requests - 400;
    assert!((20..=24).contains(&retries), "{retries}");
    let letters = world.json(&["dead", "list", "--job", &job]).await;
    let text = letters[0]["text"].as_str().unwrap();
    let spent = text.starts_with("the retry budget of the job is spent after ");
    assert!(
        spent && text.contains("; the last answer was 503"),
        "{text}"
    );
    let metrics = worker.metrics().await;
    assert_eq!(metrics["fanwise_unretried_total{target=\"im\"}"], 200.0);
    assert_eq!(
        metrics["fanwise_retries_total{target=\"im\"}"],
        retries as f64
    );

    // What the budget left is sent later, and exactly once.
    let healthy = json!({ "error_503": null });
    world.mock.patch_faults(&healthy).unwrap();
    let redrive = [
        "dead",
        "redrive",
        "--job",
        &job,
        "--code",
        "retry_budget",
        "--yes",
        "--json",
    ];
    let redriven = world.run(&redrive).await;
    assert_eq!(redriven.code, Some(0), "{}", redriven.stderr);
    until("the redriven recipients", BOUND, async || {
        (world.mock.stats().accepted >= 200).then_some(())
    })
    .await;
    world.assert_once_each(&recipients);
    worker.drain().await;
    world.end().await;
}

/// A small job keeps ten retries, whatever the share.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_one_recipient_is_retried_despite_a_budget() {
    let Some(mut plan) = Plan::shared() else {
        return;
    };
    plan.target.push_str("\nretry.budget = 0.01");
    let world = plan.start("small-budget").await;
    let failing = json!({ "error_503": { "rate": 1.0, "count": 2 } });
    world.mock.patch_faults(&failing).unwrap();
    let worker = world.worker().await;
    let job = world.send("one", &users(1), &[]).await;
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 1, "{record}");
    assert_eq!(world.mock.stats().requests, 3);
    worker.drain().await;
    world.end().await;
}
