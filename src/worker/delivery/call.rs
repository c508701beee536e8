//! Makes one call, unless something holds it back.

use tokio::sync::watch;
use tokio::time::Instant;

use super::flight::Back;
use super::{DeliveryScope, spans};
use crate::clock::now_ms;
use crate::domain::delivery::Call;
use crate::domain::directive::Board;
use crate::domain::fields::Problem;
use crate::domain::outcome::{Class, Verdict};
use crate::domain::personal::Personal;
use crate::ports::{Calls, Publisher, Store, Transport};
use crate::runtime::call::{Called, Caller};
use crate::runtime::traces::Span;

/// Until when a call may start.
#[derive(Clone, Copy)]
pub(super) struct Until {
    /// Its claims last much longer than that.
    pub(super) claims: Instant,
    /// Its units of the limits are for this time. `None` without limits.
    pub(super) units: Option<Instant>,
}

impl Until {
    fn is_over(&self, now: Instant) -> bool {
        now >= self.claims || self.units.is_some_and(|units| now >= units)
    }
}

/// A call whose recipients are claimed, with the message of a personal job.
pub(super) type Ready = (Call, Option<Box<dyn Calls>>);

pub(super) fn recipients(calls: &[Ready]) -> usize {
    calls.iter().map(|(call, _)| call.members.len()).sum()
}

impl<S: Store, T: Transport, P: Publisher> DeliveryScope<'_, S, T, P> {
    /// Makes a call, unless a directive holds it back, its sending hours are over, or it waited so
    /// long that its claims or its units of the limits are too old.
    pub(super) async fn one_call(
        &self,
        call: Call,
        personal: Option<Box<dyn Calls>>,
        directives: watch::Receiver<Board>,
        granted: Until,
        permit: tokio::sync::SemaphorePermit<'_>,
    ) -> Back {
        let may_leave = || self.may_leave(&directives, granted.units.is_some(), Instant::now());
        let mut caller = Caller {
            target: &self.target,
            transport: &self.session.context.transport,
            traceparent: self.traceparent.as_deref(),
            may_leave: &may_leave,
        };
        let began = Instant::now();
        if !call.in_doubt
            && let Err(answer) = caller.credential().await
        {
            self.target.metrics.call(answer.class, began.elapsed());
            let called = Called {
                verdict: Verdict::All(answer),
                cleared: false,
            };
            return Back {
                call,
                called: Some(called),
            };
        }
        let started = Instant::now();
        if !may_leave() || !self.are_open(&call.members, now_ms()) || granted.is_over(started) {
            return Back { call, called: None };
        }
        let one;
        let several;
        let name = |index: usize| self.slice.recipients[index].as_str();
        let recipients: &[&str] = if let [index] = call.members[..] {
            one = [name(index)];
            &one
        } else {
            several = call
                .members
                .iter()
                .map(|index| name(*index))
                .collect::<Vec<_>>();
            &several
        };
        let calls = personal.as_deref().unwrap_or(&*self.calls);
        let span = spans::call(self.span.as_ref(), &self.target.name, recipients.len());
        let traceparent = span.as_ref().map(Span::traceparent);
        if traceparent.is_some() {
            caller.traceparent = traceparent.as_deref();
        }
        let called = caller.call(calls, recipients, call.in_doubt).await;
        let took = started.elapsed();
        self.target.calls.give_back(permit);
        if let Some(called) = &called {
            spans::answered(span, &called.verdict);
            self.target.metrics.call(class_of(&called.verdict), took);
        }
        Back { call, called }
    }

    /// Opens the call of one recipient of a personal job and checks it against the target's limits.
    pub(super) fn open_for(
        &self,
        personal: &Result<Personal, Problem>,
        index: usize,
    ) -> Result<Box<dyn Calls>, Problem> {
        let personal = personal.as_ref().map_err(Problem::clone)?;
        let head = personal.render(self.slice.vars_of(index))?;
        let target = &*self.target.target;
        match target.check(&head).into_iter().next() {
            Some(problem) => Err(problem),
            None => Ok(target.open(&head)),
        }
    }
}

/// The class of a call as a whole: the class that all its recipients got, or the best one.
pub(super) fn class_of(verdict: &Verdict) -> Class {
    match verdict {
        Verdict::All(answer) => answer.class,
        Verdict::Each(answers) if answers.iter().any(|answer| answer.class == Class::Done) => {
            Class::Done
        }
        Verdict::Each(answers) => answers.first().map_or(Class::Done, |answer| answer.class),
    }
}
