//! Keeps outcomes that are known but were not recorded in the ledger when the session of their
//! delivery was lost. The backlog tries them again as long as the process lives, and before any
//! further claim, so that no delivery treats as a doubt what this process knows.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::context::{Context, RECONNECT};
use crate::domain::ids::{Fingerprint, Owner, SliceId};
use crate::domain::message_id::KeptId;
use crate::domain::outcome::Outcome;
use crate::domain::slice::{Head, Shape};
use crate::error::chain;
use crate::metrics::LedgerStep;
use crate::ports::{LedgerError, Reason, Settle, SliceRef, Store};

/// Most recipients that the backlog keeps, at some 30 bytes each, and 100 with an id. It reaches this number only if
/// the ledger stays down while sessions are lost again and again.
const RECIPIENTS_MAX: usize = 100_000;

/// The unrecorded results of one delivery.
pub(crate) struct UnrecordedDelivery {
    pub(crate) head: Arc<Head>,
    pub(crate) id: SliceId,
    pub(crate) entries: u32,
    pub(crate) shape: Shape,
    pub(crate) owner: Owner,
    pub(crate) outcomes: Vec<(Fingerprint, Outcome)>,
    /// The ids of messages to some of these recipients.
    pub(crate) ids: Vec<(Fingerprint, KeptId)>,
    pub(crate) release: Vec<Fingerprint>,
    pub(crate) doubted: Vec<Fingerprint>,
    /// Claims that were asked for and not answered.
    pub(crate) unused: Vec<Fingerprint>,
    /// Of recipients that stay claimed because their dead letter is not written.
    pub(crate) reasons: Vec<(Fingerprint, Reason)>,
}

impl UnrecordedDelivery {
    fn recipients(&self) -> usize {
        let claims = self.release.len() + self.doubted.len() + self.unused.len();
        self.outcomes.len() + claims + self.reasons.len()
    }

    fn settle(&self) -> Settle<'_> {
        let slice = SliceRef {
            head: &self.head,
            id: &self.id,
            entries: self.entries,
            shape: self.shape,
        };
        // Does not end the slice: the slice comes back, and its next delivery ends it.
        Settle {
            outcomes: &self.outcomes,
            ids: &self.ids,
            release: &self.release,
            doubted: &self.doubted,
            unused: &self.unused,
            ..Settle::of(slice, self.owner)
        }
    }
}

#[derive(Default)]
pub(crate) struct Backlog {
    waiting: Mutex<VecDeque<Arc<UnrecordedDelivery>>>,
    /// Held by the one task that empties it.
    turn: tokio::sync::Mutex<()>,
    news: Notify,
}

impl Backlog {
    fn waiting(&self) -> MutexGuard<'_, VecDeque<Arc<UnrecordedDelivery>>> {
        self.waiting.lock()
    }
}

impl<S: Store, T> Context<S, T> {
    /// Takes over the results that a delivery knows and could not record.
    pub(crate) fn hand_over(&self, unrecorded: UnrecordedDelivery) {
        let recipients = unrecorded.recipients();
        if recipients == 0 {
            return;
        }
        let mut waiting = self.backlog.waiting();
        let held: usize = waiting.iter().map(|it| it.recipients()).sum();
        if held + recipients > RECIPIENTS_MAX {
            tracing::error!(
                job.id = %unrecorded.head.id, recipients,
                "the ledger and the broker are down, and more outcomes wait for them than are \
                 kept: these recipients end as uncertain, or are called again"
            );
            return;
        }
        waiting.push_back(Arc::new(unrecorded));
        self.backlog.news.notify_one();
    }

    /// Records the results that earlier deliveries of this process left, oldest first.
    pub(crate) async fn catch_up(&self) -> Result<(), LedgerError> {
        if self.backlog.waiting().is_empty() {
            return Ok(());
        }
        let _turn = self.backlog.turn.lock().await;
        loop {
            let Some(unrecorded) = self.backlog.waiting().front().cloned() else {
                return Ok(());
            };
            match self.record_overdue(&unrecorded).await {
                Ok(()) => {}
                Err(error @ LedgerError::Broken(_)) => tracing::error!(
                    job.id = %unrecorded.head.id, error = %chain(&error),
                    "outcomes cannot be recorded: their recipients end as uncertain, or are called again"
                ),
                Err(error) => return Err(error),
            }
            self.backlog.waiting().pop_front();
        }
    }

    async fn record_overdue(&self, unrecorded: &UnrecordedDelivery) -> Result<(), LedgerError> {
        if !unrecorded.reasons.is_empty() {
            let reasons = self
                .store
                .record_reasons(unrecorded.head.id, &unrecorded.reasons);
            self.try_step(LedgerStep::Settle, reasons).await?;
        }
        let settle = self.store.settle(unrecorded.settle());
        self.try_step(LedgerStep::Settle, settle).await?;
        if let Some(target) = self.targets.get(&unrecorded.head.target) {
            let outcomes = unrecorded.outcomes.iter().map(|(_, outcome)| *outcome);
            self.count_outcomes(target, &unrecorded.head, outcomes);
        }
        Ok(())
    }

    /// Empties the backlog whenever it gets an entry; returns when it is empty and `end` is
    /// cancelled.
    pub(crate) async fn keep_catching_up(&self, end: &CancellationToken) {
        let mut delays = RECONNECT.delays();
        loop {
            match self.catch_up().await {
                Err(_) => tokio::time::sleep(delays.next_delay()).await,
                Ok(()) => {
                    delays.reset();
                    tokio::select! {
                        biased;
                        () = self.backlog.news.notified() => {}
                        () = end.cancelled() => return,
                    }
                }
            }
        }
    }
}
