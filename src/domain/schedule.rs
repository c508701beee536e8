//! Computes delays: exponential with jitter for retries and reconnects, and the rungs of the retry
//! ladder. It also reads and writes durations.
//!
//! No other module uses `backoff`. Only the arithmetic of that crate is used: its clock is the real
//! one, so its elapsed-time limit stays off; its random numbers cannot be seeded, so the jitter is
//! drawn here.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;
use jiff::SignedDuration;

/// An exponential schedule: it starts at `min`, doubles up to `max`, and spreads by ± `jitter` (0
/// to 1).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    pub min: Duration,
    pub max: Duration,
    pub jitter: f64,
}

impl Schedule {
    /// The delays of a loop that reconnects, one after the other.
    pub fn delays(&self) -> Delays {
        let row = ExponentialBackoff {
            current_interval: self.min,
            initial_interval: self.min,
            randomization_factor: 0.0,
            multiplier: 2.0,
            max_interval: self.max,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        Delays {
            row,
            jitter: self.jitter,
        }
    }

    /// The delay after attempt number `attempt` (1-based) has failed.
    pub fn delay(&self, attempt: u32) -> Duration {
        let mut delays = self.delays();
        // Past 32 doublings every schedule has reached its maximum.
        for _ in 1..attempt.min(32) {
            delays.next_delay();
        }
        delays.next_delay()
    }
}

/// An endless sequence of growing delays.
pub struct Delays {
    row: ExponentialBackoff,
    jitter: f64,
}

impl Delays {
    pub fn next_delay(&mut self) -> Duration {
        // Without an elapsed-time limit the sequence never ends.
        let delay = self.row.next_backoff().unwrap_or(self.row.max_interval);
        delay.mul_f64(1.0 + self.jitter * (2.0 * fastrand::f64() - 1.0))
    }

    /// Starts again with the shortest delay, after a success.
    pub fn reset(&mut self) {
        self.row.reset();
    }
}

/// The delays that have a waiting queue. Each queue has one delay, because only the head of a queue
/// expires: in a mixed queue short waits would be stuck behind long ones.
pub const RUNGS: [Duration; 6] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(20),
    Duration::from_secs(60),
    Duration::from_secs(300),
    Duration::from_secs(1800),
];

/// The rung for a delay: the longest one that is not longer than the delay, or the shortest rung.
///
/// A slice whose wait is longer than its rung returns early, looks at the clock and waits on
/// another rung. So no wait is too long by more than the shortest rung.
pub fn rung(delay: Duration) -> Duration {
    RUNGS
        .into_iter()
        .rev()
        .find(|rung| *rung <= delay)
        .unwrap_or(RUNGS[0])
}

/// The shortest time after which waiting work looks whether it may continue.
const LOOK_AGAIN_MIN: Duration = RUNGS[1];

/// The longest time that work waits without looking, because an operator may end its wait earlier.
pub const LOOK_AGAIN_MAX: Duration = RUNGS[3];

/// When to look again whether a pause or park that has lasted this long is over. The wait grows
/// with that time: work continues before the wait has doubled, and a wait of days costs little.
pub fn look_again(lasted: Duration) -> Duration {
    lasted.clamp(LOOK_AGAIN_MIN, LOOK_AGAIN_MAX)
}

/// Reads a duration such as `500ms`, `2m` or `1h 30m`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<SignedDuration>().ok();
    parsed
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or_else(|| format!("{text:?} is not a duration such as 500ms or 2m"))
}

/// Writes a duration such as `2m`, `500ms` or `168h`, as short as it can be read back.
pub fn duration_text(duration: Duration) -> String {
    let ms = duration.as_millis();
    for (unit, size) in [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1000),
    ] {
        if ms >= size && ms.is_multiple_of(size) {
            // Days are written as hours: where clocks change, a day has no fixed length.
            return if unit == "d" {
                format!("{}h", ms / 3_600_000)
            } else {
                format!("{}{unit}", ms / size)
            };
        }
    }
    format!("{ms}ms")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn delays_grow_within_their_bounds(attempt in 1u32..100, jitter in 0.0f64..0.9) {
            let schedule = Schedule { min: Duration::from_secs(1), max: Duration::from_secs(600), jitter };
            let exact = (2f64.powi(attempt.min(32) as i32 - 1)).min(600.0);
            let delay = schedule.delay(attempt).as_secs_f64();
            prop_assert!(delay >= exact * (1.0 - jitter) - 0.001, "{delay} after {attempt}");
            prop_assert!(delay <= exact * (1.0 + jitter) + 0.001, "{delay} after {attempt}");
        }

        #[test]
        fn a_rung_never_oversleeps_by_more_than_the_shortest(ms in 0u64..10_000_000) {
            let delay = Duration::from_millis(ms);
            prop_assert!(rung(delay) <= delay.max(RUNGS[0]));
        }
    }

    #[test]
    fn durations_are_written_as_they_are_read() {
        for (ms, text) in [
            (500, "500ms"),
            (120_000, "2m"),
            (604_800_000, "168h"),
            (1500, "1500ms"),
        ] {
            assert_eq!(duration_text(Duration::from_millis(ms)), text);
            let read: SignedDuration = text.parse().unwrap();
            assert_eq!(read.as_millis(), i128::from(ms));
        }
    }
}
