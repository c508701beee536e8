//! Tests the port of quotas.

use fanwise::domain::ids::JobId;
use fanwise::domain::permissions::{Asked, AudienceKind, Permissions, Used};
use fanwise::ports::{Charged, Quotas};

use super::StoreBench;

on_all! { EmbeddedBench, RedisBench, ClusterBench:
    a_list_counts_once,
    nothing_counts_of_what_is_too_much,
    jobs_that_come_together_count_together,
    jobs_and_apps_are_counted_apart,
    a_new_day_begins_at_nothing_and_knows_the_lists_of_the_last,
    those_who_count_at_once_never_exceed_the_quota,
}

const TODAY: u64 = 20_000;

fn asked(key: &str, lists: &[(&str, u64)]) -> Asked {
    Asked {
        job: JobId::of("shop", key),
        app: "shop".to_owned(),
        client_msg_no: key.to_owned(),
        sender: None,
        target: "im".to_owned(),
        fallback: None,
        crowd: AudienceKind::Users,
        lists: lists
            .iter()
            .map(|(name, entries)| ((*name).to_owned(), *entries))
            .collect(),
    }
}

fn limited(recipients_max: Option<u64>, daily_recipients: Option<u64>) -> Permissions {
    Permissions {
        recipients_max,
        daily_recipients,
        ..Permissions::default()
    }
}

async fn charge(
    store: &impl Quotas,
    permissions: &Permissions,
    day: u64,
    key: &str,
    lists: &[(&str, u64)],
) -> Charged {
    let asked = [asked(key, lists)];
    store.charge(&asked, permissions, day).await.unwrap()
}

fn over(key: &str, job: u64, day: u64) -> Charged {
    Charged::Over {
        job: JobId::of("shop", key),
        used: Used { job, day },
    }
}

async fn a_list_counts_once(bench: &impl StoreBench) {
    let (store, ten) = (bench.store(), limited(None, Some(10)));
    for _ in 0..3 {
        let counted = charge(store, &ten, TODAY, "a", &[("l1", 6)]).await;
        assert_eq!(counted, Charged::Counted);
    }
    // A list that was counted beside one that was not.
    let counted = charge(store, &ten, TODAY, "a", &[("l1", 6), ("l2", 4)]).await;
    assert_eq!(counted, Charged::Counted);
    let more = charge(store, &ten, TODAY, "a", &[("l3", 1)]).await;
    assert_eq!(more, over("a", 10, 10));
    // A list that was counted stays allowed.
    let again = charge(store, &ten, TODAY, "a", &[("l2", 4)]).await;
    assert_eq!(again, Charged::Counted);
}

async fn nothing_counts_of_what_is_too_much(bench: &impl StoreBench) {
    let (store, ten) = (bench.store(), limited(None, Some(10)));
    let refused = charge(store, &ten, TODAY, "a", &[("l1", 6), ("l2", 5)]).await;
    assert_eq!(refused, over("a", 0, 0));
    let counted = charge(store, &ten, TODAY, "a", &[("l1", 10)]).await;
    assert_eq!(counted, Charged::Counted);
}

async fn jobs_that_come_together_count_together(bench: &impl StoreBench) {
    let (store, limits) = (bench.store(), limited(Some(5), Some(10)));
    let charge = async |jobs: &[(&str, &[(&str, u64)])]| {
        let asked: Vec<_> = jobs.iter().map(|(key, lists)| asked(key, lists)).collect();
        store.charge(&asked, &limits, TODAY).await.unwrap()
    };
    assert_eq!(charge(&[]).await, Charged::Counted);
    let day = charge(&[
        ("a", &[("l1", 4)]),
        ("b", &[("l1", 4)]),
        ("c", &[("l1", 4)]),
    ])
    .await;
    assert_eq!(day, over("a", 0, 0));
    let one = charge(&[("a", &[("l1", 4)]), ("b", &[("l1", 6)])]).await;
    assert_eq!(one, over("b", 0, 0));
    // Two lists of one job together exceed the quota.
    let both = charge(&[("a", &[("l1", 3)]), ("a", &[("l2", 3)])]).await;
    assert_eq!(both, over("a", 0, 0));
    // A list that is named twice counts once.
    let same = charge(&[
        ("a", &[("l1", 5)]),
        ("a", &[("l1", 5)]),
        ("b", &[("l1", 5)]),
    ])
    .await;
    assert_eq!(same, Charged::Counted);
    let known = charge(&[("b", &[("l1", 5)]), ("c", &[("l1", 1)])]).await;
    assert_eq!(known, over("c", 0, 10));
    let known = charge(&[("b", &[("l1", 5)]), ("a", &[("l1", 5)])]).await;
    assert_eq!(known, Charged::Counted);
}

async fn jobs_and_apps_are_counted_apart(bench: &impl StoreBench) {
    let (store, limits) = (bench.store(), limited(Some(5), Some(12)));
    let first = charge(store, &limits, TODAY, "a", &[("l1", 5)]).await;
    assert_eq!(first, Charged::Counted);
    let extended = charge(store, &limits, TODAY, "a", &[("l2", 1)]).await;
    assert_eq!(extended, over("a", 5, 5));
    // A list of the same name in another job.
    let other = charge(store, &limits, TODAY, "b", &[("l1", 5)]).await;
    assert_eq!(other, Charged::Counted);
    let third = charge(store, &limits, TODAY, "c", &[("l1", 3)]).await;
    assert_eq!(third, over("c", 0, 10));
    let bank = Asked {
        app: "bank".to_owned(),
        job: JobId::of("bank", "c"),
        ..asked("c", &[("l1", 3)])
    };
    let of_bank = store.charge(&[bank], &limits, TODAY).await.unwrap();
    assert_eq!(of_bank, Charged::Counted);
}

async fn a_new_day_begins_at_nothing_and_knows_the_lists_of_the_last(bench: &impl StoreBench) {
    let (store, limits) = (bench.store(), limited(Some(8), Some(10)));
    let first = charge(store, &limits, TODAY, "a", &[("l1", 7)]).await;
    assert_eq!(first, Charged::Counted);
    // Accepted before midnight, read by a worker after it.
    let tomorrow = TODAY + 1;
    let read = charge(store, &limits, tomorrow, "a", &[("l1", 7)]).await;
    assert_eq!(read, Charged::Counted);
    // So the new day has all ten left, and the job does not.
    let extended = charge(store, &limits, tomorrow, "a", &[("l2", 2)]).await;
    assert_eq!(extended, over("a", 7, 0));
    for (key, entries) in [("b", 8), ("c", 2)] {
        let counted = charge(store, &limits, tomorrow, key, &[("l1", entries)]).await;
        assert_eq!(counted, Charged::Counted);
    }
    let full = charge(store, &limits, tomorrow, "d", &[("l1", 1)]).await;
    assert_eq!(full, over("d", 0, 10));
    // Two days later nothing is counted.
    let later = charge(store, &limits, TODAY + 3, "a", &[("l1", 7)]).await;
    assert_eq!(later, Charged::Counted);
    let more = charge(store, &limits, TODAY + 3, "a", &[("l2", 2)]).await;
    assert_eq!(more, over("a", 7, 7));
}

async fn those_who_count_at_once_never_exceed_the_quota(bench: &impl StoreBench) {
    let (store, limits) = (bench.store(), limited(None, Some(25)));
    let limits = &limits;
    let charges = (0..50).map(|number| async move {
        // Each list comes twice, as from a gateway and a worker.
        let list = format!("l{}", number / 2);
        charge(store, limits, TODAY, "a", &[(&list, 2)]).await
    });
    let charged = futures_util::future::join_all(charges).await;
    let counted = charged.iter().filter(|it| **it == Charged::Counted);
    assert_eq!(counted.count(), 24);
}
