//! Decides whether a job may be accepted. The steps are the same for a job over HTTP, for an
//! uploaded list, for a call of a drop-in endpoint and for a redriven job.
//!
//! 1. [`examine`]: the job is valid, and its target can carry it;
//! 2. [`allow`]: the app's permissions, and `before_accept`, which may change the message;
//! 3. [`agree`]: its key does not belong to another message, and its stored message exists and
//!    fits;
//! 4. [`Admission::has_room`], for a job that is not known yet: its target is not too far behind;
//! 5. [`charge`]: the app's quota. This step counts the job, so it comes last: a job that is
//!    refused or only tried out is not counted.
//!
//! [`consider`] takes the first three steps, for a job of several messages. Nothing here makes
//! anything durable. The intake repeats the steps that do not depend on the endpoint, see [`admit`].

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
use crate::domain::list_reference::FetchedList;
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

/// The configuration of apps and targets.
pub trait Rules: job::Context + Sync {
    /// `None` if there is no such app.
    fn permissions(&self, app: &str) -> Option<&Permissions>;
    /// `None` if there is no such target.
    fn target(&self, name: &str) -> Option<&dyn Target>;
}

/// The parts that admission needs besides the configuration.
pub trait Admission: Sync {
    type Rules: Rules;
    type Store: Ledger + Templates + Quotas;
    type Transport: Transport;

    fn rules(&self) -> &Self::Rules;
    fn store(&self) -> &Self::Store;
    fn transport(&self) -> &Self::Transport;
    /// The endpoint that decides about the jobs of an app.
    fn before_accept(&self, app: &str) -> Option<&BeforeAccept>;
    /// Whether so many recipients wait for a target that it takes no further job now.
    fn has_room(&self, _target: &str) -> Result<(), Refused> {
        Ok(())
    }
    /// Called after each request to `before_accept`, to count it.
    fn asked(&self, _result: AskedResult, _took: Duration) {}
    /// Carries out one step of the ledger. Implementations that count steps do it here.
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
    /// The job is invalid, for all these reasons.
    Problems(Vec<Problem>),
    /// Its app may not send it, for all these reasons.
    Forbidden(Vec<Problem>),
    /// `before_accept` refused it.
    Denied { code: String, text: String },
    /// The key belongs to another message.
    Conflict(JobId),
    /// Neither accepted nor refused: try again.
    Undecided(String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Problems(problems) | Self::Forbidden(problems) => f.write_str(&summary(problems)),
            Self::Denied { code, text } => write!(f, "before_accept refused it: {code} {text}"),
            Self::Conflict(job) => write!(f, "its key belongs to another message, job {job}"),
            Self::Undecided(what) => f.write_str(what),
        }
    }
}

impl From<LedgerError> for Refused {
    fn from(error: LedgerError) -> Self {
        Self::Undecided(chain(&error))
    }
}

/// The properties of a job's message.
#[derive(Debug)]
pub struct Examined {
    pub id: JobId,
    /// The parts that permissions apply to.
    pub asked: Asked,
    pub target: String,
    pub priority: Priority,
    pub content_digest: String,
    pub for_all: bool,
    /// The message is rendered for each recipient.
    pub personal: bool,
    pub recipients: u64,
    /// The values of the recipients, for `before_accept`.
    pub vars: Vars,
    pub submission: String,
    pub warnings: Vec<String>,
    /// Set if the job names a stored message, which [`agree`] checks.
    pub stored: Option<(Box<Head>, Strictness)>,
    pub not_before_ms: Option<u64>,
    pub expires_at_ms: Option<u64>,
    pub tags: Vec<String>,
    /// The version of its list, if the gateway fetched it.
    pub fetched: Option<FetchedList>,
    /// The job has expired: it is refused, unless all of it was accepted before.
    pub too_late: Option<Problem>,
}

impl Examined {
    /// The ledger's entry for the job once it is durable, with this number of list entries.
    pub fn entry(&self, entries: u64) -> Entry {
        Entry {
            job: self.id,
            app: self.asked.app.clone(),
            client_msg_no: self.asked.client_msg_no.clone(),
            target: self.target.clone(),
            content_digest: self.content_digest.clone(),
            entries,
            priority: self.priority,
            not_before_ms: self.not_before_ms,
            expires_at_ms: self.expires_at_ms,
            tags: self.tags.clone(),
            fetched: self.fetched.clone(),
            now_ms: now_ms(),
        }
    }
}

/// Reads one message as the worker will read it.
pub fn examine(
    rules: &impl Rules,
    body: &[u8],
    priority: Option<Priority>,
) -> Result<Examined, Refused> {
    let job = Job::parse(body, priority, rules, now()).map_err(Refused::Problems)?;
    examine_job(rules, &job, priority)
}

/// Examines a job that was read already.
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
    let mut warnings = fit.warnings;
    warnings.extend(job.unknown_zones().warning());
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
        warnings,
        not_before_ms: head.not_before_ms,
        expires_at_ms: head.expires_at_ms,
        tags: job.tags.clone(),
        fetched: job.fetched().cloned(),
        too_late: job.too_late(now_ms()),
    })
}

/// How a job fits its target, if the target can carry it.
fn fits(
    rules: &impl Rules,
    head: &Head,
    for_all: bool,
    strictness: Strictness,
) -> Result<Fit, Refused> {
    let mut found = fits_target(rules, head, "target", for_all, strictness)?;
    if let Some(second) = second_head(head) {
        // Only the first target lists its users.
        let second = fits_target(rules, &second, "fallback.target", false, strictness)?;
        let name = second_name(head);
        let at_second = |problem: Problem| {
            let what = format!("at the second target, {name}: {}", problem.what);
            Problem::new(problem.field, what)
        };
        found
            .problems
            .extend(second.problems.into_iter().map(at_second));
        found.warnings.extend(second.warnings);
    }
    match found.problems.is_empty() {
        true => Ok(found),
        false => Err(Refused::Problems(found.problems)),
    }
}

fn fits_target(
    rules: &impl Rules,
    head: &Head,
    field: &str,
    for_all: bool,
    strictness: Strictness,
) -> Result<Fit, Refused> {
    let Some(target) = rules.target(&head.target) else {
        let what = format!("there is no target {:?}", head.target);
        return Err(Refused::Problems(vec![Problem::new(field, what)]));
    };
    Ok(fit(target, head, for_all, strictness))
}

fn second_name(head: &Head) -> &str {
    head.fallback.as_ref().map_or("", |it| &it.target)
}

/// The job as its second target gets it.
fn second_head(head: &Head) -> Option<Head> {
    head.fallback.as_ref()?;
    Some(Head {
        target: second_name(head).to_owned(),
        ..head.clone()
    })
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

/// The message and options that `before_accept` set.
#[derive(Debug)]
pub struct Change {
    message: Option<Box<RawValue>>,
    options: Option<Box<RawValue>>,
}

impl Change {
    /// The job with this change; everything else stays.
    pub fn apply(&self, document: &[u8]) -> Result<Bytes, Refused> {
        let changed = changed(document, self.message.as_deref(), self.options.as_deref());
        changed.map_err(|error| Refused::Undecided(error.to_string()))
    }
}

/// Asks `before_accept`. Returns its change of the message, if it made one. `document` is the job
/// as JSON; it may lack the list, which does not change.
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
            // The version that was shown is sent, even if another one is stored meanwhile.
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
                // The endpoint may keep the message, or name the stored message that it was shown.
                Some(seen) => {
                    let own = members(document)?.get("message").copied();
                    pinned(message.as_deref().or(own), seen)?.or(message)
                }
                None => message,
            };
            // A change that cannot be put into the job is no decision.
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

/// The stored message that a job names, in the version in which it is sent. If it does not exist, a
/// later step refuses the job.
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

/// Checks that the key of a job does not belong to another message, and that its stored message
/// exists and fits: the version with which the job started, or the newest one. Returns the ledger's
/// record of the job. This is an early check: the intake decides, and rejects a job that loses a
/// race.
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

/// Whether the key of a job belongs to another message. A rebuilt record does not know its message.
pub fn conflicts(record: &JobRecord, content_digest: &str) -> bool {
    let first = record.content_digest.as_ref();
    first.is_some_and(|first| first != content_digest)
}

/// A job as it is sent.
#[derive(Debug)]
pub struct Resolved {
    /// The head, with a stored message inserted.
    pub head: Arc<Head>,
    /// The version of the stored message.
    pub template: Option<u32>,
}

/// Inserts a stored message: the version with which the job started, else the one that it names,
/// else the newest.
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

/// Takes the steps for a job that is durable: all but `before_accept`, because no caller waits for
/// an answer, and the conflict, which registering detects.
pub async fn admit<A: Admission>(admission: &A, job: &Job<'_>) -> Result<Admitted, Refused> {
    let asked = Asked::of(job);
    keeps_rules(admission.rules(), &asked)?;
    let started_with = match job.head.content {
        Content::Template(_) => {
            let store = admission.store();
            let record = admission.step(LedgerStep::Look, store.job(job.head.id));
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

/// Counts the jobs of one request, which belong to one app: all of them or none. A job that is
/// refused after this, because the broker is away or by the intake, stays counted. A repeat with
/// the same list is not counted again.
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

/// A job of one or more messages that passed [`consider`].
#[derive(Debug)]
pub struct Considered {
    pub id: JobId,
    pub asked: Asked,
    /// Each message, with the name of its submission.
    pub messages: Vec<(String, Bytes)>,
    /// The ledger's record of the job.
    pub record: Option<JobRecord>,
    /// The ledger's entry for the job once it is durable.
    pub entry: Entry,
}

/// Takes the first three steps for the messages of one job.
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

/// Examines the messages of one job as one, and returns the names of their submissions.
fn examine_all(
    rules: &impl Rules,
    bodies: &[Bytes],
    priority: Priority,
) -> Result<(Examined, Vec<String>), Refused> {
    // Each long list takes some milliseconds.
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
