//! A second target gets the recipients that the first one fails, each once, and the accounts say whom
//! it reached.

use std::collections::BTreeMap;

use fanwise_mock_im::Settings;
use serde_json::{Value, json};

use crate::support::mock;
use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, accepted_by, users};

/// Users that the first target does not have, and those of them that the second does not have either.
const NOT_AT_FIRST: &str = "u1";
const NOT_AT_SECOND: &str = "u15";

fn are(count: u64, outcome: &str, record: &Value) {
    assert_eq!(record["accounts"][outcome], count, "{outcome}: {record}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_target_gets_those_that_the_first_refuses_also_if_a_worker_dies() {
    let Some(mut plan) = Plan::shared() else {
        return;
    };
    let (address, sms, stop) = mock::start(Settings::default()).await;
    plan.more = format!(
        "[targets.sms]\ntype = \"webhook\"\nurl = \"http://{address}/hook\"\ncall_timeout = \"3s\"\n\
         recipients_per_call = 5\n[apps.default]\ntarget = \"im\"\n"
    );
    let world = plan.start("fallback").await;
    let faults = |prefix: &str| json!({"latency": "20ms", "refuse_prefix": prefix});
    world.mock.patch_faults(&faults(NOT_AT_FIRST)).unwrap();
    sms.patch_faults(&faults(NOT_AT_SECOND)).unwrap();

    // Both targets must take the job.
    let wrong = [
        "send",
        "--client-msg-no",
        "w",
        "--text",
        "x",
        "a",
        "--fallback",
    ];
    for (second, problem) in [("mail", "fallback.target"), ("im", "first target")] {
        let refused = world.run(&[&wrong[..], &[second]].concat()).await;
        assert_eq!(refused.code, Some(65), "{}", refused.stderr);
        assert!(refused.stderr.contains(problem), "{}", refused.stderr);
    }

    let settings = [
        ("FANWISE_WORKER__SLICE_RECIPIENTS", "20"),
        ("FANWISE_TARGETS__IM__LIMIT", "300/s"),
    ];
    let mut dies = world.worker_with(&settings).await;
    let everybody = users(300);
    let more = ["--fallback", "sms"];
    let job = world.send("promo", &everybody, &more).await;
    until("the second target is in use", BOUND, async || {
        (sms.accepted().len() >= 10).then_some(())
    })
    .await;
    dies.process.kill();
    let worker = world.worker_with(&settings).await;
    let record = world.completed(&job).await;

    let (first, second) = (world.accepted(), accepted_by(&sms));
    let dead = world.dead(&job).await;
    let mut counts = BTreeMap::new();
    for user in &everybody {
        let (at_first, at_second) = (first.get(user), second.get(user));
        let letter = dead.get(user).map(|(outcome, _)| outcome.as_str());
        let sends = at_first.unwrap_or(&0) + at_second.unwrap_or(&0);
        assert!(sends <= 1, "{user}: {at_first:?} {at_second:?}");
        let outcome = letter.unwrap_or("sent");
        match outcome {
            "sent" => assert_eq!(sends, 1, "{user}"),
            "failed" => assert_eq!(sends, 0, "{user}"),
            // Only calls in flight at the kill.
            _ => {}
        }
        assert!(
            at_first.is_none() || !user.starts_with(NOT_AT_FIRST),
            "{user}"
        );
        *counts.entry(outcome).or_insert(0) += 1;
    }
    for outcome in ["sent", "failed", "uncertain"] {
        are(counts.get(outcome).copied().unwrap_or(0), outcome, &record);
    }
    assert!(counts["failed"] > 0, "{record}");
    assert_eq!(record["fallback"], "sms", "{record}");
    let by_second = everybody
        .iter()
        .filter(|user| !dead.contains_key(*user) && second.contains_key(*user));
    assert_eq!(record["sent_by_fallback"], by_second.count(), "{record}");

    let of = async |user: &str| world.json(&["job", "recipient", &job, user]).await;
    let reached = everybody
        .iter()
        .rfind(|user| second.contains_key(*user) && !dead.contains_key(*user))
        .unwrap();
    let told = of(reached).await;
    let why = told["explanation"].as_str().unwrap();
    assert!(
        why.starts_with("sms accepted the message after im refused"),
        "{told}"
    );
    let letters = world.json(&["dead", "list", "--job", &job]).await;
    let failed = letters.as_array().unwrap().iter();
    let failed: Vec<_> = failed.filter(|it| it["outcome"] == "failed").collect();
    for letter in failed {
        let text = letter["text"].as_str().unwrap();
        assert!(
            text.starts_with("sms: ") && text.contains("; before, im: "),
            "{letter}"
        );
        assert_eq!(letter["target"], "im", "{letter}");
    }
    worker.drain().await;
    stop.cancel();
    world.end().await;
}
