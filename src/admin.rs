//! Serves the admin port: `/livez`, `/readyz` and `/metrics`. It runs on a thread and a runtime of
//! its own, so it answers while the data path is saturated, and until the end of a drain.
//!
//! It needs no credentials, so it refuses requests of web pages, by the rule of an open gateway.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::http::server::{self, ConnectionLimits, Hosts, Outside};
use crate::metrics::Metrics;

/// The state that the admin port reports.
#[derive(Clone)]
pub struct Status {
    pub metrics: Arc<Metrics>,
    /// Refreshes metrics that are kept elsewhere; called before each scrape.
    pub refresh: Arc<dyn Fn() + Send + Sync>,
    /// The process is ready when all of them are.
    pub ready: Vec<Part>,
}

/// A part of the process that must be ready.
#[derive(Clone)]
pub struct Part {
    name: &'static str,
    /// `Err`: why the part is not ready.
    check: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
}

impl Part {
    pub fn new(
        name: &'static str,
        check: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name,
            check: Arc::new(check),
        }
    }
}

/// A handful of programs read health and metrics. More connections must not use up the descriptors
/// of the process.
const MANNERS: ConnectionLimits = ConnectionLimits {
    connections_max: 64,
    patience: Duration::from_secs(10),
};

/// The running admin server.
pub struct Admin {
    pub address: SocketAddr,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Admin {
    /// Binds the port and serves until dropped.
    pub fn start(listen: SocketAddr, status: Status) -> std::io::Result<Self> {
        let listener = TcpListener::bind(listen)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let token = stop.clone();
        let thread = std::thread::Builder::new()
            .name("fanwise-admin".to_owned())
            .spawn(move || serve(listener, Hosts::of(address), status, token))?;
        Ok(Self {
            address,
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(listener: TcpListener, hosts: Hosts, status: Status, stop: CancellationToken) {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "the admin port has no runtime"),
    };
    runtime.block_on(async move {
        let served = match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => {
                // When the process ends, no request needs to finish.
                let forever = CancellationToken::new();
                let serving =
                    server::serve(listener, None, routes(hosts, status), MANNERS, forever);
                stop.run_until_cancelled(serving).await;
                Ok(())
            }
            Err(error) => Err(error),
        };
        if let Err(error) = served {
            tracing::error!(%error, "the admin port ended");
        }
    });
}

fn routes(hosts: Hosts, status: Status) -> Router {
    Router::new()
        .route("/livez", get(|| async { "live\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(status)
        .layer(from_fn_with_state(hosts, no_web_page))
}

/// Refuses requests that a web page may have sent.
async fn no_web_page(State(hosts): State<Hosts>, request: Request, next: Next) -> Response {
    let text = match hosts.check(request.uri(), request.headers()) {
        Ok(()) => return next.run(request).await,
        Err(Outside::Page) => "a web page of another site may not ask here\n".to_owned(),
        Err(Outside::Host(host)) => format!(
            "admin.listen is a loopback address and answers localhost, 127.0.0.1 and [::1] only, not \
             {host:?}; ask by one of them, or listen on another address\n"
        ),
    };
    (StatusCode::FORBIDDEN, text).into_response()
}

/// The answer of `/readyz`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    pub ready: bool,
    pub parts: Vec<PartReadiness>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartReadiness {
    pub name: String,
    pub ready: bool,
    /// Why it is not ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Readiness {
    fn of(parts: &[Part]) -> Self {
        let parts = parts.iter().map(|part| {
            let reason = (part.check)().err();
            PartReadiness {
                name: part.name.to_owned(),
                ready: reason.is_none(),
                reason,
            }
        });
        let parts: Vec<_> = parts.collect();
        Self {
            ready: parts.iter().all(|part| part.ready),
            parts,
        }
    }

    /// What is missing, in words.
    pub fn missing(&self) -> String {
        let missing = self.parts.iter().filter_map(|part| {
            let reason = part.reason.as_deref()?;
            Some(format!("{}: {reason}", part.name))
        });
        missing.collect::<Vec<_>>().join("; ")
    }
}

async fn ready(State(status): State<Status>) -> impl IntoResponse {
    let readiness = Readiness::of(&status.ready);
    let code = match readiness.ready {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    (code, Json(readiness))
}

async fn metrics(State(status): State<Status>) -> impl IntoResponse {
    (status.refresh)();
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        status.metrics.text(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A web page must not read metrics through a host name that was changed to point to this
    /// machine.
    #[tokio::test]
    async fn only_this_machines_names_are_answered_on_a_loopback_address() {
        use tower_service::Service as _;

        let ask = async |listen: &str, path: &str, name: &'static str, value: &str| {
            let status = Status {
                metrics: Arc::new(Metrics::new()),
                refresh: Arc::new(|| {}),
                ready: Vec::new(),
            };
            let hosts = Hosts::of(listen.parse().unwrap());
            let request = Request::builder().uri(path).header(name, value);
            let request = request.body(axum::body::Body::empty()).unwrap();
            routes(hosts, status).call(request).await.unwrap().status()
        };
        for path in ["/livez", "/readyz", "/metrics"] {
            let own = ask("127.0.0.1:9600", path, "host", "localhost:9600").await;
            assert_eq!(own, 200, "{path}");
            for (name, value) in [
                ("host", "evil.example:9600"),
                ("origin", "http://evil.example"),
                ("sec-fetch-site", "cross-site"),
            ] {
                let refused = ask("127.0.0.1:9600", path, name, value).await;
                assert_eq!(refused, 403, "{path} {name}");
            }
            let network = ask("0.0.0.0:9600", path, "host", "worker-3:9600").await;
            assert_eq!(network, 200, "{path}");
        }
    }

    #[test]
    fn what_is_not_ready_says_which_part_and_why() {
        let ready = Part::new("worker", || Ok(()));
        let full = Part::new("ledger", || Err("the ledger is full:\nOOM".to_owned()));
        assert!(Readiness::of(std::slice::from_ref(&ready)).ready);
        let readiness = Readiness::of(&[ready, full]);
        assert_eq!(readiness.missing(), "ledger: the ledger is full:\nOOM");
        let told = serde_json::to_string(&readiness).unwrap();
        assert_eq!(
            told,
            "{\"ready\":false,\"parts\":[{\"name\":\"worker\",\"ready\":true},\
             {\"name\":\"ledger\",\"ready\":false,\"reason\":\"the ledger is full:\\nOOM\"}]}"
        );
    }
}
