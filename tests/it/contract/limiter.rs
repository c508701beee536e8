//! Tests the limiter port.

use std::time::{Duration, Instant, SystemTime};

use fanwise::domain::limits::{Cost, Grant, LimitScope, Rate, Weight};
use fanwise::ports::{Limit, Limiter, Park, ParkReason};

use super::{StoreBench, TARGET};

on_all! { EmbeddedBench, RedisBench, ClusterBench:
    a_lease_books_what_the_limit_allows,
    a_lease_may_wait_in_the_order_of_asking,
    a_rate_is_kept_by_all_who_share_it,
    what_is_refunded_can_be_had_again,
    what_is_booked_can_be_told,
    dear_and_light_messages_share_a_limit,
    a_pace_that_changes_keeps_what_was_booked,
    a_target_is_parked_until_the_later_end,
}

pub(crate) fn limit(rate: &str, cost: Cost) -> Limit<'static> {
    Limit {
        scope: LimitScope::Target,
        name: TARGET,
        rate: rate.parse().unwrap(),
        cost,
        weight: Weight::ONE,
    }
}

fn at_once(units: u32) -> Grant {
    Grant::Units {
        units,
        after: Duration::ZERO,
    }
}

/// A lease grants what the limit allows now. Limits of another name, cost or rate are limits of
/// their own.
async fn a_lease_books_what_the_limit_allows(bench: &impl StoreBench) {
    let store = bench.store();
    // Slow enough that nothing refills while the test runs.
    let target = limit("10/h burst 4", Cost::PerCall);
    let now = Duration::ZERO;
    let lease = async |limit, units| store.lease(&limit, units, now).await.unwrap();
    assert_eq!(lease(target, 3).await, at_once(3));
    assert_eq!(lease(target, 3).await, at_once(1));
    let grant = lease(target, 1).await;
    assert!(
        matches!(grant, Grant::Later { after } if after > Duration::from_secs(30)),
        "{grant:?}"
    );
    let name = Limit {
        name: "other",
        ..target
    };
    let scope = Limit {
        scope: LimitScope::App,
        ..target
    };
    let cost = Limit {
        cost: Cost::PerRecipient,
        ..target
    };
    let rate = Limit {
        rate: "20/h burst 4".parse().unwrap(),
        ..target
    };
    for other in [name, scope, cost, rate] {
        assert_eq!(lease(other, 4).await, at_once(4), "{other:?}");
    }
}

async fn a_lease_may_wait_in_the_order_of_asking(bench: &impl StoreBench) {
    let store = bench.store();
    let slow = limit("60/min burst 1", Cost::PerRecipient);
    let second = Duration::from_secs(1);
    let first = store.lease(&slow, 1, second * 5).await.unwrap();
    assert_eq!(first, at_once(1));
    let mut before = Duration::ZERO;
    for _ in 0..3 {
        let grant = store.lease(&slow, 1, second * 5).await.unwrap();
        let Grant::Units { units: 1, after } = grant else {
            panic!("{grant:?}");
        };
        assert!(after > before && after <= before + second, "{after:?}");
        before = after;
    }
}

/// Four tasks take what they are granted for a second: together no more than rate × time + burst,
/// and not much less.
async fn a_rate_is_kept_by_all_who_share_it(bench: &impl StoreBench) {
    let store = bench.store();
    let shared = limit("2000/s burst 50", Cost::PerRecipient);
    let started = Instant::now();
    let wait_max = Duration::from_millis(100);
    let tasks = (0..4).map(|_| async move {
        let mut taken = 0;
        while started.elapsed() < Duration::from_secs(1) {
            match store.lease(&shared, 20, wait_max).await.unwrap() {
                Grant::Units { units, after } => {
                    tokio::time::sleep(after).await;
                    taken += units;
                }
                Grant::Later { after } => tokio::time::sleep(after).await,
            }
        }
        taken
    });
    let taken: u32 = futures_util::future::join_all(tasks).await.iter().sum();
    // A lease starts within the longest wait after it was booked.
    let seconds = started.elapsed().as_secs_f64();
    let most = 2000.0 * (seconds + wait_max.as_secs_f64()) + 50.0;
    assert!(f64::from(taken) <= most, "{taken} in {seconds} s");
    assert!(
        f64::from(taken) >= 1000.0 * seconds,
        "{taken} in {seconds} s"
    );
}

async fn what_is_refunded_can_be_had_again(bench: &impl StoreBench) {
    let store = bench.store();
    let slow = limit("10/h burst 10", Cost::PerCall);
    let now = Duration::ZERO;
    // It was never booked, so it cannot be refunded.
    store.refund(&slow, 5).await.unwrap();
    assert_eq!(store.lease(&slow, 100, now).await.unwrap(), at_once(10));
    store.refund(&slow, 2).await.unwrap();
    assert_eq!(store.lease(&slow, 100, now).await.unwrap(), at_once(2));
}

/// How much of each limit's burst is booked can be read any number of times, and reading books
/// nothing.
async fn what_is_booked_can_be_told(bench: &impl StoreBench) {
    let store = bench.store();
    let slow = limit("60/h burst 2", Cost::PerRecipient);
    let idle = Limit {
        scope: LimitScope::App,
        ..slow
    };
    assert!(store.booked(&[]).await.unwrap().is_empty());
    let wait_max = Duration::from_secs(120);
    // One unit takes a minute, of which some has passed.
    for expected in [0.5, 1.0, 1.5] {
        let grant = store.lease(&slow, 1, wait_max).await.unwrap();
        assert!(matches!(grant, Grant::Units { units: 1, .. }), "{grant:?}");
        for _ in 0..3 {
            let booked = store.booked(&[idle, slow]).await.unwrap();
            assert_eq!(booked[0], 0.0);
            assert!(
                booked[1] <= expected && booked[1] > expected - 0.25,
                "{booked:?}"
            );
        }
    }
}

/// A unit of weight 5 takes five units of the limit, and goes back as five.
async fn dear_and_light_messages_share_a_limit(bench: &impl StoreBench) {
    let store = bench.store();
    let light = limit("60/h burst 12", Cost::PerRecipient);
    let of = |units| Weight { units, max: 50 };
    let light = Limit {
        weight: of(1),
        ..light
    };
    let dear = Limit {
        weight: of(5),
        ..light
    };
    let lease = async |limit, units| store.lease(&limit, units, Duration::ZERO).await.unwrap();
    // The third one starts with two units that are free, and later messages wait for the rest.
    assert_eq!(lease(dear, 100).await, at_once(3));
    for limit in [dear, light] {
        assert!(matches!(lease(limit, 1).await, Grant::Later { .. }));
    }
    store.refund(&dear, 1).await.unwrap();
    assert_eq!(lease(light, 100).await, at_once(2));
    let slow = Limit {
        weight: of(1),
        ..limit("60/h burst 1", Cost::PerCall)
    };
    let dearest = Limit {
        weight: of(50),
        ..slow
    };
    assert_eq!(lease(dearest, 3).await, at_once(1));
    let grant = lease(slow, 1).await;
    assert!(
        matches!(grant, Grant::Later { after } if after > Duration::from_secs(49 * 60)),
        "{grant:?}"
    );
}

/// A job that is spread over a time has one limiter, however its rate changes, so that workers may
/// each derive the rate.
async fn a_pace_that_changes_keeps_what_was_booked(bench: &impl StoreBench) {
    let store = bench.store();
    let pace = |recipients, seconds| Limit {
        scope: LimitScope::Pace,
        rate: Rate::spread(recipients, Duration::from_secs(seconds), Cost::PerRecipient),
        ..limit("1/h", Cost::PerRecipient)
    };
    let lease = async |limit, wait| store.lease(&limit, 1, wait).await.unwrap();
    // One in ten minutes, then as seldom with another number and time.
    assert_eq!(lease(pace(6, 3600), Duration::ZERO).await, at_once(1));
    for again in [pace(5, 3000), pace(11, 6600)] {
        let grant = lease(again, Duration::ZERO).await;
        assert!(
            matches!(grant, Grant::Later { after } if after > Duration::from_secs(590)),
            "{grant:?}"
        );
    }
    // A list that grew makes it faster at once.
    let grant = lease(pace(36_000, 3600), Duration::from_secs(1)).await;
    assert!(matches!(grant, Grant::Units { .. }), "{grant:?}");
}

/// Of two parkings the one that ends later counts, until the target is unparked.
async fn a_target_is_parked_until_the_later_end(bench: &impl StoreBench) {
    let store = bench.store();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.unwrap().as_millis() as u64;
    let park = |in_ms: u64| Park {
        since_ms: now,
        until_ms: now + in_ms,
        reason: ParkReason::Throttled,
        code: "416".to_owned(),
        text: "blocked by the vendor: \"too fast\"".to_owned(),
    };
    let targets = ["a".to_owned(), TARGET.to_owned()];
    let (short, long) = (park(60_000), park(120_000));
    for park in [&short, &long, &short, &long] {
        store.park(TARGET, park).await.unwrap();
    }
    let parked = store.parked(&targets).await.unwrap();
    assert_eq!(parked, [(TARGET.to_owned(), long)]);
    assert!(store.parked(&[]).await.unwrap().is_empty());
    for _ in 0..2 {
        store.unpark(TARGET).await.unwrap();
        assert!(store.parked(&targets).await.unwrap().is_empty());
    }
    let over = Park {
        until_ms: 1000,
        ..short
    };
    store.park(TARGET, &over).await.unwrap();
    assert!(store.parked(&targets).await.unwrap().is_empty());
}
