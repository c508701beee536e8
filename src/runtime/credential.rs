//! Fetches and keeps the credential of a target that needs one. It renews it in time, and one task
//! fetches it while the others wait.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::domain::outcome::{Class, TargetAnswer};
use crate::ports::{Credential, Login, Transport};
use crate::secret::Secret;

/// A credential is renewed when this much of its life is left, or a tenth of its life if that is
/// less.
const RENEW_BEFORE: Duration = Duration::from_secs(60);

/// A credential in use.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) secret: Secret,
    renew_at: Instant,
}

/// Keeps the credential of one target.
#[derive(Debug, Default)]
pub struct Keyring {
    held: RwLock<Option<Arc<Held>>>,
    /// Held while a new one is fetched.
    fetching: Mutex<()>,
}

impl Keyring {
    /// Returns the credential; fetches one if there is none or it is about to expire. The error is
    /// the answer for the call that needed the credential and was not made.
    pub(crate) async fn get<T: Transport>(
        &self,
        login: &dyn Login,
        transport: &T,
        timeout: Duration,
    ) -> Result<Arc<Held>, TargetAnswer> {
        if let Some(held) = self.good() {
            return Ok(held);
        }
        let _alone = self.fetching.lock().await;
        if let Some(held) = self.good() {
            return Ok(held);
        }
        let reply = transport.send(login.request(), timeout).await;
        let credential = match reply {
            Ok(reply) => login.read_credential(&reply),
            Err(error) => Err(TargetAnswer::from(&error)),
        };
        let Credential { secret, lives } = credential.map_err(not_made)?;
        let held = Arc::new(Held {
            secret,
            renew_at: Instant::now() + lives - RENEW_BEFORE.min(lives / 10),
        });
        *self.held.write() = Some(Arc::clone(&held));
        tracing::info!(lives_seconds = lives.as_secs(), "a credential was fetched");
        Ok(held)
    }

    fn good(&self) -> Option<Arc<Held>> {
        let held = self.held.read();
        held.clone().filter(|held| Instant::now() < held.renew_at)
    }

    /// Forgets a credential that was refused, unless another one has replaced it.
    pub(crate) fn refuse(&self, refused: &Arc<Held>) {
        let mut held = self.held.write();
        if held.as_ref().is_some_and(|held| Arc::ptr_eq(held, refused)) {
            *held = None;
        }
    }
}

/// The call is not made without a credential. So, whatever the login answered, no recipient is in
/// doubt and no recipient has failed.
fn not_made(mut answer: TargetAnswer) -> TargetAnswer {
    answer.class = match answer.class {
        Class::Permanent | Class::Config => Class::Config,
        Class::Throttled => Class::Throttled,
        Class::Done | Class::Transient | Class::Uncertain => Class::Transient,
    };
    answer.unreached()
}
