//! Follows the jobs of a request in the ledger until they are settled, at most as long as the
//! endpoint waits, and says what became of each recipient. If the jobs do not move, because their
//! target is parked or an operator has paused them, and no recipient has got anything yet, the
//! caller is to be answered "busy".

use std::time::{Duration, Instant};

use super::failure::Failure;
use super::prepare::Prepared;
use crate::clock::now_ms;
use crate::domain::accounts::Accounts;
use crate::domain::ids::JobId;
use crate::domain::outcome::{Outcome, RefusalKind};
use crate::error::chain;
use crate::gateway::Gateway;
use crate::im::ingress::{AllUsersReport, DropInEndpoint, JobReport, RecipientReport};
use crate::ports::{Broker, ClaimState, JobState, LedgerError, Reason, Store, Transport};
use crate::service::control::{self, Cause, Reader};

/// Time between two readings of a request's jobs: short at first, for small jobs.
const LOOK_MIN: Duration = Duration::from_millis(5);
const LOOK_MAX: Duration = Duration::from_millis(100);

/// When to ask again after a job that does not move; an operator may end that at any moment.
const AGAIN_MIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// Waits for all jobs to settle, at most as long as the endpoint allows. What cannot be read is
/// reported as pending: the jobs are durable, whatever the ledger says now.
pub(super) async fn wait<B: Broker, S: Store, T: Transport>(
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
pub(super) async fn standstill<B: Broker, S: Store, T: Transport>(
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
    let found = control::hindrances(store, &gateway.facts, &record, Reader::App, now).await?;
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
pub(super) fn pending(job_report: &JobReport) -> usize {
    let reports = job_report.recipients.iter();
    reports
        .filter(|(_, report)| *report == RecipientReport::Pending)
        .count()
}
