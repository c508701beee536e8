//! Implements the limiter port: rates as theoretical arrival times, and parked targets.
//!
//! A lease is one script call. The clock is the server's, so workers need not
//! agree on the time. If a worker dies with a lease, its units stay unused; a limit is never
//! exceeded.

use std::sync::LazyLock;
use std::time::Duration;

use redis::Value;

use super::Store;
use super::connection::{Call, Script, broken, json};
use super::ledger::number;
use crate::domain::limits::{Grant, Tat};
use crate::ports::{LedgerError, Limit, Limiter, Park};

static LEASE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/lease.lua")));
static REFUND: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/refund.lua")));
static BOOKED: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/booked.lua")));
static PARK: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/park.lua")));

impl Limiter for Store {
    async fn lease(
        &self,
        limit: &Limit<'_>,
        units: u32,
        wait_max: Duration,
    ) -> Result<Grant, LedgerError> {
        let mut call = Call::new(&LEASE, 1, 5, 256);
        call.push(self.0.keys.limit(limit))
            .push(units)
            .push(micros(wait_max))
            .push(limit.weighed().interval_us())
            .push(limit.rate.burst_weighed(limit.weight))
            .push(limit.weight.further_ahead_us(&limit.rate));
        let reply: Vec<u64> =
            redis::from_redis_value(self.0.connection.call(&call).await?).map_err(broken)?;
        let [units, after, _now] = reply[..] else {
            return Err(broken(format!("lease says {reply:?}")));
        };
        let after = Duration::from_micros(after);
        Ok(match u32::try_from(units).map_err(broken)? {
            0 => Grant::Later { after },
            units => Grant::Units { units, after },
        })
    }

    async fn refund(&self, limit: &Limit<'_>, units: u32) -> Result<(), LedgerError> {
        let mut call = Call::new(&REFUND, 1, 2, 256);
        call.push(self.0.keys.limit(limit))
            .push(units)
            .push(limit.weighed().interval_us());
        self.0.connection.call(&call).await?;
        Ok(())
    }

    async fn park(&self, target: &str, park: &Park) -> Result<(), LedgerError> {
        let mut call = Call::new(&PARK, 1, 2, 256);
        call.push(self.0.keys.park(target))
            .push(park.until_ms)
            .push(json(park)?);
        self.0.connection.call(&call).await?;
        Ok(())
    }

    async fn unpark(&self, target: &str) -> Result<(), LedgerError> {
        let mut cmd = redis::cmd("DEL");
        cmd.arg(self.0.keys.park(target));
        self.0.connection.command(&cmd).await?;
        Ok(())
    }

    async fn booked(&self, limits: &[Limit<'_>]) -> Result<Vec<f64>, LedgerError> {
        if limits.is_empty() {
            return Ok(Vec::new());
        }
        let mut call = Call::new(&BOOKED, limits.len(), 0, 64 * limits.len());
        for limit in limits {
            call.push(self.0.keys.limit(limit));
        }
        let reply = self.0.connection.call(&call).await?;
        let Value::Array(rows) = reply else {
            return Err(broken(format!("booked says {reply:?}")));
        };
        let mut rows = rows.into_iter();
        let time = rows.next().ok_or_else(|| broken("the time is missing"))?;
        let now_us = number(&time)?;
        limits
            .iter()
            .zip(rows)
            .map(|(limit, row)| {
                let tat: Option<f64> = redis::from_redis_value(row).map_err(broken)?;
                Ok(Tat(tat.unwrap_or_default()).booked(&limit.rate, now_us))
            })
            .collect()
    }

    async fn parked(&self, targets: &[String]) -> Result<Vec<(String, Park)>, LedgerError> {
        if targets.is_empty() {
            return Ok(Vec::new());
        }
        let mut cmd = redis::cmd("MGET");
        for target in targets {
            cmd.arg(self.0.keys.park(target));
        }
        let rows: Vec<Option<String>> =
            redis::from_redis_value(self.0.connection.command(&cmd).await?).map_err(broken)?;
        targets
            .iter()
            .zip(rows)
            .filter_map(|(target, row)| Some((target, row?)))
            .map(|(target, row)| {
                let (_, park) = row
                    .split_once(' ')
                    .ok_or_else(|| broken(format!("parking {row:?}")))?;
                Ok((target.clone(), serde_json::from_str(park).map_err(broken)?))
            })
            .collect()
    }
}

fn micros(duration: Duration) -> u64 {
    duration.as_micros().try_into().unwrap_or(u64::MAX)
}
