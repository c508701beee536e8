//! Keeps heartbeats in memory, since this process is the only one. The ledger and the messages are
//! in one file and so cannot be of different ages: the ledger never goes back here.

use std::collections::HashMap;
use std::time::Instant;

use parking_lot::Mutex;

use super::limiter::{EmbeddedStore, ledger_error};
use crate::ports::{ALIVE, Beat, Beaten, LedgerError, Pulse, Raised};

/// The last heartbeats, and when they arrived.
pub(super) type Beats = Mutex<HashMap<u64, (Instant, Beat)>>;

impl Pulse for EmbeddedStore {
    async fn beat(&self, beat: &Beat) -> Result<Beaten, LedgerError> {
        let engine = &self.0.0;
        // Heartbeats do not write to a healthy disk, to spare it. After an error they do, or
        // nothing would show that the disk takes writes again.
        let beaten = match engine.disk.error() {
            None => engine.writer.look(|_| Ok(())).await,
            Some(_) => engine.write(0, |work| work.tables.beat(work.now_ms)).await,
        };
        beaten.map_err(ledger_error)?;
        let number = beat.number + 1;
        let mut beats = engine.beats.lock();
        beats.retain(|_, (at, _)| at.elapsed() < ALIVE);
        let beat = Beat {
            number,
            ..beat.clone()
        };
        beats.insert(beat.process, (Instant::now(), beat));
        Ok(Beaten {
            number,
            went_back: false,
        })
    }

    async fn raise(&self, _seen: u64) -> Result<Raised, LedgerError> {
        Ok(Raised {
            number: 0,
            went_back: false,
        })
    }

    async fn beats(&self) -> Result<Vec<Beat>, LedgerError> {
        let beats = self.0.0.beats.lock();
        let alive = beats.values().filter(|(at, _)| at.elapsed() < ALIVE);
        Ok(alive.map(|(_, beat)| beat.clone()).collect())
    }
}
