//! Connects commands to the system: to RabbitMQ and Redis directly if a broker is configured,
//! otherwise to the HTTP interface of a running `fanwise serve` or `fanwise gateway`.

mod control;
mod names;
mod recipients;
mod server;
mod stored;
mod submit;

use std::collections::BTreeSet;
use std::ops::ControlFlow;

pub(super) use self::names::known;
pub(super) use self::server::ServerAddress;
use http::Method;

use self::server::{JSON, NDJSON, Question, Server, encoded, parameters, query};
pub(super) use self::submit::{Accepted, Submission, Upload};
use crate::amqp::Rabbit;
use crate::app::{self, LocalAdmission, Names};
use crate::clock::now_ms;
use crate::config::Config;
use crate::domain::fields::summary;
use crate::domain::ids::JobId;
use crate::domain::letters::{DeadFilter, DeadRow, LetterFilter, Window, milliseconds};
use crate::exit::{Exit, Failure, OrExit as _};
use crate::ports::{
    Broker as _, JobFilter, JobQuery, JobRecord, Ledger as _, RetainedMessage, RetainedQueue,
    RetainedQueues as _, Session as _,
};
use crate::service::api::{
    JobDetail, KeptLine, PurgeRequest, RecipientFate, RedriveRequest, Verification,
};
use crate::service::control::{DirectiveNote, Facts, Reader, note_resolved};
use crate::service::dead_letters::{
    self, ACCEPT_PATIENCE, LedgerView, Purged, Redrive, Redriven, ResolveAs, Resolved,
};
use crate::service::jobs;
use crate::store::Store;

pub(super) enum Access {
    Direct(Box<Direct>),
    Server(Server),
}

/// RabbitMQ and Redis, with the configuration that a gateway process has.
pub(super) struct Direct {
    broker: Rabbit,
    ledger: Option<Store>,
    config: Config,
    facts: Facts,
}

/// The trace context that the calling shell has set.
#[expect(
    clippy::disallowed_methods,
    reason = "it belongs to the call, not to the configuration"
)]
fn traceparent() -> Option<String> {
    std::env::var("TRACEPARENT").ok()
}

impl Access {
    pub(super) fn of(config: &Config) -> Result<Self, Failure> {
        if config.broker.url.is_none() {
            return Ok(Self::Server(Server::of(config)?));
        }
        let ledger = match config.ledger.url {
            None => None,
            Some(_) => Some(app::ledger(config)?),
        };
        Ok(Self::Direct(Box::new(Direct {
            broker: app::broker(config)?,
            ledger,
            config: config.clone(),
            facts: app::facts(config)?,
        })))
    }

    /// The server at this address, without any configuration.
    pub(super) fn at(address: ServerAddress) -> Result<Self, Failure> {
        Ok(Self::Server(Server::at(address)?))
    }

    /// The configuration of this machine, if that is where the command works.
    pub(super) fn config(&self) -> Option<&Config> {
        match self {
            Self::Direct(direct) => Some(&direct.config),
            Self::Server(server) => server.config(),
        }
    }

    /// The key for the fingerprints of recipients, if this command cuts lists itself.
    pub(super) fn fingerprint_secret(&self) -> Option<&str> {
        match self {
            Self::Direct(direct) => Some(direct.fingerprint_secret()),
            Self::Server(_) => None,
        }
    }

    /// A job; also `None` if there is no ledger to ask.
    pub(super) async fn job_if_known(&self, job: JobId) -> Result<Option<JobRecord>, Failure> {
        match self {
            Self::Direct(direct) if direct.ledger.is_none() => Ok(None),
            _ => self.job(job).await,
        }
    }

    pub(super) async fn job(&self, job: JobId) -> Result<Option<JobRecord>, Failure> {
        match self {
            Self::Direct(direct) => direct.job(job).await,
            Self::Server(server) => server.get(&format!("/v1/jobs/{job}")).await,
        }
    }

    /// A job with its speed, and what keeps it from going faster.
    pub(super) async fn detail(&self, job: JobId) -> Result<Option<JobDetail>, Failure> {
        match self {
            Self::Direct(direct) => {
                let Some(record) = direct.job(job).await? else {
                    return Ok(None);
                };
                let detail = jobs::detail(
                    direct.ledger()?,
                    &direct.facts,
                    record,
                    Reader::Administrator,
                )
                .await;
                detail.map(Some).or_exit(Exit::Unavailable)
            }
            Self::Server(server) => server.get(&format!("/v1/jobs/{job}")).await,
        }
    }

    /// The jobs that match the filter, newest first, at most `most`.
    pub(super) async fn jobs(
        &self,
        filter: &JobFilter,
        most: usize,
    ) -> Result<Vec<JobDetail>, Failure> {
        let mut jobs: Vec<JobDetail> = Vec::new();
        let mut next: Option<String> = None;
        while jobs.len() < most {
            let page = (most - jobs.len()).min(jobs::LIST_MAX);
            let list = match self {
                Self::Direct(direct) => {
                    let query = JobQuery {
                        filter: filter.clone(),
                        after: next.as_deref().and_then(jobs::read_cursor),
                        most: page,
                    };
                    let list = jobs::page(direct.ledger()?, &direct.facts, query).await;
                    list.or_exit(Exit::Unavailable)?
                }
                Self::Server(server) => server.jobs(filter, page, next.as_deref()).await?,
            };
            jobs.extend(list.jobs);
            next = list.next;
            if next.is_none() {
                break;
            }
        }
        Ok(jobs)
    }

    /// The state of one recipient and the reason for it; `None` if there is no such job.
    pub(super) async fn recipient(
        &self,
        job: JobId,
        user: &str,
    ) -> Result<Option<RecipientFate>, Failure> {
        match self {
            Self::Direct(direct) => {
                let Some(record) = direct.job(job).await? else {
                    return Ok(None);
                };
                let secret = direct.fingerprint_secret();
                let ledger = direct.ledger()?;
                let fate = jobs::recipient(ledger, &direct.broker, secret, &record, user).await;
                fate.map(Some).or_exit(Exit::Unavailable)
            }
            Self::Server(server) => {
                let user = encoded(user);
                server
                    .get(&format!("/v1/jobs/{job}/recipients/{user}"))
                    .await
            }
        }
    }

    pub(super) async fn verify(&self, job: JobId) -> Result<Option<Verification>, Failure> {
        match self {
            Self::Direct(direct) => {
                let store = direct.ledger()?;
                let Some(record) = store.job(job).await.or_exit(Exit::Unavailable)? else {
                    return Ok(None);
                };
                let ledger = store.audit(&record).await.or_exit(Exit::Unavailable)?;
                let differences = jobs::differences(&record, &ledger);
                Ok(Some(Verification {
                    record,
                    ledger,
                    differences,
                }))
            }
            Self::Server(server) => server.get(&format!("/v1/jobs/{job}/verification")).await,
        }
    }

    /// The recipients of all dead letters that match the filter, each with its latest letter.
    pub(super) async fn dead(
        &self,
        filter: &DeadFilter,
        with_content: bool,
    ) -> Result<Vec<DeadRow>, Failure> {
        match self {
            Self::Direct(direct) => direct.dead(filter, with_content).await,
            Self::Server(server) => {
                let mut parameters = parameters(filter)?;
                if with_content {
                    parameters.push(("content".to_owned(), "true".to_owned()));
                }
                let path = format!("/v1/dead{}", query(&parameters));
                let mut rows = Vec::new();
                let question = Question::new(Method::GET, &path);
                server.lines(question, |row| rows.push(row)).await?;
                Ok(latest(rows))
            }
        }
    }

    /// Creates new jobs from dead letters.
    pub(super) async fn redrive(&self, request: &RedriveRequest) -> Result<Redriven, Failure> {
        match self {
            Self::Direct(direct) => direct.redrive(request).await,
            Self::Server(server) => server.post("/v1/dead:redrive", request).await,
        }
    }

    /// Removes dead letters permanently.
    pub(super) async fn purge(&self, request: &PurgeRequest) -> Result<Purged, Failure> {
        match self {
            Self::Direct(direct) => {
                let wanted = checked(&request.filter)?;
                let purged = dead_letters::purge(&direct.broker, &wanted, request.dry_run).await;
                let purged = purged.or_exit(Exit::Unavailable)?;
                if purged.recipients == 0 {
                    direct.knows_names(&wanted).await?;
                }
                Ok(purged)
            }
            Self::Server(server) => server.post("/v1/dead:purge", request).await,
        }
    }

    /// Passes a copy of the embedded store to `each`, in pieces, until that breaks it off.
    pub(super) async fn backup(
        &self,
        each: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        match self {
            Self::Direct(_) => {
                let what = "the data is in RabbitMQ and Redis: back these up, see docs/backup.md";
                Err(Failure::message(Exit::Usage, what))
            }
            Self::Server(server) => server.download("/v1/backup", each).await,
        }
    }

    /// Passes every rejected message to `visit`, oldest first.
    pub(super) async fn rejected(
        &self,
        mut visit: impl FnMut(RetainedMessage) + Send,
    ) -> Result<(), Failure> {
        match self {
            Self::Direct(direct) => {
                let all = |message| {
                    visit(message);
                    ControlFlow::Continue(())
                };
                let read = direct.broker.read(RetainedQueue::Rejected, all).await;
                read.map(drop).or_exit(Exit::Unavailable)
            }
            Self::Server(server) => {
                let mut lines: Vec<KeptLine> = Vec::new();
                server
                    .lines(Question::new(Method::GET, "/v1/rejected"), |line| {
                        lines.push(line)
                    })
                    .await?;
                for line in lines {
                    visit(line.try_into().or_exit(Exit::Unavailable)?);
                }
                Ok(())
            }
        }
    }
}

/// Keeps the latest letter of each recipient of a job: dead letters are published at least once.
fn latest(rows: Vec<DeadRow>) -> Vec<DeadRow> {
    let mut window = Window::new(None, usize::MAX);
    for row in rows {
        let at = milliseconds(&row.last_attempt_at);
        window.put(row.key(), at, row);
    }
    window.finish().0.map(|(_, row)| row).collect()
}

/// Checks a filter. Relative times in it count back from now.
pub(super) fn checked(filter: &DeadFilter) -> Result<LetterFilter, Failure> {
    filter
        .check(now_ms())
        .map_err(|problems| Failure::message(Exit::Usage, summary(&problems)))
}

impl Direct {
    /// The key for the fingerprints of recipients.
    fn fingerprint_secret(&self) -> &str {
        self.config.ledger.fingerprint_secret.expose()
    }

    async fn dead(&self, filter: &DeadFilter, with_content: bool) -> Result<Vec<DeadRow>, Failure> {
        let wanted = checked(filter)?;
        let rows = dead_letters::all(&self.broker, &wanted, with_content).await;
        let rows = latest(rows.or_exit(Exit::Unavailable)?);
        if rows.is_empty() {
            self.knows_names(&wanted).await?;
        }
        let Some(store) = &self.ledger else {
            tracing::warn!(
                "ledger.url is not set: dead letters are shown unchecked, the ledger may contradict them"
            );
            return Ok(rows);
        };
        let view = LedgerView {
            store,
            secret: self.fingerprint_secret(),
        };
        view.correct(rows).await.or_exit(Exit::Unavailable)
    }

    async fn redrive(&self, request: &RedriveRequest) -> Result<Redriven, Failure> {
        let redrive = Redrive {
            wanted: checked(&request.filter)?,
            uncertain: request.uncertain,
            dry_run: request.dry_run,
            purge: request.purge,
            accept_within: ACCEPT_PATIENCE,
            priority: request.priority,
        };
        let admission = LocalAdmission::of(&self.config, self.ledger()?)?;
        let secret = self.fingerprint_secret();
        let session = self.broker.connect().await.or_exit(Exit::Unavailable)?;
        let publisher = session.publisher();
        let done = dead_letters::redrive(&self.broker, &publisher, &admission, secret, &redrive);
        let done = Box::pin(done).await;
        session.close().await;
        let done = done.or_exit(Exit::Unavailable)?;
        if done.is_empty() {
            self.knows_names(&redrive.wanted).await?;
        }
        Ok(done)
    }

    async fn resolve(
        &self,
        job: JobId,
        to: ResolveAs,
        named: Option<BTreeSet<String>>,
        note: &DirectiveNote,
    ) -> Result<Resolved, Failure> {
        let ledger = self.ledger()?;
        let record = ledger.job(job).await.or_exit(Exit::Unavailable)?;
        let record = record.ok_or_else(|| recipients::unknown(job))?;
        let admission = LocalAdmission::of(&self.config, ledger)?;
        let secret = self.fingerprint_secret();
        let session = self.broker.connect().await.or_exit(Exit::Unavailable)?;
        let publisher = session.publisher();
        let (broker, of) = (&self.broker, &record);
        let done = dead_letters::resolve(broker, &publisher, &admission, secret, of, to, named);
        let done = Box::pin(done).await;
        session.close().await;
        let done = done.or_exit(Exit::Unavailable)?;
        let noted = note_resolved(ledger, &record, to, &done, note, now_ms());
        noted.await.or_exit(Exit::Unavailable)?;
        Ok(done)
    }

    /// Fails if the filter names something that does not exist. Called when the filter finds
    /// nothing.
    async fn knows_names(&self, wanted: &LetterFilter) -> Result<(), Failure> {
        let names = Names::of(&self.config)?;
        let unknown = dead_letters::unknown(&names, self.ledger.as_ref(), wanted).await;
        match unknown.or_exit(Exit::Unavailable)? {
            Some(what) => Err(Failure::message(Exit::Unavailable, what)),
            None => Ok(()),
        }
    }

    fn ledger(&self) -> Result<&Store, Failure> {
        let missing = "ledger.url is missing: set it, or ledger.url_file, or FANWISE_LEDGER__URL";
        self.ledger
            .as_ref()
            .ok_or_else(|| Failure::message(Exit::BadConfig, missing))
    }

    async fn job(&self, job: JobId) -> Result<Option<JobRecord>, Failure> {
        self.ledger()?.job(job).await.or_exit(Exit::Unavailable)
    }
}
