//! Implements the ledger port: one script call per window of recipients.
//!
//! Recipients are sorted by fingerprint, which also sorts them by bucket, and travel packed: one
//! binary string per bucket. A slice may have been cut in another shape than the job has now,
//! because a far larger submission came later, or because the ledger was lost and another
//! submission came first. The scripts then return the job's shape, and the call is repeated in that
//! shape.
//!
//! A lease belongs to the owner, not to the single claim: an owner that claims or renews extends
//! all of its claims. An owner is one delivery of one slice, so its claims begin and end together
//! anyway.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

use redis::Value;

use super::connection::{Call, Script, broken};
use super::keys::JobKeys;
use super::steering::{EXPIRES_AT_NOW, NOT_BEFORE_NOW, PRIORITY_NOW};
use super::{Store, turn};
use crate::clock::now_ms;
use crate::domain::accounts::{Accounts, Audit, ByOutcome as _};
use crate::domain::ids::{Fingerprint, JobId, Owner};
use crate::domain::list_reference::FetchedList;
use crate::domain::outcome::Outcome;
use crate::domain::pace::{Mark, Pace};
use crate::domain::slice::{Shape, Together};
use crate::json;
use crate::ports::{
    Accepted, Claim, ClaimState, Claimed, Entry, Gathered, JobFilter, JobPage, JobPlace,
    JobProgress, JobQuery, JobRecord, JobState, Ledger, LedgerError, REASONS_MAX, Reason, Recorded,
    Settle, SliceRef, Submission,
};

/// A script that takes more memory: a full server refuses it before it writes anything.
macro_rules! growing {
    ($file:literal) => {
        LazyLock::new(|| {
            Script::new(concat!(
                "#!lua\n",
                include_str!("scripts/prelude.lua"),
                include_str!($file)
            ))
        })
    };
}

/// A script that frees memory or takes hardly any. It runs on a full server too, so outcomes can be
/// recorded even when nothing more may be claimed.
macro_rules! concluding {
    ($file:literal) => {
        LazyLock::new(|| {
            Script::new(concat!(
                "#!lua flags=allow-oom\n",
                include_str!("scripts/prelude.lua"),
                include_str!($file)
            ))
        })
    };
}

pub(super) use {concluding, growing};

static ENTER: LazyLock<Script> = growing!("scripts/enter.lua");
static WITHDRAW: LazyLock<Script> = concluding!("scripts/withdraw.lua");
static ACCEPT: LazyLock<Script> = growing!("scripts/accept.lua");
static MARK_EXPANDED: LazyLock<Script> = concluding!("scripts/mark_expanded.lua");
static GATHER: LazyLock<Script> = concluding!("scripts/gather.lua");
static RENEW: LazyLock<Script> = concluding!("scripts/renew.lua");
static RECORD_REASONS: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("scripts/record_reasons.lua")));
static PEEK: LazyLock<Script> = concluding!("scripts/peek.lua");
static COMPLETE: LazyLock<Script> = concluding!("scripts/complete.lua");

/// A recipient in a bucket: fingerprint and state.
const RECORD: usize = 11;

/// Recipients that an audit reads at a time, roughly: 180 kB, some tens of microseconds of the
/// server.
const AUDIT_RECIPIENTS: u64 = 16_384;

/// Most buckets that an audit reads at a time, however empty they are.
const AUDIT_BUCKETS: u64 = 512;

impl Ledger for Store {
    async fn accept(&self, submission: &Submission) -> Result<Accepted, LedgerError> {
        let warnings = match submission.warnings.as_slice() {
            [] => Vec::new(),
            warnings => json::bytes(&warnings),
        };
        let template = submission.template.map(|version| version.to_string());
        let mut call = self.job_call(&ACCEPT, submission.job, 25, 640);
        call.push(&submission.app)
            .push(&submission.client_msg_no)
            .push(&submission.target)
            .push(&submission.content_digest)
            .push(&submission.submission)
            .push(submission.entries)
            .push(submission.parts)
            .push(submission.shape.buckets)
            .push(submission.now_ms)
            .push(&warnings)
            .push(template.as_deref().unwrap_or_default())
            .push(submission.rate.as_deref().unwrap_or_default());
        match submission.not_before_ms {
            Some(not_before_ms) => call.push(not_before_ms),
            None => call.push(""),
        };
        call.push(submission.callback_url.as_deref().unwrap_or_default())
            .push(submission.reply_to.as_deref().unwrap_or_default())
            .push(submission.priority.as_str())
            .push(u8::from(submission.expanded))
            .push(submission.slice_recipients)
            .push(optional(submission.expires_at_ms))
            .push(tags(&submission.tags))
            .push(submission.window.as_deref().unwrap_or_default())
            .push(submission.category.as_deref().unwrap_or_default())
            .push(submission.fallback.as_deref().unwrap_or_default())
            .push(submission.sender.as_deref().unwrap_or_default())
            .push(optional(submission.pace_until_ms))
            .push(fetched(submission.fetched.as_ref()))
            .push(
                submission
                    .keeps_ids
                    .as_ref()
                    .map(json::bytes)
                    .unwrap_or_default(),
            );
        let reply = ScriptReply::new(self.0.connection.call(&call).await?)?;
        let accepted = match reply.text(0)?.as_str() {
            "conflict" => Accepted::Conflict {
                job: submission.job,
            },
            "settled" => Accepted::Settled,
            "again" => Accepted::Again {
                shape: reply.shape()?,
                template: reply.version(2)?,
                slice_recipients: reply.version(3)?,
            },
            "expand" => Accepted::Expand {
                shape: reply.shape()?,
                template: reply.version(2)?,
                first: reply.number(4)? == 1,
                slice_recipients: reply.version(3)?,
            },
            other => return Err(broken(format!("accept says {other:?}"))),
        };
        if !matches!(accepted, Accepted::Conflict { .. }) {
            self.list(submission.job, submission.now_ms).await?;
        }
        Ok(accepted)
    }

    async fn enter(&self, entry: &Entry) -> Result<(), LedgerError> {
        let mut call = self.job_call(&ENTER, entry.job, 11, 640);
        call.push(&entry.app)
            .push(&entry.client_msg_no)
            .push(&entry.target)
            .push(&entry.content_digest)
            .push(entry.entries)
            .push(entry.now_ms);
        match entry.not_before_ms {
            Some(not_before_ms) => call.push(not_before_ms),
            None => call.push(""),
        };
        call.push(entry.priority.as_str())
            .push(optional(entry.expires_at_ms))
            .push(tags(&entry.tags))
            .push(fetched(entry.fetched.as_ref()));
        let reply = self.0.connection.call(&call).await?;
        if number(&reply)? == 1 {
            self.list(entry.job, entry.now_ms).await?;
        }
        Ok(())
    }

    async fn withdraw(&self, job: JobId) -> Result<(), LedgerError> {
        let call = self.job_call(&WITHDRAW, job, 0, 0);
        self.0.connection.call(&call).await.map(drop)
    }

    async fn mark_expanded(
        &self,
        job: JobId,
        submission: &str,
    ) -> Result<JobProgress, LedgerError> {
        let mut call = self.job_call(&MARK_EXPANDED, job, 1, 128);
        call.push(submission);
        let reply = ScriptReply::new(self.0.connection.call(&call).await?)?;
        if reply.is_empty() {
            // The job was lost in between; its slices will rebuild it.
            return Ok(JobProgress::default());
        }
        reply.progress(0)
    }

    async fn gather(
        &self,
        job: JobId,
        part: &Together,
        give_up: bool,
    ) -> Result<Gathered, LedgerError> {
        let mut call = self.job_call(&GATHER, job, 4, 160);
        call.push(&part.list)
            .push(part.number)
            .push(part.of)
            .push(u8::from(give_up));
        let reply = self.0.connection.call(&call).await?;
        match number(&reply)? {
            0 => Ok(Gathered::Waiting),
            1 => Ok(Gathered::Complete),
            _ => Ok(Gathered::GivenUp),
        }
    }

    async fn knows(&self, job: JobId, submissions: &[String]) -> Result<bool, LedgerError> {
        let mut cmd = redis::cmd("HMGET");
        cmd.arg(self.0.keys.job(job).submissions()).arg(submissions);
        let reply = ScriptReply::new(self.0.connection.command(&cmd).await?)?;
        let expanded =
            |state: &Value| matches!(state, Value::BulkString(state) if state.ends_with(b":1"));
        Ok(reply.0.iter().all(expanded))
    }

    async fn claim(&self, claim: Claim<'_>) -> Result<Claimed, LedgerError> {
        self.claim_only(claim).await
    }

    async fn renew(
        &self,
        slice: SliceRef<'_>,
        owner: Owner,
        lease: Duration,
        held: &[Fingerprint],
    ) -> Result<bool, LedgerError> {
        let held = distinct(&sorted(held), held);
        let mut shape = slice.shape;
        for _ in 0..SHAPES {
            let groups = Groups::of(shape, &held);
            let keys = self.0.keys.job(slice.head.id);
            let mut call = groups.call(&RENEW, &keys, 3);
            call.push(shape.buckets)
                .push(&owner.to_bytes())
                .push(millis(lease));
            for group in &groups.groups {
                call.push(groups.packed(group));
            }
            let reply = ScriptReply::new(self.0.connection.call(&call).await?)?;
            if reply.number(0)? == 1 {
                return Ok(reply.number(1)? == 1);
            }
            shape = reply.shape()?;
        }
        Err(broken("the shape of a job changed between two calls"))
    }

    async fn settle(&self, settle: Settle<'_>) -> Result<Recorded, LedgerError> {
        self.settle_only(settle).await
    }

    async fn settle_and_claim(
        &self,
        settle: Settle<'_>,
        claim: Claim<'_>,
    ) -> Result<(Recorded, Claimed), LedgerError> {
        self.settle_then_claim(settle, claim).await
    }

    async fn complete(&self, job: JobId) -> Result<bool, LedgerError> {
        let mut call = self.job_call(&COMPLETE, job, 1, 0);
        call.push(self.0.window_s);
        let reply = self.0.connection.call(&call).await?;
        let first = number(&reply)? == 1;
        if first {
            // Not repeated: it only saves a later look at the job.
            let _ = self.unlist(job).await;
        }
        Ok(first)
    }

    async fn record_reasons(
        &self,
        job: JobId,
        reasons: &[(Fingerprint, Reason)],
    ) -> Result<(), LedgerError> {
        let keys = self.0.keys.job(job);
        let mut call = Call::new(
            &RECORD_REASONS,
            2,
            2 + 2 * reasons.len(),
            128 * reasons.len(),
        );
        call.push(keys.reasons())
            .push(&keys.header)
            .push(REASONS_MAX)
            .push(self.0.window_s);
        for (fingerprint, reason) in reasons {
            let json = json::bytes(reason);
            call.push(&fingerprint.to_bytes()).push(json);
        }
        self.0.connection.call(&call).await.map(drop)
    }

    async fn reasons(
        &self,
        job: JobId,
        recipients: &[Fingerprint],
    ) -> Result<Vec<Option<Reason>>, LedgerError> {
        if recipients.is_empty() {
            return Ok(Vec::new());
        }
        let mut command = redis::cmd("HMGET");
        command.arg(self.0.keys.job(job).reasons());
        for recipient in recipients {
            command.arg(&recipient.to_bytes());
        }
        let found: Value = self.0.connection.command(&command).await?;
        let found: Vec<Option<String>> = redis::from_redis_value(found).map_err(broken)?;
        let reason = |json: String| serde_json::from_str(&json).map_err(broken);
        found
            .into_iter()
            .map(|json| json.map(reason).transpose())
            .collect()
    }

    async fn job(&self, job: JobId) -> Result<Option<JobRecord>, LedgerError> {
        let records = self.records(&[job]).await?;
        Ok(records.into_iter().next().flatten())
    }

    async fn jobs(&self, query: &JobQuery) -> Result<JobPage, LedgerError> {
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

    async fn close(&self, job: JobId) -> Result<Option<(JobRecord, Audit)>, LedgerError> {
        // Most jobs have one bucket, and need no further round trip.
        let mut key = String::new();
        self.0.keys.job(job).write_bucket(0, &mut key);
        let mut first = redis::cmd("GET");
        first.arg(&key);
        let (mut records, bucket) = self.records_and(&[job], Some(&first)).await?;
        let Some(record) = records.pop().flatten() else {
            return Ok(None);
        };
        let mut audit = Audit::default();
        match (record.shape.buckets, bucket) {
            (1, Some(bucket)) => count(&bucket, &mut audit)?,
            _ => audit = self.audit(&record).await?,
        }
        Ok(Some((record, audit)))
    }

    async fn peek(
        &self,
        job: &JobRecord,
        recipients: &[Fingerprint],
    ) -> Result<Vec<ClaimState>, LedgerError> {
        let order = sorted(recipients);
        let asked = distinct(&order, recipients);
        let mut shape = job.shape;
        for _ in 0..SHAPES {
            let groups = Groups::of(shape, &asked);
            let mut call = groups.call(&PEEK, &self.0.keys.job(job.job), 1);
            call.push(shape.buckets);
            for group in &groups.groups {
                call.push(groups.packed(group));
            }
            let reply = ScriptReply::new(self.0.connection.call(&call).await?)?;
            if reply.number(0)? == 1 {
                let states = read_states(reply.bytes(1)?, reply.bytes(2)?)?;
                return in_order(&order, recipients, &states);
            }
            shape = reply.shape()?;
        }
        Err(broken("the shape of a job changed between two calls"))
    }

    async fn audit(&self, job: &JobRecord) -> Result<Audit, LedgerError> {
        let keys = self.0.keys.job(job.job);
        let buckets = u64::from(job.shape.buckets).max(1);
        let load = job.accounts.total.div_ceil(buckets).max(1);
        let step = (AUDIT_RECIPIENTS / load).clamp(1, AUDIT_BUCKETS) as u32;
        let mut audit = Audit::default();
        let mut key = String::new();
        for first in (0..job.shape.buckets).step_by(step as usize) {
            let mut cmd = redis::cmd("MGET");
            for bucket in first..job.shape.buckets.min(first.saturating_add(step)) {
                keys.write_bucket(bucket, &mut key);
                cmd.arg(&key);
            }
            let reply = ScriptReply::new(self.0.connection.command(&cmd).await?)?;
            for bucket in &reply.0 {
                count(bucket, &mut audit)?;
            }
        }
        Ok(audit)
    }
}

/// A call is made in the slice's shape and, if the job has another one, in the job's shape; once
/// more if the job is reshaped in between.
pub(super) const SHAPES: usize = 3;

/// Records read in one pipeline.
const JOBS_AT_ONCE: usize = 100;

/// With more open jobs than this, a query for them walks the list of all jobs.
const OPEN_JOBS_MAX: usize = 20_000;

/// Open jobs whose times are read in one command.
const OPEN_JOBS_AT_ONCE: usize = 2_000;

/// Most jobs that one query looks at, however few of them match.
const JOBS_LOOKED_AT_MAX: usize = 2_000;

impl Store {
    /// A call on the keys that every job has.
    pub(super) fn job_call<'a>(
        &self,
        script: &'a Script,
        job: JobId,
        args: usize,
        bytes: usize,
    ) -> Call<'a> {
        let keys = self.0.keys.job(job);
        let mut call = Call::new(script, 4, args, 320 + bytes);
        call.push(&keys.header)
            .push(keys.slices())
            .push(keys.submissions())
            .push(keys.owners());
        call
    }

    /// Adds the description of a slice, as the scripts read it.
    pub(super) fn push_slice(&self, call: &mut Call<'_>, slice: SliceRef<'_>, shape: Shape) {
        let head = slice.head;
        call.push(&slice.id.0)
            .push(slice.entries)
            .push(slice.id.submission())
            .push(shape.buckets)
            .push(&head.app)
            .push(&head.client_msg_no)
            .push(head.first_target())
            .push(head.accepted_at_ms)
            .push(self.0.window_s);
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
    pub(super) async fn records(
        &self,
        jobs: &[JobId],
    ) -> Result<Vec<Option<JobRecord>>, LedgerError> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        Ok(self.records_and(jobs, None).await?.0)
    }

    /// The records of jobs, and the answer to one more command.
    async fn records_and(
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
    async fn unlist(&self, job: JobId) -> Result<(), LedgerError> {
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
    pub(super) async fn list(&self, job: JobId, at_ms: u64) -> Result<(), LedgerError> {
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

/// Sorted fingerprints, packed, and grouped by bucket.
pub(super) struct Groups {
    packed: Vec<u8>,
    pub(super) groups: Vec<Group>,
}

pub(super) struct Group {
    bucket: u32,
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Group {
    pub(super) fn bucket(&self) -> u32 {
        self.bucket
    }
}

impl Groups {
    pub(super) fn of(shape: Shape, sorted: &[Fingerprint]) -> Self {
        let mut packed = Vec::with_capacity(sorted.len() * 8);
        let mut groups: Vec<Group> = Vec::new();
        for (at, fingerprint) in sorted.iter().enumerate() {
            // Fingerprints of one bucket share their first bytes. In reverse order their first byte
            // differs, so a search finds them by it.
            packed.extend_from_slice(&fingerprint.0.to_le_bytes());
            let bucket = shape.bucket(*fingerprint);
            match groups.last_mut() {
                Some(group) if group.bucket == bucket => group.end = at + 1,
                _ => groups.push(Group {
                    bucket,
                    start: at,
                    end: at + 1,
                }),
            }
        }
        Self { packed, groups }
    }

    pub(super) fn packed(&self, group: &Group) -> &[u8] {
        &self.packed[group.start * 8..group.end * 8]
    }

    pub(super) fn count(&self) -> usize {
        self.groups.len()
    }

    /// The expected size of the keys and of what is packed.
    pub(super) fn bytes(&self) -> usize {
        self.groups.len() * 56 + self.packed.len() * 2
    }

    /// The packed fingerprints of each group.
    pub(super) fn each(&self) -> impl Iterator<Item = &[u8]> {
        self.groups.iter().map(|group| self.packed(group))
    }

    /// A call on the keys that every job has and on these buckets.
    pub(super) fn call<'a>(&self, script: &'a Script, keys: &JobKeys, args: usize) -> Call<'a> {
        let count = self.count();
        let mut call = Call::new(script, 4 + count, args + 2 * count, 640 + self.bytes());
        call.push(&keys.header)
            .push(keys.slices())
            .push(keys.submissions())
            .push(keys.owners());
        self.push_keys(keys, &mut call);
        call
    }

    pub(super) fn push_keys(&self, keys: &JobKeys, call: &mut Call<'_>) {
        let mut key = String::with_capacity(keys.header.len() + 12);
        for group in &self.groups {
            keys.write_bucket(group.bucket, &mut key);
            call.push(&key);
        }
    }
}

/// The positions in the order of their fingerprints. Slices are cut sorted, so the order is mostly
/// unchanged.
pub(super) fn sorted(fingerprints: &[Fingerprint]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..).take(fingerprints.len()).collect();
    if !fingerprints.is_sorted() {
        order.sort_by_key(|at| fingerprints[*at as usize]);
    }
    order
}

/// The sorted fingerprints, each once. Two recipients with one fingerprint are one to the ledger.
pub(super) fn distinct(order: &[u32], fingerprints: &[Fingerprint]) -> Vec<Fingerprint> {
    let mut distinct: Vec<_> = order.iter().map(|at| fingerprints[*at as usize]).collect();
    distinct.dedup();
    distinct
}

/// The states that a claim returns, of sorted and distinct recipients.
pub(super) fn read_states(states: &[u8], lefts: &[u8]) -> Result<Vec<ClaimState>, LedgerError> {
    let mut lefts = lefts.as_chunks::<4>().0.iter();
    let read = |code: &u8| match code {
        b'g' => Ok(ClaimState::Granted),
        b'd' => Ok(ClaimState::InDoubt),
        b't' => Ok(ClaimState::TakenOver),
        b'h' => {
            let left = lefts.next().ok_or_else(|| broken("a wait is missing"))?;
            let left = Duration::from_millis(u32::from_be_bytes(*left).into());
            Ok(ClaimState::Held { left })
        }
        code => Outcome::from_ledger_code(*code)
            .map(ClaimState::Settled)
            .ok_or_else(|| broken(format!("outcome {code:#x}"))),
    };
    states.iter().map(read).collect()
}

/// The states in the order in which the recipients were asked for.
pub(super) fn in_order(
    order: &[u32],
    recipients: &[Fingerprint],
    states: &[ClaimState],
) -> Result<Vec<ClaimState>, LedgerError> {
    let mut claimed = vec![ClaimState::Granted; order.len()];
    let mut states = states.iter();
    let mut before = None;
    for at in order {
        let fingerprint = recipients[*at as usize];
        let state = match before {
            Some((same, state)) if same == fingerprint => state,
            _ => *states.next().ok_or_else(|| broken("a state is missing"))?,
        };
        claimed[*at as usize] = state;
        before = Some((fingerprint, state));
    }
    Ok(claimed)
}

/// A number as a script reads it, or nothing.
fn optional(number: Option<u64>) -> String {
    number.map_or_else(String::new, |it| it.to_string())
}

/// The version of a list as JSON, or nothing.
fn fetched(version: Option<&FetchedList>) -> Vec<u8> {
    version.map(json::bytes).unwrap_or_default()
}

/// The tags of a job as JSON, or nothing.
fn tags(tags: &[String]) -> Vec<u8> {
    match tags {
        [] => Vec::new(),
        tags => json::bytes(&tags),
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    duration
        .as_millis()
        .try_into()
        .unwrap_or(u64::from(u32::MAX))
}

fn count(bucket: &Value, audit: &mut Audit) -> Result<(), LedgerError> {
    let records = match bucket {
        Value::Nil => return Ok(()),
        Value::BulkString(bucket) => bucket.as_chunks::<RECORD>(),
        other => return Err(broken(format!("{other:?} where a bucket is expected"))),
    };
    let (records, rest) = records;
    if !rest.is_empty() {
        return Err(broken("a bucket ends in the middle of a record"));
    }
    for record in records {
        match record[8] {
            128.. => audit.claimed += 1,
            turn::RELEASE => {}
            state => match Outcome::from_ledger_code(state) {
                Some(outcome) => audit.count(outcome),
                None => return Err(broken(format!("state {state:#x}"))),
            },
        }
    }
    Ok(())
}

fn record(job: JobId, row: Value) -> Result<Option<JobRecord>, LedgerError> {
    let row: HashMap<String, String> = redis::from_redis_value(row).map_err(broken)?;
    if row.is_empty() {
        return Ok(None);
    }
    let text = |field: &str| row.get(field).cloned().unwrap_or_default();
    let time = |field: &str| row.get(field).and_then(|value| value.parse::<u64>().ok());
    let number = |field: &str| time(field).unwrap_or(0);
    // A registered job has a shape; before that it has only its entry.
    let registered = row.contains_key("buckets");
    let mut accounts = Accounts {
        total: number(if registered { "total" } else { "awaited" }),
        ..Accounts::default()
    };
    for &outcome in Outcome::ALL {
        *accounts.of_mut(outcome) = number(outcome.as_str());
    }
    let lost = number("lost");
    accounts.uncertain += lost;
    let completed_at_ms = time("completed_at_ms");
    Ok(Some(JobRecord {
        job,
        app: text("app"),
        client_msg_no: text("client_msg_no"),
        target: text("target"),
        state: match completed_at_ms {
            Some(_) => JobState::Completed,
            None if registered => JobState::Running,
            None => JobState::Accepted,
        },
        accounts,
        pending: accounts.pending(),
        accepted_at_ms: number("accepted_at_ms"),
        content_digest: row.get("digest").filter(|it| !it.is_empty()).cloned(),
        progress_at_ms: time("progress_at_ms"),
        completed_at_ms,
        rebuilt: row.contains_key("rebuilt"),
        went_back_at_ms: None,
        lost,
        reopened: number("reopened"),
        waited_at_ms: time("alive_at_ms"),
        // An entered job is one submission.
        submissions: if registered { number("submissions") } else { 1 },
        shape: Shape {
            buckets: number("buckets") as u32,
        },
        warnings: match row.get("warnings").map_or("", String::as_str) {
            "" => Vec::new(),
            json => serde_json::from_str(json).map_err(broken)?,
        },
        sender: row.get("sender").cloned(),
        window: row.get("window").cloned(),
        pace_until_ms: time("pace_until_ms"),
        category: row.get("category").cloned(),
        rate: row.get("rate").cloned(),
        priority: row
            .get(PRIORITY_NOW)
            .or_else(|| row.get("priority"))
            .and_then(|it| it.parse().ok()),
        not_before_ms: time(NOT_BEFORE_NOW).or_else(|| time("not_before_ms")),
        expires_at_ms: match time(EXPIRES_AT_NOW) {
            Some(at) => Some(at).filter(|at| *at > 0),
            None => time("expires_at_ms"),
        },
        tags: match row.get("tags") {
            Some(json) => serde_json::from_str(json).map_err(broken)?,
            None => Vec::new(),
        },
        fetched: match row.get("fetched") {
            Some(json) => Some(serde_json::from_str(json).map_err(broken)?),
            None => None,
        },
        callback_url: row.get("callback_url").cloned(),
        reply_to: row.get("reply_to").cloned(),
        fallback: row.get("fallback").cloned(),
        sent_by_fallback: number("sent_by_fallback"),
        keep_ids: row.contains_key("keep_ids"),
        keeps_ids: match row.get("keep_ids").map_or("", String::as_str) {
            "" => None,
            json => Some(serde_json::from_str(json).map_err(broken)?),
        },
        pace: Pace {
            last: mark(row.get("mark")),
            before: mark(row.get("mark_before")),
        },
        template: time("template").map(|version| version as u32),
    }))
}

/// A mark as `settle.lua` writes it.
fn mark(text: Option<&String>) -> Option<Mark> {
    let (at_ms, settled) = text?.split_once(' ')?;
    Some(Mark {
        at_ms: at_ms.parse().ok()?,
        settled: settled.parse().ok()?,
    })
}

/// The array that a script returns.
pub(super) struct ScriptReply(Vec<Value>);

impl ScriptReply {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn new(value: Value) -> Result<Self, LedgerError> {
        match value {
            Value::Array(items) => Ok(Self(items)),
            other => Err(broken(format!("{other:?} where an array is expected"))),
        }
    }

    pub(super) fn bytes(&self, at: usize) -> Result<&[u8], LedgerError> {
        match self.0.get(at) {
            Some(Value::BulkString(bytes)) => Ok(bytes),
            other => Err(broken(format!("{other:?} where a string is expected"))),
        }
    }

    pub(super) fn array(&self, at: usize) -> Result<Self, LedgerError> {
        match self.0.get(at) {
            Some(Value::Array(items)) => Ok(Self(items.clone())),
            other => Err(broken(format!("{other:?} where an array is expected"))),
        }
    }

    fn text(&self, at: usize) -> Result<String, LedgerError> {
        String::from_utf8(self.bytes(at)?.to_vec()).map_err(broken)
    }

    pub(super) fn number(&self, at: usize) -> Result<u64, LedgerError> {
        self.0
            .get(at)
            .ok_or_else(|| broken("the reply is too short"))
            .and_then(number)
    }

    /// The shape in second place of the array.
    pub(super) fn shape(&self) -> Result<Shape, LedgerError> {
        Ok(Shape {
            buckets: self.number(1)? as u32,
        })
    }

    /// A version or a size, where 0 means none.
    fn version(&self, at: usize) -> Result<Option<u32>, LedgerError> {
        Ok(Some(self.number(at)? as u32).filter(|version| *version > 0))
    }

    pub(super) fn progress(&self, from: usize) -> Result<JobProgress, LedgerError> {
        let at = |index: usize| self.number(from + index);
        Ok(JobProgress {
            accounts: Accounts {
                total: at(0)?,
                sent: at(1)?,
                duplicate: at(2)?,
                failed: at(3)?,
                uncertain: at(4)?,
                expired: at(5)?,
                cancelled: at(6)?,
                capped: at(9)?,
            },
            finished: at(7)? == 1,
            completed: at(8)? == 1,
        })
    }
}

pub(super) fn number(value: &Value) -> Result<u64, LedgerError> {
    match value {
        Value::Int(number) => u64::try_from(*number).map_err(broken),
        Value::BulkString(digits) => std::str::from_utf8(digits)
            .map_err(broken)?
            .parse()
            .map_err(broken),
        other => Err(broken(format!("{other:?} where a number is expected"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_cover_everybody_in_order() {
        let shape = Shape { buckets: 3 };
        let fingerprints: Vec<_> = (0..5000u64)
            .map(|n| Fingerprint(n * (u64::MAX / 5000)))
            .collect();
        let groups = Groups::of(shape, &fingerprints);
        let mut next = 0;
        for group in &groups.groups {
            assert_eq!(group.start, next);
            for fingerprint in &fingerprints[group.start..group.end] {
                assert_eq!(shape.bucket(*fingerprint), group.bucket);
            }
            next = group.end;
        }
        assert_eq!((next, groups.groups.len()), (5000, 3));
    }
}
