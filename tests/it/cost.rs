//! The cost per recipient, in counts that do not depend on the speed of the machine. The bounds are
//! a little above what was counted when they were written: a change that needs more fails.
//! `tests/bench` measures times.

use std::time::Instant;

use fanwise::domain::ids::JobId;
use redis::AsyncCommands as _;
use serde_json::json;

use crate::support::servers::{PrivateRedis, amqp_url};
use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, Worker, World, users};
use crate::upload::upload;

/// The commands that a Redis has executed: calls of scripts, and commands inside them.
struct Commands {
    scripts: u64,
    inside: u64,
}

impl Commands {
    /// Counts what happens from now on.
    async fn reset(world: &World) {
        world.redis_command(&["CONFIG", "RESETSTAT"]).await;
    }

    async fn of(world: &World) -> Self {
        let client = redis::Client::open(world.redis.as_str()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let stats: String = redis::cmd("INFO")
            .arg("commandstats")
            .query_async(&mut connection)
            .await
            .unwrap();
        let _: () = connection.ping().await.unwrap();
        let calls = |line: &str| -> Option<(String, u64)> {
            let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            Some((name.to_owned(), rest.split(',').next()?.parse().ok()?))
        };
        let mut commands = Self {
            scripts: 0,
            inside: 0,
        };
        for (name, calls) in stats.lines().filter_map(calls) {
            match name.as_str() {
                "evalsha" | "eval" => commands.scripts += calls,
                "get" | "set" | "append" | "setrange" | "hget" | "hset" | "hmget" | "hincrby"
                | "hexists" | "time" => {
                    commands.inside += calls;
                }
                _ => {}
            }
        }
        commands
    }
}

/// A limit that never binds: that it is there must cost next to nothing.
const LIMIT: &str = "limit = \"1000000/s\"";

fn plan(redis: &PrivateRedis) -> Option<Plan> {
    let mut plan = Plan::on(&amqp_url()?, redis.url());
    plan.target.push('\n');
    plan.target.push_str(LIMIT);
    plan.more = format!("[apps.default]\ntarget = \"im\"\n{LIMIT}\n");
    Some(plan)
}

/// Prints the counts per recipient, and checks them.
fn check(what: &str, recipients: usize, commands: &Commands, scripts_max: f64, inside_max: f64) {
    let per_recipient = |count: u64| count as f64 / recipients as f64;
    let (scripts, inside) = (
        per_recipient(commands.scripts),
        per_recipient(commands.inside),
    );
    println!("{what}: {scripts:.4} scripts and {inside:.3} commands a recipient");
    assert!(scripts <= scripts_max, "{what}: {scripts} scripts");
    assert!(inside <= inside_max, "{what}: {inside} commands");
}

/// Leases cost no more for more recipients: of each of the two limits there is at most one every 50
/// ms, however fast the worker sends.
async fn few_leases(worker: &Worker, since: Instant) {
    let counted = "fanwise_ledger_duration_seconds_count{step=\"lease\"}";
    let leases = worker.metrics().await[counted];
    let seconds = since.elapsed().as_secs_f64();
    println!("{leases} leases in {seconds:.1} s");
    assert!(
        leases <= 40.0 * seconds + 20.0,
        "{leases} leases in {seconds} s"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recipient_of_a_single_call_costs_few_steps() {
    let Some(redis) = PrivateRedis::start().await else {
        return;
    };
    let Some(plan) = plan(&redis) else { return };
    let world = plan.start("cost-single").await;
    world
        .mock
        .patch_faults(&json!({"latency": "20ms"}))
        .unwrap();
    let worker = world.worker().await;
    let since = Instant::now();
    Commands::reset(&world).await;
    let job = world.send("single", &users(5000), &[]).await;
    world.completed(&job).await;
    let commands = Commands::of(&world).await;
    check("single", 5000, &commands, 0.35, 3.0);
    let each = commands.inside as f64 / commands.scripts as f64;
    println!("single: {each:.2} commands a script");
    assert!(each <= 10.5, "{each} commands a script");
    few_leases(&worker, since).await;
    worker.drain().await;
    world.end().await;
}

/// A small job spends most of its time in steps of the ledger, which come one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_one_recipient_costs_few_steps() {
    const JOBS: u32 = 12;
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("cost-small").await;
    let worker = world.worker().await;
    for number in 0..JOBS {
        let job = json!({
            "v": 1, "client_msg_no": format!("n-{number}"), "audience": {"users": ["u"]},
            "message": {"type": "text", "text": "hello"},
        });
        world.publish_raw(job.to_string().as_bytes()).await;
    }
    until("the jobs are completed", BOUND, async || {
        let metrics = worker.metrics().await;
        (metrics["fanwise_jobs_completed_total"] >= f64::from(JOBS)).then_some(())
    })
    .await;
    let metrics = worker.metrics().await;
    let steps = ["accept", "expanded", "claim", "settle", "audit", "complete"];
    let counted = steps.map(|step| {
        let name = format!("fanwise_ledger_duration_seconds_count{{step=\"{step}\"}}");
        // A step that was never taken is not listed.
        metrics.get(&name).copied().unwrap_or_default() / f64::from(JOBS)
    });
    assert_eq!(counted, [1.0, 0.0, 1.0, 1.0, 1.0, 1.0], "{steps:?}");
    few_bytes(&world).await;
    worker.drain().await;
    world.end().await;
}

/// What the first job has in Redis: its keys, and the bytes of their fields and values, which are the
/// same on every server.
async fn few_bytes(world: &World) {
    let client = redis::Client::open(world.redis.as_str()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let header = format!("{}:{{{}}}", world.name, JobId::of("default", "n-0"));
    let fields: Vec<Vec<u8>> = redis::cmd("HGETALL")
        .arg(&header)
        .query_async(&mut connection)
        .await
        .unwrap();
    let bytes: usize = fields.iter().map(Vec::len).sum();
    println!("{bytes} bytes in {} fields", fields.len() / 2);
    let bucket: usize = connection.strlen(format!("{header}:0")).await.unwrap();
    assert_eq!(bucket, 11);
    let keys: Vec<String> = connection.keys(format!("{header}*")).await.unwrap();
    assert_eq!(keys.len(), 2, "{keys:?}");
    assert!(bytes <= 281, "{bytes} bytes");
}

/// Packed calls, and limits that never bind.
fn packed(redis: &PrivateRedis) -> Option<Plan> {
    let mut plan = plan(redis)?;
    plan.own_url = true;
    plan.target = format!(
        "url = \"http://{{address}}/nimserver\"\ntype = \"netease\"\nsender = \"news\"\n\
         app_key = \"mock-key\"\napp_secret = \"mock-secret\"\n{LIMIT}"
    );
    Some(plan)
}

/// The slices of a list touch few buckets, however many parts it travels in.
#[tokio::test(flavor = "multi_thread")]
async fn a_recipient_of_an_uploaded_list_costs_few_steps() {
    let Some(redis) = PrivateRedis::start().await else {
        return;
    };
    let Some(plan) = packed(&redis) else { return };
    let world = plan.start("cost-upload").await;
    let worker = world.worker().await;
    let gateway = world.gateway(&[]).await;
    let list = users(100_001).join("\n");
    let since = Instant::now();
    Commands::reset(&world).await;
    let accepted = until("the gateway accepts", BOUND, async || {
        let answer = upload(gateway.port, "list", "text/plain", list.as_bytes()).await;
        answer.json()["job"].as_str().map(str::to_owned)
    });
    let job = accepted.await;
    world.completed(&job).await;
    let commands = Commands::of(&world).await;
    check("upload", 100_001, &commands, 0.05, 0.25);
    few_leases(&worker, since).await;
    gateway.end().await;
    worker.drain().await;
    world.end().await;
}

/// The same for a list that the command line cuts into messages for RabbitMQ.
#[tokio::test(flavor = "multi_thread")]
async fn a_recipient_of_a_list_in_several_messages_costs_few_steps() {
    let Some(redis) = PrivateRedis::start().await else {
        return;
    };
    let Some(plan) = packed(&redis) else { return };
    let world = plan.start("cost-messages").await;
    let worker = world.worker().await;
    Commands::reset(&world).await;
    let job = world.send("list", &users(300_001), &[]).await;
    let record = world.completed(&job).await;
    assert_eq!(record["submissions"], 4, "{record}");
    let commands = Commands::of(&world).await;
    check("messages", 300_001, &commands, 0.05, 0.08);
    worker.drain().await;
    world.end().await;
}
