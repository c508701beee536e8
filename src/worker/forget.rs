//! Lifts directives about jobs that the ledger has forgotten.

use std::collections::HashSet;

use super::session::WorkerSession;
use crate::clock::now_ms;
use crate::domain::directive::{Directive, Scope};
use crate::metrics::LedgerStep;
use crate::ports::Store;

/// Directives about jobs that one round checks.
const DIRECTIVES: usize = 100;

/// Lifts directives about jobs that are no longer known. A job stays cancelled as long as it is
/// known.
pub(super) async fn forget_directives<S: Store, T, P>(
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
