//! The HTTP interface of a running process, as the command line calls it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Uri, header};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::clock::rfc3339;
use crate::codec;
use crate::config::Config;
use crate::domain::fields::shorten;
use crate::exit::{Exit, Failure, OrExit as _};
use crate::http::client::{Client, ClientSettings};
use crate::http::tls;
use crate::ports::{HttpReply, JobFilter, Request, SendError};
use crate::secret::Secret;
use crate::service::api::{JobList, Submitted};
use crate::tls::{ClientTls, TlsSettings};

/// The fields of a filter as query parameters.
pub(super) fn parameters(filter: &impl Serialize) -> Result<Vec<(String, String)>, Failure> {
    let fields = serde_json::to_value(filter).or_exit(Exit::Internal)?;
    let fields = fields.as_object().into_iter().flatten();
    Ok(fields
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect())
}

pub(super) fn query(parameters: &[(String, String)]) -> String {
    let pairs: Vec<_> = parameters
        .iter()
        .map(|(name, value)| format!("{name}={}", encoded(value)))
        .collect();
    match pairs.is_empty() {
        true => String::new(),
        false => format!("?{}", pairs.join("&")),
    }
}

/// A text as a segment of a path or a value of a query.
pub(super) fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    codec::push_segment(&mut encoded, text);
    encoded
}

/// A server, as the caller names it.
#[derive(Debug)]
pub(in crate::cli) struct ServerAddress {
    /// What is in front of every path, without a slash at its end.
    pub(in crate::cli) base: String,
    pub(in crate::cli) token: Option<Secret>,
    pub(in crate::cli) ca_file: Option<PathBuf>,
}

/// The HTTP interface of a running process.
pub(in crate::cli) struct Server {
    base: String,
    token: Option<Secret>,
    client: Client,
    /// The configuration that names it; `None` if the caller does.
    config: Option<Box<Config>>,
}

pub(super) const JSON: &str = "application/json";
pub(super) const NDJSON: &str = "application/x-ndjson";

/// A request to the server.
pub(super) struct Question<'a> {
    method: Method,
    path: &'a str,
    /// The type of the body.
    kind: Option<&'static str>,
    body: Bytes,
    traceparent: Option<&'a str>,
    /// The type of the answer.
    accept: &'static str,
}

impl<'a> Question<'a> {
    /// Without a body; the answer is JSON.
    pub(super) fn new(method: Method, path: &'a str) -> Self {
        Self {
            method,
            path,
            kind: None,
            body: Bytes::new(),
            traceparent: None,
            accept: JSON,
        }
    }

    /// With a body of this type.
    pub(super) fn with(self, kind: &'static str, body: impl Into<Bytes>) -> Self {
        Self {
            kind: Some(kind),
            body: body.into(),
            ..self
        }
    }
}
/// Longest wait for an answer; lists of dead letters and rejected messages may be long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest wait for the answer to an upload.
const UPLOAD_PATIENCE: Duration = Duration::from_secs(15 * 60);
/// Longest wait for a connection to a server that may be far away.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer: room for a million dead letters.
const ANSWER_BYTES_MAX: usize = 1 << 30;

impl Server {
    pub(super) fn of(config: &Config) -> Result<Self, Failure> {
        let mut listen = config.gateway.listen;
        if listen.ip().is_unspecified() {
            listen.set_ip([127, 0, 0, 1].into());
        }
        let certificate = config.gateway.tls.as_ref().map(|(it, _)| it);
        let tls = certificate.map(|it| tls::pinned(it)).transpose();
        let tls = tls.or_exit(Exit::BadConfig)?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let settings = ClientSettings {
            reply_bytes_max: ANSWER_BYTES_MAX,
            tls: tls.map(Arc::new),
            ..ClientSettings::defaults()
        };
        Ok(Self {
            base: format!("{scheme}://{listen}"),
            token: config.gateway.token.clone(),
            client: Client::new(settings),
            config: Some(Box::new(config.clone())),
        })
    }

    pub(super) fn at(address: ServerAddress) -> Result<Self, Failure> {
        let mut own = BTreeMap::new();
        if let Some(ca) = address.ca_file {
            let settings = TlsSettings {
                ca: Some(ca),
                ..TlsSettings::default()
            };
            let tls = ClientTls::new(settings, "server", &[b"http/1.1"]);
            tls.load().or_exit(Exit::BadConfig)?;
            own.insert(host_and_port(&address.base)?, tls);
        }
        let settings = ClientSettings {
            reply_bytes_max: ANSWER_BYTES_MAX,
            connect_timeout: CONNECT_PATIENCE,
            tls_of: Arc::new(own),
            ..ClientSettings::defaults()
        };
        Ok(Self {
            base: address.base,
            token: address.token,
            client: Client::new(settings),
            config: None,
        })
    }

    /// Shows the server this token instead of the configured one.
    pub(in crate::cli) fn use_token(&mut self, token: Secret) {
        self.token = Some(token);
    }

    pub(super) fn config(&self) -> Option<&Config> {
        self.config.as_deref()
    }

    /// Submits a job, or only tries it out.
    pub(super) async fn submit(
        &self,
        kind: &'static str,
        body: Vec<u8>,
        dry_run: bool,
        traceparent: Option<&str>,
    ) -> Result<Submitted, Failure> {
        let path = match dry_run {
            true => "/v1/jobs?dry_run=true",
            false => "/v1/jobs",
        };
        let question = Question {
            traceparent,
            ..Question::new(Method::POST, path).with(kind, body)
        };
        let reply = self.ask(question).await?;
        match reply.status {
            200..300 => serde_json::from_slice(&reply.body).or_exit(Exit::Unavailable),
            _ => Err(self.refused(&reply)),
        }
    }

    pub(super) async fn jobs(
        &self,
        filter: &JobFilter,
        most: usize,
        cursor: Option<&str>,
    ) -> Result<JobList, Failure> {
        let JobFilter {
            app,
            target,
            client_msg_no,
            tag,
            state,
            since_ms,
            until_ms,
            starts_after_ms,
        } = filter;
        let fields = [
            ("app", app.clone()),
            ("target", target.clone()),
            ("client_msg_no", client_msg_no.clone()),
            ("tag", tag.clone()),
            ("state", state.map(|state| state.as_str().to_owned())),
            ("since", since_ms.map(rfc3339)),
            ("until", until_ms.map(rfc3339)),
            ("scheduled", starts_after_ms.map(|_| "true".to_owned())),
            ("limit", Some(most.to_string())),
            ("cursor", cursor.map(str::to_owned)),
        ];
        let fields: Vec<_> = fields
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect();
        self.existing(&format!("/v1/jobs{}", query(&fields))).await
    }

    /// Reads an answer with one JSON value per line and passes each value to `visit`.
    pub(super) async fn lines<T: DeserializeOwned>(
        &self,
        question: Question<'_>,
        mut visit: impl FnMut(T),
    ) -> Result<(), Failure> {
        let question = Question {
            accept: NDJSON,
            ..question
        };
        let reply = self.ask(question).await?;
        if reply.status != 200 {
            return Err(self.refused(&reply));
        }
        let lines = reply.body.split(|byte| *byte == b'\n');
        for line in lines.filter(|line| !line.is_empty()) {
            visit(serde_json::from_slice(line).or_exit(Exit::Unavailable)?);
        }
        Ok(())
    }

    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let body = serde_json::to_vec(body).or_exit(Exit::Internal)?;
        self.told(Question::new(Method::POST, path).with(JSON, body))
            .await
    }

    /// Gets the JSON answer to a question that a server answers with 200.
    pub(super) async fn told<T: DeserializeOwned>(
        &self,
        question: Question<'_>,
    ) -> Result<T, Failure> {
        let reply = self.ask(question).await?;
        match reply.status {
            200 => serde_json::from_slice(&reply.body).or_exit(Exit::Unavailable),
            _ => Err(self.refused(&reply)),
        }
    }

    /// Gets a JSON answer; `None` if the server answers 404.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, Failure> {
        let reply = self.ask(Question::new(Method::GET, path)).await?;
        match reply.status {
            200 => serde_json::from_slice(&reply.body)
                .map(Some)
                .or_exit(Exit::Unavailable),
            404 => Ok(None),
            _ => Err(self.refused(&reply)),
        }
    }

    /// Gets a JSON answer that every server of this version has.
    pub(super) async fn existing<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let found = self.get(path).await?;
        found.ok_or_else(|| {
            let what = format!("{} has no {path}: is it an older version?", self.base);
            Failure::message(Exit::Unavailable, what)
        })
    }

    pub(super) async fn ask(&self, question: Question<'_>) -> Result<HttpReply, Failure> {
        let request = self.request(question)?;
        let patience = match request.body.len() {
            0..=UPLOAD_BYTES => PATIENCE,
            _ => UPLOAD_PATIENCE,
        };
        let reply = self.client.send(request, patience).await;
        reply.map_err(|error| self.unreached(&error))
    }

    /// Gets a long answer, and passes it to `each` in pieces until that breaks it off.
    pub(super) async fn download(
        &self,
        path: &str,
        each: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        let request = self.request(Question {
            accept: "*/*",
            ..Question::new(Method::GET, path)
        })?;
        let reply = self.client.download(request, UPLOAD_PATIENCE, each).await;
        let reply = reply.map_err(|error| match error {
            SendError::NotSent { .. } => self.unreached(&error),
            SendError::Unknown { what, .. } => {
                Failure::message(Exit::Unavailable, format!("{}: {what}", self.base))
            }
        })?;
        match reply.status {
            200 => Ok(()),
            _ => Err(self.refused(&reply)),
        }
    }

    fn request(&self, question: Question<'_>) -> Result<Request, Failure> {
        let Question {
            method,
            path,
            kind,
            body,
            traceparent,
            accept,
        } = question;
        let uri: Uri = format!("{}{path}", self.base)
            .parse()
            .or_exit(Exit::Internal)?;
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
        let kind = kind.map(|kind| (header::CONTENT_TYPE, HeaderValue::from_static(kind)));
        headers.extend(kind);
        headers.insert("fanwise-client", HeaderValue::from_static("cli"));
        if let Some(token) = &self.token {
            let value = HeaderValue::try_from(format!("Bearer {}", token.expose()));
            headers.insert(header::AUTHORIZATION, value.or_exit(Exit::BadConfig)?);
        }
        if let Some(trace) = traceparent {
            headers.insert(
                "traceparent",
                HeaderValue::try_from(trace).or_exit(Exit::BadInput)?,
            );
        }
        Ok(Request {
            method,
            uri,
            headers,
            body,
        })
    }

    fn unreached(&self, error: &SendError) -> Failure {
        let hint = match self.config {
            Some(_) => {
                "is `fanwise serve` running there? (or name a server with --server, or set broker.url and \
                 ledger.url)"
            }
            None => "is it the address of a `fanwise serve` or `fanwise gateway`?",
        };
        let what = format!("{}: {error}; {hint}", self.base);
        Failure::message(Exit::Unavailable, what)
    }

    /// Turns an answer other than success into a failure, with the text of its problem document.
    pub(super) fn refused(&self, reply: &HttpReply) -> Failure {
        let status = reply.status;
        let problem: serde_json::Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        let Some(detail) = problem["detail"].as_str() else {
            let text = String::from_utf8_lossy(&reply.body);
            let what = format!(
                "{}: the server there is not fanwise; it answers {status}: {}",
                self.base,
                shorten(text.trim(), 100)
            );
            return Failure::message(Exit::Unavailable, what);
        };
        let (exit, what) = match status {
            400 | 413 | 415 | 422 => (Exit::BadInput, "refused"),
            403 => (Exit::NotPermitted, "not permitted"),
            409 => (Exit::BadInput, "conflict"),
            401 => return self.unknown_caller(),
            404 => (Exit::Unavailable, "not found"),
            _ => (Exit::Unavailable, "not accepted"),
        };
        Failure::message(exit, format!("{what}: {detail}"))
    }

    /// The server's own text is for authors of HTTP clients.
    fn unknown_caller(&self) -> Failure {
        let found = match self.token {
            Some(_) => "refuses the token",
            None => "wants a token, and none is given",
        };
        let hint = match self.config {
            Some(_) => {
                "set gateway.token to the gateway's own (FANWISE_GATEWAY__TOKEN, or token_file), or give \
                 an app's with --token-file"
            }
            None => "give it with --token-file or FANWISE_TOKEN",
        };
        let what = format!("{} {found}: {hint}", self.base);
        Failure::message(Exit::BadConfig, what)
    }
}

/// A longer body is an upload.
const UPLOAD_BYTES: usize = 1024 * 1024;

fn host_and_port(base: &str) -> Result<(String, u16), Failure> {
    let uri: Uri = base.parse().or_exit(Exit::Internal)?;
    let host = uri.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let default = if uri.scheme_str() == Some("https") {
        443
    } else {
        80
    };
    Ok((host.to_ascii_lowercase(), uri.port_u16().unwrap_or(default)))
}
