//! Lists jobs, newest first: all of them, and those that are not completed.
//!
//! The sorted set `jobs` has the order, the hash `outlines` has what a filter asks for, and `packs`
//! has both of many jobs at a time. A query goes through them, and reads the records of those jobs
//! only that may match. The keys are in other slots than the jobs, so a crash between two writes may
//! leave a job without an outline. Such a job may match: the query reads its record and writes the
//! outline.

use redis::Value;

use super::Store;
use super::packs::{Pack, PackedJobs};
use super::record::record;
use crate::clock::now_ms;
use crate::domain::ids::JobId;
use crate::ports::{JobPage, JobPlace, JobQuery, JobRecord, JobState, LedgerError, Sieve, outline};
use crate::store::connection::broken;

/// Records read in one pipeline.
const RECORDS_AT_ONCE: usize = 100;

/// Most outlines read in one command: about a millisecond of the server.
const OUTLINES_AT_ONCE: usize = 5_000;

/// Most outlines, and most records, that one query looks at, however few of them match. A record
/// costs as much as twenty outlines, a look at whether a job is completed as much as two, and ten
/// outlines of a pack as much as one.
const OUTLINES_MAX: usize = 100_000;
const RECORDS_MAX: usize = 2_000;
const PACKED: usize = 10;

/// Jobs of which a query asks together whether they are completed.
const STATES_AT_ONCE: usize = 1_000;

/// With more open jobs than this, a query for them walks the list of all jobs.
const OPEN_MAX: usize = 20_000;

/// Open jobs whose times are read in one command.
const OPEN_AT_ONCE: usize = 2_000;

/// How the outline of a job is kept.
#[derive(Clone, Copy)]
pub(in crate::store) enum Outlined<'a> {
    /// The job is new.
    New(&'a str),
    /// The job is new, and was entered before.
    Entered(&'a str),
    /// The job may have one already.
    Known(&'a str),
    Unknown,
}

impl Store {
    /// A page of jobs, see [`Ledger::jobs`](crate::ports::Ledger::jobs).
    pub(super) async fn list_of_jobs(&self, query: &JobQuery) -> Result<JobPage, LedgerError> {
        let mut page = JobPage {
            jobs: Vec::new(),
            next: query.after,
        };
        if query.most == 0 {
            return Ok(page);
        }
        let mut without = Vec::new();
        let found = self.walk(query, &mut page, &mut without).await;
        self.outline_them(&without).await;
        found.map(|()| page)
    }

    /// Fills a page, and notes the records of jobs without an outline.
    async fn walk(
        &self,
        query: &JobQuery,
        page: &mut JobPage,
        without: &mut Vec<JobRecord>,
    ) -> Result<(), LedgerError> {
        let filter = &query.filter;
        let open = match filter.is_for_open_jobs() {
            true => self.open_places(query).await?,
            false => None,
        };
        // The places of open jobs say that they are open.
        let state = filter.state.filter(|_| open.is_none());
        let mut walk = Walk::new(query, open);
        let (mut looked_at, mut records) = (0, 0);
        while looked_at < OUTLINES_MAX && records < RECORDS_MAX {
            let step = self.step(&mut walk).await?;
            looked_at += step.cost;
            for some in step.wanted.chunks(STATES_AT_ONCE) {
                let mut wanted = some.to_vec();
                if let Some(state) = state {
                    looked_at += 2 * some.len();
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
                            let ended = walk.ended && step.last == Some(it.place);
                            page.next = page.next.filter(|_| !ended);
                            return Ok(());
                        }
                    }
                    if records >= RECORDS_MAX {
                        return Ok(());
                    }
                }
                page.next = some.last().map(|it| it.place).or(page.next);
                if looked_at >= OUTLINES_MAX {
                    return Ok(());
                }
            }
            page.next = walk.after.filter(|_| !walk.ended);
            if walk.ended {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The next jobs that may match.
    async fn step(&self, walk: &mut Walk<'_>) -> Result<Step, LedgerError> {
        if let Some(open) = &mut walk.open {
            let places: Vec<_> = open.drain(..open.len().min(walk.at_once)).collect();
            walk.ended = open.is_empty();
            return self.step_over(walk, &places).await;
        }
        // The first jobs often are enough.
        if walk.at_once > RECORDS_AT_ONCE && walk.packs.is_none() && !walk.sieve.takes_all() {
            walk.packs = Some(self.packs().await?);
        }
        let newest_ms = walk.newest_ms();
        let packs = walk.packs.as_deref().unwrap_or_default();
        if let Some(pack) = packs.iter().rfind(|pack| pack.covers(newest_ms)).copied() {
            if let Some(bytes) = self.pack_bytes(&pack).await?
                && let Some(jobs) = PackedJobs::read(&bytes)
            {
                return Ok(walk.step_over_pack(&pack, &jobs));
            }
            // Another process has just replaced it.
            walk.packs
                .iter_mut()
                .for_each(|packs| packs.retain(|it| *it != pack));
        }
        let packs = walk.packs.as_deref().unwrap_or_default();
        let below = packs.iter().filter(|pack| pack.to_ms < newest_ms);
        let next_pack_ms = below.map(|pack| pack.to_ms).max();
        let oldest_ms = walk.since_ms.max(next_pack_ms.map_or(0, |to_ms| to_ms + 1));
        let places = self.places(walk.after, oldest_ms, walk.at_once).await?;
        if places.len() >= walk.at_once {
            return self.step_over(walk, &places).await;
        }
        let step = self.step_over(walk, &places).await?;
        walk.go_below(oldest_ms);
        Ok(step)
    }

    /// Those of the next places whose jobs may match.
    async fn step_over(
        &self,
        walk: &mut Walk<'_>,
        places: &[JobPlace],
    ) -> Result<Step, LedgerError> {
        let wanted = self.sieved(&mut walk.sieve, places).await?;
        walk.after = places.last().copied().or(walk.after);
        walk.at_once = (walk.at_once * 10).min(OUTLINES_AT_ONCE);
        Ok(Step {
            wanted,
            last: places.last().copied(),
            cost: places.len(),
        })
    }

    /// The next places in the list of jobs, at most `most`; fewer only at the end of the list.
    async fn places(
        &self,
        after: Option<JobPlace>,
        oldest_ms: u64,
        most: usize,
    ) -> Result<Vec<JobPlace>, LedgerError> {
        let newest = after.map_or("+inf".to_owned(), |after| after.at_ms.to_string());
        // Many jobs may share one millisecond, and some of them come before the place.
        let mut skipped = 0;
        let mut places = Vec::new();
        loop {
            let mut cmd = redis::cmd("ZREVRANGEBYSCORE");
            cmd.arg(self.0.keys.jobs())
                .arg(&newest)
                .arg(oldest_ms)
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
        if sieve.takes_all() {
            let whole = |place: &JobPlace| Wanted {
                place: *place,
                lacks_outline: false,
            };
            return Ok(places.iter().map(whole).collect());
        }
        let outlines = self.outlines(places).await?;
        let each = places.iter().zip(&outlines);
        let wanted = each.filter_map(|(place, it)| Wanted::of(sieve, *place, it.as_deref()));
        Ok(wanted.collect())
    }

    /// The outlines of jobs, where they are known.
    pub(super) async fn outlines(
        &self,
        places: &[JobPlace],
    ) -> Result<Vec<Option<String>>, LedgerError> {
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let mut cmd = redis::cmd("HMGET");
        cmd.arg(self.0.keys.outlines());
        for place in places {
            cmd.arg(&place.job.bytes());
        }
        redis::from_redis_value(self.0.connection.command(&cmd).await?).map_err(broken)
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
            Outlined::New(outline) | Outlined::Entered(outline) => ("HSET", outline),
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
        let replies = self.0.connection.pipeline(&pipeline).await?;
        if let Outlined::New(_) = outlined {
            // A job of this key was forgotten, perhaps one with another outline.
            if replies.first() == Some(&Value::Int(0)) {
                self.remove_packs_with(job).await?;
            }
            self.note_listed().await;
        }
        Ok(())
    }
}

/// Goes through the jobs, newest first.
struct Walk<'a> {
    sieve: Sieve<'a>,
    /// The places of the open jobs, if only these are looked at.
    open: Option<Vec<JobPlace>>,
    /// The packs, once they are read.
    packs: Option<Vec<Pack>>,
    /// All places down to here are looked at.
    after: Option<JobPlace>,
    since_ms: u64,
    /// Places that the next step takes from the list.
    at_once: usize,
    ended: bool,
}

/// What one step of a walk found.
struct Step {
    wanted: Vec<Wanted>,
    /// The last place that was looked at.
    last: Option<JobPlace>,
    cost: usize,
}

impl<'a> Walk<'a> {
    fn new(query: &'a JobQuery, open: Option<Vec<JobPlace>>) -> Self {
        let filter = &query.filter;
        let until = filter.until_ms.map(before);
        Self {
            sieve: Sieve::new(filter),
            open,
            packs: None,
            after: query.after.into_iter().chain(until).min(),
            since_ms: filter.since_ms.unwrap_or(0),
            at_once: RECORDS_AT_ONCE,
            ended: false,
        }
    }

    /// The time of the newest jobs that are not looked at.
    fn newest_ms(&self) -> u64 {
        match self.after {
            Some(after) if after == before(after.at_ms) => after.at_ms.saturating_sub(1),
            Some(after) => after.at_ms,
            None => u64::MAX,
        }
    }

    /// All jobs at and after this time are looked at.
    fn go_below(&mut self, at_ms: u64) {
        self.after = Some(before(at_ms));
        self.ended = at_ms <= self.since_ms;
    }

    fn step_over_pack(&mut self, pack: &Pack, jobs: &PackedJobs<'_>) -> Step {
        let mut wanted = Vec::new();
        let sieve = &mut self.sieve;
        let outlines = jobs.outlines().iter();
        let taken: Vec<_> = outlines.map(|it| sieve.takes_outline(it)).collect();
        for (place, outline) in jobs.taken(&taken) {
            let is_left = self.after.is_none_or(|after| place < after);
            if is_left && place.at_ms >= self.since_ms {
                wanted.extend(Wanted::of(sieve, place, outline));
            }
        }
        self.go_below(pack.from_ms);
        Step {
            last: None,
            cost: jobs.count().div_ceil(PACKED),
            wanted,
        }
    }
}

/// The place before all jobs of this time; in a list with the newest first, these come before it.
fn before(at_ms: u64) -> JobPlace {
    JobPlace {
        at_ms,
        job: JobId::from_bytes([0; 12]),
    }
}

/// A job that may match.
#[derive(Clone, Copy)]
struct Wanted {
    place: JobPlace,
    lacks_outline: bool,
}

impl Wanted {
    fn of(sieve: &mut Sieve<'_>, place: JobPlace, outline: Option<&str>) -> Option<Self> {
        let takes = outline.is_none_or(|outline| sieve.takes(place.job, outline));
        takes.then_some(Self {
            place,
            lacks_outline: outline.is_none(),
        })
    }
}
