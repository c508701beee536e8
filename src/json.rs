//! Writes our own values as JSON (strings, numbers, and JSON that was parsed before) and reads them
//! again.
//!
//! This cannot fail. If it ever does, the code panics: an empty message in place of the value would
//! be taken for the real one, and the value would be lost. The panic ends one task, is counted, and
//! leaves the delivery with the broker.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The bytes that [`write()`] would append.
pub(crate) use fanwise_client::parts::json_bytes as size;

/// Whether a number is left out, as the value that its absence means.
pub(crate) fn is_zero<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}

pub(crate) fn bytes<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    write(&mut out, value);
    out
}

/// Appends a value.
#[expect(clippy::expect_used, reason = "see above")]
pub(crate) fn write<T: Serialize + ?Sized>(out: &mut impl std::io::Write, value: &T) {
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

/// The text of bytes that were written as UTF-8.
#[expect(clippy::expect_used, reason = "see above")]
pub(crate) fn written(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("texts of ours are UTF-8")
}

/// JSON that was joined from JSON and JSON strings.
#[expect(clippy::expect_used, reason = "see above")]
pub(crate) fn joined(json: String) -> Box<RawValue> {
    RawValue::from_string(json).expect("JSON and texts of ours make JSON")
}

/// Parses JSON that was parsed as the same type before.
#[expect(clippy::expect_used, reason = "see above")]
pub(crate) fn again<'a, T: Deserialize<'a>>(json: &'a str) -> T {
    serde_json::from_str(json).expect("what was read once can be read again")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promises 1 and 5: a value that cannot be written is not published empty and acked.
    #[test]
    fn what_has_no_json_form_is_no_empty_message() {
        // JSON needs texts as keys of an object.
        let odd = std::collections::BTreeMap::from([((1, 2), 3)]);
        assert!(std::panic::catch_unwind(|| bytes(&odd)).is_err());
        assert!(std::panic::catch_unwind(|| text(&odd)).is_err());
        assert!(std::panic::catch_unwind(|| raw(&odd)).is_err());
        assert_eq!(bytes("a"), b"\"a\"");
        assert_eq!(text(&[1, 2]), "[1,2]");
        assert_eq!(raw(&1).get(), "1");
        assert_eq!(size("\"\u{1}é"), text("\"\u{1}é").len());
        assert!(std::panic::catch_unwind(|| joined(r#"{"text":"#.to_owned())).is_err());
        assert!(std::panic::catch_unwind(|| written(vec![0xff])).is_err());
        assert!(std::panic::catch_unwind(|| again::<Vec<u8>>("{}")).is_err());
    }

    /// Checks all code that writes JSON or texts: nothing replaces a value that could not be
    /// written by an empty one.
    #[test]
    fn no_code_takes_nothing_for_what_cannot_be_written() {
        let writes = [
            "serde_json::to_",
            "serde_json::value::to_",
            "RawValue::from_string(",
            "String::from_utf8(",
        ];
        let mut folders = vec![concat!(env!("CARGO_MANIFEST_DIR"), "/src").into()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir::<std::path::PathBuf>(folder).unwrap() {
                let path = entry.unwrap().path();
                // These only show a fault.
                let exempt = ["src/json.rs", "tests.rs"];
                if exempt.iter().any(|end| path.ends_with(end)) {
                    continue;
                }
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let text = std::fs::read_to_string(&path).unwrap();
                for statement in text.split([';', '{', '}']) {
                    let write = writes.iter().find_map(|write| statement.split_once(write));
                    let lost = write.is_some_and(|(_, rest)| rest.contains("unwrap_or_default()"));
                    assert!(!lost, "{}: use crate::json for{statement}", path.display());
                }
            }
        }
    }
}
