//! Promise 8: priorities are rates, apps share by weight, and jobs of an app share equally, while the
//! capacity of the target, or its limit, is fully used. The shares are taken from the mock's log, in
//! the order of its entries, so that they do not depend on how fast the machine is.

use fanwise::amqp;
use fanwise::domain::ids::JobId;
use fanwise::ports::{Broker as _, Outgoing, Publisher as _, Route, Session as _};
use fanwise_mock_im::{Entry, MockHandle};
use serde_json::{Value, json};

use crate::embedded::Place;
use crate::support::process::Process;
use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, Worker, World, assert_once_each, milliseconds};

/// A call takes this long, and all workers together make this many at a time: some 140 in a second,
/// and fewer on a busy machine.
pub(crate) const LATENCY: &str = "250ms";
pub(crate) const CALLS: usize = 36;
pub(crate) const SECOND: usize = 140;

/// A job begins after at most so many messages of others. It takes about a second where the machine
/// is idle; here builds and other tests may have most of it. Without fair shares a job waits for
/// whole slices of the others: for minutes.
pub(crate) const BEGINS: usize = 10 * SECOND;

/// Two apps with equal weight beside the default one, one with three times the weight, and one that
/// may have a quarter of the places.
const APPS: &str = "
    [apps.default]
    [apps.a]
    [apps.b]
    [apps.heavy]
    weight = 3
    [apps.small]
    concurrency_max = 25
";

/// How the target is slower than the jobs: by the calls that it answers at a time, or by its limit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scarce {
    Calls,
    Limit,
}

const LIMIT: &str = "limit = \"140/s burst 7\"";

/// The processes under test, and their mock.
enum Bench {
    /// Workers with RabbitMQ and Redis, and a producer.
    Servers(Box<World>, Vec<Worker>, amqp::Rabbit),
    Embedded(
        Place,
        #[allow(dead_code, reason = "it runs while it is held")] Process,
    ),
}

impl Bench {
    /// Some workers on RabbitMQ; `None` if this machine has no servers.
    async fn servers(name: &str, workers: usize, scarce: Scarce) -> Option<Self> {
        let mut plan = Plan::shared()?;
        plan.target
            .push_str(&format!("\ncalls_in_flight = {}", CALLS / workers));
        if scarce == Scarce::Limit {
            plan.target.push_str(&format!("\n{LIMIT}"));
        }
        plan.more.push_str(APPS);
        let world = plan.start(name).await;
        let mut running = Vec::new();
        for _ in 0..workers {
            running.push(world.worker().await);
        }
        slow(&world.mock, scarce);
        let producer = amqp::Rabbit::new(amqp::Settings {
            namespace: world.name.clone(),
            targets: vec!["im".to_owned()],
            ..amqp::Settings::new(&world.amqp)
        });
        Some(Self::Servers(Box::new(world), running, producer.unwrap()))
    }

    async fn embedded(name: &str, scarce: Scarce) -> Self {
        let mut target = format!("calls_in_flight = {CALLS}\n");
        if scarce == Scarce::Limit {
            target.push_str(LIMIT);
        }
        let place = Place::with(name, &format!("{target}\n{APPS}")).await;
        let process = place.serve().await;
        slow(&place.mock, scarce);
        Self::Embedded(place, process)
    }

    fn mock(&self) -> &MockHandle {
        match self {
            Self::Servers(world, ..) => &world.mock,
            Self::Embedded(place, _) => &place.mock,
        }
    }

    /// Submits a job of an app to `<name>-0`, `<name>-1`, …; `more`: further fields of the job.
    async fn send(&self, app: &str, name: &str, recipients: usize, more: &Value) -> String {
        let mut job = json!({
            "v": 1, "app": app, "client_msg_no": name, "audience": {"users": list(name, recipients)},
            "message": {"type": "text", "text": "hello"},
        });
        for (key, value) in more.as_object().unwrap() {
            job[key] = value.clone();
        }
        let body = job.to_string();
        match self {
            Self::Servers(_, _, producer) => {
                let priority = job["priority"].as_str().unwrap_or("normal");
                let message = Outgoing {
                    route: Route::Job(priority.parse().unwrap()),
                    body: body.into(),
                    message_id: name.to_owned(),
                    traceparent: None,
                };
                let session = producer.connect().await.unwrap();
                session.publisher().publish(vec![message]).await.unwrap();
                session.close().await;
            }
            Self::Embedded(place, _) => {
                let (status, answer) = place
                    .request(place.gateway, "POST /v1/jobs", body.as_bytes())
                    .await;
                assert_eq!(status, 202, "{answer}");
            }
        }
        JobId::of(app, name).to_string()
    }

    /// Waits until a worker has taken a job: it cuts large ones one after the other.
    async fn until_taken(&self, job: &str) {
        let Self::Servers(world, ..) = self else {
            unreachable!("it has workers");
        };
        until("a job that runs", BOUND, async || {
            (world.job(job).await?["state"] == "running").then_some(())
        })
        .await;
    }

    /// The number of messages that the mock accepted between the acceptance of a job and its first
    /// message.
    async fn begins_after(&self, job: &str, name: &str) -> usize {
        let mock = self.mock();
        until_sent(mock, name, 1).await;
        let record = self.json(&["job", "show", job]).await;
        let accepted_us = milliseconds(&record["accepted_at"]) * 1000;
        let later = accepted(mock)
            .into_iter()
            .filter(|it| it.at_us >= accepted_us);
        later.take_while(|it| !is_of(it, name)).count()
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        match self {
            Self::Servers(world, ..) => world.json(arguments).await,
            Self::Embedded(place, _) => place.json(arguments).await,
        }
    }

    /// Ends the test without waiting for the jobs.
    async fn end(self) {
        if let Self::Servers(world, workers, _) = self {
            for worker in workers {
                worker.drain().await;
            }
            world.end().await;
        }
    }
}

fn slow(mock: &MockHandle, scarce: Scarce) {
    if scarce == Scarce::Calls {
        mock.patch_faults(&json!({ "latency": LATENCY })).unwrap();
    }
}

pub(crate) fn list(name: &str, count: usize) -> Vec<String> {
    (0..count)
        .map(|number| format!("{name}-{number}"))
        .collect()
}

/// The messages that the mock accepted, in their order.
pub(crate) fn accepted(mock: &MockHandle) -> Vec<Entry> {
    let mut accepted = mock.accepted();
    accepted.sort_by_key(|entry| entry.at_us);
    accepted
}

pub(crate) fn is_of(entry: &Entry, name: &str) -> bool {
    let rest = entry.recipient.strip_prefix(name);
    rest.is_some_and(|rest| rest.starts_with('-'))
}

/// Waits until so many messages of a job were accepted.
pub(crate) async fn until_sent(mock: &MockHandle, name: &str, count: usize) {
    let what = format!("{count} messages of {name}");
    until(&what, BOUND, async || {
        let sent = mock.accepted().iter().filter(|it| is_of(it, name)).count();
        (sent >= count).then_some(())
    })
    .await;
}

/// The share of each name in `looked_at` of their messages, of those that the mock accepted from
/// `after` many on since all names had begun.
async fn shares<const N: usize>(
    mock: &MockHandle,
    names: [&str; N],
    after: usize,
    looked_at: usize,
) -> [f64; N] {
    let begun_us = until("a message of all", BOUND, async || {
        let accepted = accepted(mock);
        let first = names.map(|name| accepted.iter().find(|it| is_of(it, name)));
        let first = first.into_iter().map(|it| Some(it?.at_us));
        first.collect::<Option<Vec<_>>>()?.into_iter().max()
    })
    .await;
    shares_since(mock, names, begun_us, after, looked_at).await
}

/// The same, from `after` many on since a time of the mock's clock.
pub(crate) async fn shares_since<const N: usize>(
    mock: &MockHandle,
    names: [&str; N],
    since_us: u64,
    after: usize,
    looked_at: usize,
) -> [f64; N] {
    until("enough messages of all", BOUND, async || {
        let of = |entry: &Entry| names.iter().position(|name| is_of(entry, name));
        let accepted = accepted(mock).into_iter();
        let accepted = accepted.filter(|entry| entry.at_us >= since_us);
        let named: Vec<_> = accepted.filter_map(|entry| of(&entry)).collect();
        let looked = named.get(after..after + looked_at)?;
        let count = |name: usize| looked.iter().filter(|it| **it == name).count();
        Some(std::array::from_fn(|name| {
            count(name) as f64 / looked_at as f64
        }))
    })
    .await
}

/// The share of a job in what the mock accepted of all these jobs from the job's first message to its
/// message number `count`. It needs no window, which may catch a turn more of one or of another.
pub(crate) async fn share_until(
    mock: &MockHandle,
    name: &str,
    others: &[&str],
    count: usize,
) -> f64 {
    until_sent(mock, name, count).await;
    let (mut own, mut all) = (0, 0);
    let accepted = accepted(mock).into_iter();
    for entry in accepted.skip_while(|it| !is_of(it, name)) {
        let is_own = is_of(&entry, name);
        own += usize::from(is_own);
        all += usize::from(is_own || others.iter().any(|other| is_of(&entry, other)));
        if own == count {
            break;
        }
    }
    own as f64 / all as f64
}

/// A big job of one app has everything. A job of another app, then an urgent one, then a job of one
/// recipient and one of 101 come, and each gets what is promised.
async fn everybody_gets_a_share(bench: Bench) {
    let mock = bench.mock();
    bench.send("a", "big", 20_000, &json!({})).await;
    until_sent(mock, "big", 150).await;

    // Another app, with equal weight, has its half.
    let other = bench.send("b", "other", 8_000, &json!({})).await;
    let waited = bench.begins_after(&other, "other").await;
    assert!(waited <= BEGINS, "app b waits for {waited} messages");
    let [_, other] = shares(mock, ["big", "other"], 2 * SECOND, 4 * SECOND).await;
    assert!((0.42..0.58).contains(&other), "app b has {other:.2}");

    // One recipient does not wait for anybody, and 101 hardly longer than 100.
    for (name, recipients) in [("single", 1), ("hundred", 100), ("more", 101)] {
        let job = bench.send("b", name, recipients, &json!({})).await;
        let waited = bench.begins_after(&job, name).await;
        assert!(waited <= BEGINS, "{name} waits for {waited} messages");
        until_sent(mock, name, recipients).await;
    }

    // An urgent job begins soon, too, and has 8 of 12 parts. Equal jobs would have a third.
    let high = json!({ "priority": "high" });
    let urgent = bench.send("a", "urgent", 2_000, &high).await;
    let waited = bench.begins_after(&urgent, "urgent").await;
    assert!(waited <= BEGINS, "urgent waits for {waited} messages");
    let urgent = share_until(mock, "urgent", &["big", "other"], 10 * SECOND).await;
    assert!(
        (0.52..0.80).contains(&urgent),
        "the urgent job has {urgent:.2}"
    );
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn promise_8_everybody_gets_a_share_of_calls() {
    if let Some(bench) = Bench::servers("share-calls", 3, Scarce::Calls).await {
        everybody_gets_a_share(bench).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn promise_8_everybody_gets_a_share_of_a_limit() {
    if let Some(bench) = Bench::servers("share-limit", 3, Scarce::Limit).await {
        everybody_gets_a_share(bench).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn promise_8_everybody_gets_a_share_of_calls_embedded() {
    everybody_gets_a_share(Bench::embedded("share-calls", Scarce::Calls).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn promise_8_everybody_gets_a_share_of_a_limit_embedded() {
    everybody_gets_a_share(Bench::embedded("share-limit", Scarce::Limit).await).await;
}

fn check_priorities([high, normal, bulk]: [f64; 3]) {
    let of = |weight: f64| weight / 13.0;
    let near = |share: f64, weight: f64| (share - of(weight)).abs() < 0.08;
    assert!(
        near(high, 8.0) && near(normal, 4.0) && near(bulk, 1.0) && bulk > 0.01,
        "high {high:.2}, normal {normal:.2}, bulk {bulk:.2}"
    );
}

/// Jobs of all priorities, with slices that take longer than a turn. All are of one app, which has
/// all places. The bulk ones use all capacity when the others arrive.
async fn priorities_are_rates(bench: Bench) {
    let mock = bench.mock();
    for (priority, jobs) in [("bulk", 2), ("normal", 2), ("high", 2)] {
        for number in 0..jobs {
            let name = format!("{priority}-{number}");
            let priority = json!({ "priority": priority });
            bench.send("default", &name, 3_000, &priority).await;
        }
        if priority == "bulk" {
            until_sent(mock, "bulk", 100).await;
        }
    }
    check_priorities(shares(mock, ["high", "normal", "bulk"], 300, 900).await);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn promise_8_priorities_are_rates() {
    if let Some(bench) = Bench::servers("rates", 1, Scarce::Calls).await {
        priorities_are_rates(bench).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn promise_8_priorities_are_rates_embedded() {
    priorities_are_rates(Bench::embedded("rates", Scarce::Calls).await).await;
}

/// Two equal jobs; the second arrives while the first uses all capacity. Each gets half, and each
/// recipient gets the message once, however often a slice makes way.
#[tokio::test(flavor = "multi_thread")]
async fn promise_8_equal_jobs_share_equally() {
    let Some(bench) = Bench::servers("equals", 3, Scarce::Calls).await else {
        return;
    };
    let mock = bench.mock();
    let mut jobs = Vec::new();
    for name in ["one", "two"] {
        jobs.push(bench.send("default", name, 4_000, &json!({})).await);
        until_sent(mock, name, 100).await;
    }
    let [one, two] = shares(mock, ["one", "two"], 150, 1_500).await;
    assert!((0.45..0.55).contains(&one), "{one:.2} : {two:.2}");
    mock.patch_faults(&json!({ "latency": null })).unwrap();
    let Bench::Servers(world, ..) = &bench else {
        unreachable!("it has workers");
    };
    for job in &jobs {
        let record = world.completed(job).await;
        assert_eq!(record["accounts"]["sent"], 4_000, "{record}");
    }
    let everybody = [list("one", 4_000), list("two", 4_000)].concat();
    assert_once_each(mock, &everybody);
    bench.end().await;
}

/// An app with three times the weight has three quarters, whatever number of jobs the other app
/// has. An app with a bound on its places leaves the rest to others.
#[tokio::test(flavor = "multi_thread")]
async fn promise_8_apps_share_by_weight() {
    let bench = Bench::embedded("weights", Scarce::Calls).await;
    let mock = bench.mock();
    for number in 0..3 {
        let name = format!("a-{number}");
        bench.send("a", &name, 3_000, &json!({})).await;
    }
    until_sent(mock, "a", 100).await;
    bench.send("heavy", "heavy", 3_000, &json!({})).await;
    let [heavy, _] = shares(mock, ["heavy", "a"], 150, 700).await;
    assert!((0.68..0.82).contains(&heavy), "{heavy:.2}");
    bench
        .json(&["job", "cancel", "heavy", "--app", "heavy"])
        .await;
    bench.send("small", "small", 3_000, &json!({})).await;
    until_sent(mock, "small", 20).await;
    let before = accepted(mock).len();
    let counted = until("enough messages", BOUND, async || {
        let accepted = accepted(mock);
        let looked_at = accepted.get(before + 100..before + 600)?;
        Some(looked_at.iter().filter(|it| is_of(it, "small")).count())
    })
    .await;
    assert!((90..160).contains(&counted), "{counted} of 500");
    bench.end().await;
}

/// More jobs of an app are open than a priority has sub-lanes. A job of another app does not stand
/// behind them, and a job of some hundred recipients not behind a large one.
#[tokio::test(flavor = "multi_thread")]
async fn promise_8_many_large_jobs_leave_room() {
    let Some(bench) = Bench::servers("many", 3, Scarce::Calls).await else {
        return;
    };
    let mock = bench.mock();
    let mut jobs = Vec::new();
    for number in 0..9 {
        let name = format!("large-{number}");
        jobs.push(bench.send("a", &name, 10_001, &json!({})).await);
    }
    for job in &jobs {
        bench.until_taken(job).await;
    }
    until_sent(mock, "large", 150).await;
    for (name, recipients, app) in [("other", 10_001, "b"), ("some", 300, "a")] {
        let job = bench.send(app, name, recipients, &json!({})).await;
        let waited = bench.begins_after(&job, name).await;
        assert!(waited <= BEGINS, "{name} waits for {waited} messages");
    }
    let [other, ..] = shares(mock, ["other", "large", "some"], SECOND, 4 * SECOND).await;
    assert!((0.40..0.60).contains(&other), "app b has {other:.2}");
    bench.end().await;
}

/// A job with many slices that its own rate holds back. The job behind it does not wait for these
/// slices, each of which lasts for hundreds of messages, and gets what the first one leaves over.
#[tokio::test(flavor = "multi_thread")]
async fn promise_8_a_job_with_a_low_rate_delays_no_other() {
    let bench = Bench::embedded("low-rate", Scarce::Calls).await;
    let mock = bench.mock();
    let low = json!({ "rate": "20/s burst 5" });
    bench.send("default", "low", 5_000, &low).await;
    until_sent(mock, "low", 10).await;
    let free = bench.send("default", "free", 5_000, &json!({})).await;
    let waited = bench.begins_after(&free, "free").await;
    assert!(waited <= 200, "{waited} messages of the slow job before");
    // Of the four places the slow job keeps one; equal shares would be two.
    let mut with_three = 0;
    for sample in 1..=40 {
        until_sent(mock, "free", SECOND + 10 * sample).await;
        let record = bench.json(&["job", "show", &free]).await;
        let why = record["hindrances"].to_string();
        with_three += usize::from(why.contains("has 3 of 4 places"));
    }
    assert!(with_three >= 30, "{with_three} times of 40");
    bench.end().await;
}

/// Small jobs of a target that never answers leave the intake to the jobs of others.
#[tokio::test(flavor = "multi_thread")]
async fn promise_8_small_jobs_of_a_target_that_hangs_delay_no_other() {
    let Some(mut plan) = Plan::shared() else {
        return;
    };
    // It accepts connections and never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    plan.more = format!(
        "[targets.silent]\ntype = \"webhook\"\nurl = \"http://{address}/\"\ncall_timeout = \"4s\"\n"
    );
    let world = plan.start("hangs").await;
    let mut worker = world
        .worker_with(&[
            ("FANWISE_TARGETS__SILENT__CALL_TIMEOUT", "200s"),
            ("FANWISE_LEDGER__LEASE", "240s"),
        ])
        .await;
    let job = |key: &str, target: &str| {
        let job = json!({
            "v": 1, "client_msg_no": key, "target": target, "audience": {"users": ["u"]},
            "message": {"type": "text", "text": "hello"},
        });
        job.to_string()
    };
    // Large messages are read one after the other, however few recipients they have.
    let large = |key: &str, target: &str| job(key, target) + &" ".repeat(70_000);
    let silent_one = large("silent-large", "silent");
    world.publish_raw(silent_one.as_bytes()).await;
    const HANGING: usize = 40;
    for number in 0..HANGING {
        let job = job(&format!("silent-{number}"), "silent");
        world.publish_raw(job.as_bytes()).await;
    }
    const OTHERS: usize = 20;
    for number in 1..OTHERS {
        let job = job(&format!("im-{number}"), "im");
        world.publish_raw(job.as_bytes()).await;
    }
    world.publish_raw(large("im-large", "im").as_bytes()).await;
    until("the other jobs are completed", BOUND, async || {
        let metrics = worker.metrics().await;
        (metrics["fanwise_jobs_completed_total"] >= OTHERS as f64).then_some(())
    })
    .await;
    assert_eq!(world.accepted().get("u"), Some(&OTHERS));
    // Its calls to the silent target would keep it busy.
    worker.process.kill();
    world.end().await;
}
