//! Limits beside those of a target, an app and a job: shared by targets, of a sender, a day, and by
//! what a message costs. And the first limit of something that had none.

use std::collections::BTreeMap;

use serde_json::json;

use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, World, users};

/// Messages that the mock accepted, by sender.
fn by_sender(world: &World) -> BTreeMap<String, usize> {
    let mut senders = BTreeMap::new();
    for entry in world.mock.accepted() {
        *senders.entry(entry.from.to_string()).or_default() += 1;
    }
    senders
}

/// Waits until a job says that it has reached this limit.
async fn until_limited(world: &World, job: &str, what: &str) {
    until(what, BOUND, async || {
        let record = world.job(job).await?;
        let hindrances = record["hindrances"].as_array()?.clone();
        let said = |it: &serde_json::Value| it["what"].as_str() == Some(what);
        hindrances.iter().any(said).then_some(())
    })
    .await;
}

/// Each limit grants its burst and then nothing for longer than the test runs, so what the mock
/// accepted is exactly what the limits allow.
#[tokio::test(flavor = "multi_thread")]
async fn limits_of_accounts_senders_days_and_prices_are_kept() {
    let Some(plan) = Plan::shared() else { return };
    let target = |name: &str, more: &str| {
        format!(
            "[targets.{name}]\nurl = \"http://{{address}}\"\ntype = \"wukongim\"\nversion = \"v3\"\n\
             sender = \"{name}\"\ncall_timeout = \"3s\"\n{more}\n"
        )
    };
    let more = [
        "[shared_limits]\ncloud = \"7/day burst 7\"\n".to_owned(),
        target("one", "shared_limit = \"cloud\""),
        target("two", "shared_limit = \"cloud\""),
        target("senders", "sender_limit = \"1/h burst 3\""),
        target("daily", "daily_limit = \"5/day burst 2\""),
        target(
            "dear",
            "limit = \"10/h burst 10\"\ncost = { notice = 5, per_kilobyte = 3 }",
        ),
        "[apps.default]\ntarget = \"im\"\n[apps.small]\ndaily_limit = \"9/day burst 4\"".to_owned(),
    ];
    let world = Plan {
        more: more.concat(),
        ..plan
    }
    .start("limits")
    .await;
    let (first, second) = (world.worker().await, world.worker().await);
    let few = users(20);
    let send = async |key: &str, more: &[&str]| world.send(key, &few, more).await;

    let one = send("one", &["--target", "one"]).await;
    let two = send("two", &["--target", "two"]).await;
    let shared = "all targets that share the limit cloud: 7/day burst 7";
    until_limited(&world, &one, shared).await;
    until_limited(&world, &two, shared).await;
    let daily = send("daily", &["--target", "daily"]).await;
    until_limited(&world, &daily, "target daily has the limit 5/day burst 2").await;
    let small = send(
        "small",
        &["--app", "small", "--target", "im", "--sender", "small"],
    )
    .await;
    until_limited(&world, &small, "app small has the limit 9/day burst 4").await;
    // The default sender has one limit, named or not.
    for (key, sender) in [("s1", "senders"), ("s2", "alerts"), ("s3", "alerts")] {
        let more: &[&str] = match key {
            "s1" => &["--target", "senders"],
            _ => &["--target", "senders", "--sender", sender],
        };
        send(key, more).await;
    }
    send("s4", &["--target", "senders", "--sender", "senders"]).await;
    // A text of 1,500 bytes costs 1 + 3 units, so ten units are enough for three.
    let long = "x".repeat(1500);
    let list = few.join("\n");
    let dear = [
        "send",
        "--client-msg-no",
        "dear",
        "--target",
        "dear",
        "--file",
        "-",
    ];
    let dear = [&dear[..], &["--text", &long, "--json"]].concat();
    let sent = world.run_with_input(&dear, list.as_bytes()).await;
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);

    // What was leased too early may be lost, so that a limit grants less, and never more.
    let most = [
        ("shared", 7),
        ("senders", 3),
        ("alerts", 3),
        ("daily", 2),
        ("small", 4),
        ("dear", 3),
    ];
    let got = || {
        let mut got = by_sender(&world);
        let shared = ["one", "two"].map(|it| got.remove(it).unwrap_or(0));
        got.insert("shared".to_owned(), shared.iter().sum());
        got
    };
    until("a message of each sender", BOUND, async || {
        most.iter()
            .all(|(name, _)| got().contains_key(*name))
            .then_some(())
    })
    .await;
    let limited = "fanwise_throttle_decisions_total{result=\"limited\",scope=\"sender\"}";
    until("decisions about senders", BOUND, async || {
        let both = [first.metrics().await, second.metrics().await];
        (both.iter().map(|it| it[limited]).sum::<f64>() >= 4.0).then_some(())
    })
    .await;
    for (name, most) in most {
        let count = got()[name];
        assert!((1..=most).contains(&count), "{name}: {count} of {most}");
    }
    for worker in [first, second] {
        worker.drain().await;
    }
    world.end().await;
}

/// A job without any limit gets its first one while its calls wait for places. When the worker knows
/// of it, only the calls that are under way and the burst still come.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_limit_holds_from_the_first_call() {
    let Some(mut plan) = Plan::shared() else {
        return;
    };
    plan.target += "\ncalls_in_flight = 4";
    let world = plan.start("first-limit").await;
    let slow = json!({"latency": "400ms"});
    world.mock.patch_faults(&slow).unwrap();
    let worker = world.worker().await;
    let job = world.send("first", &users(400), &[]).await;
    until("some calls", BOUND, async || {
        (world.mock.stats().accepted >= 8).then_some(())
    })
    .await;
    let set = world.run(&["job", "rate", &job, "1/h burst 1"]).await;
    assert_eq!(set.code, Some(0), "{}", set.stderr);
    until("the worker to know the limit", BOUND, async || {
        let metrics = worker.metrics().await;
        (metrics["fanwise_directives{action=\"rate\",scope=\"job\"}"] == 1.0).then_some(())
    })
    .await;
    let known = world.mock.stats().accepted;
    until("the cause", BOUND, async || {
        let record = world.job(&job).await?;
        (record["hindrances"][0]["cause"] == "job_limit").then_some(())
    })
    .await;
    until("all calls to be back", BOUND, async || {
        let metrics = worker.metrics().await;
        (metrics["fanwise_calls_in_flight{target=\"im\"}"] == 0.0).then_some(())
    })
    .await;
    let accepted = world.mock.stats().accepted;
    assert!(accepted <= known + 4 + 1, "{accepted} after {known}");
    worker.drain().await;
    world.end().await;
}

/// An operator changes every limit while it holds a job up, and the job says which one that is.
#[tokio::test(flavor = "multi_thread")]
async fn every_limit_can_be_set_while_everything_runs() {
    let Some(plan) = Plan::shared() else { return };
    let target = |name: &str, more: &str| {
        format!(
            "[targets.{name}]\nurl = \"http://{{address}}\"\ntype = \"wukongim\"\nversion = \"v3\"\n\
             sender = \"{name}\"\ncall_timeout = \"3s\"\n{more}\n"
        )
    };
    let more = [
        "[shared_limits]\ncloud = \"1/h\"\n".to_owned(),
        target("one", "shared_limit = \"cloud\""),
        target("senders", "sender_limit = \"1/h\""),
        target("daily", "daily_limit = \"1/day\""),
        "[apps.default]\ntarget = \"im\"\n[apps.small]\ntarget = \"im\"\n".to_owned(),
    ];
    let more = more.concat();
    let world = Plan { more, ..plan }.start("set-limits").await;
    let few = users(20);
    let dry = [
        "send",
        "-k",
        "dry",
        "--text",
        "x",
        "--target",
        "daily",
        "--dry-run",
    ];
    let dry = world.json(&[&dry[..], &["a", "b", "c"]].concat()).await;
    assert_eq!(dry["estimate"]["seconds"], 2 * 24 * 3600, "{dry}");
    assert_eq!(dry["estimate"]["limit"], "1/day of target daily", "{dry}");
    let set = async |arguments: &[&str]| {
        let set = world.run(&[&["limits", "set"], arguments].concat()).await;
        assert_eq!(set.code, Some(0), "{}", set.stderr);
    };
    // A first limit on an app that had none.
    set(&["app", "small", "1/day", "--daily"]).await;
    let worker = world.worker().await;
    let fast = "10000000/day burst 1000";
    let rows = [
        ("one", "shared_limit", vec!["shared", "cloud", "1000/s"]),
        (
            "senders",
            "sender_limit",
            vec!["target", "senders", "1000/s", "--sender"],
        ),
        (
            "daily",
            "target_limit",
            vec!["target", "daily", fast, "--daily"],
        ),
        (
            "small",
            "app_limit",
            vec!["app", "small", "default", "--daily"],
        ),
    ];
    let mut jobs = Vec::new();
    for (name, ..) in &rows {
        let more: &[&str] = match *name {
            "small" => &["--app", "small"],
            target => &["--target", target],
        };
        jobs.push(world.send(name, &few, more).await);
    }
    for (job, (name, cause, _)) in jobs.iter().zip(&rows) {
        until(&format!("{cause} of {name}"), BOUND, async || {
            let record = world.job(job).await?;
            (record["hindrances"][0]["cause"] == *cause).then_some(())
        })
        .await;
    }
    let limits = world.json(&["limits", "list"]).await;
    let limits = limits.as_array().unwrap();
    let row = |scope: &str, name: &str, kind: Option<&str>| {
        let is = |it: &&serde_json::Value| {
            it["scope"] == scope && it["name"] == name && it["kind"].as_str() == kind
        };
        limits.iter().find(is).unwrap()
    };
    assert_eq!(row("shared", "cloud", None)["configured"], "1/h burst 1");
    assert!(row("shared", "cloud", None)["booked"].as_f64().unwrap() > 0.9);
    assert_eq!(
        row("target", "senders", Some("sender"))["booked"],
        serde_json::Value::Null
    );
    assert_eq!(
        row("app", "small", Some("daily"))["live"]["rate"],
        "1/day burst 1"
    );
    for (_, _, arguments) in &rows {
        set(arguments).await;
    }
    for job in &jobs {
        let record = world.completed(job).await;
        assert_eq!(record["accounts"]["sent"], 20, "{record}");
    }
    for (arguments, what) in [
        (["target", "im", "5/h", "--daily"], "a rate a day"),
        (["app", "small", "5/s", "--sender"], "no app has"),
        (
            ["shared", "clod", "5/s", "--author=x"],
            "there is no shared limit \"clod\"",
        ),
    ] {
        let wrong = world
            .run(&[&["limits", "set"], &arguments[..]].concat())
            .await;
        assert_ne!(wrong.code, Some(0));
        assert!(wrong.stderr.contains(what), "{}", wrong.stderr);
    }
    worker.drain().await;
    world.end().await;
}
