//! Leases units of the limits ahead, and hands them to the deliveries of the session.
//! `domain::throttle` decides who gets how many; here are the waits and the ledger's steps.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::sleep_until;
use crate::domain::limits::Grant;
use crate::domain::throttle::{Ask, Block, Granted, HeldUp, LimitKey, Ticket, Used};
use crate::metrics::LedgerStep;
use crate::ports::{Limit, Store};
use crate::runtime::WAIT_MAX;
use crate::runtime::context::Context;

type Waiting = crate::domain::throttle::Throttle<oneshot::Sender<Answer>>;

/// What the limits grant, and since when: a delivery may read the answer much later.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) granted: Granted,
    pub(super) at: Instant,
}

impl Answer {
    fn now(granted: Granted) -> Self {
        let at = Instant::now();
        Self { granted, at }
    }
}

/// The throttle of one session.
pub(super) struct Throttle {
    waiting: Mutex<Waiting>,
    /// There may be blocks to lease.
    changed: Notify,
    /// The origin of the times that `waiting` gets.
    epoch: Instant,
}

impl Default for Throttle {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
            changed: Notify::new(),
            epoch: Instant::now(),
        }
    }
}

impl Throttle {
    /// Waits for units of all limits together.
    pub(super) async fn ask(&self, ask: Ask) -> Answer {
        let (sender, answer) = oneshot::channel();
        let ticket = {
            let mut waiting = self.waiting.lock();
            let now = self.epoch.elapsed();
            let ticket = waiting.wait(ask, sender, now);
            hand_out(&mut waiting, None, now);
            ticket
        };
        self.changed.notify_one();
        let _leaves = Leaves(self, ticket);
        match answer.await {
            Ok(answer) => answer,
            // The session ends, and the delivery with it.
            Err(_) => std::future::pending().await,
        }
    }

    /// Takes the difference between the units that were granted and those that were used.
    pub(super) fn correct(&self, ask: &Ask, granted: u32, used: Used) {
        self.waiting.lock().correct(ask, granted, used);
    }

    /// The apps and jobs that their own limits hold up.
    pub(super) fn held_up(&self) -> HeldUp {
        self.waiting.lock().held_up(self.epoch.elapsed())
    }

    /// Leases blocks until the session halts. Then returns the units that are left.
    pub(super) async fn run<S: Store, T>(&self, context: &Context<S, T>, halt: CancellationToken) {
        let (mut leases, mut refunds) = (FuturesUnordered::new(), FuturesUnordered::new());
        loop {
            let due = {
                let mut waiting = self.waiting.lock();
                let now = self.epoch.elapsed();
                for block in waiting.to_lease(now) {
                    leases.push(self.lease(context, block, &halt));
                }
                waiting.next_due(now).map(|due| self.epoch + due)
            };
            tokio::select! {
                biased;
                () = halt.cancelled() => break,
                Some(leased) = leases.next() => if let Some((block, grant)) = leased {
                    self.leased(&block, grant);
                },
                () = self.changed.notified() => {}
                Some(()) = refunds.next() => {}
                () = sleep_until(due) => {
                    let unused = self.waiting.lock().unused(self.epoch.elapsed());
                    if !unused.is_empty() {
                        refunds.push(give_back(context, unused));
                    }
                }
            }
        }
        let left = self.waiting.lock().close();
        give_back(context, left).await;
    }

    /// Leases a block and waits until its units may be used. `None`: the session halted.
    async fn lease<S: Store, T>(
        &self,
        context: &Context<S, T>,
        block: Block,
        halt: &CancellationToken,
    ) -> Option<(Block, Grant)> {
        let limit = port(&block.limit);
        let grant = if block.limit.alone {
            context.limits_here.lease(&limit, block.units, WAIT_MAX)
        } else {
            let lease = || context.store.lease(&limit, block.units, WAIT_MAX);
            let step = context.step(LedgerStep::Lease, halt.cancelled(), lease);
            step.await.ok()?
        };
        let after = match grant {
            Grant::Units { after, .. } => after,
            Grant::Later { .. } => Duration::ZERO,
        };
        let limited = !matches!(grant, Grant::Units { after, .. } if after.is_zero());
        context.metrics.throttled(block.limit.scope, limited);
        if !after.is_zero() {
            let now = self.epoch.elapsed();
            self.waiting.lock().late(&block.limit, after, now);
            tokio::time::sleep(after).await;
        }
        Some((block, grant))
    }

    fn leased(&self, block: &Block, grant: Grant) {
        let mut waiting = self.waiting.lock();
        let now = self.epoch.elapsed();
        for (sender, after) in waiting.leased(block, grant, now) {
            let _ = sender.send(Answer::now(Granted::Later(after)));
        }
        hand_out(&mut waiting, Some(&block.limit), now);
    }
}

/// Hands units to the deliveries that get them now.
fn hand_out(waiting: &mut Waiting, arrived: Option<&LimitKey>, now: Duration) {
    for (sender, ask, recipients) in waiting.serve(arrived, now) {
        let granted = Granted::Recipients(recipients);
        if sender.send(Answer::now(granted)).is_err() {
            waiting.correct(&ask, recipients, Used::NOTHING);
        }
    }
}

/// Takes a delivery that does not wait any longer out of the queue.
struct Leaves<'a>(&'a Throttle, Ticket);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.0.waiting.lock().leave(self.1);
    }
}

/// Not repeated: without the refund the rate falls below the limit and never exceeds it.
async fn give_back<S: Store, T>(context: &Context<S, T>, blocks: Vec<Block>) {
    let refunds = blocks.iter().map(async |Block { limit, units }| {
        if limit.alone {
            return context.limits_here.refund(&port(limit), *units);
        }
        let limit = port(limit);
        let refund = context.store.refund(&limit, *units);
        let _ = context.try_step(LedgerStep::Lease, refund).await;
    });
    join_all(refunds).await;
}

fn port(limit: &LimitKey) -> Limit<'_> {
    Limit {
        scope: limit.scope,
        name: &limit.name,
        rate: limit.rate,
        cost: limit.cost,
        weight: limit.weight,
    }
}
