//! Tests the port of stored messages.

use std::time::Duration;

use fanwise::ports::Templates;
use fanwise::{embedded, store};

use super::{PATIENCE, StoreBench, settings};
use crate::support::scratch::Scratch;
use crate::support::servers::redis_url;
use crate::support::wait::until;

on_all! { EmbeddedBench, RedisBench, ClusterBench:
    versions_count_up_and_old_ones_stay,
    what_is_deleted_is_kept_for_who_knows_its_version,
    apps_know_nothing_of_each_other,
    puts_at_once_each_get_a_version,
}

async fn put(store: &impl Templates, name: &str, message: &str) -> u32 {
    let stored = store.put_template("shop", name, message).await.unwrap();
    assert_eq!(stored.message, message);
    assert!(stored.put_at_ms > 1_700_000_000_000);
    stored.version
}

async fn get(store: &impl Templates, name: &str, version: Option<u32>) -> Option<(u32, String)> {
    let stored = store.template("shop", name, version).await.unwrap()?;
    Some((stored.version, stored.message))
}

fn version(version: u32, message: &str) -> Option<(u32, String)> {
    Some((version, message.to_owned()))
}

async fn versions_count_up_and_old_ones_stay(bench: &impl StoreBench) {
    let store = bench.store();
    assert_eq!(get(store, "hi", None).await, None);
    assert_eq!(store.templates("shop").await.unwrap(), []);
    assert_eq!(put(store, "hi", "{\"a\": \"one two\"}").await, 1);
    assert_eq!(put(store, "bye", "é").await, 1);
    assert_eq!(put(store, "hi", "two").await, 2);
    assert_eq!(get(store, "hi", None).await, version(2, "two"));
    let first = version(1, "{\"a\": \"one two\"}");
    assert_eq!(get(store, "hi", Some(1)).await, first);
    assert_eq!(get(store, "hi", Some(3)).await, None);
    let listed = [("bye".to_owned(), 1), ("hi".to_owned(), 2)];
    assert_eq!(store.templates("shop").await.unwrap(), listed);
}

async fn what_is_deleted_is_kept_for_who_knows_its_version(bench: &impl StoreBench) {
    let store = bench.store();
    assert!(!store.delete_template("shop", "hi").await.unwrap());
    put(store, "hi", "one").await;
    assert!(store.delete_template("shop", "hi").await.unwrap());
    assert!(!store.delete_template("shop", "hi").await.unwrap());
    assert_eq!(get(store, "hi", None).await, None);
    assert_eq!(store.templates("shop").await.unwrap(), []);
    assert_eq!(get(store, "hi", Some(1)).await, version(1, "one"));
    // A version number is never used twice.
    assert_eq!(put(store, "hi", "two").await, 2);
    assert_eq!(get(store, "hi", None).await, version(2, "two"));
    assert_eq!(get(store, "hi", Some(1)).await, version(1, "one"));
}

async fn apps_know_nothing_of_each_other(bench: &impl StoreBench) {
    let store = bench.store();
    put(store, "hi", "one").await;
    let other = store.put_template("bank", "hi", "bank").await.unwrap();
    assert_eq!(other.version, 1);
    assert!(store.delete_template("bank", "hi").await.unwrap());
    assert_eq!(get(store, "hi", None).await, version(1, "one"));
    assert_eq!(store.templates("bank").await.unwrap(), []);
}

async fn puts_at_once_each_get_a_version(bench: &impl StoreBench) {
    let store = bench.store();
    let puts = (0..20).map(|number| async move {
        let message = format!("message {number}");
        (put(store, "hi", &message).await, message)
    });
    let mut given = futures_util::future::join_all(puts).await;
    given.sort();
    for ((number, message), expected) in given.iter().zip(1..) {
        assert_eq!(*number, expected);
        assert_eq!(
            get(store, "hi", Some(expected)).await,
            version(expected, message)
        );
    }
    assert_eq!(get(store, "hi", None).await.unwrap().0, 20);
}

/// When another version is put, those superseded before the dedup window are removed.
async fn forgets(store: &impl Templates) {
    put(store, "hi", "first").await;
    until("the first version to be forgotten", PATIENCE, async || {
        let newest = put(store, "hi", "next").await;
        assert!(get(store, "hi", Some(newest)).await.is_some());
        assert!(get(store, "hi", Some(newest - 1)).await.is_some());
        get(store, "hi", Some(1)).await.is_none().then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_embedded_engine_forgets_old_versions() {
    let folder = Scratch::new("templates");
    let settings = embedded::Settings {
        dedup_window: Duration::from_secs(1),
        ..settings(&folder)
    };
    let engine = embedded::Engine::open(&settings).unwrap();
    forgets(&engine.store()).await;
    engine.close().await;
}

#[tokio::test]
async fn redis_forgets_old_versions() {
    let Some(url) = redis_url() else { return };
    let settings = store::Settings {
        prefix: format!("contract-{:016x}", fastrand::u64(..)),
        dedup_window: Duration::from_secs(1),
        ..store::Settings::new(url)
    };
    forgets(&store::Store::open(&settings).unwrap()).await;
}
