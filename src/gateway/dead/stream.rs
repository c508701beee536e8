//! Streams all dead letters as lines of JSON, from a file or from the ledger, to readers that may
//! be slow: a reader that takes nothing holds up only its own stream, and one app has a bound on
//! its streams.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse as _, Response};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::keep;
use crate::domain::announce::DeadLetter;
use crate::domain::letters::{DeadRow, LetterFilter, last_attempt_ms, read_letter};
use crate::gateway::Gateway;
use crate::gateway::access::Caller;
use crate::gateway::problem::Refusal;
use crate::gateway::shares::Shares;
use crate::metrics::Bound;
use crate::ports::{
    Broker, LedgerError, RetainedMessage, RetainedQueue, RetainedQueues, Store, Transport,
};
use crate::service::dead_letters::{LedgerView, Named};

const NDJSON: &str = "application/x-ndjson";

/// Most streams of one caller at a time: each fills a file.
const READERS_OF_ONE_MAX: usize = 8;

/// Counts the readers of streams. Each app has its own share, so that none keeps the others out.
#[derive(Default)]
pub(in crate::gateway) struct Readers(Arc<Mutex<BTreeMap<Option<String>, usize>>>);

/// The place of one reader, freed when this is dropped.
pub(super) struct Share {
    readers: Arc<Mutex<BTreeMap<Option<String>, usize>>>,
    of: Option<String>,
}

impl Readers {
    pub(super) fn share(&self, caller: &Caller, shares: &Shares) -> Result<Share, Refusal> {
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

pub(super) fn accepts_lines(headers: &HeaderMap) -> bool {
    let accepted = headers.get(header::ACCEPT).and_then(|it| it.to_str().ok());
    let mut kinds = accepted.into_iter().flat_map(|it| it.split([',', ';']));
    kinds.any(|kind| kind.trim() == NDJSON)
}

// The gateway copies a retained queue to a file as fast as the broker delivers, and serves the
// reader from the file. The reader may take as long as the gateway's patience allows. So a reader
// that takes nothing holds up neither the broker, nor a thread, nor another reader.

/// Streams every recipient that matches the filter, one line each, with its outcome in the ledger.
pub(super) async fn dead_lines<B: Broker + RetainedQueues, S: Store, T: Transport>(
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

pub(in crate::gateway) fn line(value: &impl serde::Serialize) -> Vec<u8> {
    let mut line = crate::json::bytes(value);
    line.push(b'\n');
    line
}

/// Size of the pieces of an answer, and how many of them may be on the way to a reader.
const PIECE_BYTES: usize = 64 * 1024;
const PIECES_AHEAD: usize = 2;

/// Why a stream breaks off.
#[derive(Debug, thiserror::Error)]
pub(in crate::gateway) enum Broken {
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
pub(in crate::gateway) struct Pieces {
    /// `None` marks the end.
    sender: mpsc::Sender<Option<Bytes>>,
    patience: Duration,
    piece: Vec<u8>,
}

impl Pieces {
    pub(in crate::gateway) async fn add(&mut self, line: &[u8]) -> Result<(), Broken> {
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
pub(in crate::gateway) fn stream<F>(patience: Duration, write: impl FnOnce(Pieces) -> F) -> Response
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

#[cfg(test)]
mod tests {
    use super::*;

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
