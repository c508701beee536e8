//! What integration tests share.
//!
//! - [`servers`]: where the shared RabbitMQ and Redis are, and private ones that may be killed.
//! - [`raw`]: a producer that puts any bytes into the properties of a message.
//! - [`relay`]: a TCP relay inside the test that can cut, hold and delay a link.
//! - [`mock`]: the mock IM server inside the test.
//! - [`process`]: the built binary as a process that can be killed, stopped and read.
//! - [`wait`]: waiting for a condition, with a bound and a name.
//! - [`world`]: a mock, a configuration and workers: one whole system to broadcast with.
//! - [`scratch`]: folders that go away with the test.
//!
//! A test that needs what this machine lacks says "skipped: …" and passes; with
//! `FANWISE_TEST_REQUIRE=1`, as `tests/run` sets it, it fails instead.

pub(crate) mod mock;
pub(crate) mod process;
pub(crate) mod raw;
pub(crate) mod relay;
pub(crate) mod scratch;
pub(crate) mod servers;
pub(crate) mod wait;
pub(crate) mod world;
