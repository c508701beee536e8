//! Lanes: which slice is worked on next, and how its delivery is ended.
//!
//! Deliveries of all lanes flow into one buffer per lane, bounded by the prefetch. A slice is drawn by
//! weighted round robin when its target has a place free; small jobs have places of their own, so that
//! big ones cannot occupy them (promise 8). A slice's duty to the broker is kept here, apart from its
//! work, so that a panic in the work gives the slice back.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::{Id, JoinSet};

use super::context::{KEEP_MAX, Store};
use super::deliver::{Fate, deliver};
use super::notice::deliver_notice;
use super::shift::Shift;
use crate::domain::fairness::RoundRobin;
use crate::domain::lane::{Lane, LaneClass};
use crate::metrics::SliceResult;
use crate::ports::{Consumer, Delivery, EndDelivery, Publisher, Transport};

/// Deliveries fetched ahead of the places, so that a free place never waits for the broker.
const FETCHED_AHEAD: usize = 2;

/// Notices in delivery at a time, per target.
const NOTICES_IN_WORK: usize = 8;

/// Deliveries to take from a lane at a time.
pub(super) fn prefetch(lane: &Lane, settings: &super::Settings) -> u16 {
    let places = match lane.class {
        LaneClass::Express => settings.express_in_work,
        LaneClass::Of(..) => settings.slices_in_work,
        LaneClass::Notices => NOTICES_IN_WORK,
    };
    (places + FETCHED_AHEAD).min(usize::from(u16::MAX)) as u16
}

/// A lane with its consumer.
pub(super) struct OpenLane<C> {
    pub(super) lane: Lane,
    pub(super) consumer: C,
}

/// Works on slices until the shift ends, then gives back what was not begun and waits for the rest.
pub(super) async fn work<S: Store, T: Transport, P: Publisher, C: Consumer>(
    shift: Arc<Shift<S, T, P>>,
    lanes: Vec<OpenLane<C>>,
) {
    let (sender, mut arrivals) = mpsc::channel(1);
    let mut forwarders = JoinSet::new();
    let mut desk = Desk::new(
        Arc::clone(&shift),
        lanes.iter().map(|open| open.lane.clone()),
    );
    for (number, open) in lanes.into_iter().enumerate() {
        forwarders.spawn(forward(
            Arc::clone(&shift),
            number,
            open.consumer,
            sender.clone(),
        ));
    }
    drop(sender);
    let mut parked = shift.context.parked();
    let mut directives = shift.context.directives();
    let mut ledger_up = shift.context.ledger_up();
    while !shift.halt.is_cancelled() {
        desk.draw();
        let moves = desk.until_one_moves();
        tokio::select! {
            biased;
            () = shift.halt.cancelled() => {}
            Some(ended) = desk.work.join_next_with_id(), if !desk.work.is_empty() => desk.end(ended).await,
            arrival = arrivals.recv() => match arrival {
                Some((number, delivery)) => desk.waiting[number].push_back(delivery),
                None => break,
            },
            _ = parked.changed() => {}
            _ = directives.changed() => {}
            _ = ledger_up.changed() => {}
            () = tokio::time::sleep(moves) => {}
        }
    }
    arrivals.close();
    while let Some((_, delivery)) = arrivals.recv().await {
        let _ = delivery.give_back().await;
    }
    desk.give_back_waiting().await;
    while let Some(ended) = desk.work.join_next_with_id().await {
        desk.end(ended).await;
    }
    while forwarders.join_next().await.is_some() {}
}

/// Moves deliveries of one lane to the desk until the shift ends.
async fn forward<S, T, P, C: Consumer>(
    shift: Arc<Shift<S, T, P>>,
    number: usize,
    mut consumer: C,
    desk: mpsc::Sender<(usize, Delivery)>,
) {
    loop {
        let delivery = tokio::select! {
            biased;
            () = shift.halt.cancelled() => break,
            delivery = consumer.next() => delivery,
        };
        let Some(delivery) = delivery else { break };
        if let Err(refused) = desk.send((number, delivery)).await {
            let _ = refused.0.1.give_back().await;
            break;
        }
    }
    consumer.cancel().await;
    while let Some(delivery) = consumer.next().await {
        let _ = delivery.give_back().await;
    }
}

/// Slices waiting for a place and slices in work.
struct Desk<S, T, P> {
    shift: Arc<Shift<S, T, P>>,
    lanes: Vec<Lane>,
    turns: RoundRobin,
    waiting: Vec<VecDeque<Delivery>>,
    places: BTreeMap<String, Places>,
    work: JoinSet<Fate>,
    /// The duty of every slice in work, with its lane.
    duties: HashMap<Id, (usize, Box<dyn EndDelivery>)>,
}

/// Places taken at one target.
#[derive(Clone, Copy, Default)]
struct Places {
    express: usize,
    other: usize,
    notices: usize,
}

impl Places {
    fn of(&mut self, class: LaneClass) -> &mut usize {
        match class {
            LaneClass::Express => &mut self.express,
            LaneClass::Of(..) => &mut self.other,
            LaneClass::Notices => &mut self.notices,
        }
    }
}

impl<S: Store, T: Transport, P: Publisher> Desk<S, T, P> {
    fn new(shift: Arc<Shift<S, T, P>>, lanes: impl Iterator<Item = Lane>) -> Self {
        let lanes: Vec<_> = lanes.collect();
        Self {
            shift,
            turns: RoundRobin::new(lanes.iter().map(|lane| lane.class.weight()).collect()),
            waiting: lanes.iter().map(|_| VecDeque::new()).collect(),
            places: BTreeMap::new(),
            work: JoinSet::new(),
            duties: HashMap::new(),
            lanes,
        }
    }

    /// Starts slices while there are places for them.
    fn draw(&mut self) {
        while let Some(number) = self.next_lane() {
            let Some(delivery) = self.waiting[number].pop_front() else {
                continue;
            };
            let lane = &self.lanes[number];
            *self
                .places
                .entry(lane.target.clone())
                .or_default()
                .of(lane.class) += 1;
            let Delivery {
                body,
                traceparent,
                end,
                ..
            } = delivery;
            let shift = Arc::clone(&self.shift);
            let from = lane.clone();
            let task = self.work.spawn(async move {
                match from.class {
                    LaneClass::Notices => deliver_notice(&*shift, from, body, traceparent).await,
                    _ => deliver(&*shift, from, body, traceparent).await,
                }
            });
            self.duties.insert(task.id(), (number, end));
        }
        self.shift.context.metrics.slices_in_work(self.work.len());
    }

    fn next_lane(&mut self) -> Option<usize> {
        let Self {
            shift,
            lanes,
            turns,
            waiting,
            places,
            ..
        } = self;
        let context = &shift.context;
        let ledger_up = *context.ledger_up().borrow() || context.fails_open();
        let settings = &context.settings;
        turns.next(|number| {
            let lane = &lanes[number];
            let mut taken = places.get(&lane.target).copied().unwrap_or_default();
            let free = match lane.class {
                LaneClass::Express => *taken.of(lane.class) < settings.express_in_work,
                LaneClass::Of(..) => *taken.of(lane.class) < settings.slices_in_work,
                LaneClass::Notices => *taken.of(lane.class) < NOTICES_IN_WORK,
            };
            // A notice goes elsewhere and needs no ledger.
            let may_go = lane.class == LaneClass::Notices
                || (ledger_up && context.kept_for(&lane.target).is_none());
            free && may_go && !waiting[number].is_empty()
        })
    }

    /// How long until the next target with waiting slices moves again.
    fn until_one_moves(&self) -> std::time::Duration {
        (0..self.lanes.len())
            .filter(|number| !self.waiting[*number].is_empty())
            .filter_map(|number| self.shift.context.kept_for(&self.lanes[number].target))
            .min()
            .unwrap_or(KEEP_MAX)
    }

    /// Ends the delivery of a slice as its work says.
    async fn end(&mut self, ended: Result<(Id, Fate), tokio::task::JoinError>) {
        let (id, fate) = match ended {
            Ok((id, fate)) => (id, Some(fate)),
            Err(error) => (error.id(), None),
        };
        let Some((number, duty)) = self.duties.remove(&id) else {
            return;
        };
        let lane = &self.lanes[number];
        *self
            .places
            .entry(lane.target.clone())
            .or_default()
            .of(lane.class) -= 1;
        let metrics = &self.shift.context.metrics;
        // Where the session is lost, none of this has an effect, and none is needed.
        let (result, ended) = match fate {
            Some(Fate::Done) => (SliceResult::Done, duty.ack().await.is_ok()),
            Some(Fate::PutOff) => (SliceResult::PutOff, duty.ack().await.is_ok()),
            Some(Fate::Lost) => (SliceResult::Lost, true),
            Some(Fate::Reject(reason)) => {
                tracing::error!(
                    reason,
                    "a message on lane {lane} was moved to the rejected queue"
                );
                (SliceResult::Rejected, duty.reject(reason).await.is_ok())
            }
            None => {
                metrics.panicked();
                (SliceResult::GivenBack, duty.give_back().await.is_ok())
            }
        };
        metrics.slice(if ended { result } else { SliceResult::Lost });
        metrics.slices_in_work(self.work.len());
    }

    async fn give_back_waiting(&mut self) {
        for delivery in self.waiting.iter_mut().flat_map(std::mem::take) {
            self.shift.context.metrics.slice(SliceResult::GivenBack);
            let _ = delivery.give_back().await;
        }
    }
}
