//! Answers in pieces, each of which must be taken in time.
//!
//! On HTTP/2 an answer waits for its reader although the socket does not: a reader that gives its
//! stream no window takes nothing, and costs nothing itself. So the deadline is one of each piece, and
//! it belongs to the stream: when it is past, the stream is reset, and the rest of its connection goes
//! on. The answers of HTTP/1.1 have no streams; there the connection is closed.
//!
//! The last piece over HTTP/2 is one byte: hyper ends its work on a stream with the last piece in hand,
//! and would leave all of it in memory without anybody who watches it.

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

/// Most bytes of a piece: what HTTP/2 sends in one frame.
const PIECE_BYTES_MAX: usize = 16 * 1024;

tokio::task_local! {
    static TAKING: Taking;
}

/// How far a reader is: since when a piece lies there for it.
#[derive(Clone, Default)]
pub(super) struct Taking(Arc<Mutex<Option<Instant>>>);

impl Taking {
    /// Runs what makes answers; they report here.
    pub(super) fn scope<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
        TAKING.scope(self, work)
    }

    fn set(&self, since: Option<Instant>) {
        *self.0.lock() = since;
    }

    /// Returns once a piece was not taken for so long.
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

/// Runs the streams of HTTP/2, each as long as its reader takes what is there.
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
                // What is dropped here is reset.
                () = taking.stalled(patience) => tracing::debug!("an answer was not taken in time"),
            }
        });
    }
}

/// An answer in pieces that must be taken in time.
struct Watched {
    body: Body,
    /// What was not handed over of the frame that came last.
    rest: Bytes,
    taking: Taking,
    /// The last byte comes by itself.
    by_stream: bool,
    _busy: Busy,
    _kept: Option<Kept>,
}

/// What an answer takes up until it is taken: among its extensions.
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

/// The same answer, in pieces that must be taken in time.
pub(super) fn watched(
    mut answer: Response<Body>,
    version: Version,
    mut busy: Busy,
) -> Response<Body> {
    let kept = answer.extensions_mut().remove();
    // A head needs nobody's patience.
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
        // Whoever asks has taken what was there.
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
