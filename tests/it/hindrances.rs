//! A job says why it does not move, or not faster: causes that look alike from outside are told
//! apart.

use serde_json::json;

use crate::support::relay::Relay;
use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, World, users};

/// Waits until the hindrances of a job have this cause, with this text.
async fn until_told(world: &World, job: &str, cause: &str, text: &str) {
    until(&format!("{cause}: {text}"), BOUND, async || {
        let record = world.job(job).await?;
        let found = record["hindrances"].as_array()?;
        let told = found.iter().find(|it| it["cause"] == cause)?;
        told["what"].as_str()?.contains(text).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_jobs_hanging_calls_a_lost_broker_and_a_missing_worker_are_told_apart() {
    let Some(plan) = Plan::shared() else { return };
    let (relay, amqp) = Relay::before(&plan.amqp).await;
    let mut plan = Plan { amqp, ..plan };
    plan.target.push_str("\ncalls_in_flight = 8");
    plan.more.push_str("[apps.shop]\n[apps.news]");
    let world = plan.start("causes").await;
    let slow = |latency: &str| world.mock.patch_faults(&json!({ "latency": latency }));
    slow("50ms").unwrap();
    let patient = [
        ("FANWISE_TARGETS__IM__CALL_TIMEOUT", "60s"),
        ("FANWISE_LEDGER__LEASE", "120s"),
    ];
    let worker = world.worker_with(&patient).await;
    let to = users(20_000);
    let shop = world.send("shop", &to, &["--app", "shop"]).await;
    until_told(&world, &shop, "target", "time of the target's answers").await;

    let news = world.send("news", &to, &["--app", "news"]).await;
    let whose = format!("job {news} of app news has ");
    until_told(&world, &shop, "other_jobs", &whose).await;
    let whose = format!("job {shop} of app shop has ");
    until_told(&world, &news, "other_jobs", &whose).await;

    // The calls hang, and then answer again.
    slow("8s").unwrap();
    until_told(
        &world,
        &shop,
        "target",
        "8 calls wait for im, the oldest for",
    )
    .await;
    slow("50ms").unwrap();

    relay.cut().await;
    until_told(&world, &shop, "broker", "no worker has a session").await;
    relay.restore();
    until_told(&world, &shop, "other_jobs", "").await;

    worker.drain().await;
    until_told(&world, &shop, "no_worker", "no worker is running").await;
    world.end().await;
}
