//! Processes that were stopped (SIGSTOP), as a paused machine is, and go on: what changed meanwhile
//! holds from their first call on.

use std::time::{Duration, UNIX_EPOCH};

use fanwise_mock_im::MockHandle;
use serde_json::json;

use crate::embedded::Place;
use crate::support::servers::{PrivateCluster, PrivateRedis, amqp_url};
use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, Worker, World, users};

/// How long a process is stopped: longer than directives may be old, and than a call may connect.
const STOPPED: Duration = Duration::from_millis(2500);

/// Calls after which all connections are open. A request on one that the server has not accepted yet
/// would arrive seconds after it left.
const UNDER_WAY: usize = 5000;

async fn until_accepted(mock: &MockHandle, count: usize) {
    until("the first calls", BOUND, async || {
        (mock.stats().accepted >= count as u64).then_some(())
    })
    .await;
}

/// Lets the worker go on; returns the time just before, in microseconds since 1970.
fn go_on(worker: &Worker) -> u128 {
    let at = UNIX_EPOCH.elapsed().unwrap().as_micros();
    worker.process.resume();
    at
}

/// Checks that no call has started since then. A thread that was stopped between its last look and its
/// write finishes that write, so there may be one call for each.
fn assert_none_since(world: &World, since: u128, what: &str) {
    let threads = std::thread::available_parallelism().unwrap().get();
    let log = world.mock.accepted();
    let late = log.iter().filter(|it| u128::from(it.at_us) >= since);
    let late = late.count();
    assert!(late <= threads, "{late} calls after {what}");
}

/// A job is cancelled, another one paused, while the worker is stopped in the middle of it. No call
/// for it leaves after that.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_stopped_knows_of_a_cancel_before_its_next_call() {
    let Some(plan) = Plan::shared() else { return };
    stops(plan, "stopped").await;
}

/// The same where the directives and the claims are on different nodes: the claims are answered first.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_stopped_knows_of_a_cancel_on_a_redis_cluster() {
    let (Some(amqp), Some(cluster)) = (amqp_url(), PrivateCluster::start().await) else {
        return;
    };
    stops(Plan::on(&amqp, cluster.url()), "stopped-cluster").await;
}

async fn stops(plan: Plan, name: &str) {
    let world = plan.start(name).await;
    let worker = world.worker().await;
    let recipients = users(20_000);
    for round in 0..2 {
        let paused = round % 2 == 1;
        let before = world.mock.accepted().len();
        let job = world.send(&format!("job-{round}"), &recipients, &[]).await;
        until_accepted(&world.mock, before + UNDER_WAY).await;
        worker.process.freeze();
        let command = if paused { "pause" } else { "cancel" };
        world.json(&["job", command, &job]).await;
        tokio::time::sleep(STOPPED).await;
        let since = go_on(&worker);
        if paused {
            until("the pause is known", BOUND, async || {
                let metrics = worker.metrics().await;
                let paused = metrics["fanwise_directives{action=\"pause\",scope=\"job\"}"];
                (paused > 0.0).then_some(())
            })
            .await;
            assert_none_since(&world, since, "the pause");
            world.json(&["job", "cancel", &job]).await;
        }
        let record = world.completed(&job).await;
        assert!(
            record["accounts"]["cancelled"].as_u64() > Some(0),
            "{record}"
        );
        assert_none_since(&world, since, command);
    }
    worker.drain().await;
    world.end().await;
}

/// The same while the ledger is away when the worker goes on: nothing leaves before it has heard
/// from the ledger again.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_stopped_sends_nothing_while_the_ledger_is_away() {
    let (Some(amqp), Some(redis)) = (amqp_url(), PrivateRedis::start().await) else {
        return;
    };
    let world = Plan::on(&amqp, redis.url()).start("stopped-away").await;
    let worker = world.worker().await;
    let job = world.send("job", &users(40_000), &[]).await;
    until_accepted(&world.mock, UNDER_WAY).await;
    worker.process.freeze();
    world.json(&["job", "cancel", &job]).await;
    redis.freeze();
    tokio::time::sleep(STOPPED).await;
    let since = go_on(&worker);
    until("the worker misses the ledger", BOUND, async || {
        let told = worker.admin("/readyz").await?;
        (told.split(' ').nth(1)? == "503").then_some(())
    })
    .await;
    assert_none_since(&world, since, "the ledger went away");
    redis.resume();
    let record = world.completed(&job).await;
    assert!(
        record["accounts"]["cancelled"].as_u64() > Some(0),
        "{record}"
    );
    assert_none_since(&world, since, "the cancel");
    worker.drain().await;
    world.end().await;
}

/// A worker is stopped for longer than its claims last, and another one takes over. Nobody gets the
/// message twice when the first one goes on, and those who did not get it are the ones in doubt.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_stopped_for_longer_than_its_claims_sends_nothing_twice() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.not_idempotent().start("stopped-long").await;
    let slow = json!({"latency": "5ms..20ms"});
    world.mock.patch_faults(&slow).unwrap();
    let (first, second) = (world.worker().await, world.worker().await);
    let recipients = users(6000);
    let job = world.send("job", &recipients, &[]).await;
    until_accepted(&world.mock, 1000).await;
    first.process.freeze();
    until("the other worker takes over", BOUND, async || {
        let record = world.job(&job).await?;
        (record["accounts"]["uncertain"].as_u64() > Some(0)).then_some(())
    })
    .await;
    first.process.resume();
    world.completed(&job).await;
    let dead = world.dead(&job).await;
    let accepted = world.accepted();
    for recipient in &recipients {
        match accepted.get(recipient) {
            Some(times) => assert_eq!(*times, 1, "{recipient}"),
            None => assert_eq!(dead[recipient].0, "uncertain", "{recipient}"),
        }
    }
    first.drain().await;
    second.drain().await;
    world.end().await;
}

/// A process that is all in one goes on where it was stopped.
#[tokio::test(flavor = "multi_thread")]
async fn serve_goes_on_after_it_was_stopped() {
    let place = Place::new("stopped").await;
    let process = place.serve().await;
    let recipients = users(20_000);
    place.send("job", &recipients, &[]).await;
    until_accepted(&place.mock, 1000).await;
    process.freeze();
    tokio::time::sleep(STOPPED).await;
    assert!(
        place.mock.accepted().len() < recipients.len(),
        "it was not stopped"
    );
    process.resume();
    let record = place.completed("job").await;
    assert_eq!(record["accounts"]["sent"], recipients.len(), "{record}");
    assert_eq!(place.accepted_once().len(), recipients.len());
}
