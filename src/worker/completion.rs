//! Takes the steps that follow from a job's progress. It announces progress. When all recipients of
//! a job are settled, it audits the job, announces it as completed, calls back and marks it
//! completed.
//!
//! The worker that records the last outcome takes these steps before it acks. If it dies between
//! them, the delivery comes back and the next worker takes the steps again; each step may be
//! repeated.

use std::time::Duration;

use super::session::WorkerSession;
use crate::clock::{now_ms, rfc3339};
use crate::domain::accounts::Accounts;
use crate::domain::announce::{EventKind, JobEvent, Reached};
use crate::domain::ids::JobId;
use crate::domain::slice::Head;
use crate::json;
use crate::metrics::LedgerStep;
use crate::ports::{JobProgress, JobRecord, Lost, Outgoing, Publisher, Route, Store};

/// The job an event is about, and where its notices go.
#[derive(Clone, Copy)]
pub(super) struct NotifiedJob<'a> {
    pub(super) id: JobId,
    pub(super) app: &'a str,
    pub(super) client_msg_no: &'a str,
    pub(super) target: &'a str,
    pub(super) callback_url: Option<&'a str>,
    pub(super) reply_to: Option<&'a str>,
    /// The recipients that its second target reached, once the job is completed.
    pub(super) reached: Option<&'a Reached>,
}

impl<'a> From<&'a Head> for NotifiedJob<'a> {
    fn from(head: &'a Head) -> Self {
        Self {
            id: head.id,
            app: &head.app,
            client_msg_no: &head.client_msg_no,
            target: head.first_target(),
            callback_url: head.callback_url.as_deref(),
            reply_to: head.reply_to.as_deref(),
            reached: None,
        }
    }
}

impl<'a> From<&'a JobRecord> for NotifiedJob<'a> {
    fn from(record: &'a JobRecord) -> Self {
        Self {
            id: record.job,
            app: &record.app,
            client_msg_no: &record.client_msg_no,
            target: &record.target,
            callback_url: record.callback_url.as_deref(),
            reply_to: record.reply_to.as_deref(),
            reached: None,
        }
    }
}

/// An event as a message.
pub(super) fn announcement(kind: EventKind, job: &NotifiedJob<'_>, accounts: Accounts) -> Outgoing {
    Outgoing {
        route: Route::Event {
            app: job.app.to_owned(),
            event: kind.as_str(),
        },
        body: json::bytes(&event(kind, job, accounts)).into(),
        message_id: format!("{}.{}.{}", job.id, kind.as_str(), accounts.settled()),
        traceparent: None,
    }
}

impl<S: Store, T, P: Publisher> WorkerSession<S, T, P> {
    /// Announces something that happened to a job.
    pub(super) async fn announce(
        &self,
        kind: EventKind,
        job: &NotifiedJob<'_>,
        accounts: Accounts,
    ) -> Result<(), Lost> {
        self.publish(vec![announcement(kind, job, accounts)])
            .await?;
        self.context.metrics.event(kind);
        Ok(())
    }

    /// Takes the steps that follow from the progress of a job: announces it, or completes the job.
    pub(super) async fn follow(&self, head: &Head, progress: JobProgress) -> Result<(), Lost> {
        if progress.finished && !progress.completed {
            return self.complete(&head.into(), false).await;
        }
        if !progress.finished && self.context.progress_due(head.id) {
            return self
                .announce(EventKind::Progress, &head.into(), progress.accounts)
                .await;
        }
        Ok(())
    }

    /// Audits a finished job and completes it. An `abandoned` job is completed even if its accounts
    /// differ, since no later record will correct them.
    pub(super) async fn complete(
        &self,
        job: &NotifiedJob<'_>,
        abandoned: bool,
    ) -> Result<(), Lost> {
        let context = &self.context;
        let lost = || self.lost.cancelled();
        let closed = context
            .step(LedgerStep::Audit, lost(), || context.store.close(job.id))
            .await
            .map_err(|_| Lost)?;
        // The record expired between two steps: there is nothing left to complete.
        let Some((record, audit)) = closed else {
            return Ok(());
        };
        let differences = record.differences(&audit);
        if !differences.is_empty() {
            context.metrics.job_inconsistent();
            tracing::error!(
                job.id = %job.id,
                "job is finished but its accounts are not exact: {}",
                differences.join("; ")
            );
            if !abandoned {
                return Ok(());
            }
        }
        let reached = record.reached();
        let job = &NotifiedJob {
            reached: reached.as_ref(),
            ..*job
        };
        self.announce(EventKind::Completed, job, record.accounts)
            .await?;
        self.notify(job, &record).await?;
        let first = context
            .step(LedgerStep::Complete, lost(), || {
                context.store.complete(job.id)
            })
            .await
            .map_err(|_| Lost)?;
        if first {
            context.forget_directives(job.id).await;
            let took = now_ms().saturating_sub(record.due_at_ms());
            context.metrics.job_completed(Duration::from_millis(took));
            let Accounts {
                total,
                sent,
                duplicate,
                failed,
                uncertain,
                expired,
                cancelled,
                capped,
            } = record.accounts;
            let unknown = record.unknown();
            let exact = match unknown.is_empty() && differences.is_empty() {
                true => "accounts exact".to_owned(),
                false => format!("accounts not exact: {}", unknown.join("; ")),
            };
            tracing::info!(
                job.id = %job.id, job.app = job.app, total, sent, duplicate, failed, uncertain,
                expired, cancelled, capped, "job completed, {exact}"
            );
        }
        Ok(())
    }
}

/// An event about a job, dated now.
pub(super) fn event(kind: EventKind, job: &NotifiedJob<'_>, accounts: Accounts) -> JobEvent {
    JobEvent {
        v: 1,
        event: kind,
        job: job.id.to_string(),
        app: job.app.to_owned(),
        client_msg_no: job.client_msg_no.to_owned(),
        target: job.target.to_owned(),
        at: rfc3339(now_ms()),
        accounts,
        pending: accounts.pending(),
        fallback: job.reached.cloned(),
        id: None,
    }
}
