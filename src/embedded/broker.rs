//! Implements the broker port: sessions, publishing, consuming.
//!
//! A session is a name under which deliveries are held; only its own end or the engine's end breaks
//! it. Messages are routed here as the exchanges of the RabbitMQ topology route them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::Engine;
use super::deliveries::Handed;
use super::disk::StorageError;
use super::tables::{self, Message, With};
use super::writer::WriteContext;
use crate::domain::lane::Lane;
use crate::domain::schedule::rung;
use crate::domain::trace::traceparent;
use crate::domain::waking::Waking;
use crate::ports::{
    Backlog, Backup, BoxFuture, Broker, BrokerError, Consumer, Delivery, EndDelivery, Lost,
    Outgoing, PublishError, Publisher, Route, Session, Source,
};

/// The embedded engine as the broker. Also gives access to the retained queues.
#[derive(Clone)]
pub struct EmbeddedBroker(pub(super) Engine);

/// A session with the embedded engine. Dropping it closes it.
pub struct EmbeddedSession {
    engine: Engine,
    id: u64,
    lost: CancellationToken,
}

/// Publishes into one session.
#[derive(Clone)]
pub struct EmbeddedPublisher {
    engine: Engine,
    lost: CancellationToken,
}

/// The deliveries of one source. Dropping it requeues those that it has not handed out.
pub struct EmbeddedConsumer {
    engine: Engine,
    queue: u32,
    id: u64,
    deliveries: mpsc::UnboundedReceiver<Handed>,
    lost: CancellationToken,
}

/// An event about a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineEvent {
    /// `<app>.<event>`.
    pub routing_key: String,
    pub message_id: String,
    /// A job event as JSON.
    pub body: Bytes,
    pub traceparent: Option<String>,
}

impl Broker for EmbeddedBroker {
    type Session = EmbeddedSession;

    fn backup(&self) -> Option<&dyn Backup> {
        Some(self)
    }

    async fn backlog(&self) -> Result<Backlog, BrokerError> {
        let refused = |error| BrokerError::Refused {
            what: "count its messages".to_owned(),
            source: Box::new(error),
        };
        let depths = self.0.depths().await.map_err(refused)?;
        let mut backlog = Backlog::default();
        for depth in depths {
            if depth.queue == "dead" {
                backlog.dead = depth.ready;
            } else if depth.queue == "rejected" {
                backlog.rejected = depth.ready;
            } else if depth.queue.starts_with("jobs.") {
                backlog.jobs += depth.ready;
            } else if let Some(lane) = depth.queue.strip_prefix("send.")
                && let Ok(lane) = lane.parse()
            {
                backlog.add(&lane, depth.ready);
            }
        }
        Ok(backlog)
    }

    async fn wake(&self, waking: &Waking) -> Result<u64, BrokerError> {
        let woken = super::wake::wake(&self.0, waking).await;
        woken.map_err(|error| BrokerError::Refused {
            what: "read the retry ladder".to_owned(),
            source: Box::new(error),
        })
    }

    async fn connect(&self) -> Result<EmbeddedSession, BrokerError> {
        let engine = self.0.clone();
        let (id, lost) = engine.0.deliveries.open_session()?;
        Ok(EmbeddedSession { engine, id, lost })
    }
}

impl Session for EmbeddedSession {
    type Consumer = EmbeddedConsumer;
    type Publisher = EmbeddedPublisher;

    /// True while the disk is full or fails: publishes are refused until one succeeds again.
    fn blocked(&self) -> watch::Receiver<bool> {
        self.engine.0.disk.blocked()
    }

    fn publisher(&self) -> EmbeddedPublisher {
        EmbeddedPublisher {
            engine: self.engine.clone(),
            lost: self.lost.clone(),
        }
    }

    async fn consume(
        &self,
        source: Source,
        prefetch: u16,
    ) -> Result<EmbeddedConsumer, BrokerError> {
        let name = tables::source_queue(&source);
        let inner = &self.engine.0;
        let queue = inner
            .queues
            .number(&name)
            .ok_or_else(|| BrokerError::Refused {
                what: format!("consume from queue `{name}`"),
                source: "no such target is configured".into(),
            })?;
        let (id, deliveries) = inner.deliveries.consume(self.id, queue, prefetch)?;
        Ok(EmbeddedConsumer {
            engine: self.engine.clone(),
            queue,
            id,
            deliveries,
            lost: self.lost.clone(),
        })
    }

    async fn ready(&self, lane: &Lane) -> Result<u64, BrokerError> {
        let refused = |error| BrokerError::Refused {
            what: "count the slices of a lane".to_owned(),
            source: Box::new(error),
        };
        let depths = self.engine.depths().await.map_err(refused)?;
        let queue = tables::lane_queue(lane);
        let depth = depths.iter().find(|depth| depth.queue == queue);
        Ok(depth.map_or(0, |depth| depth.ready))
    }

    fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    async fn close(self) {
        // Dropping the session closes it.
    }
}

impl Drop for EmbeddedSession {
    fn drop(&mut self) {
        self.engine.0.deliveries.close_session(self.id);
    }
}

// ---------------------------------------------------------------------------------------------
// Publishing
// ---------------------------------------------------------------------------------------------

/// Where a message goes.
#[derive(Clone, Copy)]
enum To {
    Queue(u32),
    Wait(u32, Duration),
    Dead,
}

/// A message with its destination.
struct Routed {
    to: To,
    with: With,
    body: Bytes,
}

impl Publisher for EmbeddedPublisher {
    async fn publish(&self, messages: Vec<Outgoing>) -> Result<(), PublishError> {
        if self.lost.is_cancelled() {
            return Err(Lost.into());
        }
        let inner = &self.engine.0;
        let mut routed = Vec::with_capacity(messages.len());
        let mut events = Vec::new();
        for message in messages {
            let to = match &message.route {
                Route::Job(priority) => To::Queue(self.queue(&tables::jobs_queue(*priority))?),
                Route::Lane(lane) => To::Queue(self.queue(&tables::lane_queue(lane))?),
                // Every delay is rounded to a rung, as on the retry ladder of RabbitMQ queues.
                Route::Wait { lane, rung: delay } => {
                    To::Wait(self.queue(&tables::lane_queue(lane))?, rung(*delay))
                }
                Route::WaitJob {
                    priority,
                    rung: delay,
                } => To::Wait(self.queue(&tables::jobs_queue(*priority))?, rung(*delay)),
                Route::Dead { .. } => To::Dead,
                // The ledger is in the same file as the messages and cannot be older than they are.
                Route::Sequence => continue,
                // The endpoints accept no job with a reply queue for this engine.
                Route::Reply { queue, .. } => {
                    let what = format!("queue `{queue}`: the embedded engine has no AMQP");
                    return Err(PublishError::Unroutable(what));
                }
                Route::Event { app, event } => {
                    events.push(EngineEvent {
                        routing_key: format!("{app}.{event}"),
                        message_id: message.message_id,
                        body: message.body,
                        traceparent: message.traceparent,
                    });
                    continue;
                }
            };
            let routing_key = match message.route {
                Route::Dead { app, target } => Some(format!("{app}.{target}")),
                _ => None,
            };
            routed.push(Routed {
                to,
                with: With {
                    message_id: message.message_id,
                    traceparent: message.traceparent,
                    routing_key,
                    rejected: None,
                },
                body: message.body,
            });
        }
        if !routed.is_empty() {
            let bytes = routed.iter().map(|message| message.body.len()).sum();
            let put =
                move |work: &mut WriteContext<'_>| routed.iter().try_for_each(|it| put(work, it));
            inner.write(bytes, put).await.map_err(publish_error)?;
        }
        for event in events {
            // An error means that there is no subscriber, which is fine.
            let _ = inner.events.send(event);
        }
        Ok(())
    }
}

impl EmbeddedPublisher {
    fn queue(&self, name: &str) -> Result<u32, PublishError> {
        let number = self.engine.0.queues.number(name);
        number.ok_or_else(|| PublishError::Unroutable(format!("queue `{name}`")))
    }
}

fn put(work: &mut WriteContext<'_>, message: &Routed) -> Result<(), StorageError> {
    let now_ms = work.now_ms;
    let bytes = Message::write(now_ms, &message.with, &message.body);
    let seq = work.new_seq();
    match message.to {
        To::Queue(queue) => {
            let ready = work.tables.ready.open()?;
            ready.insert((queue, seq), bytes.as_slice())?;
            let change = work.change(queue);
            change.ready += 1;
            change.has_new = true;
        }
        To::Wait(queue, wait) => {
            // The clock is cut off to whole milliseconds. One more keeps the message from being
            // early.
            let due_ms = now_ms + wait.as_millis() as u64 + 1;
            let waiting = work.tables.waiting.open()?;
            waiting.insert((queue, due_ms, seq), bytes.as_slice())?;
            let change = work.change(queue);
            change.waiting += 1;
            let next = change.next_due_ms.map_or(due_ms, |next| next.min(due_ms));
            change.next_due_ms = Some(next);
        }
        To::Dead => super::retained::put_dead(work, seq, &bytes)?,
    }
    Ok(())
}

pub(super) fn publish_error(error: StorageError) -> PublishError {
    match error {
        StorageError::Stopped => Lost.into(),
        error => PublishError::Store(error.into()),
    }
}

// ---------------------------------------------------------------------------------------------
// Consuming
// ---------------------------------------------------------------------------------------------

impl Consumer for EmbeddedConsumer {
    async fn next(&mut self) -> Option<Delivery> {
        // Cancel safe: a delivery leaves the channel only when it is handed out.
        let handed = tokio::select! {
            biased;
            () = self.lost.cancelled() => return None,
            handed = self.deliveries.recv() => handed?,
        };
        self.engine.0.deliveries.unbuffer(self.queue, self.id);
        Some(Delivery {
            body: handed.body,
            // An older version may have stored any text.
            traceparent: handed.traceparent.filter(|it| traceparent(it).is_some()),
            redelivered: handed.redelivered,
            end: Box::new(Ending {
                engine: self.engine.clone(),
                tag: handed.tag,
            }),
        })
    }

    async fn cancel(&mut self) {
        self.engine.0.deliveries.cancel(self.queue, self.id);
    }
}

impl Drop for EmbeddedConsumer {
    fn drop(&mut self) {
        let deliveries = &self.engine.0.deliveries;
        deliveries.cancel(self.queue, self.id);
        while let Ok(handed) = self.deliveries.try_recv() {
            // `Lost` means that the delivery is back already.
            let _ = deliveries.requeue(handed.tag);
        }
    }
}

/// The handle that ends a delivery.
struct Ending {
    engine: Engine,
    tag: u64,
}

impl EndDelivery for Ending {
    fn ack(self: Box<Self>) -> BoxFuture<Result<(), Lost>> {
        Box::pin(async move {
            let inner = &self.engine.0;
            let out = inner.deliveries.end(self.tag)?;
            inner.writer.ack(&out).map_err(|_| Lost)
        })
    }

    fn requeue(self: Box<Self>) -> BoxFuture<Result<(), Lost>> {
        Box::pin(async move { self.engine.0.deliveries.requeue(self.tag) })
    }

    fn reject(self: Box<Self>, reason: String) -> BoxFuture<Result<(), PublishError>> {
        Box::pin(async move {
            let inner = Arc::clone(&self.engine.0);
            let out = inner.deliveries.end(self.tag)?;
            let moved = inner.write(reason.len(), {
                move |work| super::retained::reject(work, out.queue, out.place, &reason)
            });
            match moved.await {
                Ok(()) => Ok(()),
                Err(error) => {
                    // It stays unacked and comes back with the next session.
                    inner.deliveries.undo_end(self.tag, out);
                    Err(publish_error(error))
                }
            }
        })
    }
}
