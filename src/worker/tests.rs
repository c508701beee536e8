//! Sessions of a worker whose broker is played.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::domain::schedule::Schedule;
use crate::embedded::Engine;
use crate::metrics::Metrics;
use crate::ports::{
    Backlog, Consumer, Delivery, Outgoing, PublishError, Publisher, Reply, Request, SendError,
};

/// A broker whose consumers panic, as a mistake of ours would make them.
#[derive(Clone, Default)]
struct Broken {
    sessions: Arc<AtomicUsize>,
}

struct BrokenSession(CancellationToken);

struct BrokenConsumer;

#[derive(Clone)]
struct Nowhere;

impl Broker for Broken {
    type Session = BrokenSession;

    async fn backlog(&self) -> Result<Backlog, BrokerError> {
        Ok(Backlog::default())
    }

    async fn connect(&self) -> Result<BrokenSession, BrokerError> {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        Ok(BrokenSession(CancellationToken::new()))
    }
}

impl Session for BrokenSession {
    type Consumer = BrokenConsumer;
    type Publisher = Nowhere;

    fn publisher(&self) -> Nowhere {
        Nowhere
    }

    async fn consume(&self, _: Source, _: u16) -> Result<BrokenConsumer, BrokerError> {
        Ok(BrokenConsumer)
    }

    fn lost(&self) -> CancellationToken {
        self.0.clone()
    }

    fn blocked(&self) -> watch::Receiver<bool> {
        watch::channel(false).1
    }

    async fn close(self) {}
}

impl Consumer for BrokenConsumer {
    async fn next(&mut self) -> Option<Delivery> {
        panic!("as a mistake of ours would")
    }

    async fn cancel(&mut self) {}
}

impl Publisher for Nowhere {
    async fn publish(&self, _: Vec<Outgoing>) -> Result<(), PublishError> {
        Ok(())
    }
}

impl Transport for Nowhere {
    async fn send(&self, _: Request, _: Duration) -> Result<Reply, SendError> {
        unreachable!("nothing is sent")
    }
}

fn settings() -> Settings {
    Settings {
        slice_recipients: 1,
        slice_concurrency: 1,
        small_job_concurrency: 1,
        lease: Duration::from_secs(20),
        slice_time_max: Duration::from_secs(60),
        attempts_max: 1,
        retry: Schedule {
            min: Duration::from_secs(1),
            max: Duration::from_secs(1),
            jitter: 0.0,
        },
        fingerprint_secret: "secret".to_owned(),
        abandoned_after: Duration::from_secs(60),
        progress_interval: Duration::from_secs(1),
        namespace: None,
    }
}

/// A panic is counted, and the next session is opened; each panic is another count.
#[tokio::test]
async fn a_panic_of_a_session_is_counted_and_survived() {
    let folder = std::env::temp_dir().join(format!("fanwise-panic-{}", std::process::id()));
    let engine = Engine::open(&crate::embedded::Settings::new(&folder)).unwrap();
    let metrics = Arc::new(Metrics::new());
    let context = Context::new(
        engine.store(),
        Nowhere,
        Vec::new(),
        BTreeMap::new(),
        settings(),
        Arc::clone(&metrics),
    );
    let broker = Broken::default();
    let sessions = Arc::clone(&broker.sessions);
    let drain = CancellationToken::new();
    let worker = Worker::new(broker, Arc::new(context));
    let running = tokio::spawn(worker.run(drain.clone()));
    while sessions.load(Ordering::Relaxed) < 3 {
        tokio::task::yield_now().await;
    }
    drain.cancel();
    running.await.unwrap();
    let counted = |text: &str| {
        let line = text
            .lines()
            .find(|it| it.starts_with("fanwise_panics_total "));
        line.and_then(|it| it.rsplit(' ').next()?.parse::<f64>().ok())
    };
    let counted = counted(&metrics.text()).unwrap();
    assert!(counted >= 2.0, "{counted}");
    drop(engine);
    let _ = std::fs::remove_dir_all(folder);
}
