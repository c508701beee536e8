//! Connections to RabbitMQ, over AMQP 0-9-1.
//!
//! - `connection`: to which node, with which login, how long to wait, and the errors.
//! - `fault`: what an error of the client library means.
//! - `stream`, `frames`: the bytes of a connection, so that no message can end it.

mod connection;
mod fault;
mod frames;
mod stream;

pub use self::connection::{AmqpError, Dial, DialError, DialSettings};
pub use self::fault::Fault;
pub use self::stream::Link;
