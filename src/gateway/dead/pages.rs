//! Pages of dead letters, from a copy that the gateway keeps while somebody reads pages.
//!
//! RabbitMQ hands out a queue only as a whole, so the first page of a listing copies all letters.
//! Further pages read the same copy: a listing costs one reading of the queue, and is that of one
//! moment. First pages that are asked for at the same time share a copy. Requests that change
//! letters through this gateway end the copy.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::copy::{Copy, Writing};
use crate::domain::letters::{DeadRow, Key, LetterFilter, Window};
use crate::gateway::problem::Refusal;
use crate::gateway::spool::full;
use crate::ports::{RetainedMessage, RetainedQueue, RetainedQueues};

/// A listing reads one copy for this long at most.
const AGE_MAX: Duration = Duration::from_secs(600);

/// A copy that nobody reads for this long gives its disk space back.
const IDLE_MAX: Duration = Duration::from_secs(120);

/// Keeps the copy.
pub(in crate::gateway) struct Pages {
    folder: PathBuf,
    held: Arc<Mutex<Option<Held>>>,
    /// One request copies; the others wait for its copy.
    copying: tokio::sync::Mutex<()>,
    /// Ends the copy.
    idle: Mutex<JoinSet<()>>,
    /// How often letters were changed through this gateway.
    changes: AtomicU64,
}

#[derive(Clone)]
struct Held {
    copy: Arc<Copy>,
    /// When the copying began.
    began: Instant,
    used: Instant,
}

impl Pages {
    pub(in crate::gateway) fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            held: Arc::default(),
            copying: tokio::sync::Mutex::new(()),
            idle: Mutex::default(),
            changes: AtomicU64::new(0),
        }
    }

    /// Letters are going to change, or have changed.
    pub(in crate::gateway) fn end(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
        *self.held.lock() = None;
    }

    /// The rows at or after a place, before the ledger is asked.
    pub(super) async fn page<B: RetainedQueues>(
        &self,
        broker: &B,
        wanted: &LetterFilter,
        from: Option<Key>,
        most: usize,
        with_content: bool,
    ) -> Result<Window<DeadRow>, Refusal> {
        let copy = self.copy(broker, from.is_some()).await?;
        let page = || copy.page(wanted, from, most, with_content);
        tokio::task::block_in_place(page).map_err(|error| full(&error))
    }

    /// A copy for a page. `further`: a page of a listing that has begun.
    async fn copy<B: RetainedQueues>(
        &self,
        broker: &B,
        further: bool,
    ) -> Result<Arc<Copy>, Refusal> {
        let asked = Instant::now();
        if let Some(held) = self.usable().filter(|_| further) {
            return Ok(held.copy);
        }
        let _turn = self.copying.lock().await;
        match self.usable().filter(|held| held.began >= asked) {
            Some(held) => Ok(held.copy),
            None => self.make(broker).await,
        }
    }

    fn usable(&self) -> Option<Held> {
        let mut held = self.held.lock();
        let held = held.as_mut().filter(|it| it.began.elapsed() < AGE_MAX)?;
        held.used = Instant::now();
        Some(held.clone())
    }

    async fn make<B: RetainedQueues>(&self, broker: &B) -> Result<Arc<Copy>, Refusal> {
        let (began, changes) = (Instant::now(), self.changes.load(Ordering::Relaxed));
        let mut writing = Writing::create(&self.folder).map_err(|error| full(&error))?;
        let mut failed = None;
        let visit = |message: RetainedMessage| match writing.add(&message.body) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        };
        broker.read(RetainedQueue::Dead, visit).await?;
        let copy = failed.map_or_else(|| writing.finish(), Err);
        let copy = Arc::new(copy.map_err(|error| full(&error))?);
        let mut held = self.held.lock();
        // Letters that changed meanwhile are shown as they were, and only in this page.
        if self.changes.load(Ordering::Relaxed) == changes {
            *held = Some(Held {
                copy: Arc::clone(&copy),
                began,
                used: Instant::now(),
            });
            let mut idle = self.idle.lock();
            idle.abort_all();
            while idle.try_join_next().is_some() {}
            idle.spawn(end_when_idle(Arc::clone(&self.held)));
        }
        Ok(copy)
    }
}

/// Ends a copy that nobody has read for a while.
async fn end_when_idle(held: Arc<Mutex<Option<Held>>>) {
    loop {
        sleep(IDLE_MAX).await;
        let mut held = held.lock();
        let is_read = |it: &Held| it.used.elapsed() < IDLE_MAX;
        if !held.as_ref().is_some_and(is_read) {
            *held = None;
            return;
        }
    }
}
