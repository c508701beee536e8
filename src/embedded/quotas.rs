//! Implements the port of quotas.

use std::collections::BTreeMap;

use redb::ReadableTable as _;

use super::disk::StorageError;
use super::limiter::{EmbeddedStore, ledger_error};
use super::writer::WriteContext;
use crate::domain::ids::JobId;
use crate::domain::permissions::{Asked, Permissions, Used};
use crate::ports::{Charged, LedgerError, Quotas};

/// Most rows of past days that one charge removes.
const SWEPT_MAX: usize = 100;

impl Quotas for EmbeddedStore {
    async fn charge(
        &self,
        asked: &[Asked],
        permissions: &Permissions,
        day: u64,
    ) -> Result<Charged, LedgerError> {
        let (asked, permissions) = (asked.to_vec(), permissions.clone());
        let step = self.0.0.write(0, move |work| {
            let Some(Asked { app, .. }) = asked.first() else {
                return Ok(Charged::Counted);
            };
            sweep(work, app, day)?;
            charge(work, app, &asked, &permissions, day)
        });
        step.await.map_err(ledger_error)
    }
}

fn charge(
    work: &mut WriteContext<'_>,
    app: &str,
    asked: &[Asked],
    permissions: &Permissions,
    day: u64,
) -> Result<Charged, StorageError> {
    let quotas = work.tables.quotas.open()?;
    let yesterday = day.saturating_sub(1);
    let row = |day, what: &str| -> Result<Option<u64>, StorageError> {
        let row = quotas.get((app, day, what))?;
        Ok(row.map(|row| row.value()))
    };
    let mut new = BTreeMap::new();
    let mut jobs: Vec<(JobId, u64)> = Vec::new();
    for asked in asked {
        for (submission, entries) in &asked.lists {
            let list = format!("s{}/{submission}", asked.job);
            let known = row(day, &list)?.is_some() || row(yesterday, &list)?.is_some();
            if known || new.insert(list, *entries).is_some() {
                continue;
            }
            match jobs.iter_mut().find(|(job, _)| *job == asked.job) {
                Some((_, more)) => *more += entries,
                None => jobs.push((asked.job, *entries)),
            }
        }
    }
    let Some((first, _)) = jobs.first() else {
        return Ok(Charged::Counted);
    };
    let day_used = row(day, "used")?.unwrap_or(0);
    let before = |job: &JobId| -> Result<u64, StorageError> {
        let name = format!("j{job}");
        Ok(row(day, &name)?.unwrap_or(0) + row(yesterday, &name)?.unwrap_or(0))
    };
    let over = |job: &JobId| -> Result<Charged, StorageError> {
        let used = Used {
            job: before(job)?,
            day: day_used,
        };
        Ok(Charged::Over { job: *job, used })
    };
    if let Some(most) = permissions.recipients_max {
        for (job, more) in &jobs {
            if before(job)? + more > most {
                return over(job);
            }
        }
    }
    let all: u64 = jobs.iter().map(|(_, more)| more).sum();
    if permissions
        .daily_recipients
        .is_some_and(|most| day_used + all > most)
    {
        return over(first);
    }
    for (job, more) in &jobs {
        let name = format!("j{job}");
        new.insert(name.clone(), row(day, &name)?.unwrap_or(0) + more);
    }
    new.insert("used".to_owned(), day_used + all);
    for (what, entries) in &new {
        quotas.insert((app, day, what.as_str()), entries)?;
    }
    Ok(Charged::Counted)
}

/// Removes the counts from before yesterday, some rows at a time.
fn sweep(work: &mut WriteContext<'_>, app: &str, day: u64) -> Result<(), StorageError> {
    let quotas = work.tables.quotas.open()?;
    let past: Vec<(u64, String)> = quotas
        .range((app, 0, "")..(app, day.saturating_sub(1), ""))?
        .take(SWEPT_MAX)
        .map(|row| {
            let (key, _) = row?;
            let (_, day, what) = key.value();
            Ok((day, what.to_owned()))
        })
        .collect::<Result<_, StorageError>>()?;
    for (day, what) in past {
        quotas.remove((app, day, what.as_str()))?;
    }
    Ok(())
}
