//! A job whose slices are gone ends, says so, and sends to the others when it is submitted again. A job
//! with a living slice goes on.

use lapin::options::QueuePurgeOptions;
use lapin::{Connection, ConnectionProperties};
use serde_json::{Value, json};

use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, World, users};
use crate::upload::{JSON, job, post};

/// Removes what waits in all lanes and on the retry ladder, as a mistaken command to the broker does.
async fn purge(world: &World) {
    let topology = world.json(&["topology", "show"]).await;
    let queues = topology["depths"].as_array().unwrap().iter();
    let names = queues.filter_map(|queue| queue["queue"].as_str());
    let connection = Connection::connect(&world.amqp, ConnectionProperties::default())
        .await
        .unwrap();
    let channel = connection.create_channel().await.unwrap();
    let mut purged = 0;
    for name in names.filter(|name| name.contains(".send.") || name.contains(".retry.")) {
        let options = QueuePurgeOptions::default();
        purged += channel.queue_purge(name.into(), options).await.unwrap();
    }
    assert!(purged > 0, "nothing was lost");
}

async fn until_noted(world: &World, job: &str, action: &str, detail: &str) {
    until(&format!("{action}: {detail}"), BOUND, async || {
        let record = world.job(job).await?;
        let trail = record["audit_trail"].as_array()?;
        let noted = trail.iter().find(|it| {
            let told = it["detail"].as_str();
            it["action"] == action && told.is_some_and(|it| it.contains(detail))
        });
        noted.map(drop)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_slices_are_gone_ends_and_can_be_sent_again() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("repair").await;
    world
        .mock
        .patch_faults(&json!({"latency": "20ms"}))
        .unwrap();
    let settings = [
        ("FANWISE_LEDGER__ABANDONED_AFTER", "16s"),
        ("FANWISE_WORKER__SLICE_RECIPIENTS", "20"),
        ("FANWISE_TARGETS__IM__LIMIT", "200/s"),
    ];
    let worker = world.worker_with(&settings).await;
    let everybody = users(400);
    let lost = world.send("lost", &everybody, &[]).await;
    until("some are sent", BOUND, async || {
        (world.accepted().len() >= 100).then_some(())
    })
    .await;
    worker.drain().await;
    purge(&world).await;
    let sent = world.accepted().len();
    assert!(sent < everybody.len());

    let worker = world.worker_with(&settings).await;
    let others = [users(150), vec!["late".to_owned()]].concat();
    let paused = world.send("paused", &others, &["--rate", "50/s"]).await;
    world.json(&["job", "pause", &paused]).await;
    let dry = world.json(&["job", "repair", &lost, "--dry-run"]).await;
    assert_eq!(dry["pending"], everybody.len() - sent, "{dry}");
    assert!(world.job(&lost).await.unwrap()["audit_trail"].is_null());
    for id in [&paused, &lost] {
        let ordered = ["job", "repair", id, "--author", "ana", "--reason", "purged"];
        world.json(&ordered).await;
    }
    until_noted(&world, &paused, "repair", "the job goes on").await;
    until_noted(&world, &lost, "end", "nothing was left to deliver").await;
    let record = until("the end of the job", BOUND, async || {
        let record = world.job(&lost).await?;
        (record["state"] == "completed").then_some(record)
    })
    .await;
    assert_eq!(record["lost"], everybody.len() - sent, "{record}");
    assert_eq!(record["accounts"]["sent"], sent, "{record}");
    let verified = world.run(&["job", "verify", &lost]).await;
    assert_eq!(verified.code, Some(70), "{}", verified.stdout);
    assert!(
        verified.stdout.contains("submit the job again"),
        "{}",
        verified.stdout
    );
    assert!(!verified.stdout.contains("claims"), "{}", verified.stdout);
    assert!(worker.metrics().await["fanwise_jobs_abandoned_total"] >= 1.0);

    // The others get the message, and those that have it do not get it again. Whoever waits for this
    // gets the second end of the job and not the first.
    let gateway = world.gateway(&[]).await;
    let recipients: Vec<_> = everybody.iter().map(String::as_str).collect();
    let again = job("lost", "hello", &recipients);
    let wait = ("Prefer", "wait=30");
    let again = post(gateway.port, &[JSON, wait], again.as_bytes()).await;
    let answer = again.json();
    assert_eq!(
        (
            again.status,
            &answer["job"],
            &answer["standing"]["accounts"]["sent"]
        ),
        (200, &json!(lost), &json!(everybody.len())),
        "{again:?}"
    );
    let record = world.completed(&lost).await;
    assert_eq!(
        (&record["lost"], &record["reopened"]),
        (&Value::Null, &json!(1)),
        "{record}"
    );
    gateway.end().await;
    world.json(&["job", "resume", &paused]).await;
    let record = world.completed(&paused).await;
    assert_eq!(record["accounts"]["sent"], 151, "{record}");
    let twice = world.accepted();
    for user in &everybody {
        let messages = if users(150).contains(user) { 2 } else { 1 };
        assert_eq!(twice[user], messages, "{user}");
    }
    worker.drain().await;
    world.end().await;
}
