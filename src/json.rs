//! Writes values of ours as JSON: strings, numbers and JSON that was parsed before.
//!
//! That cannot fail. If it ever does, an empty message must not take the place of the value: whoever
//! gets it would take it for what was meant, and what it stood for would be lost. So it is a panic,
//! which ends the one task, is counted, and leaves its delivery with the broker.

use serde::Serialize;
use serde_json::value::RawValue;

#[expect(clippy::expect_used, reason = "see above")]
pub(crate) fn bytes(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("a value of ours can be written as JSON")
}

#[expect(clippy::expect_used, reason = "see above")]
pub(crate) fn raw(value: &impl Serialize) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).expect("a value of ours can be written as JSON")
}
