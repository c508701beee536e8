//! Builds the exporter of spans from the configuration.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Trust;
use crate::config::Config;
use crate::http::client::{Client, ClientSettings};
use crate::metrics::Metrics;
use crate::runtime::traces::{Collector, Exporter, Tracer};
use crate::tls::ClientTls;
use crate::version;

/// The exporter with its tracer, if there is a collector. Its connections serve nothing else.
pub(super) fn exporter(
    config: &Config,
    trust: &Trust,
    metrics: &Arc<Metrics>,
) -> Option<(Tracer, Exporter<Client>)> {
    let tracing = &config.tracing;
    let url = tracing.otlp_url.clone()?;
    let mut own = BTreeMap::new();
    if !tracing.tls.is_default() {
        let host = url.host().unwrap_or_default().to_ascii_lowercase();
        let tls = ClientTls::new(tracing.tls.clone(), "tracing", &[b"http/1.1"]);
        own.insert((host, url.port_u16().unwrap_or(443)), tls);
    }
    let client = Client::new(ClientSettings {
        tls: trust.clone(),
        tls_of: Arc::new(own),
        ..ClientSettings::defaults()
    });
    let collector = Collector {
        url,
        headers: tracing.headers.clone(),
        resource: vec![
            ("service.name", tracing.service_name.clone()),
            ("service.version", version::text().to_owned()),
            ("service.instance.id", instance()),
        ],
        sample_ratio: tracing.sample_ratio,
        queue_max: tracing.queue_max,
    };
    Some(Exporter::new(collector, client, Arc::clone(metrics)))
}

/// Names this process among those of the same service.
fn instance() -> String {
    format!("{:016x}", fastrand::u64(1..))
}
