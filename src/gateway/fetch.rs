//! Fetches the list that a job names by its address, from the hosts that the configuration of its
//! app lists. A list comes whole or not at all: an answer that breaks off, or another version than
//! the job asks for, refuses the job.

use std::fs::File;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use futures_util::{StreamExt as _, stream};
use ring::digest::{self, SHA256};

use super::Gateway;
use super::problem::Refusal;
use super::spool::spool;
use super::upload::ListKind;
use crate::domain::fields::Problem;
use crate::domain::list::Format;
use crate::domain::list_reference::{
    FetchedList, ListHosts, ListReference, digits, entity_tag, format_of, without_query,
};
use crate::domain::notice::UrlPlace;
use crate::http::client::{Client, Download};
use crate::ports::{Broker, CERTIFICATE, PRIVATE_ADDRESS, Request, SendError};
use crate::secret::Secret;

/// Longest wait for the head of an answer.
const HEAD_PATIENCE: Duration = Duration::from_secs(30);

/// Longest entity tag that is kept.
const ETAG_BYTES_MAX: usize = 256;

/// Where the lists of an app may come from.
#[derive(Clone, Debug)]
pub struct ListSource {
    pub hosts: ListHosts,
    /// Sent to these hosts, as a bearer token.
    pub token: Option<Secret>,
    /// Longest time for one list.
    pub timeout: Duration,
}

/// The clients that fetch lists.
#[derive(Clone)]
pub struct ListClients {
    /// Connects to public addresses only.
    pub public: Client,
    pub any: Client,
}

/// A list as it was fetched.
pub(super) struct Fetched {
    pub(super) version: FetchedList,
    pub(super) list: ListKind,
    pub(super) file: File,
}

impl<B: Broker, S, T> Gateway<B, S, T> {
    /// Fetches a list for a job of this app.
    pub(super) async fn fetch(
        &self,
        app: &str,
        reference: ListReference,
    ) -> Result<Fetched, Refusal> {
        let source = self.source(app, &reference.url)?;
        let client = match source.hosts.private {
            true => &self.list_clients.any,
            false => &self.list_clients.public,
        };
        let (url, started) = (parse(&reference.url)?, Instant::now());
        let request = request(&url, source)?;
        let fetching = async {
            let download = client.start_download(request, HEAD_PATIENCE);
            let download = download.await.map_err(|error| unreached(&error))?;
            self.receive(&url, reference, download).await
        };
        let fetched = tokio::time::timeout(source.timeout, fetching).await;
        let fetched = fetched.unwrap_or_else(|_| {
            let what = format!(
                "did not come within {:?}, the timeout of its source",
                source.timeout
            );
            Err(not_whole(&what))
        });
        let (url, took) = (without_query(&url), started.elapsed());
        match &fetched {
            Ok(fetched) => {
                let version = &fetched.version;
                tracing::info!(
                    job.app = app,
                    url,
                    bytes = version.bytes,
                    ?took,
                    "list fetched"
                );
            }
            Err(refusal) => {
                let (_, reason) = refusal.words();
                tracing::warn!(job.app = app, url, ?took, reason, "list not fetched");
            }
        }
        fetched
    }

    /// The source that lists the host of an address.
    fn source(&self, app: &str, url: &str) -> Result<&ListSource, Refusal> {
        let sources = self.access.apps.get(app).map(|it| &it.list_sources);
        let place = UrlPlace::of(url).map_err(|what| bad("url", what))?;
        let mut sources = sources.into_iter().flatten();
        let found = sources.find_map(|source| Some((source, source.hosts.permit(&place)?)));
        match found {
            Some((source, Ok(()))) => Ok(source),
            Some((_, Err(what))) => Err(bad("url", what)),
            None => {
                let what = format!(
                    "host {:?} with port {} is in no [apps.{app}.list_sources.NAME] of the configuration, \
                     which names the hosts that lists of this app may come from",
                    place.host, place.port
                );
                Err(bad("url", what))
            }
        }
    }

    async fn receive(
        &self,
        url: &Uri,
        reference: ListReference,
        download: Download,
    ) -> Result<Fetched, Refusal> {
        let headers = &download.reply.headers;
        if download.reply.status != 200 {
            return Err(refused(download.reply.status, headers));
        }
        if let Some(coding) = text(headers, header::CONTENT_ENCODING)
            && !coding.eq_ignore_ascii_case("identity")
        {
            let what = format!("the list is compressed ({coding}); it must come as it is");
            return Err(bad("url", what));
        }
        let etag = text(headers, header::ETAG).map(entity_tag);
        let etag = etag.filter(|it| !it.is_empty() && it.len() <= ETAG_BYTES_MAX);
        if let Some(wanted) = &reference.etag
            && etag != Some(wanted)
        {
            let now = etag.map_or("no entity tag".to_owned(), |etag| format!("{etag:?}"));
            let what = format!("the list has {now} now, not {wanted:?}: it is another version");
            return Err(bad("etag", what));
        }
        let list = kind(&reference, text(headers, header::CONTENT_TYPE), url)?;
        let etag = etag.map(str::to_owned);
        let length = text(headers, header::CONTENT_LENGTH).and_then(|it| it.parse().ok());
        if length.is_some_and(|length: u64| length > self.upload_bytes_max) {
            let what = format!(
                "the list has {} bytes, more than {} (gateway.upload_bytes_max)",
                length.unwrap_or_default(),
                self.upload_bytes_max
            );
            return Err(Refusal::BadBody(StatusCode::PAYLOAD_TOO_LARGE, what));
        }
        let (file, sha256) = self.keep(download).await?;
        if let Some(wanted) = &reference.sha256
            && *wanted != sha256
        {
            let what =
                format!("the list has the SHA-256 {sha256}: it is another version, or damaged");
            return Err(bad("sha256", what));
        }
        let bytes = file.metadata().map_or(0, |it| it.len());
        let version = FetchedList {
            url: without_query(url),
            etag,
            sha256,
            bytes,
        };
        Ok(Fetched {
            version,
            list,
            file,
        })
    }

    /// Writes the list to a file, and returns its SHA-256 too.
    async fn keep(&self, download: Download) -> Result<(File, String), Refusal> {
        let mut hash = digest::Context::new(&SHA256);
        let pieces = stream::unfold(Some((download, 0_u64)), async |state| {
            let (mut download, received) = state?;
            match download.piece().await.map(Bytes::copy_from_slice) {
                Ok(piece) if piece.is_empty() => None,
                Ok(piece) => {
                    let received = received + piece.len() as u64;
                    Some((Ok(piece), Some((download, received))))
                }
                Err(error) => {
                    let what = format!("broke off after {received} bytes: {}", what(&error));
                    Some((Err(not_whole(&what)), None))
                }
            }
        });
        let hashed = pieces.inspect(|piece| {
            if let Ok(piece) = piece {
                hash.update(piece);
            }
        });
        let file = spool(&self.upload_dir, self.upload_bytes_max, hashed).await?;
        Ok((file, digits(hash.finish().as_ref())))
    }
}

fn parse(url: &str) -> Result<Uri, Refusal> {
    url.parse()
        .map_err(|error| bad("url", format!("{url:?} is not a URL: {error}")))
}

fn request(url: &Uri, source: &ListSource) -> Result<Request, Refusal> {
    let mut headers = HeaderMap::new();
    let any = "text/csv, application/x-ndjson, text/plain, */*;q=0.1";
    headers.insert(header::ACCEPT, HeaderValue::from_static(any));
    if let Some(token) = &source.token {
        let value = HeaderValue::try_from(format!("Bearer {}", token.expose()));
        let mut value = value.map_err(|_| {
            Refusal::Unavailable("the token of the list's source is not a header".to_owned())
        })?;
        value.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, value);
    }
    Ok(Request {
        method: Method::GET,
        uri: url.clone(),
        headers,
        body: Bytes::new(),
    })
}

/// How to read the list.
fn kind(
    reference: &ListReference,
    content_type: Option<&str>,
    url: &Uri,
) -> Result<ListKind, Refusal> {
    let format = reference
        .format
        .or_else(|| format_of(content_type, url.path()));
    let Some(format) = format else {
        let what = format!(
            "missing: neither the content type of the list ({}) nor its name tells it; give lines, csv \
             or ndjson",
            content_type.unwrap_or("none")
        );
        return Err(bad("format", what));
    };
    if reference.vars && format != Format::Csv {
        let what = "takes the columns of a CSV; in NDJSON, write `vars` into each object";
        return Err(bad("vars", what));
    }
    Ok(ListKind {
        format,
        column: reference.column.clone(),
        vars: reference.vars,
    })
}

/// What an answer without a list means.
fn refused(status: u16, headers: &HeaderMap) -> Refusal {
    match status {
        300..=399 => {
            let to = text(headers, header::LOCATION).unwrap_or("another address");
            let what = format!(
                "the server answers {status} and names {to:?}; Fanwise follows no redirects: give the \
                 address of the list itself"
            );
            bad("url", what)
        }
        408 | 425 | 429 | 500.. => {
            let what = format!("audience.url: the server answers {status}; submit the job again");
            Refusal::Unavailable(what)
        }
        401 | 403 => {
            let what = format!(
                "the server answers {status}: it wants credentials, such as the token of the list's \
                 source, or a signed URL that is still valid"
            );
            bad("url", what)
        }
        status => bad(
            "url",
            format!("the server answers {status} instead of the list"),
        ),
    }
}

/// There is no answer. The job itself may be right.
fn unreached(error: &SendError) -> Refusal {
    match error {
        SendError::NotSent { what, code } if [PRIVATE_ADDRESS, CERTIFICATE].contains(code) => {
            bad("url", what.clone())
        }
        error => Refusal::Unavailable(format!(
            "audience.url: no list came: {}; submit the job again",
            what(error)
        )),
    }
}

fn what(error: &SendError) -> &str {
    let (SendError::NotSent { what, .. } | SendError::Unknown { what, .. }) = error;
    what
}

fn not_whole(what: &str) -> Refusal {
    Refusal::Unavailable(format!(
        "audience.url: the list {what}; nothing was accepted: submit the job again"
    ))
}

fn bad(field: &str, what: impl Into<String>) -> Refusal {
    Refusal::BadJob(vec![Problem::new(format!("audience.{field}"), what)])
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}
