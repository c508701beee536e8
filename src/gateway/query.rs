//! Reads jobs over HTTP.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::{Extension, Json};

use super::Gateway;
use super::access::Caller;
use super::params::Params;
use super::problem::Refusal;
use crate::clock::now_ms;
use crate::domain::job;
use crate::ports::{
    Broker, JobFilter, JobQuery, JobRecord, JobState, RetainedQueues, Store, Transport,
};
use crate::service::api::{JobDetail, JobList, RecipientFate, Verification};
use crate::service::control::Reader;
use crate::service::jobs::{self, LIST_MAX};

/// Jobs in a list if the request gives no number.
const LIST_USUAL: usize = 50;

type Shared<B, S, T> = State<Arc<Gateway<B, S, T>>>;

// ---------------------------------------------------------------------------------------------
// Lists
// ---------------------------------------------------------------------------------------------

pub(super) async fn list<B: Broker, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    mut params: Params,
) -> Result<Json<JobList>, Refusal> {
    let now = now_ms();
    let filter = JobFilter {
        app: params.text("app"),
        target: params.text("target"),
        client_msg_no: params.text("client_msg_no"),
        tag: params.text("tag"),
        state: params.one_of("state", JobState::ALL, JobState::as_str),
        since_ms: params.time("since", now),
        until_ms: params.time("until", now),
        starts_after_ms: params
            .get("scheduled", "true or false")
            .unwrap_or(false)
            .then_some(now),
    };
    let most = params.limit(LIST_USUAL, LIST_MAX);
    let cursor = params.text("cursor");
    let after = cursor.as_deref().map(jobs::read_cursor);
    if after == Some(None) {
        params.problem("cursor", "unknown cursor; leave it out to start again");
    }
    params.finish()?;
    let query = JobQuery {
        filter,
        after: after.flatten(),
        most,
    };
    Ok(Json(
        jobs::page(&gateway.context.store, &gateway.facts, query).await?,
    ))
}

// ---------------------------------------------------------------------------------------------
// One job
// ---------------------------------------------------------------------------------------------

pub(super) async fn find<B: Broker, S: Store, T>(
    gateway: &Gateway<B, S, T>,
    job: &str,
    mut params: Params,
) -> Result<JobRecord, Refusal> {
    let app = params.text("app");
    params.finish()?;
    jobs::named(&gateway.context.store, job, app.as_deref())
        .await?
        .ok_or_else(|| unknown(job))
}

pub(super) fn unknown(job: &str) -> Refusal {
    let what = job::unknown(&format!("{job:?}"));
    Refusal::NotFound(format!(
        "{what}; a job is named by its id, or by its client_msg_no with ?app="
    ))
}

pub(super) async fn show<B: Broker, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    Extension(caller): Extension<Caller>,
    Path(job): Path<String>,
    params: Params,
) -> Result<Json<JobDetail>, Refusal> {
    let record = find(&gateway, &job, params).await?;
    let store = &gateway.context.store;
    let reader = match caller {
        Caller::Admin => Reader::Administrator,
        Caller::App(_) | Caller::Nobody => Reader::App,
    };
    let detail = jobs::detail(store, &gateway.facts, record, reader);
    Ok(Json(detail.await?))
}

pub(super) async fn verify<B: Broker, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    Path(job): Path<String>,
    params: Params,
) -> Result<Json<Verification>, Refusal> {
    let record = find(&gateway, &job, params).await?;
    let ledger = gateway.context.store.audit(&record).await?;
    let differences = jobs::differences(&record, &ledger);
    Ok(Json(Verification {
        record,
        ledger,
        differences,
    }))
}

// ---------------------------------------------------------------------------------------------
// One recipient
// ---------------------------------------------------------------------------------------------

pub(super) async fn recipient<B: Broker + RetainedQueues, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    Path((job, user)): Path<(String, String)>,
    params: Params,
) -> Result<Json<RecipientFate>, Refusal> {
    let record = find(&gateway, &job, params).await?;
    let context = &*gateway.context;
    let secret = &context.settings.fingerprint_secret;
    let fate = jobs::recipient(&context.store, &gateway.broker, secret, &record, &user).await?;
    Ok(Json(fate))
}
