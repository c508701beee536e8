//! The routes under `/v1`.

use std::ops::ControlFlow;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, Request, State};
use axum::http::{Method, header};
use axum::middleware::{Next, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::Gateway;
use super::body::patient;
use super::problem::{Refusal, uniform};
use super::submit::submit;
use super::wire::{KeptLine, Verification};
use crate::domain::ids::JobId;
use crate::ports::{Broker, JobRecord, KeptMessage, Shelf, Shelves, Transport};
use crate::worker::Store;

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
        .with_state(gateway)
}

type Shared<B, S, T> = State<Arc<Gateway<B, S, T>>>;

/// Lets so many requests in at a time, and no slow body.
async fn admitted<B: Broker, S, T>(
    State(gateway): Shared<B, S, T>,
    request: Request,
    next: Next,
) -> Response {
    let Ok(_place) = gateway.requests.try_acquire() else {
        return Refusal::Unavailable("too many requests at a time".to_owned()).into_response();
    };
    next.run(patient(request, gateway.patience)).await
}

async fn authorised<B: Broker, S, T>(
    State(gateway): Shared<B, S, T>,
    request: Request,
    next: Next,
) -> Response {
    let Some(token) = &gateway.token else {
        // A web page that somebody on this machine looks at could send to everybody.
        if request.method() != Method::GET && request.headers().contains_key(header::ORIGIN) {
            return Refusal::FromBrowser.into_response();
        }
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

async fn find<B: Broker, S: Store, T>(
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
