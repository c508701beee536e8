//! Logs when a target stops and when it moves again: once for each change, not for each call
//! (promise 12).
//!
//! A backend that is down is parked for a second, tried, then parked for two seconds: that is one
//! stop. It moves again once it has answered normally and was not parked for a while.

use std::collections::HashMap;

use parking_lot::{Mutex, MutexGuard};

use crate::ports::{Park, ParkReason};

/// A target that is parked again within this time did not move in between.
const QUIET_MS: u64 = 3_000;

/// A target that was not parked for this long counts as moving, even if this worker has not called
/// it.
const IDLE_MS: u64 = 60_000;

/// The targets that the log has reported as stopped.
#[derive(Debug, Default)]
pub(crate) struct TargetStandstills(Mutex<HashMap<String, Stopped>>);

#[derive(Debug)]
struct Stopped {
    reason: ParkReason,
    since_ms: u64,
    /// Since when it has not been parked; none while it is parked.
    free_ms: Option<u64>,
}

/// A line for the log.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Stops { seconds: u64 },
    Moves { seconds: u64 },
}

impl TargetStandstills {
    /// Notes the state of a target now. Must be called often, since a park also ends with time.
    pub(crate) fn note(&self, target: &str, park: Option<&Park>, answered_ms: u64, now_ms: u64) {
        match (self.change(target, park, answered_ms, now_ms), park) {
            (Some(Line::Stops { seconds }), Some(park)) => tell_stop(target, park, seconds),
            (Some(Line::Moves { seconds }), _) => {
                tracing::info!("target {target} moves again after {seconds} s");
            }
            (Some(Line::Stops { .. }) | None, _) => {}
        }
    }

    /// An operator ended the parking of a target before its time.
    pub(crate) fn unparked(&self, target: &str) {
        if self.lock().remove(target).is_some() {
            tracing::info!("target {target} is unparked");
        }
    }

    fn change(
        &self,
        target: &str,
        park: Option<&Park>,
        answered_ms: u64,
        now_ms: u64,
    ) -> Option<Line> {
        let mut stopped = self.lock();
        let Some(park) = park else {
            let it = stopped.get_mut(target)?;
            let free_ms = *it.free_ms.get_or_insert(now_ms);
            let free = now_ms.saturating_sub(free_ms);
            let moves = free >= IDLE_MS || (free >= QUIET_MS && answered_ms > it.since_ms);
            let seconds = free_ms.saturating_sub(it.since_ms) / 1000;
            return moves.then(|| {
                stopped.remove(target);
                Line::Moves { seconds }
            });
        };
        let seconds = park.until_ms.saturating_sub(now_ms).div_ceil(1000);
        let Some(it) = stopped.get_mut(target) else {
            let it = Stopped {
                reason: park.reason,
                since_ms: park.since_ms,
                free_ms: None,
            };
            stopped.insert(target.to_owned(), it);
            return Some(Line::Stops { seconds });
        };
        it.free_ms = None;
        let changed = it.reason != park.reason;
        it.reason = park.reason;
        changed.then_some(Line::Stops { seconds })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Stopped>> {
        self.0.lock()
    }
}

fn tell_stop(target: &str, park: &Park, seconds: u64) {
    match park.reason {
        ParkReason::Operator => {
            tracing::info!("target {target} is parked: {park}, for {seconds} s");
        }
        ParkReason::Config => tracing::error!(
            "target {target} is parked: {park}, no recipient is dead-lettered, next try in \
             {seconds} s"
        ),
        ParkReason::Throttled | ParkReason::Unreachable | ParkReason::Breaker => {
            tracing::warn!("target {target} is parked: {park}, next try in {seconds} s");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn park(reason: ParkReason, since_ms: u64, seconds: u64) -> Park {
        Park {
            since_ms,
            until_ms: since_ms + seconds * 1000,
            reason,
            code: "refused".to_owned(),
            text: "cannot connect".to_owned(),
        }
    }

    #[test]
    fn an_outage_is_two_lines_however_often_the_target_is_tried() {
        let standstills = TargetStandstills::default();
        let mut now = 1_000_000;
        let mut lines = Vec::new();
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            let park = park(ParkReason::Unreachable, now, seconds);
            lines.extend(standstills.change("im", Some(&park), 0, now));
            now += seconds * 1000 + 500;
            lines.extend(standstills.change("im", None, 0, now));
            now += 500;
        }
        assert_eq!(lines, [Line::Stops { seconds: 1 }]);
        // It answers, and is not parked again.
        let answered = now;
        assert_eq!(standstills.change("im", None, answered, now + 1000), None);
        let line = standstills.change("im", None, answered, now + 3000);
        assert_eq!(line, Some(Line::Moves { seconds: 97 }));
        assert_eq!(standstills.change("im", None, answered, now + 9000), None);
    }

    #[test]
    fn another_reason_is_another_line() {
        let standstills = TargetStandstills::default();
        let of = |reason| standstills.change("im", Some(&park(reason, 1_000, 5)), 0, 1_000);
        let line = Some(Line::Stops { seconds: 5 });
        assert_eq!(of(ParkReason::Breaker), line);
        assert_eq!(of(ParkReason::Breaker), None);
        assert_eq!(of(ParkReason::Throttled), line);
        assert_eq!(standstills.change("crm", None, 0, 1_000), None);
    }

    #[test]
    fn a_target_that_nobody_calls_is_called_moving_after_a_while() {
        let standstills = TargetStandstills::default();
        let park = park(ParkReason::Throttled, 0, 1);
        standstills.change("im", Some(&park), 0, 0);
        assert_eq!(standstills.change("im", None, 0, 1_000), None);
        assert_eq!(standstills.change("im", None, 0, 60_000), None);
        let line = standstills.change("im", None, 0, 61_000);
        assert_eq!(line, Some(Line::Moves { seconds: 1 }));
    }
}
