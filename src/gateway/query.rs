//! Looking at jobs: lists, one job with what hinders it, and what became of one recipient.
//!
//! Everything is told from what the ledger, the limiter and the shelves hold, so any process answers
//! alike, the command line too. Nothing here changes anything.

use std::ops::ControlFlow;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::Gateway;
use super::params::Params;
use super::problem::Refusal;
use super::wire::{JobDetail, JobList, RecipientFate, RecipientState, Verification};
use crate::clock::now_ms;
use crate::domain::accounts::Audit;
use crate::domain::ids::{Fingerprinter, JobId};
use crate::domain::letters::{DeadRow, last_attempt_ms, read_letter};
use crate::domain::outcome::Outcome;
use crate::error::chain;
use crate::ports::{
    Broker, BrokerError, ClaimState, JobFilter, JobPlace, JobQuery, JobRecord, JobState,
    KeptMessage, LedgerError, Shelf, Shelves, Transport,
};
use crate::steer::{self, Facts};
use crate::worker::Store;

/// Jobs in a list that asks for no number, and the most in one.
const LIST_USUAL: usize = 50;
pub const LIST_MAX: usize = 1000;

type Shared<B, S, T> = State<Arc<Gateway<B, S, T>>>;

// ---------------------------------------------------------------------------------------------
// Lists
// ---------------------------------------------------------------------------------------------

pub(super) async fn list<B: Broker, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    mut params: Params,
) -> Result<Json<JobList>, Refusal> {
    let now = now_ms();
    let filter = JobFilter {
        app: params.text("app"),
        target: params.text("target"),
        client_msg_no: params.text("client_msg_no"),
        state: params.one_of("state", &JobState::ALL, JobState::as_str),
        since_ms: params.time("since", now),
        until_ms: params.time("until", now),
    };
    let most = params.limit(LIST_USUAL, LIST_MAX);
    let cursor = params.text("cursor");
    let after = cursor.as_deref().map(read_cursor);
    if after == Some(None) {
        params.problem("cursor", "not one of ours; leave it out to begin anew");
    }
    params.finish()?;
    let query = JobQuery {
        filter,
        after: after.flatten(),
        most,
    };
    Ok(Json(jobs(&gateway.context.store, query).await?))
}

/// A page of jobs.
pub async fn jobs<S: Store>(store: &S, query: JobQuery) -> Result<JobList, LedgerError> {
    // The key of a job is its name: no list needs to be walked.
    if let (Some(app), Some(client_msg_no)) = (&query.filter.app, &query.filter.client_msg_no) {
        let found = store.job(JobId::of(app, client_msg_no)).await?;
        let at = |record: &JobRecord| record.accepted_at_ms;
        let filter = &query.filter;
        let found = found.filter(|record| {
            filter.takes(record)
                && filter.since_ms.is_none_or(|since| at(record) >= since)
                && filter.until_ms.is_none_or(|until| at(record) < until)
        });
        return Ok(JobList {
            jobs: found.into_iter().collect(),
            next: None,
        });
    }
    let page = store.jobs(&query).await?;
    Ok(JobList {
        jobs: page.jobs,
        next: page.next.map(write_cursor),
    })
}

fn write_cursor(place: JobPlace) -> String {
    URL_SAFE_NO_PAD.encode(format!("{}.{}", place.at_ms, place.job))
}

/// The place a cursor of ours stands for.
pub fn read_cursor(cursor: &str) -> Option<JobPlace> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?;
    let (at_ms, job) = text.split_once('.')?;
    Some(JobPlace {
        at_ms: at_ms.parse().ok()?,
        job: job.parse().ok()?,
    })
}

// ---------------------------------------------------------------------------------------------
// One job
// ---------------------------------------------------------------------------------------------

/// The ids a job may have that is named by its id, or by its client_msg_no and `app`.
pub fn ids_of(name: &str, app: &str) -> impl Iterator<Item = JobId> {
    // A client_msg_no may look like an id.
    name.parse().ok().into_iter().chain([JobId::of(app, name)])
}

pub(super) async fn find<B: Broker, S: Store, T>(
    gateway: &Gateway<B, S, T>,
    job: &str,
    mut params: Params,
) -> Result<JobRecord, Refusal> {
    let app = params.text("app");
    params.finish()?;
    named(gateway, job, app.as_deref())
        .await?
        .ok_or_else(|| unknown(job))
}

/// The job with this name; only one of this app, if one is given.
pub(super) async fn named<B: Broker, S: Store, T>(
    gateway: &Gateway<B, S, T>,
    job: &str,
    app: Option<&str>,
) -> Result<Option<JobRecord>, LedgerError> {
    for id in ids_of(job, app.unwrap_or("default")) {
        let found = gateway.context.store.job(id).await?;
        let found = found.filter(|record| app.is_none_or(|app| record.app == app));
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

pub(super) fn unknown(job: &str) -> Refusal {
    Refusal::NotFound(format!(
        "there is no job {job:?}: not accepted yet, rejected (`fanwise dead rejected` shows why), or older \
         than the dedup window; a job is named by its id, or by its client_msg_no with ?app="
    ))
}

pub(super) async fn show<B: Broker, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    Path(job): Path<String>,
    params: Params,
) -> Result<Json<JobDetail>, Refusal> {
    let record = find(&gateway, &job, params).await?;
    let store = &gateway.context.store;
    Ok(Json(detail(store, &gateway.facts, record).await?))
}

pub(super) async fn verify<B: Broker, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    Path(job): Path<String>,
    params: Params,
) -> Result<Json<Verification>, Refusal> {
    let record = find(&gateway, &job, params).await?;
    let ledger = gateway.context.store.audit(&record).await?;
    let differences = differences(&record, &ledger);
    Ok(Json(Verification {
        record,
        ledger,
        differences,
    }))
}

/// What keeps a job's accounts from being exact: what differs, and what is not known.
pub fn differences(record: &JobRecord, ledger: &Audit) -> Vec<String> {
    let mut differences = record.differences(ledger);
    differences.extend(record.unknown());
    differences
}

/// A job with its speed, and what keeps it from going faster.
pub async fn detail<S: Store>(
    store: &S,
    facts: &Facts,
    record: JobRecord,
) -> Result<JobDetail, LedgerError> {
    let now = now_ms();
    let recipients_per_second = record.per_second(now);
    let eta_seconds = recipients_per_second
        .filter(|rate| *rate > 0.0)
        .map(|rate| (record.pending as f64 / rate).ceil() as u64);
    Ok(JobDetail {
        recipients_per_second,
        eta_seconds,
        hindrances: steer::hindrances(store, facts, &record, now).await?,
        record,
    })
}

// ---------------------------------------------------------------------------------------------
// One recipient
// ---------------------------------------------------------------------------------------------

pub(super) async fn recipient<B: Broker + Shelves, S: Store, T: Transport>(
    State(gateway): Shared<B, S, T>,
    Path((job, user)): Path<(String, String)>,
    params: Params,
) -> Result<Json<RecipientFate>, Refusal> {
    let record = find(&gateway, &job, params).await?;
    let context = &*gateway.context;
    let secret = &context.settings.fingerprint_secret;
    let fate = fate(&context.store, &gateway.broker, secret, &record, &user).await?;
    Ok(Json(fate))
}

/// Did this user get it, and why not?
pub async fn fate<S: Store, B: Shelves>(
    store: &S,
    broker: &B,
    fingerprint_secret: &str,
    record: &JobRecord,
    user: &str,
) -> Result<RecipientFate, LedgerError> {
    let fingerprint = Fingerprinter::new(fingerprint_secret, record.job).fingerprint(user);
    let found = store.look(record, &[fingerprint]).await?;
    let found = found.first().copied().unwrap_or(ClaimState::Granted);
    let (state, mut explanation) = told(found, record.state);
    let mut dead_letter = None;
    if matches!(state, RecipientState::Failed | RecipientState::Uncertain) {
        match last_letter(broker, record, user).await {
            Ok(Some(row)) => {
                explanation = format!(
                    "{explanation}: after {} attempt(s) the last answer was {} {}: {}",
                    row.attempts,
                    row.class.as_str(),
                    row.code,
                    row.text
                );
                dead_letter = Some(row);
            }
            Ok(None) => explanation.push_str("; its dead letter is not there any more"),
            Err(error) => {
                explanation = format!(
                    "{explanation}; its dead letter cannot be read now: {}",
                    chain(&error)
                );
            }
        }
    }
    Ok(RecipientFate {
        job: record.job,
        app: record.app.clone(),
        client_msg_no: record.client_msg_no.clone(),
        target: record.target.clone(),
        recipient: user.to_owned(),
        state,
        explanation,
        dead_letter,
    })
}

fn told(found: ClaimState, job: JobState) -> (RecipientState, String) {
    let (state, words) = match found {
        ClaimState::Granted if job == JobState::Completed => {
            (RecipientState::Unseen, "was not on the list of this job")
        }
        ClaimState::Granted => (
            RecipientState::Unseen,
            "has no outcome and nobody is at it: waits for its turn or its next attempt, or is not on \
             the list",
        ),
        ClaimState::Held { .. } => (RecipientState::Claimed, "a worker is at it"),
        ClaimState::InDoubt => (
            RecipientState::InDoubt,
            "a call for it was not answered: perhaps sent; it waits for its next attempt",
        ),
        ClaimState::TakenOver => (
            RecipientState::InDoubt,
            "a worker that was at it ended without an answer: perhaps sent; the next delivery decides",
        ),
        ClaimState::Settled(outcome) => match outcome {
            Outcome::Sent => (RecipientState::Sent, "the target accepted the message"),
            Outcome::Failed => (
                RecipientState::Failed,
                "the target did not accept the message",
            ),
            Outcome::Uncertain => (RecipientState::Uncertain, "perhaps sent, perhaps not"),
            Outcome::Expired => (RecipientState::Expired, "the job expired first"),
            // A duplicate is an outcome of a list entry; no recipient is recorded so.
            Outcome::Cancelled | Outcome::Duplicate => {
                (RecipientState::Cancelled, "the job was cancelled first")
            }
        },
    };
    (state, words.to_owned())
}

/// The latest dead letter of a recipient.
async fn last_letter<B: Shelves>(
    broker: &B,
    record: &JobRecord,
    user: &str,
) -> Result<Option<DeadRow>, BrokerError> {
    let job = record.job.to_string();
    let mut last: Option<(u64, DeadRow)> = None;
    let visit = |message: KeptMessage| {
        if let Some(letter) = read_letter(&message.body).filter(|letter| letter.job == job) {
            let at = last_attempt_ms(&letter);
            let dead = letter.recipients.iter().find(|dead| dead.recipient == user);
            if let Some(dead) = dead
                && last.as_ref().is_none_or(|(before, _)| *before <= at)
            {
                last = Some((at, DeadRow::new(&letter, dead, true)));
            }
        }
        ControlFlow::Continue(())
    };
    broker.read(Shelf::Dead, visit).await?;
    Ok(last.map(|(_, row)| row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_come_back() {
        let place = JobPlace {
            at_ms: 1_700_000_000_000,
            job: JobId::of("shop", "promo"),
        };
        assert_eq!(read_cursor(&write_cursor(place)), Some(place));
        for wrong in ["", "x", "MTIz", "ß"] {
            assert_eq!(read_cursor(wrong), None, "{wrong}");
        }
    }
}
