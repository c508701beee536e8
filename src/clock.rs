//! This machine's clock.

use std::time::SystemTime;

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis() as u64
}

/// Number of the UTC day since 1970.
pub fn today() -> u64 {
    now_ms() / (24 * 3600 * 1000)
}

/// RFC 3339 of a time in milliseconds since 1970.
pub fn rfc3339(ms: u64) -> String {
    jiff::Timestamp::from_millisecond(ms.cast_signed())
        .unwrap_or_default()
        .to_string()
}
