//! The port to nonces that were used.

use std::future::Future;
use std::time::Duration;

use super::LedgerError;

/// Remembers the nonces of signed requests, for all gateways.
pub trait Nonces: Clone + Send + Sync + 'static {
    /// Returns whether a nonce is new, and remembers it for `lives`. After an error it may be
    /// remembered.
    fn is_new(
        &self,
        nonce: &str,
        lives: Duration,
    ) -> impl Future<Output = Result<bool, LedgerError>> + Send;

    /// Forgets a nonce whose request was not carried out, so that the same request may be sent
    /// again.
    fn release(&self, nonce: &str) -> impl Future<Output = Result<(), LedgerError>> + Send;
}
