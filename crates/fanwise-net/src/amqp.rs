//! Connections to RabbitMQ, over AMQP 0-9-1.
//!
//! - `connection`: to which node, with which login, how long to wait, and the errors.
//! - `stream`, `frames`: the bytes of a connection, so that no message can end it.

mod connection;
mod frames;
mod stream;

pub use self::connection::{AmqpError, Dial, DialError, DialSettings};
pub use self::stream::Link;
