//! Implements the steering port: changed values and the audit trail of a job, and outcomes that an
//! operator found out.

use std::sync::LazyLock;

use redis::Value;

use super::Store;
use super::connection::{Call, Script, broken};
use super::ledger::{Groups, SHAPES, ScriptReply, concluding, distinct, sorted};
use crate::domain::directive::Action;
use crate::domain::ids::{Fingerprint, JobId};
use crate::domain::outcome::Outcome;
use crate::domain::trail::{TRAIL_MAX, TrailEntry};
use crate::json;
use crate::ports::{JobRecord, LedgerError, Resolution, Steering};

static AMEND: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/amend.lua")));
static NOTE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/note.lua")));
static RESOLVE: LazyLock<Script> = concluding!("scripts/resolve.lua");

/// The fields of a header that replace those with which the job was accepted.
pub(super) const PRIORITY_NOW: &str = "priority_now";
pub(super) const NOT_BEFORE_NOW: &str = "not_before_now_ms";
/// 0 for never.
pub(super) const EXPIRES_AT_NOW: &str = "expires_at_now_ms";
/// 0 for none.
pub(super) const PACE_UNTIL_NOW: &str = "pace_until_now_ms";

impl Steering for Store {
    async fn amend(&self, job: JobId, change: &Action) -> Result<(), LedgerError> {
        let (field, value) = match change {
            Action::Priority { priority } => (PRIORITY_NOW, priority.as_str().to_owned()),
            Action::Schedule { not_before_ms } => (NOT_BEFORE_NOW, not_before_ms.to_string()),
            Action::Deadline { expires_at_ms } => {
                (EXPIRES_AT_NOW, expires_at_ms.unwrap_or(0).to_string())
            }
            Action::Pace { pace_until_ms } => {
                (PACE_UNTIL_NOW, pace_until_ms.unwrap_or(0).to_string())
            }
            _ => {
                return Ok(());
            }
        };
        let mut call = Call::new(&AMEND, 1, 2, 128);
        call.push(&self.0.keys.job(job).header)
            .push(field)
            .push(value);
        self.0.connection.call(&call).await.map(drop)
    }

    async fn note(&self, jobs: &[JobId], entry: &TrailEntry) -> Result<(), LedgerError> {
        let json = json::bytes(entry);
        let notes = jobs.iter().map(async |job| {
            let keys = self.0.keys.job(*job);
            let mut call = Call::new(&NOTE, 2, 2, 256 + json.len());
            call.push(keys.trail())
                .push(&keys.header)
                .push(TRAIL_MAX)
                .push(&json);
            self.0.connection.call(&call).await.map(drop)
        });
        futures_util::future::try_join_all(notes).await.map(drop)
    }

    async fn trail(&self, job: JobId) -> Result<Vec<TrailEntry>, LedgerError> {
        let mut cmd = redis::cmd("LRANGE");
        cmd.arg(self.0.keys.job(job).trail()).arg(0).arg(-1);
        let rows: Value = self.0.connection.command(&cmd).await?;
        let rows: Vec<String> = redis::from_redis_value(rows).map_err(broken)?;
        // An entry that a newer version wrote must not hide the others.
        let read = |row: String| {
            serde_json::from_str(&row)
                .inspect_err(|error| tracing::error!(%error, "an entry of a trail cannot be read"))
                .ok()
        };
        Ok(rows.into_iter().filter_map(read).collect())
    }

    async fn resolve(
        &self,
        job: &JobRecord,
        recipients: &[Fingerprint],
        to: Resolution,
    ) -> Result<Vec<bool>, LedgerError> {
        let outcome = match to {
            Resolution::Sent => Outcome::Sent,
            Resolution::Failed => Outcome::Failed,
        };
        let code = outcome.ledger_code().ok_or_else(|| broken("no code"))?;
        let order = sorted(recipients);
        let asked = distinct(&order, recipients);
        let mut shape = job.shape;
        for _ in 0..SHAPES {
            let groups = Groups::of(shape, &asked);
            let mut call = groups.call(&RESOLVE, &self.0.keys.job(job.job), 3);
            call.push(shape.buckets)
                .push(&[code][..])
                .push(outcome.as_str());
            for packed in groups.each() {
                call.push(packed);
            }
            let reply = ScriptReply::new(self.0.connection.call(&call).await?)?;
            if reply.number(0)? == 0 {
                shape = reply.shape()?;
                continue;
            }
            let flags = reply.bytes(1)?;
            let changed = |it: &Fingerprint| {
                let at = asked.binary_search(it).ok();
                at.and_then(|at| flags.get(at)) == Some(&b'1')
            };
            return Ok(recipients.iter().map(changed).collect());
        }
        Err(broken("the shape of a job changed between two calls"))
    }
}
