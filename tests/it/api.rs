//! Tests the native HTTP interface with a real worker and mock: lists, one job, events, recipients,
//! dead letters, redrive and purge; on the embedded engine always, and on servers if they are
//! available.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use fanwise_mock_im::{MockHandle, Settings, Version};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::DropGuard;

use crate::support::mock;
use crate::support::process::{Finished, Process, fanwise, run_fanwise};
use crate::support::scratch::Scratch;
use crate::support::servers::{amqp_url, redis_url};
use crate::support::wait::until;
use crate::support::world::{BOUND, free_port, users};

/// Generates a test per engine from a generic one.
macro_rules! on_both {
    ($($test:ident),* $(,)?) => {
        mod on_the_embedded_engine {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $test() {
                    super::$test(super::Place::embedded(stringify!($test)).await).await;
                }
            )*
        }

        mod on_servers {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $test() {
                    let Some(place) = super::Place::servers(stringify!($test)).await else {
                        return;
                    };
                    super::$test(place).await;
                }
            )*
        }
    };
}

on_both! {
    jobs_are_listed_and_explained,
    a_job_is_there_from_its_acceptance_on,
    one_stream_tells_of_all_jobs,
    the_end_of_no_short_job_is_missed,
    a_dry_run_shows_what_recipients_would_get,
    events_survive_a_gateway_that_is_killed,
    everybody_can_be_asked_about,
    a_redrive_sends_to_the_failed_ones_once,
    a_redrive_that_is_refused_keeps_its_letters,
    what_no_dead_letter_can_be_of_is_told,
    dead_letters_with_values_can_be_read,
    a_reader_that_takes_nothing_holds_up_nobody,
    who_waits_for_a_job_learns_whether_everybody_got_it,
    a_purge_takes_what_is_meant,
    every_problem_of_a_request_is_told,
    the_document_is_what_is_served,
    a_job_of_the_past_is_refused_and_a_repeat_is_not,
}

/// A `fanwise serve` with a mock to send to.
pub(crate) struct Place {
    mock: MockHandle,
    config: String,
    port: u16,
    /// Whether it uses servers, where its data must be removed.
    shared: bool,
    _scratch: Scratch,
    _stop: DropGuard,
}

impl Place {
    async fn embedded(name: &str) -> Self {
        let scratch = Scratch::new(name);
        let folder = scratch.path().join("data");
        let engine = format!("[embedded]\ndir = {folder:?}");
        Self::with(scratch, &engine, false).await
    }

    /// With further tables in its configuration.
    pub(crate) async fn embedded_with(name: &str, more: &str) -> Self {
        let scratch = Scratch::new(name);
        let folder = scratch.path().join("data");
        let engine = format!("{more}\n[embedded]\ndir = {folder:?}");
        Self::with(scratch, &engine, false).await
    }

    async fn servers(name: &str) -> Option<Self> {
        let (amqp, redis) = (amqp_url()?, redis_url()?);
        let unique = format!("api-{}-{:x}", std::process::id(), fastrand::u32(..));
        let engine = format!(
            "[broker]\nurl = {amqp:?}\nnamespace = {unique:?}\n\
             [ledger]\nurl = {redis:?}\nprefix = {unique:?}"
        );
        Some(Self::with(Scratch::new(name), &engine, true).await)
    }

    async fn with(scratch: Scratch, engine: &str, shared: bool) -> Self {
        let (address, handle, stop) = mock::start(Settings {
            wukongim: Version::V3,
            ..Settings::default()
        })
        .await;
        handle
            .patch_faults(&json!({"refuse_prefix": "bad-"}))
            .unwrap();
        let port = free_port();
        let config = format!(
            r#"
            {engine}
            [gateway]
            listen = "127.0.0.1:{port}"
            [admin]
            listen = "127.0.0.1:{}"
            [apps.default]
            target = "im"
            [apps.other]
            target = "im"
            limit = "30/s"
            [apps.thrifty]
            target = "im"
            daily_recipients = 3
            [targets.im]
            type = "wukongim"
            version = "v3"
            sender = "news"
            url = "http://{address}"
            call_timeout = "3s"
            limit = "2000/s"
            "#,
            free_port(),
        );
        let config = scratch.write("fanwise.toml", config);
        Self {
            mock: handle,
            config: config.to_str().unwrap().to_owned(),
            port,
            shared,
            _scratch: scratch,
            _stop: stop.drop_guard(),
        }
    }

    pub(crate) async fn serve(&self) -> Process {
        let mut process = fanwise(&["serve", "--config", &self.config], &[]);
        process
            .until_prints("ready: jobs are taken", Duration::from_secs(60))
            .await;
        process
    }

    pub(crate) async fn run(&self, arguments: &[&str]) -> Finished {
        let arguments = [arguments, &["--config", &self.config]].concat();
        run_fanwise(&arguments, &[], b"", BOUND).await
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        let finished = self.run(&[arguments, &["--json"]].concat()).await;
        assert_eq!(finished.code, Some(0), "{arguments:?}: {}", finished.stderr);
        serde_json::from_str(&finished.stdout).unwrap()
    }

    /// Sends a request; returns the status and the JSON of the answer.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let json = [("Content-Type", "application/json")];
        self.ask_with(method, path, &json, &body).await
    }

    /// Sends a request with these headers.
    pub(crate) async fn ask_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (u16, Value) {
        let mut request = format!(
            "{method} {path} HTTP/1.0\r\nContent-Length: {}\r\n",
            body.len()
        );
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        request.push_str(body);
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        timeout(BOUND, read).await.expect("an answer").unwrap();
        // A backup is no text.
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
        if status >= 400 {
            assert!(head.contains("application/problem+json"), "{head}");
        }
        (status, serde_json::from_str(body).unwrap_or_default())
    }

    /// The head of an answer, with its headers in lower case.
    async fn head_of(&self, method: &str, path: &str) -> String {
        let request = format!("{method} {path} HTTP/1.0\r\n\r\n");
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        timeout(BOUND, read).await.expect("an answer").unwrap();
        answer.split_once("\r\n\r\n").unwrap().0.to_owned()
    }

    async fn get(&self, path: &str) -> Value {
        let (status, answer) = self.ask("GET", path, &Value::Null).await;
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.ask("POST", path, &body).await;
        assert!((200..300).contains(&status), "{path}: {status} {answer}");
        answer
    }

    /// Submits a text to these recipients; returns the job id.
    async fn send(&self, key: &str, users: &[String], more: &Value) -> String {
        let mut job = json!({
            "v": 1, "client_msg_no": key, "audience": {"users": users},
            "message": {"type": "text", "text": "hello"},
        });
        for (name, value) in more.as_object().into_iter().flatten() {
            job[name] = value.clone();
        }
        let submitted = self.post("/v1/jobs", job).await;
        submitted["job"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn completed(&self, job: &str) -> Value {
        let path = format!("/v1/jobs/{job}");
        until(&format!("completion of {job}"), BOUND, async || {
            let (_, job) = self.ask("GET", &path, &Value::Null).await;
            (job["state"] == "completed").then_some(job)
        })
        .await
    }

    /// Opens the events of a job, after this event if one is given.
    async fn events(&self, job: &str, last: Option<&str>) -> Events {
        self.stream(&format!("/v1/jobs/{job}/events"), last).await
    }

    async fn stream(&self, path: &str, last: Option<&str>) -> Events {
        let last = last.map_or_else(String::new, |id| format!("Last-Event-ID: {id}\r\n"));
        let request = format!("GET {path} HTTP/1.0\r\n{last}\r\n");
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut lines = BufReader::new(stream).lines();
        let status = lines.next_line().await.unwrap().unwrap();
        let status = status.split(' ').nth(1).unwrap().parse().unwrap();
        while !lines.next_line().await.unwrap().unwrap().is_empty() {}
        Events { status, lines }
    }

    /// How often the mock accepted a message for this recipient.
    fn accepted(&self, recipient: &str) -> usize {
        assert!(self.mock.is_complete());
        let accepted = self.mock.accepted();
        let of_it = |entry: &&fanwise_mock_im::Entry| entry.recipient == recipient && !entry.replay;
        accepted.iter().filter(of_it).count()
    }

    pub(crate) async fn end(&self, mut process: Process) {
        process.terminate();
        let status = process.wait(Duration::from_secs(30)).await;
        assert_eq!(status.code(), Some(0), "{}", process.stderr());
        if self.shared {
            let removed = self.run(&["topology", "delete", "--yes"]).await;
            assert_eq!(removed.code, Some(0), "{}", removed.stderr);
        }
    }
}

/// A stream of server-sent events.
struct Events {
    status: u16,
    lines: Lines<BufReader<TcpStream>>,
}

#[derive(Clone, Debug, PartialEq)]
struct Event {
    id: String,
    kind: String,
    data: Value,
}

impl Events {
    /// The next event; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Event> {
        let (mut id, mut kind, mut data) = (String::new(), String::new(), Value::Null);
        loop {
            let line = timeout(BOUND, self.lines.next_line())
                .await
                .expect("a line");
            // A process that is killed resets its connections.
            let line = line.ok()??;
            match line.split_once(':') {
                Some(("id", value)) => id = value.trim().to_owned(),
                Some(("event", value)) => kind = value.trim().to_owned(),
                Some(("data", value)) => data = serde_json::from_str(value).unwrap(),
                _ if line.is_empty() && !data.is_null() => return Some(Event { id, kind, data }),
                _ => {}
            }
        }
    }

    /// The next event, of a stream whose heartbeats would go on without one.
    async fn soon(&mut self) -> Event {
        let next = timeout(BOUND, self.next()).await;
        next.expect("an event in time").expect("an open stream")
    }

    async fn rest(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

fn names(rows: &Value, field: &str) -> Vec<String> {
    let rows = rows.as_array().unwrap().iter();
    rows.map(|row| row[field].as_str().unwrap().to_owned())
        .collect()
}

async fn jobs_are_listed_and_explained(place: Place) {
    let process = place.serve().await;
    let mut ids = Vec::new();
    for number in 0..5 {
        let app = if number < 3 { "default" } else { "other" };
        let id = place
            .send(&format!("k{number}"), &users(1), &json!({"app": app}))
            .await;
        place.completed(&id).await;
        ids.push(id);
    }
    let later = json!({"not_before": "2100-01-01T00:00:00Z", "rate": "3/s"});
    ids.push(place.send("later", &users(2), &later).await);
    let last = ids[5].clone();
    let path = format!("/v1/jobs/{last}");
    let detail = until("the last job", BOUND, async || {
        let (status, detail) = place.ask("GET", &path, &Value::Null).await;
        (status == 200 && detail["state"] != "accepted").then_some(detail)
    })
    .await;
    assert_eq!(detail["hindrances"][0]["cause"], "scheduled", "{detail}");
    assert_eq!(detail["hindrances"][0]["until"], "2100-01-01T00:00:00Z");
    assert_eq!(detail["rate"], "3/s");
    assert_eq!(detail["pending"], 2);

    ids.reverse();
    let (mut listed, mut path) = (Vec::new(), "/v1/jobs?limit=4".to_owned());
    loop {
        let page = place.get(&path).await;
        listed.extend(names(&page["jobs"], "job"));
        let Some(next) = page["next"].as_str() else {
            break;
        };
        path = format!("/v1/jobs?limit=4&cursor={next}");
    }
    assert_eq!(listed, ids);
    let by = async |query: &str| {
        let page = place.get(&format!("/v1/jobs?{query}")).await;
        names(&page["jobs"], "job")
    };
    assert_eq!(by("app=other").await, ids[1..3]);
    assert_eq!(by("state=running").await, ids[..1]);
    assert_eq!(by("scheduled=true").await, ids[..1]);
    let page = place.get("/v1/jobs?limit=2").await;
    let causes = [&page["jobs"][0], &page["jobs"][1]].map(|job| &job["hindrances"][0]["cause"]);
    assert_eq!(causes, [&json!("scheduled"), &Value::Null], "{page}");
    assert_eq!(page["jobs"][0]["not_before"], "2100-01-01T00:00:00Z");
    let about = place.get("/v1/about").await;
    assert_eq!(about["role"], "administrator", "{about}");
    assert_eq!(
        names(&about["apps"], "name"),
        ["default", "other", "thrifty"]
    );
    for part in about["parts"].as_array().unwrap() {
        assert_eq!(part["works"], true, "{about}");
    }
    assert_eq!(by("client_msg_no=k1").await, ids[4..5]);
    assert_eq!(by("client_msg_no=k1&app=other").await, Vec::<String>::new());
    assert_eq!(by("since=1h&target=im").await, ids);
    assert_eq!(by("until=1h").await, Vec::<String>::new());
    let by_key = place.get("/v1/jobs/k3?app=other").await;
    assert_eq!(by_key["job"], ids[2].as_str());
    assert_eq!(by_key["hindrances"], json!([]));

    let shell = place
        .json(&["job", "list", "--app", "other", "--state", "completed"])
        .await;
    assert_eq!(names(&shell, "job"), ids[1..3]);
    let table = place.run(&["job", "list"]).await;
    assert_eq!(table.stdout.lines().count(), 7, "{}", table.stdout);
    assert!(!table.stdout.contains('…'), "cut: {}", table.stdout);
    let shown = place.run(&["job", "show", "later"]).await;
    assert!(
        shown
            .stdout
            .contains("hindered by    not to be sent before 2100"),
        "{}",
        shown.stdout
    );
    place.end(process).await;
}

/// A caller that reads its job right after the 202 finds it, every time.
async fn a_job_is_there_from_its_acceptance_on(place: Place) {
    let process = place.serve().await;
    for number in 0..30 {
        let id = place
            .send(&format!("k{number}"), &users(1), &json!({}))
            .await;
        let job = place.get(&format!("/v1/jobs/{id}")).await;
        assert_eq!(job["job"], id.as_str());
        let listed = place.get("/v1/jobs?limit=1").await;
        assert_eq!(listed["jobs"][0]["job"], id.as_str(), "{listed}");
    }
    place.end(process).await;
}

/// The stream of all jobs begins with those that are not completed, tells each end, and shows only
/// the jobs that are asked for.
async fn one_stream_tells_of_all_jobs(place: Place) {
    let process = place.serve().await;
    let later = json!({"not_before": "2100-01-01T00:00:00Z"});
    let waiting = place.send("waiting", &users(2), &later).await;
    let mut all = place.stream("/v1/events", None).await;
    let mut others = place.stream("/v1/events?app=other", None).await;
    assert_eq!((all.status, others.status), (200, 200));
    let first = all.soon().await;
    assert_eq!(
        (first.kind.as_str(), &first.data["job"]),
        ("accepted", &json!(waiting))
    );
    let own = place.send("own", &users(40), &json!({})).await;
    let other = place
        .send("other", &users(3), &json!({"app": "other"}))
        .await;
    let mut ends = BTreeSet::new();
    while ends.len() < 2 {
        let event = all.soon().await;
        let job = event.data["job"].as_str().unwrap().to_owned();
        assert!([&own, &other, &waiting].contains(&&job), "{event:?}");
        if event.kind == "completed" {
            let total = if job == own { 40 } else { 3 };
            assert_eq!(event.data["accounts"]["sent"], total, "{event:?}");
            assert!(ends.insert(job), "the end of a job is told once");
        }
    }
    loop {
        let event = others.soon().await;
        assert_eq!(event.data["job"], other.as_str(), "{event:?}");
        if event.kind == "completed" {
            break;
        }
    }
    // Extended after its end, the job is told of again.
    place
        .send("other", &users(5), &json!({"app": "other"}))
        .await;
    let again = others.soon().await;
    assert_eq!(again.data["accounts"]["total"], 8, "{again:?}");
    place.end(process).await;
}

/// Jobs that end between two looks at the ledger are told too, whether the gateway finds them among
/// the new jobs or on its way through the list. That way goes on with one look in ten.
async fn the_end_of_no_short_job_is_missed(place: Place) {
    let process = place.serve().await;
    let mut stream = place.stream("/v1/events", None).await;
    let begun = Instant::now();
    let mut sent = BTreeSet::new();
    while begun.elapsed() < Duration::from_secs(6) {
        let key = format!("k{}", sent.len());
        sent.insert(place.send(&key, &users(1), &json!({})).await);
    }
    let mut ends = BTreeSet::new();
    while ends.len() < sent.len() {
        let event = stream.soon().await;
        if event.kind == "completed" {
            let job = event.data["job"].as_str().unwrap().to_owned();
            assert!(ends.insert(job), "the end of a job is told once");
        }
    }
    assert_eq!(ends, sent);
    place.end(process).await;
}

/// A dry run renders the message for the first recipients, and says what a recipient lacks.
async fn a_dry_run_shows_what_recipients_would_get(place: Place) {
    let process = place.serve().await;
    let text = json!({"type": "text", "text": "Hello {{ name }}"});
    let users = json!([{"id": "u1", "vars": {"name": "Ann"}}, {"id": "u2", "vars": {}}]);
    let job = json!({"v": 1, "client_msg_no": "k", "audience": {"users": users}, "message": text});
    let dry = place.post("/v1/jobs?dry_run=true", job).await;
    let previews = &dry["preview"];
    assert_eq!(previews[0]["recipient"], "u1");
    assert_eq!(previews[0]["message"]["text"], "Hello Ann", "{dry}");
    assert_eq!(previews[1]["message"], Value::Null);
    let lacks = previews[1]["problem"].as_str().unwrap();
    assert!(lacks.contains("name"), "{lacks}");
    let estimate = &dry["estimate"];
    assert_eq!(
        (&estimate["rendered"], &estimate["would_fail"]),
        (&json!(2), &json!(1)),
        "{dry}"
    );
    assert_eq!(estimate["calls"], 1, "{dry}");

    let (status, _) = place.ask("PUT", "/v1/templates/hi", &text).await;
    assert_eq!(status, 200);
    let spec = json!({"v": 1, "client_msg_no": "l", "message": {"template": "hi"}}).to_string();
    let headers = [
        ("Content-Type", "text/csv"),
        ("Fanwise-Job-Spec", spec.as_str()),
    ];
    let list: String = (0..20).map(|it| format!("u{it},N{it}\n")).collect();
    let path = "/v1/jobs?dry_run=true&vars=true&column=id";
    let (status, dry) = place
        .ask_with("POST", path, &headers, &format!("id,name\n{list}"))
        .await;
    assert_eq!(status, 200, "{dry}");
    assert_eq!(
        names(&dry["preview"], "recipient"),
        ["u0", "u1", "u2", "u3", "u4"]
    );
    assert_eq!(dry["preview"][4]["message"]["text"], "Hello N4", "{dry}");
    let estimate = &dry["estimate"];
    assert_eq!(
        (&estimate["rendered"], &estimate["calls"]),
        (&json!(20), &json!(20)),
        "{dry}"
    );
    // The app's limit is 30/s burst 6.
    let many: Vec<String> = (0..96).map(|it| format!("u{it}")).collect();
    let job = json!({"v": 1, "app": "other", "client_msg_no": "m", "audience": {"users": many},
        "message": {"type": "text", "text": "Hi"}});
    let dry = place.post("/v1/jobs?dry_run=true", job).await;
    assert_eq!(dry["estimate"]["seconds"], 3, "{dry}");
    assert_eq!(dry["estimate"]["limit"], "30/s of app other", "{dry}");
    let told = json!([{"code": "limit", "values":
        {"limit": "app", "name": "other", "target": dry["target"], "rate": "30/s"}}]);
    assert_eq!(dry["estimate"]["limits"], told, "{dry}");
    let bytes = dry["estimate"]["bytes"].as_u64().unwrap();
    assert!((96 * 50..96 * 1000).contains(&bytes), "{dry}");
    assert_eq!(place.get("/v1/jobs").await["jobs"], json!([]));
    place.end(process).await;
}

/// Everything that slows a job down is shown: limits of the target and of the app, a parked target.
#[tokio::test(flavor = "multi_thread")]
async fn what_limits_a_job_is_told() {
    let away = "[targets.away]\ntype = \"webhook\"\nurl = \"http://127.0.0.1:1/\"";
    let place = Place::embedded_with("limits", away).await;
    let process = place.serve().await;
    let hindered = async |key: &str, cause: &str| {
        until(&format!("{key} hindered by {cause}"), BOUND, async || {
            let (_, job) = place
                .ask("GET", &format!("/v1/jobs/{key}?app=other"), &Value::Null)
                .await;
            let all = job["hindrances"].as_array()?;
            all.iter().find(|it| it["cause"] == cause).cloned()
        })
        .await
    };
    let of_app = json!({"app": "other"});
    place.send("slow", &users(600), &of_app).await;
    let found = hindered("slow", "app_limit").await;
    assert_eq!(found["what"], "app other has the limit 30/s burst 6");
    let eta = until("the time left", BOUND, async || {
        let slow = place.get("/v1/jobs/slow?app=other").await;
        Some((
            slow["recipients_per_second"].as_f64()?,
            slow["eta_seconds"].as_u64()?,
        ))
    })
    .await;
    assert!(eta.0 > 0.0 && eta.0 <= 100.0 && eta.1 > 0, "{eta:?}");

    place
        .send(
            "away",
            &users(1),
            &json!({"app": "other", "target": "away"}),
        )
        .await;
    let found = hindered("away", "parked").await;
    assert!(
        found["what"]
            .as_str()
            .unwrap()
            .starts_with("target away is parked until ")
    );
    assert!(found["until"].is_string(), "{found}");
    place.end(process).await;
}

/// A reader that reconnects after the gateway was killed gets the changes, and the end, once.
async fn events_survive_a_gateway_that_is_killed(place: Place) {
    let process = place.serve().await;
    place
        .mock
        .patch_faults(&json!({"latency": "20ms"}))
        .unwrap();
    let job = place
        .send("k", &users(1000), &json!({"rate": "200/s"}))
        .await;
    let mut events = place.events(&job, None).await;
    assert_eq!(events.status, 200);
    let first = events.next().await.unwrap();
    assert_eq!(
        (first.kind.as_str(), first.id.as_str()),
        ("accepted", "1.0")
    );
    assert_eq!(first.data["accounts"]["total"], 1000);
    let progress = events.next().await.unwrap();
    assert_eq!(progress.kind, "progress");
    let settled = 1000 - progress.data["pending"].as_u64().unwrap();
    assert_eq!(progress.id, format!("1.{settled}"));
    until("a job that is limited by its rate", BOUND, async || {
        let detail = place.get(&format!("/v1/jobs/{job}")).await;
        (detail["hindrances"][0]["cause"] == "job_limit").then_some(())
    })
    .await;

    drop(process);
    let mut seen = events.rest().await;
    assert!(
        seen.iter().all(|event| event.kind == "progress"),
        "{seen:?}"
    );
    let process = place.serve().await;
    let last = seen.pop().unwrap_or(progress);
    let mut events = place.events(&job, Some(&last.id)).await;
    let mut rest = events.rest().await;
    let end = rest.pop().unwrap();
    assert_eq!(end.kind, "completed");
    assert_eq!(end.id, "1.1000.end");
    assert_eq!(end.data["accounts"]["sent"], 1000);
    assert_eq!(end.data["pending"], 0);
    assert!(
        rest.iter().all(|event| event.kind == "progress"),
        "{rest:?}"
    );
    assert!(!rest.iter().any(|event| event.id == last.id));

    // A reader that has the end is told not to reconnect; a new reader gets the end immediately.
    assert_eq!(place.events(&job, Some(&end.id)).await.status, 204);
    let late = place.events(&job, None).await.rest().await;
    let kinds: Vec<_> = late.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds, ["accepted", "completed"]);
    assert_eq!(late[1], end);
    assert_eq!(place.events("nobody", None).await.status, 404);

    // A drain ends streams of jobs that are not completed.
    let waiting = json!({"not_before": "2100-01-01T00:00:00Z"});
    let waiting = place.send("waiting", &users(1), &waiting).await;
    let mut events = place.events(&waiting, None).await;
    assert_eq!(events.next().await.unwrap().kind, "accepted");
    place.end(process).await;
    assert!(events.rest().await.is_empty());
}

async fn everybody_can_be_asked_about(place: Place) {
    let process = place.serve().await;
    let list = ["ann", "bad-bob", "ü/ 1?"].map(str::to_owned);
    let job = place.send("k", &list, &Value::Null).await;
    let done = place.completed(&job).await;
    assert_eq!(done["accounts"]["sent"], 2, "{done}");
    let ask = async |user: &str| {
        place
            .get(&format!("/v1/jobs/{job}/recipients/{user}"))
            .await
    };
    let sent = ask("ann").await;
    assert_eq!(
        (&sent["state"], &sent["dead_letter"]),
        (&json!("sent"), &Value::Null)
    );
    assert_eq!(ask("%C3%BC%2F%201%3F").await["state"], "sent");
    let failed = ask("bad-bob").await;
    assert_eq!(failed["state"], "failed", "{failed}");
    assert_eq!(failed["dead_letter"]["class"], "permanent", "{failed}");
    assert_eq!(failed["dead_letter"]["attempts"], 1);
    assert_eq!(failed["dead_letter"]["content"]["sender"], Value::Null);
    assert_eq!(ask("nobody").await["state"], "unseen");

    // A job that waits is not in the list yet.
    let later = json!({"not_before": "2100-01-01T00:00:00Z"});
    place.send("later", &users(1), &later).await;
    let waiting = until("the second job", BOUND, async || {
        let path = "/v1/jobs/later/recipients/u0";
        let (status, fate) = place.ask("GET", path, &Value::Null).await;
        (status == 200).then_some(fate)
    })
    .await;
    assert_eq!(waiting["state"], "unseen", "{waiting}");

    let shell = place.json(&["job", "recipient", "k", "ü/ 1?"]).await;
    assert_eq!(shell["state"], "sent", "{shell}");
    let shell = place.run(&["job", "recipient", "k", "bad-bob"]).await;
    assert_eq!(shell.code, Some(0), "{}", shell.stderr);
    assert!(
        shell.stdout.starts_with("bad-bob: failed, "),
        "{}",
        shell.stdout
    );
    let unknown = place.run(&["job", "recipient", "nothing", "ann"]).await;
    assert_eq!(unknown.code, Some(69), "{}", unknown.stderr);
    let shown = place
        .json(&["dead", "show", "--job", "k", "--recipient", "bad-bob"])
        .await;
    assert_eq!(
        shown[0]["content"]["message"],
        json!({"type": "text", "text": "hello"}),
        "{shown}"
    );
    place.end(process).await;
}

/// A redrive sends the same message to failed recipients only. The same dead letters twice are one
/// job, and recipients that fail again are the next generation.
async fn a_redrive_sends_to_the_failed_ones_once(place: Place) {
    let process = place.serve().await;
    let bad: Vec<_> = (0..30).map(|number| format!("bad-{number}")).collect();
    let list = [users(50), bad.clone()].concat();
    let job = place.send("promo", &list, &json!({"sender": "shop"})).await;
    let done = place.completed(&job).await;
    assert_eq!(done["accounts"]["failed"], 30, "{done}");

    let dry = json!({"job": job, "dry_run": true});
    let dry = place.post("/v1/dead:redrive", dry).await;
    assert_eq!(
        (&dry["recipients"], &dry["jobs_total"]),
        (&json!(30), &json!(1))
    );
    assert_eq!(dry["jobs"][0]["client_msg_no"], "promo~r1");
    let (status, _) = place.ask("GET", "/v1/jobs/promo~r1", &Value::Null).await;
    assert_eq!(status, 404, "a dry run submits nothing");

    // One recipient still fails.
    place
        .mock
        .patch_faults(&json!({"refuse_prefix": "bad-7"}))
        .unwrap();
    // A redrive of all apps must be requested explicitly.
    let (status, answer) = place.ask("POST", "/v1/dead:redrive", &json!({})).await;
    assert_eq!(
        (status, names(&answer["problems"], "field")),
        (400, vec!["confirm".to_owned()])
    );
    let shell = place.run(&["dead", "redrive"]).await;
    assert_eq!(shell.code, Some(64), "{}", shell.stderr);
    assert!(
        shell.stderr.contains(
            "this sends again to 30 recipient(s), all those with dead letters of 1 job(s)"
        ),
        "{}",
        shell.stderr
    );

    let mut new = String::new();
    for (again, before) in [(30, 0), (0, 30)] {
        let redriven = place.post("/v1/dead:redrive", json!({"job": job})).await;
        assert_eq!(redriven["recipients"], again, "{redriven}");
        assert_eq!(redriven["redriven_before"], before, "{redriven}");
        assert_eq!(redriven["refused"], json!([]), "{redriven}");
        new = redriven["jobs"][0]["job"].as_str().unwrap().to_owned();
        let done = place.completed(&new).await;
        assert_eq!(done["client_msg_no"], "promo~r1");
        assert_eq!(done["accounts"]["total"], 30, "{done}");
        assert_eq!(done["accounts"]["sent"], 29, "{done}");
    }
    let of = |user: &String| place.accepted(user);
    assert!(users(50).iter().all(|user| of(user) == 1));
    assert!(
        bad.iter()
            .all(|user| of(user) == usize::from(user != "bad-7"))
    );
    let entries = place.mock.accepted();
    let again = entries
        .iter()
        .filter(|entry| entry.recipient.starts_with("bad-"));
    assert_eq!(
        again
            .map(|entry| entry.from.to_string())
            .collect::<BTreeSet<_>>(),
        BTreeSet::from(["shop".to_owned()])
    );

    let shell = place.run(&["dead", "redrive", "--job", "promo"]).await;
    assert!(
        shell.stdout.starts_with("nothing is sent again\n")
            && shell.stdout.contains("30 were redriven before"),
        "{}",
        shell.stdout
    );
    place
        .mock
        .patch_faults(&json!({"refuse_prefix": "nobody-"}))
        .unwrap();
    let shell = place
        .json(&["dead", "redrive", "--job", &new, "--purge"])
        .await;
    assert_eq!(shell["jobs"][0]["client_msg_no"], "promo~r2", "{shell}");
    assert_eq!(
        (&shell["recipients"], &shell["purged"]),
        (&json!(1), &json!(1))
    );
    let last = shell["jobs"][0]["job"].as_str().unwrap();
    assert_eq!(place.completed(last).await["accounts"]["sent"], 1);
    assert_eq!(place.accepted("bad-7"), 1);
    let left = place.get("/v1/dead").await;
    assert_eq!(names(&left["letters"], "job"), vec![job; 30]);
    place.end(process).await;
}

/// A rule that refuses a job of an app also refuses a redrive, and its dead letters stay: no
/// recipient is lost to a job that was not accepted.
async fn a_redrive_that_is_refused_keeps_its_letters(place: Place) {
    let process = place.serve().await;
    let bad: Vec<_> = (0..3).map(|number| format!("bad-{number}")).collect();
    let job = place.send("promo", &bad, &json!({"app": "thrifty"})).await;
    place.completed(&job).await;
    let redrive = json!({"job": job, "purge": true});
    let redriven = place.post("/v1/dead:redrive", redrive).await;
    let told = |redriven: &Value| {
        let reason = redriven["refused"][0]["reason"]
            .as_str()
            .unwrap_or_default();
        assert!(
            reason.contains("has 0 of 3 left until 00:00 UTC"),
            "{redriven}"
        );
        assert_eq!(
            (&redriven["recipients"], &redriven["purged"]),
            (&json!(0), &json!(0))
        );
    };
    told(&redriven);
    let shell = place
        .run(&["dead", "redrive", "--job", &job, "--purge", "--json"])
        .await;
    assert_eq!(shell.code, Some(65), "{}", shell.stderr);
    told(&serde_json::from_str(&shell.stdout).unwrap());
    let left = place.get("/v1/dead").await;
    assert_eq!(names(&left["letters"], "recipient"), bad);
    assert_eq!(place.json(&["dead", "rejected"]).await, json!([]));
    place.end(process).await;
}

/// A misspelt job, app or target is distinguished from one without dead letters, over HTTP and in
/// the shell.
async fn what_no_dead_letter_can_be_of_is_told(place: Place) {
    let process = place.serve().await;
    let job = place.send("known", &users(1), &Value::Null).await;
    place.completed(&job).await;
    assert_eq!(place.get("/v1/dead?job=known").await["letters"], json!([]));
    assert_eq!(
        place.json(&["dead", "list", "--job", "known"]).await,
        json!([])
    );
    for (field, value) in [("job", "knwon"), ("app", "defualt"), ("target", "mi")] {
        let said = format!("there is no {field} {value:?}");
        let filter = json!({field: value, "confirm": true});
        let path = format!("/v1/dead?{field}={value}");
        let lines = [("Accept", "application/x-ndjson")];
        for (status, answer) in [
            place.ask("GET", &path, &Value::Null).await,
            place.ask_with("GET", &path, &lines, "").await,
            place.ask("POST", "/v1/dead:redrive", &filter).await,
            place.ask("POST", "/v1/dead:purge", &filter).await,
        ] {
            assert_eq!(status, 404, "{answer}");
            let detail = answer["detail"].as_str().unwrap();
            assert!(detail.starts_with(&said), "{answer}");
        }
        let flag = format!("--{field}");
        for command in [
            &["dead", "list"][..],
            &["dead", "export"],
            &["dead", "redrive"],
            &["dead", "purge", "--yes"],
        ] {
            let shell = place.run(&[command, &[&flag, value]].concat()).await;
            assert_eq!(shell.code, Some(69), "{command:?}: {}", shell.stdout);
            assert!(
                shell.stderr.contains(&said),
                "{command:?}: {}",
                shell.stderr
            );
        }
    }
    place.end(process).await;
}

/// Dead letters of a personal job contain its values, and all commands can read them.
async fn dead_letters_with_values_can_be_read(place: Place) {
    let process = place.serve().await;
    let personal = json!({
        "audience": {"users": [{"id": "bad-1", "vars": {"name": "=Ana", "n": 12345678901234567890_u64}}]},
        "message": {"type": "text", "text": "Hi {{ name }}"},
    });
    let job = place.send("personal", &[], &personal).await;
    place.completed(&job).await;
    let rows = place.json(&["dead", "list"]).await;
    assert_eq!(
        rows[0]["vars"], personal["audience"]["users"][0]["vars"],
        "{rows}"
    );
    let shown = place.json(&["dead", "show"]).await;
    assert_eq!(shown[0]["content"]["message"]["text"], "Hi {{ name }}");
    let fate = place.json(&["job", "recipient", &job, "bad-1"]).await;
    assert_eq!(fate["dead_letter"]["vars"]["name"], "=Ana");
    for format in ["ndjson", "csv"] {
        let exported = place.run(&["dead", "export", "--format", format]).await;
        assert_eq!(exported.code, Some(0), "{}", exported.stderr);
        assert!(exported.stdout.contains("bad-1"), "{}", exported.stdout);
    }
    place.end(process).await;
}

/// A reader that requests all dead letters and does not read the answer blocks no other reader.
async fn a_reader_that_takes_nothing_holds_up_nobody(place: Place) {
    let process = place.serve().await;
    let bad: Vec<_> = (0..600).map(|number| format!("bad-{number:03}")).collect();
    let text = json!({"message": {"type": "text", "text": "x".repeat(19_000)}});
    let job = place.send("long", &bad, &text).await;
    place.completed(&job).await;
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(("127.0.0.1", place.port)).await.unwrap();
        let request = "GET /v1/dead?content=true HTTP/1.1\r\nHost: localhost\r\n\
                       Accept: application/x-ndjson\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        // The answer has begun, and the rest is larger than the sockets' buffers.
        let mut first = [0; 12];
        timeout(BOUND, stream.read_exact(&mut first))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        stalled.push(stream);
    }
    let listed = place.json(&["dead", "list"]).await;
    assert_eq!(listed.as_array().unwrap().len(), 600);
    let dry = json!({"job": job, "dry_run": true});
    assert_eq!(place.post("/v1/dead:redrive", dry).await["recipients"], 600);
    let purge = json!({"job": job, "recipient": "bad-000", "confirm": true});
    assert_eq!(place.post("/v1/dead:purge", purge).await["recipients"], 1);
    let left = place.get("/v1/dead?limit=1000").await;
    assert_eq!(left["letters"].as_array().unwrap().len(), 599);
    drop(stalled);
    place.end(process).await;
}

/// The exit code tells a script that a recipient did not get the message, and that a text with a
/// forgotten value is not sent as it is. A mere user of the gateway does not learn how it is
/// protected.
async fn who_waits_for_a_job_learns_whether_everybody_got_it(place: Place) {
    let process = place.serve().await;
    let send = async |key: &str, more: &[&str]| {
        let arguments = ["send", "--client-msg-no", key, "--wait"];
        place.run(&[&arguments[..], more].concat()).await
    };
    for (key, recipients, code) in [
        ("all", &["u1", "u2"][..], 0),
        ("all", &["u1", "u2"], 0),
        ("some", &["u1", "bad-1"], 1),
        ("none", &["bad-1"], 1),
    ] {
        let sent = send(key, &[&["--text", "hello"], recipients].concat()).await;
        assert_eq!(sent.code, Some(code), "{key}: {}", sent.stderr);
        assert!(!sent.stderr.contains("gateway.token"), "{}", sent.stderr);
        let watched = place.run(&["job", "watch", key]).await;
        assert_eq!(watched.code, Some(code), "{key}: {}", watched.stderr);
    }
    let text = ["--text", "Hi {{ name }}", "u1"];
    for more in [&[][..], &["--dry-run"]] {
        let refused = send("literal", &[&text[..], more].concat()).await;
        assert_eq!(refused.code, Some(65), "{}", refused.stderr);
        assert!(refused.stderr.contains("{{ name }}"), "{}", refused.stderr);
    }
    let meant = send("literal", &[&text[..], &["--literal"]].concat()).await;
    assert_eq!(meant.code, Some(0), "{}", meant.stderr);
    let checked = place.run(&["config", "check"]).await;
    assert!(
        checked.stdout.contains("gateway.token"),
        "{}",
        checked.stdout
    );
    place.end(process).await;
}

async fn a_purge_takes_what_is_meant(place: Place) {
    let process = place.serve().await;
    let bad: Vec<_> = (0..40).map(|number| format!("bad-{number:02}")).collect();
    for key in ["one", "two"] {
        let job = place.send(key, &bad, &Value::Null).await;
        place.completed(&job).await;
    }
    let (mut shown, mut path) = (Vec::new(), "/v1/dead?limit=15".to_owned());
    loop {
        let page = place.get(&path).await;
        let rows = page["letters"].as_array().unwrap();
        assert!(rows.len() <= 15);
        shown.extend(rows.iter().map(|row| {
            (
                row["client_msg_no"].clone(),
                row["recipient"].as_str().unwrap().to_owned(),
            )
        }));
        let Some(next) = page["next"].as_str() else {
            break;
        };
        path = format!("/v1/dead?limit=15&cursor={next}");
    }
    assert_eq!(shown.len(), 80);
    for key in ["one", "two"] {
        let of_it = shown.iter().filter(|(found, _)| found == key);
        assert_eq!(of_it.map(|(_, user)| user.clone()).collect::<Vec<_>>(), bad);
    }
    let some = place
        .get("/v1/dead?job=two&recipient=bad-03&since=1h&class=permanent")
        .await;
    assert_eq!(some["letters"].as_array().unwrap().len(), 1, "{some}");

    let table = place.run(&["dead", "list"]).await;
    assert_eq!(table.stdout.lines().count(), 2 * 43, "{}", table.stdout);
    let widest = table.stdout.lines().map(|line| line.chars().count()).max();
    assert!(widest <= Some(80), "{}", table.stdout);

    let refused = place.run(&["dead", "purge", "--job", "one"]).await;
    assert_eq!(refused.code, Some(64), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("dead letters of 40 recipient(s)"),
        "{}",
        refused.stderr
    );
    let one = [
        "dead",
        "purge",
        "--job",
        "one",
        "--recipient",
        "bad-05",
        "--yes",
    ];
    assert_eq!(place.json(&one).await["recipients"], 1);
    let left = place.get("/v1/dead?job=one").await;
    let left = names(&left["letters"], "recipient");
    assert!(left.len() == 39 && !left.contains(&"bad-05".to_owned()));
    let purge = json!({"job": "one", "confirm": true});
    assert_eq!(place.post("/v1/dead:purge", purge).await["recipients"], 39);
    let left = place.get("/v1/dead?limit=1000").await;
    assert_eq!(names(&left["letters"], "client_msg_no"), vec!["two"; 40]);
    let fate = place.get("/v1/jobs/one/recipients/bad-05").await;
    assert_eq!(
        (&fate["state"], &fate["dead_letter"]),
        (&json!("failed"), &Value::Null)
    );
    let exported = place
        .run(&["dead", "export", "--code", "no such code"])
        .await;
    assert_eq!((exported.code, exported.stdout.as_str()), (Some(0), ""));
    place.end(process).await;
}

/// A job that expires before it is submitted is refused. A job that was accepted in time stays
/// accepted when its caller repeats it.
async fn a_job_of_the_past_is_refused_and_a_repeat_is_not(place: Place) {
    let process = place.serve().await;
    let job = |key: &str, expires_at: &str| {
        json!({
            "v": 1, "client_msg_no": key, "expires_at": expires_at,
            "message": {"type": "text", "text": "hi"}, "audience": {"users": ["u1"]},
        })
    };
    let (status, problem) = place
        .ask("POST", "/v1/jobs", &job("old", "2020-01-01T00:00:00Z"))
        .await;
    assert_eq!(status, 400, "{problem}");
    assert_eq!(problem["problems"][0]["field"], "expires_at", "{problem}");
    let (status, _) = place.ask("GET", "/v1/jobs/old", &Value::Null).await;
    assert_eq!(status, 404);

    let soon = fanwise::clock::rfc3339(fanwise::clock::now_ms() + 3000);
    let (status, answer) = place.ask("POST", "/v1/jobs", &job("in-time", &soon)).await;
    assert_eq!(status, 202, "{answer}");
    until("completion", BOUND, async || {
        let (_, found) = place.ask("GET", "/v1/jobs/in-time", &Value::Null).await;
        (found["state"] == "completed").then_some(())
    })
    .await;
    until("the time is over", BOUND, async || {
        // A job that arrived in time would be known.
        let late = job(&format!("late-{}", fastrand::u64(..)), &soon);
        let (status, _) = place.ask("POST", "/v1/jobs", &late).await;
        (status == 400).then_some(())
    })
    .await;
    let (status, answer) = place.ask("POST", "/v1/jobs", &job("in-time", &soon)).await;
    assert_eq!(status, 200, "{answer}");
    place.end(process).await;
}

/// A job answered with 202 is found from then on, even if no worker runs: by its id and its key,
/// over HTTP and by commands. It can be cancelled, and its key belongs to its message.
#[tokio::test(flavor = "multi_thread")]
async fn an_accepted_job_is_found_while_no_worker_runs() {
    let Some(place) = Place::servers("found").await else {
        return;
    };
    let admin = format!("127.0.0.1:{}", free_port());
    let mut gateway = fanwise(
        &["gateway", "--config", &place.config],
        &[("FANWISE_ADMIN__LISTEN", &admin)],
    );
    gateway.until_prints("gateway listens", BOUND).await;
    let job = |key: &str, text: &str| {
        json!({
            "v": 1, "client_msg_no": key, "message": {"type": "text", "text": text},
            "audience": {"users": ["u1", "u2"]},
        })
    };
    until("the gateway accepts", BOUND, async || {
        let (status, _) = place.ask("POST", "/v1/jobs", &job("first", "hi")).await;
        (status == 202).then_some(())
    })
    .await;
    for number in 0..20 {
        let key = format!("k{number}");
        let (status, answer) = place.ask("POST", "/v1/jobs", &job(&key, "hi")).await;
        assert_eq!(status, 202, "{answer}");
        let (status, found) = place
            .ask("GET", &format!("/v1/jobs/{key}"), &Value::Null)
            .await;
        assert_eq!(status, 200, "{found}");
        assert_eq!(found["state"], "accepted", "{found}");
        assert_eq!(found["pending"], 2, "{found}");
        let hindrance = &found["hindrances"][0];
        assert_eq!(hindrance["cause"], "no_worker", "{found}");
    }
    let shown = place.json(&["job", "show", "k3"]).await;
    assert_eq!(shown["state"], "accepted", "{shown}");
    let (status, _) = place.ask("POST", "/v1/jobs", &job("k3", "other")).await;
    assert_eq!(status, 409);
    let cancelled = place.run(&["job", "cancel", "k3"]).await;
    assert_eq!(cancelled.code, Some(0), "{}", cancelled.stderr);
    let sent = place
        .run(&["send", "--client-msg-no", "cli", "--text", "hi", "u9"])
        .await;
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    let shown = place.json(&["job", "show", "cli"]).await;
    assert_eq!(shown["state"], "accepted", "{shown}");

    let mut worker = fanwise(&["worker", "--config", &place.config], &[]);
    worker.until_prints("ready: jobs are taken", BOUND).await;
    for (key, outcome, count) in [
        ("k3", "cancelled", 2),
        ("k4", "sent", 2),
        ("cli", "sent", 1),
    ] {
        let found = until("completion", BOUND, async || {
            let path = format!("/v1/jobs/{key}");
            let (_, found) = place.ask("GET", &path, &Value::Null).await;
            (found["state"] == "completed").then_some(found)
        })
        .await;
        assert_eq!(found["accounts"][outcome], count, "{found}");
    }
    worker.terminate();
    worker.wait(BOUND).await;
    place.end(gateway).await;
}

async fn every_problem_of_a_request_is_told(place: Place) {
    let process = place.serve().await;
    let check = async |method: &str, path: &str, body: Value, status: u16, fields: &[&str]| {
        let (found, problem) = place.ask(method, path, &body).await;
        assert_eq!(found, status, "{path}: {problem}");
        assert_eq!(problem["status"], status, "{problem}");
        let problems = match &problem["problems"] {
            Value::Null => Vec::new(),
            problems => names(problems, "field"),
        };
        assert_eq!(problems, fields, "{path}: {problem}");
        problem["detail"].as_str().unwrap().to_owned()
    };
    let none = || Value::Null;
    let detail = check(
        "GET",
        "/v1/jobs?stat=running&limit=0",
        none(),
        400,
        &["limit", "stat"],
    );
    assert!(detail.await.contains("did you mean `state`"));
    let wrong = "/v1/jobs?state=x&since=soon&cursor=7";
    check("GET", wrong, none(), 400, &["state", "since", "cursor"]).await;
    check(
        "GET",
        "/v1/dead?claas=x&outcome=sent",
        none(),
        400,
        &["outcome", "claas"],
    )
    .await;
    check("GET", "/v1/jobs/k?ap=x", none(), 400, &["ap"]).await;
    check("GET", "/v1/jobs/k", none(), 404, &[]).await;
    check("GET", "/v1/jobs/k/recipients/u", none(), 404, &[]).await;
    check("GET", "/v1/jbos", none(), 404, &[]).await;
    check("DELETE", "/v1/jobs", none(), 405, &[]).await;
    check(
        "POST",
        "/v1/jobs?priority=low",
        json!({}),
        400,
        &["priority"],
    )
    .await;
    check(
        "POST",
        "/v1/dead:redrive",
        json!({"uncertian": true, "job": 1}),
        400,
        &["job", "uncertian"],
    )
    .await;
    check("POST", "/v1/dead:redrive", json!([]), 400, &[""]).await;
    check(
        "POST",
        "/v1/dead:purge",
        json!({"since": "x"}),
        400,
        &["confirm", "since"],
    )
    .await;
    let large = json!({"reason": "x".repeat(1024 * 1024)});
    for path in ["/v1/dead:purge", "/v1/targets/im:park"] {
        let (status, answer) = place.ask("POST", path, &large).await;
        assert_eq!(status, 413, "{answer}");
        let told = answer["detail"].as_str().unwrap();
        assert!(
            told.starts_with("the body has more than 1048576 bytes"),
            "{told}"
        );
    }
    let usage = place.run(&["dead", "list", "--since", "soon"]).await;
    assert_eq!(usage.code, Some(64), "{}", usage.stderr);
    place.end(process).await;
}

async fn refuses_what_it_does_not_know(place: &Place, method: &str, path: &str) {
    let path = format!("{path}?nonsense=1");
    let (status, answer) = place.ask(method, &path, &Value::Null).await;
    let told = answer["detail"].as_str().unwrap_or_default();
    assert_eq!(status, 400, "{method} {path}: {answer}");
    assert!(
        told.starts_with("nonsense: unknown parameter; known are ")
            || told == "nonsense: unknown parameter; this path takes none",
        "{method} {path}: {told}"
    );
}

/// Every documented operation has a handler and refuses a parameter that is not documented, and no
/// path accepts a method or a verb that is not. A test beside the table of routes checks that no
/// path is missing.
async fn the_document_is_what_is_served(place: Place) {
    let process = place.serve().await;
    let document = place.get("/openapi.json").await;
    let mut routes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut verbs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        // Doors of systems are open only where an app has them.
        if methods["post"]["tags"][0] == "Drop-in endpoints" {
            let (status, _) = place.ask("POST", path, &json!({})).await;
            assert_eq!(status, 404, "{path}");
            continue;
        }
        let asked: String = path
            .split('{')
            .map(|piece| {
                piece
                    .split_once('}')
                    .map_or(piece.to_owned(), |(_, rest)| format!("x{rest}"))
            })
            .collect();
        // The router treats a name and its verb as one segment.
        let route = match path.rsplit_once("}:") {
            Some((_, verb)) => {
                let route = asked.strip_suffix(&format!(":{verb}")).unwrap();
                verbs
                    .entry(route.to_owned())
                    .or_default()
                    .insert(verb.to_owned());
                route.to_owned()
            }
            None => asked.clone(),
        };
        for method in methods.as_object().unwrap().keys() {
            let method = method.to_uppercase();
            // A stream that does not end by itself.
            if path == "/v1/events" {
                refuses_what_it_does_not_know(&place, &method, &asked).await;
                routes.entry(route.clone()).or_default().insert(method);
                continue;
            }
            let (status, answer) = place.ask(&method, &asked, &Value::Null).await;
            let detail = answer["detail"].as_str().unwrap_or_default();
            assert!(
                status != 405
                    && !detail.contains("there is nothing at")
                    && !detail.contains("NAME:VERB"),
                "{method} {path}: {status} {detail}"
            );
            let documented = &methods[method.to_lowercase()]["responses"];
            assert!(
                documented.get(status.to_string()).is_some(),
                "{method} {path}: {status}"
            );
            if path != "/livez" {
                refuses_what_it_does_not_know(&place, &method, &asked).await;
            }
            routes.entry(route.clone()).or_default().insert(method);
        }
    }
    for (route, documented) in routes {
        let head = place.head_of("PATCH", &route).await;
        let allowed = head
            .lines()
            .find_map(|line| line.strip_prefix("allow: "))
            .unwrap();
        let mut allowed: BTreeSet<_> = allowed.split(',').map(str::to_owned).collect();
        allowed.remove("HEAD");
        assert_eq!(allowed, documented, "{route}");
    }
    assert_eq!(verbs.len(), 3);
    for (route, documented) in verbs {
        let (_, answer) = place.ask("POST", &route, &Value::Null).await;
        let (_, taken) = answer["detail"]
            .as_str()
            .unwrap()
            .split_once("verbs are ")
            .unwrap();
        let taken: BTreeSet<_> = taken.split(", ").map(str::to_owned).collect();
        assert_eq!(taken, documented, "{route}");
    }
    place.end(process).await;
}
