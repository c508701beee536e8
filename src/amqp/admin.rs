//! Reads and edits the retained queues: dead letters and rejected messages.
//!
//! A queue has no cursor, so a reader takes messages and returns them: it acks nothing, and
//! everything returns when it closes its channel. A quorum queue hands at most 2,000 unacked
//! messages to a consumer without a limit and 65,535 to one with a limit. So the reader uses one
//! consumer after the other on one channel, each for a page that fits in memory: the number of
//! messages is not bounded, the bodies in memory are. What a cancelled consumer took stays with the
//! channel. Up to 32 pages come back in their order. With more pages they come back in any order, and
//! later readings show them so.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use bytes::Bytes;
use fanwise_net::amqp::{AmqpError, Dial, Link};
use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions,
    BasicQosOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::protocol::AMQPSoftError;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel};
use tokio::time::{Instant, sleep, timeout};

use super::consumer::{REASON, REJECTED_AT, SOURCE};
use super::declare::{MISSING, open_channel, passive_declare};
use super::edits::{EDIT, Notes};
use super::moved::Moved;
use super::topology::Names;
use crate::ports::{EditSummary, RetainedEdit, RetainedMessage, RetainedQueue};

/// Messages of a page, whose bodies are in memory at once.
const PAGE_MESSAGES: u16 = 500;

/// If no message arrives for this long, another reader has taken the rest.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// How long a reader waits for the one before it, and how often it tries.
const TURN_WAIT_MAX: Duration = Duration::from_secs(5);
const TURN_LOOK: Duration = Duration::from_millis(100);

/// How long to wait until the queue counts the returned messages again.
const RETURN_WAIT_MAX: Duration = Duration::from_secs(10);

/// Headers that are not the message's own: how often it was read, the routing key, which is shown
/// elsewhere, and what a note says.
const NOT_ITS_OWN: [&str; 4] = ["x-delivery-count", "x-acquired-count", ROUTING_KEY, EDIT];

pub(super) fn queue_of(retained: RetainedQueue, names: &Names) -> String {
    match retained {
        RetainedQueue::Dead => names.dead_queue(),
        RetainedQueue::Rejected => names.rejected_queue(),
    }
}

/// Shows messages until `visit` breaks. Returns how many were shown.
pub(super) async fn read(
    dial: &Dial,
    queue: &str,
    visit: impl FnMut(RetainedMessage) -> ControlFlow<()>,
) -> Result<u64, AmqpError> {
    let mut reader = QueueReader::open(dial, queue).await?;
    let shown = reader.pages(visit).await?;
    reader.close().await?;
    Ok(shown)
}

/// Shows every message to `decide` and carries out its decision.
///
/// One message at a time, much slower than reading. A channel holds back acks when more than a few
/// are on their way to a quorum queue, and loses them when it is closed (measured: 85 of 617 came
/// back). Each `basic.get` waits for all acks before it, so none is held back.
pub(super) async fn edit(
    dial: &Dial,
    names: &Names,
    queue: &str,
    mut decide: impl FnMut(RetainedMessage) -> RetainedEdit,
) -> Result<EditSummary, AmqpError> {
    let reader = QueueReader::open(dial, queue).await?;
    let mut notes = Notes::new(dial, &names.edits(), queue)?;
    let mut summary = EditSummary::default();
    // Replaced messages go to the end of the queue, after those counted here.
    for _ in 0..reader.ready {
        let Some(delivery) = reader.get().await? else {
            break;
        };
        summary.shown += 1;
        let acker = delivery.acker.clone();
        let key = original_key(&delivery);
        let properties = delivery.properties.clone();
        let message = kept_message(delivery);
        let old = message.body.clone();
        let new = match decide(message) {
            RetainedEdit::Keep => continue,
            RetainedEdit::Stop => break,
            RetainedEdit::Remove => None,
            RetainedEdit::Replace(body) => Some(body),
        };
        let properties = with_key(properties, key);
        notes.begin(&reader.connection).await;
        if let Some(body) = &new {
            reader.put(body, properties.clone()).await?;
        }
        let acked = acker.ack(BasicAckOptions::default());
        dial.ask("remove a message".to_owned(), acked).await?;
        notes.gone(&old).await;
        match new {
            Some(body) => {
                notes.kept(&body, properties).await;
                summary.replaced += 1;
            }
            None => summary.removed += 1,
        }
    }
    reader.give_back(summary.removed).await?;
    // The lock is still held.
    notes.end().await;
    dial.close(&reader.connection).await;
    Ok(summary)
}

/// Keeps out other readers, which would each see only a part. The lock is a queue that only one
/// connection may use and that is deleted with it. An exclusive consumer would also keep out this
/// reader's next page. Waits for the current reader, up to a bound.
async fn lock(dial: &Dial, connection: &Link, queue: &str) -> Result<Channel, AmqpError> {
    let deadline = Instant::now() + TURN_WAIT_MAX;
    loop {
        match try_lock(dial, connection, queue).await {
            Err(error) if error.is(&AMQPSoftError::RESOURCELOCKED) && Instant::now() < deadline => {
                sleep(TURN_LOOK).await;
            }
            locked => {
                let advice = "another request is reading it, try again when that is done";
                return locked
                    .map_err(|error| error.explain(&AMQPSoftError::RESOURCELOCKED, advice));
            }
        }
    }
}

/// The refusal closes the channel, so each try has its own channel.
async fn try_lock(dial: &Dial, connection: &Link, queue: &str) -> Result<Channel, AmqpError> {
    let channel = open_channel(dial, connection).await?;
    let options = QueueDeclareOptions {
        exclusive: true,
        ..QueueDeclareOptions::default()
    };
    let name = dial.name(&lock_of(queue))?;
    let locked = channel.queue_declare(name, options, FieldTable::default());
    dial.ask(format!("read queue `{queue}`"), locked).await?;
    Ok(channel)
}

/// The queue that is the lock of a queue.
pub(super) fn lock_of(queue: &str) -> String {
    format!("{queue}.reader")
}

/// Reads one queue; its messages are held unacked meanwhile.
pub(super) struct QueueReader<'a> {
    dial: &'a Dial,
    queue: &'a str,
    connection: Link,
    /// The messages that were taken belong to it.
    channel: Channel,
    /// That of the last page, with room for a page. The queue has a consumer at any moment, which
    /// tells others that messages are held.
    consumer: Option<lapin::Consumer>,
    pages: u32,
    /// Holds the lock, asks for the queue's counts, and publishes.
    aside: Channel,
    /// The number of messages at the start.
    ready: u32,
}

/// Header with the routing key of a message that replaces another. The new message goes straight
/// into the queue: subscribers of the exchange have already seen it.
const ROUTING_KEY: &str = "fanwise-routing-key";

impl<'a> QueueReader<'a> {
    pub(super) async fn open(dial: &'a Dial, queue: &'a str) -> Result<Self, AmqpError> {
        let connection = dial.open("read").await?;
        let aside = lock(dial, &connection, queue).await?;
        let before = passive_declare(dial, &aside, queue)
            .await
            .map_err(|error| error.explain(&AMQPSoftError::NOTFOUND, MISSING))?;
        let confirmed = aside.confirm_select(ConfirmSelectOptions::default());
        dial.ask("ask for confirms".to_owned(), confirmed).await?;
        let channel = open_channel(dial, &connection).await?;
        Ok(Self {
            dial,
            queue,
            connection,
            channel,
            consumer: None,
            pages: 0,
            aside,
            ready: before.ready,
        })
    }

    async fn pages(
        &mut self,
        mut visit: impl FnMut(RetainedMessage) -> ControlFlow<()>,
    ) -> Result<u64, AmqpError> {
        let mut shown = 0;
        let mut left = self.ready;
        while left > 0 {
            let page = u16::try_from(left).map_or(PAGE_MESSAGES, |left| left.min(PAGE_MESSAGES));
            let (of_page, goes_on) = self.page(page, &mut visit).await?;
            shown += of_page;
            if goes_on.is_break() {
                break;
            }
            left -= u32::from(page);
        }
        Ok(shown)
    }

    /// Shows the messages of one page. Returns how many there were and whether another page may
    /// follow.
    async fn page(
        &mut self,
        page: u16,
        visit: &mut impl FnMut(RetainedMessage) -> ControlFlow<()>,
    ) -> Result<(u64, ControlFlow<()>), AmqpError> {
        let dial = self.dial;
        let consumer = self.turn_page(page).await?;
        for shown in 1..=u64::from(page) {
            let Ok(item) = timeout(SILENCE_MAX, consumer.next()).await else {
                return Ok((shown - 1, ControlFlow::Break(())));
            };
            if visit(kept_message(dial.delivered(item)?)).is_break() {
                return Ok((shown, ControlFlow::Break(())));
            }
        }
        Ok((page.into(), ControlFlow::Continue(())))
    }

    /// Begins a page. The consumer of the page before has taken all that it may.
    async fn turn_page(&mut self, page: u16) -> Result<&mut lapin::Consumer, AmqpError> {
        let what = || format!("read queue `{}`", self.queue);
        let qos = self
            .channel
            .basic_qos(page, BasicQosOptions { global: false });
        self.dial.ask(what(), qos).await?;
        let consumed = self.channel.basic_consume(
            self.dial.name(self.queue)?,
            // The broker returns the messages of a few consumers in the order of their tags.
            format!("page-{:06}", self.pages).into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let consumer = self.dial.ask(what(), consumed).await?;
        self.pages += 1;
        // Cancelled before it is dropped: it would cancel itself in the background, and a cancel that
        // reaches the broker after the close of its channel ends the connection.
        if let Some(before) = &self.consumer {
            let cancelled =
                (self.channel).basic_cancel(before.tag(), BasicCancelOptions::default());
            self.dial.ask(what(), cancelled).await?;
        }
        Ok(self.consumer.insert(consumer))
    }

    /// The number of messages at the start.
    pub(super) fn ready(&self) -> u32 {
        self.ready
    }

    /// Takes one message and holds it.
    pub(super) async fn get(&self) -> Result<Option<lapin::message::Delivery>, AmqpError> {
        let got = self
            .channel
            .basic_get(self.dial.name(self.queue)?, BasicGetOptions::default());
        let got = self
            .dial
            .ask(format!("read queue `{}`", self.queue), got)
            .await?;
        Ok(got.map(|message| message.delivery))
    }

    /// Puts a message into the queue; it is durable on return.
    async fn put(&self, body: &[u8], properties: BasicProperties) -> Result<(), AmqpError> {
        let (exchange, queue) = (ShortString::default(), self.dial.name(self.queue)?);
        let what = || format!("put a message into queue `{}`", self.queue);
        let taken = self.publish(what(), exchange, queue, body, properties);
        match taken.await? {
            true => Ok(()),
            // The queue is full or gone: the original message stays.
            false => Err(AmqpError::NotTaken { what: what() }),
        }
    }

    /// Publishes a message, and returns whether it is durable in a queue.
    pub(super) async fn publish(
        &self,
        what: String,
        exchange: ShortString,
        routing_key: ShortString,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<bool, AmqpError> {
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let published = async {
            self.aside
                .basic_publish(exchange, routing_key, options, body, properties)
                .await?
                .await
        };
        let confirmation = self.dial.ask(what, published).await?;
        Ok(confirmation.is_ack() && confirmation.take_message().is_none())
    }

    /// Returns all messages. Does not wait for them: on a queue whose messages expire, their number
    /// tells nothing.
    pub(super) async fn leave(self) -> Result<(), AmqpError> {
        let closed = self.channel.close(200, ShortString::default());
        self.dial
            .ask("requeue the messages".to_owned(), closed)
            .await?;
        self.dial.close(&self.connection).await;
        Ok(())
    }

    /// Returns all messages. The lock is deleted with its connection.
    async fn close(self) -> Result<(), AmqpError> {
        self.give_back(0).await?;
        self.dial.close(&self.connection).await;
        Ok(())
    }

    /// Returns all messages, and waits until the next reader, or a count, finds them.
    async fn give_back(&self, removed: u64) -> Result<(), AmqpError> {
        let closed = self.channel.close(200, ShortString::default());
        self.dial
            .ask("requeue the messages".to_owned(), closed)
            .await?;
        let deadline = Instant::now() + RETURN_WAIT_MAX;
        while Instant::now() < deadline {
            let now = passive_declare(self.dial, &self.aside, self.queue).await?;
            if u64::from(now.ready) + removed >= u64::from(self.ready) {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

/// The properties of a message that replaces another, with its routing key.
fn with_key(properties: BasicProperties, routing_key: String) -> BasicProperties {
    let mut headers = properties.headers().clone().unwrap_or_default();
    headers.insert(
        ROUTING_KEY.into(),
        AMQPValue::LongString(routing_key.into()),
    );
    properties.with_headers(headers)
}

/// The routing key under which a message was first published.
fn original_key(delivery: &lapin::message::Delivery) -> String {
    let headers = delivery.properties.headers().as_ref();
    headers
        .and_then(|headers| headers.inner().get(ROUTING_KEY))
        .and_then(scalar)
        .unwrap_or_else(|| delivery.routing_key.to_string())
}

pub(super) fn kept_message(delivery: lapin::message::Delivery) -> RetainedMessage {
    let routing_key = original_key(&delivery);
    let properties = delivery.properties;
    let moved = properties.headers().as_ref().and_then(Moved::of);
    let headers = properties.headers().iter().flat_map(FieldTable::inner);
    let mut headers: BTreeMap<_, _> = headers
        .filter(|(name, _)| !NOT_ITS_OWN.contains(&name.as_str()))
        .filter_map(|(name, value)| Some((name.to_string(), scalar(value)?)))
        .collect();
    if let Some(Moved { queue, reason, at }) = moved {
        headers.insert(REASON.to_owned(), reason);
        headers.insert(SOURCE.to_owned(), queue);
        headers.extend(at.map(|at| (REJECTED_AT.to_owned(), at.to_string())));
    }
    RetainedMessage {
        body: Bytes::from(delivery.data),
        routing_key,
        message_id: properties.message_id().as_ref().map(ToString::to_string),
        published_at: *properties.timestamp(),
        headers,
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
