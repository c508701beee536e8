//! Submits one broadcast job over HTTP and waits for its end, the way any Rust service can: with the
//! crate `fanwise-client` and its feature `http`.
//!
//! ```text
//! cargo run --example http_producer -- --client-msg-no promo-7 --text 'Hello' --count 1000
//! FANWISE_TOKEN=... cargo run --example http_producer -- --url https://fanwise.example.com \
//!     --client-msg-no promo-8 --text 'Hello' --file users.txt --wait
//! ```
//!
//! What makes a job safe to submit:
//!
//! - `client_msg_no` is the key of the job. Submit again with the same key and message, after a
//!   crash or when in doubt, and nobody gets it twice. Take it from your own data, never a new
//!   random one for each try.
//! - The crate repeats the same request after 429, 5xx, or no answer at all, with growing pauses.
//!   Any other refusal is an error whose text says what to change.
//! - The list is uploaded as a stream, so it may have any length. All of it is accepted or nothing.
//!
//! Exit code 0: the job is on disk. Anything else: not known to be accepted; run it again.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command prints its result"
)]

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use fanwise_client::http::{List, Server, SubmitOptions};
use fanwise_client::parts::json;
use fanwise_client::{Audience, Job, Message};

#[derive(Parser)]
struct Args {
    /// The gateway
    #[arg(long, default_value = "http://127.0.0.1:9700")]
    url: String,
    #[arg(long, env = "FANWISE_TOKEN", hide_env_values = true)]
    token: Option<String>,
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
    /// Wait until the job is completed
    #[arg(long)]
    wait: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    match submit(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("not accepted: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn submit(args: Args) -> Result<(), Box<dyn Error>> {
    let mut server = Server::new(&args.url)?;
    if let Some(token) = &args.token {
        server = server.with_token(token)?;
    }
    let mut job = Job::new(
        args.client_msg_no,
        Audience::default(),
        Message::text(args.text),
    );
    job.target = args.target;
    let list = match (args.file, args.count) {
        (Some(file), _) => List::file(file),
        (None, count) => {
            let count = count.unwrap_or(0);
            List::recipients(move || (0..count).map(|number| format!("u{number}")))
        }
    };
    let options = SubmitOptions {
        traceparent: args.traceparent,
        ..SubmitOptions::default()
    };
    let accepted = server
        .submit_json(json(&job).into(), Some(&list), &options)
        .await?;
    println!(
        "accepted: {} recipients, job {}",
        accepted.recipients, accepted.job
    );
    if args.wait {
        let done = server.wait(accepted.job).await?;
        let accounts = done.accounts;
        println!("completed: {} of {} sent", accounts.sent, accounts.total);
    }
    Ok(())
}
