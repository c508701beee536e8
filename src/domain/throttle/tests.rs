use proptest::prelude::*;

use super::super::limits::Tat;
use super::*;

fn limit(scope: LimitScope, name: &str, rate: &str) -> LimitKey {
    LimitKey {
        scope,
        name: name.to_owned(),
        rate: rate.parse().unwrap(),
        cost: match scope {
            LimitScope::Target => Cost::PerCall,
            _ => Cost::PerRecipient,
        },
        weight: Weight::ONE,
        alone: false,
    }
}

fn ask(limits: &[&LimitKey], recipients: u32, per_call: u32) -> Ask {
    Ask {
        limits: limits.iter().map(|&it| it.clone()).collect(),
        recipients,
        per_call,
        small_job: false,
    }
}

const NOW: Duration = Duration::from_secs(1);

fn at_once(units: u32) -> Grant {
    let after = Duration::ZERO;
    Grant::Units { units, after }
}

fn used(recipients: u32, calls: u32) -> Used {
    Used {
        recipients,
        calls,
        rest: true,
    }
}

/// Grants every block that is asked for, and returns who was served with how many.
fn lease_all(throttle: &mut Throttle<char>, now: Duration) -> Vec<(char, u32)> {
    let mut served = Vec::new();
    for block in throttle.to_lease(now) {
        assert!(
            throttle
                .leased(&block, at_once(block.units), now)
                .is_empty()
        );
        let more = throttle.serve(Some(&block.limit), now);
        served.extend(more.into_iter().map(|(who, _, units)| (who, units)));
    }
    served
}

/// A slice gets units of all its limits, or waits; what one limit has stays for others.
#[test]
fn limits_agree_or_nothing_is_taken() {
    let target = limit(LimitScope::Target, "im", "1000/s");
    let (a, b) = (
        limit(LimitScope::App, "a", "1000/s"),
        limit(LimitScope::App, "b", "1000/s"),
    );
    let mut throttle = Throttle::default();
    throttle.wait(ask(&[&target, &a], 10, 1), 'a', NOW);
    let blocks = throttle.to_lease(NOW);
    assert_eq!(blocks.len(), 2, "{blocks:?}");
    assert!(throttle.to_lease(NOW).is_empty(), "each is asked once");
    let of_target = blocks.iter().find(|it| it.limit == target).unwrap();
    let of_app = blocks.iter().find(|it| it.limit == a).unwrap();
    assert_eq!((of_target.units, of_app.units), (10, 10));
    throttle.leased(of_target, at_once(10), NOW);
    assert!(throttle.serve(Some(&target), NOW).is_empty());

    throttle.wait(ask(&[&target, &b], 4, 1), 'b', NOW);
    let of_b = throttle.to_lease(NOW);
    assert_eq!(of_b.len(), 2, "app b, and calls for both: {of_b:?}");
    let of_b = of_b.into_iter().find(|it| it.limit == b).unwrap();
    throttle.leased(&of_b, at_once(4), NOW);
    let served = throttle.serve(Some(&b), NOW);
    assert!(matches!(served[..], [('b', _, 4)]), "{served:?}");
    throttle.leased(of_app, at_once(10), NOW);
    let served = throttle.serve(Some(&a), NOW);
    assert!(matches!(served[..], [('a', _, 6)]), "{served:?}");
}

/// A packed call is filled when that takes one more block, and is not put off for ever when the
/// limit grants less.
#[test]
fn a_call_is_filled_where_the_limit_allows() {
    let app = limit(LimitScope::App, "a", "500/s");
    let mut throttle = Throttle::default();
    throttle.wait(ask(&[&app], 300, 100), 'a', NOW);
    let block = throttle.to_lease(NOW).remove(0);
    assert_eq!(block.units, 100, "50 ms are 25 recipients, a call is 100");
    throttle.leased(&block, at_once(100), NOW);
    let served = throttle.serve(Some(&app), NOW);
    assert!(matches!(served[..], [('a', _, 100)]), "{served:?}");

    throttle.wait(ask(&[&app], 300, 100), 'a', NOW);
    let block = throttle.to_lease(NOW).remove(0);
    throttle.leased(&block, at_once(12), NOW);
    assert!(throttle.serve(None, NOW).is_empty());
    let served = throttle.serve(Some(&app), NOW);
    assert!(matches!(served[..], [('a', _, 12)]), "{served:?}");
}

/// While the limit does not bind, the worker leases ahead, more each time up to 50 ms of the rate.
/// Once the limit makes it wait, it leases only what is needed.
#[test]
fn units_are_leased_ahead_while_the_limit_does_not_bind() {
    let target = limit(LimitScope::Target, "im", "10000/s");
    let mut throttle = Throttle::default();
    let mut blocks = Vec::new();
    for _ in 0..200 {
        throttle.wait(ask(&[&target], 32, 1), 'a', NOW);
        if throttle.serve(None, NOW).is_empty() {
            assert!(!lease_all(&mut throttle, NOW).is_empty());
        }
        for block in throttle.to_lease(NOW) {
            blocks.push(block.units);
            throttle.leased(&block, at_once(block.units), NOW);
        }
        let units = throttle.pools[&target].units;
        assert!(units <= 500, "{units} are more than 50 ms");
    }
    let leased: u32 = blocks.iter().sum();
    assert!(blocks.len() <= 30, "{} blocks of {leased}", blocks.len());
    assert!(*blocks.iter().max().unwrap() > 200, "{blocks:?}");

    throttle.pools.get_mut(&target).unwrap().units = 0;
    throttle.wait(ask(&[&target], 32, 1), 'a', NOW);
    let block = throttle.to_lease(NOW).remove(0);
    let waited = Grant::Units {
        units: block.units,
        after: Duration::from_millis(20),
    };
    throttle.leased(&block, waited, NOW);
    throttle.serve(Some(&target), NOW);
    throttle.pools.get_mut(&target).unwrap().units = 0;
    assert!(throttle.to_lease(NOW).is_empty(), "nobody waits");
}

/// Units that no slice takes go back after a while, and all of them at the end.
#[test]
fn unused_units_go_back() {
    let (target, app) = (
        limit(LimitScope::Target, "im", "1000/s"),
        limit(LimitScope::App, "a", "1000/s"),
    );
    let mut throttle = Throttle::default();
    throttle.wait(ask(&[&target, &app], 30, 10), 'a', NOW);
    assert_eq!(lease_all(&mut throttle, NOW), [('a', 30)]);
    throttle.correct(&ask(&[&target, &app], 30, 10), 30, used(20, 2));
    assert!(throttle.unused(NOW + KEPT / 2).is_empty());
    assert_eq!(throttle.next_due(NOW), Some(NOW + KEPT));
    let mut unused = throttle.unused(NOW + KEPT);
    unused.sort_by_key(|block| block.units);
    let units: Vec<_> = unused.iter().map(|it| (it.limit.scope, it.units)).collect();
    assert_eq!(units, [(LimitScope::Target, 1), (LimitScope::App, 10)]);
    assert!(throttle.unused(NOW + KEPT).is_empty());
    throttle.unused(NOW + FORGOTTEN_AFTER);
    assert!(throttle.pools.is_empty());

    throttle.wait(ask(&[&app], 3, 1), 'a', NOW);
    assert_eq!(lease_all(&mut throttle, NOW), [('a', 3)]);
    throttle.correct(&ask(&[&app], 3, 1), 3, Used::NOTHING);
    assert_eq!(
        throttle.close(),
        [Block {
            limit: app,
            units: 3
        }]
    );
}

/// A process that stood still does not use the units that it had before, and gives none of them back
/// for a second that is over.
#[test]
fn units_from_before_a_standstill_are_not_used() {
    let target = limit(LimitScope::Target, "im", "1000/s");
    let one = ask(&[&target], 10, 1);
    for (late, given_back) in [(KEPT, 20), (2 * KEPT, 0)] {
        let mut throttle = Throttle::default();
        throttle.wait(ask(&[&target], 30, 1), 'a', NOW);
        assert_eq!(lease_all(&mut throttle, NOW), [('a', 30)]);
        throttle.correct(&ask(&[&target], 30, 1), 30, used(10, 10));
        assert_eq!(throttle.pools[&target].fresh(NOW), 20);

        let then = NOW + late;
        throttle.wait(one.clone(), 'b', then);
        assert!(throttle.serve(None, then).is_empty());
        let unused = throttle.unused(then);
        let units: u32 = unused.iter().map(|block| block.units).sum();
        assert_eq!(units, given_back);
        assert_eq!(lease_all(&mut throttle, then), [('b', 10)]);

        let old = Used {
            rest: false,
            ..used(0, 0)
        };
        let left = throttle.pools[&target].units;
        throttle.correct(&one, 10, old);
        assert_eq!(
            throttle.pools[&target].units, left,
            "they are not for others"
        );
    }
}

/// A limit of an app sends its slices away; the limit of the target makes all wait.
#[test]
fn the_limit_of_an_app_frees_the_places_of_its_slices() {
    let (target, app) = (
        limit(LimitScope::Target, "im", "1/min"),
        limit(LimitScope::App, "a", "1/min"),
    );
    let later = Grant::Later {
        after: Duration::from_secs(30),
    };
    let mut throttle = Throttle::default();
    throttle.wait(ask(&[&target, &app], 1, 1), 'a', NOW);
    throttle.wait(ask(&[&target], 1, 1), 'b', NOW);
    let blocks = throttle.to_lease(NOW);
    let of = |wanted: &LimitKey| blocks.iter().find(|it| it.limit == *wanted).unwrap();
    assert!(throttle.leased(of(&target), later, NOW).is_empty());
    assert!(
        throttle.to_lease(NOW).is_empty(),
        "asked again when it may grant"
    );
    let sent_away = throttle.leased(of(&app), later, NOW);
    assert_eq!(sent_away, [('a', Duration::from_secs(30))]);
    let then = NOW + Duration::from_secs(30);
    assert_eq!(throttle.next_due(NOW), Some(then));
    assert_eq!(lease_all(&mut throttle, then), [('b', 1)]);
}

/// Small jobs go first, and the others get every fourth grant. Who leaves does not count.
#[test]
fn small_jobs_go_first_and_starve_none() {
    let target = limit(LimitScope::Target, "im", "20/s");
    let mut throttle = Throttle::default();
    let one = ask(&[&target], 1, 1);
    let small = Ask {
        small_job: true,
        ..one.clone()
    };
    let gone = throttle.wait(small.clone(), 'x', NOW);
    throttle.leave(gone);
    for big in ['A', 'B', 'C'] {
        throttle.wait(one.clone(), big, NOW);
    }
    for small_job in ['a', 'b', 'c', 'd', 'e'] {
        throttle.wait(small.clone(), small_job, NOW);
    }
    let mut order = String::new();
    while order.len() < 8 {
        let block = throttle.to_lease(NOW).remove(0);
        assert_eq!(block.units, 1);
        throttle.leased(&block, at_once(1), NOW);
        order.extend(throttle.serve(Some(&target), NOW).iter().map(|it| it.0));
    }
    assert_eq!(order, "abcAdeBC");
}

/// Calls that were split take more units than were granted; the next block covers them.
#[test]
fn what_was_overdrawn_is_paid_by_the_next_block() {
    let target = limit(LimitScope::Target, "im", "100/s");
    let one = ask(&[&target], 1, 1);
    let mut throttle = Throttle::default();
    throttle.wait(one.clone(), 'a', NOW);
    lease_all(&mut throttle, NOW);
    throttle.correct(&one, 1, used(1, 3));
    assert_eq!(throttle.pools[&target].units, -2);
    throttle.wait(one, 'b', NOW);
    let block = throttle.to_lease(NOW).remove(0);
    assert_eq!(
        block.units, 4,
        "one, one ahead, and two that were overdrawn"
    );
    throttle.leased(&block, at_once(4), NOW);
    assert_eq!(throttle.serve(Some(&target), NOW).len(), 1);
    assert_eq!(throttle.pools[&target].units, 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Two workers share one limit, and their slices ask as they like: no second starts more than
    /// the rate, the burst, and one block for each worker. Nothing is granted that was not leased.
    #[test]
    fn no_second_exceeds_the_rate_by_more_than_a_block_of_each_worker(
        units in 20u32..5000, burst in 1u32..200,
        asks in prop::collection::vec((0u64..60, 1u32..64, any::<bool>(), 0u32..8), 1..150),
    ) {
        let rate = Rate { units, period: Duration::from_secs(1), burst, cost: None };
        let limit = LimitKey { rate, ..limit(LimitScope::App, "a", "1/s") };
        let mut tat = Tat::default();
        let mut workers = [Throttle::default(), Throttle::default()];
        // Blocks that may be used from a time on.
        let mut under_way: Vec<(Duration, usize, Block, Grant)> = Vec::new();
        let mut starts: Vec<(Duration, u32)> = Vec::new();
        let (mut now, mut leased, mut back) = (NOW, 0u64, 0u64);
        let ms = Duration::from_millis;
        for (gap, want, second, unused) in asks {
            for _ in 0..=gap {
                for (index, throttle) in workers.iter_mut().enumerate() {
                    for block in throttle.unused(now) {
                        tat.refund(&rate, block.units);
                        back += u64::from(block.units);
                    }
                    for block in throttle.to_lease(now) {
                        let us = now.as_micros() as u64;
                        let grant = tat.lease(&rate, us, block.units, Duration::from_secs(1));
                        let due = match grant {
                            Grant::Units { after, units } => {
                                leased += u64::from(units);
                                now + after
                            }
                            Grant::Later { .. } => now,
                        };
                        under_way.push((due, index, block, grant));
                    }
                }
                let (due, rest): (Vec<_>, Vec<_>) =
                    under_way.drain(..).partition(|it| it.0 <= now);
                under_way = rest;
                for (_, index, block, grant) in due {
                    let throttle = &mut workers[index];
                    throttle.leased(&block, grant, now);
                    for (_, ask, recipients) in throttle.serve(Some(&block.limit), now) {
                        let taken = recipients.saturating_sub(unused);
                        throttle.correct(&ask, recipients, used(taken, taken));
                        starts.push((now, taken));
                    }
                }
                now += ms(1);
            }
            let throttle = &mut workers[usize::from(second)];
            throttle.wait(ask(&[&limit], want, 1), 'a', now);
            for (_, _, recipients) in throttle.serve(None, now) {
                starts.push((now, recipients));
            }
        }
        let started: u64 = starts.iter().map(|it| u64::from(it.1)).sum();
        prop_assert!(started + back <= leased, "{started} + {back} of {leased}");
        let block = f64::from(rate.lease_units(u32::MAX));
        for (first, _) in &starts {
            let second = starts.iter().filter(|(at, _)| at >= first && *at < *first + ms(1000));
            let sum: u64 = second.map(|it| u64::from(it.1)).sum();
            let most = f64::from(units) + f64::from(burst) + 2.0 * block + 1.0;
            prop_assert!(sum as f64 <= most, "{sum} in a second, at most {most}");
        }
    }
}

/// The apps and jobs are known whose units come late, and for a moment afterwards; a target is not.
#[test]
fn who_waits_for_a_limit_of_its_own_is_known() {
    let mut throttle = Throttle::<char>::default();
    let job = JobId::of("shop", "sale");
    let limits = [
        limit(LimitScope::Target, "im", "10/s"),
        limit(LimitScope::App, "shop", "10/s"),
        limit(LimitScope::Job, &job.to_string(), "10/s"),
    ];
    assert!(throttle.held_up(NOW).is_empty());
    let after = Duration::from_millis(100);
    throttle.late(&limits[0], after, NOW);
    assert!(throttle.held_up(NOW).is_empty());
    throttle.late(&limits[2], after, NOW);
    assert!(throttle.held_up(NOW).has("shop", job));
    assert!(
        !throttle
            .held_up(NOW)
            .has("shop", JobId::of("shop", "other"))
    );
    throttle.late(&limits[1], after, NOW);
    assert!(
        throttle
            .held_up(NOW)
            .has("shop", JobId::of("shop", "other"))
    );
    assert!(
        !throttle
            .held_up(NOW)
            .has("bank", JobId::of("bank", "other"))
    );
    assert!(!throttle.held_up(NOW + after).is_empty());
    assert!(throttle.held_up(NOW + after + HELD_UP).is_empty());
}
