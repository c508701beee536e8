//! Pages of dead letters at a gateway on RabbitMQ, while other processes change the letters.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, http_get};

/// The rows of all pages: job, and recipient.
async fn listed(port: u16, limit: usize) -> Vec<(String, String)> {
    let (mut rows, mut cursor) = (Vec::new(), String::new());
    loop {
        let answer = http_get(port, &format!("/v1/dead?limit={limit}{cursor}")).await;
        let answer = answer.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
        let page: Value = serde_json::from_str(body).unwrap();
        let text = |row: &Value, field: &str| row[field].as_str().unwrap().to_owned();
        let letters = page["letters"].as_array().unwrap();
        assert!(letters.len() <= limit);
        rows.extend(
            letters
                .iter()
                .map(|it| (text(it, "job"), text(it, "recipient"))),
        );
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return rows,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_dead_letters_are_current_and_in_order() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("dead-pages").await;
    let faults = json!({"refuse_prefix": "bad-"});
    world.mock.patch_faults(&faults).unwrap();
    let worker = world.worker().await;
    let gateway = world.gateway(&[]).await;
    assert_eq!(listed(gateway.port, 10).await, []);
    let bad =
        |count: usize| -> Vec<String> { (0..count).map(|it| format!("bad-{it:02}")).collect() };
    let one = world.send("one", &bad(35), &[]).await;
    let two = world.send("two", &bad(5), &[]).await;
    for job in [&one, &two] {
        world.completed(job).await;
    }
    let rows = listed(gateway.port, 15).await;
    assert!(rows.is_sorted(), "{rows:?}");
    assert_eq!(rows.iter().collect::<BTreeSet<_>>().len(), 40);
    assert_eq!(rows.len(), 40);
    // Another process removes letters, and a new one comes.
    let purged = world
        .json(&["dead", "purge", "--job", "two", "--yes"])
        .await;
    assert_eq!(purged["recipients"], 5, "{purged}");
    let left = listed(gateway.port, 100).await;
    assert_eq!(left.len(), 35);
    assert!(left.iter().all(|(job, _)| *job == one));
    let three = world.send("three", &["bad-99".to_owned()], &[]).await;
    world.completed(&three).await;
    let all = until("the new letter", BOUND, async || {
        let all = listed(gateway.port, 100).await;
        (all.len() == 36).then_some(all)
    })
    .await;
    assert!(all.contains(&(three, "bad-99".to_owned())), "{all:?}");
    worker.drain().await;
    gateway.end().await;
    world.end().await;
}
