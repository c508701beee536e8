//! Reads the times of a command: the start of a job, and its deadline.

use jiff::Timestamp;

use crate::domain::schedule::parse_duration;

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
        "never" => Ok(None),
        _ => match to_come(text, now_ms) {
            Some(at) => Ok(Some(at)),
            None => Err(not_a_time(text, "never")),
        },
    }
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
    }
}
