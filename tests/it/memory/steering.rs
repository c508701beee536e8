//! Implements the steering port in memory.

use fanwise::domain::accounts::ByOutcome as _;
use fanwise::domain::directive::Action;
use fanwise::domain::ids::{Fingerprint, JobId};
use fanwise::domain::outcome::Outcome;
use fanwise::domain::trail::{TRAIL_MAX, TrailEntry};
use fanwise::ports::{JobRecord, LedgerError, Resolution, Steering};

use super::MemoryStore;
use super::ledger::Held;
use super::store::State;

impl Steering for MemoryStore {
    async fn amend(&self, job: JobId, change: &Action) -> Result<(), LedgerError> {
        let amend = |state: &mut State| {
            if let Some(job) = state.jobs.get_mut(&job) {
                job.amended.push(change.clone());
            }
        };
        self.step("amend", amend).await
    }

    async fn note(&self, jobs: &[JobId], entry: &TrailEntry) -> Result<(), LedgerError> {
        let note = |state: &mut State| {
            for job in jobs {
                if let Some(job) = state.jobs.get_mut(job) {
                    job.trail.push(entry.clone());
                    let over = job.trail.len().saturating_sub(TRAIL_MAX);
                    job.trail.drain(..over);
                }
            }
        };
        self.step("note", note).await
    }

    async fn trail(&self, job: JobId) -> Result<Vec<TrailEntry>, LedgerError> {
        let trail = |state: &mut State| {
            let job = state.jobs.get(&job);
            job.map(|job| job.trail.clone()).unwrap_or_default()
        };
        self.step("trail", trail).await
    }

    async fn resolve(
        &self,
        job: &JobRecord,
        recipients: &[Fingerprint],
        to: Resolution,
    ) -> Result<Vec<bool>, LedgerError> {
        let resolve = |state: &mut State| {
            let Some(job) = state.jobs.get_mut(&job.job) else {
                return vec![false; recipients.len()];
            };
            let mut changed = Vec::new();
            for recipient in recipients {
                let held = job.recipients.get_mut(recipient);
                let is = matches!(held, Some(Held::Settled(Outcome::Uncertain)));
                if is {
                    let to = match to {
                        Resolution::Sent => Outcome::Sent,
                        Resolution::Failed => Outcome::Failed,
                    };
                    job.recipients.insert(*recipient, Held::Settled(to));
                    let accounts = &mut job.record_mut().accounts;
                    accounts.uncertain -= 1;
                    *accounts.of_mut(to) += 1;
                }
                changed.push(is);
            }
            changed
        };
        self.step("resolve", resolve).await
    }
}
