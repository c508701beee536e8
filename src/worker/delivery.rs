//! Delivers one slice: waits for its limits, claims its recipients, makes the calls, and records
//! and publishes the results. `domain::delivery`, which does no I/O, keeps the state of each
//! recipient.
//!
//! A slice has a number of places for calls. When a place is free, the delivery asks the limits,
//! claims the recipients of the next call, and makes the call. It records answers while other calls
//! are still out. It claims only the recipients of calls that are out, so a worker that is killed
//! leaves in doubt at most the calls that it had in flight (promise 4). It waits before the claim,
//! which costs nothing but the slice's place.
//!
//! `domain::outcome::next` decides what follows from a recipient's answer:
//! - settled: recorded within milliseconds;
//! - to be dead-lettered: recorded only after the dead letter is confirmed, so that no letter is
//!   lost. `failed` recipients are released at once, so a crash in between repeats a refused call.
//!   They are claimed again when the letter is written, since another slice may have called them
//!   meanwhile. `uncertain` recipients stay claimed, so that no delivery sends to them;
//! - to be retried: released, and part of the remainder that goes on the retry ladder.
//!
//! A delivery leaves at most one remainder, published and confirmed before the ack. Therefore, when
//! a delivery has an outcome for all its recipients, the whole slice has.

mod cap;
mod close;
mod fallback;
mod flight;
mod limits;
mod record;
mod spans;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::sync::watch;
use tokio::time::Instant;

use self::cap::Cap;
use self::flight::{Back, Flight};
use self::limits::{Granted, Units};
use super::enumerate::enumerate;
use super::session::WorkerSession;
use super::together::{self, Turn};
use crate::clock::now_ms;
use crate::domain::delivery::{Batch, Call, Delivery, Rules};
use crate::domain::directive::{Board, Go, SliceControl};
use crate::domain::fallback::FallsOn;
use crate::domain::fields::{Problem, shorten, summary};
use crate::domain::ids::{Fingerprint, Fingerprinter, Owner};
use crate::domain::job::NAME_BYTES_MAX;
use crate::domain::job_limits::{LimitOf, Rates};
use crate::domain::lane::Lane;
use crate::domain::limits::Weight;
use crate::domain::outcome::{Class, OnUncertain, Outcome, TargetAnswer, Verdict};
use crate::domain::own_hours::OwnHours;
use crate::domain::personal::Personal;
use crate::domain::schedule::{Schedule, rung};
use crate::domain::slice::{BUCKETS_MAX, SLICE_VERSION, Slice};
use crate::domain::window::Window;
use crate::metrics::LedgerStep;
use crate::ports::{
    Calls, Claimed, JobProgress, Lost, Outgoing, Publisher, Recorded, Route, SliceRef, Store,
    Transport,
};
use crate::runtime::call::{Called, Caller, lost};
use crate::runtime::context::{GivenUp, Halted, TargetRuntime};
use crate::runtime::traces::Span;

/// How long a slice of a newer version waits for a newer worker.
const NEWER_WAIT: Duration = Duration::from_secs(5);

/// How long a slice that needs the ledger waits while the ledger is down.
const LEDGER_AWAY_WAIT: Duration = Duration::from_secs(5);

/// How long a slice waits when its records in the ledger make no sense. An operator must repair
/// them.
const REPAIR_WAIT: Duration = Duration::from_secs(60);

/// How to end the delivery of a slice.
#[derive(Debug)]
pub(super) enum DeliveryEnd {
    /// Every recipient has its outcome: ack.
    Done,
    /// The rest is published again: ack.
    Deferred,
    /// The session is gone: nothing can be acked.
    Lost,
    Reject(String),
}

/// Works on one slice of a lane. Its remainder goes back to that lane, whatever lane the slice
/// names.
pub(super) async fn deliver<S: Store, T: Transport, P: Publisher>(
    session: &WorkerSession<S, T, P>,
    lane: Lane,
    body: Bytes,
    traceparent: Option<String>,
) -> DeliveryEnd {
    let slice = match serde_json::from_slice::<Slice>(&body) {
        Ok(slice) if slice.v <= SLICE_VERSION => Slice {
            lane: lane.clone(),
            ..slice
        },
        Ok(_) => return unreadable(session, lane, body, traceparent, None).await,
        Err(error) => return unreadable(session, lane, body, traceparent, Some(error)).await,
    };
    if let Err(why) = belongs(&slice, &lane) {
        return DeliveryEnd::Reject(why);
    }
    let Some(target) = session.context.targets.get(&slice.head.target) else {
        return DeliveryEnd::Reject(format!("there is no target {:?} here", slice.head.target));
    };
    if let Some(asking) = &slice.enumeration {
        let end = enumerate(session, target, &slice, asking, traceparent).await;
        return end.unwrap_or(DeliveryEnd::Lost);
    }
    let slice = match fallback::before_calls(session, slice, traceparent.as_deref()).await {
        Ok(slice) => slice,
        Err(end) => return end,
    };
    // The message has texts that an earlier version accepted and this one cannot compile. Each
    // recipient fails with that reason, like a recipient whose own values do not fit, so that the
    // job is completed.
    let personal = Personal::of(&slice.head)
        .map_err(|problems| Problem::new("message", summary(&problems)))
        .transpose();
    let scope = DeliveryScope::new(session, Arc::clone(target), slice, personal, traceparent);
    let end = DeliveryRun::new(&scope).run().await;
    let end = end.unwrap_or(DeliveryEnd::Lost);
    spans::delivered(scope.span, &end);
    end
}

/// Whether a slice on this lane can be one of the worker's own: anybody who may write to the lanes
/// exchange can publish others. A lane's places belong to its target. The names of target and app
/// are part of routing keys, whose length is limited. A slice with more outcomes than entries, or
/// with billions of audit buckets, would keep a place busy forever.
fn belongs(slice: &Slice, lane: &Lane) -> Result<(), String> {
    let Slice { head, entries, .. } = slice;
    if head.target != lane.target {
        let named = shorten(&head.target, NAME_BYTES_MAX);
        return Err(format!(
            "a slice for target {named:?} on lane {lane}: publish it to a lane of its target, or publish \
             the job again"
        ));
    }
    if head.app.len() > NAME_BYTES_MAX {
        return Err(format!(
            "head.app has {} bytes, at most {NAME_BYTES_MAX} are taken: no dead letter or event could \
             be published for it",
            head.app.len()
        ));
    }
    let listed = slice.recipients.len()
        + slice.unrecorded.entries() as usize
        + slice.for_fallback.recipients.len();
    if listed > *entries as usize {
        return Err(format!(
            "a slice of {entries} list entries with {listed} recipients: entries count repeats too, so \
             there are never fewer"
        ));
    }
    if !slice.shape.is_sound() {
        return Err(format!(
            "shape.buckets is {}, from 1 to {BUCKETS_MAX} are taken",
            slice.shape.buckets
        ));
    }
    Ok(())
}

/// Defers a slice of a newer version to a newer worker; rejects anything else as no slice.
async fn unreadable<S: Store, T, P: Publisher>(
    session: &WorkerSession<S, T, P>,
    lane: Lane,
    body: Bytes,
    traceparent: Option<String>,
    error: Option<serde_json::Error>,
) -> DeliveryEnd {
    #[derive(serde::Deserialize)]
    struct Version {
        v: u32,
    }
    let newer = serde_json::from_slice::<Version>(&body)
        .ok()
        .filter(|it| it.v > SLICE_VERSION);
    let Some(Version { v }) = newer else {
        let why = error.map(|error| error.to_string()).unwrap_or_default();
        return DeliveryEnd::Reject(format!("not a slice: {why}"));
    };
    tracing::warn!(
        slice.version = v,
        "a slice of a newer version is left to newer workers"
    );
    let route = Route::Wait {
        lane,
        rung: rung(NEWER_WAIT),
    };
    let message = Outgoing {
        route,
        body,
        message_id: format!("newer-{v}"),
        traceparent,
    };
    match session.publish(vec![message]).await {
        Ok(()) => DeliveryEnd::Deferred,
        Err(Lost) => DeliveryEnd::Lost,
    }
}

/// Why the delivery makes no further call.
enum Pause {
    /// The ledger says that every entry of the slice has its outcome.
    SliceDone,
    /// The rest waits for this long; zero means the end of the lane.
    Deferred(Duration),
    Lost,
}

/// The parts of a delivery that do not change while it runs.
struct DeliveryScope<'a, S, T, P> {
    session: &'a WorkerSession<S, T, P>,
    target: Arc<TargetRuntime>,
    slice: Slice,
    calls: Box<dyn Calls>,
    /// For a personal job, where every recipient gets a message and a call of its own: its texts,
    /// or why no recipient can have them.
    personal: Option<Result<Personal, Problem>>,
    per_call: usize,
    fingerprints: Vec<Fingerprint>,
    /// The job id as text, which is the name of the job's own limit.
    job: String,
    /// The configured limits, which operators can change.
    rates: Rates,
    /// What the message costs in units of the limits of its target.
    weight: Weight,
    fail_open: bool,
    /// The frequency cap of the job's category.
    cap: Option<Cap>,
    /// The sending hours of the app; the job may have further ones.
    app_window: Option<Window>,
    /// Those of each recipient, in place of those of the job.
    own_hours: Option<OwnHours>,
    rules: Rules,
    retry: Schedule,
    traceparent: Option<String>,
    /// The span of this delivery, if its job is sampled.
    span: Option<Span>,
    owner: Owner,
    began: Instant,
}

impl<'a, S: Store, T: Transport, P: Publisher> DeliveryScope<'a, S, T, P> {
    fn new(
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

    fn slice_ref(&self) -> SliceRef<'_> {
        SliceRef {
            head: &self.slice.head,
            id: &self.slice.id,
            entries: self.slice.entries,
            shape: self.slice.shape,
        }
    }

    fn fingerprints(&self, indices: impl IntoIterator<Item = usize>) -> Vec<Fingerprint> {
        let indices = indices.into_iter();
        indices.map(|index| self.fingerprints[index]).collect()
    }

    /// The directives that apply to this slice.
    fn control(&self, board: &Board) -> SliceControl {
        let (head, now) = (&self.slice.head, now_ms());
        let mut control = board.control([&head.target, &head.app, &self.job], now);
        if let Some(shared) = &self.target.shared_limit {
            control.rates[LimitOf::Shared] = board.rate_set(LimitOf::Shared, &shared.name, now);
        }
        control
    }

    /// The lane on which the rest of the slice continues.
    fn lane_now(&self, control: &SliceControl) -> Lane {
        let lane = &self.slice.lane;
        let moved = control.priority.map(|it| lane.with_priority(it));
        moved.unwrap_or_else(|| lane.clone())
    }

    /// How long until the job expires, if it does.
    fn expires_in(&self) -> Option<Duration> {
        let directives = self.session.context.directives();
        let (_, at) = self.control(&directives.borrow()).times(&self.slice.head);
        Some(Duration::from_millis(at?.saturating_sub(now_ms())))
    }

    /// Whether the directives let a call leave; asked before each call. A call without units of any
    /// limit does not leave when the first limit has been set. If the directives are new enough and
    /// none has changed since the last check, this costs two comparisons.
    fn may_leave(
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
    fn opens_ms(&self, now_ms: u64) -> Option<u64> {
        let of_job = self.slice.head.window.iter();
        let of_job = of_job.filter(|_| self.own_hours.is_none());
        let windows = of_job.chain(&self.app_window);
        let opens = windows.filter_map(|window| window.opens_ms(now_ms));
        opens.max()
    }

    /// Whether these recipients may be sent to at this time.
    fn are_open(&self, recipients: &[usize], now_ms: u64) -> bool {
        let own = self.own_hours.as_ref();
        self.opens_ms(now_ms).is_none() && own.is_none_or(|own| own.are_open(recipients, now_ms))
    }

    /// Waits until the directives are new enough for calls to start. An app that sends while the
    /// ledger is down goes on with those that it knows.
    async fn know_directives(&self) -> Result<(), Pause> {
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

    /// Makes a call, unless a directive holds it back, its sending hours are over, or it waited so
    /// long that its claims or its units of the limits are too old.
    async fn one_call(
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
        drop(permit);
        if let Some(called) = &called {
            spans::answered(span, &called.verdict);
            self.target.metrics.call(class_of(&called.verdict), took);
        }
        Back { call, called }
    }

    /// Opens the call of one recipient of a personal job and checks it against the target's limits.
    fn open_for(
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

    /// Whether the delivery does not use the ledger, because it is down and the app fails open.
    fn goes_without_ledger(&self) -> bool {
        self.fail_open && !self.session.context.ledger_is_up()
    }

    /// Renews the claims of the calls that are out.
    async fn renew(&self, delivery: &Delivery) {
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

/// Until when a call may start.
#[derive(Clone, Copy)]
struct Until {
    /// Its claims last much longer than that.
    claims: Instant,
    /// Its units of the limits are for this time. `None` without limits.
    units: Option<Instant>,
}

impl Until {
    fn is_over(&self, now: Instant) -> bool {
        now >= self.claims || self.units.is_some_and(|units| now >= units)
    }
}

/// A call whose recipients are claimed, with the message of a personal job.
type Ready = (Call, Option<Box<dyn Calls>>);

fn recipients(calls: &[Ready]) -> usize {
    calls.iter().map(|(call, _)| call.members.len()).sum()
}

/// One delivery.
struct DeliveryRun<'a, S, T, P> {
    scope: &'a DeliveryScope<'a, S, T, P>,
    delivery: Delivery,
    /// Reports every change of a directive.
    directives: watch::Receiver<Board>,
    /// All parts of the slice's list are known to have arrived.
    together: bool,
    first_attempt_at_ms: Option<u64>,
    /// When the rest of the slice is due for its next attempt.
    due_at_ms: Option<u64>,
    progress: Option<JobProgress>,
    /// The ledger has recorded that the slice is complete.
    closed: bool,
    /// The entries that had no outcome in the ledger at that time.
    missing: u32,
    /// Recipients of a claim that was not answered: the ledger may have granted it.
    asked: Vec<Fingerprint>,
    /// At the second target of the job: those that it accepted.
    reached: Vec<usize>,
}

impl<'a, S: Store, T: Transport, P: Publisher> DeliveryRun<'a, S, T, P> {
    fn new(scope: &'a DeliveryScope<'a, S, T, P>) -> Self {
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

    async fn run(mut self) -> Result<DeliveryEnd, Lost> {
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

    // --- Whether to go on --------------------------------------------------------------------

    /// Whether further calls may be made. If no recipient is to be sent to any more, returns how
    /// the recipients without an outcome end.
    async fn go_on(&mut self, flight: &mut Flight<'a, S, T, P>) -> Result<Option<Outcome>, Pause> {
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
    fn over(&self, control: &SliceControl) -> Option<Outcome> {
        let (_, expires_at) = control.times(&self.scope.slice.head);
        if expires_at.is_some_and(|at| now_ms() >= at) {
            Some(Outcome::Expired)
        } else {
            (control.go == Go::Cancelled).then_some(Outcome::Cancelled)
        }
    }

    /// Whether this delivery may continue with the slice now. A slice that is over does not wait
    /// for its start time.
    fn check_time(&self, over: bool, control: &SliceControl) -> Result<(), Pause> {
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

    // --- Claim and call ----------------------------------------------------------------------

    /// Claims the recipients of the next calls and makes them.
    async fn window(
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
    async fn spend(
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
    async fn end_all(
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
    async fn claim(
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
    fn fill_in(&mut self, calls: Vec<Call>) -> Vec<Ready> {
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

    fn note_first_attempt(&mut self) {
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

    // --- Answers -----------------------------------------------------------------------------

    /// Decides what follows for the recipients of the calls that were answered.
    async fn sort(&mut self, flight: &mut Flight<'a, S, T, P>) {
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

    // --- Record ------------------------------------------------------------------------------

    /// Records first the outcomes that earlier deliveries knew and could not record.
    async fn catch_up(&mut self) -> Result<(), Pause> {
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
        self.progress = Some(recorded.progress);
        self.delivery.caught_up(recorded.stood);
        Ok(())
    }

    /// Records the results that became known, if there are any.
    async fn record(&mut self, flight: &mut Flight<'a, S, T, P>) -> Result<(), Pause> {
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
    async fn known(&mut self, flight: &mut Flight<'a, S, T, P>) -> Batch {
        self.sort(flight).await;
        flight.recorded();
        self.delivery.batch()
    }

    fn note_recorded(&mut self, batch: &Batch, recorded: Recorded) {
        let outcomes = batch.outcomes.iter().map(|(_, outcome)| *outcome);
        self.scope.count_outcomes(outcomes);
        if self.scope.slice.head.fell_from.is_some() {
            let sent = batch.outcomes.iter().filter(|it| it.1 == Outcome::Sent);
            self.reached.extend(sent.map(|it| it.0));
        }
        self.delivery.recorded(recorded.stood);
        self.progress = Some(recorded.progress);
        self.closed = batch.last.is_some() && recorded.missing == 0;
        self.missing = recorded.missing;
    }
}

/// The class of a call as a whole: the class that all its recipients got, or the best one.
fn class_of(verdict: &Verdict) -> Class {
    match verdict {
        Verdict::All(answer) => answer.class,
        Verdict::Each(answers) if answers.iter().any(|answer| answer.class == Class::Done) => {
            Class::Done
        }
        Verdict::Each(answers) => answers.first().map_or(Class::Done, |answer| answer.class),
    }
}
