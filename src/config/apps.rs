//! Reads `[apps.NAME]`: what an app may send and who may act as it. Also reads and checks who may
//! use the gateway.

use std::collections::BTreeMap;
use std::path::PathBuf;

use axum::http::Uri;

use super::reader::{Findings, Section};
use super::sections::{check_name, no_target};
use super::signatures::read_signer;
use super::{AppConfig, Config, GatewayAuth, HOUR, MINUTE, SECOND, TargetConfig, list_sources};
use crate::domain::frequency_cap::{CAP_MAX, FrequencyCap};
use crate::domain::permissions::{AudienceKind, Permissions};
use crate::domain::window::{NoWindow, Window};
use crate::gateway::AppAccess;
use crate::im::address::no_credentials;
use crate::secret::Secret;
use crate::service::BeforeAccept;

/// `senders` and `targets` (any), `audiences` (`users` and `groups`), `recipients_max` and
/// `daily_recipients` (no limit).
pub(super) fn read_permissions(
    section: &mut Section,
    targets: &BTreeMap<String, TargetConfig>,
    findings: &mut Findings,
) -> Permissions {
    let usual = Permissions::default();
    let permissions = Permissions {
        senders: section.list("senders", &[], findings),
        targets: section.list("targets", &[], findings),
        audiences: read_audiences(section, &usual.audiences, findings),
        recipients_max: section.optional_integer("recipients_max", 1..=u64::MAX >> 1, findings),
        daily_recipients: section.optional_integer("daily_recipients", 1..=u64::MAX >> 1, findings),
    };
    for target in &permissions.targets {
        if !targets.contains_key(target) {
            findings.problem(section.key("targets"), no_target(target, targets));
        }
    }
    if permissions.audiences.contains(&AudienceKind::All) && permissions.counts() {
        let what = "lists \"all\", whose number is not known in advance, so `recipients_max` and \
                    `daily_recipients` cannot limit it; leave out one or the other";
        findings.problem(section.key("audiences"), what);
    }
    permissions
}

/// `window` (none: always) and `timezone` (UTC).
pub(super) fn read_window(section: &mut Section, findings: &mut Findings) -> Option<Window> {
    let hours = section.optional_text("window", findings);
    let zone = section.text("timezone", Window::ZONE, findings);
    match Window::new(&hours?, &zone) {
        Ok(window) => Some(window),
        Err(wrong) => {
            let key = match wrong {
                NoWindow::Hours(_) => "window",
                NoWindow::Zone(_) => "timezone",
            };
            findings.problem(section.key(key), wrong.to_string());
            None
        }
    }
}

/// `[apps.NAME.frequency_caps.CATEGORY]`: `max` and `period`.
pub(super) fn read_frequency_caps(
    section: &mut Section,
    findings: &mut Findings,
) -> BTreeMap<String, FrequencyCap> {
    let (all, mut caps) = (section.key("frequency_caps"), BTreeMap::new());
    for (category, mut section) in section.named("frequency_caps", findings) {
        check_name(&format!("{all}.{category}"), &category, findings);
        let max = 1..=u64::from(CAP_MAX);
        let period = MINUTE..=31 * 24 * HOUR;
        let max = section.required("max", findings, |section, findings| {
            section.integer("max", 1, max, findings)
        });
        let period = section.required("period", findings, |section, findings| {
            section.duration("period", MINUTE, period, findings)
        });
        section.finish(findings);
        if let (Some(max), Some(period)) = (max, period) {
            let max = max as u32;
            caps.insert(category, FrequencyCap { max, period });
        }
    }
    caps
}

fn read_audiences(
    section: &mut Section,
    usual: &[AudienceKind],
    findings: &mut Findings,
) -> Vec<AudienceKind> {
    let usual: Vec<_> = usual.iter().map(|crowd| crowd.as_str()).collect();
    let mut audiences = Vec::new();
    for word in section.list("audiences", &usual, findings) {
        match word.parse() {
            Ok(kind) => audiences.push(kind),
            Err(_) => {
                let words: Vec<_> = AudienceKind::ALL.iter().map(|it| it.as_str()).collect();
                let words = words.join(", ");
                let what = format!("{word:?} is not one of {words}");
                findings.problem(section.key("audiences"), what);
            }
        }
    }
    audiences
}

/// `token` or `token_file` (none), `auth` (`token`, or `none`: every caller may act as this app),
/// `request_rate` (no limit), `[apps.NAME.before_accept]` and `[apps.NAME.list_sources.SOURCE]`.
pub(super) fn read_access(section: &mut Section, findings: &mut Findings) -> AppAccess {
    let ways = [("token", false), ("none", true)];
    let open = section.choice("auth", "token", &ways, findings) == Some(true);
    if open {
        let what = "every client that reaches the gateway can send as this app";
        findings.warning(section.key("auth"), what);
    }
    AppAccess {
        open,
        token: read_token(section, findings),
        requests: section.rate("request_rate", findings),
        before_accept: section
            .optional("before_accept", findings)
            .and_then(|section| read_before_accept(section, findings)),
        list_sources: list_sources::read(section, findings),
    }
}

/// `url` (required), `secret` or `secret_file` (none: calls are not signed), `signature_scheme`
/// (`standard` or `fanwise`), `timeout` (2s; 100ms to 1m), `on_failure` (`refuse` or `allow`).
fn read_before_accept(mut section: Section, findings: &mut Findings) -> Option<BeforeAccept> {
    let url = section.required_address("url", findings);
    let uri = url.parse::<Uri>().ok().filter(|uri| {
        let known = matches!(uri.scheme_str(), Some("http" | "https"));
        known && uri.host().is_some_and(|host| !host.is_empty())
    });
    if uri.is_none() && !url.is_empty() {
        let what = "an address that begins with http:// or https:// is expected";
        findings.problem(section.key("url"), what);
    }
    if let Some(authority) = uri.as_ref().and_then(Uri::authority)
        && let Err(what) = no_credentials(authority)
    {
        let what = format!("{what}; `secret` signs the calls instead");
        findings.problem(section.key("url"), what);
    }
    let choices = [("refuse", false), ("allow", true)];
    let secret = section.secret("secret", "secret_file", findings);
    let signer = read_signer(&mut section, secret, findings);
    let timeout = SECOND / 10..=MINUTE;
    let timeout = section.duration("timeout", 2 * SECOND, timeout, findings);
    let on_failure = section.choice("on_failure", "refuse", &choices, findings);
    section.finish(findings);
    Some(BeforeAccept {
        url: uri?,
        signer,
        timeout,
        allow_on_failure: on_failure == Some(true),
    })
}

/// A token that callers send as `Authorization: Bearer …`.
pub(super) fn read_token(section: &mut Section, findings: &mut Findings) -> Option<Secret> {
    section.secret("token", "token_file", findings)
}

pub(super) fn read_auth(section: &mut Section, findings: &mut Findings) -> GatewayAuth {
    let ways = [
        ("auto", GatewayAuth::Auto),
        ("token", GatewayAuth::Token),
        ("none", GatewayAuth::None),
    ];
    let auth = section.choice("auth", "auto", &ways, findings);
    auth.unwrap_or(GatewayAuth::Auto)
}

pub(super) fn read_tls(
    section: &mut Section,
    findings: &mut Findings,
) -> Option<(PathBuf, PathBuf)> {
    let certificate = section.optional_text("tls_certificate", findings);
    let key = section.optional_text("tls_key", findings);
    match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
        (None, None) => None,
        (Some(_), None) => {
            let what = "missing; gateway.tls_certificate needs its key";
            findings.problem(section.key("tls_key"), what);
            None
        }
        (None, Some(_)) => {
            let what = "missing; gateway.tls_key needs its certificate";
            findings.problem(section.key("tls_certificate"), what);
            None
        }
    }
}

/// Warns of endpoints that permit requests for all users while the app's own audiences do not.
pub(super) fn check_endpoints(name: &str, app: &AppConfig, findings: &mut Findings) {
    if app.permissions.audiences.contains(&AudienceKind::All) {
        return;
    }
    for (system, _) in app
        .endpoints
        .iter()
        .filter(|(_, endpoint)| endpoint.send_all)
    {
        let what = format!(
            "has no effect: apps.{name}.audiences does not list \"all\", so requests for all users are \
             refused; list it there, or leave send_all out"
        );
        findings.warning(format!("apps.{name}.{system}.send_all"), what);
    }
}

/// Requires credentials for every endpoint, unless the configuration says otherwise.
pub(super) fn check_credentials(config: &Config, findings: &mut Findings) {
    let gateway = &config.gateway;
    let has_token =
        gateway.token.is_some() || config.apps.values().any(|app| app.access.token.is_some());
    let has_any = has_token
        || config
            .apps
            .values()
            .any(|app| app.access.open || !app.endpoints.is_empty());
    let everybody = "every client that reaches gateway.listen can do everything";
    match gateway.auth {
        // There is a problem already about a token that is given but cannot be used.
        _ if findings.mention("gateway.token") => {}
        GatewayAuth::None => findings.warning("gateway.auth", everybody),
        GatewayAuth::Auto if config.gateway_is_open() => {
            let what = "missing; while gateway.listen is a loopback address, every client on this \
                        machine can do everything";
            findings.warning("gateway.token", what);
        }
        GatewayAuth::Auto | GatewayAuth::Token if !has_any => {
            let what = "missing: set it, or tokens of apps, or set gateway.auth = \"none\" to admit \
                        every client that reaches gateway.listen";
            findings.problem("gateway.token", what);
        }
        GatewayAuth::Auto | GatewayAuth::Token if gateway.token.is_none() => {
            let what = "missing; no client can steer jobs over HTTP, or list the jobs of all apps";
            findings.warning("gateway.token", what);
        }
        GatewayAuth::Auto | GatewayAuth::Token => {}
    }
    // Two equal tokens are a problem: a request would count for the first owner found.
    let mut known = BTreeMap::new();
    let tokens = config.apps.iter().map(|(name, app)| {
        let key = format!("apps.{name}.token");
        (key, app.access.token.as_ref())
    });
    let all = [("gateway.token".to_owned(), gateway.token.as_ref())];
    for (key, token) in all.into_iter().chain(tokens) {
        let Some(token) = token else { continue };
        if let Some(first) = known.insert(token.expose(), key.clone()) {
            findings.problem(key, format!("is the same as {first}"));
        }
    }
}

impl Config {
    /// Whether the gateway asks no caller for credentials.
    pub fn gateway_is_open(&self) -> bool {
        let gateway = &self.gateway;
        match gateway.auth {
            GatewayAuth::None => true,
            GatewayAuth::Token => false,
            GatewayAuth::Auto => {
                gateway.listen.ip().is_loopback()
                    && gateway.token.is_none()
                    && self
                        .apps
                        .values()
                        .all(|app| app.access.token.is_none() && !app.access.open)
            }
        }
    }
}
