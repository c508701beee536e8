//! Tests groups, which get one call as a group, and jobs for all users, which the system lists and
//! which get one message each, even if the worker that lists them is killed.

use std::collections::BTreeSet;

use fanwise_mock_im::{Entry, Settings, Version};
use serde_json::json;

use super::{Five, SYSTEMS, System, rejected};
use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, World};

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_sent_to_once_as_groups() {
    let Some(plan) = Plan::shared() else { return };
    let five = Five::start(plan, "groups", "").await;
    let worker = five.world.worker().await;
    for System { target, hello, .. } in SYSTEMS {
        let key = format!("groups-{target}");
        let arguments = [
            "send",
            "--client-msg-no",
            &key,
            "--target",
            target,
            "--text",
            "Hello",
            "--group",
            "g1",
            "--group",
            "g2",
            "--group",
            "g1",
        ];
        let answer = five.world.json(&arguments).await;
        let record = five.world.completed(answer["job"].as_str().unwrap()).await;
        assert_eq!(record["accounts"]["sent"], 2, "{target}: {record}");
        assert_eq!(record["accounts"]["duplicate"], 1, "{target}: {record}");
        let mut sent = five.mock(target).accepted();
        sent.sort_by(|a, b| a.recipient.cmp(&b.recipient));
        let form = |it: &Entry| {
            (
                it.recipient.clone(),
                it.channel_type,
                it.payload.to_string(),
            )
        };
        let forms: Vec<_> = sent.iter().map(form).collect();
        let expected = ["g1", "g2"].map(|group| {
            let open = hello.strip_suffix('}').unwrap();
            (group.to_owned(), 2, open.to_owned())
        });
        // Yunxin's single messages have a key of their own after it.
        for (found, (group, kind, hello)) in forms.iter().zip(&expected) {
            assert_eq!((&found.0, &found.1), (group, kind), "{target}");
            assert!(found.2.starts_with(hello), "{target}: {}", found.2);
        }
        assert_eq!(forms.len(), expected.len(), "{target}");
    }
    worker.drain().await;
    five.end().await;
}

/// The sender of the messages.
const SENDER: &str = "u7";

async fn start(name: &str, mock: Settings, target: &str) -> Option<World> {
    let mut plan = Plan::shared()?;
    plan.mock = mock;
    plan.target = format!("{target}\nsender = \"{SENDER}\"");
    plan.more = "[apps.default]\naudiences = [\"all\"]".to_owned();
    Some(plan.start(name).await)
}

/// Submits a text to all users but two; returns the job id.
async fn send_to_all(world: &World) -> String {
    let arguments = [
        "send",
        "--client-msg-no",
        "all",
        "--text",
        "Hello",
        "--all",
        "--yes",
        "--exclude",
        "u1",
        "--exclude",
        "u2",
    ];
    let answer = world.json(&arguments).await;
    answer["job"].as_str().unwrap().to_owned()
}

/// Each user got it once, except the sender and the excluded users.
async fn check_all(world: &World, job: &str, users: u64) {
    let record = world.completed(job).await;
    let left_out: BTreeSet<_> = ["u1", "u2", SENDER].map(str::to_owned).into();
    let everybody = (1..=users).map(|number| format!("u{number}"));
    let expected: Vec<_> = everybody.filter(|it| !left_out.contains(it)).collect();
    assert_eq!(record["accounts"]["sent"], expected.len(), "{record}");
    world.assert_once_each(&expected);
}

/// A worker is killed while it lists the first users. Another one begins again, and the job
/// completes only after the end of the list.
async fn all_users_of(name: &str, mock: Settings, target: &str) {
    let users = mock.users;
    let Some(world) = start(name, mock, target).await else {
        return;
    };
    world
        .mock
        .patch_faults(&json!({ "latency": "150ms" }))
        .unwrap();
    let mut killed = world.worker().await;
    let job = send_to_all(&world).await;
    until("a few pages", BOUND, async || {
        (world.mock.stats().requests >= 3).then_some(())
    })
    .await;
    assert_eq!(
        world.mock.stats().accepted,
        0,
        "killed too late for this test"
    );
    killed.process.kill();
    world
        .mock
        .patch_faults(&json!({ "latency": null }))
        .unwrap();
    let worker = world.worker().await;
    check_all(&world, &job, users).await;
    worker.drain().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_users_of_openim() {
    let mock = Settings {
        users: 3000,
        ..Settings::default()
    };
    all_users_of(
        "all-openim",
        mock,
        "type = \"openim\"\nsecret = \"openIM123\"",
    )
    .await;
}

/// A token that expires while users are listed is not a configuration fault: a new one is fetched,
/// and the job does not wait for the pause of an hour that such a fault has here.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_revoked_while_users_are_listed_is_renewed() {
    let mock = Settings {
        users: 2000,
        ..Settings::default()
    };
    let target = "type = \"openim\"\nsecret = \"openIM123\"\nconfig_fault_pause = \"1h\"";
    let Some(world) = start("relisted", mock, target).await else {
        return;
    };
    world
        .mock
        .patch_faults(&json!({ "latency": "100ms" }))
        .unwrap();
    let worker = world.worker().await;
    let job = send_to_all(&world).await;
    until("a page", BOUND, async || {
        (world.mock.stats().requests >= 2).then_some(())
    })
    .await;
    assert_eq!(world.mock.revoke_openim_tokens(1501), 1);
    assert_eq!(world.mock.stats().accepted, 0, "too late for this test");
    world
        .mock
        .patch_faults(&json!({ "latency": null }))
        .unwrap();
    check_all(&world, &job, 2000).await;
    worker.drain().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_users_of_wukongim_v2() {
    let mock = Settings {
        users: 3000,
        token: Some("s3cret".to_owned()),
        ..Settings::default()
    };
    let target = "type = \"wukongim\"\nversion = \"v2\"\ntoken = \"s3cret\"\n\
        manager_url = \"http://{address}\"";
    all_users_of("all-wukongim2", mock, target).await;
}

/// There are so many users that they are listed in two turns. The worker is killed in the second
/// one, while it sends to users of the first; the next worker continues at the cursor.
#[tokio::test(flavor = "multi_thread")]
async fn all_users_of_wukongim_v3_are_listed_on_from_the_cursor() {
    const USERS: u64 = 22_000;
    let mock = Settings {
        wukongim: Version::V3,
        wukongim_manager: Some("ops:pass".parse().unwrap()),
        users: USERS,
        ..Settings::default()
    };
    let target = "type = \"wukongim\"\nversion = \"v3\"\nmanager_url = \"http://{address}\"\n\
        manager_user = \"ops\"\nmanager_password = \"pass\"";
    let Some(world) = start("all-wukongim3", mock, target).await else {
        return;
    };
    let mut killed = world.worker().await;
    world
        .mock
        .patch_faults(&json!({ "latency": "50ms" }))
        .unwrap();
    let job = send_to_all(&world).await;
    // A login and a hundred pages; ten more pages follow.
    until("the first part", BOUND, async || {
        let record = world.job(&job).await?;
        (record["accounts"]["total"].as_u64()? > 0).then_some(())
    })
    .await;
    world
        .mock
        .patch_faults(&json!({ "latency": "400ms" }))
        .unwrap();
    killed.process.kill();
    let record = world.job(&job).await.unwrap();
    assert_eq!(record["state"], "running", "{record}");
    assert!(
        record["accounts"]["total"].as_u64().unwrap() < USERS - 3,
        "killed too late: {record}"
    );
    world
        .mock
        .patch_faults(&json!({ "latency": null }))
        .unwrap();
    // The mock handles late calls although their client is gone.
    until("the end of the killed worker's calls", BOUND, async || {
        (world.mock.stats().in_play == 0).then_some(())
    })
    .await;
    let before = world.mock.stats();
    let worker = world.worker().await;
    check_all(&world, &job, USERS).await;
    // Users listed before the kill are not listed again: a request that is neither an acceptance
    // nor a replay is a page, a login or an interrupted call.
    let after = world.mock.stats();
    let answered = |stats: &fanwise_mock_im::Stats| stats.accepted + stats.replays;
    let others = (after.requests - before.requests) - (answered(&after) - answered(&before));
    assert!(others < 100, "{others} requests that were no messages");
    worker.drain().await;
    world.end().await;
}

/// A job is for all users only if it says so: in the job, or on the command line.
#[tokio::test(flavor = "multi_thread")]
async fn all_users_need_a_confirmation() {
    let Some(plan) = Plan::shared() else { return };
    let mut plan = plan;
    plan.target.push_str("\nmanager_url = \"http://{address}\"");
    plan.mock.users = 5;
    plan.more = "[apps.default]\naudiences = [\"all\"]".to_owned();
    let world = plan.start("confirm").await;
    let worker = world.worker().await;
    let send = ["send", "--client-msg-no", "all", "--text", "Hello", "--all"];
    let refused = world
        .run(&[&send[..], &["--confirm-above", "4"]].concat())
        .await;
    assert_eq!(refused.code, Some(64), "{}", refused.stderr);
    let many = "this reaches 5 users of target im; confirm it with --yes";
    assert!(refused.stderr.contains(many), "{}", refused.stderr);
    let faults = |share| world.mock.patch_faults(&json!({ "unauthorised": share }));
    faults(Some(1.0)).unwrap();
    let refused = world.run(&send).await;
    assert_eq!(refused.code, Some(64), "{}", refused.stderr);
    let unknown = "their number is not known (401";
    assert!(refused.stderr.contains(unknown), "{}", refused.stderr);
    faults(None).unwrap();
    let told = world.run(&[&send[..], &["--dry-run"]].concat()).await;
    assert!(told.stdout.contains("to all users of im"), "{told:?}");

    let job = json!({
        "v": 1, "client_msg_no": "all", "audience": { "all": true },
        "message": { "type": "text", "text": "Hello" },
    });
    world.publish_raw(job.to_string().as_bytes()).await;
    let found = rejected(&world, 1).await;
    let reason = found[0]["reason"].as_str().unwrap();
    assert!(reason.contains("confirm_all"), "{reason}");
    let file = world.write("job.json", job.to_string());
    let refused = world.run(&["send", "--job", file.to_str().unwrap()]).await;
    assert_eq!(refused.code, Some(65), "{}", refused.stderr);
    assert_eq!(world.mock.stats().accepted, 0);

    let answer = world
        .json(&["send", "--job", file.to_str().unwrap(), "--confirm-all"])
        .await;
    let record = world.completed(answer["job"].as_str().unwrap()).await;
    assert_eq!(record["accounts"]["sent"], 5, "{record}");
    // A small number of users needs no confirmation.
    let few = ["send", "--client-msg-no", "few", "--text", "Hello", "--all"];
    let answer = world.json(&few).await;
    let record = world.completed(answer["job"].as_str().unwrap()).await;
    assert_eq!(record["accounts"]["sent"], 5, "{record}");
    worker.drain().await;
    world.end().await;
}

/// NetEase's cloud cannot list accounts, and the refusal of the job says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_system_that_cannot_list_users_refuses_all_of_them() {
    let Some(plan) = Plan::shared() else { return };
    let five = Five::start(plan, "unlisted", "").await;
    let worker = five.world.worker().await;
    for (number, target) in (1..).zip(["netease", "yunxin", "wukongim2"]) {
        let send = [
            "send",
            "--client-msg-no",
            "all",
            "--target",
            target,
            "--text",
            "Hello",
            "--all",
            "--yes",
        ];
        let refused = five.world.run(&send).await;
        assert_eq!(refused.code, Some(65), "{}", refused.stderr);
        assert!(refused.stderr.contains("give a list"), "{}", refused.stderr);
        let job = json!({
            "v": 1, "client_msg_no": "all", "target": target, "audience": { "all": true },
            "confirm_all": true, "message": { "type": "text", "text": "Hello" },
        });
        five.world.publish_raw(job.to_string().as_bytes()).await;
        let reasons = rejected(&five.world, number).await;
        let of_target = |it: &&serde_json::Value| it["body"].as_str().unwrap().contains(target);
        let found = reasons.iter().find(of_target).unwrap();
        let reason = found["reason"].as_str().unwrap();
        assert!(
            reason.contains("audience.all") && reason.contains("give a list"),
            "{reason}"
        );
    }
    worker.drain().await;
    five.end().await;
}
