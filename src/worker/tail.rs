//! The tail of a delivery: it has no recipient left to call, and waits for its last answers. It then
//! leaves its place to another slice, so that a few slow calls do not keep a place that others could
//! use.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// Tells the scheduler when the tail of a delivery begins.
#[derive(Clone)]
pub(super) struct Tail {
    begun: Arc<AtomicBool>,
    changed: Arc<Notify>,
}

impl Tail {
    /// `changed` is notified when the tail begins.
    pub(super) fn new(changed: &Arc<Notify>) -> Self {
        Self {
            begun: Arc::default(),
            changed: Arc::clone(changed),
        }
    }

    pub(super) fn begin(&self) {
        if !self.begun.swap(true, Ordering::Relaxed) {
            self.changed.notify_one();
        }
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }
}
