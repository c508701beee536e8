//! Assigns jobs to sub-lanes: one hash per target and priority, with the sub-lane of each open job.
//!
//! How much work a job has left is in its header, in another slot of a cluster. So the choice is made
//! here, from the hash and the headers, and the script keeps it only if the hash has not changed
//! since. Completed and forgotten jobs leave the hash with the next assignment.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::Store;
use super::connection::{Call, Script, broken};
use super::ledger::number;
use crate::domain::ids::JobId;
use crate::domain::lane::{ASSIGNED_MAX, Assigned, least_open};
use crate::ports::{JobRecord, JobState, LedgerError, SubLanes, Unassigned};

static ASSIGN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/assign.lua")));

/// Attempts to keep a choice while other workers assign jobs too. Then the choice counts without
/// being kept: the next job may be assigned to the same sub-lane.
const ATTEMPTS: usize = 8;

impl SubLanes for Store {
    async fn assign(&self, job: &Unassigned<'_>) -> Result<u32, LedgerError> {
        let key = self.0.keys.sub_lanes(job.target, job.priority);
        let mut chosen = 0;
        for _ in 0..ATTEMPTS {
            let mut command = redis::cmd("HGETALL");
            command.arg(&key);
            let row = self.0.connection.command(&command).await?;
            let mut row: HashMap<String, String> = redis::from_redis_value(row).map_err(broken)?;
            let version = row.remove("version").unwrap_or_default();
            let known = read(&row)?;
            if let Some((_, sub_lane)) = known.iter().find(|(it, _)| *it == job.job) {
                return Ok(*sub_lane);
            }
            let jobs: Vec<_> = known.iter().map(|(job, _)| *job).collect();
            let records = self.records(&jobs).await?;
            let is_open = |record: &JobRecord| record.state != JobState::Completed;
            let records: Vec<_> = records.into_iter().map(|it| it.filter(is_open)).collect();
            let both = || known.iter().zip(&records);
            let open: Vec<_> = both()
                .filter_map(|((_, sub_lane), record)| {
                    let record = record.as_ref()?;
                    Some(Assigned {
                        app: &record.app,
                        sub_lane: *sub_lane,
                        pending: record.pending,
                    })
                })
                .collect();
            chosen = least_open(&open, job.job, job.app, job.recipients);
            if open.len() >= ASSIGNED_MAX {
                return Ok(chosen);
            }
            let gone: Vec<_> = both()
                .filter(|(_, record)| record.is_none())
                .map(|((job, _), _)| job.to_string())
                .collect();
            let mut call = Call::new(&ASSIGN, 1, 3 + gone.len(), 160 + 32 * gone.len());
            call.push(&key)
                .push(job.job.to_string())
                .push(chosen)
                .push(&version);
            for job in &gone {
                call.push(job);
            }
            if number(&self.0.connection.call(&call).await?)? == 1 {
                return Ok(chosen);
            }
        }
        Ok(chosen)
    }
}

/// The jobs of a hash with their sub-lanes.
fn read(row: &HashMap<String, String>) -> Result<Vec<(JobId, u32)>, LedgerError> {
    let entries = row.iter().map(|(job, sub_lane)| {
        let job = job.parse().map_err(broken)?;
        Ok((job, sub_lane.parse().map_err(broken)?))
    });
    entries.collect()
}
