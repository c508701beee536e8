//! Computes the speed of a job from what its ledger remembers: two marks of its progress some
//! seconds ago.
//!
//! Any reader of the ledger can compute the rate, whichever workers made the progress. Marks are
//! set when outcomes are recorded, by the clock of the ledger; `store/scripts/settle.lua` keeps
//! them by the same rule as `Pace::note`.

use std::time::Duration;

/// Time between two marks, so that a rate covers the last 5 to 10 seconds.
const MARK_MS: u64 = 5_000;

/// A job without an outcome for this long does not move, and its marks are out of date.
pub const STILL: Duration = Duration::from_millis(2 * MARK_MS);

/// The number of settled recipients at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Mark {
    pub at_ms: u64,
    pub settled: u64,
}

/// The last mark and the one before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Pace {
    pub last: Option<Mark>,
    pub before: Option<Mark>,
}

impl Pace {
    /// Takes the progress of a job after outcomes were recorded.
    pub fn note(&mut self, now: Mark) {
        match self.last {
            Some(last) if now.at_ms < last.at_ms + MARK_MS => {}
            Some(last) if now.at_ms < last.at_ms + STILL.as_millis() as u64 => {
                self.before = Some(last);
                self.last = Some(now);
            }
            // The job did not move for a while, so the earlier marks do not describe its present
            // speed.
            _ => {
                self.before = None;
                self.last = Some(now);
            }
        }
    }

    /// Recipients per second until the last progress, which was at `progress`. `None` if too little
    /// is recorded; 0 if the job does not move at `now_ms`.
    pub fn per_second(&self, progress: Mark, now_ms: u64) -> Option<f64> {
        let since = self.before.or(self.last)?;
        if now_ms.saturating_sub(progress.at_ms) > STILL.as_millis() as u64 {
            return Some(0.0);
        }
        // Both times are by the clock of the ledger. Less than 200 ms tells more about one slice
        // than about the job.
        let elapsed = progress.at_ms.checked_sub(since.at_ms)?;
        let settled = progress.settled.checked_sub(since.settled)?;
        (elapsed >= 200).then(|| settled as f64 * 1000.0 / elapsed as f64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The rate after outcomes at these times, computed right after the last one.
    fn rate(progress: impl IntoIterator<Item = (u64, u64)>) -> Option<f64> {
        let mut pace = Pace::default();
        let mut last = Mark {
            at_ms: 0,
            settled: 0,
        };
        for (at_ms, settled) in progress {
            last = Mark { at_ms, settled };
            pace.note(last);
        }
        pace.per_second(last, last.at_ms)
    }

    #[test]
    fn a_single_step_tells_no_rate() {
        assert_eq!(rate([]), None);
        assert_eq!(rate([(1_000, 500)]), None);
        assert_eq!(rate([(1_000, 500), (1_001, 900)]), None);
    }

    #[test]
    fn a_new_speed_is_seen_within_ten_seconds() {
        let slow = (0..60).map(|second| (second * 1000, second * 100));
        let fast = (0..11).map(|second| (60_000 + second * 1000, 6_000 + second * 1000));
        let found = rate(slow.chain(fast)).unwrap();
        assert!((990.0..=1010.0).contains(&found), "{found}");
    }

    #[test]
    fn a_pause_does_not_slow_down_what_comes_after_it() {
        let found = rate([(0, 0), (1_000, 100), (100_000, 100), (101_000, 600)]).unwrap();
        assert!((499.0..=501.0).contains(&found), "{found}");
    }

    #[test]
    fn a_job_that_stands_still_has_no_speed() {
        let mut pace = Pace::default();
        let progress = Mark {
            at_ms: 1_000,
            settled: 10,
        };
        pace.note(progress);
        assert_eq!(pace.per_second(progress, 12_000), Some(0.0));
    }

    proptest! {
        /// At a steady speed, steps of any size give that speed.
        #[test]
        fn a_steady_speed_is_found(
            steps in prop::collection::vec(1u64..3_000, 2..200), speed in 1u64..5_000,
        ) {
            let mut at = 0;
            let mut progress: Vec<_> = steps
                .iter()
                .map(|step| {
                    at += step;
                    (at, at * speed)
                })
                .collect();
            progress.push((at + 250, (at + 250) * speed));
            let found = rate(progress).unwrap();
            let expected = speed as f64 * 1000.0;
            prop_assert!((found - expected).abs() < 1e-6 * expected, "{found} {expected}");
        }
    }
}
