//! Steering of waiting and running jobs: what an operator changes takes effect in seconds, wherever
//! the slices wait, and the audit trail tells who did it.

use serde_json::{Value, json};

use crate::embedded::Place;
use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, World, users};

/// Retries wait for half an hour.
const SLOW_RETRY: [(&str, &str); 2] = [
    ("FANWISE_RETRY__DELAY_MIN", "40m"),
    ("FANWISE_RETRY__DELAY_MAX", "40m"),
];

/// Waits until so many slices are on the longest rung.
async fn on_the_ladder(world: &World, slices: u64) {
    until("the slices wait", BOUND, async || {
        let depths = world.json(&["topology", "show"]).await;
        (waits(&depths) == slices).then_some(())
    })
    .await;
}

/// Messages on the longest rung.
fn waits(depths: &Value) -> u64 {
    let queues = depths["depths"].as_array().into_iter().flatten();
    let rung = queues.filter(|it| {
        let name = it["queue"].as_str().unwrap_or_default();
        name.contains(".retry.30m.")
    });
    rung.map(|it| it["counts"]["ready"].as_u64().unwrap_or(0))
        .sum()
}

/// Recipients that wait half an hour for their next attempt are settled in seconds when their job is
/// cancelled: those that nobody may have sent to as cancelled, those in doubt as uncertain, with a
/// dead letter each. The accounts are exact.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_settles_what_waits_for_a_retry() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("cancel-ladder").await;
    world
        .mock
        .patch_faults(&json!({"error_503": 0.15, "reset_after": 0.15}))
        .unwrap();
    let workers = [
        world.worker_with(&SLOW_RETRY).await,
        world.worker_with(&SLOW_RETRY).await,
    ];
    let job = world.send("ladder", &users(100), &[]).await;
    let other = world.send("other", &users(100), &[]).await;
    on_the_ladder(&world, 2).await;
    let before = world.job(&job).await.unwrap();
    let left = before["pending"].as_u64().unwrap();
    let others = world.job(&other).await.unwrap()["pending"].clone();
    world
        .json(&["job", "cancel", &job, "--reason", "wrong"])
        .await;
    let record = world.completed(&job).await;
    let accounts = &record["accounts"];
    let of = |name: &str| accounts[name].as_u64().unwrap();
    assert_eq!(of("cancelled") + of("uncertain"), left, "{record}");
    assert!(of("cancelled") > 0 && of("uncertain") > 0, "{record}");
    assert_eq!(world.dead(&job).await.len() as u64, of("uncertain"));
    let verified = world.json(&["job", "verify", &job]).await;
    assert_eq!(verified["exact"], true, "{verified}");
    let shown = world.job(&other).await.unwrap();
    assert_eq!(shown["pending"], others, "the other job waits on: {shown}");
    for worker in workers {
        worker.drain().await;
    }
    world.end().await;
}

/// A job whose start lies days ahead is listed, moved, and started in seconds; another one is
/// cancelled, and a deadline ends a third that waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_job_is_moved_cancelled_and_ends_at_its_deadline() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("schedule").await;
    let worker = world.worker().await;
    let in_days = |days: i64| {
        let at = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * days);
        at.to_string()
    };
    let start = ["--not-before", &in_days(8)];
    let moved = world.send("moved", &users(150), &start).await;
    let dropped = world.send("dropped", &users(150), &start).await;
    let ends = world.send("ends", &users(150), &start).await;
    until("all are registered", BOUND, async || {
        let listed = world.json(&["job", "list", "--scheduled"]).await;
        let listed = listed.as_array()?;
        let running = listed.iter().filter(|it| it["state"] == "running");
        (running.count() == 3).then_some(())
    })
    .await;
    world.json(&["job", "schedule", &moved, &in_days(9)]).await;
    let shown = world.job(&moved).await.unwrap();
    let start = shown["not_before"].as_str().unwrap().to_owned();
    assert!(start > in_days(8), "{shown}");
    let late = world.run(&["job", "deadline", &moved, "+1h"]).await;
    assert_ne!(late.code, Some(0), "before the start: {}", late.stdout);
    let past = world
        .run(&["job", "deadline", &moved, "2020-01-01T00:00:00Z"])
        .await;
    assert!(past.stderr.contains("has passed"), "{}", past.stderr);

    world.json(&["job", "schedule", &moved, "now"]).await;
    world.json(&["job", "cancel", &dropped]).await;
    world.json(&["job", "schedule", &ends, "+1s"]).await;
    let record = world.completed(&moved).await;
    assert_eq!(record["accounts"]["sent"], 150, "{record}");
    let record = world.completed(&dropped).await;
    assert_eq!(record["accounts"]["cancelled"], 150, "{record}");
    let record = world.completed(&ends).await;
    assert_eq!(record["accounts"]["sent"], 150, "{record}");

    world.json(&["target", "pause", "im"]).await;
    until("the worker heeds the pause", BOUND, async || {
        let metrics = worker.metrics().await;
        let paused = metrics["fanwise_directives{action=\"pause\",scope=\"target\"}"];
        (paused > 0.0).then_some(())
    })
    .await;
    let paused = world.send("paused", &users(150), &[]).await;
    world.json(&["job", "deadline", &paused, "+2s"]).await;
    let record = world.completed(&paused).await;
    assert_eq!(record["accounts"]["expired"], 150, "{record}");
    worker.drain().await;
    world.end().await;
}

/// On `fanwise serve`: a command for all jobs with a tag reaches those, and the audit trail tells
/// who gave it, from where and why.
#[tokio::test(flavor = "multi_thread")]
async fn a_tag_selects_jobs_and_the_trail_tells_the_story() {
    let place = Place::new("tags").await;
    let _process = place.serve().await;
    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    let later = later.to_string();
    let send = async |key: &str, tags: &[&str], more: &[&str]| {
        let list = users(150).join("\n");
        let mut arguments = vec![
            "send",
            "--client-msg-no",
            key,
            "--text",
            "hi",
            "--file",
            "-",
        ];
        for tag in tags {
            arguments.extend(["--tag", tag]);
        }
        arguments.extend(more);
        let sent = place.run(&arguments, list.as_bytes()).await;
        assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    };
    let waits = ["--not-before", &later];
    send("one", &["spring", "vip"], &waits).await;
    send("two", &["spring"], &waits).await;
    send("three", &[], &[]).await;
    let listed = place.json(&["job", "list", "--tag", "spring"]).await;
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed}");
    let unsure = place.run(&["job", "cancel", "--tag", "spring"], b"").await;
    assert_ne!(unsure.code, Some(0));
    assert!(unsure.stderr.contains("--yes"), "{}", unsure.stderr);
    let reason = "wrong \u{1b}[31mpicture";
    let steered = [
        "job", "cancel", "--tag", "spring", "--yes", "--author", "ana",
    ];
    let steered = [&steered[..], &["--reason", reason]].concat();
    let result = place.json(&steered).await;
    assert_eq!(
        (&result["matched"], &result["changed"]),
        (&json!(2), &json!(2))
    );
    assert_eq!(result["pending"], 300, "{result}");
    for key in ["one", "two"] {
        let record = place.completed(key).await;
        assert_eq!(record["accounts"]["cancelled"], 150, "{record}");
        let trail = record["audit_trail"].as_array().unwrap();
        assert_eq!(trail.len(), 1, "{record}");
        assert_eq!(trail[0]["action"], "cancel");
        assert_eq!(trail[0]["detail"], "all of tag spring");
        assert_eq!(trail[0]["author"], "ana");
        assert_eq!(trail[0]["via"], "cli");
        assert_eq!(trail[0]["caller"], "administrator");
        let told = trail[0]["reason"].as_str().unwrap();
        assert!(!told.chars().any(char::is_control), "{told:?}");
    }
    // A later job with the tag is not reached.
    send("four", &["spring"], &[]).await;
    assert_eq!(place.completed("four").await["accounts"]["sent"], 150);
    assert_eq!(place.completed("three").await["accounts"]["sent"], 150);
}

/// Uncertain recipients are listed and resolved, each once, and a resend sends once. A list tells
/// what became of each recipient.
#[tokio::test(flavor = "multi_thread")]
async fn uncertain_recipients_are_resolved_and_lists_are_answered() {
    let place = Place::new("uncertain").await;
    let _process = place
        .serve_with(&[("FANWISE_RETRY__ATTEMPTS_MAX", "1")])
        .await;
    let all = users(150);
    place
        .mock
        .patch_faults(&json!({"reset_after": 1.0}))
        .unwrap();
    let send = [
        "send",
        "--client-msg-no",
        "k",
        "--text",
        "hi",
        "--file",
        "-",
    ];
    let sent = place.run(&send, all.join("\n").as_bytes()).await;
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    let record = place.completed("k").await;
    assert_eq!(record["accounts"]["uncertain"], 150, "{record}");
    place
        .mock
        .patch_faults(&json!({"reset_after": null}))
        .unwrap();
    let listed = place.json(&["job", "uncertain", "k"]).await;
    assert_eq!(listed.as_array().unwrap().len(), 150);

    let resolve = async |to: &str, named: &[String]| {
        let mut arguments = vec!["job", "uncertain", "k", "--resolve", to, "--json"];
        match named.is_empty() {
            true => arguments.push("--all"),
            false => arguments.extend(["--file", "-"]),
        }
        let done = place.run(&arguments, named.join("\n").as_bytes()).await;
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        let done: Value = serde_json::from_str(&done.stdout).unwrap();
        done["changed"].as_u64().unwrap()
    };
    assert_eq!(resolve("sent", &all[..50]).await, 50);
    assert_eq!(resolve("sent", &all[..60]).await, 10, "the first once only");
    assert_eq!(resolve("failed", &all[50..100]).await, 40);
    assert_eq!(resolve("resend", &[]).await, 50);
    assert_eq!(resolve("resend", &[]).await, 0, "sent to again once only");
    let resent = place.completed("k~r1").await;
    assert_eq!(resent["accounts"]["sent"], 50, "{resent}");
    let record = place.completed("k").await;
    let accounts = &record["accounts"];
    assert_eq!(
        (&accounts["sent"], &accounts["failed"]),
        (&json!(60), &json!(40)),
        "{record}"
    );
    assert_eq!(accounts["uncertain"], 50, "the first call stays in doubt");
    let verified = place.json(&["job", "verify", "k"]).await;
    assert_eq!(verified["exact"], true, "{verified}");
    assert_eq!(record["audit_trail"].as_array().unwrap().len(), 5);
    let dead = place.json(&["dead", "list", "--job", "k"]).await;
    let dead = dead.as_array().unwrap();
    assert_eq!(dead.len(), 40, "{dead:?}");
    assert!(dead.iter().all(|it| it["outcome"] == "failed"), "{dead:?}");

    let asked = [&all[..], &["nobody".to_owned()]].concat();
    let asked = asked.join("\n");
    let file = ["job", "recipients", "k", "--file", "-", "--json"];
    let told = place.run(&file, asked.as_bytes()).await;
    assert_eq!(told.code, Some(0), "{}", told.stderr);
    let states: Vec<_> = told
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|row| row["state"].as_str().unwrap().to_owned())
        .collect();
    let count = |state: &str| states.iter().filter(|it| *it == state).count();
    assert_eq!((count("sent"), count("failed")), (60, 40));
    assert_eq!((count("uncertain"), count("unseen")), (50, 1));
    assert_eq!(states[150], "unseen", "in the order of the list");
}
