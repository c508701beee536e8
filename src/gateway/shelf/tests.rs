//! Redrives on the embedded engine: what is published, and what stays on the shelf.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;
use crate::embedded::{EmbeddedBroker, Engine, Settings};
use crate::ports::{Broker as _, Consumer as _, Session as _, Source};

struct Anything;

impl job::Context for Anything {
    fn default_target(&self, _: &str) -> Result<String, String> {
        Ok("im".to_owned())
    }

    fn check_target(&self, target: &str) -> Result<(), String> {
        match target {
            "gone" => Err("there is no target \"gone\"".to_owned()),
            _ => Ok(()),
        }
    }

    fn folds_case(&self, _: &str) -> bool {
        false
    }
    fn check_callback(&self, app: &str, url: &str) -> Result<(), String> {
        job::check_callback(app, None, url)
    }
    fn check_reply_to(&self, _: &str, _: &str) -> Result<(), String> {
        Ok(())
    }
}

/// Job, target, and recipients with their outcomes.
type Letter<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)]);

struct Bench {
    engine: Engine,
    broker: EmbeddedBroker,
    folder: PathBuf,
}

impl Bench {
    /// With these letters on its shelf.
    async fn with(letters: &[Letter<'_>]) -> Self {
        let name = format!(
            "fanwise-shelf-{}-{:x}",
            std::process::id(),
            fastrand::u64(..)
        );
        let folder = std::env::temp_dir().join(name);
        let engine = Engine::open(&Settings {
            targets: vec!["im".to_owned()],
            ..Settings::new(&folder)
        })
        .unwrap();
        let broker = engine.broker();
        let session = broker.connect().await.unwrap();
        for (number, (key, target, recipients)) in letters.iter().enumerate() {
            let letter = letter(key, target, recipients, number);
            session.publisher().publish(vec![letter]).await.unwrap();
        }
        session.close().await;
        Self {
            engine,
            broker,
            folder,
        }
    }

    async fn redrive(&self, redrive: &Redrive) -> Redriven {
        let session = self.broker.connect().await.unwrap();
        let publisher = session.publisher();
        let check = |_: &Head| Vec::new();
        super::redrive(&self.broker, &publisher, &Anything, check, redrive)
            .await
            .unwrap()
    }

    /// Key and recipients of every job that was published, in order.
    async fn published(&self, count: usize) -> Vec<(String, Vec<String>)> {
        let session = self.broker.connect().await.unwrap();
        let source = Source::Jobs(Priority::Normal);
        let mut consumer = session.consume(source, 100).await.unwrap();
        let mut jobs = Vec::new();
        for _ in 0..count {
            let delivery = consumer.next().await.unwrap();
            let job: Value = serde_json::from_slice(&delivery.body).unwrap();
            delivery.ack().await.unwrap();
            let users = serde_json::from_value(job["audience"]["users"].clone()).unwrap();
            jobs.push((job["client_msg_no"].as_str().unwrap().to_owned(), users));
        }
        jobs
    }

    async fn left(&self) -> Vec<String> {
        let rows = page(&self.broker, &Wanted::default(), None, 100, false).await;
        let rows = rows.unwrap().0.into_iter();
        rows.map(|row| row.dead.recipient).collect()
    }

    async fn end(self) {
        self.engine.close().await;
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn letter(key: &str, target: &str, recipients: &[(&str, &str)], number: usize) -> Outgoing {
    let dead = recipients.iter().map(|(recipient, outcome)| {
        json!({
            "recipient": recipient, "outcome": outcome, "class": "permanent", "code": "c",
            "text": "t", "attempts": 1,
        })
    });
    let letter = json!({
        "v": 1, "job": JobId::of("shop", key), "app": "shop", "client_msg_no": key,
        "target": target, "slice": "s", "message": {"type": "text", "text": "hello"}, "options": {},
        "first_attempt_at": "2027-01-01T10:00:00Z",
        "last_attempt_at": format!("2027-01-01T10:00:{number:02}Z"),
        "recipients": dead.collect::<Vec<_>>(),
    });
    Outgoing {
        route: Route::Dead {
            app: "shop".to_owned(),
            target: target.to_owned(),
        },
        body: letter.to_string().into(),
        message_id: number.to_string(),
        traceparent: None,
    }
}

fn failed() -> Redrive {
    Redrive {
        wanted: Wanted::default(),
        uncertain: false,
        dry_run: false,
        purge: false,
        priority: Priority::Normal,
    }
}

/// Of several letters for one recipient the last counts: whoever is uncertain by it is not sent to
/// unless that is asked for.
#[tokio::test(flavor = "multi_thread")]
async fn uncertain_recipients_are_left_alone_unless_asked_for() {
    let bench = Bench::with(&[
        (
            "a",
            "im",
            &[("ann", "failed"), ("bob", "failed"), ("cat", "uncertain")],
        ),
        ("a", "im", &[("bob", "uncertain"), ("cat", "failed")]),
    ])
    .await;
    let done = bench.redrive(&failed()).await;
    assert_eq!((done.recipients, done.jobs_total), (2, 1));
    assert_eq!(done.uncertain_left_out, 2);
    let both = Redrive {
        uncertain: true,
        ..failed()
    };
    assert_eq!(bench.redrive(&both).await.recipients, 3);
    let dry = Redrive {
        dry_run: true,
        ..both.clone()
    };
    assert_eq!(bench.redrive(&dry).await.recipients, 3);
    let list = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
    let key = || "a~r1".to_owned();
    assert_eq!(
        bench.published(2).await,
        [
            (key(), list(&["ann", "cat"])),
            (key(), list(&["ann", "bob", "cat"]))
        ]
    );
    bench.end().await;
}

/// What was redriven may go; what was not stays, and a job that would be refused is told of.
#[tokio::test(flavor = "multi_thread")]
async fn only_letters_that_were_redriven_are_purged() {
    let bench = Bench::with(&[
        ("a", "im", &[("ann", "failed"), ("bob", "uncertain")]),
        ("b", "gone", &[("cat", "failed")]),
        ("c", "im", &[("dan", "failed"), ("eve", "failed")]),
    ])
    .await;
    let purging = Redrive {
        purge: true,
        ..failed()
    };
    let done = bench.redrive(&purging).await;
    assert_eq!((done.recipients, done.jobs_total, done.purged), (3, 2, 3));
    assert_eq!(done.refused.len(), 1);
    assert!(
        done.refused[0].reason.contains("there is no target"),
        "{done:?}"
    );
    let mut left = bench.left().await;
    left.sort();
    assert_eq!(left, ["bob", "cat"]);
    let keys = bench.published(2).await.into_iter().map(|(key, _)| key);
    let mut keys: Vec<_> = keys.collect();
    keys.sort();
    assert_eq!(keys, ["a~r1", "c~r1"]);
    bench.end().await;
}
