//! Integration tests. Those that need a server find it by environment variable.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails; what it skips is printed"
)]

/// Redis: the ledger against a model, the throttle against its arithmetic.
mod store;
