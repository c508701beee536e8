//! Ends a delivery: makes everything that follows from it durable before it is acked (promise 5).

use std::sync::Arc;
use std::time::Duration;

use super::{DeliveryEnd, DeliveryRun, DeliveryScope, LEDGER_AWAY_WAIT, Pause};
use crate::clock::{now_ms, rfc3339};
use crate::domain::announce::{DeadLetter, DeadRecipient};
use crate::domain::delivery::Dead;
use crate::domain::directive::Go;
use crate::domain::ids::Fingerprint;
use crate::domain::outcome::Outcome;
use crate::domain::schedule::{RUNGS, rung};
use crate::domain::slice::Addressed;
use crate::json;
use crate::metrics::LedgerStep;
use crate::ports::{
    Claim, Claimed, Lost, Outgoing, Publisher, Reason, Route, Settle, Store, Transport,
};
use crate::runtime::backlog::UnrecordedDelivery;
use crate::runtime::call::lost;

impl<S: Store, T: Transport, P: Publisher> DeliveryRun<'_, S, T, P> {
    /// Ends the delivery, once no call is out any more.
    pub(super) async fn close(mut self, stop: Option<Pause>) -> Result<DeliveryEnd, Lost> {
        let end = self.end(stop).await;
        if end.is_err() {
            self.hand_over();
        }
        end
    }

    async fn end(&mut self, stop: Option<Pause>) -> Result<DeliveryEnd, Lost> {
        let stopped = stop.is_some();
        match stop {
            None => {
                let delay = self.delivery.delay();
                let due = || now_ms() + rung(delay).as_millis() as u64;
                self.due_at_ms = (!delay.is_zero()).then(due);
            }
            Some(Pause::Deferred(delay)) => {
                // A slice that came back early still waits for its next attempt.
                self.due_at_ms = self.scope.slice.due_at_ms.filter(|at| *at > now_ms());
                self.delivery.defer(delay);
            }
            // The worker that settled it may have died before it completed the job. The last step
            // is taken again, which changes nothing if it was taken.
            Some(Pause::SliceDone) => self.delivery.slice_is_done(),
            Some(Pause::Lost) => return Err(Lost),
        }
        self.give_up_asked().await;
        self.bury().await?;
        if !stopped && self.delivery.wait_for_hours(now_ms()) {
            self.due_at_ms = None;
        }
        self.finish_record().await?;
        self.tell_reached().await;
        let scope = self.scope;
        let left = !self.delivery.leaves_nobody();
        if left {
            self.publish_remainder().await?;
        } else {
            self.tell_missing();
        }
        if let Some(progress) = self.progress {
            scope.session.follow(&scope.slice.head, progress).await?;
        }
        Ok(if left {
            DeliveryEnd::Deferred
        } else {
            DeliveryEnd::Done
        })
    }

    /// The session is lost: hands over to the backlog what is known and not recorded.
    fn hand_over(&self) {
        let scope = self.scope;
        let batch = self.delivery.batch();
        scope.session.context.hand_over(UnrecordedDelivery {
            head: Arc::clone(&scope.slice.head),
            id: scope.slice.id.clone(),
            entries: scope.slice.entries,
            shape: scope.slice.shape,
            owner: scope.owner,
            outcomes: scope.outcomes(&batch),
            ids: scope.ids(&batch),
            release: scope.fingerprints(batch.release.iter().copied()),
            unused: self.asked.clone(),
            doubted: scope.fingerprints(batch.doubted.iter().copied()),
            reasons: self.reasons(&self.dead()),
        });
    }

    /// Gives up claims that were asked for and not answered, in case the ledger granted them. They
    /// were never used, and a worker that took them over would have to treat them as doubts.
    async fn give_up_asked(&self) {
        if self.asked.is_empty() {
            return;
        }
        let scope = self.scope;
        let context = &*scope.session.context;
        let settle = context.store.settle(Settle {
            unused: &self.asked,
            ..Settle::of(scope.slice_ref(), scope.owner)
        });
        // Not repeated: a claim that reached the ledger stays unanswered only at the moment of a
        // fault.
        let _ = context.try_step(LedgerStep::Settle, settle).await;
    }

    /// Records what is not recorded yet. If the slice is complete, records that too.
    async fn finish_record(&mut self) -> Result<(), Lost> {
        let batch = self.delivery.batch();
        if batch.is_empty() || (self.closed && batch.outcomes.is_empty()) {
            return Ok(());
        }
        // The delivery keeps what the ledger does not take.
        let Some(recorded) = self.scope.record(&batch).await? else {
            return Ok(());
        };
        self.note_recorded(&batch, recorded);
        let again = self.delivery.batch();
        if !self.closed && again.last > batch.last {
            // Other slices had settled some of the recipients first, and this delivery learned it
            // only now.
            if let Some(recorded) = self.scope.record(&again).await? {
                self.note_recorded(&again, recorded);
            }
        }
        Ok(())
    }

    async fn publish_remainder(&self) -> Result<(), Lost> {
        let scope = self.scope;
        scope
            .session
            .context
            .note_waiting(scope.slice.head.id)
            .await;
        let mut remainder =
            self.delivery
                .remainder(&scope.slice, scope.owner, self.first_attempt_at_ms);
        if self.together {
            remainder.together = None;
        }
        let control = scope.control(&self.directives.borrow());
        let lane = scope.lane_now(&control);
        remainder.lane = lane.clone();
        remainder.due_at_ms = self.due_at_ms;
        let mut delay = self.delivery.delay();
        let (remainder, lane, wait) = scope.session.to_fallback(remainder, lane);
        delay = wait.unwrap_or(delay);
        if !remainder.unrecorded.is_empty() {
            delay = delay.max(LEDGER_AWAY_WAIT);
            let outcomes = self.delivery.unrecorded_outcomes();
            scope.target.metrics.unrecorded.inc_by(outcomes as u64);
        }
        // What ends soon does not wait for long.
        let ends_in = match control.go {
            Go::Cancelled => Some(Duration::ZERO),
            _ => scope.expires_in(),
        };
        let ends_in = ends_in.map_or(Duration::MAX, |left| left.max(RUNGS[0]));
        delay = delay.min(ends_in);
        let route = if delay.is_zero() {
            Route::Lane(lane)
        } else {
            let rung = rung(delay);
            scope.session.context.metrics.retry_delay(rung);
            Route::Wait { lane, rung }
        };
        let message = remainder.outgoing(route, scope.traceparent.clone());
        scope.session.publish(vec![message]).await
    }

    // --- Dead letters ------------------------------------------------------------------------

    /// Publishes the dead letters and marks their recipients to be settled next.
    async fn bury(&mut self) -> Result<(), Lost> {
        self.regain().await?;
        if self.delivery.dead().is_empty() {
            return Ok(());
        }
        let dead = self.dead();
        self.record_reasons(&dead).await;
        let scope = self.scope;
        scope.publish_dead(&dead, self.first_attempt_at_ms).await?;
        self.delivery.lettered();
        Ok(())
    }

    /// Claims refused recipients again, which are free since they were refused. With lists that
    /// overlap, another slice may have called them meanwhile, and the result of that call does not
    /// belong to this delivery.
    async fn regain(&mut self) -> Result<(), Lost> {
        let refused = self.delivery.refused_and_free();
        if refused.is_empty() {
            return Ok(());
        }
        let asked = self.scope.fingerprints(refused.iter().copied());
        let claimed = self.scope.regain(&asked).await;
        if claimed.is_err() {
            self.asked.extend(asked);
        }
        match claimed? {
            // Without the ledger, the delivery's own result counts.
            None => {}
            Some(Claimed::SliceDone) => self.delivery.slice_is_done(),
            Some(Claimed::Each(states)) => {
                let rules = self.scope.rules;
                self.delivery.regained(&refused, &states, rules, lost);
            }
        }
        Ok(())
    }

    fn dead(&self) -> Vec<DeadRecipient> {
        let dead = self.delivery.dead().iter();
        dead.map(|dead| {
            let mut told = self.scope.dead_recipient(dead);
            if let Some(text) = self.refused_before(dead.index, &dead.answer.text) {
                told.text = text.into();
            }
            told
        })
        .collect()
    }

    fn reasons(&self, dead: &[DeadRecipient]) -> Vec<(Fingerprint, Reason)> {
        let places = self.delivery.dead().iter();
        places
            .zip(dead)
            .map(|(it, dead)| (self.scope.fingerprints[it.index], Reason::from(dead)))
            .collect()
    }

    /// Stores the reasons in the ledger. There they are found without a search through dead
    /// letters, and the next delivery finds them if the letter cannot be written. Not repeated on
    /// failure: the letters are what counts.
    async fn record_reasons(&self, dead: &[DeadRecipient]) {
        let scope = self.scope;
        if scope.goes_without_ledger() {
            return;
        }
        let context = &*scope.session.context;
        let reasons = self.reasons(dead);
        let record_reasons = context.store.record_reasons(scope.slice.head.id, &reasons);
        let _ = context.try_step(LedgerStep::Settle, record_reasons).await;
    }

    /// Reports entries of this slice that are gone: no delivery has them, and their outcome is not
    /// known.
    fn tell_missing(&self) {
        let missing = self.missing.max(self.delivery.missing());
        if missing == 0 {
            return;
        }
        let scope = self.scope;
        scope.session.context.metrics.entries_missing(missing);
        tracing::error!(
            job.id = %scope.slice.head.id, slice.id = %scope.slice.id, missing,
            "entries of a slice have no outcome, and no delivery has them: they stay pending \
             until the job counts as abandoned. Submit the same job again: recipients without an \
             outcome are then sent to"
        );
    }
}

impl<S: Store, T: Transport, P: Publisher> DeliveryScope<'_, S, T, P> {
    /// Claims recipients at the end of the delivery. None: the ledger is down, and the app fails
    /// open.
    async fn regain(&self, recipients: &[Fingerprint]) -> Result<Option<Claimed>, Lost> {
        let context = &*self.session.context;
        if self.goes_without_ledger() {
            return Ok(None);
        }
        let claim = Claim {
            slice: self.slice_ref(),
            owner: self.owner,
            lease: context.settings.lease,
            recipients,
        };
        let ask = || context.store.claim(claim);
        if self.fail_open {
            return Ok(context.try_step(LedgerStep::Claim, ask()).await.ok());
        }
        let lost = self.session.lost.cancelled();
        let step = context.step(LedgerStep::Claim, lost, ask);
        step.await.map(Some).map_err(|_| Lost)
    }

    fn dead_recipient(&self, dead: &Dead) -> DeadRecipient {
        DeadRecipient {
            recipient: self.slice.recipients[dead.index].clone(),
            vars: self.slice.vars_of(dead.index).map(ToOwned::to_owned),
            outcome: dead.outcome,
            class: dead.answer.class,
            code: dead.answer.code.clone(),
            text: dead.answer.text.clone(),
            attempts: dead.attempts,
        }
    }

    async fn publish_dead(
        &self,
        dead: &[DeadRecipient],
        first_attempt_at_ms: Option<u64>,
    ) -> Result<(), Lost> {
        let head = &self.slice.head;
        let now = now_ms();
        let letter = DeadLetter {
            v: 1,
            job: head.id.to_string(),
            app: head.app.clone(),
            client_msg_no: head.client_msg_no.clone(),
            target: head.first_target().to_owned(),
            slice: self.slice.id.to_string(),
            sender: head.sender.clone(),
            category: head.category.clone(),
            group_type: match head.addressed {
                Addressed::Users => None,
                Addressed::Groups(kind) => Some(kind),
            },
            keep_ids: head.keep_ids,
            message: json::raw(&head.message()),
            options: json::raw(&head.options),
            first_attempt_at: rfc3339(first_attempt_at_ms.unwrap_or(now)),
            last_attempt_at: rfc3339(now),
            recipients: dead.to_vec(),
        };
        let message = Outgoing {
            route: Route::Dead {
                app: head.app.clone(),
                target: head.first_target().to_owned(),
            },
            body: json::bytes(&letter).into(),
            message_id: format!("{}/{}/dead", head.id, self.slice.id),
            traceparent: self.traceparent.clone(),
        };
        self.session.publish(vec![message]).await?;
        for outcome in [Outcome::Failed, Outcome::Uncertain] {
            let count = dead.iter().filter(|dead| dead.outcome == outcome).count();
            if count > 0 {
                let metrics = &self.session.context.metrics;
                metrics.dead_letters(&self.target.name, outcome, count as u64);
            }
        }
        Ok(())
    }
}
