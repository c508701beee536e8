//! Lists that travel in parts and are sent to as one: a slice of such a list asks the ledger whether
//! all parts are accepted, and waits on the ladder until they are. Whoever uploaded the list may have
//! died half-way, and then nobody on it is to be half-notified.

use std::collections::HashSet;
use std::time::Duration;

use parking_lot::Mutex;

use super::context::Halted;
use super::session::WorkerSession;
use crate::clock::now_ms;
use crate::domain::ids::JobId;
use crate::domain::slice::{Head, Together};
use crate::metrics::LedgerStep;
use crate::ports::{Gathered, Store};

/// How long the parts of a list may be apart. A gateway that was killed is back within minutes, and
/// so is a caller that tries again; longer than an hour, a list that suddenly goes out is a surprise.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Shortest wait for the other parts, a rung of the ladder. It grows with the age of the list.
const WAIT_MIN: Duration = Duration::from_secs(1);

/// Complete lists that are remembered. Forgetting one costs a look-up per slice.
const REMEMBERED_MAX: usize = 1024;

/// Lists that were seen complete, so that a look-up is made per job and not per slice.
#[derive(Default)]
pub(super) struct Complete(Mutex<HashSet<(JobId, String)>>);

impl Complete {
    fn knows(&self, job: JobId, list: &str) -> bool {
        let seen = self.0.lock();
        !seen.is_empty() && seen.contains(&(job, list.to_owned()))
    }

    fn remember(&self, job: JobId, list: &str) {
        let mut seen = self.0.lock();
        if seen.len() >= REMEMBERED_MAX {
            seen.clear();
        }
        seen.insert((job, list.to_owned()));
    }
}

/// What a slice of a list in parts is to do now.
pub(super) enum Turn {
    Go,
    /// The other parts are waited for, for so long before the next look.
    Wait(Duration),
    /// They did not come in time.
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
