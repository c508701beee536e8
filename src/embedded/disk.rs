//! Opens the data folder: locks it, opens the store in it, and handles their errors.
//!
//! After an error of the disk the store refuses everything, so [`Disk::reopen`] opens it again: it
//! holds everything that was committed and nothing else. Commits are made in two phases and store
//! the allocator's state, so that opening after a crash takes milliseconds whatever the size.
//!
//! Only the owner can read the files, since they hold messages and recipients.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Write as _};
#[cfg(unix)]
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use redb::{Database, DatabaseError, ReadTransaction, ReadableDatabase as _, WriteTransaction};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::builder;
use super::damage::sheltered;
use super::tables::{self, FORMAT};

const STORE: &str = "fanwise.redb";
const LOCK: &str = "fanwise.lock";

pub(super) type Opener = Box<dyn Fn(&Path) -> Result<Database, DatabaseError> + Send + Sync>;

pub(super) fn open_file(file: &Path) -> Result<Database, DatabaseError> {
    builder().create(file)
}

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
        "{} cannot be opened; if it is damaged, move it away and fanwise starts with an empty one",
        file.display()
    )]
    Store {
        file: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{} cannot be opened", file.display())]
    Full {
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

enum Store {
    Open(Database),
    /// It could not be opened again yet.
    Failed(StorageError),
    Closed,
}

impl Store {
    fn get(&self) -> Result<&Database, StorageError> {
        match self {
            Self::Open(database) => Ok(database),
            Self::Failed(error) => Err(error.clone()),
            Self::Closed => Err(StorageError::Stopped),
        }
    }
}

pub(super) struct Disk {
    folder: PathBuf,
    file: PathBuf,
    opener: Opener,
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
    pub(super) fn open(folder: &Path, opener: Opener) -> Result<(Self, FolderLock), OpenError> {
        let failed = |source| OpenError::Folder {
            folder: folder.to_owned(),
            source,
        };
        make_folder(folder).map_err(failed)?;
        // Every process that opens a folder leaves this file in it.
        let was_used = folder.join(LOCK).exists();
        let lock = lock(folder, failed)?;
        let file = folder.join(STORE);
        let is_new = private_file(&file)
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
        let opened = sheltered(|| opener(&file).map_err(StorageError::from));
        let database = opened.map_err(|error| unusable(&file, error))?;
        // The name of a new file is durable once its folder is.
        File::open(folder)
            .and_then(|opened| opened.sync_all())
            .map_err(failed)?;
        let disk = Self {
            folder: folder.to_owned(),
            file,
            opener,
            store: RwLock::new(Store::Open(database)),
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
        let failed = |error| unusable(&self.file, error);
        let found = sheltered(|| tables::format(&self.begin_read()?)).map_err(failed)?;
        if found > FORMAT {
            let file = self.file.clone();
            return Err(OpenError::Newer { file, found });
        }
        let prepared = sheltered(|| {
            let transaction = self.begin_write()?;
            let start = tables::prepare(&transaction, targets)?;
            transaction.commit()?;
            Ok(start)
        });
        prepared.map_err(failed)
    }

    pub(super) fn open_error(&self, source: io::Error) -> OpenError {
        OpenError::Folder {
            folder: self.folder.clone(),
            source,
        }
    }

    pub(super) fn begin_read(&self) -> Result<ReadTransaction, StorageError> {
        let store = self.store.read();
        Ok(store.get()?.begin_read()?)
    }

    pub(super) fn begin_write(&self) -> Result<WriteTransaction, StorageError> {
        let store = self.store.read();
        let mut transaction = store.get()?.begin_write()?;
        transaction.set_quick_repair(true);
        Ok(transaction)
    }

    /// Calls this after each commit; the first caller decides.
    pub(super) fn on_commit(&self, act: OnCommit) {
        let _ = self.on_commit.set(act);
    }

    pub(super) fn commit(&self, transaction: WriteTransaction) -> Result<(), StorageError> {
        let started = Instant::now();
        transaction.commit()?;
        if let Some(act) = self.on_commit.get() {
            act(started.elapsed());
        }
        Ok(())
    }

    /// Bytes of the file, and free bytes of its disk.
    pub(super) fn usage(&self) -> io::Result<(u64, u64)> {
        let disk = rustix::fs::statvfs(&self.folder)?;
        let bytes = fs::metadata(&self.file)?.len();
        Ok((bytes, disk.f_bavail.saturating_mul(disk.f_frsize)))
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
            Store::Open(database) => std::mem::forget(database),
            Store::Closed => *store = Store::Closed,
            Store::Failed(_) => {}
        }
        drop(store);
        if self.damage.is_cancelled() {
            return;
        }
        tracing::error!(
            file = %self.file.display(),
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
            match (self.opener)(&self.file).map_err(StorageError::from) {
                Ok(database) => {
                    *store = Store::Open(database);
                    Ok(())
                }
                Err(error) => {
                    *store = Store::Failed(error.clone());
                    Err(error)
                }
            }
        })
    }

    pub(super) fn close(&self) {
        let mut store = self.store.write();
        let Store::Open(database) = std::mem::replace(&mut *store, Store::Closed) else {
            return;
        };
        if let Err(error) = sheltered(|| Ok(database.close()?)) {
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
                    folder = %self.folder.display(),
                    cause,
                    "{error}; nothing is accepted or sent until this is fixed, and nothing \
                     accepted is lost"
                );
                *known = Some(error.to_string());
                self.blocked.send_replace(true);
            }
            (None, true) => {
                tracing::info!(folder = %self.folder.display(), "the data folder is writable again");
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
        StorageError::Full(_) => OpenError::Full {
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

/// Opens a file of the data folder, and creates it if it is missing. Only its owner can read it,
/// whatever the umask and its earlier modes.
fn private_file(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    options.mode(PRIVATE);
    let file = options.open(path)?;
    #[cfg(unix)]
    narrow(&file, path)?;
    Ok(file)
}

/// Read and written by its owner only.
#[cfg(unix)]
const PRIVATE: u32 = 0o600;

#[cfg(unix)]
fn narrow(file: &File, path: &Path) -> io::Result<()> {
    let mode = file.metadata()?.permissions().mode() & 0o777;
    if mode & !PRIVATE == 0 {
        return Ok(());
    }
    match file.set_permissions(fs::Permissions::from_mode(PRIVATE)) {
        Ok(()) => tracing::info!(
            file = %path.display(),
            "the modes were {mode:o} and are {PRIVATE:o} now: the file holds messages and recipients"
        ),
        // The file belongs to another user, and this process may use it.
        Err(error) => tracing::warn!(
            file = %path.display(),
            %error,
            "others can read the file, and its modes cannot be changed from {mode:o} to {PRIVATE:o}"
        ),
    }
    Ok(())
}

fn lock(folder: &Path, failed: impl Fn(io::Error) -> OpenError) -> Result<FolderLock, OpenError> {
    let mut file = private_file(&folder.join(LOCK)).map_err(&failed)?;
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
