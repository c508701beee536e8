//! Times as people read and write them: how long ago, and in how long.

use jiff::Timestamp;

use crate::clock::{now, now_ms, rfc3339};
use crate::domain::schedule::parse_duration;

const UNITS: [(&str, u64); 4] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("min", 60_000),
    ("s", 1000),
];

/// `3 min ago`, `in 2 h`, `now`
pub(super) fn relative(at_ms: u64, now_ms: u64) -> String {
    let distance = at_ms.abs_diff(now_ms);
    let unit = UNITS.iter().find(|(_, size)| distance >= *size);
    match unit {
        None => "now".to_owned(),
        Some((unit, size)) if at_ms > now_ms => format!("in {} {unit}", distance / size),
        Some((unit, size)) => format!("{} {unit} ago", distance / size),
    }
}

/// `2026-11-29T14:00:00Z (3 min ago)`
pub(super) fn both(at_ms: u64) -> String {
    format!("{} ({})", rfc3339(at_ms), relative(at_ms, now_ms()))
}

/// Reads a time to come, or a duration from now such as `2h`; returns it as an RFC 3339 time. A
/// time stays as it is written.
pub(super) fn to_come(text: &str) -> Result<String, String> {
    to_come_from(text, now())
}

fn to_come_from(text: &str, now: Timestamp) -> Result<String, String> {
    if text.parse::<Timestamp>().is_ok() {
        return Ok(text.to_owned());
    }
    let wait = parse_duration(text.strip_prefix('+').unwrap_or(text)).ok();
    let at = wait.and_then(|wait| now.checked_add(wait).ok());
    at.map(|at| at.to_string()).ok_or_else(|| {
        format!("{text:?} is not a time such as 2026-12-24T18:00:00+08:00, or a time from now such as 2h")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distance_has_one_unit() {
        let now = 10_000_000_000;
        for (at, shown) in [
            (now, "now"),
            (now - 999, "now"),
            (now - 1000, "1 s ago"),
            (now - 59_999, "59 s ago"),
            (now - 60_000, "1 min ago"),
            (now - 3_600_000, "1 h ago"),
            (now - 200_000_000, "2 d ago"),
            (now + 7_200_000, "in 2 h"),
        ] {
            assert_eq!(relative(at, now), shown);
        }
    }

    #[test]
    fn a_time_to_come_is_a_time_or_a_duration() {
        let now: Timestamp = "2026-11-29T14:00:00Z".parse().unwrap();
        let read = |text| to_come_from(text, now);
        assert_eq!(read("2h").unwrap(), "2026-11-29T16:00:00Z");
        assert_eq!(read("+90m").unwrap(), "2026-11-29T15:30:00Z");
        let written = "2026-12-24T18:00:00+08:00";
        assert_eq!(read(written).unwrap(), written);
        for wrong in ["", "soon", "-2h", "2"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
