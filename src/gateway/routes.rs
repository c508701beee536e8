//! The routes under `/v1`.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, Uri, header};
use axum::middleware::{Next, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use super::access::Caller;
use super::body::patient;
use super::problem::{Refusal, uniform};
use super::submit::submit;
use super::{Gateway, dead, dropin, events, query, templates};
use crate::ports::{Broker, Shelves, Transport};
use crate::worker::Store;

pub(super) fn routes<B, S, T>(gateway: Arc<Gateway<B, S, T>>) -> Router
where
    B: Broker + Shelves,
    S: Store,
    T: Transport,
{
    let existing_callers = dropin::routes(&gateway.desks);
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
        .route("/v1/dead", get(dead::list::<B, S, T>))
        .route("/v1/dead:redrive", post(dead::redrive::<B, S, T>))
        .route("/v1/dead:purge", post(dead::purge::<B, S, T>))
        .route("/v1/rejected", get(dead::rejected::<B, S, T>))
        .route("/v1/templates", get(templates::list::<B, S, T>))
        .route(
            "/v1/templates/{name}",
            get(templates::show::<B, S, T>)
                .put(templates::put::<B, S, T>)
                .delete(templates::delete::<B, S, T>),
        )
        .merge(super::steer::routes())
        .merge(super::openapi::routes())
        .fallback(nothing_here)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(
            Arc::clone(&gateway),
            authorised::<B, S, T>,
        ))
        .layer(from_fn_with_state(
            Arc::clone(&gateway),
            admitted::<B, S, T>,
        ))
        .route("/livez", get(|| async { "live\n" }))
        .layer(map_response(uniform))
        // These have credentials and manners of their own.
        .merge(existing_callers)
        .with_state(gateway)
}

pub(super) type Shared<B, S, T> = State<Arc<Gateway<B, S, T>>>;

/// Lets so many requests in at a time, and no slow body.
async fn admitted<B: Broker, S, T>(
    State(gateway): Shared<B, S, T>,
    request: Request,
    next: Next,
) -> Response {
    let _place = match gateway.place() {
        Ok(place) => place,
        Err(refusal) => return refusal.into_response(),
    };
    next.run(patient(request, gateway.patience)).await
}

async fn authorised<B: Broker, S, T>(
    State(gateway): Shared<B, S, T>,
    request: Request,
    next: Next,
) -> Response {
    let caller = match gateway.access.caller(request.headers()) {
        Ok(caller) => caller,
        Err(refusal) => return refusal.into_response(),
    };
    let is_known = !gateway.access.open && caller != Caller::Nobody;
    // A web page that somebody on this machine looks at could send to everybody.
    if !is_known
        && request.method() != Method::GET
        && request.headers().contains_key(header::ORIGIN)
    {
        return Refusal::FromBrowser.into_response();
    }
    let counted = match &caller {
        Caller::App(app) => gateway.rates.count(app, &gateway.access),
        // Whose job it is shows later, see `permit`.
        Caller::Admin | Caller::Nobody => Ok(()),
    };
    match counted.and_then(|()| gateway.access.confine(&caller, request)) {
        Ok(mut request) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(refusal) => refusal.into_response(),
    }
}

async fn nothing_here(uri: Uri) -> Refusal {
    Refusal::NotFound(format!("there is nothing at {}", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> Refusal {
    let what = format!("{method} is not possible at {}", uri.path());
    Refusal::BadMethod(what)
}
