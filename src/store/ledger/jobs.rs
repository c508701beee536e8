//! The lists of jobs: all of them by the time they were accepted, and the open ones by activity.

use redis::Value;

use super::Store;
use super::record::record;
use crate::clock::now_ms;
use crate::domain::ids::JobId;
use crate::ports::{JobFilter, JobPage, JobPlace, JobQuery, JobRecord, LedgerError};
use crate::store::connection::broken;

/// Records read in one pipeline.
const JOBS_AT_ONCE: usize = 100;

/// With more open jobs than this, a query for them walks the list of all jobs.
const OPEN_JOBS_MAX: usize = 20_000;

/// Open jobs whose times are read in one command.
const OPEN_JOBS_AT_ONCE: usize = 2_000;

/// Most jobs that one query looks at, however few of them match.
const JOBS_LOOKED_AT_MAX: usize = 2_000;

impl Store {
    /// Reads pages of places until enough records match.
    pub(in crate::store) async fn list_of_jobs(
        &self,
        query: &JobQuery,
    ) -> Result<JobPage, LedgerError> {
        let mut page = JobPage {
            jobs: Vec::new(),
            next: query.after,
        };
        let mut open = match query.filter.is_for_open_jobs() {
            true => self.open_places(query).await?,
            false => None,
        };
        for _ in 0..JOBS_LOOKED_AT_MAX / JOBS_AT_ONCE {
            let places = match &mut open {
                Some(open) => open.drain(..open.len().min(JOBS_AT_ONCE)).collect(),
                None => self.places(&query.filter, page.next).await?,
            };
            let jobs: Vec<_> = places.iter().map(|place| place.job).collect();
            let records = self.records(&jobs).await?;
            let ended = places.len() < JOBS_AT_ONCE;
            for (place, record) in places.into_iter().zip(records) {
                if page.jobs.len() >= query.most {
                    return Ok(page);
                }
                page.next = Some(place);
                page.jobs
                    .extend(record.filter(|record| query.filter.takes(record)));
            }
            if ended {
                page.next = None;
                break;
            }
        }
        Ok(page)
    }

    /// The next places in the list of jobs, at most [`JOBS_AT_ONCE`]; fewer only at the end of the
    /// list.
    async fn places(
        &self,
        filter: &JobFilter,
        after: Option<JobPlace>,
    ) -> Result<Vec<JobPlace>, LedgerError> {
        let newest = match (after, filter.until_ms) {
            (Some(after), _) => after.at_ms.to_string(),
            (None, Some(until_ms)) => format!("({until_ms}"),
            (None, None) => "+inf".to_owned(),
        };
        let oldest = filter.since_ms.unwrap_or(0);
        // Many jobs may share one millisecond, and some of them come before the place.
        let mut skipped = 0;
        let mut places = Vec::new();
        loop {
            let mut cmd = redis::cmd("ZREVRANGEBYSCORE");
            cmd.arg(self.0.keys.jobs())
                .arg(&newest)
                .arg(oldest)
                .arg("WITHSCORES")
                .arg("LIMIT")
                .arg(skipped)
                .arg(JOBS_AT_ONCE);
            let rows: Vec<(String, u64)> =
                redis::from_redis_value(self.0.connection.command(&cmd).await?).map_err(broken)?;
            let full = rows.len() == JOBS_AT_ONCE;
            skipped += rows.len();
            for (job, at_ms) in rows {
                let job = job.parse().map_err(broken)?;
                let place = JobPlace { at_ms, job };
                if after.is_none_or(|after| place < after) && places.len() < JOBS_AT_ONCE {
                    places.push(place);
                }
            }
            if !full || places.len() == JOBS_AT_ONCE {
                return Ok(places);
            }
        }
    }

    /// The places of the jobs that are open, newest first; none if there are so many that the list
    /// of all jobs leads to them sooner.
    async fn open_places(&self, query: &JobQuery) -> Result<Option<Vec<JobPlace>>, LedgerError> {
        let mut cmd = redis::cmd("ZRANGE");
        cmd.arg(self.0.keys.open_jobs()).arg(0).arg(OPEN_JOBS_MAX);
        let open: Vec<String> =
            redis::from_redis_value(self.0.connection.command(&cmd).await?).map_err(broken)?;
        if open.len() > OPEN_JOBS_MAX {
            return Ok(None);
        }
        // The list of open jobs is ordered by activity; the other one has the times of acceptance.
        let mut places = Vec::new();
        for page in open.chunks(OPEN_JOBS_AT_ONCE) {
            let mut cmd = redis::cmd("ZMSCORE");
            cmd.arg(self.0.keys.jobs()).arg(page);
            let times: Vec<Option<u64>> =
                redis::from_redis_value(self.0.connection.command(&cmd).await?).map_err(broken)?;
            for (job, at_ms) in page.iter().zip(times) {
                let job = job.parse().map_err(broken)?;
                let place = at_ms.map(|at_ms| JobPlace { at_ms, job });
                let wanted = |place: &JobPlace| {
                    query.after.is_none_or(|after| *place < after)
                        && query.filter.takes_place(*place)
                };
                places.extend(place.filter(wanted));
            }
        }
        places.sort_unstable_by(|one, other| other.cmp(one));
        Ok(Some(places))
    }

    /// The records of those jobs that exist, marked where the ledger went back.
    pub(in crate::store) async fn records(
        &self,
        jobs: &[JobId],
    ) -> Result<Vec<Option<JobRecord>>, LedgerError> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        Ok(self.records_and(jobs, None).await?.0)
    }

    /// The records of jobs, and the answer to one more command.
    pub(super) async fn records_and(
        &self,
        jobs: &[JobId],
        more: Option<&redis::Cmd>,
    ) -> Result<(Vec<Option<JobRecord>>, Option<Value>), LedgerError> {
        let mut pipeline = redis::pipe();
        pipeline
            .cmd("LRANGE")
            .arg(self.0.keys.went_back())
            .arg(0)
            .arg(-1);
        for job in jobs {
            pipeline.cmd("HGETALL").arg(self.0.keys.job(*job).header);
        }
        if let Some(more) = more {
            pipeline.add_command(more.clone());
        }
        let mut rows = self.0.connection.pipeline(&pipeline).await?.into_iter();
        let times = rows.next().ok_or_else(|| broken("a reply is missing"))?;
        let times: Vec<u64> = redis::from_redis_value(times).map_err(broken)?;
        let marked = |record: JobRecord| record.marked(&times);
        let records = jobs
            .iter()
            .zip(rows.by_ref())
            .map(|(job, row)| Ok(record(*job, row)?.map(marked)))
            .collect::<Result<_, LedgerError>>()?;
        Ok((records, rows.next()))
    }

    /// Removes a completed job from the list of open ones, unless it was extended meanwhile.
    pub(super) async fn unlist(&self, job: JobId) -> Result<(), LedgerError> {
        let mut pipeline = redis::pipe();
        pipeline
            .cmd("ZREM")
            .arg(self.0.keys.open_jobs())
            .arg(job.to_string());
        pipeline
            .cmd("HEXISTS")
            .arg(self.0.keys.job(job).header)
            .arg("completed_at_ms");
        let replies = self.0.connection.in_order(&pipeline).await?;
        match replies.get(1) {
            Some(Value::Int(0)) => self.list(job, now_ms()).await,
            _ => Ok(()),
        }
    }

    /// Puts a job on the lists of jobs. This is not part of the scripts, because the lists are in
    /// other slots. If it fails, the caller repeats its request.
    pub(in crate::store) async fn list(&self, job: JobId, at_ms: u64) -> Result<(), LedgerError> {
        let key = self.0.keys.jobs();
        let mut pipeline = redis::pipe();
        pipeline
            .cmd("ZADD")
            .arg(&key)
            .arg("NX")
            .arg(at_ms)
            .arg(job.to_string());
        pipeline
            .cmd("ZADD")
            .arg(self.0.keys.open_jobs())
            .arg(at_ms)
            .arg(job.to_string());
        self.0.connection.pipeline(&pipeline).await?;
        Ok(())
    }
}
