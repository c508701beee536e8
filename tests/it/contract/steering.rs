//! Tests the port by which operators change jobs, on every engine.

use fanwise::domain::directive::Action;
use fanwise::domain::lane::Priority;
use fanwise::domain::list_reference::FetchedList;
use fanwise::domain::outcome::Outcome;
use fanwise::domain::trail::{Origin, TRAIL_MAX, TrailEntry, Via};
use fanwise::ports::{
    ClaimState, Entry, JobFilter, JobQuery, JobState, Ledger, Resolution, Settle, Steering,
};

use super::StoreBench;
use super::ledger::{ANN, Job};
use fanwise::domain::ids::SliceId;

on_all! { EmbeddedBench, RedisBench, ClusterBench:
    a_job_shows_what_an_operator_changed,
    a_change_before_the_registration_stays,
    tags_select_jobs,
    the_last_list_that_was_fetched_is_told,
    the_trail_of_a_job_is_bounded_and_in_order,
    uncertain_recipients_are_resolved_once,
}

fn entry(number: usize) -> TrailEntry {
    TrailEntry {
        at_ms: 1_000 + number as u64,
        action: "rate".to_owned(),
        detail: Some(format!("{number}/s")),
        author: Some("ana".to_owned()),
        reason: None,
        origin: Origin {
            via: Via::Http,
            caller: Some("administrator".to_owned()),
            address: None,
        },
    }
}

fn noted(job: &Job) -> Entry {
    let submission = job.submission("s", 3);
    Entry {
        job: job.id(),
        app: submission.app,
        client_msg_no: submission.client_msg_no,
        target: submission.target,
        content_digest: submission.content_digest,
        entries: 3,
        priority: Priority::Bulk,
        not_before_ms: Some(50),
        expires_at_ms: Some(90),
        tags: vec!["spring".to_owned()],
        fetched: Some(list(1)),
        now_ms: submission.now_ms,
    }
}

/// A version of a list.
fn list(bytes: u64) -> FetchedList {
    FetchedList {
        url: "https://lists.example.com/u.csv".to_owned(),
        etag: Some(format!("v{bytes}")),
        sha256: "0".repeat(64),
        bytes,
    }
}

const CHANGES: [Action; 4] = [
    Action::Priority {
        priority: Priority::High,
    },
    Action::Schedule { not_before_ms: 70 },
    Action::Deadline {
        expires_at_ms: None,
    },
    Action::Pace {
        pace_until_ms: Some(80),
    },
];

async fn a_job_shows_what_an_operator_changed(bench: &impl StoreBench) {
    let (store, job) = (bench.store(), Job::new(1));
    let mut submission = job.submission("s", 3);
    submission.not_before_ms = Some(50);
    submission.expires_at_ms = Some(90);
    store.accept(&submission).await.unwrap();
    let record = store.job(job.id()).await.unwrap().unwrap();
    assert_eq!(
        (record.not_before_ms, record.expires_at_ms),
        (Some(50), Some(90))
    );
    for change in &CHANGES {
        store.amend(job.id(), change).await.unwrap();
    }
    let record = store.job(job.id()).await.unwrap().unwrap();
    assert_eq!(record.priority, Some(Priority::High));
    assert_eq!(
        (record.not_before_ms, record.expires_at_ms),
        (Some(70), None)
    );
    assert_eq!(record.pace_until_ms, Some(80));
    let none = Action::Pace {
        pace_until_ms: None,
    };
    store.amend(job.id(), &none).await.unwrap();
    let record = store.job(job.id()).await.unwrap().unwrap();
    assert_eq!(record.pace_until_ms, None);
    let later = Action::Deadline {
        expires_at_ms: Some(99),
    };
    store.amend(job.id(), &later).await.unwrap();
    let record = store.job(job.id()).await.unwrap().unwrap();
    assert_eq!(record.expires_at_ms, Some(99));
    // A job that does not exist does not begin.
    let unknown = Job::new(1);
    store.amend(unknown.id(), &later).await.unwrap();
    assert_eq!(store.job(unknown.id()).await.unwrap(), None);
}

async fn a_change_before_the_registration_stays(bench: &impl StoreBench) {
    let (store, job) = (bench.store(), Job::new(1));
    store.enter(&noted(&job)).await.unwrap();
    for change in &CHANGES {
        store.amend(job.id(), change).await.unwrap();
    }
    store.note(&[job.id()], &entry(1)).await.unwrap();
    let mut submission = job.submission("s", 3);
    submission.not_before_ms = Some(50);
    submission.expires_at_ms = Some(90);
    submission.tags = vec!["spring".to_owned()];
    store.accept(&submission).await.unwrap();
    let record = store.job(job.id()).await.unwrap().unwrap();
    assert_eq!(record.state, JobState::Running);
    assert_eq!(record.priority, Some(Priority::High));
    assert_eq!(
        (record.not_before_ms, record.expires_at_ms),
        (Some(70), None)
    );
    assert_eq!(record.tags, ["spring"]);
    assert_eq!(store.trail(job.id()).await.unwrap(), [entry(1)]);
}

async fn the_last_list_that_was_fetched_is_told(bench: &impl StoreBench) {
    let (store, job) = (bench.store(), Job::new(1));
    let told = async || store.job(job.id()).await.unwrap().unwrap().fetched;
    store.enter(&noted(&job)).await.unwrap();
    assert_eq!(told().await, Some(list(1)));
    let of = |name: &str, list: Option<FetchedList>| {
        let mut submission = job.submission(name, 3);
        submission.fetched = list;
        submission
    };
    for (submission, expected) in [
        (of("a", Some(list(1))), 1),
        (of("b", Some(list(2))), 2),
        // A repeat of an earlier one, and a list that was not fetched.
        (of("a", Some(list(1))), 2),
        (of("c", None), 2),
    ] {
        store.accept(&submission).await.unwrap();
        assert_eq!(told().await, Some(list(expected)));
    }
}

async fn tags_select_jobs(bench: &impl StoreBench) {
    let store = bench.store();
    let jobs = [Job::new(1), Job::new(1), Job::new(1)];
    store.enter(&noted(&jobs[0])).await.unwrap();
    let mut tagged = jobs[1].submission("s", 1);
    tagged.tags = vec!["autumn".to_owned(), "spring".to_owned()];
    store.accept(&tagged).await.unwrap();
    store.accept(&jobs[2].submission("s", 1)).await.unwrap();
    for (tag, expected) in [("spring", 2), ("autumn", 1), ("sprin", 0)] {
        let query = JobQuery {
            filter: JobFilter {
                tag: Some(tag.to_owned()),
                ..JobFilter::default()
            },
            after: None,
            most: 10,
        };
        let page = store.jobs(&query).await.unwrap();
        let here = page.jobs.iter();
        let here = here.filter(|it| jobs.iter().any(|job| job.id() == it.job));
        assert_eq!(here.count(), expected, "{tag}");
    }
}

async fn the_trail_of_a_job_is_bounded_and_in_order(bench: &impl StoreBench) {
    let (store, job, other) = (bench.store(), Job::new(1), Job::new(1));
    store.note(&[job.id()], &entry(0)).await.unwrap();
    assert!(store.trail(job.id()).await.unwrap().is_empty(), "unknown");
    store.accept(&job.submission("s", 1)).await.unwrap();
    store.accept(&other.submission("s", 1)).await.unwrap();
    for number in 0..TRAIL_MAX + 2 {
        store.note(&[job.id()], &entry(number)).await.unwrap();
    }
    let trail = store.trail(job.id()).await.unwrap();
    let expected: Vec<_> = (2..TRAIL_MAX + 2).map(entry).collect();
    assert_eq!(trail, expected);
    let both = [job.id(), other.id()];
    store.note(&both, &entry(7)).await.unwrap();
    assert_eq!(store.trail(other.id()).await.unwrap(), [entry(7)]);
    assert_eq!(store.trail(job.id()).await.unwrap().last(), Some(&entry(7)));
}

async fn uncertain_recipients_are_resolved_once(bench: &impl StoreBench) {
    let (store, job) = (bench.store(), Job::new(4));
    let (all, id) = (job.fingerprints(0..6), SliceId::new("s", 0));
    store.accept(&job.submission("s", 6)).await.unwrap();
    store.mark_expanded(job.id(), "s").await.unwrap();
    let outcomes: Vec<_> = all
        .iter()
        .zip([
            Outcome::Uncertain,
            Outcome::Uncertain,
            Outcome::Uncertain,
            Outcome::Sent,
            Outcome::Failed,
        ])
        .map(|(it, outcome)| (*it, outcome))
        .collect();
    let settle = Settle {
        outcomes: &outcomes,
        ..Settle::of(job.slice(&id, 6), ANN)
    };
    store.settle(settle).await.unwrap();
    let record = store.job(job.id()).await.unwrap().unwrap();
    let resolve = |which: &'static [usize], to| {
        let (asked, record) = (which.iter().map(|at| all[*at]), &record);
        let asked: Vec<_> = asked.collect();
        async move { store.resolve(record, &asked, to).await.unwrap() }
    };
    let first = resolve(&[5, 0, 3, 1], Resolution::Sent).await;
    assert_eq!(first, [false, true, false, true]);
    assert_eq!(resolve(&[0, 1], Resolution::Failed).await, [false, false]);
    assert_eq!(resolve(&[2], Resolution::Failed).await, [true]);
    let record = store.job(job.id()).await.unwrap().unwrap();
    let accounts = record.accounts;
    assert_eq!((accounts.sent, accounts.failed), (3, 2));
    assert_eq!((accounts.uncertain, record.pending), (0, 1));
    let states = store.peek(&record, &all).await.unwrap();
    assert_eq!(states[1], ClaimState::Settled(Outcome::Sent));
    assert_eq!(states[2], ClaimState::Settled(Outcome::Failed));
    assert_eq!(states[5], ClaimState::Granted);
    let audit = store.audit(&record).await.unwrap();
    assert!(record.differences(&audit).is_empty());
}
