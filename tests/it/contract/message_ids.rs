//! Tests the port to the ids of messages, on every engine.

use fanwise::domain::ids::{Fingerprint, SliceId};
use fanwise::domain::message_id::{KeepsIds, KeptId, MessageId, RecallState};
use fanwise::domain::outcome::Outcome;
use fanwise::domain::slice::Addressed;
use fanwise::ports::{JobRecord, Ledger, MessageIds, Settle};

use super::StoreBench;
use super::ledger::{ANN, BOB, Job, LEASE, all, claim};

on_all! { EmbeddedBench, RedisBench, ClusterBench:
    ids_are_kept_with_the_first_outcome_and_only_then,
    ids_are_found_page_by_page_and_with_their_recalls,
    ids_move_with_a_job_that_grows,
    the_first_submission_that_keeps_ids_decides,
    a_job_that_keeps_no_ids_has_none,
}

/// The id of the message to a recipient; some have texts and times, as some systems do.
fn id(number: u32, message: u32) -> KeptId {
    let text = match number % 3 {
        0 => format!("{}", 9_000_000_000_u64 + u64::from(message)),
        1 => format!("m-{message}"),
        _ => message.to_string(),
    };
    KeptId {
        recipient: format!("user-{number}"),
        message: MessageId::new(text, number.is_multiple_of(2).then_some(1_700_000_000_000))
            .unwrap(),
        by_fallback: number.is_multiple_of(5),
        recall: RecallState::No,
    }
}

fn ids(
    people: &[Fingerprint],
    numbers: impl Iterator<Item = u32>,
    message: u32,
) -> Vec<(Fingerprint, KeptId)> {
    let people = people.iter().zip(numbers);
    people
        .map(|(it, number)| (*it, id(number, message + number)))
        .collect()
}

async fn record(bench: &impl StoreBench, job: &Job) -> JobRecord {
    bench.store().job(job.id()).await.unwrap().unwrap()
}

async fn ids_are_kept_with_the_first_outcome_and_only_then(bench: &impl StoreBench) {
    let (store, mut job) = (bench.store(), Job::new(3));
    job.head.keep_ids = true;
    let mut submission = job.submission("s", 40);
    let keeps = KeepsIds {
        sender: Some("news".to_owned()),
        addressed: Addressed::Groups(2),
    };
    submission.keeps_ids = Some(keeps.clone());
    store.accept(&submission).await.unwrap();
    let told = record(bench, &job).await;
    assert_eq!((told.keep_ids, told.keeps_ids), (true, Some(keeps)));

    let people = job.fingerprints(0..40);
    let slice_id = SliceId::new("s", 0);
    let slice = job.slice(&slice_id, 40);
    claim(store, slice, ANN, LEASE, &people).await;
    let first = ids(&people[..20], 0..20, 100);
    let settle = async |owner, outcomes: &[(Fingerprint, Outcome)], ids: &[_]| {
        let settle = Settle {
            outcomes,
            ids,
            ..Settle::of(slice, owner)
        };
        store.settle(settle).await.unwrap().stood
    };
    // As a whole, then again after a lost answer.
    let sent = all(&people[..20], Outcome::Sent);
    assert_eq!(settle(ANN, &sent, &first).await, 0);
    assert_eq!(settle(ANN, &sent, &first).await, 20);
    // Some are known, some are not, and some have no id.
    let mut mixed = all(&people[10..35], Outcome::Sent);
    mixed[20].1 = Outcome::Failed;
    let later = ids(&people[10..29], 10..29, 500);
    assert_eq!(settle(BOB, &mixed, &later).await, 10);
    let told = record(bench, &job).await;
    let found = store.kept_ids(&told, &people).await.unwrap();
    for (number, found) in (0..).zip(&found) {
        let expected = match number {
            0..20 => Some(id(number, 100 + number)),
            20..29 => Some(id(number, 500 + number)),
            _ => None,
        };
        assert_eq!(*found, expected, "{number}");
    }
    assert!(store.kept_ids(&told, &[]).await.unwrap().is_empty());
}

async fn ids_are_found_page_by_page_and_with_their_recalls(bench: &impl StoreBench) {
    const COUNT: u32 = 2500;
    let (store, mut job) = (bench.store(), Job::new(20));
    job.head.keep_ids = true;
    store
        .accept(&job.submission("s", COUNT.into()))
        .await
        .unwrap();
    let people = job.fingerprints(0..COUNT);
    let (sent, kept) = (all(&people, Outcome::Sent), ids(&people, 0..COUNT, 0));
    let slice_id = SliceId::new("s", 0);
    let settle = Settle {
        outcomes: &sent,
        ids: &kept,
        ..Settle::of(job.slice(&slice_id, COUNT), ANN)
    };
    store.settle(settle).await.unwrap();
    let told = record(bench, &job).await;
    let recalls: Vec<_> = (0..COUNT)
        .zip(&people)
        .filter_map(|(number, it)| match number % 4 {
            1 => Some((*it, RecallState::Recalled)),
            2 => Some((*it, RecallState::Refused)),
            _ => None,
        })
        .collect();
    store.note_recalls(job.id(), &recalls).await.unwrap();
    // One that has no id, and a job that is not there.
    let strangers = [(job.fingerprints([COUNT])[0], RecallState::Recalled)];
    store.note_recalls(job.id(), &strangers).await.unwrap();
    store
        .note_recalls(Job::new(1).id(), &strangers)
        .await
        .unwrap();
    let (mut found, mut from) = (Vec::new(), Some(0));
    while let Some(place) = from {
        let page = store.kept_page(&told, place).await.unwrap();
        found.extend(page.ids);
        from = page.next;
    }
    found.sort_by_key(|(it, _)| *it);
    let mut expected: Vec<_> = (0..COUNT)
        .zip(&people)
        .map(|(number, it)| {
            let mut id = id(number, number);
            id.recall = match number % 4 {
                1 => RecallState::Recalled,
                2 => RecallState::Refused,
                _ => RecallState::No,
            };
            (*it, id)
        })
        .collect();
    expected.sort_by_key(|(it, _)| *it);
    assert_eq!(found, expected);
    let one = store.kept_ids(&told, &people[1..2]).await.unwrap();
    assert_eq!(
        one[0].as_ref().map(|it| it.recall),
        Some(RecallState::Recalled)
    );
}

/// A test message to some users, and then the same job to many more.
async fn ids_move_with_a_job_that_grows(bench: &impl StoreBench) {
    let (store, mut job) = (bench.store(), Job::new(1));
    job.head.keep_ids = true;
    store.accept(&job.submission("s", 30)).await.unwrap();
    let people = job.fingerprints(0..30);
    let (sent, kept) = (all(&people, Outcome::Sent), ids(&people, 0..30, 0));
    let slice_id = SliceId::new("s", 0);
    let settle = Settle {
        outcomes: &sent,
        ids: &kept,
        ..Settle::of(job.slice(&slice_id, 30), ANN)
    };
    store.settle(settle).await.unwrap();
    let mut larger = Job::new(64);
    larger.head = job.head.clone();
    store.accept(&larger.submission("t", 20_000)).await.unwrap();
    let told = record(bench, &job).await;
    let found = store.kept_ids(&told, &people).await.unwrap();
    let expected: Vec<_> = (0..30).map(|number| Some(id(number, number))).collect();
    assert_eq!(found, expected);
}

/// A recall needs to know the sender, whichever list of the job kept ids first; also if slices with ids
/// came before their list.
async fn the_first_submission_that_keeps_ids_decides(bench: &impl StoreBench) {
    let keeps = |sender: &str| KeepsIds {
        sender: Some(sender.to_owned()),
        ..KeepsIds::default()
    };
    for slices_first in [false, true] {
        let (store, mut job) = (bench.store(), Job::new(1));
        let first = job.submission("s", 2);
        store.accept(&first).await.unwrap();
        let told = record(bench, &job).await;
        assert_eq!((told.keep_ids, told.keeps_ids), (false, None));
        job.head.keep_ids = true;
        if slices_first {
            let people = job.fingerprints(0..2);
            let slice_id = SliceId::new("s", 0);
            let settle = Settle {
                outcomes: &all(&people, Outcome::Sent),
                ids: &ids(&people, 0..2, 0),
                ..Settle::of(job.slice(&slice_id, 2), ANN)
            };
            store.settle(settle).await.unwrap();
            let told = record(bench, &job).await;
            assert_eq!((told.keep_ids, told.keeps_ids), (true, None));
        }
        for (list, sender) in [("t", "news"), ("u", "other")] {
            let mut later = job.submission(list, 2);
            later.keeps_ids = Some(keeps(sender));
            store.accept(&later).await.unwrap();
            let told = record(bench, &job).await;
            assert_eq!((told.keep_ids, told.keeps_ids), (true, Some(keeps("news"))));
        }
    }
}

async fn a_job_that_keeps_no_ids_has_none(bench: &impl StoreBench) {
    let (store, job) = (bench.store(), Job::new(1));
    store.accept(&job.submission("s", 2)).await.unwrap();
    let told = record(bench, &job).await;
    assert_eq!((told.keep_ids, &told.keeps_ids), (false, &None));
    let people = job.fingerprints(0..2);
    assert_eq!(store.kept_ids(&told, &people).await.unwrap(), [None, None]);
    assert!(store.kept_page(&told, 0).await.unwrap().ids.is_empty());
}
