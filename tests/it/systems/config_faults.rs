//! A configuration that a system refuses: the target is parked, nobody is dead-lettered, whoever looks
//! is told why, and after the mending everybody gets the message once.

use fanwise::im::mock::{NeteaseSettings, Settings};
use serde_json::json;

use super::{Five, SYSTEMS, System, gauge, parked_gauge, until_parked};
use crate::support::world::{Plan, assert_once_each, users};

const RECIPIENTS: usize = 120;

/// The code with which each system refuses.
fn code(target: &str) -> &'static str {
    match target {
        "openim" => "err_1501",
        "netease" => "414",
        "yunxin" => "403",
        _ => "401",
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_fault_of_any_system_fails_nobody() {
    let Some(plan) = Plan::shared() else { return };
    let mut five = Five::start(plan, "misconfigured", "config_park = \"1h\"").await;
    for target in ["im", "wukongim2", "netease"] {
        let faults = json!({ "unauthorised": 1.0 });
        five.mock(target).patch_faults(&faults).unwrap();
    }
    // A token that is given out, and refused; and again after it was renewed.
    let openim = five.mock("openim");
    openim.patch_openim(&json!({ "token_calls": 0 })).unwrap();
    let forbidding = Settings {
        netease: NeteaseSettings {
            poison: (0..RECIPIENTS).map(|it| (format!("u{it}"), 403)).collect(),
            ..NeteaseSettings::default()
        },
        ..Settings::default()
    };
    let yunxin = five.others.get_mut("yunxin").unwrap();
    yunxin.restart(forbidding).await;

    let worker = five
        .world
        .worker_with(&[("FANWISE_RETRY__ATTEMPTS_MAX", "1")])
        .await;
    let recipients = users(RECIPIENTS);
    let mut jobs = Vec::new();
    for System { target, .. } in SYSTEMS {
        let key = format!("to-{target}");
        let job = five
            .world
            .send(&key, &recipients, &["--target", target])
            .await;
        jobs.push(job);
    }
    for (System { target, .. }, job) in SYSTEMS.iter().zip(&jobs) {
        let park = until_parked(&five.world, target).await;
        assert_eq!(park["reason"], "config", "{target}: {park}");
        assert_eq!(park["code"], code(target), "{target}: {park}");
        let text = park["text"].as_str().unwrap();
        let shown = five.world.run(&["job", "show", job]).await.stdout;
        let why = format!("config {}", code(target));
        assert!(shown.contains(&why) && shown.contains(text), "{shown}");
        let parked = gauge(&worker, &parked_gauge("config", target)).await;
        assert_eq!(parked, 1.0, "{target}");
        let record = five.world.job(job).await.unwrap();
        assert_eq!(record["pending"], RECIPIENTS, "{target}: {record}");
        assert!(five.world.dead(job).await.is_empty(), "{target}");
        assert_eq!(five.mock(target).stats().accepted, 0, "{target}");
    }
    let log = worker.process.stderr();
    let told = log.lines().filter(|it| it.contains("configuration fault"));
    assert_eq!(told.count(), SYSTEMS.len(), "{log}");

    for target in ["im", "wukongim2", "netease"] {
        let faults = json!({ "unauthorised": null });
        five.mock(target).patch_faults(&faults).unwrap();
    }
    let openim = five.mock("openim");
    openim
        .patch_openim(&json!({ "token_calls": null }))
        .unwrap();
    let yunxin = five.others.get_mut("yunxin").unwrap();
    yunxin.restart(Settings::default()).await;
    for (System { target, .. }, job) in SYSTEMS.iter().zip(&jobs) {
        let unparked = five.world.run(&["target", "unpark", target]).await;
        assert_eq!(unparked.code, Some(0), "{}", unparked.stderr);
        let record = five.world.completed(job).await;
        assert_eq!(record["accounts"]["sent"], RECIPIENTS, "{target}: {record}");
        assert_once_each(five.mock(target), &recipients);
        assert!(five.world.dead(job).await.is_empty(), "{target}");
        let parked = gauge(&worker, &parked_gauge("config", target)).await;
        assert_eq!(parked, 0.0, "{target}");
    }
    worker.drain().await;
    five.end().await;
}
