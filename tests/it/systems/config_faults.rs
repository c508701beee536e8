//! Tests configurations that a system refuses: the job that meets the fault is parked, and with a
//! second job the target. No recipient is dead-lettered, the state shows the reason, and after the
//! fix each recipient gets the message once.

use fanwise_mock_im::{NeteaseSettings, Settings};
use serde_json::json;

use super::{Five, SYSTEMS, System, gauge, parked_gauge, until_parked};
use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, World, assert_once_each, users};

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
    let mut five = Five::start(plan, "misconfigured", "config_fault_pause = \"1h\"").await;
    for target in ["im", "wukongim2", "netease"] {
        let faults = json!({ "unauthorised": 1.0 });
        five.mock(target).patch_faults(&faults).unwrap();
    }
    // Tokens are issued and refused; and again after a renewal.
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
    let (first, second) = recipients.split_at(RECIPIENTS / 2);
    let mut jobs = Vec::new();
    for System { target, .. } in SYSTEMS {
        let key = format!("to-{target}");
        let to = ["--target", target];
        let job = five.world.send(&key, first, &to).await;
        // One job may be the fault itself, so the target is not parked.
        until_job_parked(&five.world, &job, code(target)).await;
        let parked = gauge(&worker, &parked_gauge("config", target)).await;
        assert_eq!(parked, 0.0, "{target}");
        // A 403 of Yunxin may be about the sender alone.
        let mut to = to.to_vec();
        if target == "yunxin" {
            to.extend(["--sender", "sales"]);
        }
        let later = five.world.send(&format!("{key}-too"), second, &to).await;
        jobs.push([job, later]);
    }
    for (System { target, .. }, [job, later]) in SYSTEMS.iter().zip(&jobs) {
        let park = until_parked(&five.world, target).await;
        assert_eq!(park["reason"], "config", "{target}: {park}");
        assert_eq!(park["code"], code(target), "{target}: {park}");
        let text = park["text"].as_str().unwrap();
        let shown = five.world.run(&["job", "show", job]).await.stdout;
        let why = format!("config {}", code(target));
        assert!(shown.contains(&why) && shown.contains(text), "{shown}");
        let parked = gauge(&worker, &parked_gauge("config", target)).await;
        assert_eq!(parked, 1.0, "{target}");
        for job in [job, later] {
            let record = five.world.job(job).await.unwrap();
            assert_eq!(record["pending"], RECIPIENTS / 2, "{target}: {record}");
            assert!(five.world.dead(job).await.is_empty(), "{target}");
        }
        assert_eq!(five.mock(target).stats().accepted, 0, "{target}");
    }
    let log = worker.process.stderr();
    for told in [
        "a configuration fault: the job is parked",
        " is parked: config ",
    ] {
        let told = log.lines().filter(|it| it.contains(told));
        assert_eq!(told.count(), SYSTEMS.len(), "{log}");
    }

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
    for (System { target, .. }, jobs) in SYSTEMS.iter().zip(&jobs) {
        let unparked = five.world.run(&["target", "unpark", target]).await;
        assert_eq!(unparked.code, Some(0), "{}", unparked.stderr);
        for job in jobs {
            let record = five.world.completed(job).await;
            assert_eq!(
                record["accounts"]["sent"],
                RECIPIENTS / 2,
                "{target}: {record}"
            );
            assert!(five.world.dead(job).await.is_empty(), "{target}");
        }
        assert_once_each(five.mock(target), &recipients);
        let parked = gauge(&worker, &parked_gauge("config", target)).await;
        assert_eq!(parked, 0.0, "{target}");
    }
    worker.drain().await;
    five.end().await;
}

/// Waits until a job shows that it is parked, and why.
async fn until_job_parked(world: &World, job: &str, code: &str) {
    until("parking of the job", BOUND, async || {
        let record = world.job(job).await?;
        let why = record["hindrances"][0]["what"].as_str()?;
        let is_parked = why.starts_with("job is parked until ");
        (is_parked && why.contains(&format!("config {code}"))).then_some(())
    })
    .await;
}

/// For a job to all users, the users are listed first. A fault of the list counts like a fault of a
/// send: an OpenIM with another secret, or a WuKongIM manager whose password is wrong while
/// messages could be sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_fault_met_while_users_are_listed_stops_the_job() {
    const USERS: usize = 40;
    let Some(mut plan) = Plan::shared() else {
        return;
    };
    plan.mock.users = USERS as u64;
    plan.mock.wukongim_manager = Some("ops:pass".parse().unwrap());
    plan.target = "type = \"openim\"\nsecret = \"openIM123\"\nsender = \"news\"\n\
        config_fault_pause = \"1h\""
        .to_owned();
    plan.more = r#"
        [apps.default]
        audiences = ["all"]
        [targets.wukongim]
        type = "wukongim"
        version = "v3"
        url = "http://{address}"
        sender = "news"
        manager_url = "http://{address}"
        manager_user = "ops"
        manager_password = "wrong"
        call_timeout = "3s"
        config_fault_pause = "1h""#
        .to_owned();
    let world = plan.start("unlisted-fault").await;
    let secret = |secret| world.mock.patch_openim(&json!({ "secret": secret }));
    secret("another").unwrap();
    let worker = world.worker().await;
    let mut jobs = Vec::new();
    for (target, code) in [("im", "err_1002"), ("wukongim", "401")] {
        let send = async |key: &str| {
            let send = ["send", "--client-msg-no", key, "--target", target];
            let to_all = ["--text", "Hello", "--all", "--yes"];
            let answer = world.json(&[&send[..], &to_all[..]].concat()).await;
            answer["job"].as_str().unwrap().to_owned()
        };
        let first = send(target).await;
        until_job_parked(&world, &first, code).await;
        jobs.push((target, first));
        let job = send(&format!("{target}-too")).await;
        let park = until_parked(&world, target).await;
        assert_eq!(
            (&park["reason"], &park["code"]),
            (&json!("config"), &json!(code)),
            "{park}"
        );
        let text = park["text"].as_str().unwrap();
        assert!(text.starts_with("its users cannot be listed: "), "{text}");
        let listed = world.run(&["target", "list"]).await.stdout;
        let shown = world.run(&["job", "show", &job]).await.stdout;
        let why = format!("config {code}: {text}");
        assert!(listed.contains(&why), "{listed}");
        assert!(shown.contains(&why), "{shown}");
        let parked = gauge(&worker, &parked_gauge("config", target)).await;
        assert_eq!(parked, 1.0, "{target}");
        assert_eq!(world.job(&job).await.unwrap()["state"], "running");
        assert!(world.dead(&job).await.is_empty(), "{target}");
        jobs.push((target, job));
    }
    assert_eq!(world.mock.stats().accepted, 0);
    let log = worker.process.stderr();
    let told = log.lines().filter(|it| it.contains("cannot be listed"));
    // One for the job, and one for the target.
    assert_eq!(told.count(), jobs.len(), "{log}");
    worker.drain().await;

    secret("openIM123").unwrap();
    let password = ("FANWISE_TARGETS__WUKONGIM__MANAGER_PASSWORD", "pass");
    let worker = world.worker_with(&[password]).await;
    for (target, job) in &jobs {
        let unparked = world.run(&["target", "unpark", target]).await;
        assert_eq!(unparked.code, Some(0), "{}", unparked.stderr);
        let record = world.completed(job).await;
        assert_eq!(record["accounts"]["sent"], USERS, "{target}: {record}");
        assert!(world.dead(job).await.is_empty(), "{target}");
    }
    let accepted = world.accepted();
    assert_eq!(accepted.len(), USERS, "{accepted:?}");
    assert!(
        accepted.values().all(|times| *times == jobs.len()),
        "{accepted:?}"
    );
    worker.drain().await;
    world.end().await;
}
