//! Fetches the list that a job names by its address, from the hosts that the configuration of its
//! app lists. A list comes whole or not at all: an answer that breaks off for good (`reading`), or
//! another version than the job asks for, refuses the job.

mod reading;

use std::fs::File;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, Uri, header};

use self::reading::Reading;
use super::Gateway;
use super::problem::Refusal;
use super::upload::ListKind;
use crate::domain::fields::Problem;
use crate::domain::list::Format;
use crate::domain::list_reference::{
    FetchedList, ListHosts, ListReference, format_of, without_query,
};
use crate::domain::notice::UrlPlace;
use crate::http::client::Client;
use crate::metrics::ListResult;
use crate::ports::{Broker, CERTIFICATE, PRIVATE_ADDRESS, SendError};
use crate::secret::Secret;

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
        let reading = Reading {
            client,
            url: &url,
            source,
            reference: &reference,
            folder: &self.upload_dir,
            bytes_max: self.upload_bytes_max,
            metrics: &self.context.metrics,
        };
        let fetching = receive(&reading);
        let fetched = tokio::time::timeout(source.timeout, fetching).await;
        let fetched = fetched.unwrap_or_else(|_| {
            let what = format!(
                "did not come within {:?}, the timeout of its source",
                source.timeout
            );
            Err(not_whole(&what))
        });
        self.context.metrics.list_read(match &fetched {
            Ok(_) => ListResult::Fetched,
            Err(Refusal::Unavailable(_)) => ListResult::Failed,
            Err(_) => ListResult::Refused,
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
}

/// Reads a list and checks its version.
async fn receive(reading: &Reading<'_>) -> Result<Fetched, Refusal> {
    let whole = reading.whole().await?;
    if let Some(wanted) = &reading.reference.sha256
        && *wanted != whole.sha256
    {
        let sha256 = whole.sha256;
        let what = format!("the list has the SHA-256 {sha256}: it is another version, or damaged");
        return Err(bad("sha256", what));
    }
    Ok(Fetched {
        version: FetchedList {
            url: without_query(reading.url),
            etag: whole.etag,
            sha256: whole.sha256,
            bytes: whole.bytes,
        },
        list: whole.list,
        file: whole.file,
    })
}

fn parse(url: &str) -> Result<Uri, Refusal> {
    url.parse()
        .map_err(|error| bad("url", format!("{url:?} is not a URL: {error}")))
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
