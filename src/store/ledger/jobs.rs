//! Lists jobs, newest first: all of them, and those that are not completed.
//!
//! The sorted set `jobs` has the order, and the hash `outlines` has what a filter asks for. A query goes
//! through both, and reads the records of those jobs only that may match. The keys are in other slots
//! than the jobs, so a crash between two writes may leave a job without an outline. Such a job may
//! match: the query reads its record and writes the outline.

use redis::Value;

use super::Store;
use super::record::record;
use crate::clock::now_ms;
use crate::domain::ids::JobId;
use crate::ports::{
    JobFilter, JobPage, JobPlace, JobQuery, JobRecord, JobState, LedgerError, Sieve, outline,
};
use crate::store::connection::broken;

/// Records read in one pipeline.
const RECORDS_AT_ONCE: usize = 100;

/// Most outlines read in one command: about a millisecond of the server.
const OUTLINES_AT_ONCE: usize = 5_000;

/// Most outlines, and most records, that one query looks at, however few of them match. A record
/// costs as much as twenty outlines, and a look at whether a job is completed as much as two.
const OUTLINES_MAX: usize = 100_000;
const RECORDS_MAX: usize = 2_000;

/// With more open jobs than this, a query for them walks the list of all jobs.
const OPEN_MAX: usize = 20_000;

/// Open jobs whose times are read in one command.
const OPEN_AT_ONCE: usize = 2_000;

/// How the outline of a job is kept.
#[derive(Clone, Copy)]
pub(in crate::store) enum Outlined<'a> {
    /// The job is new.
    New(&'a str),
    /// The job may have one already.
    Known(&'a str),
    Unknown,
}

impl Store {
    /// A page of jobs, see [`Ledger::jobs`](crate::ports::Ledger::jobs).
    pub(super) async fn list_of_jobs(&self, query: &JobQuery) -> Result<JobPage, LedgerError> {
        let filter = &query.filter;
        let mut sieve = Sieve::new(filter);
        let mut open = match filter.is_for_open_jobs() {
            true => self.open_places(query).await?,
            false => None,
        };
        let mut page = JobPage {
            jobs: Vec::new(),
            next: query.after,
        };
        if query.most == 0 {
            return Ok(page);
        }
        let mut without = Vec::new();
        let (mut at_once, mut looked_at, mut records) = (RECORDS_AT_ONCE, 0, 0);
        while looked_at < OUTLINES_MAX && records < RECORDS_MAX {
            let places: Vec<_> = match &mut open {
                Some(open) => open.drain(..open.len().min(at_once)).collect(),
                None => self.places(filter, page.next, at_once).await?,
            };
            let ended = places.len() < at_once;
            looked_at += places.len();
            let mut wanted = self.sieved(&mut sieve, &places).await?;
            if let (None, Some(state)) = (&open, filter.state) {
                looked_at += places.len();
                wanted = self.in_state(state, wanted).await?;
            }
            for some in wanted.chunks(RECORDS_AT_ONCE) {
                let jobs: Vec<_> = some.iter().map(|it| it.place.job).collect();
                let found = self.records(&jobs).await?;
                records += some.len();
                for (it, record) in some.iter().zip(found) {
                    page.next = Some(it.place);
                    let Some(record) = record else { continue };
                    if it.lacks_outline {
                        without.push(record.clone());
                    }
                    page.jobs.extend(Some(record).filter(|it| filter.takes(it)));
                    if page.jobs.len() >= query.most {
                        let last = ended && places.last() == Some(&it.place);
                        page.next = page.next.filter(|_| !last);
                        self.outline_them(&without).await;
                        return Ok(page);
                    }
                }
                if records >= RECORDS_MAX {
                    break;
                }
            }
            if records < RECORDS_MAX {
                page.next = places.last().copied().or(page.next);
                if ended {
                    page.next = None;
                    break;
                }
            }
            at_once = (at_once * 10).min(OUTLINES_AT_ONCE);
        }
        self.outline_them(&without).await;
        Ok(page)
    }

    /// The next places in the list of jobs, at most `most`; fewer only at the end of the list.
    async fn places(
        &self,
        filter: &JobFilter,
        after: Option<JobPlace>,
        most: usize,
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
                .arg(most);
            let rows: Vec<(String, u64)> =
                redis::from_redis_value(self.0.connection.command(&cmd).await?).map_err(broken)?;
            let full = rows.len() == most;
            skipped += rows.len();
            for (job, at_ms) in rows {
                let job = job.parse().map_err(broken)?;
                let place = JobPlace { at_ms, job };
                if after.is_none_or(|after| place < after) && places.len() < most {
                    places.push(place);
                }
            }
            if !full || places.len() == most {
                return Ok(places);
            }
        }
    }

    /// The places of the jobs that are open, newest first; none if there are so many that the list
    /// of all jobs leads to them sooner.
    async fn open_places(&self, query: &JobQuery) -> Result<Option<Vec<JobPlace>>, LedgerError> {
        let mut cmd = redis::cmd("ZRANGE");
        cmd.arg(self.0.keys.open_jobs()).arg(0).arg(OPEN_MAX);
        let open: Vec<String> =
            redis::from_redis_value(self.0.connection.command(&cmd).await?).map_err(broken)?;
        if open.len() > OPEN_MAX {
            return Ok(None);
        }
        // The list of open jobs is ordered by activity; the other one has the times of acceptance.
        let mut places = Vec::new();
        for page in open.chunks(OPEN_AT_ONCE) {
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

    /// Those of these jobs that may match by their outlines.
    async fn sieved(
        &self,
        sieve: &mut Sieve<'_>,
        places: &[JobPlace],
    ) -> Result<Vec<Wanted>, LedgerError> {
        let whole = |place: &JobPlace| Wanted {
            place: *place,
            lacks_outline: false,
        };
        if sieve.takes_all() || places.is_empty() {
            return Ok(places.iter().map(whole).collect());
        }
        let mut cmd = redis::cmd("HMGET");
        cmd.arg(self.0.keys.outlines());
        for place in places {
            cmd.arg(&place.job.bytes());
        }
        let Value::Array(outlines) = self.0.connection.command(&cmd).await? else {
            return Err(broken("outlines are no array"));
        };
        let mut wanted = Vec::new();
        for (place, outline) in places.iter().zip(outlines) {
            let lacks_outline = matches!(outline, Value::Nil);
            let takes = match &outline {
                Value::BulkString(bytes) => {
                    sieve.takes(place.job, std::str::from_utf8(bytes).map_err(broken)?)
                }
                _ => true,
            };
            wanted.extend(takes.then_some(Wanted {
                place: *place,
                lacks_outline,
            }));
        }
        Ok(wanted)
    }

    /// Those of these jobs that are completed, or are not.
    async fn in_state(
        &self,
        state: JobState,
        wanted: Vec<Wanted>,
    ) -> Result<Vec<Wanted>, LedgerError> {
        if wanted.is_empty() {
            return Ok(wanted);
        }
        let mut pipeline = redis::pipe();
        for it in &wanted {
            let header = self.0.keys.job(it.place.job).header;
            pipeline.cmd("HEXISTS").arg(header).arg("completed_at_ms");
        }
        let completed = self.0.connection.pipeline(&pipeline).await?;
        let expected = Value::Int(i64::from(state == JobState::Completed));
        let found = wanted.into_iter().zip(completed);
        let found = found.filter(|(_, completed)| *completed == expected);
        Ok(found.map(|(it, _)| it).collect())
    }

    /// Writes the outlines that were not there. Not repeated: it only saves the next query a look.
    async fn outline_them(&self, records: &[JobRecord]) {
        if records.is_empty() {
            return;
        }
        let mut pipeline = redis::pipe();
        for record in records {
            let outline = outline(&record.app, &record.target, &record.tags);
            let job = record.job.bytes();
            let key = self.0.keys.outlines();
            pipeline.cmd("HSETNX").arg(key).arg(&job).arg(outline);
        }
        let _ = self.0.connection.pipeline(&pipeline).await;
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
            Some(Value::Int(0)) => self.list(job, now_ms(), Outlined::Unknown).await,
            _ => Ok(()),
        }
    }

    /// Puts a job on the lists of jobs. This is not part of the scripts, because the lists are in
    /// other slots. If it fails, the caller repeats its request.
    pub(in crate::store) async fn list(
        &self,
        job: JobId,
        at_ms: u64,
        outlined: Outlined<'_>,
    ) -> Result<(), LedgerError> {
        let mut pipeline = redis::pipe();
        let (command, outline) = match outlined {
            Outlined::New(outline) => ("HSET", outline),
            Outlined::Known(outline) => ("HSETNX", outline),
            Outlined::Unknown => ("", ""),
        };
        if !command.is_empty() {
            let key = self.0.keys.outlines();
            pipeline
                .cmd(command)
                .arg(key)
                .arg(&job.bytes())
                .arg(outline);
        }
        pipeline
            .cmd("ZADD")
            .arg(self.0.keys.jobs())
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

/// A job that may match.
struct Wanted {
    place: JobPlace,
    lacks_outline: bool,
}
