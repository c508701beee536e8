//! The gateway's side of [`admission`](crate::service::admission), and the check of who may submit
//! as which app.

use std::future::Future;
use std::time::Duration;

use super::Gateway;
use super::access::Caller;
use super::problem::Refusal;
use crate::metrics::{AskedResult, Bound, LedgerStep};
use crate::ports::{Broker, LedgerError, Store, Transport};
use crate::runtime::Context;
use crate::service::BeforeAccept;
use crate::service::admission::{Admission, Refused};

impl<B: Broker, S: Store, T: Transport> Admission for Gateway<B, S, T> {
    type Rules = Context<S, T>;
    type Store = S;
    type Transport = T;

    fn rules(&self) -> &Context<S, T> {
        &self.context
    }

    fn store(&self) -> &S {
        &self.context.store
    }

    fn transport(&self) -> &T {
        &self.context.transport
    }

    fn before_accept(&self, app: &str) -> Option<&BeforeAccept> {
        self.access.apps.get(app)?.before_accept.as_ref()
    }

    fn has_room(&self, target: &str) -> Result<(), Refused> {
        let Some((pending, pending_max)) = self.context.too_many_pending(target) else {
            return Ok(());
        };
        self.context.metrics.request_refused(Bound::Pending);
        Err(Refused::Undecided(format!(
            "{pending} recipients wait for target {target:?}, and its pending_max is {pending_max}: \
             send this again when it has caught up"
        )))
    }

    fn asked(&self, result: AskedResult, took: Duration) {
        self.context.metrics.before_accept(result, took);
    }

    fn step<V: Send>(
        &self,
        step: LedgerStep,
        act: impl Future<Output = Result<V, LedgerError>> + Send,
    ) -> impl Future<Output = Result<V, LedgerError>> + Send {
        self.context.try_step(step, act)
    }
}

impl<B: Broker, S: Store, T: Transport> Gateway<B, S, T> {
    /// Lets a caller act as an app, within the app's `request_rate`.
    pub(super) fn admit(&self, caller: &Caller, app: &str) -> Result<(), Refusal> {
        self.access.check(caller, app)?;
        match caller {
            // Requests with an app's token were counted when they arrived.
            Caller::App(_) => Ok(()),
            Caller::Admin | Caller::Nobody => self.count_request(app),
        }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Problems(problems) => Self::BadJob(problems),
            Refused::Forbidden(problems) => Self::Forbidden(problems),
            Refused::Denied { code, text } => Self::Denied { code, text },
            Refused::Conflict(job) => Self::Conflict(job),
            Refused::Undecided(what) => Self::Unavailable(what),
        }
    }
}
