//! The directives in force, and what they mean for one slice.

use std::collections::HashMap;
use std::time::Duration;

use super::{Action, Directive, Go, Kind, Scope, SliceControl, Subject};
use crate::domain::adapt::Climb;
use crate::domain::job_limits::{LimitKind, LimitOf};
use crate::domain::limits::Rate;
use crate::domain::schedule::look_again;

/// All current directives.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Board {
    /// By the name of the subject, one map per scope.
    directives: [HashMap<String, Vec<Directive>>; Scope::ALL.len()],
    /// The last time a job was cancelled.
    cancelled_ms: Option<u64>,
    /// The deadlines that operators set.
    deadlines_ms: Vec<u64>,
}

impl Board {
    pub fn new(directives: impl IntoIterator<Item = Directive>) -> Self {
        let mut board = Self::default();
        for directive in directives {
            board.put(directive);
        }
        board
    }

    /// Adds a directive. It replaces one of the same kind about the same subject.
    pub fn put(&mut self, directive: Directive) {
        if directive.action == Action::Cancel {
            self.cancelled_ms = self.cancelled_ms.max(Some(directive.since_ms));
        }
        if let Action::Deadline {
            expires_at_ms: Some(at),
        } = directive.action
        {
            self.deadlines_ms.push(at);
        }
        let Subject { scope, name } = &directive.subject;
        let here = self.directives[*scope as usize]
            .entry(name.clone())
            .or_default();
        let kind = directive.action.kind();
        here.retain(|it| it.action.kind() != kind);
        here.push(directive);
    }

    /// Jobs that are parked because this target answered with a configuration fault, each with the
    /// code, and with its sender if the fault may be that of the sender alone.
    pub fn parked_jobs<'a>(
        &'a self,
        target: &'a str,
        now_ms: u64,
    ) -> impl Iterator<Item = (&'a Directive, &'a str, Option<&'a str>)> {
        let jobs = self.directives[Scope::Job as usize].values().flatten();
        jobs.filter_map(move |it| match &it.action {
            Action::Park {
                target: at,
                code,
                sender,
            } if at == target && it.in_force(now_ms) => {
                Some((it, code.as_str(), sender.as_deref()))
            }
            _ => None,
        })
    }

    /// The directives in force about a subject.
    pub fn about(&self, scope: Scope, name: &str, now_ms: u64) -> impl Iterator<Item = &Directive> {
        let here = self.directives[scope as usize].get(name);
        here.into_iter()
            .flatten()
            .filter(move |directive| directive.in_force(now_ms))
    }

    pub fn find(&self, scope: Scope, name: &str, kind: Kind, now_ms: u64) -> Option<&Directive> {
        self.about(scope, name, now_ms)
            .find(|directive| directive.action.kind() == kind)
    }

    /// The jobs that are to be repaired.
    pub fn repairs(&self, now_ms: u64) -> impl Iterator<Item = &str> {
        let jobs = self.directives[Scope::Job as usize].values().flatten();
        jobs.filter(move |it| it.action == Action::Repair && it.in_force(now_ms))
            .map(|it| it.subject.name.as_str())
    }

    /// How the limit of a target climbs back, if it does.
    pub fn adapted(&self, target: &str, now_ms: u64) -> Option<Climb> {
        let directive = self.find(Scope::Target, target, Kind::Adapt, now_ms)?;
        match directive.action {
            Action::Adapt { climb } => Some(climb),
            _ => None,
        }
    }

    /// The rate that was set for a subject.
    pub fn rate_set(&self, limit: LimitOf, name: &str, now_ms: u64) -> Option<Rate> {
        let (scope, kind) = limit.subject();
        let set = self.find(scope, name, kind.directive(), now_ms)?;
        set.action.rate()
    }

    /// The rate that applies to a subject: the one that was set, or else the configured one, or
    /// the part of it that a target has left.
    pub fn rate(
        &self,
        limit: LimitOf,
        name: &str,
        configured: Option<Rate>,
        now_ms: u64,
    ) -> Option<Rate> {
        let rate = self.rate_set(limit, name, now_ms).or(configured)?;
        let climb = (limit == LimitOf::Target).then(|| self.adapted(name, now_ms));
        Some(match climb.flatten() {
            Some(climb) => climb.rate(rate, now_ms),
            None => rate,
        })
    }

    /// All directives in force, in the order of scopes.
    pub fn all(&self, now_ms: u64) -> impl Iterator<Item = &Directive> {
        self.directives
            .iter()
            .flat_map(HashMap::values)
            .flatten()
            .filter(move |directive| directive.in_force(now_ms))
    }

    /// How long ago a job was last cancelled, or a deadline that an operator set has passed.
    pub fn last_end(&self, now_ms: u64) -> Option<Duration> {
        let passed = self.deadlines_ms.iter().copied();
        let passed = passed.filter(|at| *at <= now_ms).max();
        let at = self.cancelled_ms.max(passed)?;
        Some(Duration::from_millis(now_ms.saturating_sub(at)))
    }

    /// How long until the next deadline that an operator set.
    pub fn next_deadline(&self, now_ms: u64) -> Option<Duration> {
        let to_come = self.deadlines_ms.iter().copied();
        let next = to_come.filter(|at| *at > now_ms).min()?;
        Some(Duration::from_millis(next - now_ms))
    }

    /// What a slice of this target, app and job must do.
    ///
    /// A cancelled job ends even while the job, its app or its target is paused. Each pause holds
    /// the slice, and the most recent one determines when to look again.
    pub fn control(&self, names: [&str; 3], now_ms: u64) -> SliceControl {
        let mut control = SliceControl::default();
        let mut pauses = Pauses::default();
        let mut cancelled = false;
        for (scope, name) in Scope::ALL.iter().copied().zip(names) {
            for directive in self.about(scope, name, now_ms) {
                match &directive.action {
                    Action::Pause | Action::Park { .. } => pauses.add(directive),
                    Action::Cancel => cancelled = true,
                    Action::Rate { rate } => control.set(scope, LimitKind::Main, *rate),
                    Action::DailyRate { rate } => control.set(scope, LimitKind::Daily, *rate),
                    Action::SenderRate { rate } => control.set(scope, LimitKind::Sender, *rate),
                    Action::Adapt { climb } => control.adapted = Some(*climb),
                    Action::Priority { priority } => control.priority = Some(*priority),
                    Action::Schedule { not_before_ms } => {
                        control.not_before_ms = Some(*not_before_ms);
                    }
                    Action::Deadline { expires_at_ms } => {
                        control.expires_at_ms = Some(*expires_at_ms);
                    }
                    Action::Pace { pace_until_ms } => {
                        control.pace_until_ms = Some(*pace_until_ms);
                    }
                    // It asks for a look at the slice, and changes nothing of it.
                    Action::Repair => {}
                }
            }
        }
        control.go = if cancelled {
            Go::Cancelled
        } else {
            pauses.look_again(now_ms).map_or(Go::On, Go::Wait)
        };
        control
    }
}

/// The pauses that hold one slice.
#[derive(Default)]
struct Pauses {
    youngest_ms: Option<u64>,
    /// The latest end of the pauses that have one.
    until_ms: Option<u64>,
    endless: bool,
}

impl Pauses {
    fn add(&mut self, pause: &Directive) {
        self.youngest_ms = self.youngest_ms.max(Some(pause.since_ms));
        self.until_ms = self.until_ms.max(pause.until_ms);
        self.endless |= pause.until_ms.is_none();
    }

    fn look_again(&self, now_ms: u64) -> Option<Duration> {
        let age = Duration::from_millis(now_ms.saturating_sub(self.youngest_ms?));
        let left = match self.until_ms {
            Some(until) if !self.endless => Duration::from_millis(until.saturating_sub(now_ms)),
            _ => Duration::MAX,
        };
        Some(look_again(age).min(left))
    }
}
