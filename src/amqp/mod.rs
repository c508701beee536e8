//! The broker port on RabbitMQ (3.10 to 4.x), over AMQP 0-9-1.
//!
//! - `topology`: every exchange, queue and argument, as data; `declare` makes it so.
//! - `session`: two connections that live and die together.
//! - `publisher`: group commit with confirms; what comes back unroutable is never reported as sent.
//! - `consumer`: deliveries and how they end.
//! - `admin`: looking at queues without taking anything away.
//! - `connection`: one connection, and the errors of this folder.
//! - `stream`, `frames`: the bytes of a connection, so that no message can end it.
//! - `stray`: what left the ladder for a lane that does not exist.
//! - `moved`: what the broker put into the rejected queue by itself.
//!
//! `Ok` from a publish means on disk at a majority of the queue's replicas. Nothing here retries or
//! reconnects: an error ends the session, the caller opens the next one. No type of the client
//! library leaves this folder. Its log target (`lapin`) prints bodies of returned messages and every
//! missing queue as an error, so it belongs switched off in production; what matters is logged here.
//!
//! The properties of a message mean nothing to us but `traceparent`: a valid job is sent whatever else
//! its producer put on it, and one that is not valid is rejected with all of it that can be read.

mod admin;
mod connection;
mod consumer;
mod declare;
mod frames;
mod moved;
mod publisher;
mod session;
mod stray;
mod stream;
mod topology;

use std::fmt;
use std::ops::ControlFlow;
use std::time::Duration;

pub use self::consumer::RabbitConsumer;
pub use self::declare::{Applied, Counts, Depth};
pub use self::publisher::RabbitPublisher;
pub use self::session::RabbitSession;
pub use self::topology::{Exchange, Kind, Queue, Topology, Value, topology};

use self::connection::Dial;
use self::topology::Names;
use crate::domain::lane::{Lane, LaneClass, Priority};
use crate::ports::{
    Backlog, Broker, BrokerError, EditSummary, RetainedEdit, RetainedMessage, RetainedQueue,
    RetainedQueues, Source,
};

/// How to use a RabbitMQ broker.
#[derive(Clone)]
pub struct Settings {
    /// `amqp://user:password@host:port/vhost`, or `amqps://` for TLS with the certificates the
    /// system trusts. Never logged; see [`Settings::address`].
    pub url: String,
    /// The beginning of every exchange's and queue's name.
    pub namespace: String,
    /// The targets that have lanes.
    pub targets: Vec<String>,
    /// The connection is given up after two of these without a sign of life. Whole seconds, at
    /// least 1; 5 to 20 s serve best. Wins over the one in the URL.
    pub heartbeat: Duration,
    /// How long a publish may wait for its confirm, or for a broker that blocks publishing.
    pub confirm_timeout: Duration,
    /// How long connecting may take, and each question asked of the broker while setting up.
    pub connect_timeout: Duration,
    /// Shown in the broker's list of connections.
    pub connection_name: String,
    /// Declare what is missing on connect; otherwise only check that it is there.
    pub declare: bool,
}

impl Settings {
    /// The usual settings for a broker, without targets.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            namespace: "fanwise".to_owned(),
            targets: Vec::new(),
            heartbeat: Duration::from_secs(10),
            confirm_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            connection_name: "fanwise".to_owned(),
            declare: true,
        }
    }

    /// Scheme, host, port and virtual host of the broker, for logs and errors.
    pub fn address(&self) -> Result<String, SettingsError> {
        Ok(Dial::new(self)?.address().to_owned())
    }
}

/// Without the URL, which may hold a password.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("address", &self.address().ok())
            .field("namespace", &self.namespace)
            .field("targets", &self.targets)
            .field("declare", &self.declare)
            .finish_non_exhaustive()
    }
}

/// Settings that cannot work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    #[error(
        "the broker URL is not of the form amqp://user:password@host:port/vhost (or amqps://); \
         special characters in user, password and vhost must be percent-encoded"
    )]
    Url,
}

/// RabbitMQ as the broker.
#[derive(Clone, Debug)]
pub struct Rabbit {
    settings: Settings,
    dial: Dial,
}

impl Rabbit {
    /// Connects to nothing yet.
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        let dial = Dial::new(&settings)?;
        Ok(Self { settings, dial })
    }

    /// Scheme, host, port and virtual host of the broker.
    pub fn address(&self) -> &str {
        self.dial.address()
    }

    /// What these settings want on the broker.
    pub fn topology(&self) -> Topology {
        topology(&self.settings.namespace, &self.settings.targets)
    }

    /// Declares the topology, whatever [`Settings::declare`] says. When something was created, it
    /// waits until that would survive a crash of the broker.
    pub async fn apply(&self) -> Result<Applied, BrokerError> {
        let connection = self.dial.open("topology").await?;
        let applied = declare::apply(&self.dial, &connection, &self.topology()).await?;
        self.dial.close(&connection).await;
        Ok(applied)
    }

    /// How full every queue of the topology is.
    pub async fn depths(&self) -> Result<Vec<Depth>, BrokerError> {
        let connection = self.dial.open("depths").await?;
        let depths = declare::counts(&self.dial, &connection, &self.topology()).await?;
        self.dial.close(&connection).await;
        Ok(depths)
    }

    /// Deletes the whole topology with every message in it.
    pub async fn delete_all(&self) -> Result<(), BrokerError> {
        let connection = self.dial.open("delete").await?;
        declare::delete(&self.dial, &connection, &self.topology()).await?;
        let retired = topology::retired(&self.settings.namespace);
        declare::delete(&self.dial, &connection, &retired).await?;
        self.dial.close(&connection).await;
        Ok(())
    }
}

impl RetainedQueues for Rabbit {
    /// While a reader is at it, the messages it has seen are with it and come back when it ends.
    async fn read(
        &self,
        retained: RetainedQueue,
        visit: impl FnMut(RetainedMessage) -> ControlFlow<()> + Send,
    ) -> Result<u64, BrokerError> {
        let names = Names::new(&self.settings.namespace);
        Ok(admin::read(&self.dial, &admin::queue_of(retained, &names), visit).await?)
    }

    /// What takes the place of another message goes to the end of the queue.
    async fn edit(
        &self,
        retained: RetainedQueue,
        decide: impl FnMut(RetainedMessage) -> RetainedEdit + Send,
    ) -> Result<EditSummary, BrokerError> {
        let names = Names::new(&self.settings.namespace);
        Ok(admin::edit(&self.dial, &admin::queue_of(retained, &names), decide).await?)
    }
}

impl Broker for Rabbit {
    type Session = RabbitSession;

    async fn backlog(&self) -> Result<Backlog, BrokerError> {
        let names = Names::new(&self.settings.namespace);
        let depths = self.depths().await?;
        let ready = |source: Source| {
            let queue = names.queue(&source);
            let depth = depths.iter().find(|depth| depth.queue == queue);
            let counts = depth.and_then(|depth| depth.counts);
            counts.map_or(0, |counts| u64::from(counts.ready))
        };
        let jobs = Priority::ALL
            .iter()
            .copied()
            .map(Source::Jobs)
            .map(ready)
            .sum();
        let targets = self.settings.targets.iter();
        let lanes = targets.map(|target| {
            let slices = |lane: &Lane| lane.class != LaneClass::Notices;
            let lanes = Lane::all(target).filter(slices).map(Source::Lane);
            (target.clone(), lanes.map(ready).sum())
        });
        Ok(Backlog {
            jobs,
            lanes: lanes.collect(),
        })
    }

    async fn connect(&self) -> Result<RabbitSession, BrokerError> {
        RabbitSession::open(self).await
    }
}
