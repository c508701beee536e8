//! One session's worth of work: the context, the session's publisher, and the two signals that end it.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::context::{Context, RECONNECT, Store, chain, rfc3339};
use crate::domain::accounts::Accounts;
use crate::domain::announce::{EventKind, JobEvent};
use crate::domain::slice::Head;
use crate::json;
use crate::metrics::LedgerStep;
use crate::ports::{Lost, Outgoing, PublishError, Publisher, Route, Standing};
use crate::worker::context::now_ms;

pub(super) struct Shift<S, T, P> {
    pub(super) context: Arc<Context<S, T>>,
    pub(super) publisher: P,
    /// The session is gone: nothing can be published or acked any more.
    pub(super) lost: CancellationToken,
    /// No new work is to be started: the process drains, or the session is lost (a child of both). Of
    /// a shift of one delivery also: its slice is to make way.
    pub(super) halt: CancellationToken,
}

impl<S: Store, T, P: Publisher> Shift<S, T, P> {
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
        head: &Head,
        accounts: Accounts,
    ) -> Result<(), Lost> {
        let event = event(kind, head, accounts);
        self.publish(vec![Outgoing {
            route: Route::Event {
                app: head.app.clone(),
                event: kind.as_str(),
            },
            body: json::bytes(&event).into(),
            message_id: format!("{}.{}.{}", head.id, kind.as_str(), accounts.settled()),
            traceparent: None,
        }])
        .await?;
        self.context.metrics.event(kind);
        Ok(())
    }

    /// What follows from where a job stands: progress is announced, and a finished job is audited and
    /// completed. Whoever brings the last outcome does it, before its ack: if it dies here, the
    /// delivery comes back and the next one does it.
    pub(super) async fn follow(&self, head: &Head, standing: Standing) -> Result<(), Lost> {
        if standing.finished && !standing.completed {
            return self.complete(head).await;
        }
        if !standing.finished && self.context.progress_due(head.id) {
            return self
                .announce(EventKind::Progress, head, standing.accounts)
                .await;
        }
        Ok(())
    }

    async fn complete(&self, head: &Head) -> Result<(), Lost> {
        let context = &self.context;
        let lost = || self.lost.cancelled();
        let record = context
            .step(LedgerStep::Audit, lost(), || context.store.job(head.id))
            .await
            .map_err(|_| Lost)?;
        // Expired between two steps: there is nothing left to complete.
        let Some(record) = record else { return Ok(()) };
        let audit = context
            .step(LedgerStep::Audit, lost(), || context.store.audit(&record))
            .await
            .map_err(|_| Lost)?;
        let differences = audit.differences(&record.accounts);
        if !differences.is_empty() {
            context.metrics.job_inconsistent();
            tracing::error!(
                job.id = %head.id,
                "job is finished but its accounts are not exact: {}",
                differences.join("; ")
            );
            return Ok(());
        }
        self.announce(EventKind::Completed, head, record.accounts)
            .await?;
        self.notify(head, &record).await?;
        let first = context
            .step(LedgerStep::Complete, lost(), || {
                context.store.complete(head.id)
            })
            .await
            .map_err(|_| Lost)?;
        if first {
            context.forget_directives(head.id).await;
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
            tracing::info!(
                job.id = %head.id, job.app = head.app, total, sent, duplicate, failed, uncertain,
                expired, cancelled, "job completed, accounts exact"
            );
        }
        Ok(())
    }
}

/// Something that happened to a job now.
pub(super) fn event(kind: EventKind, head: &Head, accounts: Accounts) -> JobEvent {
    JobEvent {
        v: 1,
        event: kind,
        job: head.id.to_string(),
        app: head.app.clone(),
        client_msg_no: head.client_msg_no.clone(),
        target: head.target.clone(),
        at: rfc3339(now_ms()),
        accounts,
        pending: accounts.pending(),
        id: None,
    }
}
