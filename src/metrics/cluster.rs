//! The figures of the whole cluster, which one of its processes reports.

use std::collections::BTreeMap;

use strum::{IntoStaticStr, VariantArray};

use super::Metrics;
use crate::domain::lane::Priority;

/// The state of a job that is not completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum OpenState {
    /// Durable with the broker; no worker has registered it yet.
    Accepted,
    Running,
    /// The job, its app or its target is paused.
    Paused,
    /// Its start time has not come.
    Scheduled,
}

impl OpenState {
    pub(super) const ALL: &'static [Self] = Self::VARIANTS;

    fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Recipients without an outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    pub recipients: u64,
    /// How long the oldest of their jobs is due and not paused.
    pub oldest_ms: u64,
}

/// Messages that wait with the broker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    pub jobs: u64,
    /// By target.
    pub slices: BTreeMap<String, u64>,
    pub dead: u64,
    pub rejected: u64,
}

/// What is open in the whole cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterFigures {
    /// In the order of [`OpenState`].
    pub jobs: [u64; OpenState::ALL.len()],
    pub pending: BTreeMap<(String, Priority), Pending>,
    /// By target: the longest time without an outcome of a job that nothing holds back.
    pub standstill_ms: BTreeMap<String, u64>,
    pub workers: u64,
    pub gateways: u64,
    /// None if the broker could not be asked.
    pub waiting: Option<Waiting>,
}

impl Metrics {
    /// Replaces the figures of the cluster. None: another process reports them, or they are not
    /// known; then this process shows none, so that no old figure stays.
    pub fn cluster(&self, figures: Option<&ClusterFigures>) {
        let _turn = self.turn.lock();
        self.forget_cluster();
        let Some(figures) = figures else { return };
        for (state, count) in OpenState::ALL.iter().zip(figures.jobs) {
            let jobs = self.open_jobs.with_label_values(&[state.as_str()]);
            jobs.set(count as i64);
        }
        for ((target, priority), pending) in &figures.pending {
            let labels = [target.as_str(), priority.as_str()];
            let recipients = self.pending.with_label_values(&labels);
            recipients.set(pending.recipients as i64);
            let oldest = self.oldest_pending.with_label_values(&labels);
            oldest.set(seconds(pending.oldest_ms));
        }
        for (target, ms) in &figures.standstill_ms {
            self.standstill
                .with_label_values(&[target])
                .set(seconds(*ms));
        }
        for (role, count) in [("worker", figures.workers), ("gateway", figures.gateways)] {
            self.processes.with_label_values(&[role]).set(count as i64);
        }
        let Some(waiting) = &figures.waiting else {
            return;
        };
        for (target, count) in &waiting.slices {
            let slices = self.slices_waiting.with_label_values(&[target]);
            slices.set(*count as i64);
        }
        for (gauge, count) in [
            (&self.jobs_waiting, waiting.jobs),
            (&self.letters_waiting, waiting.dead),
            (&self.rejected_waiting, waiting.rejected),
        ] {
            gauge.with_label_values::<&str>(&[]).set(count as i64);
        }
    }

    fn forget_cluster(&self) {
        for gauge in [
            &self.open_jobs,
            &self.pending,
            &self.processes,
            &self.jobs_waiting,
            &self.slices_waiting,
            &self.letters_waiting,
            &self.rejected_waiting,
        ] {
            gauge.reset();
        }
        self.oldest_pending.reset();
        self.standstill.reset();
    }
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}
