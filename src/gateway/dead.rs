//! Serves dead letters over HTTP: pages, a stream of all of them, redrive and purge.
//!
//! [`requests`] parses the bodies of redrive and purge, [`mod@stream`] sends all letters as lines,
//! [`mod@pages`] shows pages from a sorted [`copy`].

mod copy;
mod pages;
mod requests;
mod stream;

use std::ops::ControlFlow;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

pub(super) use self::pages::{Pages, pages};
use self::requests::{parse_purge, parse_redrive};
pub(super) use self::stream::Readers;
use self::stream::{accepts_lines, dead_lines};
pub(super) use self::stream::{line, stream};
use super::Gateway;
use super::access::Caller;
use super::body::Held;
use super::params::{NoParams, Params, plus_again};
use super::problem::Refusal;
use super::spool::{self, Records, full};
use crate::clock::now_ms;
use crate::domain::letters::{DeadFilter, FILTER_FIELDS, Key, LetterFilter};
use crate::ports::{Broker, RetainedMessage, RetainedQueue, RetainedQueues, Store, Transport};
use crate::service::api::{DeadList, KeptLine};
use crate::service::dead_letters::{
    self, ACCEPT_PATIENCE, DeadError, LedgerView, Purged, Redrive, Redriven,
};

/// Rows on a page if the request gives no number, and most rows on a page.
const PAGE_USUAL: usize = 100;
pub(super) const PAGE_MAX: usize = 1000;
/// Most rows on a page with messages, which may have 64 KiB each.
const PAGE_MAX_WITH_CONTENT: usize = 100;

type Shared<B, S, T> = State<Arc<Gateway<B, S, T>>>;

pub(super) async fn list<B: Broker + RetainedQueues, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    mut params: Params,
) -> Result<Response, Refusal> {
    let wanted = wanted(&mut params);
    let with_content = params.get("content", "true or false").unwrap_or(false);
    if accepts_lines(&headers) {
        params.finish()?;
        let share = gateway.readers.share(&caller, &gateway.shares)?;
        return dead_lines(gateway, wanted, with_content, share).await;
    }
    let most = match with_content {
        true => params.limit(PAGE_USUAL, PAGE_MAX_WITH_CONTENT),
        false => params.limit(PAGE_USUAL, PAGE_MAX),
    };
    let cursor = params.text("cursor");
    let from = cursor.as_deref().map(parse_cursor);
    if from == Some(None) {
        params.problem("cursor", "unknown cursor; leave it out to start again");
    }
    params.finish()?;
    let (broker, from) = (&gateway.broker, from.flatten());
    let window = gateway
        .pages
        .page(broker, &wanted, from, most, with_content);
    let page = dead_letters::page(&gateway.view(), window.await?, &wanted).await;
    let (letters, next) = page?;
    if letters.is_empty() && next.is_none() {
        gateway.knows_names(&wanted).await?;
    }
    let next = next.map(|key| write_cursor(&key));
    Ok(Json(DeadList { letters, next }).into_response())
}

impl<B: Broker, S: Store, T: Transport> Gateway<B, S, T> {
    fn view(&self) -> LedgerView<'_, S> {
        LedgerView {
            store: &self.context.store,
            secret: &self.context.settings.fingerprint_secret,
        }
    }

    /// Fails if the filter names something that does not exist. Called when the filter finds
    /// nothing.
    async fn knows_names(&self, wanted: &LetterFilter) -> Result<(), Refusal> {
        let store = Some(&self.context.store);
        match dead_letters::unknown(&*self.context, store, wanted).await? {
            Some(what) => Err(Refusal::NotFound(what)),
            None => Ok(()),
        }
    }
}

fn wanted(params: &mut Params) -> LetterFilter {
    let mut filter = DeadFilter::default();
    for name in FILTER_FIELDS {
        let value = params.text(name).map(plus_again);
        if let Some(field) = filter.field(name) {
            *field = value;
        }
    }
    filter.check(now_ms()).unwrap_or_else(|problems| {
        for problem in problems {
            params.problem(&problem.field, problem.what);
        }
        LetterFilter::default()
    })
}

fn write_cursor(key: &Key) -> String {
    URL_SAFE_NO_PAD.encode(crate::json::bytes(key))
}

fn parse_cursor(cursor: &str) -> Option<Key> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()
}

pub(super) async fn rejected<B: Broker + RetainedQueues, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    Extension(caller): Extension<Caller>,
    _: NoParams,
) -> Result<Response, Refusal> {
    let share = gateway.readers.share(&caller, &gateway.shares)?;
    let kept = keep(&gateway, RetainedQueue::Rejected, |message| {
        Some(Bytes::from(line(&KeptLine::from(message))))
    });
    let mut kept = kept.await?;
    Ok(stream(gateway.patience, |mut pieces| async move {
        let _share = share;
        while let Some(line) = kept.next().await? {
            pieces.add(&line).await?;
        }
        Ok(pieces)
    }))
}

/// Copies the selected messages of a retained queue to a file.
async fn keep<B: Broker + RetainedQueues, S: Store, T: Transport>(
    gateway: &Gateway<B, S, T>,
    retained: RetainedQueue,
    meant: impl Fn(RetainedMessage) -> Option<Bytes> + Send + Sync,
) -> Result<Records, Refusal> {
    let mut writing = spool::Writing::create(&gateway.upload_dir).map_err(|error| full(&error))?;
    let mut failed = None;
    let visit = |message: RetainedMessage| {
        let written = meant(message).map_or(Ok(()), |record| writing.write(&record));
        match written {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    };
    gateway.broker.read(retained, visit).await?;
    let records = failed.map_or_else(|| writing.finish(), Err);
    records.map_err(|error| full(&error))
}

pub(super) async fn redrive<B: Broker + RetainedQueues, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    _: NoParams,
    body: Held,
) -> Result<Json<Redriven>, Refusal> {
    let (request, wanted) = parse_redrive(&body.bytes)?;
    let publisher = gateway.open()?.publisher;
    let redrive = Redrive {
        wanted,
        uncertain: request.uncertain,
        dry_run: request.dry_run,
        purge: request.purge,
        accept_within: ACCEPT_PATIENCE,
        priority: request.priority,
    };
    let secret = &gateway.context.settings.fingerprint_secret;
    let redriven = dead_letters::redrive(&gateway.broker, &publisher, &*gateway, secret, &redrive);
    let done = Box::pin(redriven).await?;
    if done.is_empty() {
        gateway.knows_names(&redrive.wanted).await?;
    }
    tracing::info!(
        recipients = done.recipients,
        redriven_before = done.redriven_before,
        jobs = done.jobs_total,
        dry_run = done.dry_run,
        "dead letters redriven"
    );
    Ok(Json(done))
}

pub(super) async fn purge<B: Broker + RetainedQueues, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    _: NoParams,
    body: Held,
) -> Result<Json<Purged>, Refusal> {
    let (request, wanted) = parse_purge(&body.bytes)?;
    let done = dead_letters::purge(&gateway.broker, &wanted, request.dry_run).await?;
    if done.recipients == 0 {
        gateway.knows_names(&wanted).await?;
    }
    tracing::info!(
        recipients = done.recipients,
        dry_run = done.dry_run,
        "dead letters purged"
    );
    Ok(Json(done))
}

impl From<DeadError> for Refusal {
    fn from(error: DeadError) -> Self {
        match error {
            DeadError::Broker(error) => error.into(),
            DeadError::Publish(error) => error.into(),
            DeadError::Ledger(error) => error.into(),
            DeadError::Undecided(what) => Self::Unavailable(what),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_come_back() {
        let key = ("job".to_owned(), "ann \"ü".to_owned());
        assert_eq!(parse_cursor(&write_cursor(&key)), Some(key));
        assert_eq!(parse_cursor("x"), None);
    }
}
