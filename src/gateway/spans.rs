//! The span of a request, in a sampled trace. Its `traceparent` replaces the caller's, so that the
//! intake of a submitted job is below it.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::domain::trace::traceparent;
use crate::runtime::traces::{Span, SpanKind, Tracer};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The trace that a request belongs to.
pub(super) fn given(headers: &HeaderMap) -> Option<&str> {
    traceparent(headers.get(TRACEPARENT)?.to_str().ok()?)
}

/// Begins the span of a request. A request that only reads begins no trace of its own.
pub(super) fn begin(tracer: &Tracer, request: &mut Request, route: &str) -> Option<Span> {
    let reads = request.method().is_safe();
    let given = given(request.headers());
    let mut span = match given {
        None if reads => None,
        given => tracer.begin(given, SpanKind::Request),
    };
    let below = match &span {
        Some(span) => Some(span.traceparent()),
        // No worker decides about its jobs once more.
        None if given.is_none() && !reads => tracer.unsampled(),
        None => None,
    };
    if let Some(below) = below.and_then(|it| HeaderValue::try_from(it).ok()) {
        request.headers_mut().insert(TRACEPARENT, below);
    }
    if let Some(span) = &mut span {
        span.text("http.request.method", request.method().as_str());
        span.text("http.route", route);
    }
    span
}

/// Ends it.
pub(super) fn answered(span: Option<Span>, status: StatusCode, caller: &str) {
    let Some(mut span) = span else { return };
    span.text("fanwise.caller", caller);
    span.number("http.response.status_code", status.as_u16().into());
    if status.is_server_error() {
        span.failed(format!("HTTP {}", status.as_u16()));
    }
}
