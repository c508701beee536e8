//! Takes the steps of the ledger that a delivery needs, and counts what they say.

use std::collections::HashMap;
use std::time::Duration;

use super::{DeliveryScope, Pause, REPAIR_WAIT};
use crate::domain::delivery::Batch;
use crate::domain::ids::{Fingerprint, Fingerprinter};
use crate::domain::message_id::{KeptId, MessageId, RecallState};
use crate::domain::outcome::{Class, OnUncertain, Outcome, TargetAnswer};
use crate::domain::slice::Unrecorded;
use crate::metrics::LedgerStep;
use crate::ports::{
    Claim, ClaimState, Claimed, Lost, Publisher, Recorded, Settle, Store, Transport,
};
use crate::runtime::context::GivenUp;

impl<S: Store, T: Transport, P: Publisher> DeliveryScope<'_, S, T, P> {
    /// Records a batch, if there is anything in it, and claims these recipients, in one step.
    pub(super) async fn record_and_claim(
        &self,
        batch: &Batch,
        recipients: &[Fingerprint],
    ) -> Result<(Option<Recorded>, Claimed), GivenUp> {
        if batch.is_empty() {
            return Ok((None, self.claim(recipients).await?));
        }
        let context = &*self.session.context;
        let recorded = Recordable::of(self, batch);
        let ask = || async {
            context.catch_up().await?;
            let claim = self.claim_of(recipients);
            let both = context.store.settle_and_claim(recorded.settle(self), claim);
            both.await
        };
        let halted = self.session.halt.cancelled();
        let step = context.step_of_slice(LedgerStep::Claim, halted, ask);
        let (recorded, claimed) = step.await?;
        Ok((Some(recorded), claimed))
    }

    fn claim_of<'r>(&'r self, recipients: &'r [Fingerprint]) -> Claim<'r> {
        Claim {
            slice: self.slice_ref(),
            owner: self.owner,
            lease: self.session.context.settings.lease,
            recipients,
        }
    }

    /// Claims these recipients. Waits for the ledger until no new work may start. An app that fails
    /// open sends without a claim, so other workers may send to the same recipients.
    async fn claim(&self, recipients: &[Fingerprint]) -> Result<Claimed, GivenUp> {
        let context = &*self.session.context;
        let claim = self.claim_of(recipients);
        let ask = || async {
            // Outcomes that this process still has to record must not look like doubts.
            context.catch_up().await?;
            context.store.claim(claim).await
        };
        if !self.fail_open {
            let halted = self.session.halt.cancelled();
            return context.step_of_slice(LedgerStep::Claim, halted, ask).await;
        }
        if !self.goes_without_ledger()
            && let Ok(claimed) = context.try_step(LedgerStep::Claim, ask()).await
        {
            return Ok(claimed);
        }
        let unguarded = &self.target.metrics.unguarded;
        unguarded.inc_by(recipients.len() as u64);
        Ok(Claimed::Each(vec![ClaimState::Granted; recipients.len()]))
    }

    /// Why recipients are in doubt, where a delivery that could not write their dead letters
    /// recorded the reason in the ledger.
    pub(super) async fn reasons(&self, indices: Vec<usize>) -> HashMap<usize, TargetAnswer> {
        if indices.is_empty() {
            return HashMap::new();
        }
        let context = &*self.session.context;
        let asked = self.fingerprints(indices.iter().copied());
        let reasons = context.store.reasons(self.slice.head.id, &asked);
        // Not repeated: without the reasons the doubt is the same, only its text says less.
        let reasons = context.try_step(LedgerStep::Claim, reasons).await;
        let known = reasons.unwrap_or_default().into_iter();
        indices
            .into_iter()
            .zip(known)
            .filter_map(|(index, reason)| {
                let reason = reason.filter(|it| it.class == Class::Uncertain)?;
                Some((
                    index,
                    TargetAnswer::new(reason.class, reason.code, reason.text),
                ))
            })
            .collect()
    }

    /// Records a batch. A known outcome must be recorded even while the process drains; if the
    /// session is lost, the backlog records it. None: the ledger is down and the app fails open, or
    /// the ledger's records make no sense and repeating does not help.
    pub(super) async fn record(&self, batch: &Batch) -> Result<Option<Recorded>, Lost> {
        let recorded = self
            .settle(Recordable::of(self, batch).settle(self))
            .await?;
        // Had another delivery settled some of them first, it might have sent to them.
        if recorded.is_some_and(|recorded| recorded.stood == 0) {
            self.give_back_units(batch).await;
        }
        Ok(recorded)
    }

    pub(super) fn outcomes(&self, batch: &Batch) -> Vec<(Fingerprint, Outcome)> {
        let outcomes = batch.outcomes.iter();
        outcomes
            .map(|(index, outcome)| (self.fingerprints[*index], *outcome))
            .collect()
    }

    /// The ids of messages, with their recipients.
    pub(super) fn ids(&self, batch: &Batch) -> Vec<(Fingerprint, KeptId)> {
        let ids = batch.ids.iter();
        ids.map(|(index, message)| {
            let kept = self.kept_id(&self.slice.recipients[*index], message);
            (self.fingerprints[*index], kept)
        })
        .collect()
    }

    fn kept_id(&self, recipient: &str, message: &MessageId) -> KeptId {
        KeptId {
            recipient: recipient.to_owned(),
            message: message.clone(),
            by_fallback: self.slice.head.fell_from.is_some(),
            recall: RecallState::No,
        }
    }

    /// Records the outcomes that earlier deliveries knew.
    pub(super) async fn record_unrecorded(
        &self,
        known: &Unrecorded,
    ) -> Result<Option<Recorded>, Lost> {
        let secret = &self.session.context.settings.fingerprint_secret;
        let fingerprinter = Fingerprinter::new(secret, self.slice.head.id);
        let named = |names: &Vec<String>| -> Vec<Fingerprint> {
            let names = names.iter();
            names.map(|name| fingerprinter.fingerprint(name)).collect()
        };
        for (owner, names) in &known.release {
            let release = named(names);
            let step = Settle {
                release: &release,
                ..Settle::of(self.slice_ref(), *owner)
            };
            if self.settle(step).await?.is_none() {
                return Ok(None);
            }
        }
        let each = |(outcome, names): &(Outcome, Vec<String>)| {
            let outcome = *outcome;
            named(names).into_iter().map(move |name| (name, outcome))
        };
        let outcomes: Vec<_> = known.outcomes.iter().flat_map(each).collect();
        let kept = |(name, message): &(String, MessageId)| {
            let fingerprint = fingerprinter.fingerprint(name);
            (fingerprint, self.kept_id(name, message))
        };
        let ids: Vec<_> = known.ids.iter().map(kept).collect();
        self.settle(Settle {
            outcomes: &outcomes,
            ids: &ids,
            ..Settle::of(self.slice_ref(), self.owner)
        })
        .await
    }

    async fn settle(&self, settle: Settle<'_>) -> Result<Option<Recorded>, Lost> {
        let context = &*self.session.context;
        if self.goes_without_ledger() {
            return Ok(None);
        }
        if self.fail_open {
            let settled = context.try_step(LedgerStep::Settle, context.store.settle(settle));
            return Ok(settled.await.ok());
        }
        let lost = self.session.lost.cancelled();
        let settle = || context.store.settle(settle);
        match context
            .step_of_slice(LedgerStep::Settle, lost, settle)
            .await
        {
            Ok(recorded) => Ok(Some(recorded)),
            Err(GivenUp::Halted) => Err(Lost),
            // The outcomes travel with the remainder of the slice.
            Err(GivenUp::Broken) => {
                self.wait_for_repair();
                Ok(None)
            }
        }
    }

    /// Whether further calls may follow when the ledger has not recorded the known results: yes
    /// where the app fails open.
    pub(super) fn unrecorded(&self) -> Result<(), Pause> {
        match self.fail_open {
            true => Ok(()),
            false => Err(Pause::Deferred(REPAIR_WAIT)),
        }
    }

    /// How long a slice waits when its records in the ledger make no sense. Logs an error.
    pub(super) fn wait_for_repair(&self) -> Duration {
        tracing::error!(
            job.id = %self.slice.head.id, slice.id = %self.slice.id,
            "the slice waits, and is tried again in {} s; the known outcomes of its recipients \
             are kept. Repair the ledger, or cancel the job",
            REPAIR_WAIT.as_secs()
        );
        REPAIR_WAIT
    }

    pub(super) fn count_claims(&self, states: &[ClaimState]) {
        let mut counts = [0; 5];
        for state in states {
            let slot = match state {
                ClaimState::Granted => 0,
                ClaimState::InDoubt => 1,
                ClaimState::TakenOver => 2,
                ClaimState::Held { .. } => 3,
                ClaimState::Settled(_) => 4,
            };
            counts[slot] += 1;
        }
        self.session.context.metrics.claims(counts);
    }

    pub(super) fn count_outcomes(&self, outcomes: impl Iterator<Item = Outcome>) {
        let context = &*self.session.context;
        context.count_outcomes(&self.target, &self.slice.head, outcomes);
    }

    /// Counts recipients that are not retried because the retries of the job are spent.
    pub(super) fn count_unretried(&self, count: u64) {
        if count == 0 {
            return;
        }
        self.target.metrics.unretried.inc_by(count);
        tracing::warn!(
            job.id = %self.slice.head.id, slice.id = %self.slice.id, count,
            "the retry budget of the job is spent: recipients are dead-lettered instead of retried"
        );
    }

    pub(super) fn count_uncertain(&self, policy: OnUncertain, count: u64) {
        let metrics = &self.session.context.metrics;
        metrics.uncertain(&self.target.name, policy, count);
    }
}

/// A batch as the ledger takes it.
struct Recordable {
    outcomes: Vec<(Fingerprint, Outcome)>,
    ids: Vec<(Fingerprint, KeptId)>,
    release: Vec<Fingerprint>,
    doubted: Vec<Fingerprint>,
    last: Option<u32>,
}

impl Recordable {
    fn of<S: Store, T: Transport, P: Publisher>(
        scope: &DeliveryScope<'_, S, T, P>,
        batch: &Batch,
    ) -> Self {
        Self {
            outcomes: scope.outcomes(batch),
            ids: scope.ids(batch),
            release: scope.fingerprints(batch.release.iter().copied()),
            doubted: scope.fingerprints(batch.doubted.iter().copied()),
            last: batch.last,
        }
    }

    fn settle<'r, S: Store, T: Transport, P: Publisher>(
        &'r self,
        scope: &'r DeliveryScope<'_, S, T, P>,
    ) -> Settle<'r> {
        Settle {
            outcomes: &self.outcomes,
            ids: &self.ids,
            release: &self.release,
            doubted: &self.doubted,
            last: self.last,
            ..Settle::of(scope.slice_ref(), scope.owner)
        }
    }
}
