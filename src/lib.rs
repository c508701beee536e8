//! Fanwise: a durable broadcast worker for instant messaging.

pub mod domain;
pub mod im;
pub mod ports;
pub mod store;
