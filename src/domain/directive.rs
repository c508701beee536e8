//! Directives tell running work what to do. An operator can pause, cancel or re-rate a job, and
//! pause or re-rate an app or a target. Workers use one more kind among themselves: a job is parked
//! because its target reported a configuration fault.
//!
//! A subject has at most one directive of each kind. A new one replaces it, and it ends when it is
//! lifted or expires. `Board` holds all directives and derives one `SliceControl` for a slice. A
//! worker reads it before each window of calls, which costs three look-ups.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantArray};

use super::adapt::Climb;
use super::job_limits::{LimitKind, LimitOf, Rates};
use super::lane::Priority;
use super::limits::Rate;
use super::moment;
use super::schedule::look_again;
use super::slice::Head;

/// The kind of object that a limit or directive applies to.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
    IntoStaticStr,
    VariantArray,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Scope {
    Target,
    App,
    Job,
    /// A limit that several targets have together. It has directives about its rate alone.
    Shared,
}

impl Scope {
    pub const ALL: &'static [Self] = Self::VARIANTS;

    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// One target, app, job or shared limit. A job is named by its id.
#[derive(
    Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct Subject {
    pub scope: Scope,
    pub name: String,
}

impl Subject {
    pub fn new(scope: Scope, name: impl Into<String>) -> Self {
        Self {
            scope,
            name: name.into(),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.scope.as_str(), self.name)
    }
}

/// The action of a directive.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// Nothing is sent until the directive ends.
    Pause,
    /// Recipients without an outcome end `cancelled`. For jobs only.
    Cancel,
    /// This rate replaces the configured one.
    Rate { rate: Rate },
    /// It replaces the second limit of a target or an app, a day.
    DailyRate { rate: Rate },
    /// It replaces the limit of each sender of a target.
    SenderRate { rate: Rate },
    /// The target of the job answered with a configuration fault. Nothing is sent until the
    /// directive ends, and no recipient fails because of the fault. For jobs only, and set by
    /// workers.
    Park {
        target: String,
        code: String,
        /// The sender of the job, if the fault may be that of the sender alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sender: Option<String>,
    },
    /// The limit applies in part and climbs back, because the target throttled us or was parked.
    /// For targets only, and set by workers.
    Adapt {
        #[serde(flatten)]
        climb: Climb,
    },
    /// This priority replaces the job's own. For jobs only.
    Priority { priority: Priority },
    /// The job starts at this time instead of its own. For jobs only.
    Schedule {
        #[serde(rename = "not_before", with = "moment")]
        #[schemars(with = "String")]
        not_before_ms: u64,
    },
    /// The job expires at this time instead of its own; never if there is none. For jobs only.
    Deadline {
        #[serde(
            rename = "expires_at",
            with = "moment::optional",
            default,
            skip_serializing_if = "Option::is_none"
        )]
        #[schemars(with = "Option<String>")]
        expires_at_ms: Option<u64>,
    },
    /// Workers look for what is left of the job, and end it if they find nothing. For jobs only.
    Repair,
}

impl Action {
    /// The action that sets a limit.
    pub fn limit(kind: LimitKind, rate: Rate) -> Self {
        match kind {
            LimitKind::Main => Self::Rate { rate },
            LimitKind::Daily => Self::DailyRate { rate },
            LimitKind::Sender => Self::SenderRate { rate },
        }
    }

    /// The rate that it sets.
    pub fn rate(&self) -> Option<Rate> {
        match self {
            Self::Rate { rate } | Self::DailyRate { rate } | Self::SenderRate { rate } => {
                Some(*rate)
            }
            _ => None,
        }
    }

    pub fn kind(&self) -> Kind {
        match self {
            Self::Pause => Kind::Pause,
            Self::Cancel => Kind::Cancel,
            Self::Rate { .. } => Kind::Rate,
            Self::DailyRate { .. } => Kind::DailyRate,
            Self::SenderRate { .. } => Kind::SenderRate,
            Self::Park { .. } => Kind::Park,
            Self::Adapt { .. } => Kind::Adapt,
            Self::Priority { .. } => Kind::Priority,
            Self::Schedule { .. } => Kind::Schedule,
            Self::Deadline { .. } => Kind::Deadline,
            Self::Repair => Kind::Repair,
        }
    }
}

/// An action without its value. A subject has at most one directive of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Kind {
    Pause,
    Cancel,
    Rate,
    DailyRate,
    SenderRate,
    Park,
    Adapt,
    Priority,
    Schedule,
    Deadline,
    Repair,
}

impl Kind {
    pub const ALL: &'static [Self] = Self::VARIANTS;

    /// The kinds without a meaning once their job is completed. A cancel stays: recipients added
    /// to the job later are not sent to either.
    pub const OF_RUNNING: [Self; 7] = [
        Self::Pause,
        Self::Rate,
        Self::Park,
        Self::Priority,
        Self::Schedule,
        Self::Deadline,
        Self::Repair,
    ];

    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// One directive of an operator or a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Directive {
    #[serde(flatten)]
    pub subject: Subject,
    #[serde(flatten)]
    pub action: Action,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// Milliseconds since 1970.
    pub since_ms: u64,
    /// When it expires, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<u64>,
}

impl Directive {
    pub fn in_force(&self, now_ms: u64) -> bool {
        self.until_ms.is_none_or(|until| until > now_ms)
    }
}

/// Shows author and reason: `paused by ana: wrong picture`.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pause => f.write_str("paused"),
            Self::Cancel => f.write_str("cancelled"),
            Self::Rate { rate } => write!(f, "rate set to {rate}"),
            Self::DailyRate { rate } => write!(f, "daily limit set to {rate}"),
            Self::SenderRate { rate } => write!(f, "limit of each sender set to {rate}"),
            Self::Park { .. } => f.write_str("parked"),
            Self::Adapt { .. } => f.write_str("limit adapted"),
            Self::Priority { priority } => write!(f, "priority set to {}", priority.as_str()),
            Self::Schedule { not_before_ms } => {
                write!(f, "start set to {}", moment::text(*not_before_ms))
            }
            Self::Deadline {
                expires_at_ms: Some(at),
            } => write!(f, "deadline set to {}", moment::text(*at)),
            Self::Deadline {
                expires_at_ms: None,
            } => f.write_str("deadline removed"),
            Self::Repair => f.write_str("repair ordered"),
        }
    }
}

impl fmt::Display for Directive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.action)?;
        if let Some(author) = &self.author {
            write!(f, " by {author}")?;
        }
        if let Some(reason) = &self.reason {
            write!(f, ": {reason}")?;
        }
        Ok(())
    }
}

/// What a slice must do now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SliceControl {
    pub go: Go,
    /// Rates that replace the configured ones.
    pub rates: Rates,
    /// The part of the target's limit that applies, if not all of it does.
    pub adapted: Option<Climb>,
    /// Replaces the priority of the job.
    pub priority: Option<Priority>,
    /// Replaces the start time of the job.
    pub not_before_ms: Option<u64>,
    /// Replaces the time at which the job expires.
    pub expires_at_ms: Option<Option<u64>>,
}

impl SliceControl {
    fn set(&mut self, scope: Scope, kind: LimitKind, rate: Rate) {
        if let Some(limit) = LimitOf::new(scope, kind) {
            self.rates[limit] = Some(rate);
        }
    }

    /// When the job of a slice starts, and when it expires.
    pub fn times(&self, head: &Head) -> (Option<u64>, Option<u64>) {
        (
            self.not_before_ms.or(head.not_before_ms),
            self.expires_at_ms.unwrap_or(head.expires_at_ms),
        )
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Go {
    #[default]
    On,
    /// Send nothing, and look again after this time.
    Wait(Duration),
    /// Settle all recipients without an outcome as cancelled.
    Cancelled,
}

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_000_000;

    fn directive(scope: Scope, name: &str, action: Action) -> Directive {
        Directive {
            subject: Subject::new(scope, name),
            action,
            reason: Some("wrong picture".to_owned()),
            author: Some("ana".to_owned()),
            since_ms: NOW - 5000,
            until_ms: None,
        }
    }

    fn control(directives: &[Directive], now_ms: u64) -> SliceControl {
        Board::new(directives.iter().cloned()).control(["im", "shop", "j1"], now_ms)
    }

    fn rate(text: &str) -> Action {
        Action::Rate {
            rate: text.parse().unwrap(),
        }
    }

    #[test]
    fn a_slice_waits_while_its_job_app_or_target_is_paused() {
        for (scope, name) in Scope::ALL.iter().copied().zip(["im", "shop", "j1"]) {
            let pause = directive(scope, name, Action::Pause);
            let wait = Go::Wait(Duration::from_secs(5));
            assert_eq!(control(&[pause], NOW).go, wait, "{scope:?}");
            let other = directive(scope, "other", Action::Pause);
            assert_eq!(control(&[other], NOW), SliceControl::default(), "{scope:?}");
        }
    }

    #[test]
    fn a_parked_job_waits_and_its_target_goes_on() {
        let fault = |code: &str| Action::Park {
            target: "im".to_owned(),
            code: code.to_owned(),
            sender: None,
        };
        let directives = [
            directive(Scope::Job, "j1", fault("404")),
            directive(Scope::Job, "j2", fault("403")),
        ];
        assert_ne!(control(&directives, NOW).go, Go::On);
        let board = Board::new(directives);
        assert_eq!(board.control(["im", "shop", "j3"], NOW).go, Go::On);
        assert_eq!(board.parked_jobs("im", NOW).count(), 2);
        assert_eq!(board.parked_jobs("other", NOW).count(), 0);
    }

    #[test]
    fn a_cancelled_job_ends_even_while_it_is_paused() {
        let directives = [
            directive(Scope::Target, "im", Action::Pause),
            directive(Scope::Job, "j1", Action::Cancel),
        ];
        assert_eq!(control(&directives, NOW).go, Go::Cancelled);
    }

    #[test]
    fn an_operator_replaces_start_deadline_and_priority() {
        let deadline = |at| Action::Deadline { expires_at_ms: at };
        let directives = [
            directive(
                Scope::Job,
                "j1",
                Action::Schedule {
                    not_before_ms: NOW + 9,
                },
            ),
            directive(Scope::Job, "j1", deadline(None)),
            directive(
                Scope::Job,
                "j1",
                Action::Priority {
                    priority: Priority::High,
                },
            ),
            directive(Scope::Job, "j2", deadline(Some(NOW + 5))),
        ];
        let found = control(&directives, NOW);
        assert_eq!(found.not_before_ms, Some(NOW + 9));
        assert_eq!(found.expires_at_ms, Some(None));
        assert_eq!(found.priority, Some(Priority::High));
        let board = Board::new(directives);
        assert_eq!(board.last_end(NOW), None);
        assert_eq!(board.next_deadline(NOW), Some(Duration::from_millis(5)));
        assert_eq!(board.last_end(NOW + 6), Some(Duration::from_millis(1)));
        assert_eq!(board.next_deadline(NOW + 6), None);
    }

    #[test]
    fn a_directive_that_expired_is_none() {
        let pause = Directive {
            until_ms: Some(NOW + 1000),
            ..directive(Scope::Job, "j1", Action::Pause)
        };
        let directives = [pause];
        let wait = Go::Wait(Duration::from_secs(1));
        assert_eq!(
            control(&directives, NOW).go,
            wait,
            "no longer than it stands"
        );
        assert_eq!(control(&directives, NOW + 1000), SliceControl::default());
        assert!(Board::new(directives).all(NOW + 1000).next().is_none());
    }

    #[test]
    fn rates_stand_in_the_place_of_their_scope() {
        let directives = [
            directive(Scope::Job, "j1", rate("10/s")),
            directive(Scope::Target, "im", rate("20/s per call")),
        ];
        let rates = control(&directives, NOW).rates;
        assert_eq!(rates[LimitOf::Target], "20/s per call".parse().ok());
        assert_eq!(rates[LimitOf::App], None);
        assert_eq!(rates[LimitOf::Job], "10/s".parse().ok());
    }

    #[test]
    fn each_limit_of_a_subject_has_a_rate_of_its_own() {
        let text = |text: &str| text.parse::<Rate>().unwrap();
        let of =
            |scope, name, kind, rate: &str| directive(scope, name, Action::limit(kind, text(rate)));
        let directives = [
            of(Scope::Target, "im", LimitKind::Main, "1/s"),
            of(Scope::Target, "im", LimitKind::Daily, "2/day"),
            of(Scope::Target, "im", LimitKind::Sender, "3/s"),
            of(Scope::App, "shop", LimitKind::Daily, "4/day"),
            of(Scope::Shared, "cloud", LimitKind::Main, "5/s"),
            // There is no such limit.
            of(Scope::Job, "j1", LimitKind::Sender, "6/s"),
        ];
        let rates = control(&directives, NOW).rates;
        let set: Vec<_> = rates
            .all()
            .map(|(limit, rate)| (limit, rate.units))
            .collect();
        let expected = [
            (LimitOf::Target, 1),
            (LimitOf::TargetDaily, 2),
            (LimitOf::AppDaily, 4),
            (LimitOf::Sender, 3),
        ];
        assert_eq!(set, expected);
        let board = Board::new(directives.iter().cloned());
        let shared = board.rate(LimitOf::Shared, "cloud", Some(text("9/s")), NOW);
        assert_eq!(shared, Some(text("5/s")));
        let other = board.rate(LimitOf::Shared, "other", Some(text("9/s")), NOW);
        assert_eq!(other, Some(text("9/s")));
        for directive in directives {
            let json = serde_json::to_string(&directive).unwrap();
            assert_eq!(serde_json::from_str::<Directive>(&json).unwrap(), directive);
        }
    }

    #[test]
    fn an_adapted_limit_is_a_part_of_the_rate_that_is_set() {
        let climb = Climb::halved(None, NOW, NOW, Duration::from_secs(10));
        let adapted = directive(Scope::Target, "im", Action::Adapt { climb });
        let set = directive(Scope::Target, "im", rate("100/s"));
        let configured = "1000/s".parse().ok();
        let of = |directives: &[Directive], limit| {
            let board = Board::new(directives.iter().cloned());
            let rate = board.rate(limit, "im", configured, NOW);
            rate.map(|rate| rate.to_string())
        };
        let is = |text: &str| Some(text.to_owned());
        assert_eq!(of(&[], LimitOf::Target), is("1000/s burst 200"));
        let both = [adapted.clone(), set];
        assert_eq!(of(&both[..1], LimitOf::Target), is("500/s burst 100"));
        assert_eq!(of(&both, LimitOf::Target), is("50/s burst 10"));
        assert_eq!(of(&both, LimitOf::App), is("1000/s burst 200"));
        assert_eq!(control(&both, NOW).adapted, Some(climb));
        let json = serde_json::to_string(&adapted).unwrap();
        let read: Directive = serde_json::from_str(&json).unwrap();
        assert_eq!(read, adapted);
    }

    #[test]
    fn a_directive_reads_as_it_is_written() {
        for (action, text) in [
            (Action::Pause, r#""action":"pause""#),
            (Action::Cancel, r#""action":"cancel""#),
            (
                rate("20/s burst 3 per call"),
                r#""action":"rate","rate":"20/s burst 3 per call""#,
            ),
            (
                Action::Park {
                    target: "im".to_owned(),
                    code: "404".to_owned(),
                    sender: None,
                },
                r#""action":"park","target":"im","code":"404","reason""#,
            ),
            (
                Action::Park {
                    target: "im".to_owned(),
                    code: "403".to_owned(),
                    sender: Some("news".to_owned()),
                },
                r#""code":"403","sender":"news""#,
            ),
        ] {
            let directive = directive(Scope::Job, "j1", action);
            let json = serde_json::to_string(&directive).unwrap();
            assert!(json.contains(text), "{json}");
            assert!(json.starts_with(r#"{"scope":"job","name":"j1""#), "{json}");
            let read: Directive = serde_json::from_str(&json).unwrap();
            assert_eq!(read, directive);
        }
        let said = directive(Scope::Job, "j1", Action::Pause).to_string();
        assert_eq!(said, "paused by ana: wrong picture");
    }

    proptest! {
        /// A paused slice looks again before the pause has lasted twice as long, at least every
        /// minute, and never before five seconds have passed unless the pause ends.
        #[test]
        fn a_pause_is_looked_at_again_in_time(
            pauses in prop::collection::vec((0u64..10_000_000, prop::option::of(1u64..10_000_000)), 1..4),
        ) {
            let now = 20_000_000;
            let directives: Vec<_> = Scope::ALL.iter().copied().zip(["im", "shop", "j1"]).zip(&pauses)
                .map(|((scope, name), (age, left))| Directive {
                    since_ms: now - age,
                    until_ms: left.map(|left| now + left),
                    ..directive(scope, name, Action::Pause)
                })
                .collect();
            let Go::Wait(wait) = control(&directives, now).go else {
                return Err(TestCaseError::fail("a paused slice went on"));
            };
            let youngest = pauses.iter().map(|(age, _)| *age).min().unwrap();
            prop_assert!(wait <= Duration::from_millis(youngest.max(5000)));
            prop_assert!(wait <= Duration::from_secs(60));
            let end = pauses.iter().map(|(_, left)| left.unwrap_or(u64::MAX)).max().unwrap();
            prop_assert!(wait >= Duration::from_millis(end.min(5000)));
        }
    }
}
