//! Reads `[apps.NAME.SYSTEM]`: an app's drop-in endpoint for existing callers of one IM system.

use std::collections::BTreeMap;
use std::time::Duration;

use super::reader::{Findings, Section};
use super::{AppConfig, HOUR, MINUTE, SECOND};
use crate::domain::limits::Rate;
use crate::im::ingress::{DropInEndpoint, Ingress};

/// `key` (AppKey, or the administrator's user id), `secret` or `secret_file` (AppSecret, OpenIM's
/// secret, WuKongIM's token), `auth` (`required`, or `none`: every client may call), `target` (the
/// app's), `answer_within` (3s; 0s to 1m), `repeat_window` (10s; 0s to 1h), `rate` and `block_for`
/// (as the system documents), `send_all` (false), OpenIM's `operation_id` (`trace`, or `dedup`: it
/// is the key of the job), and the system's own limits.
pub(super) fn from_section(
    app: &str,
    ingress: &dyn Ingress,
    mut section: Section,
    findings: &mut Findings,
) -> DropInEndpoint {
    let auth = [("required", true), ("none", false)];
    let required = section.choice("auth", "required", &auth, findings) != Some(false);
    let secret = if required {
        let missing = "missing; set it, or set auth = \"none\" to let every client call";
        section.required_secret("secret", "secret_file", missing, findings)
    } else {
        let what = "every client that reaches the gateway can send as this app";
        findings.warning(section.key("auth"), what);
        section.secret("secret", "secret_file", findings)
    };
    let key = section.optional_text("key", findings);
    if key.as_ref().is_some_and(|key| key.trim().is_empty()) {
        let what = "is empty; set a value, or leave the key out";
        findings.problem(section.key("key"), what);
    }
    let (calls, block) = match ingress.calls() {
        Some((rate, block)) => (Some(rate), block),
        None => (None, MINUTE),
    };
    let mut limits = BTreeMap::new();
    for limit in ingress.limits() {
        let most = 1..=limit.default.max(1_000_000) as u64;
        let value = section.integer(limit.name, limit.default as u64, most, findings);
        limits.insert(limit.name, value as usize);
    }
    let ids = [("trace", false), ("dedup", true)];
    let id_is_key = ingress.trace_setting().is_none_or(|name| {
        let meaning = section.choice(name, "trace", &ids, findings);
        meaning == Some(true)
    });
    let endpoint = DropInEndpoint {
        app: app.to_owned(),
        target: section.optional_text("target", findings),
        key,
        id_is_key,
        secret: secret.filter(|_| required),
        answer_within: section.duration(
            "answer_within",
            3 * SECOND,
            Duration::ZERO..=MINUTE,
            findings,
        ),
        repeat_window: section.duration(
            "repeat_window",
            10 * SECOND,
            Duration::ZERO..=HOUR,
            findings,
        ),
        rate: section.rate_or("rate", calls, findings),
        block_for: section.duration("block_for", block, Duration::ZERO..=HOUR, findings),
        send_all: section.boolean("send_all", false, findings),
        limits,
    };
    section.finish(findings);
    endpoint
}

/// Refuses endpoints of one system that a call cannot tell apart: every call would count for the
/// first app.
pub(super) fn check_distinct(apps: &BTreeMap<String, AppConfig>, findings: &mut Findings) {
    for (system, ingress) in crate::im::ingresses() {
        let mut known = BTreeMap::new();
        for (app, config) in apps {
            let endpoints = config.endpoints.iter().filter(|(name, _)| *name == system);
            for (_, endpoint) in endpoints {
                let mark = mark(&*ingress, endpoint);
                let here = format!("apps.{app}.{system}");
                for (name, value) in mark {
                    if let Some(first) = known.insert((name, value), here.clone()) {
                        let what = format!(
                            "is the same as {first}.{name}: calls of both would count for one app"
                        );
                        findings.problem(format!("{here}.{name}"), what);
                    }
                }
            }
        }
    }
}

/// The parts of a call that name this endpoint: keys with their values. No other endpoint of the
/// system may have one of them.
fn mark<'a>(
    ingress: &dyn Ingress,
    endpoint: &'a DropInEndpoint,
) -> Vec<(&'static str, Option<&'a str>)> {
    let key = endpoint
        .key
        .as_deref()
        .filter(|_| ingress.is_named_by_key());
    let secret = endpoint.secret.as_ref().map(|secret| Some(secret.expose()));
    let mut mark = Vec::new();
    mark.extend(key.map(|key| ("key", Some(key))));
    mark.extend(secret.map(|secret| ("secret", secret)));
    if mark.is_empty() {
        // An endpoint without key and secret takes every call.
        mark.push(("auth", None));
    }
    mark
}

impl Section {
    /// A rate, a default, or `"none"`.
    fn rate_or(
        &mut self,
        name: &'static str,
        default: Option<Rate>,
        findings: &mut Findings,
    ) -> Option<Rate> {
        let shown = default.map_or_else(|| "none".to_owned(), |rate| rate.to_string());
        let text = self.text(name, &shown, findings);
        if text == "none" {
            return None;
        }
        match text.parse() {
            Ok(rate) => Some(rate),
            Err(error) => {
                let what = format!("{error}, or \"none\"");
                findings.problem(self.key(name), what);
                None
            }
        }
    }
}
