//! Provides a broker and a store in memory, for tests of the worker in one process. They pass the
//! contract suite like the real engines. They use the runtime's time, which can be paused, and each
//! of their steps is an await point at which a test may inject a fault.
//!
//! - [`broker`]: queues, deliveries, the retry ladder, retained queues, sessions.
//! - [`ledger`]: jobs, claims and outcomes; `steering`: what operators change; `message_ids`: what
//!   targets call messages; [`store`]: the other ports of a store.

use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub(crate) mod broker;
pub(crate) mod ledger;
mod message_ids;
mod steering;
pub(crate) mod store;

pub(crate) use self::broker::MemoryBroker;
pub(crate) use self::store::MemoryStore;

/// A fault of a step of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "the contract suite has nothing go wrong")]
pub(crate) enum Fault {
    Nothing,
    /// It fails and has no effect.
    Before,
    /// It takes effect, and the answer is lost.
    After,
    /// The process dies before it.
    Death,
    /// The process dies after it.
    DeathAfter,
}

/// The course of a step of a port.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Course {
    pub(crate) takes: Duration,
    pub(crate) fault: Fault,
}

/// Decides the course of the steps of one process.
pub(crate) trait FaultPlan: Send + Sync + 'static {
    fn course(&self, step: &'static str) -> Course;

    /// Whether the process is alive.
    fn lives(&self) -> bool;
}

/// The access of one process to its ports.
#[derive(Clone, Default)]
pub(crate) struct Way(Option<Arc<dyn FaultPlan>>);

/// The step failed.
#[derive(Debug)]
pub(crate) struct Failed;

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a fault of the schedule")
    }
}

impl std::error::Error for Failed {}

impl Way {
    #[allow(dead_code, reason = "the contract suite has nothing go wrong")]
    pub(crate) fn with(fate: Arc<dyn FaultPlan>) -> Self {
        Self(Some(fate))
    }

    /// Takes a step with its planned course. For a dead process it never returns.
    pub(crate) async fn step<V>(
        &self,
        name: &'static str,
        act: impl FnOnce() -> V,
    ) -> Result<V, Failed> {
        let Some(fate) = &self.0 else {
            tokio::task::yield_now().await;
            return Ok(act());
        };
        let Course { takes, fault } = fate.course(name);
        match takes.is_zero() {
            true => tokio::task::yield_now().await,
            false => tokio::time::sleep(takes).await,
        }
        if !fate.lives() || fault == Fault::Death {
            return pending().await;
        }
        if fault == Fault::Before {
            return Err(Failed);
        }
        let value = act();
        match fault {
            Fault::After => Err(Failed),
            Fault::DeathAfter => pending().await,
            Fault::Nothing | Fault::Before | Fault::Death => Ok(value),
        }
    }
}

fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
