//! Makes one call to a backend, from the request to a verdict: signs it, adds its credential, and
//! probes the target when the call stays in doubt and the target can tell.
//!
//! A call is made once, with one exception. A target that refuses a credential has carried nothing
//! out, so the call is made once more with a new credential.
//!
//! Fetching a credential and probing take time, so the caller is asked just before the request
//! leaves whether it may.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use tokio::time::Instant;

use super::context::TargetRuntime;
use super::credential::{Held, Keyring};
use crate::clock::now_ms;
use crate::domain::outcome::{Class, TargetAnswer, Verdict};
use crate::ports::{Calls, HttpReply, Login, Probed, Request, SendError, Signing, Transport};

/// How often a probe must say "not sent" before it is believed.
const PROBES: u32 = 2;

/// The result of a call.
pub(crate) struct Called {
    pub(crate) verdict: Verdict,
    /// The target says that no earlier call was carried out.
    pub(crate) cleared: bool,
}

/// Makes calls to one target.
pub(crate) struct Caller<'a, T> {
    pub(crate) target: &'a TargetRuntime,
    pub(crate) transport: &'a T,
    pub(crate) traceparent: Option<&'a str>,
    /// Whether the request may still leave.
    pub(crate) may_leave: &'a (dyn Fn() -> bool + Sync),
}

impl<T: Transport> Caller<'_, T> {
    /// Makes a call for these recipients. `in_doubt`: an earlier call for them may have been
    /// carried out, so the target is asked first. `None`: the request was not to leave.
    pub(crate) async fn call(
        &self,
        calls: &dyn Calls,
        recipients: &[&str],
        in_doubt: bool,
    ) -> Option<Called> {
        let called = |verdict, cleared| Some(Called { verdict, cleared });
        let mut cleared = false;
        if in_doubt && let Some(probed) = self.probe(calls, recipients).await {
            match probed {
                Probed::Sent(id) => return called(Verdict::All(TargetAnswer::done_as(id)), false),
                Probed::NotSent => cleared = true,
                Probed::Unknown => return called(Verdict::All(lost()), false),
            }
        }
        let verdict = self.once(calls, recipients).await?;
        let unknown = verdict
            .whole()
            .is_some_and(|it| it.class == Class::Uncertain && !it.unprovable);
        if !unknown {
            return called(verdict, cleared);
        }
        match self.probe(calls, recipients).await {
            Some(Probed::Sent(id)) => called(Verdict::All(TargetAnswer::done_as(id)), false),
            Some(Probed::NotSent) => {
                let text = "the reply was lost, and the target answered twice that the message \
                    was not sent";
                let answer = TargetAnswer::new(Class::Transient, "not_sent", text);
                called(Verdict::All(answer), true)
            }
            Some(Probed::Unknown) | None => called(verdict, cleared),
        }
    }

    /// Waits until the target's credential is there, if it needs one.
    pub(crate) async fn credential(&self) -> Result<(), TargetAnswer> {
        self.held().await.map(drop)
    }

    async fn once(&self, calls: &dyn Calls, recipients: &[&str]) -> Option<Verdict> {
        let started = Instant::now();
        let read = |reply: Result<HttpReply, SendError>| {
            let verdict = match &reply {
                Ok(reply) => calls.read_reply(recipients, reply),
                Err(error) => Verdict::All(error.into()),
            };
            let TargetRuntime {
                name,
                call_log,
                classes,
                ..
            } = self.target;
            let verdict = classes.apply(verdict);
            call_log.note(name, recipients.len(), started.elapsed(), &reply, &verdict);
            verdict
        };
        let mut refused = false;
        loop {
            let held = match self.held().await {
                Ok(held) => held,
                Err(answer) => return Some(Verdict::All(answer)),
            };
            if !(self.may_leave)() {
                return None;
            }
            let verdict = read(self.send(held.as_deref(), calls.request(recipients)).await);
            match held {
                Some(held) if !refused && verdict.whole().is_some_and(|it| it.stale) => {
                    self.target.keyring.refuse(&held);
                    refused = true;
                }
                _ => return Some(verdict),
            }
        }
    }

    /// The credential of the target; none if it needs none.
    async fn held(&self) -> Result<Option<Arc<Held>>, TargetAnswer> {
        let TargetRuntime {
            target, keyring, ..
        } = self.target;
        let timeout = self.target.call_timeout;
        held(self.transport, target.login(), keyring, timeout).await
    }

    /// Sends a request of this target.
    async fn send(&self, held: Option<&Held>, request: Request) -> Result<HttpReply, SendError> {
        let TargetRuntime {
            target, metrics, ..
        } = self.target;
        let timeout = self.target.call_timeout;
        let sign = |request: &mut Request, signing| {
            target.sign(request, signing);
            if let Some(Ok(trace)) = self.traceparent.map(HeaderValue::from_str) {
                request.headers.insert("traceparent", trace);
            }
        };
        metrics.in_flight.inc();
        let under_way = self.target.under_way.begin();
        let sent = send(self.transport, target.login(), held, timeout, sign, request).await;
        metrics.in_flight.dec();
        self.target.calls.heard(under_way.began(), &sent);
        if let Err(SendError::NotSent { .. }) = &sent {
            metrics.unreached();
        }
        sent
    }

    /// Asks the target about a call in doubt; nothing where it cannot tell.
    async fn probe(&self, calls: &dyn Calls, recipients: &[&str]) -> Option<Probed> {
        let started = Instant::now();
        let mut wait = self.target.target.profile().probe_after;
        for turn in 1..=PROBES {
            let request = calls.probe(recipients)?;
            tokio::time::sleep(wait).await;
            let reply = match self.held().await {
                Ok(held) => self.send(held.as_deref(), request).await.ok(),
                Err(_) => None,
            };
            let probed = reply.map_or(Probed::Unknown, |reply| {
                calls.read_probe(recipients, &reply)
            });
            tracing::debug!(
                turn, probed = ?probed, waited_ms = started.elapsed().as_millis() as u64,
                "a call in doubt was probed"
            );
            if probed != Probed::NotSent {
                return Some(probed);
            }
            wait = wait.saturating_mul(2).min(Duration::from_secs(5));
        }
        Some(Probed::NotSent)
    }
}

/// Sends a request with the credential that it needs, signed. An error means that it could not be
/// made.
pub(crate) async fn authorised<T: Transport>(
    transport: &T,
    login: Option<&dyn Login>,
    keyring: &Keyring,
    timeout: Duration,
    sign: impl FnOnce(&mut Request, Signing),
    request: impl FnOnce() -> Request,
) -> Result<(Result<HttpReply, SendError>, Option<Arc<Held>>), TargetAnswer> {
    let held = held(transport, login, keyring, timeout).await?;
    let request = request();
    let sent = send(transport, login, held.as_deref(), timeout, sign, request).await;
    Ok((sent, held))
}

async fn held<T: Transport>(
    transport: &T,
    login: Option<&dyn Login>,
    keyring: &Keyring,
    timeout: Duration,
) -> Result<Option<Arc<Held>>, TargetAnswer> {
    Ok(match login {
        Some(login) => Some(keyring.get(login, transport, timeout).await?),
        None => None,
    })
}

/// Sends a request with this credential, signed.
async fn send<T: Transport>(
    transport: &T,
    login: Option<&dyn Login>,
    held: Option<&Held>,
    timeout: Duration,
    sign: impl FnOnce(&mut Request, Signing),
    mut request: Request,
) -> Result<HttpReply, SendError> {
    if let (Some(login), Some(held)) = (login, held) {
        login.apply(&mut request, held.secret.expose());
    }
    let signing = Signing {
        now_ms: now_ms(),
        nonce: fastrand::u128(..),
    };
    sign(&mut request, signing);
    transport.send(request, timeout).await
}

/// The answer for the call of a worker that ended: its result is not known.
pub(crate) fn lost() -> TargetAnswer {
    let text = "the worker that was sending ended without recording an answer";
    TargetAnswer::new(Class::Uncertain, "lost", text)
}
