//! Implements the port for directives: a table of directives, whose version is the number of its
//! changes.

use redb::ReadableTable as _;

use super::limiter::{EmbeddedStore, ledger_error};
use super::tables::{self, DIRECTIVES};
use crate::domain::directive::{Directive, Kind, Subject};
use crate::ports::{Directed, Directives, LedgerError};

impl Directives for EmbeddedStore {
    async fn direct_all(&self, directives: &[Directive]) -> Result<(), LedgerError> {
        let of = |it: &Directive| {
            let subject = it.subject.clone();
            (subject, it.action.kind(), Some(crate::json::bytes(it)))
        };
        self.change(directives.iter().map(of).collect())
            .await
            .map(drop)
    }

    async fn lift_all(&self, directives: &[(Subject, Kind)]) -> Result<u64, LedgerError> {
        let lifted = directives.iter().cloned();
        let lifted = lifted.map(|(subject, kind)| (subject, kind, None));
        self.change(lifted.collect()).await
    }

    async fn directives(&self, known: u64) -> Result<Option<Directed>, LedgerError> {
        let read = self.0.0.read(move |transaction| {
            let version = tables::directed(transaction)?;
            if version == known {
                return Ok(None);
            }
            let mut all = Vec::new();
            for row in transaction.open_table(DIRECTIVES)?.iter()? {
                all.extend(parse(row?.1.value()));
            }
            Ok(Some(Directed { version, all }))
        });
        read.await.map_err(ledger_error)
    }
}

/// A directive of a kind about a subject, as JSON; none to remove it.
type Changed = (Subject, Kind, Option<Vec<u8>>);

impl EmbeddedStore {
    /// Replaces or removes directives, and drops those that have expired. Returns how many of them
    /// there were.
    async fn change(&self, changed: Vec<Changed>) -> Result<u64, LedgerError> {
        let bytes = changed.iter().filter_map(|(_, _, json)| json.as_ref());
        let bytes = bytes.map(Vec::len).sum();
        let step = self.0.0.write(bytes, move |work| {
            let now_ms = work.now_ms;
            let table = work.tables.directives.open()?;
            table.retain(|_, row| parse(row).is_none_or(|directive| directive.in_force(now_ms)))?;
            let mut stood = 0;
            for (Subject { scope, name }, kind, json) in &changed {
                let key = (scope.as_str(), kind.as_str(), name.as_str());
                let before = match json {
                    Some(json) => table.insert(key, json.as_slice())?,
                    None => table.remove(key)?,
                };
                stood += u64::from(before.is_some());
            }
            work.tables.count_directed()?;
            Ok(stood)
        });
        step.await.map_err(ledger_error)
    }
}

/// A directive that a newer version wrote and this one cannot read must not keep the worker from
/// obeying the others.
fn parse(row: &[u8]) -> Option<Directive> {
    serde_json::from_slice(row)
        .inspect_err(|error| tracing::error!(%error, "a directive cannot be read and is ignored"))
        .ok()
}
