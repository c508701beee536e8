//! Reads the sections of a configuration into its settings.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::reader::Findings;
use super::reader::Section;
use super::targets::TargetConfig;
use super::{
    AdminConfig, AppConfig, Config, EmbeddedConfig, GatewayConfig, HOUR, LogConfig, MIB, MINUTE,
    SECOND, WorkerConfig,
};
use super::{apps, callbacks, endpoints, retry, servers, targets, traces};
use crate::domain::fairness::AppRules;
use crate::domain::fields::suggestion;
use crate::domain::job::{NAME_BYTES_MAX, wrong_id};
use crate::domain::limits::Rate;
use crate::domain::retry::RetryPolicy;
use crate::domain::slice::SLICE_RECIPIENTS_MAX;
use crate::im::ingress::DropInEndpoint;
use crate::telemetry::{LogFilter, LogFormat};

pub(super) fn from_root(mut root: Section, findings: &mut Findings) -> Config {
    let retry = retry::from_section(root.section("retry", findings), findings);
    let targets = read_targets(&mut root, retry, findings);
    let shared_limits = read_shared_limits(&mut root, &targets, findings);
    let config = Config {
        broker: servers::read_broker(root.section("broker", findings), findings),
        ledger: servers::read_ledger(root.section("ledger", findings), findings),
        embedded: read_embedded(root.section("embedded", findings), findings),
        gateway: read_gateway(root.section("gateway", findings), findings),
        admin: read_admin(root.section("admin", findings), findings),
        worker: read_worker(root.section("worker", findings), findings),
        apps: read_apps(&mut root, &targets, retry, findings),
        targets,
        shared_limits,
        retry,
        log: read_log(root.section("log", findings), findings),
        tracing: traces::from_section(root.section("tracing", findings), findings),
    };
    root.finish(findings);
    config
}

fn read_embedded(mut section: Section, findings: &mut Findings) -> EmbeddedConfig {
    let dir = section.text("dir", "fanwise-data", findings);
    if dir.is_empty() {
        findings.problem("embedded.dir", "the path of a folder is expected");
    }
    section.finish(findings);
    EmbeddedConfig { dir: dir.into() }
}

fn read_gateway(mut section: Section, findings: &mut Findings) -> GatewayConfig {
    let gateway = GatewayConfig {
        listen: read_address(&mut section, "listen", "127.0.0.1:9700", findings),
        requests_max: section.integer("requests_max", 256, 1..=100_000, findings) as usize,
        connections_max: section.integer("connections_max", 1024, 1..=100_000, findings) as usize,
        patience: section.duration("patience", 10 * SECOND, SECOND..=10 * MINUTE, findings),
        wait_max: section.duration("wait_max", 30 * SECOND, SECOND..=10 * MINUTE, findings),
        upload_bytes_max: section.integer(
            "upload_bytes_max",
            256 * MIB,
            MIB..=1024 * 1024 * MIB,
            findings,
        ),
        upload_dir: section
            .optional_text("upload_dir", findings)
            .map_or_else(std::env::temp_dir, PathBuf::from),
        token: apps::read_token(&mut section, findings),
        auth: apps::read_auth(&mut section, findings),
        tls: apps::read_tls(&mut section, findings),
    };
    section.finish(findings);
    gateway
}

fn read_admin(mut section: Section, findings: &mut Findings) -> AdminConfig {
    let listen = read_address(&mut section, "listen", "127.0.0.1:9600", findings);
    section.finish(findings);
    AdminConfig { listen }
}

fn read_address(
    section: &mut Section,
    name: &'static str,
    default: &str,
    findings: &mut Findings,
) -> SocketAddr {
    let text = section.text(name, default, findings);
    text.parse().unwrap_or_else(|_| {
        let what = format!("an address and port such as \"{default}\" is expected, not {text:?}");
        findings.problem(section.key(name), what);
        SocketAddr::from(([127, 0, 0, 1], 0))
    })
}

fn read_worker(mut section: Section, findings: &mut Findings) -> WorkerConfig {
    let ms = Duration::from_millis;
    let worker = WorkerConfig {
        slice_recipients: section.integer(
            "slice_recipients",
            500,
            1..=u64::from(SLICE_RECIPIENTS_MAX),
            findings,
        ) as u32,
        slice_concurrency: section.integer("slice_concurrency", 8, 1..=256, findings) as usize,
        small_job_concurrency: section.integer("small_job_concurrency", 4, 1..=256, findings)
            as usize,
        lane_slices_max: section.integer("lane_slices_max", 20_000, 1..=1_000_000, findings),
        slice_time_max: section.duration("slice_time_max", MINUTE, SECOND..=10 * MINUTE, findings),
        drain_deadline: section.duration(
            "drain_deadline",
            25 * SECOND,
            SECOND..=10 * MINUTE,
            findings,
        ),
        progress_interval: section.duration(
            "progress_interval",
            2 * SECOND,
            ms(100)..=HOUR,
            findings,
        ),
        identify_targets: section.boolean("identify_targets", true, findings),
    };
    section.finish(findings);
    worker
}

fn read_targets(
    root: &mut Section,
    retry: RetryPolicy,
    findings: &mut Findings,
) -> BTreeMap<String, TargetConfig> {
    let mut targets = BTreeMap::new();
    for (name, section) in root.named("targets", findings) {
        check_name(&format!("targets.{name}"), &name, findings);
        if let Some(target) = targets::from_section(&name, section, retry, findings) {
            targets.insert(name, target);
        }
    }
    targets::check_applications(&targets, findings);
    targets::check_tls(&targets, findings);
    targets
}

/// `[shared_limits]`: a rate for each name.
fn read_shared_limits(
    root: &mut Section,
    targets: &BTreeMap<String, TargetConfig>,
    findings: &mut Findings,
) -> BTreeMap<String, Rate> {
    let mut limits = BTreeMap::new();
    for (name, text) in root.texts("shared_limits", findings) {
        let key = format!("shared_limits.{name}");
        check_name(&key, &name, findings);
        match text.parse::<Rate>() {
            Ok(rate) => drop(limits.insert(name, rate)),
            Err(error) => findings.problem(key, error.to_string()),
        }
    }
    for (target, config) in targets {
        let Some(name) = config
            .shared_limit
            .as_ref()
            .filter(|it| !limits.contains_key(*it))
        else {
            continue;
        };
        let hint = suggestion(name, limits.keys().map(String::as_str))
            .map(|known| format!("; did you mean `{known}`?"))
            .unwrap_or_default();
        let what = format!("[shared_limits] has no {name:?}{hint}");
        findings.problem(format!("targets.{target}.shared_limit"), what);
    }
    limits
}

fn read_apps(
    root: &mut Section,
    targets: &BTreeMap<String, TargetConfig>,
    retry: RetryPolicy,
    findings: &mut Findings,
) -> BTreeMap<String, AppConfig> {
    let mut apps = BTreeMap::new();
    for (name, mut section) in root.named("apps", findings) {
        check_name(&format!("apps.{name}"), &name, findings);
        let target = section.optional_text("target", findings);
        if let Some(target) = &target
            && !targets.contains_key(target)
        {
            findings.problem(section.key("target"), no_target(target, targets));
        }
        let modes = [("fail_closed", false), ("fail_open", true)];
        let app = AppConfig {
            target,
            limit: section.rate("limit", findings),
            daily_limit: section.daily_rate("daily_limit", findings),
            window: apps::read_window(&mut section, findings),
            frequency_caps: apps::read_frequency_caps(&mut section, findings),
            retry: retry::changes(&mut section, retry, findings),
            share: AppRules {
                weight: section.integer("weight", 1, 1..=1000, findings) as u32,
                concurrency_max: section.integer("concurrency_max", 100, 1..=100, findings) as u32,
            },
            fail_open: section.choice("on_ledger_down", "fail_closed", &modes, findings)
                == Some(true),
            callbacks: section
                .optional("callbacks", findings)
                .and_then(|section| callbacks::from_section(section, findings)),
            replies: callbacks::read_replies(&mut section, findings),
            endpoints: read_endpoints(&name, &mut section, targets, findings),
            permissions: apps::read_permissions(&mut section, targets, findings),
            access: apps::read_access(&mut section, findings),
        };
        section.finish(findings);
        apps.insert(name, app);
    }
    if apps.is_empty() {
        apps.insert("default".to_owned(), AppConfig::default());
    }
    apps
}

/// The problem with a target name that is not configured.
pub(super) fn no_target(name: &str, targets: &BTreeMap<String, TargetConfig>) -> String {
    let hint = suggestion(name, targets.keys().map(String::as_str))
        .map(|known| format!("; did you mean `{known}`?"))
        .unwrap_or_default();
    format!("there is no [targets.{name}]{hint}")
}

fn read_endpoints(
    app: &str,
    section: &mut Section,
    targets: &BTreeMap<String, TargetConfig>,
    findings: &mut Findings,
) -> Vec<(&'static str, DropInEndpoint)> {
    let mut endpoints = Vec::new();
    for (system, ingress) in crate::im::ingresses() {
        let Some(section) = section.optional(system, findings) else {
            continue;
        };
        let key = section.key("target");
        let endpoint = endpoints::from_section(app, &*ingress, section, findings);
        if let Some(target) = &endpoint.target
            && !targets.contains_key(target)
        {
            findings.problem(key, no_target(target, targets));
        }
        endpoints.push((system, endpoint));
    }
    endpoints
}

fn read_log(mut section: Section, findings: &mut Findings) -> LogConfig {
    let formats = [
        ("auto", LogFormat::Auto),
        ("text", LogFormat::Text),
        ("json", LogFormat::Json),
    ];
    let level = section.text("level", "info", findings);
    let filter = level.parse().unwrap_or_else(|what: String| {
        findings.problem("log.level", what);
        LogFilter::default()
    });
    let format = section.choice("format", "auto", &formats, findings);
    section.finish(findings);
    LogConfig {
        filter,
        format: format.unwrap_or(LogFormat::Auto),
    }
}

/// Checks a name, which becomes part of queue names, keys, routing keys and labels.
pub(super) fn check_name(key: &str, name: &str, findings: &mut Findings) {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if let Some(what) = wrong_id(name, NAME_BYTES_MAX) {
        findings.problem(key, what);
    } else if !name.chars().all(allowed) {
        findings.problem(key, "only a-z, 0-9, - and _ are permitted in a name");
    }
}
