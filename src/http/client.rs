//! The client that sends every call.

use std::time::Duration;

pub use fanwise_net::http::{Client, ClientSettings, Download, platform_tls};

use crate::ports::{HttpReply, Request, SendError, Transport};

impl Transport for Client {
    async fn send(&self, request: Request, timeout: Duration) -> Result<HttpReply, SendError> {
        Client::send(self, request, timeout).await
    }

    fn tidy(&self) {
        Client::tidy(self);
    }
}
