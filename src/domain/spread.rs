//! Spreads the recipients of a job evenly over the time until a moment (`pace_until`).
//!
//! The pace is a rate of the job: its pending recipients, over the time that is left. Every worker
//! derives it again and again, so it follows a list that still arrives, retries and pauses, and all
//! recipients are sent to by that moment unless something else is slower. All workers book the rate,
//! however it changes, with one limiter of the job ([`LimitScope::Pace`]).
//!
//! Within sending hours only the hours count in which the job may be sent.
//!
//! [`LimitScope::Pace`]: crate::domain::limits::LimitScope::Pace

use std::time::Duration;

use super::limits::{Cost, Rate};
use super::window::Window;

/// The rate that spreads so many recipients over this time; `None` if there is nothing to spread.
pub fn rate(pending: u64, left: Duration) -> Option<Rate> {
    if pending == 0 || left < Duration::from_millis(1) {
        return None;
    }
    let units = u32::try_from(pending).unwrap_or(u32::MAX);
    Some(Rate::spread(units, left, Cost::PerRecipient))
}

/// The time between two moments in which all these windows are open. If they are open at no time,
/// the whole time: a job with the zones of its recipients may still have some to send to.
pub fn left<'a>(
    windows: &(impl Iterator<Item = &'a Window> + Clone),
    now_ms: u64,
    until_ms: u64,
) -> Duration {
    let mut open_ms = 0;
    let mut at = now_ms;
    while at < until_ms {
        if let Some(opens) = windows.clone().filter_map(|it| it.opens_ms(at)).max() {
            at = opens;
            continue;
        }
        let closes = windows.clone().filter_map(|it| it.closes_ms(at)).min();
        let end = closes.unwrap_or(until_ms).min(until_ms);
        open_ms += end - at;
        at = end;
    }
    match open_ms {
        0 => Duration::from_millis(until_ms.saturating_sub(now_ms)),
        open_ms => Duration::from_millis(open_ms),
    }
}

/// When all these windows have been open for so long, from a moment on. With no time needed, when
/// they are first open.
pub fn end_ms<'a>(
    windows: &(impl Iterator<Item = &'a Window> + Clone),
    from_ms: u64,
    needed: Duration,
) -> u64 {
    let mut needed = needed.as_millis() as u64;
    let mut at = from_ms;
    // Windows that are never open together would take for ever.
    let last = from_ms.saturating_add(LONGEST_MS);
    while at < last {
        if let Some(opens) = windows.clone().filter_map(|it| it.opens_ms(at)).max() {
            at = opens;
            continue;
        }
        let closes = windows.clone().filter_map(|it| it.closes_ms(at)).min();
        let open = closes.map_or(u64::MAX, |closes| closes - at);
        if needed <= open {
            return at.saturating_add(needed);
        }
        needed -= open;
        at += open;
    }
    at.saturating_add(needed)
}

/// The time within which the hours of windows are counted.
const LONGEST_MS: u64 = 366 * 24 * 3600 * 1000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::limits::{Grant, Tat};

    const HOUR_MS: u64 = 3_600_000;

    /// Midnight of 2026-01-01 in UTC.
    const MIDNIGHT: u64 = 1_767_225_600_000;

    fn hours_left(windows: &[&str], from: u64, until: u64) -> f64 {
        let windows: Vec<Window> = windows.iter().map(|it| it.parse().unwrap()).collect();
        let (from, until) = (MIDNIGHT + from * HOUR_MS, MIDNIGHT + until * HOUR_MS);
        left(&windows.iter(), from, until).as_secs_f64() / 3600.0
    }

    #[test]
    fn only_hours_that_are_open_count() {
        assert_eq!(hours_left(&[], 6, 30), 24.0);
        assert_eq!(hours_left(&["09:00-21:00 UTC"], 6, 30), 12.0);
        assert_eq!(hours_left(&["09:00-21:00 UTC"], 12, 36), 12.0);
        assert_eq!(hours_left(&["21:00-06:00 UTC"], 0, 24), 9.0);
        let both = ["09:00-21:00 UTC", "18:00-23:00 UTC"];
        assert_eq!(hours_left(&both, 0, 48), 6.0);
        // Windows that are never open together, and one that is closed until the end.
        let never = ["09:00-10:00 UTC", "18:00-23:00 UTC"];
        assert_eq!(hours_left(&never, 0, 48), 48.0);
        assert_eq!(hours_left(&["09:00-21:00 UTC"], 22, 30), 8.0);
        // A year, with both changes of the clock.
        let berlin = hours_left(&["00:00-12:00 Europe/Berlin"], 0, 365 * 24);
        assert_eq!(berlin, 365.0 * 12.0);
        assert_eq!(hours_left(&[], 30, 6), 0.0);
    }

    #[test]
    fn work_ends_when_the_hours_were_open_for_as_long_as_it_takes() {
        let end = |windows: &[&str], from: u64, hours: u64| {
            let windows: Vec<Window> = windows.iter().map(|it| it.parse().unwrap()).collect();
            let needed = Duration::from_secs(hours * 3600);
            (end_ms(&windows.iter(), MIDNIGHT + from * HOUR_MS, needed) - MIDNIGHT) / HOUR_MS
        };
        assert_eq!(end(&[], 6, 30), 36);
        let day = ["09:00-21:00 UTC"];
        assert_eq!(
            [end(&day, 6, 0), end(&day, 6, 1), end(&day, 10, 0)],
            [9, 10, 10]
        );
        assert_eq!(
            [end(&day, 10, 11), end(&day, 10, 12), end(&day, 10, 36)],
            [21, 34, 82]
        );
        let never = ["09:00-10:00 UTC", "18:00-23:00 UTC"];
        assert!(end(&never, 0, 1) >= 366 * 24);
    }

    proptest! {
        /// The time that is left until the end of work is what the work takes.
        #[test]
        fn what_is_left_until_the_end_is_what_was_needed(
            from in 0u64..48, minutes in 1u64..6000, open in 0u64..24, length in 1u64..24,
        ) {
            let hours = format!("{:02}:00-{:02}:00 Europe/Berlin", open, (open + length) % 24);
            let windows = [hours.parse::<Window>().unwrap()];
            let (from, needed) = (MIDNIGHT + from * HOUR_MS, Duration::from_secs(minutes * 60));
            let end = end_ms(&windows.iter(), from, needed);
            prop_assert_eq!(left(&windows.iter(), from, end), needed);
        }
    }

    #[test]
    fn nothing_is_spread_over_no_time() {
        assert_eq!(rate(0, Duration::from_secs(1)), None);
        assert_eq!(rate(5, Duration::ZERO), None);
        let rate = rate(u64::MAX, Duration::from_secs(1)).unwrap();
        assert_eq!(rate.units, u32::MAX);
    }

    /// When each recipient is sent to, in seconds, if a worker derives the rate before each and its
    /// knowledge is `stale` seconds old.
    fn starts(recipients: u64, seconds: u64, stale: f64) -> Vec<f64> {
        let (mut tat, mut now, mut starts) = (Tat::default(), 0.0_f64, Vec::new());
        let (mut known, mut at) = (None, f64::MIN);
        while (starts.len() as u64) < recipients {
            if now - at >= stale {
                let left = Duration::from_secs_f64((seconds as f64 - now).max(0.0));
                (known, at) = (rate(recipients - starts.len() as u64, left), now);
            }
            let Some(rate) = known else {
                starts.push(now);
                continue;
            };
            let wait = Duration::from_secs(1);
            match tat.lease(&rate, 1 + (now * 1e6) as u64, 1, wait) {
                Grant::Units { after, .. } => {
                    now += after.as_secs_f64();
                    starts.push(now);
                }
                Grant::Later { after } => now += after.as_secs_f64(),
            }
        }
        starts
    }

    proptest! {
        /// At every moment the share of the recipients that were sent to is the share of the time
        /// that has passed, but for the burst.
        #[test]
        fn recipients_go_out_evenly(
            recipients in 1u64..400, seconds in 1u64..100_000, stale in 0.0f64..3.0,
        ) {
            let starts = starts(recipients, seconds, stale);
            let (all, time) = (recipients as f64, seconds as f64);
            let burst = (0.2 * all / time).max(1.0) + 1.0;
            // What was known once holds on for as long as it may be stale.
            let slack = burst + all * stale.min(time) / time;
            for (sent, at) in starts.iter().enumerate() {
                let expected = all * at / time;
                prop_assert!((sent as f64) <= expected + slack, "{sent} at {at} of {expected}");
                prop_assert!((sent as f64) >= expected - slack, "{sent} at {at} of {expected}");
            }
        }
    }
}
