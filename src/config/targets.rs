//! `[targets.NAME]`: one backend account. What all targets have in common is read here, the rest by
//! the table of its `type`.

use std::time::Duration;

use super::reader::{Findings, Section};
use super::{HOUR, MINUTE, SECOND};
use crate::domain::limits::Rate;
use crate::domain::outcome::{Class, OnUncertain};
use crate::im::{TargetSettings, webhook, wukongim};
use crate::secret::Secret;

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

pub(super) fn read(
    name: &str,
    mut section: Section,
    findings: &mut Findings,
) -> Option<TargetConfig> {
    let kinds = [("webhook", Kind::Webhook), ("wukongim", Kind::Wukongim)];
    let before = findings.problems.len();
    // Without a type nothing else can be judged.
    let settings = match section.required_choice("type", &kinds, findings)? {
        Kind::Webhook => TargetSettings::Webhook(read_webhook(&mut section, findings)),
        Kind::Wukongim => TargetSettings::Wukongim(read_wukongim(&mut section, findings)),
    };
    let policies = [
        ("auto", None),
        ("retry", Some(OnUncertain::Retry)),
        ("hold", Some(OnUncertain::Hold)),
        ("drop", Some(OnUncertain::Drop)),
    ];
    let call_timeout = Duration::from_millis(100)..=5 * MINUTE;
    let target = TargetConfig {
        settings,
        call_timeout: section.duration("call_timeout", 10 * SECOND, call_timeout, findings),
        calls_in_flight: section.integer("calls_in_flight", 256, 1..=10_000, findings) as usize,
        limit: section.rate("limit", findings),
        on_uncertain: section
            .choice("on_uncertain", "auto", &policies, findings)
            .flatten(),
        config_park: section.duration("config_park", MINUTE, SECOND..=HOUR, findings),
        breaker_failures: section.integer("breaker_failures", 50, 1..=100_000, findings) as u32,
    };
    section.finish(findings);
    // The adapter judges the rest, once what it is given could be read.
    if findings.problems.len() == before
        && let Err(problems) = crate::im::build(name, &target.settings)
    {
        findings.problems.extend(problems);
    }
    Some(target)
}

#[derive(Clone, Copy)]
enum Kind {
    Webhook,
    Wukongim,
}

/// `type = "webhook"`: `url` (required, with `{recipient}`, `{client_msg_no}`, `{job}`, `{app}`),
/// `headers`, `recipients_per_call` (1; to 1000), `idempotent` (false), `signature_secret` or
/// `signature_secret_file`, `signature_header` (`fanwise-signature`), `statuses` (status or range →
/// class).
fn read_webhook(section: &mut Section, findings: &mut Findings) -> webhook::Settings {
    let most = webhook::Settings::RECIPIENTS_PER_CALL_MAX as u64;
    let per_call = webhook::Settings::RECIPIENTS_PER_CALL as u64;
    let header = section.text("signature_header", webhook::Signature::HEADER, findings);
    let secret = section.secret("signature_secret", "signature_secret_file", findings);
    webhook::Settings {
        headers: section.texts("headers", findings),
        recipients_per_call: section.integer("recipients_per_call", per_call, 1..=most, findings)
            as usize,
        signature: secret.map(|secret| webhook::Signature { secret, header }),
        idempotent: section.boolean("idempotent", false, findings),
        statuses: read_statuses(section, findings),
        ..webhook::Settings::new(section.required_text("url", findings))
    }
}

fn read_statuses(section: &mut Section, findings: &mut Findings) -> Vec<(String, Class)> {
    let mut statuses = Vec::new();
    for (status, word) in section.texts("statuses", findings) {
        match Class::ALL.into_iter().find(|class| class.as_str() == word) {
            Some(class) => statuses.push((status, class)),
            None => {
                let words: Vec<_> = Class::ALL.iter().map(|class| class.as_str()).collect();
                let what = format!("one of {} is expected, not {word:?}", words.join(", "));
                findings.problem(section.key(&format!("statuses.{status}")), what);
            }
        }
    }
    statuses
}

/// `type = "wukongim"`: `url` (required), `version` (required: `v1`, `v2`, `v3`), `token` or
/// `token_file`, `sender`, `packed` (false), `subscribers` (false), `recipients_per_call` (100; to
/// 1000, of calls for many), `client_msg_no` (`per_recipient` or `job`), `probe` (false),
/// `manager_url`, `manager_user`, `manager_password` or `manager_password_file`.
fn read_wukongim(section: &mut Section, findings: &mut Findings) -> wukongim::Settings {
    use wukongim::{ClientMsgNo, Manager, Settings, Version};
    let versions = [
        ("v1", Version::V1),
        ("v2", Version::V2),
        ("v3", Version::V3),
    ];
    let numbers = [
        ("per_recipient", ClientMsgNo::PerRecipient),
        ("job", ClientMsgNo::Job),
    ];
    let per_call = Settings::RECIPIENTS_PER_CALL as u64;
    let most = Settings::RECIPIENTS_PER_CALL_MAX as u64;
    let version = section.required_choice("version", &versions, findings);
    let number = section.choice("client_msg_no", "per_recipient", &numbers, findings);
    let user = section.optional_text("manager_user", findings);
    let password = section.secret("manager_password", "manager_password_file", findings);
    // One without the other is the adapter's to refuse.
    let manager = (user.is_some() || password.is_some()).then(|| Manager {
        user: user.unwrap_or_default(),
        password: password.unwrap_or_else(|| Secret::new("")),
    });
    Settings {
        token: section.secret("token", "token_file", findings),
        sender: section.optional_text("sender", findings),
        packed: section.boolean("packed", false, findings),
        subscribers: section.boolean("subscribers", false, findings),
        recipients_per_call: section.integer("recipients_per_call", per_call, 1..=most, findings)
            as usize,
        client_msg_no: number.unwrap_or(ClientMsgNo::PerRecipient),
        probe: section.boolean("probe", false, findings),
        manager_url: section.optional_text("manager_url", findings),
        manager,
        ..Settings::new(
            section.required_text("url", findings),
            version.unwrap_or(Version::V2),
        )
    }
}
