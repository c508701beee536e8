//! Writes spans as the JSON of an OTLP export request, and reads the collector's answer.

use serde_json::{Value, json};

use super::{Attribute, Record, SpanKind};

impl SpanKind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Intake => "intake",
            Self::Slice => "slice",
            Self::Call => "call",
        }
    }

    /// The number of OTLP's `SpanKind`: server, consumer or client.
    fn number(self) -> u8 {
        match self {
            Self::Request => 2,
            Self::Intake | Self::Slice => 5,
            Self::Call => 3,
        }
    }
}

/// The number of OTLP's `StatusCode` for an error.
const ERROR: u8 = 2;

/// An export request. `resource`: what is known of this process.
pub(super) fn request(resource: &[(&'static str, String)], spans: &[Record]) -> Vec<u8> {
    let resource = resource.iter().map(|(name, value)| text(name, value));
    let spans = spans.iter().map(span);
    crate::json::bytes(&json!({"resourceSpans": [{
        "resource": {"attributes": resource.collect::<Vec<_>>()},
        "scopeSpans": [{"scope": {"name": "fanwise"}, "spans": spans.collect::<Vec<_>>()}],
    }]}))
}

fn span(record: &Record) -> Value {
    let Record { place, .. } = record;
    let began = u128::from(record.began_ms) * 1_000_000;
    let attributes = record.attributes.iter().map(|(name, value)| match value {
        Attribute::Text(value) => text(name, value),
        // 64 bits are a text in the JSON of protocol buffers.
        Attribute::Number(value) => json!({"key": name, "value": {"intValue": value.to_string()}}),
    });
    let mut span = json!({
        "traceId": format!("{:032x}", place.trace),
        "spanId": format!("{:016x}", place.span),
        "name": record.kind.name(),
        "kind": record.kind.number(),
        "startTimeUnixNano": began.to_string(),
        "endTimeUnixNano": (began + record.took.as_nanos()).to_string(),
        "attributes": attributes.collect::<Vec<_>>(),
    });
    if let Some(parent) = record.parent {
        span["parentSpanId"] = format!("{parent:016x}").into();
    }
    if let Some(what) = &record.error {
        span["status"] = json!({"code": ERROR, "message": what});
    }
    span
}

fn text(name: &str, value: &str) -> Value {
    json!({"key": name, "value": {"stringValue": value}})
}

/// How many spans of a request the collector rejected, according to its answer.
pub(super) fn rejected(answer: &[u8]) -> u64 {
    let answer: Option<Value> = serde_json::from_slice(answer).ok();
    let rejected = answer
        .as_ref()
        .map(|it| &it["partialSuccess"]["rejectedSpans"]);
    match rejected {
        Some(Value::String(number)) => number.parse().unwrap_or(0),
        Some(number) => number.as_u64().unwrap_or(0),
        None => 0,
    }
}
