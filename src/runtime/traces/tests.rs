use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::export::Waits;
use super::*;
use crate::domain::schedule::Schedule;
use crate::ports::{HttpReply, Request, SendError, Transport};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A collector that answers with these statuses in turn, and then with the last one.
#[derive(Clone, Default)]
struct Backend {
    statuses: Arc<Mutex<Vec<u16>>>,
    requests: Arc<Mutex<Vec<Value>>>,
    /// How long an answer takes.
    delay: Duration,
}

impl Backend {
    fn answers(statuses: &[u16]) -> Self {
        Self {
            statuses: Arc::new(Mutex::new(statuses.iter().rev().copied().collect())),
            ..Self::default()
        }
    }
}

impl Transport for Backend {
    async fn send(&self, request: Request, _: Duration) -> Result<HttpReply, SendError> {
        sleep(self.delay).await;
        let body = serde_json::from_slice(&request.body).unwrap();
        self.requests.lock().push(body);
        let mut statuses = self.statuses.lock();
        let status = match statuses.len() {
            1 => statuses[0],
            _ => statuses.pop().unwrap(),
        };
        Ok(HttpReply {
            status,
            headers: HeaderMap::new(),
            body: Bytes::from_static(b"{\"partialSuccess\":{\"rejectedSpans\":\"1\"}}"),
        })
    }
}

fn started(backend: &Backend, queue_max: usize) -> (Tracer, Exporter<Backend>, Arc<Metrics>) {
    let collector = Collector {
        url: "http://127.0.0.1:4318/v1/traces".parse().unwrap(),
        headers: HeaderMap::new(),
        resource: vec![("service.name", "fanwise".to_owned())],
        sample_ratio: 0.0,
        queue_max,
    };
    let metrics = Arc::new(Metrics::new());
    let (tracer, mut exporter) = Exporter::new(collector, backend.clone(), Arc::clone(&metrics));
    let ms = Duration::from_millis;
    exporter.waits = Waits {
        gather: ms(1),
        pauses: Schedule {
            min: ms(1),
            max: ms(1),
            jitter: 0.0,
        },
        last: ms(50),
    };
    (tracer, exporter, metrics)
}

fn counted(metrics: &Metrics, result: &str) -> u64 {
    let line = format!("fanwise_trace_spans_total{{result=\"{result}\"}} ");
    let text = metrics.text();
    let found = text.lines().find_map(|it| it.strip_prefix(&line));
    found.unwrap().parse().unwrap()
}

#[tokio::test]
async fn only_a_sampled_trace_has_spans() {
    let (tracer, ..) = started(&Backend::answers(&[200]), 8);
    let begins = |traceparent| tracer.begin(traceparent, SpanKind::Intake).is_some();
    let unsampled = PARENT.replace("-01", "-00");
    assert!(begins(Some(PARENT)));
    assert!(!begins(Some(&unsampled)));
    assert!(!begins(Some("nonsense")));
    assert!(!begins(None), "the ratio is 0");
    assert!(tracer.below(None, SpanKind::Slice).is_none());
    assert!(
        Tracer::default()
            .begin(Some(PARENT), SpanKind::Intake)
            .is_none()
    );
    let (always, _spans) = Tracer::new(1.0, 8, Arc::default());
    let root = always.begin(None, SpanKind::Intake).unwrap();
    assert!(SpanPlace::parse(&root.traceparent()).unwrap().is_sampled());
    assert!(
        always.begin(Some(&unsampled), SpanKind::Intake).is_none(),
        "the producer decides"
    );
}

#[tokio::test]
async fn spans_are_a_tree_in_the_json_of_otlp() {
    let backend = Backend::answers(&[200]);
    let (tracer, exporter, metrics) = started(&backend, 8);
    let slice = tracer.below(Some(PARENT), SpanKind::Slice).unwrap();
    let mut call = slice.child(SpanKind::Call);
    let sent = call.traceparent();
    call.number("fanwise.recipients", 3);
    call.text("fanwise.target", "im");
    call.failed("503");
    drop(call);
    drop(slice);
    let stop = CancellationToken::new();
    stop.cancel();
    exporter.run(stop).await;

    let requests = backend.requests.lock();
    let resource = &requests[0]["resourceSpans"][0];
    let name = &resource["resource"]["attributes"][0];
    assert_eq!(name["value"]["stringValue"], "fanwise");
    let spans = &resource["scopeSpans"][0]["spans"];
    let (call, slice) = (&spans[0], &spans[1]);
    assert_eq!((&call["name"], &call["kind"]), (&"call".into(), &3.into()));
    assert_eq!(slice["traceId"], "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(slice["parentSpanId"], "b7ad6b7169203331");
    assert_eq!(call["traceId"], slice["traceId"]);
    assert_eq!(call["parentSpanId"], slice["spanId"]);
    let expected = format!(
        "00-{}-{}-01",
        call["traceId"].as_str().unwrap(),
        call["spanId"].as_str().unwrap()
    );
    assert_eq!(sent, expected);
    assert_eq!(call["status"], json!({"code": 2, "message": "503"}));
    assert_eq!(slice.get("status"), None);
    let attributes = json!([
        {"key": "fanwise.recipients", "value": {"intValue": "3"}},
        {"key": "fanwise.target", "value": {"stringValue": "im"}},
    ]);
    assert_eq!(call["attributes"], attributes);
    let at = |name: &str| call[name].as_str().unwrap().parse::<u64>().unwrap();
    assert!(at("endTimeUnixNano") >= at("startTimeUnixNano"));
    // The collector says that it rejected one of the two.
    assert_eq!(counted(&metrics, "exported"), 1);
    assert_eq!(counted(&metrics, "refused"), 1);
}

/// Promise 9: a collector that is slow or away costs spans, and no work.
#[tokio::test]
async fn a_slow_collector_loses_spans_and_delays_nothing() {
    let backend = Backend {
        delay: Duration::from_secs(3600),
        ..Backend::answers(&[200])
    };
    let (tracer, exporter, metrics) = started(&backend, 100);
    let stop = CancellationToken::new();
    let running = tokio::spawn(exporter.run(stop.clone()));
    for _ in 0..2000 {
        drop(tracer.below(Some(PARENT), SpanKind::Slice));
    }
    assert_eq!(counted(&metrics, "dropped"), 1900);
    stop.cancel();
    running.await.unwrap();
    assert_eq!(counted(&metrics, "dropped"), 2000);
    // A span that ends after the exporter.
    drop(tracer.below(Some(PARENT), SpanKind::Slice));
    assert_eq!(counted(&metrics, "dropped"), 2001);
}

#[tokio::test]
async fn a_collector_that_comes_back_gets_the_batch_and_one_that_refuses_does_not() {
    for (statuses, requests, result) in [
        (&[503, 429, 200][..], 3, "exported"),
        (&[503], 4, "refused"),
        (&[400], 1, "refused"),
    ] {
        let backend = Backend::answers(statuses);
        let (tracer, exporter, metrics) = started(&backend, 8);
        for _ in 0..2 {
            drop(tracer.below(Some(PARENT), SpanKind::Slice));
        }
        let stop = CancellationToken::new();
        let running = tokio::spawn(exporter.run(stop.clone()));
        while counted(&metrics, result) == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        stop.cancel();
        running.await.unwrap();
        assert_eq!(backend.requests.lock().len(), requests, "{statuses:?}");
    }
}
