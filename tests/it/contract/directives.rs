//! Tests the port of directives.

use std::time::SystemTime;

use fanwise::domain::directive::{Action, Directive, Kind, Scope, Subject};
use fanwise::ports::{Directed, Directives};

use super::StoreBench;

on_all! { EmbeddedBench, RedisBench, ClusterBench:
    a_directive_takes_the_place_of_its_kind_and_can_be_lifted,
    who_knows_the_version_is_told_nothing,
    what_has_expired_goes_with_the_next_change,
    words_of_operators_come_back_as_they_were_said,
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap().as_millis() as u64
}

fn directive(scope: Scope, name: &str, action: Action) -> Directive {
    Directive {
        subject: Subject::new(scope, name),
        action,
        reason: None,
        author: None,
        since_ms: now_ms(),
        until_ms: None,
    }
}

fn rate(text: &str) -> Action {
    Action::Rate {
        rate: text.parse().unwrap(),
    }
}

/// All directives in force, sorted.
async fn progress(store: &impl Directives) -> Vec<Directive> {
    let mut all = store.directives(0).await.unwrap().unwrap_or_default().all;
    all.sort_by_key(|it| (it.subject.clone(), it.action.kind().as_str()));
    all
}

async fn a_directive_takes_the_place_of_its_kind_and_can_be_lifted(bench: &impl StoreBench) {
    let store = bench.store();
    assert!(progress(store).await.is_empty());
    let pause = directive(Scope::Job, "j1", Action::Pause);
    let slow = directive(Scope::Job, "j1", rate("1/s"));
    let fast = directive(Scope::Job, "j1", rate("100/s"));
    let other = directive(Scope::App, "j1", Action::Pause);
    for directive in [&pause, &slow, &other, &fast, &pause] {
        store.direct(directive).await.unwrap();
    }
    assert_eq!(progress(store).await, [other.clone(), pause.clone(), fast]);
    assert!(store.lift(&pause.subject, Kind::Rate).await.unwrap());
    assert!(!store.lift(&pause.subject, Kind::Rate).await.unwrap());
    assert!(!store.lift(&pause.subject, Kind::Cancel).await.unwrap());
    assert_eq!(progress(store).await, [other, pause]);
}

async fn who_knows_the_version_is_told_nothing(bench: &impl StoreBench) {
    let store = bench.store();
    let mut known = 0;
    assert_eq!(store.directives(known).await.unwrap(), None);
    let pause = directive(Scope::Target, "im", Action::Pause);
    for round in 0..3 {
        store.direct(&pause).await.unwrap();
        let Some(Directed { version, all }) = store.directives(known).await.unwrap() else {
            panic!("round {round}: the change was not reported");
        };
        assert_ne!(version, known);
        assert_eq!(all, std::slice::from_ref(&pause));
        known = version;
        assert_eq!(store.directives(known).await.unwrap(), None);
    }
    store.lift(&pause.subject, Kind::Pause).await.unwrap();
    let lifted = store.directives(known).await.unwrap().unwrap();
    assert!(lifted.all.is_empty());
}

async fn what_has_expired_goes_with_the_next_change(bench: &impl StoreBench) {
    let store = bench.store();
    let over = Directive {
        until_ms: Some(now_ms() - 60_000),
        ..directive(Scope::Job, "over", Action::Pause)
    };
    let later = Directive {
        until_ms: Some(now_ms() + 60_000),
        ..directive(Scope::Job, "stands", Action::Cancel)
    };
    store.direct(&over).await.unwrap();
    store.direct(&later).await.unwrap();
    assert_eq!(progress(store).await, [later]);
}

async fn words_of_operators_come_back_as_they_were_said(bench: &impl StoreBench) {
    let store = bench.store();
    let said = Directive {
        reason: Some("wrong: \"picture\" 图\n".to_owned()),
        author: Some("Ana O'Hara".to_owned()),
        until_ms: Some(now_ms() + 3_600_000),
        ..directive(Scope::App, "a b:c", rate("20/s burst 3 per call"))
    };
    store.direct(&said).await.unwrap();
    assert_eq!(progress(store).await, [said]);
}
