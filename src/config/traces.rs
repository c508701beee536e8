//! Reads `[tracing]`: the OpenTelemetry collector that gets the spans of sampled jobs.

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

use super::reader::{Findings, Section};
use super::servers::{check_tls, read_tls};
use crate::im::address::no_credentials;
use crate::tls::TlsSettings;

/// `[tracing]`
#[derive(Clone, Debug)]
pub struct TracingConfig {
    /// `otlp_url`: where the collector takes spans as OTLP over HTTP; without a path, at
    /// `/v1/traces`. Default none: no spans.
    pub otlp_url: Option<Uri>,
    /// `headers` or `headers_file`: further headers, one a line, such as `Authorization: Bearer …`.
    /// Default none.
    pub headers: HeaderMap,
    /// `service_name`: names this installation in the traces. Default `fanwise`.
    pub service_name: String,
    /// `sample_ratio`: the share of the jobs without a `traceparent` that begin a trace. Default 0;
    /// 0 to 1.
    pub sample_ratio: f64,
    /// `queue_max`: spans that wait for the collector; further ones are dropped. Default 4096; 512
    /// to 1000000.
    pub queue_max: usize,
    /// `ca_file`, `certificate`, `key`, `server_name`: TLS, if the address asks for it.
    pub tls: TlsSettings,
}

/// Where collectors take spans.
const PATH: &str = "/v1/traces";

pub(super) fn from_section(mut section: Section, findings: &mut Findings) -> TracingConfig {
    let otlp_url = read_url(&mut section, findings);
    let is_https = otlp_url.as_ref().and_then(Uri::scheme_str) == Some("https");
    let tracing = TracingConfig {
        otlp_url,
        headers: read_headers(&mut section, findings),
        service_name: section.text("service_name", "fanwise", findings),
        sample_ratio: section.share("sample_ratio", 0.0, 0.0..=1.0, findings),
        queue_max: section.integer("queue_max", 4096, 512..=1_000_000, findings) as usize,
        tls: read_tls(&mut section, findings),
    };
    check_tls(&tracing.tls, is_https, "https", &section, findings);
    section.finish(findings);
    tracing
}

fn read_url(section: &mut Section, findings: &mut Findings) -> Option<Uri> {
    let text = section.optional_address("otlp_url", findings)?;
    let parsed = text.parse::<Uri>().ok().filter(|uri| {
        let known = matches!(uri.scheme_str(), Some("http" | "https"));
        known && uri.host().is_some_and(|host| !host.is_empty())
    });
    let Some(uri) = parsed else {
        let what = "an address such as http://collector:4318 is expected";
        findings.problem(section.key("otlp_url"), what);
        return None;
    };
    if let Some(authority) = uri.authority()
        && let Err(what) = no_credentials(authority)
    {
        let what = format!("{what}; use `headers` instead");
        findings.problem(section.key("otlp_url"), what);
    }
    Some(match uri.path_and_query() {
        Some(path) if path.as_str() != "/" => uri,
        _ => {
            let mut parts = uri.into_parts();
            parts.path_and_query = Some(PathAndQuery::from_static(PATH));
            Uri::from_parts(parts).ok()?
        }
    })
}

fn read_headers(section: &mut Section, findings: &mut Findings) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let Some(lines) = section.secret("headers", "headers_file", findings) else {
        return headers;
    };
    let lines = lines.expose().lines().enumerate();
    for (number, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
        let header = line.split_once(':').and_then(|(name, value)| {
            let name: HeaderName = name.trim().parse().ok()?;
            let mut value: HeaderValue = value.trim().parse().ok()?;
            value.set_sensitive(true);
            Some((name, value))
        });
        match header {
            Some((name, value)) => drop(headers.append(name, value)),
            None => {
                let what = format!(
                    "line {} is not a header such as \"Authorization: Bearer …\"",
                    number + 1
                );
                findings.problem(section.key("headers"), what);
            }
        }
    }
    headers
}
