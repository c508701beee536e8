//! Brings slices back from the retry ladder as soon as a directive about them changes.
//!
//! A slice that waits looks at the directives when its time on the ladder is over, which may be half
//! an hour later. So each worker compares the directives before and after a change, and asks the
//! broker for the slices that must be looked at now: those of jobs that were cancelled, resumed,
//! moved or re-rated, and those of a target that was unparked.
//!
//! A delivery that did not know of the change may put its slice on the ladder a moment later, so the
//! worker asks once more after a while. A slice that stays nevertheless comes back when its time is
//! over: waking makes nothing right that would otherwise be wrong, it only makes it soon.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::session::WorkerSession;
use super::sleep_until;
use crate::clock::now_ms;
use crate::domain::directive::{Board, Scope, Subject};
use crate::domain::waking::Waking;
use crate::error::chain;
use crate::ports::{Broker, Publisher, Store};
use crate::runtime::context::Parking;

/// When the worker asks once more: every delivery knows of the change by then.
const ONCE_MORE: Duration = Duration::from_secs(3);

/// Wakes slices until the session ends.
pub(super) async fn wake<B: Broker, S: Store, T, P: Publisher>(
    session: &WorkerSession<S, T, P>,
    broker: &B,
) {
    let context = &*session.context;
    let mut changes = Changes::new(context.directives(), context.parked());
    let mut later: Option<(Instant, Waking)> = None;
    loop {
        let due = later.as_ref().map(|(at, _)| *at);
        let waking = tokio::select! {
            biased;
            () = session.halt.cancelled() => return,
            waking = changes.next() => {
                if waking.is_empty() {
                    continue;
                }
                let mut again = later.take().map(|(_, it)| it).unwrap_or_default();
                again.merge(waking.clone());
                later = Some((Instant::now() + ONCE_MORE, again));
                waking
            }
            () = sleep_until(due) => match later.take() {
                Some((_, waking)) => waking,
                None => continue,
            },
        };
        match session.halt.run_until_cancelled(broker.wake(&waking)).await {
            Some(Ok(0)) => {}
            Some(Ok(woken)) => tracing::debug!(woken, "slices came back from the retry ladder"),
            Some(Err(error)) => {
                tracing::warn!(error = %chain(&error), "the retry ladder could not be read, trying again");
                let mut again = later.take().map(|(_, it)| it).unwrap_or_default();
                again.merge(waking);
                later = Some((Instant::now() + ONCE_MORE, again));
            }
            None => return,
        }
    }
}

/// Follows the directives and the parked targets.
struct Changes {
    directives: watch::Receiver<Board>,
    parked: watch::Receiver<HashMap<String, Parking>>,
    board: Board,
    parks: HashMap<String, u64>,
}

impl Changes {
    /// Everything that stands now counts as new: another worker may have died before it asked.
    fn new(
        mut directives: watch::Receiver<Board>,
        mut parked: watch::Receiver<HashMap<String, Parking>>,
    ) -> Self {
        directives.mark_changed();
        parked.mark_changed();
        Self {
            directives,
            parked,
            board: Board::default(),
            parks: HashMap::new(),
        }
    }

    /// What must be looked at after the next change; perhaps nothing. Cancel safe.
    async fn next(&mut self) -> Waking {
        // The senders live in the context, so neither wait can fail.
        tokio::select! {
            _ = self.directives.changed() => {}
            _ = self.parked.changed() => {}
        }
        let now = now_ms();
        let board = self.directives.borrow_and_update().clone();
        let mut waking = Waking::between(&self.board, &board, now);
        self.board = board;
        let parks = self.parked.borrow_and_update();
        let parks: HashMap<_, _> = parks
            .iter()
            .map(|(target, it)| (target.clone(), it.park.until_ms))
            .collect();
        for (target, until_ms) in &self.parks {
            if *until_ms > now && !parks.contains_key(target) {
                waking.add(&Subject::new(Scope::Target, target.clone()));
            }
        }
        self.parks = parks;
        waking
    }
}
