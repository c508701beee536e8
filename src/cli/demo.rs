//! `fanwise demo`: the main job with nothing installed. Runs a real `fanwise serve` on the embedded
//! engine in a temporary folder, against a mock IM server with a few faults. At the end it compares
//! the accounts with the mock's own log.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::access::{Access, Submission};
use super::dead;
use super::output::{self, grouped};
use super::progress::{self, View};
use crate::config::{Config, load};
use crate::domain::accounts::Accounts;
use crate::domain::ids::JobId;
use crate::domain::job::{AudienceDocument, JobDocument, MessageDocument};
use crate::domain::letters::DeadRow;
use crate::domain::outcome::Outcome;
use crate::exit::{Exit, Failure, OrExit as _};
use crate::ports::{JobRecord, JobState};
use crate::telemetry::{self, LogFormat};
use fanwise_client::Retry;
use fanwise_mock_im::{MockHandle, MockIm, Settings, Version};

/// Most recipients: their list fits one job message.
const RECIPIENTS_MAX: u64 = 100_000;
/// The rate limit of the target, which makes the demo last some seconds.
const LIMIT: u64 = 2500;
/// Longest wait in any step of the demo.
const PATIENCE: Duration = Duration::from_secs(120);
const KEY: &str = "demo-1";
/// The files of the process, in the folder of the demo.
const CONFIG: &str = "fanwise.toml";
const LOG: &str = "serve.log";
/// Prefix of the environment variables that are settings.
const ENVIRONMENT: &str = "FANWISE_";

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Number of users to send to
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(100..=RECIPIENTS_MAX))]
    recipients: u64,
    /// Kill the worker half-way (SIGKILL) and start it again
    #[arg(long)]
    kill: bool,
    /// Keep the server running at the end, with the console at the address that is printed, until
    /// Ctrl-C
    #[arg(long, conflicts_with = "json")]
    stay: bool,
    /// Print the result as one JSON object
    #[arg(short, long)]
    json: bool,
}

/// The result of the demo.
#[derive(Debug, Serialize)]
struct Report {
    job: JobId,
    #[serde(flatten)]
    accounts: Accounts,
    pending: u64,
    /// The counters, the ledger and the mock's own log agree.
    accounts_exact: bool,
    /// Messages that the mock accepted, by its own log.
    sink_accepted: u64,
    /// Messages that it accepted again for a user that had one.
    sink_duplicates: u64,
    /// Further messages that it accepted when the demo submitted the same job a second time.
    sink_accepted_by_repeat: u64,
    worker_kills: u32,
    elapsed_seconds: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    differences: Vec<String>,
}

pub(super) async fn run(args: DemoArgs) -> Result<Exit, Failure> {
    let filter = "warn,fanwise::cli=info".parse().unwrap_or_default();
    telemetry::start(&filter, LogFormat::Text);
    let interrupted = crate::shutdown::drain_on_signal().or_exit(Exit::Internal)?;
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let shown = async {
        let mock = start_mock(&stop).await?;
        let mut demo = Demo::start(&args, mock).await?;
        let outcome = demo.play(&args).await?;
        Ok::<_, Failure>((demo, outcome))
    };
    // If it is dropped midway, the demo ends its process and removes its folder.
    let Some(shown) = interrupted.run_until_cancelled(Box::pin(shown)).await else {
        return Ok(Exit::Interrupted);
    };
    let (demo, outcome) = shown?;
    if args.json {
        output::json(&outcome)?;
    }
    if args.stay {
        demo.invite()?;
        interrupted.cancelled().await;
    }
    Ok(if outcome.accounts_exact {
        Exit::Ok
    } else {
        Exit::Internal
    })
}

async fn start_mock(stop: &CancellationToken) -> Result<(SocketAddr, MockHandle), Failure> {
    let settings = Settings {
        wukongim: Version::V3,
        ..Settings::default()
    };
    let mock = MockIm::bind(settings).await.or_exit(Exit::Unavailable)?;
    let (address, handle) = (mock.addr(), mock.handle());
    let faults = json!({
        "latency": "1ms..4ms",
        "refuse": 0.004,
        "error_503": "1%",
        "burst": {"after": 3000, "for": "1s", "retry_after": 1},
        "reply_lost": {"count": 1},
    });
    handle.patch_faults(&faults).or_exit(Exit::Internal)?;
    #[expect(clippy::disallowed_methods, reason = "the demo ends it by its token")]
    tokio::spawn(mock.run(stop.clone().cancelled_owned()));
    Ok((address, handle))
}

/// The process of the demo, and what the demo watches it with.
struct Demo {
    folder: PathBuf,
    config: Config,
    access: Access,
    mock: MockHandle,
    child: Child,
    kills: u32,
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Demo {
    async fn start(
        args: &DemoArgs,
        (address, mock): (SocketAddr, MockHandle),
    ) -> Result<Self, Failure> {
        let folder = make_folder()?;
        let file = write_config(&folder, address)?;
        // The environment must not change the demo.
        let loaded = load(Some(&file), std::iter::empty()).or_exit(Exit::Internal)?;
        let config = loaded
            .check()
            .map_err(|problems| Failure::new(Exit::Internal, problems))?;
        let child = serve(&folder)?;
        let access = Access::of(&config)?;
        let mut demo = Self {
            folder,
            config,
            access,
            mock,
            child,
            kills: 0,
        };
        demo.ready().await?;
        if !args.json {
            output::line(
                "Fanwise demo: embedded engine, a mock IM server that misbehaves a little",
            )?;
            output::line(format!(
                "  {} users, at most {} messages/s; the mock refuses 0.4 % of them,",
                grouped(args.recipients),
                grouped(LIMIT)
            ))?;
            output::line("  answers 503 now and then, 429 for a second, and loses one reply")?;
            output::line("")?;
        }
        Ok(demo)
    }

    /// Waits until the process accepts jobs, and asks it where it listens from now on.
    async fn ready(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        let mut found = false;
        loop {
            let ended = self.child.try_wait().or_exit(Exit::Internal)?;
            let log = std::fs::read_to_string(self.folder.join(LOG)).unwrap_or_default();
            if !found && let Some((gateway, admin)) = addresses(&log) {
                (self.config.gateway.listen, self.config.admin.listen) = (gateway, admin);
                self.access = Access::of(&self.config)?;
                found = true;
            }
            if found && self.accepts().await {
                return Ok(());
            }
            if ended.is_some() || Instant::now() > deadline {
                return Err(Failure::message(
                    Exit::Unavailable,
                    format!("`fanwise serve` did not start:\n{log}"),
                ));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn accepts(&self) -> bool {
        let answer = super::healthcheck::ask(self.config.admin.listen, "/readyz").await;
        answer.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    async fn play(&mut self, args: &DemoArgs) -> Result<Report, Failure> {
        let started = Instant::now();
        let users: Vec<String> = (0..args.recipients)
            .map(|number| format!("user-{number}"))
            .collect();
        let body = job(users).or_exit(Exit::Internal)?;
        let id = JobId::of("default", KEY);
        let submission = Submission {
            bodies: vec![body.into()],
            upload: None,
            for_all: false,
        };
        self.access.submit(&submission, Retry::NEVER).await?;
        let record = self.follow(args, id).await?;
        let elapsed_seconds = started.elapsed().as_secs_f64();
        let accepted = self.mock.stats().accepted;
        // The ledger knows the job, so the repeat sends nothing.
        self.access.submit(&submission, Retry::NEVER).await?;
        let outcome = self.outcome(record, accepted, elapsed_seconds).await?;
        if !args.json {
            self.tell(args, &outcome).await?;
        }
        Ok(outcome)
    }

    /// Shows the job until it is completed, and kills the worker half-way if asked to.
    async fn follow(&mut self, args: &DemoArgs, id: JobId) -> Result<JobRecord, Failure> {
        let mut view = View::new(!args.json);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let record = self.access.job(id).await?;
            if let Some(record) = record {
                view.show(&record, &self.limiting().await);
                if record.state == JobState::Completed {
                    view.end();
                    return Ok(record);
                }
                if args.kill && self.kills == 0 && record.accounts.settled() > args.recipients / 2 {
                    let killed = self.kill_and_restart().await?;
                    if !args.json {
                        view.aside(|| output::line(killed))?;
                    }
                }
            }
            if Instant::now() > deadline {
                return Err(Failure::message(
                    Exit::Unavailable,
                    "the demo job did not complete in time",
                ));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Returns a line that reports it.
    async fn kill_and_restart(&mut self) -> Result<String, Failure> {
        self.child.kill().or_exit(Exit::Internal)?;
        self.child.wait().or_exit(Exit::Internal)?;
        self.kills += 1;
        let began = Instant::now();
        self.child = serve(&self.folder)?;
        self.ready().await?;
        let ms = began.elapsed().as_millis();
        Ok(format!(
            "  killed the worker with SIGKILL; a new one took over after {ms} ms"
        ))
    }

    /// What keeps the job from going faster, from the worker's own metrics.
    async fn limiting(&self) -> String {
        let metrics = self.metrics().await;
        let throttled = "fanwise_target_parked{reason=\"throttled\",target=\"im\"}";
        if metrics.get(throttled) == Some(&1.0) {
            "parked: backend says 429".to_owned()
        } else {
            format!("limit {}/s", grouped(LIMIT))
        }
    }

    async fn metrics(&self) -> HashMap<String, f64> {
        let text = super::healthcheck::ask(self.config.admin.listen, "/metrics")
            .await
            .unwrap_or_default();
        let lines = text.lines().filter(|line| line.starts_with("fanwise_"));
        lines
            .filter_map(|line| line.rsplit_once(' '))
            .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
            .collect()
    }

    /// The accounts, checked against the ledger and against the mock's own log.
    async fn outcome(
        &self,
        record: JobRecord,
        accepted: u64,
        elapsed_seconds: f64,
    ) -> Result<Report, Failure> {
        let verified = self.access.verify(record.job).await?;
        let mut differences = verified.map_or_else(
            || vec!["the job is not known any more".to_owned()],
            |verified| verified.differences,
        );
        let stats = self.mock.stats();
        let mut by_user: BTreeMap<String, u64> = BTreeMap::new();
        for entry in self
            .mock
            .accepted()
            .into_iter()
            .filter(|entry| !entry.replay)
        {
            *by_user.entry(entry.recipient).or_default() += 1;
        }
        let accounts = record.accounts;
        let sink_accepted: u64 = by_user.values().sum();
        let sink_duplicates = by_user.values().map(|count| count - 1).sum();
        // An uncertain recipient may or may not be in the mock's log.
        let sure = accounts.sent..=accounts.sent + accounts.uncertain;
        if !sure.contains(&sink_accepted) {
            differences.push(format!(
                "the mock accepted {sink_accepted}, but {} are sent",
                accounts.sent
            ));
        }
        if sink_duplicates > 0 {
            differences.push(format!(
                "the mock accepted {sink_duplicates} message(s) twice"
            ));
        }
        let by_repeat = stats.accepted - accepted;
        if by_repeat > 0 {
            differences.push(format!(
                "the mock accepted {by_repeat} message(s) of the repeated job"
            ));
        }
        let failed = |row: &DeadRow| row.outcome == Outcome::Failed;
        for row in dead::all(&self.access)
            .await?
            .iter()
            .filter(|row| failed(row))
        {
            let recipient = &row.recipient;
            if by_user.contains_key(recipient) {
                differences.push(format!("{recipient} failed, but the mock accepted it"));
            }
        }
        if !self.mock.is_complete() {
            differences.push("the mock did not keep its whole log".to_owned());
        }
        Ok(Report {
            job: record.job,
            accounts,
            pending: record.pending,
            accounts_exact: differences.is_empty() && record.pending == 0,
            sink_accepted,
            sink_duplicates,
            sink_accepted_by_repeat: by_repeat,
            worker_kills: self.kills,
            elapsed_seconds,
            differences,
        })
    }

    async fn tell(&self, args: &DemoArgs, outcome: &Report) -> Result<(), Failure> {
        let accounts = &outcome.accounts;
        output::line(format!(
            "completed in {:.1} s: {}",
            outcome.elapsed_seconds,
            progress::summary(accounts)
        ))?;
        output::line(format!(
            "submitted the same job a second time: {} further messages",
            outcome.sink_accepted_by_repeat
        ))?;
        output::line("")?;
        output::line(if outcome.accounts_exact {
            "Accounts: exact"
        } else {
            "Accounts: NOT exact"
        })?;
        output::line(format!(
            "  total {} = sent {} + duplicate {} + failed {} + uncertain {}",
            grouped(accounts.total),
            grouped(accounts.sent),
            grouped(accounts.duplicate),
            grouped(accounts.failed),
            grouped(accounts.uncertain)
        ))?;
        output::line(format!(
            "  the mock's own log: {} accepted, {} of them twice",
            grouped(outcome.sink_accepted),
            grouped(outcome.sink_duplicates)
        ))?;
        for difference in &outcome.differences {
            output::line(format!("  {difference}"))?;
        }
        output::line("")?;
        self.tell_dead().await?;
        self.tell_metrics().await?;
        if args.stay {
            return Ok(());
        }
        output::line("Next:")?;
        let program = program();
        let again = match outcome.worker_kills {
            0 => ("demo --kill", "the same, with a crash half-way"),
            _ => ("demo --recipients 100000", "the same for more users"),
        };
        let width = again.0.len().max("demo --stay".len());
        for (command, about) in [
            again,
            ("demo --stay", "the same, with the console in your browser"),
            ("config show", "every setting and its value"),
            ("send --help", "submit a job to `fanwise serve`"),
        ] {
            output::line(format!("  {program} {command:<width$}  {about}"))?;
        }
        Ok(())
    }

    /// Says where the console is. From now on the mock accepts every user, so that a redrive of the
    /// dead letters succeeds.
    fn invite(&self) -> Result<(), Failure> {
        let faults = json!({"refuse": 0.0});
        self.mock.patch_faults(&faults).or_exit(Exit::Internal)?;
        let address = self.config.gateway.listen;
        output::line(format!("Console: http://{address}/"))?;
        output::line(
            "  the mock now accepts every user: redrive the dead letters, or submit a job",
        )?;
        output::line(format!(
            "  server: {address}, metrics: http://{}/metrics",
            self.config.admin.listen
        ))?;
        output::line("  Ctrl-C ends the demo and removes its data")
    }

    async fn tell_dead(&self) -> Result<(), Failure> {
        const SHOWN: usize = 5;
        let rows = dead::all(&self.access).await?;
        output::line(format!("Dead letters: {}", grouped(rows.len() as u64)))?;
        for row in rows.iter().take(SHOWN) {
            let told = format!(
                "  {:<12} {:<10} {}: {}",
                row.recipient,
                row.outcome.as_str(),
                row.code,
                row.text
            );
            output::line(output::narrow(&told))?;
        }
        if rows.len() > SHOWN {
            output::line(format!("  and {} more", rows.len() - SHOWN))?;
        }
        output::line("")
    }

    async fn tell_metrics(&self) -> Result<(), Failure> {
        output::line("Metrics of the worker that is running now:")?;
        let metrics = self.metrics().await;
        for name in [
            "fanwise_recipients_total{outcome=\"sent\",target=\"im\"}",
            "fanwise_calls_total{class=\"throttled\",target=\"im\"}",
            "fanwise_calls_total{class=\"transient\",target=\"im\"}",
            "fanwise_uncertain_total{policy=\"retry\",target=\"im\"}",
        ] {
            output::line(format!(
                "  {name} {}",
                metrics.get(name).copied().unwrap_or_default()
            ))?;
        }
        output::line("")
    }
}

fn job(users: Vec<String>) -> serde_json::Result<Vec<u8>> {
    let audience = AudienceDocument {
        users: Some(users.into_iter().map(Into::into).collect()),
        ..AudienceDocument::default()
    };
    let message = MessageDocument {
        kind: Some("text".to_owned()),
        text: Some("Hello from Fanwise".to_owned()),
        ..MessageDocument::default()
    };
    serde_json::to_vec(&JobDocument::new(KEY, audience, message))
}

fn write_config(folder: &Path, mock: SocketAddr) -> Result<PathBuf, Failure> {
    let data = folder.join("data");
    let config = format!(
        r#"[embedded]
dir = {data:?}
[gateway]
listen = "127.0.0.1:0"
[admin]
listen = "127.0.0.1:0"
[log]
level = "info"
format = "text"
[ledger]
lease = "5s"
[retry]
delay_max = "2s"
[worker]
identify_targets = false
[targets.im]
type = "wukongim"
version = "v3"
sender = "news"
url = "http://{mock}"
call_timeout = "2s"
limit = "{LIMIT}/s burst 100"
"#
    );
    let file = folder.join(CONFIG);
    std::fs::write(&file, config).or_exit(Exit::Unavailable)?;
    Ok(file)
}

/// The addresses of the gateway and of the admin port, once the process has logged both.
fn addresses(log: &str) -> Option<(SocketAddr, SocketAddr)> {
    let address = |what: &str| {
        // Whole lines only: the process may be writing one.
        let mut lines = log
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        let line = lines.find(|line| line.contains(what))?;
        let (_, address) = line.rsplit_once("address=")?;
        address.split_whitespace().next()?.parse().ok()
    };
    Some((address("gateway listens")?, address("admin port listens")?))
}

/// The name that this program was called by.
fn program() -> String {
    std::env::args()
        .next()
        .unwrap_or_else(|| "fanwise".to_owned())
}

/// Makes a new folder that no other user can read.
fn make_folder() -> Result<PathBuf, Failure> {
    let name = format!(
        "fanwise-demo-{}-{:08x}",
        std::process::id(),
        fastrand::u32(..)
    );
    let folder = std::env::temp_dir().join(name);
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(&folder).map_err(|error| {
        let what = format!("cannot make the folder {}: {error}", folder.display());
        Failure::message(
            Exit::Unavailable,
            format!("{what}; set TMPDIR to another place"),
        )
    })?;
    Ok(folder)
}

/// Starts this program as `fanwise serve`, with a new log.
fn serve(folder: &Path) -> Result<Child, Failure> {
    let program = std::env::current_exe().or_exit(Exit::Internal)?;
    let log = std::fs::File::create(folder.join(LOG)).or_exit(Exit::Unavailable)?;
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with(ENVIRONMENT) {
            command.env_remove(name);
        }
    }
    command
        .arg("serve")
        .arg("--config")
        .arg(folder.join(CONFIG))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .or_exit(Exit::Unavailable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_says_where_it_listens() {
        let gateway = "2026-01-01T00:00:00Z  INFO gateway listens address=127.0.0.1:4001\n";
        let admin = "2026-01-01T00:00:00Z  INFO admin port listens address=127.0.0.1:4002\n";
        let both = ("127.0.0.1:4001", "127.0.0.1:4002");
        let both = (both.0.parse().unwrap(), both.1.parse().unwrap());
        assert_eq!(addresses(&[gateway, admin].concat()), Some(both));
        assert_eq!(addresses(gateway), None);
        // The process has not finished the line.
        assert_eq!(
            addresses(&[gateway, "INFO admin port listens address=127.0.0.1:40"].concat()),
            None
        );
    }
}
