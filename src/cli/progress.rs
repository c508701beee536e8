//! Follows one job until it is completed: a bar on a terminal, a line now and then elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::access::Access;
use super::output::grouped;
use crate::domain::accounts::Accounts;
use crate::domain::ids::JobId;
use crate::exit::{Exit, Failure};
use crate::ports::{JobRecord, JobState};

/// Between two looks at the ledger.
const LOOK: Duration = Duration::from_millis(200);
/// Between two lines where there is no terminal.
const LINE: Duration = Duration::from_secs(5);

/// How long a job may stay unknown to the ledger before we say so and give up.
const ACCEPT_PATIENCE: Duration = Duration::from_secs(30);

/// Shows a job until it is completed.
pub(super) async fn follow(access: &Access, job: JobId) -> Result<JobRecord, Failure> {
    let mut view = View::new(true);
    let started = Instant::now();
    let mut settled = None;
    loop {
        match access.job(job).await? {
            Some(record) => {
                let now = Some(record.accounts.settled());
                let stands = now == settled;
                settled = now;
                view.show(&record, &limiting(access, &record, stands).await?);
                if record.state == JobState::Completed {
                    view.end();
                    return Ok(record);
                }
            }
            None if started.elapsed() > ACCEPT_PATIENCE => {
                view.end();
                return Err(Failure::message(
                    Exit::Temporary,
                    format!(
                        "job {job} is not known after {}s: is a worker running (fanwise doctor), or was \
                         the message rejected (queue fanwise.rejected)?",
                        ACCEPT_PATIENCE.as_secs()
                    ),
                ));
            }
            None => {}
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Why a job that stands still does not move.
async fn limiting(access: &Access, record: &JobRecord, stands: bool) -> Result<String, Failure> {
    if !stands {
        return Ok(String::new());
    }
    let hindrances = access.hindrances(record).await?.into_iter();
    let whats: Vec<_> = hindrances.map(|it| it.what).collect();
    Ok(whats.join("; "))
}

/// What is shown of a job while it runs.
pub(super) struct View {
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
    first: Option<(Instant, u64)>,
}

impl View {
    /// Silent unless `wanted`.
    pub(super) fn new(wanted: bool) -> Self {
        let bar = (wanted && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(0);
            let template = "{bar:24} {percent:>3}%  {msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
            }
            bar
        });
        Self {
            bar,
            last_line: None,
            first: None,
        }
    }

    /// `limiting`: what keeps the job from going faster, if that is known.
    pub(super) fn show(&mut self, record: &JobRecord, limiting: &str) {
        let settled = record.accounts.settled();
        let (since, base) = *self.first.get_or_insert((Instant::now(), settled));
        let rate = (settled - base.min(settled)) as f64 / since.elapsed().as_secs_f64().max(0.2);
        let eta = if rate > 0.0 {
            record.pending as f64 / rate
        } else {
            f64::INFINITY
        };
        let eta = if eta.is_finite() {
            format!("{}s left", eta.ceil() as u64)
        } else {
            "–".to_owned()
        };
        let rate = grouped(rate as u64);
        let mut text = format!("{}  {rate}/s  {eta}", summary(&record.accounts));
        if !limiting.is_empty() {
            text.push_str(&format!("  ({limiting})"));
        }
        match &self.bar {
            Some(bar) => {
                bar.set_length(record.accounts.total);
                bar.set_position(settled);
                bar.set_message(text);
            }
            None if self.last_line.is_none_or(|at| at.elapsed() >= LINE) => {
                self.last_line = Some(Instant::now());
                tracing::info!(job.id = %record.job, "{text}");
            }
            None => {}
        }
    }

    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The outcomes that occur, in words.
pub(super) fn summary(accounts: &Accounts) -> String {
    let outcomes = [
        ("sent", accounts.sent),
        ("duplicate", accounts.duplicate),
        ("failed", accounts.failed),
        ("uncertain", accounts.uncertain),
        ("expired", accounts.expired),
        ("cancelled", accounts.cancelled),
        ("pending", accounts.pending()),
    ];
    let parts: Vec<_> = outcomes
        .iter()
        .filter(|(name, count)| *count > 0 || *name == "sent")
        .map(|(name, count)| format!("{} {name}", grouped(*count)))
        .collect();
    format!("{} of {}", parts.join(", "), grouped(accounts.total))
}
