//! Publishes with group commit: many tasks publish, one task owns the channels and the confirms.
//!
//! A batch is everything that waits, up to a bound. It is published on a channel of its own,
//! mandatory and persistent, and answered when all its confirms have arrived. Two batches may be
//! under way, each on its own channel, so that one is written while the other is synced to disk.
//!
//! Why a channel belongs to one batch at a time: the client hands a returned (unroutable) message
//! to the next confirm that it resolves, not to the confirm of that message. So no single `Ack` can
//! be trusted while others are in flight. But when all confirms of a channel have arrived, all its
//! returns have too, and a return names its exchange and routing key. So a message was routed if
//! and only if no return has its exchange and key. A channel whose batch did not finish in time is
//! dropped, with everything that may still arrive on it.
//!
//! Events go the same way on channels of their own, not mandatory: there may be no queue for them,
//! and a subscriber whose queue is full or gone must not delay or fail anything else. Replies go
//! with them for the same reason, but they are mandatory, and the caller learns if one did not
//! arrive.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fanwise_net::amqp::Link;
use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt, future};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::topology::Names;
use crate::clock::now_ms;
use crate::ports::{Lost, Outgoing, PublishError, Publisher, Route};

/// Most messages of one batch. Its confirms cost one sync to disk however many there are; measured,
/// the gain flattens out at about a hundred.
const BATCH_MESSAGES_MAX: usize = 128;

/// Most bytes of bodies in one batch, so that large ones do not pile up unconfirmed.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Batches under way at once.
const BATCHES_MAX: usize = 2;

/// Requests that wait for a batch; beyond it, `publish` waits before it hands over. Enough to fill
/// all batches with requests of one message.
const REQUESTS_MAX: usize = BATCH_MESSAGES_MAX * BATCHES_MAX;

/// How long an event may wait for the confirm of a subscriber's queue.
const EVENT_CONFIRM_TIMEOUT_MAX: Duration = Duration::from_secs(2);

/// A message in its wire form.
pub(super) struct Wire {
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    pub(super) properties: BasicProperties,
    pub(super) body: Bytes,
}

impl Wire {
    /// Whether it goes straight to a queue that a job named.
    fn is_reply(&self) -> bool {
        self.exchange.as_str() == DEFAULT_EXCHANGE
    }
}

/// Routes to every queue by its name. Only replies use it.
const DEFAULT_EXCHANGE: &str = "";

/// Messages of one caller that are answered together.
struct Request {
    messages: Vec<Wire>,
    /// When the request was made: the time that a publish may wait for a blocked connection starts
    /// here.
    asked: Instant,
    done: oneshot::Sender<Result<(), PublishError>>,
}

impl Request {
    fn bytes(&self) -> usize {
        self.messages.iter().map(|wire| wire.body.len()).sum()
    }
}

/// Publishes into one session.
#[derive(Clone)]
pub struct RabbitPublisher {
    names: Arc<Names>,
    messages: mpsc::Sender<Request>,
    events: mpsc::Sender<Request>,
}

impl Publisher for RabbitPublisher {
    async fn publish(&self, messages: Vec<Outgoing>) -> Result<(), PublishError> {
        let mut durable = Vec::with_capacity(messages.len());
        let mut events = Vec::new();
        for message in messages {
            let for_others = matches!(message.route, Route::Event { .. } | Route::Reply { .. });
            let wire = wire(&self.names, message)?;
            if for_others {
                events.push(wire);
            } else {
                durable.push(wire);
            }
        }
        future::try_join(
            hand_over(&self.messages, durable),
            hand_over(&self.events, events),
        )
        .await?;
        Ok(())
    }
}

impl RabbitPublisher {
    /// Publishes one message, which is durable and routed when this returns `Ok`.
    pub(super) async fn publish_wire(&self, wire: Wire) -> Result<(), PublishError> {
        hand_over(&self.messages, vec![wire]).await
    }
}

/// Hands messages to the publishing task, in parts that fit in a batch, and waits for all answers.
async fn hand_over(
    requests: &mpsc::Sender<Request>,
    messages: Vec<Wire>,
) -> Result<(), PublishError> {
    let mut answers = Vec::with_capacity(messages.len().div_ceil(BATCH_MESSAGES_MAX));
    let mut messages = messages.into_iter().peekable();
    while messages.peek().is_some() {
        let (done, answer) = oneshot::channel();
        let request = Request {
            messages: messages.by_ref().take(BATCH_MESSAGES_MAX).collect(),
            asked: Instant::now(),
            done,
        };
        requests.send(request).await.map_err(|_| Lost)?;
        answers.push(answer);
    }
    for answer in answers {
        answer.await.map_err(|_| Lost)??;
    }
    Ok(())
}

/// The parts of its session that the publishing task needs.
#[derive(Clone)]
pub(super) struct Wiring {
    pub(super) connection: Arc<Link>,
    pub(super) lost: CancellationToken,
    /// The broker has told this connection to stop publishing.
    pub(super) blocked: watch::Receiver<bool>,
    pub(super) confirm_timeout: Duration,
}

/// The publisher of a session, and the two tasks that must run for it.
pub(super) fn start(
    names: Arc<Names>,
    wiring: &Wiring,
) -> (
    RabbitPublisher,
    [impl Future<Output = ()> + Send + use<>; 2],
) {
    let (messages, message_requests) = mpsc::channel(REQUESTS_MAX);
    let (events, event_requests) = mpsc::channel(REQUESTS_MAX);
    let publisher = RabbitPublisher {
        names,
        messages,
        events,
    };
    let durable = Committer {
        wiring: wiring.clone(),
        care: PublishCare::Durable,
    };
    let mut lenient = Committer {
        wiring: wiring.clone(),
        care: PublishCare::Event,
    };
    lenient.wiring.confirm_timeout = wiring.confirm_timeout.min(EVENT_CONFIRM_TIMEOUT_MAX);
    (
        publisher,
        [durable.run(message_requests), lenient.run(event_requests)],
    )
}

/// How carefully a message is published.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PublishCare {
    /// Must be in a queue.
    Durable,
    /// There may be no queue for it.
    Event,
}

/// Collects requests into batches and publishes each batch.
struct Committer {
    wiring: Wiring,
    care: PublishCare,
}

/// A channel in confirm mode with nothing in flight; none if it must be opened first.
type Slot = Option<Channel>;

/// The state of one message.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ConfirmState {
    Pending,
    Acked,
    Nacked,
}

/// The exchange and routing key of a message.
type Way = (ShortString, ShortString);

impl Committer {
    async fn run(self, mut requests: mpsc::Receiver<Request>) {
        let mut idle: Vec<Slot> = vec![None; BATCHES_MAX];
        let mut under_way = FuturesUnordered::new();
        loop {
            tokio::select! {
                biased;
                () = self.wiring.lost.cancelled() => return,
                Some(slot) = under_way.next() => idle.push(slot),
                request = requests.recv(), if !idle.is_empty() => {
                    let Some(request) = request else { return };
                    let batch = collect(request, &mut requests);
                    // The guard of this branch ensures that there is one.
                    let slot = idle.pop().flatten();
                    under_way.push(self.commit(slot, batch));
                }
            }
        }
    }

    /// Publishes a batch and answers its requests. Returns the channel, if it may be used again.
    async fn commit(&self, slot: Slot, batch: Vec<Request>) -> Slot {
        let asked = batch.first().map_or_else(Instant::now, |first| first.asked);
        if !self.unblocked(asked + self.wiring.confirm_timeout).await {
            answer_all(batch, || PublishError::Timeout(self.wiring.confirm_timeout));
            return slot;
        }
        let deadline = Instant::now() + self.wiring.confirm_timeout;
        let channel = match slot {
            Some(channel) => channel,
            None => match timeout_at(deadline, open_confirm_channel(&self.wiring.connection)).await
            {
                Ok(Ok(channel)) => channel,
                Ok(Err(error)) => {
                    self.lose(&error);
                    answer_all(batch, || Lost.into());
                    return None;
                }
                Err(_) => {
                    answer_all(batch, || PublishError::Timeout(self.wiring.confirm_timeout));
                    return None;
                }
            },
        };
        match self.publish(&channel, &batch, deadline).await {
            Ok(confirms) => {
                let complete = confirms.complete();
                self.answer(batch, &confirms);
                complete.then_some(channel)
            }
            Err(error) => {
                self.lose(&error);
                answer_all(batch, || Lost.into());
                None
            }
        }
    }

    /// Waits while the broker is short of memory or disk: it would not read anything written now.
    async fn unblocked(&self, deadline: Instant) -> bool {
        let mut blocked = self.wiring.blocked.clone();
        let free = timeout_at(deadline, blocked.wait_for(|blocked| !blocked)).await;
        matches!(free, Ok(Ok(_)))
    }

    async fn publish(
        &self,
        channel: &Channel,
        batch: &[Request],
        deadline: Instant,
    ) -> lapin::Result<Confirms> {
        // Persistent messages (in their properties) on durable queues. Mandatory, because otherwise
        // a message that no queue takes is confirmed and lost.
        let messages = batch.iter().flat_map(|request| &request.messages);
        let mut in_flight: FuturesUnordered<_> = messages
            .enumerate()
            .map(async |(index, wire)| {
                let options = BasicPublishOptions {
                    mandatory: self.care == PublishCare::Durable || wire.is_reply(),
                    ..BasicPublishOptions::default()
                };
                let written = channel.basic_publish(
                    wire.exchange.clone(),
                    wire.routing_key.clone(),
                    options,
                    &wire.body,
                    wire.properties.clone(),
                );
                lapin::Result::Ok((index, written.await?.await?))
            })
            .collect();
        let mut confirms = Confirms {
            states: vec![ConfirmState::Pending; in_flight.len()],
            returned: HashSet::new(),
        };
        while let Ok(Some(confirm)) = timeout_at(deadline, in_flight.next()).await {
            let (index, confirmation) = confirm?;
            confirms.record(index, confirmation);
        }
        Ok(confirms)
    }

    fn answer(&self, batch: Vec<Request>, confirms: &Confirms) {
        let mut states = confirms.states.iter();
        for request in batch {
            let states: Vec<_> = states.by_ref().take(request.messages.len()).collect();
            let answer = match self.care {
                PublishCare::Durable => self.verdict(&request.messages, &states, confirms),
                PublishCare::Event if request.messages.iter().any(Wire::is_reply) => {
                    self.verdict(&request.messages, &states, confirms)
                }
                PublishCare::Event => {
                    if states.iter().any(|state| **state != ConfirmState::Acked) {
                        debug!("a subscriber's queue did not take an event");
                    }
                    Ok(())
                }
            };
            // A caller that does not wait any more needs no answer.
            let _ = request.done.send(answer);
        }
    }

    fn verdict(
        &self,
        messages: &[Wire],
        states: &[&ConfirmState],
        confirms: &Confirms,
    ) -> Result<(), PublishError> {
        let astray = messages.iter().find(|wire| confirms.came_back(wire));
        if let Some(wire) = astray {
            return Err(unroutable(&wire.exchange, &wire.routing_key));
        }
        // Returns are complete only when all confirms are. While some confirms are missing and
        // there are returns, any of these messages may still be returned.
        let doubt = !confirms.complete() && !confirms.returned.is_empty();
        if doubt || states.iter().any(|state| **state == ConfirmState::Pending) {
            return Err(PublishError::Timeout(self.wiring.confirm_timeout));
        }
        if states.iter().any(|state| **state == ConfirmState::Nacked) {
            return Err(PublishError::Refused);
        }
        Ok(())
    }

    fn lose(&self, error: &lapin::Error) {
        if !self.wiring.lost.is_cancelled() {
            warn!(%error, "publishing failed, the session is lost");
            self.wiring.lost.cancel();
        }
    }
}

/// The confirms of one batch, as far as they have arrived.
struct Confirms {
    states: Vec<ConfirmState>,
    returned: HashSet<Way>,
}

impl Confirms {
    fn record(&mut self, index: usize, confirmation: Confirmation) {
        // A channel in confirm mode always asks for confirms; without one the result is not known.
        self.states[index] = match &confirmation {
            Confirmation::Ack(_) => ConfirmState::Acked,
            Confirmation::Nack(_) => ConfirmState::Nacked,
            Confirmation::NotRequested => ConfirmState::Pending,
        };
        if let Some(message) = confirmation.take_message() {
            let returned = message.delivery;
            self.returned
                .insert((returned.exchange, returned.routing_key));
        }
    }

    fn complete(&self) -> bool {
        !self.states.contains(&ConfirmState::Pending)
    }

    fn came_back(&self, wire: &Wire) -> bool {
        // Nearly always empty; nothing is cloned then.
        !self.returned.is_empty()
            && self
                .returned
                .contains(&(wire.exchange.clone(), wire.routing_key.clone()))
    }
}

/// Takes the requests that wait already, up to the bounds of a batch. The last request may exceed
/// them: it was taken before its size was known, and it fits in a batch by itself.
fn collect(first: Request, requests: &mut mpsc::Receiver<Request>) -> Vec<Request> {
    let mut messages = first.messages.len();
    let mut bytes = first.bytes();
    let mut batch = vec![first];
    while messages < BATCH_MESSAGES_MAX && bytes < BATCH_BYTES_MAX {
        let Ok(request) = requests.try_recv() else {
            break;
        };
        messages += request.messages.len();
        bytes += request.bytes();
        batch.push(request);
    }
    batch
}

fn answer_all(batch: Vec<Request>, error: impl Fn() -> PublishError) {
    for request in batch {
        // A caller that does not wait any more needs no answer.
        let _ = request.done.send(Err(error()));
    }
}

async fn open_confirm_channel(connection: &Link) -> lapin::Result<Channel> {
    let channel = connection.create_channel().await?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    Ok(channel)
}

fn unroutable(
    exchange: impl std::fmt::Display,
    routing_key: impl std::fmt::Display,
) -> PublishError {
    PublishError::Unroutable(format!(
        "exchange `{exchange}`, routing key `{routing_key}`"
    ))
}

/// Where a message goes, with the properties that describe it.
pub(super) fn wire(names: &Names, message: Outgoing) -> Result<Wire, PublishError> {
    let mut correlation_id = None;
    let (exchange, routing_key, kind) = match message.route {
        Route::Job(priority) => (names.exchange("jobs"), priority.as_str().to_owned(), "job"),
        Route::Lane(lane) => (names.exchange("lanes"), lane.to_string(), "slice"),
        Route::Wait { lane, rung } => (names.retry_exchange(rung), lane.to_string(), "slice"),
        Route::WaitJob { priority, rung } => (
            names.retry_exchange(rung),
            priority.as_str().to_owned(),
            "job",
        ),
        Route::Dead { app, target } => (
            names.exchange("dead"),
            format!("{app}.{target}"),
            "dead_letter",
        ),
        Route::Event { app, event } => {
            (names.exchange("events"), format!("{app}.{event}"), "event")
        }
        Route::Sequence => (names.exchange("ledger"), String::new(), "sequence"),
        Route::Reply {
            queue,
            correlation_id: id,
        } => {
            correlation_id = ShortString::try_new(id).ok();
            (DEFAULT_EXCHANGE.to_owned(), queue, "event")
        }
    };
    // No queue can be bound with a name or key that does not fit the wire format.
    let (Ok(exchange), Ok(routing_key)) = (
        ShortString::try_new(exchange.as_str()),
        ShortString::try_new(routing_key.as_str()),
    ) else {
        return Err(unroutable(exchange, routing_key));
    };
    let mut properties = BasicProperties::default()
        // Persistent. Quorum queues always are; queues that others bind may be classic.
        .with_delivery_mode(PERSISTENT)
        .with_content_type("application/json".into())
        .with_type(kind.into())
        .with_timestamp(unix_seconds());
    if let Ok(message_id) = ShortString::try_new(message.message_id) {
        properties = properties.with_message_id(message_id);
    }
    if let Some(correlation_id) = correlation_id {
        properties = properties.with_correlation_id(correlation_id);
    }
    if let Some(traceparent) = message.traceparent {
        let mut headers = FieldTable::default();
        headers.insert(
            "traceparent".into(),
            AMQPValue::LongString(traceparent.into()),
        );
        properties = properties.with_headers(headers);
    }
    Ok(Wire {
        exchange,
        routing_key,
        properties,
        body: message.body,
    })
}

pub(super) const PERSISTENT: u8 = 2;

/// Seconds since 1970, as timestamps of messages are.
pub(super) fn unix_seconds() -> u64 {
    now_ms() / 1000
}
