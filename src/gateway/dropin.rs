//! Drop-in endpoints: turn requests of existing callers of an IM system into jobs, and answer with
//! the result of each recipient.
//!
//! The system's adapter (`im::ingress`) says what a request means and how answers and refusals
//! look: a caller only ever gets answers of its system. This module reads the jobs as any job is
//! read, and counts all of them together before it publishes the first. It makes them durable and
//! waits for them up to the endpoint's bound; then it answers with what it knows. If the jobs do
//! not move, because their target is parked or an operator has paused them, and no recipient has
//! got anything yet, it answers "busy" in the system's terms.
//!
//! A request without a key of its own is recognised by its content: within the endpoint's window
//! the same request names the same job, at any gateway, since the ledger is asked for it. A caller
//! that was answered "busy" repeats its request later than that: this gateway recognises the
//! request until its job is completed.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, header};
use axum::response::Response;
use axum::routing::any;
use bytes::Bytes;
use parking_lot::Mutex;

use super::access::Caller;
use super::body::{self, patient, uncompressed};
use super::problem::RETRY_AFTER_SECONDS;
use super::submit::BODY_BYTES_MAX;
use super::{Gateway, Open, PublisherOf};
use crate::clock::now_ms;
use crate::domain::accounts::Accounts;
use crate::domain::audience::fold;
use crate::domain::fields::{Problem, summary};
use crate::domain::ids::{Fingerprint, Fingerprinter, JobId, digest_hex};
use crate::domain::job::{Context as _, JobDocument, MessageDocument};
use crate::domain::lane::Priority;
use crate::domain::limits::{Grant, Tat};
use crate::domain::mapping::Strictness;
use crate::domain::outcome::{Outcome, RefusalKind};
use crate::domain::placeholders::as_it_stands;
use crate::error::chain;
use crate::http::server::Peer;
use crate::im::ingress::{
    AllUsersReport, DropInEndpoint, DropInJob, DropInRequest, Incoming, Ingress, JobReport,
    NONCE_LIVES, RecipientReport, Refusal, Spoken, WrongCredentials,
};
use crate::metrics::LedgerStep;
use crate::ports::{
    Broker, ClaimState, JobState, LedgerError, Outgoing, Reason, RetainedQueues, Route, Store,
    Transport,
};
use crate::runtime::Context;
use crate::service::admission::{Examined, Refused, agree, allow, charge, examine};
use crate::service::control::{self, Cause};

/// The header that names the jobs of a request.
const JOB_HEADER: &str = "fanwise-job";

/// The header with the number of those jobs.
const JOBS_HEADER: &str = "fanwise-jobs";

/// The header with the number of recipients that have no outcome yet: the answers of the systems
/// have no field for it.
const PENDING_HEADER: &str = "fanwise-pending";

/// Most jobs that are named: clients and proxies take heads of 4 KiB, and an id has 26 bytes with
/// its comma.
const JOBS_NAMED: usize = 100;

/// Time between two readings of a request's jobs: short at first, for small jobs.
const LOOK_MIN: Duration = Duration::from_millis(5);
const LOOK_MAX: Duration = Duration::from_millis(100);

/// When to ask again after a job that does not move; an operator may end that at any moment.
const AGAIN_MIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// The advice for a request that is too large.
const FEWER: &str = "send to fewer recipients at a time";

/// The drop-in endpoints of one system.
pub struct DropInSystem {
    system: &'static str,
    ingress: Box<dyn Ingress>,
    endpoints: Vec<DropInEndpoint>,
    /// The system that each target is an account of: native fields go only to a target of their
    /// system.
    systems: HashMap<String, &'static str>,
    quotas: Mutex<HashMap<usize, Quota>>,
    stuck: Mutex<Stuck>,
}

/// Requests without a key of their own that were answered "busy": the keys of their jobs, by the
/// digests of their content.
#[derive(Default)]
struct Stuck {
    keys: HashMap<String, String>,
    /// The digests, oldest first.
    digests: VecDeque<String>,
}

impl Stuck {
    /// Most requests that are remembered; about 200 bytes each.
    const MAX: usize = 10_000;

    fn remember(&mut self, content: &str, key: &str) {
        let known = self.keys.insert(content.to_owned(), key.to_owned());
        if known.is_none() {
            self.digests.push_back(content.to_owned());
        }
        if self.digests.len() > Self::MAX
            && let Some(oldest) = self.digests.pop_front()
        {
            self.keys.remove(&oldest);
        }
    }
}

/// The calls of one endpoint.
#[derive(Default)]
struct Quota {
    tat: Tat,
    blocked_until_ms: u64,
}

impl DropInSystem {
    pub fn new(
        system: &'static str,
        ingress: Box<dyn Ingress>,
        endpoints: Vec<DropInEndpoint>,
        systems: HashMap<String, &'static str>,
    ) -> Self {
        Self {
            system,
            ingress,
            endpoints,
            systems,
            quotas: Mutex::default(),
            stuck: Mutex::default(),
        }
    }

    /// The key of the job for which a request with this content was answered "busy".
    fn stuck_key(&self, content: &str) -> Option<String> {
        let stuck = self.stuck.lock();
        stuck.keys.get(content).cloned()
    }

    fn remember(&self, prepared: &[Prepared]) {
        let mut stuck = self.stuck.lock();
        for job in prepared {
            if let Some(content) = &job.content {
                stuck.remember(content, &job.job.asked.client_msg_no);
            }
        }
    }

    /// How long a call must wait; `None` if it may come in.
    fn over_quota(&self, index: usize) -> Option<Duration> {
        let endpoint = &self.endpoints[index];
        let rate = endpoint.rate?;
        let now = now_ms();
        let mut quotas = self.quotas.lock();
        let quota = quotas.entry(index).or_default();
        if quota.blocked_until_ms > now {
            return Some(Duration::from_millis(quota.blocked_until_ms - now));
        }
        match quota.tat.lease(&rate, now * 1000, 1, Duration::ZERO) {
            Grant::Units { .. } => None,
            Grant::Later { .. } => {
                quota.blocked_until_ms = now + endpoint.block_for.as_millis() as u64;
                Some(endpoint.block_for)
            }
        }
    }

    /// The document of a job of this endpoint, as a producer would write it.
    fn document(
        &self,
        endpoint: &DropInEndpoint,
        target: &str,
        wanted: &DropInJob,
        key: &str,
    ) -> JobDocument {
        let same_system = self.systems.get(target) == Some(&self.system);
        let message = MessageDocument {
            native: wanted.native.clone().filter(|_| same_system),
            ..wanted.message.clone()
        };
        // The system of the caller has no placeholders.
        let message = as_it_stands(message, &wanted.options);
        JobDocument {
            app: Some(endpoint.app.clone()),
            target: Some(target.to_owned()),
            sender: wanted.sender.clone(),
            options: Some(wanted.options.clone()),
            priority: Some(Priority::Normal),
            // The caller knows its own system, not the one that delivers.
            mapping: Some(Strictness::Lenient),
            confirm_all: wanted.audience.all.then_some(true),
            ..JobDocument::new(key, wanted.audience.clone(), message)
        }
    }
}

/// Two jobs of one request with the same key must have the same content: the intake would refuse
/// the second one after its caller was told that it is accepted.
fn agree_with_each_other(prepared: &[Prepared]) -> bool {
    let mut digests = HashMap::new();
    prepared.iter().all(|Prepared { job, .. }| {
        let first = digests.entry(job.id).or_insert(&job.content_digest);
        **first == job.content_digest
    })
}

/// A job of a request, ready to be published.
struct Prepared {
    job: Examined,
    body: Bytes,
    /// The recipients as the caller wrote them.
    recipients: Vec<String>,
    fingerprints: Vec<Fingerprint>,
    folds_case: bool,
    /// Digest of the request, if the key is made from it.
    content: Option<String>,
}

impl Prepared {
    /// Whether it names no recipients, because it is for all users; only the target knows them.
    fn is_for_all(&self) -> bool {
        self.recipients.is_empty()
    }
}

pub(super) fn routes<B, S, T>(systems: &[Arc<DropInSystem>]) -> Router<Arc<Gateway<B, S, T>>>
where
    B: Broker + RetainedQueues,
    S: Store,
    T: Transport,
{
    let mut router = Router::new();
    for system in systems.iter().filter(|system| !system.endpoints.is_empty()) {
        for path in system.ingress.paths() {
            let system = Arc::clone(system);
            let serve = move |State(gateway): State<Arc<Gateway<B, S, T>>>, request: Request| {
                let system = Arc::clone(&system);
                async move { serve(&gateway, &system, request).await }
            };
            router = router.route(path, any(serve));
        }
    }
    router
}

async fn serve<B: Broker, S: Store, T: Transport>(
    gateway: &Gateway<B, S, T>,
    system: &DropInSystem,
    request: Request,
) -> Response {
    let taken = take(gateway, system, request).await;
    taken.unwrap_or_else(|failure| failure.response(&*system.ingress))
}

/// Longest body of a request whose head does not say who sends it: a login.
const LOGIN_BYTES_MAX: usize = 64 * 1024;

/// The explanation for a login that is too large.
const NO_LOGIN: &str = "no login has as many";

/// Takes a request and carries it out. A request is refused by its head before its body is waited
/// for.
async fn take<B: Broker, S: Store, T: Transport>(
    gateway: &Gateway<B, S, T>,
    system: &DropInSystem,
    request: Request,
) -> Result<Response, Failure> {
    if request.method() != Method::POST {
        return Err(Failure::WrongMethod(request.method().clone()));
    }
    uncompressed(request.headers())?;
    let peer = request.extensions().get::<Arc<Peer>>().cloned();
    let (head, body) = patient(request, gateway.patience).into_parts();
    let mut incoming = Incoming {
        path: head.uri.path(),
        headers: &head.headers,
        body: &[],
        now_ms: now_ms(),
    };
    let endpoint = match system.ingress.enter(&incoming, &system.endpoints) {
        Ok(endpoint) => endpoint.map(|index| &system.endpoints[index]),
        Err(spoken) => {
            gateway.answer_slowly(peer.as_deref()).await;
            return Ok(out(spoken));
        }
    };
    let Some(endpoint) = endpoint else {
        let network = peer.as_deref().map_or(NOWHERE, Peer::network);
        let _place = gateway.shares.stranger(network)?;
        let shares = &gateway.shares;
        let held = body::read(shares, &Caller::Nobody, body, LOGIN_BYTES_MAX, NO_LOGIN).await?;
        incoming.body = &held.bytes;
        return match system.ingress.read_request(&incoming, &system.endpoints) {
            Ok(_) => Err(Failure::Unreadable("a login is expected".to_owned())),
            Err(spoken) => {
                if spoken.extensions().get::<WrongCredentials>().is_some() {
                    gateway.answer_slowly(peer.as_deref()).await;
                }
                Ok(out(spoken))
            }
        };
    };
    match &endpoint.secret {
        Some(_) => peer.iter().for_each(|peer| peer.trust()),
        None => {
            let checked = gateway.hosts.check(&head.uri, &head.headers);
            checked.map_err(super::Refusal::from)?;
        }
    }
    let caller = Caller::App(endpoint.app.clone());
    let place = Arc::new(gateway.shares.place(&caller)?);
    let shares = &gateway.shares;
    let held = body::read(shares, &caller, body, BODY_BYTES_MAX, FEWER).await?;
    incoming.body = &held.bytes;
    let mut response = match system.ingress.read_request(&incoming, &system.endpoints) {
        Ok(asked) => carry_out(gateway, system, asked, &held.bytes).await?,
        Err(spoken) => out(spoken),
    };
    response.extensions_mut().insert(place);
    Ok(response)
}

/// The address of a request that came without a connection, as in tests.
const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Why a request is not carried out, with details.
enum Failure {
    WrongMethod(Method),
    Unreadable(String),
    Problems(Vec<Problem>),
    Conflict,
    TooOften(Duration),
    Replayed,
    Forbidden(String),
    Unavailable(String),
    /// Accepted, but its jobs do not move; the time says for how long it is no use to ask again.
    StandsStill(String, Duration),
}

impl Failure {
    /// Whether the same request may succeed later. If not, its nonce stays used, so that a third
    /// party that overheard the request cannot have it counted again.
    fn will_pass(&self) -> bool {
        matches!(self, Self::TooOften(_) | Self::Unavailable(_))
    }

    fn response(&self, ingress: &dyn Ingress) -> Response {
        let mut response = out(self.refuse(ingress));
        let headers = response.headers_mut();
        match self {
            Self::WrongMethod(_) => {
                headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
            }
            Self::Unavailable(_) => {
                let seconds = HeaderValue::from(RETRY_AFTER_SECONDS);
                headers.insert(header::RETRY_AFTER, seconds);
            }
            Self::StandsStill(_, after) => {
                let seconds = HeaderValue::from(after.as_secs());
                headers.insert(header::RETRY_AFTER, seconds);
            }
            _ => {}
        }
        response
    }

    fn refuse(&self, ingress: &dyn Ingress) -> Spoken {
        ingress.refuse(&match self {
            Self::WrongMethod(method) => {
                let what = format!("{method} is not supported here, use POST");
                return ingress.refuse(&Refusal::Unreadable(&what));
            }
            Self::Unreadable(what) => Refusal::Unreadable(what),
            Self::Problems(problems) => Refusal::Problems(problems),
            Self::Conflict => Refusal::Conflict,
            Self::TooOften(block) => Refusal::TooOften { block: *block },
            Self::Replayed => Refusal::Replayed,
            Self::Forbidden(what) => Refusal::Forbidden(what),
            Self::Unavailable(what) | Self::StandsStill(what, _) => Refusal::Unavailable(what),
        })
    }
}

impl From<LedgerError> for Failure {
    fn from(error: LedgerError) -> Self {
        Self::Unavailable(chain(&error))
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Problems(problems) => Self::Problems(problems),
            Refused::Conflict(_) => Self::Conflict,
            other => super::Refusal::from(other).into(),
        }
    }
}

impl From<super::Refusal> for Failure {
    fn from(refusal: super::Refusal) -> Self {
        use super::Refusal as Native;
        match refusal {
            Native::BadBody(_, what) => Self::Unreadable(what),
            Native::FromBrowser | Native::OtherHost(_) => Self::Forbidden(refusal.words().1),
            Native::Forbidden(problems) => Self::Forbidden(summary(&problems)),
            Native::Denied { text, .. } => Self::Forbidden(text),
            Native::TooOften { after, .. } => Self::TooOften(after),
            Native::Unavailable(what) => Self::Unavailable(what),
            other => {
                let (title, detail) = other.words();
                Self::Unavailable(format!("{title}: {detail}"))
            }
        }
    }
}

async fn carry_out<B: Broker, S: Store, T: Transport>(
    gateway: &Gateway<B, S, T>,
    system: &DropInSystem,
    asked: DropInRequest,
    body: &[u8],
) -> Result<Response, Failure> {
    let DropInRequest {
        endpoint: index,
        nonce,
        jobs,
        reply,
    } = asked;
    let endpoint = &system.endpoints[index];
    // Checked before anything is counted, so that the same request can come again.
    let open = gateway.open()?;
    // A signature covers neither path nor app, so endpoints with the same key share the nonces that
    // they have seen.
    let nonce =
        nonce.map(|nonce| format!("{} {nonce}", endpoint.key.as_deref().unwrap_or_default()));
    if let Some(nonce) = &nonce {
        first_time(gateway, nonce).await?;
    }
    let accepted = accept(gateway, system, index, &open, &jobs, body).await;
    let prepared = match accepted {
        Ok(prepared) => prepared,
        Err(failure) => {
            if let Some(nonce) = nonce.filter(|_| failure.will_pass()) {
                release_nonce(gateway, &nonce).await;
            }
            return Err(failure);
        }
    };
    let job_reports = wait(gateway, endpoint, &prepared).await;
    let mut response = match standstill(gateway, &job_reports).await {
        Some(failure) => {
            system.remember(&prepared);
            failure.response(&*system.ingress)
        }
        None => out(reply.render(&job_reports)),
    };
    name_jobs(&mut response, &prepared);
    let pending = HeaderValue::from(job_reports.iter().map(pending).sum::<usize>());
    response.headers_mut().insert(PENDING_HEADER, pending);
    Ok(response)
}

/// Makes the jobs of a request durable: all of them, or the request is refused.
async fn accept<B: Broker, S: Store, T: Transport>(
    gateway: &Gateway<B, S, T>,
    system: &DropInSystem,
    index: usize,
    open: &Open<PublisherOf<B>>,
    jobs: &[DropInJob],
    body: &[u8],
) -> Result<Vec<Prepared>, Failure> {
    let endpoint = &system.endpoints[index];
    if let Some(block) = system.over_quota(index) {
        return Err(Failure::TooOften(block));
    }
    gateway.count_request(&endpoint.app)?;
    if !endpoint.send_all && jobs.iter().any(|wanted| wanted.audience.all) {
        let what = "this app may not send to all users";
        return Err(Failure::Forbidden(what.to_owned()));
    }
    let mut prepared = Vec::with_capacity(jobs.len());
    for (number, wanted) in jobs.iter().enumerate() {
        prepared.push(prepare(gateway, system, endpoint, wanted, number, body).await?);
    }
    if !agree_with_each_other(&prepared) {
        return Err(Failure::Conflict);
    }
    let asked: Vec<_> = prepared.iter().map(|it| it.job.asked.clone()).collect();
    charge(gateway, &asked).await?;
    open.publish(prepared.iter().map(outgoing).collect())
        .await?;
    for job in &prepared {
        gateway.enter(&job.job.entry(job.job.recipients)).await;
    }
    Ok(prepared)
}

/// Refuses a signed request that came before, at any gateway.
async fn first_time<B: Broker, S: Store, T: Transport>(
    gateway: &Gateway<B, S, T>,
    nonce: &str,
) -> Result<(), Failure> {
    let context = &gateway.context;
    let is_new = context.store.is_new(nonce, NONCE_LIVES);
    match context.try_step(LedgerStep::Nonce, is_new).await? {
        true => Ok(()),
        false => Err(Failure::Replayed),
    }
}

/// Releases a nonce whose request was not accepted, so that the caller may send the same request
/// again. If that fails, the caller has to sign the request anew.
async fn release_nonce<B: Broker, S: Store, T: Transport>(gateway: &Gateway<B, S, T>, nonce: &str) {
    let context = &gateway.context;
    let given_back = context.store.release(nonce);
    if let Err(error) = context.try_step(LedgerStep::Nonce, given_back).await {
        tracing::debug!(error = %chain(&error), "a nonce stays used");
    }
}

/// Reads a job as the intake will, and checks that its app may send it and that its key does not
/// belong to another message.
async fn prepare<B: Broker, S: Store, T: Transport>(
    gateway: &Gateway<B, S, T>,
    system: &DropInSystem,
    endpoint: &DropInEndpoint,
    wanted: &DropInJob,
    number: usize,
    request: &[u8],
) -> Result<Prepared, Failure> {
    let context = &*gateway.context;
    let target = match &endpoint.target {
        Some(target) => target.clone(),
        None => context
            .default_target(&endpoint.app)
            .map_err(|what| Failure::Problems(vec![Problem::new("app", what)]))?,
    };
    let (key, content) = match &wanted.key {
        Some(key) => (key.clone(), None),
        None => {
            let content = content_digest(endpoint, number, request);
            let key = content_key(gateway, system, endpoint, wanted, &content).await?;
            (key, Some(content))
        }
    };
    let document = system.document(endpoint, &target, wanted, &key);
    let body = serde_json::to_vec(&document)
        .map_err(|error| Failure::Problems(vec![Problem::new("", error.to_string())]))?;
    let body = Bytes::from(body);
    let mut prepared = read(context, wanted, &body)?;
    if let Some(change) = allow(gateway, &prepared.job, &prepared.body).await? {
        prepared = read(context, wanted, &change.apply(&prepared.body)?)?;
    }
    prepared.content = content;
    agree(gateway, &prepared.job).await?;
    Ok(prepared)
}

/// Reads a job as the intake will.
fn read<S: Store, T: Transport>(
    context: &Context<S, T>,
    wanted: &DropInJob,
    body: &Bytes,
) -> Result<Prepared, Failure> {
    let job = examine(context, body, Some(Priority::Normal))?;
    let fingerprinter = Fingerprinter::new(&context.settings.fingerprint_secret, job.id);
    let folds_case = context.folds_case(&job.target);
    let recipients = named(wanted);
    let fingerprint = |id: &String| {
        let mut id = id.as_str().into();
        fold(&mut id, folds_case);
        fingerprinter.fingerprint(&id)
    };
    Ok(Prepared {
        fingerprints: recipients.iter().map(fingerprint).collect(),
        recipients,
        folds_case,
        content: None,
        body: body.clone(),
        job,
    })
}

/// The recipients that a request names.
fn named(wanted: &DropInJob) -> Vec<String> {
    let audience = &wanted.audience;
    let users = audience
        .users
        .iter()
        .flatten()
        .map(|user| user.id().to_owned());
    users
        .chain(audience.groups.iter().flatten().cloned())
        .collect()
}

/// The digest of the content of a request without a key of its own.
fn content_digest(endpoint: &DropInEndpoint, number: usize, request: &[u8]) -> String {
    digest_hex(
        &[endpoint.app.as_bytes(), &number.to_be_bytes(), request],
        16,
    )
}

/// The key of a request that brings none: that of the same request within the window, if it came
/// before, else a new one. Windows are numbered, so this looks at the previous one too.
async fn content_key<B: Broker, S: Store, T: Transport>(
    gateway: &Gateway<B, S, T>,
    system: &DropInSystem,
    endpoint: &DropInEndpoint,
    wanted: &DropInJob,
    content: &str,
) -> Result<String, Failure> {
    let record = async |key: &str| {
        let id = JobId::of(&endpoint.app, key);
        gateway.context.store.job(id).await
    };
    if let Some(stuck) = system.stuck_key(content)
        && record(&stuck)
            .await?
            .is_some_and(|it| it.state != JobState::Completed)
    {
        return Ok(stuck);
    }
    let now = now_ms();
    let window = endpoint.repeat_window.as_millis() as u64;
    let trace = wanted.trace.as_deref().unwrap_or_default().as_bytes();
    let key = |slot: u64| {
        let parts = [&slot.to_be_bytes(), trace, content.as_bytes()];
        format!("content-{}", digest_hex(&parts, 16))
    };
    if window == 0 {
        return Ok(key(fastrand::u64(..)));
    }
    let slot = now / window;
    let before = key(slot.saturating_sub(1));
    let repeats = record(&before)
        .await?
        .is_some_and(|record| now.saturating_sub(record.accepted_at_ms) <= window);
    Ok(if repeats { before } else { key(slot) })
}

fn outgoing(Prepared { job, body, .. }: &Prepared) -> Outgoing {
    Outgoing {
        route: Route::Job(Priority::Normal),
        body: body.clone(),
        message_id: format!("{}/{}", job.id, job.submission),
        traceparent: None,
    }
}

/// Waits for all jobs to settle, at most as long as the endpoint allows. What cannot be read is
/// reported as pending: the jobs are durable, whatever the ledger says now.
async fn wait<B: Broker, S: Store, T: Transport>(
    gateway: &Gateway<B, S, T>,
    endpoint: &DropInEndpoint,
    prepared: &[Prepared],
) -> Vec<JobReport> {
    let published_at_ms = now_ms();
    let deadline = Instant::now() + endpoint.answer_within;
    let mut job_reports = Vec::with_capacity(prepared.len());
    for job in prepared {
        let seen = settled(gateway, job, deadline).await;
        let seen = seen.unwrap_or_else(|| Seen {
            accepted_at_ms: published_at_ms,
            reports: vec![RecipientReport::Pending; job.recipients.len()],
            everybody: AllUsersReport {
                is_complete: false,
                accounts: Accounts::default(),
            },
        });
        job_reports.push(JobReport {
            job: job.job.id,
            client_msg_no: job.job.asked.client_msg_no.clone(),
            accepted_at_ms: seen.accepted_at_ms,
            recipients: job.recipients.iter().cloned().zip(seen.reports).collect(),
            folds_case: job.folds_case,
            everybody: job.is_for_all().then_some(seen.everybody),
        });
    }
    job_reports
}

/// A job as it is in the ledger.
struct Seen {
    /// When it was first accepted: a repeat of a request gets the same answer as the request.
    accepted_at_ms: u64,
    reports: Vec<RecipientReport>,
    everybody: AllUsersReport,
}

/// Reads a job until it is settled, or as it is at the deadline; `None` if it cannot be read.
async fn settled<B: Broker, S: Store, T: Transport>(
    gateway: &Gateway<B, S, T>,
    job: &Prepared,
    deadline: Instant,
) -> Option<Seen> {
    let mut pause = LOOK_MIN;
    loop {
        let late = Instant::now() >= deadline || gateway.stop.is_cancelled();
        match look(gateway, job, late).await {
            Ok(Some(seen)) => return Some(seen),
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(error = %chain(&error), "the outcome of a request is not known yet");
            }
        }
        if late {
            return None;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let pausing = tokio::time::sleep(pause.min(left));
        gateway.stop.run_until_cancelled(pausing).await;
        pause = (pause * 2).min(LOOK_MAX);
    }
}

/// A job and the reports about its recipients, once all of them have an outcome, or `anyway`.
async fn look<B: Broker, S: Store, T: Transport>(
    gateway: &Gateway<B, S, T>,
    job: &Prepared,
    anyway: bool,
) -> Result<Option<Seen>, LedgerError> {
    let store = &gateway.context.store;
    let Some(record) = store.job(job.job.id).await? else {
        return Ok(None);
    };
    let is_complete = record.state == JobState::Completed;
    let is_known = record.pending == 0 && (is_complete || !job.is_for_all());
    if !is_known && !anyway {
        return Ok(None);
    }
    let states = store.peek(&record, &job.fingerprints).await?;
    let settled = |state: &ClaimState| matches!(state, ClaimState::Settled(_));
    if !anyway && !states.iter().all(settled) {
        return Ok(None);
    }
    let reasons = if states.iter().any(|state| !is_sent(*state)) {
        store.reasons(job.job.id, &job.fingerprints).await?
    } else {
        vec![None; states.len()]
    };
    let target = gateway.context.targets.get(&record.target);
    let kind = |code: &str| target.map_or(RefusalKind::Other, |it| it.target.refusal_kind(code));
    let known = |(state, reason)| report(state, reason, kind);
    Ok(Some(Seen {
        accepted_at_ms: record.accepted_at_ms,
        reports: states.into_iter().zip(reasons).map(known).collect(),
        everybody: AllUsersReport {
            is_complete,
            accounts: record.accounts,
        },
    }))
}

/// The report about one recipient.
fn report(
    state: ClaimState,
    reason: Option<Reason>,
    kind: impl Fn(&str) -> RefusalKind,
) -> RecipientReport {
    match state {
        ClaimState::Settled(Outcome::Sent) => RecipientReport::Sent,
        ClaimState::Settled(outcome) => {
            let class = reason.as_ref().map(|reason| reason.class);
            let (code, text) = reason.map(|it| (it.code, it.text)).unwrap_or_default();
            RecipientReport::Ended {
                outcome,
                class,
                kind: kind(&code),
                code,
                text,
            }
        }
        ClaimState::Granted
        | ClaimState::InDoubt
        | ClaimState::TakenOver
        | ClaimState::Held { .. } => RecipientReport::Pending,
    }
}

fn is_sent(state: ClaimState) -> bool {
    state == ClaimState::Settled(Outcome::Sent)
}

/// Why the jobs of a request do not move, if that is known and no recipient has got anything yet.
/// An error gives no reason: the jobs are durable.
async fn standstill<B: Broker, S: Store, T: Transport>(
    gateway: &Gateway<B, S, T>,
    job_reports: &[JobReport],
) -> Option<Failure> {
    let reports = || job_reports.iter().flat_map(|it| &it.recipients);
    let somebody_got_it = reports().any(|(_, report)| *report == RecipientReport::Sent)
        || job_reports.iter().filter_map(|it| it.everybody).any(|it| {
            let accounts = &it.accounts;
            it.is_complete || accounts.sent + accounts.duplicate > 0
        });
    let waits = |job_report: &&JobReport| {
        let mut reports = job_report.recipients.iter();
        job_report.everybody.is_some()
            || reports.any(|(_, report)| *report == RecipientReport::Pending)
    };
    if somebody_got_it {
        return None;
    }
    let waiting = job_reports.iter().find(waits)?;
    match stop_of(gateway, waiting.job).await {
        Ok(why) => why,
        Err(error) => {
            tracing::debug!(error = %chain(&error), "whether a job moves is not known");
            None
        }
    }
}

/// The pause or the park that stops a job.
async fn stop_of<B: Broker, S: Store, T: Transport>(
    gateway: &Gateway<B, S, T>,
    job: JobId,
) -> Result<Option<Failure>, LedgerError> {
    let store = &gateway.context.store;
    let Some(record) = store.job(job).await? else {
        return Ok(None);
    };
    let now = now_ms();
    let found = control::hindrances(store, &gateway.facts, &record, now).await?;
    let stop = found.into_iter().find_map(|found| {
        let what = match found.cause {
            Cause::Paused => "it is paused",
            Cause::Parked => "it is parked",
            _ => return None,
        };
        let until = found.until.as_deref().unwrap_or_default();
        let after = until.parse().map_or(AGAIN_MAX, |end: jiff::Timestamp| {
            let left = end.as_millisecond().unsigned_abs().saturating_sub(now);
            Duration::from_millis(left).clamp(AGAIN_MIN, AGAIN_MAX)
        });
        let until = match until {
            "" => String::new(),
            until => format!(" until {until}"),
        };
        let why = format!(
            "accepted as job {job} and not sent yet: {what}{until}; the same request again is the same job"
        );
        Some(Failure::StandsStill(why, after))
    });
    Ok(stop)
}

/// Counts the named recipients without an outcome.
fn pending(job_report: &JobReport) -> usize {
    let reports = job_report.recipients.iter();
    reports
        .filter(|(_, report)| *report == RecipientReport::Pending)
        .count()
}

/// Names the jobs of a request in headers: the first ones, and how many there are.
fn name_jobs(response: &mut Response, prepared: &[Prepared]) {
    let headers = response.headers_mut();
    headers.insert(JOBS_HEADER, HeaderValue::from(prepared.len()));
    let first = prepared.iter().take(JOBS_NAMED);
    let ids: Vec<_> = first.map(|it| it.job.id.to_string()).collect();
    if let Ok(ids) = HeaderValue::try_from(ids.join(", ")) {
        headers.insert(JOB_HEADER, ids);
    }
}

fn out(spoken: Spoken) -> Response {
    spoken.map(Body::from)
}
