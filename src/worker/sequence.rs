//! Keeps a number of the ledger with the broker. With it the worker notices a ledger that went back
//! to older data even if no process is left that remembers its heartbeats: after a power failure,
//! or when an operator restores a backup while all workers are stopped.
//!
//! While outcomes are recorded, a worker raises the sequence of the ledger twice a second and then
//! publishes the new number to the broker. A session compares the two before it takes its first
//! delivery: a ledger whose number is lower has lost records. A loss of only the records of the
//! last half second is not noticed.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::session::WorkerSession;
use crate::metrics::LedgerStep;
use crate::ports::{LedgerError, Outgoing, Publisher, Raised, Route, Store};
use crate::runtime::POLL;
use crate::runtime::context::Context;

/// The sequence as one session knows it.
pub(super) struct Sequence {
    /// The number that the broker had, until it is compared; then 0.
    seen: u64,
    /// The count of recorded steps when this process last raised the sequence.
    recorded: u64,
}

impl Sequence {
    /// `seen`: the number that the broker has, 0 if none.
    pub(super) fn new(seen: u64) -> Self {
        Self { seen, recorded: 0 }
    }

    /// Raises the sequence, and reports a ledger that went back.
    pub(super) async fn raise<S: Store, T>(
        &mut self,
        context: &Context<S, T>,
    ) -> Result<u64, LedgerError> {
        let recorded = context.recorded();
        let raise = context.store.raise(self.seen);
        let Raised { number, went_back } = context.try_step(LedgerStep::Beat, raise).await?;
        (self.seen, self.recorded) = (0, recorded);
        if went_back {
            context.note_went_back();
        }
        Ok(number)
    }

    /// Saves the sequence with the broker again and again until `rest` is cancelled, and then once
    /// more. When it ends, for any reason, the session ends.
    pub(super) async fn keep<S: Store, T, P: Publisher>(
        mut self,
        session: Arc<WorkerSession<S, T, P>>,
        rest: CancellationToken,
    ) {
        let _halt = session.halt.clone().drop_guard();
        let pausing = || rest.run_until_cancelled(tokio::time::sleep(POLL));
        while pausing().await.is_some() {
            self.leave(&session).await;
        }
        self.leave(&session).await;
    }

    /// Saves the sequence with the broker, unless the number there covers all that is recorded.
    async fn leave<S: Store, T, P: Publisher>(&mut self, session: &WorkerSession<S, T, P>) {
        let context = &*session.context;
        if self.seen == 0 && self.recorded == context.recorded() {
            return;
        }
        // An error is noted where it occurs, and the next round comes soon.
        let Ok(number @ 1..) = self.raise(context).await else {
            return;
        };
        let message = Outgoing {
            route: Route::Sequence,
            body: number.to_string().into(),
            message_id: format!("sequence/{number}"),
            traceparent: None,
        };
        // Not repeated: the next number replaces it.
        let _ = session.publisher.publish(vec![message]).await;
    }
}
