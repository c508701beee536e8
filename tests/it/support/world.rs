//! Starts one broadcast system under test: a mock IM server, a configuration with names of its own
//! on the shared servers, worker processes, and the mock's log for comparisons.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use fanwise_mock_im::{Entry, MockHandle, Settings, Version};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::mock;
use super::process::{Finished, Process, fanwise, run_fanwise};
use super::scratch::Scratch;
use super::servers::{amqp_url, redis_url};
use super::wait::until;

/// Longest wait for a job of a test.
pub(crate) const BOUND: Duration = Duration::from_secs(90);

pub(crate) struct World {
    pub(crate) mock: MockHandle,
    /// Where the mock listens.
    pub(crate) address: SocketAddr,
    pub(crate) name: String,
    pub(crate) amqp: String,
    pub(crate) redis: String,
    /// Deleted with the world.
    scratch: Scratch,
    config: PathBuf,
    stop: CancellationToken,
}

/// The parts of a world that differ between tests.
pub(crate) struct Plan {
    pub(crate) amqp: String,
    pub(crate) redis: String,
    pub(crate) mock: Settings,
    /// Lines under `[targets.im]`, besides its address and timeouts; `{address}` is the mock's.
    pub(crate) target: String,
    /// Whether the target's lines contain an address of their own.
    pub(crate) own_url: bool,
    /// Further tables; `{address}` as above.
    pub(crate) more: String,
}

impl Plan {
    /// The shared servers and a WuKongIM v3, which is idempotent on our key; `None` if this machine
    /// has no servers.
    pub(crate) fn shared() -> Option<Self> {
        Some(Self::on(&amqp_url()?, &redis_url()?))
    }

    pub(crate) fn on(amqp: &str, redis: &str) -> Self {
        Self {
            amqp: amqp.to_owned(),
            redis: redis.to_owned(),
            mock: Settings {
                wukongim: Version::V3,
                ..Settings::default()
            },
            target: "type = \"wukongim\"\nversion = \"v3\"\nsender = \"news\"".to_owned(),
            own_url: false,
            more: String::new(),
        }
    }

    /// A WuKongIM v2, which accepts the same message twice.
    pub(crate) fn not_idempotent(mut self) -> Self {
        self.mock.wukongim = Version::V2;
        self.target = "type = \"wukongim\"\nversion = \"v2\"".to_owned();
        self
    }

    pub(crate) async fn start(self, name: &str) -> World {
        let name = format!("{name}-{}-{:x}", std::process::id(), fastrand::u32(..));
        let (address, handle, stop) = mock::start(self.mock).await;
        let scratch = Scratch::new(&name);
        let url = if self.own_url {
            String::new()
        } else {
            format!("url = \"http://{address}\"")
        };
        let filled = |text: &str| text.replace("{address}", &address.to_string());
        let config = format!(
            r#"
            [broker]
            url = "{}"
            namespace = "{name}"
            heartbeat = "2s"
            [ledger]
            url = "{}"
            prefix = "{name}"
            lease = "7s"
            [worker]
            progress_interval = "100ms"
            drain_deadline = "10s"
            [retry]
            delay_min = "1s"
            delay_max = "1s"
            [targets.im]
            {url}
            call_timeout = "3s"
            {}
            {}
            "#,
            self.amqp,
            self.redis,
            filled(&self.target),
            filled(&self.more)
        );
        let config = scratch.write("fanwise.toml", config);
        World {
            mock: handle,
            address,
            name,
            amqp: self.amqp,
            redis: self.redis,
            scratch,
            config,
            stop,
        }
    }
}

impl World {
    pub(crate) fn config(&self) -> &str {
        self.config.to_str().unwrap()
    }

    /// Starts a worker and waits until it is ready.
    pub(crate) async fn worker(&self) -> Worker {
        self.worker_with(&[]).await
    }

    /// Starts a worker with some settings of its own.
    pub(crate) async fn worker_with(&self, variables: &[(&str, &str)]) -> Worker {
        let variables = [&[("FANWISE_ADMIN__LISTEN", "127.0.0.1:0")], variables].concat();
        let mut process = fanwise(&["worker", "--config", self.config()], &variables);
        let admin = process.until_listens("admin port listens").await;
        let bound = Duration::from_secs(60);
        process.until_prints("ready: jobs are taken", bound).await;
        Worker { process, admin }
    }

    /// Starts a gateway with some settings of its own and waits until it is ready.
    pub(crate) async fn gateway(&self, variables: &[(&str, &str)]) -> Gateway {
        let anywhere = [
            ("FANWISE_GATEWAY__LISTEN", "127.0.0.1:0"),
            ("FANWISE_ADMIN__LISTEN", "127.0.0.1:0"),
        ];
        let variables = [&anywhere, variables].concat();
        let mut process = fanwise(&["gateway", "--config", self.config()], &variables);
        let admin = process.until_listens("admin port listens").await;
        let port = process.until_listens("gateway listens").await;
        let gateway = Gateway {
            process,
            port,
            admin,
        };
        gateway.until_ready(true).await;
        gateway
    }

    /// A file of the world, deleted with it.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        self.scratch.write(name, content)
    }

    /// Publishes arbitrary bytes as a job, as a faulty producer does.
    pub(crate) async fn publish_raw(&self, body: &[u8]) {
        self.publish_with(body, lapin::types::FieldTable::default())
            .await;
    }

    /// Publishes a job with these headers.
    pub(crate) async fn publish_with(&self, body: &[u8], headers: lapin::types::FieldTable) {
        use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
        use lapin::{BasicProperties, Connection, ConnectionProperties};
        let connection = Connection::connect(&self.amqp, ConnectionProperties::default())
            .await
            .unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .unwrap();
        let exchange = format!("{}.jobs", self.name);
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_headers(headers);
        let confirm = channel
            .basic_publish(exchange.into(), "normal".into(), options, body, properties)
            .await
            .unwrap()
            .await
            .unwrap();
        assert!(confirm.is_ack() && confirm.take_message().is_none());
    }

    pub(crate) async fn redis_command(&self, arguments: &[&str]) {
        let client = redis::Client::open(self.redis.as_str()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut command = redis::cmd(arguments[0]);
        let () = command
            .arg(&arguments[1..])
            .query_async(&mut connection)
            .await
            .unwrap();
    }

    pub(crate) async fn run_with_environment(
        &self,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Finished {
        let arguments = [arguments, &["--config", self.config()]].concat();
        run_fanwise(&arguments, variables, b"", BOUND).await
    }

    /// Runs one command until it ends.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Finished {
        self.run_with_input(arguments, b"").await
    }

    pub(crate) async fn run_with_input(&self, arguments: &[&str], input: &[u8]) -> Finished {
        let arguments = [arguments, &["--config", self.config()]].concat();
        run_fanwise(&arguments, &[], input, BOUND).await
    }

    /// Runs one command that must succeed and print JSON.
    pub(crate) async fn json(&self, arguments: &[&str]) -> Value {
        let finished = self.run(&[arguments, &["--json"]].concat()).await;
        assert_eq!(finished.code, Some(0), "{arguments:?}: {}", finished.stderr);
        serde_json::from_str(&finished.stdout)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}", finished.stdout))
    }

    /// Submits a text to these recipients; returns the job id.
    pub(crate) async fn send(&self, key: &str, recipients: &[String], more: &[&str]) -> String {
        let list = recipients.join("\n");
        let arguments = send_text(key, &[&["--json"], more].concat());
        let finished = self.run_with_input(&arguments, list.as_bytes()).await;
        // 1: some recipients that the command waited for did not get it.
        assert!(matches!(finished.code, Some(0 | 1)), "{}", finished.stderr);
        let answer: Value = serde_json::from_str(&finished.stdout).unwrap();
        answer["job"].as_str().unwrap().to_owned()
    }

    /// The record of a job, if the ledger knows it.
    pub(crate) async fn job(&self, job: &str) -> Option<Value> {
        let finished = self.run(&["job", "show", job, "--json"]).await;
        serde_json::from_str(&finished.stdout).ok()
    }

    /// Waits until a job is completed and proves its accounts.
    pub(crate) async fn completed(&self, job: &str) -> Value {
        let record = until(&format!("completion of job {job}"), BOUND, async || {
            self.job(job)
                .await
                .filter(|record| record["state"] == "completed")
        })
        .await;
        let verified = self.json(&["job", "verify", job]).await;
        assert_eq!(verified["exact"], true, "{verified}");
        record
    }

    /// Dead letters of a job: recipient → (outcome, code).
    pub(crate) async fn dead(&self, job: &str) -> BTreeMap<String, (String, String)> {
        let letters = self.json(&["dead", "list", "--job", job]).await;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let letters = letters.as_array().unwrap().iter();
        letters
            .map(|dead| {
                (
                    text(&dead["recipient"]),
                    (text(&dead["outcome"]), text(&dead["code"])),
                )
            })
            .collect()
    }

    /// How often the mock accepted a message for each recipient; replays are not acceptances.
    pub(crate) fn accepted(&self) -> BTreeMap<String, usize> {
        accepted_by(&self.mock)
    }

    /// Checks that the mock accepted exactly one message for exactly these recipients.
    pub(crate) fn assert_once_each<'a>(&self, recipients: impl IntoIterator<Item = &'a String>) {
        assert_once_each(&self.mock, recipients);
    }

    /// Removes what the test declared on the shared broker.
    pub(crate) async fn end(self) {
        let finished = self.run(&["topology", "delete", "--yes"]).await;
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    }
}

/// How often a mock accepted a message for each recipient; replays are not acceptances.
pub(crate) fn accepted_by(mock: &MockHandle) -> BTreeMap<String, usize> {
    assert!(mock.is_complete());
    let mut accepted = BTreeMap::new();
    for Entry {
        recipient, replay, ..
    } in mock.accepted()
    {
        if !replay {
            *accepted.entry(recipient).or_default() += 1;
        }
    }
    accepted
}

/// Checks that a mock accepted exactly one message for exactly these recipients.
pub(crate) fn assert_once_each<'a>(
    mock: &MockHandle,
    recipients: impl IntoIterator<Item = &'a String>,
) {
    let accepted = accepted_by(mock);
    let mut wrong = String::new();
    let mut expected = 0;
    for recipient in recipients {
        expected += 1;
        match accepted.get(recipient) {
            Some(1) => {}
            count => {
                let _ = write!(wrong, " {recipient}: {}", count.copied().unwrap_or(0));
            }
        }
    }
    assert!(wrong.is_empty(), "not accepted once:{wrong}");
    assert_eq!(
        accepted.len(),
        expected,
        "the mock accepted messages for others too"
    );
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A worker process with its admin port.
pub(crate) struct Worker {
    pub(crate) process: Process,
    admin: u16,
}

impl Worker {
    pub(crate) fn admin_port(&self) -> u16 {
        self.admin
    }

    /// `/metrics`, as metric line → value.
    pub(crate) async fn metrics(&self) -> BTreeMap<String, f64> {
        let text = http_get(self.admin, "/metrics").await.unwrap_or_default();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .filter_map(|line| {
                let (name, value) = line.rsplit_once(' ')?;
                Some((name.to_owned(), value.parse().ok()?))
            })
            .collect()
    }

    /// The first line of the answer of an admin path.
    pub(crate) async fn admin(&self, path: &str) -> Option<String> {
        http_get(self.admin, path)
            .await
            .map(|answer| answer.lines().next().unwrap_or_default().to_owned())
    }

    /// The whole answer of an admin path.
    pub(crate) async fn answer(&self, path: &str) -> Option<String> {
        http_get(self.admin, path).await
    }

    /// Ends it as an orchestrator does, and checks that it drained.
    pub(crate) async fn drain(mut self) {
        self.process.terminate();
        let status = self.process.wait(Duration::from_secs(30)).await;
        assert_eq!(status.code(), Some(0), "{}", self.process.stderr());
    }
}

/// The command that submits a text to the recipients on its standard input.
pub(crate) fn send_text<'a>(key: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["send", "--client-msg-no", key, "--text", "hello"];
    arguments.extend(["--file", "-"]);
    arguments.extend(more);
    arguments
}

/// A gateway process with its ports.
pub(crate) struct Gateway {
    pub(crate) process: Process,
    pub(crate) port: u16,
    pub(crate) admin: u16,
}

impl Gateway {
    pub(crate) async fn until_ready(&self, ready: bool) {
        let expected = if ready { "200" } else { "503" };
        until("readiness", BOUND, async || {
            // The admin port opens beside the other one.
            let told = http_get(self.admin, "/readyz").await?;
            (told.split(' ').nth(1)? == expected).then_some(())
        })
        .await;
    }

    /// Ends it, and waits until it has ended.
    pub(crate) async fn end(mut self) {
        self.process.terminate();
        self.process.wait(Duration::from_secs(30)).await;
    }
}

/// If a test fails, prints the output of its workers.
impl Drop for Worker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.process.stderr();
            let lines: Vec<_> = log.lines().collect();
            let last = lines.len().saturating_sub(60);
            eprintln!(
                "log of worker {}:\n{}",
                self.process.pid(),
                lines[last..].join("\n")
            );
        }
    }
}

pub(crate) async fn http_get(port: u16, path: &str) -> Option<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

/// A time in an answer, in milliseconds since 1970.
pub(crate) fn milliseconds(time: &Value) -> u64 {
    let time: jiff::Timestamp = time.as_str().unwrap().parse().unwrap();
    time.as_millisecond().cast_unsigned()
}

/// A port for a process that is started again on the same one, and for one where nobody listens. It is
/// below the range of outgoing connections, so that no client takes it meanwhile.
pub(crate) fn free_port() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok();
    let first = range.and_then(|range| range.split_whitespace().next()?.parse().ok());
    let end: u16 = first.filter(|first| *first > 17_000).unwrap_or(32_768);
    // No port twice in this process, and others at the same time in other processes.
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let next = || {
        let number = std::process::id() * 64 + GIVEN.fetch_add(1, Ordering::Relaxed);
        15_000 + (number % u32::from(end - 15_000)) as u16
    };
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let ports = std::iter::repeat_with(next);
    ports.take(1000).find(free).expect("a free port")
}

/// `u0` … `u<count-1>`
pub(crate) fn users(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("u{number}")).collect()
}
