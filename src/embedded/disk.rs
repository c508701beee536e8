//! Opens the data folder: locks it, opens the store in it, and handles their errors.
//!
//! A commit goes into the log and into the pages that the store keeps in memory; when the log is
//! full, and at the end, the store writes its pages ([`log`](super::log)). It writes them in two
//! phases and with the allocator's state, so that opening after a crash takes milliseconds whatever
//! the size.
//!
//! After an error of the disk the store refuses everything, so [`Disk::reopen`] opens it again, and
//! does again what the log says: it holds everything that was committed and nothing else.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use redb::{Database, Durability, ReadTransaction, ReadableDatabase as _, StorageBackend as _};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::builder;
use super::changes;
use super::damage::sheltered;
use super::files::{Counted, Opener, private};
use super::log::Log;
use super::tables::{self, FORMAT};
use super::transaction::Transaction;

const STORE: &str = "fanwise.redb";
const LOG: &str = "fanwise.log";
const LOCK: &str = "fanwise.lock";

/// Why a data folder cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "the data folder {} is in use by another fanwise process{}; stop that process, talk to it \
         over its HTTP interface, or choose another folder (embedded.dir)",
        folder.display(), process.map(|id| format!(" (process {id})")).unwrap_or_default()
    )]
    InUse {
        folder: PathBuf,
        process: Option<u32>,
    },
    #[error("the data folder {} (embedded.dir) cannot be used", folder.display())]
    Folder {
        folder: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{} cannot be opened; if it is damaged, move it away with {LOG}, and fanwise starts with an \
         empty one",
        file.display()
    )]
    Store {
        file: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store is not at fault.
    #[error("{} cannot be opened", file.display())]
    Refused {
        file: PathBuf,
        #[source]
        source: StorageError,
    },
    #[error(
        "{} was written in format {found} by a newer fanwise, this one knows format {FORMAT}; \
         use the newer version",
        file.display()
    )]
    Newer { file: PathBuf, found: u64 },
}

/// Why a step or a read failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StorageError {
    #[error("the disk of the data folder is full: make space on it")]
    Full(#[source] Arc<redb::Error>),
    #[error("the store in the data folder cannot be read or written")]
    Disk(#[source] Arc<redb::Error>),
    /// This process writes nothing more to it.
    #[error("the store in the data folder is damaged: {0}")]
    Damaged(String),
    #[error("a record in the data folder makes no sense: {0}")]
    Broken(String),
    #[error("it was written in format {0}, by a newer fanwise")]
    Newer(u64),
    #[error(
        "it was not closed in order, so it needs its log, and {LOG} in the same folder {0}; put the \
         right file there. If that is lost, put an empty file there: fanwise then goes on without \
         what it accepted and recorded last, and may send a message twice"
    )]
    NoLog(&'static str),
    #[error("the embedded engine is closed")]
    Stopped,
}

impl StorageError {
    pub(super) fn broken(what: impl std::fmt::Display) -> Self {
        Self::Broken(what.to_string())
    }

    fn of(error: redb::Error) -> Self {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match &error {
            redb::Error::Io(io)
                if [StorageFull, QuotaExceeded, FileTooLarge].contains(&io.kind()) =>
            {
                Self::Full(Arc::new(error))
            }
            redb::Error::Corrupted(what) => Self::Damaged(what.clone()),
            _ => Self::Disk(Arc::new(error)),
        }
    }
}

macro_rules! storage_error_from {
    ($($error:ident),*) => {$(
        impl From<redb::$error> for StorageError {
            fn from(error: redb::$error) -> Self {
                Self::of(error.into())
            }
        }
    )*};
}
storage_error_from!(
    StorageError,
    TableError,
    TransactionError,
    CommitError,
    DatabaseError
);

/// Locks the folder against other processes until it is dropped.
#[derive(Debug)]
pub(super) struct FolderLock(#[expect(dead_code, reason = "held for its lock")] File);

/// The files of a data folder.
struct Files {
    folder: PathBuf,
    opener: Box<dyn Opener>,
    written: Arc<AtomicU64>,
}

impl Files {
    fn store(&self) -> PathBuf {
        self.folder.join(STORE)
    }

    fn log(&self) -> PathBuf {
        self.folder.join(LOG)
    }

    fn open(&self, path: &Path) -> Result<Counted, StorageError> {
        Ok(Counted {
            file: self.opener.open(path)?,
            written: Arc::clone(&self.written),
        })
    }
}

/// The store, with the log of what it has not written yet.
struct LoggedStore {
    store: Database,
    log: Mutex<Log>,
}

impl LoggedStore {
    fn open(files: &Files) -> Result<Self, StorageError> {
        let store =
            builder(files.opener.cache_bytes()).create_with_backend(files.open(&files.store())?)?;
        let opening = tables::opening(&store.begin_read()?)?;
        if opening.format > FORMAT {
            return Err(StorageError::Newer(opening.format));
        }
        let path = files.log();
        let needs_log = opening.log != 0;
        if needs_log && !files.opener.exists(&path) {
            return Err(StorageError::NoLog("is missing"));
        }
        let file = files.open(&path)?;
        if needs_log && file.len().map_err(redb::StorageError::Io)? > 0 {
            let log = redo(&store, file, &opening)?.map(Mutex::new);
            let log = log.ok_or(StorageError::NoLog("belongs to another store"))?;
            return Ok(Self { store, log });
        }
        if needs_log {
            tracing::warn!(
                log = %path.display(),
                "the log is empty: fanwise goes on without what it accepted and recorded last"
            );
        }
        let log = Log::create(file, files.opener.log_bytes(), opening.logged + 1)?;
        sync_names(&files.folder).map_err(redb::StorageError::Io)?;
        let mut first = store.begin_write()?;
        tables::set_log(&first, log.salt())?;
        first.set_quick_repair(true);
        first.commit()?;
        let log = Mutex::new(log);
        Ok(Self { store, log })
    }

    /// Returns an error if nothing is committed. If the commit is in the log and the store fails to
    /// take it, it is committed, and the store has to be opened again.
    fn commit(&self, transaction: Transaction) -> Result<Committed, StorageError> {
        let (mut transaction, changes) = transaction.into_parts();
        let mut log = self.log.lock();
        let Some(record) = log.append(&changes)? else {
            transaction.set_quick_repair(true);
            transaction.commit()?;
            log.restart();
            return Ok(Committed::Whole);
        };
        let taken = sheltered(|| {
            tables::set_logged(&transaction, record)?;
            in_memory(&mut transaction)?;
            Ok(transaction.commit()?)
        });
        Ok(taken.map_or_else(Committed::InLog, |()| Committed::Whole))
    }

    /// Writes what the log has into the store, which needs no log then.
    fn close(self) -> Result<(), StorageError> {
        let mut last = self.store.begin_write()?;
        tables::set_log(&last, 0)?;
        last.set_quick_repair(true);
        last.commit()?;
        Ok(self.store.close()?)
    }
}

/// Where a commit is.
enum Committed {
    Whole,
    /// Not in the pages of the store, which failed.
    InLog(StorageError),
}

/// Opens the log of a store, and does again what it says; `None` if it belongs to another store.
fn redo(
    store: &Database,
    file: Counted,
    opening: &tables::Opening,
) -> Result<Option<Log>, StorageError> {
    let mut transaction = store.begin_write()?;
    let opened = Log::open(file, opening.log, opening.logged, |record| {
        changes::read(record, |table, key, change| {
            tables::redo(&transaction, table, key, &change)
        })
    })?;
    let Some((log, last)) = opened else {
        return Ok(None);
    };
    if last > opening.logged {
        tables::set_logged(&transaction, last)?;
        in_memory(&mut transaction)?;
        transaction.commit()?;
    }
    Ok(Some(log))
}

/// Has a transaction committed to the pages in memory only: the log has what it changes.
fn in_memory(transaction: &mut redb::WriteTransaction) -> Result<(), StorageError> {
    let durability = Durability::None;
    transaction
        .set_durability(durability)
        .map_err(StorageError::broken)
}

enum Store {
    Open(Box<LoggedStore>),
    /// It could not be opened again yet.
    Failed(StorageError),
    Closed,
}

impl Store {
    fn get(&self) -> Result<&LoggedStore, StorageError> {
        match self {
            Self::Open(open) => Ok(open),
            Self::Failed(error) => Err(error.clone()),
            Self::Closed => Err(StorageError::Stopped),
        }
    }
}

/// What the engine takes of its disk.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes that the disk has left.
    pub free: u64,
    /// Bytes that were written to the files since the engine was opened.
    pub written: u64,
}

pub(super) struct Disk {
    files: Files,
    store: RwLock<Store>,
    error: Mutex<Option<String>>,
    /// Whether the last attempt to write failed.
    blocked: watch::Sender<bool>,
    damage: CancellationToken,
    /// Gets the time of each commit.
    on_commit: OnceLock<OnCommit>,
}

type OnCommit = Box<dyn Fn(Duration) + Send + Sync>;

impl Disk {
    pub(super) fn open(
        folder: &Path,
        opener: Box<dyn Opener>,
    ) -> Result<(Self, FolderLock), OpenError> {
        let failed = |source| OpenError::Folder {
            folder: folder.to_owned(),
            source,
        };
        make_folder(folder).map_err(failed)?;
        // Every process that opens a folder leaves this file in it.
        let was_used = folder.join(LOCK).exists();
        let lock = lock(folder, failed)?;
        let files = Files {
            folder: folder.to_owned(),
            opener,
            written: Arc::default(),
        };
        let file = files.store();
        let is_new = private(&file)
            .and_then(|file| Ok(file.metadata()?.len() == 0))
            .map_err(|error| unusable(&file, redb::StorageError::Io(error).into()))?;
        if was_used && is_new {
            tracing::warn!(
                file = %file.display(),
                "the data folder was used before and its store is gone: fanwise starts with an \
                 empty one, and knows nothing of jobs, recipients or dead letters from before; if \
                 that is not intended, stop it and put the file back"
            );
        }
        let opened = sheltered(|| LoggedStore::open(&files));
        let open = opened.map_err(|error| unusable(&file, error))?;
        let disk = Self {
            files,
            store: RwLock::new(Store::Open(Box::new(open))),
            error: Mutex::new(None),
            blocked: watch::Sender::new(false),
            damage: CancellationToken::new(),
            on_commit: OnceLock::new(),
        };
        Ok((disk, lock))
    }

    /// Creates the tables and queues that are missing, and reads the state that the engine starts
    /// with.
    pub(super) fn prepare(&self, targets: &[String]) -> Result<tables::Start, OpenError> {
        let prepared = sheltered(|| {
            let transaction = self.begin_write()?;
            let start = tables::prepare(&transaction, targets)?;
            self.commit(transaction)?;
            Ok(start)
        });
        prepared.map_err(|error| unusable(&self.files.store(), error))
    }

    pub(super) fn open_error(&self, source: io::Error) -> OpenError {
        OpenError::Folder {
            folder: self.files.folder.clone(),
            source,
        }
    }

    pub(super) fn begin_read(&self) -> Result<ReadTransaction, StorageError> {
        let store = self.store.read();
        Ok(store.get()?.store.begin_read()?)
    }

    pub(super) fn begin_write(&self) -> Result<Transaction, StorageError> {
        let store = self.store.read();
        Ok(Transaction::new(store.get()?.store.begin_write()?))
    }

    /// Calls this after each commit; the first caller decides.
    pub(super) fn on_commit(&self, act: OnCommit) {
        let _ = self.on_commit.set(act);
    }

    pub(super) fn commit(&self, transaction: Transaction) -> Result<(), StorageError> {
        let started = Instant::now();
        let committed = self.store.read().get()?.commit(transaction)?;
        if let Committed::InLog(error) = committed {
            *self.store.write() = Store::Failed(error);
        }
        if let Some(act) = self.on_commit.get() {
            act(started.elapsed());
        }
        Ok(())
    }

    pub(super) fn usage(&self) -> io::Result<Usage> {
        let length = |path: PathBuf| Ok::<_, io::Error>(fs::metadata(path)?.len());
        let disk = rustix::fs::statvfs(&self.files.folder)?;
        Ok(Usage {
            bytes: length(self.files.store())? + length(self.files.log())?,
            free: disk.f_bavail.saturating_mul(disk.f_frsize),
            written: self.files.written.load(Ordering::Relaxed),
        })
    }

    /// Runs an action on the store. If it finds the store damaged, the store is not used any more.
    pub(super) fn guarded<T>(
        &self,
        what: impl FnOnce() -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        let done = sheltered(what);
        if let Err(error @ StorageError::Damaged(_)) = &done {
            self.give_up(error);
        }
        done
    }

    /// Whether the store was found damaged while it was used.
    pub(super) fn damage(&self) -> &CancellationToken {
        &self.damage
    }

    /// Stops all use of the store: further writes to a damaged file may damage more of it.
    fn give_up(&self, error: &StorageError) {
        let mut store = self.store.write();
        match std::mem::replace(&mut *store, Store::Failed(error.clone())) {
            // Closing it would write to it.
            Store::Open(open) => std::mem::forget(open),
            Store::Closed => *store = Store::Closed,
            Store::Failed(_) => {}
        }
        drop(store);
        if self.damage.is_cancelled() {
            return;
        }
        tracing::error!(
            file = %self.files.store().display(),
            "{error}; nothing more is written to it. Put back a copy of the data folder, or move \
             the file away and fanwise starts with an empty one"
        );
        *self.error.lock() = Some(error.to_string());
        self.blocked.send_replace(true);
        self.damage.cancel();
    }

    /// Opens the store again after an error of the disk.
    pub(super) fn reopen(&self) -> Result<(), StorageError> {
        self.guarded(|| {
            let mut store = self.store.write();
            if let Store::Failed(error @ StorageError::Damaged(_)) = &*store {
                return Err(error.clone());
            }
            // The old one is closed first: a file is opened only once.
            *store = Store::Closed;
            match LoggedStore::open(&self.files) {
                Ok(open) => {
                    *store = Store::Open(Box::new(open));
                    Ok(())
                }
                Err(error) => {
                    *store = Store::Failed(error.clone());
                    Err(error)
                }
            }
        })
    }

    /// Whether it has to be opened again before anything can be read.
    pub(super) fn has_failed(&self) -> bool {
        matches!(*self.store.read(), Store::Failed(_))
    }

    pub(super) fn close(&self) {
        let mut store = self.store.write();
        let Store::Open(open) = std::mem::replace(&mut *store, Store::Closed) else {
            return;
        };
        if let Err(error) = sheltered(|| open.close()) {
            tracing::warn!(%error, "the store was not closed in order; nothing is lost");
        }
    }

    pub(super) fn error(&self) -> Option<String> {
        let error = self.error.lock();
        error.clone()
    }

    pub(super) fn is_blocked(&self) -> bool {
        *self.blocked.borrow()
    }

    pub(super) fn blocked(&self) -> watch::Receiver<bool> {
        self.blocked.subscribe()
    }

    /// Remembers the current error, and logs when there is a new one or it is gone.
    pub(super) fn note(&self, error: Option<&StorageError>) {
        let mut known = self.error.lock();
        match (error, known.is_some()) {
            (Some(error), false) => {
                let cause = std::error::Error::source(error).map(ToString::to_string);
                tracing::error!(
                    folder = %self.files.folder.display(),
                    cause,
                    "{error}; nothing is accepted or sent until this is fixed, and nothing \
                     accepted is lost"
                );
                *known = Some(error.to_string());
                self.blocked.send_replace(true);
            }
            (None, true) => {
                tracing::info!(folder = %self.files.folder.display(), "the data folder is writable again");
                *known = None;
                self.blocked.send_replace(false);
            }
            (Some(_), true) | (None, false) => {}
        }
    }
}

fn unusable(file: &Path, error: StorageError) -> OpenError {
    let file = file.to_owned();
    match error {
        StorageError::Newer(found) => OpenError::Newer { file, found },
        StorageError::Full(_) | StorageError::NoLog(_) => OpenError::Refused {
            file,
            source: error,
        },
        // The store's own text about the file, without another text around it.
        StorageError::Disk(error) => OpenError::Store {
            file,
            source: error.into(),
        },
        StorageError::Damaged(_) | StorageError::Broken(_) | StorageError::Stopped => {
            OpenError::Store {
                file,
                source: error.into(),
            }
        }
    }
}

/// The name of a new file is durable once its folder is.
fn sync_names(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Creates the folder for its owner only. A folder that exists may have another use as well and
/// keeps its modes: the files in it are private by themselves.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if folder.exists() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

fn lock(folder: &Path, failed: impl Fn(io::Error) -> OpenError) -> Result<FolderLock, OpenError> {
    let mut file = private(&folder.join(LOCK)).map_err(&failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only a hint for the message.
            let _ = file.read_to_string(&mut holder);
            return Err(OpenError::InUse {
                folder: folder.to_owned(),
                process: holder.trim().parse().ok(),
            });
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    // The process id is only a hint for operators: a full disk must not prevent the start.
    let _ = file
        .set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(FolderLock(file))
}
