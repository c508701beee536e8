//! Whether a job may be accepted: asked by everything that takes jobs over HTTP, before anything of a
//! job is durable.

use bytes::Bytes;

use super::Gateway;
use super::access::Caller;
use super::before_accept::{Decision, changed};
use super::problem::Refusal;
use crate::domain::permissions::Asked;
use crate::metrics::LedgerStep;
use crate::ports::{Broker, Charged, Transport};
use crate::worker::{Store, today};

/// Lets a job pass as it is, or with the message that `before_accept` makes of it, or says why not:
///
/// 1. the caller may act as its app, and not more often than `requests` allows;
/// 2. the app's permissions;
/// 3. `before_accept`;
/// 4. what the app may still send today, which is counted by this.
///
/// `document` is the job as JSON; it may lack the list, which stays as it is. A job that is refused
/// later, as a conflict or since the broker is away, has been counted; once it is repeated with the
/// same list it is not counted again.
pub(super) async fn permit<B: Broker, S: Store, T: Transport>(
    gateway: &Gateway<B, S, T>,
    caller: &Caller,
    asked: &Asked,
    document: &[u8],
) -> Result<Option<Bytes>, Refusal> {
    gateway.access.check(caller, &asked.app)?;
    if !matches!(caller, Caller::App(_)) {
        // Those of an app were counted when they came.
        gateway.requests.count(&asked.app, &gateway.access)?;
    }
    let context = &*gateway.context;
    let permissions = &context.apps[&asked.app].permissions;
    let problems = permissions.problems(asked);
    if !problems.is_empty() {
        return Err(Refusal::Forbidden(problems));
    }
    let changed = before_accept(gateway, asked, document).await?;
    if permissions.counts() {
        let charge = context.store.charge(asked, permissions, today());
        let charged = context.try_step(LedgerStep::Charge, charge).await?;
        if let Charged::Over(used) = charged {
            return Err(Refusal::Forbidden(permissions.over(asked, used)));
        }
    }
    Ok(changed)
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
    let decided = hook.ask(&gateway.context.transport, asked, document).await;
    let decided = decided.and_then(|decision| match decision {
        Decision::Allow => Ok(Ok(None)),
        Decision::Deny { code, text } => Ok(Err(Refusal::Denied { code, text })),
        Decision::Change { message, options } => {
            changed(document, message.as_deref(), options.as_deref()).map(|body| Ok(Some(body)))
        }
    });
    decided.unwrap_or_else(|error| {
        let allowed = hook.allow_on_failure;
        tracing::warn!(job.app = asked.app, %error, allowed, "before_accept has not decided");
        if allowed {
            return Ok(None);
        }
        let what = format!("before_accept of app {:?} has not decided", asked.app);
        Err(Refusal::Unavailable(what))
    })
}
