//! Reads request bodies, and guards against callers that are slow or too many: a body must arrive
//! at a least rate, and all bodies in memory share one bound, of which each caller has a share.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use bytes::BytesMut;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::time::{Instant, Sleep};

use super::Gateway;
use super::access::Caller;
use super::pool::Share;
use super::problem::Refusal;
use super::shares::Shares;
use crate::domain::fields::shorten;
use crate::ports::Broker;

/// Least rate of a body, in bytes per second, after its initial patience. Callers are servers; one
/// that is slower holds its place for nothing.
const RATE_MIN: u64 = 16 * 1024;

/// The error of a body that arrives too slowly.
#[derive(Debug, thiserror::Error)]
#[error("the body came too slowly")]
pub(super) struct TooSlow;

/// A body with a deadline, which moves on as more of the body arrives. Time that the reader takes
/// does not count.
struct Patient {
    body: Body,
    patience: Duration,
    bytes: u64,
    waited: Duration,
    waits_since: Option<Instant>,
    deadline: Pin<Box<Sleep>>,
}

/// The same request, with a body that has a deadline.
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

/// Refuses a compressed body: its bytes would be read as text.
pub(super) fn uncompressed(headers: &HeaderMap) -> Result<(), Refusal> {
    let codings = headers.get_all(header::CONTENT_ENCODING).iter();
    let mut codings = codings.filter(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"));
    let Some(coding) = codings.next() else {
        return Ok(());
    };
    let coding = String::from_utf8_lossy(coding.as_bytes());
    let what = format!(
        "Content-Encoding {:?} is not supported; send the body uncompressed",
        shorten(&coding, 40)
    );
    Err(Refusal::BadBody(StatusCode::UNSUPPORTED_MEDIA_TYPE, what))
}

/// The refusal of a body that could not be read.
pub(super) fn unreadable(error: &(dyn std::error::Error + 'static)) -> Refusal {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<TooSlow>() {
            return Refusal::BadBody(StatusCode::REQUEST_TIMEOUT, error.to_string());
        }
        cause = error.source();
    }
    let what = format!("the body broke off: {}", crate::error::chain(error));
    Refusal::BadBody(StatusCode::BAD_REQUEST, what)
}

/// Most bytes that are read and dropped of a body that is too large.
const PASSED_OVER_MAX: usize = 16 * 1024 * 1024;

/// Reads on and drops the bytes: many callers read the answer only after they have sent everything,
/// and would find a closed connection.
async fn pass_over(body: &mut Body) {
    let mut bytes = 0;
    while bytes < PASSED_OVER_MAX
        && let Some(Ok(frame)) = body.frame().await
    {
        bytes += frame.data_ref().map_or(0, Bytes::len);
    }
}

/// A body in memory, with its share of the bound.
pub(super) struct Held {
    pub(super) bytes: Bytes,
    pub(super) share: Option<Share<Caller>>,
}

/// Largest body of a command or a stored message.
const SMALL_BYTES_MAX: usize = 1024 * 1024;

impl<B: Broker, S, T> FromRequest<Arc<Gateway<B, S, T>>> for Held
where
    S: Send + Sync,
    T: Send + Sync,
{
    type Rejection = Refusal;

    /// Reads a body that is small if it is valid.
    async fn from_request(
        request: Request,
        gateway: &Arc<Gateway<B, S, T>>,
    ) -> Result<Self, Refusal> {
        let instead = "no request here needs as many";
        let (head, body) = request.into_parts();
        // The caller is known at this point: `authorised` has run before.
        let caller = head.extensions.get().unwrap_or(&Caller::Nobody);
        read(&gateway.shares, caller, body, SMALL_BYTES_MAX, instead).await
    }
}

/// Reads a body of at most `most` bytes into the caller's share of the bound; `instead` says what
/// to do with a larger one.
pub(super) async fn read(
    shares: &Shares,
    caller: &Caller,
    mut body: Body,
    most: usize,
    instead: &str,
) -> Result<Held, Refusal> {
    let mut share: Option<Share<Caller>> = None;
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
        let has_room = match &mut share {
            Some(share) => share.grow(data.len()),
            None => {
                share = Some(shares.room(caller, data.len())?);
                true
            }
        };
        if !has_room {
            return Err(shares.no_room());
        }
        // Nearly every job is one frame, which is then not copied.
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
    Ok(Held { bytes, share })
}
