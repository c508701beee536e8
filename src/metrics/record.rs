//! The methods by which the other modules count.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntGauge};

use super::labels::{
    AskedResult, Bound, BrokerUser, JobResult, LedgerStep, ListResult, NoticeKind, NoticeResult,
    SliceResult, SpanResult,
};
use super::{APPS_MAX, Metrics, OTHER};
use crate::domain::announce::EventKind;
use crate::domain::directive::Kind;
use crate::domain::lane::Priority;
use crate::domain::limits::LimitScope;
use crate::domain::outcome::{Class, OnUncertain, Outcome};
use crate::ports::{ParkReason, Scope};

/// The hot counters of one target.
#[derive(Clone)]
pub struct TargetMetrics {
    pub(super) classes: Vec<IntCounter>,
    pub(super) outcomes: Vec<IntCounter>,
    pub(super) unreached: IntCounter,
    pub(super) seconds: Histogram,
    pub in_flight: IntGauge,
    pub in_flight_max: IntGauge,
    pub retries: IntCounter,
    pub unretried: IntCounter,
    pub unguarded: IntCounter,
    pub unrecorded: IntCounter,
}

impl TargetMetrics {
    pub fn call(&self, class: Class, took: Duration) {
        self.classes[class as usize].inc();
        self.seconds.observe(took.as_secs_f64());
    }

    /// Counts a call of which nothing left this process.
    pub fn unreached(&self) {
        self.unreached.inc();
    }

    /// Adds to the recipients of each outcome.
    pub fn ended(&self, counts: &OutcomeCounts) {
        add(&self.outcomes, counts);
    }
}

/// A number of recipients for each outcome, in the order of [`Outcome::ALL`].
pub type OutcomeCounts = [u64; Outcome::ALL.len()];

fn add(counters: &[IntCounter], counts: &OutcomeCounts) {
    for (counter, &count) in counters.iter().zip(counts) {
        counter.inc_by(count);
    }
}

/// The counters of the apps that have a label of their own, and those of all others.
pub struct AppMetrics {
    named: BTreeMap<String, Vec<IntCounter>>,
    others: Vec<IntCounter>,
}

impl AppMetrics {
    /// Adds to the recipients of an app.
    pub fn ended(&self, app: &str, counts: &OutcomeCounts) {
        add(self.named.get(app).unwrap_or(&self.others), counts);
    }
}

/// A request of the HTTP interface whose answer has not begun. It counts until it is dropped.
pub struct RequestInFlight(IntGauge);

impl Drop for RequestInFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The states of claims, as they are counted.
pub(super) const CLAIM_STATES: [&str; 5] = ["granted", "in_doubt", "taken_over", "held", "settled"];

impl Metrics {
    pub fn job(&self, result: JobResult) {
        self.jobs.with_label_values(&[result.as_str()]).inc();
    }

    /// A job was completed, this long after it was due.
    pub fn job_completed(&self, took: Duration) {
        self.jobs_completed.inc();
        self.job_seconds.observe(took.as_secs_f64());
    }

    pub fn job_inconsistent(&self) {
        self.jobs_inconsistent.inc();
    }

    pub fn unknown_zones(&self, recipients: u64) {
        self.unknown_zones.inc_by(recipients);
    }

    pub fn entries_missing(&self, count: u32) {
        self.entries_missing.inc_by(count.into());
    }

    pub fn slice(&self, result: SliceResult) {
        self.slices.with_label_values(&[result.as_str()]).inc();
    }

    pub fn slices_in_flight(&self, count: usize) {
        self.slices_in_flight.set(count as i64);
    }

    pub fn started(&self, delay: Duration) {
        self.start_seconds.observe(delay.as_secs_f64());
    }

    pub fn dead_letters(&self, target: &str, outcome: Outcome, count: u64) {
        self.dead_letters
            .with_label_values(&[target, outcome.as_str()])
            .inc_by(count);
    }

    pub fn uncertain(&self, target: &str, policy: OnUncertain, count: u64) {
        self.uncertain
            .with_label_values(&[target, policy.as_str()])
            .inc_by(count);
    }

    /// Counts claims by what they found, in the order of `CLAIM_STATES`.
    pub fn claims(&self, counts: [u64; CLAIM_STATES.len()]) {
        for (state, count) in CLAIM_STATES.into_iter().zip(counts) {
            if count > 0 {
                self.claims.with_label_values(&[state]).inc_by(count);
            }
        }
    }

    pub fn ledger(&self, step: LedgerStep, took: Duration, ok: bool) {
        self.ledger_seconds
            .with_label_values(&[step.as_str()])
            .observe(took.as_secs_f64());
        if !ok {
            self.ledger_errors.with_label_values(&[step.as_str()]).inc();
        }
    }

    pub fn ledger_up(&self, up: bool) {
        self.ledger_up.set(up.into());
    }

    pub fn ledger_went_back(&self) {
        self.ledger_went_back.inc();
    }

    pub fn job_abandoned(&self) {
        self.jobs_abandoned.inc();
    }

    pub fn throttled(&self, scope: LimitScope, limited: bool) {
        let result = if limited { "limited" } else { "allowed" };
        self.throttle
            .with_label_values(&[scope.as_str(), result])
            .inc();
    }

    pub fn throttle_wait(&self, wait: Duration) {
        self.throttle_wait.observe(wait.as_secs_f64());
    }

    /// Counts that this process parked a target.
    pub fn target_parked(&self, target: &str, reason: ParkReason) {
        self.target_parks
            .with_label_values(&[target, reason.as_str()])
            .inc();
    }

    pub fn parked(&self, target: &str, parked: Option<ParkReason>) {
        for &reason in ParkReason::ALL {
            self.parked
                .with_label_values(&[target, reason.as_str()])
                .set((parked == Some(reason)).into());
        }
    }

    pub fn paused(&self, target: &str, paused: bool) {
        self.paused.with_label_values(&[target]).set(paused.into());
    }

    /// Directives in force, by scope and kind.
    pub fn directives(&self, counts: [[i64; Kind::ALL.len()]; Scope::ALL.len()]) {
        for (scope, counts) in Scope::ALL.iter().copied().zip(counts) {
            for (kind, count) in Kind::ALL.iter().copied().zip(counts) {
                self.directives
                    .with_label_values(&[scope.as_str(), kind.as_str()])
                    .set(count);
            }
        }
    }

    /// Shows the metrics of a role that this process has; it has no session yet.
    pub fn uses_broker(&self, user: BrokerUser) {
        self.broker_up(user, false);
        self.broker_blocked(user, false);
        self.broker_sessions
            .with_label_values(&[user.as_str()])
            .inc_by(0);
    }

    pub fn broker_up(&self, user: BrokerUser, up: bool) {
        let role = [user.as_str()];
        self.broker_up.with_label_values(&role).set(up.into());
        if up {
            self.broker_sessions.with_label_values(&role).inc();
        }
    }

    pub fn broker_blocked(&self, user: BrokerUser, blocked: bool) {
        let blocked = i64::from(blocked);
        self.broker_blocked
            .with_label_values(&[user.as_str()])
            .set(blocked);
    }

    pub fn publish_failed(&self) {
        self.publish_failures.inc();
    }

    pub fn event(&self, event: EventKind) {
        self.events.with_label_values(&[event.as_str()]).inc();
    }

    pub fn notice(&self, kind: NoticeKind, result: NoticeResult) {
        self.notices
            .with_label_values(&[kind.as_str(), result.as_str()])
            .inc();
    }

    pub fn list_read(&self, result: ListResult) {
        self.list_reads.with_label_values(&[result.as_str()]).inc();
    }

    pub fn list_bytes_read(&self, bytes: usize) {
        self.list_bytes.inc_by(bytes as u64);
    }

    pub fn list_read_broke(&self) {
        self.list_breaks.inc();
    }

    pub fn before_accept(&self, result: AskedResult, took: Duration) {
        self.before_accept
            .with_label_values(&[result.as_str()])
            .inc();
        self.before_accept_seconds.observe(took.as_secs_f64());
    }

    /// Sets the connection counters to what the HTTP client has counted.
    pub fn connections(&self, opened: u64, reused: u64) {
        for (label, now) in [("false", opened), ("true", reused)] {
            let counter = self.connections.with_label_values(&[label]);
            counter.inc_by(now.saturating_sub(counter.get()));
        }
    }

    pub fn spans(&self, result: SpanResult, count: u64) {
        self.spans
            .with_label_values(&[result.as_str()])
            .inc_by(count);
    }

    pub fn panicked(&self) {
        self.panics.inc();
    }

    pub fn draining(&self) {
        self.draining.set(1);
    }

    /// The counters of these apps.
    pub fn apps<'a>(&self, names: impl Iterator<Item = &'a str>) -> AppMetrics {
        let counters = |app: &str| {
            let counter = |outcome: &Outcome| {
                let labels = [app, outcome.as_str()];
                self.app_recipients.with_label_values(&labels)
            };
            Outcome::ALL.iter().map(counter).collect()
        };
        AppMetrics {
            named: names
                .take(APPS_MAX)
                .map(|app| (app.to_owned(), counters(app)))
                .collect(),
            others: counters(OTHER),
        }
    }

    /// Recipients of this priority got their outcome, this long after they were due.
    pub fn outcomes_after(&self, priority: Priority, count: u64, took: Duration) {
        let histogram = self.outcome_seconds.with_label_values(&[priority.as_str()]);
        let here = histogram.local();
        for _ in 0..count {
            here.observe(took.as_secs_f64());
        }
        here.flush();
    }

    pub fn retry_delay(&self, delay: Duration) {
        self.retry_delay.observe(delay.as_secs_f64());
    }

    /// Shows the limits in force, in recipients per second, by scope and name.
    pub fn limits(&self, limits: &[(Scope, &str, f64)]) {
        let _turn = self.turn.lock();
        self.limits.reset();
        for (scope, name, per_second) in limits {
            let limit = self.limits.with_label_values(&[scope.as_str(), name]);
            limit.set(*per_second);
        }
    }

    pub fn request_begins(&self) -> RequestInFlight {
        self.http_in_flight.inc();
        RequestInFlight(self.http_in_flight.clone())
    }

    /// A request was answered with this status.
    pub fn request(&self, route: &str, status: u16, took: Duration) {
        let class = match status {
            0..200 => "1xx",
            200..300 => "2xx",
            300..400 => "3xx",
            400..500 => "4xx",
            500.. => "5xx",
        };
        self.http_requests.with_label_values(&[route, class]).inc();
        let seconds = self.http_seconds.with_label_values(&[route]);
        seconds.observe(took.as_secs_f64());
    }

    pub fn request_refused(&self, bound: Bound) {
        self.http_refused.with_label_values(&[bound.as_str()]).inc();
    }

    pub fn uploaded(&self, bytes: u64) {
        self.upload_bytes.inc_by(bytes);
    }

    /// The certificate that is served ends at this time, in seconds since 1970.
    pub fn certificate_expires(&self, at: i64) {
        self.certificate
            .with_label_values::<&str>(&[])
            .set(at as f64);
    }

    /// The embedded engine's files and the disk below them.
    pub fn store(&self, bytes: u64, free: u64, written: u64) {
        let none: &[&str] = &[];
        self.store_bytes.with_label_values(none).set(bytes as i64);
        self.store_free.with_label_values(none).set(free as i64);
        let counter = self.store_written.with_label_values(none);
        counter.inc_by(written.saturating_sub(counter.get()));
    }

    /// The embedded engine made a commit.
    pub fn commit(&self, took: Duration) {
        let seconds = self.commit_seconds.with_label_values::<&str>(&[]);
        seconds.observe(took.as_secs_f64());
    }
}
