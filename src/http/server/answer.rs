//! Sends answers in pieces, each of which the client must take in time.
//!
//! On HTTP/2 an answer can wait for its reader while the socket does not: a reader that gives its
//! stream no window takes nothing, at no cost to itself. So each piece has a deadline, which
//! belongs to the stream: when it passes, the stream is reset, and the other streams of the
//! connection go on. On HTTP/1.1, which has no streams, the connection is closed.
//!
//! On HTTP/2 the last piece is one byte: hyper ends its work on a stream when it has the last
//! piece, and would keep a longer one in memory without any deadline.

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use http::{Response, Version};
use http_body::{Frame, SizeHint};
use hyper::rt::Executor;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use super::peer::Busy;

/// Most bytes of a piece: the size of one HTTP/2 frame.
const PIECE_BYTES_MAX: usize = 16 * 1024;

tokio::task_local! {
    static TAKING: Taking;
}

/// The progress of a reader: since when a piece has been waiting for it.
#[derive(Clone, Default)]
pub(super) struct Taking(Arc<Mutex<Option<Instant>>>);

impl Taking {
    /// Runs work that makes answers; those report here.
    pub(super) fn scope<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
        TAKING.scope(self, work)
    }

    fn set(&self, since: Option<Instant>) {
        *self.0.lock() = since;
    }

    /// Returns once a piece has waited for this long.
    pub(super) async fn stalled(&self, patience: Duration) {
        loop {
            let now = Instant::now();
            let since = *self.0.lock();
            let until = since.unwrap_or(now) + patience;
            if until <= now {
                return;
            }
            sleep_until(until).await;
        }
    }
}

/// Runs the streams of HTTP/2, each for as long as its reader takes its pieces in time.
#[derive(Clone)]
pub(super) struct Streams {
    pub(super) patience: Duration,
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let patience = self.patience;
        let taking = Taking::default();
        #[expect(
            clippy::disallowed_methods,
            reason = "it ends with its stream; a panic resets it"
        )]
        tokio::spawn(async move {
            tokio::select! {
                () = taking.clone().scope(stream) => {}
                // Dropping a stream here resets it.
                () = taking.stalled(patience) => tracing::debug!("an answer was not taken in time"),
            }
        });
    }
}

/// The body of an answer in pieces that must be taken in time.
struct Watched {
    body: Body,
    /// The part of the last frame that is not handed over yet.
    rest: Bytes,
    taking: Taking,
    /// Send the last byte as a piece of its own, as HTTP/2 needs.
    by_stream: bool,
    _busy: Busy,
    _kept: Option<Kept>,
}

/// Resources that an answer holds until it is taken. Travels in the extensions of the answer.
#[derive(Clone)]
pub(crate) struct Kept {
    _kept: Arc<dyn Any + Send + Sync>,
}

impl Kept {
    pub(crate) fn new(kept: impl Any + Send + Sync) -> Self {
        Self {
            _kept: Arc::new(kept),
        }
    }
}

/// Turns an answer into one in pieces that must be taken in time.
pub(super) fn watched(
    mut answer: Response<Body>,
    version: Version,
    mut busy: Busy,
) -> Response<Body> {
    let kept = answer.extensions_mut().remove();
    // An answer without a body has no pieces to wait for.
    if answer.body().is_end_stream() {
        return answer;
    }
    busy.answers();
    let watched = |body| Watched {
        body,
        rest: Bytes::new(),
        taking: TAKING.try_with(Clone::clone).unwrap_or_default(),
        by_stream: version == Version::HTTP_2,
        _busy: busy,
        _kept: kept,
    };
    answer.map(|body| Body::new(watched(body)))
}

impl Watched {
    fn piece(&mut self) -> Bytes {
        let most = match self.by_stream && self.body.is_end_stream() {
            true => PIECE_BYTES_MAX.min(self.rest.len() - 1).max(1),
            false => PIECE_BYTES_MAX.min(self.rest.len()),
        };
        self.rest.split_to(most)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.taking.set(None);
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        // The reader asks again, so it has taken the last piece.
        this.taking.set(None);
        if this.rest.is_empty() {
            let Some(frame) = ready!(Pin::new(&mut this.body).poll_frame(context)?) else {
                return Poll::Ready(None);
            };
            match frame.into_data() {
                Ok(data) => this.rest = data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
            if this.rest.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(Bytes::new()))));
            }
        }
        let piece = this.piece();
        this.taking.set(Some(Instant::now()));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        let rest = self.rest.len() as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}
