//! A transaction of the writer: tables that note each change of a row for the log.

use std::borrow::Borrow;
use std::cell::RefCell;
use std::ops::Deref;

use redb::{AccessGuard, Key, ReadableTable as _, Table, TableDefinition, Value, WriteTransaction};

use super::changes::{Change, Changes};
use super::disk::StorageError;

pub(super) struct Transaction {
    store: WriteTransaction,
    changes: RefCell<Changes>,
}

impl Transaction {
    pub(super) fn new(store: WriteTransaction) -> Self {
        Self {
            store,
            changes: RefCell::default(),
        }
    }

    pub(super) fn into_parts(self) -> (WriteTransaction, Changes) {
        (self.store, self.changes.into_inner())
    }
}

/// A table that is opened when it is first used in a transaction.
pub(super) struct Lazy<'t, K: Key + 'static, V: Value + 'static> {
    transaction: &'t Transaction,
    definition: TableDefinition<'static, K, V>,
    /// The number of the table in the log.
    number: u8,
    table: Option<LoggedTable<'t, K, V>>,
}

impl<'t, K: Key + 'static, V: Value + 'static> Lazy<'t, K, V> {
    pub(super) fn new(
        transaction: &'t Transaction,
        definition: TableDefinition<'static, K, V>,
        number: u8,
    ) -> Self {
        Self {
            transaction,
            definition,
            number,
            table: None,
        }
    }

    pub(super) fn open(&mut self) -> Result<&mut LoggedTable<'t, K, V>, StorageError> {
        let table = match self.table.take() {
            Some(table) => table,
            None => LoggedTable {
                table: self.transaction.store.open_table(self.definition)?,
                number: self.number,
                changes: &self.transaction.changes,
            },
        };
        Ok(self.table.insert(table))
    }
}

/// Reads like the table of the store, and changes only in ways that are noted.
pub(super) struct LoggedTable<'t, K: Key + 'static, V: Value + 'static> {
    table: Table<'t, K, V>,
    number: u8,
    changes: &'t RefCell<Changes>,
}

impl<'t, K: Key + 'static, V: Value + 'static> Deref for LoggedTable<'t, K, V> {
    type Target = Table<'t, K, V>;

    fn deref(&self) -> &Table<'t, K, V> {
        &self.table
    }
}

impl<K: Key + 'static, V: Value + 'static> LoggedTable<'_, K, V> {
    /// Returns the value before.
    pub(super) fn insert<'k, 'v>(
        &mut self,
        key: impl Borrow<K::SelfType<'k>>,
        value: impl Borrow<V::SelfType<'v>>,
    ) -> Result<Option<AccessGuard<'_, V>>, redb::StorageError> {
        let (key, value) = (key.borrow(), value.borrow());
        let before = self.table.insert(key, value)?;
        let after = V::as_bytes(value);
        note::<K, V>(
            self.changes,
            self.number,
            key,
            &before,
            Some(after.as_ref()),
        );
        Ok(before)
    }

    /// Returns the value before.
    pub(super) fn remove<'k>(
        &mut self,
        key: impl Borrow<K::SelfType<'k>>,
    ) -> Result<Option<AccessGuard<'_, V>>, redb::StorageError> {
        let key = key.borrow();
        let before = self.table.remove(key)?;
        note::<K, V>(self.changes, self.number, key, &before, None);
        Ok(before)
    }

    /// Removes the rows that are not to be kept.
    pub(super) fn retain(
        &mut self,
        mut keep: impl for<'f> FnMut(K::SelfType<'f>, V::SelfType<'f>) -> bool,
    ) -> Result<(), redb::StorageError> {
        let mut gone = Vec::new();
        for row in self.table.iter()? {
            let (key, value) = row?;
            if !keep(key.value(), value.value()) {
                gone.push(K::as_bytes(&key.value()).as_ref().to_vec());
            }
        }
        for key in gone {
            self.remove(K::from_bytes(&key))?;
        }
        Ok(())
    }
}

fn note<K: Key, V: Value>(
    changes: &RefCell<Changes>,
    table: u8,
    key: &K::SelfType<'_>,
    before: &Option<AccessGuard<'_, V>>,
    after: Option<&[u8]>,
) {
    let key = K::as_bytes(key);
    let before = before.as_ref().map(AccessGuard::value);
    let before = before.as_ref().map(V::as_bytes);
    let before = before.as_ref().map(AsRef::as_ref);
    changes
        .borrow_mut()
        .note(table, key.as_ref(), before, after);
}

/// Changes a row as the log says.
pub(super) fn redo<K: Key + 'static, V: Value + 'static>(
    store: &WriteTransaction,
    definition: TableDefinition<'static, K, V>,
    key: &[u8],
    change: &Change<'_>,
) -> Result<(), StorageError> {
    let mut table = store.open_table(definition)?;
    let key = K::from_bytes(key);
    let before = table.get(&key)?;
    let after = match &before {
        Some(before) => change.apply(Some(V::as_bytes(&before.value()).as_ref()))?,
        None => change.apply(None)?,
    };
    drop(before);
    match after {
        Some(after) => drop(table.insert(&key, V::from_bytes(&after))?),
        None => drop(table.remove(&key)?),
    }
    Ok(())
}

#[cfg(test)]
pub(super) fn rows<K: Key + 'static, V: Value + 'static>(
    transaction: &redb::ReadTransaction,
    definition: TableDefinition<'static, K, V>,
    rows: &mut Vec<super::tables::Row>,
) -> Result<(), StorageError> {
    let name = redb::TableHandle::name(&definition).to_owned();
    for row in transaction.open_table(definition)?.iter()? {
        let (key, value) = row?;
        let key = K::as_bytes(&key.value()).as_ref().to_vec();
        rows.push((
            name.clone(),
            key,
            V::as_bytes(&value.value()).as_ref().to_vec(),
        ));
    }
    Ok(())
}
