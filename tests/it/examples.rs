//! Tests the producers in `examples/`, as a service would run them: with a real broker, a worker
//! and the mock.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::support::process::{Finished, Process};
use crate::support::scratch::Scratch;
use crate::support::servers::skip;
use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, World, users};

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Only the example itself is compiled; its dependencies were compiled for the tests.
const BUILD_BOUND: Duration = Duration::from_secs(300);

/// One producer: a program and the arguments before its flags.
pub(crate) struct Producer {
    program: PathBuf,
    first: Vec<PathBuf>,
}

impl Producer {
    /// `None` means skip.
    pub(crate) fn python() -> Option<Self> {
        let python = tool("FANWISE_TEST_PYTHON")?;
        Some(Self {
            program: python,
            first: vec![example("producer.py")],
        })
    }

    /// Node.js looks for modules beside the file that imports them, so it runs a copy beside them.
    fn node(folder: &Scratch) -> Option<Self> {
        let modules = tool("FANWISE_TEST_NODE_PATH")?;
        let folder = folder.path();
        std::os::unix::fs::symlink(modules, folder.join("node_modules")).unwrap();
        let copy = folder.join("producer.mjs");
        std::fs::copy(example("producer.mjs"), &copy).unwrap();
        Some(Self {
            program: "node".into(),
            first: vec![copy],
        })
    }

    /// Built as this test was: into target/<profile>/examples, beside target/<profile>/deps/<test>.
    async fn rust() -> Self {
        let test = env::current_exe().unwrap();
        let profile = test.parent().and_then(Path::parent).unwrap();
        let name = profile.file_name().unwrap().to_str().unwrap();
        let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        // Variables that cargo sets for a test would make build scripts run again.
        let of_the_test = env::vars()
            .map(|(variable, _)| variable)
            .filter(|variable| {
                ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"]
                    .iter()
                    .any(|it| variable.starts_with(it))
            });
        let without: Vec<_> = of_the_test
            .flat_map(|variable| ["-u".to_owned(), variable])
            .collect();
        let without: Vec<_> = without.iter().map(String::as_str).collect();
        let build = [
            cargo.as_str(),
            "build",
            "--quiet",
            "--locked",
            "--example",
            "producer",
            "--manifest-path",
            concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
            "--target-dir",
            profile.parent().unwrap().to_str().unwrap(),
            "--profile",
            if name == "debug" { "dev" } else { name },
        ];
        let flags = [without.as_slice(), &build].concat();
        let built = Process::start(Path::new("env"), &flags, &[], b"")
            .finish(BUILD_BOUND)
            .await;
        assert_eq!(built.code, Some(0), "{}", built.stderr);
        Self {
            program: profile.join("examples/producer"),
            first: Vec::new(),
        }
    }

    /// Publishes to the world's exchange, unless the flags say otherwise.
    pub(crate) async fn publish(&self, world: &World, key: &str, flags: &[&str]) -> Finished {
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
        let flags: Vec<_> = [&usual, exchange.as_slice(), flags]
            .concat()
            .into_iter()
            .map(PathBuf::from)
            .collect();
        Process::start(
            &self.program,
            &[self.first.as_slice(), &flags].concat(),
            &[],
            b"",
        )
        .finish(BOUND)
        .await
    }
}

fn tool(variable: &str) -> Option<PathBuf> {
    let found = env::var_os(variable).filter(|value| !value.is_empty());
    if found.is_none() {
        skip(&format!("{variable} is not set; tests/run sets it"));
    }
    found.map(PathBuf::from)
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples")
        .join(name)
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
async fn producer_keeps_its_word(world: World, producer: Producer) {
    let folder = Scratch::new("lists");
    // Before the exchange exists, nothing is accepted.
    let nowhere = producer.publish(&world, "early", &["--count", "3"]).await;
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
    assert_accepted(&producer.publish(&world, "list", &flags).await);
    let record = completed_with(&world, "list", everybody.len()).await;
    assert_eq!(record["accounts"]["sent"], everybody.len(), "{record}");
    assert_accepted(&producer.publish(&world, "list", &flags).await);
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
    let finished = producer.publish(&world, "long", &flags).await;
    assert_accepted(&finished);
    assert!(
        finished.stdout.contains("17000 recipients in 2 message(s)"),
        "{}",
        finished.stdout
    );
    let record = completed_with(&world, "long", long.len()).await;
    assert_eq!(record["accounts"]["sent"], long.len(), "{record}");

    assert_accepted(
        &producer
            .publish(&world, "count", &["--count", "2000"])
            .await,
    );
    let record = completed_with(&world, "count", 2000).await;
    assert_eq!(record["accounts"]["sent"], 2000, "{record}");

    // A message that reaches no queue is not accepted, although the broker confirms it.
    let nobody = producer
        .publish(&world, "lost", &["--count", "3", "--routing-key", "nobody"])
        .await;
    assert_refused(&nobody, "returned");
    let nowhere = producer
        .publish(&world, "lost", &["--count", "3", "--exchange", "nowhere"])
        .await;
    assert_refused(&nowhere, "NOT_FOUND - no exchange");
    // Nor is it without a broker.
    let away = [
        "--url",
        "amqp://guest:guest@127.0.0.1:1/%2f",
        "--count",
        "3",
    ];
    let away = producer.publish(&world, "lost", &away).await;
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
    let (Some(plan), Some(producer)) = (Plan::shared(), Producer::python()) else {
        return;
    };
    producer_keeps_its_word(plan.start("python").await, producer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_producer_keeps_its_word() {
    let Some(plan) = Plan::shared() else { return };
    let folder = Scratch::new("node");
    let Some(producer) = Producer::node(&folder) else {
        return;
    };
    producer_keeps_its_word(plan.start("node").await, producer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rust_producer_keeps_its_word() {
    let Some(plan) = Plan::shared() else { return };
    let producer = Producer::rust().await;
    producer_keeps_its_word(plan.start("rust").await, producer).await;
}

/// The limits by which the producers split their lists are the worker's.
#[test]
fn the_producers_know_the_limits() {
    use fanwise::domain::job::{JOB_BYTES_MAX, JOB_RECIPIENTS_MAX};
    assert_eq!(
        (JOB_RECIPIENTS_MAX, JOB_BYTES_MAX),
        (100_000, 4 * 1024 * 1024)
    );
    for name in ["producer.rs", "producer.py", "producer.mjs"] {
        let source = std::fs::read_to_string(example(name)).unwrap();
        assert!(
            source.contains("100_000") && source.contains("4 * 1024 * 1024"),
            "{name}"
        );
    }
}
