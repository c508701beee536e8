//! The breaker of a target: after too many failures in a row it is left alone, for longer each time.
//!
//! Hundreds of calls are in flight, and all of them fail when a backend goes away. Those are one failure
//! of the backend and not many: what fails while the breaker is open counts for nothing.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::domain::schedule::Schedule;

/// How long a target that fails every call is left alone.
const OPEN: Schedule = Schedule {
    min: Duration::from_secs(1),
    max: Duration::from_secs(30),
    jitter: 0.1,
};

#[derive(Debug)]
pub struct Breaker {
    /// Failures in a row that open it.
    limit: u32,
    failures: AtomicU32,
    /// How often it has opened since the last success.
    opened: AtomicU32,
    /// Until when it is open, in milliseconds from its start.
    open_until_ms: AtomicU64,
    start: Instant,
}

impl Breaker {
    pub fn new(limit: u32) -> Self {
        Self {
            limit,
            failures: AtomicU32::new(0),
            opened: AtomicU32::new(0),
            open_until_ms: AtomicU64::new(0),
            start: Instant::now(),
        }
    }

    pub(super) fn succeeded(&self) {
        // A plain load first: the line is shared by all calls and nearly always 0 already.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.opened.store(0, Ordering::Relaxed);
        }
    }

    /// For how long the target is to be left alone, if this failure is one too many. Once it has opened,
    /// the next failure is.
    pub(super) fn failed(&self, now: Instant) -> Option<Duration> {
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
        // Of calls that fail at the same time one opens it.
        self.open_until_ms
            .compare_exchange(until, open_until, Ordering::Relaxed, Ordering::Relaxed)
            .ok()?;
        self.opened.store(opened, Ordering::Relaxed);
        Some(wait)
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
}
