//! Tests the promises of the crate documentation on the real servers, against the mock's own log.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use fanwise_mock_im::{MockIm, Settings, Version};
use serde_json::{Value, json};

use crate::support::process::{Process, fanwise, run_fanwise};
use crate::support::relay::Relay;
use crate::support::servers::{PrivateRedis, amqp_url};
use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, Worker, World, free_port, milliseconds, users};
use crate::upload::{JSON, job, post};

/// Waits until the mock has accepted this many messages.
async fn until_accepted(world: &World, count: usize) {
    let what = format!("{count} messages accepted by the mock");
    until(&what, BOUND, async || {
        (world.mock.stats().accepted >= count as u64).then_some(())
    })
    .await;
}

/// Every list entry has exactly one outcome, with refused users, transient errors and repeats.
#[tokio::test(flavor = "multi_thread")]
async fn promise_2_exact_accounts() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("accounts").await;
    world
        .mock
        .patch_faults(&json!({"refuse_prefix": "bad-", "error_503": {"count": 7}}))
        .unwrap();
    let worker = world.worker().await;
    let good = users(1500);
    let bad: Vec<String> = (0..20).map(|number| format!("bad-{number}")).collect();
    let listed = [good.as_slice(), &bad, &good[..100]].concat();
    let job = world.send("accounts", &listed, &["--wait"]).await;
    let record = world.completed(&job).await;
    let accounts = &record["accounts"];
    assert_eq!(accounts["total"], 1620, "{record}");
    assert_eq!(accounts["sent"], 1500, "{record}");
    assert_eq!(accounts["failed"], 20, "{record}");
    assert_eq!(accounts["duplicate"], 100, "{record}");
    world.assert_once_each(&good);
    let dead = world.dead(&job).await;
    assert_eq!(
        dead.keys().collect::<BTreeSet<_>>(),
        bad.iter().collect::<BTreeSet<_>>()
    );
    assert!(
        dead.values().all(|(outcome, _)| outcome == "failed"),
        "{dead:?}"
    );
    let metrics = worker.metrics().await;
    let sent = metrics["fanwise_recipients_total{outcome=\"sent\",target=\"im\"}"];
    assert_eq!(sent, 1500.0);
    worker.drain().await;
    world.end().await;
}

/// Waits until a metric of a worker has at least this value.
async fn until_counted(worker: &Worker, metric: &str, least: f64) {
    until(
        &format!("{metric} of at least {least}"),
        BOUND,
        async || (worker.metrics().await.get(metric) >= Some(&least)).then_some(()),
    )
    .await;
}

/// Redis is full, so a window of recipients waits for its claim. Then the worker is asked to stop,
/// or loses its session. Each recipient still gets the message, and none counts as a duplicate.
#[tokio::test(flavor = "multi_thread")]
async fn promise_2_whoever_waits_for_a_claim_is_not_lost() {
    let (Some(amqp), Some(redis)) = (amqp_url(), PrivateRedis::start().await) else {
        return;
    };
    let (relay, amqp) = Relay::before(&amqp).await;
    let world = Plan::on(&amqp, redis.url()).start("claimwait").await;
    let latency = json!({"latency": "10ms"});
    world.mock.patch_faults(&latency).unwrap();
    for stopped in [true, false] {
        let mut worker = world.worker().await;
        let name = if stopped { "stopped" } else { "cut" };
        let recipients: Vec<String> = (0..3000).map(|n| format!("{name}-{n}")).collect();
        let job = world.send(name, &recipients, &[]).await;
        let before = world.mock.stats().accepted as usize;
        until_accepted(&world, before + 400).await;
        let full = ["CONFIG", "SET", "maxmemory", "100kb"];
        world.redis_command(&full).await;
        let refused = "fanwise_ledger_errors_total{step=\"claim\"}";
        let known = worker.metrics().await[refused];
        until_counted(&worker, refused, known + 1.0).await;
        if stopped {
            worker.process.terminate();
            let ended = worker.process.wait(BOUND).await;
            assert_eq!(ended.code(), Some(0), "{}", worker.process.stderr());
        } else {
            relay.reset().await;
            until_counted(&worker, "fanwise_slices_total{result=\"lost\"}", 1.0).await;
        }
        let free = ["CONFIG", "SET", "maxmemory", "0"];
        world.redis_command(&free).await;
        if stopped {
            worker = world.worker().await;
        }
        let record = world.completed(&job).await;
        assert_eq!(record["accounts"]["sent"], 3000, "{record}");
        assert_eq!(record["accounts"]["duplicate"], 0, "{record}");
        worker.drain().await;
    }
    assert_eq!(world.accepted().len(), 6000);
    world.end().await;
}

/// The same job twice, with overlapping lists and several workers: each recipient gets it once.
#[tokio::test(flavor = "multi_thread")]
async fn promise_3_once() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.not_idempotent().start("once").await;
    let everybody = users(3000);
    let mut workers = vec![world.worker().await];
    let job = world.send("once", &everybody[..2000], &[]).await;
    assert_eq!(world.send("once", &everybody[..2000], &[]).await, job);
    assert_eq!(world.send("once", &everybody[1000..], &[]).await, job);
    workers.push(world.worker().await);
    workers.push(world.worker().await);
    let record = until("all three submissions settled", BOUND, async || {
        world
            .job(&job)
            .await
            .filter(|record| record["state"] == "completed" && record["accounts"]["total"] == 4000)
    })
    .await;
    assert_eq!(record["accounts"]["sent"], 3000, "{record}");
    assert_eq!(record["accounts"]["duplicate"], 1000, "{record}");
    world.completed(&job).await;
    world.assert_once_each(&everybody);
    for worker in workers {
        worker.drain().await;
    }
    world.end().await;
}

/// Replies are lost after the backend accepted: each policy behaves as documented, and the calls
/// are counted.
#[tokio::test(flavor = "multi_thread")]
async fn promise_4_the_honest_gap_under_each_policy() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("gap").await;
    let worker = world.worker().await;
    for (policy, outcome) in [
        ("retry", "sent"),
        ("hold", "uncertain"),
        ("drop", "uncertain"),
    ] {
        world
            .mock
            .patch_faults(&json!({"reply_lost": {"count": 3}, "reset_after": {"count": 2}}))
            .unwrap();
        let recipients: Vec<String> = (0..200)
            .map(|number| format!("{policy}-{number}"))
            .collect();
        let job = world
            .send(policy, &recipients, &["--on-uncertain", policy])
            .await;
        let record = world.completed(&job).await;
        let expected = if policy == "retry" { 200 } else { 5 };
        assert_eq!(record["accounts"][outcome], expected, "{policy}: {record}");
        let dead = world.dead(&job).await;
        assert_eq!(
            dead.len(),
            if policy == "hold" { 5 } else { 0 },
            "{policy}: {dead:?}"
        );
        assert!(
            dead.values().all(|(outcome, _)| outcome == "uncertain"),
            "{dead:?}"
        );
        let metrics = worker.metrics().await;
        let counted = format!("fanwise_uncertain_total{{policy=\"{policy}\",target=\"im\"}}");
        assert_eq!(metrics[&counted], 5.0);
    }
    // Under every policy, the idempotent backend shows each message once.
    assert!(world.accepted().values().all(|count| *count == 1));
    worker.drain().await;
    world.end().await;
}

/// Replies are lost after the backend accepted, and the policy is to retry. Whatever ends the job
/// first, no recipient that has the message is reported without it, and a redrive does not send it
/// twice.
#[tokio::test(flavor = "multi_thread")]
async fn promise_4_a_call_in_doubt_is_not_forgotten() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("doubtstays").await;
    let slow = [
        ("FANWISE_RETRY__DELAY_MIN", "5s"),
        ("FANWISE_RETRY__DELAY_MAX", "5s"),
    ];
    let worker = world.worker_with(&slow).await;
    let retried = "fanwise_uncertain_total{policy=\"retry\",target=\"im\"}";
    let mut in_doubt = 0.0;
    for ends in ["cancelled", "expired"] {
        let lost = json!({"reply_lost": {"count": 3}});
        world.mock.patch_faults(&lost).unwrap();
        let recipients: Vec<String> = (0..3).map(|n| format!("{ends}-{n}")).collect();
        let expires_at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(4);
        let expires_at = expires_at.to_string();
        let more: &[&str] = match ends {
            "expired" => &["--expires-at", &expires_at],
            _ => &[],
        };
        let job = world.send(ends, &recipients, more).await;
        in_doubt += 3.0;
        until_counted(&worker, retried, in_doubt).await;
        if ends == "cancelled" {
            let cancelled = world.run(&["job", "cancel", &job]).await;
            assert_eq!(cancelled.code, Some(0), "{}", cancelled.stderr);
        }
        let record = world.completed(&job).await;
        assert_eq!(record["accounts"]["uncertain"], 3, "{record}");
        let dead = world.dead(&job).await;
        assert_eq!(dead.len(), 3, "{dead:?}");
        assert!(
            dead.values().all(|(outcome, _)| outcome == "uncertain"),
            "{dead:?}"
        );
    }
    world.run(&["dead", "redrive", "--app", "default"]).await;
    let accepted = world.accepted();
    assert_eq!(accepted.len(), 6);
    assert!(accepted.values().all(|count| *count == 1), "{accepted:?}");
    worker.drain().await;
    world.end().await;
}

/// A dead letter cannot be written, since the broker is away, and the recipients stay claimed. The
/// next owner still learns the true answer.
#[tokio::test(flavor = "multi_thread")]
async fn promise_4_a_known_answer_outlives_the_session() {
    let Some(plan) = Plan::shared() else { return };
    let (relay, amqp) = Relay::before(&plan.amqp).await;
    let plan = Plan { amqp, ..plan };
    let world = plan.not_idempotent().start("answer").await;
    let lost = json!({"latency": "1s", "reply_lost": {"count": 5}});
    world.mock.patch_faults(&lost).unwrap();
    let worker = world.worker().await;
    let job = world.send("answer", &users(5), &[]).await;
    until_counted(&worker, "fanwise_calls_in_flight{target=\"im\"}", 5.0).await;
    relay.cut().await;
    until_counted(&worker, "fanwise_slices_total{result=\"lost\"}", 1.0).await;
    relay.restore();
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["uncertain"], 5, "{record}");
    let dead = world.dead(&job).await;
    assert_eq!(dead.len(), 5);
    assert!(dead.values().all(|(_, code)| code != "lost"), "{dead:?}");
    worker.drain().await;
    world.end().await;
}

/// Ledger and broker go away during calls, for longer than a lease. The answers to the calls are
/// recorded when the ledger is back, before a takeover can treat them as doubt.
#[tokio::test(flavor = "multi_thread")]
async fn promise_4_known_outcomes_are_recorded_as_long_as_the_process_lives() {
    let (Some(amqp), Some(mut redis)) = (amqp_url(), PrivateRedis::start().await) else {
        return;
    };
    let (relay, amqp) = Relay::before(&amqp).await;
    let plan = Plan::on(&amqp, redis.url()).not_idempotent();
    let world = plan.start("known").await;
    let slow = json!({"latency": "2s"});
    world.mock.patch_faults(&slow).unwrap();
    let worker = world.worker().await;
    let recipients = users(20);
    let job = world.send("known", &recipients, &[]).await;
    until_counted(&worker, "fanwise_calls_in_flight{target=\"im\"}", 20.0).await;
    redis.kill().await;
    relay.cut().await;
    until_accepted(&world, 20).await;
    // The lease of 7 s, which ends by the server's clock, plus a margin.
    tokio::time::sleep(Duration::from_secs(9)).await;
    redis.start_again().await;
    relay.restore();
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 20, "{record}");
    world.assert_once_each(&recipients);
    worker.drain().await;
    world.end().await;
}

/// The backend is slower than call timeout and lease: calls end as uncertain, and nothing is sent
/// twice.
#[tokio::test(flavor = "multi_thread")]
async fn promise_4_a_backend_slower_than_the_lease() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.not_idempotent().start("slow").await;
    world.mock.patch_faults(&json!({"latency": "9s"})).unwrap();
    let worker = world.worker().await;
    let recipients = users(20);
    let job = world.send("slow", &recipients, &["--wait"]).await;
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["uncertain"], 20, "{record}");
    until_accepted(&world, 20).await;
    world.assert_once_each(&recipients);
    worker.drain().await;
    world.end().await;
}

/// A worker is killed during its calls: another one takes over, no recipient is lost, none gets the
/// message twice, and only calls in flight are in doubt.
#[tokio::test(flavor = "multi_thread")]
async fn promise_5_effects_before_acks_survive_sigkill() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("sigkill").await;
    world
        .mock
        .patch_faults(&json!({"latency": "5ms..20ms", "refuse_prefix": "bad-"}))
        .unwrap();
    let mut first = world.worker().await;
    let second = world.worker().await;
    let good = users(6000);
    let bad: Vec<String> = (0..30).map(|number| format!("bad-{number}")).collect();
    let job = world
        .send("sigkill", &[good.as_slice(), &bad].concat(), &[])
        .await;
    until_accepted(&world, 1500).await;
    first.process.kill();
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 6000, "{record}");
    // Recipients in a call when the worker was killed may have got it, as far as the next worker
    // knows.
    let count = |outcome: &str| record["accounts"][outcome].as_u64().unwrap();
    assert_eq!(count("failed") + count("uncertain"), 30, "{record}");
    world.assert_once_each(&good);
    let dead = world.dead(&job).await;
    assert_eq!(
        dead.keys().collect::<BTreeSet<_>>(),
        bad.iter().collect::<BTreeSet<_>>()
    );
    second.drain().await;
    world.end().await;
}

/// The same on a backend that is not idempotent: recipients of calls in flight are held, never sent
/// twice.
#[tokio::test(flavor = "multi_thread")]
async fn promise_4_sigkill_leaves_at_most_the_calls_in_flight_in_doubt() {
    let Some(plan) = Plan::shared() else { return };
    let mut plan = plan.not_idempotent();
    plan.target.push_str("\ncalls_in_flight = 32");
    let world = plan.start("doubt").await;
    world
        .mock
        .patch_faults(&json!({"latency": "20ms"}))
        .unwrap();
    let mut first = world.worker().await;
    let recipients = users(3000);
    let job = world.send("doubt", &recipients, &[]).await;
    until_accepted(&world, 500).await;
    first.process.kill();
    let second = world.worker().await;
    let record = world.completed(&job).await;
    let uncertain = record["accounts"]["uncertain"].as_u64().unwrap();
    assert!((1..=32).contains(&uncertain), "{record}");
    assert_eq!(
        record["accounts"]["sent"].as_u64().unwrap(),
        3000 - uncertain
    );
    assert!(world.accepted().values().all(|count| *count == 1));
    assert_eq!(world.dead(&job).await.len() as u64, uncertain);
    second.drain().await;
    world.end().await;
}

/// Calls that are not answered hold up no others, in whatever slices they are: all other recipients
/// get the message meanwhile. A SIGKILL then leaves only those calls in doubt.
#[tokio::test(flavor = "multi_thread")]
async fn promise_4_a_long_tail_holds_up_nothing_and_a_kill_doubts_no_more() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.not_idempotent().start("tail").await;
    let faults = json!({"latency": "20ms", "hang": "1%"});
    world.mock.patch_faults(&faults).unwrap();
    let patient = [
        ("FANWISE_WORKER__SLICE_RECIPIENTS", "100"),
        ("FANWISE_TARGETS__IM__CALL_TIMEOUT", "20s"),
        ("FANWISE_LEDGER__LEASE", "25s"),
    ];
    let mut first = world.worker_with(&patient).await;
    let recipients = users(4000);
    let job = world.send("tail", &recipients, &[]).await;
    let hung = until("all calls are made", BOUND, async || {
        let stats = world.mock.stats();
        (stats.requests == 4000).then(|| stats.faults["hang"])
    })
    .await;
    assert!(hung > 0, "no call hangs");
    let given_up = "fanwise_calls_total{class=\"uncertain\",target=\"im\"}";
    assert_eq!(first.metrics().await[given_up], 0.0);
    until("the answers are recorded", BOUND, async || {
        let record = world.job(&job).await?;
        (record["accounts"]["sent"].as_u64() == Some(4000 - hung)).then_some(())
    })
    .await;
    first.process.kill();
    world.mock.patch_faults(&json!({"hang": null})).unwrap();
    let second = world.worker_with(&patient).await;
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["uncertain"], hung, "{record}");
    assert_eq!(record["accounts"]["sent"], 4000 - hung, "{record}");
    assert!(world.accepted().values().all(|count| *count == 1));
    second.drain().await;
    world.end().await;
}

/// SIGTERM while a job runs: slices in work are finished or requeued, and another worker continues.
#[tokio::test(flavor = "multi_thread")]
async fn promise_5_a_drain_loses_nothing() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.not_idempotent().start("drain").await;
    world
        .mock
        .patch_faults(&json!({"latency": "10ms"}))
        .unwrap();
    let first = world.worker().await;
    let recipients = users(4000);
    let job = world.send("drain", &recipients, &[]).await;
    until_accepted(&world, 800).await;
    first.drain().await;
    let second = world.worker().await;
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 4000, "{record}");
    world.assert_once_each(&recipients);
    second.drain().await;
    world.end().await;
}

/// The backend throttles for a while, and the target has a limit: no recipient fails and no attempt
/// is spent, although only one attempt is allowed.
#[tokio::test(flavor = "multi_thread")]
async fn promise_7_waiting_costs_nothing() {
    let Some(mut plan) = Plan::shared() else {
        return;
    };
    plan.target.push_str("\nlimit = \"400/s burst 20\"");
    let world = plan.start("waiting").await;
    world
        .mock
        .patch_faults(&json!({"burst": {"after": 300, "for": "2s", "retry_after": 1}}))
        .unwrap();
    let worker = world
        .worker_with(&[("FANWISE_RETRY__ATTEMPTS_MAX", "1")])
        .await;
    let recipients = users(1200);
    let started = Instant::now();
    let job = world.send("waiting", &recipients, &["--wait"]).await;
    let took = started.elapsed();
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 1200, "{record}");
    assert!(
        took > Duration::from_millis(2900),
        "1200 recipients at 400/s took only {took:?}"
    );
    assert!(world.mock.stats().faults["burst_429"] > 0);
    world.assert_once_each(&recipients);
    // The mock's clock shows the limit: no second holds more than rate + burst + one lease.
    let mut times: Vec<u64> = world
        .mock
        .accepted()
        .iter()
        .map(|entry| entry.at_us)
        .collect();
    times.sort_unstable();
    for (index, start) in times.iter().enumerate() {
        let second = times[index..].partition_point(|at| *at < start + 1_000_000);
        assert!(
            second <= 400 + 20 + 20 + 20,
            "{second} messages in one second"
        );
    }
    worker.drain().await;
    world.end().await;
}

/// Calls of a slice do not wait for each other: the limit is reached although each call takes long.
#[tokio::test(flavor = "multi_thread")]
async fn promise_7_slow_calls_do_not_slow_a_limit_down() {
    let Some(mut plan) = Plan::shared() else {
        return;
    };
    plan.target.push_str("\nlimit = \"20/s burst 1\"");
    let world = plan.start("slowcalls").await;
    let slow = json!({"latency": "2500ms"});
    world.mock.patch_faults(&slow).unwrap();
    let worker = world.worker().await;
    let recipients = users(40);
    let job = world.send("slowcalls", &recipients, &[]).await;
    until_counted(&worker, "fanwise_calls_in_flight{target=\"im\"}", 15.0).await;
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 40, "{record}");
    world.assert_once_each(&recipients);
    worker.drain().await;
    world.end().await;
}

/// The backend is away when the job arrives: all recipients wait, and get the message when it is
/// back, although only one attempt is allowed.
#[tokio::test(flavor = "multi_thread")]
async fn promise_7_an_unreachable_backend_costs_no_attempt() {
    let Some(mut plan) = Plan::shared() else {
        return;
    };
    let port = free_port();
    plan.target
        .push_str(&format!("\nurl = \"http://127.0.0.1:{port}\""));
    plan.own_url = true;
    let world = plan.start("away").await;
    let worker = world
        .worker_with(&[("FANWISE_RETRY__ATTEMPTS_MAX", "1")])
        .await;
    let recipients = users(300);
    let job = world.send("away", &recipients, &[]).await;
    until("the target is parked", BOUND, async || {
        let parked = worker
            .metrics()
            .await
            .get("fanwise_target_parked{reason=\"unreachable\",target=\"im\"}")
            == Some(&1.0);
        parked.then_some(())
    })
    .await;
    let settings = Settings {
        wukongim: Version::V3,
        ..Settings::default()
    };
    let listen = ([127, 0, 0, 1], port).into();
    let mock = MockIm::bind(Settings { listen, ..settings }).await.unwrap();
    let late = mock.handle();
    tokio::spawn(mock.run(std::future::pending()));
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 300, "{record}");
    assert_eq!(late.stats().accepted, 300);
    let count = |what: &str| {
        let log = worker.process.stderr();
        log.lines().filter(|line| line.contains(what)).count()
    };
    until("the log says that it moves", BOUND, async || {
        (count("target im moves again after") == 1).then_some(())
    })
    .await;
    assert_eq!(count("target im is parked: unreachable"), 1);
    worker.drain().await;
    world.end().await;
}

/// A backend that throttles without a Retry-After is called at growing intervals: no attempt is
/// spent, and the log reports it.
#[tokio::test(flavor = "multi_thread")]
async fn promise_7_a_throttled_target_is_never_called_in_a_hot_loop() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("throttled").await;
    let faults = json!({"error_429": 1.0, "retry_after": 0});
    world.mock.patch_faults(&faults).unwrap();
    let one_attempt = ("FANWISE_RETRY__ATTEMPTS_MAX", "1");
    let worker = world.worker_with(&[one_attempt]).await;
    let job = world.send("throttled", &users(1), &[]).await;
    let parks = "fanwise_target_parks_total{reason=\"throttled\",target=\"im\"}";
    let parks = until("a third parking", BOUND, async || {
        let parks = worker.metrics().await[parks];
        (parks >= 3.0).then_some(parks)
    })
    .await;
    let calls = world.mock.stats().requests;
    assert!(calls as f64 <= parks + 1.0, "{calls} calls, {parks} parks");
    let log = worker.process.stderr();
    let told = log
        .lines()
        .filter(|it| it.contains("target im is parked: throttled 429"));
    assert_eq!(told.count(), 1, "{log}");
    let faults = json!({"error_429": null, "retry_after": 1});
    world.mock.patch_faults(&faults).unwrap();
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 1, "{record}");
    worker.drain().await;
    world.end().await;
}

/// An app that fails open: while the ledger is away, its job goes on at the rate of its limit.
/// Later the ledger gets the outcomes, and the accounts are exact: no recipient counts as a
/// duplicate or in doubt.
#[tokio::test(flavor = "multi_thread")]
async fn fail_open_sends_at_its_rate_and_completes() {
    let (Some(amqp), Some(mut redis)) = (amqp_url(), PrivateRedis::start().await) else {
        return;
    };
    let mut plan = Plan::on(&amqp, redis.url());
    plan.target.push_str("\nlimit = \"500/s burst 20\"");
    plan.more = "[apps.default]\non_ledger_down = \"fail_open\"".to_owned();
    let world = plan.start("failopen").await;
    let worker = world.worker().await;
    let recipients = users(4000);
    let job = world.send("failopen", &recipients, &[]).await;
    until_accepted(&world, 500).await;
    redis.kill().await;
    let before = world.mock.stats().accepted as usize;
    until_accepted(&world, before + 1500).await;
    let metrics = worker.metrics().await;
    assert!(metrics["fanwise_unguarded_sends_total{target=\"im\"}"] > 1000.0);
    let mut times: Vec<u64> = world.mock.accepted().iter().map(|it| it.at_us).collect();
    times.sort_unstable();
    for (index, start) in times.iter().enumerate() {
        let second = times[index..].partition_point(|at| *at < start + 1_000_000);
        // When the ledger goes away, each of the eight slices in work may hold a lease of 50 ms
        // that is booked there, and the limits here start again with their burst.
        assert!(second <= 500 + 2 * 20 + 9 * 25, "{second} in one second");
    }
    until_accepted(&world, 4000).await;
    redis.start_again().await;
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 4000, "{record}");
    assert_eq!(record["accounts"]["duplicate"], 0, "{record}");
    world.assert_once_each(&recipients);
    worker.drain().await;
    world.end().await;
}

/// A small job behind a big one, on a slow backend, starts promptly: before the backend has
/// accepted as much of the big one as it can in 250 ms. The test counts messages and not time,
/// since a busy machine handles fewer in that time without starving any job.
#[tokio::test(flavor = "multi_thread")]
async fn promise_8_no_starving() {
    // 64 calls in flight, of 20 ms.
    const IN_A_QUARTER: usize = 64 * 250 / 20;
    let Some(mut plan) = Plan::shared() else {
        return;
    };
    plan.target.push_str("\ncalls_in_flight = 64");
    let world = plan.start("starving").await;
    world
        .mock
        .patch_faults(&json!({"latency": "20ms"}))
        .unwrap();
    let worker = world.worker().await;
    let big = world
        .send("big", &users(20_000), &["--priority", "bulk"])
        .await;
    until_accepted(&world, 500).await;
    for number in 0..5 {
        let small = vec![format!("small-{number}")];
        let job = world
            .send(&format!("small-{number}"), &small, &["--wait"])
            .await;
        let record = world.job(&job).await.unwrap();
        assert_eq!(record["accounts"]["sent"], 1);
        let accepted_us = milliseconds(&record["accepted_at"]) * 1000;
        let all = world.mock.accepted();
        let own = all.iter().find(|it| it.recipient == small[0]).unwrap();
        let before = all
            .iter()
            .filter(|it| (accepted_us..own.at_us).contains(&it.at_us))
            .count();
        assert!(before <= IN_A_QUARTER, "{before} came before {}", small[0]);
    }
    let big = world.job(&big).await.unwrap();
    assert_eq!(
        big["state"], "running",
        "the big job was too small for this test"
    );
    let metrics = worker.metrics().await;
    let started = metrics["fanwise_start_delay_seconds_count"];
    assert!(started >= 6.0, "{metrics:#?}");
    worker.drain().await;
    world.end().await;
}

/// The token is wrong for one job: the job is parked and no recipient is dead-lettered. Other jobs
/// go on, and with the right token all recipients get the message.
#[tokio::test(flavor = "multi_thread")]
async fn promise_10_configuration_faults_stop_the_job_not_the_audience() {
    let Some(mut plan) = Plan::shared() else {
        return;
    };
    plan.target.push_str("\nconfig_fault_pause = \"1h\"");
    let world = plan.start("config").await;
    world
        .mock
        .patch_faults(&json!({"unauthorised": 1.0}))
        .unwrap();
    let worker = world
        .worker_with(&[("FANWISE_RETRY__ATTEMPTS_MAX", "1")])
        .await;
    let recipients = users(700);
    let job = world.send("config", &recipients, &[]).await;
    let parked_jobs = "fanwise_directives{action=\"park\",scope=\"job\"}";
    until("the job is parked", BOUND, async || {
        let metrics = worker.metrics().await;
        (metrics.get(parked_jobs) == Some(&1.0)).then_some(())
    })
    .await;
    let metrics = worker.metrics().await;
    let parked = "fanwise_target_parked{reason=\"config\",target=\"im\"}";
    assert_eq!(metrics[parked], 0.0, "the whole target was parked");
    let record = world.job(&job).await.unwrap();
    assert_eq!(record["pending"], 700);
    let why = record["hindrances"][0]["what"].as_str().unwrap();
    assert!(
        why.contains("job is parked until") && why.contains("config 401"),
        "{why}"
    );
    assert_eq!(
        worker.admin("/readyz").await.as_deref(),
        Some("HTTP/1.1 200 OK")
    );
    world
        .mock
        .patch_faults(&json!({"unauthorised": null}))
        .unwrap();
    let others: Vec<String> = (0..150).map(|number| format!("other-{number}")).collect();
    let other = world.send("of another", &others, &[]).await;
    let record = world.completed(&other).await;
    assert_eq!(record["accounts"]["sent"], 150, "{record}");
    assert_eq!(world.job(&job).await.unwrap()["pending"], 700);
    let resumed = world.run(&["job", "resume", &job]).await;
    assert_eq!(resumed.code, Some(0), "{}", resumed.stderr);
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 700, "{record}");
    assert!(world.dead(&job).await.is_empty());
    worker.drain().await;
    world.end().await;
}

/// Invalid messages stay unchanged in the rejected queue and delay nothing; a conflict names the
/// first job.
#[tokio::test(flavor = "multi_thread")]
async fn poison_and_conflict_are_rejected_unharmed() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("poison").await;
    let worker = world.worker().await;
    let poison = [
        "not json".to_owned(),
        r#"{"v":1,"client_msg_no":"x","audience":{"users":["u1"]},"mesage":{"type":"text"}}"#
            .to_owned(),
        r#"{"v":9}"#.to_owned(),
    ];
    for body in &poison {
        world.publish_raw(body.as_bytes()).await;
    }
    let job = world.send("good", &users(10), &["--wait"]).await;
    world.completed(&job).await;
    let conflicting = world.run(&[
        "send",
        "--client-msg-no",
        "good",
        "--text",
        "something else",
        "--wait",
        "u1",
    ]);
    let finished = conflicting.await;
    assert_eq!(finished.code, Some(65), "{}", finished.stderr);
    assert!(finished.stderr.contains(&job), "{}", finished.stderr);
    let rejected = until("four rejected messages", BOUND, async || {
        let rejected = world.json(&["dead", "rejected"]).await;
        (rejected.as_array()?.len() == 4).then_some(rejected)
    })
    .await;
    let bodies: BTreeSet<_> = rejected
        .as_array()
        .unwrap()
        .iter()
        .map(|message| message["body"].as_str().unwrap())
        .collect();
    assert!(
        poison.iter().all(|body| bodies.contains(body.as_str())),
        "{rejected:#}"
    );
    let reasons = rejected.to_string();
    assert!(reasons.contains("did you mean `message`?"), "{reasons}");
    assert!(
        reasons.contains("conflict") && reasons.contains(&job),
        "{reasons}"
    );
    until_counted(&worker, "fanwise_jobs_total{result=\"conflict\"}", 1.0).await;
    let metrics = worker.metrics().await;
    assert_eq!(metrics["fanwise_jobs_total{result=\"rejected\"}"], 3.0);
    assert_eq!(metrics["fanwise_jobs_total{result=\"conflict\"}"], 1.0);
    worker.drain().await;
    world.end().await;
}

/// Recipients that are not sent by `expires_at` end as expired, and the accounts stay exact.
#[tokio::test(flavor = "multi_thread")]
async fn late_recipients_expire() {
    let Some(mut plan) = Plan::shared() else {
        return;
    };
    plan.target.push_str("\nlimit = \"100/s burst 1\"");
    let world = plan.start("expiry").await;
    let worker = world.worker().await;
    let expires_at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(3);
    let job = world
        .send(
            "expiry",
            &users(2000),
            &["--expires-at", &expires_at.to_string()],
        )
        .await;
    let record = world.completed(&job).await;
    let count = |outcome: &str| record["accounts"][outcome].as_u64().unwrap();
    assert_eq!(count("sent") + count("expired"), 2000, "{record}");
    assert!(count("expired") > 1000 && count("sent") > 10, "{record}");
    assert_eq!(world.accepted().len() as u64, count("sent"));
    worker.drain().await;
    world.end().await;
}

/// A trace that the producer began continues at the backend.
#[tokio::test(flavor = "multi_thread")]
async fn traceparent_travels_from_producer_to_call() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("trace").await;
    let worker = world.worker().await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let finished = world
        .run_with_environment(
            &[
                "send",
                "--client-msg-no",
                "trace",
                "--text",
                "hello",
                "--wait",
                "u1",
            ],
            &[("TRACEPARENT", trace)],
        )
        .await;
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert_eq!(world.mock.accepted()[0].traceparent.as_deref(), Some(trace));
    worker.drain().await;
    world.end().await;
}

/// A dead letter can be stored without its confirm, and the next delivery can succeed. If the
/// ledger knows that a recipient has the message, it is not listed as dead and not sent again. For
/// a job that the ledger does not know, the letters count.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_the_ledger_contradicts_is_not_believed() {
    use fanwise::amqp::{self, Rabbit};
    use fanwise::ports::{Broker as _, Outgoing, Publisher as _, Route, Session as _};

    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("contradicted").await;
    let worker = world.worker().await;
    let everybody = users(3);
    let job = world.send("contradicted", &everybody, &["--wait"]).await;
    let now = jiff::Timestamp::now().to_string();
    let letter = |job: &str, key: &str, recipients: &[&str]| {
        let dead = recipients.iter().map(|recipient| {
            json!({
                "recipient": recipient, "outcome": "failed", "class": "transient", "code": "503",
                "text": "busy", "attempts": 8,
            })
        });
        let letter = json!({
            "v": 1, "job": job, "app": "default", "client_msg_no": key, "target": "im",
            "slice": "s.0", "message": {"type": "text", "text": "hello"}, "options": {},
            "first_attempt_at": now, "last_attempt_at": now,
            "recipients": dead.collect::<Vec<_>>(),
        });
        Outgoing {
            route: Route::Dead {
                app: "default".to_owned(),
                target: "im".to_owned(),
            },
            body: letter.to_string().into(),
            message_id: key.to_owned(),
            traceparent: None,
        }
    };
    let unknown = fanwise::domain::ids::JobId::of("default", "forgotten").to_string();
    let rabbit = Rabbit::new(amqp::Settings {
        namespace: world.name.clone(),
        targets: vec!["im".to_owned()],
        declare: false,
        ..amqp::Settings::new(world.amqp.as_str())
    });
    let session = rabbit.unwrap().connect().await.unwrap();
    let letters = vec![
        letter(&job, "contradicted", &["u0", "u1"]),
        letter(&unknown, "forgotten", &["ann"]),
    ];
    session.publisher().publish(letters).await.unwrap();
    session.close().await;

    let listed = world.json(&["dead", "list"]).await;
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(listed[0]["recipient"], "ann");
    let redrive = ["dead", "redrive", "--job", &job];
    let done = world.json(&redrive).await;
    assert_eq!(
        (&done["recipients"], &done["contradicted"]),
        (&json!(0), &json!(2)),
        "{done}"
    );
    let done = world.json(&[&redrive[..], &["--purge"]].concat()).await;
    assert_eq!(done["purged"], 2, "{done}");
    world.assert_once_each(&everybody);
    worker.drain().await;
    world.end().await;
}

/// A job that the workers cannot read does not stay `accepted`: it is among the rejected messages,
/// and its record says so.
/// A completed job says nothing of the recipients that were submitted after its end. Whoever waits for
/// them waits until a worker has taken them, however late that is.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_further_recipients_is_not_told_of_the_others() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("further").await;
    let gateway = world.gateway(&[]).await;
    let server = format!("http://127.0.0.1:{}", gateway.port);
    let ways = [
        ("direct", vec![("FANWISE_CONFIG", world.config())]),
        ("served", vec![("FANWISE_SERVER", server.as_str())]),
    ];
    let worker = world.worker().await;
    for (key, _) in &ways {
        world.send(key, &users(2), &["--wait"]).await;
    }
    world.send("asked", &users(2), &["--wait"]).await;
    worker.drain().await;

    let late = job("asked", "hello", &["late"]);
    let answer = post(gateway.port, &[JSON, ("Prefer", "wait=1")], late.as_bytes()).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    assert!(answer.json()["standing"].is_null(), "{answer:?}");

    let mut waiting = Vec::new();
    for (key, variables) in &ways {
        let send = ["send", "--client-msg-no", key, "--text", "hello", "--json"];
        let arguments = [&send[..], &["--wait", "late"]].concat();
        let mut process = fanwise(&arguments, variables);
        process.until_prints("accepted: job", BOUND).await;
        waiting.push(process);
    }
    let ended = until("the end of a command", BOUND, async || {
        let ended = |process: &mut Process| !process.is_running();
        waiting.iter_mut().any(ended).then_some(())
    });
    let ended = tokio::time::timeout(Duration::from_secs(5), ended).await;
    assert!(ended.is_err(), "a command did not wait for a worker");

    let worker = world.worker().await;
    for process in waiting {
        let finished = process.finish(BOUND).await;
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        let record: Value = serde_json::from_str(&finished.stdout).unwrap();
        assert_eq!(record["accounts"]["sent"], 3, "{record}");
    }
    worker.drain().await;
    gateway.end().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_no_worker_can_read_does_not_stay_accepted() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("elsewhere").await;
    // It declares the queues.
    world.worker().await.drain().await;
    let config = std::fs::read_to_string(world.config()).unwrap();
    let target = "type = \"wukongim\"\nversion = \"v3\"\nsender = \"news\"\nurl = \"http://127.0.0.1:9\"\ncall_timeout = \"3s\"";
    let config = format!("{config}\n[targets.elsewhere]\n{target}\n");
    let config = world.write("producer.toml", config);
    let send = ["send", "--client-msg-no", "lost", "--text", "hello", "u1"];
    let there = [
        "--target",
        "elsewhere",
        "--config",
        config.to_str().unwrap(),
    ];
    let sent = run_fanwise(&[&send[..], &there].concat(), &[], b"", BOUND).await;
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    assert_eq!(world.job("lost").await.unwrap()["state"], "accepted");

    let worker = world.worker().await;
    let said = until("the end of the job", BOUND, async || {
        let shown = world.run(&["job", "show", "lost"]).await;
        (shown.code == Some(69)).then_some(shown.stderr)
    })
    .await;
    assert!(said.contains("`fanwise dead rejected` shows why"), "{said}");
    let rejected = world.json(&["dead", "rejected"]).await.to_string();
    assert!(rejected.contains("elsewhere"), "{rejected}");
    worker.drain().await;
    world.end().await;
}
