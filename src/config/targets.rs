//! `[targets.NAME]`: one backend account. What all targets have in common is read here, the rest by
//! the table of its `type`.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::reader::{Findings, Section};
use super::{HOUR, MINUTE, SECOND};
use crate::domain::limits::Rate;
use crate::domain::outcome::{Class, OnUncertain};
use crate::im::{TargetSettings, webhook, wukongim};

#[derive(Clone, Debug)]
pub struct TargetConfig {
    pub settings: TargetSettings,
    /// `call_timeout`: longest wait for an answer; then the call is uncertain. Default 10s; 100ms to 5m.
    pub call_timeout: Duration,
    /// `calls_in_flight`: calls at a time, per worker. Default 256; 1 to 10000.
    pub calls_in_flight: usize,
    /// `limit`: shared by all workers, such as `"2000/s burst 200"`; in calls unless it says
    /// `per recipient`. Default none.
    pub limit: Option<Rate>,
    /// `on_uncertain`: `auto` (default: `retry` where the target is idempotent, else `hold`),
    /// `retry`, `hold` or `drop`.
    pub on_uncertain: Option<OnUncertain>,
    /// `config_park`: how long a configuration fault parks the target before it is tried again.
    /// Default 1m; 1s to 1h.
    pub config_park: Duration,
    /// `breaker_failures`: calls in a row without success after which the target is parked, for 1s
    /// to 30s. Default 50; 1 to 100000.
    pub breaker_failures: u32,
}

pub(super) fn read(mut section: Section, findings: &mut Findings) -> Option<TargetConfig> {
    let kinds = [("webhook", Kind::Webhook), ("wukongim", Kind::Wukongim)];
    let before = findings.problems.len();
    let kind = section.required_choice("type", &kinds, findings);
    let policies = [
        ("auto", None),
        ("retry", Some(OnUncertain::Retry)),
        ("hold", Some(OnUncertain::Hold)),
        ("drop", Some(OnUncertain::Drop)),
    ];
    let call_timeout = Duration::from_millis(100)..=5 * MINUTE;
    let common = |settings, section: &mut Section, findings: &mut Findings| TargetConfig {
        settings,
        call_timeout: section.duration("call_timeout", 10 * SECOND, call_timeout, findings),
        calls_in_flight: section.integer("calls_in_flight", 256, 1..=10_000, findings) as usize,
        limit: section.rate("limit", findings),
        on_uncertain: section.choice("on_uncertain", "auto", &policies, findings).flatten(),
        config_park: section.duration("config_park", MINUTE, SECOND..=HOUR, findings),
        breaker_failures: section.integer("breaker_failures", 50, 1..=100_000, findings) as u32,
    };
    let settings = match kind {
        Some(Kind::Webhook) => TargetSettings::Webhook(read_webhook(&mut section, findings)),
        Some(Kind::Wukongim) => TargetSettings::Wukongim(read_wukongim(&mut section, findings)),
        // Without a type nothing else can be judged.
        None => return None,
    };
    let target = common(settings, &mut section, findings);
    let name = section.path().to_owned();
    section.finish(findings);
    if findings.problems.len() == before
        && let Err(problems) = crate::im::check(&target.settings)
    {
        findings.problem(name, problems.to_string());
    }
    Some(target)
}

#[derive(Clone, Copy)]
enum Kind {
    Webhook,
    Wukongim,
}
