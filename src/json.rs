//! Writes values of ours as JSON: strings, numbers and JSON that was parsed before.
//!
//! That cannot fail. If it ever does, an empty message must not take the place of the value: whoever
//! gets it would take it for what was meant, and what it stood for would be lost. So it is a panic,
//! which ends the one task, is counted, and leaves its delivery with the broker.

use serde::Serialize;
use serde_json::value::RawValue;

pub(crate) fn bytes<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    write(&mut out, value);
    out
}

/// Appends a value.
#[expect(clippy::expect_used, reason = "see above")]
pub(crate) fn write<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value).expect("a value of ours can be written as JSON");
}

#[expect(clippy::expect_used, reason = "see above")]
pub(crate) fn text<T: Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).expect("a value of ours can be written as JSON")
}

#[expect(clippy::expect_used, reason = "see above")]
pub(crate) fn raw<T: Serialize + ?Sized>(value: &T) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).expect("a value of ours can be written as JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promises 1 and 5: what cannot be written is not published empty and acked.
    #[test]
    fn what_has_no_json_form_is_no_empty_message() {
        // A key of an object is a text.
        let odd = std::collections::BTreeMap::from([((1, 2), 3)]);
        assert!(std::panic::catch_unwind(|| bytes(&odd)).is_err());
        assert!(std::panic::catch_unwind(|| text(&odd)).is_err());
        assert!(std::panic::catch_unwind(|| raw(&odd)).is_err());
        assert_eq!(bytes("a"), b"\"a\"");
        assert_eq!(text(&[1, 2]), "[1,2]");
        assert_eq!(raw(&1).get(), "1");
    }
}
