//! Adapts the limit of a target that answers that calls come too fast: the rate halves, and then
//! climbs by a tenth of the limit in each interval. After other parks the rate climbs too, where
//! the target has a warm-up, so that no target gets a full burst when it comes back.
//!
//! The state is when the climb begins and from which share, so every worker computes the same rate
//! from the clock, and nothing is written while it climbs.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits::Rate;

/// The share of the limit that each interval adds.
const STEP: f64 = 0.1;

/// The share at which a warm-up begins, and the least that is left of a limit.
const LEAST: f64 = 0.1;

/// The limit of a target as it climbs back.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Climb {
    /// The share of the limit at the beginning.
    pub share: f64,
    /// When the first interval begins, in milliseconds since 1970.
    pub from_ms: u64,
    pub interval_ms: u64,
}

impl Climb {
    /// After a throttle answer that parks the target until `from_ms`: half the rate in force now.
    pub fn halved(before: Option<&Self>, now_ms: u64, from_ms: u64, interval: Duration) -> Self {
        let share = before.map_or(1.0, |climb| climb.share_at(now_ms));
        Self::from_share(share / 2.0, from_ms, interval)
    }

    /// After any other park, for a target that warms up in this time.
    pub fn warming(from_ms: u64, warm_up: Duration) -> Self {
        let steps = ((1.0 - LEAST) / STEP).round();
        Self::from_share(LEAST, from_ms, warm_up.div_f64(steps))
    }

    fn from_share(share: f64, from_ms: u64, interval: Duration) -> Self {
        Self {
            share: share.clamp(LEAST / 10.0, 1.0),
            from_ms,
            interval_ms: (interval.as_millis() as u64).max(1),
        }
    }

    /// The share of the limit that applies at a time.
    pub fn share_at(&self, now_ms: u64) -> f64 {
        let intervals = now_ms.saturating_sub(self.from_ms) / self.interval_ms.max(1);
        // A climb may come from anybody who can write to the store.
        let share = if self.share.is_finite() {
            self.share
        } else {
            1.0
        };
        (share.max(0.0) + STEP * intervals as f64).clamp(LEAST / 10.0, 1.0)
    }

    /// When the whole limit applies again.
    pub fn ends_ms(&self) -> u64 {
        let steps = ((1.0 - self.share) / STEP - 1e-9).ceil().max(0.0) as u64;
        self.from_ms
            .saturating_add(steps.saturating_mul(self.interval_ms))
    }

    /// The rate that is left of a limit.
    pub fn rate(&self, limit: Rate, now_ms: u64) -> Rate {
        limit.scaled(self.share_at(now_ms))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_000_000;
    const TEN: Duration = Duration::from_secs(10);

    fn rate(text: &str) -> Rate {
        text.parse().unwrap()
    }

    #[test]
    fn the_rate_halves_and_climbs_by_a_tenth_in_each_interval() {
        let climb = Climb::halved(None, NOW, NOW + 60_000, TEN);
        let at = |seconds: u64| climb.rate(rate("1000/s"), NOW + seconds * 1000).to_string();
        assert_eq!(at(0), "500/s burst 100");
        assert_eq!(at(69), "500/s burst 100");
        assert_eq!(at(70), "600/s burst 120");
        assert_eq!(at(109), "900/s burst 180");
        assert_eq!(at(110), "1000/s burst 200");
        assert_eq!(at(10_000), "1000/s burst 200");
        assert_eq!(climb.ends_ms(), NOW + 110_000);
        // Throttled again while it climbs: half of what applies then.
        let again = Climb::halved(Some(&climb), NOW + 70_000, NOW + 130_000, TEN);
        assert_eq!(
            again.rate(rate("1000/s"), NOW).to_string(),
            "300/s burst 60"
        );
    }

    #[test]
    fn a_warm_up_climbs_from_a_tenth_in_its_time() {
        let climb = Climb::warming(NOW, Duration::from_secs(90));
        let at = |seconds: u64| climb.rate(rate("1000/s"), NOW + seconds * 1000).units;
        assert_eq!(
            [at(0), at(9), at(10), at(80), at(90)],
            [100, 100, 200, 900, 1000]
        );
        assert_eq!(climb.ends_ms(), NOW + 90_000);
    }

    proptest! {
        /// However often the target throttles, something is left, the rate never exceeds the limit,
        /// never falls while it climbs, and is whole at the end.
        #[test]
        fn a_limit_stays_within_its_bounds(
            throttles in prop::collection::vec((0u64..100_000, 1u64..60_000), 1..20),
            units in 1u32..1_000_000,
        ) {
            let limit = Rate { units, ..rate("1/s") };
            let mut now = NOW;
            let mut climb: Option<Climb> = None;
            for (after, block) in throttles {
                now += after;
                climb = Some(Climb::halved(climb.as_ref(), now, now + block, TEN));
                now += block;
                let climb = climb.unwrap();
                let mut last = 0.0;
                for at in (now..climb.ends_ms() + 20_000).step_by(5_000) {
                    let left = climb.rate(limit, at).per_second();
                    prop_assert!(left > 0.0 && left <= limit.per_second() * 1.000_001);
                    prop_assert!(left >= last * 0.999_999, "{left} after {last}");
                    last = left;
                }
                prop_assert_eq!(climb.rate(limit, climb.ends_ms()), limit);
            }
        }
    }
}
