//! Publishes jobs of one recipient, one after the other at a fixed pace whatever becomes of them, and
//! prints how long each took from before its publish to its receipt at the sink, in milliseconds. Or
//! publishes jobs of several recipients, or dead letters, as fast as the broker confirms them. The jobs
//! go to a broker, or over one connection to a gateway.

#![allow(
    clippy::disallowed_methods,
    reason = "it measures by clocks and tasks of its own"
)]

use std::collections::VecDeque;
use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use clap::Parser;
use jiff::SignedDuration;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Connection, ConnectionProperties, PublisherConfirm};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufStream};
use tokio::net::TcpStream;
use tokio::time::{Interval, MissedTickBehavior};

#[derive(Parser)]
struct Args {
    /// URL of the broker
    #[arg(long, requires = "exchange", required_unless_present = "gateway")]
    amqp: Option<String>,
    /// Exchange of jobs, or of dead letters
    #[arg(long)]
    exchange: Option<String>,
    /// Port of a gateway to submit the jobs to, instead of a broker
    #[arg(long, conflicts_with_all = ["amqp", "letters"])]
    gateway: Option<u16>,
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

    fn pace(&self) -> Pace {
        let every = self.every.unsigned_abs();
        Pace((!every.is_zero()).then(|| {
            let mut ticks = tokio::time::interval(every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            ticks
        }))
    }

    fn letter(&self, run: u64, number: usize) -> serde_json::Value {
        // A thousand letters of each job.
        let key = format!("probe-{run}-{}", number / 1000);
        let at = "2026-11-29T10:00:00Z";
        // One in fifty thousand has another code.
        let code = if number % 50_000 == 25_000 {
            "403"
        } else {
            "410"
        };
        serde_json::json!({
            "v": 1, "job": format!("{:024x}", (number / 1000) as u128 * 0x9E37_79B9_7F4A_7C15), "app": "default",
            "client_msg_no": key, "target": self.target, "slice": "s/0",
            "message": {"type": "text", "text": "hello"}, "options": {},
            "first_attempt_at": at, "last_attempt_at": at,
            "recipients": [{"recipient": format!("user-{number:012}"), "outcome": "failed",
                "class": "permanent", "code": code, "text": "gone", "attempts": 1}],
        })
    }
}

/// Jobs published and not yet confirmed at a time.
const UNCONFIRMED_MAX: usize = 500;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let published = match args.gateway {
        Some(port) => submit(&args, port).await?,
        None => publish(&args).await?,
    };
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

/// Publishes the messages. Returns when each was, in microseconds since 1970.
async fn publish(args: &Args) -> anyhow::Result<Vec<u64>> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let url = args.amqp.as_deref().context("a broker")?;
    let exchange = args.exchange.as_deref().context("an exchange")?;
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    let run = now_us();
    let mut pace = args.pace();
    let mut published = Vec::with_capacity(args.count);
    let mut confirms = VecDeque::new();
    for number in 0..args.count {
        pace.next().await;
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
        confirms.push_back(
            channel
                .basic_publish(exchange.into(), key.into(), options, &body, properties)
                .await?,
        );
    }
    for confirm in confirms {
        confirmed(confirm).await?;
    }
    Ok(published)
}

/// Submits the jobs, each after the answer to the one before. Returns when each was.
async fn submit(args: &Args, port: u16) -> anyhow::Result<Vec<u64>> {
    let mut gateway = BufStream::new(TcpStream::connect(("127.0.0.1", port)).await?);
    gateway.get_ref().set_nodelay(true)?;
    let run = now_us();
    let mut pace = args.pace();
    let mut published = Vec::with_capacity(args.count);
    for number in 0..args.count {
        pace.next().await;
        let (_, message) = args.message(run, number);
        let body = message.to_string();
        let request = format!(
            "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        published.push(now_us());
        gateway.write_all(request.as_bytes()).await?;
        gateway.flush().await?;
        accepted(&mut gateway).await?;
    }
    Ok(published)
}

/// Reads one answer.
async fn accepted(gateway: &mut BufStream<TcpStream>) -> anyhow::Result<()> {
    let mut status = String::new();
    gateway.read_line(&mut status).await?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        gateway.read_line(&mut line).await?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
    }
    let mut body = vec![0; length];
    gateway.read_exact(&mut body).await?;
    if !status.starts_with("HTTP/1.1 202") {
        let body = String::from_utf8_lossy(&body);
        bail!("the gateway answered {status}{body}");
    }
    Ok(())
}

/// When the next job is due.
struct Pace(Option<Interval>);

impl Pace {
    async fn next(&mut self) {
        if let Some(ticks) = &mut self.0 {
            ticks.tick().await;
        }
    }
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
