//! One session's worth of work: the context, the session's publisher, and the two signals that end it.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::context::{Context, RECONNECT};
use crate::clock::{now_ms, rfc3339};
use crate::domain::accounts::Accounts;
use crate::domain::announce::{EventKind, JobEvent};
use crate::domain::ids::JobId;
use crate::domain::slice::Head;
use crate::error::chain;
use crate::json;
use crate::metrics::LedgerStep;
use crate::ports::{JobRecord, Lost, Outgoing, PublishError, Publisher, Route, JobProgress, Store};

pub(super) struct WorkerSession<S, T, P> {
    pub(super) context: Arc<Context<S, T>>,
    pub(super) publisher: P,
    /// The session is gone: nothing can be published or acked any more.
    pub(super) lost: CancellationToken,
    /// No new work is to be started: the process drains, or the session is lost (a child of both). Of
    /// a shift of one delivery also: its slice is to make way.
    pub(super) halt: CancellationToken,
}

/// Which job something happened to, and whom it named to be told.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) id: JobId,
    pub(super) app: &'a str,
    pub(super) client_msg_no: &'a str,
    pub(super) target: &'a str,
    pub(super) callback_url: Option<&'a str>,
    pub(super) reply_to: Option<&'a str>,
}

impl<'a> From<&'a Head> for Job<'a> {
    fn from(head: &'a Head) -> Self {
        Self {
            id: head.id,
            app: &head.app,
            client_msg_no: &head.client_msg_no,
            target: &head.target,
            callback_url: head.callback_url.as_deref(),
            reply_to: head.reply_to.as_deref(),
        }
    }
}

impl<'a> From<&'a JobRecord> for Job<'a> {
    fn from(record: &'a JobRecord) -> Self {
        Self {
            id: record.job,
            app: &record.app,
            client_msg_no: &record.client_msg_no,
            target: &record.target,
            callback_url: record.callback_url.as_deref(),
            reply_to: record.reply_to.as_deref(),
        }
    }
}

impl<S: Store, T, P: Publisher> WorkerSession<S, T, P> {
    /// The same shift for one delivery, which another token tells to stop.
    pub(super) fn until(&self, halt: CancellationToken) -> Self {
        Self {
            context: Arc::clone(&self.context),
            publisher: self.publisher.clone(),
            lost: self.lost.clone(),
            halt,
        }
    }

    /// Publishes until the broker has confirmed, or the session is lost.
    pub(super) async fn publish(&self, messages: Vec<Outgoing>) -> Result<(), Lost> {
        let mut delays = RECONNECT.delays();
        loop {
            match self.publisher.publish(messages.clone()).await {
                Ok(()) => return Ok(()),
                Err(PublishError::Lost(lost)) => return Err(lost),
                Err(error) => {
                    self.context.metrics.publish_failed();
                    tracing::warn!(error = %chain(&error), "a publish is repeated");
                }
            }
            tokio::select! {
                biased;
                () = self.lost.cancelled() => return Err(Lost),
                () = tokio::time::sleep(delays.next_delay()) => {}
            }
        }
    }

    /// Announces something that happened to a job.
    pub(super) async fn announce(
        &self,
        kind: EventKind,
        job: &Job<'_>,
        accounts: Accounts,
    ) -> Result<(), Lost> {
        let event = event(kind, job, accounts);
        self.publish(vec![Outgoing {
            route: Route::Event {
                app: job.app.to_owned(),
                event: kind.as_str(),
            },
            body: json::bytes(&event).into(),
            message_id: format!("{}.{}.{}", job.id, kind.as_str(), accounts.settled()),
            traceparent: None,
        }])
        .await?;
        self.context.metrics.event(kind);
        Ok(())
    }

    /// What follows from where a job stands: progress is announced, and a finished job is audited and
    /// completed. Whoever brings the last outcome does it, before its ack: if it dies here, the
    /// delivery comes back and the next one does it.
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

    /// Audits a finished job and completes it: one that was `abandoned` even where its accounts differ,
    /// since nothing will mend them.
    pub(super) async fn complete(&self, job: &Job<'_>, abandoned: bool) -> Result<(), Lost> {
        let context = &self.context;
        let lost = || self.lost.cancelled();
        let record = context
            .step(LedgerStep::Audit, lost(), || context.store.job(job.id))
            .await
            .map_err(|_| Lost)?;
        // Expired between two steps: there is nothing left to complete.
        let Some(record) = record else { return Ok(()) };
        let audit = context
            .step(LedgerStep::Audit, lost(), || context.store.audit(&record))
            .await
            .map_err(|_| Lost)?;
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
            context.metrics.job_completed();
            let Accounts {
                total,
                sent,
                duplicate,
                failed,
                uncertain,
                expired,
                cancelled,
            } = record.accounts;
            let unknown = record.unknown();
            let exact = match unknown.is_empty() && differences.is_empty() {
                true => "accounts exact".to_owned(),
                false => format!("accounts not exact: {}", unknown.join("; ")),
            };
            tracing::info!(
                job.id = %job.id, job.app = job.app, total, sent, duplicate, failed, uncertain,
                expired, cancelled, "job completed, {exact}"
            );
        }
        Ok(())
    }
}

/// Something that happened to a job now.
pub(super) fn event(kind: EventKind, job: &Job<'_>, accounts: Accounts) -> JobEvent {
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
        id: None,
    }
}
