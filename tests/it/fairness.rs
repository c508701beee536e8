//! Promise 8: priorities are rates, and equal jobs share equally, on a slow backend whose capacity
//! is fully used when the others arrive.

use std::collections::BTreeMap;

use fanwise::domain::ids::JobId;
use fanwise_mock_im::MockHandle;
use serde_json::json;

use crate::embedded::Place;
use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, World};

/// Slices take some twenty seconds with this latency and number of calls.
const LATENCY: &str = "150ms";
const CALLS: &str = "32";

/// The number of messages compared, once all have begun and some more were sent.
const BEFORE: usize = 500;
const LOOKED_AT: usize = 1500;

fn list(name: &str, count: usize) -> Vec<String> {
    (0..count)
        .map(|number| format!("{name}-{number}"))
        .collect()
}

/// The share of each name in the messages that the mock accepted since all of them had begun.
async fn shares<const N: usize>(mock: &MockHandle, names: [&str; N]) -> [f64; N] {
    until("enough messages of all", BOUND, async || {
        let mut accepted = mock.accepted();
        accepted.sort_by_key(|entry| entry.at_us);
        let of = |recipient: &str| {
            let mut names = names.iter();
            names.position(|name| recipient.starts_with(&format!("{name}-")))
        };
        let first = names.iter().enumerate().map(|(index, _)| {
            let mut mine = accepted.iter();
            mine.position(|entry| of(&entry.recipient) == Some(index))
        });
        let begun = first.collect::<Option<Vec<_>>>()?.into_iter().max()?;
        let looked_at = accepted.get(begun + BEFORE..begun + BEFORE + LOOKED_AT)?;
        let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
        for entry in looked_at {
            *counts.entry(of(&entry.recipient)?).or_default() += 1;
        }
        let share = |index| counts.get(&index).copied().unwrap_or(0) as f64 / LOOKED_AT as f64;
        Some(std::array::from_fn(share))
    })
    .await
}

fn check_priorities([high, normal, bulk]: [f64; 3]) {
    let of = |weight: f64| weight / 13.0;
    let near = |share: f64, weight: f64| (share - of(weight)).abs() < 0.08;
    assert!(
        near(high, 8.0) && near(normal, 4.0) && near(bulk, 1.0) && bulk > 0.01,
        "high {high:.2}, normal {normal:.2}, bulk {bulk:.2}"
    );
}

async fn slow_world(name: &str) -> Option<World> {
    let mut plan = Plan::shared()?;
    plan.target
        .push_str(&format!("\ncalls_in_flight = {CALLS}"));
    let world = plan.start(name).await;
    let latency = json!({ "latency": LATENCY });
    world.mock.patch_faults(&latency).unwrap();
    Some(world)
}

/// Jobs of 500 recipients of all priorities. The bulk ones use all capacity when the others arrive.
#[tokio::test(flavor = "multi_thread")]
async fn promise_8_priorities_are_rates() {
    let Some(world) = slow_world("rates").await else {
        return;
    };
    let worker = world.worker().await;
    for (priority, jobs) in [("bulk", 4), ("normal", 4), ("high", 6)] {
        for number in 0..jobs {
            let key = format!("{priority}-{number}");
            let to = list(&key, 500);
            world.send(&key, &to, &["--priority", priority]).await;
        }
        if priority == "bulk" {
            let what = "the bulk jobs have begun";
            until(what, BOUND, async || {
                (world.mock.stats().accepted >= 100).then_some(())
            })
            .await;
        }
    }
    check_priorities(shares(&world.mock, ["high", "normal", "bulk"]).await);
    worker.drain().await;
    world.end().await;
}

/// The same on the embedded engine.
#[tokio::test(flavor = "multi_thread")]
async fn promise_8_priorities_are_rates_embedded() {
    let place = Place::new("rates").await;
    let latency = json!({ "latency": LATENCY });
    place.mock.patch_faults(&latency).unwrap();
    let calls = ("FANWISE_TARGETS__IM__CALLS_IN_FLIGHT", CALLS);
    let _serve = place.serve_with(&[calls]).await;
    for (priority, jobs) in [("bulk", 4), ("normal", 4), ("high", 6)] {
        for number in 0..jobs {
            let key = format!("{priority}-{number}");
            let to = list(&key, 500).join("\n");
            let send = ["send", "--text", "hello", "--file", "-", "--client-msg-no"];
            let send = [&send[..], &[&key, "--priority", priority]].concat();
            let sent = place.run(&send, to.as_bytes()).await;
            assert_eq!(sent.code, Some(0), "{}", sent.stderr);
        }
    }
    check_priorities(shares(&place.mock, ["high", "normal", "bulk"]).await);
}

/// Two equal jobs in different lanes; the second arrives while the first uses all capacity. Each
/// gets half, and each recipient gets the message once, however often a slice makes way.
#[tokio::test(flavor = "multi_thread")]
async fn promise_8_equal_jobs_share_equally() {
    let Some(world) = slow_world("equals").await else {
        return;
    };
    // The way in which slices find their lane.
    let lane = |key: &str| {
        let id = JobId::of("default", key).to_string();
        let sum = |sum: u64, byte| sum.wrapping_mul(31) + u64::from(byte);
        id.bytes().fold(0, sum) % 2
    };
    let key_of = |wanted| {
        let mut keys = (0..).map(|number| format!("key{number}"));
        keys.find(|key| lane(key) == wanted).unwrap()
    };
    let worker = world.worker().await;
    let mut jobs = Vec::new();
    let mut all = Vec::new();
    for (name, wanted) in [("one", 0), ("other", 1)] {
        let to = list(name, 1600);
        jobs.push(world.send(&key_of(wanted), &to, &[]).await);
        all.extend(to);
        until("the first has begun", BOUND, async || {
            (world.mock.stats().accepted >= 100).then_some(())
        })
        .await;
    }
    let [one, other] = shares(&world.mock, ["one", "other"]).await;
    assert!((0.45..0.55).contains(&one), "{one:.2} : {other:.2}");
    world
        .mock
        .patch_faults(&json!({ "latency": null }))
        .unwrap();
    for job in &jobs {
        let record = world.completed(job).await;
        assert_eq!(record["accounts"]["sent"], 1600, "{record}");
    }
    world.assert_once_each(&all);
    worker.drain().await;
    world.end().await;
}
