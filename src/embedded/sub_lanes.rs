//! Assigns jobs to sub-lanes: a table of the open jobs of each target and priority.

use redb::ReadableTable as _;

use super::disk::StorageError;
use super::ledger::{job_row, progress};
use super::limiter::{EmbeddedStore, ledger_error};
use super::writer::WriteContext;
use crate::domain::ids::JobId;
use crate::domain::lane::{ASSIGNED_MAX, Assigned, least_open};
use crate::ports::{LedgerError, SubLanes, Unassigned};

impl SubLanes for EmbeddedStore {
    async fn assign(&self, job: &Unassigned<'_>) -> Result<u32, LedgerError> {
        let step = Step {
            class: format!("{}.{}", job.target, job.priority.as_str()),
            job: job.job,
            app: job.app.to_owned(),
            recipients: job.recipients,
        };
        let assigned = self.0.0.write(0, move |work| step.run(work));
        assigned.await.map_err(ledger_error)
    }
}

struct Step {
    class: String,
    job: JobId,
    app: String,
    recipients: u64,
}

impl Step {
    fn run(&self, work: &mut WriteContext<'_>) -> Result<u32, StorageError> {
        let (class, me) = (self.class.as_str(), self.job.to_string());
        let mut open = Vec::new();
        for (job, sub_lane) in assigned(work, class)? {
            if job == me {
                return Ok(sub_lane);
            }
            let row = job_row(work, &job)?.filter(|row| row.completed_at_ms.is_none());
            match row {
                Some(row) => {
                    let pending = progress(&row)?.accounts.pending();
                    open.push((row.app, sub_lane, pending));
                }
                None => {
                    work.tables
                        .sub_lanes
                        .open()?
                        .remove((class, job.as_str()))?;
                }
            }
        }
        let open: Vec<_> = open
            .iter()
            .map(|(app, sub_lane, pending)| Assigned {
                app,
                sub_lane: *sub_lane,
                pending: *pending,
            })
            .collect();
        let chosen = least_open(&open, self.job, &self.app, self.recipients);
        if open.len() < ASSIGNED_MAX {
            let table = work.tables.sub_lanes.open()?;
            table.insert((class, me.as_str()), chosen)?;
        }
        Ok(chosen)
    }
}

/// The jobs of a target and priority with their sub-lanes.
fn assigned(work: &mut WriteContext<'_>, class: &str) -> Result<Vec<(String, u32)>, StorageError> {
    let table = work.tables.sub_lanes.open()?;
    // Job ids are hexadecimal digits.
    let rows = table.range((class, "")..(class, "g"))?;
    rows.map(|row| {
        let (key, sub_lane) = row?;
        Ok((key.value().1.to_owned(), sub_lane.value()))
    })
    .collect()
}
