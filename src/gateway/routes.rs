//! The routes under `/v1`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};

use super::access::Caller;
use super::params::Params;
use super::permit::permit;
use super::problem::Refusal;
use super::wire::Submitted;
use super::{Gateway, dead, events, query, templates};
use crate::domain::ids::JobId;
use crate::domain::job::{JOB_BYTES_MAX, Job};
use crate::domain::lane::Priority;
use crate::domain::mapping::Strictness;
use crate::domain::message::Content;
use crate::domain::permissions::Asked;
use crate::domain::slice::Head;
use crate::ports::{Broker, Outgoing, Publisher as _, Route, Shelves, Transport, fit};
use crate::worker::Store;

/// Room above the largest job, so that one that is too large is told so and not cut off.
const BODY_BYTES_MAX: usize = 2 * JOB_BYTES_MAX;

pub(super) fn routes<B, S, T>(gateway: Arc<Gateway<B, S, T>>) -> Router
where
    B: Broker + Shelves,
    S: Store,
    T: Transport,
{
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
        .fallback(nothing_here)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(
            Arc::clone(&gateway),
            authorised::<B, S, T>,
        ))
        .route("/livez", get(|| async { "live\n" }))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(gateway)
}

pub(super) type Shared<B, S, T> = State<Arc<Gateway<B, S, T>>>;

async fn authorised<B: Broker, S, T>(
    State(gateway): Shared<B, S, T>,
    request: Request,
    next: Next,
) -> Response {
    let caller = match gateway.access.caller(request.headers()) {
        Ok(caller) => caller,
        Err(refusal) => return refusal.into_response(),
    };
    let counted = match &caller {
        Caller::App(app) => gateway.requests.count(app, &gateway.access),
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

async fn submit<B: Broker, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    Extension(caller): Extension<Caller>,
    mut params: Params,
    headers: HeaderMap,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Result<(StatusCode, Json<Submitted>), Refusal> {
    let priority = params.one_of("priority", &Priority::ALL, Priority::as_str);
    params.finish()?;
    let mut body = body.map_err(|error| Refusal::BadBody(error.status(), error.body_text()))?;
    let mut job = read(&gateway, &body, priority).await?;
    if let Some(changed) = permit(&gateway, &caller, &job.asked, &body).await? {
        job = read(&gateway, &changed, priority).await?;
        body = changed;
    }
    // Only a hint, and early: the intake decides, and a message that loses a race is rejected there.
    let record = gateway.context.store.job(job.id).await?;
    if let Some(record) = &record
        && record.content_digest != job.content_digest
    {
        return Err(Refusal::Conflict(job.id));
    }
    if let Some((head, all, strictness)) = &job.unresolved {
        let started_with = record.and_then(|record| record.template);
        templates::check(&gateway, head, started_with, *all, *strictness).await?;
    }
    let publisher = gateway.publisher.borrow().clone();
    let publisher =
        publisher.ok_or_else(|| Refusal::Unavailable("no session with the broker".to_owned()))?;
    let traceparent = headers
        .get("traceparent")
        .and_then(|value| value.to_str().ok());
    let message = Outgoing {
        route: Route::Job(priority.or(Some(job.priority)).unwrap_or_default()),
        body,
        message_id: format!("{}/{}", job.id, job.submission),
        traceparent: traceparent.map(str::to_owned),
    };
    publisher.publish(vec![message]).await?;
    Ok((
        StatusCode::ACCEPTED,
        Json(Submitted {
            job: job.id,
            recipients: job.entries as u64,
        }),
    ))
}

/// Reads a job on a thread that may compute for long.
async fn read<B: Broker, S: Store, T: Transport>(
    gateway: &Arc<Gateway<B, S, T>>,
    body: &Bytes,
    priority: Option<Priority>,
) -> Result<Known, Refusal> {
    let (gateway, body) = (Arc::clone(gateway), body.clone());
    tokio::task::spawn_blocking(move || read_job(&gateway, &body, priority))
        .await
        .map_err(|_| Refusal::Unavailable("the job could not be read".to_owned()))?
}

/// What is known of a job that was read.
struct Known {
    id: JobId,
    asked: Asked,
    priority: Priority,
    content_digest: String,
    submission: String,
    entries: usize,
    /// With the name of a stored message in it.
    unresolved: Option<(Head, bool, Strictness)>,
}

fn read_job<B: Broker, S: Store, T>(
    gateway: &Gateway<B, S, T>,
    body: &[u8],
    priority: Option<Priority>,
) -> Result<Known, Refusal> {
    let context = &*gateway.context;
    let job =
        Job::read(body, priority, context, jiff::Timestamp::now()).map_err(Refusal::BadJob)?;
    let unresolved = matches!(job.head.content, Content::Template(_))
        .then(|| (job.head.clone(), job.is_for_all(), job.strictness));
    if unresolved.is_none() {
        let target = &*context.targets[&job.head.target].target;
        let fit = fit(target, &job.head, job.is_for_all(), job.strictness);
        if !fit.problems.is_empty() {
            return Err(Refusal::BadJob(fit.problems));
        }
    }
    Ok(Known {
        unresolved,
        asked: Asked::of(&job),
        id: job.head.id,
        priority: job.head.priority,
        content_digest: job.content_digest,
        submission: job.submission,
        entries: job.entries,
    })
}
