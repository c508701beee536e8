//! The label values that exist from the start, so that a rise from nothing is a rise for an alert
//! too.

use super::Metrics;
use super::labels::{
    AskedResult, Bound, JobResult, LedgerStep, ListResult, NoticeKind, NoticeResult, SliceResult,
    SpanResult,
};
use super::record::{CLAIM_STATES, TargetMetrics};
use crate::domain::announce::EventKind;
use crate::domain::lane::Priority;
use crate::domain::limits::LimitScope;
use crate::domain::outcome::{Class, OnUncertain, Outcome};
use crate::ports::ParkReason;
use crate::version::COMMIT;

impl Metrics {
    pub(super) fn expose_zeros(&self) {
        JobResult::ALL
            .iter()
            .for_each(|r| self.jobs.with_label_values(&[r.as_str()]).inc_by(0));
        SliceResult::ALL
            .iter()
            .for_each(|r| self.slices.with_label_values(&[r.as_str()]).inc_by(0));
        for &step in LedgerStep::ALL {
            self.ledger_errors
                .with_label_values(&[step.as_str()])
                .inc_by(0);
        }
        for &scope in LimitScope::ALL {
            for result in ["allowed", "limited"] {
                self.throttle
                    .with_label_values(&[scope.as_str(), result])
                    .inc_by(0);
            }
        }
        for state in CLAIM_STATES {
            self.claims.with_label_values(&[state]).inc_by(0);
        }
        for &bound in Bound::ALL {
            self.http_refused
                .with_label_values(&[bound.as_str()])
                .inc_by(0);
        }
        for &priority in Priority::ALL {
            self.outcome_seconds.with_label_values(&[priority.as_str()]);
        }
        self.directives(Default::default());
        for event in [
            EventKind::Accepted,
            EventKind::Progress,
            EventKind::Completed,
        ] {
            self.events.with_label_values(&[event.as_str()]).inc_by(0);
        }
        for &kind in NoticeKind::ALL {
            for &result in NoticeResult::ALL {
                self.notices
                    .with_label_values(&[kind.as_str(), result.as_str()])
                    .inc_by(0);
            }
        }
        for &result in AskedResult::ALL {
            self.before_accept
                .with_label_values(&[result.as_str()])
                .inc_by(0);
        }
        for &result in ListResult::ALL {
            self.list_reads
                .with_label_values(&[result.as_str()])
                .inc_by(0);
        }
        for &result in SpanResult::ALL {
            self.spans(result, 0);
        }
        self.build_info
            .with_label_values(&[env!("CARGO_PKG_VERSION"), COMMIT.unwrap_or("unknown")])
            .set(1);
    }

    /// The handles of one target. From now on every label value of it exists.
    pub fn target(&self, target: &str) -> TargetMetrics {
        for outcome in [Outcome::Failed, Outcome::Uncertain] {
            self.dead_letters
                .with_label_values(&[target, outcome.as_str()])
                .inc_by(0);
        }
        for policy in OnUncertain::ALL {
            self.uncertain
                .with_label_values(&[target, policy.as_str()])
                .inc_by(0);
        }
        for &reason in ParkReason::ALL {
            self.target_parks
                .with_label_values(&[target, reason.as_str()])
                .inc_by(0);
        }
        self.parked(target, None);
        self.paused(target, false);
        TargetMetrics {
            classes: Class::ALL
                .iter()
                .map(|class| self.calls.with_label_values(&[target, class.as_str()]))
                .collect(),
            outcomes: Outcome::ALL
                .iter()
                .map(|outcome| {
                    self.recipients
                        .with_label_values(&[target, outcome.as_str()])
                })
                .collect(),
            unreached: self.unreached.with_label_values(&[target]),
            seconds: self.call_seconds.with_label_values(&[target]),
            in_flight: self.calls_in_flight.with_label_values(&[target]),
            in_flight_max: self.calls_in_flight_max.with_label_values(&[target]),
            retries: self.retries.with_label_values(&[target]),
            unretried: self.unretried.with_label_values(&[target]),
            unguarded: self.unguarded.with_label_values(&[target]),
            unrecorded: self.unrecorded.with_label_values(&[target]),
        }
    }
}
