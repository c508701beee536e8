//! Deficit round robin: which lane a worker draws from next (promise 8).

/// Round robin over `N` lanes in which a lane of weight `w` is served `w` times a round.
///
/// Every lane with work is served at least once per round, so the wait of the head of any lane is
/// bounded by the sum of the weights.
#[derive(Clone, Debug)]
pub struct RoundRobin {
    weights: Vec<u32>,
    credit: Vec<u32>,
    at: usize,
}

impl RoundRobin {
    pub fn new(weights: Vec<u32>) -> Self {
        let weights: Vec<u32> = weights.into_iter().map(|weight| weight.max(1)).collect();
        Self {
            credit: weights.clone(),
            weights,
            at: 0,
        }
    }

    /// The next lane among those for which `ready` is true.
    pub fn next(&mut self, ready: impl Fn(usize) -> bool) -> Option<usize> {
        // Two rounds: the first may only find lanes whose credit is spent and refill them.
        for _ in 0..2 * self.weights.len() {
            let lane = self.at;
            if self.credit[lane] > 0 && ready(lane) {
                self.credit[lane] -= 1;
                return Some(lane);
            }
            // A lane that is left, empty or spent, starts its next turn with its full weight.
            self.credit[lane] = self.weights[lane];
            self.at = (lane + 1) % self.weights.len();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn busy_lanes_share_by_weight() {
        let mut lanes = RoundRobin::new(vec![4, 1, 2]);
        let mut served = [0; 3];
        for _ in 0..700 {
            served[lanes.next(|_| true).unwrap()] += 1;
        }
        assert_eq!(served, [400, 100, 200]);
    }

    #[test]
    fn nothing_ready_is_nothing() {
        assert_eq!(RoundRobin::new(vec![1, 2]).next(|_| false), None);
    }

    proptest! {
        /// However busy the others are, a lane with work waits at most one round.
        #[test]
        fn no_lane_starves(weights in prop::collection::vec(1u32..20, 1..8), pick in any::<prop::sample::Index>()) {
            let lane = pick.index(weights.len());
            let round: u32 = weights.iter().sum();
            let mut lanes = RoundRobin::new(weights);
            let mut waited = 0;
            for _ in 0..1000 {
                if lanes.next(|_| true) == Some(lane) { waited = 0 } else { waited += 1 }
                prop_assert!(waited <= round);
            }
        }
    }
}
