//! Streams the events of one job, as server-sent events.
//!
//! A stream follows the job's state in the ledger, which the gateway reads a few times a second,
//! once for all streams of a job. Each event tells a state of the job, and so does its id. A client
//! that reconnects with a `Last-Event-ID`, to any gateway and after any restart, gets the changes
//! since then, and never misses the end. Steps that happened while the client was away are not
//! repeated: each event carries the whole accounts.
//!
//! A stream ends after `completed`, or when the process drains. The number of streams is bounded.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::Gateway;
use super::access::Caller;
use super::params::Params;
use super::problem::Refusal;
use super::query::unknown;
use crate::clock::rfc3339;
use crate::domain::announce::{EventKind, JobEvent};
use crate::domain::ids::JobId;
use crate::ports::{Broker, JobRecord, JobState, Store, Transport};
use crate::service::jobs;

/// Time between two readings of a job.
const LOOK: Duration = Duration::from_millis(250);

/// Time between two heartbeats, which keep proxies from closing a quiet stream.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(10);

/// How long a client should wait before it reconnects.
pub(super) const COME_BACK: Duration = Duration::from_secs(1);

/// How long a job may stay unknown; normally it is known some milliseconds after its acceptance.
const ACCEPT_PATIENCE: Duration = Duration::from_secs(5);

/// The state of a job, as the id of an event tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stood {
    /// Lists of recipients that the job had then; more lists later mean that it was extended.
    submissions: u64,
    settled: u64,
    completed: bool,
}

impl fmt::Display for Stood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = if self.completed { ".end" } else { "" };
        write!(f, "{}.{}{end}", self.submissions, self.settled)
    }
}

impl FromStr for Stood {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (text, completed) = match text.strip_suffix(".end") {
            Some(text) => (text, true),
            None => (text, false),
        };
        let (submissions, settled) = text.split_once('.').ok_or(())?;
        Ok(Self {
            submissions: submissions.parse().map_err(|_| ())?,
            settled: settled.parse().map_err(|_| ())?,
            completed,
        })
    }
}

impl Stood {
    pub(super) fn of(record: &JobRecord) -> Self {
        Self {
            submissions: record.submissions,
            settled: record.accounts.settled(),
            completed: record.state == JobState::Completed,
        }
    }

    /// The events between the state that a client last saw and the present state.
    fn news(last: Option<Self>, now: Self) -> Vec<(EventKind, Self)> {
        let begun = Self {
            submissions: now.submissions,
            settled: 0,
            completed: false,
        };
        let running = Self {
            completed: false,
            ..now
        };
        let mut news = Vec::new();
        // Any other number counts, not only a larger one: the ledger may have been lost and
        // rebuilt.
        let same = last.filter(|last| last.submissions == now.submissions);
        if same.is_none() {
            news.push((EventKind::Accepted, begun));
        }
        let seen = same.unwrap_or(begun);
        if now.completed {
            if !seen.completed || seen.settled != now.settled {
                news.push((EventKind::Completed, now));
            }
        } else if seen.settled != now.settled {
            news.push((EventKind::Progress, running));
        }
        news
    }
}

/// The jobs that clients follow, and their latest records.
pub(super) struct Hub {
    followed: Mutex<HashMap<JobId, watch::Receiver<Arc<JobRecord>>>>,
    /// Cancelled when the process drains: streams end.
    pub(super) closing: CancellationToken,
}

impl Hub {
    pub(super) fn new() -> Self {
        Self {
            followed: Mutex::default(),
            closing: CancellationToken::new(),
        }
    }

    /// Follows a job, together with all clients that follow it already.
    fn follow<B: Broker, S: Store, T: Transport>(
        &self,
        gateway: &Arc<Gateway<B, S, T>>,
        record: JobRecord,
    ) -> watch::Receiver<Arc<JobRecord>> {
        let mut followed = self.followed.lock();
        // Readings that ended with their job or the process left their receivers behind.
        followed.retain(|_, receiver| receiver.has_changed().is_ok());
        if let Some(receiver) = followed.get(&record.job) {
            return receiver.clone();
        }
        let id = record.job;
        let (sender, receiver) = watch::channel(Arc::new(record));
        followed.insert(id, receiver.clone());
        #[expect(
            clippy::disallowed_methods,
            reason = "it ends when nobody follows the job, or with the process"
        )]
        tokio::spawn(look(Arc::clone(gateway), id, sender));
        receiver
    }

    /// Whether no client follows a job any more; then its readings end.
    fn leave(&self, job: JobId, sender: &watch::Sender<Arc<JobRecord>>) -> bool {
        let mut followed = self.followed.lock();
        // One receiver is our own. No client joins in between: that takes the lock too.
        let alone = sender.receiver_count() <= 1;
        if alone {
            followed.remove(&job);
        }
        alone
    }
}

/// Reads a job until no client follows it any more.
async fn look<B: Broker, S: Store, T: Transport>(
    gateway: Arc<Gateway<B, S, T>>,
    job: JobId,
    sender: watch::Sender<Arc<JobRecord>>,
) {
    while !gateway.hub.leave(job, &sender) && !gateway.hub.closing.is_cancelled() {
        sleep(LOOK).await;
        match gateway.context.store.job(job).await {
            Ok(Some(record)) => {
                sender.send_if_modified(|known| {
                    let changed = Stood::of(known) != Stood::of(&record);
                    *known = Arc::new(record);
                    changed
                });
            }
            // The ledger has forgotten the job: nothing changes any more, so its streams end.
            Ok(None) => return,
            // The streams stay open with their heartbeats; the ledger's state is logged elsewhere.
            Err(_) => {}
        }
    }
}

pub(super) async fn events<B: Broker, S: Store, T: Transport>(
    State(gateway): State<Arc<Gateway<B, S, T>>>,
    Extension(caller): Extension<Caller>,
    Path(job): Path<String>,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, Refusal> {
    let last = headers
        .get("last-event-id")
        .and_then(|id| id.to_str().ok()?.parse::<Stood>().ok());
    let stream = Arc::new(gateway.shares.stream(&caller)?);
    let record = accepted(&gateway, &job, params).await?;
    // A client that has seen the end is told not to reconnect.
    let now = Stood::of(&record);
    if now.completed && Stood::news(last, now).is_empty() {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let records = gateway.hub.follow(&gateway, record);
    let closing = gateway.hub.closing.clone();
    let alive = KeepAlive::new().interval(HEARTBEAT);
    let streamed = streamed(records, last, closing);
    // A proxy that buffers answers would hold back events.
    let unbuffered = [("x-accel-buffering", "no")];
    let events = Sse::new(streamed).keep_alive(alive);
    // A stream lasts longer than a request, so it has a share of its own.
    Ok((Extension(stream), unbuffered, events).into_response())
}

/// The record of a job; waits a little for one that was submitted just now.
async fn accepted<B: Broker, S: Store, T>(
    gateway: &Gateway<B, S, T>,
    job: &str,
    mut params: Params,
) -> Result<JobRecord, Refusal> {
    let app = params.text("app");
    params.finish()?;
    let deadline = Instant::now() + ACCEPT_PATIENCE;
    loop {
        if let Some(record) = jobs::named(&gateway.context.store, job, app.as_deref()).await? {
            return Ok(record);
        }
        if Instant::now() >= deadline || gateway.hub.closing.is_cancelled() {
            return Err(unknown(job));
        }
        sleep(LOOK).await;
    }
}

/// The state of a stream between two events.
struct Streaming {
    records: watch::Receiver<Arc<JobRecord>>,
    last: Option<Stood>,
    waiting: std::vec::IntoIter<Event>,
    ended: bool,
    closing: CancellationToken,
}

fn streamed(
    mut records: watch::Receiver<Arc<JobRecord>>,
    last: Option<Stood>,
    closing: CancellationToken,
) -> impl Stream<Item = Result<Event, Infallible>> {
    // The first record is news to this stream, even if others have seen it.
    records.mark_changed();
    let streaming = Streaming {
        records,
        last,
        waiting: vec![Event::default().retry(COME_BACK)].into_iter(),
        ended: false,
        closing,
    };
    stream::unfold(streaming, |mut streaming| async move {
        let event = streaming.next().await?;
        Some((Ok(event), streaming))
    })
}

impl Streaming {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.waiting.next() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            let closing = self.closing.clone();
            closing
                .run_until_cancelled(self.records.changed())
                .await?
                .ok()?;
            let record = Arc::clone(&self.records.borrow_and_update());
            let now = Stood::of(&record);
            let news = Stood::news(self.last, now);
            self.last = Some(now);
            self.ended = now.completed;
            let events: Vec<_> = news
                .into_iter()
                .map(|(kind, stood)| event(kind, stood, &record))
                .collect();
            self.waiting = events.into_iter();
        }
    }
}

fn event(kind: EventKind, stood: Stood, record: &JobRecord) -> Event {
    event_of(kind, record).id(stood.to_string())
}

/// An event without an id.
pub(super) fn event_of(kind: EventKind, record: &JobRecord) -> Event {
    let at_ms = match kind {
        EventKind::Accepted => record.accepted_at_ms,
        EventKind::Progress => record.progress_at_ms.unwrap_or(record.accepted_at_ms),
        EventKind::Completed => record.completed_at_ms.unwrap_or(record.accepted_at_ms),
    };
    let told = JobEvent {
        v: 1,
        event: kind,
        job: record.job.to_string(),
        app: record.app.clone(),
        client_msg_no: record.client_msg_no.clone(),
        target: record.target.clone(),
        at: rfc3339(at_ms),
        accounts: record.accounts,
        pending: record.pending,
        fallback: record.reached().filter(|_| kind == EventKind::Completed),
        id: None,
    };
    let data = crate::json::text(&told);
    Event::default().event(kind.as_str()).data(data)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stood(text: &str) -> Stood {
        text.parse().unwrap()
    }

    /// Checks the events, by kind and id, for a client that last saw `last` of a job that is at
    /// `now`.
    fn check(last: Option<&str>, now: &str, expected: &[(&str, &str)]) {
        let news = Stood::news(last.map(stood), stood(now));
        let news: Vec<_> = news
            .iter()
            .map(|(kind, stood)| (kind.as_str(), stood.to_string()))
            .collect();
        let news: Vec<_> = news.iter().map(|(kind, id)| (*kind, id.as_str())).collect();
        assert_eq!(news, expected, "{last:?} {now}");
    }

    #[test]
    fn whoever_comes_back_gets_what_has_changed() {
        let accepted = ("accepted", "1.0");
        check(None, "1.0", &[accepted]);
        check(None, "1.7", &[accepted, ("progress", "1.7")]);
        check(None, "1.9.end", &[accepted, ("completed", "1.9.end")]);
        check(Some("1.0"), "1.0", &[]);
        check(Some("1.0"), "1.7", &[("progress", "1.7")]);
        check(Some("1.7"), "1.7", &[]);
        check(Some("1.7"), "1.9.end", &[("completed", "1.9.end")]);
        check(Some("1.9"), "1.9.end", &[("completed", "1.9.end")]);
        check(Some("1.9.end"), "1.9.end", &[]);
        // Extended after its end, and completed once more.
        check(
            Some("1.9.end"),
            "2.9",
            &[("accepted", "2.0"), ("progress", "2.9")],
        );
        check(
            Some("1.9.end"),
            "2.12.end",
            &[("accepted", "2.0"), ("completed", "2.12.end")],
        );
        // Rebuilt after the ledger was lost.
        check(
            Some("2.90"),
            "0.3",
            &[("accepted", "0.0"), ("progress", "0.3")],
        );
    }

    #[test]
    fn ids_of_others_are_no_places() {
        for wrong in ["", "1", "1.", "a.b", "1.2.3", "1.2.end.end", ".end"] {
            assert_eq!(wrong.parse::<Stood>(), Err(()), "{wrong}");
        }
    }

    proptest! {
        /// However often a client is cut off, after any event, it gets the end exactly once, and
        /// nothing after that.
        #[test]
        fn the_end_is_never_missed(
            steps in prop::collection::vec(1u64..100, 1..20), cuts in prop::collection::vec(any::<bool>(), 40),
        ) {
            let mut cuts = cuts.into_iter().cycle();
            let mut settled = 0;
            let mut states: Vec<_> = steps
                .iter()
                .map(|step| {
                    settled += step;
                    Stood { submissions: 1, settled, completed: false }
                })
                .collect();
            let end = Stood { submissions: 1, settled, completed: true };
            states.push(end);
            let (mut last, mut ends) = (None, 0);
            for now in states {
                for (kind, id) in Stood::news(last, now) {
                    prop_assert_eq!(id.to_string().parse::<Stood>(), Ok(id));
                    ends += u32::from(kind == EventKind::Completed);
                    last = Some(id);
                    if now != end && cuts.next() == Some(true) {
                        break;
                    }
                }
            }
            while last != Some(end) {
                let news = Stood::news(last, end);
                prop_assert!(!news.is_empty());
                let (kind, id) = news[0];
                ends += u32::from(kind == EventKind::Completed);
                last = Some(id);
            }
            prop_assert_eq!(ends, 1);
            prop_assert!(Stood::news(last, end).is_empty());
        }
    }
}
