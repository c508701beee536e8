//! Hands the spans that ended over to the collector, in batches, one request at a time.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Uri, header};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{Record, Spans, Tracer, otlp};
use crate::domain::schedule::Schedule;
use crate::metrics::{Metrics, SpanResult};
use crate::ports::{Request, Transport};

/// Most spans of a request.
const BATCH: usize = 512;

/// Attempts to hand over a batch. The queue fills meanwhile.
const ATTEMPTS: u32 = 4;

/// Longest wait for the collector's answer.
const ANSWER: Duration = Duration::from_secs(10);

/// How long the exporter waits for what.
#[derive(Clone, Copy)]
pub(super) struct Waits {
    /// The first span of a batch, for others.
    pub(super) gather: Duration,
    /// Between two attempts.
    pub(super) pauses: Schedule,
    /// A process that ends, for the rest to be handed over.
    pub(super) last: Duration,
}

const WAITS: Waits = Waits {
    gather: Duration::from_secs(1),
    pauses: Schedule {
        min: Duration::from_secs(1),
        max: Duration::from_secs(5),
        jitter: 0.3,
    },
    last: Duration::from_secs(1),
};

/// The collector, and which jobs it gets spans of.
pub struct Collector {
    pub url: Uri,
    /// Further headers, such as a credential.
    pub headers: HeaderMap,
    /// What is known of this process.
    pub resource: Vec<(&'static str, String)>,
    /// The share of the jobs without a `traceparent` that are sampled.
    pub sample_ratio: f64,
    /// Spans that wait for the collector; further ones are dropped.
    pub queue_max: usize,
}

/// Hands spans over until it is stopped.
pub struct Exporter<T> {
    collector: Collector,
    transport: T,
    metrics: Arc<Metrics>,
    spans: Spans,
    pub(super) waits: Waits,
    /// The collector took no spans last time.
    is_away: bool,
}

/// What the collector did with a batch.
enum Answer {
    Taken {
        rejected: u64,
    },
    /// It may take the batch later.
    Away(String),
    Refused(String),
}

impl<T: Transport> Exporter<T> {
    /// An exporter, with the tracer that gives it spans.
    pub fn new(mut collector: Collector, transport: T, metrics: Arc<Metrics>) -> (Tracer, Self) {
        let json = HeaderValue::from_static("application/json");
        collector.headers.insert(header::CONTENT_TYPE, json);
        let (ratio, most) = (collector.sample_ratio, collector.queue_max);
        let (tracer, spans) = Tracer::new(ratio, most, Arc::clone(&metrics));
        let exporter = Self {
            collector,
            transport,
            metrics,
            spans,
            waits: WAITS,
            is_away: false,
        };
        (tracer, exporter)
    }

    /// Hands over spans until `stop`, and then what is left, for a moment.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        let last = self.waits.last;
        let over = async {
            stop.cancelled().await;
            sleep(last).await;
        };
        tokio::select! {
            biased;
            () = self.hand_over(&mut batch, &stop) => {}
            () = over => {
                let left = batch.len() + self.spans.0.len();
                self.metrics.spans(SpanResult::Dropped, left as u64);
            }
        }
    }

    async fn hand_over(&mut self, batch: &mut Vec<Record>, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            self.gather(batch, stop).await;
            self.export(batch, stop).await;
        }
        self.spans.0.close();
        while self.spans.0.recv_many(batch, BATCH).await > 0 {
            self.export(batch, stop).await;
        }
    }

    /// Waits for a span, and then a moment for others.
    async fn gather(&mut self, batch: &mut Vec<Record>, stop: &CancellationToken) {
        let mut due = None;
        while batch.len() < BATCH {
            let ends = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            let room = BATCH - batch.len();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = ends => return,
                count = self.spans.0.recv_many(batch, room) => if count == 0 {
                    // No span can come any more.
                    return if batch.is_empty() { stop.cancelled().await };
                }
            }
            due.get_or_insert_with(|| Instant::now() + self.waits.gather);
        }
    }

    /// Hands a batch over, if there is one; repeats it a few times while the collector is away.
    async fn export(&mut self, batch: &mut Vec<Record>, stop: &CancellationToken) {
        if batch.is_empty() {
            return;
        }
        self.repeat(batch, stop).await;
        batch.clear();
    }

    async fn repeat(&mut self, batch: &[Record], stop: &CancellationToken) {
        let body = otlp::request(&self.collector.resource, batch).into();
        let request = Request {
            method: Method::POST,
            uri: self.collector.url.clone(),
            headers: self.collector.headers.clone(),
            body,
        };
        let count = batch.len() as u64;
        let mut delays = self.waits.pauses.delays();
        for attempt in 1.. {
            let what = match self.ask(request.clone()).await {
                Answer::Taken { rejected } => {
                    let rejected = rejected.min(count);
                    self.metrics.spans(SpanResult::Exported, count - rejected);
                    self.metrics.spans(SpanResult::Refused, rejected);
                    return self.is_back();
                }
                Answer::Away(what) if attempt < ATTEMPTS && !stop.is_cancelled() => {
                    self.is_gone(&what);
                    let pause = sleep(delays.next_delay());
                    stop.run_until_cancelled(pause).await;
                    continue;
                }
                Answer::Away(what) | Answer::Refused(what) => what,
            };
            self.is_gone(&what);
            self.metrics.spans(SpanResult::Refused, count);
            return;
        }
    }

    async fn ask(&self, request: Request) -> Answer {
        let reply = match self.transport.send(request, ANSWER).await {
            Ok(reply) => reply,
            Err(error) => return Answer::Away(error.to_string()),
        };
        match reply.status {
            200..=299 => Answer::Taken {
                rejected: otlp::rejected(&reply.body),
            },
            status @ (429 | 502..=504) => Answer::Away(format!("HTTP {status}")),
            status => Answer::Refused(format!("HTTP {status}")),
        }
    }

    fn is_gone(&mut self, what: &str) {
        if !std::mem::replace(&mut self.is_away, true) {
            tracing::warn!(
                url = %self.collector.url,
                "the collector takes no spans ({what}); Fanwise works on, and drops spans"
            );
        }
    }

    fn is_back(&mut self) {
        if std::mem::take(&mut self.is_away) {
            tracing::info!("the collector takes spans again");
        }
    }
}
