//! The port to the limits that all workers share, and to parked targets.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use strum::{IntoStaticStr, VariantArray};

use super::LedgerError;
use crate::domain::limits::{Cost, Grant, LimitScope, Rate, Weight};

/// Token buckets and parked targets, shared by all workers.
pub trait Limiter: Clone + Send + Sync + 'static {
    /// Books up to `units` of a limit, if the first of them may start within `wait_max`. They start
    /// after the wait that the grant names.
    fn lease(
        &self,
        limit: &Limit<'_>,
        units: u32,
        wait_max: Duration,
    ) -> impl Future<Output = Result<Grant, LedgerError>> + Send;

    /// Returns units that were booked and not used.
    fn refund(
        &self,
        limit: &Limit<'_>,
        units: u32,
    ) -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// Parks a target for all workers. If it is parked already, the later end wins.
    fn park(
        &self,
        target: &str,
        park: &Park,
    ) -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// Ends the parking of a target.
    fn unpark(&self, target: &str) -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// The share of its burst that each limit has booked now: 0 when it is idle, 1 and more when
    /// the next unit has to wait. Books nothing.
    fn booked(
        &self,
        limits: &[Limit<'_>],
    ) -> impl Future<Output = Result<Vec<f64>, LedgerError>> + Send;

    /// The targets that are parked now.
    fn parked(
        &self,
        targets: &[String],
    ) -> impl Future<Output = Result<Vec<(String, Park)>, LedgerError>> + Send;
}

/// One limit that calls must respect. Its units are calls or recipients, as its cost says.
#[derive(Clone, Copy, Debug)]
pub struct Limit<'a> {
    pub scope: LimitScope,
    /// Name of the target, app, job or shared limit, or target and sender.
    pub name: &'a str,
    pub rate: Rate,
    pub cost: Cost,
    /// The units of the rate that one unit takes here. All weights of a limit share its limiter.
    pub weight: Weight,
}

impl Limit<'_> {
    /// The rate of units that weigh so much.
    pub fn weighed(&self) -> Rate {
        self.rate.weighed(self.weight)
    }
}

/// A parked target, and why it is parked.
#[derive(
    Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
pub struct Park {
    pub since_ms: u64,
    pub until_ms: u64,
    pub reason: ParkReason,
    /// The code of the answer that caused it; empty if an operator parked it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub code: String,
    /// The backend's text, or the operator's name and reason.
    pub text: String,
}

/// Why a target is parked. The set is closed, so it can be the label of a metric.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
    IntoStaticStr,
    VariantArray,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum ParkReason {
    /// The target throttled us: we were too fast, or it asked us to wait.
    Throttled,
    /// No request reached the target.
    Unreachable,
    /// Signature, token, certificate or permission is wrong (promise 10).
    Config,
    /// Many calls in a row failed.
    Breaker,
    /// An operator parked it.
    Operator,
}

impl ParkReason {
    pub const ALL: &'static [Self] = Self::VARIANTS;

    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// `config 401: token is wrong`
impl fmt::Display for Park {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason.as_str())?;
        if !self.code.is_empty() {
            write!(f, " {}", self.code)?;
        }
        if !self.text.is_empty() {
            write!(f, ": {}", self.text)?;
        }
        Ok(())
    }
}
