//! Tests the contract of the ports on every engine. Each test is written against the ports. It
//! always runs on the embedded engine and in memory, and on RabbitMQ, Redis and a Redis Cluster if
//! they are available.
//!
//! - [`broker`], [`ledger`], [`limiter`], [`directives`], [`templates`], [`quotas`], [`frequency_caps`], [`nonces`],
//!   [`steering`], [`sub_lanes`]:
//!   the tests, each with one line per engine that runs it.
//! - [`crash`]: kills a real process with the embedded engine, again and again. Crashes of the
//!   servers are tested beside the servers' own tests, which start servers that may be killed.

use std::time::Duration;

use bytes::Bytes;
use fanwise::domain::lane::{Lane, LaneClass, Priority};
use fanwise::ports::{
    Broker, Directives, FrequencyCaps, Ledger, Limiter, MessageIds, Nonces, Outgoing, Pulse,
    Quotas, RetainedQueues, Route, Steering, SubLanes, Templates, Upkeep,
};
use fanwise::{amqp, embedded, store};

use crate::memory::{MemoryBroker, MemoryStore};
use crate::support::scratch::Scratch;
use crate::support::servers::{amqp_url, redis_cluster_url, redis_url};

/// Generates a test per engine from generic functions over a bench.
macro_rules! on_all {
    (
        $embedded:ident, $servers:ident, $cluster:ident:
        $($(#[$attribute:meta])* $test:ident),* $(,)?
    ) => {
        on_all! { $embedded, $servers: $($(#[$attribute])* $test),* }

        mod on_a_cluster {
            $(
                $(#[$attribute])*
                #[tokio::test]
                async fn $test() {
                    let Some(bench) = super::super::$cluster::start().await else {
                        return;
                    };
                    super::$test(&bench).await;
                }
            )*
        }
    };
    ($embedded:ident, $servers:ident: $($(#[$attribute:meta])* $test:ident),* $(,)?) => {
        mod on_the_embedded_engine {
            $(
                $(#[$attribute])*
                #[tokio::test]
                async fn $test() {
                    let bench = super::super::$embedded::start().await;
                    super::$test(&bench).await;
                    bench.finish().await;
                }
            )*
        }

        mod in_memory {
            $(
                $(#[$attribute])*
                #[tokio::test]
                async fn $test() {
                    super::$test(&super::super::MemoryBench::start()).await;
                }
            )*
        }

        mod on_servers {
            $(
                $(#[$attribute])*
                #[tokio::test]
                async fn $test() {
                    let Some(bench) = super::super::$servers::start().await else {
                        return;
                    };
                    super::$test(&bench).await;
                    bench.finish().await;
                }
            )*
        }
    };
}

mod broker;
mod crash;
mod directives;
mod frequency_caps;
pub(crate) mod ledger;
pub(crate) mod limiter;
mod message_ids;
mod nonces;
mod quotas;
mod steering;
mod sub_lanes;
mod templates;

/// The target that has lanes on every bench.
const TARGET: &str = "im";

/// Longer than any step takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(20);

/// The broker of one test.
trait BrokerBench {
    type Broker: Broker + RetainedQueues + Sync;

    fn broker(&self) -> &Self::Broker;

    /// Messages ready for delivery, on all jobs queues and lanes.
    async fn ready(&self) -> u64;
}

/// The ledger, limiter and directives of one test.
trait StoreBench {
    type Store: Ledger
        + MessageIds
        + Steering
        + Upkeep
        + SubLanes
        + Limiter
        + Directives
        + Templates
        + Quotas
        + FrequencyCaps
        + Nonces
        + Pulse
        + Sync;

    fn store(&self) -> &Self::Store;
}

/// The embedded engine in a folder of its own.
struct EmbeddedBench {
    engine: embedded::Engine,
    broker: embedded::EmbeddedBroker,
    store: embedded::EmbeddedStore,
    _folder: Scratch,
}

impl EmbeddedBench {
    async fn start() -> Self {
        let folder = Scratch::new("embedded");
        let engine = open(&folder);
        Self {
            broker: engine.broker(),
            store: engine.store(),
            engine,
            _folder: folder,
        }
    }

    async fn finish(self) {
        self.engine.close().await;
    }
}

fn open(folder: &Scratch) -> embedded::Engine {
    embedded::Engine::open(&settings(folder)).unwrap()
}

fn settings(folder: &Scratch) -> embedded::Settings {
    embedded::Settings {
        targets: vec![TARGET.to_owned()],
        ..embedded::Settings::new(folder.path().join("data"))
    }
}

impl BrokerBench for EmbeddedBench {
    type Broker = embedded::EmbeddedBroker;

    fn broker(&self) -> &embedded::EmbeddedBroker {
        &self.broker
    }

    async fn ready(&self) -> u64 {
        let depths = self.engine.depths().await.unwrap();
        let work = depths.iter().filter(|depth| depth.queue.contains('.'));
        work.map(|depth| depth.ready).sum()
    }
}

impl StoreBench for EmbeddedBench {
    type Store = embedded::EmbeddedStore;

    fn store(&self) -> &embedded::EmbeddedStore {
        &self.store
    }
}

/// A broker and a store in memory.
struct MemoryBench {
    broker: MemoryBroker,
    store: MemoryStore,
}

impl MemoryBench {
    fn start() -> Self {
        Self {
            broker: MemoryBroker::new(&[TARGET]),
            store: MemoryStore::new(),
        }
    }
}

impl BrokerBench for MemoryBench {
    type Broker = MemoryBroker;

    fn broker(&self) -> &MemoryBroker {
        &self.broker
    }

    async fn ready(&self) -> u64 {
        self.broker.ready()
    }
}

impl StoreBench for MemoryBench {
    type Store = MemoryStore;

    fn store(&self) -> &MemoryStore {
        &self.store
    }
}

/// RabbitMQ with a topology of its own.
struct RabbitBench(amqp::Rabbit);

impl RabbitBench {
    async fn start() -> Option<Self> {
        let settings = amqp::Settings {
            namespace: format!("contract-{:016x}", fastrand::u64(..)),
            targets: vec![TARGET.to_owned()],
            ..amqp::Settings::new(amqp_url()?)
        };
        let rabbit = amqp::Rabbit::new(settings).unwrap();
        rabbit.apply().await.unwrap();
        Some(Self(rabbit))
    }

    async fn finish(self) {
        self.0.delete_all().await.unwrap();
    }
}

impl BrokerBench for RabbitBench {
    type Broker = amqp::Rabbit;

    fn broker(&self) -> &amqp::Rabbit {
        &self.0
    }

    async fn ready(&self) -> u64 {
        let depths = self.0.depths().await.unwrap();
        let work = depths
            .iter()
            .filter(|depth| depth.queue.contains(".jobs.") || depth.queue.contains(".send."));
        work.filter_map(|depth| depth.counts)
            .map(|counts| u64::from(counts.ready))
            .sum()
    }
}

/// Redis with a prefix of its own.
struct RedisBench(store::Store);

impl RedisBench {
    async fn start() -> Option<Self> {
        let mut settings = store::Settings::new(redis_url()?);
        settings.prefix = format!("contract-{:016x}", fastrand::u64(..));
        Some(Self(store::Store::open(&settings).unwrap()))
    }

    async fn finish(self) {
        // Its keys expire.
    }
}

impl StoreBench for RedisBench {
    type Store = store::Store;

    fn store(&self) -> &store::Store {
        &self.0
    }
}

/// A Redis Cluster, with a prefix of its own.
struct ClusterBench(store::Store);

impl ClusterBench {
    async fn start() -> Option<Self> {
        let mut settings = store::Settings::new(redis_cluster_url()?);
        settings.prefix = format!("contract-{:016x}", fastrand::u64(..));
        Some(Self(store::Store::open(&settings).unwrap()))
    }
}

impl StoreBench for ClusterBench {
    type Store = store::Store;

    fn store(&self) -> &store::Store {
        &self.0
    }
}

fn lane(class: LaneClass) -> Lane {
    Lane {
        target: TARGET.to_owned(),
        class,
    }
}

fn express() -> Lane {
    lane(LaneClass::Express(0))
}

fn bulk() -> Lane {
    lane(LaneClass::Of(Priority::Bulk, 1))
}

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn outgoing(route: Route, body: impl Into<Bytes>) -> Outgoing {
    let body = body.into();
    Outgoing {
        route,
        message_id: format!(
            "id-{}",
            String::from_utf8_lossy(&body[..body.len().min(20)])
        ),
        traceparent: Some(TRACEPARENT.to_owned()),
        body,
    }
}

fn slice(body: impl Into<Bytes>) -> Outgoing {
    outgoing(Route::Lane(express()), body)
}

fn dead_letter(body: impl Into<Bytes>) -> Outgoing {
    let (app, target) = ("shop".to_owned(), TARGET.to_owned());
    outgoing(Route::Dead { app, target }, body)
}
