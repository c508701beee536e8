//! The accounts of a job (promise 2): total = sent + duplicate + failed + uncertain + expired +
//! cancelled + pending.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::outcome::Outcome;

/// Counts the recipients of a job by outcome. `total` counts list entries: a user that is listed
/// twice counts twice, once as sent and once as duplicate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Accounts {
    pub total: u64,
    pub sent: u64,
    pub duplicate: u64,
    pub failed: u64,
    pub uncertain: u64,
    pub expired: u64,
    pub cancelled: u64,
}

impl Accounts {
    /// Recipients that have an outcome.
    pub fn settled(&self) -> u64 {
        Outcome::ALL.iter().map(|outcome| self.of(*outcome)).sum()
    }

    /// Recipients that have none yet.
    pub fn pending(&self) -> u64 {
        self.total.saturating_sub(self.settled())
    }

    pub fn of(&self, outcome: Outcome) -> u64 {
        match outcome {
            Outcome::Sent => self.sent,
            Outcome::Duplicate => self.duplicate,
            Outcome::Failed => self.failed,
            Outcome::Uncertain => self.uncertain,
            Outcome::Expired => self.expired,
            Outcome::Cancelled => self.cancelled,
        }
    }

    pub fn of_mut(&mut self, outcome: Outcome) -> &mut u64 {
        match outcome {
            Outcome::Sent => &mut self.sent,
            Outcome::Duplicate => &mut self.duplicate,
            Outcome::Failed => &mut self.failed,
            Outcome::Uncertain => &mut self.uncertain,
            Outcome::Expired => &mut self.expired,
            Outcome::Cancelled => &mut self.cancelled,
        }
    }
}

/// The states that a walk over the ledger of one job found, counted by recipient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Audit {
    pub sent: u64,
    pub failed: u64,
    pub uncertain: u64,
    pub expired: u64,
    pub cancelled: u64,
    /// Claims that are still open.
    pub claimed: u64,
}

impl Audit {
    /// The differences between the counters of a job and its ledger, in words. Empty means exact.
    ///
    /// A finished job has no pending recipients and no open claims; a running one may have both.
    pub fn differences(&self, accounts: &Accounts) -> Vec<String> {
        let mut differences = Vec::new();
        let mut compare = |what: &str, counted: u64, found: u64| {
            if counted != found {
                differences.push(format!(
                    "{what}: counted {counted}, the ledger holds {found}"
                ));
            }
        };
        compare("sent", accounts.sent, self.sent);
        compare("failed", accounts.failed, self.failed);
        compare("uncertain", accounts.uncertain, self.uncertain);
        compare("expired", accounts.expired, self.expired);
        compare("cancelled", accounts.cancelled, self.cancelled);
        if accounts.settled() > accounts.total {
            differences.push(format!(
                "outcomes: {} counted for {} recipients",
                accounts.settled(),
                accounts.total
            ));
        }
        if accounts.pending() == 0 && self.claimed > 0 {
            differences.push(format!(
                "claims: {} still open in a finished job",
                self.claimed
            ));
        }
        differences
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pending_is_what_has_no_outcome() {
        let accounts = Accounts {
            total: 10,
            sent: 4,
            duplicate: 2,
            failed: 1,
            ..Accounts::default()
        };
        assert_eq!((accounts.settled(), accounts.pending()), (7, 3));
    }

    #[test]
    fn an_audit_names_what_differs() {
        let accounts = Accounts {
            total: 3,
            sent: 2,
            duplicate: 1,
            ..Accounts::default()
        };
        assert!(
            Audit {
                sent: 2,
                ..Audit::default()
            }
            .differences(&accounts)
            .is_empty()
        );
        let found = Audit {
            sent: 1,
            claimed: 1,
            ..Audit::default()
        }
        .differences(&accounts);
        assert_eq!(found.len(), 2, "{found:?}");
    }
}
