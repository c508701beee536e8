//! Tests NetEase's cloud: the block after too many calls, the shared limit that stays below the
//! quota, a recipient that makes its call fail, and accids that differ only by case.

use std::time::Duration;

use fanwise_mock_im::{NeteaseSettings, Quota, Settings};

use super::{gauge, listed, parked_gauge, until_parked};
use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, World, milliseconds, users};

/// One application as the target `im`.
async fn start(name: &str, settings: NeteaseSettings, more: &str) -> Option<World> {
    let mut plan = Plan::shared()?;
    plan.mock = Settings {
        netease: settings,
        ..Settings::default()
    };
    plan.own_url = true;
    plan.target = format!(
        "url = \"http://{{address}}/nimserver\"\ntype = \"netease\"\nsender = \"news\"\n\
         app_key = \"mock-key\"\napp_secret = \"mock-secret\"\n{more}"
    );
    Some(plan.start(name).await)
}

fn quota(calls: usize, window: Duration, block: Duration) -> NeteaseSettings {
    NeteaseSettings {
        batch_quota: Some(Quota {
            calls,
            window,
            block,
        }),
        ..NeteaseSettings::default()
    }
}

/// One call too many blocks the application. The target is parked for every worker, for as long as
/// `block` says; no worker calls meanwhile, and no recipient fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_parks_the_target_for_every_worker() {
    let settings = quota(20, Duration::from_secs(1), Duration::from_secs(2));
    let more = "recipients_per_call = 1\nlimit = \"1000/s\"\nblock = \"50s\"";
    let Some(world) = start("block", settings, more).await else {
        return;
    };
    let workers = [world.worker().await, world.worker().await];
    let recipients = users(60);
    let job = world.send("block", &recipients, &[]).await;
    let park = until_parked(&world, "im").await;
    assert_eq!(
        (&park["reason"], &park["code"]),
        (&"throttled".into(), &"416".into())
    );
    let lasts = milliseconds(&park["until"]) - milliseconds(&park["since"]);
    assert_eq!(lasts, 50_000, "{park}");
    for worker in &workers {
        until("both workers know and rest", BOUND, async || {
            let parked = gauge(worker, &parked_gauge("throttled", "im")).await;
            let in_flight = gauge(worker, "fanwise_calls_in_flight{target=\"im\"}").await;
            (parked == 1.0 && in_flight == 0.0).then_some(())
        })
        .await;
    }
    let requests = world.mock.stats().requests;
    let limited = world
        .run(&["limits", "set", "target", "im", "15/s burst 1"])
        .await;
    assert_eq!(limited.code, Some(0), "{}", limited.stderr);
    // The mock's block has a clock of its own, which can only be read by a call.
    let over = milliseconds(&park["since"]) + 3_000;
    until("the end of the block", BOUND, async || {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
        (now > over).then_some(())
    })
    .await;
    assert_eq!(world.mock.stats().requests, requests, "called while parked");
    let unparked = world.run(&["target", "unpark", "im"]).await;
    assert_eq!(unparked.code, Some(0), "{}", unparked.stderr);
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 60, "{record}");
    world.assert_once_each(&recipients);
    assert!(world.dead(&job).await.is_empty());
    for worker in workers {
        worker.drain().await;
    }
    world.end().await;
}

/// The limit belongs to the target, not to the worker: two workers together stay below the
/// application's quota. The default is a tenth below 120 a minute.
#[tokio::test(flavor = "multi_thread")]
async fn two_workers_together_stay_below_the_quota() {
    // Each worker alone would be above it; together they leave space for a machine that stalls.
    let settings = quota(20, Duration::from_secs(1), Duration::from_secs(60));
    let more = "recipients_per_call = 1\nlimit = \"12/s burst 1\"\n\
        [targets.default]\nurl = \"http://{address}/nimserver\"\ntype = \"netease\"\n\
        app_key = \"other\"\napp_secret = \"other\"\ncall_timeout = \"3s\"";
    let Some(world) = start("quota", settings, more).await else {
        return;
    };
    // Enough slices for both workers.
    let small = [("FANWISE_WORKER__SLICE_RECIPIENTS", "10")];
    let workers = [
        world.worker_with(&small).await,
        world.worker_with(&small).await,
    ];
    let recipients = users(120);
    let job = world.send("quota", &recipients, &["--target", "im"]).await;
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 120, "{record}");
    world.assert_once_each(&recipients);
    let stats = world.mock.stats();
    assert_eq!((stats.limited, stats.requests), (0, 120), "{stats:?}");
    let mut both = 0;
    for worker in &workers {
        let sent = "fanwise_recipients_total{outcome=\"sent\",target=\"im\"}";
        both += i32::from(gauge(worker, sent).await > 0.0);
    }
    assert_eq!(both, 2, "one worker did all of it");
    let default = listed(&world, "default").await;
    assert_eq!(default["limit"], "108/min burst 1 per call", "{default}");
    for worker in workers {
        worker.drain().await;
    }
    world.end().await;
}

/// A call is refused as a whole because of one of its 500 accids: halving finds it, and all others
/// get the message once.
#[tokio::test(flavor = "multi_thread")]
async fn bisection_finds_who_poisons_a_call() {
    let settings = NeteaseSettings {
        poison: vec![("u317".to_owned(), 414)],
        ..NeteaseSettings::default()
    };
    let Some(world) = start("bisect", settings, "limit = \"100/s\"").await else {
        return;
    };
    let worker = world
        .worker_with(&[("FANWISE_RETRY__ATTEMPTS_MAX", "1")])
        .await;
    let mut recipients = users(500);
    let job = world.send("bisect", &recipients, &[]).await;
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 499, "{record}");
    assert_eq!(record["accounts"]["failed"], 1, "{record}");
    let dead = world.dead(&job).await;
    assert_eq!(
        dead["u317"],
        ("failed".to_owned(), "414".to_owned()),
        "{dead:?}"
    );
    recipients.retain(|it| it != "u317");
    world.assert_once_each(&recipients);
    // Every slice that contains it is halved at most nine times, and there are few slices.
    let requests = world.mock.stats().requests;
    assert!(requests <= 40, "{requests} calls to find one of 500");
    worker.drain().await;
    world.end().await;
}

/// `Ana` and `ana` are the same account: one message, and a duplicate in the accounts.
#[tokio::test(flavor = "multi_thread")]
async fn accids_are_the_same_in_upper_and_lower_case() {
    let Some(world) = start("fold", NeteaseSettings::default(), "limit = \"100/s\"").await else {
        return;
    };
    let worker = world.worker().await;
    let listed = ["Ana", "ana", "ANA", "Bob", "carl"].map(str::to_owned);
    let job = world.send("fold", &listed, &[]).await;
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 3, "{record}");
    assert_eq!(record["accounts"]["duplicate"], 2, "{record}");
    world.assert_once_each(&["ana", "bob", "carl"].map(str::to_owned));
    worker.drain().await;
    world.end().await;
}

/// A 403 stops the job that met it, and not the account: other jobs of its sender are tried, and
/// those of other senders complete. Where the operator knows that the code is about a recipient,
/// only that recipient fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_forbidden_recipient_or_sender_does_not_stop_the_account() {
    let settings = NeteaseSettings {
        poison: vec![("u17".to_owned(), 403)],
        ..NeteaseSettings::default()
    };
    let more = "limit = \"100/s\"\nconfig_fault_pause = \"1h\"";
    let Some(world) = start("forbidden", settings, more).await else {
        return;
    };
    let worker = world.worker().await;
    let recipients = users(120);
    let parked = async |job: &str| {
        until("parking of the job", BOUND, async || {
            let record = world.job(job).await?;
            let why = record["hindrances"][0]["what"].as_str()?.to_owned();
            why.contains("job is parked until").then_some(why)
        })
        .await
    };
    let mut stopped = Vec::new();
    for key in ["first", "second"] {
        let job = world.send(key, &recipients, &[]).await;
        let why = parked(&job).await;
        assert!(why.contains("config 403: u17 is not allowed"), "{why}");
        stopped.push(job);
    }
    // Two jobs of one sender say nothing about the account.
    assert!(listed(&world, "im").await["parked"].is_null());
    let others: Vec<String> = (0..120).map(|number| format!("v{number}")).collect();
    for sender in ["news", "sales"] {
        let job = world.send(sender, &others, &["--sender", sender]).await;
        let record = world.completed(&job).await;
        assert_eq!(record["accounts"]["sent"], 120, "{record}");
    }
    // Another sender meets it too.
    for key in ["third", "fourth"] {
        let job = world.send(key, &recipients, &["--sender", key]).await;
        stopped.push(job);
    }
    let park = until_parked(&world, "im").await;
    assert_eq!(
        (&park["reason"], &park["code"]),
        (&"config".into(), &"403".into())
    );
    for job in &stopped {
        assert_eq!(world.job(job).await.unwrap()["pending"], 120);
        assert!(world.dead(job).await.is_empty());
    }
    worker.drain().await;

    // The operator knows better.
    let known = [("FANWISE_TARGETS__IM__CODES__403", "permanent")];
    let worker = world.worker_with(&known).await;
    let unparked = world.run(&["target", "unpark", "im"]).await;
    assert_eq!(unparked.code, Some(0), "{}", unparked.stderr);
    for job in &stopped {
        let record = world.completed(job).await;
        assert_eq!(record["accounts"]["sent"], 119, "{record}");
        let dead = world.dead(job).await;
        assert_eq!(dead.len(), 1, "{dead:?}");
        assert_eq!(dead["u17"], ("failed".to_owned(), "403".to_owned()));
    }
    worker.drain().await;
    world.end().await;
}
