//! Reads the record of a job from its header, or only the work that it has left.

use std::collections::HashMap;

use redis::Value;

use crate::domain::accounts::{Accounts, ByOutcome as _};
use crate::domain::ids::JobId;
use crate::domain::outcome::Outcome;
use crate::domain::pace::{Mark, Pace};
use crate::domain::slice::Shape;
use crate::ports::{JobRecord, JobState, LedgerError};
use crate::store::Store;
use crate::store::connection::broken;
use crate::store::steering::{EXPIRES_AT_NOW, NOT_BEFORE_NOW, PACE_UNTIL_NOW, PRIORITY_NOW};

pub(super) fn record(job: JobId, row: Value) -> Result<Option<JobRecord>, LedgerError> {
    let row: HashMap<String, String> = redis::from_redis_value(row).map_err(broken)?;
    if row.is_empty() {
        return Ok(None);
    }
    let text = |field: &str| row.get(field).cloned().unwrap_or_default();
    let time = |field: &str| row.get(field).and_then(|value| value.parse::<u64>().ok());
    let number = |field: &str| time(field).unwrap_or(0);
    // A registered job has a shape; before that it has only its entry.
    let registered = row.contains_key("buckets");
    let lost = number("lost");
    let accounts = accounts(number, registered);
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
        uncut: number("submissions").saturating_sub(number("expanded")),
        shape: Shape {
            buckets: number("buckets") as u32,
        },
        warnings: match row.get("warnings").map_or("", String::as_str) {
            "" => Vec::new(),
            json => serde_json::from_str(json).map_err(broken)?,
        },
        sender: row.get("sender").cloned(),
        window: row.get("window").cloned(),
        pace_until_ms: match time(PACE_UNTIL_NOW) {
            Some(at) => Some(at).filter(|at| *at > 0),
            None => time("pace_until_ms"),
        },
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

fn accounts(number: impl Fn(&str) -> u64, registered: bool) -> Accounts {
    let mut accounts = Accounts {
        total: number(if registered { "total" } else { "awaited" }),
        ..Accounts::default()
    };
    for &outcome in Outcome::ALL {
        *accounts.of_mut(outcome) = number(outcome.as_str());
    }
    accounts.uncertain += number("lost");
    accounts
}

/// The work that an open job has left.
#[derive(Clone)]
pub(in crate::store) struct Load {
    pub(in crate::store) app: String,
    pub(in crate::store) pending: u64,
}

/// The fields of a header that [`Load`] is read from, before those of the outcomes.
const LOAD_FIELDS: [&str; 6] = [
    "app",
    "completed_at_ms",
    "buckets",
    "total",
    "awaited",
    "lost",
];

impl Store {
    /// The loads of these jobs; none for a job that is completed or unknown.
    pub(in crate::store) async fn loads(
        &self,
        jobs: &[JobId],
    ) -> Result<Vec<Option<Load>>, LedgerError> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let outcomes = Outcome::ALL.iter().map(|outcome| outcome.as_str());
        let fields: Vec<_> = LOAD_FIELDS.into_iter().chain(outcomes).collect();
        let mut pipeline = redis::pipe();
        for job in jobs {
            let header = self.0.keys.job(*job).header;
            pipeline.cmd("HMGET").arg(header).arg(&fields);
        }
        let rows = self.0.connection.pipeline(&pipeline).await?;
        rows.into_iter().map(|row| load(&fields, row)).collect()
    }
}

fn load(fields: &[&str], row: Value) -> Result<Option<Load>, LedgerError> {
    let row: Vec<Option<String>> = redis::from_redis_value(row).map_err(broken)?;
    let field = |name: &str| {
        let at = fields.iter().position(|field| *field == name)?;
        row.get(at)?.as_deref()
    };
    let Some(app) = field("app").filter(|_| field("completed_at_ms").is_none()) else {
        return Ok(None);
    };
    let number = |name: &str| field(name).and_then(|it| it.parse().ok()).unwrap_or(0);
    Ok(Some(Load {
        app: app.to_owned(),
        pending: accounts(number, field("buckets").is_some()).pending(),
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
