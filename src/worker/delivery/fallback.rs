//! Moves recipients that the first target of a job refused to the second one, and tells who was
//! reached there.

use std::time::Duration;

use super::{DeliveryEnd, DeliveryRun, REPAIR_WAIT};
use crate::clock::now_ms;
use crate::domain::directive::Go;
use crate::domain::lane::Lane;
use crate::domain::outcome::{Class, Outcome};
use crate::domain::schedule::rung;
use crate::domain::slice::Slice;
use crate::metrics::LedgerStep;
use crate::ports::{Publisher, Reason, Route, Store, Transport};
use crate::worker::session::WorkerSession;

/// The code of the reason of a recipient that the second target accepted.
const FALLBACK: &str = "fallback";

/// A slice of which only recipients for the second target are left waited here because no worker
/// knew that target. Moves it on, lets it wait again, or ends it where it is if its job is over.
pub(super) async fn before_calls<S: Store, T, P: Publisher>(
    session: &WorkerSession<S, T, P>,
    slice: Slice,
    traceparent: Option<&str>,
) -> Result<Slice, DeliveryEnd> {
    if !slice.falls_back() {
        return Ok(slice);
    }
    let job = slice.head.id;
    if is_over(session, &slice) {
        return Ok(slice.without_fallback());
    }
    let lane = slice.lane.clone();
    let (slice, lane, wait) = session.to_fallback(slice, lane);
    session.context.note_waiting(job).await;
    let route = match wait.filter(|wait| !wait.is_zero()) {
        Some(wait) => Route::Wait {
            lane,
            rung: rung(wait),
        },
        None => Route::Lane(lane),
    };
    let message = slice.outgoing(route, traceparent.map(ToOwned::to_owned));
    Err(match session.publish(vec![message]).await {
        Ok(()) => DeliveryEnd::Deferred,
        Err(_) => DeliveryEnd::Lost,
    })
}

/// Whether the job is cancelled or expired.
fn is_over<S: Store, T, P>(session: &WorkerSession<S, T, P>, slice: &Slice) -> bool {
    let (head, now) = (&slice.head, now_ms());
    let directives = session.context.directives();
    let names = [&*head.target, &*head.app, &*head.id.to_string()];
    let control = directives.borrow().control(names, now);
    let (_, expires_at) = control.times(head);
    control.go == Go::Cancelled || expires_at.is_some_and(|at| now >= at)
}

impl<S: Store, T, P: Publisher> WorkerSession<S, T, P> {
    /// Moves a slice to the second target of its job, if only recipients for that target are left.
    /// Returns it with its lane, and how long it waits if that changes.
    pub(super) fn to_fallback(&self, slice: Slice, lane: Lane) -> (Slice, Lane, Option<Duration>) {
        if !slice.falls_back() {
            return (slice, lane, None);
        }
        let placed = Slice {
            lane: lane.clone(),
            ..slice.clone()
        };
        let moved = placed.at_fallback();
        let is_known = |it: &Slice| self.context.targets.contains_key(&it.head.target);
        match moved.filter(is_known) {
            Some(moved) => {
                let lane = moved.lane.clone();
                (moved, lane, Some(Duration::ZERO))
            }
            None => {
                let second = slice.head.fallback.as_ref().map(|it| &it.target);
                tracing::warn!(
                    job.id = %slice.head.id, slice.id = %slice.id, target = second,
                    "the second target of a job is not configured here: the recipients for it wait until \
                     it is, or until the job is cancelled"
                );
                (slice, lane, Some(REPAIR_WAIT))
            }
        }
    }
}

impl<S: Store, T: Transport, P: Publisher> DeliveryRun<'_, S, T, P> {
    /// The text of a letter from the second target, with what the first target said.
    pub(super) fn refused_before(&self, index: usize, text: &str) -> Option<String> {
        let head = &self.scope.slice.head;
        let first = head.fell_from.as_ref()?;
        let before = self.delivery.remark(index)?;
        Some(format!(
            "{}: {text}; before, {first}: {} {}",
            head.target, before.code, before.text
        ))
    }

    /// Stores in the ledger which recipients the second target accepted, and why the first one did
    /// not. Not repeated on failure: their outcomes are what counts.
    pub(super) async fn tell_reached(&self) {
        let scope = self.scope;
        if self.reached.is_empty() || scope.goes_without_ledger() {
            return;
        }
        let head = &scope.slice.head;
        let first = head.fell_from.as_deref().unwrap_or_default();
        let reason = |index: &usize| {
            let before = self.delivery.remark(*index);
            let refused =
                before.map_or_else(String::new, |it| format!(": {} {}", it.code, it.text));
            let reason = Reason {
                outcome: Outcome::Sent,
                class: Class::Done,
                code: FALLBACK.to_owned(),
                text: format!(
                    "{} accepted the message after {first} refused{refused}",
                    head.target
                ),
                attempts: self.delivery.attempts_of(*index).saturating_add(1),
            };
            (scope.fingerprints[*index], reason)
        };
        let reasons: Vec<_> = self.reached.iter().map(reason).collect();
        let context = &*scope.session.context;
        let record = context.store.record_reasons(head.id, &reasons);
        let _ = context.try_step(LedgerStep::Settle, record).await;
    }
}
