//! The port to stored messages.

use std::future::Future;

use super::LedgerError;

/// Stores the messages of each app, by name and version.
///
/// The versions of a name count up; no number is used twice, even after a deletion. A version that
/// is no longer the newest, or whose name was deleted, can be read by its number for at least the
/// dedup window, because jobs that started with it keep it.
pub trait Templates: Clone + Send + Sync + 'static {
    /// Stores a message. Jobs that start from now on take this version. Repeated after an error, it
    /// may create another version with the same message.
    fn put_template(
        &self,
        app: &str,
        name: &str,
        message: &str,
    ) -> impl Future<Output = Result<StoredTemplate, LedgerError>> + Send;

    /// Reads a version; without a number, the newest version of a name that is not deleted.
    fn template(
        &self,
        app: &str,
        name: &str,
        version: Option<u32>,
    ) -> impl Future<Output = Result<Option<StoredTemplate>, LedgerError>> + Send;

    /// Lists the names of an app with their newest versions, in order, without deleted names.
    fn templates(
        &self,
        app: &str,
    ) -> impl Future<Output = Result<Vec<(String, u32)>, LedgerError>> + Send;

    /// Deletes a name. `Ok(false)`: there was no such name.
    fn delete_template(
        &self,
        app: &str,
        name: &str,
    ) -> impl Future<Output = Result<bool, LedgerError>> + Send;
}

/// One version of a stored message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTemplate {
    pub version: u32,
    pub put_at_ms: u64,
    /// The document as JSON, exactly as it was stored.
    pub message: String,
}
