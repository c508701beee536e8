//! Keeps what a process knows of the store up to date.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::ledger_health::Heartbeats;
use crate::metrics::LedgerStep;
use crate::ports::{LedgerError, Store, Transport};

/// What a process does, as its heartbeats say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It delivers.
    Worker,
    /// It accepts jobs, and others deliver them.
    Gateway,
}

/// How often a process asks the store for directives and parked targets and sends it a heartbeat.
/// The heartbeat shows whether the ledger takes writes.
pub(crate) const POLL: Duration = Duration::from_millis(500);

/// Polls the store for the directives in force and the parked targets, and sends it a heartbeat.
pub async fn watch_store<S: Store, T: Transport>(
    context: &Context<S, T>,
    role: Role,
    stop: &CancellationToken,
) {
    let targets: Vec<String> = context.targets.keys().cloned().collect();
    let mut heartbeats = Heartbeats::new(role, context.process);
    let look = async {
        loop {
            // An error is noted where it occurs, and the next round comes soon.
            let _ = look_once(context, &targets, &mut heartbeats).await;
            context.show_directives();
            context.tidy();
            sleep(POLL).await;
        }
    };
    // Boxed, because the steps of the ledger are large and this lives as long as the process.
    let both = async { tokio::join!(Box::pin(read_directives(context)), Box::pin(look)) };
    let _ = stop.run_until_cancelled(both).await;
}

/// Reads the directives again and again; at once when a call waits for them.
async fn read_directives<S: Store, T>(context: &Context<S, T>) -> Infallible {
    let mut known = 0;
    loop {
        let asked = Instant::now();
        let directives = context.store.directives(known);
        match context.try_step(LedgerStep::Direct, directives).await {
            Ok(directed) => {
                if let Some(directed) = directed {
                    let version = directed.version;
                    if context.note_directives(directed, asked) {
                        known = version;
                    }
                }
                context.note_directives_read(asked);
                context.until_directives_are_wanted().await;
            }
            Err(_) => sleep(POLL).await,
        }
    }
}

/// One round. It waits for the directives before the ledger counts as up, so that a worker that
/// starts takes no work before it knows them.
async fn look_once<S: Store, T>(
    context: &Context<S, T>,
    targets: &[String],
    heartbeats: &mut Heartbeats,
) -> Result<(), LedgerError> {
    context.until_directives_are_new().await;
    let asked = Instant::now();
    let parked = context.store.parked(targets);
    let parked = context.try_step(LedgerStep::Park, parked).await?;
    context.note_parked(parked, asked);
    heartbeats.beat(context).await?;
    context.read_pending().await
}
