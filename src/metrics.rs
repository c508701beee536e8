//! Defines every metric and sets it through typed methods. No other module names a metric, so
//! labels stay closed sets. No metric has a label for recipients, jobs or `client_msg_no`.
//!
//! Label values that an alert may use exist from the start, with 0. The handles of hot counters are
//! resolved once per target ([`TargetMetrics`]).

use std::time::Duration;

use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::domain::announce::EventKind;
use crate::domain::directive::Kind;
use crate::domain::outcome::{Class, OnUncertain, Outcome};
use crate::ports::{ParkReason, Scope};

/// The result of a message from the job queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobResult {
    Accepted,
    Extended,
    Repeated,
    Conflict,
    Rejected,
}

impl JobResult {
    const ALL: [Self; 5] = [
        Self::Accepted,
        Self::Extended,
        Self::Repeated,
        Self::Conflict,
        Self::Rejected,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Extended => "extended",
            Self::Repeated => "repeated",
            Self::Conflict => "conflict",
            Self::Rejected => "rejected",
        }
    }
}

/// How the delivery of a slice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SliceResult {
    /// Every recipient has its outcome.
    Done,
    /// A remainder waits on the ladder, or at the end of its lane.
    Deferred,
    /// Requeued because of a drain or a panic.
    Requeued,
    /// The session was lost; the broker hands the slice out again.
    Lost,
    /// Not a slice; it is among the rejected messages.
    Rejected,
}

impl SliceResult {
    const ALL: [Self; 5] = [
        Self::Done,
        Self::Deferred,
        Self::Requeued,
        Self::Lost,
        Self::Rejected,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Deferred => "deferred",
            Self::Requeued => "requeued",
            Self::Lost => "lost",
            Self::Rejected => "rejected",
        }
    }
}

/// The channel of a notice that a job completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeKind {
    Callback,
    Reply,
}

impl NoticeKind {
    const ALL: [Self; 2] = [Self::Callback, Self::Reply];

    fn as_str(self) -> &'static str {
        match self {
            Self::Callback => "callback",
            Self::Reply => "reply",
        }
    }
}

/// The result of one attempt to deliver a notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeResult {
    Delivered,
    /// It waits on the ladder for the next attempt.
    Retried,
    /// No further attempt follows.
    Abandoned,
}

impl NoticeResult {
    const ALL: [Self; 3] = [Self::Delivered, Self::Retried, Self::Abandoned];

    fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Retried => "retried",
            Self::Abandoned => "abandoned",
        }
    }
}

/// The answer of `before_accept` about a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskedResult {
    Allow,
    Deny,
    Change,
    /// No decision: no answer in time, or an invalid one. `on_failure` decides.
    Failed,
}

impl AskedResult {
    const ALL: [Self; 4] = [Self::Allow, Self::Deny, Self::Change, Self::Failed];

    fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Change => "change",
            Self::Failed => "failed",
        }
    }
}

/// A step of the ledger or limiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LedgerStep {
    Accept,
    Expanded,
    Gather,
    Claim,
    Renew,
    Settle,
    Complete,
    Look,
    Audit,
    Lease,
    Park,
    Template,
    Direct,
    Charge,
    Nonce,
    Beat,
    Sweep,
}

impl LedgerStep {
    const ALL: [Self; 17] = [
        Self::Accept,
        Self::Expanded,
        Self::Gather,
        Self::Claim,
        Self::Renew,
        Self::Settle,
        Self::Complete,
        Self::Look,
        Self::Audit,
        Self::Lease,
        Self::Park,
        Self::Template,
        Self::Direct,
        Self::Charge,
        Self::Nonce,
        Self::Beat,
        Self::Sweep,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Expanded => "expanded",
            Self::Gather => "gather",
            Self::Claim => "claim",
            Self::Renew => "renew",
            Self::Settle => "settle",
            Self::Complete => "complete",
            Self::Look => "look",
            Self::Audit => "audit",
            Self::Lease => "lease",
            Self::Park => "park",
            Self::Template => "template",
            Self::Direct => "direct",
            Self::Charge => "charge",
            Self::Nonce => "nonce",
            Self::Beat => "beat",
            Self::Sweep => "sweep",
        }
    }
}

/// From half a millisecond (a fast ledger step) to a minute (a call at its timeout).
const SECONDS: [f64; 16] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0,
];

/// All metrics of one process, on a registry of its own.
pub struct Metrics {
    registry: Registry,
    jobs: IntCounterVec,
    jobs_completed: IntCounter,
    jobs_inconsistent: IntCounter,
    entries_missing: IntCounter,
    slices: IntCounterVec,
    slices_in_flight: IntGauge,
    recipients: IntCounterVec,
    calls: IntCounterVec,
    call_seconds: HistogramVec,
    calls_in_flight: IntGaugeVec,
    retries: IntCounterVec,
    dead_letters: IntCounterVec,
    uncertain: IntCounterVec,
    unguarded: IntCounterVec,
    unrecorded: IntCounterVec,
    start_seconds: Histogram,
    claims: IntCounterVec,
    ledger_seconds: HistogramVec,
    ledger_errors: IntCounterVec,
    ledger_up: IntGauge,
    ledger_went_back: IntCounter,
    jobs_abandoned: IntCounter,
    throttle: IntCounterVec,
    throttle_wait: Histogram,
    parked: IntGaugeVec,
    target_parks: IntCounterVec,
    paused: IntGaugeVec,
    directives: IntGaugeVec,
    broker_up: IntGauge,
    broker_blocked: IntGauge,
    broker_sessions: IntCounter,
    publish_failures: IntCounter,
    events: IntCounterVec,
    notices: IntCounterVec,
    before_accept: IntCounterVec,
    before_accept_seconds: Histogram,
    connections: IntCounterVec,
    panics: IntCounter,
    draining: IntGauge,
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

#[allow(
    clippy::expect_used,
    reason = "names and labels are constants; a test builds them all"
)]
impl Metrics {
    pub fn new() -> Self {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| {
            let metric = IntCounter::new(name, help).expect("valid name");
            registry
                .register(Box::new(metric.clone()))
                .expect("registered once");
            metric
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let metric = IntCounterVec::new(Opts::new(name, help), labels).expect("valid name");
            registry
                .register(Box::new(metric.clone()))
                .expect("registered once");
            metric
        };
        let gauge = |name: &str, help: &str| {
            let metric = IntGauge::new(name, help).expect("valid name");
            registry
                .register(Box::new(metric.clone()))
                .expect("registered once");
            metric
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let metric = IntGaugeVec::new(Opts::new(name, help), labels).expect("valid name");
            registry
                .register(Box::new(metric.clone()))
                .expect("registered once");
            metric
        };
        let histogram = |name: &str, help: &str| {
            let options = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
            let metric = Histogram::with_opts(options).expect("valid name");
            registry
                .register(Box::new(metric.clone()))
                .expect("registered once");
            metric
        };
        let histograms = |name: &str, help: &str, labels: &[&str]| {
            let options = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
            let metric = HistogramVec::new(options, labels).expect("valid name");
            registry
                .register(Box::new(metric.clone()))
                .expect("registered once");
            metric
        };
        let metrics = Self {
            jobs: counters(
                "fanwise_jobs_total",
                "Messages read from the job queues, by result",
                &["result"],
            ),
            jobs_completed: counter(
                "fanwise_jobs_completed_total",
                "Jobs this process found finished and exact",
            ),
            jobs_inconsistent: counter(
                "fanwise_jobs_inconsistent_total",
                "Finished jobs whose counters and ledger differ; `fanwise job verify` tells how",
            ),
            entries_missing: counter(
                "fanwise_entries_missing_total",
                "Entries of slices at their end of which nobody saw what became: they stay pending",
            ),
            slices: counters(
                "fanwise_slices_total",
                "Slices taken from lanes, by how their delivery ended",
                &["result"],
            ),
            slices_in_flight: gauge("fanwise_slices_in_flight", "Slices being delivered now"),
            recipients: counters(
                "fanwise_recipients_total",
                "Recipients by target and outcome",
                &["target", "outcome"],
            ),
            calls: counters(
                "fanwise_calls_total",
                "Requests to targets by class of the answer",
                &["target", "class"],
            ),
            call_seconds: histograms(
                "fanwise_call_duration_seconds",
                "Time from the start of a call to its answer",
                &["target"],
            ),
            calls_in_flight: gauges(
                "fanwise_calls_in_flight",
                "Calls whose answer has not come yet",
                &["target"],
            ),
            retries: counters(
                "fanwise_retries_total",
                "Recipients put on the ladder for another attempt",
                &["target"],
            ),
            dead_letters: counters(
                "fanwise_dead_letters_total",
                "Recipients dead-lettered, by outcome",
                &["target", "outcome"],
            ),
            uncertain: counters(
                "fanwise_uncertain_total",
                "Recipients whose send may or may not have happened, by what the policy did",
                &["target", "policy"],
            ),
            unguarded: counters(
                "fanwise_unguarded_sends_total",
                "Recipients sent to without a claim, because the ledger was down and their app fails open",
                &["target"],
            ),
            unrecorded: counters(
                "fanwise_unrecorded_outcomes_total",
                "Outcomes that travelled on in their slice, because the ledger was down and their app \
                 fails open; recorded when it is back",
                &["target"],
            ),
            start_seconds: histogram(
                "fanwise_start_delay_seconds",
                "Time from acceptance of a job to the first call of each slice",
            ),
            claims: counters(
                "fanwise_claims_total",
                "Claims asked of the ledger, by what they found",
                &["state"],
            ),
            ledger_seconds: histograms(
                "fanwise_ledger_duration_seconds",
                "Time of a ledger step",
                &["step"],
            ),
            ledger_errors: counters(
                "fanwise_ledger_errors_total",
                "Ledger steps that failed; lanes stop while they do",
                &["step"],
            ),
            ledger_up: gauge(
                "fanwise_ledger_up",
                "1 while the ledger takes writes: a heartbeat succeeded in the last two seconds",
            ),
            ledger_went_back: counter(
                "fanwise_ledger_went_back_total",
                "Times this process found that the ledger had lost what was written last; jobs that ran \
                 then are marked, and `fanwise job verify` says what is not known of them",
            ),
            jobs_abandoned: counter(
                "fanwise_jobs_abandoned_total",
                "Jobs this process ended because nothing of them was left to deliver: recipients whose \
                 outcome the ledger does not know ended uncertain",
            ),
            throttle: counters(
                "fanwise_throttle_decisions_total",
                "Leases by the limit that decided: allowed at once, or limited",
                &["scope", "result"],
            ),
            throttle_wait: histogram(
                "fanwise_throttle_wait_seconds",
                "Time slices waited for a rate limit",
            ),
            parked: gauges(
                "fanwise_target_parked",
                "1 while a target is parked, by why",
                &["target", "reason"],
            ),
            target_parks: counters(
                "fanwise_target_parks_total",
                "How often this process parked a target, by why",
                &["target", "reason"],
            ),
            paused: gauges(
                "fanwise_target_paused",
                "1 while an operator has paused a target",
                &["target"],
            ),
            directives: gauges(
                "fanwise_directives",
                "Directives in force, by what they are about: paused, cancelled or re-rated jobs, apps and targets",
                &["scope", "action"],
            ),
            broker_up: gauge("fanwise_broker_up", "1 while a broker session is open"),
            broker_blocked: gauge(
                "fanwise_broker_blocked",
                "1 while the broker refuses to take publishes (alarm)",
            ),
            broker_sessions: counter(
                "fanwise_broker_sessions_total",
                "Broker sessions opened; a rise means reconnects",
            ),
            publish_failures: counter(
                "fanwise_publish_failures_total",
                "Publishes not known to be durable; they are repeated",
            ),
            events: counters("fanwise_events_total", "Job events published", &["event"]),
            notices: counters(
                "fanwise_notices_total",
                "Attempts to tell a callback URL or a reply queue of a completed job, by result",
                &["kind", "result"],
            ),
            before_accept: counters(
                "fanwise_before_accept_total",
                "Jobs that before_accept was asked about, by its decision; failed is none, and on_failure decides",
                &["result"],
            ),
            before_accept_seconds: histogram(
                "fanwise_before_accept_duration_seconds",
                "Time that callers of the gateway waited for before_accept",
            ),
            connections: counters(
                "fanwise_http_calls_total",
                "Calls by whether they reused a connection",
                &["reused"],
            ),
            panics: counter(
                "fanwise_panics_total",
                "Tasks that panicked; what they worked on went back to its queue",
            ),
            draining: gauge("fanwise_draining", "1 from the stop signal on"),
            registry,
        };
        metrics.expose_zeros();
        metrics
    }

    fn expose_zeros(&self) {
        JobResult::ALL
            .iter()
            .for_each(|r| self.jobs.with_label_values(&[r.as_str()]).inc_by(0));
        SliceResult::ALL
            .iter()
            .for_each(|r| self.slices.with_label_values(&[r.as_str()]).inc_by(0));
        for step in LedgerStep::ALL {
            self.ledger_errors
                .with_label_values(&[step.as_str()])
                .inc_by(0);
        }
        for scope in Scope::ALL {
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
        for kind in NoticeKind::ALL {
            for result in NoticeResult::ALL {
                self.notices
                    .with_label_values(&[kind.as_str(), result.as_str()])
                    .inc_by(0);
            }
        }
        for result in AskedResult::ALL {
            self.before_accept
                .with_label_values(&[result.as_str()])
                .inc_by(0);
        }
        let info = IntGaugeVec::new(
            Opts::new("fanwise_build_info", "Version of this process"),
            &["version"],
        )
        .expect("valid name");
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        self.registry
            .register(Box::new(info))
            .expect("registered once");
        #[cfg(target_os = "linux")]
        self.registry
            .register(Box::new(
                prometheus::process_collector::ProcessCollector::for_self(),
            ))
            .expect("registered once");
    }

    /// The handles of one target. From now on every label value of it exists.
    pub fn target(&self, target: &str) -> TargetMetrics {
        for outcome in [Outcome::Failed, Outcome::Uncertain] {
            self.dead_letters
                .with_label_values(&[target, outcome.as_str()])
                .inc_by(0);
        }
        for policy in ["retry", "hold", "drop"] {
            self.uncertain
                .with_label_values(&[target, policy])
                .inc_by(0);
        }
        for reason in ParkReason::ALL {
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
        let policy = match policy {
            OnUncertain::Retry => "retry",
            OnUncertain::Hold => "hold",
            OnUncertain::Drop => "drop",
        };
        self.uncertain
            .with_label_values(&[target, policy])
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
        for reason in ParkReason::ALL {
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
        for (scope, counts) in Scope::ALL.into_iter().zip(counts) {
            for (kind, count) in Kind::ALL.into_iter().zip(counts) {
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
