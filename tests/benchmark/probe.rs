//! Publishes jobs of one recipient, one after the other at a fixed pace whatever becomes of them, and
//! prints how long each took from before its publish to its receipt at the sink, in milliseconds. Or
//! publishes jobs of several recipients, or dead letters, as fast as the broker confirms them.

#![allow(
    clippy::disallowed_methods,
    reason = "it measures by clocks and tasks of its own"
)]

use std::collections::VecDeque;
use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use clap::Parser;
use jiff::SignedDuration;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Connection, ConnectionProperties, PublisherConfirm};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::MissedTickBehavior;

#[derive(Parser)]
struct Args {
    /// URL of the broker
    #[arg(long)]
    amqp: String,
    /// Exchange of jobs, or of dead letters
    #[arg(long)]
    exchange: String,
    /// Target of the jobs
    #[arg(long)]
    target: String,
    /// Control port of the sink
    #[arg(long)]
    sink: u16,
    #[arg(long, default_value_t = 100)]
    count: usize,
    /// Time between two jobs; zero: as fast as the broker confirms
    #[arg(long, default_value = "100ms")]
    every: SignedDuration,
    /// Jobs of this many recipients, named like those of a list, instead of probes; prints nothing
    #[arg(long)]
    users: Option<usize>,
    /// Dead letters about one recipient each instead of jobs; prints nothing
    #[arg(long, conflicts_with = "users")]
    letters: bool,
}

impl Args {
    /// The routing key and the body of a message.
    fn message(&self, run: u64, number: usize) -> (String, serde_json::Value) {
        if self.letters {
            return (format!("default.{}", self.target), self.letter(run, number));
        }
        let users = match self.users {
            Some(size) => (number * size..(number + 1) * size)
                .map(|user| format!("u{user:07}"))
                .collect(),
            None => vec![format!("s{number:07}")],
        };
        let job = serde_json::json!({
            "v": 1, "client_msg_no": format!("probe-{run}-{number}"), "target": self.target,
            "audience": {"users": users},
            "message": {"type": "text", "text": "hello"},
        });
        ("normal".to_owned(), job)
    }

    fn letter(&self, run: u64, number: usize) -> serde_json::Value {
        // A thousand letters of each job.
        let key = format!("probe-{run}-{}", number / 1000);
        let at = "2026-11-29T10:00:00Z";
        serde_json::json!({
            "v": 1, "job": format!("{:024x}", (number / 1000) as u128 * 0x9E37_79B9_7F4A_7C15), "app": "default",
            "client_msg_no": key, "target": self.target, "slice": "s/0",
            "message": {"type": "text", "text": "hello"}, "options": {},
            "first_attempt_at": at, "last_attempt_at": at,
            "recipients": [{"recipient": format!("user-{number:012}"), "outcome": "failed",
                "class": "permanent", "code": "410", "text": "gone", "attempts": 1}],
        })
    }
}

/// Jobs published and not yet confirmed at a time.
const UNCONFIRMED_MAX: usize = 500;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let connection = Connection::connect(&args.amqp, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    let run = now_us();
    let every = args.every.unsigned_abs();
    let mut ticks = tokio::time::interval(every.max(Duration::from_nanos(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut published = Vec::with_capacity(args.count);
    let mut confirms = VecDeque::new();
    for number in 0..args.count {
        if !every.is_zero() {
            ticks.tick().await;
        }
        if confirms.len() >= UNCONFIRMED_MAX
            && let Some(confirm) = confirms.pop_front()
        {
            confirmed(confirm).await?;
        }
        let (key, message) = args.message(run, number);
        published.push(now_us());
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let properties = BasicProperties::default().with_delivery_mode(2);
        let body = message.to_string().into_bytes();
        let exchange = args.exchange.as_str();
        confirms.push_back(
            channel
                .basic_publish(exchange.into(), key.into(), options, &body, properties)
                .await?,
        );
    }
    for confirm in confirms {
        confirmed(confirm).await?;
    }
    if args.users.is_some() || args.letters {
        return Ok(());
    }
    ask(
        args.sink,
        &format!("/wait?probes={}&seconds=120", args.count),
    )
    .await?;
    let received = ask(args.sink, "/probes").await?;
    let mut stdout = std::io::stdout();
    for line in received.lines() {
        let (number, at) = line.split_once(' ').context("a line of the sink")?;
        let at: u64 = at.parse()?;
        let from = published
            .get(number.parse::<usize>()?)
            .context("a probe of another run")?;
        writeln!(stdout, "{:.1}", at.saturating_sub(*from) as f64 / 1000.0)?;
    }
    Ok(())
}

fn now_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_micros() as u64
}

async fn confirmed(confirm: PublisherConfirm) -> anyhow::Result<()> {
    let confirm = confirm.await?;
    if !confirm.is_ack() || confirm.take_message().is_some() {
        bail!("the broker did not accept a job");
    }
    Ok(())
}

async fn ask(port: u16, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes())
        .await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("an answer of the sink")?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("the sink answered {path} with {head}");
    }
    Ok(body.to_owned())
}
