//! Implements the port of frequency caps: one row per recipient and period.

use redb::ReadableTable as _;

use super::disk::StorageError;
use super::limiter::{EmbeddedStore, ledger_error};
use super::writer::WriteContext;
use crate::domain::frequency_cap::{FrequencyCap, UnitOwner, Units};
use crate::ports::{CapUnits, FrequencyCaps, LedgerError};

/// Rows that a step removes at least, if so many have ended. It removes twice as many as it can
/// add, so the table does not grow with the past.
const SWEPT_MIN: usize = 100;

impl FrequencyCaps for EmbeddedStore {
    async fn take_units(&self, units: CapUnits<'_>) -> Result<Vec<bool>, LedgerError> {
        let step = Step::of(&units);
        let taken = self.0.0.write(step.bytes(), move |work| step.take(work));
        taken.await.map_err(ledger_error)
    }

    async fn give_back_units(&self, units: CapUnits<'_>) -> Result<(), LedgerError> {
        let step = Step::of(&units);
        let given = self.0.0.write(0, move |work| step.give_back(work));
        given.await.map_err(ledger_error)
    }
}

struct Step {
    /// The app, the category and the period: with another period the count begins anew.
    name: String,
    cap: FrequencyCap,
    owner: UnitOwner,
    recipients: Vec<u64>,
}

impl Step {
    fn of(units: &CapUnits<'_>) -> Self {
        let CapUnits { app, category, .. } = units;
        Self {
            name: format!("{app}/{category}/{}", units.cap.period_ms()),
            cap: units.cap,
            owner: units.job.into(),
            recipients: units.recipients.iter().map(|it| it.0).collect(),
        }
    }

    fn bytes(&self) -> usize {
        64 * self.recipients.len()
    }

    /// The ends of the current period's rows and of those of the period before.
    fn ends(&self, now_ms: u64) -> (u64, u64) {
        let (number, period) = (self.cap.number(now_ms), self.cap.period_ms());
        ((number + 2) * period, (number + 1) * period)
    }

    fn take(&self, work: &mut WriteContext<'_>) -> Result<Vec<bool>, StorageError> {
        self.sweep(work)?;
        let now_ms = work.now_ms;
        let (ends, ends_before) = self.ends(now_ms);
        let table = work.tables.cap_units.open()?;
        let mut taken = Vec::with_capacity(self.recipients.len());
        for recipient in &self.recipients {
            let old = (ends_before, self.name.as_str(), *recipient);
            let key = (ends, self.name.as_str(), *recipient);
            let mut units = Units::default();
            for key in [old, key] {
                if let Some(row) = table.get(key)? {
                    read(&mut units, row.value())?;
                }
            }
            let free = units.take(self.owner, &self.cap, now_ms);
            if free {
                table.remove(old)?;
                table.insert(key, units.write().as_slice())?;
            }
            taken.push(free);
        }
        Ok(taken)
    }

    fn give_back(&self, work: &mut WriteContext<'_>) -> Result<(), StorageError> {
        let (ends, ends_before) = self.ends(work.now_ms);
        let table = work.tables.cap_units.open()?;
        for recipient in &self.recipients {
            for ends in [ends_before, ends] {
                let key = (ends, self.name.as_str(), *recipient);
                let mut units = Units::default();
                if let Some(row) = table.get(key)? {
                    read(&mut units, row.value())?;
                }
                if !units.give_back(self.owner) {
                    continue;
                }
                match units.is_empty() {
                    true => table.remove(key)?,
                    false => table.insert(key, units.write().as_slice())?,
                };
            }
        }
        Ok(())
    }

    /// Removes rows whose units count no longer, of any cap.
    fn sweep(&self, work: &mut WriteContext<'_>) -> Result<(), StorageError> {
        let now_ms = work.now_ms;
        let table = work.tables.cap_units.open()?;
        let past: Vec<(u64, String, u64)> = table
            .range(..(now_ms, "", 0))?
            .take(SWEPT_MIN.max(2 * self.recipients.len()))
            .map(|row| {
                let (key, _) = row?;
                let (ends, name, recipient) = key.value();
                Ok((ends, name.to_owned(), recipient))
            })
            .collect::<Result<_, StorageError>>()?;
        for (ends, name, recipient) in past {
            table.remove((ends, name.as_str(), recipient))?;
        }
        Ok(())
    }
}

fn read(units: &mut Units, bytes: &[u8]) -> Result<(), StorageError> {
    let read = units.read(bytes);
    read.ok_or_else(|| StorageError::broken("units of a frequency cap are cut short"))
}
