//! The routes under `/v1`.

use std::ops::ControlFlow;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::Gateway;
use super::problem::Refusal;
use super::templates;
use super::wire::{KeptLine, Submitted, Verification};
use crate::domain::ids::JobId;
use crate::domain::job::{JOB_BYTES_MAX, Job};
use crate::domain::lane::Priority;
use crate::domain::mapping::Strictness;
use crate::domain::message::Content;
use crate::domain::slice::Head;
use crate::ports::{
    Broker, JobRecord, KeptMessage, Outgoing, Publisher as _, Route, Shelf, Shelves, Transport, fit,
};
use crate::worker::Store;

/// Room above the largest job, so that one that is too large is told so and not cut off.
const BODY_BYTES_MAX: usize = 2 * JOB_BYTES_MAX;

/// Most jobs in one list.
const LIST_MAX: usize = 1000;

pub(super) fn routes<B, S, T>(gateway: Arc<Gateway<B, S, T>>) -> Router
where
    B: Broker + Shelves,
    S: Store,
    T: Transport,
{
    Router::new()
        .route("/v1/jobs", post(submit::<B, S, T>).get(list::<B, S, T>))
        .route("/v1/jobs/{job}", get(show::<B, S, T>))
        .route("/v1/jobs/{job}/verification", get(verify::<B, S, T>))
        .route("/v1/dead", get(dead::<B, S, T>))
        .route("/v1/rejected", get(rejected::<B, S, T>))
        .route("/v1/templates", get(templates::list::<B, S, T>))
        .route(
            "/v1/templates/{name}",
            get(templates::show::<B, S, T>)
                .put(templates::put::<B, S, T>)
                .delete(templates::delete::<B, S, T>),
        )
        .merge(super::steer::routes())
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
    let Some(token) = &gateway.token else {
        return next.run(request).await;
    };
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .map(|value| value.as_bytes());
    let given = given
        .and_then(|value| value.strip_prefix(b"Bearer "))
        .unwrap_or_default();
    // The time this takes does not tell how much of a guess was right.
    let same = ring::digest::digest(&ring::digest::SHA256, given).as_ref()
        == ring::digest::digest(&ring::digest::SHA256, token.expose().as_bytes()).as_ref();
    if same {
        next.run(request).await
    } else {
        Refusal::Unauthorized.into_response()
    }
}

#[derive(Deserialize)]
struct SubmitQuery {
    priority: Option<Priority>,
}

async fn submit<B: Broker, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    Query(query): Query<SubmitQuery>,
    headers: HeaderMap,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Result<(StatusCode, Json<Submitted>), Refusal> {
    let body = body.map_err(|error| Refusal::BadBody(error.status(), error.body_text()))?;
    let read = Arc::clone(&gateway);
    let bytes = body.clone();
    let priority = query.priority;
    let job = tokio::task::spawn_blocking(move || read_job(&read, &bytes, priority))
        .await
        .map_err(|_| Refusal::Unavailable("the job could not be read".to_owned()))??;
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

/// What is known of a job that was read.
struct Known {
    id: JobId,
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
        id: job.head.id,
        priority: job.head.priority,
        content_digest: job.content_digest,
        submission: job.submission,
        entries: job.entries,
    })
}

#[derive(Deserialize)]
struct ListQuery {
    most: Option<usize>,
}

async fn list<B: Broker, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Vec<JobRecord>>, Refusal> {
    let most = query.most.unwrap_or(20).min(LIST_MAX);
    Ok(Json(gateway.context.store.jobs(most).await?))
}

async fn show<B: Broker, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    Path(job): Path<String>,
) -> Result<Json<JobRecord>, Refusal> {
    Ok(Json(find(&gateway, &job).await?))
}

pub(super) async fn find<B: Broker, S: Store, T>(
    gateway: &Gateway<B, S, T>,
    job: &str,
) -> Result<JobRecord, Refusal> {
    let id: JobId = job
        .parse()
        .map_err(|error| Refusal::NotFound(format!("{error}")))?;
    let record = gateway.context.store.job(id).await?;
    record.ok_or_else(|| {
        Refusal::NotFound(format!(
            "there is no job {id}: not accepted yet, rejected, or older than the dedup window"
        ))
    })
}

async fn verify<B: Broker, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    Path(job): Path<String>,
) -> Result<Json<Verification>, Refusal> {
    let record = find(&gateway, &job).await?;
    let ledger = gateway.context.store.audit(&record).await?;
    let differences = ledger.differences(&record.accounts);
    Ok(Json(Verification {
        record,
        ledger,
        differences,
    }))
}

async fn dead<B: Broker + Shelves, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
) -> Response {
    shelf(gateway, Shelf::Dead)
}

async fn rejected<B: Broker + Shelves, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
) -> Response {
    shelf(gateway, Shelf::Rejected)
}

/// Lines under way to a reader; past it, reading waits.
const LINES_AHEAD: usize = 64;

/// Streams a shelf as NDJSON. An error in the middle breaks the stream off, so that what came is not
/// taken for all there is.
fn shelf<B: Broker + Shelves, S: Store, T: Transport>(
    gateway: Arc<Gateway<B, S, T>>,
    shelf: Shelf,
) -> Response {
    let (sender, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(LINES_AHEAD);
    let reading = async move {
        let visit = |message: KeptMessage| {
            let mut line = serde_json::to_vec(&KeptLine::from(message)).unwrap_or_default();
            line.push(b'\n');
            // A slow reader holds up this thread, not the others: the runtime moves on without it.
            let sent = tokio::task::block_in_place(|| sender.blocking_send(Ok(line.into())));
            if sent.is_ok() {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        };
        if let Err(error) = gateway.broker.read(shelf, visit).await {
            let _ = sender.send(Err(std::io::Error::other(error))).await;
        }
    };
    tokio::spawn(reading);
    let lines = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let line = receiver.recv().await?;
        Some((line, receiver))
    });
    let content_type = [(header::CONTENT_TYPE, "application/x-ndjson")];
    (content_type, Body::from_stream(lines)).into_response()
}
