//! Builds answers, and damages them on the wire.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Either, Full, StreamBody};
use hyper::body::Frame;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

/// Bytes in a piece of a slow body.
const PIECE_BYTES: usize = 8;

/// A complete body, or one that is generated while it is sent.
pub(super) type ReplyBody = Either<Full<Bytes>, UnsyncBoxBody<Bytes, Cut>>;

/// Ends the connection before the answer is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Cut {
    /// With an RST, as a crashed peer or a firewall does.
    #[error("connection reset on purpose")]
    Reset,
    /// With a FIN.
    #[error("connection closed on purpose")]
    Close,
}

/// The answer of a protocol.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    content_type: &'static str,
    body: Bytes,
    retry_after: Option<u32>,
}

impl Answer {
    pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Answer {
        // The callers serialise types of this crate, which never fails.
        let body = serde_json::to_vec(body).unwrap_or_default();
        Answer {
            status,
            content_type: "application/json; charset=utf-8",
            body: body.into(),
            retry_after: None,
        }
    }

    pub(super) fn text(status: StatusCode, body: &'static str) -> Answer {
        Answer {
            status,
            content_type: "text/plain; charset=utf-8",
            body: Bytes::from_static(body.as_bytes()),
            retry_after: None,
        }
    }

    /// The same body with the content type of plain text.
    pub(super) fn announced_as_text(self) -> Answer {
        Answer {
            content_type: "text/plain; charset=utf-8",
            ..self
        }
    }

    pub(super) fn with_retry_after(self, seconds: u32) -> Answer {
        Answer {
            retry_after: Some(seconds),
            ..self
        }
    }

    /// JSON that is cut in the middle, with a length that matches.
    pub(super) fn broken(self) -> Answer {
        let half = self.body.len() / 2;
        Answer {
            body: self.body.slice(..half),
            ..self
        }
    }

    /// The complete answer.
    pub(super) fn whole(self) -> Response<ReplyBody> {
        let body = Full::new(self.body.clone());
        self.response(Either::Left(body))
    }

    /// The headers immediately, then the body in pieces until the server stops.
    pub(super) fn dribbled(self, pace: Duration, stop: CancellationToken) -> Response<ReplyBody> {
        let rest = self.body.clone();
        let pieces = stream::unfold((rest, stop), move |(mut rest, stop)| async move {
            if rest.is_empty() {
                return None;
            }
            tokio::select! {
                () = tokio::time::sleep(pace) => {}
                () = stop.cancelled() => return Some((Err(Cut::Close), (Bytes::new(), stop))),
            }
            let piece = rest.split_to(PIECE_BYTES.min(rest.len()));
            Some((Ok(Frame::data(piece)), (rest, stop)))
        });
        let body = StreamBody::new(pieces).boxed_unsync();
        self.response(Either::Right(body))
    }

    /// Half of the announced body, then the connection closes.
    pub(super) fn halved(self) -> Response<ReplyBody> {
        let half = self.body.slice(..self.body.len() / 2);
        let pieces = stream::unfold(Some(half), |half| async move {
            match half {
                Some(half) => Some((Ok(Frame::data(half)), None)),
                None => {
                    // Returns pending once, so that hyper flushes the first half before it sees the
                    // end.
                    tokio::task::yield_now().await;
                    Some((Err(Cut::Close), None))
                }
            }
        });
        let body = StreamBody::new(pieces).boxed_unsync();
        self.response(Either::Right(body))
    }

    fn response(self, body: ReplyBody) -> Response<ReplyBody> {
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(self.body.len()));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
