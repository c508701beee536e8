//! Answers wrong credentials slowly, so that guessing takes long.
//!
//! Right credentials never wait: they are checked first, even if other callers send wrong ones from
//! the same address, so no caller can lock another out. Only the answer to a wrong guess waits, and
//! its connection takes no further request.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Gateway;
use crate::http::server::Peer;
use crate::ports::Broker;

/// Time between two wrong guesses from one address, in the long run.
const EVERY: Duration = Duration::from_millis(100);

/// Wrong guesses that are answered at once: a service that starts with an old token makes some.
const AT_ONCE: u32 = 20;

/// Most addresses that are remembered. An address may be forgotten some seconds after its last
/// guess.
const NETWORKS_MAX: usize = 16 * 1024;

/// The wrong guesses of each address.
pub(super) struct Failures {
    since: Instant,
    /// Longest wait.
    patience: Duration,
    /// For each address, until when its guesses last, at one per `EVERY`.
    networks: Mutex<HashMap<IpAddr, Duration>>,
}

impl Failures {
    pub(super) fn new(patience: Duration) -> Self {
        Self {
            since: Instant::now(),
            patience,
            networks: Mutex::default(),
        }
    }

    /// Counts a wrong guess, and returns how long its answer must wait.
    fn count(&self, network: IpAddr, now: Duration) -> Duration {
        let free = EVERY * AT_ONCE;
        let mut networks = self.networks.lock();
        if networks.len() >= NETWORKS_MAX && !networks.contains_key(&network) {
            networks.retain(|_, until| *until > now);
            if networks.len() >= NETWORKS_MAX {
                return self.patience;
            }
        }
        let until = networks.entry(network).or_default();
        let begins = now.max(*until);
        *until = (begins + EVERY).min(now + free + self.patience);
        begins.saturating_sub(now + free)
    }
}

impl<B: Broker, S, T> Gateway<B, S, T> {
    /// Waits as long as the answer to a wrong guess must wait. A bounded number of answers wait at
    /// a time; a further one is sent at once, and its caller has to connect again.
    pub(super) async fn answer_slowly(&self, peer: Option<&Peer>) {
        let Some(peer) = peer else { return };
        let network = peer.network();
        let wait = self.failures.count(network, self.failures.since.elapsed());
        if wait.is_zero() {
            return;
        }
        peer.end();
        if let Some(_place) = self.shares.guess(network) {
            self.stop
                .run_until_cancelled(tokio::time::sleep(wait))
                .await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promise_11_wrong_guesses_of_one_address_are_answered_ten_times_a_second() {
        let patience = Duration::from_secs(10);
        let failures = Failures::new(patience);
        let (guesser, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let now = Duration::from_secs(100);
        for _ in 0..AT_ONCE {
            assert_eq!(failures.count(guesser, now), Duration::ZERO);
        }
        for number in 0..1000 {
            let wait = failures.count(guesser, now);
            assert_eq!(wait, (EVERY * number).min(patience), "{number}");
        }
        assert_eq!(failures.count(other, now), Duration::ZERO);
        let later = now + patience + EVERY * AT_ONCE;
        assert_eq!(failures.count(guesser, later), Duration::ZERO);
    }

    #[test]
    fn a_bounded_number_of_addresses_is_remembered() {
        let failures = Failures::new(Duration::from_secs(10));
        let address = |number: u32| IpAddr::from(number.to_be_bytes());
        let most = NETWORKS_MAX as u32;
        for number in 0..most {
            failures.count(address(number), Duration::ZERO);
        }
        assert!(!failures.count(address(most), Duration::ZERO).is_zero());
        let later = Duration::from_secs(1);
        assert!(failures.count(address(most), later).is_zero());
        assert_eq!(failures.networks.lock().len(), 1);
    }
}
