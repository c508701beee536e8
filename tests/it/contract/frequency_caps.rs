//! Tests the port of frequency caps.

use std::time::{Duration, Instant};

use fanwise::domain::frequency_cap::FrequencyCap;
use fanwise::domain::ids::{Fingerprint, JobId};
use fanwise::ports::{CapUnits, FrequencyCaps};

use super::{PATIENCE, StoreBench};
use crate::support::wait::until;

on_all! { EmbeddedBench, RedisBench, ClusterBench:
    no_recipient_gets_more_messages_than_the_cap,
    attempts_of_a_job_use_one_unit,
    a_unit_that_goes_back_is_free,
    caps_are_counted_apart,
    a_unit_counts_for_a_period_and_no_longer,
    jobs_that_ask_at_once_never_exceed_the_cap,
}

const DAY: Duration = Duration::from_secs(24 * 3600);

/// At most two a day.
fn two() -> FrequencyCap {
    FrequencyCap {
        max: 2,
        period: DAY,
    }
}

fn units<'a>(key: &str, cap: FrequencyCap, recipients: &'a [Fingerprint]) -> CapUnits<'a> {
    CapUnits {
        app: "shop",
        category: "marketing",
        cap,
        job: JobId::of("shop", key),
        recipients,
    }
}

/// Fingerprints that are spread as those of names are.
fn people(count: u64) -> Vec<Fingerprint> {
    let spread = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (1..=count)
        .map(|number| Fingerprint(spread(number)))
        .collect()
}

async fn take(
    store: &impl FrequencyCaps,
    key: &str,
    cap: FrequencyCap,
    recipients: &[Fingerprint],
) -> Vec<bool> {
    store.take_units(units(key, cap, recipients)).await.unwrap()
}

async fn no_recipient_gets_more_messages_than_the_cap(bench: &impl StoreBench) {
    let store = bench.store();
    // More than one script call takes at once.
    let all = people(2500);
    let half: Vec<_> = all.iter().step_by(2).copied().collect();
    assert_eq!(take(store, "a", two(), &all).await, [true; 2500]);
    assert_eq!(take(store, "b", two(), &half).await, [true; 1250]);
    let third = take(store, "c", two(), &all).await;
    assert!(
        third
            .iter()
            .enumerate()
            .all(|(at, taken)| *taken == (at % 2 == 1)),
        "those of the first two jobs get no third message"
    );
    assert_eq!(take(store, "d", two(), &all).await, [false; 2500]);
    // A cap that allows more goes on with the same count.
    let three = FrequencyCap { max: 3, ..two() };
    assert_eq!(take(store, "d", three, &all).await, [true; 2500]);
    assert_eq!(take(store, "e", three, &all[..1]).await, [false]);
    assert_eq!(take(store, "e", three, &[]).await, [false; 0]);
}

async fn attempts_of_a_job_use_one_unit(bench: &impl StoreBench) {
    let (store, ann) = (bench.store(), people(1));
    for _ in 0..5 {
        assert_eq!(take(store, "a", two(), &ann).await, [true]);
    }
    for _ in 0..2 {
        assert_eq!(take(store, "b", two(), &ann).await, [true]);
    }
    assert_eq!(take(store, "c", two(), &ann).await, [false]);
    assert_eq!(take(store, "a", two(), &ann).await, [true]);
}

async fn a_unit_that_goes_back_is_free(bench: &impl StoreBench) {
    let (store, all) = (bench.store(), people(3));
    for key in ["a", "b"] {
        assert_eq!(take(store, key, two(), &all).await, [true; 3]);
    }
    for _ in 0..2 {
        let back = units("a", two(), &all[..2]);
        store.give_back_units(back).await.unwrap();
        let never_taken = units("c", two(), &all);
        store.give_back_units(never_taken).await.unwrap();
    }
    assert_eq!(take(store, "c", two(), &all).await, [true, true, false]);
    assert_eq!(take(store, "d", two(), &all).await, [false; 3]);
}

async fn caps_are_counted_apart(bench: &impl StoreBench) {
    let (store, ann) = (bench.store(), people(1));
    let one = FrequencyCap { max: 1, ..two() };
    assert_eq!(take(store, "a", one, &ann).await, [true]);
    assert_eq!(take(store, "b", one, &ann).await, [false]);
    let longer = FrequencyCap {
        period: 2 * DAY,
        ..one
    };
    let others = [
        CapUnits {
            category: "news",
            ..units("b", one, &ann)
        },
        CapUnits {
            app: "bank",
            ..units("b", one, &ann)
        },
        units("b", longer, &ann),
    ];
    for other in others {
        assert_eq!(store.take_units(other).await.unwrap(), [true], "{other:?}");
    }
}

/// With a short period, units lie in two periods by turns, and each of them ends.
async fn a_unit_counts_for_a_period_and_no_longer(bench: &impl StoreBench) {
    let (store, ann) = (bench.store(), people(1));
    let period = Duration::from_millis(200);
    let cap = FrequencyCap { max: 1, period };
    let mut taken = Instant::now();
    assert_eq!(take(store, "0", cap, &ann).await, [true]);
    for number in 1..=3 {
        let key = number.to_string();
        let asked = until("a unit is free again", PATIENCE, async || {
            let asked = Instant::now();
            (take(store, &key, cap, &ann).await == [true]).then_some(asked)
        })
        .await;
        // The clock of the store counts in milliseconds.
        let least = period.saturating_sub(Duration::from_millis(2));
        assert!(taken.elapsed() >= least, "{:?}", taken.elapsed());
        taken = asked;
    }
}

async fn jobs_that_ask_at_once_never_exceed_the_cap(bench: &impl StoreBench) {
    let (store, all) = (bench.store(), people(40));
    let three = FrequencyCap { max: 3, ..two() };
    let all = &all;
    let jobs = (0..12).map(|number| async move {
        let key = format!("job {number}");
        // Each worker of a job takes the units of some recipients, and one asks twice.
        let (some, others) = all.split_at(20);
        let again = take(store, &key, three, some).await;
        let taken = take(store, &key, three, some).await;
        assert!(
            again
                .iter()
                .zip(&taken)
                .all(|(first, then)| !first || *then)
        );
        [taken, take(store, &key, three, others).await].concat()
    });
    let taken = futures_util::future::join_all(jobs).await;
    for (at, recipient) in all.iter().enumerate() {
        let got = taken.iter().filter(|of_job| of_job[at]).count();
        assert_eq!(got, 3, "{recipient:?}");
    }
}
