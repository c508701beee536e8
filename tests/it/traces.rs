//! Tests traces: the spans that a collector gets, from the producer to the call, and a collector
//! that does not answer.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use axum::{Json, Router};
use lapin::types::FieldTable;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::embedded::Place;
use crate::support::certificates::Authority;
use crate::support::world::{BOUND, Plan, http_get, users};
use crate::tls::before;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PRODUCER: &str = "b7ad6b7169203331";

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{PRODUCER}-{flags}")
}

/// What a collector was sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<(HeaderMap, Value)>>>);

impl Collector {
    async fn start() -> (SocketAddr, Self) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let collector = Self::default();
        let router = Router::new()
            .route("/v1/traces", post(take))
            .with_state(collector.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (address, collector)
    }

    fn spans(&self) -> Vec<Value> {
        spans_of(&self.0.lock().unwrap())
    }
}

fn spans_of(requests: &[(HeaderMap, Value)]) -> Vec<Value> {
    let spans = requests.iter().flat_map(|(_, body)| {
        let spans = &body["resourceSpans"][0]["scopeSpans"][0]["spans"];
        spans.as_array().unwrap().clone()
    });
    spans.collect()
}

async fn take(State(collector): State<Collector>, headers: HeaderMap, body: Bytes) -> Json<Value> {
    let body = serde_json::from_slice(&body).unwrap();
    collector.0.lock().unwrap().push((headers, body));
    Json(json!({"partialSuccess": {}}))
}

fn named<'a>(spans: &'a [Value], name: &str) -> Vec<&'a Value> {
    spans.iter().filter(|span| span["name"] == name).collect()
}

fn attribute<'a>(span: &'a Value, key: &str) -> &'a Value {
    let all = span["attributes"].as_array().unwrap();
    let found = all.iter().find(|it| it["key"] == key);
    &found.unwrap_or_else(|| panic!("no {key} in {span}"))["value"]
}

fn job(key: &str, users: &[String]) -> Vec<u8> {
    let job = json!({
        "v": 1,
        "client_msg_no": key,
        "audience": {"users": users},
        "message": {"type": "text", "text": "hello"},
    });
    serde_json::to_vec(&job).unwrap()
}

/// The spans of a job are one tree below the producer's span, and the target gets the span of the
/// call. A job that is not sampled has no spans, and its traceparent travels unchanged.
#[tokio::test(flavor = "multi_thread")]
async fn a_sampled_job_is_one_trace_from_the_producer_to_the_call() {
    let Some(mut plan) = Plan::shared() else {
        return;
    };
    let (address, collector) = Collector::start().await;
    plan.more = format!(
        "[tracing]\notlp_url = \"http://{address}\"\nheaders = \"X-Key: k1\"\nservice_name = \"shop\""
    );
    let world = plan.start("traces").await;
    world
        .mock
        .patch_faults(&json!({"refuse_prefix": "bad-"}))
        .unwrap();
    let worker = world.worker().await;
    let people = [users(250), vec!["bad-1".to_owned()]].concat();
    for (key, flags) in [("unsampled", "00"), ("sampled", "01")] {
        let mut headers = FieldTable::default();
        let value = lapin::types::LongString::from(traceparent(flags));
        headers.insert("traceparent".into(), value.into());
        world.publish_with(&job(key, &people), headers).await;
        world.completed(key).await;
    }
    worker.drain().await;

    // The process hands over the rest before it ends.
    let spans = collector.spans();
    let (intakes, slices) = (named(&spans, "intake"), named(&spans, "slice"));
    let calls = named(&spans, "call");
    let [intake] = intakes[..] else {
        panic!("{spans:#?}")
    };
    assert_eq!(intake["parentSpanId"], PRODUCER);
    assert_eq!(
        attribute(intake, "fanwise.client_msg_no")["stringValue"],
        "sampled"
    );
    let ids = |spans: &[&Value], id: &str| -> BTreeSet<String> {
        let ids = spans
            .iter()
            .map(|span| span[id].as_str().unwrap().to_owned());
        ids.collect()
    };
    assert_eq!(ids(&slices, "parentSpanId"), ids(&intakes, "spanId"));
    assert_eq!(ids(&calls, "parentSpanId"), ids(&slices, "spanId"));
    assert!(
        spans.iter().all(|span| span["traceId"] == TRACE),
        "{spans:#?}"
    );
    let number = |span: &Value| {
        let number = attribute(span, "fanwise.recipients")["intValue"].as_str();
        number.unwrap().parse::<u64>().unwrap()
    };
    let done = calls.iter().filter(|call| call.get("status").is_none());
    assert_eq!(
        done.map(|call| number(call)).sum::<u64>(),
        250,
        "{calls:#?}"
    );
    let failed: Vec<_> = calls
        .iter()
        .filter(|it| it["status"]["code"] == 2)
        .collect();
    assert!(!failed.is_empty(), "{calls:#?}");

    // What the target got as its parent.
    let told: BTreeSet<_> = world
        .mock
        .accepted()
        .into_iter()
        .map(|entry| (entry.client_msg_no, entry.traceparent.unwrap().to_string()))
        .collect();
    for (key, parent) in &told {
        let [_, trace, span, flags] = parent.split('-').collect::<Vec<_>>()[..] else {
            panic!("{parent}")
        };
        assert_eq!(trace, TRACE);
        match key.contains("unsampled") {
            true => assert_eq!((span, flags), (PRODUCER, "00")),
            false => {
                assert!(ids(&calls, "spanId").contains(span), "{parent}");
                assert_eq!(flags, "01");
            }
        }
    }
    assert!(told.len() > 2, "{told:?}");
    let (headers, body) = collector.0.lock().unwrap()[0].clone();
    assert_eq!(headers["x-key"], "k1");
    let resource = &body["resourceSpans"][0]["resource"];
    assert_eq!(attribute(resource, "service.name")["stringValue"], "shop");
    world.end().await;
}

/// One request to a gateway; the status of its answer.
async fn request(port: u16, head: &str, headers: &[(&str, &str)], body: &[u8]) -> u16 {
    let lines = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"));
    let head = format!(
        "{head} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n{}\r\n",
        body.len(),
        lines.collect::<String>()
    );
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

/// A request in a sampled trace has a span, and what it submits is below it. One that only reads
/// begins no trace.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_the_parent_of_the_intake() {
    let (address, collector) = Collector::start().await;
    let tracing = format!("[tracing]\notlp_url = \"http://{address}\"");
    let place = Place::with("traces-request", &tracing).await;
    let mut process = place.serve().await;
    let port = place.gateway;
    let (sampled, unsampled) = (traceparent("01"), traceparent("00"));
    let submit = async |key: &str, headers: &[(&str, &str)]| {
        let body = job(key, &users(2));
        request(port, "POST /v1/jobs", headers, &body).await
    };
    assert_eq!(submit("sampled", &[("Traceparent", &sampled)]).await, 202);
    assert_eq!(
        submit("unsampled", &[("Traceparent", &unsampled)]).await,
        202
    );
    assert_eq!(submit("without", &[]).await, 202);
    let told = [("Traceparent", sampled.as_str())];
    assert_eq!(request(port, "GET /v1/jobs/nobody", &told, b"").await, 404);
    assert_eq!(request(port, "GET /v1/jobs", &[], b"").await, 200);
    for key in ["sampled", "unsampled", "without"] {
        place.completed(key).await;
    }
    process.terminate();
    assert_eq!(process.wait(Duration::from_secs(30)).await.code(), Some(0));

    let spans = collector.spans();
    let text = |span: &Value, key: &str| {
        let value = attribute(span, key)["stringValue"].as_str();
        value.unwrap().to_owned()
    };
    let status = |span: &Value| attribute(span, "http.response.status_code")["intValue"].clone();
    let mut requests = named(&spans, "request");
    requests.sort_by_key(|span| text(span, "http.request.method"));
    let [get, post] = requests[..] else {
        panic!("{spans:#?}")
    };
    assert_eq!(
        (get["parentSpanId"].as_str(), &get["kind"]),
        (Some(PRODUCER), &json!(2))
    );
    assert_eq!(
        (text(get, "http.route"), status(get)),
        ("GET /v1/jobs/{job}".to_owned(), json!("404"))
    );
    assert_eq!(post["parentSpanId"], PRODUCER);
    assert_eq!(
        (text(post, "http.route"), status(post)),
        ("POST /v1/jobs".to_owned(), json!("202"))
    );
    assert!(post.get("status").is_none(), "{post}");
    let [intake] = named(&spans, "intake")[..] else {
        panic!("{spans:#?}")
    };
    assert_eq!(intake["parentSpanId"], post["spanId"]);
    assert!(
        spans.iter().all(|span| span["traceId"] == TRACE),
        "{spans:#?}"
    );
}

/// If traces begin at the gateway, each submission is one trace, and no worker decides once more.
#[tokio::test(flavor = "multi_thread")]
async fn traces_of_jobs_over_http_begin_at_the_gateway() {
    let (address, collector) = Collector::start().await;
    let tracing =
        |ratio: &str| format!("[tracing]\notlp_url = \"http://{address}\"\nsample_ratio = {ratio}");
    for (ratio, traces) in [("1", 4), ("0.000000000001", 0)] {
        let place = Place::with("traces-root", &tracing(ratio)).await;
        let mut process = place.serve().await;
        for key in ["a", "b", "c", "d"] {
            let body = job(key, &users(2));
            assert_eq!(
                request(place.gateway, "POST /v1/jobs", &[], &body).await,
                202
            );
            assert_eq!(request(place.gateway, "GET /v1/jobs", &[], b"").await, 200);
            place.completed(key).await;
        }
        process.terminate();
        assert_eq!(process.wait(Duration::from_secs(30)).await.code(), Some(0));
        let spans = std::mem::take(&mut *collector.0.lock().unwrap());
        let spans = spans_of(&spans);
        let (requests, intakes) = (named(&spans, "request"), named(&spans, "intake"));
        assert_eq!(
            (requests.len(), intakes.len()),
            (traces, traces),
            "{spans:#?}"
        );
        let below = |it: &&Value| {
            requests
                .iter()
                .any(|request| request["spanId"] == it["parentSpanId"])
        };
        assert!(intakes.iter().all(below), "{spans:#?}");
        // The target learns what was decided.
        for entry in place.mock.accepted() {
            let told = entry.traceparent.unwrap().to_string();
            assert_eq!(told.ends_with("-01"), traces > 0, "{told}");
        }
    }
}

/// A collector behind TLS with a private CA that asks for a certificate.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_is_reached_over_tls_with_a_private_ca() {
    let (address, collector) = Collector::start().await;
    let (ca, other) = (Authority::new("own"), Authority::new("other"));
    let server = ca.sign("collector", "DNS:collector.internal");
    let client = ca.sign("fanwise", "DNS:fanwise");
    let port = before(address, &server, &ca).await;
    let tracing = format!(
        "[tracing]\notlp_url = \"https://127.0.0.1:{port}\"\nsample_ratio = 1\nserver_name = \"collector.internal\"\n\
         certificate = {:?}\nkey = {:?}",
        client.certificate, client.key
    );
    for (ca_file, known) in [(other.file(), false), (ca.file(), true)] {
        let more = format!("{tracing}\nca_file = {ca_file:?}");
        let place = Place::with("traces-tls", &more).await;
        let mut process = place.serve().await;
        let body = job("k", &users(2));
        assert_eq!(
            request(place.gateway, "POST /v1/jobs", &[], &body).await,
            202
        );
        place.completed("k").await;
        if !known {
            process
                .until_prints("the collector takes no spans", BOUND)
                .await;
        }
        process.terminate();
        assert_eq!(process.wait(BOUND).await.code(), Some(0));
        assert_eq!(!collector.spans().is_empty(), known);
    }
    assert_eq!(named(&collector.spans(), "intake").len(), 1);
}

/// A collector that takes the connection and never answers neither delays nor loses a send, and the
/// process ends in time.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_delays_no_send_and_no_end() {
    let hangs = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let tracing = format!(
        "[tracing]\notlp_url = \"http://{}\"\nsample_ratio = 1\nqueue_max = 512",
        hangs.local_addr().unwrap()
    );
    let place = Place::with("traces-hang", &tracing).await;
    let mut process = place.serve().await;
    // A call for each recipient: more spans than the queue and the request under way hold.
    let people = users(2000);
    let arguments = [
        "send",
        "--client-msg-no",
        "k",
        "--text",
        "hello",
        "--file",
        "-",
    ];
    let sent = place.run(&arguments, people.join("\n").as_bytes()).await;
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    let record = place.completed("k").await;
    assert_eq!(record["accounts"]["sent"], 2000, "{record}");
    assert_eq!(place.accepted_once(), people.into_iter().collect());
    let metrics = http_get(place.admin, "/metrics").await.unwrap();
    let count = |result: &str| {
        let line = format!("fanwise_trace_spans_total{{result=\"{result}\"}} ");
        let count = metrics.lines().find_map(|it| it.strip_prefix(&line));
        count.unwrap().parse::<u64>().unwrap()
    };
    assert!(count("dropped") > 0, "{metrics}");
    assert_eq!(count("exported"), 0);
    process.terminate();
    assert_eq!(process.wait(Duration::from_secs(30)).await.code(), Some(0));
}
