//! Takes slices off the retry ladder before their time.

use std::ops::Bound;
use std::sync::Arc;

use redb::ReadTransaction;

use super::Engine;
use super::deliveries::Place;
use super::disk::StorageError;
use super::tables::{Message, WAITING};
use super::writer::WriteContext;
use crate::clock::now_ms;
use crate::domain::waking::Waking;

/// Messages that one read looks at, and those that one commit moves at most.
const LOOKED_AT: usize = 1000;

/// Messages that are due so soon are left alone.
const SOON_MS: u64 = 200;

/// The place of a waiting message: queue, due time and number.
type Waits = (u32, u64, u64);

/// Makes every waiting message that `waking` takes due now. Returns how many there were.
pub(super) async fn wake(engine: &Engine, waking: &Waking) -> Result<u64, StorageError> {
    let waking = Arc::new(waking.clone());
    let mut after = (0, 0, 0);
    let mut woken = 0;
    loop {
        let look = Arc::clone(&waking);
        let read = engine.0.read(move |it| page(it, after, &look)).await;
        let (found, next) = read?;
        if !found.is_empty() {
            let deliveries = Arc::clone(&engine.0.deliveries);
            let moved = engine.0.write(0, move |work| {
                let is_free = |(queue, due_ms, seq): &Waits| {
                    let (due_ms, seq) = (*due_ms, *seq);
                    !deliveries.is_taken(*queue, Place::Waiting { due_ms, seq })
                };
                make_due(work, found.iter().copied().filter(is_free))
            });
            woken += moved.await?;
        }
        match next {
            Some(next) => after = next,
            None => return Ok(woken),
        }
    }
}

/// The next waiting messages that `waking` takes, and where to go on.
fn page(
    transaction: &ReadTransaction,
    after: Waits,
    waking: &Waking,
) -> Result<(Vec<Waits>, Option<Waits>), StorageError> {
    let soon = now_ms() + SOON_MS;
    let mut found = Vec::new();
    let mut looked_at = 0;
    let from = (Bound::Excluded(after), Bound::Unbounded);
    for row in transaction.open_table(WAITING)?.range::<Waits>(from)? {
        let (key, row) = row?;
        let key = key.value();
        if key.1 > soon && waking.takes(Message::decode(row.value())?.body) {
            found.push(key);
        }
        looked_at += 1;
        if looked_at == LOOKED_AT {
            return Ok((found, Some(key)));
        }
    }
    Ok((found, None))
}

fn make_due(
    work: &mut WriteContext<'_>,
    places: impl Iterator<Item = Waits>,
) -> Result<u64, StorageError> {
    let now_ms = work.now_ms;
    let mut moved = 0;
    for (queue, due_ms, seq) in places {
        let waiting = work.tables.waiting.open()?;
        let row = waiting.remove((queue, due_ms, seq))?;
        let Some(row) = row.map(|row| row.value().to_vec()) else {
            continue;
        };
        waiting.insert((queue, now_ms, seq), row.as_slice())?;
        let change = work.change(queue);
        let next = change.next_due_ms.map_or(now_ms, |next| next.min(now_ms));
        change.next_due_ms = Some(next);
        moved += 1;
    }
    Ok(moved)
}
