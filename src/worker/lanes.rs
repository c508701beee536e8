//! Feeds the deliveries of all lanes to one [`Scheduler`], which decides which slice is worked on
//! next. The prefetch of each lane bounds how many deliveries wait there.
//!
//! The prefetch is small, so that a short queue is spread over all workers. Where deliveries wait
//! long for their last answers, they use it up although the target could take more calls. The lane
//! then gets a second consumer, for as long as that lasts.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::scheduler::{NOTICES_IN_WORK, Scheduler};
use super::session::WorkerSession;
use crate::domain::lane::{Lane, LaneClass};
use crate::error::chain;
use crate::ports::{BrokerError, Consumer, Delivery, Publisher, Session, Source, Store, Transport};
use crate::runtime::{Settings, TargetRuntime};

/// Deliveries fetched beyond the number of places, so that a free place does not wait for the
/// broker.
const FETCHED_AHEAD: usize = 2;

/// The prefetch of a second consumer of a lane.
const MORE: u16 = 32;

/// A second consumer without use is kept for this long.
const MORE_KEPT: Duration = Duration::from_secs(5);

/// Deliveries that the broker hands out from a lane at a time. `slices`: places of the target.
fn prefetch(class: LaneClass, slices: usize, settings: &Settings) -> u16 {
    let places = match class {
        LaneClass::Express(_) => settings.small_job_concurrency,
        LaneClass::Of(..) => slices,
        LaneClass::Notices => NOTICES_IN_WORK,
    };
    (places + FETCHED_AHEAD).min(usize::from(u16::MAX)) as u16
}

/// A lane with its consumer.
pub(super) struct OpenLane<C> {
    pub(super) lane: Lane,
    pub(super) consumer: C,
}

/// The way of deliveries to the scheduler, with the numbers of their lanes.
pub(super) struct Arrivals {
    pub(super) sender: mpsc::Sender<(usize, Delivery)>,
    pub(super) arrivals: mpsc::Receiver<(usize, Delivery)>,
}

/// Opens the consumers of all lanes.
pub(super) async fn open<B: Session>(
    session: &B,
    targets: impl Iterator<Item = &TargetRuntime>,
    settings: &Settings,
) -> Result<Vec<OpenLane<B::Consumer>>, BrokerError> {
    let mut lanes = Vec::new();
    for target in targets {
        for lane in Lane::all(&target.name) {
            let prefetch = prefetch(lane.class, target.slices, settings);
            let source = Source::Lane(lane.clone());
            let consumer = session.consume(source, prefetch).await?;
            lanes.push(OpenLane { lane, consumer });
        }
    }
    Ok(lanes)
}

/// Works on slices until the session ends. Then requeues the deliveries that were not started and
/// waits for the rest.
pub(super) async fn work<S: Store, T: Transport, P: Publisher, B: Session>(
    session: Arc<WorkerSession<S, T, P>>,
    broker: Arc<B>,
    lanes: Vec<OpenLane<B::Consumer>>,
    arrivals: Arrivals,
) {
    let Arrivals {
        sender,
        mut arrivals,
    } = arrivals;
    let mut scheduler = Scheduler::new(
        Arc::clone(&session),
        lanes.iter().map(|open| open.lane.clone()),
    );
    let mut feeders = Feeders {
        session: Arc::clone(&session),
        sender,
        tasks: JoinSet::new(),
        lanes: lanes.iter().map(|open| (open.lane.clone(), None)).collect(),
    };
    for (number, open) in lanes.into_iter().enumerate() {
        feeders.feed(number, open.consumer, session.halt.clone());
    }
    let tails = scheduler.tails();
    let mut parked = session.context.parked();
    let mut directives = session.context.directives();
    let mut ledger_up = session.context.ledger_up();
    let mut panicked = None;
    while !session.halt.is_cancelled() && panicked.is_none() {
        scheduler.draw();
        feeders.follow(&scheduler, &broker);
        let moves = scheduler.until_one_moves();
        tokio::select! {
            biased;
            () = session.halt.cancelled() => {}
            true = scheduler.one_ended(), if scheduler.is_busy() => {}
            arrival = arrivals.recv() => match arrival {
                Some((number, delivery)) => scheduler.arrived(number, delivery),
                None => break,
            },
            ended = feeders.tasks.join_next() => match ended {
                Some(ended) => panicked = panic_of(ended),
                // The broker hands out nothing any more.
                None => break,
            },
            () = tails.notified() => {}
            _ = parked.changed() => {}
            _ = directives.changed() => {}
            _ = ledger_up.changed() => {}
            () = tokio::time::sleep(moves) => {}
        }
    }
    if panicked.is_some() {
        // The other feeders end with it.
        session.halt.cancel();
    }
    arrivals.close();
    while let Some((_, delivery)) = arrivals.recv().await {
        let _ = delivery.requeue().await;
    }
    scheduler.requeue_waiting();
    while scheduler.one_ended().await {}
    while let Some(ended) = feeders.tasks.join_next().await {
        panicked = panicked.or(panic_of(ended));
    }
    if let Some(panicked) = panicked {
        // All work is ended; the session learns of the panic now.
        std::panic::resume_unwind(panicked);
    }
}

/// The panic of a task, if it panicked.
fn panic_of(ended: Result<(), JoinError>) -> Option<Box<dyn Any + Send>> {
    ended.err()?.try_into_panic().ok()
}

/// The tasks that move deliveries from the consumers to the scheduler.
struct Feeders<S, T, P> {
    session: Arc<WorkerSession<S, T, P>>,
    sender: mpsc::Sender<(usize, Delivery)>,
    tasks: JoinSet<()>,
    /// Each lane, and its second consumer.
    lanes: Vec<(Lane, Option<More>)>,
}

/// A second consumer of a lane.
struct More {
    halt: CancellationToken,
    /// When it was last of use.
    used: Instant,
}

impl<S: Store, T: Transport, P: Publisher> Feeders<S, T, P> {
    fn feed(&mut self, number: usize, consumer: impl Consumer, halt: CancellationToken) {
        let forward = forward(halt, number, consumer, self.sender.clone());
        self.tasks.spawn(forward);
    }

    /// Opens second consumers where they are of use, and closes those that are not any more.
    fn follow<B: Session>(&mut self, scheduler: &Scheduler<S, T, P>, broker: &Arc<B>) {
        for number in 0..self.lanes.len() {
            let (lane, more) = &mut self.lanes[number];
            match more {
                None if scheduler.is_hungry(number) => {
                    let halt = self.session.halt.child_token();
                    let source = Source::Lane(lane.clone());
                    *more = Some(More {
                        halt: halt.clone(),
                        used: Instant::now(),
                    });
                    let (broker, sender) = (Arc::clone(broker), self.sender.clone());
                    self.tasks.spawn(async move {
                        match broker.consume(source, MORE).await {
                            Ok(consumer) => forward(halt, number, consumer, sender).await,
                            // The first consumer goes on.
                            Err(error) => tracing::warn!(
                                error = %chain(&error),
                                "a lane gets no second consumer"
                            ),
                        }
                    });
                }
                Some(it) if scheduler.has_long_tail(number) => it.used = Instant::now(),
                Some(it) if it.used.elapsed() >= MORE_KEPT => {
                    it.halt.cancel();
                    *more = None;
                }
                _ => {}
            }
        }
    }
}

/// Moves deliveries of one consumer to the scheduler until `halt`.
async fn forward(
    halt: CancellationToken,
    number: usize,
    mut consumer: impl Consumer,
    scheduler: mpsc::Sender<(usize, Delivery)>,
) {
    loop {
        let delivery = tokio::select! {
            biased;
            () = halt.cancelled() => break,
            delivery = consumer.next() => delivery,
        };
        let Some(delivery) = delivery else { break };
        if let Err(refused) = scheduler.send((number, delivery)).await {
            let _ = refused.0.1.requeue().await;
            break;
        }
    }
    consumer.cancel().await;
    while let Some(delivery) = consumer.next().await {
        let _ = delivery.requeue().await;
    }
}
