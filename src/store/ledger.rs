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

use std::sync::LazyLock;
use std::time::Duration;

use redis::Value;

use super::connection::{Call, Script, broken};
use super::{Store, turn};
use crate::domain::accounts::Audit;
use crate::domain::ids::{Fingerprint, JobId, Owner};
use crate::domain::list_reference::FetchedList;
use crate::domain::outcome::Outcome;
use crate::domain::slice::{Shape, Together};
use crate::json;
use crate::ports::{
    Accepted, Claim, ClaimState, Claimed, Entry, Gathered, JobPage, JobProgress, JobQuery,
    JobRecord, Ledger, LedgerError, REASONS_MAX, Reason, Recorded, Settle, SliceRef, Submission,
    outline,
};

mod groups;
mod jobs;
mod packs;
mod record;
mod reply;

pub(super) use groups::{Groups, distinct, in_order, read_states, sorted};
pub(super) use jobs::Outlined;
pub(super) use record::Load;
pub(super) use reply::{ScriptReply, number};

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
static KNOWS: LazyLock<Script> = concluding!("scripts/knows.lua");
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
        let mut entered = false;
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
            "expand" => {
                let first = reply.number(4)?;
                entered = first == 2;
                Accepted::Expand {
                    shape: reply.shape()?,
                    template: reply.version(2)?,
                    first: first > 0,
                    slice_recipients: reply.version(3)?,
                }
            }
            other => return Err(broken(format!("accept says {other:?}"))),
        };
        let it = submission;
        let outline = outline(&it.app, &it.target, &it.tags);
        let outlined = match accepted {
            Accepted::Conflict { .. } => return Ok(accepted),
            Accepted::Expand { first: true, .. } if entered => Outlined::Entered(&outline),
            Accepted::Expand { first: true, .. } => Outlined::New(&outline),
            _ => Outlined::Known(&outline),
        };
        self.list(it.job, it.now_ms, outlined).await?;
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
            let outline = outline(&entry.app, &entry.target, &entry.tags);
            let outlined = Outlined::New(&outline);
            self.list(entry.job, entry.now_ms, outlined).await?;
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
        let mut call = self.job_call(&KNOWS, job, submissions.len(), 32 * submissions.len());
        for submission in submissions {
            call.push(submission);
        }
        let reply = ScriptReply::new(self.0.connection.call(&call).await?)?;
        let known = |state: &Value| match state {
            Value::BulkString(state) => {
                let has_entries = !state.starts_with(b"0:");
                state.ends_with(b":1") || state.ends_with(b":0") && has_entries
            }
            _ => false,
        };
        Ok(reply.0.iter().all(known))
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
        self.list_of_jobs(query).await
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
