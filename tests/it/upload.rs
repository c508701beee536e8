//! Tests the write side of the HTTP interface: long lists, all or nothing; repeats and conflicts;
//! waiting; overload; slow callers and arbitrary input.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fanwise::domain::ids::SliceId;
use fanwise::domain::job::{Context, Job, together};
use fanwise::domain::lane::Lane;
use fanwise::domain::slice::{Head, Shape, Slice};
use fanwise::ports::{Broker as _, Outgoing, Publisher as _, Route, Session as _};
use fanwise_mock_im::{MockHandle, Settings, Version};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::mock;
use crate::support::process::{Finished, Process, fanwise, resident_kib, run_fanwise};
use crate::support::relay::{Relay, Way};
use crate::support::scratch::Scratch;
use crate::support::servers::{PrivateRabbit, redis_url};
use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, World, free_port, users};

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Answer {
    fn parse(text: &str) -> Option<Self> {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers = lines.filter_map(|line| {
            let (name, value) = line.split_once(": ")?;
            Some((name.to_ascii_lowercase(), value.to_owned()))
        });
        Some(Self {
            status,
            headers: headers.collect(),
            body: body.to_owned(),
        })
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn is_problem(&self) -> bool {
        let kind = self.headers.get("content-type").map(String::as_str);
        kind == Some("application/problem+json") && self.json()["status"] == self.status
    }
}

/// A request with a body of known length, on a connection of its own.
async fn ask(port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let answer = try_ask(port, method, path, headers, body).await;
    answer.unwrap_or_else(|| panic!("no answer to {method} {path}"))
}

/// `None` if nothing listens yet, or if the server is killed.
async fn try_ask(
    port: u16,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Option<Answer> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    for (name, value) in headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    let _ = write!(head, "Content-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    // A server that has refused may not read the whole body.
    let _ = stream.write_all(body).await;
    answer(&mut stream).await
}

/// The answer of a server that closes the connection after it; `None` from a server that is killed.
async fn answer(stream: &mut TcpStream) -> Option<Answer> {
    let mut text = Vec::new();
    let read = tokio::time::timeout(BOUND, stream.read_to_end(&mut text));
    // A reset after the answer ends it.
    let _ = read.await.expect("an answer in time");
    Answer::parse(&String::from_utf8_lossy(&text))
}

fn spec(key: &str) -> String {
    json!({"v": 1, "client_msg_no": key, "message": {"type": "text", "text": "hello"}}).to_string()
}

pub(crate) fn job(key: &str, text: &str, users: &[&str]) -> String {
    json!({"v": 1, "client_msg_no": key, "audience": {"users": users},
           "message": {"type": "text", "text": text}})
    .to_string()
}

pub(crate) const JSON: (&str, &str) = ("Content-Type", "application/json");
/// So many that some fall between the two questions of a wait.
const FURTHER_SUBMISSIONS: u64 = 300;
const NDJSON: (&str, &str) = ("Content-Type", "application/x-ndjson");

pub(crate) async fn post(port: u16, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    ask(port, "POST", "/v1/jobs", headers, body).await
}

pub(crate) async fn upload(port: u16, key: &str, kind: &str, list: &[u8]) -> Answer {
    let spec = spec(key);
    let headers = [("Content-Type", kind), ("Fanwise-Job-Spec", &*spec)];
    post(port, &headers, list).await
}

/// `fanwise serve` on the embedded engine, which is all that a gateway needs.
struct Place {
    mock: MockHandle,
    config: String,
    port: u16,
    scratch: Scratch,
    _stop: tokio_util::sync::DropGuard,
}

impl Place {
    async fn new(name: &str, gateway: &str) -> Self {
        let settings = Settings {
            wukongim: Version::V3,
            ..Settings::default()
        };
        let (address, handle, stop) = mock::start(settings).await;
        let scratch = Scratch::new(name);
        let (port, admin) = (free_port(), free_port());
        let folder = scratch.path().join("uploads");
        std::fs::create_dir_all(&folder).unwrap();
        let config = format!(
            r#"
            [embedded]
            dir = {:?}
            [gateway]
            listen = "127.0.0.1:{port}"
            upload_dir = {folder:?}
            {gateway}
            [admin]
            listen = "127.0.0.1:{admin}"
            [targets.im]
            type = "wukongim"
            version = "v3"
            sender = "news"
            url = "http://{address}"
            call_timeout = "3s"
            "#,
            scratch.path().join("data"),
        );
        let config = scratch.write("fanwise.toml", config);
        Self {
            mock: handle,
            config: config.to_str().unwrap().to_owned(),
            port,
            scratch,
            _stop: stop.drop_guard(),
        }
    }

    async fn serve(&self) -> Process {
        let mut process = fanwise(&["serve", "--config", &self.config], &[]);
        let bound = Duration::from_secs(30);
        process.until_prints("ready: jobs are taken", bound).await;
        let port = self.port;
        let body = job("dry", "x", &["u"]);
        until("a gateway that accepts", bound, async || {
            let dry = ask(
                port,
                "POST",
                "/v1/jobs?dry_run=true",
                &[JSON],
                body.as_bytes(),
            );
            (dry.await.status == 200).then_some(())
        })
        .await;
        process
    }

    async fn run(&self, arguments: &[&str], input: &[u8]) -> Finished {
        let arguments = [arguments, &["--config", &self.config]].concat();
        run_fanwise(&arguments, &[], input, BOUND).await
    }

    async fn completed(&self, key: &str) -> Value {
        completed(self.port, key).await
    }

    async fn jobs(&self) -> usize {
        let jobs = ask(self.port, "GET", "/v1/jobs", &[], b"").await.json();
        jobs["jobs"].as_array().unwrap().len()
    }

    /// Checks that the folder of uploads is empty.
    fn nothing_is_left(&self) {
        let folder = self.scratch.path().join("uploads");
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0);
    }
}

fn job_id(key: &str) -> String {
    fanwise::domain::ids::JobId::of("default", key).to_string()
}

async fn completed(port: u16, key: &str) -> Value {
    let path = format!("/v1/jobs/{}", job_id(key));
    until("completion of the job", BOUND, async || {
        let record = ask(port, "GET", &path, &[], b"").await;
        let record = (record.status == 200).then(|| record.json())?;
        (record["state"] == "completed").then_some(record)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_taken_in_every_form() {
    let place = Place::new("upload-forms", "").await;
    let _process = place.serve().await;
    let lists = [
        ("lines", "text/plain", "a1\n# no\na2\n"),
        (
            "csv",
            "text/csv; charset=utf-8",
            "name,uid\nAna,b1\nBob,b2\n",
        ),
        (
            "ndjson",
            "application/x-ndjson",
            "\"c1\"\n{\"id\":\"c2\"}\n",
        ),
    ];
    for (key, kind, list) in lists {
        let taken = upload(place.port, key, kind, list.as_bytes()).await;
        assert_eq!(taken.status, 202, "{taken:?}");
        assert_eq!(taken.json()["recipients"], 2, "{taken:?}");
        let location = format!("/v1/jobs/{}", job_id(key));
        assert_eq!(taken.headers["location"], location);
    }
    let job = json!({"v": 1, "message": {"type": "text", "text": "hello {name}", "vars": {"name": "you"}},
                     "audience": {"exclude": ["d3"]}});
    let form = format!(
        "--b\r\nContent-Disposition: form-data; name=\"job\"\r\n\r\n{job}\r\n\
         --b\r\nContent-Disposition: form-data; name=\"audience\"; filename=\"x.ndjson\"\r\n\r\n\
         {{\"id\":\"d1\",\"vars\":{{\"name\":\"Ana\"}}}}\n\"d2\"\n\"d3\"\r\n--b--\r\n"
    );
    let kind = ("Content-Type", "multipart/form-data; boundary=b");
    let key = ("Idempotency-Key", "\"form\"");
    let taken = post(place.port, &[kind, key], form.as_bytes()).await;
    assert_eq!(
        (taken.status, &taken.json()["recipients"]),
        (202, &json!(2)),
        "{taken:?}"
    );
    // The other columns of a CSV are values, if the request says so.
    let spec = json!({"v": 1, "client_msg_no": "vars",
                      "message": {"type": "text", "text": "hello {{ name }}"}})
    .to_string();
    let headers = [("Content-Type", "text/csv"), ("Fanwise-Job-Spec", &*spec)];
    let (path, csv) = ("/v1/jobs?vars=true", "name,uid\nAna,e1\nBob,e2\n");
    let taken = ask(place.port, "POST", path, &headers, csv.as_bytes()).await;
    assert_eq!(taken.status, 202, "{taken:?}");
    let headers = [("Content-Type", "text/plain"), ("Fanwise-Job-Spec", &*spec)];
    let refused = ask(place.port, "POST", path, &headers, b"e1\n").await;
    assert!(refused.status == 400 && refused.is_problem(), "{refused:?}");
    for key in ["lines", "csv", "ndjson", "form", "vars"] {
        assert_eq!(place.completed(key).await["accounts"]["sent"], 2);
    }
    let accepted = place.mock.accepted();
    let to_bob = accepted.iter().find(|entry| entry.recipient == "e2");
    assert!(to_bob.is_some_and(|entry| entry.payload.contains("hello Bob")));
    let mut got: Vec<_> = accepted.into_iter().map(|entry| entry.recipient).collect();
    got.sort();
    assert_eq!(
        got,
        ["a1", "a2", "b1", "b2", "c1", "c2", "d1", "d2", "e1", "e2"]
    );
    place.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_with_a_bad_line_is_refused_as_a_whole() {
    let place = Place::new("upload-bad", "upload_bytes_max = 1048576").await;
    let _process = place.serve().await;
    let mut list = String::new();
    for number in 1..=50_000 {
        match number % 1000 {
            7 => list.push_str("{\"x\":1}\n"),
            _ => drop(writeln!(list, "\"u{number}\"")),
        }
    }
    let bad = upload(place.port, "bad", "application/x-ndjson", list.as_bytes()).await;
    assert_eq!(bad.status, 400, "{bad:?}");
    let problem = bad.json();
    assert_eq!(problem["bad_lines"], 50, "{problem}");
    let told = problem["problems"].as_array().unwrap();
    assert_eq!(told.len(), 20);
    assert_eq!(
        (&told[0]["field"], &told[19]["field"]),
        (&json!("line 7"), &json!("line 19007"))
    );

    let empty = upload(place.port, "bad", "text/plain", b"# nobody\n").await;
    assert_eq!(
        empty.json()["problems"][0]["field"],
        "audience",
        "{empty:?}"
    );
    let large = upload(place.port, "bad", "text/plain", &vec![b'u'; 1_100_000]).await;
    assert_eq!(large.status, 413, "{large:?}");
    let headers = [NDJSON, ("Fanwise-Job-Spec", "{\"v\":2,\"colour\":1}")];
    let wrong = post(place.port, &headers, b"\"u1\"\n").await;
    let fields: Vec<_> = wrong.json()["problems"]
        .as_array()
        .unwrap()
        .iter()
        .map(|problem| problem["field"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(wrong.status, 400);
    assert!(
        ["v", "client_msg_no", "message", "colour"]
            .iter()
            .all(|field| fields.iter().any(|it| it == field)),
        "{fields:?}"
    );
    let missing = post(place.port, &[NDJSON], b"\"u1\"\n").await;
    assert_eq!(
        missing.json()["problems"][0]["field"],
        "Fanwise-Job-Spec",
        "{missing:?}"
    );
    let other = post(place.port, &[("Content-Type", "text/html")], b"x").await;
    assert_eq!(other.status, 415, "{other:?}");
    assert!(
        [bad, empty, large, wrong, missing, other]
            .iter()
            .all(Answer::is_problem)
    );
    assert_eq!(place.jobs().await, 0);
    place.nothing_is_left();
}

/// An upload that breaks off sends nothing to any recipient.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_disconnects_leaves_nothing_behind() {
    /// Files of the copy of the dead letters.
    const COPY: usize = 2;
    let place = Place::new("upload-gone", "").await;
    let process = place.serve().await;
    let spec = spec("gone");
    for framing in ["Content-Length: 1000000", "Transfer-Encoding: chunked"] {
        let mut stream = TcpStream::connect(("127.0.0.1", place.port)).await.unwrap();
        let head = format!(
            "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n\
             Fanwise-Job-Spec: {spec}\r\n{framing}\r\n\r\n"
        );
        let chunk = if framing.starts_with("Transfer") {
            "6\r\nu1\nu2\n\r\n"
        } else {
            "u1\nu2\n"
        };
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(chunk.as_bytes()).await.unwrap();
        let opened = format!("/proc/{}/fd", process.pid());
        let kept = async || {
            let files = std::fs::read_dir(&opened).unwrap().flatten();
            let links = files.filter_map(|file| std::fs::read_link(file.path()).ok());
            links
                .filter(|link| link.to_string_lossy().contains("/uploads/"))
                .count()
        };
        until("the list on its way", BOUND, async || {
            (kept().await == COPY + 1).then_some(())
        })
        .await;
        place.nothing_is_left();
        drop(stream);
        until("the end of the upload", BOUND, async || {
            (kept().await == COPY).then_some(())
        })
        .await;
    }
    // The key is free for the next caller.
    let taken = upload(place.port, "gone", "text/plain", b"u3\n").await;
    assert_eq!(taken.status, 202, "{taken:?}");
    assert_eq!(place.completed("gone").await["accounts"]["total"], 1);
    assert_eq!(place.mock.accepted().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_is_the_same_job() {
    let place = Place::new("upload-key", "").await;
    let _process = place.serve().await;
    let wait = ("Prefer", "respond-async, wait=20");
    let first = post(
        place.port,
        &[JSON, wait],
        job("k", "hello", &["u1", "u2"]).as_bytes(),
    )
    .await;
    assert_eq!(first.status, 200, "{first:?}");
    assert_eq!(first.headers["preference-applied"], "wait=20");
    assert_eq!(first.json()["standing"]["state"], "completed");
    assert_eq!(first.json()["standing"]["accounts"]["sent"], 2);

    let again = post(
        place.port,
        &[JSON],
        job("k", "hello", &["u1", "u2"]).as_bytes(),
    )
    .await;
    assert_eq!(
        (again.status, &again.json()["job"]),
        (200, &first.json()["job"]),
        "{again:?}"
    );
    assert_eq!(
        again.json()["standing"]["accounts"]["total"],
        2,
        "{again:?}"
    );
    let other = post(place.port, &[JSON], job("k", "bye", &["u1"]).as_bytes()).await;
    assert_eq!(
        (other.status, &other.json()["job"]),
        (409, &first.json()["job"]),
        "{other:?}"
    );
    assert!(other.is_problem());
    let more = job("k", "hello", &["u1", "u3"]);
    let more = post(place.port, &[JSON, wait], more.as_bytes()).await;
    assert_eq!(more.json()["standing"]["accounts"]["sent"], 3, "{more:?}");
    assert_eq!(
        more.json()["standing"]["accounts"]["duplicate"],
        1,
        "{more:?}"
    );

    // A key in the header counts if the body has none.
    let without = r#"{"v":1,"audience":{"users":["u1"]},"message":{"type":"text","text":"x"}}"#;
    let none = post(place.port, &[JSON], without.as_bytes()).await;
    assert_eq!(
        (none.status, &none.json()["problems"][0]["field"]),
        (400, &json!("client_msg_no"))
    );
    let keyed = post(
        place.port,
        &[JSON, ("Idempotency-Key", "h")],
        without.as_bytes(),
    )
    .await;
    assert_eq!(
        (keyed.status, &keyed.json()["job"]),
        (202, &json!(job_id("h"))),
        "{keyed:?}"
    );
    let both = job("own", "x", &["u1"]);
    let both = post(
        place.port,
        &[JSON, ("Idempotency-Key", "h")],
        both.as_bytes(),
    )
    .await;
    assert_eq!(both.json()["job"], job_id("own"), "{both:?}");

    let dry = job("dry", "x", &["u1"]);
    let dry = ask(
        place.port,
        "POST",
        "/v1/jobs?dry_run=true",
        &[JSON],
        dry.as_bytes(),
    )
    .await;
    assert_eq!(
        (dry.status, &dry.json()["dry_run"]),
        (200, &json!(true)),
        "{dry:?}"
    );
    let slip = ask(
        place.port,
        "POST",
        "/v1/jobs?dry-run=true",
        &[JSON],
        job("dry", "x", &["u1"]).as_bytes(),
    )
    .await;
    assert!(slip.status == 400 && slip.is_problem(), "{slip:?}");
    assert_eq!(
        ask(
            place.port,
            "GET",
            &format!("/v1/jobs/{}", job_id("dry")),
            &[],
            b""
        )
        .await
        .status,
        404
    );
}

/// A job that was completed before is completed again only when the further recipients are counted,
/// however the waiting and the intake of the job meet.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_further_recipients_counts_them() {
    let place = Place::new("upload-further", "").await;
    let _process = place.serve().await;
    for number in 1..=FURTHER_SUBMISSIONS {
        let more = job("grows", "hello", &[&format!("u{number}")]);
        let more = post(place.port, &[JSON, ("Prefer", "wait=20")], more.as_bytes()).await;
        let standing = &more.json()["standing"];
        assert_eq!(
            (
                more.status,
                &standing["accounts"]["sent"],
                &standing["pending"]
            ),
            (200, &json!(number), &json!(0)),
            "{more:?}"
        );
    }
}

/// The answer arrives after the given time with the accounts so far, if the job is not completed
/// before.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_a_job_has_a_bound() {
    let place = Place::new("upload-wait", "wait_max = \"1s\"").await;
    let _process = place.serve().await;
    place
        .mock
        .patch_faults(&json!({"latency": "2500ms"}))
        .unwrap();
    let began = Instant::now();
    let slow = job("slow", "x", &["u1"]);
    let slow = post(place.port, &[JSON, ("Prefer", "wait=60")], slow.as_bytes()).await;
    assert_eq!(
        (slow.status, slow.headers["preference-applied"].as_str()),
        (202, "wait=1"),
        "{slow:?}"
    );
    assert_eq!(slow.json()["standing"]["pending"], 1, "{slow:?}");
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(place.completed("slow").await["accounts"]["sent"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_callers_are_cut_off() {
    let place = Place::new("upload-slow", "patience = \"1s\"\nconnections_max = 8").await;
    let _process = place.serve().await;
    // Nothing, half a method, half a head.
    for beginning in ["", "P", "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\n"] {
        let mut stream = TcpStream::connect(("127.0.0.1", place.port)).await.unwrap();
        stream.write_all(beginning.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(BOUND, stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "{beginning:?} is still waited for");
        assert!(
            !rest.starts_with(b"HTTP/1.1 2"),
            "{}",
            String::from_utf8_lossy(&rest)
        );
    }
    // A body that arrives slowly.
    let mut stream = TcpStream::connect(("127.0.0.1", place.port)).await.unwrap();
    let head = "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                Content-Length: 5000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut reading, mut writing) = stream.into_split();
    let dripping = tokio::spawn(async move {
        while writing.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    let mut text = String::new();
    let ended = tokio::time::timeout(BOUND, reading.read_to_string(&mut text)).await;
    assert!(ended.is_ok(), "a dripping body is still waited for");
    let slow = Answer::parse(&text).unwrap();
    assert!(slow.status == 408 && slow.is_problem(), "{slow:?}");
    dripping.abort();
    // None of them still holds a place.
    let fine = post(place.port, &[JSON], job("fine", "x", &["u1"]).as_bytes()).await;
    assert_eq!(fine.status, 202, "{fine:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bounded_number_of_requests_waits() {
    let place = Place::new("upload-full", "requests_max = 2").await;
    let _process = place.serve().await;
    place.mock.patch_faults(&json!({"latency": "2s"})).unwrap();
    let port = place.port;
    let waiting: Vec<_> = ["a", "b"]
        .map(|key| {
            tokio::spawn(async move {
                // A read of the job may have had the last place.
                for _ in 0..1000 {
                    let wait = [JSON, ("Prefer", "wait=20")];
                    let answer = post(port, &wait, job(key, "x", &[key]).as_bytes()).await;
                    if answer.status != 503 {
                        return answer;
                    }
                }
                panic!("no place became free");
            })
        })
        .into();
    let full = until("a full gateway", BOUND, async || {
        let full = ask(port, "GET", "/v1/jobs", &[], b"").await;
        (full.status == 503).then_some(full)
    })
    .await;
    assert!(
        full.is_problem() && full.headers.contains_key("retry-after"),
        "{full:?}"
    );
    assert_eq!(ask(port, "GET", "/livez", &[], b"").await.status, 200);
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap().status, 200);
    }
    assert_eq!(ask(port, "GET", "/v1/jobs", &[], b"").await.status, 200);
}

/// Every request gets an answer, and every refusal has the same format and a reason.
#[tokio::test(flavor = "multi_thread")]
async fn arbitrary_bodies_are_refused_in_one_form() {
    let place = Place::new("upload-fuzz", "").await;
    let mut process = place.serve().await;
    let kinds = prop::sample::select(vec![
        "application/json",
        "application/x-ndjson",
        "text/csv",
        "text/plain",
        "multipart/form-data; boundary=b",
        "multipart/form-data",
        "image/png",
        ";",
    ]);
    let valid = job("f", "x", &["u1"]);
    let form = "--b\r\nContent-Disposition: form-data; name=\"job\"\r\n\r\n{}\r\n--b\r\n";
    let texts = prop::sample::select(vec![
        valid,
        form.to_owned(),
        "\"u1\"\n{".to_owned(),
        "a,b\n\"".to_owned(),
    ]);
    let torn = (
        texts,
        any::<prop::sample::Index>(),
        prop::collection::vec(any::<u8>(), 0..8),
    );
    let torn = torn.prop_map(|(text, at, insert)| {
        let mut bytes = text.into_bytes();
        let at = at.index(bytes.len());
        bytes.splice(at..at, insert);
        bytes
    });
    let bodies = prop_oneof![prop::collection::vec(any::<u8>(), 0..300), torn];
    let specs = prop::sample::select(vec![
        "",
        "{}",
        "e30=",
        "{\"v\":1",
        "{\"audience\":{\"all\":true}}",
        "?",
    ]);
    let queries = prop::sample::select(vec![
        "",
        "?priority=x",
        "?dry_run=true",
        "?%ff",
        "?column=b",
    ]);
    let handle = tokio::runtime::Handle::current();
    let port = place.port;
    tokio::task::block_in_place(|| {
        let mut runner = TestRunner::new(Config {
            cases: 400,
            failure_persistence: None,
            ..Config::default()
        });
        runner
            .run(
                &(kinds, bodies, specs, queries),
                |(kind, body, spec, query)| {
                    let headers = [("Content-Type", kind), ("Fanwise-Job-Spec", spec)];
                    let path = format!("/v1/jobs{query}");
                    let answer = handle.block_on(ask(port, "POST", &path, &headers, &body));
                    prop_assert!(answer.status < 300 || answer.is_problem(), "{answer:?}");
                    prop_assert!(answer.status < 500, "{answer:?}");
                    Ok(())
                },
            )
            .unwrap();
    });
    for (method, path) in [
        ("GET", "/v1/nothing"),
        ("DELETE", "/v1/jobs"),
        ("GET", "/v1/jobs?most=x"),
        ("GET", "/v1/jobs/%ff"),
    ] {
        let refused = ask(port, method, path, &[], b"").await;
        assert!(
            refused.status >= 400 && refused.is_problem(),
            "{method} {path}: {refused:?}"
        );
    }
    let page = post(port, &[JSON, ("Origin", "https://example.com")], b"{}").await;
    assert!(page.status == 403 && page.is_problem(), "{page:?}");
    assert!(process.is_running());
    assert!(
        !process.stderr().contains("panicked"),
        "{}",
        process.stderr()
    );
}

/// The parts of a list are combined on the embedded engine too.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_in_parts_is_sent_to_as_one() {
    let place = Place::new("upload-parts", "").await;
    let _process = place.serve().await;
    let people = users(4500);
    let taken = upload(place.port, "parts", NDJSON.1, &long_list(&people)).await;
    let json = taken.json();
    assert_eq!(
        (taken.status, &json["messages"]),
        (202, &json!(3)),
        "{taken:?}"
    );
    let record = place.completed("parts").await;
    assert_eq!(record["accounts"]["sent"], 4500, "{record}");
    let again = upload(place.port, "parts", NDJSON.1, &long_list(&people)).await;
    assert_eq!(
        (again.status, &again.json()["standing"]["accounts"]["total"]),
        (200, &json!(4500)),
        "{again:?}"
    );
    let accepted = place.mock.accepted();
    assert_eq!(accepted.len(), 4500);
    place.nothing_is_left();
}

/// The longest list that the shell allows goes as one upload.
#[tokio::test(flavor = "multi_thread")]
async fn fanwise_send_uploads_a_long_list() {
    let place = Place::new("upload-send", "").await;
    place.mock.patch_faults(&json!({"latency": "0ms"})).unwrap();
    let _process = place.serve().await;
    let list = users(150_000).join("\n");
    // Not before tomorrow: this test counts accepted recipients only.
    let send = [
        "send",
        "--client-msg-no",
        "long",
        "--text",
        "x",
        "--not-before",
        "2099-01-01T00:00:00Z",
        "--file",
        "-",
    ];
    let sent = place.run(&send, list.as_bytes()).await;
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    let path = format!("/v1/jobs/{}", job_id("long"));
    let record = until("all parts", BOUND, async || {
        let record = ask(place.port, "GET", &path, &[], b"").await;
        let record = (record.status == 200).then(|| record.json())?;
        (record["submissions"] == 6).then_some(record)
    })
    .await;
    assert_eq!(record["accounts"]["total"], 150_000, "{record}");
}

// --- Gateways of RabbitMQ and Redis --------------------------------------------------------------

/// As many recipients as one upload should hold; fewer would show the same bound in less time.
const MANY: usize = 1_000_000;

/// Promise 9 at the gateway: its memory does not depend on the size of a list.
#[tokio::test(flavor = "multi_thread")]
async fn a_million_recipients_are_taken_in_bounded_memory() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("upload-many").await;
    let gateway = world.gateway(&[]).await;
    let before = resident_kib(gateway.process.pid(), "VmRSS:");
    let mut list = String::with_capacity(MANY * 12);
    for number in 0..MANY {
        let _ = writeln!(list, "\"user-{number}\"");
    }
    let began = Instant::now();
    let taken = upload(
        gateway.port,
        "many",
        "application/x-ndjson",
        list.as_bytes(),
    )
    .await;
    assert_eq!(taken.status, 202, "{taken:?}");
    assert_eq!(
        (&taken.json()["recipients"], &taken.json()["messages"]),
        (&json!(MANY), &json!(40))
    );
    let peak = resident_kib(gateway.process.pid(), "VmHWM:");
    println!(
        "accepted in {:?}, {before} KiB before, {peak} KiB at most",
        began.elapsed()
    );
    assert!(peak < 96 * 1024, "{peak} KiB at most");
    world.end().await;
}

/// A list that is long in bytes: a part is full at 4 MiB.
fn long_list(people: &[String]) -> Vec<u8> {
    let vars = json!({"padding": "x".repeat(2000)});
    let lines = people
        .iter()
        .map(|id| format!("{}\n", json!({"id": id, "vars": vars})));
    lines.collect::<String>().into_bytes()
}

/// Promise 1 with a list: if a gateway is killed between two parts, no recipient gets a message,
/// and the same list again completes it, to each recipient once.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_killed_between_parts_leaves_nobody_half_notified() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("upload-killed").await;
    let (link, through_link) = Relay::before(&world.amqp).await;
    let mut gateway = world
        .gateway(&[("FANWISE_BROKER__URL", &through_link)])
        .await;
    let people = users(5000);
    let list = long_list(&people);
    // Two of three parts and some of the third arrive.
    link.cut_after(Way::ToServer, 9 * 1024 * 1024);
    let port = gateway.port;
    let cut_off = {
        let list = list.clone();
        tokio::spawn(async move { upload(port, "killed", NDJSON.1, &list).await })
    };
    until("the cut", BOUND, async || link.is_cut().then_some(())).await;
    gateway.process.kill();
    // The caller got no success, if it got an answer.
    assert!(cut_off.await.map_or(true, |answer| answer.status == 503));

    let worker = world.worker().await;
    let job = job_id("killed");
    let slices = until("the parts that came", BOUND, async || {
        let record = world.job(&job).await?;
        (record["submissions"] == 2).then(|| record["accounts"]["total"].as_u64().unwrap() / 500)
    })
    .await;
    assert!(slices > 5, "{slices}");
    let asked = async || {
        let metrics = worker.metrics().await;
        metrics
            .get("fanwise_ledger_duration_seconds_count{step=\"gather\"}")
            .copied()
            .unwrap_or(0.0)
    };
    // Each slice has asked more than once.
    until("slices that wait", BOUND, async || {
        (asked().await > 3.0 * slices as f64).then_some(())
    })
    .await;
    assert!(world.accepted().is_empty());

    let gateway = world.gateway(&[]).await;
    let taken = upload(gateway.port, "killed", NDJSON.1, &list).await;
    assert_eq!(taken.status, 202, "{taken:?}");
    let record = world.completed(&job).await;
    assert_eq!(
        (&record["accounts"]["total"], &record["accounts"]["sent"]),
        (&json!(5000), &json!(5000))
    );
    world.assert_once_each(&people);
    worker.drain().await;
    world.end().await;
}

/// Parts of a list that is not completed within the hour are cancelled, and so are later ones.
#[tokio::test(flavor = "multi_thread")]
async fn parts_that_stay_alone_are_cancelled() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("upload-alone").await;
    let worker = world.worker().await;
    let part =
        json!({"v": 1, "client_msg_no": "alone", "message": {"type": "text", "text": "hello"},
        "audience": {"users": ["u1", "u2"]}, "part": {"number": 1, "of": 2, "together": "list"}})
        .to_string();
    world.publish_raw(part.as_bytes()).await;
    let job = job_id("alone");
    until("the part", BOUND, async || world.job(&job).await).await;
    // Its slice, in the state in which a worker finds it after two hours.
    publish_old_slice(&world, &part).await;
    let record = world.completed(&job).await;
    assert_eq!(record["accounts"]["cancelled"], 2, "{record}");
    assert!(world.accepted().is_empty());
    worker.drain().await;
    world.end().await;
}

/// Promise 6 at the gateway: a job that could not be delivered is refused, immediately.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_accepted_while_redis_or_the_broker_is_away() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("upload-away").await;
    let (ledger, redis) = Relay::before(&world.redis).await;
    let (broker, amqp) = Relay::before(&world.amqp).await;
    let variables = [
        ("FANWISE_LEDGER__URL", &*redis),
        ("FANWISE_BROKER__URL", &*amqp),
    ];
    let gateway = world.gateway(&variables).await;
    for (number, link) in [&ledger, &broker].into_iter().enumerate() {
        link.cut().await;
        gateway.until_ready(false).await;
        let key = format!("away-{number}");
        let away = post(gateway.port, &[JSON], job(&key, "x", &["u1"]).as_bytes()).await;
        assert_eq!(
            (away.status, away.headers["retry-after"].as_str()),
            (503, "1"),
            "{away:?}"
        );
        assert!(away.is_problem());
        let away = upload(gateway.port, &key, "text/plain", b"u1\n").await;
        assert_eq!(away.status, 503, "{away:?}");
        assert_eq!(
            ask(gateway.port, "GET", "/livez", &[], b"").await.status,
            200
        );
        link.restore();
        gateway.until_ready(true).await;
        let back = post(gateway.port, &[JSON], job(&key, "x", &["u1"]).as_bytes()).await;
        assert_eq!(back.status, 202, "{back:?}");
    }
    let worker = world.worker().await;
    for number in 0..2 {
        let record = world.completed(&job_id(&format!("away-{number}"))).await;
        assert_eq!(record["accounts"]["total"], 1, "{record}");
        assert_eq!(record["submissions"], 1, "{record}");
    }
    worker.drain().await;
    world.end().await;
}

/// Tests with a broker of their own.
mod restart {
    use super::*;

    /// A broker that is short of memory accepts nothing. The gateway then refuses immediately and
    /// does not let callers wait.
    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_is_accepted_while_the_broker_is_short_of_memory() {
        let (Some(broker), Some(redis)) = (PrivateRabbit::start().await, redis_url()) else {
            return;
        };
        let world = Plan::on(broker.url(), &redis).start("upload-blocked").await;
        let gateway = world.gateway(&[]).await;
        let first = post(
            gateway.port,
            &[JSON],
            job("before", "x", &["u1"]).as_bytes(),
        )
        .await;
        assert_eq!(first.status, 202, "{first:?}");
        broker
            .ctl(&["set_vm_memory_high_watermark", "0.00001"])
            .await;
        // The broker reports it to the next publisher.
        let blocked = until("a gateway that refuses", BOUND, async || {
            let refused = post(
                gateway.port,
                &[JSON],
                job("during", "x", &["u1"]).as_bytes(),
            )
            .await;
            (refused.status == 503).then_some(refused)
        })
        .await;
        assert!(
            blocked.is_problem() && blocked.body.contains("short of memory"),
            "{blocked:?}"
        );
        gateway.until_ready(false).await;
        let doctor = world.run(&["doctor"]).await;
        assert_eq!(doctor.code, Some(69), "{}", doctor.stdout);
        assert!(
            doctor.stdout.contains("takes no messages"),
            "{}",
            doctor.stdout
        );
        broker.ctl(&["set_vm_memory_high_watermark", "0.4"]).await;
        gateway.until_ready(true).await;
        let doctor = world.run(&["doctor"]).await;
        assert!(
            !doctor.stdout.contains("takes no messages"),
            "{}",
            doctor.stdout
        );
        let after = post(
            gateway.port,
            &[JSON],
            job("during", "x", &["u1"]).as_bytes(),
        )
        .await;
        assert_eq!(after.status, 202, "{after:?}");
        let worker = world.worker().await;
        let record = world.completed(&job_id("during")).await;
        assert_eq!(record["accounts"]["total"], 1, "{record}");
        worker.drain().await;
    }
}

/// The only slice of a part, with the recipients u1 and u2, accepted two hours ago.
async fn publish_old_slice(world: &World, part: &str) {
    let job = Job::parse(part.as_bytes(), None, &Anything, jiff::Timestamp::now()).unwrap();
    let together = together(&job.part);
    let lane = Lane::of_small_jobs(&job.head.target, 0);
    let slice = Slice {
        due_later: Vec::new(),
        v: 1,
        id: SliceId::new(&job.submission, 0),
        head: Arc::new(Head {
            accepted_at_ms: job.head.accepted_at_ms - 2 * 3_600_000,
            ..job.head
        }),
        entries: 2,
        shape: Shape::of(4),
        lane: lane.clone(),
        due_at_ms: None,
        first_attempt_at_ms: None,
        recipients: vec!["u1".to_owned(), "u2".to_owned()],
        enumeration: None,
        together,
        vars: Vec::new(),
        attempts: Vec::new(),
        calls: Vec::new(),
        ended: None,
        retries: 0,
        doubts: Vec::new(),
        for_fallback: Default::default(),
        remarks: Vec::new(),
        unrecorded: Default::default(),
    };
    let settings = fanwise::amqp::Settings {
        namespace: world.name.clone(),
        targets: vec!["im".to_owned()],
        ..fanwise::amqp::Settings::new(&world.amqp)
    };
    let broker = fanwise::amqp::Rabbit::new(settings).unwrap();
    let session = broker.connect().await.unwrap();
    let message = Outgoing {
        route: Route::Lane(lane),
        body: serde_json::to_vec(&slice).unwrap().into(),
        message_id: "old".to_owned(),
        traceparent: None,
    };
    session.publisher().publish(vec![message]).await.unwrap();
    session.close().await;
}

/// Any app has the target `im`.
struct Anything;

impl Context for Anything {
    fn default_target(&self, _app: &str) -> Result<String, String> {
        Ok("im".to_owned())
    }

    fn check_target(&self, _target: &str) -> Result<(), String> {
        Ok(())
    }

    fn folds_case(&self, _target: &str) -> bool {
        false
    }

    fn check_category(&self, _: &str, _: &str) -> Result<(), String> {
        Ok(())
    }

    fn check_callback(&self, _: &str, _: &str) -> Result<(), String> {
        Ok(())
    }

    fn check_reply_to(&self, _: &str, _: &str) -> Result<(), String> {
        Ok(())
    }
}

/// Jobs for a target are refused while too many recipients wait for it, and no longer.
async fn a_target_that_is_far_behind_takes_no_jobs(gateway: u16, resume: impl AsyncFnOnce()) {
    let submit = async |key: &str, target: &str, users: &[String]| {
        let job = json!({"v": 1, "client_msg_no": key, "target": target,
                         "audience": {"users": users}, "message": {"type": "text", "text": "x"}});
        post(gateway, &[JSON], job.to_string().as_bytes()).await
    };
    let first = submit("first", "im", &users(101)).await;
    assert_eq!(first.status, 202, "{first:?}");
    // The count is some seconds old, so further jobs are accepted until it is made.
    let mut accepted = Vec::new();
    let refused = until("a refusal", BOUND, async || {
        let key = format!("further-{}", accepted.len());
        let answer = submit(&key, "im", &users(1)).await;
        match answer.status {
            202 => {
                accepted.push(key);
                None
            }
            _ => Some(answer),
        }
    })
    .await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.is_problem() && refused.body.contains("pending_max is 100"));
    assert!(refused.headers.contains_key("retry-after"), "{refused:?}");
    let listed = upload(gateway, "listed", "text/plain", b"a\nb\n").await;
    assert_eq!(listed.status, 503, "{listed:?}");
    let url = format!("http://127.0.0.1:{gateway}");
    let send = |key: &str, tries: &str| {
        let usual = ["send", "--server", &url, "-k", key, "-m", "x", "-t", "im"];
        fanwise(&[&usual[..], &["--tries", tries, "ann"]].concat(), &[])
    };
    let told = send("told", "1").finish(BOUND).await;
    assert_eq!(told.code, Some(75), "{told:?}");
    assert!(told.stderr.contains("pending_max is 100"), "{told:?}");
    let patient = send("patient", "100");
    // What was accepted before is accepted still, and other targets go on.
    let again = submit("first", "im", &users(101)).await;
    assert_eq!(again.status, 200, "{again:?}");
    let other = submit("other", "other", &users(1)).await;
    assert_eq!(other.status, 202, "{other:?}");
    completed(gateway, "other").await;

    resume().await;
    for key in accepted.iter().map(String::as_str).chain(["first"]) {
        completed(gateway, key).await;
    }
    let listed = until("room again", BOUND, async || {
        let answer = upload(gateway, "listed", "text/plain", b"a\nb\n").await;
        (answer.status == 202).then_some(answer)
    });
    listed.await;
    let listed = completed(gateway, "listed").await;
    assert_eq!(listed["accounts"]["sent"], 2, "{listed}");
    // The command has come again until there was room.
    let patient = patient.finish(BOUND).await;
    assert_eq!(patient.code, Some(0), "{patient:?}");
    completed(gateway, "patient").await;
}

const FAR_BEHIND: &str = "[apps.default]\ntarget = \"im\"\n[targets.other]\ntype = \"wukongim\"\nversion = \"v3\"\nsender = \"news\"\ncall_timeout = \"3s\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn promise_11_a_gateway_takes_no_jobs_for_a_target_that_is_far_behind() {
    let Some(mut plan) = Plan::shared() else {
        return;
    };
    plan.target.push_str("\npending_max = 100");
    plan.more = format!("{FAR_BEHIND}url = \"http://{{address}}\"\n");
    let world = plan.start("far-behind").await;
    let worker = world.worker().await;
    let gateway = world.gateway(&[]).await;
    let paused = world.run(&["target", "pause", "im"]).await;
    assert!(paused.code == Some(0), "{paused:?}");
    a_target_that_is_far_behind_takes_no_jobs(gateway.port, async || {
        let resumed = world.run(&["target", "resume", "im"]).await;
        assert!(resumed.code == Some(0), "{resumed:?}");
    })
    .await;
    gateway.end().await;
    worker.drain().await;
    world.end().await;
}
