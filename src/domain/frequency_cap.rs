//! Frequency caps: an app sends at most so many messages of a category to a recipient within a
//! period, over all its jobs.
//!
//! A job takes one unit of a recipient just before the call, and a recipient without a free unit
//! ends `capped`, without a call. A unit belongs to the job that took it: attempts of the same job
//! use one unit, however many there are, and each moves the unit to its own time. A unit counts for
//! a period from that time on. It goes back when the recipient ends without a message, and it stays
//! while a call is in doubt.
//!
//! The engines keep the units of a recipient together, and change them in one step. The arithmetic
//! here serves the embedded engine. `store/scripts/take_units.lua` and `give_back_units.lua` do the
//! same.

use std::fmt;
use std::time::Duration;

use super::ids::JobId;
use super::schedule::duration_text;

/// Most messages that a cap can allow in a period: the units of a recipient are read and written
/// together.
pub const CAP_MAX: u32 = 100;

/// Longest name of a category, in bytes.
pub const CATEGORY_BYTES_MAX: usize = 64;

/// At most `max` messages to a recipient in any window of `period`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrequencyCap {
    pub max: u32,
    pub period: Duration,
}

/// `3 in 24h`
impl fmt::Display for FrequencyCap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.max, duration_text(self.period))
    }
}

impl FrequencyCap {
    pub fn period_ms(&self) -> u64 {
        self.period.as_millis().try_into().unwrap_or(u64::MAX)
    }

    /// The number of the period in which a time falls. Units are stored under it: those that count
    /// are in the current period and in the one before.
    pub fn number(&self, now_ms: u64) -> u64 {
        now_ms / self.period_ms().max(1)
    }
}

/// Names the job that took a unit, by the beginning of its id. Among a thousand jobs two have the
/// same beginning with probability 2e-9; they would share their units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnitOwner(pub [u8; 6]);

impl From<JobId> for UnitOwner {
    fn from(job: JobId) -> Self {
        let [a, b, c, d, e, f, ..] = job.bytes();
        Self([a, b, c, d, e, f])
    }
}

/// A message that counts for a recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    /// In ms since 1970.
    pub taken_ms: u64,
    pub owner: UnitOwner,
}

/// The units of one recipient, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Units(Vec<Unit>);

/// Bytes of a stored unit: the time in ms, 6 bytes, and the owner.
const UNIT_BYTES: usize = 12;

impl Units {
    /// Takes a unit for a job, or moves the unit that it has to this time. False: no unit is free.
    pub fn take(&mut self, owner: UnitOwner, cap: &FrequencyCap, now_ms: u64) -> bool {
        let counts = |unit: &Unit| unit.taken_ms + cap.period_ms() > now_ms;
        self.0.retain(|unit| counts(unit) && unit.owner != owner);
        let free = self.0.len() < cap.max as usize;
        if free {
            self.0.push(Unit {
                taken_ms: now_ms,
                owner,
            });
        }
        free
    }

    /// Gives the unit of a job back. False: the job has none.
    pub fn give_back(&mut self, owner: UnitOwner) -> bool {
        let before = self.0.len();
        self.0.retain(|unit| unit.owner != owner);
        self.0.len() < before
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads stored units, after those that are read already. `None`: they are cut short.
    pub fn read(&mut self, bytes: &[u8]) -> Option<()> {
        let (units, rest) = bytes.as_chunks::<UNIT_BYTES>();
        for [a, b, c, d, e, f, owner @ ..] in units {
            self.0.push(Unit {
                taken_ms: u64::from_be_bytes([0, 0, *a, *b, *c, *d, *e, *f]),
                owner: UnitOwner(*owner),
            });
        }
        rest.is_empty().then_some(())
    }

    pub fn write(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.len() * UNIT_BYTES);
        for unit in &self.0 {
            bytes.extend_from_slice(&unit.taken_ms.to_be_bytes()[2..]);
            bytes.extend_from_slice(&unit.owner.0);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn owner(number: u8) -> UnitOwner {
        UnitOwner([number; 6])
    }

    const THREE: FrequencyCap = FrequencyCap {
        max: 3,
        period: Duration::from_secs(10),
    };

    #[test]
    fn an_attempt_of_the_same_job_moves_its_unit() {
        let mut units = Units::default();
        for (number, at, free) in [
            (1, 1_000, true),
            (2, 2_000, true),
            (3, 3_000, true),
            (4, 4_000, false),
            (1, 9_000, true),
            // The unit of job 1 would be free by now had it not moved.
            (4, 11_000, false),
            (4, 12_000, true),
        ] {
            assert_eq!(units.take(owner(number), &THREE, at), free, "{number} {at}");
        }
    }

    #[test]
    fn a_unit_that_goes_back_is_free_again() {
        let mut units = Units::default();
        for number in 1..=3 {
            assert!(units.take(owner(number), &THREE, 0));
        }
        assert!(!units.give_back(owner(4)) && !units.take(owner(4), &THREE, 1));
        assert!(units.give_back(owner(2)) && units.take(owner(4), &THREE, 1));
    }

    #[test]
    fn stored_units_come_back() {
        let mut units = Units::default();
        units.take(owner(7), &THREE, 1_800_000_000_123);
        units.take(owner(9), &THREE, 1_800_000_000_124);
        let mut read = Units::default();
        assert_eq!(read.read(&units.write()), Some(()));
        assert_eq!(read, units);
        assert_eq!(read.read(&[0; 13]), None);
    }

    #[test]
    fn jobs_have_owners_of_their_own() {
        let owners: Vec<_> = (0..100)
            .map(|number| UnitOwner::from(JobId::of("shop", &number.to_string())))
            .collect();
        let different: std::collections::BTreeSet<_> = owners.iter().collect();
        assert_eq!(different.len(), 100);
    }

    proptest! {
        /// Whatever jobs ask whenever: each window of a period has at most `max` messages.
        #[test]
        fn no_window_has_more_than_the_cap(
            max in 1_u32..6, period in 1_u64..50,
            asks in prop::collection::vec((0_u64..20, 0_u8..9), 1..80),
        ) {
            let cap = FrequencyCap { max, period: Duration::from_millis(period) };
            let (mut units, mut now) = (Units::default(), 0);
            // The time of the last attempt of each message that was sent.
            let mut sent: BTreeMap<u8, Vec<u64>> = BTreeMap::new();
            for (gap, number) in asks {
                now += gap;
                if units.take(owner(number), &cap, now) {
                    sent.entry(number).or_default().push(now);
                }
                let within = |times: &&Vec<u64>| times.iter().any(|at| at + period > now);
                prop_assert!(sent.values().filter(within).count() <= max as usize);
            }
        }
    }
}
