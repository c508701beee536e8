//! Runs the mock IM server inside the test.

use std::net::SocketAddr;

use fanwise_mock_im::{MockHandle, MockIm, Settings};
use tokio_util::sync::CancellationToken;

/// Runs a mock until the token is cancelled.
pub(crate) async fn start(settings: Settings) -> (SocketAddr, MockHandle, CancellationToken) {
    let mock = MockIm::bind(settings).await.unwrap();
    let (address, handle, stop) = (mock.addr(), mock.handle(), CancellationToken::new());
    tokio::spawn(mock.run(stop.clone().cancelled_owned()));
    (address, handle, stop)
}
