//! What the HTTP interface answers, for its server and for our own client of it.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::domain::accounts::Audit;
use crate::domain::ids::JobId;
use crate::ports::{JobRecord, KeptMessage, StoredTemplate};

/// Answer to a job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Submitted {
    pub job: JobId,
    /// List entries of this submission.
    pub recipients: u64,
}

/// A job compared with its ledger.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Verification {
    pub record: JobRecord,
    pub ledger: Audit,
    pub differences: Vec<String>,
}

/// A stored message.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TemplateView {
    pub app: String,
    pub name: String,
    pub version: u32,
    pub put_at_ms: u64,
    pub message: Box<RawValue>,
}

impl TemplateView {
    pub fn of(app: &str, name: &str, stored: StoredTemplate) -> Self {
        Self {
            app: app.to_owned(),
            name: name.to_owned(),
            version: stored.version,
            put_at_ms: stored.put_at_ms,
            // It was read as JSON when it was put.
            message: RawValue::from_string(stored.message).unwrap_or_default(),
        }
    }
}

/// A stored message in a list.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TemplateRow {
    pub app: String,
    pub name: String,
    /// The newest one.
    pub version: u32,
}

impl TemplateRow {
    pub fn all(app: &str, stored: Vec<(String, u32)>) -> Vec<Self> {
        let row = |(name, version)| Self {
            app: app.to_owned(),
            name,
            version,
        };
        stored.into_iter().map(row).collect()
    }
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
