//! Waits for the units that recalls take: those of the backend's own limit for such calls, and those
//! of the target's limits, which sends take too.
//!
//! A recall is one call, as cheap as the cheapest message. All workers and recalls book the same
//! limiters, in the order in which they ask. So while a limit is all used, the size of its blocks
//! decides who gets how much: a recall leases the part of a worker's block that belongs to the
//! priority of its job.

use tokio::time::{Instant, sleep, sleep_until};

use crate::clock::now_ms;
use crate::domain::job_limits::LimitOf;
use crate::domain::lane::{LaneClass, Priority};
use crate::domain::limits::{Cost, Grant, LimitScope, Rate, Weight};
use crate::ports::{LedgerError, Limit, Recall, Store};
use crate::runtime::WAIT_MAX;
use crate::runtime::context::{Context, TargetRuntime};

/// A limit that recalls respect.
struct Limited {
    scope: LimitScope,
    name: String,
    rate: Rate,
    weight: Weight,
    /// Units to lease at once.
    most: u32,
}

impl Limited {
    fn port(&self) -> Limit<'_> {
        Limit {
            scope: self.scope,
            name: &self.name,
            rate: self.rate,
            cost: self.rate.cost.unwrap_or(self.scope.usual_cost()),
            weight: self.weight,
        }
    }
}

/// The units of a block of this rate that belong to this priority, at least one.
fn share(rate: Rate, priority: Priority) -> u32 {
    let weight = |priority| LaneClass::Of(priority, 0).weight();
    let all: u32 = Priority::ALL.iter().copied().map(weight).sum();
    (rate.lease_units(u32::MAX) * weight(priority) / all).max(1)
}

/// The limits of a target as they apply now. The backend's own comes last: what waits for a limit
/// after it was booked may start close to what is booked later, and this limit is the hardest.
fn limits<S: Store, T>(
    context: &Context<S, T>,
    target: &TargetRuntime,
    recall: &dyn Recall,
    priority: Priority,
    most: u32,
) -> Vec<Limited> {
    let directives = context.directives();
    let (board, now) = (directives.borrow(), now_ms());
    let shared = target.shared_limit.as_ref();
    let named = [
        (LimitOf::Shared, shared.map(|it| (&it.name, Some(it.rate)))),
        (
            LimitOf::TargetDaily,
            Some((&target.name, target.daily_limit)),
        ),
        (LimitOf::Target, Some((&target.name, target.limit))),
    ];
    let of_target = named.into_iter().filter_map(|(limit, named)| {
        let (name, configured) = named?;
        let rate = board.rate(limit, name, configured, now)?;
        let message = Weight {
            units: 1,
            max: target.prices.most(),
        };
        Some(Limited {
            scope: limit.scope(),
            name: name.clone(),
            rate,
            weight: limit.weight(message),
            most: share(rate, priority).min(most),
        })
    });
    let own = Limited {
        scope: LimitScope::Target,
        name: format!("{} recall", target.name),
        rate: Rate {
            cost: Some(Cost::PerCall),
            ..recall.limit()
        },
        weight: Weight::ONE,
        most,
    };
    of_target.chain([own]).collect()
}

/// Waits for units of all limits, at most `most` of them; `None` when the time is over.
pub(super) async fn lease<S: Store, T>(
    context: &Context<S, T>,
    target: &TargetRuntime,
    recall: &dyn Recall,
    priority: Priority,
    most: usize,
    until: Instant,
) -> Result<Option<usize>, LedgerError> {
    let most = u32::try_from(most).unwrap_or(u32::MAX);
    loop {
        if Instant::now() >= until {
            return Ok(None);
        }
        let limits = limits(context, target, recall, priority, most);
        let mut units = most;
        let mut booked = Vec::with_capacity(limits.len());
        let mut later = None;
        for limit in &limits {
            let want = units.min(limit.most);
            match context.store.lease(&limit.port(), want, WAIT_MAX).await? {
                Grant::Units { units: got, after } => {
                    units = got.clamp(1, want);
                    booked.push((limit, got));
                    sleep(after).await;
                }
                Grant::Later { after } => {
                    later = Some(after);
                    break;
                }
            }
        }
        let used = if later.is_some() { 0 } else { units };
        for (limit, got) in booked {
            if got > used {
                context.store.refund(&limit.port(), got - used).await?;
            }
        }
        match later {
            None => return Ok(Some(units as usize)),
            Some(after) => sleep_until((Instant::now() + after).min(until)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recall_leases_the_part_of_a_block_that_belongs_to_its_priority() {
        let units = |rate: &str| {
            let rate: Rate = rate.parse().unwrap();
            Priority::ALL
                .iter()
                .map(|it| share(rate, *it))
                .collect::<Vec<_>>()
        };
        // A block is 50 ms of the rate: 65, 5, 1.
        assert_eq!(units("1300/s"), [40, 20, 5]);
        assert_eq!(units("100/s"), [3, 1, 1]);
        assert_eq!(units("1/min"), [1, 1, 1]);
    }
}
