//! Whether a job may be accepted: the same steps for a job over HTTP, for an uploaded list, for a call
//! of a drop-in endpoint and for a job made of dead letters.
//!
//! 1. [`examine`]: it is a job, and its target can carry it;
//! 2. [`allow`]: the app's permissions, and `before_accept`, which may change what is said;
//! 3. [`agree`]: its key stands for no other message, and its stored message is there and fits;
//! 4. [`charge`]: what the app may still send today. This counts it, so it comes last: a job that is
//!    refused or only tried is not counted.
//!
//! [`consider`] takes all but the last for a job of several messages. Nothing here makes anything
//! durable. The intake takes all of them but `before_accept` once more, see [`admit`].

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::value::RawValue;

use super::before_accept::{
    BeforeAccept, Decision, Seen, Vars, changed, members, names_stored, pinned,
};
use crate::clock::{now, now_ms, today};
use crate::domain::fields::{Problem, summary};
use crate::domain::ids::JobId;
use crate::domain::job::{self, Job};
use crate::domain::lane::Priority;
use crate::domain::mapping::{Fit, Strictness};
use crate::domain::message::Content;
use crate::domain::permissions::{Asked, Permissions};
use crate::domain::slice::Head;
use crate::domain::template::{
    named_version, unknown_template, version_is_gone, with_template, with_version,
};
use crate::error::chain;
use crate::metrics::{AskedResult, LedgerStep};
use crate::ports::{
    Charged, Entry, JobRecord, Ledger, LedgerError, Quotas, Target, Templates, Transport, fit,
};

/// What the configuration says of apps and targets.
pub trait Rules: job::Context + Sync {
    /// Nothing if there is no such app.
    fn permissions(&self, app: &str) -> Option<&Permissions>;
    /// Nothing if there is no such target.
    fn target(&self, name: &str) -> Option<&dyn Target>;
}

/// What admission asks besides the configuration.
pub trait Admission: Sync {
    type Rules: Rules;
    type Store: Ledger + Templates + Quotas;
    type Transport: Transport;

    fn rules(&self) -> &Self::Rules;
    fn store(&self) -> &Self::Store;
    fn transport(&self) -> &Self::Transport;
    /// The endpoint that is asked about the jobs of an app.
    fn before_accept(&self, app: &str) -> Option<&BeforeAccept>;
    /// `before_accept` was asked.
    fn asked(&self, _result: AskedResult, _took: Duration) {}
    /// Carries out one step of the ledger; whoever counts them does it here.
    fn step<V: Send>(
        &self,
        _step: LedgerStep,
        act: impl Future<Output = Result<V, LedgerError>> + Send,
    ) -> impl Future<Output = Result<V, LedgerError>> + Send {
        act
    }
}

/// Why a job is not accepted.
#[derive(Debug)]
pub enum Refused {
    /// It is no job that can be sent, for all these reasons.
    Problems(Vec<Problem>),
    /// Its app may not, for all these reasons.
    Forbidden(Vec<Problem>),
    /// `before_accept` says no.
    Denied { code: String, text: String },
    /// The key stands for another message.
    Conflict(JobId),
    /// Neither accepted nor refused: try again.
    Undecided(String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Problems(problems) | Self::Forbidden(problems) => f.write_str(&summary(problems)),
            Self::Denied { code, text } => write!(f, "before_accept says no: {code} {text}"),
            Self::Conflict(job) => write!(f, "its key stands for another message, job {job}"),
            Self::Undecided(what) => f.write_str(what),
        }
    }
}

impl From<LedgerError> for Refused {
    fn from(error: LedgerError) -> Self {
        Self::Undecided(chain(&error))
    }
}

/// What a message of a job comes to.
#[derive(Debug)]
pub struct Examined {
    pub id: JobId,
    /// What its app must be allowed.
    pub asked: Asked,
    pub target: String,
    pub priority: Priority,
    pub content_digest: String,
    pub for_all: bool,
    /// The message is rendered for each recipient.
    pub personal: bool,
    pub recipients: u64,
    /// The values that recipients bring, for `before_accept`.
    pub vars: Vars,
    pub submission: String,
    pub warnings: Vec<String>,
    /// It names a stored message, which [`agree`] looks at.
    pub stored: Option<(Box<Head>, Strictness)>,
    pub not_before_ms: Option<u64>,
    /// Its time to be sent is over: it is refused, unless all of it came before.
    pub too_late: Option<Problem>,
}

impl Examined {
    /// What is entered into the ledger once the job is durable, with as many list entries.
    pub fn entry(&self, entries: u64) -> Entry {
        Entry {
            job: self.id,
            app: self.asked.app.clone(),
            client_msg_no: self.asked.client_msg_no.clone(),
            target: self.target.clone(),
            content_digest: self.content_digest.clone(),
            entries,
            not_before_ms: self.not_before_ms,
            now_ms: now_ms(),
        }
    }
}

/// Reads one message as the worker will.
pub fn examine(
    rules: &impl Rules,
    body: &[u8],
    priority: Option<Priority>,
) -> Result<Examined, Refused> {
    let job = Job::read(body, priority, rules, now()).map_err(Refused::Problems)?;
    examine_job(rules, &job, priority)
}

/// The same for a job that was read already.
pub fn examine_job(
    rules: &impl Rules,
    job: &Job<'_>,
    priority: Option<Priority>,
) -> Result<Examined, Refused> {
    let head = &job.head;
    let for_all = job.is_for_all();
    let stored = matches!(head.content, Content::Template(_))
        .then(|| (Box::new(head.clone()), job.strictness));
    let fit = match stored {
        Some(_) => Fit::default(),
        None => fits(rules, head, for_all, job.strictness)?,
    };
    Ok(Examined {
        stored,
        asked: Asked::of(job),
        id: head.id,
        target: head.target.clone(),
        priority: priority.unwrap_or(head.priority),
        content_digest: job.content_digest.clone(),
        for_all,
        personal: head.vars.is_some(),
        recipients: job.entries as u64,
        vars: Vars::of(job),
        submission: match for_all {
            true => "all".to_owned(),
            false => job.submission.clone(),
        },
        warnings: fit.warnings,
        not_before_ms: head.not_before_ms,
        too_late: job.too_late(now_ms()),
    })
}

/// What the target makes of a job, if it can carry it.
fn fits(
    rules: &impl Rules,
    head: &Head,
    for_all: bool,
    strictness: Strictness,
) -> Result<Fit, Refused> {
    let Some(target) = rules.target(&head.target) else {
        let what = format!("there is no target {:?}", head.target);
        return Err(Refused::Problems(vec![Problem::new("target", what)]));
    };
    let fit = fit(target, head, for_all, strictness);
    match fit.problems.is_empty() {
        true => Ok(fit),
        false => Err(Refused::Problems(fit.problems)),
    }
}

/// Whether the app's permissions allow a job, as far as it is known.
pub fn keeps_rules(rules: &impl Rules, asked: &Asked) -> Result<(), Refused> {
    let problems = permissions(rules, &asked.app)?.problems(asked);
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Refused::Forbidden(problems)),
    }
}

fn permissions<'a>(rules: &'a impl Rules, app: &str) -> Result<&'a Permissions, Refused> {
    rules.permissions(app).ok_or_else(|| {
        let what = format!("there is no app {app:?}");
        Refused::Problems(vec![Problem::new("app", what)])
    })
}

/// What `before_accept` says instead.
#[derive(Debug)]
pub struct Change {
    message: Option<Box<RawValue>>,
    options: Option<Box<RawValue>>,
}

impl Change {
    /// The job with it, and everything else as it was.
    pub fn apply(&self, document: &[u8]) -> Result<Bytes, Refused> {
        let changed = changed(document, self.message.as_deref(), self.options.as_deref());
        changed.map_err(|error| Refused::Undecided(error.to_string()))
    }
}

/// Lets a job pass as it is, or with the message that `before_accept` makes of it. `document` is the job
/// as JSON; it may lack the list, which stays as it is.
pub async fn allow<A: Admission>(
    admission: &A,
    job: &Examined,
    document: &[u8],
) -> Result<Option<Change>, Refused> {
    let asked = &job.asked;
    keeps_rules(admission.rules(), asked)?;
    let Some(hook) = admission.before_accept(&asked.app) else {
        return Ok(None);
    };
    let seen = seen(admission, asked, document).await?;
    let started = Instant::now();
    let stored = seen.as_ref().map(|seen| &*seen.message);
    let decided = hook.ask(admission.transport(), asked, document, stored, &job.vars);
    let decided = decided.await;
    let took = started.elapsed();
    let decided = decided.and_then(|decision| match decision {
        Decision::Allow => {
            // What was seen is what goes out, whatever is stored under its name meanwhile.
            let message = match &seen {
                Some(seen) => pinned(members(document)?.get("message").copied(), seen)?,
                None => None,
            };
            let change = message.map(|message| Change {
                message: Some(message),
                options: None,
            });
            Ok((AskedResult::Allow, Ok(change)))
        }
        Decision::Deny { code, text } => {
            Ok((AskedResult::Deny, Err(Refused::Denied { code, text })))
        }
        Decision::Change { message, options } => {
            let message = match &seen {
                // It may leave the message as it is, or name what it has seen.
                Some(seen) => {
                    let own = members(document)?.get("message").copied();
                    pinned(message.as_deref().or(own), seen)?.or(message)
                }
                None => message,
            };
            // One that cannot be put into the job is no decision.
            changed(document, message.as_deref(), options.as_deref())?;
            let change = Change { message, options };
            Ok((AskedResult::Change, Ok(Some(change))))
        }
    });
    let (result, decided) = decided.unwrap_or_else(|error| {
        let allowed = hook.allow_on_failure;
        tracing::warn!(job.app = asked.app, %error, allowed, "before_accept has not decided");
        let what = format!("before_accept of app {:?} has not decided", asked.app);
        let decided = match allowed {
            true => Ok(None),
            false => Err(Refused::Undecided(what)),
        };
        (AskedResult::Failed, decided)
    });
    admission.asked(result, took);
    decided
}

/// The stored message that a job names, in the version that it goes out in. One that is not there is
/// refused later on.
async fn seen<A: Admission>(
    admission: &A,
    asked: &Asked,
    document: &[u8],
) -> Result<Option<Seen>, Refused> {
    let Some(reference) = names_stored(document) else {
        return Ok(None);
    };
    let (name, meant) = named_version(&reference);
    let store = admission.store();
    let record = admission.step(LedgerStep::Look, store.job(asked.job));
    let started_with = record.await?.and_then(|record| record.template);
    let version = started_with.or(meant);
    let stored = store.template(&asked.app, name, version);
    let Some(stored) = admission.step(LedgerStep::Template, stored).await? else {
        return Ok(None);
    };
    let message = RawValue::from_string(stored.message).map_err(|error| {
        let what = format!("stored message {name:?} cannot be read: {error}");
        Refused::Undecided(what)
    })?;
    Ok(Some(Seen {
        reference: with_version(name, stored.version),
        name: name.to_owned(),
        message,
    }))
}

/// Makes sure that the key of a job stands for no other message, and that its stored message is there and
/// fits: the version that the job started with, or the newest one. Returns what is known of the job. Only
/// a hint, and early: the intake decides, and what loses a race is rejected there.
pub async fn agree<A: Admission>(
    admission: &A,
    job: &Examined,
) -> Result<Option<JobRecord>, Refused> {
    let store = admission.store();
    let before = admission.step(LedgerStep::Look, store.job(job.id)).await?;
    if let Some(record) = &before
        && conflicts(record, &job.content_digest)
    {
        return Err(Refused::Conflict(job.id));
    }
    if let Some((head, strictness)) = &job.stored {
        let started_with = before.as_ref().and_then(|record| record.template);
        let sent = resolve(admission, head, started_with).await?;
        fits(admission.rules(), &sent.head, job.for_all, *strictness)?;
    }
    Ok(before)
}

/// Whether the key of a job stands for another message. A record that was rebuilt does not know for which.
pub fn conflicts(record: &JobRecord, content_digest: &str) -> bool {
    let first = record.content_digest.as_ref();
    first.is_some_and(|first| first != content_digest)
}

/// A job as it is sent.
#[derive(Debug)]
pub struct Resolved {
    /// With a stored message in the place of its name.
    pub head: Arc<Head>,
    /// The version of the stored message.
    pub template: Option<u32>,
}

/// Puts a stored message in the place of its name: the version that the job started with, else the one it
/// means, else the newest.
pub async fn resolve<A: Admission>(
    admission: &A,
    head: &Head,
    started_with: Option<u32>,
) -> Result<Resolved, Refused> {
    let Content::Template(reference) = &head.content else {
        return Ok(Resolved {
            head: Arc::new(head.clone()),
            template: None,
        });
    };
    let (name, meant) = named_version(reference);
    let version = started_with.or(meant);
    let store = admission.store();
    let found = store.template(&head.app, name, version);
    let Some(stored) = admission.step(LedgerStep::Template, found).await? else {
        let problem = match version {
            Some(version) => version_is_gone(name, version),
            None => {
                let known = store.templates(&head.app);
                let known = admission.step(LedgerStep::Template, known).await?;
                unknown_template(&head.app, name, &known)
            }
        };
        return Err(Refused::Problems(vec![problem]));
    };
    Ok(Resolved {
        head: with_template(head, &stored.message).map_err(Refused::Problems)?,
        template: Some(stored.version),
    })
}

/// A job that the intake may register.
#[derive(Debug)]
pub struct Admitted {
    pub sent: Resolved,
    pub warnings: Vec<String>,
}

/// Takes the steps of a job that came durable: all but `before_accept`, which nobody waits for here, and
/// the conflict, which shows when it is registered.
pub async fn admit<A: Admission>(admission: &A, job: &Job<'_>) -> Result<Admitted, Refused> {
    let asked = Asked::of(job);
    keeps_rules(admission.rules(), &asked)?;
    let started_with = match job.head.content {
        Content::Template(_) => {
            let store = admission.store();
            let record = admission.step(LedgerStep::Template, store.job(job.head.id));
            let same =
                |record: &JobRecord| record.content_digest.as_ref() == Some(&job.content_digest);
            record
                .await?
                .filter(same)
                .and_then(|record| record.template)
        }
        _ => None,
    };
    let sent = resolve(admission, &job.head, started_with).await?;
    let fit = fits(
        admission.rules(),
        &sent.head,
        job.is_for_all(),
        job.strictness,
    )?;
    charge(admission, std::slice::from_ref(&asked)).await?;
    Ok(Admitted {
        sent,
        warnings: fit.warnings,
    })
}

/// Counts the jobs of one request, which are of one app: all of them or none. One that is refused after
/// this, since the broker is away or by the intake, has been counted; once it is repeated with the same
/// list it is not counted again.
pub async fn charge<A: Admission>(admission: &A, asked: &[Asked]) -> Result<(), Refused> {
    let Some(Asked { app, .. }) = asked.first() else {
        return Ok(());
    };
    let permissions = permissions(admission.rules(), app)?;
    if !permissions.counts() {
        return Ok(());
    }
    let charge = admission.store().charge(asked, permissions, today());
    match admission.step(LedgerStep::Charge, charge).await? {
        Charged::Counted => Ok(()),
        Charged::Over { job, used } => Err(Refused::Forbidden(permissions.over(asked, job, used))),
    }
}

/// A job of one or more messages that may be accepted, but for what it counts.
#[derive(Debug)]
pub struct Considered {
    pub id: JobId,
    pub asked: Asked,
    /// Each message, with the name of its submission.
    pub messages: Vec<(String, Bytes)>,
    /// What is known of the job.
    pub record: Option<JobRecord>,
    /// What is entered into the ledger once the job is durable.
    pub entry: Entry,
}

/// Takes all steps but [`charge`], for the messages of one job.
pub async fn consider<A: Admission>(
    admission: &A,
    mut bodies: Vec<Bytes>,
    priority: Priority,
) -> Result<Considered, Refused> {
    let (mut job, mut submissions) = examine_all(admission.rules(), &bodies, priority)?;
    let document = bodies.first().map_or(&b""[..], |body| body);
    if let Some(change) = allow(admission, &job, document).await? {
        bodies = bodies
            .iter()
            .map(|body| change.apply(body))
            .collect::<Result<_, _>>()?;
        (job, submissions) = examine_all(admission.rules(), &bodies, priority)?;
    }
    Ok(Considered {
        record: agree(admission, &job).await?,
        entry: job.entry(job.recipients),
        id: job.id,
        asked: job.asked,
        messages: submissions.into_iter().zip(bodies).collect(),
    })
}

/// The messages of one job as one, and the names of their submissions.
fn examine_all(
    rules: &impl Rules,
    bodies: &[Bytes],
    priority: Priority,
) -> Result<(Examined, Vec<String>), Refused> {
    // Long lists take some milliseconds each.
    tokio::task::block_in_place(|| {
        let mut whole: Option<Examined> = None;
        let mut submissions = Vec::with_capacity(bodies.len());
        for body in bodies {
            let mut job = examine(rules, body, Some(priority))?;
            submissions.push(std::mem::take(&mut job.submission));
            match &mut whole {
                None => whole = Some(job),
                Some(whole) => {
                    whole.asked.lists.append(&mut job.asked.lists);
                    whole.recipients += job.recipients;
                    whole.vars.append(&job.vars);
                }
            }
        }
        let nothing = || Refused::Problems(vec![Problem::new("", "there is no message")]);
        Ok((whole.ok_or_else(nothing)?, submissions))
    })
}
