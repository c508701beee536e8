//! Why a job does not move, or not faster.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Facts, board};
use crate::domain::directive::{Board, Directive, Kind, Scope};
use crate::domain::limits::Rate;
use crate::ports::{JobRecord, JobState, LedgerError, Park};
use crate::worker::{Store, rfc3339};

/// One thing that keeps a job from going on, or from going faster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hindrance {
    pub cause: Cause,
    /// Who, what and why.
    pub what: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    use crate::domain::directive::{Action, Subject};
    use crate::domain::ids::JobId;
    use crate::domain::pace::Pace;
    use crate::domain::slice::Shape;
    use crate::ports::ParkReason;
    use crate::steer::tests::facts;

    const NOW: u64 = 1_000_000;

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
            warnings: Vec::new(),
            rate: None,
            not_before_ms: None,
            callback_url: None,
            reply_to: None,
            pace: Pace::default(),
            template: None,
            shape: Shape { buckets: 1 },
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
}
