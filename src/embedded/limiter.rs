//! Implements the limiter port: rates in memory, parked targets on disk.
//!
//! One process makes all calls, so rates need no shared storage. A restart forgets what was booked
//! ahead: each limit may then once grant one burst more than it should.

use std::time::Duration;

use redb::ReadableTable as _;

use super::Engine;
use super::disk::StorageError;
use super::tables::PARKS;
use crate::clock::now_ms;
use crate::domain::limits::Grant;
use crate::ports::{LedgerError, Limit, Limiter, Park};

/// The ledger and the limiter on the embedded engine.
#[derive(Clone)]
pub struct EmbeddedStore(pub(super) Engine);

impl Limiter for EmbeddedStore {
    async fn lease(
        &self,
        limit: &Limit<'_>,
        units: u32,
        wait_max: Duration,
    ) -> Result<Grant, LedgerError> {
        Ok(self.0.0.limits.lease(limit, units, wait_max))
    }

    async fn refund(&self, limit: &Limit<'_>, units: u32) -> Result<(), LedgerError> {
        self.0.0.limits.refund(limit, units);
        Ok(())
    }

    async fn booked(&self, limits: &[Limit<'_>]) -> Result<Vec<f64>, LedgerError> {
        Ok(self.0.0.limits.booked(limits))
    }

    async fn park(&self, target: &str, park: &Park) -> Result<(), LedgerError> {
        let (target, until_ms) = (target.to_owned(), park.until_ms);
        let json = crate::json::text(park);
        let step = self.0.0.write(json.len(), move |work| {
            let parks = work.tables.parks.open()?;
            let current = parks.get(target.as_str())?.map_or(0, |row| row.value().0);
            if until_ms > current {
                parks.insert(target.as_str(), (until_ms, json.as_str()))?;
            }
            Ok(())
        });
        step.await.map_err(ledger_error)
    }

    async fn unpark(&self, target: &str) -> Result<(), LedgerError> {
        let target = target.to_owned();
        let step = self.0.0.write(0, move |work| {
            work.tables.parks.open()?.remove(target.as_str())?;
            Ok(())
        });
        step.await.map_err(ledger_error)
    }

    async fn parked(&self, targets: &[String]) -> Result<Vec<(String, Park)>, LedgerError> {
        if targets.is_empty() {
            return Ok(Vec::new());
        }
        let targets = targets.to_vec();
        let read = self.0.0.read(move |transaction| {
            let (parks, now) = (transaction.open_table(PARKS)?, now_ms());
            let mut parked = Vec::new();
            for target in targets {
                let Some(row) = parks.get(target.as_str())? else {
                    continue;
                };
                let (until_ms, park) = row.value();
                if until_ms > now {
                    parked.push((
                        target,
                        serde_json::from_str(park).map_err(StorageError::broken)?,
                    ));
                }
            }
            Ok(parked)
        });
        read.await.map_err(ledger_error)
    }
}

pub(super) fn ledger_error(error: StorageError) -> LedgerError {
    match error {
        StorageError::Full(_) => LedgerError::Full(error.into()),
        StorageError::Broken(what) => LedgerError::Broken(what),
        error => LedgerError::Unreachable(error.into()),
    }
}
