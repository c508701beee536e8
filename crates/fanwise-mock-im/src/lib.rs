//! Simulates IM servers that misbehave on demand: `fanwise mock-im`, and the backend of the tests.
//!
//! It keeps two promises. It implements the protocols as the real servers do, rule by rule, from
//! their sources; it does not depend on fanwise and its adapters. And its record of accepted
//! messages is exact: every accepted recipient is in the log file before the answer is sent,
//! whatever happens to the answer (`log`). The accounts of a job can be checked against that log.
//!
//! One port serves all protocols, distinguished by the path: `/hook…` is a webhook; `/msg`,
//! `/auth`, `/user` and `/group` are OpenIM; `/nimserver` is NetEase v1 and `/im/v2` Yunxin v2;
//! `/_mock…` and `/livez` control and observe the mock; all other paths are WuKongIM. The faults
//! are in `faults`. Hyper's connection loop serves the requests directly, because a fault must be
//! able to abort the connection, and because the mock also serves as the sink of benchmarks.
//!
//! It never delivers messages, and only the log survives a restart.
//!
//! Reading order: `faults`, `log`, `state`, `reply`, `directory`, `go`, the protocols, `control`,
//! `args`. A further protocol is a file beside `webhook.rs`, a variant of `System` with its paths
//! and answers, and, if it has any, its state in `State` and its flags in `args`.

#![allow(
    clippy::disallowed_methods,
    reason = "it has a clock and tasks of its own"
)]

mod args;
mod control;
mod directory;
mod duration;
mod faults;
mod go;
mod log;
mod netease;
mod openim;
mod reply;
mod state;
mod webhook;
mod wukongim;
mod yunxin;

#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

pub use args::MockArgs;
pub use faults::{Burst, Chance, FaultFlag, FaultKind, Faults, FaultsError, Latency, Share};
pub use log::Entry;
pub use netease::{NeteaseSettings, OnRepeat, PairError, Quota, QuotaError, Standing};
pub use openim::{OpenimArgs, Rules as OpenimRules};
pub use state::{Recalled, Stats};
pub use wukongim::{Login, Version};
pub use yunxin::{FailedKey, YunxinSettings};

use faults::CallPlan;
use reply::{Answer, Cut, ReplyBody};
use state::State;

/// Entries kept in memory by default; about 400 bytes each.
pub const KEEP_DEFAULT: usize = 200_000;

/// Users listed by default.
pub const USERS_DEFAULT: u64 = 1000;

/// Far above any batch that a protocol allows.
const BODY_BYTES_MAX: usize = 32 << 20;

/// Connections served at the same time; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 16_384;

/// Longest time for requests in flight to finish when the server stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// Pause after a failed accept, usually because there are no free file descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);

/// The reason why the mock cannot start.
#[derive(Debug, thiserror::Error)]
pub enum MockError {
    #[error("cannot listen on {addr}")]
    Bind {
        addr: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("cannot open the log {}", path.display())]
    OpenLog {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Settings at the start. [`MockArgs::into_settings`] makes them from flags; tests change the
/// default.
#[derive(Clone)]
pub struct Settings {
    pub listen: SocketAddr,
    pub wukongim: Version,
    /// WuKongIM v1 and v2: the required value of the header `token`.
    pub token: Option<String>,
    /// Honour `Idempotency-Key` below `/hook`.
    pub webhook_idempotent: bool,
    /// Users `u1` to `uN`, which the lists of users contain.
    pub users: u64,
    /// WuKongIM v3: the login of the manager API; without one it requires none.
    pub wukongim_manager: Option<Login>,
    pub openim: OpenimRules,
    pub netease: NeteaseSettings,
    pub yunxin: YunxinSettings,
    /// Where to append the log.
    pub log: Option<PathBuf>,
    /// Entries kept in memory.
    pub keep: usize,
    pub seed: u64,
    /// The faults at the start.
    pub faults: Faults,
}

impl Default for Settings {
    /// A well-behaved WuKongIM v2 on a free port of the loopback address.
    fn default() -> Settings {
        Settings {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            wukongim: Version::V2,
            token: None,
            webhook_idempotent: false,
            users: USERS_DEFAULT,
            wukongim_manager: None,
            openim: OpenimRules::default(),
            netease: NeteaseSettings::default(),
            yunxin: YunxinSettings::default(),
            log: None,
            keep: KEEP_DEFAULT,
            seed: 0,
            faults: Faults::default(),
        }
    }
}

/// The mock server, listening but not yet serving.
pub struct MockIm {
    listener: TcpListener,
    addr: SocketAddr,
    state: Arc<State>,
}

/// Observes and controls a mock in the same process, as `/_mock/…` does over HTTP.
#[derive(Clone)]
pub struct MockHandle(Arc<State>);

impl MockHandle {
    pub fn stats(&self) -> Stats {
        self.0.stats()
    }

    /// The current settings, with the counts that are left.
    pub fn faults(&self) -> Faults {
        self.0.chooser().faults().clone()
    }

    /// Changes the settings in `patch`; `null` resets one to its default.
    pub fn patch_faults(&self, patch: &serde_json::Value) -> Result<Faults, FaultsError> {
        self.0.patch_faults(patch)
    }

    /// Changes the settings of OpenIM, like [`MockHandle::patch_faults`].
    pub fn patch_openim(&self, patch: &serde_json::Value) -> Result<OpenimRules, FaultsError> {
        let rules = self.0.openim.patch(patch)?;
        Ok((*rules).clone())
    }

    /// Revokes every OpenIM token: the next call with one gets this errCode. Returns how many were
    /// not revoked before.
    pub fn revoke_openim_tokens(&self, code: i32) -> usize {
        self.0.openim.revoke_tokens(code)
    }

    /// The messages of one recipient, oldest first.
    pub fn accepted_by(&self, recipient: &str) -> Vec<Entry> {
        self.0.book.of(recipient)
    }

    /// All accepted messages. Recipients are in no particular order.
    pub fn accepted(&self) -> Vec<Entry> {
        self.0.book.all()
    }

    /// The messages that were recalled, in order; one that was recalled twice is there twice.
    pub fn recalled(&self) -> Vec<Recalled> {
        self.0.recalled().clone()
    }

    /// False once entries were dropped because [`Settings::keep`] was reached.
    pub fn is_complete(&self) -> bool {
        self.0.book.is_complete()
    }
}

impl MockIm {
    /// Opens the log and listens. Connections wait in the queue until [`MockIm::run`].
    pub async fn bind(settings: Settings) -> Result<MockIm, MockError> {
        let addr = settings.listen;
        let wrong = |source| MockError::Bind { addr, source };
        let state = Arc::new(State::new(settings)?);
        let listener = TcpListener::bind(addr).await.map_err(wrong)?;
        let addr = listener.local_addr().map_err(wrong)?;
        Ok(MockIm {
            listener,
            addr,
            state,
        })
    }

    /// The address in use, with the actual port.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn handle(&self) -> MockHandle {
        MockHandle(Arc::clone(&self.state))
    }

    /// Serves until `stop` is ready, then finishes the requests in flight, up to a deadline.
    /// Answers that a fault would hold back forever end immediately.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        tracing::info!(addr = %self.addr, wukongim = ?self.state.version, "mock im server listens");
        let mut connections = JoinSet::new();
        let mut stop = pin!(stop);
        loop {
            tokio::select! {
                biased;
                () = &mut stop => break,
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                    match accepted {
                        Ok((stream, _)) => {
                            connections.spawn(serve(Arc::clone(&self.state), stream));
                        }
                        Err(error) => {
                            tracing::warn!(%error, "connection cannot be accepted");
                            tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                        }
                    }
                }
            }
        }
        drop(self.listener);
        drain(&self.state, connections).await;
    }
}

async fn drain(state: &State, mut connections: JoinSet<()>) {
    state.stop.cancel();
    state.late.close();
    let finished = async {
        while connections.join_next().await.is_some() {}
        state.late.wait().await;
    };
    if tokio::time::timeout(DRAIN_DEADLINE, finished)
        .await
        .is_err()
    {
        tracing::warn!("mock im server stops with requests in flight");
        connections.shutdown().await;
    }
}

/// Serves one connection until it ends.
async fn serve(state: Arc<State>, stream: TcpStream) {
    state::count(&state.counters.connections, 1);
    // Without it, an answer may wait for the client's delayed acknowledgement; the mock still
    // works.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| handle(Arc::clone(&state), request));
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let ended = tokio::select! {
        outcome = &mut connection => Some(outcome),
        () = state.stop.cancelled() => None,
    };
    let outcome = match ended {
        Some(outcome) => outcome,
        None => {
            Pin::new(&mut connection).graceful_shutdown();
            (&mut connection).await
        }
    };
    // Any other error means that the client closed the connection, which faults often provoke.
    if outcome.is_err_and(|error| cut(&error) == Some(Cut::Reset)) {
        // Without lingering, closing the socket sends an RST and drops unsent data.
        let _ = connection.into_parts().io.inner().set_zero_linger();
    }
}

fn cut(error: &hyper::Error) -> Option<Cut> {
    std::error::Error::source(error)?
        .downcast_ref::<Cut>()
        .copied()
}

/// An IM system that the mock simulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum System {
    Wukongim,
    Openim,
    Webhook,
    Netease,
    Yunxin,
}

impl System {
    fn of(path: &str) -> System {
        match path.split('/').nth(1) {
            Some("hook") => System::Webhook,
            Some("msg" | "auth" | "user" | "group") => System::Openim,
            Some("nimserver") => System::Netease,
            Some("im") => System::Yunxin,
            _ => System::Wukongim,
        }
    }

    /// The name in log entries.
    fn name(self) -> &'static str {
        match self {
            System::Wukongim => "wukongim",
            System::Openim => "openim",
            System::Webhook => "webhook",
            System::Netease => "netease",
            System::Yunxin => "yunxin",
        }
    }

    fn answer(self, state: &State, call: &Call, plan: &CallPlan) -> Answer {
        match self {
            System::Wukongim => wukongim::answer(state, call, plan),
            System::Openim => openim::answer(state, call, plan),
            System::Webhook => webhook::answer(state, call, plan),
            System::Netease => netease::answer(state, call, plan),
            System::Yunxin => yunxin::answer(state, call, plan),
        }
    }

    fn failure(self, state: &State, status: StatusCode, text: &str) -> Answer {
        match self {
            System::Wukongim => wukongim::failure(state.version, status, text),
            System::Openim => openim::failure(status),
            System::Webhook => webhook::failure(status, "unavailable", text),
            System::Netease => netease::failure(status, text),
            System::Yunxin => yunxin::failure(status, text),
        }
    }

    fn unauthorised(self) -> Answer {
        match self {
            System::Wukongim => wukongim::unauthorised(),
            System::Openim => openim::unauthorised(),
            System::Webhook => {
                webhook::failure(StatusCode::UNAUTHORIZED, "unauthorised", "token refused")
            }
            System::Netease => netease::unauthorised(),
            System::Yunxin => yunxin::unauthorised(),
        }
    }

    /// The answer of a server that fails after it accepted the message.
    fn failed_after(self, state: &State, answer: Answer) -> Answer {
        match self {
            // Its answer already reports the error, with HTTP 200.
            System::Openim => answer,
            _ if answer.status.is_success() => {
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                self.failure(state, status, "internal error")
            }
            _ => answer,
        }
    }
}

/// A request that has been read.
struct Call {
    parts: Parts,
    body: Bytes,
}

impl Call {
    /// A header, if it is text.
    fn header(&self, name: &str) -> Option<&str> {
        self.parts.headers.get(name)?.to_str().ok()
    }

    fn traceparent(&self) -> Option<&str> {
        self.header("traceparent")
    }
}

async fn handle(state: Arc<State>, request: Request<Incoming>) -> Result<Response<ReplyBody>, Cut> {
    let (parts, body) = request.into_parts();
    // The body is too long, or the client closed the connection: no answer is possible.
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
    let body = body.map_err(|_| Cut::Close)?.to_bytes();
    let call = Call { parts, body };
    if let Some(answer) = control::answer(&state, &call) {
        return Ok(answer.whole());
    }
    let plan = state.next_plan();
    let answer = if plan.latency.is_zero() {
        play(&state, &call, &plan)
    } else {
        play_late(&state, call, plan.clone()).await?
    };
    deliver(&state, plan, answer).await
}

/// Handles the request after the latency, even if the client has given up meanwhile. Real servers
/// do the same, which is why a timeout leaves doubt.
async fn play_late(state: &Arc<State>, call: Call, plan: CallPlan) -> Result<Answer, Cut> {
    let own = Arc::clone(state);
    let playing = state.late.spawn(async move {
        tokio::time::sleep(plan.latency).await;
        play(&own, &call, &plan)
    });
    playing.await.map_err(|_| Cut::Close)
}

/// Handles the request and returns the answer. Nothing is accepted if a fault strikes before.
fn play(state: &State, call: &Call, plan: &CallPlan) -> Answer {
    let system = System::of(call.parts.uri.path());
    let answer = match plan.fault {
        Some(kind) if kind.strikes_before_accepting() => struck(state, system, kind, plan),
        Some(FaultKind::ErrorAfter) => {
            let answer = system.answer(state, call, plan);
            system.failed_after(state, answer)
        }
        _ => system.answer(state, call, plan),
    };
    state::count(&state.counters.played, 1);
    answer
}

fn struck(state: &State, system: System, kind: FaultKind, plan: &CallPlan) -> Answer {
    match kind {
        FaultKind::Burst429 | FaultKind::Error429 => {
            let status = StatusCode::TOO_MANY_REQUESTS;
            let answer = system.failure(state, status, "too many requests");
            // Systems that answer 200 with a code of their own have no Retry-After.
            if answer.status == status {
                answer.with_retry_after(plan.retry_after)
            } else {
                answer
            }
        }
        FaultKind::Unauthorised => system.unauthorised(),
        FaultKind::Error503 => {
            system.failure(state, StatusCode::SERVICE_UNAVAILABLE, "retry required")
        }
        FaultKind::BadJsonUnaccepted => {
            let answer = system.failure(state, StatusCode::OK, "answer with a broken body");
            answer.broken()
        }
        // The answers for Hang and ResetBefore are never sent: `deliver` ends those requests.
        FaultKind::Hang
        | FaultKind::ResetBefore
        | FaultKind::Error500
        | FaultKind::LostAfter200
        | FaultKind::ResetAfter
        | FaultKind::ReplyLost
        | FaultKind::ReplyClosed
        | FaultKind::SlowBody
        | FaultKind::HalfBody
        | FaultKind::BadJson
        | FaultKind::ErrorAfter => {
            system.failure(state, StatusCode::INTERNAL_SERVER_ERROR, "internal error")
        }
    }
}

/// Sends the answer, changed by the fault.
async fn deliver(
    state: &State,
    plan: CallPlan,
    answer: Answer,
) -> Result<Response<ReplyBody>, Cut> {
    match plan.fault {
        Some(FaultKind::Hang | FaultKind::ReplyLost) => {
            state.stop.cancelled().await;
            Err(Cut::Close)
        }
        Some(FaultKind::ResetBefore | FaultKind::ResetAfter) => Err(Cut::Reset),
        Some(FaultKind::ReplyClosed) => Err(Cut::Close),
        Some(FaultKind::SlowBody) => Ok(answer.dribbled(plan.slow_pace, state.stop.clone())),
        Some(FaultKind::HalfBody) => Ok(answer.halved()),
        Some(FaultKind::BadJson) => Ok(answer.broken().whole()),
        Some(
            FaultKind::Burst429
            | FaultKind::Unauthorised
            | FaultKind::Error500
            | FaultKind::Error503
            | FaultKind::Error429
            | FaultKind::BadJsonUnaccepted
            | FaultKind::LostAfter200
            | FaultKind::ErrorAfter,
        )
        | None => Ok(answer.whole()),
    }
}
