//! Reads the W3C trace context of a message, for tools that show how a job travelled.
//!
//! It comes from outside and is in a header of every message of a job, so anything but the 55
//! characters of the standard is dropped. The job itself is not affected.

/// The length of `version-trace-parent-flags` in bytes.
const BYTES: usize = 55;

/// The text, if it is a valid `traceparent`.
pub fn traceparent(text: &str) -> Option<&str> {
    let mut parts = text.split('-');
    let mut next = |digits: usize| {
        parts.next().filter(|part| {
            let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            part.len() == digits && part.bytes().all(hex)
        })
    };
    let (version, trace, parent, _flags) = (next(2)?, next(32)?, next(16)?, next(2)?);
    let is_nothing = |id: &str| id.bytes().all(|byte| byte == b'0');
    let valid = text.len() == BYTES && version != "ff" && !is_nothing(trace) && !is_nothing(parent);
    valid.then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    /// Promise 11: no header from outside ends a session.
    #[test]
    fn promise_11_only_the_55_characters_of_w3c_are_a_traceparent() {
        assert_eq!(traceparent(VALID), Some(VALID));
        let long = "x".repeat(128 * 1024);
        let longer = format!("{VALID}-{long}");
        let short_trace = VALID.replacen("0af7", "0af", 1);
        for text in [
            "",
            &long,
            &longer,
            &VALID.to_uppercase(),
            &VALID.replacen("00-", "ff-", 1),
            &VALID.replacen("b7ad6b7169203331", "0000000000000000", 1),
            &short_trace,
            &format!("{short_trace}0"),
            &VALID.replace('-', "_"),
            &VALID[..54],
            &VALID.replacen('a', "ä", 1),
        ] {
            assert_eq!(traceparent(text), None, "{text:.80}");
        }
    }
}
