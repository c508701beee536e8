//! Tracks how old the directives are that this process knows, and which of its own a reading may have
//! missed.
//!
//! No call starts on directives that were read longer than [`AGE_MAX`] ago. A process that was
//! stopped, by a signal or with its machine, finds its directives too old when it goes on, and reads
//! them again before its next call. So a cancel or a pause holds for it from its first call on,
//! whichever of its tasks runs first.
//!
//! The age counts from the question, not from the answer, which may have waited for the process.
//! While the store does not answer within [`AGE_MAX`], calls wait for it, as claims do.
//!
//! A process knows a directive of its own at once. A reading that began before the store had it does
//! not end it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::context::Context;
use super::watch::POLL;
use crate::domain::directive::{Board, Directive};

/// The oldest directives on which a call may start: one reading may be missed.
pub(crate) const AGE_MAX: Duration = POLL.saturating_mul(2);

/// When the directives were read.
pub(crate) struct KnownDirectives {
    epoch: Instant,
    /// When the store was last asked for those that are known, in milliseconds since `epoch` and
    /// one more; 0 before the first answer.
    asked: AtomicU64,
    wanted: Notify,
    came: Notify,
    /// The directives of this process that a reading may have missed, with the time since when the
    /// store has them; `None` while it is told.
    own: Mutex<Vec<(Directive, Option<Instant>)>>,
}

impl Default for KnownDirectives {
    fn default() -> Self {
        Self {
            epoch: Instant::now(),
            asked: AtomicU64::new(0),
            wanted: Notify::new(),
            came: Notify::new(),
            own: Mutex::default(),
        }
    }
}

/// Dropped when the store was told, or could not be: from then on readings decide.
pub(super) struct Telling<'a> {
    known: &'a KnownDirectives,
    directive: &'a Directive,
}

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        let mut own = self.known.own.lock();
        for (_, told) in own.iter_mut().filter(|(it, _)| it == self.directive) {
            told.get_or_insert_with(Instant::now);
        }
    }
}

impl KnownDirectives {
    fn since_epoch(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.epoch).as_millis() as u64 + 1
    }

    fn are_new(&self, now: Instant) -> bool {
        // Who sees the time sees the directives that were taken over before it.
        let asked = self.asked.load(Ordering::Acquire);
        let age = self.since_epoch(now).saturating_sub(asked);
        asked > 0 && age <= AGE_MAX.as_millis() as u64
    }

    /// Notes a directive of this process, about which the store is being told.
    pub(super) fn telling<'a>(&'a self, directive: &'a Directive) -> Telling<'a> {
        self.own.lock().push((directive.clone(), None));
        Telling {
            known: self,
            directive,
        }
    }

    /// Adds to the directives that the store had at `asked` those of this process that it may not have
    /// had yet. Returns whether there were any.
    pub(super) fn add_own(&self, board: &mut Board, asked: Instant, now_ms: u64) -> bool {
        let mut own = self.own.lock();
        own.retain(|(_, told)| told.is_none_or(|at| at >= asked));
        let mut added = false;
        for (it, _) in own.iter() {
            let (scope, name) = (it.subject.scope, &it.subject.name);
            if board.find(scope, name, it.action.kind(), now_ms).is_none() {
                board.put(it.clone());
                added = true;
            }
        }
        added
    }

    /// Notes that the directives which the store had at `asked`, or later, are taken over.
    fn note(&self, asked: Instant) {
        self.asked.store(self.since_epoch(asked), Ordering::Release);
        self.came.notify_waiters();
    }

    async fn until_new(&self) {
        loop {
            // It hears of what comes from here on.
            let came = self.came.notified();
            if self.are_new(Instant::now()) {
                return;
            }
            self.wanted.notify_one();
            came.await;
        }
    }
}

impl<S, T> Context<S, T> {
    /// Whether the directives are new enough for a call to start.
    pub(crate) fn directives_are_new(&self, now: Instant) -> bool {
        self.known_directives.are_new(now)
    }

    /// Waits until they are; has them read at once. Cancel safe.
    pub(crate) async fn until_directives_are_new(&self) {
        self.known_directives.until_new().await;
    }

    /// Notes that the directives which the store had at `asked`, or later, are taken over.
    pub(super) fn note_directives_read(&self, asked: Instant) {
        self.known_directives.note(asked);
    }

    /// Waits until it is time to read them again.
    pub(super) async fn until_directives_are_wanted(&self) {
        let _ = timeout(POLL, self.known_directives.wanted.notified()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::directive::{Action, Kind, Scope, Subject};

    #[test]
    fn directives_are_new_for_as_long_as_one_reading_may_be_missed() {
        let known = KnownDirectives::default();
        let asked = Instant::now();
        assert!(
            !known.are_new(asked),
            "none are known before the first answer"
        );
        known.note(asked);
        let old = AGE_MAX + Duration::from_millis(2);
        assert!(known.are_new(asked) && known.are_new(asked + AGE_MAX - Duration::from_millis(2)));
        assert!(!known.are_new(asked + old));
        known.note(asked + old);
        assert!(known.are_new(asked + old));
    }

    #[test]
    fn a_reading_ends_no_directive_that_it_may_have_missed() {
        let known = KnownDirectives::default();
        let pause = Directive {
            subject: Subject::new(Scope::Job, "j".to_owned()),
            action: Action::Pause,
            reason: None,
            author: None,
            since_ms: 1,
            until_ms: None,
        };
        let read = |asked: Instant| {
            let mut board = Board::new([]);
            let added = known.add_own(&mut board, asked, 2);
            let stands = board.find(Scope::Job, "j", Kind::Pause, 2).is_some();
            assert_eq!(added, stands, "the reading lists none itself");
            stands
        };
        let before = Instant::now();
        let telling = known.telling(&pause);
        assert!(read(Instant::now()), "the store is being told");
        drop(telling);
        assert!(read(before), "it began before the store had it");
        assert!(!read(Instant::now() + Duration::from_millis(1)));
        assert!(!read(before), "what a reading has ended stays so");
    }

    /// An answer that waited for a process that was stopped is as old as its question.
    #[tokio::test]
    async fn an_answer_that_came_late_is_asked_for_again() {
        let asked = Instant::now().checked_sub(AGE_MAX * 3).unwrap();
        let known = KnownDirectives {
            epoch: asked,
            ..KnownDirectives::default()
        };
        let answers = async {
            for asked in [asked, Instant::now()] {
                known.wanted.notified().await;
                known.note(asked);
            }
        };
        tokio::join!(known.until_new(), answers);
        assert!(known.are_new(Instant::now()));
    }
}
