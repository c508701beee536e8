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
    async fn direct(&self, directive: &Directive) -> Result<(), LedgerError> {
        let kind = directive.action.kind();
        let until_ms = directive.until_ms.unwrap_or(0);
        self.change(&directive.subject, kind, until_ms, json(directive)?)
            .await
            .map(drop)
    }

    async fn lift(&self, subject: &Subject, kind: Kind) -> Result<bool, LedgerError> {
        self.change(subject, kind, 0, String::new()).await
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
    async fn change(
        &self,
        subject: &Subject,
        kind: Kind,
        until_ms: u64,
        directive: String,
    ) -> Result<bool, LedgerError> {
        let field = format!(
            "{}:{}:{}",
            subject.scope.as_str(),
            kind.as_str(),
            subject.name
        );
        let mut call = Call::new(&DIRECT, 1, 3, 512);
        call.push(self.0.keys.directives())
            .push(field)
            .push(until_ms)
            .push(directive);
        Ok(number(&self.0.connection.call(&call).await?)? == 1)
    }
}

/// Reads a stored directive, whose end comes before it. A directive that a newer version wrote and
/// this one cannot read must not keep the worker from obeying the others.
fn read(value: &str) -> Option<Directive> {
    let json = value.split_once(' ').map_or(value, |(_, json)| json);
    serde_json::from_str(json)
        .inspect_err(|error| tracing::error!(%error, "a directive cannot be read and is ignored"))
        .ok()
}
