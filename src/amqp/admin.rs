//! Reading the queues that keep messages for people: dead letters and rejected messages.
//!
//! A queue has no cursor, so reading is taking and giving back: nothing is acked, and everything
//! returns when the reader closes its channel. A quorum queue hands at most 2,000 unacked messages
//! to a consumer without a limit and 65,535 to one with, so the reader uses one consumer after the
//! other on one channel, each for a page that fits memory: the number of messages has no bound, the
//! bodies in memory do.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection};
use tokio::time::{Instant, sleep, timeout};

use super::connection::{AmqpError, Dial};
use super::declare::{MISSING, open_channel, passive_declare};
use super::topology::Names;
use crate::ports::{KeptMessage, Shelf, Then};

/// Messages of a page: bodies that may be in memory at once.
const PAGE_MESSAGES: u16 = 500;

/// Without a message for so long, the rest was taken away by somebody else.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// How long to wait until the queue shows again what was given back.
const RETURN_WAIT_MAX: Duration = Duration::from_secs(10);

/// Headers in which the broker counts deliveries.
const COUNTS: [&str; 2] = ["x-delivery-count", "x-acquired-count"];

pub(super) fn queue_of(shelf: Shelf, names: &Names) -> String {
    match shelf {
        Shelf::Dead => names.dead_queue(),
        Shelf::Rejected => names.rejected_queue(),
    }
}

pub(super) async fn read(
    dial: &Dial,
    queue: &str,
    visit: impl FnMut(KeptMessage) -> Then,
) -> Result<u64, AmqpError> {
    let connection = dial.open("read").await?;
    let guard = lock(dial, &connection, queue).await?;
    let channel = open_channel(dial, &connection).await?;
    let before = passive_declare(dial, &channel, queue)
        .await
        .map_err(|error| error.explain(&AMQPSoftError::NOTFOUND, MISSING))?;
    let mut reading = Reading {
        dial,
        channel: &channel,
        queue,
        shown: 0,
        removed: 0,
    };
    reading.pages(u64::from(before.ready), visit).await?;
    let Reading { shown, removed, .. } = reading;
    dial.ask(
        "take the messages back".to_owned(),
        channel.close(200, "".into()),
    )
    .await?;
    let left = u64::from(before.ready).saturating_sub(removed);
    wait_for_return(dial, &guard, queue, left).await?;
    // The lock goes with its connection.
    dial.close(&connection).await;
    Ok(shown)
}

/// Keeps other readers out, which would each see a part: a queue that only one connection may use,
/// and that goes with it. Consuming exclusively would also keep our own next page out.
async fn lock(dial: &Dial, connection: &Connection, queue: &str) -> Result<Channel, AmqpError> {
    let channel = open_channel(dial, connection).await?;
    let options = QueueDeclareOptions {
        exclusive: true,
        ..QueueDeclareOptions::default()
    };
    let name = dial.name(&format!("{queue}.reader"))?;
    let locked = channel.queue_declare(name, options, FieldTable::default());
    dial.ask(format!("read queue `{queue}`"), locked)
        .await
        .map_err(|error| {
            let advice = "somebody else is reading it, try again when they are done";
            error.explain(&AMQPSoftError::RESOURCELOCKED, advice)
        })?;
    Ok(channel)
}

struct Reading<'a> {
    dial: &'a Dial,
    channel: &'a Channel,
    queue: &'a str,
    shown: u64,
    removed: u64,
}

impl Reading<'_> {
    async fn pages(
        &mut self,
        total: u64,
        mut visit: impl FnMut(KeptMessage) -> Then,
    ) -> Result<(), AmqpError> {
        // They stay until the end: what they hold keeps the next page from showing it again.
        let mut consumers = Vec::new();
        while self.shown < total {
            let left = total - self.shown;
            let page = u16::try_from(left).map_or(PAGE_MESSAGES, |left| left.min(PAGE_MESSAGES));
            let mut consumer = self.consume(consumers.len(), page).await?;
            let mut held = 0;
            while held < page && self.shown < total {
                let Ok(item) = timeout(SILENCE_MAX, consumer.next()).await else {
                    return Ok(());
                };
                let delivery = self.dial.delivered(item)?;
                self.shown += 1;
                let acker = delivery.acker.clone();
                match visit(kept_message(delivery)) {
                    Then::Keep => held += 1,
                    Then::Stop => return Ok(()),
                    Then::Remove => {
                        let acked = acker.ack(BasicAckOptions::default());
                        self.dial.ask("remove a message".to_owned(), acked).await?;
                        self.removed += 1;
                    }
                }
            }
            consumers.push(consumer);
        }
        Ok(())
    }

    async fn consume(&self, index: usize, page: u16) -> Result<lapin::Consumer, AmqpError> {
        let what = || format!("read queue `{}`", self.queue);
        let qos = self
            .channel
            .basic_qos(page, BasicQosOptions { global: false });
        self.dial.ask(what(), qos).await?;
        let consumed = self.channel.basic_consume(
            self.dial.name(self.queue)?,
            // Messages come back in the order of the tags.
            format!("page-{index:06}").into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        self.dial.ask(what(), consumed).await
    }
}

/// The next reader, or a count, should find what was given back.
async fn wait_for_return(
    dial: &Dial,
    channel: &Channel,
    queue: &str,
    ready: u64,
) -> Result<(), AmqpError> {
    let deadline = Instant::now() + RETURN_WAIT_MAX;
    while Instant::now() < deadline {
        let now = passive_declare(dial, channel, queue).await?;
        if u64::from(now.ready) >= ready {
            break;
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn kept_message(delivery: lapin::message::Delivery) -> KeptMessage {
    let properties = delivery.properties;
    let headers = properties.headers().iter().flat_map(FieldTable::inner);
    KeptMessage {
        body: Bytes::from(delivery.data),
        routing_key: delivery.routing_key.to_string(),
        message_id: properties.message_id().as_ref().map(ToString::to_string),
        published_at: *properties.timestamp(),
        headers: headers
            // How often it was read already tells nothing about the message.
            .filter(|(name, _)| !COUNTS.contains(&name.as_str()))
            .filter_map(|(name, value)| Some((name.to_string(), scalar(value)?)))
            .collect(),
    }
}

fn scalar(value: &AMQPValue) -> Option<String> {
    Some(match value {
        AMQPValue::LongString(text) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
        AMQPValue::ShortString(text) => text.to_string(),
        AMQPValue::Boolean(value) => value.to_string(),
        AMQPValue::ShortShortInt(value) => value.to_string(),
        AMQPValue::ShortShortUInt(value) => value.to_string(),
        AMQPValue::ShortInt(value) => value.to_string(),
        AMQPValue::ShortUInt(value) => value.to_string(),
        AMQPValue::LongInt(value) => value.to_string(),
        AMQPValue::LongUInt(value) => value.to_string(),
        AMQPValue::LongLongInt(value) => value.to_string(),
        AMQPValue::Timestamp(value) => value.to_string(),
        AMQPValue::Float(value) => value.to_string(),
        AMQPValue::Double(value) => value.to_string(),
        AMQPValue::DecimalValue(_)
        | AMQPValue::FieldArray(_)
        | AMQPValue::FieldTable(_)
        | AMQPValue::ByteArray(_)
        | AMQPValue::Void => return None,
    })
}
