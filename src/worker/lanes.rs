//! Feeds the deliveries of all lanes to one [`Scheduler`], which decides which slice is worked on
//! next. The prefetch of each lane bounds how many deliveries wait there.

use std::any::Any;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};

use super::scheduler::{NOTICES_IN_WORK, Scheduler};
use super::session::WorkerSession;
use crate::domain::lane::{Lane, LaneClass};
use crate::ports::{Consumer, Delivery, Publisher, Store, Transport};

/// Deliveries fetched beyond the number of places, so that a free place does not wait for the
/// broker.
const FETCHED_AHEAD: usize = 2;

/// Deliveries that the broker hands out from a lane at a time.
pub(super) fn prefetch(lane: &Lane, settings: &crate::runtime::Settings) -> u16 {
    let places = match lane.class {
        LaneClass::Express => settings.small_job_concurrency,
        LaneClass::Of(..) => settings.slice_concurrency,
        LaneClass::Notices => NOTICES_IN_WORK,
    };
    (places + FETCHED_AHEAD).min(usize::from(u16::MAX)) as u16
}

/// A lane with its consumer.
pub(super) struct OpenLane<C> {
    pub(super) lane: Lane,
    pub(super) consumer: C,
}

/// Works on slices until the session ends. Then requeues the deliveries that were not started and
/// waits for the rest.
pub(super) async fn work<S: Store, T: Transport, P: Publisher, C: Consumer>(
    session: Arc<WorkerSession<S, T, P>>,
    lanes: Vec<OpenLane<C>>,
) {
    let (sender, mut arrivals) = mpsc::channel(1);
    let mut forwarders = JoinSet::new();
    let mut scheduler = Scheduler::new(
        Arc::clone(&session),
        lanes.iter().map(|open| open.lane.clone()),
    );
    for (number, open) in lanes.into_iter().enumerate() {
        forwarders.spawn(forward(
            Arc::clone(&session),
            number,
            open.consumer,
            sender.clone(),
        ));
    }
    drop(sender);
    let mut parked = session.context.parked();
    let mut directives = session.context.directives();
    let mut ledger_up = session.context.ledger_up();
    let mut panicked = None;
    while !session.halt.is_cancelled() && panicked.is_none() {
        scheduler.draw();
        let moves = scheduler.until_one_moves();
        tokio::select! {
            biased;
            () = session.halt.cancelled() => {}
            true = scheduler.one_ended(), if scheduler.is_busy() => {}
            arrival = arrivals.recv() => match arrival {
                Some((number, delivery)) => scheduler.arrived(number, delivery),
                None => break,
            },
            Some(ended) = forwarders.join_next() => panicked = panic_of(ended),
            _ = parked.changed() => {}
            _ = directives.changed() => {}
            _ = ledger_up.changed() => {}
            () = tokio::time::sleep(moves) => {}
        }
    }
    if panicked.is_some() {
        // The other forwarders end with it.
        session.halt.cancel();
    }
    arrivals.close();
    while let Some((_, delivery)) = arrivals.recv().await {
        let _ = delivery.requeue().await;
    }
    scheduler.requeue_waiting();
    while scheduler.one_ended().await {}
    while let Some(ended) = forwarders.join_next().await {
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

/// Moves deliveries of one lane to the scheduler until the session ends.
async fn forward<S, T, P, C: Consumer>(
    session: Arc<WorkerSession<S, T, P>>,
    number: usize,
    mut consumer: C,
    scheduler: mpsc::Sender<(usize, Delivery)>,
) {
    loop {
        let delivery = tokio::select! {
            biased;
            () = session.halt.cancelled() => break,
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
