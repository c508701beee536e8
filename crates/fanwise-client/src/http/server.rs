//! A server, as its callers see it.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use fanwise_net::http::{Client, ClientSettings, HttpReply, Request, SendError};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use serde::de::DeserializeOwned;
use tokio::io::AsyncReadExt as _;

use super::error::{BadAddress, BadToken, Error, Refused};
use super::form::Form;
use super::list::List;
use super::question::{JSON, Question};
use crate::answer::{JobState, JobView, Submitted};
use crate::id::JobId;
use crate::job::Job;
use crate::parts::json;
use crate::retry::{Retry, Tries};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest wait for a piece of an upload to go on, and for its answer: a server reads a whole list
/// before it answers.
const UPLOAD_PATIENCE: Duration = Duration::from_secs(15 * 60);
/// The same for a job that names its list: the server fetches it first, which may take an hour.
const FETCH_PATIENCE: Duration = Duration::from_secs(75 * 60);
/// A longer body is an upload.
const UPLOAD_BYTES: usize = 1024 * 1024;
/// Longest wait for a connection to a server that may be far away.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// Times between two looks at a job that is waited for.
const LOOK: Duration = Duration::from_millis(200);
const LOOK_MAX: Duration = Duration::from_secs(2);

/// How to submit a job, beside what the job says.
#[derive(Clone, Debug, Default)]
pub struct SubmitOptions {
    /// Only check the job, and show it as its first recipients would get it.
    pub dry_run: bool,
    /// W3C trace context that goes with every send.
    pub traceparent: Option<String>,
    /// The `client_msg_no` of a job that has none.
    pub idempotency_key: Option<String>,
}

/// A `fanwise serve` or `fanwise gateway`. Cheap to clone; clones share their connections.
///
/// A request without a final answer is repeated as [`Retry`] says: after a fault of the connection,
/// 429, and 5xx. This is safe for jobs, because a job is known by its `client_msg_no`.
#[derive(Clone)]
pub struct Server {
    base: String,
    token: Option<HeaderValue>,
    name: HeaderValue,
    client: Client,
    retry: Retry,
}

/// Without the token.
impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("base", &self.base)
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// The server at this address, such as `https://fanwise.example.com`. Does not connect yet.
    pub fn new(address: &str) -> Result<Self, BadAddress> {
        Self::with_client(address, Client::new(Self::settings()))
    }

    /// The same, called through this client, such as one that trusts a CA of your own.
    pub fn with_client(address: &str, client: Client) -> Result<Self, BadAddress> {
        Ok(Self {
            base: base_of(address)?,
            token: None,
            name: HeaderValue::from_static("fanwise-client"),
            client,
            retry: Retry::default(),
        })
    }

    /// The settings of the client that [`Self::new`] uses.
    pub fn settings() -> ClientSettings {
        ClientSettings {
            connect_timeout: CONNECT_PATIENCE,
            ..ClientSettings::defaults()
        }
    }

    /// Shows the server this token: its own, or that of an app.
    pub fn with_token(mut self, token: &str) -> Result<Self, BadToken> {
        self.token = Some(bearer(token)?);
        Ok(self)
    }

    /// Names the caller, for the audit trail of jobs; `fanwise-client` unless this says otherwise.
    #[must_use]
    pub fn with_name(mut self, name: &'static str) -> Self {
        self.name = HeaderValue::from_static(name);
        self
    }

    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// What is in front of every path, without a slash at its end.
    pub fn base(&self) -> &str {
        &self.base
    }

    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Submits a job. When this returns `Ok`, the job is on disk.
    pub async fn submit(&self, job: &Job) -> Result<Submitted, Error> {
        let options = SubmitOptions::default();
        self.submit_json(json(job).into(), None, &options).await
    }

    /// Submits a job for an uploaded list, of any length. All of the list is accepted or nothing;
    /// the audience of the job must be empty, but for `exclude`.
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// use fanwise_client::http::{List, Server};
    /// use fanwise_client::{Audience, Job, Message};
    ///
    /// let server = Server::new("http://127.0.0.1:9700")?;
    /// let job = Job::new("promo-7", Audience::default(), Message::text("Hello"));
    /// let accepted = server.upload(&job, &List::file("users.csv")).await?;
    /// println!("{} recipients", accepted.recipients);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn upload(&self, job: &Job, list: &List) -> Result<Submitted, Error> {
        let options = SubmitOptions::default();
        self.submit_json(json(job).into(), Some(list), &options)
            .await
    }

    /// Submits a job that is JSON already, with or without an uploaded list.
    pub async fn submit_json(
        &self,
        job: Bytes,
        list: Option<&List>,
        options: &SubmitOptions,
    ) -> Result<Submitted, Error> {
        let path = match options.dry_run {
            true => "/v1/jobs?dry_run=true",
            false => "/v1/jobs",
        };
        let mut tries = Tries::of(self.retry);
        loop {
            let question = Question {
                traceparent: options.traceparent.as_deref(),
                idempotency_key: options.idempotency_key.as_deref(),
                patience: names_a_url(&job).then_some(FETCH_PATIENCE),
                ..Question::new(Method::POST, path)
            };
            let reply = match list {
                None => self.ask(question.with(JSON, job.clone())).await,
                Some(list) => self.ask_with(question, &job, list).await,
            };
            match reply.and_then(|reply| self.told(&reply)) {
                Err(error) if error.is_temporary() && tries.again(error.retry_after()).await => {}
                told => return told,
            }
        }
    }

    /// A job; `None` if the server does not know it.
    pub async fn job(&self, job: JobId) -> Result<Option<JobView>, Error> {
        let path = format!("/v1/jobs/{job}");
        let mut tries = Tries::of(self.retry);
        loop {
            let reply = self.ask(Question::new(Method::GET, &path)).await;
            let found = reply.and_then(|reply| match reply.status {
                404 => Ok(None),
                _ => self.told(&reply).map(Some),
            });
            match found {
                Err(error) if error.is_temporary() && tries.again(error.retry_after()).await => {}
                found => return found,
            }
        }
    }

    /// Waits until a job is completed, however long that takes. A completed job that was just given
    /// further recipients is completed until a worker takes them; [`JobView::submissions`] rises then.
    pub async fn wait(&self, job: JobId) -> Result<JobView, Error> {
        let mut pause = LOOK;
        loop {
            let view = self.job(job).await?.ok_or(Error::UnknownJob(job))?;
            if view.state == JobState::Completed {
                return Ok(view);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK_MAX);
        }
    }

    /// Asks once, whatever the answer is.
    pub async fn ask(&self, question: Question<'_>) -> Result<HttpReply, Error> {
        let patience = question.patience;
        let request = self.request(question)?;
        let patience = patience.unwrap_or(match request.body.len() {
            0..=UPLOAD_BYTES => PATIENCE,
            _ => UPLOAD_PATIENCE,
        });
        let reply = self.client.send(request, patience).await;
        reply.map_err(|source| self.no_answer(source))
    }

    /// The request that asks a question, for [`Self::client`] and answers that are read in pieces.
    pub fn request(&self, question: Question<'_>) -> Result<Request, Error> {
        let uri: Uri = format!("{}{}", self.base, question.path)
            .parse()
            .map_err(|_| Error::NotARequest(format!("the path {:?}", question.path)))?;
        let mut headers = HeaderMap::new();
        let mut set = |name: HeaderName, value: Option<&str>| -> Result<(), Error> {
            let Some(value) = value else { return Ok(()) };
            let unfit = |_| Error::NotARequest(format!("the value of {name}"));
            let value = HeaderValue::try_from(value).map_err(unfit)?;
            headers.insert(name.clone(), value);
            Ok(())
        };
        set(header::ACCEPT, Some(question.accept))?;
        set(header::CONTENT_TYPE, question.kind)?;
        set(HeaderName::from_static("traceparent"), question.traceparent)?;
        let key = HeaderName::from_static("idempotency-key");
        set(key, question.idempotency_key)?;
        headers.insert("fanwise-client", self.name.clone());
        headers.extend(
            self.token
                .clone()
                .map(|token| (header::AUTHORIZATION, token)),
        );
        Ok(Request {
            method: question.method,
            uri,
            headers,
            body: question.body,
        })
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Asks once, with a form of the job and its list as the body.
    async fn ask_with(
        &self,
        question: Question<'_>,
        job: &[u8],
        list: &List,
    ) -> Result<HttpReply, Error> {
        let form = Form::new();
        let mut begin = form.part("job", None);
        begin.extend_from_slice(job);
        begin.extend(form.part("audience", Some(list.format.file_name())));
        let (list, end) = (list.open().await.map_err(Error::List)?, form.end());
        let body = begin.as_slice().chain(list).chain(end.as_slice());
        let kind = form.content_type();
        let request = self.request(question.with(&kind, Bytes::new()))?;
        let reply = self.client.upload(request, body, UPLOAD_PATIENCE).await;
        reply.map_err(|source| self.no_answer(source))
    }

    /// The JSON of an answer that means success.
    pub fn told<T: DeserializeOwned>(&self, reply: &HttpReply) -> Result<T, Error> {
        match reply.status {
            200..300 => serde_json::from_slice(&reply.body).map_err(|source| Error::Unreadable {
                server: self.base.clone(),
                source,
            }),
            _ => Err(Error::Refused {
                server: self.base.clone(),
                refused: Refused::of(reply).into(),
            }),
        }
    }

    fn no_answer(&self, source: SendError) -> Error {
        Error::NoAnswer {
            server: self.base.clone(),
            source,
        }
    }
}

/// The address in front of all paths of a server, without a slash at its end.
pub fn base_of(address: &str) -> Result<String, BadAddress> {
    let address = address.trim_end_matches('/');
    let uri: Uri = address.parse().map_err(|_| BadAddress("is no address"))?;
    match uri.authority() {
        _ if !matches!(uri.scheme_str(), Some("http" | "https")) => {
            Err(BadAddress("begins with neither http:// nor https://"))
        }
        None => Err(BadAddress("names no host")),
        Some(authority) if authority.as_str().contains('@') => {
            Err(BadAddress("has a user: give the token apart from it"))
        }
        Some(_) if uri.query().is_some() => Err(BadAddress("has a query")),
        Some(_) => Ok(address.to_owned()),
    }
}

/// What is wrong with a token, if something is.
pub fn check_token(token: &str) -> Result<(), BadToken> {
    match token {
        _ if token.trim().is_empty() => Err(BadToken::Empty),
        _ if !token.bytes().all(|byte| (0x21..=0x7e).contains(&byte)) => Err(BadToken::NotOneWord),
        _ => Ok(()),
    }
}

/// The header that shows a token.
fn bearer(token: &str) -> Result<HeaderValue, BadToken> {
    check_token(token)?;
    let value = HeaderValue::try_from(format!("Bearer {token}"));
    let mut value = value.map_err(|_| BadToken::NotOneWord)?;
    value.set_sensitive(true);
    Ok(value)
}

/// Whether a job may name the address of its list. If it does not, only the wait is longer.
fn names_a_url(job: &[u8]) -> bool {
    let name = b"\"url\"";
    job.windows(name.len()).any(|some| some == name)
}

#[cfg(test)]
mod tests;
