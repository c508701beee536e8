//! Drop-in endpoints: turn requests of existing callers of an IM system into jobs, and answer with
//! the result of each recipient.
//!
//! The system's adapter (`im::ingress`) says what a request means and how answers and refusals
//! look: a caller only ever gets answers of its system. This module takes a request, makes its jobs
//! durable and waits for them up to the endpoint's bound; then it answers with what it knows.
//! [`mod@prepare`] reads the jobs as any job is read and finds their keys, [`results`] follows them
//! in the ledger, [`failure`] says why a request is not carried out.

mod failure;
mod prepare;
mod results;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method};
use axum::response::Response;
use axum::routing::any;
use parking_lot::Mutex;

use self::failure::Failure;
use self::prepare::{Prepared, Stuck, agree_with_each_other, outgoing, prepare};
use self::results::{pending, standstill, wait};
use super::access::Caller;
use super::body::{self, patient, uncompressed};
use super::submit::BODY_BYTES_MAX;
use super::{Gateway, Open, PublisherOf, spans};
use crate::clock::now_ms;
use crate::domain::job::{JobDocument, MessageDocument};
use crate::domain::lane::Priority;
use crate::domain::limits::{Grant, Tat};
use crate::domain::mapping::Strictness;
use crate::domain::placeholders::as_it_stands;
use crate::error::chain;
use crate::http::server::Peer;
use crate::im::ingress::{
    DropInEndpoint, DropInJob, DropInRequest, Incoming, Ingress, NONCE_LIVES, Spoken,
    WrongCredentials,
};
use crate::metrics::LedgerStep;
use crate::ports::{Broker, RetainedQueues, Store, Transport};
use crate::service::admission::{Admission as _, charge};

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
        Ok(asked) => carry_out(gateway, system, asked, &incoming).await?,
        Err(spoken) => out(spoken),
    };
    response.extensions_mut().insert(place);
    Ok(response)
}

/// The address of a request that came without a connection, as in tests.
const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

async fn carry_out<B: Broker, S: Store, T: Transport>(
    gateway: &Gateway<B, S, T>,
    system: &DropInSystem,
    asked: DropInRequest,
    incoming: &Incoming<'_>,
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
    let accepted = accept(gateway, system, index, &open, &jobs, incoming).await;
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
    incoming: &Incoming<'_>,
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
        prepared.push(prepare(gateway, system, endpoint, wanted, number, incoming.body).await?);
    }
    if !agree_with_each_other(&prepared) {
        return Err(Failure::Conflict);
    }
    let asked: Vec<_> = prepared.iter().map(|it| it.job.asked.clone()).collect();
    for job in &asked {
        gateway.has_room(&job.target)?;
    }
    charge(gateway, &asked).await?;
    let trace = spans::given(incoming.headers);
    let messages = prepared.iter().map(|job| outgoing(job, trace));
    open.publish(messages.collect()).await?;
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
