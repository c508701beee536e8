//! Says how quiet the machine is: how many times as long as half of the same pieces of work 99 % of
//! them take, each after a pause, and how many per cent of the cores other work keeps busy. Prints
//! both numbers.

#![allow(
    clippy::disallowed_methods,
    reason = "it measures by a clock and pauses of its own"
)]

use std::hint::black_box;
use std::io::Write as _;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// How long the busy cores are watched.
const WATCH: Duration = Duration::from_millis(500);
const PIECES: usize = 200;
/// A piece of work takes at least this long.
const PIECE: Duration = Duration::from_millis(1);
const PAUSE: Duration = Duration::from_millis(5);

fn main() -> anyhow::Result<()> {
    let before = Cores::read()?;
    sleep(WATCH);
    let busy = Cores::read()?.busy_since(before);
    writeln!(std::io::stdout(), "{:.2} {:.1}", slowdown(), busy * 100.0)?;
    Ok(())
}

fn slowdown() -> f64 {
    let mut steps = 1000;
    while work(steps) < PIECE {
        steps *= 2;
    }
    let mut took: Vec<_> = std::iter::repeat_with(|| {
        sleep(PAUSE);
        work(steps)
    })
    .take(PIECES)
    .collect();
    took.sort_unstable();
    took[PIECES * 99 / 100].as_secs_f64() / took[PIECES / 2].as_secs_f64()
}

fn work(steps: u64) -> Duration {
    let began = Instant::now();
    let sum = (0..steps).fold(0u64, |sum, step| {
        black_box(sum.rotate_left(5) ^ step).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    });
    black_box(sum);
    began.elapsed()
}

/// Time of all cores since the start of the machine, in clock ticks.
#[derive(Clone, Copy)]
struct Cores {
    idle: u64,
    all: u64,
}

impl Cores {
    fn read() -> anyhow::Result<Self> {
        let stat = std::fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().unwrap_or_default();
        // `cpu`, then user, nice, system, idle, waiting for disks, interrupts twice, taken by others.
        let ticks: Result<Vec<u64>, _> = line
            .split_whitespace()
            .skip(1)
            .take(8)
            .map(str::parse)
            .collect();
        let ticks = ticks.context("/proc/stat")?;
        anyhow::ensure!(ticks.len() == 8, "/proc/stat begins with {line:?}");
        Ok(Self {
            idle: ticks[3] + ticks[4],
            all: ticks.iter().sum(),
        })
    }

    fn busy_since(self, before: Self) -> f64 {
        let all = self.all.saturating_sub(before.all).max(1);
        let idle = self.idle.saturating_sub(before.idle);
        1.0 - idle as f64 / all as f64
    }
}
