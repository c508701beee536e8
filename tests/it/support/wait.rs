//! Waits for a condition. No test waits by sleeping a time that "should be enough".

use std::fmt::Display;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

/// The first probes follow quickly; later ones leave the cores to the work.
const POLL_MIN: Duration = Duration::from_millis(2);
const POLL_MAX: Duration = Duration::from_millis(50);

/// Calls `probe` repeatedly until it returns a value. Panics after `bound`, naming `what`.
///
/// A probe that does not return counts against the bound too, and is dropped at its end.
pub(crate) async fn until<T>(
    what: &str,
    bound: Duration,
    mut probe: impl AsyncFnMut() -> Option<T>,
) -> T {
    until_ok(what, bound, async || probe().await.ok_or("not yet")).await
}

/// Like [`until`], for probes that can return a reason: the panic contains the last one.
pub(crate) async fn until_ok<T, E: Display>(
    what: &str,
    bound: Duration,
    mut probe: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + bound;
    let mut pause = POLL_MIN;
    loop {
        let reason = match timeout_at(deadline, probe()).await {
            Ok(Ok(value)) => return value,
            Ok(Err(reason)) => reason,
            Err(_) => panic!("waited {bound:?} for {what}: the probe itself did not return"),
        };
        if Instant::now() + pause > deadline {
            panic!("waited {bound:?} in vain for {what}; last seen: {reason}");
        }
        sleep(pause).await;
        pause = (pause * 2).min(POLL_MAX);
    }
}

mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn returns_what_the_probe_found() {
        let calls = Cell::new(0);
        let found = until("the third call", Duration::from_secs(5), || async {
            calls.set(calls.get() + 1);
            (calls.get() == 3).then(|| calls.get())
        })
        .await;
        assert_eq!(found, 3);
    }

    #[tokio::test]
    #[should_panic(expected = "in vain for rain; last seen: sunshine")]
    async fn names_what_it_waited_for() {
        let _: () = until_ok("rain", Duration::from_millis(20), async || Err("sunshine")).await;
    }

    #[tokio::test]
    #[should_panic(expected = "the probe itself did not return")]
    async fn bounds_a_probe_that_hangs() {
        let _: () = until("an answer", Duration::from_millis(20), std::future::pending).await;
    }
}
