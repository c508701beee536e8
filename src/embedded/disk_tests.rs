//! Tests the engine on a disk that fails, after kills, and with a log that is not its own.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use redb::backends::FileBackend;
use redb::{BackendError, DatabaseError, StorageBackend};
use tokio::time::timeout;

use super::tests::{
    Folder, PATIENCE, claim, head, lane, next, people, publish, slice_ref, store_of, submission,
    until_ok,
};
use super::*;
use crate::domain::ids::{Owner, SliceId};
use crate::domain::outcome::Outcome;
use crate::ports::{
    Accepted, Broker as _, ClaimState, JobQuery, Ledger as _, LedgerError, Limiter as _, Park,
    ParkReason, PublishError, Session as _, Settle, Source,
};

/// How the disk fails at the moment.
#[derive(Debug, Default)]
struct Conditions {
    full: AtomicBool,
    broken: AtomicBool,
    /// Reads return other bytes than were written.
    damaged: AtomicBool,
    /// Writes that succeed before the disk is full.
    writes_left: AtomicU64,
}

impl Conditions {
    fn check(&self) -> io::Result<()> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(io::Error::other("the disk is gone"));
        }
        let left = |left: u64| left.checked_sub(1);
        let spent = self
            .writes_left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, left)
            .is_err();
        match self.full.load(Ordering::SeqCst) && spent {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }
}

/// A file on a disk that fails when the test says so.
struct FailingDisk(FileBackend, Arc<Conditions>);

impl fmt::Debug for FailingDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FailingDisk")
    }
}

impl StorageBackend for FailingDisk {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)?;
        if self.1.damaged.load(Ordering::SeqCst) {
            out.fill(0xa5);
        }
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.1.check()?;
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        if self.1.broken.load(Ordering::SeqCst) {
            return Err(io::Error::other("the disk is gone"));
        }
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.1.check()?;
        self.0.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }
}

/// Every page is read from the disk.
fn open_in(folder: &Folder, weather: &Arc<Conditions>) -> Engine {
    open_cached(folder, weather, 0)
}

fn open_cached(folder: &Folder, weather: &Arc<Conditions>, cache: usize) -> Engine {
    let opener = FailingOpener {
        weather: Arc::clone(weather),
        cache,
    };
    Engine::open_on(&folder.settings(), Box::new(opener)).unwrap()
}

struct FailingOpener {
    weather: Arc<Conditions>,
    cache: usize,
}

impl Opener for FailingOpener {
    fn open(&self, path: &Path) -> Result<Box<dyn StorageBackend>, DatabaseError> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path).map_err(redb::StorageError::from)?;
        let file = FileBackend::new(file)?;
        Ok(Box::new(FailingDisk(file, Arc::clone(&self.weather))))
    }

    fn cache_bytes(&self) -> usize {
        self.cache
    }

    /// So short that it begins again now and then.
    fn log_bytes(&self) -> u64 {
        16 * 1024
    }
}

/// On a full disk every step is refused with an error that says so. Sessions stay, and what was
/// accepted stays. When there is space again work continues: acks that were given meanwhile are
/// written, and no claim has changed its owner. This holds however much of a commit fitted on the
/// disk.
#[tokio::test]
async fn a_full_disk_refuses_and_loses_nothing() {
    for writes_left in [0, 1, 2, 3, 5, 8] {
        let folder = Folder::new();
        let weather = Arc::new(Conditions::default());
        let engine = open_in(&folder, &weather);
        let store = engine.store();
        let session = engine.broker().connect().await.unwrap();
        for number in 0..10 {
            publish(&session, &number.to_string()).await.unwrap();
        }
        let mut consumer = session.consume(Source::Lane(lane()), 4).await.unwrap();
        let held = [next(&mut consumer).await, next(&mut consumer).await];
        let (head, id, people) = (head("full"), SliceId::new("s", 0), people(40));
        let slice = slice_ref(&head, &id, 40);
        store.accept(&submission(&head, 40)).await.unwrap();
        claim(&store, slice, 1, &people[..20]).await.unwrap();
        assert_eq!(engine.error(), None);

        weather.writes_left.store(writes_left, Ordering::SeqCst);
        weather.full.store(true, Ordering::SeqCst);
        let refused = publish(&session, "refused").await;
        // With room for some writes a commit may just fit.
        let fitted = refused.is_ok();
        weather.writes_left.store(0, Ordering::SeqCst);
        for _ in 0..3 {
            let error = publish(&session, "refused").await.unwrap_err();
            assert!(matches!(error, PublishError::Store(_)), "{error:?}");
        }
        let error = claim(&store, slice, 2, &people[10..]).await.unwrap_err();
        assert!(matches!(error, LedgerError::Full(_)), "{error:?}");
        let error = store.accept(&submission(&head, 1)).await.unwrap_err();
        assert!(matches!(error, LedgerError::Full(_)), "{error:?}");
        let park = Park {
            since_ms: 0,
            until_ms: u64::MAX,
            reason: ParkReason::Config,
            code: "401".to_owned(),
            text: "x".to_owned(),
        };
        let error = store.park("im", &park).await.unwrap_err();
        assert!(matches!(error, LedgerError::Full(_)), "{error:?}");
        assert!(engine.error().unwrap().contains("full"));
        assert!(*session.blocked().borrow());
        assert!(!session.lost().is_cancelled());
        // A step that only reads does not show whether there is space again.
        weather.full.store(false, Ordering::SeqCst);
        until_ok(async || engine.0.writer.look(|_| Ok(())).await).await;
        assert!(engine.error().is_some());
        weather.full.store(true, Ordering::SeqCst);
        for delivery in held {
            delivery.ack().await.unwrap();
        }

        weather.full.store(false, Ordering::SeqCst);
        until_ok(async || publish(&session, "after").await).await;
        assert_eq!(engine.error(), None);
        assert!(!*session.blocked().borrow());
        let states = claim(&store, slice, 2, &people).await.unwrap();
        for (at, state) in states.iter().enumerate() {
            match at < 20 {
                true => assert!(matches!(state, ClaimState::Held { .. }), "{at}: {state:?}"),
                false => assert_eq!(*state, ClaimState::Granted, "{at}"),
            }
        }
        let lease = Duration::from_secs(60);
        assert!(
            store
                .renew(slice, Owner(1), lease, &people[..20])
                .await
                .unwrap()
        );
        drop(consumer);
        engine.close().await;

        let engine = folder.open();
        let session = engine.broker().connect().await.unwrap();
        let mut consumer = session.consume(Source::Lane(lane()), 0).await.unwrap();
        let mut expected: Vec<_> = (2..10).map(|number| number.to_string()).collect();
        expected.extend(fitted.then(|| "refused".to_owned()));
        expected.push("after".to_owned());
        for body in expected {
            let delivery = next(&mut consumer).await;
            assert_eq!(delivery.body, body, "with {writes_left} writes");
        }
        engine.close().await;
    }
}

/// A disk that fails completely for a while: the same, except that the ledger counts as not
/// reachable.
#[tokio::test]
async fn a_disk_that_comes_back_is_used_again() {
    let folder = Folder::new();
    let weather = Arc::new(Conditions::default());
    let engine = open_in(&folder, &weather);
    let session = engine.broker().connect().await.unwrap();
    let mut consumer = session.consume(Source::Lane(lane()), 1).await.unwrap();
    publish(&session, "before").await.unwrap();
    weather.broken.store(true, Ordering::SeqCst);
    let error = publish(&session, "x").await.unwrap_err();
    assert!(matches!(error, PublishError::Store(_)), "{error:?}");
    let head = head("gone");
    let error = engine
        .store()
        .accept(&submission(&head, 1))
        .await
        .unwrap_err();
    assert!(matches!(error, LedgerError::Unreachable(_)), "{error:?}");
    weather.broken.store(false, Ordering::SeqCst);
    until_ok(async || publish(&session, "after").await).await;
    for body in ["before", "after"] {
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.body, body);
        delivery.ack().await.unwrap();
    }
    engine.close().await;
}

/// A job is accepted without a commit of its own, since its message stays in its queue. What is
/// written next brings the acceptance along, also after the disk has failed; a crash takes both away,
/// and the message is delivered again.
#[tokio::test]
async fn an_acceptance_is_written_with_what_follows_it() {
    for crashes in [false, true] {
        let folder = Folder::new();
        let weather = Arc::new(Conditions::default());
        let engine = open_cached(&folder, &weather, 1 << 20);
        let store = engine.store();
        let session = engine.broker().connect().await.unwrap();
        publish(&session, "the job").await.unwrap();
        let mut consumer = session.consume(Source::Lane(lane()), 1).await.unwrap();
        let delivery = next(&mut consumer).await;
        let (head, id, people) = (head("ahead"), SliceId::new("s", 0), people(4));
        let slice = slice_ref(&head, &id, 4);

        weather.broken.store(true, Ordering::SeqCst);
        let accepted = store.accept(&submission(&head, 4)).await.unwrap();
        assert!(matches!(accepted, Accepted::Expand { first: true, .. }));
        let error = claim(&store, slice, 1, &people).await.unwrap_err();
        assert!(matches!(error, LedgerError::Unreachable(_)), "{error:?}");
        if crashes {
            drop((delivery, consumer, session, store, engine));
            let engine = until_ok(async || Engine::open(&folder.settings())).await;
            assert!(engine.store().job(head.id).await.unwrap().is_none());
            let session = engine.broker().connect().await.unwrap();
            let mut consumer = session.consume(Source::Lane(lane()), 1).await.unwrap();
            assert_eq!(next(&mut consumer).await.body, "the job");
            engine.close().await;
            continue;
        }
        weather.broken.store(false, Ordering::SeqCst);
        let states = until_ok(async || claim(&store, slice, 1, &people).await).await;
        assert!(states.iter().all(|state| *state == ClaimState::Granted));
        let record = store.job(head.id).await.unwrap().unwrap();
        assert!(!record.rebuilt);
        assert_eq!((record.submissions, record.accounts.total), (1, 4));
        engine.close().await;
    }
}

/// What was answered is seen by every step and every read that follows, whether it is on disk or not,
/// and however much of it there is. A stop writes it.
#[tokio::test]
async fn an_acceptance_is_seen_at_once() {
    for reads in [true, false] {
        let folder = Folder::new();
        let engine = folder.open();
        let store = engine.store();
        for number in 0..30 {
            let head = head(&number.to_string());
            for first in [true, false] {
                match store.accept(&submission(&head, 4)).await.unwrap() {
                    Accepted::Expand { first: it, .. } => assert!(first && it),
                    Accepted::Again { .. } => assert!(!first),
                    other => panic!("{other:?}"),
                }
            }
            if reads {
                let record = store.job(head.id).await.unwrap().unwrap();
                assert_eq!((record.submissions, record.accounts.total), (1, 4));
            }
        }
        engine.close().await;
        let engine = folder.open();
        for number in 0..30 {
            let id = head(&number.to_string()).id;
            let record = engine.store().job(id).await.unwrap().unwrap();
            assert_eq!((record.submissions, record.accounts.total), (1, 4));
        }
        engine.close().await;
    }
}

/// A store that is found damaged while it is used, wherever it is noticed, is not written to any
/// more and reports it; what was accepted is still in it.
#[tokio::test]
async fn a_store_found_damaged_is_not_used_any_more() {
    for way in 0..3 {
        let folder = Folder::new();
        let weather = Arc::new(Conditions::default());
        let engine = open_in(&folder, &weather);
        let session = engine.broker().connect().await.unwrap();
        for number in 0..10 {
            publish(&session, &number.to_string()).await.unwrap();
        }
        weather.damaged.store(true, Ordering::SeqCst);
        let mut consumer = None;
        match way {
            0 => drop(publish(&session, "written").await.unwrap_err()),
            1 => consumer = Some(session.consume(Source::Lane(lane()), 1).await.unwrap()),
            _ => drop(engine.depths().await.unwrap_err()),
        }
        let said = timeout(PATIENCE, engine.damaged()).await.unwrap();
        assert!(said.contains("is damaged: "), "{said}");
        weather.damaged.store(false, Ordering::SeqCst);

        let error = publish(&session, "later").await.unwrap_err();
        let PublishError::Store(error) = error else {
            panic!("{error:?}")
        };
        assert!(error.to_string().contains("is damaged: "), "{error}");
        let error = engine.store().jobs(&JobQuery::default()).await.unwrap_err();
        assert!(matches!(error, LedgerError::Unreachable(_)), "{error:?}");
        assert_eq!(engine.error(), Some(said));
        assert!(*session.blocked().borrow());
        drop(consumer);
        engine.close().await;

        // On a disk that reads what was written, all of it is there.
        let copy = folder.copy();
        let engine = copy.open();
        let session = engine.broker().connect().await.unwrap();
        let mut consumer = session.consume(Source::Lane(lane()), 0).await.unwrap();
        for number in 0..10 {
            let body = next(&mut consumer).await.body;
            assert_eq!(body, number.to_string(), "{way}");
        }
        engine.close().await;
    }
}

/// A bug in one step is an error of that step, which says where it is.
#[tokio::test]
async fn a_panic_in_a_step_costs_that_step_alone() {
    let folder = Folder::new();
    let engine = folder.open();
    let session = engine.broker().connect().await.unwrap();
    publish(&session, "before").await.unwrap();
    let wrote = engine.0.write::<()>(0, |_| panic!("a mistake")).await;
    let read = engine.0.read::<()>(|_| panic!("a mistake")).await;
    for refused in [wrote, read] {
        let said = refused.unwrap_err().to_string();
        let place = format!("a mistake ({}:", file!());
        assert!(said.contains(&place), "{said}");
    }
    publish(&session, "after").await.unwrap();
    let mut consumer = session.consume(Source::Lane(lane()), 0).await.unwrap();
    for body in ["before", "after"] {
        assert_eq!(next(&mut consumer).await.body, body);
    }
    engine.close().await;
}

// ---------------------------------------------------------------------------------------------
// The log
// ---------------------------------------------------------------------------------------------

/// Every row that readers see, but for those that each opening counts.
async fn rows(engine: &Engine) -> Vec<tables::Row> {
    let mut rows = engine.0.read(tables::rows).await.unwrap();
    rows.retain(|(table, _, _)| table != "meta");
    rows
}

/// What a kill at this moment would leave, and the rows that readers see at it.
async fn killed(folder: &Folder, engine: &Engine) -> (Folder, Vec<tables::Row>) {
    let started = Instant::now();
    loop {
        // Acks are written when nobody waits for them.
        let before = rows(engine).await;
        let copy = folder.copy();
        if rows(engine).await == before {
            return (copy, before);
        }
        assert!(started.elapsed() < PATIENCE);
    }
}

/// Whatever an engine did, and however often its log began again, a kill leaves every row as readers
/// saw it.
#[tokio::test]
async fn a_kill_leaves_every_row_as_it_was() {
    let folder = Folder::new();
    let engine = open_cached(&folder, &Arc::default(), 1 << 20);
    let (store, session) = (engine.store(), engine.broker().connect().await.unwrap());
    let mut consumer = session.consume(Source::Lane(lane()), 4).await.unwrap();
    let mut random = fastrand::Rng::with_seed(11);
    let (head, everyone) = (head("killed"), people(2_000));
    store.accept(&submission(&head, 2_000)).await.unwrap();
    for (number, some) in everyone.chunks(20).enumerate() {
        publish(&session, &"x".repeat(random.usize(1..3_000)))
            .await
            .unwrap();
        if random.bool() {
            next(&mut consumer).await.ack().await.unwrap();
        }
        let id = SliceId::new("s", number as u32 / 10);
        let slice = slice_ref(&head, &id, 200);
        claim(&store, slice, 1, some).await.unwrap();
        let outcomes: Vec<_> = some[..random.usize(..some.len())]
            .iter()
            .map(|it| {
                (
                    *it,
                    *random.choice(&[Outcome::Sent, Outcome::Failed]).unwrap(),
                )
            })
            .collect();
        let settle = Settle {
            outcomes: &outcomes,
            ..Settle::of(slice, Owner(1))
        };
        store.settle(settle).await.unwrap();
        if number % 9 == 0 {
            let (copy, before) = killed(&folder, &engine).await;
            // A second kill, before the first opening has written anything.
            let first = copy.open();
            let (again, _) = killed(&copy, &first).await;
            assert!(rows(&first).await == before, "after {number}");
            let second = again.open();
            assert!(rows(&second).await == before, "again after {number}");
            first.close().await;
            second.close().await;
        }
    }
    engine.close().await;
}

/// The log is missed when the store needs it, and only then.
#[tokio::test]
async fn a_store_needs_its_own_log_unless_it_was_closed() {
    let folder = Folder::new();
    let engine = folder.open();
    let session = engine.broker().connect().await.unwrap();
    publish(&session, "a").await.unwrap();
    let ready = async |engine: &Engine| {
        let depths = engine.depths().await.unwrap();
        depths
            .iter()
            .find(|it| it.queue == "send.im.express")
            .unwrap()
            .ready
    };
    let log = |folder: &Folder| folder.0.join("fanwise.log");
    let refused = |folder: &Folder| {
        let error = Engine::open(&folder.settings()).err().unwrap();
        assert!(matches!(error, OpenError::Refused { .. }), "{error:?}");
        std::error::Error::source(&error).unwrap().to_string()
    };

    let (other, _) = killed(&folder, &engine).await;
    let format = |transaction: &ReadTransaction| Ok(tables::opening(transaction)?.format);
    let format = engine.0.read(format).await.unwrap();
    assert_eq!(
        format,
        tables::FORMAT,
        "a version that knows no log refuses it"
    );
    let (copy, _) = killed(&folder, &engine).await;
    engine.close().await;
    std::fs::remove_file(log(&copy)).unwrap();
    assert!(refused(&copy).contains("is missing"));
    let stranger = Folder::new();
    stranger.open().close().await;
    std::fs::copy(log(&stranger), log(&copy)).unwrap();
    assert!(refused(&copy).contains("belongs to another store"));
    std::fs::copy(log(&other), log(&copy)).unwrap();
    let engine = copy.open();
    assert_eq!(ready(&engine).await, 1, "with the right log again");
    engine.close().await;
    File::create(log(&other)).unwrap();
    let engine = other.open();
    assert_eq!(
        ready(&engine).await,
        0,
        "someone chose to go on without the log"
    );
    engine.close().await;

    std::fs::remove_file(log(&folder)).unwrap();
    let engine = folder.open();
    assert_eq!(ready(&engine).await, 1, "it was closed in order");
    engine.close().await;
}

/// A copy of the store does not take what the log of its folder says.
#[tokio::test]
async fn a_restored_copy_is_of_the_moment_when_it_was_made() {
    let folder = Folder::new();
    let engine = folder.open();
    let session = engine.broker().connect().await.unwrap();
    publish(&session, "before").await.unwrap();
    let path = folder.0.with_extension("copy");
    let mut options = File::options();
    options.read(true).write(true).create_new(true);
    let broker = engine.broker();
    crate::ports::Backup::copy_to(&broker, options.open(&path).unwrap()).unwrap();
    publish(&session, "after").await.unwrap();
    let (killed, _) = killed(&folder, &engine).await;
    engine.close().await;
    std::fs::rename(&path, store_of(&killed)).unwrap();
    let engine = killed.open();
    let session = engine.broker().connect().await.unwrap();
    let mut consumer = session.consume(Source::Lane(lane()), 0).await.unwrap();
    assert_eq!(next(&mut consumer).await.body, "before");
    publish(&session, "later").await.unwrap();
    assert_eq!(next(&mut consumer).await.body, "later");
    engine.close().await;
}
