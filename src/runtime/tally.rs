//! Counts outcomes by target, app and priority, and shows the limits in force.

use std::time::Duration;

use super::context::{Context, TargetRuntime};
use crate::clock::now_ms;
use crate::domain::job_limits::LimitOf;
use crate::domain::limits::{Cost, Rate};
use crate::domain::outcome::Outcome;
use crate::domain::slice::Head;
use crate::metrics::{APPS_MAX, OutcomeCounts};
use crate::ports::{Scope, Store};

impl<S: Store, T> Context<S, T> {
    /// Counts recipients of a job whose outcome is recorded.
    pub(crate) fn count_outcomes(
        &self,
        target: &TargetRuntime,
        head: &Head,
        outcomes: impl Iterator<Item = Outcome>,
    ) {
        let mut counts = OutcomeCounts::default();
        outcomes.for_each(|outcome| counts[outcome as usize] += 1);
        target.metrics.ended(&counts);
        self.app_metrics.ended(&head.app, &counts);
        let due = head.accepted_at_ms.max(head.not_before_ms.unwrap_or(0));
        let took = Duration::from_millis(now_ms().saturating_sub(due));
        let count = counts.iter().sum();
        self.metrics.outcomes_after(head.priority, count, took);
    }

    /// Shows the limits of targets and apps in the metrics.
    pub fn show_limits(&self) {
        let (board, now) = (self.directives(), now_ms());
        let board = board.borrow();
        let mut limits = Vec::new();
        for (name, target) in &self.targets {
            let per_call = target.target.profile().recipients_per_call;
            let rates = [
                board.rate(LimitOf::Target, name, target.limit, now),
                board.rate(LimitOf::TargetDaily, name, target.daily_limit, now),
                target.shared_limit.as_ref().and_then(|shared| {
                    board.rate(LimitOf::Shared, &shared.name, Some(shared.rate), now)
                }),
            ];
            if let Some(least) = least(rates, Cost::PerCall, per_call) {
                limits.push((Scope::Target, &**name, least));
            }
        }
        for (name, app) in self.apps.iter().take(APPS_MAX) {
            let rates = [
                board.rate(LimitOf::App, name, app.limit, now),
                board.rate(LimitOf::AppDaily, name, app.daily_limit, now),
            ];
            if let Some(least) = least(rates, Cost::PerRecipient, 1) {
                limits.push((Scope::App, &**name, least));
            }
        }
        self.metrics.limits(&limits);
    }
}

/// The recipients a second that the lowest of these limits permits.
fn least<const N: usize>(
    rates: [Option<Rate>; N],
    usual: Cost,
    recipients_per_call: usize,
) -> Option<f64> {
    let rates = rates.into_iter().flatten();
    let each = rates.map(|rate| per_second(rate, rate.cost.unwrap_or(usual), recipients_per_call));
    each.reduce(f64::min)
}

fn per_second(rate: Rate, cost: Cost, recipients_per_call: usize) -> f64 {
    match cost {
        Cost::PerCall => rate.per_second() * recipients_per_call.max(1) as f64,
        Cost::PerRecipient => rate.per_second(),
    }
}
