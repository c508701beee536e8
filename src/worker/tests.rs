//! Tests of a worker's sessions, with a scripted broker.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::lanes::OpenLane;
use super::*;
use crate::domain::lane::Lane;
use crate::domain::schedule::Schedule;
use crate::domain::waking::Waking;
use crate::embedded::Engine;
use crate::metrics::{LedgerStep, Metrics};
use crate::ports::{
    Backlog, Consumer, Delivery, HttpReply, LedgerError, Outgoing, PublishError, Publisher,
    Request, SendError,
};
use crate::runtime::Settings;
use crate::runtime::context::GivenUp;

pub(super) type Played = Context<crate::embedded::EmbeddedStore, Nowhere>;

/// A broker whose consumers panic, as a bug would make them.
#[derive(Clone, Default)]
struct Broken {
    sessions: Arc<AtomicUsize>,
}

pub(super) struct BrokenSession(CancellationToken);

pub(super) struct BrokenConsumer {
    panics: bool,
    cancelled: bool,
}

#[derive(Clone)]
pub(super) struct Nowhere;

impl Broker for Broken {
    type Session = BrokenSession;

    async fn backlog(&self) -> Result<Backlog, BrokerError> {
        Ok(Backlog::default())
    }

    async fn wake(&self, _: &Waking) -> Result<u64, BrokerError> {
        Ok(0)
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

    async fn ready(&self, _: &Lane) -> Result<u64, BrokerError> {
        Ok(0)
    }

    async fn consume(&self, _: Source, _: u16) -> Result<BrokenConsumer, BrokerError> {
        Ok(BrokenConsumer {
            panics: true,
            cancelled: false,
        })
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
        if self.cancelled {
            return None;
        }
        assert!(!self.panics, "as a mistake of ours would");
        std::future::pending().await
    }

    async fn cancel(&mut self) {
        self.cancelled = true;
    }
}

impl Publisher for Nowhere {
    async fn publish(&self, _: Vec<Outgoing>) -> Result<(), PublishError> {
        Ok(())
    }
}

impl Transport for Nowhere {
    async fn send(&self, _: Request, _: Duration) -> Result<HttpReply, SendError> {
        unreachable!("nothing is sent")
    }
}

fn settings() -> Settings {
    Settings {
        slice_recipients: 1,
        slice_concurrency: 1,
        small_job_concurrency: 1,
        lane_slices_max: 1000,
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

pub(super) struct Folder(std::path::PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Folder {
    pub(super) fn new(name: &str) -> Self {
        let name = format!("fanwise-panic-{name}-{}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    pub(super) fn context(&self) -> Arc<Played> {
        let engine = Engine::open(&crate::embedded::Settings::new(&self.0)).unwrap();
        Arc::new(Context::new(
            engine.store(),
            Nowhere,
            Vec::new(),
            BTreeMap::new(),
            settings(),
            Arc::new(Metrics::new()),
        ))
    }
}

/// A panic is counted, and the next session is opened; each panic counts.
#[tokio::test]
async fn a_panic_of_a_session_is_counted_and_survived() {
    let folder = Folder::new("session");
    let context = folder.context();
    let metrics = Arc::clone(&context.metrics);
    let broker = Broken::default();
    let sessions = Arc::clone(&broker.sessions);
    let drain = CancellationToken::new();
    let worker = Worker::new(broker, context);
    let running = tokio::spawn(worker.run(drain.clone()));
    while sessions.load(Ordering::Relaxed) < 3 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drain.cancel();
    running.await.unwrap();
    let text = metrics.text();
    let mut lines = text.lines();
    let line = lines.find(|it| it.starts_with("fanwise_panics_total "));
    let counted = line.and_then(|it| it.rsplit(' ').next()?.parse::<f64>().ok());
    assert!(counted.unwrap() >= 2.0, "{counted:?}");
}

pub(super) fn session_of(
    context: &Arc<Played>,
) -> WorkerSession<crate::embedded::EmbeddedStore, Nowhere, Nowhere> {
    WorkerSession {
        context: Arc::clone(context),
        publisher: Nowhere,
        throttle: Arc::default(),
        lost: CancellationToken::new(),
        halt: CancellationToken::new(),
        tail: None,
    }
}

/// A lane whose consumer panicked does not stay silent beside the others: the session ends.
#[tokio::test]
async fn a_panic_in_one_lane_ends_the_session() {
    let folder = Folder::new("lane");
    let session = Arc::new(session_of(&folder.context()));
    let halt = session.halt.clone();
    let lanes = Lane::all("im").enumerate().map(|(number, lane)| OpenLane {
        lane,
        consumer: BrokenConsumer {
            panics: number == 1,
            cancelled: false,
        },
    });
    let broker = Arc::new(BrokenSession(CancellationToken::new()));
    let (sender, arrivals) = mpsc::channel(1);
    let arrivals = lanes::Arrivals { sender, arrivals };
    let work = tokio::spawn(lanes::work(session, broker, lanes.collect(), arrivals));
    let panicked = work.await.unwrap_err();
    assert!(panicked.is_panic(), "{panicked}");
    let said = panicked.to_string();
    assert!(said.contains("as a mistake of ours would"), "{said}");
    assert!(halt.is_cancelled());
}

/// A step is given up after some attempts only if the ledger's records make no sense and other
/// slices wait for the place. The worker waits for a ledger that is down.
#[tokio::test]
async fn a_step_that_no_repetition_mends_is_given_up() {
    let folder = Folder::new("broken");
    let context = folder.context();
    let never = std::future::pending;
    let broken = || async { Err::<(), _>(LedgerError::Broken("no number".to_owned())) };
    let given_up = context.step_of_slice(LedgerStep::Claim, never(), broken);
    assert_eq!(given_up.await, Err(GivenUp::Broken));

    let mut attempts = 0;
    let away = || {
        attempts += 1;
        let back = attempts > 6;
        async move {
            let error = std::io::Error::other("away");
            let away = LedgerError::Unreachable(error.into());
            if back { Ok(()) } else { Err(away) }
        }
    };
    let waited = context.step_of_slice(LedgerStep::Claim, never(), away);
    assert_eq!(waited.await, Ok(()));
}
