//! HTTP/1.1 to backends, and the HTTP server of the gateway and the admin port.

pub mod client;
pub(crate) mod server;
pub mod tls;
