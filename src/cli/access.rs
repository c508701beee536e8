//! How commands reach the system: RabbitMQ and Redis directly where they are configured, the HTTP
//! interface of a running `fanwise serve` or `fanwise gateway` otherwise.

use std::ops::ControlFlow;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Uri, header};

use super::form;
use crate::amqp::Rabbit;
use crate::app;
use crate::config::Config;
use crate::domain::fields::shorten;
use crate::domain::ids::JobId;
use crate::domain::lane::Priority;
use crate::exit::{Exit, Failure, OrExit as _};
use crate::gateway::{KeptLine, Verification};
use crate::im::http::{Client, ClientSettings};
use crate::ports::{
    Broker as _, JobRecord, KeptMessage, Ledger as _, Outgoing, Publisher as _, Reply, Request,
    Route, Session as _, Shelf, Shelves as _,
};
use crate::secret::Secret;
use crate::store::Store;

pub(super) enum Access {
    Direct {
        broker: Box<Rabbit>,
        ledger: Option<Store>,
    },
    Server(Server),
}

impl Access {
    pub(super) fn of(config: &Config) -> Result<Self, Failure> {
        if config.broker.url.expose().is_empty() {
            return Ok(Self::Server(Server::of(config)));
        }
        let ledger = if config.ledger.url.expose().is_empty() {
            None
        } else {
            Some(app::ledger(config)?)
        };
        Ok(Self::Direct {
            broker: Box::new(app::broker(config)?),
            ledger,
        })
    }

    /// Submits a job with the whole of a long list at once, where a server takes that; `Ok(false)`
    /// where there is none.
    pub(super) async fn upload(&self, priority: Priority, form: Vec<u8>) -> Result<bool, Failure> {
        let Self::Server(server) = self else {
            return Ok(false);
        };
        let traceparent = std::env::var("TRACEPARENT").ok();
        let trace = traceparent.as_deref();
        server
            .submit(priority, form::CONTENT_TYPE, form, trace)
            .await?;
        Ok(true)
    }

    /// Submits the messages of a job, one after the other; all of them are accepted when this is `Ok`.
    pub(super) async fn submit(
        &self,
        job: JobId,
        priority: Priority,
        bodies: Vec<Vec<u8>>,
    ) -> Result<(), Failure> {
        let traceparent = std::env::var("TRACEPARENT").ok();
        match self {
            Self::Server(server) => {
                for body in bodies {
                    server
                        .submit(priority, JSON, body, traceparent.as_deref())
                        .await?;
                }
            }
            Self::Direct { broker, .. } => {
                let session = broker.connect().await.or_exit(Exit::Unavailable)?;
                let publisher = session.publisher();
                for (number, body) in (1..).zip(bodies) {
                    let message = Outgoing {
                        route: Route::Job(priority),
                        body: body.into(),
                        message_id: format!("{job}/{number}"),
                        traceparent: traceparent.clone(),
                    };
                    // One at a time: a message of megabytes is its own batch.
                    publisher
                        .publish(vec![message])
                        .await
                        .or_exit(Exit::Unavailable)?;
                }
                session.close().await;
            }
        }
        Ok(())
    }

    pub(super) async fn job(&self, job: JobId) -> Result<Option<JobRecord>, Failure> {
        match self {
            Self::Direct { ledger, .. } => {
                needed(ledger)?.job(job).await.or_exit(Exit::Unavailable)
            }
            Self::Server(server) => server.get(&format!("/v1/jobs/{job}")).await,
        }
    }

    pub(super) async fn jobs(&self, most: usize) -> Result<Vec<JobRecord>, Failure> {
        match self {
            Self::Direct { ledger, .. } => {
                needed(ledger)?.jobs(most).await.or_exit(Exit::Unavailable)
            }
            Self::Server(server) => Ok(server
                .get(&format!("/v1/jobs?most={most}"))
                .await?
                .unwrap_or_default()),
        }
    }

    pub(super) async fn verify(&self, job: JobId) -> Result<Option<Verification>, Failure> {
        match self {
            Self::Direct { ledger, .. } => {
                let store = needed(ledger)?;
                let Some(record) = store.job(job).await.or_exit(Exit::Unavailable)? else {
                    return Ok(None);
                };
                let ledger = store.audit(&record).await.or_exit(Exit::Unavailable)?;
                let differences = ledger.differences(&record.accounts);
                Ok(Some(Verification {
                    record,
                    ledger,
                    differences,
                }))
            }
            Self::Server(server) => server.get(&format!("/v1/jobs/{job}/verification")).await,
        }
    }

    /// Shows every message on a shelf to `visit`, the oldest first.
    pub(super) async fn read(
        &self,
        shelf: Shelf,
        mut visit: impl FnMut(KeptMessage) + Send,
    ) -> Result<(), Failure> {
        match self {
            Self::Direct { broker, .. } => {
                let all = |message| {
                    visit(message);
                    ControlFlow::Continue(())
                };
                broker
                    .read(shelf, all)
                    .await
                    .map(drop)
                    .or_exit(Exit::Unavailable)
            }
            Self::Server(server) => {
                let path = match shelf {
                    Shelf::Dead => "/v1/dead",
                    Shelf::Rejected => "/v1/rejected",
                };
                let reply = server
                    .ask(Method::GET, path, None, Bytes::new(), None)
                    .await?;
                if reply.status != 200 {
                    return Err(refused(&reply));
                }
                for line in reply
                    .body
                    .split(|byte| *byte == b'\n')
                    .filter(|line| !line.is_empty())
                {
                    let line: KeptLine = serde_json::from_slice(line).or_exit(Exit::Unavailable)?;
                    visit(line.try_into().or_exit(Exit::Unavailable)?);
                }
                Ok(())
            }
        }
    }
}

fn needed(ledger: &Option<Store>) -> Result<&Store, Failure> {
    let missing = "ledger.url is missing: give it, ledger.url_file, or FANWISE_LEDGER__URL";
    ledger
        .as_ref()
        .ok_or_else(|| Failure::message(Exit::BadConfig, missing))
}

/// The HTTP interface of a running process.
pub(super) struct Server {
    base: String,
    token: Option<Secret>,
    client: Client,
}

const JSON: &str = "application/json";
/// Longest wait for an answer; the shelves may be long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest answer: a million dead letters.
const ANSWER_BYTES_MAX: usize = 1 << 30;

impl Server {
    fn of(config: &Config) -> Self {
        let mut listen = config.gateway.listen;
        if listen.ip().is_unspecified() {
            listen.set_ip([127, 0, 0, 1].into());
        }
        let settings = ClientSettings {
            reply_bytes_max: ANSWER_BYTES_MAX,
            ..ClientSettings::defaults()
        };
        Self {
            base: format!("http://{listen}"),
            token: config.gateway.token.clone(),
            client: Client::new(settings),
        }
    }

    async fn submit(
        &self,
        priority: Priority,
        kind: &'static str,
        body: Vec<u8>,
        traceparent: Option<&str>,
    ) -> Result<(), Failure> {
        let path = format!("/v1/jobs?priority={}", priority.as_str());
        let reply = self
            .ask(Method::POST, &path, Some(kind), body.into(), traceparent)
            .await?;
        if (200..300).contains(&reply.status) {
            Ok(())
        } else {
            Err(refused(&reply))
        }
    }

    /// A JSON answer; nothing where the server says 404.
    async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<Option<T>, Failure> {
        let reply = self
            .ask(Method::GET, path, None, Bytes::new(), None)
            .await?;
        match reply.status {
            200 => serde_json::from_slice(&reply.body)
                .map(Some)
                .or_exit(Exit::Unavailable),
            404 => Ok(None),
            _ => Err(refused(&reply)),
        }
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        kind: Option<&'static str>,
        body: Bytes,
        traceparent: Option<&str>,
    ) -> Result<Reply, Failure> {
        let uri: Uri = format!("{}{path}", self.base)
            .parse()
            .or_exit(Exit::Internal)?;
        let mut headers = HeaderMap::new();
        let kind = kind.map(|kind| (header::CONTENT_TYPE, HeaderValue::from_static(kind)));
        headers.extend(kind);
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
        let request = Request {
            method,
            uri,
            headers,
            body,
        };
        self.client.send(request, PATIENCE).await.map_err(|error| {
            let what = format!(
                "{}: {error}; is `fanwise serve` running there? (or set broker.url and ledger.url)",
                self.base
            );
            Failure::message(Exit::Unavailable, what)
        })
    }
}

/// An answer that is no success, with the words of its problem document.
fn refused(reply: &Reply) -> Failure {
    let problem: serde_json::Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let text = String::from_utf8_lossy(&reply.body);
    let detail = problem["detail"]
        .as_str()
        .map_or_else(|| shorten(&text, 300), Into::into);
    let (exit, what) = match reply.status {
        400 | 413 | 415 | 422 => (Exit::BadInput, "refused"),
        409 => (Exit::BadInput, "conflict"),
        401 => (Exit::BadConfig, "gateway.token is missing or wrong"),
        _ => (Exit::Unavailable, "not accepted"),
    };
    Failure::message(exit, format!("{what}: {detail}"))
}
