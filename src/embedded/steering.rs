//! Implements the steering port: changed values and the audit trail of a job, and outcomes that an
//! operator found out.

use std::collections::HashSet;

use redb::ReadableTable as _;

use super::disk::StorageError;
use super::ledger::{job_row, keep_row};
use super::limiter::{EmbeddedStore, ledger_error};
use super::tables::{Bucket, JOBS, JobRow, TRAILS};
use super::writer::WriteContext;
use crate::domain::directive::Action;
use crate::domain::ids::{Fingerprint, JobId};
use crate::domain::outcome::Outcome;
use crate::domain::slice::Shape;
use crate::domain::trail::{TRAIL_MAX, TrailEntry};
use crate::json;
use crate::ports::{JobRecord, LedgerError, Resolution, Steering};

impl Steering for EmbeddedStore {
    async fn amend(&self, job: JobId, change: &Action) -> Result<(), LedgerError> {
        let (job, change) = (job.to_string(), change.clone());
        let step = self.0.0.write(0, move |work| {
            let Some(mut row) = job_row(work, &job)? else {
                return Ok(());
            };
            let amended = &mut row.amended;
            match &change {
                Action::Priority { priority } => amended.priority = Some(*priority),
                Action::Schedule { not_before_ms } => amended.not_before_ms = Some(*not_before_ms),
                Action::Deadline { expires_at_ms } => {
                    amended.expires_at_ms = Some(expires_at_ms.unwrap_or(0));
                }
                Action::Pace { pace_until_ms } => {
                    amended.pace_until_ms = Some(pace_until_ms.unwrap_or(0));
                }
                _ => {
                    return Ok(());
                }
            }
            keep_row(work, &job, &row)
        });
        step.await.map_err(ledger_error)
    }

    async fn note(&self, jobs: &[JobId], entry: &TrailEntry) -> Result<(), LedgerError> {
        let jobs: Vec<String> = jobs.iter().map(ToString::to_string).collect();
        let json = json::bytes(entry);
        let step = self.0.0.write(json.len() * jobs.len(), move |work| {
            jobs.iter().try_for_each(|job| note(work, job, &json))
        });
        step.await.map_err(ledger_error)
    }

    async fn trail(&self, job: JobId) -> Result<Vec<TrailEntry>, LedgerError> {
        let job = job.to_string();
        let read = self.0.0.read(move |transaction| {
            let row = transaction.open_table(JOBS)?.get(job.as_str())?;
            let Some(row) = row.map(|row| JobRow::decode(row.value())).transpose()? else {
                return Ok(Vec::new());
            };
            let mut trail = Vec::new();
            let table = transaction.open_table(TRAILS)?;
            for entry in table.range((row.life, 0)..=(row.life, u64::MAX))? {
                // An entry that a newer version wrote must not hide the others.
                let read = serde_json::from_slice(entry?.1.value()).inspect_err(
                    |error| tracing::error!(%error, "an entry of a trail cannot be read"),
                );
                trail.extend(read.ok());
            }
            Ok(trail)
        });
        read.await.map_err(ledger_error)
    }

    async fn resolve(
        &self,
        job: &JobRecord,
        recipients: &[Fingerprint],
        to: Resolution,
    ) -> Result<Vec<bool>, LedgerError> {
        let job = job.job.to_string();
        let asked: Vec<u64> = recipients.iter().map(|it| it.0).collect();
        let bytes = asked.len() * 9;
        let step = self
            .0
            .0
            .write(bytes, move |work| resolve(work, &job, &asked, to));
        step.await.map_err(ledger_error)
    }
}

fn note(work: &mut WriteContext<'_>, job: &str, json: &[u8]) -> Result<(), StorageError> {
    let Some(JobRow { life, .. }) = job_row(work, job)? else {
        return Ok(());
    };
    let trails = work.tables.trails.open()?;
    let numbers: Vec<u64> = trails
        .range((life, 0)..=(life, u64::MAX))?
        .map(|row| Ok(row?.0.value().1))
        .collect::<Result<_, StorageError>>()?;
    let next = numbers.last().map_or(0, |last| last + 1);
    let over = (numbers.len() + 1).saturating_sub(TRAIL_MAX);
    for number in &numbers[..over] {
        trails.remove((life, *number))?;
    }
    trails.insert((life, next), json)?;
    Ok(())
}

fn resolve(
    work: &mut WriteContext<'_>,
    job: &str,
    asked: &[u64],
    to: Resolution,
) -> Result<Vec<bool>, StorageError> {
    let Some(mut row) = job_row(work, job)? else {
        return Ok(vec![false; asked.len()]);
    };
    let code = |outcome: Outcome| {
        let code = outcome.ledger_code();
        code.ok_or_else(|| StorageError::broken("an outcome without a code"))
    };
    let from = code(Outcome::Uncertain)?;
    let to_code = code(match to {
        Resolution::Sent => Outcome::Sent,
        Resolution::Failed => Outcome::Failed,
    })?;
    let shape = Shape {
        buckets: row.buckets,
    };
    let buckets = work.tables.buckets.open()?;
    let mut changed = HashSet::new();
    for fingerprint in asked {
        let key = (row.life, shape.bucket(Fingerprint(*fingerprint)));
        let stored = buckets.get(key)?;
        let bucket = match &stored {
            Some(stored) => Bucket::decode(stored.value())?.changed(*fingerprint, from, to_code),
            None => None,
        };
        drop(stored);
        if let Some(bucket) = bucket {
            buckets.insert(key, bucket.as_slice())?;
            changed.insert(*fingerprint);
        }
    }
    let count = changed.len() as u64;
    if count > 0 {
        row.uncertain = row.uncertain.saturating_sub(count);
        match to {
            Resolution::Sent => row.sent += count,
            Resolution::Failed => row.failed += count,
        }
        keep_row(work, job, &row)?;
    }
    Ok(asked.iter().map(|it| changed.contains(it)).collect())
}
