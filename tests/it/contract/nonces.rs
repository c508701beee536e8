//! Tests the port that recognises repeated signed requests.

use std::time::Duration;

use fanwise::ports::Nonces;

use super::{PATIENCE, StoreBench};
use crate::support::wait::until;

on_all! { EmbeddedBench, RedisBench, ClusterBench:
    a_nonce_is_new_once,
    a_nonce_is_forgotten_after_its_time,
    a_nonce_can_be_given_back,
    of_those_who_ask_at_once_one_is_first,
}

const LONG: Duration = Duration::from_secs(600);

async fn a_nonce_is_new_once(bench: &impl StoreBench) {
    let store = bench.store();
    for nonce in ["a", "b", "a b", "", "ü \n", &"n".repeat(1000)] {
        assert!(store.is_new(nonce, LONG).await.unwrap(), "{nonce}");
        assert!(!store.is_new(nonce, LONG).await.unwrap(), "{nonce}");
    }
}

async fn a_nonce_can_be_given_back(bench: &impl StoreBench) {
    let store = bench.store();
    assert!(store.is_new("a", LONG).await.unwrap());
    assert!(store.is_new("b", LONG).await.unwrap());
    store.release("a").await.unwrap();
    store.release("never seen").await.unwrap();
    assert!(store.is_new("a", LONG).await.unwrap());
    assert!(!store.is_new("a", LONG).await.unwrap());
    assert!(!store.is_new("b", LONG).await.unwrap());
}

async fn a_nonce_is_forgotten_after_its_time(bench: &impl StoreBench) {
    let store = bench.store();
    assert!(store.is_new("long", LONG).await.unwrap());
    assert!(
        store
            .is_new("short", Duration::from_millis(50))
            .await
            .unwrap()
    );
    until("the nonce to be forgotten", PATIENCE, async || {
        store.is_new("short", LONG).await.unwrap().then_some(())
    })
    .await;
    assert!(!store.is_new("long", LONG).await.unwrap());
}

async fn of_those_who_ask_at_once_one_is_first(bench: &impl StoreBench) {
    let asking = (0..50).map(|_| bench.store().is_new("once", LONG));
    let answers = futures_util::future::join_all(asking).await;
    let first = answers
        .into_iter()
        .filter(|answer| matches!(answer, Ok(true)));
    assert_eq!(first.count(), 1);
}
