//! Records spans of sampled traces for an OpenTelemetry collector: requests of the HTTP interface, the
//! intake of a job, each delivery of a slice, and each call to a target.
//!
//! A trace is recorded if the `traceparent` of the job asks for it. A job without one begins a
//! trace of its own, for the configured share of jobs; if it came over HTTP, the gateway decides. The intake puts its own span into the slices
//! that it publishes, and a call puts its span into the request, so that the spans of producer,
//! worker and target are one tree. The rest of a slice keeps the `traceparent` of the intake.
//!
//! No work waits for the collector: a span goes into a queue with a bound, and is dropped and
//! counted if the queue is full (`export`). A job that is not sampled has no span, and its calls
//! cost one comparison.
//!
//! The encoding is the JSON of OTLP over HTTP, which every collector takes. It is written here and
//! not by the `opentelemetry` crates, because these bring another HTTP client, and what is needed of
//! them is four kinds of spans.

mod export;
mod otlp;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant;

pub use self::export::{Collector, Exporter};
use crate::clock::now_ms;
use crate::domain::trace::SpanPlace;
use crate::metrics::{Metrics, SpanResult};

/// Begins spans; without a collector it begins none.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<Recorder>>);

struct Recorder {
    spans: mpsc::Sender<Record>,
    /// The share of the jobs without a `traceparent` that are sampled.
    sample_ratio: f64,
    metrics: Arc<Metrics>,
}

/// What a span is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SpanKind {
    Request,
    Intake,
    Slice,
    Call,
}

/// A span that has ended.
#[derive(Debug)]
struct Record {
    kind: SpanKind,
    place: SpanPlace,
    parent: Option<u64>,
    began_ms: u64,
    took: Duration,
    attributes: Vec<(&'static str, Attribute)>,
    error: Option<String>,
}

#[derive(Debug)]
pub(crate) enum Attribute {
    Text(String),
    Number(u64),
}

/// A span under way. It ends when it is dropped, so that it ends however its work does.
pub(crate) struct Span {
    recorder: Arc<Recorder>,
    began: Instant,
    /// Taken when it ends.
    record: Option<Box<Record>>,
    place: SpanPlace,
}

impl Tracer {
    /// A tracer, and the queue of the spans that ended. The queue holds at most `queue_max`.
    fn new(sample_ratio: f64, queue_max: usize, metrics: Arc<Metrics>) -> (Self, Spans) {
        let (spans, ended) = mpsc::channel(queue_max);
        let recorder = Recorder {
            spans,
            sample_ratio,
            metrics,
        };
        (Self(Some(Arc::new(recorder))), Spans(ended))
    }

    /// A span below this place, if the trace is recorded.
    pub(crate) fn below(&self, traceparent: Option<&str>, kind: SpanKind) -> Option<Span> {
        let recorder = self.0.as_ref()?;
        let parent = SpanPlace::parse(traceparent?)?;
        let sampled = parent.is_sampled();
        sampled.then(|| {
            Span::begin(
                recorder,
                kind,
                parent.with_span(random()),
                Some(parent.span),
            )
        })
    }

    /// Like [`Tracer::below`]; without a `traceparent`, perhaps the first span of a new trace.
    pub(crate) fn begin(&self, traceparent: Option<&str>, kind: SpanKind) -> Option<Span> {
        if traceparent.is_some() {
            return self.below(traceparent, kind);
        }
        let recorder = self.0.as_ref()?;
        let root = || SpanPlace::root(fastrand::u128(1..), random());
        (fastrand::f64() < recorder.sample_ratio).then(|| Span::begin(recorder, kind, root(), None))
    }

    /// The `traceparent` of a trace that is not recorded, if traces may begin here: what is below it
    /// begins none.
    pub(crate) fn unsampled(&self) -> Option<String> {
        let begins = |recorder: &&Arc<Recorder>| recorder.sample_ratio > 0.0;
        self.0.as_ref().filter(begins)?;
        Some(SpanPlace::unsampled(fastrand::u128(1..), random()).to_string())
    }
}

/// The spans that ended.
struct Spans(mpsc::Receiver<Record>);

/// The id of a span, which is never 0.
fn random() -> u64 {
    fastrand::u64(1..)
}

impl Span {
    fn begin(
        recorder: &Arc<Recorder>,
        kind: SpanKind,
        place: SpanPlace,
        parent: Option<u64>,
    ) -> Self {
        Self {
            recorder: Arc::clone(recorder),
            began: Instant::now(),
            record: Some(Box::new(Record {
                kind,
                place,
                parent,
                began_ms: now_ms(),
                took: Duration::ZERO,
                attributes: Vec::new(),
                error: None,
            })),
            place,
        }
    }

    /// A span below this one.
    pub(crate) fn child(&self, kind: SpanKind) -> Self {
        let Self {
            recorder, place, ..
        } = self;
        Self::begin(recorder, kind, place.with_span(random()), Some(place.span))
    }

    pub(crate) fn traceparent(&self) -> String {
        self.place.to_string()
    }

    pub(crate) fn text(&mut self, name: &'static str, text: impl Into<String>) {
        self.attribute(name, Attribute::Text(text.into()));
    }

    pub(crate) fn number(&mut self, name: &'static str, number: u64) {
        self.attribute(name, Attribute::Number(number));
    }

    fn attribute(&mut self, name: &'static str, value: Attribute) {
        if let Some(record) = &mut self.record {
            record.attributes.push((name, value));
        }
    }

    /// Marks it as failed.
    pub(crate) fn failed(&mut self, what: impl Into<String>) {
        if let Some(record) = &mut self.record {
            record.error = Some(what.into());
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(mut record) = self.record.take() else {
            return;
        };
        record.took = self.began.elapsed();
        let sent = self.recorder.spans.try_send(*record);
        if let Err(TrySendError::Full(_) | TrySendError::Closed(_)) = sent {
            self.recorder.metrics.spans(SpanResult::Dropped, 1);
        }
    }
}

#[cfg(test)]
mod tests;
