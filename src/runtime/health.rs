//! Tracks the health of a target from its answers. After too many failures in a row the breaker
//! opens and the target is not called for a while. When the target answers that calls come too
//! fast, it is not called for a time that grows until it answers normally again.
//!
//! Hundreds of calls are in flight, and all of them fail when a backend goes away. They count as
//! one failure: calls that fail while the breaker is open do not count.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

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
    /// A breaker that opens at the first answer.
    throttle: Breaker,
    /// When the target last answered normally, in milliseconds since 1970.
    answered_ms: AtomicU64,
}

impl Health {
    /// `failures`: failed calls in a row that open the breaker.
    pub fn new(failures: u32) -> Self {
        Self {
            breaker: Breaker::new(failures),
            throttle: Breaker::new(1),
            answered_ms: AtomicU64::new(0),
        }
    }

    /// The target carried a call out, or refused it for reasons of the recipient.
    pub(crate) fn succeeded(&self, now_ms: u64) {
        self.breaker.succeeded();
        self.throttle.succeeded();
        // A plain load first: all calls share the cache line.
        if now_ms > self.answered_ms.load(Ordering::Relaxed) {
            self.answered_ms.store(now_ms, Ordering::Relaxed);
        }
    }

    pub(crate) fn answered_ms(&self) -> u64 {
        self.answered_ms.load(Ordering::Relaxed)
    }

    /// The pause before the next call to the target, if this failure opens the breaker.
    pub(crate) fn failed(&self, now: Instant) -> Option<Duration> {
        self.breaker.failed(now)
    }

    /// The pause after the target answered that calls come too fast: as long as it asked for, but
    /// at least a wait that grows with each such answer. If it asks for no time, or for a time that
    /// is past, the grown wait applies; otherwise it would be called again at once, without end.
    pub(crate) fn throttled(&self, now: Instant, asked: Option<Duration>) -> Duration {
        let opened = self.throttle.failed(now);
        let grown = opened.unwrap_or_else(|| self.throttle.left(now).max(OPEN.min));
        asked.unwrap_or_default().max(grown)
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
    start: Instant,
}

impl Breaker {
    fn new(limit: u32) -> Self {
        Self {
            limit,
            failures: AtomicU32::new(0),
            opened: AtomicU32::new(0),
            open_until_ms: AtomicU64::new(0),
            start: Instant::now(),
        }
    }

    fn succeeded(&self) {
        // A plain load first: all calls share the cache line, and the value is nearly always 0.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.opened.store(0, Ordering::Relaxed);
        }
    }

    /// The pause before the next call to the target, if this failure opens the breaker. Once it has
    /// opened, each further failure after that time opens it again.
    fn failed(&self, now: Instant) -> Option<Duration> {
        let now_ms = now.saturating_duration_since(self.start).as_millis() as u64;
        let until = self.open_until_ms.load(Ordering::Relaxed);
        if now_ms < until {
            return None;
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures < self.limit {
            return None;
        }
        let opened = self.opened.load(Ordering::Relaxed) + 1;
        let wait = OPEN.delay(opened);
        let open_until = now_ms + wait.as_millis() as u64;
        // Of calls that fail at the same time only one opens it.
        self.open_until_ms
            .compare_exchange(until, open_until, Ordering::Relaxed, Ordering::Relaxed)
            .ok()?;
        self.opened.store(opened, Ordering::Relaxed);
        Some(wait)
    }

    /// How long it stays open.
    fn left(&self, now: Instant) -> Duration {
        let now_ms = now.saturating_duration_since(self.start).as_millis() as u64;
        let until = self.open_until_ms.load(Ordering::Relaxed);
        Duration::from_millis(until.saturating_sub(now_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(wait: Option<Duration>, seconds: f64) {
        let wait = wait.unwrap().as_secs_f64();
        assert!((seconds * 0.89..seconds * 1.11).contains(&wait), "{wait}");
    }

    #[test]
    fn many_failures_at_once_open_it_once() {
        let breaker = Breaker::new(5);
        let now = breaker.start;
        for _ in 0..4 {
            assert_eq!(breaker.failed(now), None);
        }
        about(breaker.failed(now), 1.0);
        for _ in 0..1000 {
            assert_eq!(breaker.failed(now), None);
        }
    }

    #[test]
    fn each_failure_after_it_was_open_opens_it_for_longer() {
        let breaker = Breaker::new(2);
        let mut now = breaker.start;
        assert_eq!(breaker.failed(now), None);
        for seconds in [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0] {
            let wait = breaker.failed(now);
            about(wait, seconds);
            now += wait.unwrap();
        }
        breaker.succeeded();
        assert_eq!(breaker.failed(now), None);
        about(breaker.failed(now), 1.0);
    }

    #[test]
    fn a_throttled_target_waits_for_longer_each_time_whatever_it_asks_for() {
        for asked in [None, Some(Duration::ZERO)] {
            let health = Health::new(50);
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
        let health = Health::new(50);
        let asked = Some(Duration::from_secs(60));
        let now = health.throttle.start;
        assert_eq!(health.throttled(now, asked), Duration::from_secs(60));
        assert_eq!(health.throttled(now, asked), Duration::from_secs(60));
    }
}
