//! The clock of this machine, asked in one place.
//!
//! A test that pauses the time of its runtime has the calendar follow that time, by [`play`]: whatever
//! reads the clock and whatever sleeps then agree.

use std::cell::Cell;
use std::time::SystemTime;

use tokio::time::Instant;

thread_local! {
    /// The calendar of this thread, if it is played: what it said, and when.
    static PLAYED: Cell<Option<(u64, Instant)>> = const { Cell::new(None) };
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    if let Some((from_ms, since)) = PLAYED.get() {
        return from_ms + since.elapsed().as_millis() as u64;
    }
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    let now = SystemTime::now();
    now.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis() as u64
}

/// The same as a timestamp.
pub fn now() -> jiff::Timestamp {
    timestamp(now_ms())
}

/// Number of the UTC day since 1970.
pub fn today() -> u64 {
    now_ms() / (24 * 3600 * 1000)
}

/// RFC 3339 of a time in milliseconds since 1970.
pub fn rfc3339(ms: u64) -> String {
    timestamp(ms).to_string()
}

fn timestamp(ms: u64) -> jiff::Timestamp {
    jiff::Timestamp::from_millisecond(ms.cast_signed()).unwrap_or_default()
}

/// For tests: on this thread it is `now_ms` now, and the calendar goes on as the time of the runtime
/// does.
pub fn play(now_ms: u64) {
    PLAYED.set(Some((now_ms, Instant::now())));
}
