//! Reports about targets and limits: the configuration, together with directives and parked
//! targets.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Facts, TargetFacts, board};
use crate::clock::rfc3339;
use crate::domain::directive::{Action, Board, Directive, Kind, Scope, Subject};
use crate::domain::job_limits::{LimitKind, LimitOf};
use crate::domain::limits::{Rate, Weight};
use crate::domain::moment;
use crate::ports::{LedgerError, Limit, Park, ParkReason, Store};

/// A directive as it is reported: the stores keep its times in another form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Directive")]
pub struct DirectiveView {
    #[serde(flatten)]
    pub subject: Subject,
    #[serde(flatten)]
    pub action: Action,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    #[serde(rename = "since", alias = "since_ms", with = "moment")]
    #[schemars(with = "String")]
    pub since_ms: u64,
    /// When it expires, if it does.
    #[serde(
        rename = "until",
        alias = "until_ms",
        with = "moment::optional",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub until_ms: Option<u64>,
}

impl From<Directive> for DirectiveView {
    fn from(it: Directive) -> Self {
        Self {
            subject: it.subject,
            action: it.action,
            reason: it.reason,
            author: it.author,
            since_ms: it.since_ms,
            until_ms: it.until_ms,
        }
    }
}

impl From<DirectiveView> for Directive {
    fn from(it: DirectiveView) -> Self {
        Self {
            subject: it.subject,
            action: it.action,
            reason: it.reason,
            author: it.author,
            since_ms: it.since_ms,
            until_ms: it.until_ms,
        }
    }
}

impl fmt::Display for DirectiveView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Directive::from(self.clone()).fmt(f)
    }
}

/// A parked target as it is reported: the stores keep its times in another form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Park")]
pub struct ParkView {
    #[serde(rename = "since", alias = "since_ms", with = "moment")]
    #[schemars(with = "String")]
    pub since_ms: u64,
    #[serde(rename = "until", alias = "until_ms", with = "moment")]
    #[schemars(with = "String")]
    pub until_ms: u64,
    pub reason: ParkReason,
    /// The code of the answer that caused it; empty if an operator parked it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub code: String,
    /// The backend's text, or the operator's name and reason.
    pub text: String,
}

impl From<Park> for ParkView {
    fn from(it: Park) -> Self {
        Self {
            since_ms: it.since_ms,
            until_ms: it.until_ms,
            reason: it.reason,
            code: it.code,
            text: it.text,
        }
    }
}

impl From<ParkView> for Park {
    fn from(it: ParkView) -> Self {
        Self {
            since_ms: it.since_ms,
            until_ms: it.until_ms,
            reason: it.reason,
            code: it.code,
            text: it.text,
        }
    }
}

impl fmt::Display for ParkView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Park::from(self.clone()).fmt(f)
    }
}

/// One target as it is reported.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TargetView {
    pub name: String,
    #[serde(flatten)]
    pub facts: TargetFacts,
    pub state: TargetState,
    /// The rate that replaces the configured one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live_limit: Option<DirectiveView>,
    /// The part of the limit that applies while it climbs back, after the target throttled us or
    /// was parked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapted_limit: Option<Rate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<DirectiveView>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parked: Option<ParkView>,
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
        let pause = self.paused.as_ref().map(DirectiveView::to_string);
        let park = self.parked.as_ref().map(ParkView::to_string);
        let reasons = [pause, park].into_iter().flatten();
        reasons.collect::<Vec<_>>().join("; ")
    }

    /// The limit, and how much of it applies.
    pub fn limit_text(&self) -> String {
        let Some(limit) = self.limit() else {
            return "none".to_owned();
        };
        let live = if self.live_limit.is_some() {
            " (live)"
        } else {
            ""
        };
        match self.adapted_limit {
            Some(adapted) => format!("adapted: {} of {}{live}", adapted.short(), limit.short()),
            None => format!("{limit}{live}"),
        }
    }

    /// The rate that was set, or else the configured one.
    pub fn limit(&self) -> Option<Rate> {
        rate_of(self.live_limit.as_ref()).or(self.facts.limit)
    }
}

fn rate_of(directive: Option<&DirectiveView>) -> Option<Rate> {
    directive?.action.rate()
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
        let find = |kind| {
            let found = board.find(Scope::Target, name, kind, now_ms);
            found.cloned().map(DirectiveView::from)
        };
        let (paused, parked) = (find(Kind::Pause), parked.remove(name).map(ParkView::from));
        let state = match (&paused, &parked) {
            (Some(_), _) => TargetState::Paused,
            (None, Some(_)) => TargetState::Parked,
            (None, None) => TargetState::Moving,
        };
        TargetView {
            name: name.clone(),
            facts: facts.clone(),
            state,
            adapted_limit: board
                .adapted(name, now_ms)
                .and_then(|_| board.rate(LimitOf::Target, name, facts.limit, now_ms)),
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
    /// Which of its limits it is: the main one, the one a day, or that of each of its senders.
    #[serde(default, skip_serializing_if = "LimitKind::is_main")]
    pub kind: LimitKind,
    /// The configured limit; empty for jobs, whose own limit the job carries.
    pub configured: Option<Rate>,
    /// The directive that replaces it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<DirectiveView>,
    /// The part of it that applies while it climbs back, after the target throttled us or was parked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapted: Option<Rate>,
    /// The share of its burst that is booked now: from 1 on, the next unit has to wait. Not known of
    /// senders, each of whom has a limit of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booked: Option<f64>,
}

impl LimitView {
    /// The rate that was set, or else the configured one.
    pub fn limit(&self) -> Option<Rate> {
        rate_of(self.live.as_ref()).or(self.configured)
    }
}

/// The limits of all targets and apps, the shared ones, and those of jobs that have a live one. Of
/// the further limits of a target or an app, those that there are.
pub async fn limits<S: Store>(
    store: &S,
    facts: &Facts,
    now_ms: u64,
) -> Result<Vec<LimitView>, LedgerError> {
    let board = board(store).await?;
    let mut rows = rows(facts, &board, now_ms);
    let in_use = rows.iter().enumerate().filter_map(|(at, (limit, view))| {
        let rate = view.adapted.or(view.limit())?;
        let limit = Limit {
            scope: limit.scope(),
            name: &view.subject.name,
            rate,
            cost: rate.cost.unwrap_or(limit.scope().usual_cost()),
            weight: Weight::ONE,
        };
        (view.kind != LimitKind::Sender).then_some((at, limit))
    });
    let (places, in_use): (Vec<_>, Vec<_>) = in_use.unzip();
    let booked = store.booked(&in_use).await?;
    for (at, booked) in places.into_iter().zip(booked) {
        rows[at].1.booked = Some(booked);
    }
    Ok(rows.into_iter().map(|(_, view)| view).collect())
}

fn rows(facts: &Facts, board: &Board, now_ms: u64) -> Vec<(LimitOf, LimitView)> {
    let row = |limit: LimitOf, name: &str, configured: Option<Rate>| {
        let (scope, kind) = limit.subject();
        let live = board.find(scope, name, kind.directive(), now_ms).cloned();
        let adapted = (limit == LimitOf::Target).then(|| board.adapted(name, now_ms));
        let adapted = adapted.flatten();
        let view = LimitView {
            subject: Subject::new(scope, name),
            kind,
            configured,
            live: live.map(DirectiveView::from),
            adapted: adapted.and_then(|_| board.rate(limit, name, configured, now_ms)),
            booked: None,
        };
        (limit, view)
    };
    let is_there = |(_, view): &(LimitOf, LimitView)| view.kind.is_main() || view.limit().is_some();
    let targets = facts.targets.iter().flat_map(|(name, target)| {
        [
            row(LimitOf::Target, name, target.limit),
            row(LimitOf::TargetDaily, name, target.daily_limit),
            row(LimitOf::Sender, name, target.sender_limit),
        ]
    });
    let shared = facts.shared_limits.iter();
    let shared = shared.map(|(name, rate)| row(LimitOf::Shared, name, Some(*rate)));
    let apps = facts.apps.iter().flat_map(|(name, limit)| {
        let daily = facts.daily_limits.get(name).copied();
        [
            row(LimitOf::App, name, *limit),
            row(LimitOf::AppDaily, name, daily),
        ]
    });
    let mut jobs: Vec<_> = board
        .all(now_ms)
        .filter(|it| it.subject.scope == Scope::Job && it.action.kind() == Kind::Rate)
        .map(|it| row(LimitOf::Job, &it.subject.name, None))
        .collect();
    jobs.sort_by(|(_, a), (_, b)| a.subject.cmp(&b.subject));
    let all = targets.chain(shared).chain(apps).chain(jobs);
    all.filter(is_there).collect()
}
