//! Values of our own as JSON: the one way to write them.
//!
//! Texts, numbers, lists and maps by text always have a JSON form, and memory takes it. If one ever had
//! none, that would be a mistake of ours. It must not become an empty message that is published,
//! confirmed and lost, so it is a panic: what is in work then goes back to where it came from, and is
//! counted.

use serde::Serialize;
use serde_json::value::RawValue;

/// A value as JSON in bytes.
pub fn bytes<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    write(&mut out, value);
    out
}

/// Appends a value as JSON.
#[expect(
    clippy::expect_used,
    reason = "a message without its content must not go out"
)]
pub fn write<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value).expect("a value of our own has a JSON form");
}

/// A value as JSON in a text.
#[expect(
    clippy::expect_used,
    reason = "a message without its content must not go out"
)]
pub fn text<T: Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).expect("a value of our own has a JSON form")
}

/// A value as JSON to be put into other JSON.
#[expect(
    clippy::expect_used,
    reason = "a message without its content must not go out"
)]
pub fn raw<T: Serialize + ?Sized>(value: &T) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).expect("a value of our own has a JSON form")
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
