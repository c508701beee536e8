//! The limits in force about a job, as the workers apply them.

use std::borrow::Cow;

use super::Facts;
use super::hindrance::LimitName;
use crate::domain::adapt::Climb;
use crate::domain::directive::{Board, Directive};
use crate::domain::job_limits::{LimitOf, Limited, Rates};
use crate::domain::limits::{Cost, Rate, Weight};
use crate::ports::Limit;

/// A job, as far as its limits depend on it.
#[derive(Clone, Copy, Debug)]
pub struct LimitedJob<'a> {
    pub target: &'a str,
    pub app: &'a str,
    /// Its id; empty for a job that was not accepted yet.
    pub job: &'a str,
    /// Its own limit.
    pub rate: Option<Rate>,
    /// The sender that it names.
    pub sender: Option<&'a str>,
}

/// A limit in force.
#[derive(Clone, Debug)]
pub struct InForce<'a> {
    pub of: LimitOf,
    /// The name of its limiter.
    pub limiter: Cow<'a, str>,
    /// What users call it.
    pub name: &'a str,
    /// The rate that applies now.
    pub rate: Rate,
    /// The whole rate, of which a part applies while it climbs.
    pub full: Rate,
    pub climb: Option<Climb>,
    /// The directive that set it.
    pub set: Option<&'a Directive>,
}

impl InForce<'_> {
    pub fn cost(&self) -> Cost {
        self.rate.cost.unwrap_or(self.of.scope().usual_cost())
    }

    /// As the limiter knows it.
    pub fn limit(&self) -> Limit<'_> {
        Limit {
            scope: self.of.scope(),
            name: &self.limiter,
            rate: self.rate,
            cost: self.cost(),
            weight: Weight::ONE,
        }
    }

    /// `target im`, `each sender news of target im`
    pub fn about(&self, target: &str) -> String {
        self.named(target).to_string()
    }

    pub fn named(&self, target: &str) -> LimitName {
        LimitName {
            limit: self.of,
            name: self.name.to_owned(),
            target: target.to_owned(),
        }
    }
}

/// The limits in force about a job.
pub fn in_force<'a>(
    job: LimitedJob<'a>,
    facts: &'a Facts,
    board: &'a Board,
    now_ms: u64,
) -> Vec<InForce<'a>> {
    let target = facts.targets.get(job.target);
    let shared = target.and_then(|it| it.shared_limit.as_ref());
    let own_sender = target.and_then(|it| it.sender.as_deref());
    let limited = Limited {
        target: job.target,
        app: job.app,
        job: job.job,
        sender: job.sender.or(own_sender).unwrap_or_default(),
        shared: shared.map(|it| &*it.name),
    };
    let mut configured = Rates::default();
    if let Some(target) = target {
        configured[LimitOf::Target] = target.limit;
        configured[LimitOf::TargetDaily] = target.daily_limit;
        configured[LimitOf::Sender] = target.sender_limit;
        configured[LimitOf::Shared] = shared.map(|it| it.rate);
    }
    configured[LimitOf::App] = facts.apps.get(job.app).copied().flatten();
    configured[LimitOf::AppDaily] = facts.daily_limits.get(job.app).copied();
    configured[LimitOf::Job] = job.rate;
    let limits = LimitOf::ALL.iter().copied();
    let limits = limits.filter(|limit| *limit != LimitOf::Shared || limited.shared.is_some());
    limits
        .filter_map(|of| {
            let (scope, kind) = of.subject();
            let subject = match of {
                LimitOf::Sender => limited.target.into(),
                of => limited.name(of),
            };
            let set = board.find(scope, &subject, kind.directive(), now_ms);
            let full = set.and_then(|it| it.action.rate()).or(configured[of])?;
            let climb = (of == LimitOf::Target).then(|| board.adapted(&subject, now_ms));
            let climb = climb.flatten();
            Some(InForce {
                of,
                limiter: limited.name(of),
                name: match of {
                    LimitOf::Target | LimitOf::TargetDaily => limited.target,
                    LimitOf::App | LimitOf::AppDaily => limited.app,
                    LimitOf::Job => limited.job,
                    LimitOf::Sender => limited.sender,
                    LimitOf::Shared => limited.shared.unwrap_or_default(),
                },
                rate: climb.map_or(full, |climb| climb.rate(full, now_ms)),
                full,
                climb,
                set,
            })
        })
        .collect()
}
