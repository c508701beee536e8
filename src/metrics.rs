//! Defines every metric and sets it through typed methods. No other module names a metric, so
//! labels stay closed sets. No metric has a label for recipients, jobs or `client_msg_no`; a label
//! for apps has at most [`APPS_MAX`] values and `other`.
//!
//! Label values that an alert may use exist from the start, with 0. The handles of hot counters are
//! resolved once per target ([`TargetMetrics`]) and app ([`AppMetrics`]).
//!
//! - this file: the metrics themselves, in one table; `zeros`: what exists from the start;
//!   `record`: the methods that count; `cluster`: what one process reports for all of them;
//!   `labels`: the values of labels.

mod cluster;
mod labels;
mod record;
mod zeros;

use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

pub use self::cluster::{ClusterFigures, OpenState, Pending, Waiting};
pub use self::labels::{
    AskedResult, Bound, BrokerUser, JobResult, LedgerStep, ListResult, NoticeKind, NoticeResult,
    SliceResult, SpanResult,
};
pub use self::record::{AppMetrics, OutcomeCounts, RequestInFlight, TargetMetrics};

/// Apps that have a label of their own, the first by name.
pub const APPS_MAX: usize = 50;

/// The label of all further apps.
pub const OTHER: &str = "other";

/// Steps of the ledger and commits to disk: from a tenth of a millisecond to a timeout.
const STEPS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0,
];

/// Calls and requests: from a fast backend to a call at its timeout.
const CALLS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// Waits for a limit inside a delivery.
const LIMITS: &[f64] = &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// What users wait for: from a small job at once to a large one over night.
const WAITS: &[f64] = &[
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0,
    86_400.0,
];

/// Builds one kind of metric.
trait Build: Collector + Clone + Sized + 'static {
    fn build(name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> prometheus::Result<Self>;
}

macro_rules! build {
    ($($kind:ident: |$name:ident, $help:ident, $labels:pat_param, $buckets:pat_param| $made:expr;)+) => {$(
        impl Build for $kind {
            fn build(
                $name: &str,
                $help: &str,
                $labels: &[&str],
                $buckets: &[f64],
            ) -> prometheus::Result<Self> {
                $made
            }
        }
    )+};
}

build! {
    IntCounter: |name, help, _, _| Self::new(name, help);
    IntCounterVec: |name, help, labels, _| Self::new(Opts::new(name, help), labels);
    IntGauge: |name, help, _, _| Self::new(name, help);
    IntGaugeVec: |name, help, labels, _| Self::new(Opts::new(name, help), labels);
    GaugeVec: |name, help, labels, _| Self::new(Opts::new(name, help), labels);
    Histogram: |name, help, _, buckets| {
        Self::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))
    };
    HistogramVec: |name, help, labels, buckets| {
        Self::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)
    };
}

#[expect(
    clippy::expect_used,
    reason = "names and labels are constants; a test builds them all"
)]
fn register<M: Build>(registry: &Registry, named: &Named, buckets: &[f64]) -> M {
    let metric = M::build(named.name, named.help, named.labels, buckets).expect("valid name");
    let registered = registry.register(Box::new(metric.clone()));
    registered.expect("registered once");
    metric
}

/// The description of one metric.
#[derive(Clone, Copy, Debug)]
pub struct Named {
    pub name: &'static str,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

/// Declares [`Metrics`]: a field, its kind, its name, its labels, its buckets and its help in one
/// place.
macro_rules! metrics {
    ($($field:ident: $kind:ident($name:literal $(, [$($label:literal),+])? $(; $buckets:ident)?) = $help:literal;)+) => {
        /// All metrics of one process, on a registry of its own.
        pub struct Metrics {
            registry: Registry,
            /// Held while figures that belong together are replaced, and while all are written.
            turn: Mutex<()>,
            $($field: $kind,)+
        }

        impl Metrics {
            /// Every metric, whether it has values yet or not.
            pub const ALL: &'static [Named] = &[$(
                Named { name: $name, labels: &[$($($label),+)?], help: $help },
            )+];

            pub fn new() -> Self {
                let registry = Registry::new();
                let metrics = Self {
                    $($field: register(
                        &registry,
                        &Named { name: $name, labels: &[$($($label),+)?], help: $help },
                        metrics!(@ $($buckets)?),
                    ),)+
                    registry,
                    turn: Mutex::new(()),
                };
                metrics.expose_zeros();
                metrics.expose_process();
                metrics
            }
        }
    };
    (@) => { &[] };
    (@ $buckets:ident) => { $buckets };
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
    unknown_zones: IntCounter("fanwise_unknown_zones_total")
        = "Recipients whose own time zone is not known, so that they have that of their job";
    slices: IntCounterVec("fanwise_slices_total", ["result"])
        = "Slices taken from lanes, by how their delivery ended";
    slices_in_flight: IntGauge("fanwise_slices_in_flight")
        = "Slices being delivered now";
    recipients: IntCounterVec("fanwise_recipients_total", ["target", "outcome"])
        = "Recipients by target and outcome";
    calls: IntCounterVec("fanwise_calls_total", ["target", "class"])
        = "Requests to targets by class of the answer";
    call_seconds: HistogramVec("fanwise_call_duration_seconds", ["target"]; CALLS)
        = "Time from the start of a call to its answer";
    unreached: IntCounterVec("fanwise_unreached_calls_total", ["target"])
        = "Calls of which nothing left this process: the target was not reached. They count as \
           transient or config in fanwise_calls_total";
    calls_in_flight: IntGaugeVec("fanwise_calls_in_flight", ["target"])
        = "Calls whose answer has not come yet";
    calls_in_flight_max: IntGaugeVec("fanwise_calls_in_flight_max", ["target"])
        = "Calls that a target may have in flight at this process: its calls_in_flight, or what that has adapted to";
    retries: IntCounterVec("fanwise_retries_total", ["target"])
        = "Recipients put on the ladder for another attempt";
    unretried: IntCounterVec("fanwise_unretried_total", ["target"])
        = "Recipients dead-lettered instead of retried, because the retry budget of their job is spent";
    retry_delay: Histogram("fanwise_retry_delay_seconds"; WAITS)
        = "Time for which the rest of a slice was put on the ladder";
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
    start_seconds: Histogram("fanwise_start_delay_seconds"; WAITS)
        = "Time from acceptance of a job to the first call of each slice";
    outcome_seconds: HistogramVec("fanwise_accept_to_outcome_seconds", ["priority"]; WAITS)
        = "Time from acceptance of a job, or from its start time, to the outcome of each recipient";
    job_seconds: Histogram("fanwise_job_duration_seconds"; WAITS)
        = "Time from acceptance of a job, or from its start time, to its completion";
    app_recipients: IntCounterVec("fanwise_app_recipients_total", ["app", "outcome"])
        = "Recipients by app and outcome; apps beyond the first 50 by name are `other`";
    claims: IntCounterVec("fanwise_claims_total", ["state"])
        = "Claims asked of the ledger, by what they found";
    ledger_seconds: HistogramVec("fanwise_ledger_duration_seconds", ["step"]; STEPS)
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
    throttle_wait: Histogram("fanwise_throttle_wait_seconds"; LIMITS)
        = "Time slices waited for a rate limit";
    limits: GaugeVec("fanwise_limit_recipients_per_second", ["scope", "name"])
        = "Limit in force of a target or an app, live changes included; a limit of calls counts as \
           that many full calls";
    parked: IntGaugeVec("fanwise_target_parked", ["target", "reason"])
        = "1 while a target is parked, by reason";
    target_parks: IntCounterVec("fanwise_target_parks_total", ["target", "reason"])
        = "Times that this process parked a target, by reason";
    paused: IntGaugeVec("fanwise_target_paused", ["target"])
        = "1 while an operator has paused a target";
    directives: IntGaugeVec("fanwise_directives", ["scope", "action"])
        = "Directives in force, by what they are about: paused, cancelled or re-rated jobs, \
           apps and targets";
    broker_up: IntGaugeVec("fanwise_broker_up", ["role"])
        = "1 while the worker, or the gateway, of this process has a session with the broker";
    broker_blocked: IntGaugeVec("fanwise_broker_blocked", ["role"])
        = "1 while the broker refuses to take publishes (alarm)";
    broker_sessions: IntCounterVec("fanwise_broker_sessions_total", ["role"])
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
    before_accept_seconds: Histogram("fanwise_before_accept_duration_seconds"; CALLS)
        = "Time that callers of the gateway waited for before_accept";
    list_reads: IntCounterVec("fanwise_list_reads_total", ["result"])
        = "Lists that jobs name by their address, by result: fetched; refused, because of what the \
           list or its address is; failed, because its server did not answer or broke off";
    list_bytes: IntCounter("fanwise_list_read_bytes_total")
        = "Bytes read of lists that jobs name by their address";
    list_breaks: IntCounter("fanwise_list_read_breaks_total")
        = "Times that such a list broke off; it is read on, or again, a few times";
    connections: IntCounterVec("fanwise_http_calls_total", ["reused"])
        = "Calls by whether they reused a connection";
    spans: IntCounterVec("fanwise_trace_spans_total", ["result"])
        = "Spans of sampled jobs, by result: exported to the collector, refused by it, or dropped \
           because the queue was full";
    panics: IntCounter("fanwise_panics_total")
        = "Tasks that panicked; what they worked on went back to its queue";
    draining: IntGauge("fanwise_draining")
        = "1 from the stop signal on";
    build_info: IntGaugeVec("fanwise_build_info", ["version", "commit"])
        = "Version of this process, and the commit that it was built from";
    open_jobs: IntGaugeVec("fanwise_jobs", ["state"])
        = "Jobs of the cluster that are not completed, by state. One process reports it for all";
    pending: IntGaugeVec("fanwise_recipients_pending", ["target", "priority"])
        = "Recipients of the cluster without an outcome. One process reports it for all";
    oldest_pending: GaugeVec("fanwise_oldest_pending_age_seconds", ["target", "priority"])
        = "Age of the oldest job that is due, not paused and has recipients without an outcome. One \
           process reports it for all";
    standstill: GaugeVec("fanwise_job_standstill_seconds", ["target"])
        = "Longest time without an outcome of a job that is due and neither paused nor parked. One \
           process reports it for all";
    processes: IntGaugeVec("fanwise_processes", ["role"])
        = "Processes with a heartbeat in the last seconds. One process reports it for all";
    jobs_waiting: IntGaugeVec("fanwise_jobs_waiting")
        = "Messages on the job queues that no worker has taken. One process reports it for all";
    slices_waiting: IntGaugeVec("fanwise_slices_waiting", ["target"])
        = "Slices on the lanes that no worker has taken, without the ladder. One process reports it \
           for all";
    letters_waiting: IntGaugeVec("fanwise_dead_letters_waiting")
        = "Dead letters that nobody has redriven or purged; a letter has up to a slice of \
           recipients. One process reports it for all";
    rejected_waiting: IntGaugeVec("fanwise_rejected_waiting")
        = "Rejected messages that are kept. One process reports it for all";
    http_requests: IntCounterVec("fanwise_http_requests_total", ["route", "status"])
        = "Requests to the HTTP interface, by route and class of the status";
    http_seconds: HistogramVec("fanwise_http_request_duration_seconds", ["route"]; CALLS)
        = "Time from the head of a request to the head of its answer; callers may ask to wait for \
           their job";
    http_in_flight: IntGauge("fanwise_http_requests_in_flight")
        = "Requests whose answer has not begun";
    http_refused: IntCounterVec("fanwise_http_refused_total", ["bound"])
        = "Requests refused because a bound of the HTTP interface was reached";
    upload_bytes: IntCounter("fanwise_upload_bytes_total")
        = "Bytes of uploaded lists";
    certificate: GaugeVec("fanwise_certificate_expires_timestamp_seconds")
        = "When the certificate of the HTTP interface expires";
    store_bytes: IntGaugeVec("fanwise_store_bytes")
        = "Size of the files of the embedded engine";
    store_free: IntGaugeVec("fanwise_store_free_bytes")
        = "Free bytes on the disk of the embedded engine";
    store_written: IntCounterVec("fanwise_store_written_bytes_total")
        = "Bytes that the embedded engine has written to its files";
    commit_seconds: HistogramVec("fanwise_store_commit_duration_seconds"; STEPS)
        = "Time of a commit of the embedded engine";
}

impl Metrics {
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

    /// The text that Prometheus scrapes.
    pub fn text(&self) -> String {
        let families = {
            let _turn = self.turn.lock();
            self.registry.gather()
        };
        let mut text = Vec::new();
        // Writing to memory fails only for a family without metrics, which gather() leaves out.
        let _ = TextEncoder::new().encode(&families, &mut text);
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
    use std::time::Duration;

    use super::*;
    use crate::domain::lane::Priority;
    use crate::domain::outcome::{Class, Outcome};

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
            "fanwise_claims_total{state=\"held\"} 0",
            "fanwise_http_refused_total{bound=\"places\"} 0",
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

    #[test]
    fn apps_beyond_the_bound_share_a_label() {
        let metrics = Metrics::new();
        let names: Vec<String> = (0..APPS_MAX + 2).map(|it| format!("app-{it:02}")).collect();
        let apps = metrics.apps(names.iter().map(String::as_str));
        for name in &names {
            apps.ended(name, &[1; Outcome::ALL.len()]);
        }
        let text = metrics.text();
        let sent = |app: &str| format!("{{app=\"{app}\",outcome=\"sent\"}}");
        assert!(text.contains(&format!("{} 1\n", sent("app-49"))), "{text}");
        assert!(text.contains(&format!("{} 2\n", sent(OTHER))), "{text}");
        assert!(!text.contains("app-50"), "{text}");
    }

    #[test]
    fn figures_of_the_cluster_are_replaced_as_a_whole() {
        let metrics = Metrics::new();
        let mut figures = ClusterFigures::default();
        let pending = Pending {
            recipients: 7,
            oldest_ms: 1500,
        };
        let im = ("im".to_owned(), Priority::High);
        figures.pending.insert(im, pending);
        figures.jobs[OpenState::Paused as usize] = 2;
        metrics.cluster(Some(&figures));
        let text = metrics.text();
        for line in [
            "fanwise_recipients_pending{priority=\"high\",target=\"im\"} 7",
            "fanwise_oldest_pending_age_seconds{priority=\"high\",target=\"im\"} 1.5",
            "fanwise_jobs{state=\"paused\"} 2",
            "fanwise_processes{role=\"worker\"} 0",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(!text.contains("fanwise_dead_letters_waiting"), "{text}");
        metrics.cluster(None);
        assert!(!metrics.text().contains("fanwise_recipients_pending"));
    }
}
