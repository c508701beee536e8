//! Pages of dead letters at a gateway on RabbitMQ, while other processes change the letters.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::mpsc;
use std::time::Duration;

use fanwise::amqp::{Rabbit, Settings};
use fanwise::domain::ids::JobId;
use fanwise::ports::{
    Broker as _, Outgoing, Publisher as _, RetainedEdit, RetainedMessage, RetainedQueue,
    RetainedQueues as _, Route, Session as _,
};
use serde_json::{Value, json};

use crate::support::process::resident_kib;
use crate::support::retained::break_off_removal;
use crate::support::wait::until;
use crate::support::world::{Plan, World, http_get};

/// How long a gateway may take to notice something.
const PATIENCE: Duration = Duration::from_secs(30);

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

/// The broker of a world.
fn broker_of(world: &World) -> Rabbit {
    let settings = Settings {
        namespace: world.name.clone(),
        targets: vec!["im".to_owned()],
        ..Settings::new(world.amqp.clone())
    };
    Rabbit::new(settings).unwrap()
}

/// Publishes letters of one job, about one recipient each. Returns the recipients.
async fn publish_many<E: std::fmt::Debug>(
    count: usize,
    publish: impl AsyncFn(Vec<Outgoing>) -> Result<(), E>,
) -> Vec<String> {
    let names: Vec<_> = (0..count).map(|it| format!("user-{it:05}")).collect();
    for names in names.chunks(500) {
        let letters = names.iter().map(|it| letter("many", it)).collect();
        publish(letters).await.unwrap();
    }
    names
}

/// Promise 9 at a reader of retained messages: its memory does not depend on their number.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_many_letters_takes_bounded_memory() {
    const LETTERS: usize = 30_000;
    /// Letters after which it has all the memory that it needs.
    const FIRST: usize = 10_000;
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("dead-memory").await;
    let rabbit = broker_of(&world);
    let session = rabbit.connect().await.unwrap();
    publish_many(LETTERS, async |letters| {
        session.publisher().publish(letters).await
    })
    .await;
    let own = std::process::id();
    let (mut shown, mut first_kib, mut last_kib) = (0, 0, 0);
    let visit = |_| {
        shown += 1;
        match shown {
            FIRST => first_kib = resident_kib(own, "RssAnon:"),
            LETTERS => last_kib = resident_kib(own, "RssAnon:"),
            _ => {}
        }
        ControlFlow::Continue(())
    };
    let read = rabbit.read(RetainedQueue::Dead, visit).await.unwrap();
    assert_eq!(read, LETTERS as u64);
    let bytes = last_kib.saturating_sub(first_kib) * 1024 / (LETTERS - FIRST) as u64;
    println!("{first_kib} KiB, then {last_kib} KiB: {bytes} bytes a letter");
    assert!(bytes < 40, "{bytes} bytes a letter");
    session.close().await;
    world.end().await;
}

/// A gateway reads the queue once. After that it answers while another process holds the queue, with
/// the letters that come meanwhile, and finds a job without a look at the others.
#[tokio::test(flavor = "multi_thread")]
async fn pages_do_not_read_the_queue() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("dead-index").await;
    let rabbit = broker_of(&world);
    let session = rabbit.connect().await.unwrap();
    let publish = async |letters: Vec<Outgoing>| session.publisher().publish(letters).await;
    let names = publish_many(20_000, publish).await;
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

/// The recipient of a letter about one.
fn recipient(message: &RetainedMessage) -> String {
    let letter: Value = serde_json::from_slice(&message.body).unwrap();
    let recipient = letter["recipients"][0]["recipient"].as_str();
    recipient.unwrap().to_owned()
}

/// Pages follow an edit while it holds the queue. After one that ended half-way they show what it has
/// left.
#[tokio::test(flavor = "multi_thread")]
async fn pages_follow_edits() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("dead-edits").await;
    let rabbit = broker_of(&world);
    let session = rabbit.connect().await.unwrap();
    let names: Vec<_> = (0..400).map(|it| format!("user-{it:05}")).collect();
    let letters = names.iter().map(|it| letter("many", it)).collect();
    session.publisher().publish(letters).await.unwrap();
    let gateway = world.gateway(&[]).await;
    let port = gateway.port;
    let shown = async || -> Vec<String> {
        let rows = listed(port, 1000).await.into_iter();
        rows.map(|(_, recipient)| recipient).collect()
    };
    assert_eq!(shown().await, names);

    // Removes three letters of ten, and waits at the last one, whichever that is.
    let (release, held) = mpsc::channel::<()>();
    let (waits, is_at_last) = tokio::sync::oneshot::channel();
    let (editor, count) = (rabbit.clone(), names.len());
    let editing = tokio::spawn(async move {
        let (mut waits, mut decided, mut gone) = (Some(waits), 0, BTreeSet::new());
        let decide = move |message: RetainedMessage| {
            decided += 1;
            if decided == count {
                waits.take().unwrap().send(gone.clone()).unwrap();
                let _ = tokio::task::block_in_place(|| held.recv());
            }
            let name = recipient(&message);
            match name.bytes().last() {
                Some(b'0' | b'3' | b'6') => {
                    gone.insert(name);
                    RetainedEdit::Remove
                }
                _ => RetainedEdit::Keep,
            }
        };
        editor.edit(RetainedQueue::Dead, decide).await
    });
    let gone = is_at_last.await.unwrap();
    let left = names.iter().filter(|name| !gone.contains(*name));
    let left: Vec<_> = left.cloned().collect();
    until("all changes before the last", PATIENCE, async || {
        (shown().await == left).then_some(())
    })
    .await;
    assert!(!editing.is_finished());
    drop(release);
    editing.await.unwrap().unwrap();
    let left = names.iter().filter(|name| !name.ends_with(['0', '3', '6']));
    let left: Vec<_> = left.cloned().collect();
    assert_eq!(shown().await, left);

    // Ends half-way: its letters come back, but for those that it has removed.
    break_off_removal(&rabbit, 50).await;
    // What it held comes back.
    let there = until("the letters to come back", PATIENCE, async || {
        let mut there = Vec::new();
        let keep = |message: RetainedMessage| {
            there.push(recipient(&message));
            ControlFlow::Continue(())
        };
        rabbit.read(RetainedQueue::Dead, keep).await.ok()?;
        there.sort();
        (there.len() + 50 >= left.len()).then_some(there)
    })
    .await;
    assert!(there.len() < left.len());
    until("what the edit has left", PATIENCE, async || {
        (shown().await == there).then_some(())
    })
    .await;
    session.close().await;
    gateway.end().await;
    world.end().await;
}
