//! What applies to a delivery while it runs: its rules and limits, the directives, and its claims.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::cap::Cap;
use super::{DeliveryScope, Pause, limits, spans};
use crate::clock::now_ms;
use crate::domain::delivery::{Delivery, Rules};
use crate::domain::directive::{Board, Go, SliceControl};
use crate::domain::fallback::FallsOn;
use crate::domain::fields::Problem;
use crate::domain::ids::{Fingerprint, Fingerprinter, Owner};
use crate::domain::job_limits::LimitOf;
use crate::domain::lane::Lane;
use crate::domain::own_hours::OwnHours;
use crate::domain::personal::Personal;
use crate::domain::slice::Slice;
use crate::metrics::LedgerStep;
use crate::ports::{Publisher, SliceRef, Store, Transport};
use crate::runtime::context::TargetRuntime;
use crate::worker::session::WorkerSession;

impl<'a, S: Store, T: Transport, P: Publisher> DeliveryScope<'a, S, T, P> {
    pub(super) fn new(
        session: &'a WorkerSession<S, T, P>,
        target: Arc<TargetRuntime>,
        mut slice: Slice,
        personal: Option<Result<Personal, Problem>>,
        traceparent: Option<String>,
    ) -> Self {
        let context = &*session.context;
        let fingerprinter = Fingerprinter::new(&context.settings.fingerprint_secret, slice.head.id);
        let app = context.apps.get(&slice.head.app);
        let retry = app.map_or(target.retry, |app| target.retry.with(&app.retry));
        let weight = target.prices.of(&slice.head.content);
        let per_call = match personal {
            Some(_) => 1,
            None => target.recipients_per_call(&slice.head),
        };
        let mut own_hours = OwnHours::of(&slice);
        if let Some(own) = own_hours.as_mut().filter(|_| per_call > 1) {
            own.sort(&mut slice);
        }
        Self {
            calls: target.target.open(&slice.head),
            personal,
            per_call,
            fingerprints: slice
                .recipients
                .iter()
                .map(|id| fingerprinter.fingerprint(id))
                .collect(),
            job: slice.head.id.to_string(),
            rates: limits::configured(&target, app, &slice.head),
            weight,
            fail_open: app.is_some_and(|app| app.fail_open),
            cap: Cap::of(&slice.head, app, &context.settings),
            app_window: app.and_then(|app| app.window.clone()),
            own_hours,
            rules: Rules {
                attempts_max: retry.attempts_max,
                on_uncertain: slice.head.on_uncertain.unwrap_or(target.on_uncertain),
                retries_max: retry.retries_max(slice.entries, &slice.lane),
                falls_on: FallsOn::of(slice.head.fallback.as_ref()),
                two_targets: slice.head.has_two_targets(),
            },
            retry: retry.schedule,
            span: spans::delivery(&context.tracer, &slice, traceparent.as_deref()),
            traceparent,
            owner: Owner(fastrand::u64(..)),
            began: Instant::now(),
            session,
            target,
            slice,
        }
    }

    pub(super) fn slice_ref(&self) -> SliceRef<'_> {
        SliceRef {
            head: &self.slice.head,
            id: &self.slice.id,
            entries: self.slice.entries,
            shape: self.slice.shape,
        }
    }

    pub(super) fn fingerprints(
        &self,
        indices: impl IntoIterator<Item = usize>,
    ) -> Vec<Fingerprint> {
        let indices = indices.into_iter();
        indices.map(|index| self.fingerprints[index]).collect()
    }

    /// The directives that apply to this slice.
    pub(super) fn control(&self, board: &Board) -> SliceControl {
        let (head, now) = (&self.slice.head, now_ms());
        let mut control = board.control([&head.target, &head.app, &self.job], now);
        if let Some(shared) = &self.target.shared_limit {
            control.rates[LimitOf::Shared] = board.rate_set(LimitOf::Shared, &shared.name, now);
        }
        control
    }

    /// The lane on which the rest of the slice continues.
    pub(super) fn lane_now(&self, control: &SliceControl) -> Lane {
        let lane = &self.slice.lane;
        let moved = control.priority.map(|it| lane.with_priority(it));
        moved.unwrap_or_else(|| lane.clone())
    }

    /// How long until the job expires, if it does.
    pub(super) fn expires_in(&self) -> Option<Duration> {
        let directives = self.session.context.directives();
        let (_, at) = self.control(&directives.borrow()).times(&self.slice.head);
        Some(Duration::from_millis(at?.saturating_sub(now_ms())))
    }

    /// Whether the directives let a call leave; asked before each call. A call without units of any
    /// limit does not leave when the first limit has been set. If the directives are new enough and
    /// none has changed since the last check, this costs two comparisons.
    pub(super) fn may_leave(
        &self,
        directives: &watch::Receiver<Board>,
        has_units: bool,
        now: Instant,
    ) -> bool {
        if !self.session.context.directives_are_new(now) && !self.goes_without_ledger() {
            return false;
        }
        if !directives.has_changed().unwrap_or(false) {
            return true;
        }
        let control = self.control(&directives.borrow());
        control.go == Go::On && (has_units || !self.is_limited(&control))
    }

    /// When the sending hours of the job and the app begin, unless it is within them. Recipients may
    /// have hours of their own instead of those of the job.
    pub(super) fn opens_ms(&self, now_ms: u64) -> Option<u64> {
        let of_job = self.slice.head.window.iter();
        let of_job = of_job.filter(|_| self.own_hours.is_none());
        let windows = of_job.chain(&self.app_window);
        let opens = windows.filter_map(|window| window.opens_ms(now_ms));
        opens.max()
    }

    /// Whether these recipients may be sent to at this time.
    pub(super) fn are_open(&self, recipients: &[usize], now_ms: u64) -> bool {
        let own = self.own_hours.as_ref();
        self.opens_ms(now_ms).is_none() && own.is_none_or(|own| own.are_open(recipients, now_ms))
    }

    /// Waits until the directives are new enough for calls to start. An app that sends while the
    /// ledger is down goes on with those that it knows.
    pub(super) async fn know_directives(&self) -> Result<(), Pause> {
        let context = &*self.session.context;
        if self.goes_without_ledger() || context.directives_are_new(Instant::now()) {
            return Ok(());
        }
        let mut ledger_up = context.ledger_up();
        let goes_without = async {
            match self.fail_open {
                true => drop(ledger_up.wait_for(|up| !*up).await),
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.session.halt.cancelled() => Err(Pause::Deferred(Duration::ZERO)),
            () = context.until_directives_are_new() => Ok(()),
            () = goes_without => Ok(()),
        }
    }

    /// Whether the delivery does not use the ledger, because it is down and the app fails open.
    pub(super) fn goes_without_ledger(&self) -> bool {
        self.fail_open && !self.session.context.ledger_is_up()
    }

    /// Renews the claims of the calls that are out.
    pub(super) async fn renew(&self, delivery: &Delivery) {
        if self.goes_without_ledger() {
            return;
        }
        let context = &*self.session.context;
        let held = self.fingerprints(delivery.held());
        let renewal =
            context
                .store
                .renew(self.slice_ref(), self.owner, context.settings.lease, &held);
        // Not repeated: the next tick comes before the lease ends, and the lease outlives the call.
        let _ = context.try_step(LedgerStep::Renew, renewal).await;
    }
}
