//! Publishes one broadcast job, the way any Rust service can. Copy this file; it needs the crates
//! `lapin`, `tokio`, `serde_json` and `clap`, and nothing of Fanwise.
//!
//! ```text
//! cargo run --example producer -- --client-msg-no promo-7 --text 'Hello' --count 1000
//! cargo run --example producer -- --client-msg-no promo-8 --text 'Hello' --file users.txt
//! ```
//!
//! What makes a job safe to publish:
//!
//! - `client_msg_no` is the key of the job. Publish again with the same key and message, after a
//!   crash or when in doubt, and nobody gets it twice. Take it from your own data, never a new
//!   random one for each try.
//! - The message is persistent and `mandatory`, on a channel with publisher confirms. Only an ack
//!   without a return means "accepted": a returned message was acked too, but no queue took it.
//! - A list longer than 100,000 recipients or 4 MiB travels as parts of one job.
//! - Parts go one at a time, each confirmed before the next, so that a return is never taken for
//!   another message's.
//!
//! Exit code 0: the broker has the whole job on disk. Anything else: not known to be accepted; run
//! it again.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command prints its result"
)]

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use serde_json::{Value, json};

const PART_RECIPIENTS_MAX: usize = 100_000;
const PART_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest wait for the broker: to connect, and to confirm one message.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Parser)]
struct Args {
    #[arg(long, default_value = "amqp://guest:guest@127.0.0.1:5672/%2f")]
    url: String,
    #[arg(long, default_value = "fanwise.jobs")]
    exchange: String,
    /// Priority: high, normal or bulk
    #[arg(long, default_value = "normal")]
    routing_key: String,
    #[arg(long)]
    client_msg_no: String,
    #[arg(long)]
    text: String,
    /// Where to send [default: the app's target]
    #[arg(long)]
    target: Option<String>,
    /// Recipients, one a line
    #[arg(long, required_unless_present = "count")]
    file: Option<String>,
    /// Recipients u0 to u<COUNT-1>
    #[arg(long, conflicts_with = "file")]
    count: Option<usize>,
    /// W3C trace context that goes with every send
    #[arg(long, env = "TRACEPARENT")]
    traceparent: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match submit(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("not known to be accepted: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn submit(args: Args) -> Result<(), Box<dyn Error>> {
    let recipients = recipients(&args)?;
    let mut job = json!({
        "v": 1,
        "client_msg_no": args.client_msg_no,
        "message": { "type": "text", "text": args.text },
        "audience": { "users": [] },
    });
    if let Some(target) = &args.target {
        job["target"] = json!(target);
    }
    let bodies = bodies(&job, &recipients);

    let properties = ConnectionProperties::default();
    let connecting = Connection::connect(&args.url, properties);
    let connection = tokio::time::timeout(PATIENCE, connecting).await??;
    let channel = connection.create_channel().await?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    for (number, body) in (1..).zip(&bodies) {
        tokio::time::timeout(PATIENCE, publish(&channel, &args, number, body))
            .await
            .map_err(|_| "the broker did not confirm in time")??;
    }
    println!(
        "accepted: {} recipients in {} message(s)",
        recipients.len(),
        bodies.len()
    );
    connection.close(200, "done".into()).await?;
    Ok(())
}

/// Publishes one message and waits until the broker has it on disk.
async fn publish(
    channel: &Channel,
    args: &Args,
    number: usize,
    body: &[u8],
) -> Result<(), Box<dyn Error>> {
    let mut headers = FieldTable::default();
    if let Some(traceparent) = &args.traceparent {
        headers.insert(
            "traceparent".into(),
            AMQPValue::LongString(traceparent.as_str().into()),
        );
    }
    let properties = BasicProperties::default()
        .with_delivery_mode(2) // persistent
        .with_content_type("application/json".into())
        .with_message_id(format!("{}/{number}", args.client_msg_no).into())
        .with_headers(headers);
    let options = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let (exchange, routing_key) = (args.exchange.as_str(), args.routing_key.as_str());
    let confirm = channel
        .basic_publish(
            exchange.into(),
            routing_key.into(),
            options,
            body,
            properties,
        )
        .await?
        .await?;
    if !confirm.is_ack() {
        return Err("the broker refused the message: a queue is full or its leader is away".into());
    }
    if confirm.take_message().is_some() {
        let what = format!("returned: no queue is bound to {exchange} with key {routing_key:?}");
        return Err(what.into());
    }
    Ok(())
}

fn recipients(args: &Args) -> Result<Vec<String>, Box<dyn Error>> {
    let Some(file) = &args.file else {
        return Ok((0..args.count.unwrap_or(0))
            .map(|number| format!("u{number}"))
            .collect());
    };
    let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    Ok(text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect())
}

/// The job as one message, or as parts. The same list gives the same parts, so that publishing it
/// again stays harmless.
fn bodies(job: &Value, recipients: &[String]) -> Vec<Vec<u8>> {
    let envelope = job.to_string().len() + 64; // the rest of the job, and its `part`
    let mut parts: Vec<Vec<&str>> = vec![Vec::new()];
    let mut bytes = envelope;
    for recipient in recipients {
        let size = json!(recipient).to_string().len() + 1;
        let full = parts
            .last()
            .is_some_and(|part| part.len() == PART_RECIPIENTS_MAX);
        if full || bytes + size > PART_BYTES_MAX {
            parts.push(Vec::new());
            bytes = envelope;
        }
        bytes += size;
        if let Some(part) = parts.last_mut() {
            part.push(recipient);
        }
    }
    let of = parts.len();
    let body = |(number, users): (usize, Vec<&str>)| {
        let mut job = job.clone();
        job["audience"]["users"] = json!(users);
        if of > 1 {
            job["part"] = json!({ "number": number, "of": of });
        }
        job.to_string().into_bytes()
    };
    (1..).zip(parts).map(body).collect()
}
