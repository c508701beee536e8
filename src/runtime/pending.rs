//! Knows how many recipients wait for each target in the whole cluster, so that no further job is
//! accepted for a target that is far behind.
//!
//! The process that counts for all (`census`) tells its figures in its heartbeats. A process whose
//! targets have a bound reads them there. They are some seconds old, so a bound may be exceeded by
//! what is accepted in this time.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::context::Context;
use crate::metrics::{ClusterFigures, LedgerStep};
use crate::ports::{Beat, LedgerError, Store};

/// How often the heartbeats are read.
const READ_AFTER: Duration = Duration::from_secs(2);

/// Recipients that wait, by target.
type ByTarget = BTreeMap<String, u64>;

#[derive(Default)]
pub(crate) struct PendingRecipients {
    /// What this process counted, if it counts for all.
    counted: Mutex<ByTarget>,
    /// What the process that counts said last.
    told: Mutex<ByTarget>,
    read: Mutex<Option<Instant>>,
}

impl<S, T> Context<S, T> {
    /// Notes the figures of a round of counting; none if another process counts.
    pub(crate) fn note_counted(&self, figures: Option<&ClusterFigures>) {
        let pending = figures.iter().flat_map(|figures| &figures.pending);
        let mut counted = ByTarget::new();
        for ((target, _), pending) in pending.filter(|(_, it)| it.recipients > 0) {
            *counted.entry(target.clone()).or_default() += pending.recipients;
        }
        *self.pending.counted.lock() = counted;
    }

    pub(crate) fn counted(&self) -> ByTarget {
        self.pending.counted.lock().clone()
    }

    /// The recipients that wait for a target, and its `pending_max`, if they are that many.
    pub fn too_many_pending(&self, target: &str) -> Option<(u64, u64)> {
        let pending_max = self.targets.get(target)?.pending_max?;
        let pending = self.pending.told.lock().get(target).copied()?;
        (pending >= pending_max).then_some((pending, pending_max))
    }
}

impl<S: Store, T> Context<S, T> {
    /// Reads the heartbeats, now and then, if a target has a bound.
    pub(crate) async fn read_pending(&self) -> Result<(), LedgerError> {
        let mut targets = self.targets.values();
        let bounded = targets.any(|target| target.pending_max.is_some());
        let read = *self.pending.read.lock();
        if !bounded || read.is_some_and(|at| at.elapsed() < READ_AFTER) {
            return Ok(());
        }
        let beats = self.try_step(LedgerStep::Count, self.store.beats()).await?;
        *self.pending.told.lock() = told(&beats);
        *self.pending.read.lock() = Some(Instant::now());
        Ok(())
    }
}

/// Two processes may count for some seconds.
fn told(beats: &[Beat]) -> ByTarget {
    let mut told = ByTarget::new();
    for (target, pending) in beats.iter().flat_map(|beat| &beat.pending) {
        let most = told.entry(target.clone()).or_default();
        *most = (*most).max(*pending);
    }
    told
}
