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
fn an_operator_replaces_start_deadline_pace_and_priority() {
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
            Action::Pace {
                pace_until_ms: Some(NOW + 7),
            },
        ),
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
    assert_eq!(found.pace_until_ms, Some(Some(NOW + 7)));
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
