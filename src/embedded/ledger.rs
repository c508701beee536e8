//! Implements the ledger port: the steps of the Redis scripts, on tables.
//!
//! Recipients arrive sorted by fingerprint, which also sorts them by bucket; a bucket is read and
//! written as one row. A slice that was cut in another shape than the job has now is looked up in
//! the job's shape. This module has jobs and their submissions, [`slices`] has claims and outcomes.

mod slices;

use std::time::Duration;

use redb::{ReadTransaction, ReadableTable as _};

use self::slices::{ClaimStep, SettleStep, claimed, outcome};
use super::claims::{self, Asker};
use super::disk::StorageError;
use super::limiter::{EmbeddedStore, ledger_error};
use super::listing;
use super::tables::{BUCKETS, Bucket, JOBS, JobRow, REASONS, SUBMISSIONS};
use super::writer::WriteContext;
use crate::domain::accounts::{Accounts, Audit};
use crate::domain::ids::{Fingerprint, JobId, Owner};
use crate::domain::slice::{Shape, Together};
use crate::json;
use crate::ports::{
    Accepted, Claim, ClaimState, Claimed, Entry, Gathered, JobPage, JobPlace, JobProgress,
    JobQuery, JobRecord, JobState, Ledger, LedgerError, REASONS_MAX, Reason, Recorded, Settle,
    SliceRef, Submission,
};

/// States of a submission.
const HEARD_OF: u8 = 0;
const ACCEPTED: u8 = 1;
const EXPANDED: u8 = 2;
/// States of a list in parts. Its row is among the submissions, under a name that no submission
/// has.
const GATHERING: u8 = 3;
const GIVEN_UP: u8 = 4;
/// How a submission is cut. The row is under `cut <submission>`.
const CUT: u8 = 5;

impl Ledger for EmbeddedStore {
    async fn accept(&self, submission: &Submission) -> Result<Accepted, LedgerError> {
        let submission = submission.clone();
        // The message of the job stays in its queue until more is written of the job.
        let writer = &self.0.0.writer;
        let step = writer.write_ahead(move |work| accept(work, &submission));
        step.await.map_err(ledger_error)
    }

    async fn enter(&self, entry: &Entry) -> Result<(), LedgerError> {
        let entry = entry.clone();
        // The message of the job is in its queue, and its acceptance enters it too.
        let writer = &self.0.0.writer;
        let step = writer.write_ahead(move |work| enter(work, &entry));
        step.await.map_err(ledger_error)
    }

    async fn withdraw(&self, job: JobId) -> Result<(), LedgerError> {
        let job = job.to_string();
        let step = self.0.0.write(0, move |work| {
            let row = job_row(work, &job)?.filter(|row| row.entered);
            let Some(row) = row else { return Ok(()) };
            work.tables.jobs.open()?.remove(job.as_str())?;
            listing::remove(work, &job, &row)?;
            work.tables.ended.open()?.insert(row.life, ())?;
            Ok(())
        });
        step.await.map_err(ledger_error)
    }

    async fn mark_expanded(
        &self,
        job: JobId,
        submission: &str,
    ) -> Result<JobProgress, LedgerError> {
        let (job, submission) = (job.to_string(), submission.to_owned());
        let step = self
            .0
            .0
            .write(0, move |work| mark_expanded(work, &job, &submission));
        step.await.map_err(ledger_error)
    }

    async fn gather(
        &self,
        job: JobId,
        part: &Together,
        give_up: bool,
    ) -> Result<Gathered, LedgerError> {
        let (job, part) = (job.to_string(), part.clone());
        let step = self
            .0
            .0
            .write(0, move |work| gather(work, &job, &part, give_up));
        step.await.map_err(ledger_error)
    }

    async fn knows(&self, job: JobId, submissions: &[String]) -> Result<bool, LedgerError> {
        let submissions = submissions.to_vec();
        let read = self.0.0.read(move |transaction| {
            let jobs = transaction.open_table(JOBS)?;
            let Some(row) = jobs.get(job.to_string().as_str())? else {
                return Ok(false);
            };
            let life = JobRow::decode(row.value())?.life;
            let table = transaction.open_table(SUBMISSIONS)?;
            for submission in &submissions {
                let known = table.get((life, submission.as_str()))?;
                let known = known.map(|row| row.value());
                if !matches!(known, Some((_, EXPANDED) | (1.., ACCEPTED))) {
                    return Ok(false);
                }
            }
            Ok(true)
        });
        read.await.map_err(ledger_error)
    }

    async fn claim(&self, claim: Claim<'_>) -> Result<Claimed, LedgerError> {
        let (order, step) = ClaimStep::of(claim);
        let states = self.0.0.write(step.bytes(), move |work| step.run(work));
        Ok(claimed(order, states.await.map_err(ledger_error)?))
    }

    async fn renew(
        &self,
        slice: SliceRef<'_>,
        owner: Owner,
        lease: Duration,
        held: &[Fingerprint],
    ) -> Result<bool, LedgerError> {
        let job = slice.head.id.to_string();
        let held: Vec<u64> = held.iter().map(|it| it.0).collect();
        // Deadlines are in memory only: a process that dies holds no claim.
        let step = self.0.0.writer.look(move |work| {
            let Some(row) = job_row(work, &job)? else {
                return Ok(held.is_empty());
            };
            let (life, owner) = (row.life, owner.0);
            Ok(work
                .claims
                .renew(Asker { life, owner }, &held, work.now + lease))
        });
        step.await.map_err(ledger_error)
    }

    async fn settle(&self, settle: Settle<'_>) -> Result<Recorded, LedgerError> {
        let step = SettleStep::of(settle);
        let recorded = self.0.0.write(step.bytes(), move |work| step.run(work));
        recorded.await.map_err(ledger_error)
    }

    async fn settle_and_claim(
        &self,
        settle: Settle<'_>,
        claim: Claim<'_>,
    ) -> Result<(Recorded, Claimed), LedgerError> {
        let settle = SettleStep::of(settle);
        let (order, claim) = ClaimStep::of(claim);
        let bytes = settle.bytes() + claim.bytes();
        let both = self.0.0.write(bytes, move |work| {
            let recorded = settle.run(work)?;
            Ok((recorded, claim.run(work)?))
        });
        let (recorded, states) = both.await.map_err(ledger_error)?;
        Ok((recorded, claimed(order, states)))
    }

    async fn complete(&self, job: JobId) -> Result<bool, LedgerError> {
        let job = job.to_string();
        let step = self.0.0.write(0, move |work| {
            let Some(mut row) = job_row(work, &job)? else {
                return Ok(false);
            };
            let progress = progress(&row)?;
            if !progress.finished || progress.completed {
                return Ok(false);
            }
            row.completed_at_ms = Some(work.now_ms);
            listing::close(work, &job, &row)?;
            keep_row(work, &job, &row)?;
            Ok(true)
        });
        step.await.map_err(ledger_error)
    }

    async fn record_reasons(
        &self,
        job: JobId,
        reasons: &[(Fingerprint, Reason)],
    ) -> Result<(), LedgerError> {
        let job = job.to_string();
        let rows: Vec<(u64, Vec<u8>)> = reasons
            .iter()
            .map(|(fingerprint, reason)| (fingerprint.0, json::bytes(reason)))
            .collect();
        let bytes = rows.iter().map(|(_, json)| 16 + json.len()).sum();
        let step = self.0.0.write(bytes, move |work| {
            let Some(JobRow { life, .. }) = job_row(work, &job)? else {
                return Ok(());
            };
            let table = work.tables.reasons.open()?;
            let kept = table.range((life, 0)..=(life, u64::MAX))?;
            let room =
                (REASONS_MAX as usize).saturating_sub(kept.take(REASONS_MAX as usize).count());
            for (fingerprint, json) in rows.iter().take(room) {
                table.insert((life, *fingerprint), json.as_slice())?;
            }
            Ok(())
        });
        step.await.map_err(ledger_error)
    }

    async fn reasons(
        &self,
        job: JobId,
        recipients: &[Fingerprint],
    ) -> Result<Vec<Option<Reason>>, LedgerError> {
        let job = job.to_string();
        let recipients: Vec<u64> = recipients.iter().map(|it| it.0).collect();
        let read = self.0.0.read(move |transaction| {
            let row = transaction.open_table(JOBS)?.get(job.as_str())?;
            let Some(row) = row.map(|row| JobRow::decode(row.value())).transpose()? else {
                return Ok(vec![None; recipients.len()]);
            };
            let table = transaction.open_table(REASONS)?;
            let reason = |fingerprint: &u64| -> Result<_, StorageError> {
                let json = table.get((row.life, *fingerprint))?;
                let read = |json: &[u8]| {
                    serde_json::from_slice(json)
                        .inspect_err(|error| tracing::error!(%error, "a reason cannot be read"))
                        .ok()
                };
                Ok(json.and_then(|json| read(json.value())))
            };
            recipients.iter().map(reason).collect()
        });
        read.await.map_err(ledger_error)
    }

    async fn job(&self, job: JobId) -> Result<Option<JobRecord>, LedgerError> {
        let read = self.0.0.read(move |transaction| {
            let jobs = transaction.open_table(JOBS)?;
            let Some(row) = jobs.get(job.to_string().as_str())? else {
                return Ok(None);
            };
            record(job, JobRow::decode(row.value())?).map(Some)
        });
        read.await.map_err(ledger_error)
    }

    async fn jobs(&self, query: &JobQuery) -> Result<JobPage, LedgerError> {
        let query = query.clone();
        let read = self.0.0.read(move |it| listing::page(it, &query));
        read.await.map_err(ledger_error)
    }

    async fn peek(
        &self,
        job: &JobRecord,
        recipients: &[Fingerprint],
    ) -> Result<Vec<ClaimState>, LedgerError> {
        let job = job.job.to_string();
        let asked: Vec<u64> = recipients.iter().map(|it| it.0).collect();
        // The writer has the deadlines of the claims.
        let step = self.0.0.writer.look(move |work| look(work, &job, &asked));
        step.await.map_err(ledger_error)
    }

    async fn audit(&self, job: &JobRecord) -> Result<Audit, LedgerError> {
        let job = job.job;
        let read = self.0.0.read(move |transaction| audit(transaction, job));
        read.await.map_err(ledger_error)
    }
}

// ---------------------------------------------------------------------------------------------
// Jobs
// ---------------------------------------------------------------------------------------------

pub(super) fn job_row(
    work: &mut WriteContext<'_>,
    job: &str,
) -> Result<Option<JobRow>, StorageError> {
    let row = work.tables.jobs.open()?.get(job)?;
    row.map(|row| JobRow::decode(row.value())).transpose()
}

/// Writes a job.
pub(super) fn keep_row(
    work: &mut WriteContext<'_>,
    job: &str,
    row: &JobRow,
) -> Result<(), StorageError> {
    work.tables
        .jobs
        .open()?
        .insert(job, row.write().as_slice())?;
    Ok(())
}

fn enter(work: &mut WriteContext<'_>, entry: &Entry) -> Result<(), StorageError> {
    let job = entry.job.to_string();
    if job_row(work, &job)?.is_some() {
        return Ok(());
    }
    let row = JobRow {
        life: work.new_life(),
        app: entry.app.clone(),
        client_msg_no: entry.client_msg_no.clone(),
        target: entry.target.clone(),
        digest: entry.content_digest.clone(),
        total: entry.entries,
        entered: true,
        accepted_at_ms: entry.now_ms,
        listed_at_ms: entry.now_ms,
        priority: Some(entry.priority),
        not_before_ms: entry.not_before_ms,
        expires_at_ms: entry.expires_at_ms,
        tags: entry.tags.clone(),
        fetched: entry.fetched.clone(),
        ..JobRow::default()
    };
    listing::add(work, &job, &row)?;
    keep_row(work, &job, &row)
}

/// The row of a new job, which replaces an entered one.
fn begun(work: &mut WriteContext<'_>, entered: Option<&JobRow>, now_ms: u64) -> JobRow {
    JobRow {
        life: entered.map_or_else(|| work.new_life(), |entered| entered.life),
        accepted_at_ms: now_ms,
        listed_at_ms: entered.map_or(now_ms, |entered| entered.listed_at_ms),
        amended: entered
            .map(|entered| entered.amended.clone())
            .unwrap_or_default(),
        ..JobRow::default()
    }
}

fn accept(work: &mut WriteContext<'_>, submission: &Submission) -> Result<Accepted, StorageError> {
    let job = submission.job.to_string();
    let (entered, found) = match job_row(work, &job)? {
        Some(row) if row.entered => (Some(row), None),
        found => (None, found),
    };
    let first = found.is_none();
    let mut row = match found {
        Some(mut row) => {
            // A job that was rebuilt from slices has no digest; it takes the first one that
            // arrives.
            if row.digest.is_empty() {
                row.digest.clone_from(&submission.content_digest);
            } else if row.digest != submission.content_digest {
                return Ok(Accepted::Conflict {
                    job: submission.job,
                });
            }
            row.parts = row.parts.max(submission.parts);
            row
        }
        None => {
            let row = JobRow {
                app: submission.app.clone(),
                client_msg_no: submission.client_msg_no.clone(),
                target: submission.target.clone(),
                digest: submission.content_digest.clone(),
                buckets: submission.shape.buckets,
                parts: submission.parts,
                warnings: submission.warnings.clone(),
                template: submission.template,
                sender: submission.sender.clone(),
                window: submission.window.clone(),
                pace_until_ms: submission.pace_until_ms,
                category: submission.category.clone(),
                rate: submission.rate.clone(),
                priority: Some(submission.priority),
                not_before_ms: submission.not_before_ms,
                expires_at_ms: submission.expires_at_ms,
                tags: submission.tags.clone(),
                fallback: submission.fallback.clone(),
                ..begun(work, entered.as_ref(), submission.now_ms)
            };
            listing::add(work, &job, &row)?;
            row
        }
    };
    // The first submission that names a callback or a reply queue decides.
    let wanted = submission.callback_url.as_ref();
    row.callback_url = row.callback_url.or_else(|| wanted.cloned());
    let wanted = submission.reply_to.as_ref();
    row.reply_to = row.reply_to.or_else(|| wanted.cloned());
    // The first one that keeps ids decides.
    let wanted = submission.keeps_ids.as_ref();
    row.keeps_ids = row.keeps_ids.or_else(|| wanted.cloned());
    let (shape, template) = (shape(&row), row.template);
    let key = (row.life, submission.submission.as_str());
    let submissions = work.tables.submissions.open()?;
    let known = submissions.get(key)?.map(|row| row.value());
    let cut = format!("cut {}", submission.submission);
    let cut = (row.life, cut.as_str());
    if let Some((_, state @ (ACCEPTED | EXPANDED))) = known {
        let recorded = submissions.get(cut)?.map(|row| row.value().0);
        let slice_recipients = recorded.and_then(|it| u32::try_from(it).ok());
        if !row.rebuilt && std::mem::take(&mut row.lost) > 0 {
            // The job was ended because nothing was left to deliver. Now there is something again,
            // and recipients without an outcome are pending as before.
            row.completed_at_ms = None;
            row.reopened += 1;
            listing::reopen(work, &job, &row)?;
        }
        let progress = progress(&row)?;
        keep_row(work, &job, &row)?;
        let settled = progress.accounts.pending() == 0 && state == EXPANDED;
        return Ok(match settled {
            true => Accepted::Settled,
            false => Accepted::Again {
                shape,
                template,
                slice_recipients,
            },
        });
    }
    // Slices that arrived before their submission have already added their entries to the total.
    let seen = known.map_or(0, |(seen, _)| seen);
    let state = if submission.expanded {
        EXPANDED
    } else {
        ACCEPTED
    };
    submissions.insert(key, (submission.entries, state))?;
    row.expanded += u64::from(submission.expanded);
    submissions.insert(cut, (u64::from(submission.slice_recipients), CUT))?;
    let slice_recipients = Some(submission.slice_recipients);
    row.total += submission.entries.saturating_sub(seen);
    row.submissions += 1;
    let fetched = submission.fetched.as_ref();
    row.fetched = fetched.cloned().or(row.fetched);
    row.completed_at_ms = None;
    if !first {
        listing::reopen(work, &job, &row)?;
    }
    keep_row(work, &job, &row)?;
    Ok(match known {
        Some(_) => Accepted::Again {
            shape,
            template,
            slice_recipients,
        },
        None => Accepted::Expand {
            shape,
            first,
            template,
            slice_recipients,
        },
    })
}

fn mark_expanded(
    work: &mut WriteContext<'_>,
    job: &str,
    submission: &str,
) -> Result<JobProgress, StorageError> {
    let Some(mut row) = job_row(work, job)? else {
        // The job was forgotten in between; its slices will rebuild it.
        return Ok(JobProgress::default());
    };
    let key = (row.life, submission);
    let submissions = work.tables.submissions.open()?;
    let known = submissions.get(key)?.map(|row| row.value());
    if let Some((entries, ACCEPTED)) = known {
        submissions.insert(key, (entries, EXPANDED))?;
        row.expanded += 1;
        keep_row(work, job, &row)?;
    }
    progress(&row)
}

fn gather(
    work: &mut WriteContext<'_>,
    job: &str,
    part: &Together,
    give_up: bool,
) -> Result<Gathered, StorageError> {
    let known = job_row(work, job)?.filter(|row| !row.rebuilt && !row.entered);
    let Some(mut row) = known else {
        return Ok(Gathered::Complete);
    };
    let list = format!("list 0 {}", part.list);
    let key = (row.life, list.as_str());
    let submissions = work.tables.submissions.open()?;
    let (mut there, state) = submissions
        .get(key)?
        .map_or((0, GATHERING), |row| row.value());
    if state == GIVEN_UP {
        return Ok(Gathered::GivenUp);
    }
    let name = format!("list {} {}", part.number, part.list);
    let noted = submissions
        .insert((row.life, name.as_str()), (1, GATHERING))?
        .is_some();
    if !noted {
        there += 1;
        submissions.insert(key, (there, GATHERING))?;
    }
    if there >= u64::from(part.of) {
        return Ok(Gathered::Complete);
    }
    if !give_up {
        return Ok(Gathered::Waiting);
    }
    submissions.insert(key, (there, GIVEN_UP))?;
    row.parts = u32::try_from(row.submissions).unwrap_or(u32::MAX);
    keep_row(work, job, &row)?;
    Ok(Gathered::GivenUp)
}

fn shape(row: &JobRow) -> Shape {
    Shape {
        buckets: row.buckets,
    }
}

pub(super) fn accounts(row: &JobRow) -> Result<Accounts, StorageError> {
    Ok(Accounts {
        total: row.total,
        sent: row.sent,
        duplicate: u64::try_from(row.duplicate).map_err(StorageError::broken)?,
        failed: row.failed,
        uncertain: row.uncertain + row.lost,
        expired: row.expired,
        cancelled: row.cancelled,
        capped: row.capped,
    })
}

pub(super) fn progress(row: &JobRow) -> Result<JobProgress, StorageError> {
    let accounts = accounts(row)?;
    // How many parts a rebuilt job had is not known: those that were seen count.
    let needed = match row.rebuilt {
        true => row.submissions,
        false => row.submissions.max(row.parts.into()),
    };
    let settled = (needed > 0 || accounts.total > 0) && accounts.pending() == 0;
    Ok(JobProgress {
        accounts,
        finished: settled && row.expanded >= needed,
        completed: row.completed_at_ms.is_some(),
    })
}

pub(super) fn record(job: JobId, row: JobRow) -> Result<JobRecord, StorageError> {
    let accounts = accounts(&row)?;
    Ok(JobRecord {
        job,
        state: match row.completed_at_ms {
            Some(_) => JobState::Completed,
            None if row.entered => JobState::Accepted,
            None => JobState::Running,
        },
        accounts,
        pending: accounts.pending(),
        accepted_at_ms: row.accepted_at_ms,
        progress_at_ms: row.progress_at_ms,
        completed_at_ms: row.completed_at_ms,
        rebuilt: row.rebuilt,
        went_back_at_ms: None,
        lost: row.lost,
        reopened: row.reopened,
        waited_at_ms: row.waited_at_ms,
        // An entered job is one submission.
        submissions: if row.entered { 1 } else { row.submissions },
        uncut: match row.entered {
            true => 0,
            false => row.submissions.saturating_sub(row.expanded),
        },
        shape: shape(&row),
        sender: row.sender,
        window: row.window,
        pace_until_ms: match row.amended.pace_until_ms {
            Some(at) => Some(at).filter(|at| *at > 0),
            None => row.pace_until_ms,
        },
        category: row.category,
        rate: row.rate,
        priority: row.amended.priority.or(row.priority),
        not_before_ms: row.amended.not_before_ms.or(row.not_before_ms),
        expires_at_ms: match row.amended.expires_at_ms {
            Some(at) => Some(at).filter(|at| *at > 0),
            None => row.expires_at_ms,
        },
        tags: row.tags,
        fetched: row.fetched,
        callback_url: row.callback_url,
        reply_to: row.reply_to,
        fallback: row.fallback,
        sent_by_fallback: row.sent_by_fallback,
        keep_ids: row.keeps_ids.is_some() || row.has_ids,
        keeps_ids: row.keeps_ids,
        pace: row.pace,
        app: row.app,
        client_msg_no: row.client_msg_no,
        target: row.target,
        content_digest: Some(row.digest).filter(|it| !it.is_empty()),
        warnings: row.warnings,
        template: row.template,
    })
}

impl EmbeddedStore {
    /// The records of the jobs at these places, as far as there are any.
    pub(super) async fn records_at(
        &self,
        places: Vec<JobPlace>,
    ) -> Result<Vec<Option<JobRecord>>, StorageError> {
        let read = self.0.0.read(move |transaction| {
            let jobs = transaction.open_table(JOBS)?;
            let found = |place: JobPlace| {
                let row = jobs.get(place.job.to_string().as_str())?;
                let row = row.map(|row| JobRow::decode(row.value())).transpose()?;
                row.map(|row| record(place.job, row)).transpose()
            };
            places.into_iter().map(found).collect()
        });
        read.await
    }
}

fn look(
    work: &mut WriteContext<'_>,
    job: &str,
    asked: &[u64],
) -> Result<Vec<ClaimState>, StorageError> {
    let Some(row) = job_row(work, job)? else {
        return Ok(vec![ClaimState::Granted; asked.len()]);
    };
    let (life, shape) = (row.life, shape(&row));
    let buckets = work.tables.buckets.open()?;
    let mut states = Vec::with_capacity(asked.len());
    for fingerprint in asked {
        let stored = buckets.get((life, shape.bucket(Fingerprint(*fingerprint))))?;
        let code = match &stored {
            Some(stored) => Bucket::decode(stored.value())?.get(*fingerprint),
            None => None,
        };
        states.push(match code {
            Some(code) => ClaimState::Settled(outcome(code)?),
            None => work.claims.state(None, life, *fingerprint, work.now),
        });
    }
    Ok(states)
}

fn audit(transaction: &ReadTransaction, job: JobId) -> Result<Audit, StorageError> {
    let mut audit = Audit::default();
    let jobs = transaction.open_table(JOBS)?;
    let Some(row) = jobs.get(job.to_string().as_str())? else {
        return Ok(audit);
    };
    let life = JobRow::decode(row.value())?.life;
    let buckets = transaction.open_table(BUCKETS)?;
    for entry in buckets.range((life, 0)..=(life, u32::MAX))? {
        let (_, bucket) = entry?;
        for code in Bucket::decode(bucket.value())?.codes() {
            audit.count(outcome(code)?);
        }
    }
    audit.claimed = claims::count(transaction, life)?;
    Ok(audit)
}
