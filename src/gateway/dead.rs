//! Dead letters over HTTP: pages, a stream of all of them, redrive and purge.

use std::ops::ControlFlow;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::sync::mpsc;

use super::Gateway;
use super::body::Held;
use super::params::{NoParams, Params, plus_again};
use super::problem::Refusal;
use super::shelf::{self, Redrive, RedriveError};
use super::wire::{DeadList, KeptLine, PurgeRequest, Purged, RedriveRequest, Redriven};
use crate::domain::fields::{Fields, Problem};
use crate::domain::letters::{DeadFilter, DeadRow, FILTER_FIELDS, Key, Wanted, read_letter};
use crate::ports::{Broker, KeptMessage, Shelf, Shelves, Transport};
use crate::worker::{Store, now_ms};

/// Rows on a page that asks for no number, and the most on one.
const PAGE_USUAL: usize = 100;
pub(super) const PAGE_MAX: usize = 1000;
/// The same with their messages, which may have 64 KiB each.
const PAGE_MAX_WITH_CONTENT: usize = 100;

const NDJSON: &str = "application/x-ndjson";

type Shared<B, S, T> = State<Arc<Gateway<B, S, T>>>;

pub(super) async fn list<B: Broker + Shelves, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    headers: HeaderMap,
    mut params: Params,
) -> Result<Response, Refusal> {
    let wanted = wanted(&mut params);
    let with_content = params.get("content", "true or false").unwrap_or(false);
    if accepts_lines(&headers) {
        params.finish()?;
        let lines = move |message: KeptMessage| rows(&message, &wanted, with_content);
        return Ok(stream(gateway, Shelf::Dead, lines));
    }
    let most = match with_content {
        true => params.limit(PAGE_USUAL, PAGE_MAX_WITH_CONTENT),
        false => params.limit(PAGE_USUAL, PAGE_MAX),
    };
    let cursor = params.text("cursor");
    let from = cursor.as_deref().map(read_cursor);
    if from == Some(None) {
        params.problem("cursor", "not one of ours; leave it out to begin anew");
    }
    params.finish()?;
    let from = from.flatten();
    let page = shelf::page(&gateway.broker, &wanted, from, most, with_content);
    let (letters, next) = page.await?;
    let next = next.map(|key| write_cursor(&key));
    Ok(Json(DeadList { letters, next }).into_response())
}

fn accepts_lines(headers: &HeaderMap) -> bool {
    let accepted = headers.get(header::ACCEPT).and_then(|it| it.to_str().ok());
    let mut kinds = accepted.into_iter().flat_map(|it| it.split([',', ';']));
    kinds.any(|kind| kind.trim() == NDJSON)
}

fn wanted(params: &mut Params) -> Wanted {
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
        Wanted::default()
    })
}

fn write_cursor(key: &Key) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(key).unwrap_or_default())
}

fn read_cursor(cursor: &str) -> Option<Key> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()
}

// ---------------------------------------------------------------------------------------------
// Streams
// ---------------------------------------------------------------------------------------------

/// The recipients of a letter that are meant, one line each.
fn rows(message: &KeptMessage, wanted: &Wanted, with_content: bool) -> Vec<u8> {
    let mut lines = Vec::new();
    let Some(letter) = read_letter(&message.body).filter(|it| wanted.takes_letter(it)) else {
        return lines;
    };
    for dead in letter
        .recipients
        .iter()
        .filter(|it| wanted.takes_recipient(it))
    {
        lines.extend(line(&DeadRow::new(&letter, dead, with_content)));
    }
    lines
}

fn line(value: &impl serde::Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

pub(super) async fn rejected<B: Broker + Shelves, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    _: NoParams,
) -> Result<Response, Refusal> {
    let lines = |message| line(&KeptLine::from(message));
    Ok(stream(gateway, Shelf::Rejected, lines))
}

/// Pieces under way to a reader; past it, reading waits.
const PIECES_AHEAD: usize = 64;

/// Streams a shelf as NDJSON. An error in the middle breaks the stream off, so that what came is not
/// taken for all there is.
fn stream<B: Broker + Shelves, S: Store, T: Transport>(
    gateway: Arc<Gateway<B, S, T>>,
    shelf: Shelf,
    lines: impl Fn(KeptMessage) -> Vec<u8> + Send + Sync + 'static,
) -> Response {
    let (sender, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(PIECES_AHEAD);
    let reading = async move {
        let visit = |message: KeptMessage| {
            let piece = lines(message);
            if piece.is_empty() {
                return ControlFlow::Continue(());
            }
            // A slow reader holds up this thread, not the others: the runtime moves on without it.
            let sent = tokio::task::block_in_place(|| sender.blocking_send(Ok(piece.into())));
            match sent {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        };
        if let Err(error) = gateway.broker.read(shelf, visit).await {
            let _ = sender.send(Err(std::io::Error::other(error))).await;
        }
    };
    tokio::spawn(reading);
    let pieces = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let piece = receiver.recv().await?;
        Some((piece, receiver))
    });
    let content_type = [(header::CONTENT_TYPE, NDJSON)];
    (content_type, Body::from_stream(pieces)).into_response()
}

// ---------------------------------------------------------------------------------------------
// Redrive and purge
// ---------------------------------------------------------------------------------------------

pub(super) async fn redrive<B: Broker + Shelves, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    _: NoParams,
    body: Held,
) -> Result<Json<Redriven>, Refusal> {
    let (request, wanted) = read_redrive(&body.bytes)?;
    let publisher = gateway.open()?.publisher;
    let redrive = Redrive {
        wanted,
        uncertain: request.uncertain,
        dry_run: request.dry_run,
        purge: request.purge,
        priority: request.priority,
    };
    let context = &*gateway.context;
    let check = |head: &crate::domain::slice::Head| {
        let target = context.targets.get(&head.target);
        target.map_or(Vec::new(), |target| target.target.check(head))
    };
    let done = shelf::redrive(&gateway.broker, &publisher, context, check, &redrive).await?;
    tracing::info!(
        recipients = done.recipients,
        jobs = done.jobs_total,
        dry_run = done.dry_run,
        "dead letters redriven"
    );
    Ok(Json(done))
}

pub(super) async fn purge<B: Broker + Shelves, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    _: NoParams,
    body: Held,
) -> Result<Json<Purged>, Refusal> {
    let (request, wanted) = read_purge(&body.bytes)?;
    let done = shelf::purge(&gateway.broker, &wanted, request.dry_run).await?;
    tracing::info!(
        recipients = done.recipients,
        dry_run = done.dry_run,
        "dead letters purged"
    );
    Ok(Json(done))
}

impl From<RedriveError> for Refusal {
    fn from(error: RedriveError) -> Self {
        match error {
            RedriveError::Broker(error) => error.into(),
            RedriveError::Publish(error) => error.into(),
        }
    }
}

fn read_redrive(body: &[u8]) -> Result<(RedriveRequest, Wanted), Refusal> {
    read(body, |fields, filter, problems| {
        let yes_no = "true or false";
        let flag = |fields: &mut Fields<'_>, name, problems: &mut Vec<Problem>| {
            fields.get(name, yes_no, problems).unwrap_or(false)
        };
        let priorities = "one of \"high\", \"normal\", \"bulk\"";
        RedriveRequest {
            filter,
            uncertain: flag(fields, "uncertain", problems),
            dry_run: flag(fields, "dry_run", problems),
            purge: flag(fields, "purge", problems),
            priority: fields
                .get("priority", priorities, problems)
                .unwrap_or_default(),
        }
    })
}

fn read_purge(body: &[u8]) -> Result<(PurgeRequest, Wanted), Refusal> {
    read(body, |fields, filter, problems| {
        let mut flag = |name| {
            let given = fields.get(name, "true or false", problems);
            given.unwrap_or(false)
        };
        let request = PurgeRequest {
            filter,
            confirm: flag("confirm"),
            dry_run: flag("dry_run"),
        };
        if !request.confirm && !request.dry_run {
            let what = "must be true: what is purged is gone; \"dry_run\": true only counts";
            fields.problem("confirm", what, problems);
        }
        request
    })
}

/// Reads a filter together with what else stands beside its fields.
fn read<R>(
    body: &[u8],
    rest: impl FnOnce(&mut Fields<'_>, DeadFilter, &mut Vec<Problem>) -> R,
) -> Result<(R, Wanted), Refusal> {
    let mut problems = Vec::new();
    let text = String::from_utf8_lossy(body);
    let Some(mut fields) = Fields::open("", &text, &mut problems) else {
        return Err(Refusal::BadRequest(problems));
    };
    let mut filter = DeadFilter::default();
    for name in FILTER_FIELDS {
        let value = fields.get(name, "a text", &mut problems);
        if let Some(field) = filter.field(name) {
            *field = value;
        }
    }
    let checked = filter.check(now_ms());
    let request = rest(&mut fields, filter, &mut problems);
    fields.finish(&mut problems);
    match checked {
        Ok(wanted) if problems.is_empty() => Ok((request, wanted)),
        Ok(_) => Err(Refusal::BadRequest(problems)),
        Err(more) => Err(Refusal::BadRequest([problems, more].concat())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems<R>(read: Result<R, Refusal>) -> Vec<String> {
        match read {
            Err(Refusal::BadRequest(problems)) => problems.into_iter().map(|it| it.field).collect(),
            Err(other) => panic!("{other:?}"),
            Ok(_) => Vec::new(),
        }
    }

    #[test]
    fn requests_are_read_with_all_their_problems() {
        let (request, _) = read_redrive(br#"{"job": "a", "dry_run": true}"#).unwrap();
        assert_eq!(request.filter.job.as_deref(), Some("a"));
        assert!(request.dry_run && !request.uncertain && !request.purge);
        let wrong = br#"{"jop": "a", "purge": 1, "class": "x", "priority": "low"}"#;
        assert_eq!(
            problems(read_redrive(wrong)),
            ["purge", "priority", "jop", "class"]
        );
        assert_eq!(problems(read_redrive(b"")), [""]);
    }

    #[test]
    fn a_purge_must_be_confirmed() {
        assert_eq!(problems(read_purge(b"{}")), ["confirm"]);
        assert_eq!(problems(read_purge(br#"{"confirm": false}"#)), ["confirm"]);
        assert!(problems(read_purge(br#"{"confirm": true}"#)).is_empty());
        assert!(problems(read_purge(br#"{"dry_run": true}"#)).is_empty());
    }

    #[test]
    fn cursors_come_back() {
        let key = ("job".to_owned(), "ann \"ü".to_owned());
        assert_eq!(read_cursor(&write_cursor(&key)), Some(key));
        assert_eq!(read_cursor("x"), None);
    }
}
