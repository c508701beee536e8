//! Reads, redrives and purges dead letters, over the ports alone, so that the command line does it
//! without a gateway.
//!
//! A retained queue has no index: every walk reads all of it, and holds one window of recipients to
//! redrive. The gateway shows pages from a copy of it.
//!
//! A letter is published before the outcome is recorded, and its confirm may be lost. Then the
//! slice is delivered again, and the recipient may get the message after all. So the ledger
//! overrules a letter, see [`LedgerView`]. A ledger that has forgotten a job overrules nothing.
//!
//! A redrive makes a new job from letters and admits it by the same rules as any other job. It
//! publishes first and purges afterwards, if at all, and only letters whose new job the intake has
//! accepted. If it is killed in between, the letters stay, and redriving them again gives the same
//! job.

mod redrive;
mod resolve;

use std::ops::ControlFlow;

use futures_util::{StreamExt as _, TryStreamExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::redrive::{ACCEPT_PATIENCE, Redrive, RedriveRefused, Redriven, RedrivenJob, redrive};
pub use self::resolve::{ResolveAs, Resolved, resolve};
use super::admission::Rules;
use crate::domain::announce::{DeadLetter, DeadRecipient};
use crate::domain::ids::{Fingerprint, Fingerprinter};
use crate::domain::letters::{
    DeadRow, Key, Left, LetterFilter, Window, last_attempt_ms, milliseconds, read_letter, without,
};
use crate::domain::outcome::Outcome;
use crate::ports::{
    BrokerError, ClaimState, JobRecord, JobState, Ledger, LedgerError, PublishError, RetainedEdit,
    RetainedMessage, RetainedQueue, RetainedQueues,
};

/// The most jobs that the ledger is asked about at a time, and the most recipients in one request.
const JOBS_ASKED: usize = 16;
const RECIPIENTS_ASKED: usize = 5000;

/// Why dead letters could not be read or redriven. Jobs that a redrive has published stay, and
/// redriving again is right.
#[derive(Debug, thiserror::Error)]
pub enum DeadError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A job is neither accepted nor refused now.
    #[error("{0}")]
    Undecided(String),
}

// ---------------------------------------------------------------------------------------------
// The ledger's view of letters
// ---------------------------------------------------------------------------------------------

/// Compares letters with the ledger.
#[derive(Debug)]
pub struct LedgerView<'a, S> {
    pub store: &'a S,
    /// The key of the fingerprints.
    pub secret: &'a str,
}

/// A recipient, with the facts in its letter.
#[derive(Clone, Copy, Debug)]
pub struct Named<'a> {
    pub recipient: &'a str,
    pub outcome: Outcome,
    /// The time of the last attempt.
    pub at_ms: u64,
}

impl<'a> Named<'a> {
    fn of_row(row: &'a DeadRow) -> Self {
        Self {
            recipient: &row.recipient,
            outcome: row.outcome,
            at_ms: milliseconds(&row.last_attempt_at),
        }
    }
}

/// A letter that is this much older than its job belongs to an earlier job under the same key,
/// which the ledger has forgotten. Clocks differ by less.
const EARLIER_MS: u64 = 60 * 60 * 1000;

/// The state of a letter's recipient according to the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LetterState {
    /// It ended with this outcome, `failed` or `uncertain`.
    Dead(Outcome),
    /// It got the message, or its job ended for it before.
    Otherwise,
    /// It has no outcome yet: a delivery of its job is still to come.
    UnderWay,
}

impl LetterState {
    /// A letter with a doubt keeps it, unless the ledger knows that the message was sent.
    fn of(named: &Named<'_>, ledger: ClaimState, record: &JobRecord) -> Self {
        let letter = named.outcome;
        if named.at_ms + EARLIER_MS < record.accepted_at_ms {
            return Self::Dead(letter);
        }
        let doubted = letter == Outcome::Uncertain;
        match ledger {
            ClaimState::Settled(Outcome::Sent) => Self::Otherwise,
            ClaimState::Settled(Outcome::Uncertain) => Self::Dead(Outcome::Uncertain),
            ClaimState::Settled(Outcome::Failed) => Self::Dead(letter),
            ClaimState::Settled(_) if doubted => Self::Dead(letter),
            ClaimState::Settled(_) => Self::Otherwise,
            ClaimState::Granted
            | ClaimState::InDoubt
            | ClaimState::TakenOver
            | ClaimState::Held { .. } => {
                // A rebuilt record lacks the outcomes of earlier recipients.
                match record.state == JobState::Completed || record.rebuilt {
                    true => Self::Dead(letter),
                    false => Self::UnderWay,
                }
            }
        }
    }
}

impl<S: Ledger> LedgerView<'_, S> {
    /// The states of recipients of one job, in the order asked.
    async fn letter_states(
        &self,
        job: &str,
        letters: &[Named<'_>],
    ) -> Result<Vec<LetterState>, LedgerError> {
        let record = match job.parse() {
            Ok(job) => self.store.job(job).await?,
            Err(_) => None,
        };
        let Some(record) = record else {
            let as_it_says = letters.iter().map(|it| LetterState::Dead(it.outcome));
            return Ok(as_it_says.collect());
        };
        let recipients = letters.iter().map(|it| it.recipient);
        let states = self.states(&record, recipients).await?;
        let pairs = letters.iter().zip(states);
        let letter_states = pairs.map(|(named, state)| LetterState::of(named, state, &record));
        Ok(letter_states.collect())
    }

    /// The claim states of recipients of a job, in the order asked.
    async fn states<'r>(
        &self,
        record: &JobRecord,
        recipients: impl Iterator<Item = &'r str>,
    ) -> Result<Vec<ClaimState>, LedgerError> {
        let fingerprinter = Fingerprinter::new(self.secret, record.job);
        let fingerprints: Vec<Fingerprint> =
            recipients.map(|it| fingerprinter.fingerprint(it)).collect();
        let mut states = Vec::with_capacity(fingerprints.len());
        for some in fingerprints.chunks(RECIPIENTS_ASKED) {
            states.extend(self.store.peek(record, some).await?);
        }
        Ok(states)
    }

    /// The ledger's outcome for each recipient of a letter; `None` for recipients that did not end
    /// failed or uncertain.
    pub async fn outcomes(
        &self,
        job: &str,
        letters: &[Named<'_>],
    ) -> Result<Vec<Option<Outcome>>, LedgerError> {
        let letter_states = self.letter_states(job, letters).await?;
        let told = |(state, named): (LetterState, &Named<'_>)| match state {
            LetterState::Dead(outcome) => Some(outcome),
            LetterState::UnderWay => Some(named.outcome),
            LetterState::Otherwise => None,
        };
        Ok(letter_states.into_iter().zip(letters).map(told).collect())
    }

    async fn outcomes_of_rows(
        &self,
        rows: &[DeadRow],
    ) -> Result<Vec<Option<Outcome>>, LedgerError> {
        let letters: Vec<_> = rows.iter().map(Named::of_row).collect();
        match rows.first() {
            Some(row) => self.outcomes(&row.job, &letters).await,
            None => Ok(Vec::new()),
        }
    }

    /// The rows that the ledger does not contradict, with its outcomes. Rows of one job must be
    /// adjacent.
    pub async fn correct(&self, rows: Vec<DeadRow>) -> Result<Vec<DeadRow>, LedgerError> {
        let of_one_job = rows.chunk_by(|a, b| a.job == b.job);
        let asked: Vec<_> = of_one_job.map(|rows| self.outcomes_of_rows(rows)).collect();
        let outcomes: Vec<Vec<_>> = futures_util::stream::iter(asked)
            .buffered(JOBS_ASKED)
            .try_collect()
            .await?;
        let outcomes = outcomes.into_iter().flatten();
        let corrected = |(row, outcome): (DeadRow, Option<Outcome>)| {
            let outcome = outcome?;
            Some(DeadRow { outcome, ..row })
        };
        Ok(rows
            .into_iter()
            .zip(outcomes)
            .filter_map(corrected)
            .collect())
    }
}

/// Why a filter without results cannot have any: it names something that does not exist. An empty
/// answer would hide a typing error.
pub async fn unknown<S: Ledger>(
    rules: &impl Rules,
    store: Option<&S>,
    wanted: &LetterFilter,
) -> Result<Option<String>, LedgerError> {
    if let Some(app) = wanted.app().filter(|app| rules.permissions(app).is_none()) {
        return Ok(Some(format!("there is no app {app:?}")));
    }
    if let Some(target) = wanted.target().filter(|it| rules.target(it).is_none()) {
        return Ok(Some(format!("there is no target {target:?}")));
    }
    let (Some(store), Some(names)) = (store, wanted.job()) else {
        return Ok(None);
    };
    for id in names.iter().filter_map(|name| name.parse().ok()) {
        let record = store.job(id).await?;
        if record.is_some_and(|record| wanted.app().is_none_or(|app| app == record.app)) {
            return Ok(None);
        }
    }
    let (name, app) = (&names[0], wanted.app().unwrap_or("default"));
    Ok(Some(format!(
        "there is no job {name:?} of app {app:?}, and there are no dead letters of it; a job is named by \
         its id, or by its client_msg_no and its app"
    )))
}

// ---------------------------------------------------------------------------------------------
// Pages
// ---------------------------------------------------------------------------------------------

/// Adds a recipient of a letter to a page, or removes what it overrules.
pub fn put(
    window: &mut Window<DeadRow>,
    letter: &DeadLetter,
    dead: &DeadRecipient,
    wanted: &LetterFilter,
    with_content: bool,
) {
    if !wanted.takes_letter(letter) {
        return;
    }
    let key = (letter.job.clone(), dead.recipient.clone());
    let at = last_attempt_ms(letter);
    if !wanted.takes_recipient(dead) {
        window.overrule(&key, at);
    } else if window.takes(&key) {
        window.put(key, at, DeadRow::new(letter, dead, with_content));
    }
}

/// The rows of a page, and where the next one begins. Rows that the ledger contradicts are left
/// out, so a page with a next one may have fewer.
pub async fn page<S: Ledger>(
    view: &LedgerView<'_, S>,
    window: Window<DeadRow>,
    wanted: &LetterFilter,
) -> Result<(Vec<DeadRow>, Option<Key>), LedgerError> {
    let (rows, next) = window.finish();
    let mut rows = view.correct(rows.map(|(_, row)| row).collect()).await?;
    rows.retain(|row| wanted.takes_row(row));
    Ok((rows, next))
}

/// All matching rows, also those that a later letter overrules. A caller that filters by outcome,
/// class, code or time leaves these out of `wanted`, and compares them with the latest row of each
/// recipient.
pub async fn all<B: RetainedQueues>(
    broker: &B,
    wanted: &LetterFilter,
    with_content: bool,
) -> Result<Vec<DeadRow>, BrokerError> {
    let mut rows = Vec::new();
    each(broker, wanted, |letter, dead, taken| {
        if taken {
            rows.push(DeadRow::new(letter, dead, with_content));
        }
    })
    .await?;
    Ok(rows)
}

/// Shows every recipient of the matching letters, and whether the recipient matches itself.
async fn each<B: RetainedQueues>(
    broker: &B,
    wanted: &LetterFilter,
    mut show: impl FnMut(&DeadLetter, &DeadRecipient, bool) + Send,
) -> Result<(), BrokerError> {
    let visit = |message: RetainedMessage| {
        if let Some(letter) = read_letter(&message.body).filter(|it| wanted.takes_letter(it)) {
            for dead in &letter.recipients {
                show(&letter, dead, wanted.takes_recipient(dead));
            }
        }
        ControlFlow::Continue(())
    };
    broker.read(RetainedQueue::Dead, visit).await.map(drop)
}

// ---------------------------------------------------------------------------------------------
// Purge
// ---------------------------------------------------------------------------------------------

/// The result of a purge, or of its dry run.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Purged {
    pub dry_run: bool,
    /// Removed rows: one for each recipient of each letter.
    pub recipients: u64,
}

/// Removes the matching recipients; with `dry_run` it only counts them.
pub async fn purge<B: RetainedQueues>(
    broker: &B,
    wanted: &LetterFilter,
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

/// Removes recipients from the letters of the retained queue, and returns how many.
async fn remove<B: RetainedQueues>(
    broker: &B,
    goes: impl Fn(&DeadLetter, &DeadRecipient) -> bool + Send + Sync,
) -> Result<u64, BrokerError> {
    let mut removed = 0;
    let decide = |message: RetainedMessage| {
        let Some(letter) = read_letter(&message.body) else {
            return RetainedEdit::Keep;
        };
        let mut going = 0;
        let left = without(&message.body, &letter, |dead| {
            let goes = goes(&letter, dead);
            going += u64::from(goes);
            goes
        });
        let edited = match left {
            Left::All => return RetainedEdit::Keep,
            Left::Nothing => RetainedEdit::Remove,
            Left::Some(body) => RetainedEdit::Replace(body.into()),
        };
        removed += going;
        edited
    };
    broker.edit(RetainedQueue::Dead, decide).await?;
    Ok(removed)
}

#[cfg(test)]
mod tests;
