//! Copies the store into another file while the engine works.
//!
//! A read transaction shows the store as it was at one moment, so the copy is of that moment. The
//! pages that it shows are not used again until it ends, so the store grows meanwhile by what is
//! written. The copy is made row by row, and therefore has no free pages.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;

use redb::backends::FileBackend;
use redb::{
    Database, Durability, Key, ReadTransaction, ReadableDatabase as _, ReadableTable as _,
    ReadableTableMetadata as _, TableDefinition, TableError, TableHandle as _, Value,
};

use super::damage::sheltered;
use super::disk::{Disk, StorageError};
use super::{CACHE_BYTES, EmbeddedBroker, builder, tables};
use crate::ports::{Backup, BackupError};

/// Rows in one commit of the copy, so that a large store needs little memory.
const ROWS: usize = 10_000;

impl Backup for EmbeddedBroker {
    fn copy_to(&self, file: File) -> Result<(), BackupError> {
        // An error may be that of the copy, so it says nothing about the store.
        let copied = sheltered(|| copy(&self.disk().begin_read()?, file));
        copied.map_err(|error| match error {
            // Reading fills no disk, so it is the disk of the copy.
            StorageError::Full(error) => BackupError::Full(std::io::Error::other(error)),
            error => BackupError::Failed(Box::new(error)),
        })
    }
}

/// Opens a copy as a store and reads all of it, which finds a copy that was cut or changed on its
/// way. Returns the number of its jobs. Blocks the thread.
pub fn check_copy(file: &Path) -> Result<u64, BackupError> {
    let checked = sheltered(|| {
        let mut copy = builder(CACHE_BYTES).open(file)?;
        if !copy.check_integrity()? {
            return Err(StorageError::broken("its checksums are wrong"));
        }
        let read = copy.begin_read()?;
        match tables::opening(&read)?.format {
            1..=tables::FORMAT => Ok(read.open_table(tables::JOBS)?.len()?),
            format => Err(StorageError::broken(format!("its format is {format}"))),
        }
    });
    checked.map_err(|error| match error {
        // The text of this error is about the data folder.
        StorageError::Disk(error) => BackupError::NotWhole(Box::new(error)),
        error => BackupError::NotWhole(Box::new(error)),
    })
}

impl EmbeddedBroker {
    fn disk(&self) -> &Disk {
        &self.0.0.disk
    }
}

/// Copies all tables into an empty file.
fn copy(from: &ReadTransaction, file: File) -> Result<(), StorageError> {
    let copy = Copy {
        from,
        to: builder(CACHE_BYTES).create_with_backend(FileBackend::new(file)?)?,
    };
    tables::copy_each(&copy)?;
    copy.check_complete()?;
    // The commits before this one are not synced.
    let mut last = copy.to.begin_write()?;
    last.set_quick_repair(true);
    // The copy has everything, so it needs no log.
    tables::set_log(&last, 0)?;
    last.commit()?;
    Ok(())
}

/// A copy in progress.
pub(super) struct Copy<'a> {
    from: &'a ReadTransaction,
    to: Database,
}

impl Copy<'_> {
    pub(super) fn table<K: Key + 'static, V: Value + 'static>(
        &self,
        definition: TableDefinition<'static, K, V>,
    ) -> Result<(), StorageError> {
        let table = match self.from.open_table(definition) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let mut rows = table.iter()?.peekable();
        loop {
            let mut transaction = self.to.begin_write()?;
            transaction
                .set_durability(Durability::None)
                .map_err(StorageError::broken)?;
            {
                let mut copy = transaction.open_table(definition)?;
                for row in rows.by_ref().take(ROWS) {
                    let (key, value) = row?;
                    copy.insert(key.value(), value.value())?;
                }
            }
            transaction.commit()?;
            if rows.peek().is_none() {
                return Ok(());
            }
        }
    }
}

impl Copy<'_> {
    /// No copy is better than one that lacks a table.
    fn check_complete(&self) -> Result<(), StorageError> {
        let copied = self.to.begin_read()?;
        let copied: BTreeSet<_> = copied
            .list_tables()?
            .map(|it| it.name().to_owned())
            .collect();
        let mut all = self.from.list_tables()?;
        match all.find(|it| !copied.contains(it.name())) {
            None => Ok(()),
            Some(table) => Err(StorageError::broken(format!(
                "the table {} is not copied",
                table.name()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn rows(read: &ReadTransaction) -> BTreeMap<String, u64> {
        let tables = read.list_tables().unwrap();
        let count = |table: redb::UntypedTableHandle| {
            let rows = read.open_untyped_table(table.clone()).unwrap().len();
            (table.name().to_owned(), rows.unwrap())
        };
        tables.map(count).collect()
    }

    #[test]
    fn a_copy_has_every_table_and_row() {
        let folder = tempfile::tempdir().unwrap();
        let engine = super::super::Engine::open(&super::super::Settings {
            targets: vec!["im".to_owned()],
            ..super::super::Settings::new(folder.path())
        })
        .unwrap();
        let broker = engine.broker();
        // More rows than one commit of the copy holds.
        let transaction = broker.disk().begin_write().unwrap();
        {
            let mut tables = tables::Tables::new(&transaction);
            let claims = tables.claims.open().unwrap();
            for number in 0..2 * ROWS as u64 + 1 {
                claims.insert(number, &b"{}"[..]).unwrap();
            }
        }
        broker.disk().commit(transaction).unwrap();
        let file = folder.path().join("copy");
        let empty = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&file)
            .unwrap();
        broker.copy_to(empty).unwrap();
        let original = rows(&broker.disk().begin_read().unwrap());
        let copy = builder(CACHE_BYTES).open(&file).unwrap();
        assert_eq!(rows(&copy.begin_read().unwrap()), original);
        assert_eq!(original["claims"], 2 * ROWS as u64 + 1);
    }

    /// A copy that is not whole is found, wherever it was cut or changed.
    #[test]
    fn a_copy_that_is_not_whole_is_no_store() {
        let folder = tempfile::tempdir().unwrap();
        let settings = super::super::Settings::new(folder.path());
        let broker = super::super::Engine::open(&settings).unwrap().broker();
        let file = folder.path().join("copy");
        let open = File::options();
        let empty = open
            .clone()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&file);
        broker.copy_to(empty.unwrap()).unwrap();
        let whole = std::fs::read(&file).unwrap();
        assert_eq!(check_copy(&file).unwrap(), 0);
        assert_eq!(check_copy(&file).unwrap(), 0, "checked once more");
        for length in [0, 1, 4096, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&file, &whole[..length]).unwrap();
            assert!(check_copy(&file).is_err(), "{length} of {}", whole.len());
        }
        std::fs::write(&file, "not a store").unwrap();
        assert!(check_copy(&file).is_err());
        assert!(check_copy(&folder.path().join("missing")).is_err());
    }
}
