//! Implements the port to the ids of messages: a string of records beside each bucket of a job.
//!
//! A record is the fingerprint of its recipient, as in the bucket, the length of the rest in two
//! bytes, and the rest as [`KeptId::encode`] writes it.

use std::sync::LazyLock;

use redis::Value;

use super::Store;
use super::connection::{Script, broken};
use super::ledger::{Groups, SHAPES, ScriptReply, concluding, distinct, sorted};
use crate::domain::ids::{Fingerprint, JobId};
use crate::domain::message_id::{KeptId, RecallState};
use crate::ports::{JobRecord, KeptPage, LedgerError, MessageIds};

static NOTE_RECALLS: LazyLock<Script> = concluding!("scripts/note_recalls.lua");

/// The ids of this many buckets are read at a time.
const BUCKETS_AT_ONCE: u32 = 8;

/// The records of ids, sorted.
pub(super) fn records(ids: &[(Fingerprint, KeptId)]) -> Vec<(Fingerprint, Vec<u8>)> {
    let record = |(fingerprint, id): &(Fingerprint, KeptId)| {
        let rest = id.encode();
        let length = (rest.len() as u16).to_be_bytes();
        let record = [&fingerprint.0.to_le_bytes()[..], &length, &rest].concat();
        (*fingerprint, record)
    };
    let mut records: Vec<_> = ids.iter().map(record).collect();
    records.sort_by_key(|(fingerprint, _)| *fingerprint);
    records
}

/// Reads the records beside one bucket.
fn read(bytes: &[u8]) -> Result<Vec<(Fingerprint, KeptId)>, LedgerError> {
    let cut = || broken("the ids of a job end in the middle of a record");
    let (mut rest, mut ids) = (bytes, Vec::new());
    while !rest.is_empty() {
        let (fingerprint, after) = rest.split_first_chunk().ok_or_else(cut)?;
        let (length, after) = after.split_first_chunk().ok_or_else(cut)?;
        let length = usize::from(u16::from_be_bytes(*length));
        let (id, after) = after.split_at_checked(length).ok_or_else(cut)?;
        let id = KeptId::decode(id).ok_or_else(|| broken("an id cannot be read"))?;
        ids.push((Fingerprint(u64::from_le_bytes(*fingerprint)), id));
        rest = after;
    }
    Ok(ids)
}

impl MessageIds for Store {
    async fn kept_ids(
        &self,
        job: &JobRecord,
        recipients: &[Fingerprint],
    ) -> Result<Vec<Option<KeptId>>, LedgerError> {
        let order = sorted(recipients);
        let asked = distinct(&order, recipients);
        let groups = Groups::of(job.shape, &asked);
        let mut found = std::collections::HashMap::new();
        let buckets: Vec<u32> = groups.groups.iter().map(|it| it.bucket()).collect();
        for some in buckets.chunks(BUCKETS_AT_ONCE as usize) {
            for (fingerprint, id) in self.ids_beside(job.job, some.iter().copied()).await? {
                if asked.binary_search(&fingerprint).is_ok() {
                    found.insert(fingerprint, id);
                }
            }
        }
        Ok(recipients.iter().map(|it| found.get(it).cloned()).collect())
    }

    async fn kept_page(&self, job: &JobRecord, from: u64) -> Result<KeptPage, LedgerError> {
        let first = u32::try_from(from)
            .unwrap_or(u32::MAX)
            .min(job.shape.buckets);
        let end = first.saturating_add(BUCKETS_AT_ONCE).min(job.shape.buckets);
        if first == end {
            return Ok(KeptPage::default());
        }
        Ok(KeptPage {
            ids: self.ids_beside(job.job, first..end).await?,
            next: (end < job.shape.buckets).then_some(u64::from(end)),
        })
    }

    async fn note_recalls(
        &self,
        job: JobId,
        recalls: &[(Fingerprint, RecallState)],
    ) -> Result<(), LedgerError> {
        let mut recalls = recalls.to_vec();
        recalls.sort_by_key(|(fingerprint, _)| *fingerprint);
        let asked: Vec<_> = recalls
            .iter()
            .map(|(fingerprint, _)| *fingerprint)
            .collect();
        let states: Vec<_> = recalls.iter().map(|(_, state)| state.code()).collect();
        let Some(record) = crate::ports::Ledger::job(self, job).await? else {
            return Ok(());
        };
        let mut shape = record.shape;
        for _ in 0..SHAPES {
            let groups = Groups::of(shape, &asked);
            let mut call = groups.call(&NOTE_RECALLS, &self.0.keys.job(job), 1);
            call.push(shape.buckets);
            for group in &groups.groups {
                call.push(groups.packed(group))
                    .push(&states[group.start..group.end]);
            }
            let reply = ScriptReply::new(self.0.connection.call(&call).await?)?;
            if reply.number(0)? == 1 {
                return Ok(());
            }
            shape = reply.shape()?;
        }
        Err(broken("the shape of a job changed between two calls"))
    }
}

impl Store {
    /// The ids beside these buckets.
    async fn ids_beside(
        &self,
        job: JobId,
        buckets: impl Iterator<Item = u32>,
    ) -> Result<Vec<(Fingerprint, KeptId)>, LedgerError> {
        let keys = self.0.keys.job(job);
        let mut cmd = redis::cmd("MGET");
        for bucket in buckets {
            cmd.arg(keys.ids(bucket));
        }
        let reply: Value = self.0.connection.command(&cmd).await?;
        let strings: Vec<Option<Vec<u8>>> = redis::from_redis_value(reply).map_err(broken)?;
        let mut ids = Vec::new();
        for string in strings.into_iter().flatten() {
            ids.extend(read(&string)?);
        }
        Ok(ids)
    }
}
