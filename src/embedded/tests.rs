//! Tests what no other engine has: a folder that is opened and closed, lanes that wait, and jobs that
//! are swept.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::time::timeout;

use super::transaction::Transaction;
use super::*;
use crate::domain::ids::{Fingerprint, JobId, Owner, SliceId};
use crate::domain::lane::{Lane, LaneClass, Priority};
use crate::domain::message::{Content, Options};
use crate::domain::outcome::Outcome;
use crate::domain::slice::{Addressed, Head, Shape};
use crate::ports::{
    Accepted, Broker as _, Claim, ClaimState, Claimed, Consumer as _, JobFilter, JobQuery,
    Ledger as _, LedgerError, Outgoing, PublishError, Publisher as _, RetainedEdit, RetainedQueue,
    RetainedQueues as _, Route, Session as _, Settle, SliceRef, Source, Submission, Upkeep as _,
};

pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A folder that is removed with its test.
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "fanwise-engine-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        Self(std::env::temp_dir().join(name))
    }

    pub(super) fn settings(&self) -> Settings {
        Settings {
            targets: vec!["im".to_owned()],
            ..Settings::new(&self.0)
        }
    }

    pub(super) fn open(&self) -> Engine {
        Engine::open(&self.settings()).unwrap()
    }

    /// What a kill would leave now.
    pub(super) fn copy(&self) -> Self {
        let copy = Self::new();
        std::fs::create_dir(&copy.0).unwrap();
        for file in ["fanwise.redb", "fanwise.log"] {
            std::fs::copy(self.0.join(file), copy.0.join(file)).unwrap();
        }
        copy
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(super) fn lane() -> Lane {
    Lane {
        target: "im".to_owned(),
        class: LaneClass::Express(0),
    }
}

pub(super) fn message(route: Route, body: &str) -> Outgoing {
    Outgoing {
        route,
        body: Bytes::copy_from_slice(body.as_bytes()),
        message_id: body.to_owned(),
        traceparent: None,
    }
}

pub(super) fn slice(body: &str) -> Outgoing {
    message(Route::Lane(lane()), body)
}

pub(super) async fn publish(session: &EmbeddedSession, body: &str) -> Result<(), PublishError> {
    session.publisher().publish(vec![slice(body)]).await
}

pub(super) async fn next(consumer: &mut EmbeddedConsumer) -> crate::ports::Delivery {
    timeout(PATIENCE, consumer.next()).await.unwrap().unwrap()
}

pub(super) fn head(client_msg_no: &str) -> Head {
    Head {
        id: JobId::of("shop", client_msg_no),
        app: "shop".to_owned(),
        client_msg_no: client_msg_no.to_owned(),
        target: "im".to_owned(),
        priority: Priority::Normal,
        sender: None,
        addressed: Addressed::Users,
        content: Content::Text("hello".to_owned()),
        native: None,
        vars: None,
        options: Options::default(),
        accepted_at_ms: 1_700_000_000_000,
        not_before_ms: None,
        expires_at_ms: None,
        rate: None,
        window: None,
        pace_until_ms: None,
        category: None,
        on_uncertain: None,
        callback_url: None,
        reply_to: None,
        fallback: None,
        keep_ids: false,
        fell_from: None,
    }
}

const SHAPE: Shape = Shape { buckets: 4 };

pub(super) fn submission(head: &Head, entries: u64) -> Submission {
    Submission {
        job: head.id,
        app: head.app.clone(),
        client_msg_no: head.client_msg_no.clone(),
        target: head.target.clone(),
        content_digest: "d".to_owned(),
        submission: "s".to_owned(),
        entries,
        parts: 1,
        slice_recipients: 500,
        shape: SHAPE,
        sender: None,
        window: None,
        pace_until_ms: None,
        category: None,
        rate: None,
        priority: Priority::Normal,
        not_before_ms: None,
        expires_at_ms: None,
        tags: Vec::new(),
        fetched: None,
        callback_url: None,
        reply_to: None,
        fallback: None,
        keeps_ids: None,
        now_ms: crate::clock::now_ms(),
        warnings: Vec::new(),
        template: None,
        expanded: false,
    }
}

pub(super) fn people(count: u64) -> Vec<Fingerprint> {
    (0..count)
        .map(|number| Fingerprint(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
        .collect()
}

pub(super) async fn claim(
    store: &EmbeddedStore,
    slice: SliceRef<'_>,
    owner: u64,
    recipients: &[Fingerprint],
) -> Result<Vec<ClaimState>, LedgerError> {
    let claim = Claim {
        slice,
        owner: Owner(owner),
        lease: Duration::from_secs(60),
        recipients,
    };
    match store.claim(claim).await? {
        Claimed::Each(states) => Ok(states),
        Claimed::SliceDone => panic!("done"),
    }
}

pub(super) fn slice_ref<'a>(head: &'a Head, id: &'a SliceId, entries: u32) -> SliceRef<'a> {
    SliceRef {
        head,
        id,
        entries,
        shape: SHAPE,
    }
}

pub(super) async fn until_ok<T, E: fmt::Debug>(mut act: impl AsyncFnMut() -> Result<T, E>) -> T {
    let started = Instant::now();
    loop {
        match act().await {
            Ok(value) => return value,
            Err(error) => assert!(started.elapsed() < PATIENCE, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

// ---------------------------------------------------------------------------------------------
// Opening and closing
// ---------------------------------------------------------------------------------------------

/// A closed engine ends its sessions, refuses everything, and frees the folder for the next one.
/// Handles that still exist do no harm.
#[tokio::test]
async fn a_closed_engine_lets_go() {
    let folder = Folder::new();
    let engine = folder.open();
    let session = engine.broker().connect().await.unwrap();
    let mut consumer = session.consume(Source::Lane(lane()), 1).await.unwrap();
    publish(&session, "a").await.unwrap();
    engine.close().await;
    engine.close().await;
    assert!(session.lost().is_cancelled());
    assert!(consumer.next().await.is_none());
    assert!(engine.broker().connect().await.is_err());
    let error = engine.store().jobs(&JobQuery::default()).await.unwrap_err();
    assert!(matches!(error, LedgerError::Unreachable(_)), "{error:?}");
    let error = publish(&session, "b").await.unwrap_err();
    assert!(matches!(error, PublishError::Lost(_)), "{error:?}");

    let next_one = folder.open();
    let depths = next_one.depths().await.unwrap();
    let depth = depths.iter().find(|it| it.queue == "send.im.express");
    assert_eq!(depth.unwrap().ready, 1);
    next_one.close().await;
}

/// Dropping every handle closes the engine too.
#[tokio::test]
async fn a_dropped_engine_lets_go() {
    let folder = Folder::new();
    drop(folder.open());
    until_ok(async || Engine::open(&folder.settings())).await;
}

#[tokio::test]
async fn what_is_no_data_folder_is_refused_with_advice() {
    let folder = Folder::new();
    std::fs::write(&folder.0, "a file").unwrap();
    let error = Engine::open(&folder.settings()).err().unwrap();
    assert!(matches!(error, OpenError::Folder { .. }), "{error:?}");
    std::fs::remove_file(&folder.0).unwrap();

    std::fs::create_dir(&folder.0).unwrap();
    std::fs::write(folder.0.join("fanwise.redb"), "no store at all").unwrap();
    let error = Engine::open(&folder.settings()).err().unwrap();
    assert!(matches!(error, OpenError::Store { .. }), "{error:?}");
    assert!(error.to_string().contains("fanwise.redb"), "{error}");
    std::fs::remove_file(folder.0.join("fanwise.redb")).unwrap();

    folder.open().close().await;
    let store = builder(CACHE_BYTES).open(store_of(&folder)).unwrap();
    let newer = store.begin_write().unwrap();
    let mut meta = newer.open_table(tables::META).unwrap();
    // A version that knows no log opens what was closed in order.
    let before = meta.insert("format", tables::FORMAT + 1).unwrap();
    assert_eq!(before.map(|format| format.value()), Some(1));
    drop(meta);
    newer.commit().unwrap();
    drop(store);
    let error = Engine::open(&folder.settings()).err().unwrap();
    assert!(matches!(error, OpenError::Newer { .. }), "{error:?}");
}

/// A target that is no longer configured keeps the messages in its lanes until it is configured
/// again.
#[tokio::test]
async fn lanes_of_a_missing_target_wait_for_it() {
    let folder = Folder::new();
    let engine = folder.open();
    let session = engine.broker().connect().await.unwrap();
    publish(&session, "a").await.unwrap();
    engine.close().await;

    let engine = Engine::open(&Settings::new(&folder.0)).unwrap();
    let session = engine.broker().connect().await.unwrap();
    let error = publish(&session, "b").await.unwrap_err();
    assert!(matches!(error, PublishError::Unroutable(_)), "{error:?}");
    let depths = engine.depths().await.unwrap();
    let depth = depths.iter().find(|it| it.queue == "send.im.express");
    assert_eq!(depth.unwrap().ready, 1);
    engine.close().await;

    let engine = folder.open();
    let session = engine.broker().connect().await.unwrap();
    let mut consumer = session.consume(Source::Lane(lane()), 1).await.unwrap();
    assert_eq!(next(&mut consumer).await.body, "a");
    engine.close().await;
}

// ---------------------------------------------------------------------------------------------
// Views from outside
// ---------------------------------------------------------------------------------------------

#[tokio::test]
async fn depths_tell_ready_waiting_and_unacked() {
    let folder = Folder::new();
    let engine = folder.open();
    let session = engine.broker().connect().await.unwrap();
    for body in ["a", "b", "c"] {
        publish(&session, body).await.unwrap();
    }
    let wait = Route::Wait {
        lane: lane(),
        rung: Duration::from_secs(60),
    };
    let wait = message(wait, "w");
    let (app, target) = ("shop".to_owned(), "im".to_owned());
    let dead = message(Route::Dead { app, target }, "d");
    session.publisher().publish(vec![wait, dead]).await.unwrap();
    let mut consumer = session.consume(Source::Lane(lane()), 1).await.unwrap();
    let held = next(&mut consumer).await;
    let depth = async |queue: &str| {
        let depths = engine.depths().await.unwrap();
        let depth = depths.into_iter().find(|it| it.queue == queue).unwrap();
        (depth.ready, depth.waiting, depth.unacked, depth.consumers)
    };
    assert_eq!(depth("send.im.express").await, (2, 1, 1, 1));
    assert_eq!(depth("dead").await, (1, 0, 0, 0));
    held.reject("no".to_owned()).await.unwrap();
    consumer.cancel().await;
    assert_eq!(depth("rejected").await, (1, 0, 0, 0));
    let broker = engine.broker();
    let taken = broker
        .edit(RetainedQueue::Dead, |_| RetainedEdit::Remove)
        .await;
    assert_eq!(taken.unwrap().removed, 1);
    assert_eq!(depth("dead").await, (0, 0, 0, 0));
    engine.close().await;
}

#[tokio::test]
async fn events_reach_who_listens() {
    let folder = Folder::new();
    let engine = folder.open();
    let mut events = engine.events();
    let session = engine.broker().connect().await.unwrap();
    let app = "shop".to_owned();
    let event = "completed";
    let route = Route::Event { app, event };
    session
        .publisher()
        .publish(vec![message(route, "{}")])
        .await
        .unwrap();
    let heard = events.recv().await.unwrap();
    assert_eq!(
        (heard.routing_key.as_str(), &heard.body[..]),
        ("shop.completed", &b"{}"[..])
    );
    engine.close().await;
}

/// However many messages wait in a queue, a consumer reads only a few ahead.
#[tokio::test]
async fn a_consumer_reads_a_few_messages_ahead() {
    let folder = Folder::new();
    let engine = folder.open();
    let session = engine.broker().connect().await.unwrap();
    let slices = (0..200).map(|n| slice(&n.to_string())).collect();
    session.publisher().publish(slices).await.unwrap();
    let mut consumer = session.consume(Source::Lane(lane()), 100).await.unwrap();
    let _first = next(&mut consumer).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let depths = engine.depths().await.unwrap();
    let depth = depths.iter().find(|it| it.queue == "send.im.express");
    assert!(depth.unwrap().unacked <= 9, "{depth:?}");
    for number in 1..100 {
        assert_eq!(next(&mut consumer).await.body, number.to_string());
    }
    engine.close().await;
}

/// A job that completed longer ago than the window is forgotten with all its rows, in batches. A
/// job that waits is not forgotten, however long it waits. A job that comes again starts anew.
#[tokio::test]
async fn completed_jobs_are_swept_and_those_that_wait_are_not() {
    let folder = Folder::new();
    let settings = Settings {
        dedup_window: Duration::from_millis(1200),
        ..folder.settings()
    };
    let engine = Engine::open(&settings).unwrap();
    let store = engine.store();
    let (over, waits) = (head("over"), head("waits"));
    let id = SliceId::new("s", 0);
    let people = people(3000);
    let shape = Shape { buckets: 3000 };
    for head in [&over, &waits] {
        let submission = Submission {
            shape,
            ..submission(head, 3000)
        };
        store.accept(&submission).await.unwrap();
        let slice = slice_ref(head, &id, 3000);
        claim(&store, slice, 1, &people).await.unwrap();
        let outcomes: Vec<_> = people[..2900]
            .iter()
            .map(|person| (*person, Outcome::Sent))
            .collect();
        let settle = Settle {
            outcomes: &outcomes,
            ..Settle::of(slice, Owner(1))
        };
        store.settle(settle).await.unwrap();
    }
    let rest = people[2900..].iter().map(|it| (*it, Outcome::Sent));
    let rest: Vec<_> = rest.collect();
    let settle = Settle {
        outcomes: &rest,
        last: Some(0),
        ..Settle::of(slice_ref(&over, &id, 3000), Owner(1))
    };
    let rows = async || {
        let count = |transaction: &ReadTransaction| {
            use redb::ReadableTableMetadata as _;
            Ok::<_, StorageError>([
                transaction.open_table(tables::BUCKETS)?.len()?,
                transaction.open_table(tables::SLICES)?.len()?,
                transaction.open_table(tables::SUBMISSIONS)?.len()?,
                transaction.open_table(tables::CLAIMS)?.len()?,
                transaction.open_table(tables::LISTED)?.len()?,
                transaction.open_table(tables::OUTLINES)?.len()?,
                transaction.open_table(tables::OPEN)?.len()?,
                transaction.open_table(tables::ENDED)?.len()?,
            ])
        };
        engine.0.read(count).await.unwrap()
    };
    let both = rows().await;
    assert!(both[0] > 3000, "{both:?}");
    store.settle(settle).await.unwrap();
    store.mark_expanded(over.id, "s").await.unwrap();
    assert!(store.complete(over.id).await.unwrap());
    until_ok(async || {
        let now = rows().await;
        let swept = now[0] < both[0] * 6 / 10 && now[1..] == [1, 2, 1, 1, 1, 1, 0];
        swept.then_some(()).ok_or(now)
    })
    .await;
    assert_eq!(store.job(over.id).await.unwrap(), None);
    let record = store.job(waits.id).await.unwrap().unwrap();
    assert_eq!(record.accounts.sent, 2900);
    let audit = store.audit(&record).await.unwrap();
    assert!(audit.differences(&record.accounts).is_empty());

    let accepted = store.accept(&submission(&over, 3000)).await.unwrap();
    assert!(matches!(accepted, Accepted::Expand { first: true, .. }));
    let slice = slice_ref(&over, &id, 3000);
    let states = claim(&store, slice, 2, &people).await.unwrap();
    assert!(states.iter().all(|state| *state == ClaimState::Granted));
    engine.close().await;
}

/// An earlier version knows no outlines: what it did to the jobs is listed by the next opening.
#[tokio::test]
async fn jobs_of_an_earlier_version_are_listed_by_their_outlines() {
    let folder = Folder::new();
    let (old, new) = (head("old"), head("new"));
    let engine = folder.open();
    let tagged = Submission {
        tags: vec!["may".to_owned()],
        ..submission(&old, 1)
    };
    engine.store().accept(&tagged).await.unwrap();
    engine.close().await;
    // An opening of an earlier version, which forgets a job and accepts another one.
    let database = builder(CACHE_BYTES).open(store_of(&folder)).unwrap();
    let transaction = Transaction::new(database.begin_write().unwrap());
    {
        let mut tables = tables::Tables::new(&transaction);
        let outlines = tables.outlines.open().unwrap();
        let open = tables.open.open().unwrap();
        outlines.retain(|_, _| false).unwrap();
        open.retain(|_, _| false).unwrap();
        let ghost = JobId::of("shop", "ghost").to_string();
        outlines.insert((7, ghost.as_str()), "shop\nim").unwrap();
        open.insert((7, ghost.as_str()), "shop\nim").unwrap();
        tables.open_once_more().unwrap();
    }
    transaction.into_parts().0.commit().unwrap();
    drop(database);
    let engine = folder.open();
    let store = engine.store();
    store.accept(&submission(&new, 1)).await.unwrap();
    let listed = async |filter: JobFilter| {
        let query = JobQuery {
            filter,
            most: 9,
            ..JobQuery::default()
        };
        let page = store.jobs(&query).await.unwrap();
        page.jobs.iter().map(|it| it.job).collect::<Vec<_>>()
    };
    let tagged = JobFilter {
        tag: Some("may".to_owned()),
        ..JobFilter::default()
    };
    assert_eq!(listed(tagged).await, [old.id]);
    let both = [new.id, old.id];
    assert_eq!(listed(JobFilter::default()).await, both);
    let mut open = Vec::new();
    store
        .each_open(|record| open.push(record.job))
        .await
        .unwrap();
    assert_eq!(open, both);
    engine.close().await;
}

// --- The files -----------------------------------------------------------------------------------

pub(super) fn store_of(folder: &Folder) -> PathBuf {
    folder.0.join("fanwise.redb")
}

/// A folder that was used, with its store closed.
async fn used() -> Folder {
    let folder = Folder::new();
    let engine = folder.open();
    let session = engine.broker().connect().await.unwrap();
    for number in 0..50 {
        let message = slice(&format!("{number}-{}", "x".repeat(2000)));
        session.publisher().publish(vec![message]).await.unwrap();
    }
    drop(session);
    engine.close().await;
    folder
}

/// Whatever a file system made of the file, opening it gives an error with advice, and no panic.
#[tokio::test]
async fn a_damaged_store_is_refused_with_what_to_do() {
    let folder = used().await;
    let whole = std::fs::read(store_of(&folder)).unwrap();
    let refused = async |bytes: &[u8]| {
        std::fs::write(store_of(&folder), bytes).unwrap();
        match Engine::open(&folder.settings()) {
            Ok(engine) => {
                engine.close().await;
                None
            }
            Err(error) => Some(error.to_string()),
        }
    };
    let length = whole.len();
    let mut cuts = vec![1, 100, 4096, length / 2, length - 4096, length - 1];
    cuts.extend((1..20).map(|part| length * part / 20));
    for cut in cuts {
        let said = refused(&whole[..cut]).await;
        let said = said.expect("a part of a store is none");
        assert!(said.contains("move it away"), "{cut} of {length}: {said}");
    }
    // With some bytes changed it may still be a store, as long as nothing panics.
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..40 {
        let mut bytes = whole.clone();
        for _ in 0..random.usize(1..200) {
            let place = random.usize(..length);
            bytes[place] ^= random.u8(1..);
        }
        if let Some(said) = refused(&bytes).await {
            let told = ["move it away", "newer fanwise", "its log"];
            let told = told.iter().any(|told| said.contains(told));
            assert!(told, "{said}");
        }
    }
    assert_eq!(refused(&whole).await, None);
}

/// Only the owner can read messages and recipients, whatever the umask and the folder's modes.
#[cfg(unix)]
#[tokio::test]
async fn the_files_are_for_their_owner_only() {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    let modes = |folder: &Folder| {
        let files = std::fs::read_dir(&folder.0).unwrap();
        let modes = files.map(|file| {
            let file = file.unwrap();
            assert!(file.file_type().unwrap().is_file());
            file.metadata().unwrap().permissions().mode() & 0o777
        });
        modes.collect::<Vec<_>>()
    };
    let made = used().await;
    let of_folder = std::fs::metadata(&made.0).unwrap().permissions().mode();
    assert_eq!(of_folder & 0o777, 0o700);
    assert_eq!(modes(&made), [0o600; 3]);

    // A volume that was mounted, with files of an older version.
    let there = used().await;
    std::fs::set_permissions(&there.0, Permissions::from_mode(0o755)).unwrap();
    for file in std::fs::read_dir(&there.0).unwrap() {
        let path = file.unwrap().path();
        std::fs::set_permissions(path, Permissions::from_mode(0o664)).unwrap();
    }
    let engine = there.open();
    assert_eq!(modes(&there), [0o600; 3]);
    engine.close().await;
    let of_folder = std::fs::metadata(&there.0).unwrap().permissions().mode();
    assert_eq!(of_folder & 0o777, 0o755, "it may have another use");
}
