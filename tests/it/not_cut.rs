//! Lists for a target that cannot take them wait uncut: what waits on the lanes has a bound, jobs for
//! other targets go on, and nothing of them is lost or sent twice.

use serde_json::{Value, json};

use crate::embedded::Place;
use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, World, users};

/// Messages in the queues whose name has this part.
async fn in_queues(world: &World, part: &str) -> u64 {
    let shown = world.json(&["topology", "show"]).await;
    let queues = shown["depths"].as_array().into_iter().flatten();
    let named = queues.filter(|it| it["queue"].as_str().unwrap_or_default().contains(part));
    let ready = named.map(|it| it["counts"]["ready"].as_u64().unwrap_or(0));
    ready.sum()
}

/// A job for this target, as a producer publishes it.
fn job(key: &str, target: &str, recipients: &[String], tags: &[&str]) -> Vec<u8> {
    let job = json!({
        "v": 1, "client_msg_no": key, "target": target, "audience": {"users": recipients},
        "message": {"type": "text", "text": "hello"}, "tags": tags,
    });
    job.to_string().into_bytes()
}

fn causes(record: &Value) -> Vec<&str> {
    let hindrances = record["hindrances"].as_array().into_iter().flatten();
    hindrances.filter_map(|it| it["cause"].as_str()).collect()
}

async fn uncut(world: &World, key: &str) -> Value {
    until("a list that is not cut", BOUND, async || {
        let record = world.job(key).await?;
        (record["uncut"] == 1).then_some(record)
    })
    .await
}

/// Many jobs for a parked target are accepted and not cut. A job behind them for another target is
/// sent; a cancel and a deadline end such a job while the target is parked; a killed worker changes
/// nothing; and after the unpark the others are sent once.
#[tokio::test(flavor = "multi_thread")]
async fn lists_for_a_parked_target_wait_uncut() {
    const MANY: usize = 200;
    let Some(mut plan) = Plan::shared() else {
        return;
    };
    plan.more = "[targets.other]\ntype = \"wukongim\"\nversion = \"v3\"\nsender = \"news\"\n\
                 url = \"http://{address}\"\ncall_timeout = \"3s\"\n[apps.default]\ntarget = \"im\"\n"
        .to_owned();
    let world = plan.start("not-cut").await;
    let mut worker = world.worker().await;
    world.json(&["target", "park", "im"]).await;
    until("the worker heeds the park", BOUND, async || {
        let metrics = worker.metrics().await;
        let parked = metrics.iter().find(|(name, value)| {
            name.starts_with("fanwise_target_parked{") && name.contains("\"im\"") && **value > 0.0
        });
        parked.map(drop)
    })
    .await;
    let mine = |key: &str| -> Vec<String> {
        users(150)
            .into_iter()
            .map(|it| format!("{key}-{it}"))
            .collect()
    };
    let kept = ["kept-0", "kept-1", "kept-2"];
    for key in kept.iter().chain(&["dropped", "late"]) {
        world.publish_raw(&job(key, "im", &mine(key), &[])).await;
    }
    let body = |number: usize| {
        let key = format!("many-{number}");
        job(&key, "im", &mine(&key), &["many"])
    };
    for number in 0..MANY {
        world.publish_raw(&body(number)).await;
    }
    let healthy = mine("healthy");
    world
        .publish_raw(&job("healthy", "other", &healthy, &[]))
        .await;
    let record = world.completed("healthy").await;
    assert_eq!(record["accounts"]["sent"], 150, "{record}");
    world.assert_once_each(&healthy);

    let record = uncut(&world, &format!("many-{}", MANY - 1)).await;
    assert_eq!(causes(&record), ["parked", "not_cut"], "{record}");
    assert_eq!(record["pending"], 150, "{record}");
    assert_eq!(in_queues(&world, ".send.im.").await, 0);
    worker.process.kill();
    let worker = world.worker().await;
    uncut(&world, kept[0]).await;

    let cancelled = ["job", "cancel", "--tag", "many", "--yes"];
    let steered = world.json(&cancelled).await;
    assert_eq!(steered["matched"], MANY, "{steered}");
    world.json(&["job", "cancel", "dropped"]).await;
    world.json(&["job", "deadline", "late", "+1s"]).await;
    let dropped = world.completed("dropped").await;
    assert_eq!(dropped["accounts"]["cancelled"], 150, "{dropped}");
    let late = world.completed("late").await;
    assert_eq!(late["accounts"]["expired"], 150, "{late}");
    for number in [0, MANY / 2, MANY - 1] {
        let record = world.completed(&format!("many-{number}")).await;
        assert_eq!(record["accounts"]["cancelled"], 150, "{record}");
    }
    uncut(&world, kept[0]).await;

    world.json(&["target", "unpark", "im"]).await;
    let mut all = healthy;
    for key in kept {
        let record = world.completed(key).await;
        assert_eq!(record["accounts"]["sent"], 150, "{record}");
        assert!(record["uncut"].is_null(), "{record}");
        all.extend(mine(key));
    }
    world.assert_once_each(&all);
    worker.drain().await;
    world.end().await;
}

/// While a lane is full, a further list for it waits, however healthy the target is, and is cut when
/// there is room. Both are sent once.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_for_a_full_lane_waits_uncut() {
    let Some(mut plan) = Plan::shared() else {
        return;
    };
    plan.target.push_str("\nlimit = \"100/s burst 1\"");
    let world = plan.start("full-lane").await;
    let settings = [
        ("FANWISE_WORKER__LANE_SLICES_MAX", "5"),
        ("FANWISE_WORKER__SLICE_RECIPIENTS", "10"),
    ];
    let mut worker = world.worker_with(&settings).await;
    let all = users(1000);
    let (first, second) = all.split_at(500);
    world.publish_raw(&job("long", "im", first, &[])).await;
    until("slices on the lane", BOUND, async || {
        (in_queues(&world, ".send.im.normal.").await >= 5).then_some(())
    })
    .await;
    // All of a job is on one lane.
    world.publish_raw(&job("long", "im", second, &[])).await;
    let record = uncut(&world, "long").await;
    assert_eq!(record["submissions"], 2, "{record}");
    assert!(causes(&record).contains(&"not_cut"), "{record}");
    worker.process.kill();
    let worker = world.worker_with(&settings).await;
    world
        .json(&["limits", "set", "target", "im", "5000/s"])
        .await;
    let record = world.completed("long").await;
    let accounts = &record["accounts"];
    let of = |name: &str| accounts[name].as_u64().unwrap();
    assert_eq!(of("sent") + of("duplicate"), 1000, "{record}");
    world.assert_once_each(&all);
    worker.drain().await;
    world.end().await;
}

/// The same on `fanwise serve`, across a kill.
#[tokio::test(flavor = "multi_thread")]
async fn lists_for_a_parked_target_wait_uncut_on_the_embedded_engine() {
    let place = Place::new("not-cut-embedded").await;
    let mut process = place.serve().await;
    place.json(&["target", "pause", "im"]).await;
    until("the worker heeds the pause", BOUND, async || {
        let (_, metrics) = place.request(place.admin, "GET /metrics", b"").await;
        let heeded = "\nfanwise_directives{action=\"pause\",scope=\"target\"} 1\n";
        metrics.contains(heeded).then_some(())
    })
    .await;
    let submit = async |key: &str| {
        let body = job(key, "im", &users(150), &[]);
        let (status, answer) = place.request(place.gateway, "POST /v1/jobs", &body).await;
        assert_eq!(status, 202, "{answer}");
    };
    let shown = async |key: &str| {
        let finished = place.run(&["job", "show", key, "--json"], b"").await;
        serde_json::from_str::<Value>(&finished.stdout).ok()
    };
    let until_uncut = async |key: &str| {
        until("a list that is not cut", BOUND, async || {
            let record = shown(key).await?;
            (record["uncut"] == 1).then_some(record)
        })
        .await
    };
    submit("kept").await;
    submit("dropped").await;
    let record = until_uncut("kept").await;
    assert_eq!(causes(&record), ["paused", "not_cut"], "{record}");
    until_uncut("dropped").await;
    process.kill();
    let _process = place.serve().await;
    place.json(&["job", "cancel", "dropped"]).await;
    let dropped = place.completed("dropped").await;
    assert_eq!(dropped["accounts"]["cancelled"], 150, "{dropped}");
    until_uncut("kept").await;
    place.json(&["target", "resume", "im"]).await;
    let record = place.completed("kept").await;
    assert_eq!(record["accounts"]["sent"], 150, "{record}");
    assert_eq!(place.accepted_once().len(), 150);
}
