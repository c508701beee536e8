//! Fanwise: a durable broadcast worker for instant messaging.
//!
//! Other services enqueue *jobs* (one message, many recipients) on RabbitMQ. Any number of `fanwise
//! worker` processes share them. The workers cut jobs into slices and send to an IM backend, once
//! to each recipient, within shared rate limits. Retries block no other work, and failed recipients
//! end in dead letters. On one machine `fanwise serve` does the same without RabbitMQ and Redis, on
//! an embedded engine.
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
//! Each promise has tests in `tests/it` whose names begin with `promise_` and its number: 2, 3, 4,
//! 5, 7, 8 and 10 in `promises.rs`, 1, 5 and 6 in `restart.rs`, 8 in `fairness.rs`, 1, 9 and 11 in
//! `producers.rs`, 1 and 11 in `amqp.rs`, 11 in `bounds.rs` and `notice.rs`. Promise 9 has one more
//! in `upload.rs`, `a_million_recipients_are_taken_in_bounded_memory`.
//!
//! 1. **Accepted is durable.** The broker confirms a job that was published with confirms and
//!    `mandatory` only after it has the job on disk.
//! 2. **Exact accounts.** Every list entry ends in one of `sent`, `duplicate`, `failed`,
//!    `uncertain`, `expired`, `cancelled`, `capped`. A job is `completed` when no recipient is pending and an
//!    audit of the ledger agrees.
//! 3. **Once.** For one (app, `client_msg_no`, recipient) at most one send is in flight in the
//!    whole cluster, and a recipient that was sent to is not sent to again within the dedup window.
//! 4. **The honest gap.** A worker that is killed between a request and its record leaves at most
//!    its calls in flight in doubt. Their recipients become uncertain, and a policy decides: retry,
//!    hold or drop.
//! 5. **Effects before acks.** Outcomes, retries and dead letters are durable before the delivery
//!    that caused them is acked.
//! 6. **What cannot be recorded is not sent.** While the ledger or the broker is away, lanes stop.
//! 7. **Waiting costs nothing.** It uses no attempt, no place among the slices in work, no growing
//!    memory and no ack limit.
//! 8. **No starving.** Priorities are rates, 8:4:1; apps share by weight and the jobs of an app
//!    equally, whatever their size. Small jobs have places of their own.
//! 9. **Bounded.** Memory does not grow with the size of a job.
//! 10. **Configuration faults stop the job, not the audience.** When a second job meets the same
//!     fault, the target is parked.
//! 11. **One caller cannot take what belongs to all.** Bounds apply before credentials are checked,
//!     then each app has a share, and the administrator has a reserve.
//!
//! # How the promises are kept
//!
//! *Identity.* A job id is a hash of (app, `client_msg_no`), a submission is named by a hash of its
//! list, and slices are counted within a submission. A repeated step therefore uses the same names,
//! and the ledger absorbs the repeat ([`domain::ids`], [`domain::slice`]).
//!
//! *Accounts.* Each slice counts the recipients that it settled itself. When a delivery of the
//! slice has an outcome for every recipient, the slice is complete. The entries that it did not
//! settle itself then count as duplicates, if its deliveries saw that many repeats. A redelivered
//! slice finds its own count and adds nothing (`worker::delivery`).
//!
//! *Once.* The ledger keeps eight bytes of keyed hash and three bytes of state per recipient, in
//! buckets that are read and written whole. A claim carries a deadline and an owner that is drawn
//! for that delivery. A claim of another owner whose deadline passed is taken over as uncertain
//! ([`ports::Ledger`], [`store`]).
//!
//! *Personal messages.* When the recipients of a job bring values, the worker renders the message
//! for each recipient just before the call, from the slice: the same bytes on every attempt
//! ([`domain::personal`]). The intake inserts a stored message, in the version with which the job
//! started according to the ledger ([`domain::template`], [`ports::Templates`]).
//!
//! *Directives* (pause, cancel, re-rate) are in the store. Every worker compares their version
//! twice a second, which with Redis reads one field of one key. Before each call the worker checks
//! whether the call may leave, at the price of two loads, so a directive also holds back calls that
//! wait for a place. No call starts on directives that are older than a second: a process that was
//! stopped reads them first (`runtime::known_directives`). Paused work waits on the retry ladder and looks again after as long as the
//! pause has lasted, at most a minute ([`domain::directive`]).
//!
//! *Time.* Outside of the sending hours slices wait on the ladder. Where recipients bring a zone of
//! their own, a slice leaves those outside of their hours for its remainder ([`domain::own_hours`]).
//! A job that is spread over a time has a rate that every worker derives from what is pending and the
//! time that is left, and all book it with one limiter ([`domain::spread`]).
//!
//! *Frequency caps.* The store keeps, per app, category and recipient, when which jobs sent last. A
//! recipient takes a unit between claim and call, and one without a free unit ends `capped`
//! ([`domain::frequency_cap`], [`ports::FrequencyCaps`]).
//!
//! *Losing the ledger* loses the dedup window, never a recipient: slices carry the message and the
//! list, and the job's record is rebuilt from them. Lost heartbeats, or a number that the broker
//! keeps too, show that the ledger returned with older data, and the jobs that ran are marked.
//! Recipients whose outcome the ledger no longer knows end as uncertain when nothing is left to
//! deliver to them.
//!
//! *Losing slices.* Every slice that a worker looks at shows a sign of life in the ledger. Workers look
//! for what is left of a job without any sign, and end it if nothing can be left
//! ([`domain::repair`], `worker::sweep`).
//!
//! *A second target* gets the recipients that the first one fails. A slice keeps them apart until
//! nobody else is left, and then moves to the other target as a whole, so a slice is one message at
//! any time ([`domain::fallback`]).
//!
//! *Fair shares.* A worker knows from the head of a slice whose it is, measures how long the slices
//! of each class, app and job hold its places, and gives a free place to those that have had least
//! ([`domain::fairness`], `worker::scheduler`). The ledger assigns each job to one of eight
//! sub-lanes, so that few jobs stand behind each other in a queue ([`domain::lane`],
//! [`ports::SubLanes`]).
//!
//! *Small jobs* need no second trip through the broker. The worker that takes one delivers it at
//! once and acks it when every recipient has an outcome or the rest is published; until then the
//! job itself is what survives a crash. A few do so at a time, so that slow targets do not hold up
//! the intake; the slices of all others take their lanes (`worker::direct`).
//!
//! *Sharing the gateway.* The server checks the head of a request before it waits for the body. Everything that
//! the request holds after that (a place, bytes, a stream) counts against the share of its app
//! until the client has taken the answer. An app may hold three times as much as is still free
//! (`gateway::pool`). Idle connections are closed to make room for new ones (`http::server`).
//!
//! *Long lists* arrive in parts. If a part names its list (`together`), its slices wait on the
//! ladder until the ledger knows all parts, so a producer that dies between two parts does not
//! leave a list half sent ([`gateway`], `worker::together`).
//!
//! # Codemap, in reading order
//!
//! - [`domain`]: values and arithmetic. It uses no clock, no broker and no store.
//! - [`ports`]: the contracts of broker, ledger, limiter, directives, stored messages and target.
//! - [`runtime`]: what workers and gateways share in a process: targets and apps, the state of the
//!   ledger, parked targets, credentials, calls.
//! - [`worker`]: sessions, intake, lanes, delivery, notices. It depends on no broker and no store.
//! - [`service`]: everything that the HTTP interface, the drop-in endpoints and the command line
//!   have in common.
//! - [`amqp`]: the broker on RabbitMQ. [`store`]: ledger, limiter, directives and stored messages
//!   on Redis. [`embedded`]: all of them on one file. They depend on [`ports`] and [`domain`], not
//!   on each other and not on the worker.
//! - [`gateway`]: the HTTP interface. [`http`]: the server that it shares with [`admin`], and the
//!   client that sends every call.
//! - [`im`]: one folder per IM system, with pure functions that build requests and read replies.
//!   The crate `fanwise-mock-im` plays these systems.
//! - [`fanwise_client`]: the types of the contract, signatures, and the producers of the command
//!   line. [`fanwise_net`]: connections over TLS, HTTP and AMQP.
//! - [`config`], [`app`] (builds the process), [`allocator`], [`admin`], [`clock`], [`error`],
//!   [`exit`], [`limits`], [`metrics`], [`schema`], [`secret`], [`shutdown`], [`telemetry`],
//!   [`tls`], [`version`], [`cli`].
//!
//! # Words
//!
//! *app* a tenant. *job* message × audience. *slice* up to N recipients of one job, the unit on the
//! lanes and of ack. *call* one request to a backend. *target* one backend account. *lane* a queue of
//! one target and class. *place* what a slice needs at a worker to make calls. *ledger* the record of claimed and settled recipients. *outcome*
//! how a recipient ended. *attempt* 1-based, the first try included. *parked* a target that waits
//! until a time. *category* what a message is for. *frequency cap* at most so many messages of a
//! category to a recipient within a period. *dead letter* recipients that ended failed or uncertain, with reasons. *directive*
//! pause, resume, cancel or re-rate of a job, app or target.

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
pub use fanwise_net::error;
pub mod exit;
pub mod gateway;
pub mod http;
pub mod im;
mod json;
pub mod limits;
pub mod metrics;
pub mod ports;
pub mod runtime;
pub mod schema;
pub mod secret;
pub mod service;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub use fanwise_net::tls;
pub mod version;
pub mod worker;
