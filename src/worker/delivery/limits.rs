//! Waits for everything that a delivery needs before it claims: an unparked target, units of the
//! limits, and places at the target.

use std::time::Duration;

use tokio::sync::{SemaphorePermit, watch};

use super::{DeliveryScope, Pause};
use crate::clock::now_ms;
use crate::domain::directive::{Board, SliceControl};
use crate::domain::limits::{Cost, Grant};
use crate::domain::schedule::{LOOK_AGAIN_MAX, look_again};
use crate::metrics::LedgerStep;
use crate::ports::{Lease, Leased, Limit, Publisher, Scope, Store, Transport};
use crate::runtime::WAIT_MAX;

/// Calls that may be made now.
pub(super) struct Granted<'a> {
    pub(super) calls: usize,
    pub(super) recipients: usize,
    /// Recipients and calls that are booked on the limits, and the directives that decided on these
    /// limits.
    booked: Option<(u32, u32, SliceControl)>,
    /// One per call.
    pub(super) permits: SemaphorePermit<'a>,
}

impl<'a, S: Store, T: Transport, P: Publisher> DeliveryScope<'a, S, T, P> {
    /// Waits until calls may be made, for at most `waiting` recipients in at most `places` calls.
    /// None: the wait was so long that the caller must check everything again.
    pub(super) async fn grant(
        &'a self,
        directives: watch::Receiver<Board>,
        waiting: usize,
        places: usize,
    ) -> Result<Option<Granted<'a>>, Pause> {
        self.wait_while_parked().await?;
        let control = self.control(&directives.borrow());
        let mut recipients = waiting.min(places.saturating_mul(self.per_call));
        let mut booked = None;
        if self.limits(&control).next().is_some() {
            recipients = self.lease(&control, directives, recipients).await?;
            if recipients == 0 {
                return Ok(None);
            }
            let calls = recipients.div_ceil(self.per_call);
            booked = Some((recipients as u32, calls as u32, control));
        }
        // A recipient may get a call of its own, if its last call was refused because of others.
        let wanted = places.min(recipients);
        let Ok(permits) = self.permits(wanted).await else {
            if let Some((recipients, calls, control)) = &booked {
                self.return_units(control, *recipients, *calls).await;
            }
            return Err(Pause::Deferred(Duration::ZERO));
        };
        let calls = permits.num_permits();
        Ok(Some(Granted {
            recipients: recipients.min(calls.saturating_mul(self.per_call)),
            calls,
            booked,
            permits,
        }))
    }

    /// Places for calls at the target: waits for one, and takes as many more of those wanted as are
    /// free.
    async fn permits(&'a self, wanted: usize) -> Result<SemaphorePermit<'a>, Pause> {
        let calls = &*self.target.calls;
        let halted = || Pause::Deferred(Duration::ZERO);
        let mut permits = tokio::select! {
            biased;
            () = self.session.halt.cancelled() => return Err(halted()),
            // It is never closed: the semaphore lives as long as the target.
            permit = calls.acquire() => permit.map_err(|_| halted())?,
        };
        let more = calls.available_permits().min(wanted.saturating_sub(1));
        if let Ok(more) = calls.try_acquire_many(more as u32) {
            permits.merge(more);
        }
        Ok(permits)
    }

    async fn wait_while_parked(&self) -> Result<(), Pause> {
        while let Some(park) = self.session.context.park_of(&self.target.name) {
            let now = now_ms();
            let left = Duration::from_millis(park.until_ms.saturating_sub(now));
            if left > WAIT_MAX {
                // The target may be unparked before its time.
                let lasted = Duration::from_millis(now.saturating_sub(park.since_ms));
                return Err(Pause::Deferred(left.min(look_again(lasted))));
            }
            self.sleep(left).await?;
        }
        Ok(())
    }

    /// Sleeps, unless the delivery is halted.
    async fn sleep(&self, wait: Duration) -> Result<(), Pause> {
        tokio::select! {
            biased;
            () = self.session.halt.cancelled() => Err(Pause::Deferred(Duration::ZERO)),
            () = tokio::time::sleep(wait) => Ok(()),
        }
    }

    fn limits<'o>(&'o self, control: &'o SliceControl) -> impl Iterator<Item = Limit<'o>> {
        let head = &self.slice.head;
        let names = [
            (Scope::Target, head.target.as_str()),
            (Scope::App, head.app.as_str()),
            (Scope::Job, self.job.as_str()),
        ];
        self.rates.iter().zip(control.rates).zip(names).filter_map(
            |((configured, live), (scope, name))| {
                let rate = live.or(*configured)?;
                let default = if scope == Scope::Target {
                    Cost::PerCall
                } else {
                    Cost::PerRecipient
                };
                Some(Limit {
                    scope,
                    name,
                    rate,
                    cost: rate.cost.unwrap_or(default),
                })
            },
        )
    }

    /// Waits until some of `most` recipients may be sent to. Returns zero after a wait that was
    /// long enough to check everything again.
    async fn lease(
        &self,
        control: &SliceControl,
        mut directives: watch::Receiver<Board>,
        most: usize,
    ) -> Result<usize, Pause> {
        let per_call = self.per_call;
        let limits: Vec<_> = self.limits(control).collect();
        let want = limits.iter().fold(most, |want, limit| {
            want.min(worth(limit, per_call as u32, want as u32) as usize)
        });
        // A call is filled even when that takes more units than are worth leasing at once.
        let want = want.max(per_call.min(most)) as u32;
        let lease = Lease {
            limits: &limits,
            recipients: want,
            per_call: per_call as u32,
            wait_max: WAIT_MAX,
        };
        let context = &*self.session.context;
        let leased = self.ask_lease(&lease).await?;
        let (units, after) = match leased.grant {
            Grant::Units { units, after } => (units, after),
            Grant::Later { after } => (0, after),
        };
        for limit in &limits {
            let limited = Some(limit.scope) == leased.binding && !after.is_zero();
            context.metrics.throttled(limit.scope, limited);
        }
        if units > 0 {
            context.metrics.throttle_wait(after);
            if let Err(pause) = self.sleep(after).await {
                let calls = units.div_ceil(per_call as u32);
                self.return_units(control, units, calls).await;
                return Err(pause);
            }
            return Ok(units as usize);
        }
        // The target's limit holds up the whole lane, so the slice may as well wait here. The limit
        // of an app or a job makes the slice leave the place to others of its lane; it comes back
        // from time to time to see whether it may go faster.
        if leased.binding != Some(Scope::Target) {
            return Err(Pause::Deferred(after.min(LOOK_AGAIN_MAX)));
        }
        tokio::select! {
            biased;
            slept = self.sleep(after) => slept?,
            _ = directives.changed() => {}
        }
        Ok(0)
    }

    /// Asks the limits that all workers share. While the ledger is down, an app that fails open
    /// uses the same limits, kept by this process alone.
    async fn ask_lease(&self, lease: &Lease<'_>) -> Result<Leased, Pause> {
        let context = &*self.session.context;
        if !self.fail_open {
            let halted = self.session.halt.cancelled();
            let step = context.step(LedgerStep::Lease, halted, || context.store.lease(lease));
            return step.await.map_err(|_| Pause::Deferred(Duration::ZERO));
        }
        if !self.goes_without_ledger() {
            let leased = context.try_step(LedgerStep::Lease, context.store.lease(lease));
            if let Ok(leased) = leased.await {
                return Ok(leased);
            }
        }
        Ok(context.limits_here.lease(lease))
    }

    /// Refunds the units that were booked for recipients and calls that were not made.
    pub(super) async fn refund(&self, granted: &Granted<'_>, recipients: usize, calls: usize) {
        let Some((booked, booked_calls, control)) = &granted.booked else {
            return;
        };
        let recipients = booked.saturating_sub(recipients as u32);
        let calls = booked_calls.saturating_sub(calls as u32);
        if recipients > 0 || calls > 0 {
            self.return_units(control, recipients, calls).await;
        }
    }

    async fn return_units(&self, control: &SliceControl, recipients: u32, calls: u32) {
        let limits: Vec<_> = self.limits(control).collect();
        if self.goes_without_ledger() {
            return self
                .session
                .context
                .limits_here
                .refund(&limits, recipients, calls);
        }
        let store = &self.session.context.store;
        // Not repeated: without the refund the rate falls below the limit and never exceeds it.
        let refund = store.refund(&limits, recipients, calls);
        let _ = self
            .session
            .context
            .try_step(LedgerStep::Lease, refund)
            .await;
    }
}

/// Recipients worth leasing at once under a limit.
fn worth(limit: &Limit<'_>, per_call: u32, want: u32) -> u32 {
    match limit.cost {
        Cost::PerRecipient => limit.rate.lease_units(want),
        Cost::PerCall => limit
            .rate
            .lease_units(want.div_ceil(per_call))
            .saturating_mul(per_call),
    }
}
