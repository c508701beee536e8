//! `fanwise serve` on the embedded engine and `fanwise demo`, as a user runs them: nothing else is
//! needed, so these tests never skip.

use std::collections::BTreeSet;
use std::time::Duration;

use fanwise::im::mock::{MockHandle, MockIm, Settings, Version};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::process::{Finished, Process, fanwise, run_fanwise};
use crate::support::scratch::Scratch;
use crate::support::wait::until;
use crate::support::world::{BOUND, free_port, users};

/// A data folder, a mock, and the addresses of one `fanwise serve`.
struct Place {
    scratch: Scratch,
    mock: MockHandle,
    config: String,
    _stop: tokio_util::sync::DropGuard,
}

impl Place {
    async fn new(name: &str) -> Self {
        let mock = MockIm::bind(Settings {
            wukongim: Version::V3,
            ..Settings::default()
        })
        .await
        .unwrap();
        let (address, handle) = (mock.addr(), mock.handle());
        let stop = CancellationToken::new();
        tokio::spawn(mock.run(stop.clone().cancelled_owned()));
        let scratch = Scratch::new(name);
        let config = format!(
            r#"
            [embedded]
            folder = {:?}
            [gateway]
            listen = "127.0.0.1:{}"
            [admin]
            listen = "127.0.0.1:{}"
            [retry]
            delay_max = "1s"
            [targets.im]
            type = "wukongim"
            version = "v3"
            sender = "news"
            url = "http://{address}"
            call_timeout = "3s"
            "#,
            scratch.path().join("data"),
            free_port(),
            free_port(),
        );
        let config = scratch
            .write("fanwise.toml", config)
            .to_str()
            .unwrap()
            .to_owned();
        Self {
            scratch,
            mock: handle,
            config,
            _stop: stop.drop_guard(),
        }
    }

    async fn serve(&self) -> Process {
        let mut process = fanwise(&["serve", "--config", &self.config], &[]);
        process
            .until_prints("ready: jobs are taken", Duration::from_secs(30))
            .await;
        process
    }

    async fn run(&self, arguments: &[&str], input: &[u8]) -> Finished {
        let arguments = [arguments, &["--config", &self.config]].concat();
        run_fanwise(&arguments, &[], input, BOUND).await
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        let finished = self.run(&[arguments, &["--json"]].concat(), b"").await;
        assert_eq!(finished.code, Some(0), "{arguments:?}: {}", finished.stderr);
        serde_json::from_str(&finished.stdout).unwrap()
    }

    async fn completed(&self, key: &str) -> Value {
        until("completion of the job", BOUND, async || {
            let finished = self.run(&["job", "show", key, "--json"], b"").await;
            let record: Value = serde_json::from_str(&finished.stdout).ok()?;
            (record["state"] == "completed").then_some(record)
        })
        .await
    }

    fn accepted_once(&self) -> BTreeSet<String> {
        let accepted = self.mock.accepted();
        let new: Vec<_> = accepted.into_iter().filter(|entry| !entry.replay).collect();
        let unique: BTreeSet<_> = new.iter().map(|entry| entry.recipient.clone()).collect();
        assert_eq!(unique.len(), new.len(), "somebody was sent to twice");
        unique
    }
}

/// Killed in the middle, again and again: whatever was accepted is delivered, once.
#[tokio::test(flavor = "multi_thread")]
async fn serve_survives_sigkill_at_any_moment() {
    let place = Place::new("serve-kill").await;
    place
        .mock
        .patch_faults(&json!({"latency": "5ms", "refuse_prefix": "bad-"}))
        .unwrap();
    let mut process = place.serve().await;
    let good = users(4000);
    let bad: Vec<String> = (0..10).map(|number| format!("bad-{number}")).collect();
    let list = [good.as_slice(), &bad].concat().join("\n");
    let send = [
        "send",
        "--client-msg-no",
        "k",
        "--text",
        "hello",
        "--file",
        "-",
    ];
    let sent = place.run(&send, list.as_bytes()).await;
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    for share in [1, 2, 3] {
        until("progress", BOUND, async || {
            (place.mock.stats().accepted >= share * 1000).then_some(())
        })
        .await;
        process.kill();
        process = place.serve().await;
    }
    let record = place.completed("k").await;
    assert_eq!(record["accounts"]["sent"], 4000, "{record}");
    assert_eq!(record["accounts"]["failed"], 10, "{record}");
    assert_eq!(place.accepted_once(), good.iter().cloned().collect());
    assert_eq!(place.json(&["job", "verify", "k"]).await["exact"], true);
    let dead = place.json(&["dead", "list"]).await;
    let dead: BTreeSet<_> = dead
        .as_array()
        .unwrap()
        .iter()
        .map(|dead| dead["recipient"].as_str().unwrap())
        .collect();
    assert_eq!(dead, bad.iter().map(String::as_str).collect());
    process.terminate();
    assert_eq!(process.wait(Duration::from_secs(30)).await.code(), Some(0));
}

/// The HTTP interface refuses what AMQP rejects, at once and with every problem.
#[tokio::test(flavor = "multi_thread")]
async fn serve_answers_conflicts_and_mistakes() {
    let place = Place::new("serve-http").await;
    let process = place.serve().await;
    let send = [
        "send",
        "--client-msg-no",
        "k",
        "--text",
        "hello",
        "u1",
        "u2",
        "--wait",
        "--json",
    ];
    let first = place.run(&send, b"").await;
    let again = place.run(&send, b"").await;
    assert_eq!(
        (first.code, again.code),
        (Some(0), Some(0)),
        "{} {}",
        first.stderr,
        again.stderr
    );
    assert_eq!(place.accepted_once().len(), 2);
    let other = place
        .run(
            &["send", "--client-msg-no", "k", "--text", "other", "u1"],
            b"",
        )
        .await;
    assert_eq!(other.code, Some(65), "{}", other.stderr);
    assert!(other.stderr.contains("conflict"), "{}", other.stderr);
    let second = place.run(&["serve"], b"").await;
    assert_eq!(second.code, Some(69), "{}", second.stderr);
    assert!(second.stderr.contains("in use"), "{}", second.stderr);
    let missing = place.run(&["job", "show", "nobody-sent-this"], b"").await;
    assert_eq!(missing.code, Some(69), "{}", missing.stderr);
    drop(process);
    let away = place.run(&["job", "list"], b"").await;
    assert_eq!(away.code, Some(69), "{}", away.stderr);
    assert!(away.stderr.contains("fanwise serve"), "{}", away.stderr);
    assert!(place.scratch.path().join("data").is_dir());
}

/// Stored messages over HTTP, from the command line and as another program asks.
#[tokio::test(flavor = "multi_thread")]
async fn serve_keeps_stored_messages() {
    let place = Place::new("serve-templates").await;
    let mut process = place.serve().await;
    let put = ["template", "put", "hi", "--text", "Hi {{ name }}"];
    assert_eq!(place.json(&put).await["version"], 1);
    process.kill();
    let _process = place.serve().await;
    let list = place.json(&["template", "list"]).await;
    assert_eq!(list[0]["name"], "hi", "{list}");
    assert_eq!(
        place.json(&["template", "get", "hi"]).await["message"]["text"],
        "Hi {{ name }}"
    );
    let send = |template, key| {
        let arguments = [
            "send",
            "--client-msg-no",
            key,
            "--template",
            template,
            "--wait",
        ];
        [&arguments[..], &["--var", "name=Ana", "u1"]].concat()
    };
    let sent = place.run(&send("hi", "k1"), b"").await;
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    let payload: Value = serde_json::from_str(&place.mock.accepted()[0].payload).unwrap();
    assert_eq!(payload["content"], "Hi Ana");
    // Refused at once, not after acceptance.
    let unknown = place.run(&send("ho", "k2"), b"").await;
    assert_eq!(unknown.code, Some(65), "{}", unknown.stderr);
    assert!(
        unknown.stderr.contains("did you mean \"hi\"?"),
        "{}",
        unknown.stderr
    );
    let deleted = place.run(&["template", "delete", "hi"], b"").await;
    assert_eq!(deleted.code, Some(0), "{}", deleted.stderr);
    let gone = place.run(&["template", "get", "hi"], b"").await;
    assert_eq!(gone.code, Some(69), "{}", gone.stderr);
}

/// What the README shows first, with the crash.
#[tokio::test(flavor = "multi_thread")]
async fn the_demo_ends_with_exact_accounts() {
    for arguments in [vec!["demo", "--json"], vec!["demo", "--json", "--kill"]] {
        let kills = u64::from(arguments.contains(&"--kill"));
        let finished = run_fanwise(&arguments, &[], b"", BOUND).await;
        assert_eq!(
            finished.code,
            Some(0),
            "{}{}",
            finished.stdout,
            finished.stderr
        );
        let outcome: Value = serde_json::from_str(&finished.stdout).unwrap();
        assert_eq!(outcome["accounts_exact"], true, "{outcome}");
        assert_eq!(outcome["total"], 10_000, "{outcome}");
        assert_eq!(outcome["sink_accepted"], outcome["sent"], "{outcome}");
        assert_eq!(outcome["sink_duplicates"], 0, "{outcome}");
        assert_eq!(outcome["sink_accepted_by_repeat"], 0, "{outcome}");
        assert_eq!(outcome["worker_kills"], kills, "{outcome}");
        assert!(outcome["failed"].as_u64().unwrap() > 0, "{outcome}");
    }
}
