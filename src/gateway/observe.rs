//! Metrics, spans and the access log of the HTTP interface.
//!
//! A route is shown as it is declared, without the values in its path, because these name jobs and
//! recipients. Requests that change something, and refused ones, are logged at `info`, the others
//! at `debug`, all under the target `fanwise::access`.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use tokio::time::Instant;

use super::access::Caller;
use super::pool::Share;
use super::routes::Shared;
use super::spans;
use crate::http::server::Peer;
use crate::ports::Broker;

/// The name of everything that is no route.
const OTHER: &str = "other";

/// Observes one request, from its head to the head of its answer.
pub(super) async fn observed<B: Broker, S, T>(
    State(gateway): Shared<B, S, T>,
    mut request: Request,
    next: Next,
) -> Response {
    let metrics = &gateway.context.metrics;
    let route = route(&request);
    let changes = !request.method().is_safe();
    let peer = request.extensions().get::<Arc<Peer>>();
    let network = peer.map_or_else(String::new, |peer| peer.network().to_string());
    let span = spans::begin(&gateway.context.tracer, &mut request, &route);
    let (in_flight, started) = (metrics.request_begins(), Instant::now());
    let response = next.run(request).await;
    let took = started.elapsed();
    drop(in_flight);
    let status = response.status();
    metrics.request(&route, status.as_u16(), took);
    let caller = response.extensions().get::<Arc<Share<Caller>>>();
    let caller = caller.map_or("-", |share| name(share.who()));
    spans::answered(span, status, caller);
    let (status, took_ms) = (status.as_u16(), took.as_millis() as u64);
    if changes || status >= 400 {
        tracing::info!(target: "fanwise::access", status, took_ms, caller, network, "{route}");
    } else {
        tracing::debug!(target: "fanwise::access", status, took_ms, caller, network, "{route}");
    }
    response
}

/// `POST /v1/jobs`: a closed set, whatever callers ask for.
fn route(request: &Request) -> String {
    let method = request.method();
    let is_known = [Method::GET, Method::POST, Method::PUT, Method::DELETE].contains(method);
    match request.extensions().get::<MatchedPath>() {
        Some(path) if is_known => format!("{method} {}", path.as_str()),
        _ => OTHER.to_owned(),
    }
}

fn name(caller: &Caller) -> &str {
    match caller {
        Caller::Admin => "administrator",
        Caller::App(app) => app,
        Caller::Nobody => "without credentials",
    }
}
