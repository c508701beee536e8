//! Reads `[retry]`, and the sections of a target or an app that change single keys of it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::reader::{Findings, Section};
use super::{AppConfig, Config, HOUR, MINUTE, SECOND, TargetConfig};
use crate::domain::retry::{RetryChanges, RetryPolicy};
use crate::domain::schedule::Schedule;

/// Least and most retries of a job, as a share of its recipients.
const BUDGET: std::ops::RangeInclusive<f64> = 0.01..=100.0;

/// `[retry]`: `attempts_max` (8; 1 to 100), `delay_min` (1s; 100ms to 1h), `delay_max` (5m; 100ms
/// to 24h), `jitter` (0.2; 0 to below 1), `budget` (none; 0.01 to 100).
pub(super) fn from_section(mut section: Section, findings: &mut Findings) -> RetryPolicy {
    let usual = RetryPolicy {
        attempts_max: 8,
        schedule: Schedule {
            min: SECOND,
            max: 5 * MINUTE,
            jitter: 0.2,
        },
        budget: None,
    };
    let policy = read_keys(&mut section, usual, findings);
    section.finish(findings);
    policy
}

fn read_keys(section: &mut Section, usual: RetryPolicy, findings: &mut Findings) -> RetryPolicy {
    let ms = Duration::from_millis;
    let Schedule { min, max, jitter } = usual.schedule;
    let attempts = u64::from(usual.attempts_max);
    RetryPolicy {
        attempts_max: section.integer("attempts_max", attempts, 1..=100, findings) as u32,
        schedule: Schedule {
            min: section.duration("delay_min", min, ms(100)..=HOUR, findings),
            max: section.duration("delay_max", max, ms(100)..=24 * HOUR, findings),
            jitter: section.ratio("jitter", jitter, findings),
        },
        budget: section.optional_share("budget", BUDGET, findings),
    }
}

/// `[targets.NAME.retry]` or `[apps.NAME.retry]`: the keys of `[retry]`, each optional.
pub(super) fn changes(
    section: &mut Section,
    usual: RetryPolicy,
    findings: &mut Findings,
) -> RetryChanges {
    let Some(mut section) = section.optional("retry", findings) else {
        return RetryChanges::default();
    };
    let given = ["attempts_max", "delay_min", "delay_max", "jitter"].map(|key| section.has(key));
    let read = read_keys(&mut section, usual, findings);
    section.finish(findings);
    RetryChanges {
        attempts_max: given[0].then_some(read.attempts_max),
        delay_min: given[1].then_some(read.schedule.min),
        delay_max: given[2].then_some(read.schedule.max),
        jitter: given[3].then_some(read.schedule.jitter),
        budget: read.budget,
    }
}

/// Checks every policy that can arise from these keys.
pub(super) fn check(config: &Config, findings: &mut Findings) {
    let none = RetryChanges::default();
    check_one("retry", config, &none, &none, findings);
    for (name, target) in &config.targets {
        let section = format!("targets.{name}.retry");
        if target.retry != none {
            check_one(&section, config, &target.retry, &none, findings);
        }
    }
    for (name, app) in config.apps.iter().filter(|(_, app)| app.retry != none) {
        let section = format!("apps.{name}.retry");
        for target in targets_of(app, &config.targets) {
            // One problem a section is enough.
            if check_one(&section, config, &target.retry, &app.retry, findings) {
                break;
            }
        }
    }
}

/// The targets that an app may use.
fn targets_of<'a>(
    app: &'a AppConfig,
    targets: &'a BTreeMap<String, TargetConfig>,
) -> impl Iterator<Item = &'a TargetConfig> {
    let may = &app.permissions.targets;
    let used = targets
        .iter()
        .filter(|(name, _)| may.is_empty() || may.contains(name));
    used.map(|(_, target)| target)
}

/// Whether there is a problem with the policy of these changes.
fn check_one(
    section: &str,
    config: &Config,
    target: &RetryChanges,
    app: &RetryChanges,
    findings: &mut Findings,
) -> bool {
    let policy = config.retry.with(target).with(app);
    if policy.schedule.min > policy.schedule.max {
        findings.problem(
            format!("{section}.delay_max"),
            "is less than the delay_min that applies",
        );
        return true;
    }
    let all = policy.schedule.max * policy.attempts_max;
    if config.ledger.dedup_window < all {
        let what = "is shorter than all retries together: the ledger would forget recipients before their last retry";
        let what = match section {
            "retry" => what.to_owned(),
            _ => format!("{what}; {section} makes them so long"),
        };
        findings.problem("ledger.dedup_window", what);
        return true;
    }
    false
}
