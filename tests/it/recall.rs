//! Ids of messages, kept with the outcomes; and messages that are taken back.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::support::process::{Finished, run_fanwise};
use crate::support::relay::Relay;
use crate::support::servers::{PrivateRedis, amqp_url};
use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, World, http_get, users};

/// A NetEase app with these further lines.
fn netease(mut plan: Plan, more: &str) -> Plan {
    plan.own_url = true;
    plan.target = format!(
        "url = \"http://{{address}}/nimserver\"\ntype = \"netease\"\nsender = \"news\"\n\
         app_key = \"mock-key\"\napp_secret = \"mock-secret\"\n{more}"
    );
    plan
}

/// What is told of each recipient of a list.
async fn told(world: &World, job: &str, recipients: &[String]) -> BTreeMap<String, Value> {
    let file = world.write("asked.txt", recipients.join("\n"));
    let arguments = [
        "job",
        "recipients",
        job,
        "--file",
        file.to_str().unwrap(),
        "--json",
    ];
    let told = world.run(&arguments).await;
    assert_eq!(told.code, Some(0), "{}", told.stderr);
    let rows = told.stdout.lines().map(|line| {
        let row: Value = serde_json::from_str(line).unwrap();
        (row["recipient"].as_str().unwrap().to_owned(), row)
    });
    rows.collect()
}

async fn recall(server: &str, job: &str, more: &[&str]) -> Finished {
    let arguments = [&["job", "recall", job, "--server", server, "--json"], more].concat();
    run_fanwise(&arguments, &[], b"", BOUND).await
}

/// The ids of the backend are kept with the outcomes, shown by the look-ups, and used to take every
/// message back once, in as many requests as it needs.
#[tokio::test(flavor = "multi_thread")]
async fn the_messages_of_a_job_are_taken_back_once() {
    let Some(plan) = Plan::shared() else { return };
    let world = netease(plan, "limit = \"1000/s\"").start("recall").await;
    let worker = world.worker().await;
    let gateway = world.gateway(&[("FANWISE_GATEWAY__WAIT_MAX", "1s")]).await;
    let server = format!("http://127.0.0.1:{}", gateway.port);
    let all = users(250);
    let job = world.send("kept", &all, &["--keep-ids", "--wait"]).await;
    let record = world.completed(&job).await;
    assert_eq!(
        (&record["keep_ids"], &record["accounts"]["sent"]),
        (&json!(true), &json!(250))
    );

    let accepted = world.mock.accepted();
    let ids: BTreeMap<_, _> = accepted
        .iter()
        .map(|it| (&it.recipient, it.message_id))
        .collect();
    let rows = told(&world, &job, &all).await;
    for (recipient, row) in &rows {
        let message = &row["message"];
        assert_eq!(message["id"], ids[recipient].to_string(), "{row}");
        assert!(
            message["at"].is_string() && message["recall"] == "no",
            "{row}"
        );
    }
    let one = world.json(&["job", "recipient", &job, "u3"]).await;
    assert_eq!(one["message"]["id"], ids[&"u3".to_owned()].to_string());

    // A job that keeps nothing, and one that is not confirmed.
    let plain = world.send("plain", &all[..1], &["--wait"]).await;
    let refused = recall(&server, &plain, &["--yes"]).await;
    assert!(
        refused.stderr.contains("keeps no ids"),
        "{}",
        refused.stderr
    );
    let asked = recall(&server, &job, &[]).await;
    assert_eq!(asked.code, Some(64), "{}", asked.stderr);
    assert!(
        asked.stderr.contains("confirm it with --yes"),
        "{}",
        asked.stderr
    );
    let direct = world.run(&["job", "recall", &job, "--yes"]).await;
    assert!(direct.stderr.contains("--server"), "{}", direct.stderr);
    assert!(world.mock.recalled().is_empty());

    let words = ["--yes", "--reason", "wrong price", "--author", "ana"];
    let done = recall(&server, &job, &words).await;
    assert_eq!(done.code, Some(0), "{}{}", done.stdout, done.stderr);
    let result: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(
        (&result["recalled"], &result["left"]),
        (&json!(250), &json!(0)),
        "{result}"
    );
    let recalled = world.mock.recalled();
    let distinct: BTreeSet<_> = recalled
        .iter()
        .map(|it| (&it.recipient, it.message_id))
        .collect();
    assert_eq!((recalled.len(), distinct.len()), (250, 250));
    // 90 a second, and a second a request: it took several.
    assert!(
        done.stderr.matches("message(s) recalled").count() >= 1,
        "{}",
        done.stderr
    );
    let again = recall(&server, &job, &words).await;
    assert_eq!((again.code, world.mock.recalled().len()), (Some(0), 250));
    let rows = told(&world, &job, &all[..3]).await;
    assert!(
        rows.values()
            .all(|row| row["message"]["recall"] == "recalled"),
        "{rows:?}"
    );
    let shown = world.json(&["job", "show", &job]).await;
    let trail: Vec<_> = shown["audit_trail"].as_array().unwrap().iter().collect();
    let entries = trail.iter().filter(|it| it["action"] == "recall");
    let entries: Vec<_> = entries
        .map(|it| (it["detail"].clone(), it["reason"].clone()))
        .collect();
    let reason = json!("wrong price");
    assert_eq!(
        entries,
        [
            (json!("of 250 message(s)"), reason.clone()),
            (json!("ended: 250 recalled, 0 cannot be recalled"), reason),
        ]
    );
    worker.drain().await;
    gateway.end().await;
    world.end().await;
}

/// Recalls and sends take the limit of the target together, and neither keeps the other from it.
#[tokio::test(flavor = "multi_thread")]
async fn a_recall_takes_its_part_of_the_limit_of_the_target() {
    let Some(plan) = Plan::shared() else { return };
    let plan = netease(plan, "limit = \"40/s burst 4\"");
    let world = plan.start("recall-limit").await;
    let worker = world.worker().await;
    let gateway = world.gateway(&[("FANWISE_GATEWAY__WAIT_MAX", "1s")]).await;
    let server = format!("http://127.0.0.1:{}", gateway.port);
    let kept = world.send("kept", &users(60), &["--keep-ids"]).await;
    world.completed(&kept).await;
    // A call for each.
    let others = (0..5000).map(|number| format!(r#"{{"id":"v{number}","vars":{{"n":{number}}}}}"#));
    let others: Vec<String> = others.collect();
    let personal = [
        "send",
        "--client-msg-no",
        "busy",
        "--text",
        "hi {{ n }}",
        "--json",
    ];
    let bulk = ["--format", "ndjson", "--file", "-", "--priority", "bulk"];
    let sent = [&personal[..], &bulk].concat();
    let sent = world
        .run_with_input(&sent, others.join("\n").as_bytes())
        .await;
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    until("the other job", BOUND, async || {
        (world.mock.stats().accepted > 70).then_some(())
    })
    .await;
    let done = recall(&server, &kept, &["--yes"]).await;
    assert_eq!(done.code, Some(0), "{}{}", done.stdout, done.stderr);
    let recalled = world.mock.recalled();
    assert_eq!(recalled.len(), 60);
    let (first, last) = (recalled[0].at_us, recalled[59].at_us);
    let mut sent = world.mock.accepted();
    sent.retain(|it| it.recipient.starts_with('v'));
    let during = sent.iter().map(|it| it.at_us);
    let during = during.filter(|at| (first..=last).contains(at)).count();
    assert!(during > 30, "{during} sends in {} us", last - first);
    let mut all: Vec<u64> = sent.iter().map(|it| it.at_us).collect();
    all.extend(recalled.iter().map(|it| it.at_us));
    all.sort_unstable();
    // The burst, and blocks of the worker and of the recall that came late.
    let most = 40 + 4 + 2 * 2 + 2;
    let second = |index: usize| {
        let end = all[index] + 1_000_000;
        all[index..].iter().take_while(|it| **it < end).count()
    };
    let highest = (0..all.len()).map(second).max().unwrap();
    assert!(highest <= most, "{highest} in a second");

    // A target that is paused recalls nothing, and says so.
    let more = world.send("more", &users(3), &["--keep-ids"]).await;
    world.completed(&more).await;
    world.json(&["target", "pause", "im"]).await;
    until("the gateway knows", BOUND, async || {
        let metrics = http_get(gateway.admin, "/metrics").await?;
        let paused = "fanwise_directives{action=\"pause\",scope=\"target\"} 1\n";
        metrics.contains(paused).then_some(())
    })
    .await;
    let refused = recall(&server, &more, &["--yes"]).await;
    let told = refused.stderr.contains("target \"im\" is paused");
    assert!(refused.code == Some(75) && told, "{}", refused.stderr);
    assert_eq!(world.mock.recalled().len(), 60);
    world.json(&["job", "cancel", "busy"]).await;
    worker.drain().await;
    gateway.end().await;
    world.end().await;
}

/// The ledger takes the outcomes of a job late: from a worker that lost its session meanwhile, or, for
/// an app that fails open, with the rest of the slice. It gets the ids with them.
#[tokio::test(flavor = "multi_thread")]
async fn ids_are_kept_when_the_ledger_takes_the_outcomes_late() {
    for fails_open in [false, true] {
        let (Some(amqp), Some(mut redis)) = (amqp_url(), PrivateRedis::start().await) else {
            return;
        };
        let (relay, amqp) = Relay::before(&amqp).await;
        let mut plan = netease(Plan::on(&amqp, redis.url()), "limit = \"1000/s\"");
        if fails_open {
            plan.more = "[apps.default]\non_ledger_down = \"fail_open\"".to_owned();
        }
        let world = plan.start("ids-late").await;
        world.mock.patch_faults(&json!({"latency": "2s"})).unwrap();
        let worker = world.worker().await;
        let recipients = users(20);
        let job = world.send("late", &recipients, &["--keep-ids"]).await;
        until("the call", BOUND, async || {
            (world.mock.stats().accepted == 20).then_some(())
        })
        .await;
        redis.kill().await;
        if !fails_open {
            relay.cut().await;
        }
        until("the answer", BOUND, async || {
            let metrics = worker.metrics().await;
            let calls = metrics["fanwise_calls_in_flight{target=\"im\"}"];
            (calls == 0.0).then_some(())
        })
        .await;
        redis.start_again().await;
        relay.restore();
        let record = world.completed(&job).await;
        assert_eq!(record["accounts"]["sent"], 20, "{record}");
        let rows = told(&world, &job, &recipients).await;
        assert!(
            rows.values().all(|row| row["message"]["id"].is_string()),
            "fails open: {fails_open}: {rows:?}"
        );
        worker.drain().await;
        world.end().await;
    }
}

/// A redrive of a job that keeps ids keeps them too, so its messages can be taken back.
#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_keeps_ids_as_its_job_does() {
    let Some(plan) = Plan::shared() else { return };
    let world = netease(plan, "limit = \"1000/s\"")
        .start("ids-redrive")
        .await;
    let refuse = |prefix: &str| json!({"refuse_prefix": prefix});
    world.mock.patch_faults(&refuse("u1")).unwrap();
    let worker = world.worker().await;
    let recipients = users(3);
    let job = world
        .send("first", &recipients, &["--keep-ids", "--wait"])
        .await;
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["failed"], 1, "{record}");
    world.mock.patch_faults(&refuse("nobody")).unwrap();
    let redriven = world
        .json(&["dead", "redrive", "--job", &job, "--yes"])
        .await;
    let again = redriven["jobs"][0]["job"].as_str().unwrap();
    let record = world.completed(again).await;
    assert_eq!(
        (&record["keep_ids"], &record["accounts"]["sent"]),
        (&json!(true), &json!(1)),
        "{record}"
    );
    let rows = told(&world, again, &recipients[1..2]).await;
    assert!(rows["u1"]["message"]["id"].is_string(), "{rows:?}");
    worker.drain().await;
    world.end().await;
}
