//! The connections of Fanwise, for its worker and for its client library.
//!
//! - [`tls`]: which servers are trusted, and what a failure of TLS means.
//! - `http` (feature `http`): an HTTP/1.1 client that tells exactly what is known about a request.
//! - `amqp` (feature `amqp`): connections to RabbitMQ that no message can end, and that can be cut.
//! - [`error`]: an error with its causes as one line.

#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        reason = "tests start servers and look at the real clock"
    )
)]

#[cfg(feature = "amqp")]
pub mod amqp;
pub mod error;
#[cfg(feature = "http")]
pub mod http;
pub mod tls;
