//! The callbacks that apps may ask for.

use std::time::Duration;

use fanwise_client::webhook::Signer;

use crate::domain::notice::CallbackRules;

/// How to make the callbacks of one app.
pub struct Callbacks<T> {
    pub rules: CallbackRules,
    pub signer: Signer,
    pub timeout: Duration,
    /// Reaches private addresses only where the rules allow them.
    pub transport: T,
}
