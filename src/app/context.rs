//! What workers and gateways share, as the configuration says: the targets, the apps with their
//! callbacks, and what operators can steer.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Trust, build, namespace};
use crate::config::{Config, TargetConfig};
use crate::domain::outcome::OnUncertain;
use crate::exit::Failure;
use crate::http::client::{Client, ClientSettings};
use crate::metrics::Metrics;
use crate::ports::{Store, Target};
use crate::runtime::{
    AppRuntime, AtWork, CallLog, CallPlaces, Callbacks, CallsUnderWay, Context, Health, Keyring,
    Settings, TargetRuntime,
};
use crate::service::control::{Facts, SharedLimit, TargetFacts};

/// The callbacks of each app. Their connections serve callbacks only.
fn callbacks(config: &Config, trust: &Trust) -> BTreeMap<String, Callbacks<Client>> {
    let client = |public_only| {
        Client::new(ClientSettings {
            public_only,
            tls: trust.clone(),
            ..ClientSettings::defaults()
        })
    };
    let (public, any) = (client(true), client(false));
    let apps = config.apps.iter();
    let callbacks = apps.filter_map(|(name, app)| Some((name, app.callbacks.as_ref()?)));
    callbacks
        .map(|(name, config)| {
            let callbacks = Callbacks {
                rules: config.rules.clone(),
                signer: config.signer.clone(),
                timeout: config.timeout,
                transport: if config.rules.private { &any } else { &public }.clone(),
            };
            (name.clone(), callbacks)
        })
        .collect()
}

/// The configuration of the targets and apps that operators can steer.
pub fn facts(config: &Config) -> Result<Facts, Failure> {
    let all = config;
    let targets = config.targets.iter().map(|(name, config)| {
        let target = build(name, config)?;
        let address = config.settings.address();
        let facts = TargetFacts {
            system: config.settings.system().to_owned(),
            address: address.map(|(host, port)| format!("{host}:{port}")),
            limit: config.limit.or(target.profile().limit),
            daily_limit: config.daily_limit,
            sender_limit: config.sender_limit,
            shared_limit: shared_limit(all, config),
            sender: target.own_sender().map(ToOwned::to_owned),
            recipients_per_call: target.profile().recipients_per_call,
            on_uncertain: on_uncertain(config, &*target),
            prices: config.prices.clone(),
        };
        Ok((name.clone(), facts))
    });
    let apps = config.apps.iter();
    Ok(Facts {
        targets: targets.collect::<Result<_, Failure>>()?,
        apps: apps.map(|(name, app)| (name.clone(), app.limit)).collect(),
        daily_limits: config
            .apps
            .iter()
            .filter_map(|(name, app)| Some((name.clone(), app.daily_limit?)))
            .collect(),
        shared_limits: config.shared_limits.clone(),
        windows: config
            .apps
            .iter()
            .filter_map(|(name, app)| Some((name.clone(), app.window.clone()?)))
            .collect(),
    })
}

/// The limit that a target has together with others.
fn shared_limit(config: &Config, target: &TargetConfig) -> Option<SharedLimit> {
    let name = target.shared_limit.clone()?;
    let rate = *config.shared_limits.get(&name)?;
    Some(SharedLimit { name, rate })
}

/// The policy for calls in doubt: the configured one, else by whether the target is idempotent.
fn on_uncertain(config: &TargetConfig, target: &dyn Target) -> OnUncertain {
    let policy = if target.profile().idempotent {
        OnUncertain::Retry
    } else {
        OnUncertain::Hold
    };
    config.on_uncertain.unwrap_or(policy)
}

/// Calls that a slice should have out at a time, because the cost of the ledger's steps is in their
/// number, and the slices that take turns even where each has fewer.
const WINDOW_CALLS: usize = 64;
const SLICES_MIN: usize = 4;

fn target_runtime(
    all: &Config,
    name: &str,
    config: &TargetConfig,
    metrics: &Metrics,
) -> Result<TargetRuntime, Failure> {
    let target = build(name, config)?;
    let slices = (config.calls_in_flight.most() / WINDOW_CALLS).max(SLICES_MIN);
    let slices = slices.min(all.worker.slice_concurrency);
    let metrics = metrics.target(name);
    let places = metrics.in_flight_max.clone();
    Ok(TargetRuntime {
        name: name.to_owned(),
        call_timeout: config.call_timeout,
        calls: CallPlaces::new(config.calls_in_flight, places),
        window_calls: config.calls_in_flight.most().div_ceil(slices),
        slices,
        limit: config.limit.or(target.profile().limit),
        daily_limit: config.daily_limit,
        sender_limit: config.sender_limit,
        shared_limit: shared_limit(all, config),
        prices: config.prices.clone(),
        on_uncertain: on_uncertain(config, &*target),
        retry: all.retry.with(&config.retry),
        classes: config.classes.clone(),
        config_fault_pause: config.config_fault_pause,
        adapt_interval: config.adapt_interval,
        warm_up: config.warm_up,
        pending_max: config.pending_max,
        health: Health::new(config.breaker),
        under_way: CallsUnderWay::default(),
        at_work: AtWork::default(),
        call_log: CallLog::default(),
        metrics,
        keyring: Keyring::default(),
        directory_keyring: Keyring::default(),
        target,
    })
}

pub(super) fn context<S: Store>(
    config: &Config,
    store: S,
    client: Client,
    trust: &Trust,
    metrics: Arc<Metrics>,
) -> Result<Context<S, Client>, Failure> {
    let worker = &config.worker;
    let targets: Result<Vec<_>, Failure> = config
        .targets
        .iter()
        .map(|(name, target)| target_runtime(config, name, target, &metrics))
        .collect();
    let apps: BTreeMap<_, _> = config
        .apps
        .iter()
        .map(|(name, app)| {
            let app = AppRuntime {
                default_target: app.target.clone(),
                limit: app.limit,
                daily_limit: app.daily_limit,
                window: app.window.clone(),
                frequency_caps: app.frequency_caps.clone(),
                retry: app.retry,
                share: app.share,
                fail_open: app.fail_open,
                permissions: app.permissions.clone(),
                replies: app.replies.clone(),
            };
            (name.clone(), app)
        })
        .collect();
    let settings = Settings {
        slice_recipients: worker.slice_recipients,
        slice_concurrency: worker.slice_concurrency,
        small_job_concurrency: worker.small_job_concurrency,
        lane_slices_max: worker.lane_slices_max,
        lease: config.ledger.lease,
        slice_time_max: worker.slice_time_max,
        attempts_max: config.retry.attempts_max,
        retry: config.retry.schedule,
        fingerprint_secret: config.ledger.fingerprint_secret.expose().to_owned(),
        abandoned_after: config.ledger.abandoned_after,
        progress_interval: worker.progress_interval,
        namespace: namespace(config).map(ToOwned::to_owned),
    };
    let context = Context::new(store, client, targets?, apps, settings, metrics);
    Ok(context.with_callbacks(callbacks(config, trust)))
}
