//! Reads forms, and bounds the bytes around their parts.
//!
//! The parser keeps the bytes that it has not understood yet: everything before the first part, and
//! the headers of each part. It hands out the contents of a part as they arrive. So the bytes that
//! arrive while it hands out nothing are those it keeps, and a form with too many of them is
//! refused.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use axum::body::{Body, BodyDataStream};
use axum::http::StatusCode;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use multer::{Field, Multipart};

use super::body::unreadable;
use super::problem::Refusal;

/// Most bytes before a part, and of its headers.
const BETWEEN_BYTES_MAX: usize = 8 * 1024;

/// The error of a form with too many bytes around its parts.
#[derive(Debug, thiserror::Error)]
#[error("more than {BETWEEN_BYTES_MAX} bytes before a part of the form, or in its headers")]
struct TooMuchBetween;

/// Bytes that arrived since the parser last handed something out.
type Kept = Arc<AtomicUsize>;

pub(super) struct Form {
    parts: Multipart<'static>,
    kept: Kept,
}

/// A part of a form.
pub(super) struct Part {
    pub(super) field: Field<'static>,
    kept: Kept,
}

impl Form {
    pub(super) fn new(body: Body, boundary: String) -> Self {
        let kept = Kept::default();
        Self {
            parts: Multipart::new(Bounded::new(body, Arc::clone(&kept)), boundary),
            kept,
        }
    }

    pub(super) async fn next(&mut self) -> Result<Option<Part>, Refusal> {
        self.kept.store(0, Ordering::Relaxed);
        let field = self.parts.next_field().await;
        let field = field.map_err(|error| broken(&error))?;
        self.kept.store(0, Ordering::Relaxed);
        Ok(field.map(|field| Part {
            field,
            kept: Arc::clone(&self.kept),
        }))
    }
}

impl Part {
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Refusal> {
        let chunk = self.field.chunk().await.map_err(|error| broken(&error))?;
        self.kept.store(0, Ordering::Relaxed);
        Ok(chunk)
    }

    /// The rest of the part.
    pub(super) fn chunks(self) -> impl Stream<Item = Result<Bytes, Refusal>> {
        futures_util::stream::try_unfold(self, |mut part| async move {
            Ok(part.chunk().await?.map(|chunk| (chunk, part)))
        })
    }
}

/// The bytes of a form, as long as the parser makes progress.
///
/// The parser reads as long as bytes are available before it looks at any of them, so this hands
/// them over one frame at a time.
struct Bounded {
    body: BodyDataStream,
    kept: Kept,
    rests: bool,
}

impl Bounded {
    fn new(body: Body, kept: Kept) -> Self {
        Self {
            body: body.into_data_stream(),
            kept,
            rests: false,
        }
    }
}

impl Stream for Bounded {
    type Item = Result<Bytes, axum::BoxError>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, axum::BoxError>>> {
        if std::mem::take(&mut self.rests) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.kept.load(Ordering::Relaxed) > BETWEEN_BYTES_MAX {
            return Poll::Ready(Some(Err(TooMuchBetween.into())));
        }
        let chunk = ready!(self.body.poll_next_unpin(context));
        if let Some(Ok(chunk)) = &chunk {
            self.kept.fetch_add(chunk.len(), Ordering::Relaxed);
            self.rests = true;
        }
        Poll::Ready(chunk.map(|chunk| chunk.map_err(Into::into)))
    }
}

fn broken(error: &multer::Error) -> Refusal {
    match error {
        multer::Error::StreamReadFailed(error) if error.is::<TooMuchBetween>() => {
            Refusal::BadBody(StatusCode::BAD_REQUEST, error.to_string())
        }
        multer::Error::StreamReadFailed(error) => unreadable(&**error),
        other => Refusal::BadBody(StatusCode::BAD_REQUEST, crate::error::chain(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a form that arrives in pieces of this size; returns the names and lengths of its
    /// parts.
    async fn read(form: String, size: usize) -> Result<Vec<(String, usize)>, Refusal> {
        let pieces: Vec<_> = form
            .as_bytes()
            .chunks(size)
            .map(Bytes::copy_from_slice)
            .collect();
        let pieces = pieces.into_iter().map(Ok::<_, std::io::Error>);
        let body = Body::from_stream(futures_util::stream::iter(pieces));
        let mut form = Form::new(body, "B".to_owned());
        let mut parts = Vec::new();
        while let Some(mut part) = form.next().await? {
            let name = part.field.name().unwrap_or_default().to_owned();
            let mut length = 0;
            while let Some(chunk) = part.chunk().await? {
                length += chunk.len();
            }
            parts.push((name, length));
        }
        Ok(parts)
    }

    fn form(before: usize, header: usize, content: usize) -> String {
        let (before, header) = ("x".repeat(before), "x".repeat(header));
        let part = |name: &str, content: usize| {
            format!(
                "--B\r\nContent-Disposition: form-data; name=\"{name}\"\r\nX-Pad: {header}\r\n\r\n{}\r\n",
                "\rx".repeat(content / 2)
            )
        };
        format!(
            "{before}\r\n{}{}--B--\r\n",
            part("job", 10),
            part("audience", content)
        )
    }

    #[tokio::test]
    async fn promise_11_what_stands_around_the_parts_of_a_form_has_a_bound() {
        for size in [1, 7, 1000, 100_000] {
            let parts = read(form(10, 1000, 40_000), size).await.unwrap();
            let expected = [("job".to_owned(), 10), ("audience".to_owned(), 40_000)];
            assert_eq!(parts, expected, "{size}");
        }
        for large in [form(20_000, 10, 10), form(10, 20_000, 10)] {
            for size in [1, 7, 1000] {
                let refused = read(large.clone(), size).await.unwrap_err();
                assert!(
                    matches!(&refused, Refusal::BadBody(StatusCode::BAD_REQUEST, what)
                        if what.contains("8192")),
                    "{size} {refused:?}"
                );
            }
        }
    }
}
