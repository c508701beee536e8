//! Keeps rate limits in the memory of one process: for the embedded engine, and for a worker that
//! sends while the ledger is away.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::domain::limits::{Cost, Grant, Tat};
use crate::ports::{Lease, Leased, Limit, Scope};

/// Above this number of limits, those with nothing booked are dropped.
const LIMITS_KEPT: usize = 1000;

/// A limit whose rate changes starts empty.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    scope: Scope,
    name: String,
    units: u32,
    period: Duration,
    burst: u32,
    per_call: bool,
}

impl Key {
    fn of(limit: &Limit<'_>) -> Self {
        Self {
            scope: limit.scope,
            name: limit.name.to_owned(),
            units: limit.rate.units,
            period: limit.rate.period,
            burst: limit.rate.burst,
            per_call: limit.cost == Cost::PerCall,
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
    /// Books on all limits together, or on none: grants the smallest of their grants, after the
    /// longest wait.
    pub fn lease(&self, lease: &Lease<'_>) -> Leased {
        if lease.limits.is_empty() || lease.recipients == 0 {
            return Leased {
                grant: Grant::Units {
                    units: lease.recipients,
                    after: Duration::ZERO,
                },
                binding: None,
            };
        }
        let now_us = self.epoch.elapsed().as_micros() as u64;
        let mut tats = self.tats.lock();
        if tats.len() > LIMITS_KEPT {
            tats.retain(|_, tat| tat.0 > now_us as f64);
        }
        let limits: Vec<_> = lease
            .limits
            .iter()
            .map(|limit| (limit, Key::of(limit)))
            .collect();
        let per_call = lease.per_call.max(1);
        let units_of = |limit: &Limit<'_>, recipients: u32| match limit.cost {
            Cost::PerCall => recipients.div_ceil(per_call),
            Cost::PerRecipient => recipients,
        };

        let (mut granted, mut binding) = (lease.recipients, None);
        let mut later: Option<(Duration, Scope)> = None;
        for (limit, key) in &limits {
            // Works on a copy: nothing is booked before all limits agree.
            let mut tat = tats.get(key).copied().unwrap_or_default();
            let want = units_of(limit, lease.recipients);
            match tat.lease(&limit.rate, now_us, want, lease.wait_max) {
                Grant::Units { units, .. } => {
                    let recipients = match limit.cost {
                        Cost::PerCall => units.saturating_mul(per_call),
                        Cost::PerRecipient => units,
                    };
                    if recipients < granted {
                        (granted, binding) = (recipients, Some(limit.scope));
                    }
                }
                Grant::Later { after } => {
                    if later.is_none_or(|(longest, _)| after > longest) {
                        later = Some((after, limit.scope));
                    }
                }
            }
        }
        if let Some((after, scope)) = later {
            return Leased {
                grant: Grant::Later { after },
                binding: Some(scope),
            };
        }

        let mut wait = Duration::ZERO;
        let mut slowest = None;
        for (limit, key) in limits {
            let tat = tats.entry(key).or_default();
            let want = units_of(limit, granted);
            if let Grant::Units { after, .. } = tat.lease(&limit.rate, now_us, want, lease.wait_max)
                && after > wait
            {
                (wait, slowest) = (after, Some(limit.scope));
            }
        }
        Leased {
            grant: Grant::Units {
                units: granted,
                after: wait,
            },
            binding: binding.or(slowest),
        }
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
    pub fn refund(&self, limits: &[Limit<'_>], recipients: u32, calls: u32) {
        let mut tats = self.tats.lock();
        for limit in limits {
            let units = match limit.cost {
                Cost::PerCall => calls,
                Cost::PerRecipient => recipients,
            };
            if let Some(tat) = tats.get_mut(&Key::of(limit)) {
                tat.refund(&limit.rate, units);
            }
        }
    }
}
