//! Receives the calls of a Fanwise webhook target, the way any Rust service can. Copy this file; it
//! needs the crates `axum`, `tokio`, `ring`, `base64`, `serde`, `serde_json` and `clap`, and nothing
//! of Fanwise.
//!
//! ```text
//! cargo run --example receiver -- --port 8080 --secret whsec_bXkgc2VjcmV0
//! ```
//!
//! What makes a receiver right:
//!
//! - It verifies the signature before it believes anything: HMAC-SHA-256 over the id, the time and
//!   the bytes of the body, as Standard Webhooks describes it. A time more than five minutes away is
//!   refused.
//! - It remembers each `webhook-id` for as long as a call may be repeated, and answers a repeat like
//!   the first call without delivering again. That is what `idempotent = true` promises to Fanwise.
//!   Keep the ids in your database, in the transaction that delivers.
//! - It answers 2xx only when the message is safe. 4xx gives the recipients up, 429 and 503 ask
//!   Fanwise to come again, and `{"failed": [...]}` in a 200 names those of a packed call that cannot
//!   be reached.

#![allow(clippy::print_stdout, reason = "a command prints what it does")]

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::any;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::Parser;
use ring::hmac;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;

const TOLERANCE_SECONDS: u64 = 300;

/// A packed call may have 1,000 recipients and a large message.
const BODY_BYTES_MAX: usize = 8 << 20;

#[derive(Parser)]
struct Args {
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// The `signature_secret` of the target
    #[arg(long)]
    secret: String,
}

#[derive(Deserialize)]
struct Call {
    recipient: Option<String>,
    #[serde(default)]
    recipients: Vec<String>,
    message: Message,
}

#[derive(Deserialize)]
struct Message {
    text: Option<String>,
}

struct Receiver {
    key: hmac::Key,
    /// By `webhook-id`.
    answers: Mutex<HashMap<String, (StatusCode, Value)>>,
}

/// The key of a secret: base64 after `whsec_`, or the text itself.
fn key_of(secret: &str) -> Result<hmac::Key, base64::DecodeError> {
    let key = match secret.strip_prefix("whsec_") {
        Some(encoded) => BASE64.decode(encoded)?,
        None => secret.into(),
    };
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &key))
}

/// The id of a request from the holder of the key, and of now.
fn genuine<'a>(
    key: &hmac::Key,
    headers: &'a HeaderMap,
    body: &[u8],
    now_seconds: u64,
) -> Option<&'a str> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    let (id, timestamp) = (text("webhook-id")?, text("webhook-timestamp")?);
    if now_seconds.abs_diff(timestamp.parse().ok()?) > TOLERANCE_SECONDS {
        return None;
    }
    let signed = [format!("{id}.{timestamp}.").as_bytes(), body].concat();
    // Several signatures while a secret is exchanged.
    let signatures = text("webhook-signature")?.split(' ');
    let genuine = signatures
        .filter_map(|it| BASE64.decode(it.strip_prefix("v1,")?).ok())
        .any(|signature| hmac::verify(key, &signed, &signature).is_ok());
    genuine.then_some(id)
}

#[expect(clippy::disallowed_methods, reason = "a service has its own clock")]
fn now_seconds() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

async fn receive(
    State(receiver): State<Arc<Receiver>>,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, [(header::HeaderName, &'static str); 1], String) {
    let (status, answer) = match genuine(&receiver.key, &headers, &body, now_seconds()) {
        None => (
            StatusCode::UNAUTHORIZED,
            json!({"error": "wrong signature"}),
        ),
        Some(id) => {
            let mut answers = receiver.answers.lock().unwrap_or_else(|it| it.into_inner());
            let answer = answers.entry(id.to_owned());
            answer.or_insert_with(|| deliver(&body)).clone()
        }
    };
    let json = [(header::CONTENT_TYPE, "application/json")];
    (status, json, answer.to_string())
}

/// Hands the message to each recipient, and reports those without an account.
fn deliver(body: &[u8]) -> (StatusCode, Value) {
    let call: Call = match serde_json::from_slice(body) {
        Ok(call) => call,
        Err(error) => return (StatusCode::BAD_REQUEST, json!({"error": error.to_string()})),
    };
    let mut failed = Vec::new();
    for recipient in call.recipient.iter().chain(&call.recipients) {
        if recipient.starts_with("gone") {
            failed.push(json!({"recipient": recipient, "code": "gone", "message": "no such user"}));
        } else {
            let text = call.message.text.as_deref().unwrap_or_default();
            println!("deliver {recipient}: {text}");
        }
    }
    match (call.recipient, failed.pop()) {
        (Some(_), Some(failure)) => (StatusCode::GONE, failure),
        (_, last) => {
            failed.extend(last);
            (StatusCode::OK, json!({"failed": failed}))
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let receiver = Arc::new(Receiver {
        key: key_of(&args.secret)?,
        answers: Mutex::default(),
    });
    let routes = Router::new()
        .fallback(any(receive))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(receiver);
    let listener = TcpListener::bind(("127.0.0.1", args.port)).await?;
    println!("listening on {}", listener.local_addr()?);
    axum::serve(listener, routes).await?;
    Ok(())
}
