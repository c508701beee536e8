//! The HTTP interface of a running process, as the command line calls it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fanwise_client::Retry;
use fanwise_client::http::{
    self as client, Client, ClientSettings, Error, List, Refused, SubmitOptions,
};
pub(super) use fanwise_client::http::{JSON, NDJSON, Question, encoded};
use http::{Method, Uri};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::clock::rfc3339;
use crate::config::Config;
use crate::domain::fields::shorten;
use crate::exit::{Exit, Failure, OrExit as _};
use crate::http::tls;
use crate::ports::{HttpReply, JobFilter, SendError};
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
    let pairs = parameters.iter();
    client::query(pairs.map(|(name, value)| (name.as_str(), value.as_str())))
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
    server: client::Server,
    /// The configuration that names it; `None` if the caller does.
    config: Option<Box<Config>>,
}

/// Longest wait for the beginning of a download.
const DOWNLOAD_PATIENCE: Duration = Duration::from_secs(15 * 60);
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
            tls: tls.map(Arc::new),
            ..ClientSettings::defaults()
        };
        let mut server = Self::with(&format!("{scheme}://{listen}"), settings)?;
        server.config = Some(Box::new(config.clone()));
        match &config.gateway.token {
            Some(token) => server.with_token(token),
            None => Ok(server),
        }
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
            tls_of: Arc::new(own),
            ..client::Server::settings()
        };
        let server = Self::with(&address.base, settings)?;
        match &address.token {
            Some(token) => server.with_token(token),
            None => Ok(server),
        }
    }

    fn with(base: &str, settings: ClientSettings) -> Result<Self, Failure> {
        let settings = ClientSettings {
            reply_bytes_max: ANSWER_BYTES_MAX,
            ..settings
        };
        let server = client::Server::with_client(base, Client::new(settings));
        let server = server.or_exit(Exit::Usage)?;
        Ok(Self {
            server: server.with_name("cli"),
            config: None,
        })
    }

    /// Shows the server this token, instead of the configured one if there is one.
    pub(in crate::cli) fn with_token(self, token: &Secret) -> Result<Self, Failure> {
        let server = self.server.with_token(token.expose());
        let server = server.map_err(|error| {
            Failure::message(Exit::BadConfig, format!("the token of the server {error}"))
        })?;
        Ok(Self { server, ..self })
    }

    pub(super) fn has_token(&self) -> bool {
        self.server.has_token()
    }

    pub(super) fn config(&self) -> Option<&Config> {
        self.config.as_deref()
    }

    /// Submits a job, or only tries it out.
    pub(super) async fn submit(
        &self,
        job: &Bytes,
        list: Option<&List>,
        options: &SubmitOptions,
        retry: Retry,
    ) -> Result<Submitted, Failure> {
        let server = self.server.clone().with_retry(retry);
        let submitted = server.submit_json(job.clone(), list, options).await;
        submitted.map_err(|error| self.failure(error))
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
            return Err(self.refused(&Refused::of(&reply)));
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
            _ => Err(self.refused(&Refused::of(&reply))),
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
            _ => Err(self.refused(&Refused::of(&reply))),
        }
    }

    /// Gets a JSON answer that every server of this version has.
    pub(super) async fn existing<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let found = self.get(path).await?;
        found.ok_or_else(|| {
            let what = format!("{} has no {path}: is it an older version?", self.base());
            Failure::message(Exit::Unavailable, what)
        })
    }

    pub(super) async fn ask(&self, question: Question<'_>) -> Result<HttpReply, Failure> {
        let reply = self.server.ask(question).await;
        reply.map_err(|error| self.failure(error))
    }

    /// Gets a long answer, and passes it to `each` in pieces until that breaks it off.
    pub(super) async fn download(
        &self,
        path: &str,
        each: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        let question = Question {
            accept: "*/*",
            ..Question::new(Method::GET, path)
        };
        let request = self.server.request(question);
        let request = request.map_err(|error| self.failure(error))?;
        let client = self.server.client();
        let reply = client.download(request, DOWNLOAD_PATIENCE, each).await;
        let reply = reply.map_err(|error| match error {
            SendError::NotSent { .. } => self.unreached(&error),
            SendError::Unknown { what, .. } => {
                Failure::message(Exit::Unavailable, format!("{}: {what}", self.base()))
            }
        })?;
        match reply.status {
            200 => Ok(()),
            _ => Err(self.refused(&Refused::of(&reply))),
        }
    }

    fn base(&self) -> &str {
        self.server.base()
    }

    fn failure(&self, error: Error) -> Failure {
        match error {
            Error::NoAnswer { source, .. } => self.unreached(&source),
            Error::Refused { refused, .. } => self.refused(&refused),
            Error::Unreadable { source, .. } => Failure::new(Exit::Unavailable, source),
            error @ (Error::NotARequest(_) | Error::List(_) | Error::UnknownJob(_)) => {
                Failure::new(Exit::BadInput, error)
            }
        }
    }

    fn unreached(&self, error: &SendError) -> Failure {
        let hint = match self.config {
            Some(_) => {
                "is `fanwise serve` running there? (or name a server with --server, or set broker.url and \
                 ledger.url)"
            }
            None => "is it the address of a `fanwise serve` or `fanwise gateway`?",
        };
        let what = format!("{}: {error}; {hint}", self.base());
        Failure::message(Exit::Unavailable, what)
    }

    /// Turns an answer other than success into a failure, with the text of its problem document.
    pub(super) fn refused(&self, refused: &Refused) -> Failure {
        let status = refused.status;
        let Some(problem) = &refused.problem else {
            let what = format!(
                "{}: the server there is not fanwise; it answers {status}: {}",
                self.base(),
                shorten(&refused.body, 100)
            );
            return Failure::message(Exit::Unavailable, what);
        };
        let (exit, what) = match status {
            400 | 413 | 415 | 422 => (Exit::BadInput, "refused"),
            403 => (Exit::NotPermitted, "not permitted"),
            409 => (Exit::BadInput, "conflict"),
            401 => return self.unknown_caller(),
            404 => (Exit::Unavailable, "not found"),
            // It asks to come again.
            429 | 503 => (Exit::Temporary, "not accepted"),
            _ => (Exit::Unavailable, "not accepted"),
        };
        Failure::message(exit, format!("{what}: {}", problem.detail))
    }

    /// The server's own text is for authors of HTTP clients.
    fn unknown_caller(&self) -> Failure {
        let found = match self.server.has_token() {
            true => "refuses the token",
            false => "wants a token, and none is given",
        };
        let hint = match self.config {
            Some(_) => {
                "set gateway.token to the gateway's own (FANWISE_GATEWAY__TOKEN, or token_file), or give \
                 an app's with --token-file"
            }
            None => "give it with --token-file or FANWISE_TOKEN",
        };
        let what = format!("{} {found}: {hint}", self.base());
        Failure::message(Exit::BadConfig, what)
    }
}

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
