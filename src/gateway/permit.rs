//! Whether a job may be accepted: asked by everything that takes jobs over HTTP, before anything of a
//! job is durable.

use std::time::Instant;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::Gateway;
use super::access::Caller;
use super::before_accept::{Decision, changed, names_stored};
use super::problem::Refusal;
use crate::domain::permissions::Asked;
use crate::metrics::{AskedResult, LedgerStep};
use crate::ports::{Broker, Charged, Transport};
use crate::worker::{Store, today};

/// Three questions, in this order:
///
/// 1. `admit`: the caller may act as the app, and not more often than `requests` allows;
/// 2. `allow`: the app's permissions, and `before_accept`;
/// 3. `charge`: what the app may still send today, which is counted by this; last, so that a job that
///    is refused or only tried is not.
impl<B: Broker, S: Store, T: Transport> Gateway<B, S, T> {
    pub(super) fn admit(&self, caller: &Caller, app: &str) -> Result<(), Refusal> {
        self.access.check(caller, app)?;
        match caller {
            // Those of an app were counted when they came.
            Caller::App(_) => Ok(()),
            Caller::Admin | Caller::Nobody => self.rates.count(app, &self.access),
        }
    }

    /// Whether the app's permissions allow a job, as far as it is known.
    pub(super) fn keeps_rules(&self, asked: &Asked) -> Result<(), Refusal> {
        let problems = self.context.apps[&asked.app].permissions.problems(asked);
        if !problems.is_empty() {
            return Err(Refusal::Forbidden(problems));
        }
        Ok(())
    }

    /// Lets a job pass as it is, or with the message that `before_accept` makes of it. `document` is
    /// the job as JSON; it may lack the list, which stays as it is.
    pub(super) async fn allow(
        &self,
        asked: &Asked,
        document: &[u8],
    ) -> Result<Option<Bytes>, Refusal> {
        self.keeps_rules(asked)?;
        before_accept(self, asked, document).await
    }

    /// Counts the jobs of one request, which are of one app: all of them or none. One that is refused
    /// after this, since the broker is away or by the intake, has been counted; once it is repeated with
    /// the same list it is not counted again.
    pub(super) async fn charge(&self, asked: &[Asked]) -> Result<(), Refusal> {
        let Some(Asked { app, .. }) = asked.first() else {
            return Ok(());
        };
        let permissions = &self.context.apps[app].permissions;
        if !permissions.counts() {
            return Ok(());
        }
        let charge = self.context.store.charge(asked, permissions, today());
        match self.context.try_step(LedgerStep::Charge, charge).await? {
            Charged::Counted => Ok(()),
            Charged::Over { job, used } => {
                Err(Refusal::Forbidden(permissions.over(asked, job, used)))
            }
        }
    }
}

/// The stored message that a job names, in the version that it goes out in. One that is not there is
/// refused later on.
async fn stored<B: Broker, S: Store, T: Transport>(
    gateway: &Gateway<B, S, T>,
    asked: &Asked,
    document: &[u8],
) -> Result<Option<Box<RawValue>>, Refusal> {
    let Some(name) = names_stored(document) else {
        return Ok(None);
    };
    let store = &gateway.context.store;
    let record = store.job(asked.job).await?;
    let version = record.and_then(|record| record.template);
    let stored = store.template(&asked.app, &name, version).await?;
    Ok(stored.and_then(|stored| RawValue::from_string(stored.message).ok()))
}

async fn before_accept<B: Broker, S: Store, T: Transport>(
    gateway: &Gateway<B, S, T>,
    asked: &Asked,
    document: &[u8],
) -> Result<Option<Bytes>, Refusal> {
    let app = gateway.access.apps.get(&asked.app);
    let Some(hook) = app.and_then(|app| app.before_accept.as_ref()) else {
        return Ok(None);
    };
    let stored = stored(gateway, asked, document).await?;
    let started = Instant::now();
    let transport = &gateway.context.transport;
    let decided = hook.ask(transport, asked, document, stored.as_deref());
    let decided = decided.await;
    let took = started.elapsed();
    let decided = decided.and_then(|decision| match decision {
        Decision::Allow => Ok((AskedResult::Allow, Ok(None))),
        Decision::Deny { code, text } => {
            Ok((AskedResult::Deny, Err(Refusal::Denied { code, text })))
        }
        Decision::Change { message, options } => {
            let body = changed(document, message.as_deref(), options.as_deref())?;
            Ok((AskedResult::Change, Ok(Some(body))))
        }
    });
    let (result, decided) = decided.unwrap_or_else(|error| {
        let allowed = hook.allow_on_failure;
        tracing::warn!(job.app = asked.app, %error, allowed, "before_accept has not decided");
        let what = format!("before_accept of app {:?} has not decided", asked.app);
        let decided = match allowed {
            true => Ok(None),
            false => Err(Refusal::Unavailable(what)),
        };
        (AskedResult::Failed, decided)
    });
    gateway.context.metrics.before_accept(result, took);
    decided
}
