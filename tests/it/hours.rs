//! Sending hours of jobs, apps and recipients, and jobs that are spread over a time, by the real clock.

use std::time::UNIX_EPOCH;

use fanwise_mock_im::Entry;
use serde_json::json;

use crate::embedded::Place;
use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, Worker, World, milliseconds, users};

/// The minute of the day in UTC that is this far from now, as `09:30`.
fn clock(minutes: i64) -> String {
    let now = UNIX_EPOCH.elapsed().unwrap().as_secs();
    of_day(now.checked_add_signed(minutes * 60).unwrap())[..5].to_owned()
}

/// The time of the day in UTC, as `09:30:15`.
fn of_day(seconds: u64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    format!("{:02}:{:02}:{:02}", hours % 24, minutes % 60, seconds % 60)
}

async fn until_closed(world: &World, job: &str, of: &str) -> String {
    until("the cause", BOUND, async || {
        let record = world.job(job).await?;
        let hindrance = &record["hindrances"][0];
        let what = hindrance["what"].as_str()?.to_owned();
        let closed = hindrance["cause"] == "sending_hours" && what.starts_with(of);
        (closed && record["state"] == "running").then_some(what)
    })
    .await
}

/// Outside the hours of a job or its app nothing is sent and the cause is shown. Jobs without such
/// hours go on, and a cancel ends the job that waits.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_outside_the_hours_of_a_job_or_its_app() {
    let Some(mut plan) = Plan::shared() else {
        return;
    };
    let later = format!("{}-{}", clock(120), clock(180));
    let around = format!("{}-{}", clock(-60), clock(60));
    plan.more =
        format!("[apps.quiet]\nwindow = \"{later}\"\n[apps.default]\nwindow = \"{around}\"");
    let world = plan.start("hours").await;
    let worker = world.worker().await;
    let recipients = users(150);

    let of_job = world
        .send("of-job", &recipients, &["--window", &later])
        .await;
    let what = until_closed(&world, &of_job, "sending hours of the job (").await;
    assert!(
        what.contains(&format!("({later} UTC): opens at ")),
        "{what}"
    );
    let of_app = world.send("of-app", &recipients, &["--app", "quiet"]).await;
    until_closed(&world, &of_app, "sending hours of the app quiet (").await;
    // The app's hours hold for a job that is within its own.
    let both = ["--app", "quiet", "--window", &around];
    let of_both = world.send("of-both", &recipients, &both).await;
    until_closed(&world, &of_both, "sending hours of the app quiet (").await;

    let others: Vec<String> = (0..150).map(|number| format!("v{number}")).collect();
    let open = world.send("open", &others, &["--window", &around]).await;
    let record = world.completed(&open).await;
    assert_eq!(record["accounts"]["sent"], 150, "{record}");
    world.assert_once_each(&others);
    for job in [&of_job, &of_app, &of_both] {
        let record = world.job(job).await.unwrap();
        assert_eq!(record["pending"], 150, "{record}");
        let cancelled = world.run(&["job", "cancel", job]).await;
        assert_eq!(cancelled.code, Some(0), "{}", cancelled.stderr);
    }
    worker.drain().await;
    world.end().await;
}

/// A window that opens in the meantime lets the job go on by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_on_when_its_hours_begin() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("hours-begin").await;
    let worker = world.worker().await;
    let recipients = users(120);
    // Late enough for a worker to take the job before.
    let opens = UNIX_EPOCH.elapsed().unwrap().as_secs() + 4;
    let window = format!("{}-{}", of_day(opens), clock(30));
    let job = world
        .send("soon", &recipients, &["--window", &window])
        .await;
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 120, "{record}");
    world.assert_once_each(&recipients);
    let log = world.mock.accepted();
    assert!(
        log.iter().all(|it| it.at_us >= opens * 1_000_000),
        "sent before its hours"
    );
    worker.drain().await;
    world.end().await;
}

/// Recipients of which some are within the hours of their own zone, some begin soon, and some are
/// outside of them for another hour.
struct Zones {
    opens: u64,
    window: String,
    /// Lines of NDJSON: `open` and `odd` may be sent to now, `soon` from `opens` on, `later` not.
    list: Vec<String>,
}

impl Zones {
    fn new() -> Self {
        Self::opening_in(4)
    }

    fn opening_in(seconds: u64) -> Self {
        let opens = UNIX_EPOCH.elapsed().unwrap().as_secs() + seconds;
        let kinds = [
            ("open", r#"{"tz":"Etc/GMT-2"}"#),
            ("soon", r#"{"tz":"UTC"}"#),
            ("later", r#"{"tz":"Etc/GMT+1"}"#),
            ("odd", r#"{"tz":"Mars/Base"}"#),
            ("none", r#"{"name":"Ana"}"#),
        ];
        let line = |(kind, vars): &(&str, &str), number: usize| {
            format!(r#"{{"id":"{kind}-{number}","vars":{vars}}}"#)
        };
        let numbers = (0..24).flat_map(|number| kinds.iter().map(move |kind| line(kind, number)));
        Self {
            opens,
            window: format!("{}-{}", of_day(opens), of_day(opens + 3 * 3600)),
            list: numbers.collect(),
        }
    }

    fn flags(&self) -> [&str; 8] {
        [
            "--format",
            "ndjson",
            "--window",
            &self.window,
            "--timezone",
            "Etc/GMT-2",
            "--timezone-var",
            "tz",
        ]
    }

    /// Each recipient was sent to once, and within its hours.
    fn check(&self, log: &[Entry]) {
        let mut names: Vec<_> = log.iter().map(|it| it.recipient.clone()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!((names.len(), log.len()), (4 * 24, 4 * 24));
        for entry in log {
            let soon = entry.recipient.starts_with("soon");
            assert!(!soon || entry.at_us >= self.opens * 1_000_000, "{entry:?}");
            assert!(!entry.recipient.starts_with("later"), "{entry:?}");
        }
    }
}

/// Recipients within the hours of their own zone are sent to, whoever else waits for his; those wait
/// for them without a place, and are sent to when they begin.
#[tokio::test(flavor = "multi_thread")]
async fn each_recipient_is_sent_to_within_the_hours_of_its_own_zone() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("own-hours").await;
    let (first, second) = (world.worker().await, world.worker().await);
    let zones = Zones::new();
    let job = world.send("zones", &zones.list, &zones.flags()).await;
    until("those within their hours", BOUND, async || {
        (world.mock.accepted().len() >= 3 * 24).then_some(())
    })
    .await;
    until("all but those who are outside of them", BOUND, async || {
        let record = world.job(&job).await?;
        (record["accounts"]["sent"] == 4 * 24).then_some(())
    })
    .await;
    zones.check(&world.mock.accepted());
    until("the cause", BOUND, async || {
        let record = world.job(&job).await?;
        let told = &record["hindrances"][0];
        let what = told["what"].as_str()?;
        (told["cause"] == "sending_hours" && what.contains("own sending hours")).then_some(())
    })
    .await;
    let record = world.job(&job).await.unwrap();
    assert_eq!(
        (&record["pending"], &record["state"]),
        (&24.into(), &"running".into())
    );
    let warning = record["warnings"][0].as_str().unwrap();
    assert!(
        warning.starts_with("24 recipient(s) bring a \"tz\""),
        "{warning}"
    );
    let unknown = async |worker: &Worker| worker.metrics().await["fanwise_unknown_zones_total"];
    assert_eq!(unknown(&first).await + unknown(&second).await, 24.0);
    let cancelled = world.run(&["job", "cancel", &job]).await;
    assert_eq!(cancelled.code, Some(0), "{}", cancelled.stderr);
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["cancelled"], 24, "{record}");
    first.drain().await;
    second.drain().await;
    world.end().await;
}

/// The hours of some begin on time while others of their slice wait half an hour for a retry, which
/// is not made before its time.
#[tokio::test(flavor = "multi_thread")]
async fn hours_begin_on_time_while_others_wait_for_a_retry() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("own-hours-retry").await;
    world.mock.patch_faults(&json!({"error_503": 1.0})).unwrap();
    let slow = [
        ("FANWISE_RETRY__DELAY_MIN", "40m"),
        ("FANWISE_RETRY__DELAY_MAX", "40m"),
    ];
    let worker = world.worker_with(&slow).await;
    let zones = Zones::opening_in(8);
    let job = world.send("zones", &zones.list, &zones.flags()).await;
    until("the retries wait", BOUND, async || {
        let metrics = worker.metrics().await;
        let waits = metrics["fanwise_retries_total{target=\"im\"}"];
        (waits >= 3.0 * 24.0).then_some(())
    })
    .await;
    world.mock.patch_faults(&json!({"error_503": 0.0})).unwrap();
    until("those whose hours begin", BOUND, async || {
        let record = world.job(&job).await?;
        (record["accounts"]["sent"] == 24).then_some(())
    })
    .await;
    let log = world.mock.accepted();
    let on_time =
        |it: &Entry| it.recipient.starts_with("soon") && it.at_us >= zones.opens * 1_000_000;
    assert!(log.len() == 24 && log.iter().all(on_time), "{log:?}");
    let cancelled = world.run(&["job", "cancel", &job]).await;
    assert_eq!(cancelled.code, Some(0), "{}", cancelled.stderr);
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["cancelled"], 4 * 24, "{record}");
    worker.drain().await;
    world.end().await;
}

/// Until the end of the pace, at no time more recipients had the message than their share of the
/// time, but for a burst.
fn assert_even(log: &[Entry], recipients: usize, until_ms: u64) {
    let mut times: Vec<f64> = log.iter().map(|it| it.at_us as f64 / 1e6).collect();
    times.sort_by(f64::total_cmp);
    assert_eq!(times.len(), recipients);
    let (first, all, end) = (times[0], recipients as f64, until_ms as f64 / 1e3);
    let per_second = all / (end - first);
    times.retain(|at| *at < end);
    // A fifth of a second, and what each of two workers has leased ahead.
    let slack = 0.2 * per_second + 2.0 * (0.05 * per_second).max(1.0) + 2.0;
    for (sent, at) in times.iter().enumerate() {
        let due = per_second * (at - first);
        assert!(sent as f64 <= due + slack, "{sent} after {} s", at - first);
    }
}

/// Two workers share the pace of a job, which says so as its cause.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_spread_evenly_over_a_time() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("pace").await;
    let (first, second) = (world.worker().await, world.worker().await);
    let recipients = users(120);
    let job = world
        .send("paced", &recipients, &["--pace-until", "5s"])
        .await;
    until("the cause", BOUND, async || {
        let record = world.job(&job).await?;
        (record["hindrances"][0]["cause"] == "pace").then_some(())
    })
    .await;
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 120, "{record}");
    world.assert_once_each(&recipients);
    let until_ms = milliseconds(&record["pace_until"]);
    assert_even(&world.mock.accepted(), 120, until_ms);
    first.drain().await;
    second.drain().await;
    world.end().await;
}

/// The same on one machine.
#[tokio::test(flavor = "multi_thread")]
async fn own_hours_and_pace_hold_on_one_machine() {
    let place = Place::new("own-hours").await;
    let mut process = place.serve().await;
    let zones = Zones::new();
    let send = [
        "send",
        "--text",
        "hello",
        "--file",
        "-",
        "--json",
        "--client-msg-no",
    ];
    let arguments = [&send[..], &["zones"], &zones.flags()].concat();
    let sent = place
        .run(&arguments, zones.list.join("\n").as_bytes())
        .await;
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    until(
        "all but those who are outside of their hours",
        BOUND,
        async || (place.mock.accepted().len() >= 4 * 24).then_some(()),
    )
    .await;
    zones.check(&place.mock.accepted());

    let arguments = [&send[..], &["paced", "--pace-until", "4s", "--wait"]].concat();
    let paced: Vec<_> = (0..60).map(|number| format!("paced-{number}")).collect();
    let sent = place.run(&arguments, paced.join("\n").as_bytes()).await;
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    let record: serde_json::Value = serde_json::from_str(&sent.stdout).unwrap();
    let log = place.mock.accepted().into_iter();
    let log: Vec<_> = log.filter(|it| paced.contains(&it.recipient)).collect();
    assert_even(&log, 60, milliseconds(&record["pace_until"]));
    process.terminate();
    assert_eq!(process.wait(BOUND).await.code(), Some(0));
}

/// An operator moves the pace of a job that runs, gives one to a job that waits and takes it back; what
/// makes no sense is refused, and the trail tells it.
#[tokio::test(flavor = "multi_thread")]
async fn the_pace_of_a_job_is_moved_while_it_waits_and_runs() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("pace-moved").await;
    let worker = world.worker().await;
    let recipients = users(120);
    let job = world
        .send("paced", &recipients, &["--pace-until", "10m"])
        .await;
    until("the first call", BOUND, async || {
        (world.mock.stats().accepted > 0).then_some(())
    })
    .await;
    // A rate that was set would apply instead of the pace.
    world.json(&["job", "rate", &job, "1/min"]).await;
    let words = ["--reason", "the shop closes", "--author", "ana"];
    let moved = [&["job", "pace", &job, "+5s"][..], &words].concat();
    world.json(&moved).await;
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["sent"], 120, "{record}");
    world.assert_once_each(&recipients);
    let until_ms = milliseconds(&record["pace_until"]);
    let mut log = world.mock.accepted();
    log.sort_by_key(|it| it.at_us);
    // Those that were due at the old pace, and then the others evenly.
    let moved_at = log.iter().rposition(|it| it.at_us / 1000 < until_ms - 5000);
    let log = &log[moved_at.map_or(0, |at| at + 1)..];
    assert!(log.len() > 100, "{}", log.len());
    assert_even(log, log.len(), until_ms);
    let trail = record["audit_trail"].as_array().unwrap();
    let entry = trail.iter().find(|it| it["action"] == "pace").unwrap();
    assert_eq!(
        (&entry["author"], &entry["reason"], &entry["detail"]),
        (
            &"ana".into(),
            &"the shop closes".into(),
            &record["pace_until"]
        )
    );

    let start = ["--not-before", "+2h"];
    let waits = world.send("waits", &recipients, &start).await;
    until("it is registered", BOUND, async || {
        (world.job(&waits).await?["state"] == "running").then_some(())
    })
    .await;
    for (end, why) in [
        ("2020-01-01T00:00:00Z", "has passed"),
        ("+1h", "is not after the start"),
        ("+9600h", "is more than 366 days away"),
        ("never", "is not a time"),
    ] {
        let refused = world.run(&["job", "pace", &waits, end]).await;
        assert_ne!(refused.code, Some(0), "{end}: {}", refused.stdout);
        assert!(refused.stderr.contains(why), "{end}: {}", refused.stderr);
    }
    world.json(&["job", "pace", &waits, "+3h"]).await;
    let early = world.run(&["job", "schedule", &waits, "+4h"]).await;
    assert!(early.stderr.contains("is not before"), "{}", early.stderr);
    let shown = world.job(&waits).await.unwrap();
    assert!(shown["pace_until"].is_string(), "{shown}");
    world.json(&["job", "pace", &waits, "none"]).await;
    let shown = world.job(&waits).await.unwrap();
    assert!(shown["pace_until"].is_null(), "{shown}");
    world.json(&["job", "schedule", &waits, "now"]).await;
    let record = world.completed(&waits).await;
    assert_eq!(record["accounts"]["sent"], 120, "{record}");
    worker.drain().await;
    world.end().await;
}

/// The same over HTTP, on one machine.
#[tokio::test(flavor = "multi_thread")]
async fn a_pace_is_moved_over_http() {
    let place = Place::new("pace-moved").await;
    let _process = place.serve().await;
    place
        .send("paced", &users(200), &["--pace-until", "2h"])
        .await;
    let job = until("the job", BOUND, async || {
        let shown = place.run(&["job", "show", "paced", "--json"], b"").await;
        let record: serde_json::Value = serde_json::from_str(&shown.stdout).ok()?;
        record["job"].as_str().map(ToOwned::to_owned)
    })
    .await;
    let order = async |body: &str| {
        let head = format!("POST /v1/jobs/{job}:pace");
        place.request(place.gateway, &head, body.as_bytes()).await
    };
    let (status, answer) = order("{}").await;
    assert!(status == 400 && answer.contains("pace_until"), "{answer}");
    let (status, answer) = order(r#"{"pace_until":"+1h","reason":"later"}"#).await;
    assert!(
        status == 200 && answer.contains(r#""action":"pace""#),
        "{answer}"
    );
    assert!(place.mock.accepted().len() < 20);
    let (status, answer) = order(r#"{"pace_until":"none"}"#).await;
    assert_eq!(status, 200, "{answer}");
    let record = place.completed("paced").await;
    assert_eq!(record["accounts"]["sent"], 200, "{record}");
}
