//! Runs the thread that reads messages for consumers, never more than they have room for.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use redb::{AccessGuard, ReadOnlyTable};

use super::deliveries::{Deliveries, Found, HELD_BYTES_MAX, Place, Plan, Read};
use super::disk::{Disk, StorageError};
use super::tables::{Message, READY, WAITING};

pub(super) fn start(deliveries: Arc<Deliveries>, disk: Arc<Disk>) -> io::Result<JoinHandle<()>> {
    thread::Builder::new()
        .name("fanwise-dispatch".to_owned())
        .spawn(move || run(&deliveries, &disk))
}

fn run(deliveries: &Deliveries, disk: &Disk) {
    // However the thread ends, no consumer waits for a delivery that never comes.
    struct Stop<'a>(&'a Deliveries);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.stop();
        }
    }
    let _stop = Stop(deliveries);
    let mut failing = false;
    while let Some(plan) = deliveries.next_plan() {
        match disk.guarded(|| read(disk, &plan)) {
            Ok(read) => {
                failing = false;
                deliveries.hand_out(&plan, read);
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(%error, "messages cannot be read, trying again");
                }
                failing = true;
                deliveries.undo_plan(&plan);
            }
        }
    }
}

/// A row with its place and its arrival.
type Row = (Arrival, Place, AccessGuard<'static, &'static [u8]>);

/// Decides the order: when a message arrived in its queue or came due there, and its number.
type Arrival = (u64, u64);

fn read(disk: &Disk, plan: &Plan) -> Result<Read, StorageError> {
    let transaction = disk.begin_read()?;
    let ready = transaction.open_table(READY)?;
    let waiting = transaction.open_table(WAITING)?;
    let mut read = Read::default();
    let mut found = Vec::with_capacity(plan.room);
    let mut bytes = 0;
    for place in &plan.returned {
        if is_full(plan, found.len(), bytes) {
            break;
        }
        let row = match *place {
            Place::Ready(seq) => ready.get((plan.queue, seq))?,
            Place::Waiting { due_ms, seq } => waiting.get((plan.queue, due_ms, seq))?,
        };
        match row {
            Some(row) => {
                bytes += row.value().len();
                found.push(take(*place, true, &row)?);
            }
            None => read.gone.push(*place),
        }
    }
    let mut ready = ready_rows(&ready, plan)?.into_iter().peekable();
    let mut due = due_rows(&waiting, plan, &mut read)?.into_iter().peekable();
    while !is_full(plan, found.len(), bytes) {
        let next = match (ready.peek(), due.peek()) {
            (Some(first), Some(second)) if second.0 < first.0 => due.next(),
            (Some(_), _) => ready.next(),
            (None, _) => due.next(),
        };
        let Some((_, place, row)) = next else { break };
        bytes += row.value().len();
        found.push(take(place, false, &row)?);
    }
    // The next plan finds the rest.
    read.more_ready = is_full(plan, found.len(), bytes);
    if let Some((_, Place::Waiting { due_ms, .. }, _)) = due.peek() {
        read.next_due_ms = Some(*due_ms);
    }
    read.found = found;
    Ok(read)
}

/// Whether this is as much as one read takes, in messages or in bytes.
fn is_full(plan: &Plan, messages: usize, bytes: usize) -> bool {
    messages >= plan.room || bytes >= HELD_BYTES_MAX
}

/// The next ready messages, in the order of their numbers. Even if the clock was set back, no
/// message may overtake another, or the other would be skipped.
fn ready_rows(
    table: &ReadOnlyTable<(u32, u64), &'static [u8]>,
    plan: &Plan,
) -> Result<Vec<Row>, StorageError> {
    let mut rows = Vec::new();
    let Some(from) = plan.ready_from else {
        return Ok(rows);
    };
    let (mut latest, mut bytes) = (0, 0);
    for entry in table.range((plan.queue, from)..=(plan.queue, u64::MAX))? {
        if is_full(plan, rows.len(), bytes) {
            break;
        }
        let (key, row) = entry?;
        bytes += row.value().len();
        let seq = key.value().1;
        latest = Message::decode(row.value())?.published_ms.max(latest);
        rows.push(((latest, seq), Place::Ready(seq), row));
    }
    Ok(rows)
}

/// The next waiting messages that are due.
fn due_rows(
    table: &ReadOnlyTable<(u32, u64, u64), &'static [u8]>,
    plan: &Plan,
    read: &mut Read,
) -> Result<Vec<Row>, StorageError> {
    let (mut rows, mut bytes) = (Vec::new(), 0);
    if !plan.due {
        return Ok(rows);
    }
    let queue = plan.queue;
    for entry in table.range((queue, 0, 0)..=(queue, u64::MAX, u64::MAX))? {
        let (key, row) = entry?;
        let (_, due_ms, seq) = key.value();
        let place = Place::Waiting { due_ms, seq };
        if plan.taken.contains(&place) {
            continue;
        }
        if due_ms > plan.now_ms || is_full(plan, rows.len(), bytes) {
            read.next_due_ms = Some(due_ms);
            break;
        }
        bytes += row.value().len();
        rows.push(((due_ms, seq), place, row));
    }
    Ok(rows)
}

fn take(
    place: Place,
    came_back: bool,
    row: &AccessGuard<'_, &'static [u8]>,
) -> Result<Found, StorageError> {
    let message = Message::decode(row.value())?;
    let arrived_ms = match place {
        Place::Ready(_) => message.published_ms,
        Place::Waiting { due_ms, .. } => due_ms,
    };
    Ok(Found {
        place,
        arrived_ms,
        body: message.body(),
        traceparent: message.with()?.traceparent,
        came_back,
    })
}
