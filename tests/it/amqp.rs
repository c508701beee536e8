//! Tests the broker port on a real RabbitMQ. Each test has a namespace of its own and deletes it.
//!
//! `FANWISE_TEST_AMQP_URL` names the broker. Without it every test reports that it was skipped, or
//! fails if `FANWISE_TEST_REQUIRE` is 1.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fanwise::amqp::{Queue, Rabbit, RabbitFollower, RabbitSession, Settings};
use fanwise::domain::lane::{Lane, LaneClass, Priority};
use fanwise::error::chain;
use fanwise::ports::{
    Broker, BrokerError, Consumer, Delivery, Followed, Follower, Lost, Outgoing, PublishError,
    Publisher, RetainedEdit, RetainedMessage, RetainedQueue, RetainedQueues, Route, Session,
    Source,
};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection, ConnectionProperties};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::relay::Relay;
use crate::support::retained::break_off_removal;
use crate::support::servers::{PrivateRabbit, other_server};
use crate::support::wait::until;

/// Longer than any step takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(20);

fn url() -> Option<String> {
    let url = std::env::var("FANWISE_TEST_AMQP_URL").ok();
    if url.is_none() {
        let required = std::env::var("FANWISE_TEST_REQUIRE").is_ok_and(|value| value == "1");
        assert!(!required, "FANWISE_TEST_AMQP_URL is not set");
        println!("skipped: FANWISE_TEST_AMQP_URL is not set");
    }
    url
}

fn settings(url: String) -> Settings {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    Settings {
        namespace: format!("test{}-{count}", std::process::id()),
        targets: vec!["wk".to_owned()],
        connection_name: "fanwise test".to_owned(),
        ..Settings::new(url)
    }
}

fn rabbit() -> Option<Rabbit> {
    url().map(|url| Rabbit::new(settings(url)).unwrap())
}

fn outgoing(route: Route, body: &str) -> Outgoing {
    Outgoing {
        route,
        body: Bytes::copy_from_slice(body.as_bytes()),
        message_id: format!("id-{body}"),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
    }
}

fn express() -> Lane {
    Lane {
        target: "wk".to_owned(),
        class: LaneClass::Express(0),
    }
}

fn slice(body: &str) -> Outgoing {
    outgoing(Route::Lane(express()), body)
}

fn dead_letter(body: &str) -> Outgoing {
    let (app, target) = ("shop".to_owned(), "wk".to_owned());
    outgoing(Route::Dead { app, target }, body)
}

async fn next(consumer: &mut impl Consumer) -> Delivery {
    timeout(PATIENCE, consumer.next()).await.unwrap().unwrap()
}

async fn finish(rabbit: &Rabbit, session: RabbitSession) {
    session.close().await;
    rabbit.delete_all().await.unwrap();
}

async fn read_bodies(rabbit: &Rabbit, retained: RetainedQueue) -> Vec<RetainedMessage> {
    let mut kept = Vec::new();
    let shown = rabbit
        .read(retained, |message| {
            kept.push(message);
            ControlFlow::Continue(())
        })
        .await
        .unwrap();
    assert_eq!(shown, kept.len() as u64);
    kept
}

/// What is said of a broker at this address.
async fn told(url: String) -> String {
    let rabbit = Rabbit::new(settings(url)).unwrap();
    match rabbit.connect().await {
        Ok(_) => panic!("it connects"),
        Err(error) => chain(&error),
    }
}

/// Each way in which an address can be wrong has a sentence of its own, with the address and what to
/// do, and without the password.
#[tokio::test]
async fn a_wrong_address_of_the_broker_is_told_with_what_to_do() {
    let Some(url) = url() else { return };
    let (_, place) = url.rsplit_once('@').unwrap();
    let at = place.split('/').next().unwrap();
    let right = url.strip_suffix(place).unwrap();
    let web = &other_server().await;
    for (url, at, expected) in [
        (
            format!("amqp://nobody:hidden@{at}/%2f"),
            at,
            "Check user and password in broker.url",
        ),
        (
            format!("{right}{at}/none-such"),
            at,
            "Correct the virtual host in broker.url, or create it: `rabbitmqctl add_vhost 'none-such'`",
        ),
        (
            "amqp://nobody:hidden@no-such-host.invalid:5672/".to_owned(),
            "no-such-host.invalid:5672",
            "Check the host in broker.url",
        ),
        (
            "amqp://nobody:hidden@127.0.0.1:1/".to_owned(),
            "127.0.0.1:1",
            "whether RabbitMQ runs there",
        ),
        (
            format!("amqps://nobody:hidden@{at}/"),
            at,
            "it does not speak TLS on this port",
        ),
        // Another server has this port.
        (
            format!("amqp://nobody:hidden@{web}/"),
            web,
            "Check that the port in broker.url is that of AMQP",
        ),
    ] {
        let said = told(url).await;
        assert!(said.contains(expected), "{expected:?} in {said}");
        assert!(said.contains(at), "{at} in {said}");
        for noise in ["hidden", "IO error", "protocol error"] {
            assert!(!said.contains(noise), "{said}");
        }
    }
}

/// A virtual host that its user may not enter.
#[tokio::test]
async fn a_virtual_host_that_is_not_permitted_is_told_with_what_to_do() {
    let Some(broker) = PrivateRabbit::start().await else {
        return;
    };
    broker.ctl(&["add_vhost", "closed"]).await;
    let url = broker.url().replace("%2f", "closed");
    let said = told(url).await;
    let expected = "Permit it: `rabbitmqctl set_permissions -p 'closed' 'guest' '.*' '.*' '.*'`";
    assert!(said.contains(expected), "{expected:?} in {said}");
}

/// A published message is delivered unchanged, with its trace context, and an ack removes it.
#[tokio::test]
async fn a_job_is_published_consumed_and_acked() {
    let Some(rabbit) = rabbit() else { return };
    let session = rabbit.connect().await.unwrap();
    let job = outgoing(Route::Job(Priority::High), "job");
    session
        .publisher()
        .publish(vec![job.clone()])
        .await
        .unwrap();

    let mut consumer = session
        .consume(Source::Jobs(Priority::High), 10)
        .await
        .unwrap();
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.body, job.body);
    assert_eq!(delivery.traceparent, job.traceparent);
    assert!(!delivery.redelivered);
    delivery.requeue().await.unwrap();

    let again = next(&mut consumer).await;
    assert!(again.redelivered);
    again.ack().await.unwrap();

    consumer.cancel().await;
    assert!(consumer.next().await.is_none());
    assert!(!session.lost().is_cancelled());
    session.close().await;
    let depths = rabbit.depths().await.unwrap();
    let ready: u32 = depths.iter().map(|d| d.counts.unwrap().ready).sum();
    assert_eq!(ready, 0, "acked for good: {depths:?}");
    rabbit.delete_all().await.unwrap();
}

/// After `cancel`, deliveries in flight still come out and can be acked, and then the consumer
/// ends.
#[tokio::test]
async fn a_cancelled_consumer_hands_out_what_it_has() {
    let Some(rabbit) = rabbit() else { return };
    let session = rabbit.connect().await.unwrap();
    let slices = (0..20).map(|n| slice(&n.to_string())).collect();
    session.publisher().publish(slices).await.unwrap();
    let mut consumer = session.consume(Source::Lane(express()), 5).await.unwrap();
    let first = next(&mut consumer).await;
    consumer.cancel().await;
    let mut held = vec![first];
    while let Some(delivery) = timeout(PATIENCE, consumer.next()).await.unwrap() {
        held.push(delivery);
    }
    assert!(held.len() <= 5, "prefetch is kept: {}", held.len());
    // The consumer may be dropped before its deliveries.
    drop(consumer);
    for delivery in held {
        delivery.ack().await.unwrap();
    }
    finish(&rabbit, session).await;
}

/// Many tasks publish at the same time, every tenth to a lane that does not exist: none of those
/// gets `Ok`, and every other message is in its queue once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unroutable_message_is_never_reported_as_published() {
    let Some(rabbit) = rabbit() else { return };
    let session = rabbit.connect().await.unwrap();
    let mut tasks = JoinSet::new();
    for n in 0..3000 {
        let publisher = session.publisher();
        tasks.spawn(async move {
            let astray = n % 10 == 3;
            let message = if astray {
                outgoing(
                    Route::Lane(format!("nowhere{n}.express").parse().unwrap()),
                    "lost",
                )
            } else {
                slice(&n.to_string())
            };
            (astray, n, publisher.publish(vec![message]).await)
        });
    }
    let mut routed = 0;
    while let Some(result) = tasks.join_next().await {
        match result.unwrap() {
            (false, _, Ok(())) => routed += 1,
            (true, n, Err(PublishError::Unroutable(what))) => {
                assert!(what.contains(&format!("nowhere{n}.express`")), "{what}");
            }
            (astray, n, result) => panic!("message {n}, astray {astray}: {result:?}"),
        }
    }
    assert_eq!(routed, 2700);
    // A single unroutable message fails a call of several.
    let mixed = vec![
        slice("a"),
        outgoing(Route::Lane("nowhere.express".parse().unwrap()), "b"),
        slice("c"),
    ];
    let result = session.publisher().publish(mixed).await;
    assert!(
        matches!(result, Err(PublishError::Unroutable(_))),
        "{result:?}"
    );
    assert!(!session.lost().is_cancelled());
    finish(&rabbit, session).await;
}

/// Events need no subscriber, and every subscriber gets them.
#[tokio::test]
async fn events_may_lead_nowhere() {
    let Some(rabbit) = rabbit() else { return };
    let session = rabbit.connect().await.unwrap();
    let event = || {
        let app = "shop".to_owned();
        outgoing(
            Route::Event {
                app,
                event: "completed",
            },
            "event",
        )
    };
    let together = vec![event(), slice("s"), event()];
    session.publisher().publish(together).await.unwrap();

    let connection = raw_connection().await;
    let channel = connection.create_channel().await.unwrap();
    let exclusive = QueueDeclareOptions::exclusive();
    let queue = channel
        .queue_declare("".into(), exclusive, FieldTable::default())
        .await
        .unwrap();
    let exchange = rabbit.topology().exchanges.pop().unwrap().name;
    channel
        .queue_bind(
            queue.name().clone(),
            exchange.as_str().into(),
            "shop.*".into(),
            Default::default(),
            FieldTable::default(),
        )
        .await
        .unwrap();
    session.publisher().publish(vec![event()]).await.unwrap();
    let got = channel
        .basic_get(queue.name().clone(), Default::default())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(got.delivery.routing_key.as_str(), "shop.completed");
    assert_eq!(
        got.delivery.properties.kind().as_ref().unwrap().as_str(),
        "event"
    );
    finish(&rabbit, session).await;
}

/// A full queue refuses its own messages and no others; a full queue of a subscriber of events
/// fails nothing.
#[tokio::test]
async fn a_full_queue_refuses_only_what_is_meant_for_it() {
    let Some(rabbit) = rabbit() else { return };
    let session = rabbit.connect().await.unwrap();
    let connection = raw_connection().await;
    let channel = connection.create_channel().await.unwrap();
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
    arguments.insert(
        "x-overflow".into(),
        AMQPValue::LongString("reject-publish".into()),
    );
    let exclusive = QueueDeclareOptions::exclusive();
    let full = channel
        .queue_declare("".into(), exclusive, arguments)
        .await
        .unwrap();
    let exchanges = rabbit.topology().exchanges;
    for exchange in exchanges
        .iter()
        .rev()
        .filter(|e| e.name.ends_with(".dead") || e.name.ends_with(".events"))
    {
        channel
            .queue_bind(
                full.name().clone(),
                exchange.name.as_str().into(),
                "#".into(),
                Default::default(),
                FieldTable::default(),
            )
            .await
            .unwrap();
    }
    let publisher = session.publisher();
    // A classic queue notices a few messages late that it is full.
    let fill = (0..10).map(|n| dead_letter(&n.to_string())).collect();
    let _ = publisher.publish(fill).await;

    let mut tasks = JoinSet::new();
    for n in 0..200 {
        let publisher = publisher.clone();
        tasks.spawn(async move {
            let app = "shop".to_owned();
            match n % 3 {
                0 => {
                    let result = publisher.publish(vec![dead_letter("full")]).await;
                    assert!(matches!(result, Err(PublishError::Refused)), "{result:?}");
                }
                1 => publisher.publish(vec![slice("fits")]).await.unwrap(),
                _ => {
                    let event = outgoing(
                        Route::Event {
                            app,
                            event: "started",
                        },
                        "event",
                    );
                    publisher.publish(vec![event]).await.unwrap();
                }
            }
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
    finish(&rabbit, session).await;
}

/// A follower notices letters that went away without an edit, for instance because an operator purged
/// the queue, and letters that came past it.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_notices_what_came_and_went_by_itself() {
    let Some(rabbit) = rabbit() else { return };
    let session = rabbit.connect().await.unwrap();
    let dead = |body: String| {
        let (app, target) = ("shop".to_owned(), "wk".to_owned());
        outgoing(Route::Dead { app, target }, &body)
    };
    let letters: Vec<_> = (0..20).map(|it| dead(it.to_string())).collect();
    session.publisher().publish(letters).await.unwrap();
    let mut follower = rabbit.follow(RetainedQueue::Dead).await.unwrap();
    let mut shown = 0;
    let mut count = |_| {
        shown += 1;
        ControlFlow::Continue(())
    };
    assert_eq!(follower.catch_up(&mut count).await.unwrap(), Followed::All);
    let queue = rabbit.topology().queues;
    let queue = queue
        .iter()
        .find(|it| it.name.ends_with(".dead.v1"))
        .unwrap();
    let channel = raw_connection().await.create_channel().await.unwrap();
    let purged = channel.queue_purge(queue.name.as_str().into(), Default::default());
    assert_eq!(purged.await.unwrap(), 20);
    until("what is gone to be noticed", PATIENCE, async || {
        let followed = follower.catch_up(|_| ControlFlow::Continue(())).await;
        (followed.unwrap() == Followed::Off).then_some(())
    })
    .await;
    assert_eq!(shown, 20);
    follower.end().await;
    // The same for messages of which there was no copy.
    let mut follower = rabbit.follow(RetainedQueue::Dead).await.unwrap();
    let followed = follower.catch_up(|_| ControlFlow::Continue(())).await;
    assert_eq!(followed.unwrap(), Followed::All);
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
    let key = queue.name.as_str().into();
    let published = channel.basic_publish("".into(), key, options, b"21", properties);
    published.await.unwrap();
    until("what came to be noticed", PATIENCE, async || {
        let followed = follower.catch_up(|_| ControlFlow::Continue(())).await;
        (followed.unwrap() == Followed::Off).then_some(())
    })
    .await;
    follower.end().await;
    session.close().await;
    rabbit.delete_all().await.unwrap();
}

/// An edit that ends half-way, and one of a version that does not say what it changes, have the queue
/// read again.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_notices_edits_that_it_cannot_follow() {
    let Some(rabbit) = rabbit() else { return };
    let session = rabbit.connect().await.unwrap();
    let letters: Vec<_> = (0..10)
        .map(|it| {
            let (app, target) = ("shop".to_owned(), "wk".to_owned());
            outgoing(Route::Dead { app, target }, &it.to_string())
        })
        .collect();
    session.publisher().publish(letters).await.unwrap();
    let followed = async |follower: &mut RabbitFollower| {
        let followed = follower.catch_up(|_| ControlFlow::Continue(())).await;
        followed.unwrap()
    };
    let mut follower = rabbit.follow(RetainedQueue::Dead).await.unwrap();
    assert_eq!(followed(&mut follower).await, Followed::All);
    // The edit is dropped after its fifth decision.
    break_off_removal(&rabbit, 5).await;
    until("the edit to be missed", PATIENCE, async || {
        (followed(&mut follower).await == Followed::Edited).then_some(())
    })
    .await;
    follower.end().await;

    let mut follower = rabbit.follow(RetainedQueue::Dead).await.unwrap();
    assert_eq!(followed(&mut follower).await, Followed::All);
    let topology = rabbit.topology();
    let named = |end: &str, names: Vec<&String>| {
        let found = names.into_iter().find(|it| it.ends_with(end));
        found.unwrap().as_str().into()
    };
    let exchange = named(
        ".edits",
        topology.exchanges.iter().map(|it| &it.name).collect(),
    );
    let queue = named(
        ".dead.v1",
        topology.queues.iter().map(|it| &it.name).collect(),
    );
    let channel = raw_connection().await.create_channel().await.unwrap();
    let confirms = ConfirmSelectOptions::default();
    channel.confirm_select(confirms).await.unwrap();
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
    let published = channel.basic_publish(exchange, queue, options, &[], properties);
    published.await.unwrap().await.unwrap();
    assert_eq!(followed(&mut follower).await, Followed::Edited);
    follower.end().await;
    session.close().await;
    rabbit.delete_all().await.unwrap();
}

/// A broker that is short of memory blocks publishing: publishes wait and then return `Timeout`,
/// acks go on, nothing is lost, and afterwards publishing goes on in the same session.
///
/// `FANWISE_TEST_RABBITMQCTL` names the command that can raise the alarm.
#[tokio::test]
async fn a_broker_short_of_memory_holds_up_publishing_only() {
    let Some(url) = url() else { return };
    let Ok(ctl) = std::env::var("FANWISE_TEST_RABBITMQCTL") else {
        println!("skipped: FANWISE_TEST_RABBITMQCTL is not set");
        return;
    };
    let rabbit = Rabbit::new(Settings {
        confirm_timeout: Duration::from_secs(2),
        ..settings(url)
    })
    .unwrap();
    let session = rabbit.connect().await.unwrap();
    let publisher = session.publisher();
    publisher
        .publish(vec![slice("before"), slice("too")])
        .await
        .unwrap();
    let mut consumer = session.consume(Source::Lane(express()), 1).await.unwrap();
    let held = next(&mut consumer).await;

    let alarm = Alarm::raise(ctl);
    let mut blocked = session.blocked();
    for _ in 0..2 {
        let result = timeout(PATIENCE, publisher.publish(vec![slice("during")])).await;
        assert!(
            matches!(result, Ok(Err(PublishError::Timeout(_)))),
            "{result:?}"
        );
    }
    assert!(*blocked.borrow_and_update());
    held.ack().await.unwrap();
    next(&mut consumer).await.ack().await.unwrap();
    let waiting = tokio::spawn(async move { publisher.publish(vec![slice("after")]).await });
    drop(alarm);
    waiting.await.unwrap().unwrap();
    assert!(!*blocked.borrow());
    assert!(!session.lost().is_cancelled());
    finish(&rabbit, session).await;
}

/// A slice waits on the lowest rung and returns to its own lane, not too early.
#[tokio::test]
async fn a_waiting_slice_returns_to_its_lane() {
    let Some(rabbit) = rabbit() else { return };
    let session = rabbit.connect().await.unwrap();
    let bulk = Lane {
        target: "wk".to_owned(),
        class: LaneClass::Of(Priority::Bulk, 1),
    };
    let mut home = session
        .consume(Source::Lane(bulk.clone()), 10)
        .await
        .unwrap();
    let mut other = session.consume(Source::Lane(express()), 10).await.unwrap();
    let rung = Duration::from_secs(1);
    let started = Instant::now();
    let waiting = outgoing(
        Route::Wait {
            lane: bulk.clone(),
            rung,
        },
        "later",
    );
    session.publisher().publish(vec![waiting]).await.unwrap();
    let delivery = next(&mut home).await;
    assert!(started.elapsed() >= rung, "{:?}", started.elapsed());
    assert_eq!(delivery.body, "later");
    assert!(delivery.traceparent.is_some(), "properties travel along");
    delivery.ack().await.unwrap();
    assert!(
        timeout(Duration::from_millis(100), other.next())
            .await
            .is_err()
    );
    finish(&rabbit, session).await;
}

/// Promise 11: messages on the retry ladder for a lane that does not exist delay no retries: they
/// are counted and end as rejected, with the reason. The broker keeps a message that it cannot
/// dead-letter, and 32 of those would stop a rung.
#[tokio::test]
async fn promise_11_what_waits_for_no_lane_holds_up_no_retry() {
    let Some(rabbit) = rabbit() else { return };
    let session = rabbit.connect().await.unwrap();
    let mut home = session.consume(Source::Lane(express()), 10).await.unwrap();
    let mut moved = session.moved().await.unwrap();
    let rung = Duration::from_secs(1);
    let waiting = |lane: Lane, body: &str| outgoing(Route::Wait { lane, rung }, body);
    let nowhere =
        (0..40).map(|number| waiting("nowhere.express".parse().unwrap(), &format!("{number}")));
    let publisher = session.publisher();
    publisher.publish(nowhere.collect()).await.unwrap();
    let last = waiting(express(), "later");
    publisher.publish(vec![last]).await.unwrap();
    let delivery = next(&mut home).await;
    assert_eq!(delivery.body, "later");
    delivery.ack().await.unwrap();
    let counted = moved.wait_for(|moved| moved.slices == 40);
    timeout(PATIENCE, counted).await.unwrap().unwrap();
    let kept = read_bodies(&rabbit, RetainedQueue::Rejected).await;
    assert_eq!(kept.len(), 40);
    for message in kept {
        let reason = &message.headers["fanwise-reason"];
        assert!(reason.contains("nowhere.express"), "{reason}");
    }
    finish(&rabbit, session).await;
}

/// Promise 1: slices that wait while the queue of their lane is deleted return to it after a worker
/// has declared it again.
#[tokio::test]
async fn promise_1_what_waits_while_its_lane_is_gone_returns_to_it() {
    let Some(rabbit) = rabbit() else { return };
    let session = rabbit.connect().await.unwrap();
    let waiting = (0..40).map(|number| {
        let lane = express();
        let rung = Duration::from_secs(1);
        outgoing(Route::Wait { lane, rung }, &format!("{number}"))
    });
    session
        .publisher()
        .publish(waiting.collect())
        .await
        .unwrap();
    let topology = rabbit.topology();
    let queue = |end: &str| {
        let found = topology.queues.iter().find(|it| it.name.ends_with(end));
        found.unwrap().name.clone()
    };
    let raw = raw_connection().await;
    let channel = raw.create_channel().await.unwrap();
    let lane = queue("wk.express.v1").as_str().into();
    channel
        .queue_delete(lane, Default::default())
        .await
        .unwrap();
    let stray = queue(".stray.v1");
    until("40 strays", PATIENCE, async || {
        let depths = rabbit.depths().await.unwrap();
        let depth = depths.iter().find(|it| it.queue == stray).unwrap();
        (depth.counts.unwrap().ready == 40).then_some(())
    })
    .await;
    session.close().await;
    let session = rabbit.connect().await.unwrap();
    let mut home = session.consume(Source::Lane(express()), 50).await.unwrap();
    let moved = session.moved().await.unwrap();
    let mut back = BTreeSet::new();
    for _ in 0..40 {
        let delivery = next(&mut home).await;
        back.insert(delivery.body.clone());
        delivery.ack().await.unwrap();
    }
    assert_eq!(back.len(), 40);
    assert_eq!(moved.borrow().slices, 0);
    finish(&rabbit, session).await;
}

/// A rejected message keeps every byte and property in the rejected queue.
#[tokio::test]
async fn a_rejected_message_is_kept_unharmed() {
    let Some(rabbit) = rabbit() else { return };
    let session = rabbit.connect().await.unwrap();
    let body: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    let mut nested = FieldTable::default();
    nested.insert("inner".into(), AMQPValue::Boolean(true));
    let mut headers = FieldTable::default();
    headers.insert("text".into(), AMQPValue::LongString("v\u{e9}".into()));
    headers.insert("number".into(), AMQPValue::LongLongInt(-5_000_000_000));
    headers.insert("table".into(), AMQPValue::FieldTable(nested));
    headers.insert("x-death".into(), AMQPValue::FieldArray(Default::default()));
    let properties = BasicProperties::default()
        .with_content_type("application/weird".into())
        .with_content_encoding("none".into())
        .with_delivery_mode(2)
        .with_priority(3)
        .with_correlation_id("corr".into())
        .with_reply_to("answers".into())
        .with_message_id("mid".into())
        .with_timestamp(1_700_000_000)
        .with_type("campaign".into())
        .with_app_id("crm".into())
        .with_expiration("600000".into())
        .with_user_id("guest".into())
        .with_headers(headers.clone());

    let connection = raw_connection().await;
    let channel = connection.create_channel().await.unwrap();
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await
        .unwrap();
    let exchange = rabbit.topology().exchanges[0].name.clone();
    channel
        .basic_publish(
            exchange.as_str().into(),
            "bulk".into(),
            BasicPublishOptions::default(),
            &body,
            properties.clone(),
        )
        .await
        .unwrap()
        .await
        .unwrap();
    let mut consumer = session
        .consume(Source::Jobs(Priority::Bulk), 10)
        .await
        .unwrap();
    let delivery = next(&mut consumer).await;
    delivery.reject("not JSON: ".repeat(1000)).await.unwrap();
    session.close().await;

    let queues = rabbit.topology().queues;
    let rejected = |queue: &&Queue| queue.name.ends_with(".rejected.v1");
    let rejected = queues.iter().find(rejected).unwrap().name.as_str();
    let got = channel
        .basic_get(rejected.into(), Default::default())
        .await
        .unwrap()
        .unwrap();
    assert!(got.delivery.data == body);
    assert_eq!(got.delivery.routing_key.as_str(), "bulk");
    let kept = &got.delivery.properties;
    assert_eq!(kept.expiration(), &None, "it would disappear");
    let expected = properties.with_headers(kept.headers().clone().unwrap());
    let expected = format!("{expected:?}");
    let mut found: BTreeMap<_, _> = kept.headers().clone().unwrap().inner().clone();
    // Properties that cannot be published again are among the headers.
    let expiration = found.remove("fanwise-expiration").unwrap();
    let user_id = found.remove("fanwise-user-id").unwrap();
    assert_eq!(expiration, AMQPValue::LongString("600000".into()));
    assert_eq!(user_id, AMQPValue::LongString("guest".into()));
    let restored = kept
        .clone()
        .with_expiration("600000".into())
        .with_user_id("guest".into());
    assert_eq!(format!("{restored:?}"), expected);

    let source = found.remove("fanwise-source").unwrap();
    let jobs = queues
        .iter()
        .find(|queue| queue.routing_key == "bulk")
        .unwrap();
    assert_eq!(source, AMQPValue::LongString(jobs.name.as_str().into()));
    assert!(found.remove("fanwise-rejected-at").is_some());
    let AMQPValue::LongString(reason) = found.remove("fanwise-reason").unwrap() else {
        panic!("the reason is not a text")
    };
    assert!(reason.as_bytes().starts_with(b"not JSON: ") && reason.len() <= 4096);
    let mut sent = headers.inner().clone();
    sent.remove("x-death");
    found.remove("x-delivery-count"); // of the queue it is in now
    assert_eq!(found, sent);
    drop(got);
    connection.close(200, "".into()).await.unwrap();
    let depths = rabbit.depths().await.unwrap();
    let jobs = depths
        .iter()
        .find(|d| d.queue.ends_with("jobs.bulk.v1"))
        .unwrap();
    assert_eq!(jobs.counts.unwrap().ready, 0, "and it was acked");
    rabbit.delete_all().await.unwrap();
}

/// A node of several that is away is passed over, and without any node all of them are named.
#[tokio::test]
async fn a_node_that_is_away_is_passed_over() {
    let Some(url) = url() else { return };
    let mut settings = settings(url);
    let dead = |port: u16| format!("amqp://ann:hunter2@127.0.0.1:{port}");
    settings.urls.extend([dead(1), dead(2)]);
    let rabbit = Rabbit::new(settings.clone()).unwrap();
    for _ in 0..6 {
        rabbit.depths().await.unwrap();
    }
    settings.urls.remove(0);
    let error = Rabbit::new(settings).unwrap().depths().await.unwrap_err();
    let text = chain(&error);
    for address in ["127.0.0.1:1", "127.0.0.1:2"] {
        assert!(text.contains(address), "{text}");
    }
    assert!(!text.contains("hunter2"), "{text}");
}

/// The network is cut while a consumer waits: the session is lost, the consumer ends, publish and
/// ack return `Lost`, and a new session gets the delivery again.
#[tokio::test]
async fn a_cut_connection_loses_the_session() {
    let Some(url) = url() else { return };
    let (relay, through) = Relay::before(&url).await;
    let direct = settings(url);
    let through = Settings {
        urls: vec![through],
        ..direct.clone()
    };
    let direct = Rabbit::new(direct).unwrap();
    let session = Rabbit::new(through).unwrap().connect().await.unwrap();
    let publisher = session.publisher();
    publisher
        .publish(vec![slice("one"), slice("two")])
        .await
        .unwrap();
    let mut consumer = session.consume(Source::Lane(express()), 1).await.unwrap();
    let held = next(&mut consumer).await;

    relay.cut().await;
    assert!(timeout(PATIENCE, consumer.next()).await.unwrap().is_none());
    timeout(PATIENCE, session.lost().cancelled()).await.unwrap();
    assert_eq!(held.ack().await, Err(Lost));
    let published = timeout(PATIENCE, publisher.publish(vec![slice("three")]))
        .await
        .unwrap();
    assert!(
        matches!(published, Err(PublishError::Lost(Lost))),
        "{published:?}"
    );
    assert!(consumer.next().await.is_none(), "it stays ended");
    session.close().await;

    let session = direct.connect().await.unwrap();
    let mut consumer = session.consume(Source::Lane(express()), 10).await.unwrap();
    let mut bodies = Vec::new();
    for _ in 0..2 {
        let delivery = next(&mut consumer).await;
        bodies.push(delivery.body.clone());
        delivery.ack().await.unwrap();
    }
    bodies.sort();
    assert_eq!(bodies, ["one", "two"]);
    finish(&direct, session).await;
}

/// A publish in flight when the network is cut is not reported as done.
#[tokio::test]
async fn a_publish_under_way_fails_with_its_session() {
    let Some(url) = url() else { return };
    let (relay, through) = Relay::before(&url).await;
    let direct = settings(url);
    let through = Settings {
        urls: vec![through],
        ..direct.clone()
    };
    let session = Rabbit::new(through).unwrap().connect().await.unwrap();
    let publisher = session.publisher();
    let (published, mut whole_batches) = watch::channel(0);
    let publishing = tokio::spawn(async move {
        for n in 0.. {
            let batch = (0..50).map(|m| slice(&format!("{n}-{m}"))).collect();
            if let Err(error) = publisher.publish(batch).await {
                return (n, error);
            }
            published.send_replace(n + 1);
        }
        unreachable!()
    });
    // Publishes follow each other, so that the cut meets one in flight.
    let some = whole_batches.wait_for(|batches| *batches >= 10);
    timeout(PATIENCE, some).await.unwrap().unwrap();
    relay.cut().await;
    let (whole, error) = timeout(PATIENCE, publishing).await.unwrap().unwrap();
    assert!(matches!(error, PublishError::Lost(_)), "{error:?}");
    drop(session);
    let direct = Rabbit::new(direct).unwrap();
    let depths = direct.depths().await.unwrap();
    let lane = depths
        .iter()
        .find(|d| d.queue.ends_with("wk.express.v1"))
        .unwrap();
    assert!(
        lane.counts.unwrap().ready >= whole * 50,
        "{lane:?}, {whole} batches"
    );
    direct.delete_all().await.unwrap();
}

/// For a delivery of a closed session every call returns `Lost`.
#[tokio::test]
async fn a_stale_delivery_cannot_be_acked() {
    let Some(rabbit) = rabbit() else { return };
    let session = rabbit.connect().await.unwrap();
    let slices = vec![slice("a"), slice("b"), slice("c"), slice("d")];
    session.publisher().publish(slices).await.unwrap();
    let mut consumer = session.consume(Source::Lane(express()), 3).await.unwrap();
    let ack = next(&mut consumer).await;
    let requeue = next(&mut consumer).await;
    let reject = next(&mut consumer).await;
    session.close().await;
    assert_eq!(ack.ack().await, Err(Lost));
    assert_eq!(requeue.requeue().await, Err(Lost));
    let rejected = reject.reject("why".to_owned()).await;
    assert!(
        matches!(rejected, Err(PublishError::Lost(Lost))),
        "{rejected:?}"
    );
    assert!(timeout(PATIENCE, consumer.next()).await.unwrap().is_none());
    rabbit.delete_all().await.unwrap();
}

/// Deleting the queue of a consumer ends it, and the session with it.
#[tokio::test]
async fn a_deleted_queue_loses_the_session() {
    let Some(rabbit) = rabbit() else { return };
    let session = rabbit.connect().await.unwrap();
    let mut consumer = session.consume(Source::Lane(express()), 3).await.unwrap();
    rabbit.delete_all().await.unwrap();
    assert!(timeout(PATIENCE, consumer.next()).await.unwrap().is_none());
    assert!(session.lost().is_cancelled());
}

/// A reader returns its messages by closing their channel, and sends nothing on it afterwards. If a
/// cancel of a consumer arrives after the close of its channel, it ends the connection, and the
/// read fails. The window is some microseconds, so this test catches such a fault only now and
/// then.
#[tokio::test]
async fn a_reader_of_dead_letters_leaves_without_a_word() {
    const BASIC_CANCEL: [u8; 4] = [0, 60, 0, 30];
    const CHANNEL_CLOSE: [u8; 4] = [0, 20, 0, 40];
    let Some(url) = url() else { return };
    let (relay, through) = Relay::before(&url).await;
    let direct = settings(url);
    let through = Settings {
        urls: vec![through],
        ..direct.clone()
    };
    let rabbit = Rabbit::new(direct).unwrap();
    let session = rabbit.connect().await.unwrap();
    let letters = (0..600).map(|n| dead_letter(&n.to_string())).collect();
    session.publisher().publish(letters).await.unwrap();

    relay.keep();
    let reader = Rabbit::new(through).unwrap();
    let mut seen = 0;
    let broken_off = reader.read(RetainedQueue::Dead, |_| {
        seen += 1;
        match seen {
            550 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    });
    assert_eq!(broken_off.await.unwrap(), 550);
    let said = relay.said();
    let first = |what: [u8; 4]| said.windows(4).position(|bytes| bytes == what);
    let last = |what: [u8; 4]| said.windows(4).rposition(|bytes| bytes == what);
    let closed = first(CHANNEL_CLOSE).unwrap();
    // The consumer of the first page is cancelled, when there is the next one.
    assert!(last(BASIC_CANCEL).unwrap() < closed);
    finish(&rabbit, session).await;
}

/// A read shows every message and removes none, over more than one page, any number of times. A
/// second reader has to wait; removed messages are gone.
#[tokio::test]
async fn reading_dead_letters_leaves_them_in_place() {
    let Some(rabbit) = rabbit() else { return };
    let session = rabbit.connect().await.unwrap();
    let letters = (0..1234).map(|n| dead_letter(&n.to_string())).collect();
    session.publisher().publish(letters).await.unwrap();

    let first = read_bodies(&rabbit, RetainedQueue::Dead).await;
    assert_eq!(first.len(), 1234);
    assert_eq!(first[0].routing_key, "shop.wk");
    let ids: BTreeSet<_> = first
        .iter()
        .map(|kept| kept.message_id.clone().unwrap())
        .collect();
    assert!(ids.len() == 1234 && ids.contains("id-7"));
    // More than 20 times: RabbitMQ 4 drops a message then, unless configured otherwise.
    for _ in 0..25 {
        let again = read_bodies(&rabbit, RetainedQueue::Dead).await;
        assert!(again == first, "not the same, or in another order");
    }

    let other = rabbit.clone();
    let (entered, inside) = std::sync::mpsc::channel();
    let (leave, left) = std::sync::mpsc::channel::<()>();
    let reader = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(other.read(RetainedQueue::Dead, move |_| {
            entered.send(()).unwrap();
            left.recv().unwrap();
            ControlFlow::Break(())
        }))
    });
    inside.recv().unwrap();
    let second = rabbit
        .read(RetainedQueue::Dead, |_| ControlFlow::Continue(()))
        .await;
    let Err(BrokerError::Refused { what, .. }) = second else {
        panic!("{second:?}")
    };
    assert!(what.contains("another request is reading"), "{what}");
    leave.send(()).unwrap();
    assert_eq!(reader.await.unwrap().unwrap(), 1);

    let odd = |message: &RetainedMessage| message.body.last().unwrap() % 2 == 1;
    let remove_odd = |message: RetainedMessage| match odd(&message) {
        true => RetainedEdit::Remove,
        false => RetainedEdit::Keep,
    };
    let summary = rabbit.edit(RetainedQueue::Dead, remove_odd).await.unwrap();
    assert_eq!((summary.shown, summary.removed), (1234, 617));
    let rest = read_bodies(&rabbit, RetainedQueue::Dead).await;
    assert_eq!(rest.len(), 617);
    assert!(!rest.iter().any(odd));
    finish(&rabbit, session).await;
}

/// Applying the topology again changes nothing and takes no time. A queue with other arguments, and
/// a broker without the queues if nothing may be declared, are refused with a remedy.
#[tokio::test]
async fn applying_the_topology_twice_is_harmless() {
    let Some(url) = url() else { return };
    let settings = settings(url);
    let rabbit = Rabbit::new(settings.clone()).unwrap();
    let started = Instant::now();
    let created = rabbit.apply().await.unwrap().created;
    assert_eq!(created.len(), rabbit.topology().queues.len());
    assert!(
        started.elapsed() > Duration::from_secs(3),
        "apply did not wait for the new queues"
    );
    assert!(rabbit.apply().await.unwrap().created.is_empty());

    let looking = Rabbit::new(Settings {
        declare: false,
        ..settings.clone()
    })
    .unwrap();
    looking.connect().await.unwrap().close().await;
    rabbit.delete_all().await.unwrap();
    let Err(BrokerError::Refused { what, .. }) = looking.connect().await else {
        panic!("connected without its queues")
    };
    assert!(what.contains("run `fanwise topology apply`"), "{what}");
    let depths = rabbit.depths().await.unwrap();
    assert!(depths.iter().all(|depth| depth.counts.is_none()));

    let connection = raw_connection().await;
    let channel = connection.create_channel().await.unwrap();
    let name = rabbit.topology().queues[0].name.clone();
    let mut arguments = FieldTable::default();
    arguments.insert(
        "x-queue-type".into(),
        AMQPValue::LongString("quorum".into()),
    );
    channel
        .queue_declare(
            name.as_str().into(),
            QueueDeclareOptions::durable(),
            arguments,
        )
        .await
        .unwrap();
    let Err(BrokerError::Refused { what, .. }) = rabbit.apply().await else {
        panic!("apply accepted a queue with other arguments")
    };
    assert!(
        what.contains(&name) && what.contains("drain and delete"),
        "{what}"
    );
    connection.close(200, "".into()).await.unwrap();
    rabbit.delete_all().await.unwrap();
}

/// The errors for a wrong password and for a missing broker differ, and neither contains the
/// password.
#[tokio::test]
async fn a_broker_that_cannot_be_used_is_named_without_its_password() {
    let Some(url) = url() else { return };
    let refused = url.replace("guest:guest@", "guest:hunter2@");
    if refused != url {
        let error = Rabbit::new(settings(refused))
            .unwrap()
            .connect()
            .await
            .err()
            .unwrap();
        assert!(matches!(error, BrokerError::Refused { .. }), "{error:?}");
        assert!(!format!("{error:?}").contains("hunter2"));
    }
    let nobody = "amqp://guest:hunter2@127.0.0.1:1".to_owned();
    let rabbit = Rabbit::new(settings(nobody)).unwrap();
    let error = rabbit.connect().await.err().unwrap();
    assert!(matches!(error, BrokerError::Connect { .. }), "{error:?}");
    assert!(!format!("{error:?} {rabbit:?}").contains("hunter2"));
    assert!(error.to_string().contains("amqp://127.0.0.1:1"));
}

/// Small messages from many tasks; prints the rate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_share_confirms() {
    let Some(rabbit) = rabbit() else { return };
    let session = rabbit.connect().await.unwrap();
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for task in 0..200 {
        let publisher = session.publisher();
        tasks.spawn(async move {
            for n in 0..100 {
                publisher
                    .publish(vec![slice(&format!("{task}-{n}"))])
                    .await
                    .unwrap();
            }
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{:.0} messages a second", 20_000.0 / seconds);
    let started = Instant::now();
    for _ in 0..40 {
        let batch = (0..500).map(|n| slice(&n.to_string())).collect();
        session.publisher().publish(batch).await.unwrap();
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{:.0} messages a second in calls of 500",
        20_000.0 / seconds
    );
    finish(&rabbit, session).await;
}

async fn raw_connection() -> Connection {
    let url = url().unwrap();
    Connection::connect(&url, ConnectionProperties::default())
        .await
        .unwrap()
}

/// A memory alarm of the broker, ended when this is dropped: it stops every other test too.
struct Alarm(String);

impl Alarm {
    fn raise(ctl: String) -> Self {
        let alarm = Self(ctl);
        alarm.set_watermark("0.00001");
        alarm
    }

    fn set_watermark(&self, value: &str) {
        let status = std::process::Command::new(&self.0)
            .args(["-q", "set_vm_memory_high_watermark", value])
            .status();
        println!("watermark {value}: {status:?}");
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.set_watermark("0.4");
    }
}
