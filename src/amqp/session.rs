//! Opens, watches and closes the two connections of a session together.
//!
//! One connection publishes, one consumes. A broker short of memory or disk stops reading from
//! connections that publish, and acks on them would then hang too. Whenever a connection, a channel
//! or a consumer ends, `lost` is cancelled. The session never repairs itself, since only a new one
//! is sure that no delivery belongs to two workers.

use std::pin::pin;
use std::sync::Arc;

use fanwise_net::amqp::{Dial, Link};
use futures_util::{Stream, StreamExt};
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Event};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Rabbit;
use super::consumer::{Origin, RabbitConsumer};
use super::declare;
use super::moved;
use super::publisher::{self, RabbitPublisher, Wiring};
use super::stray;
use super::topology::Names;
use crate::domain::lane::Lane;
use crate::ports::{BrokerError, Lost, Moved, Session, Source};

/// A session with RabbitMQ.
pub struct RabbitSession {
    dial: Dial,
    names: Arc<Names>,
    consuming: Link,
    publishing: Arc<Link>,
    publisher: RabbitPublisher,
    lost: CancellationToken,
    blocked: watch::Receiver<bool>,
    /// Dropped, and so aborted, with the session.
    _tasks: JoinSet<()>,
}

/// The largest number from which the ledger can count on exactly. Two steps a second never come
/// near it.
const SEQUENCE_MAX: u64 = 1 << 52;

/// The number in a message of the ledger's queue. A number that no worker can have published is
/// ignored: it would put the sequence of all workers out of step permanently.
fn sequence_of(body: &[u8]) -> Option<u64> {
    let number = std::str::from_utf8(body).ok()?.parse().ok()?;
    (number <= SEQUENCE_MAX).then_some(number)
}

impl RabbitSession {
    /// Opens the connections, declares or checks the topology and starts the publisher.
    pub(super) async fn open(rabbit: &Rabbit) -> Result<Self, BrokerError> {
        let Rabbit { settings, dial, .. } = rabbit;
        let (publishing, consuming) =
            futures_util::future::try_join(dial.open("publish"), dial.open("consume")).await?;
        let wanted = rabbit.topology();
        if settings.declare {
            declare::apply(dial, &publishing, &wanted).await?;
        } else {
            declare::check(dial, &publishing, &wanted).await?;
        }

        let lost = CancellationToken::new();
        let publishing = Arc::new(publishing);
        let (tell_blocked, blocked) = watch::channel(false);
        let (tell_ignored, _) = watch::channel(false);
        let wiring = Wiring {
            connection: Arc::clone(&publishing),
            lost: lost.clone(),
            blocked: blocked.clone(),
            confirm_timeout: settings.confirm_timeout,
        };
        let names = Arc::new(Names::new(&settings.namespace));
        let (publisher, committers) = publisher::start(Arc::clone(&names), &wiring);

        let mut tasks = JoinSet::new();
        // One listener per connection: several would share the events between them.
        let events = publishing.events_listener();
        tasks.spawn(watch_connection(
            "publish",
            events,
            tell_blocked,
            lost.clone(),
        ));
        let events = consuming.events_listener();
        tasks.spawn(watch_connection(
            "consume",
            events,
            tell_ignored,
            lost.clone(),
        ));
        for committer in committers {
            // However the task ends: without it nothing can be published in this session.
            let lost = lost.clone().drop_guard();
            tasks.spawn(async move {
                committer.await;
                drop(lost);
            });
        }
        // The listeners do not get events from before they existed.
        if !publishing.status().connected() || !consuming.status().connected() {
            return Err(Lost.into());
        }
        Ok(Self {
            dial: dial.clone(),
            names,
            consuming,
            publishing,
            publisher,
            lost,
            blocked,
            _tasks: tasks,
        })
    }
}

impl Session for RabbitSession {
    type Consumer = RabbitConsumer;
    type Publisher = RabbitPublisher;

    fn blocked(&self) -> watch::Receiver<bool> {
        self.blocked.clone()
    }

    fn publisher(&self) -> RabbitPublisher {
        self.publisher.clone()
    }

    /// Each consumer has its own channel: it has its own prefetch, several processes of the broker
    /// handle the acks of many lanes, and there are only tens of channels.
    async fn consume(&self, source: Source, prefetch: u16) -> Result<RabbitConsumer, BrokerError> {
        let (stream, origin) = self.receive(self.names.queue(&source), prefetch).await?;
        Ok(RabbitConsumer::new(stream, origin))
    }

    async fn ready(&self, lane: &Lane) -> Result<u64, BrokerError> {
        let queue = self.names.queue(&Source::Lane(lane.clone()));
        let channel = declare::open_channel(&self.dial, &self.consuming).await?;
        let counts = declare::passive_declare(&self.dial, &channel, &queue).await?;
        declare::close_channel(&self.dial, &channel).await?;
        Ok(counts.ready.into())
    }

    async fn moved(&self) -> Result<watch::Receiver<Moved>, BrokerError> {
        let queue = self.names.moved_queue();
        let (channel, copies) = self.subscribe(&queue, MOVED_PREFETCH).await?;
        let (strays, origin) = self
            .receive(self.names.stray_queue(), stray::PREFETCH)
            .await?;
        let (tell, moved) = watch::channel(Moved::default());
        let (names, lost) = (Arc::clone(&self.names), self.lost.clone());
        #[expect(
            clippy::disallowed_methods,
            reason = "it ends with the session, which is lost when it panics"
        )]
        tokio::spawn(async move {
            let both = async {
                tokio::select! {
                    () = count_moved(copies, &names, &tell) => {}
                    () = stray::take_back(strays, origin, &tell) => {}
                }
            };
            // However the task ends: if a queue is gone, the next session declares it again.
            let _ends = lost.clone().drop_guard();
            lost.run_until_cancelled(both).await;
            drop(channel);
        });
        Ok(moved)
    }

    async fn sequence(&self) -> Result<u64, BrokerError> {
        let queue = self.names.ledger_queue();
        let channel = declare::open_channel(&self.dial, &self.consuming).await?;
        let got = channel.basic_get(self.dial.name(&queue)?, BasicGetOptions::default());
        let got = self
            .dial
            .ask(format!("read queue `{queue}`"), got)
            .await
            .map_err(|error| error.explain(&AMQPSoftError::NOTFOUND, declare::MISSING))?;
        let number = got.and_then(|message| sequence_of(&message.delivery.data));
        // Closing the channel requeues the message.
        declare::close_channel(&self.dial, &channel).await?;
        Ok(number.unwrap_or(0))
    }

    fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    async fn close(self) {
        // The session ends on purpose: later events of the connections do not matter.
        self.lost.cancel();
        // Consuming first: unacked deliveries go back while the other connection closes.
        for connection in [&self.consuming, self.publishing.as_ref()] {
            self.dial.close(connection).await;
        }
    }
}

impl RabbitSession {
    /// The largest frame that the broker takes.
    fn frame_max(&self) -> usize {
        let agreed = self.publishing.configuration().frame_max();
        usize::try_from(agreed).unwrap_or(usize::MAX)
    }

    /// Subscribes to a queue whose messages end like deliveries.
    async fn receive(
        &self,
        queue: String,
        prefetch: u16,
    ) -> Result<(lapin::Consumer, Origin), BrokerError> {
        let (channel, stream) = self.subscribe(&queue, prefetch).await?;
        let origin = Origin {
            channel,
            queue,
            rejected_exchange: self.names.exchange("rejected"),
            publisher: self.publisher.clone(),
            lost: self.lost.clone(),
            frame_max: self.frame_max(),
        };
        Ok((stream, origin))
    }

    async fn subscribe(
        &self,
        queue: &str,
        prefetch: u16,
    ) -> Result<(Channel, lapin::Consumer), BrokerError> {
        let channel = declare::open_channel(&self.dial, &self.consuming).await?;
        // Before the consumer, or the whole queue would be on its way. Not global: a quorum queue
        // ends the connection for it.
        let qos = channel.basic_qos(prefetch, BasicQosOptions { global: false });
        self.dial
            .ask(
                format!("limit the unacked messages of queue `{queue}`"),
                qos,
            )
            .await?;
        let consumed = channel.basic_consume(
            self.dial.name(queue)?,
            // The broker chooses a tag.
            ShortString::default(),
            // Manual acks, shared with other workers.
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let stream = self
            .dial
            .ask(format!("consume from queue `{queue}`"), consumed)
            .await
            .map_err(|error| error.explain(&AMQPSoftError::NOTFOUND, declare::MISSING))?;
        Ok((channel, stream))
    }
}

/// Copies of rejected messages that are in work at a time.
const MOVED_PREFETCH: u16 = 16;

/// Counts the messages that the broker rejected by itself, until the stream ends.
async fn count_moved(mut copies: lapin::Consumer, names: &Names, tell: &watch::Sender<Moved>) {
    while let Some(Ok(copy)) = copies.next().await {
        let headers = copy.properties.headers().as_ref();
        if let Some(moved) = headers.and_then(moved::Moved::of) {
            warn!(
                queue = moved.queue,
                bytes = copy.data.len(),
                reason = moved.reason,
                "the broker moved a message to the rejected queue"
            );
            let is_job = names.has_jobs(&moved.queue);
            tell.send_modify(|all| {
                *if is_job {
                    &mut all.jobs
                } else {
                    &mut all.slices
                } += 1
            });
        }
        if copy.acker.ack(BasicAckOptions::default()).await.is_err() {
            return;
        }
    }
}

impl Drop for RabbitSession {
    /// Consumers and publishers that outlive their session learn that it has ended.
    fn drop(&mut self) {
        self.lost.cancel();
    }
}

/// Follows the events of a connection.
async fn watch_connection(
    role: &'static str,
    events: impl Stream<Item = Event>,
    blocked: watch::Sender<bool>,
    lost: CancellationToken,
) {
    let mut events = pin!(events);
    loop {
        let event = tokio::select! {
            biased;
            () = lost.cancelled() => return,
            event = events.next() => event,
        };
        match event {
            Some(Event::ConnectionBlocked(reason)) => {
                warn!(
                    role,
                    reason, "the broker is short of resources and blocks publishing"
                );
                blocked.send_replace(true);
            }
            Some(Event::ConnectionUnblocked) => {
                info!(role, "the broker takes messages again");
                blocked.send_replace(false);
            }
            // Errors of channels and of heartbeats arrive here too.
            Some(Event::Error(error)) => {
                warn!(role, %error, "the session is lost");
                lost.cancel();
            }
            Some(_) => {}
            None => lost.cancel(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_no_worker_left_is_not_believed() {
        for (body, expected) in [
            ("7", Some(7)),
            ("4503599627370496", Some(SEQUENCE_MAX)),
            ("4503599627370497", None),
            ("18446744073709551615", None),
            ("", None),
            ("-1", None),
            ("{}", None),
        ] {
            assert_eq!(sequence_of(body.as_bytes()), expected, "{body}");
        }
        assert_eq!(sequence_of(&[0xff]), None);
    }
}
