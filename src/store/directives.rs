//! Keeps directives in one small hash, with a version in it.
//!
//! A worker asks for the version, which is one field, and reads the whole hash only if the version
//! has changed.

use std::sync::LazyLock;

use redis::Value;

use super::Store;
use super::connection::{Call, Script, broken, json};
use super::ledger::number;
use crate::domain::directive::{Directive, Kind, Subject};
use crate::ports::{Directed, Directives, LedgerError};

static DIRECT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/direct.lua")));

/// The field that holds the version.
const VERSION: &str = "version";

impl Directives for Store {
    async fn direct_all(&self, directives: &[Directive]) -> Result<(), LedgerError> {
        let mut fields = Vec::with_capacity(directives.len());
        for it in directives {
            let field = field(&it.subject, it.action.kind());
            fields.push((field, it.until_ms.unwrap_or(0), json(it)?));
        }
        self.change(fields).await.map(drop)
    }

    async fn lift_all(&self, directives: &[(Subject, Kind)]) -> Result<u64, LedgerError> {
        let lifted = |(subject, kind): &(Subject, Kind)| (field(subject, *kind), 0, String::new());
        self.change(directives.iter().map(lifted).collect()).await
    }

    async fn directives(&self, known: u64) -> Result<Option<Directed>, LedgerError> {
        let key = self.0.keys.directives();
        let mut cmd = redis::cmd("HGET");
        cmd.arg(&key).arg(VERSION);
        let version = match self.0.connection.command(&cmd).await? {
            Value::Nil => 0,
            version => number(&version)?,
        };
        if version == known {
            return Ok(None);
        }
        let mut cmd = redis::cmd("HGETALL");
        cmd.arg(&key);
        let fields: Vec<(String, String)> =
            redis::from_redis_value(self.0.connection.command(&cmd).await?).map_err(broken)?;
        let mut directed = Directed::default();
        for (field, value) in fields {
            if field == VERSION {
                directed.version = value.parse().map_err(broken)?;
            } else {
                directed.all.extend(read(&value));
            }
        }
        Ok(Some(directed))
    }
}

impl Store {
    /// Writes fields with their end and their directive; one without a directive is removed.
    async fn change(&self, fields: Vec<(String, u64, String)>) -> Result<u64, LedgerError> {
        let mut call = Call::new(&DIRECT, 1, 3 * fields.len(), 512 * fields.len());
        call.push(self.0.keys.directives());
        for (field, until_ms, directive) in fields {
            call.push(field).push(until_ms).push(directive);
        }
        number(&self.0.connection.call(&call).await?)
    }
}

fn field(subject: &Subject, kind: Kind) -> String {
    let Subject { scope, name } = subject;
    format!("{}:{}:{name}", scope.as_str(), kind.as_str())
}

/// Reads a stored directive, whose end comes before it. A directive that a newer version wrote and
/// this one cannot read must not keep the worker from obeying the others.
fn read(value: &str) -> Option<Directive> {
    let json = value.split_once(' ').map_or(value, |(_, json)| json);
    serde_json::from_str(json)
        .inspect_err(|error| tracing::error!(%error, "a directive cannot be read and is ignored"))
        .ok()
}
