//! `[apps.NAME.SYSTEM]`: the entrance of an app for existing callers of one IM system.

use std::collections::BTreeMap;
use std::time::Duration;

use super::reader::{Findings, Section};
use super::{HOUR, MINUTE, SECOND};
use crate::domain::limits::Rate;
use crate::im::ingress::{Door, Ingress};

/// `key` (AppKey, or the administrator's user id), `secret` or `secret_file` (AppSecret, OpenIM's secret,
/// WuKongIM's token), `auth` (`required`, or `none`: anybody may call), `target` (the app's), `wait` (3s;
/// 0s to 1m), `window` (10s; 0s to 1h), `calls` and `block` (as the system documents), `send_all` (false),
/// and the system's own limits.
pub(super) fn read(
    app: &str,
    ingress: &dyn Ingress,
    mut section: Section,
    findings: &mut Findings,
) -> Door {
    let auth = [("required", true), ("none", false)];
    let required = section.choice("auth", "required", &auth, findings) != Some(false);
    let secret = section.secret("secret", "secret_file", findings);
    match (&secret, required) {
        (None, true) => {
            let what = "missing; give it, or say auth = \"none\" to let anybody call";
            findings.problem(section.key("secret"), what);
        }
        (_, false) => {
            let what = "anybody who reaches the gateway can send as this app";
            findings.warning(section.key("auth"), what);
        }
        _ => {}
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
    let door = Door {
        app: app.to_owned(),
        target: section.optional_text("target", findings),
        key: section.optional_text("key", findings),
        secret: secret.filter(|_| required),
        wait: section.duration("wait", 3 * SECOND, Duration::ZERO..=MINUTE, findings),
        window: section.duration("window", 10 * SECOND, Duration::ZERO..=HOUR, findings),
        calls: section.rate_or("calls", calls, findings),
        block: section.duration("block", block, Duration::ZERO..=HOUR, findings),
        send_all: section.boolean("send_all", false, findings),
        limits,
    };
    section.finish(findings);
    door
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
