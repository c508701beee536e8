//! Describes the deliveries of slices and their calls in the spans of a sampled job. A job that is
//! not sampled has no spans.

use super::DeliveryEnd;
use super::call::class_of;
use crate::domain::outcome::{Class, Verdict};
use crate::domain::slice::Slice;
use crate::runtime::traces::{Span, SpanKind, Tracer};

/// Begins the span of a delivery.
pub(super) fn delivery(tracer: &Tracer, slice: &Slice, traceparent: Option<&str>) -> Option<Span> {
    let mut span = tracer.below(traceparent, SpanKind::Slice)?;
    span.text("fanwise.app", &*slice.head.app);
    span.text("fanwise.target", &*slice.head.target);
    span.text("fanwise.job", slice.head.id.to_string());
    span.text("fanwise.slice", slice.id.to_string());
    span.number("fanwise.recipients", slice.recipients.len() as u64);
    Some(span)
}

/// Ends the span of a delivery.
pub(super) fn delivered(span: Option<Span>, end: &DeliveryEnd) {
    let Some(mut span) = span else { return };
    let text = match end {
        DeliveryEnd::Done => "done",
        DeliveryEnd::Deferred => "deferred",
        DeliveryEnd::Lost => "lost",
        DeliveryEnd::Reject(_) => "rejected",
    };
    span.text("fanwise.end", text);
    match end {
        DeliveryEnd::Done | DeliveryEnd::Deferred => {}
        DeliveryEnd::Lost => span.failed("the session with the broker was lost"),
        DeliveryEnd::Reject(why) => span.failed(why),
    }
}

/// Begins the span of a call.
pub(super) fn call(delivery: Option<&Span>, target: &str, recipients: usize) -> Option<Span> {
    let mut span = delivery?.child(SpanKind::Call);
    span.text("fanwise.target", target);
    span.number("fanwise.recipients", recipients as u64);
    Some(span)
}

/// Ends the span of a call.
pub(super) fn answered(span: Option<Span>, verdict: &Verdict) {
    let Some(mut span) = span else { return };
    let class = class_of(verdict);
    span.text("fanwise.class", class.as_str());
    if class != Class::Done {
        // The backend's text may name recipients, so only its code goes to the collector.
        let code = &*verdict.of(0).code;
        span.text("fanwise.code", code);
        span.failed(code);
    }
}
