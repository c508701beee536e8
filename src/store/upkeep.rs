//! Finds jobs without any activity, ends those that are abandoned, and keeps the lists of jobs
//! short.
//!
//! Two sorted sets name jobs: `jobs` those that are known, by the time of their acceptance, and
//! `open` those that are not completed, by the time of their last activity or look. An open job is
//! due for a look when that time is as old as the quiet period. A completed job leaves `open` at
//! once, so a walk over it is short however many jobs there were. This module removes jobs from
//! `jobs` that are older than the window and no longer known.

use std::collections::HashSet;
use std::sync::LazyLock;
use std::time::Duration;

use redis::Value;

use super::Store;
use super::connection::{Script, broken};
use super::ledger::{ScriptReply, concluding, growing};
use crate::clock::now_ms;
use crate::domain::ids::JobId;
use crate::ports::{JobProgress, JobRecord, JobState, Ledger as _, LedgerError, Upkeep};

static WAITS: LazyLock<Script> = concluding!("scripts/waits.lua");
static ABANDON: LazyLock<Script> = growing!("scripts/abandon.lua");

/// Jobs that one pipeline looks at.
const PAGE: usize = 100;

/// Open jobs that one pipeline reads.
const OPEN_PAGE: usize = 200;

/// Members that one step of a scan looks at.
const SCAN: usize = 1000;

/// Pages of one look.
const PAGES: usize = 20;

/// Packs of outlines that one round writes at most.
const PACKS: usize = 20;

/// Known jobs that one pipeline looks at, to shorten their list.
const KNOWN_PAGE: usize = 1000;

impl Upkeep for Store {
    async fn waits(&self, job: JobId) -> Result<(), LedgerError> {
        let call = self.job_call(&WAITS, job, 0, 0);
        self.0.connection.call(&call).await.map(drop)
    }

    async fn quiet(&self, quiet: Duration) -> Result<Vec<JobRecord>, LedgerError> {
        self.thin_out().await?;
        // Not repeated: a listing finds jobs without packs too.
        let _ = self.pack(PACKS).await;
        let now = now_ms();
        let quiet_ms = quiet.as_millis() as u64;
        let mut found = Vec::new();
        for _ in 0..PAGES {
            let due = self.due(now.saturating_sub(quiet_ms)).await?;
            if due.is_empty() {
                break;
            }
            let ended = due.len() < PAGE;
            found.extend(self.sort_out(due, quiet_ms, now).await?);
            if ended || found.len() >= PAGE {
                break;
            }
        }
        Ok(found)
    }

    async fn each_open(&self, mut visit: impl FnMut(&JobRecord) + Send) -> Result<(), LedgerError> {
        // A scan may return a member twice.
        let mut seen = HashSet::new();
        let mut cursor = 0;
        loop {
            let (next, jobs) = self.scan_open(cursor).await?;
            let new: Vec<_> = jobs.into_iter().filter(|job| seen.insert(*job)).collect();
            for page in new.chunks(OPEN_PAGE) {
                let records = self.records(page).await?.into_iter().flatten();
                let open = records.filter(|record| record.state != JobState::Completed);
                open.for_each(|record| visit(&record));
            }
            if next == 0 {
                return Ok(());
            }
            cursor = next;
        }
    }

    async fn abandon(
        &self,
        job: JobId,
        quiet: Duration,
    ) -> Result<Option<JobProgress>, LedgerError> {
        let record = self.job(job).await?;
        let went_back = record.is_some_and(|it| it.went_back_at_ms.is_some());
        let mut call = self.job_call(&ABANDON, job, 2, 16);
        call.push(quiet.as_millis() as u64)
            .push(u8::from(went_back));
        let reply = ScriptReply::new(self.0.connection.call(&call).await?)?;
        match reply.is_empty() {
            true => Ok(None),
            false => reply.progress(0).map(Some),
        }
    }
}

impl Store {
    /// Some of the open jobs, and the cursor that continues the scan; 0 ends it.
    async fn scan_open(&self, cursor: u64) -> Result<(u64, Vec<JobId>), LedgerError> {
        let mut cmd = redis::cmd("ZSCAN");
        cmd.arg(self.0.keys.open_jobs())
            .arg(cursor)
            .arg("COUNT")
            .arg(SCAN);
        let reply = self.0.connection.command(&cmd).await?;
        let (next, members): (u64, Vec<(String, f64)>) =
            redis::from_redis_value(reply).map_err(broken)?;
        let jobs = members.iter().map(|(id, _)| id.parse().map_err(broken));
        Ok((next, jobs.collect::<Result<_, _>>()?))
    }

    /// The open jobs that are due for a look.
    async fn due(&self, until_ms: u64) -> Result<Vec<JobId>, LedgerError> {
        let mut cmd = redis::cmd("ZRANGEBYSCORE");
        cmd.arg(self.0.keys.open_jobs())
            .arg("-inf")
            .arg(until_ms)
            .arg("LIMIT")
            .arg(0)
            .arg(PAGE);
        let due = self.0.connection.command(&cmd).await?;
        let due: Vec<String> = redis::from_redis_value(due).map_err(broken)?;
        due.iter().map(|id| id.parse().map_err(broken)).collect()
    }

    /// Goes through the jobs that are due: removes those that are not open, and sets the time of
    /// the next look for the others. Returns those without any activity.
    async fn sort_out(
        &self,
        due: Vec<JobId>,
        quiet_ms: u64,
        now: u64,
    ) -> Result<Vec<JobRecord>, LedgerError> {
        let records = self.records(&due).await?;
        let key = self.0.keys.open_jobs();
        let mut pipeline = redis::pipe();
        let mut found = Vec::new();
        for (job, record) in due.into_iter().zip(records) {
            let job = job.to_string();
            let open = record.filter(|record| record.state != JobState::Completed);
            let Some(record) = open else {
                pipeline.cmd("ZREM").arg(&key).arg(job);
                continue;
            };
            let heard = record.heard_at_ms();
            let is_quiet = heard.saturating_add(quiet_ms) <= now;
            // A job that stays quiet is looked at again after a quarter of that time.
            let next = match is_quiet {
                true => now - quiet_ms / 4 * 3,
                false => heard,
            };
            pipeline.cmd("ZADD").arg(&key).arg("XX").arg(next).arg(job);
            found.extend(Some(record).filter(|_| is_quiet));
        }
        self.0.connection.pipeline(&pipeline).await?;
        Ok(found)
    }

    /// Removes jobs from the list that are no longer known: those that completed longer ago than
    /// the window.
    async fn thin_out(&self) -> Result<(), LedgerError> {
        let key = self.0.keys.jobs();
        let until = now_ms().saturating_sub(self.0.window_s * 1000);
        let mut kept = 0;
        loop {
            let mut cmd = redis::cmd("ZRANGEBYSCORE");
            cmd.arg(&key)
                .arg("-inf")
                .arg(until)
                .arg("LIMIT")
                .arg(kept)
                .arg(KNOWN_PAGE);
            let page = self.0.connection.command(&cmd).await?;
            let page: Vec<String> = redis::from_redis_value(page).map_err(broken)?;
            if page.is_empty() {
                return Ok(());
            }
            let mut pipeline = redis::pipe();
            for id in &page {
                let job: JobId = id.parse().map_err(broken)?;
                pipeline.cmd("EXISTS").arg(self.0.keys.job(job).header);
            }
            let known = self.0.connection.pipeline(&pipeline).await?;
            let mut outlines = redis::cmd("HDEL");
            outlines.arg(self.0.keys.outlines());
            let mut gone = redis::cmd("ZREM");
            gone.arg(&key);
            let mut any = false;
            for (id, known) in page.iter().zip(known) {
                if known == Value::Int(0) {
                    let job: JobId = id.parse().map_err(broken)?;
                    outlines.arg(&job.bytes());
                    gone.arg(id);
                    any = true;
                } else {
                    kept += 1;
                }
            }
            if any {
                // The list leads to the outlines, so it goes last.
                self.0.connection.command(&outlines).await?;
                self.0.connection.command(&gone).await?;
            }
            if page.len() < KNOWN_PAGE {
                return Ok(());
            }
        }
    }
}
