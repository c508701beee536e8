//! Opens the files of a data folder. Only the owner can read them, since they hold messages and
//! recipients. What is written to them is counted.

use std::fs::{self, File};
use std::io;
use std::ops::Bound;
#[cfg(unix)]
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use redb::backends::FileBackend;
use redb::{BackendError, DatabaseError, StorageBackend};

use super::CACHE_BYTES;

/// How much of the log is written before the store writes its pages.
const LOG_BYTES: u64 = 8 * 1024 * 1024;

/// Opens the store and the log, now and each time after the disk has failed.
pub(super) trait Opener: Send + Sync {
    /// Creates the file if it is missing.
    fn open(&self, path: &Path) -> Result<Box<dyn StorageBackend>, DatabaseError>;

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn cache_bytes(&self) -> usize {
        CACHE_BYTES
    }

    /// The length of a new log.
    fn log_bytes(&self) -> u64 {
        LOG_BYTES
    }
}

pub(super) struct FileOpener;

impl Opener for FileOpener {
    fn open(&self, path: &Path) -> Result<Box<dyn StorageBackend>, DatabaseError> {
        let file = private(path).map_err(redb::StorageError::Io)?;
        Ok(Box::new(FileBackend::new(file)?))
    }
}

/// A file that counts the bytes that are written to it.
#[derive(Debug)]
pub(super) struct Counted {
    pub(super) file: Box<dyn StorageBackend>,
    pub(super) written: Arc<AtomicU64>,
}

impl StorageBackend for Counted {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)?;
        self.written.fetch_add(data.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }
}

/// Opens a file of the data folder, and creates it if it is missing. Only its owner can read it,
/// whatever the umask and its earlier modes.
pub(super) fn private(path: &Path) -> io::Result<File> {
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
