//! The port of quotas.

use redb::ReadableTable as _;

use super::disk::Trouble;
use super::limiter::{EmbeddedStore, ledger_error};
use super::writer::Work;
use crate::domain::permissions::{Asked, Permissions, Used};
use crate::ports::{Charged, LedgerError, Quotas};

/// Rows of past days that one charge removes at most.
const SWEPT_MAX: usize = 100;

impl Quotas for EmbeddedStore {
    async fn charge(
        &self,
        asked: &Asked,
        permissions: &Permissions,
        day: u64,
    ) -> Result<Charged, LedgerError> {
        let (asked, permissions) = (asked.clone(), permissions.clone());
        let step = self.0.0.write(0, move |work| {
            sweep(work, &asked.app, day)?;
            charge(work, &asked, &permissions, day)
        });
        step.await.map_err(ledger_error)
    }
}

fn charge(
    work: &mut Work<'_>,
    asked: &Asked,
    permissions: &Permissions,
    day: u64,
) -> Result<Charged, Trouble> {
    let quotas = work.tables.quotas.open()?;
    let app = asked.app.as_str();
    let yesterday = day.saturating_sub(1);
    let of_job = format!("j{}", asked.job);
    let mut new = Vec::new();
    for (submission, entries) in &asked.lists {
        let list = format!("s{}/{submission}", asked.job);
        let known = quotas.get((app, day, list.as_str()))?.is_some()
            || quotas.get((app, yesterday, list.as_str()))?.is_some();
        if !known {
            new.push((list, *entries));
        }
    }
    if new.is_empty() {
        return Ok(Charged::Counted);
    }
    let entries = |day, what: &str| -> Result<u64, Trouble> {
        Ok(quotas.get((app, day, what))?.map_or(0, |row| row.value()))
    };
    let (job_today, day_used) = (entries(day, &of_job)?, entries(day, "used")?);
    let used = Used {
        job: job_today + entries(yesterday, &of_job)?,
        day: day_used,
    };
    let more: u64 = new.iter().map(|(_, entries)| entries).sum();
    let over = |most: Option<u64>, used: u64| most.is_some_and(|most| used + more > most);
    if over(permissions.recipients_max, used.job) || over(permissions.daily_recipients, used.day) {
        return Ok(Charged::Over(used));
    }
    for (list, entries) in &new {
        quotas.insert((app, day, list.as_str()), entries)?;
    }
    quotas.insert((app, day, of_job.as_str()), job_today + more)?;
    quotas.insert((app, day, "used"), day_used + more)?;
    Ok(Charged::Counted)
}

/// Removes what was used before yesterday, some rows at a time.
fn sweep(work: &mut Work<'_>, app: &str, day: u64) -> Result<(), Trouble> {
    let quotas = work.tables.quotas.open()?;
    let past: Vec<(u64, String)> = quotas
        .range((app, 0, "")..(app, day.saturating_sub(1), ""))?
        .take(SWEPT_MAX)
        .map(|row| {
            let (key, _) = row?;
            let (_, day, what) = key.value();
            Ok((day, what.to_owned()))
        })
        .collect::<Result<_, Trouble>>()?;
    for (day, what) in past {
        quotas.remove((app, day, what.as_str()))?;
    }
    Ok(())
}
