//! Waits for everything that a delivery needs before it claims: an unparked target, units of the
//! limits, and places at the target.

use std::time::Duration;

use tokio::sync::{SemaphorePermit, watch};
use tokio::time::Instant;

use super::{DeliveryScope, Pause};
use crate::clock::now_ms;
use crate::domain::directive::{Board, SliceControl};
use crate::domain::lane::LaneClass;
use crate::domain::limits::Cost;
use crate::domain::schedule::{LOOK_AGAIN_MAX, look_again};
use crate::domain::throttle::{self, Ask, LimitKey};
use crate::ports::{Publisher, Scope, Store, Transport};
use crate::runtime::{Admission, WAIT_MAX};

/// How often a delivery looks whether the call that tries a target has its answer.
const PROBE_LOOK: Duration = Duration::from_millis(50);

/// Calls that may be made now.
pub(super) struct Granted<'a> {
    pub(super) calls: usize,
    pub(super) recipients: usize,
    /// What was asked of the limits, and how many recipients they granted; `None` without limits.
    asked: Option<(Ask, u32)>,
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
        let mut recipients = waiting.min(places.saturating_mul(self.per_call));
        let ask = self.ask(&self.control(&directives.borrow()), recipients);
        let mut asked = None;
        if !ask.limits.is_empty() {
            let granted = self.units(&ask, directives).await?;
            if granted == 0 {
                return Ok(None);
            }
            recipients = granted as usize;
            asked = Some((ask, granted));
        }
        // A recipient may get a call of its own, if its last call was refused because of others.
        let wanted = places.min(recipients);
        let permits = match self.permits(wanted).await {
            Ok(Some(permits)) => permits,
            Ok(None) => {
                self.correct(asked.as_ref(), 0, 0);
                return Ok(None);
            }
            Err(pause) => {
                self.correct(asked.as_ref(), 0, 0);
                return Err(pause);
            }
        };
        let calls = permits.num_permits();
        Ok(Some(Granted {
            recipients: recipients.min(calls.saturating_mul(self.per_call)),
            calls,
            asked,
            permits,
        }))
    }

    /// Places for calls at the target: waits for one, and takes as many more of those wanted as are
    /// free. Only one place if the target is tried after failures; none if it was parked meanwhile,
    /// or if such a try is under way.
    async fn permits(&'a self, wanted: usize) -> Result<Option<SemaphorePermit<'a>>, Pause> {
        let calls = &*self.target.calls;
        let halted = || Pause::Deferred(Duration::ZERO);
        let mut permits = tokio::select! {
            biased;
            () = self.session.halt.cancelled() => return Err(halted()),
            // It is never closed: the semaphore lives as long as the target.
            permit = calls.acquire() => permit.map_err(|_| halted())?,
        };
        if self.session.context.park_of(&self.target.name).is_some() {
            return Ok(None);
        }
        match self.target.admit(Instant::now()) {
            Admission::Open => {}
            Admission::Probe => return Ok(Some(permits)),
            Admission::Wait => {
                drop(permits);
                self.sleep(PROBE_LOOK).await?;
                return Ok(None);
            }
        }
        let more = calls.available_permits().min(wanted.saturating_sub(1));
        if let Ok(more) = calls.try_acquire_many(more as u32) {
            permits.merge(more);
        }
        Ok(Some(permits))
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

    /// The units that so many recipients take.
    fn ask(&self, control: &SliceControl, recipients: usize) -> Ask {
        let head = &self.slice.head;
        let (alone, now) = (self.goes_without_ledger(), now_ms());
        let names = [
            (Scope::Target, head.target.as_str()),
            (Scope::App, head.app.as_str()),
            (Scope::Job, self.job.as_str()),
        ];
        let rates = self.rates.iter().zip(control.rates).zip(names);
        let limits = rates.filter_map(|((configured, live), (scope, name))| {
            let rate = live.or(*configured)?;
            let climb = control.adapted.filter(|_| scope == Scope::Target);
            let rate = climb.map_or(rate, |climb| climb.rate(rate, now));
            let default = if scope == Scope::Target {
                Cost::PerCall
            } else {
                Cost::PerRecipient
            };
            Some(LimitKey {
                scope,
                name: name.to_owned(),
                rate,
                cost: rate.cost.unwrap_or(default),
                alone,
            })
        });
        Ask {
            limits: limits.collect(),
            recipients: u32::try_from(recipients).unwrap_or(u32::MAX),
            per_call: u32::try_from(self.per_call).unwrap_or(u32::MAX),
            small_job: self.slice.lane.class == LaneClass::Express,
        }
    }

    /// Waits for units. Returns the recipients that they are enough for; zero after a wait that was
    /// long enough to check everything again.
    async fn units(&self, ask: &Ask, mut directives: watch::Receiver<Board>) -> Result<u32, Pause> {
        let context = &*self.session.context;
        let mut ledger_up = context.ledger_up();
        // An app that fails open does not wait for a ledger that went down meanwhile.
        let is_up = !ask.limits.iter().any(|limit| limit.alone);
        let ledger_changed = async {
            match self.fail_open {
                true => drop(ledger_up.wait_for(|up| *up != is_up).await),
                false => std::future::pending().await,
            }
        };
        let since = Instant::now();
        let granted = tokio::select! {
            biased;
            () = self.session.halt.cancelled() => return Err(Pause::Deferred(Duration::ZERO)),
            granted = self.session.throttle.ask(ask.clone()) => granted,
            _ = directives.changed() => return Ok(0),
            () = ledger_changed => return Ok(0),
            () = tokio::time::sleep(WAIT_MAX) => return Ok(0),
        };
        match granted {
            throttle::Granted::Recipients(recipients) => {
                context.metrics.throttle_wait(since.elapsed());
                Ok(recipients)
            }
            // The target's limit holds up the whole lane, so the slice waits here. The limit of an
            // app or a job makes the slice leave the place to others of its lane; it comes back
            // from time to time to see whether it may go faster.
            throttle::Granted::Later(after) => Err(Pause::Deferred(after.min(LOOK_AGAIN_MAX))),
        }
    }

    /// Tells the throttle how many recipients and calls used what was granted.
    pub(super) fn used(&self, granted: &Granted<'_>, recipients: usize, calls: usize) {
        self.correct(granted.asked.as_ref(), recipients, calls);
    }

    fn correct(&self, asked: Option<&(Ask, u32)>, recipients: usize, calls: usize) {
        if let Some((ask, granted)) = asked {
            let (recipients, calls) = (recipients as u32, calls as u32);
            let throttle = &self.session.throttle;
            throttle.correct(ask, *granted, recipients, calls);
        }
    }
}
