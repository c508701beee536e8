//! Reads the times of a command: the start of a job, its deadline, and the end of its pace.

use jiff::Timestamp;

use crate::domain::moment;
use crate::domain::schedule::parse_duration;

/// No deadline.
const NEVER: &str = "never";

/// No pace.
const NONE: &str = "none";

/// The time of a start: an RFC 3339 time, `now`, or a time from now such as `2h` or `+2h`.
pub fn start_time(text: &str, now_ms: u64) -> Result<u64, String> {
    match text {
        "now" => Ok(now_ms),
        _ => to_come(text, now_ms).ok_or_else(|| not_a_time(text, "now")),
    }
}

/// The time of a deadline: an RFC 3339 time, a time from now such as `2h` or `+2h`, or `never`.
pub fn end_time(text: &str, now_ms: u64) -> Result<Option<u64>, String> {
    match text {
        NEVER => Ok(None),
        _ => match to_come(text, now_ms) {
            Some(at) => Ok(Some(at)),
            None => Err(not_a_time(text, NEVER)),
        },
    }
}

/// As [`end_time`] reads it.
pub fn end_text(at_ms: Option<u64>) -> String {
    at_ms.map_or_else(|| NEVER.to_owned(), moment::text)
}

/// Until when a job is spread: an RFC 3339 time, a time from now such as `2h` or `+2h`, or `none`.
pub fn pace_time(text: &str, now_ms: u64) -> Result<Option<u64>, String> {
    match text {
        NONE => Ok(None),
        _ => match to_come(text, now_ms) {
            Some(at) => Ok(Some(at)),
            None => Err(not_a_time(text, NONE)),
        },
    }
}

/// As [`pace_time`] reads it.
pub fn pace_text(at_ms: Option<u64>) -> String {
    at_ms.map_or_else(|| NONE.to_owned(), moment::text)
}

fn to_come(text: &str, now_ms: u64) -> Option<u64> {
    if let Ok(wait) = parse_duration(text.strip_prefix('+').unwrap_or(text)) {
        return Some(now_ms.saturating_add(wait.as_millis() as u64));
    }
    let at: Timestamp = text.parse().ok()?;
    u64::try_from(at.as_millisecond()).ok()
}

fn not_a_time(text: &str, word: &str) -> String {
    format!(
        "{text:?} is not a time such as 2026-12-24T18:00:00+08:00, a time from now such as 2h, or \
         {word:?}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_all_their_forms() {
        assert_eq!(start_time("now", 7), Ok(7));
        assert_eq!(start_time("+2s", 7), Ok(2007));
        assert_eq!(start_time("2s", 7), Ok(2007));
        assert_eq!(start_time("1970-01-01T00:00:01Z", 7), Ok(1000));
        assert_eq!(end_time("never", 7), Ok(None));
        assert_eq!(end_time("1970-01-01T01:00:01+01:00", 7), Ok(Some(1000)));
        for wrong in ["", "soon", "+", "never", "2", "1969-01-01T00:00:00Z"] {
            assert!(start_time(wrong, 7).is_err(), "{wrong}");
        }
        assert!(end_time("now", 7).is_err());
        assert_eq!(pace_time("none", 7), Ok(None));
        assert_eq!(pace_time("+2s", 7), Ok(Some(2007)));
        assert!(pace_time("never", 7).is_err());
        for at in [None, Some(1000)] {
            assert_eq!(end_time(&end_text(at), 7), Ok(at));
            assert_eq!(pace_time(&pace_text(at), 7), Ok(at));
        }
    }
}
