//! Integration tests of the library and the binary against real servers, which `tests/run` starts.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test that cannot go on panics, and one that skips says so"
)]

/// RabbitMQ: publishing, consuming, rungs, rejected messages, lost sessions.
mod amqp;
/// The native HTTP interface: jobs, events, recipients, dead letters, redrive and purge.
mod api;
/// Lists that a job names by their address.
mod audience_url;
/// The dependencies allowed between the folders of the crate.
mod boundaries;
/// Promise 11: the resources that one caller may use, so that the others get in.
mod bounds;
/// Calls in flight that adapt to their target.
mod call_places;
/// The command line through a server, as somebody far away uses it.
mod command_line;
/// The promises of every engine: one suite for the ports, on the embedded engine, in memory and on
/// servers.
mod contract;
/// Directives: pause, cancel, re-rate, park; what is told about them.
mod control;
/// The cost per recipient, in steps of Redis.
mod cost;
/// Pages of dead letters, while other processes change the letters.
mod dead_pages;
/// README and `docs`: links, quoted commands, names of metrics, an entry for each alert.
mod documents;
/// All in one test: three workers, faults of every kind, a SIGKILL.
mod done;
/// Drop-in endpoints: documented requests of existing callers, and the answers that they expect.
mod dropin;
/// `fanwise serve` and `fanwise demo`: the embedded engine as a user runs it.
mod embedded;
/// The example producers, each against a real broker with a worker behind it.
mod examples;
/// Promise 8: the shares of a slow backend.
mod fairness;
/// A second target for recipients that the first one fails.
mod fallback;
/// Recorded formats: what each released version wrote is read by this one.
mod formats;
/// Frequency caps: messages of a category to a recipient, over jobs.
mod frequency_caps;
mod hindrances;
/// Sending hours of jobs and apps.
mod hours;
/// Redis behind Sentinels, Redis Cluster, TLS to Redis: what the ledger does when servers change.
mod ledger_servers;
/// Limits that several jobs, targets or senders have together, and the first limit of a job.
mod limits;
/// A broker and a store in memory, with faults on demand; `tests/schedules` uses them too.
mod memory;
/// An earlier version of Fanwise beside this one.
mod mixed;
/// Metrics, rules and dashboards, read by Prometheus and its tools.
mod monitoring;
/// Lists for a target that cannot take them, which wait until it can.
mod not_cut;
/// Notices about the end of a job, over HTTP and over AMQP.
mod notice;
/// All steering in one test: what an operator does while everything happens at once.
mod operator;
/// The rules of what apps may send and who may use the gateway; and TLS.
mod permit;
/// Personal and stored messages: each recipient gets its own text.
mod personal;
/// Arbitrary messages of producers: raw bytes, depth, size, `expiration`.
mod producers;
/// The promises of the crate documentation, by name, on shared servers.
mod promises;
/// Ids of messages that are kept, and messages that are taken back.
mod recall;
/// The example receivers of webhooks, called by a worker and by strangers.
mod receivers;
/// The generated pages of `docs/reference`.
mod reference;
/// Jobs whose slices were lost.
mod repair;
/// The promises while RabbitMQ or Redis die, on servers of the test's own.
mod restart;
/// Retry policies of targets and apps, and the retry budget of a job.
mod retries;
/// Targets that throttle or fail: the adapted limit, and the breaker.
mod steady;
/// Steering: tags, start, deadline, priority, the audit trail; how soon a change takes effect.
mod steering;
/// Processes that are stopped by a signal and go on.
mod stopped;
/// Redis: the ledger against a model, the throttle against its arithmetic.
mod store;
/// Shared parts: servers, a link that can be cut, processes, bounded waits.
mod support;
/// The IM systems: their requirements, answers and limits, from a job to the mock's log.
mod systems;
/// TLS to Redis and targets, with certificates made for the test.
mod tls;
/// Traces: the spans that an OpenTelemetry collector gets.
mod traces;
/// The HTTP interface: long lists, repeats, overload, slow callers.
mod upload;
/// The commit that a build names.
mod version;
