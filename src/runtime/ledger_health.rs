//! Tracks whether the ledger takes writes, for the lanes, for readiness and for the metric.
//!
//! Twice a second a heartbeat writes what a claim would write, on the runtime that does the work.
//! An error of any step takes effect at once, and only a heartbeat that succeeds clears it. So
//! reads that a replica or a full server still answers prove nothing, and neither does an old
//! heartbeat: a server that is frozen, or a runtime that is blocked, is not ready.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio::time::Instant;

use super::context::Context;
use super::watch::Role;
use crate::error::chain;
use crate::metrics::LedgerStep;
use crate::ports::{Beat, Beaten, LedgerError, Store};

/// An older heartbeat proves nothing.
const FRESH: Duration = Duration::from_secs(2);

/// A process that was stopped for this long starts a new row of heartbeats: the store may have
/// dropped its last one.
const ROW_MAX: Duration = Duration::from_secs(3600);

/// The state of the ledger as this process knows it.
#[derive(Default)]
pub(crate) struct LedgerHealth {
    up: watch::Sender<bool>,
    state: Mutex<State>,
    /// Number of steps that were recorded.
    recorded: AtomicU64,
}

#[derive(Default)]
struct State {
    beaten: Option<Instant>,
    /// Why the last step failed, as text.
    fault: Option<String>,
}

impl LedgerHealth {
    pub(crate) fn up(&self) -> watch::Receiver<bool> {
        self.up.subscribe()
    }

    pub(crate) fn is_up(&self) -> bool {
        *self.up.borrow()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Counts a step that is lost if the ledger goes back to older data.
    pub(crate) fn note_recorded(&self, step: LedgerStep) {
        use LedgerStep::{Accept, Claim, Complete, Expanded, Settle};
        if matches!(step, Accept | Expanded | Claim | Settle | Complete) {
            self.recorded.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Notes an error, or a heartbeat that succeeded (`None`). Returns whether the state changed.
    fn note(&self, fault: Option<String>) -> bool {
        let up = fault.is_none();
        let mut state = self.state();
        if up {
            state.beaten = Some(Instant::now());
        }
        state.fault = fault;
        drop(state);
        self.up
            .send_if_modified(|state| std::mem::replace(state, up) != up)
    }

    /// Why nothing can be recorded now, if so.
    fn check(&self, now: Instant) -> Result<(), String> {
        let state = self.state();
        if let Some(fault) = &state.fault {
            return Err(fault.clone());
        }
        let Some(beaten) = state.beaten else {
            return Err("the ledger has not answered yet".to_owned());
        };
        let age = now.saturating_duration_since(beaten);
        if age <= FRESH {
            return Ok(());
        }
        let seconds = age.as_secs();
        Err(format!(
            "the ledger has taken no write for {seconds} s, or this process hangs"
        ))
    }
}

impl<S: Store, T> Context<S, T> {
    /// Notes an error: the ledger is down from now on. A single record that makes no sense does not
    /// count, since the others are fine. Logs only when the state changes, so that an outage is two
    /// lines, not one per slice.
    pub(crate) fn note_fault(&self, error: &LedgerError) {
        if matches!(error, LedgerError::Broken(_)) {
            return;
        }
        if self.ledger_health.note(Some(chain(error))) {
            self.metrics.ledger_up(false);
            tracing::error!(
                error = %chain(error),
                "the ledger is down: lanes stop until it takes writes, nothing is lost"
            );
        }
    }

    pub(crate) fn note_went_back(&self) {
        self.metrics.ledger_went_back();
        tracing::error!(
            "the ledger went back: it has lost its latest records. Running jobs are marked; \
             `fanwise job verify` says which of their outcomes are not known"
        );
    }

    fn note_beat(&self) {
        if self.ledger_health.note(None) {
            self.metrics.ledger_up(true);
            tracing::info!("the ledger takes writes");
        }
    }
}

impl<S, T> Context<S, T> {
    /// Changes with every step that was recorded.
    pub(crate) fn recorded(&self) -> u64 {
        self.ledger_health.recorded.load(Ordering::Relaxed)
    }

    /// Why the ledger takes no writes now, if so.
    pub fn check_ledger(&self) -> Result<(), String> {
        self.ledger_health.check(Instant::now())
    }

    /// Brings the metric up to date, since a ledger that hangs reports no error.
    pub fn show_ledger(&self) {
        self.metrics.ledger_up(self.check_ledger().is_ok());
    }
}

/// The heartbeats of this process, one after the other.
pub(crate) struct Heartbeats {
    beat: Beat,
    answered: Instant,
}

impl Heartbeats {
    pub(crate) fn new(role: Role, process: u64) -> Self {
        Self {
            beat: Beat {
                process,
                number: 0,
                works: role == Role::Worker,
                calls: BTreeMap::new(),
                at_broker: None,
                jobs: BTreeMap::new(),
                pending: BTreeMap::new(),
            },
            answered: Instant::now(),
        }
    }

    /// Sends the next heartbeat. `Err`: nothing can be recorded now.
    pub(crate) async fn beat<S: Store, T>(
        &mut self,
        context: &Context<S, T>,
    ) -> Result<(), LedgerError> {
        if self.answered.elapsed() > ROW_MAX {
            self.beat.number = 0;
        }
        self.beat.calls = context.calls_under_way();
        self.beat.pending = context.counted();
        if self.beat.works {
            self.beat.at_broker = Some(context.at_broker.load(Ordering::Relaxed));
            self.beat.jobs = context.jobs_at_work();
        }
        let beat = context.store.beat(&self.beat);
        let Beaten { number, went_back } = context.try_step(LedgerStep::Beat, beat).await?;
        self.beat.number = number;
        self.answered = Instant::now();
        if went_back {
            context.note_went_back();
        }
        context.note_beat();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Readiness depends on heartbeats: an error ends it at once, missing heartbeats end it after a
    /// while, and only a heartbeat brings it back.
    #[test]
    fn only_a_fresh_heartbeat_makes_ready() {
        let health = LedgerHealth::default();
        let now = Instant::now();
        assert!(health.check(now).is_err(), "nothing was heard yet");
        assert!(health.note(None));
        assert!(!health.note(None), "a state is told once");
        let now = Instant::now();
        assert_eq!(health.check(now), Ok(()));
        assert_eq!(
            health.check(now + FRESH - Duration::from_millis(100)),
            Ok(())
        );
        assert!(health.check(now + FRESH * 2).is_err(), "it hangs");
        assert!(*health.up().borrow(), "and nobody has said so");
        assert!(health.note(Some("the ledger is full".to_owned())));
        assert_eq!(health.check(now), Err("the ledger is full".to_owned()));
        assert!(!*health.up().borrow());
    }
}
