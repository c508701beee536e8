//! IM systems: one folder each, and the mock server that stands in for them in tests.

pub mod http;
