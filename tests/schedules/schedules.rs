//! Tests the worker under schedules of faults: in memory, in paused time, each derived from one
//! number.
//!
//! A schedule has a broker and a store in memory, an IM system with varying answers, jobs whose
//! lists overlap, and one or two workers. During it, every kind of fault occurs: steps of the
//! ledger fail with and without effect, publishes are not confirmed, sessions are lost, processes
//! die at any await point, stall beyond their lease and are drained, replies are lost, operators
//! pause and cancel. Then the faults end. When everything is at rest, the accounts are compared
//! with the messages that the IM system accepted (promises 2 to 6).
//!
//! The number of a failed schedule is printed; `FANWISE_SEED=<number> tests/run schedules` repeats
//! it alone.
//!
//! - `plan`: derives a schedule from its number. `system`: the IM system. `play`: runs a schedule.
//!   `check`: checks the state at its end. `pace`: limits after a standstill.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on panics, and says with which number"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "the runtime of a schedule ends its tasks, and a variable chooses the schedule"
)]

#[cfg(not(tokio_unstable))]
compile_error!("the runtime is to be seeded: use `tests/run schedules`, or cargo in this folder");

mod check;
#[path = "../it/memory/mod.rs"]
mod memory;
mod pace;
mod plan;
mod play;
mod system;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Schedules of one run.
const SCHEDULES: u64 = 10_000;

/// Every run plays the same schedules, so that only a change can make it fail.
/// `FANWISE_FIRST_SEED=<number> tests/run schedules` plays others.
const FIRST_SEED: u64 = 1_000_000;

/// Failing numbers to print; the first one is enough to begin with.
const SHOWN: usize = 5;

/// The value of a variable such as `FANWISE_SEED` or `FANWISE_SCHEDULES`.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is no number: {text:?}"))
    })
}

/// Promises 2 to 6 hold under every kind of fault.
#[test]
fn whatever_goes_wrong_the_accounts_are_those_of_the_im_system() {
    if let Some(seed) = number("FANWISE_SEED") {
        let log = play::play(seed, true);
        println!("{log}");
        return;
    }
    let schedules = number("FANWISE_SCHEDULES").unwrap_or(SCHEDULES);
    let first = number("FANWISE_FIRST_SEED").unwrap_or(FIRST_SEED);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let began = Instant::now();
    let next = AtomicU64::new(0);
    let failed = std::sync::Mutex::new(Vec::new());
    std::panic::set_hook(Box::new(|_| {}));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= schedules || failed.lock().unwrap().len() >= SHOWN {
                        return;
                    }
                    let seed = first + number;
                    let played = catch_unwind(AssertUnwindSafe(|| play::play(seed, false)));
                    if let Err(why) = played {
                        failed.lock().unwrap().push((seed, words(&*why)));
                    }
                }
            });
        }
    });
    let _ = std::panic::take_hook();
    let played = next.into_inner().min(schedules);
    println!("{played} schedules from {first} in {:?}", began.elapsed());
    let failed = failed.into_inner().unwrap();
    for (seed, why) in &failed {
        eprintln!("FANWISE_SEED={seed} tests/run schedules\n    {why}");
    }
    assert!(failed.is_empty(), "{} schedules failed", failed.len());
}

/// A number always leads to the same schedule.
#[test]
fn a_number_repeats_its_schedule() {
    let first = number("FANWISE_SEED").unwrap_or(FIRST_SEED);
    for seed in first..first + 20 {
        let once = play::play(seed, true);
        assert!(once == play::play(seed, true), "FANWISE_SEED={seed}");
    }
}

fn words(why: &(dyn std::any::Any + Send)) -> String {
    let text = why.downcast_ref::<String>().cloned();
    text.or_else(|| why.downcast_ref::<&str>().map(|it| (*it).to_owned()))
        .unwrap_or_default()
}
