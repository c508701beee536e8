//! Calls under way to one target, and since when: what people are told who ask why a job does not move.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::context::Context;
use crate::ports::UnderWay;

/// Calls whose answer has not come yet.
#[derive(Default)]
pub struct Flight(Mutex<Calls>);

#[derive(Default)]
struct Calls {
    number: u64,
    /// In the order of their start.
    begun: BTreeSet<(Instant, u64)>,
}

/// Ends with its call, also when that is dropped.
pub(super) struct InFlight<'a> {
    flight: &'a Flight,
    call: (Instant, u64),
}

impl Flight {
    fn calls(&self) -> std::sync::MutexGuard<'_, Calls> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self) -> InFlight<'_> {
        let mut calls = self.calls();
        calls.number += 1;
        let call = (Instant::now(), calls.number);
        calls.begun.insert(call);
        InFlight { flight: self, call }
    }

    fn under_way(&self, now: Instant) -> Option<UnderWay> {
        let calls = self.calls();
        let (oldest, _) = calls.begun.first()?;
        Some(UnderWay {
            calls: calls.begun.len() as u64,
            oldest_ms: now.saturating_duration_since(*oldest).as_millis() as u64,
        })
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.flight.calls().begun.remove(&self.call);
    }
}

impl<S, T> Context<S, T> {
    /// The calls of this process under way, by target.
    pub(super) fn calls_under_way(&self) -> std::collections::BTreeMap<String, UnderWay> {
        let now = Instant::now();
        let targets = self.targets.iter();
        targets
            .filter_map(|(name, target)| Some((name.clone(), target.flight.under_way(now)?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_oldest_call_under_way_is_known_until_it_ends() {
        let flight = Flight::default();
        assert_eq!(flight.under_way(Instant::now()), None);
        let first = flight.begin();
        let second = flight.begin();
        let later = first.call.0 + Duration::from_secs(6);
        let told = flight.under_way(later).unwrap();
        assert_eq!((told.calls, told.oldest_ms), (2, 6000));
        let from_second = later.duration_since(second.call.0).as_millis() as u64;
        drop(first);
        let told = flight.under_way(later).unwrap();
        assert_eq!((told.calls, told.oldest_ms), (1, from_second));
        drop(second);
        assert_eq!(flight.under_way(later), None);
    }
}
