//! Decides how many calls a target may have in flight at a process, from what its answers take.
//!
//! With `calls_in_flight = "auto"` a target starts with [`START`] calls. A round is as many calls as
//! may be in flight, after as many others if that number has just changed. After each round the
//! middle answer time is compared with the usual one, which is the lowest of late, so a few slow
//! calls change nothing:
//!
//! - While it is as usual, and the calls were all used, the number doubles. Above half of what was
//!   once too much, it grows by its root.
//! - When the number has grown by a half and the target answers no more calls in the same time, it
//!   goes back: some of the calls wait where nobody sees them, such as for a connection.
//! - When the answer time rises, calls wait for each other at the target: the number shrinks in
//!   proportion.
//! - A call that the target refuses, or leaves without an answer, halves it, once for the calls that
//!   were in flight.
//!
//! At [`START`] calls or fewer the answer time counts as usual, whatever it is. So a target that
//! has become slower for good is found out: the number falls, and grows again from there.

use std::time::Duration;

/// The calls that a target gets without being known.
pub const START: usize = 2;

/// The most calls that a target gets, however fast it is.
pub const MOST: usize = 1000;

/// Calls of the smallest round. The middle answer of fewer says little.
const ROUND_MIN: usize = 16;

/// How far answers may be above the usual time before calls count as waiting for each other: by
/// this factor, and by `SLACK` besides, which is about what a busy process adds itself.
const TOLERANCE: f64 = 1.3;
const SLACK: f64 = 0.002;

/// How much a lower answer time changes the usual one.
const LEARNS: f64 = 0.2;

/// When the calls have grown by `STEP`, the rate must have grown by `PAYS`.
const STEP: f64 = 1.5;
const PAYS: f64 = 1.2;

/// Configured calls in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallsInFlight {
    Fixed(usize),
    /// As many as the target answers without delay.
    Auto,
}

impl CallsInFlight {
    /// The most that there may be.
    pub fn most(self) -> usize {
        match self {
            Self::Fixed(calls) => calls,
            Self::Auto => MOST,
        }
    }
}

/// The calls that a target may have in flight now.
#[derive(Debug)]
pub struct Concurrency {
    bound: f64,
    /// Up to here the bound doubles.
    doubles_to: f64,
    /// The usual answer time in seconds, once it is known.
    usual: Option<f64>,
    /// The bound that paid last, with its answers a second.
    paid: Option<(f64, f64)>,
    /// Calls that started before the bound changed and have not ended. They tell nothing about it.
    earlier: usize,
    /// When the round began.
    began: Duration,
    /// The answer times of this round.
    answers: Vec<f64>,
    /// The most calls that were in flight in this round.
    used: usize,
}

impl Default for Concurrency {
    fn default() -> Self {
        Self {
            bound: START as f64,
            doubles_to: MOST as f64,
            usual: None,
            paid: None,
            earlier: START,
            began: Duration::ZERO,
            answers: Vec::new(),
            used: 0,
        }
    }
}

impl Concurrency {
    pub fn bound(&self) -> usize {
        self.bound as usize
    }

    /// A call was answered after this time, when so many were in flight. `now` counts from any fixed
    /// moment.
    pub fn answered(&mut self, took: Duration, in_flight: usize, now: Duration) {
        if self.is_earlier(now) {
            return;
        }
        self.used = self.used.max(in_flight);
        self.answers.push(took.as_secs_f64());
        if self.answers.len() < self.bound().max(ROUND_MIN) {
            return;
        }
        let before = self.bound();
        let lasted = now.saturating_sub(self.began).as_secs_f64();
        self.adapt(self.answers.len() as f64 / lasted.max(f64::MIN_POSITIVE));
        let earlier = if self.bound() == before { 0 } else { before };
        self.begin(earlier, now);
    }

    /// The target refused a call, or did not answer it in time.
    pub fn refused(&mut self, now: Duration) {
        if self.is_earlier(now) {
            return;
        }
        let before = self.bound();
        self.bound = (self.bound / 2.0).max(1.0);
        self.doubles_to = self.bound;
        self.paid = None;
        self.begin(before, now);
    }

    /// Whether a call that has ended started before the bound changed.
    fn is_earlier(&mut self, now: Duration) -> bool {
        if self.earlier == 0 {
            return false;
        }
        self.earlier -= 1;
        self.began = now;
        true
    }

    /// Begins a round after so many earlier calls.
    fn begin(&mut self, earlier: usize, now: Duration) {
        self.earlier = earlier;
        self.began = now;
        self.answers.clear();
        self.used = 0;
    }

    /// After a round at so many answers a second.
    fn adapt(&mut self, rate: f64) {
        let middle = self.answers.len() / 2;
        let (_, typical, _) = self.answers.select_nth_unstable_by(middle, f64::total_cmp);
        let typical = *typical;
        let usual = match self.usual {
            Some(usual) if self.bound() > START => usual + (typical - usual).min(0.0) * LEARNS,
            _ => typical,
        };
        self.usual = Some(usual);
        let room = (usual * TOLERANCE + SLACK) / typical.max(f64::MIN_POSITIVE);
        let was_used = self.used * 10 >= self.bound() * 8;
        let (paid_bound, paid_rate) = *self.paid.get_or_insert((self.bound, rate));
        if room < 1.0 {
            self.doubles_to = self.bound / 2.0;
            self.bound = (self.bound * room.max(0.5)).max(1.0);
            self.paid = None;
        } else if was_used {
            if self.bound >= paid_bound * STEP {
                if rate < paid_rate * PAYS {
                    self.doubles_to = paid_bound;
                    self.bound = paid_bound;
                    self.paid = None;
                    return;
                }
                self.paid = Some((self.bound, rate));
            }
            let grown = match self.bound < self.doubles_to {
                true => self.bound * 2.0,
                false => self.bound + self.bound.sqrt(),
            };
            self.bound = grown.min(MOST as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A target that works on `places` calls at a time, each for `service`, as the calls meet it.
    struct Course {
        concurrency: Concurrency,
        now: Duration,
    }

    impl Course {
        fn new() -> Self {
            Self {
                concurrency: Concurrency::default(),
                now: Duration::ZERO,
            }
        }

        fn bound(&self) -> usize {
            self.concurrency.bound()
        }

        fn refused(&mut self, calls: usize) {
            (0..calls).for_each(|_| self.concurrency.refused(self.now));
        }

        fn answered(&mut self, took: Duration, places: usize, service: Duration) {
            let bound = self.bound();
            self.now += service / u32::try_from(bound.min(places)).unwrap();
            self.concurrency.answered(took, bound, self.now);
        }

        /// `rounds` of as many calls as may be in flight, at least of the smallest round.
        fn play(&mut self, rounds: usize, places: usize, service: Duration) {
            for _ in 0..rounds {
                for _ in 0..self.bound().max(ROUND_MIN) {
                    let waits = (self.bound() as f64 / places as f64).max(1.0);
                    self.answered(service.mul_f64(waits), places, service);
                }
            }
        }
    }

    const SERVICE: Duration = Duration::from_millis(20);

    #[test]
    fn calls_grow_while_answers_stay_as_fast() {
        let mut course = Course::new();
        course.play(20, 10_000, SERVICE);
        assert!(course.bound() >= 256, "{}", course.bound());
        course.play(100, 10_000, SERVICE);
        assert_eq!(course.bound(), MOST);
    }

    #[test]
    fn calls_stay_near_what_a_target_works_on() {
        for places in [1, 4, 5, 32, 100, 256] {
            let mut course = Course::new();
            course.play(200, places, SERVICE);
            let bounds: Vec<_> = (0..100)
                .map(|_| {
                    course.play(1, places, SERVICE);
                    course.bound()
                })
                .collect();
            let (least, most) = (*bounds.iter().min().unwrap(), *bounds.iter().max().unwrap());
            assert!(least * 10 >= places * 7, "{least} for {places}");
            let busy = places.max(START);
            assert!(most * 10 <= busy * 20, "{most} for {places}");
        }
    }

    /// Calls beyond the sixth wait for a connection, where nobody sees them.
    #[test]
    fn calls_that_wait_unseen_do_not_pay() {
        let mut course = Course::new();
        for _ in 0..10_000 {
            let seen = u32::try_from(course.bound().min(6)).unwrap();
            course.answered(SERVICE * seen, 1, SERVICE);
            assert!(course.bound() <= 2 * START, "{}", course.bound());
        }
    }

    #[test]
    fn a_few_slow_calls_change_nothing() {
        let mut course = Course::new();
        for call in 0..100_000 {
            let slow = call % 100 == 0;
            let took = Duration::from_millis(if slow { 3_000 } else { 20 });
            course.answered(took, 10_000, SERVICE);
        }
        assert_eq!(course.bound(), MOST);
    }

    #[test]
    fn a_target_that_became_slower_is_learned_anew() {
        let mut course = Course::new();
        course.play(120, 10_000, SERVICE);
        course.play(150, 10_000, SERVICE * 10);
        assert!(course.bound() > 200, "{}", course.bound());
    }

    #[test]
    fn refused_calls_halve_it_once_for_those_in_flight() {
        let mut course = Course::new();
        course.play(120, 10_000, SERVICE);
        assert_eq!(course.bound(), MOST);
        course.play(1, 10_000, SERVICE);
        course.refused(MOST);
        assert_eq!(course.bound(), MOST / 2);
        course.refused(MOST / 2);
        assert_eq!(course.bound(), MOST / 4);
        course.refused(5_000);
        assert_eq!(course.bound(), 1);
        course.play(100, 10_000, SERVICE);
        assert!(course.bound() > 100, "{}", course.bound());
    }

    #[test]
    fn what_is_not_used_does_not_grow() {
        let mut course = Course::new();
        for _ in 0..1000 {
            course.now += SERVICE;
            course.concurrency.answered(SERVICE, 1, course.now);
        }
        assert_eq!(course.bound(), START);
    }

    proptest! {
        #[test]
        fn there_is_always_a_call_and_never_too_many(
            heard in prop::collection::vec(
                prop::option::weighted(0.9, (0_u64..10_000_000, 0_usize..2000)),
                0..5000,
            ),
        ) {
            let mut concurrency = Concurrency::default();
            let mut now = Duration::ZERO;
            for it in heard {
                match it {
                    Some((us, in_flight)) => {
                        now += Duration::from_micros(us % 1000);
                        concurrency.answered(Duration::from_micros(us), in_flight, now);
                    }
                    None => concurrency.refused(now),
                }
                prop_assert!((1..=MOST).contains(&concurrency.bound()));
            }
        }
    }
}
