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

mod call;
mod cap;
mod claim;
mod close;
mod fallback;
mod flight;
mod limits;
mod record;
mod run;
mod scope;
mod spans;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use self::cap::Cap;
use super::enumerate::enumerate;
use super::session::WorkerSession;
use crate::domain::delivery::{Delivery, Rules};
use crate::domain::directive::Board;
use crate::domain::fields::{Problem, shorten, summary};
use crate::domain::ids::{Fingerprint, Owner};
use crate::domain::job::NAME_BYTES_MAX;
use crate::domain::job_limits::Rates;
use crate::domain::lane::Lane;
use crate::domain::limits::Weight;
use crate::domain::own_hours::OwnHours;
use crate::domain::personal::Personal;
use crate::domain::schedule::{Schedule, rung};
use crate::domain::slice::{BUCKETS_MAX, SLICE_VERSION, Slice};
use crate::domain::window::Window;
use crate::ports::{Calls, JobProgress, Lost, Outgoing, Publisher, Route, Store, Transport};
use crate::runtime::context::TargetRuntime;
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
