//! Counts quotas: a number of calls of an app in a time, and a block after a further call, during
//! which every call fails. The block resets the count: after it, the app may make all its calls
//! again.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::duration::{duration_text, parse_duration};

/// Written `120/1m/60s`: 120 calls in any minute, then a block of 60 seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    pub calls: usize,
    pub window: Duration,
    pub block: Duration,
}

/// A text that is not a quota.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a quota: give CALLS/TIME/BLOCK, for example 120/1m/60s")]
pub struct QuotaError(String);

impl FromStr for Quota {
    type Err = QuotaError;

    fn from_str(text: &str) -> Result<Quota, QuotaError> {
        let wrong = || QuotaError(text.to_owned());
        let parts: Vec<&str> = text.split('/').collect();
        let [calls, window, block] = parts[..] else {
            return Err(wrong());
        };
        Ok(Quota {
            calls: calls.parse().map_err(|_| wrong())?,
            window: parse_duration(window).map_err(|_| wrong())?,
            block: parse_duration(block).map_err(|_| wrong())?,
        })
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (window, block) = (duration_text(self.window), duration_text(self.block));
        write!(formatter, "{}/{window}/{block}", self.calls)
    }
}

/// The quota of one kind of call, kept for each app.
pub(crate) struct Gate {
    quota: Option<Quota>,
    apps: Mutex<HashMap<String, Recent>>,
}

#[derive(Default)]
struct Recent {
    /// The times of the calls within the window; never more than the quota allows.
    calls: VecDeque<Instant>,
    blocked_until: Option<Instant>,
}

impl Gate {
    pub(crate) fn new(quota: Option<Quota>) -> Gate {
        Gate {
            quota,
            apps: Mutex::default(),
        }
    }

    /// Counts the call; false if the app is blocked, or becomes blocked by this call.
    pub(super) fn admits(&self, app: &str, now: Instant) -> bool {
        let Some(quota) = &self.quota else {
            return true;
        };
        let mut apps = self.apps.lock().unwrap_or_else(PoisonError::into_inner);
        apps.entry(app.to_owned()).or_default().admits(quota, now)
    }
}

impl Recent {
    fn admits(&mut self, quota: &Quota, now: Instant) -> bool {
        match self.blocked_until {
            Some(until) if now < until => return false,
            Some(_) => *self = Recent::default(),
            None => {}
        }
        let is_over = |call: &Instant| now.duration_since(*call) >= quota.window;
        while self.calls.front().is_some_and(is_over) {
            self.calls.pop_front();
        }
        if self.calls.len() >= quota.calls {
            self.blocked_until = Some(now + quota.block);
            return false;
        }
        self.calls.push_back(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a call above the quota blocks this app alone, exactly for the configured time. Method:
    /// the gate alone, with a clock passed in.
    #[test]
    fn gate_blocks_for_its_time() {
        let gate = Gate::new(Some("2/1m/30s".parse().unwrap()));
        let begun = Instant::now();
        let admits = |app: &str, seconds| gate.admits(app, begun + Duration::from_secs(seconds));
        assert!(admits("a", 0) && admits("a", 10));
        // The first call is a minute old, so the third is within the quota.
        assert!(admits("a", 60));
        assert!(!admits("a", 69));
        assert!(admits("b", 69));
        // Calls during the block fail and do not lengthen it.
        assert!(!admits("a", 98));
        assert!(admits("a", 99) && admits("a", 99));
        assert!(!admits("a", 99));
        assert!(Gate::new(None).admits("a", begun));
    }

    #[test]
    fn quota_is_read_as_written() {
        let quota: Quota = "20/1s/100ms".parse().unwrap();
        assert_eq!(quota.block, Duration::from_millis(100));
        assert_eq!(quota.to_string(), "20/1s/100ms");
        for wrong in ["", "20", "20/1s", "x/1s/1s", "1/1s/1s/1s", "1/1/1"] {
            assert!(wrong.parse::<Quota>().is_err(), "{wrong}");
        }
    }
}
