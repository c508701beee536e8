//! Redrives dead letters: makes jobs of their recipients and publishes them, and purges the letters
//! only after the new jobs are accepted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::domain::announce::{DeadLetter, DeadRecipient};
use crate::domain::ids::JobId;
use crate::domain::job::{AudienceDocument, MemberDocument};
use crate::domain::lane::Priority;
use crate::domain::letters::{Key, LetterFilter, Window, last_attempt_ms};
use crate::domain::outcome::Outcome;
use crate::domain::parts;
use crate::domain::redrive::document;
use crate::metrics::LedgerStep;
use crate::ports::{
    BrokerError, ClaimState, Entry, Ledger, LedgerError, Outgoing, PublishError, Publisher,
    RetainedQueues, Route,
};
use crate::service::admission::{self, Admission, Considered, Refused};

use super::{DeadError, JOBS_ASKED, LedgerView, LetterState, Named, each, remove};

/// Recipients that are redriven in one walk over the retained queue.
const REDRIVE_AT_ONCE: usize = 100_000;

/// The most bytes of messages that one walk holds.
const MESSAGES_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Messages that are published and confirmed together, and their bytes.
const BATCH_MESSAGES: usize = 64;
const BATCH_BYTES: usize = 1024 * 1024;

/// The most jobs that one answer lists.
const JOBS_TOLD: usize = 1000;

/// How long a redrive that purges usually waits until its jobs are accepted, and how often it
/// looks.
pub const ACCEPT_PATIENCE: Duration = Duration::from_secs(10);
const ACCEPT_LOOK: Duration = Duration::from_millis(50);

/// Selects the letters to redrive, and how.
#[derive(Clone, Debug)]
pub struct Redrive {
    pub wanted: LetterFilter,
    /// Redrive uncertain recipients too.
    pub uncertain: bool,
    pub dry_run: bool,
    pub purge: bool,
    /// How long a redrive that purges waits until the new jobs are accepted.
    pub accept_within: Duration,
    pub priority: Priority,
}

impl Redrive {
    fn takes_uncertain(&self) -> bool {
        self.uncertain || self.wanted.outcome == Some(Outcome::Uncertain)
    }
}

/// The result of a redrive, or of its dry run.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Redriven {
    pub dry_run: bool,
    /// Recipients that the message is sent to again.
    pub recipients: u64,
    /// Recipients that an earlier redrive has put into the same new jobs. Nothing is sent to them
    /// again.
    #[serde(default)]
    pub redriven_before: u64,
    /// Number of new jobs; `jobs` holds the first 1,000.
    pub jobs_total: u64,
    pub jobs: Vec<RedrivenJob>,
    /// Matching entries of letters that were left out because they are uncertain.
    pub uncertain_left_out: u64,
    /// Recipients that were left out because of the ledger: they got the message, or their job was
    /// cancelled or expired before. Their letters are wrong.
    #[serde(default)]
    pub contradicted: u64,
    /// Recipients that were left out because their own job still works on them.
    #[serde(default)]
    pub under_way: u64,
    /// Recipients whose letters were purged.
    pub purged: u64,
    /// Recipients whose letters were to be purged and stay, because no worker has accepted their
    /// new job yet.
    #[serde(default)]
    pub not_purged: u64,
    /// Jobs that are not redriven, with the reason; the first 1,000. Their letters stay.
    pub refused: Vec<RedriveRefused>,
}

impl Redriven {
    /// Whether no letter matched.
    pub fn is_empty(&self) -> bool {
        let Self {
            recipients,
            redriven_before,
            uncertain_left_out,
            contradicted,
            under_way,
            ..
        } = self;
        recipients + redriven_before + uncertain_left_out + contradicted + under_way == 0
            && self.refused.is_empty()
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RedrivenJob {
    /// The new job.
    pub job: String,
    pub app: String,
    pub client_msg_no: String,
    /// The job of the letters.
    pub of: String,
    /// Recipients that the message is sent to again.
    pub recipients: u64,
    /// Recipients that were in the new job before.
    #[serde(default)]
    pub redriven_before: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RedriveRefused {
    pub of: String,
    pub reason: String,
}

/// Makes new jobs from the matching letters, and publishes them.
pub async fn redrive<B: RetainedQueues, P: Publisher, A: Admission>(
    broker: &B,
    publisher: &P,
    admission: &A,
    secret: &str,
    redrive: &Redrive,
) -> Result<Redriven, DeadError> {
    let maker = Maker {
        admission,
        view: LedgerView {
            store: admission.store(),
            secret,
        },
        redrive,
    };
    let mut done = Redriven {
        dry_run: redrive.dry_run,
        ..Redriven::default()
    };
    let (mut from, mut deadline) = (None, None);
    loop {
        let first = from.is_none();
        let found = find(broker, redrive, from).await?;
        if first {
            done.uncertain_left_out = found.uncertain;
        }
        let mut batch = Batch::new(publisher);
        let (mut going, mut published) = (BTreeSet::new(), Vec::new());
        let jobs = found.jobs.into_iter();
        let jobs = jobs.map(|(of, (letter, members))| maker.make(of, letter, members));
        let mut jobs = futures_util::stream::iter(jobs).buffered(JOBS_ASKED);
        while let Some(job) = jobs.next().await {
            let mut job = job?;
            note(&mut done, &job);
            if redrive.dry_run {
                continue;
            }
            going.extend(job.keys(job.contradicted.iter().chain(&job.before)));
            if let Some(new) = job.new.take() {
                batch.push(new.outgoing(redrive.priority)).await?;
                published.push(Published {
                    job: new.id,
                    submissions: new.messages.into_iter().map(|(name, _)| name).collect(),
                    entry: new.entry,
                    keys: job.keys(job.again.iter()).collect(),
                });
            }
        }
        batch.flush().await?;
        maker.enter(&published).await;
        if redrive.purge {
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + redrive.accept_within);
            let (accepted, waiting) = maker.accepted(published, deadline).await?;
            going.extend(accepted);
            done.not_purged += waiting;
            done.purged += purge_keys(broker, &going).await?;
        }
        let Some(next) = found.next else {
            return Ok(done);
        };
        from = Some(next);
    }
}

async fn purge_keys<B: RetainedQueues>(
    broker: &B,
    going: &BTreeSet<Key>,
) -> Result<u64, BrokerError> {
    if going.is_empty() {
        return Ok(0);
    }
    let goes = |letter: &DeadLetter, dead: &DeadRecipient| {
        going.contains(&(letter.job.clone(), dead.recipient.clone()))
    };
    remove(broker, goes).await
}

/// Makes new jobs from old ones.
struct Maker<'a, A: Admission> {
    admission: &'a A,
    view: LedgerView<'a, A::Store>,
    redrive: &'a Redrive,
}

/// A new job that was published, with the keys of its letters.
struct Published {
    job: JobId,
    submissions: Vec<String>,
    entry: Entry,
    keys: Vec<Key>,
}

/// The result for the letters of one old job.
#[derive(Default)]
struct Made {
    of: String,
    app: String,
    client_msg_no: String,
    /// The new job.
    job: Option<JobId>,
    /// Recipients that the message is sent to again.
    again: Vec<String>,
    /// Recipients that are in the new job already.
    before: Vec<String>,
    /// Recipients whose letters the ledger contradicts.
    contradicted: Vec<String>,
    under_way: u64,
    uncertain: u64,
    refused: Option<String>,
    /// The job to publish.
    new: Option<Considered>,
}

impl Made {
    fn keys<'m>(
        &'m self,
        recipients: impl Iterator<Item = &'m String>,
    ) -> impl Iterator<Item = Key> {
        recipients.map(|recipient| (self.of.clone(), recipient.clone()))
    }
}

impl<A: Admission> Maker<'_, A> {
    async fn make(
        &self,
        of: String,
        letter: DeadLetter,
        members: Vec<Found>,
    ) -> Result<Made, DeadError> {
        let mut made = Made {
            of,
            app: letter.app.clone(),
            ..Made::default()
        };
        let members = self.sort_out(&mut made, members).await?;
        if members.is_empty() {
            return Ok(made);
        }
        match self.admit(&mut made, &letter, members).await {
            Ok(()) => {}
            Err(Refused::Undecided(what)) => return Err(DeadError::Undecided(what)),
            Err(refused) => {
                made.again.clear();
                made.refused = Some(refused.to_string());
            }
        }
        Ok(made)
    }

    /// Leaves out recipients that the ledger contradicts, that are under way, or that are
    /// uncertain.
    async fn sort_out(
        &self,
        made: &mut Made,
        members: Vec<Found>,
    ) -> Result<Vec<MemberDocument>, LedgerError> {
        let letters: Vec<_> = members.iter().map(Found::named).collect();
        let letter_states = self.view.letter_states(&made.of, &letters).await?;
        let mut left = Vec::with_capacity(members.len());
        for (Found { member, .. }, state) in members.into_iter().zip(letter_states) {
            match state {
                LetterState::Otherwise => made.contradicted.push(member.id().to_owned()),
                LetterState::UnderWay => made.under_way += 1,
                LetterState::Dead(Outcome::Uncertain) if !self.redrive.takes_uncertain() => {
                    made.uncertain += 1;
                }
                LetterState::Dead(_) => left.push(member),
            }
        }
        Ok(left)
    }

    /// Admits the new job like any other. Recipients that the new job has already, with an outcome
    /// or a claim, would not be sent to again, so they are left off the list.
    async fn admit(
        &self,
        made: &mut Made,
        letter: &DeadLetter,
        mut members: Vec<MemberDocument>,
    ) -> Result<(), Refused> {
        let mut considered = self.consider(letter, &members).await?;
        made.job = Some(considered.id);
        made.client_msg_no = considered.asked.client_msg_no.clone();
        if let Some(record) = &considered.record {
            let ids = members.iter().map(MemberDocument::id);
            let mut states = self.view.states(record, ids).await?.into_iter();
            let all = members.len();
            members.retain(|member| {
                let known = !matches!(states.next(), Some(ClaimState::Granted) | None);
                if known {
                    made.before.push(member.id().to_owned());
                }
                !known
            });
            if members.is_empty() {
                return Ok(());
            }
            if members.len() < all {
                considered = self.consider(letter, &members).await?;
            }
        }
        let names: Vec<_> = considered
            .messages
            .iter()
            .map(|(it, _)| it.clone())
            .collect();
        let knows = self.view.store.knows(considered.id, &names);
        let known =
            considered.record.is_some() && self.admission.step(LedgerStep::Look, knows).await?;
        let ids = members.into_iter().map(|member| member.id().to_owned());
        if known {
            made.before.extend(ids);
            return Ok(());
        }
        made.again.extend(ids);
        if !self.redrive.dry_run {
            self.admission.has_room(&considered.asked.target)?;
            admission::charge(self.admission, std::slice::from_ref(&considered.asked)).await?;
            made.new = Some(considered);
        }
        Ok(())
    }

    /// Writes a job as its producer would, and checks whether it may be accepted.
    async fn consider(
        &self,
        letter: &DeadLetter,
        members: &[MemberDocument],
    ) -> Result<Considered, Refused> {
        let unreadable = |error: serde_json::Error| {
            let what = format!("cannot be read: {error}");
            let problem = crate::domain::fields::Problem::new("message", what);
            Refused::Problems(vec![problem])
        };
        let priority = self.redrive.priority;
        let mut document = document(letter, priority).map_err(unreadable)?;
        let mut bodies: Vec<Bytes> = Vec::new();
        document.audience = audience(letter, Vec::new());
        for users in parts::messages(members.to_vec(), crate::json::size(&document)) {
            document.audience = audience(letter, users);
            let body = serde_json::to_vec(&document).map_err(unreadable)?;
            bodies.push(body.into());
        }
        admission::consider(self.admission, bodies, priority).await
    }

    /// Enters durable jobs, so that queries find them at once. An error does not matter: the jobs
    /// are accepted, and queries find them as soon as a worker has registered them.
    async fn enter(&self, published: &[Published]) {
        for some in published.chunks(JOBS_ASKED) {
            let entries = some.iter().map(|new| self.view.store.enter(&new.entry));
            let steps = entries.map(|enter| self.admission.step(LedgerStep::Accept, enter));
            let steps: Vec<_> = steps.collect();
            let _ = futures_util::future::join_all(steps).await;
        }
    }

    /// Waits until the intake has accepted these jobs, up to a deadline. Returns the keys of the
    /// letters of accepted jobs, and the number of the others.
    async fn accepted(
        &self,
        mut waiting: Vec<Published>,
        deadline: Instant,
    ) -> Result<(Vec<Key>, u64), LedgerError> {
        let mut accepted = Vec::new();
        loop {
            let mut still = Vec::new();
            for new in waiting {
                match self.view.store.knows(new.job, &new.submissions).await? {
                    true => accepted.extend(new.keys),
                    false => still.push(new),
                }
            }
            waiting = still;
            if waiting.is_empty() || Instant::now() >= deadline {
                let left = waiting.iter().map(|new| new.keys.len() as u64).sum();
                return Ok((accepted, left));
            }
            sleep(ACCEPT_LOOK).await;
        }
    }
}

impl Considered {
    fn outgoing(&self, priority: Priority) -> Vec<Outgoing> {
        let message = |(name, body): &(String, Bytes)| Outgoing {
            route: Route::Job(priority),
            body: body.clone(),
            message_id: format!("{}/{name}", self.id),
            traceparent: None,
        };
        self.messages.iter().map(message).collect()
    }
}

/// Messages to publish, a bounded number at a time.
struct Batch<'a, P> {
    publisher: &'a P,
    messages: Vec<Outgoing>,
    bytes: usize,
}

impl<'a, P: Publisher> Batch<'a, P> {
    fn new(publisher: &'a P) -> Self {
        Self {
            publisher,
            messages: Vec::new(),
            bytes: 0,
        }
    }

    async fn push(&mut self, messages: Vec<Outgoing>) -> Result<(), PublishError> {
        for message in messages {
            self.bytes += message.body.len();
            self.messages.push(message);
            if self.messages.len() >= BATCH_MESSAGES || self.bytes >= BATCH_BYTES {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Publishes the pushed messages. On return they are durable.
    async fn flush(&mut self) -> Result<(), PublishError> {
        self.bytes = 0;
        match std::mem::take(&mut self.messages) {
            messages if messages.is_empty() => Ok(()),
            messages => self.publisher.publish(messages).await,
        }
    }
}

/// Adds a result to the answer. A job that spans two windows is listed once.
fn note(done: &mut Redriven, made: &Made) {
    let (again, before) = (made.again.len() as u64, made.before.len() as u64);
    done.recipients += again;
    done.redriven_before += before;
    done.contradicted += made.contradicted.len() as u64;
    done.under_way += made.under_way;
    done.uncertain_left_out += made.uncertain;
    if let Some(reason) = &made.refused
        && done.refused.len() < JOBS_TOLD
    {
        done.refused.push(RedriveRefused {
            of: made.of.clone(),
            reason: reason.clone(),
        });
    }
    let Some(job) = made.job.filter(|_| again + before > 0) else {
        return;
    };
    if let Some(last) = done.jobs.last_mut().filter(|last| last.of == made.of) {
        last.recipients += again;
        last.redriven_before += before;
        return;
    }
    done.jobs_total += 1;
    if done.jobs.len() < JOBS_TOLD {
        done.jobs.push(RedrivenJob {
            job: job.to_string(),
            app: made.app.clone(),
            client_msg_no: made.client_msg_no.clone(),
            of: made.of.clone(),
            recipients: again,
            redriven_before: before,
        });
    }
}

/// A recipient that was found, with the facts in its letter.
struct Found {
    member: MemberDocument,
    outcome: Outcome,
    at_ms: u64,
}

impl Found {
    fn named(&self) -> Named<'_> {
        Named {
            recipient: self.member.id(),
            outcome: self.outcome,
            at_ms: self.at_ms,
        }
    }
}

/// The result of one walk.
struct Walk {
    /// By old job: one of its letters, for the message, and the recipients in order.
    jobs: BTreeMap<String, (DeadLetter, Vec<Found>)>,
    next: Option<Key>,
    uncertain: u64,
}

async fn find<B: RetainedQueues>(
    broker: &B,
    redrive: &Redrive,
    from: Option<Key>,
) -> Result<Walk, BrokerError> {
    let mut window = Window::new(from, REDRIVE_AT_ONCE);
    let mut letters: BTreeMap<String, DeadLetter> = BTreeMap::new();
    let (mut bytes, mut uncertain) = (0, 0);
    each(broker, &redrive.wanted, |letter, dead, taken| {
        let key = (letter.job.clone(), dead.recipient.clone());
        let at = last_attempt_ms(letter);
        let held = dead.outcome == Outcome::Uncertain && !redrive.takes_uncertain();
        uncertain += u64::from(taken && held);
        if !taken || held {
            window.overrule(&key, at);
            return;
        }
        if !window.takes(&key) {
            return;
        }
        if !letters.contains_key(&letter.job) {
            bytes += size(letter);
            let recipients = Vec::new();
            let letter = DeadLetter {
                recipients,
                ..letter.clone()
            };
            letters.insert(letter.job.clone(), letter);
        }
        window.put(key, at, (dead.vars.clone(), dead.outcome, at));
        // The jobs beyond the bound on messages are left to the next walk.
        while bytes > MESSAGES_BYTES_MAX && letters.len() > 1 {
            if let Some((job, letter)) = letters.pop_last() {
                bytes -= size(&letter);
                window.end_at((job, String::new()));
            }
        }
    })
    .await?;
    let (rows, next) = window.finish();
    let mut jobs: BTreeMap<String, (DeadLetter, Vec<Found>)> = BTreeMap::new();
    for ((job, recipient), (vars, outcome, at_ms)) in rows {
        let member = Found {
            member: MemberDocument::new(recipient, vars),
            outcome,
            at_ms,
        };
        if let Some((_, members)) = jobs.get_mut(&job) {
            members.push(member);
        } else if let Some(letter) = letters.remove(&job) {
            jobs.insert(job, (letter, vec![member]));
        }
    }
    Ok(Walk {
        jobs,
        next,
        uncertain,
    })
}

/// The audience of a redriven job: groups stay groups.
fn audience(letter: &DeadLetter, members: Vec<MemberDocument>) -> AudienceDocument {
    match letter.group_type {
        Some(kind) => AudienceDocument {
            groups: Some(members.iter().map(|it| it.id().to_owned()).collect()),
            group_type: Some(kind),
            ..AudienceDocument::default()
        },
        None => AudienceDocument {
            users: Some(members),
            ..AudienceDocument::default()
        },
    }
}

fn size(letter: &DeadLetter) -> usize {
    letter.message.get().len() + letter.options.get().len()
}
