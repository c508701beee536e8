//! Reports about targets and limits: the configuration, together with directives and parked
//! targets.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Facts, TargetFacts, board};
use crate::clock::rfc3339;
use crate::domain::directive::{Action, Directive, Kind, Scope, Subject};
use crate::domain::limits::Rate;
use crate::ports::{Directives, LedgerError, Park, Store};

/// One target as it is reported.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TargetView {
    pub name: String,
    #[serde(flatten)]
    pub facts: TargetFacts,
    pub state: TargetState,
    /// The rate that replaces the configured one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live_limit: Option<Directive>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<Directive>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parked: Option<Park>,
}

/// The state of a target. If it is paused and parked, it is reported as paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

    /// Why it does not move; empty if it moves.
    pub fn why(&self) -> String {
        let pause = self.paused.as_ref().map(Directive::to_string);
        let park = self.parked.as_ref().map(Park::to_string);
        let reasons = [pause, park].into_iter().flatten();
        reasons.collect::<Vec<_>>().join("; ")
    }

    /// The rate in force.
    pub fn limit(&self) -> Option<Rate> {
        rate_of(self.live_limit.as_ref()).or(self.facts.limit)
    }
}

fn rate_of(directive: Option<&Directive>) -> Option<Rate> {
    match directive?.action {
        Action::Rate { rate } => Some(rate),
        Action::Pause | Action::Cancel | Action::Park { .. } => None,
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

/// One limit as it is reported.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct LimitView {
    #[serde(flatten)]
    pub subject: Subject,
    /// The configured limit; empty for jobs, whose own limit the job carries.
    pub configured: Option<Rate>,
    /// The directive that replaces it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<Directive>,
}

impl LimitView {
    /// The rate in force.
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
