//! Tests what a power failure leaves: a disk that keeps what was synced, and of what was written since
//! any sectors, in any order.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use redb::{BackendError, DatabaseError, StorageBackend};

use super::files::Opener;
use super::{Engine, Settings, tables};
use crate::domain::lane::{Lane, LaneClass};
use crate::ports::{Broker as _, Outgoing, Publisher as _, Route, Session as _};

/// What a disk writes as a whole.
const SECTOR: usize = 512;

/// The files of a disk. Cheap to clone: clones are the same disk.
#[derive(Clone, Debug, Default)]
struct Disk(Arc<Mutex<BTreeMap<PathBuf, Image>>>);

#[derive(Clone, Debug, Default)]
struct Image {
    /// What readers see.
    now: Vec<u8>,
    synced: Vec<u8>,
    /// Places of sectors that were written since.
    written: Vec<usize>,
}

impl Image {
    /// What is left without power.
    fn fail(&self, random: &mut fastrand::Rng) -> Self {
        let mut left = self.synced.clone();
        if random.bool() {
            left.resize(self.now.len(), 0);
        }
        let length = left.len().min(self.now.len());
        for at in &self.written {
            let end = (at + SECTOR).min(length);
            if random.bool() && *at < end {
                left[*at..end].copy_from_slice(&self.now[*at..end]);
            }
        }
        Self {
            now: left.clone(),
            synced: left,
            written: Vec::new(),
        }
    }
}

impl Disk {
    /// Another disk, with what a power failure of this one leaves now.
    fn fail(&self, random: &mut fastrand::Rng) -> Self {
        let files = self.0.lock();
        let left = |(path, image): (&PathBuf, &Image)| (path.clone(), image.fail(random));
        Self(Arc::new(Mutex::new(files.iter().map(left).collect())))
    }

    fn engine(&self, folder: &Path) -> Engine {
        let settings = Settings {
            targets: vec!["im".to_owned()],
            ..Settings::new(folder)
        };
        Engine::open_on(&settings, Box::new(self.clone())).unwrap()
    }
}

impl Opener for Disk {
    fn open(&self, path: &Path) -> Result<Box<dyn StorageBackend>, DatabaseError> {
        self.0.lock().entry(path.to_owned()).or_default();
        Ok(Box::new(FileOn(self.clone(), path.to_owned())))
    }

    fn exists(&self, path: &Path) -> bool {
        self.0.lock().contains_key(path)
    }

    /// So little of everything that the log begins again, and pages are written before their commit.
    fn cache_bytes(&self) -> usize {
        64 * 1024
    }

    fn log_bytes(&self) -> u64 {
        16 * 1024
    }
}

#[derive(Debug)]
struct FileOn(Disk, PathBuf);

impl FileOn {
    fn with<T>(&self, act: impl FnOnce(&mut Image) -> T) -> T {
        act(self.0.0.lock().get_mut(&self.1).unwrap())
    }
}

impl StorageBackend for FileOn {
    fn len(&self) -> io::Result<u64> {
        Ok(self.with(|image| image.now.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let from = offset as usize;
        self.with(|image| out.copy_from_slice(&image.now[from..from + out.len()]));
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|image| image.now.resize(len as usize, 0));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|image| {
            let Image {
                now,
                synced,
                written,
            } = image;
            synced.resize(now.len(), 0);
            for at in written.drain(..) {
                let end = (at + SECTOR).min(now.len());
                if at < end {
                    synced[at..end].copy_from_slice(&now[at..end]);
                }
            }
        });
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (from, to) = (offset as usize, offset as usize + data.len());
        self.with(|image| {
            image.now[from..to].copy_from_slice(data);
            let sectors = (from / SECTOR * SECTOR..to).step_by(SECTOR);
            image.written.extend(sectors);
        });
        Ok(())
    }

    fn try_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }
}

fn message(number: u64, length: usize) -> Outgoing {
    let lane = Lane {
        target: "im".to_owned(),
        class: LaneClass::Express(0),
    };
    Outgoing {
        route: Route::Lane(lane),
        body: Bytes::from(format!("{number:08}{}", "x".repeat(length))),
        message_id: number.to_string(),
        traceparent: None,
    }
}

/// While a store is opened, used and closed, the power fails again and again. Each time it opens, and
/// has every message whose publish was answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_survives_a_power_failure_at_any_moment() {
    let folder = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(3);
    let (mut disk, mut sure) = (Disk::default(), 0);
    // A file of the store is none before its first page is written.
    disk.engine(folder.path()).close().await;
    for round in 0..4 {
        // What is left at some moments, and the messages that must be there.
        let mut left = Vec::new();
        let opening = tokio::task::spawn_blocking({
            let (disk, path) = (disk.clone(), folder.path().to_owned());
            move || disk.engine(&path)
        });
        while !opening.is_finished() {
            left.push((sure, disk.fail(&mut random)));
            tokio::task::yield_now().await;
        }
        let engine = opening.await.unwrap();
        let before = ready(&engine).await;
        let answered = Arc::new(AtomicU64::new(before));
        let session = engine.broker().connect().await.unwrap();
        let publishers = (0..3_u64).map(|task| {
            let (publisher, answered) = (session.publisher(), Arc::clone(&answered));
            let mut random = fastrand::Rng::with_seed(task);
            tokio::spawn(async move {
                for number in 0..60 {
                    let message = message(task * 1_000 + number, random.usize(..2_000));
                    publisher.publish(vec![message]).await.unwrap();
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            })
        });
        let publishers: Vec<_> = publishers.collect();
        let mut next = before;
        while publishers.iter().any(|publisher| !publisher.is_finished()) {
            let known = answered.load(Ordering::SeqCst);
            if known >= next {
                left.push((known, disk.fail(&mut random)));
                next = known + random.u64(3..12);
            }
            tokio::task::yield_now().await;
        }
        for publisher in publishers {
            publisher.await.unwrap();
        }
        let closing = tokio::spawn(async move { engine.close().await });
        while !closing.is_finished() {
            left.push((before + 180, disk.fail(&mut random)));
            tokio::task::yield_now().await;
        }
        closing.await.unwrap();
        left.push((before + 180, disk.fail(&mut random)));
        random.shuffle(&mut left);
        left.truncate(24);
        for (known, left) in &left {
            let copy = tempfile::tempdir().unwrap();
            let engine = left.moved(folder.path(), copy.path()).engine(copy.path());
            let found = ready(&engine).await;
            assert!(found >= *known, "{round}: {found} of {known}");
            engine.close().await;
        }
        (sure, disk) = left.swap_remove(0);
    }
}

impl Disk {
    /// The same files in another folder.
    fn moved(&self, from: &Path, to: &Path) -> Self {
        let files = self.0.lock();
        let moved = files.iter().map(|(path, image)| {
            let name = path.strip_prefix(from).unwrap();
            (to.join(name), image.clone())
        });
        Self(Arc::new(Mutex::new(moved.collect())))
    }
}

async fn ready(engine: &Engine) -> u64 {
    let depths = engine.depths().await.unwrap();
    let lane = depths.iter().find(|it| it.queue == "send.im.express");
    let rows = engine.0.read(tables::rows).await.unwrap();
    let messages = rows.iter().filter(|(table, _, _)| table == "ready");
    let count = messages.count() as u64;
    assert_eq!(lane.unwrap().ready, count);
    count
}
