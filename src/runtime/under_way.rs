//! Counts the calls under way to one target and knows when the oldest started. Operators see it
//! when they ask why a job does not move.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::context::Context;
use crate::ports::UnderWay;

/// Calls that are not answered yet.
#[derive(Default)]
pub struct CallsUnderWay(Mutex<Calls>);

#[derive(Default)]
struct Calls {
    number: u64,
    /// In the order of their start.
    begun: BTreeSet<(Instant, u64)>,
}

/// Removes its call when dropped, so a call that is cancelled ends too.
pub(crate) struct CallUnderWay<'a> {
    of: &'a CallsUnderWay,
    call: (Instant, u64),
}

impl CallsUnderWay {
    fn calls(&self) -> parking_lot::MutexGuard<'_, Calls> {
        self.0.lock()
    }

    pub(crate) fn begin(&self) -> CallUnderWay<'_> {
        let mut calls = self.calls();
        calls.number += 1;
        let call = (Instant::now(), calls.number);
        calls.begun.insert(call);
        CallUnderWay { of: self, call }
    }

    fn now(&self, now: Instant) -> Option<UnderWay> {
        let calls = self.calls();
        let (oldest, _) = calls.begun.first()?;
        Some(UnderWay {
            calls: calls.begun.len() as u64,
            oldest_ms: now.saturating_duration_since(*oldest).as_millis() as u64,
        })
    }
}

impl CallUnderWay<'_> {
    pub(crate) fn began(&self) -> Instant {
        self.call.0
    }
}

impl Drop for CallUnderWay<'_> {
    fn drop(&mut self) {
        self.of.calls().begun.remove(&self.call);
    }
}

impl<S, T> Context<S, T> {
    /// The calls of this process under way, by target.
    pub(crate) fn calls_under_way(&self) -> std::collections::BTreeMap<String, UnderWay> {
        let now = Instant::now();
        let targets = self.targets.iter();
        targets
            .filter_map(|(name, target)| Some((name.clone(), target.under_way.now(now)?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_oldest_call_under_way_is_known_until_it_ends() {
        let calls = CallsUnderWay::default();
        assert_eq!(calls.now(Instant::now()), None);
        let first = calls.begin();
        let second = calls.begin();
        let later = first.call.0 + Duration::from_secs(6);
        let told = calls.now(later).unwrap();
        assert_eq!((told.calls, told.oldest_ms), (2, 6000));
        let from_second = later.duration_since(second.call.0).as_millis() as u64;
        drop(first);
        let told = calls.now(later).unwrap();
        assert_eq!((told.calls, told.oldest_ms), (1, from_second));
        drop(second);
        assert_eq!(calls.now(later), None);
    }
}
