//! Brings slices and jobs back from the retry ladder as soon as a directive about them changes.
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
use crate::runtime::context::{Context, Parking};

/// When the worker asks once more: every delivery knows of the change by then.
const ONCE_MORE: Duration = Duration::from_secs(3);

/// The changes that are to be asked for. They outlive a session: an operator may change something while
/// the broker is away.
pub(super) struct Wakes {
    changes: Changes,
    /// What is asked for once more, and when.
    later: Option<(Instant, Waking)>,
}

impl Wakes {
    pub(super) fn new<S: Store, T>(context: &Context<S, T>) -> Self {
        Self {
            changes: Changes::new(context.directives(), context.parked()),
            later: None,
        }
    }

    fn ask_once_more(&mut self, waking: Waking) {
        let mut all = self.later.take().map(|(_, it)| it).unwrap_or_default();
        all.merge(waking);
        self.later = Some((Instant::now() + ONCE_MORE, all));
    }
}

/// Wakes slices until the session ends.
pub(super) async fn wake<B: Broker, S: Store, T, P: Publisher>(
    session: &WorkerSession<S, T, P>,
    broker: &B,
    wakes: &mut Wakes,
) {
    loop {
        let due = wakes.later.as_ref().map(|(at, _)| *at);
        let waking = tokio::select! {
            biased;
            () = session.halt.cancelled() => return,
            waking = wakes.changes.next() => {
                if waking.is_empty() {
                    continue;
                }
                wakes.ask_once_more(waking.clone());
                waking
            }
            () = sleep_until(due) => match wakes.later.take() {
                Some((_, waking)) => waking,
                None => continue,
            },
        };
        match session.halt.run_until_cancelled(broker.wake(&waking)).await {
            Some(Ok(0)) => {}
            Some(Ok(woken)) => tracing::debug!(woken, "slices came back from the retry ladder"),
            Some(Err(error)) => {
                tracing::warn!(error = %chain(&error), "the retry ladder could not be read, trying again");
                wakes.ask_once_more(waking);
            }
            None => return wakes.ask_once_more(waking),
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;
    use crate::domain::directive::{Action, Directive};
    use crate::ports::{Backlog, BrokerError, Directed};
    use crate::worker::tests::{BrokenSession, Folder, session_of};

    /// A broker that notes which slices are to come back, and may not answer.
    #[derive(Clone)]
    struct Ladder {
        asked: Arc<Mutex<Vec<Waking>>>,
        answers: bool,
    }

    impl Broker for Ladder {
        type Session = BrokenSession;

        async fn backlog(&self) -> Result<Backlog, BrokerError> {
            Ok(Backlog::default())
        }

        async fn wake(&self, waking: &Waking) -> Result<u64, BrokerError> {
            self.asked.lock().push(waking.clone());
            match self.answers {
                true => Ok(1),
                false => std::future::pending().await,
            }
        }

        async fn connect(&self) -> Result<BrokenSession, BrokerError> {
            unreachable!("it is connected")
        }
    }

    /// A resume while there is no session brings the paused slices back in the next one. If that is
    /// lost before the broker answers, it is asked for again.
    #[tokio::test]
    async fn a_change_between_two_sessions_is_asked_for_in_the_next() {
        let folder = Folder::new("wake");
        let context = folder.context();
        let mut wakes = Wakes::new(&context);
        let mut asked_in_session = async |all: Vec<Directive>, answers: bool| {
            context.note_directives(Directed { version: 1, all }, Instant::now());
            let session = session_of(&context);
            let asked = Arc::default();
            let broker = Ladder {
                asked: Arc::clone(&asked),
                answers,
            };
            // The session ends when all that can be done at once is done.
            let ends = async { session.halt.cancel() };
            tokio::join!(wake(&session, &broker, &mut wakes), ends);
            let waits = wakes.later.as_ref().map(|(_, it)| it.clone());
            (std::mem::take(&mut *asked.lock()), waits)
        };
        let shop = Subject::new(Scope::App, "shop");
        let pause = Directive {
            subject: shop.clone(),
            action: Action::Pause,
            reason: None,
            author: None,
            since_ms: 1,
            until_ms: None,
        };
        let mut paused = Waking::default();
        paused.add(&shop);
        let nothing = asked_in_session(vec![pause], true).await;
        assert_eq!(nothing, (Vec::new(), None));
        let lost = asked_in_session(Vec::new(), false).await;
        assert_eq!(lost, (vec![paused.clone()], Some(paused.clone())));
        let other = asked_in_session(Vec::new(), true).await;
        assert_eq!(other, (Vec::new(), Some(paused)), "it is not forgotten");
    }
}
