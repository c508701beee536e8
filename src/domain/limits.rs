//! Rates, and the generic cell rate algorithm (GCRA) of the throttle.
//!
//! A limiter is one number, the theoretical arrival time (TAT) in microseconds. The same arithmetic
//! runs in `store/scripts/lease.lua` for all workers. The code here serves the embedded engine, and
//! is the oracle of the property tests.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The thing that one unit of a rate counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cost {
    /// One request to the backend, with any number of recipients.
    PerCall,
    /// One recipient.
    PerRecipient,
}

/// What a limit is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum LimitScope {
    /// One target.
    Target,
    App,
    Job,
    /// One sender at a target.
    Sender,
    /// Several targets together.
    Shared,
    /// A job that is spread over a time (`domain::spread`). It has one limiter, however its rate
    /// changes.
    Pace,
}

impl LimitScope {
    pub const ALL: &'static [Self] = <Self as strum::VariantArray>::VARIANTS;

    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Whether it holds up everything on the lanes of a target.
    pub fn is_of_lane(self) -> bool {
        match self {
            Self::Target | Self::Shared => true,
            Self::App | Self::Job | Self::Sender | Self::Pace => false,
        }
    }

    /// Whether a limit whose rate changes starts clean.
    pub fn starts_clean(self) -> bool {
        self != Self::Pace
    }

    /// The thing that its units count, unless the rate says it.
    pub fn usual_cost(self) -> Cost {
        match self {
            Self::Target | Self::Shared => Cost::PerCall,
            Self::App | Self::Job | Self::Sender | Self::Pace => Cost::PerRecipient,
        }
    }
}

/// The units of a limit that one message takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Weight {
    pub units: u32,
    /// The most that any message takes of the same limit.
    pub max: u32,
}

impl Weight {
    pub const ONE: Self = Self { units: 1, max: 1 };

    /// How much further ahead, in µs, other messages may bring a limiter of this rate than those
    /// that take one unit.
    pub fn further_ahead_us(self, rate: &Rate) -> f64 {
        f64::from(self.max.max(1) - 1) * rate.interval_us()
    }
}

/// A rate with its burst: `"2000/s"`, `"2000/s burst 200"`, `"120/min per call"`, `"10/s per recipient"`.
///
/// In any window of length `t` at most `rate × t + burst` units start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    pub units: u32,
    pub period: Duration,
    pub burst: u32,
    /// `None`: the default of the place where the rate is configured (calls for a target,
    /// recipients for an app or a job).
    pub cost: Option<Cost>,
}

impl Rate {
    /// So many units over this time, whatever it is. Other rates count by the second, the minute, the
    /// hour or the day, and only they can be written as a text.
    pub fn spread(units: u32, period: Duration, cost: Cost) -> Self {
        let rate = Self {
            units: units.max(1),
            period,
            burst: 1,
            cost: Some(cost),
        };
        Self {
            burst: rate.burst_by_default(),
            ..rate
        }
    }

    /// A fifth of a second's units: an idle limiter cannot release a whole second at once.
    fn burst_by_default(&self) -> u32 {
        ((self.per_second() * 0.2) as u32).max(1)
    }

    /// The rate as a text, without the burst if that is the default.
    pub fn short(&self) -> String {
        let text = self.to_string();
        match self.burst == self.burst_by_default() {
            true => text.replacen(&format!(" burst {}", self.burst), "", 1),
            false => text,
        }
    }

    /// Whether it counts by the day.
    pub fn is_daily(&self) -> bool {
        self.period == Duration::from_secs(DAY_SECONDS)
    }

    /// Microseconds between two units.
    pub fn interval_us(&self) -> f64 {
        self.period.as_micros() as f64 / f64::from(self.units)
    }

    pub fn per_second(&self) -> f64 {
        1e6 / self.interval_us()
    }

    /// A share of this rate. A slow rate is counted over a longer period, so that little is lost to
    /// rounding.
    pub fn scaled(self, share: f64) -> Self {
        if share >= 1.0 {
            return self;
        }
        let per_second = self.per_second() * share;
        let periods = [1, 60, 3600, DAY_SECONDS].map(Duration::from_secs);
        let mut periods = periods.into_iter().filter(|it| *it >= self.period);
        let whole = |period: &Duration| per_second * period.as_secs_f64() >= WHOLE_UNITS;
        let period = periods
            .find(whole)
            .unwrap_or(Duration::from_secs(DAY_SECONDS));
        Self {
            units: ((per_second * period.as_secs_f64()).round() as u32).max(1),
            period,
            burst: ((f64::from(self.burst) * share).round() as u32).max(1),
            ..self
        }
    }

    /// The rate of messages that cost so many units each, with the same limiter: a unit of the
    /// result is as long as that many units of this rate.
    pub fn weighed(self, weight: Weight) -> Self {
        Self {
            period: self.period * weight.units.max(1),
            ..self
        }
    }

    /// The burst in units that weigh so much. A message starts as soon as one unit of the rate is
    /// free, whatever it costs, so that light messages do not keep dear ones waiting for ever. A
    /// limit is exceeded by less than one message, for which later ones wait.
    pub fn burst_weighed(&self, weight: Weight) -> f64 {
        let units = f64::from(weight.units.max(1));
        (f64::from(self.burst) + units - 1.0) / units
    }

    /// The units to lease at once: 50 ms of the rate, at least one, at most `want`.
    pub fn lease_units(&self, want: u32) -> u32 {
        ((self.per_second() * 0.05) as u32).clamp(1, want.max(1))
    }
}

const DAY_SECONDS: u64 = 24 * 3600;

/// Units that a scaled rate has at least, so that rounding costs it little.
const WHOLE_UNITS: f64 = 10.0;

/// Why a text is not a rate.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a rate; examples: \"2000/s\", \"2000/s burst 200\", \"120/min per call\"")]
pub struct NotARate(String);

impl FromStr for Rate {
    type Err = NotARate;

    fn from_str(text: &str) -> Result<Self, NotARate> {
        let wrong = || NotARate(text.to_owned());
        let mut words = text.split_whitespace();
        let (units, period) = words
            .next()
            .and_then(|word| word.split_once('/'))
            .ok_or_else(wrong)?;
        let units: u32 = units.replace('_', "").parse().map_err(|_| wrong())?;
        let period = match period {
            "s" | "sec" | "second" => Duration::from_secs(1),
            "min" | "minute" => Duration::from_secs(60),
            "h" | "hour" => Duration::from_secs(3600),
            "d" | "day" => Duration::from_secs(DAY_SECONDS),
            _ => return Err(wrong()),
        };
        if !(1..=10_000_000).contains(&units) {
            return Err(wrong());
        }
        let mut burst = None;
        let mut cost = None;
        while let Some(word) = words.next() {
            match (word, words.next().ok_or_else(wrong)?) {
                ("burst", number) => burst = Some(number.parse().map_err(|_| wrong())?),
                ("per", "call") => cost = Some(Cost::PerCall),
                ("per", "recipient") => cost = Some(Cost::PerRecipient),
                _ => return Err(wrong()),
            }
        }
        let mut rate = Self {
            units,
            period,
            burst: 1,
            cost,
        };
        rate.burst = burst.unwrap_or(rate.burst_by_default()).max(1);
        Ok(rate)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let period = match self.period.as_secs() {
            1 => "s",
            60 => "min",
            DAY_SECONDS => "day",
            _ => "h",
        };
        write!(f, "{}/{period} burst {}", self.units, self.burst)?;
        match self.cost {
            Some(Cost::PerCall) => f.write_str(" per call"),
            Some(Cost::PerRecipient) => f.write_str(" per recipient"),
            None => Ok(()),
        }
    }
}

/// A rate is serialized as its text.
impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Rate {
    fn schema_name() -> Cow<'static, str> {
        "Rate".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A rate with its burst, such as `2000/s`, `2000/s burst 200`, `120/min per call`.",
        })
    }
}

/// The answer of a limiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// `units` may start `after` this time; they are booked.
    Units { units: u32, after: Duration },
    /// Nothing is booked: the next unit is further away than the longest allowed wait.
    Later { after: Duration },
}

/// The state of one limiter: the time, in microseconds, at which it would be empty.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tat(pub f64);

impl Tat {
    /// Books up to `want` units that can start within `wait_max` of `now_us`.
    ///
    /// Callers that ask while others wait are served in the order in which they ask.
    pub fn lease(&mut self, rate: &Rate, now_us: u64, want: u32, wait_max: Duration) -> Grant {
        self.lease_weighed(rate, Weight::ONE, now_us, want, wait_max)
    }

    /// The same for messages that take several units each.
    pub fn lease_weighed(
        &mut self,
        rate: &Rate,
        weight: Weight,
        now_us: u64,
        want: u32,
        wait_max: Duration,
    ) -> Grant {
        let (further, burst) = (weight.further_ahead_us(rate), rate.burst_weighed(weight));
        let rate = &rate.weighed(weight);
        let (interval, now) = (rate.interval_us(), now_us as f64);
        let tolerance = burst * interval;
        let wait_max = wait_max.as_micros() as f64;
        let ahead_max = wait_max + burst.max(1.0) * interval + f64::from(want) * interval + further;
        let tat = self.started(now, tolerance, ahead_max);
        // A batch of `units` ends at tat + units × interval. It may start once that is at most
        // `tolerance` ahead of the clock. The first unit decides whether anything is granted.
        let first = (tat + interval - tolerance - now).max(0.0);
        if first > wait_max {
            return Grant::Later {
                after: micros(first - wait_max),
            };
        }
        let fitting = ((now + wait_max + tolerance - tat) / interval).floor();
        let units = (fitting as u32).clamp(1, want.max(1));
        self.0 = tat + f64::from(units) * interval;
        Grant::Units {
            units,
            after: micros((self.0 - tolerance - now).max(0.0)),
        }
    }

    /// How much of the burst is booked: 0 when the limiter is idle, 1 when the next unit has to
    /// wait.
    pub fn booked(self, rate: &Rate, now_us: u64) -> f64 {
        let (now, interval) = (now_us as f64, rate.interval_us());
        let tolerance = f64::from(rate.burst) * interval;
        let tat = self.started(now, tolerance, tolerance + interval);
        (tat - now) / tolerance
    }

    /// Returns units that were booked and not used.
    pub fn refund(&mut self, rate: &Rate, units: u32) {
        self.0 -= f64::from(units) * rate.interval_us();
    }

    /// An idle limiter starts from now. A TAT far in the future comes from a faster clock or a
    /// lower rate and is moved back to one full burst ahead.
    fn started(self, now: f64, tolerance: f64, ahead_max: f64) -> f64 {
        if self.0 < now {
            now
        } else if self.0 > now + ahead_max.max(60e6) {
            now + tolerance
        } else {
            self.0
        }
    }
}

fn micros(value: f64) -> Duration {
    Duration::from_micros(value.ceil() as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An unreadable limit must not count as no limit.
    #[test]
    fn a_rate_that_cannot_be_read_is_refused() {
        let read = serde_json::from_str::<Option<Rate>>;
        assert_eq!(read("null").unwrap(), None);
        assert_eq!(read("\"5/s\"").unwrap(), "5/s".parse().ok());
        for text in [
            "5/s",
            "100/s",
            "2000/s burst 3",
            "120/min per call",
            "7/h burst 3 per recipient",
        ] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!(rate.short(), text);
        }
        for text in ["\"\"", "\"fast\"", "\"0/s\"", "5"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    fn rate(text: &str) -> Rate {
        text.parse().unwrap()
    }

    #[test]
    fn rates_are_read_and_written() {
        for text in [
            "2000/s burst 200",
            "120/min burst 1 per call",
            "7/h burst 3 per recipient",
            "100000/day burst 1",
        ] {
            assert_eq!(rate(text).to_string(), text);
        }
        assert_eq!(rate("2000/s").burst, 400);
        for text in [
            "",
            "2000",
            "0/s",
            "5/week",
            "5/s burst",
            "5/s per cow",
            "-1/s",
        ] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_idle_limiter_grants_its_burst_and_no_more() {
        let rate = rate("10/s burst 5");
        let mut tat = Tat::default();
        assert_eq!(tat.booked(&rate, 1_000_000), 0.0);
        let grant = tat.lease(&rate, 1_000_000, 100, Duration::ZERO);
        assert_eq!(
            grant,
            Grant::Units {
                units: 5,
                after: Duration::ZERO
            }
        );
        let grant = tat.lease(&rate, 1_000_000, 1, Duration::ZERO);
        assert_eq!(
            grant,
            Grant::Later {
                after: Duration::from_millis(100)
            }
        );
        assert_eq!(tat.booked(&rate, 1_000_000), 1.0);
        assert_eq!(tat.booked(&rate, 1_100_000), 0.8);
    }

    /// A limit a day grants its units one by one, over the whole day.
    #[test]
    fn a_limit_a_day_is_spread_over_the_day() {
        let rate = rate("86400/day");
        assert_eq!(rate.interval_us(), 1e6);
        let (mut tat, mut starts) = (Tat::default(), 0);
        for second in 0..3600 {
            let grant = tat.lease(&rate, second * 1_000_000, 100, Duration::ZERO);
            if let Grant::Units { units, .. } = grant {
                assert_eq!(units, 1);
                starts += 1;
            }
        }
        assert_eq!(starts, 3600);
        assert_eq!(rate.scaled(0.5).per_second(), 0.5);
    }

    #[test]
    fn refunded_units_are_granted_again() {
        let rate = rate("10/s burst 5");
        let mut tat = Tat::default();
        tat.lease(&rate, 0, 5, Duration::ZERO);
        tat.refund(&rate, 2);
        let grant = tat.lease(&rate, 0, 5, Duration::ZERO);
        assert_eq!(
            grant,
            Grant::Units {
                units: 2,
                after: Duration::ZERO
            }
        );
    }

    proptest! {
        /// Messages of several prices share one limiter: in any window, their units together are at
        /// most rate × t + burst, plus one message of each price across its edges.
        #[test]
        fn messages_of_several_prices_keep_one_limit(
            units in 1u32..500, burst in 1u32..50,
            asks in prop::collection::vec((0u64..200_000, 1u32..5, 1u32..60), 1..200),
        ) {
            let rate = Rate { units, period: Duration::from_secs(1), burst, cost: None };
            let (mut tat, mut now) = (Tat::default(), 1_000_000);
            let mut starts: Vec<(u64, u32)> = Vec::new();
            let wait_max = Duration::from_millis(500);
            for (gap, want, weight) in asks {
                now += gap;
                if let Grant::Units { units, after } = tat.lease_weighed(&rate, Weight { units: weight, max: 60 }, now, want, wait_max) {
                    starts.push((now + after.as_micros() as u64, units * weight));
                }
            }
            starts.sort();
            let most_at_once = f64::from(starts.iter().map(|(_, units)| *units).max().unwrap_or(0));
            for (first, _) in &starts {
                for window in [1_000u64, 50_000, 1_000_000] {
                    let started: u64 = starts.iter()
                        .filter(|(at, _)| at >= first && *at < first + window)
                        .map(|(_, units)| u64::from(*units)).sum();
                    let bound = window as f64 / rate.interval_us()
                        + f64::from(burst) + 2.0 * most_at_once + 60.0;
                    prop_assert!(started as f64 <= bound, "{started} in {window} µs, bound {bound}");
                }
            }
        }

        /// For any requests, every window starts at most rate × t + burst units, plus the lease
        /// across its edge.
        #[test]
        fn no_window_exceeds_rate_and_burst(
            units in 1u32..5000, burst in 1u32..50,
            asks in prop::collection::vec((0u64..200_000, 1u32..40, 0u64..1000), 1..200),
        ) {
            let rate = Rate { units, period: Duration::from_secs(1), burst, cost: None };
            let mut tat = Tat::default();
            let mut now = 1_000_000;
            let mut starts: Vec<(u64, u32)> = Vec::new();
            for (gap, want, wait_ms) in asks {
                now += gap;
                if let Grant::Units { units, after } = tat.lease(&rate, now, want, Duration::from_millis(wait_ms)) {
                    starts.push((now + after.as_micros() as u64, units));
                }
            }
            starts.sort();
            for (first, _) in &starts {
                for window in [1_000u64, 50_000, 1_000_000] {
                    let started: u64 = starts.iter()
                        .filter(|(at, _)| at >= first && *at < first + window)
                        .map(|(_, units)| u64::from(*units)).sum();
                    let bound = window as f64 / rate.interval_us() + f64::from(burst) + 40.0 + 1.0;
                    prop_assert!(started as f64 <= bound, "{started} in {window} µs, bound {bound}");
                }
            }
        }
    }
}
