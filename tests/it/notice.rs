//! Tests notices about the end of a job: the receiver's own log is compared with the job's
//! accounts.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use futures_util::StreamExt as _;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use serde_json::{Value, json};

use crate::api::Place;
use crate::support::raw::Producer;
use crate::support::signature::assert_signed;
use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, Worker, World, users};

const SECRET: &str = "between you and me";

/// One request as a receiver got it.
#[derive(Clone, Debug)]
struct Received {
    headers: BTreeMap<String, String>,
    body: Bytes,
}

impl Received {
    /// The event. Panics if the signature is wrong.
    fn verified(&self) -> Value {
        let header = |name: &str| self.headers[name].as_str();
        assert_signed(SECRET.as_bytes(), header, &self.body);
        let event: Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(event["id"], header("webhook-id"));
        event
    }
}

/// A receiver of callbacks. It gives the answers it was set to, and 200 after those.
#[derive(Clone)]
struct Receiver {
    address: SocketAddr,
    log: Arc<Mutex<Log>>,
}

#[derive(Default)]
struct Log {
    received: Vec<Received>,
    answers: VecDeque<Answer>,
}

enum Answer {
    Status(u16),
    /// Never answers.
    Silence,
}

impl Receiver {
    async fn start(answers: impl IntoIterator<Item = Answer>) -> Self {
        let log = Log {
            answers: answers.into_iter().collect(),
            ..Log::default()
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let receiver = Self {
            address: listener.local_addr().unwrap(),
            log: Arc::new(Mutex::new(log)),
        };
        let router = Router::new()
            .route("/done", post(receive))
            .with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        receiver
    }

    fn url(&self) -> String {
        format!("http://{}/done", self.address)
    }

    fn received(&self) -> Vec<Received> {
        self.log.lock().unwrap().received.clone()
    }

    async fn until_received(&self, count: usize) -> Vec<Received> {
        until(&format!("{count} callbacks"), BOUND, async || {
            Some(self.received()).filter(|it| it.len() >= count)
        })
        .await
    }
}

async fn receive(State(receiver): State<Receiver>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let answer = {
        let mut log = receiver.log.lock().unwrap();
        let headers = headers.iter();
        let headers = headers.map(|(name, value)| {
            let value = value.to_str().unwrap_or_default();
            (name.to_string(), value.to_owned())
        });
        let headers = headers.collect();
        log.received.push(Received { headers, body });
        log.answers.pop_front()
    };
    match answer {
        None => StatusCode::OK,
        Some(Answer::Status(status)) => StatusCode::from_u16(status).unwrap(),
        Some(Answer::Silence) => std::future::pending().await,
    }
}

fn callbacks(hosts: &str, private: bool) -> String {
    format!(
        "[apps.default.callbacks]\nhosts = [{hosts}]\nprivate = {private}\nsecret = {SECRET:?}\n"
    )
}

/// A world whose jobs may name a receiver on this machine.
async fn world(name: &str) -> Option<World> {
    let mut plan = Plan::shared()?;
    let replies = "[apps.default]\nreply_to = [\"amq.gen-*\", \"nobody-is-there\"]\n";
    plan.more = replies.to_owned() + &callbacks("\"127.0.0.1\"", true);
    Some(plan.start(name).await)
}

fn job(key: &str, users: &[String], more: &Value) -> Value {
    let mut job = json!({
        "v": 1,
        "client_msg_no": key,
        "audience": {"users": users},
        "message": {"type": "text", "text": "hello"},
    });
    let more = more.as_object().unwrap().clone();
    job.as_object_mut().unwrap().extend(more);
    job
}

async fn submit(world: &World, job: &Value) {
    world.publish_raw(job.to_string().as_bytes()).await;
}

/// Waits until a worker has counted this many notices.
async fn until_counted(worker: &Worker, kind: &str, result: &str, count: f64) {
    let line = format!("fanwise_notices_total{{kind=\"{kind}\",result=\"{result}\"}}");
    until_it_shows(worker, &line, count).await;
}

async fn until_it_shows(worker: &Worker, line: &str, count: f64) {
    until(&format!("{line} {count}"), BOUND, async || {
        (worker.metrics().await.get(line) == Some(&count)).then_some(())
    })
    .await;
}

/// A receiver that fails twice still gets the notice: the same bytes, with the right accounts.
#[tokio::test(flavor = "multi_thread")]
async fn a_callback_is_retried_until_it_is_taken() {
    let Some(world) = world("callback").await else {
        return;
    };
    let faults = json!({"refuse_prefix": "bad-"});
    world.mock.patch_faults(&faults).unwrap();
    let receiver = Receiver::start([Answer::Status(503), Answer::Status(503)]).await;
    let worker = world.worker().await;
    let people = [users(150), vec!["bad-1".to_owned()]].concat();
    submit(
        &world,
        &job("n1", &people, &json!({"callback_url": receiver.url()})),
    )
    .await;
    let received = receiver.until_received(3).await;
    until_counted(&worker, "callback", "delivered", 1.0).await;
    until_counted(&worker, "callback", "retried", 2.0).await;
    let event = received[0].verified();
    assert_eq!(event["event"], "completed");
    assert_eq!(event["client_msg_no"], "n1");
    assert_eq!(event["pending"], 0);
    let id = event["job"].as_str().unwrap();
    assert_eq!(event["id"], format!("{id}.1"));
    let record = world.completed(id).await;
    assert_eq!(event["accounts"], record["accounts"], "{record}");
    assert_eq!(event["accounts"]["sent"], 150);
    assert_eq!(event["accounts"]["failed"], 1);
    assert_eq!(record["callback_url"], receiver.url());
    for repeat in &received[1..] {
        assert_eq!(repeat.verified(), event);
        assert_eq!(repeat.body, received[0].body);
    }

    // Further recipients lead to another completion, with an id of its own.
    let url = json!({"callback_url": receiver.url()});
    submit(&world, &job("n1", &["late".to_owned()], &url)).await;
    let received = receiver.until_received(4).await;
    let event = received[3].verified();
    assert_eq!(event["id"], format!("{id}.2"));
    assert_eq!(event["accounts"]["total"], 152);
    worker.drain().await;
    world.end().await;
}

/// If a worker is killed before its receiver answers, the next worker sends the notice.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_before_the_answer_is_no_end() {
    let Some(world) = world("killed").await else {
        return;
    };
    let receiver = Receiver::start([Answer::Silence]).await;
    let mut worker = world.worker().await;
    let url = json!({"callback_url": receiver.url()});
    submit(&world, &job("n1", &users(5), &url)).await;
    receiver.until_received(1).await;
    worker.process.kill();
    let next = world.worker().await;
    let received = receiver.until_received(2).await;
    assert_eq!(received[1].verified(), received[0].verified());
    until_counted(&next, "callback", "delivered", 1.0).await;
    next.drain().await;
    world.end().await;
}

/// Callbacks do not depend on the target of the messages: a parked target delays none.
#[tokio::test(flavor = "multi_thread")]
async fn a_parked_target_holds_no_callback_up() {
    let Some(world) = world("parked").await else {
        return;
    };
    let receiver = Receiver::start((0..3).map(|_| Answer::Status(500))).await;
    let worker = world.worker().await;
    let url = json!({"callback_url": receiver.url()});
    submit(&world, &job("n1", &users(5), &url)).await;
    receiver.until_received(1).await;
    let parked = ["target", "park", "im", "--for", "10m", "--reason", "test"];
    let finished = world.run(&parked).await;
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let line = "fanwise_target_parked{reason=\"operator\",target=\"im\"}";
    until("the worker to know of it", BOUND, async || {
        (worker.metrics().await[line] == 1.0).then_some(())
    })
    .await;
    receiver.until_received(4).await;
    until_counted(&worker, "callback", "delivered", 1.0).await;
    assert_eq!(worker.metrics().await[line], 1.0, "it is still parked");
    worker.drain().await;
    world.end().await;
}

/// A reply queue gets the accounts with the key of the job; a missing queue delays nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_reply_is_published_to_the_queue_that_was_named() {
    let Some(world) = world("reply").await else {
        return;
    };
    let worker = world.worker().await;
    let connection = Connection::connect(&world.amqp, ConnectionProperties::default());
    let connection = connection.await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let exclusive = QueueDeclareOptions {
        exclusive: true,
        ..QueueDeclareOptions::default()
    };
    let declared = channel.queue_declare("".into(), exclusive, FieldTable::default());
    let queue = declared.await.unwrap().name().clone();
    let options = BasicConsumeOptions {
        no_ack: true,
        ..BasicConsumeOptions::default()
    };
    let consumer = channel.basic_consume(queue.clone(), "".into(), options, FieldTable::default());
    let mut replies = consumer.await.unwrap();

    let orders = json!({"reply_to": "orders"});
    submit(&world, &job("refused", &users(1), &orders)).await;
    until_it_shows(&worker, "fanwise_jobs_total{result=\"rejected\"}", 1.0).await;
    let nowhere = json!({"reply_to": "nobody-is-there"});
    submit(&world, &job("n0", &users(3), &nowhere)).await;
    until_counted(&worker, "reply", "abandoned", 1.0).await;
    let people = users(7);
    world
        .send("n1", &people, &["--reply-to", queue.as_str()])
        .await;
    let reply = tokio::time::timeout(BOUND, replies.next()).await.unwrap();
    let reply = reply.unwrap().unwrap();
    let correlation = reply.properties.correlation_id().as_ref().unwrap();
    assert_eq!(correlation.as_str(), "n1");
    let event: Value = serde_json::from_slice(&reply.data).unwrap();
    assert_eq!(event["event"], "completed");
    assert_eq!(event["accounts"]["sent"], 7);
    let id = event["job"].as_str().unwrap();
    assert_eq!(event["id"], format!("{id}.1"));
    world.completed(id).await;
    until_counted(&worker, "reply", "delivered", 1.0).await;
    worker.drain().await;
    world.end().await;
}

/// The embedded engine sends notices too, and refuses receivers that are not allowed immediately,
/// with every problem.
#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_engine_tells_whom_it_may() {
    let more = callbacks("\"127.0.0.1\"", true);
    let place = Place::embedded_with("notice", &more).await;
    let process = place.serve().await;
    let receiver = Receiver::start([]).await;
    let url = json!({"callback_url": receiver.url()});
    let (status, answer) = place
        .ask("POST", "/v1/jobs", &job("n1", &users(9), &url))
        .await;
    assert_eq!(status, 202, "{answer}");
    let event = receiver.until_received(1).await[0].verified();
    assert_eq!(event["accounts"]["sent"], 9);
    assert_eq!(event["job"], answer["job"]);

    let refused = json!({"callback_url": "https://elsewhere.example.com/", "reply_to": "q"});
    let (status, answer) = place
        .ask("POST", "/v1/jobs", &job("n2", &users(1), &refused))
        .await;
    assert_eq!(status, 400, "{answer}");
    let answer = answer.to_string();
    assert!(answer.contains("callback_url"), "{answer}");
    assert!(answer.contains("is not among callbacks.hosts"), "{answer}");
    assert!(answer.contains("no AMQP broker"), "{answer}");
    let (status, answer) = place
        .ask(
            "POST",
            "/v1/jobs",
            &job(
                "n3",
                &users(1),
                &json!({"app": "other", "callback_url": receiver.url()}),
            ),
        )
        .await;
    assert_eq!(status, 400, "{answer}");
    assert!(
        answer.to_string().contains("[apps.other.callbacks]"),
        "{answer}"
    );
    assert_eq!(receiver.received().len(), 1);
    place.end(process).await;
}

/// A job with a list that follows it, for each way to upload: headers and body.
fn uploads(job: &Value, list: &str) -> [(Vec<(&'static str, String)>, String); 3] {
    let by_header = |kind: &str| {
        vec![
            ("Content-Type", kind.to_owned()),
            ("Fanwise-Job-Spec", job.to_string()),
        ]
    };
    let form = format!(
        "--b\r\nContent-Disposition: form-data; name=\"job\"\r\n\r\n{job}\r\n\
         --b\r\nContent-Disposition: form-data; name=\"audience\"; filename=\"a.ndjson\"\r\n\r\n\
         {list}\r\n--b--\r\n"
    );
    let of_form = ("Content-Type", "multipart/form-data; boundary=b".to_owned());
    let csv = format!("user\n{}", list.replace('"', ""));
    [
        (by_header("application/x-ndjson"), list.to_owned()),
        (by_header("text/csv"), csv),
        (vec![of_form], form),
    ]
}

/// The receiver of an uploaded list is checked as for any other job, before anything is accepted.
/// It gets one notice, when all parts of the list are completed.
#[tokio::test(flavor = "multi_thread")]
async fn an_uploaded_list_tells_whom_it_may() {
    let more = callbacks("\"127.0.0.1\"", true);
    let others = callbacks("\"127.0.0.1\"", false).replace("default", "other");
    let place = Place::embedded_with("notice-upload", &format!("{more}{others}")).await;
    let process = place.serve().await;
    let receiver = Receiver::start([]).await;
    let upload = async |headers: &[(&str, String)], body: &str| {
        let headers: Vec<_> = headers.iter().map(|(name, it)| (*name, &**it)).collect();
        place.ask_with("POST", "/v1/jobs", &headers, body).await
    };
    let spec = |key: &str, more: &Value| {
        let mut job = job(key, &[], more);
        job.as_object_mut().unwrap().remove("audience");
        job
    };
    for (wrong, expected) in [
        (
            json!({"callback_url": "https://elsewhere.example.com/"}),
            "is not among callbacks.hosts",
        ),
        (json!({"callback_url": "not a url"}), "callback_url"),
        (json!({"reply_to": "q"}), "no AMQP broker"),
        (
            json!({"app": "other", "callback_url": receiver.url()}),
            "not a public address",
        ),
    ] {
        for (headers, body) in uploads(&spec("wrong", &wrong), "\"u1\"\n") {
            let (status, answer) = upload(&headers, &body).await;
            assert_eq!(status, 400, "{answer}");
            assert!(answer.to_string().contains(expected), "{answer}");
        }
    }
    let url = json!({"callback_url": receiver.url()});
    for number in 1..=3 {
        // Each upload is a job of its own.
        let spec = spec(&format!("list-{number}"), &url);
        let (headers, body) = &uploads(&spec, "\"u1\"\n\"u2\"\n")[number - 1];
        let (status, answer) = upload(headers, body).await;
        assert_eq!(status, 202, "{answer}");
        let event = receiver.until_received(number).await[number - 1].verified();
        assert_eq!(event["job"], answer["job"]);
        assert_eq!(event["accounts"]["sent"], 2);
    }
    // The values of each recipient are so large that the list becomes several messages.
    let large = "x".repeat(15_000);
    let lines = (0..400).map(|number| json!({"id": format!("v{number}"), "vars": {"x": large}}));
    let list: String = lines.map(|line| format!("{line}\n")).collect();
    let [(headers, body), ..] = uploads(&spec("parts", &url), &list);
    let (status, answer) = upload(&headers, &body).await;
    assert_eq!(status, 202, "{answer}");
    assert!(answer["messages"].as_u64() > Some(1), "{answer}");
    place.completed(answer["job"].as_str().unwrap()).await;
    let received = receiver.until_received(4).await;
    assert_eq!(received.len(), 4);
    assert_eq!(received[3].verified()["accounts"]["sent"], 400);
    place.end(process).await;
}

/// `fanwise send` accepts a receiver, and refuses one that is not allowed before it sends anything.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_to_be_told_can_be_said_on_the_command_line() {
    let place = Place::embedded_with("notice-send", &callbacks("\"127.0.0.1\"", true)).await;
    let process = place.serve().await;
    let receiver = Receiver::start([]).await;
    let url = receiver.url();
    let send = async |more: &[&str]| {
        let send = ["send", "--client-msg-no", "s1", "--text", "hi", "--json"];
        place.run(&[&send, more, &["ana", "bob"]].concat()).await
    };
    for (wrong, expected) in [
        (
            ["--callback-url", "https://elsewhere.example.com/"],
            "is not among callbacks.hosts",
        ),
        (["--reply-to", "answers"], "no AMQP broker"),
    ] {
        for dry in [&["--dry-run"][..], &[]] {
            let refused = send(&[&wrong, dry].concat()).await;
            assert_eq!(refused.code, Some(65), "{}", refused.stderr);
            assert!(refused.stderr.contains(expected), "{}", refused.stderr);
        }
    }
    let tried = send(&["--callback-url", &url, "--dry-run"]).await;
    assert_eq!(tried.code, Some(0), "{}", tried.stderr);
    let tried: Value = serde_json::from_str(&tried.stdout).unwrap();
    assert_eq!(tried["recipients"], 2);
    assert!(receiver.received().is_empty());
    let sent = send(&["--callback-url", &url]).await;
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    let sent: Value = serde_json::from_str(&sent.stdout).unwrap();
    let event = receiver.until_received(1).await[0].verified();
    assert_eq!(
        (&event["job"], &event["accounts"]["sent"]),
        (&sent["job"], &json!(2))
    );
    place.end(process).await;
}

/// A private address in a URL is refused immediately; one behind a host name is refused when the
/// worker connects.
#[tokio::test(flavor = "multi_thread")]
async fn a_private_address_is_refused_however_it_is_named() {
    let more = callbacks("\"127.0.0.1\", \"localhost\"", false) + "[retry]\nattempts_max = 1\n";
    let place = Place::embedded_with("private", &more).await;
    let mut process = place.serve().await;
    let receiver = Receiver::start([]).await;
    let url = json!({"callback_url": receiver.url()});
    let (status, answer) = place
        .ask("POST", "/v1/jobs", &job("n1", &users(1), &url))
        .await;
    assert_eq!(status, 400, "{answer}");
    assert!(
        answer.to_string().contains("not a public address"),
        "{answer}"
    );

    let named = receiver.url().replace("127.0.0.1", "localhost");
    let named = json!({"callback_url": named});
    let (status, answer) = place
        .ask("POST", "/v1/jobs", &job("n2", &users(1), &named))
        .await;
    assert_eq!(status, 202, "{answer}");
    place.completed(answer["job"].as_str().unwrap()).await;
    let line = process
        .until_prints("a callback is abandoned", Duration::from_secs(60))
        .await;
    assert!(line.contains("not a public address"), "{line}");
    assert!(receiver.received().is_empty());
    place.end(process).await;
}

/// Promise 11: a notice that names a missing lane is retried on the lane it came from. On the retry
/// ladder it would have no lane to return to, and would block the retries behind it.
#[tokio::test(flavor = "multi_thread")]
async fn promise_11_a_notice_for_no_lane_holds_up_no_retry() {
    let Some(world) = world("no-lane").await else {
        return;
    };
    let worker = world.worker().await;
    let receiver = Receiver::start((0..40).map(|_| Answer::Status(503))).await;
    let mut producer = Producer::connect(&world.amqp).await;
    let lanes = format!("{}.lanes", world.name);
    for number in 0..40 {
        let notice = json!({
            "v": 1, "id": format!("n.{number}"), "app": "default", "url": receiver.url(),
            "lane": "nowhere.express", "event": {},
        });
        let notice = notice.to_string();
        producer
            .publish(&lanes, b"im.notices", notice.as_bytes(), &[])
            .await;
    }
    until_counted(&worker, "callback", "retried", 40.0).await;
    let soon = jiff::Timestamp::now() + Duration::from_secs(2);
    let waits = json!({"not_before": soon.to_string()});
    submit(&world, &job("waits", &users(1), &waits)).await;
    let completed = "fanwise_jobs_completed_total";
    until_it_shows(&worker, completed, 1.0).await;
    until_counted(&worker, "callback", "delivered", 40.0).await;
    worker.drain().await;
    world.end().await;
}
