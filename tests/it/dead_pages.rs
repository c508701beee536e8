//! Pages of dead letters at a gateway on RabbitMQ, while other processes change the letters.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::mpsc;

use fanwise::amqp::{Rabbit, Settings};
use fanwise::domain::ids::JobId;
use fanwise::ports::{
    Broker as _, Outgoing, Publisher as _, RetainedQueue, RetainedQueues as _, Route, Session as _,
};
use serde_json::{Value, json};

use crate::support::world::{Plan, http_get};

/// The rows of all pages: job, and recipient.
async fn listed(port: u16, limit: usize) -> Vec<(String, String)> {
    listed_of(port, limit, "").await
}

/// The same, of the letters that a filter selects.
async fn listed_of(port: u16, limit: usize, filter: &str) -> Vec<(String, String)> {
    let (mut rows, mut cursor) = (Vec::new(), String::new());
    loop {
        let answer = http_get(port, &format!("/v1/dead?limit={limit}{filter}{cursor}")).await;
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
    // The job is completed, so its letter is published.
    let all = listed(gateway.port, 100).await;
    assert_eq!(all.len(), 36);
    assert!(all.contains(&(three, "bad-99".to_owned())), "{all:?}");
    worker.drain().await;
    gateway.end().await;
    world.end().await;
}

/// A letter about one recipient.
fn letter(key: &str, recipient: &str) -> Outgoing {
    let body = json!({
        "v": 1, "job": JobId::of("default", key), "app": "default", "client_msg_no": key,
        "target": "im", "slice": "s", "message": {"type": "text", "text": "hello"}, "options": {},
        "first_attempt_at": "2026-11-29T10:00:00Z", "last_attempt_at": "2026-11-29T10:00:00Z",
        "recipients": [{"recipient": recipient, "outcome": "failed", "class": "permanent",
            "code": "410", "text": "gone", "attempts": 1}],
    });
    Outgoing {
        route: Route::Dead {
            app: "default".to_owned(),
            target: "im".to_owned(),
        },
        body: body.to_string().into(),
        message_id: format!("{key}/{recipient}"),
        traceparent: None,
    }
}

/// A gateway reads the queue once. After that it answers while another process holds the queue, with
/// the letters that come meanwhile, and finds a job without a look at the others.
#[tokio::test(flavor = "multi_thread")]
async fn pages_do_not_read_the_queue() {
    const LETTERS: usize = 20_000;
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("dead-index").await;
    let rabbit = Rabbit::new(Settings {
        namespace: world.name.clone(),
        targets: vec!["im".to_owned()],
        ..Settings::new(world.amqp.clone())
    })
    .unwrap();
    let session = rabbit.connect().await.unwrap();
    let publish = async |letters: Vec<Outgoing>| session.publisher().publish(letters).await;
    let names: Vec<_> = (0..LETTERS).map(|it| format!("user-{it:05}")).collect();
    for names in names.chunks(500) {
        let letters = names.iter().map(|it| letter("many", it)).collect();
        publish(letters).await.unwrap();
    }
    let gateway = world.gateway(&[]).await;
    let many = JobId::of("default", "many").to_string();
    let rows = listed(gateway.port, 1000).await;
    let expected = names.iter().map(|it| (many.clone(), it.clone()));
    assert!(rows.into_iter().eq(expected));

    let (release, held) = mpsc::channel::<()>();
    let (began, begins) = tokio::sync::oneshot::channel();
    let mut began = Some(began);
    let reader = rabbit.clone();
    let reading = tokio::spawn(async move {
        let visit = move |_| {
            if let Some(began) = began.take() {
                began.send(()).unwrap();
                let _ = tokio::task::block_in_place(|| held.recv());
            }
            ControlFlow::Break(())
        };
        reader.read(RetainedQueue::Dead, visit).await
    });
    begins.await.unwrap();
    publish(vec![letter("late", "ann")]).await.unwrap();
    let late = JobId::of("default", "late").to_string();
    let of_late = listed_of(gateway.port, 10, "&job=late").await;
    assert_eq!(of_late, [(late, "ann".to_owned())]);
    let first = http_get(gateway.port, "/v1/dead?limit=7").await.unwrap();
    assert!(first.starts_with("HTTP/1.1 200"), "{first}");
    drop(release);
    assert_eq!(reading.await.unwrap().unwrap(), 1);
    session.close().await;
    gateway.end().await;
    world.end().await;
}
