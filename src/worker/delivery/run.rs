//! Runs a delivery: decides whether it goes on, sorts the answers, and records the results.

use std::time::Duration;

use futures_util::FutureExt as _;

use super::call::class_of;
use super::flight::{Back, Flight};
use super::{DeliveryEnd, DeliveryRun, DeliveryScope, LEDGER_AWAY_WAIT, Pause};
use crate::clock::now_ms;
use crate::domain::delivery::{Batch, Delivery};
use crate::domain::directive::{Go, SliceControl};
use crate::domain::outcome::Outcome;
use crate::ports::{Lost, Publisher, Recorded, Store, Transport};
use crate::runtime::call::Called;
use crate::runtime::context::Halted;
use crate::worker::together::{self, Turn};

impl<'a, S: Store, T: Transport, P: Publisher> DeliveryRun<'a, S, T, P> {
    pub(super) fn new(scope: &'a DeliveryScope<'a, S, T, P>) -> Self {
        Self {
            delivery: Delivery::new(&scope.slice, scope.per_call),
            directives: scope.session.context.directives(),
            together: scope.slice.together.is_none(),
            first_attempt_at_ms: scope.slice.first_attempt_at_ms,
            due_at_ms: None,
            progress: None,
            closed: false,
            missing: 0,
            asked: Vec::new(),
            reached: Vec::new(),
            scope,
        }
    }

    pub(super) async fn run(mut self) -> Result<DeliveryEnd, Lost> {
        let scope = self.scope;
        let mut flight = Flight::new(scope);
        let mut grant = None;
        // It is time to record. If the next calls may be made at once, one step of the ledger
        // records and claims.
        let mut due = false;
        let mut stop = self.catch_up().await.err();
        loop {
            if due && grant.is_none() {
                flight.free_places();
            }
            let places = flight.places();
            if stop.is_none() && grant.is_none() && places > 0 && self.delivery.waiting() > 0 {
                match self.go_on(&mut flight).await {
                    Ok(None) => {
                        let directives = self.directives.clone();
                        // None, if all are outside of their own sending hours.
                        let waiting = self.delivery.waiting();
                        if waiting > 0 {
                            grant = Some(Box::pin(scope.grant(directives, waiting, places)));
                        }
                    }
                    Ok(Some(outcome)) => stop = self.end_all(outcome, &mut flight).await.err(),
                    Err(pause) => stop = Some(pause),
                }
            }
            if (stop.is_some() || self.delivery.waiting() == 0)
                && let Some(tail) = &scope.session.tail
            {
                tail.begin();
            }
            if flight.is_empty() && grant.is_none() {
                if stop.is_some() || self.delivery.waiting() == 0 {
                    break;
                }
                continue;
            }
            let granted = match std::mem::take(&mut due) {
                true => grant.as_mut().and_then(|grant| grant.now_or_never()),
                false => match flight.until(&self.delivery, grant.as_mut()).await {
                    None if grant.is_none() => {
                        due = true;
                        continue;
                    }
                    granted => granted,
                },
            };
            let Some(granted) = granted else {
                if let Err(pause) = self.record(&mut flight).await {
                    stop = stop.or(Some(pause));
                }
                continue;
            };
            grant = None;
            let window = match granted {
                Ok(Some(granted)) => self.window(granted, &mut flight).await,
                Ok(None) => Ok(()),
                Err(pause) => Err(pause),
            };
            stop = stop.or(window.err());
            due = flight.has_unrecorded();
        }
        self.close(stop).await
    }

    /// Whether further calls may be made. If no recipient is to be sent to any more, returns how
    /// the recipients without an outcome end.
    pub(super) async fn go_on(
        &mut self,
        flight: &mut Flight<'a, S, T, P>,
    ) -> Result<Option<Outcome>, Pause> {
        let scope = self.scope;
        flight
            .during(&self.delivery, scope.know_directives())
            .await?;
        let control = scope.control(&self.directives.borrow_and_update());
        let over = self.over(&control);
        self.check_time(over.is_some(), &control)?;
        if over.is_none() && scope.lane_now(&control) != scope.slice.lane {
            return Err(Pause::Deferred(Duration::ZERO));
        }
        if over.is_none()
            && let Some(own) = &scope.own_hours
        {
            let now = now_ms();
            let closed = own.closed(now);
            if closed.is_some() || self.delivery.any_due_later() {
                let opens = |index| closed.as_ref()?.opens_ms(index);
                self.delivery.put_off(now, opens);
            }
        }
        if over.is_some() || self.together {
            return Ok(over);
        }
        if scope.goes_without_ledger() {
            // Only the ledger knows whether all parts have arrived.
            return Err(Pause::Deferred(LEDGER_AWAY_WAIT));
        }
        let Some(part) = &scope.slice.together else {
            return Ok(None);
        };
        // A list that travels in parts waits until all of them have arrived. A list that was given
        // up halfway is cancelled.
        let turn = together::turn(scope.session, &scope.slice.head, part);
        match flight.during(&self.delivery, turn).await {
            Ok(Turn::Go) => {
                self.together = true;
                Ok(None)
            }
            Ok(Turn::Wait(wait)) => Err(Pause::Deferred(wait)),
            Ok(Turn::Cancel) => Ok(Some(Outcome::Cancelled)),
            Err(Halted) => Err(Pause::Deferred(Duration::ZERO)),
        }
    }

    /// How the recipients without an outcome end, if nothing more is to be sent.
    pub(super) fn over(&self, control: &SliceControl) -> Option<Outcome> {
        let (_, expires_at) = control.times(&self.scope.slice.head);
        if expires_at.is_some_and(|at| now_ms() >= at) {
            Some(Outcome::Expired)
        } else {
            (control.go == Go::Cancelled).then_some(Outcome::Cancelled)
        }
    }

    /// Whether this delivery may continue with the slice now. A slice that is over does not wait
    /// for its start time.
    pub(super) fn check_time(&self, over: bool, control: &SliceControl) -> Result<(), Pause> {
        let scope = self.scope;
        if scope.session.lost.is_cancelled() {
            return Err(Pause::Lost);
        }
        let budget = scope.session.context.settings.slice_time_max;
        if scope.session.halt.is_cancelled() || scope.began.elapsed() > budget {
            return Err(Pause::Deferred(Duration::ZERO));
        }
        if over {
            return Ok(());
        }
        if let Go::Wait(wait) = control.go {
            return Err(Pause::Deferred(wait));
        }
        let now = now_ms();
        let (not_before, _) = control.times(&scope.slice.head);
        let due = not_before.max(scope.slice.due_at_ms);
        match due.max(scope.opens_ms(now)) {
            Some(at) if at > now => Err(Pause::Deferred(Duration::from_millis(at - now))),
            _ => Ok(()),
        }
    }

    /// Decides what follows for the recipients of the calls that were answered.
    pub(super) async fn sort(&mut self, flight: &mut Flight<'a, S, T, P>) {
        let scope = self.scope;
        let context = &*scope.session.context;
        while let Some(Back { call, called }) = flight.take() {
            let Some(Called { verdict, cleared }) = called else {
                // Its share of the limits is not refunded: the rate falls below the limit for a
                // moment and never exceeds it.
                self.delivery.not_made(&call);
                continue;
            };
            let delay = |attempt| scope.retry.delay(attempt);
            let answered = self
                .delivery
                .answered(&call, &verdict, cleared, scope.rules, delay);
            if answered.uncertain > 0 {
                scope.count_uncertain(scope.rules.on_uncertain, answered.uncertain);
            }
            scope.target.metrics.retries.inc_by(answered.retries);
            scope.count_unretried(answered.unretried);
            let (class, answer) = (class_of(&verdict), verdict.of(0));
            let target = &scope.target;
            let sender = target
                .target
                .sender_at_fault(&scope.slice.head, &answer.code);
            let heed = context.heed(target, &scope.job, sender, class, answer);
            flight.during(&self.delivery, heed).await;
        }
    }

    /// Records first the outcomes that earlier deliveries knew and could not record.
    pub(super) async fn catch_up(&mut self) -> Result<(), Pause> {
        let unrecorded = self.delivery.unrecorded();
        if unrecorded.is_empty() {
            return Ok(());
        }
        let recorded = self.scope.record_unrecorded(unrecorded).await;
        let Some(recorded) = recorded.map_err(|Lost| Pause::Lost)? else {
            return self.scope.unrecorded();
        };
        let of = |(outcome, names): &(Outcome, Vec<String>)| vec![*outcome; names.len()];
        let outcomes = unrecorded.outcomes.iter().flat_map(of);
        self.scope.count_outcomes(outcomes);
        self.progress = recorded.progress.or(self.progress);
        self.delivery.caught_up(recorded.stood);
        Ok(())
    }

    /// Records the results that became known, if there are any.
    pub(super) async fn record(&mut self, flight: &mut Flight<'a, S, T, P>) -> Result<(), Pause> {
        let batch = self.known(flight).await;
        if batch.is_empty() {
            return Ok(());
        }
        let step = self.scope.record(&batch);
        let recorded = flight.during(&self.delivery, step).await;
        let Some(recorded) = recorded.map_err(|Lost| Pause::Lost)? else {
            return self.scope.unrecorded();
        };
        self.note_recorded(&batch, recorded);
        Ok(())
    }

    /// The results that became known. They are to be recorded now.
    pub(super) async fn known(&mut self, flight: &mut Flight<'a, S, T, P>) -> Batch {
        self.sort(flight).await;
        flight.recorded();
        self.delivery.batch()
    }

    pub(super) fn note_recorded(&mut self, batch: &Batch, recorded: Recorded) {
        let outcomes = batch.outcomes.iter().map(|(_, outcome)| *outcome);
        self.scope.count_outcomes(outcomes);
        if self.scope.slice.head.fell_from.is_some() {
            let sent = batch.outcomes.iter().filter(|it| it.1 == Outcome::Sent);
            self.reached.extend(sent.map(|it| it.0));
        }
        self.delivery.recorded(recorded.stood);
        self.progress = recorded.progress.or(self.progress);
        self.closed = batch.last.is_some() && recorded.missing == 0;
        self.missing = recorded.missing;
    }
}
