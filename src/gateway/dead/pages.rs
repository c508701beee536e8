//! Pages of dead letters, from a copy that the gateway keeps up to date.
//!
//! A retained queue has no index, and RabbitMQ hands it out only as a whole, to one reader at a
//! time. So one task copies all letters once, follows the queue from then on, and gives the copy to
//! each request for a page. Before each page it catches up, so a page has every letter that was
//! published before it was asked for, and none that was removed through Fanwise before, by whatever
//! process.
//!
//! When the queue has other letters, since the broker has dropped some for instance, or most of the
//! copy is gone, a new copy is made while the old one serves. When an edit was broken off, by a kill
//! for instance, pages wait for a new copy.
//!
//! While there is no copy, since the queue cannot be followed or the disk is full, a page reads the
//! queue itself, and holds no more than its own rows.

use std::future::pending;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use super::copy::Copy;
use crate::domain::letters::{DeadRow, Key, LetterFilter, Window, read_letter};
use crate::error::chain;
use crate::gateway::problem::Refusal;
use crate::gateway::spool::full;
use crate::ports::{
    BrokerError, Followed, Follower, RetainedMessage, RetainedQueue, RetainedQueues, Shown,
};
use crate::runtime::RECONNECT;
use crate::service::dead_letters::put;

/// Requests that may wait for the copy.
const WAITING_MAX: usize = 1024;

/// How often the copy catches up while nobody asks for a page.
const CATCH_UP: Duration = Duration::from_secs(1);

/// If the queue has other letters, or most of the copy is gone, the copy is made again after this time
/// at the earliest, and after this many times as long as it took to make.
const COPY_AGAIN_MIN: Duration = Duration::from_secs(60);
const COPY_AGAIN_TIMES: u32 = 20;

type Shared = Arc<RwLock<Copy>>;

/// A request for the copy; none is given while there is none.
type Asked = oneshot::Sender<Option<Shared>>;

/// Answers with pages.
pub(in crate::gateway) struct Pages(mpsc::Sender<Asked>);

/// The task that keeps the copy.
pub(in crate::gateway) struct Keeper {
    folder: PathBuf,
    asked: mpsc::Receiver<Asked>,
    /// Those who wait for the copy.
    waiting: Vec<Asked>,
}

/// `folder` is where the copy is.
pub(in crate::gateway) fn pages(folder: PathBuf) -> (Pages, Keeper) {
    let (sender, asked) = mpsc::channel(WAITING_MAX);
    let keeper = Keeper {
        folder,
        asked,
        waiting: Vec::new(),
    };
    (Pages(sender), keeper)
}

impl Pages {
    /// The rows at or after a place, before the ledger is asked.
    pub(super) async fn page<B: RetainedQueues>(
        &self,
        broker: &B,
        wanted: &LetterFilter,
        from: Option<Key>,
        most: usize,
        with_content: bool,
    ) -> Result<Window<DeadRow>, Refusal> {
        let Some(copy) = self.copy().await else {
            return Ok(from_queue(broker, wanted, from, most, with_content).await?);
        };
        let page = || copy.read().page(wanted, from, most, with_content);
        tokio::task::block_in_place(page).map_err(|error| full(&error))
    }

    async fn copy(&self) -> Option<Shared> {
        let (asked, copy) = oneshot::channel();
        self.0.send(asked).await.ok()?;
        copy.await.ok()?
    }
}

/// Reads the whole queue for one page.
async fn from_queue<B: RetainedQueues>(
    broker: &B,
    wanted: &LetterFilter,
    from: Option<Key>,
    most: usize,
    with_content: bool,
) -> Result<Window<DeadRow>, BrokerError> {
    let mut window = Window::new(from, most);
    let visit = |message: RetainedMessage| {
        if let Some(letter) = read_letter(&message.body) {
            for dead in &letter.recipients {
                put(&mut window, &letter, dead, wanted, with_content);
            }
        }
        ControlFlow::Continue(())
    };
    broker.read(RetainedQueue::Dead, visit).await?;
    Ok(window)
}

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
enum NoCopy {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("the letters cannot be kept on disk (gateway.upload_dir)")]
    Disk(#[from] io::Error),
    #[error("the letters are being edited")]
    Edited,
}

/// The copy, and the follower that brings further letters.
struct Kept<F> {
    follower: F,
    copy: Shared,
    /// When the copying began, and how long it took.
    began: Instant,
    took: Duration,
    /// The queue has other letters.
    off: bool,
}

impl Keeper {
    /// Keeps the copy until nobody can ask for it any more.
    pub(in crate::gateway) async fn keep<B: RetainedQueues>(mut self, broker: B) {
        let mut delays = RECONNECT.delays();
        loop {
            match Kept::make(&broker, &self.folder).await {
                Ok(kept) => {
                    delays.reset();
                    if self.serve(kept, &broker).await.is_break() {
                        return;
                    }
                }
                Err(error) => {
                    error.report();
                    let until = Instant::now() + delays.next_delay();
                    if self.refuse(until).await.is_break() {
                        return;
                    }
                }
            }
        }
    }

    /// Tells until a time that there is no copy.
    async fn refuse(&mut self, until: Instant) -> ControlFlow<()> {
        loop {
            for asked in self.waiting.drain(..) {
                // The request may be gone.
                let _ = asked.send(None);
            }
            tokio::select! {
                () = sleep_until(until) => return ControlFlow::Continue(()),
                asked = self.asked.recv() => match asked {
                    Some(asked) => self.waiting.push(asked),
                    None => return ControlFlow::Break(()),
                },
            }
        }
    }

    /// Gives the copy to those who ask, as long as it is right. Those who ask when it is not get the
    /// next one.
    async fn serve<B: RetainedQueues>(
        &mut self,
        mut kept: Kept<B::Follower>,
        broker: &B,
    ) -> ControlFlow<()> {
        let folder = self.folder.clone();
        let mut next: Option<Next<'_, B::Follower>> = None;
        loop {
            while let Ok(asked) = self.asked.try_recv() {
                self.waiting.push(asked);
            }
            match kept.catch_up().await {
                Ok(Followed::All) => {}
                Ok(Followed::Off) => kept.off = true,
                Ok(Followed::Edited) => break,
                Err(error) => {
                    error.report();
                    break;
                }
            }
            if next.is_none() && kept.is_to_be_made_again() {
                next = Some(Box::pin(Kept::make(broker, &folder)));
            }
            for asked in self.waiting.drain(..) {
                let _ = asked.send(Some(Arc::clone(&kept.copy)));
            }
            tokio::select! {
                asked = self.asked.recv() => match asked {
                    Some(asked) => self.waiting.push(asked),
                    None => return ControlFlow::Break(()),
                },
                () = kept.follower.much_waits() => {}
                made = made(&mut next) => {
                    next = None;
                    match made {
                        Ok(new) => std::mem::replace(&mut kept, new).follower.end().await,
                        Err(error) => {
                            error.report();
                            kept.began = Instant::now();
                        }
                    }
                }
                () = sleep(CATCH_UP) => {}
            }
        }
        kept.follower.end().await;
        ControlFlow::Continue(())
    }
}

/// A copy that is being made.
type Next<'a, F> = Pin<Box<dyn Future<Output = Result<Kept<F>, NoCopy>> + Send + 'a>>;

/// Waits for the next copy; for ever while none is being made.
async fn made<F>(next: &mut Option<Next<'_, F>>) -> Result<Kept<F>, NoCopy> {
    match next {
        Some(next) => next.await,
        None => pending().await,
    }
}

impl NoCopy {
    fn report(&self) {
        let error = chain(self);
        match self {
            Self::Disk(_) => {
                tracing::error!(%error, "there is no copy of the dead letters: each page reads all");
            }
            Self::Broker(_) | Self::Edited => {
                tracing::info!(%error, "the dead letters are copied again");
            }
        }
    }
}

impl<F: Follower> Kept<F> {
    /// Copies all letters.
    async fn make<B: RetainedQueues<Follower = F>>(
        broker: &B,
        folder: &Path,
    ) -> Result<Self, NoCopy> {
        let began = Instant::now();
        let copy = Copy::create(folder)?;
        let mut kept = Self {
            follower: broker.follow(RetainedQueue::Dead).await?,
            copy: Arc::new(RwLock::new(copy)),
            began,
            took: Duration::ZERO,
            off: false,
        };
        let copied = match kept.catch_up().await {
            Ok(Followed::Edited) => Err(NoCopy::Edited),
            copied => copied,
        };
        if let Err(error) = copied {
            kept.follower.end().await;
            return Err(error);
        }
        kept.took = began.elapsed();
        tracing::debug!(
            copy.ms = kept.took.as_millis() as u64,
            "the dead letters are copied"
        );
        Ok(kept)
    }

    async fn catch_up(&mut self) -> Result<Followed, NoCopy> {
        let (copy, mut failed) = (&self.copy, None);
        let visit = |shown: Shown| {
            let mut copy = copy.write();
            let done = match shown {
                Shown::Kept(message) => copy.add(&message.body),
                Shown::Gone(body) => copy.remove(&body),
            };
            match done {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        };
        let followed = self.follower.catch_up(visit).await?;
        match failed {
            Some(error) => return Err(error.into()),
            None => copy.write().flush()?,
        }
        Ok(followed)
    }

    /// Whether a new copy is worth its price.
    fn is_to_be_made_again(&self) -> bool {
        (self.off || self.copy.read().is_mostly_gone())
            && self.began.elapsed() >= COPY_AGAIN_MIN.max(self.took * COPY_AGAIN_TIMES)
    }
}
