//! Tests an option that a target does not have: a strict job is refused with the option's name; a
//! lenient job runs without it and reports that.

use serde_json::json;

use super::{Five, rejected};
use crate::support::world::{Plan, assert_once_each, users};

/// Targets, each with an option that it does not have.
const UNHONOURED: [(&str, &str, &str); 5] = [
    ("im", "unread", r#"{"unread":true}"#),
    (
        "wukongim2",
        "moderation.enabled",
        r#"{"moderation":{"enabled":false}}"#,
    ),
    ("openim", "expire_seconds", r#"{"expire_seconds":60}"#),
    ("netease", "sync_once", r#"{"sync_once":true}"#),
    ("yunxin", "push.sound", r#"{"push":{"sound":"ding"}}"#),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_a_target_cannot_honour_is_refused_or_left_out_with_a_warning() {
    let Some(plan) = Plan::shared() else { return };
    let five = Five::start(plan, "mapping", "").await;
    let world = &five.world;
    let worker = world.worker().await;
    let recipients = users(3);
    for (number, (target, option, options)) in (1..).zip(UNHONOURED) {
        let options: serde_json::Value = serde_json::from_str(options).unwrap();
        let job = json!({
            "v": 1, "client_msg_no": target, "target": target, "options": options,
            "audience": { "users": recipients }, "message": { "type": "text", "text": "Hello" },
        });
        let field = format!("options.{option}");
        world.publish_raw(job.to_string().as_bytes()).await;
        let found = rejected(world, number).await;
        let named = |it: &&serde_json::Value| it["reason"].as_str().unwrap().contains(&field);
        assert_eq!(found.iter().filter(named).count(), 1, "{field}: {found:?}");

        let file = world.write("job.json", job.to_string());
        let send = ["send", "--job", file.to_str().unwrap()];
        let refused = world.run(&send).await;
        assert_eq!(refused.code, Some(65), "{}", refused.stderr);
        assert!(refused.stderr.contains(&field), "{}", refused.stderr);

        let send = [&send[..], &["--mapping", "lenient", "--json"]].concat();
        let sent = world.run(&send).await;
        assert_eq!(sent.code, Some(0), "{}", sent.stderr);
        assert!(sent.stderr.contains(&field), "{}", sent.stderr);
        let answer: serde_json::Value = serde_json::from_str(&sent.stdout).unwrap();
        let id = answer["job"].as_str().unwrap();
        let record = world.completed(id).await;
        assert_eq!(record["accounts"]["sent"], 3, "{target}: {record}");
        assert_once_each(five.mock(target), &recipients);
        let warning = record["warnings"][0].as_str().unwrap();
        assert!(warning.contains(&field), "{warning}");
        let shown = world.run(&["job", "show", id]).await.stdout;
        assert!(
            shown.contains(&format!("warning        {warning}")),
            "{shown}"
        );
    }
    worker.drain().await;
    five.end().await;
}
