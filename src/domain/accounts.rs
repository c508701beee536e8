//! The accounts of a job (promise 2): total = sent + duplicate + failed + uncertain + expired +
//! cancelled + capped + pending.

pub use fanwise_client::Accounts;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::outcome::Outcome;

/// The counters of the accounts by outcome.
pub trait ByOutcome {
    fn of(&self, outcome: Outcome) -> u64;
    fn of_mut(&mut self, outcome: Outcome) -> &mut u64;
}

impl ByOutcome for Accounts {
    fn of(&self, outcome: Outcome) -> u64 {
        match outcome {
            Outcome::Sent => self.sent,
            Outcome::Duplicate => self.duplicate,
            Outcome::Failed => self.failed,
            Outcome::Uncertain => self.uncertain,
            Outcome::Expired => self.expired,
            Outcome::Cancelled => self.cancelled,
            Outcome::Capped => self.capped,
        }
    }

    fn of_mut(&mut self, outcome: Outcome) -> &mut u64 {
        match outcome {
            Outcome::Sent => &mut self.sent,
            Outcome::Duplicate => &mut self.duplicate,
            Outcome::Failed => &mut self.failed,
            Outcome::Uncertain => &mut self.uncertain,
            Outcome::Expired => &mut self.expired,
            Outcome::Cancelled => &mut self.cancelled,
            Outcome::Capped => &mut self.capped,
        }
    }
}

/// The entries of a slice that have no outcome of their own, as a settle step counts them.
///
/// When a slice ends, they are repeats of other entries, up to the number of repeats that its
/// deliveries saw. If more are left, recipients are missing: then no entry counts as a repeat, and
/// all of them stay pending. `settle.lua` does the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remaining {
    /// Entries to count as duplicates; below 0 if some were counted that turned out to be none.
    pub duplicate: i64,
    /// Entries without an outcome that were not seen as repeats.
    pub missing: u32,
    /// The entries of the slice that count as done after the step.
    pub counted: u32,
}

impl Remaining {
    /// For a slice of `entries` entries, of which `outcomes` have an outcome of their own with
    /// this step. If the slice ends, `seen` is the number of repeats that its deliveries saw.
    ///
    /// A rebuilt job has lost its earlier counts, so repeats and missing entries look the same
    /// there, and all of them count as repeats.
    pub fn of(entries: u32, outcomes: u32, seen: Option<u32>, rebuilt: bool) -> Self {
        let open = i64::from(entries) - i64::from(outcomes);
        let repeats = match seen {
            Some(_) if rebuilt => i64::MAX,
            Some(repeats) => i64::from(repeats),
            None => 0,
        };
        // If the slice was counted as done too early, `open` is negative and takes back repeats
        // that were none.
        let duplicate = if open <= repeats { open } else { 0 };
        let missing = match seen {
            Some(_) if duplicate == 0 => u32::try_from(open - repeats).unwrap_or(0),
            _ => 0,
        };
        Self {
            duplicate,
            missing,
            counted: if open <= repeats { entries } else { outcomes },
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
    #[serde(default)]
    pub capped: u64,
    /// Claims that are still open.
    pub claimed: u64,
}

impl Audit {
    /// The recipients with this outcome. No recipient is a duplicate: list entries are.
    pub fn of(&self, outcome: Outcome) -> u64 {
        match outcome {
            Outcome::Sent => self.sent,
            Outcome::Duplicate => 0,
            Outcome::Failed => self.failed,
            Outcome::Uncertain => self.uncertain,
            Outcome::Expired => self.expired,
            Outcome::Cancelled => self.cancelled,
            Outcome::Capped => self.capped,
        }
    }

    /// Recipients with an outcome.
    pub fn settled(&self) -> u64 {
        Outcome::ALL.iter().map(|outcome| self.of(*outcome)).sum()
    }

    /// Counts a recipient with this outcome.
    pub fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Sent => self.sent += 1,
            Outcome::Duplicate => {}
            Outcome::Failed => self.failed += 1,
            Outcome::Uncertain => self.uncertain += 1,
            Outcome::Expired => self.expired += 1,
            Outcome::Cancelled => self.cancelled += 1,
            Outcome::Capped => self.capped += 1,
        }
    }

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
        let of_recipients = Outcome::ALL.iter().filter(|it| it.ledger_code().is_some());
        for &outcome in of_recipients {
            compare(outcome.as_str(), accounts.of(outcome), self.of(outcome));
        }
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
    use proptest::prelude::*;

    use super::*;

    fn remaining(duplicate: i64, missing: u32, counted: u32) -> Remaining {
        Remaining {
            duplicate,
            missing,
            counted,
        }
    }

    #[test]
    fn entries_without_an_outcome_are_repeats_or_missing() {
        for (entries, outcomes, seen, expected) in [
            // The slice goes on.
            (10, 7, None, remaining(0, 0, 7)),
            (10, 10, None, remaining(0, 0, 10)),
            // It ends: as many repeats as were seen, or fewer.
            (10, 10, Some(0), remaining(0, 0, 10)),
            (10, 7, Some(3), remaining(3, 0, 10)),
            (10, 7, Some(9), remaining(3, 0, 10)),
            // More entries are left than repeats were seen.
            (10, 7, Some(2), remaining(0, 1, 7)),
            (10, 0, Some(0), remaining(0, 10, 0)),
            // The slice counted as done, and then two recipients got a late outcome.
            (10, 12, None, remaining(-2, 0, 10)),
            (10, 12, Some(1), remaining(-2, 0, 10)),
        ] {
            let found = Remaining::of(entries, outcomes, seen, false);
            assert_eq!(found, expected, "{entries} {outcomes} {seen:?}");
        }
        // A rebuilt job cannot tell them apart.
        assert_eq!(Remaining::of(10, 7, Some(0), true), remaining(3, 0, 10));
        assert_eq!(Remaining::of(10, 7, None, true), remaining(0, 0, 7));
    }

    proptest! {
        /// Every entry is counted once: it has an outcome of its own, is a duplicate, or stays
        /// open. Only entries that no delivery saw as repeats are missing.
        #[test]
        fn every_entry_is_counted_once(
            entries in 0_u32..1000, outcomes in 0_u32..1100,
            seen in prop::option::of(0_u32..1100), rebuilt: bool,
        ) {
            let found = Remaining::of(entries, outcomes, seen, rebuilt);
            prop_assert_eq!(
                i64::from(found.counted), i64::from(outcomes) + found.duplicate
            );
            prop_assert!(found.counted <= entries);
            match seen {
                None => prop_assert!(found.duplicate <= 0 && found.missing == 0),
                Some(seen) => {
                    let open = entries - found.counted;
                    prop_assert_eq!(open > 0, found.missing > 0);
                    prop_assert!(open == 0 || open == found.missing + seen && !rebuilt);
                }
            }
        }
    }

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
