//! Integration tests: the library and the binary against real servers. `tests/run` brings them.

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
/// Which folder of the crate may use which.
mod boundaries;
/// Promise 11: what one caller may take up, and that the others get in.
mod bounds;
/// What every engine promises: one suite for the ports, on the embedded engine, in memory and on servers.
mod contract;
/// Directives: pause, cancel, re-rate, park; what is told about them.
mod control;
/// Everything at once: three workers, faults of every kind, a SIGKILL half-way.
mod done;
/// Drop-in endpoints: the documented requests of existing callers, answered in their own manner.
mod dropin;
/// `fanwise serve` and `fanwise demo`: the embedded engine as a user runs it.
mod embedded;
/// The example producers, each against a real broker with a worker behind it.
mod examples;
/// Promise 8: who gets how much of a slow backend.
mod fairness;
/// A broker and a store in memory, with faults on demand; see also `tests/schedules`.
mod memory;
/// Notices: whoever a job named is told of its end, over HTTP and over AMQP.
mod notice;
/// What apps may send, who may use the gateway, and TLS.
mod permit;
/// Personal messages and stored ones: everybody gets the text that is theirs.
mod personal;
/// Whatever a producer may put on a message: raw bytes, depth, size, `expiration`.
mod producers;
/// The promises of the crate documentation, by name, on shared servers.
mod promises;
/// The promises while RabbitMQ or Redis die, on servers of the test's own.
mod restart;
/// Redis: the ledger against a model, the throttle against its arithmetic.
mod store;
/// What the tests share: servers, a link that can be cut, processes, bounded waits.
mod support;
/// The IM systems: what each of them asks for, answers and forbids, from a job to the mock's log.
mod systems;
/// The HTTP interface: long lists, repeats, overload, slow callers.
mod upload;
