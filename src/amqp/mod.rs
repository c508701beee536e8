//! Implements the broker port on RabbitMQ (3.10 to 4.x), over AMQP 0-9-1.
//!
//! - `topology`: every exchange, queue and argument, as data; `declare` creates them.
//! - `session`: two connections that are opened, lost and closed together.
//! - `publisher`: group commit with confirms; it never reports an unroutable message as sent.
//! - `consumer`: deliveries and how they end.
//! - `admin`: reads and edits the retained queues.
//! - `edits`: what an edit says to those who follow the queue.
//! - `follow`: follows a retained queue, so that it is read as a whole only once.
//! - `fault`: what an error of a connection means for the port.
//! - `stray`: messages that left the retry ladder for a lane that does not exist.
//! - `wake`: takes slices off the retry ladder before their time.
//! - `moved`: messages that the broker itself put into the rejected queue.
//!
//! `Ok` from a publish means on disk at a majority of the queue's replicas. Nothing here retries or
//! reconnects: an error ends the session, and the caller opens the next one. No type of the client
//! library leaves this folder; `fanwise_net::amqp` opens its connections. The library's log target (`lapin`) prints bodies of returned
//! messages and every missing queue as an error, so it should be off in production; this folder
//! logs everything that matters.
//!
//! Of a message's properties only `traceparent` has a meaning here: a valid job is sent whatever
//! other properties its producer set, and an invalid one is rejected with all properties that can
//! be read.

mod admin;
mod consumer;
mod declare;
mod edits;
mod fault;
mod follow;
mod moved;
mod publisher;
mod session;
mod stray;
mod topology;
mod wake;

use std::fmt;
use std::ops::ControlFlow;
use std::time::Duration;

pub use self::consumer::RabbitConsumer;
pub use self::declare::{Applied, Counts, Depth};
pub use self::follow::RabbitFollower;
pub use self::publisher::RabbitPublisher;
pub use self::session::RabbitSession;
pub use self::topology::{Exchange, Kind, Queue, Topology, Value, topology};

pub use fanwise_net::amqp::DialError as SettingsError;
use fanwise_net::amqp::{Dial, DialSettings};

use self::topology::Names;
use crate::domain::lane::{Lane, Priority};
use crate::domain::waking::Waking;
use crate::ports::{
    Backlog, Broker, BrokerError, EditSummary, RetainedEdit, RetainedMessage, RetainedQueue,
    RetainedQueues, Source,
};
use crate::tls::TlsSettings;

/// How to use a RabbitMQ broker.
#[derive(Clone)]
pub struct Settings {
    /// `amqp://user:password@host:port/vhost`, or `amqps://`, for each node; at least one. Never
    /// logged; see [`Settings::address`]. An address without a user means the user of the
    /// certificate in `tls`, if there is one.
    pub urls: Vec<String>,
    /// Used for `amqps://`.
    pub tls: TlsSettings,
    /// The prefix of the names of all exchanges and queues.
    pub namespace: String,
    /// The targets that have lanes.
    pub targets: Vec<String>,
    /// The connection is dropped after two of these without a sign of life. Whole seconds, at least
    /// 1; 5 to 20 s are best. Overrides the one in the URL.
    pub heartbeat: Duration,
    /// How long a publish may wait for its confirm, or for a broker that blocks publishing.
    pub confirm_timeout: Duration,
    /// How long connecting may take, and each request to the broker during set-up.
    pub connect_timeout: Duration,
    /// Shown in the broker's list of connections.
    pub connection_name: String,
    /// Whether to declare missing exchanges and queues on connect; otherwise only checks that they
    /// exist.
    pub declare: bool,
}

impl Settings {
    pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

    /// The usual settings for a broker, without targets.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            urls: vec![url.into()],
            tls: TlsSettings::default(),
            namespace: "fanwise".to_owned(),
            targets: Vec::new(),
            heartbeat: Duration::from_secs(10),
            confirm_timeout: Duration::from_secs(10),
            connect_timeout: Self::CONNECT_TIMEOUT,
            connection_name: "fanwise".to_owned(),
            declare: true,
        }
    }

    /// Scheme, host, port and virtual host of every node, for logs and errors.
    pub fn address(&self) -> Result<String, SettingsError> {
        Ok(self.dial()?.address().to_owned())
    }

    fn dial(&self) -> Result<Dial, SettingsError> {
        Dial::new(&DialSettings {
            urls: self.urls.clone(),
            tls: self.tls.clone(),
            section: "broker".to_owned(),
            heartbeat: self.heartbeat,
            connect_timeout: self.connect_timeout,
            connection_name: self.connection_name.clone(),
        })
    }
}

/// Without the URLs, which may hold passwords.
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

/// RabbitMQ as the broker.
#[derive(Clone, Debug)]
pub struct Rabbit {
    settings: Settings,
    dial: Dial,
}

impl Rabbit {
    /// Does not connect yet.
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        let dial = settings.dial()?;
        Ok(Self { settings, dial })
    }

    /// Scheme, host, port and virtual host of every node.
    pub fn address(&self) -> &str {
        self.dial.address()
    }

    /// The topology that these settings need on the broker.
    pub fn topology(&self) -> Topology {
        topology(&self.settings.namespace, &self.settings.targets)
    }

    /// Declares the topology, whatever [`Settings::declare`] is. If a queue was created, it waits
    /// until the queue would survive a crash of the broker.
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

    /// Whether the broker takes messages. While it is short of memory or disk, it answers everything
    /// else.
    pub async fn takes_messages(&self, patience: Duration) -> Result<bool, BrokerError> {
        let connection = self.dial.open("doctor").await?;
        let jobs = Names::new(&self.settings.namespace).exchange("jobs");
        let takes = declare::takes_messages(&self.dial, &connection, &jobs, patience).await?;
        // A broker that takes nothing does not read an orderly close either.
        if takes {
            self.dial.close(&connection).await;
        }
        Ok(takes)
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
    type Follower = RabbitFollower;

    /// A reader holds the messages that it has seen; they come back when it ends.
    async fn read(
        &self,
        retained: RetainedQueue,
        visit: impl FnMut(RetainedMessage) -> ControlFlow<()> + Send,
    ) -> Result<u64, BrokerError> {
        let names = Names::new(&self.settings.namespace);
        Ok(admin::read(&self.dial, &admin::queue_of(retained, &names), visit).await?)
    }

    /// A replaced message goes to the end of the queue.
    async fn edit(
        &self,
        retained: RetainedQueue,
        decide: impl FnMut(RetainedMessage) -> RetainedEdit + Send,
    ) -> Result<EditSummary, BrokerError> {
        let names = Names::new(&self.settings.namespace);
        let queue = admin::queue_of(retained, &names);
        Ok(admin::edit(&self.dial, &names, &queue, decide).await?)
    }

    async fn follow(&self, retained: RetainedQueue) -> Result<RabbitFollower, BrokerError> {
        let names = Names::new(&self.settings.namespace);
        Ok(RabbitFollower::open(&self.dial, &names, retained).await?)
    }
}

impl Broker for Rabbit {
    type Session = RabbitSession;

    async fn backlog(&self) -> Result<Backlog, BrokerError> {
        let names = Names::new(&self.settings.namespace);
        let depths = self.depths().await?;
        let ready_in = |queue: String| {
            let depth = depths.iter().find(|depth| depth.queue == queue);
            let counts = depth.and_then(|depth| depth.counts);
            counts.map_or(0, |counts| u64::from(counts.ready))
        };
        let ready = |source: Source| ready_in(names.queue(&source));
        let jobs = Priority::ALL.iter().copied().map(Source::Jobs);
        let mut backlog = Backlog {
            jobs: jobs.map(ready).sum(),
            dead: ready_in(names.dead_queue()),
            rejected: ready_in(names.rejected_queue()),
            ..Backlog::default()
        };
        for lane in self.settings.targets.iter().flat_map(|it| Lane::all(it)) {
            backlog.add(&lane, ready(Source::Lane(lane.clone())));
        }
        Ok(backlog)
    }

    async fn wake(&self, waking: &Waking) -> Result<u64, BrokerError> {
        let names = Names::new(&self.settings.namespace);
        Ok(wake::wake(&self.dial, &names, waking).await?)
    }

    async fn connect(&self) -> Result<RabbitSession, BrokerError> {
        RabbitSession::open(self).await
    }
}
