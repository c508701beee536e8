//! Walks over the dead letters: pages, redrives and purges, over the ports alone, so that the command
//! line does them without a gateway.
//!
//! A shelf has no index: every walk reads all of it, and holds one page, or one window of recipients
//! to redrive. A redrive publishes first and purges after, if at all; killed in between it leaves the
//! letters, and redriving them again is the same job.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use crate::domain::announce::{DeadLetter, DeadRecipient};
use crate::domain::fields::{Problem, summary};
use crate::domain::ids::JobId;
use crate::domain::job::{self, AudienceDocument, Job, MemberDocument};
use crate::domain::lane::Priority;
use crate::domain::letters::{
    DeadRow, Key, Left, Wanted, Window, last_attempt_ms, read_letter, without,
};
use crate::domain::outcome::Outcome;
use crate::domain::redrive::{document, lists};
use crate::domain::slice::Head;
use crate::ports::{
    BrokerError, KeptMessage, Outgoing, PublishError, Publisher, Route, Shelf, Shelves, Sifted,
};

use super::wire::{Purged, RedriveRefused, Redriven, RedrivenJob};

/// Recipients redriven in one walk over the shelf.
const REDRIVE_AT_ONCE: usize = 100_000;

/// Messages of jobs held in one walk, in bytes.
const MESSAGES_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Messages published and confirmed together, and their bytes.
const BATCH_MESSAGES: usize = 64;
const BATCH_BYTES: usize = 1024 * 1024;

/// Jobs told of in one answer.
const JOBS_TOLD: usize = 1000;

/// The rows at or after a place, as many as are asked for.
pub async fn page<B: Shelves>(
    broker: &B,
    wanted: &Wanted,
    from: Option<Key>,
    most: usize,
    with_content: bool,
) -> Result<(Vec<DeadRow>, Option<Key>), BrokerError> {
    let mut window = Window::new(from, most);
    each(broker, wanted, |letter, dead, taken| {
        let key = (letter.job.clone(), dead.recipient.clone());
        let at = last_attempt_ms(letter);
        if !taken {
            window.overrule(&key, at);
        } else if window.takes(&key) {
            window.put(key, at, DeadRow::new(letter, dead, with_content));
        }
    })
    .await?;
    let (rows, next) = window.finish();
    Ok((rows.map(|(_, row)| row).collect(), next))
}

/// Shows every recipient of the letters that are meant, and whether it is meant itself.
async fn each<B: Shelves>(
    broker: &B,
    wanted: &Wanted,
    mut show: impl FnMut(&DeadLetter, &DeadRecipient, bool) + Send,
) -> Result<(), BrokerError> {
    let visit = |message: KeptMessage| {
        if let Some(letter) = read_letter(&message.body).filter(|it| wanted.takes_letter(it)) {
            for dead in &letter.recipients {
                show(&letter, dead, wanted.takes_recipient(dead));
            }
        }
        ControlFlow::Continue(())
    };
    broker.read(Shelf::Dead, visit).await.map(drop)
}

/// Removes the recipients that are meant; with `dry_run` it counts them.
pub async fn purge<B: Shelves>(
    broker: &B,
    wanted: &Wanted,
    dry_run: bool,
) -> Result<Purged, BrokerError> {
    if dry_run {
        let mut recipients = 0;
        each(broker, wanted, |_, _, taken| recipients += u64::from(taken)).await?;
        return Ok(Purged {
            dry_run,
            recipients,
        });
    }
    let goes = |letter: &DeadLetter, dead: &DeadRecipient| {
        wanted.takes_letter(letter) && wanted.takes_recipient(dead)
    };
    Ok(Purged {
        dry_run,
        recipients: remove(broker, goes).await?,
    })
}

/// Removes recipients from the letters on the shelf; how many.
async fn remove<B: Shelves>(
    broker: &B,
    goes: impl Fn(&DeadLetter, &DeadRecipient) -> bool + Send + Sync,
) -> Result<u64, BrokerError> {
    let mut removed = 0;
    let decide = |message: KeptMessage| {
        let Some(letter) = read_letter(&message.body) else {
            return Sifted::Keep;
        };
        let mut going = 0;
        let left = without(&message.body, &letter, |dead| {
            let goes = goes(&letter, dead);
            going += u64::from(goes);
            goes
        });
        let sifted = match left {
            Left::All => return Sifted::Keep,
            Left::Nothing => Sifted::Remove,
            Left::Some(body) => Sifted::Replace(body.into()),
        };
        removed += going;
        sifted
    };
    broker.sift(Shelf::Dead, decide).await?;
    Ok(removed)
}

/// Which letters to redrive, and how.
#[derive(Clone, Debug)]
pub struct Redrive {
    pub wanted: Wanted,
    /// Uncertain recipients too.
    pub uncertain: bool,
    pub dry_run: bool,
    pub purge: bool,
    pub priority: Priority,
}

impl Redrive {
    fn takes_uncertain(&self) -> bool {
        self.uncertain || self.wanted.outcome == Some(Outcome::Uncertain)
    }
}

/// A redrive ended before its end; what was published stays, and redriving again is right.
#[derive(Debug, thiserror::Error)]
pub enum RedriveError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Publish(#[from] PublishError),
}

/// Makes new jobs of the letters that are meant, and publishes them.
pub async fn redrive<B: Shelves, P: Publisher>(
    broker: &B,
    publisher: &P,
    context: &(impl job::Context + Sync),
    check: impl Fn(&Head) -> Vec<Problem> + Send + Sync,
    redrive: &Redrive,
) -> Result<Redriven, RedriveError> {
    let mut done = Redriven {
        dry_run: redrive.dry_run,
        ..Redriven::default()
    };
    let mut from = None;
    loop {
        let first = from.is_none();
        let found = find(broker, redrive, from).await?;
        if first {
            done.uncertain_left_out = found.uncertain;
        }
        let mut batch = Batch::new(publisher);
        let mut redriven: BTreeSet<Key> = BTreeSet::new();
        for (of, (letter, recipients)) in found.jobs {
            let keys: Vec<_> = recipients
                .iter()
                .map(|it| (of.clone(), it.id().to_owned()))
                .collect();
            // Long lists take some milliseconds to write and check.
            let written = tokio::task::block_in_place(|| {
                write(&letter, recipients, redrive.priority, context, &check)
            });
            match written {
                Err(reason) => {
                    if done.refused.len() < JOBS_TOLD {
                        done.refused.push(RedriveRefused { of, reason });
                    }
                }
                Ok(written) => {
                    note(&mut done, of, &written, keys.len() as u64);
                    if !redrive.dry_run {
                        batch.push(written.messages).await?;
                        redriven.extend(keys);
                    }
                }
            }
        }
        batch.flush().await?;
        if redrive.purge && !redriven.is_empty() {
            let goes = |letter: &DeadLetter, dead: &DeadRecipient| {
                redriven.contains(&(letter.job.clone(), dead.recipient.clone()))
            };
            done.purged += remove(broker, goes).await?;
        }
        let Some(next) = found.next else {
            return Ok(done);
        };
        from = Some(next);
    }
}

/// Messages on their way out, a bounded number at a time.
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

    /// Everything that was pushed is durable on return.
    async fn flush(&mut self) -> Result<(), PublishError> {
        self.bytes = 0;
        match std::mem::take(&mut self.messages) {
            messages if messages.is_empty() => Ok(()),
            messages => self.publisher.publish(messages).await,
        }
    }
}

/// A job that spans two windows is told of once.
fn note(done: &mut Redriven, of: String, written: &Written, recipients: u64) {
    done.recipients += recipients;
    if let Some(last) = done.jobs.last_mut().filter(|last| last.of == of) {
        last.recipients += recipients;
        return;
    }
    done.jobs_total += 1;
    if done.jobs.len() < JOBS_TOLD {
        done.jobs.push(RedrivenJob {
            job: written.id.clone(),
            app: written.app.clone(),
            client_msg_no: written.client_msg_no.clone(),
            of,
            recipients,
        });
    }
}

/// What one walk found to redrive.
struct Found {
    /// By old job: a letter of it, for what is to be said, and the recipients in order.
    jobs: BTreeMap<String, (DeadLetter, Vec<MemberDocument>)>,
    next: Option<Key>,
    uncertain: u64,
}

async fn find<B: Shelves>(
    broker: &B,
    redrive: &Redrive,
    from: Option<Key>,
) -> Result<Found, BrokerError> {
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
        window.put(key, at, dead.vars.clone());
        // What the messages of many jobs would take is left to the next walk.
        while bytes > MESSAGES_BYTES_MAX && letters.len() > 1 {
            if let Some((job, letter)) = letters.pop_last() {
                bytes -= size(&letter);
                window.end_at((job, String::new()));
            }
        }
    })
    .await?;
    let (rows, next) = window.finish();
    let mut jobs: BTreeMap<String, (DeadLetter, Vec<MemberDocument>)> = BTreeMap::new();
    for ((job, recipient), vars) in rows {
        let recipient = MemberDocument::new(recipient, vars);
        if let Some((_, recipients)) = jobs.get_mut(&job) {
            recipients.push(recipient);
        } else if let Some(letter) = letters.remove(&job) {
            jobs.insert(job, (letter, vec![recipient]));
        }
    }
    Ok(Found {
        jobs,
        next,
        uncertain,
    })
}

/// Groups stay groups.
fn audience(letter: &DeadLetter, recipients: Vec<MemberDocument>) -> AudienceDocument {
    match letter.group_type {
        Some(kind) => AudienceDocument {
            groups: Some(recipients.iter().map(|it| it.id().to_owned()).collect()),
            group_type: Some(kind),
            ..AudienceDocument::default()
        },
        None => AudienceDocument {
            users: Some(recipients),
            ..AudienceDocument::default()
        },
    }
}

fn size(letter: &DeadLetter) -> usize {
    letter.message.get().len() + letter.options.get().len()
}

/// A redriven job as its messages.
struct Written {
    id: String,
    app: String,
    client_msg_no: String,
    messages: Vec<Outgoing>,
}

/// Writes a job as its producer would, and reads it as the intake will: a reason, in words, if it would
/// be refused there.
fn write(
    letter: &DeadLetter,
    recipients: Vec<MemberDocument>,
    priority: Priority,
    context: &impl job::Context,
    check: impl Fn(&Head) -> Vec<Problem>,
) -> Result<Written, String> {
    let unreadable = |error: serde_json::Error| format!("its message cannot be read: {error}");
    let mut document = document(letter, priority).map_err(unreadable)?;
    let mut messages = Vec::new();
    for users in lists(recipients) {
        document.audience = audience(letter, users);
        let body = serde_json::to_vec(&document).map_err(unreadable)?;
        let job = Job::read(&body, Some(priority), context, jiff::Timestamp::now())
            .map_err(|problems| summary(&problems))?;
        let problems = check(&job.head);
        if !problems.is_empty() {
            return Err(summary(&problems));
        }
        let message_id = format!("{}/{}", job.head.id, job.submission);
        messages.push(Outgoing {
            route: Route::Job(priority),
            body: body.into(),
            message_id,
            traceparent: None,
        });
    }
    Ok(Written {
        id: JobId::of(&letter.app, &document.client_msg_no).to_string(),
        app: letter.app.clone(),
        client_msg_no: document.client_msg_no,
        messages,
    })
}

#[cfg(test)]
mod tests;
