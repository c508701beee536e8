//! Fanwise: a durable broadcast worker for instant messaging.
//!
//! Other services enqueue *jobs* (one message, many recipients) on RabbitMQ. Any number of `fanwise
//! worker` processes share them: they cut jobs into slices and send to an IM backend, each recipient
//! once, within shared rate limits, with retries that block nobody and dead letters for failed users.
//! On one machine `fanwise serve` does the same without RabbitMQ and Redis, on an embedded engine.
//!
//! ```text
//! producer ─AMQP─▶ fanwise.jobs ─▶ intake ─▶ lanes ─▶ deliver ─▶ IM backend
//!                                    │         ▲         │
//!                                  ledger      │   claim, lease, call, settle
//!                                              └─ ladder ◀┤  remainders wait in TTL queues
//!                                    fanwise.dead ◀───────┤  failed and uncertain recipients
//!                                    fanwise.events ◀─────┘  accepted, progress, completed
//! ```
//!
//! # Promises
//!
//! Each has a test in `tests/it/promises.rs` or `tests/it/restart.rs` that bears its name.
//!
//! 1. **Accepted is durable.** A producer that publishes with confirms and `mandatory` is told
//!    "accepted" after the broker has the job on disk.
//! 2. **Exact accounts.** Every list entry ends in one of `sent`, `duplicate`, `failed`, `uncertain`,
//!    `expired`, `cancelled`; a job is `completed` when nobody is pending and an audit of the ledger
//!    agrees.
//! 3. **Once.** For one (app, `client_msg_no`, recipient) at most one send is in flight in the whole
//!    cluster, and who was sent to is not sent to again within the dedup window.
//! 4. **The honest gap.** A worker that is killed between a request and its record leaves at most the
//!    calls it had in flight in doubt. They become uncertain, and a policy decides: retry, hold, drop.
//! 5. **Effects before acks.** Outcomes, retries and dead letters are durable before the delivery that
//!    caused them is acked.
//! 6. **What cannot be recorded is not sent.** With the ledger or the broker away, lanes stop.
//! 7. **Waiting costs nothing.** No attempt, no place in work, no growing memory, no ack limit.
//! 8. **No starving.** Small jobs have a lane and places of their own; priorities are rates, 8 : 4 : 1.
//! 9. **Bounded.** Memory does not grow with the size of a job.
//! 10. **Configuration faults stop the job, not the audience.** The target is parked when a second job
//!     meets the same.
//! 11. **One caller cannot take what belongs to all.** Bounds before credentials are checked, a share for
//!     each app after that, and a reserve for the administrator (`tests/it/bounds.rs`).
//!
//! # How the promises are kept
//!
//! *Identity.* A job id is a hash of (app, `client_msg_no`); a submission is named by a hash of its
//! list; slice ids are counted within a submission. Whoever repeats something names it
//! alike, and the ledger absorbs the repeat ([`domain::ids`], [`domain::slice`]).
//!
//! *Accounts.* Each slice counts the recipients that it settled itself. When a delivery of the slice
//! has an outcome for everybody, the slice counts as complete, and what it did not settle itself were
//! duplicates. A redelivered slice finds its own count and adds nothing (`worker::deliver`).
//!
//! *Once.* The ledger keeps eight bytes of keyed hash and three of state per recipient, in buckets that
//! are read and written whole. A claim carries an owner drawn for that delivery and a deadline; a foreign claim whose
//! deadline passed is taken over as uncertain ([`ports::Ledger`], [`store`]).
//!
//! *Personal messages.* A job whose recipients bring values is rendered recipient by recipient just
//! before the call, from what the slice carries: the same bytes on every attempt ([`domain::personal`]).
//! A stored message is put in its place by the intake, in the version that the ledger says the job
//! started with ([`domain::template`], [`ports::Templates`]).
//!
//! *Directives* (pause, cancel, re-rate) stand in the store, and every worker looks for another version
//! of them twice a second: one field of one key. Whether a call may leave is asked before each one, at
//! the price of one load, so that calls that wait for a place are held back too. What is paused waits on
//! the ladder and looks again after as long as the pause has lasted, at most a minute
//! ([`domain::directive`]).
//!
//! *Losing the ledger* loses the dedup window, never a recipient: slices carry the message and the
//! list, and the job's record is rebuilt from them. A ledger that comes back with older data is noticed by
//! the heartbeats it has lost, or by a number that the broker keeps too, and the jobs that ran are
//! marked; what it does not know any more, when
//! nothing is left to deliver, ends as uncertain.
//!
//! *Sharing.* The head of a request is judged before its body is waited for. What it takes up after that
//! (a place, bytes, a stream) comes out of its app's share, until its answer is taken: an app may hold
//! three times as much as is still free (`gateway::pool`). Connections that are idle make place for new
//! ones (`http::server`).
//!
//! *Long lists* travel as parts. Where a part names its list (`together`), its slices wait on the ladder
//! until the ledger knows all parts, so that whoever dies between two of them leaves nobody
//! half-notified ([`gateway`], `worker::together`).
//!
//! # Codemap, in reading order
//!
//! - [`domain`]: values and arithmetic; pure. Nothing in it awaits, reads a clock or draws a number.
//! - [`ports`]: the contracts of broker, ledger, limiter, directives, stored messages and target.
//! - [`worker`]: sessions, intake, lanes, delivery, notices. Names no broker and no store.
//! - [`amqp`]: the broker on RabbitMQ. [`store`]: ledger, limiter, directives and stored messages on
//!   Redis. [`embedded`]: all of them on one file. They know [`ports`] and [`domain`], not each other
//!   and not the worker.
//! - [`gateway`]: the HTTP interface. [`http`]: the server that it shares with [`admin`], and the client
//!   that sends every call.
//! - [`im`]: one folder per IM system: what to ask and how to read the answer, as pure functions.
//!   The crate `fanwise-mock-im` plays these systems.
//! - [`config`], [`app`] (puts everything together), [`allocator`], [`admin`], [`metrics`], [`telemetry`],
//!   [`shutdown`], [`exit`], [`secret`], [`cli`], [`schema`].
//!
//! # Words
//!
//! *app* a tenant. *job* message × audience. *slice* up to N recipients of one job, the unit on the
//! lanes and of ack. *call* one request to a backend. *target* one backend account. *lane* the queue of
//! one target and class. *ledger* who is claimed and settled. *outcome* how a recipient ended.
//! *attempt* 1-based, the first try included. *parked* told to wait until a time. *dead letter*
//! recipients that ended failed or uncertain, with reasons. *directive* pause, resume, cancel, re-rate
//! of a job, app or target.

#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        reason = "tests start servers and look at the real clock"
    )
)]

pub mod admin;
pub mod allocator;
pub mod amqp;
pub mod app;
pub mod cli;
pub mod clock;
mod codec;
pub mod config;
pub mod domain;
pub mod embedded;
pub mod error;
pub mod exit;
pub mod gateway;
pub mod http;
pub mod im;
mod json;
pub mod limits;
pub mod metrics;
pub mod ports;
pub mod schema;
pub mod secret;
pub mod service;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod worker;
