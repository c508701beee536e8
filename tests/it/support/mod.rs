//! Contains the parts that integration tests share.
//!
//! - [`servers`]: the shared RabbitMQ and Redis, and private ones that may be killed.
//! - [`raw`]: a producer that puts arbitrary bytes into the properties of a message.
//! - [`relay`]: a TCP relay inside the test that can cut, hold and delay a link.
//! - [`retained`]: edits of retained queues that do not come to their end.
//! - [`certificates`]: a CA, and certificates that it signs.
//! - [`mock`]: the mock IM server inside the test.
//! - [`process`]: the built binary as a process that can be killed, stopped and read.
//! - [`toolchain`]: the programs in `examples/`, built in the languages that this machine has.
//! - [`signature`]: verifies and makes signatures of webhooks, apart from the code under test.
//! - [`wait`]: waits for a condition, with a bound and a name.
//! - [`world`]: a mock, a configuration and workers: one whole system to broadcast with.
//! - [`scratch`]: folders that are deleted with the test.
//!
//! If a test needs something that this machine lacks, it prints "skipped: …" and passes. With
//! `FANWISE_TEST_REQUIRE=1`, which `tests/run` sets, it fails. Only Go, Java and PHP may be missing.

pub(crate) mod certificates;
pub(crate) mod mock;
pub(crate) mod process;
pub(crate) mod raw;
pub(crate) mod relay;
pub(crate) mod retained;
pub(crate) mod scratch;
pub(crate) mod servers;
pub(crate) mod signature;
pub(crate) mod toolchain;
pub(crate) mod wait;
pub(crate) mod world;
