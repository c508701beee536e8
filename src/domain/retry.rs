//! How often and when recipients are retried. `[retry]` says it for everything, a target or an app
//! changes single keys: the app's keys come first, then the target's, then `[retry]`.

use std::time::Duration;

use super::lane::Lane;
use super::schedule::Schedule;

/// The retries that a small job may make, whatever the budget: its share would be less than one.
pub const RETRIES_MIN: u32 = 10;

/// How the recipients of a job are retried at a target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Attempts per recipient, the first included.
    pub attempts_max: u32,
    pub schedule: Schedule,
    /// Most retries of a job at its target, as a share of its recipients. `None`: no such limit.
    pub budget: Option<f64>,
}

/// The keys of a policy that a target or an app sets.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RetryChanges {
    pub attempts_max: Option<u32>,
    pub delay_min: Option<Duration>,
    pub delay_max: Option<Duration>,
    pub jitter: Option<f64>,
    pub budget: Option<f64>,
}

impl RetryPolicy {
    /// This policy with the keys that are set.
    pub fn with(self, changes: &RetryChanges) -> Self {
        let Schedule { min, max, jitter } = self.schedule;
        Self {
            attempts_max: changes.attempts_max.unwrap_or(self.attempts_max),
            schedule: Schedule {
                min: changes.delay_min.unwrap_or(min),
                max: changes.delay_max.unwrap_or(max),
                jitter: changes.jitter.unwrap_or(jitter),
            },
            budget: changes.budget.or(self.budget),
        }
    }

    /// The retries that a slice of so many list entries may make. The slices of a job are counted
    /// apart, and each carries its own count. So all workers together keep the share of the job,
    /// apart from one rounding for each slice, without a question to the ledger.
    pub fn retries_max(&self, entries: u32, lane: &Lane) -> u32 {
        let Some(share) = self.budget else {
            return u32::MAX;
        };
        let retries = (share * f64::from(entries)).ceil() as u32;
        match lane.is_of_small_jobs() {
            true => retries.max(RETRIES_MIN),
            false => retries,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(budget: Option<f64>) -> RetryPolicy {
        let seconds = Duration::from_secs;
        RetryPolicy {
            attempts_max: 8,
            schedule: Schedule {
                min: seconds(1),
                max: seconds(300),
                jitter: 0.2,
            },
            budget,
        }
    }

    #[test]
    fn the_app_comes_before_the_target_and_the_target_before_all() {
        let target = RetryChanges {
            attempts_max: Some(3),
            delay_min: Some(Duration::from_secs(5)),
            budget: Some(0.5),
            ..RetryChanges::default()
        };
        let app = RetryChanges {
            attempts_max: Some(2),
            jitter: Some(0.0),
            ..RetryChanges::default()
        };
        let merged = policy(None).with(&target).with(&app);
        assert_eq!(
            merged,
            RetryPolicy {
                attempts_max: 2,
                schedule: Schedule {
                    min: Duration::from_secs(5),
                    max: Duration::from_secs(300),
                    jitter: 0.0,
                },
                budget: Some(0.5),
            }
        );
        assert_eq!(policy(None).with(&RetryChanges::default()), policy(None));
    }

    #[test]
    fn a_budget_is_a_share_of_the_recipients_and_never_nothing() {
        let of =
            |share, entries, lane: &str| policy(share).retries_max(entries, &lane.parse().unwrap());
        assert_eq!(of(None, 1, "im.express"), u32::MAX);
        for (entries, lane, retries) in [
            (1, "im.express", 10),
            (100, "im.express", 10),
            (29, "im.normal.1", 3),
            (101, "im.normal.1", 11),
            (500, "im.bulk.0", 50),
            (100_000, "im.high.2", 10_000),
        ] {
            assert_eq!(of(Some(0.1), entries, lane), retries, "{entries}");
        }
    }

    proptest! {
        /// However a large job is cut, its slices together retry no more than its share and one
        /// rounding for each slice.
        #[test]
        fn the_slices_of_a_job_keep_its_share(
            slices in prop::collection::vec(1u32..5_000, 1..50), share in 0.0f64..4.0,
        ) {
            let all: u64 = slices.iter().map(|it| u64::from(*it)).sum();
            let policy = policy(Some(share));
            let lane: Lane = "im.normal.0".parse().unwrap();
            let retries: u64 = slices.iter().map(|it| u64::from(policy.retries_max(*it, &lane))).sum();
            let rounding = slices.len() as f64;
            prop_assert!(retries as f64 <= share * all as f64 + rounding);
        }
    }
}
