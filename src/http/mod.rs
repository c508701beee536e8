//! HTTP/1.1 towards backends, and the server of the gateway and the admin port.

pub mod client;
pub(crate) mod server;
pub mod tls;
