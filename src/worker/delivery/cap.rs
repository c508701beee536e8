//! Asks the frequency cap of the job's category before each call. A job without a category asks
//! nothing.
//!
//! A recipient takes its unit after the claim and before the call, so only recipients that a call
//! may be made for take one. A worker that is killed between the two leaves a unit that no message
//! used, and a worker that dies after a record and before the unit goes back does the same: the
//! recipient may get fewer messages than its cap, never more.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::call::Ready;
use super::flight::Flight;
use super::{DeliveryRun, DeliveryScope, Pause};
use crate::domain::delivery::Batch;
use crate::domain::frequency_cap::FrequencyCap;
use crate::domain::ids::{Fingerprint, Fingerprinter};
use crate::domain::slice::Head;
use crate::metrics::LedgerStep;
use crate::ports::{CapUnits, Publisher, Store, Transport};
use crate::runtime::context::{AppRuntime, GivenUp, Settings};

/// The cap of a job's category.
pub(super) struct Cap {
    cap: FrequencyCap,
    fingerprinter: Fingerprinter,
}

impl Cap {
    /// `None` without a category, or if the configuration has it no longer.
    pub(super) fn of(head: &Head, app: Option<&AppRuntime>, settings: &Settings) -> Option<Self> {
        let category = head.category.as_ref()?;
        let (secret, kind) = (&settings.fingerprint_secret, head.addressed.kind());
        Some(Self {
            cap: *app?.frequency_caps.get(category)?,
            fingerprinter: Fingerprinter::of_app(secret, &head.app, &kind),
        })
    }
}

impl<S: Store, T: Transport, P: Publisher> DeliveryScope<'_, S, T, P> {
    /// Takes a unit of the cap for each of these recipients and returns those that get none. While
    /// the ledger is down, an app that fails open sends without asking.
    async fn over_cap(&self, cap: &Cap, recipients: &[usize]) -> Result<Vec<usize>, GivenUp> {
        if self.goes_without_ledger() {
            return Ok(Vec::new());
        }
        let context = &*self.session.context;
        let asked = self.units_of(cap, recipients.iter().copied());
        let units = self.cap_units(cap, &asked);
        let take = || context.store.take_units(units);
        let taken = if self.fail_open {
            let Ok(taken) = context.try_step(LedgerStep::Cap, take()).await else {
                return Ok(Vec::new());
            };
            taken
        } else {
            let halted = self.session.halt.cancelled();
            context.step_of_slice(LedgerStep::Cap, halted, take).await?
        };
        let over = recipients.iter().zip(taken).filter(|(_, taken)| !taken);
        Ok(over.map(|(index, _)| *index).collect())
    }

    /// Gives back the units of recipients that ended without a message. Called when the ledger has
    /// their outcomes. Not repeated: a unit that stays counts until its period is over.
    pub(super) async fn give_back_units(&self, batch: &Batch) {
        let Some(cap) = &self.cap else { return };
        let outcomes = batch.outcomes.iter();
        let without = outcomes.filter(|(_, outcome)| outcome.is_without_message());
        let units = self.units_of(cap, without.map(|(index, _)| *index));
        if units.is_empty() || self.goes_without_ledger() {
            return;
        }
        let context = &*self.session.context;
        let give_back = context.store.give_back_units(self.cap_units(cap, &units));
        let _ = context.try_step(LedgerStep::Cap, give_back).await;
    }

    fn units_of(&self, cap: &Cap, recipients: impl Iterator<Item = usize>) -> Vec<Fingerprint> {
        let name = |index: usize| &self.slice.recipients[index];
        recipients
            .map(|index| cap.fingerprinter.fingerprint(name(index)))
            .collect()
    }

    fn cap_units<'r>(&'r self, cap: &Cap, recipients: &'r [Fingerprint]) -> CapUnits<'r> {
        let head = &self.slice.head;
        CapUnits {
            app: &head.app,
            category: head.category.as_deref().unwrap_or_default(),
            cap: cap.cap,
            job: head.id,
            recipients,
        }
    }
}

impl<'a, S: Store, T: Transport, P: Publisher> DeliveryRun<'a, S, T, P> {
    /// Takes a unit of the cap for each recipient of these calls. Recipients that get none leave
    /// their calls.
    pub(super) async fn within_cap(
        &mut self,
        calls: Vec<Ready>,
        flight: &mut Flight<'a, S, T, P>,
    ) -> Result<Vec<Ready>, Pause> {
        let scope = self.scope;
        let Some(cap) = scope.cap.as_ref().filter(|_| !calls.is_empty()) else {
            return Ok(calls);
        };
        let members = calls.iter().flat_map(|(call, _)| &call.members);
        let members: Vec<usize> = members.copied().collect();
        let asked_at = Instant::now();
        let asked = scope.over_cap(cap, &members);
        let answer = flight.during(&self.delivery, asked).await;
        // Without an answer for so long, the claims may have ended.
        let late = asked_at.elapsed() > scope.session.context.settings.lease / 3;
        if late || answer.is_err() {
            for (call, _) in &calls {
                self.delivery.not_made(call);
            }
        }
        let over = match answer {
            Ok(_) if late => return Ok(Vec::new()),
            Ok(over) if over.is_empty() => return Ok(calls),
            Ok(over) => over,
            Err(GivenUp::Halted) => return Err(Pause::Deferred(Duration::ZERO)),
            Err(GivenUp::Broken) => return Err(Pause::Deferred(scope.wait_for_repair())),
        };
        self.delivery.capped(&over, scope.rules);
        let over: HashSet<usize> = over.into_iter().collect();
        let left = calls.into_iter().filter_map(|(mut call, personal)| {
            call.members.retain(|index| !over.contains(index));
            (!call.members.is_empty()).then_some((call, personal))
        });
        Ok(left.collect())
    }
}
