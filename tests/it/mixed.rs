//! Promise of an upgrade: two versions of Fanwise share queues, ledger and embedded file.
//!
//! `tests/mixed COMMIT` builds the earlier version and names it in `FANWISE_TEST_EARLIER`. Without
//! that variable there is nothing to compare with.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::embedded::Place;
use crate::support::process::Process;
use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, World, users};

fn earlier() -> Option<PathBuf> {
    let binary = env::var_os("FANWISE_TEST_EARLIER").map(PathBuf::from);
    if binary.is_none() {
        eprintln!("skipped: FANWISE_TEST_EARLIER is not set; tests/mixed sets it");
    }
    binary
}

async fn earlier_worker(world: &World, program: &Path) -> Process {
    let arguments = ["worker", "--config", world.config()];
    let admin = [("FANWISE_ADMIN__LISTEN", "127.0.0.1:0")];
    let mut worker = Process::start(program, &arguments, &admin, b"");
    worker
        .until_prints("ready: jobs are taken", Duration::from_secs(60))
        .await;
    worker
}

/// Workers of both versions work on the same jobs, and one of each is killed: each recipient gets
/// the message once, and the accounts are exact.
#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_and_this_version_share_jobs() {
    let (Some(plan), Some(program)) = (Plan::shared(), earlier()) else {
        return;
    };
    let world = plan.start("mixed").await;
    world
        .mock
        .patch_faults(&json!({"latency": "10ms"}))
        .unwrap();
    let mut old = earlier_worker(&world, &program).await;
    let mut new = world.worker().await;
    let accepted = |count: u64| {
        let mock = &world.mock;
        until("progress", BOUND, async move || {
            (mock.stats().accepted >= count).then_some(())
        })
    };
    let mut jobs = BTreeMap::new();
    let mut everybody = Vec::new();
    for (number, size) in [1, 100, 101, 3000, 3000, 700].into_iter().enumerate() {
        let list: Vec<_> = users(size)
            .iter()
            .map(|it| format!("{number}-{it}"))
            .collect();
        let job = world.send(&format!("job-{number}"), &list, &[]).await;
        jobs.insert(job, size);
        everybody.extend(list);
    }
    accepted(1500).await;
    old.kill();
    let old = earlier_worker(&world, &program).await;
    accepted(3500).await;
    new.process.kill();
    drop(new);
    accepted(4500).await;
    let new = world.worker().await;
    for (job, size) in &jobs {
        let record = world.completed(job).await;
        assert_eq!(record["accounts"]["sent"], *size, "{record}");
    }
    world.assert_once_each(&everybody);
    drop(old);
    new.drain().await;
    world.end().await;
}

/// The embedded file of an earlier version is opened with the jobs in it, and the earlier version
/// opens it again afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_and_this_version_open_the_same_file() {
    let Some(program) = earlier() else { return };
    let place = Place::new("mixed-file").await;
    place.mock.patch_faults(&json!({"latency": "5ms"})).unwrap();
    let list = users(4000);
    let flags = [
        "send",
        "--client-msg-no",
        "k",
        "--text",
        "hello",
        "--file",
        "-",
    ];
    let mut process = place.serve_by(&program).await;
    let sent = place.run(&flags, list.join("\n").as_bytes()).await;
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    let programs = [PathBuf::from(env!("CARGO_BIN_EXE_fanwise")), program];
    for (step, next) in [1000, 2000].into_iter().zip(&programs) {
        until("progress", BOUND, async || {
            (place.mock.stats().accepted >= step).then_some(())
        })
        .await;
        process.kill();
        process = place.serve_by(next).await;
    }
    let record = place.completed("k").await;
    assert_eq!(record["accounts"]["sent"], 4000, "{record}");
    assert_eq!(place.accepted_once(), list.into_iter().collect());
    process.kill();
    let _process = place.serve().await;
    assert_eq!(place.json(&["job", "verify", "k"]).await["exact"], true);
}
