//! Tests how operators control running work: on shared servers with several workers, and on
//! `fanwise serve`. The mock's own log and clock show the effects.

use std::time::{Duration, SystemTime};

use fanwise::http::client::{Client, ClientSettings};
use fanwise::ports::Request;
use fanwise_mock_im::MockHandle;
use serde_json::{Value, json};

use crate::embedded::Place;
use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, World, users};

/// The time within which every worker follows a directive: half a second between two reads, plus
/// the time to the store.
const HEEDED: Duration = Duration::from_secs(1);

fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap().as_micros() as u64
}

async fn until_accepted(mock: &MockHandle, count: u64) {
    let what = format!("{count} messages accepted by the mock");
    until(&what, BOUND, async || {
        (mock.stats().accepted >= count).then_some(())
    })
    .await;
}

/// Waits until a time of the clock by which every worker must have followed the directive.
async fn until_heeded(at_us: u64) {
    until("the bound has passed", BOUND, async || {
        (now_us() > at_us).then_some(())
    })
    .await;
}

/// Messages that the mock accepted between two times of its clock.
fn accepted_between(mock: &MockHandle, from_us: u64, to_us: u64) -> usize {
    let accepted = mock.accepted();
    let between = accepted
        .iter()
        .filter(|it| (from_us..to_us).contains(&it.at_us));
    between.count()
}

/// The hindrances of a job, as `cause: subject`.
fn hindrances(record: &Value) -> Vec<String> {
    let found = record["hindrances"].as_array().unwrap().iter();
    found
        .map(|it| {
            let text = |name: &str| it[name].as_str().unwrap().to_owned();
            format!("{}: {}", text("cause"), text("what"))
        })
        .collect()
}

async fn tell(world: &World, arguments: &[&str]) -> Value {
    world
        .json(&[arguments, &["--author", "ana"]].concat())
        .await
}

/// A paused job on two workers sends nothing after the stated time, while other jobs of its lanes
/// go on. After a resume each recipient gets it once. No attempt is spent, although only one is
/// allowed.
#[tokio::test(flavor = "multi_thread")]
async fn a_paused_job_waits_and_costs_nothing_until_it_is_resumed() {
    let Some(plan) = Plan::shared() else { return };
    let mut plan = plan.not_idempotent();
    plan.target.push_str("\ncalls_in_flight = 32");
    let world = plan.start("pause").await;
    world
        .mock
        .patch_faults(&json!({"latency": "20ms"}))
        .unwrap();
    let once = [("FANWISE_RETRY__ATTEMPTS_MAX", "1")];
    let workers = [
        world.worker_with(&once).await,
        world.worker_with(&once).await,
    ];
    let recipients = users(6000);
    let job = world.send("pause", &recipients, &[]).await;
    until_accepted(&world.mock, 1000).await;
    let steered = tell(&world, &["job", "pause", &job, "--reason", "wrong picture"]).await;
    assert_eq!(steered["directives"][0]["action"], "pause", "{steered}");
    let heeded_us = now_us() + HEEDED.as_micros() as u64;

    let shown = world.json(&["job", "show", &job]).await;
    assert_eq!(
        hindrances(&shown),
        ["paused: job paused by ana: wrong picture"]
    );
    let others: Vec<_> = (0..4)
        .map(|number| {
            (0..150)
                .map(|user| format!("o{number}-{user}"))
                .collect::<Vec<_>>()
        })
        .collect();
    for (number, others) in others.iter().enumerate() {
        let key = format!("other-{number}");
        let other = world.send(&key, others, &["--wait"]).await;
        world.completed(&other).await;
    }
    until_heeded(heeded_us + 1_000_000).await;
    let resumed_us = now_us();
    let late = world.mock.accepted().into_iter();
    let late = late.filter(|it| it.recipient.starts_with('u') && it.at_us > heeded_us);
    assert_eq!(late.count(), 0, "sent after the pause had to be heeded");
    let metrics = workers[0].metrics().await;
    assert_eq!(
        metrics["fanwise_directives{action=\"pause\",scope=\"job\"}"],
        1.0
    );
    assert_eq!(
        metrics["fanwise_directives{action=\"cancel\",scope=\"job\"}"],
        0.0
    );

    let steered = tell(&world, &["job", "resume", &job]).await;
    assert_eq!(
        (&steered["changed"], &steered["directives"]),
        (&json!(true), &json!([]))
    );
    let again = world.run(&["job", "resume", &job]).await;
    assert!(again.stdout.contains("was not paused"), "{}", again.stdout);
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 6000, "{record}");
    assert!(accepted_between(&world.mock, resumed_us, u64::MAX) > 1000);
    world.assert_once_each(recipients.iter().chain(others.iter().flatten()));
    assert!(world.dead(&job).await.is_empty());
    for worker in workers {
        worker.drain().await;
    }
    world.end().await;
}

/// A pause also stops calls that are claimed and only wait for a place: while calls of a slow
/// backend use every place, none is sent after the time for following the pause.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_wait_for_a_place_are_held_back_by_a_pause() {
    let Some(plan) = Plan::shared() else { return };
    let mut plan = plan.not_idempotent();
    plan.target.push_str("\ncalls_in_flight = 8");
    let world = plan.start("straggler").await;
    let latency = Duration::from_millis(2500);
    world
        .mock
        .patch_faults(&json!({"latency": "2500ms"}))
        .unwrap();
    let worker = world.worker().await;
    // Eight slices of a big job and four small jobs need a place each.
    let big = users(4000);
    let mut jobs = vec![world.send("big", &big, &[]).await];
    let small: Vec<_> = (0..4).map(|number| format!("small-{number}")).collect();
    for recipient in &small {
        let list = std::slice::from_ref(recipient);
        jobs.push(world.send(recipient, list, &[]).await);
    }
    until("all twelve are claimed", BOUND, async || {
        let claimed = worker.metrics().await["fanwise_claims_total{state=\"granted\"}"];
        (claimed >= 12.0).then_some(())
    })
    .await;
    tell(&world, &["target", "pause", "im"]).await;
    let heeded_us = now_us() + (HEEDED + latency).as_micros() as u64;
    until_heeded(heeded_us + 2 * latency.as_micros() as u64).await;
    assert_eq!(accepted_between(&world.mock, heeded_us, u64::MAX), 0);
    assert_eq!(
        worker.metrics().await["fanwise_calls_in_flight{target=\"im\"}"],
        0.0
    );
    world.mock.patch_faults(&json!({"latency": null})).unwrap();
    tell(&world, &["target", "resume", "im"]).await;
    for job in &jobs {
        world.completed(job).await;
    }
    world.assert_once_each(big.iter().chain(&small));
    worker.drain().await;
    world.end().await;
}

/// A job is cancelled while it runs: recipients that got it are `sent`, all others `cancelled`.
/// Recipients that are added later get nothing either.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_completes_with_exact_accounts() {
    let Some(plan) = Plan::shared() else { return };
    let mut plan = plan.not_idempotent();
    plan.target.push_str("\ncalls_in_flight = 32");
    let world = plan.start("cancel").await;
    world
        .mock
        .patch_faults(&json!({"latency": "20ms"}))
        .unwrap();
    let workers = [world.worker().await, world.worker().await];
    let job = world.send("cancel", &users(6000), &[]).await;
    until_accepted(&world.mock, 1000).await;
    tell(
        &world,
        &["job", "cancel", "cancel", "--reason", "wrong text"],
    )
    .await;
    let heeded_us = now_us() + HEEDED.as_micros() as u64;
    let record = world.completed(&job).await;
    let sent = record["accounts"]["sent"].as_u64().unwrap();
    let cancelled = record["accounts"]["cancelled"].as_u64().unwrap();
    assert_eq!(sent + cancelled, 6000, "{record}");
    assert_eq!(sent, world.mock.stats().accepted, "{record}");
    assert!(cancelled > 1000, "{record}");
    assert_eq!(accepted_between(&world.mock, heeded_us, u64::MAX), 0);
    assert!(world.accepted().values().all(|count| *count == 1));
    let mut counted = 0.0;
    for worker in &workers {
        let metrics = worker.metrics().await;
        counted += metrics["fanwise_recipients_total{outcome=\"cancelled\",target=\"im\"}"];
    }
    assert_eq!(counted as u64, cancelled);
    for verb in ["pause", "cancel"] {
        let late = world.run(&["job", verb, &job]).await;
        assert_eq!(late.code, Some(65), "{}", late.stderr);
        assert!(late.stderr.contains("is completed"), "{}", late.stderr);
    }

    let added: Vec<_> = (0..200).map(|number| format!("added-{number}")).collect();
    assert_eq!(world.send("cancel", &added, &[]).await, job);
    let record = until("the addition is settled", BOUND, async || {
        let record = world.job(&job).await?;
        (record["accounts"]["cancelled"] == cancelled + 200).then_some(record)
    })
    .await;
    assert_eq!(record["accounts"]["sent"], sent, "{record}");
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["total"], 6200, "{record}");
    assert_eq!(world.mock.stats().accepted, sent);
    for worker in workers {
        worker.drain().await;
    }
    world.end().await;
}

/// A limit set while two workers send applies to both of them, as the mock's clock shows. A job
/// that waits for a limit of one a minute goes on immediately when it is raised.
#[tokio::test(flavor = "multi_thread")]
async fn a_rate_set_while_running_counts_for_all_workers() {
    let Some(mut plan) = Plan::shared() else {
        return;
    };
    plan.target.push_str("\nlimit = \"40/s burst 10\"");
    let world = plan.start("rate").await;
    let workers = [world.worker().await, world.worker().await];
    let recipients = users(1500);
    let job = world.send("rate", &recipients, &[]).await;
    let most = || {
        let mut times: Vec<_> = world.mock.accepted().iter().map(|it| it.at_us).collect();
        times.sort_unstable();
        let counts = times
            .iter()
            .enumerate()
            .map(|(index, start)| times[index..].partition_point(|at| *at < start + 1_000_000));
        counts.max().unwrap_or(0)
    };
    // No second holds more than rate + burst + a lease of each worker.
    const SLOW: usize = 40 + 10 + 2 * 2;
    until_accepted(&world.mock, 100).await;
    let slow = most();
    assert!(slow <= SLOW, "{slow} in the fullest second");

    let steered = tell(&world, &["limits", "set", "target", "im", "300/s burst 20"]).await;
    assert_eq!(
        steered["directives"][0]["rate"], "300/s burst 20",
        "{steered}"
    );
    until("the limit that was set is reached", BOUND, async || {
        let found = hindrances(&world.job(&job).await?);
        (found == ["target_limit: target im rate set to 300/s burst 20 by ana"]).then_some(())
    })
    .await;
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 1500, "{record}");
    world.assert_once_each(&recipients);
    // A rate that a busy machine reaches too, so that the higher limit shows.
    let fast = most();
    assert!(
        (2 * SLOW..=300 + 20 + 2 * 15).contains(&fast),
        "{fast} in the fullest second"
    );
    let limits = world.json(&["limits", "show"]).await;
    assert_eq!(limits[0]["configured"], "40/s burst 10", "{limits}");
    assert_eq!(limits[0]["live"]["author"], "ana", "{limits}");

    tell(&world, &["limits", "set", "target", "im", "1/min burst 1"]).await;
    until_heeded(now_us() + HEEDED.as_micros() as u64).await;
    let more: Vec<_> = (0..60).map(|number| format!("more-{number}")).collect();
    let job = world.send("more", &more, &[]).await;
    until_accepted(&world.mock, 1501).await;
    let steered = tell(&world, &["limits", "set", "target", "im", "default"]).await;
    assert_eq!(
        (&steered["changed"], &steered["directives"]),
        (&json!(true), &json!([]))
    );
    let record = world.completed(&job).await;
    // At one a minute that would take an hour.
    assert_eq!(record["accounts"]["sent"], 60, "{record}");
    for worker in workers {
        worker.drain().await;
    }
    world.end().await;
}

/// The job's own rate, replaced while it runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_re_rated_while_it_runs() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("rerate").await;
    let worker = world.worker().await;
    let recipients = users(3000);
    let job = world.send("rerate", &recipients, &["--rate", "20/s"]).await;
    until_accepted(&world.mock, 20).await;
    tell(&world, &["job", "rate", &job, "1000/s"]).await;
    // At 20/s it would take longer than anything is waited for.
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 3000, "{record}");
    world.assert_once_each(&recipients);
    until(
        "the directive of a completed job is dropped",
        BOUND,
        async || {
            let metrics = worker.metrics().await;
            (metrics["fanwise_directives{action=\"rate\",scope=\"job\"}"] == 0.0).then_some(())
        },
    )
    .await;
    worker.drain().await;
    world.end().await;
}

/// The backend answers 401 to every call: the job that meets it is parked for a long time, and with
/// the second one the target. No recipient is dead-lettered, every view shows the reason, the log
/// contains it once, and after the fix and an unpark both go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_fault_is_explained_and_ends_with_unpark() {
    let Some(mut plan) = Plan::shared() else {
        return;
    };
    plan.target.push_str("\nconfig_fault_pause = \"1h\"");
    let world = plan.start("unpark").await;
    world
        .mock
        .patch_faults(&json!({"unauthorised": 1.0}))
        .unwrap();
    let worker = world
        .worker_with(&[("FANWISE_RETRY__ATTEMPTS_MAX", "1")])
        .await;
    let recipients = users(1200);
    let job = world.send("unpark", &recipients, &[]).await;
    let shown = until("the job is parked", BOUND, async || {
        let shown = world.run(&["job", "show", &job]).await.stdout;
        shown.contains("parked until").then_some(shown)
    })
    .await;
    let why = "hindered by    job is parked until ";
    assert!(
        shown.contains(why) && shown.contains("config 401"),
        "{shown}"
    );
    let targets = world.json(&["target", "list"]).await;
    assert_eq!(targets[0]["state"], "moving", "{targets}");
    let late: Vec<String> = (0..150).map(|number| format!("late-{number}")).collect();
    let second = world.send("unpark too", &late, &[]).await;
    let target = until("the target is parked", BOUND, async || {
        let targets = world.json(&["target", "list"]).await;
        (targets[0]["state"] == "parked").then(|| targets[0].clone())
    })
    .await;
    assert_eq!(target["name"], "im", "{target}");
    assert_eq!(target["type"], "wukongim", "{target}");
    assert_eq!(target["parked"]["reason"], "config", "{target}");
    assert_eq!(target["parked"]["code"], "401", "{target}");
    let listed = world.run(&["target", "list"]).await.stdout;
    assert!(
        listed.contains("parked until ") && listed.contains("config 401"),
        "{listed}"
    );
    let shown = world.run(&["job", "show", &second]).await.stdout;
    assert!(
        shown.contains("hindered by    target im is parked until"),
        "{shown}"
    );
    assert!(shown.contains("config 401"), "{shown}");
    let gauge =
        |reason: &str| format!("fanwise_target_parked{{reason=\"{reason}\",target=\"im\"}}");
    let metrics = worker.metrics().await;
    assert_eq!(
        (metrics[&gauge("config")], metrics[&gauge("operator")]),
        (1.0, 0.0)
    );

    world
        .mock
        .patch_faults(&json!({"unauthorised": null}))
        .unwrap();
    let steered = tell(&world, &["target", "unpark", "im", "--reason", "new token"]).await;
    assert_eq!(steered["changed"], true, "{steered}");
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 1200, "{record}");
    let record = world.completed(&second).await;
    assert_eq!(record["accounts"]["sent"], 150, "{record}");
    world.assert_once_each(recipients.iter().chain(&late));
    assert!(world.dead(&job).await.is_empty());
    let log = worker.process.stderr();
    let told = log
        .lines()
        .filter(|line| line.contains("a configuration fault: the job is parked"))
        .count();
    assert_eq!(told, 1, "{log}");
    let stops = log
        .lines()
        .filter(|it| it.contains("target im is parked: config 401"));
    assert_eq!(stops.count(), 1, "{log}");
    assert!(log.contains("target im is unparked"), "{log}");
    let metrics = worker.metrics().await;
    assert_eq!(metrics[&gauge("config")], 0.0);
    worker.drain().await;
    world.end().await;
}

/// A target that an operator parked or paused, and an app that is paused, wait and continue later.
#[tokio::test(flavor = "multi_thread")]
async fn targets_and_apps_are_parked_and_paused_by_hand() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("byhand").await;
    let worker = world.worker().await;
    let gauges = [
        "fanwise_target_parked{reason=\"operator\",target=\"im\"}",
        "fanwise_target_paused{target=\"im\"}",
        "fanwise_directives{action=\"pause\",scope=\"app\"}",
    ];
    let stop: [&[&str]; 3] = [
        &["target", "park", "im", "--for", "1h"],
        &["target", "pause", "im"],
        &["app", "pause", "default", "--expires-in", "1h"],
    ];
    let go: [&[&str]; 3] = [
        &["target", "unpark", "im"],
        &["target", "resume", "im"],
        &["app", "resume", "default"],
    ];
    for (round, gauge) in gauges.into_iter().enumerate() {
        assert_eq!(worker.metrics().await[gauge], 0.0);
        tell(
            &world,
            &[stop[round], &["--reason", "moving house"]].concat(),
        )
        .await;
        until(gauge, BOUND, async || {
            (worker.metrics().await[gauge] == 1.0).then_some(())
        })
        .await;
        let accepted = world.mock.stats().accepted;
        let list: Vec<_> = (0..50).map(|user| format!("{round}-{user}")).collect();
        let job = world.send(&format!("k{round}"), &list, &[]).await;
        let why = until("the job says why it waits", BOUND, async || {
            let record = world.job(&job).await?;
            let mut found = hindrances(&record).into_iter();
            found.find(|it| it.contains("moving house"))
        })
        .await;
        assert!(why.contains("ana: moving house"), "{why}");
        assert_eq!(world.mock.stats().accepted, accepted, "{why}");
        tell(&world, go[round]).await;
        let record = world.completed(&job).await;
        assert_eq!(record["accounts"]["sent"], 50, "{record}");
        until("the metrics show that it goes on", BOUND, async || {
            (worker.metrics().await[gauge] == 0.0).then_some(())
        })
        .await;
    }

    // A job that waits for a parked target can be cancelled meanwhile.
    tell(&world, stop[0]).await;
    until(gauges[0], BOUND, async || {
        (worker.metrics().await[gauges[0]] == 1.0).then_some(())
    })
    .await;
    let accepted = world.mock.stats().accepted;
    let list: Vec<_> = (0..1500).map(|user| format!("never-{user}")).collect();
    let job = world.send("never", &list, &[]).await;
    until("the job waits", BOUND, async || {
        let record = world.job(&job).await?;
        (record["pending"] == 1500).then_some(())
    })
    .await;
    tell(&world, &["job", "cancel", &job]).await;
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["cancelled"], 1500, "{record}");
    assert_eq!(world.mock.stats().accepted, accepted);

    let unknown = world.run(&["target", "pause", "in"]).await;
    assert_eq!(unknown.code, Some(69), "{}", unknown.stderr);
    assert!(
        unknown.stderr.contains("did you mean"),
        "{}",
        unknown.stderr
    );
    let wrong = world.run(&["limits", "set", "target", "im", "fast"]).await;
    assert_eq!(wrong.code, Some(64), "{}", wrong.stderr);
    worker.drain().await;
    world.end().await;
}

/// The same on the embedded engine over HTTP, where a pause survives SIGKILL.
#[tokio::test(flavor = "multi_thread")]
async fn serve_pauses_resumes_and_cancels() {
    let place = Place::new("serve-steer").await;
    place
        .mock
        .patch_faults(&json!({"latency": "100ms"}))
        .unwrap();
    let mut process = place.serve().await;
    let recipients = users(12_000);
    place.send("k", &recipients, &[]).await;
    until_accepted(&place.mock, 1000).await;
    place
        .json(&["job", "pause", "k", "--author", "ana", "--reason", "typo"])
        .await;
    let heeded_us = now_us() + HEEDED.as_micros() as u64;
    until_heeded(heeded_us + 1_000_000).await;
    assert_eq!(accepted_between(&place.mock, heeded_us, u64::MAX), 0);
    let shown = place.json(&["job", "show", "k"]).await;
    assert_eq!(hindrances(&shown), ["paused: job paused by ana: typo"]);

    let killed_at = place.mock.stats().accepted;
    process.kill();
    process = place.serve().await;
    let shown = place.json(&["job", "show", "k"]).await;
    assert_eq!(hindrances(&shown), ["paused: job paused by ana: typo"]);
    assert_eq!(place.mock.stats().accepted, killed_at);
    place.json(&["job", "resume", "k"]).await;
    until_accepted(&place.mock, killed_at + 500).await;
    place.json(&["job", "cancel", "k", "--author", "ana"]).await;
    let record = place.completed("k").await;
    let number = |outcome: &str| record["accounts"][outcome].as_u64().unwrap();
    assert_eq!(number("sent") + number("cancelled"), 12_000, "{record}");
    assert!(number("cancelled") > 0, "{record}");
    assert_eq!(place.accepted_once().len() as u64, number("sent"));
    assert_eq!(place.json(&["job", "verify", "k"]).await["exact"], true);
    process.terminate();
    assert_eq!(process.wait(Duration::from_secs(30)).await.code(), Some(0));
}

/// The routes answer mistakes with the reason, and show limits and targets as the commands do.
#[tokio::test(flavor = "multi_thread")]
async fn the_routes_that_steer_answer_mistakes() {
    let place = Place::new("serve-routes").await;
    let _process = place.serve().await;
    let http = Http::of(&place);
    let send = [
        "send",
        "--client-msg-no",
        "k",
        "--text",
        "hello",
        "u1",
        "--wait",
        "--json",
    ];
    let sent = place.run(&send, b"").await;
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    let sent: Value = serde_json::from_str(&sent.stdout).unwrap();
    let job = sent["job"].as_str().unwrap().to_owned();
    let unknown = "0".repeat(24);
    let cases = [
        (
            "POST",
            format!("/v1/jobs/{job}:pause"),
            "",
            409,
            "is completed",
        ),
        (
            "POST",
            format!("/v1/jobs/{unknown}:cancel"),
            "",
            404,
            "there is no job",
        ),
        (
            "POST",
            "/v1/jobs/k:cancel".to_owned(),
            "",
            404,
            "not a job id",
        ),
        (
            "POST",
            format!("/v1/jobs/{job}:stop"),
            "",
            404,
            "pause, resume, cancel, rate",
        ),
        ("POST", format!("/v1/jobs/{job}:rate"), "", 400, "rate: "),
        (
            "POST",
            "/v1/targets/im:pause".to_owned(),
            "{\"resaon\":1}",
            400,
            "did you mean",
        ),
        (
            "POST",
            "/v1/targets/in:pause".to_owned(),
            "",
            404,
            "there is no target",
        ),
        (
            "POST",
            "/v1/apps/shop:pause".to_owned(),
            "",
            404,
            "there is no app",
        ),
        (
            "PUT",
            "/v1/limits".to_owned(),
            "{\"rate\":\"5/s\"}",
            400,
            "scope: ",
        ),
        (
            "PUT",
            "/v1/limits".to_owned(),
            "{\"scope\":\"target\",\"rate\":\"fast\",\"expires_in\":\"soon\"}",
            400,
            "expires_in: ",
        ),
    ];
    for (method, path, body, status, part) in cases {
        let (found, answer) = http.ask(method, &path, body).await;
        assert_eq!(found, status, "{method} {path}: {answer}");
        let detail = answer["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(part), "{method} {path}: {answer}");
    }

    let body = r#"{"scope":"app","name":"default","rate":"5/s","author":"ana","expires_in":"1h"}"#;
    let (status, answer) = http.ask("PUT", "/v1/limits", body).await;
    assert_eq!(
        (status, &answer["changed"]),
        (200, &json!(true)),
        "{answer}"
    );
    let (_, limits) = http.ask("GET", "/v1/limits", "").await;
    assert_eq!(limits, place.json(&["limits", "show"]).await);
    assert_eq!(limits[1]["live"]["rate"], "5/s burst 1", "{limits}");
    let (_, directives) = http.ask("GET", "/v1/directives", "").await;
    assert_eq!(directives[0]["author"], "ana", "{directives}");
    let (status, parked) = http
        .ask(
            "POST",
            "/v1/targets/im:park",
            r#"{"expires_in":"5m","reason":"r"}"#,
        )
        .await;
    assert_eq!(
        (status, &parked["parked"]["reason"]),
        (200, &json!("operator"))
    );
    let (_, targets) = http.ask("GET", "/v1/targets", "").await;
    assert_eq!(targets, place.json(&["target", "list"]).await);
    assert_eq!(targets[0]["state"], "parked", "{targets}");
    let (_, shown) = http.ask("GET", &format!("/v1/jobs/{job}"), "").await;
    let hindrances = &shown["hindrances"];
    assert_eq!(hindrances, &json!([]), "a completed job waits for nothing");
}

/// The HTTP interface, without the commands.
struct Http {
    base: String,
    client: Client,
}

impl Http {
    fn of(place: &Place) -> Self {
        Self {
            base: format!("http://127.0.0.1:{}", place.gateway),
            client: Client::new(ClientSettings::defaults()),
        }
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let request = Request {
            method: method.parse().unwrap(),
            uri: format!("{}{path}", self.base).parse().unwrap(),
            headers: http::HeaderMap::new(),
            body: body.to_owned().into(),
        };
        let reply = self.client.send(request, BOUND).await.unwrap();
        (reply.status, serde_json::from_slice(&reply.body).unwrap())
    }
}
