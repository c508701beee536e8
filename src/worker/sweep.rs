//! Ends jobs that have nothing left to deliver, and lifts directives about jobs that the ledger has
//! forgotten.
//!
//! A slice that is deferred notes it in the ledger, so every running job shows activity at least
//! once in the longest rung of the retry ladder. A job without activity for longer, while nothing
//! waits on its target's lanes, has nothing left to deliver: the ledger went back to older data, or
//! messages were lost or removed. The sweep ends such a job, so that it does not run forever, and
//! reports how many outcomes are not known. If a slice of it arrives later, it is delivered and
//! counted.

use std::collections::HashSet;
use std::time::Duration;

use super::session::WorkerSession;
use crate::clock::now_ms;
use crate::domain::directive::{Directive, Scope};
use crate::error::chain;
use crate::metrics::LedgerStep;
use crate::ports::{Backlog, Broker, JobRecord, JobState, Lost, Publisher, Store};

/// Longest time between two rounds.
const ROUND_MAX: Duration = Duration::from_secs(60);

/// Directives about jobs that one round checks.
const DIRECTIVES: usize = 100;

/// Sweeps until the session ends.
pub(super) async fn sweep<B: Broker, S: Store, T, P: Publisher>(
    session: &WorkerSession<S, T, P>,
    broker: B,
) {
    let quiet = session.context.settings.abandoned_after;
    let pause = (quiet / 8).min(ROUND_MAX);
    let mut looked_at = HashSet::new();
    loop {
        let pausing = tokio::time::sleep(pause);
        if session.halt.run_until_cancelled(pausing).await.is_none() {
            return;
        }
        if round(session, &broker, quiet).await.is_err() {
            return;
        }
        forget_directives(session, &mut looked_at).await;
    }
}

async fn round<B: Broker, S: Store, T, P: Publisher>(
    session: &WorkerSession<S, T, P>,
    broker: &B,
    quiet: Duration,
) -> Result<(), Lost> {
    let context = &*session.context;
    // Not repeated: the next round comes soon.
    let found = context.store.quiet(quiet);
    let found = context.try_step(LedgerStep::Sweep, found).await;
    let found = found.unwrap_or_default();
    if found.is_empty() {
        return Ok(());
    }
    let backlog = match broker.backlog().await {
        Ok(backlog) => backlog,
        Err(error) => {
            tracing::debug!(error = %chain(&error), "the waiting messages could not be counted");
            return Ok(());
        }
    };
    for record in found {
        if session.halt.is_cancelled() {
            return Ok(());
        }
        if nothing_waits(&backlog, &record) {
            end(session, &record, quiet).await?;
        }
    }
    Ok(())
}

/// Whether nothing of a job can be on its way to a worker. A job whose target is not configured
/// here is left alone: its lanes are not known.
fn nothing_waits(backlog: &Backlog, record: &JobRecord) -> bool {
    backlog.jobs == 0 && backlog.lanes.get(&record.target) == Some(&0)
}

async fn end<S: Store, T, P: Publisher>(
    session: &WorkerSession<S, T, P>,
    record: &JobRecord,
    quiet: Duration,
) -> Result<(), Lost> {
    let context = &*session.context;
    if record.state == JobState::Accepted {
        let withdraw = context.store.withdraw(record.job);
        let withdrawn = context.try_step(LedgerStep::Sweep, withdraw).await;
        if withdrawn.is_ok() {
            tracing::warn!(
                job.id = %record.job, job.app = record.app,
                "a job that was accepted is not on its queue any more and was never taken: its \
                 message was removed or rejected"
            );
        }
        return Ok(());
    }
    let abandon = context.store.abandon(record.job, quiet);
    let Ok(Some(progress)) = context.try_step(LedgerStep::Sweep, abandon).await else {
        return Ok(());
    };
    context.metrics.job_abandoned();
    tracing::error!(
        job.id = %record.job, job.app = record.app, job.lost = record.pending,
        "a job that has nothing left to deliver is ended: outcomes that the ledger does not know \
         count as uncertain"
    );
    match progress.finished && !progress.completed {
        true => session.complete(&record.into(), true).await,
        false => Ok(()),
    }
}

/// Lifts directives about jobs that are no longer known. A job stays cancelled as long as it is
/// known.
async fn forget_directives<S: Store, T, P>(
    session: &WorkerSession<S, T, P>,
    looked_at: &mut HashSet<String>,
) {
    let context = &*session.context;
    let due: Vec<Directive> = {
        let directives = context.directives();
        let board = directives.borrow();
        let of_jobs = board
            .all(now_ms())
            .filter(|it| it.subject.scope == Scope::Job);
        let new = of_jobs.filter(|it| !looked_at.contains(&it.subject.name));
        new.take(DIRECTIVES).cloned().collect()
    };
    if due.is_empty() {
        // The round is complete: start from the beginning.
        looked_at.clear();
    }
    for directive in due {
        let name = &directive.subject.name;
        looked_at.insert(name.clone());
        let Ok(job) = name.parse() else { continue };
        let known = context.store.job(job);
        if matches!(context.try_step(LedgerStep::Sweep, known).await, Ok(None)) {
            let lift = context
                .store
                .lift(&directive.subject, directive.action.kind());
            let _ = context.try_step(LedgerStep::Sweep, lift).await;
        }
    }
}
