//! What the HTTP interface answers, for its server and for our own client of it.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::domain::accounts::{Accounts, Audit};
use crate::domain::ids::JobId;
use crate::ports::{JobRecord, JobState, KeptMessage};

/// Answer to a job.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Submitted {
    #[schemars(with = "String")]
    pub job: JobId,
    pub target: String,
    /// List entries of this submission, repeats included.
    pub recipients: u64,
    /// Messages that carry it.
    pub messages: u32,
    /// Nothing was accepted: the caller only asked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// What the job goes on without, since its target cannot honour it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Where the job stands, if it was known before or was waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standing: Option<JobStanding>,
}

/// Where a job stands.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct JobStanding {
    pub state: JobState,
    pub accounts: Accounts,
    pub pending: u64,
}

impl JobStanding {
    pub(super) fn of(record: &JobRecord) -> Self {
        Self {
            state: record.state,
            accounts: record.accounts,
            pending: record.pending,
        }
    }
}

/// A job compared with its ledger.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Verification {
    pub record: JobRecord,
    pub ledger: Audit,
    pub differences: Vec<String>,
}

/// A message on a shelf, as one line of NDJSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeptLine {
    /// Base64: a rejected message need not be text.
    pub body: String,
    pub routing_key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published_at: Option<u64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}

impl From<KeptMessage> for KeptLine {
    fn from(message: KeptMessage) -> Self {
        Self {
            body: STANDARD.encode(&message.body),
            routing_key: message.routing_key,
            message_id: message.message_id,
            published_at: message.published_at,
            headers: message.headers,
        }
    }
}

impl TryFrom<KeptLine> for KeptMessage {
    type Error = base64::DecodeError;

    fn try_from(line: KeptLine) -> Result<Self, base64::DecodeError> {
        Ok(Self {
            body: Bytes::from(STANDARD.decode(line.body)?),
            routing_key: line.routing_key,
            message_id: line.message_id,
            published_at: line.published_at,
            headers: line.headers,
        })
    }
}
