//! Steering: what an operator may tell running work, what is told about targets and limits, and why a
//! job does not move.
//!
//! The commands and the HTTP interface both come here, so there is one set of rules. Whatever is told
//! stands in the store; workers look there twice a second.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::directive::{Action, Board, Directive, Kind, Scope, Subject};
use crate::domain::fields::suggestion;
use crate::domain::ids::JobId;
use crate::domain::limits::Rate;
use crate::domain::outcome::OnUncertain;
use crate::ports::{Directives, JobRecord, JobState, LedgerError, Park, ParkReason};
use crate::worker::{Store, rfc3339};

/// What the configuration says of those who can be steered.
#[derive(Clone, Debug)]
pub struct Facts {
    pub targets: BTreeMap<String, TargetFacts>,
    /// Apps with their limits.
    pub apps: BTreeMap<String, Option<Rate>>,
    /// How long a cancelled job is remembered as such.
    pub dedup_window: Duration,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TargetFacts {
    /// The IM system.
    #[serde(rename = "type")]
    pub system: String,
    /// `host:port`, where its URL names them plainly.
    pub address: Option<String>,
    /// As it is configured.
    pub limit: Option<Rate>,
    pub recipients_per_call: usize,
    pub on_uncertain: OnUncertain,
}

/// One thing to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    Pause(Subject),
    /// Ends a pause.
    Resume(Subject),
    Cancel(JobId),
    /// Another rate, or the configured one again.
    Rate(Subject, Option<Rate>),
    Park(String),
    Unpark(String),
}

impl Command {
    pub fn subject(&self) -> Subject {
        match self {
            Self::Pause(subject) | Self::Resume(subject) | Self::Rate(subject, _) => {
                subject.clone()
            }
            Self::Cancel(job) => Subject::new(Scope::Job, job.to_string()),
            Self::Park(target) | Self::Unpark(target) => Subject::new(Scope::Target, target),
        }
    }

    /// As in a path: `POST /v1/jobs/{id}:pause`.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Pause(_) => "pause",
            Self::Resume(_) => "resume",
            Self::Cancel(_) => "cancel",
            Self::Rate(..) => "rate",
            Self::Park(_) => "park",
            Self::Unpark(_) => "unpark",
        }
    }
}

/// Who says so, why, and for how long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub reason: Option<String>,
    pub author: Option<String>,
    pub expires_in: Option<Duration>,
}

/// What stands after a command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Steered {
    #[serde(flatten)]
    pub subject: Subject,
    /// False when it was as it should be: nothing was paused, parked or set that could be ended.
    pub changed: bool,
    pub directives: Vec<Directive>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parked: Option<Park>,
}

#[derive(Debug, thiserror::Error)]
pub enum SteerError {
    #[error("{0}")]
    Unknown(String),
    /// It is known, and it is too late for this.
    #[error("{0}")]
    TooLate(String),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// How long somebody parks a target who does not say.
const PARK_DEFAULT: Duration = Duration::from_secs(600);

/// Does what a command says, and returns what stands then.
pub async fn carry_out<S: Store>(
    store: &S,
    facts: &Facts,
    command: &Command,
    told: &Told,
    now_ms: u64,
) -> Result<Steered, SteerError> {
    let subject = command.subject();
    let before = board(store).await?;
    check(store, facts, command, &before, now_ms).await?;
    let directive = |action, until_ms| Directive {
        subject: subject.clone(),
        action,
        reason: told.reason.clone(),
        author: told.author.clone(),
        since_ms: now_ms,
        until_ms,
    };
    let after = |wait: Duration| now_ms.saturating_add(wait.as_millis() as u64);
    let until_ms = told.expires_in.map(after);
    let changed = match command {
        Command::Pause(_) => {
            store.direct(&directive(Action::Pause, until_ms)).await?;
            true
        }
        Command::Cancel(_) => {
            // For good: what is known of the job ends with the dedup window, and so may this.
            let until_ms = after(facts.dedup_window);
            let cancel = directive(Action::Cancel, Some(until_ms));
            store.direct(&cancel).await?;
            true
        }
        Command::Rate(_, Some(rate)) => {
            let rate = Action::Rate { rate: *rate };
            store.direct(&directive(rate, until_ms)).await?;
            true
        }
        Command::Resume(_) => store.lift(&subject, Kind::Pause).await?,
        Command::Rate(_, None) => store.lift(&subject, Kind::Rate).await?,
        Command::Park(target) => {
            let park = Park {
                since_ms: now_ms,
                until_ms: after(told.expires_in.unwrap_or(PARK_DEFAULT)),
                reason: ParkReason::Operator,
                code: String::new(),
                text: by(told),
            };
            store.park(target, &park).await?;
            true
        }
        Command::Unpark(target) => {
            let parked = park_of(store, &subject).await?.is_some();
            store.unpark(target).await?;
            parked
        }
    };
    let directives = board(store).await?;
    let directives = directives.about(subject.scope, &subject.name, now_ms);
    Ok(Steered {
        changed,
        directives: directives.cloned().collect(),
        parked: park_of(store, &subject).await?,
        subject,
    })
}

/// `ana: backend is being moved`
fn by(told: &Told) -> String {
    let parts = [&told.author, &told.reason].into_iter().flatten();
    parts.cloned().collect::<Vec<_>>().join(": ")
}

/// Whether there is what the command is about, and whether it can still be done.
async fn check<S: Store>(
    store: &S,
    facts: &Facts,
    command: &Command,
    board: &Board,
    now_ms: u64,
) -> Result<(), SteerError> {
    let Subject { scope, name } = command.subject();
    match scope {
        Scope::Target => known("target", &name, facts.targets.keys()),
        Scope::App => known("app", &name, facts.apps.keys()),
        Scope::Job => {
            let id: Result<JobId, _> = name.parse();
            let id = id.map_err(|error| SteerError::Unknown(error.to_string()))?;
            let record = store.job(id).await?.ok_or_else(|| {
                SteerError::Unknown(format!(
                    "there is no job {id}: not accepted yet, rejected, or older than the dedup window"
                ))
            })?;
            if record.state == JobState::Completed {
                return Err(SteerError::TooLate(format!("job {id} is completed")));
            }
            let cancelled = board.find(Scope::Job, &name, Kind::Cancel, now_ms);
            match cancelled.filter(|_| !matches!(command, Command::Cancel(_))) {
                Some(cancelled) => Err(SteerError::TooLate(format!("job {id} was {cancelled}"))),
                None => Ok(()),
            }
        }
    }
}

fn known<'a>(
    what: &str,
    name: &str,
    names: impl Iterator<Item = &'a String> + Clone,
) -> Result<(), SteerError> {
    if names.clone().any(|known| known == name) {
        return Ok(());
    }
    let hint = suggestion(name, names.clone().map(String::as_str))
        .map(|close| format!("; did you mean {close:?}?"))
        .unwrap_or_default();
    let names: Vec<_> = names.map(String::as_str).collect();
    Err(SteerError::Unknown(format!(
        "there is no {what} {name:?}{hint} There are: {}",
        names.join(", ")
    )))
}

/// All directives that stand.
pub async fn board(store: &impl Directives) -> Result<Board, LedgerError> {
    let directed = store.directives(0).await?.unwrap_or_default();
    Ok(Board::new(directed.all))
}

async fn park_of<S: Store>(store: &S, subject: &Subject) -> Result<Option<Park>, LedgerError> {
    if subject.scope != Scope::Target {
        return Ok(None);
    }
    let parked = store.parked(std::slice::from_ref(&subject.name)).await?;
    Ok(parked.into_iter().next().map(|(_, park)| park))
}

// ---------------------------------------------------------------------------------------------
// Targets and limits
// ---------------------------------------------------------------------------------------------

/// One target as it is told to people.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TargetView {
    pub name: String,
    #[serde(flatten)]
    pub facts: TargetFacts,
    pub state: TargetState,
    /// The rate that counts instead of the configured one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live_limit: Option<Directive>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<Directive>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parked: Option<Park>,
}

/// What a target does. Who paused one that is parked too has the last word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetState {
    Moving,
    Parked,
    Paused,
}

impl TargetView {
    /// `moving`, `parked until …` or `paused`, with an end if there is one.
    pub fn state_text(&self) -> String {
        let until = |ms: Option<u64>| ms.map(|ms| format!(" until {}", rfc3339(ms)));
        match (&self.paused, &self.parked) {
            (Some(pause), _) => format!("paused{}", until(pause.until_ms).unwrap_or_default()),
            (None, Some(park)) => {
                format!("parked{}", until(Some(park.until_ms)).unwrap_or_default())
            }
            (None, None) => "moving".to_owned(),
        }
    }

    /// Why it does not move: empty when it does.
    pub fn why(&self) -> String {
        let pause = self.paused.as_ref().map(Directive::to_string);
        let park = self.parked.as_ref().map(Park::to_string);
        let reasons = [pause, park].into_iter().flatten();
        reasons.collect::<Vec<_>>().join("; ")
    }

    /// The rate that counts.
    pub fn limit(&self) -> Option<Rate> {
        rate_of(self.live_limit.as_ref()).or(self.facts.limit)
    }
}

fn rate_of(directive: Option<&Directive>) -> Option<Rate> {
    match directive?.action {
        Action::Rate { rate } => Some(rate),
        Action::Pause | Action::Cancel => None,
    }
}

/// All targets, by name.
pub async fn targets<S: Store>(
    store: &S,
    facts: &Facts,
    now_ms: u64,
) -> Result<Vec<TargetView>, LedgerError> {
    let board = board(store).await?;
    let names: Vec<String> = facts.targets.keys().cloned().collect();
    let mut parked: BTreeMap<_, _> = store.parked(&names).await?.into_iter().collect();
    let views = facts.targets.iter().map(|(name, facts)| {
        let find = |kind| board.find(Scope::Target, name, kind, now_ms).cloned();
        let (paused, parked) = (find(Kind::Pause), parked.remove(name));
        let state = match (&paused, &parked) {
            (Some(_), _) => TargetState::Paused,
            (None, Some(_)) => TargetState::Parked,
            (None, None) => TargetState::Moving,
        };
        TargetView {
            name: name.clone(),
            facts: facts.clone(),
            state,
            live_limit: find(Kind::Rate),
            paused,
            parked,
        }
    });
    Ok(views.collect())
}

/// One limit as it is told to people.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LimitView {
    #[serde(flatten)]
    pub subject: Subject,
    /// As it is configured; of jobs the job itself says it.
    pub configured: Option<Rate>,
    /// What counts instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<Directive>,
}

impl LimitView {
    /// The rate that counts.
    pub fn limit(&self) -> Option<Rate> {
        rate_of(self.live.as_ref()).or(self.configured)
    }
}

/// The limits of all targets and apps, and of the jobs that have a live one.
pub async fn limits(
    store: &impl Directives,
    facts: &Facts,
    now_ms: u64,
) -> Result<Vec<LimitView>, LedgerError> {
    let board = board(store).await?;
    let view = |scope, name: &String, configured| LimitView {
        live: board.find(scope, name, Kind::Rate, now_ms).cloned(),
        subject: Subject::new(scope, name),
        configured,
    };
    let targets = facts.targets.iter();
    let targets = targets.map(|(name, facts)| view(Scope::Target, name, facts.limit));
    let apps = facts.apps.iter();
    let apps = apps.map(|(name, limit)| view(Scope::App, name, *limit));
    let mut jobs: Vec<_> = board
        .all(now_ms)
        .filter(|it| it.subject.scope == Scope::Job && it.action.kind() == Kind::Rate)
        .map(|it| view(Scope::Job, &it.subject.name, None))
        .collect();
    jobs.sort_by(|a, b| a.subject.cmp(&b.subject));
    Ok(targets.chain(apps).chain(jobs).collect())
}

// ---------------------------------------------------------------------------------------------
// Why a job does not move
// ---------------------------------------------------------------------------------------------

/// One thing that keeps a job from going on, or from going faster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hindrance {
    pub cause: Cause,
    /// Who, what and why.
    pub what: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    Cancelled,
    Scheduled,
    Paused,
    Parked,
    /// It moves, no faster than a rate lets it.
    Limited,
}

/// What keeps a job, with what its own order says: when it may start, and its own limit.
pub async fn hindrances<S: Store>(
    store: &S,
    facts: &Facts,
    record: &JobRecord,
    own: Own,
    now_ms: u64,
) -> Result<Vec<Hindrance>, LedgerError> {
    if record.state == JobState::Completed {
        return Ok(Vec::new());
    }
    let board = board(store).await?;
    let parked = store.parked(std::slice::from_ref(&record.target)).await?;
    let park = parked.first().map(|(_, park)| park);
    Ok(Situation {
        board: &board,
        park,
        facts,
        record,
        own,
        now_ms,
    }
    .hindrances())
}

/// What a job says of itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Own {
    pub not_before_ms: Option<u64>,
    pub rate: Option<Rate>,
}

struct Situation<'a> {
    board: &'a Board,
    park: Option<&'a Park>,
    facts: &'a Facts,
    record: &'a JobRecord,
    own: Own,
    now_ms: u64,
}

impl Situation<'_> {
    /// What stops the job, or else what slows it down.
    fn hindrances(&self) -> Vec<Hindrance> {
        let job = self.record.job.to_string();
        let names = [&self.record.target, &self.record.app, &job];
        let subjects = || Scope::ALL.into_iter().zip(names);
        if let Some(cancel) = self.find(Scope::Job, &job, Kind::Cancel) {
            let what = format!("job {cancel}; calls under way are waited for");
            return vec![Hindrance {
                cause: Cause::Cancelled,
                what,
            }];
        }
        let mut found = Vec::new();
        for (scope, name) in subjects() {
            if let Some(pause) = self.find(scope, name, Kind::Pause) {
                let what = format!("{} {pause}{}", about(scope, name), until(pause.until_ms));
                let cause = Cause::Paused;
                found.push(Hindrance { cause, what });
            }
        }
        if let Some(park) = self.park.filter(|park| park.until_ms > self.now_ms) {
            let until = until(Some(park.until_ms));
            let what = format!("target {} is parked{until}: {park}", self.record.target);
            let cause = Cause::Parked;
            found.push(Hindrance { cause, what });
        }
        if let Some(at) = self.own.not_before_ms.filter(|at| *at > self.now_ms) {
            let what = format!("not to be sent before {}", rfc3339(at));
            let cause = Cause::Scheduled;
            found.push(Hindrance { cause, what });
        }
        if found.is_empty() {
            let limits = subjects().filter_map(|(scope, name)| self.limited(scope, name));
            found.extend(limits);
        }
        found
    }

    fn find(&self, scope: Scope, name: &str, kind: Kind) -> Option<&Directive> {
        self.board.find(scope, name, kind, self.now_ms)
    }

    fn limited(&self, scope: Scope, name: &str) -> Option<Hindrance> {
        let configured = match scope {
            Scope::Target => self.facts.targets.get(name).and_then(|it| it.limit),
            Scope::App => self.facts.apps.get(name).copied().flatten(),
            Scope::Job => self.own.rate,
        };
        let cause = Cause::Limited;
        let what = match (self.find(scope, name, Kind::Rate), configured) {
            (Some(live), _) => format!("{} {live}{}", about(scope, name), until(live.until_ms)),
            (None, Some(rate)) => format!("{} has the limit {rate}", about(scope, name)),
            (None, None) => return None,
        };
        Some(Hindrance { cause, what })
    }
}

/// A job is named above already.
fn about(scope: Scope, name: &str) -> String {
    match scope {
        Scope::Job => "job".to_owned(),
        Scope::Target | Scope::App => format!("{} {name}", scope.as_str()),
    }
}

fn until(ms: Option<u64>) -> String {
    ms.map(|ms| format!(" until {}", rfc3339(ms)))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::accounts::Accounts;
    use crate::domain::slice::Shape;

    const NOW: u64 = 1_000_000;

    fn facts() -> Facts {
        let im = TargetFacts {
            system: "wukongim".to_owned(),
            address: None,
            limit: Some("100/s".parse().unwrap()),
            recipients_per_call: 1,
            on_uncertain: OnUncertain::Retry,
        };
        Facts {
            targets: [("im".to_owned(), im)].into(),
            apps: [("shop".to_owned(), None)].into(),
            dedup_window: Duration::from_secs(3600),
        }
    }

    fn record() -> JobRecord {
        JobRecord {
            job: JobId::of("shop", "k"),
            app: "shop".to_owned(),
            client_msg_no: "k".to_owned(),
            target: "im".to_owned(),
            state: JobState::Running,
            accounts: Accounts::default(),
            pending: 1,
            accepted_at_ms: NOW,
            content_digest: String::new(),
            progress_at_ms: None,
            completed_at_ms: None,
            rebuilt: false,
            submissions: 1,
            shape: Shape {
                buckets: 1,
                partitions: 1,
            },
        }
    }

    fn directive(subject: Subject, action: Action) -> Directive {
        Directive {
            subject,
            action,
            reason: Some("wrong picture".to_owned()),
            author: Some("ana".to_owned()),
            since_ms: NOW,
            until_ms: None,
        }
    }

    fn causes(directives: Vec<Directive>, park: Option<&Park>, own: Own) -> Vec<(Cause, String)> {
        let situation = Situation {
            board: &Board::new(directives),
            park,
            facts: &facts(),
            record: &record(),
            own,
            now_ms: NOW,
        };
        let found = situation.hindrances().into_iter();
        found.map(|it| (it.cause, it.what)).collect()
    }

    #[test]
    fn a_job_says_all_that_stops_it_and_else_what_slows_it_down() {
        let own = Own {
            not_before_ms: Some(NOW + 60_000),
            rate: Some("5/s".parse().unwrap()),
        };
        let park = Park {
            since_ms: NOW,
            until_ms: NOW + 1000,
            reason: ParkReason::Config,
            code: "401".to_owned(),
            text: "token is wrong".to_owned(),
        };
        let app = directive(Subject::new(Scope::App, "shop"), Action::Pause);
        let found = causes(vec![app], Some(&park), own);
        let expected = [
            (Cause::Paused, "app shop paused by ana: wrong picture"),
            (
                Cause::Parked,
                "target im is parked until 1970-01-01T00:16:41Z: config 401: token is wrong",
            ),
            (
                Cause::Scheduled,
                "not to be sent before 1970-01-01T00:17:40Z",
            ),
        ];
        assert_eq!(
            found,
            expected.map(|(cause, what)| (cause, what.to_owned()))
        );
        let own = Own {
            not_before_ms: Some(NOW),
            ..own
        };
        let job = Subject::new(Scope::Job, record().job.to_string());
        let rate = Action::Rate {
            rate: "7/s".parse().unwrap(),
        };
        let found = causes(vec![directive(job, rate)], None, own);
        let expected = [
            (Cause::Limited, "target im has the limit 100/s burst 20"),
            (
                Cause::Limited,
                "job rate set to 7/s burst 1 by ana: wrong picture",
            ),
        ];
        assert_eq!(
            found,
            expected.map(|(cause, what)| (cause, what.to_owned()))
        );
    }

    #[test]
    fn a_cancelled_job_says_only_that() {
        let job = Subject::new(Scope::Job, record().job.to_string());
        let directives = vec![
            directive(job.clone(), Action::Cancel),
            directive(job, Action::Pause),
        ];
        let found = causes(directives, None, Own::default());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, Cause::Cancelled);
    }

    #[test]
    fn a_name_that_is_not_known_is_refused_with_those_that_are() {
        let error = known("target", "imm", facts().targets.keys()).unwrap_err();
        let text = "there is no target \"imm\"; did you mean \"im\"? There are: im";
        assert_eq!(error.to_string(), text);
    }
}
