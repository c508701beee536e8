//! Ids of messages, kept with the outcomes; and messages that are taken back.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::support::process::{Finished, run_fanwise};
use crate::support::world::{BOUND, Plan, World, users};

async fn world(name: &str, target: &str) -> Option<World> {
    let mut plan = Plan::shared()?;
    plan.own_url = true;
    plan.target = target.to_owned();
    Some(plan.start(name).await)
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
    let target = "url = \"http://{address}/nimserver\"\ntype = \"netease\"\nsender = \"news\"\n\
                  app_key = \"mock-key\"\napp_secret = \"mock-secret\"\nlimit = \"1000/s\"";
    let Some(world) = world("recall", target).await else {
        return;
    };
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
