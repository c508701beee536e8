//! Keeps the state of what is handed out: consumers, deliveries that are not ended, and messages
//! that came back.
//!
//! All of it is in memory: after a crash nothing is handed out. The lock is held for a few lines of
//! code, never while the disk is read. Each new ready message has a number above all that were
//! committed before it, so one position per queue tells what was handed out. Waiting messages are
//! found by their due time, and those that were handed out are remembered until they are gone from
//! disk.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::tables::Queues;
use crate::clock::now_ms;
use crate::ports::Lost;

/// Most deliveries that wait in a consumer for their reader.
const READ_AHEAD_MAX: usize = 8;

/// A consumer with this many bytes unacked gets nothing more, whatever its prefetch, so that lists
/// of several megabytes are not held in memory too early.
pub(super) const HELD_BYTES_MAX: usize = 2 * 1024 * 1024;

/// The place of a message in its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Place {
    Ready(u64),
    Waiting { due_ms: u64, seq: u64 },
}

impl Place {
    fn seq(self) -> u64 {
        match self {
            Self::Ready(seq) | Self::Waiting { seq, .. } => seq,
        }
    }
}

/// A delivery that is not ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Out {
    pub(super) queue: u32,
    pub(super) place: Place,
    /// When the message arrived in its queue.
    arrived_ms: u64,
    bytes: usize,
    session: u64,
    consumer: u64,
}

/// A delivery on its way to a consumer.
#[derive(Debug)]
pub(super) struct Handed {
    pub(super) tag: u64,
    pub(super) body: Bytes,
    pub(super) traceparent: Option<String>,
    pub(super) redelivered: bool,
}

/// A message that was read for a consumer.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) place: Place,
    pub(super) arrived_ms: u64,
    pub(super) body: Bytes,
    pub(super) traceparent: Option<String>,
    pub(super) came_back: bool,
}

/// The messages that the dispatcher reads next from a queue.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) queue: u32,
    /// How many messages there is room for.
    pub(super) room: usize,
    /// Messages that came back. They go out first, if they still exist, in the order of their
    /// arrival.
    pub(super) returned: Vec<Place>,
    /// Look for ready messages from this number on.
    pub(super) ready_from: Option<u64>,
    /// Look for waiting messages that are due.
    pub(super) due: bool,
    /// Waiting messages that must not be handed out.
    pub(super) taken: HashSet<Place>,
    pub(super) now_ms: u64,
}

/// The messages that the dispatcher found.
#[derive(Debug, Default)]
pub(super) struct Read {
    /// In the order in which they go out, at most as many as there is room for.
    pub(super) found: Vec<Found>,
    /// Messages that came back and no longer exist.
    pub(super) gone: Vec<Place>,
    /// There may be further ready messages.
    pub(super) more_ready: bool,
    /// When the next waiting message is due; in the past when further ones may be due already.
    pub(super) next_due_ms: Option<u64>,
}

/// The changes of a commit to a queue.
#[derive(Clone, Debug, Default)]
pub(super) struct Change {
    pub(super) ready: i64,
    pub(super) waiting: i64,
    pub(super) has_new: bool,
    pub(super) next_due_ms: Option<u64>,
    /// Waiting messages that are gone from disk.
    pub(super) gone: Vec<Place>,
}

/// Deliveries of a queue that are not ended.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    pub(super) ready: u64,
    pub(super) waiting: u64,
}

pub(super) struct Deliveries {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queues: Vec<Queue>,
    /// The queue to serve first, so that no queue is always first.
    turn: usize,
    sessions: HashMap<u64, CancellationToken>,
    out: HashMap<u64, Out>,
    next_id: u64,
    stopped: bool,
}

#[derive(Default)]
struct Queue {
    /// Messages with lower numbers were handed out before the engine was opened.
    handed_before: u64,
    next_ready: u64,
    more_ready: bool,
    /// The earliest time at which a waiting message may be due.
    next_due_ms: Option<u64>,
    /// Messages that came back, by arrival.
    returned: BTreeMap<(u64, u64), Place>,
    /// Waiting messages that were handed out and are still on disk.
    taken: HashSet<Place>,
    slots: Vec<Slot>,
    /// The consumer whose turn it is.
    turn: usize,
}

/// A consumer.
struct Slot {
    id: u64,
    session: u64,
    prefetch: usize,
    unacked: usize,
    /// Bytes of the unacked deliveries.
    held: usize,
    buffered: usize,
    sender: mpsc::UnboundedSender<Handed>,
}

impl Slot {
    fn room(&self) -> usize {
        if self.held >= HELD_BYTES_MAX {
            return 0;
        }
        let unacked = self.prefetch.saturating_sub(self.unacked);
        unacked.min(READ_AHEAD_MAX.saturating_sub(self.buffered))
    }

    fn hold(&mut self, bytes: usize) {
        self.unacked += 1;
        self.held += bytes;
    }

    fn let_go(&mut self, bytes: usize) {
        self.unacked = self.unacked.saturating_sub(1);
        self.held = self.held.saturating_sub(bytes);
    }
}

impl Queue {
    fn room(&self) -> usize {
        self.slots.iter().map(Slot::room).sum()
    }

    fn has_work(&self, now_ms: u64) -> bool {
        let due = self.next_due_ms.is_some_and(|due| due <= now_ms);
        (self.more_ready || due || !self.returned.is_empty()) && self.room() > 0
    }

    fn slot(&mut self, consumer: u64) -> Option<&mut Slot> {
        self.slots.iter_mut().find(|slot| slot.id == consumer)
    }

    fn take_back(&mut self, out: &Out) {
        let arrival = (out.arrived_ms, out.place.seq());
        self.returned.insert(arrival, out.place);
        if let Some(slot) = self.slot(out.consumer) {
            slot.let_go(out.bytes);
        }
    }

    fn plan(&mut self, queue: u32, now_ms: u64) -> Plan {
        let room = self.room();
        let due = self.next_due_ms.is_some_and(|due| due <= now_ms);
        let plan = Plan {
            queue,
            room,
            returned: self.returned.values().take(room).copied().collect(),
            ready_from: self.more_ready.then_some(self.next_ready),
            due,
            taken: if due {
                self.taken.clone()
            } else {
                HashSet::new()
            },
            now_ms,
        };
        // Every later commit sets them again.
        self.more_ready = false;
        if due {
            self.next_due_ms = None;
        }
        plan
    }
}

impl Deliveries {
    pub(super) fn new(queues: &Queues) -> Self {
        let queue = |handed: &u64| Queue {
            handed_before: *handed,
            more_ready: true,
            next_due_ms: Some(0),
            ..Queue::default()
        };
        let state = State {
            queues: queues.handed.iter().map(queue).collect(),
            ..State::default()
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No invariant spans a panic: every change is complete before the lock is released.
        self.state.lock()
    }

    // --- Sessions and consumers --------------------------------------------------------------

    pub(super) fn open_session(&self) -> Result<(u64, CancellationToken), Lost> {
        let mut state = self.state();
        if state.stopped {
            return Err(Lost);
        }
        let id = state.new_id();
        let lost = CancellationToken::new();
        state.sessions.insert(id, lost.clone());
        Ok((id, lost))
    }

    /// Ends a session: the deliveries that it held go back to their places.
    pub(super) fn close_session(&self, session: u64) {
        let mut state = self.state();
        let State {
            queues,
            out,
            sessions,
            ..
        } = &mut *state;
        for queue in &mut *queues {
            queue.slots.retain(|slot| slot.session != session);
        }
        for (_, held) in out.extract_if(|_, held| held.session == session) {
            queues[held.queue as usize].take_back(&held);
        }
        let lost = sessions.remove(&session);
        drop(state);
        if let Some(lost) = lost {
            lost.cancel();
        }
        self.changed.notify_one();
    }

    pub(super) fn consume(
        &self,
        session: u64,
        queue: u32,
        prefetch: u16,
    ) -> Result<(u64, mpsc::UnboundedReceiver<Handed>), Lost> {
        let mut state = self.state();
        if !state.sessions.contains_key(&session) {
            return Err(Lost);
        }
        let id = state.new_id();
        // Bounded by the room of the slot.
        let (sender, receiver) = mpsc::unbounded_channel();
        state.queues[queue as usize].slots.push(Slot {
            id,
            session,
            // As with AMQP, 0 is no bound.
            prefetch: match prefetch {
                0 => usize::MAX,
                bound => bound.into(),
            },
            unacked: 0,
            held: 0,
            buffered: 0,
            sender,
        });
        drop(state);
        self.changed.notify_one();
        Ok((id, receiver))
    }

    /// Hands nothing more to a consumer; it keeps the deliveries that it has.
    pub(super) fn cancel(&self, queue: u32, consumer: u64) {
        let mut state = self.state();
        let slots = &mut state.queues[queue as usize].slots;
        slots.retain(|slot| slot.id != consumer);
    }

    /// Notes that a delivery has left the consumer's buffer for its reader.
    pub(super) fn unbuffer(&self, queue: u32, consumer: u64) {
        let mut state = self.state();
        let queue = &mut state.queues[queue as usize];
        if let Some(slot) = queue.slot(consumer) {
            slot.buffered = slot.buffered.saturating_sub(1);
        }
        let wake = queue.has_work(now_ms());
        drop(state);
        if wake {
            self.changed.notify_one();
        }
    }

    // --- How deliveries end ------------------------------------------------------------------

    /// Ends a delivery. The caller removes or moves the message.
    pub(super) fn end(&self, tag: u64) -> Result<Out, Lost> {
        let mut state = self.state();
        let out = state.out.remove(&tag).ok_or(Lost)?;
        let queue = &mut state.queues[out.queue as usize];
        if let Some(slot) = queue.slot(out.consumer) {
            slot.let_go(out.bytes);
        }
        let wake = queue.has_work(now_ms());
        drop(state);
        if wake {
            self.changed.notify_one();
        }
        Ok(out)
    }

    /// Puts a delivery back to its place.
    pub(super) fn requeue(&self, tag: u64) -> Result<(), Lost> {
        let mut state = self.state();
        let out = state.out.remove(&tag).ok_or(Lost)?;
        state.queues[out.queue as usize].take_back(&out);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// Takes the end of a delivery back. The delivery stays with its session, if that is still
    /// open.
    pub(super) fn undo_end(&self, tag: u64, out: Out) {
        let mut state = self.state();
        let queue = &mut state.queues[out.queue as usize];
        if let Some(slot) = queue.slot(out.consumer) {
            slot.hold(out.bytes);
        }
        if state.sessions.contains_key(&out.session) {
            state.out.insert(tag, out);
            return;
        }
        state.queues[out.queue as usize].take_back(&out);
        drop(state);
        self.changed.notify_one();
    }

    /// Whether a waiting message was handed out.
    pub(super) fn is_taken(&self, queue: u32, place: Place) -> bool {
        let state = self.state();
        let queue = state.queues.get(queue as usize);
        queue.is_some_and(|queue| queue.taken.contains(&place))
    }

    // --- Reports of the writer ---------------------------------------------------------------

    pub(super) fn committed(&self, changes: impl IntoIterator<Item = (u32, Change)>) {
        let mut state = self.state();
        for (number, change) in changes {
            // Retained queues are counted, not consumed.
            let Some(queue) = state.queues.get_mut(number as usize) else {
                continue;
            };
            queue.more_ready |= change.has_new;
            queue.next_due_ms = [queue.next_due_ms, change.next_due_ms]
                .into_iter()
                .flatten()
                .min();
            for place in change.gone {
                queue.taken.remove(&place);
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    /// The number below which all messages of a queue were handed out.
    pub(super) fn handed(&self, queue: u32) -> u64 {
        let state = self.state();
        state
            .queues
            .get(queue as usize)
            .map_or(0, |queue| queue.next_ready.max(queue.handed_before))
    }

    pub(super) fn stop(&self) {
        let mut state = self.state();
        state.stopped = true;
        let sessions: Vec<_> = state.sessions.keys().copied().collect();
        drop(state);
        for session in sessions {
            self.close_session(session);
        }
        self.changed.notify_all();
    }

    pub(super) fn usage(&self, queues: &Queues, name: &str) -> (Usage, u32) {
        let state = self.state();
        let mut usage = Usage::default();
        let number = queues.names.iter().position(|queue| queue == name);
        let Some(queue) = number.and_then(|number| state.queues.get(number)) else {
            return (usage, 0);
        };
        for out in state.out.values() {
            if Some(out.queue as usize) == number {
                match out.place {
                    Place::Ready(_) => usage.ready += 1,
                    Place::Waiting { .. } => usage.waiting += 1,
                }
            }
        }
        (usage, queue.slots.len() as u32)
    }

    // --- Steps of the dispatcher -------------------------------------------------------------

    /// Waits for a queue with messages and a consumer with room; None when the engine stops.
    pub(super) fn next_plan(&self) -> Option<Plan> {
        let mut state = self.state();
        loop {
            if state.stopped {
                return None;
            }
            let now = now_ms();
            if let Some(plan) = state.plan(now) {
                return Some(plan);
            }
            // A message that is due while no consumer has room is found when there is room.
            let due = state
                .queues
                .iter()
                .filter(|queue| queue.room() > 0)
                .filter_map(|queue| queue.next_due_ms)
                .min();
            match due {
                Some(due) => {
                    let wait = Duration::from_millis(due.saturating_sub(now).clamp(1, LOOK_MAX_MS));
                    self.changed.wait_for(&mut state, wait);
                }
                None => self.changed.wait(&mut state),
            }
        }
    }

    /// Hands out the messages that were read.
    pub(super) fn hand_out(&self, plan: &Plan, read: Read) {
        let mut state = self.state();
        let Read {
            found,
            gone,
            more_ready,
            next_due_ms,
        } = read;
        let queue = &mut state.queues[plan.queue as usize];
        queue.more_ready |= more_ready;
        queue.next_due_ms = [queue.next_due_ms, next_due_ms].into_iter().flatten().min();
        queue.returned.retain(|_, place| !gone.contains(place));
        for found in found {
            state.hand_out_one(plan.queue, found);
        }
    }

    /// Takes a plan back whose read failed: the next plan looks again.
    pub(super) fn undo_plan(&self, plan: &Plan) {
        let mut state = self.state();
        let queue = &mut state.queues[plan.queue as usize];
        queue.more_ready |= plan.ready_from.is_some();
        if plan.due {
            queue.next_due_ms = Some(0);
        }
        // No other event may wake the dispatcher, so it only pauses here, to give the disk a
        // moment.
        self.changed
            .wait_for(&mut state, Duration::from_millis(100));
    }
}

/// Longest wait without a look at the clock, which may be changed.
const LOOK_MAX_MS: u64 = 1000;

impl State {
    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn plan(&mut self, now_ms: u64) -> Option<Plan> {
        let count = self.queues.len();
        let number = (0..count)
            .map(|offset| (self.turn + offset) % count)
            .find(|number| self.queues[*number].has_work(now_ms))?;
        self.turn = number + 1;
        Some(self.queues[number].plan(number as u32, now_ms))
    }

    fn hand_out_one(&mut self, number: u32, found: Found) {
        let tag = self.new_id();
        let queue = &mut self.queues[number as usize];
        let count = queue.slots.len();
        let Some(at) = (0..count)
            .map(|offset| (queue.turn + offset) % count)
            .find(|at| queue.slots[*at].room() > 0)
        else {
            // The consumer that had room is gone; the message is found again.
            match found.place {
                Place::Ready(_) => queue.more_ready = true,
                Place::Waiting { .. } => queue.next_due_ms = Some(0),
            }
            return;
        };
        let redelivered = match found.place {
            Place::Ready(seq) => found.came_back || seq < queue.handed_before,
            Place::Waiting { .. } => found.came_back,
        };
        match found.place {
            _ if found.came_back => {
                queue.returned.retain(|_, place| *place != found.place);
            }
            Place::Ready(seq) => queue.next_ready = seq + 1,
            Place::Waiting { .. } => {
                queue.taken.insert(found.place);
            }
        }
        queue.turn = at + 1;
        let slot = &mut queue.slots[at];
        slot.hold(found.body.len());
        slot.buffered += 1;
        let out = Out {
            queue: number,
            place: found.place,
            arrived_ms: found.arrived_ms,
            bytes: found.body.len(),
            session: slot.session,
            consumer: slot.id,
        };
        let handed = Handed {
            tag,
            body: found.body,
            traceparent: found.traceparent,
            redelivered,
        };
        // A reader that is gone has not cancelled yet. It will, and requeues what it has not read.
        let _ = slot.sender.send(handed);
        self.out.insert(tag, out);
    }
}
