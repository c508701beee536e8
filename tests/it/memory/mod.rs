//! A broker and a store in memory, for tests of the worker in one process. They pass the contract suite
//! like the real engines. Their time is that of the runtime, so that it can be paused, and every step of
//! them is an await point at which a test may have something go wrong.
//!
//! - [`broker`]: queues, deliveries, the retry ladder, retained, sessions.
//! - [`ledger`]: jobs, claims and outcomes; [`store`]: the other ports of a store.

use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub(crate) mod broker;
pub(crate) mod ledger;
pub(crate) mod store;

pub(crate) use self::broker::MemoryBroker;
pub(crate) use self::store::MemoryStore;

/// What goes wrong in a step of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "the contract suite has nothing go wrong")]
pub(crate) enum Fault {
    Nothing,
    /// It fails, and nothing was done.
    Before,
    /// It is done, and the answer is lost.
    After,
    /// The process dies before it.
    Death,
    /// The process dies after it.
    DeathAfter,
}

/// How a step of a port goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Course {
    pub(crate) takes: Duration,
    pub(crate) fault: Fault,
}

/// Who decides how the steps of one process go.
pub(crate) trait FaultPlan: Send + Sync + 'static {
    fn course(&self, step: &'static str) -> Course;

    /// Whether the process lives still.
    fn lives(&self) -> bool;
}

/// The way of one process to its ports.
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

    /// Takes a step, as it is to go. Of a process that is dead none returns.
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
