//! Reads the calendar clock of this machine. No other module does.
//!
//! In a test that pauses the time of its runtime, [`play`] makes the calendar follow that time, so
//! that the clock and all sleeps agree.

use std::cell::Cell;
use std::time::SystemTime;

use tokio::time::Instant;

thread_local! {
    /// The calendar of this thread in such a test: its time in milliseconds, and when that was set.
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

/// The current time as a timestamp.
pub fn now() -> jiff::Timestamp {
    timestamp(now_ms())
}

/// The number of the UTC day since 1970.
pub fn today() -> u64 {
    now_ms() / (24 * 3600 * 1000)
}

/// A time in milliseconds since 1970, as RFC 3339.
pub fn rfc3339(ms: u64) -> String {
    timestamp(ms).to_string()
}

fn timestamp(ms: u64) -> jiff::Timestamp {
    jiff::Timestamp::from_millisecond(ms.cast_signed()).unwrap_or_default()
}

/// For tests: sets this thread's clock to `now_ms`; from there it follows the time of the runtime.
pub fn play(now_ms: u64) {
    PLAYED.set(Some((now_ms, Instant::now())));
}
