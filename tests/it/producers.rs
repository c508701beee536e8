//! Tests arbitrary messages of producers: promises 1 and 11 over AMQP.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::Duration;

use fanwise::amqp::{Rabbit, Settings};
use fanwise::domain::lane::Priority;
use fanwise::ports::{
    Broker, Consumer, Moved, RetainedMessage, RetainedQueue, RetainedQueues, Session, Source,
};
use fanwise_client::amqp::{Error, Producer as ClientProducer, Published};
use fanwise_client::{Audience, Job, JobId, Message, Retry};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::raw::{
    APP_ID, CORRELATION_ID, EXPIRATION, HEADERS, MESSAGE_ID, Producer, TYPE, header, long, short,
};
use crate::support::relay::Relay;
use crate::support::servers::amqp_url;
use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, users};

fn rabbit(name: &str) -> Option<(Rabbit, String)> {
    let url = amqp_url()?;
    let settings = Settings {
        namespace: format!("{name}-{}-{:x}", std::process::id(), fastrand::u32(..)),
        ..Settings::new(url.clone())
    };
    Some((Rabbit::new(settings).unwrap(), url))
}

/// Properties that once ended sessions, processes or connections.
fn odd_properties() -> Vec<Vec<(u16, Vec<u8>)>> {
    let uuid = [
        0x8f, 0x3e, 0xff, 0, 0xc3, 0x28, 0xff, 0xfe, 0x9d, 1, 0xaa, 0xbb, 0xcc,
    ];
    let mut all: Vec<_> = [CORRELATION_ID, MESSAGE_ID, TYPE, APP_ID]
        .map(|place| vec![(place, short(&uuid))])
        .into();
    all.push(vec![(HEADERS, header(&uuid, b"a name of raw bytes"))]);
    for (kind, name) in [(b"A", vec![]), (b"F", short(b"k"))] {
        let mut value = b"t\x01".to_vec();
        for _ in 0..1_500 {
            value = [&kind[..], &long(&[&name[..], &value].concat())].concat();
        }
        all.push(vec![(
            HEADERS,
            long(&[&short(b"deep")[..], &value].concat()),
        )]);
    }
    // They fit a frame as published; the broker adds headers of its own when it delivers them
    // again.
    for bytes in [64 * 1024, 100_000, 130_900] {
        all.push(vec![(HEADERS, header(b"traceparent", &vec![b'x'; bytes]))]);
    }
    all
}

async fn retained(rabbit: &Rabbit) -> Vec<RetainedMessage> {
    let mut kept = Vec::new();
    let visit = |message| {
        kept.push(message);
        ControlFlow::Continue(())
    };
    rabbit.read(RetainedQueue::Rejected, visit).await.unwrap();
    kept
}

/// Each message is delivered, also several times, and can be read after a reject; the session
/// survives.
#[tokio::test]
async fn promise_11_no_property_ends_a_session() {
    let Some((rabbit, url)) = rabbit("odd") else {
        return;
    };
    let session = rabbit.connect().await.unwrap();
    let mut producer = Producer::connect(&url).await;
    let exchange = rabbit.topology().exchanges[0].name.clone();
    let odd = odd_properties();
    for (number, properties) in odd.iter().enumerate() {
        let bodies = [format!("odd {number}"), format!("neighbour {number}")];
        let all: [&[(u16, Vec<u8>)]; 2] = [properties, &[]];
        for (body, properties) in bodies.iter().zip(all) {
            let body = body.as_bytes();
            producer.publish(&exchange, b"bulk", body, properties).await;
        }
    }
    let source = Source::Jobs(Priority::Bulk);
    let mut consumer = session.consume(source, 100).await.unwrap();
    let mut bodies = BTreeSet::new();
    // Requeued twice, so that the broker adds its headers; then rejected.
    for round in 0..3 {
        let mut taken = Vec::new();
        for _ in 0..2 * odd.len() {
            let delivery = timeout(BOUND, consumer.next()).await.unwrap().unwrap();
            assert_eq!(delivery.traceparent, None);
            taken.push(delivery);
        }
        for delivery in taken {
            let body = delivery.body.clone();
            bodies.insert(String::from_utf8(body.to_vec()).unwrap());
            match round {
                0 | 1 => delivery.requeue().await.unwrap(),
                _ if body.starts_with(b"odd") => delivery.reject("no job".into()).await.unwrap(),
                _ => delivery.ack().await.unwrap(),
            }
        }
    }
    assert_eq!(bodies.len(), 2 * odd.len());
    assert!(!session.lost().is_cancelled());
    session.close().await;

    let kept = retained(&rabbit).await;
    assert_eq!(kept.len(), odd.len());
    for message in &kept {
        assert!(message.body.starts_with(b"odd"));
        assert_eq!(message.headers["fanwise-reason"], "no job");
    }
    let changed: Vec<_> = kept
        .iter()
        .filter_map(|message| message.headers.get("fanwise-unreadable"))
        .collect();
    // One header of 64 KiB does not fit either.
    assert_eq!(changed.len(), odd.len(), "{changed:?}");
    assert_eq!(changed[0], "correlation_id");
    assert_eq!(
        kept[1].message_id.as_deref(),
        Some(r"\x8f>\xff\x00\xc3(\xff\xfe\x9d\x01\xaa\xbb\xcc")
    );
    rabbit.delete_all().await.unwrap();
}

/// Messages that the broker itself moves there, with its headers and a routing key of arbitrary
/// bytes.
#[tokio::test]
async fn promise_11_messages_straight_on_the_shelf_can_be_read() {
    let Some((rabbit, url)) = rabbit("shelf") else {
        return;
    };
    rabbit.apply().await.unwrap();
    let mut producer = Producer::connect(&url).await;
    let exchanges = rabbit.topology().exchanges;
    let rejected = exchanges.iter().find(|it| it.name.ends_with(".rejected"));
    let rejected = rejected.unwrap().name.clone();
    for properties in odd_properties() {
        producer
            .publish(&rejected, &[0xff, b'k'], b"odd", &properties)
            .await;
    }
    for _ in 0..2 {
        let kept = retained(&rabbit).await;
        assert_eq!(kept.len(), odd_properties().len());
        assert!(kept.iter().all(|it| it.routing_key == r"\xffk"));
    }
    rabbit.delete_all().await.unwrap();
}

/// Promise 1: a job that expires in its queue because of its producer's setting is found, with the
/// reason, and counted. Jobs that Fanwise rejects are not counted twice.
#[tokio::test]
async fn promise_1_a_job_that_expires_unseen_is_kept_and_counted() {
    let Some((rabbit, url)) = rabbit("expires") else {
        return;
    };
    let session = rabbit.connect().await.unwrap();
    let mut producer = Producer::connect(&url).await;
    let exchange = rabbit.topology().exchanges[0].name.clone();
    let at_once = [(EXPIRATION, short(b"1"))];
    producer
        .publish(&exchange, b"normal", b"a job", &at_once)
        .await;
    producer.publish(&exchange, b"high", b"no job", &[]).await;
    let source = Source::Jobs(Priority::High);
    let mut consumer = session.consume(source, 1).await.unwrap();
    let delivery = timeout(BOUND, consumer.next()).await.unwrap().unwrap();
    delivery.reject("not JSON".to_owned()).await.unwrap();

    let mut moved = session.moved().await.unwrap();
    let expected = Moved { jobs: 1, slices: 0 };
    let counted = timeout(BOUND, moved.wait_for(|moved| moved.jobs > 0)).await;
    assert_eq!(*counted.unwrap().unwrap(), expected);
    session.close().await;
    let kept = retained(&rabbit).await;
    assert_eq!(kept.len(), 2);
    let expired = kept.iter().find(|it| &it.body[..] == b"a job").unwrap();
    let reason = &expired.headers["fanwise-reason"];
    assert!(
        reason.contains("set the property `expiration` to 1 ms"),
        "{reason}"
    );
    assert!(expired.headers["fanwise-source"].ends_with(".jobs.normal.v1"));
    assert!(
        expired.headers["fanwise-rejected-at"]
            .parse::<u64>()
            .is_ok()
    );
    assert_eq!(*moved.borrow(), expected);
    rabbit.delete_all().await.unwrap();
}

/// Only the body of a message decides: odd properties stop neither this job nor its neighbours.
#[tokio::test(flavor = "multi_thread")]
async fn promise_11_a_valid_job_is_sent_whatever_is_on_its_message() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("properties").await;
    let worker = world.worker().await;
    let mut producer = Producer::connect(&world.amqp).await;
    let exchange = format!("{}.jobs", world.name);
    let job = |key: &str| {
        json!({
            "v": 1,
            "client_msg_no": key,
            "audience": {"users": users(3)},
            "message": {"type": "text", "text": "hello"},
        })
        .to_string()
    };
    let odd = odd_properties();
    for (number, properties) in odd.iter().enumerate() {
        let keys = [format!("odd{number}"), format!("good{number}")];
        let all: [&[(u16, Vec<u8>)]; 2] = [properties, &[]];
        for (key, properties) in keys.iter().zip(all) {
            producer
                .publish(&exchange, b"normal", job(key).as_bytes(), properties)
                .await;
        }
    }
    let count = 2.0 * odd.len() as f64;
    until("all jobs are completed", BOUND, async || {
        let metrics = worker.metrics().await;
        (metrics.get("fanwise_jobs_completed_total") == Some(&count)).then_some(())
    })
    .await;
    let metrics = worker.metrics().await;
    assert_eq!(metrics["fanwise_slices_total{result=\"lost\"}"], 0.0);
    assert_eq!(metrics["fanwise_jobs_total{result=\"rejected\"}"], 0.0);
    worker.drain().await;
    world.end().await;
}

/// A slice as an intake cuts it, with some changes to its head and to itself.
fn slice(number: u32, changed: &Value, itself: &Value) -> String {
    let mut head = json!({
        "id": format!("{number:024x}"), "app": "default", "client_msg_no": format!("slice-{number}"),
        "target": "im", "priority": "normal", "content": {"type": "text", "text": "hello"},
        "options": {}, "accepted_at_ms": 1,
    });
    for (name, value) in changed.as_object().unwrap() {
        head[name] = value.clone();
    }
    let mut slice = json!({
        "v": 1, "head": head, "id": format!("s{number}.0"), "entries": 1, "shape": {"buckets": 1},
        "lane": "im.express", "recipients": ["ana"],
    });
    for (name, value) in itself.as_object().unwrap() {
        slice[name] = value.clone();
    }
    slice.to_string()
}

/// Promise 11: slices that no intake can have cut end as rejected, with the reason, and none of
/// them is handled forever: one on the lane of another target, one of an app whose name fits no
/// routing key, one with more recipients than entries, and one with more buckets than an audit can
/// read. Numbers of any size are counted on from. A slice whose text an earlier version accepted
/// and this one cannot compile has an outcome (promise 1).
#[tokio::test(flavor = "multi_thread")]
async fn promise_11_a_slice_that_is_not_in_its_place_is_rejected() {
    let Some(plan) = Plan::shared() else { return };
    let world = plan.start("slices").await;
    let worker = world.worker().await;
    let mut producer = Producer::connect(&world.amqp).await;
    let lanes = format!("{}.lanes", world.name);
    let deep = format!("{{{{ {}1 }}}}", "-".repeat(400));
    let slices = [
        slice(1, &json!({"target": "elsewhere"}), &json!({})),
        slice(2, &json!({"app": "a".repeat(300)}), &json!({})),
        slice(3, &json!({}), &json!({"recipients": ["ana", "ben"]})),
        slice(4, &json!({}), &json!({"shape": {"buckets": u32::MAX}})),
        slice(
            5,
            &json!({}),
            &json!({"attempts": [u32::MAX], "ended": {"entries": u32::MAX, "repeats": u32::MAX}}),
        ),
        slice(
            6,
            &json!({"content": {"type": "text", "text": deep}, "vars": {"a": 1}}),
            &json!({}),
        ),
    ];
    for body in &slices {
        producer
            .publish(&lanes, b"im.express", body.as_bytes(), &[])
            .await;
    }
    let results = [("rejected", 4.0), ("done", 2.0)];
    for (result, count) in results {
        until(&format!("{count} slices are {result}"), BOUND, async || {
            let name = format!("fanwise_slices_total{{result=\"{result}\"}}");
            (worker.metrics().await.get(&name) == Some(&count)).then_some(())
        })
        .await;
    }
    let settings = Settings {
        namespace: world.name.clone(),
        ..Settings::new(world.amqp.clone())
    };
    let rabbit = Rabbit::new(settings).unwrap();
    let reasons: Vec<_> = retained(&rabbit)
        .await
        .into_iter()
        .map(|kept| kept.headers["fanwise-reason"].clone())
        .collect();
    for part in [
        "target \"elsewhere\" on lane im.express",
        "300 bytes, at most 64",
        "1 list entries with 2",
        "from 1 to",
    ] {
        assert!(reasons.iter().any(|it| it.contains(part)), "{reasons:?}");
    }
    let mut letters = Vec::new();
    let visit = |letter: RetainedMessage| {
        letters.push(String::from_utf8_lossy(&letter.body).into_owned());
        ControlFlow::Continue(())
    };
    rabbit.read(RetainedQueue::Dead, visit).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert!(
        letters[0].contains("between one pair of braces"),
        "{letters:?}"
    );
    assert_eq!(world.accepted(), BTreeMap::from([("ana".to_owned(), 1)]));
    assert_eq!(worker.metrics().await["fanwise_panics_total"], 0.0);
    worker.drain().await;
    world.end().await;
}

/// Promise 9: a broker that accepts connections and never answers costs as much after many attempts
/// as after one.
#[tokio::test]
async fn promise_9_a_broker_that_says_nothing_leaves_nothing_behind() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut ends = JoinSet::new();
    let settings = Settings {
        connect_timeout: Duration::from_millis(100),
        ..Settings::new(format!("amqp://guest:guest@{address}"))
    };
    let rabbit = Rabbit::new(settings).unwrap();
    for _ in 0..5 {
        let (attempt, accepted) = tokio::join!(rabbit.depths(), listener.accept());
        assert!(attempt.is_err());
        let mut stream = accepted.unwrap().0;
        // The client's end is closed, not merely forgotten.
        ends.spawn(async move { stream.read_to_end(&mut Vec::new()).await });
    }
    let all = async { while ends.join_next().await.is_some() {} };
    timeout(BOUND, all).await.unwrap();
    until("no thread is left", BOUND, async || {
        (io_threads() == 0).then_some(())
    })
    .await;
}

/// Threads of the client library in this process.
fn io_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.flatten().filter_map(|task| {
        let name = std::fs::read_to_string(task.path().join("comm"));
        name.ok()
    });
    names
        .filter(|name| name.starts_with("lapin-io-loop"))
        .count()
}

/// The producer of the client library accepts nothing that no queue takes, cuts a long list into
/// parts, and publishes again what has no confirm.
#[tokio::test]
async fn the_producer_of_the_client_library_is_confirmed() {
    let Some((rabbit, url)) = rabbit("client") else {
        return;
    };
    let exchange = rabbit.topology().exchanges[0].name.clone();
    let (relay, through) = Relay::before(&url).await;
    let retry = Retry {
        tries: 3,
        first: Duration::from_millis(50),
        ..Retry::default()
    };
    let producer = ClientProducer::new(&through).unwrap().with_retry(retry);
    let producer = producer.with_namespace(exchange.strip_suffix(".jobs").unwrap());
    let job = |key: &str, count: usize| {
        Job::new(key, Audience::users(users(count)), Message::text("hello"))
    };
    let missing = producer.submit(job("early", 1)).await.unwrap_err();
    assert!(missing.is_missing() && !missing.is_temporary(), "{missing}");
    assert!(missing.to_string().contains("NOT_FOUND"), "{missing}");

    rabbit.apply().await.unwrap();
    let published = |key: &str, messages| Published {
        job: JobId::of("default", key),
        messages,
    };
    let first = producer.submit(job("first", 3)).await.unwrap();
    assert_eq!(first, published("first", 1));
    relay.reset().await;
    let long = producer.submit(job("long", 100_001)).await.unwrap();
    assert_eq!(long, published("long", 2));
    relay.cut().await;
    let away = producer.submit(job("away", 1)).await.unwrap_err();
    assert!(
        away.is_temporary() && matches!(away, Error::Broker(_)),
        "{away}"
    );
    relay.restore();

    let session = rabbit.connect().await.unwrap();
    let source = Source::Jobs(Priority::Normal);
    let mut consumer = session.consume(source, 10).await.unwrap();
    for (key, recipients, part) in [
        ("first", 3, Value::Null),
        ("long", 100_000, json!({"number": 1, "of": 2})),
        ("long", 1, json!({"number": 2, "of": 2})),
    ] {
        let delivery = timeout(BOUND, consumer.next()).await.unwrap().unwrap();
        let job: Value = serde_json::from_slice(&delivery.body).unwrap();
        let users = job["audience"]["users"].as_array().unwrap();
        assert_eq!(
            (users.len(), &job["client_msg_no"]),
            (recipients, &key.into())
        );
        assert_eq!(job["part"], part);
        delivery.ack().await.unwrap();
    }
    session.close().await;

    let queues = rabbit.topology().queues.into_iter();
    let high = queues
        .map(|it| it.name)
        .find(|it| it.contains(".jobs.high."));
    let raw = lapin::Connection::connect(&url, lapin::ConnectionProperties::default());
    let channel = raw.await.unwrap().create_channel().await.unwrap();
    let high = high.unwrap();
    channel
        .queue_delete(high.as_str().into(), Default::default())
        .await
        .unwrap();
    let mut job = job("lost", 1);
    job.priority = Some(Priority::High);
    let lost = producer.submit(job).await.unwrap_err();
    assert!(
        lost.is_missing() && lost.to_string().contains("`high`"),
        "{lost}"
    );
    producer.close().await;
    rabbit.delete_all().await.unwrap();
}
