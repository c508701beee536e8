//! When to repeat a request that has no final answer.

use std::time::Duration;

/// How often a request is tried, and how long to wait before the next try.
///
/// A pause is twice as long as the one before, up to `longest`, less a random part, so that many
/// producers do not come back at once. If the server asks for a longer one, that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Tries in all, the first one included.
    pub tries: u32,
    /// The first pause.
    pub first: Duration,
    /// The longest pause that is not asked for.
    pub longest: Duration,
}

/// The longest pause that a server can ask for.
const ASKED_MAX: Duration = Duration::from_secs(10 * 60);

impl Retry {
    /// One try.
    pub const NEVER: Self = Self {
        tries: 1,
        first: Duration::ZERO,
        longest: Duration::ZERO,
    };

    /// The pause after this many tries, if there is a next one. `asked` is what the server asks for,
    /// and `chance` a random number from 0 to 1.
    pub fn pause(&self, tries: u32, asked: Option<Duration>, chance: f64) -> Option<Duration> {
        if tries >= self.tries {
            return None;
        }
        let doubled = 2_u32.saturating_pow(tries.saturating_sub(1));
        let grown = self.first.saturating_mul(doubled).min(self.longest);
        let pause = grown.mul_f64(1.0 - chance.clamp(0.0, 1.0) / 2.0);
        Some(pause.max(asked.unwrap_or_default().min(ASKED_MAX)))
    }
}

impl Default for Retry {
    /// Eight tries in about a minute.
    fn default() -> Self {
        Self {
            tries: 8,
            first: Duration::from_millis(500),
            longest: Duration::from_secs(30),
        }
    }
}

/// The tries of one request.
#[cfg(any(feature = "http", feature = "amqp"))]
pub(crate) struct Tries {
    retry: Retry,
    made: u32,
}

#[cfg(any(feature = "http", feature = "amqp"))]
impl Tries {
    pub(crate) fn of(retry: Retry) -> Self {
        Self { retry, made: 0 }
    }

    /// Waits before the next try; `false` if there is none.
    pub(crate) async fn again(&mut self, asked: Option<Duration>) -> bool {
        self.made += 1;
        match self.retry.pause(self.made, asked, fastrand::f64()) {
            Some(pause) => {
                tokio::time::sleep(pause).await;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_end() {
        let retry = Retry::default();
        let pauses = |chance| -> Vec<u128> {
            (1..)
                .map_while(|tries| retry.pause(tries, None, chance))
                .map(|pause| pause.as_millis())
                .collect()
        };
        assert_eq!(pauses(0.0), [500, 1000, 2000, 4000, 8000, 16_000, 30_000]);
        assert_eq!(pauses(1.0), [250, 500, 1000, 2000, 4000, 8000, 15_000]);
        assert_eq!(Retry::NEVER.pause(1, None, 0.5), None);
    }

    #[test]
    fn a_server_may_ask_for_a_longer_pause_but_not_for_any() {
        let retry = Retry::default();
        let asked = |seconds| {
            retry
                .pause(1, Some(Duration::from_secs(seconds)), 0.0)
                .unwrap()
        };
        assert_eq!(asked(0), Duration::from_millis(500));
        assert_eq!(asked(7), Duration::from_secs(7));
        assert_eq!(asked(u64::MAX), ASKED_MAX);
    }
}
