//! Declares the topology on a broker, checks it, counts its messages, deletes it. Asks whether the
//! broker takes messages.

use std::collections::BTreeMap;
use std::time::Duration;

use fanwise_net::amqp::{AmqpError, Dial, Link};
use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::protocol::AMQPSoftError;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel};
use serde::Serialize;
use tokio::time::sleep;
use tracing::info;

use super::topology::{Exchange, Kind, Queue, Topology, Value};

/// A broker stores a new quorum queue on disk only about two seconds after its first declaration:
/// if it is killed before that, it loses even confirmed messages of the queue (measured on 3.10,
/// 4.0 and 4.3).
const YOUNG_QUEUE_WAIT: Duration = Duration::from_secs(3);

pub(super) const MISSING: &str = "it does not exist; run `fanwise topology apply`";
const CHANGED: &str = "it exists with other arguments than this version declares; drain and delete \
    it, or choose another namespace (`fanwise topology show` prints what is expected)";

/// The result of applying the topology.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Queues that did not exist before.
    pub created: Vec<String>,
}

/// Declares everything; the broker checks existing exchanges and queues, argument by argument. If a
/// queue was created, it returns when the queue would survive a crash of the broker. A process that
/// finds queues that another one created a moment ago does not wait.
pub(super) async fn apply(
    dial: &Dial,
    connection: &Link,
    topology: &Topology,
) -> Result<Applied, AmqpError> {
    let created: Vec<_> = counts(dial, connection, topology)
        .await?
        .into_iter()
        .filter(|depth| depth.counts.is_none())
        .map(|depth| depth.queue)
        .collect();
    let channel = open_channel(dial, connection).await?;
    for exchange in &topology.exchanges {
        declare_exchange(dial, &channel, exchange, Passive(false)).await?;
    }
    for queue in &topology.queues {
        declare_queue(dial, &channel, queue).await?;
        for exchange in [&queue.exchange].into_iter().chain(&queue.also) {
            let what = format!("bind queue `{}` to `{exchange}`", queue.name);
            let bound = channel.queue_bind(
                dial.name(&queue.name)?,
                dial.name(exchange)?,
                dial.name(&queue.routing_key)?,
                QueueBindOptions::default(),
                FieldTable::default(),
            );
            dial.ask(what, bound).await?;
        }
    }
    close_channel(dial, &channel).await?;
    if !created.is_empty() {
        info!(
            queues = created.len(),
            wait_seconds = YOUNG_QUEUE_WAIT.as_secs(),
            "created queues, waiting until they would survive a crash of the broker"
        );
        sleep(YOUNG_QUEUE_WAIT).await;
    }
    Ok(Applied { created })
}

/// Checks that everything exists, for brokers where an operator declares the topology. It cannot
/// see arguments and bindings; a missing binding shows at the first publish, which is mandatory.
pub(super) async fn check(
    dial: &Dial,
    connection: &Link,
    topology: &Topology,
) -> Result<(), AmqpError> {
    let channel = open_channel(dial, connection).await?;
    for exchange in &topology.exchanges {
        declare_exchange(dial, &channel, exchange, Passive(true)).await?;
    }
    for queue in &topology.queues {
        passive_declare(dial, &channel, &queue.name)
            .await
            .map_err(|error| error.explain(&AMQPSoftError::NOTFOUND, MISSING))?;
    }
    close_channel(dial, &channel).await
}

/// A routing key that no queue is bound with.
const NOWHERE: &str = "doctor";

/// Whether the broker confirms messages. They lead to no queue, so the broker drops them.
pub(super) async fn takes_messages(
    dial: &Dial,
    connection: &Link,
    exchange: &str,
    patience: Duration,
) -> Result<bool, AmqpError> {
    let channel = open_channel(dial, connection).await?;
    let what = || "take a message".to_owned();
    let confirmed = channel.confirm_select(ConfirmSelectOptions::default());
    dial.ask(what(), confirmed).await?;
    let (exchange, key) = (dial.name(exchange)?, dial.name(NOWHERE)?);
    // The broker ceases to read from a publisher after its first message.
    let published = async {
        for _ in 0..2 {
            let (exchange, key) = (exchange.clone(), key.clone());
            let options = BasicPublishOptions::default();
            channel
                .basic_publish(exchange, key, options, &[], BasicProperties::default())
                .await?
                .await?;
        }
        lapin::Result::Ok(())
    };
    match dial.ask_within(what(), patience, published).await {
        Ok(()) => Ok(true),
        Err(AmqpError::Slow { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// How full a queue is; `None` when it does not exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Depth {
    pub queue: String,
    pub counts: Option<Counts>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Messages that are ready to be handed out, without those that a consumer holds unacked.
    pub ready: u32,
    pub consumers: u32,
}

pub(super) async fn counts(
    dial: &Dial,
    connection: &Link,
    topology: &Topology,
) -> Result<Vec<Depth>, AmqpError> {
    let mut channel = open_channel(dial, connection).await?;
    let mut depths = Vec::with_capacity(topology.queues.len());
    for queue in &topology.queues {
        let counts = match passive_declare(dial, &channel, &queue.name).await {
            Ok(counts) => Some(counts),
            Err(error) if error.is(&AMQPSoftError::NOTFOUND) => {
                // The broker closes a channel that asked for a missing queue.
                channel = open_channel(dial, connection).await?;
                None
            }
            Err(error) => return Err(error),
        };
        depths.push(Depth {
            queue: queue.name.clone(),
            counts,
        });
    }
    close_channel(dial, &channel).await?;
    Ok(depths)
}

/// Deletes everything, with all messages.
pub(super) async fn delete(
    dial: &Dial,
    connection: &Link,
    topology: &Topology,
) -> Result<(), AmqpError> {
    let channel = open_channel(dial, connection).await?;
    for queue in &topology.queues {
        let what = format!("delete queue `{}`", queue.name);
        // Neither if-empty nor if-unused: both close the connection on a quorum queue.
        let deleted = channel.queue_delete(dial.name(&queue.name)?, Default::default());
        dial.ask(what, deleted).await?;
    }
    for exchange in &topology.exchanges {
        let what = format!("delete exchange `{}`", exchange.name);
        let deleted = channel.exchange_delete(dial.name(&exchange.name)?, Default::default());
        dial.ask(what, deleted).await?;
    }
    close_channel(dial, &channel).await
}

pub(super) async fn passive_declare(
    dial: &Dial,
    channel: &Channel,
    queue: &str,
) -> Result<Counts, AmqpError> {
    let options = QueueDeclareOptions {
        passive: true,
        durable: true,
        ..QueueDeclareOptions::default()
    };
    let declared = channel.queue_declare(dial.name(queue)?, options, FieldTable::default());
    let queue = dial
        .ask(format!("look at queue `{queue}`"), declared)
        .await?;
    Ok(Counts {
        ready: queue.message_count(),
        consumers: queue.consumer_count(),
    })
}

pub(super) async fn open_channel(dial: &Dial, connection: &Link) -> Result<Channel, AmqpError> {
    dial.ask("open a channel".to_owned(), connection.create_channel())
        .await
}

pub(super) async fn close_channel(dial: &Dial, channel: &Channel) -> Result<(), AmqpError> {
    let closed = channel.close(200, ShortString::default());
    dial.ask("close a channel".to_owned(), closed).await
}

/// Only checks that it exists, instead of declaring it.
#[derive(Clone, Copy)]
struct Passive(bool);

async fn declare_exchange(
    dial: &Dial,
    channel: &Channel,
    exchange: &Exchange,
    passive: Passive,
) -> Result<(), AmqpError> {
    let kind = match exchange.kind {
        Kind::Direct => lapin::ExchangeKind::Direct,
        Kind::Fanout => lapin::ExchangeKind::Fanout,
        Kind::Topic => lapin::ExchangeKind::Topic,
    };
    let options = ExchangeDeclareOptions {
        passive: passive.0,
        // Survives a restart of the broker. Not auto-delete: bindings come and go, the exchange
        // stays. Not internal: all exchanges take publishes from clients.
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    let mut arguments = FieldTable::default();
    if let Some(alternate) = &exchange.alternate {
        let alternate = AMQPValue::LongString(alternate.as_str().into());
        arguments.insert("alternate-exchange".into(), alternate);
    }
    let name = dial.name(&exchange.name)?;
    let declared = channel.exchange_declare(name, kind, options, arguments);
    dial.ask(format!("declare exchange `{}`", exchange.name), declared)
        .await
        .map_err(|error| {
            error
                .explain(&AMQPSoftError::NOTFOUND, MISSING)
                .explain(&AMQPSoftError::PRECONDITIONFAILED, CHANGED)
        })
}

async fn declare_queue(dial: &Dial, channel: &Channel, queue: &Queue) -> Result<(), AmqpError> {
    let arguments: BTreeMap<_, _> = queue
        .arguments
        .iter()
        .map(|(name, value)| (ShortString::from(*name), amqp_value(value)))
        .collect();
    // Durable and shared: a quorum queue cannot be anything else.
    let options = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    let declared = channel.queue_declare(dial.name(&queue.name)?, options, arguments.into());
    dial.ask(format!("declare queue `{}`", queue.name), declared)
        .await
        .map_err(|error| error.explain(&AMQPSoftError::PRECONDITIONFAILED, CHANGED))?;
    Ok(())
}

fn amqp_value(value: &Value) -> AMQPValue {
    match value {
        Value::Text(text) => AMQPValue::LongString(text.as_str().into()),
        Value::Number(number) => AMQPValue::LongLongInt(*number),
    }
}
