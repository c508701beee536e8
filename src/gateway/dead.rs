//! Serves dead letters over HTTP: pages, a stream of all of them, redrive and purge.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::Gateway;
use super::access::Caller;
use super::body::Held;
use super::params::{NoParams, Params, plus_again};
use super::problem::Refusal;
use super::shares::Shares;
use super::spool::{self, Records, full};
use crate::clock::now_ms;
use crate::domain::announce::DeadLetter;
use crate::domain::fields::{Fields, Problem};
use crate::domain::letters::{
    DeadFilter, DeadRow, FILTER_FIELDS, Key, LetterFilter, last_attempt_ms, read_letter,
};
use crate::metrics::Bound;
use crate::ports::{
    Broker, LedgerError, RetainedMessage, RetainedQueue, RetainedQueues, Store, Transport,
};
use crate::service::api::{DeadList, KeptLine, PurgeRequest, RedriveRequest};
use crate::service::dead_letters::{
    self, ACCEPT_PATIENCE, DeadError, LedgerView, Named, Purged, Redrive, Redriven,
};

/// Rows on a page if the request gives no number, and most rows on a page.
const PAGE_USUAL: usize = 100;
pub(super) const PAGE_MAX: usize = 1000;
/// Most rows on a page with messages, which may have 64 KiB each.
const PAGE_MAX_WITH_CONTENT: usize = 100;

const NDJSON: &str = "application/x-ndjson";

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
    let from = cursor.as_deref().map(read_cursor);
    if from == Some(None) {
        params.problem("cursor", "unknown cursor; leave it out to start again");
    }
    params.finish()?;
    let (from, view) = (from.flatten(), gateway.view());
    let page = dead_letters::page(&gateway.broker, &view, &wanted, from, most, with_content);
    let (letters, next) = page.await?;
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

/// Most streams of one caller at a time: each fills a file.
const READERS_OF_ONE_MAX: usize = 8;

/// Counts the readers of streams. Each app has its own share, so that none keeps the others out.
#[derive(Default)]
pub(super) struct Readers(Arc<Mutex<BTreeMap<Option<String>, usize>>>);

/// The place of one reader, freed when this is dropped.
struct Share {
    readers: Arc<Mutex<BTreeMap<Option<String>, usize>>>,
    of: Option<String>,
}

impl Readers {
    fn share(&self, caller: &Caller, shares: &Shares) -> Result<Share, Refusal> {
        let of = match caller {
            Caller::App(app) => Some(app.clone()),
            Caller::Nobody => Some(String::new()),
            Caller::Admin => None,
        };
        let mut readers = self.0.lock();
        let taken = readers.entry(of.clone()).or_default();
        if *taken >= READERS_OF_ONE_MAX {
            let what = "too many readers of dead letters at a time";
            return Err(shares.full(Bound::Readers, what));
        }
        *taken += 1;
        Ok(Share {
            readers: Arc::clone(&self.0),
            of,
        })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut readers = self.readers.lock();
        if let Some(taken) = readers.get_mut(&self.of) {
            *taken = taken.saturating_sub(1);
        }
    }
}

fn accepts_lines(headers: &HeaderMap) -> bool {
    let accepted = headers.get(header::ACCEPT).and_then(|it| it.to_str().ok());
    let mut kinds = accepted.into_iter().flat_map(|it| it.split([',', ';']));
    kinds.any(|kind| kind.trim() == NDJSON)
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

fn read_cursor(cursor: &str) -> Option<Key> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()
}

// ---------------------------------------------------------------------------------------------
// Streams
// ---------------------------------------------------------------------------------------------

// The gateway copies a retained queue to a file as fast as the broker delivers, and serves the
// reader from the file. The reader may take as long as the gateway's patience allows. So a reader
// that takes nothing holds up neither the broker, nor a thread, nor another reader.

/// Streams every recipient that matches the filter, one line each, with its outcome in the ledger.
async fn dead_lines<B: Broker + RetainedQueues, S: Store, T: Transport>(
    gateway: Arc<Gateway<B, S, T>>,
    wanted: LetterFilter,
    with_content: bool,
    share: Share,
) -> Result<Response, Refusal> {
    let meant = |message: &RetainedMessage| {
        read_letter(&message.body).is_some_and(|letter| {
            let mut recipients = letter.recipients.iter();
            wanted.takes_letter(&letter) && recipients.any(|it| wanted.takes_recipient(it))
        })
    };
    let kept = keep(&gateway, RetainedQueue::Dead, |message| {
        meant(&message).then_some(message.body)
    });
    let mut kept = kept.await?;
    if kept.is_empty() {
        gateway.knows_names(&wanted).await?;
    }
    let patience = gateway.patience;
    Ok(stream(patience, |mut pieces| async move {
        let _share = share;
        while let Some(body) = kept.next().await? {
            if let Some(letter) = read_letter(&body) {
                let view = gateway.view();
                letter_lines(&view, &letter, &wanted, with_content, &mut pieces).await?;
            }
        }
        Ok(pieces)
    }))
}

/// Writes the recipients of a letter that match the filter, one line each.
async fn letter_lines<S: Store>(
    view: &LedgerView<'_, S>,
    letter: &DeadLetter,
    wanted: &LetterFilter,
    with_content: bool,
    pieces: &mut Pieces,
) -> Result<(), Broken> {
    let meant: Vec<_> = letter
        .recipients
        .iter()
        .filter(|it| wanted.takes_recipient(it))
        .collect();
    let at_ms = last_attempt_ms(letter);
    let asked = meant.iter().map(|dead| Named {
        recipient: &dead.recipient,
        outcome: dead.outcome,
        at_ms,
    });
    let asked: Vec<_> = asked.collect();
    let outcomes = view.outcomes(&letter.job, &asked).await?;
    for (dead, outcome) in meant.into_iter().zip(outcomes) {
        let Some(outcome) = outcome else { continue };
        let row = DeadRow {
            outcome,
            ..DeadRow::new(letter, dead, with_content)
        };
        if wanted.takes_row(&row) {
            pieces.add(&line(&row)).await?;
        }
    }
    Ok(())
}

fn line(value: &impl serde::Serialize) -> Vec<u8> {
    let mut line = crate::json::bytes(value);
    line.push(b'\n');
    line
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

/// Size of the pieces of an answer, and how many of them may be on the way to a reader.
const PIECE_BYTES: usize = 64 * 1024;
const PIECES_AHEAD: usize = 2;

/// Why a stream breaks off.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the reader has taken nothing for a while")]
    Stalled,
    #[error(transparent)]
    File(#[from] std::io::Error),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Row(#[from] serde_json::Error),
}

/// The sending side of a stream.
struct Pieces {
    /// `None` marks the end.
    sender: mpsc::Sender<Option<Bytes>>,
    patience: Duration,
    piece: Vec<u8>,
}

impl Pieces {
    async fn add(&mut self, line: &[u8]) -> Result<(), Broken> {
        self.piece.extend_from_slice(line);
        match self.piece.len() >= PIECE_BYTES {
            true => self.flush().await,
            false => Ok(()),
        }
    }

    async fn flush(&mut self) -> Result<(), Broken> {
        let piece = std::mem::take(&mut self.piece);
        self.send(Some(piece.into())).await
    }

    async fn end(mut self) -> Result<(), Broken> {
        self.flush().await?;
        self.send(None).await
    }

    /// Fails if the reader takes nothing in time, or is gone.
    async fn send(&self, piece: Option<Bytes>) -> Result<(), Broken> {
        let sent = timeout(self.patience, self.sender.send(piece)).await;
        let stalled = |_| Broken::Stalled;
        sent.map_err(|_| Broken::Stalled)?.map_err(stalled)
    }
}

/// Streams NDJSON. An error in the middle breaks the stream off, so that the reader does not take a
/// part for the whole.
fn stream<F>(patience: Duration, write: impl FnOnce(Pieces) -> F) -> Response
where
    F: Future<Output = Result<Pieces, Broken>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
    let written = write(Pieces {
        sender,
        patience,
        piece: Vec::new(),
    });
    #[expect(
        clippy::disallowed_methods,
        reason = "it ends with its reader, who sees that the stream is broken off"
    )]
    tokio::spawn(async move {
        let ended = async { written.await?.end().await };
        if let Err(error) = ended.await {
            tracing::debug!(%error, "a stream of kept messages was broken off");
        }
    });
    let pieces = futures_util::stream::unfold(Some(receiver), |receiver| async move {
        let mut receiver = receiver?;
        match receiver.recv().await {
            Some(Some(piece)) => Some((Ok(piece), Some(receiver))),
            Some(None) => None,
            None => Some((Err(std::io::Error::other("broken off")), None)),
        }
    });
    let content_type = [(header::CONTENT_TYPE, NDJSON)];
    (content_type, Body::from_stream(pieces)).into_response()
}

// ---------------------------------------------------------------------------------------------
// Redrive and purge
// ---------------------------------------------------------------------------------------------

pub(super) async fn redrive<B: Broker + RetainedQueues, S: Store, T: Transport>(
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
    let (request, wanted) = read_purge(&body.bytes)?;
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

fn read_redrive(body: &[u8]) -> Result<(RedriveRequest, LetterFilter), Refusal> {
    read(body, |fields, filter, problems| {
        let yes_no = "true or false";
        let flag = |fields: &mut Fields<'_>, name, problems: &mut Vec<Problem>| {
            fields.get(name, yes_no, problems).unwrap_or(false)
        };
        let priorities = "one of \"high\", \"normal\", \"bulk\"";
        let all = filter.is_empty();
        let request = RedriveRequest {
            filter,
            confirm: flag(fields, "confirm", problems),
            uncertain: flag(fields, "uncertain", problems),
            dry_run: flag(fields, "dry_run", problems),
            purge: flag(fields, "purge", problems),
            priority: fields
                .get("priority", priorities, problems)
                .unwrap_or_default(),
        };
        if all && !request.confirm && !request.dry_run && problems.is_empty() {
            let what = "must be true: there is no filter, so this sends again to the recipients of all \
                        dead letters; \"dry_run\": true only counts";
            fields.problem("confirm", what, problems);
        }
        request
    })
}

fn read_purge(body: &[u8]) -> Result<(PurgeRequest, LetterFilter), Refusal> {
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
            let what =
                "must be true: purged letters cannot be restored; \"dry_run\": true only counts";
            fields.problem("confirm", what, problems);
        }
        request
    })
}

/// Reads a filter, and with `rest` the other fields of the body.
fn read<R>(
    body: &[u8],
    rest: impl FnOnce(&mut Fields<'_>, DeadFilter, &mut Vec<Problem>) -> R,
) -> Result<(R, LetterFilter), Refusal> {
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
        // Sending to all recipients again needs a confirmation.
        assert_eq!(problems(read_redrive(b"{}")), ["confirm"]);
        assert_eq!(
            problems(read_redrive(br#"{"uncertain": true}"#)),
            ["confirm"]
        );
        for all in [
            r#"{"confirm": true}"#,
            r#"{"dry_run": true}"#,
            r#"{"app": "shop"}"#,
        ] {
            assert!(problems(read_redrive(all.as_bytes())).is_empty(), "{all}");
        }
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

    #[tokio::test]
    async fn a_stream_is_whole_or_broken_off() {
        let lines = |count: usize, fails: bool| {
            let response = stream(Duration::from_secs(60), move |mut pieces| async move {
                for _ in 0..count {
                    pieces.add(&[b'x'; PIECE_BYTES / 2]).await?;
                }
                match fails {
                    true => Err(Broken::File(std::io::Error::other("gone"))),
                    false => Ok(pieces),
                }
            });
            axum::body::to_bytes(response.into_body(), usize::MAX)
        };
        assert_eq!(lines(0, false).await.unwrap().len(), 0);
        assert_eq!(lines(7, false).await.unwrap().len(), 7 * PIECE_BYTES / 2);
        assert!(lines(7, true).await.is_err());
    }

    /// A reader that takes nothing holds up only its own stream, and only for the gateway's
    /// patience.
    #[tokio::test]
    async fn a_reader_that_takes_nothing_is_dropped() {
        let (held, dropped) = tokio::sync::oneshot::channel::<()>();
        let response = stream(Duration::from_millis(50), |mut pieces| async move {
            let _held = held;
            for _ in 0..100 {
                pieces.add(&[b'x'; PIECE_BYTES]).await?;
            }
            Ok(pieces)
        });
        assert!(dropped.await.is_err());
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await;
        assert!(body.is_err());
    }

    #[test]
    fn no_reader_keeps_those_of_others_out() {
        let readers = Readers::default();
        let shares = Shares::new(256, 1024, Arc::default());
        let app = |name: &str| Caller::App(name.to_owned());
        let taken: Vec<_> = (0..READERS_OF_ONE_MAX)
            .map(|_| readers.share(&app("shop"), &shares).unwrap())
            .collect();
        assert!(matches!(
            readers.share(&app("shop"), &shares),
            Err(Refusal::Unavailable(_))
        ));
        for other in [app("bank"), Caller::Admin, Caller::Nobody] {
            readers.share(&other, &shares).unwrap();
        }
        drop(taken);
        readers.share(&app("shop"), &shares).unwrap();
    }
}
