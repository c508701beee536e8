//! The port to an engine that can copy its data while it works.

use std::fs::File;

/// Copies everything that an engine stores.
pub trait Backup: Send + Sync {
    /// Writes a copy of one moment into an empty file, synced to disk. Work goes on meanwhile.
    /// Blocks the thread.
    fn copy_to(&self, file: File) -> Result<(), BackupError>;
}

/// There is no whole copy; the file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("there is no space for the copy")]
    Full(#[source] std::io::Error),
    #[error("the copy cannot be made")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the copy is not a whole store")]
    NotWhole(#[source] Box<dyn std::error::Error + Send + Sync>),
}
