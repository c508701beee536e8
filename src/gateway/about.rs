//! `GET /v1/about`: which process answers, whether its parts work, and what the caller may do.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};

use super::access::{Access, Caller};
use super::params::NoParams;
use super::{Gateway, check_publishing};
use crate::clock::{now_ms, rfc3339};
use crate::domain::job::Context as _;
use crate::error::chain;
use crate::ports::{Broker, Store, Transport};
use crate::service::api::{About, AppAbout, PartAbout, Role};

pub(super) async fn about<B: Broker, S: Store, T: Transport>(
    State(gateway): State<Arc<Gateway<B, S, T>>>,
    Extension(caller): Extension<Caller>,
    _: NoParams,
) -> Json<About> {
    let context = &gateway.context;
    let apps = context
        .apps
        .iter()
        .filter(|(name, _)| may_use(&gateway.access, &caller, name));
    let apps = apps.map(|(name, app)| AppAbout {
        name: name.clone(),
        default_target: context.default_target(name).ok(),
        limit: app.limit,
    });
    let is_administrator = caller == Caller::Admin;
    let targets = context.targets.keys().filter(|_| is_administrator);
    Json(About {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        engine: gateway.engine,
        now: rfc3339(now_ms()),
        role: match caller {
            Caller::Admin => Role::Administrator,
            Caller::App(_) => Role::App,
            Caller::Nobody => Role::Anonymous,
        },
        apps: apps.collect(),
        targets: targets.cloned().collect(),
        parts: vec![
            part("gateway", check_publishing(&gateway.publishing)),
            part("ledger", context.check_ledger()),
            workers(&context.store).await,
        ],
        upload_bytes_max: gateway.upload_bytes_max,
    })
}

fn may_use(access: &Access, caller: &Caller, app: &str) -> bool {
    access.check(caller, app).is_ok()
}

fn part(name: &str, check: Result<(), String>) -> PartAbout {
    PartAbout {
        name: name.to_owned(),
        works: check.is_ok(),
        what: check.err().unwrap_or_default(),
        running: None,
    }
}

async fn workers<S: Store>(store: &S) -> PartAbout {
    let running = store.beats().await.map_err(|error| chain(&error));
    let running = running.map(|beats| beats.iter().filter(|beat| beat.works).count());
    let mut part = part(
        "workers",
        running.as_ref().map(|_| ()).map_err(Clone::clone),
    );
    if let Ok(running) = running {
        part.works = running > 0;
        part.running = Some(running as u64);
        part.what = match running {
            0 => "no worker is running".to_owned(),
            1 => "1 worker is running".to_owned(),
            many => format!("{many} workers are running"),
        };
    }
    part
}
