//! Holds back lists that travel in parts and are sent to as one. A slice of such a list asks the
//! ledger whether all parts are accepted, and waits on the retry ladder until they are. The
//! uploader of the list may have died halfway, and then no recipient of an incomplete list is to be
//! notified.

use std::time::Duration;

use super::session::WorkerSession;
use crate::clock::now_ms;
use crate::domain::slice::{Head, Together};
use crate::metrics::LedgerStep;
use crate::ports::{Gathered, Store};
use crate::runtime::context::Halted;

/// How long the parts of a list may be apart. A gateway that was killed is back within minutes, and
/// so is a caller that tries again. After more than an hour, sending the list would be a surprise.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Shortest wait for the other parts, a rung of the retry ladder. It grows with the age of the
/// list.
const WAIT_MIN: Duration = Duration::from_secs(1);

/// The next step of a slice of a list in parts.
pub(super) enum Turn {
    Go,
    /// Waits for the other parts, this long until the next look-up.
    Wait(Duration),
    /// The other parts did not arrive in time.
    Cancel,
}

/// Asks whether all parts of a list are accepted.
pub(super) async fn turn<S: Store, T, P>(
    session: &WorkerSession<S, T, P>,
    head: &Head,
    part: &Together,
) -> Result<Turn, Halted> {
    let context = &*session.context;
    if context.complete.knows(head.id, &part.list) {
        return Ok(Turn::Go);
    }
    let age = Duration::from_millis(now_ms().saturating_sub(head.accepted_at_ms));
    let give_up = age > PATIENCE;
    let gathered = context
        .step(LedgerStep::Gather, session.halt.cancelled(), || {
            context.store.gather(head.id, part, give_up)
        })
        .await?;
    Ok(match gathered {
        Gathered::Complete => {
            context.complete.remember(head.id, &part.list);
            Turn::Go
        }
        Gathered::Waiting => Turn::Wait(WAIT_MIN.max(age / 4)),
        Gathered::GivenUp => Turn::Cancel,
    })
}
