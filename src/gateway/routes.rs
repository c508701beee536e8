//! All routes of the gateway, and the layers that every request passes.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{Method, Uri, header};
use axum::middleware::{Next, from_fn, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};

use super::access::Caller;
use super::body::{patient, uncompressed};
use super::browser::one_host;
use super::observe::observed;
use super::pool::Share;
use super::problem::{Refusal, uniform};
use super::shares::accounted;
use super::submit::submit;
use super::{
    Gateway, about, backup, dead, dropin, events, feed, lookup, query, templates, uncertain,
};
use crate::http::server::Peer;
use crate::ports::{Broker, RetainedQueues, Store, Transport};

pub(super) fn routes<B, S, T>(gateway: Arc<Gateway<B, S, T>>) -> Router
where
    B: Broker + RetainedQueues,
    S: Store,
    T: Transport,
{
    let existing_callers = dropin::routes(&gateway.systems);
    Router::new()
        .route(
            "/v1/jobs",
            post(submit::<B, S, T>).get(query::list::<B, S, T>),
        )
        .route("/v1/jobs/{job}", get(query::show::<B, S, T>))
        .route("/v1/jobs/{job}/verification", get(query::verify::<B, S, T>))
        .route("/v1/jobs/{job}/events", get(events::events::<B, S, T>))
        .route(
            "/v1/jobs/{job}/recipients/{user}",
            get(query::recipient::<B, S, T>),
        )
        .route(
            "/v1/jobs/{job}/recipients:lookup",
            post(lookup::lookup::<B, S, T>),
        )
        .route(
            "/v1/jobs/{job}/uncertain:resolve",
            post(uncertain::resolve::<B, S, T>),
        )
        .route("/v1/events", get(feed::feed::<B, S, T>))
        .route("/v1/about", get(about::about::<B, S, T>))
        .route("/v1/dead", get(dead::list::<B, S, T>))
        .route("/v1/dead:redrive", post(dead::redrive::<B, S, T>))
        .route("/v1/dead:purge", post(dead::purge::<B, S, T>))
        .route("/v1/rejected", get(dead::rejected::<B, S, T>))
        .route("/v1/backup", get(backup::backup::<B, S, T>))
        .route("/v1/templates", get(templates::list::<B, S, T>))
        .route(
            "/v1/templates/{name}",
            get(templates::show::<B, S, T>)
                .put(templates::put::<B, S, T>)
                .delete(templates::delete::<B, S, T>),
        )
        .merge(super::control::routes())
        .fallback(nothing_here)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(
            Arc::clone(&gateway),
            admitted::<B, S, T>,
        ))
        .layer(from_fn_with_state(
            Arc::clone(&gateway),
            authorised::<B, S, T>,
        ))
        // These need no token, and tell nothing about jobs.
        .route("/livez", get(|| async { "live\n" }))
        .merge(super::openapi::routes())
        .merge(super::console::routes())
        .layer(map_response(uniform))
        // Drop-in endpoints have credentials and refusals of their own.
        .merge(existing_callers)
        .layer(from_fn(for_one_host))
        .layer(from_fn_with_state(
            Arc::clone(&gateway),
            observed::<B, S, T>,
        ))
        .layer(from_fn_with_state(
            Arc::clone(&gateway),
            accounted::<B, S, T>,
        ))
        .with_state(gateway)
}

pub(super) type Shared<B, S, T> = State<Arc<Gateway<B, S, T>>>;

async fn for_one_host(request: Request, next: Next) -> Response {
    match one_host(request.version(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// Decides who sent a request by its head, before anything else of it is waited for.
async fn authorised<B: Broker, S, T>(
    State(gateway): Shared<B, S, T>,
    request: Request,
    next: Next,
) -> Response {
    let access = &gateway.access;
    let peer = request.extensions().get::<Arc<Peer>>().cloned();
    let caller = match access.caller(request.headers()) {
        Ok(caller) => caller,
        Err(refusal) => {
            let guessed = request.headers().contains_key(header::AUTHORIZATION);
            // The request is not needed while the answer waits.
            drop(request);
            if guessed {
                gateway.answer_slowly(peer.as_deref()).await;
            }
            return refusal.into_response();
        }
    };
    if let Err(refusal) = gateway.knows_sender(&caller, &request) {
        return refusal.into_response();
    }
    if let Some(peer) = peer {
        peer.trust();
    }
    let counted = match &caller {
        Caller::App(app) => gateway.count_request(app),
        // The app of the job is known later, see `permit`.
        Caller::Admin | Caller::Nobody => Ok(()),
    };
    match counted.and_then(|()| access.confine(&caller, request)) {
        Ok(mut request) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(refusal) => refusal.into_response(),
    }
}

impl<B: Broker, S, T> Gateway<B, S, T> {
    /// Refuses requests that a web page may have sent, where no credentials tell the page from its
    /// user.
    fn knows_sender(&self, caller: &Caller, request: &Request) -> Result<(), Refusal> {
        let is_known = !self.access.open && *caller != Caller::Nobody;
        if is_known {
            return Ok(());
        }
        Ok(self.hosts.check(request.uri(), request.headers())?)
    }
}

/// Lets in a bounded number of requests at a time, and no slow body. The place is free again when
/// the client has taken the answer, unless the answer has a share of its own.
async fn admitted<B: Broker, S, T>(
    State(gateway): Shared<B, S, T>,
    Extension(caller): Extension<Caller>,
    request: Request,
    next: Next,
) -> Response {
    let place = match uncompressed(request.headers()).and_then(|()| gateway.shares.place(&caller)) {
        Ok(place) => place,
        Err(refusal) => return refusal.into_response(),
    };
    let mut response = next.run(patient(request, gateway.patience)).await;
    let extensions = response.extensions_mut();
    if extensions.get::<Arc<Share<Caller>>>().is_none() {
        extensions.insert(Arc::new(place));
    }
    response
}

async fn nothing_here(uri: Uri) -> Refusal {
    Refusal::NotFound(format!("there is nothing at {}", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> Refusal {
    let what = format!("{method} is not supported at {}", uri.path());
    Refusal::BadMethod(what)
}
