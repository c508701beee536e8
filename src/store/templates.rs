//! Keeps stored messages: one hash of versions per name, and one of names per app.

use std::sync::LazyLock;

use redis::Value;

use super::Store;
use super::connection::{Call, Script, broken};
use crate::ports::{LedgerError, StoredTemplate, Templates};

static PUT: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("scripts/put_template.lua")));
static DELETE: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("scripts/delete_template.lua")));

impl Templates for Store {
    async fn put_template(
        &self,
        app: &str,
        name: &str,
        message: &str,
    ) -> Result<StoredTemplate, LedgerError> {
        let mut call = self.templates_call(&PUT, app, name, 3, message.len());
        call.push(name).push(message).push(self.0.window_s * 1000);
        let reply = self.0.connection.call(&call).await?;
        let (version, put_at_ms) = redis::from_redis_value(reply).map_err(broken)?;
        Ok(StoredTemplate {
            version,
            put_at_ms,
            message: message.to_owned(),
        })
    }

    async fn template(
        &self,
        app: &str,
        name: &str,
        version: Option<u32>,
    ) -> Result<Option<StoredTemplate>, LedgerError> {
        let Some(version) = (match version {
            Some(version) => Some(version),
            None => self.newest_template(app, name).await?,
        }) else {
            return Ok(None);
        };
        let mut cmd = redis::cmd("HGET");
        cmd.arg(self.0.keys.template_versions(app, name))
            .arg(version);
        let found: Option<String> = self.read(&cmd).await?;
        let Some(found) = found else {
            return Ok(None);
        };
        let (put_at_ms, message) = found
            .split_once(' ')
            .ok_or_else(|| broken("a stored message without its time"))?;
        Ok(Some(StoredTemplate {
            version,
            put_at_ms: put_at_ms.parse().map_err(broken)?,
            message: message.to_owned(),
        }))
    }

    async fn templates(&self, app: &str) -> Result<Vec<(String, u32)>, LedgerError> {
        let mut cmd = redis::cmd("HGETALL");
        cmd.arg(self.0.keys.template_names(app));
        let names: Vec<(String, i64)> = self.read(&cmd).await?;
        let stored = |(name, version)| Some((name, u32::try_from(version).ok()?));
        let mut names: Vec<_> = names.into_iter().filter_map(stored).collect();
        names.sort_unstable();
        Ok(names)
    }

    async fn delete_template(&self, app: &str, name: &str) -> Result<bool, LedgerError> {
        let mut call = self.templates_call(&DELETE, app, name, 2, 0);
        call.push(name).push(self.0.window_s);
        match self.0.connection.call(&call).await? {
            Value::Int(deleted) => Ok(deleted == 1),
            other => Err(broken(format!("delete_template says {other:?}"))),
        }
    }
}

impl Store {
    fn templates_call<'a>(
        &self,
        script: &'a Script,
        app: &str,
        name: &str,
        args: usize,
        bytes: usize,
    ) -> Call<'a> {
        let mut call = Call::new(script, 2, args, 256 + bytes);
        call.push(self.0.keys.template_names(app))
            .push(self.0.keys.template_versions(app, name));
        call
    }

    /// The newest version of a name that is not deleted. If another version is put between this
    /// request and the next, this one still exists.
    async fn newest_template(&self, app: &str, name: &str) -> Result<Option<u32>, LedgerError> {
        let mut cmd = redis::cmd("HGET");
        cmd.arg(self.0.keys.template_names(app)).arg(name);
        let version: Option<i64> = self.read(&cmd).await?;
        Ok(version.and_then(|version| u32::try_from(version).ok()))
    }

    async fn read<V: redis::FromRedisValue>(&self, cmd: &redis::Cmd) -> Result<V, LedgerError> {
        redis::from_redis_value(self.0.connection.command(cmd).await?).map_err(broken)
    }
}
