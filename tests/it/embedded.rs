//! Tests `fanwise serve` on the embedded engine and `fanwise demo`, as a user runs them. They need
//! nothing else, so these tests never skip.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use fanwise_mock_im::{MockHandle, Settings, Version};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::mock;
use crate::support::process::{Finished, Process, fanwise, run_fanwise};
use crate::support::scratch::Scratch;
use crate::support::wait::until;
use crate::support::world::{BOUND, free_port, send_text, users};

/// A data folder, a mock, and the addresses of one `fanwise serve`.
pub(crate) struct Place {
    scratch: Scratch,
    pub(crate) mock: MockHandle,
    /// Port of the HTTP interface.
    pub(crate) gateway: u16,
    config: String,
    pub(crate) admin: u16,
    _stop: tokio_util::sync::DropGuard,
}

impl Place {
    pub(crate) async fn new(name: &str) -> Self {
        Self::with(name, "").await
    }

    /// `more`: lines under `[targets.im]`, and further tables.
    pub(crate) async fn with(name: &str, more: &str) -> Self {
        let (address, handle, stop) = mock::start(Settings {
            wukongim: Version::V3,
            ..Settings::default()
        })
        .await;
        let scratch = Scratch::new(name);
        let (gateway, admin) = (free_port(), free_port());
        let config = format!(
            r#"
            [embedded]
            dir = {:?}
            [gateway]
            listen = "127.0.0.1:{gateway}"
            [admin]
            listen = "127.0.0.1:{admin}"
            [retry]
            delay_max = "1s"
            [targets.im]
            type = "wukongim"
            version = "v3"
            sender = "news"
            url = "http://{address}"
            call_timeout = "3s"
            {more}
            "#,
            scratch.path().join("data"),
        );
        let config = scratch
            .write("fanwise.toml", config)
            .to_str()
            .unwrap()
            .to_owned();
        Self {
            scratch,
            mock: handle,
            gateway,
            config,
            admin,
            _stop: stop.drop_guard(),
        }
    }

    /// The file of the engine.
    pub(crate) fn store(&self) -> PathBuf {
        self.scratch.path().join("data/fanwise.redb")
    }

    pub(crate) async fn serve(&self) -> Process {
        self.serve_with(&[]).await
    }

    pub(crate) async fn serve_with(&self, variables: &[(&str, &str)]) -> Process {
        self.ready(fanwise(&["serve", "--config", &self.config], variables))
            .await
    }

    /// Serves with another build of Fanwise.
    pub(crate) async fn serve_by(&self, program: &Path) -> Process {
        let arguments = ["serve", "--config", &self.config];
        self.ready(Process::start(program, &arguments, &[], b""))
            .await
    }

    /// No file of this process may become longer than this many KiB, until the limit is lifted.
    async fn serve_on_a_disk_of(&self, kib: u32) -> Process {
        // With the signal ignored, a write past the limit fails as on a full disk.
        let script = format!("trap '' XFSZ; ulimit -S -f {kib}; exec \"$0\" serve --config \"$1\"");
        let program = env!("CARGO_BIN_EXE_fanwise");
        let arguments = ["-c", &script, program, &self.config];
        self.ready(Process::start(Path::new("/bin/bash"), &arguments, &[], b""))
            .await
    }

    async fn ready(&self, mut process: Process) -> Process {
        process
            .until_prints("ready: jobs are taken", Duration::from_secs(30))
            .await;
        process
    }

    /// One request to the HTTP interface: the status, and the unparsed answer.
    pub(crate) async fn request(&self, port: u16, head: &str, body: &[u8]) -> (u16, String) {
        let answer = String::from_utf8(self.raw(port, head, body).await).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer)
    }

    async fn raw(&self, port: u16, head: &str, body: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let head = format!(
            "{head} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        answer
    }

    pub(crate) async fn run(&self, arguments: &[&str], input: &[u8]) -> Finished {
        let arguments = [arguments, &["--config", &self.config]].concat();
        run_fanwise(&arguments, &[], input, BOUND).await
    }

    pub(crate) async fn json(&self, arguments: &[&str]) -> Value {
        let finished = self.run(&[arguments, &["--json"]].concat(), b"").await;
        assert_eq!(finished.code, Some(0), "{arguments:?}: {}", finished.stderr);
        serde_json::from_str(&finished.stdout).unwrap()
    }

    /// Submits a text to these recipients.
    pub(crate) async fn send(&self, key: &str, recipients: &[String], more: &[&str]) {
        let list = recipients.join("\n");
        let sent = self.run(&send_text(key, more), list.as_bytes()).await;
        assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    }

    pub(crate) async fn completed(&self, key: &str) -> Value {
        until("completion of the job", BOUND, async || {
            let finished = self.run(&["job", "show", key, "--json"], b"").await;
            let record: Value = serde_json::from_str(&finished.stdout).ok()?;
            (record["state"] == "completed").then_some(record)
        })
        .await
    }

    pub(crate) fn accepted_once(&self) -> BTreeSet<String> {
        let accepted = self.mock.accepted();
        let new: Vec<_> = accepted.into_iter().filter(|entry| !entry.replay).collect();
        let unique: BTreeSet<_> = new.iter().map(|entry| entry.recipient.clone()).collect();
        assert_eq!(unique.len(), new.len(), "a recipient got it twice");
        unique
    }
}

/// The process is killed in the middle, again and again: every accepted recipient gets its message
/// once.
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
    let list = [good.as_slice(), &bad].concat();
    place.send("k", &list, &[]).await;
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
    // Recipients in a call when the process was killed may have got it, as far as it knows.
    let count = |outcome: &str| record["accounts"][outcome].as_u64().unwrap();
    assert_eq!(count("failed") + count("uncertain"), 10, "{record}");
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

/// Without certificates no https target can be verified. The start fails and says so, before the
/// first call.
#[tokio::test(flavor = "multi_thread")]
async fn serve_does_not_start_without_the_certificates_that_it_needs() {
    let place = Place::new("serve-trust").await;
    let url = ("FANWISE_TARGETS__IM__URL", "https://127.0.0.1:1");
    let none = [
        ("SSL_CERT_FILE", "/dev/null"),
        ("SSL_CERT_DIR", "/dev/null"),
    ];
    let variables = [&[url][..], &none].concat();
    let arguments = ["serve", "--config", &place.config];
    let finished = run_fanwise(&arguments, &variables, b"", BOUND).await;
    assert_eq!(finished.code, Some(69), "{}", finished.stderr);
    let what = "the certificates that https servers are verified with cannot be loaded";
    assert!(finished.stderr.contains(what), "{}", finished.stderr);
}

/// On a full disk jobs are refused with the reason, and no accepted job is lost. When there is
/// space again, everything continues by itself.
#[tokio::test(flavor = "multi_thread")]
async fn serve_refuses_jobs_while_the_disk_is_full() {
    const RECIPIENTS: usize = 400;
    let place = Place::new("serve-full").await;
    // So slow that accepted jobs stay on the disk.
    place.mock.patch_faults(&json!({"latency": "1s"})).unwrap();
    // No more than the log takes, and a little.
    let process = place.serve_on_a_disk_of(9 * 1024).await;
    let users = |number: usize| -> Vec<_> {
        (0..RECIPIENTS)
            .map(|user| format!("{number}-{user}-{}", "x".repeat(230)))
            .collect()
    };
    let submit = async |number: usize| {
        let job = json!({"v": 1, "client_msg_no": format!("job-{number}"),
            "audience": {"users": users(number)}, "message": {"type": "text", "text": "hello"}});
        let body = job.to_string().into_bytes();
        place.request(place.gateway, "POST /v1/jobs", &body).await
    };
    let send = async |number: usize| {
        let key = format!("job-{number}");
        let send = [
            "send",
            "--client-msg-no",
            &key,
            "--text",
            "hello",
            "--file",
            "-",
        ];
        place.run(&send, users(number).join("\n").as_bytes()).await
    };
    // Deliveries free space now and then, so each kind of request is repeated until it is refused.
    let mut accepted = 0;
    let (status, answer) = loop {
        assert!(accepted < 400, "the disk does not get full");
        match submit(accepted).await {
            (202, _) => accepted += 1,
            refused => break refused,
        }
    };
    assert!(accepted > 0);
    assert_eq!(status, 503, "{answer}");
    assert!(answer.contains("application/problem+json"), "{answer}");
    assert!(
        answer.contains("disk of the data folder is full"),
        "{answer}"
    );
    assert!(answer.contains("retry-after: 1"), "{answer}");
    let refused = loop {
        assert!(accepted < 400, "the disk does not get full");
        match send(accepted).await {
            accepts if accepts.code == Some(0) => accepted += 1,
            refused => break refused,
        }
    };
    assert_eq!(refused.code, Some(75), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("folder is full"),
        "{}",
        refused.stderr
    );
    let log = process.stderr();
    assert!(log.contains("the disk of the data folder is full"), "{log}");
    let (alive, _) = place.request(place.admin, "GET /livez", b"").await;
    assert_eq!(alive, 200);
    let blocked = async |value: u8| {
        let (_, metrics) = place.request(place.admin, "GET /metrics", b"").await;
        let wanted = format!("\nfanwise_broker_blocked{{role=\"worker\"}} {value}\n");
        metrics.contains(&wanted).then_some(())
    };
    until("the metric of a full disk", BOUND, async || {
        if submit(accepted).await.0 == 202 {
            accepted += 1;
        }
        blocked(1).await
    })
    .await;

    let pid = process.pid().to_string();
    let lifted = Command::new("prlimit")
        .args(["--pid", &pid, "--fsize=unlimited:unlimited"])
        .status();
    assert!(lifted.unwrap().success());
    until("acceptance of a job", BOUND, async || {
        (submit(accepted).await.0 == 202).then_some(())
    })
    .await;
    place.mock.patch_faults(&json!({"latency": "0ms"})).unwrap();
    for number in 0..=accepted {
        let key = format!("job-{number}");
        let record = place.completed(&key).await;
        assert_eq!(record["accounts"]["sent"], RECIPIENTS, "{record}");
        assert_eq!(place.json(&["job", "verify", &key]).await["exact"], true);
    }
    assert_eq!(place.accepted_once().len(), (accepted + 1) * RECIPIENTS);
    until("its end", BOUND, async || blocked(0).await).await;
    let log = process.stderr();
    assert!(log.contains("writable again"), "{log}");
}

/// A commit writes what it changes, and not the pages around it. The bounds are a little above what
/// was counted when they were written; `tests/bench engine idle` measures a release build.
#[tokio::test(flavor = "multi_thread")]
async fn serve_writes_few_bytes() {
    const RECIPIENTS: usize = 5_000;
    const JOBS: usize = 40;
    let place = Place::new("serve-writes").await;
    let process = place.serve().await;
    let written = async || -> f64 {
        let (_, metrics) = place.request(place.admin, "GET /metrics", b"").await;
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix("fanwise_store_written_bytes_total "));
        line.unwrap().parse().unwrap()
    };
    let send = async |key: &str, users: &[String]| {
        place.send(key, users, &[]).await;
        place.completed(key).await;
    };
    // The first commits of a process go into the store.
    send("first", &users(1)).await;
    let before = written().await;
    send("big", &users(RECIPIENTS)).await;
    let each = (written().await - before) / RECIPIENTS as f64;
    let before = written().await;
    for number in 0..JOBS {
        send(&format!("small-{number}"), &users(1)).await;
    }
    let of_job = (written().await - before) / JOBS as f64;
    println!("{each:.0} bytes a recipient, {of_job:.0} bytes a job of one");
    assert!(each <= 150.0, "{each} bytes a recipient");
    assert!(of_job <= 4096.0, "{of_job} bytes a job of one recipient");
    drop(process);
}

/// With a folder on a full disk the start fails and says that the disk is full.
#[tokio::test(flavor = "multi_thread")]
async fn serve_does_not_start_on_a_full_disk() {
    let place = Place::new("serve-no-space").await;
    let script = "trap '' XFSZ; ulimit -S -f 8; exec \"$0\" serve --config \"$1\"";
    let arguments = ["-c", script, env!("CARGO_BIN_EXE_fanwise"), &place.config];
    let finished = Process::start(Path::new("/bin/bash"), &arguments, &[], b"")
        .finish(BOUND)
        .await;
    assert_eq!(finished.code, Some(69), "{}", finished.stderr);
    assert!(finished.stderr.contains("is full"), "{}", finished.stderr);
    // The failed start leaves nothing that prevents the next one.
    drop(place.serve().await);
}

/// A store that is damaged or missing leads to an error, not to a crash and not to silence.
#[tokio::test(flavor = "multi_thread")]
async fn serve_says_what_is_wrong_with_its_store() {
    let place = Place::new("serve-damaged").await;
    let process = place.serve().await;
    process.terminate();
    let fresh = process.finish(BOUND).await;
    assert_eq!(fresh.code, Some(0), "{}", fresh.stderr);
    assert!(!fresh.stderr.contains("used before"), "{}", fresh.stderr);

    let store = place.scratch.path().join("data/fanwise.redb");
    let whole = std::fs::read(&store).unwrap();
    std::fs::write(&store, &whole[..whole.len() / 2]).unwrap();
    let arguments = ["serve", "--config", &place.config];
    let damaged = run_fanwise(&arguments, &[], b"", BOUND).await;
    assert_eq!(damaged.code, Some(69), "{}", damaged.stderr);
    let what = "fanwise.redb cannot be opened; if it is damaged, move it away";
    assert!(damaged.stderr.contains(what), "{}", damaged.stderr);

    for gone in [true, false] {
        match gone {
            true => std::fs::remove_file(&store).unwrap(),
            false => std::fs::write(&store, b"").unwrap(),
        }
        let process = place.serve().await;
        process.terminate();
        let new = process.finish(BOUND).await;
        assert!(
            new.stderr
                .contains("its store is gone: fanwise starts with an empty one"),
            "{}",
            new.stderr
        );
    }
}

/// If the session that a process was started in ends, the process drains; if it was started to
/// survive that, it runs on.
#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_drains_unless_it_is_ignored() {
    let place = Place::new("serve-hangup").await;
    place
        .mock
        .patch_faults(&json!({"latency": "300ms"}))
        .unwrap();
    let process = place.serve().await;
    let send = [
        "send",
        "--client-msg-no",
        "k",
        "--text",
        "hello",
        "--file",
        "-",
    ];
    let list = users(2000).join("\n");
    let sent = place.run(&send, list.as_bytes()).await;
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    until("calls in flight", BOUND, async || {
        (place.mock.stats().accepted > 0).then_some(())
    })
    .await;
    process.hang_up();
    // A service manager sends both.
    process.hang_up();
    let ended = process.finish(BOUND).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("drained"), "{}", ended.stderr);

    // After `nohup` the process runs on, and no call is in doubt. Standard error is gone as well,
    // as when a terminal closes.
    let script = "trap '' HUP; exec \"$0\" serve --config \"$1\" 2> >(exit)";
    let arguments = ["-c", script, env!("CARGO_BIN_EXE_fanwise"), &place.config];
    let mut process = Process::start(Path::new("/bin/bash"), &arguments, &[], b"");
    until("an answer", BOUND, async || {
        TcpStream::connect(("127.0.0.1", place.gateway)).await.ok()
    })
    .await;
    process.hang_up();
    let record = place.completed("k").await;
    assert_eq!(record["accounts"]["sent"], 2000, "{record}");
    assert_eq!(place.accepted_once().len(), 2000);
    assert!(process.is_running());
    process.terminate();
    assert_eq!(process.wait(BOUND).await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mock_ends_in_order_at_a_hangup() {
    let address = format!("127.0.0.1:{}", free_port());
    let mut mock = fanwise(&["mock-im", "--listen", &address], &[]);
    until("an answer", BOUND, async || {
        TcpStream::connect(&address).await.ok()
    })
    .await;
    mock.hang_up();
    assert_eq!(mock.wait(BOUND).await.code(), Some(0));
}

/// All mistakes of a configuration are reported at once, each with its key, before anything is
/// touched.
#[tokio::test(flavor = "multi_thread")]
async fn serve_tells_every_mistake_of_its_configuration() {
    let scratch = Scratch::new("serve-config");
    let config = scratch.write(
        "fanwise.toml",
        r#"
        [embedded]
        dirs = "data"
        [gateway]
        listen = "0.0.0.0:9700"
        [targets.im]
        type = "wukongm"
        "#,
    );
    let arguments = ["serve", "--config", config.to_str().unwrap()];
    let finished = run_fanwise(&arguments, &[], b"", BOUND).await;
    assert_eq!(finished.code, Some(78), "{}", finished.stderr);
    for part in [
        "4 problem(s)",
        "embedded.dirs",
        "`dir`",
        "gateway.token",
        "targets.im.type",
        "targets.im.url: missing",
    ] {
        assert!(
            finished.stderr.contains(part),
            "{part}: {}",
            finished.stderr
        );
    }
}

/// The HTTP interface refuses jobs that AMQP rejects, immediately and with every problem.
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
    let holder = format!("(process {})", process.pid());
    assert!(second.stderr.contains(&holder), "{}", second.stderr);
    let missing = place.run(&["job", "show", "nobody-sent-this"], b"").await;
    assert_eq!(missing.code, Some(69), "{}", missing.stderr);
    assert!(missing.stderr.contains("no job"), "{}", missing.stderr);
    let listed = place.json(&["job", "list"]).await;
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    let watched = place.json(&["job", "watch", "k"]).await;
    assert_eq!(watched["accounts"]["sent"], 2, "{watched}");
    assert_eq!(place.json(&["dead", "list"]).await, json!([]));
    assert_eq!(place.json(&["dead", "rejected"]).await, json!([]));
    let exported = place.run(&["dead", "export", "--format", "csv"], b"").await;
    assert!(
        exported.stdout.starts_with("recipient,"),
        "{}",
        exported.stdout
    );
    drop(process);
    let away = place.run(&["job", "list"], b"").await;
    assert_eq!(away.code, Some(69), "{}", away.stderr);
    assert!(away.stderr.contains("fanwise serve"), "{}", away.stderr);
    assert!(place.scratch.path().join("data").is_dir());
}

/// Stored messages over HTTP, from the command line and as another program requests them.
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
    // It is refused immediately, not after acceptance.
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

/// The first example of the README, with the crash.
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
        assert_eq!(finished.stdout.lines().count(), 1, "{}", finished.stdout);
        assert_eq!(finished.stderr, "");
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

/// On a terminal no line is wider than the terminal, colours can be turned off, and at the end only
/// the report is left.
#[tokio::test(flavor = "multi_thread")]
async fn the_demo_fits_its_terminal() {
    for (columns, colour) in [(80, "NO_COLOR=1"), (120, "NO_COLOR=")] {
        let program = env!("CARGO_BIN_EXE_fanwise");
        // `script` provides a terminal.
        let command = format!(
            "stty cols {columns} rows 40; {colour} exec {program} demo --recipients 6000 --kill"
        );
        let arguments = ["--quiet", "--return", "--command", &command, "/dev/null"];
        let finished = Process::start(Path::new("script"), &arguments, &[], b"")
            .finish(BOUND)
            .await;
        assert_eq!(finished.code, Some(0), "{}", finished.stdout);
        let pieces = pieces(&finished.stdout);
        let (bars, others): (Vec<_>, Vec<_>) =
            pieces.iter().partition(|piece| piece.contains("%  "));
        assert!(bars.len() > 5, "no bar was drawn: {}", finished.stdout);
        for bar in &bars {
            // Each of its rows is filled to the last column, so that the next one begins a new row.
            let bar: Vec<char> = bar.chars().collect();
            let rows: Vec<String> = bar
                .chunks(columns)
                .map(|row| row.iter().collect())
                .collect();
            assert_eq!(rows.len(), 2, "{rows:?}");
            assert!(
                rows[0].contains("%  ") && !rows[1].contains('%'),
                "{rows:?}"
            );
            let under = rows[1].trim_end();
            assert!(under.is_empty() || under.ends_with(" pending"), "{rows:?}");
        }
        // A path may be longer.
        for line in others.iter().filter(|line| !line.contains(program)) {
            assert!(line.chars().count() <= columns, "over {columns}: {line:?}");
        }
        for part in ["/s  ", "s left  (limit 2,500/s)", " duplicate, "] {
            assert!(
                bars.iter().any(|bar| bar.contains(part)),
                "{part}: {bars:?}"
            );
        }
        for part in ["killed the worker", "Accounts: exact"] {
            assert!(
                finished.stdout.contains(part),
                "{part}: {}",
                finished.stdout
            );
        }
    }
}

/// The text that a terminal got, without control sequences, split at each of them and at each end
/// of line.
fn pieces(output: &str) -> Vec<String> {
    let mut text = String::new();
    let mut rest = output.chars();
    while let Some(next) = rest.next() {
        if next == '\u{1b}' {
            // ESC [ parameters letter: it moves the cursor.
            let end = rest.find(char::is_ascii_alphabetic);
            assert_ne!(end, Some('m'), "nothing is coloured: {output}");
            text.push('\n');
        } else {
            text.push(next);
        }
    }
    text.split(['\r', '\n']).map(str::to_owned).collect()
}

/// The demo ignores the environment's settings, reports its progress without a terminal too, and
/// leaves nothing behind, even when it is interrupted.
#[tokio::test(flavor = "multi_thread")]
async fn the_demo_cleans_up_after_itself() {
    let scratch = Scratch::new("demo");
    let folder = scratch.path().to_str().unwrap();
    let variables = [
        ("TMPDIR", folder),
        ("FANWISE_BROKER__URL", "amqp://nowhere"),
        ("FANWISE_WORKER__SLICE_RECIPIENTS", "no number"),
    ];
    let arguments = ["demo", "--recipients", "2000"];
    let finished = run_fanwise(&arguments, &variables, b"", BOUND).await;
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert!(!finished.stdout.contains('\u{1b}') && !finished.stderr.contains('\u{1b}'));
    for part in ["Accounts: exact", "Dead letters:", "Metrics", "Next:"] {
        assert!(
            finished.stdout.contains(part),
            "{part}: {}",
            finished.stdout
        );
    }
    assert!(
        finished.stderr.contains(" of 2,000  "),
        "{}",
        finished.stderr
    );

    let mut process = fanwise(&["demo"], &variables);
    process.until_prints(" of 10,000  ", BOUND).await;
    assert_ne!(running_below(folder), 0);
    process.interrupt();
    assert_eq!(process.wait(BOUND).await.code(), Some(130));
    assert_eq!(running_below(folder), 0);
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0);

    let mut process = fanwise(&["demo", "--stay", "--recipients", "500"], &variables);
    let port = process.until_listens("Console: http://").await;
    let console = page(port, "/").await;
    assert!(console.contains("console/main.js"), "{console}");
    let job = page(port, "/v1/jobs/demo-1").await;
    assert!(job.contains("\"state\":\"completed\""), "{job}");
    process.interrupt();
    assert_eq!(process.wait(BOUND).await.code(), Some(0));
    assert_eq!(running_below(folder), 0);
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0);
}

async fn page(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Processes that have a path below the folder in their arguments.
fn running_below(folder: &str) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap();
    processes
        .filter_map(|process| std::fs::read(process.ok()?.path().join("cmdline")).ok())
        .filter(|line| String::from_utf8_lossy(line).contains(folder))
        .count()
}

/// A copy that is made during a broadcast opens as a store of its own, and finishes the broadcast
/// from where the copy was.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_made_during_a_broadcast_is_whole() {
    let place = Place::new("backup").await;
    place.mock.patch_faults(&json!({"latency": "5ms"})).unwrap();
    let mut process = place.serve().await;
    let list = users(4000);
    place.send("k", &list, &[]).await;
    until("progress", BOUND, async || {
        (place.mock.stats().accepted >= 1000).then_some(())
    })
    .await;
    let kept = tempfile::tempdir().unwrap();
    let copy = kept.path().join("copy.redb");
    let backup = ["backup", copy.to_str().unwrap()];
    let copied = place.run(&backup, b"").await;
    assert_eq!(copied.code, Some(0), "{}", copied.stderr);
    assert!(
        copied.stdout.contains("opens as a store"),
        "{}",
        copied.stdout
    );
    let copied = place.mock.stats().accepted;
    let record = place.completed("k").await;
    assert_eq!(record["accounts"]["sent"], 4000, "{record}");
    // A file that is there stays, unless it is to be replaced.
    let before = std::fs::read(&copy).unwrap();
    let again = place.run(&backup, b"").await;
    assert_eq!((again.code, again.stdout.as_str()), (Some(64), ""));
    assert_eq!(std::fs::read(&copy).unwrap(), before);
    let other = kept.path().join("other.redb");
    std::fs::write(&other, "mine").unwrap();
    let replace = ["backup", "--force", other.to_str().unwrap()];
    let replaced = place.run(&replace, b"").await;
    assert_eq!(replaced.code, Some(0), "{}", replaced.stderr);
    process.kill();
    // Nothing comes from a server that is away, and nothing is left of the attempt.
    let away = place.run(&replace, b"").await;
    assert_eq!(away.code, Some(69), "{}", away.stderr);
    assert!(std::fs::read(&other).unwrap().len() > before.len() / 2);
    assert_eq!(std::fs::read_dir(kept.path()).unwrap().count(), 2);

    let restored = Place::new("restored").await;
    let data = restored.scratch.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::copy(&copy, data.join("fanwise.redb")).unwrap();
    let _process = restored.serve().await;
    let record = restored.completed("k").await;
    assert_eq!(record["accounts"]["sent"], 4000, "{record}");
    assert_eq!(restored.json(&["job", "verify", "k"]).await["exact"], true);
    // Those that were settled when the copy was made are not sent to again.
    let again = restored.mock.stats().accepted;
    assert!(
        copied < 4000 && (1..4000).contains(&again),
        "{copied} {again}"
    );
}
