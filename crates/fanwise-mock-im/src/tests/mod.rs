//! Tests the mock over real sockets: every protocol rule and every fault at least once.
//!
//! The client here is a few lines over TCP, so that it sees the bytes on the wire: it can tell a
//! reset from a close, and half an answer from none.

mod faults;
mod netease;
mod openim;
mod webhook;
mod wukongim;
mod yunxin;

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Entry, MockHandle, MockIm, Settings, Stats};

/// Longer than any step here takes on a busy machine.
const BOUND: Duration = Duration::from_secs(20);

/// A running mock.
struct Mock {
    addr: SocketAddr,
    handle: MockHandle,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

async fn start(settings: Settings) -> Mock {
    let mock = MockIm::bind(settings).await.unwrap();
    let (addr, handle) = (mock.addr(), mock.handle());
    let stop = CancellationToken::new();
    let running = tokio::spawn(mock.run(stop.clone().cancelled_owned()));
    Mock {
        addr,
        handle,
        stop,
        running,
    }
}

impl Mock {
    /// Sends a request and reads until the server closes the connection.
    async fn raw(&self, request: &Sent<'_>) -> io::Result<Vec<u8>> {
        let mut stream = self.open(request).await;
        let mut received = Vec::new();
        let reading = stream.read_to_end(&mut received);
        tokio::time::timeout(BOUND, reading).await.unwrap()?;
        Ok(received)
    }

    async fn open(&self, request: &Sent<'_>) -> TcpStream {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        stream.write_all(&request.bytes()).await.unwrap();
        stream
    }

    async fn post(&self, path: &str, body: &Value) -> Reply {
        self.send(&Sent::post(path, &body.to_string())).await
    }

    async fn get(&self, path: &str) -> Reply {
        self.send(&Sent::get(path)).await
    }

    async fn send(&self, request: &Sent<'_>) -> Reply {
        Reply::parse(&self.raw(request).await.unwrap())
    }

    async fn set(&self, faults: Value) {
        let reply = self.post("/_mock/faults", &faults).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
    }

    /// Waits until the counters meet the condition.
    async fn until(&self, what: &str, wanted: impl Fn(&Stats) -> bool) {
        let begun = Instant::now();
        while !wanted(&self.handle.stats()) {
            assert!(begun.elapsed() < BOUND, "{what}: {:?}", self.handle.stats());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn accepted_by(&self, recipient: &str) -> Vec<Entry> {
        self.handle.accepted_by(recipient)
    }

    async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(BOUND, self.running)
            .await
            .unwrap()
            .unwrap();
    }
}

/// A request.
struct Sent<'a> {
    method: &'a str,
    path: &'a str,
    headers: Vec<(&'a str, &'a str)>,
    body: String,
}

impl<'a> Sent<'a> {
    fn post(path: &'a str, body: &str) -> Sent<'a> {
        Sent {
            method: "POST",
            path,
            headers: Vec::new(),
            body: body.to_owned(),
        }
    }

    fn get(path: &'a str) -> Sent<'a> {
        Sent {
            method: "GET",
            ..Sent::post(path, "")
        }
    }

    fn with(mut self, name: &'a str, value: &'a str) -> Sent<'a> {
        self.headers.push((name, value));
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut head = format!(
            "{} {} HTTP/1.1\r\nhost: mock\r\nconnection: close\r\ncontent-length: {}\r\n",
            self.method,
            self.path,
            self.body.len()
        );
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        format!("{head}\r\n{}", self.body).into_bytes()
    }
}

/// An answer.
#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn parse(received: &[u8]) -> Reply {
        let text = String::from_utf8(received.to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        Reply {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head: head.to_ascii_lowercase(),
            body: body.to_owned(),
        }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    fn has(&self, header: &str) -> bool {
        self.head.lines().any(|line| line == header)
    }

    /// The length in the headers.
    fn announced(&self) -> usize {
        let length = |line: &str| line.strip_prefix("content-length: ")?.parse().ok();
        self.head.lines().find_map(length).unwrap()
    }
}

/// A message to one user, in a form that v1, v2 and v3 accept.
fn message(uid: &str, client_msg_no: &str) -> Value {
    json!({
        "header": { "no_persist": 0, "red_dot": 1, "sync_once": 0 },
        "client_msg_no": client_msg_no,
        "from_uid": "news",
        "channel_id": uid,
        "channel_type": 1,
        "payload": "aGVsbG8=",
    })
}

fn with(mut message: Value, key: &str, value: Value) -> Value {
    message[key] = value;
    message
}

/// A path in the temporary directory that no other test uses.
fn scratch_file(name: &str) -> std::path::PathBuf {
    let name = format!("fanwise-mock-{name}-{:016x}", fastrand::u64(..));
    std::env::temp_dir().join(name)
}
