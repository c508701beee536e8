//! Reads a list to its end, also when the connection breaks off on the way.
//!
//! A list with a strong entity tag is read on from where it broke off (`Range`, with `If-Range`, so
//! that the server starts again if the list has changed meanwhile). Any other list is read again
//! from its beginning. Both a bounded number of times, and within the timeout of the source. The
//! SHA-256 is of the bytes that were kept, so a job that names one gets exactly that list or none.

use std::fs::File;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use bytes::Bytes;
use ring::digest::{self, SHA256};
use tokio::io::AsyncWriteExt as _;
use tokio::time::sleep;

use super::{ListSource, bad, kind, not_whole, refused, text, unreached, what};
use crate::domain::list_reference::{ListReference, digits, entity_tag};
use crate::domain::schedule::Delays;
use crate::gateway::problem::Refusal;
use crate::gateway::spool::{full, too_long};
use crate::gateway::upload::ListKind;
use crate::http::client::{Client, Download};
use crate::metrics::Metrics;
use crate::ports::Request;
use crate::runtime::RECONNECT;

/// Longest wait for the head of an answer.
const HEAD_PATIENCE: Duration = Duration::from_secs(30);

/// Longest entity tag that is kept.
const ETAG_BYTES_MAX: usize = 256;

/// How often a list that broke off is asked for again, in all.
const BREAKS_MAX: u32 = 10;

/// How often among them it is read again from its beginning.
const RESTARTS_MAX: u32 = 2;

/// What to read, and where to keep it.
pub(super) struct Reading<'a> {
    pub(super) client: &'a Client,
    pub(super) url: &'a Uri,
    pub(super) source: &'a ListSource,
    pub(super) reference: &'a ListReference,
    pub(super) folder: &'a std::path::Path,
    pub(super) bytes_max: u64,
    pub(super) metrics: &'a Metrics,
}

/// A list as it was read.
pub(super) struct Whole {
    pub(super) list: ListKind,
    pub(super) etag: Option<String>,
    pub(super) sha256: String,
    pub(super) bytes: u64,
    pub(super) file: File,
}

/// What is kept of a list so far.
struct Kept {
    list: ListKind,
    etag: Option<String>,
    /// The entity tag as it came, if it is strong: the list can be read on with it.
    validator: Option<HeaderValue>,
    /// Its length, as far as it is known.
    length: Option<u64>,
    file: tokio::fs::File,
    hash: digest::Context,
    received: u64,
}

/// Why a list is not read to its end.
enum Stop {
    Refused(Refusal),
    /// It may go on.
    Broken(String),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Reading<'_> {
    pub(super) async fn whole(&self) -> Result<Whole, Refusal> {
        let (mut kept, mut delays) = (None, RECONNECT.delays());
        let (mut breaks, mut restarts) = (0, 0);
        loop {
            let why = match self.read_on(&mut kept, &mut restarts, &mut delays).await {
                Ok(()) => break,
                Err(Stop::Refused(refusal)) => return Err(refusal),
                Err(Stop::Broken(why)) => why,
            };
            breaks += 1;
            self.metrics.list_read_broke();
            let received = kept.as_ref().map_or(0, |it: &Kept| it.received);
            tracing::debug!(breaks, received, why, "a list broke off");
            if breaks > BREAKS_MAX || restarts >= RESTARTS_MAX {
                let times = if breaks == 1 {
                    ""
                } else {
                    ", the last of several times"
                };
                let what = format!("broke off after {received} bytes{times}: {why}");
                return Err(not_whole(&what));
            }
            sleep(delays.next_delay()).await;
        }
        let Some(mut kept) = kept else {
            return Err(not_whole("was not read"));
        };
        // Written, not synced: only the broker's confirm promises that the list lasts.
        kept.file.flush().await.map_err(|error| full(&error))?;
        Ok(Whole {
            list: kept.list,
            etag: kept.etag,
            sha256: digits(kept.hash.finish().as_ref()),
            bytes: kept.received,
            file: kept.file.into_std().await,
        })
    }

    /// Asks for the list, or for the rest of it, and keeps what comes.
    async fn read_on(
        &self,
        kept: &mut Option<Kept>,
        restarts: &mut u32,
        delays: &mut Delays,
    ) -> Result<(), Stop> {
        let first = kept.is_none();
        let rest = kept.as_ref().and_then(Kept::rest);
        let request = self.request(rest.as_ref())?;
        let download = self.client.start_download(request, HEAD_PATIENCE).await;
        let download = download.map_err(|error| match unreached(&error) {
            Refusal::Unavailable(_) if !first => Stop::Broken(what(&error).to_owned()),
            refusal => Stop::Refused(refusal),
        })?;
        let (status, headers) = (download.reply.status, &download.reply.headers);
        match (status, kept.as_mut()) {
            (206, Some(kept)) if rest.is_some() => kept.continues(headers)?,
            (200, before) => {
                // Without an entity tag, or of another version: what came before is worth nothing.
                *restarts += u32::from(before.is_some());
                *kept = Some(self.begin(headers)?);
            }
            (408 | 425 | 429 | 500.., Some(_)) => {
                return Err(Stop::Broken(format!("the server answers {status}")));
            }
            (416, Some(kept)) if rest.is_some() => {
                kept.validator = None;
                return Err(Stop::Broken("the server has no rest of it".to_owned()));
            }
            _ => return Err(refused(status, headers).into()),
        }
        match kept {
            Some(kept) => self.keep(kept, download, delays).await,
            None => Ok(()),
        }
    }

    /// Checks the head of a list that begins.
    fn begin(&self, headers: &HeaderMap) -> Result<Kept, Refusal> {
        if let Some(coding) = text(headers, header::CONTENT_ENCODING)
            && !coding.eq_ignore_ascii_case("identity")
        {
            let what = format!("the list is compressed ({coding}); it must come as it is");
            return Err(bad("url", what));
        }
        let etag = text(headers, header::ETAG).map(entity_tag);
        let etag = etag.filter(|it| !it.is_empty() && it.len() <= ETAG_BYTES_MAX);
        if let Some(wanted) = &self.reference.etag
            && etag != Some(wanted)
        {
            let now = etag.map_or("no entity tag".to_owned(), |etag| format!("{etag:?}"));
            let what = format!("the list has {now} now, not {wanted:?}: it is another version");
            return Err(bad("etag", what));
        }
        let list = kind(
            self.reference,
            text(headers, header::CONTENT_TYPE),
            self.url,
        )?;
        let length = text(headers, header::CONTENT_LENGTH).and_then(|it| it.parse().ok());
        if let Some(length) = length.filter(|length| *length > self.bytes_max) {
            let most = self.bytes_max;
            let what =
                format!("the list has {length} bytes, more than {most} (gateway.upload_bytes_max)");
            return Err(Refusal::BadBody(StatusCode::PAYLOAD_TOO_LARGE, what));
        }
        let file = tempfile::tempfile_in(self.folder).map_err(|error| full(&error))?;
        let validator = headers.get(header::ETAG);
        let validator = validator.filter(|it| etag.is_some() && it.as_bytes().starts_with(b"\""));
        Ok(Kept {
            list,
            etag: etag.map(str::to_owned),
            validator: validator.cloned(),
            length,
            file: tokio::fs::File::from_std(file),
            hash: digest::Context::new(&SHA256),
            received: 0,
        })
    }

    /// Writes what comes to the file.
    async fn keep(
        &self,
        kept: &mut Kept,
        mut download: Download,
        delays: &mut Delays,
    ) -> Result<(), Stop> {
        loop {
            let piece = download.piece().await;
            let piece = piece.map_err(|error| Stop::Broken(what(&error).to_owned()))?;
            if piece.is_empty() {
                break;
            }
            kept.received += piece.len() as u64;
            if kept.received > self.bytes_max {
                return Err(too_long(self.bytes_max).into());
            }
            kept.hash.update(piece);
            self.metrics.list_bytes_read(piece.len());
            let written = kept.file.write_all(piece).await;
            written.map_err(|error| full(&error))?;
            delays.reset();
        }
        match kept.length {
            Some(length) if kept.received < length => Err(Stop::Broken(
                "the server sent a part of the rest".to_owned(),
            )),
            _ => Ok(()),
        }
    }

    /// Asks for the whole list, or for the rest from a byte on if it is still this version.
    fn request(&self, rest: Option<&(HeaderValue, u64)>) -> Result<Request, Refusal> {
        let mut headers = HeaderMap::new();
        let any = "text/csv, application/x-ndjson, text/plain, */*;q=0.1";
        headers.insert(header::ACCEPT, HeaderValue::from_static(any));
        if let Some(token) = &self.source.token {
            let value = HeaderValue::try_from(format!("Bearer {}", token.expose()));
            let mut value = value.map_err(|_| {
                Refusal::Unavailable("the token of the list's source is not a header".to_owned())
            })?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        if let Some((validator, from)) = rest
            && let Ok(range) = HeaderValue::try_from(format!("bytes={from}-"))
        {
            headers.insert(header::RANGE, range);
            headers.insert(header::IF_RANGE, validator.clone());
        }
        Ok(Request {
            method: Method::GET,
            uri: self.url.clone(),
            headers,
            body: Bytes::new(),
        })
    }
}

impl Kept {
    /// The version to read on, and from which byte; `None` if it must be read from its beginning.
    fn rest(&self) -> Option<(HeaderValue, u64)> {
        let validator = self.validator.clone()?;
        (self.received > 0).then_some((validator, self.received))
    }

    /// Checks the head of an answer with the rest of the list.
    fn continues(&mut self, headers: &HeaderMap) -> Result<(), Stop> {
        let range = text(headers, header::CONTENT_RANGE).and_then(content_range);
        let same = headers
            .get(header::ETAG)
            .is_none_or(|it| Some(it) == self.validator.as_ref());
        let plain = text(headers, header::CONTENT_ENCODING)
            .is_none_or(|it| it.eq_ignore_ascii_case("identity"));
        let fits = range.is_some_and(|(from, all)| {
            let known = self
                .length
                .is_none_or(|length| all.is_none_or(|all| all == length));
            from == self.received && known
        });
        if !same || !plain || !fits {
            // It is read again from its beginning.
            self.validator = None;
            let why = "the server answers with another part than the rest of it";
            return Err(Stop::Broken(why.to_owned()));
        }
        self.length = self.length.or(range.and_then(|(_, all)| all));
        Ok(())
    }
}

/// The first byte and the length of the whole in `bytes 100-299/300`; the length may be `*`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, all) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (from, to) = range.split_once('-')?;
    let (from, to): (u64, u64) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
    let all = match all.trim() {
        "*" => None,
        all => Some(all.parse().ok()?),
    };
    (from <= to && all.is_none_or(|all| to < all)).then_some((from, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_says_where_it_begins_and_how_long_the_whole_is() {
        for (text, expected) in [
            ("bytes 100-299/300", Some((100, Some(300)))),
            ("bytes 0-0/*", Some((0, None))),
            ("bytes 100-300/300", None),
            ("bytes 5-4/10", None),
            ("bytes */300", None),
            ("lines 1-2/3", None),
            ("bytes 1-2", None),
            ("bytes -2/3", None),
            ("", None),
        ] {
            assert_eq!(content_range(text), expected, "{text}");
        }
    }
}
