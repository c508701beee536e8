//! Keeps rate limits in the memory of one process: for the embedded engine, and for a worker that
//! sends while the ledger is away.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::domain::limits::{Cost, Grant, LimitScope, Tat};
use crate::ports::Limit;

/// Above this number of limits, those with nothing booked are dropped.
const LIMITS_KEPT: usize = 1000;

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    scope: LimitScope,
    name: String,
    /// A limit whose rate changes starts clean; `None` for one that does not.
    rate: Option<KeyRate>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct KeyRate {
    units: u32,
    period: Duration,
    burst: u32,
    per_call: bool,
}

impl Key {
    fn of(limit: &Limit<'_>) -> Self {
        let rate = || KeyRate {
            units: limit.rate.units,
            period: limit.rate.period,
            burst: limit.rate.burst,
            per_call: limit.cost == Cost::PerCall,
        };
        Self {
            scope: limit.scope,
            name: limit.name.to_owned(),
            rate: limit.scope.starts_clean().then(rate),
        }
    }
}

/// The bookings of each limit.
#[derive(Debug)]
pub struct Limits {
    /// The limits count their time from here.
    epoch: Instant,
    tats: Mutex<HashMap<Key, Tat>>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            epoch: Instant::now(),
            tats: Mutex::default(),
        }
    }
}

impl Limits {
    pub fn lease(&self, limit: &Limit<'_>, units: u32, wait_max: Duration) -> Grant {
        let now_us = self.epoch.elapsed().as_micros() as u64;
        let mut tats = self.tats.lock();
        if tats.len() > LIMITS_KEPT {
            tats.retain(|_, tat| tat.0 > now_us as f64);
        }
        let tat = tats.entry(Key::of(limit)).or_default();
        tat.lease_weighed(&limit.rate, limit.weight, now_us, units, wait_max)
    }

    /// The share of its burst that each limit has booked.
    pub fn booked(&self, limits: &[Limit<'_>]) -> Vec<f64> {
        let now_us = self.epoch.elapsed().as_micros() as u64;
        let tats = self.tats.lock();
        let booked = |limit: &Limit<'_>| {
            let tat = tats.get(&Key::of(limit)).copied().unwrap_or_default();
            tat.booked(&limit.rate, now_us)
        };
        limits.iter().map(booked).collect()
    }

    /// Returns units that were booked and not used.
    pub fn refund(&self, limit: &Limit<'_>, units: u32) {
        if let Some(tat) = self.tats.lock().get_mut(&Key::of(limit)) {
            tat.refund(&limit.weighed(), units);
        }
    }
}
