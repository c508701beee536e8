//! Schedules slices: keeps the deliveries that wait for a place, starts slices, and ends each
//! delivery as its work decided.
//!
//! The jobs of a target share its places by the rules of `domain::fairness`: a slice says in its
//! head whose it is, so apps and jobs need no queues of their own. Small jobs and notices have places
//! of their own, so that big jobs cannot occupy them (promise 8); apps and jobs share the places of
//! the small jobs by the same rules. The scheduler keeps the handle that acks or requeues a delivery apart from the slice's work, so that it can
//! requeue the slice if the work panics.
//!
//! The scheduler itself never waits. Ending a delivery may take long, since a reject waits for a
//! publisher confirm, so each ending is a task of its own. There are never more of these tasks than
//! the broker hands out unacked deliveries.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, VecDeque};
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
use crate::domain::fairness::{AppRules, AppShare, Seat, Ticket, Turns};
use crate::domain::ids::JobId;
use crate::domain::lane::{Lane, LaneClass, Priority};
use crate::error::chain;
use crate::metrics::SliceResult;
use crate::ports::{Delivery, EndDelivery, Publisher, Store, Transport};
use crate::runtime::context::KEEP_MAX;
use crate::runtime::{AtWork, TargetRuntime};

/// Notices in delivery at a time, per target.
pub(super) const NOTICES_IN_WORK: usize = 8;

/// How often the scheduler looks again at a target whose places are all taken, or all that an app may
/// have, while jobs wait for each other.
const LOOK: Duration = Duration::from_millis(100);

/// How often the scheduler looks for deliveries that have waited too long.
const AGE_LOOK: Duration = Duration::from_secs(1);

/// A delivery that waits this long for its last answers has a long tail.
const LONG_TAIL: Duration = Duration::from_millis(100);

pub(super) struct Scheduler<S, T, P> {
    session: Arc<WorkerSession<S, T, P>>,
    lanes: Vec<OfLane>,
    /// In the order in which the lanes name them.
    targets: Vec<OfTarget>,
    work: JoinSet<DeliveryEnd>,
    /// The lane, place and delivery of each slice in work, by task.
    in_work: HashMap<Id, InWork>,
    endings: JoinSet<()>,
    /// The origin of the times that `Turns` gets.
    epoch: Instant,
    /// When the scheduler looked for deliveries that have waited too long.
    aged: Instant,
    /// Notified when the tail of a delivery begins.
    tails: Arc<Notify>,
}

struct OfLane {
    lane: Lane,
    /// Index of its target in `Scheduler::targets`.
    target: usize,
    /// Its deliveries that wait here.
    waiting: usize,
}

/// The deliveries of one target.
struct OfTarget {
    target: String,
    runtime: Option<Arc<TargetRuntime>>,
    /// Those of small jobs.
    express: Pool,
    /// Those of all other jobs.
    shared: Pool,
    notices: VecDeque<Waiting>,
    notices_in_work: usize,
}

/// Places, and the deliveries that wait for one.
struct Pool {
    turns: Turns,
    /// By job, oldest first.
    waiting: BTreeMap<Seat, VecDeque<Waiting>>,
    taken: usize,
}

/// A delivery that waits.
struct Waiting {
    lane: usize,
    since: Instant,
    delivery: Delivery,
}

struct InWork {
    lane: usize,
    place: Place,
    duty: Box<dyn EndDelivery>,
    halt: CancellationToken,
    tail: Tail,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Express,
    Shared,
}

/// The kind of place that a slice in work occupies.
#[derive(Clone, PartialEq, Eq)]
enum Place {
    Notice,
    Of(Kind, Seat, Ticket),
    /// No place any more: the slice waits for its last answers, since this time.
    Tail(Instant),
    /// No place: the slice only goes back to the end of its lane.
    None,
}

impl Pool {
    fn new(weights: &[u32]) -> Self {
        Self {
            turns: Turns::new(weights),
            waiting: BTreeMap::new(),
            taken: 0,
        }
    }

    fn arrived(&mut self, seat: Seat, share: AppShare, waiting: Waiting, now: Duration) {
        self.turns.arrived(&seat, share, now);
        self.waiting.entry(seat).or_default().push_back(waiting);
    }

    /// The next delivery of a job.
    fn pop(&mut self, seat: &Seat) -> Option<Waiting> {
        let deliveries = self.waiting.get_mut(seat)?;
        let next = deliveries.pop_front();
        if deliveries.is_empty() {
            self.waiting.remove(seat);
        }
        next
    }

    /// The delivery that gets a free place.
    fn next(&mut self, now: Duration) -> Option<(Seat, Ticket, Waiting)> {
        loop {
            let seat = self.turns.next(now)?;
            if let Some(next) = self.pop(&seat) {
                let ticket = self.turns.begun(&seat, now);
                self.taken += 1;
                return Some((seat, ticket, next));
            }
            // Cannot happen: the turns count the deliveries that wait.
            self.turns.withdrawn(&seat, now);
        }
    }

    /// Takes out the deliveries that have waited since before a time.
    fn old(&mut self, before: Instant, now: Duration) -> Vec<(JobId, Waiting)> {
        let mut old = Vec::new();
        for (seat, deliveries) in &mut self.waiting {
            while deliveries.front().is_some_and(|it| it.since <= before) {
                old.extend(deliveries.pop_front().map(|it| (seat.job, it)));
                self.turns.withdrawn(seat, now);
            }
        }
        self.waiting.retain(|_, deliveries| !deliveries.is_empty());
        old
    }
}

impl OfTarget {
    fn new(target: &str, runtime: Option<Arc<TargetRuntime>>) -> Self {
        if let Some(runtime) = &runtime {
            runtime.at_work.clear();
        }
        let weight = |priority: &Priority| LaneClass::Of(*priority, 0).weight();
        let weights: Vec<_> = Priority::ALL.iter().map(weight).collect();
        Self {
            target: target.to_owned(),
            runtime,
            express: Pool::new(&[1]),
            shared: Pool::new(&weights),
            notices: VecDeque::new(),
            notices_in_work: 0,
        }
    }

    fn pool(&mut self, kind: Kind) -> &mut Pool {
        match kind {
            Kind::Express => &mut self.express,
            Kind::Shared => &mut self.shared,
        }
    }

    fn note(&self, note: impl FnOnce(&AtWork)) {
        if let Some(runtime) = &self.runtime {
            note(&runtime.at_work);
        }
    }

    fn is_waited_for(&self) -> bool {
        let pools = [&self.express, &self.shared];
        !self.notices.is_empty() || pools.iter().any(|pool| !pool.waiting.is_empty())
    }
}

/// Whose slice a message is, without reading all of it. A message that is no slice gets a place
/// like one, and is rejected there.
fn seat_of(class: usize, body: &[u8]) -> Seat {
    #[derive(serde::Deserialize)]
    struct SliceOfJob<'a> {
        #[serde(borrow)]
        head: HeadOfJob<'a>,
    }
    #[derive(serde::Deserialize)]
    struct HeadOfJob<'a> {
        id: JobId,
        #[serde(borrow)]
        app: Cow<'a, str>,
    }
    let slice = serde_json::from_slice::<SliceOfJob<'_>>(body).ok();
    let (app, job) = match &slice {
        Some(slice) => (&*slice.head.app, slice.head.id),
        None => ("", JobId::of("", "")),
    };
    Seat {
        class,
        app: app.into(),
        job,
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
            aged: Instant::now(),
            tails: Arc::default(),
        };
        for lane in lanes {
            let known = scheduler
                .targets
                .iter()
                .position(|it| it.target == lane.target);
            let target = known.unwrap_or_else(|| {
                let runtime = scheduler.session.context.targets.get(&lane.target);
                let runtime = runtime.cloned();
                scheduler.targets.push(OfTarget::new(&lane.target, runtime));
                scheduler.targets.len() - 1
            });
            scheduler.lanes.push(OfLane {
                lane,
                target,
                waiting: 0,
            });
        }
        scheduler
    }

    pub(super) fn arrived(&mut self, lane: usize, delivery: Delivery) {
        let since = Instant::now();
        let now = since.duration_since(self.epoch);
        let here = &mut self.lanes[lane];
        here.waiting += 1;
        let (target, class) = (here.target, here.lane.class);
        let (kind, class) = match class {
            LaneClass::Express(_) => (Kind::Express, 0),
            LaneClass::Of(priority, _) => (Kind::Shared, priority as usize),
            LaneClass::Notices => {
                let notices = &mut self.targets[target].notices;
                return notices.push_back(Waiting {
                    lane,
                    since,
                    delivery,
                });
            }
        };
        let seat = seat_of(class, &delivery.body);
        let share = self.share(&seat.app, self.places(target, kind));
        let waiting = Waiting {
            lane,
            since,
            delivery,
        };
        let target = &mut self.targets[target];
        target.note(|at_work| at_work.arrived(seat.job, &seat.app));
        target.pool(kind).arrived(seat, share, waiting, now);
    }

    fn share(&self, app: &str, places: usize) -> AppShare {
        let app = self.session.context.apps.get(app);
        app.map_or_else(AppRules::default, |app| app.share)
            .of(places)
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
        let held_up = self.session.throttle.held_up();
        for target in 0..self.targets.len() {
            for kind in [Kind::Express, Kind::Shared] {
                let pool = self.targets[target].pool(kind);
                pool.turns.hold_back(&held_up);
            }
            // A notice does not go to the target and needs no ledger.
            self.draw_notices(target);
            let name = &self.targets[target].target;
            if ledger_up && self.session.context.kept_for(name).is_none() {
                self.draw_slices(target, Kind::Express);
                self.draw_slices(target, Kind::Shared);
            }
        }
        self.session
            .context
            .metrics
            .slices_in_flight(self.work.len());
    }

    fn draw_notices(&mut self, target: usize) {
        while self.targets[target].notices_in_work < NOTICES_IN_WORK {
            let Some(next) = self.targets[target].notices.pop_front() else {
                return;
            };
            self.targets[target].notices_in_work += 1;
            self.start(next, Place::Notice);
        }
    }

    fn draw_slices(&mut self, target: usize, kind: Kind) {
        let most = self.places(target, kind);
        let now = self.epoch.elapsed();
        while self.targets[target].pool(kind).taken < most
            && let Some((seat, ticket, next)) = self.targets[target].pool(kind).next(now)
        {
            self.targets[target].note(|at_work| at_work.begun(seat.job));
            self.start(next, Place::Of(kind, seat, ticket));
        }
        while let Some(ticket) = self.targets[target].pool(kind).turns.makes_way(now) {
            let is_it = |it: &&mut InWork| {
                matches!(&it.place, Place::Of(of, _, its) if *of == kind && *its == ticket)
                    && self.lanes[it.lane].target == target
            };
            if let Some(slice) = self.in_work.values_mut().find(is_it) {
                slice.halt.cancel();
            }
        }
    }

    /// Sends deliveries that have waited too long back to the end of their lane, published and
    /// acked. So none comes near the broker's ack limit, whatever its lane waits for (promise 7).
    fn pass_on(&mut self) {
        if self.aged.elapsed() < AGE_LOOK {
            return;
        }
        self.aged = Instant::now();
        let Some(before) = self.aged.checked_sub(KEEP_MAX) else {
            return;
        };
        let now = self.epoch.elapsed();
        let mut old = Vec::new();
        for target in &mut self.targets {
            let slices = [
                target.express.old(before, now),
                target.shared.old(before, now),
            ];
            for (job, slice) in slices.into_iter().flatten() {
                target.note(|at_work| at_work.withdrawn(job));
                old.push(slice);
            }
            while target.notices.front().is_some_and(|it| it.since <= before) {
                old.extend(target.notices.pop_front());
            }
        }
        for delivery in old {
            self.start(delivery, Place::None);
        }
    }

    fn start(&mut self, next: Waiting, place: Place) {
        let Waiting { lane, delivery, .. } = next;
        let here = &mut self.lanes[lane];
        here.waiting -= 1;
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
            if matches!(slice.place, Place::Of(..)) && slice.tail.has_begun() {
                let place = std::mem::replace(&mut slice.place, Place::Tail(now));
                freed.push((slice.lane, place));
            }
        }
        for (lane, place) in freed {
            self.free(lane, place);
        }
    }

    fn free(&mut self, lane: usize, place: Place) {
        let now = self.epoch.elapsed();
        let target = &mut self.targets[self.lanes[lane].target];
        match place {
            Place::Notice => target.notices_in_work -= 1,
            Place::Of(kind, seat, ticket) => {
                let pool = target.pool(kind);
                pool.taken -= 1;
                pool.turns.ended(&seat, ticket, now);
                target.note(|at_work| at_work.ended(seat.job));
            }
            Place::Tail(_) | Place::None => {}
        }
    }

    /// Slices of a target that make calls at a time.
    fn places(&self, target: usize, kind: Kind) -> usize {
        let context = &self.session.context;
        match kind {
            Kind::Express => context.settings.small_job_concurrency,
            Kind::Shared => {
                let runtime = self.targets[target].runtime.as_ref();
                runtime.map_or(1, |target| target.slices)
            }
        }
    }

    /// Whether the deliveries that the broker has handed out of a lane all wait for their last
    /// answers, and have done so for a while, while places are free. More could be worked on.
    pub(super) fn is_hungry(&self, lane: usize) -> bool {
        let here = &self.lanes[lane];
        let target = &self.targets[here.target];
        let has_room = match here.lane.class {
            LaneClass::Notices => false,
            LaneClass::Express(_) => target.express.taken < self.places(here.target, Kind::Express),
            LaneClass::Of(..) => target.shared.taken < self.places(here.target, Kind::Shared),
        };
        has_room && here.waiting == 0 && self.has_long_tail(lane)
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
        let of_target = |index: usize| {
            let target = &self.targets[index];
            if !target.is_waited_for() {
                return None;
            }
            let looks = |kind, pool: &Pool| {
                let is_full = pool.taken >= self.places(index, kind) || pool.turns.has_full_app();
                is_full && pool.turns.is_contended()
            };
            let look = looks(Kind::Express, &target.express) || looks(Kind::Shared, &target.shared);
            let kept = self.session.context.kept_for(&target.target);
            let look = look.then_some(LOOK);
            [Some(AGE_LOOK), kept, look].into_iter().flatten().min()
        };
        let targets = (0..self.targets.len()).filter_map(of_target);
        // A tail that becomes long may make its lane hungry.
        let tails = self.in_work.values().filter_map(|slice| match slice.place {
            Place::Tail(since) => {
                let left = LONG_TAIL.saturating_sub(now.duration_since(since));
                (!left.is_zero()).then_some(left)
            }
            _ => None,
        });
        targets.chain(tails).min().unwrap_or(KEEP_MAX)
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
        for target in &mut self.targets {
            let pools = [&mut target.express, &mut target.shared];
            let slices = pools
                .into_iter()
                .flat_map(|pool| std::mem::take(&mut pool.waiting));
            let slices = slices.flat_map(|(_, deliveries)| deliveries);
            for Waiting { delivery, .. } in slices.chain(target.notices.drain(..)) {
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
