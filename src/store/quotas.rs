//! Counts what apps with a quota have used: one hash per app and day.

use std::sync::LazyLock;

use super::Store;
use super::connection::{Call, Script, broken};
use crate::domain::permissions::{Asked, Permissions, Used};
use crate::ports::{Charged, LedgerError, Quotas};

static CHARGE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/charge.lua")));

impl Quotas for Store {
    async fn charge(
        &self,
        asked: &[Asked],
        permissions: &Permissions,
        day: u64,
    ) -> Result<Charged, LedgerError> {
        let Some(Asked { app, .. }) = asked.first() else {
            return Ok(Charged::Counted);
        };
        let keys = &self.0.keys;
        let lists: usize = asked.iter().map(|asked| asked.lists.len()).sum();
        let mut call = Call::new(&CHARGE, 2, 2 + 3 * lists, 256 + 72 * lists);
        let most = |most: Option<u64>| most.map_or(-1, u64::cast_signed);
        call.push(keys.quota(app, day))
            .push(keys.quota(app, day.saturating_sub(1)))
            .push(most(permissions.recipients_max))
            .push(most(permissions.daily_recipients));
        for asked in asked {
            let job = asked.job.to_string();
            for (submission, entries) in &asked.lists {
                call.push(&job).push(submission).push(*entries);
            }
        }
        let reply = self.0.connection.call(&call).await?;
        let (counted, job, of_job, day): (bool, String, u64, u64) =
            redis::from_redis_value(reply).map_err(broken)?;
        if counted {
            return Ok(Charged::Counted);
        }
        Ok(Charged::Over {
            job: job.parse().map_err(broken)?,
            used: Used { job: of_job, day },
        })
    }
}
