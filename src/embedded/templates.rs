//! Implements the port of stored messages.

use redb::ReadableTable as _;

use super::disk::StorageError;
use super::limiter::{EmbeddedStore, ledger_error};
use super::tables::{TEMPLATE_NAMES, TEMPLATES};
use super::writer::WriteContext;
use crate::ports::{LedgerError, StoredTemplate, Templates};

impl Templates for EmbeddedStore {
    async fn put_template(
        &self,
        app: &str,
        name: &str,
        message: &str,
    ) -> Result<StoredTemplate, LedgerError> {
        let (app, name, message) = (app.to_owned(), name.to_owned(), message.to_owned());
        let step = self.0.0.write(message.len(), move |work| {
            let names = work.tables.template_names.open()?;
            let last = names.get((app.as_str(), name.as_str()))?;
            let version = last.map_or(0, |row| row.value().0) + 1;
            names.insert((app.as_str(), name.as_str()), (version, 0))?;
            let stored = StoredTemplate {
                version,
                put_at_ms: work.now_ms,
                message: message.clone(),
            };
            work.tables.templates.open()?.insert(
                (app.as_str(), name.as_str(), version),
                (stored.put_at_ms, message.as_str()),
            )?;
            forget(work, &app, &name)?;
            Ok(stored)
        });
        step.await.map_err(ledger_error)
    }

    async fn template(
        &self,
        app: &str,
        name: &str,
        version: Option<u32>,
    ) -> Result<Option<StoredTemplate>, LedgerError> {
        let (app, name) = (app.to_owned(), name.to_owned());
        let read = self.0.0.read(move |transaction| {
            let (app, name) = (app.as_str(), name.as_str());
            let names = transaction.open_table(TEMPLATE_NAMES)?;
            let last = names.get((app, name))?.map(|row| row.value());
            let newest = last.and_then(|(last, deleted_at)| (deleted_at == 0).then_some(last));
            let Some(version) = version.or(newest) else {
                return Ok(None);
            };
            let templates = transaction.open_table(TEMPLATES)?;
            Ok(templates.get((app, name, version))?.map(|row| {
                let (put_at_ms, message) = row.value();
                StoredTemplate {
                    version,
                    put_at_ms,
                    message: message.to_owned(),
                }
            }))
        });
        read.await.map_err(ledger_error)
    }

    async fn templates(&self, app: &str) -> Result<Vec<(String, u32)>, LedgerError> {
        let app = app.to_owned();
        let read = self.0.0.read(move |transaction| {
            let mut stored = Vec::new();
            let names = transaction.open_table(TEMPLATE_NAMES)?;
            for row in names.range((app.as_str(), "")..)? {
                let (key, row) = row?;
                let ((of, name), (last, deleted_at)) = (key.value(), row.value());
                if of != app {
                    break;
                }
                if deleted_at == 0 {
                    stored.push((name.to_owned(), last));
                }
            }
            Ok(stored)
        });
        read.await.map_err(ledger_error)
    }

    async fn delete_template(&self, app: &str, name: &str) -> Result<bool, LedgerError> {
        let (app, name) = (app.to_owned(), name.to_owned());
        let step = self.0.0.write(0, move |work| {
            let names = work.tables.template_names.open()?;
            let last = names.get((app.as_str(), name.as_str()))?;
            let Some((last, 0)) = last.map(|row| row.value()) else {
                return Ok(false);
            };
            names.insert((app.as_str(), name.as_str()), (last, work.now_ms))?;
            Ok(true)
        });
        step.await.map_err(ledger_error)
    }
}

/// Removes the versions of a name that were superseded longer ago than the dedup window. Versions
/// that stay until the name is put again do no harm.
fn forget(work: &mut WriteContext<'_>, app: &str, name: &str) -> Result<(), StorageError> {
    let window = work.window.as_millis() as u64;
    let templates = work.tables.templates.open()?;
    let mut kept: Vec<(u32, u64)> = Vec::new();
    for row in templates.range((app, name, 0)..=(app, name, u32::MAX))? {
        let (key, row) = row?;
        kept.push((key.value().2, row.value().0));
    }
    for pair in kept.windows(2) {
        let ((version, _), (_, superseded_at_ms)) = (pair[0], pair[1]);
        if superseded_at_ms + window < work.now_ms {
            templates.remove((app, name, version))?;
        }
    }
    Ok(())
}
