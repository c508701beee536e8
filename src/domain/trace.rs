//! Reads the W3C trace context of a message, for tools that show how a job travelled.
//!
//! It comes from outside and is in a header of every message of a job, so anything but the 55
//! characters of the standard is dropped. The job itself is not affected.

use std::fmt;

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

/// A place in a trace: a span, and whether the producer asks for the trace to be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanPlace {
    pub trace: u128,
    pub span: u64,
    flags: u8,
}

/// The flag of a trace that is recorded.
const SAMPLED: u8 = 1;

impl SpanPlace {
    /// The first span of a new trace, which is recorded.
    pub fn root(trace: u128, span: u64) -> Self {
        Self {
            trace,
            span,
            flags: SAMPLED,
        }
    }

    /// The first span of a new trace, which is not recorded.
    pub fn unsampled(trace: u128, span: u64) -> Self {
        Self {
            trace,
            span,
            flags: 0,
        }
    }

    /// The place that a `traceparent` names.
    pub fn parse(text: &str) -> Option<Self> {
        let text = traceparent(text)?;
        Some(Self {
            trace: u128::from_str_radix(&text[3..35], 16).ok()?,
            span: u64::from_str_radix(&text[36..52], 16).ok()?,
            flags: u8::from_str_radix(&text[53..55], 16).ok()?,
        })
    }

    pub fn is_sampled(self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// Another span of the same trace.
    pub fn with_span(self, span: u64) -> Self {
        Self { span, ..self }
    }
}

/// As a `traceparent`.
impl fmt::Display for SpanPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace, span, flags } = self;
        write!(f, "00-{trace:032x}-{span:016x}-{flags:02x}")
    }
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

    #[test]
    fn a_place_is_written_as_it_was_read() {
        let place = SpanPlace::parse(VALID).unwrap();
        assert_eq!(place.to_string(), VALID);
        assert_eq!(place.span, 0xb7ad_6b71_6920_3331);
        assert!(place.is_sampled());
        let below = place.with_span(1);
        let expected = VALID.replacen("b7ad6b7169203331", "0000000000000001", 1);
        assert_eq!(below.to_string(), expected);
        // A later version of the standard is continued in this one; its further flags stay.
        let later = VALID.replacen("00-", "cc-", 1).replace("-01", "-02");
        let later = SpanPlace::parse(&later).unwrap();
        assert!(!later.is_sampled());
        assert_eq!(later.to_string(), VALID.replace("-01", "-02"));
        assert_eq!(SpanPlace::root(1, 2).to_string().len(), BYTES);
        assert!(SpanPlace::root(1, 2).is_sampled());
        assert!(!SpanPlace::unsampled(1, 2).is_sampled());
        assert_eq!(SpanPlace::parse(&VALID[..54]), None);
    }
}
