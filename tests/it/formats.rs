//! Recorded formats: what each released version wrote is read by this one.
//!
//! `tests/formats/VERSION` holds the messages of RabbitMQ, the keys of Redis and a file of the embedded
//! engine as that version wrote them. Nobody changes them after the release: if this test fails, the code
//! no longer reads what users have. `FANWISE_RECORD_FORMATS=1` writes those of the present version instead
//! (docs/upgrade.md).

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use data_encoding::HEXLOWER;
use fanwise::domain::announce::JobEvent;
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use redis::aio::MultiplexedConnection;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::embedded::Place;
use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, World, http_get};

/// Where the notice of the recorded job goes; nobody listens there.
const CALLBACK: &str = "http://127.0.0.1:9/done";

const CALLBACKS: &str = "[apps.default.callbacks]\nhosts = [\"127.0.0.1\"]\nprivate = true\n\
    secret = \"a secret of the recorded formats\"";

/// How the recorded names begin, instead of the namespace of the test that recorded them.
const PREFIX: &str = "PREFIX";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats")
}

fn records() -> bool {
    env::var_os("FANWISE_RECORD_FORMATS").is_some()
}

/// The folders of all versions.
fn versions() -> Vec<PathBuf> {
    let versions: BTreeSet<_> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(!versions.is_empty());
    versions.into_iter().collect()
}

fn job(key: &str, users: &[&str], more: &Value) -> Vec<u8> {
    let mut job = json!({
        "v": 1,
        "client_msg_no": key,
        "audience": {"users": users},
        "message": {"type": "text", "text": "hello"},
    });
    let more = more.as_object().unwrap().clone();
    job.as_object_mut().unwrap().extend(more);
    serde_json::to_vec(&job).unwrap()
}

// --- messages ------------------------------------------------------------------------------------

/// A message as a queue held it.
#[derive(Serialize, Deserialize)]
struct Message {
    routing_key: String,
    message_id: Option<String>,
    headers: BTreeMap<String, String>,
    body: String,
}

/// The exchange to which a kind of messages is published. Nobody in Fanwise reads events.
const KINDS: [(&str, &str); 6] = [
    ("job", "jobs"),
    ("slice", "lanes"),
    ("notice", "lanes"),
    ("dead-letter", "dead"),
    ("rejected", "rejected"),
    ("event", "events"),
];

async fn channel(world: &World) -> (Connection, Channel) {
    let properties = ConnectionProperties::default();
    let connection = Connection::connect(&world.amqp, properties).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let options = ConfirmSelectOptions::default();
    channel.confirm_select(options).await.unwrap();
    (connection, channel)
}

/// The kind of a message, by the queue that holds it.
fn kind(queue: &str, body: &Value) -> Option<&'static str> {
    let of = |part: &str| queue.contains(part);
    match () {
        () if of(".jobs.") => Some("job"),
        () if of(".dead.") => Some("dead-letter"),
        () if of(".rejected.") => Some("rejected"),
        () if of(".recorded") => Some("event"),
        () if body.get("recipients").is_some() => Some("slice"),
        () if body.get("event").is_some() => Some("notice"),
        () => None,
    }
}

/// Takes all messages from the queues of a world.
async fn take_all(world: &World, channel: &Channel) -> BTreeMap<&'static str, Vec<Message>> {
    let topology = world.json(&["topology", "show"]).await;
    let queues = topology["topology"]["queues"].as_array().unwrap().iter();
    let mut names: Vec<_> = queues
        .map(|queue| queue["name"].as_str().unwrap().to_owned())
        // Its messages are numbers of this broker.
        .filter(|name| !name.contains(".ledger."))
        .collect();
    // A message moves from the ladder to its lane, never back.
    names.sort_by_key(|name| !name.contains(".retry."));
    names.push(format!("{}.recorded", world.name));
    let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for name in names {
        let options = BasicGetOptions { no_ack: true };
        while let Some(got) = channel
            .basic_get(name.as_str().into(), options)
            .await
            .unwrap()
        {
            let properties = &got.delivery.properties;
            let headers = properties.headers().clone().unwrap_or_default();
            let headers = headers
                .inner()
                .iter()
                .filter_map(|(name, value)| match value {
                    AMQPValue::LongString(text) => Some((name.to_string(), text.to_string())),
                    _ => None,
                });
            let body = String::from_utf8(got.delivery.data.clone()).unwrap();
            let parsed = serde_json::from_str(&body).unwrap_or_default();
            let kind = kind(&name, &parsed).unwrap_or_else(|| panic!("{name}: {body}"));
            found.entry(kind).or_default().push(Message {
                routing_key: got.delivery.routing_key.to_string(),
                message_id: properties.message_id().as_ref().map(ToString::to_string),
                headers: headers.collect(),
                body,
            });
        }
    }
    found
}

async fn publish(world: &World, channel: &Channel, exchange: &str, message: &Message) {
    let mut headers = FieldTable::default();
    for (name, value) in &message.headers {
        let value = AMQPValue::LongString(value.as_str().into());
        headers.insert(name.as_str().into(), value);
    }
    let mut properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_headers(headers);
    if let Some(id) = &message.message_id {
        properties = properties.with_message_id(id.as_str().into());
    }
    let exchange = format!("{}.{exchange}", world.name);
    let (to, key) = (
        exchange.as_str().into(),
        message.routing_key.as_str().into(),
    );
    let options = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let body = message.body.as_bytes();
    let published = channel.basic_publish(to, key, options, body, properties);
    let confirm = published.await.unwrap().await.unwrap();
    assert!(
        confirm.is_ack() && confirm.take_message().is_none(),
        "{exchange}"
    );
}

// --- keys ----------------------------------------------------------------------------------------

/// A key of Redis. Texts that are not UTF-8 are `hex:` and their digits.
#[derive(Serialize, Deserialize)]
struct Key {
    key: String,
    #[serde(rename = "type")]
    kind: String,
    /// Whether it expires.
    expires: bool,
    /// What the command that writes it takes after the key.
    values: Vec<String>,
}

/// How to read a key of a type, and how to write it.
fn commands(kind: &str) -> (&'static [&'static str], &'static str) {
    match kind {
        "string" => (&["GET"], "SET"),
        "hash" => (&["HGETALL"], "HSET"),
        "list" => (&["LRANGE", "0", "-1"], "RPUSH"),
        "zset" => (&["ZRANGE", "0", "-1", "WITHSCORES"], "ZADD"),
        kind => panic!("a key of type {kind}"),
    }
}

fn written(bytes: Vec<u8>) -> String {
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\u{0}') => text,
        Ok(text) => format!("hex:{}", HEXLOWER.encode(text.as_bytes())),
        Err(error) => format!("hex:{}", HEXLOWER.encode(error.as_bytes())),
    }
}

fn read(text: &str) -> Vec<u8> {
    match text.strip_prefix("hex:") {
        Some(digits) => HEXLOWER.decode(digits.as_bytes()).unwrap(),
        None => text.as_bytes().to_vec(),
    }
}

async fn redis_of(world: &World) -> MultiplexedConnection {
    let client = redis::Client::open(world.redis.as_str()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

async fn dump(world: &World) -> Vec<Key> {
    let mut redis = redis_of(world).await;
    let pattern = format!("{}:*", world.name);
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg(pattern)
        .query_async(&mut redis)
        .await
        .unwrap();
    let mut all = Vec::new();
    for key in keys.into_iter().collect::<BTreeSet<_>>() {
        let ttl: i64 = redis::cmd("PTTL")
            .arg(&key)
            .query_async(&mut redis)
            .await
            .unwrap();
        // It lasts for a moment only: the arrival time of a limit, or a fence.
        if ttl == -2 || (0..60_000).contains(&ttl) {
            continue;
        }
        let kind: String = redis::cmd("TYPE")
            .arg(&key)
            .query_async(&mut redis)
            .await
            .unwrap();
        let ([command, arguments @ ..], _) = commands(&kind) else {
            unreachable!()
        };
        let mut command = redis::cmd(command);
        command.arg(&key).arg(arguments);
        let mut values: Vec<Vec<u8>> = match kind.as_str() {
            "string" => vec![command.query_async(&mut redis).await.unwrap()],
            _ => command.query_async(&mut redis).await.unwrap(),
        };
        if kind == "zset" {
            // It is read as member and score, and written as score and member.
            values.chunks_mut(2).for_each(|pair| pair.reverse());
        }
        all.push(Key {
            key: key.replacen(&world.name, PREFIX, 1),
            kind,
            expires: ttl > 0,
            values: values.into_iter().map(written).collect(),
        });
    }
    all
}

async fn restore(world: &World, keys: &[Key]) {
    let mut redis = redis_of(world).await;
    let mut pipeline = redis::pipe();
    for key in keys {
        let name = key.key.replacen(PREFIX, &world.name, 1);
        let values: Vec<_> = key.values.iter().map(|it| read(it)).collect();
        pipeline.cmd(commands(&key.kind).1).arg(&name).arg(values);
        if key.expires {
            pipeline.cmd("EXPIRE").arg(&name).arg(3600);
        }
    }
    let () = pipeline.query_async(&mut redis).await.unwrap();
}

// --- files ---------------------------------------------------------------------------------------

/// With gzip, because the file of the embedded engine consists mostly of zeros.
fn filter(arguments: &[&str], from: &Path, to: &Path) {
    let status = Command::new("gzip")
        .args(arguments)
        .stdin(File::open(from).unwrap())
        .stdout(File::create(to).unwrap())
        .stderr(Stdio::inherit())
        .status();
    assert!(status.expect("gzip is needed").success());
}

fn write_json(path: &Path, value: &impl Serialize) {
    let mut text = serde_json::to_string_pretty(value).unwrap();
    text.push('\n');
    fs::write(path, text).unwrap();
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> T {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

// --- servers -------------------------------------------------------------------------------------

/// Waits until the worker with this admin port knows that its target is paused.
async fn until_paused(admin: u16) {
    until("the pause at the worker", BOUND, async || {
        let metrics = http_get(admin, "/metrics").await?;
        let paused = "fanwise_target_paused{target=\"im\"} 1";
        metrics.contains(paused).then_some(())
    })
    .await;
}

async fn refuse(mock: &fanwise_mock_im::MockHandle, prefix: &str) {
    mock.patch_faults(&json!({"refuse_prefix": prefix}))
        .unwrap();
}

/// Records what this version writes: a completed job with a dead letter, one whose slices wait, one
/// whose notice waits, one that no worker has taken, and a message that is none.
async fn record_servers(plan: Plan, to: &Path) {
    let world = plan.start("formats").await;
    refuse(&world.mock, "bad-").await;
    let worker = world.worker().await;
    let (_connection, channel) = channel(&world).await;
    let events = format!("{}.recorded", world.name);
    let (queue, exchange) = (events.as_str(), format!("{}.events", world.name));
    let options = QueueDeclareOptions::exclusive();
    let none = FieldTable::default;
    channel
        .queue_declare(queue.into(), options, none())
        .await
        .unwrap();
    let options = QueueBindOptions::default();
    let bound = channel.queue_bind(
        queue.into(),
        exchange.as_str().into(),
        "#".into(),
        options,
        none(),
    );
    bound.await.unwrap();

    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    let mut headers = FieldTable::default();
    headers.insert("traceparent".into(), AMQPValue::LongString(trace.into()));
    let done = job("done", &["ann", "bad-1"], &json!({"tags": ["spring"]}));
    world.publish_with(&done, headers).await;
    world
        .publish_raw(&job("told", &["ann"], &json!({"callback_url": CALLBACK})))
        .await;
    for key in ["done", "told"] {
        world.completed(key).await;
    }
    world.json(&["target", "pause", "im"]).await;
    until_paused(worker.admin_port()).await;
    let personal = json!({
        "audience": {"users": [{"id": "ann", "vars": {"name": "Ann"}}, {"id": "bob", "vars": {"name": "Bob"}}]},
        "message": {"type": "text", "text": "Hello {{ name }}"},
    });
    world.publish_raw(&job("waits", &[], &personal)).await;
    world.publish_raw(b"no job").await;
    until("the slice and the rejected message", BOUND, async || {
        let waits = world.job("waits").await?;
        let rejected = world.json(&["dead", "rejected"]).await;
        (waits["state"] == "running" && rejected != json!([])).then_some(())
    })
    .await;
    worker.drain().await;
    world
        .publish_raw(&job("uncut", &["cid", "dan"], &json!({})))
        .await;

    fs::create_dir_all(to).unwrap();
    write_json(&to.join("ledger.json"), &dump(&world).await);
    let messages = take_all(&world, &channel).await;
    for (kind, _) in KINDS {
        let found = messages.get(kind);
        let found = found.unwrap_or_else(|| panic!("no {kind} to record"));
        write_json(&to.join(format!("{kind}.json")), found);
    }
    world.end().await;
}

/// A receiver of one notice.
async fn receiver() -> (u16, tokio::task::JoinHandle<String>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let received = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        let body = loop {
            assert!(stream.read_buf(&mut request).await.unwrap() > 0);
            let text = String::from_utf8_lossy(&request);
            if let Some((_, body)) = text.split_once("\r\n\r\n")
                && serde_json::from_str::<Value>(body).is_ok()
            {
                break body.to_owned();
            }
        };
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        body
    });
    (port, received)
}

async fn read_servers(plan: Plan, from: &Path) {
    let world = plan.start("formats").await;
    world.json(&["topology", "apply"]).await;
    restore(&world, &read_json::<Vec<Key>>(&from.join("ledger.json"))).await;
    let (port, notice) = receiver().await;
    let (_connection, channel) = channel(&world).await;
    for (kind, exchange) in KINDS {
        for mut message in read_json::<Vec<Message>>(&from.join(format!("{kind}.json"))) {
            if kind == "event" {
                serde_json::from_str::<JobEvent>(&message.body).unwrap();
                continue;
            }
            let here = format!("http://127.0.0.1:{port}/done");
            message.body = message.body.replace(CALLBACK, &here);
            publish(&world, &channel, exchange, &message).await;
        }
    }
    let worker = world.worker().await;
    let done = world.completed("done").await;
    assert_eq!(done["accounts"]["sent"], 1, "{done}");
    assert_eq!(done["accounts"]["failed"], 1, "{done}");
    assert_eq!(done["tags"], json!(["spring"]));
    let targets = world.json(&["target", "list"]).await;
    assert_eq!(targets[0]["state"], "paused", "{targets}");
    world.json(&["target", "resume", "im"]).await;
    for key in ["waits", "uncut"] {
        let record = world.completed(key).await;
        assert_eq!(record["accounts"]["sent"], 2, "{record}");
    }
    let dead = world.dead("done").await;
    assert_eq!(dead.keys().collect::<Vec<_>>(), ["bad-1"]);
    let rejected = until("the rejected message", BOUND, async || {
        let rejected = world.json(&["dead", "rejected"]).await;
        (rejected != json!([])).then_some(rejected)
    })
    .await;
    assert_eq!(rejected[0]["body"], "no job", "{rejected}");
    assert_ne!(rejected[0]["reason"], "", "{rejected}");
    let notice: Value = serde_json::from_str(&notice.await.unwrap()).unwrap();
    assert_eq!(notice["client_msg_no"], "told", "{notice}");
    // The ledger knows who got the message, and the letter is enough to send again.
    world
        .publish_raw(&job(
            "done",
            &["ann", "bad-1", "eve"],
            &json!({"tags": ["spring"]}),
        ))
        .await;
    let redriven = world.json(&["dead", "redrive", "--yes"]).await;
    assert_eq!(redriven["recipients"], 1, "{redriven}");
    let all = ["ann", "bob", "cid", "dan", "eve", "bad-1"].map(str::to_owned);
    until("all sends", BOUND, async || {
        (world.accepted().len() == all.len()).then_some(())
    })
    .await;
    world.assert_once_each(&all);
    worker.drain().await;
    world.end().await;
}

/// RabbitMQ and Redis: a worker goes on with the queues and the ledger of each released version.
#[tokio::test(flavor = "multi_thread")]
async fn messages_and_keys_of_released_versions_are_read() {
    let Some(mut plan) = Plan::shared() else {
        return;
    };
    plan.more = CALLBACKS.to_owned();
    if records() {
        return record_servers(plan, &folder().join(env!("CARGO_PKG_VERSION"))).await;
    }
    for version in versions() {
        let Some(mut plan) = Plan::shared() else {
            return;
        };
        plan.more = CALLBACKS.to_owned();
        read_servers(plan, &version).await;
    }
}

// --- embedded ------------------------------------------------------------------------------------

const SEND: [&str; 5] = ["send", "--text", "hello", "--client-msg-no", "done"];

async fn record_file(to: &Path) {
    let place = Place::new("formats").await;
    refuse(&place.mock, "bad-").await;
    let mut process = place.serve().await;
    let send = async |key: &str, users: &[&str]| {
        let arguments = [&SEND[..4], &[key], users].concat();
        let sent = place.run(&arguments, b"").await;
        assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    };
    send("done", &["ann", "bad-1"]).await;
    place.completed("done").await;
    place.json(&["target", "pause", "im"]).await;
    until_paused(place.admin).await;
    send("waits", &["ann", "bob"]).await;
    until("the slice", BOUND, async || {
        let waits = place.json(&["job", "show", "waits"]).await;
        (waits["state"] == "running").then_some(())
    })
    .await;
    process.terminate();
    process.wait(Duration::from_secs(30)).await;
    fs::create_dir_all(to).unwrap();
    filter(&["-9n"], &place.store(), &to.join("store.gz"));
}

/// `fanwise serve` goes on with the file of each released version.
#[tokio::test(flavor = "multi_thread")]
async fn files_of_released_versions_are_read() {
    if records() {
        return record_file(&folder().join(env!("CARGO_PKG_VERSION"))).await;
    }
    for version in versions() {
        let place = Place::new("formats").await;
        fs::create_dir_all(place.store().parent().unwrap()).unwrap();
        filter(&["-dc"], &version.join("store.gz"), &place.store());
        let mut process = place.serve().await;
        let done = place.completed("done").await;
        assert_eq!(done["accounts"]["failed"], 1, "{done}");
        assert_eq!(place.json(&["job", "verify", "done"]).await["exact"], true);
        let targets = place.json(&["target", "list"]).await;
        assert_eq!(targets[0]["state"], "paused", "{targets}");
        place.json(&["target", "resume", "im"]).await;
        let waits = place.completed("waits").await;
        assert_eq!(waits["accounts"]["sent"], 2, "{waits}");
        let dead = place.json(&["dead", "list"]).await;
        assert_eq!(dead[0]["recipient"], "bad-1", "{dead}");
        let again = place.run(&[&SEND[..], &["ann", "eve"]].concat(), b"").await;
        assert_eq!(again.code, Some(0), "{}", again.stderr);
        let redriven = place.json(&["dead", "redrive", "--yes"]).await;
        assert_eq!(redriven["recipients"], 1, "{redriven}");
        let all = ["ann", "bob", "eve", "bad-1"].map(str::to_owned);
        until("all sends", BOUND, async || {
            (place.mock.stats().accepted == all.len() as u64).then_some(())
        })
        .await;
        assert_eq!(place.accepted_once(), all.into());
        process.terminate();
        assert_eq!(process.wait(Duration::from_secs(30)).await.code(), Some(0));
    }
}
