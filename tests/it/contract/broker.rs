//! Tests the broker port.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use fanwise::domain::directive::{Scope, Subject};
use fanwise::domain::lane::Priority;
use fanwise::domain::schedule::RUNGS;
use fanwise::domain::waking::Waking;
use fanwise::ports::{
    Broker, BrokerError, Consumer, Delivery, EditSummary, Followed, Follower, Lost, PublishError,
    Publisher, RetainedEdit, RetainedMessage, RetainedQueue, RetainedQueues, Route, Session, Shown,
    Source,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{
    BrokerBench, EmbeddedBench, MemoryBench, PATIENCE, RabbitBench, TARGET, TRACEPARENT, bulk,
    dead_letter, express, outgoing, slice,
};
use crate::support::wait::until;

on_all! { EmbeddedBench, RabbitBench:
    what_is_published_comes_out_as_it_went_in,
    what_is_acked_is_gone_for_good,
    what_is_given_back_comes_again,
    first_come_is_first_served,
    prefetch_bounds_what_is_unacked,
    consumers_of_one_source_share_it,
    what_a_closed_session_held_comes_back,
    a_dropped_delivery_comes_back_with_the_next_session,
    a_stale_delivery_can_only_be_lost,
    a_cancelled_consumer_hands_out_what_it_has,
    next_is_cancel_safe,
    a_waiting_slice_returns_in_time_to_its_lane,
    a_long_wait_does_not_hold_up_a_short_one,
    a_slice_that_is_woken_returns_at_once_and_the_others_keep_their_time,
    a_job_that_waits_returns_to_its_queue,
    a_rejected_message_is_kept_with_its_reason,
    dead_letters_are_read_in_place,
    dead_letters_are_sifted,
    dead_letters_are_followed,
    changes_at_the_same_time_all_come_about,
    a_sifting_that_is_broken_off_loses_nothing,
    what_leads_nowhere_is_never_reported_as_published,
    events_may_lead_nowhere,
    many_publish_at_once_and_nothing_is_lost,
    a_lane_of_no_target_cannot_be_consumed,
}

async fn next(consumer: &mut impl Consumer) -> Delivery {
    let next = timeout(PATIENCE, consumer.next()).await;
    next.expect("a delivery in time").expect("a delivery")
}

/// Checks that nothing arrives for a while.
async fn silence(consumer: &mut impl Consumer) {
    let next = timeout(Duration::from_millis(300), consumer.next()).await;
    if let Ok(delivery) = next {
        panic!("{:?}", delivery.map(|delivery| delivery.body));
    }
}

fn lane_source() -> Source {
    Source::Lane(express())
}

fn numbered(delivery: &Delivery) -> u32 {
    parse(&delivery.body)
}

fn parse(body: &[u8]) -> u32 {
    std::str::from_utf8(body).unwrap().parse().unwrap()
}

async fn publish_numbers<S: Session>(session: &S, numbers: std::ops::Range<u32>) {
    let slices = numbers.map(|number| slice(number.to_string())).collect();
    session.publisher().publish(slices).await.unwrap();
}

async fn kept<B: RetainedQueues>(broker: &B, retained: RetainedQueue) -> Vec<RetainedMessage> {
    let mut kept = Vec::new();
    let keep = |message| {
        kept.push(message);
        ControlFlow::Continue(())
    };
    let shown = broker.read(retained, keep).await.unwrap();
    assert_eq!(shown, kept.len() as u64);
    kept
}

/// Jobs of each priority and slices come out of their own source, byte for byte, with their trace
/// context. Bodies may be large.
async fn what_is_published_comes_out_as_it_went_in(bench: &impl BrokerBench) {
    let session = bench.broker().connect().await.unwrap();
    let large: Vec<u8> = (0..=255).cycle().take(3_000_000).collect();
    let mut sources = vec![(lane_source(), Route::Lane(express()), vec![0, 255, 0])];
    for &priority in Priority::ALL {
        let body = format!("job {}", priority.as_str()).into_bytes();
        sources.push((Source::Jobs(priority), Route::Job(priority), body));
    }
    sources[2].2 = large;
    let messages = sources
        .iter()
        .map(|(_, route, body)| outgoing(route.clone(), body.clone()))
        .collect();
    session.publisher().publish(messages).await.unwrap();
    for (source, _, body) in sources {
        let mut consumer = session.consume(source, 3).await.unwrap();
        let delivery = next(&mut consumer).await;
        assert!(delivery.body == body, "{} bytes", delivery.body.len());
        assert_eq!(delivery.traceparent.as_deref(), Some(TRACEPARENT));
        assert!(!delivery.redelivered);
        delivery.ack().await.unwrap();
        silence(&mut consumer).await;
    }
    session.close().await;
}

async fn what_is_acked_is_gone_for_good(bench: &impl BrokerBench) {
    let session = bench.broker().connect().await.unwrap();
    publish_numbers(&session, 0..20).await;
    let mut consumer = session.consume(lane_source(), 20).await.unwrap();
    for _ in 0..20 {
        next(&mut consumer).await.ack().await.unwrap();
    }
    session.close().await;
    let session = bench.broker().connect().await.unwrap();
    let mut consumer = session.consume(lane_source(), 20).await.unwrap();
    silence(&mut consumer).await;
    session.close().await;
    until("empty queues", PATIENCE, async || {
        (bench.ready().await == 0).then_some(())
    })
    .await;
}

async fn what_is_given_back_comes_again(bench: &impl BrokerBench) {
    let session = bench.broker().connect().await.unwrap();
    publish_numbers(&session, 0..1).await;
    let mut consumer = session.consume(lane_source(), 5).await.unwrap();
    for round in 0..4 {
        let delivery = next(&mut consumer).await;
        assert_eq!((numbered(&delivery), delivery.redelivered), (0, round > 0));
        delivery.requeue().await.unwrap();
    }
    let other = session.consume(lane_source(), 5).await;
    consumer.cancel().await;
    while let Some(delivery) = timeout(PATIENCE, consumer.next()).await.unwrap() {
        delivery.requeue().await.unwrap();
    }
    let delivery = next(&mut other.unwrap()).await;
    assert!(delivery.redelivered);
    delivery.ack().await.unwrap();
    session.close().await;
}

/// With one consumer and without requeues, the order of one publisher is kept, across publishes and
/// past any prefetch.
async fn first_come_is_first_served(bench: &impl BrokerBench) {
    let session = bench.broker().connect().await.unwrap();
    let mut consumer = session.consume(lane_source(), 7).await.unwrap();
    for batch in 0..10 {
        publish_numbers(&session, batch * 20..batch * 20 + 20).await;
    }
    for number in 0..200 {
        let delivery = next(&mut consumer).await;
        assert_eq!(numbered(&delivery), number);
        delivery.ack().await.unwrap();
    }
    session.close().await;
}

async fn prefetch_bounds_what_is_unacked(bench: &impl BrokerBench) {
    let session = bench.broker().connect().await.unwrap();
    publish_numbers(&session, 0..30).await;
    let mut consumer = session.consume(lane_source(), 12).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..12 {
        held.push(next(&mut consumer).await);
    }
    silence(&mut consumer).await;
    held.remove(3).ack().await.unwrap();
    held.push(next(&mut consumer).await);
    silence(&mut consumer).await;
    held.remove(5).requeue().await.unwrap();
    held.push(next(&mut consumer).await);
    silence(&mut consumer).await;
    // Another consumer has a prefetch of its own.
    let mut other = session.consume(lane_source(), 1).await.unwrap();
    held.push(next(&mut other).await);
    silence(&mut other).await;
    let distinct: BTreeSet<u32> = held.iter().map(numbered).collect();
    assert_eq!(distinct.len(), 13);
    session.close().await;
}

async fn consumers_of_one_source_share_it(bench: &impl BrokerBench) {
    let session = bench.broker().connect().await.unwrap();
    let other = bench.broker().connect().await.unwrap();
    let mut consumers = vec![
        session.consume(lane_source(), 4).await.unwrap(),
        session.consume(lane_source(), 4).await.unwrap(),
        other.consume(lane_source(), 4).await.unwrap(),
    ];
    publish_numbers(&session, 0..12).await;
    let mut seen = BTreeSet::new();
    let mut held = Vec::new();
    for consumer in &mut consumers {
        for _ in 0..4 {
            let delivery = next(consumer).await;
            assert!(seen.insert(numbered(&delivery)), "handed out twice");
            held.push(delivery);
        }
    }
    assert_eq!(seen.len(), 12);
    for delivery in held {
        delivery.ack().await.unwrap();
    }
    session.close().await;
    other.close().await;
}

async fn what_a_closed_session_held_comes_back(bench: &impl BrokerBench) {
    let session = bench.broker().connect().await.unwrap();
    publish_numbers(&session, 0..10).await;
    let mut consumer = session.consume(lane_source(), 6).await.unwrap();
    let lost = session.lost();
    next(&mut consumer).await.ack().await.unwrap();
    let _held = [next(&mut consumer).await, next(&mut consumer).await];
    session.close().await;
    timeout(PATIENCE, lost.cancelled()).await.unwrap();
    assert!(timeout(PATIENCE, consumer.next()).await.unwrap().is_none());

    let session = bench.broker().connect().await.unwrap();
    let mut consumer = session.consume(lane_source(), 20).await.unwrap();
    let mut seen = BTreeMap::new();
    for _ in 0..9 {
        let delivery = next(&mut consumer).await;
        assert!(
            seen.insert(numbered(&delivery), delivery.redelivered)
                .is_none()
        );
        delivery.ack().await.unwrap();
    }
    assert_eq!(
        seen.keys().copied().collect::<Vec<_>>(),
        (1..10).collect::<Vec<_>>()
    );
    assert_eq!((seen[&1], seen[&2], seen[&9]), (true, true, false));
    silence(&mut consumer).await;
    session.close().await;
}

async fn a_dropped_delivery_comes_back_with_the_next_session(bench: &impl BrokerBench) {
    let session = bench.broker().connect().await.unwrap();
    publish_numbers(&session, 0..1).await;
    let mut consumer = session.consume(lane_source(), 5).await.unwrap();
    drop(next(&mut consumer).await);
    silence(&mut consumer).await;
    session.close().await;
    let session = bench.broker().connect().await.unwrap();
    let mut consumer = session.consume(lane_source(), 5).await.unwrap();
    let delivery = next(&mut consumer).await;
    assert!(delivery.redelivered);
    delivery.ack().await.unwrap();
    session.close().await;
}

async fn a_stale_delivery_can_only_be_lost(bench: &impl BrokerBench) {
    let session = bench.broker().connect().await.unwrap();
    publish_numbers(&session, 0..4).await;
    let mut consumer = session.consume(lane_source(), 4).await.unwrap();
    let (ack, requeue, reject) = (
        next(&mut consumer).await,
        next(&mut consumer).await,
        next(&mut consumer).await,
    );
    let publisher = session.publisher();
    session.close().await;
    assert_eq!(ack.ack().await, Err(Lost));
    assert_eq!(requeue.requeue().await, Err(Lost));
    let rejected = reject.reject("why".to_owned()).await;
    assert!(
        matches!(rejected, Err(PublishError::Lost(Lost))),
        "{rejected:?}"
    );
    let published = publisher.publish(vec![slice("late")]).await;
    assert!(
        matches!(published, Err(PublishError::Lost(Lost))),
        "{published:?}"
    );
    until("all four again", PATIENCE, async || {
        (bench.ready().await == 4).then_some(())
    })
    .await;
    assert!(
        kept(bench.broker(), RetainedQueue::Rejected)
            .await
            .is_empty()
    );
}

/// Deliveries in flight still come out after `cancel` and can be acked after the consumer is gone;
/// the rest stays in the queue.
async fn a_cancelled_consumer_hands_out_what_it_has(bench: &impl BrokerBench) {
    let session = bench.broker().connect().await.unwrap();
    publish_numbers(&session, 0..20).await;
    let mut consumer = session.consume(lane_source(), 5).await.unwrap();
    let mut held = vec![next(&mut consumer).await];
    consumer.cancel().await;
    while let Some(delivery) = timeout(PATIENCE, consumer.next()).await.unwrap() {
        held.push(delivery);
    }
    assert!(held.len() <= 5, "{}", held.len());
    drop(consumer);
    let count = held.len() as u64;
    for delivery in held {
        delivery.ack().await.unwrap();
    }
    assert!(!session.lost().is_cancelled());
    until("the others", PATIENCE, async || {
        (bench.ready().await == 20 - count).then_some(())
    })
    .await;
    session.close().await;
}

/// `next` is dropped again and again while it waits.
async fn next_is_cancel_safe(bench: &impl BrokerBench) {
    let session = bench.broker().connect().await.unwrap();
    let mut consumer = session.consume(lane_source(), 3).await.unwrap();
    let publishing = async {
        for number in 0..50 {
            publish_numbers(&session, number..number + 1).await;
        }
    };
    let consuming = async {
        let started = Instant::now();
        let mut expected = 0;
        while expected < 50 {
            assert!(started.elapsed() < PATIENCE, "stopped at {expected}");
            let moment = Duration::from_micros(fastrand::u64(0..300));
            if let Ok(delivery) = timeout(moment, consumer.next()).await {
                let delivery = delivery.unwrap();
                assert_eq!(numbered(&delivery), expected);
                delivery.ack().await.unwrap();
                expected += 1;
            }
        }
    };
    tokio::join!(publishing, consuming);
    session.close().await;
}

async fn a_waiting_slice_returns_in_time_to_its_lane(bench: &impl BrokerBench) {
    let session = bench.broker().connect().await.unwrap();
    let mut home = session.consume(Source::Lane(bulk()), 10).await.unwrap();
    let mut other = session.consume(lane_source(), 10).await.unwrap();
    let started = Instant::now();
    let wait = |body: &'static str| {
        let lane = bulk();
        let rung = RUNGS[0];
        outgoing(Route::Wait { lane, rung }, body)
    };
    let publisher = session.publisher();
    publisher.publish(vec![wait("a"), wait("b")]).await.unwrap();
    for body in ["a", "b"] {
        let delivery = next(&mut home).await;
        let waited = started.elapsed();
        assert!(waited >= RUNGS[0] && waited < RUNGS[0] * 4, "{waited:?}");
        assert_eq!(delivery.body, body);
        assert_eq!(delivery.traceparent.as_deref(), Some(TRACEPARENT));
        delivery.ack().await.unwrap();
    }
    silence(&mut home).await;
    silence(&mut other).await;
    session.close().await;
}

/// A job on the ladder comes back to the jobs of its priority: in time, or when it is woken.
async fn a_job_that_waits_returns_to_its_queue(bench: &impl BrokerBench) {
    let session = bench.broker().connect().await.unwrap();
    let jobs = Source::Jobs(Priority::Bulk);
    let mut home = session.consume(jobs, 10).await.unwrap();
    let mut other = session
        .consume(Source::Jobs(Priority::High), 10)
        .await
        .unwrap();
    let wait = |key: &str, rung: Duration| {
        let body = format!(r#"{{"v":1,"client_msg_no":"{key}","app":"shop","target":"im"}}"#);
        let priority = Priority::Bulk;
        outgoing(Route::WaitJob { priority, rung }, body)
    };
    let started = Instant::now();
    let waiting = vec![wait("soon", RUNGS[0]), wait("late", RUNGS[4])];
    session.publisher().publish(waiting).await.unwrap();
    let delivery = next(&mut home).await;
    assert!(started.elapsed() >= RUNGS[0], "{:?}", started.elapsed());
    assert!(delivery.body.windows(4).any(|it| it == b"soon"));
    assert_eq!(delivery.traceparent.as_deref(), Some(TRACEPARENT));
    delivery.ack().await.unwrap();
    let mut waking = Waking::default();
    waking.add(&Subject::new(Scope::Target, "im"));
    assert_eq!(bench.broker().wake(&waking).await.unwrap(), 1);
    let delivery = next(&mut home).await;
    assert!(delivery.body.windows(4).any(|it| it == b"late"));
    assert!(started.elapsed() < RUNGS[4], "{:?}", started.elapsed());
    delivery.ack().await.unwrap();
    silence(&mut other).await;
    session.close().await;
}

async fn a_long_wait_does_not_hold_up_a_short_one(bench: &impl BrokerBench) {
    let session = bench.broker().connect().await.unwrap();
    let mut consumer = session.consume(lane_source(), 10).await.unwrap();
    let started = Instant::now();
    for (rung, body) in [(RUNGS[1], "long"), (RUNGS[0], "short")] {
        let lane = express();
        let message = outgoing(Route::Wait { lane, rung }, body);
        session.publisher().publish(vec![message]).await.unwrap();
    }
    publish_numbers(&session, 0..1).await;
    for (body, rung) in [
        ("0", Duration::ZERO),
        ("short", RUNGS[0]),
        ("long", RUNGS[1]),
    ] {
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.body, body);
        let waited = started.elapsed();
        let late = rung + Duration::from_secs(3);
        assert!(waited >= rung && waited < late, "{body}: {waited:?}");
        delivery.ack().await.unwrap();
    }
    session.close().await;
}

async fn a_slice_that_is_woken_returns_at_once_and_the_others_keep_their_time(
    bench: &impl BrokerBench,
) {
    let session = bench.broker().connect().await.unwrap();
    let mut consumer = session.consume(lane_source(), 10).await.unwrap();
    let waits = |job: &str, rung: Duration| {
        let body = format!(r#"{{"v":1,"head":{{"id":"{job}","app":"shop","target":"im"}}}}"#);
        let lane = express();
        outgoing(Route::Wait { lane, rung }, body)
    };
    let started = Instant::now();
    let on_ladder = vec![
        waits("other", RUNGS[1]),
        waits("mine", RUNGS[5]),
        waits("other", RUNGS[5]),
        waits("mine", RUNGS[3]),
    ];
    session.publisher().publish(on_ladder).await.unwrap();
    let mut waking = Waking::default();
    waking.add(&Subject::new(Scope::Job, "mine"));
    assert_eq!(bench.broker().wake(&waking).await.unwrap(), 2);
    for _ in 0..2 {
        let delivery = next(&mut consumer).await;
        assert!(waking.takes(&delivery.body), "{:?}", delivery.body);
        assert_eq!(delivery.traceparent.as_deref(), Some(TRACEPARENT));
        delivery.ack().await.unwrap();
    }
    assert!(started.elapsed() < RUNGS[1], "{:?}", started.elapsed());
    assert_eq!(bench.broker().wake(&waking).await.unwrap(), 0);
    let delivery = next(&mut consumer).await;
    let waited = started.elapsed();
    assert!(waited >= RUNGS[1] && waited < RUNGS[1] * 2, "{waited:?}");
    assert!(!waking.takes(&delivery.body));
    delivery.ack().await.unwrap();
    silence(&mut consumer).await;
    session.close().await;
}

async fn a_rejected_message_is_kept_with_its_reason(bench: &impl BrokerBench) {
    let session = bench.broker().connect().await.unwrap();
    let body: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    let job = outgoing(Route::Job(Priority::Bulk), body.clone());
    session
        .publisher()
        .publish(vec![job, slice("no slice")])
        .await
        .unwrap();
    let mut jobs = session
        .consume(Source::Jobs(Priority::Bulk), 1)
        .await
        .unwrap();
    let mut slices = session.consume(lane_source(), 1).await.unwrap();
    let delivery = next(&mut jobs).await;
    delivery
        .reject("no client_msg_no".to_owned())
        .await
        .unwrap();
    let delivery = next(&mut slices).await;
    let reason = "é".repeat(10_000);
    delivery.reject(reason.clone()).await.unwrap();
    silence(&mut jobs).await;
    session.close().await;

    let rejected = kept(bench.broker(), RetainedQueue::Rejected).await;
    assert_eq!(rejected.len(), 2);
    let [job, slice] = &rejected[..] else {
        unreachable!()
    };
    assert!(job.body == body);
    assert_eq!(job.routing_key, "bulk");
    assert_eq!(job.headers["fanwise-reason"], "no client_msg_no");
    assert!(job.headers["fanwise-source"].contains("jobs.bulk"));
    assert!(job.headers["fanwise-rejected-at"].parse::<u64>().unwrap() > 1_700_000_000);
    assert_eq!(job.headers["traceparent"], TRACEPARENT);
    assert!(job.message_id.is_some() && job.published_at.is_some());
    assert_eq!(slice.routing_key, express().to_string());
    assert_eq!(slice.message_id.as_deref(), Some("id-no slice"));
    let kept_reason = &slice.headers["fanwise-reason"];
    assert!(reason.starts_with(kept_reason) && kept_reason.len() > 1000);
    assert_eq!(bench.ready().await, 0);
}

/// Each message is kept, removed or replaced, as decided; messages that were not looked at stay.
async fn dead_letters_are_sifted(bench: &impl BrokerBench) {
    let broker = bench.broker();
    let session = broker.connect().await.unwrap();
    let letters: Vec<_> = (0..600).map(|n| dead_letter(n.to_string())).collect();
    for letters in letters.chunks(100) {
        session.publisher().publish(letters.to_vec()).await.unwrap();
    }
    session.close().await;

    let before = kept(broker, RetainedQueue::Dead).await;
    let decide = |message: RetainedMessage| match parse(&message.body) {
        590 => RetainedEdit::Stop,
        n if n % 3 == 0 => RetainedEdit::Remove,
        n if n % 3 == 1 => RetainedEdit::Replace(format!("{}", 10_000 + n).into()),
        _ => RetainedEdit::Keep,
    };
    let summary = broker.edit(RetainedQueue::Dead, decide).await.unwrap();
    let expected = EditSummary {
        shown: 591,
        removed: 197,
        replaced: 197,
    };
    assert_eq!(summary, expected);
    let after = kept(broker, RetainedQueue::Dead).await;
    let mut numbers: Vec<u32> = after.iter().map(|letter| parse(&letter.body)).collect();
    numbers.sort_unstable();
    let stay = (0..600).filter(|n| *n >= 590 || n % 3 == 2);
    let other = (0..590).filter(|n| n % 3 == 1).map(|n| 10_000 + n);
    assert_eq!(numbers, stay.chain(other).collect::<Vec<_>>());
    for letter in &after {
        let number = parse(&letter.body) % 10_000;
        let same = &before[number as usize];
        let replaced = RetainedMessage {
            body: letter.body.clone(),
            ..same.clone()
        };
        assert_eq!(*letter, replaced);
    }
    // Again: a replacement is a message like any other.
    let all = broker
        .edit(RetainedQueue::Dead, |_| RetainedEdit::Replace("7".into()))
        .await;
    assert_eq!(all.unwrap().replaced, 403);
    let letters = kept(broker, RetainedQueue::Dead).await;
    assert!(
        letters
            .iter()
            .all(|it| it.body == "7" && it.routing_key == before[0].routing_key)
    );
    let all = broker
        .edit(RetainedQueue::Dead, |_| RetainedEdit::Remove)
        .await
        .unwrap();
    assert_eq!((all.shown, all.removed), (403, 403));
    assert!(kept(broker, RetainedQueue::Dead).await.is_empty());
}

/// A follower shows every letter, later only those that came since, and every change of an edit, of
/// whichever follower came first. A new follower shows what is left.
async fn dead_letters_are_followed(bench: &impl BrokerBench) {
    let broker = bench.broker();
    let session = broker.connect().await.unwrap();
    let publish = async |numbers: std::ops::Range<u32>| {
        let letters: Vec<_> = numbers.map(|n| dead_letter(n.to_string())).collect();
        session.publisher().publish(letters).await.unwrap();
    };
    let mut first = Following::new(broker).await;
    assert_eq!(first.catch_up().await, 0);
    publish(0..300).await;
    assert_eq!(first.catch_up().await, 300);
    assert_eq!(first.there, (0..300).collect());
    assert_eq!(first.catch_up().await, 0);
    assert_eq!(kept(broker, RetainedQueue::Dead).await.len(), 300);
    publish(300..301).await;
    assert_eq!(first.catch_up().await, 1);

    let mut other = Following::new(broker).await;
    other.catch_up().await;
    assert_eq!(other.there, (0..301).collect());
    let decide = |message: RetainedMessage| match parse(&message.body) {
        7 => RetainedEdit::Replace("1007".into()),
        n if n % 2 == 0 => RetainedEdit::Remove,
        _ => RetainedEdit::Keep,
    };
    broker.edit(RetainedQueue::Dead, decide).await.unwrap();
    let left: BTreeSet<u32> = (0..301).filter(|n| n % 2 == 1 && *n != 7).collect();
    let left = left.into_iter().chain([1007]).collect::<BTreeSet<_>>();
    // 151 are removed, one is replaced.
    assert_eq!(first.catch_up().await, 153);
    other.catch_up().await;
    assert_eq!([&first.there, &other.there], [&left, &left]);
    // An edit that changes nothing, and one more that does.
    let keep = |_| RetainedEdit::Keep;
    broker.edit(RetainedQueue::Dead, keep).await.unwrap();
    assert_eq!(first.catch_up().await, 0);
    publish(302..303).await;
    let decide = |message: RetainedMessage| match parse(&message.body) {
        1007 | 302 => RetainedEdit::Remove,
        _ => RetainedEdit::Keep,
    };
    broker.edit(RetainedQueue::Dead, decide).await.unwrap();
    let left: BTreeSet<u32> = left.into_iter().filter(|n| *n != 1007).collect();
    first.catch_up().await;
    assert_eq!(first.there, left);
    first.follower.end().await;
    other.follower.end().await;
    let mut anew = Following::new(broker).await;
    anew.catch_up().await;
    assert_eq!(anew.there, left);
    anew.follower.end().await;
    session.close().await;
}

/// A follower, and the letters that are there according to it.
struct Following<F> {
    follower: F,
    there: BTreeSet<u32>,
}

impl<F: Follower> Following<F> {
    async fn new(broker: &impl RetainedQueues<Follower = F>) -> Self {
        Self {
            follower: broker.follow(RetainedQueue::Dead).await.unwrap(),
            there: BTreeSet::new(),
        }
    }

    /// Returns how much was shown, apart from repeats.
    async fn catch_up(&mut self) -> usize {
        let mut changes = 0;
        let followed = self.follower.catch_up(|shown| {
            changes += usize::from(match shown {
                Shown::Kept(message) => self.there.insert(parse(&message.body)),
                Shown::Gone(body) => self.there.remove(&parse(&body)),
            });
            ControlFlow::Continue(())
        });
        assert_eq!(followed.await.unwrap(), Followed::All);
        changes
    }
}

/// Concurrent edits wait for each other: an edit that has succeeded is not undone by one that read
/// before it.
async fn changes_at_the_same_time_all_come_about(bench: &impl BrokerBench) {
    let broker = bench.broker();
    let session = broker.connect().await.unwrap();
    let names = ["ann", "bob", "cid", "dan"];
    let letter = dead_letter(names.join(" "));
    session.publisher().publish(vec![letter]).await.unwrap();
    session.close().await;

    let without = async |name: &str| {
        let decide = |message: RetainedMessage| {
            let text = str::from_utf8(&message.body).unwrap();
            let left: Vec<_> = text.split(' ').filter(|it| *it != name).collect();
            match left.is_empty() {
                true => RetainedEdit::Remove,
                false => RetainedEdit::Replace(left.join(" ").into()),
            }
        };
        broker.edit(RetainedQueue::Dead, decide).await.unwrap();
    };
    let (all_but_last, last) = (&names[..3], names[3]);
    futures_util::future::join_all(all_but_last.iter().map(|name| without(name))).await;
    let left = kept(broker, RetainedQueue::Dead).await;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].body, last);
    without(last).await;
    assert!(kept(broker, RetainedQueue::Dead).await.is_empty());
}

/// An edit is dropped in the middle, as when its process dies. Messages to keep are there; a
/// replaced message is there in its old form, its new form, or both; and the next edit works.
async fn a_sifting_that_is_broken_off_loses_nothing(bench: &impl BrokerBench) {
    let broker = bench.broker();
    let session = broker.connect().await.unwrap();
    let letters: Vec<_> = (0..200).map(|n| dead_letter(n.to_string())).collect();
    session.publisher().publish(letters).await.unwrap();
    session.close().await;

    let halfway = tokio::sync::Notify::new();
    let mut shown = 0;
    let decide = |message: RetainedMessage| {
        shown += 1;
        if shown == 100 {
            halfway.notify_one();
        }
        match parse(&message.body) % 3 {
            0 => RetainedEdit::Remove,
            1 => RetainedEdit::Replace(message.body),
            _ => RetainedEdit::Keep,
        }
    };
    tokio::select! {
        biased;
        () = halfway.notified() => {}
        _ = broker.edit(RetainedQueue::Dead, decide) => {}
    }
    // The broker first has to notice that the reader is gone; then the messages come back.
    let stay: BTreeSet<u32> = (0..200).filter(|n| n % 3 != 0).collect();
    until("all that stay", PATIENCE, async || {
        let mut left = BTreeSet::new();
        let read = broker.read(RetainedQueue::Dead, |message| {
            left.insert(parse(&message.body));
            ControlFlow::Continue(())
        });
        (read.await.is_ok() && left.is_superset(&stay)).then_some(())
    })
    .await;
    let again = broker
        .edit(RetainedQueue::Dead, |_| RetainedEdit::Remove)
        .await
        .unwrap();
    assert!(again.removed >= stay.len() as u64);
    assert!(kept(broker, RetainedQueue::Dead).await.is_empty());
}

/// Reading shows every message, oldest first, any number of times, and removes none. A second
/// reader sees all of them or is refused, never a part.
async fn dead_letters_are_read_in_place(bench: &impl BrokerBench) {
    let broker = bench.broker();
    let session = broker.connect().await.unwrap();
    let letters: Vec<_> = (0..1234).map(|n| dead_letter(n.to_string())).collect();
    // RabbitMQ keeps no order within one large publish.
    for letters in letters.chunks(100) {
        session.publisher().publish(letters.to_vec()).await.unwrap();
    }
    session.close().await;

    let first = kept(broker, RetainedQueue::Dead).await;
    let numbers: Vec<u32> = first.iter().map(|letter| parse(&letter.body)).collect();
    assert_eq!(numbers, (0..1234).collect::<Vec<_>>());
    assert_eq!(first[7].routing_key, format!("shop.{TARGET}"));
    assert_eq!(first[7].message_id.as_deref(), Some("id-7"));
    for _ in 0..3 {
        assert!(kept(broker, RetainedQueue::Dead).await == first);
    }
    assert!(kept(broker, RetainedQueue::Rejected).await.is_empty());

    let mut shown = 0;
    let some = |_| {
        shown += 1;
        match shown {
            700 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    };
    assert_eq!(broker.read(RetainedQueue::Dead, some).await.unwrap(), 700);

    let mut second = None;
    let nested = |_| {
        second.get_or_insert_with(|| {
            std::thread::scope(|scope| {
                let read = || {
                    let runtime = tokio::runtime::Runtime::new().unwrap();
                    runtime
                        .block_on(broker.read(RetainedQueue::Dead, |_| ControlFlow::Continue(())))
                };
                scope.spawn(read).join().unwrap()
            })
        });
        ControlFlow::Break(())
    };
    assert_eq!(broker.read(RetainedQueue::Dead, nested).await.unwrap(), 1);
    let Some(Ok(1234) | Err(BrokerError::Refused { .. })) = second else {
        panic!("{second:?}");
    };
    // After a read that broke off the order may differ, and nothing else.
    let (mut again, mut before) = (kept(broker, RetainedQueue::Dead).await, first);
    again.sort_by(|a, b| a.body.cmp(&b.body));
    before.sort_by(|a, b| a.body.cmp(&b.body));
    assert!(again == before);
}

async fn what_leads_nowhere_is_never_reported_as_published(bench: &impl BrokerBench) {
    let session = bench.broker().connect().await.unwrap();
    let nowhere = || outgoing(Route::Lane("nobody.express".parse().unwrap()), "astray");
    let publisher = session.publisher();
    let alone = publisher.publish(vec![nowhere()]).await;
    let mixed = publisher
        .publish(vec![slice("a"), nowhere(), slice("b")])
        .await;
    for result in [alone, mixed] {
        let Err(PublishError::Unroutable(what)) = result else {
            panic!("{result:?}");
        };
        assert!(what.contains("nobody.express"), "{what}");
    }
    assert!(!session.lost().is_cancelled());
    publisher.publish(vec![slice("c")]).await.unwrap();
    session.close().await;
}

async fn events_may_lead_nowhere(bench: &impl BrokerBench) {
    let session = bench.broker().connect().await.unwrap();
    let event = || {
        let app = "shop".to_owned();
        let event = "completed";
        outgoing(Route::Event { app, event }, "event")
    };
    let publisher = session.publisher();
    publisher.publish(vec![event()]).await.unwrap();
    publisher
        .publish(vec![event(), slice("0"), event()])
        .await
        .unwrap();
    let mut consumer = session.consume(lane_source(), 5).await.unwrap();
    next(&mut consumer).await.ack().await.unwrap();
    silence(&mut consumer).await;
    session.close().await;
}

async fn many_publish_at_once_and_nothing_is_lost(bench: &impl BrokerBench) {
    let session = bench.broker().connect().await.unwrap();
    let mut consumer = session.consume(lane_source(), 50).await.unwrap();
    let mut tasks = JoinSet::new();
    for task in 0..40 {
        let publisher = session.publisher();
        tasks.spawn(async move {
            for number in 0..25 {
                let body = (task * 25 + number).to_string();
                publisher.publish(vec![slice(body)]).await.unwrap();
            }
        });
    }
    let mut seen = BTreeSet::new();
    while seen.len() < 1000 {
        let delivery = next(&mut consumer).await;
        assert!(seen.insert(numbered(&delivery)));
        delivery.ack().await.unwrap();
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    silence(&mut consumer).await;
    session.close().await;
}

async fn a_lane_of_no_target_cannot_be_consumed(bench: &impl BrokerBench) {
    let session = bench.broker().connect().await.unwrap();
    let mut lane = express();
    lane.target = "nobody".to_owned();
    let refused = session.consume(Source::Lane(lane), 1).await;
    assert!(matches!(refused, Err(BrokerError::Refused { .. })));
    session.close().await;
}

// ---------------------------------------------------------------------------------------------
// Against a model
// ---------------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum Step {
    /// This many messages, into the lane or the jobs queue.
    Publish {
        lane: bool,
        count: u32,
    },
    Take {
        lane: bool,
    },
    /// One of the messages held.
    Ack {
        held: usize,
    },
    Requeue {
        held: usize,
    },
    Reject {
        held: usize,
    },
    Dead {
        count: u32,
    },
    /// Ends the session and opens another one.
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (any::<bool>(), 1..6u32).prop_map(|(lane, count)| Step::Publish { lane, count }),
        8 => any::<bool>().prop_map(|lane| Step::Take { lane }),
        4 => any::<usize>().prop_map(|held| Step::Ack { held }),
        2 => any::<usize>().prop_map(|held| Step::Requeue { held }),
        1 => any::<usize>().prop_map(|held| Step::Reject { held }),
        1 => (1..4u32).prop_map(|count| Step::Dead { count }),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..60)
}

fn any_order_of_steps<T: BrokerBench>(
    cases: u32,
    start: impl AsyncFn() -> Option<T>,
    finish: impl AsyncFn(T),
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let Some(bench) = runtime.block_on(start()) else {
        return;
    };
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&steps(), |steps| {
            runtime.block_on(play(&bench, steps));
            Ok(())
        })
        .unwrap();
    runtime.block_on(finish(bench));
}

#[test]
fn whatever_is_done_nothing_is_lost_on_the_embedded_engine() {
    any_order_of_steps(
        60,
        async || Some(EmbeddedBench::start().await),
        async |bench| bench.finish().await,
    );
}

#[test]
fn whatever_is_done_nothing_is_lost_in_memory() {
    any_order_of_steps(200, async || Some(MemoryBench::start()), async |_| {});
}

#[test]
fn whatever_is_done_nothing_is_lost_on_servers() {
    any_order_of_steps(5, RabbitBench::start, async |bench| bench.finish().await);
}

/// For two sources: the messages that were published and are neither held nor ended. Messages are
/// numbers.
#[derive(Default)]
struct Model {
    queued: [BTreeSet<u32>; 2],
    came_back: BTreeSet<u32>,
    rejected: Vec<u32>,
    dead: u32,
}

async fn play<T: BrokerBench>(bench: &T, steps: Vec<Step>) {
    const PREFETCH: usize = 6;
    let broker = bench.broker();
    let sources = [Source::Jobs(Priority::Normal), lane_source()];
    let routes = [Route::Job(Priority::Normal), Route::Lane(express())];
    let mut model = Model::default();
    let mut numbers = 0..;
    let dead_before = kept(broker, RetainedQueue::Dead).await.len() as u32;
    let mut session = broker.connect().await.unwrap();
    let mut consumers = Vec::new();
    for source in &sources {
        consumers.push(
            session
                .consume(source.clone(), PREFETCH as u16)
                .await
                .unwrap(),
        );
    }
    let mut held: Vec<(usize, u32, Delivery)> = Vec::new();

    for step in steps {
        match step {
            Step::Publish { lane, count } => {
                let queue = usize::from(lane);
                let new: Vec<u32> = numbers.by_ref().take(count as usize).collect();
                let messages = new
                    .iter()
                    .map(|number| outgoing(routes[queue].clone(), number.to_string()))
                    .collect();
                session.publisher().publish(messages).await.unwrap();
                model.queued[queue].extend(new);
            }
            Step::Take { lane } => {
                let queue = usize::from(lane);
                let of_queue = held.iter().filter(|(of, ..)| *of == queue).count();
                if model.queued[queue].is_empty() || of_queue >= PREFETCH {
                    continue;
                }
                let delivery = next(&mut consumers[queue]).await;
                let number = numbered(&delivery);
                assert!(
                    model.queued[queue].remove(&number),
                    "{number} was not there"
                );
                if !model.came_back.contains(&number) {
                    // Fetched ahead in a session that was closed, it may count as redelivered.
                    let older = model.came_back.is_empty();
                    assert!(!(delivery.redelivered && older), "{number} is new");
                } else {
                    assert!(delivery.redelivered, "{number} is not new");
                }
                held.push((queue, number, delivery));
            }
            Step::Ack { held: at } if !held.is_empty() => {
                let (_, _, delivery) = held.remove(at % held.len());
                delivery.ack().await.unwrap();
            }
            Step::Requeue { held: at } if !held.is_empty() => {
                let (queue, number, delivery) = held.remove(at % held.len());
                delivery.requeue().await.unwrap();
                model.queued[queue].insert(number);
                model.came_back.insert(number);
            }
            Step::Reject { held: at } if !held.is_empty() => {
                let (_, number, delivery) = held.remove(at % held.len());
                delivery.reject("a whim".to_owned()).await.unwrap();
                model.rejected.push(number);
            }
            Step::Dead { count } => {
                let letters = (0..count).map(|n| dead_letter(n.to_string())).collect();
                session.publisher().publish(letters).await.unwrap();
                model.dead += count;
            }
            Step::Reopen => {
                session.close().await;
                for (queue, number, _) in held.drain(..) {
                    model.queued[queue].insert(number);
                    model.came_back.insert(number);
                }
                // Messages fetched ahead came back too, and may be marked as redelivered.
                model.came_back.insert(u32::MAX);
                session = broker.connect().await.unwrap();
                consumers.clear();
                for source in &sources {
                    let consumer = session.consume(source.clone(), PREFETCH as u16).await;
                    consumers.push(consumer.unwrap());
                }
            }
            Step::Ack { .. } | Step::Requeue { .. } | Step::Reject { .. } => {}
        }
    }

    // After that, all messages are handled to the end.
    for (queue, number, delivery) in held {
        delivery.ack().await.unwrap();
        assert!(!model.queued[queue].contains(&number));
    }
    for (queue, mut left) in model.queued.into_iter().enumerate() {
        while !left.is_empty() {
            let delivery = next(&mut consumers[queue]).await;
            assert!(left.remove(&numbered(&delivery)));
            delivery.ack().await.unwrap();
        }
    }
    session.close().await;
    until("nothing left", PATIENCE, async || {
        (bench.ready().await == 0).then_some(())
    })
    .await;
    // Older messages in the retained queue come from other rounds.
    let rejected = kept(broker, RetainedQueue::Rejected).await;
    let rejected: Vec<u32> = rejected.iter().map(|kept| parse(&kept.body)).collect();
    assert!(rejected.ends_with(&model.rejected), "{rejected:?}");
    let dead = kept(broker, RetainedQueue::Dead).await.len() as u32;
    assert_eq!(dead, dead_before + model.dead);
}
