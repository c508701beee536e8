//! Claims the recipients of the next calls, and makes those calls.

use std::time::Duration;

use tokio::time::Instant;

use super::call::{Ready, Until, recipients};
use super::flight::Flight;
use super::limits::{Granted, Units};
use super::{DeliveryRun, Pause};
use crate::clock::now_ms;
use crate::domain::delivery::{Batch, Call};
use crate::domain::outcome::{Class, OnUncertain, Outcome, TargetAnswer};
use crate::ports::{Claimed, Publisher, Store, Transport};
use crate::runtime::call::lost;
use crate::runtime::context::GivenUp;

impl<'a, S: Store, T: Transport, P: Publisher> DeliveryRun<'a, S, T, P> {
    /// Claims the recipients of the next calls and makes them.
    pub(super) async fn window(
        &mut self,
        granted: Granted<'a>,
        flight: &mut Flight<'a, S, T, P>,
    ) -> Result<(), Pause> {
        let batch = match self.scope.fail_open {
            true => {
                self.record(flight).await?;
                Batch::default()
            }
            false => self.known(flight).await,
        };
        self.delivery.pick(granted.calls, granted.recipients);
        let claims = Instant::now() + self.scope.session.context.settings.lease / 3;
        let calls = self.claim(&batch, None, flight).await?;
        let calls = self.fill_in(calls);
        let calls = self.within_cap(calls, flight).await?;
        let (calls, units) = self.spend(granted.units, calls, flight).await;
        let until = Until { claims, units };
        match calls.is_empty() {
            true => self.scope.target.health.probe_unused(),
            false => self.note_first_attempt(),
        }
        let mut permits = granted.permits;
        for (call, personal) in calls {
            // There is at least one permit for each call that was picked.
            let Some(permit) = permits.split(1) else {
                self.delivery.not_made(&call);
                continue;
            };
            let directives = self.directives.clone();
            let call = self
                .scope
                .one_call(call, personal, directives, until, permit);
            flight.add(call);
        }
        Ok(())
    }

    /// Uses up the units of the limits. If the claim took so long that they are too old, asks anew.
    /// Returns the calls that may be made, and until when.
    pub(super) async fn spend(
        &mut self,
        units: Option<Units>,
        mut calls: Vec<Ready>,
        flight: &mut Flight<'a, S, T, P>,
    ) -> (Vec<Ready>, Option<Instant>) {
        let scope = self.scope;
        let Some(mut units) = units else {
            return (calls, None);
        };
        if !units.may_be_used() && !calls.is_empty() {
            let again = scope.units_again(&units, recipients(&calls), &self.directives);
            let again = flight.during(&self.delivery, again).await;
            // What one of the old units was taken for is no debt of the limits.
            let Some(again) = again else {
                for (call, _) in calls {
                    self.delivery.not_made(&call);
                }
                return (Vec::new(), None);
            };
            while recipients(&calls) > again.recipients
                && let Some((call, _)) = calls.pop()
            {
                self.delivery.not_made(&call);
            }
            units = again;
        }
        scope.used(&units, recipients(&calls), calls.len());
        (calls, Some(units.until()))
    }

    /// Ends every recipient without an outcome; none is sent to any more.
    pub(super) async fn end_all(
        &mut self,
        outcome: Outcome,
        flight: &mut Flight<'a, S, T, P>,
    ) -> Result<(), Pause> {
        self.record(flight).await?;
        let everybody = self.delivery.waiting();
        self.delivery.pick(everybody, everybody);
        let nothing = Batch::default();
        self.claim(&nothing, Some(outcome), flight).await?;
        self.record(flight).await
    }

    /// Records a batch, claims the recipients that were picked, and returns the calls that may be
    /// made. `over`: how the recipients without an outcome end, if none is to be sent to any more.
    pub(super) async fn claim(
        &mut self,
        batch: &Batch,
        over: Option<Outcome>,
        flight: &mut Flight<'a, S, T, P>,
    ) -> Result<Vec<Call>, Pause> {
        let scope = self.scope;
        let picked = scope.fingerprints(self.delivery.picked());
        let turn = scope.record_and_claim(batch, &picked);
        let claimed = match flight.during(&self.delivery, turn).await {
            Ok((recorded, claimed)) => {
                if let Some(recorded) = recorded {
                    self.note_recorded(batch, recorded);
                }
                claimed
            }
            Err(given_up) => {
                self.delivery.unpick();
                self.asked = picked;
                return Err(Pause::Deferred(match given_up {
                    GivenUp::Halted => Duration::ZERO,
                    GivenUp::Broken => scope.wait_for_repair(),
                }));
            }
        };
        let states = match claimed {
            Claimed::SliceDone => return Err(Pause::SliceDone),
            Claimed::Each(states) => states,
        };
        scope.count_claims(&states);
        let asks = |index: usize| {
            let recipient = [scope.slice.recipients[index].as_str()];
            scope.calls.probe(&recipient).is_some()
        };
        let known = scope.reasons(self.delivery.unexplained(&states));
        let known = flight.during(&self.delivery, known).await;
        let why = |index: usize| known.get(&index).cloned().unwrap_or_else(lost);
        let claimed = self.delivery.claimed(&states, over, scope.rules, asks, why);
        if claimed.uncertain > 0 {
            let policy = match scope.rules.on_uncertain {
                // Too late to send again, and not known to have failed.
                OnUncertain::Retry if over.is_some() => OnUncertain::Hold,
                policy => policy,
            };
            scope.count_uncertain(policy, claimed.uncertain);
        }
        Ok(claimed.calls)
    }

    /// Fills in the texts of a personal job. A recipient whose values do not fit fails without a
    /// call: nothing was ever sent to it, and a later attempt would fail in the same way.
    pub(super) fn fill_in(&mut self, calls: Vec<Call>) -> Vec<Ready> {
        let scope = self.scope;
        let Some(personal) = &scope.personal else {
            return calls.into_iter().map(|call| (call, None)).collect();
        };
        let mut filled = Vec::with_capacity(calls.len());
        for call in calls {
            for index in call.members {
                match scope.open_for(personal, index) {
                    Ok(calls) => {
                        let (members, in_doubt) = (vec![index], call.in_doubt);
                        filled.push((Call { members, in_doubt }, Some(calls)));
                    }
                    Err(problem) => {
                        let answer =
                            TargetAnswer::new(Class::Permanent, "template", problem.to_string());
                        self.delivery.refused(index, answer, scope.rules);
                    }
                }
            }
        }
        filled
    }

    pub(super) fn note_first_attempt(&mut self) {
        if self.first_attempt_at_ms.is_none() {
            let head = &self.scope.slice.head;
            let due = head
                .accepted_at_ms
                .max(head.not_before_ms.unwrap_or_default());
            let delay = Duration::from_millis(now_ms().saturating_sub(due));
            self.scope.session.context.metrics.started(delay);
            self.first_attempt_at_ms = Some(now_ms());
        }
    }
}
