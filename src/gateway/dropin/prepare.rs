//! Prepares the jobs of a request: writes each as a producer would, reads it as the intake will,
//! and finds its key.
//!
//! A request without a key of its own is recognised by its content: within the endpoint's window
//! the same request names the same job, at any gateway, since the ledger is asked for it. A caller
//! that was answered "busy" repeats its request later than that: this gateway recognises the
//! request until its job is completed.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use super::DropInSystem;
use super::failure::Failure;
use crate::clock::now_ms;
use crate::domain::audience::fold;
use crate::domain::fields::Problem;
use crate::domain::ids::{Fingerprint, Fingerprinter, JobId, digest_hex};
use crate::domain::job::Context as _;
use crate::domain::lane::Priority;
use crate::gateway::Gateway;
use crate::im::ingress::{DropInEndpoint, DropInJob};
use crate::ports::{Broker, JobState, Outgoing, Route, Store, Transport};
use crate::runtime::Context;
use crate::service::admission::{Examined, agree, allow, examine};

/// Requests without a key of their own that were answered "busy": the keys of their jobs, by the
/// digests of their content.
#[derive(Default)]
pub(super) struct Stuck {
    pub(super) keys: HashMap<String, String>,
    /// The digests, oldest first.
    digests: VecDeque<String>,
}

impl Stuck {
    /// Most requests that are remembered; about 200 bytes each.
    const MAX: usize = 10_000;

    pub(super) fn remember(&mut self, content: &str, key: &str) {
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

/// Two jobs of one request with the same key must have the same content: the intake would refuse
/// the second one after its caller was told that it is accepted.
pub(super) fn agree_with_each_other(prepared: &[Prepared]) -> bool {
    let mut digests = HashMap::new();
    prepared.iter().all(|Prepared { job, .. }| {
        let first = digests.entry(job.id).or_insert(&job.content_digest);
        **first == job.content_digest
    })
}

/// A job of a request, ready to be published.
pub(super) struct Prepared {
    pub(super) job: Examined,
    pub(super) body: Bytes,
    /// The recipients as the caller wrote them.
    pub(super) recipients: Vec<String>,
    pub(super) fingerprints: Vec<Fingerprint>,
    pub(super) folds_case: bool,
    /// Digest of the request, if the key is made from it.
    pub(super) content: Option<String>,
}

impl Prepared {
    /// Whether it names no recipients, because it is for all users; only the target knows them.
    pub(super) fn is_for_all(&self) -> bool {
        self.recipients.is_empty()
    }
}

/// Reads a job as the intake will, and checks that its app may send it and that its key does not
/// belong to another message.
pub(super) async fn prepare<B: Broker, S: Store, T: Transport>(
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
    let mut prepared = examined(context, wanted, &body)?;
    if let Some(change) = allow(gateway, &prepared.job, &prepared.body).await? {
        prepared = examined(context, wanted, &change.apply(&prepared.body)?)?;
    }
    prepared.content = content;
    agree(gateway, &prepared.job).await?;
    Ok(prepared)
}

/// Reads a job as the intake will.
fn examined<S: Store, T: Transport>(
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

pub(super) fn outgoing(
    Prepared { job, body, .. }: &Prepared,
    traceparent: Option<&str>,
) -> Outgoing {
    Outgoing {
        route: Route::Job(Priority::Normal),
        body: body.clone(),
        message_id: format!("{}/{}", job.id, job.submission),
        traceparent: traceparent.map(str::to_owned),
    }
}
