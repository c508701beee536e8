//! Schedules slices: keeps the deliveries that wait for a place, starts slices, and ends each
//! delivery as its work decided.
//!
//! The slices of a target share its places by the rules of `domain::fairness`. Small jobs and
//! notices have places of their own, so that big jobs cannot occupy them (promise 8). The scheduler
//! keeps the handle that acks or requeues a delivery apart from the slice's work, so that it can
//! requeue the slice if the work panics.
//!
//! The scheduler itself never waits. Ending a delivery may take long, since a reject waits for a
//! publisher confirm, so each ending is a task of its own. There are never more of these tasks than
//! the broker hands out unacked deliveries.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::delivery::{DeliveryEnd, deliver};
use super::notice::deliver_notice;
use super::session::WorkerSession;
use super::tail::Tail;
use crate::domain::fairness::{At, Ticket, Turns};
use crate::domain::lane::{Lane, LaneClass, Priority, SUB_LANES};
use crate::error::chain;
use crate::metrics::SliceResult;
use crate::ports::{Delivery, EndDelivery, Publisher, Store, Transport};
use crate::runtime::context::KEEP_MAX;

/// Notices in delivery at a time, per target.
pub(super) const NOTICES_IN_WORK: usize = 8;

/// How often the scheduler looks again at a target whose places are all taken while lanes wait for
/// each other.
const LOOK: Duration = Duration::from_millis(100);

/// A delivery that waits this long for its last answers has a long tail.
const LONG_TAIL: Duration = Duration::from_millis(100);

pub(super) struct Scheduler<S, T, P> {
    session: Arc<WorkerSession<S, T, P>>,
    lanes: Vec<Waiting>,
    /// In the order in which the lanes name them.
    targets: Vec<Places>,
    work: JoinSet<DeliveryEnd>,
    /// The lane, place and delivery of each slice in work, by task.
    in_work: HashMap<Id, InWork>,
    endings: JoinSet<()>,
    /// The origin of the times that `Turns` gets.
    epoch: Instant,
    /// Notified when the tail of a delivery begins.
    tails: Arc<Notify>,
}

/// The deliveries of one lane that wait, oldest first.
struct Waiting {
    lane: Lane,
    /// Index of its target in `Scheduler::targets`.
    target: usize,
    deliveries: VecDeque<(Instant, Delivery)>,
}

/// The places of one target.
struct Places {
    target: String,
    lanes: Vec<usize>,
    express: usize,
    notices: usize,
    other: usize,
    turns: Turns,
}

struct InWork {
    lane: usize,
    place: Place,
    duty: Box<dyn EndDelivery>,
    halt: CancellationToken,
    tail: Tail,
}

/// The kind of place that a slice in work occupies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Express,
    Notice,
    Shared(At, Ticket),
    /// No place any more: the slice waits for its last answers, since this time.
    Tail(Instant),
    /// No place: the slice only goes back to the end of its lane.
    None,
}

impl Places {
    fn new(target: &str) -> Self {
        let weight = |priority: &Priority| LaneClass::Of(*priority, 0).weight();
        let weights: Vec<_> = Priority::ALL.iter().map(weight).collect();
        Self {
            target: target.to_owned(),
            lanes: Vec::new(),
            express: 0,
            notices: 0,
            other: 0,
            turns: Turns::new(&weights, SUB_LANES as usize),
        }
    }
}

/// The position of a lane among those that share places.
fn at(class: LaneClass) -> Option<At> {
    match class {
        LaneClass::Of(priority, lane) => Some(At {
            class: priority as usize,
            lane: lane as usize,
        }),
        LaneClass::Express | LaneClass::Notices => None,
    }
}

impl<S: Store, T: Transport, P: Publisher> Scheduler<S, T, P> {
    pub(super) fn new(
        session: Arc<WorkerSession<S, T, P>>,
        lanes: impl Iterator<Item = Lane>,
    ) -> Self {
        let mut scheduler = Self {
            session,
            lanes: Vec::new(),
            targets: Vec::new(),
            work: JoinSet::new(),
            in_work: HashMap::new(),
            endings: JoinSet::new(),
            epoch: Instant::now(),
            tails: Arc::default(),
        };
        for lane in lanes {
            let known = scheduler
                .targets
                .iter()
                .position(|it| it.target == lane.target);
            let target = known.unwrap_or_else(|| {
                scheduler.targets.push(Places::new(&lane.target));
                scheduler.targets.len() - 1
            });
            scheduler.targets[target].lanes.push(scheduler.lanes.len());
            scheduler.lanes.push(Waiting {
                lane,
                target,
                deliveries: VecDeque::new(),
            });
        }
        scheduler
    }

    pub(super) fn arrived(&mut self, lane: usize, delivery: Delivery) {
        let now = Instant::now();
        let here = &mut self.lanes[lane];
        here.deliveries.push_back((now, delivery));
        if let Some(at) = at(here.lane.class) {
            let since = now.duration_since(self.epoch);
            self.targets[here.target].turns.arrived(at, since);
        }
    }

    /// Notified when a delivery leaves its place early.
    pub(super) fn tails(&self) -> Arc<Notify> {
        Arc::clone(&self.tails)
    }

    /// Starts slices while there are places for them, and makes others give way.
    pub(super) fn draw(&mut self) {
        self.free_tails();
        self.pass_on();
        let ledger_up = {
            let context = &self.session.context;
            *context.ledger_up().borrow() || context.fails_open()
        };
        for target in 0..self.targets.len() {
            // A notice does not go to the target and needs no ledger.
            self.draw_own(target, LaneClass::Notices);
            let name = &self.targets[target].target;
            if ledger_up && self.session.context.kept_for(name).is_none() {
                self.draw_own(target, LaneClass::Express);
                self.draw_shared(target);
            }
        }
        self.session
            .context
            .metrics
            .slices_in_flight(self.work.len());
    }

    /// Starts slices of a lane that has its own places.
    fn draw_own(&mut self, target: usize, class: LaneClass) {
        let places = &self.targets[target];
        let (place, taken, most) = match class {
            LaneClass::Notices => (Place::Notice, places.notices, NOTICES_IN_WORK),
            _ => {
                let most = self.session.context.settings.small_job_concurrency;
                (Place::Express, places.express, most)
            }
        };
        let mut lanes = places.lanes.iter().copied();
        let Some(lane) = lanes.find(|lane| self.lanes[*lane].lane.class == class) else {
            return;
        };
        for _ in taken..most {
            let Some((_, delivery)) = self.lanes[lane].deliveries.pop_front() else {
                return;
            };
            self.start(lane, delivery, place);
        }
    }

    fn draw_shared(&mut self, target: usize) {
        let most = self.slices(target);
        let now = self.epoch.elapsed();
        while self.targets[target].other < most {
            let Some(at) = self.targets[target].turns.next(now) else {
                return;
            };
            let Some((lane, delivery)) = self.take(target, at) else {
                // Cannot happen: the turns count the deliveries that wait.
                self.targets[target].turns.withdrawn(at);
                continue;
            };
            let ticket = self.targets[target].turns.begun(at, now);
            self.start(lane, delivery, Place::Shared(at, ticket));
        }
        while let Some((at, ticket)) = self.targets[target].turns.makes_way(now) {
            let place = Place::Shared(at, ticket);
            let mut here = self
                .in_work
                .values()
                .filter(|it| self.lanes[it.lane].target == target);
            if let Some(slice) = here.find(|it| it.place == place) {
                slice.halt.cancel();
            }
        }
    }

    fn take(&mut self, target: usize, seat: At) -> Option<(usize, Delivery)> {
        let mut lanes = self.targets[target].lanes.iter().copied();
        let lane = lanes.find(|lane| at(self.lanes[*lane].lane.class) == Some(seat))?;
        let (_, delivery) = self.lanes[lane].deliveries.pop_front()?;
        Some((lane, delivery))
    }

    /// Sends deliveries that have waited too long back to the end of their lane, published and
    /// acked. So none comes near the broker's ack limit, whatever its lane waits for (promise 7).
    fn pass_on(&mut self) {
        let now = Instant::now();
        for lane in 0..self.lanes.len() {
            loop {
                let here = &mut self.lanes[lane];
                let is_old = |(since, _): &(Instant, _)| now.duration_since(*since) >= KEEP_MAX;
                if !here.deliveries.front().is_some_and(is_old) {
                    break;
                }
                let Some((_, delivery)) = here.deliveries.pop_front() else {
                    break;
                };
                if let Some(at) = at(here.lane.class) {
                    self.targets[here.target].turns.withdrawn(at);
                }
                self.start(lane, delivery, Place::None);
            }
        }
    }

    fn start(&mut self, lane: usize, delivery: Delivery, place: Place) {
        let here = &self.lanes[lane];
        let places = &mut self.targets[here.target];
        match place {
            Place::Express => places.express += 1,
            Place::Notice => places.notices += 1,
            Place::Shared(..) => places.other += 1,
            Place::Tail(_) | Place::None => {}
        }
        let halt = self.session.halt.child_token();
        if place == Place::None {
            halt.cancel();
        }
        let tail = Tail::new(&self.tails);
        let session = self.session.until(halt.clone(), tail.clone());
        let from = here.lane.clone();
        let Delivery {
            body,
            traceparent,
            end: duty,
            ..
        } = delivery;
        let task = self.work.spawn(async move {
            match from.class {
                LaneClass::Notices => deliver_notice(&session, from, body, traceparent).await,
                _ => deliver(&session, from, body, traceparent).await,
            }
        });
        let in_work = InWork {
            lane,
            place,
            duty,
            halt,
            tail,
        };
        self.in_work.insert(task.id(), in_work);
    }

    /// Frees the places of deliveries that only wait for their last answers.
    fn free_tails(&mut self) {
        let now = Instant::now();
        let mut freed = Vec::new();
        for slice in self.in_work.values_mut() {
            let has_place = matches!(slice.place, Place::Express | Place::Shared(..));
            if has_place && slice.tail.has_begun() {
                freed.push((slice.lane, slice.place));
                slice.place = Place::Tail(now);
            }
        }
        for (lane, place) in freed {
            self.free(lane, place);
        }
    }

    fn free(&mut self, lane: usize, place: Place) {
        let places = &mut self.targets[self.lanes[lane].target];
        match place {
            Place::Express => places.express -= 1,
            Place::Notice => places.notices -= 1,
            Place::Shared(at, ticket) => {
                places.other -= 1;
                places.turns.ended(at, ticket, self.epoch.elapsed());
            }
            Place::Tail(_) | Place::None => {}
        }
    }

    /// Slices of a target that make calls at a time.
    fn slices(&self, target: usize) -> usize {
        let name = &self.targets[target].target;
        let target = self.session.context.targets.get(name);
        target.map_or(1, |target| target.slices)
    }

    /// Whether the deliveries that the broker has handed out of a lane all wait for their last
    /// answers, and have done so for a while, while places are free. More could be worked on.
    pub(super) fn is_hungry(&self, lane: usize) -> bool {
        let here = &self.lanes[lane];
        let places = &self.targets[here.target];
        let has_room = match here.lane.class {
            LaneClass::Notices => false,
            LaneClass::Express => {
                places.express < self.session.context.settings.small_job_concurrency
            }
            LaneClass::Of(..) => places.other < self.slices(here.target),
        };
        has_room && here.deliveries.is_empty() && self.has_long_tail(lane)
    }

    /// Whether a delivery of this lane has waited for its last answers for a while.
    pub(super) fn has_long_tail(&self, lane: usize) -> bool {
        self.in_work.values().any(|slice| {
            slice.lane == lane
                && matches!(slice.place, Place::Tail(since) if since.elapsed() >= LONG_TAIL)
        })
    }

    /// How long until the scheduler has something to do by itself.
    pub(super) fn until_one_moves(&self) -> Duration {
        let now = Instant::now();
        let of_lane = |here: &Waiting| {
            let (since, _) = here.deliveries.front()?;
            let too_old = KEEP_MAX.saturating_sub(now.duration_since(*since));
            let places = &self.targets[here.target];
            let most = self.slices(here.target);
            let kept = self.session.context.kept_for(&places.target);
            let look = (places.other >= most && places.turns.is_contended()).then_some(LOOK);
            [Some(too_old), kept, look].into_iter().flatten().min()
        };
        let lanes = self.lanes.iter().filter_map(of_lane);
        // A tail that becomes long may make its lane hungry.
        let tails = self.in_work.values().filter_map(|slice| match slice.place {
            Place::Tail(since) => {
                let left = LONG_TAIL.saturating_sub(now.duration_since(since));
                (!left.is_zero()).then_some(left)
            }
            _ => None,
        });
        lanes.chain(tails).min().unwrap_or(KEEP_MAX)
    }

    pub(super) fn is_busy(&self) -> bool {
        !self.work.is_empty() || !self.endings.is_empty()
    }

    /// Waits until the work on a slice or the ending of a delivery is complete; false when there is
    /// neither.
    pub(super) async fn one_ended(&mut self) -> bool {
        tokio::select! {
            biased;
            Some(ended) = self.work.join_next_with_id() => self.ended(ended),
            Some(ended) = self.endings.join_next() => if let Err(error) = ended {
                self.panicked(&error);
            },
            else => return false,
        }
        true
    }

    /// A bug in the work on one delivery costs that delivery, not the session.
    fn panicked(&self, error: &JoinError) {
        self.session.context.metrics.panicked();
        tracing::error!(%error, "the work on a delivery panicked: the broker hands it out again");
    }

    /// Frees the place of a slice and ends its delivery as the work decided.
    fn ended(&mut self, ended: Result<(Id, DeliveryEnd), JoinError>) {
        let (id, end) = match ended {
            Ok((id, end)) => (id, Some(end)),
            Err(error) => {
                self.panicked(&error);
                (error.id(), None)
            }
        };
        let Some(InWork {
            lane, place, duty, ..
        }) = self.in_work.remove(&id)
        else {
            return;
        };
        self.free(lane, place);
        let here = &self.lanes[lane];
        self.session
            .context
            .metrics
            .slices_in_flight(self.work.len());
        let context = Arc::clone(&self.session.context);
        let lane = here.lane.clone();
        self.endings.spawn(async move {
            let result = close(&lane, duty, end).await;
            context.metrics.slice(result);
        });
    }

    /// Requeues the deliveries that were not started.
    pub(super) fn requeue_waiting(&mut self) {
        for here in &mut self.lanes {
            for (_, delivery) in here.deliveries.drain(..) {
                self.session.context.metrics.slice(SliceResult::Requeued);
                self.endings.spawn(async move {
                    let _ = delivery.requeue().await;
                });
            }
        }
    }
}

/// Ends a delivery as its work decided; `None` means that the work panicked. If the session is
/// lost, none of this has an effect, and none is needed.
async fn close(lane: &Lane, duty: Box<dyn EndDelivery>, end: Option<DeliveryEnd>) -> SliceResult {
    let (result, ended) = match end {
        Some(DeliveryEnd::Done) => (SliceResult::Done, duty.ack().await.is_ok()),
        Some(DeliveryEnd::Deferred) => (SliceResult::Deferred, duty.ack().await.is_ok()),
        Some(DeliveryEnd::Lost) => (SliceResult::Lost, true),
        Some(DeliveryEnd::Reject(reason)) => {
            let rejected = duty.reject(reason.clone()).await;
            match &rejected {
                Ok(()) => tracing::error!(
                    reason,
                    "a message on lane {lane} was moved to the rejected queue"
                ),
                Err(error) => tracing::warn!(
                    reason,
                    error = %chain(error),
                    "a message on lane {lane} could not be moved to the rejected queue; the broker \
                     hands it out again"
                ),
            }
            (SliceResult::Rejected, rejected.is_ok())
        }
        None => (SliceResult::Requeued, duty.requeue().await.is_ok()),
    };
    if ended { result } else { SliceResult::Lost }
}
