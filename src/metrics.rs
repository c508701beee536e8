//! Defines every metric and sets it through typed methods. No other module names a metric, so
//! labels stay closed sets. No metric has a label for recipients, jobs or `client_msg_no`.
//!
//! Label values that an alert may use exist from the start, with 0. The handles of hot counters are
//! resolved once per target ([`TargetMetrics`]).

mod labels;

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

pub use self::labels::{AskedResult, JobResult, LedgerStep, NoticeKind, NoticeResult, SliceResult};
use crate::domain::announce::EventKind;
use crate::domain::directive::Kind;
use crate::domain::outcome::{Class, OnUncertain, Outcome};
use crate::ports::{ParkReason, Scope};

/// From half a millisecond (a fast ledger step) to a minute (a call at its timeout).
const SECONDS: [f64; 16] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0,
];

/// Builds one kind of metric.
trait Build: Collector + Clone + Sized + 'static {
    fn build(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<Self>;
}

macro_rules! build {
    ($($kind:ident: |$name:ident, $help:ident, $labels:pat_param| $made:expr;)+) => {$(
        impl Build for $kind {
            fn build($name: &str, $help: &str, $labels: &[&str]) -> prometheus::Result<Self> {
                $made
            }
        }
    )+};
}

build! {
    IntCounter: |name, help, _| Self::new(name, help);
    IntCounterVec: |name, help, labels| Self::new(Opts::new(name, help), labels);
    IntGauge: |name, help, _| Self::new(name, help);
    IntGaugeVec: |name, help, labels| Self::new(Opts::new(name, help), labels);
    Histogram: |name, help, _| Self::with_opts(buckets(name, help));
    HistogramVec: |name, help, labels| Self::new(buckets(name, help), labels);
}

fn buckets(name: &str, help: &str) -> HistogramOpts {
    HistogramOpts::new(name, help).buckets(SECONDS.to_vec())
}

#[expect(
    clippy::expect_used,
    reason = "names and labels are constants; a test builds them all"
)]
fn register<M: Build>(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> M {
    let metric = M::build(name, help, labels).expect("valid name");
    let registered = registry.register(Box::new(metric.clone()));
    registered.expect("registered once");
    metric
}

/// Declares [`Metrics`]: a field, its kind, its name, its labels and its help in one place.
macro_rules! metrics {
    ($($field:ident: $kind:ident($name:literal $(, [$($label:literal),+])?) = $help:literal;)+) => {
        /// All metrics of one process, on a registry of its own.
        pub struct Metrics {
            registry: Registry,
            $($field: $kind,)+
        }

        impl Metrics {
            pub fn new() -> Self {
                let registry = Registry::new();
                let metrics = Self {
                    $($field: register(&registry, $name, $help, &[$($($label),+)?]),)+
                    registry,
                };
                metrics.expose_zeros();
                metrics.expose_process();
                metrics
            }
        }
    };
}

metrics! {
    jobs: IntCounterVec("fanwise_jobs_total", ["result"])
        = "Messages read from the job queues, by result";
    jobs_completed: IntCounter("fanwise_jobs_completed_total")
        = "Jobs that this process completed with exact accounts";
    jobs_inconsistent: IntCounter("fanwise_jobs_inconsistent_total")
        = "Finished jobs whose counters and ledger differ; `fanwise job verify` shows the differences";
    entries_missing: IntCounter("fanwise_entries_missing_total")
        = "Entries of slices that ended without an outcome for them; the entries stay pending";
    slices: IntCounterVec("fanwise_slices_total", ["result"])
        = "Slices taken from lanes, by how their delivery ended";
    slices_in_flight: IntGauge("fanwise_slices_in_flight")
        = "Slices being delivered now";
    recipients: IntCounterVec("fanwise_recipients_total", ["target", "outcome"])
        = "Recipients by target and outcome";
    calls: IntCounterVec("fanwise_calls_total", ["target", "class"])
        = "Requests to targets by class of the answer";
    call_seconds: HistogramVec("fanwise_call_duration_seconds", ["target"])
        = "Time from the start of a call to its answer";
    calls_in_flight: IntGaugeVec("fanwise_calls_in_flight", ["target"])
        = "Calls whose answer has not come yet";
    retries: IntCounterVec("fanwise_retries_total", ["target"])
        = "Recipients put on the ladder for another attempt";
    dead_letters: IntCounterVec("fanwise_dead_letters_total", ["target", "outcome"])
        = "Recipients dead-lettered, by outcome";
    uncertain: IntCounterVec("fanwise_uncertain_total", ["target", "policy"])
        = "Recipients whose send may or may not have happened, by what the policy did";
    unguarded: IntCounterVec("fanwise_unguarded_sends_total", ["target"])
        = "Recipients sent to without a claim, because the ledger was down and their app fails \
           open";
    unrecorded: IntCounterVec("fanwise_unrecorded_outcomes_total", ["target"])
        = "Outcomes that travelled on in their slice, because the ledger was down and their app \
           fails open; recorded when it is back";
    start_seconds: Histogram("fanwise_start_delay_seconds")
        = "Time from acceptance of a job to the first call of each slice";
    claims: IntCounterVec("fanwise_claims_total", ["state"])
        = "Claims asked of the ledger, by what they found";
    ledger_seconds: HistogramVec("fanwise_ledger_duration_seconds", ["step"])
        = "Time of a ledger step";
    ledger_errors: IntCounterVec("fanwise_ledger_errors_total", ["step"])
        = "Ledger steps that failed; lanes stop while they do";
    ledger_up: IntGauge("fanwise_ledger_up")
        = "1 while the ledger takes writes: a heartbeat succeeded in the last two seconds";
    ledger_went_back: IntCounter("fanwise_ledger_went_back_total")
        = "Times this process found that the ledger had lost what was written last; jobs that \
           ran then are marked, and `fanwise job verify` says what is not known of them";
    jobs_abandoned: IntCounter("fanwise_jobs_abandoned_total")
        = "Jobs this process ended because nothing of them was left to deliver: recipients \
           whose outcome the ledger does not know ended uncertain";
    throttle: IntCounterVec("fanwise_throttle_decisions_total", ["scope", "result"])
        = "Leases by the limit that decided: allowed at once, or limited";
    throttle_wait: Histogram("fanwise_throttle_wait_seconds")
        = "Time slices waited for a rate limit";
    parked: IntGaugeVec("fanwise_target_parked", ["target", "reason"])
        = "1 while a target is parked, by reason";
    target_parks: IntCounterVec("fanwise_target_parks_total", ["target", "reason"])
        = "Times that this process parked a target, by reason";
    paused: IntGaugeVec("fanwise_target_paused", ["target"])
        = "1 while an operator has paused a target";
    directives: IntGaugeVec("fanwise_directives", ["scope", "action"])
        = "Directives in force, by what they are about: paused, cancelled or re-rated jobs, \
           apps and targets";
    broker_up: IntGauge("fanwise_broker_up")
        = "1 while a broker session is open";
    broker_blocked: IntGauge("fanwise_broker_blocked")
        = "1 while the broker refuses to take publishes (alarm)";
    broker_sessions: IntCounter("fanwise_broker_sessions_total")
        = "Broker sessions opened; a rise means reconnects";
    publish_failures: IntCounter("fanwise_publish_failures_total")
        = "Publishes not known to be durable; they are repeated";
    events: IntCounterVec("fanwise_events_total", ["event"])
        = "Job events published";
    notices: IntCounterVec("fanwise_notices_total", ["kind", "result"])
        = "Attempts to tell a callback URL or a reply queue of a completed job, by result";
    before_accept: IntCounterVec("fanwise_before_accept_total", ["result"])
        = "Jobs that before_accept was asked about, by its decision; failed is none, and \
           on_failure decides";
    before_accept_seconds: Histogram("fanwise_before_accept_duration_seconds")
        = "Time that callers of the gateway waited for before_accept";
    connections: IntCounterVec("fanwise_http_calls_total", ["reused"])
        = "Calls by whether they reused a connection";
    panics: IntCounter("fanwise_panics_total")
        = "Tasks that panicked; what they worked on went back to its queue";
    draining: IntGauge("fanwise_draining")
        = "1 from the stop signal on";
    build_info: IntGaugeVec("fanwise_build_info", ["version"])
        = "Version of this process";
}

/// The hot counters of one target.
#[derive(Clone)]
pub struct TargetMetrics {
    classes: Vec<IntCounter>,
    outcomes: Vec<IntCounter>,
    seconds: Histogram,
    pub in_flight: IntGauge,
    pub retries: IntCounter,
    pub unguarded: IntCounter,
    pub unrecorded: IntCounter,
}

impl TargetMetrics {
    pub fn call(&self, class: Class, took: Duration) {
        self.classes[class as usize].inc();
        self.seconds.observe(took.as_secs_f64());
    }

    /// Counts recipients by their outcome.
    pub fn ended(&self, outcomes: impl Iterator<Item = Outcome>) {
        for outcome in outcomes {
            self.outcomes[outcome as usize].inc();
        }
    }
}

impl Metrics {
    fn expose_zeros(&self) {
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
        for &scope in Scope::ALL {
            for result in ["allowed", "limited"] {
                self.throttle
                    .with_label_values(&[scope.as_str(), result])
                    .inc_by(0);
            }
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
        self.build_info
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
    }

    #[cfg(target_os = "linux")]
    #[expect(
        clippy::expect_used,
        reason = "registered once, on a registry of its own"
    )]
    fn expose_process(&self) {
        let process = prometheus::process_collector::ProcessCollector::for_self();
        let registered = self.registry.register(Box::new(process));
        registered.expect("registered once");
    }

    #[cfg(not(target_os = "linux"))]
    fn expose_process(&self) {}

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
            seconds: self.call_seconds.with_label_values(&[target]),
            in_flight: self.calls_in_flight.with_label_values(&[target]),
            retries: self.retries.with_label_values(&[target]),
            unguarded: self.unguarded.with_label_values(&[target]),
            unrecorded: self.unrecorded.with_label_values(&[target]),
        }
    }

    pub fn job(&self, result: JobResult) {
        self.jobs.with_label_values(&[result.as_str()]).inc();
    }

    pub fn job_completed(&self) {
        self.jobs_completed.inc();
    }

    pub fn job_inconsistent(&self) {
        self.jobs_inconsistent.inc();
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

    pub fn claims(&self, state: &'static str, count: u64) {
        if count > 0 {
            self.claims.with_label_values(&[state]).inc_by(count);
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

    pub fn throttled(&self, scope: Scope, limited: bool) {
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

    pub fn broker_up(&self, up: bool) {
        self.broker_up.set(up.into());
        if up {
            self.broker_sessions.inc();
        }
    }

    pub fn broker_blocked(&self, blocked: bool) {
        self.broker_blocked.set(blocked.into());
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

    pub fn panicked(&self) {
        self.panics.inc();
    }

    pub fn draining(&self) {
        self.draining.set(1);
    }

    /// The text that Prometheus scrapes.
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        // Writing to memory fails only for a family without metrics, which gather() leaves out.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_their_zeros_and_their_names() {
        let metrics = Metrics::new();
        let target = metrics.target("im");
        target.call(Class::Done, Duration::from_millis(3));
        let text = metrics.text();
        for line in [
            "fanwise_jobs_total{result=\"conflict\"} 0",
            "fanwise_recipients_total{outcome=\"uncertain\",target=\"im\"} 0",
            "fanwise_calls_total{class=\"done\",target=\"im\"} 1",
            "fanwise_ledger_errors_total{step=\"claim\"} 0",
            "fanwise_before_accept_total{result=\"failed\"} 0",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        for line in text
            .lines()
            .filter(|line| line.starts_with("# TYPE fanwise_"))
        {
            let counter = line.ends_with(" counter");
            assert_eq!(counter, line.contains("_total "), "{line}");
        }
    }
}
