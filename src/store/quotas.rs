//! What apps with a quota have used up: one hash per app and day.

use std::sync::LazyLock;

use redis::Script;

use super::Store;
use super::connection::{Call, broken};
use crate::domain::permissions::{Asked, Permissions, Used};
use crate::ports::{Charged, LedgerError, Quotas};

static CHARGE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/charge.lua")));

impl Quotas for Store {
    async fn charge(
        &self,
        asked: &Asked,
        permissions: &Permissions,
        day: u64,
    ) -> Result<Charged, LedgerError> {
        let keys = &self.0.keys;
        let lists = asked.lists.len();
        let mut call = Call::new(&CHARGE, 2, 3 + 2 * lists, 256 + 48 * lists);
        let most = |most: Option<u64>| most.map_or(-1, u64::cast_signed);
        call.push(keys.quota(&asked.app, day))
            .push(keys.quota(&asked.app, day.saturating_sub(1)))
            .push(asked.job.to_string())
            .push(most(permissions.recipients_max))
            .push(most(permissions.daily_recipients));
        for (submission, entries) in &asked.lists {
            call.push(submission).push(*entries);
        }
        let reply = self.0.connection.call(&call).await?;
        let (counted, job, day): (bool, u64, u64) =
            redis::from_redis_value(reply).map_err(broken)?;
        Ok(if counted {
            Charged::Counted
        } else {
            Charged::Over(Used { job, day })
        })
    }
}
