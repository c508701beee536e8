//! Asks a target which system it is, and whether it takes the credentials. Nothing is sent to a
//! user.

use std::time::Duration;

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use super::{Context, Keyring};
use crate::clock::now_ms;
use crate::ports::{Signing, Target, Transport};

/// The system that answers, or what is wrong: another system or version, a refused credential, no
/// answer. `None` if the target cannot be asked without sending anything.
pub async fn identify<T: Transport>(
    target: &dyn Target,
    keyring: &Keyring,
    transport: &T,
    timeout: Duration,
) -> Result<Option<String>, String> {
    if let Some(login) = target.login() {
        return match keyring.get(login, transport, timeout).await {
            Ok(_) => Ok(Some("gives a token for the secret".to_owned())),
            Err(refused) => Err(format!(
                "gives no token: {} {}. Check its secret",
                refused.code, refused.text
            )),
        };
    }
    let Some(mut request) = target.identify() else {
        return Ok(None);
    };
    let signing = Signing {
        now_ms: now_ms(),
        nonce: fastrand::u128(..),
    };
    target.sign(&mut request, signing);
    let reply = transport.send(request, timeout).await;
    let reply = reply.map_err(|error| error.to_string())?;
    target.read_identity(&reply).map(Some)
}

/// Logs once what each target answers, so that the log of a start names a wrong credential before
/// the first job meets it. Sending does not wait for this.
pub async fn identify_all<S, T: Transport>(context: &Context<S, T>, stop: &CancellationToken) {
    let asked = context.targets.values().map(async |runtime| {
        let (target, keyring) = (&*runtime.target, &runtime.keyring);
        let asked = identify(target, keyring, &context.transport, runtime.call_timeout);
        match asked.await {
            Ok(None) => {}
            Ok(Some(found)) => tracing::info!("target {}: {found}", runtime.name),
            Err(wrong) => tracing::warn!(
                "target {}: {wrong}; its jobs may wait or fail, see `fanwise doctor`",
                runtime.name
            ),
        }
    });
    stop.run_until_cancelled(join_all(asked)).await;
}
