//! Assigns jobs to sub-lanes: one hash per target and priority, with the sub-lane of each open job.
//!
//! How much work a job has left is in its header, in another slot of a cluster. So the choice is made
//! here, from the hash and the headers, and the script keeps it only if the hash has not changed
//! since. Completed and forgotten jobs leave the hash with the next assignment.
//!
//! A worker that cuts many jobs would read the headers of all open jobs for each of them. So what it
//! knows of them serves for a while, unless a job may find a sub-lane free.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Store;
use super::connection::{Call, Script, broken};
use super::ledger::{Load, number};
use crate::domain::ids::JobId;
use crate::domain::lane::{ASSIGNED_MAX, Assigned, SUB_LANES, least_open};
use crate::ports::{LedgerError, SubLanes, Unassigned};

static ASSIGN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/assign.lua")));

/// Attempts to keep a choice while other workers assign jobs too. Then the choice counts without
/// being kept: the next job may be assigned to the same sub-lane.
const ATTEMPTS: usize = 8;

/// How long the loads of open jobs serve while more jobs are open than there are sub-lanes. Then
/// jobs stand in line anyway, and a load that is a little too high changes little.
const LOADS_AGE: Duration = Duration::from_millis(100);

/// The loads of open jobs, by the key of their hash. It is locked for moments only: an assignment
/// that waits for the server holds up no other one.
#[derive(Default)]
pub(super) struct OpenJobs(Mutex<HashMap<String, Known>>);

/// What the headers of open jobs said. `None`: the job is no longer open.
type Loads = HashMap<JobId, Option<Load>>;

#[derive(Default)]
struct Known {
    since: Option<Instant>,
    loads: Loads,
}

impl OpenJobs {
    /// The loads that serve to choose a sub-lane while so many jobs are open.
    fn of(&self, key: &str, open: usize) -> Loads {
        let mut all = self.0.lock();
        let known = all.entry(key.to_owned()).or_default();
        let serves = open > SUB_LANES as usize
            && known.since.is_some_and(|since| since.elapsed() < LOADS_AGE);
        if !serves {
            known.since = Some(Instant::now());
            known.loads.clear();
        }
        known.loads.clone()
    }

    fn learn(&self, key: &str, loads: impl IntoIterator<Item = (JobId, Option<Load>)>) {
        let mut all = self.0.lock();
        all.entry(key.to_owned()).or_default().loads.extend(loads);
    }
}

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
            let mut loads = self.0.open_jobs.of(&key, known.len());
            let jobs = known.iter().map(|(job, _)| *job);
            let unknown: Vec<_> = jobs.filter(|job| !loads.contains_key(job)).collect();
            if !unknown.is_empty() {
                let found = self.loads(&unknown).await?;
                let found: Loads = unknown.into_iter().zip(found).collect();
                self.0.open_jobs.learn(&key, found.clone());
                loads.extend(found);
            }
            let load = |job: &JobId| loads.get(job)?.as_ref();
            let open: Vec<_> = known
                .iter()
                .filter_map(|(job, sub_lane)| {
                    let load = load(job)?;
                    Some(Assigned {
                        app: &load.app,
                        sub_lane: *sub_lane,
                        pending: load.pending,
                    })
                })
                .collect();
            chosen = least_open(&open, job.job, job.app, job.recipients);
            if open.len() >= ASSIGNED_MAX {
                return Ok(chosen);
            }
            let gone: Vec<_> = known
                .iter()
                .filter(|(job, _)| load(job).is_none())
                .map(|(job, _)| job.to_string())
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
                let load = Load {
                    app: job.app.to_owned(),
                    pending: job.recipients,
                };
                self.0.open_jobs.learn(&key, [(job.job, Some(load))]);
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
