//! The backend of the benchmark: answers every POST with the same small reply, as fast as a server of
//! few lines can, and counts who it was for.
//!
//! Recipients are named `u0000000`, `u0000001`, …; they are found by their quotes in the body, one or a
//! hundred. A bitmap tells whether each came exactly once. Recipients named `s0000000`, … are probes:
//! the time of their receipt is kept. Nothing is read from a request beyond its length and these names,
//! so `wrk` with the bytes of one request measures the ceiling of anybody who sends such requests.
//!
//! The counts are read over a port of its own, by GET:
//! - `/reset?expect=N` forgets everything and expects u0000000 up to N - 1;
//! - `/wait?unique=N&probes=M&seconds=S` answers when so many different ones came, 408 if they did not;
//! - `/stats` tells the counts, `/probes` the receipt of each probe, `/sample` the first request.

#![allow(
    clippy::disallowed_methods,
    reason = "it measures by clocks and tasks of its own"
)]

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use clap::Parser;
use jiff::SignedDuration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Handle};

#[derive(Parser)]
struct Args {
    /// Threads that serve requests
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Wait so long before every answer
    #[arg(long, default_value = "0s")]
    latency: SignedDuration,
    /// Wait for up to this long instead, each time between as likely
    #[arg(long)]
    latency_max: Option<SignedDuration>,
    /// Answers in a hundred that take `--slow` instead
    #[arg(long, default_value_t = 0)]
    slow_percent: u8,
    #[arg(long, default_value = "3s")]
    slow: SignedDuration,
    /// Most recipients that can be told apart
    #[arg(long, default_value_t = 20_000_000)]
    recipients_max: usize,
}

const REPLY: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n{\"ok\":true}";
/// Most probes between two resets.
const PROBES_MAX: usize = 100_000;
/// Arrivals are counted per millisecond, for so long after a reset.
const ARRIVALS_MAX: usize = 1_800_000;
const REQUEST_BYTES_MAX: usize = 8 * 1024 * 1024;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let tally = Arc::new(Tally::new(args.recipients_max));
    let threads: Vec<Handle> = (0..args.threads.max(1))
        .map(|_| serving_thread())
        .collect::<Result<_, _>>()?;
    Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let data = TcpListener::bind("127.0.0.1:0").await?;
            let control = TcpListener::bind("127.0.0.1:0").await?;
            let mut stdout = std::io::stdout();
            writeln!(
                stdout,
                "{} {}",
                data.local_addr()?.port(),
                control.local_addr()?.port()
            )?;
            stdout.flush()?;
            tokio::try_join!(
                accept(data, threads, &tally, Latency::of(&args)),
                accept_control(control, &tally)
            )?;
            Ok(())
        })
}

/// How long answers take.
#[derive(Clone, Copy)]
struct Latency {
    least: Duration,
    most: Duration,
    slow_percent: u8,
    slow: Duration,
}

impl Latency {
    fn of(args: &Args) -> Self {
        let least = args.latency.unsigned_abs();
        let most = args.latency_max.map_or(least, SignedDuration::unsigned_abs);
        Self {
            least,
            most: most.max(least),
            slow_percent: args.slow_percent,
            slow: args.slow.unsigned_abs(),
        }
    }

    fn draw(self) -> Duration {
        if self.slow_percent > 0 && fastrand::u8(..100) < self.slow_percent {
            return self.slow;
        }
        self.least + (self.most - self.least).mul_f64(fastrand::f64())
    }
}

/// A thread with a runtime of its own: its connections never move to another.
fn serving_thread() -> anyhow::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    Ok(handle)
}

async fn accept(
    listener: TcpListener,
    threads: Vec<Handle>,
    tally: &Arc<Tally>,
    latency: Latency,
) -> anyhow::Result<()> {
    for thread in threads.iter().cycle() {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        // Registered anew with the thread that serves it.
        let stream = stream.into_std()?;
        let tally = Arc::clone(tally);
        thread.spawn(async move {
            if let Ok(stream) = TcpStream::from_std(stream)
                && serve(stream, &tally, latency).await.is_err()
            {
                tally.broken.fetch_add(1, Relaxed);
            }
        });
    }
    Ok(())
}

/// Answers the requests of one connection until it is closed.
async fn serve(mut stream: TcpStream, tally: &Tally, latency: Latency) -> anyhow::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    let mut filled = 0;
    loop {
        if filled == buffer.len() {
            if filled >= REQUEST_BYTES_MAX {
                bail!("a request is too long");
            }
            buffer.resize(2 * filled, 0);
        }
        let count = stream.read(&mut buffer[filled..]).await?;
        if count == 0 {
            return if filled == 0 {
                Ok(())
            } else {
                bail!("closed within a request")
            };
        }
        filled += count;
        let mut start = 0;
        while let Some(request) = Request::parse(&buffer[start..filled])? {
            tally.note(&request);
            start += request.whole.len();
            let wait = latency.draw();
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            stream.write_all(REPLY).await?;
        }
        buffer.copy_within(start..filled, 0);
        filled -= start;
    }
}

struct Request<'a> {
    whole: &'a [u8],
    body: &'a [u8],
}

impl<'a> Request<'a> {
    /// The request at the front of these bytes, when it is there as a whole.
    fn parse(bytes: &'a [u8]) -> anyhow::Result<Option<Self>> {
        let mut length = 0;
        let mut at = 0;
        loop {
            let Some(end) = bytes[at..].iter().position(|byte| *byte == b'\n') else {
                return Ok(None);
            };
            let line = bytes[at..at + end].trim_ascii_end();
            at += end + 1;
            if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_at_checked(b"content-length:".len())
                && name.eq_ignore_ascii_case(b"content-length:")
            {
                length = std::str::from_utf8(value)?
                    .trim()
                    .parse()
                    .context("content-length")?;
            } else if line.len() > 17 && line[..18].eq_ignore_ascii_case(b"transfer-encoding:") {
                bail!("a body without a length is not served here");
            }
        }
        let whole = bytes.get(..at + length);
        Ok(whole.map(|whole| Self {
            whole,
            body: &whole[at..],
        }))
    }
}

/// What came.
struct Tally {
    began: Instant,
    /// The same moment in microseconds since 1970.
    began_us: u64,
    /// Times are in microseconds after `began`.
    reset_us: AtomicU64,
    first_us: AtomicU64,
    last_us: AtomicU64,
    expect: AtomicU64,
    requests: AtomicU64,
    unique: AtomicU64,
    duplicates: AtomicU64,
    /// Requests without a recipient, and recipients that were not expected.
    strange: AtomicU64,
    /// Connections that ended within a request.
    broken: AtomicU64,
    probes_seen: AtomicU64,
    seen: Vec<AtomicU64>,
    probes: Vec<AtomicU64>,
    arrivals: Vec<AtomicU32>,
    sampled: AtomicBool,
    sample: Mutex<Vec<u8>>,
}

impl Tally {
    fn new(recipients_max: usize) -> Self {
        let since_1970 = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            began: Instant::now(),
            began_us: since_1970.as_micros() as u64,
            reset_us: AtomicU64::new(0),
            first_us: AtomicU64::new(0),
            last_us: AtomicU64::new(0),
            expect: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            unique: AtomicU64::new(0),
            duplicates: AtomicU64::new(0),
            strange: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            probes_seen: AtomicU64::new(0),
            seen: (0..recipients_max.div_ceil(64))
                .map(|_| AtomicU64::new(0))
                .collect(),
            probes: (0..PROBES_MAX).map(|_| AtomicU64::new(0)).collect(),
            arrivals: (0..ARRIVALS_MAX).map(|_| AtomicU32::new(0)).collect(),
            sampled: AtomicBool::new(false),
            sample: Mutex::new(Vec::new()),
        }
    }

    fn now_us(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    /// Only between two runs, when nothing is on its way.
    fn reset(&self, expect: u64) -> anyhow::Result<()> {
        if expect > 64 * self.seen.len() as u64 {
            bail!("start the sink with more --recipients-max");
        }
        for count in [
            &self.first_us,
            &self.last_us,
            &self.requests,
            &self.unique,
            &self.duplicates,
            &self.strange,
            &self.broken,
            &self.probes_seen,
        ] {
            count.store(0, Relaxed);
        }
        self.seen
            .iter()
            .chain(&self.probes)
            .for_each(|word| word.store(0, Relaxed));
        self.arrivals
            .iter()
            .for_each(|count| count.store(0, Relaxed));
        self.sampled.store(false, Relaxed);
        self.expect.store(expect, Relaxed);
        self.reset_us.store(self.now_us(), Relaxed);
        Ok(())
    }

    fn note(&self, request: &Request<'_>) {
        let now = self.now_us();
        if !self.sampled.swap(true, Relaxed) {
            *self.sample.lock().unwrap_or_else(PoisonError::into_inner) = request.whole.to_vec();
        }
        let (mut unique, mut duplicates, mut strange, mut probes) = (0, 0, 0, 0);
        for (kind, number) in Names(request.body) {
            if kind == b's' {
                match self.probes.get(number as usize) {
                    Some(probe) if probe.swap(now, Relaxed) == 0 => probes += 1,
                    _ => duplicates += 1,
                }
            } else if number >= self.expect.load(Relaxed) {
                strange += 1;
            } else if self.seen[(number / 64) as usize].fetch_or(1 << (number % 64), Relaxed)
                >> (number % 64)
                & 1
                == 0
            {
                unique += 1;
            } else {
                duplicates += 1;
            }
        }
        let count = unique + duplicates + strange;
        if count + probes == 0 {
            strange = 1;
        }
        if count > 0 {
            if self.first_us.load(Relaxed) == 0 {
                self.first_us.store(now, Relaxed);
            }
            self.last_us.store(now, Relaxed);
            let ms = (now - self.reset_us.load(Relaxed)) / 1000;
            if let Some(arrivals) = self.arrivals.get(ms as usize) {
                arrivals.fetch_add(count as u32, Relaxed);
            }
        }
        self.requests.fetch_add(1, Relaxed);
        let counts = [
            (&self.duplicates, duplicates),
            (&self.strange, strange),
            (&self.probes_seen, probes),
            // Last: who waits for it then finds the others.
            (&self.unique, unique),
        ];
        for (total, count) in counts {
            if count > 0 {
                total.fetch_add(count, Relaxed);
            }
        }
    }

    fn stats(&self) -> serde_json::Value {
        let arrivals: Vec<u64> = self
            .arrivals
            .iter()
            .map(|count| u64::from(count.load(Relaxed)))
            .collect();
        let (expect, unique) = (self.expect.load(Relaxed), self.unique.load(Relaxed));
        let at = |time: &AtomicU64| self.began_us + time.load(Relaxed);
        serde_json::json!({
            "requests": self.requests.load(Relaxed),
            "unique": unique,
            "missing": expect.saturating_sub(unique),
            "duplicates": self.duplicates.load(Relaxed),
            "strange": self.strange.load(Relaxed),
            "broken": self.broken.load(Relaxed),
            "probes": self.probes_seen.load(Relaxed),
            "first_us": at(&self.first_us),
            "last_us": at(&self.last_us),
            "worst_second": worst_second(&arrivals),
            "steady_per_second": steady_per_second(&arrivals),
        })
    }

    /// The receipt of each probe, in microseconds since 1970.
    fn probes(&self) -> String {
        let times = self
            .probes
            .iter()
            .map(|time| time.load(Relaxed))
            .enumerate();
        times
            .filter(|(_, time)| *time > 0)
            .map(|(number, time)| format!("{number} {}\n", self.began_us + time))
            .collect()
    }
}

/// The most arrivals in any window of one second.
fn worst_second(arrivals: &[u64]) -> u64 {
    let mut sum = 0;
    let mut worst = 0;
    for (ms, count) in arrivals.iter().enumerate() {
        sum += count;
        if ms >= 1000 {
            sum -= arrivals[ms - 1000];
        }
        worst = worst.max(sum);
    }
    worst
}

/// The rate between the first and the last tenth of the arrivals.
fn steady_per_second(arrivals: &[u64]) -> f64 {
    let total: u64 = arrivals.iter().sum();
    let mut before = 0;
    let mut from = None;
    for (ms, count) in arrivals.iter().enumerate() {
        before += count;
        if before * 10 < total || *count == 0 {
            continue;
        }
        let (from_ms, from_count) = *from.get_or_insert((ms, before));
        if before * 10 >= total * 9 && ms > from_ms {
            return (before - from_count) as f64 * 1000.0 / (ms - from_ms) as f64;
        }
    }
    0.0
}

/// The names in a body: `"u0000123"` is (u, 123).
struct Names<'a>(&'a [u8]);

impl Iterator for Names<'_> {
    type Item = (u8, u64);

    fn next(&mut self) -> Option<(u8, u64)> {
        loop {
            let quote = self.0.iter().position(|byte| *byte == b'"')?;
            self.0 = &self.0[quote + 1..];
            let kind = *self.0.first()?;
            if kind != b'u' && kind != b's' {
                continue;
            }
            let digits = self.0[1..]
                .iter()
                .take_while(|byte| byte.is_ascii_digit())
                .count();
            if digits == 0 || self.0.get(1 + digits) != Some(&b'"') {
                continue;
            }
            let digits = &self.0[1..1 + digits];
            self.0 = &self.0[2 + digits.len()..];
            let number = digits.iter().fold(0u64, |number, digit| {
                number
                    .wrapping_mul(10)
                    .wrapping_add(u64::from(digit - b'0'))
            });
            return Some((kind, number));
        }
    }
}

async fn accept_control(listener: TcpListener, tally: &Arc<Tally>) -> anyhow::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let tally = Arc::clone(tally);
        // A client that goes away takes nothing with it.
        tokio::spawn(async move { drop(control(stream, &tally).await) });
    }
}

/// Answers one question and closes.
async fn control(mut stream: TcpStream, tally: &Tally) -> anyhow::Result<()> {
    let mut request = vec![0; 4096];
    let mut filled = 0;
    while !request[..filled].ends_with(b"\r\n\r\n") && filled < request.len() {
        match stream.read(&mut request[filled..]).await? {
            0 => break,
            count => filled += count,
        }
    }
    let text = String::from_utf8_lossy(&request[..filled]);
    let target = text.split(' ').nth(1).unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let number = |name: &str| {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs
            .into_iter()
            .find(|(key, _)| *key == name)
            .and_then(|(_, value)| value.parse::<u64>().ok())
    };
    let (status, body) = match path {
        "/reset" => match tally.reset(number("expect").unwrap_or(0)) {
            Ok(()) => ("200 OK", Vec::new()),
            Err(error) => ("400 Bad Request", error.to_string().into_bytes()),
        },
        "/wait" => {
            let (unique, probes) = (number("unique").unwrap_or(0), number("probes").unwrap_or(0));
            let bound = Duration::from_secs(number("seconds").unwrap_or(60));
            let came = async {
                while tally.unique.load(Relaxed) < unique
                    || tally.probes_seen.load(Relaxed) < probes
                {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            };
            match tokio::time::timeout(bound, came).await {
                Ok(()) => ("200 OK", Vec::new()),
                Err(_) => ("408 Request Timeout", Vec::new()),
            }
        }
        "/stats" => ("200 OK", tally.stats().to_string().into_bytes()),
        "/probes" => ("200 OK", tally.probes().into_bytes()),
        "/sample" => (
            "200 OK",
            tally
                .sample
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        ),
        _ => ("404 Not Found", Vec::new()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&body).await?;
    stream.shutdown().await?;
    Ok(())
}
