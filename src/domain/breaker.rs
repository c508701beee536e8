//! The rule by which the breaker of a target opens.

use std::time::Duration;

/// When the breaker of a target opens: after so many failures in a row, or as many within the
/// window if they are at least this share of the window's calls.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakerRule {
    pub failures: u32,
    pub ratio: f64,
    pub window: Duration,
}
