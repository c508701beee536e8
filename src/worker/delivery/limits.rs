//! Waits for everything that a delivery needs before it claims: an unparked target, units of the
//! limits, and places at the target.

use std::time::Duration;

use tokio::sync::{SemaphorePermit, watch};
use tokio::time::{Instant, timeout};

use super::{DeliveryScope, Pause};
use crate::clock::now_ms;
use crate::domain::directive::{Board, SliceControl};
use crate::domain::job_limits::{LimitOf, Limited, Rates};
use crate::domain::limits::{LimitScope, Rate, Weight};
use crate::domain::schedule::{LOOK_AGAIN_MAX, look_again};
use crate::domain::slice::Head;
use crate::domain::throttle::{self, Ask, KEPT, LimitKey, Used};
use crate::ports::{Publisher, Store, Transport};
use crate::runtime::context::{AppRuntime, TargetRuntime};
use crate::runtime::{Admission, WAIT_MAX};

/// How often a delivery looks whether the call that tries a target has its answer.
const PROBE_LOOK: Duration = Duration::from_millis(50);

/// Calls that may be made now.
pub(super) struct Granted<'a> {
    pub(super) calls: usize,
    pub(super) recipients: usize,
    /// `None` without limits.
    pub(super) units: Option<Units>,
    /// One per call.
    pub(super) permits: SemaphorePermit<'a>,
}

/// Units of the limits that a delivery got.
pub(super) struct Units {
    ask: Ask,
    /// The recipients that they are enough for.
    pub(super) recipients: usize,
    until: Instant,
}

impl Units {
    /// Whether calls may still use them. Calls that were held up, by the ledger or anything else,
    /// would all leave in the same second.
    pub(super) fn may_be_used(&self) -> bool {
        Instant::now() < self.until
    }

    /// The time until which calls may use them.
    pub(super) fn until(&self) -> Instant {
        self.until
    }
}

/// The configured limits that apply to a job.
pub(super) fn configured(target: &TargetRuntime, app: Option<&AppRuntime>, head: &Head) -> Rates {
    let mut rates = Rates::default();
    rates[LimitOf::Target] = target.limit;
    rates[LimitOf::TargetDaily] = target.daily_limit;
    rates[LimitOf::Sender] = target.sender_limit;
    rates[LimitOf::Shared] = target.shared_limit.as_ref().map(|shared| shared.rate);
    rates[LimitOf::App] = app.and_then(|app| app.limit);
    rates[LimitOf::AppDaily] = app.and_then(|app| app.daily_limit);
    rates[LimitOf::Job] = head.rate;
    rates
}

fn key(scope: LimitScope, name: String, rate: Rate, weight: Weight) -> LimitKey {
    LimitKey {
        scope,
        name,
        rate,
        cost: rate.cost.unwrap_or(scope.usual_cost()),
        weight,
        alone: false,
    }
}

impl<'a, S: Store, T: Transport, P: Publisher> DeliveryScope<'a, S, T, P> {
    /// Waits until calls may be made, for at most `waiting` recipients in at most `places` calls.
    /// None: the wait was so long that the caller must check everything again, or the job expired.
    pub(super) async fn grant(
        &'a self,
        directives: watch::Receiver<Board>,
        waiting: usize,
        places: usize,
    ) -> Result<Option<Granted<'a>>, Pause> {
        let granted = self.may_call(directives, waiting, places);
        match self.expires_in() {
            Some(left) => timeout(left, granted).await.unwrap_or(Ok(None)),
            None => granted.await,
        }
    }

    async fn may_call(
        &'a self,
        directives: watch::Receiver<Board>,
        waiting: usize,
        places: usize,
    ) -> Result<Option<Granted<'a>>, Pause> {
        self.wait_while_parked().await?;
        let recipients = waiting.min(places.saturating_mul(self.per_call));
        let control = self.control(&directives.borrow());
        let mut ask = self.ask(&control, recipients);
        ask.limits.extend(self.pace(&control).await);
        if ask.limits.is_empty() {
            let first = self.permit().await?;
            if self.is_limited(&self.control(&directives.borrow())) {
                // The first limit was set while the delivery waited for a place.
                return Ok(None);
            }
            return self.admitted(places, recipients, None, first).await;
        }
        loop {
            let Some(units) = self.units(&ask, &directives).await? else {
                return Ok(None);
            };
            let recipients = units.recipients;
            if let Some(first) = self.target.calls.try_take() {
                return self.admitted(places, recipients, Some(units), first).await;
            }
            // Units do not wait for a place, where they would get too old: others take them.
            self.put_back(&units);
            let first = self.permit().await?;
            // Nor does a place wait for units for long.
            if let Ok(units) = timeout(KEPT, self.units(&ask, &directives)).await {
                let Some(units) = units? else {
                    return Ok(None);
                };
                let recipients = units.recipients;
                return self.admitted(places, recipients, Some(units), first).await;
            }
        }
    }

    /// The calls for a place that is there, and for as many more of those wanted as are free. Only
    /// one call if the target is tried after failures; none if it was parked meanwhile, or if such
    /// a try is under way.
    async fn admitted(
        &'a self,
        places: usize,
        recipients: usize,
        units: Option<Units>,
        mut permits: SemaphorePermit<'a>,
    ) -> Result<Option<Granted<'a>>, Pause> {
        let free = &self.target.calls;
        let parked = self.session.context.park_of(&self.target.name).is_some();
        let admission = match parked {
            true => None,
            false => Some(self.target.admit(Instant::now())),
        };
        match admission {
            Some(Admission::Open) => {
                // A recipient may get a call of its own, if its last call was refused because of
                // others.
                let wanted = places.min(recipients);
                if let Some(more) = free.try_take_some(wanted.saturating_sub(1)) {
                    permits.merge(more);
                }
            }
            Some(Admission::Probe) => {}
            Some(Admission::Wait) | None => {
                if let Some(units) = &units {
                    self.put_back(units);
                }
                drop(permits);
                if !parked {
                    self.sleep(PROBE_LOOK).await?;
                }
                return Ok(None);
            }
        }
        let calls = permits.num_permits();
        Ok(Some(Granted {
            recipients: recipients.min(calls.saturating_mul(self.per_call)),
            calls,
            units,
            permits,
        }))
    }

    /// Waits for a place for a call at the target.
    async fn permit(&'a self) -> Result<SemaphorePermit<'a>, Pause> {
        let halted = || Pause::Deferred(Duration::ZERO);
        tokio::select! {
            biased;
            () = self.session.halt.cancelled() => Err(halted()),
            permit = self.target.calls.take() => Ok(permit),
        }
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

    /// Until when the job is spread over the time. A rate that an operator set applies instead.
    fn pace_until(&self, control: &SliceControl) -> Option<u64> {
        let head = &self.slice.head;
        let until = control.pace_until_ms.unwrap_or(head.pace_until_ms)?;
        let (_, expires_at) = control.times(head);
        let until = expires_at.map_or(until, |at| at.min(until));
        let set = control.rates[LimitOf::Job].is_some();
        (!set && until > now_ms()).then_some(until)
    }

    /// The limit that spreads the job over the time.
    async fn pace(&self, control: &SliceControl) -> Option<LimitKey> {
        let until = self.pace_until(control)?;
        let (id, context) = (self.slice.head.id, &*self.session.context);
        let windows = self.slice.head.window.iter().chain(&self.app_window);
        let here = self.slice.recipients.len();
        let rate = context.pace(id, until, &windows, here).await?;
        Some(LimitKey {
            alone: self.goes_without_ledger(),
            ..key(LimitScope::Pace, self.job.clone(), rate, Weight::ONE)
        })
    }

    /// Whether any limit applies.
    pub(super) fn is_limited(&self, control: &SliceControl) -> bool {
        control.rates.any() || self.rates.any() || self.pace_until(control).is_some()
    }

    /// The units that so many recipients take.
    fn ask(&self, control: &SliceControl, recipients: usize) -> Ask {
        let head = &self.slice.head;
        let (alone, now) = (self.goes_without_ledger(), now_ms());
        let shared = self.target.shared_limit.as_ref();
        let limited = Limited {
            target: &head.target,
            app: &head.app,
            job: &self.job,
            sender: self.target.target.sender(head),
            shared: shared.map(|shared| &*shared.name),
        };
        let limits = control.rates.or(&self.rates).all().map(|(limit, rate)| {
            let climb = control.adapted.filter(|_| limit == LimitOf::Target);
            let rate = climb.map_or(rate, |climb| climb.rate(rate, now));
            let (name, weight) = (limited.name(limit), limit.weight(self.weight));
            LimitKey {
                alone,
                ..key(limit.scope(), name.into_owned(), rate, weight)
            }
        });
        Ask {
            limits: limits.collect(),
            recipients: u32::try_from(recipients).unwrap_or(u32::MAX),
            per_call: u32::try_from(self.per_call).unwrap_or(u32::MAX),
            small_job: self.slice.lane.is_of_small_jobs(),
        }
    }

    /// Waits for units. None: the wait was so long that the caller must check everything again.
    async fn units(
        &self,
        ask: &Ask,
        directives: &watch::Receiver<Board>,
    ) -> Result<Option<Units>, Pause> {
        let context = &*self.session.context;
        let mut directives = directives.clone();
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
        let answer = tokio::select! {
            biased;
            () = self.session.halt.cancelled() => return Err(Pause::Deferred(Duration::ZERO)),
            answer = self.session.throttle.ask(ask.clone()) => answer,
            _ = directives.changed() => return Ok(None),
            () = ledger_changed => return Ok(None),
            () = tokio::time::sleep(WAIT_MAX) => return Ok(None),
        };
        match answer.granted {
            throttle::Granted::Recipients(recipients) => {
                context.metrics.throttle_wait(since.elapsed());
                Ok(Some(Units {
                    ask: ask.clone(),
                    recipients: recipients as usize,
                    until: answer.at + KEPT,
                }))
            }
            // The target's limit holds up the whole lane, so the slice waits here. The limit of an
            // app or a job makes the slice leave the place to others of its lane; it comes back
            // from time to time to see whether it may go faster.
            throttle::Granted::Later(after) => Err(Pause::Deferred(after.min(LOOK_AGAIN_MAX))),
        }
    }

    /// Asks anew for units that have become too old, for recipients that are claimed already.
    pub(super) async fn units_again(
        &self,
        old: &Units,
        recipients: usize,
        directives: &watch::Receiver<Board>,
    ) -> Option<Units> {
        let ask = Ask {
            recipients: recipients as u32,
            ..old.ask.clone()
        };
        self.units(&ask, directives).await.ok().flatten()
    }

    fn put_back(&self, units: &Units) {
        self.used(units, 0, 0);
    }

    /// Tells the throttle how many recipients and calls used the units.
    pub(super) fn used(&self, units: &Units, recipients: usize, calls: usize) {
        let used = Used {
            recipients: recipients as u32,
            calls: calls as u32,
            rest: units.may_be_used(),
        };
        let throttle = &self.session.throttle;
        throttle.correct(&units.ask, units.recipients as u32, used);
    }
}
