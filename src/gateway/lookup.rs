//! Answers questions about many recipients of a job: a list comes in, and a line for each of them
//! goes out.
//!
//! The list is read whole before the first line is written, because many clients read the answer
//! only after they have sent everything. It counts against the share of its sender. The answer is
//! written as the ledger gives it, so that memory holds one window of it.

use std::ops::ControlFlow;
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use axum::response::Response;

use super::Gateway;
use super::access::Caller;
use super::body::read;
use super::dead::{line, stream};
use super::params::Params;
use super::problem::{BadLines, Refusal};
use super::query::find;
use crate::domain::list::{self, Format, Reading};
use crate::ports::{Broker, Store, Transport};
use crate::service::jobs::{self, LOOKUP_AT_ONCE};

/// Largest list, in bytes: more than 100,000 recipients with ids of usual length.
const LIST_BYTES_MAX: usize = 8 * 1024 * 1024;

/// `POST /v1/jobs/{job}/recipients:lookup`
pub(super) async fn lookup<B: Broker, S: Store, T: Transport>(
    State(gateway): State<Arc<Gateway<B, S, T>>>,
    Path(job): Path<String>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    params: Params,
    body: Body,
) -> Result<Response, Refusal> {
    let record = find(&gateway, &job, params).await?;
    let instead = "ask in several requests";
    let held = read(&gateway.shares, &caller, body, LIST_BYTES_MAX, instead).await?;
    let users = recipients(&held.bytes, format_of(&headers))?;
    drop(held.bytes);
    Ok(stream(gateway.patience, |mut pieces| async move {
        let _share = held.share;
        let context = &*gateway.context;
        let secret = &context.settings.fingerprint_secret;
        for some in users.chunks(LOOKUP_AT_ONCE) {
            for row in jobs::lookup(&context.store, secret, &record, some).await? {
                pieces.add(&line(&row)).await?;
            }
        }
        Ok(pieces)
    }))
}

/// NDJSON, unless the request says that its list is CSV or plain lines.
fn format_of(headers: &HeaderMap) -> Format {
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.map(|it| it.as_bytes()).unwrap_or_default();
    if kind.starts_with(b"text/csv") {
        Format::Csv
    } else if kind.starts_with(b"text/plain") {
        Format::Lines
    } else {
        Format::Ndjson
    }
}

fn recipients(list: &[u8], format: Format) -> Result<Vec<String>, Refusal> {
    let how = Reading {
        format,
        column: None,
        vars: false,
    };
    let (mut users, mut bad) = (Vec::new(), BadLines::default());
    let read = list::read(list, how, |line, found| {
        match found {
            Ok(member) => users.push(member.id.into_owned()),
            Err(what) => bad.add(line, what),
        }
        ControlFlow::Continue(())
    });
    read.map_err(|error| Refusal::Unavailable(error.to_string()))?;
    match bad.is_empty() {
        true => Ok(users),
        false => Err(Refusal::BadLines(bad)),
    }
}
