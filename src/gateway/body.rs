//! Request bodies against callers that are slow or too many: a body must come on at a least rate, and
//! all bodies that are held in memory share one bound.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use bytes::BytesMut;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use super::Gateway;
use super::problem::Refusal;
use crate::ports::Broker;

/// Least rate of a body, in bytes per second, beyond the patience it begins with. A caller is a
/// server; one that is slower holds its place for nothing.
const RATE_MIN: u64 = 16 * 1024;

/// Why a body ends early.
#[derive(Debug, thiserror::Error)]
#[error("the body came too slowly")]
pub(super) struct TooSlow;

/// A body that may be waited for so long, and longer the more of it has come. Time that the reader
/// takes does not count.
struct Patient {
    body: Body,
    patience: Duration,
    bytes: u64,
    waited: Duration,
    waits_since: Option<Instant>,
    deadline: Pin<Box<Sleep>>,
}

/// The same request, with a body that is not waited for longer than is reasonable.
pub(super) fn patient(request: Request, patience: Duration) -> Request {
    request.map(|body| {
        if body.is_end_stream() {
            return body;
        }
        Body::new(Patient {
            body,
            patience,
            bytes: 0,
            waited: Duration::ZERO,
            waits_since: None,
            deadline: Box::pin(tokio::time::sleep(patience)),
        })
    })
}

impl HttpBody for Patient {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            if let Some(since) = this.waits_since.take() {
                this.waited += since.elapsed();
            }
            if let Some(Ok(frame)) = &frame {
                this.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
            return Poll::Ready(frame);
        }
        if this.waits_since.is_none() {
            let now = Instant::now();
            this.waits_since = Some(now);
            let earned = Duration::from_millis(this.bytes * 1000 / RATE_MIN);
            let left = (this.patience + earned).saturating_sub(this.waited);
            this.deadline.as_mut().reset(now + left);
        }
        ready!(this.deadline.as_mut().poll(context));
        Poll::Ready(Some(Err(axum::Error::new(TooSlow))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What became of reading a body.
pub(super) fn unreadable(error: &(dyn std::error::Error + 'static)) -> Refusal {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<TooSlow>() {
            return Refusal::BadBody(StatusCode::REQUEST_TIMEOUT, error.to_string());
        }
        cause = error.source();
    }
    let what = format!("the body broke off: {}", crate::worker::chain(error));
    Refusal::BadBody(StatusCode::BAD_REQUEST, what)
}

/// Bytes that are read of a body after it has become too large.
const PASSED_OVER_MAX: usize = 16 * 1024 * 1024;

/// Reads on without keeping anything: many callers look for an answer only once they have sent all, and
/// would find a connection that is closed.
async fn pass_over(body: &mut Body) {
    let mut bytes = 0;
    while bytes < PASSED_OVER_MAX
        && let Some(Ok(frame)) = body.frame().await
    {
        bytes += frame.data_ref().map_or(0, Bytes::len);
    }
}

/// Room for the bodies in memory, in KiB.
#[derive(Clone)]
pub(super) struct Memory(Arc<Semaphore>);

/// Bodies in memory, all requests together. A job is rarely more than some KiB.
const BODIES_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A body in memory, with its share of the room.
pub(super) struct Held {
    pub(super) bytes: Bytes,
    _share: Option<OwnedSemaphorePermit>,
}

/// Largest body of a command, or of a stored message.
const SMALL_BYTES_MAX: usize = 1024 * 1024;

impl<B: Broker, S, T> FromRequest<Arc<Gateway<B, S, T>>> for Held
where
    S: Send + Sync,
    T: Send + Sync,
{
    type Rejection = Refusal;

    /// A body that is small where it is what it should be.
    async fn from_request(
        request: Request,
        gateway: &Arc<Gateway<B, S, T>>,
    ) -> Result<Self, Refusal> {
        let instead = "nothing that can be asked for here takes so many";
        let body = request.into_body();
        gateway.memory.read(body, SMALL_BYTES_MAX, instead).await
    }
}

impl Memory {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(BODIES_BYTES_MAX / 1024)))
    }

    /// Reads a body of at most `most` bytes; `instead` is what to do with more.
    pub(super) async fn read(
        &self,
        mut body: Body,
        most: usize,
        instead: &str,
    ) -> Result<Held, Refusal> {
        let mut share: Option<OwnedSemaphorePermit> = None;
        let mut first = Bytes::new();
        let mut rest = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| unreadable(&error))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            let size = first.len() + rest.len() + data.len();
            if size > most {
                pass_over(&mut body).await;
                let what = format!("the body has more than {most} bytes; {instead}");
                return Err(Refusal::BadBody(StatusCode::PAYLOAD_TOO_LARGE, what));
            }
            self.take(&mut share, data.len())?;
            // Nearly every job is one frame, and is not copied then.
            if first.is_empty() && rest.is_empty() {
                first = data;
            } else {
                rest.extend_from_slice(&std::mem::take(&mut first));
                rest.extend_from_slice(&data);
            }
        }
        let bytes = if rest.is_empty() {
            first
        } else {
            rest.freeze()
        };
        Ok(Held {
            bytes,
            _share: share,
        })
    }

    fn take(&self, share: &mut Option<OwnedSemaphorePermit>, bytes: usize) -> Result<(), Refusal> {
        let units = bytes.div_ceil(1024) as u32;
        let more = Arc::clone(&self.0)
            .try_acquire_many_owned(units)
            .map_err(|_| Refusal::Unavailable("too many large requests at a time".to_owned()))?;
        match share {
            Some(share) => share.merge(more),
            None => *share = Some(more),
        }
        Ok(())
    }
}
