//! Tracks the health of a target from its answers. If too many calls fail, the breaker opens and
//! the target is not called for a while. Then it is half-open: this process makes one call at a
//! time, until a call succeeds. When the target answers that calls come too fast, it is not called
//! for a time that grows until it answers normally again.
//!
//! Hundreds of calls are in flight, and all of them fail when a backend goes away. They open the
//! breaker once: calls that fail while it is open do not count.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::breaker::BreakerRule;
use crate::domain::schedule::Schedule;

/// The pause for a target that fails every call.
const OPEN: Schedule = Schedule {
    min: Duration::from_secs(1),
    max: Duration::from_secs(30),
    jitter: 0.1,
};

/// The health of one target, as far as this worker sees it.
#[derive(Debug)]
pub struct Health {
    breaker: Breaker,
    window: Window,
    rule: BreakerRule,
    /// A breaker that opens at the first answer.
    throttle: Breaker,
    /// When the target last answered normally, in milliseconds since 1970.
    answered_ms: AtomicU64,
}

/// Whether a call may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Open,
    /// One call, whose answer decides about the others.
    Probe,
    /// Not before the probe is answered.
    Wait,
}

impl Health {
    pub fn new(rule: BreakerRule) -> Self {
        Self {
            breaker: Breaker::new(rule.failures),
            window: Window::new(rule.window),
            rule,
            throttle: Breaker::new(1),
            answered_ms: AtomicU64::new(0),
        }
    }

    /// The target carried a call out, or refused it for reasons of the recipient.
    pub(crate) fn succeeded(&self, now_ms: u64) {
        self.answers();
        self.throttle.succeeded();
        self.window.note(now_ms, true);
        // A plain load first: all calls share the cache line.
        if now_ms > self.answered_ms.load(Ordering::Relaxed) {
            self.answered_ms.store(now_ms, Ordering::Relaxed);
        }
    }

    /// The target answered, though it did not carry the call out: it does not fail.
    pub(crate) fn answers(&self) {
        if self.breaker.succeeded() {
            self.window.clear();
        }
    }

    pub(crate) fn answered_ms(&self) -> u64 {
        self.answered_ms.load(Ordering::Relaxed)
    }

    /// The pause before the next call to the target, if this failure opens the breaker.
    pub(crate) fn failed(&self, now: Instant, now_ms: u64) -> Option<Duration> {
        if self.breaker.is_open(now) {
            return None;
        }
        let (failed, calls) = self.window.note(now_ms, false);
        let many = failed >= self.rule.failures;
        let opens = many && f64::from(failed) >= self.rule.ratio * f64::from(calls);
        self.breaker.failed(now, opens)
    }

    /// The pause after the target answered that calls come too fast: as long as it asked for, but
    /// at least a wait that grows with each such answer. If it asks for no time, or for a time that
    /// is past, the grown wait applies; otherwise it would be called again at once, without end.
    pub(crate) fn throttled(&self, now: Instant, asked: Option<Duration>) -> Duration {
        let opened = self.throttle.failed(now, false);
        let grown = opened.unwrap_or_else(|| self.throttle.left(now).max(OPEN.min));
        asked.unwrap_or_default().max(grown)
    }

    /// Another worker found that the target fails: here too it is tried with one call first.
    pub(crate) fn failed_elsewhere(&self) {
        self.breaker.half_open();
    }

    /// Whether a call may be made now. A probe that gets no answer within `patience` makes room for
    /// another one.
    pub(crate) fn admit(&self, now: Instant, patience: Duration) -> Admission {
        self.breaker.admit(now, patience)
    }

    /// The probe was not made after all.
    pub(crate) fn probe_unused(&self) {
        self.breaker.probe_until_ms.store(0, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Breaker {
    /// Failures in a row that open it.
    limit: u32,
    failures: AtomicU32,
    /// How often it has opened since the last success.
    opened: AtomicU32,
    /// Until when it is open, in milliseconds since `start`.
    open_until_ms: AtomicU64,
    /// Until when the answer of a probe is awaited, likewise.
    probe_until_ms: AtomicU64,
    start: Instant,
}

impl Breaker {
    fn new(limit: u32) -> Self {
        Self {
            limit,
            failures: AtomicU32::new(0),
            opened: AtomicU32::new(0),
            open_until_ms: AtomicU64::new(0),
            probe_until_ms: AtomicU64::new(0),
            start: Instant::now(),
        }
    }

    /// Closes the breaker; whether it had been open.
    fn succeeded(&self) -> bool {
        // Plain loads first: all calls share the cache line, and the values are nearly always 0.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        if self.opened.load(Ordering::Relaxed) == 0 {
            return false;
        }
        self.probe_until_ms.store(0, Ordering::Relaxed);
        self.opened.swap(0, Ordering::Relaxed) != 0
    }

    fn since_start(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_millis() as u64
    }

    fn is_open(&self, now: Instant) -> bool {
        self.since_start(now) < self.open_until_ms.load(Ordering::Relaxed)
    }

    /// The pause before the next call to the target, if this failure opens the breaker: after
    /// enough failures in a row, if it `opens` anyway, and whenever it was open and has had no
    /// success since.
    fn failed(&self, now: Instant, opens: bool) -> Option<Duration> {
        let now_ms = self.since_start(now);
        let until = self.open_until_ms.load(Ordering::Relaxed);
        if now_ms < until {
            return None;
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let opened = self.opened.load(Ordering::Relaxed);
        if failures < self.limit && !opens && opened == 0 {
            return None;
        }
        let wait = OPEN.delay(opened + 1);
        let open_until = now_ms + wait.as_millis() as u64;
        // Of calls that fail at the same time only one opens it.
        self.open_until_ms
            .compare_exchange(until, open_until, Ordering::Relaxed, Ordering::Relaxed)
            .ok()?;
        self.opened.store(opened + 1, Ordering::Relaxed);
        self.probe_until_ms.store(0, Ordering::Relaxed);
        Some(wait)
    }

    fn half_open(&self) {
        let _ = self
            .opened
            .compare_exchange(0, 1, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn admit(&self, now: Instant, patience: Duration) -> Admission {
        if self.opened.load(Ordering::Relaxed) == 0 {
            return Admission::Open;
        }
        let now_ms = self.since_start(now);
        let awaited = self.probe_until_ms.load(Ordering::Relaxed);
        if now_ms < awaited {
            return Admission::Wait;
        }
        let until = now_ms + (patience.as_millis() as u64).max(1);
        let probes = self.probe_until_ms.compare_exchange(
            awaited,
            until,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        match probes {
            Ok(_) => Admission::Probe,
            Err(_) => Admission::Wait,
        }
    }

    /// How long it stays open.
    fn left(&self, now: Instant) -> Duration {
        let until = self.open_until_ms.load(Ordering::Relaxed);
        Duration::from_millis(until.saturating_sub(self.since_start(now)))
    }
}

/// The calls of the last one to two halves of a window, and how many of them failed. Calls that end
/// at the same moment as a half may be counted in either.
#[derive(Debug)]
struct Window {
    half_ms: u64,
    /// The number of the current half.
    half: AtomicU64,
    now: Counts,
    before: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    calls: AtomicU32,
    failed: AtomicU32,
}

impl Window {
    fn new(length: Duration) -> Self {
        Self {
            half_ms: (length.as_millis() as u64 / 2).max(1),
            half: AtomicU64::new(0),
            now: Counts::default(),
            before: Counts::default(),
        }
    }

    /// Counts a call. Returns the failed calls and all calls of the window.
    fn note(&self, now_ms: u64, succeeded: bool) -> (u32, u32) {
        let (half, last) = (now_ms / self.half_ms, self.half.load(Ordering::Relaxed));
        let moves = || {
            self.half
                .compare_exchange(last, half, Ordering::Relaxed, Ordering::Relaxed)
        };
        if half > last && moves().is_ok() {
            let keeps = half == last + 1;
            for (now, before) in [
                (&self.now.calls, &self.before.calls),
                (&self.now.failed, &self.before.failed),
            ] {
                let count = now.swap(0, Ordering::Relaxed);
                before.store(if keeps { count } else { 0 }, Ordering::Relaxed);
            }
        }
        let add = |count: &AtomicU32, by: u32| count.fetch_add(by, Ordering::Relaxed) + by;
        let calls = add(&self.now.calls, 1);
        if succeeded {
            return (0, 0);
        }
        let failed = add(&self.now.failed, 1);
        let before = |count: &AtomicU32| count.load(Ordering::Relaxed);
        (
            failed.saturating_add(before(&self.before.failed)),
            calls.saturating_add(before(&self.before.calls)),
        )
    }

    fn clear(&self) {
        for counts in [&self.now, &self.before] {
            counts.calls.store(0, Ordering::Relaxed);
            counts.failed.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: BreakerRule = BreakerRule {
        failures: 50,
        ratio: 0.5,
        window: Duration::from_secs(30),
    };

    fn about(wait: Option<Duration>, seconds: f64) {
        let wait = wait.unwrap().as_secs_f64();
        assert!((seconds * 0.89..seconds * 1.11).contains(&wait), "{wait}");
    }

    #[test]
    fn many_failures_at_once_open_it_once() {
        let breaker = Breaker::new(5);
        let now = breaker.start;
        for _ in 0..4 {
            assert_eq!(breaker.failed(now, false), None);
        }
        about(breaker.failed(now, false), 1.0);
        for _ in 0..1000 {
            assert_eq!(breaker.failed(now, false), None);
        }
    }

    #[test]
    fn each_failure_after_it_was_open_opens_it_for_longer() {
        let breaker = Breaker::new(2);
        let mut now = breaker.start;
        assert_eq!(breaker.failed(now, false), None);
        for seconds in [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0] {
            let wait = breaker.failed(now, false);
            about(wait, seconds);
            now += wait.unwrap();
        }
        breaker.succeeded();
        assert_eq!(breaker.failed(now, false), None);
        about(breaker.failed(now, false), 1.0);
    }

    /// Successes in between keep the failures in a row low; the ratio opens it all the same.
    #[test]
    fn a_share_of_failures_in_the_window_opens_it() {
        let run = |failing: u32, of: u32, calls: u32| {
            let health = Health::new(RULE);
            let now = health.breaker.start;
            (0..calls).position(|call| match call % of < failing {
                true => health.failed(now, u64::from(call)).is_some(),
                false => {
                    health.succeeded(u64::from(call));
                    false
                }
            })
        };
        assert_eq!(run(1, 1, 1000), Some(49), "all fail");
        assert_eq!(
            run(2, 3, 1000),
            Some(73),
            "two of three: not before the 50th failure"
        );
        assert_eq!(run(1, 3, 10_000), None, "a third");
        assert_eq!(run(1, 2, 98), None, "too few calls");
        // The first window is over when the 50th failure comes.
        let health = Health::new(RULE);
        let now = health.breaker.start;
        for call in 0..1000 {
            health.succeeded(call * 1000);
            assert_eq!(health.failed(now, call * 1000), None);
        }
    }

    #[test]
    fn a_half_open_target_gets_one_call_at_a_time() {
        let health = Health::new(RULE);
        let patience = Duration::from_secs(10);
        let mut now = health.breaker.start;
        let admit = |now| health.admit(now, patience);
        assert_eq!(admit(now), Admission::Open);
        let wait = (0..50).find_map(|_| health.failed(now, 0)).unwrap();
        now += wait;
        assert_eq!(
            [admit(now), admit(now)],
            [Admission::Probe, Admission::Wait]
        );
        // It fails: open for longer, then another probe.
        let wait = health.failed(now, 0);
        about(wait, 2.0);
        now += wait.unwrap();
        assert_eq!(
            [admit(now), admit(now)],
            [Admission::Probe, Admission::Wait]
        );
        // A probe that was not made, or that no answer came to, makes room for the next.
        health.probe_unused();
        assert_eq!(
            [admit(now), admit(now)],
            [Admission::Probe, Admission::Wait]
        );
        now += patience;
        assert_eq!(
            [admit(now), admit(now)],
            [Admission::Probe, Admission::Wait]
        );
        health.succeeded(1);
        assert_eq!([admit(now), admit(now)], [Admission::Open; 2]);
        // What failed before does not open it again.
        assert_eq!(health.failed(now, 2), None);
        health.failed_elsewhere();
        assert_eq!(
            [admit(now), admit(now)],
            [Admission::Probe, Admission::Wait]
        );
        about(health.failed(now, 2), 2.0);
    }

    #[test]
    fn a_throttled_target_waits_for_longer_each_time_whatever_it_asks_for() {
        for asked in [None, Some(Duration::ZERO)] {
            let health = Health::new(RULE);
            let mut now = health.throttle.start;
            for seconds in [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0] {
                let wait = health.throttled(now, asked);
                about(Some(wait), seconds);
                // Calls that were in flight get the same answer, which counts once.
                let again = health.throttled(now + wait / 2, asked);
                assert!(
                    again >= OPEN.min && again <= wait.max(OPEN.min),
                    "{again:?}"
                );
                now += wait;
            }
            health.succeeded(1);
            about(Some(health.throttled(now, asked)), 1.0);
        }
    }

    #[test]
    fn a_throttled_target_gets_the_time_that_it_asks_for() {
        let health = Health::new(RULE);
        let asked = Some(Duration::from_secs(60));
        let now = health.throttle.start;
        assert_eq!(health.throttled(now, asked), Duration::from_secs(60));
        assert_eq!(health.throttled(now, asked), Duration::from_secs(60));
    }
}
