//! Derives a schedule from its number.

use std::time::Duration;

use fanwise::domain::outcome::OnUncertain;
use fastrand::Rng;

/// Sizes of lists on both sides of the worker's thresholds: one recipient, the express lane, one
/// slice and several.
const SIZES: [usize; 14] = [1, 1, 1, 2, 2, 3, 5, 9, 10, 11, 30, 100, 101, 120];

/// The parts of a schedule that are drawn before it begins.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) workers: usize,
    pub(crate) slice_recipients: u32,
    pub(crate) per_call: usize,
    pub(crate) window_calls: usize,
    pub(crate) idempotent: bool,
    pub(crate) on_uncertain: OnUncertain,
    pub(crate) attempts_max: u32,
    pub(crate) retry_budget: Option<f64>,
    pub(crate) limit: Option<&'static str>,
    /// The jobs have a second target.
    pub(crate) fallback: bool,
    pub(crate) submissions: Vec<Submission>,
    pub(crate) orders: Vec<(Duration, Order)>,
    pub(crate) odds: Odds,
}

/// A list of one job, as it is published.
#[derive(Clone, Debug)]
pub(crate) struct Submission {
    pub(crate) at: Duration,
    pub(crate) job: usize,
    pub(crate) users: Vec<String>,
    pub(crate) times: usize,
}

/// An action of an operator, or an event, during the schedule.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    LoseSessions,
    Kill(usize),
    Drain(usize),
    Pause(usize, Duration),
    Cancel(usize),
}

/// Probabilities in a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Odds {
    /// A step of the ledger or the broker fails.
    pub(crate) fault: u32,
    /// The process dies at a step.
    pub(crate) death: u32,
    /// A step takes longer than a lease.
    pub(crate) stall: u32,
    /// A call gets a bad answer.
    pub(crate) answer: u32,
}

fn one_of<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(..of.len())]
}

fn moment(rng: &mut Rng, within: Duration) -> Duration {
    Duration::from_millis(rng.u64(..within.as_millis() as u64))
}

impl Plan {
    pub(crate) fn of(rng: &mut Rng) -> Self {
        let jobs = one_of(rng, &[1, 1, 2]);
        let mut submissions = Vec::new();
        for job in 0..jobs {
            // All recipients that a job can have; its lists overlap.
            let crowd = one_of(rng, &SIZES);
            for _ in 0..one_of(rng, &[1, 1, 2]) {
                let size = rng.usize(1..=crowd);
                let size = if rng.bool() { crowd } else { size };
                let repeats = rng.u8(..4) == 0;
                let mut users: Vec<String> = (0..crowd).map(|it| format!("u{job}-{it}")).collect();
                rng.shuffle(&mut users);
                users.truncate(size);
                if repeats {
                    let again = users[rng.usize(..users.len())].clone();
                    users.push(again);
                }
                submissions.push(Submission {
                    at: moment(rng, Duration::from_secs(1)),
                    job,
                    users,
                    times: one_of(rng, &[1, 1, 1, 2]),
                });
            }
        }
        let workers = one_of(rng, &[1, 2]);
        let mut orders = Vec::new();
        for _ in 0..one_of(rng, &[0, 1, 2, 3]) {
            let at = moment(rng, Duration::from_secs(4));
            let order = match rng.u8(..10) {
                0..=2 => Order::LoseSessions,
                3..=5 => Order::Kill(rng.usize(..workers)),
                6 | 7 => Order::Drain(rng.usize(..workers)),
                8 => Order::Pause(
                    rng.usize(..jobs),
                    Duration::from_millis(rng.u64(100..4_000)),
                ),
                _ => Order::Cancel(rng.usize(..jobs)),
            };
            orders.push((at, order));
        }
        orders.sort_by_key(|(at, _)| *at);
        Self {
            workers,
            slice_recipients: one_of(rng, &[1, 4, 50, 1000]).max(1 + jobs as u32),
            per_call: one_of(rng, &[1, 3, 10, 100]),
            window_calls: one_of(rng, &[1, 2, 8]),
            idempotent: rng.bool(),
            on_uncertain: one_of(
                rng,
                &[OnUncertain::Retry, OnUncertain::Hold, OnUncertain::Drop],
            ),
            attempts_max: one_of(rng, &[1, 2, 4]),
            retry_budget: one_of(rng, &[None, None, Some(0.01), Some(1.0)]),
            limit: one_of(rng, &[None, None, None, Some("50/s burst 5"), Some("20/s")]),
            submissions,
            orders,
            odds: Odds {
                fault: one_of(rng, &[0, 5, 20, 80]),
                death: one_of(rng, &[0, 0, 5, 15]),
                stall: one_of(rng, &[0, 0, 3]),
                answer: one_of(rng, &[0, 30, 100, 300]),
            },
            fallback: rng.bool(),
        }
    }

    pub(crate) fn jobs(&self) -> usize {
        self.submissions
            .iter()
            .map(|it| it.job + 1)
            .max()
            .unwrap_or(0)
    }
}
