//! Reads and writes durations for flags and for the control interface.

use std::time::Duration;

use jiff::SignedDuration;

/// A duration such as `500ms`, `2m` or `1h 30m`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<SignedDuration>().ok();
    parsed
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or_else(|| format!("{text:?} is not a duration such as 500ms or 2m"))
}

/// Writes a duration in the largest unit that divides it, so that [`parse_duration`] can read it.
pub(crate) fn duration_text(duration: Duration) -> String {
    let ms = duration.as_millis();
    let units = [("h", 3_600_000), ("m", 60_000), ("s", 1000)];
    let fits = units
        .into_iter()
        .find(|(_, size)| ms >= *size && ms.is_multiple_of(*size));
    let (unit, size) = fits.unwrap_or(("ms", 1));
    format!("{}{unit}", ms / size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_back() {
        for text in ["0ms", "500ms", "1500ms", "2s", "90s", "2m", "36h"] {
            assert_eq!(duration_text(parse_duration(text).unwrap()), text);
        }
        assert!(parse_duration("soon").is_err());
    }
}
