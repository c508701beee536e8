//! Receives the calls of a Fanwise webhook target, the way any Rust service can: with the crate
//! `fanwise-client`, of which a receiver needs no feature, and with `axum`.
//!
//! ```text
//! cargo run --example receiver -- --port 8080 --secret whsec_bXkgc2VjcmV0
//! ```
//!
//! What makes a receiver right:
//!
//! - It verifies the signature before it believes anything. A time more than five minutes away is
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
use clap::Parser;
use fanwise_client::webhook::{Answer, Call, Failed, Verifier};
use serde_json::{Value, json};
use tokio::net::TcpListener;

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

struct Receiver {
    verifier: Verifier,
    /// By `webhook-id`.
    answers: Mutex<HashMap<String, (StatusCode, Value)>>,
}

async fn receive(
    State(receiver): State<Arc<Receiver>>,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, [(header::HeaderName, &'static str); 1], String) {
    #[expect(clippy::disallowed_methods, reason = "a service has its own clock")]
    let now = SystemTime::now();
    let (status, answer) = match receiver.verifier.verify(&headers, &body, now) {
        Err(error) => (
            StatusCode::UNAUTHORIZED,
            json!({"error": error.to_string()}),
        ),
        Ok(id) => {
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
    let recipients = call.recipients.unwrap_or_default();
    for recipient in call.recipient.iter().chain(&recipients) {
        if recipient.starts_with("gone") {
            failed.push(Failed {
                recipient: recipient.clone(),
                code: Some("gone".into()),
                message: Some("no such user".to_owned()),
                class: None,
            });
        } else {
            let text = call.message.text.as_deref().unwrap_or_default();
            println!("deliver {recipient}: {text}");
        }
    }
    match (call.recipient, failed.pop()) {
        (Some(_), Some(failure)) => (StatusCode::GONE, json!(failure)),
        (_, last) => {
            failed.extend(last);
            let answer = Answer {
                failed: Some(failed),
            };
            (StatusCode::OK, json!(answer))
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let receiver = Arc::new(Receiver {
        verifier: Verifier::new(&args.secret)?,
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
