//! Streams the events of all jobs that a caller may see, as server-sent events.
//!
//! One reader follows the ledger for all streams of a gateway, as long as there is one. In each look
//! it reads the jobs that are new and the jobs that are not completed. It also goes through the
//! whole list of jobs, page by page, and so finds the jobs that started before it, and those that
//! were extended.
//!
//! A stream begins with the state of each job that is not completed. Each event has the whole
//! accounts, so a client that missed one loses nothing but the step. A client that was cut off
//! reads the list of jobs again: a stream does not repeat what happened in between. A stream whose
//! client takes events too slowly ends.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream, StreamExt as _};
use parking_lot::Mutex;
use tokio::sync::broadcast;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Gateway;
use super::access::Caller;
use super::events::{COME_BACK, HEARTBEAT, Stood, event_of};
use super::params::Params;
use super::problem::Refusal;
use crate::domain::announce::EventKind;
use crate::domain::ids::JobId;
use crate::ports::{
    Broker, JobFilter, JobPage, JobPlace, JobQuery, JobRecord, LedgerError, Store, Transport,
};

/// Time between two looks at the ledger.
const LOOK: Duration = Duration::from_millis(500);

/// Jobs on a page, and pages of new jobs in one look.
const PAGE: usize = 200;
const NEW_PAGES: usize = 10;

/// Unfinished jobs that are read again in one look.
const LIVE_READ: usize = 200;

/// Jobs that are read at a time.
const AT_ONCE: usize = 16;

/// Once the whole list was read, only one look in this many reads a further page of it.
const SELDOM: u32 = 10;

/// A new job may appear in the list this much later than jobs that were accepted after it.
const OVERLAP_MS: u64 = 1000;

/// Most unfinished jobs that are followed.
const LIVE_MAX: usize = 20_000;

/// Jobs whose end is remembered. Of older ends nothing is reported any more.
const ENDED_MAX: usize = 20_000;

/// Events that a stream may be behind.
const BEHIND_MAX: usize = 4096;

/// The streams of all jobs.
#[derive(Default)]
pub(super) struct Feed(Mutex<Option<Arc<Following>>>);

/// What the reader knows, for as long as there is a stream.
struct Following {
    news: broadcast::Sender<News>,
    known: Mutex<Known>,
}

/// One event of one job.
#[derive(Clone)]
struct News {
    kind: EventKind,
    record: Arc<JobRecord>,
}

#[derive(Default)]
struct Known {
    /// The end of a job that nothing was known of is news if it is at least as late as this. The
    /// ledger's clock counts: the one that all ends have.
    since_ms: u64,
    /// The jobs that are not completed.
    live: HashMap<JobId, Arc<JobRecord>>,
    /// How jobs ended, so that each end is reported once.
    ended: HashMap<JobId, Stood>,
    /// The same jobs and the times of their ends, in the order in which they were found.
    found: VecDeque<(JobId, u64)>,
}

impl Known {
    /// What the latest jobs tell before there is a stream. Whatever ends from now on ends no earlier
    /// than anything that happened to them.
    fn of(latest: Vec<JobRecord>) -> Self {
        let times = latest
            .iter()
            .map(|job| job.completed_at_ms.unwrap_or(job.accepted_at_ms));
        let mut known = Self {
            since_ms: times.max().unwrap_or(0),
            ..Self::default()
        };
        for record in latest {
            match record.completed_at_ms {
                Some(at_ms) => known.remember(record.job, Stood::of(&record), at_ms),
                None => {
                    known.live.insert(record.job, Arc::new(record));
                }
            }
        }
        known
    }

    /// The event that this record is, if it is news.
    fn take(&mut self, record: JobRecord) -> Option<News> {
        let id = record.job;
        let before = self.live.get(&id).map(|known| Stood::of(known));
        let now = Stood::of(&record);
        let record = Arc::new(record);
        let kind = if let Some(at_ms) = record.completed_at_ms {
            let was_live = self.live.remove(&id).is_some();
            let is_new = match self.ended.get(&id) {
                Some(end) => *end != now,
                None => at_ms >= self.since_ms,
            };
            if !was_live && !is_new {
                return None;
            }
            self.remember(id, now, at_ms);
            EventKind::Completed
        } else {
            // The walk through the list comes back to it when there is room.
            if before.is_none() && self.live.len() >= LIVE_MAX {
                return None;
            }
            self.live.insert(id, Arc::clone(&record));
            match before {
                Some(before) if before == now => return None,
                Some(_) => EventKind::Progress,
                None if record.accounts.settled() == 0 => EventKind::Accepted,
                None => EventKind::Progress,
            }
        };
        Some(News { kind, record })
    }

    /// Notes how a job ended. The first that was found makes room for it, with all that ended before
    /// that one: none of their ends is news again.
    fn remember(&mut self, job: JobId, end: Stood, at_ms: u64) {
        if self.ended.insert(job, end).is_some() {
            return;
        }
        self.found.push_back((job, at_ms));
        if self.found.len() > ENDED_MAX
            && let Some((first, at_ms)) = self.found.pop_front()
        {
            self.ended.remove(&first);
            self.since_ms = self.since_ms.max(at_ms + 1);
        }
    }
}

impl Following {
    fn tell(&self, record: JobRecord) {
        let mut known = self.known.lock();
        if let Some(news) = known.take(record) {
            // An error says that no stream is open at the moment.
            let _ = self.news.send(news);
        }
    }

    /// The unfinished jobs, and the news from now on.
    fn join(&self) -> (Vec<News>, broadcast::Receiver<News>) {
        let known = self.known.lock();
        let live = known.live.values().map(|record| News {
            kind: match record.accounts.settled() {
                0 => EventKind::Accepted,
                _ => EventKind::Progress,
            },
            record: Arc::clone(record),
        });
        let mut live: Vec<_> = live.collect();
        live.sort_by_key(|news| (news.record.accepted_at_ms, news.record.job));
        (live, self.news.subscribe())
    }
}

impl Feed {
    /// Joins the reading, or begins one. A reading begins with the latest jobs, before the stream is
    /// open: so it knows which ends come after that.
    async fn join<B: Broker, S: Store, T: Transport>(
        &self,
        gateway: &Arc<Gateway<B, S, T>>,
    ) -> Result<(Vec<News>, broadcast::Receiver<News>), LedgerError> {
        if let Some(following) = &*self.0.lock() {
            return Ok(following.join());
        }
        let all = query(JobFilter::default(), None);
        let latest = gateway.context.store.jobs(&all).await?;
        let mut reading = self.0.lock();
        // Another stream may have begun one meanwhile.
        if let Some(following) = &*reading {
            return Ok(following.join());
        }
        let reader = Reader::after(&latest);
        let following = Arc::new(Following {
            news: broadcast::Sender::new(BEHIND_MAX),
            known: Mutex::new(Known::of(latest.jobs)),
        });
        let joined = following.join();
        *reading = Some(Arc::clone(&following));
        #[expect(
            clippy::disallowed_methods,
            reason = "it ends with the last stream, or with the process"
        )]
        tokio::spawn(follow(Arc::clone(gateway), following, reader));
        Ok(joined)
    }

    /// Whether no stream is left; then the reading ends.
    fn leave(&self, following: &Following) -> bool {
        let mut reading = self.0.lock();
        let alone = following.news.receiver_count() == 0;
        if alone {
            *reading = None;
        }
        alone
    }
}

/// Reads the ledger until the last stream has ended.
async fn follow<B: Broker, S: Store, T: Transport>(
    gateway: Arc<Gateway<B, S, T>>,
    following: Arc<Following>,
    mut reader: Reader,
) {
    while !gateway.hub.closing.is_cancelled() && !gateway.feed.leave(&following) {
        // The streams stay open with their heartbeats; the ledger's state is logged elsewhere.
        let _ = reader.look(&gateway.context.store, &following).await;
        sleep(LOOK).await;
    }
}

/// The places up to which the list of jobs was read.
struct Reader {
    /// The latest acceptance that was seen.
    newest_ms: u64,
    /// Where the next page of the whole list begins.
    walk: Option<JobPlace>,
    /// Whether the whole list was read once.
    walked: bool,
    looks: u32,
    /// Unfinished jobs that were not read since the last turn through all of them.
    turn: Vec<JobId>,
}

impl Reader {
    /// Goes on after the latest jobs.
    fn after(latest: &JobPage) -> Self {
        let accepted = latest.jobs.iter().map(|job| job.accepted_at_ms);
        Self {
            newest_ms: accepted.max().unwrap_or(0),
            walk: latest.next,
            walked: latest.next.is_none(),
            looks: 0,
            turn: Vec::new(),
        }
    }

    async fn look<S: Store>(
        &mut self,
        store: &S,
        following: &Following,
    ) -> Result<(), LedgerError> {
        self.looks = self.looks.wrapping_add(1);
        if !self.walked || self.looks.is_multiple_of(SELDOM) {
            let page = store.jobs(&query(JobFilter::default(), self.walk)).await?;
            self.walk = page.next;
            self.walked |= page.next.is_none();
            for record in page.jobs {
                following.tell(record);
            }
        }
        self.look_at_new(store, following).await?;
        self.look_at_live(store, following).await
    }

    async fn look_at_new<S: Store>(
        &mut self,
        store: &S,
        following: &Following,
    ) -> Result<(), LedgerError> {
        let filter = JobFilter {
            since_ms: Some(self.newest_ms.saturating_sub(OVERLAP_MS)),
            ..JobFilter::default()
        };
        let mut after = None;
        for _ in 0..NEW_PAGES {
            let page = store.jobs(&query(filter.clone(), after)).await?;
            for record in page.jobs {
                self.newest_ms = self.newest_ms.max(record.accepted_at_ms);
                following.tell(record);
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        Ok(())
    }

    async fn look_at_live<S: Store>(
        &mut self,
        store: &S,
        following: &Following,
    ) -> Result<(), LedgerError> {
        if self.turn.is_empty() {
            self.turn = following.known.lock().live.keys().copied().collect();
        }
        let some = self
            .turn
            .split_off(self.turn.len().saturating_sub(LIVE_READ));
        let asked = stream::iter(some).map(|job| async move { (job, store.job(job).await) });
        let mut asked = asked.buffer_unordered(AT_ONCE);
        while let Some((job, found)) = asked.next().await {
            match found? {
                Some(record) => following.tell(record),
                // The ledger has forgotten the job.
                None => {
                    following.known.lock().live.remove(&job);
                }
            }
        }
        Ok(())
    }
}

fn query(filter: JobFilter, after: Option<JobPlace>) -> JobQuery {
    JobQuery {
        filter,
        after,
        most: PAGE,
    }
}

pub(super) async fn feed<B: Broker, S: Store, T: Transport>(
    State(gateway): State<Arc<Gateway<B, S, T>>>,
    Extension(caller): Extension<Caller>,
    mut params: Params,
) -> Result<Response, Refusal> {
    let wanted = JobFilter {
        app: params.text("app"),
        target: params.text("target"),
        ..JobFilter::default()
    };
    params.finish()?;
    let stream = Arc::new(gateway.shares.stream(&caller)?);
    let (live, news) = gateway.feed.join(&gateway).await?;
    let closing = gateway.hub.closing.clone();
    let streamed = streamed(live, news, wanted, closing);
    let alive = KeepAlive::new().interval(HEARTBEAT);
    // A proxy that buffers answers would hold back events.
    let unbuffered = [("x-accel-buffering", "no")];
    let events = Sse::new(streamed).keep_alive(alive);
    // A stream lasts longer than a request, so it has a share of its own.
    Ok((Extension(stream), unbuffered, events).into_response())
}

fn streamed(
    live: Vec<News>,
    news: broadcast::Receiver<News>,
    wanted: JobFilter,
    closing: CancellationToken,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let later = stream::unfold((news, closing), |(mut news, closing)| async move {
        // An error says that the reading has ended, or that the client is too far behind.
        let next = closing.run_until_cancelled(news.recv()).await?.ok()?;
        Some((next, (news, closing)))
    });
    let first = stream::once(async { Ok(Event::default().retry(COME_BACK)) });
    let all = stream::iter(live).chain(later);
    let seen = all.filter(move |news| std::future::ready(wanted.takes(&news.record)));
    first.chain(seen.map(|news| Ok(event_of(news.kind, &news.record))))
}

#[cfg(test)]
mod tests;
