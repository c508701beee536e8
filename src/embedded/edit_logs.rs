//! What edits of a retained queue did, for those who follow it.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::ports::{RetainedMessage, Shown};

/// Most bytes of a log. A follower that takes no more reads the queue again.
const LOG_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Bytes that a follower should take soon.
const MUCH_BYTES: usize = 1024 * 1024;

/// The logs of all who follow a queue.
#[derive(Debug, Default)]
pub(super) struct EditLogs(Mutex<Vec<Weak<EditLog>>>);

/// What one follower has not taken yet.
#[derive(Debug, Default)]
pub(super) struct EditLog {
    waiting: Mutex<Waiting>,
    much: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    edits: VecDeque<Shown>,
    bytes: usize,
    /// Something is missing.
    lost: bool,
}

impl EditLogs {
    /// A log of all edits from now on.
    pub(super) fn follow(&self) -> Arc<EditLog> {
        let log = Arc::<EditLog>::default();
        let mut logs = self.0.lock();
        logs.retain(|log| log.strong_count() > 0);
        logs.push(Arc::downgrade(&log));
        log
    }

    /// Adds that a message with this body is gone, and the one that came in its place.
    pub(super) fn add(&self, gone: &Bytes, new: Option<&RetainedMessage>) {
        self.each(|log| {
            let edits = [Shown::Gone(gone.clone())].into_iter();
            log.add(edits.chain(new.cloned().map(Shown::Kept)));
        });
    }

    /// Has all followers read the queue again.
    pub(super) fn lose(&self) {
        self.each(|log| log.waiting.lock().lose());
    }

    fn each(&self, tell: impl Fn(&EditLog)) {
        let logs = self.0.lock();
        logs.iter()
            .filter_map(Weak::upgrade)
            .for_each(|log| tell(&log));
    }
}

impl EditLog {
    fn add(&self, edits: impl Iterator<Item = Shown>) {
        let mut waiting = self.waiting.lock();
        if waiting.lost {
            return;
        }
        for edit in edits {
            waiting.bytes += size_of::<Shown>()
                + match &edit {
                    Shown::Gone(body) => body.len(),
                    Shown::Kept(message) => message.body.len(),
                };
            waiting.edits.push_back(edit);
        }
        if waiting.bytes > LOG_BYTES_MAX {
            waiting.lose();
        }
        if waiting.bytes > MUCH_BYTES {
            self.much.notify_one();
        }
    }

    /// Takes what waits; nothing if something is missing.
    pub(super) fn take(&self) -> Option<VecDeque<Shown>> {
        let mut waiting = self.waiting.lock();
        waiting.bytes = 0;
        let edits = std::mem::take(&mut waiting.edits);
        (!waiting.lost).then_some(edits)
    }

    pub(super) async fn much_waits(&self) {
        self.much.notified().await;
    }
}

impl Waiting {
    fn lose(&mut self) {
        *self = Self {
            lost: true,
            ..Self::default()
        };
    }
}
