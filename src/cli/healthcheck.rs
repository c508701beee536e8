//! `fanwise healthcheck`: asks the admin port of the worker on this machine, for container health
//! checks that have no curl.

use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::load_config;
use crate::admin::Readiness;
use crate::exit::{Exit, Failure};

/// A health check that takes longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(3);

pub(super) async fn run(file: Option<PathBuf>) -> Result<Exit, Failure> {
    let mut address = load_config(file.as_deref())?.config.admin.listen;
    if address.ip().is_unspecified() {
        address.set_ip([127, 0, 0, 1].into());
    }
    let unhealthy =
        |what: String| Failure::message(Exit::Unavailable, format!("{address}: {what}"));
    let answer = tokio::time::timeout(PATIENCE, ask(address, "/readyz")).await;
    let answer = answer
        .map_err(|_| unhealthy(format!("no answer within {}s", PATIENCE.as_secs())))?
        .map_err(|error| unhealthy(error.to_string()))?;
    if answer.starts_with("HTTP/1.1 200") || answer.starts_with("HTTP/1.0 200") {
        return Ok(Exit::Ok);
    }
    let told = answer.lines().last().unwrap_or("no answer");
    let missing = serde_json::from_str::<Readiness>(told).map(|it| it.missing());
    Err(unhealthy(missing.unwrap_or_else(|_| told.to_owned())))
}

/// Makes one request over one connection; an HTTP client would be more code.
pub(super) async fn ask(address: std::net::SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(1024 * 1024).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
