//! Reads jobs: lists, one job with the reasons why it is not faster, and the state of one
//! recipient.
//!
//! All of it comes from the ledger, the limiter and the retained queues, so every process, the
//! command line too, gives the same answers. Nothing here changes anything.

use std::ops::ControlFlow;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::api::{
    FateCode, JobDetail, JobList, MessageView, RecipientFate, RecipientRow, RecipientState,
};
use crate::clock::now_ms;
use crate::domain::accounts::Audit;
use crate::domain::ids::{Fingerprint, Fingerprinter, JobId};
use crate::domain::letters::{DeadRow, last_attempt_ms, read_letter};
use crate::domain::outcome::Outcome;
use crate::error::chain;
use crate::ports::{
    BrokerError, ClaimState, JobFilter, JobPage, JobPlace, JobQuery, JobRecord, JobState, Ledger,
    LedgerError, RetainedMessage, RetainedQueue, RetainedQueues, Store,
};
use crate::service::control::{self, Facts, Reader};

/// The most jobs in one page.
pub const LIST_MAX: usize = 1000;

/// A page of jobs, with what stops them.
pub async fn page<S: Store>(
    store: &S,
    facts: &Facts,
    query: JobQuery,
) -> Result<JobList, LedgerError> {
    let page = records(store, facts, query).await?;
    let now = now_ms();
    let stops = control::stops(store, facts, &page.jobs, now).await?;
    let jobs = page.jobs.into_iter().zip(stops);
    Ok(JobList {
        jobs: jobs
            .map(|(record, stops)| JobDetail::of(record, stops, now))
            .collect(),
        next: page.next.map(write_cursor),
    })
}

/// A page of records.
async fn records<S: Store>(
    store: &S,
    facts: &Facts,
    query: JobQuery,
) -> Result<JobPage, LedgerError> {
    if let Some(client_msg_no) = &query.filter.client_msg_no {
        let apps = facts.apps.keys().map(String::as_str);
        let jobs = with_key(store, apps, client_msg_no, &query.filter).await?;
        // An app that is no longer configured may have had such a job, so that the list decides.
        if query.filter.app.is_some() || !jobs.is_empty() {
            return Ok(JobPage { jobs, next: None });
        }
    }
    store.jobs(&query).await
}

/// The jobs with this `client_msg_no`, newest first. App and `client_msg_no` determine the id of a
/// job, so the list is not needed.
async fn with_key<S: Store>(
    store: &S,
    apps: impl Iterator<Item = &str>,
    client_msg_no: &str,
    filter: &JobFilter,
) -> Result<Vec<JobRecord>, LedgerError> {
    let apps: Vec<&str> = match &filter.app {
        Some(app) => vec![app],
        None => apps.collect(),
    };
    let mut jobs = Vec::new();
    for app in apps {
        jobs.extend(store.job(JobId::of(app, client_msg_no)).await?);
    }
    jobs.retain(|record| {
        let at = record.accepted_at_ms;
        filter.takes(record)
            && filter.since_ms.is_none_or(|since| at >= since)
            && filter.until_ms.is_none_or(|until| at < until)
    });
    jobs.sort_by_key(|record| std::cmp::Reverse(record.accepted_at_ms));
    Ok(jobs)
}

fn write_cursor(place: JobPlace) -> String {
    URL_SAFE_NO_PAD.encode(format!("{}.{}", place.at_ms, place.job))
}

/// The place in a cursor of ours.
pub fn read_cursor(cursor: &str) -> Option<JobPlace> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?;
    let (at_ms, job) = text.split_once('.')?;
    Some(JobPlace {
        at_ms: at_ms.parse().ok()?,
        job: job.parse().ok()?,
    })
}

/// The possible ids of a job that is named by its id, or by its client_msg_no and `app`.
pub fn ids_of(name: &str, app: &str) -> impl Iterator<Item = JobId> {
    // A client_msg_no may look like an id.
    name.parse().ok().into_iter().chain([JobId::of(app, name)])
}

/// The job with this name; if an app is given, only a job of this app.
pub async fn named<S: Ledger>(
    store: &S,
    job: &str,
    app: Option<&str>,
) -> Result<Option<JobRecord>, LedgerError> {
    for id in ids_of(job, app.unwrap_or("default")) {
        let found = store.job(id).await?;
        let found = found.filter(|record| app.is_none_or(|app| record.app == app));
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// The reasons why a job's accounts are not exact: differences and doubts.
pub fn differences(record: &JobRecord, ledger: &Audit) -> Vec<String> {
    let mut differences = record.differences(ledger);
    differences.extend(record.unknown());
    differences
}

/// A job with its speed, and the reasons why it is not faster.
pub async fn detail<S: Store>(
    store: &S,
    facts: &Facts,
    record: JobRecord,
    reader: Reader,
) -> Result<JobDetail, LedgerError> {
    let now = now_ms();
    let hindrances = control::hindrances(store, facts, &record, reader, now).await?;
    let audit_trail = store.trail(record.job).await?;
    Ok(JobDetail {
        audit_trail,
        ..JobDetail::of(record, hindrances, now)
    })
}

/// Whether a user got the message, and why not.
pub async fn recipient<S: Store, B: RetainedQueues>(
    store: &S,
    broker: &B,
    fingerprint_secret: &str,
    record: &JobRecord,
    user: &str,
) -> Result<RecipientFate, LedgerError> {
    let fingerprint = Fingerprinter::new(fingerprint_secret, record.job).fingerprint(user);
    let found = store.peek(record, &[fingerprint]).await?;
    let found = found.first().copied().unwrap_or(ClaimState::Granted);
    let mut because = told(found, record);
    let state = because.state();
    let mut explanation = because.explanation().to_owned();
    let mut dead_letter = None;
    if state == RecipientState::Sent && record.fallback.is_some() {
        let reasons = store.reasons(record.job, &[fingerprint]).await?;
        let reason = reasons.into_iter().flatten().next();
        if let Some(reason) = reason {
            because = FateCode::AcceptedBySecond;
            explanation = reason.text;
        }
    }
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
            Ok(None) => explanation.push_str("; its dead letter no longer exists"),
            Err(error) => {
                explanation = format!(
                    "{explanation}; its dead letter cannot be read now: {}",
                    chain(&error)
                );
            }
        }
    }
    let message = kept(store, record, &[fingerprint]).await?.pop().flatten();
    Ok(RecipientFate {
        message,
        job: record.job,
        app: record.app.clone(),
        client_msg_no: record.client_msg_no.clone(),
        target: record.target.clone(),
        recipient: user.to_owned(),
        state,
        explanation,
        because: Some(because),
        dead_letter,
    })
}

/// The messages to these recipients, if the job keeps ids.
async fn kept<S: Store>(
    store: &S,
    record: &JobRecord,
    recipients: &[Fingerprint],
) -> Result<Vec<Option<MessageView>>, LedgerError> {
    if !record.keep_ids {
        return Ok(vec![None; recipients.len()]);
    }
    let ids = store.kept_ids(record, recipients).await?;
    Ok(ids.into_iter().map(|id| id.map(Into::into)).collect())
}

/// Users that one question of [`lookup`] is about.
pub const LOOKUP_AT_ONCE: usize = 1000;

/// What became of these users. Costs two steps of the ledger for all of them together.
pub async fn lookup<S: Store>(
    store: &S,
    fingerprint_secret: &str,
    record: &JobRecord,
    users: &[String],
) -> Result<Vec<RecipientRow>, LedgerError> {
    let fingerprinter = Fingerprinter::new(fingerprint_secret, record.job);
    let users = users.iter();
    let prints: Vec<_> = users
        .clone()
        .map(|it| fingerprinter.fingerprint(it))
        .collect();
    let states = store.peek(record, &prints).await?;
    // A second target may have sent it.
    let falls_back = record.fallback.is_some();
    let ended = |state: &ClaimState| match state {
        ClaimState::Settled(Outcome::Sent) => falls_back,
        ClaimState::Settled(Outcome::Failed | Outcome::Uncertain) => true,
        _ => false,
    };
    let asked = prints.iter().zip(&states).filter(|(_, state)| ended(state));
    let asked: Vec<_> = asked.map(|(print, _)| *print).collect();
    let mut reasons = store.reasons(record.job, &asked).await?.into_iter();
    let messages = kept(store, record, &prints).await?;
    let rows = users
        .zip(states)
        .zip(messages)
        .map(|((user, found), message)| {
            let reason = ended(&found).then(|| reasons.next().flatten()).flatten();
            let because = told(found, record);
            let by_fallback = reason.as_ref().filter(|it| it.outcome == Outcome::Sent);
            let explanation = by_fallback.map_or(because.explanation(), |it| &it.text);
            let explanation = explanation.to_owned();
            let reason = reason.filter(|it| it.outcome != Outcome::Sent);
            RecipientRow {
                recipient: user.clone(),
                state: because.state(),
                explanation,
                class: reason.as_ref().map(|it| it.class),
                code: reason.as_ref().map(|it| it.code.clone()),
                text: reason.as_ref().map(|it| it.text.clone()),
                attempts: reason.map(|it| it.attempts),
                message,
            }
        });
    Ok(rows.collect())
}

fn told(found: ClaimState, job: &JobRecord) -> FateCode {
    let is_over = job.state == JobState::Completed;
    match found {
        ClaimState::Granted if is_over && job.lost_are_unsent() => FateCode::NotOnTheListOrLost,
        ClaimState::Granted if is_over && job.lost > 0 => FateCode::NotOnTheListOrPerhapsSent,
        ClaimState::Granted if is_over => FateCode::NotOnTheList,
        ClaimState::InDoubt | ClaimState::TakenOver if is_over => FateCode::NothingLeft,
        ClaimState::Granted => FateCode::Waits,
        ClaimState::Held { .. } => FateCode::Claimed,
        ClaimState::InDoubt => FateCode::NotAnswered,
        ClaimState::TakenOver => FateCode::WorkerStopped,
        ClaimState::Settled(outcome) => match outcome {
            Outcome::Sent => FateCode::Accepted,
            Outcome::Failed => FateCode::Refused,
            Outcome::Uncertain => FateCode::PerhapsSent,
            Outcome::Expired => FateCode::JobExpired,
            Outcome::Capped => FateCode::CapReached,
            // A duplicate is an outcome of a list entry; no recipient has it.
            Outcome::Cancelled | Outcome::Duplicate => FateCode::JobCancelled,
        },
    }
}

/// The latest dead letter of a recipient.
async fn last_letter<B: RetainedQueues>(
    broker: &B,
    record: &JobRecord,
    user: &str,
) -> Result<Option<DeadRow>, BrokerError> {
    let job = record.job.to_string();
    let mut last: Option<(u64, DeadRow)> = None;
    let visit = |message: RetainedMessage| {
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
    broker.read(RetainedQueue::Dead, visit).await?;
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
