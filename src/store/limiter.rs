//! Implements the limiter port: rates as theoretical arrival times, and parked targets.
//!
//! A lease books on all limits in one script call. The clock is the server's, so workers need not
//! agree on the time. If a worker dies with a lease, its units stay unused; a limit is never
//! exceeded.

use std::sync::LazyLock;
use std::time::Duration;

use redis::Script;

use super::Store;
use super::connection::{Call, broken, json};
use crate::domain::limits::{Cost, Grant, Tat};
use crate::ports::{Lease, Leased, LedgerError, Limit, Limiter, Park};

static LEASE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/lease.lua")));
static REFUND: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/refund.lua")));
static PARK: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/park.lua")));

impl Limiter for Store {
    async fn lease(&self, lease: &Lease<'_>) -> Result<Leased, LedgerError> {
        if lease.limits.is_empty() || lease.recipients == 0 {
            return Ok(Leased {
                grant: Grant::Units {
                    units: lease.recipients,
                    after: Duration::ZERO,
                },
                binding: None,
            });
        }
        let limits = lease.limits;
        let mut call = self.limits_call(&LEASE, limits);
        call.push(lease.recipients)
            .push(lease.per_call.max(1))
            .push(micros(lease.wait_max));
        for limit in limits {
            call.push(limit.rate.interval_us())
                .push(limit.rate.burst)
                .push(match limit.cost {
                    Cost::PerCall => "call",
                    Cost::PerRecipient => "recipient",
                });
        }
        let reply: Vec<u64> =
            redis::from_redis_value(self.0.connection.call(&call).await?).map_err(broken)?;
        let [recipients, after, binding, _now] = reply[..] else {
            return Err(broken(format!("lease says {reply:?}")));
        };
        let after = Duration::from_micros(after);
        let grant = match u32::try_from(recipients).map_err(broken)? {
            0 => Grant::Later { after },
            units => Grant::Units { units, after },
        };
        let binding = (binding as usize)
            .checked_sub(1)
            .and_then(|index| limits.get(index))
            .map(|limit| limit.scope);
        Ok(Leased { grant, binding })
    }

    async fn refund(
        &self,
        limits: &[Limit<'_>],
        recipients: u32,
        calls: u32,
    ) -> Result<(), LedgerError> {
        if limits.is_empty() || (recipients == 0 && calls == 0) {
            return Ok(());
        }
        let mut call = self.limits_call(&REFUND, limits);
        for limit in limits {
            call.push(match limit.cost {
                Cost::PerCall => calls,
                Cost::PerRecipient => recipients,
            })
            .push(limit.rate.interval_us());
        }
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
        let mut pipeline = redis::pipe();
        pipeline.cmd("TIME");
        for limit in limits {
            pipeline.cmd("GET").arg(self.0.keys.limit(limit));
        }
        let mut rows = self.0.connection.pipeline(&pipeline).await?.into_iter();
        let time = rows.next().ok_or_else(|| broken("the time is missing"))?;
        let (seconds, micros): (u64, u64) = redis::from_redis_value(time).map_err(broken)?;
        let now_us = seconds * 1_000_000 + micros;
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

impl Store {
    fn limits_call<'a>(&self, script: &'a Script, limits: &[Limit<'_>]) -> Call<'a> {
        let mut call = Call::new(script, limits.len(), 3 + 3 * limits.len(), 512);
        for limit in limits {
            call.push(self.0.keys.limit(limit));
        }
        call
    }
}

fn micros(duration: Duration) -> u64 {
    duration.as_micros().try_into().unwrap_or(u64::MAX)
}
