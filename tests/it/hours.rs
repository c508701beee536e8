//! Sending hours of jobs and apps, by the real clock.

use std::time::UNIX_EPOCH;

use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, World, users};

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
