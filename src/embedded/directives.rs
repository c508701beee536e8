//! Implements the port for directives: a table of directives, whose version is the number of its
//! changes.

use redb::ReadableTable as _;

use super::limiter::{EmbeddedStore, ledger_error};
use super::tables::{self, DIRECTIVES};
use crate::domain::directive::{Directive, Kind, Subject};
use crate::ports::{Directed, Directives, LedgerError};

impl Directives for EmbeddedStore {
    async fn direct(&self, directive: &Directive) -> Result<(), LedgerError> {
        let subject = &directive.subject;
        self.change(subject, directive.action.kind(), Some(directive))
            .await
            .map(drop)
    }

    async fn lift(&self, subject: &Subject, kind: Kind) -> Result<bool, LedgerError> {
        self.change(subject, kind, None).await
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

impl EmbeddedStore {
    /// Replaces or removes a directive, and drops those that have expired.
    async fn change(
        &self,
        subject: &Subject,
        kind: Kind,
        directive: Option<&Directive>,
    ) -> Result<bool, LedgerError> {
        let Subject { scope, name } = subject.clone();
        let json = directive.map(crate::json::bytes);
        let bytes = json.as_ref().map_or(0, Vec::len);
        let step = self.0.0.write(bytes, move |work| {
            let now_ms = work.now_ms;
            let table = work.tables.directives.open()?;
            table.retain(|_, row| parse(row).is_none_or(|directive| directive.in_force(now_ms)))?;
            let key = (scope.as_str(), kind.as_str(), name.as_str());
            let stood = match &json {
                Some(json) => table.insert(key, json.as_slice())?.is_some(),
                None => table.remove(key)?.is_some(),
            };
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
