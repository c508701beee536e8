//! Tests against the real systems around Fanwise.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails; what it skips and measures is printed"
)]

// RabbitMQ: publishing, consuming and what happens when it goes away.
mod amqp;
