//! Tests the producers in `examples/`, as a service would run them: with a real broker, a worker
//! and the mock.

use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::embedded::Place;
use crate::support::process::Finished;
use crate::support::scratch::Scratch;
use crate::support::toolchain::{Program, example};
use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, World, users};

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Publishes to the world's exchange, unless the flags say otherwise.
pub(crate) async fn publish(
    world: &World,
    producer: &Program,
    key: &str,
    flags: &[&str],
) -> Finished {
    let exchange = format!("{}.jobs", world.name);
    let usual = [
        "--url",
        &world.amqp,
        "--client-msg-no",
        key,
        "--text",
        "hello",
    ];
    let exchange = if flags.contains(&"--exchange") {
        vec![]
    } else {
        vec!["--exchange", &exchange]
    };
    let flags = [&usual, exchange.as_slice(), flags].concat();
    producer.start(&flags).finish(BOUND).await
}

/// The id of the job with this key.
async fn job_of(world: &World, key: &str) -> String {
    let record = until(&format!("job {key:?}"), BOUND, async || {
        world.job(key).await
    })
    .await;
    record["job"].as_str().unwrap().to_owned()
}

async fn completed_with(world: &World, key: &str, total: usize) -> Value {
    let job = job_of(world, key).await;
    let what = format!("{total} entries of job {key:?} settled");
    until(&what, BOUND, async || {
        let record = world.job(&job).await?;
        (record["state"] == "completed" && record["accounts"]["total"] == total).then_some(())
    })
    .await;
    world.completed(&job).await
}

fn assert_accepted(finished: &Finished) {
    assert_eq!(
        finished.code,
        Some(0),
        "{} {}",
        finished.stdout,
        finished.stderr
    );
    assert!(
        finished.stdout.starts_with("accepted: "),
        "{}",
        finished.stdout
    );
}

fn assert_refused(finished: &Finished, reason: &str) {
    assert!(
        finished.code.is_some_and(|code| code != 0),
        "accepted: {}",
        finished.stdout
    );
    assert!(
        finished.stderr.contains(reason),
        "{reason:?} in {}",
        finished.stderr
    );
    assert_eq!(finished.stdout, "");
}

/// The behaviour that every producer must have.
async fn producer_keeps_its_word(world: World, producer: Program) {
    let folder = Scratch::new("lists");
    // Before the exchange exists, nothing is accepted.
    let nowhere = publish(&world, &producer, "early", &["--count", "3"]).await;
    assert_refused(&nowhere, "NOT_FOUND - no exchange");
    let worker = world.worker().await;

    // A list from a file, with unusual ids, twice: each recipient gets it once.
    let mut everybody = users(1500);
    everybody.extend(["Zoë \"the\" \\ 张伟", "a b", "0"].map(str::to_owned));
    let list = folder.write("list", everybody.join("\n") + "\n\n");
    let flags = [
        "--file",
        list.to_str().unwrap(),
        "--target",
        "im",
        "--traceparent",
        TRACEPARENT,
    ];
    assert_accepted(&publish(&world, &producer, "list", &flags).await);
    let record = completed_with(&world, "list", everybody.len()).await;
    assert_eq!(record["accounts"]["sent"], everybody.len(), "{record}");
    assert_accepted(&publish(&world, &producer, "list", &flags).await);
    until("the repeat was read", BOUND, async || {
        (worker.metrics().await["fanwise_jobs_total{result=\"repeated\"}"] == 1.0).then_some(())
    })
    .await;
    world.assert_once_each(&everybody);
    let trace = |entry: &fanwise_mock_im::Entry| {
        entry
            .traceparent
            .as_deref()
            .is_some_and(|it| it.contains("0af7651916cd43dd8448eb211c80319c"))
    };
    assert!(
        world.mock.accepted().iter().all(trace),
        "the trace context did not reach the backend"
    );

    // A list of more than 4 MiB is published as parts of one job, at another priority.
    let long: Vec<String> = (0..17_000)
        .map(|number| format!("{number:0>250}"))
        .collect();
    let list = folder.write("long", long.join("\n"));
    let flags = ["--file", list.to_str().unwrap(), "--routing-key", "bulk"];
    let finished = publish(&world, &producer, "long", &flags).await;
    assert_accepted(&finished);
    assert!(
        finished.stdout.contains("17000 recipients in 2 message(s)"),
        "{}",
        finished.stdout
    );
    // All of them are there; sending to them would show nothing more.
    let job = job_of(&world, "long").await;
    until("both parts are counted", BOUND, async || {
        let record = world.job(&job).await?;
        (record["accounts"]["total"] == long.len()).then_some(())
    })
    .await;
    let cancelled = world
        .run(&["job", "cancel", "long", "--reason", "seen"])
        .await;
    assert_eq!(cancelled.code, Some(0), "{}", cancelled.stderr);
    completed_with(&world, "long", long.len()).await;

    assert_accepted(&publish(&world, &producer, "count", &["--count", "2000"]).await);
    let record = completed_with(&world, "count", 2000).await;
    assert_eq!(record["accounts"]["sent"], 2000, "{record}");

    // A message that reaches no queue is not accepted, although the broker confirms it.
    let nobody = publish(
        &world,
        &producer,
        "lost",
        &["--count", "3", "--routing-key", "nobody"],
    )
    .await;
    assert_refused(&nobody, "returned");
    let nowhere = publish(
        &world,
        &producer,
        "lost",
        &["--count", "3", "--exchange", "nowhere"],
    )
    .await;
    assert_refused(&nowhere, "NOT_FOUND - no exchange");
    // Nor is it without a broker.
    let away = [
        "--url",
        "amqp://guest:guest@127.0.0.1:1/%2f",
        "--count",
        "3",
    ];
    let away = publish(&world, &producer, "lost", &away).await;
    assert!(
        away.code.is_some_and(|code| code != 0) && away.stdout.is_empty(),
        "{}",
        away.stdout
    );
    assert!(world.job("lost").await.is_none() && world.job("early").await.is_none());

    let metrics = worker.metrics().await;
    assert_eq!(metrics["fanwise_jobs_total{result=\"rejected\"}"], 0.0);
    worker.drain().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_producer_keeps_its_word() {
    let (Some(plan), Some(producer)) = (Plan::shared(), Program::python("producer.py")) else {
        return;
    };
    producer_keeps_its_word(plan.start("python").await, producer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_producer_keeps_its_word() {
    let folder = Scratch::new("node");
    let producer = Program::node("producer.mjs", &folder);
    let (Some(plan), Some(producer)) = (Plan::shared(), producer) else {
        return;
    };
    producer_keeps_its_word(plan.start("node").await, producer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_go_producer_keeps_its_word() {
    let folder = Scratch::new("go");
    let producer = Program::go("producer.go", &folder).await;
    let (Some(plan), Some(producer)) = (Plan::shared(), producer) else {
        return;
    };
    producer_keeps_its_word(plan.start("go").await, producer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_java_producer_keeps_its_word() {
    let folder = Scratch::new("java");
    let producer = Program::java("Producer.java", &folder).await;
    let (Some(plan), Some(producer)) = (Plan::shared(), producer) else {
        return;
    };
    producer_keeps_its_word(plan.start("java").await, producer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_php_producer_keeps_its_word() {
    let (Some(plan), Some(producer)) = (Plan::shared(), Program::php("producer.php")) else {
        return;
    };
    producer_keeps_its_word(plan.start("php").await, producer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rust_producer_keeps_its_word() {
    let Some(plan) = Plan::shared() else { return };
    let producer = Program::rust("producer").await;
    producer_keeps_its_word(plan.start("rust").await, producer).await;
}

/// A server that loses the first request, and has no time for the second; it accepts the third. Keeps
/// what it gets.
async fn busy_server() -> (String, Arc<Mutex<Vec<Vec<u8>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let got = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&got);
    tokio::spawn(async move {
        for reply in [
            "",
            "HTTP/1.1 503 Busy\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            "HTTP/1.1 202 Accepted\r\ncontent-length: 29\r\nconnection: close\r\n\r\n\
             {\"job\":\"abc\",\"recipients\":3} ",
        ] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let request = whole_request(&mut stream).await;
            kept.lock().push(request);
            stream.write_all(reply.as_bytes()).await.unwrap();
        }
    });
    (url, got)
}

/// The body of the next request, after the header with its job.
async fn whole_request(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0, "cut");
        let Some(end) = bytes.windows(4).position(|it| it == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        let value = |name: &str| {
            let line = head.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("no {name} in {head}"))
                .trim()
                .to_owned()
        };
        let length: usize = value("content-length:").parse().unwrap();
        if bytes.len() == end + 4 + length {
            let job = value("fanwise-job-spec:").into_bytes();
            return [&job[..], b"\n", &bytes[end + 4..]].concat();
        }
    }
}

/// The behaviour that every producer over HTTP must have: it repeats the same request until it is
/// answered, and only an acceptance is one.
async fn http_producer_keeps_its_word(producer: &Program, place: &Place, name: &str) {
    let submit = async |url: &str, text: &str, list: &[&str]| {
        let usual = ["--url", url, "--client-msg-no", name, "--text", text];
        let flags = [&usual, list].concat();
        producer.start(&flags).finish(BOUND).await
    };
    // The crate has such a test of its own.
    if name != "rust" {
        let (busy, got) = busy_server().await;
        assert_accepted(&submit(&busy, "hello", &["--count", "3"]).await);
        let got = got.lock().clone();
        assert_eq!(got.len(), 3);
        assert!(got[0].ends_with(b"\n\"u0\"\n\"u1\"\n\"u2\"\n"));
        assert!(got.iter().all(|request| *request == got[0]));
    }

    let url = format!("http://127.0.0.1:{}", place.gateway);
    let own: Vec<_> = users(1500)
        .iter()
        .map(|user| format!("{name}-{user}"))
        .collect();
    let folder = Scratch::new("http-list");
    let odd = format!("{name} Zoë \"the\" \\\\ <张伟>");
    let list = folder.write("list", [own.join("\n"), odd.clone()].join("\n") + "\n\n");
    let list = ["--file", list.to_str().unwrap()];
    for _ in 0..2 {
        let accepted = submit(&url, "<Grüße> & \"more\"", &list).await;
        assert_accepted(&accepted);
        assert!(
            accepted.stdout.contains("1501 recipients"),
            "{}",
            accepted.stdout
        );
    }
    assert_eq!(place.completed(name).await["accounts"]["sent"], 1501);
    let once = place.accepted_once();
    assert!(own.iter().chain([&odd]).all(|user| once.contains(user)));
    let other = submit(&url, "other", &list).await;
    assert_refused(&other, "409");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_producers_over_http_keep_their_word() {
    let (go, node) = (Scratch::new("go"), Scratch::new("node"));
    let programs = [
        ("python", Program::python("http_producer.py")),
        ("node", Program::node("http_producer.mjs", &node)),
        ("go", Program::go("http_producer.go", &go).await),
        ("rust", Some(Program::rust("http_producer").await)),
    ];
    let place = Place::new("http-producers").await;
    let _process = place.serve().await;
    let kept = programs.iter().filter_map(|(name, program)| {
        let program = program.as_ref()?;
        Some(http_producer_keeps_its_word(program, &place, name))
    });
    futures_util::future::join_all(kept).await;
}

/// The limits by which the producers split their lists are the worker's.
#[test]
fn the_producers_know_the_limits() {
    use fanwise::domain::job::{JOB_BYTES_MAX, JOB_RECIPIENTS_MAX};
    assert_eq!(
        (JOB_RECIPIENTS_MAX, JOB_BYTES_MAX),
        (100_000, 4 * 1024 * 1024)
    );
    for name in [
        "producer.rs",
        "producer.py",
        "producer.mjs",
        "producer.go",
        "producer.php",
        "Producer.java",
    ] {
        let source = std::fs::read_to_string(example(name)).unwrap();
        assert!(
            source.contains("100_000") && source.contains("4 * 1024 * 1024"),
            "{name}"
        );
    }
}
