//! Tests the promises while RabbitMQ or Redis die, and while links are cut. These tests start
//! servers of their own and run one at a time.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::support::relay::{Relay, Way};
use crate::support::servers::{PrivateRabbit, PrivateRedis};
use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, World, users};

async fn until_accepted(world: &World, count: usize) {
    let what = format!("{count} messages accepted by the mock");
    until(&what, BOUND, async || {
        (world.mock.stats().accepted >= count as u64).then_some(())
    })
    .await;
}

/// The broker dies right after it has confirmed a job, and again in the middle of it.
#[tokio::test(flavor = "multi_thread")]
async fn promise_1_accepted_is_durable() {
    let (Some(mut rabbit), Some(redis)) =
        (PrivateRabbit::start().await, PrivateRedis::start().await)
    else {
        return;
    };
    let world = Plan::on(rabbit.url(), redis.url()).start("durable").await;
    // The queues are older than the first kill; docs/promises.md says why that matters.
    let applied = world.run(&["topology", "apply"]).await;
    assert_eq!(applied.code, Some(0), "{}", applied.stderr);
    let recipients = users(4000);
    let job = world.send("durable", &recipients, &[]).await;
    rabbit.kill().await;
    rabbit.start_again().await;
    world
        .mock
        .patch_faults(&json!({"latency": "10ms"}))
        .unwrap();
    let worker = world.worker().await;
    until_accepted(&world, 1000).await;
    rabbit.kill().await;
    rabbit.start_again().await;
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 4000, "{record}");
    world.assert_once_each(&recipients);
    worker.drain().await;
}

/// Redis dies while a job runs: the lanes stop, nothing is sent that cannot be recorded, and the
/// job goes on when Redis is back, without its scripts.
#[tokio::test(flavor = "multi_thread")]
async fn promise_6_what_cannot_be_recorded_is_not_sent() {
    let (Some(rabbit), Some(mut redis)) =
        (PrivateRabbit::start().await, PrivateRedis::start().await)
    else {
        return;
    };
    let mut plan = Plan::on(rabbit.url(), redis.url()).not_idempotent();
    plan.target.push_str("\ncalls_in_flight = 64");
    let world = plan.start("ledgerdown").await;
    world
        .mock
        .patch_faults(&json!({"latency": "10ms"}))
        .unwrap();
    let worker = world.worker().await;
    let recipients = users(6000);
    let job = world.send("ledgerdown", &recipients, &[]).await;
    until_accepted(&world, 1000).await;
    redis.kill().await;
    until(
        "the worker says that the ledger is down",
        BOUND,
        async || (worker.metrics().await.get("fanwise_ledger_up") == Some(&0.0)).then_some(()),
    )
    .await;
    // Calls that were in flight may still arrive; after them nothing does.
    let settled = until("sending stops", BOUND, async || {
        let before = world.mock.stats().accepted;
        tokio::time::sleep(Duration::from_secs(1)).await;
        (world.mock.stats().accepted == before).then_some(before)
    })
    .await;
    assert!(settled < 6000, "Redis was killed too late for this test");
    redis.start_again().await;
    let record = world.completed(&job).await;
    let count = |outcome: &str| record["accounts"][outcome].as_u64().unwrap();
    assert_eq!(count("sent") + count("uncertain"), 6000, "{record}");
    assert!(count("uncertain") <= 64, "{record}");
    assert!(world.accepted().values().all(|count| *count == 1));
    worker.drain().await;
}

/// The link to the broker breaks twice while a job runs: by a reset, and by silence.
#[tokio::test(flavor = "multi_thread")]
async fn promise_5_links_that_break_lose_nothing() {
    let (Some(rabbit), Some(redis)) = (PrivateRabbit::start().await, PrivateRedis::start().await)
    else {
        return;
    };
    let (amqp_relay, amqp) = Relay::before(rabbit.url()).await;
    let (redis_relay, ledger) = Relay::before(redis.url()).await;
    let world = Plan::on(&amqp, &ledger)
        .not_idempotent()
        .start("links")
        .await;
    world
        .mock
        .patch_faults(&json!({"latency": "10ms"}))
        .unwrap();
    let worker = world.worker().await;
    let recipients = users(8000);
    let job = world.send("links", &recipients, &[]).await;
    until_accepted(&world, 1000).await;
    amqp_relay.cut_after(Way::ToClient, 10_000);
    until("the broker link is cut", BOUND, async || {
        amqp_relay.is_cut().then_some(())
    })
    .await;
    amqp_relay.restore();
    let before = world.mock.stats().accepted;
    until_accepted(&world, before as usize + 500).await;
    redis_relay.reset().await;
    let before = world.mock.stats().accepted;
    until_accepted(&world, before as usize + 500).await;
    amqp_relay.blackhole();
    until("the worker notices the silence", BOUND, async || {
        (worker
            .metrics()
            .await
            .get(r#"fanwise_broker_up{role="worker"}"#)
            == Some(&0.0))
        .then_some(())
    })
    .await;
    amqp_relay.restore();
    let record = world.completed(&job).await;
    let count = |outcome: &str| record["accounts"][outcome].as_u64().unwrap();
    assert_eq!(count("sent") + count("uncertain"), 8000, "{record}");
    assert!(world.accepted().values().all(|count| *count == 1));
    worker.drain().await;
}

/// Redis comes back empty: the dedup window is lost, recipients are not.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_ledger_loses_no_recipient() {
    let (Some(rabbit), Some(redis)) = (PrivateRabbit::start().await, PrivateRedis::start().await)
    else {
        return;
    };
    let world = Plan::on(rabbit.url(), redis.url()).start("flush").await;
    world
        .mock
        .patch_faults(&json!({"latency": "10ms"}))
        .unwrap();
    let worker = world.worker().await;
    let recipients = users(6000);
    let job = world.send("flush", &recipients, &[]).await;
    until_accepted(&world, 1500).await;
    world.redis_command(&["FLUSHALL"]).await;
    world.redis_command(&["SCRIPT", "FLUSH"]).await;
    let record = until("completion of the rebuilt job", BOUND, async || {
        world
            .job(&job)
            .await
            .filter(|record| record["state"] == "completed")
    })
    .await;
    assert_eq!(record["rebuilt"], true, "{record}");
    world.assert_once_each(&recipients);
    worker.drain().await;
}

/// Redis is full and refuses to record, so nothing is sent until it has space again.
#[tokio::test(flavor = "multi_thread")]
async fn promise_6_a_full_ledger_stops_the_lanes() {
    let (Some(rabbit), Some(redis)) = (PrivateRabbit::start().await, PrivateRedis::start().await)
    else {
        return;
    };
    let world = Plan::on(rabbit.url(), redis.url()).start("full").await;
    let worker = world.worker().await;
    world
        .redis_command(&["CONFIG", "SET", "maxmemory", "100kb"])
        .await;
    let recipients = users(500);
    let job = world.send("full", &recipients, &[]).await;
    until("the worker meets the full ledger", BOUND, async || {
        (worker
            .metrics()
            .await
            .get("fanwise_ledger_errors_total{step=\"accept\"}")
            > Some(&0.0))
        .then_some(())
    })
    .await;
    assert_eq!(world.mock.stats().accepted, 0);
    world
        .redis_command(&["CONFIG", "SET", "maxmemory", "0"])
        .await;
    world.completed(&job).await;
    world.assert_once_each(&recipients);
    worker.drain().await;
}

/// A worker is ready only while its ledger accepts writes: a full server or a replica still answers
/// reads, and a server that hangs answers nothing.
#[tokio::test(flavor = "multi_thread")]
async fn readiness_goes_by_writes() {
    let (Some(rabbit), Some(mut redis)) =
        (PrivateRabbit::start().await, PrivateRedis::start().await)
    else {
        return;
    };
    let world = Plan::on(rabbit.url(), redis.url()).start("ready").await;
    let worker = world.worker().await;
    let is_ready = async || {
        worker
            .admin("/readyz")
            .await
            .is_some_and(|it| it.contains(" 200 "))
    };
    let until_ready = async |wanted: bool| {
        let what = format!("readiness is {wanted}");
        until(&what, BOUND, async || {
            (is_ready().await == wanted).then_some(())
        })
        .await;
    };
    until_ready(true).await;
    // The store is checked this often meanwhile.
    let stays_away = async |why: &str| {
        until_ready(false).await;
        for _ in 0..20 {
            let answer = worker.answer("/readyz").await.unwrap();
            assert!(
                answer.contains(" 503 ")
                    && answer.contains(r#""name":"ledger","ready":false,"reason":"#),
                "{why}: {answer}"
            );
            let metrics = worker.metrics().await;
            assert_eq!(metrics.get("fanwise_ledger_up"), Some(&0.0), "{why}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    world
        .redis_command(&["CONFIG", "SET", "maxmemory", "100kb"])
        .await;
    stays_away("full").await;
    world
        .redis_command(&["CONFIG", "SET", "maxmemory", "0"])
        .await;
    until_ready(true).await;
    world.redis_command(&["REPLICAOF", "127.0.0.1", "1"]).await;
    stays_away("a replica").await;
    world.redis_command(&["REPLICAOF", "NO", "ONE"]).await;
    until_ready(true).await;
    redis.freeze();
    stays_away("frozen").await;
    redis.resume();
    until_ready(true).await;
    redis.kill().await;
    stays_away("killed").await;
    redis.start_again().await;
    until_ready(true).await;
    worker.drain().await;
}

/// The current files of a server's data.
fn copy_data(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_data(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// Redis comes back with data that are some seconds old: outcomes recorded since are missing, and
/// their deliveries are acked. The worker notices and marks the job. The job ends, no recipient is
/// lost, and no command says that its accounts are exact.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_comes_back_older_is_noticed_and_its_jobs_end() {
    comes_back_older("older", true).await;
}

/// The same if no process that remembers the state of the ledger runs meanwhile: after a power
/// failure, or after a restore from a backup.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_comes_back_older_while_no_worker_runs_is_noticed() {
    comes_back_older("older-all", false).await;
}

async fn comes_back_older(name: &str, worker_stays: bool) {
    let (Some(rabbit), Some(mut redis)) =
        (PrivateRabbit::start().await, PrivateRedis::start().await)
    else {
        return;
    };
    let world = Plan::on(rabbit.url(), redis.url()).start(name).await;
    world
        .mock
        .patch_faults(&json!({"latency": "20ms"}))
        .unwrap();
    let settings = [
        ("FANWISE_LEDGER__ABANDONED_AFTER", "4s"),
        ("FANWISE_WORKER__SLICE_RECIPIENTS", "20"),
        ("FANWISE_TARGETS__IM__LIMIT", "1000/s"),
    ];
    let mut worker = world.worker_with(&settings).await;
    let client = redis::Client::open(redis.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let (_, data): (String, String) = redis::cmd("CONFIG")
        .arg(&["GET", "dir"])
        .query_async(&mut connection)
        .await
        .unwrap();
    let data = PathBuf::from(data);
    let recipients = users(5000);
    let job = world.send(name, &recipients, &[]).await;
    until_accepted(&world, 1000).await;
    let older = data.with_extension("older");
    copy_data(&data, &older);
    // More than two heartbeats later.
    until_accepted(&world, 3000).await;
    if !worker_stays {
        worker.process.kill();
    }
    redis.kill().await;
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&older, &data).unwrap();
    redis.start_again().await;
    if !worker_stays {
        worker = world.worker_with(&settings).await;
    }
    let record = until("the end of the job", BOUND, async || {
        world
            .job(&job)
            .await
            .filter(|record| record["state"] == "completed")
    })
    .await;
    assert!(record["went_back_at"].is_string(), "{record}");
    assert!(record["lost"].as_u64() > Some(0), "{record}");
    assert!(
        record["accounts"]["uncertain"].as_u64() >= record["lost"].as_u64(),
        "{record}"
    );
    assert_eq!(record["pending"], 0, "{record}");
    let verified = world.run(&["job", "verify", &job]).await;
    assert_eq!(verified.code, Some(70), "{}", verified.stdout);
    assert!(!verified.stdout.contains("exact:"), "{}", verified.stdout);
    assert!(
        verified.stdout.contains("gone back to older data"),
        "{}",
        verified.stdout
    );
    let accepted = world.accepted();
    assert_eq!(accepted.len(), recipients.len(), "no recipient is lost");
    assert!(worker.metrics().await["fanwise_ledger_went_back_total"] >= 1.0);
    worker.drain().await;
}
