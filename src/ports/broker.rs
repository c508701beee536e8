//! The port to a broker: sessions, consumers and publishers.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Backup;
use crate::domain::lane::{Lane, LaneClass, Priority};
use crate::domain::waking::Waking;

/// Stores jobs, slices, dead letters and events durably and hands them out.
pub trait Broker: Clone + Send + Sync + 'static {
    type Session: Session;

    /// Counts the messages that can be handed out now, and those that are kept for operators. Unacked deliveries and messages on the retry
    /// ladder do not count.
    fn backlog(&self) -> impl Future<Output = Result<Backlog, BrokerError>> + Send;

    /// Moves the slices and jobs that wait on the retry ladder and that `waking` takes back to where
    /// they came from. Returns how many there were. What is put on the ladder meanwhile may stay
    /// there.
    fn wake(&self, waking: &Waking) -> impl Future<Output = Result<u64, BrokerError>> + Send;

    /// Opens one session and declares what it needs. After an error the caller backs off and tries
    /// again.
    fn connect(&self) -> impl Future<Output = Result<Self::Session, BrokerError>> + Send;

    /// How to copy everything that the engine stores, where one process stores it all.
    fn backup(&self) -> Option<&dyn Backup> {
        None
    }
}

/// One generation of connections. When one of them is lost, the whole session is lost: its
/// deliveries are never acked, and the broker hands them out again.
pub trait Session: Send + Sync + 'static {
    type Consumer: Consumer;
    type Publisher: Publisher;

    fn publisher(&self) -> Self::Publisher;

    /// Counts the slices of a lane that can be handed out now.
    fn ready(&self, lane: &Lane) -> impl Future<Output = Result<u64, BrokerError>> + Send;

    /// Starts to consume from a source, with at most `prefetch` unacked deliveries.
    fn consume(
        &self,
        source: Source,
        prefetch: u16,
    ) -> impl Future<Output = Result<Self::Consumer, BrokerError>> + Send;

    /// Cancelled when the session is lost, for any reason.
    fn lost(&self) -> CancellationToken;

    /// Follows whether the broker refuses publishes for a while because it is short of memory or
    /// disk. Consuming and acks go on meanwhile.
    fn blocked(&self) -> watch::Receiver<bool>;

    /// Counts the messages that the broker itself moved to the rejected messages. Each message
    /// counts in one session only. An engine that never moves messages counts nothing.
    fn moved(&self) -> impl Future<Output = Result<watch::Receiver<Moved>, BrokerError>> + Send {
        async { Ok(watch::channel(Moved::default()).1) }
    }

    /// Reads the number of the ledger's sequence that the broker keeps, see [`Route::Sequence`]; 0
    /// if there is none, or if another session reads it at this moment.
    fn sequence(&self) -> impl Future<Output = Result<u64, BrokerError>> + Send {
        async { Ok(0) }
    }

    /// Ends the session in order. Unacked deliveries return to their queues.
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// Messages that wait to be handed out, and messages that are kept for operators.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    pub jobs: u64,
    /// By target, for each configured target.
    pub lanes: BTreeMap<String, u64>,
    /// The lanes in which slices wait, by target.
    pub busy: BTreeMap<String, BTreeSet<LaneClass>>,
    pub dead: u64,
    pub rejected: u64,
}

impl Backlog {
    /// Counts the messages of a lane that can be handed out. Notices are no slices.
    pub fn add(&mut self, lane: &Lane, ready: u64) {
        let here = self.lanes.entry(lane.target.clone()).or_default();
        if lane.class == LaneClass::Notices {
            return;
        }
        *here += ready;
        if ready > 0 {
            let busy = self.busy.entry(lane.target.clone()).or_default();
            busy.insert(lane.class);
        }
    }
}

/// Messages that the broker itself moved to the rejected messages: they expired, or every consumer
/// that received them ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    pub jobs: u64,
    pub slices: u64,
}

/// Where deliveries come from: a job queue or a lane.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    Jobs(Priority),
    Lane(Lane),
}

/// The deliveries of one source.
pub trait Consumer: Send + 'static {
    /// The next delivery. `None` when the consumer ended: by [`Consumer::cancel`], because its
    /// queue was deleted, or because the session is lost. Cancel safe: a dropped future loses no
    /// delivery.
    fn next(&mut self) -> impl Future<Output = Option<Delivery>> + Send;

    /// Asks for no further deliveries. Deliveries that were already received still come out of
    /// `next`.
    fn cancel(&mut self) -> impl Future<Output = ()> + Send;
}

/// One message that its holder must end exactly once, with [`Delivery::ack`], [`Delivery::requeue`]
/// or [`Delivery::reject`]. A dropped delivery stays unacked until its session ends.
pub struct Delivery {
    pub body: Bytes,
    /// The W3C trace context of the message.
    pub traceparent: Option<String>,
    /// The broker has handed it out before.
    pub redelivered: bool,
    pub end: Box<dyn EndDelivery>,
}

/// A boxed future, for the one trait that is called through a box: once per slice, not per
/// recipient.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// How an engine ends a delivery.
pub trait EndDelivery: Send {
    /// `Ok`: the ack was sent, and the broker forgets the message.
    fn ack(self: Box<Self>) -> BoxFuture<Result<(), Lost>>;
    /// `Ok`: the requeue was sent, and the broker hands the message out again.
    fn requeue(self: Box<Self>) -> BoxFuture<Result<(), Lost>>;
    /// `Ok`: the unchanged message is durable in the retained queue of rejected messages, with the
    /// reason, and the delivery is acked.
    fn reject(self: Box<Self>, reason: String) -> BoxFuture<Result<(), PublishError>>;
}

impl Delivery {
    pub async fn ack(self) -> Result<(), Lost> {
        self.end.ack().await
    }

    pub async fn requeue(self) -> Result<(), Lost> {
        self.end.requeue().await
    }

    pub async fn reject(self, reason: String) -> Result<(), PublishError> {
        self.end.reject(reason).await
    }
}

/// The session of a delivery is lost: the delivery can no longer be ended, and the broker hands it
/// out again. This is no failure, and there is nothing to retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session of this delivery is lost")]
pub struct Lost;

/// Publishes durably. Cheap to clone; calls from many tasks share confirms.
pub trait Publisher: Clone + Send + Sync + 'static {
    /// `Ok`: every message is in a queue, the broker has confirmed it, and it survives a crash of
    /// the broker. After an error, each message may or may not be in its queue. Publishing all of
    /// them again is always right, because every reader handles our messages idempotently.
    fn publish(
        &self,
        messages: Vec<Outgoing>,
    ) -> impl Future<Output = Result<(), PublishError>> + Send;
}

/// A message to publish, and its route.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub route: Route,
    pub body: Bytes,
    /// Identifies the message in logs, and lets readers drop repeats.
    pub message_id: String,
    pub traceparent: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// A job, as a producer publishes it.
    Job(Priority),
    /// A slice for a lane.
    Lane(Lane),
    /// A slice that returns to its lane after a rung of `domain::schedule::RUNGS`.
    Wait { lane: Lane, rung: Duration },
    /// A job that returns to the jobs of its priority after a rung.
    WaitJob { priority: Priority, rung: Duration },
    /// A dead letter; the routing key is `<app>.<target>`.
    Dead { app: String, target: String },
    /// A job event, `<app>.<event>`. The only route that may lead to no queue: events need no
    /// consumer.
    Event { app: String, event: &'static str },
    /// A number of the ledger's sequence, as digits. The broker keeps only the last one.
    Sequence,
    /// The accounts of a job, for the queue that the job named. It is an error like any other if
    /// that queue does not exist, is full or does not confirm. Such an error never delays other
    /// publishes.
    Reply {
        queue: String,
        correlation_id: String,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error("cannot reach the broker at {address}")]
    Connect {
        address: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the broker refused to {what}")]
    Refused {
        what: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error(transparent)]
    Lost(#[from] Lost),
}

/// Why a publish is not known to be durable. Every cause is temporary: publish again, in a new
/// session if the old one is lost.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error(transparent)]
    Lost(#[from] Lost),
    #[error("the broker refused the message: a queue is full or its leader is away")]
    Refused,
    /// The engine could not store the message, for the reason in the source.
    #[error("the message cannot be stored")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("no queue is bound for {0}; run `fanwise topology apply`")]
    Unroutable(String),
    #[error("the broker did not confirm within {0:?}")]
    Timeout(Duration),
}
