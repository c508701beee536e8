//! Runs the worker: opens one broker session after the other, each with its intake and its lanes.
//!
//! [`Worker::run`] opens a session and works in it until the session is lost or the process drains.
//! It opens the next session after a growing pause. It carries over from a lost session only which
//! slices are to come back from the retry ladder: the broker hands out again what was not acked, and
//! the ledger knows what was done.
//!
//! This module names neither a broker nor a store; both engines run the same worker.

mod completion;
mod delivery;
mod direct;
mod enumerate;
mod forget;
mod intake;
mod lanes;
mod notice;
mod scheduler;
mod sequence;
mod session;
mod sweep;
mod tail;
mod throttle;
mod together;
mod wake;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::direct::{DIRECT_MAX, Direct};
use self::sequence::Sequence;
use self::session::WorkerSession;
use self::wake::Wakes;
use crate::domain::lane::Priority;
use crate::error::chain;
use crate::metrics::{BrokerUser, JobResult, SliceResult};
use crate::ports::{Broker, BrokerError, Moved, Publisher, Session, Source, Store, Transport};
use crate::runtime::{Context, RECONNECT, Role, watch_store};

/// Jobs of one priority that the worker takes at a time. Jobs of several megabytes are rare, and a
/// small job waits for the broker most of its time. Those that are delivered at once leave room for
/// others, however long that takes.
const JOBS_PREFETCH: u16 = DIRECT_MAX + 4;

/// The worker closes the session when the ledger has been down for this long. The deliveries go
/// back to the broker before they come near its ack limit.
const LEDGER_PATIENCE: Duration = Duration::from_secs(60);

/// How a session ended.
enum End {
    /// The session was lost or closed.
    Orderly,
    /// One of its tasks panicked: a bug.
    Panicked,
}

pub struct Worker<B, S, T> {
    broker: B,
    context: Arc<Context<S, T>>,
    ready: watch::Sender<bool>,
    /// Used by one session at a time.
    wakes: Arc<Mutex<Wakes>>,
}

impl<B: Broker, S: Store, T: Transport> Worker<B, S, T> {
    pub fn new(broker: B, context: Arc<Context<S, T>>) -> Self {
        Self {
            broker,
            ready: watch::Sender::new(false),
            wakes: Arc::new(Mutex::new(Wakes::new(&context))),
            context,
        }
    }

    /// Follows whether a session is open.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// Works until `drain` is cancelled and all work under way is ended or requeued.
    pub async fn run(self, drain: CancellationToken) {
        self.context.metrics.uses_broker(BrokerUser::Worker);
        let poll = {
            let (context, drain) = (Arc::clone(&self.context), drain.clone());
            async move { watch_store(&context, Role::Worker, &drain).await }
        };
        let ended = CancellationToken::new();
        let sessions = async {
            self.sessions(&drain).await;
            ended.cancel();
        };
        tokio::join!(poll, sessions, self.context.keep_catching_up(&ended));
    }

    async fn sessions(&self, drain: &CancellationToken) {
        let mut delays = RECONNECT.delays();
        let mut ledger_up = self.context.ledger_up();
        loop {
            let connect = async {
                if !self.context.fails_open() {
                    let _ = ledger_up.wait_for(|up| *up).await;
                }
                self.broker.connect().await
            };
            let Some(connected) = drain.run_until_cancelled(connect).await else {
                return;
            };
            match connected {
                Ok(session) => match self.session(session, drain).await {
                    Ok(End::Orderly) => delays.reset(),
                    // The next session may panic too, so the pause keeps growing.
                    Ok(End::Panicked) => {}
                    Err(error) => tracing::warn!(error = %chain(&error), "the session ended early"),
                },
                Err(error) => tracing::warn!(error = %chain(&error), "no session, trying again"),
            }
            if drain
                .run_until_cancelled(tokio::time::sleep(delays.next_delay()))
                .await
                .is_none()
            {
                return;
            }
        }
    }

    /// Works in one session until it is lost, the ledger stays down too long, or the process
    /// drains.
    async fn session(
        &self,
        session: B::Session,
        drain: &CancellationToken,
    ) -> Result<End, BrokerError> {
        let mut sequence = Sequence::new(session.sequence().await?);
        let compared = sequence.raise(&self.context).await;
        if compared.is_err() && !self.context.fails_open() {
            session.close().await;
            return Ok(End::Orderly);
        }
        let session = Arc::new(session);
        let lost = session.lost();
        let halt = lost.child_token();
        let work = Arc::new(WorkerSession {
            context: Arc::clone(&self.context),
            publisher: session.publisher(),
            throttle: Arc::default(),
            lost: lost.clone(),
            halt: halt.clone(),
            tail: None,
        });
        let mut tasks = JoinSet::new();
        let targets = self.context.targets.values().map(|target| &**target);
        let lanes = lanes::open(&*session, targets, &self.context.settings).await?;
        let (sender, arrivals) = mpsc::channel(1);
        let direct = Direct::new(lanes.iter().map(|it| it.lane.clone()), sender.clone());
        let direct = Arc::new(direct);
        let arrivals = lanes::Arrivals { sender, arrivals };
        tasks.spawn(lanes::work(
            Arc::clone(&work),
            Arc::clone(&session),
            lanes,
            arrivals,
        ));
        for &priority in Priority::ALL {
            let jobs = session
                .consume(Source::Jobs(priority), JOBS_PREFETCH)
                .await?;
            let (work, direct) = (Arc::clone(&work), Arc::clone(&direct));
            let broker = Arc::clone(&session);
            tasks.spawn(intake::intake(broker, work, priority, jobs, direct));
        }
        tasks.spawn({
            let (work, broker) = (Arc::clone(&work), self.broker.clone());
            async move { sweep::sweep(&*work, broker).await }
        });
        tasks.spawn({
            let (work, broker) = (Arc::clone(&work), self.broker.clone());
            let wakes = Arc::clone(&self.wakes);
            async move { wake::wake(&*work, &broker, &mut *wakes.lock().await).await }
        });
        tasks.spawn({
            let (work, halt) = (Arc::clone(&work), halt.clone());
            async move { work.throttle.run(&work.context, halt).await }
        });
        tasks.spawn(watch_blocked(
            session.blocked(),
            Arc::clone(&self.context),
            halt.clone(),
        ));
        tasks.spawn(count_moved(
            session.moved().await?,
            Arc::clone(&self.context),
            halt.clone(),
        ));
        self.show_session(true);
        self.ready.send_replace(true);
        tracing::info!("ready: jobs are taken and slices delivered");

        let (mut keeper, rest) = (JoinSet::new(), CancellationToken::new());
        keeper.spawn(sequence.keep(Arc::clone(&work), rest.clone()));
        let mut end = self.until_ended(&work, tasks, drain).await;
        // The keeper saves the sequence once more, after the last outcomes are recorded.
        rest.cancel();
        self.all_ended(&mut keeper, &mut end).await;
        self.show_session(false);
        // All tasks have ended, so that this is the last one that holds it.
        if let Some(session) = Arc::into_inner(session) {
            session.close().await;
        }
        Ok(end)
    }

    /// Shows in metrics and heartbeats whether there is a session.
    fn show_session(&self, is_open: bool) {
        self.context.at_broker.store(is_open, Ordering::Relaxed);
        self.context.metrics.broker_up(BrokerUser::Worker, is_open);
    }

    /// Waits until the session is lost, the ledger stays down too long, a task ends or the process
    /// drains. Then waits for all tasks.
    async fn until_ended<P: Publisher>(
        &self,
        work: &WorkerSession<S, T, P>,
        mut tasks: JoinSet<()>,
        drain: &CancellationToken,
    ) -> End {
        let patience = self.ledger_gone();
        let mut end = End::Orderly;
        let why = tokio::select! {
            biased;
            () = work.lost.cancelled() => "the session is lost: unacked deliveries come back",
            () = drain.cancelled() => "draining: no new work starts",
            () = patience => "the ledger stays down: the session is closed meanwhile",
            Some(ended) = tasks.join_next() => {
                end = self.end_of(&ended);
                "a task of the session ended"
            }
        };
        tracing::info!("{why}");
        self.ready.send_replace(false);
        work.halt.cancel();
        self.all_ended(&mut tasks, &mut end).await;
        end
    }

    /// Waits for these tasks. If any of them panicked, the session ends as panicked.
    async fn all_ended(&self, tasks: &mut JoinSet<()>, end: &mut End) {
        while let Some(ended) = tasks.join_next().await {
            if let End::Panicked = self.end_of(&ended) {
                *end = End::Panicked;
            }
        }
    }

    /// How a task of the session ended.
    fn end_of(&self, ended: &Result<(), JoinError>) -> End {
        match ended {
            Err(error) if error.is_panic() => {
                self.context.metrics.panicked();
                tracing::error!(
                    %error,
                    "a task of the session panicked: the session ends, the broker hands out again \
                     what was not acked, and a new session opens after a pause"
                );
                End::Panicked
            }
            _ => End::Orderly,
        }
    }

    /// Resolves when the ledger has been down for longer than the worker should hold deliveries.
    async fn ledger_gone(&self) {
        let mut up = self.context.ledger_up();
        if self.context.fails_open() {
            std::future::pending::<()>().await;
        }
        loop {
            // The sender lives in the context, so neither wait can fail.
            let _ = up.wait_for(|up| !*up).await;
            if tokio::time::timeout(LEDGER_PATIENCE, up.wait_for(|up| *up))
                .await
                .is_err()
            {
                return;
            }
        }
    }
}

/// Sleeps until a time; for ever if there is none.
async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Shows in the metrics whether the broker refuses publishes.
async fn watch_blocked<S: Store, T>(
    mut blocked: watch::Receiver<bool>,
    context: Arc<Context<S, T>>,
    halt: CancellationToken,
) {
    loop {
        let now = *blocked.borrow_and_update();
        context.metrics.broker_blocked(BrokerUser::Worker, now);
        if halt
            .run_until_cancelled(blocked.changed())
            .await
            .is_none_or(|changed| changed.is_err())
        {
            context.metrics.broker_blocked(BrokerUser::Worker, false);
            // This task does not end the session: the session itself reports when it is lost.
            return halt.cancelled().await;
        }
    }
}

/// Counts the messages that the broker rejected by itself, as the worker counts its own rejects.
async fn count_moved<S: Store, T>(
    mut moved: watch::Receiver<Moved>,
    context: Arc<Context<S, T>>,
    halt: CancellationToken,
) {
    let mut counted = Moved::default();
    loop {
        let now = *moved.borrow_and_update();
        for _ in counted.jobs..now.jobs {
            context.metrics.job(JobResult::Rejected);
        }
        for _ in counted.slices..now.slices {
            context.metrics.slice(SliceResult::Rejected);
        }
        counted = now;
        if halt
            .run_until_cancelled(moved.changed())
            .await
            .is_none_or(|changed| changed.is_err())
        {
            // This task does not end the session either.
            return halt.cancelled().await;
        }
    }
}
