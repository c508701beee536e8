//! Fanwise: a durable broadcast worker for instant messaging.

pub mod amqp;
pub mod domain;
pub mod im;
pub mod ports;
