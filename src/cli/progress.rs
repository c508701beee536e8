//! Follows one job until it is completed: with a bar on a terminal, else with a log line now and
//! then.

use std::collections::VecDeque;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::access::{Accepted, Access};
use super::output::grouped;
use crate::domain::accounts::Accounts;
use crate::domain::ids::JobId;
use crate::domain::printable::on_one_line;
use crate::exit::{Exit, Failure, OrExit as _};
use crate::ports::{JobRecord, JobState};
use crate::service::admission::conflicts;

/// Time between two readings of the job.
const LOOK: Duration = Duration::from_millis(200);
/// Time between two log lines.
const LINE: Duration = Duration::from_secs(5);
/// Period that the shown rate is an average of.
const WINDOW: Duration = Duration::from_secs(3);

/// How long a job, or further recipients of it, may stay unknown before the command gives up.
const ACCEPT_PATIENCE: Duration = Duration::from_secs(30);

/// Ctrl-C, from the moment this is made: it ends the command, which says how to go on.
pub(super) struct Interrupt(Signal);

impl Interrupt {
    pub(super) fn watch() -> Result<Self, Failure> {
        let signal = signal(SignalKind::interrupt());
        signal.map(Self).or_exit(Exit::Internal)
    }

    /// Works until Ctrl-C, and then fails with this text.
    pub(super) async fn or<T>(
        &mut self,
        work: impl Future<Output = Result<T, Failure>>,
        go_on: impl FnOnce() -> String,
    ) -> Result<T, Failure> {
        tokio::select! {
            done = work => done,
            _ = self.0.recv() => Err(Failure::message(Exit::Interrupted, go_on())),
        }
    }
}

/// A submission that counts once a worker has taken it.
pub(super) struct Awaited<'a> {
    accepted: &'a Accepted,
    /// The job as it was before.
    before: Option<&'a JobRecord>,
    is_known: Option<bool>,
}

impl<'a> Awaited<'a> {
    pub(super) fn new(accepted: &'a Accepted, before: Option<&'a JobRecord>) -> Self {
        Self {
            accepted,
            before,
            is_known: None,
        }
    }

    /// Asks whether the ledger knows the submission: a record that is read afterwards counts it then.
    async fn ask(&mut self, access: &Access) -> Result<(), Failure> {
        if self.is_known != Some(true) {
            self.is_known = access.knows(self.accepted).await?;
        }
        Ok(())
    }

    /// Whether a record counts the submission.
    fn is_in(&self, record: &JobRecord) -> bool {
        let known_before = self.before.map_or(0, |before| before.submissions);
        let is_known = self.is_known.unwrap_or(record.submissions > known_before);
        is_known
            && !self
                .before
                .is_some_and(|before| record.waits_to_reopen(before))
    }

    /// Fails if the key of the job stands for another message.
    fn fits(&self, record: &JobRecord) -> Result<(), Failure> {
        let digest = self.accepted.content_digest.as_deref();
        match digest.is_some_and(|digest| conflicts(record, digest)) {
            false => Ok(()),
            true => Err(Failure::message(
                Exit::BadInput,
                format!(
                    "conflict: {:?} is the key of another message, job {}; a worker rejects yours, and \
                     puts it into fanwise.rejected",
                    record.client_msg_no, record.job
                ),
            )),
        }
    }
}

/// Shows a job until it is completed, with what was submitted to it, if anything was. Ctrl-C ends the
/// command and not the job.
pub(super) async fn follow(
    access: &Access,
    job: JobId,
    awaited: Option<Awaited<'_>>,
    interrupt: &mut Interrupt,
) -> Result<JobRecord, Failure> {
    let mut view = View::new(true);
    let completed = completed(access, job, awaited, &mut view);
    let completed = interrupt.or(completed, || goes_on(job)).await;
    view.end();
    completed
}

/// What to do about a job whose command ended before it.
pub(super) fn goes_on(job: JobId) -> String {
    format!(
        "job {job} goes on without this command: `fanwise job watch {job}` follows it, `fanwise job \
         cancel {job}` stops it"
    )
}

async fn completed(
    access: &Access,
    job: JobId,
    mut awaited: Option<Awaited<'_>>,
    view: &mut View,
) -> Result<JobRecord, Failure> {
    let started = Instant::now();
    let mut settled = None;
    loop {
        match taken(access, job, awaited.as_mut()).await? {
            Ok(record) => {
                let now = Some(record.accounts.settled());
                let stands = now == settled;
                settled = now;
                view.show(&record, &limiting(access, &record, stands).await?);
                if record.state == JobState::Completed {
                    return Ok(record);
                }
            }
            Err(lack) if started.elapsed() > ACCEPT_PATIENCE => return Err(not_taken(job, lack)),
            Err(_) => {}
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A job with what was submitted to it, or what it lacks until a worker has taken that.
async fn taken(
    access: &Access,
    job: JobId,
    mut awaited: Option<&mut Awaited<'_>>,
) -> Result<Result<JobRecord, &'static str>, Failure> {
    if let Some(awaited) = &mut awaited {
        awaited.ask(access).await?;
    }
    let Some(record) = access.job(job).await? else {
        return Ok(Err("is not known"));
    };
    if let Some(awaited) = awaited {
        awaited.fits(&record)?;
        if record.state == JobState::Completed && !awaited.is_in(&record) {
            return Ok(Err("is completed, but without this submission,"));
        }
    }
    Ok(Ok(record))
}

fn not_taken(job: JobId, lack: &str) -> Failure {
    Failure::message(
        Exit::Temporary,
        format!(
            "job {job} {lack} after {}s: is a worker running (fanwise doctor), or was the message rejected \
             (queue fanwise.rejected)?",
            ACCEPT_PATIENCE.as_secs()
        ),
    )
}

/// Why a job makes no progress; empty if it makes some.
async fn limiting(access: &Access, record: &JobRecord, stands: bool) -> Result<String, Failure> {
    if !stands {
        return Ok(String::new());
    }
    let detail = access.detail(record.job).await?;
    let hindrances = detail.into_iter().flat_map(|it| it.hindrances);
    let whats: Vec<_> = hindrances
        .filter(|it| it.cause.is_meant())
        .map(|it| it.what)
        .collect();
    Ok(whats.join("; "))
}

/// Displays a running job.
pub(super) struct View {
    shows: Shows,
    /// Readings of the last seconds, newest last: the time, and how many recipients were settled.
    looks: VecDeque<(Instant, u64)>,
}

enum Shows {
    Nothing,
    /// Log lines, with the time of the last one.
    Lines(Option<Instant>),
    Bar(ProgressBar),
}

impl View {
    /// Shows nothing unless `wanted`.
    pub(super) fn new(wanted: bool) -> Self {
        let shows = match wanted {
            false => Shows::Nothing,
            true if std::io::stderr().is_terminal() => Shows::Bar(bar()),
            true => Shows::Lines(None),
        };
        Self {
            shows,
            looks: VecDeque::new(),
        }
    }

    /// `limiting` says what keeps the job from going faster, if that is known.
    pub(super) fn show(&mut self, record: &JobRecord, limiting: &str) {
        let settled = record.accounts.settled();
        let pace = pace(self.rate(settled), record.pending, limiting);
        match &mut self.shows {
            Shows::Nothing => {}
            Shows::Bar(bar) => {
                bar.set_length(record.accounts.total);
                bar.set_position(settled);
                bar.set_prefix(on_one_line(&pace).into_owned());
                bar.set_message(outcomes(&record.accounts));
            }
            Shows::Lines(last) if last.is_none_or(|at| at.elapsed() >= LINE) => {
                *last = Some(Instant::now());
                let summary = summary(&record.accounts);
                let line = [summary, pace].join("  ");
                tracing::info!(job.id = %record.job, "{}", line.trim_end());
            }
            Shows::Lines(_) => {}
        }
    }

    /// Recipients settled per second, over the last seconds.
    fn rate(&mut self, settled: u64) -> f64 {
        let now = Instant::now();
        self.looks.push_back((now, settled));
        while self.looks.len() > 2 && now.duration_since(self.looks[1].0) >= WINDOW {
            self.looks.pop_front();
        }
        let (since, before) = self.looks[0];
        let seconds = now.duration_since(since).as_secs_f64();
        // Two readings in quick succession give no rate.
        settled.saturating_sub(before) as f64 / seconds.max(LOOK.as_secs_f64())
    }

    /// Runs a function that prints, with the bar hidden meanwhile.
    pub(super) fn aside<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.shows {
            Shows::Bar(bar) => bar.suspend(print),
            Shows::Nothing | Shows::Lines(_) => print(),
        }
    }

    pub(super) fn end(&self) {
        if let Shows::Bar(bar) = &self.shows {
            bar.finish_and_clear();
        }
    }
}

/// A bar of two lines that fit 80 columns: the speed, and the outcomes.
fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    let template = "{bar:24} {percent:>3}%  {prefix}\n{wide_msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
    }
    bar
}

/// `1,234/s  6s left  (limit 2,500/s)`
fn pace(rate: f64, pending: u64, limiting: &str) -> String {
    if pending == 0 {
        return String::new();
    }
    let mut text = format!("{}/s", grouped(rate as u64));
    if rate >= 1.0 {
        text.push_str(&format!(
            "  {}s left",
            (pending as f64 / rate).ceil() as u64
        ));
    }
    if !limiting.is_empty() {
        text.push_str(&format!("  ({limiting})"));
    }
    text
}

/// The outcomes of a running job. Those that any job may have are always listed, so that the line
/// does not jump when the first of them occurs.
fn outcomes(accounts: &Accounts) -> String {
    let parts: Vec<_> = counted(accounts)
        .into_iter()
        .filter(|(name, count)| *count > 0 || !["expired", "cancelled", "capped"].contains(name))
        .map(|(name, count)| format!("{} {name}", grouped(count)))
        .collect();
    parts.join(", ")
}

/// The outcomes that occurred, as text.
pub(super) fn summary(accounts: &Accounts) -> String {
    let parts: Vec<_> = counted(accounts)
        .into_iter()
        .filter(|(name, count)| *count > 0 || *name == "sent")
        .map(|(name, count)| format!("{} {name}", grouped(count)))
        .collect();
    format!("{} of {}", parts.join(", "), grouped(accounts.total))
}

/// The exit code of a command that waited for a job: success if every recipient got the message,
/// now or before; with `only_dead`, if there are no dead letters.
pub(super) fn exit(accounts: &Accounts, only_dead: bool) -> Exit {
    let is_well = match only_dead {
        true => accounts.failed + accounts.uncertain == 0,
        false => accounts.sent + accounts.duplicate >= accounts.total,
    };
    match is_well {
        true => Exit::Ok,
        false => Exit::NotAll,
    }
}

/// Says on standard error where to read more about recipients that did not get the message.
pub(super) fn hint(record: &JobRecord) {
    if record.accounts.failed + record.accounts.uncertain > 0 {
        tracing::info!("fanwise dead list --job {} says why", record.job);
    }
}

fn counted(accounts: &Accounts) -> [(&'static str, u64); 8] {
    [
        ("sent", accounts.sent),
        ("duplicate", accounts.duplicate),
        ("failed", accounts.failed),
        ("uncertain", accounts.uncertain),
        ("expired", accounts.expired),
        ("cancelled", accounts.cancelled),
        ("capped", accounts.capped),
        ("pending", accounts.pending()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text beside the bar and the line under it fit a terminal of 80 columns.
    #[test]
    fn a_million_recipients_fit_80_columns() {
        let beside = pace(99_999.0, 999_999, "parked: backend says 429");
        assert_eq!(beside, "99,999/s  11s left  (parked: backend says 429)");
        let bar = 24 + " 100%  ".len();
        assert!(bar + beside.len() <= 80);
        let accounts = Accounts {
            total: 1_000_000,
            sent: 987_654,
            failed: 1_234,
            uncertain: 9,
            ..Accounts::default()
        };
        let under = outcomes(&accounts);
        assert_eq!(
            under,
            "987,654 sent, 0 duplicate, 1,234 failed, 9 uncertain, 11,103 pending"
        );
        assert!(under.len() <= 80);
    }

    #[test]
    fn the_exit_code_tells_who_did_not_get_the_message() {
        let of = |failed, uncertain, expired| Accounts {
            total: 5,
            sent: 4 - failed - uncertain - expired,
            duplicate: 1,
            failed,
            uncertain,
            expired,
            ..Accounts::default()
        };
        for (accounts, all, dead) in [
            (of(0, 0, 0), Exit::Ok, Exit::Ok),
            (of(0, 0, 1), Exit::NotAll, Exit::Ok),
            (of(1, 0, 0), Exit::NotAll, Exit::NotAll),
            (of(0, 1, 1), Exit::NotAll, Exit::NotAll),
        ] {
            assert_eq!((exit(&accounts, false), exit(&accounts, true)), (all, dead));
        }
    }

    #[test]
    fn nothing_is_left_when_nobody_is_pending() {
        assert_eq!(pace(10.0, 0, "limit 5/s"), "");
        assert_eq!(pace(0.0, 5, ""), "0/s");
    }
}
