//! The port through which processes tell each other that they are alive.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use super::LedgerError;
use crate::domain::ids::JobId;

/// Heartbeats: they show whether the store takes writes now, whether it lost earlier writes, and
/// which processes are alive.
pub trait Pulse: Clone + Send + Sync + 'static {
    /// Writes a heartbeat, as a claim would write: an error means that no claim can succeed now.
    fn beat(&self, beat: &Beat) -> impl Future<Output = Result<Beaten, LedgerError>> + Send;

    /// Raises the sequence of the ledger above its last number and above `seen`, the highest number
    /// that was found outside of the ledger.
    fn raise(&self, seen: u64) -> impl Future<Output = Result<Raised, LedgerError>> + Send;

    /// The last heartbeats of the processes that are alive.
    fn beats(&self) -> impl Future<Output = Result<Vec<Beat>, LedgerError>> + Send;
}

/// A process without a heartbeat for this long is not alive.
pub const ALIVE: Duration = Duration::from_secs(5);

/// The state that a process reports with its heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Beat {
    #[serde(skip)]
    pub process: u64,
    /// The number of its last heartbeat that was answered; 0 before the first one. A store whose
    /// number is lower has returned to older data.
    #[serde(skip)]
    pub number: u64,
    /// The process delivers slices.
    pub works: bool,
    /// Its calls under way, by target.
    #[serde(default)]
    pub calls: BTreeMap<String, UnderWay>,
    /// Whether a process that works has a session with the broker; an earlier version does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_broker: Option<bool>,
    /// Some of the jobs that it works on, by target: those with the most places first.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub jobs: BTreeMap<String, Vec<JobAtWork>>,
    /// Recipients that wait in the whole cluster, by target, if the process counts them for all.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pending: BTreeMap<String, u64>,
}

/// The slices of one job at one worker and target.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct JobAtWork {
    pub job: JobId,
    pub app: String,
    /// Slices that have a place.
    pub places: u64,
    /// Slices that wait for one.
    pub waiting: u64,
}

/// Calls that have no answer yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct UnderWay {
    pub calls: u64,
    /// When the oldest one began.
    pub oldest_ms: u64,
}

/// The answer to a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beaten {
    /// The number of this heartbeat.
    pub number: u64,
    /// The store no longer has the previous heartbeat: it returned to older data, or lost its data.
    /// It has recorded when.
    pub went_back: bool,
}

/// The answer to a raise of the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raised {
    /// The new number; 0 where the ledger and the messages are in one store and therefore always
    /// have the same age.
    pub number: u64,
    /// The ledger's number was lower than `seen`: the store returned to older data, or lost its
    /// data. It has recorded when.
    pub went_back: bool,
}
