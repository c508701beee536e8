//! Remembers the nonces of signed requests in memory: one process gets all of the requests. A
//! restart forgets them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::limiter::EmbeddedStore;
use crate::ports::{LedgerError, Nonces};

/// Nonces that are remembered, at least, before expired ones are dropped.
const SWEEP_AT: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct Seen {
    until: HashMap<String, Instant>,
    /// Twice the number that the last sweep left, so that sweeping stays cheap however many are in
    /// force.
    sweep_at: usize,
}

impl Seen {
    fn is_new(&mut self, nonce: &str, lives: Duration, now: Instant) -> bool {
        if self.until.len() >= self.sweep_at.max(SWEEP_AT) {
            self.until.retain(|_, until| *until > now);
            self.sweep_at = self.until.len() * 2;
        }
        match self.until.get(nonce) {
            Some(until) if *until > now => false,
            _ => {
                self.until.insert(nonce.to_owned(), now + lives);
                true
            }
        }
    }
}

impl Nonces for EmbeddedStore {
    async fn is_new(&self, nonce: &str, lives: Duration) -> Result<bool, LedgerError> {
        let seen: &Mutex<Seen> = &self.0.0.nonces;
        let mut seen = seen.lock();
        Ok(seen.is_new(nonce, lives, Instant::now()))
    }

    async fn release(&self, nonce: &str) -> Result<(), LedgerError> {
        let seen: &Mutex<Seen> = &self.0.0.nonces;
        let mut seen = seen.lock();
        seen.until.remove(nonce);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_is_dropped() {
        let (mut seen, start) = (Seen::default(), Instant::now());
        let second = Duration::from_secs(1);
        for number in 0..SWEEP_AT {
            assert!(seen.is_new(&number.to_string(), second, start));
        }
        assert_eq!(seen.until.len(), SWEEP_AT);
        let over = start + second;
        assert!(seen.is_new("new", second, over));
        assert_eq!(seen.until.len(), 1);
        assert!(seen.is_new("0", second, over));
        assert!(!seen.is_new("new", second, over));
    }
}
